//! One registry tells a client that something exists, while another one collects it as garbage: who is first?
//!
//! Each says what it is about to do before it looks what the other one does (Dekker's algorithm). A push writes a lease,
//! `promises/<key>`, and then looks for `condemned/<key>`; a collector writes `condemned/<key>` and then looks for a lease
//! that holds. The service shows every reader what was written before, so at least one of the two sees the other and gives
//! way. A lease says itself how long it holds: two registries may keep garbage for different times.
//!
//! A collector that crashes leaves its `condemned/<key>` behind, which counts for nothing after some seconds: one that lives
//! gives up long before.

use std::{io, time::Duration};

use object_store::{ObjectMeta, PutMode, UpdateVersion};
use tokio::time::{Instant, timeout};
use uuid::Uuid;

use super::{Objects, age_of};

/// How long a collector may take from its mark to the end of the removal.
const REMOVAL_TIMEOUT: Duration = Duration::from_secs(5);

/// How old a mark must be, by the service's clock, for a push not to wait for its collector.
const MARK_LIFETIME: Duration = Duration::from_secs(15);

/// How old it must be, by our clock, for another collector to take it over.
const MARK_TAKEOVER_AGE: Duration = Duration::from_mins(10);

fn lease_key(key: &str) -> String {
    format!("promises/{key}")
}

fn mark_key(key: &str) -> String {
    format!("condemned/{key}")
}

/// How long a lease holds that a registry writes: longer than it promises, so that not every promise writes one.
fn lease_lifetime(promised: Duration) -> Duration {
    promised + promised / 2
}

/// How long the lease for a key holds after it was written, and how long ago that was.
async fn lease(storage: &Objects, key: &str) -> io::Result<Option<(Duration, Duration)>> {
    let Some(meta) = storage.meta(&lease_key(key)).await? else { return Ok(None) };
    let text = storage.read_version(&lease_key(key)).await?;
    let seconds = text.and_then(|(text, _)| std::str::from_utf8(&text).ok()?.parse().ok());
    // One that can't be read is one of ours.
    let lifetime = seconds.map_or_else(|| lease_lifetime(storage.0.lease), Duration::from_secs);
    Ok(Some((lifetime, age_of(&meta))))
}

async fn write_lease(storage: &Objects, key: &str) -> io::Result<()> {
    let seconds = lease_lifetime(storage.0.lease).as_secs().to_string();
    storage.put(&lease_key(key), seconds, PutMode::Overwrite).await.map(drop)
}

/// See [`Storage::acquire_lease`](crate::storage::Storage::acquire_lease).
pub async fn acquire_lease(storage: &Objects, key: &str) -> io::Result<bool> {
    let known = lease(storage, key).await?;
    if known.is_none_or(|(lifetime, age)| lifetime < age + storage.0.lease) {
        write_lease(storage, key).await?;
    }
    // Also with a lease of before: the collector may have looked before that was written.
    let Some(mark) = storage.meta(&mark_key(key)).await? else { return Ok(true) };
    // Both times are the service's own.
    write_lease(storage, key).await?;
    let now = storage.meta(&lease_key(key)).await?.map_or(mark.last_modified, |lease| lease.last_modified);
    Ok((now - mark.last_modified).to_std().is_ok_and(|age| age > MARK_LIFETIME))
}

/// See [`Storage::delete_if_unprotected`](crate::storage::Storage::delete_if_unprotected).
pub async fn delete_if_unprotected(storage: &Objects, key: &str, age: Duration) -> io::Result<bool> {
    let began = Instant::now();
    // One collector at a time, or the first to end would take away what says that the other one goes on.
    let mode = match storage.meta(&mark_key(key)).await? {
        None => PutMode::Create,
        Some(other) if age_of(&other) <= MARK_TAKEOVER_AGE => return Ok(false),
        Some(ObjectMeta { e_tag, version, .. }) => PutMode::Update(UpdateVersion { e_tag, version }),
    };
    if storage.put(&mark_key(key), Uuid::new_v4().to_string(), mode).await?.is_none() {
        return Ok(false);
    }
    // Whatever held when the collection began was relied on by what has been pushed since.
    let elapsed = age.saturating_sub(storage.0.lease);
    let protected = async {
        let leased = lease(storage, key).await?.is_some_and(|(lifetime, its_age)| its_age < lifetime + elapsed);
        Ok::<_, io::Error>(leased || storage.meta(key).await?.is_some_and(|object| age_of(&object) < age))
    };
    let protected = protected.await;
    // Who was held up doesn't know what has happened since.
    if matches!(protected, Ok(false)) && began.elapsed() < REMOVAL_TIMEOUT {
        let left = REMOVAL_TIMEOUT.saturating_sub(began.elapsed());
        // If that fails it may still happen; the mark stays until it can't.
        timeout(left, storage.delete(key)).await.map_err(io::Error::from).flatten()?;
        storage.delete(&lease_key(key)).await?;
        storage.delete(&mark_key(key)).await?;
        return Ok(true);
    }
    // Taken back, so that nobody waits.
    storage.delete(&mark_key(key)).await?;
    protected.map(|_| false)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::{Condition, Storage};

    #[tokio::test]
    async fn what_was_promised_is_not_collected_and_what_is_being_collected_is_not_promised() {
        let storage = Objects::in_memory(Duration::from_hours(1));
        let key = "repositories/r/_blobs/sha256/00";
        storage.mark(vec![key.to_owned()]).await.expect("written");
        // Young by itself.
        assert!(!delete_if_unprotected(&storage, key, Duration::from_hours(1)).await.expect("asked"));
        assert!(acquire_lease(&storage, key).await.expect("asked"));
        assert!(!delete_if_unprotected(&storage, key, Duration::from_hours(1)).await.expect("asked"));
        assert!(storage.exists(key).await.expect("asked"));
        // Somebody else is in the middle of it: whatever was promised before, it isn't now, however often one asks.
        storage.write(&mark_key(key), b"another".to_vec(), Condition::None).await.expect("written");
        for _ in 0..2 {
            assert!(!acquire_lease(&storage, key).await.expect("asked"));
        }
        // And nobody else collects it at the same time.
        storage.delete(&lease_key(key)).await.expect("deleted");
        assert!(!delete_if_unprotected(&storage, key, Duration::ZERO).await.expect("asked"));
        storage.delete(&mark_key(key)).await.expect("deleted");
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
            storage.mark(vec![key.clone()]).await.expect("written");
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
                    storage.mark(vec![key.clone()]).await.expect("written");
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
