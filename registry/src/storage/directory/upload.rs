//! Uploads that aren't finished: a folder with the bytes so far and, in `state`, how many of them count and what
//! their hash is. A crash in the middle of a chunk leaves bytes behind that don't count; they are cut off when the
//! upload is taken up again.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Read, Seek, SeekFrom, Write},
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    sync::Arc,
};

use async_trait::async_trait;
use berth_oci::{Algorithm, Digest, Repository, UploadId};
use bytes::Bytes;
use rustix::fs::{FlockOperation, flock};
use serde::{Deserialize, Serialize};
use tokio::task::JoinHandle;

use super::{Directory, durable::found, files::named};
use crate::storage::{Condition, Hasher, Upload, UploadError, keys, new_upload_id};

/// After how many bytes the disk is given work, while more come: the flush in the end has less to wait for then.
const WRITE_BACK_BYTES: u64 = 32 * 1024 * 1024;

/// What is shorter is hashed and written in one go: two threads cost more than they bring.
const MIN_PARALLEL_BYTES: usize = 64 * 1024;

/// An upload that one request holds.
struct UploadFolder {
    storage: Directory,
    id: UploadId,
    repository: Repository,
    /// Locked while it is held, so that two requests can't append at once.
    data: File,
    len: u64,
    /// How many bytes count after a crash.
    flushed: u64,
    hasher: Hasher,
    /// How many bytes there were when the disk was given work, and whether it is done. The kernel tells an error of it once.
    write_back: (u64, Option<JoinHandle<io::Result<()>>>),
}

#[derive(Serialize, Deserialize)]
struct State {
    repository: String,
    algorithm: String,
    len: u64,
    hash: Vec<u8>,
}

/// Makes an empty upload.
pub fn begin(storage: Directory, repository: Repository, algorithm: Algorithm) -> io::Result<Box<dyn Upload>> {
    let id = new_upload_id()?;
    let folder = storage.0.path(&keys::upload(&id));
    let make = || {
        fs::create_dir(&folder)?;
        let data = OpenOptions::new().write(true).create_new(true).open(folder.join("data"))?;
        flock(&data, FlockOperation::NonBlockingLockExclusive)?;
        let hasher = Hasher::new(algorithm);
        let upload = UploadFolder { storage, id, repository, data, len: 0, flushed: 0, hasher, write_back: (0, None) };
        upload.save()?;
        Ok(Box::new(upload) as Box<dyn Upload>)
    };
    make().map_err(|error| {
        // Nobody knows its name.
        let _ = fs::remove_dir_all(&folder);
        named(&folder, error)
    })
}

/// Takes up an upload.
pub fn resume(storage: Directory, repository: &Repository, id: UploadId) -> Result<Box<dyn Upload>, UploadError> {
    let folder = storage.0.path(&keys::upload(&id));
    let data = found(OpenOptions::new().write(true).open(folder.join("data")))?.ok_or(UploadError::Unknown)?;
    match flock(&data, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => {}
        Err(rustix::io::Errno::WOULDBLOCK) => return Err(UploadError::Busy),
        Err(e) => return Err(io::Error::from(e).into()),
    }
    let state = found(fs::read(folder.join("state")))?.ok_or(UploadError::Unknown)?;
    // A power failure may have left an empty file; what it counted isn't known then.
    let state: State = serde_json::from_slice(&state).map_err(|_| UploadError::Unknown)?;
    if state.repository != repository.as_str() {
        return Err(UploadError::Unknown);
    }
    let hasher = Hasher::of_upload(&state.algorithm, &state.hash)?;
    let (len, flushed) = (state.len, state.len);
    let (repository, write_back) = (repository.clone(), (len, None));
    let mut upload = UploadFolder { storage, id, repository, data, len, flushed, hasher, write_back };
    upload.data.set_len(len)?;
    upload.data.seek(SeekFrom::End(0))?;
    Ok(Box::new(upload))
}

#[async_trait]
impl Upload for UploadFolder {
    fn id(&self) -> &UploadId {
        &self.id
    }

    fn len(&self) -> u64 {
        self.len
    }

    fn announce(&mut self, digest: &Digest) {
        self.hasher = Hasher::new(digest.algorithm());
    }

    async fn append(self: Box<Self>, chunks: Vec<Bytes>) -> io::Result<Box<dyn Upload>> {
        let storage = self.storage.clone();
        let is_small = chunks.iter().map(Bytes::len).sum::<usize>() < MIN_PARALLEL_BYTES;
        let (mut hasher, chunks) = (self.hasher.clone(), Arc::new(chunks));
        let to_hash = Arc::clone(&chunks);
        let hash = move || {
            to_hash.iter().for_each(|chunk| hasher.update(chunk));
            hasher
        };
        let write = move |upload: &mut Self| {
            for chunk in chunks.iter() {
                upload.data.write_all(chunk)?;
                upload.len += chunk.len() as u64;
            }
            Ok(())
        };
        if is_small {
            let both = move |upload: &mut Self| {
                upload.hasher = hash();
                write(upload)
            };
            return Ok(self.change(both).await?);
        }
        let (hasher, written) = tokio::join!(storage.blocking(move |_| Ok::<_, io::Error>(hash())), self.change(write));
        let mut upload = written?;
        upload.hasher = hasher?;
        upload.write_back().await?;
        Ok(upload)
    }

