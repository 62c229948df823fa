//! What becomes of a request: parse it, find out who sends it, decide whether they may.
//!
//! Nothing here knows the server that the request came through, and nothing of the request's body was read yet.

use axum::body::Body;
use berth_oci::{Error, ErrorCode, Operation, Reference, Repository};
use http::{HeaderMap, HeaderValue, Method, Response, StatusCode, Uri, header::WWW_AUTHENTICATE};

use crate::{
    action::Action,
    answer::{denied, error_response, retry_later_response, unavailable},
    app::{App, Reloadable},
    challenge::{ChallengeReason, challenge},
    forward,
    identity::{Caller, Credential, Grant, Identity, scope::Access, token::Push},
    lists,
    policy::{Circumstances, Question, Rule, Rules, Verdict, WriteCondition},
    registry::RegistryError,
    request::{Decision, RequestInfo, Ruling, is_our_own},
    route::{Route, route},
};

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
    /// The name of the token that it was shown with, if it was one of ours.
    pub token: Option<String>,
    /// Whether it goes to the mirror, which fetches what the registry lacks.
    pub to_mirror: bool,
}

/// Why a request isn't forwarded.
struct Refused {
    /// Which credential could help; none, if the caller has shown all that they have.
    because: Option<ChallengeReason>,
    message: String,
    /// What decided, if the rules did.
    rule: Option<String>,
}

/// Parse, identify, decide.
pub async fn authorize(app: &App, method: &Method, uri: &Uri, headers: &HeaderMap, info: &RequestInfo) -> Outcome {
    let operation = match route(method, uri) {
        Ok(Route::Site(kind)) => {
            info.asks_for(kind);
            return Outcome::Site;
        }
        Ok(Route::Registry(operation)) => operation,
        Err(error) => return at_once(error_response(&error.into())),
    };
    info.asks_for(operation.name());
    let credential = match Credential::from_headers(headers, app.session_cookie()) {
        Ok(credential) => credential,
        Err(malformed) => {
            let error = Error::new(StatusCode::BAD_REQUEST, ErrorCode::Unauthorized, malformed.to_string());
            return at_once(error_response(&error));
        }
    };
    let live = app.live();
    // What a token must grant, and a challenge asks for.
    let needed = Access::needed(&operation);
    let connection = info.connection(push_of(&operation));
    let caller = match app.identities.identify(&live.verifiers, &credential, &connection).await {
        Ok(caller) => caller,
        Err(refusal) => {
            app.refused(info, credential.claimed_user(), &refusal);
            if let Some(answer) = retry_later_response(&refusal) {
                return at_once(answer);
            }
            let refused = Refused { because: Some(ChallengeReason::Invalid), message: refusal.to_string(), rule: None };
            return at_once(refuse(app, headers, needed.as_ref(), &refused));
        }
    };
    info.identified(caller.name(), caller.credential());
    let is_ambient = credential.is_ambient(info.certificate.is_some());
    if is_ambient && !method.is_safe() && !is_our_own(headers, &app.external_url) {
        let reason = "the request came from another site's page";
        info.decided(Ruling { decision: Decision::Denied, rule: None, reason: Some(reason.to_owned()) });
        return at_once(error_response(&denied(reason)));
    }
    let circumstances = info.circumstances(method);
    let authorized = authorize_operation(&live, operation, needed.as_ref(), &caller, &circumstances);
    info.decided(ruling(&authorized));
    match authorized.map(|(forwarded, _)| forwarded) {
        Ok(forwarded) if app.mirrors && may_fetch(&live, &forwarded.operation, &caller, &circumstances) => {
            let to_mirror = is_wanting(app, &forwarded.operation).await;
            Outcome::Forward(Forwarded { to_mirror, ..forwarded })
        }
        Ok(Forwarded { operation, .. }) if lists::is_filtered(&operation) => {
            let reader = lists::Reader { rules: &live.rules, caller: &caller, circumstances: &circumstances };
            at_once(lists::answer(app, &operation, &reader, headers).await)
        }
        Ok(forwarded) => match check_tag_precondition(app, &forwarded).await {
            Ok(()) => Outcome::Forward(forwarded),
            Err(error) => at_once(error_response(&error)),
        },
        Err(refused) => at_once(refuse(app, headers, needed.as_ref(), &refused)),
    }
}

