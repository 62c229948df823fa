//! Who is at the browser, and the cookies by which we know.

use std::sync::Arc;

use axum::http::{HeaderMap, HeaderValue, header};
use cookie::{Cookie, SameSite};

use crate::{
    app::App,
    identity::{Identity, Refusal, credential},
};

/// Who is at the browser.
pub enum BrowserSession {
    /// Somebody who is signed in.
    Known(Arc<Identity>),
    /// Nobody.
    Unknown,
    /// Somebody whose session has ended.
    Ended,
}

/// Looks at the session cookie.
pub async fn browser_session(app: &App, headers: &HeaderMap) -> Result<BrowserSession, Refusal> {
    let Some(id) = credential::cookie(headers, app.session_cookie()) else { return Ok(BrowserSession::Unknown) };
    match app.identities.sessions.find(&id).await {
        Ok(identity) => Ok(BrowserSession::Known(identity)),
        Err(refusal @ Refusal::Store(_)) => Err(refusal),
        Err(refusal) => {
            tracing::info!(reason = %refusal, "a session was not taken");
            Ok(BrowserSession::Ended)
        }
    }
}

/// A cookie that only we read, and only on this host.
pub fn set_cookie(app: &App, name: &str, value: &str, max_age: Option<time::Duration>) -> Option<HeaderValue> {
    let mut cookie = Cookie::build((name, value)).path("/").http_only(true).same_site(SameSite::Lax);
    cookie = cookie.secure(app.secure_cookies);
    if let Some(max_age) = max_age {
        cookie = cookie.max_age(max_age);
    }
    HeaderValue::from_str(&cookie.build().to_string()).ok()
}

/// Takes a cookie away.
pub fn clear_cookie(app: &App, name: &str) -> Option<HeaderValue> {
    set_cookie(app, name, "", Some(time::Duration::ZERO))
}

/// Adds `Set-Cookie` headers.
pub fn with_cookies(
    mut response: axum::response::Response,
    cookies: impl IntoIterator<Item = HeaderValue>,
) -> axum::response::Response {
    for cookie in cookies {
        response.headers_mut().append(header::SET_COOKIE, cookie);
    }
    response
}
