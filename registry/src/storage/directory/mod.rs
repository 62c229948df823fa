//! Storage in a directory of this machine, which this process alone writes.

mod blob;
mod cached;
mod durable;
mod files;
mod upload;

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{self, File, OpenOptions},
    io::{self, Write},
    os::unix::fs::{OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use async_trait::async_trait;
use berth_oci::{Algorithm, Digest, Repository, UploadId};
use rustix::fs::{Access, access, statvfs};
use uuid::Uuid;

use self::{
    blob::BlobFile,
    durable::{Folders, folder_of, found},
    files::{ages, clone_or_copy, list, lock, named, page, rename},
};
use super::{Blob, Condition, Space, Storage, StoredBlob, Upload, UploadError, first_line, keys};

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

impl From<OpenError> for io::Error {
    fn from(error: OpenError) -> Self {
        io::Error::other(error)
    }
}

/// A directory that this process alone writes.
#[derive(Clone)]
pub struct Directory(Arc<Inner>);

struct Inner {
    root: PathBuf,
    /// The root, open, unless it doesn't exist.
    opened: Option<File>,
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
        let (root, folders) = (root.to_owned(), Folders::new(root.to_owned()));
        Self(Arc::new(Inner { opened: File::open(&root).ok(), root, folders, _lock: lock }))
    }

    /// What the kernel knows without asking the disk; see [`cached`].
    fn at_once<T>(&self, look: impl FnOnce(&File) -> Option<T>) -> Option<T> {
        look(self.0.opened.as_ref()?)
    }

    /// Runs `work` at the path of `key`, where it may block. What fails is told with the path.
    async fn at_path<T: Send + 'static>(
        &self,
        key: &str,
        work: impl FnOnce(&Inner, &Path) -> io::Result<T> + Send + 'static,
    ) -> io::Result<T> {
        let key = key.to_owned();
        self.blocking(move |inner| {
            let path = inner.path(&key);
            work(inner, &path).map_err(|error| named(&path, error))
        })
        .await
    }

    /// Does `work` at the path of each key, where it may block, and then flushes each folder in which something was changed.
    /// Whether each was.
    async fn each_then_flush(
        &self,
        keys: Vec<String>,
        work: impl Fn(&Inner, &Path) -> io::Result<bool> + Send + 'static,
    ) -> io::Result<Vec<bool>> {
        self.blocking(move |inner| {
            let (mut folders, mut changes) = (BTreeSet::new(), Vec::with_capacity(keys.len()));
            let mut unsettled = BTreeMap::new();
            for key in &keys {
                let path = inner.path(key);
                let folder = folder_of(&path)?;
                if !unsettled.contains_key(folder) {
                    unsettled.insert(folder.to_owned(), inner.folders.unsettle(folder));
                }
                let changed = work(inner, &path).map_err(|error| named(&path, error))?;
                if changed {
                    folders.insert(folder.to_owned());
                }
                changes.push(changed);
            }
            for folder in folders {
                inner.folders.flush(&folder).map_err(|error| named(&folder, error))?;
            }
            Ok(changes)
        })
        .await
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

#[async_trait]
impl Storage for Directory {
    fn is_shared(&self) -> bool {
        false
    }

    async fn check(&self) -> io::Result<()> {
        let root = &self.0.root;
        let existing = root.ancestors().find(|path| path.exists()).unwrap_or(Path::new("/"));
        access(existing, Access::READ_OK | Access::WRITE_OK | Access::EXEC_OK)
            .map_err(|e| OpenError::Unusable { path: root.display().to_string(), error: e.into() }.into())
    }

    async fn read(&self, key: &str) -> io::Result<Option<Vec<u8>>> {
        if let Some(read) = self.at_once(|root| cached::read(root, key)) {
            return read;
        }
        self.at_path(key, |_, path| found(fs::read(path))).await
    }

    async fn exists(&self, key: &str) -> io::Result<bool> {
        if let Some(exists) = self.at_once(|root| cached::exists(root, key)) {
            return exists;
        }
        self.at_path(key, |_, path| Ok(found(fs::metadata(path))?.is_some())).await
    }

    async fn is_folder(&self, folder: &str) -> io::Result<bool> {
        self.exists(folder).await
    }

    async fn write(&self, key: &str, bytes: Vec<u8>, condition: Condition) -> io::Result<bool> {
        self.at_path(key, move |inner, path| {
            let temporary = inner.temporary(&bytes)?;
            inner.publish(&temporary, path, condition)
        })
        .await
    }

    async fn write_derived(&self, key: &str, bytes: Vec<u8>) -> io::Result<()> {
        self.at_path(key, move |inner, path| {
            let temporary = inner.new_temporary();
            let written = fs::write(&temporary, &bytes).and_then(|()| {
                match fs::create_dir(folder_of(path)?) {
                    Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
                    _ => {}
                }
                fs::rename(&temporary, path)
            });
            written.inspect_err(|_| drop(fs::remove_file(&temporary)))
        })
        .await
    }

    async fn mark(&self, keys: Vec<String>) -> io::Result<()> {
        self.each_then_flush(keys, |inner, path| {
            inner.folders.make(folder_of(path)?)?;
            // An empty file is all in its name: there or not there, never half.
            let file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o640).open(path)?;
            // What was there already is young again.
            file.set_modified(std::time::SystemTime::now()).map(|()| true)
        })
        .await
        .map(drop)
    }

    async fn remove(&self, key: &str) -> io::Result<bool> {
        self.at_path(key, |inner, path| match found(fs::remove_file(path))? {
            None => Ok(false),
            Some(()) => inner.folders.flush(folder_of(path)?).map(|()| true),
        })
        .await
    }

    async fn remove_all(&self, keys: Vec<String>) -> io::Result<()> {
        self.each_then_flush(keys, |_, path| Ok(found(fs::remove_file(path))?.is_some())).await.map(drop)
    }

    async fn remove_if(&self, keys: Vec<String>, content: &str) -> io::Result<Vec<bool>> {
        let content = content.to_owned();
        self.each_then_flush(keys, move |_, path| {
            // What can't be read isn't it.
            let is_still = fs::read(path).is_ok_and(|bytes| first_line(&bytes) == content.as_bytes());
            if is_still {
                fs::remove_file(path)?;
            }
            Ok(is_still)
        })
        .await
    }

    async fn settle(&self, folders: Vec<String>) -> io::Result<()> {
        let settle = |inner: &Inner, folder: &str| {
            let path = inner.path(folder);
            inner.folders.settle(&path).map_err(|error| named(&path, error))
        };
        self.blocking(move |inner| folders.iter().try_for_each(|folder| settle(inner, folder))).await
    }

    async fn prune(&self, folder: &str) -> io::Result<bool> {
        self.at_path(folder, |inner, path| inner.folders.prune(path)).await
    }

    async fn list(&self, folder: &str, last: Option<&str>, limit: usize) -> io::Result<Vec<String>> {
        let last = last.map(str::to_owned);
        self.at_path(folder, move |_, folder| page(folder, last.as_deref(), limit)).await
    }

    async fn repositories(&self, having: &[&str], last: Option<&str>, limit: usize) -> io::Result<Vec<String>> {
        let having: Vec<String> = having.iter().map(ToString::to_string).collect();
        let last = last.map(str::to_owned);
        self.blocking(move |inner| {
            let mut out = Vec::new();
            inner.walk("", &having, last.as_deref(), limit, &mut out)?;
            Ok(out)
        })
        .await
    }

    async fn blob(&self, digest: &Digest) -> io::Result<Option<Box<dyn Blob>>> {
        let key = keys::blob(digest);
        let file = match self.at_once(|root| cached::open(root, &key)) {
            Some(file) => file?,
            None => self.at_path(&key, |_, path| found(File::open(path))).await?,
        };
        let Some(file) = file else { return Ok(None) };
        // Of an open file, so in memory.
        let len = file.metadata()?.len();
        Ok(Some(Box::new(BlobFile { file, len })))
    }

    async fn blob_len(&self, digest: &Digest) -> io::Result<Option<u64>> {
        let key = keys::blob(digest);
        if let Some(file) = self.at_once(|root| cached::open(root, &key)) {
            return file?.map(|file| Ok(file.metadata()?.len())).transpose();
        }
        self.at_path(&key, |_, path| Ok(found(fs::metadata(path))?.map(|m| m.len()))).await
    }

    async fn put_blob(&self, digest: &Digest, bytes: Vec<u8>) -> io::Result<bool> {
        self.at_path(&keys::blob(digest), move |inner, path| {
            // What is damaged is written anew.
            let stored = found(fs::read(path))?;
            if stored.as_deref() == Some(&*bytes) && inner.is_there(path)? {
                return Ok(false);
            }
            let temporary = inner.temporary(&bytes)?;
            fs::set_permissions(&temporary, fs::Permissions::from_mode(0o440))?;
            inner.publish(&temporary, path, Condition::None)?;
            Ok(stored.is_none())
        })
        .await
    }

    async fn adopt(&self, digest: &Digest, from: PathBuf, copy: bool) -> io::Result<Option<u64>> {
        self.at_path(&keys::blob(digest), move |inner, path| {
            if inner.is_there(path)? {
                return Ok(None);
            }
            let temporary = inner.new_temporary();
            // What a link leads to, and not the link.
            let from = fs::canonicalize(from)?;
            if copy || fs::hard_link(&from, &temporary).is_err() {
                clone_or_copy(&from, &temporary).map_err(|error| named(&from, error))?;
                fs::set_permissions(&temporary, fs::Permissions::from_mode(0o440))?;
            }
            let file = File::open(&temporary)?;
            file.sync_all()?;
            let len = file.metadata()?.len();
            inner.publish(&temporary, path, Condition::None)?;
            Ok(Some(len))
        })
        .await
    }

    async fn give(&self, digest: &Digest, to: PathBuf) -> io::Result<()> {
        let copy = move |_: &Inner, path: &Path| clone_or_copy(path, &to).map_err(|error| named(&to, error));
        self.at_path(&keys::blob(digest), copy).await
    }

    async fn begin_upload(&self, repository: &Repository, algorithm: Algorithm) -> io::Result<Box<dyn Upload>> {
        let (storage, repository) = (self.clone(), repository.clone());
        self.blocking(move |_| upload::begin(storage, repository, algorithm)).await
    }

    async fn resume_upload(&self, repository: &Repository, id: &UploadId) -> Result<Box<dyn Upload>, UploadError> {
        let (storage, repository, id) = (self.clone(), repository.clone(), id.clone());
        self.blocking(move |_| upload::resume(storage, &repository, id)).await
    }

    async fn expire_uploads(&self, age: Duration, dry_run: bool) -> io::Result<u64> {
        self.blocking(move |inner| {
            let mut expired = 0;
            for name in inner.older(&inner.path(keys::UPLOADS), age)? {
                let folder = inner.path(keys::UPLOADS).join(name);
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

    async fn count_uploads(&self) -> io::Result<u64> {
        self.at_path(keys::UPLOADS, |_, folder| {
            let mut uploads = 0;
            for entry in found(fs::read_dir(folder))?.into_iter().flatten() {
                // Beside them lies what is being written.
                uploads += u64::from(entry?.file_type()?.is_dir());
            }
            Ok(uploads)
        })
        .await
    }

    async fn ages_in(&self, folder: &str) -> io::Result<Vec<(String, Duration)>> {
        self.at_path(folder, |_, folder| Ok(ages(folder)?.into_iter().map(|(name, _, age)| (name, age)).collect()))
            .await
    }

    async fn tombstones_in(&self, _folder: &str, _age: Duration) -> io::Result<Vec<String>> {
        Ok(Vec::new())
    }

    async fn shards(&self) -> io::Result<Vec<String>> {
        self.blocking(|inner| {
            let mut shards = Vec::new();
            for algorithm in Algorithm::ALL {
                let folder = keys::blobs(algorithm);
                shards.extend(list(&inner.path(&folder))?.into_iter().flatten().map(|name| format!("{folder}/{name}")));
            }
            Ok(shards)
        })
        .await
    }

    async fn blobs_in(&self, shard: &str, age: Duration) -> io::Result<Vec<StoredBlob>> {
        let name_of_shard = shard.to_owned();
        self.at_path(shard, move |_, folder| {
            let blob = |(name, len, its_age): (String, u64, Duration)| {
                Some(StoredBlob { digest: keys::digest_in(&name_of_shard, &name)?, len, is_old: its_age >= age })
            };
            Ok(ages(folder)?.into_iter().filter_map(blob).collect())
        })
        .await
    }

    async fn probe(&self) -> io::Result<()> {
        self.at_path(keys::UPLOADS, |inner, _| {
            inner.folders.must_be_sound()?;
            // A block: an empty file has room where nothing else has.
            let temporary = inner.new_temporary();
            let written = fs::write(&temporary, [0; 4096]);
            let removed = found(fs::remove_file(&temporary));
            written.and(removed.map(drop))
        })
        .await
    }

    async fn space(&self) -> Option<Space> {
        let space = |inner: &Inner| {
            let stat = statvfs(&inner.root).map_err(io::Error::from)?;
            let bytes = |blocks: u64| blocks.saturating_mul(stat.f_frsize);
            Ok::<_, io::Error>(Space { free: bytes(stat.f_bavail), size: bytes(stat.f_blocks) })
        };
        self.blocking(space).await.ok()
    }

    async fn acquire_lease(&self, _key: &str) -> io::Result<bool> {
        Ok(true) // Nobody else collects here.
    }

    async fn revive(&self, _key: &str) -> io::Result<bool> {
        Ok(true)
    }

    async fn delete_if_unprotected(&self, key: &str, _age: Duration) -> io::Result<bool> {
        self.remove(key).await
    }
}

impl Inner {
    fn path(&self, key: &str) -> PathBuf {
        self.root.join(key)
    }

    /// Makes the folders that every write needs, and clears away what a crash left half written.
    fn prepare(&self) -> io::Result<()> {
        let blobs = Algorithm::ALL.map(keys::blobs);
        for folder in [keys::UPLOADS, keys::REPOSITORIES].into_iter().chain(blobs.iter().map(String::as_str)) {
            self.folders.make(&self.path(folder))?;
        }
        for entry in fs::read_dir(self.path(keys::UPLOADS))? {
            let entry = entry?;
            if entry.file_type()?.is_file() {
                fs::remove_file(entry.path())?;
            }
        }
        Ok(())
    }

    fn new_temporary(&self) -> PathBuf {
        self.path(keys::UPLOADS).join(format!("tmp-{}", Uuid::new_v4()))
    }

    /// A flushed file with these bytes, whose name isn't final.
    fn temporary(&self, bytes: &[u8]) -> io::Result<PathBuf> {
        let path = self.new_temporary();
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
            self.folders.flush(folder_of(path)?)?;
        }
        Ok(there)
    }

    /// Gives a flushed file its final name, if the condition holds; takes it away if that can't be.
    fn publish(&self, from: &Path, to: &Path, condition: Condition) -> io::Result<bool> {
        let folder = folder_of(to)?;
        let _unsettled = self.folders.unsettle(folder);
        let named = self.folders.make(folder).and_then(|()| rename(from, to, condition));
        if !matches!(named, Ok(true)) {
            let _ = fs::remove_file(from);
            return named;
        }
        self.folders.flush(folder).map(|()| true)
    }

    /// The names in a folder that were written at least `age` ago.
    fn older(&self, folder: &Path, age: Duration) -> io::Result<Vec<String>> {
        let old = ages(folder)?.into_iter().filter(|(_, _, its_age)| *its_age >= age);
        Ok(old.map(|(name, ..)| name).collect())
    }

    /// Appends the repositories at and below `name` that come after `last`, until there are `limit`.
    fn walk(
        &self,
        name: &str,
        having: &[String],
        last: Option<&str>,
        limit: usize,
        out: &mut Vec<String>,
    ) -> io::Result<()> {
        let folder = if name.is_empty() { keys::REPOSITORIES.into() } else { format!("{}/{name}", keys::REPOSITORIES) };
        let entries = list(&self.path(&folder))?.unwrap_or_default();
        // Before what is below it, as the order has it.
        let is_one = entries.iter().any(|entry| having.contains(entry));
        if is_one && keys::is_after(name, last) {
            out.push(name.to_owned());
        }
        for entry in entries.iter().filter(|entry| !entry.starts_with('_')) {
            if out.len() >= limit {
                return Ok(());
            }
            let child = if name.is_empty() { entry.clone() } else { format!("{name}/{entry}") };
            if keys::is_after_or_above(&child, last) {
                self.walk(&child, having, last, limit, out)?;
            }
        }
        Ok(())
    }
}
