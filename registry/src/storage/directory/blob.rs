//! Reading a blob: pieces of a file, as many at once as the client takes.

use std::{
    fs::File,
    io,
    ops::Range,
    os::unix::fs::FileExt,
    sync::{Arc, Mutex, PoisonError},
};

use bytes::Bytes;
use futures_util::{
    StreamExt,
    stream::{self, BoxStream},
};

use super::cached;
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
        let reader = Reader { file: Arc::new(self.file), at: range.start, end: range.end, spare: Spare::default() };
        let pieces = stream::unfold(reader, async |mut reader| Some((reader.next().await.transpose()?, reader)));
        pieces.boxed()
    }
}

struct Reader {
    file: Arc<File>,
    at: u64,
    end: u64,
    spare: Spare,
}

impl Reader {
    async fn next(&mut self) -> io::Result<Option<Bytes>> {
        let wanted = PIECE_BYTES.min(usize::try_from(self.end - self.at).unwrap_or(PIECE_BYTES));
        if wanted == 0 {
            return Ok(None);
        }
        let mut buffer = self.spare.take();
        buffer.resize(wanted, 0);
        let read = match cached::read_at(&self.file, &mut buffer, self.at) {
            Some(read) => read,
            None => {
                let (file, at) = (Arc::clone(&self.file), self.at);
                let reading = tokio::task::spawn_blocking(move || {
                    let read = file.read_at(&mut buffer, at);
                    (read, buffer)
                });
                let read;
                (read, buffer) = reading.await.map_err(io::Error::other)?;
                read?
            }
        };
        if read == 0 {
            self.end = self.at; // Nothing follows an error.
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "a blob's file is shorter than it was"));
        }
        self.at += read as u64;
        buffer.truncate(read);
        Ok(Some(Bytes::from_owner(Lent { buffer, spare: self.spare.clone() })))
    }
}

/// Buffers that were sent, to be filled again: new memory for each piece would cost as much as reading it.
#[derive(Clone, Default)]
struct Spare(Arc<Mutex<Vec<Vec<u8>>>>);

impl Spare {
    fn take(&self) -> Vec<u8> {
        let spare = self.0.lock().unwrap_or_else(PoisonError::into_inner).pop();
        spare.unwrap_or_else(|| Vec::with_capacity(PIECE_BYTES))
    }
}

struct Lent {
    buffer: Vec<u8>,
    spare: Spare,
}

impl AsRef<[u8]> for Lent {
    fn as_ref(&self) -> &[u8] {
        &self.buffer
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        let buffer = std::mem::take(&mut self.buffer);
        self.spare.0.lock().unwrap_or_else(PoisonError::into_inner).push(buffer);
    }
}
