//! Secrets for credential helpers: they live an hour at most, and are made anew whenever a client asks its helper.
//!
//! A workload shows its own JWT (RFC 8693); a terminal that somebody has signed in shows its refresh token (see
//! [`super::device`]).

use axum::{
    body::Body,
    http::{HeaderValue, StatusCode, header},
    response::Response,
};
use berth_oci::Repository;
use serde_json::json;

use crate::{
    answer::json_response,
    app::App,
    identity::{
        Credential, Identity, Refusal, Rejection, api_key_scopes::KeyScopes, login_secret::Source, scope::Access,
    },
    observe::Event,
    request::{Decision, RequestInfo, Ruling},
};

/// The grant of RFC 8693.
pub const EXCHANGE_GRANT: &str = "urn:ietf:params:oauth:grant-type:token-exchange";

/// What may be exchanged (RFC 8693, section 3).
const SUBJECT_TOKEN_TYPES: [&str; 2] =
    ["urn:ietf:params:oauth:token-type:jwt", "urn:ietf:params:oauth:token-type:id_token"];

/// How many repositories one secret may name.
const MAX_REPOSITORIES: usize = 8;

/// An error as OAuth 2.0 has them (RFC 6749, section 5.2).
pub fn oauth_error(status: StatusCode, error: &str, description: &str) -> Response {
    let body = json!({"error": error, "error_description": description}).to_string();
    no_store(json_response(status, body))
}

/// JSON that nobody keeps (RFC 6749, section 5.1).
pub fn no_store(mut response: Response<Body>) -> Response {
    response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

/// Why no secret was made.
pub fn refused(app: &App, request: &RequestInfo, refusal: &Refusal) -> Response {
    app.refused(request, None, refusal);
    app.audit.record(&request.origin(), &Event::TokenRefused);
    let (status, error) = match refusal {
        Refusal::Rejected(_) => (StatusCode::BAD_REQUEST, "invalid_grant"),
        Refusal::Throttled(_) => (StatusCode::TOO_MANY_REQUESTS, "slow_down"),
        Refusal::Unavailable(_) => (StatusCode::SERVICE_UNAVAILABLE, "temporarily_unavailable"),
    };
    let mut response = oauth_error(status, error, &refusal.to_string());
    if let Refusal::Throttled(wait) = refusal {
        response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(wait.as_secs() + 1));
    }
    response
}

/// Makes a secret for somebody, and answers with it; and with the terminal's next refresh token, if it is a terminal's.
pub fn answer(
    app: &App,
    request: &RequestInfo,
    identity: &Identity,
    source: Source,
    refresh_token: Option<&str>,
) -> Response {
    let scope = match (&source, &identity.scopes) {
        (Source::Workload { scopes, .. }, _) => scopes.join(" "),
        (Source::Terminal(_), scopes) => scopes.as_ref().map(|scopes| scopes.texts().join(" ")).unwrap_or_default(),
    };
    let (secret, lifetime) = match app.identities.login_secrets.mint(source) {
        Ok(minted) => minted,
        Err(refusal) => return refused(app, request, &refusal),
    };
    // A user name of HTTP has no colon (RFC 7617, section 2); the registry looks at the secret alone.
    let username = if identity.user.contains(':') { "token" } else { &identity.user };
    let mut body = json!({
        "access_token": secret,
        "issued_token_type": "urn:ietf:params:oauth:token-type:access_token",
        "token_type": "N_A",
        "expires_in": lifetime,
        "scope": scope,
        "username": username,
    });
    if let Some(token) = refresh_token {
        body["refresh_token"] = token.into();
    }
    app.metrics.token_issued(request.credential());
    let issued = Event::LoginSecretIssued { scope: &scope };
    app.audit.record(&request.origin(), &issued);
    request.decided(Ruling { decision: Decision::Allowed, rule: None, reason: Some("a login secret".to_owned()) });
    no_store(json_response(StatusCode::OK, body.to_string()))
}

/// Gives a secret for a workload's JWT.
pub async fn exchange(app: &App, request: &RequestInfo, field: impl Fn(&str) -> Option<String>) -> Response {
    let bad_request = |error: &str, description: &str| oauth_error(StatusCode::BAD_REQUEST, error, description);
    let Some(token) = field("subject_token") else {
        return bad_request("invalid_request", "the field subject_token is missing");
    };
    if !field("subject_token_type").is_some_and(|kind| SUBJECT_TOKEN_TYPES.contains(&kind.as_str())) {
        return bad_request("invalid_request", "subject_token_type must be urn:ietf:params:oauth:token-type:jwt");
    }
    let Some(scopes) = scopes(&field("scope").unwrap_or_default()) else {
        let description = "scope must be repository:<name>:pull, or pull,push; of several, each with the same actions";
        return bad_request("invalid_scope", description);
    };
    let live = app.live();
    let shown = Credential::Bearer(token.trim().to_owned());
    match app.identities.identify(&live.verifiers, &shown, &request.connection(None)).await {
        Ok(caller) => {
            request.identified(caller.name(), caller.credential());
            // Of a token of ours it would go further than that, and live longer.
            let whole = caller.is_unrestricted().then_some(caller.identity).flatten();
            let identity = whole.ok_or(Rejection::NoSecretOfThis);
            let made = identity.and_then(|identity| Ok((Source::of_workload(&identity, scopes)?, identity)));
            match made {
                Ok((source, identity)) => answer(app, request, &identity, source, None),
                Err(rejection) => refused(app, request, &rejection.into()),
            }
        }
        Err(refusal) => refused(app, request, &refusal),
    }
}

/// The scopes of an API key that go as far as those of a token: `repository:team/app:pull` is `read` and `team/app`. Nothing, if
/// they would go further.
fn scopes(text: &str) -> Option<Vec<String>> {
    let wanted = text.split_ascii_whitespace().map(Access::parse).collect::<Option<Vec<_>>>()?;
    let Some(first) = wanted.first() else { return Some(Vec::new()) };
    if wanted.len() > MAX_REPOSITORIES || wanted.iter().any(|access| access.actions != first.actions) {
        return None;
    }
    let mut scopes = Vec::new();
    for action in &first.actions {
        scopes.push(match action.as_str() {
            "pull" => "read".to_owned(),
            "push" | "delete" => action.clone(),
            _ => return None,
        });
    }
    if scopes.is_empty() {
        return None;
    }
    for access in &wanted {
        let repository: Repository = access.name.parse().ok().filter(|_| access.kind == "repository")?;
        scopes.push(KeyScopes::only_in(&repository));
    }
    Some(scopes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scopes_go_no_further_than_they_were_asked_for() {
        let read = |text: &str| scopes(text).map(|scopes| scopes.join(" "));
        assert_eq!(read("").as_deref(), Some(""));
        assert_eq!(read("repository:team/app:pull").as_deref(), Some("read team/app"));
        assert_eq!(read("repository:a:pull,push repository:b:pull,push").as_deref(), Some("read push a b"));
        // A repository that is called as an action is none.
        assert_eq!(read("repository:push:pull").as_deref(), Some("read {push}"));
        for wider in [
            "repository:a:pull repository:b:push",
            "repository:a:*",
            "repository:a:",
            "repository:**:pull",
            "registry:catalog:*",
            "read",
            "repository:UPPER:pull",
        ] {
            assert_eq!(read(wider), None, "{wider}");
        }
    }
}
