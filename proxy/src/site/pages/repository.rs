//! One repository: its tags, each with what it is, and how to pull it.

use std::{str::FromStr, sync::Arc};

use axum::{
    Extension,
    extract::{Path, Query, State},
    http::HeaderMap,
    response::Response,
};
use berth_oci::{
    MAX_SEARCH_BYTES, Page as ListPage, QuotaUsage, Reference, Repository, Search, Tag, TagOrder, TagOverview,
    TagOverviewList, TagRetention, TagSelection,
};
use maud::{Markup, html};
use serde::Deserialize;

use super::{
    frame::{Page, Place, heading},
    image::Artifact,
    target::{commands, crumbs},
    viewer::{Viewer, nothing_here, registry_failed},
    words::{ago, count, digest, in_query, plain, pushed, size, until_day},
};
use crate::{app::App, registry::RegistryError, request::RequestInfo};

/// From which part of a quota on it is nearly full, in percent.
const NEARLY_PERCENT: u64 = 80;

/// How many tags one page has.
const TAGS_PER_PAGE: usize = 50;

#[derive(Deserialize, Default)]
pub struct Asked {
    #[serde(default)]
    q: String,
    #[serde(default)]
    order: String,
    #[serde(default)]
    after: Option<String>,
}

/// `GET /repository/<name>?q=…&order=version&after=…`
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
    let Ok(repository) = name.parse::<Repository>() else { return nothing_here(&viewer, "repository") };
    if !viewer.may_read(repository.as_str()) {
        return nothing_here(&viewer, "repository");
    }
    match list(&app, &viewer, &repository, asked).await {
        Ok(Some(page)) => page.show(&viewer),
        Ok(None) => nothing_here(&viewer, "repository"),
        Err(error) => registry_failed(&error, &request),
    }
}

async fn list(
    app: &App,
    viewer: &Viewer,
    repository: &Repository,
    asked: Asked,
) -> Result<Option<Page>, RegistryError> {
    let mut wanted = plain(asked.q.trim());
    wanted.truncate(wanted.floor_char_boundary(MAX_SEARCH_BYTES));
    let order = TagOrder::from_str(&asked.order).unwrap_or(TagOrder::Pushed);
    let search = Search {
        q: Some(wanted.clone()).filter(|q| !q.is_empty()),
        page: ListPage { n: Some(TAGS_PER_PAGE), last: asked.after.clone() },
    };
    let selection = TagSelection { search, digest: None, order, without_attached: true };
    let Some(list) = app.registry.describe_tags(repository, selection).await? else {
        return uncounted(app, repository, asked.after).await;
    };
    let quotas = app.registry.describe_usage(repository).await?.map(|usage| usage.quotas).unwrap_or_default();
    let address = |order: TagOrder, after: &str| {
        format!("/repository/{repository}?q={}&order={order}&after={}", in_query(&wanted), in_query(after))
    };
    let newest = list.tags.first().filter(|_| asked.after.is_none());
    let body = html! {
        (crumbs(repository))
        (heading(repository.as_str().rsplit('/').next().unwrap_or_default(), &sentence(&list)))
        @for quota in &quotas { @if let Some(used) = used_of(quota) { p class="soft" { (used) } } }
        @if let Some((newest, tag)) = newest.and_then(|newest| Some((newest, newest.tag.parse::<Tag>().ok()?))) {
            section class="card" {
                h2 { "Pull " @if order == TagOrder::Pushed { "the newest, " } (tag) }
                (commands(&viewer.host, repository, &Reference::Tag(tag.clone()), artifact(newest), Some(&newest.digest)))
            }
        }
        form class="search" method="get" role="search" action={ "/repository/" (repository) } {
            input type="search" name="q" value=(wanted) aria-label="Filter tags" placeholder="Filter tags, such as 2." data-search="#list";
            input type="hidden" name="order" value=(order);
            button class="quiet" { "Filter" }
        }
        div id="list" class="stack" aria-live="polite" {
            p class="choice soft" {
                @if !wanted.is_empty() { span { (count(list.matching)) " with “" (wanted) "”" } }
                @for (other, name) in [(TagOrder::Pushed, "Newest first"), (TagOrder::Version, "By version")] {
                    a href=(address(other, "")) aria-current=[(other == order).then_some("true")] { (name) }
                }
            }
            @if list.tags.is_empty() { p class="soft" { "No tag has that in its name." } } @else { (table(viewer, repository, &list.tags)) }
            @if wanted.is_empty() && list.matching < list.totals.tag_count {
                p class="fine" { (count(list.totals.tag_count - list.matching)) " more tags are signatures and the like; they are listed with their images." }
            }
            @if let Some(next) = &list.next { p class="pages" { a rel="next" href=(address(order, next)) { "Next" } } }
        }
    };
    Ok(Some(Page::at(Place::Repositories, repository.as_str(), body)))
}

