//! Reads that wait for no disk: whatever the kernel has in memory is read at once, on the async thread that asks.
//! Anything else is `None` here, and is read where waiting harms nobody.
//!
//! `RESOLVE_CACHED` of openat2(2) looks a path up only in memory, and `RWF_NOWAIT` of preadv2(2) reads only what is
//! there. A kernel that knows neither costs nothing but speed.

use std::{fs::File, io};

use berth_files::read_cached;
use rustix::{
    fs::{Mode, OFlags, ResolveFlags, fstat, openat2},
    io::Errno,
};

/// Larger files are worth a thread.
const MAX_CACHED_BYTES: i64 = 256 * 1024;

/// Opens the file at `key` below `root`, or finds that there is none.
pub fn open(root: &File, key: &str) -> Option<io::Result<Option<File>>> {
    open_as(root, key, OFlags::RDONLY)
}

/// Whether there is something at `key` below `root`.
pub fn exists(root: &File, key: &str) -> Option<io::Result<bool>> {
    Some(open_as(root, key, OFlags::PATH)?.map(|found| found.is_some()))
}

fn open_as(root: &File, key: &str, access: OFlags) -> Option<io::Result<Option<File>>> {
    let resolve = ResolveFlags::CACHED | ResolveFlags::BENEATH;
    match openat2(root, key, access | OFlags::CLOEXEC, Mode::empty(), resolve) {
        Ok(file) => Some(Ok(Some(file.into()))),
        Err(Errno::NOENT | Errno::NOTDIR) => Some(Ok(None)),
        // It isn't in memory, or this kernel can't tell: whoever waits for the disk finds out, and reports what fails.
        Err(_) => None,
    }
}

/// The content of the small file at `key` below `root`, or that there is none.
pub fn read(root: &File, key: &str) -> Option<io::Result<Option<Vec<u8>>>> {
    let file = match open(root, key)? {
        Ok(Some(file)) => file,
        Ok(None) => return Some(Ok(None)),
        Err(error) => return Some(Err(error)),
    };
    let len = fstat(&file).ok().map(|stat| stat.st_size).filter(|len| (0..=MAX_CACHED_BYTES).contains(len))?;
    let mut bytes = vec![0; usize::try_from(len).ok()?];
    let all = bytes.is_empty() || read_cached(&file, &mut bytes, 0)? == bytes.len();
    all.then_some(Ok(Some(bytes)))
}
