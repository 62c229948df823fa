//! Which repositories hold a layer.

use std::sync::Arc;

use axum::{
    Extension,
    extract::{Path, Query, State},
    http::HeaderMap,
    response::Response,
};
use berth_oci::{Operation, Page as ListPage, Reference, Repository};
use maud::html;
use serde::Deserialize;

use super::{
    frame::{Page, Place, heading},
    target::{crumbs_to, target},
    viewer::{Viewer, nothing_here, registry_failed},
    words::{command, in_query},
};
use crate::{app::App, request::RequestInfo};

/// How many repositories one page has.
const HOLDERS_PER_PAGE: usize = 200;

#[derive(Deserialize, Default)]
pub struct Asked {
    #[serde(default)]
    after: Option<String>,
}

/// `GET /layer/<name>@<digest>`
pub async fn show(
    State(app): State<Arc<App>>,
    Extension(request): Extension<RequestInfo>,
    headers: HeaderMap,
    Path(text): Path<String>,
    Query(asked): Query<Asked>,
) -> Response {
    let viewer = match Viewer::of(&app, &request, &headers, &format!("/layer/{text}")).await {
        Ok(viewer) => viewer,
        Err(response) => return response,
    };
    let Some((repository, Reference::Digest(digest))) = target(&text) else { return nothing_here(&viewer, "layer") };
    if !viewer.may(&Operation::PullBlob { repository: repository.clone(), digest: digest.clone() }) {
        return nothing_here(&viewer, "layer");
    }
    let page =
        ListPage { n: Some(HOLDERS_PER_PAGE), last: asked.after.filter(|after| after.parse::<Repository>().is_ok()) };
    let holders = app.registry.holders(&repository, &digest, &page, |name| viewer.may_read(name.as_str())).await;
    let holders = match holders {
        Ok(Some(holders)) => holders,
        Ok(None) => return nothing_here(&viewer, "layer"),
        Err(error) => return registry_failed(&error, &request),
    };
    let short: String = digest.hex().chars().take(12).collect();
    let sentence = html! {
        @match (holders.repositories.len(), holders.next.is_some() || page.last.is_some()) {
            (1, false) => "One repository that you can read holds this layer.",
            (n, false) => { (n) " repositories that you can read hold this layer." }
            (n, true) => { "Many repositories that you can read hold this layer: " (n) " on this page." }
        }
    };
    let body = html! {
        (crumbs_to(&repository))
        (heading(&format!("Layer {short}"), &sentence))
        section class="card" { (command(&digest.to_string())) }
        section class="card rows" { ul {
            @for holder in &holders.repositories { li { a class="name" href={ "/repository/" (holder) } { (holder) } } }
        } }
        @if let Some(next) = &holders.next {
            p class="pages" { a rel="next" href={ "/layer/" (repository) "@" (digest) "?after=" (in_query(next)) } { "Next" } }
        }
    };
    Page::at(Place::Repositories, format!("Layer {short}"), body).show(&viewer)
}
