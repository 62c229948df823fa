//! One registry tells a client that something exists, while another one collects it as garbage: who is first?
//!
//! Each says what it is about to do before it looks what the other one does (Dekker's algorithm). Who promises writes
//! `promises/<key>` and then looks for `condemned/<key>`; who collects writes `condemned/<key>` and then looks for a young
//! `promises/<key>`. The service shows to whoever reads what was written before, so at least one of the two sees the
//! other and gives way. A promise is good for as long as garbage is kept, and is renewed at half of that.
//!
//! A crash leaves a condemned key behind that nobody removes; after a while it counts for nothing.

use std::{
    io,
    time::{Duration, Instant},
};

use object_store::{ObjectMeta, PutMode, UpdateVersion};

use super::{Objects, age_of};

/// A collection of one key takes much less. What is older was left behind by a crash.
const LONGEST: Duration = Duration::from_mins(10);

fn promised(key: &str) -> String {
    format!("promises/{key}")
}

fn condemned(key: &str) -> String {
    format!("condemned/{key}")
}

/// See [`Storage::promise`](crate::storage::Storage::promise).
pub async fn promise(storage: &Objects, key: &str) -> io::Result<bool> {
    let (promised, condemned) = (promised(key), condemned(key));
    let known = storage.meta(&promised).await?;
    if known.is_none_or(|promise| age_of(&promise) >= storage.0.promised / 2) {
        storage.put(&promised, Vec::new(), PutMode::Overwrite).await?;
    }
    // Also if it was promised before: whoever collects may have looked before that.
    let condemned = storage.meta(&condemned).await?;
    Ok(condemned.is_none_or(|condemned| age_of(&condemned) > LONGEST))
}

/// See [`Storage::condemn`](crate::storage::Storage::condemn).
pub async fn condemn(storage: &Objects, key: &str, age: Duration) -> io::Result<bool> {
    // One collector at a time, or the first to end would take away what says that the other one goes on.
    let mode = match storage.meta(&condemned(key)).await? {
        None => PutMode::Create,
        Some(other) if age_of(&other) <= LONGEST => return Ok(false),
        Some(ObjectMeta { e_tag, version, .. }) => PutMode::Update(UpdateVersion { e_tag, version }),
    };
    if storage.put(&condemned(key), Vec::new(), mode).await?.is_none() {
        return Ok(false);
    }
    let began = Instant::now();
    let younger = async |key: &str, age| Ok::<_, io::Error>(storage.meta(key).await?.is_some_and(|o| age_of(&o) < age));
    // A client may have been told when its promise was half over.
    let kept = younger(&promised(key), age + storage.0.promised / 2).await? || younger(key, age).await?;
    // A process that was stopped for long can't know what has happened since.
    let kept = kept || began.elapsed() > LONGEST / 2;
    if !kept {
        storage.delete(key).await?;
        storage.delete(&promised(key)).await?;
    }
    storage.delete(&condemned(key)).await?;
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
        assert!(!condemn(&storage, key, Duration::from_hours(1)).await.expect("asked"));
        assert!(promise(&storage, key).await.expect("asked"));
        assert!(!condemn(&storage, key, Duration::from_hours(1)).await.expect("asked"));
        assert!(storage.exists(key).await.expect("asked"));
        // Somebody else is in the middle of it: whatever was promised before, it isn't now, however often one asks.
        storage.write(&condemned(key), Vec::new(), Condition::None).await.expect("written");
        for _ in 0..2 {
            assert!(!promise(&storage, key).await.expect("asked"));
        }
        // And nobody else collects it at the same time.
        storage.delete(&promised(key)).await.expect("deleted");
        assert!(!condemn(&storage, key, Duration::ZERO).await.expect("asked"));
        storage.delete(&condemned(key)).await.expect("deleted");
        // Old, and not promised.
        assert!(condemn(&storage, key, Duration::ZERO).await.expect("asked"));
        assert!(!storage.exists(key).await.expect("asked"));
        assert!(promise(&storage, key).await.expect("a new life"));
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
                tokio::spawn(async move { condemn_old(&storage, &key).await.expect("collected") })
            });
            let pushers = (0..2).map(|_| {
                let (storage, key) = (storage.clone(), key.clone());
                tokio::spawn(async move {
                    while !promise(&storage, &key).await.expect("asked") {
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
    async fn condemn_old(storage: &Objects, key: &str) -> io::Result<bool> {
        condemn(storage, key, Duration::ZERO).await
    }
}
