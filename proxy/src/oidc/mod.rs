//! Signing in at an OpenID Connect provider: discovery, the authorization code flow with PKCE, and what comes of it.
//!
//! The provider may be away at any time. Discovery is fetched in the background and kept; a sign-in that can't
//! begin or end says why in words that an operator can act on.

mod app_password_grant;
mod claims;
mod discovery;
mod http;
pub mod jwt;
mod renewal;
mod settings;

use std::{pin::Pin, sync::Arc, time::Duration};

use openidconnect::{
    AccessTokenHash, AuthorizationCode, ClaimsVerificationError, CsrfToken, HttpRequest, HttpResponse, JsonWebKey,
    JwsSigningAlgorithm, Nonce, OAuth2TokenResponse, PkceCodeChallenge, PkceCodeVerifier, RequestTokenError, Scope,
    SignatureVerificationError, TokenResponse,
    core::{CoreAuthenticationFlow, CoreErrorResponseType, CoreIdToken, CoreJsonWebKey, CoreTokenResponse},
};
use serde::{Deserialize, Serialize};
use tokio::sync::RwLock;
use url::Url;

pub use self::{
    app_password_grant::ExchangeError,
    claims::user_of,
    discovery::{ForUnknownKeys, Freshness, Lately, keep_fresh, keys_of},
    http::Http,
    renewal::{RenewalError, Renewed},
    settings::{ProviderConfig, ScimConfig, TrustRoots},
};
use self::{discovery::Discovered, http::HttpError};
use crate::{secrets, store::User};

/// How long the provider may take for one answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);

/// Why nobody was signed in. The sentences are for the person in the browser and for the log.
#[derive(Debug, thiserror::Error)]
pub enum SignInError {
    /// The provider doesn't answer.
    #[error(
        "the identity provider at {issuer} can't be reached: {cause}. Whoever is signed in stays so; try again when it is back"
    )]
    Unreachable {
        /// Its issuer.
        issuer: String,
        /// Why.
        cause: String,
    },
    /// Something else answers there.
    #[error(
        "{url} doesn't answer as an OpenID provider does: {cause}. Check the issuer in the configuration, its slash at the end too"
    )]
    NotAProvider {
        /// What was asked.
        url: String,
        /// Why not.
        cause: String,
    },
    /// It calls itself otherwise.
    #[error(
        "the identity provider was asked as {asked} and calls itself {received}. authentik builds its issuer from the \
         host that it was asked at: use one public name that both the browser and the registry can reach, and \
         configure that issuer exactly"
    )]
    Issuer {
        /// What is configured.
        asked: String,
        /// What it says.
        received: String,
    },
    /// It sent the browser back with an error (RFC 6749, section 4.1.2.1).
    #[error("the identity provider refused: {0}")]
    Refused(String),
    /// It refused as authentik does where the provider doesn't allow a grant type.
    #[error(
        "the identity provider refused: {0}. authentik answers so where the provider does not allow what was asked for: \
         allow the grant type authorization_code at the provider (and refresh_token, to renew sign-ins)"
    )]
    GrantType(String),
    /// It didn't take the code (RFC 6749, section 5.2).
    #[error("the identity provider didn't accept the sign-in: {0}")]
    Exchange(String),
    /// Its ID token isn't good.
    #[error("the identity provider's ID token was not accepted: {0}")]
    IdToken(String),
    /// What others were told, who asked at the same time.
    #[error(transparent)]
    Shared(Arc<SignInError>),
    /// Nobody is named.
    #[error(
        "the identity provider sent no '{0}' claim, which names people here. Add the scope that has it to the provider in \
         authentik, or set claimMapping.username in the configuration to a claim that it sends"
    )]
    NoUserName(String),
}

type SendsRequest = Pin<Box<dyn Future<Output = Result<HttpResponse, HttpError>> + Send>>;

impl SignInError {
    /// What the provider sent the browser back with (RFC 6749, section 4.1.2.1).
    pub fn refused(error: &str, description: Option<&str>) -> Self {
        let words = [Some(error), description].into_iter().flatten().collect::<Vec<_>>().join(": ");
        let words = words.chars().filter(|c| !c.is_control()).take(300).collect();
        // Since 2026.5 authentik's sentence for a grant type that isn't allowed.
        let is_malformed = description.is_some_and(|text| text.contains("otherwise malformed"));
        if error == "unauthorized_client" || error == "invalid_request" && is_malformed {
            return Self::GrantType(words);
        }
        Self::Refused(words)
    }

    /// Whether the provider can't be reached, for whoever it was told first.
    pub fn is_unreachable(&self) -> bool {
        match self {
            Self::Unreachable { .. } => true,
            Self::Shared(error) => error.is_unreachable(),
            _ => false,
        }
    }
}

