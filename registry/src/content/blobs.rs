//! Blobs and their uploads.

use std::{io, path::PathBuf};

use berth_oci::{Algorithm, Digest, Error, ErrorCode, Repository, UploadSession};
use bytes::Bytes;
use futures_util::{Stream, StreamExt};
use http::StatusCode;

use super::{Content, storage_error};
use crate::storage::{Blob, Upload, UploadError, keys};

/// What is shorter is sooner sent than fetched elsewhere.
const MIN_REDIRECTED_BYTES: u64 = 64 * 1024;

/// How much is received before it is written, at most.
const BATCH_BYTES: usize = 1024 * 1024;

impl Content {
    /// Opens a blob that `repository` holds.
    pub async fn blob(&self, repository: &Repository, digest: &Digest) -> Result<Box<dyn Blob>, Error> {
        if self.storage.exists(&keys::held_blob(repository, digest)).await.map_err(storage_error)?
            && let Some(blob) = self.storage.blob(digest).await.map_err(storage_error)?
        {
            return Ok(blob);
        }
        Err(blob_unknown(repository, digest))
    }

    /// Where a client fetches a blob that `repository` holds, if not here. What is small is served at once.
    pub async fn blob_address(&self, repository: &Repository, digest: &Digest) -> Result<Option<String>, Error> {
        if !self.storage.redirects() {
            return Ok(None);
        }
        match self.held_len(repository, digest).await? {
            None => Err(blob_unknown(repository, digest)),
            Some(len) if len < MIN_REDIRECTED_BYTES => Ok(None),
            Some(_) => self.storage.address_of(digest).await.map_err(storage_error),
        }
    }

    /// The length of a blob that `repository` holds.
    pub async fn blob_len(&self, repository: &Repository, digest: &Digest) -> Result<u64, Error> {
        // Looked and told under one lock, so that it isn't collected in between.
        let _telling = self.repositories.shared(repository).await;
        self.tell_len(repository, digest).await?.ok_or_else(|| blob_unknown(repository, digest))
    }

    /// The length of a blob, if `repository` holds it: then that stays so for a while. For who has the repository's lock.
    pub(super) async fn tell_len(&self, repository: &Repository, digest: &Digest) -> Result<Option<u64>, Error> {
        let key = keys::held_blob(repository, digest);
        let is_leased = self.storage.is_leased(&key);
        let len = self.held_len(repository, digest).await?;
        if len.is_none() {
            return Ok(None); // Nothing to protect.
        }
        self.recent.told(repository, digest);
        if !self.storage.is_shared() || is_leased {
            return Ok(len);
        }
        // Another process may be collecting it: looked at again, when that can't be any more.
        self.acquire_lease(&key).await?;
        self.held_len(repository, digest).await
    }

    pub(super) async fn held_len(&self, repository: &Repository, digest: &Digest) -> Result<Option<u64>, Error> {
        if !self.storage.exists(&keys::held_blob(repository, digest)).await.map_err(storage_error)? {
            return Ok(None);
        }
        self.storage.blob_len(digest).await.map_err(storage_error)
    }

    /// Lets `repository` hold a blob of another one. Whether that one holds it.
    pub async fn mount(&self, repository: &Repository, digest: &Digest, from: &Repository) -> Result<bool, Error> {
        self.may_create(repository).await?;
        let _telling = self.repositories.shared(repository).await;
        let _guard = self.guard_blob(digest).await?;
        if self.held_len(from, digest).await?.is_none() {
            return Ok(false);
        }
        self.link_blob(repository, digest).await?;
        Ok(true)
    }

    /// Begins an upload.
    pub async fn start_upload(&self, repository: &Repository, algorithm: Algorithm) -> Result<Box<dyn Upload>, Error> {
        self.quotas.must_fit(repository, None, 1)?;
        self.may_create(repository).await?;
        self.storage.begin_upload(repository, algorithm).await.map_err(storage_error)
    }

    /// Takes up an upload, for this request alone.
    pub async fn resume_upload(&self, session: &UploadSession) -> Result<Box<dyn Upload>, Error> {
        self.storage.resume_upload(&session.repository, &session.id).await.map_err(upload_error)
    }

    /// Takes a blob in one request. Of one that breaks off, or is another one than was said, nothing stays: nobody knows the
    /// name of its upload. `announced` is how many bytes it says that it has.
    pub async fn push_blob<S, E>(
        &self,
        repository: &Repository,
        digest: &Digest,
        announced: u64,
        body: S,
    ) -> Result<(), Error>
    where
        S: Stream<Item = Result<Bytes, E>>,
        E: std::fmt::Display,
    {
        self.quotas.must_fit(repository, Some(digest), announced)?;
        self.may_create(repository).await?;
        let mut upload = self.storage.begin_upload(repository, digest.algorithm()).await.map_err(storage_error)?;
        upload.announce(digest);
        let id = upload.id().clone();
        let pushed = async {
            let upload = self.receive(repository, Some(digest), upload, body, None).await?;
            self.finish_upload(repository, upload, digest.clone()).await
        };
        let pushed = pushed.await;
        if pushed.is_err()
            && let Ok(left) = self.storage.resume_upload(repository, &id).await
        {
            // It expires otherwise; the answer is about the push.
            let _ = left.cancel().await.map_err(storage_error);
        }
        pushed
    }

