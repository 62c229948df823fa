//! Who is at the browser, and the cookies by which we know.

use std::sync::Arc;

use axum::http::{HeaderMap, HeaderValue, header};
use cookie::{Cookie, SameSite};

use crate::{
    app::App,
    identity::{Credential, Identity, Refusal, Rejection, credential},
    request::RequestInfo,
    store::PersonId,
};

/// Who is at the browser.
pub enum BrowserSession {
    /// Somebody who is signed in.
    Known(Owner),
    /// Nobody.
    Unknown,
    /// Somebody whose session has ended, or opens nothing any more.
    Ended(Rejection),
}

/// Somebody who is signed in with a browser, and has sessions and API keys.
#[derive(Clone)]
pub struct Owner {
    /// As the rules know them.
    pub identity: Arc<Identity>,
    /// As their provider knows them.
    pub id: PersonId,
}

/// Looks at the session cookie, and whether somebody still vouches for whose it is.
pub async fn browser_session(app: &App, request: &RequestInfo, headers: &HeaderMap) -> Result<BrowserSession, Refusal> {
    let Some(id) = credential::cookie(headers, app.session_cookie()) else { return Ok(BrowserSession::Unknown) };
    let (live, session) = (app.live(), Credential::Session(id));
    match app.identities.identify(&live.verifiers, &session, &request.connection(None)).await {
        Ok(caller) => {
            request.identified(caller.name(), caller.credential());
            let owner = caller.identity.and_then(|identity| Some(Owner { id: identity.person.clone()?, identity }));
            Ok(owner.map_or(BrowserSession::Unknown, BrowserSession::Known))
        }
        Err(Refusal::Rejected(rejection)) => {
            tracing::info!(request = request.id, client = ?request.client, reason = %rejection, "a session was not taken");
            Ok(BrowserSession::Ended(rejection))
        }
        Err(refusal @ (Refusal::Throttled(_) | Refusal::Unavailable(_))) => Err(refusal),
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
