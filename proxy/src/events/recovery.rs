//! Finds out, at the registry, what became of requests that nobody serves any more: their process was killed, or the registry was
//! while it had them.

use std::{sync::Arc, time::Duration};

use berth_oci::Reference;

use super::{Events, request::Change};
use crate::{
    registry::RegistryError,
    store::{EventWrite, Intent, StoreError, now},
};

/// How often it is looked for them.
const RECOVERY_INTERVAL: Duration = Duration::from_secs(2);

/// How often a process says that it is there, and after how long it isn't any more, in seconds.
const TOUCH_INTERVAL: Duration = Duration::from_secs(10);
const SILENCE_SECONDS: i64 = 45;

/// How long ago a request must have been let go, in seconds, before it is believed that it wasn't done: the registry may still be
/// at it.
const NOT_DONE_SECONDS: i64 = 30;

/// How many are looked at at once.
const MAX_AT_ONCE: i64 = 100;

impl Events {
    /// Finds out, for as long as the process runs.
    pub(super) async fn recover(self: Arc<Self>) {
        let mut touched = tokio::time::Instant::now();
        loop {
            let _ = tokio::time::timeout(RECOVERY_INTERVAL, self.abandoned.notified()).await;
            if touched.elapsed() > TOUCH_INTERVAL {
                touched = tokio::time::Instant::now();
                if let Err(error) = self.touch().await {
                    tracing::warn!(%error, "other replicas can't be told that requests go on here");
                }
            }
            if let Err(error) = self.recover_once().await {
                tracing::warn!(error, "it can't be found out what became of some pushes; it is tried again");
            }
        }
    }

    /// Says that requests go on here, and lets go of those that don't.
    async fn touch(&self) -> Result<(), StoreError> {
        let ours = self.store.intents_of(&self.holder).await?;
        let gone: Vec<String> = {
            let live = self.outbox.live();
            ours.into_iter().filter(|id| !live.contains(id)).collect()
        };
        gone.into_iter().for_each(|id| self.outbox.write_soon(EventWrite::Abandon(id)));
        self.store.touch_intents(&self.holder).await
    }

    async fn recover_once(&self) -> Result<(), String> {
        let failed = |error: StoreError| error.to_string();
        let silent_since = now() - SILENCE_SECONDS;
        let abandoned = self.store.abandoned_intents(&self.holder, silent_since, MAX_AT_ONCE).await.map_err(failed)?;
        for (Intent { id, change, .. }, since) in abandoned {
            let Ok(change) = serde_json::from_str::<Change>(&change) else {
                tracing::error!(intent = id, "what was about to change can't be read, and nobody is told of it");
                self.outbox.write(EventWrite::Settle(id, Vec::new())).await.map_err(failed)?;
                continue;
            };
            let is_done = match self.is_done(&change).await {
                Ok(false) if now() - since < NOT_DONE_SECONDS => continue,
                Ok(is_done) => is_done,
                // Others may be found out about.
                Err(error) => {
                    tracing::warn!(%error, repository = %change.repository, "what became of a push can't be found out yet");
                    continue;
                }
            };
            tracing::info!(repository = %change.repository, digest = ?change.digest, is_done, "found out at the registry");
            let happened = if is_done { change.happened(&id, change.is_first()) } else { Vec::new() };
            let announcements = self.announcements(&happened);
            self.outbox.write(EventWrite::Settle(id, announcements)).await.map_err(failed)?;
            self.news.notify_waiters();
        }
        Ok(())
    }

    /// Whether what was about to change has changed. A manifest that is there may have been before: then one push too many is told.
    async fn is_done(&self, change: &Change) -> Result<bool, RegistryError> {
        if !change.deletes {
            let Some(digest) = change.digest.clone() else { return Ok(false) };
            return Ok(self.registry.find_manifest(&change.repository, &Reference::Digest(digest)).await?.is_some());
        }
        for reference in change.references() {
            if self.registry.find_manifest(&change.repository, &reference).await?.is_some() {
                return Ok(false);
            }
        }
        Ok(true)
    }
}