    /// Appends a request's body, and makes it durable; `len` is how long it must be, if it has said so.
    pub async fn append<S, E>(
        &self,
        repository: &Repository,
        upload: Box<dyn Upload>,
        body: S,
        len: Option<u64>,
    ) -> Result<Box<dyn Upload>, Error>
    where
        S: Stream<Item = Result<Bytes, E>>,
        E: std::fmt::Display,
    {
        self.receive(repository, None, upload, body, len).await?.flush().await.map_err(storage_error)
    }

    /// Appends a request's body. If the client goes away, what it sent so far counts, but for what it has announced to be a blob;
    /// if it has another length than it has said, nothing of it does.
    pub async fn receive<S, E>(
        &self,
        repository: &Repository,
        digest: Option<&Digest>,
        upload: Box<dyn Upload>,
        body: S,
        len: Option<u64>,
    ) -> Result<Box<dyn Upload>, Error>
    where
        S: Stream<Item = Result<Bytes, E>>,
        E: std::fmt::Display,
    {
        let before = upload.len();
        let mut body = std::pin::pin!(body);
        let mut end = None;
        let mut writing = tokio::spawn(async move { Ok(upload) });
        let upload = loop {
            // While one batch is written, the next is received; what has come by then is the next.
            let (mut batch, mut len) = (Vec::new(), 0);
            let upload = loop {
                tokio::select! {
                    chunk = body.next(), if end.is_none() && len < BATCH_BYTES => match chunk {
                        Some(Ok(chunk)) => {
                            len += chunk.len();
                            batch.push(chunk);
                        }
                        Some(Err(error)) => end = Some(Some(error.to_string())),
                        None => end = Some(None),
                    },
                    written = &mut writing, if end.is_some() || len > 0 => break written,
                }
            };
            let upload = upload.unwrap_or_else(|panic| Err(io::Error::other(panic))).map_err(storage_error)?;
            if batch.is_empty() {
                break upload;
            }
            let upload = self.fitting(repository, digest, upload, len as u64).await?;
            writing = tokio::spawn(upload.append(batch));
        };
        let received = upload.len() - before;
        match end.flatten() {
            None if len.is_some_and(|len| len != received) => {
                upload.release().await.map_err(storage_error)?;
                let message = format!("the body has {received} bytes, which don't fit its Content-Range");
                Err(Error::new(StatusCode::BAD_REQUEST, ErrorCode::SizeInvalid, message))
            }
            None => Ok(upload),
            Some(error) => {
                tracing::info!(%error, "a client went away in the middle of an upload");
                upload.flush().await.map_err(storage_error)?;
                Err(Error::new(StatusCode::BAD_REQUEST, ErrorCode::BlobUploadInvalid, "the body ended too early"))
            }
        }
    }

    /// Closes an upload: its bytes must have this digest, and `repository` then holds it.
    pub async fn finish_upload(
        &self,
        repository: &Repository,
        upload: Box<dyn Upload>,
        digest: Digest,
    ) -> Result<(), Error> {
        let _telling = self.repositories.shared(repository).await;
        let _guard = self.guard_blob(&digest).await?;
        let len = upload.len();
        // Before it is a blob: of what doesn't fit nothing stays, and of many at once none goes beyond.
        let reserved = match self.quotas.reserve(repository, &digest, len) {
            Ok(reserved) => reserved,
            Err(full) => {
                upload.cancel().await.map_err(storage_error)?;
                return Err(full);
            }
        };
        if upload.finish(&digest).await.map_err(upload_error)? {
            self.statistics.added(len);
        }
        reserved.settle(&digest, len);
        self.link_blob(repository, &digest).await
    }

    /// Drops an upload.
    pub async fn cancel_upload(&self, session: &UploadSession) -> Result<(), Error> {
        self.resume_upload(session).await?.cancel().await.map_err(storage_error)
    }

    /// Lets `repository` hold the bytes of the file `from`, which are taken to have this digest: linked where that can be,
    /// unless `copy` says otherwise.
    pub async fn adopt_blob(
        &self,
        repository: &Repository,
        digest: &Digest,
        from: PathBuf,
        copy: bool,
    ) -> Result<(), Error> {
        let _telling = self.repositories.shared(repository).await;
        let _guard = self.guard_blob(digest).await?;
        if let Some(len) = self.storage.adopt(digest, from, copy).await.map_err(storage_error)? {
            self.statistics.added(len);
        }
        self.link_blob(repository, digest).await
    }

    /// Copies the bytes of a blob, whoever holds it, to the new file `to`.
    pub async fn copy_blob(&self, digest: &Digest, to: PathBuf) -> Result<(), Error> {
        self.storage.give(digest, to).await.map_err(storage_error)
    }

    /// For who has the repository's lock and then the digest's, in this order as everywhere.
    async fn link_blob(&self, repository: &Repository, digest: &Digest) -> Result<(), Error> {
        let key = keys::held_blob(repository, digest);
        self.count_blob(repository, digest).await?;
        self.recent.told(repository, digest);
        self.acquire_lease(&key).await?;
        self.storage.mark(vec![key]).await.map_err(storage_error)?;
        self.overviews.blob_changed(repository, digest);
        Ok(())
    }
}

pub(super) fn blob_unknown(repository: &Repository, digest: &Digest) -> Error {
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
