//! What there is, and whether it is well.

use std::{collections::BTreeMap, sync::Arc};

use axum::{
    Extension, Json,
    extract::{RawQuery, State},
    http::{HeaderMap, StatusCode, header},
    response::{IntoResponse, Response},
};
use berth_oci::{Error, ErrorCode};
use serde_json::{Map, Value, json};

use crate::{
    answer::{denied, error_response, retry_later_response, unavailable},
    app::{App, Reloadable},
    identity::{Credential, workload::Issuer},
    observe::Snapshot,
    oidc::Provider,
    readiness::{Unready, Wanted, readiness},
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
    if let Err(refusal) = &shown {
        app.refused(&request, credential.claimed_user(), refusal);
    }
    if let Ok(caller) = &shown {
        request.identified(caller.name(), caller.credential());
    }
    match shown {
        Ok(caller) if live.rules.may_see_metrics(caller.identity.as_deref()) && caller.is_unrestricted() => {
            match app.metrics.text(&snapshot(&app, &live).await) {
                Ok(text) => ([(header::CONTENT_TYPE, "text/plain; version=0.0.4")], text).into_response(),
                Err(error) => {
                    tracing::error!(%error, "the counters can't be written");
                    error_response(&unavailable("the counters can't be written; the log says why"))
                }
            }
        }
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

/// What is looked up when somebody asks for the counters.
async fn snapshot(app: &App, live: &Reloadable) -> Snapshot {
    let (database, registry) = tokio::join!(app.store.ping(), app.registry.metrics());
    let of_provider = |provider: &Arc<Provider>| (provider.config.issuer.clone(), provider.freshness.of_now());
    let of_issuer = |issuer: &Arc<Issuer>| (issuer.name().to_owned(), issuer.freshness.of_now());
    let providers = live.providers().iter().map(of_provider);
    let issuers = providers.chain(live.verifiers.workloads.issuers().iter().map(of_issuer));
    // One that signs people in may be a workload's, too.
    let issuers: BTreeMap<_, _> = issuers.collect();
    Snapshot {
        database: database.is_ok(),
        registry: registry.ok(),
        issuers: issuers.into_iter().map(|(name, (up, age))| (name, up, age)).collect(),
        troubled: app.identities.renewals.troubled(),
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

/// `GET /readyz`: requests can be served; with `?pulls`, pulls can. Strangers may ask, so it names nothing that only the log
/// should.
pub async fn ready(State(app): State<Arc<App>>, RawQuery(query): RawQuery) -> Response {
    let wanted = if query.as_deref() == Some("pulls") { Wanted::Pulls } else { Wanted::Everything };
    if let Err(Unready { what, why }) = readiness(&app, wanted).await {
        let Some(error) = why else {
            return (StatusCode::SERVICE_UNAVAILABLE, format!("{what}\n")).into_response();
        };
        tracing::warn!(error, "not ready: {what}");
        return (StatusCode::SERVICE_UNAVAILABLE, format!("{what}; the log says why\n")).into_response();
    }
    let mut text = String::from("ok\n");
    for provider in app.identities.renewals.troubled() {
        text.push_str(&format!(
            "the provider {provider} renews no sign-ins: allow the grant type refresh_token there\n"
        ));
    }
    text.into_response()
}
