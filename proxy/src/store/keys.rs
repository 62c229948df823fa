//! API keys.

use sqlx::{Row, any::AnyRow};

use super::{PersonId, Store, StoreError, User, now};

/// A key that is made.
pub struct NewKey<'a> {
    /// Its public name.
    pub id: &'a str,
    /// The hash of the key itself.
    pub key_hash: &'a str,
    /// Whose it is; must have signed in.
    pub owner: &'a PersonId,
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
    /// From where; empty if that isn't known.
    pub used_from: String,
    /// What it is for; everything that its owner may do, if that is empty.
    pub scopes: Vec<String>,
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
            used_from: row.try_get("used_from")?,
            scopes: serde_json::from_str(row.try_get("scopes")?).map_err(|e| sqlx::Error::Decode(Box::new(e)))?,
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
            "SELECT k.id, k.label, k.user_agent, k.created_at, k.expires_at, k.used_at, k.used_from, k.scopes,
                    p.provider, p.subject, p.name, p.user_groups, p.claims
             FROM api_keys k JOIN people p ON p.provider = k.provider AND p.subject = k.subject WHERE ",
            $condition
        )
    };
}

impl Store {
    /// Remembers a new key, unless its owner has `most` already; whether it did.
    pub async fn create_key(&self, key: &NewKey<'_>, most: i64) -> Result<bool, StoreError> {
        let query = sqlx::query(
            "INSERT INTO api_keys (id, key_hash, provider, subject, label, user_agent, created_at, expires_at, scopes)
             SELECT $1, $2, $3, $4, $5, $6, CAST($7 AS BIGINT), CAST($8 AS BIGINT), $9
             WHERE (SELECT COUNT(*) FROM api_keys WHERE provider = $3 AND subject = $4) < CAST($10 AS BIGINT)",
        )
        .bind(key.id)
        .bind(key.key_hash)
        .bind(&key.owner.provider)
        .bind(&key.owner.subject)
        .bind(key.label)
        .bind(key.user_agent)
        .bind(now())
        .bind(key.expires_at)
        .bind(serde_json::Value::from(key.scopes.to_vec()).to_string())
        .bind(most);
        Ok(self.within(query.execute(&self.pool)).await?.rows_affected() == 1)
    }

    /// The key with this hash.
    pub async fn key_by_hash(&self, key_hash: &str) -> Result<Option<ApiKey>, StoreError> {
        let query = sqlx::query(select_key!("k.key_hash = $1")).bind(key_hash);
        let row = self.within(query.fetch_optional(&self.pool)).await?;
        Ok(row.as_ref().map(ApiKey::from_row).transpose()?)
    }

    /// The key of this public name.
    pub async fn key_by_id(&self, id: &str) -> Result<Option<ApiKey>, StoreError> {
        let query = sqlx::query(select_key!("k.id = $1")).bind(id);
        let row = self.within(query.fetch_optional(&self.pool)).await?;
        Ok(row.as_ref().map(ApiKey::from_row).transpose()?)
    }

    /// Somebody's keys, the newest first.
    pub async fn keys_of(&self, owner: &PersonId) -> Result<Vec<ApiKey>, StoreError> {
        let query = sqlx::query(select_key!("k.provider = $1 AND k.subject = $2 ORDER BY k.created_at DESC, k.id"));
        let rows = self.within(query.bind(&owner.provider).bind(&owner.subject).fetch_all(&self.pool)).await?;
        Ok(rows.iter().map(ApiKey::from_row).collect::<Result<_, _>>()?)
    }

    /// Revokes a key of this person; gives its hash if there was one.
    pub async fn delete_key(&self, owner: &PersonId, id: &str) -> Result<Option<String>, StoreError> {
        let query =
            sqlx::query("DELETE FROM api_keys WHERE provider = $1 AND subject = $2 AND id = $3 RETURNING key_hash");
        let query = query.bind(&owner.provider).bind(&owner.subject).bind(id);
        let row = self.within(query.fetch_optional(&self.pool)).await?;
        Ok(row.map(|row| row.try_get("key_hash")).transpose()?)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::store::{NewSession, Renewability, for_test, people::tests::alice};

    fn key<'a>(id: &'a str, owner: &'a PersonId, scopes: &'a [String]) -> NewKey<'a> {
        NewKey { id, key_hash: id, owner, label: "ci", user_agent: "t", expires_at: None, scopes }
    }

    #[tokio::test]
    async fn a_key_is_found_until_its_owner_revokes_it_and_nobody_has_too_many() {
        let (_folder, store) = for_test().await;
        let alice = alice();
        store.sign_in(&alice, None).await.expect("signed in");
        let scopes = &["read".to_owned()];
        assert!(store.create_key(&key("h", &alice.id, scopes), 1).await.expect("stored"));
        assert!(!store.create_key(&key("more", &alice.id, &[]), 1).await.expect("asked"));
        let found = store.key_by_hash("h").await.expect("read").expect("the key");
        assert_eq!((found.user, found.expires_at, found.used_at), (alice.clone(), None, None));
        assert_eq!(found.scopes.as_slice(), &scopes[..]);
        let bob = PersonId { subject: "2".to_owned(), ..alice.id.clone() };
        assert_eq!(store.delete_key(&bob, "h").await.expect("asked"), None);
        assert_eq!(store.delete_key(&alice.id, "h").await.expect("asked"), Some("h".to_owned()));
        assert!(store.key_by_id("h").await.expect("read").is_none());
    }

    #[tokio::test]
    async fn a_session_has_the_claims_of_now() {
        let (_folder, store) = for_test().await;
        let mut user = alice();
        let renewability = Some(Renewability { sealed: "x", renew_after: 0 });
        store.sign_in(&user, renewability).await.expect("signed in");
        let (sealed, user_agent, client) = ("x", "t", "");
        let new = NewSession { id_hash: "h", owner: &user.id, sid: None, sealed, user_agent, client };
        store.create_session(&new).await.expect("stored");
        user.groups = vec!["ops".to_owned()];
        let due = store.people_to_renew("oidc", Duration::ZERO, Duration::from_hours(1)).await.expect("read").remove(0);
        store.confirm(&user, &due).await.expect("stored");
        assert_eq!(store.session("h").await.expect("read").expect("the session").user.groups, ["ops"]);
        store.end_session("h").await.expect("ended");
        assert!(store.session("h").await.expect("read").is_none());
    }
}
