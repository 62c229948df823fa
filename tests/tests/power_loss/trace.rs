//! What a process has done to the file system and said to its clients, read from the output of `strace -f -yy`.

use std::collections::HashMap;

/// Something that was done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Call {
    /// A file was opened to be written; it is made if need be, and emptied if `truncate` says so.
    Open { path: String, truncate: bool },
    /// Bytes were appended to a file.
    Write { path: String, bytes: Vec<u8> },
    /// A file was cut off, or made longer.
    Truncate { path: String, len: usize },
    /// A folder was made.
    MakeFolder { path: String },
    /// A name was given to another's file; `exchange` gives each the other's.
    Rename { from: String, to: String, exchange: bool },
    /// A file lost its name.
    Unlink { path: String },
    /// An empty folder was removed.
    RemoveFolder { path: String },
    /// A file or folder was flushed.
    Flush { path: String },
    /// An answer went to the client with this port.
    Answer { port: u16 },
}

/// A call, and the lines of the trace at which it began and ended.
#[derive(Debug)]
pub struct Event {
    pub began: usize,
    pub ended: usize,
    pub call: Call,
}

/// Reads a trace: what concerns files below `root` and answers over HTTP, in the order in which it ended.
pub fn read(trace: &str, root: &str) -> Vec<Event> {
    let mut unfinished: HashMap<&str, (usize, String)> = HashMap::new();
    let mut events = Vec::new();
    for (at, line) in trace.lines().enumerate() {
        let Some((pid, rest)) = line.split_once(' ') else { continue };
        let rest = rest.trim_start();
        let (began, text) = if let Some(begun) = rest.strip_suffix(" <unfinished ...>") {
            unfinished.insert(pid, (at, begun.to_owned()));
            continue;
        } else if let Some(resumed) = rest.strip_prefix("<... ") {
            let Some((began, begun)) = unfinished.remove(pid) else { continue };
            let Some((_, end)) = resumed.split_once(" resumed>") else { continue };
            (began, begun + end)
        } else {
            (at, rest.to_owned())
        };
        if let Some(call) = parse(&text).filter(|call| concerns(call, root)) {
            events.push(Event { began, ended: at, call });
        }
    }
    events
}

fn concerns(call: &Call, root: &str) -> bool {
    match call {
        Call::Answer { .. } => true,
        Call::Open { path, .. }
        | Call::Write { path, .. }
        | Call::Truncate { path, .. }
        | Call::MakeFolder { path }
        | Call::Rename { from: path, .. }
        | Call::Unlink { path }
        | Call::RemoveFolder { path }
        | Call::Flush { path } => path.starts_with(root),
    }
}

/// One whole call that succeeded and changes something.
fn parse(text: &str) -> Option<Call> {
    let (name, rest) = text.split_once('(')?;
    let (arguments, result) = rest.rsplit_once(") ").or_else(|| rest.rsplit_once(')'))?;
    let result = result.trim_start().strip_prefix("= ")?;
    if result.starts_with('-') {
        return None;
    }
    let texts = quoted(arguments);
    let path = |i: usize| texts.get(i).map(|bytes| String::from_utf8_lossy(bytes).into_owned());
    // The folder that a relative path begins at, or the file of a descriptor.
    let descriptor = || Some(arguments.split_once('<')?.1.split('>').next()?.to_owned());
    let at = |i: usize| {
        let path = path(i)?;
        Some(if path.starts_with('/') { path } else { format!("{}/{path}", descriptor()?) })
    };
    match name {
        "open" | "openat" if arguments.contains("O_CREAT") || arguments.contains("O_TRUNC") => {
            Some(Call::Open { path: at(0)?, truncate: arguments.contains("O_TRUNC") })
        }
        "write" | "writev" | "sendto" | "sendmsg" => {
            let target = arguments.split_once('<')?.1;
            if let Some(connection) = target.strip_prefix("TCP:[") {
                let port = connection.split(']').next()?.rsplit(':').next()?.parse().ok()?;
                return texts.first()?.starts_with(b"HTTP/1.1 ").then_some(Call::Answer { port });
            }
            let written: usize = result.split_whitespace().next()?.parse().ok()?;
            let bytes = texts.concat();
            assert!(bytes.len() >= written, "strace shows less than was written: {text}");
            Some(Call::Write { path: descriptor()?, bytes: bytes[..written].to_vec() })
        }
        "ftruncate" => Some(Call::Truncate { path: descriptor()?, len: arguments.rsplit(", ").next()?.parse().ok()? }),
        "mkdir" | "mkdirat" => Some(Call::MakeFolder { path: at(0)? }),
        "rename" | "renameat" | "renameat2" => {
            Some(Call::Rename { from: path(0)?, to: path(1)?, exchange: arguments.contains("RENAME_EXCHANGE") })
        }
        "unlink" | "unlinkat" if !arguments.contains("AT_REMOVEDIR") => Some(Call::Unlink { path: at(0)? }),
        "rmdir" | "unlinkat" => Some(Call::RemoveFolder { path: at(0)? }),
        "fsync" | "fdatasync" => Some(Call::Flush { path: descriptor()? }),
        _ => None,
    }
}

