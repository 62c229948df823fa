//! The end of a tag or an image: what else goes, and the question whether it shall.

use std::sync::Arc;

use axum::{
    Extension,
    extract::{Path, State},
    http::{HeaderMap, Method, StatusCode},
    response::{IntoResponse, Redirect, Response},
};
use berth_oci::{Digest, Operation, Page as ListPage, Reference, Repository, Search, TagSelection};
use maud::{Markup, html};

use super::{
    frame::{self, Page, Place, heading},
    target::{crumbs_to, target, written},
    viewer::{Viewer, nothing_here, registry_failed},
    words::{count, plain},
};
use crate::{
    app::App,
    events::Pending,
    observe::Event,
    registry::{Deletion, RegistryError},
    request::RequestInfo,
};

/// How many tags are named that go as well; of more, how many there are.
const MAX_NAMED_TAGS: usize = 12;

/// What goes with an image.
struct Company {
    /// The first of its tags.
    tags: Vec<String>,
    /// How many there are; nothing if that isn't known.
    tag_count: Option<u64>,
    /// How many things are attached to it.
    attached: usize,
}

impl Company {
    async fn of(app: &App, repository: &Repository, digest: &Digest) -> Result<Self, RegistryError> {
        let search = Search { q: None, page: ListPage { n: Some(MAX_NAMED_TAGS + 1), last: None } };
        let selection = TagSelection { search, digest: Some(digest.clone()), ..TagSelection::default() };
        let tags = app.registry.describe_tags(repository, selection).await?;
        let tag_count = tags.as_ref().map(|tags| tags.matching);
        let tags = tags.map(|list| list.tags.into_iter().map(|tag| tag.tag).collect()).unwrap_or_default();
        let attached = app.registry.referrers(repository, digest).await?.len();
        Ok(Self { tags, tag_count, attached })
    }

    /// The tags but one, in words; nothing if there are none.
    fn tags_but(&self, except: Option<&str>) -> Option<Markup> {
        let others: Vec<&String> =
            self.tags.iter().filter(|tag| Some(tag.as_str()) != except).take(MAX_NAMED_TAGS).collect();
        let total = self.tag_count?.saturating_sub(u64::from(except.is_some()));
        let unnamed = total.saturating_sub(others.len() as u64);
        let last = others.len().saturating_sub(1);
        (total > 0).then(|| {
            html! {
                @for (i, tag) in others.iter().enumerate() {
                    @if i > 0 { @if i == last && unnamed == 0 { " and " } @else { ", " } }
                    strong { (tag) }
                }
                @if unnamed > 0 { " and " (count(unnamed)) " more" }
            }
        })
    }
}

/// `GET /delete/<name>:<tag>` or `…@<digest>`: says what goes, and asks.
pub async fn confirm(
    State(app): State<Arc<App>>,
    Extension(request): Extension<RequestInfo>,
    headers: HeaderMap,
    Path(text): Path<String>,
) -> Response {
    let (viewer, _) = match Viewer::signed_in(&app, &request, &headers, &format!("/delete/{text}")).await {
        Ok(known) => known,
        Err(response) => return response,
    };
    match question(&app, &viewer, &text).await {
        Ok(Some(page)) => page.show(&viewer),
        Ok(None) => nothing_here(&viewer, "image that you may delete"),
        Err(error) => registry_failed(&error, &request),
    }
}

