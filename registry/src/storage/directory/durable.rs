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

/// Nothing instead of an error when the file isn't there, or something is there that can be none of ours: a folder where a
/// file should be, or the other way round, or a link that leads to itself.
pub fn found<T>(result: io::Result<T>) -> io::Result<Option<T>> {
    use io::ErrorKind::{IsADirectory, NotADirectory, NotFound};
    match result {
        Ok(value) => Ok(Some(value)),
        Err(e) if matches!(e.kind(), NotFound | NotADirectory | IsADirectory) => Ok(None),
        Err(e) if e.raw_os_error() == Some(rustix::io::Errno::LOOP.raw_os_error()) => Ok(None),
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
    /// Those in which names are given that may not be flushed yet, and by how many.
    unsettled: Mutex<HashMap<PathBuf, usize>>,
    /// Those of which a flush has failed. The kernel may have dropped what it couldn't write, and would say of the next
    /// flush that all is well (fsync(2), "EIO"): nothing more is acknowledged that is in them, until a new start.
    failed: Mutex<HashSet<PathBuf>>,
}

/// How many folders are remembered; then the memory starts anew.
const MAX_REMEMBERED_FOLDERS: usize = 50_000;

impl Folders {
    pub fn new(root: PathBuf) -> Self {
        let (known, flushing, unsettled, failed) = Default::default();
        Self { root, known, flushing, unsettled, failed }
    }

    /// While this lives, names in `folder` may be seen that aren't flushed.
    pub fn unsettle(&self, folder: &Path) -> Unsettled<'_> {
        *lock(&self.unsettled).entry(folder.to_owned()).or_default() += 1;
        Unsettled { folders: self, folder: folder.to_owned() }
    }

    /// Makes durable all names that can be seen in a folder, whoever gave them.
    pub fn settle(&self, folder: &Path) -> io::Result<()> {
        let is_settled = !lock(&self.unsettled).contains_key(folder);
        if is_settled { Ok(()) } else { self.flush(folder) }
    }

    /// Nothing, or the error that a flush has failed.
    pub fn must_be_sound(&self) -> io::Result<()> {
        lock(&self.failed).iter().next().map_or(Ok(()), |folder| Err(unsound(folder)))
    }

    /// Makes `folder`, which is below the root, and all above it.
    ///
    /// A folder that someone else has just made may not be flushed yet, so a folder that exists isn't one that
    /// is known.
    pub fn make(&self, folder: &Path) -> io::Result<()> {
        // What was written elsewhere, and is named by what is written here, may be lost.
        self.must_be_sound()?;
        for _ in 0..MAX_ATTEMPTS {
            match self.try_make(folder) {
                // Somebody has pruned what was empty above it.
                Err(e) if e.kind() == io::ErrorKind::NotFound => {
                    lock(&self.known).retain(|known| !folder.starts_with(known));
                }
                made => return made,
            }
        }
        self.try_make(folder)
    }

    fn try_make(&self, folder: &Path) -> io::Result<()> {
        if lock(&self.known).contains(folder) {
            return Ok(());
        }
        let below = folder.strip_prefix(&self.root).map_err(io::Error::other)?;
        let mut path = self.root.clone();
        for component in below.components() {
            let parent = path.clone();
            path.push(component);
            if lock(&self.known).contains(&path) {
                continue;
            }
            match fs::create_dir(&path) {
                Err(e) if e.kind() != io::ErrorKind::AlreadyExists => return Err(e),
                _ => self.flush(&parent)?,
            }
            let mut known = lock(&self.known);
            if known.len() >= MAX_REMEMBERED_FOLDERS {
                known.clear();
            }
            known.insert(path.clone());
        }
        Ok(())
    }

    /// Takes away a folder, those below it and those above it, as far as they are empty. Whoever is about to write in it
    /// must be kept away. Whether it is gone.
    pub fn prune(&self, folder: &Path) -> io::Result<bool> {
        if !self.prune_below(folder)? {
            return Ok(false);
        }
        let mut path = folder_of(folder)?;
        // Those directly below the root stay.
        while folder_of(path)? != self.root && self.remove(path)? {
            path = folder_of(path)?;
        }
        Ok(true)
    }

    /// Whether a folder is gone; the first file that is found keeps it, however many there are.
    fn prune_below(&self, folder: &Path) -> io::Result<bool> {
        for entry in found(fs::read_dir(folder))?.into_iter().flatten() {
            let entry = entry?;
            if !entry.file_type()?.is_dir() || !self.prune_below(&entry.path())? {
                return Ok(false);
            }
        }
        self.remove(folder)
    }

    /// Takes away a folder if it is empty. Whether it is gone.
    fn remove(&self, folder: &Path) -> io::Result<bool> {
        lock(&self.known).remove(folder);
        match fs::remove_dir(folder) {
            Ok(()) => Ok(true),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(true),
            Err(e) if matches!(e.kind(), io::ErrorKind::DirectoryNotEmpty | io::ErrorKind::NotADirectory) => Ok(false),
            Err(e) => Err(e),
        }
    }

    /// Flushes a folder, so that the names in it survive a crash.
    ///
    /// Whoever comes while it is being flushed waits for the next flush, which is then for all who wait: many small
    /// pushes pay for few.
    pub fn flush(&self, folder: &Path) -> io::Result<()> {
        let flushes = Arc::clone(lock(&self.flushing).entry(folder.to_owned()).or_default());
        let flushed = flushes.share(|| {
            if lock(&self.failed).contains(folder) {
                return Err(unsound(folder));
            }
            let opened = File::open(folder)?;
            opened.sync_all().inspect_err(|error| {
                tracing::error!(folder = %folder.display(), %error, "a flush failed; nothing more is stored there until a new start");
                lock(&self.failed).insert(folder.to_owned());
            })
        });
        let mut flushing = lock(&self.flushing);
        // The map's, and ours: nobody else has it.
        if Arc::strong_count(&flushes) == 2 {
            flushing.remove(folder);
        }
        flushed
    }
}

