//! One image, chart or artifact: how to pull it, what it is made of, how it runs, what is attached to it.

mod attached;
mod cards;
mod chart;
mod document;
mod lenient;
mod read;
mod statement;
mod statements;

use std::sync::Arc;

use axum::{
    Extension,
    extract::{Path, Query, State},
    http::HeaderMap,
    response::Response,
};
use berth_oci::{Operation, Reference, Repository};
use maud::html;
use serde::Deserialize;

pub use self::{
    document::{Artifact, MAX_SHOWN, SETTINGS},
    read::Image,
};
use super::{
    frame::{Page, Place, heading},
    target::{commands, crumbs_to, target, titled, written},
    viewer::{Viewer, nothing_here, registry_failed},
    words::{plain, pushed, size},
};
use crate::{
    app::App,
    registry::{RegistryError, StoredManifest},
    request::RequestInfo,
};

/// The longest manifest that is laid out, in bytes: of another one its text is shown.
const MAX_LAID_OUT_BYTES: usize = 256 * 1024;

/// How much of a manifest a page shows.
const MAX_RAW_CHARS: usize = 40_000;

#[derive(Deserialize, Default)]
pub struct Choice {
    #[serde(default)]
    platform: Option<String>,
    #[serde(default)]
    raw: Option<String>,
    /// Of a bill of materials, the packages with this in their names.
    #[serde(default)]
    q: String,
}

/// `GET /image/<name>:<tag>` or `…@<digest>`, `?platform=<digest>`, `?raw`, `?q=`
pub async fn show(
    State(app): State<Arc<App>>,
    Extension(request): Extension<RequestInfo>,
    headers: HeaderMap,
    Path(text): Path<String>,
    Query(choice): Query<Choice>,
) -> Response {
    let viewer = match Viewer::of(&app, &request, &headers, &format!("/image/{text}")).await {
        Ok(viewer) => viewer,
        Err(response) => return response,
    };
    let Some((repository, reference)) = target(&text) else { return nothing_here(&viewer, "image") };
    if !viewer.may(&Operation::PullManifest { repository: repository.clone(), reference: reference.clone() }) {
        return nothing_here(&viewer, "image");
    }
    let found = match app.registry.manifest(&repository, &reference).await {
        Ok(Some(found)) => found,
        Ok(None) => return nothing_here(&viewer, "image"),
        Err(error) => return registry_failed(&error, &request),
    };
    if choice.raw.is_some() {
        return raw(&viewer, &repository, &reference, &found);
    }
    match page(&app, &viewer, repository, reference, found, &choice).await {
        Ok(page) => page.show(&viewer),
        Err(error) => registry_failed(&error, &request),
    }
}

/// The manifest, byte for byte, as far as a page goes.
fn raw(viewer: &Viewer, repository: &Repository, reference: &Reference, found: &StoredManifest) -> Response {
    let text = String::from_utf8_lossy(&found.bytes);
    let is_short = found.bytes.len() <= MAX_LAID_OUT_BYTES;
    let pretty = is_short.then(|| serde_json::from_str::<serde_json::Value>(&text).ok()).flatten();
    let text = pretty.and_then(|value| serde_json::to_string_pretty(&value).ok()).unwrap_or_else(|| text.into_owned());
    let is_long = text.chars().count() > MAX_RAW_CHARS;
    let lines = text.chars().take(MAX_RAW_CHARS).collect::<String>();
    let title = format!("The manifest of {}", titled(repository, reference));
    let body = html! {
        (crumbs_to(repository))
        (heading(&title, &html! { (size(found.bytes.len() as u64)) ", " (plain(&found.media_type)) }))
        section class="card" {
            div class="scroll" tabindex="0" role="region" aria-label="Manifest" { pre { @for line in lines.lines() { (plain(line)) "\n" } } }
            @if is_long { p class="soft" { "This is its beginning." } }
        }
        p { a href={ "/image/" (written(repository, reference)) } { "Back to the image" } }
    };
    Page::at(Place::Repositories, title, body).show(viewer)
}

async fn page(
    app: &App,
    viewer: &Viewer,
    repository: Repository,
    reference: Reference,
    found: StoredManifest,
    choice: &Choice,
) -> Result<Page, RegistryError> {
    let image = Image::read(app, repository, reference, found, choice.platform.as_deref()).await?;
    let attached = attached::attached_to(app, &image.repository, &image.digest, &image.document).await?;
    let artifact = image.artifact();
    let statements = statements::of(app, &image).await?;
    let values = match artifact {
        Artifact::Chart => chart::values(app, &image.repository, &image.inner).await?,
        _ => None,
    };
    let sentence = html! {
        (artifact.name()) " · " (size(image.inner.size())) @if image.is_index { " for " (image.platform()) }
        @if let Some(push) = &image.pushed { " · pushed " (pushed(push, viewer)) }
        @if let Some(created) = image.config.created() { " · claims to be built " (created.get(..10).unwrap_or(&created)) }
        @if attached.iter().any(attached::Attached::is_signature) { " " span class="chip" { "has a signature" } }
    };
    let name = written(&image.repository, &image.reference);
    let body = html! {
        (crumbs_to(&image.repository))
        (heading(&titled(&image.repository, &image.reference), &sentence))
        div class="columns" {
            div class="stack" {
                section class="card" { (commands(&viewer.host, &image.repository, &image.reference, artifact, Some(&image.digest))) }
                @if image.is_index { (image.platforms()) }
                @if artifact == Artifact::Chart { (chart::card(&image.config, values.as_deref())) }
                (statements::cards(&name, &statements, &choice.q))
                @if !image.inner.layers.is_empty() { (image.layers()) }
                @if !attached.is_empty() { (attached::tree(&image.repository, &attached)) }
            }
            div class="stack" {
                (image.facts())
                @if artifact == Artifact::Image { (image.how_it_runs()) }
                @if let (Artifact::Image, Reference::Tag(tag)) = (artifact, &image.reference) {
                    form class="card" method="get" action={ "/compare/" (image.repository) } {
                        h2 { "Compare" }
                        input type="hidden" name="to" value=(tag);
                        label { "With the tag" input name="from" required maxlength="128" autocomplete="off" placeholder="such as 1.2"; }
                        div class="actions" { button class="quiet" { "Compare" } }
                    }
                }
                div class="actions" {
                    a class="button quiet" href={ "/image/" (name) "?raw=1" } { "Manifest" }
                    @if viewer.may_delete(&image.repository, &image.reference) {
                        a class="button danger" href={ "/delete/" (name) } { "Delete…" }
                    }
                }
            }
        }
    };
    Ok(Page::at(Place::Repositories, name, body))
}
