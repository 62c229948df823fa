//! The pages and endpoints that the proxy answers itself: signing in and out, also from a terminal, API keys, sessions, the
//! token service.

mod api_keys;
mod backchannel;
mod browser_session;
mod device;
mod login_secret;
mod pages;
mod password_sign_in;
mod sign_in;
mod sign_out;
mod status;
mod token;

use std::sync::Arc;

use axum::{
    Extension, Router,
    extract::{DefaultBodyLimit, State},
    http::{HeaderMap, HeaderValue, StatusCode, Uri, header},
    middleware::{self, Next},
    response::{IntoResponse, Response},
    routing::{get, post},
};

use crate::{app::App, challenge::TOKEN_PATH, request::RequestInfo, scim};

/// The most that is read of a form, in bytes.
const MAX_FORM_BYTES: usize = 64 * 1024;

/// The most that is read of a request to a path, in bytes.
pub fn max_body_bytes(path: &str) -> usize {
    if path.starts_with(scim::BASE) { scim::MAX_BODY_BYTES } else { MAX_FORM_BYTES }
}

/// The site.
pub fn router(app: Arc<App>) -> Router {
    Router::new()
        .merge(pages::router())
        .route("/zot/auth/login", get(sign_in::begin).post(password_sign_in::sign_in))
        .route("/zot/auth/callback/{provider}", get(sign_in::finish))
        .route("/zot/auth/logout", post(sign_out::sign_out))
        .route("/zot/auth/backchannel-logout/{provider}", post(backchannel::sign_out))
        .route("/zot/auth/revoke", post(token::revoke))
        .route("/zot/auth/apikey", get(api_keys::list).post(api_keys::create).delete(api_keys::revoke))
        .route(device::DEVICE_PATH, post(device::begin))
        .route(TOKEN_PATH, get(token::by_query).post(token::by_form))
        .route("/v2/_zot/ext/mgmt", get(status::sign_in_methods))
        .route("/metrics", get(status::metrics))
        .route("/livez", get(status::live))
        .route("/readyz", get(status::ready))
        .route("/startupz", get(status::started))
        .fallback(elsewhere)
        .layer(DefaultBodyLimit::max(MAX_FORM_BYTES))
        .merge(scim::router())
        .layer(middleware::from_fn_with_state(Arc::clone(&app), protect))
        .with_state(app)
}

/// What has no route: nothing, but the counters may have been put anywhere.
async fn elsewhere(state: State<Arc<App>>, request: Extension<RequestInfo>, uri: Uri, headers: HeaderMap) -> Response {
    if uri.path() == state.metrics_path {
        return status::metrics(state, request, headers).await;
    }
    pages::message(StatusCode::NOT_FOUND, "There is nothing here", "The address may be mistyped.").into_response()
}

/// The headers that keep a browser from doing more with an answer than it should. A page may send its forms to the
/// providers too, since signing out leads there.
async fn protect(State(app): State<Arc<App>>, request: axum::extract::Request, next: Next) -> Response {
    let mut response = next.run(request).await;
    let mut form_action = "'self'".to_owned();
    for provider in app.live().providers() {
        if let Some(origin) = provider.end_session_origin().await {
            form_action.push(' ');
            form_action.push_str(&origin);
        }
    }
    let policy = format!(
        "default-src 'none'; style-src 'self'; script-src 'self'; connect-src 'self'; img-src 'self'; form-action \
         {form_action}; frame-ancestors 'none'; base-uri 'none'"
    );
    let headers = response.headers_mut();
    if let Ok(policy) = HeaderValue::from_str(&policy) {
        headers.insert(header::CONTENT_SECURITY_POLICY, policy);
    }
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers.insert(header::X_FRAME_OPTIONS, HeaderValue::from_static("DENY"));
    // With no-referrer, browsers would send `Origin: null` with our own forms.
    headers.insert(header::REFERRER_POLICY, HeaderValue::from_static("same-origin"));
    headers.entry(header::CACHE_CONTROL).or_insert(HeaderValue::from_static("no-store"));
    if app.external_url.is_https() {
        let a_year = HeaderValue::from_static("max-age=31536000");
        headers.insert(header::STRICT_TRANSPORT_SECURITY, a_year);
    }
    response
}
