//! Who looks at a page, and what they may see.

use std::sync::Arc;

use axum::{
    http::{HeaderMap, HeaderValue, Method, StatusCode, header},
    response::{IntoResponse, Redirect, Response},
};
use berth_oci::{Operation, Reference, Repository};
use maud::{Markup, html};

use super::{
    frame, welcome,
    words::{ago, until},
};
use crate::{
    app::{App, Reloadable},
    identity::{Identity, Refusal, Rejection},
    policy::{Circumstances, Verdict},
    request::{RequestInfo, is_our_own},
    site::browser_session::{BrowserSession, Owner, browser_session, clear_cookie, with_cookies},
    store::PersonId,
};

/// Somebody who looks at a page.
pub struct Viewer {
    /// Nobody, for who looks around without signing in.
    pub owner: Option<Owner>,
    /// As the rules know them, by name.
    pub groups: Vec<String>,
    /// What the registry is called.
    pub host: String,
    /// Whether there are API keys here.
    pub has_keys: bool,
    /// Whether `adminPolicy` names them.
    pub is_admin: bool,
    /// What they should know on each page.
    pub notice: Option<Markup>,
    pub live: Arc<Reloadable>,
    circumstances: Circumstances,
}

impl Viewer {
    /// Whoever looks at a page that everybody may who may read something. Who isn't signed in and may read nothing is led to
    /// sign in, and back to `path`.
    pub async fn of(app: &App, request: &RequestInfo, headers: &HeaderMap, path: &str) -> Result<Self, Response> {
        let mut viewer = match browser_session(app, request, headers).await {
            Ok(BrowserSession::Known(owner)) => Self::new(app, request, Some(owner)),
            Ok(BrowserSession::Unknown) => Self::new(app, request, None),
            Ok(BrowserSession::Ended(rejection)) => {
                let notice = match rejection {
                    Rejection::UnknownSession => "Your session has ended. Sign in again to go on.".to_owned(),
                    other => format!("Your session has ended: {other}."),
                };
                let page = welcome::page(app, path, Some(&notice));
                return Err(with_cookies(page.into_response(), clear_cookie(app, app.session_cookie())));
            }
            Err(refusal) => return Err(unrecognized(&refusal, request)),
        };
        if viewer.owner.is_none() && !viewer.live.rules.has_anonymous() {
            return Err(welcome::page(app, path, None).into_response());
        }
        if let Some(Owner { identity, id }) = &viewer.owner {
            let standing = app.identities.standings.of(id, &identity.user).await;
            let since = standing.map_err(|error| database_failed(&error, request))?.and_then(|s| s.unconfirmed_since);
            viewer.notice = since.map(|since| unconfirmed_notice(app, since, id));
        }
        Ok(viewer)
    }

    /// The same for a page that is about oneself.
    pub async fn signed_in(
        app: &App,
        request: &RequestInfo,
        headers: &HeaderMap,
        path: &str,
    ) -> Result<(Self, Owner), Response> {
        let viewer = Self::of(app, request, headers, path).await?;
        match viewer.owner.clone() {
            None => Err(welcome::page(app, path, None).into_response()),
            Some(owner) => Ok((viewer, owner)),
        }
    }

    /// The same for who looks after the registry; to others there is no such page.
    pub async fn admin(app: &App, request: &RequestInfo, headers: &HeaderMap, path: &str) -> Result<Self, Response> {
        let (viewer, _) = Self::signed_in(app, request, headers, path).await?;
        if viewer.is_admin { Ok(viewer) } else { Err(nothing_here(&viewer, "page")) }
    }

    /// The same for who sends a form of a page.
    pub async fn sender(app: &App, request: &RequestInfo, headers: &HeaderMap) -> Result<(Self, Owner), Response> {
        if !is_our_own(headers, &app.external_url) {
            let reason = "the form came from another site's page";
            let page = frame::refusal(StatusCode::FORBIDDEN, "Nothing was changed", reason, &request.id);
            return Err(page.into_response());
        }
        let viewer = Self::of(app, request, headers, "/").await?;
        let owner = viewer.owner.clone().ok_or_else(|| Redirect::to("/").into_response())?;
        Ok((viewer, owner))
    }

