//! The audit log (`log.audit`): one JSON object a line for what somebody did, or was kept from doing.
//!
//! Fields that zot's audit log has are called as there: `time`, `clientIP`, `subject`, `action`, `object`, `status`.

use std::{
    path::Path,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use berth_observe::{AppendFile, escape_json};
use serde::Serialize;
use time::{OffsetDateTime, format_description::well_known::Rfc3339};

use super::Metrics;
use crate::request::RequestInfo;

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
        /// How many.
        sessions: usize,
    },
    /// Somebody has ended another session of theirs.
    SessionEnded,
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
    /// A refresh token was revoked.
    RefreshTokenRevoked,
    /// Somebody was suspended, since nobody vouches for them any more.
    Suspended {
        /// Who.
        user: &'a str,
        /// Why.
        reason: &'a str,
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
    origin: Option<Origin<'a>>,
}

/// Who did it, and from where.
#[derive(Serialize)]
struct Origin<'a> {
    subject: &'a str,
    credential: &'a str,
    #[serde(rename = "clientIP", skip_serializing_if = "Option::is_none")]
    client: Option<String>,
    #[serde(rename = "userAgent", skip_serializing_if = "str::is_empty")]
    user_agent: &'a str,
    /// The name that was tried with a credential that wasn't taken.
    #[serde(skip_serializing_if = "Option::is_none")]
    tried: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    rule: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<&'a str>,
    request: &'a str,
}

/// Writes it down.
pub struct Audit {
    file: Option<AppendFile>,
    metrics: Arc<Metrics>,
    complained: Mutex<Option<Instant>>,
}

impl Audit {
    /// Appends to the file at `path`; without one, nothing is written.
    ///
    /// # Errors
    /// A sentence with the key's path.
    pub fn open(path: Option<&Path>, metrics: Arc<Metrics>) -> Result<Self, String> {
        let failed = |path: &Path, e: std::io::Error| {
            format!("log.audit: {} can't be written ({e}); make its folder, writable for this user", path.display())
        };
        let file = path.map(|path| AppendFile::open(path).map_err(|e| failed(path, e))).transpose()?;
        Ok(Self { file, metrics, complained: Mutex::default() })
    }

    /// Whether anything is written.
    pub fn is_on(&self) -> bool {
        self.file.is_some()
    }

    /// Writes down what a request did.
    pub fn record(&self, request: &RequestInfo, event: &Event<'_>) {
        let ruling = request.ruling();
        self.write(&Line {
            time: timestamp(),
            event,
            origin: Some(Origin {
                subject: request.user(),
                credential: request.credential(),
                client: request.client.map(|client| client.to_string()),
                user_agent: request.user_agent(),
                tried: request.tried(),
                rule: ruling.and_then(|ruling| ruling.rule.as_deref()),
                reason: ruling.and_then(|ruling| ruling.reason.as_deref()),
                request: &request.id,
            }),
        });
    }

    /// Writes down what nobody asked for.
    pub fn record_own(&self, event: &Event<'_>) {
        self.write(&Line { time: timestamp(), event, origin: None });
    }

    fn write(&self, line: &Line<'_>) {
        let Some(file) = &self.file else { return };
        let written = serde_json::to_string(line).map_err(std::io::Error::other);
        let written = written.and_then(|line| file.append(format!("{}\n", escape_json(&line)).as_bytes()));
        let Err(error) = written else { return };
        self.metrics.audit_line_lost();
        let mut complained = self.complained.lock().unwrap_or_else(PoisonError::into_inner);
        if complained.is_none_or(|at| at.elapsed() > COMPLAINT_INTERVAL) {
            *complained = Some(Instant::now());
            let path = file.path().display();
            tracing::error!(%error, "log.audit: {path} can't be written, and lines are lost (berth_audit_lines_lost_total)");
        }
    }

    /// Opens the file again, since it may have been renamed.
    pub fn reopen(&self) {
        let Some(file) = &self.file else { return };
        if let Err(error) = file.reopen() {
            tracing::error!(%error, "log.audit: {} can't be opened again; the old file stays in use", file.path().display());
        }
    }
}

fn timestamp() -> String {
    OffsetDateTime::now_utc().format(&Rfc3339).unwrap_or_default()
}
