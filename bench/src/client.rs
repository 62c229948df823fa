//! Connections to a registry as its clients have them: HTTP/1.1 or HTTP/2, plain or TLS.

use std::{path::Path, sync::Arc, time::Duration};

use bytes::Bytes;
use http::{
    Method, Request, Response, StatusCode,
    header::{AUTHORIZATION, HOST, LOCATION},
};
use http_body::Body as _;
use http_body_util::{BodyExt, combinators::BoxBody};
use hyper::{
    body::Incoming,
    client::conn::{http1, http2},
};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::{
    ClientConfig,
    pki_types::{CertificateDer, ServerName, pem::PemObject},
};
use rustls_platform_verifier::{BuilderVerifierExt, Verifier};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
};
use tokio_rustls::TlsConnector;
use url::Url;

use crate::Error;

/// What a request carries.
pub type Body = BoxBody<Bytes, std::convert::Infallible>;

/// How many redirects are followed.
const MAX_REDIRECTS: usize = 5;

/// How long a server may be silent. Closing a large upload flushes it.
const SILENCE_TIMEOUT: Duration = Duration::from_mins(2);

/// How much is told of an answer that wasn't meant.
const MAX_TOLD_CHARS: usize = 500;

/// How much of an answer is read whole, in bytes.
const MAX_ANSWER_BYTES: usize = 16 * 1024 * 1024;

/// What connections are made with, wherever they lead.
#[derive(Clone)]
pub struct Dialer {
    tls: Arc<ClientConfig>,
    http2: bool,
}

impl Dialer {
    /// Believes in the system's authorities, or in those of the PEM file `ca`.
    ///
    /// # Errors
    /// If the file can't be read, or the system has no authorities.
    pub fn new(ca: Option<&Path>, http2: bool) -> Result<Self, Error> {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let builder =
            ClientConfig::builder_with_provider(Arc::clone(&provider)).with_safe_default_protocol_versions()?;
        let mut tls = match ca {
            None => builder.with_platform_verifier()?.with_no_client_auth(),
            Some(path) => {
                let unread = |error| format!("{}: no PEM file of certificates ({error})", path.display());
                let roots = CertificateDer::pem_file_iter(path).and_then(Iterator::collect::<Result<Vec<_>, _>>);
                let verifier = Verifier::new_with_extra_roots(roots.map_err(unread)?, provider)?;
                builder.dangerous().with_custom_certificate_verifier(Arc::new(verifier)).with_no_client_auth()
            }
        };
        tls.alpn_protocols = vec![if http2 { b"h2".to_vec() } else { b"http/1.1".to_vec() }];
        Ok(Self { tls: Arc::new(tls), http2 })
    }

    /// A new connection to the host of `url`. Plain HTTP is always HTTP/1.1.
    ///
    /// # Errors
    /// If there is none.
    pub async fn connect(&self, url: &Url) -> Result<Connection, Error> {
        let host = url.host_str().ok_or("an address needs a host")?.to_owned();
        let port = url.port_or_known_default().ok_or("an address needs a port")?;
        // What stands in brackets in a URL does not at a socket.
        let stream = in_time(TcpStream::connect((host.trim_matches(['[', ']']), port))).await?;
        let stream = stream.map_err(|error| format!("{host}:{port}: {error}"))?;
        stream.set_nodelay(true)?;
        let sender = if url.scheme() == "https" {
            let name = ServerName::try_from(host.trim_matches(['[', ']']).to_owned())?;
            let stream = in_time(TlsConnector::from(Arc::clone(&self.tls)).connect(name, stream)).await??;
            if self.http2 && stream.get_ref().1.alpn_protocol() != Some(b"h2") {
                return Err("the server speaks no HTTP/2".into());
            }
            if self.http2 { Sender::second(stream).await? } else { Sender::first(stream).await? }
        } else {
            Sender::first(stream).await?
        };
        let authority = url.authority().to_owned();
        Ok(Connection { dialer: self.clone(), url: url.clone(), authority, sender })
    }
}

enum Sender {
    First(http1::SendRequest<Body>),
    Second(http2::SendRequest<Body>),
}

impl Sender {
    async fn first(stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static) -> Result<Self, Error> {
        let (sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
        tokio::spawn(connection);
        Ok(Self::First(sender))
    }

    async fn second(stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static) -> Result<Self, Error> {
        let mut builder = http2::Builder::new(TokioExecutor::new());
        // As much as Go's client has.
        builder.initial_stream_window_size(4 << 20).initial_connection_window_size(1 << 30);
        let (sender, connection) = builder.handshake(TokioIo::new(stream)).await?;
        tokio::spawn(connection);
        Ok(Self::Second(sender))
    }
}

/// One connection, which is made anew if the server closes it.
pub struct Connection {
    dialer: Dialer,
    url: Url,
    authority: String,
    sender: Sender,
}

/// A request to a registry, which can be sent again and again.
#[derive(Clone)]
pub struct Asked {
    /// Its method.
    pub method: Method,
    /// Its target: a path with its query.
    pub target: String,
    /// Its headers, by name.
    pub headers: Vec<(&'static str, String)>,
}

impl Asked {
    /// A request without headers of its own.
    pub fn new(method: Method, target: impl Into<String>) -> Self {
        Self { method, target: target.into(), headers: Vec::new() }
    }