/// How much there is, and how often it was pulled since that is counted.
fn sentence(list: &TagOverviewList) -> Markup {
    let totals = &list.totals;
    html! {
        @match totals.tag_count { 1 => "One tag", n => { (count(n)) " tags" } }
        " · " (size(totals.size))
        @if let Some(pulls) = &totals.pulls {
            " · pulled " @match pulls.count { 1 => "once", n => { (count(n)) " times" } } ", last " (ago(pulls.at.unix_timestamp()))
        }
    }
}

/// What is used of a quota.
fn used_of(quota: &QuotaUsage) -> Option<Markup> {
    let name = quota.repositories.join(", ");
    let bytes = quota.bytes.as_ref().map(|amount| (size(amount.used), size(amount.limit), amount));
    let tags = quota.tags.as_ref().map(|amount| (count(amount.used), format!("{} tags", count(amount.limit)), amount));
    let parts: Vec<_> = bytes.into_iter().chain(tags).collect();
    (!parts.is_empty()).then(|| {
        html! {
            "Quota of " code { (name) } ": "
            @for (i, (used, limit, amount)) in parts.iter().enumerate() {
                @if i > 0 { ", " }
                (used) " of " (limit) " used"
                @if amount.used.saturating_mul(100) >= amount.limit.saturating_mul(NEARLY_PERCENT) { " " span class="chip warn" { "nearly full" } }
            }
        }
    })
}

fn artifact(tag: &TagOverview) -> Artifact {
    tag.content.as_ref().map_or(Artifact::Image, |content| Artifact::of_type(&content.artifact_type))
}

fn table(viewer: &Viewer, repository: &Repository, tags: &[TagOverview]) -> Markup {
    let was_pulled = tags.iter().any(|tag| tag.pulls.is_some());
    let is_judged = tags.iter().any(|tag| tag.retention.is_some());
    html! {
        section class="card rows" {
            table {
                thead { tr {
                    th scope="col" { "Tag" } th scope="col" class="number" { "Size" } th scope="col" { "Platforms" } th scope="col" { "Pushed" }
                    @if was_pulled { th scope="col" { "Last pulled" } }
                    @if is_judged { th scope="col" { "Kept" } }
                    th scope="col" { "Digest" }
                } }
                tbody {
                    @for tag in tags {
                        tr {
                            th scope="row" { a class="name" href={ "/image/" (repository) ":" (tag.tag) } { (tag.tag) } }
                            td class="number size" { @if let Some(content) = &tag.content { (size(content.size)) } }
                            td class="for" {
                                @if artifact(tag) != Artifact::Image { span class="chip" { (artifact(tag).name()) } " " }
                                @match &tag.content {
                                    Some(content) => (plain(&content.platforms.join(", "))),
                                    None => span class="soft" { "can't be read" },
                                }
                            }
                            td class="soft pushed" { @if let Some(push) = &tag.pushed { (pushed(push, viewer)) } }
                            @if was_pulled { td class=(if tag.pulls.is_some() { "soft pulled" } else { "soft pulled none" }) { @match &tag.pulls {
                                Some(pulls) => span title={ (count(pulls.count)) " times" } { (ago(pulls.at.unix_timestamp())) },
                                None => "–",
                            } } }
                            @if is_judged { td class="soft kept" { @if let Some(retention) = &tag.retention { (kept(retention)) } } }
                            td class="digest" { (digest(&tag.digest.to_string())) }
                        }
                    }
                }
            }
        }
    }
}

/// Why a tag stays, or that it goes; with the rule on hover.
fn kept(retention: &TagRetention) -> Markup {
    let TagRetention { kept, rule, until } = retention;
    html! {
        span title=(plain(rule)) {
            @match (kept, until) {
                (false, _) => span class="chip warn" { "goes soon" },
                (true, Some(at)) => { "until " (until_day(at.unix_timestamp())) },
                (true, None) if rule.ends_with("mostRecentlyPushedCount") => "among the newest",
                (true, None) if rule.ends_with("mostRecentlyPulledCount") => "among the last pulled",
                (true, None) if rule.ends_with("immutableTags") => "for ever",
                (true, None) => "by a rule",
            }
        }
    }
}

/// The names of the tags, where the registry counts nothing, or there are too many.
async fn uncounted(app: &App, repository: &Repository, after: Option<String>) -> Result<Option<Page>, RegistryError> {
    let page = ListPage { n: Some(TAGS_PER_PAGE), last: after.filter(|after| !after.is_empty()) };
    let Some((tags, more)) = app.registry.tags(repository, page).await? else { return Ok(None) };
    let body = html! {
        (crumbs(repository))
        (heading(repository.as_str().rsplit('/').next().unwrap_or_default(), &html! { "Its tags, by name" }))
        section class="card rows" {
            ul { @for tag in &tags { li { a class="name" href={ "/image/" (repository) ":" (tag) } { (plain(tag)) } } } }
        }
        @if more && let Some(last) = tags.last() {
            p class="pages" { a rel="next" href={ "/repository/" (repository) "?after=" (in_query(last)) } { "Next" } }
        }
    };
    Ok(Some(Page::at(Place::Repositories, repository.as_str(), body)))
}
