//! How a client is told to sign in: one `WWW-Authenticate` header with one `Bearer` challenge, always the same but
//! for its scope and error.
//!
//! With two challenges, or with Basic, one client or another fails; `realm` is built from `externalUrl` and never
//! from `Host`, which would let others collect passwords.

use crate::{app::App, identity::scope::Access};

/// Why a request is challenged (RFC 6750, section 3.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ChallengeReason {
    /// It shows no credential.
    Missing,
    /// Its credential isn't good. Without this word containerd goes on using it.
    Invalid,
    /// Its token is good, and too small: ask for another.
    Insufficient,
}

/// The path of the token service.
pub const TOKEN_PATH: &str = "/zot/auth/token";

/// The value of `WWW-Authenticate`.
pub fn challenge(app: &App, needed: Option<&Access>, because: ChallengeReason) -> String {
    let realm = app.external_url.join(TOKEN_PATH);
    let service = app.identities.tokens.service();
    let mut text = format!("Bearer realm=\"{realm}\",service=\"{service}\"");
    if let Some(scope) = needed {
        text.push_str(&format!(",scope=\"{scope}\""));
    }
    match because {
        ChallengeReason::Missing => {}
        ChallengeReason::Invalid => text.push_str(",error=\"invalid_token\""),
        ChallengeReason::Insufficient => text.push_str(",error=\"insufficient_scope\""),
    }
    text
}