/// The texts in quotes, with what C escapes in them.
fn quoted(arguments: &str) -> Vec<Vec<u8>> {
    let (mut texts, mut bytes) = (Vec::new(), arguments.bytes().peekable());
    while bytes.by_ref().any(|byte| byte == b'"') {
        let mut text = Vec::new();
        while let Some(byte) = bytes.next() {
            match byte {
                b'"' => break,
                b'\\' => text.push(escape(&mut bytes)),
                byte => text.push(byte),
            }
        }
        texts.push(text);
    }
    texts
}

fn escape(bytes: &mut std::iter::Peekable<std::str::Bytes<'_>>) -> u8 {
    match bytes.next().unwrap_or(b'\\') {
        b'n' => b'\n',
        b't' => b'\t',
        b'r' => b'\r',
        b'v' => 0x0b,
        b'f' => 0x0c,
        digit @ b'0'..=b'7' => {
            let mut value = u32::from(digit - b'0');
            for _ in 0..2 {
                let Some(digit) = bytes.next_if(|byte| (b'0'..=b'7').contains(byte)) else { break };
                value = value * 8 + u32::from(digit - b'0');
            }
            u8::try_from(value).unwrap_or_default()
        }
        other => other,
    }
}

#[test]
fn a_trace_is_read_as_strace_writes_it() {
    let trace = r#"7 openat(AT_FDCWD</x>, "/s/a", O_WRONLY|O_CREAT|O_EXCL, 0640) = 12</s/a>
7 write(12</s/a>, "a\n\0\"\33b", 6 <unfinished ...>
8 rename("/s/b", "/s/c") = -1 ENOENT (No such file or directory)
7 <... write resumed>)                   = 6
8 fsync(12</s/a>)                       = 0
9 unlinkat(16</s/up>, "state", 0)     = 0
9 writev(14<TCP:[127.0.0.1:5000->127.0.0.1:37328]>, [{iov_base="HTTP/1.1 201 Created\r\n", iov_len=22}], 1) = 22
9 openat(AT_FDCWD</x>, "/elsewhere", O_WRONLY|O_CREAT, 0640) = 12</elsewhere>
"#;
    let calls: Vec<Call> = read(trace, "/s/").into_iter().map(|event| event.call).collect();
    let path = "/s/a".to_owned();
    assert_eq!(
        calls,
        [
            Call::Open { path: path.clone(), truncate: false },
            Call::Write { path: path.clone(), bytes: b"a\n\0\"\x1bb".to_vec() },
            Call::Flush { path },
            Call::Unlink { path: "/s/up/state".to_owned() },
            Call::Answer { port: 37328 },
        ]
    );
}
