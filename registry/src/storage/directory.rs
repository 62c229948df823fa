//! Storage in a directory of this machine.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write},
    os::unix::fs::{OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use berth_oci::{Algorithm, Digest, Repository, UploadId};
use rustix::fs::{Access, FlockOperation, access, flock, ioctl_ficlone};
use uuid::Uuid;

use super::{
    Upload, UploadError,
    durable::{Folders, folder_of, found, sync_folder},
    hasher, keys, upload,
};

/// Why a directory can't be used.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// It can't be made or written.
    #[error("storage.rootDirectory: {path} can't be written ({error}); make it, and let this user own it")]
    Unusable {
        /// The directory.
        path: String,
        /// Why.
        error: io::Error,
    },
    /// Another process has it.
    #[error(
        "storage.rootDirectory: {0} is in use by another berth-registry; stop that one, or choose another directory"
    )]
    InUse(String),
}

/// A directory that this process alone writes.
#[derive(Clone)]
pub struct Directory(Arc<Inner>);

struct Inner {
    root: PathBuf,
    folders: Folders,
    /// Held as long as the process lives, unless it only reads.
    _lock: Option<File>,
}

impl Directory {
    /// Makes the directory if need be, and locks it. Its content isn't read.
    ///
    /// # Errors
    /// [`OpenError`], for the person who starts the registry.
    pub fn open(root: &Path) -> Result<Self, OpenError> {
        let lock = lock(root)?;
        let storage = Self::at(root, Some(lock));
        storage.0.prepare().map_err(|error| OpenError::Unusable { path: root.display().to_string(), error })?;
        Ok(storage)
    }

    /// The directory for who only reads, also while a registry is using it.
    pub fn open_to_read(root: &Path) -> Self {
        Self::at(root, None)
    }

    fn at(root: &Path, lock: Option<File>) -> Self {
        Self(Arc::new(Inner { root: root.to_owned(), folders: Folders::new(root.to_owned()), _lock: lock }))
    }

    /// Finds out whether this user may make and write the directory; makes nothing.
    ///
    /// # Errors
    /// [`OpenError::Unusable`]
    pub fn check(root: &Path) -> Result<(), OpenError> {
        let existing = root.ancestors().find(|path| path.exists()).unwrap_or(Path::new("/"));
        access(existing, Access::READ_OK | Access::WRITE_OK | Access::EXEC_OK)
            .map_err(|e| OpenError::Unusable { path: root.display().to_string(), error: e.into() })
    }

    /// The content under a key, or nothing.
    pub async fn read(&self, key: String) -> io::Result<Option<Vec<u8>>> {
        self.blocking(move |inner| found(fs::read(inner.path(&key)))).await
    }

    /// Whether there is something under a key.
    pub async fn exists(&self, key: String) -> io::Result<bool> {
        self.blocking(move |inner| fs::exists(inner.path(&key))).await
    }

    /// Puts `bytes` under a key, durably, instead of what may be there.
    pub async fn write(&self, key: String, bytes: Vec<u8>) -> io::Result<()> {
        self.blocking(move |inner| {
            let path = inner.path(&key);
            let temporary = inner.temporary(&bytes)?;
            inner.publish(&temporary, &path)
        })
        .await
    }

    /// Takes away what is under a key, durably. Whether there was something.
    pub async fn remove(&self, key: String) -> io::Result<bool> {
        self.blocking(move |inner| {
            let path = inner.path(&key);
            match found(fs::remove_file(&path))? {
                None => Ok(false),
                Some(()) => sync_folder(folder_of(&path)?).map(|()| true),
            }
        })
        .await
    }

    /// The names in a folder, sorted; nothing if there is no such folder.
    pub async fn list(&self, folder: String) -> io::Result<Option<Vec<String>>> {
        self.blocking(move |inner| inner.list(&folder)).await
    }

