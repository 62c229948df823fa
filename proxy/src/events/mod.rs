//! Who is told of what happens: zot's events, as CloudEvents 1.0 over HTTP.
//!
//! Before the registry hears of a push or a deletion, it is written down that it is coming (an intent, in the database);
//! before its client hears that it is done, what is to be told of it stands there instead. Whatever a crash leaves between
//! the two is found out by looking at the registry. So what was acknowledged is told at least once, and of one repository in
//! its order.

mod addresses;
mod notices;
mod outbox;
mod recovery;
mod request;
mod sender;
mod settings;

use std::{
    sync::{
        Arc,
        atomic::{AtomicI64, Ordering},
    },
    time::Duration,
};

use moka::sync::Cache;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::sync::Notify;
use uuid::Uuid;

pub use self::{
    notices::read_notices,
    request::Pending,
    settings::{EventsConfig, SinkConfig},
};
use self::{outbox::Outbox, sender::Sender};
use crate::{
    observe::Metrics,
    registry::{Registry, RegistryError},
    store::{Announcement, ApiKey, EventWrite, Store, StoreError, now},
};

/// How many events may wait for all sinks together. With more, nothing is changed any more that would have to be told.
const MAX_WAITING: i64 = 100_000;

/// From how many on the log says so, again and again.
const ALARM_WAITING: i64 = MAX_WAITING / 5 * 4;

/// How old events of a sink must be that isn't in our file, in seconds, before they are dropped where several replicas may have
/// different files.
const GONE_SINK_SECONDS: i64 = 60 * 60;

/// How often what waits is counted.
const COUNT_INTERVAL: Duration = Duration::from_secs(5);

/// For how long it is known that a repository was told to be new.
const CREATED_TTL: Duration = Duration::from_mins(1);
const MAX_CREATED: u64 = 10_000;

/// What can happen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A repository has its first image.
    RepositoryCreated,
    /// A manifest was pushed.
    ImageUpdated,
    /// A tag or a manifest was deleted.
    ImageDeleted,
    /// One went by the rules of retention.
    ImageExpired,
    /// Much of a quota is used.
    QuotaWarning,
    /// Somebody has made an API key.
    KeyCreated,
    /// Nobody vouches for somebody any more.
    UserDeprovisioned,
}

impl Kind {
    /// All of them.
    pub const ALL: [Self; 7] = [
        Self::RepositoryCreated,
        Self::ImageUpdated,
        Self::ImageDeleted,
        Self::ImageExpired,
        Self::QuotaWarning,
        Self::KeyCreated,
        Self::UserDeprovisioned,
    ];

    /// The name, without the prefix.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::RepositoryCreated => "repository.created",
            Self::ImageUpdated => "image.updated",
            Self::ImageDeleted => "image.deleted",
            Self::ImageExpired => "image.expired",
            Self::QuotaWarning => "quota.warning",
            Self::KeyCreated => "key.created",
            Self::UserDeprovisioned => "user.deprovisioned",
        }
    }
}

/// Something that has happened.
pub struct Happened {
    /// What.
    pub kind: Kind,
    /// In which it is told in its order: a repository, or a person.
    pub stream: String,
    /// When, in seconds since 1970.
    pub at: i64,
    /// More of it.
    pub data: Value,
    /// Its name, if it may be told of twice.
    pub id: Option<String>,
}

/// Nothing that has to be told can be done now.
#[derive(Debug, thiserror::Error)]
pub enum CantTell {
    /// Too much waits.
    #[error(
        "{MAX_WAITING} events wait for those who are to be told, and nothing is changed that nobody would hear of; mend the \
         receiver, or take it out of extensions.events"
    )]
    Full,
    /// It can't be written down.
    #[error("what is about to change can't be written down ({0}); try again")]
    Store(#[from] StoreError),
    /// The registry doesn't say what there is.
    #[error("{0}; try again")]
    Registry(#[from] RegistryError),
}

/// Who asks, as zot tells it.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Asker {
    /// The user's name.
    pub actor: String,
    /// Their address.
    pub addr: String,
    /// The method of their request.
    pub method: String,
    /// The client as it calls itself.
    pub user_agent: String,
}

impl Asker {
    fn describe(&self, data: &mut Value) {
        data["actor"] = json!({"name": self.actor});
        data["request"] = json!({"addr": self.addr, "method": self.method, "useragent": self.user_agent});
    }
}

/// All of it.
pub struct Events {
    config: EventsConfig,
    store: Store,
    registry: Arc<Registry>,
    metrics: Arc<Metrics>,
    outbox: Outbox,
    /// This process, among those that share the database.
    holder: String,
    /// Repositories that were told to be new a moment ago.
    created: Cache<String, ()>,
    waiting: AtomicI64,
    /// There is something to send.
    news: Notify,
    /// There is something to find out.
    abandoned: Notify,
}

