//! What a provider says of itself (OpenID Connect Discovery 1.0), and its keys.

use std::{
    sync::{Arc, PoisonError},
    time::{Duration, Instant},
};

use openidconnect::{
    AuthType, ClientId, ClientSecret, EndpointMaybeSet, EndpointNotSet, EndpointSet, RedirectUrl,
    core::{CoreClient, CoreClientAuthMethod, CoreJsonWebKeySet, CoreJwsSigningAlgorithm, CoreProviderMetadata},
};
use url::Url;

use super::{
    Provider, SignInError,
    http::Http,
    jwt::{Claims, Expected, JwtError, JwtKeys},
};

/// How often discovery is fetched again while it works.
const REFRESH_INTERVAL: Duration = Duration::from_mins(10);

/// How long to wait after a failure, at first; twice as long after each more.
const MIN_RETRY_WAIT: Duration = Duration::from_secs(1);

/// How long to wait after a failure at most.
const MAX_RETRY_WAIT: Duration = Duration::from_secs(30);

/// How often a key that isn't known makes us ask for the keys again.
const UNKNOWN_KEY_REFETCH_INTERVAL: Duration = Duration::from_secs(30);

/// A provider that has been discovered.
pub struct Discovered {
    pub client: OidcClient,
    /// The algorithms that ID tokens may be signed with, and no other.
    pub algorithms: Vec<CoreJwsSigningAlgorithm>,
    /// The same keys and algorithms, for tokens that others bring.
    pub jwt_keys: JwtKeys,
    pub token: Option<Url>,
    pub user_info: Option<Url>,
    pub end_session: Option<Url>,
}

pub type OidcClient =
    CoreClient<EndpointSet, EndpointNotSet, EndpointNotSet, EndpointNotSet, EndpointMaybeSet, EndpointMaybeSet>;

/// The names of the algorithms that an issuer lists, and its keys.
///
/// Without a signing key authentik signs with the client secret, and its key set is an empty object.
pub async fn keys_of(http: &Http, document: &serde_json::Value, secret: Option<&str>) -> Result<JwtKeys, SignInError> {
    let set = fetch_keys(http, document).await?;
    Ok(JwtKeys::new(&set, &algorithms_of(document), secret))
}

async fn fetch_keys(http: &Http, document: &serde_json::Value) -> Result<serde_json::Value, SignInError> {
    http.json(document.get("jwks_uri").and_then(|v| v.as_str()).unwrap_or_default()).await
}

fn algorithms_of(document: &serde_json::Value) -> Vec<String> {
    let listed = document.get("id_token_signing_alg_values_supported").and_then(|v| v.as_array());
    listed.into_iter().flatten().filter_map(|v| v.as_str()).map(str::to_owned).collect()
}

/// How it goes with fetching something.
#[derive(Default)]
pub struct Freshness(std::sync::Mutex<(Option<Instant>, bool)>);

impl Freshness {
    /// It was fetched, or couldn't be.
    pub fn note(&self, fetched: bool) {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        *state = (if fetched { Some(Instant::now()) } else { state.0 }, fetched);
    }

    /// Whether it went well the last time, and how long ago it went well.
    pub fn of_now(&self) -> (bool, Option<Duration>) {
        let (fetched_at, well) = *self.0.lock().unwrap_or_else(PoisonError::into_inner);
        (well, fetched_at.map(|at| at.elapsed()))
    }
}

/// Runs `fetch` again and again, for as long as the process runs: in ten minutes if it went well, and sooner if not.
pub async fn keep_fresh<F>(what: String, fetch: impl Fn() -> F)
where
    F: Future<Output = Result<(), SignInError>>,
{
    let mut wait = MIN_RETRY_WAIT;
    loop {
        match fetch().await {
            Ok(()) => {
                tracing::debug!(issuer = what, "the issuer's keys were fetched");
                wait = MIN_RETRY_WAIT;
                tokio::time::sleep(REFRESH_INTERVAL).await;
            }
            Err(error) => {
                tracing::warn!(issuer = what, "{error}; trying again in {wait:?}");
                tokio::time::sleep(wait).await;
                wait = (wait * 2).min(MAX_RETRY_WAIT);
            }
        }
    }
}

