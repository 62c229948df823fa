//! The registry's rules: what a manifest is, what must exist before it, what belongs to which repository.
//!
//! A blob belongs to the repositories that hold it: its bytes are stored once, and it is found only where it was
//! pushed or mounted. Things are written in an order in which a crash between any two writes leaves nothing that
//! points at nothing: bytes, then what a repository holds, then the tag.

mod blobs;
mod garbage;
mod index;
mod lists;
mod locks;
mod manifests;
mod names;
mod notices;
mod overviews;
pub mod quotas;
mod recent;
mod removal;
pub mod retention;
mod statistics;
mod tag_lists;

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use berth_oci::{Algorithm, Digest, Error, ErrorCode, Repository, Tag};
use http::StatusCode;
use tokio::sync::watch;

pub use self::{
    garbage::Mode,
    lists::{List, TagPage},
    manifests::{ManifestPush, Stored},
    statistics::{LastCollection, Usage},
};
use self::{
    locks::Locks,
    names::Names,
    overviews::Overviews,
    quotas::Quotas,
    recent::Recent,
    retention::Rules,
    statistics::Statistics,
    tag_lists::{Change, TagLists},
};
use crate::storage::{SHORTEST_SHARED_DELAY, Space, Storage, keys};

/// All repositories.
pub struct Content {
    storage: Arc<dyn Storage>,
    /// Pushes to a repository share its lock. Who pushes on a condition, deletes something, or collects garbage has it
    /// alone, for a bounded time. It is taken before a digest's lock.
    repositories: Locks<Repository>,
    /// Shared by whoever lets a repository hold a digest, and had alone by who removes its bytes.
    digests: Locks<Digest>,
    /// Had by who reads a list of tags, so that many who want a long one read it once.
    reading: Locks<Repository>,
    recent: Recent,
    tag_lists: TagLists,
    overviews: Overviews,
    names: Names,
    statistics: Statistics,
    rules: Rules,
    quotas: Quotas,
    /// How many repositories there may be.
    max_repositories: Option<usize>,
    /// Had by who makes one, where there may be so many.
    creating: tokio::sync::Mutex<()>,
    readiness: tokio::sync::Mutex<Option<(Instant, Result<(), String>)>>,
    /// No more garbage is collected.
    stopping: watch::Sender<bool>,
    /// A push that has taken longer looks again whether what it names is there, in a bucket.
    renewal: Duration,
}

/// How many repositories are listed at once.
const REPOSITORIES_AT_ONCE: usize = 1000;

/// For how long it is known whether something can be written: strangers may make the proxy ask.
const READINESS_LIFETIME: Duration = Duration::from_secs(2);

/// How long uploads may be counted: whoever asks for the counters waits no longer.
const COUNT_TIMEOUT: Duration = Duration::from_secs(2);

impl Content {
    /// The repositories in `storage`; whether garbage will be collected in this process.
    pub fn new(storage: Arc<dyn Storage>, collecting: bool) -> Self {
        Self {
            repositories: Locks::new(),
            digests: Locks::new(),
            reading: Locks::new(),
            recent: Recent::new(collecting && !storage.is_shared()),
            overviews: Overviews::new(storage.is_shared()),
            names: Names::default(),
            storage,
            tag_lists: TagLists::new(),
            statistics: Statistics::default(),
            rules: Rules::default(),
            quotas: Quotas::default(),
            max_repositories: None,
            creating: tokio::sync::Mutex::default(),
            readiness: tokio::sync::Mutex::default(),
            stopping: watch::Sender::new(false),
            renewal: SHORTEST_SHARED_DELAY / 2,
        }
    }

    /// The same with rules for what is kept.
    pub fn with_rules(self, rules: Rules) -> Self {
        Self { rules, ..self }
    }

    /// The same with limits of what is held.
    pub fn with_limits(self, quotas: Quotas, max_repositories: Option<usize>) -> Self {
        Self { quotas, max_repositories, ..self }
    }

