//! A terminal asks to be signed in: somebody looks who asks, and says yes or no. Looking at it changes nothing.

use std::sync::Arc;

use axum::{
    Extension, Form,
    extract::{Query, State},
    http::{HeaderMap, StatusCode},
    response::{IntoResponse, Response},
};
use maud::{Markup, html};
use serde::Deserialize;

use super::{
    frame::{self, Page, heading},
    viewer::{Viewer, database_failed, unrecognized},
    words::{ago, in_query, plain},
};
use crate::{
    app::App,
    identity::{
        Refusal,
        terminal::{MAX_TERMINALS, set_code},
    },
    observe::Event,
    request::RequestInfo,
    site::{browser_session::Owner, device::CONFIRM_PATH},
    store::{Asking, PersonId},
};

/// The longest text that is taken for a code.
const MAX_TYPED_CHARS: usize = 40;

#[derive(Deserialize, Default)]
pub struct Code {
    #[serde(default)]
    user_code: String,
}

/// `GET /device?user_code=…`
pub async fn show(
    State(app): State<Arc<App>>,
    Extension(request): Extension<RequestInfo>,
    headers: HeaderMap,
    Query(code): Query<Code>,
) -> Response {
    let typed: String = code.user_code.trim().chars().take(MAX_TYPED_CHARS).collect();
    let path = match typed.is_empty() {
        true => CONFIRM_PATH.to_owned(),
        false => format!("{CONFIRM_PATH}?user_code={}", in_query(&typed)),
    };
    let (viewer, owner) = match Viewer::signed_in(&app, &request, &headers, &path).await {
        Ok(known) => known,
        Err(response) => return response,
    };
    if typed.is_empty() {
        return ask_for_code(StatusCode::OK, "", None).show(&viewer);
    }
    match asking(&app, &request, &owner, &typed).await {
        Ok(asking) => question(&asking, &set_code(&typed), &owner).show(&viewer),
        Err(Refusal::Rejected(rejection)) => {
            ask_for_code(StatusCode::NOT_FOUND, &typed, Some(&rejection.to_string())).show(&viewer)
        }
        Err(refusal) => unrecognized(&refusal, &request),
    }
}

/// The terminal that asks under a code. Whoever tries out codes has to wait, as for passwords.
async fn asking(app: &App, request: &RequestInfo, owner: &Owner, typed: &str) -> Result<Asking, Refusal> {
    let limits = &app.identities.limits;
    let _trying = limits.may_try(request.client, &owner.identity.user)?;
    let found = app.identities.terminals.asking(typed).await;
    found.map_err(|refusal| match refusal.is_guess() {
        true => limits.failed(request.client, Some(&owner.identity.user), refusal),
        false => refusal,
    })
}

fn ask_for_code(status: StatusCode, typed: &str, problem: Option<&str>) -> Page {
    let body = html! {
        section class="card narrow" {
            h1 { "Sign in a terminal" }
            @if let Some(problem) = problem { p role="alert" class="reason" { (problem) "." } }
            form class="stack" method="get" action=(CONFIRM_PATH) {
                label {
                    "The code that your terminal shows"
                    input class="code" name="user_code" value=(plain(typed)) required maxlength=(MAX_TYPED_CHARS) autocomplete="off"
                        autocapitalize="characters" spellcheck="false" placeholder="XXXX-XXXX";
                }
                div class="actions" { button { "Continue" } }
            }
            p class="fine" { "Type only a code that a terminal of yours shows right now. Nobody of this registry ever sends you one." }
        }
    };
    Page::new(status, "Sign in a terminal", body)
}

/// What it would be for, as people say it.
fn extent(scopes: &[String]) -> Markup {
    let patterns: Vec<&String> =
        scopes.iter().filter(|scope| !matches!(scope.as_str(), "read" | "push" | "delete")).collect();
    let has = |action: &str| scopes.iter().any(|scope| scope == action);
    let verbs: Vec<&str> = [("read", "pull"), ("push", "pull and push"), ("delete", "delete")]
        .into_iter()
        .filter(|(scope, _)| has(scope) && !(*scope == "read" && has("push")))
        .map(|(_, verb)| verb)
        .collect();
    html! {
        @if verbs.is_empty() { "do all that you can" } @else { (verbs.join(" and ")) }
        @if patterns.is_empty() { ", in every repository that you can" } @else {
            ", only in "
            @for (i, pattern) in patterns.iter().enumerate() { @if i > 0 { ", " } code { (plain(pattern)) } }
        }
    }
}

