//! Reading a blob: its file, in pieces.

use std::{fs::File, io, ops::Range};

use berth_files::Pieces;
use bytes::Bytes;
use futures_util::{
    StreamExt,
    stream::{self, BoxStream},
};

use crate::storage::Blob;

/// How much is read at once.
const PIECE_BYTES: usize = 128 * 1024;

/// A blob's file.
pub struct BlobFile {
    pub file: File,
    pub len: u64,
}

impl Blob for BlobFile {
    fn len(&self) -> u64 {
        self.len
    }

    fn read(self: Box<Self>, range: Range<u64>) -> BoxStream<'static, io::Result<Bytes>> {
        let pieces = Pieces::new(self.file, range);
        stream::unfold(pieces, async |mut pieces| Some((pieces.next(PIECE_BYTES).await.transpose()?, pieces))).boxed()
    }

    fn file(self: Box<Self>) -> Option<File> {
        Some(self.file)
    }
}
