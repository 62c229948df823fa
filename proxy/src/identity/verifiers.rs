//! Who vouches for people beside this registry: the providers that sign them in, the issuers of workloads, the password
//! file. All of it comes from the configuration, and is replaced as a whole when that is read again.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use moka::{Expiry, future::Cache};

use super::{
    AuthMethod, Identity, Refusal, app_password::AppPasswords, htpasswd::Passwords, limits::Checking,
    workload::Workloads,
};
use crate::{
    oidc::{
        Provider,
        jwt::{Claims, claimed_issuer},
        user_of,
    },
    secrets,
};

/// How long a token that was checked isn't checked again at most.
const MAX_VERIFIED_LIFETIME: Duration = Duration::from_mins(5);

/// Those who vouch for people.
pub struct Verifiers {
    /// Who signs people in.
    pub providers: Vec<Arc<Provider>>,
    /// Whose workloads are taken.
    pub workloads: Workloads,
    /// The password file, if there is one.
    pub passwords: Option<Passwords>,
    app_passwords: AppPasswords,
    /// By the hash of the token.
    verified: Cache<String, Arc<Identity>>,
}

struct Lifetime;

impl Expiry<String, Arc<Identity>> for Lifetime {
    fn expire_after_create(&self, _: &String, identity: &Arc<Identity>, _: Instant) -> Option<Duration> {
        Some(identity.remembered_for(MAX_VERIFIED_LIFETIME))
    }
}

impl Verifiers {
    /// Those of a configuration.
    pub fn new(
        providers: Vec<Arc<Provider>>,
        workloads: Workloads,
        passwords: Option<Passwords>,
        app_passwords: AppPasswords,
    ) -> Self {
        let verified = Cache::builder().max_capacity(10_000).expire_after(Lifetime).build();
        Self { providers, workloads, passwords, app_passwords, verified }
    }

    /// Whoever brings this JWT of `issuer`, which is what it says of itself.
    pub async fn by_jwt(&self, issuer: &str, token: &str) -> Result<Arc<Identity>, Refusal> {
        let hash = secrets::hash(token);
        if let Some(known) = self.verified.get(&hash).await {
            return Ok(known);
        }
        let identity = match self.provider_of(issuer) {
            Some(provider) => self.of_provider(provider, token).await?,
            None => self.workloads.find(issuer, token).await?,
        };
        let identity = Arc::new(identity);
        self.verified.insert(hash, Arc::clone(&identity)).await;
        Ok(identity)
    }

    fn provider_of(&self, issuer: &str) -> Option<&Arc<Provider>> {
        self.providers.iter().find(|provider| provider.config.issuer == issuer)
    }

    /// Authentik's access or ID token.
    async fn of_provider(&self, provider: &Provider, token: &str) -> Result<Identity, Refusal> {
        let unavailable = |error: crate::oidc::SignInError| Refusal::Unavailable(error.to_string());
        let claims = provider.verify(token).await.map_err(unavailable)??;
        // An ID token opens no userinfo; then what is missing stays so.
        let claims = match provider.completed(claims.clone(), token).await {
            Ok(completed) => completed,
            Err(_) => claims,
        };
        named(provider, claims)
    }

    /// Whoever had a JWT of `issuer` with these claims, which was genuine then, by the rules of now.
    pub fn by_claims(&self, issuer: &str, claims: &Claims) -> Result<Identity, Refusal> {
        match self.provider_of(issuer) {
            Some(provider) => named(provider, claims.clone()),
            None => self.workloads.apply(issuer, claims),
        }
    }

    /// Whoever has this name and password, if that was found out lately.
    pub async fn known_password(&self, user: &str, password: &str) -> Option<Arc<Identity>> {
        match self.passwords.as_ref().filter(|passwords| passwords.knows(user)) {
            Some(passwords) => passwords.known(user, password).await,
            None => self.app_passwords.known(user, password).await,
        }
    }

    /// Whoever has this name and password: in the password file, or else at authentik. `may_try` is asked once for all
    /// who show the same at the same time.
    pub async fn by_password<'a>(
        &self,
        user: &str,
        password: &str,
        may_try: impl FnOnce() -> Result<Checking<'a>, Refusal>,
    ) -> Result<Arc<Identity>, Refusal> {
        let passwords = self.passwords.as_ref().filter(|passwords| passwords.knows(user));
        let found = match passwords {
            Some(passwords) => passwords.find(user, password, may_try).await,
            None => self.app_passwords.find(&self.providers, user, password, may_try).await,
        };
        found.map_err(Refusal::Shared)
    }

    /// Whose JWT a text is, by what it says of itself; nothing if it is no JWT.
    pub fn issuer_of(text: &str) -> Option<String> {
        claimed_issuer(text)
    }
}

/// Whoever a token of a provider names. It must name them as a sign-in does: whoever asks for a token chooses its scopes,
/// and may not become somebody else by leaving one out.
fn named(provider: &Provider, claims: Claims) -> Result<Identity, Refusal> {
    let claim = &provider.config.username_claim;
    let has = claims.get(claim).and_then(serde_json::Value::as_str).is_some_and(|name| !name.is_empty());
    if !has {
        return Err(Refusal::NoName(claim.clone()));
    }
    let good_until = claims.get("exp").and_then(serde_json::Value::as_i64);
    let user = user_of(&provider.config, claims).map_err(|error| Refusal::Unnamed(error.to_string()))?;
    Ok(Identity { good_until, ..Identity::new(user, AuthMethod::ProviderToken) })
}
