//! Where images come from: OCI image layouts in folders, or in a bucket.
//! <https://github.com/opencontainers/image-spec/blob/v1.1.1/image-layout.md>

use std::{
    collections::HashMap,
    fs, io,
    path::{Path, PathBuf},
};

use async_trait::async_trait;
use berth_oci::{Digest, Error, Repository};

use super::TransferError;
use crate::{
    content::Content,
    storage::{Blob, Objects},
};

/// One layout.
#[async_trait]
pub trait Layout: Send + Sync {
    /// Its `index.json`, and where that is.
    async fn index(&self) -> (String, io::Result<Vec<u8>>);

    /// The blobs that it has, with their lengths.
    fn blobs(&self) -> Vec<(Digest, u64)>;

    /// The bytes of a small blob.
    async fn read(&self, digest: &Digest) -> io::Result<Vec<u8>>;

    /// Lets `repository` hold one of its blobs.
    async fn give(&self, content: &Content, repository: &Repository, digest: &Digest) -> Result<(), Error>;
}

/// A layout in a folder.
pub struct FolderLayout {
    folder: PathBuf,
    files: HashMap<Digest, (PathBuf, u64)>,
    /// Bytes are copied, and never linked.
    copy: bool,
}

impl FolderLayout {
    /// The layout at `folder`, which brings in nothing from outside of `inside`.
    ///
    /// # Errors
    /// If it can't be listed. What can't be taken of it is left out.
    pub fn open(folder: PathBuf, inside: &Path, copy: bool, left_out: &mut Vec<String>) -> Result<Self, TransferError> {
        let files = blob_files(&folder, inside, left_out)?;
        Ok(Self { folder, files: files.into_iter().map(|(digest, path, len)| (digest, (path, len))).collect(), copy })
    }

    fn path(&self, digest: &Digest) -> PathBuf {
        self.folder.join("blobs").join(digest.algorithm().as_str()).join(digest.hex())
    }
}

#[async_trait]
impl Layout for FolderLayout {
    async fn index(&self) -> (String, io::Result<Vec<u8>>) {
        let path = self.folder.join("index.json");
        (path.display().to_string(), fs::read(path))
    }

    fn blobs(&self) -> Vec<(Digest, u64)> {
        self.files.iter().map(|(digest, (_, len))| (digest.clone(), *len)).collect()
    }

    async fn read(&self, digest: &Digest) -> io::Result<Vec<u8>> {
        let path = self.path(digest);
        fs::read(&path).map_err(|error| io::Error::new(error.kind(), format!("{}: {error}", path.display())))
    }

    async fn give(&self, content: &Content, repository: &Repository, digest: &Digest) -> Result<(), Error> {
        content.adopt_blob(repository, digest, self.path(digest), self.copy).await
    }
}

/// Whatever has an `index.json` beside its `blobs` is a layout. Others may lie below it: `app` and `app/tools` are two
/// repositories.
pub fn find_layouts(folder: &Path, layouts: &mut Vec<PathBuf>) -> Result<(), TransferError> {
    let is_layout = folder.join("index.json").is_file();
    if is_layout {
        layouts.push(folder.to_owned());
    }
    let failed = |error| TransferError::File { path: folder.to_owned(), error };
    for entry in fs::read_dir(folder).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        // zot's own folders (`_trivy`, `.uploads`) begin with these.
        let hidden = entry.file_name().to_string_lossy().starts_with(['.', '_']);
        let is_blobs = is_layout && entry.file_name() == "blobs";
        if entry.file_type().map_err(failed)?.is_dir() && !hidden && !is_blobs {
            find_layouts(&entry.path(), layouts)?;
        }
    }
    Ok(())
}

/// The blobs of a layout, with their lengths. What isn't a file, or is a link that leads out of the folder `inside`, is left out:
/// a layout of somebody else's must not bring in a file of this machine's.
fn blob_files(
    layout: &Path,
    inside: &Path,
    left_out: &mut Vec<String>,
) -> Result<Vec<(Digest, PathBuf, u64)>, TransferError> {
    let mut files = Vec::new();
    for algorithm in ["sha256", "sha512"] {
        let folder = layout.join("blobs").join(algorithm);
        let failed = |error| TransferError::File { path: folder.clone(), error };
        let entries = match fs::read_dir(&folder) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            entries => entries.map_err(failed)?,
        };
        for entry in entries {
            let entry = entry.map_err(failed)?;
            let Ok(digest) = format!("{algorithm}:{}", entry.file_name().to_string_lossy()).parse() else { continue };
            let path = entry.path();
            match fs::canonicalize(&path).and_then(|real| Ok((fs::metadata(&real)?, real))) {
                Ok((metadata, real)) if metadata.is_file() && real.starts_with(inside) => {
                    files.push((digest, path, metadata.len()));
                }
                Ok(_) => left_out.push(format!("{}: is no file of this folder", path.display())),
                Err(error) => left_out.push(format!("{}: {error}", path.display())),
            }
        }
    }
    Ok(files)
}

