//! What both processes tell of themselves: the lines of their logs, the counters of the process, traces, their health and
//! version.
//!
//! Others tell it; it asks nobody.

mod append_file;
mod health;
mod log;
mod process;
mod traces;

pub use append_file::AppendFile;
pub use health::{Health, answer_health_checks, ask_health};
pub use log::{Log, QUIET, escape_json, reopen_log};
pub use process::{ProcessMetrics, raise_descriptor_limit};
pub use traces::{Collector, Span, Traces};

/// The version and the commit that it was built of, for `--version`.
pub const VERSION: &str = concat!(env!("CARGO_PKG_VERSION"), " (", env!("BERTH_COMMIT"), ")");

/// The commit alone.
pub const COMMIT: &str = env!("BERTH_COMMIT");
