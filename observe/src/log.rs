//! The section `log`, and the subscriber that it asks for.

use std::{
    borrow::Cow,
    io::{self, Write},
    path::PathBuf,
    sync::OnceLock,
};

use berth_config::{Note, Section};
use tracing::Level;
use tracing_subscriber::{
    EnvFilter,
    fmt::{self, MakeWriter},
    layer::SubscriberExt,
    util::SubscriberInitExt,
};

use crate::AppendFile;

/// Libraries whose messages below a warning are never wanted; some of them print headers.
pub const QUIET: [&str; 13] = [
    "h2=warn",
    "hyper=warn",
    "hyper_util=warn",
    "object_store=warn",
    "opentelemetry=warn",
    "opentelemetry-otlp=warn",
    "opentelemetry_sdk=warn",
    "pingora=warn",
    "pingora_core=warn",
    // It warns of each attempt to reach a registry that is away; the proxy says how a request has ended.
    "pingora_proxy=error",
    "reqwest=warn",
    "rustls=warn",
    "sqlx=warn",
];

/// `log`: how much is said, and where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Log {
    level: Level,
    format: Format,
    /// The file that lines go to: `log.output`; standard output, without one.
    pub output: Option<PathBuf>,
    /// Where the proxy writes down who did what: `log.audit`.
    pub audit: Option<PathBuf>,
}

/// How a line is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Format {
    /// For people.
    Text,
    /// One JSON object a line, for machines.
    Json,
}

impl Log {
    /// Reads `log.level` (info), `log.format` (text) and `log.output` (standard output).
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
        let format = match log.text("format") {
            None | Some("text") => Format::Text,
            Some("json") => Format::Json,
            Some(_) => {
                log.problem("format", "is not a format; expected text or json");
                Format::Text
            }
        };
        let file = |key| log.text(key).filter(|path| !path.is_empty()).map(PathBuf::from);
        let (output, audit) = (file("output"), file("audit"));
        log.close();
        Self { level, format, output, audit }
    }

    /// Whether lines are written alike and to the same place.
    pub fn is_like(&self, other: &Self) -> bool {
        (self.level, self.format, &self.output) == (other.level, other.format, &other.output)
    }

    /// Starts logging, and says what the file was warned of.
    ///
    /// `quiet` are the targets whose messages below `warn` are never wanted.
    ///
    /// # Errors
    /// A sentence, if the output can't be opened.
    pub fn start(&self, quiet: &[&str], warnings: &[Note]) -> Result<(), String> {
        let mut filter = EnvFilter::new(self.level.as_str());
        for directive in quiet {
            filter = filter.add_directive(directive.parse().map_err(|e| format!("log filter {directive}: {e}"))?);
        }
        let registry = tracing_subscriber::registry().with(filter);
        let open = |path: &PathBuf| {
            let opened = AppendFile::open(path);
            opened.map_err(|e| {
                format!(
                    "log.output: {} can't be written ({e}); make its folder, writable for this user",
                    path.display()
                )
            })
        };
        let file = self.output.as_ref().map(open).transpose()?;
        let file = file.map(|file| FILE.get_or_init(|| file));
        let output = Output { file, format: self.format };
        let layer = fmt::layer().with_ansi(false).with_writer(output);
        match self.format {
            Format::Text => registry.with(layer).init(),
            Format::Json => registry.with(layer.json().flatten_event(true)).init(),
        }
        for warning in warnings {
            tracing::warn!("{warning}");
        }
        Ok(())
    }
}

/// The file that lines go to, if they don't go to standard output.
static FILE: OnceLock<AppendFile> = OnceLock::new();

/// Opens the log's file again, since it may have been renamed (logrotate does so). If that fails, the old one stays.
pub fn reopen_log() {
    let Some(log) = FILE.get() else { return };
    if let Err(error) = log.reopen() {
        tracing::error!("log.output: {} can't be written ({error}); the old file stays in use", log.path().display());
    }
}

/// Where lines go: a file, or standard output.
struct Output {
    file: Option<&'static AppendFile>,
    format: Format,
}

/// The log's file, for one line.
struct Appending(&'static AppendFile);

impl Write for Appending {
    /// `bytes` are a whole line.
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.append(bytes).map(|()| bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// One line on its way, in which nothing but what can be seen is left: neither control characters, which a terminal obeys,
/// nor those that turn text around, which a reader believes. `tracing-subscriber` leaves some in.
struct Line<W>(W, Format);

impl<'a> MakeWriter<'a> for Output {
    type Writer = Line<Box<dyn Write + 'a>>;

    fn make_writer(&'a self) -> Self::Writer {
        let to: Box<dyn Write + 'a> = match self.file {
            Some(file) => Box::new(Appending(file)),
            None => Box::new(io::stdout()),
        };
        Line(to, self.format)
    }
}

impl<W: Write> Write for Line<W> {
    /// `bytes` are a whole line.
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let text = String::from_utf8_lossy(bytes);
        let (line, end) = text.strip_suffix('\n').map_or((&*text, ""), |line| (line, "\n"));
        match escape(line, self.1) {
            Cow::Borrowed(_) => self.0.write_all(bytes)?,
            Cow::Owned(line) => self.0.write_all(format!("{line}{end}").as_bytes())?,
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

/// The line with all that can't be seen escaped.
fn escape(line: &str, format: Format) -> Cow<'_, str> {
    if !line.contains(is_invisible) {
        return line.into();
    }
    let escaped = |c: char| match format {
        _ if !is_invisible(c) => c.to_string(),
        Format::Text => c.escape_unicode().to_string(),
        // RFC 8259, section 7; all of them have four digits.
        Format::Json => format!("\\u{:04x}", u32::from(c)),
    };
    line.chars().map(escaped).collect::<String>().into()
}

/// The same for a line of JSON that doesn't go through the log.
pub fn escape_json(line: &str) -> Cow<'_, str> {
    escape(line, Format::Json)
}

/// C0 and C1 controls, line and paragraph separators, and the marks that change the direction of text (Unicode Standard
/// Annex 9, section 2).
fn is_invisible(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{2028}' | '\u{2029}' | '\u{061c}' | '\u{200e}' | '\u{200f}')
        || matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_in_a_line_moves_a_terminal_or_turns_its_text_around() {
        let written = |format| {
            let mut out = Vec::new();
            let line = "\"\u{9b}\u{202e}\"\n";
            Line(&mut out, format).write_all(line.as_bytes()).expect("memory");
            String::from_utf8(out).expect("text")
        };
        assert_eq!(written(Format::Json), "\"\\u009b\\u202e\"\n");
        let mut out = Vec::new();
        let line = "GET /a\u{9b}31m\u{1b}[2J\r\n user=\u{202e}toor\u{2066} é\u{85}\n".to_owned();
        Line(&mut out, Format::Text).write_all(line.as_bytes()).expect("memory");
        let out = String::from_utf8(out).expect("text");
        assert_eq!(out, "GET /a\\u{9b}31m\\u{1b}[2J\\u{d}\\u{a} user=\\u{202e}toor\\u{2066} é\\u{85}\n");
    }
}
