//! The repositories that somebody may read, grouped by what stands before the last slash, like folders.

use std::sync::Arc;

use axum::{
    Extension,
    extract::{Query, State},
    http::HeaderMap,
    response::{IntoResponse, Response},
};
use berth_oci::{MAX_SEARCH_BYTES, Page as ListPage, Repository, RepositoryList, RepositoryOverview};
use maud::{Markup, html};
use serde::Deserialize;

use super::{
    frame::{Page, Place, heading},
    viewer::{Viewer, registry_failed},
    welcome,
    words::{command, count, in_query, plain, pushed, size},
};
use crate::{app::App, registry::RegistryError, request::RequestInfo};

/// How many repositories one page has.
const REPOSITORIES_PER_PAGE: usize = 100;

#[derive(Deserialize, Default)]
pub struct Search {
    #[serde(default)]
    q: String,
    #[serde(default)]
    after: Option<String>,
}

/// `GET /`: the way in for who isn't signed in.
pub async fn start(
    state: State<Arc<App>>,
    request: Extension<RequestInfo>,
    headers: HeaderMap,
    search: Query<Search>,
) -> Response {
    match Viewer::of(&state, &request, &headers, "/").await {
        Ok(viewer) if viewer.owner.is_none() => welcome::page(&state, "/", None).into_response(),
        Ok(viewer) => list(&state, &viewer, &request, &search).await,
        Err(response) => response,
    }
}

/// `GET /repositories?q=…&after=…`
pub async fn show(
    State(app): State<Arc<App>>,
    Extension(request): Extension<RequestInfo>,
    headers: HeaderMap,
    Query(search): Query<Search>,
) -> Response {
    match Viewer::of(&app, &request, &headers, "/repositories").await {
        Ok(viewer) => list(&app, &viewer, &request, &search).await,
        Err(response) => response,
    }
}

async fn list(app: &App, viewer: &Viewer, request: &RequestInfo, search: &Search) -> Response {
    let mut wanted = plain(search.q.trim()).to_lowercase();
    wanted.truncate(wanted.floor_char_boundary(MAX_SEARCH_BYTES));
    // Where a page begins is what somebody has typed.
    let after = search.after.clone().filter(|after| after.parse::<Repository>().is_ok());
    let found = match find(app, viewer, &wanted, after.clone()).await {
        Ok(found) => found,
        Err(error) => return registry_failed(&error, request),
    };
    let names = found.repositories;
    let is_part = found.next.is_some() || after.is_some();
    let body = html! {
        (heading("Repositories", &html! { "What you can read here." }))
        @if !names.is_empty() || !wanted.is_empty() || after.is_some() {
            form class="search" method="get" action="/repositories" role="search" {
                input type="search" name="q" value=(wanted) aria-label="Search by name" placeholder="Search by name, such as team/api" data-search="#list";
                button class="quiet" { "Search" }
            }
        }
        div id="list" class="stack" aria-live="polite" {
            @if !names.is_empty() {
                p class="fine" { (count(names.len() as u64)) @if names.len() == 1 { " repository" } @else { " repositories" } @if is_part { " on this page" } }
            } @else if !wanted.is_empty() {
                section class="card" { p class="soft" { "No repository that you can read has “" (wanted) "” in its name. " a href="/repositories" { "Show all" } } }
            }
            @if names.is_empty() && wanted.is_empty() { (first_push(viewer)) } @else if !names.is_empty() { (table(viewer, &names)) }
            @if let Some(last) = &found.next {
                p class="pages" { a rel="next" href={ "/repositories?q=" (in_query(&wanted)) "&after=" (in_query(last)) } { "Next" } }
            }
        }
    };
    Page::at(Place::Repositories, "Repositories", body).show(viewer)
}

/// A page of those that have `wanted` in their names; of a registry that counts nothing, their names.
async fn find(
    app: &App,
    viewer: &Viewer,
    wanted: &str,
    after: Option<String>,
) -> Result<RepositoryList, RegistryError> {
    let page = ListPage { n: Some(REPOSITORIES_PER_PAGE), last: after.clone() };
    let search = berth_oci::Search { q: Some(wanted.to_owned()).filter(|q| !q.is_empty()), page };
    if let Some(list) = app.registry.describe_repositories(&search, |name| viewer.may_read(name)).await? {
        return Ok(list);
    }
    let matches = |name: &str| name.contains(wanted) && viewer.may_read(name);
    let (names, more) = app.registry.repositories(REPOSITORIES_PER_PAGE, after, matches).await?;
    let names = names.iter().filter_map(|name| name.parse().ok());
    let repositories: Vec<_> = names.map(|name| RepositoryOverview { name, totals: None }).collect();
    let next = repositories.last().filter(|_| more).map(|last| last.name.to_string());
    Ok(RepositoryList { repositories, next })
}

/// Those with the same beginning stand together, in the order in which they came.
fn table(viewer: &Viewer, repositories: &[RepositoryOverview]) -> Markup {
    let folder = |one: &RepositoryOverview| one.name.as_str().rsplit_once('/').map_or("", |(it, _)| it).to_owned();
    let groups = repositories.chunk_by(|one, other| folder(one) == folder(other));
    html! {
        section class="card rows" {
            @for group in groups {
                @let folder = folder(&group[0]);
                @if !folder.is_empty() { h2 class="folder" { (folder) "/" } }
                ul class="counted" { @for one in group { li { (row(viewer, one)) } } }
            }
        }
    }
}

fn row(viewer: &Viewer, RepositoryOverview { name, totals }: &RepositoryOverview) -> Markup {
    html! {
        a class="name" href={ "/repository/" (name) } { (name.as_str().rsplit('/').next().unwrap_or_default()) }
        @if let Some(totals) = totals {
            span class="soft number" { (count(totals.tag_count)) @if totals.tag_count == 1 { " tag" } @else { " tags" } }
            span class="number" { (size(totals.size)) }
            span class="soft when" {
                @if let Some(last) = &totals.last_push { (pushed(&last.pushed, viewer)) }
            }
        }
    }
}

/// The very commands for a first image.
fn first_push(viewer: &Viewer) -> Markup {
    let user = viewer.user().unwrap_or("you");
    let image =
        format!("{}/{}/hello:1", viewer.host, user.to_lowercase().replace(|c: char| !c.is_ascii_alphanumeric(), "-"));
    html! {
        section class="card" {
            h2 { "Push a first image" }
            @if viewer.has_keys && viewer.owner.is_some() { p { "Make a password for the terminal under " a href="/keys" { "Keys" } ", then:" } }
            (command(&format!("docker login -u {user} {}", viewer.host)))
            (command(&format!("docker tag hello-world {image}")))
            (command(&format!("docker push {image}")))
            p class="soft" { "Which names you may push to, " a href="/access" { "My access" } " says." }
        }
    }
}
