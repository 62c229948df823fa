//! What all requests together may have: connections, transfers, bytes of manifests. Who is one too many is told so at once, or
//! waits for a bounded time.

use std::{
    future::Future,
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use axum::{body::Body, serve::Listener};
use berth_oci::{Error, ErrorCode, MANIFEST_LIMIT};
use bytes::{Bytes, BytesMut};
use http::{HeaderMap, StatusCode, header::CONTENT_LENGTH};
use http_body_util::BodyExt;
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf},
    sync::{OwnedSemaphorePermit, Semaphore},
    time::{Sleep, sleep, timeout},
};

use crate::content::report_descriptors;

/// Descriptors for what isn't a connection or a transfer: the log, the folders that are flushed, those who are refused.
const RESERVED_DESCRIPTORS: u64 = 128;

/// How many descriptors there are if nobody says.
const DEFAULT_DESCRIPTORS: u64 = 1024;

/// How many connections are told at once that they are too many; more are closed without a word.
const REFUSAL_CONCURRENCY: usize = 64;

/// How long that may take.
const REFUSAL_TIMEOUT: Duration = Duration::from_secs(1);

/// For how long a connection that ends is read from: a client that still sends what was refused would be reset, and never see
/// the answer (RFC 9112, section 9.6).
const LINGER_TIMEOUT: Duration = Duration::from_secs(2);

/// A manifest is small up to this; nearly all are, and they don't wait for the large ones.
const SMALL_MANIFEST_BYTES: usize = 64 * 1024;

/// How many bytes of manifests are received and examined at once, in KiB: of small ones, and of large ones.
const SMALL_MANIFESTS_KIB: usize = 16 * 1024;
const LARGE_MANIFESTS_KIB: usize = 32 * 1024;

/// How long a manifest waits for others, how long its body may be silent, and how long and how slow it may be in all: others
/// wait longer than that.
const MANIFEST_WAIT: Duration = Duration::from_secs(45);
const MANIFEST_SILENCE: Duration = Duration::from_secs(10);
const MANIFEST_TIMEOUT: Duration = Duration::from_secs(10);
const MIN_MANIFEST_BYTES_PER_SECOND: usize = 200_000;

/// What all requests share.
pub struct Limits {
    connections: Arc<Semaphore>,
    transfers: Arc<Semaphore>,
    small_manifests: Arc<Semaphore>,
    large_manifests: Arc<Semaphore>,
}

/// One of so many is taken, until this is dropped.
pub type Place = OwnedSemaphorePermit;

impl Limits {
    /// As much as so many descriptors are enough for.
    pub fn new(descriptors: Option<u64>) -> Self {
        let all = descriptors.unwrap_or(DEFAULT_DESCRIPTORS).saturating_sub(RESERVED_DESCRIPTORS).max(12);
        let third = usize::try_from(all / 3).unwrap_or(usize::MAX).min(Semaphore::MAX_PERMITS / 2);
        let semaphore = |places| Arc::new(Semaphore::new(places));
        Self {
            // Each has a socket, and may have a file open beside it.
            connections: semaphore(2 * third),
            transfers: semaphore(third),
            small_manifests: semaphore(SMALL_MANIFESTS_KIB),
            large_manifests: semaphore(LARGE_MANIFESTS_KIB),
        }
    }

    /// A place for a request that opens files.
    ///
    /// # Errors
    /// 503, at once, if there is none.
    pub fn transfer(&self) -> Result<Place, Error> {
        Arc::clone(&self.transfers).try_acquire_owned().map_err(|_| {
            report_descriptors(&io::Error::other("as many transfers as there may be"));
            let message = "the registry has as many transfers as it can have; try again in some seconds";
            Error::new(StatusCode::SERVICE_UNAVAILABLE, ErrorCode::Unavailable, message)
        })
    }

    /// Receives a manifest, which counts until the place is dropped.
    ///
    /// # Errors
    /// 413 if it is too long, 408 if it doesn't come, 503 if there are too many, 400 if it ends too early.
    pub async fn receive_manifest(&self, headers: &HeaderMap, body: Body) -> Result<(Bytes, Place), Error> {
        let announced = headers.get(CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse::<usize>().ok());
        let len = announced.unwrap_or(MANIFEST_LIMIT);
        if len > MANIFEST_LIMIT {
            return Err(too_long());
        }
        let places = if len > SMALL_MANIFEST_BYTES { &self.large_manifests } else { &self.small_manifests };
        let kib = u32::try_from(len.div_ceil(1024).max(1)).unwrap_or(u32::MAX);
        let Ok(Ok(place)) = timeout(MANIFEST_WAIT, Arc::clone(places).acquire_many_owned(kib)).await else {
            let message = "too many large manifests are being pushed; try again in some seconds";
            return Err(Error::new(StatusCode::SERVICE_UNAVAILABLE, ErrorCode::Unavailable, message));
        };
        let limit = MANIFEST_TIMEOUT + Duration::from_secs((len / MIN_MANIFEST_BYTES_PER_SECOND) as u64);
        let received = timeout(limit, receive(body, len)).await;
        Ok((received.unwrap_or_else(|_| Err(too_slow()))?, place))
    }
}

