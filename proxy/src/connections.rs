//! How many connections there may be, and how long one may take to say what it wants.
//!
//! Whoever opens connections and says nothing, or a byte a minute, holds each for a while and not for ever; and however
//! many do, there are descriptors left for the others to be answered.

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use pingora::{
    apps::ServerApp,
    protocols::{ALPN, Stream},
    server::ShutdownWatch,
};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::sync::{Notify, Semaphore};

/// How long a connection is kept for the next request. Proxies in front of us keep theirs for a minute.
pub const IDLE: Duration = Duration::from_secs(75);

/// How long it may take from there to the end of a request's headers.
const ASKING: Duration = Duration::from_secs(80);

/// The most connections at once.
const MOST: usize = 10_000;

/// How many descriptors one connection may need: its own, one to the registry, and some for everything else.
const DESCRIPTORS: u64 = 3;

tokio::task_local! {
    /// Told what happens on the connection that this task serves. Streams of HTTP/2 have tasks of their own; their
    /// connection is closed when it is idle.
    static TURNS: Arc<Turns>;
}

#[derive(Default)]
struct Turns {
    asked: Notify,
    answered: Notify,
}

/// The headers of a request are here; it may take its time from now on.
pub fn asked() {
    let _ = TURNS.try_with(|turns| turns.asked.notify_one());
}

/// A request has ended; the next one may come.
pub fn answered() {
    let _ = TURNS.try_with(|turns| turns.answered.notify_one());
}

/// Takes as many descriptors as this process may have; how many connections those are for.
pub fn raise_limit() -> usize {
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    let raised = setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum }).is_ok();
    let descriptors = if raised { maximum } else { current };
    let connections = descriptors.map_or(MOST, |n| usize::try_from(n / DESCRIPTORS).unwrap_or(MOST));
    connections.clamp(16, MOST)
}

/// Lets in as many connections as there is room for.
pub struct Bounded<A> {
    inner: Arc<A>,
    room: Semaphore,
}

impl<A> Bounded<A> {
    /// At most so many `connections` to `inner`.
    pub fn new(inner: A, connections: usize) -> Self {
        Self { inner: Arc::new(inner), room: Semaphore::new(connections) }
    }
}

#[async_trait]
impl<A: ServerApp + Send + Sync + 'static> ServerApp for Bounded<A> {
    async fn process_new(self: &Arc<Self>, stream: Stream, shutdown: &ShutdownWatch) -> Option<Stream> {
        let Ok(_place) = self.room.try_acquire() else {
            tracing::warn!("there are too many connections; one was closed");
            return None;
        };
        if stream.selected_alpn_proto() == Some(ALPN::H2) {
            return self.inner.process_new(stream, shutdown).await;
        }
        let turns = Arc::new(Turns::default());
        let mut served = std::pin::pin!(TURNS.scope(Arc::clone(&turns), self.inner.process_new(stream, shutdown)));
        loop {
            tokio::select! {
                served = &mut served => return served,
                () = turns.asked.notified() => {}
                () = tokio::time::sleep(ASKING) => {
                    tracing::debug!("a connection took too long to ask for something");
                    return None;
                }
            }
            tokio::select! {
                served = &mut served => return served,
                () = turns.answered.notified() => {}
            }
        }
    }

    async fn cleanup(&self) {
        self.inner.cleanup().await;
    }
}