    async fn flush(mut self: Box<Self>) -> io::Result<Box<dyn Upload>> {
        self.written_back().await?;
        let flush = |upload: &mut Self| {
            upload.data.sync_data()?;
            upload.save()?;
            upload.flushed = upload.len;
            Ok(())
        };
        Ok(self.change(flush).await?)
    }

    async fn finish(mut self: Box<Self>, expected: &Digest) -> Result<bool, UploadError> {
        self.written_back().await?;
        let (storage, expected) = (self.storage.clone(), expected.clone());
        storage.blocking(move |_| self.close(expected)).await
    }

    async fn release(mut self: Box<Self>) -> io::Result<()> {
        // With the lock, as soon as nobody has it.
        self.written_back().await
    }

    async fn cancel(mut self: Box<Self>) -> io::Result<()> {
        let _ = self.written_back().await;
        let storage = self.storage.clone();
        storage.blocking(move |_| fs::remove_dir_all(self.folder())).await
    }
}

impl UploadFolder {
    fn folder(&self) -> PathBuf {
        self.storage.0.path(&keys::upload(&self.id))
    }

    async fn change(
        mut self: Box<Self>,
        change: impl FnOnce(&mut Self) -> io::Result<()> + Send + 'static,
    ) -> io::Result<Box<Self>> {
        let storage = self.storage.clone();
        let changed = storage.blocking(move |_| match change(&mut self) {
            Ok(()) => Ok(self),
            Err(error) => Err(self.cut_off(error)),
        });
        changed.await
    }

    /// Gives the room back of what doesn't count, after an error.
    fn cut_off(&self, error: io::Error) -> io::Error {
        match self.data.set_len(self.flushed) {
            Ok(()) => named(&self.folder(), error),
            Err(error) => error,
        }
    }

    /// Gives the disk work, if there is enough of it and it has done what it had.
    async fn write_back(&mut self) -> io::Result<()> {
        let (begun, running) = &self.write_back;
        if self.len - begun < WRITE_BACK_BYTES || running.as_ref().is_some_and(|running| !running.is_finished()) {
            return Ok(());
        }
        self.written_back().await?;
        let data = self.data.try_clone()?;
        self.write_back = (self.len, Some(tokio::task::spawn_blocking(move || data.sync_data())));
        Ok(())
    }

    /// Waits for the disk.
    async fn written_back(&mut self) -> io::Result<()> {
        let Some(running) = self.write_back.1.take() else { return Ok(()) };
        running.await.map_err(io::Error::other).flatten().map_err(|error| self.cut_off(error))
    }

    /// Writes down how far it is.
    fn save(&self) -> io::Result<()> {
        let state = State {
            repository: self.repository.to_string(),
            algorithm: self.hasher.algorithm().to_string(),
            len: self.len,
            hash: self.hasher.save(),
        };
        let folder = self.folder();
        let next = folder.join("state.next");
        fs::write(&next, serde_json::to_vec(&state)?)?;
        fs::rename(next, folder.join("state"))
    }

    /// Whether the blob is new.
    fn close(self: Box<Self>, expected: Digest) -> Result<bool, UploadError> {
        let folder = self.folder();
        let hasher = match self.hasher.algorithm() == expected.algorithm() {
            true => self.hasher,
            false => read_again(&folder, self.len, expected.algorithm()).map_err(|error| named(&folder, error))?,
        };
        let actual = hasher.finish().map_err(io::Error::other)?;
        if actual != expected {
            return Err(UploadError::Digest { expected, actual });
        }
        // Our file is locked until the upload is gone, so that nobody appends to what is a blob by then.
        let data = folder.join("data");
        let inner = &self.storage.0;
        let path = inner.path(&keys::blob(&expected));
        let publish = || {
            // A file that is there may be damaged; ours isn't.
            let is_new = !fs::exists(&path)?;
            self.data.sync_all()?;
            self.data.set_permissions(fs::Permissions::from_mode(0o440))?;
            inner.publish(&data, &path, Condition::None)?;
            Ok(is_new)
        };
        let is_new = publish().map_err(|error| named(&path, error))?;
        // What is left of it expires, and harms nobody.
        if let Err(error) = fs::remove_dir_all(&folder) {
            tracing::warn!(folder = %folder.display(), %error, "a finished upload can't be cleared away");
        }
        Ok(is_new)
    }
}

/// The hash of what an upload has, for a client that says only at the end which one it wants.
fn read_again(folder: &Path, len: u64, algorithm: Algorithm) -> io::Result<Hasher> {
    let mut data = File::open(folder.join("data"))?.take(len);
    let (mut hasher, mut piece) = (Hasher::new(algorithm), vec![0; 256 * 1024]);
    loop {
        let read = data.read(&mut piece)?;
        if read == 0 {
            return Ok(hasher);
        }
        hasher.update(&piece[..read]);
    }
}