/// How long an answer of an issuer, or its failure to give one, is as good as another question.
const SHARED_ANSWER_LIFETIME: Duration = Duration::from_millis(500);

/// Asks an issuer once for all who would ask at the same time, so that nobody makes us flood it.
pub struct Lately<T>(tokio::sync::Mutex<Option<Told<T>>>);

/// When, and what.
type Told<T> = (Instant, Result<Arc<T>, Arc<SignInError>>);

impl<T> Default for Lately<T> {
    fn default() -> Self {
        Self(tokio::sync::Mutex::default())
    }
}

impl<T> Lately<T> {
    /// What `ask` says, or has said a moment ago.
    pub async fn get(&self, ask: impl Future<Output = Result<Arc<T>, SignInError>>) -> Result<Arc<T>, SignInError> {
        let mut last = self.0.lock().await;
        if let Some((at, outcome)) = &*last
            && at.elapsed() < SHARED_ANSWER_LIFETIME
        {
            return outcome.clone().map_err(SignInError::Shared);
        }
        let outcome = ask.await.map_err(Arc::new);
        *last = Some((Instant::now(), outcome.clone()));
        outcome.map_err(SignInError::Shared)
    }
}

/// When keys were last fetched because a token's wasn't among them.
#[derive(Default)]
pub struct ForUnknownKeys(std::sync::Mutex<Option<Instant>>);

impl ForUnknownKeys {
    /// Whether they may be fetched again now: made-up keys are no reason to ask the issuer all the time.
    pub fn may_fetch(&self) -> bool {
        let mut last = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let may = last.is_none_or(|at| at.elapsed() > UNKNOWN_KEY_REFETCH_INTERVAL);
        if may {
            *last = Some(Instant::now());
        }
        may
    }
}

impl Provider {
    /// Keeps discovery fresh for as long as the process runs. Nothing waits for this.
    pub async fn keep_discovered(self: Arc<Self>) {
        keep_fresh(self.config.issuer.clone(), move || {
            let provider = Arc::clone(&self);
            async move { provider.discover().await.map(drop) }
        })
        .await;
    }

    /// Asks the provider whether it is what is configured.
    ///
    /// # Errors
    /// [`SignInError`] if it isn't, or isn't there.
    pub async fn look(&self) -> Result<(), SignInError> {
        self.discover().await.map(drop)
    }

    /// What was discovered before, or else now.
    pub(super) async fn discovered(&self) -> Result<Arc<Discovered>, SignInError> {
        let known = self.discovered.read().await.clone();
        match known {
            Some(known) => Ok(known),
            None => self.discovered_lately().await,
        }
    }

    /// What the provider says now, or said a moment ago.
    pub(super) async fn discovered_lately(&self) -> Result<Arc<Discovered>, SignInError> {
        self.lately.get(self.discover()).await
    }

    /// Asks the provider what it is, and remembers that.
    pub(super) async fn discover(&self) -> Result<Arc<Discovered>, SignInError> {
        let discovered = self.ask_what_it_is().await;
        self.freshness.note(discovered.is_ok());
        discovered
    }

