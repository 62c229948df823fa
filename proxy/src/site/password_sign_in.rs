//! Signing in with a password of the password file, for browsers: the form of the sign-in page.

use std::sync::Arc;

use axum::{
    Extension, Form,
    extract::State,
    http::{HeaderMap, HeaderValue, StatusCode, header::RETRY_AFTER},
    response::{IntoResponse, Redirect, Response},
};
use serde::Deserialize;

use super::{
    browser_session::with_cookies,
    pages::{SignInFailure, refusal},
    sign_in::{NotBegun, begin_session, return_to},
};
use crate::{
    app::App,
    identity::{AuthMethod, Credential, Refusal, Rejection},
    observe::Event,
    oidc::{ProviderTokens, SignedIn},
    request::{RequestInfo, is_our_own},
    store::{PASSWORD_FILE, PersonId, StoreError, User},
};

#[derive(Deserialize)]
pub struct Shown {
    name: String,
    password: String,
    #[serde(default)]
    callback_ui: Option<String>,
}

/// `POST /zot/auth/login`
pub async fn sign_in(
    State(app): State<Arc<App>>,
    Extension(request): Extension<RequestInfo>,
    headers: HeaderMap,
    Form(shown): Form<Shown>,
) -> Response {
    // Another site's page could sign somebody in as somebody else.
    if !is_our_own(&headers, &app.external_url) {
        let reason = "the form came from another site's page";
        return refusal(StatusCode::FORBIDDEN, "You are not signed in", reason, &request.id).into_response();
    }
    let back = shown.callback_ui.clone().unwrap_or_else(|| "/".to_owned());
    match sign_in_with(&app, &request, &headers, shown).await {
        Ok(response) => response,
        Err(refused) => {
            let reason = refused.to_string();
            app.metrics.sign_in(if refused.status().is_server_error() { "failed" } else { "refused" });
            app.audit.record(&request.origin(), &Event::SignInRefused { reason: &reason });
            tracing::warn!(request = request.id, client = ?request.client, reason, "a sign-in was refused");
            let failure =
                SignInFailure { status: refused.status(), reason: &reason, request_id: &request.id, back: &back };
            let mut response = failure.page(&app).into_response();
            if let Refused::Credential(Refusal::Throttled(wait)) = &refused {
                response.headers_mut().insert(RETRY_AFTER, HeaderValue::from(wait.as_secs() + 1));
            }
            response
        }
    }
}

#[derive(Debug, thiserror::Error)]
enum Refused {
    #[error("callback_ui may only lead to a page of this registry, or to an origin in callbackAllowOrigins")]
    ReturnTo,
    #[error("the name or the password is wrong")]
    Wrong,
    #[error("{0}")]
    Credential(Refusal),
    #[error(
        "the user name '{0}' belongs to somebody here whom an identity provider has signed in; sign in there, or let an \
         operator give you the name with: berth-proxy people CONFIG release NAME"
    )]
    NameTaken(String),
    #[error("the registry's database can't be reached, so nobody can be signed in now; its log says why")]
    Store,
}

impl Refused {
    fn status(&self) -> StatusCode {
        match self {
            Self::ReturnTo => StatusCode::BAD_REQUEST,
            Self::Wrong | Self::NameTaken(_) | Self::Credential(Refusal::Rejected(_)) => StatusCode::FORBIDDEN,
            Self::Credential(Refusal::Throttled(_)) => StatusCode::TOO_MANY_REQUESTS,
            Self::Credential(Refusal::Unavailable(_)) | Self::Store => StatusCode::SERVICE_UNAVAILABLE,
        }
    }
}

async fn sign_in_with(
    app: &App,
    request: &RequestInfo,
    headers: &HeaderMap,
    shown: Shown,
) -> Result<Response, Refused> {
    let return_to = return_to(app, shown.callback_ui.as_deref()).map_err(|_| Refused::ReturnTo)?;
    let live = app.live();
    // What else is taken as a password isn't typed into a page.
    let file = live.verifiers.passwords.as_ref().ok_or(Refused::Wrong)?;
    let shown = Credential::Basic { user: shown.name, password: shown.password };
    let caller = app.identities.identify(&live.verifiers, &shown, &request.connection(None)).await;
    let identity = match caller {
        Ok(caller) => caller.identity.ok_or(Refused::Wrong)?,
        Err(refusal) => {
            app.refused(request, shown.claimed_user(), &refusal);
            return Err(match refusal {
                Refusal::Rejected(Rejection::WrongPassword) => Refused::Wrong,
                other => Refused::Credential(other),
            });
        }
    };
    let AuthMethod::Password(fingerprint) = &identity.method else { return Err(Refused::Wrong) };
    let claims = file.claims(fingerprint);
    let id = PersonId { provider: PASSWORD_FILE.to_owned(), subject: identity.user.clone() };
    let user = User { id, name: identity.user.clone(), groups: Vec::new(), claims };
    // What was opened with another password, by them or by whoever had the name, doesn't live again with this one.
    let failed = |error: StoreError| {
        tracing::error!(%error, "a session can't be stored");
        Refused::Store
    };
    let known = app.store.user_by_name(&user.name).await.map_err(failed)?;
    if known.is_some_and(|known| known.id == user.id && known.claims != user.claims) {
        app.store.end_all_of(&user.id).await.map_err(failed)?;
    }
    let signed_in = SignedIn { user, sid: None, tokens: ProviderTokens::default(), expires_in: 0 };
    let cookie = begin_session(app, request, headers, &signed_in).await.map_err(|not_begun| match not_begun {
        NotBegun::NameTaken => Refused::NameTaken(identity.user.clone()),
        NotBegun::Failed => Refused::Store,
    })?;
    Ok(with_cookies(Redirect::to(&return_to).into_response(), cookie))
}
