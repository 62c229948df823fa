//! API keys: `zak_` and 256 random bits, shown once and stored as a hash.

use std::{net::IpAddr, sync::Arc};

use uuid::Uuid;

use super::{AuthMethod, Identity, Refusal, Rejection, api_key_scopes::KeyScopes, credential_cache::CredentialCache};
use crate::{
    secrets,
    store::{ApiKey, NewKey, PersonId, Store, StoreError, Usage},
};

/// What every key begins with, as zot's do.
pub const PREFIX: &str = "zak_";

/// How many keys one person may have.
pub const MAX_KEYS: i64 = 200;

/// Whether a text looks like a key.
pub fn is_key(text: &str) -> bool {
    text.starts_with(PREFIX)
}

/// The API keys, with those in use in memory.
pub struct Keys {
    store: Store,
    usage: Arc<Usage>,
    by_hash: CredentialCache<Known>,
    by_id: CredentialCache<Known>,
}

#[derive(Clone)]
struct Known {
    key: Arc<ApiKey>,
    identity: Arc<Identity>,
    /// Its scopes can't be read, so nobody knows what it is for.
    unreadable: bool,
}

impl From<ApiKey> for Known {
    fn from(key: ApiKey) -> Self {
        let mut identity = Identity::of_person(key.user.clone(), AuthMethod::ApiKey(key.id.clone()));
        let scopes = KeyScopes::parse(&key.scopes);
        let unreadable = scopes.is_err();
        identity.scopes = scopes.ok().flatten();
        Self { key: Arc::new(key), identity: Arc::new(identity), unreadable }
    }
}

/// A key that somebody wants.
pub struct WantedKey<'a> {
    /// What they call it.
    pub label: &'a str,
    /// What it is made with.
    pub user_agent: &'a str,
    /// When it ends, if it does.
    pub expires_at: Option<i64>,
    /// What it is for; see [`KeyScopes`].
    pub scopes: &'a [String],
}

impl Keys {
    /// The keys in `store`.
    pub fn new(store: Store, usage: Arc<Usage>) -> Self {
        Self { store, usage, by_hash: CredentialCache::new(), by_id: CredentialCache::new() }
    }

    /// The owner of a key, who must be called `user` if a name was given with it.
    pub async fn find(&self, user: Option<&str>, key: &str, client: Option<IpAddr>) -> Result<Arc<Identity>, Refusal> {
        // What can't be one isn't looked for.
        if key.len() != PREFIX.len() + secrets::TEXT_LEN {
            return Err(Rejection::UnknownKey.into());
        }
        let hash = secrets::hash(key);
        let load = async { Ok(self.store.key_by_hash(&hash).await?.map(Known::from)) };
        let known = self.by_hash.get(&hash, load).await?.ok_or(Rejection::UnknownKey)?;
        if user.is_some_and(|user| !user.eq_ignore_ascii_case(&known.identity.user)) {
            return Err(Rejection::OthersKey.into());
        }
        self.good(&known, client)
    }

    /// The owner of the key of this id.
    pub async fn find_by_id(&self, id: &str, client: Option<IpAddr>) -> Result<Arc<Identity>, Refusal> {
        let load = async { Ok(self.store.key_by_id(id).await?.map(Known::from)) };
        let known = self.by_id.get(id, load).await?.ok_or(Rejection::OrphanToken)?;
        self.good(&known, client)
    }

    fn good(&self, known: &Known, client: Option<IpAddr>) -> Result<Arc<Identity>, Refusal> {
        if known.key.is_expired() {
            return Err(Rejection::ExpiredKey.into());
        }
        if known.unreadable {
            tracing::error!(key = known.key.id, "the scopes of an API key can't be read");
            return Err(Rejection::UnreadableKey.into());
        }
        self.usage.key(&known.key.id, client);
        Ok(Arc::clone(&known.identity))
    }

    /// Makes a key for somebody; nothing, if they have [`MAX_KEYS`] already. The text is given here, and never again.
    pub async fn create(
        &self,
        owner: &PersonId,
        wanted: &WantedKey<'_>,
    ) -> Result<Option<(String, ApiKey)>, StoreError> {
        let text = format!("{PREFIX}{}", secrets::random_text());
        let (id, key_hash) = (Uuid::new_v4().to_string(), secrets::hash(&text));
        let new = NewKey {
            id: &id,
            key_hash: &key_hash,
            owner,
            label: wanted.label,
            user_agent: wanted.user_agent,
            expires_at: wanted.expires_at,
            scopes: wanted.scopes,
        };
        if !self.store.create_key(&new, MAX_KEYS).await? {
            return Ok(None);
        }
        // Somebody may have guessed at it before it was.
        self.by_hash.forget(&key_hash).await;
        let key = self.store.key_by_id(&id).await?.ok_or_else(|| StoreError::from(sqlx::Error::RowNotFound))?;
        Ok(Some((text, key)))
    }

    /// Somebody's keys.
    pub async fn of(&self, owner: &PersonId) -> Result<Vec<ApiKey>, StoreError> {
        self.store.keys_of(owner).await
    }

    /// Revokes a key of this person; whether there was one. It stops here at once.
    pub async fn revoke(&self, owner: &PersonId, id: &str) -> Result<bool, StoreError> {
        let Some(hash) = self.store.delete_key(owner, id).await? else { return Ok(false) };
        self.by_hash.forget(&hash).await;
        self.by_id.forget(id).await;
        Ok(true)
    }

    /// Looks the keys up again, because their owner's claims have changed.
    pub fn refresh(&self) {
        self.by_hash.refresh();
        self.by_id.refresh();
    }
}

#[cfg(test)]
mod tests {
    use serde_json::Map;

    use super::*;
    use crate::store::{User, for_test};

    #[tokio::test]
    async fn a_key_stops_when_it_is_revoked() {
        let (_folder, store) = for_test().await;
        let id = PersonId { provider: "oidc".to_owned(), subject: "1".to_owned() };
        let (name, groups, claims) = ("alice@company".to_owned(), Vec::new(), Map::new());
        let alice = User { id, name, groups, claims };
        store.sign_in(&alice, None).await.expect("signed in");
        let keys = Keys::new(store.clone(), Arc::default());
        let make = async |expires_at| {
            let wanted = WantedKey { label: "ci", user_agent: "test", expires_at, scopes: &[] };
            keys.create(&alice.id, &wanted).await.expect("stored").expect("a key")
        };
        let rejected = |found: Result<Arc<Identity>, Refusal>| match found {
            Err(Refusal::Rejected(rejection)) => rejection,
            other => panic!("{other:?}"),
        };
        let (text, key) = make(None).await;
        assert!(keys.find(Some("Alice@company"), &text, None).await.is_ok());
        assert!(matches!(rejected(keys.find(Some("bob"), &text, None).await), Rejection::OthersKey));
        assert!(keys.find_by_id(&key.id, None).await.is_ok());
        let bob = PersonId { subject: "2".to_owned(), ..alice.id.clone() };
        assert!(!keys.revoke(&bob, &key.id).await.expect("asked"));
        assert!(keys.revoke(&alice.id, &key.id).await.expect("revoked"));
        assert!(matches!(rejected(keys.find(None, &text, None).await), Rejection::UnknownKey));
        assert!(matches!(rejected(keys.find_by_id(&key.id, None).await), Rejection::OrphanToken));
        let (text, _) = make(Some(1)).await;
        assert!(matches!(rejected(keys.find(None, &text, None).await), Rejection::ExpiredKey));
    }
}
