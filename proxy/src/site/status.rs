//! What there is, and whether it is well.

use std::sync::Arc;

use axum::{
    Json,
    extract::State,
    http::StatusCode,
    response::{IntoResponse, Response},
};
use serde_json::{Map, Value, json};

use crate::app::App;

/// `GET /v2/_zot/ext/mgmt`: which ways there are to sign in, for user interfaces. Nothing of it is secret.
pub async fn sign_in_methods(State(app): State<Arc<App>>) -> Json<Value> {
    let providers = app.providers.iter().map(|p| (p.config.id.clone(), json!({"name": p.config.name})));
    let mut auth = json!({"openid": {"providers": providers.collect::<Map<_, _>>()}});
    if app.api_keys {
        auth["apikey"] = json!(true);
    }
    Json(json!({"distSpecVersion": "1.1.1", "binaryType": "berth", "http": {"auth": auth}}))
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
