//! The token service (the registry token specification): a client shows a credential and gets a short-lived bearer
//! token for what it is about to do.
//!
//! What was asked for and isn't granted is left out, and that is no error; a wrong credential is.

use std::sync::Arc;

use axum::{
    Extension,
    body::Bytes,
    extract::{RawQuery, State},
    http::{HeaderMap, StatusCode, header},
    response::{IntoResponse, Response},
};
use berth_oci::{Error, ErrorCode, Repository};
use serde_json::json;

use super::{RequestInfo, api_keys::database_failed};
use crate::{
    answer::error_response,
    app::App,
    identity::{Credential, Grant, Identity, Refusal, Via, scope::Access, token::LIFETIME},
    policy::Action,
};

/// How many scopes one token may have: it travels in a header.
const MOST_SCOPES: usize = 64;

/// `GET`: with Basic, or with nothing for an anonymous token.
pub async fn by_query(
    State(app): State<Arc<App>>,
    Extension(request): Extension<RequestInfo>,
    RawQuery(query): RawQuery,
    headers: HeaderMap,
) -> Response {
    let query = query.unwrap_or_default();
    let scopes = form_urlencoded::parse(query.as_bytes()).filter(|(name, _)| name == "scope");
    let scopes = scopes.map(|(_, value)| value.into_owned()).collect::<Vec<_>>().join(" ");
    let minted = match credential(&app, &headers) {
        Ok(credential) => mint(&app, &request, credential, &scopes).await,
        Err(error) => Err(error),
    };
    minted.map_or_else(|e| error_response(&e), |(token, _)| answer(&token, None))
}

/// `POST`: OAuth 2.0's password grant.
pub async fn by_form(
    State(app): State<Arc<App>>,
    Extension(request): Extension<RequestInfo>,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    let field =
        |name: &str| form_urlencoded::parse(&body).find(|(key, _)| key == name).map(|(_, value)| value.into_owned());
    let credential = match field("grant_type").as_deref() {
        Some("password") => match (field("username"), field("password")) {
            (Some(user), Some(password)) => Ok(Credential::Basic { user, password }),
            _ => credential(&app, &headers),
        },
        Some("refresh_token") => {
            let message = "no refresh tokens are given here; send the user name and the API key";
            Err(Error::new(StatusCode::UNAUTHORIZED, ErrorCode::Unauthorized, message))
        }
        _ => {
            let message = "grant_type must be 'password', in a form (application/x-www-form-urlencoded)";
            Err(Error::new(StatusCode::BAD_REQUEST, ErrorCode::Unsupported, message))
        }
    };
    let minted = match credential {
        Ok(credential) => mint(&app, &request, credential, &field("scope").unwrap_or_default()).await,
        Err(error) => Err(error),
    };
    minted.map_or_else(|e| error_response(&e), |(token, granted)| answer(&token, Some(&granted)))
}

/// The credential in the header. A cookie doesn't count: a browser sends that of itself.
fn credential(app: &App, headers: &HeaderMap) -> Result<Credential, Error> {
    match Credential::from_headers(headers, app.session_cookie()) {
        Ok(Credential::Session(_)) => Ok(Credential::None),
        Ok(credential) => Ok(credential),
        Err(malformed) => Err(Error::new(StatusCode::BAD_REQUEST, ErrorCode::Unauthorized, malformed.to_string())),
    }
}

async fn mint(
    app: &App,
    request: &RequestInfo,
    credential: Credential,
    scopes: &str,
) -> Result<(String, Vec<Access>), Error> {
    let caller = app.identities.identify(&credential, None).await.map_err(|refusal| match refusal {
        Refusal::Store(error) => database_failed(error),
        refusal => {
            tracing::info!(request = request.id, client = ?request.client, reason = %refusal, "no token was given");
            Error::new(StatusCode::UNAUTHORIZED, ErrorCode::Unauthorized, refusal.to_string())
        }
    })?;
    // A token made of a token would outlive it.
    let (key, identity) = match (&caller.grant, caller.identity.as_deref()) {
        (Grant::Everything, None) => (None, None),
        (Grant::Everything, Some(identity @ Identity { via: Via::ApiKey(id), .. })) => (Some(id), Some(identity)),
        _ => {
            let message = "a token is made of a user name and an API key";
            return Err(Error::new(StatusCode::UNAUTHORIZED, ErrorCode::Unauthorized, message));
        }
    };
    let wanted = scopes.split_ascii_whitespace().filter_map(Access::parse).take(MOST_SCOPES);
    let granted: Vec<Access> = wanted.filter_map(|access| grant(app, identity, access)).collect();
    let user = identity.map_or("", |identity| &identity.user);
    let token = app.identities.tokens.mint(user, key.map(String::as_str), granted.clone());
    let token = token.map_err(|error| {
        tracing::error!(%error, "a token can't be written");
        Error::new(StatusCode::INTERNAL_SERVER_ERROR, ErrorCode::Unknown, "a token can't be written")
    })?;
    Ok((token, granted))
}

/// As much of what is wanted as the rules allow; nothing if that is nothing.
fn grant(app: &App, identity: Option<&Identity>, wanted: Access) -> Option<Access> {
    let all = wanted.actions.iter().any(|action| action == "*");
    let asks = |action: &str| all || wanted.actions.iter().any(|wanted| wanted == action);
    let actions: Vec<String> = match wanted.kind.as_str() {
        "repository" => {
            let repository: Repository = wanted.name.parse().ok()?;
            let may = |action| app.rules.decide(identity, action, repository.as_str()).allowed;
            let push = || may(Action::Create) || may(Action::Update);
            let mut actions = Vec::new();
            if asks("pull") && may(Action::Read) {
                actions.push("pull".to_owned());
            }
            if asks("push") && push() {
                actions.push("push".to_owned());
            }
            if asks("delete") && may(Action::Delete) {
                actions.push("delete".to_owned());
            }
            actions
        }
        // The list is filtered when it is made.
        "registry" if wanted.name == "catalog" && (identity.is_some() || app.rules.has_anonymous()) => {
            vec!["*".to_owned()]
        }
        _ => Vec::new(),
    };
    (!actions.is_empty()).then_some(Access { actions, ..wanted })
}

/// Without `issued_at`, which docker and podman would compare with their own clock.
fn answer(token: &str, granted: Option<&[Access]>) -> Response {
    let mut body = json!({"token": token, "access_token": token, "expires_in": LIFETIME});
    if let Some(granted) = granted {
        body["scope"] = granted.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ").into();
    }
    let headers = [(header::CONTENT_TYPE, "application/json"), (header::CACHE_CONTROL, "no-store")];
    (headers, body.to_string()).into_response()
}
