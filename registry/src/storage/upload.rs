//! Uploads that aren't finished: a folder with the bytes so far and, in `state`, how many of them count and what
//! their hash is. A crash in the middle of a chunk leaves bytes behind that don't count; they are cut off when the
//! upload is taken up again.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Seek, SeekFrom, Write},
    path::{Path, PathBuf},
};

use berth_oci::{Algorithm, Digest, Repository, UploadId};
use bytes::Bytes;
use rustix::fs::{FlockOperation, flock};
use serde::{Deserialize, Serialize};

use super::{durable::found, hasher::Hasher};

/// Why an upload can't go on.
#[derive(Debug, thiserror::Error)]
pub enum UploadError {
    /// There is none of this name in this repository.
    #[error("there is no such upload; it was finished, cancelled or has expired: start a new one")]
    Unknown,
    /// Someone else is writing to it.
    #[error("another request is writing to this upload; ask for its status when that is done")]
    Busy,
    /// The bytes have another digest than was said.
    #[error("the content has the digest {actual}, not {expected}")]
    Digest {
        /// What the client said.
        expected: Digest,
        /// What came.
        actual: Digest,
    },
    /// The disk said no.
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// An upload that one request holds.
pub struct Upload {
    folder: PathBuf,
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

/// Makes an empty upload in the new folder `folder`.
pub(super) fn begin(folder: &Path, repository: Repository, algorithm: Algorithm) -> io::Result<Upload> {
    fs::create_dir(folder)?;
    let data = OpenOptions::new().write(true).create_new(true).open(folder.join("data"))?;
    flock(&data, FlockOperation::NonBlockingLockExclusive)?;
    let upload =
        Upload { folder: folder.to_owned(), repository, data, len: 0, flushed: 0, hasher: Hasher::new(algorithm) };
    upload.save()?;
    Ok(upload)
}

/// Takes up the upload in `folder`.
pub(super) fn resume(folder: &Path, repository: &Repository) -> Result<Upload, UploadError> {
    let data = found(OpenOptions::new().write(true).open(folder.join("data")))?.ok_or(UploadError::Unknown)?;
    match flock(&data, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => {}
        Err(rustix::io::Errno::WOULDBLOCK) => return Err(UploadError::Busy),
        Err(e) => return Err(io::Error::from(e).into()),
    }
    let state = found(fs::read(folder.join("state")))?.ok_or(UploadError::Unknown)?;
    let state: State = serde_json::from_slice(&state).map_err(io::Error::from)?;
    if state.repository != repository.as_str() {
        return Err(UploadError::Unknown);
    }
    let hasher = state.algorithm.parse().ok().and_then(|algorithm| Hasher::load(algorithm, &state.hash));
    let hasher = hasher.ok_or_else(|| io::Error::other("an upload's hash state is unreadable"))?;
    let mut upload = Upload {
        folder: folder.to_owned(),
        repository: repository.clone(),
        data,
        len: state.len,
        flushed: state.len,
        hasher,
    };
    upload.data.set_len(state.len)?;
    upload.data.seek(SeekFrom::End(0))?;
    Ok(upload)
}

impl Upload {
    /// Its name.
    pub fn id(&self) -> Option<UploadId> {
        self.folder.file_name()?.to_str()?.parse().ok()
    }

    /// How many bytes it has.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// What its digest will be of.
    pub fn algorithm(&self) -> Algorithm {
        self.hasher.algorithm()
    }

    /// Its empty beginnings, of another algorithm.
    pub fn restarted(self, algorithm: Algorithm) -> Self {
        Self { hasher: Hasher::new(algorithm), ..self }
    }

    pub(super) fn folder(&self) -> &Path {
        &self.folder
    }

    /// Appends some bytes, off the async threads. They count when they are flushed.
    ///
    /// # Errors
    /// If the disk says no. Then nothing counts that wasn't flushed before, and its room is given back.
    pub async fn append(self, chunks: Vec<Bytes>) -> io::Result<Self> {
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

    /// Flushes what was appended, and writes down how far it is.
    ///
    /// # Errors
    /// As [`Upload::append`].
    pub async fn flush(self) -> io::Result<Self> {
        self.change(|upload| {
            upload.data.sync_data()?;
            upload.save()?;
            upload.flushed = upload.len;
            Ok(())
        })
        .await
    }

    async fn change(mut self, change: impl FnOnce(&mut Self) -> io::Result<()> + Send + 'static) -> io::Result<Self> {
        let done = tokio::task::spawn_blocking(move || match change(&mut self) {
            Ok(()) => Ok(self),
            Err(error) => {
                self.data.set_len(self.flushed)?;
                Err(error)
            }
        });
        done.await.unwrap_or_else(|panic| Err(io::Error::other(panic)))
    }

    /// Writes down how far it is.
    fn save(&self) -> io::Result<()> {
        let state = State {
            repository: self.repository.to_string(),
            algorithm: self.hasher.algorithm().to_string(),
            len: self.len,
            hash: self.hasher.save(),
        };
        let next = self.folder.join("state.next");
        fs::write(&next, serde_json::to_vec(&state)?)?;
        fs::rename(next, self.folder.join("state"))
    }

    /// The path of all its bytes, flushed, if they have the digest that is expected; and the lock on them.
    pub(super) fn close(self, expected: &Digest) -> Result<(PathBuf, File), UploadError> {
        let actual = self.hasher.finish().map_err(io::Error::other)?;
        if actual != *expected {
            return Err(UploadError::Digest { expected: expected.clone(), actual });
        }
        self.data.sync_all()?;
        Ok((self.folder.join("data"), self.data))
    }
}
