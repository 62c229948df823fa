//! What somebody may do, and which rule says so.

use std::sync::Arc;

use axum::{
    Extension,
    extract::{Query, State},
    http::HeaderMap,
    response::Response,
};
use berth_oci::{Reference, Repository};
use maud::{Markup, html};
use serde::Deserialize;

use super::{
    frame::{Page, Place, heading},
    viewer::Viewer,
    words::plain,
};
use crate::{action::Action, app::App, identity::Identity, policy::Question, request::RequestInfo};

#[derive(Deserialize, Default)]
pub struct Asked {
    #[serde(default)]
    repository: String,
}

/// `GET /access?repository=…`
pub async fn show(
    State(app): State<Arc<App>>,
    Extension(request): Extension<RequestInfo>,
    headers: HeaderMap,
    Query(asked): Query<Asked>,
) -> Response {
    let (viewer, owner) = match Viewer::signed_in(&app, &request, &headers, "/access").await {
        Ok(known) => known,
        Err(response) => return response,
    };
    let target = plain(asked.repository.trim());
    let body = html! {
        (heading("My access", &html! { "Who you are here, and what the rules let you do." }))
        div class="columns" {
            section class="card" {
                h2 { "A repository" }
                form class="search" method="get" action="/access" {
                    input name="repository" value=(target) required aria-label="Repository" placeholder="team/api, or team/api:tag" autocomplete="off";
                    button { "Ask" }
                }
                @if !target.is_empty() { (answers(&viewer, &target)) }
            }
            (who(&viewer, &owner.identity))
        }
    };
    Page::at(Place::Access, "My access", body).show(&viewer)
}

fn who(viewer: &Viewer, identity: &Identity) -> Markup {
    let from_provider = |group: &String| identity.groups.contains(group);
    html! {
        section class="card" {
            h2 { "You" }
            dl {
                dt { "Name" } dd { (identity.user) }
                dt { "Groups" }
                dd {
                    @if viewer.groups.is_empty() { "none" }
                    ul class="plain" { @for group in &viewer.groups { li {
                        (group) " " span class="soft" { @if from_provider(group) { "from the identity provider" } @else { "from the configuration" } }
                    } } }
                }
            }
        }
    }
}

/// Each action with yes or no, and the rule that decides, as `berth-proxy can` says it.
fn answers(viewer: &Viewer, target: &str) -> Markup {
    // A digest has a colon, a tag has none, and a repository has neither.
    let (name, reference) = match target.split_once(['@', ':']) {
        None => (target, None),
        Some((name, reference)) => (name, Some(reference)),
    };
    let repository = match name.parse::<Repository>() {
        Ok(repository) => repository,
        Err(error) => return html! { p role="alert" class="reason" { (plain(name)) ": " (error) } },
    };
    let reference = match reference.map(str::parse::<Reference>).transpose() {
        Ok(reference) => reference,
        Err(error) => return html! { p role="alert" class="reason" { (target) ": " (error) } },
    };
    let actions = [
        (Action::Read, "Pull and list"),
        (Action::Create, "Push something new"),
        (Action::Update, "Move a tag"),
        (Action::Delete, "Delete"),
    ];
    html! {
        div class="scroll" {
            table {
                caption { "You, and " strong { (target) } }
                thead { tr { th scope="col" { "To" } th scope="col" { "May I?" } th scope="col" { "Because of" } } }
                tbody {
                    @for (action, name) in actions {
                        @let question = Question { action, repository: repository.as_str(), reference: reference.as_ref() };
                        @let decision = viewer.live.rules.evaluate(viewer.identity(), &question, viewer.circumstances());
                        tr {
                            th scope="row" { (name) }
                            td { @if decision.allowed { span class="chip good" { "yes" } } @else { span class="chip bad" { "no" } } }
                            td { code { (decision.rule.to_string()) } @if let Some(message) = decision.message() { br; (plain(message)) } }
                        }
                    }
                }
            }
        }
    }
}
