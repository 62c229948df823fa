//! What there is, and whether it is well.

use std::sync::{Arc, atomic::Ordering};

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
    identity::Credential,
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
    let shown = app.identities.identify(&live.verifiers, &credential, &request.connection(None)).await;
    if let Ok(caller) = &shown {
        request.identified(caller.name());
    }
    match shown {
        Ok(caller) if live.rules.may_see_metrics(caller.identity.as_deref()) && caller.is_unrestricted() => (
            [(header::CONTENT_TYPE, "text/plain; version=0.0.4")],
            app.metrics.text(&app.identities.renewals.troubled()),
        )
            .into_response(),
        Ok(caller) if caller.identity.is_some() && !caller.is_unrestricted() => {
            error_response(&denied("this credential is for repositories; show one without scopes of its own"))
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

/// `GET /startupz`: it has begun to serve, and so has opened its database.
pub async fn started() -> &'static str {
    "ok\n"
}

/// `GET /readyz`: requests can be served. The identity provider isn't asked: without it only sign-ins fail. Strangers may
/// ask, so it names nothing that only the log should.
pub async fn ready(State(app): State<Arc<App>>) -> Response {
    let unready = |what: &'static str, error: &dyn std::fmt::Display| {
        tracing::warn!(%error, "not ready: {what}");
        (StatusCode::SERVICE_UNAVAILABLE, format!("{what}; the log says why\n")).into_response()
    };
    if app.stopping.load(Ordering::Relaxed) {
        return (StatusCode::SERVICE_UNAVAILABLE, "the proxy is stopping\n").into_response();
    }
    if let Err(error) = app.store.ping().await {
        return unready("the database does not answer", &error);
    }
    if let Err(error) = app.registry.ping().await {
        return unready("the registry does not answer", &error);
    }
    let mut text = String::from("ok\n");
    for provider in app.identities.renewals.troubled() {
        text.push_str(&format!(
            "the provider {provider} renews no sign-ins: allow the grant type refresh_token there\n"
        ));
    }
    text.into_response()
}
