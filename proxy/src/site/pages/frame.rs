//! The frame of every page: a bar with the mark, the places and who one is, a title, a sentence, cards.

use axum::{
    http::{StatusCode, header},
    response::{IntoResponse, Response},
};
use maud::{DOCTYPE, Markup, PreEscaped, html};

use super::viewer::Viewer;

/// Where one is, of the places in the bar.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// The images.
    Repositories,
    /// What one may do.
    Access,
    /// API keys.
    Keys,
    /// Browser sessions.
    Sessions,
    /// All of both, for who looks after the registry.
    People,
}

/// A page, with its status.
pub struct Page {
    status: StatusCode,
    title: String,
    body: Markup,
    place: Option<Place>,
}

/// The mark: a quay over two waves.
const MARK: &str = include_str!("mark.svg");

impl Page {
    /// A page of its own, without the bar's places.
    pub fn new(status: StatusCode, title: impl Into<String>, body: Markup) -> Self {
        Self { status, title: title.into(), body, place: None }
    }

    /// A page at one of the places.
    pub fn at(place: Place, title: impl Into<String>, body: Markup) -> Self {
        Self { place: Some(place), ..Self::new(StatusCode::OK, title, body) }
    }

    /// The page as somebody sees it.
    pub fn show(self, viewer: &Viewer) -> Response {
        self.render(Some(viewer))
    }

    fn render(self, viewer: Option<&Viewer>) -> Response {
        let markup = html! {
            (DOCTYPE)
            html lang="en" {
                head {
                    meta charset="utf-8";
                    meta name="viewport" content="width=device-width, initial-scale=1";
                    meta name="color-scheme" content="light dark";
                    title { (self.title) " · Berth" }
                    link rel="icon" type="image/svg+xml" href="/static/mark.svg";
                    link rel="stylesheet" href="/static/berth.css";
                    script src="/static/berth.js" defer {}
                }
                body {
                    a class="skip" href="#main" { "To the content" }
                    header class="bar" {
                        a class="brand" href="/" { span class="mark" aria-hidden="true" { (PreEscaped(MARK)) } "Berth" }
                        @if let Some(viewer) = viewer { (bar(viewer, self.place)) }
                    }
                    main id="main" { @if let Some(notice) = viewer.and_then(|viewer| viewer.notice.as_ref()) { (notice) } (self.body) }
                    @if let Some(viewer) = viewer { (foot(viewer)) }
                }
            }
        };
        let html = [(header::CONTENT_TYPE, "text/html; charset=utf-8")];
        (self.status, html, markup.into_string()).into_response()
    }
}

impl IntoResponse for Page {
    fn into_response(self) -> Response {
        self.render(None)
    }
}

fn bar(viewer: &Viewer, at: Option<Place>) -> Markup {
    let mut places = vec![(Place::Repositories, "Repositories", "/repositories")];
    if viewer.owner.is_some() {
        places.push((Place::Access, "My access", "/access"));
        if viewer.has_keys {
            places.push((Place::Keys, "Keys", "/keys"));
        }
        places.push((Place::Sessions, "Sessions", "/sessions"));
        if viewer.is_admin {
            places.push((Place::People, "People", "/people"));
        }
    }
    html! {
        nav aria-label="Places" {
            @for (place, name, address) in places {
                a href=(address) aria-current=[(at == Some(place)).then_some("page")] { (name) }
            }
        }
        div class="who" {
            span class="host" { (viewer.host) }
            @match viewer.user() {
                Some(user) => a class="me" href="/access" title="What you may do here" {
                    span class="face" aria-hidden="true" { (user.chars().next().unwrap_or('?').to_uppercase()) }
                    span class="name" { (user) }
                },
                None => a class="button small" href="/" { "Sign in" },
            }
        }
    }
}

fn foot(viewer: &Viewer) -> Markup {
    html! {
        footer {
            @match viewer.user() {
                Some(user) => {
                    p { "Signed in as " (user) ". "
                        @if viewer.groups.is_empty() { "You are in no group." } @else { "Your groups: " (viewer.groups.join(", ")) "." }
                    }
                    form method="post" action="/zot/auth/logout" { button class="quiet small" { "Sign out" } }
                }
                None => p { "You are looking around without signing in." },
            }
        }
    }
}

/// The title of a page, and the sentence under it that says what one is looking at.
pub fn heading(title: &str, sentence: &Markup) -> Markup {
    html! { div class="heading" { h1 { (title) } p class="soft" { (sentence) } } }
}

/// A page that says one thing.
pub fn message(status: StatusCode, title: &str, text: &str) -> Page {
    Page::new(
        status,
        title,
        html! { section class="card narrow" { h1 { (title) } p { (text) } p { a href="/" { "Back to the start" } } } },
    )
}

/// A page that says why something was refused, and what to tell the operator.
pub fn refusal(status: StatusCode, title: &str, reason: &str, request_id: &str) -> Page {
    Page::new(
        status,
        title,
        html! {
            section class="card narrow" {
                h1 { (title) }
                p role="alert" class="reason" { (reason) "." }
                p { a href="/" { "Back to the start" } }
                p class="fine" { "Request " code { (request_id) } ". Give it to whoever runs this registry: the log says more under it." }
            }
        },
    )
}
