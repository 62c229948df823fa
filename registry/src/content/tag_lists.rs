//! The tags of repositories that were listed lately, so that a page of a long list costs what a page of a short one does.
//!
//! Only this process sets tags, and it says so here: a list that was read before a tag was set isn't taken after.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use berth_oci::Repository;
use moka::sync::Cache;
use tokio::sync::{Mutex, MutexGuard};

use super::lock_stripe;

/// How much memory the lists may take, in bytes.
const MAX_CACHE_BYTES: u64 = 8 * 1024 * 1024;

/// Sorted lists of tags.
pub struct TagLists {
    lists: Cache<Repository, (u64, Arc<Vec<String>>)>,
    /// Counts the changes of tags, each for a share of the repositories.
    changes: [AtomicU64; 256],
    /// Held by who reads a list, so that many who want a long one read it once.
    reading: [Mutex<()>; 16],
}

impl TagLists {
    /// None yet.
    pub fn new() -> Self {
        let weigh = |_: &Repository, (_, tags): &(u64, Arc<Vec<String>>)| {
            let bytes: usize = tags.iter().map(|tag| tag.len() + size_of::<String>()).sum();
            u32::try_from(bytes).unwrap_or(u32::MAX)
        };
        let lists = Cache::builder().max_capacity(MAX_CACHE_BYTES).weigher(weigh).build();
        let changes = std::array::from_fn(|_| AtomicU64::default());
        Self { lists, changes, reading: std::array::from_fn(|_| Mutex::default()) }
    }

    fn changes_of(&self, repository: &Repository) -> &AtomicU64 {
        lock_stripe(&self.changes, repository)
    }

    /// A tag was set or taken away. To be said after it was.
    pub fn changed(&self, repository: &Repository) {
        self.changes_of(repository).fetch_add(1, Ordering::SeqCst);
    }

    /// How many changes there were. To be asked before a list is read that is then put.
    pub fn version(&self, repository: &Repository) -> u64 {
        self.changes_of(repository).load(Ordering::SeqCst)
    }

    /// The list, if nothing has changed since it was read.
    pub fn get(&self, repository: &Repository) -> Option<Arc<Vec<String>>> {
        let (version, tags) = self.lists.get(repository)?;
        (version == self.version(repository)).then_some(tags)
    }

    /// To be waited for by who is about to read a list; it may be there afterwards.
    pub async fn reading(&self, repository: &Repository) -> MutexGuard<'_, ()> {
        lock_stripe(&self.reading, repository).lock().await
    }

    /// Remembers a list that was read after `version` was asked.
    pub fn put(&self, repository: &Repository, version: u64, tags: Arc<Vec<String>>) {
        self.lists.insert(repository.clone(), (version, tags));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_that_was_read_before_a_change_is_not_taken_after_it() {
        let (lists, repository) = (TagLists::new(), "r".parse::<Repository>().expect("a name"));
        let before = lists.version(&repository);
        lists.put(&repository, before, Arc::new(vec!["a".to_owned()]));
        assert!(lists.get(&repository).is_some());
        lists.changed(&repository);
        assert!(lists.get(&repository).is_none());
        // Read before the change, and put after it.
        lists.put(&repository, before, Arc::default());
        assert!(lists.get(&repository).is_none());
    }
}
