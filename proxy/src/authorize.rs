//! What becomes of a request: parse it, find out who sends it, decide whether they may.
//!
//! Nothing here knows the server that the request came through, and nothing of the request's body was read yet.

use axum::body::Body;
use berth_oci::{Error, ErrorCode, Operation, Page, Reference};
use http::{
    HeaderMap, HeaderValue, Method, Response, StatusCode, Uri,
    header::{LINK, WWW_AUTHENTICATE},
};
use serde_json::json;

use crate::{
    answer::{denied, error_response, json_response, retry_later_response, unavailable},
    app::App,
    challenge::{ChallengeReason, challenge},
    forward,
    identity::{Caller, ConnectionInfo, Credential, Grant, scope::Access},
    policy::{Circumstances, Decision, Rules, Verdict, WriteCondition},
    request::{RequestInfo, is_our_own},
    route::{Route, route},
};

/// How many repositories a list has at most.
const MAX_LISTED_REPOSITORIES: usize = 1000;

/// What becomes of a request, and whose it is.
pub struct Authorization {
    /// The user's name, or `anonymous`.
    pub user: String,
    /// What becomes of it.
    pub outcome: Outcome,
}

/// What becomes of a request.
pub enum Outcome {
    /// It goes to the registry.
    Forward(Forwarded),
    /// It is for a page of ours.
    Site,
    /// This is the answer.
    Answer(Box<Response<Body>>),
}

/// What goes to the registry.
pub struct Forwarded {
    /// What was authorized.
    pub operation: Operation,
    /// What the registry must check when it writes.
    pub condition: WriteCondition,
    /// Whose it is, by name; empty for nobody.
    pub user: String,
}

/// Why a request isn't forwarded.
struct Refused {
    /// Which credential could help; none, if the caller has shown all that they have.
    because: Option<ChallengeReason>,
    /// What the challenge asks for.
    needed: Option<Access>,
    message: String,
}

/// Parse, identify, decide.
pub async fn authorize(
    app: &App,
    method: &Method,
    uri: &Uri,
    headers: &HeaderMap,
    info: &RequestInfo,
) -> Authorization {
    let nobody = |outcome| Authorization { user: "anonymous".to_owned(), outcome };
    let operation = match route(method, uri) {
        Ok(Route::Site) => return nobody(Outcome::Site),
        Ok(Route::Registry(operation)) => operation,
        Err(error) => return nobody(at_once(error_response(&error.into()))),
    };
    let credential = match Credential::from_headers(headers, app.session_cookie()) {
        Ok(credential) => credential,
        Err(malformed) => {
            let error = Error::new(StatusCode::BAD_REQUEST, ErrorCode::Unauthorized, malformed.to_string());
            return nobody(at_once(error_response(&error)));
        }
    };
    let live = app.live();
    let upload = forward::upload_of(&operation).map(|id| id.as_str());
    let arrival = ConnectionInfo { client: info.client, certificate: info.certificate.as_deref(), upload };
    let caller = match app.identities.identify(&live.verifiers, &credential, &arrival).await {
        Ok(caller) => caller,
        Err(refusal) => {
            tracing::info!(request = info.id, client = ?info.client, reason = %refusal, "a credential was refused");
            if let Some(answer) = retry_later_response(&refusal) {
                return nobody(at_once(answer));
            }
            let needed = Access::needed(&operation);
            let refused = Refused { because: Some(ChallengeReason::Invalid), needed, message: refusal.to_string() };
            return nobody(at_once(refuse(app, headers, &refused)));
        }
    };
    let user = caller.name().to_owned();
    let by_cookie = matches!(credential, Credential::Session(_));
    if by_cookie && !method.is_safe() && !is_our_own(headers, &app.external_url) {
        let outcome = at_once(error_response(&denied("the request came from another site's page")));
        return Authorization { user, outcome };
    }
    let circumstances = info.circumstances(method);
    let outcome = match authorize_operation(&live.rules, operation, &caller, &circumstances) {
        Ok(Forwarded { operation: Operation::ListRepositories(page), .. }) => {
            at_once(list_repositories(app, &live.rules, &page, &caller, &circumstances).await)
        }
        Ok(forwarded) => match check_tag_precondition(app, &forwarded).await {
            Ok(()) => Outcome::Forward(forwarded),
            Err(error) => at_once(error_response(&error)),
        },
        Err(refused) => {
            tracing::debug!(request = info.id, user, reason = refused.message, "refused");
            at_once(refuse(app, headers, &refused))
        }
    };
    Authorization { user, outcome }
}

