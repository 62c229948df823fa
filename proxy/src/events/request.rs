//! A push or a deletion on its way through the proxy, of which is to be told.

use std::sync::Arc;

use aws_lc_rs::digest::{Context as Hasher, SHA256};
use berth_oci::{Algorithm, Digest, Operation, Page, Reference, Repository};
use bytes::{Bytes, BytesMut};
use http::{HeaderMap, StatusCode, header::CONTENT_TYPE};
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::{Asker, CantTell, Events, Happened, Kind};
use crate::{
    registry::Registry,
    store::{EventWrite, Intent, now},
};

/// What a request changes.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Change {
    /// Whether it deletes; or else it pushes.
    pub deletes: bool,
    /// Of which repository.
    pub repository: Repository,
    /// Under which references.
    references: Vec<String>,
    /// The manifest; nothing, until it has come.
    pub digest: Option<Digest>,
    media_type: String,
    /// Whether the repository wasn't there before.
    is_first: bool,
    asker: Asker,
    at: i64,
}

impl Change {
    /// What has happened, once it is done; under names that the intent gives, so that what is told twice is known to be.
    pub fn happened(&self, intent: &str, is_new: bool) -> Vec<Happened> {
        let one = |kind, part: &str, reference: Option<&String>| {
            let mut data = json!({"name": self.repository.as_str()});
            if let Some(reference) = reference {
                data["reference"] = reference.as_str().into();
                data["digest"] = self.digest.as_ref().map(ToString::to_string).into();
                data["mediaType"] = self.media_type.as_str().into();
            }
            self.asker.describe(&mut data);
            let (stream, id) = (self.repository.to_string(), Some(format!("{intent}-{part}")));
            Happened { kind, stream, at: self.at, data, id }
        };
        let kind = if self.deletes { Kind::ImageDeleted } else { Kind::ImageUpdated };
        let created = is_new.then(|| one(Kind::RepositoryCreated, "created", None));
        let references = self.references.iter().enumerate();
        created.into_iter().chain(references.map(|(i, reference)| one(kind, &i.to_string(), Some(reference)))).collect()
    }

    /// Whether the repository wasn't there before.
    pub fn is_first(&self) -> bool {
        self.is_first
    }

    /// Under which references.
    pub fn references(&self) -> impl Iterator<Item = Reference> {
        self.references.iter().filter_map(|reference| reference.parse().ok())
    }
}

/// A request of which is to be told. If it is dropped before it is known what became of it, the registry is asked.
pub struct Pending {
    events: Arc<Events>,
    change: Change,
    /// By which the intent is known that was written, until it is settled.
    intent: Option<String>,
    body: Body,
}

/// What has come of a manifest.
enum Body {
    /// Its digest isn't known before all of it has come, and the registry doesn't get the last piece before that.
    Coming { hasher: Hasher, held: Option<Bytes> },
    /// There is nothing to learn from it.
    None,
}

impl Body {
    fn unread() -> Self {
        Self::Coming { hasher: Hasher::new(&SHA256), held: None }
    }
}

