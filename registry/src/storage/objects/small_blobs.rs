//! Small blobs that were read or written lately: most pulls are of a few manifests, whose bytes needn't be asked for again. The
//! bytes of a digest never change, so only whether a repository holds them is still the bucket's to say.

use std::{io, ops::Range};

use berth_oci::Digest;
use bytes::Bytes;
use futures_util::{
    StreamExt,
    future::ready,
    stream::{self, BoxStream},
};
use moka::sync::Cache;

use crate::storage::{Blob, digest_of};

/// How long a blob is at most that is kept, in bytes.
pub const MAX_BLOB_BYTES: usize = 64 * 1024;

/// How much is kept in all, in bytes.
const ALL_BLOBS_BYTES: u64 = 16 * 1024 * 1024;

/// What each costs beside its bytes, in bytes: its digest, and its place.
const ENTRY_BYTES: usize = 256;

/// What is kept.
pub struct SmallBlobs(Cache<Digest, Bytes>);

impl SmallBlobs {
    /// Nothing yet.
    pub fn new() -> Self {
        let weight = |_: &Digest, bytes: &Bytes| u32::try_from(bytes.len() + ENTRY_BYTES).unwrap_or(u32::MAX);
        Self(Cache::builder().max_capacity(ALL_BLOBS_BYTES).weigher(weight).build())
    }

    /// The bytes of a digest, if they are kept.
    pub fn get(&self, digest: &Digest) -> Option<Bytes> {
        self.0.get(digest)
    }

    /// Keeps bytes that the bucket has and whose digest the caller has computed, unless there are too many.
    pub fn insert(&self, digest: &Digest, bytes: &Bytes) {
        if bytes.len() <= MAX_BLOB_BYTES {
            // A copy: these may be a part of something larger, which would be kept with them.
            self.0.insert(digest.clone(), Bytes::copy_from_slice(bytes));
        }
    }

    /// Keeps bytes that were read, unless they are others: what was damaged in the bucket is found out by whoever reads it, and
    /// doesn't outlive its mend here.
    pub fn insert_if_sound(&self, digest: &Digest, bytes: &Bytes) {
        if digest_of(digest.algorithm(), bytes).is_ok_and(|actual| actual == *digest) {
            self.insert(digest, bytes);
        }
    }
}

/// All of a blob.
pub struct BlobInMemory(pub Bytes);

impl Blob for BlobInMemory {
    fn len(&self) -> u64 {
        self.0.len() as u64
    }

    fn read(self: Box<Self>, range: Range<u64>) -> BoxStream<'static, io::Result<Bytes>> {
        let [from, to] =
            [range.start, range.end].map(|at| usize::try_from(at).map_or(self.0.len(), |at| at.min(self.0.len())));
        stream::once(ready(Ok(self.0.slice(from.min(to)..to)))).boxed()
    }
}
