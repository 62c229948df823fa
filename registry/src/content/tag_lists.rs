//! The tags of repositories that were listed lately, so that a page of a long list costs what a page of a short one does.
//!
//! Only this process sets tags here, and says so: a list that is kept is changed by each push, and one that is being read
//! while tags change is given those changes after.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use berth_oci::Repository;
use moka::{ops::compute::Op, sync::Cache};

/// How much memory the lists may take, in bytes.
const MAX_CACHE_BYTES: u64 = 24 * 1024 * 1024;

/// A list with more tags than this isn't kept: each page of it is read.
pub const MAX_KEPT_TAGS: usize = 250_000;

/// How many tags stand together: a change copies so many, and a copy of the whole list as many references.
const CHUNK_TAGS: usize = 512;

/// Sorted tags. A copy shares what it has with the original.
#[derive(Clone, Debug, Default)]
pub struct Tags {
    /// None is empty.
    chunks: Vec<Arc<Vec<Box<str>>>>,
    bytes: usize,
}

impl Tags {
    /// Those that come sorted.
    pub fn from_sorted(tags: Vec<String>) -> Self {
        let mut list = Self::default();
        let mut tags = tags.into_iter().map(String::into_boxed_str).peekable();
        while tags.peek().is_some() {
            let chunk: Vec<_> = tags.by_ref().take(CHUNK_TAGS).collect();
            list.bytes += chunk.iter().map(|tag| cost(tag)).sum::<usize>();
            list.chunks.push(Arc::new(chunk));
        }
        list
    }

    /// The chunk that a tag is in or belongs into.
    fn chunk_of(&self, tag: &str) -> usize {
        self.chunks.partition_point(|chunk| *chunk[0] <= *tag).saturating_sub(1)
    }

    fn insert(&mut self, tag: &str) {
        let at = self.chunk_of(tag);
        let Some(shared) = self.chunks.get_mut(at) else {
            self.chunks.push(Arc::new(vec![tag.into()]));
            self.bytes += cost(tag);
            return;
        };
        let Err(place) = shared.binary_search_by(|other| (**other).cmp(tag)) else { return };
        let chunk = Arc::make_mut(shared);
        chunk.insert(place, tag.into());
        self.bytes += cost(tag);
        if chunk.len() >= 2 * CHUNK_TAGS {
            let rest = chunk.split_off(CHUNK_TAGS);
            self.chunks.insert(at + 1, Arc::new(rest));
        }
    }

    fn remove(&mut self, tag: &str) {
        let at = self.chunk_of(tag);
        let Some(shared) = self.chunks.get_mut(at) else { return };
        let Ok(place) = shared.binary_search_by(|other| (**other).cmp(tag)) else { return };
        let chunk = Arc::make_mut(shared);
        chunk.remove(place);
        self.bytes -= cost(tag);
        if chunk.is_empty() {
            self.chunks.remove(at);
        }
    }

    /// The chunks in which those after `last` and up to `end` are.
    pub fn part(&self, last: Option<&str>, end: Option<&str>) -> Self {
        let from = last.map_or(0, |last| self.chunk_of(last)).min(self.chunks.len());
        let to = end.map_or(self.chunks.len(), |end| (self.chunk_of(end) + 1).min(self.chunks.len())).max(from);
        Self { chunks: self.chunks[from..to].to_vec(), bytes: 0 }
    }

    /// Those after `last`.
    pub fn after(&self, last: Option<&str>) -> impl Iterator<Item = &str> {
        let at = last.map_or(0, |last| self.chunk_of(last));
        let tags = self.chunks[at.min(self.chunks.len())..].iter().flat_map(|chunk| chunk.iter());
        tags.map(|tag| &**tag).skip_while(move |tag| last.is_some_and(|last| *tag <= last))
    }
}

/// What a tag takes, about.
fn cost(tag: &str) -> usize {
    tag.len() + size_of::<Box<str>>() + size_of::<usize>()
}

/// A tag was set, or taken away.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// Set.
    Set,
    /// Taken away.
    Removed,
}

impl Tags {
    fn apply(&mut self, tag: &str, change: Change) {
        match change {
            Change::Set => self.insert(tag),
            Change::Removed => self.remove(tag),
        }
    }
}

/// What has changed while a list was read; nothing, if that isn't known.
type Journal = Option<Vec<(String, Change)>>;

/// A list is being read. Who gives up forgets what has changed.
pub struct Reading<'a> {
    lists: &'a TagLists,
    repository: &'a Repository,
}

impl Drop for Reading<'_> {
    fn drop(&mut self) {
        self.lists.journals().remove(self.repository);
    }
}

impl Reading<'_> {
    /// The list was read: this is what it is now. It is kept if `keep` says so.
    pub fn end(self, mut tags: Tags, keep: bool) -> Tags {
        let mut journals = self.lists.journals();
        if let Some(Some(journal)) = journals.get_mut(self.repository) {
            for (tag, change) in journal.drain(..) {
                tags.apply(&tag, change);
            }
            if keep {
                self.lists.lists.insert(self.repository.clone(), tags.clone());
            }
        }
        drop(journals);
        tags
    }
}

