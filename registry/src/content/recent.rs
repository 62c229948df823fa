//! What clients have been told, or have pushed, within the time that garbage is kept: they may name it without sending it
//! again.

use std::{
    collections::{HashMap, hash_map::RandomState},
    hash::{BuildHasher, Hash},
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use berth_oci::{Digest, Repository};

/// How much is remembered: of 24 bytes each, so seven megabytes at the most, as a table doubles.
const MAX_REMEMBERED: usize = 200_000;

/// What is remembered of the last hour, or however long garbage is kept. It is in memory: a process that has just started
/// doesn't know what its predecessor told, and one that was told too much forgets it all and is as if it had just started.
pub struct Recent {
    /// Whether anything is collected in this process; if not, nothing need be remembered.
    enabled: bool,
    hasher: RandomState,
    seen: Mutex<Seen>,
}

struct Seen {
    /// Since when everything is remembered.
    since: Instant,
    /// By the hash of what it is; two that are alike keep a piece of garbage, which is harmless.
    at: HashMap<u64, Instant>,
}

impl Recent {
    /// Nothing yet; and nothing ever, unless `enabled`.
    pub fn new(enabled: bool) -> Self {
        let seen = Seen { since: Instant::now(), at: HashMap::new() };
        Self { enabled, hasher: RandomState::new(), seen: Mutex::new(seen) }
    }

    fn lock(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn remember(&self, what: impl Hash) {
        if !self.enabled {
            return;
        }
        let mut seen = self.lock();
        if seen.at.len() >= MAX_REMEMBERED {
            tracing::warn!("more was pushed and asked for than is remembered; garbage is collected later");
            *seen = Seen { since: Instant::now(), at: HashMap::new() };
        }
        seen.at.insert(self.hasher.hash_one(what), Instant::now());
    }

    fn is_remembered(&self, what: impl Hash, delay: Duration) -> bool {
        let seen = self.lock();
        seen.since.elapsed() < delay || seen.at.contains_key(&self.hasher.hash_one(what))
    }

    /// A client was told that `repository` holds `digest`, and may name it; or it has named it.
    pub fn told(&self, repository: &Repository, digest: &Digest) {
        self.remember((repository.as_str(), digest));
    }

    /// Whether a client may have been told so within `delay`.
    pub fn was_told(&self, repository: &Repository, digest: &Digest, delay: Duration) -> bool {
        self.is_remembered((repository.as_str(), digest), delay)
    }

    /// Somebody has let a repository hold `digest`.
    pub fn held(&self, digest: &Digest) {
        self.remember(("", digest));
    }

    /// Whether somebody may have let a repository hold it within `delay`.
    pub fn was_held(&self, digest: &Digest, delay: Duration) -> bool {
        self.is_remembered(("", digest), delay)
    }

    /// Whether everything within `delay` is remembered.
    pub fn knows_all(&self, delay: Duration) -> bool {
        self.lock().since.elapsed() >= delay
    }

    /// Forgets what is older than `delay`.
    pub fn forget(&self, delay: Duration) {
        self.lock().at.retain(|_, at| at.elapsed() <= delay);
    }

    /// As if the process had begun at that time, with an empty memory.
    #[cfg(test)]
    pub fn begin_at(&self, since: Instant) {
        *self.lock() = Seen { since, at: HashMap::new() };
    }
}

#[cfg(test)]
mod tests {
    use berth_oci::Algorithm;

    use super::*;
    use crate::storage::digest_of;

    #[test]
    fn too_much_to_remember_is_as_good_as_a_new_start() {
        let recent = Recent::new(true);
        let begin = Instant::now().checked_sub(Duration::from_hours(2)).expect("a machine that is up");
        recent.begin_at(begin);
        let digest = |i: usize| digest_of(Algorithm::Sha256, &i.to_le_bytes()).expect("a digest");
        let hour = Duration::from_hours(1);
        for i in 0..MAX_REMEMBERED {
            recent.held(&digest(i));
        }
        assert!(
            recent.knows_all(hour) && recent.was_held(&digest(0), hour) && !recent.was_held(&digest(usize::MAX), hour)
        );
        recent.held(&digest(MAX_REMEMBERED));
        assert!(!recent.knows_all(hour) && recent.was_held(&digest(0), hour));
        assert!(recent.lock().at.len() == 1);
    }
}