    /// At most `limit` repositories after `last` that have one of these folders. They are ordered part by part: `a`,
    /// `a/b`, `a-b`.
    pub async fn repositories(
        &self,
        having: &'static [&'static str],
        last: Option<String>,
        limit: usize,
    ) -> io::Result<Vec<String>> {
        self.blocking(move |inner| {
            let mut out = Vec::new();
            inner.walk("", having, last.as_deref(), limit, &mut out)?;
            Ok(out)
        })
        .await
    }

    /// The bytes with this digest, and how many they are.
    pub async fn blob(&self, digest: &Digest) -> io::Result<Option<(File, u64)>> {
        let key = keys::blob(digest);
        self.blocking(move |inner| {
            let Some(file) = found(File::open(inner.path(&key)))? else { return Ok(None) };
            let len = file.metadata()?.len();
            Ok(Some((file, len)))
        })
        .await
    }

    /// How many bytes have this digest, if they are here.
    pub async fn blob_len(&self, digest: &Digest) -> io::Result<Option<u64>> {
        let key = keys::blob(digest);
        self.blocking(move |inner| Ok(found(fs::metadata(inner.path(&key)))?.map(|m| m.len()))).await
    }

    /// Keeps a small blob whose bytes are all at hand, and whose digest the caller has computed.
    pub async fn put_blob(&self, digest: &Digest, bytes: Vec<u8>) -> io::Result<()> {
        let key = keys::blob(digest);
        self.blocking(move |inner| {
            let path = inner.path(&key);
            if inner.is_there(&path)? {
                return Ok(());
            }
            let temporary = inner.temporary(&bytes)?;
            fs::set_permissions(&temporary, fs::Permissions::from_mode(0o440))?;
            inner.publish(&temporary, &path)
        })
        .await
    }

    /// Keeps the file `from` as a blob, without reading it: linked or cloned where the file system can, or else copied.
    pub async fn adopt(&self, digest: &Digest, from: PathBuf) -> io::Result<()> {
        let key = keys::blob(digest);
        self.blocking(move |inner| {
            let path = inner.path(&key);
            if inner.is_there(&path)? {
                return Ok(());
            }
            let temporary = inner.path("uploads").join(format!("tmp-{}", Uuid::new_v4()));
            if fs::hard_link(&from, &temporary).is_err() {
                clone_or_copy(&from, &temporary)?;
                fs::set_permissions(&temporary, fs::Permissions::from_mode(0o440))?;
            }
            File::open(&temporary)?.sync_all()?;
            inner.publish(&temporary, &path)
        })
        .await
    }

    /// Copies a blob to the new file `to`: cloned where the file system can.
    pub async fn give(&self, digest: &Digest, to: PathBuf) -> io::Result<()> {
        let key = keys::blob(digest);
        self.blocking(move |inner| clone_or_copy(&inner.path(&key), &to)).await
    }

    /// Begins an upload into `repository`.
    pub async fn begin_upload(&self, repository: Repository, algorithm: Algorithm) -> io::Result<Upload> {
        self.blocking(move |inner| {
            let folder = inner.path("uploads").join(Uuid::new_v4().to_string());
            upload::begin(&folder, repository, algorithm)
        })
        .await
    }

    /// Takes up an upload, for this caller alone.
    ///
    /// # Errors
    /// [`UploadError::Unknown`] if `repository` has none of this name, [`UploadError::Busy`] while someone else
    /// holds it.
    pub async fn resume_upload(&self, repository: Repository, id: UploadId) -> Result<Upload, UploadError> {
        self.blocking(move |inner| {
            let folder = inner.path("uploads").join(id.as_str());
            upload::resume(&folder, &repository)
        })
        .await
    }

    /// Makes a finished upload the blob that it is. The upload is gone afterwards.
    ///
    /// # Errors
    /// [`UploadError::Digest`] if its bytes have another digest.
    pub async fn finish_upload(&self, upload: Upload, expected: Digest) -> Result<(), UploadError> {
        self.blocking(move |inner| {
            let folder = upload.folder().to_owned();
            // Locked until the upload is gone, so that nobody appends to what is a blob by then.
            let (data, _locked) = upload.close(&expected)?;
            let path = inner.path(&keys::blob(&expected));
            // The same bytes may be here already: then the name keeps the file that it has.
            if !inner.is_there(&path)? {
                fs::set_permissions(&data, fs::Permissions::from_mode(0o440))?;
                inner.publish(&data, &path)?;
            }
            fs::remove_dir_all(folder)?;
            Ok(())
        })
        .await
    }

    /// The digests in a folder that has one folder an algorithm, of what was written at least `age` ago.
    pub async fn digests_in(&self, folder: String, age: Duration) -> io::Result<Vec<Digest>> {
        self.blocking(move |inner| {
            let mut digests = Vec::new();
            for algorithm in [Algorithm::Sha256, Algorithm::Sha512] {
                for (name, _) in inner.older(&inner.path(&folder).join(algorithm.as_str()), age)? {
                    // Whatever isn't a digest is none of ours.
                    digests.extend(format!("{algorithm}:{name}").parse::<Digest>());
                }
            }
            Ok(digests)
        })
        .await
    }

    /// The folders that blobs are spread over.
    pub async fn shelves(&self) -> io::Result<Vec<String>> {
        self.blocking(|inner| {
            let mut shelves = Vec::new();
            for algorithm in [Algorithm::Sha256, Algorithm::Sha512] {
                let folder = keys::blobs(algorithm);
                shelves.extend(inner.list(&folder)?.into_iter().flatten().map(|name| format!("{folder}/{name}")));
            }
            Ok(shelves)
        })
        .await
    }

    /// The blobs on a shelf that were written at least `age` ago, and their lengths.
    pub async fn blobs_on(&self, shelf: &str, age: Duration) -> io::Result<Vec<(Digest, u64)>> {
        let shelf = shelf.to_owned();
        self.blocking(move |inner| {
            let algorithm = shelf.split('/').nth(1).unwrap_or_default();
            let old = inner.older(&inner.path(&shelf), age)?.into_iter();
            let blobs = old.filter_map(|(name, len)| Some((format!("{algorithm}:{name}").parse().ok()?, len)));
            Ok(blobs.collect())
        })
        .await
    }

    /// Drops the uploads that nobody has gone on with for `age`; how many there were.
    pub async fn expire_uploads(&self, age: Duration, dry_run: bool) -> io::Result<u64> {
        self.blocking(move |inner| {
            let mut expired = 0;
            for (name, _) in inner.older(&inner.path("uploads"), age)? {
                let folder = inner.path("uploads").join(name);
                if !folder.is_dir() {
                    continue; // Something that is being written; what a crash leaves of it, the next start removes.
                }
                // A chunk changes the folder's content and not always the folder.
                if inner.older(&folder, Duration::ZERO)?.len() == inner.older(&folder, age)?.len() {
                    expired += 1;
                    if !dry_run {
                        fs::remove_dir_all(folder)?;
                    }
                }
            }
            Ok(expired)
        })
        .await
    }

    /// Drops an upload.
    pub async fn cancel_upload(&self, upload: Upload) -> io::Result<()> {
        self.blocking(move |_| fs::remove_dir_all(upload.folder())).await
    }

    /// Runs `work` where it may block.
    async fn blocking<T: Send + 'static, E: From<io::Error> + Send + 'static>(
        &self,
        work: impl FnOnce(&Inner) -> Result<T, E> + Send + 'static,
    ) -> Result<T, E> {
        let inner = Arc::clone(&self.0);
        let done = tokio::task::spawn_blocking(move || work(&inner)).await;
        done.unwrap_or_else(|panic| Err(io::Error::other(panic).into()))
    }
}

