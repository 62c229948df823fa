//! The way in.

use axum::http::StatusCode;
use maud::{Markup, html};

use super::{
    frame::Page,
    words::{command, in_query},
};
use crate::app::App;

/// A sign-in that ended nowhere: it is told where one begins anew.
pub struct SignInFailure<'a> {
    pub status: StatusCode,
    pub reason: &'a str,
    /// By which the log has the same reason.
    pub request_id: &'a str,
    /// Where the next one returns to.
    pub back: &'a str,
}

impl SignInFailure<'_> {
    /// The page on which one signs in, with the reason.
    pub fn page(&self, app: &App) -> Page {
        let notice = html! {
            div role="alert" class="reason" {
                p { strong { "You are not signed in" } }
                p { (self.reason) "." }
                p class="fine" { "Request " code { (self.request_id) } ". Give it to whoever runs this registry: the log says more under it." }
            }
        };
        Page::new(self.status, "Sign in", body(app, self.back, Some(&notice)))
    }
}

/// The page on which one signs in, and comes back to `path`.
pub fn page(app: &App, path: &str, notice: Option<&str>) -> Page {
    let notice = notice.map(|notice| html! { p role="status" class="reason" { (notice) } });
    Page::new(StatusCode::OK, "Sign in", body(app, path, notice.as_ref()))
}

fn body(app: &App, path: &str, notice: Option<&Markup>) -> Markup {
    let host = app.external_url.authority();
    let live = app.live();
    let back = in_query(path);
    let has_passwords = live.verifiers.passwords.is_some();
    html! {
        section class="card welcome" {
            h1 { "Sign in" }
            p class="soft" { "The container registry of " strong { (host) } }
            @if let Some(notice) = notice { (notice) }
            @for provider in live.providers() {
                a class="button wide" href={ "/zot/auth/login?provider=" (provider.config.id) "&callback_ui=" (back) } {
                    "SIGN IN WITH " (provider.config.name)
                }
            }
            @if has_passwords {
                form class="stack" method="post" action="/zot/auth/login" {
                    input type="hidden" name="callback_ui" value=(path);
                    label { "Name" input name="name" required autocomplete="username" autocapitalize="none" spellcheck="false"; }
                    label { "Password" input name="password" type="password" required autocomplete="current-password"; }
                    button class=(if live.providers().is_empty() { "wide" } else { "quiet wide" }) { "Sign in with a password" }
                }
            }
            @if live.rules.has_anonymous() { a class="button quiet wide" href="/repositories" { "Look around without signing in" } }
            @if live.providers().is_empty() && !has_passwords {
                p {
                    "Nobody signs in with a browser here: no identity provider is configured. Clients log in with the name and "
                    "password that whoever runs this registry has given you:"
                }
                (command(&format!("docker login {host}")))
            } @else {
                details {
                    summary { "Pushing from a terminal?" }
                    @if app.identities.api_keys { p { "Sign in here, make an API key under " strong { "Keys" } ", and log in with it:" } }
                    (command(&format!("docker login {host}")))
                }
            }
        }
    }
}
