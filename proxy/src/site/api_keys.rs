//! `/zot/auth/apikey`: API keys for programs that speak for a signed-in browser, in zot's shapes.

use std::sync::Arc;

use axum::{
    Extension, Json,
    body::Bytes,
    extract::{Query, State},
    http::{HeaderMap, Method, StatusCode, header::USER_AGENT},
    response::{IntoResponse, Response},
};
use berth_oci::{Error, ErrorCode};
use serde::{Deserialize, Serialize};
use serde_json::json;
use time::{OffsetDateTime, format_description::well_known::Rfc3339};

use super::browser_session::{BrowserSession, Owner, browser_session};
use crate::{
    answer::{denied, error_response, unavailable},
    app::App,
    identity::{
        api_key::{MAX_KEYS, WantedKey},
        api_key_scopes::KeyScopes,
    },
    observe::Event,
    request::{RequestInfo, is_our_own},
    store::{ApiKey, now},
};

/// How long a label may be.
pub const MAX_LABEL_CHARS: usize = 200;

/// A key as zot's clients know it. A time that never was is Go's zero time.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Shown<'a> {
    created_at: String,
    expiration_date: String,
    is_expired: bool,
    creator_ua: &'a str,
    generated_by: &'static str,
    last_used: String,
    label: &'a str,
    scopes: &'a [String],
    uuid: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    api_key: Option<&'a str>,
}

impl<'a> Shown<'a> {
    fn new(key: &'a ApiKey, api_key: Option<&'a str>) -> Self {
        Self {
            created_at: rfc3339(Some(key.created_at)),
            expiration_date: rfc3339(key.expires_at),
            is_expired: key.is_expired(),
            creator_ua: &key.user_agent,
            generated_by: "manual",
            last_used: rfc3339(key.used_at),
            label: &key.label,
            scopes: &key.scopes,
            uuid: &key.id,
            api_key,
        }
    }
}

fn rfc3339(seconds: Option<i64>) -> String {
    let time = seconds.and_then(|seconds| OffsetDateTime::from_unix_timestamp(seconds).ok());
    let text = time.and_then(|time| time.format(&Rfc3339).ok());
    text.unwrap_or_else(|| "0001-01-01T00:00:00Z".to_owned())
}

fn bad_request(message: &str) -> Error {
    Error::new(StatusCode::BAD_REQUEST, ErrorCode::Unsupported, message)
}

/// The answer when the database fails.
pub fn database_failed(error: impl std::fmt::Display) -> Error {
    tracing::error!(%error, "the database failed");
    unavailable("the registry's database can't be reached now; its log says why")
}

/// The owner of the keys: somebody who is signed in with a browser. A key makes no keys, or a stolen one would
/// outlive its revocation.
async fn owner(app: &App, request: &RequestInfo, headers: &HeaderMap) -> Result<Owner, Error> {
    if !app.identities.api_keys {
        return Err(Error::new(StatusCode::NOT_FOUND, ErrorCode::Unsupported, "API keys are switched off here"));
    }
    let message = match browser_session(app, request, headers).await.map_err(database_failed)? {
        BrowserSession::Known(owner) => return Ok(owner),
        BrowserSession::Unknown => {
            "API keys are made and seen by who is signed in with a browser; sign in first".to_owned()
        }
        BrowserSession::Ended(rejection) => rejection.to_string(),
    };
    Err(Error::new(StatusCode::UNAUTHORIZED, ErrorCode::Unauthorized, message))
}

/// The error that somebody has as many keys as they may have.
pub fn too_many_keys() -> Error {
    denied(&format!("you have {MAX_KEYS} API keys, which is as many as one person may have; revoke some first"))
}

fn must_be_our_own(app: &App, headers: &HeaderMap) -> Result<(), Error> {
    if is_our_own(headers, &app.external_url) {
        return Ok(());
    }
    Err(denied("the request came from another site's page"))
}

