//! Who is asking? Whatever the credential was, one [`Identity`] comes of it.
//!
//! One file a kind: [`session`] cookies, API [`key`]s, and the bearer [`token`]s that our own token service makes
//! of them. [`credential`] reads them off a request.

pub mod credential;
pub mod key;
pub mod scope;
pub mod session;
pub mod token;

use std::{sync::Arc, time::Duration};

use serde_json::{Map, Value};

pub use self::{credential::Credential, key::Keys, session::Sessions, token::Tokens};
use self::{scope::Access, token::Minted};
use crate::store::{StoreError, User};

/// How long a credential that ended on another replica may still be taken here.
const REMEMBERED: Duration = Duration::from_secs(5);

/// Somebody who proved who they are.
#[derive(Clone, Debug)]
pub struct Identity {
    /// The name that rules know.
    pub user: String,
    /// The groups, by the claims.
    pub groups: Vec<String>,
    /// Every claim.
    #[allow(dead_code, reason = "conditions will read them")]
    pub claims: Map<String, Value>,
    /// How they proved it.
    pub via: Via,
}

/// The kind of a credential, and its public name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Via {
    /// A browser's session, by the hash of its id.
    Session(String),
    /// An API key, by its id.
    ApiKey(String),
}

impl Identity {
    fn new(user: User, via: Via) -> Self {
        Self { user: user.name, groups: user.groups, claims: user.claims, via }
    }

    /// Somebody for a test of the rules.
    #[cfg(test)]
    pub fn for_test(user: &str, groups: &[&str]) -> Self {
        let groups = groups.iter().map(ToString::to_string).collect();
        Self { user: user.to_owned(), groups, claims: Map::new(), via: Via::ApiKey(String::new()) }
    }
}

/// Who sends a request, and how far their credential goes.
#[derive(Clone, Debug)]
pub struct Caller {
    /// Nobody, if there is none: an anonymous request, or one with an anonymous token.
    pub identity: Option<Arc<Identity>>,
    /// What a token was made for; everything, if it wasn't a token.
    pub grant: Grant,
}

/// How far a credential goes.
#[derive(Clone, Debug)]
pub enum Grant {
    /// As far as its owner may go. Nobody was asked for by a token.
    Everything,
    /// As far as a token's scope.
    Token(Arc<[Access]>),
}

impl Caller {
    /// A request without any credential.
    pub const ANONYMOUS: Self = Self { identity: None, grant: Grant::Everything };

    /// The name for the log.
    pub fn name(&self) -> &str {
        self.identity.as_ref().map_or("anonymous", |identity| &identity.user)
    }
}

/// Why a credential isn't taken. The sentence goes to the log and to the client; it holds nothing of the credential.
#[derive(Debug, thiserror::Error)]
pub enum Refusal {
    /// The password isn't an API key.
    #[error("the password is not an API key (they begin with zak_); make one on the registry's page in a browser")]
    NotAKey,
    /// There is no such key.
    #[error("this API key does not exist or was revoked; make a new one on the registry's page")]
    UnknownKey,
    /// It has expired.
    #[error("this API key has expired; make a new one on the registry's page")]
    ExpiredKey,
    /// Another user's key.
    #[error("this API key belongs to another user name than the one given; the registry's page shows yours")]
    OthersKey,
    /// There is no such session.
    #[error("the session has ended; sign in again")]
    UnknownSession,
    /// A bearer token that isn't ours.
    #[error("the bearer token is not one of this registry's")]
    NotAToken,
    /// A token whose time is over.
    #[error("the token has expired")]
    ExpiredToken,
    /// A token whose credential is gone.
    #[error("the credential that this token was made of was revoked or has expired")]
    OrphanToken,
    /// Not a refusal: nobody knows.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// An error that several requests waited for.
fn shared(error: Arc<StoreError>) -> Refusal {
    tracing::error!(%error, "a credential can't be checked");
    Refusal::Store(StoreError::from(sqlx::Error::Protocol(error.to_string())))
}

/// Turns credentials into callers.
pub struct Identities {
    /// API keys.
    pub keys: Keys,
    /// Browsers' sessions.
    pub sessions: Sessions,
    /// Our bearer tokens.
    pub tokens: Tokens,
}

impl Identities {
    /// Who shows this credential.
    ///
    /// `upload` is the upload that the request is about: a token that ran out in the middle of a long push is still
    /// taken for it.
    ///
    /// # Errors
    /// [`Refusal`] if the credential is wrong; [`Refusal::Store`] if that can't be found out now.
    pub async fn identify(&self, credential: &Credential, upload: Option<&str>) -> Result<Caller, Refusal> {
        let everything = |identity| Caller { identity: Some(identity), grant: Grant::Everything };
        match credential {
            Credential::None => Ok(Caller::ANONYMOUS),
            Credential::Session(id) => self.sessions.find(id).await.map(everything),
            Credential::Basic { user, password } => self.keys.find(Some(user), password).await.map(everything),
            Credential::Bearer(text) if key::is_key(text) => self.keys.find(None, text).await.map(everything),
            Credential::Bearer(text) => {
                let minted = self.tokens.verify(text, upload)?;
                self.owner_of(minted).await
            }
        }
    }

    /// A token is good as long as the credential that it was made of.
    async fn owner_of(&self, minted: Minted) -> Result<Caller, Refusal> {
        let identity = match &minted.credential {
            None => None,
            Some(id) => Some(self.keys.find_by_id(id).await?.ok_or(Refusal::OrphanToken)?),
        };
        Ok(Caller { identity, grant: Grant::Token(minted.access.into()) })
    }
}