async fn question(app: &App, viewer: &Viewer, text: &str) -> Result<Option<Page>, RegistryError> {
    let wanted = target(text).filter(|(repository, reference)| viewer.may_delete(repository, reference));
    let Some((repository, reference)) = wanted else { return Ok(None) };
    let Some(found) = app.registry.manifest(&repository, &reference).await? else { return Ok(None) };
    let company = Company::of(app, &repository, &found.digest).await?;
    let by_digest = Reference::Digest(found.digest);
    let own = match &reference {
        Reference::Tag(tag) => Some(tag.as_str()),
        Reference::Digest(_) => None,
    };
    let form = |reference: &Reference, title: &str, button: &str, kind: &str, words: &Markup| {
        html! {
            form class="card" method="post" action={ "/delete/" (written(&repository, reference)) } {
                h2 { (title) }
                p { (words) }
                div class="actions" { button class=(kind) { (button) } }
            }
        }
    };
    let others = company.tags_but(own);
    let body = html! {
        (crumbs_to(&repository))
        (heading(&format!("Delete {text}?"), &html! { "What is deleted comes back only by pushing it again." }))
        div class="halves" {
        @if let Some(tag) = own {
            (form(&reference, "Only the tag", "Delete the tag", "danger", &html! {
                "Only the tag " strong { (tag) } " goes. "
                @match (&others, company.tag_count) {
                    (Some(others), _) => { "The image stays as " (others) "." }
                    (None, Some(_)) => "The image has no other tag; it stays under its digest.",
                    (None, None) => "The image stays under its other tags and its digest.",
                }
            }))
        }
        @if viewer.may_delete(&repository, &by_digest) {
            (form(&by_digest, "The image", "Delete the image", "danger sure", &html! {
                "The image itself goes"
                @match (company.tags_but(None), company.tag_count) {
                    (Some(tags), _) => { ", and with it " (tags) ". " }
                    (None, Some(_)) => "; it has no tag. ",
                    (None, None) => ", with every tag that points at it. ",
                }
                @match company.attached {
                    0 => {}
                    1 => "What is attached to it will point at nothing.",
                    n => { "The " (n) " signatures and documents attached to it will point at nothing." }
                }
            }))
        }
        }
        div class="actions" { a class="button quiet" href={ "/image/" (text) } { "Keep it" } }
    };
    Ok(Some(Page::at(Place::Repositories, format!("Delete {text}?"), body)))
}

/// `POST /delete/<name>:<tag>` or `…@<digest>`
pub async fn delete(
    State(app): State<Arc<App>>,
    Extension(request): Extension<RequestInfo>,
    headers: HeaderMap,
    Path(text): Path<String>,
) -> Response {
    let (viewer, owner) = match Viewer::sender(&app, &request, &headers).await {
        Ok(known) => known,
        Err(response) => return response,
    };
    let Some((repository, reference)) = target(&text).filter(|(name, reference)| viewer.may_delete(name, reference))
    else {
        return nothing_here(&viewer, "image that you may delete");
    };
    // Of what is told of, nothing is done that can't be.
    let mut pending = None;
    if let Some(events) = &app.events {
        let asker = request.asker(&Method::DELETE);
        pending = match Pending::deletion(events, &app.registry, &repository, &reference, asker).await {
            Ok(pending) => Some(pending),
            Err(error) => {
                let why = plain(&error.to_string());
                return frame::refusal(StatusCode::SERVICE_UNAVAILABLE, "Nothing was deleted", &why, &request.id)
                    .into_response();
            }
        };
    }
    let deleted = app.registry.delete(&repository, &reference).await;
    if let (Some(pending), Ok(deletion)) = (&mut pending, &deleted) {
        let is_done = matches!(deletion, Deletion::Done);
        pending.answered(if is_done { StatusCode::ACCEPTED } else { StatusCode::CONFLICT }).await;
    }
    match deleted {
        Ok(Deletion::Done) => {
            tracing::info!(request = request.id, user = owner.identity.user, target = text, "deleted from a page");
            let operation = Operation::DeleteManifest { repository: repository.clone(), reference: reference.clone() };
            app.audit.record(
                &request.origin(),
                &Event::Request {
                    event: "delete",
                    operation: operation.name(),
                    action: "DELETE",
                    object: &operation.target(),
                    repository: Some(repository.as_str()),
                    reference: Some(reference.to_string()),
                    tags: Vec::new(),
                    from: None,
                    status: StatusCode::ACCEPTED.as_u16(),
                    received: 0,
                    sent: 0,
                },
            );
            // With its last image a repository is gone.
            let page = ListPage { n: Some(1), last: None };
            let is_left = !matches!(app.registry.tags(&repository, page).await, Ok(None));
            let next = if is_left { format!("/repository/{repository}") } else { "/repositories".to_owned() };
            Redirect::to(&next).into_response()
        }
        Ok(Deletion::NotFound) => nothing_here(&viewer, "image that you may delete"),
        Ok(Deletion::Refused(why)) => {
            frame::refusal(StatusCode::CONFLICT, "Nothing was deleted", &plain(&why), &request.id).into_response()
        }
        Err(error) => registry_failed(&error, &request),
    }
}
