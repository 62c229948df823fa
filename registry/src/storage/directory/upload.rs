//! Uploads that aren't finished: a folder with the bytes so far and, in `state`, how many of them count and what
//! their hash is. A crash in the middle of a chunk leaves bytes behind that don't count; they are cut off when the
//! upload is taken up again.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Read, Seek, SeekFrom, Write},
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};

use async_trait::async_trait;
use berth_oci::{Algorithm, Digest, Repository, UploadId};
use bytes::Bytes;
use rustix::fs::{FlockOperation, flock};
use serde::{Deserialize, Serialize};

use super::{Directory, durable::found, files::named};
use crate::storage::{Condition, Hasher, Upload, UploadError, keys, new_upload_id};

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
        let upload = UploadFolder { storage, id, repository, data, len: 0, flushed: 0, hasher };
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
    let mut upload = UploadFolder { storage, id, repository: repository.clone(), data, len, flushed, hasher };
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

    fn restart(&mut self, algorithm: Algorithm) {
        self.hasher = Hasher::new(algorithm);
    }

    async fn append(self: Box<Self>, chunks: Vec<Bytes>) -> io::Result<Box<dyn Upload>> {
        self.change(move |upload| {
            for chunk in &chunks {
                upload.data.write_all(chunk)?;
                upload.hasher.update(chunk);
                upload.len += chunk.len() as u64;
            }
            Ok(())
        })
        .await
    }

    async fn flush(self: Box<Self>) -> io::Result<Box<dyn Upload>> {
        self.change(|upload| {
            upload.data.sync_data()?;
            upload.save()?;
            upload.flushed = upload.len;
            Ok(())
        })
        .await
    }

    async fn finish(self: Box<Self>, expected: &Digest) -> Result<bool, UploadError> {
        let (storage, expected) = (self.storage.clone(), expected.clone());
        storage.blocking(move |_| self.close(expected)).await
    }

    async fn release(self: Box<Self>) -> io::Result<()> {
        Ok(()) // With the lock, as soon as nobody has it.
    }

    async fn cancel(self: Box<Self>) -> io::Result<()> {
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
    ) -> io::Result<Box<dyn Upload>> {
        let storage = self.storage.clone();
        let changed = storage.blocking(move |_| match change(&mut self) {
            Ok(()) => Ok(self),
            Err(error) => {
                self.data.set_len(self.flushed)?;
                Err(named(&self.folder(), error))
            }
        });
        Ok(changed.await?)
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