/// The layouts of a bucket: zot's, as a rule.
pub struct BucketLayouts<'a> {
    bucket: &'a Objects,
    /// Where the bytes of each digest are: zot keeps them once, and an empty object wherever else they are.
    places: HashMap<Digest, (String, u64)>,
    /// The digests of each repository that has an index.
    repositories: HashMap<String, Vec<Digest>>,
}

impl<'a> BucketLayouts<'a> {
    /// Lists all that is in a bucket, below its folder.
    ///
    /// # Errors
    /// If it can't be listed.
    pub async fn list(bucket: &'a Objects) -> io::Result<Self> {
        let mut places: HashMap<Digest, (String, u64)> = HashMap::new();
        let mut held: HashMap<String, Vec<Digest>> = HashMap::new();
        let mut names = Vec::new();
        for (key, len) in bucket.all().await? {
            if let Some(name) = key.strip_suffix("/index.json") {
                names.push(name.to_owned());
            }
            let Some((name, blob)) = key.rsplit_once("/blobs/") else { continue };
            let Ok(digest) = blob.replacen('/', ":", 1).parse::<Digest>() else { continue };
            held.entry(name.to_owned()).or_default().push(digest.clone());
            if places.get(&digest).is_none_or(|(_, known)| *known < len) {
                places.insert(digest, (key, len));
            }
        }
        let repositories = names.into_iter().map(|name| {
            let digests = held.remove(&name).unwrap_or_default();
            (name, digests)
        });
        Ok(Self { bucket, places, repositories: repositories.collect() })
    }

    /// The names of the repositories, sorted.
    pub fn names(&self) -> Vec<String> {
        let mut names: Vec<String> = self.repositories.keys().cloned().collect();
        names.sort_unstable();
        names
    }

    /// One of them.
    pub fn layout(&'a self, name: &'a str) -> BucketLayout<'a> {
        BucketLayout { all: self, name }
    }
}

/// A layout in a bucket.
pub struct BucketLayout<'a> {
    all: &'a BucketLayouts<'a>,
    name: &'a str,
}

impl BucketLayout<'_> {
    async fn open(&self, digest: &Digest) -> io::Result<Box<dyn Blob>> {
        let missing =
            || io::Error::new(io::ErrorKind::NotFound, format!("{}: {digest} is not in the bucket", self.name));
        let (key, _) = self.all.places.get(digest).ok_or_else(missing)?;
        self.all.bucket.open_object(key).await?.ok_or_else(missing)
    }
}

#[async_trait]
impl Layout for BucketLayout<'_> {
    async fn index(&self) -> (String, io::Result<Vec<u8>>) {
        let key = format!("{}/index.json", self.name);
        let read = crate::storage::Storage::read(self.all.bucket, &key).await;
        (key, read.map(Option::unwrap_or_default))
    }

    fn blobs(&self) -> Vec<(Digest, u64)> {
        let digests = self.all.repositories.get(self.name).into_iter().flatten();
        digests.map(|digest| (digest.clone(), self.all.places.get(digest).map_or(0, |(_, len)| *len))).collect()
    }

    async fn read(&self, digest: &Digest) -> io::Result<Vec<u8>> {
        let blob = self.open(digest).await?;
        let len = blob.len();
        let pieces: Vec<bytes::Bytes> = futures_util::TryStreamExt::try_collect(blob.read(0..len)).await?;
        Ok(pieces.concat())
    }

    async fn give(&self, content: &Content, repository: &Repository, digest: &Digest) -> Result<(), Error> {
        // A run that was stopped goes on where it was.
        if content.blob_len(repository, digest).await.is_ok() {
            return Ok(());
        }
        let blob = self.open(digest).await.map_err(crate::content::storage_error)?;
        let len = blob.len();
        content.push_blob(repository, digest, len, blob.read(0..len)).await
    }
}
