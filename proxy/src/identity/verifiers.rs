//! Who vouches for people beside this registry: the providers that sign them in, the issuers of workloads, the password
//! file. All of it comes from the configuration, and is replaced as a whole when that is read again.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use moka::{Expiry, future::Cache};

use super::{
    AuthMethod, Identity, Refusal, Rejection, app_password::AppPasswords, htpasswd::Passwords, limits::Checking,
    workload::Workloads,
};
use crate::{
    client_authorities::ClientAuthorities,
    oidc::{
        Provider,
        jwt::{claimed_issuer, numeric_date},
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
    /// The authorities of client certificates, if there are any.
    pub client_authorities: Option<Arc<ClientAuthorities>>,
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
        client_authorities: Option<Arc<ClientAuthorities>>,
        app_passwords: AppPasswords,
    ) -> Self {
        let verified = Cache::builder().max_capacity(10_000).expire_after(Lifetime).build();
        Self { providers, workloads, passwords, client_authorities, app_passwords, verified }
    }

    /// The provider of this key.
    pub fn provider(&self, id: &str) -> Option<&Arc<Provider>> {
        self.providers.iter().find(|provider| provider.config.id == id)
    }

    /// Whether nobody can sign in, whatever they have.
    pub fn is_nobody(&self) -> bool {
        self.providers.is_empty()
            && self.workloads.is_empty()
            && self.passwords.is_none()
            && self.client_authorities.is_none()
    }

    /// Whether a certificate that was checked with the authorities of this fingerprint needs no other check now.
    pub fn trusts_certificates_of(&self, fingerprint: &str) -> bool {
        self.client_authorities.as_ref().is_some_and(|authorities| *authorities.fingerprint() == *fingerprint)
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

    /// An access token of a provider that signs people in. Its ID token says who has signed in, to us, and opens nothing.
    async fn of_provider(&self, provider: &Provider, token: &str) -> Result<Identity, Refusal> {
        let claims = provider.verify_access_token(token).await??;
        let claims = match provider.completed(claims.clone(), token).await {
            Ok(completed) => completed,
            // What is missing stays so.
            Err(_) => claims,
        };
        let time = |name| claims.get(name).and_then(numeric_date);
        let (good_until, vouched_at) = (time("exp"), time("iat").unwrap_or_default());
        // It must name people as a sign-in does: whoever asks for a token chooses its scopes, and may not become somebody
        // else by leaving one out.
        let user = provider.user_of(claims).map_err(|claim| Rejection::NoName(claim.0))?;
        Ok(Identity { good_until, vouched_at, ..Identity::of_person(user, AuthMethod::ProviderToken) })
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
        // Whoever can't be anybody at a provider is looked for in the file alone, and found out to be nobody there.
        let passwords = self.passwords.as_ref();
        match passwords.filter(|passwords| passwords.knows(user) || self.providers.is_empty()) {
            Some(passwords) => passwords.find(user, password, may_try).await,
            None => self.app_passwords.find(&self.providers, user, password, may_try).await,
        }
    }

    /// Whose JWT a text is, by what it says of itself; nothing if it is no JWT.
    pub fn issuer_of(text: &str) -> Option<String> {
        claimed_issuer(text)
    }
}
