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
    ///
    /// A name that was another person's (their `sub` differs) begins anew: that person's sessions and API keys end.
    /// Whether it was.
    pub async fn put_user(&self, user: &User) -> Result<bool, StoreError> {
        let mut transaction = self.pool.begin().await?;
        // A write first: it waits for whoever writes this name, and a look that came before it could be of yesterday.
        sqlx::query("UPDATE users SET seen_at = seen_at WHERE name = $1")
            .bind(&user.name)
            .execute(&mut *transaction)
            .await?;
        let before = sqlx::query("SELECT subject FROM users WHERE name = $1")
            .bind(&user.name)
            .fetch_optional(&mut *transaction)
            .await?;
        let before: Option<String> = before.map(|row| row.try_get("subject")).transpose()?;
        let was_another = before.is_some_and(|subject| subject != user.subject);
        if was_another {
            for statement in ["DELETE FROM sessions WHERE user_name = $1", "DELETE FROM api_keys WHERE user_name = $1"]
            {
                sqlx::query(statement).bind(&user.name).execute(&mut *transaction).await?;
            }
        }
        sqlx::query(
            "INSERT INTO users (name, provider, subject, user_groups, claims, seen_at) VALUES ($1, $2, $3, $4, $5, $6)
             ON CONFLICT (name) DO UPDATE SET provider = excluded.provider, subject = excluded.subject,
                 user_groups = excluded.user_groups, claims = excluded.claims, seen_at = excluded.seen_at,
                 suspended = 0",
        )
        .bind(&user.name)
        .bind(&user.provider)
        .bind(&user.subject)
        .bind(Value::from(user.groups.clone()).to_string())
        .bind(Value::from(user.claims.clone()).to_string())
        .bind(now())
        .execute(&mut *transaction)
        .await?;
        transaction.commit().await?;
        Ok(was_another)
    }

    /// Remembers that the provider doesn't know somebody any more: their keys wait until they sign in again.
    pub async fn suspend(&self, name: &str) -> Result<(), StoreError> {
        sqlx::query("UPDATE users SET suspended = 1 WHERE name = $1").bind(name).execute(&self.pool).await?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::{NewKey, for_test};

    #[tokio::test]
    async fn who_gets_another_person_s_name_does_not_get_their_keys() {
        let (_folder, store) = for_test().await;
        let old = User {
            name: "alice@company".to_owned(),
            provider: "oidc".to_owned(),
            subject: "1".to_owned(),
            groups: Vec::new(),
            claims: Map::new(),
        };
        store.put_user(&old).await.expect("stored");
        let (id, key_hash, user_name, label, user_agent) = ("1", "h", old.name.as_str(), "", "");
        let key = NewKey { id, key_hash, user_name, label, user_agent, expires_at: None, scopes: &[] };
        store.create_key(&key).await.expect("stored");
        assert!(!store.put_user(&old).await.expect("stored"));
        assert!(store.key_by_hash("h").await.expect("read").is_some());
        assert!(store.put_user(&User { subject: "2".to_owned(), ..old }).await.expect("stored"));
        assert!(store.key_by_hash("h").await.expect("read").is_none());
    }
}