/// `GET /zot/auth/apikey`
pub async fn list(
    State(app): State<Arc<App>>,
    Extension(request): Extension<RequestInfo>,
    headers: HeaderMap,
) -> Response {
    let listed = async {
        let owner = owner(&app, &request, &headers).await?;
        app.identities.keys.of(&owner.id).await.map_err(database_failed)
    };
    match listed.await {
        Ok(keys) => {
            let keys: Vec<_> = keys.iter().map(|key| Shown::new(key, None)).collect();
            Json(json!({"apiKeys": keys})).into_response()
        }
        Err(error) => error_response(&error),
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Wanted {
    #[serde(default)]
    label: String,
    #[serde(default)]
    scopes: Option<Vec<String>>,
    #[serde(default)]
    expiration_date: Option<String>,
}

impl Wanted {
    fn expires_at(&self) -> Result<Option<i64>, Error> {
        let Some(text) = self.expiration_date.as_deref().filter(|text| !text.is_empty()) else { return Ok(None) };
        let time = OffsetDateTime::parse(text, &Rfc3339).map_err(|_| {
            bad_request("expirationDate must be a time of RFC 3339, such as 2027-01-31T12:00:00Z, or be left out")
        })?;
        if time.unix_timestamp() <= now() {
            return Err(bad_request("expirationDate is in the past"));
        }
        Ok(Some(time.unix_timestamp()))
    }
}

/// `POST /zot/auth/apikey`
pub async fn create(
    State(app): State<Arc<App>>,
    Extension(request): Extension<RequestInfo>,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    let created = async {
        must_be_our_own(&app, &headers)?;
        let owner = owner(&app, &request, &headers).await?;
        let wanted: Wanted = serde_json::from_slice(&body)
            .map_err(|e| bad_request(&format!("the body must be {{\"label\": \"…\"}}: {e}")))?;
        let scopes = wanted.scopes.as_deref().unwrap_or_default();
        must_be_scopes(scopes)?;
        if wanted.label.chars().count() > MAX_LABEL_CHARS {
            return Err(bad_request(&format!("a label has at most {MAX_LABEL_CHARS} characters")));
        }
        let expires_at = wanted.expires_at()?;
        let user_agent = user_agent(&headers);
        let key = WantedKey { label: &wanted.label, user_agent: &user_agent, expires_at, scopes };
        app.identities.keys.create(&owner.id, &key).await.map_err(database_failed)?.ok_or_else(too_many_keys)
    };
    match created.await {
        Ok((text, key)) => {
            key_created(&app, &request, &key).await;
            (StatusCode::CREATED, Json(Shown::new(&key, Some(&text)))).into_response()
        }
        Err(error) => error_response(&error),
    }
}

/// Tells the logs, and whoever is told of events, of a new key.
pub async fn key_created(app: &App, request: &RequestInfo, key: &ApiKey) {
    tracing::info!(request = request.id, user = key.user.name, key = key.id, "an API key was made");
    let ApiKey { id, label, scopes, .. } = key;
    app.audit.record(&request.origin(), &Event::KeyCreated { key: id, label, scopes });
    if let Some(events) = &app.events {
        events.key_created(&request.asker(&Method::POST), key).await;
    }
}

/// Tells the log and the audit log that a key is gone.
pub fn key_revoked(app: &App, request: &RequestInfo, id: &str) {
    tracing::info!(request = request.id, user = request.user(), key = id, "an API key was revoked");
    app.audit.record(&request.origin(), &Event::KeyRevoked { key: id });
}

/// How many scopes a key may have.
const MAX_SCOPES: usize = 32;

/// Refuses scopes that mean nothing, or are too many.
pub fn must_be_scopes(scopes: &[String]) -> Result<(), Error> {
    if scopes.len() > MAX_SCOPES || scopes.iter().any(|scope| scope.len() > 256) {
        return Err(bad_request("a key has at most 32 scopes, of at most 256 characters each"));
    }
    KeyScopes::parse(scopes).map(drop).map_err(|e| bad_request(&e))
}

/// What a key was made with or a session begun, for its owner to know it again.
pub fn user_agent(headers: &HeaderMap) -> String {
    let text = headers.get(USER_AGENT).and_then(|value| value.to_str().ok());
    text.unwrap_or_default().chars().take(300).collect()
}

#[derive(Deserialize)]
pub struct Which {
    id: Option<String>,
}

/// `DELETE /zot/auth/apikey?id=<uuid>`
pub async fn revoke(
    State(app): State<Arc<App>>,
    Extension(request): Extension<RequestInfo>,
    headers: HeaderMap,
    Query(which): Query<Which>,
) -> Response {
    let revoked = async {
        must_be_our_own(&app, &headers)?;
        let owner = owner(&app, &request, &headers).await?;
        let id = which.id.as_deref().ok_or_else(|| bad_request("the query parameter 'id' is missing"))?;
        if app.identities.keys.revoke(&owner.id, id).await.map_err(database_failed)? {
            key_revoked(&app, &request, id);
            return Ok(());
        }
        Err(Error::new(StatusCode::NOT_FOUND, ErrorCode::Unsupported, "you have no API key of this id"))
    };
    match revoked.await {
        Ok(()) => StatusCode::OK.into_response(),
        Err(error) => error_response(&error),
    }
}
