//! Accepts connections, shakes hands, and closes those that wait for too long.

use std::{
    io,
    net::SocketAddr,
    os::fd::AsRawFd,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use async_trait::async_trait;
use pingora::{
    apps::{HttpPersistentSettings, HttpServerApp, ServerApp},
    listeners::tls::Acceptor,
    protocols::{
        ALPN, GetSocketDigest, SocketDigest, Stream, http::ServerSession, l4::stream::Stream as TransportStream,
    },
    server::{ListenFds, ShutdownWatch},
    services::Service,
};
use tokio::{
    net::{TcpSocket, TcpStream},
    time::Instant,
};

use super::{
    Connection, Connections, HEADER_TIMEOUT, lock,
    stream::{Watched, refuse_headers},
};
use crate::observe::Metrics;

/// How many connections the kernel holds until they are accepted.
const BACKLOG: u32 = 4096;

/// How long accepting rests when there are no descriptors.
const EXHAUSTED_WAIT: Duration = Duration::from_millis(100);

/// The way in to `app`.
pub struct Door<A> {
    /// Bound, until it listens.
    socket: Option<TcpSocket>,
    serving: Arc<Serving<A>>,
}

struct Serving<A> {
    app: Arc<A>,
    tls: Option<Acceptor>,
    connections: Arc<Connections>,
    metrics: Arc<Metrics>,
}

impl<A: HttpServerApp + Send + Sync + 'static> Door<A> {
    /// A door at `socket`, with TLS if there is an acceptor.
    pub fn new(
        socket: TcpSocket,
        app: A,
        tls: Option<Acceptor>,
        connections: Arc<Connections>,
        metrics: Arc<Metrics>,
    ) -> Self {
        let serving = Serving { app: Arc::new(app), tls, connections, metrics };
        Self { socket: Some(socket), serving: Arc::new(serving) }
    }
}

/// Takes an address, and doesn't listen yet.
///
/// # Errors
/// As the system says it: somebody else has it, or it isn't one of this machine.
pub fn bind(address: SocketAddr) -> io::Result<TcpSocket> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    Ok(socket)
}

#[async_trait]
impl<A: HttpServerApp + Send + Sync + 'static> Service for Door<A> {
    async fn start_service(&mut self, _: Option<ListenFds>, mut shutdown: ShutdownWatch, _: usize) {
        let Some(socket) = self.socket.take() else { return };
        let listener = match socket.listen(BACKLOG) {
            Ok(listener) => listener,
            Err(error) => {
                tracing::error!(%error, "http.address, http.port: can't listen");
                std::process::exit(1);
            }
        };
        loop {
            let accepted = tokio::select! {
                accepted = listener.accept() => accepted,
                changed = shutdown.changed() => match changed {
                    Ok(()) if !*shutdown.borrow() => continue,
                    _ => break,
                },
            };
            match accepted {
                Ok((stream, peer)) => self.serving.admit(stream, peer, &shutdown),
                Err(error) => {
                    tracing::warn!(%error, "a connection can't be accepted");
                    tokio::time::sleep(EXHAUSTED_WAIT).await;
                }
            }
        }
    }

    fn name(&self) -> &'static str {
        "berth-proxy"
    }
}

