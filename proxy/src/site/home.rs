//! The first page: a way in, or who you are, what you may read, and your API keys.

use std::sync::Arc;

use axum::{
    Extension, Form,
    extract::State,
    http::{HeaderMap, StatusCode},
    response::{IntoResponse, Redirect, Response},
};
use maud::{Markup, html};
use serde::Deserialize;
use time::{OffsetDateTime, macros::format_description};

use super::{
    api_keys::{MAX_LABEL_CHARS, key_created, key_revoked, must_be_scopes, too_many_keys, user_agent},
    browser_session::{BrowserSession, Owner, browser_session, clear_cookie, with_cookies},
    page::{self, Page},
};
use crate::{
    app::App,
    identity::{AuthMethod, Identity, Rejection, api_key::WantedKey},
    observe::Event,
    request::{RequestInfo, is_our_own},
    store::{ApiKey, PersonId, Session, now},
};

/// How many repositories the page lists.
const MAX_LISTED_REPOSITORIES: usize = 200;

/// `GET /`
pub async fn show(
    State(app): State<Arc<App>>,
    Extension(request): Extension<RequestInfo>,
    headers: HeaderMap,
) -> Response {
    match browser_session(&app, &request, &headers).await {
        Ok(BrowserSession::Known(owner)) => signed_in(&app, &owner, None, &request).await,
        Ok(BrowserSession::Unknown) => signed_out(&app, None),
        Ok(BrowserSession::Ended(rejection)) => {
            let notice = match rejection {
                Rejection::UnknownSession => "Your session has ended. Sign in again to go on.".to_owned(),
                other => format!("Your session has ended: {other}."),
            };
            with_cookies(signed_out(&app, Some(&notice)), clear_cookie(&app, app.session_cookie()))
        }
        Err(error) => database_failed(&error, &request),
    }
}

fn database_failed(error: &dyn std::fmt::Display, request: &RequestInfo) -> Response {
    tracing::error!(request = request.id, %error, "a page can't be shown");
    let reason = "the registry's database can't be reached, so nobody can be recognized now";
    page::refusal(StatusCode::SERVICE_UNAVAILABLE, "Try again later", reason, &request.id).into_response()
}

fn signed_out(app: &App, notice: Option<&str>) -> Response {
    let body = html! {
        h1 { "Sign in" }
        @if let Some(notice) = notice { p role="status" class="reason" { (notice) } }
        p { "This is the private container registry " code { (app.external_url.authority()) } "." }
        @if app.live().providers().is_empty() {
            p {
                "Nobody signs in with a browser here: no identity provider is configured. Clients log in with the name and "
                "password that whoever runs this registry has given you:"
            }
            pre { "docker login " (app.external_url.authority()) }
        }
        @for provider in app.live().providers() {
            p {
                a class="button" href={ "/zot/auth/login?provider=" (provider.config.id) "&callback_ui=/" } {
                    "SIGN IN WITH " (provider.config.name)
                }
            }
        }
    };
    Page::new(StatusCode::OK, "Sign in", body).into_response()
}

/// A key that has just been made: the only time that it is shown.
struct NewKey {
    text: String,
    label: String,
}

async fn signed_in(app: &App, owner: &Owner, new_key: Option<NewKey>, request: &RequestInfo) -> Response {
    let Owner { identity, id } = owner;
    let known = async {
        let standing = app.identities.standings.of(id, &identity.user).await.map_err(|e| e.to_string())?;
        let keys = app.identities.keys.of(id).await.map_err(|e| e.to_string())?;
        let sessions = app.identities.sessions.of(id).await.map_err(|e| e.to_string())?;
        Ok::<_, String>((standing, keys, sessions))
    };
    let (standing, keys, sessions) = match known.await {
        Ok(known) => known,
        Err(error) => return database_failed(&error, request),
    };
    let unconfirmed_since = standing.and_then(|standing| standing.unconfirmed_since);
    let (live, circumstances) = (app.live(), request.circumstances(&http::Method::GET));
    let readable = |name: &str| live.rules.may_read(Some(&**identity), name, &circumstances);
    let repositories = app.registry.repositories(MAX_LISTED_REPOSITORIES, None, readable).await;
    let groups = live.rules.groups_of(identity);
    let body = html! {
        h1 { "Signed in as " (identity.user) }
        @if groups.is_empty() { p { "You are in no group." } } @else {
            p { "Your groups: " @for (i, group) in groups.iter().enumerate() { @if i > 0 { ", " } (group) } }
        }
        @if let Some(since) = unconfirmed_since { (unconfirmed_notice(app, since, id)) }
        form method="post" action="/zot/auth/logout" { button class="quiet" { "Sign out" } }
        @if let Some(new) = &new_key { (shown_once(app, identity, new)) }
        h2 { "Repositories" }
        @match &repositories {
            Err(error) => {
                @let () = tracing::error!(request = request.id, %error, "repositories can't be listed");
                p role="alert" class="reason" { "The registry behind this page does not answer now." }
            }
            Ok((names, _)) if names.is_empty() => p { "There is no repository that you may read yet." },
            Ok((names, more)) => {
                ul { @for name in names { li { code { (app.external_url.authority()) "/" (name) } } } }
                @if *more { p class="small" { "These are the first " (MAX_LISTED_REPOSITORIES) "." } }
            }
        }
        @if app.identities.api_keys { (key_section(&keys)) }
        (session_section(&sessions, identity))
    };
    Page::new(StatusCode::OK, "Signed in", body).into_response()
}

