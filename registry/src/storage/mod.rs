//! Storage only keeps bytes: blobs by digest, small named files, and uploads that aren't finished.
//!
//! It knows nothing of what a manifest is. Whatever it has said to have written is durable, and appears whole or not at
//! all. There are two of them: a [`Directory`] of this machine, which one process has for itself, and a bucket of
//! [`Objects`], which several processes may share.

mod directory;
mod hasher;
pub mod keys;
mod objects;

use std::{fs::File, io, ops::Range, path::PathBuf, time::Duration};

use async_trait::async_trait;
use berth_oci::{Algorithm, Digest, Repository, UploadId};
use bytes::Bytes;
use futures_util::stream::BoxStream;

pub use directory::Directory;
pub use hasher::{Hasher, digest_of};
pub use objects::{Kind, Objects, Redirect, Service};

/// Where the registry keeps its bytes. Keys are those of [`keys`].
#[async_trait]
pub trait Storage: Send + Sync {
    /// Whether other processes may write here at the same time.
    fn is_shared(&self) -> bool;

    /// Finds out whether it can be used, and makes nothing.
    async fn check(&self) -> io::Result<()>;

    /// The content under a key, or nothing.
    async fn read(&self, key: &str) -> io::Result<Option<Vec<u8>>>;

    /// Whether there is something under a key.
    async fn exists(&self, key: &str) -> io::Result<bool>;

    /// Whether there is something in a folder.
    async fn is_folder(&self, folder: &str) -> io::Result<bool>;

    /// Puts `bytes` under a key, durably, instead of what may be there. Nothing is written, and the answer is no, if
    /// the condition doesn't hold; that is decided in one step with the write.
    async fn write(&self, key: &str, bytes: Vec<u8>, condition: Condition) -> io::Result<bool>;

    /// Puts `bytes` under a key in a folder that exists, or whose own folder does, without waiting until they are durable: what
    /// can be found out anew. A crash may lose them, or leave a part.
    async fn write_derived(&self, key: &str, bytes: Vec<u8>) -> io::Result<()>;

    /// Puts nothing under each key, durably: all of it is in the name. What was there is young again.
    async fn mark(&self, keys: Vec<String>) -> io::Result<()>;

    /// Takes away what is under a key, durably. Whether there was something.
    async fn remove(&self, key: &str) -> io::Result<bool>;

    /// Takes away, durably, whatever is under these keys.
    async fn remove_all(&self, keys: Vec<String>) -> io::Result<()>;

    /// Takes away, durably, what is under these keys and still begins with the line `content`; where other processes write,
    /// that is decided in one step with the removal. Whether each was.
    async fn remove_if(&self, keys: Vec<String>, content: &str) -> io::Result<Vec<bool>>;

    /// Makes durable the names that others have given in these folders, and may not have flushed yet.
    async fn settle(&self, folders: Vec<String>) -> io::Result<()>;

    /// Takes away a folder, those below it and those above it, as far as they are empty. Whether it is gone.
    async fn prune(&self, folder: &str) -> io::Result<bool>;

    /// At most `limit` names in a folder after `last`, sorted.
    async fn list(&self, folder: &str, last: Option<&str>, limit: usize) -> io::Result<Vec<String>>;

    /// At most `limit` repositories after `last` that have one of these folders. They are ordered part by part: `a`,
    /// `a/b`, `a-b`.
    async fn repositories(&self, having: &[&str], last: Option<&str>, limit: usize) -> io::Result<Vec<String>>;

    /// The bytes with this digest, open for reading.
    async fn blob(&self, digest: &Digest) -> io::Result<Option<Box<dyn Blob>>>;

    /// How many bytes have this digest, if they are here.
    async fn blob_len(&self, digest: &Digest) -> io::Result<Option<u64>>;

    /// Whether clients fetch blobs from the storage itself.
    fn redirects(&self) -> bool {
        false
    }

    /// Where a client fetches a blob that is there, for a short time and without a credential of its own.
    ///
    /// # Errors
    /// If the service doesn't sign it.
    async fn address_of(&self, _digest: &Digest) -> io::Result<Option<String>> {
        Ok(None)
    }

    /// Keeps a small blob whose bytes are all at hand, and whose digest the caller has computed. Whether it is new, as far
    /// as that is known.
    async fn put_blob(&self, digest: &Digest, bytes: Vec<u8>) -> io::Result<bool>;

    /// Keeps the file `from` as a blob, which is taken to have this digest: linked or cloned where that can be, or else
    /// copied, and always copied if `copy` says so. Its length, if it is new.
    async fn adopt(&self, digest: &Digest, from: PathBuf, copy: bool) -> io::Result<Option<u64>>;

    /// Copies a blob to the new file `to`: cloned where that can be.
    async fn give(&self, digest: &Digest, to: PathBuf) -> io::Result<()>;

    /// Begins an upload into `repository`.
    async fn begin_upload(&self, repository: &Repository, algorithm: Algorithm) -> io::Result<Box<dyn Upload>>;

    /// Takes up an upload, for this caller alone.
    ///
    /// # Errors
    /// [`UploadError::Unknown`] if `repository` has none of this name, [`UploadError::Busy`] while someone else
    /// holds it.
    async fn resume_upload(&self, repository: &Repository, id: &UploadId) -> Result<Box<dyn Upload>, UploadError>;

