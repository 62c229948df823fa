//! Who is told of events: takes them, or doesn't, as a test wants.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use axum::{
    Router,
    body::Bytes,
    extract::{DefaultBodyLimit, State},
    http::{HeaderMap, StatusCode, header},
    response::{IntoResponse, Response},
};
use serde_json::Value;
use tokio::{net::TcpListener, task::JoinHandle};

use crate::process::{free_port, wait_for};

/// What it does with an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Takes it.
    Take,
    /// Takes it, after a while.
    Slow(Duration),
    /// Takes it, and breaks off before it says so.
    Forget,
    /// Answers with this status.
    Refuse(u16),
    /// Sends the sender elsewhere.
    Redirect,
    /// Never answers.
    Hang,
}

/// An event that was taken.
#[derive(Clone, Debug)]
pub struct Received {
    /// Its headers.
    pub headers: HeaderMap,
    /// Its data, as it came.
    pub body: String,
    /// The same, read.
    pub data: Value,
}

impl Received {
    /// One of its headers.
    ///
    /// # Panics
    /// If it isn't there.
    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).unwrap_or_else(|| panic!("{name} in {:?}", self.headers)).to_str().expect("text")
    }
}

#[derive(Default)]
struct Shared {
    mode: Mutex<Option<Mode>>,
    received: Mutex<Vec<Received>>,
    asked: Mutex<usize>,
}

/// A receiver on a port of its own.
pub struct Receiver {
    port: u16,
    shared: Arc<Shared>,
    serving: Option<JoinHandle<()>>,
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

async fn receive(State(shared): State<Arc<Shared>>, headers: HeaderMap, body: Bytes) -> Response {
    *lock(&shared.asked) += 1;
    let mode = lock(&shared.mode).unwrap_or(Mode::Take);
    let take = || {
        let text = String::from_utf8(body.to_vec()).expect("text");
        let data = serde_json::from_str(&text).expect("JSON");
        lock(&shared.received).push(Received { headers: headers.clone(), body: text, data });
    };
    match mode {
        Mode::Take => take(),
        Mode::Slow(wait) => {
            tokio::time::sleep(wait).await;
            take();
        }
        Mode::Forget => {
            take();
            return StatusCode::BAD_GATEWAY.into_response();
        }
        Mode::Refuse(status) => return StatusCode::from_u16(status).expect("a status").into_response(),
        Mode::Redirect => return (StatusCode::TEMPORARY_REDIRECT, [(header::LOCATION, "/elsewhere")]).into_response(),
        Mode::Hang => std::future::pending().await,
    }
    StatusCode::NO_CONTENT.into_response()
}

impl Receiver {
    /// Begins to take events.
    ///
    /// # Panics
    /// If there is no port.
    pub async fn start() -> Self {
        let mut receiver = Self { port: free_port(), shared: Arc::default(), serving: None };
        receiver.restart().await;
        receiver
    }

    /// Begins again, after it was killed.
    ///
    /// # Panics
    /// If its port was taken meanwhile.
    pub async fn restart(&mut self) {
        let listener = TcpListener::bind(("127.0.0.1", self.port)).await.expect("the port");
        let router =
            Router::new().fallback(receive).layer(DefaultBodyLimit::disable()).with_state(Arc::clone(&self.shared));
        self.serving = Some(tokio::spawn(async move { axum::serve(listener, router).await.expect("served") }));
    }

    /// Is gone, in the middle of whatever it does.
    pub async fn kill(&mut self) {
        if let Some(serving) = self.serving.take() {
            serving.abort();
            let _ = serving.await;
        }
    }

    /// Where it is.
    pub fn address(&self) -> String {
        format!("http://127.0.0.1:{}/hook", self.port)
    }

    /// Where it is, by this name.
    pub fn address_at(&self, host: &str) -> String {
        format!("http://{host}:{}/hook", self.port)
    }

    /// What it does from now on.
    pub fn set(&self, mode: Mode) {
        *lock(&self.shared.mode) = Some(mode);
    }

    /// What it has taken.
    pub fn received(&self) -> Vec<Received> {
        lock(&self.shared.received).clone()
    }

    /// How often it was asked.
    pub fn asked(&self) -> usize {
        *lock(&self.shared.asked)
    }

    /// Waits for an event of this type that is so.
    pub async fn get(&self, kind: &str, is_it: impl Fn(&Received) -> bool) -> Received {
        wait_for(kind, async || {
            let all = lock(&self.shared.received);
            all.iter().find(|one| one.header("ce-type").ends_with(kind) && is_it(one)).cloned()
        })
        .await
    }
}