/// The lists.
pub struct TagLists {
    lists: Cache<Repository, Tags>,
    /// Of the lists that are being read.
    journals: Mutex<HashMap<Repository, Journal>>,
}

impl TagLists {
    /// None yet.
    pub fn new() -> Self {
        let weigh = |_: &Repository, tags: &Tags| u32::try_from(tags.bytes).unwrap_or(u32::MAX);
        let lists = Cache::builder().max_capacity(MAX_CACHE_BYTES).weigher(weigh).build();
        Self { lists, journals: Mutex::default() }
    }

    fn journals(&self) -> MutexGuard<'_, HashMap<Repository, Journal>> {
        self.journals.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A tag has changed. To be said after it has.
    pub fn changed(&self, repository: &Repository, tag: &str, change: Change) {
        // Held to the end, so that no list is put in between that hasn't got this change.
        let mut journals = self.journals();
        if let Some(Some(journal)) = journals.get_mut(repository) {
            journal.push((tag.to_owned(), change));
        }
        self.lists.entry_by_ref(repository).and_compute_with(|list| match list {
            None => Op::Nop,
            Some(list) => {
                let mut tags = list.into_value();
                tags.apply(tag, change);
                Op::Put(tags)
            }
        });
    }

    /// Tags may have changed, it isn't known which.
    pub fn forget(&self, repository: &Repository) {
        let mut journals = self.journals();
        if let Some(journal) = journals.get_mut(repository) {
            *journal = None;
        }
        self.lists.invalidate(repository);
    }

    /// The list, if it is kept.
    pub fn get(&self, repository: &Repository) -> Option<Tags> {
        self.lists.get(repository)
    }

    /// A list is about to be read, by nobody else at the same time.
    pub fn begin<'a>(&'a self, repository: &'a Repository) -> Reading<'a> {
        self.journals().insert(repository.clone(), Some(Vec::new()));
        Reading { lists: self, repository }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_list_is_what_a_set_would_be(
            first in proptest::collection::btree_set("[a-c]{1,4}", 0..60),
            changes in proptest::collection::vec(("[a-c]{1,4}", any::<bool>()), 0..200),
            last in "[a-c]{0,4}",
        ) {
            let mut tags = Tags::from_sorted(first.iter().cloned().collect());
            let (before, copy) = (first.clone(), tags.clone());
            let mut set: BTreeSet<String> = first;
            for (tag, is_set) in changes {
                tags.apply(&tag, if is_set { Change::Set } else { Change::Removed });
                if is_set { set.insert(tag); } else { set.remove(&tag); }
            }
            prop_assert!(tags.after(None).eq(set.iter().map(String::as_str)));
            prop_assert!(tags.after(Some(&last)).eq(set.iter().map(String::as_str).filter(|tag| *tag > last.as_str())));
            let end = last.clone() + "b";
            let part = tags.part(Some(&last), Some(&end));
            let between = |tag: &&str| *tag <= end.as_str();
            prop_assert!(part.after(Some(&last)).filter(between).eq(tags.after(Some(&last)).filter(between)));
            prop_assert_eq!(tags.bytes, set.iter().map(|tag| cost(tag)).sum::<usize>());
            // Whoever reads a page goes on with the list of before.
            prop_assert!(copy.after(None).eq(before.iter().map(String::as_str)));
        }
    }

    #[test]
    fn a_long_list_is_cut_into_chunks_and_stays_sorted() {
        let mut tags = Tags::default();
        let names: BTreeSet<String> = (0..5000).map(|i| format!("t{}", i * 7919 % 5000)).collect();
        for i in 0..5000 {
            tags.insert(&format!("t{}", i * 7919 % 5000));
        }
        assert!(tags.after(None).eq(names.iter().map(String::as_str)));
        assert!(tags.chunks.iter().all(|chunk| (1..2 * CHUNK_TAGS).contains(&chunk.len())));
    }

    #[test]
    fn what_changes_while_a_list_is_read_is_in_it() {
        let (lists, repository) = (TagLists::new(), "r".parse::<Repository>().expect("a name"));
        let reading = lists.begin(&repository);
        lists.changed(&repository, "new", Change::Set);
        lists.changed(&repository, "old", Change::Removed);
        let read = reading.end(Tags::from_sorted(vec!["old".to_owned(), "other".to_owned()]), true);
        assert!(read.after(None).eq(["new", "other"]));
        lists.changed(&repository, "newer", Change::Set);
        assert!(lists.get(&repository).expect("kept").after(Some("new")).eq(["newer", "other"]));
        assert!(read.after(None).eq(["new", "other"]));
        // Who gives up leaves nothing behind, and a list of which something isn't known isn't kept.
        drop(lists.begin(&repository));
        assert!(lists.journals().is_empty());
        let reading = lists.begin(&repository);
        lists.forget(&repository);
        reading.end(Tags::default(), true);
        assert!(lists.get(&repository).is_none() && lists.journals().is_empty());
    }
}