    /// Drops the uploads that nobody has gone on with for `age`; how many there were.
    async fn expire_uploads(&self, age: Duration, dry_run: bool) -> io::Result<u64>;

    /// How many uploads aren't finished.
    async fn count_uploads(&self) -> io::Result<u64>;

    /// The names in a folder, in no order, with how long ago each was written; in a bucket, of all that is below it.
    async fn ages_in(&self, folder: &str) -> io::Result<Vec<(String, Duration)>>;

    /// The names in a folder of what was written at least `age` ago, in no order; in a bucket, of all that is below it.
    async fn older_in(&self, folder: &str, age: Duration) -> io::Result<Vec<String>> {
        let all = self.ages_in(folder).await?;
        Ok(all.into_iter().filter(|(_, its_age)| *its_age >= age).map(|(name, _)| name).collect())
    }

    /// What was [taken away](Self::remove_if) of a folder at least `age` ago, and still has a name there.
    async fn tombstones_in(&self, folder: &str, age: Duration) -> io::Result<Vec<String>>;

    /// The folders that blobs are spread over.
    async fn shards(&self) -> io::Result<Vec<String>>;

    /// The blobs on a shard; those that were written at least `age` ago are old.
    async fn blobs_in(&self, shard: &str, age: Duration) -> io::Result<Vec<StoredBlob>>;

    /// Finds out whether something can be written now, and leaves nothing behind.
    ///
    /// # Errors
    /// Why it can't.
    async fn probe(&self) -> io::Result<()>;

    /// How much room there is, if there is a bound.
    async fn space(&self) -> Option<Space>;

    /// Keeps what is under a key from being [deleted](Self::delete_if_unprotected) by a collector in another process for a while. A
    /// collector may be at it already; then it is as good as gone, and the answer is no.
    async fn acquire_lease(&self, key: &str) -> io::Result<bool>;

    /// Whether such a lease is known to hold, without asking anybody.
    fn is_leased(&self, _key: &str) -> bool {
        false
    }

    /// The same before something is written under a key that may have been taken away [lately](Self::remove_if).
    async fn revive(&self, key: &str) -> io::Result<bool>;

    /// Takes away what is under a key, unless it was written or leased less than `age` ago. Whether it did.
    async fn delete_if_unprotected(&self, key: &str, age: Duration) -> io::Result<bool>;
}

/// How long garbage is kept at least where several registries share a bucket, whose clocks differ: what is written is as young
/// as the service's clock says.
pub const SHORTEST_SHARED_DELAY: Duration = Duration::from_mins(10);

/// A blob as it is listed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredBlob {
    /// What it is called by.
    pub digest: Digest,
    /// Its bytes.
    pub len: u64,
    /// Whether it was written as long ago as was asked for.
    pub is_old: bool,
}

/// The room of a disk, in bytes.
#[derive(Clone, Copy, Debug)]
pub struct Space {
    /// What we may still write.
    pub free: u64,
    /// All of it.
    pub size: u64,
}

/// What must be so when something is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Condition {
    /// Nothing.
    None,
    /// There is nothing under the key.
    Absent,
    /// There is something under the key.
    Present,
}

/// A blob that is open for reading.
pub trait Blob: Send {
    /// How many bytes it has.
    fn len(&self) -> u64;

    /// A part of them, in pieces of a bounded length.
    fn read(self: Box<Self>, range: Range<u64>) -> BoxStream<'static, io::Result<Bytes>>;

    /// The open file, if it is one.
    fn file(self: Box<Self>) -> Option<File> {
        None
    }
}

/// An upload that one request holds.
#[async_trait]
pub trait Upload: Send {
    /// Its name.
    fn id(&self) -> &UploadId;

    /// How many bytes it has.
    fn len(&self) -> u64;

    /// Says which blob it will be at the end of the request that holds it; only of an empty upload. If that request breaks off,
    /// its bytes may not count. Any other upload is read again at the end, if its digest isn't of the algorithm that it was hashed
    /// with.
    fn announce(&mut self, digest: &Digest);

    /// Appends some bytes, off the async threads. They count when they are flushed.
    ///
    /// # Errors
    /// If the storage says no. Then nothing counts that wasn't flushed before, and its room is given back.
    async fn append(self: Box<Self>, chunks: Vec<Bytes>) -> io::Result<Box<dyn Upload>>;

    /// Makes durable what was appended, and writes down how far it is.
    ///
    /// # Errors
    /// As [`Upload::append`].
    async fn flush(self: Box<Self>) -> io::Result<Box<dyn Upload>>;

    /// Makes it the blob that it is, instead of a file of that name whose bytes may be damaged. The upload is gone
    /// afterwards. Whether the blob is new.
    ///
    /// # Errors
    /// [`UploadError::Digest`] if its bytes have another digest.
    async fn finish(self: Box<Self>, expected: &Digest) -> Result<bool, UploadError>;

    /// Lets others take it up, with what counted before.
    async fn release(self: Box<Self>) -> io::Result<()>;

    /// Drops it.
    async fn cancel(self: Box<Self>) -> io::Result<()>;
}

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
    /// The storage said no.
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// What comes before the first line break: of a tag, its digest.
pub fn first_line(bytes: &[u8]) -> &[u8] {
    bytes.split(|byte| *byte == b'\n').next().unwrap_or_default()
}

fn new_upload_id() -> io::Result<UploadId> {
    uuid::Uuid::new_v4().to_string().parse().map_err(|()| io::Error::other("an upload's name is none"))
}
