//! Watches what comes on a connection until a request is there: HTTP/1 headers have at most [`MAX_HEADER_BYTES`], as
//! HTTP/2's have. Whoever sends more is told so, and nothing of it is kept.

use std::{
    future::poll_fn,
    io::{self, Cursor},
    mem::{self, MaybeUninit},
    pin::Pin,
    sync::{Arc, atomic::Ordering},
    task::{Context, Poll, ready},
    time::Duration,
};

use async_trait::async_trait;
use berth_oci::{Error, ErrorCode};
use http::StatusCode;
use pingora::protocols::{
    ALPN, GetProxyDigest, GetSocketDigest, GetTimingDigest, Peek, Shutdown, SocketDigest, Ssl, Stream, TimingDigest,
    UniqueID, UniqueIDType,
    raw_connect::ProxyDigest,
    tls::{SslDigest, TlsRef},
};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};

use super::Connection;

/// The most that the headers of one request may have, in bytes. The library behind us would keep 1 MiB; it doubles its
/// buffer when that is full, so one byte is missing to 64 KiB.
const MAX_HEADER_BYTES: usize = 64 * 1024 - 1;

/// What the headers of a request have at most, as a rule.
const USUAL_HEADER_BYTES: usize = 4096;

/// How much is gathered before it is sent, in bytes: headers and a short body go in one packet, and in one record of TLS.
const MAX_GATHERED_BYTES: usize = 2048;

/// How much more is read and thrown away, so that the client sees the answer and not a broken pipe.
const MAX_DRAINED_BYTES: usize = 2 * 1024 * 1024;

/// A stream that knows what its connection waits for.
#[derive(Debug)]
pub struct Watched {
    inner: Stream,
    /// What is to be sent, up to the next flush; and how much of it has been.
    gathered: (Vec<u8>, usize),
    connection: Arc<Connection>,
    /// HTTP/2 counts for itself.
    counts: bool,
    /// How many requests there were when the one began that is awaited.
    requests: u64,
    /// How many bytes of it have come.
    came: usize,
    /// Those of them that nobody has read yet.
    ahead: Vec<u8>,
}

impl Watched {
    /// Watches `inner`, which has shaken hands.
    pub fn new(inner: Stream, connection: Arc<Connection>) -> Self {
        let counts = inner.selected_alpn_proto() != Some(ALPN::H2);
        Self { inner, gathered: (Vec::new(), 0), connection, counts, requests: 0, came: 0, ahead: Vec::new() }
    }
}

impl Watched {
    /// Waits until something comes, or the end. As long as nothing does, nothing is held for it.
    pub async fn wait_for_bytes(&mut self) {
        poll_fn(|cx| {
            let mut space = [const { MaybeUninit::uninit() }; USUAL_HEADER_BYTES];
            let mut buffer = ReadBuf::uninit(&mut space);
            // Whoever reads next meets an error again.
            let _ = ready!(Pin::new(&mut *self).poll_read(cx, &mut buffer));
            self.ahead = buffer.filled().to_vec();
            Poll::Ready(())
        })
        .await;
    }
}

impl AsyncRead for Watched {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if !this.ahead.is_empty() {
            let len = this.ahead.len().min(buffer.remaining());
            buffer.put_slice(&this.ahead[..len]);
            this.ahead.drain(..len);
            return Poll::Ready(Ok(()));
        }
        if !this.counts {
            return Pin::new(&mut this.inner).poll_read(cx, buffer);
        }
        let phase = this.connection.phase();
        if phase.requests != this.requests {
            (this.requests, this.came) = (phase.requests, 0);
        }
        if phase.in_flight > 0 {
            return Pin::new(&mut this.inner).poll_read(cx, buffer);
        }
        if this.came >= MAX_HEADER_BYTES {
            // To whoever reads here the stream is at its end: what was read so far is forgotten with the request.
            let over: Stream = Box::new(Cursor::new(Vec::new()));
            this.connection.set_aside(mem::replace(&mut this.inner, over));
            return Poll::Ready(Ok(()));
        }
        let room = buffer.remaining().min(MAX_HEADER_BYTES - this.came);
        let mut limited = ReadBuf::new(buffer.initialize_unfilled_to(room));
        ready!(Pin::new(&mut this.inner).poll_read(cx, &mut limited))?;
        let n = limited.filled().len();
        buffer.advance(n);
        if this.came == 0 && n > 0 {
            this.connection.begins_header();
        }
        this.came += n;
        Poll::Ready(Ok(()))
    }
}

