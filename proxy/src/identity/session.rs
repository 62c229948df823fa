//! Sessions of browsers: an opaque random id in a cookie, stored as a hash.
//!
//! With the scope `offline_access` there is a refresh token, and the claims of a session's owner are renewed, at one
//! replica, every quarter of an hour. Then their API keys see the groups of now, too.

use std::{sync::Arc, time::Duration};

use super::{AuthMethod, Identity, Refusal, credential_cache::CredentialCache};
use crate::{
    oidc::{Provider, ProviderTokens, RenewalError},
    secrets::{self, Sealer},
    store::{NewSession, Session, Store, StoreError, Usage, User, now},
};

/// Claims are renewed when they are so old; a little sooner than they must be.
const RENEWAL_AGE: Duration = Duration::from_mins(14);

/// How often it is tried to store what a renewal gave.
const MAX_STORE_ATTEMPTS: u32 = 20;

/// How long one replica may take for it before another one tries.
const RENEWAL_TIMEOUT: Duration = Duration::from_mins(1);

/// Somebody who begins a session, and where.
pub struct Beginning<'a> {
    /// Who.
    pub user: &'a User,
    /// The provider's name for its own session, if it gave one.
    pub sid: Option<&'a str>,
    /// What it gave.
    pub tokens: &'a ProviderTokens,
    /// The browser.
    pub user_agent: &'a str,
    /// Where it is.
    pub client: &'a str,
}

/// The sessions, with those in use in memory.
pub struct Sessions {
    store: Store,
    usage: Arc<Usage>,
    sealer: Sealer,
    idle: Duration,
    absolute: Duration,
    known: CredentialCache<Known>,
}

#[derive(Clone)]
struct Known {
    session: Arc<Session>,
    identity: Arc<Identity>,
}

impl From<Session> for Known {
    fn from(session: Session) -> Self {
        let identity = Identity::new(session.user.clone(), AuthMethod::Session(session.id_hash.clone()));
        Self { session: Arc::new(session), identity: Arc::new(identity) }
    }
}

impl Sessions {
    /// The sessions in `store`.
    pub fn new(store: Store, usage: Arc<Usage>, sealer: Sealer, idle: Duration, absolute: Duration) -> Self {
        Self { store, usage, sealer, idle, absolute, known: CredentialCache::new() }
    }

    /// Begins a session; gives its id, for the cookie alone.
    pub async fn begin(&self, beginning: &Beginning<'_>) -> Result<String, StoreError> {
        let id = secrets::random_text();
        let &Beginning { user, sid, tokens, user_agent, client } = beginning;
        if self.store.put_user(user).await? {
            tracing::warn!(user = user.name, "this name was another person's: their sessions and API keys have ended");
        }
        let (id_hash, sealed) = (&secrets::hash(&id), &self.seal(tokens));
        let renewable = tokens.refresh_token.is_some();
        let new = NewSession { id_hash, user, sid, sealed, renewable, user_agent, client };
        self.store.create_session(&new).await?;
        self.known.refresh();
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
        if !self.in_time(&known.session) {
            return Err(Refusal::UnknownSession);
        }
        self.usage.session(&known.session.id_hash);
        Ok(known.identity)
    }

    fn in_time(&self, session: &Session) -> bool {
        let used_at = self.usage.of_session(&session.id_hash).unwrap_or(session.used_at);
        let age = |since: i64| Duration::from_secs(u64::try_from(now().saturating_sub(since)).unwrap_or_default());
        age(used_at) <= self.idle && age(session.created_at) <= self.absolute
    }

    async fn load(&self, id: &str) -> Result<Known, Refusal> {
        let id_hash = secrets::hash(id);
        let load = async { Ok(self.store.session(&id_hash).await?.map(Known::from)) };
        self.known.get(&id_hash, load).await?.ok_or(Refusal::UnknownSession)
    }

