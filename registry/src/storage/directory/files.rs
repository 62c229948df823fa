//! What is done with single files and folders.

use std::{
    collections::BinaryHeap,
    fs::{self, File, OpenOptions},
    io,
    os::unix::fs::OpenOptionsExt,
    path::Path,
    time::Duration,
};

use rustix::{
    fs::{CWD, FlockOperation, RenameFlags, flock, ioctl_ficlone, renameat_with},
    io::Errno,
};

use super::{OpenError, durable::found};
use crate::storage::Condition;

/// The names in a folder, sorted; nothing if there is no such folder.
pub fn list(folder: &Path) -> io::Result<Option<Vec<String>>> {
    let Some(entries) = found(fs::read_dir(folder))? else { return Ok(None) };
    let mut names = Vec::new();
    for entry in entries {
        // Whatever isn't text is none of ours.
        if let Ok(name) = entry?.file_name().into_string() {
            names.push(name);
        }
    }
    names.sort_unstable();
    Ok(Some(names))
}

/// At most `limit` of the names in a folder that come after `last`, sorted; no more than that is held of a long folder.
pub fn page(folder: &Path, last: Option<&str>, limit: usize) -> io::Result<Vec<String>> {
    let mut smallest = BinaryHeap::new();
    for entry in found(fs::read_dir(folder))?.into_iter().flatten() {
        // Whatever isn't text is none of ours.
        let Ok(name) = entry?.file_name().into_string() else { continue };
        if last.is_some_and(|last| *name <= *last) {
            continue;
        }
        if smallest.len() < limit {
            smallest.push(name);
        } else if let Some(mut largest) = smallest.peek_mut()
            && name < *largest
        {
            *largest = name;
        }
    }
    Ok(smallest.into_sorted_vec())
}

/// The names in a folder, with their lengths and how long ago they were written. What can't be looked at is reported, and
/// left out.
pub fn ages(folder: &Path) -> io::Result<Vec<(String, u64, Duration)>> {
    let mut all = Vec::new();
    let Some(entries) = found(fs::read_dir(folder))? else { return Ok(all) };
    for entry in entries {
        let entry = entry?;
        let looked = found(entry.metadata()).and_then(|metadata| {
            let Some(metadata) = metadata else { return Ok(None) };
            Ok(Some((metadata.len(), metadata.modified()?)))
        });
        match (looked, entry.file_name().into_string()) {
            // A clock that was set back makes things young, and the young are kept.
            (Ok(Some((len, written))), Ok(name)) => all.push((name, len, written.elapsed().unwrap_or_default())),
            (Err(error), _) => {
                tracing::error!(path = %entry.path().display(), %error, "this can't be read, and is left")
            }
            _ => {}
        }
    }
    Ok(all)
}

/// The error with the path that it is about.
pub fn named(path: &Path, error: io::Error) -> io::Error {
    // That has nothing to do with the path.
    if matches!(Errno::from_io_error(&error), Some(Errno::MFILE | Errno::NFILE)) {
        return error;
    }
    io::Error::new(error.kind(), format!("{}: {error}", path.display()))
}

/// Renames, if the condition holds, in one step.
pub fn rename(from: &Path, to: &Path, condition: Condition) -> io::Result<bool> {
    let flags = match condition {
        Condition::None => return fs::rename(from, to).map(|()| true),
        Condition::Absent => RenameFlags::NOREPLACE,
        // Of what isn't there, nothing can be exchanged.
        Condition::Present => RenameFlags::EXCHANGE,
    };
    match renameat_with(CWD, from, CWD, to, flags) {
        Ok(()) if condition == Condition::Present => fs::remove_file(from).map(|()| true),
        Ok(()) => Ok(true),
        Err(Errno::EXIST | Errno::NOENT) => Ok(false),
        // A file system that knows neither: no other process writes here, and in this one the repository is locked.
        Err(Errno::INVAL | Errno::NOSYS) => {
            let holds = fs::exists(to)? == (condition == Condition::Present);
            if holds {
                fs::rename(from, to)?;
            }
            Ok(holds)
        }
        Err(error) => Err(error.into()),
    }
}

/// Locks the directory for this process, and proves that it can be written.
pub fn lock(root: &Path) -> Result<File, OpenError> {
    let unusable = |error: io::Error| OpenError::Unusable { path: root.display().to_string(), error };
    make_root(root).map_err(unusable)?;
    let file =
        OpenOptions::new().write(true).create(true).truncate(false).open(root.join(".lock")).map_err(unusable)?;
    match flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(file),
        Err(rustix::io::Errno::WOULDBLOCK) => Err(OpenError::InUse(root.display().to_string())),
        Err(error) => Err(unusable(error.into())),
    }
}

/// Makes the root, and what is missing above it, so that they survive a crash.
fn make_root(root: &Path) -> io::Result<()> {
    let missing: Vec<_> = root.ancestors().take_while(|path| !path.exists()).collect();
    fs::create_dir_all(root)?;
    for made in missing {
        let above = made.parent().filter(|above| !above.as_os_str().is_empty());
        File::open(above.unwrap_or(Path::new(".")))?.sync_all()?;
    }
    Ok(())
}

/// A new file with the content of another; both share their blocks where the file system can do that.
pub fn clone_or_copy(from: &Path, to: &Path) -> io::Result<()> {
    let source = File::open(from)?;
    let target = OpenOptions::new().write(true).create_new(true).mode(0o640).open(to)?;
    if ioctl_ficlone(&target, &source).is_err() {
        io::copy(&mut &source, &mut &target)?;
    }
    Ok(())
}
