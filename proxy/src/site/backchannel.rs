//! Being signed out by the provider (OpenID Connect Back-Channel Logout 1.0).

use std::sync::Arc;

use axum::{
    Extension, Json,
    body::Bytes,
    extract::{Path, State},
    http::{HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use serde_json::{Value, json};

use crate::{
    app::App,
    observe::Event,
    oidc::jwt::{Claims, numeric_date},
    request::RequestInfo,
    secrets,
    store::now,
};

/// The event that a logout token must name (section 2.4).
const EVENT: &str = "http://schemas.openid.net/event/backchannel-logout";

/// How old a logout token may be, in seconds: its `jti` is remembered for as long.
const MAX_AGE_SECONDS: i64 = 10 * 60;

/// Why nobody was signed out.
enum Failed {
    /// The token isn't good: 400.
    Refused(String),
    /// It may be: 503, and the provider may try again.
    Unknown(String),
}

/// `POST /zot/auth/backchannel-logout/<provider>`: the form field `logout_token`.
pub async fn sign_out(
    State(app): State<Arc<App>>,
    Extension(request): Extension<RequestInfo>,
    Path(provider): Path<String>,
    body: Bytes,
) -> Response {
    let token = form_urlencoded::parse(&body).find(|(key, _)| key == "logout_token").map(|(_, value)| value);
    let outcome = match token {
        Some(token) => end_sessions(&app, &provider, &token).await,
        None => Err(Failed::Refused("there is no logout_token".to_owned())),
    };
    let mut response = match outcome {
        Ok(Ended { sub, sid, sessions }) => {
            tracing::info!(request = request.id, provider, ended = sessions, "the provider has signed somebody out");
            let event = Event::SignOutByProvider { provider: &provider, sub, sid, sessions };
            app.audit.record(&request.origin(), &event);
            StatusCode::OK.into_response()
        }
        Err(Failed::Refused(reason)) => {
            tracing::warn!(request = request.id, client = ?request.client, provider, reason, "a logout token was refused");
            let body = json!({"error": "invalid_request", "error_description": reason});
            (StatusCode::BAD_REQUEST, Json(body)).into_response()
        }
        Err(Failed::Unknown(reason)) => {
            tracing::error!(request = request.id, provider, reason, "a logout token can't be checked now");
            let body = json!({"error": "temporarily_unavailable"});
            (StatusCode::SERVICE_UNAVAILABLE, Json(body)).into_response()
        }
    };
    // Section 2.8.
    response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

/// Whose sessions have ended, as the token names them, and how many.
struct Ended {
    sub: Option<String>,
    sid: Option<String>,
    sessions: usize,
}

async fn end_sessions(app: &App, provider: &str, token: &str) -> Result<Ended, Failed> {
    let live = app.live();
    let provider = live.verifiers.provider(provider);
    let provider = provider.ok_or_else(|| Failed::Refused("there is no provider of this name".to_owned()))?;
    let claims = provider.verify_logout(token).await.map_err(|error| Failed::Unknown(error.to_string()))?;
    let claims = claims.map_err(|error| Failed::Refused(error.to_string()))?;
    let LogoutToken { subject, sid, jti } = read(&claims).map_err(|reason| Failed::Refused(reason.to_owned()))?;
    let unknown = |error: crate::store::StoreError| Failed::Unknown(error.to_string());
    let name = secrets::hash(&format!("{} {jti}", provider.config.issuer));
    if app.store.knows_logout_token(&name).await.map_err(unknown)? {
        return Err(Failed::Refused("the logout token was used before".to_owned()));
    }
    // Remembered after its work is done: a provider that is told to try again must not be told that it did.
    let ended = app.identities.sessions.end_at(&provider.config.id, subject, sid).await.map_err(unknown)?;
    app.store.use_logout_token(&name, now() + 2 * MAX_AGE_SECONDS).await.map_err(unknown)?;
    Ok(Ended { sub: subject.map(str::to_owned), sid: sid.map(str::to_owned), sessions: ended })
}

struct LogoutToken<'a> {
    subject: Option<&'a str>,
    sid: Option<&'a str>,
    jti: &'a str,
}

/// What is left to check after signature, issuer, audience and times (section 2.6).
fn read(claims: &Claims) -> Result<LogoutToken<'_>, &'static str> {
    let text = |name: &str| claims.get(name).and_then(Value::as_str).filter(|text| !text.is_empty());
    let event = claims.get("events").and_then(|events| events.get(EVENT));
    if !event.is_some_and(Value::is_object) {
        return Err("the token does not name the event of a logout");
    }
    if claims.contains_key("nonce") {
        return Err("the token has a nonce, as no logout token has");
    }
    match claims.get("iat").and_then(numeric_date) {
        Some(at) if at >= now() - MAX_AGE_SECONDS => {}
        Some(_) => return Err("the token is too old"),
        None => return Err("the token does not say when it was made (iat)"),
    }
    let (subject, sid) = (text("sub"), text("sid"));
    if subject.is_none() && sid.is_none() {
        return Err("the token names neither a subject nor a session");
    }
    let jti = text("jti").ok_or("the token has no name of its own (jti)")?;
    Ok(LogoutToken { subject, sid, jti })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_check_of_the_specification_is_made() {
        let good = json!({"iat": now(), "jti": "1", "sub": "s", "sid": "x", "events": {EVENT: {}}});
        let with = |name: &str, value: Value| {
            let mut claims = good.as_object().expect("an object").clone();
            claims.insert(name.to_owned(), value);
            claims
        };
        assert!(read(&with("sid", Value::Null)).is_ok() && read(&with("sub", Value::Null)).is_ok());
        for (name, value) in [
            ("events", json!({})),
            ("events", json!({EVENT: true})),
            ("nonce", json!("n")),
            ("iat", json!(now() - 3600)),
            ("iat", Value::Null),
            ("jti", Value::Null),
        ] {
            assert!(read(&with(name, value.clone())).is_err(), "{name} {value}");
        }
        let mut nobody = with("sid", Value::Null);
        nobody.insert("sub".to_owned(), json!(""));
        assert!(read(&nobody).is_err());
    }
}
