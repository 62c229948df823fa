//! Refresh tokens of jobs, and logout tokens that were used.

use serde_json::{Map, Value};
use sqlx::{Row, any::AnyRow};

use super::{Store, StoreError, now};

/// What a job goes on with.
#[derive(Clone, Debug)]
pub struct RefreshToken {
    /// Its public name.
    pub id: String,
    /// The issuer of the JWT that it was made of.
    pub issuer: String,
    /// That JWT's claims.
    pub claims: Map<String, Value>,
    /// When it ends.
    pub expires_at: i64,
}

impl RefreshToken {
    fn from_row(row: &AnyRow) -> Result<Self, sqlx::Error> {
        Ok(Self {
            id: row.try_get("id")?,
            issuer: row.try_get("issuer")?,
            claims: serde_json::from_str(row.try_get("claims")?).map_err(|e| sqlx::Error::Decode(Box::new(e)))?,
            expires_at: row.try_get("expires_at")?,
        })
    }
}

impl Store {
    /// Remembers a new refresh token.
    pub async fn create_refresh_token(&self, token: &RefreshToken, token_hash: &str) -> Result<(), StoreError> {
        let query = sqlx::query(
            "INSERT INTO refresh_tokens (id, token_hash, issuer, claims, created_at, expires_at)
             VALUES ($1, $2, $3, $4, $5, $6)",
        )
        .bind(&token.id)
        .bind(token_hash)
        .bind(&token.issuer)
        .bind(Value::from(token.claims.clone()).to_string())
        .bind(now())
        .bind(token.expires_at);
        self.within(query.execute(&self.pool)).await?;
        Ok(())
    }

    /// The refresh token with this hash.
    pub async fn refresh_token_by_hash(&self, token_hash: &str) -> Result<Option<RefreshToken>, StoreError> {
        let query = sqlx::query("SELECT id, issuer, claims, expires_at FROM refresh_tokens WHERE token_hash = $1");
        let row = self.within(query.bind(token_hash).fetch_optional(&self.pool)).await?;
        Ok(row.as_ref().map(RefreshToken::from_row).transpose()?)
    }

    /// The refresh token of this public name.
    pub async fn refresh_token_by_id(&self, id: &str) -> Result<Option<RefreshToken>, StoreError> {
        let query = sqlx::query("SELECT id, issuer, claims, expires_at FROM refresh_tokens WHERE id = $1");
        let row = self.within(query.bind(id).fetch_optional(&self.pool)).await?;
        Ok(row.as_ref().map(RefreshToken::from_row).transpose()?)
    }

    /// The refresh tokens of all jobs that haven't expired, the newest first; at most so many.
    pub async fn refresh_tokens(&self, most: i64) -> Result<Vec<RefreshToken>, StoreError> {
        let query = sqlx::query(
            "SELECT id, issuer, claims, expires_at FROM refresh_tokens WHERE expires_at > $1
             ORDER BY created_at DESC, id LIMIT $2",
        );
        let rows = self.within(query.bind(now()).bind(most).fetch_all(&self.pool)).await?;
        Ok(rows.iter().map(RefreshToken::from_row).collect::<Result<_, _>>()?)
    }

    /// Revokes the refresh token of this public name; whether there was one.
    pub async fn delete_refresh_token_by_id(&self, id: &str) -> Result<bool, StoreError> {
        let query = sqlx::query("DELETE FROM refresh_tokens WHERE id = $1").bind(id);
        Ok(self.within(query.execute(&self.pool)).await?.rows_affected() == 1)
    }

    /// Revokes the refresh token with this hash; gives its public name if there was one.
    pub async fn delete_refresh_token(&self, token_hash: &str) -> Result<Option<String>, StoreError> {
        let query = sqlx::query("DELETE FROM refresh_tokens WHERE token_hash = $1 RETURNING id").bind(token_hash);
        let row = self.within(query.fetch_optional(&self.pool)).await?;
        Ok(row.map(|row| row.try_get("id")).transpose()?)
    }

    /// Whether a logout token was used.
    pub async fn knows_logout_token(&self, jti_hash: &str) -> Result<bool, StoreError> {
        let query = sqlx::query("SELECT 1 AS one FROM logout_tokens WHERE jti_hash = $1").bind(jti_hash);
        Ok(self.within(query.fetch_optional(&self.pool)).await?.is_some())
    }

    /// Remembers that a logout token was used.
    pub async fn use_logout_token(&self, jti_hash: &str, expires_at: i64) -> Result<(), StoreError> {
        let query = sqlx::query(
            "INSERT INTO logout_tokens (jti_hash, expires_at) VALUES ($1, $2) ON CONFLICT (jti_hash) DO NOTHING",
        )
        .bind(jti_hash)
        .bind(expires_at);
        self.within(query.execute(&self.pool)).await?;
        Ok(())
    }

    /// Forgets what has expired.
    pub async fn delete_expired_tokens(&self) -> Result<(), StoreError> {
        for statement in
            ["DELETE FROM refresh_tokens WHERE expires_at < $1", "DELETE FROM logout_tokens WHERE expires_at < $1"]
        {
            self.within(sqlx::query(statement).bind(now()).execute(&self.pool)).await?;
        }
        Ok(())
    }
}
