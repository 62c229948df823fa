//! Asking the process that runs, whatever its file says by now.
//!
//! A process that serves a file listens on a socket whose name is made of the file's path, in the abstract namespace of
//! Linux (unix(7)): it needs no folder that can be written, is seen in this network namespace alone, and ends with the
//! process.

use std::{
    fmt,
    hash::{DefaultHasher, Hash, Hasher},
    io::{self, Read},
    os::{linux::net::SocketAddrExt, unix::net},
    path::Path,
    time::Duration,
};

use rustix::{net::sockopt::socket_peercred, process::getuid};
use tokio::{
    io::AsyncWriteExt,
    net::{UnixListener, UnixStream},
};

/// What a process says that is well.
const WELL: &str = "ok";

/// How long it may take to say so.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);

/// The most that is read of an answer, in bytes.
const MAX_ANSWER_BYTES: u64 = 4096;

fn address(program: &str, config: &Path) -> io::Result<net::SocketAddr> {
    let mut hasher = DefaultHasher::new();
    std::path::absolute(config)?.hash(&mut hasher);
    net::SocketAddr::from_abstract_name(format!("{program}/{:016x}", hasher.finish()))
}

/// Answers whoever asks how `program` is, which serves this file, for as long as the process runs.
pub async fn answer_health_checks<F>(program: &str, config: &Path, check: impl Fn() -> F)
where
    F: Future<Output = Result<(), String>>,
{
    let listen = || {
        let listener = net::UnixListener::bind_addr(&address(program, config)?)?;
        listener.set_nonblocking(true)?;
        UnixListener::from_std(listener)
    };
    let listener = match listen() {
        Ok(listener) => listener,
        Err(error) => {
            return tracing::warn!(%error, "health checks can't be answered here; they ask at the address of the file");
        }
    };
    loop {
        let Ok((mut stream, _)) = listener.accept().await else {
            // There are no descriptors, say.
            tokio::time::sleep(Duration::from_secs(1)).await;
            continue;
        };
        let late = |_| Err("it takes too long to find out".to_owned());
        let outcome = tokio::time::timeout(ANSWER_TIMEOUT, check()).await.unwrap_or_else(late);
        let text = outcome.err().unwrap_or_else(|| WELL.to_owned());
        let _ = tokio::time::timeout(ANSWER_TIMEOUT, write(&mut stream, &text)).await;
    }
}

async fn write(stream: &mut UnixStream, text: &str) -> io::Result<()> {
    stream.write_all(text.as_bytes()).await?;
    stream.shutdown().await
}

/// How a process is.
#[derive(Debug)]
pub enum Health {
    /// It does its work.
    Well,
    /// It answers, and says why it can't.
    Unwell(String),
    /// It is there, and doesn't answer.
    Silent(io::Error),
}

impl fmt::Display for Health {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Well => f.write_str("it is well"),
            Self::Unwell(why) => f.write_str(why),
            Self::Silent(error) => write!(f, "it does not answer ({error})"),
        }
    }
}

/// How the process of `program` is that serves this file; nothing, if there is none that could be asked so.
pub fn ask_health(program: &str, config: &Path) -> Option<Health> {
    let mut stream = net::UnixStream::connect_addr(&address(program, config).ok()?).ok()?;
    // Anybody could call a socket of theirs so.
    let peer = socket_peercred(&stream).ok()?;
    let is_ours = match std::fs::read_link(format!("/proc/{}/exe", peer.pid.as_raw_nonzero())) {
        Ok(program) => std::env::current_exe().is_ok_and(|own| own == program),
        Err(_) => peer.uid.is_root() || peer.uid == getuid(),
    };
    if !is_ours {
        return None;
    }
    let mut asked = || {
        // It answers within this, or says that it takes too long.
        stream.set_read_timeout(Some(ANSWER_TIMEOUT + Duration::from_secs(2)))?;
        let mut text = String::new();
        (&mut stream).take(MAX_ANSWER_BYTES).read_to_string(&mut text)?;
        if text.is_empty() { Err(io::ErrorKind::UnexpectedEof.into()) } else { Ok(text) }
    };
    Some(match asked() {
        Ok(text) if text == WELL => Health::Well,
        Ok(text) => Health::Unwell(text),
        Err(error) => Health::Silent(error),
    })
}
