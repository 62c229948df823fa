//! Signing in: to the provider, and back.
//!
//! What the callback must find again (state, nonce, PKCE verifier, where to return) is sealed into a cookie of the
//! browser that began, one cookie a sign-in, so that two tabs can sign in at once and nobody else's browser can end it.

use std::sync::Arc;

use axum::{
    Extension,
    extract::{Path, Query, State},
    http::{HeaderMap, HeaderValue, StatusCode, header},
    response::{IntoResponse, Redirect, Response},
};
use serde::{Deserialize, Serialize};
use url::Url;

use super::{
    api_keys::user_agent,
    browser_session::{clear_cookie, set_cookie, with_cookies},
    pages,
};
use crate::{
    app::App,
    identity::{Refusal, Rejection, credential, session::Beginning},
    observe::Event,
    oidc::{Provider, SignInError, SignedIn},
    request::RequestInfo,
    secrets,
    store::{SignInRefused, now},
};

/// How long a sign-in may take, in seconds.
const SIGN_IN_TIMEOUT_SECONDS: i64 = 10 * 60;

/// How many sign-ins one browser may have begun. More would fill its cookie jar.
const MAX_CONCURRENT_SIGN_INS: usize = 8;

#[derive(Deserialize)]
pub struct Begin {
    provider: Option<String>,
    callback_ui: Option<String>,
}

/// What the browser keeps for us.
#[derive(Serialize, Deserialize)]
struct Pending {
    provider: String,
    state: String,
    nonce: String,
    verifier: String,
    return_to: String,
    expires: i64,
    /// The provider was asked once more, since it didn't take its own code.
    #[serde(default)]
    is_second: bool,
}

/// Why a sign-in ended nowhere, if the provider isn't to blame.
#[derive(Debug, thiserror::Error)]
pub enum Broken {
    #[error("there is no sign-in provider of this name here")]
    Provider,
    #[error("callback_ui may only lead to a page of this registry, or to an origin in callbackAllowOrigins")]
    ReturnTo,
    #[error(
        "this browser brought back no sign-in that fits: it took longer than ten minutes, was begun in another \
         browser, was ended before, or cookies are switched off. Begin again"
    )]
    Pending,
    #[error("the answer comes from another provider than the one that was asked")]
    MixUp,
    #[error("the provider sent the browser back without a code")]
    NoCode,
    #[error(transparent)]
    Provided(#[from] SignInError),
    #[error(
        "the user name '{0}' belongs to somebody else here, with their sessions and API keys, so you can't be signed in with \
         it. If it is yours (the identity provider was set up anew, or names its users by another subject now), an operator \
         gives it to you with: berth-proxy people CONFIG release NAME"
    )]
    NameTaken(String),
    #[error("{0}")]
    Unwanted(Rejection),
    #[error("the registry's database can't be reached, so nobody can be signed in now; its log says why")]
    Store,
}

impl Broken {
    fn status(&self) -> StatusCode {
        match self {
            Self::Provider => StatusCode::NOT_FOUND,
            Self::ReturnTo | Self::Pending | Self::MixUp | Self::NoCode => StatusCode::BAD_REQUEST,
            Self::Provided(error) if error.is_unreachable() => StatusCode::SERVICE_UNAVAILABLE,
            Self::Store => StatusCode::SERVICE_UNAVAILABLE,
            Self::Provided(SignInError::Refused(_) | SignInError::GrantType(_) | SignInError::NoUserName(_))
            | Self::NameTaken(_)
            | Self::Unwanted(_) => StatusCode::FORBIDDEN,
            Self::Provided(_) => StatusCode::BAD_GATEWAY,
        }
    }

    /// The page, and the same in the log.
    fn answer(&self, app: &App, request: &RequestInfo) -> Response {
        app.metrics.sign_in(if self.status().is_server_error() { "failed" } else { "refused" });
        app.audit.record(&request.origin(), &Event::SignInRefused { reason: &self.to_string() });
        tracing::warn!(request = request.id, client = ?request.client, reason = %self, "a sign-in was refused");
        let reason = self.to_string();
        let failure =
            pages::SignInFailure { status: self.status(), reason: &reason, request_id: &request.id, back: "/" };
        failure.page(app).into_response()
    }
}