/// Whether the caller may do this, with that token; if not, whether another credential could help.
fn authorize_operation(
    rules: &Rules,
    mut operation: Operation,
    caller: &Caller,
    circumstances: &Circumstances,
) -> Result<Forwarded, Refused> {
    let identity = caller.identity.as_deref();
    let needed = Access::needed(&operation);
    let refused = |because, message: &str| {
        Err(Refused { because, needed: Access::needed(&operation), message: message.to_owned() })
    };
    let anonymous = matches!((&caller.grant, identity), (Grant::Everything, None));
    let hopeless_list = matches!(operation, Operation::ListRepositories(_)) && !rules.has_anonymous();
    // On a 200 to an anonymous ping, docker and podman would never send their credentials.
    if anonymous && (operation == Operation::Ping || hopeless_list) {
        return refused(Some(ChallengeReason::Missing), "sign in first");
    }
    if let (Grant::Token(access), Some(needed)) = (&caller.grant, &needed)
        && !access.iter().any(|own| own.covers(needed))
    {
        let message = format!("requested access to the resource is denied: the token doesn't grant {needed}");
        return refused(Some(ChallengeReason::Insufficient), &message);
    }
    let condition = match rules.authorize(identity, &operation, circumstances) {
        Verdict::Allowed(condition) => condition,
        Verdict::Denied(Decision { rule, message, .. }) => {
            tracing::debug!(user = caller.name(), rule, "denied");
            let because = match (&caller.grant, identity) {
                (Grant::Token(_), _) => Some(ChallengeReason::Insufficient),
                (Grant::Everything, None) => Some(ChallengeReason::Missing),
                (Grant::Everything, Some(_)) => None,
            };
            let denied = "requested access to the resource is denied";
            let message = message.map_or_else(|| denied.to_owned(), |message| format!("{denied}: {message}"));
            return refused(because, &message);
        }
    };
    // Who may not read the source of a mount mounts from nowhere, and uploads.
    if let Operation::MountBlob { from, .. } = &mut operation
        && from.as_ref().is_some_and(|from| !rules.may_read(identity, from.as_str(), circumstances))
    {
        *from = None;
    }
    let user = identity.map(|identity| identity.user.clone()).unwrap_or_default();
    Ok(Forwarded { operation, condition, user })
}

/// In front of a registry that knows no conditions: whether the one of this push holds. Two pushes at once may both be
/// told that it does.
async fn check_tag_precondition(app: &App, forwarded: &Forwarded) -> Result<(), Error> {
    if forwarded.condition == WriteCondition::None || app.registry.knows_conditions() {
        return Ok(());
    }
    let Operation::PushManifest { repository, reference, tags } = &forwarded.operation else { return Ok(()) };
    let tags = match reference {
        Reference::Tag(tag) => std::slice::from_ref(tag),
        Reference::Digest(_) => tags,
    };
    for tag in tags {
        let exists = app.registry.has_tag(repository, tag).await.map_err(|error| {
            tracing::error!(%error, "a tag can't be looked up");
            unavailable("the registry behind this proxy does not answer")
        })?;
        if exists != (forwarded.condition == WriteCondition::OnlyUpdate) {
            return Err(denied(forwarded.condition.refusal()));
        }
    }
    Ok(())
}

/// `_catalog`: what the caller may read, in full pages.
async fn list_repositories(
    app: &App,
    rules: &Rules,
    page: &Page,
    caller: &Caller,
    circumstances: &Circumstances,
) -> Response<Body> {
    let n = page.n.unwrap_or(MAX_LISTED_REPOSITORIES).min(MAX_LISTED_REPOSITORIES);
    let readable = |name: &str| rules.may_read(caller.identity.as_deref(), name, circumstances);
    let (names, more) = match app.registry.repositories(n, page.last.clone(), readable).await {
        Ok(found) => found,
        Err(error) => {
            tracing::error!(%error, "repositories can't be listed");
            return error_response(&unavailable("the registry behind this proxy does not answer"));
        }
    };
    let next = Page { n: Some(n), last: names.last().cloned() };
    let mut response = json_response(StatusCode::OK, json!({"repositories": names}).to_string());
    if more && next.last.is_some() {
        let link = format!("<{}>; rel=\"next\"", next.append_to("/v2/_catalog".to_owned()));
        if let Ok(link) = HeaderValue::from_str(&link) {
            response.headers_mut().insert(LINK, link);
        }
    }
    response
}

/// 401 with a challenge if another credential could help, or else 403.
fn refuse(app: &App, headers: &HeaderMap, refused: &Refused) -> Response<Body> {
    let Some(because) = refused.because else { return error_response(&denied(&refused.message)) };
    let error = Error::new(StatusCode::UNAUTHORIZED, ErrorCode::Unauthorized, &refused.message);
    let mut response = error_response(&error);
    // zot's user interface asks for no challenge: a browser would show its own password box.
    let challenged = headers.get("x-zot-api-client").is_none_or(|client| client != "zot-ui");
    if challenged && let Ok(challenge) = HeaderValue::from_str(&challenge(app, refused.needed.as_ref(), because)) {
        response.headers_mut().insert(WWW_AUTHENTICATE, challenge);
    }
    response
}

fn at_once(response: Response<Body>) -> Outcome {
    Outcome::Answer(Box::new(response))
}