/// What was decided, for the log.
fn ruling(authorized: &Result<(Forwarded, Option<Rule<'_>>), Refused>) -> Ruling {
    match authorized {
        Ok((_, rule)) => {
            Ruling { decision: Decision::Allowed, rule: rule.as_ref().map(ToString::to_string), reason: None }
        }
        Err(Refused { because, message, rule }) => {
            // Every client begins without a credential.
            let missing = *because == Some(ChallengeReason::Missing);
            let decision = if missing { Decision::Challenged } else { Decision::Denied };
            Ruling { decision, rule: rule.clone(), reason: Some(message.clone()) }
        }
    }
}

/// The push that a request is a part of.
fn push_of(operation: &Operation) -> Option<Push<'_>> {
    match operation {
        Operation::PushManifest { repository, .. } => Some(Push::Manifest(repository.as_str())),
        _ => forward::upload_of(operation).map(|id| Push::Upload(id.as_str())),
    }
}

/// Whether the caller may do this: whether the rules allow it, and what they have shown goes so far. If not, whether
/// another credential could help.
fn authorize_operation<'a>(
    live: &'a Reloadable,
    mut operation: Operation,
    needed: Option<&Access>,
    caller: &Caller,
    circumstances: &Circumstances,
) -> Result<(Forwarded, Option<Rule<'a>>), Refused> {
    let identity = caller.identity.as_deref();
    let anonymous = match (&caller.grant, identity) {
        (_, Some(_)) => None,
        // Nobody can be anybody else here.
        (_, None) if live.verifiers.is_nobody() => None,
        (Grant::Everything, None) => Some(ChallengeReason::Missing),
        (Grant::Token { .. }, None) => Some(ChallengeReason::Insufficient),
    };
    // On a 200 to an anonymous ping, docker and podman would never send their credentials; on one to the catalogue, regctl
    // and oras wouldn't. An anonymous token is given what everybody may see.
    let for_clients =
        matches!(operation, Operation::Ping | Operation::ListRepositories(_) | Operation::DescribeRepositories(_));
    if for_clients && anonymous == Some(ChallengeReason::Missing) {
        return Err(Refused { because: anonymous, message: "sign in first".to_owned(), rule: None });
    }
    let (condition, rule) = match live.rules.authorize(identity, &operation, circumstances) {
        Verdict::Allowed(condition, rule) => (condition, rule),
        Verdict::Denied(decision) => {
            let mut message = denial(&live.rules, identity, &operation);
            if let Some(why) = decision.message() {
                message.push_str(&format!(": {why}"));
            }
            let rule = Some(decision.rule.to_string());
            return Err(Refused { because: anonymous, message, rule });
        }
    };
    if let Some(needed) = needed.filter(|needed| !caller.grant.covers(needed)) {
        let message = format!("requested access to the resource is denied: the token doesn't grant {needed}");
        let because = Some(ChallengeReason::Insufficient);
        return Err(Refused { because, message, rule: None });
    }
    // Who may not pull the source of a mount mounts from nowhere, and uploads.
    if let Operation::MountBlob { from, digest, .. } = &mut operation {
        let may_pull = |from: &Repository| {
            caller.grant.covers(&Access::pull(from)) && live.rules.may_mount_from(identity, from, digest, circumstances)
        };
        *from = from.take().filter(may_pull);
    }
    let user = identity.map(|identity| identity.user.clone()).unwrap_or_default();
    Ok((
        Forwarded { operation, condition, user, token: caller.grant.token().map(str::to_owned), to_mirror: false },
        rule,
    ))
}

/// Whether what is pulled may be fetched for the caller from where it is mirrored.
fn may_fetch(live: &Reloadable, operation: &Operation, caller: &Caller, circumstances: &Circumstances) -> bool {
    use Operation as Op;
    let is_pull = matches!(
        operation,
        Op::HeadManifest { .. } | Op::PullManifest { .. } | Op::HeadBlob { .. } | Op::PullBlob { .. }
    );
    let (Some(repository), true) = (operation.repository(), is_pull) else { return false };
    let (reference, repository) = (operation.reference(), repository.as_str());
    let question = Question { action: Action::Read, repository, reference: reference.as_ref() };
    live.rules.may_fetch(caller.identity.as_deref(), &question, circumstances)
}

/// Whether the registry lacks what is pulled, or may have an old one: of what a digest names there is but one.
async fn is_wanting(app: &App, operation: &Operation) -> bool {
    let found = match operation {
        Operation::HeadManifest { repository, reference: reference @ Reference::Digest(_) }
        | Operation::PullManifest { repository, reference: reference @ Reference::Digest(_) } => {
            app.registry.find_manifest(repository, reference).await.map(|found| found.is_some())
        }
        Operation::HeadBlob { repository, digest } | Operation::PullBlob { repository, digest } => {
            app.registry.has_blob(repository, digest).await
        }
        _ => return true,
    };
    // A registry that doesn't answer says so itself.
    !found.unwrap_or(true)
}