/// What somebody is told whose provider can't be asked about them any more.
fn unconfirmed_notice(app: &App, since: i64, id: &PersonId) -> Markup {
    let grace = i64::try_from(app.identities.renewals.grace().as_secs()).unwrap_or(i64::MAX);
    html! {
        p role="status" class="reason" {
            "Since " (day(Some(since), "")) " your identity provider can't be asked about you. Until it can, or until you "
            a href={ "/zot/auth/login?provider=" (id.provider) "&callback_ui=/" } { "sign in again" }
            ", your sessions and API keys go on as they are, and at " (day(Some(since.saturating_add(grace)), ""))
            " they stop."
        }
    }
}

fn shown_once(app: &App, identity: &Identity, new: &NewKey) -> Markup {
    html! {
        section class="once" role="status" {
            h2 { "Your new API key “" (new.label) "”" }
            p { "Copy it now: it is not shown again." }
            pre id="new-key" { (new.text) }
            p { "Sign in with it:" }
            pre { "docker login -u " (identity.user) " " (app.external_url.authority()) }
        }
    }
}

fn key_section(keys: &[ApiKey]) -> Markup {
    html! {
        h2 { "API keys" }
        p { "A key is the password of " code { "docker login" } ", podman, helm and CI jobs. It may do what you may." }
        @if !keys.is_empty() {
            table {
                thead { tr { th { "Name" } th { "For" } th { "Made" } th { "Expires" } th { "Last used" } th { "" } } }
                tbody { @for key in keys { tr {
                    td { (key.label) }
                    td { @if key.scopes.is_empty() { "everything" } @else { (key.scopes.join(" ")) } }
                    td { (day(Some(key.created_at), "")) }
                    td { @if key.is_expired() { "expired" } @else { (day(key.expires_at, "never")) } }
                    td { (day(key.used_at, "never")) }
                    td { form method="post" action="/keys/revoke" {
                        input type="hidden" name="id" value=(key.id);
                        button class="quiet" aria-label={ "Revoke " (key.label) } { "Revoke" }
                    } }
                } } }
            }
        }
        h3 { "Make a key" }
        form class="row" method="post" action="/keys" {
            label { "Name" input name="label" required maxlength=(MAX_LABEL_CHARS) placeholder="laptop"; }
            label { "Expires" select name="days" {
                option value="90" { "in 90 days" }
                option value="30" { "in 30 days" }
                option value="365" { "in a year" }
                option value="0" { "never" }
            } }
            label { "May" select name="may" {
                option value="" { "do what you may" }
                option value="read" { "only pull" }
                option value="push" { "pull and push" }
            } }
            label { "In (all, if empty)" input name="in" placeholder="team/** other/app"; }
            button { "Make a key" }
        }
    }
}

fn session_section(sessions: &[Session], identity: &Identity) -> Markup {
    let this = |session: &Session| identity.method == AuthMethod::Session(session.id_hash.clone());
    html! {
        h2 { "Where you are signed in" }
        table {
            thead { tr { th { "Browser" } th { "From" } th { "Since" } th { "Last used" } th { "" } } }
            tbody { @for session in sessions { tr {
                td { (session.user_agent) }
                td { (session.client) }
                td { (day(Some(session.created_at), "")) }
                td { (day(Some(session.used_at), "")) }
                td { @if this(session) { "this one" } @else {
                    form method="post" action="/sessions/end" {
                        input type="hidden" name="id" value=(session.id_hash);
                        button class="quiet" aria-label={ "End the session of " (session.user_agent) } { "End" }
                    }
                } }
            } } }
        }
    }
}

