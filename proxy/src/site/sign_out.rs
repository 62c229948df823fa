//! Signing out: here, and at the provider if it has a page for it.

use std::sync::Arc;

use axum::{
    Extension, Json,
    extract::State,
    http::{HeaderMap, StatusCode, header},
    response::{IntoResponse, Redirect, Response},
};
use serde_json::json;

use super::{
    browser_session::{clear_cookie, with_cookies},
    pages,
};
use crate::{
    app::App,
    identity::credential,
    observe::Event,
    request::{RequestInfo, is_our_own},
};

/// `POST /zot/auth/logout`: ends the session. A program gets the provider's page as `endSessionUrl`; a form is sent
/// there.
pub async fn sign_out(
    State(app): State<Arc<App>>,
    Extension(request): Extension<RequestInfo>,
    headers: HeaderMap,
) -> Response {
    if !is_our_own(&headers, &app.external_url) {
        let reason = "the request to sign out came from another site's page";
        return pages::refusal(StatusCode::FORBIDDEN, "You are still signed in", reason, &request.id).into_response();
    }
    let mut end_session = None;
    if let Some(id) = credential::cookie(&headers, app.session_cookie()) {
        match app.identities.sessions.end(&id).await {
            Ok(Some((session, tokens))) => {
                request.identified(&session.user.name, "session");
                tracing::info!(request = request.id, user = session.user.name, "signed out");
                app.audit.record(&request.origin(), &Event::SignOut);
                if let Some(provider) = app.live().verifiers.provider(&session.user.id.provider) {
                    end_session = provider.end_session_url(&tokens, &app.external_url.join("/")).await;
                }
            }
            Ok(None) => {}
            Err(error) => {
                let reason = format!("the session can't be ended: {error}");
                tracing::error!(request = request.id, reason);
                let page = pages::refusal(
                    StatusCode::SERVICE_UNAVAILABLE,
                    "You are still signed in",
                    "the registry's database can't be reached, so the session can't be ended now; try again",
                    &request.id,
                );
                return page.into_response();
            }
        }
    }
    let accept = headers.get(header::ACCEPT).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let response = match (accept.contains("text/html"), end_session) {
        (true, Some(url)) => Redirect::to(url.as_str()).into_response(),
        (true, None) => Redirect::to("/").into_response(),
        (false, Some(url)) => Json(json!({"endSessionUrl": url.as_str()})).into_response(),
        (false, None) => Json(json!({})).into_response(),
    };
    with_cookies(response, clear_cookie(&app, app.session_cookie()))
}