/// A provider that signs people in.
pub struct Provider {
    /// Its settings.
    pub config: ProviderConfig,
    redirect_uri: String,
    http: Http,
    discovered: RwLock<Option<Arc<Discovered>>>,
    lately: Lately<Discovered>,
    for_unknown_keys: ForUnknownKeys,
    /// How it goes with its discovery and keys.
    pub freshness: Freshness,
}

/// A sign-in that has begun: what the browser must bring back, and where it goes.
pub struct Begun {
    /// The provider's page.
    pub url: Url,
    /// Comes back in the callback.
    pub state: String,
    /// Is in the ID token.
    pub nonce: String,
    /// Proves that who began also ends (RFC 7636).
    pub verifier: String,
}

/// What the provider gave at the sign-in, kept sealed.
#[derive(Clone, Default, Serialize, Deserialize)]
pub struct ProviderTokens {
    /// Shown to the provider when signing out.
    pub id_token: String,
    /// Only with the scope `offline_access`.
    pub refresh_token: Option<String>,
}

/// Somebody whom the provider signed in.
pub struct SignedIn {
    /// Who.
    pub user: User,
    /// The provider's name for its own session.
    pub sid: Option<String>,
    /// What it gave.
    pub tokens: ProviderTokens,
    /// In how many seconds the provider is to be asked about them again.
    pub expires_in: i64,
}

/// When to ask about somebody again whose access token lives so long: at its end, between a minute and a quarter of an
/// hour from now.
fn renewal_delay(expires_in: Option<Duration>) -> i64 {
    let seconds = expires_in.map_or(300, |lifetime| i64::try_from(lifetime.as_secs()).unwrap_or(i64::MAX));
    seconds.clamp(60, 14 * 60)
}

impl Provider {
    /// The provider of `config`, which sends people back to `redirect_uri`.
    ///
    /// # Errors
    /// A sentence, if its certificate authorities can't be read.
    pub fn new(config: ProviderConfig, redirect_uri: String) -> Result<Self, String> {
        let http = Http::new(&config.issuer, &config.authority)?;
        Ok(Self {
            config,
            redirect_uri,
            http,
            discovered: RwLock::default(),
            lately: Lately::default(),
            for_unknown_keys: ForUnknownKeys::default(),
            freshness: Freshness::default(),
        })
    }

    /// Begins a sign-in. The provider is asked whether it is there, since the browser couldn't say so.
    ///
    /// # Errors
    /// [`SignInError`] if it isn't, or isn't what is configured.
    pub async fn begin(&self) -> Result<Begun, SignInError> {
        let discovered = self.discovered_lately().await?;
        let (state, nonce, verifier) = (secrets::random_text(), secrets::random_text(), secrets::random_text());
        let challenge = PkceCodeChallenge::from_code_verifier_sha256(&PkceCodeVerifier::new(verifier.clone()));
        let (sent_state, sent_nonce) = (state.clone(), nonce.clone());
        let (url, _, _) = discovered
            .client
            .authorize_url(
                CoreAuthenticationFlow::AuthorizationCode,
                move || CsrfToken::new(sent_state),
                move || Nonce::new(sent_nonce),
            )
            .add_scopes(self.config.scopes.iter().filter(|scope| *scope != "openid").cloned().map(Scope::new))
            .set_pkce_challenge(challenge)
            .url();
        Ok(Begun { url, state, nonce, verifier })
    }

    /// Ends a sign-in: exchanges the code, checks the ID token, and finds out who it is.
    ///
    /// # Errors
    /// [`SignInError`]
    pub async fn finish(&self, code: String, verifier: String, nonce: String) -> Result<SignedIn, SignInError> {
        let discovered = self.discovered().await?;
        let tokens = self.exchange(&discovered, code, verifier).await?;
        let id_token = tokens.id_token().ok_or_else(|| {
            SignInError::Exchange("its answer holds no ID token; is it an OAuth2/OpenID provider?".to_owned())
        })?;
        let nonce = Nonce::new(nonce);
        if let Err(error) = self.check(&discovered, id_token, &tokens, &nonce) {
            // Its keys may have changed since they were fetched.
            if !error.is_missing_key() {
                return Err(error.into());
            }
            let discovered = self.discover().await?;
            self.check(&discovered, id_token, &tokens, &nonce).map_err(SignInError::from)?;
        }
        let claims = claims::claims_of(id_token)?;
        let claims = self.complete(&discovered, claims, tokens.access_token().secret()).await?;
        let user = self.user_of(claims).map_err(|claim| SignInError::NoUserName(claim.0))?;
        let sid = user.claims.get("sid").and_then(|sid| sid.as_str()).map(str::to_owned);
        let expires_in = renewal_delay(tokens.expires_in());
        let tokens = ProviderTokens {
            id_token: id_token.to_string(),
            refresh_token: tokens.refresh_token().map(|token| token.secret().clone()),
        };
        Ok(SignedIn { user, sid, tokens, expires_in })
    }

