//! A stretch of network between two programs, which a test breaks.

use std::{
    io,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};

use crate::process::free_port;

#[derive(Default)]
struct Shared {
    /// Nobody gets through.
    is_down: AtomicBool,
    /// How many bytes an answer has before the connection breaks; 0 for all of them.
    cut_after: AtomicU64,
    /// What comes back comes slowly.
    is_slow: AtomicBool,
    /// The lines of all requests.
    requests: Mutex<Vec<String>>,
}

/// It listens on a port of its own.
pub struct Relay {
    port: u16,
    shared: Arc<Shared>,
}

impl Relay {
    /// Leads to `host:port`.
    ///
    /// # Panics
    /// If there is no port.
    pub async fn to(authority: &str) -> Self {
        let (port, shared) = (free_port(), Arc::<Shared>::default());
        let listener = TcpListener::bind(("127.0.0.1", port)).await.expect("the port");
        let (authority, for_all) = (authority.to_owned(), Arc::clone(&shared));
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                if for_all.is_down.load(Ordering::Relaxed) {
                    continue; // It is closed at once.
                }
                let (authority, shared) = (authority.clone(), Arc::clone(&for_all));
                tokio::spawn(async move { drop(carry(stream, &authority, &shared).await) });
            }
        });
        Self { port, shared }
    }

    /// `http://localhost:port`
    pub fn url(&self) -> String {
        format!("http://localhost:{}", self.port)
    }

    /// Lets nobody through any more, or everybody again.
    pub fn set_down(&self, is_down: bool) {
        self.shared.is_down.store(is_down, Ordering::Relaxed);
    }

    /// Breaks each connection when so many bytes have come back on it; none, with 0.
    pub fn cut_after(&self, bytes: u64) {
        self.shared.cut_after.store(bytes, Ordering::Relaxed);
    }

    /// Lets answers through slowly, or as quickly as they come.
    pub fn slow_down(&self, is_slow: bool) {
        self.shared.is_slow.store(is_slow, Ordering::Relaxed);
    }

    /// How many lines of requests begin so, as `GET /v2/` or `authorization:`.
    ///
    /// # Panics
    /// Never.
    pub fn requests(&self, beginning: &str) -> usize {
        let requests = self.shared.requests.lock().unwrap_or_else(PoisonError::into_inner);
        requests
            .iter()
            .filter(|line| {
                line.len() >= beginning.len()
                    && line.as_bytes()[..beginning.len()].eq_ignore_ascii_case(beginning.as_bytes())
            })
            .count()
    }
}

async fn carry(client: TcpStream, authority: &str, shared: &Shared) -> io::Result<()> {
    let server = TcpStream::connect(authority).await?;
    let (mut client_read, mut client_write) = client.into_split();
    let (mut server_read, mut server_write) = server.into_split();
    let there = async {
        let mut buffer = vec![0; 64 * 1024];
        loop {
            let len = client_read.read(&mut buffer).await?;
            if len == 0 || shared.is_down.load(Ordering::Relaxed) {
                return Ok::<_, io::Error>(());
            }
            let text = String::from_utf8_lossy(&buffer[..len]);
            // A body may be of lines, too; nobody looks for those.
            let lines = text.lines().map(str::to_owned);
            shared.requests.lock().unwrap_or_else(PoisonError::into_inner).extend(lines);
            server_write.write_all(&buffer[..len]).await?;
        }
    };
    let back = async {
        let (mut buffer, mut carried) = (vec![0; 64 * 1024], 0);
        loop {
            let len = server_read.read(&mut buffer).await?;
            if len == 0 {
                return Ok::<_, io::Error>(());
            }
            carried += len as u64;
            let most = shared.cut_after.load(Ordering::Relaxed);
            if shared.is_down.load(Ordering::Relaxed) || (most > 0 && carried > most) {
                return Ok(());
            }
            if shared.is_slow.load(Ordering::Relaxed) {
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
            client_write.write_all(&buffer[..len]).await?;
        }
    };
    tokio::select! {
        outcome = there => outcome,
        outcome = back => outcome,
    }
}
