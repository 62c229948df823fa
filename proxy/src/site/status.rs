//! What there is, and whether it is well.

use std::sync::Arc;

use axum::{
    Extension, Json,
    extract::State,
    http::{HeaderMap, StatusCode, header},
    response::{IntoResponse, Response},
};
use berth_oci::{Error, ErrorCode};
use serde_json::{Map, Value, json};

use crate::{
    answer::{denied, error_response, retry_later_response},
    app::App,
    identity::{ConnectionInfo, Credential},
    request::RequestInfo,
};

/// `GET /v2/_zot/ext/mgmt`: which ways there are to sign in, for user interfaces. Nothing of it is secret.
pub async fn sign_in_methods(State(app): State<Arc<App>>) -> Json<Value> {
    let live = app.live();
    let providers = live.providers().iter().map(|p| (p.config.id.clone(), json!({"name": p.config.name})));
    let mut auth = json!({"openid": {"providers": providers.collect::<Map<_, _>>()}});
    if live.verifiers.passwords.is_some() {
        auth["htpasswd"] = json!({});
    }
    if app.identities.api_keys {
        auth["apikey"] = json!(true);
    }
    Json(json!({"distSpecVersion": "1.1.1", "binaryType": "berth", "http": {"auth": auth}}))
}

/// `GET /metrics`, for whom `accessControl.metrics` names.
pub async fn metrics(
    State(app): State<Arc<App>>,
    Extension(request): Extension<RequestInfo>,
    headers: HeaderMap,
) -> Response {
    let live = app.live();
    let unauthorized = |message: String| Error::new(StatusCode::UNAUTHORIZED, ErrorCode::Unauthorized, message);
    let credential = match Credential::from_headers(&headers, app.session_cookie()) {
        Ok(credential) => credential,
        Err(malformed) => return error_response(&unauthorized(malformed.to_string())),
    };
    let arrival = ConnectionInfo { client: request.client, certificate: request.certificate.as_deref(), upload: None };
    match app.identities.identify(&live.verifiers, &credential, &arrival).await {
        Ok(caller) if live.rules.may_see_metrics(caller.identity.as_deref()) => {
            ([(header::CONTENT_TYPE, "text/plain; version=0.0.4")], app.metrics.text()).into_response()
        }
        Ok(caller) if caller.identity.is_none() => {
            let mut response = error_response(&unauthorized("show who you are".to_owned()));
            // Prometheus knows no bearer challenge.
            let basic = header::HeaderValue::from_static("Basic realm=\"metrics\"");
            response.headers_mut().insert(header::WWW_AUTHENTICATE, basic);
            response
        }
        Ok(_) => error_response(&denied("accessControl.metrics does not name you")),
        Err(refusal) => {
            retry_later_response(&refusal).unwrap_or_else(|| error_response(&unauthorized(refusal.to_string())))
        }
    }
}

/// `GET /livez`: this process answers.
pub async fn live() -> &'static str {
    "ok\n"
}

/// `GET /readyz`: requests can be served. The identity provider isn't asked: without it only sign-ins fail.
pub async fn ready(State(app): State<Arc<App>>) -> Response {
    if let Err(error) = app.store.ping().await {
        return (StatusCode::SERVICE_UNAVAILABLE, format!("{error}\n")).into_response();
    }
    if let Err(error) = app.registry.ping().await {
        return (StatusCode::SERVICE_UNAVAILABLE, format!("{error}\n")).into_response();
    }
    "ok\n".into_response()
}
