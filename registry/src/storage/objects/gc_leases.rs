//! One registry tells a client that something exists, while another one collects it as garbage: who is first?
//!
//! Each says what it is about to do before it looks what the other one does (Dekker's algorithm). A push writes a lease,
//! `promises/<key>`, and then looks for `condemned/<key>`; a collector writes `condemned/<key>` and then looks for a lease
//! that holds. The service shows every reader what was written before, so at least one of the two sees the other and gives
//! way. A collector takes a lease that it hasn't seen away with its mark, so a push that sees no mark looks whether its lease
//! is still the same. A lease says itself how long it holds: two registries may keep garbage for different times.
//!
//! A collector that crashes leaves its `condemned/<key>` behind, which counts for nothing after some seconds: one that lives
//! gives up long before.

use std::{
    io,
    time::{Duration, SystemTime},
};

use bytes::Bytes;
use moka::sync::Cache;
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

/// How many leases are remembered, of a few hundred bytes each.
const MAX_KNOWN_LEASES: u64 = 20_000;

/// How long they are remembered at most.
const MAX_KNOWN_TIME: Duration = Duration::from_hours(24);

/// The leases that this process has written lately. As long as one holds no collector takes anything, so nothing is asked about
/// what several pushes, or the steps of one, rely on.
pub struct KnownLeases {
    /// When it began to be written: by a clock that is never set, and by one that goes on while a machine is suspended.
    written: Cache<String, (Instant, SystemTime)>,
    /// How long after that one surely holds for as long as is promised.
    good_for: Duration,
}

impl KnownLeases {
    /// None yet; each promises as much as `promised`.
    pub fn new(promised: Duration) -> Self {
        let good_for = lease_lifetime(promised).saturating_sub(promised).min(MAX_KNOWN_TIME);
        let written = Cache::builder().max_capacity(MAX_KNOWN_LEASES).time_to_live(good_for).build();
        Self { written, good_for }
    }

    /// Whether a lease is known that is as good as a new one.
    pub fn holds(&self, key: &str) -> bool {
        let is_good = |(at, time): (Instant, SystemTime)| {
            at.elapsed() < self.good_for && time.elapsed().is_ok_and(|age| age < self.good_for)
        };
        self.written.get(key).is_some_and(is_good)
    }
}

/// A lease that was found.
struct Lease {
    /// Its seconds, and something that no other lease has.
    text: Bytes,
    version: UpdateVersion,
    /// How long it holds after it was written.
    lifetime: Duration,
    /// How long ago that was.
    age: Duration,
}

impl Lease {
    fn left(&self) -> Duration {
        self.lifetime.saturating_sub(self.age)
    }
}

async fn lease(storage: &Objects, key: &str) -> io::Result<Option<Lease>> {
    let Some((text, meta)) = storage.read_object(&lease_key(key)).await? else { return Ok(None) };
    let seconds = std::str::from_utf8(&text).ok().and_then(|text| text.split(' ').next()?.parse().ok());
    // One that can't be read is one of ours.
    let lifetime = seconds.map_or_else(|| lease_lifetime(storage.0.lease), Duration::from_secs);
    let age = age_of(&meta);
    let version = UpdateVersion { e_tag: meta.e_tag, version: meta.version };
    Ok(Some(Lease { text, version, lifetime, age }))
}

/// Writes a lease instead of the one that is known, and never one that ends sooner: whoever has written that one may rely on it.
/// Returns its text; nothing, if somebody else has written one meanwhile.
async fn write_lease(storage: &Objects, key: &str, known: Option<&Lease>) -> io::Result<Option<Bytes>> {
    let lifetime = lease_lifetime(storage.0.lease).max(known.map(Lease::left).unwrap_or_default());
    let text = Bytes::from(format!("{} {}", lifetime.as_secs(), Uuid::new_v4()));
    let mode = known.map_or(PutMode::Create, |known| PutMode::Update(known.version.clone()));
    Ok(storage.put(&lease_key(key), text.clone(), mode).await?.map(|_| text))
}

/// See [`Storage::acquire_lease`](crate::storage::Storage::acquire_lease).
pub async fn acquire_lease(storage: &Objects, key: &str) -> io::Result<bool> {
    let known_leases = &storage.0.known_leases;
    if known_leases.holds(key) {
        return Ok(true);
    }
    let mut known = lease(storage, key).await?;
    let mark = loop {
        let now = (Instant::now(), SystemTime::now());
        let (held, is_ours) = match &known {
            Some(known) if known.left() >= storage.0.lease => (known.text.clone(), false),
            _ => match write_lease(storage, key, known.as_ref()).await? {
                Some(text) => (text, true),
                None => {
                    known = lease(storage, key).await?;
                    continue;
                }
            },
        };
        // Also with a lease of before: the collector may have looked before that was written.
        if let Some(mark) = storage.meta(&mark_key(key)).await? {
            break mark;
        }
        // A collector that looked before, and has ended since, has taken the lease with it.
        known = lease(storage, key).await?;
        if known.as_ref().is_some_and(|known| known.text == held) {
            if is_ours {
                known_leases.written.insert(key.to_owned(), now);
            }
            return Ok(true);
        }
    };
    // Both times are the service's own.
    let known = lease(storage, key).await?;
    write_lease(storage, key, known.as_ref()).await?;
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
        let leased = lease(storage, key).await?.is_some_and(|lease| lease.age < lease.lifetime + elapsed);
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
        // Somebody else is in the middle of it: it isn't promised to anybody new, however often one asks. What was promised
        // before is, since that somebody sees it.
        assert!(storage.acquire_lease(key).await.expect("asked"));
        let storage = storage.of_another_process();
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

    #[tokio::test]
    async fn nobody_shortens_a_lease_that_somebody_else_relies_on() {
        let long = Objects::in_memory(Duration::from_hours(24));
        let short = long.of_another_process_with(Duration::from_mins(10));
        let key = "repositories/r/_blobs/sha256/00";
        let lifetime = async || lease(&long, key).await.expect("asked").expect("a lease").lifetime;
        assert!(acquire_lease(&long, key).await.expect("asked"));
        assert!(acquire_lease(&short, key).await.expect("asked"));
        assert_eq!(lifetime().await, Duration::from_hours(36));
        // Nor while somebody collects.
        long.write(&mark_key(key), b"another".to_vec(), Condition::None).await.expect("written");
        assert!(!acquire_lease(&short, key).await.expect("asked"));
        assert!(lifetime().await > Duration::from_hours(35));
        // Who has less than is promised gets more.
        let longer = long.of_another_process_with(Duration::from_hours(40));
        long.delete(&mark_key(key)).await.expect("deleted");
        assert!(acquire_lease(&longer, key).await.expect("asked"));
        assert_eq!(lifetime().await, Duration::from_hours(60));
    }

    /// Pushes and collectors of one key at once, many times over: whatever was promised and then written stays.
    #[tokio::test(flavor = "multi_thread", worker_threads = 4)]
    async fn what_is_promised_and_then_written_is_never_taken() {
        let storage = Objects::in_memory(Duration::from_hours(1));
        for round in 0..1000 {
            let key = format!("blobs/{round}");
            storage.mark(vec![key.clone()]).await.expect("written");
            let collectors = (0..2).map(|_| {
                let (storage, key) = (storage.clone(), key.clone());
                // As if it were old: only a promise could keep it.
                tokio::spawn(async move { delete_old(&storage, &key).await.expect("collected") })
            });
            let pushers = (0..2).map(|_| {
                let (storage, key) = (storage.of_another_process(), key.clone());
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
