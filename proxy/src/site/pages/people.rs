//! Everybody who has signed in, their sessions, terminals and keys, and the refresh tokens of jobs: for whom `adminPolicy` names.

use std::sync::Arc;

use axum::{
    Extension, Form,
    extract::{Query, State},
    http::HeaderMap,
    response::{IntoResponse, Redirect, Response},
};
use maud::{Markup, html};
use serde::Deserialize;

use super::{
    frame::{Page, Place, heading},
    sessions::{browser, terminal_row},
    viewer::{Viewer, database_failed, nothing_here},
    words::{ago, in_query, plain, until},
};
use crate::{
    app::App,
    observe::Event,
    request::RequestInfo,
    store::{ApiKey, Person, PersonId, RefreshToken, Session, Standing, StoreError, SuspensionCause, Terminal},
};

/// How many people, and how many refresh tokens, one page has.
const PEOPLE_PER_PAGE: usize = 100;
const MAX_TOKENS_SHOWN: i64 = 200;

/// The longest text that is searched for.
const MAX_SEARCH_CHARS: usize = 255;

#[derive(Deserialize, Default)]
pub struct Search {
    #[serde(default)]
    q: String,
    #[serde(default)]
    after: String,
}

/// `GET /people?q=…&after=…`
pub async fn list(
    State(app): State<Arc<App>>,
    Extension(request): Extension<RequestInfo>,
    headers: HeaderMap,
    Query(search): Query<Search>,
) -> Response {
    let viewer = match Viewer::admin(&app, &request, &headers, "/people").await {
        Ok(viewer) => viewer,
        Err(response) => return response,
    };
    let wanted: String = search.q.trim().chars().take(MAX_SEARCH_CHARS).collect();
    let most = i64::try_from(PEOPLE_PER_PAGE + 1).unwrap_or(i64::MAX);
    let mut found = match app.store.find_people(&wanted, &search.after, most).await {
        Ok(found) => found,
        Err(error) => return database_failed(&error, &request),
    };
    let more = found.len() > PEOPLE_PER_PAGE;
    found.truncate(PEOPLE_PER_PAGE);
    let body = html! {
        (heading("People", &html! { "Who has signed in here, and what they have. " a href="/people/jobs" { "Refresh tokens of jobs" } }))
        form class="search" method="get" action="/people" role="search" {
            input type="search" name="q" value=(wanted) aria-label="Search by name" placeholder="Search by name" data-search="#list";
            button class="quiet" { "Search" }
        }
        div id="list" class="stack" aria-live="polite" {
            @if found.is_empty() { p class="soft" { "Nobody has that in their name." } } @else {
                section class="card rows" { ul { @for person in &found { li { (row(person)) } } } }
            }
            @if more && let Some(last) = found.last() {
                p class="pages" { a rel="next" href={ "/people?q=" (in_query(&wanted)) "&after=" (in_query(&last.standing.name)) } { "Next" } }
            }
        }
    };
    Page::at(Place::People, "People", body).show(&viewer)
}

fn row(Person { standing, sessions, terminals, keys }: &Person) -> Markup {
    let many = |n: i64, what: &str| format!("{n} {what}{}", if n == 1 { "" } else { "s" });
    html! {
        div class="what" {
            p { a class="name" href=(address(&standing.id)) { (plain(&standing.name)) } " " (state(standing)) }
            p class="soft" { "via " (plain(&standing.id.provider)) " · signed in " (ago(standing.seen_at)) }
        }
        span class="soft" { (many(*sessions, "session")) " · " @if *terminals > 0 { (many(*terminals, "terminal")) " · " } (many(*keys, "key")) }
    }
}

fn state(standing: &Standing) -> Markup {
    html! {
        @match standing.suspended {
            Some((_, SuspensionCause::Refused)) => span class="chip bad" { "suspended by their provider" },
            Some(_) => span class="chip bad" { "suspended" },
            None if standing.unconfirmed_since.is_some() => span class="chip warn" { "unconfirmed" },
            None => {}
        }
    }
}

fn address(id: &PersonId) -> String {
    format!("/people/one?provider={}&subject={}", in_query(&id.provider), in_query(&id.subject))
}

#[derive(Deserialize)]
pub struct Asked {
    #[serde(default)]
    provider: String,
    #[serde(default)]
    subject: String,
}

/// `GET /people/one?provider=…&subject=…`
pub async fn one(
    State(app): State<Arc<App>>,
    Extension(request): Extension<RequestInfo>,
    headers: HeaderMap,
    Query(asked): Query<Asked>,
) -> Response {
    let id = PersonId { provider: asked.provider, subject: asked.subject };
    let viewer = match Viewer::admin(&app, &request, &headers, "/people").await {
        Ok(viewer) => viewer,
        Err(response) => return response,
    };
    let read = async {
        let Some(standing) = app.store.standings(&id, "").await?.into_iter().find(|one| one.id == id) else {
            return Ok(None);
        };
        let sessions = app.identities.sessions.of(&id).await?;
        let terminals = app.identities.terminals.of(&id).await?;
        Ok::<_, StoreError>(Some((standing, sessions, terminals, app.identities.keys.of(&id).await?)))
    };
    match read.await {
        Ok(Some((standing, sessions, terminals, keys))) => {
            person(&standing, &sessions, &terminals, &keys).show(&viewer)
        }
        Ok(None) => nothing_here(&viewer, "person"),
        Err(error) => database_failed(&error, &request),
    }
}

