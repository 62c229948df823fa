//! Who is at the browser, and whether a form was really sent by our own page.

use std::sync::Arc;

use axum::http::{HeaderMap, HeaderValue, header};
use cookie::{Cookie, SameSite};

use crate::{
    app::App,
    config::ExternalUrl,
    identity::{Identity, Refusal, credential},
};

/// Who is at the browser.
pub enum Visitor {
    /// Somebody who is signed in.
    Known(Arc<Identity>),
    /// Nobody.
    Unknown,
    /// Somebody whose session has ended.
    Ended,
}

/// Looks at the session cookie.
pub async fn visitor(app: &App, headers: &HeaderMap) -> Result<Visitor, Refusal> {
    let Some(id) = credential::cookie(headers, app.session_cookie()) else { return Ok(Visitor::Unknown) };
    match app.identities.sessions.find(&id).await {
        Ok(identity) => Ok(Visitor::Known(identity)),
        Err(refusal @ Refusal::Store(_)) => Err(refusal),
        Err(refusal) => {
            tracing::info!(reason = %refusal, "a session was not taken");
            Ok(Visitor::Ended)
        }
    }
}

/// Whether a request that changes something comes from a page of ours, or from no browser at all.
///
/// A browser says where a request comes from in `Sec-Fetch-Site`, or at least in `Origin`; a page can't keep it from
/// doing so.
pub fn is_our_own(headers: &HeaderMap, external_url: &ExternalUrl) -> bool {
    let text = |name: &str| headers.get(name).map(|value| value.to_str().unwrap_or("?"));
    match (text("sec-fetch-site"), text("origin")) {
        (Some(site), _) => matches!(site, "same-origin" | "none"),
        (None, Some(origin)) => url::Url::parse(origin).is_ok_and(|url| url.origin() == external_url.origin()),
        (None, None) => {
            // A form can't say that it is JSON.
            let content_type = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok());
            content_type.is_none_or(|text| text.starts_with("application/json"))
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

#[cfg(test)]
mod tests {
    use super::*;

    fn ours(headers: &[(&'static str, &'static str)]) -> bool {
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.insert(*name, HeaderValue::from_static(value));
        }
        is_our_own(&map, &ExternalUrl::parse("https://registry.company").expect("a URL"))
    }

    #[test]
    fn only_our_own_pages_change_anything() {
        const FORM: (&str, &str) = ("content-type", "application/x-www-form-urlencoded");
        assert!(ours(&[FORM, ("sec-fetch-site", "same-origin"), ("origin", "https://registry.company")]));
        assert!(ours(&[FORM, ("origin", "https://registry.company")]));
        assert!(ours(&[("content-type", "application/json")]));
        for foreign in [
            &[FORM, ("sec-fetch-site", "cross-site")][..],
            &[FORM, ("sec-fetch-site", "same-site"), ("origin", "https://registry.company")],
            &[FORM, ("origin", "https://evil.example")],
            &[FORM, ("origin", "http://registry.company")],
            &[FORM, ("origin", "null")],
            &[FORM],
            &[("content-type", "text/plain")],
        ] {
            assert!(!ours(foreign), "{foreign:?}");
        }
    }
}
