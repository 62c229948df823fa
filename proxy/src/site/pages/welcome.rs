//! The way in.

use axum::http::StatusCode;
use maud::html;

use super::{
    frame::Page,
    words::{command, in_query},
};
use crate::app::App;

/// The page on which one signs in, and comes back to `path`.
pub fn page(app: &App, path: &str, notice: Option<&str>) -> Page {
    let host = app.external_url.authority();
    let live = app.live();
    let back = in_query(path);
    let body = html! {
        section class="card welcome" {
            h1 { "Sign in" }
            p class="soft" { "The container registry of " strong { (host) } }
            @if let Some(notice) = notice { p role="status" class="reason" { (notice) } }
            @for provider in live.providers() {
                a class="button wide" href={ "/zot/auth/login?provider=" (provider.config.id) "&callback_ui=" (back) } {
                    "SIGN IN WITH " (provider.config.name)
                }
            }
            @if live.rules.has_anonymous() { a class="button quiet wide" href="/repositories" { "Look around without signing in" } }
            @if live.providers().is_empty() {
                p {
                    "Nobody signs in with a browser here: no identity provider is configured. Clients log in with the name and "
                    "password that whoever runs this registry has given you:"
                }
                (command(&format!("docker login {host}")))
            } @else {
                details {
                    summary { "Pushing from a terminal?" }
                    p { "Sign in here, make an API key under " strong { "Keys" } ", and log in with it:" }
                    (command(&format!("docker login {host}")))
                }
            }
        }
    };
    Page::new(StatusCode::OK, "Sign in", body)
}