fn person(standing: &Standing, sessions: &[Session], terminals: &[Terminal], keys: &[ApiKey]) -> Page {
    let name = plain(&standing.name);
    let body = html! {
        nav class="crumbs" aria-label="Where this is" { a href="/people" { "People" } " /" }
        (heading(&name, &html! { "via " (plain(&standing.id.provider)) " · signed in " (ago(standing.seen_at)) " " (state(standing)) }))
        section class="card rows" {
            h2 class="folder" { "Sessions" }
            @if sessions.is_empty() { p class="empty soft" { "None." } }
            ul { @for session in sessions { li {
                div class="what" {
                    p { strong { (browser(&session.user_agent)) } }
                    p class="soft" { "from " (session.client) " · signed in " (ago(session.created_at)) " · last used " (ago(session.used_at)) }
                }
                (end_form("session", &session.id_hash, &standing.id, "End"))
            } } }
        }
        @if !terminals.is_empty() {
            section class="card rows" {
                h2 class="folder" { "Terminals" }
                ul { @for terminal in terminals { li { (terminal_row(terminal)) (end_form("terminal", &terminal.id, &standing.id, "End")) } } }
            }
        }
        section class="card rows" {
            h2 class="folder" { "API keys" }
            @if keys.is_empty() { p class="empty soft" { "None." } }
            ul { @for key in keys { li {
                div class="what" {
                    p { strong { (plain(&key.label)) } " " @if !key.scopes.is_empty() { span class="chip" { (plain(&key.scopes.join(" · "))) } } }
                    p class="soft" {
                        "made " (ago(key.created_at)) " · "
                        @match key.expires_at { None => "never expires", Some(at) => { "expires " (until(at)) } } " · "
                        @match key.used_at { None => "never used", Some(at) => { "used " (ago(at)) @if !key.used_from.is_empty() { " from " (key.used_from) } } }
                    }
                }
                (end_form("api_key", &key.id, &standing.id, "Revoke"))
            } } }
        }
        p { a href={ "/access?user=" (in_query(&standing.name)) } { "What may they do?" } }
    };
    Page::at(Place::People, name, body)
}

fn end_form(kind: &str, object: &str, id: &PersonId, button: &str) -> Markup {
    html! {
        form method="post" action="/people/end" {
            input type="hidden" name="kind" value=(kind);
            input type="hidden" name="object" value=(object);
            input type="hidden" name="provider" value=(id.provider);
            input type="hidden" name="subject" value=(id.subject);
            button class="danger small" { (button) }
        }
    }
}

/// `GET /people/jobs`
pub async fn jobs(
    State(app): State<Arc<App>>,
    Extension(request): Extension<RequestInfo>,
    headers: HeaderMap,
) -> Response {
    let viewer = match Viewer::admin(&app, &request, &headers, "/people/jobs").await {
        Ok(viewer) => viewer,
        Err(response) => return response,
    };
    let tokens = match app.identities.refresh_tokens.newest(MAX_TOKENS_SHOWN).await {
        Ok(tokens) => tokens,
        Err(error) => return database_failed(&error, &request),
    };
    let none = PersonId { provider: String::new(), subject: String::new() };
    let body = html! {
        nav class="crumbs" aria-label="Where this is" { a href="/people" { "People" } " /" }
        (heading("Refresh tokens of jobs", &html! { "CI jobs that logged in with their own token stay logged in with these until they expire." }))
        @if tokens.is_empty() { p class="soft" { "No job has one now." } } @else {
            section class="card rows" { ul { @for token in &tokens { li {
                div class="what" {
                    p { strong { (job(token)) } }
                    p class="soft" { (plain(&token.issuer)) " · ends " (until(token.expires_at)) }
                }
                (end_form("refresh_token", &token.id, &none, "End"))
            } } } }
        }
    };
    Page::at(Place::People, "Refresh tokens of jobs", body).show(&viewer)
}

/// What a job calls itself (RFC 7519, section 4.1.2).
fn job(token: &RefreshToken) -> String {
    plain(token.claims.get("sub").and_then(|sub| sub.as_str()).unwrap_or("a job without a name"))
}

#[derive(Deserialize)]
pub struct End {
    kind: String,
    object: String,
    provider: String,
    subject: String,
}

/// `POST /people/end`
pub async fn end(
    State(app): State<Arc<App>>,
    Extension(request): Extension<RequestInfo>,
    headers: HeaderMap,
    Form(form): Form<End>,
) -> Response {
    let viewer = match Viewer::sender(&app, &request, &headers).await {
        Ok((viewer, _)) if viewer.is_admin => viewer,
        Ok((viewer, _)) => return nothing_here(&viewer, "page"),
        Err(response) => return response,
    };
    let End { kind, object, provider, subject } = form;
    let id = PersonId { provider, subject };
    let ended = match kind.as_str() {
        "session" => app.identities.sessions.end_of(&id, &object).await,
        "terminal" => app.identities.terminals.end_of(&id, &object).await,
        "api_key" => app.identities.keys.revoke(&id, &object).await,
        "refresh_token" => app.identities.refresh_tokens.revoke_by_id(&object).await,
        _ => return nothing_here(&viewer, "kind of thing"),
    };
    match ended {
        Ok(there) => {
            if there {
                let of = if kind == "refresh_token" {
                    "a job".to_owned()
                } else {
                    format!("{} {}", id.provider, id.subject)
                };
                tracing::info!(request = request.id, user = viewer.user(), kind, of, "ended by an admin");
                app.audit.record(&request.origin(), &Event::EndedByAdmin { kind: &kind, object: &object, of: &of });
            }
            let back = if kind == "refresh_token" { "/people/jobs".to_owned() } else { address(&id) };
            Redirect::to(&back).into_response()
        }
        Err(error) => database_failed(&error, &request),
    }
}
