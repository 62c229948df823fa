//! Asking the process that runs, whatever its file says by now.
//!
//! A process that serves a file listens on a socket whose name is made of the file's path, in the abstract namespace of
//! Linux (unix(7)): it needs no folder that can be written, is seen in this container alone, and ends with the process.

use std::{
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
    while let Ok((mut stream, _)) = listener.accept().await {
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

/// How the process of `program` is that serves this file; nothing, if there is none that could be asked so.
pub fn ask_health(program: &str, config: &Path) -> Option<Result<(), String>> {
    let mut stream = net::UnixStream::connect_addr(&address(program, config).ok()?).ok()?;
    // Another user could call a socket of theirs so.
    let (peer, own) = (socket_peercred(&stream).ok()?.uid, getuid());
    if !(own.is_root() || peer.is_root() || peer == own) {
        return None;
    }
    let mut asked = || {
        stream.set_read_timeout(Some(2 * ANSWER_TIMEOUT))?;
        let mut text = String::new();
        (&mut stream).take(MAX_ANSWER_BYTES).read_to_string(&mut text)?;
        Ok::<_, io::Error>(text)
    };
    Some(match asked() {
        Ok(text) if text == WELL => Ok(()),
        Ok(text) => Err(text),
        Err(error) => Err(error.to_string()),
    })
}
