//! API keys: those that one has, and a form for another.

use std::sync::Arc;

use axum::{
    Extension, Form,
    extract::State,
    http::{HeaderMap, StatusCode},
    response::{IntoResponse, Redirect, Response},
};
use maud::{Markup, html};
use serde::Deserialize;

use super::{
    frame::{self, Page, Place, heading},
    viewer::{Viewer, database_failed},
    words::{ago, command, plain, until},
};
use crate::{
    action::Action,
    app::App,
    identity::{api_key::WantedKey, api_key_scopes::KeyScopes},
    request::RequestInfo,
    site::{
        api_keys::{MAX_LABEL_CHARS, key_created, key_revoked, must_be_scopes, too_many_keys, user_agent},
        browser_session::Owner,
    },
    store::{ApiKey, now},
};

/// A key that ends sooner than this says so loudly, in seconds.
const SOON: i64 = 14 * 24 * 60 * 60;

/// How many patterns of the rules are offered.
const MAX_PATTERNS_OFFERED: usize = 40;

/// A key that has just been made: the only time that it is shown.
struct NewKey {
    text: String,
    label: String,
}

/// `GET /keys`
pub async fn show(
    State(app): State<Arc<App>>,
    Extension(request): Extension<RequestInfo>,
    headers: HeaderMap,
) -> Response {
    match Viewer::signed_in(&app, &request, &headers, "/keys").await {
        Ok((viewer, owner)) if app.identities.api_keys => list(&app, &viewer, &owner, None, &request).await,
        Ok(_) => Redirect::to("/").into_response(),
        Err(response) => response,
    }
}

async fn list(app: &App, viewer: &Viewer, owner: &Owner, new: Option<NewKey>, request: &RequestInfo) -> Response {
    let keys = match app.identities.keys.of(&owner.id).await {
        Ok(keys) => keys,
        Err(error) => return database_failed(&error, request),
    };
    let sentence = html! { "A key is the password of " code { "docker login" } ", podman, helm and CI jobs. It can never do more than you. Revoking one stops it at once." };
    let body = html! {
        (heading("API keys", &sentence))
        @if let Some(new) = &new {
            section class="card fresh" role="status" {
                h2 { "“" (plain(&new.label)) "” is ready" }
                p { "Copy it now. It is not shown again." }
                pre class="command" tabindex="0" { code id="new-key" { (new.text) } }
                p { "Then log in, and paste the key as the password:" }
                (command(&format!("docker login -u {} {}", owner.identity.user, viewer.host)))
            }
        }
        @if keys.is_empty() {
            p class="soft" { "You have no key yet." }
        } @else {
            section class="card rows" { ul { @for key in &keys { li { (row(key)) } } } }
        }
        (form(viewer, owner))
    };
    Page::at(Place::Keys, "API keys", body).show(viewer)
}

fn row(key: &ApiKey) -> Markup {
    let ends_soon = key.expires_at.is_some_and(|at| at - now() < SOON);
    html! {
        div class="what" {
            p {
                strong { (plain(&key.label)) } " "
                span class="chip" { @if key.scopes.is_empty() { "all that you can" } @else { (key.scopes.join(" · ")) } } " "
                @if key.is_expired() { span class="chip bad" { "has expired" } }
                @else if ends_soon && let Some(at) = key.expires_at { span class="chip warn" { "expires " (until(at)) } }
            }
            p class="soft" {
                "made " (ago(key.created_at)) " · "
                @match key.expires_at { None => "never expires", Some(at) => { "expires " (until(at)) } } " · "
                @match key.used_at {
                    None => "never used",
                    Some(at) => { "used " (ago(at)) @if !key.used_from.is_empty() { " from " (key.used_from) } }
                }
            }
        }
        form method="post" action="/keys/revoke" {
            input type="hidden" name="id" value=(key.id);
            button class="danger small" aria-label={ "Revoke " (key.label) } { "Revoke" }
        }
    }
}

