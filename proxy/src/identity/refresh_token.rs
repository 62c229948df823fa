//! Refresh tokens of jobs (the registry token specification, "OAuth2 Token Authentication").
//!
//! A CI job's JWT lives for minutes, and its build for longer. At its login the job gets one of these, which only the
//! token service takes. It is bound to the issuer's rules: at each use the claims of that JWT must pass them again.

use uuid::Uuid;

use super::{Refusal, Rejection, credential_cache::CredentialCache};
use crate::{
    secrets,
    store::{RefreshToken, Store, StoreError, now},
};

/// What every refresh token begins with.
pub const PREFIX: &str = "brt_";

/// The refresh tokens, with those in use in memory.
pub struct RefreshTokens {
    store: Store,
    /// How long they live, in seconds.
    lifetime: i64,
    by_id: CredentialCache<RefreshToken>,
}

impl RefreshTokens {
    /// The refresh tokens in `store`.
    pub fn new(store: Store, lifetime: i64) -> Self {
        Self { store, lifetime, by_id: CredentialCache::new() }
    }

    /// Makes one of the JWT of `issuer` that had these claims.
    pub async fn create(
        &self,
        issuer: &str,
        claims: &serde_json::Map<String, serde_json::Value>,
    ) -> Result<String, StoreError> {
        let text = format!("{PREFIX}{}", secrets::random_text());
        let token = RefreshToken {
            id: Uuid::new_v4().to_string(),
            issuer: issuer.to_owned(),
            claims: claims.clone(),
            expires_at: now() + self.lifetime,
        };
        self.store.create_refresh_token(&token, &secrets::hash(&text)).await?;
        Ok(text)
    }

    /// The one with this text. It is asked for seldom, and so of the database.
    pub async fn find(&self, text: &str) -> Result<RefreshToken, Refusal> {
        let found = self.store.refresh_token_by_hash(&secrets::hash(text)).await?;
        found.filter(|token| token.expires_at > now()).ok_or_else(|| Rejection::UnknownRefreshToken.into())
    }

    /// The one of this id.
    pub async fn find_by_id(&self, id: &str) -> Result<RefreshToken, Refusal> {
        let found = self.by_id.get(id, self.store.refresh_token_by_id(id)).await?;
        found.filter(|token| token.expires_at > now()).ok_or_else(|| Rejection::OrphanToken.into())
    }

    /// The newest of all.
    pub async fn newest(&self, most: i64) -> Result<Vec<RefreshToken>, StoreError> {
        self.store.refresh_tokens(most).await
    }

    /// Revokes the one of this id, and with it the tokens that were made of it; whether there was one.
    pub async fn revoke_by_id(&self, id: &str) -> Result<bool, StoreError> {
        let there = self.store.delete_refresh_token_by_id(id).await?;
        self.by_id.forget(id).await;
        Ok(there)
    }

    /// Revokes one, and with it the tokens that were made of it; whether there was one.
    pub async fn revoke(&self, text: &str) -> Result<bool, StoreError> {
        let Some(id) = self.store.delete_refresh_token(&secrets::hash(text)).await? else { return Ok(false) };
        self.by_id.forget(&id).await;
        Ok(true)
    }
}
