//! Where one is signed in: browsers, and terminals.

use std::sync::Arc;

use axum::{
    Extension, Form,
    extract::State,
    http::HeaderMap,
    response::{IntoResponse, Redirect, Response},
};
use maud::{Markup, html};
use serde::Deserialize;

use super::{
    frame::{Page, Place, heading},
    viewer::{Viewer, database_failed},
    words::{ago, plain},
};
use crate::{
    app::App,
    identity::AuthMethod,
    observe::Event,
    request::RequestInfo,
    site::browser_session::Owner,
    store::{Session, Terminal},
};

/// `GET /sessions`
pub async fn show(
    State(app): State<Arc<App>>,
    Extension(request): Extension<RequestInfo>,
    headers: HeaderMap,
) -> Response {
    let (viewer, owner) = match Viewer::signed_in(&app, &request, &headers, "/sessions").await {
        Ok(known) => known,
        Err(response) => return response,
    };
    let Owner { identity, id } = &owner;
    let sessions = match app.identities.sessions.of(id).await {
        Ok(sessions) => sessions,
        Err(error) => return database_failed(&error, &request),
    };
    let terminals = match app.identities.terminals.of(id).await {
        Ok(terminals) => terminals,
        Err(error) => return database_failed(&error, &request),
    };
    let this = |session: &Session| identity.method == AuthMethod::Session(session.id_hash.clone());
    let body = html! {
        (heading("Sessions", &html! { "Where you are signed in. Ending one signs that browser out at once." }))
        section class="card rows" { ul {
            @for session in &sessions {
                li {
                    div class="what" {
                        p { strong { (browser(&session.user_agent)) } @if this(session) { " " span class="chip" { "this one" } } }
                        p class="soft" {
                            "from " (session.client) " · signed in " (ago(session.created_at)) " · last used " (ago(session.used_at))
                        }
                    }
                    @if !this(session) {
                        form method="post" action="/sessions/end" {
                            input type="hidden" name="id" value=(session.id_hash);
                            button class="danger small" aria-label={ "End the session of " (browser(&session.user_agent)) } { "End" }
                        }
                    }
                }
            }
        } }
        section class="card rows" {
            h2 class="folder" { "Terminals" }
            @if terminals.is_empty() {
                p class="empty soft" { "None. To push without a stored password, run " code { "docker-credential-berth login " (viewer.host) } " in one." }
            }
            ul { @for terminal in &terminals { li {
                (terminal_row(terminal))
                form method="post" action="/sessions/end" {
                    input type="hidden" name="kind" value="terminal";
                    input type="hidden" name="id" value=(terminal.id);
                    button class="danger small" aria-label={ "End the terminal on " (plain(&terminal.name)) } { "End" }
                }
            } } }
        }
    };
    Page::at(Place::Sessions, "Sessions", body).show(&viewer)
}

/// A terminal, its extent, and when and where it was used.
pub fn terminal_row(terminal: &Terminal) -> Markup {
    html! {
        div class="what" {
            p {
                strong { "Terminal on " (plain(&terminal.name)) }
                @if !terminal.scopes.is_empty() { " " span class="chip" { (plain(&terminal.scopes.join(" · "))) } }
            }
            p class="soft" {
                "from " (terminal.used_from) " · signed in " (ago(terminal.created_at)) " · last used " (ago(terminal.used_at))
            }
        }
    }
}

/// `Firefox on Linux`, as far as a browser says what it is (RFC 9110, section 10.1.5).
pub fn browser(user_agent: &str) -> String {
    let first = |known: &[(&str, &'static str)]| {
        known.iter().find(|(mark, _)| user_agent.contains(mark)).map(|(_, name)| *name)
    };
    // Each says that it is like those below it.
    let name = first(&[
        ("Edg/", "Edge"),
        ("OPR/", "Opera"),
        ("Firefox/", "Firefox"),
        ("Chrome/", "Chrome"),
        ("Safari/", "Safari"),
    ]);
    let system = first(&[
        ("Android", "Android"),
        ("iPhone", "iPhone"),
        ("iPad", "iPad"),
        ("Windows", "Windows"),
        ("Mac OS X", "macOS"),
        ("CrOS", "ChromeOS"),
        ("Linux", "Linux"),
    ]);
    match (name, system) {
        (Some(name), Some(system)) => format!("{name} on {system}"),
        (Some(name), None) => name.to_owned(),
        _ if user_agent.is_empty() => "An unknown browser".to_owned(),
        _ => plain(user_agent),
    }
}

#[derive(Deserialize)]
pub struct End {
    id: String,
    /// `terminal`, or else a browser's session.
    #[serde(default)]
    kind: String,
}

/// `POST /sessions/end`
pub async fn end(
    State(app): State<Arc<App>>,
    Extension(request): Extension<RequestInfo>,
    headers: HeaderMap,
    Form(End { id, kind }): Form<End>,
) -> Response {
    let (_, owner) = match Viewer::sender(&app, &request, &headers).await {
        Ok(known) => known,
        Err(response) => return response,
    };
    let (ended, event) = match kind.as_str() {
        "terminal" => (app.identities.terminals.end_of(&owner.id, &id).await, Event::TerminalEnded { terminal: &id }),
        _ => (app.identities.sessions.end_of(&owner.id, &id).await, Event::SessionEnded),
    };
    match ended {
        Ok(there) => {
            if there {
                tracing::info!(request = request.id, user = owner.identity.user, kind, "ended from another session");
                app.audit.record(&request.origin(), &event);
            }
            Redirect::to("/sessions").into_response()
        }
        Err(error) => database_failed(&error, &request),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn browsers_are_called_as_people_call_them() {
        for (user_agent, expected) in [
            ("Mozilla/5.0 (X11; Linux x86_64; rv:145.0) Gecko/20100101 Firefox/145.0", "Firefox on Linux"),
            (
                "Mozilla/5.0 (Windows NT 10.0; Win64; x64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/142.0 Safari/537.36 Edg/142.0",
                "Edge on Windows",
            ),
            (
                "Mozilla/5.0 (iPhone; CPU iPhone OS 19_0 like Mac OS X) AppleWebKit/605 Version/19 Mobile/15E148 Safari/604.1",
                "Safari on iPhone",
            ),
            ("curl/8.5", "curl/8.5"),
            ("", "An unknown browser"),
        ] {
            assert_eq!(browser(user_agent), expected);
        }
    }
}
