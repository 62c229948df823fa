//! Locks by name, none of which two names share.

use std::{
    collections::HashMap,
    hash::Hash,
    sync::{Arc, Mutex, PoisonError, Weak},
};

use tokio::sync::{OwnedRwLockReadGuard, OwnedRwLockWriteGuard, RwLock};

/// How many locks there are before those are forgotten that nobody holds.
const MIN_SWEEP: usize = 1024;

/// A lock for each name that somebody uses.
pub struct Locks<K>(Mutex<Table<K>>);

struct Table<K> {
    locks: HashMap<K, Weak<RwLock<()>>>,
    sweep_at: usize,
}

impl<K: Hash + Eq + Clone> Locks<K> {
    /// None yet.
    pub fn new() -> Self {
        Self(Mutex::new(Table { locks: HashMap::new(), sweep_at: MIN_SWEEP }))
    }

    fn of(&self, name: &K) -> Arc<RwLock<()>> {
        let mut table = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(lock) = table.locks.get(name).and_then(Weak::upgrade) {
            return lock;
        }
        if table.locks.len() >= table.sweep_at {
            table.locks.retain(|_, lock| lock.strong_count() > 0);
            table.sweep_at = MIN_SWEEP.max(2 * table.locks.len());
        }
        let lock = Arc::new(RwLock::new(()));
        table.locks.insert(name.clone(), Arc::downgrade(&lock));
        lock
    }

    /// Whether somebody has the name alone, or waits for that: who would share it then waits, too.
    #[cfg(test)]
    pub fn is_wanted_alone(&self, name: &K) -> bool {
        self.of(name).try_read().is_err()
    }

    /// Has the name together with others who share it.
    pub async fn shared(&self, name: &K) -> OwnedRwLockReadGuard<()> {
        self.of(name).read_owned().await
    }

    /// Has the name alone.
    pub async fn alone(&self, name: &K) -> OwnedRwLockWriteGuard<()> {
        self.of(name).write_owned().await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_name_is_had_alone_and_the_unused_are_forgotten() {
        let locks = Locks::new();
        let held = locks.alone(&0).await;
        for name in 1..3 * MIN_SWEEP {
            drop(locks.shared(&name).await);
        }
        assert!(locks.0.lock().expect("a lock").locks.len() <= MIN_SWEEP + 1);
        assert!(locks.of(&0).try_read().is_err());
        drop(held);
        assert!(locks.of(&0).try_read().is_ok());
    }
}
