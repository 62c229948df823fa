//! A file that lines are appended to, and that somebody may rename meanwhile (logrotate does so).

use std::{
    fs::{File, OpenOptions},
    io::{self, Read, Seek, SeekFrom, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    sync::{Mutex, MutexGuard, PoisonError},
};

/// The file.
pub struct AppendFile {
    path: PathBuf,
    state: Mutex<State>,
}

struct State {
    file: File,
    /// The last line was written in part: the next one begins a line of its own.
    torn: bool,
}

fn open(path: &Path) -> io::Result<State> {
    let file = OpenOptions::new().create(true).append(true).mode(0o640).open(path)?;
    // A process before this one may have been stopped in the middle of a line.
    Ok(State { file, torn: ends_within_a_line(path).unwrap_or(false) })
}

fn ends_within_a_line(path: &Path) -> io::Result<bool> {
    if !std::fs::metadata(path)?.is_file() {
        return Ok(false);
    }
    let mut file = File::open(path)?;
    let mut last = [b'\n'];
    if file.seek(SeekFrom::End(0))? > 0 {
        file.seek(SeekFrom::End(-1))?;
        file.read_exact(&mut last)?;
    }
    Ok(last != [b'\n'])
}

impl AppendFile {
    /// Opens the file, and makes it if need be. A new one is readable for its owner and group.
    ///
    /// # Errors
    /// As the system says it.
    pub fn open(path: &Path) -> io::Result<Self> {
        Ok(Self { state: Mutex::new(open(path)?), path: path.to_owned() })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Appends a line, which has its end.
    ///
    /// # Errors
    /// If it isn't there as a whole.
    pub fn append(&self, line: &[u8]) -> io::Result<()> {
        let mut state = self.lock();
        if state.torn {
            state.file.write_all(b"\n")?;
            state.torn = false;
        }
        let mut written = 0;
        while written < line.len() {
            match state.file.write(&line[written..]) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(more) => written += more,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => {
                    state.torn = written > 0;
                    return Err(error);
                }
            }
        }
        Ok(())
    }

    /// Opens the file anew, under the same name.
    ///
    /// # Errors
    /// As the system says it; then the old one stays in use.
    pub fn reopen(&self) -> io::Result<()> {
        // After what is being written, which may be cut off there.
        let mut state = self.lock();
        *state = open(&self.path)?;
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_never_continues_another_one_s_half() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("log");
        std::fs::write(&path, "{\"half\":").expect("a file");
        let file = AppendFile::open(&path).expect("open");
        file.append(b"one\n").expect("written");
        file.reopen().expect("open");
        file.append(b"two\n").expect("written");
        assert_eq!(std::fs::read_to_string(&path).expect("text"), "{\"half\":\none\ntwo\n");
    }
}
