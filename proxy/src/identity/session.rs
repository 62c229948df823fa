//! Sessions of browsers: an opaque random id in a cookie, stored as a hash.

use std::{sync::Arc, time::Duration};

use moka::future::Cache;
use serde::{Deserialize, Serialize};

use super::{Identity, REMEMBERED, Refusal, Via, shared};
use crate::{
    secrets::{self, Sealer},
    store::{NewSession, Session, Store, StoreError, Usage, User, now},
};

/// What the provider gave at the sign-in, kept sealed.
#[derive(Clone, Default, Serialize, Deserialize)]
pub struct ProviderTokens {
    /// Shown to the provider when signing out.
    pub id_token: String,
    /// Only with the scope `offline_access`.
    pub refresh_token: Option<String>,
}

/// The sessions, with those in use in memory.
pub struct Sessions {
    store: Store,
    usage: Arc<Usage>,
    sealer: Sealer,
    idle: Duration,
    absolute: Duration,
    known: Cache<String, Option<Known>>,
}

#[derive(Clone)]
struct Known {
    session: Arc<Session>,
    identity: Arc<Identity>,
}

impl From<Session> for Known {
    fn from(session: Session) -> Self {
        let identity = Identity::new(session.user.clone(), Via::Session(session.id_hash.clone()));
        Self { session: Arc::new(session), identity: Arc::new(identity) }
    }
}

impl Sessions {
    /// The sessions in `store`.
    pub fn new(store: Store, usage: Arc<Usage>, sealer: Sealer, idle: Duration, absolute: Duration) -> Self {
        let known = Cache::builder().max_capacity(100_000).time_to_live(REMEMBERED).build();
        Self { store, usage, sealer, idle, absolute, known }
    }

    /// Begins a session; gives its id, for the cookie alone.
    pub async fn begin(
        &self,
        user: &User,
        sid: Option<&str>,
        tokens: &ProviderTokens,
        user_agent: &str,
    ) -> Result<String, StoreError> {
        let id = secrets::random_text();
        let id_hash = secrets::hash(&id);
        let sealed = self.seal(tokens);
        if self.store.put_user(user).await? {
            tracing::warn!(user = user.name, "this name was another person's: their sessions and API keys have ended");
        }
        let new = NewSession { id_hash: &id_hash, user, sid, sealed: &sealed, user_agent };
        self.store.create_session(&new).await?;
        self.known.invalidate_all();
        Ok(id)
    }

    fn seal(&self, tokens: &ProviderTokens) -> String {
        let sealed = serde_json::to_vec(tokens).ok().and_then(|plain| self.sealer.seal(&plain).ok());
        sealed.unwrap_or_default()
    }

    fn unseal(&self, sealed: &str) -> ProviderTokens {
        let plain = self.sealer.open(sealed).ok();
        plain.and_then(|plain| serde_json::from_slice(&plain).ok()).unwrap_or_default()
    }

    /// Who the session with this id belongs to.
    pub async fn find(&self, id: &str) -> Result<Arc<Identity>, Refusal> {
        let known = self.load(id).await?;
        let used_at = self.usage.of_session(&known.session.id_hash).unwrap_or(known.session.used_at);
        let age = |since: i64| Duration::from_secs(u64::try_from(now().saturating_sub(since)).unwrap_or_default());
        if age(used_at) > self.idle || age(known.session.created_at) > self.absolute {
            return Err(Refusal::UnknownSession);
        }
        self.usage.session(&known.session.id_hash);
        Ok(known.identity)
    }

    async fn load(&self, id: &str) -> Result<Known, Refusal> {
        let id_hash = secrets::hash(id);
        let load = async { Ok(self.store.session(&id_hash).await?.map(Known::from)) };
        let known = self.known.try_get_with_by_ref(&id_hash, load).await.map_err(shared)?;
        known.ok_or(Refusal::UnknownSession)
    }

    /// Ends a session, here at once; gives the provider it came from and what that gave, if it still was one.
    pub async fn end(&self, id: &str) -> Result<Option<(String, ProviderTokens)>, Refusal> {
        let known = match self.load(id).await {
            Ok(known) => known,
            Err(Refusal::UnknownSession) => return Ok(None),
            Err(error) => return Err(error),
        };
        self.store.delete_session(&known.session.id_hash).await?;
        self.known.invalidate(&known.session.id_hash).await;
        Ok(Some((known.session.user.provider.clone(), self.unseal(&known.session.sealed))))
    }

    /// Forgets the sessions that have ended by age.
    pub async fn sweep(&self) -> Result<(), StoreError> {
        self.store.delete_ended_sessions(self.idle, self.absolute).await
    }
}
