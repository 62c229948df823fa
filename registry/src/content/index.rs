//! What names what, in both directions: which tags were pushed for a manifest, and which manifests name a blob or another
//! manifest. So nobody reads a whole repository to take something away.
//!
//! An entry is an empty file, written before what it tells of, and never taken for true by itself: the tag may have moved, and
//! the manifest may be gone. What a crash leaves, a collection removes.

use std::{collections::HashSet, io, time::Duration};

use berth_oci::{Digest, Error, ErrorCode, Manifest, Repository, Tag};
use http::StatusCode;
use serde::{Deserialize, Serialize};

use super::{Content, storage_error};
use crate::storage::{
    Condition,
    keys::{self, ReferrerName},
};

/// The layout of the store that has all entries.
const LAYOUT_VERSION: u32 = 2;

/// How many entries are listed, and written, at once.
const ENTRIES_AT_ONCE: usize = 10_000;

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
    let parts: HashSet<&Digest> = manifest.parts().map(|part| &part.digest).collect();
    let named = parts.into_iter().map(|part| keys::named_by(repository, part, digest));
    named.chain(tags.iter().map(|tag| keys::tagged_by(repository, digest, tag))).collect()
}

impl Content {
    /// At most `limit` tags that were pushed for a manifest.
    pub(super) async fn tags_of(
        &self,
        repository: &Repository,
        digest: &Digest,
        limit: usize,
    ) -> Result<Vec<Tag>, Error> {
        let (folder, prefix) = (keys::tagged(repository, digest), keys::prefix_of(digest));
        let mut tags = Vec::new();
        let mut last = prefix.clone();
        loop {
            let names = self.storage.list(&folder, Some(&last), ENTRIES_AT_ONCE).await.map_err(storage_error)?;
            for name in &names {
                let Some(tag) = name.strip_prefix(&prefix) else { return Ok(tags) };
                let Ok(tag) = tag.parse() else { continue };
                // In a bucket an entry outlives what it tells of.
                if self.tag(repository, &tag).await?.as_ref() == Some(digest) || !self.storage.is_shared() {
                    tags.push(tag);
                }
                if tags.len() >= limit {
                    return Ok(tags);
                }
            }
            match names.into_iter().last() {
                Some(name) => last = name,
                None => return Ok(tags),
            }
        }
    }

    /// Nothing, or the error that a manifest of the repository names this.
    pub(super) async fn must_be_unnamed(&self, repository: &Repository, part: &Digest) -> Result<(), Error> {
        let (folder, prefix) = (keys::named(repository, part), keys::prefix_of(part));
        let mut last = prefix.clone();
        loop {
            let names = self.storage.list(&folder, Some(&last), ENTRIES_AT_ONCE).await.map_err(storage_error)?;
            for name in &names {
                let Some(manifest) = name.strip_prefix(&prefix) else { return Ok(()) };
                let Ok(manifest) = manifest.replacen('-', ":", 1).parse::<Digest>() else { continue };
                if self.storage.exists(&keys::manifest(repository, &manifest)).await.map_err(storage_error)? {
                    let message = format!("the manifest {manifest} of {repository} names {part}; delete that first");
                    return Err(Error::new(StatusCode::METHOD_NOT_ALLOWED, ErrorCode::Denied, message));
                }
            }
            match names.into_iter().last() {
                Some(name) => last = name,
                None => return Ok(()),
            }
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
        let mut keys = Vec::new();
        if let Some(subject) = &manifest.subject {
            let (name, _) = referrer_entry(manifest, digest, len).map_err(storage_error)?;
            keys.push(keys::referrer(repository, subject, &name));
        }
        if !self.storage.is_shared() {
            keys.extend(entries(repository, digest, manifest, &[]));
        }
        self.storage.remove_all(keys).await.map_err(storage_error)
    }

    /// Removes old entries that tell of manifests that aren't held; `held` are the beginnings of those that are.
    pub(super) async fn collect_entries(
        &self,
        repository: &Repository,
        held: &HashSet<String>,
        age: Duration,
    ) -> io::Result<()> {
        for folder in keys::index_folders(repository) {
            let is_tagged = folder.contains(keys::TAGGED);
            for name in self.storage.older_in(&folder, age).await? {
                // By how each of the two calls the manifest.
                let manifest = if is_tagged { name.split('-').next() } else { name.rsplit('-').next() };
                let beginning = manifest.unwrap_or_default().get(..keys::PREFIX_DIGITS);
                if beginning.is_none_or(|beginning| held.contains(beginning)) {
                    continue;
                }
                // No push is between its entries and its manifest.
                let _alone = self.repositories.alone(repository).await;
                let manifests = self.digests_in(&keys::manifests(repository), Duration::ZERO).await?;
                if !manifests.iter().any(|digest| Some(&digest.hex()[..keys::PREFIX_DIGITS]) == beginning) {
                    self.storage.delete_if_unprotected(&format!("{folder}/{name}"), age).await?;
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
                self.upgrade_repository(&repository).await?;
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
            let Some(media_type) = self.storage.read(&keys::manifest(repository, &digest)).await? else { continue };
            let bytes = self.storage.read(&keys::blob(&digest)).await?.unwrap_or_default();
            // What can't be read names nothing that could be known.
            let Ok(manifest) = Manifest::parse(Some(&String::from_utf8_lossy(&media_type)), &bytes) else { continue };
            marks.extend(entries(repository, &digest, &manifest, &[]));
            if let Some(subject) = &manifest.subject {
                let (name, descriptor) = referrer_entry(&manifest, &digest, bytes.len())?;
                self.storage.write(&keys::referrer(repository, subject, &name), descriptor, Condition::None).await?;
                let old = format!("{}/{}-{}", keys::referrers(repository, subject), digest.algorithm(), digest.hex());
                self.storage.remove(&old).await?;
            }
            self.mark_if_many(&mut marks).await?;
        }
        let folder = keys::tags(repository);
        for tag in self.storage.list(&folder, None, usize::MAX).await?.iter().filter_map(|name| name.parse().ok()) {
            if let Ok(Some(digest)) = self.tag(repository, &tag).await {
                marks.push(keys::tagged_by(repository, &digest, &tag));
            }
            self.mark_if_many(&mut marks).await?;
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
