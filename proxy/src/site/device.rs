//! Signing in from a terminal (RFC 8628): the proxy is the authorization server, since authentik's own device flow asks a
//! program on somebody's laptop for the client's secret.
//!
//! A terminal asks at [`DEVICE_PATH`] and gets a code, which somebody confirms on [a page](super::pages); meanwhile it asks the
//! token service whether they have. What it gets then is a refresh token, for which it gets secrets: see
//! [`super::login_secret`].

use std::sync::Arc;

use axum::{
    Extension,
    body::Bytes,
    extract::State,
    http::{HeaderValue, StatusCode, header},
    response::Response,
};
use serde_json::json;

use super::{
    api_keys::must_be_scopes,
    login_secret::{self, no_store, oauth_error},
};
use crate::{
    answer::json_response,
    app::App,
    identity::{
        Credential, Identity, Refusal, Rejection,
        login_secret::Source,
        terminal::{Answer, CODE_LIFETIME_SECONDS, MAX_NAME_CHARS, POLL_INTERVAL_SECONDS, set_code},
    },
    observe::Event,
    request::RequestInfo,
    store::{StoreError, Terminal},
};

/// The device authorization endpoint (RFC 8628, section 3.1).
pub const DEVICE_PATH: &str = "/zot/auth/device";

/// Where somebody types the code.
pub const CONFIRM_PATH: &str = "/device";

/// The grant with which a terminal asks whether it was let in (RFC 8628, section 3.4).
pub const DEVICE_GRANT: &str = "urn:ietf:params:oauth:grant-type:device_code";

/// How long the scopes of a terminal may be.
const MAX_SCOPE_BYTES: usize = 1024;

fn database_failed(error: &StoreError) -> Response {
    tracing::error!(%error, "the database failed");
    let description = "the registry's database can't be reached now; its log says why";
    oauth_error(StatusCode::SERVICE_UNAVAILABLE, "temporarily_unavailable", description)
}

/// `POST /zot/auth/device`: a terminal asks to be signed in. Its `name` is what it calls itself, its `scope` what it would be
/// for, as in an API key.
pub async fn begin(State(app): State<Arc<App>>, Extension(request): Extension<RequestInfo>, body: Bytes) -> Response {
    let field =
        |name: &str| form_urlencoded::parse(&body).find(|(key, _)| key == name).map(|(_, value)| value.into_owned());
    if field("client_id").is_none_or(|id| id.is_empty()) {
        let description = "the field client_id is missing; any name of the program will do";
        return oauth_error(StatusCode::BAD_REQUEST, "invalid_request", description);
    }
    let too_many = || {
        let description = "too many terminals wait to be confirmed; try again in some minutes";
        let mut response = oauth_error(StatusCode::TOO_MANY_REQUESTS, "slow_down", description);
        response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from_static("60"));
        response
    };
    // Before anything is read of it: patterns cost more than the rest.
    match app.identities.terminals.may_begin(request.client).await {
        Ok(true) => {}
        Ok(false) => return too_many(),
        Err(error) => return database_failed(&error),
    }
    let scope = field("scope").unwrap_or_default();
    let scopes: Vec<String> = scope.split_ascii_whitespace().map(str::to_owned).collect();
    if scope.len() > MAX_SCOPE_BYTES {
        let description = format!("scope has at most {MAX_SCOPE_BYTES} bytes");
        return oauth_error(StatusCode::BAD_REQUEST, "invalid_scope", &description);
    }
    if let Err(error) = must_be_scopes(&scopes) {
        return oauth_error(StatusCode::BAD_REQUEST, "invalid_scope", &error.to_string());
    }
    let name = field("name").unwrap_or_default();
    let name: String = name.trim().chars().filter(|c| !c.is_control()).take(MAX_NAME_CHARS).collect();
    let name = if name.is_empty() { "without a name" } else { &name };
    let code = match app.identities.terminals.begin(name, &scopes, request.client).await {
        Ok(Some(code)) => code,
        Ok(None) => return too_many(),
        Err(error) => return database_failed(&error),
    };
    let user_code = set_code(&code.user);
    let page = app.external_url.join(CONFIRM_PATH);
    let body = json!({
        "device_code": code.device,
        "user_code": user_code,
        "verification_uri": page,
        "verification_uri_complete": format!("{page}?user_code={user_code}"),
        "expires_in": CODE_LIFETIME_SECONDS,
        "interval": POLL_INTERVAL_SECONDS,
    });
    no_store(json_response(StatusCode::OK, body.to_string()))
}

/// A terminal asks the token service whether it was let in (RFC 8628, section 3.5).
pub async fn redeem(app: &App, request: &RequestInfo, device_code: &str) -> Response {
    let refused = |error: &str, description: &str| oauth_error(StatusCode::BAD_REQUEST, error, description);
    let (terminal, token) = match app.identities.terminals.poll(device_code, request.client).await {
        Ok(Answer::SignedIn(terminal, token)) => (terminal, token),
        Ok(Answer::Pending) => return refused("authorization_pending", "nobody has decided yet"),
        Ok(Answer::TooSoon) => return refused("slow_down", "wait five seconds longer from now on"),
        Ok(Answer::Denied) => return refused("access_denied", "it was refused on the registry's page"),
        Ok(Answer::Expired) => return refused("expired_token", "the code has expired, or never was; begin again"),
        Err(error) => return database_failed(&error),
    };
    let Terminal { id, user, name, scopes, .. } = &*terminal;
    let response = match vouched_for(app, request, &token).await {
        Ok(identity) => login_secret::answer(app, request, &identity, Source::Terminal(id.clone()), Some(&token)),
        Err(refusal) => login_secret::refused(app, request, &refusal),
    };
    if response.status().is_success() {
        tracing::info!(request = request.id, user = user.name, terminal = id, "a terminal was signed in");
        app.audit.record(&request.origin(), &Event::TerminalSignedIn { terminal: id, name, scopes });
    } else if let Err(error) = app.identities.terminals.end_by_token(&token).await {
        tracing::error!(%error, "a terminal that isn't let in can't be forgotten");
    }
    response
}

/// A terminal asks for another secret, and gets another refresh token with it. With `retry`, something random of its own, it
/// may repeat the question if the answer doesn't come.
pub async fn renew(app: &App, request: &RequestInfo, refresh_token: &str, retry: Option<&str>) -> Response {
    let renewed = async {
        // Whoever isn't vouched for, or not now, doesn't use it up.
        let identity = vouched_for(app, request, refresh_token).await?;
        let (id, next) = app.identities.terminals.rotate(refresh_token, retry, request.client).await?;
        Ok((identity, Source::Terminal(id), next))
    };
    match renewed.await {
        Ok((identity, source, next)) => login_secret::answer(app, request, &identity, source, Some(&next)),
        Err(refusal) => {
            if let Refusal::Rejected(Rejection::ReplayedRefreshToken) = refusal {
                tracing::warn!(request = request.id, user = request.user(), client = ?request.client, "{refusal}");
                app.audit.record(&request.origin(), &Event::TerminalReplayed);
            }
            login_secret::refused(app, request, &refusal)
        }
    }
}

/// The owner of the terminal that has this refresh token, if somebody still vouches for them.
async fn vouched_for(app: &App, request: &RequestInfo, refresh_token: &str) -> Result<Arc<Identity>, Refusal> {
    let shown = Credential::RefreshToken(refresh_token.to_owned());
    let live = app.live();
    let caller = app.identities.identify(&live.verifiers, &shown, &request.connection(None)).await?;
    request.identified(caller.name(), caller.credential());
    caller.identity.ok_or_else(|| Rejection::UnknownRefreshToken.into())
}
