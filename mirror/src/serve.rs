//! The listener, and the end of it all.

use std::{future::Future, io, sync::Arc, time::Duration};

use axum::{Router, routing::any, serve::ListenerExt};
use berth_config::Upstream;
use futures_util::FutureExt;
use tokio::{
    net::{TcpListener, UnixListener},
    signal::unix::{SignalKind, signal},
};

use crate::answer::{Mirror, answer};

/// How long requests may go on after the mirror was told to stop.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(8);

/// Serves until SIGTERM or SIGINT.
///
/// # Errors
/// A sentence, if it can't listen.
pub async fn serve(listen: &Upstream, mirror: Arc<Mirror>) -> Result<(), String> {
    let router = Router::new().fallback(any(answer)).with_state(mirror);
    let cannot = |error: io::Error| format!("sidecar.mirror: can't listen on {listen} ({error})");
    let unable = |error: io::Error| format!("signals can't be watched ({error})");
    let mut terminate = signal(SignalKind::terminate()).map_err(unable)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(unable)?;
    let stopping = async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        tracing::info!("stopping");
    };
    let stopping = stopping.shared();
    match listen {
        Upstream::Tcp { .. } => {
            let listener = TcpListener::bind(listen.authority()).await.map_err(cannot)?;
            let listener = listener.tap_io(|stream| drop(stream.set_nodelay(true)));
            tracing::info!("listening on {listen}");
            let serving = axum::serve(listener, router).with_graceful_shutdown(stopping.clone());
            finish(serving.into_future(), stopping).await
        }
        Upstream::Unix(path) => {
            // A socket that a killed process left behind would keep this one from listening.
            match std::fs::remove_file(path) {
                Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(cannot(e)),
                _ => {}
            }
            let listener = UnixListener::bind(path).map_err(cannot)?;
            tracing::info!("listening on {listen}");
            let serving = axum::serve(listener, router).with_graceful_shutdown(stopping.clone());
            finish(serving.into_future(), stopping).await
        }
    }
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
