//! What is counted, in Prometheus' text format.

use std::{
    fmt::Write,
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

/// Counters of this process.
#[derive(Default)]
pub struct Metrics {
    /// Requests, by the first digit of the status; 0 for those that got no answer.
    requests: [AtomicU64; 6],
    milliseconds: AtomicU64,
    handshakes_failed: AtomicU64,
    connections_evicted: AtomicU64,
    connections_refused: AtomicU64,
}

impl Metrics {
    /// A request has ended.
    pub fn request(&self, status: u16, took: Duration) {
        let class = usize::from(status / 100);
        self.requests[if class < self.requests.len() { class } else { 0 }].fetch_add(1, Ordering::Relaxed);
        let milliseconds = u64::try_from(took.as_millis()).unwrap_or_default();
        self.milliseconds.fetch_add(milliseconds, Ordering::Relaxed);
    }

    /// A TLS handshake has failed, or took too long.
    pub fn handshake_failed(&self) {
        self.handshakes_failed.fetch_add(1, Ordering::Relaxed);
    }

    /// An idle connection was closed to make room.
    pub fn connection_evicted(&self) {
        self.connections_evicted.fetch_add(1, Ordering::Relaxed);
    }

    /// A connection was closed at once, because there was no room.
    pub fn connection_refused(&self) {
        self.connections_refused.fetch_add(1, Ordering::Relaxed);
    }

    /// The counters as text, and the providers that renew nobody's sign-in.
    pub fn text(&self, troubled: &[String]) -> String {
        let mut out = String::from(
            "# HELP berth_requests_total Requests that have ended, by the class of their status.\n\
             # TYPE berth_requests_total counter\n",
        );
        for (class, count) in self.requests.iter().enumerate() {
            let name = if class == 0 { "none".to_owned() } else { format!("{class}xx") };
            let _ = writeln!(out, "berth_requests_total{{status=\"{name}\"}} {}", count.load(Ordering::Relaxed));
        }
        let seconds = Duration::from_millis(self.milliseconds.load(Ordering::Relaxed)).as_secs_f64();
        let _ = writeln!(
            out,
            "# HELP berth_request_seconds_total How long they took together.\n\
             # TYPE berth_request_seconds_total counter\nberth_request_seconds_total {seconds}"
        );
        for (name, help, count) in [
            ("handshakes_failed", "TLS handshakes that failed or took too long.", &self.handshakes_failed),
            ("connections_evicted", "Idle connections that were closed to make room.", &self.connections_evicted),
            ("connections_refused", "Connections that there was no room for.", &self.connections_refused),
        ] {
            let count = count.load(Ordering::Relaxed);
            let _ = writeln!(
                out,
                "# HELP berth_{name}_total {help}\n# TYPE berth_{name}_total counter\nberth_{name}_total {count}"
            );
        }
        out.push_str(
            "# HELP berth_renewals_refused Providers that renew no sign-ins: allow the grant type refresh_token there.\n\
             # TYPE berth_renewals_refused gauge\n",
        );
        for provider in troubled {
            let _ = writeln!(out, "berth_renewals_refused{{provider=\"{provider}\"}} 1");
        }
        out
    }
}
