//! API keys.

use sqlx::{Row, any::AnyRow};

use super::{Store, StoreError, User, now};

/// A key that is made.
pub struct NewKey<'a> {
    /// Its public name.
    pub id: &'a str,
    /// The hash of the key itself.
    pub key_hash: &'a str,
    /// Whose it is; must have been put.
    pub user_name: &'a str,
    /// What its owner calls it.
    pub label: &'a str,
    /// What it was made with.
    pub user_agent: &'a str,
    /// When it ends, if it does.
    pub expires_at: Option<i64>,
    /// What it is for, as its owner wrote it.
    pub scopes: &'a [String],
}

/// A key that was found.
#[derive(Clone, Debug)]
pub struct ApiKey {
    /// Its public name.
    pub id: String,
    /// Whose it is, with the claims of now.
    pub user: User,
    /// What its owner calls it.
    pub label: String,
    /// What it was made with.
    pub user_agent: String,
    /// When it was made.
    pub created_at: i64,
    /// When it ends, if it does.
    pub expires_at: Option<i64>,
    /// When it was last used, as far as that was written.
    pub used_at: Option<i64>,
    /// What it is for; everything that its owner may do, if that is empty.
    pub scopes: Vec<String>,
    /// Its owner was gone when the provider was last asked.
    pub suspended: bool,
}

impl ApiKey {
    fn from_row(row: &AnyRow) -> Result<Self, sqlx::Error> {
        Ok(Self {
            id: row.try_get("id")?,
            user: User::from_row(row)?,
            label: row.try_get("label")?,
            user_agent: row.try_get("user_agent")?,
            created_at: row.try_get("created_at")?,
            expires_at: row.try_get("expires_at")?,
            used_at: row.try_get("used_at")?,
            scopes: serde_json::from_str(row.try_get("scopes")?).map_err(|e| sqlx::Error::Decode(Box::new(e)))?,
            suspended: row.try_get::<i64, _>("suspended")? != 0,
        })
    }

    /// Whether it has ended.
    pub fn is_expired(&self) -> bool {
        self.expires_at.is_some_and(|at| at <= now())
    }
}

macro_rules! select_key {
    ($condition:literal) => {
        concat!(
            "SELECT k.id, k.label, k.user_agent, k.created_at, k.expires_at, k.used_at, k.scopes,
                    u.suspended, u.name AS user_name, u.provider, u.subject, u.user_groups, u.claims
             FROM api_keys k JOIN users u ON u.name = k.user_name WHERE ",
            $condition
        )
    };
}

impl Store {
    /// Remembers a new key.
    pub async fn create_key(&self, key: &NewKey<'_>) -> Result<(), StoreError> {
        sqlx::query(
            "INSERT INTO api_keys (id, key_hash, user_name, label, user_agent, created_at, expires_at, scopes)
             VALUES ($1, $2, $3, $4, $5, $6, $7, $8)",
        )
        .bind(key.id)
        .bind(key.key_hash)
        .bind(key.user_name)
        .bind(key.label)
        .bind(key.user_agent)
        .bind(now())
        .bind(key.expires_at)
        .bind(serde_json::Value::from(key.scopes.to_vec()).to_string())
        .execute(&self.pool)
        .await?;
        Ok(())
    }

    /// The key with this hash.
    pub async fn key_by_hash(&self, key_hash: &str) -> Result<Option<ApiKey>, StoreError> {
        let row = sqlx::query(select_key!("k.key_hash = $1")).bind(key_hash).fetch_optional(&self.pool).await?;
        Ok(row.as_ref().map(ApiKey::from_row).transpose()?)
    }

    /// The key of this public name.
    pub async fn key_by_id(&self, id: &str) -> Result<Option<ApiKey>, StoreError> {
        let row = sqlx::query(select_key!("k.id = $1")).bind(id).fetch_optional(&self.pool).await?;
        Ok(row.as_ref().map(ApiKey::from_row).transpose()?)
    }

    /// Somebody's keys, the newest first.
    pub async fn keys_of(&self, user_name: &str) -> Result<Vec<ApiKey>, StoreError> {
        let rows = sqlx::query(select_key!("k.user_name = $1 ORDER BY k.created_at DESC, k.id"))
            .bind(user_name)
            .fetch_all(&self.pool)
            .await?;
        Ok(rows.iter().map(ApiKey::from_row).collect::<Result<_, _>>()?)
    }

    /// Revokes a key of this user; gives its hash if there was one.
    pub async fn delete_key(&self, user_name: &str, id: &str) -> Result<Option<String>, StoreError> {
        let row = sqlx::query("DELETE FROM api_keys WHERE user_name = $1 AND id = $2 RETURNING key_hash")
            .bind(user_name)
            .bind(id)
            .fetch_optional(&self.pool)
            .await?;
        Ok(row.map(|row| row.try_get("key_hash")).transpose()?)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Map, json};

    use super::*;
    use crate::store::{NewSession, for_test};

    fn alice() -> User {
        User {
            name: "alice".to_owned(),
            provider: "oidc".to_owned(),
            subject: "s".to_owned(),
            groups: vec!["dev".to_owned()],
            claims: Map::from_iter([("email".to_owned(), json!("a@b"))]),
        }
    }

    #[tokio::test]
    async fn a_key_is_found_until_its_owner_revokes_it() {
        let (_folder, store) = for_test().await;
        store.put_user(&alice()).await.expect("stored");
        let scopes = &["read".to_owned()];
        let (label, user_agent) = ("ci", "t");
        let new = NewKey { id: "1", key_hash: "h", user_name: "alice", label, user_agent, expires_at: None, scopes };
        store.create_key(&new).await.expect("stored");
        let found = store.key_by_hash("h").await.expect("read").expect("the key");
        assert_eq!((found.user, found.expires_at, found.used_at), (alice(), None, None));
        assert_eq!((found.scopes.as_slice(), found.suspended), (&scopes[..], false));
        store.suspend("alice").await.expect("suspended");
        assert!(store.key_by_hash("h").await.expect("read").expect("the key").suspended);
        // Until they sign in again.
        store.put_user(&alice()).await.expect("stored");
        assert!(!store.key_by_hash("h").await.expect("read").expect("the key").suspended);
        assert_eq!(store.delete_key("bob", "1").await.expect("asked"), None);
        assert_eq!(store.delete_key("alice", "1").await.expect("asked"), Some("h".to_owned()));
        assert!(store.key_by_id("1").await.expect("read").is_none());
    }

    #[tokio::test]
    async fn a_session_has_the_claims_of_now() {
        let (_folder, store) = for_test().await;
        let mut user = alice();
        store.put_user(&user).await.expect("stored");
        let (sealed, user_agent, client) = ("x", "t", "");
        let new = NewSession { id_hash: "h", user: &user, sid: None, sealed, renewable: false, user_agent, client };
        store.create_session(&new).await.expect("stored");
        user.groups = vec!["ops".to_owned()];
        store.put_user(&user).await.expect("stored");
        assert_eq!(store.session("h").await.expect("read").expect("the session").user.groups, ["ops"]);
        store.end_session("h").await.expect("ended");
        assert!(store.session("h").await.expect("read").is_none());
    }
}
