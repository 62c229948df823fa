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
}

impl Metrics {
    /// A request has ended.
    pub fn request(&self, status: u16, took: Duration) {
        let class = usize::from(status / 100);
        self.requests[if class < self.requests.len() { class } else { 0 }].fetch_add(1, Ordering::Relaxed);
        let milliseconds = u64::try_from(took.as_millis()).unwrap_or_default();
        self.milliseconds.fetch_add(milliseconds, Ordering::Relaxed);
    }

    /// The counters as text.
    pub fn text(&self) -> String {
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
        out
    }
}