impl Inner {
    fn path(&self, key: &str) -> PathBuf {
        self.root.join(key)
    }

    /// Makes the folders that every write needs, and clears away what a crash left half written.
    fn prepare(&self) -> io::Result<()> {
        for folder in [
            "uploads".to_owned(),
            keys::REPOSITORIES.to_owned(),
            keys::blobs(Algorithm::Sha256),
            keys::blobs(Algorithm::Sha512),
        ] {
            self.folders.make(&self.path(&folder))?;
        }
        for entry in fs::read_dir(self.path("uploads"))? {
            let entry = entry?;
            if entry.file_type()?.is_file() {
                fs::remove_file(entry.path())?;
            }
        }
        Ok(())
    }

    /// A flushed file with these bytes, whose name isn't final.
    fn temporary(&self, bytes: &[u8]) -> io::Result<PathBuf> {
        let path = self.path("uploads").join(format!("tmp-{}", Uuid::new_v4()));
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o640).open(&path)?;
        let written = file.write_all(bytes).and_then(|()| file.sync_all());
        if let Err(error) = written {
            let _ = fs::remove_file(&path);
            return Err(error);
        }
        Ok(path)
    }

    /// Whether a blob has its name already. Whoever gave it may not have flushed the folder yet, and what we say next
    /// depends on it.
    fn is_there(&self, path: &Path) -> io::Result<bool> {
        let there = fs::exists(path)?;
        if there {
            sync_folder(folder_of(path)?)?;
        }
        Ok(there)
    }

    /// Gives a flushed file its final name; takes it away if that can't be.
    fn publish(&self, from: &Path, to: &Path) -> io::Result<()> {
        let folder = folder_of(to)?;
        let named = self.folders.make(folder).and_then(|()| fs::rename(from, to));
        if let Err(error) = named {
            let _ = fs::remove_file(from);
            return Err(error);
        }
        sync_folder(folder)
    }

    fn list(&self, folder: &str) -> io::Result<Option<Vec<String>>> {
        let Some(entries) = found(fs::read_dir(self.path(folder)))? else { return Ok(None) };
        let mut names = Vec::new();
        for entry in entries {
            // Whatever isn't text is none of ours.
            if let Ok(name) = entry?.file_name().into_string() {
                names.push(name);
            }
        }
        names.sort_unstable();
        Ok(Some(names))
    }

    /// The names in a folder that were written at least `age` ago, with their lengths.
    fn older(&self, folder: &Path, age: Duration) -> io::Result<Vec<(String, u64)>> {
        let mut old = Vec::new();
        let Some(entries) = found(fs::read_dir(folder))? else { return Ok(old) };
        for entry in entries {
            let entry = entry?;
            let Some(metadata) = found(entry.metadata())? else { continue };
            // A clock that was set back makes things young, and the young are kept.
            let its_age = metadata.modified()?.elapsed().unwrap_or_default();
            if its_age >= age
                && let Ok(name) = entry.file_name().into_string()
            {
                old.push((name, metadata.len()));
            }
        }
        Ok(old)
    }

    /// Appends the repositories at and below `name` that come after `last`, until there are `limit`.
    fn walk(
        &self,
        name: &str,
        having: &[&str],
        last: Option<&str>,
        limit: usize,
        out: &mut Vec<String>,
    ) -> io::Result<()> {
        let parts = |name: &str| name.split('/').map(str::to_owned).collect::<Vec<_>>();
        let folder = if name.is_empty() { keys::REPOSITORIES.into() } else { format!("{}/{name}", keys::REPOSITORIES) };
        let entries = self.list(&folder)?.unwrap_or_default();
        // Before what is below it, as the order has it.
        let is_one = entries.iter().any(|entry| having.contains(&entry.as_str()));
        if is_one && last.is_none_or(|last| parts(name) > parts(last)) {
            out.push(name.to_owned());
        }
        for entry in entries.iter().filter(|entry| !entry.starts_with('_')) {
            if out.len() >= limit {
                return Ok(());
            }
            let child = if name.is_empty() { entry.clone() } else { format!("{name}/{entry}") };
            // Everything below a name that comes before `last`, and isn't above it, comes before it too.
            let below = last.is_none_or(|last| {
                let (child, last) = (parts(&child), parts(last));
                child > last || last.starts_with(&child)
            });
            if below {
                self.walk(&child, having, last, limit, out)?;
            }
        }
        Ok(())
    }
}

