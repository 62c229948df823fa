//! Writes that survive a crash.
//!
//! A file is written under a temporary name, flushed, and then renamed; the folder that holds the new name is
//! flushed after that. A crash between any two of these steps leaves the state before, or a temporary file that
//! the next start removes.

use std::{
    collections::{HashMap, HashSet},
    fs::{self, File},
    io,
    path::{Path, PathBuf},
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
};

/// The folder that holds `path`.
pub fn folder_of(path: &Path) -> io::Result<&Path> {
    path.parent().ok_or_else(|| io::Error::other("a path without a folder"))
}

/// Nothing instead of an error when the file isn't there.
pub fn found<T>(result: io::Result<T>) -> io::Result<Option<T>> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => Ok(None),
        Err(e) => Err(e),
    }
}

/// The folders below a root: made durably, and flushed once for all who wait.
pub struct Folders {
    root: PathBuf,
    /// Those that are known to survive a crash, so that they are flushed once and not at each write.
    known: Mutex<HashSet<PathBuf>>,
    /// Those that are being flushed.
    flushing: Mutex<HashMap<PathBuf, Arc<Flushes>>>,
}

/// How many folders are remembered; then the memory starts anew.
const MAX_REMEMBERED_FOLDERS: usize = 50_000;

impl Folders {
    pub fn new(root: PathBuf) -> Self {
        Self { root, known: Mutex::default(), flushing: Mutex::default() }
    }

    /// Makes `folder`, which is below the root, and all above it.
    ///
    /// A folder that someone else has just made may not be flushed yet, so a folder that exists isn't one that
    /// is known.
    pub fn make(&self, folder: &Path) -> io::Result<()> {
        let mut known = lock(&self.known);
        if known.contains(folder) {
            return Ok(());
        }
        if known.len() >= MAX_REMEMBERED_FOLDERS {
            known.clear();
        }
        let below = folder.strip_prefix(&self.root).map_err(io::Error::other)?;
        let mut path = self.root.clone();
        for component in below.components() {
            let parent = path.clone();
            path.push(component);
            if known.contains(&path) {
                continue;
            }
            match fs::create_dir(&path) {
                Err(e) if e.kind() != io::ErrorKind::AlreadyExists => return Err(e),
                _ => File::open(&parent)?.sync_all()?,
            }
            known.insert(path.clone());
        }
        Ok(())
    }

    /// Flushes a folder, so that the names in it survive a crash.
    ///
    /// Whoever comes while it is being flushed waits for the next flush, which is then for all who wait: many small
    /// pushes pay for few.
    pub fn flush(&self, folder: &Path) -> io::Result<()> {
        let flushes = Arc::clone(lock(&self.flushing).entry(folder.to_owned()).or_default());
        let flushed = flushes.share(|| File::open(folder)?.sync_all());
        let mut flushing = lock(&self.flushing);
        // The map's, and ours: nobody else has it.
        if Arc::strong_count(&flushes) == 2 {
            flushing.remove(folder);
        }
        flushed
    }
}

/// The flushes of one folder, one after the other.
#[derive(Default)]
struct Flushes {
    state: Mutex<Flushed>,
    ended: Condvar,
}

#[derive(Default)]
struct Flushed {
    running: bool,
    /// How many have begun.
    begun: u64,
    /// The number of the last one that succeeded.
    good: u64,
}

impl Flushes {
    /// Returns after a whole `flush` that began after this was called, by this caller or by another one.
    fn share(&self, flush: impl FnOnce() -> io::Result<()>) -> io::Result<()> {
        let mut state = lock(&self.state);
        // What is running may have looked before our name was there.
        let ours = state.begun + 1;
        while state.running {
            state = self.ended.wait(state).unwrap_or_else(PoisonError::into_inner);
            if state.good >= ours {
                return Ok(());
            }
        }
        state.running = true;
        state.begun += 1;
        let number = state.begun;
        drop(state);
        let flushed = flush();
        let mut state = lock(&self.state);
        state.running = false;
        if flushed.is_ok() {
            state.good = number;
        }
        drop(state);
        self.ended.notify_all();
        flushed
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::sync::{
        Barrier,
        atomic::{AtomicU64, Ordering},
    };

    use super::*;

    /// Every name that was there before a flush was asked for is there when that returns, and there are fewer flushes
    /// than askers.
    #[test]
    fn a_flush_is_shared_and_never_an_earlier_one() {
        let (flushes, together) = (Flushes::default(), Barrier::new(16));
        let (names, seen, count) = (AtomicU64::new(0), AtomicU64::new(0), AtomicU64::new(0));
        std::thread::scope(|scope| {
            for _ in 0..16 {
                scope.spawn(|| {
                    together.wait();
                    for _ in 0..50 {
                        let ours = names.fetch_add(1, Ordering::SeqCst) + 1;
                        let flush = || {
                            let before = names.load(Ordering::SeqCst);
                            std::thread::sleep(std::time::Duration::from_micros(200));
                            seen.fetch_max(before, Ordering::SeqCst);
                            count.fetch_add(1, Ordering::SeqCst);
                            Ok(())
                        };
                        flushes.share(flush).expect("flushed");
                        assert!(seen.load(Ordering::SeqCst) >= ours);
                    }
                });
            }
        });
        assert!(count.load(Ordering::SeqCst) < 16 * 50 / 2, "{count:?} flushes");
    }

    #[test]
    fn a_flush_that_failed_is_nobody_s() {
        let flushes = Flushes::default();
        assert!(flushes.share(|| Err(io::Error::other("no"))).is_err());
        assert!(flushes.share(|| Ok(())).is_ok());
    }
}
