//! `berth-registry import` and `export`: OCI image layouts in and out.
//!
//! A zot root directory is a tree of layouts, one a repository, so that a registry moves in one command. Bytes are
//! linked or cloned where the file system can, and not read; manifests are read and kept by the rules of a push.
//! <https://github.com/opencontainers/image-spec/blob/v1.1.1/image-layout.md>

mod import;
mod layouts;

use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
};

use berth_oci::{Descriptor, MediaType, Repository};
use serde::{Deserialize, Serialize};
use serde_json::json;

pub use self::import::{Imported, import_bucket, import_folder};
use crate::content::Content;

/// What an index names a manifest's tag with.
const REF_NAME: &str = "org.opencontainers.image.ref.name";

/// Why nothing, or not everything, was transferred.
#[derive(Debug, thiserror::Error)]
pub enum TransferError {
    /// It isn't one of the two.
    #[error(
        "{} is neither an OCI image layout (with index.json and blobs) nor a folder of them, such as zot's root directory",
        .0.display()
    )]
    NoLayout(PathBuf),
    /// A layout lies at the root, so its path names no repository.
    #[error("{} is one layout; say which repository it is with --repository", .0.display())]
    Unnamed(PathBuf),
    /// There is something where the new folder should be.
    #[error("{} exists already; name a folder that doesn't, which will be made", .0.display())]
    Exists(PathBuf),
    /// A file is unreadable or unwritable.
    #[error("{}: {error}", path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        error: io::Error,
    },
    /// A file isn't what the specification says.
    #[error("{}: {error}", path.display())]
    Shape {
        /// Which.
        path: PathBuf,
        /// Why.
        error: serde_json::Error,
    },
    /// A bucket can't be read.
    #[error("the bucket to import from can't be read ({0}); check its name, its address and the credentials")]
    Bucket(io::Error),
    /// There is no layout in it.
    #[error("there is no OCI image layout in that bucket, below its rootdirectory")]
    EmptyBucket,
    /// The store refused.
    #[error(transparent)]
    Store(#[from] berth_oci::Error),
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Index {
    schema_version: u32,
    manifests: Vec<Descriptor>,
}

/// A layout below a root directory that no registry of ours has written to: the store of zot. It is looked for among a
/// thousand folders at most.
pub fn zot_store(root: &Path) -> Option<PathBuf> {
    if root.join("repositories").is_dir() {
        return None;
    }
    let (mut folders, mut looked_at) = (vec![root.to_owned()], 0);
    while let Some(folder) = folders.pop().filter(|_| looked_at < 1000) {
        looked_at += 1;
        if folder.join("index.json").is_file() && folder.join("oci-layout").is_file() {
            return Some(folder);
        }
        let entries = fs::read_dir(&folder).into_iter().flatten().flatten();
        let below = entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
        folders.extend(below.take(1000).map(|entry| entry.path()));
    }
    None
}

/// Writes a repository as an OCI image layout into the new folder `folder`; how many manifests it has.
///
/// # Errors
/// [`TransferError`] if there is no such repository, or the folder can't be written.
pub async fn export(content: &Content, repository: &Repository, folder: &Path) -> Result<usize, TransferError> {
    let failed = |path: &Path| {
        let path = path.to_owned();
        move |error| TransferError::File { path, error }
    };
    let held = content.held(repository).await?;
    match fs::create_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            return Err(TransferError::Exists(folder.to_owned()));
        }
        made => made.map_err(failed(folder))?,
    }
    let blobs = held.blobs.iter().chain(held.manifests.iter().map(|manifest| &manifest.digest));
    for digest in blobs {
        let parent = folder.join("blobs").join(digest.algorithm().as_str());
        fs::create_dir_all(&parent).map_err(failed(&parent))?;
        content.copy_blob(digest, parent.join(digest.hex())).await?;
    }
    let mut manifests = Vec::new();
    for descriptor in &held.manifests {
        let tags = held.tags.iter().filter(|(_, digest)| *digest == descriptor.digest);
        let tagged = tags.map(|(tag, _)| {
            let annotations = BTreeMap::from([(REF_NAME.to_owned(), tag.to_string())]);
            Descriptor { annotations, ..descriptor.clone() }
        });
        let tagged: Vec<_> = tagged.collect();
        if tagged.is_empty() { manifests.push(descriptor.clone()) } else { manifests.extend(tagged) }
    }
    let count = held.manifests.len();
    let index = json!({"schemaVersion": 2, "mediaType": MediaType::OciIndex.as_str(), "manifests": manifests});
    for (name, document) in [("oci-layout", json!({"imageLayoutVersion": "1.0.0"})), ("index.json", index)] {
        let path = folder.join(name);
        fs::write(&path, document.to_string()).map_err(failed(&path))?;
    }
    Ok(count)
}
