//! One repository: its tags, each with what it is, and how to pull it.

use std::sync::Arc;

use axum::{
    Extension,
    extract::{Path, Query, State},
    http::HeaderMap,
    response::Response,
};
use berth_oci::{Page as ListPage, Reference, Repository, Tag};
use futures_util::{StreamExt, stream};
use maud::{Markup, html};
use serde::Deserialize;

use super::{
    frame::{Page, Place, heading},
    image::{Artifact, Summary, commands, crumbs},
    viewer::{Viewer, nothing_here, registry_failed},
    words::{ago, digest, in_query, plain, size},
};
use crate::{app::App, registry::RegistryError, request::RequestInfo};

/// How many tags one page has: each is looked at.
const TAGS_PER_PAGE: usize = 50;

/// How many are looked at at once.
const LOOK_CONCURRENCY: usize = 16;

/// How many tags are sorted by version; a longer list comes in the registry's order.
const MAX_SORTED_TAGS: usize = 10_000;

#[derive(Deserialize, Default)]
pub struct Search {
    #[serde(default)]
    q: String,
    #[serde(default)]
    from: usize,
}

/// `GET /repository/<name>?q=…&from=…`
pub async fn show(
    State(app): State<Arc<App>>,
    Extension(request): Extension<RequestInfo>,
    headers: HeaderMap,
    Path(name): Path<String>,
    Query(search): Query<Search>,
) -> Response {
    let viewer = match Viewer::of(&app, &request, &headers, &format!("/repository/{name}")).await {
        Ok(viewer) => viewer,
        Err(response) => return response,
    };
    let Ok(repository) = name.parse::<Repository>() else { return nothing_here(&viewer, "repository") };
    if !viewer.may_read(repository.as_str()) {
        return nothing_here(&viewer, "repository");
    }
    match list(&app, &viewer, &repository, &search).await {
        Ok(Some(page)) => page.show(&viewer),
        Ok(None) => nothing_here(&viewer, "repository"),
        Err(error) => registry_failed(&error, &request),
    }
}

async fn list(
    app: &App,
    viewer: &Viewer,
    repository: &Repository,
    search: &Search,
) -> Result<Option<Page>, RegistryError> {
    let first = ListPage { n: Some(MAX_SORTED_TAGS), last: None };
    let Some((mut tags, more)) = app.registry.tags(repository, first).await? else { return Ok(None) };
    let wanted = plain(search.q.trim());
    let count = tags.len();
    tags.retain(|tag| wanted.is_empty() || tag.contains(&wanted));
    tags.sort_by_cached_key(|tag| std::cmp::Reverse(version(tag)));
    let found = tags.len();
    let shown: Vec<Tag> =
        tags.iter().skip(search.from).take(TAGS_PER_PAGE).filter_map(|tag| tag.parse().ok()).collect();
    let looked = stream::iter(shown).map(async |tag| {
        let reference = Reference::Tag(tag.clone());
        (tag, Summary::of(app, repository, &reference).await)
    });
    let rows: Vec<(Tag, Result<Option<Summary>, RegistryError>)> = looked.buffered(LOOK_CONCURRENCY).collect().await;
    let sentence = html! {
        @if more { "More than " (count) " tags; these are of the first by name" }
        @else if count == 1 { "One tag" } @else { (count) " tags, the newest version first" }
    };
    let newest = rows.first().map(|(tag, summary)| (tag, summary.as_ref().ok().and_then(Option::as_ref)));
    let body = html! {
        (crumbs(repository))
        (heading(repository.as_str().rsplit('/').next().unwrap_or_default(), &sentence))
        @if let Some((tag, summary)) = newest {
            section class="card" {
                (commands(&viewer.host, repository, &Reference::Tag(tag.clone()), summary.map_or(Artifact::Image, |s| s.artifact), None))
            }
        }
        form class="search" method="get" role="search" action={ "/repository/" (repository) } {
            input type="search" name="q" value=(wanted) aria-label="Filter tags" placeholder="Filter tags, such as 2." data-search="#list";
            button class="quiet" { "Filter" }
        }
        div id="list" aria-live="polite" {
            @if rows.is_empty() { p class="soft" { "No tag has that in its name." } } @else { (table(viewer, repository, &rows)) }
            @if found > search.from + TAGS_PER_PAGE {
                p class="pages" { a rel="next" href={ "/repository/" (repository) "?q=" (in_query(&wanted)) "&from=" (search.from + TAGS_PER_PAGE) } { "Next" } }
            }
        }
    };
    Ok(Some(Page::at(Place::Repositories, repository.as_str(), body)))
}

fn table(viewer: &Viewer, repository: &Repository, rows: &[(Tag, Result<Option<Summary>, RegistryError>)]) -> Markup {
    html! {
        section class="card rows" {
            table {
                thead { tr { th scope="col" { "Tag" } th scope="col" class="number" { "Size" } th scope="col" { "For" } th scope="col" { "Pushed" } th scope="col" { "Digest" } } }
                tbody {
                    @for (tag, summary) in rows {
                        tr {
                            th scope="row" { a class="name" href={ "/image/" (repository) ":" (tag) } { (tag) } }
                            @match summary {
                                Ok(Some(summary)) => {
                                    td class="number" { @match summary.size { Some(bytes) => (size(bytes)), None => "" } }
                                    td {
                                        @if summary.artifact != Artifact::Image { span class="chip" { (summary.artifact.name()) } " " }
                                        (summary.platforms.join(", "))
                                    }
                                    td class="soft" {
                                        @if let (Some(at), by) = &summary.pushed {
                                            (ago(*at)) @if viewer.owner.is_some() && let Some(by) = by { " by " (plain(by)) }
                                        }
                                    }
                                    td { (digest(&summary.digest.to_string())) }
                                }
                                _ => { td {} td class="soft" { "can't be read now" } td {} td {} }
                            }
                        }
                    }
                }
            }
        }
    }
}

/// A part of a tag, in the order in which versions come: `2-rc1`, `2`, `2.1`.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
enum VersionPart {
    Text(String),
    End,
    Number(u64),
}

/// What a tag is sorted by: its numbers as numbers, so that 1.10 comes after 1.9, and names such as `latest` after all.
fn version(tag: &str) -> (bool, Vec<VersionPart>) {
    let parts = tag.split(['.', '-', '_', '+']).map(|part| {
        let part = part.strip_prefix('v').filter(|rest| rest.starts_with(|c: char| c.is_ascii_digit())).unwrap_or(part);
        part.parse().map_or_else(|_| VersionPart::Text(part.to_owned()), VersionPart::Number)
    });
    let parts: Vec<VersionPart> = parts.chain([VersionPart::End]).collect();
    (matches!(parts.first(), Some(VersionPart::Text(_))), parts)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_sorted_as_numbers() {
        let mut tags = ["1.9", "latest", "1.10", "2-rc1", "v2", "1.10.1", "main"];
        tags.sort_by_cached_key(|tag| std::cmp::Reverse(version(tag)));
        assert_eq!(tags, ["main", "latest", "v2", "2-rc1", "1.10.1", "1.10", "1.9"]);
    }
}
