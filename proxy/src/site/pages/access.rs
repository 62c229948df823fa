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
use serde_json::Map;

use super::{
    frame::{Page, Place, heading},
    viewer::{Viewer, database_failed},
    words::plain,
};
use crate::{
    action::Action,
    app::App,
    identity::Identity,
    policy::Question,
    request::RequestInfo,
    store::{StoreError, User},
};

#[derive(Deserialize, Default)]
pub struct Asked {
    #[serde(default)]
    repository: String,
    /// For whom it is asked, by who may ask for others.
    #[serde(default)]
    user: String,
    /// In which groups they are, if that isn't known here.
    #[serde(default)]
    groups: String,
}

/// `GET /access?repository=…`, and for who looks after the registry `&user=…&groups=…`
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
    let user = asked.user.trim();
    let other = match viewer.is_admin && !user.is_empty() && user != owner.identity.user {
        false => None,
        true => match somebody(&app, user, &asked.groups).await {
            Ok(other) => Some(other),
            Err(error) => return database_failed(&error, &request),
        },
    };
    let identity = other.as_ref().unwrap_or(&owner.identity);
    let title = match &other {
        None => "My access".to_owned(),
        Some(other) => format!("Access of {}", plain(&other.user)),
    };
    let sentence = match &other {
        None => html! { "Who you are here, and what the rules let you do." },
        Some(_) => html! { "What the rules would say if they asked now, from your address." },
    };
    let body = html! {
        (heading(&title, &sentence))
        div class="columns" {
            section class="card" {
                h2 { "What do the rules say?" }
                form class="stack" method="get" action="/access" {
                    @if viewer.is_admin {
                        div class="fields" {
                            label { "Person" input name="user" value=(plain(user)) placeholder=(owner.identity.user) autocomplete="off" autocapitalize="none"; }
                            label { "With these groups as well" input name="groups" value=(plain(&asked.groups)) placeholder="dev ops" autocomplete="off" autocapitalize="none"; }
                        }
                    }
                    label { "Repository"
                        input name="repository" value=(target) placeholder="team/api, or team/api:tag" autocomplete="off" autocapitalize="none";
                    }
                    div class="actions" { button { "Check" } }
                }
                @if !target.is_empty() { (answers(&viewer, identity, other.is_some(), &target)) }
            }
            (who(&viewer, identity, other.is_some()))
        }
    };
    Page::at(Place::Access, title, body).show(&viewer)
}

/// Somebody by name: as their provider last spoke of them, or as a stranger; in these groups as well.
async fn somebody(app: &App, name: &str, groups: &str) -> Result<Arc<Identity>, StoreError> {
    let known = app.store.user_by_name(name).await?;
    let (name, mut of_theirs, claims) = match known {
        Some(User { name, groups, claims, .. }) => (name, groups, claims),
        None => (name.to_owned(), Vec::new(), Map::new()),
    };
    of_theirs.extend(groups.split([' ', ',']).filter(|group| !group.is_empty()).map(str::to_owned));
    Ok(Arc::new(Identity::for_question(name, of_theirs, claims)))
}

fn who(viewer: &Viewer, identity: &Identity, is_other: bool) -> Markup {
    let groups = viewer.live.rules.groups_of(identity);
    let from_provider = |group: &String| identity.groups.contains(group);
    html! {
        section class="card" {
            h2 { @if is_other { (plain(&identity.user)) } @else { "You" } }
            dl {
                dt { "Name" } dd { (identity.user) }
                dt { "Groups" }
                dd {
                    @if groups.is_empty() { "none" }
                    ul class="plain" { @for group in &groups { li {
                        (group) " " span class="soft" { @if from_provider(group) { @if is_other { "from the identity provider, or as asked" } @else { "from the identity provider" } } @else { "from the configuration" } }
                    } } }
                }
            }
        }
    }
}

/// Each action with yes or no, and the rule that decides, as `berth-proxy can` says it.
fn answers(viewer: &Viewer, identity: &Identity, is_other: bool, target: &str) -> Markup {
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
            table class="answers" {
                caption { "What " @if is_other { (plain(&identity.user)) } @else { "you" } " may do in " strong { (target) } }
                thead { tr { th scope="col" { "Action" } th scope="col" { "Allowed" } th scope="col" { "Rule" } } }
                tbody {
                    @for (action, name) in actions {
                        @let question = Question { action, repository: repository.as_str(), reference: reference.as_ref() };
                        @let decision = viewer.live.rules.evaluate(Some(identity), &question, viewer.circumstances());
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
