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
    /// Whether there is a refresh token among them.
    pub renewable: bool,
    /// The browser.
    pub user_agent: &'a str,
    /// Where it is.
    pub client: &'a str,
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
    /// The browser.
    pub user_agent: String,
    /// Where it was when it began.
    pub client: String,
    /// When it began.
    pub created_at: i64,
    /// When it was last used, as far as that was written.
    pub used_at: i64,
    /// When its claims were last renewed; 0 if they can't be.
    pub renewed_at: i64,
    /// Until when somebody renews them; not 0 if they began and never ended.
    pub renewing_until: i64,
}

impl Session {
    fn from_row(row: &AnyRow) -> Result<Self, sqlx::Error> {
        Ok(Self {
            id_hash: row.try_get("id_hash")?,
            user: User::from_row(row)?,
            sealed: row.try_get("sealed")?,
            user_agent: row.try_get("user_agent")?,
            client: row.try_get("client")?,
            created_at: row.try_get("created_at")?,
            used_at: row.try_get("used_at")?,
            renewed_at: row.try_get("renewed_at")?,
            renewing_until: row.try_get("renewing_until")?,
        })
    }
}

macro_rules! select_session {
    ($condition:literal) => {
        concat!(
            "SELECT s.id_hash, s.sealed, s.user_agent, s.client, s.created_at, s.used_at, s.renewed_at, s.renewing_until,
                    u.name AS user_name, s.provider, s.subject, u.user_groups, u.claims
             FROM sessions s JOIN users u ON u.name = s.user_name WHERE ",
            $condition
        )
    };
}

macro_rules! end_sessions {
    ($condition:literal) => {
        concat!(
            "UPDATE sessions SET ended = 1 WHERE ended = 0 AND provider = $1 AND ",
            $condition,
            " RETURNING id_hash"
        )
    };
}

/// `age` ago, in seconds since 1970.
fn before(age: Duration) -> i64 {
    now().saturating_sub(i64::try_from(age.as_secs()).unwrap_or(i64::MAX))
}