    /// Somebody's sessions, the newest first.
    pub async fn of(&self, user: &str) -> Result<Vec<Session>, StoreError> {
        let mut sessions = self.store.sessions_of(user).await?;
        sessions.retain(|session| self.in_time(session));
        for session in &mut sessions {
            session.used_at = self.usage.of_session(&session.id_hash).unwrap_or(session.used_at);
        }
        Ok(sessions)
    }

    /// Ends a session, here at once; gives the provider it came from and what that gave, if it still was one.
    pub async fn end(&self, id: &str) -> Result<Option<(String, ProviderTokens)>, Refusal> {
        let known = match self.load(id).await {
            Ok(known) => known,
            Err(Refusal::UnknownSession) => return Ok(None),
            Err(error) => return Err(error),
        };
        self.store.end_session(&known.session.id_hash).await?;
        self.known.forget(&known.session.id_hash).await;
        Ok(Some((known.session.user.provider.clone(), self.unseal(&known.session.sealed))))
    }

    /// Ends a session of this user by the hash of its id; whether there was one.
    pub async fn end_of(&self, user: &str, id_hash: &str) -> Result<bool, StoreError> {
        let theirs = self.store.session(id_hash).await?.is_some_and(|session| session.user.name == user);
        if !theirs {
            return Ok(false);
        }
        self.store.end_session(id_hash).await?;
        self.known.forget(id_hash).await;
        Ok(true)
    }

    /// Ends the sessions that their provider has ended; how many there were.
    pub async fn end_at(&self, provider: &str, subject: Option<&str>, sid: Option<&str>) -> Result<usize, StoreError> {
        let ended = self.store.end_sessions_of(provider, subject, sid).await?;
        for id_hash in &ended {
            self.known.forget(id_hash).await;
        }
        Ok(ended.len())
    }

    /// Renews the claims that are due. A provider that can't be reached changes nothing; one that doesn't know somebody
    /// any more ends the session, and suspends their API keys.
    pub async fn renew(&self, providers: &[Arc<Provider>]) -> Result<(), StoreError> {
        for session in self.store.sessions_to_renew(RENEWAL_AGE).await? {
            let provider = providers.iter().find(|provider| provider.config.id == session.user.provider);
            let Some(provider) = provider else { continue };
            if !self.store.claim_renewal(&session, RENEWAL_TIMEOUT).await? {
                continue;
            }
            let keep = async |tokens: &ProviderTokens| {
                let sealed = self.seal(tokens);
                // If this is lost, so is the sign-in: the token that was used is good for nothing any more.
                for _ in 0..MAX_STORE_ATTEMPTS {
                    match self.store.keep_renewed(&session.id_hash, &sealed).await {
                        Ok(()) => return,
                        Err(error) => {
                            tracing::error!(%error, user = session.user.name, "a renewed sign-in can't be stored");
                            tokio::time::sleep(Duration::from_secs(1)).await;
                        }
                    }
                }
            };
            match provider.renew(&session.user, &self.unseal(&session.sealed), keep).await {
                Ok(user) => {
                    self.store.put_user(&user).await?;
                    self.known.refresh();
                }
                Err(RenewalError::Gone(reason)) => {
                    self.store.delete_session(&session.id_hash).await?;
                    self.known.forget(&session.id_hash).await;
                    // An earlier attempt whose answer was lost has spent the token: that says nothing of the person.
                    let spent = session.renewing_until != 0;
                    let suspended = !spent && !self.store.has_another_renewal(&session).await?;
                    if suspended {
                        self.store.suspend(&session.user.name).await?;
                    }
                    tracing::warn!(user = session.user.name, reason, suspended, "a sign-in is not renewed any more");
                }
                Err(error) => {
                    if matches!(error, RenewalError::NotAsked(_)) {
                        self.store.give_up_renewal(&session.id_hash).await?;
                    }
                    tracing::warn!(%error, user = session.user.name, "claims can't be renewed now; they stay as they are");
                }
            }
        }
        Ok(())
    }

    /// Forgets the sessions that have ended by age.
    pub async fn sweep(&self) -> Result<(), StoreError> {
        self.store.delete_ended_sessions(self.idle, self.absolute).await
    }
}
