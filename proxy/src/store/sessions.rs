//! Sessions of browsers.

use std::time::Duration;

use sqlx::{Row, any::AnyRow};

use super::{Store, StoreError, User, now};

/// A session that begins.
pub struct NewSession<'a> {
    /// The hash of its id.
    pub id_hash: &'a str,
    /// Whose it is; must have been put.
    pub user: &'a User,
    /// The provider's name for its own session, if it gave one.
    pub sid: Option<&'a str>,
    /// The provider's tokens, sealed.
    pub sealed: &'a str,
    /// The browser.
    pub user_agent: &'a str,
}

/// A session that was found.
#[derive(Clone, Debug)]
pub struct Session {
    /// The hash of its id.
    pub id_hash: String,
    /// Whose it is, with the claims of now.
    pub user: User,
    /// The provider's tokens, sealed.
    pub sealed: String,
    /// When it began.
    pub created_at: i64,
    /// When it was last used, as far as that was written.
    pub used_at: i64,
}

impl Session {
    fn from_row(row: &AnyRow) -> Result<Self, sqlx::Error> {
        Ok(Self {
            id_hash: row.try_get("id_hash")?,
            user: User::from_row(row)?,
            sealed: row.try_get("sealed")?,
            created_at: row.try_get("created_at")?,
            used_at: row.try_get("used_at")?,
        })
    }
}

impl Store {
    /// Remembers a new session.
    pub async fn create_session(&self, session: &NewSession<'_>) -> Result<(), StoreError> {
        sqlx::query(
            "INSERT INTO sessions (id_hash, user_name, provider, subject, sid, sealed, user_agent, created_at, used_at)
             VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $8)",
        )
        .bind(session.id_hash)
        .bind(&session.user.name)
        .bind(&session.user.provider)
        .bind(&session.user.subject)
        .bind(session.sid)
        .bind(session.sealed)
        .bind(session.user_agent)
        .bind(now())
        .execute(&self.pool)
        .await?;
        Ok(())
    }

    /// The session whose id has this hash.
    pub async fn session(&self, id_hash: &str) -> Result<Option<Session>, StoreError> {
        let row = sqlx::query(
            "SELECT s.id_hash, s.sealed, s.created_at, s.used_at,
                    u.name AS user_name, s.provider, s.subject, u.user_groups, u.claims
             FROM sessions s JOIN users u ON u.name = s.user_name WHERE s.id_hash = $1",
        )
        .bind(id_hash)
        .fetch_optional(&self.pool)
        .await?;
        Ok(row.as_ref().map(Session::from_row).transpose()?)
    }

    /// Ends a session.
    pub async fn delete_session(&self, id_hash: &str) -> Result<(), StoreError> {
        sqlx::query("DELETE FROM sessions WHERE id_hash = $1").bind(id_hash).execute(&self.pool).await?;
        Ok(())
    }

    /// Forgets the sessions that nobody can use any more.
    pub async fn delete_ended_sessions(&self, idle: Duration, absolute: Duration) -> Result<(), StoreError> {
        let before = |age: Duration| now().saturating_sub(i64::try_from(age.as_secs()).unwrap_or(i64::MAX));
        sqlx::query("DELETE FROM sessions WHERE used_at < $1 OR created_at < $2")
            .bind(before(idle))
            .bind(before(absolute))
            .execute(&self.pool)
            .await?;
        Ok(())
    }
}
