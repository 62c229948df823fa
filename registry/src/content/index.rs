//! What names what, in both directions: which tags were pushed for a manifest, and which manifests name a blob or another
//! manifest. So nobody reads a whole repository to take something away.
//!
//! An entry is an empty file, written before what it tells of, and never taken for true by itself: the tag may have moved, and
//! the manifest may be gone. What a crash leaves, a collection removes.

use std::{collections::HashSet, io, time::Duration};

use berth_oci::{Digest, Error, ErrorCode, Manifest, Repository, Tag};
use futures_util::{StreamExt, TryStreamExt, stream};
use http::StatusCode;
use serde::{Deserialize, Serialize};

use super::{Content, manifests::CHECK_CONCURRENCY, storage_error};
use crate::storage::{
    Condition,
    keys::{self, ReferrerName},
};

/// The layout of the store that has all entries.
const LAYOUT_VERSION: u32 = 2;

/// How many entries are listed, and written, at once.
const ENTRIES_AT_ONCE: usize = 10_000;

/// As many as a bucket lists in one request.
const ENTRIES_PER_LISTING: usize = 1000;

/// How many stale entries are removed while the repository is locked.
const STALE_PER_LOCK: usize = 256;

/// How long a push may take from its entries to its manifest.
const PUSH_TIME: Duration = Duration::from_mins(2);

#[derive(Serialize, Deserialize)]
struct Layout {
    version: u32,
}

/// The name of a referrer's descriptor, and the descriptor itself, ready to serve.
pub fn referrer_entry(manifest: &Manifest, digest: &Digest, len: usize) -> io::Result<(ReferrerName, Vec<u8>)> {
    let descriptor = serde_json::to_vec(&manifest.descriptor(digest.clone(), len as u64))?;
    let artifact_type = keys::type_fingerprint(manifest.artifact_type.as_deref());
    Ok((ReferrerName { digest: digest.clone(), artifact_type, len: descriptor.len() }, descriptor))
}

/// The entries of a manifest and its tags.
pub fn entries(repository: &Repository, digest: &Digest, manifest: &Manifest, tags: &[Tag]) -> Vec<String> {
    let parts: HashSet<&Digest> =
        manifest.required_blobs().chain(&manifest.manifests).map(|part| &part.digest).collect();
    let named = parts.into_iter().map(|part| keys::named_by(repository, part, digest));
    named.chain(tags.iter().map(|tag| keys::tagged_by(repository, digest, tag))).collect()
}

/// Whether an entry tells of one of the manifests whose beginnings are `held`, by how each of the two kinds calls it.
fn tells_of(name: &str, is_tagged: bool, held: &HashSet<String>) -> bool {
    let manifest = if is_tagged { name.split('-').next() } else { name.rsplit('-').next() };
    // What has another name is none of ours.
    manifest.and_then(|hex| hex.get(..keys::PREFIX_DIGITS)).is_none_or(|beginning| held.contains(beginning))
}

fn is_named(repository: &Repository, part: &Digest, manifest: &str) -> Error {
    let message = format!("the manifest {manifest} of {repository} names {part}; delete that first");
    Error::new(StatusCode::METHOD_NOT_ALLOWED, ErrorCode::Denied, message)
}

impl Content {
    /// The tags that were pushed for a manifest, a page of them after `last`, and where the next page begins.
    pub(super) async fn tags_of(
        &self,
        repository: &Repository,
        digest: &Digest,
        last: Option<String>,
    ) -> Result<(Vec<Tag>, Option<String>), Error> {
        let (folder, prefix) = (keys::tagged(repository, digest), keys::prefix_of(digest));
        let last = last.unwrap_or_else(|| prefix.clone());
        let names = self.storage.list(&folder, Some(&last), self.entries_at_once()).await.map_err(storage_error)?;
        let ours: Vec<&str> = names.iter().map_while(|name| name.strip_prefix(&prefix)).collect();
        let next = names.last().filter(|_| ours.len() == names.len()).cloned();
        let tags: Vec<Tag> = ours.iter().filter_map(|tag| tag.parse().ok()).collect();
        if !self.storage.is_shared() {
            return Ok((tags, next));
        }
        // There an entry outlives what it tells of.
        let asked = stream::iter(tags).map(async |tag| {
            let points_here = self.tag(repository, &tag).await?.as_ref() == Some(digest);
            Ok::<_, Error>(points_here.then_some(tag))
        });
        let tags = asked.buffered(CHECK_CONCURRENCY).try_filter_map(async |tag| Ok(tag)).try_collect().await?;
        Ok((tags, next))
    }

