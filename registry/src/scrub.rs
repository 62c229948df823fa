//! `berth-registry scrub`: reads every blob, and reports those whose bytes don't have their digest.

use std::{io, time::Duration};

use berth_oci::Digest;
use futures_util::TryStreamExt;

use crate::{
    progress_bar::Progress,
    storage::{Blob, Hasher, Storage, StoredBlob, keys},
};

/// What was read.
#[derive(Debug, Default)]
pub struct Scrubbed {
    /// How many blobs.
    pub blobs: u64,
    /// The keys of those that are damaged, and how.
    pub damaged: Vec<(String, String)>,
}

/// Reads every blob, also while a registry is using the storage.
///
/// # Errors
/// If they can't be listed. A blob that can't be read is damaged.
pub async fn scrub(storage: &dyn Storage) -> io::Result<Scrubbed> {
    let mut blobs = Vec::new();
    for shard in storage.shards().await? {
        blobs.extend(storage.blobs_in(&shard, Duration::ZERO).await?);
    }
    let progress = Progress::new("scrubbing", blobs.iter().map(|blob| blob.len).sum());
    let mut scrubbed = Scrubbed::default();
    for StoredBlob { digest, .. } in blobs {
        let key = keys::blob(&digest);
        let read = match storage.blob(&digest).await {
            Ok(Some(blob)) => read(blob, &digest, &progress).await,
            Ok(None) => continue, // Collected since it was listed.
            Err(error) => Err(error),
        };
        match read {
            Ok(actual) if actual == digest => {}
            Ok(actual) => scrubbed.damaged.push((key, format!("its bytes have the digest {actual}"))),
            Err(error) => scrubbed.damaged.push((key, format!("it can't be read: {error}"))),
        }
        scrubbed.blobs += 1;
    }
    progress.finish();
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