fn provider(app: &App, id: Option<&str>) -> Result<Arc<Provider>, Broken> {
    match (id, app.live().providers()) {
        (None, [only]) => Ok(Arc::clone(only)),
        (id, all) => all.iter().find(|p| Some(p.config.id.as_str()) == id).cloned().ok_or(Broken::Provider),
    }
}

/// Where a sign-in returns to. Read as browsers read it, so that `/\evil` and `/<tab>/evil` are what they are.
pub fn return_to(app: &App, text: Option<&str>) -> Result<String, Broken> {
    let base = Url::parse(&app.external_url.join("/")).map_err(|_| Broken::ReturnTo)?;
    let url = base.join(text.unwrap_or("/")).map_err(|_| Broken::ReturnTo)?;
    // Not blob: and its like, which have the origin of what is inside (URL standard, "Origin").
    let is_page = matches!(url.scheme(), "http" | "https");
    let allowed = url.origin() == base.origin() || app.live().callback_origins.contains(&url.origin());
    if is_page && allowed && url.username().is_empty() && url.password().is_none() {
        Ok(url.into())
    } else {
        Err(Broken::ReturnTo)
    }
}

fn cookie_prefix(app: &App) -> &'static str {
    if app.secure_cookies { "__Host-berth_sign_in_" } else { "berth_sign_in_" }
}

fn cookie_name(app: &App, state: &str) -> String {
    format!("{}{}", cookie_prefix(app), &secrets::hash(state)[..16])
}

/// `GET /zot/auth/login`: sends the browser to the provider.
pub async fn begin(
    State(app): State<Arc<App>>,
    Extension(request): Extension<RequestInfo>,
    headers: HeaderMap,
    Query(query): Query<Begin>,
) -> Response {
    begin_with(&app, &headers, &query).await.unwrap_or_else(|broken| broken.answer(&app, &request))
}

async fn begin_with(app: &App, headers: &HeaderMap, query: &Begin) -> Result<Response, Broken> {
    let provider = provider(app, query.provider.as_deref())?;
    let return_to = return_to(app, query.callback_ui.as_deref())?;
    send_to(&provider, app, headers, return_to, false).await
}

async fn send_to(
    provider: &Provider,
    app: &App,
    headers: &HeaderMap,
    return_to: String,
    is_second: bool,
) -> Result<Response, Broken> {
    let begun = provider.begin().await?;
    let name = cookie_name(app, &begun.state);
    let pending = Pending {
        provider: provider.config.id.clone(),
        state: begun.state,
        nonce: begun.nonce,
        verifier: begun.verifier,
        return_to,
        expires: now() + SIGN_IN_TIMEOUT_SECONDS,
        is_second,
    };
    let plain = serde_json::to_vec(&pending).map_err(|_| Broken::Pending)?;
    let sealed = app.sign_in_sealer.seal(&plain).map_err(|_| Broken::Pending)?;
    let older = credential::cookies(headers).filter(|cookie| cookie.name().starts_with(cookie_prefix(app)));
    let too_many = older.map(|cookie| cookie.name().to_owned()).collect::<Vec<_>>();
    let too_many = if too_many.len() >= MAX_CONCURRENT_SIGN_INS { too_many } else { Vec::new() };
    let cookies = too_many.iter().filter_map(|name| clear_cookie(app, name));
    let cookies =
        cookies.chain(set_cookie(app, &name, &sealed, Some(time::Duration::seconds(SIGN_IN_TIMEOUT_SECONDS))));
    let response = (StatusCode::FOUND, [(header::LOCATION, String::from(begun.url))]).into_response();
    Ok(with_cookies(response, cookies))
}

/// What the provider sends the browser back with (RFC 6749, section 4.1.2; `iss` of RFC 9207).
#[derive(Deserialize)]
pub struct Callback {
    code: Option<String>,
    state: Option<String>,
    iss: Option<String>,
    error: Option<String>,
    error_description: Option<String>,
}

/// `GET /zot/auth/callback/<provider>`: ends the sign-in.
pub async fn finish(
    State(app): State<Arc<App>>,
    Extension(request): Extension<RequestInfo>,
    Path(provider_id): Path<String>,
    headers: HeaderMap,
    Query(callback): Query<Callback>,
) -> Response {
    let name = callback.state.as_deref().map(|state| cookie_name(&app, state));
    let response = match finish_with(&app, &provider_id, &headers, callback, name.as_deref(), &request).await {
        Ok(response) => response,
        Err(broken) => broken.answer(&app, &request),
    };
    // However it ended, it ended.
    with_cookies(response, name.and_then(|name| clear_cookie(&app, &name)))
}

