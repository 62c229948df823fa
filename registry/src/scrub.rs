//! `berth-registry scrub`: reads every blob, and reports those whose bytes don't have their digest, and those that are missing,
//! with the images that they are part of.

use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    io,
    time::Duration,
};

use berth_oci::{Digest, Manifest, Repository};
use futures_util::TryStreamExt;

use crate::{
    content::digests_in,
    progress_bar::Progress,
    storage::{Blob, Hasher, Storage, StoredBlob, first_line, keys},
};

/// How many images are named of one damaged blob.
const MAX_IMAGES_NAMED: usize = 20;

/// What was read.
#[derive(Debug, Default)]
pub struct Scrubbed {
    /// How many blobs.
    pub blobs: u64,
    /// Those that are damaged.
    pub damaged: Vec<Damaged>,
}

/// A blob that is damaged.
#[derive(Debug)]
pub struct Damaged {
    /// Its digest.
    pub digest: Digest,
    /// How.
    pub how: String,
    /// The images that it is part of: by tag, or by digest if they have none; by their repository alone, if it holds the blob
    /// and no manifest of it names it.
    pub images: BTreeSet<String>,
}

impl std::fmt::Display for Damaged {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {}; ", keys::blob(&self.digest), self.how)?;
        if self.images.is_empty() {
            return f.write_str("no repository holds it");
        }
        let named: Vec<&str> = self.images.iter().take(MAX_IMAGES_NAMED).map(String::as_str).collect();
        write!(f, "in {}", named.join(", "))?;
        match self.images.len() - named.len() {
            0 => Ok(()),
            more => write!(f, " and {more} more"),
        }
    }
}

/// Reads every blob, and looks whether what repositories hold is there, also while a registry is using the storage.
///
/// # Errors
/// If they can't be listed. A blob that can't be read is damaged.
pub async fn scrub(storage: &dyn Storage) -> io::Result<Scrubbed> {
    let mut blobs = Vec::new();
    for shard in storage.shards().await? {
        blobs.extend(storage.blobs_in(&shard, Duration::ZERO).await?);
    }
    let progress = Progress::new("scrubbing", blobs.iter().map(|blob| blob.len).sum());
    let (mut damaged, mut count) = (BTreeMap::new(), 0);
    for StoredBlob { digest, .. } in blobs {
        let read = match storage.blob(&digest).await {
            Ok(Some(blob)) => read(blob, &digest, &progress).await,
            Ok(None) => continue, // Collected since it was listed.
            Err(error) => Err(error),
        };
        count += 1;
        match read {
            Ok(actual) if actual == digest => {}
            Ok(actual) => drop(damaged.insert(digest, format!("its bytes have the digest {actual}"))),
            Err(error) => drop(damaged.insert(digest, format!("it can't be read: {error}"))),
        }
    }
    progress.finish();
    let mut repositories = Vec::new();
    while let more @ [.., _] = &*list(storage, repositories.last()).await? {
        repositories.extend_from_slice(more);
    }
    for repository in &repositories {
        for digest in held(storage, repository).await? {
            if !damaged.contains_key(&digest) && storage.blob_len(&digest).await?.is_none() {
                damaged.insert(digest, "its bytes are missing".to_owned());
            }
        }
    }
    let damaged = damaged.into_iter().map(|(digest, how)| Damaged { digest, how, images: BTreeSet::new() });
    let mut scrubbed = Scrubbed { blobs: count, damaged: damaged.collect() };
    if !scrubbed.damaged.is_empty() {
        for repository in &repositories {
            name_images(storage, repository, &mut scrubbed.damaged).await?;
        }
    }
    Ok(scrubbed)
}

/// The next repositories after `last`.
async fn list(storage: &dyn Storage, last: Option<&Repository>) -> io::Result<Vec<Repository>> {
    let last = last.map(Repository::as_str);
    let names = storage.repositories(&[keys::MANIFESTS, keys::BLOBS], last, 1000).await?;
    // Whatever isn't a name is none of ours.
    Ok(names.iter().filter_map(|name| name.parse().ok()).collect())
}

/// Everything that a repository holds: manifests, and other blobs.
async fn held(storage: &dyn Storage, repository: &Repository) -> io::Result<Vec<Digest>> {
    let mut held = digests_in(storage, &keys::manifests(repository), Duration::ZERO).await?;
    held.extend(digests_in(storage, &keys::held_blobs(repository), Duration::ZERO).await?);
    Ok(held)
}

async fn read(blob: Box<dyn Blob>, digest: &Digest, progress: &Progress) -> io::Result<Digest> {
    let len = blob.len();
    let mut bytes = blob.read(0..len);
    let mut hasher = Hasher::new(digest.algorithm());
    while let Some(piece) = bytes.try_next().await? {
        hasher.update(&piece);
        progress.advance(piece.len() as u64);
    }
    hasher.finish().map_err(io::Error::other)
}

/// Finds out what of a repository is damaged with these blobs.
async fn name_images(storage: &dyn Storage, repository: &Repository, damaged: &mut [Damaged]) -> io::Result<()> {
    // What each manifest is made of: its blobs, and the manifests of an index. Of one that can't be read nothing is known.
    let mut parts: BTreeMap<Digest, Vec<Digest>> = BTreeMap::new();
    for digest in digests_in(storage, &keys::manifests(repository), Duration::ZERO).await? {
        let media_type = storage.read(&keys::manifest(repository, &digest)).await?.unwrap_or_default();
        let bytes = storage.read(&keys::blob(&digest)).await.ok().flatten().unwrap_or_default();
        let parsed = Manifest::parse_stored(&String::from_utf8_lossy(&media_type), &bytes).ok();
        let named = parsed.iter().flat_map(|manifest| manifest.blobs.iter().chain(&manifest.manifests));
        parts.insert(digest, named.map(|part| part.digest.clone()).collect());
    }
    let mut tags: Vec<(String, Digest)> = Vec::new();
    let folder = keys::tags(repository);
    for tag in storage.list(&folder, None, usize::MAX).await? {
        let bytes = storage.read(&format!("{folder}/{tag}")).await.ok().flatten();
        let digest = bytes.and_then(|bytes| std::str::from_utf8(first_line(&bytes)).ok()?.parse().ok());
        tags.extend(digest.map(|digest| (tag, digest)));
    }
    let blobs: HashSet<Digest> = held(storage, repository).await?.into_iter().collect();
    for damage in damaged {
        // A manifest is damaged as soon as a part of it is, an index too.
        let mut affected = HashSet::from([damage.digest.clone()]);
        loop {
            let hit = |(manifest, parts): &(&Digest, &Vec<Digest>)| {
                !affected.contains(*manifest) && parts.iter().any(|part| affected.contains(part))
            };
            let more: Vec<Digest> = parts.iter().filter(hit).map(|(manifest, _)| manifest.clone()).collect();
            if more.is_empty() {
                break;
            }
            affected.extend(more);
        }
        let tags = tags.iter().filter(|(_, digest)| affected.contains(digest));
        let mut images: BTreeSet<String> = tags.map(|(tag, _)| format!("{repository}:{tag}")).collect();
        if images.is_empty() {
            let manifests = parts.keys().filter(|manifest| affected.contains(manifest));
            images.extend(manifests.map(|manifest| format!("{repository}@{manifest}")));
        }
        if images.is_empty() && blobs.contains(&damage.digest) {
            images.insert(repository.to_string());
        }
        damage.images.extend(images);
    }
    Ok(())
}
