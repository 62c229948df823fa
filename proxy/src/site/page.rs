//! The shape of every page. Plain HTML: it works without a script, and with a screen reader.

use axum::{
    http::{StatusCode, header},
    response::{IntoResponse, Response},
};
use maud::{DOCTYPE, Markup, html};

/// A page, with its status.
pub struct Page {
    status: StatusCode,
    title: String,
    body: Markup,
}

impl Page {
    /// A page.
    pub fn new(status: StatusCode, title: impl Into<String>, body: Markup) -> Self {
        Self { status, title: title.into(), body }
    }
}

impl IntoResponse for Page {
    fn into_response(self) -> Response {
        let markup = html! {
            (DOCTYPE)
            html lang="en" {
                head {
                    meta charset="utf-8";
                    meta name="viewport" content="width=device-width, initial-scale=1";
                    title { (self.title) " · Berth" }
                    link rel="stylesheet" href="/static/berth.css";
                }
                body {
                    header { a href="/" { "Berth" } }
                    main { (self.body) }
                }
            }
        };
        let html = [(header::CONTENT_TYPE, "text/html; charset=utf-8")];
        (self.status, html, markup.into_string()).into_response()
    }
}

/// A page that says one thing.
pub fn message(status: StatusCode, title: &str, text: &str) -> Page {
    Page::new(
        status,
        title,
        html! {
            h1 { (title) }
            p { (text) }
            p { a href="/" { "Back to the start" } }
        },
    )
}

/// A page that says why something was refused, and what to tell the operator.
pub fn refusal(status: StatusCode, title: &str, reason: &str, request_id: &str) -> Page {
    Page::new(
        status,
        title,
        html! {
            h1 { (title) }
            p role="alert" class="reason" { (reason) "." }
            p { a href="/" { "Back to the start" } }
            p class="small" { "Request " code { (request_id) } ": the registry's log has the same reason under this name." }
        },
    )
}