    async fn ask_what_it_is(&self) -> Result<Arc<Discovered>, SignInError> {
        let (url, document) = self.http.discovery(false).await?;
        let wrong = |cause: String| SignInError::NotAProvider { url: url.clone(), cause };
        let metadata: CoreProviderMetadata =
            serde_json::from_value(document.clone()).map_err(|e| wrong(e.to_string()))?;
        let set = fetch_keys(&self.http, &document).await?;
        let keys = match set.get("keys") {
            None => CoreJsonWebKeySet::new(Vec::new()),
            Some(_) => {
                serde_json::from_value(set.clone()).map_err(|e| wrong(format!("its key set can't be read ({e})")))?
            }
        };
        let secret = self.config.client_secret.as_deref();
        let jwt_keys = JwtKeys::new(&set, &algorithms_of(&document), secret);
        let algorithms = metadata.id_token_signing_alg_values_supported().clone();
        let address = |key: &str| document.get(key).and_then(|v| v.as_str()).and_then(|text| Url::parse(text).ok());
        let (user_info, end_session) = (address("userinfo_endpoint"), address("end_session_endpoint"));
        let methods = metadata.token_endpoint_auth_methods_supported();
        let by_post = methods.is_some_and(|methods| !methods.contains(&CoreClientAuthMethod::ClientSecretBasic));
        let client = CoreClient::from_provider_metadata(
            metadata.set_jwks(keys),
            ClientId::new(self.config.client_id.clone()),
            self.config.client_secret.clone().map(ClientSecret::new),
        )
        .set_redirect_uri(RedirectUrl::new(self.redirect_uri.clone()).map_err(|e| wrong(e.to_string()))?)
        .set_auth_type(if by_post { AuthType::RequestBody } else { AuthType::BasicAuth });
        let token = address("token_endpoint");
        let discovered = Arc::new(Discovered { client, algorithms, jwt_keys, token, user_info, end_session });
        *self.discovered.write().await = Some(Arc::clone(&discovered));
        Ok(discovered)
    }

    /// The claims of an access token of this provider that somebody brings.
    ///
    /// # Errors
    /// [`JwtError`] if it isn't good, or isn't positively an access token; [`SignInError`] if nothing is known of the
    /// provider's keys yet.
    pub async fn verify_access_token(&self, token: &str) -> Result<Result<Claims, JwtError>, SignInError> {
        let claims = self.with_keys(|keys| keys.verify_access_token(token, &self.expected())).await?;
        Ok(claims.and_then(|claims| self.for_us(claims)))
    }

    /// The claims of a token that this provider itself has given us.
    ///
    /// # Errors
    /// As [`Provider::verify_access_token`].
    pub(super) async fn verify(&self, token: &str) -> Result<Result<Claims, JwtError>, SignInError> {
        let claims = self.with_keys(|keys| keys.verify(token, &self.expected())).await?;
        Ok(claims.and_then(|claims| self.for_us(claims)))
    }

    /// The claims of a token that was made for us alone.
    fn for_us(&self, claims: Claims) -> Result<Claims, JwtError> {
        match claims.get("azp").and_then(|azp| azp.as_str()) {
            Some(azp) if azp != self.config.client_id => {
                let shown = format!("{} (azp)", azp.chars().filter(|c| !c.is_control()).take(200).collect::<String>());
                Err(JwtError::Audience { shown, expected: self.config.client_id.clone() })
            }
            _ => Ok(claims),
        }
    }

    /// The claims of a logout token of this provider.
    ///
    /// # Errors
    /// As [`Provider::verify_access_token`].
    pub async fn verify_logout(&self, token: &str) -> Result<Result<Claims, JwtError>, SignInError> {
        self.with_keys(|keys| keys.verify_logout(token, &self.expected())).await
    }

    /// What every token of this provider for us says.
    fn expected(&self) -> Expected<'_> {
        let audiences = std::slice::from_ref(&self.config.client_id);
        Expected { issuer: Some(&self.config.issuer), audiences }
    }

    /// Checks something with the keys that are known, and once more if a new key may have come.
    async fn with_keys<T>(
        &self,
        check: impl Fn(&JwtKeys) -> Result<T, JwtError>,
    ) -> Result<Result<T, JwtError>, SignInError> {
        let discovered = self.discovered().await?;
        match check(&discovered.jwt_keys) {
            Err(error) if error.may_be_stale() && self.for_unknown_keys.may_fetch() => {
                Ok(check(&self.discover().await?.jwt_keys))
            }
            checked => Ok(checked),
        }
    }
}
