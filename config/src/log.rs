//! The section `log`, and the subscriber that it asks for.

use std::{
    fs::{File, OpenOptions},
    io::{self, Write},
    path::{Path, PathBuf},
    sync::{OnceLock, PoisonError, RwLock, RwLockReadGuard},
};

use tracing::Level;
use tracing_subscriber::{
    EnvFilter,
    fmt::{self, MakeWriter},
    layer::SubscriberExt,
    util::SubscriberInitExt,
};

use crate::{Note, Section};

/// `log`: how much is said, and where.
#[derive(Clone, Debug)]
pub struct Log {
    level: Level,
    format: Format,
    output: Option<PathBuf>,
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
        let output = log.text("output").map(PathBuf::from);
        log.ignore("audit", "what people do is in the log itself");
        log.close();
        Self { level, format, output }
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
        let file = self.output.as_deref().map(LogFile::open).transpose()?;
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
static FILE: OnceLock<LogFile> = OnceLock::new();

struct LogFile {
    path: PathBuf,
    file: RwLock<File>,
}

impl LogFile {
    fn open(path: &Path) -> Result<Self, String> {
        Ok(Self { path: path.to_owned(), file: RwLock::new(append(path)?) })
    }
}

fn append(path: &Path) -> Result<File, String> {
    let file = OpenOptions::new().create(true).append(true).open(path);
    file.map_err(|e| format!("log.output: {} can't be written ({e})", path.display()))
}

/// Opens the log's file again, since it may have been renamed (logrotate does so). If that fails, the old one stays.
pub fn reopen_log() {
    let Some(log) = FILE.get() else { return };
    match append(&log.path) {
        Ok(file) => *log.file.write().unwrap_or_else(PoisonError::into_inner) = file,
        Err(error) => tracing::error!("{error}; the old file stays in use"),
    }
}

/// Where lines go: a file, or standard output.
struct Output {
    file: Option<&'static LogFile>,
    format: Format,
}

/// The log's file, for one line.
struct Locked(RwLockReadGuard<'static, File>);

impl Write for Locked {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        (&*self.0).write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        (&*self.0).flush()
    }
}

/// One line on its way, in which nothing but what can be seen is left: neither control characters, which a terminal obeys,
/// nor those that turn text around, which a reader believes. `tracing-subscriber` leaves some in.
struct Line<W>(W, Format);

impl<'a> MakeWriter<'a> for Output {
    type Writer = Line<Box<dyn Write + 'a>>;

    fn make_writer(&'a self) -> Self::Writer {
        let to: Box<dyn Write + 'a> = match self.file {
            Some(log) => Box::new(Locked(log.file.read().unwrap_or_else(PoisonError::into_inner))),
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
        if line.contains(is_invisible) {
            let escaped = |c: char| match self.1 {
                _ if !is_invisible(c) => c.to_string(),
                Format::Text => c.escape_unicode().to_string(),
                // RFC 8259, section 7; all of them have four digits.
                Format::Json => format!("\\u{:04x}", u32::from(c)),
            };
            let line: String = line.chars().map(escaped).collect();
            self.0.write_all(format!("{line}{end}").as_bytes())?;
        } else {
            self.0.write_all(bytes)?;
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
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