fn day(seconds: Option<i64>, never: &str) -> String {
    let time = seconds.and_then(|seconds| OffsetDateTime::from_unix_timestamp(seconds).ok());
    let text = time.and_then(|time| time.format(format_description!("[year]-[month]-[day] [hour]:[minute] UTC")).ok());
    text.unwrap_or_else(|| never.to_owned())
}

/// Whoever sends a form of the page.
async fn sender(app: &App, headers: &HeaderMap, request: &RequestInfo) -> Result<Owner, Response> {
    if !is_our_own(headers, &app.external_url) {
        let reason = "the form came from another site's page";
        return Err(page::refusal(StatusCode::FORBIDDEN, "Nothing was changed", reason, &request.id).into_response());
    }
    match browser_session(app, request, headers).await {
        Ok(BrowserSession::Known(owner)) => Ok(owner),
        Ok(BrowserSession::Unknown | BrowserSession::Ended(_)) => Err(Redirect::to("/").into_response()),
        Err(error) => Err(database_failed(&error, request)),
    }
}

#[derive(Deserialize)]
pub struct MakeKey {
    label: String,
    days: i64,
    #[serde(default)]
    may: String,
    #[serde(default, rename = "in")]
    patterns: String,
}

/// `POST /keys`
pub async fn create_key(
    State(app): State<Arc<App>>,
    Extension(request): Extension<RequestInfo>,
    headers: HeaderMap,
    Form(form): Form<MakeKey>,
) -> Response {
    let owner = match sender(&app, &headers, &request).await {
        Ok(owner) => owner,
        Err(response) => return response,
    };
    if !app.identities.api_keys {
        return Redirect::to("/").into_response();
    }
    let label: String = form.label.chars().take(MAX_LABEL_CHARS).collect();
    let scopes = std::iter::once(form.may.as_str()).chain(form.patterns.split_ascii_whitespace());
    let scopes: Vec<String> = scopes.filter(|scope| !scope.is_empty()).map(str::to_owned).collect();
    if let Err(error) = must_be_scopes(&scopes) {
        let page = page::refusal(StatusCode::BAD_REQUEST, "No key was made", &error.to_string(), &request.id);
        return page.into_response();
    }
    let expires_at = (1..=3650).contains(&form.days).then(|| now() + form.days * 24 * 60 * 60);
    let wanted = WantedKey { label: &label, user_agent: &user_agent(&headers), expires_at, scopes: &scopes };
    match app.identities.keys.create(&owner.id, &wanted).await {
        Ok(None) => {
            let reason = too_many_keys().to_string();
            page::refusal(StatusCode::FORBIDDEN, "No key was made", &reason, &request.id).into_response()
        }
        Ok(Some((text, key))) => {
            key_created(&app, &request, &key);
            signed_in(&app, &owner, Some(NewKey { text, label }), &request).await
        }
        Err(error) => database_failed(&error, &request),
    }
}

#[derive(Deserialize)]
pub struct RevokeKey {
    id: String,
}

/// `POST /keys/revoke`
pub async fn revoke_key(
    State(app): State<Arc<App>>,
    Extension(request): Extension<RequestInfo>,
    headers: HeaderMap,
    Form(form): Form<RevokeKey>,
) -> Response {
    let owner = match sender(&app, &headers, &request).await {
        Ok(owner) => owner,
        Err(response) => return response,
    };
    match app.identities.keys.revoke(&owner.id, &form.id).await {
        Ok(there) => {
            if there {
                key_revoked(&app, &request, &form.id);
            }
            Redirect::to("/").into_response()
        }
        Err(error) => database_failed(&error, &request),
    }
}

#[derive(Deserialize)]
pub struct EndSession {
    id: String,
}

/// `POST /sessions/end`
pub async fn end_session(
    State(app): State<Arc<App>>,
    Extension(request): Extension<RequestInfo>,
    headers: HeaderMap,
    Form(form): Form<EndSession>,
) -> Response {
    let owner = match sender(&app, &headers, &request).await {
        Ok(owner) => owner,
        Err(response) => return response,
    };
    match app.identities.sessions.end_of(&owner.id, &form.id).await {
        Ok(there) => {
            if there {
                tracing::info!(
                    request = request.id,
                    user = owner.identity.user,
                    "a session was ended from another one"
                );
                app.audit.record(&request.origin(), &Event::SessionEnded);
            }
            Redirect::to("/").into_response()
        }
        Err(error) => database_failed(&error, &request),
    }
}
