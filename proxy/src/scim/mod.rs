//! SCIM 2.0 (RFC 7643 and 7644): an identity provider pushes who is there, in which groups, and who isn't any more.
//!
//! What is pushed is kept as it is said. What follows from it is decided where everything about people is: each use of a
//! credential asks whether its owner is still there, and in which groups ([`Standings`](crate::identity::Standings)).

mod error;
mod filter;
mod patch;
mod resources;
mod schema;

use std::sync::Arc;

use aws_lc_rs::constant_time::verify_slices_are_equal;
use axum::{
    Extension, Router,
    extract::{DefaultBodyLimit, Path, State},
    http::{HeaderMap, StatusCode, header},
    response::{IntoResponse, Response},
    routing::{get, post},
};
use serde_json::{Value, json};

use self::{error::ScimError, schema::Kind};
use crate::{
    app::App,
    identity::{Refusal, Rejection},
    oidc::{Provider, ScimConfig},
    request::RequestInfo,
    secrets,
};

/// The media type of all that is sent and answered (RFC 7644, section 8.1).
const MEDIA_TYPE: &str = "application/scim+json";

/// Where all of it is.
pub const BASE: &str = "/scim/v2";

/// The longest request, in bytes: a group of some ten thousand.
pub const MAX_BODY_BYTES: usize = 1024 * 1024;

/// How many resources a list has at most.
const MAX_PER_PAGE: i64 = 200;

/// How many changes authentik puts into one request.
const MAX_OPERATIONS_TOLD: usize = 500;

/// The addresses.
pub fn router() -> Router<Arc<App>> {
    let kinds = get(resources::list).post(resources::create);
    let one = get(resources::show).put(resources::replace).patch(resources::patch).delete(resources::delete);
    Router::new()
        .route("/scim/v2/ServiceProviderConfig", get(service_provider_config))
        .route("/scim/v2/ResourceTypes", get(resource_types))
        .route("/scim/v2/ResourceTypes/{name}", get(resource_type))
        .route("/scim/v2/Schemas", get(schemas))
        .route("/scim/v2/Schemas/{urn}", get(schema))
        .route("/scim/v2/.search", post(resources::search_all))
        .route("/scim/v2/{kind}/.search", post(resources::search_kind))
        .route("/scim/v2/{kind}", kinds)
        .route("/scim/v2/{kind}/{id}", one)
        .layer(DefaultBodyLimit::max(MAX_BODY_BYTES))
}

/// An identity provider that pushes.
struct Client {
    provider: Arc<Provider>,
    scim: ScimConfig,
}

/// Which provider's token a request shows.
async fn client(app: &App, request: &RequestInfo, headers: &HeaderMap) -> Result<Client, ScimError> {
    let shown = headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
    let shown = shown.and_then(|text| {
        let (scheme, token) = text.split_once(' ')?;
        scheme.eq_ignore_ascii_case("bearer").then(|| secrets::hash(token.trim()))
    });
    let Some(shown) = shown else {
        return Err(ScimError::of(StatusCode::UNAUTHORIZED, "show the token of scim.tokenFile as a bearer token"));
    };
    let mut found = None;
    // Each is compared, and as long as the others.
    for provider in app.live().providers() {
        if let Some(scim) = &provider.config.scim
            && verify_slices_are_equal(scim.token_hash.as_bytes(), shown.as_bytes()).is_ok()
        {
            found = Some(Client { provider: Arc::clone(provider), scim: scim.clone() });
        }
    }
    if let Some(client) = found {
        request.identified(&client.provider.config.id, "scim_token");
        return Ok(client);
    }
    let refusal = app.identities.limits.failed(request.client, None, Rejection::WrongScimToken.into());
    app.refused(request, None, &refusal);
    Err(match refusal {
        Refusal::Throttled(_) => ScimError::of(StatusCode::TOO_MANY_REQUESTS, refusal.to_string()),
        _ => ScimError::of(StatusCode::UNAUTHORIZED, refusal.to_string()),
    })
}

fn answer(status: StatusCode, body: &Value) -> Response {
    (status, [(header::CONTENT_TYPE, MEDIA_TYPE)], body.to_string()).into_response()
}

fn base(app: &App) -> String {
    app.external_url.join(BASE)
}

fn list(resources: Vec<Value>, total: i64, start: i64) -> Value {
    json!({
        "schemas": ["urn:ietf:params:scim:api:messages:2.0:ListResponse"],
        "totalResults": total, "startIndex": start, "itemsPerPage": resources.len(), "Resources": resources,
    })
}

/// What is told of the service itself, to whom the token names.
macro_rules! told {
    ($(#[$about:meta])* $name:ident, |$app:ident $(, $path:ident)?| $told:expr) => {
        $(#[$about])*
        async fn $name(
            State($app): State<Arc<App>>,
            Extension(request): Extension<RequestInfo>,
            $(Path($path): Path<String>,)?
            headers: HeaderMap,
        ) -> Response {
            if let Err(error) = client(&$app, &request, &headers).await {
                return error.into_response();
            }
            let told: Option<Value> = $told;
            match told {
                Some(told) => answer(StatusCode::OK, &told),
                None => ScimError::of(StatusCode::NOT_FOUND, "there is none of this name").into_response(),
            }
        }
    };
}

told!(
    /// `GET /scim/v2/ServiceProviderConfig` (RFC 7643, section 5)
    service_provider_config,
    |app| {
        let supported = |is: bool| json!({"supported": is});
        Some(json!({
            "schemas": ["urn:ietf:params:scim:schemas:core:2.0:ServiceProviderConfig"],
            "patch": supported(true), "etag": supported(true), "sort": supported(false), "changePassword": supported(false),
            "bulk": {"supported": false, "maxOperations": MAX_OPERATIONS_TOLD, "maxPayloadSize": MAX_BODY_BYTES},
            "filter": {"supported": true, "maxResults": MAX_PER_PAGE},
            "authenticationSchemes": [{
                "type": "oauthbearertoken", "name": "Bearer token", "primary": true,
                "description": "The token of the provider's scim.tokenFile",
            }],
            "meta": {"resourceType": "ServiceProviderConfig", "location": format!("{}/ServiceProviderConfig", base(&app))},
        }))
    }
);

told!(
    /// `GET /scim/v2/ResourceTypes`
    resource_types,
    |app| {
        let all: Vec<Value> = Kind::ALL.into_iter().map(|kind| kind.resource_type(&base(&app))).collect();
        Some(list(all, Kind::ALL.len() as i64, 1))
    }
);

told!(
    /// `GET /scim/v2/ResourceTypes/<name>`
    resource_type,
    |app, name| Kind::ALL.into_iter().find(|kind| kind.name() == name).map(|kind| kind.resource_type(&base(&app)))
);

told!(
    /// `GET /scim/v2/Schemas`
    schemas,
    |app| {
        let all: Vec<Value> = Kind::ALL.into_iter().map(|kind| kind.schema(&base(&app))).collect();
        Some(list(all, Kind::ALL.len() as i64, 1))
    }
);

told!(
    /// `GET /scim/v2/Schemas/<urn>`
    schema,
    |app, urn| Kind::ALL.into_iter().find(|kind| kind.urn() == urn).map(|kind| kind.schema(&base(&app)))
);
