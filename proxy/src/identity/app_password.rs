//! App passwords of authentik: shown as the password of `docker login`, and exchanged at authentik for what they stand
//! for.
//!
//! The answer is remembered under a keyed hash: a yes for five minutes at most, since a service account that was
//! deactivated must not go on for long, and a no for seconds. However many requests wait for it, authentik is asked once.

use std::{sync::Arc, time::Duration};

use moka::{Expiry, future::Cache};

use super::{AuthMethod, Identity, Refusal, limits::Checking};
use crate::{
    oidc::{ExchangeError, Provider, user_of},
    secrets::Mac,
    store::now,
};

/// How long a yes and a no are remembered at most.
const MAX_YES_LIFETIME: Duration = Duration::from_mins(5);
const NO_LIFETIME: Duration = Duration::from_secs(10);

type Answer = Result<Arc<Identity>, Arc<Refusal>>;

/// App passwords that were exchanged lately.
pub struct AppPasswords {
    mac: Mac,
    known: Cache<[u8; 32], Answer>,
}

struct Lifetime;

impl Expiry<[u8; 32], Answer> for Lifetime {
    fn expire_after_create(&self, _: &[u8; 32], answer: &Answer, _: std::time::Instant) -> Option<Duration> {
        Some(match answer {
            Ok(identity) => identity.remembered_for(MAX_YES_LIFETIME),
            // Nobody could tell: the next one asks again.
            Err(refusal) if refusal.is_indeterminate() || matches!(**refusal, Refusal::Limited(_)) => {
                Duration::from_secs(1)
            }
            Err(_) => NO_LIFETIME,
        })
    }
}

impl AppPasswords {
    /// None yet.
    pub fn new(mac: Mac) -> Self {
        Self { mac, known: Cache::builder().max_capacity(10_000).expire_after(Lifetime).build() }
    }

    /// The user whose app password this is, if that was found out lately.
    pub async fn known(&self, user: &str, password: &str) -> Option<Arc<Identity>> {
        self.known.get(&self.mac.of(&[user, password])).await?.ok()
    }

    /// The user whose app password this is, at the first of the providers that says so.
    pub async fn find<'a>(
        &self,
        providers: &[Arc<Provider>],
        user: &str,
        password: &str,
        may_try: impl FnOnce() -> Result<Checking<'a>, Refusal>,
    ) -> Result<Arc<Identity>, Arc<Refusal>> {
        let ask = async {
            let _checking = may_try().map_err(Arc::new)?;
            let mut refusal = Refusal::NotAPassword;
            for provider in providers {
                match exchange(provider, user, password).await {
                    Ok(identity) => return Ok(Arc::new(identity)),
                    Err(Refusal::NotAPassword) => {}
                    Err(other) => refusal = other,
                }
            }
            Err(Arc::new(refusal))
        };
        self.known.get_with(self.mac.of(&[user, password]), ask).await
    }
}

async fn exchange(provider: &Provider, user: &str, password: &str) -> Result<Identity, Refusal> {
    let (claims, seconds) = provider.exchange_app_password(user, password).await.map_err(|error| match error {
        ExchangeError::Refused => Refusal::NotAPassword,
        ExchangeError::Unavailable(error) => Refusal::Unavailable(error.to_string()),
        ExchangeError::Token(error) => Refusal::Jwt(error),
    })?;
    let user = user_of(&provider.config, claims).map_err(|error| Refusal::Unnamed(error.to_string()))?;
    let mut identity = Identity::new(user, AuthMethod::AppPassword);
    identity.good_until = Some(now() + i64::try_from(seconds.min(MAX_YES_LIFETIME.as_secs())).unwrap_or_default());
    Ok(identity)
}
