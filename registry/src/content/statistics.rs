//! How much is stored: a number that is kept, so that nobody has to read the store to know it.
//!
//! It is written down every minute if it has changed, and counted anew by each collection, which sees every blob anyway. A
//! process that is killed loses a minute of it until then. In a bucket that several registries share, only what a
//! collection has counted is written down, and each registry adds what it does itself.

use std::{
    io,
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use serde::{Deserialize, Serialize};

use super::{Content, garbage::Collected};
use crate::storage::{Condition, keys};

/// How often it is written down, if it has changed.
const SAVE_INTERVAL: Duration = Duration::from_mins(1);

/// What is stored.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Usage {
    /// Blobs, manifests too.
    pub blobs: u64,
    /// Their bytes.
    pub bytes: u64,
}

/// The last collection of garbage.
#[derive(Clone, Copy, Debug)]
pub struct LastCollection {
    /// When it ended, in seconds since 1970.
    pub ended_at: f64,
    /// How long it took.
    pub took: Duration,
    /// What it removed; nothing, if it failed.
    pub collected: Option<Collected>,
}

/// What is known of the store.
#[derive(Default)]
pub struct Statistics {
    usage: Mutex<Option<Usage>>,
    changed: AtomicBool,
    collection: Mutex<Option<LastCollection>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Statistics {
    /// What is stored, if that is known.
    pub fn usage(&self) -> Option<Usage> {
        *lock(&self.usage)
    }

    /// The last collection of this process.
    pub fn last_collection(&self) -> Option<LastCollection> {
        *lock(&self.collection)
    }

    /// A new blob is stored.
    pub(super) fn added(&self, len: u64) {
        self.change(|usage| {
            *usage = Usage { blobs: usage.blobs.saturating_add(1), bytes: usage.bytes.saturating_add(len) }
        });
    }

    /// Everything was counted.
    pub(super) fn counted(&self, usage: Usage) {
        *lock(&self.usage) = Some(usage);
        self.changed.store(true, Ordering::Relaxed);
    }

    pub(super) fn collected(&self, began: Instant, collected: Option<Collected>) {
        let ended_at = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64();
        *lock(&self.collection) = Some(LastCollection { ended_at, took: began.elapsed(), collected });
    }

    fn change(&self, change: impl FnOnce(&mut Usage)) {
        if let Some(usage) = &mut *lock(&self.usage) {
            change(usage);
            self.changed.store(true, Ordering::Relaxed);
        }
    }
}

impl Content {
    /// What is known of the store.
    pub fn statistics(&self) -> &Statistics {
        &self.statistics
    }

    /// Reads what was written down, or counts, if nothing was.
    ///
    /// # Errors
    /// If the storage can't be read.
    pub async fn load_statistics(&self) -> io::Result<()> {
        let written = self.storage.read(keys::STATISTICS).await?;
        match written.and_then(|bytes| serde_json::from_slice(&bytes).ok()) {
            Some(usage) => *lock(&self.statistics.usage) = Some(usage),
            None => self.count().await?,
        }
        Ok(())
    }

    /// Lists every blob.
    async fn count(&self) -> io::Result<()> {
        let mut usage = Usage::default();
        for shard in self.storage.shards().await? {
            for blob in self.storage.blobs_in(&shard, Duration::ZERO).await? {
                usage = Usage { blobs: usage.blobs + 1, bytes: usage.bytes + blob.len };
            }
        }
        self.statistics.counted(usage);
        Ok(())
    }

    /// Writes it down, if it has changed.
    pub async fn save_statistics(&self) {
        let Some(usage) = self.statistics.usage().filter(|_| self.statistics.changed.swap(false, Ordering::Relaxed))
        else {
            return;
        };
        let written = match serde_json::to_vec(&usage) {
            Ok(bytes) => self.storage.write(keys::STATISTICS, bytes, Condition::None).await.map(drop),
            Err(error) => Err(error.into()),
        };
        if let Err(error) = written {
            tracing::warn!(%error, "how much is stored can't be written down");
            self.statistics.changed.store(true, Ordering::Relaxed);
        }
    }

    /// Reads what was written down, and writes down what changes, for as long as the process lives.
    pub async fn keep_statistics(&self) {
        if let Err(error) = self.load_statistics().await {
            tracing::warn!(%error, "how much is stored isn't known until the next collection");
        }
        // If it was counted now.
        self.save_statistics().await;
        loop {
            tokio::time::sleep(SAVE_INTERVAL).await;
            if !self.storage.is_shared() {
                self.save_statistics().await;
            }
        }
    }
}