async fn finish_with(
    app: &App,
    provider_id: &str,
    headers: &HeaderMap,
    callback: Callback,
    cookie_name: Option<&str>,
    request: &RequestInfo,
) -> Result<Response, Broken> {
    let provider = provider(app, Some(provider_id))?;
    let pending = cookie_name.and_then(|name| credential::cookie(headers, name));
    let pending = pending.and_then(|sealed| app.sign_in_sealer.open(&sealed).ok());
    let pending: Pending = pending.and_then(|plain| serde_json::from_slice(&plain).ok()).ok_or(Broken::Pending)?;
    if callback.state.as_deref() != Some(&pending.state) || pending.expires < now() {
        return Err(Broken::Pending);
    }
    if pending.provider != provider.config.id || callback.iss.is_some_and(|iss| iss != provider.config.issuer) {
        return Err(Broken::MixUp);
    }
    if let Some(error) = callback.error {
        return Err(SignInError::refused(&error, callback.error_description.as_deref()).into());
    }
    let code = callback.code.ok_or(Broken::NoCode)?;
    let signed_in = match provider.finish(code, pending.verifier, pending.nonce).await {
        // A code is good once, and the process that took it may have been stopped before there was a session. The provider
        // knows the browser by now and sends it back without a question.
        Err(SignInError::GrantType(_)) if !pending.is_second => {
            return send_to(&provider, app, headers, pending.return_to, true).await;
        }
        signed_in => signed_in?,
    };

    let user = &signed_in.user;
    app.identities.standings.may_sign_in(&provider.config, user).await.map_err(|refusal| match refusal {
        Refusal::Rejected(rejection) => Broken::Unwanted(rejection),
        other => store_failed(other),
    })?;
    let cookie = begin_session(app, request, headers, &signed_in).await.map_err(|not_begun| match not_begun {
        NotBegun::NameTaken => Broken::NameTaken(user.name.clone()),
        NotBegun::Failed => Broken::Store,
    })?;
    let response = Redirect::to(&pending.return_to).into_response();
    Ok(with_cookies(found(response), cookie))
}

/// Why no session was begun.
pub enum NotBegun {
    /// Another person holds the name.
    NameTaken,
    /// The database failed, as the log says.
    Failed,
}

/// Begins a session of somebody who has signed in; gives its cookie.
pub async fn begin_session(
    app: &App,
    request: &RequestInfo,
    headers: &HeaderMap,
    signed_in: &SignedIn,
) -> Result<Option<HeaderValue>, NotBegun> {
    let failed = |error: &dyn std::fmt::Display| {
        tracing::error!(%error, "a session can't be stored");
        NotBegun::Failed
    };
    let user = &signed_in.user;
    let beginning = Beginning {
        signed_in,
        user_agent: &user_agent(headers),
        client: &request.client.map(|client| client.to_string()).unwrap_or_default(),
    };
    let id = app.identities.sessions.begin(&beginning).await.map_err(|refused| match refused {
        SignInRefused::NameTaken => NotBegun::NameTaken,
        SignInRefused::Store(error) => failed(&error),
    })?;
    request.identified(&user.name, "session");
    app.identities.refresh();
    // A session that this browser may have had before doesn't outlive the sign-in (session fixation).
    if let Some(old) = credential::cookie(headers, app.session_cookie()) {
        app.identities.sessions.end(&old).await.map_err(|error| failed(&error))?;
    }
    tracing::info!(request = request.id, user = user.name, provider = user.id.provider, "signed in");
    app.metrics.sign_in("signed_in");
    app.audit.record(&request.origin(), &Event::SignIn { provider: &user.id.provider });
    Ok(set_cookie(app, app.session_cookie(), &id, None))
}

fn store_failed(error: impl std::fmt::Display) -> Broken {
    tracing::error!(%error, "a session can't be stored");
    Broken::Store
}

/// 302 instead of axum's 303, as zot answers.
fn found(mut response: Response) -> Response {
    *response.status_mut() = StatusCode::FOUND;
    response
}
