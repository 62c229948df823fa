//! The names of all repositories, so that a page of them costs what it shows and not a walk through the store.
//!
//! Only where nobody else pushes: there each push and each deletion says what has changed.

use std::{
    cmp::Ordering,
    collections::BTreeSet,
    io,
    ops::Bound::{Excluded, Unbounded},
};

use berth_oci::Repository;
use tokio::sync::RwLock;

use super::Content;
use crate::storage::keys;

/// With more repositories than this, each page is read from the storage.
const MAX_NAMES: usize = 200_000;

/// How many names are listed at once.
const NAMES_PER_LIST: usize = 10_000;

/// A name in the order of its parts: `a`, `a/b`, `a-b`.
#[derive(PartialEq, Eq)]
struct InParts(Box<str>);

impl Ord for InParts {
    fn cmp(&self, other: &Self) -> Ordering {
        self.0.split('/').cmp(other.0.split('/'))
    }
}

impl PartialOrd for InParts {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

/// What is known of the names.
#[derive(Default)]
enum Known {
    /// Nothing yet.
    #[default]
    Nothing,
    /// There are too many, or others push as well.
    Never,
    All(BTreeSet<InParts>),
}

/// The names.
#[derive(Default)]
pub struct Names(RwLock<Known>);

impl Names {
    /// A repository has a manifest now.
    pub async fn added(&self, repository: &Repository) {
        let name = InParts(repository.as_str().into());
        if let Known::All(names) = &*self.0.read().await
            && names.contains(&name)
        {
            return;
        }
        if let Known::All(names) = &mut *self.0.write().await {
            names.insert(name);
        }
    }

    /// A repository has none any more.
    pub async fn removed(&self, repository: &Repository) {
        if let Known::All(names) = &mut *self.0.write().await {
            names.remove(&InParts(repository.as_str().into()));
        }
    }
}

impl Content {
    /// At most `limit` repositories after `last` that hold a manifest, and whose names have `wanted` somewhere.
    pub(super) async fn names(&self, wanted: &str, last: Option<&str>, limit: usize) -> io::Result<Vec<String>> {
        self.load_names().await?;
        if let Known::All(names) = &*self.names.0.read().await {
            let after = last.map_or(Unbounded, |last| Excluded(InParts(last.into())));
            let found = names.range((after, Unbounded)).filter(|name| name.0.contains(wanted)).take(limit);
            return Ok(found.map(|name| name.0.to_string()).collect());
        }
        let (mut found, mut last) = (Vec::new(), last.map(str::to_owned));
        while found.len() < limit {
            let names = self.storage.repositories(&[keys::MANIFESTS], last.as_deref(), limit.max(1000)).await?;
            let is_end = names.len() < limit.max(1000);
            last = names.last().cloned();
            found.extend(names.into_iter().filter(|name| name.contains(wanted)));
            if is_end {
                break;
            }
        }
        found.truncate(limit);
        Ok(found)
    }

    /// Reads them once. Who pushes meanwhile waits, and adds its own.
    async fn load_names(&self) -> io::Result<()> {
        if !matches!(*self.names.0.read().await, Known::Nothing) {
            return Ok(());
        }
        let mut known = self.names.0.write().await;
        if !matches!(*known, Known::Nothing) {
            return Ok(());
        }
        if self.is_shared() {
            *known = Known::Never;
            return Ok(());
        }
        let (mut names, mut last): (BTreeSet<InParts>, Option<String>) = (BTreeSet::new(), None);
        loop {
            let listed = self.storage.repositories(&[keys::MANIFESTS], last.as_deref(), NAMES_PER_LIST).await?;
            let is_end = listed.len() < NAMES_PER_LIST;
            last = listed.last().cloned();
            names.extend(listed.into_iter().map(|name| InParts(name.into())));
            if names.len() > MAX_NAMES {
                *known = Known::Never;
                return Ok(());
            }
            if is_end {
                break;
            }
        }
        *known = Known::All(names);
        Ok(())
    }
}