    fn new(app: &App, request: &RequestInfo, owner: Option<Owner>) -> Self {
        let live = app.live();
        let groups = owner.as_ref().map(|owner| live.rules.groups_of(&owner.identity)).unwrap_or_default();
        let host = app.external_url.authority().to_owned();
        let circumstances = request.circumstances(&Method::GET);
        let is_admin = owner.as_ref().is_some_and(|owner| live.rules.is_admin(&owner.identity));
        let has_keys = app.identities.api_keys;
        Self { owner, groups, host, has_keys, is_admin, notice: None, live, circumstances }
    }

    /// As the rules know them.
    pub fn identity(&self) -> Option<&Identity> {
        self.owner.as_ref().map(|owner| &*owner.identity)
    }

    /// What they are called.
    pub fn user(&self) -> Option<&str> {
        self.identity().map(|identity| identity.user.as_str())
    }

    /// What the rules may look at.
    pub fn circumstances(&self) -> &Circumstances {
        &self.circumstances
    }

    /// Whether they may read a repository.
    pub fn may_read(&self, repository: &str) -> bool {
        self.live.rules.may_read(self.identity(), repository, &self.circumstances)
    }

    /// Whether they may do this with the registry.
    pub fn may(&self, operation: &Operation) -> bool {
        matches!(self.live.rules.authorize(self.identity(), operation, &self.circumstances), Verdict::Allowed(..))
    }

    /// Whether they may delete what a reference names.
    pub fn may_delete(&self, repository: &Repository, reference: &Reference) -> bool {
        self.may(&Operation::DeleteManifest { repository: repository.clone(), reference: reference.clone() })
    }
}

/// What somebody is told whose provider can't be asked about them any more.
fn unconfirmed_notice(app: &App, since: i64, id: &PersonId) -> Markup {
    let grace = i64::try_from(app.identities.renewals.grace().as_secs()).unwrap_or(i64::MAX);
    html! {
        p role="status" class="reason" {
            "Since " (ago(since)) " your identity provider can't be asked about you. Until it can, or until you "
            a href={ "/zot/auth/login?provider=" (id.provider) "&callback_ui=/" } { "sign in again" }
            ", your sessions and API keys go on as they are, and " (until(since.saturating_add(grace))) " they stop."
        }
    }
}

/// A page for when it can't be found out who somebody is.
pub fn unrecognized(refusal: &Refusal, request: &RequestInfo) -> Response {
    let Refusal::Throttled(wait) = refusal else { return database_failed(refusal, request) };
    let page = frame::refusal(StatusCode::TOO_MANY_REQUESTS, "Wait a moment", &refusal.to_string(), &request.id);
    let mut response = page.into_response();
    response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(wait.as_secs() + 1));
    response
}

/// A page for when the database is away.
pub fn database_failed(error: &dyn std::fmt::Display, request: &RequestInfo) -> Response {
    tracing::error!(request = request.id, %error, "a page can't be shown");
    let reason = "the registry's database can't be reached, so nobody can be recognized now";
    frame::refusal(StatusCode::SERVICE_UNAVAILABLE, "Try again later", reason, &request.id).into_response()
}

/// A page for when the registry is away.
pub fn registry_failed(error: &dyn std::fmt::Display, request: &RequestInfo) -> Response {
    tracing::error!(request = request.id, %error, "a page can't be shown");
    let reason = "The registry behind this page does not answer now";
    frame::refusal(StatusCode::BAD_GATEWAY, "Try again in a moment", reason, &request.id).into_response()
}

/// What isn't there and what one may not read look alike.
pub fn nothing_here(viewer: &Viewer, what: &str) -> Response {
    let body = html! {
        section class="card narrow" {
            h1 { "There is nothing here" }
            p { "There is no " (what) " of this name, or you may not read it." }
            div class="actions" {
                a class="button" href="/repositories" { "All repositories" }
                @if viewer.owner.is_none() { a class="button quiet" href="/" { "Sign in" } }
            }
        }
    };
    frame::Page::new(StatusCode::NOT_FOUND, "Nothing here", body).show(viewer)
}
