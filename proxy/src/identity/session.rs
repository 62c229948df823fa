//! Sessions of browsers: an opaque random id in a cookie, stored as a hash.

use std::{sync::Arc, time::Duration};

use super::{AuthMethod, Identity, Refusal, Rejection, credential_cache::CredentialCache};
use crate::{
    oidc::{ProviderTokens, SignedIn},
    secrets::{self, Sealer},
    store::{NewSession, PersonId, Renewability, Session, SignInRefused, Store, StoreError, Usage, now},
};

/// Somebody who begins a session, and where.
pub struct Beginning<'a> {
    /// Who, and what their provider gave.
    pub signed_in: &'a SignedIn,
    /// The browser.
    pub user_agent: &'a str,
    /// Where it is.
    pub client: &'a str,
}

/// The sessions, with those in use in memory.
pub struct Sessions {
    store: Store,
    usage: Arc<Usage>,
    sealer: Arc<Sealer>,
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
        let identity = Identity::of_person(session.user.clone(), AuthMethod::Session(session.id_hash.clone()));
        Self { session: Arc::new(session), identity: Arc::new(identity) }
    }
}

impl Sessions {
    /// The sessions in `store`.
    pub fn new(store: Store, usage: Arc<Usage>, sealer: Arc<Sealer>, idle: Duration, absolute: Duration) -> Self {
        Self { store, usage, sealer, idle, absolute, known: CredentialCache::new() }
    }

    /// Begins a session; gives its id, for the cookie alone.
    ///
    /// # Errors
    /// [`SignInRefused`]
    pub async fn begin(&self, beginning: &Beginning<'_>) -> Result<String, SignInRefused> {
        let id = secrets::random_text();
        let &Beginning { signed_in: SignedIn { user, sid, tokens, expires_in }, user_agent, client } = beginning;
        let refresh_token = ProviderTokens { id_token: String::new(), ..tokens.clone() };
        let sealed = self.sealer.seal_json(&refresh_token);
        let renewability = Renewability { sealed: &sealed, renew_after: now() + expires_in };
        self.store.sign_in(user, tokens.refresh_token.is_some().then_some(renewability)).await?;
        let (id_hash, sid) = (&secrets::hash(&id), sid.as_deref());
        let sealed = &self.sealer.seal_json(&ProviderTokens { refresh_token: None, ..tokens.clone() });
        let new = NewSession { id_hash, owner: &user.id, sid, sealed, user_agent, client };
        self.store.create_session(&new).await?;
        Ok(id)
    }

    /// Who the session with this id belongs to.
    pub async fn find(&self, id: &str) -> Result<Arc<Identity>, Refusal> {
        let known = self.load(id).await?.filter(|known| self.in_time(&known.session));
        let known = known.ok_or(Rejection::UnknownSession)?;
        self.usage.session(&known.session.id_hash);
        Ok(known.identity)
    }

    fn in_time(&self, session: &Session) -> bool {
        let used_at = self.usage.of_session(&session.id_hash).unwrap_or(session.used_at);
        let age = |since: i64| Duration::from_secs(u64::try_from(now().saturating_sub(since)).unwrap_or_default());
        age(used_at) <= self.idle && age(session.created_at) <= self.absolute
    }

    async fn load(&self, id: &str) -> Result<Option<Known>, Refusal> {
        let id_hash = secrets::hash(id);
        self.known.get(&id_hash, async { Ok(self.store.session(&id_hash).await?.map(Known::from)) }).await
    }

    /// Somebody's sessions, the newest first.
    pub async fn of(&self, owner: &PersonId) -> Result<Vec<Session>, StoreError> {
        let mut sessions = self.store.sessions_of(owner).await?;
        sessions.retain(|session| self.in_time(session));
        for session in &mut sessions {
            session.used_at = self.usage.of_session(&session.id_hash).unwrap_or(session.used_at);
        }
        Ok(sessions)
    }

    /// Ends a session, here at once; gives whose it was and what their provider gave, if it still was one.
    pub async fn end(&self, id: &str) -> Result<Option<(Arc<Session>, ProviderTokens)>, Refusal> {
        let Some(known) = self.load(id).await? else { return Ok(None) };
        self.store.end_session(&known.session.id_hash).await?;
        self.known.forget(&known.session.id_hash).await;
        let tokens = self.sealer.open_json(&known.session.sealed).unwrap_or_default();
        Ok(Some((known.session, tokens)))
    }

    /// Ends a session of this person by the hash of its id; whether there was one.
    pub async fn end_of(&self, owner: &PersonId, id_hash: &str) -> Result<bool, StoreError> {
        let theirs = self.store.session(id_hash).await?.is_some_and(|session| session.user.id == *owner);
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

    /// Looks the sessions up again, because their owner's claims or standing have changed.
    pub fn refresh(&self) {
        self.known.refresh();
    }

    /// Forgets the sessions that have ended by age.
    pub async fn sweep(&self) -> Result<(), StoreError> {
        self.store.delete_old_sessions(self.idle, self.absolute).await
    }
}
