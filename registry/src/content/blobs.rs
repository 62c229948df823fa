//! Blobs and their uploads.

use std::{fs::File, path::PathBuf};

use berth_oci::{Algorithm, Digest, Error, ErrorCode, Repository, UploadSession};
use bytes::Bytes;
use futures_util::StreamExt;
use http::StatusCode;
use tokio::sync::mpsc;

use super::{Content, storage_error};
use crate::storage::{Precondition, Upload, UploadError, WriteError, keys};

/// A blob that is open for reading.
pub struct Blob {
    /// Its bytes.
    pub file: File,
    /// How many they are.
    pub len: u64,
}

/// How many chunks wait between the network and the disk.
const CHUNKS_IN_FLIGHT: usize = 4;

impl Content {
    /// Opens a blob that `repository` holds.
    pub async fn blob(&self, repository: &Repository, digest: &Digest) -> Result<Blob, Error> {
        if self.storage.exists(keys::held_blob(repository, digest)).await.map_err(storage_error)?
            && let Some((file, len)) = self.storage.blob(digest).await.map_err(storage_error)?
        {
            return Ok(Blob { file, len });
        }
        Err(blob_unknown(repository, digest))
    }

    /// The length of a blob that `repository` holds.
    pub async fn blob_len(&self, repository: &Repository, digest: &Digest) -> Result<u64, Error> {
        let _telling = self.lock_of(repository).read().await;
        self.promises.tell(repository, digest);
        self.held_len(repository, digest).await?.ok_or_else(|| blob_unknown(repository, digest))
    }

    async fn held_len(&self, repository: &Repository, digest: &Digest) -> Result<Option<u64>, Error> {
        if !self.storage.exists(keys::held_blob(repository, digest)).await.map_err(storage_error)? {
            return Ok(None);
        }
        self.storage.blob_len(digest).await.map_err(storage_error)
    }

    /// Takes a blob away from a repository. The bytes stay for the others that hold it.
    pub async fn delete_blob(&self, repository: &Repository, digest: &Digest) -> Result<(), Error> {
        let held = self.storage.remove(keys::held_blob(repository, digest)).await.map_err(storage_error)?;
        if held { Ok(()) } else { Err(blob_unknown(repository, digest)) }
    }

    /// Lets `repository` hold a blob of another one. Whether that one holds it.
    pub async fn mount(&self, repository: &Repository, digest: &Digest, from: &Repository) -> Result<bool, Error> {
        let _holding = self.promises.holding(digest).await;
        if self.held_len(from, digest).await?.is_none() {
            return Ok(false);
        }
        self.hold(repository, digest).await?;
        Ok(true)
    }

    /// Begins an upload.
    pub async fn start_upload(&self, repository: &Repository, algorithm: Algorithm) -> Result<Upload, Error> {
        self.storage.begin_upload(repository.clone(), algorithm).await.map_err(storage_error)
    }

    /// Takes up an upload, for this request alone.
    pub async fn resume_upload(&self, session: &UploadSession) -> Result<Upload, Error> {
        let resumed = self.storage.resume_upload(session.repository.clone(), session.id.clone()).await;
        resumed.map_err(upload_error)
    }

    /// Appends a request's body. If the client goes away, what it sent so far counts.
    pub async fn append<S, E>(&self, upload: Upload, body: S) -> Result<Upload, Error>
    where
        S: futures_util::Stream<Item = Result<Bytes, E>>,
        E: std::fmt::Display,
    {
        let (sender, receiver) = mpsc::channel(CHUNKS_IN_FLIGHT);
        let writer = upload.append(receiver);
        let mut body = std::pin::pin!(body);
        let mut broken = None;
        while let Some(chunk) = body.next().await {
            match chunk {
                Ok(chunk) => {
                    if sender.send(chunk).await.is_err() {
                        break; // The writer failed, and says why below.
                    }
                }
                Err(error) => {
                    broken = Some(error.to_string());
                    break;
                }
            }
        }
        drop(sender);
        let written = writer.await.unwrap_or_else(|panic| Err(std::io::Error::other(panic)));
        let upload = written.map_err(storage_error)?;
        match broken {
            None => Ok(upload),
            Some(error) => {
                tracing::info!(%error, "a client went away in the middle of an upload");
                Err(Error::new(StatusCode::BAD_REQUEST, ErrorCode::BlobUploadInvalid, "the body ended too early"))
            }
        }
    }

    /// Closes an upload: its bytes must have this digest, and `repository` then holds it.
    pub async fn finish_upload(&self, repository: &Repository, upload: Upload, digest: Digest) -> Result<(), Error> {
        if upload.algorithm() != digest.algorithm() {
            let message = format!(
                "this upload was begun for {}; start it with ?digest-algorithm={}",
                upload.algorithm(),
                digest.algorithm()
            );
            return Err(Error::new(StatusCode::BAD_REQUEST, ErrorCode::DigestInvalid, message));
        }
        let _holding = self.promises.holding(&digest).await;
        self.storage.finish_upload(upload, digest.clone()).await.map_err(upload_error)?;
        self.hold(repository, &digest).await
    }

    /// Drops an upload.
    pub async fn cancel_upload(&self, session: &UploadSession) -> Result<(), Error> {
        let upload = self.resume_upload(session).await?;
        self.storage.cancel_upload(upload).await.map_err(storage_error)
    }

    /// Lets `repository` hold the bytes of the file `from`, which are taken to have this digest.
    pub async fn adopt_blob(&self, repository: &Repository, digest: &Digest, from: PathBuf) -> Result<(), Error> {
        let _holding = self.promises.holding(digest).await;
        self.storage.adopt(digest, from).await.map_err(storage_error)?;
        self.hold(repository, digest).await
    }

    /// Copies the bytes of a blob, whoever holds it, to the new file `to`.
    pub async fn copy_blob(&self, digest: &Digest, to: PathBuf) -> Result<(), Error> {
        self.storage.give(digest, to).await.map_err(storage_error)
    }

    async fn hold(&self, repository: &Repository, digest: &Digest) -> Result<(), Error> {
        let _telling = self.lock_of(repository).read().await;
        self.promises.tell(repository, digest);
        match self.storage.write(keys::held_blob(repository, digest), Vec::new(), Precondition::None).await {
            Ok(()) | Err(WriteError::Precondition) => Ok(()),
            Err(WriteError::Io(e)) => Err(storage_error(e)),
        }
    }
}

fn blob_unknown(repository: &Repository, digest: &Digest) -> Error {
    let message = format!("{repository} does not hold the blob {digest}");
    Error::new(StatusCode::NOT_FOUND, ErrorCode::BlobUnknown, message)
}

fn upload_error(error: UploadError) -> Error {
    let (status, code) = match error {
        UploadError::Unknown => (StatusCode::NOT_FOUND, ErrorCode::BlobUploadUnknown),
        UploadError::Busy => (StatusCode::CONFLICT, ErrorCode::BlobUploadInvalid),
        UploadError::Digest { .. } => (StatusCode::BAD_REQUEST, ErrorCode::DigestInvalid),
        UploadError::Io(error) => return storage_error(error),
    };
    Error::new(status, code, error.to_string())
}
