//! The registry's rules: what a manifest is, what must exist before it, what belongs to which repository.
//!
//! A blob belongs to the repositories that hold it: its bytes are stored once, and it is found only where it was
//! pushed or mounted. Things are written in an order in which a crash between any two writes leaves nothing that
//! points at nothing: bytes, then what a repository holds, then the tag.

mod blobs;
mod garbage;
mod lists;
mod manifests;
mod statistics;
mod tag_lists;

use std::{
    hash::{BuildHasher, BuildHasherDefault, DefaultHasher, Hash},
    sync::Arc,
    time::{Duration, Instant},
};

use berth_oci::{Error, ErrorCode, Repository};
use http::StatusCode;
use tokio::sync::RwLock;

pub use self::{
    garbage::Mode,
    lists::List,
    manifests::Stored,
    statistics::{LastCollection, Usage},
};
use self::{garbage::RecentReferences, statistics::Statistics, tag_lists::TagLists};
use crate::storage::{Space, Storage, keys};

/// All repositories.
pub struct Content {
    storage: Arc<dyn Storage>,
    /// Pushes to a repository share its lock. Who pushes on a condition, deletes a manifest with its tags, or collects
    /// garbage has it alone. It is taken before a digest's lock.
    repositories: [RwLock<()>; 64],
    recent: RecentReferences,
    tag_lists: TagLists,
    statistics: Statistics,
    readiness: tokio::sync::Mutex<Option<(Instant, Result<(), String>)>>,
}

/// For how long it is known whether something can be written: strangers may make the proxy ask.
const READINESS_LIFETIME: Duration = Duration::from_secs(2);

/// How long uploads may be counted: whoever asks for the counters waits no longer.
const COUNT_TIMEOUT: Duration = Duration::from_secs(2);

impl Content {
    /// The repositories in `storage`; whether garbage will be collected in this process.
    pub fn new(storage: Arc<dyn Storage>, collecting: bool) -> Self {
        Self {
            repositories: std::array::from_fn(|_| RwLock::default()),
            recent: RecentReferences::new(collecting && !storage.is_shared()),
            storage,
            tag_lists: TagLists::new(),
            statistics: Statistics::default(),
            readiness: tokio::sync::Mutex::default(),
        }
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

    fn lock_of(&self, repository: &Repository) -> &RwLock<()> {
        lock_stripe(&self.repositories, repository)
    }

    /// Nothing, or the error that there is no such repository.
    async fn must_exist(&self, repository: &Repository) -> Result<(), Error> {
        if self.storage.is_folder(&keys::manifests(repository)).await.map_err(storage_error)? {
            return Ok(());
        }
        let message = format!("there is no repository {repository}");
        Err(Error::new(StatusCode::NOT_FOUND, ErrorCode::NameUnknown, message))
    }
}

/// The one of `shares` that is for `key`, always the same.
fn lock_stripe<'a, T, const N: usize>(shares: &'a [T; N], key: &impl Hash) -> &'a T {
    let hash = BuildHasherDefault::<DefaultHasher>::default().hash_one(key);
    &shares[usize::try_from(hash % N as u64).unwrap_or_default()]
}

/// The answer when the disk says no. The cause goes to the log; the client learns what it can act on.
fn storage_error(error: std::io::Error) -> Error {
    use std::io::ErrorKind;
    tracing::error!(%error, "storage failed");
    match error.kind() {
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
