//! The token service (the registry token specification): a client shows a credential and gets a short-lived bearer
//! token for what it is about to do.
//!
//! What was asked for and isn't granted is left out, and that is no error; a wrong credential is. A job that shows a JWT
//! and asks for it gets a refresh token too, since its JWT ends long before its build.

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

use super::{
    api_keys::database_failed,
    device::{self, DEVICE_GRANT},
    login_secret::{self, EXCHANGE_GRANT},
};
use crate::{
    action::Action,
    answer::{denied, error_response, retry_later_response},
    app::{App, Reloadable},
    identity::{AuthMethod, Caller, Credential, Grant, Identity, Refusal, Rejection, scope::Access, terminal},
    observe::Event,
    request::{Decision, RequestInfo, Ruling, is_our_own},
};

/// How many scopes one token may have: it travels in a header.
const MAX_SCOPES: usize = 64;

/// What a client asks for.
struct Wanted {
    scopes: String,
    /// Whether it would like a refresh token.
    offline: bool,
    /// Whether it asks in the way of OAuth 2.0, and is told what it got.
    oauth: bool,
}

/// `GET`: with Basic, or with nothing for an anonymous token.
pub async fn by_query(
    State(app): State<Arc<App>>,
    Extension(request): Extension<RequestInfo>,
    RawQuery(query): RawQuery,
    headers: HeaderMap,
) -> Response {
    let query = query.unwrap_or_default();
    let all = |name: &str| {
        let fields = form_urlencoded::parse(query.as_bytes()).filter(|(key, _)| key == name);
        fields.map(|(_, value)| value.into_owned()).collect::<Vec<_>>()
    };
    let offline = all("offline_token").iter().any(|value| value == "true");
    let wanted = Wanted { scopes: all("scope").join(" "), offline, oauth: false };
    let live = app.live();
    let caller = match credential(&app, &headers) {
        Ok(credential) => identify(&app, &live, &request, &credential).await,
        Err(error) => Err(error_response(&error)),
    };
    answer(&app, &live, &request, caller, &wanted).await
}

/// `POST`: OAuth 2.0's password grant, or its refresh token grant; and what credential helpers ask for.
pub async fn by_form(
    State(app): State<Arc<App>>,
    Extension(request): Extension<RequestInfo>,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    let field =
        |name: &str| form_urlencoded::parse(&body).find(|(key, _)| key == name).map(|(_, value)| value.into_owned());
    let offline = field("access_type").is_some_and(|access| access == "offline");
    let wanted = Wanted { scopes: field("scope").unwrap_or_default(), offline, oauth: true };
    let live = app.live();
    let text = |name: &str| field(name).unwrap_or_default();
    match field("grant_type").as_deref() {
        Some(DEVICE_GRANT) => return device::redeem(&app, &request, &text("device_code")).await,
        Some(EXCHANGE_GRANT) => return login_secret::exchange(&app, &request, field).await,
        Some("refresh_token") if terminal::is_refresh_token(&text("refresh_token")) => {
            let retry = field("retry").filter(|retry| !retry.is_empty());
            return device::renew(&app, &request, &text("refresh_token"), retry.as_deref()).await;
        }
        _ => {}
    }
    let shown = match field("grant_type").as_deref() {
        Some("password") => match (field("username"), field("password")) {
            (Some(user), Some(password)) => Ok(Credential::Basic { user, password }),
            _ => credential(&app, &headers),
        },
        Some("refresh_token") => Ok(Credential::RefreshToken(text("refresh_token"))),
        _ => {
            let message = "grant_type must be 'password', 'refresh_token', or one of RFC 8628 or 8693, in a form \
                           (application/x-www-form-urlencoded)";
            Err(Error::new(StatusCode::BAD_REQUEST, ErrorCode::Unsupported, message))
        }
    };
    let caller = match shown {
        Ok(shown) if shown.is_ambient(request.certificate.is_some()) && !is_our_own(&headers, &app.external_url) => {
            Err(error_response(&denied("the request came from another site's page")))
        }
        Ok(shown) => identify(&app, &live, &request, &shown).await,
        Err(error) => Err(error_response(&error)),
    };
    answer(&app, &live, &request, caller, &wanted).await
}

/// `POST /zot/auth/revoke` (RFC 7009): ends a refresh token, or the terminal that has it. Whoever has it may end it, and is told no more than that
/// it is over.
pub async fn revoke(State(app): State<Arc<App>>, Extension(request): Extension<RequestInfo>, body: Bytes) -> Response {
    let token = form_urlencoded::parse(&body).find(|(key, _)| key == "token").map(|(_, value)| value.into_owned());
    let token = token.unwrap_or_default();
    if terminal::is_refresh_token(&token) {
        return match app.identities.terminals.end_by_token(&token).await {
            Ok(ended) => {
                if let Some(terminal) = ended {
                    tracing::info!(request = request.id, terminal, "a terminal was signed out");
                    app.audit.record(&request.origin(), &Event::TerminalEnded { terminal: &terminal });
                }
                StatusCode::OK.into_response()
            }
            Err(error) => error_response(&database_failed(error)),
        };
    }
    match app.identities.refresh_tokens.revoke(&token).await {
        Ok(there) => {
            if there {
                tracing::info!(request = request.id, "a refresh token was revoked");
                app.audit.record(&request.origin(), &Event::RefreshTokenRevoked);
            }
            StatusCode::OK.into_response()
        }
        Err(error) => error_response(&database_failed(error)),
    }
}