    /// With one more header.
    #[must_use]
    pub fn with(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.headers.push((name, value.into()));
        self
    }
}

impl Connection {
    /// Sends a request.
    ///
    /// # Errors
    /// If there is no answer.
    pub async fn send(&mut self, asked: &Asked, body: Body) -> Result<Response<Incoming>, Error> {
        let is_large = body.size_hint().exact().is_none_or(|len| len > MAX_ANSWER_BYTES as u64);
        let sending = self.send_all(asked, body);
        // What is large may take a while to be sent.
        if is_large { sending.await } else { in_time(sending).await? }
    }

    async fn send_all(&mut self, asked: &Asked, body: Body) -> Result<Response<Incoming>, Error> {
        let mut request = Request::builder().method(asked.method.clone());
        for (name, value) in &asked.headers {
            request = request.header(*name, value);
        }
        if !self.is_open().await {
            self.sender = self.dialer.connect(&self.url).await?.sender;
        }
        let response = match &mut self.sender {
            Sender::First(sender) => {
                let request = request.uri(&asked.target).header(HOST, &self.authority).body(body)?;
                sender.send_request(request).await?
            }
            Sender::Second(sender) => {
                let uri = format!("{}://{}{}", self.url.scheme(), self.authority, asked.target);
                sender.send_request(request.uri(uri).body(body)?).await?
            }
        };
        Ok(response)
    }

    async fn is_open(&mut self) -> bool {
        match &mut self.sender {
            Sender::First(sender) => sender.ready().await.is_ok(),
            Sender::Second(sender) => sender.ready().await.is_ok(),
        }
    }

    /// Sends a request whose answer must have this status, and reads all of it: how many bytes came. A redirect is followed as
    /// clients do: over a connection of its own, without the credential.
    ///
    /// # Errors
    /// If there is another answer, with its body.
    pub async fn read(&mut self, asked: &Asked) -> Result<u64, Error> {
        let mut response = self.send(asked, empty()).await?;
        for _ in 0..MAX_REDIRECTS {
            if !response.status().is_redirection() {
                break;
            }
            let location = response.headers().get(LOCATION).and_then(|location| location.to_str().ok());
            let url = self.url.join(location.ok_or("a redirect without a location")?)?;
            drain(response.into_body()).await?;
            let mut asked = Asked { target: target_of(&url), ..asked.clone() };
            asked.headers.retain(|(name, _)| *name != AUTHORIZATION.as_str() && *name != "cookie");
            response = self.dialer.connect(&url).await?.send(&asked, empty()).await?;
        }
        if !response.status().is_success() {
            return Err(refused(asked, response).await);
        }
        drain(response.into_body()).await
    }

    /// Sends a request whose answer must have one of these status codes.
    ///
    /// # Errors
    /// If there is another answer, with its body.
    pub async fn expect(
        &mut self,
        asked: &Asked,
        body: Body,
        expected: &[StatusCode],
    ) -> Result<Response<Bytes>, Error> {
        let response = self.send(asked, body).await?;
        if !expected.contains(&response.status()) {
            return Err(refused(asked, response).await);
        }
        let (parts, body) = response.into_parts();
        Ok(Response::from_parts(parts, whole(body).await?))
    }
}

/// An answer that wasn't meant.
async fn refused(asked: &Asked, response: Response<Incoming>) -> Error {
    let status = response.status();
    let body = whole(response.into_body()).await.unwrap_or_default();
    // It is somebody else's text, for a terminal.
    let text: String =
        String::from_utf8_lossy(&body).chars().filter(|c| !c.is_control()).take(MAX_TOLD_CHARS).collect();
    format!("{} {}: {status} {text}", asked.method, asked.target).into()
}

/// What must come in time.
async fn in_time<T>(what: impl Future<Output = T>) -> Result<T, Error> {
    let late = |_| format!("nothing came for {} s", SILENCE_TIMEOUT.as_secs());
    Ok(tokio::time::timeout(SILENCE_TIMEOUT, what).await.map_err(late)?)
}

async fn drain(mut body: Incoming) -> Result<u64, Error> {
    let mut read = 0;
    while let Some(frame) = in_time(body.frame()).await? {
        read += frame?.data_ref().map_or(0, Bytes::len) as u64;
    }
    Ok(read)
}

async fn whole(body: Incoming) -> Result<Bytes, Error> {
    Ok(in_time(http_body_util::Limited::new(body, MAX_ANSWER_BYTES).collect()).await??.to_bytes())
}

/// The path of an address, with its query.
pub fn target_of(url: &Url) -> String {
    url.query().map_or_else(|| url.path().to_owned(), |query| format!("{}?{query}", url.path()))
}

/// No body.
pub fn empty() -> Body {
    full(Bytes::new())
}

/// A body of these bytes.
pub fn full(bytes: Bytes) -> Body {
    http_body_util::Full::new(bytes).boxed()
}