impl Store {
    /// Remembers a new session.
    pub async fn create_session(&self, session: &NewSession<'_>) -> Result<(), StoreError> {
        sqlx::query(
            "INSERT INTO sessions (id_hash, user_name, provider, subject, sid, sealed, user_agent, client,
                                   created_at, used_at, renewed_at)
             VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $9, $10)",
        )
        .bind(session.id_hash)
        .bind(&session.user.name)
        .bind(&session.user.provider)
        .bind(&session.user.subject)
        .bind(session.sid)
        .bind(session.sealed)
        .bind(session.user_agent)
        .bind(session.client)
        .bind(now())
        .bind(if session.renewable { now() } else { 0 })
        .execute(&self.pool)
        .await?;
        Ok(())
    }

    /// The session whose id has this hash.
    pub async fn session(&self, id_hash: &str) -> Result<Option<Session>, StoreError> {
        let row = sqlx::query(select_session!("s.id_hash = $1 AND s.ended = 0"))
            .bind(id_hash)
            .fetch_optional(&self.pool)
            .await?;
        Ok(row.as_ref().map(Session::from_row).transpose()?)
    }

    /// Somebody's sessions, the newest first.
    pub async fn sessions_of(&self, user_name: &str) -> Result<Vec<Session>, StoreError> {
        let query =
            sqlx::query(select_session!("s.user_name = $1 AND s.ended = 0 ORDER BY s.created_at DESC, s.id_hash"));
        let rows = query.bind(user_name).fetch_all(&self.pool).await?;
        Ok(rows.iter().map(Session::from_row).collect::<Result<_, _>>()?)
    }

    /// Forgets a session, and what it gave: its claims are renewed no more.
    pub async fn delete_session(&self, id_hash: &str) -> Result<(), StoreError> {
        sqlx::query("DELETE FROM sessions WHERE id_hash = $1").bind(id_hash).execute(&self.pool).await?;
        Ok(())
    }

    /// Ends a session: it signs nobody in any more. If its owner has API keys it goes on to renew their claims, since the
    /// keys follow those, until [`Store::delete_ended_sessions`] finds no use in that.
    pub async fn end_session(&self, id_hash: &str) -> Result<(), StoreError> {
        sqlx::query("UPDATE sessions SET ended = 1 WHERE id_hash = $1").bind(id_hash).execute(&self.pool).await?;
        Ok(())
    }

    /// Ends the sessions that the provider has ended: of this `sid`, or of this `sub`, or of both (OpenID Connect
    /// Back-Channel Logout 1.0, section 2.7); the hashes of their ids.
    pub async fn end_sessions_of(
        &self,
        provider: &str,
        subject: Option<&str>,
        sid: Option<&str>,
    ) -> Result<Vec<String>, StoreError> {
        let rows = match (subject, sid) {
            (None, None) => return Ok(Vec::new()),
            (Some(subject), None) => sqlx::query(end_sessions!("subject = $2")).bind(provider).bind(subject),
            (None, Some(sid)) => sqlx::query(end_sessions!("sid = $2")).bind(provider).bind(sid),
            (Some(subject), Some(sid)) => {
                sqlx::query(end_sessions!("subject = $2 AND sid = $3")).bind(provider).bind(subject).bind(sid)
            }
        };
        let rows = rows.fetch_all(&self.pool).await?;
        Ok(rows.iter().map(|row| row.try_get("id_hash")).collect::<Result<_, _>>()?)
    }

    /// The sessions whose claims haven't been renewed for `age`, and that nobody is renewing.
    pub async fn sessions_to_renew(&self, age: Duration) -> Result<Vec<Session>, StoreError> {
        let rows = sqlx::query(select_session!("s.renewed_at > 0 AND s.renewed_at <= $1 AND s.renewing_until < $2"))
            .bind(before(age))
            .bind(now())
            .fetch_all(&self.pool)
            .await?;
        Ok(rows.iter().map(Session::from_row).collect::<Result<_, _>>()?)
    }

    /// Claims the renewal of a session for a while. Of all replicas one gets it.
    pub async fn claim_renewal(&self, session: &Session, lasting: Duration) -> Result<bool, StoreError> {
        let until = now().saturating_add(i64::try_from(lasting.as_secs()).unwrap_or_default());
        let claimed = sqlx::query(
            "UPDATE sessions SET renewing_until = $1 WHERE id_hash = $2 AND renewed_at = $3 AND renewing_until < $4",
        )
        .bind(until)
        .bind(&session.id_hash)
        .bind(session.renewed_at)
        .bind(now())
        .execute(&self.pool)
        .await?;
        Ok(claimed.rows_affected() == 1)
    }

    /// Gives a renewal up that has certainly not begun at the provider.
    pub async fn give_up_renewal(&self, id_hash: &str) -> Result<(), StoreError> {
        sqlx::query("UPDATE sessions SET renewing_until = 0 WHERE id_hash = $1")
            .bind(id_hash)
            .execute(&self.pool)
            .await?;
        Ok(())
    }

    /// Whether another session of the same person can still be renewed.
    pub async fn has_another_renewal(&self, session: &Session) -> Result<bool, StoreError> {
        let row = sqlx::query(
            "SELECT 1 AS one FROM sessions WHERE user_name = $1 AND renewed_at > 0 AND id_hash <> $2 LIMIT 1",
        )
        .bind(&session.user.name)
        .bind(&session.id_hash)
        .fetch_optional(&self.pool)
        .await?;
        Ok(row.is_some())
    }

    /// Keeps the tokens that a renewal gave.
    pub async fn keep_renewed(&self, id_hash: &str, sealed: &str) -> Result<(), StoreError> {
        sqlx::query("UPDATE sessions SET sealed = $1, renewed_at = $2, renewing_until = 0 WHERE id_hash = $3")
            .bind(sealed)
            .bind(now())
            .bind(id_hash)
            .execute(&self.pool)
            .await?;
        Ok(())
    }

    /// Ends the sessions that are too old, and forgets those that have ended; but of somebody who has API keys, the newest
    /// that can be renewed goes on to renew their claims.
    pub async fn delete_ended_sessions(&self, idle: Duration, absolute: Duration) -> Result<(), StoreError> {
        sqlx::query("UPDATE sessions SET ended = 1 WHERE ended = 0 AND (used_at < $1 OR created_at < $2)")
            .bind(before(idle))
            .bind(before(absolute))
            .execute(&self.pool)
            .await?;
        sqlx::query(
            "DELETE FROM sessions WHERE ended = 1 AND (
                 renewed_at = 0
                 OR NOT EXISTS (SELECT 1 FROM api_keys k WHERE k.user_name = sessions.user_name
                                AND (k.expires_at IS NULL OR k.expires_at > $1))
                 OR EXISTS (SELECT 1 FROM sessions n WHERE n.user_name = sessions.user_name AND n.renewed_at > 0
                            AND (n.created_at > sessions.created_at
                                 OR (n.created_at = sessions.created_at AND n.id_hash > sessions.id_hash))))",
        )
        .bind(now())
        .execute(&self.pool)
        .await?;
        Ok(())
    }
}
