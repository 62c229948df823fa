//! `berth-registry scrub`: reads every blob, and reports those whose bytes don't have their digest, with the images that
//! they are part of.

use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    io,
    time::Duration,
};

use berth_oci::{Digest, Manifest, Page, Repository};
use futures_util::TryStreamExt;

use crate::{
    content::{Content, Stored},
    progress_bar::Progress,
    storage::{Blob, Hasher, Storage, StoredBlob, keys},
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

/// Reads every blob, also while a registry is using the storage.
///
/// # Errors
/// If they can't be listed. A blob that can't be read is damaged.
pub async fn scrub(storage: &dyn Storage, content: &Content) -> io::Result<Scrubbed> {
    let mut blobs = Vec::new();
    for shard in storage.shards().await? {
        blobs.extend(storage.blobs_in(&shard, Duration::ZERO).await?);
    }
    let progress = Progress::new("scrubbing", blobs.iter().map(|blob| blob.len).sum());
    let mut scrubbed = Scrubbed::default();
    for StoredBlob { digest, .. } in blobs {
        let read = match storage.blob(&digest).await {
            Ok(Some(blob)) => read(blob, &digest, &progress).await,
            Ok(None) => continue, // Collected since it was listed.
            Err(error) => Err(error),
        };
        let how = match read {
            Ok(actual) if actual == digest => None,
            Ok(actual) => Some(format!("its bytes have the digest {actual}")),
            Err(error) => Some(format!("it can't be read: {error}")),
        };
        scrubbed.damaged.extend(how.map(|how| Damaged { digest, how, images: BTreeSet::new() }));
        scrubbed.blobs += 1;
    }
    progress.finish();
    if !scrubbed.damaged.is_empty() {
        name_images(content, &mut scrubbed.damaged).await.map_err(io::Error::other)?;
    }
    Ok(scrubbed)
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

/// Finds out what is damaged with these blobs.
async fn name_images(content: &Content, damaged: &mut [Damaged]) -> Result<(), berth_oci::Error> {
    let mut page = Page::default();
    loop {
        let list = content.repositories(&page).await?;
        for name in &list.entries {
            // What else is wrong there doesn't keep the others from being named.
            if let Ok(repository) = name.parse()
                && let Err(error) = name_images_of(content, &repository, damaged).await
            {
                eprintln!("{repository}: what is damaged there can't be named: {error}");
            }
        }
        match list.next {
            Some(next) => page = next,
            None => return Ok(()),
        }
    }
}

async fn name_images_of(
    content: &Content,
    repository: &Repository,
    damaged: &mut [Damaged],
) -> Result<(), berth_oci::Error> {
    let held = content.held(repository).await?;
    // What each manifest is made of: its blobs, and the manifests of an index.
    let mut parts: BTreeMap<Digest, Vec<Digest>> = BTreeMap::new();
    for descriptor in &held.manifests {
        let (digest, media_type) = (descriptor.digest.clone(), descriptor.media_type.clone());
        let bytes = content.manifest_bytes(&Stored { digest: digest.clone(), media_type: media_type.clone() }).await;
        let parsed = bytes.ok().and_then(|bytes| Manifest::parse(Some(&media_type), &bytes).ok());
        let named = parsed.iter().flat_map(|manifest| manifest.blobs.iter().chain(&manifest.manifests));
        parts.insert(digest, named.map(|part| part.digest.clone()).collect());
    }
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
        let tags = held.tags.iter().filter(|(_, digest)| affected.contains(digest));
        let mut images: BTreeSet<String> = tags.map(|(tag, _)| format!("{repository}:{tag}")).collect();
        if images.is_empty() {
            let manifests = parts.keys().filter(|manifest| affected.contains(manifest));
            images.extend(manifests.map(|manifest| format!("{repository}@{manifest}")));
        }
        if images.is_empty() && held.blobs.contains(&damage.digest) {
            images.insert(repository.to_string());
        }
        damage.images.extend(images);
    }
    Ok(())
}
