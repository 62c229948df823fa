//! The section `log`, and the subscriber that it asks for.

use std::{fs::OpenOptions, path::PathBuf};

use tracing::Level;
use tracing_subscriber::{EnvFilter, fmt, layer::SubscriberExt, util::SubscriberInitExt};

use crate::{Note, Section};

/// `log`: how much is said, and where.
#[derive(Clone, Debug)]
pub struct Log {
    level: Level,
    output: Option<PathBuf>,
}

impl Log {
    /// Reads `log.level` (info) and `log.output` (standard output).
    pub fn read(root: &Section<'_>) -> Self {
        let log = root.section("log");
        let level = match log.text("level").map(str::to_ascii_lowercase).as_deref() {
            None | Some("info") => Level::INFO,
            Some("trace") => Level::TRACE,
            Some("debug") => Level::DEBUG,
            Some("warn") => Level::WARN,
            Some("error" | "fatal" | "panic") => Level::ERROR,
            Some(_) => {
                log.problem("level", "is not a level; expected trace, debug, info, warn or error");
                Level::INFO
            }
        };
        let output = log.text("output").map(PathBuf::from);
        log.ignore("audit", "what people do is in the log itself");
        log.close();
        Self { level, output }
    }

    /// Starts logging, and says what the file was warned of.
    ///
    /// `quiet` are the targets whose messages below `warn` are never wanted.
    ///
    /// # Errors
    /// A sentence, if the output can't be opened.
    pub fn start(&self, quiet: &[&str], warnings: &[Note]) -> Result<(), String> {
        let mut filter = EnvFilter::new(self.level.as_str());
        for target in quiet {
            let directive = format!("{target}=warn");
            filter = filter.add_directive(directive.parse().map_err(|e| format!("log filter {directive}: {e}"))?);
        }
        let registry = tracing_subscriber::registry().with(filter);
        let layer = fmt::layer().with_ansi(false);
        match &self.output {
            None => registry.with(layer).init(),
            Some(path) => {
                let file = OpenOptions::new().create(true).append(true).open(path);
                let file = file.map_err(|e| format!("log.output: {} can't be written ({e})", path.display()))?;
                registry.with(layer.with_writer(file)).init();
            }
        }
        for warning in warnings {
            tracing::warn!("{warning}");
        }
        Ok(())
    }
}
