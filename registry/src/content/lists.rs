//! Lists: repositories, tags, referrers.

use std::{collections::BTreeMap, time::Duration};

use berth_oci::{Descriptor, Digest, Error, Page, Reference, Repository, Tag};
use futures_util::{StreamExt, TryStreamExt, stream};

use super::{
    Content, storage_error,
    tag_lists::{MAX_KEPT_TAGS, Tags},
};
use crate::storage::keys::{self, ReferrerName};

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

/// How many names of them are listed at once.
const REFERRERS_PER_LIST: usize = 50_000;

/// How many repositories one page has at most.
const MAX_REPOSITORIES_PER_PAGE: usize = 1000;

/// How many tags one page has at most.
const MAX_TAGS_PER_PAGE: usize = 10_000;

/// One page of a list of tags, which shares the list with others who read it.
pub struct TagPage {
    tags: Tags,
    last: Option<String>,
    /// How many tags are on it that haven't been taken.
    left: usize,
    /// The next page, if there is more.
    pub next: Option<Page>,
}

impl TagPage {
    /// The next tags of this page, no more than `limit`; none at its end.
    pub fn take(&mut self, limit: usize) -> Vec<&str> {
        let limit = limit.min(self.left);
        let taken: Vec<&str> = self.tags.after(self.last.as_deref()).take(limit).collect();
        self.left -= taken.len();
        self.last = taken.last().map(|tag| (*tag).to_owned()).or(self.last.take());
        taken
    }
}

impl Content {
    /// Everything that a repository holds.
    pub async fn held(&self, repository: &Repository) -> Result<Held, Error> {
        self.must_exist(repository).await?;
        let digests = |folder: String| async move { self.digests_in(&folder, Duration::ZERO).await };
        let mut manifests = Vec::new();
        for digest in digests(keys::manifests(repository)).await.map_err(storage_error)? {
            let stored = self.find_manifest(repository, &Reference::Digest(digest.clone())).await?;
            let size = self.manifest_len(repository, &stored).await?;
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
        let found = self.names("", page.last.as_deref(), n + 1).await.map_err(storage_error)?;
        Ok(cut(found, n))
    }

    /// The tags of a repository, in ASCII order (distribution specification, "Listing Tags").
    pub async fn tags(&self, repository: &Repository, page: &Page) -> Result<TagPage, Error> {
        let n = page.n.unwrap_or(MAX_TAGS_PER_PAGE).min(MAX_TAGS_PER_PAGE);
        let last = page.last.clone();
        let tags = match self.kept_tags(repository).await? {
            Some(tags) => tags,
            None => {
                // One more than is wanted tells whether there is more.
                let names = self.storage.list(&keys::tags(repository), last.as_deref(), n + 1).await;
                Tags::from_sorted(names.map_err(storage_error)?)
            }
        };
        let (end, more) = {
            let mut page = tags.after(last.as_deref());
            // With n = 0 there is no last entry, and no next page.
            let end = n.checked_sub(1).and_then(|before| page.nth(before)).map(str::to_owned);
            (end, page.next().is_some())
        };
        // Of a long list a slow reader holds no more than the page.
        let tags = tags.part(last.as_deref(), end.as_deref());
        let next = end.filter(|_| more).map(|end| Page { n: Some(n), last: Some(end) });
        Ok(TagPage { tags, last, left: n, next })
    }

    /// The whole list, read by one of those who want it; nothing if it is too long, or others may change it.
    async fn kept_tags(&self, repository: &Repository) -> Result<Option<Tags>, Error> {
        self.must_exist(repository).await?;
        if let Some(tags) = self.tag_lists.get(repository) {
            return Ok(Some(tags));
        }
        if self.storage.is_shared() {
            return Ok(None);
        }
        let _reading = self.reading.alone(repository).await;
        if let Some(tags) = self.tag_lists.get(repository) {
            return Ok(Some(tags));
        }
        let reading = self.tag_lists.begin(repository);
        let read = self.storage.list(&keys::tags(repository), None, MAX_KEPT_TAGS + 1).await.map_err(storage_error)?;
        let keep = read.len() <= MAX_KEPT_TAGS;
        let tags = reading.end(Tags::from_sorted(read), keep);
        Ok(keep.then_some(tags))
    }

    /// Every tag of a repository.
    pub(super) async fn all_tags(&self, repository: &Repository) -> Result<Vec<Tag>, Error> {
        let names = self.storage.list(&keys::tags(repository), None, usize::MAX).await.map_err(storage_error)?;
        // Whatever isn't a tag is none of ours.
        Ok(names.iter().filter_map(|name| name.parse().ok()).collect())
    }

    /// The descriptors of the manifests that refer to `subject`, which need not exist, as JSON: those after `last`, as many
    /// as an answer may hold, and the name to go on after if there are more. Their names tell which are wanted, and how long
    /// they are.
    pub async fn referrers(
        &self,
        repository: &Repository,
        subject: &Digest,
        artifact_type: Option<&str>,
        last: Option<&str>,
    ) -> Result<(Vec<Vec<u8>>, Option<String>), Error> {
        let folder = &keys::referrers(repository, subject);
        let wanted = artifact_type.map(|wanted| keys::type_fingerprint(Some(wanted)));
        let (mut page, mut len, mut next) = (Vec::new(), 0, None);
        let mut last = last.map(str::to_owned);
        'list: loop {
            let listed = self.storage.list(folder, last.as_deref(), REFERRERS_PER_LIST).await.map_err(storage_error)?;
            let Some(end) = listed.last().cloned() else { break };
            for name in listed {
                // Whatever isn't a referrer is none of ours.
                let Ok(referrer) = name.parse::<ReferrerName>() else { continue };
                if wanted.as_ref().is_some_and(|wanted| *wanted != referrer.artifact_type) {
                    continue;
                }
                if referrer.len.saturating_add(len) > MAX_REFERRERS_PAGE_BYTES && !page.is_empty() {
                    next = last;
                    break 'list;
                }
                len = referrer.len.saturating_add(len);
                last = Some(name.clone());
                page.push((name, referrer));
            }
            last = Some(end);
        }
        let read = stream::iter(page).map(async |(name, ReferrerName { digest, len, .. })| {
            // A crash may have left the entry of a manifest that was never held.
            if !self.storage.exists(&keys::manifest(repository, &digest)).await? {
                return Ok(None);
            }
            // One that has another length than it had is damaged.
            let entry = self.storage.read(&format!("{folder}/{name}")).await?;
            Ok::<_, std::io::Error>(entry.filter(|bytes| bytes.len() == len))
        });
        let read = read.buffered(REFERRERS_CONCURRENCY).try_filter_map(async |found| Ok(found));
        Ok((read.try_collect().await.map_err(storage_error)?, next))
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
