//! Processes that end with the test that started them.

use std::{
    fs::File,
    io,
    net::TcpListener,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::atomic::{AtomicU16, Ordering},
    time::{Duration, Instant},
};

/// A process, killed when this is dropped.
pub struct Process {
    child: Child,
    log: PathBuf,
}

impl Process {
    /// Starts `command`; what it prints goes to the file `log`, after what is there.
    ///
    /// # Errors
    /// If it can't be started.
    pub fn start(command: &mut Command, log: &Path) -> io::Result<Self> {
        let file = File::options().create(true).append(true).open(log)?;
        let child = command.stdin(Stdio::null()).stdout(file.try_clone()?).stderr(file).spawn()?;
        Ok(Self { child, log: log.to_owned() })
    }

    /// What stands in a file of `/proc/<pid>/` after a name, in its own unit.
    ///
    /// # Panics
    /// If nothing does.
    pub fn counter(&self, file: &str, name: &str) -> u64 {
        let text = std::fs::read_to_string(format!("/proc/{}/{file}", self.id())).expect("a process");
        let value = text.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_else(|| panic!("{name}: {text}"));
        let value = value.trim_start_matches(':').split_whitespace().next();
        value.and_then(|value| value.parse().ok()).expect("a number")
    }

    /// How many calls have read or written something.
    pub fn calls(&self) -> u64 {
        self.counter("io", "syscr") + self.counter("io", "syscw")
    }

    /// Resident memory in KiB.
    pub fn memory(&self) -> u64 {
        self.counter("status", "VmRSS")
    }

    /// Its number.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// What it has printed.
    pub fn printed(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Waits until it has printed this. What it says of a request may come after the answer.
    pub async fn prints(&self, text: &str) {
        wait_for(text, async || self.printed().contains(text).then_some(())).await;
    }

    /// Whether it has ended.
    pub fn has_ended(&mut self) -> bool {
        !matches!(self.child.try_wait(), Ok(None))
    }

    /// `kill -9`, and waits until it is gone.
    pub fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// SIGTERM, and waits until it is gone or ten seconds are over.
    pub fn terminate(&mut self) {
        let _ = Command::new("kill").arg(self.child.id().to_string()).status();
        let end = Instant::now() + Duration::from_secs(10);
        while !self.has_ended() && Instant::now() < end {
            std::thread::sleep(Duration::from_millis(10));
        }
        self.kill();
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}

/// An HTTP client to be built that takes every certificate: the tests make their own.
pub fn trusting() -> reqwest::ClientBuilder {
    reqwest::Client::builder().tls_danger_accept_invalid_certs(true)
}

/// A port that nothing listens on, and that this process gives to nobody else.
///
/// It lies below the ports that the kernel gives to outgoing connections: one of those could take it before the server
/// that it is for is there, or while that is restarted.
///
/// # Panics
/// If there is none.
pub fn free_port() -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    // Another test process beside this one begins elsewhere.
    let first = u16::try_from(std::process::id() * 89 % u32::from(PORTS)).unwrap_or_default();
    let candidates = std::iter::repeat_with(|| NEXT.fetch_add(1, Ordering::Relaxed)).take(PORTS.into());
    let mut ports = candidates.map(|i| LOWEST_PORT + (first + i % PORTS) % PORTS);
    ports.find(|&port| TcpListener::bind(("0.0.0.0", port)).is_ok()).expect("a free port")
}

/// The ports of the tests: 20000 to 31999. Linux gives 32768 and above to outgoing connections (ip(7),
/// `ip_local_port_range`).
const LOWEST_PORT: u16 = 20_000;
const PORTS: u16 = 12_000;

/// Waits until `there` gives something, for a minute at most.
///
/// # Panics
/// After a minute, with `what`.
pub async fn wait_for<T>(what: &str, there: impl AsyncFnMut() -> Option<T>) -> T {
    wait_within(Duration::from_mins(1), what, there).await
}

/// Waits like [`wait_for`], for as long as `limit`.
///
/// # Panics
/// After `limit`, with `what`.
pub async fn wait_within<T>(limit: Duration, what: &str, mut there: impl AsyncFnMut() -> Option<T>) -> T {
    let end = Instant::now() + limit;
    loop {
        if let Some(value) = there().await {
            return value;
        }
        assert!(Instant::now() < end, "waited {limit:?} for {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}