    fn entries_at_once(&self) -> usize {
        if self.storage.is_shared() { ENTRIES_PER_LISTING } else { ENTRIES_AT_ONCE }
    }

    /// Nothing, or the error that a manifest of the repository names this.
    pub(super) async fn must_be_unnamed(&self, repository: &Repository, part: &Digest) -> Result<(), Error> {
        let (folder, prefix) = (keys::named(repository, part), keys::prefix_of(part));
        let mut last = prefix.clone();
        loop {
            let names = self.storage.list(&folder, Some(&last), self.entries_at_once()).await.map_err(storage_error)?;
            for name in &names {
                let Some(manifest) = name.strip_prefix(&prefix) else { return Ok(()) };
                let Ok(manifest) = manifest.replacen('-', ":", 1).parse::<Digest>() else { continue };
                if self.storage.exists(&keys::manifest(repository, &manifest)).await.map_err(storage_error)? {
                    return Err(is_named(repository, part, &manifest.to_string()));
                }
            }
            match names.into_iter().last() {
                Some(name) => last = name,
                None => return Ok(()),
            }
        }
    }

    /// The same where other processes push: also of a manifest that is being pushed now, whose entries come first.
    pub(super) async fn must_not_be_wanted(&self, repository: &Repository, part: &Digest) -> Result<(), Error> {
        self.must_be_unnamed(repository, part).await?;
        let (folder, prefix) = (keys::named(repository, part), keys::prefix_of(part));
        let all = self.storage.older_in(&folder, Duration::ZERO).await.map_err(storage_error)?;
        let old = self.storage.older_in(&folder, PUSH_TIME).await.map_err(storage_error)?;
        let old: HashSet<String> = old.into_iter().collect();
        match all.iter().find(|name| name.starts_with(&prefix) && !old.contains(*name)) {
            None => Ok(()),
            Some(_) => Err(is_named(repository, part, "that is being pushed")),
        }
    }

    /// Removes the entries of a manifest that was deleted.
    pub(super) async fn forget_names(
        &self,
        repository: &Repository,
        digest: &Digest,
        manifest: &Manifest,
        len: usize,
    ) -> Result<(), Error> {
        // Another registry may be pushing it again; what lists entries looks whether the manifest is there.
        if self.storage.is_shared() {
            return Ok(());
        }
        let mut keys = entries(repository, digest, manifest, &[]);
        if let Some(subject) = &manifest.subject {
            let (name, _) = referrer_entry(manifest, digest, len).map_err(storage_error)?;
            keys.push(keys::referrer(repository, subject, &name));
        }
        self.storage.remove_all(keys).await.map_err(storage_error)?;
        if let Some(subject) = &manifest.subject {
            self.storage.prune(&keys::referrers(repository, subject)).await.map_err(storage_error)?;
        }
        Ok(())
    }

    /// Removes old entries that tell of manifests that aren't held; `held` are the beginnings of those that are.
    pub(super) async fn collect_entries(
        &self,
        repository: &Repository,
        held: &HashSet<String>,
        age: Duration,
    ) -> io::Result<()> {
        let roots = [keys::TAGGED, keys::NAMED].map(|root| format!("{}/{repository}/{root}", keys::REPOSITORIES));
        for (i, root) in roots.iter().enumerate() {
            let is_tagged = i == 0;
            // A bucket lists all that is below at once.
            let folders = if self.storage.is_shared() { vec![root.clone()] } else { keys::shards_of(root) };
            for folder in folders {
                if self.is_stopping() {
                    return Ok(());
                }
                let names = self.storage.older_in(&folder, age).await?;
                let stale: Vec<&String> = names.iter().filter(|name| !tells_of(name, is_tagged, held)).collect();
                for stale in stale.chunks(STALE_PER_LOCK) {
                    // No push is between its entries and its manifest.
                    let _alone = self.repositories.alone(repository).await;
                    let manifests = self.digests_in(&keys::manifests(repository), Duration::ZERO).await?;
                    let held = manifests.iter().map(|digest| digest.hex()[..keys::PREFIX_DIGITS].to_owned()).collect();
                    for name in stale.iter().filter(|name| !tells_of(name, is_tagged, &held)) {
                        let key = keys::entry(root, name);
                        self.storage.delete_if_unprotected(&key, age).await?;
                    }
                }
            }
        }
        if self.storage.is_shared() {
            let tags = keys::tags(repository);
            for tag in self.storage.tombstones_in(&tags, age).await? {
                self.storage.delete_if_unprotected(&format!("{tags}/{tag}"), age).await?;
            }
        }
        Ok(())
    }

