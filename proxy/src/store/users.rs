//! People, as they were when they last signed in.

use serde_json::{Map, Value};
use sqlx::{Row, any::AnyRow};

use super::{Store, StoreError, now};

/// Somebody who has signed in.
#[derive(Clone, Debug, PartialEq)]
pub struct User {
    /// The name that rules know.
    pub name: String,
    /// Which provider signed them in.
    pub provider: String,
    /// Their `sub` there.
    pub subject: String,
    /// Their groups, by the claims.
    pub groups: Vec<String>,
    /// Every claim.
    pub claims: Map<String, Value>,
}

impl User {
    /// Reads the columns `user_name, provider, subject, user_groups, claims`.
    pub(super) fn from_row(row: &AnyRow) -> Result<Self, sqlx::Error> {
        let json = |e| sqlx::Error::Decode(Box::new(e));
        Ok(Self {
            name: row.try_get("user_name")?,
            provider: row.try_get("provider")?,
            subject: row.try_get("subject")?,
            groups: serde_json::from_str(row.try_get("user_groups")?).map_err(json)?,
            claims: serde_json::from_str(row.try_get("claims")?).map_err(json)?,
        })
    }
}

impl Store {
    /// Remembers what a provider said of somebody, instead of what it said before.
    pub async fn put_user(&self, user: &User) -> Result<(), StoreError> {
        sqlx::query(
            "INSERT INTO users (name, provider, subject, user_groups, claims, seen_at) VALUES ($1, $2, $3, $4, $5, $6)
             ON CONFLICT (name) DO UPDATE SET provider = excluded.provider, subject = excluded.subject,
                 user_groups = excluded.user_groups, claims = excluded.claims, seen_at = excluded.seen_at",
        )
        .bind(&user.name)
        .bind(&user.provider)
        .bind(&user.subject)
        .bind(Value::from(user.groups.clone()).to_string())
        .bind(Value::from(user.claims.clone()).to_string())
        .bind(now())
        .execute(&self.pool)
        .await?;
        Ok(())
    }
}