    async fn exchange(
        &self,
        discovered: &Discovered,
        code: String,
        verifier: String,
    ) -> Result<CoreTokenResponse, SignInError> {
        let request = discovered.client.exchange_code(AuthorizationCode::new(code));
        let request = request.map_err(|e| SignInError::NotAProvider {
            url: self.config.issuer.clone(),
            cause: format!("it has no token endpoint ({e})"),
        })?;
        let http = self.sender();
        let answer = request.set_pkce_verifier(PkceCodeVerifier::new(verifier)).request_async(&http).await;
        answer.map_err(|error| match error {
            // Also what authentik says to a grant type that isn't allowed (RFC 6749 has another word for that).
            RequestTokenError::ServerResponse(answer) if *answer.error() == CoreErrorResponseType::InvalidGrant => {
                SignInError::GrantType(answer.to_string())
            }
            RequestTokenError::ServerResponse(answer) => SignInError::Exchange(answer.to_string()),
            RequestTokenError::Request(cause) => self.http.unreachable(&cause),
            // The body isn't shown: it may hold tokens.
            RequestTokenError::Parse(cause, _) => SignInError::Exchange(format!("its answer can't be read ({cause})")),
            RequestTokenError::Other(cause) => SignInError::Exchange(cause),
        })
    }

    /// Sends requests of `openidconnect`. Owned, since the future that borrows a client isn't Send for every lifetime.
    fn sender(&self) -> impl Fn(HttpRequest) -> SendsRequest {
        let http = self.http.clone();
        move |request: HttpRequest| {
            let http = http.clone();
            Box::pin(async move { http.send(request).await })
        }
    }

    /// Every check of an ID token (OpenID Connect Core, section 3.1.3.7) and of `at_hash` (3.1.3.8).
    fn check(
        &self,
        discovered: &Discovered,
        id_token: &CoreIdToken,
        tokens: &CoreTokenResponse,
        nonce: &Nonce,
    ) -> Result<(), CheckError> {
        let verifier = discovered.client.id_token_verifier().set_allowed_algs(discovered.algorithms.clone());
        let claims = id_token.claims(&verifier, nonce)?;
        let Some(expected) = claims.access_token_hash() else { return Ok(()) };
        let algorithm = id_token.signing_alg().map_err(ClaimsVerificationError::SignatureVerification)?;
        let key = if algorithm.uses_shared_secret() {
            CoreJsonWebKey::new_symmetric(self.config.client_secret.clone().unwrap_or_default().into_bytes())
        } else {
            id_token.signing_key(&verifier).map_err(ClaimsVerificationError::SignatureVerification)?.clone()
        };
        match AccessTokenHash::from_token(tokens.access_token(), algorithm, &key) {
            Ok(actual) if actual == *expected => Ok(()),
            _ => Err(CheckError::AccessTokenHash),
        }
    }

    /// Where to sign out at the provider too (OpenID Connect RP-Initiated Logout 1.0), if it has such a page.
    pub async fn end_session_url(&self, tokens: &ProviderTokens, return_to: &str) -> Option<Url> {
        let discovered = self.discovered.read().await.clone()?;
        let mut url = discovered.end_session.clone()?;
        url.query_pairs_mut()
            .append_pair("id_token_hint", &tokens.id_token)
            .append_pair("client_id", &self.config.client_id)
            .append_pair("post_logout_redirect_uri", return_to);
        Some(url)
    }

    /// The origin of its sign-out page, where our form may lead.
    pub async fn end_session_origin(&self) -> Option<String> {
        let discovered = self.discovered.read().await.clone()?;
        discovered.end_session.as_ref().map(|url| url.origin().ascii_serialization())
    }
}

#[derive(Debug, thiserror::Error)]
enum CheckError {
    #[error(transparent)]
    Claims(#[from] ClaimsVerificationError),
    #[error("its at_hash doesn't fit the access token that came with it")]
    AccessTokenHash,
}

impl CheckError {
    fn is_missing_key(&self) -> bool {
        use SignatureVerificationError::NoMatchingKey;
        matches!(self, Self::Claims(ClaimsVerificationError::SignatureVerification(NoMatchingKey)))
    }
}

impl From<CheckError> for SignInError {
    fn from(error: CheckError) -> Self {
        let cause = match &error {
            CheckError::Claims(ClaimsVerificationError::SignatureVerification(cause)) => format!("{error}: {cause}"),
            _ => error.to_string(),
        };
        Self::IdToken(cause)
    }
}