fn question(asking: &Asking, code: &str, owner: &Owner) -> Page {
    let body = html! {
        (heading("Sign in this terminal?", &html! { "It would act as " strong { (owner.identity.user) } ", until you end it under Sessions." }))
        section class="card narrow" {
            p class="device-code" { span class="soft" { "Code" } strong { (code) } }
            dl {
                dt { "Calls itself" } dd { (plain(&asking.name)) }
                dt { "Asks from" } dd { code { @if asking.client.is_empty() { "an unknown address" } @else { (asking.client) } } }
                dt { "Asked" } dd { (ago(asking.created_at)) }
                dt { "Could" } dd { (extent(&asking.scopes)) }
            }
            p class="reason" {
                strong { "Only go on if you have just begun this yourself" } ", and your terminal shows the same code. "
                "If somebody has sent you this code or this link, they want to act as you."
            }
            form class="actions" method="post" action=(CONFIRM_PATH) {
                input type="hidden" name="user_code" value=(code);
                button name="decision" value="allow" { "Sign it in" }
                button class="quiet" name="decision" value="deny" { "No, it isn't mine" }
            }
        }
    };
    Page::new(StatusCode::OK, "Sign in this terminal?", body)
}

#[derive(Deserialize)]
pub struct Decide {
    user_code: String,
    decision: String,
}

/// `POST /device`
pub async fn decide(
    State(app): State<Arc<App>>,
    Extension(request): Extension<RequestInfo>,
    headers: HeaderMap,
    Form(form): Form<Decide>,
) -> Response {
    let (viewer, owner) = match Viewer::sender(&app, &request, &headers).await {
        Ok(known) => known,
        Err(response) => return response,
    };
    let allowed = form.decision == "allow";
    let typed: String = form.user_code.chars().take(MAX_TYPED_CHARS).collect();
    let decided = async {
        let asking = asking(&app, &request, &owner, &typed).await?;
        let full = allowed && app.identities.terminals.of(&owner.id).await?.len() >= MAX_TERMINALS;
        if !full {
            app.identities.terminals.decide(&typed, &owner.id, allowed).await?;
        }
        Ok((asking, full))
    };
    match decided.await {
        Ok((_, true)) => {
            let reason =
                format!("you have {MAX_TERMINALS} terminals, which is as many as one person may have; end some first");
            frame::refusal(StatusCode::FORBIDDEN, "It was not signed in", &reason, &request.id).into_response()
        }
        Ok((asking, false)) => {
            record(&app, &request, &owner.id, &asking, allowed);
            let (title, text) = match allowed {
                true => (
                    "Go back to your terminal",
                    "It is signed in now. You find it under Sessions, where you can end it.",
                ),
                false => ("It was not signed in", "Whoever asked has got nothing."),
            };
            let body = html! {
                section class="card narrow" {
                    h1 { (title) } p role="status" { strong { (plain(&asking.name)) } ": " (text) }
                    p { a href="/sessions" { "Your sessions and terminals" } }
                }
            };
            Page::new(StatusCode::OK, title, body).show(&viewer)
        }
        Err(Refusal::Rejected(rejection)) => {
            ask_for_code(StatusCode::NOT_FOUND, &typed, Some(&rejection.to_string())).show(&viewer)
        }
        Err(refusal @ Refusal::Throttled(_)) => unrecognized(&refusal, &request),
        Err(refusal) => database_failed(&refusal, &request),
    }
}

fn record(app: &App, request: &RequestInfo, by: &PersonId, asking: &Asking, allowed: bool) {
    let Asking { name, client, .. } = asking;
    tracing::info!(request = request.id, provider = by.provider, allowed, "somebody has decided about a terminal");
    app.audit.record(&request.origin(), &Event::TerminalDecided { name, from: client, allowed });
}
