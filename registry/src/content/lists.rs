//! Lists: repositories, tags, referrers.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use berth_oci::{Descriptor, Digest, Error, Page, Reference, Repository, Tag};
use futures_util::{StreamExt, TryStreamExt, stream};

use super::{Content, storage_error};
use crate::storage::keys;

/// One page of a list.
pub struct List {
    /// The entries.
    pub entries: Vec<String>,
    /// The next page, if there is more.
    pub next: Option<Page>,
}

/// Everything that a repository holds.
pub struct Held {
    /// Its manifests.
    pub manifests: Vec<Descriptor>,
    /// Its other blobs.
    pub blobs: Vec<Digest>,
    /// Its tags, and what they point at.
    pub tags: Vec<(Tag, Digest)>,
}

/// How many bytes of descriptors one answer has at most, and one descriptor at least: their annotations are the pushers'.
const MAX_REFERRERS_PAGE_BYTES: usize = 1024 * 1024;

/// How many of them are read at once.
const REFERRERS_CONCURRENCY: usize = 4;

/// How many repositories one page has at most.
const MAX_REPOSITORIES_PER_PAGE: usize = 1000;

impl Content {
    /// Everything that a repository holds.
    pub async fn held(&self, repository: &Repository) -> Result<Held, Error> {
        self.must_exist(repository).await?;
        let digests = |folder: String| async move { self.storage.digests_in(&folder, Duration::ZERO).await };
        let mut manifests = Vec::new();
        for digest in digests(keys::manifests(repository)).await.map_err(storage_error)? {
            let stored = self.find_manifest(repository, &Reference::Digest(digest.clone())).await?;
            let size = self.manifest_len(&stored).await?;
            let (media_type, annotations) = (stored.media_type, BTreeMap::new());
            manifests.push(Descriptor { media_type, digest, size, urls: Vec::new(), artifact_type: None, annotations });
        }
        let blobs = digests(keys::held_blobs(repository)).await.map_err(storage_error)?;
        let mut tags = Vec::new();
        for tag in self.all_tags(repository).await? {
            if let Some(digest) = self.tag(repository, &tag).await? {
                tags.push((tag, digest));
            }
        }
        Ok(Held { manifests, blobs, tags })
    }

    /// The repositories that hold a manifest.
    pub async fn repositories(&self, page: &Page) -> Result<List, Error> {
        let n = page.n.unwrap_or(MAX_REPOSITORIES_PER_PAGE).min(MAX_REPOSITORIES_PER_PAGE);
        let found =
            self.storage.repositories(&[keys::MANIFESTS], page.last.as_deref(), n + 1).await.map_err(storage_error)?;
        Ok(cut(found, n))
    }

    /// The tags of a repository, in ASCII order (distribution specification, "Listing Tags").
    pub async fn tags(&self, repository: &Repository, page: &Page) -> Result<List, Error> {
        let n = page.n.unwrap_or(usize::MAX);
        // One more than is wanted tells whether there is more.
        let wanted = n.saturating_add(1);
        if self.storage.is_shared() {
            self.must_exist(repository).await?;
            let tags = self.storage.list(&keys::tags(repository), page.last.as_deref(), wanted).await;
            return Ok(cut(tags.map_err(storage_error)?, n));
        }
        let tags = match self.tag_lists.get(repository) {
            Some(tags) => tags,
            None => self.read_tags(repository).await?,
        };
        let first = page.last.as_ref().map_or(0, |last| tags.partition_point(|tag| tag <= last));
        Ok(cut(tags[first..].iter().take(wanted).cloned().collect(), n))
    }

    /// The whole list, read by one of those who want it.
    async fn read_tags(&self, repository: &Repository) -> Result<Arc<Vec<String>>, Error> {
        let _reading = self.tag_lists.reading(repository).await;
        if let Some(tags) = self.tag_lists.get(repository) {
            return Ok(tags);
        }
        self.must_exist(repository).await?;
        let version = self.tag_lists.version(repository);
        let tags = self.storage.list(&keys::tags(repository), None, usize::MAX).await.map_err(storage_error)?;
        let tags = Arc::new(tags);
        self.tag_lists.put(repository, version, Arc::clone(&tags));
        Ok(tags)
    }

    /// Every tag of a repository.
    pub(super) async fn all_tags(&self, repository: &Repository) -> Result<Vec<Tag>, Error> {
        let names = self.storage.list(&keys::tags(repository), None, usize::MAX).await.map_err(storage_error)?;
        // Whatever isn't a tag is none of ours.
        Ok(names.iter().filter_map(|name| name.parse().ok()).collect())
    }

    /// The descriptors of the manifests that refer to `subject`, which need not exist: those after `last`, as many as an
    /// answer may hold, and the name to go on after if there are more.
    pub async fn referrers(
        &self,
        repository: &Repository,
        subject: &Digest,
        artifact_type: Option<&str>,
        last: Option<&str>,
    ) -> Result<(Vec<Descriptor>, Option<String>), Error> {
        let folder = &keys::referrers(repository, subject);
        let names = self.storage.list(folder, last, usize::MAX).await.map_err(storage_error)?;
        let read = stream::iter(names).map(async |name| {
            let bytes = self.storage.read(&format!("{folder}/{name}")).await.map_err(storage_error)?;
            // Deleted since it was listed, perhaps.
            let Some(bytes) = bytes else { return Ok::<_, Error>((name, None)) };
            let descriptor: Descriptor = serde_json::from_slice(&bytes).map_err(|e| storage_error(e.into()))?;
            // A crash may have left the entry of a manifest that was never held.
            let held = self.storage.exists(&keys::manifest(repository, &descriptor.digest)).await;
            let wanted = artifact_type.is_none_or(|wanted| descriptor.artifact_type.as_deref() == Some(wanted));
            let wanted = wanted && held.map_err(storage_error)?;
            Ok((name, wanted.then_some((descriptor, bytes.len()))))
        });
        let mut read = read.buffered(REFERRERS_CONCURRENCY);
        let (mut descriptors, mut len, mut previous) = (Vec::new(), 0, None);
        while let Some((name, found)) = read.try_next().await? {
            if let Some((descriptor, bytes)) = found {
                if len + bytes > MAX_REFERRERS_PAGE_BYTES && !descriptors.is_empty() {
                    return Ok((descriptors, previous));
                }
                len += bytes;
                descriptors.push(descriptor);
            }
            previous = Some(name);
        }
        Ok((descriptors, None))
    }
}

/// The first `n` of `entries`, and the page after them.
fn cut(mut entries: Vec<String>, n: usize) -> List {
    let more = entries.len() > n;
    entries.truncate(n);
    // With n = 0 there is no last entry, and no next page (distribution specification, "Listing Tags").
    let next = entries.last().filter(|_| more).map(|last| Page { n: Some(n), last: Some(last.clone()) });
    List { entries, next }
}
