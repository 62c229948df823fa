//! A file that lines are appended to, and that somebody may rename meanwhile (logrotate does so).

use std::{
    fs::{File, OpenOptions},
    io::{self, Write},
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

fn open(path: &Path) -> io::Result<File> {
    OpenOptions::new().create(true).append(true).mode(0o640).open(path)
}

impl AppendFile {
    /// Opens the file, and makes it if need be. A new one is readable for its owner and group.
    ///
    /// # Errors
    /// As the system says it.
    pub fn open(path: &Path) -> io::Result<Self> {
        Ok(Self { state: Mutex::new(State { file: open(path)?, torn: false }), path: path.to_owned() })
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
        let file = open(&self.path)?;
        *self.lock() = State { file, torn: false };
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
