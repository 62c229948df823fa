//! The audit log (`log.audit`): one JSON object a line for what somebody did, or was kept from doing.
//!
//! Fields that zot's audit log has are called as there: `time`, `clientIP`, `subject`, `action`, `object`, `status`.

use std::{
    net::IpAddr,
    path::Path,
    sync::{
        Arc,
        mpsc::{Receiver, SyncSender, sync_channel},
    },
    time::{Duration, Instant},
};

use berth_observe::{AppendFile, escape_json};
use serde::Serialize;
use time::{OffsetDateTime, format_description::well_known::Rfc3339};

use super::Metrics;

/// How often the log says that lines are lost.
const COMPLAINT_INTERVAL: Duration = Duration::from_mins(1);

/// What happened.
#[derive(Debug, Serialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum Event<'a> {
    /// Somebody has signed in with a browser.
    SignIn {
        /// Where.
        provider: &'a str,
    },
    /// Somebody could not.
    SignInRefused {
        /// Why.
        reason: &'a str,
    },
    /// Somebody has ended their own session.
    SignOut,
    /// A provider has ended sessions.
    SignOutByProvider {
        /// Which.
        provider: &'a str,
        /// Whose: the provider's name of the person.
        #[serde(skip_serializing_if = "Option::is_none")]
        sub: Option<String>,
        /// Of one of the provider's sessions alone.
        #[serde(skip_serializing_if = "Option::is_none")]
        sid: Option<String>,
        /// How many there were.
        sessions: usize,
    },
    /// Somebody has ended another session of theirs.
    SessionEnded,
    /// Somebody in `adminPolicy` has ended something of another person's, or a job's.
    EndedByAdmin {
        /// `session`, `api_key`, `terminal` or `refresh_token`.
        kind: &'a str,
        /// Its public name.
        object: &'a str,
        /// Whose.
        of: &'a str,
    },
    /// A provider has pushed who is there.
    Pushed {
        /// Which.
        provider: &'a str,
        /// `created`, `changed` or `deleted`.
        change: &'a str,
        /// `User` or `Group`, and its id.
        object: &'a str,
        /// Its name.
        name: &'a str,
    },
    /// An API key was made.
    KeyCreated {
        /// Its id.
        key: &'a str,
        /// Its name.
        label: &'a str,
        /// What it is for; everything, if there are none.
        scopes: &'a [String],
    },
    /// An API key was revoked.
    KeyRevoked {
        /// Its id.
        key: &'a str,
    },
    /// The token service has made a token.
    TokenIssued {
        /// What for.
        scope: &'a str,
        /// Whether a refresh token came with it.
        refresh_token: bool,
    },
    /// The token service has made none, since the credential wasn't taken.
    TokenRefused,
    /// A credential that was shown to a page wasn't taken.
    CredentialRefused {
        /// The path.
        object: &'a str,
    },
    /// A refresh token was revoked.
    RefreshTokenRevoked,
    /// A credential helper has got a secret.
    LoginSecretIssued {
        /// What for; everything that its owner may do, if that is empty.
        scope: &'a str,
    },
    /// Somebody has let a terminal in, or not.
    TerminalDecided {
        /// What it calls itself.
        name: &'a str,
        /// Where it asks from.
        from: &'a str,
        /// Whether it is let in.
        allowed: bool,
    },
    /// A terminal that was let in has heard of it.
    TerminalSignedIn {
        /// Its id.
        terminal: &'a str,
        /// What it calls itself.
        name: &'a str,
        /// What it is for; everything, if there are none.
        scopes: &'a [String],
    },
    /// A terminal was signed out.
    TerminalEnded {
        /// Its id.
        terminal: &'a str,
    },
    /// A terminal's refresh token was used a second time, and the terminal signed out for it.
    TerminalReplayed,
    /// Somebody was suspended, since nobody vouches for them any more.
    Suspended {
        /// Who.
        user: &'a str,
        /// Why.
        reason: &'a str,
    },
    /// A tag, or a manifest without one, went by the rules of retention.
    Expired {
        /// Of which repository.
        repository: &'a str,
        /// The tag, or the digest of a manifest without one.
        reference: &'a str,
        /// The manifest.
        digest: &'a str,
        /// The rule that decided.
        rule: &'a str,
    },
    /// The configuration was read again.
    Reload {
        /// What changed, or why nothing did.
        outcome: &'a str,
    },
    /// A request to the registry, or one that was denied or whose credential was refused.
    #[serde(untagged)]
    Request {
        /// `pull`, `push`, `delete`, or `denied`, `credential_refused`.
        event: &'static str,
        /// The operation.
        operation: &'a str,
        /// As zot calls it: the method.
        action: &'a str,
        /// The path.
        object: &'a str,
        /// Where.
        #[serde(skip_serializing_if = "Option::is_none")]
        repository: Option<&'a str>,
        /// The tag or the digest.
        #[serde(skip_serializing_if = "Option::is_none")]
        reference: Option<String>,
        /// The tags that a push by digest sets with it.
        #[serde(skip_serializing_if = "Vec::is_empty")]
        tags: Vec<String>,
        /// Where a mounted blob was asked for from.
        #[serde(skip_serializing_if = "Option::is_none")]
        from: Option<&'a str>,
        /// The answer.
        status: u16,
        /// Bytes of the body that the client sent.
        received: usize,
        /// Bytes of the body that it got.
        sent: usize,
    },
}