impl Events {
    /// Tells those of `config`, once [`Events::run`] runs. What a process of before has left is taken over first.
    ///
    /// # Errors
    /// If the database fails.
    pub async fn open(
        config: EventsConfig,
        store: Store,
        registry: Arc<Registry>,
        metrics: Arc<Metrics>,
    ) -> Result<Arc<Self>, StoreError> {
        if store.is_exclusive() {
            store.release_events().await?;
        }
        let holder = Uuid::new_v4().simple().to_string();
        Ok(Arc::new(Self {
            config,
            outbox: Outbox::start(store.clone(), holder.clone()),
            store,
            registry,
            metrics,
            holder,
            created: Cache::builder().max_capacity(MAX_CREATED).time_to_live(CREATED_TTL).build(),
            waiting: AtomicI64::new(0),
            news: Notify::new(),
            abandoned: Notify::new(),
        }))
    }

    /// Sends, and finds out what became of requests that nobody serves any more, for as long as the process runs.
    pub async fn run(self: Arc<Self>) {
        for sink in self.config.sinks.clone() {
            let name = sink.name();
            match Sender::new(Arc::clone(&self), sink) {
                Ok(sender) => drop(tokio::spawn(sender.run())),
                Err(error) => tracing::error!(sink = name, error, "extensions.events: nothing can be sent there"),
            }
        }
        tokio::spawn(Arc::clone(&self).recover());
        self.count().await;
    }

    /// What waits, and since when.
    async fn count(&self) {
        loop {
            match self.store.waiting_events().await {
                Ok(all) => {
                    for gone in all.iter().filter(|one| !self.config.sinks.iter().any(|sink| sink.name() == one.sink)) {
                        // Whoever was taken out of the file isn't waited for; another replica may have put them in just now.
                        let before = if self.store.is_exclusive() { i64::MAX } else { now() - GONE_SINK_SECONDS };
                        match self.store.drop_events(&gone.sink, before).await {
                            Ok(0) => {}
                            Ok(count) => tracing::warn!(
                                sink = gone.sink,
                                count,
                                "this is no sink any more; its events are dropped"
                            ),
                            Err(error) => tracing::warn!(%error, "the events of a sink that is gone can't be dropped"),
                        }
                    }
                    let waiting: i64 = all.iter().map(|one| one.count).sum();
                    self.waiting.store(waiting, Ordering::Relaxed);
                    let oldest = all.iter().map(|one| one.oldest).min().map_or(0, |at| now().saturating_sub(at));
                    self.metrics.events_waiting(waiting, oldest);
                    if waiting >= ALARM_WAITING {
                        tracing::error!(
                            waiting,
                            oldest,
                            "events wait; from {MAX_WAITING} on nothing can be pushed or deleted"
                        );
                    }
                }
                Err(error) => tracing::warn!(%error, "the events that wait can't be counted"),
            }
            tokio::time::sleep(COUNT_INTERVAL).await;
        }
    }

    /// Fails if so much waits that nothing more shall happen.
    fn must_have_room(&self) -> Result<(), CantTell> {
        if self.waiting.load(Ordering::Relaxed) < MAX_WAITING { Ok(()) } else { Err(CantTell::Full) }
    }

    /// What each sink is to be told of what has happened.
    fn announcements(&self, happened: &[Happened]) -> Vec<Announcement> {
        let each = happened.iter().flat_map(|one| {
            let id = one.id.clone().unwrap_or_else(|| Uuid::new_v4().to_string());
            let wanting = self.config.sinks.iter().filter(|sink| sink.kinds.contains(&one.kind));
            wanting.map(move |sink| Announcement {
                sink: sink.name(),
                id: id.clone(),
                stream: one.stream.clone(),
                kind: one.kind.as_str().to_owned(),
                at: one.at,
                data: one.data.to_string(),
            })
        });
        each.collect()
    }

    /// Writes down that something has happened.
    async fn announce(&self, happened: &[Happened]) -> Result<(), StoreError> {
        let announcements = self.announcements(happened);
        if !announcements.is_empty() {
            self.outbox.write(EventWrite::Announce(announcements)).await?;
            self.news.notify_waiters();
        }
        Ok(())
    }

    /// Tells of somebody. What can't be written down is only in the log.
    async fn tell_of(&self, kind: Kind, person: &str, data: Value) {
        let stream = format!("person {person}");
        if let Err(error) = self.announce(&[Happened { kind, stream, at: now(), data, id: None }]).await {
            tracing::error!(%error, "an event can't be written down, and nobody is told of it");
        }
    }

    /// Tells of a new API key.
    pub async fn key_created(&self, asker: &Asker, key: &ApiKey) {
        let mut data = json!({"id": key.id, "label": key.label, "owner": key.user.name, "scopes": key.scopes});
        asker.describe(&mut data);
        self.tell_of(Kind::KeyCreated, &key.user.name, data).await;
    }

    /// Tells that nobody vouches for somebody any more.
    pub async fn user_deprovisioned(&self, provider: &str, user: &str, reason: &str) {
        let data = json!({"name": user, "provider": provider, "reason": reason});
        self.tell_of(Kind::UserDeprovisioned, user, data).await;
    }
}
