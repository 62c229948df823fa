//! A bucket at a real S3 server, versitygw, which keeps objects as files; and a proxy in front of it that makes faults.

use std::{
    future::Future,
    io,
    path::{Path, PathBuf},
    process::Command,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use http::{HeaderName, Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Full};
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::net::TcpListener;

use crate::{
    process::{Process, free_port, wait_for},
    tools::find,
};

/// The access key and the secret.
pub const KEY: (&str, &str) = ("an-access-key", "and-its-secret");

/// A server with one bucket, `bucket`.
pub struct Bucket {
    /// `http://host:port`
    pub endpoint: String,
    root: PathBuf,
    port: u16,
    server: Process,
}

impl Bucket {
    /// Starts a server whose files are in `folder`; nothing, having said so, if there is none.
    ///
    /// # Panics
    /// If it doesn't serve.
    pub async fn start(folder: &Path) -> Option<Self> {
        let program = find("versitygw")?;
        let root = folder.join("s3");
        std::fs::create_dir_all(root.join("bucket")).expect("a folder");
        let port = free_port();
        let server = serve(&program, &root, port);
        let bucket = Self { endpoint: format!("http://127.0.0.1:{port}"), root, port, server };
        bucket.ready().await;
        Some(bucket)
    }

    async fn ready(&self) {
        wait_for("the bucket", async || reqwest::get(&self.endpoint).await.ok()).await;
    }

    /// Where the objects below `rootdirectory` are.
    pub fn objects(&self) -> PathBuf {
        self.root.join("bucket/berth")
    }

    /// Ends the server.
    pub fn kill(&mut self) {
        self.server.kill();
    }

    /// Starts it again.
    ///
    /// # Panics
    /// If it doesn't serve.
    pub async fn restart(&mut self) {
        self.server = serve(&find("versitygw").expect("a program"), &self.root, self.port);
        self.ready().await;
    }
}

fn serve(program: &Path, root: &Path, port: u16) -> Process {
    let mut command = Command::new(program);
    command.args(["--access", KEY.0, "--secret", KEY.1, "--region", "eu-central-1", "--quiet"]);
    command.args(["--port", &format!("127.0.0.1:{port}"), "posix"]).arg(root);
    Process::start(&mut command, &root.with_extension("log")).expect("a process")
}

/// `storage.storageDriver` for a bucket at this address.
pub fn driver(endpoint: &str) -> Value {
    json!({
        "name": "s3", "region": "eu-central-1", "regionendpoint": endpoint, "bucket": "bucket",
        "accesskey": KEY.0, "secretkey": KEY.1, "rootdirectory": "/berth", "secure": false,
    })
}

/// What a request meets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// It is done, and the answer is lost.
    LostAnswer,
    /// It isn't done, and answered with this.
    Answer(u16),
    /// It isn't done, and never answered.
    Silence,
}

type Decide = dyn Fn(&Method, &str) -> Option<Fault> + Send + Sync;

/// A proxy that makes faults.
#[derive(Clone)]
pub struct FaultProxy {
    /// `http://host:port`
    pub endpoint: String,
    decide: Arc<Mutex<Arc<Decide>>>,
}

impl FaultProxy {
    /// A proxy in front of `upstream` that makes none yet, for as long as the test runs.
    ///
    /// # Panics
    /// If it can't listen.
    pub async fn start(upstream: &str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let endpoint = format!("http://{}", listener.local_addr().expect("an address"));
        let decide: Arc<Mutex<Arc<Decide>>> = Arc::new(Mutex::new(Arc::new(|_: &Method, _: &str| None)));
        let proxy = Self { endpoint, decide };
        let (serving, upstream) = (proxy.clone(), upstream.to_owned());
        let client = reqwest::Client::builder().no_proxy().build().expect("a client");
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (proxy, upstream, client) = (serving.clone(), upstream.clone(), client.clone());
                let service = service_fn(move |request| {
                    let (proxy, upstream, client) = (proxy.clone(), upstream.clone(), client.clone());
                    async move { proxy.pass(request, &upstream, &client).await }
                });
                tokio::spawn(http1::Builder::new().serve_connection(TokioIo::new(stream), service));
            }
        });
        proxy
    }

    /// From now on, `decide` says which requests meet which fault, by method and path with query.
    pub fn set(&self, decide: impl Fn(&Method, &str) -> Option<Fault> + Send + Sync + 'static) {
        *self.decide.lock().unwrap_or_else(PoisonError::into_inner) = Arc::new(decide);
    }

    /// The next request of this kind meets the fault, and no other.
    pub fn once(&self, method: Method, part: &'static str, fault: Fault) {
        let left = AtomicUsize::new(1);
        self.set(move |asked, path| {
            let wanted = *asked == method && path.contains(part);
            (wanted && left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1)).is_ok())
                .then_some(fault)
        });
    }

    /// An error closes the connection without an answer.
    async fn pass(
        &self,
        request: Request<Incoming>,
        upstream: &str,
        client: &reqwest::Client,
    ) -> io::Result<Response<Full<Bytes>>> {
        let (parts, body) = request.into_parts();
        let body = body.collect().await.map_err(io::Error::other)?.to_bytes();
        let target = parts.uri.path_and_query().map_or("/", |target| target.as_str()).to_owned();
        let decide = Arc::clone(&self.decide.lock().unwrap_or_else(PoisonError::into_inner));
        let fault = decide(&parts.method, &target);
        match fault {
            Some(Fault::Silence) => tokio::time::sleep(Duration::from_hours(1)).await,
            Some(Fault::Answer(status)) => {
                let mut response = Response::new(Full::new(Bytes::from_static(b"a fault")));
                *response.status_mut() = StatusCode::from_u16(status).map_err(io::Error::other)?;
                return Ok(response);
            }
            Some(Fault::LostAnswer) | None => {}
        }
        // The host that was signed is ours.
        let mut forward = client.request(parts.method, format!("{upstream}{target}")).headers(parts.headers);
        if !body.is_empty() {
            forward = forward.body(body);
        }
        let answer = forward.send().await.map_err(io::Error::other)?;
        let (status, headers) = (answer.status(), answer.headers().clone());
        let body = answer.bytes().await.map_err(io::Error::other)?;
        if fault == Some(Fault::LostAnswer) {
            return Err(io::Error::other("the answer is lost"));
        }
        let mut response = Response::new(Full::new(body));
        *response.status_mut() = status;
        let hop_by_hop: [HeaderName; 2] = [header::TRANSFER_ENCODING, header::CONNECTION];
        response.headers_mut().extend(
            headers.into_iter().filter(|(name, _)| name.as_ref().is_none_or(|name| !hop_by_hop.contains(name))),
        );
        Ok(response)
    }
}

/// What comes of something that must end within a time.
///
/// # Panics
/// If it doesn't.
pub async fn within<T>(limit: Duration, what: &str, done: impl Future<Output = T>) -> T {
    tokio::time::timeout(limit, done).await.unwrap_or_else(|_| panic!("{what} took longer than {limit:?}"))
}
