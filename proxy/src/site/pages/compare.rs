//! What has changed from one tag to another: layers, configuration, what each says of itself.

use std::{collections::HashSet, sync::Arc};

use axum::{
    Extension,
    extract::{Path, Query, State},
    http::HeaderMap,
    response::Response,
};
use berth_oci::{Digest, Operation, Reference, Repository, Tag};
use maud::{Markup, html};
use serde::Deserialize;

use super::{
    frame::{Page, Place, heading},
    image::{Image, SETTINGS},
    target::{crumbs_to, written},
    viewer::{Viewer, nothing_here, registry_failed},
    words::{plain, size},
};
use crate::{app::App, registry::RegistryError, request::RequestInfo};

#[derive(Deserialize)]
pub struct Asked {
    #[serde(default)]
    from: String,
    #[serde(default)]
    to: String,
}

/// `GET /compare/<name>?from=<tag>&to=<tag>`
pub async fn show(
    State(app): State<Arc<App>>,
    Extension(request): Extension<RequestInfo>,
    headers: HeaderMap,
    Path(name): Path<String>,
    Query(asked): Query<Asked>,
) -> Response {
    let viewer = match Viewer::of(&app, &request, &headers, &format!("/repository/{name}")).await {
        Ok(viewer) => viewer,
        Err(response) => return response,
    };
    let tags = (asked.from.trim().parse::<Tag>(), asked.to.trim().parse::<Tag>());
    let (Ok(repository), (Ok(from), Ok(to))) = (name.parse::<Repository>(), tags) else {
        return nothing_here(&viewer, "pair of tags");
    };
    let images = async {
        let Some(to) = read(&app, &viewer, &repository, to, None).await? else { return Ok(None) };
        // For the same platform, if both have it.
        let platform = to.platform();
        let from = read(&app, &viewer, &repository, from, Some(&platform)).await?;
        Ok::<_, RegistryError>(from.map(|from| (from, to)))
    };
    match images.await {
        Ok(Some((from, to))) => page(&from, &to).show(&viewer),
        Ok(None) => nothing_here(&viewer, "pair of tags"),
        Err(error) => registry_failed(&error, &request),
    }
}

async fn read(
    app: &App,
    viewer: &Viewer,
    repository: &Repository,
    tag: Tag,
    platform: Option<&str>,
) -> Result<Option<Image>, RegistryError> {
    let (repository, reference) = (repository.clone(), Reference::Tag(tag));
    if !viewer.may(&Operation::PullManifest { repository: repository.clone(), reference: reference.clone() }) {
        return Ok(None);
    }
    let Some(found) = app.registry.manifest(&repository, &reference).await? else { return Ok(None) };
    Image::read(app, repository, reference, found, platform).await.map(Some)
}

fn page(from: &Image, to: &Image) -> Page {
    let digests =
        |image: &Image| image.inner.layers.iter().map(|layer| layer.digest.clone()).collect::<HashSet<Digest>>();
    let (before, after) = (digests(from), digests(to));
    let kept: u64 = to.inner.layers.iter().filter(|layer| before.contains(&layer.digest)).map(|layer| layer.size).sum();
    let new: u64 = to.inner.layers.iter().filter(|layer| !before.contains(&layer.digest)).map(|layer| layer.size).sum();
    let title = format!("{} → {}", from.reference, to.reference);
    let sentence = html! {
        @if from.digest == to.digest { "They are the same image." } @else {
            "Going from " strong { (from.reference) } " to " strong { (to.reference) } " downloads " (size(new)) "; " (size(kept)) " is already there."
        }
        @if from.platform() != to.platform() { " They are for different platforms: " (from.platform()) " and " (to.platform()) "." }
    };
    let body = html! {
        (crumbs_to(&to.repository))
        (heading(&title, &sentence))
        div class="halves" { (layers(from, &after, ("removed", "chip"))) (layers(to, &before, ("added", "chip"))) }
        (settings(from, to))
    };
    Page::at(Place::Repositories, title, body)
}

/// The layers of one, and which the other doesn't have.
fn layers(image: &Image, other: &HashSet<Digest>, (difference, chip): (&str, &str)) -> Markup {
    let commands = image.config.commands();
    html! {
        section class="card" {
            h2 { a href={ "/image/" (written(&image.repository, &image.reference)) } { (image.reference) } span class="soft" { " · " (size(image.inner.size())) } }
            ol class="layers" {
                @for (i, layer) in image.inner.layers.iter().enumerate().take(super::image::MAX_SHOWN) {
                    li {
                        span {
                            code { (commands.get(i).filter(|command| !command.is_empty()).cloned().unwrap_or_else(|| plain(&layer.media_type))) }
                            @if !other.contains(&layer.digest) { " " span class=(chip) { (difference) } }
                        }
                        span class="number" { (size(layer.size)) }
                    }
                }
            }
        }
    }
}

/// What runs otherwise.
fn settings(from: &Image, to: &Image) -> Markup {
    let mut rows: Vec<(String, Vec<String>, Vec<String>)> = Vec::new();
    for (name, key) in SETTINGS {
        let (one, other) = (from.config.texts(key), to.config.texts(key));
        // Of what is one value, all of it; of what is a list, what differs.
        let is_list = matches!(key, "Env" | "ExposedPorts" | "Volumes");
        let without = |one: &[String], other: &[String]| match is_list {
            true => one.iter().filter(|text| !other.contains(text)).cloned().collect(),
            false => one.to_vec(),
        };
        if one != other {
            rows.push((name.to_owned(), without(&one, &other), without(&other, &one)));
        }
    }
    let (one, other) = (from.config.labels(), to.config.labels());
    let value = |labels: &[(String, String)], key: &str| {
        labels.iter().find(|(name, _)| name == key).map(|(_, value)| plain(value)).into_iter().collect::<Vec<_>>()
    };
    let mut keys: Vec<&String> = one.iter().chain(&other).map(|(key, _)| key).collect();
    keys.sort();
    keys.dedup();
    for key in keys {
        let (before, after) = (value(&one, key), value(&other, key));
        if before != after {
            rows.push((format!("label {}", plain(key)), before, after));
        }
    }
    rows.truncate(super::image::MAX_SHOWN);
    html! {
        section class="card" {
            h2 { "What changed in how it runs" }
            @if rows.is_empty() { p class="soft" { "Nothing of the configuration has changed." } } @else {
                div class="scroll" tabindex="0" role="region" aria-label="What has changed" {
                    table {
                        thead { tr { th scope="col" { "What" } th scope="col" { (from.reference) } th scope="col" { (to.reference) } } }
                        tbody { @for (name, before, after) in &rows {
                            tr { th scope="row" { (name) } @for all in [before, after] { td {
                                @if all.is_empty() { span class="soft" { "–" } }
                                @for one in all { code { (one) } br; }
                            } } }
                        } }
                    }
                }
            }
        }
    }
}
