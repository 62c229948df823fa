//! Reading a file: pieces of it, as many at once as the client takes.

use std::{
    fs::File,
    io::{self, IoSliceMut},
    ops::Range,
    os::unix::fs::FileExt,
    sync::{Arc, Mutex, PoisonError},
};

use bytes::Bytes;
use rustix::io::{ReadWriteFlags, preadv2};

/// A part of a file, from where it is read next.
pub struct Pieces {
    file: Arc<File>,
    at: u64,
    end: u64,
    spare: Spare,
}

impl Pieces {
    /// A part of a file.
    pub fn new(file: File, range: Range<u64>) -> Self {
        Self { file: Arc::new(file), at: range.start, end: range.end, spare: Spare::default() }
    }

    /// Whether nothing is left.
    pub fn is_done(&self) -> bool {
        self.at >= self.end
    }

    /// The next piece, of at most so many bytes; nothing, at the end. What the kernel has in memory is read at once, and
    /// anything else on a thread.
    ///
    /// # Errors
    /// If it can't be read, or is shorter than it was.
    pub async fn next(&mut self, most: usize) -> io::Result<Option<Bytes>> {
        let wanted = most.min(usize::try_from(self.end.saturating_sub(self.at)).unwrap_or(most));
        if wanted == 0 {
            return Ok(None);
        }
        let mut buffer = self.spare.take(most);
        buffer.resize(wanted, 0);
        let read = match read_cached(&self.file, &mut buffer, self.at) {
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

/// Reads what is in memory of a file from `at` on (`RWF_NOWAIT` of preadv2(2)); nothing if that is nothing, or if the kernel
/// can't tell.
pub fn read_cached(file: &File, buffer: &mut [u8], at: u64) -> Option<usize> {
    preadv2(file, &mut [IoSliceMut::new(buffer)], at, ReadWriteFlags::NOWAIT).ok().filter(|read| *read > 0)
}

/// A buffer that was sent, to be filled again: new memory for each piece would cost as much as reading it. Beside it, how much
/// the last piece might have: there may be less room now than there was.
#[derive(Clone, Default)]
struct Spare(Arc<Mutex<(Option<Vec<u8>>, usize)>>);

impl Spare {
    fn take(&self, capacity: usize) -> Vec<u8> {
        let mut spare = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        spare.1 = capacity;
        spare.0.take().filter(|spare| spare.capacity() <= capacity).unwrap_or_else(|| Vec::with_capacity(capacity))
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
        let mut spare = self.spare.0.lock().unwrap_or_else(PoisonError::into_inner);
        spare.0 = Some(buffer).filter(|buffer| buffer.capacity() <= spare.1);
    }
}