impl<A: HttpServerApp + Send + Sync + 'static> Serving<A> {
    fn admit(self: &Arc<Self>, stream: TcpStream, peer: SocketAddr, shutdown: &ShutdownWatch) {
        let Some(connection) = self.connections.admit(peer) else {
            self.metrics.connection_refused();
            tracing::debug!(client = %peer.ip(), "there are too many connections; one was closed");
            return;
        };
        let (serving, shutdown) = (Arc::clone(self), shutdown.clone());
        tokio::spawn(async move {
            serving.metrics.connections_changed(1);
            serving.serve_while_wanted(stream, &connection, &shutdown).await;
            serving.metrics.connections_changed(-1);
            serving.connections.leave(&connection);
        });
    }

    /// Serves a connection until it ends, waits for too long, or has to make room.
    async fn serve_while_wanted(&self, stream: TcpStream, connection: &Arc<Connection>, shutdown: &ShutdownWatch) {
        let mut served = std::pin::pin!(self.serve(stream, connection, shutdown));
        let client = connection.peer.ip();
        loop {
            let deadline = connection.deadline();
            if deadline.is_some_and(|deadline| deadline <= Instant::now()) {
                return tracing::debug!(%client, "a connection took too long to ask for something");
            }
            if connection.is_evicted.load(Ordering::Relaxed) {
                self.metrics.connection_evicted();
                return tracing::debug!(%client, "an idle connection was closed to make room");
            }
            // While requests are served, whatever begins when they have ended has at least as long.
            let next_look = deadline.unwrap_or_else(|| Instant::now() + HEADER_TIMEOUT);
            tokio::select! {
                () = &mut served => return,
                () = connection.changed.notified() => {}
                () = tokio::time::sleep_until(next_look) => {}
            }
        }
    }

    /// Serves one request of HTTP/1 after the other, as [`ServerApp`] does. While none is there, all that is held is the stream.
    async fn serve_requests(&self, mut stream: Box<Watched>, shutdown: &ShutdownWatch) {
        let mut settings: Option<HttpPersistentSettings> = None;
        loop {
            tokio::select! {
                () = stream.wait_for_bytes() => {}
                () = stopping(shutdown.clone()) => return,
            }
            let mut session = ServerSession::new_http1(stream);
            if let Some(settings) = settings {
                settings.apply_to_session(&mut session);
            }
            let Some(reused) = self.app.process_new_http(session, shutdown).await else { return };
            let reused = reused.consume();
            settings = reused.1;
            // It is the one that was given.
            let Ok(same) = reused.0.into_any().downcast::<Watched>() else { return };
            stream = same;
        }
    }

    async fn serve(&self, stream: TcpStream, connection: &Arc<Connection>, shutdown: &ShutdownWatch) {
        // Answers are written whole.
        let _ = stream.set_nodelay(true);
        let digest = SocketDigest::from_raw_fd(stream.as_raw_fd());
        let _ = digest.peer_addr.set(Some(connection.peer.into()));
        let mut transport = TransportStream::from(stream);
        transport.set_socket_digest(digest);
        let stream: Stream = match &self.tls {
            None => Box::new(transport),
            Some(acceptor) => {
                // Counted as failed unless it ends well, also if nobody waits for it any more.
                let failed = FailedHandshake(&self.metrics);
                // Apart, so that what it needs isn't held for as long as the connection.
                match Box::pin(acceptor.tls_handshake(transport)).await {
                    Ok(stream) => {
                        std::mem::forget(failed);
                        Box::new(stream)
                    }
                    Err(error) => return tracing::debug!(client = %connection.peer.ip(), %error, "a handshake failed"),
                }
            }
        };
        connection.has_shaken_hands();
        let is_http2 = stream.selected_alpn_proto() == Some(ALPN::H2);
        let stream = Box::new(Watched::new(stream, Arc::clone(connection)));
        if is_http2 {
            self.app.process_new(stream, shutdown).await;
        } else {
            self.serve_requests(stream, shutdown).await;
        }
        let aside = lock(&connection.aside).take();
        if let Some(stream) = aside {
            tracing::debug!(client = %connection.peer.ip(), "a request's headers were too long");
            if let Err(error) = refuse_headers(stream).await {
                tracing::debug!(%error, "the client didn't wait to be told");
            }
        }
    }
}

/// When the process is told to stop.
async fn stopping(mut shutdown: ShutdownWatch) {
    let _ = shutdown.wait_for(|is_stopping| *is_stopping).await;
}

struct FailedHandshake<'a>(&'a Metrics);

impl Drop for FailedHandshake<'_> {
    fn drop(&mut self) {
        self.0.handshake_failed();
    }
}