/// Locks the directory for this process, and proves that it can be written.
fn lock(root: &Path) -> Result<File, OpenError> {
    let unusable = |error: io::Error| OpenError::Unusable { path: root.display().to_string(), error };
    fs::create_dir_all(root).map_err(unusable)?;
    let file =
        OpenOptions::new().write(true).create(true).truncate(false).open(root.join(".lock")).map_err(unusable)?;
    match flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(file),
        Err(rustix::io::Errno::WOULDBLOCK) => Err(OpenError::InUse(root.display().to_string())),
        Err(error) => Err(unusable(error.into())),
    }
}

/// A new file with the content of another; both share their blocks where the file system can do that.
fn clone_or_copy(from: &Path, to: &Path) -> io::Result<()> {
    let source = File::open(from)?;
    let target = OpenOptions::new().write(true).create_new(true).mode(0o640).open(to)?;
    if ioctl_ficlone(&target, &source).is_err() {
        io::copy(&mut &source, &mut &target)?;
    }
    Ok(())
}

/// The digest of bytes that are all at hand.
///
/// # Errors
/// Never, as long as the algorithms are the ones of [`Algorithm`].
pub fn digest_of(algorithm: Algorithm, bytes: &[u8]) -> io::Result<Digest> {
    hasher::digest(algorithm, bytes).map_err(io::Error::other)
}