/// Somebody gives names in a folder, and hasn't flushed them yet.
pub struct Unsettled<'a> {
    folders: &'a Folders,
    folder: PathBuf,
}

impl Drop for Unsettled<'_> {
    fn drop(&mut self) {
        let mut unsettled = lock(&self.folders.unsettled);
        match unsettled.get_mut(&self.folder) {
            Some(count) if *count > 1 => *count -= 1,
            _ => drop(unsettled.remove(&self.folder)),
        }
    }
}

/// How often a folder is made that others take away at the same time.
const MAX_ATTEMPTS: usize = 100;

fn unsound(folder: &Path) -> io::Error {
    let folder = folder.display();
    io::Error::other(format!(
        "{folder}: a flush has failed, and what was written there may be lost; look after the disk, and start the registry anew"
    ))
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
    /// The number of the last one that failed.
    failed: u64,
    /// How many have come to wait.
    #[cfg(test)]
    waited: u64,
}

impl Flushes {
    /// Returns after a whole `flush` that began after this was called, by this caller or by another one.
    fn share(&self, flush: impl FnOnce() -> io::Result<()>) -> io::Result<()> {
        let mut state = lock(&self.state);
        // What is running may have looked before our name was there.
        let ours = state.begun + 1;
        #[cfg(test)]
        {
            state.waited += u64::from(state.running);
        }
        while state.running {
            state = self.ended.wait(state).unwrap_or_else(PoisonError::into_inner);
            if state.good >= ours {
                return Ok(());
            }
            // Whoever tried for us has failed: to try again on another descriptor could look like a success.
            if state.failed >= ours {
                return Err(io::Error::other("the flush that was waited for has failed"));
            }
        }
        state.running = true;
        state.begun += 1;
        let number = state.begun;
        drop(state);
        let flushed = flush();
        let mut state = lock(&self.state);
        state.running = false;
        match flushed {
            Ok(()) => state.good = number,
            Err(_) => state.failed = number,
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
    fn a_flush_that_failed_has_failed_for_all_who_waited_for_it() {
        let (flushes, together, calls) = (Flushes::default(), Barrier::new(8), AtomicU64::new(0));
        let failures = std::thread::scope(|scope| {
            let askers: Vec<_> = (0..8)
                .map(|_| {
                    scope.spawn(|| {
                        let flush = || {
                            while lock(&flushes.state).waited < 7 {
                                std::thread::yield_now();
                            }
                            match calls.fetch_add(1, Ordering::SeqCst) {
                                0 => Ok(()),
                                _ => Err(io::Error::other("no")),
                            }
                        };
                        together.wait();
                        flushes.share(flush).is_err()
                    })
                })
                .collect();
            askers
                .into_iter()
                .filter(|_| true)
                .map(|asker| asker.join().expect("no panic"))
                .filter(|failed| *failed)
                .count()
        });
        // The first was for whoever began it; the second was for all the others.
        assert_eq!((failures, calls.load(Ordering::SeqCst)), (7, 2));
    }
}