async fn receive(mut body: Body, len: usize) -> Result<Bytes, Error> {
    let mut bytes = BytesMut::with_capacity(len.min(SMALL_MANIFEST_BYTES));
    loop {
        let frame = match timeout(MANIFEST_SILENCE, body.frame()).await {
            Err(_) => return Err(too_slow()),
            Ok(None) => return Ok(bytes.freeze()),
            Ok(Some(Ok(frame))) => frame,
            Ok(Some(Err(_))) => {
                let message = "the body ended too early";
                return Err(Error::new(StatusCode::BAD_REQUEST, ErrorCode::ManifestInvalid, message));
            }
        };
        if let Ok(data) = frame.into_data() {
            if bytes.len() + data.len() > MANIFEST_LIMIT {
                return Err(too_long());
            }
            bytes.extend_from_slice(&data);
        }
    }
}

fn too_long() -> Error {
    let message = format!("a manifest has at most {MANIFEST_LIMIT} bytes");
    Error::new(StatusCode::PAYLOAD_TOO_LARGE, ErrorCode::SizeInvalid, message)
}

fn too_slow() -> Error {
    let message = "the manifest did not come in time";
    Error::new(StatusCode::REQUEST_TIMEOUT, ErrorCode::ManifestInvalid, message)
}

/// A listener that accepts as many connections as there may be, and tells the others so.
pub struct Bounded<L> {
    listener: L,
    connections: Arc<Semaphore>,
    refusals: Arc<Semaphore>,
}

impl<L> Bounded<L> {
    /// Bounds `listener` by the connections of `limits`.
    pub fn new(listener: L, limits: &Limits) -> Self {
        let refusals = Arc::new(Semaphore::new(REFUSAL_CONCURRENCY));
        Self { listener, connections: Arc::clone(&limits.connections), refusals }
    }
}

impl<L: Listener> Listener for Bounded<L> {
    type Io = Counted<L::Io>;
    type Addr = L::Addr;

    async fn accept(&mut self) -> (Self::Io, Self::Addr) {
        loop {
            let (stream, address) = self.listener.accept().await;
            if let Ok(place) = Arc::clone(&self.connections).try_acquire_owned() {
                return (Counted { stream, lingering: None, _place: place }, address);
            }
            report_descriptors(&io::Error::other("as many connections as there may be"));
            if let Ok(place) = Arc::clone(&self.refusals).try_acquire_owned() {
                tokio::spawn(async move {
                    let _ = timeout(REFUSAL_TIMEOUT, refuse(stream)).await;
                    drop(place);
                });
            }
        }
    }

    fn local_addr(&self) -> io::Result<Self::Addr> {
        self.listener.local_addr()
    }
}

/// Says 503 to a request, once it has begun to come: a connection that is closed before would be reset.
async fn refuse(mut stream: impl AsyncRead + AsyncWrite + Unpin) -> io::Result<()> {
    let mut request = [0; 8192];
    if stream.read(&mut request).await? == 0 {
        return Ok(());
    }
    let message = "the registry has as many connections as it can have; try again in some seconds";
    let body = Error::new(StatusCode::SERVICE_UNAVAILABLE, ErrorCode::Unavailable, message).body();
    let head =
        "HTTP/1.1 503 Service Unavailable\r\nRetry-After: 5\r\nConnection: close\r\nContent-Type: application/json";
    stream.write_all(format!("{head}\r\nContent-Length: {}\r\n\r\n{body}", body.len()).as_bytes()).await?;
    stream.shutdown().await
}

/// A connection that counts until it is closed.
pub struct Counted<S> {
    stream: S,
    /// How long it is still read from, once it is written to no more.
    lingering: Option<Pin<Box<Sleep>>>,
    _place: Place,
}

impl<S: AsyncRead + Unpin> AsyncRead for Counted<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buffer)
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Counted<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.lingering.is_none() {
            ready!(Pin::new(&mut self.stream).poll_shutdown(cx))?;
        }
        let Self { stream, lingering, .. } = &mut *self;
        let end = lingering.get_or_insert_with(|| Box::pin(sleep(LINGER_TIMEOUT)));
        let mut space = [0; 8192];
        while end.as_mut().poll(cx).is_pending() {
            let mut unwanted = ReadBuf::new(&mut space);
            let read = ready!(Pin::new(&mut *stream).poll_read(cx, &mut unwanted));
            if read.is_err() || unwanted.filled().is_empty() {
                break;
            }
        }
        Poll::Ready(Ok(()))
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}
