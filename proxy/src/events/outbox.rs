//! Writes down what is to be told. Whatever comes while the disk is busy is written together, so that many pushes at once share
//! a flush.

use std::{
    collections::HashSet,
    mem,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::sync::{mpsc, oneshot};

use crate::store::{EventWrite, Store, StoreError};

/// How much is written in one step.
const MAX_BATCH: usize = 256;

/// When it is tried again to write what must be.
const RETRY_WAIT: Duration = Duration::from_secs(1);

struct Entry {
    write: EventWrite,
    /// Whoever waits until it is durable, and knows what to do if it isn't. What nobody waits for is written at last.
    written: Option<oneshot::Sender<Result<(), Arc<StoreError>>>>,
}

/// Hands things to who writes them. What waits there is bounded by the requests that are being served.
pub struct Outbox {
    entries: mpsc::UnboundedSender<Entry>,
    /// The intents of which this process knows what became, or will.
    live: Arc<Mutex<HashSet<String>>>,
}

impl Outbox {
    /// Begins to write, for the process that is called so.
    pub fn start(store: Store, holder: String) -> Self {
        let (sender, receiver) = mpsc::unbounded_channel();
        let live = Arc::<Mutex<HashSet<String>>>::default();
        tokio::spawn(write_all(store, holder, receiver, Arc::clone(&live)));
        Self { entries: sender, live }
    }

    /// The intents of which this process knows what became, or will: also those that it has only begun to write.
    pub fn live(&self) -> MutexGuard<'_, HashSet<String>> {
        lock(&self.live)
    }

    /// Writes something down, durably.
    ///
    /// # Errors
    /// If the database fails; then it may be written or not.
    pub async fn write(&self, write: EventWrite) -> Result<(), StoreError> {
        if let EventWrite::Intend(intent) = &write {
            self.live().insert(intent.id.clone());
        }
        let (sender, receiver) = oneshot::channel();
        // Who writes ends with the process alone.
        let _ = self.entries.send(Entry { write, written: Some(sender) });
        let failed = |error: String| StoreError::from(sqlx::Error::Protocol(error));
        match receiver.await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(error)) => Err(failed(error.to_string())),
            Err(_) => Err(failed("nobody writes any more".to_owned())),
        }
    }

    /// Writes something down, as soon as that can be.
    pub fn write_soon(&self, write: EventWrite) {
        let _ = self.entries.send(Entry { write, written: None });
    }
}

fn lock(live: &Mutex<HashSet<String>>) -> MutexGuard<'_, HashSet<String>> {
    live.lock().unwrap_or_else(PoisonError::into_inner)
}

async fn write_all(
    store: Store,
    holder: String,
    mut entries: mpsc::UnboundedReceiver<Entry>,
    live: Arc<Mutex<HashSet<String>>>,
) {
    let (mut batch, mut overdue) = (Vec::new(), Vec::new());
    loop {
        if overdue.is_empty() {
            if entries.recv_many(&mut batch, MAX_BATCH).await == 0 {
                return;
            }
        } else {
            let _ = tokio::time::timeout(RETRY_WAIT, entries.recv_many(&mut batch, MAX_BATCH)).await;
        }
        let (mut writes, mut waiting): (Vec<EventWrite>, Vec<_>) = (mem::take(&mut overdue), Vec::new());
        waiting.resize_with(writes.len(), || None);
        for Entry { write, written } in mem::take(&mut batch) {
            writes.push(write);
            waiting.push(written);
        }
        let outcome = store.write_events(&holder, &writes).await.map_err(Arc::new);
        if let Err(error) = &outcome {
            tracing::warn!(%error, count = writes.len(), "events can't be written down");
        }
        for (write, written) in writes.into_iter().zip(waiting) {
            match (written, &outcome) {
                (Some(written), _) => drop(written.send(outcome.clone())),
                (None, Err(_)) => {
                    overdue.push(write);
                    continue;
                }
                (None, Ok(())) => {}
            }
            if let (EventWrite::Settle(id, _) | EventWrite::Abandon(id), Ok(())) = (&write, &outcome) {
                lock(&live).remove(id);
            }
        }
    }
}
