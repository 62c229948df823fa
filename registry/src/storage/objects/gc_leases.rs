//! One registry tells a client that something exists, while another one collects it as garbage: who is first?
//!
//! Each says what it is about to do before it looks what the other one does (Dekker's algorithm). A push writes a lease,
//! `promises/<key>`, and then looks for `condemned/<key>`; a collector writes `condemned/<key>` and then looks for a young
//! lease. The service shows every reader what was written before, so at least one of the two sees the other and gives
//! way. A lease is good for as long as garbage is kept, and is renewed at half of that.
//!
//! A collector that crashes leaves its `condemned/<key>` behind; after a while that counts for nothing.

use std::{
    io,
    time::{Duration, Instant},
};

use object_store::{ObjectMeta, PutMode, UpdateVersion};

use super::{Objects, age_of};

/// A collection of one key takes much less. What is older was left behind by a crash.
const MAX_COLLECTION: Duration = Duration::from_mins(10);

fn lease_key(key: &str) -> String {
    format!("promises/{key}")
}

fn deletion_key(key: &str) -> String {
    format!("condemned/{key}")
}

/// See [`Storage::acquire_lease`](crate::storage::Storage::acquire_lease).
pub async fn acquire_lease(storage: &Objects, key: &str) -> io::Result<bool> {
    let (lease, deletion) = (lease_key(key), deletion_key(key));
    let known = storage.meta(&lease).await?;
    if known.is_none_or(|known| age_of(&known) >= storage.0.lease / 2) {
        storage.put(&lease, Vec::new(), PutMode::Overwrite).await?;
    }
    // Also with a lease of before: the collector may have looked before that was written.
    let deletion = storage.meta(&deletion).await?;
    Ok(deletion.is_none_or(|deletion| age_of(&deletion) > MAX_COLLECTION))
}

/// See [`Storage::delete_if_unprotected`](crate::storage::Storage::delete_if_unprotected).
pub async fn delete_if_unprotected(storage: &Objects, key: &str, age: Duration) -> io::Result<bool> {
    // One collector at a time, or the first to end would take away what says that the other one goes on.
    let mode = match storage.meta(&deletion_key(key)).await? {
        None => PutMode::Create,
        Some(other) if age_of(&other) <= MAX_COLLECTION => return Ok(false),
        Some(ObjectMeta { e_tag, version, .. }) => PutMode::Update(UpdateVersion { e_tag, version }),
    };
    if storage.put(&deletion_key(key), Vec::new(), mode).await?.is_none() {
        return Ok(false);
    }
    let began = Instant::now();
    let younger = async |key: &str, age| Ok::<_, io::Error>(storage.meta(key).await?.is_some_and(|o| age_of(&o) < age));
    // A push may have relied on its lease when that was half over.
    let kept = younger(&lease_key(key), age + storage.0.lease / 2).await? || younger(key, age).await?;
    // A process that was stopped for long can't know what has happened since.
    let kept = kept || began.elapsed() > MAX_COLLECTION / 2;
    if !kept {
        storage.delete(key).await?;
        storage.delete(&lease_key(key)).await?;
    }
    storage.delete(&deletion_key(key)).await?;
    Ok(!kept)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::{Condition, Storage};

    #[tokio::test]
    async fn what_was_promised_is_not_collected_and_what_is_being_collected_is_not_promised() {
        let storage = Objects::in_memory(Duration::from_hours(1));
        let key = "repositories/r/_blobs/sha256/00";
        storage.write(key, Vec::new(), Condition::None).await.expect("written");
        // Young by itself.
        assert!(!delete_if_unprotected(&storage, key, Duration::from_hours(1)).await.expect("asked"));
        assert!(acquire_lease(&storage, key).await.expect("asked"));
        assert!(!delete_if_unprotected(&storage, key, Duration::from_hours(1)).await.expect("asked"));
        assert!(storage.exists(key).await.expect("asked"));
        // Somebody else is in the middle of it: whatever was promised before, it isn't now, however often one asks.
        storage.write(&deletion_key(key), Vec::new(), Condition::None).await.expect("written");
        for _ in 0..2 {
            assert!(!acquire_lease(&storage, key).await.expect("asked"));
        }
        // And nobody else collects it at the same time.
        storage.delete(&lease_key(key)).await.expect("deleted");
        assert!(!delete_if_unprotected(&storage, key, Duration::ZERO).await.expect("asked"));
        storage.delete(&deletion_key(key)).await.expect("deleted");
        // Old, and not promised.
        assert!(delete_if_unprotected(&storage, key, Duration::ZERO).await.expect("asked"));
        assert!(!storage.exists(key).await.expect("asked"));
        assert!(acquire_lease(&storage, key).await.expect("a new life"));
    }

    /// Pushes and collectors of one key at once, many times over: whatever was promised and then written stays.
    #[tokio::test(flavor = "multi_thread", worker_threads = 4)]
    async fn what_is_promised_and_then_written_is_never_taken() {
        let storage = Objects::in_memory(Duration::from_hours(1));
        for round in 0..300 {
            let key = format!("blobs/{round}");
            storage.write(&key, Vec::new(), Condition::None).await.expect("written");
            let collectors = (0..2).map(|_| {
                let (storage, key) = (storage.clone(), key.clone());
                // As if it were old: only a promise could keep it.
                tokio::spawn(async move { delete_old(&storage, &key).await.expect("collected") })
            });
            let pushers = (0..2).map(|_| {
                let (storage, key) = (storage.clone(), key.clone());
                tokio::spawn(async move {
                    while !acquire_lease(&storage, &key).await.expect("asked") {
                        tokio::task::yield_now().await;
                    }
                    storage.write(&key, Vec::new(), Condition::None).await.expect("written");
                })
            });
            let (collectors, pushers): (Vec<_>, Vec<_>) = (collectors.collect(), pushers.collect());
            for pusher in pushers {
                pusher.await.expect("ended");
            }
            for collector in collectors {
                collector.await.expect("ended");
            }
            assert!(storage.exists(&key).await.expect("asked"), "round {round}");
        }
    }

    /// Condemns what was written at any time, unless it was promised: half of an hour is no age.
    async fn delete_old(storage: &Objects, key: &str) -> io::Result<bool> {
        delete_if_unprotected(storage, key, Duration::ZERO).await
    }
}