impl Pending {
    /// Looks at a request that is about to be forwarded; nothing, if there is nothing to tell of it. A deletion is written down
    /// at once, a push when its body has come.
    ///
    /// # Errors
    /// If it can't be told of: then it may not be forwarded.
    pub async fn new(
        events: &Arc<Events>,
        registry: &Registry,
        operation: &Operation,
        headers: &HeaderMap,
        asker: Asker,
    ) -> Result<Option<Self>, CantTell> {
        match operation {
            Operation::PushManifest { repository, reference, tags } => {
                events.must_have_room()?;
                let page = Page { n: Some(1), last: None };
                let is_first = registry.tags(repository, page).await?.is_none();
                let references = match tags.is_empty() {
                    true => vec![reference.to_string()],
                    false => tags.iter().map(ToString::to_string).collect(),
                };
                let digest = match reference {
                    Reference::Digest(digest) => Some(digest.clone()),
                    Reference::Tag(_) => None,
                };
                let media_type = headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok());
                let media_type = media_type.unwrap_or_default().chars().take(200).collect();
                let (repository, at) = (repository.clone(), now());
                let change = Change { deletes: false, repository, references, digest, media_type, is_first, asker, at };
                Ok(Some(Self { events: Arc::clone(events), change, intent: None, body: Body::unread() }))
            }
            Operation::DeleteManifest { repository, reference } => {
                Self::deletion(events, registry, repository, reference, asker).await.map(Some)
            }
            _ => Ok(None),
        }
    }

    /// The same for a deletion, also of what isn't there: somebody may push it meanwhile.
    ///
    /// # Errors
    /// As [`Pending::new`].
    pub async fn deletion(
        events: &Arc<Events>,
        registry: &Registry,
        repository: &Repository,
        reference: &Reference,
        asker: Asker,
    ) -> Result<Self, CantTell> {
        events.must_have_room()?;
        let (digest, media_type) = match (registry.find_manifest(repository, reference).await?, reference) {
            (Some(found), _) => (Some(found.digest), found.media_type),
            (None, Reference::Digest(digest)) => (Some(digest.clone()), String::new()),
            (None, Reference::Tag(_)) => (None, String::new()),
        };
        let change = Change {
            deletes: true,
            repository: repository.clone(),
            references: vec![reference.to_string()],
            digest,
            media_type,
            is_first: false,
            asker,
            at: now(),
        };
        let mut pending = Self { events: Arc::clone(events), change, intent: None, body: Body::None };
        pending.intend().await?;
        Ok(pending)
    }

    async fn intend(&mut self) -> Result<(), CantTell> {
        if self.intent.is_some() {
            return Ok(());
        }
        let id = uuid::Uuid::new_v4().to_string();
        let intent = Intent {
            id: id.clone(),
            stream: self.change.repository.to_string(),
            change: serde_json::to_string(&self.change).unwrap_or_default(),
        };
        // Whatever becomes of the write: it may be there.
        self.intent = Some(id);
        self.events.outbox.write(EventWrite::Intend(intent)).await?;
        Ok(())
    }

    /// The request is sent from its beginning, perhaps once more.
    pub fn begin_body(&mut self) {
        if matches!(self.body, Body::Coming { .. }) {
            self.body = Body::unread();
        }
    }

    /// A piece of the body, before it is passed on: the last one is held back until the intent is written.
    ///
    /// # Errors
    /// If it can't be: then the request may not be finished.
    pub async fn body(&mut self, piece: &mut Option<Bytes>, is_end: bool) -> Result<(), CantTell> {
        let Body::Coming { hasher, held } = &mut self.body else { return Ok(()) };
        if let Some(piece) = piece {
            hasher.update(piece);
        }
        if !is_end {
            if piece.as_ref().is_some_and(|piece| !piece.is_empty()) {
                // Nothing, and not the end.
                *piece = Some(held.replace(piece.take().unwrap_or_default()).unwrap_or_default());
            }
            return Ok(());
        }
        if let Some(held) = held.take() {
            let mut all = BytesMut::from(held.as_ref());
            all.extend_from_slice(piece.as_deref().unwrap_or_default());
            *piece = Some(all.freeze());
        }
        if self.change.digest.is_none() {
            self.change.digest = Digest::from_hash(Algorithm::Sha256, hasher.clone().finish().as_ref()).ok();
        }
        self.intend().await
    }

    /// The registry has answered, and the client hasn't heard of it yet.
    pub async fn answered(&mut self, status: StatusCode) {
        if status.is_server_error() {
            return; // It may have been done all the same.
        }
        let Some(id) = self.intent.take() else { return };
        if !status.is_success() {
            self.events.outbox.write_soon(EventWrite::Settle(id, Vec::new()));
            return;
        }
        let happened = self.change.happened(&id, self.events.is_new(&self.change));
        let announcements = self.events.announcements(&happened);
        let settle = EventWrite::Settle(id, announcements);
        if self.events.outbox.write(settle.clone()).await.is_err() {
            // It is done, so it is acknowledged; the intent stands until this is written.
            self.events.outbox.write_soon(settle);
        }
        self.events.news.notify_waiters();
    }
}

impl Drop for Pending {
    fn drop(&mut self) {
        if let Some(id) = self.intent.take() {
            self.events.outbox.write_soon(EventWrite::Abandon(id));
            self.events.abandoned.notify_one();
        }
    }
}

impl Events {
    /// Whether a push has made its repository, and nobody was told yet: of several first pushes at once, one is.
    fn is_new(&self, change: &Change) -> bool {
        let name = change.repository.as_str();
        if change.deletes {
            self.created.invalidate(name);
        }
        change.is_first && self.created.entry_by_ref(name).or_insert(()).is_fresh()
    }
}