/// The credential in the header. A cookie doesn't count: a browser sends that of itself.
fn credential(app: &App, headers: &HeaderMap) -> Result<Credential, Error> {
    match Credential::from_headers(headers, app.session_cookie()) {
        Ok(Credential::Session(_)) => Ok(Credential::None),
        Ok(credential) => Ok(credential),
        Err(malformed) => Err(Error::new(StatusCode::BAD_REQUEST, ErrorCode::Unauthorized, malformed.to_string())),
    }
}

async fn identify(
    app: &App,
    live: &Reloadable,
    request: &RequestInfo,
    credential: &Credential,
) -> Result<Caller, Response> {
    let found = app.identities.identify(&live.verifiers, credential, &request.connection(None)).await;
    let caller = found.map_err(|refusal| refused(app, request, credential.claimed_user(), &refusal))?;
    request.identified(caller.name(), caller.credential());
    Ok(caller)
}

fn refused(app: &App, request: &RequestInfo, tried: Option<&str>, refusal: &Refusal) -> Response {
    app.refused(request, tried, refusal);
    app.audit.record(&request.origin(), &Event::TokenRefused);
    retry_later_response(refusal).unwrap_or_else(|| {
        error_response(&Error::new(StatusCode::UNAUTHORIZED, ErrorCode::Unauthorized, refusal.to_string()))
    })
}

/// Makes the token. Without `issued_at`, which docker and podman would compare with their own clock.
async fn answer(
    app: &App,
    live: &Reloadable,
    request: &RequestInfo,
    caller: Result<Caller, Response>,
    wanted: &Wanted,
) -> Response {
    let caller = match caller {
        Ok(caller) => caller,
        Err(response) => return response,
    };
    // A token made of a token would outlive it.
    let minted = match (&caller.grant, caller.identity.as_deref()) {
        (Grant::Token { .. }, _) => Err(Rejection::NoTokenOfThis.into()),
        (Grant::Everything, identity) => {
            let scopes = wanted.scopes.split_ascii_whitespace().filter_map(Access::parse).take(MAX_SCOPES);
            let granted: Vec<Access> = scopes.filter_map(|access| grant(live, identity, access)).collect();
            app.identities.tokens.mint(identity, granted.clone()).map(|minted| (minted, granted))
        }
    };
    let ((token, lifetime), granted) = match minted {
        Ok(minted) => minted,
        Err(refusal) => return refused(app, request, None, &refusal),
    };
    let scope = granted.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ");
    let mut body = json!({"token": token, "access_token": token, "expires_in": lifetime});
    if wanted.oauth {
        body["scope"] = scope.as_str().into();
    }
    let mut has_refresh_token = false;
    if let (true, Some(identity)) = (wanted.offline, caller.identity.as_deref())
        && let Some(issuer) = issuer_of(identity)
    {
        match app.identities.refresh_tokens.create(issuer, &identity.claims).await {
            Ok(text) => {
                body["refresh_token"] = text.into();
                has_refresh_token = true;
            }
            Err(error) => return error_response(&database_failed(error)),
        }
    }
    app.metrics.token_issued(request.credential());
    // Every client begins with one that says nothing of anybody.
    if caller.identity.is_some() {
        app.audit.record(&request.origin(), &Event::TokenIssued { scope: &scope, refresh_token: has_refresh_token });
    }
    let reason = (!scope.is_empty()).then(|| format!("a token for {scope}"));
    request.decided(Ruling { decision: Decision::Allowed, rule: None, reason });
    let headers = [(header::CONTENT_TYPE, "application/json"), (header::CACHE_CONTROL, "no-store")];
    (headers, body.to_string()).into_response()
}

/// The issuer of the workload's JWT that somebody has shown. Of another credential no refresh token is made: people have
/// API keys, and a token of a provider's must not outlive what its owner does there.
fn issuer_of(identity: &Identity) -> Option<&str> {
    match &identity.method {
        AuthMethod::Workload(issuer) => Some(issuer),
        _ => None,
    }
}

/// As much of what is wanted as the rules allow; nothing if that is nothing.
///
/// Conditions may look at a tag, which isn't known yet: where they refuse without one, the token says no more than that,
/// and they are asked again when it is used.
fn grant(live: &Reloadable, identity: Option<&Identity>, wanted: Access) -> Option<Access> {
    let all = wanted.actions.iter().any(|action| action == "*");
    let asks = |action: &str| all || wanted.actions.iter().any(|wanted| wanted == action);
    let actions: Vec<String> = match wanted.kind.as_str() {
        "repository" => {
            let repository: Repository = wanted.name.parse().ok()?;
            let may = |action| live.rules.may_under_some_condition(identity, action, repository.as_str());
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
        "registry" if wanted.name == "catalog" && (identity.is_some() || live.rules.has_anonymous()) => {
            vec!["*".to_owned()]
        }
        _ => Vec::new(),
    };
    (!actions.is_empty()).then_some(Access { actions, ..wanted })
}