/// Tells a client that its headers are too long (RFC 6585, section 5), and reads on for a little.
///
/// # Errors
/// If it has gone.
pub async fn refuse_headers(mut stream: Stream) -> io::Result<()> {
    let status = StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE;
    let message = "the headers of a request have at most 64 KiB; send fewer or shorter ones";
    let body = Error::new(status, ErrorCode::Unsupported, message).body();
    let length = body.len();
    let head = "connection: close\r\ncontent-type: application/json";
    let answer = format!("HTTP/1.1 {status}\r\n{head}\r\ncontent-length: {length}\r\n\r\n{body}");
    stream.write_all(answer.as_bytes()).await?;
    stream.flush().await?;
    let (mut space, mut drained) = ([0; 4096], 0);
    while drained < MAX_DRAINED_BYTES {
        match stream.read(&mut space).await? {
            0 => break,
            n => drained += n,
        }
    }
    Ok(())
}

impl Watched {
    /// Sends what was gathered.
    fn poll_send(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let (bytes, sent) = &mut self.gathered;
        while *sent < bytes.len() {
            match ready!(Pin::new(&mut self.inner).poll_write(cx, &bytes[*sent..]))? {
                0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                n => *sent += n,
            }
        }
        // Nothing is held by a connection that waits.
        self.gathered = (Vec::new(), 0);
        self.connection.gathers.store(false, Ordering::Relaxed);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Watched {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let gathers = self.connection.gathers.load(Ordering::Relaxed);
        if gathers && self.gathered.0.len() + bytes.len() <= MAX_GATHERED_BYTES {
            self.gathered.0.extend_from_slice(bytes);
            return Poll::Ready(Ok(bytes.len()));
        }
        // What TLS has sealed goes out before it seals more: it would always have four records ahead of a client that reads slowly.
        ready!(self.as_mut().poll_flush(cx))?;
        Pin::new(&mut self.inner).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_send(cx))?;
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_send(cx))?;
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        ready!(self.as_mut().poll_flush(cx))?;
        Pin::new(&mut self.inner).poll_write_vectored(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }
}

#[async_trait]
impl Shutdown for Watched {
    async fn shutdown(&mut self) {
        Shutdown::shutdown(&mut *self.inner).await;
    }
}

#[async_trait]
impl Peek for Watched {
    async fn try_peek(&mut self, buffer: &mut [u8]) -> io::Result<bool> {
        self.inner.try_peek(buffer).await
    }
}

impl UniqueID for Watched {
    fn id(&self) -> UniqueIDType {
        self.inner.id()
    }
}

impl Ssl for Watched {
    fn get_ssl(&self) -> Option<&TlsRef> {
        self.inner.get_ssl()
    }

    fn get_ssl_digest(&self) -> Option<Arc<SslDigest>> {
        self.inner.get_ssl_digest()
    }

    fn selected_alpn_proto(&self) -> Option<ALPN> {
        self.inner.selected_alpn_proto()
    }
}

impl GetTimingDigest for Watched {
    fn get_timing_digest(&self) -> Vec<Option<TimingDigest>> {
        self.inner.get_timing_digest()
    }

    fn get_read_pending_time(&self) -> Duration {
        self.inner.get_read_pending_time()
    }

    fn get_write_pending_time(&self) -> Duration {
        self.inner.get_write_pending_time()
    }
}

impl GetProxyDigest for Watched {
    fn get_proxy_digest(&self) -> Option<Arc<ProxyDigest>> {
        self.inner.get_proxy_digest()
    }

    fn set_proxy_digest(&mut self, digest: ProxyDigest) {
        self.inner.set_proxy_digest(digest);
    }
}

impl GetSocketDigest for Watched {
    fn get_socket_digest(&self) -> Option<Arc<SocketDigest>> {
        self.inner.get_socket_digest()
    }

    fn set_socket_digest(&mut self, digest: SocketDigest) {
        self.inner.set_socket_digest(digest);
    }
}