/// What a key may be for: no more than its owner may.
fn form(viewer: &Viewer, owner: &Owner) -> Markup {
    let patterns = viewer.live.rules.patterns_of(&owner.identity);
    let may = |action| patterns.is_empty() || patterns.iter().any(|(_, actions)| actions.contains(action));
    html! {
        section class="card" {
            h2 { "Make a key" }
            form class="stack" method="post" action="/keys" {
                div class="fields" {
                    label { "Name" input name="label" required maxlength=(MAX_LABEL_CHARS) placeholder="where it will live" autocomplete="off"; }
                    label { "Expires" select name="days" {
                        option value="90" { "in 90 days" }
                        option value="30" { "in 30 days" }
                        option value="365" { "in a year" }
                        option value="0" { "never" }
                    } }
                    label { "Can" select name="may" {
                        option value="" { "do all that you can" }
                        option value="read" { "only pull" }
                        @if may(Action::Create) || may(Action::Update) { option value="push" { "pull and push" } }
                    } }
                }
                fieldset {
                    legend { "Only in these repositories (none chosen: in all)" }
                    @for (pattern, _) in patterns.iter().filter(|(pattern, _)| *pattern != "**").take(MAX_PATTERNS_OFFERED) {
                        label class="pick" { input type="checkbox" name="in" value=(pattern); code { (pattern) } }
                    }
                    label class="pick" { "Others" input name="in" placeholder="such as team/api or team/**" autocomplete="off" autocapitalize="none"; }
                }
                div class="actions" { button { "Make a key" } }
            }
        }
    }
}

/// What the form says: its fields, of which `in` may stand more than once.
struct MakeKey {
    label: String,
    /// In how many days it expires; 0 for never, nothing if that can't be read.
    days: Option<i64>,
    scopes: Vec<String>,
}

impl From<Vec<(String, String)>> for MakeKey {
    fn from(fields: Vec<(String, String)>) -> Self {
        let first = |name: &str| fields.iter().find(|(key, _)| key == name).map_or("", |(_, value)| value);
        let patterns =
            fields.iter().filter(|(key, _)| key == "in").flat_map(|(_, value)| value.split_ascii_whitespace());
        let scopes = std::iter::once(first("may").to_owned()).chain(patterns.map(KeyScopes::pattern));
        let scopes = scopes.filter(|scope| !scope.is_empty());
        Self {
            label: first("label").chars().take(MAX_LABEL_CHARS).collect(),
            days: first("days").parse().ok().filter(|days| (0..=3650).contains(days)),
            scopes: scopes.collect(),
        }
    }
}

/// `POST /keys`
pub async fn create(
    State(app): State<Arc<App>>,
    Extension(request): Extension<RequestInfo>,
    headers: HeaderMap,
    Form(fields): Form<Vec<(String, String)>>,
) -> Response {
    let (viewer, owner) = match Viewer::sender(&app, &request, &headers).await {
        Ok(known) => known,
        Err(response) => return response,
    };
    if !app.identities.api_keys {
        return Redirect::to("/").into_response();
    }
    let MakeKey { label, days, scopes } = fields.into();
    let refused = |status, reason: &str| frame::refusal(status, "No key was made", reason, &request.id).into_response();
    if let Err(error) = must_be_scopes(&scopes) {
        return refused(StatusCode::BAD_REQUEST, &error.to_string());
    }
    let Some(days) = days else {
        return refused(
            StatusCode::BAD_REQUEST,
            "when the key expires is a number of days, 3650 at most, or 0 for never",
        );
    };
    let expires_at = (days > 0).then(|| now() + days * 24 * 60 * 60);
    let wanted = WantedKey { label: &label, user_agent: &user_agent(&headers), expires_at, scopes: &scopes };
    match app.identities.keys.create(&owner.id, &wanted).await {
        Ok(None) => refused(StatusCode::FORBIDDEN, &too_many_keys().to_string()),
        Ok(Some((text, key))) => {
            key_created(&app, &request, &key).await;
            list(&app, &viewer, &owner, Some(NewKey { text, label }), &request).await
        }
        Err(error) => database_failed(&error, &request),
    }
}

#[derive(Deserialize)]
pub struct RevokeKey {
    id: String,
}

/// `POST /keys/revoke`
pub async fn revoke(
    State(app): State<Arc<App>>,
    Extension(request): Extension<RequestInfo>,
    headers: HeaderMap,
    Form(form): Form<RevokeKey>,
) -> Response {
    let (_, owner) = match Viewer::sender(&app, &request, &headers).await {
        Ok(known) => known,
        Err(response) => return response,
    };
    match app.identities.keys.revoke(&owner.id, &form.id).await {
        Ok(there) => {
            if there {
                key_revoked(&app, &request, &form.id);
            }
            Redirect::to("/keys").into_response()
        }
        Err(error) => database_failed(&error, &request),
    }
}