    /// Writes the entries of a store that was begun before there were any, once; to be called before anything is pushed.
    ///
    /// # Errors
    /// If the store can't be read or written. It can be called again.
    pub async fn upgrade(&self) -> io::Result<()> {
        let layout = self.storage.read(keys::LAYOUT).await?;
        let layout = layout.map(|bytes| serde_json::from_slice::<Layout>(&bytes)).transpose()?;
        match layout {
            Some(Layout { version: LAYOUT_VERSION }) => return Ok(()),
            Some(Layout { version }) => {
                let text =
                    format!("the store has the layout {version}, which this version doesn't know; use a newer one");
                return Err(io::Error::other(text));
            }
            None => {}
        }
        let (mut last, mut count): (Option<String>, u64) = (None, 0);
        loop {
            let names = self.storage.repositories(&[keys::MANIFESTS], last.as_deref(), ENTRIES_AT_ONCE).await?;
            for repository in names.iter().filter_map(|name| name.parse().ok()) {
                match self.upgrade_repository(&repository).await {
                    // What a bucket doesn't tell now it may tell later.
                    Err(error) if error.kind() == io::ErrorKind::NotConnected => return Err(error),
                    Err(error) => tracing::error!(%repository, %error, "this repository can't be read as a whole"),
                    Ok(()) => {}
                }
                count += 1;
            }
            match names.into_iter().last() {
                Some(name) => last = Some(name),
                None => break,
            }
        }
        if count > 0 {
            tracing::info!(repositories = count, "the store of an earlier version was brought up to date");
        }
        let layout = serde_json::to_vec(&Layout { version: LAYOUT_VERSION })?;
        self.storage.write(keys::LAYOUT, layout, Condition::None).await.map(drop)
    }

    async fn upgrade_repository(&self, repository: &Repository) -> io::Result<()> {
        let mut marks = Vec::new();
        for digest in self.digests_in(&keys::manifests(repository), Duration::ZERO).await? {
            let (manifest, len) = match self.read_manifest(repository, &digest).await {
                Ok(Some(read)) => read,
                Ok(None) => continue,
                Err(error) if self.storage.is_shared() && error.kind() == io::ErrorKind::NotConnected => {
                    return Err(error);
                }
                Err(error) => {
                    tracing::error!(%repository, %digest, %error, "a manifest can't be read; what it names isn't known");
                    continue;
                }
            };
            marks.extend(entries(repository, &digest, &manifest, &[]));
            if let Some(subject) = &manifest.subject {
                let (name, descriptor) = referrer_entry(&manifest, &digest, len)?;
                self.storage.write(&keys::referrer(repository, subject, &name), descriptor, Condition::None).await?;
                let old = format!("{}/{}-{}", keys::referrers(repository, subject), digest.algorithm(), digest.hex());
                self.storage.remove(&old).await?;
            }
            self.mark_if_many(&mut marks).await?;
        }
        let folder = keys::tags(repository);
        let mut last: Option<String> = None;
        loop {
            let names = self.storage.list(&folder, last.as_deref(), ENTRIES_AT_ONCE).await?;
            let tags: Vec<Tag> = names.iter().filter_map(|name| name.parse().ok()).collect();
            let read = stream::iter(tags).map(async |tag| (self.tag(repository, &tag).await, tag));
            let read: Vec<_> = read.buffered(CHECK_CONCURRENCY).collect().await;
            for (target, tag) in read {
                if let Ok(Some(digest)) = target {
                    marks.push(keys::tagged_by(repository, &digest, &tag));
                }
            }
            self.mark_if_many(&mut marks).await?;
            match names.into_iter().last() {
                Some(name) => last = Some(name),
                None => break,
            }
        }
        self.storage.mark(marks).await
    }

    async fn mark_if_many(&self, marks: &mut Vec<String>) -> io::Result<()> {
        if marks.len() >= ENTRIES_AT_ONCE {
            self.storage.mark(std::mem::take(marks)).await?;
        }
        Ok(())
    }
}
