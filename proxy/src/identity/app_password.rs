//! App passwords of authentik: shown as the password of `docker login`, and exchanged at authentik for what they stand
//! for.
//!
//! The answer is remembered under a keyed hash: a yes for five minutes at most, since a service account that was
//! deactivated must not go on for long, and a no for seconds. However many requests wait for it, authentik is asked once.

use std::{sync::Arc, time::Duration};

use moka::{Expiry, future::Cache};

use super::{AuthMethod, Identity, Refusal, Rejection, limits::Checking};
use crate::{
    oidc::{ExchangeError, Provider},
    secrets::Mac,
    store::now,
};

/// How long a yes and a no are remembered at most.
const MAX_YES_LIFETIME: Duration = Duration::from_mins(5);
const NO_LIFETIME: Duration = Duration::from_secs(10);

type Answer = Result<Arc<Identity>, Refusal>;

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
            Err(Refusal::Rejected(_)) => NO_LIFETIME,
            // Nobody could tell, or nobody was asked: the next one asks again.
            Err(Refusal::Unavailable(_)) => Duration::from_secs(1),
            Err(Refusal::Throttled(_)) => Duration::ZERO,
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
    ) -> Result<Arc<Identity>, Refusal> {
        let ask = async {
            // What one client has to wait for says nothing to another.
            let _checking = may_try()?;
            let mut refusal = Refusal::from(Rejection::WrongPassword);
            for provider in providers {
                match exchange(provider, user, password).await {
                    Ok(identity) => return Ok(Ok(Arc::new(identity))),
                    Err(Refusal::Rejected(Rejection::WrongPassword)) => {}
                    Err(other) => refusal = other,
                }
            }
            Ok(Err(refusal))
        };
        self.known
            .try_get_with(self.mac.of(&[user, password]), ask)
            .await
            .unwrap_or_else(|refusal: Arc<Refusal>| Err(Refusal::clone(&refusal)))
    }
}

async fn exchange(provider: &Provider, user: &str, password: &str) -> Result<Identity, Refusal> {
    let (claims, seconds) = provider.exchange_app_password(user, password).await.map_err(|error| match error {
        ExchangeError::Refused => Rejection::WrongPassword.into(),
        ExchangeError::Unavailable(error) => Refusal::from(error),
        ExchangeError::Token(error) => error.into(),
    })?;
    let user = provider.user_of(claims).map_err(|claim| Rejection::NoName(claim.0))?;
    let lifetime = i64::try_from(seconds.min(MAX_YES_LIFETIME.as_secs())).unwrap_or_default();
    let identity = Identity::of_person(user, AuthMethod::AppPassword);
    Ok(Identity { vouched_at: now(), good_until: Some(now() + lifetime), ..identity })
}
