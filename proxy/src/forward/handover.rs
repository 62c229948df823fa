//! Asks the registry for an open blob instead of for its bytes, and for what is short: over the socket beside its own, if it has
//! one.

use std::{
    io,
    path::PathBuf,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use berth_config::Upstream;
use berth_files::{Asked, Given, Received, receive, send, socket_of};
use tokio::net::UnixStream;

/// How long the registry may take to answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);

/// How many connections are kept that nobody uses.
const MAX_IDLE: usize = 64;

/// The way to it.
pub struct Handover {
    path: PathBuf,
    idle: Mutex<Vec<UnixStream>>,
}

impl Handover {
    /// The way to the registry at `upstream`; none, if it doesn't listen on a socket of this machine.
    pub fn to(upstream: &Upstream) -> Option<Self> {
        match upstream {
            Upstream::Unix(path) => Some(Self { path: socket_of(path), idle: Mutex::default() }),
            Upstream::Tcp { .. } => None,
        }
    }

    /// What the registry answers, with its body, or with the open file that the body is a part of; nothing, if it can't be asked
    /// so.
    pub async fn ask(&self, asked: &Asked) -> Option<Received<Given>> {
        let idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner).pop();
        if let Some(stream) = idle {
            match self.ask_on(stream, asked).await {
                Ok(given) => return Some(given),
                Err(error) if error.kind() == io::ErrorKind::TimedOut => return None,
                Err(_) => {} // That one may have been closed meanwhile.
            }
        }
        let stream = UnixStream::connect(&self.path).await.ok()?;
        match self.ask_on(stream, asked).await {
            Ok(given) => Some(given),
            Err(error) => {
                tracing::warn!(%error, "the registry hands nothing over; it is asked over HTTP");
                None
            }
        }
    }

    async fn ask_on(&self, stream: UnixStream, asked: &Asked) -> io::Result<Received<Given>> {
        let asking = async {
            send(&stream, asked, &[], None).await?;
            receive::<Given>(&stream).await?.ok_or_else(|| io::Error::from(io::ErrorKind::UnexpectedEof))
        };
        let late = |_| io::Error::new(io::ErrorKind::TimedOut, "it takes too long");
        let given = tokio::time::timeout(ANSWER_TIMEOUT, asking).await.map_err(late)??;
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        if idle.len() < MAX_IDLE {
            idle.push(stream);
        }
        Ok(given)
    }
}