    /// Lets a repository be, also one that isn't there yet: of those, one after the other while this is held.
    ///
    /// # Errors
    /// 403 `DENIED`, if it would be one too many.
    async fn may_create(&self, repository: &Repository) -> Result<Option<tokio::sync::MutexGuard<'_, ()>>, Error> {
        let Some(most) = self.max_repositories else { return Ok(None) };
        let is_there = async || self.storage.is_folder(&keys::manifests(repository)).await.map_err(storage_error);
        if is_there().await? {
            return Ok(None);
        }
        let creating = self.creating.lock().await;
        if is_there().await? {
            return Ok(None);
        }
        if self.names("", None, most).await.map_err(storage_error)?.len() < most {
            return Ok(Some(creating));
        }
        let message = format!(
            "there are {most} repositories, which is as many as there may be (storage.maxRepos); push to one that there is"
        );
        Err(Error::new(StatusCode::FORBIDDEN, ErrorCode::Denied, message))
    }

    /// What was pulled of a repository is counted.
    pub fn pulled(&self, repository: &Repository, digest: &Digest) {
        self.overviews.pulled(repository, digest);
    }

    /// A tag was set or taken away.
    fn tag_changed(&self, repository: &Repository, tag: &Tag, change: Change) {
        if let Change::Removed = change {
            self.quotas.remove_tag(repository, tag);
        }
        self.tag_lists.changed(repository, tag.as_str(), change);
        self.overviews.tag_changed(repository, tag.as_str());
    }

    /// Tags may have changed, it isn't known which.
    fn tags_changed(&self, repository: &Repository) {
        self.tag_lists.forget(repository);
        self.overviews.changed(repository);
    }

    /// Whether other processes may store here, too.
    pub fn is_shared(&self) -> bool {
        self.storage.is_shared()
    }

    /// Whether something can be stored now.
    ///
    /// # Errors
    /// Why not, for an operator.
    pub async fn readiness(&self) -> Result<(), String> {
        let mut known = self.readiness.lock().await;
        if let Some((at, outcome)) = &*known
            && at.elapsed() < READINESS_LIFETIME
        {
            return outcome.clone();
        }
        let outcome = self.storage.probe().await.map_err(|error| error.to_string());
        *known = Some((Instant::now(), outcome.clone()));
        outcome
    }

    /// How many uploads aren't finished.
    ///
    /// # Errors
    /// If they can't be counted in time.
    pub async fn uploads(&self) -> std::io::Result<u64> {
        let late = |_| std::io::Error::new(std::io::ErrorKind::TimedOut, "it takes too long");
        tokio::time::timeout(COUNT_TIMEOUT, self.storage.count_uploads()).await.map_err(late)?
    }

    /// How much room there is, if there is a bound.
    pub async fn space(&self) -> Option<Space> {
        self.storage.space().await
    }

    /// Repositories after `last` that have one of these folders; `last` goes on with them. Nothing, if there are no more.
    async fn some_repositories(
        &self,
        having: &[&str],
        last: &mut Option<String>,
    ) -> std::io::Result<Option<Vec<Repository>>> {
        let names = self.storage.repositories(having, last.as_deref(), REPOSITORIES_AT_ONCE).await?;
        let Some(end) = names.last().cloned() else { return Ok(None) };
        *last = Some(end);
        Ok(Some(names.iter().filter_map(|name| name.parse().ok()).collect()))
    }

    /// The digests in a folder that has one folder an algorithm, and how long ago each was written.
    async fn digests_with_ages(&self, folder: &str) -> std::io::Result<Vec<(Digest, Duration)>> {
        let mut digests = Vec::new();
        for algorithm in Algorithm::ALL {
            let names = self.storage.ages_in(&format!("{folder}/{algorithm}")).await?;
            digests.extend(names.into_iter().filter_map(|(name, age)| Some((digest_named(algorithm, &name)?, age))));
        }
        Ok(digests)
    }

    /// The digests in a folder that has one folder an algorithm, of what was written at least `age` ago.
    async fn digests_in(&self, folder: &str, age: Duration) -> std::io::Result<Vec<Digest>> {
        digests_in(&*self.storage, folder, age).await
    }

    /// Nothing, or the error that there is no such repository.
    pub async fn must_exist(&self, repository: &Repository) -> Result<(), Error> {
        if self.storage.is_folder(&keys::manifests(repository)).await.map_err(storage_error)? {
            return Ok(());
        }
        let message = format!("there is no repository {repository}");
        Err(Error::new(StatusCode::NOT_FOUND, ErrorCode::NameUnknown, message))
    }
}

/// The digests in a folder that has one folder an algorithm, of what was written at least `age` ago.
pub async fn digests_in(storage: &dyn Storage, folder: &str, age: Duration) -> std::io::Result<Vec<Digest>> {
    let mut digests = Vec::new();
    for algorithm in Algorithm::ALL {
        let names = storage.older_in(&format!("{folder}/{algorithm}"), age).await?;
        digests.extend(names.iter().filter_map(|name| digest_named(algorithm, name)));
    }
    Ok(digests)
}

/// What a file is named by; whatever isn't a digest is none of ours.
fn digest_named(algorithm: Algorithm, name: &str) -> Option<Digest> {
    format!("{algorithm}:{name}").parse().ok()
}

/// How often it is said that descriptors have run out.
const DESCRIPTORS_LOG_INTERVAL: Duration = Duration::from_mins(1);

/// Says that descriptors have run out, and not at each request.
pub fn report_descriptors(error: &std::io::Error) {
    static LAST: Mutex<Option<Instant>> = Mutex::new(None);
    let mut last = LAST.lock().unwrap_or_else(PoisonError::into_inner);
    if last.is_none_or(|last| last.elapsed() >= DESCRIPTORS_LOG_INTERVAL) {
        *last = Some(Instant::now());
        tracing::error!(%error, "there are no descriptors left; new requests are refused. Raise the limit (ulimit -n)");
    }
}

/// Whether a process, or the machine, has no descriptors left (EMFILE and ENFILE of open(2)).
fn lacks_descriptors(error: &std::io::Error) -> bool {
    use rustix::io::Errno;
    let number = error.raw_os_error().or_else(|| error.get_ref()?.downcast_ref::<std::io::Error>()?.raw_os_error());
    number.is_some_and(|number| [Errno::MFILE, Errno::NFILE].map(Errno::raw_os_error).contains(&number))
}

/// The answer when the disk says no. The cause goes to the log; the client learns what it can act on.
pub fn storage_error(error: std::io::Error) -> Error {
    use std::io::ErrorKind;
    if lacks_descriptors(&error) {
        report_descriptors(&error);
        let message = "the registry has no descriptors left; try again in some seconds";
        return Error::new(StatusCode::SERVICE_UNAVAILABLE, ErrorCode::Unavailable, message);
    }
    tracing::error!(%error, "storage failed");
    match error.kind() {
        ErrorKind::NotConnected | ErrorKind::TimedOut => Error::new(
            StatusCode::SERVICE_UNAVAILABLE,
            ErrorCode::Unavailable,
            "the registry's bucket does not answer; try again in some seconds",
        ),
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded => Error::new(
            StatusCode::INSUFFICIENT_STORAGE,
            ErrorCode::Unavailable,
            "the registry's disk is full: nothing was stored; free some space and push again",
        ),
        _ => Error::new(
            StatusCode::INTERNAL_SERVER_ERROR,
            ErrorCode::Unknown,
            "the registry's storage failed; its log says how",
        ),
    }
}
