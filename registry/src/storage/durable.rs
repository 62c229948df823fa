//! Writes that survive a crash.
//!
//! A file is written under a temporary name, flushed, and then renamed; the folder that holds the new name is
//! flushed after that. A crash between any two of these steps leaves the state before, or a temporary file that
//! the next start removes.

use std::{
    collections::HashSet,
    fs::{self, File},
    io,
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
};

/// Flushes a folder, so that the names in it survive a crash.
pub fn sync_folder(folder: &Path) -> io::Result<()> {
    File::open(folder)?.sync_all()
}

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

/// Folders that are known to survive a crash, so that they are flushed once and not at each write.
pub struct Folders {
    root: PathBuf,
    known: Mutex<HashSet<PathBuf>>,
}

/// How many folders are remembered; then the memory starts anew.
const REMEMBERED: usize = 50_000;

impl Folders {
    pub fn new(root: PathBuf) -> Self {
        Self { root, known: Mutex::default() }
    }

    /// Makes `folder`, which is below the root, and all above it.
    ///
    /// A folder that someone else has just made may not be flushed yet, so a folder that exists isn't one that
    /// is known.
    pub fn make(&self, folder: &Path) -> io::Result<()> {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if known.contains(folder) {
            return Ok(());
        }
        if known.len() >= REMEMBERED {
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
                _ => sync_folder(&parent)?,
            }
            known.insert(path.clone());
        }
        Ok(())
    }
}