/// How many groups a denial names.
const MAX_GROUPS_NAMED: usize = 5;

/// What a client is told that may not do something: who it is here, and what it asked for, and nothing of what there is.
fn denial(rules: &Rules, identity: Option<&Identity>, operation: &Operation) -> String {
    let who = identity.map_or_else(
        || "who shows no credential".to_owned(),
        |identity| {
            let mut groups = rules.groups_of(identity);
            if groups.len() > MAX_GROUPS_NAMED {
                groups.truncate(MAX_GROUPS_NAMED);
                groups.push("…".to_owned());
            }
            let groups = if groups.is_empty() { String::new() } else { format!(" ({})", groups.join(", ")) };
            format!("{}{groups}", identity.user)
        },
    );
    format!("requested access to the resource is denied: {who} may not {}", described(operation))
}

/// A request in a few words.
fn described(operation: &Operation) -> String {
    use Operation as Op;
    let repository = operation.repository().map(Repository::as_str).unwrap_or_default();
    let target = match operation.reference() {
        Some(Reference::Tag(tag)) => format!("{repository}:{tag}"),
        _ => repository.to_owned(),
    };
    match operation {
        Op::Ping => "use this registry".to_owned(),
        Op::ListRepositories(_) | Op::DescribeRepositories(_) => "list repositories".to_owned(),
        Op::ListTags { .. } | Op::DescribeTags { .. } | Op::DescribeUsage { .. } | Op::ListReferrers { .. } => {
            format!("list {target}")
        }
        Op::ListHolders { .. }
        | Op::HeadManifest { .. }
        | Op::PullManifest { .. }
        | Op::HeadBlob { .. }
        | Op::PullBlob { .. } => {
            format!("pull from {target}")
        }
        Op::DeleteManifest { .. } | Op::DeleteBlob { .. } => format!("delete from {target}"),
        Op::PushManifest { .. }
        | Op::StartUpload { .. }
        | Op::PushBlob { .. }
        | Op::MountBlob { .. }
        | Op::UploadStatus(_)
        | Op::UploadChunk(_)
        | Op::FinishUpload { .. }
        | Op::CancelUpload(_) => format!("push to {target}"),
    }
}

/// In front of a registry that knows no conditions: whether the one of this push holds. Two pushes at once may both be
/// told that it does.
async fn check_tag_precondition(app: &App, forwarded: &Forwarded) -> Result<(), Error> {
    if forwarded.condition == WriteCondition::None {
        return Ok(());
    }
    let Operation::PushManifest { repository, reference, tags } = &forwarded.operation else { return Ok(()) };
    let away = |error: RegistryError| {
        tracing::error!(%error, "the condition of a push can't be checked");
        unavailable("the registry behind this proxy does not answer")
    };
    if app.registry.knows_conditions().await.map_err(away)? {
        return Ok(());
    }
    let tags = match reference {
        Reference::Tag(tag) => std::slice::from_ref(tag),
        Reference::Digest(_) => tags,
    };
    for tag in tags {
        let reference = Reference::Tag(tag.clone());
        let exists = app.registry.find_manifest(repository, &reference).await.map_err(away)?.is_some();
        if exists != (forwarded.condition == WriteCondition::OnlyUpdate) {
            return Err(denied(forwarded.condition.refusal()));
        }
    }
    Ok(())
}

/// 401 with a challenge if another credential could help, or else 403.
fn refuse(app: &App, headers: &HeaderMap, needed: Option<&Access>, refused: &Refused) -> Response<Body> {
    let Some(because) = refused.because else { return error_response(&denied(&refused.message)) };
    let error = Error::new(StatusCode::UNAUTHORIZED, ErrorCode::Unauthorized, &refused.message);
    let mut response = error_response(&error);
    // zot's user interface asks for no challenge: a browser would show its own password box.
    let challenged = headers.get("x-zot-api-client").is_none_or(|client| client != "zot-ui");
    if challenged && let Ok(challenge) = HeaderValue::from_str(&challenge(app, needed, because)) {
        response.headers_mut().insert(WWW_AUTHENTICATE, challenge);
    }
    response
}

fn at_once(response: Response<Body>) -> Outcome {
    Outcome::Answer(Box::new(response))
}
