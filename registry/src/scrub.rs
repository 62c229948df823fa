//! `berth-registry scrub`: reads every blob, and reports those whose bytes don't have their digest.

use std::{
    fs::File,
    io::{self, Read},
    path::Path,
    time::Duration,
};

use berth_oci::Digest;

use crate::{
    progress::Progress,
    storage::{Directory, Hasher, keys},
};

/// How much is read at once.
const READ_AT_ONCE: usize = 1024 * 1024;

/// What was read.
#[derive(Debug, Default)]
pub struct Scrubbed {
    /// How many blobs.
    pub blobs: u64,
    /// The keys of those that are damaged, and how.
    pub damaged: Vec<(String, String)>,
}

/// Reads every blob below `root`, also while a registry is using it.
///
/// # Errors
/// If the folders can't be listed. A blob that can't be read is damaged.
pub async fn scrub(root: &Path) -> io::Result<Scrubbed> {
    let storage = Directory::open_to_read(root);
    let mut blobs = Vec::new();
    for shelf in storage.shelves().await? {
        blobs.extend(storage.blobs_on(&shelf, Duration::ZERO).await?);
    }
    let progress = Progress::new("scrubbing", blobs.iter().map(|(_, len)| len).sum());
    let mut scrubbed = Scrubbed::default();
    for (digest, _) in blobs {
        let key = keys::blob(&digest);
        match read(&root.join(&key), &digest, &progress) {
            Ok(actual) if actual == digest => {}
            Ok(actual) => scrubbed.damaged.push((key, format!("its bytes have the digest {actual}"))),
            // Collected since it was listed.
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => scrubbed.damaged.push((key, format!("it can't be read: {error}"))),
        }
        scrubbed.blobs += 1;
    }
    progress.finish();
    Ok(scrubbed)
}

fn read(path: &Path, digest: &Digest, progress: &Progress) -> io::Result<Digest> {
    let mut file = File::open(path)?;
    let mut hasher = Hasher::new(digest.algorithm());
    let mut buffer = vec![0; READ_AT_ONCE];
    loop {
        let read = file.read(&mut buffer)?;
        if read == 0 {
            return hasher.finish().map_err(io::Error::other);
        }
        hasher.update(&buffer[..read]);
        progress.advance(read as u64);
    }
}
