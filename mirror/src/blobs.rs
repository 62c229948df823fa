//! Blobs that the registry lacks: fetched once, however many want them, and kept when they have come.

use std::{
    collections::HashMap,
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use berth_oci::{Digest, Repository};
use futures_util::{
    FutureExt,
    future::{BoxFuture, Shared},
};
use moka::sync::Cache;

use crate::{
    download::Download,
    registry::Registry,
    source::{Source, SourceError},
};

/// How long it is known that a blob isn't there, and of how many.
const MISSING_TTL: Duration = Duration::from_mins(1);
const MAX_MISSING: u64 = 100_000;

/// How long the registry may take to make a blob durable, once all of it has come.
const KEEP_TIMEOUT: Duration = Duration::from_mins(10);

type Key = (Repository, Digest);
type Starting = Shared<BoxFuture<'static, Result<Arc<Download>, SourceError>>>;

/// What is on its way.
pub struct Blobs {
    registry: Arc<Registry>,
    folder: PathBuf,
    /// By repository, too: who may pull the one has no right to what only the other has there.
    running: Mutex<HashMap<Key, Starting>>,
    missing: Cache<Key, SourceError>,
}

impl Blobs {
    /// Nothing is on its way; what will be is kept in `folder` meanwhile.
    pub fn new(registry: Arc<Registry>, folder: PathBuf) -> Self {
        let missing = Cache::builder().max_capacity(MAX_MISSING).time_to_live(MISSING_TTL).build();
        Self { registry, folder, running: Mutex::default(), missing }
    }

    fn running(&self) -> MutexGuard<'_, HashMap<Key, Starting>> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A blob that is being fetched, by us or for somebody who asked before.
    ///
    /// # Errors
    /// Why it can't be had: the same for all who wait.
    pub async fn fetch(
        self: &Arc<Self>,
        source: &Arc<Source>,
        name: &str,
        repository: &Repository,
        digest: &Digest,
    ) -> Result<Arc<Download>, SourceError> {
        let key = (repository.clone(), digest.clone());
        let starting = {
            let mut running = self.running();
            // A transfer that found nothing notes that before it leaves `running`: one of the two is seen here.
            if let Some(missing) = self.missing.get(&key) {
                return Err(missing);
            }
            match running.get(&key) {
                Some(starting) => starting.clone(),
                None => {
                    let started = Arc::clone(self).start(Arc::clone(source), name.to_owned(), key.clone());
                    let starting = started.boxed().shared();
                    running.insert(key, starting.clone());
                    // Whoever has asked may go away: the others wait for the same.
                    tokio::spawn(starting.clone());
                    starting
                }
            }
        };
        starting.await
    }

    async fn start(self: Arc<Self>, source: Arc<Source>, name: String, key: Key) -> Result<Arc<Download>, SourceError> {
        match Download::start(source, name, key.1.clone(), &self.folder).await {
            Ok(download) => {
                tokio::spawn(self.keep(key, Arc::clone(&download)));
                Ok(download)
            }
            Err(error) => {
                if matches!(error, SourceError::Missing(_)) {
                    self.missing.insert(key.clone(), error.clone());
                }
                self.running().remove(&key);
                Err(error)
            }
        }
    }

    /// Pushes into the registry what comes, while it comes.
    async fn keep(self: Arc<Self>, key: Key, download: Arc<Download>) {
        let (repository, digest) = &key;
        let len = download.len;
        let overdue = async {
            download.ended().await;
            tokio::time::sleep(KEEP_TIMEOUT).await;
        };
        tokio::select! {
            kept = self.registry.push_blob(repository, digest, len, Arc::clone(&download).read(0, None)) => match kept {
                Ok(()) => tracing::info!(%repository, %digest, len, "fetched"),
                Err(error) => tracing::warn!(%repository, %digest, %error, "a blob that was fetched can't be kept"),
            },
            () = overdue => tracing::warn!(%repository, %digest, "the registry takes too long to keep a blob"),
        }
        // Whoever wants it meanwhile shares it, whether the registry takes it or not.
        download.ended().await;
        self.running().remove(&key);
    }
}