#[derive(Serialize)]
struct Line<'a> {
    time: String,
    #[serde(flatten)]
    event: &'a Event<'a>,
    #[serde(flatten)]
    origin: Option<&'a Origin<'a>>,
}

/// Who did it, from where, and what was decided about it.
#[derive(Serialize)]
pub struct Origin<'a> {
    /// The user's name.
    pub subject: &'a str,
    /// The kind of credential.
    pub credential: &'a str,
    /// The address.
    #[serde(rename = "clientIP", skip_serializing_if = "Option::is_none")]
    pub client: Option<IpAddr>,
    /// The client as it calls itself.
    #[serde(rename = "userAgent", skip_serializing_if = "str::is_empty")]
    pub user_agent: &'a str,
    /// The name that was tried with a credential that wasn't taken.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tried: Option<&'a str>,
    /// What of the file decided.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rule: Option<&'a str>,
    /// Why not.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<&'a str>,
    /// The request's id.
    pub request: &'a str,
}

/// How many lines may wait for a slow disk. More are lost, and counted.
const MAX_WAITING_LINES: usize = 10_000;

/// Writes it down, on a thread of its own: no request waits for the disk.
pub struct Audit {
    lines: Option<SyncSender<Message>>,
    metrics: Arc<Metrics>,
}

enum Message {
    Line(String),
    Reopen,
    /// Everything before this is written when it is answered.
    Flush(SyncSender<()>),
}

impl Audit {
    /// Appends to the file at `path`; without one, nothing is written.
    ///
    /// # Errors
    /// A sentence with the key's path.
    pub fn open(path: Option<&Path>, metrics: Arc<Metrics>) -> Result<Self, String> {
        let Some(path) = path else { return Ok(Self { lines: None, metrics }) };
        let file = AppendFile::open(path).map_err(|e| {
            format!("log.audit: {} can't be written ({e}); make its folder, writable for this user", path.display())
        })?;
        let (sender, receiver) = sync_channel(MAX_WAITING_LINES);
        let counters = Arc::clone(&metrics);
        let thread = std::thread::Builder::new().name("audit".to_owned());
        let started = thread.spawn(move || write_lines(&file, &receiver, &counters));
        started.map_err(|e| format!("log.audit: no thread can be started ({e})"))?;
        Ok(Self { lines: Some(sender), metrics })
    }

    /// Whether anything is written.
    pub fn is_on(&self) -> bool {
        self.lines.is_some()
    }

    /// Writes down what a request did.
    pub fn record(&self, origin: &Origin<'_>, event: &Event<'_>) {
        self.write(event, Some(origin));
    }

    /// Writes down what nobody asked for.
    pub fn record_own(&self, event: &Event<'_>) {
        self.write(event, None);
    }

    fn write(&self, event: &Event<'_>, origin: Option<&Origin<'_>>) {
        let Some(lines) = &self.lines else { return };
        let time = OffsetDateTime::now_utc().format(&Rfc3339).unwrap_or_default();
        let line = serde_json::to_string(&Line { time, event, origin });
        let sent = line.is_ok_and(|line| lines.try_send(Message::Line(format!("{}\n", escape_json(&line)))).is_ok());
        if !sent {
            self.metrics.audit_line_lost();
        }
    }

    /// Opens the file again, since it may have been renamed, after what was recorded until now is written.
    pub fn reopen(&self) {
        self.lines.iter().for_each(|lines| drop(lines.send(Message::Reopen)));
    }

    /// Waits until what was recorded is written, for a while.
    pub fn flush(&self) {
        let Some(lines) = &self.lines else { return };
        let (written, answer) = sync_channel(1);
        if lines.try_send(Message::Flush(written)).is_ok() {
            let _ = answer.recv_timeout(FLUSH_TIMEOUT);
        }
    }
}

/// How long an end waits for the disk.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(1);

fn write_lines(file: &AppendFile, lines: &Receiver<Message>, metrics: &Metrics) {
    let path = file.path().display();
    let mut complained: Option<Instant> = None;
    for message in lines {
        let outcome = match message {
            Message::Line(line) => file.append(line.as_bytes()).inspect_err(|_| metrics.audit_line_lost()),
            Message::Reopen => {
                if let Err(error) = file.reopen() {
                    tracing::error!(%error, "log.audit: {path} can't be opened again; the old file stays in use");
                }
                Ok(())
            }
            Message::Flush(written) => {
                let _ = written.send(());
                Ok(())
            }
        };
        let Err(error) = outcome else { continue };
        if complained.is_none_or(|at| at.elapsed() > COMPLAINT_INTERVAL) {
            complained = Some(Instant::now());
            tracing::error!(%error, "log.audit: {path} can't be written, and lines are lost (berth_audit_lines_lost_total)");
        }
    }
}
