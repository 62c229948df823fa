//! The listener, and the end of it all.

use std::{future::Future, io, path::Path, sync::Arc, time::Duration};

use axum::{Router, serve::ListenerExt};
use berth_config::Upstream;
use bytes::Bytes;
use http::StatusCode;
use http_body_util::Empty;
use hyper_util::rt::TokioIo;
use tokio::{
    net::{TcpListener, TcpStream, UnixListener, UnixStream},
    signal::unix::{SignalKind, signal},
};

use super::{Serving, answer, handover, limits::Bounded};

/// How long requests may go on after the registry was told to stop.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(8);

/// Serves until SIGTERM or SIGINT.
///
/// # Errors
/// A sentence, if it can't listen.
pub async fn serve(upstream: &Upstream, serving: Arc<Serving>) -> Result<(), String> {
    let router = Router::new().fallback(answer).with_state(Arc::clone(&serving));
    let cannot = |error: io::Error| format!("sidecar.upstream: can't listen on {upstream} ({error})");
    let stopping = stop_signal(Arc::clone(&serving))?;
    match upstream {
        Upstream::Tcp { .. } => {
            let listener = TcpListener::bind(upstream.authority()).await.map_err(cannot)?;
            let listener = listener.tap_io(|stream| {
                let _ = stream.set_nodelay(true);
            });
            let listener = Bounded::new(listener, &serving.limits);
            tracing::info!("listening on {upstream}");
            finish(axum::serve(listener, router).with_graceful_shutdown(stopping.clone()).into_future(), stopping).await
        }
        Upstream::Unix(path) => {
            let listener = Bounded::new(bind_anew(path).map_err(cannot)?, &serving.limits);
            if !serving.content.is_shared() {
                let files = handover::listen(path).map_err(cannot)?;
                tokio::spawn(handover::serve(files, Arc::clone(&serving)));
            }
            tracing::info!("listening on {upstream}");
            finish(axum::serve(listener, router).with_graceful_shutdown(stopping.clone()).into_future(), stopping).await
        }
    }
}

/// Listens on a socket. One that a killed process left behind would keep this one from it.
pub fn bind_anew(path: &Path) -> io::Result<UnixListener> {
    match std::fs::remove_file(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
        _ => {}
    }
    UnixListener::bind(path)
}

/// Serves until told to stop, and then lets the last requests end, for a while.
async fn finish(
    serving: impl Future<Output = io::Result<()>>,
    stopping: impl Future<Output = ()>,
) -> Result<(), String> {
    let overdue = async {
        stopping.await;
        tokio::time::sleep(DRAIN_TIMEOUT).await;
    };
    tokio::select! {
        outcome = serving => outcome.map_err(|e| e.to_string()),
        () = overdue => {
            tracing::warn!("some requests were cut off");
            Ok(())
        }
    }
}

/// Ready when the process is told to stop.
fn stop_signal(serving: Arc<Serving>) -> Result<impl Future<Output = ()> + Clone, String> {
    let unable = |e: io::Error| format!("can't watch for signals: {e}");
    let mut terminate = signal(SignalKind::terminate()).map_err(unable)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(unable)?;
    Ok(futures_util::FutureExt::shared(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        tracing::info!("stopping");
        serving.content.stop_collecting();
    }))
}

/// Asks the registry at `upstream` whether it is one.
///
/// # Errors
/// A sentence that says what is wrong.
pub async fn health(upstream: &Upstream) -> Result<(), String> {
    let unwell = |e: &dyn std::fmt::Display| format!("the registry at {upstream} does not answer: {e}");
    let asked = async {
        match upstream {
            Upstream::Tcp { .. } => {
                let stream = TcpStream::connect(upstream.authority()).await.map_err(|e| unwell(&e))?;
                ping(TokioIo::new(stream)).await.map_err(|e| unwell(&e))
            }
            Upstream::Unix(path) => {
                let stream = UnixStream::connect(path).await.map_err(|e| unwell(&e))?;
                ping(TokioIo::new(stream)).await.map_err(|e| unwell(&e))
            }
        }
    };
    let status = tokio::time::timeout(Duration::from_secs(5), asked).await.map_err(|e| unwell(&e))??;
    if status == StatusCode::OK { Ok(()) } else { Err(unwell(&status)) }
}

async fn ping<S>(stream: S) -> Result<StatusCode, hyper::Error>
where
    S: hyper::rt::Read + hyper::rt::Write + Unpin + Send + 'static,
{
    let (mut sender, connection) = hyper::client::conn::http1::handshake(stream).await?;
    tokio::spawn(connection);
    let request = http::Request::get("/v2/").header("host", "localhost").body(Empty::<Bytes>::new());
    let Ok(request) = request else { return Ok(StatusCode::INTERNAL_SERVER_ERROR) };
    Ok(sender.send_request(request).await?.status())
}
