//! Sessions of browsers.

use std::time::Duration;

use sqlx::{Row, any::AnyRow};

use super::{PersonId, Store, StoreError, User, before, now};

/// A session that begins.
pub struct NewSession<'a> {
    /// The hash of its id.
    pub id_hash: &'a str,
    /// Whose it is; must have signed in.
    pub owner: &'a PersonId,
    /// The provider's name for its own session, if it gave one.
    pub sid: Option<&'a str>,
    /// The ID token, sealed.
    pub sealed: &'a str,
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
    /// The ID token, sealed.
    pub sealed: String,
    /// The browser.
    pub user_agent: String,
    /// Where it was when it began.
    pub client: String,
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
            user_agent: row.try_get("user_agent")?,
            client: row.try_get("client")?,
            created_at: row.try_get("created_at")?,
            used_at: row.try_get("used_at")?,
        })
    }
}

macro_rules! select_session {
    ($condition:literal) => {
        concat!(
            "SELECT s.id_hash, s.sealed, s.user_agent, s.client, s.created_at, s.used_at,
                    p.provider, p.subject, p.name, p.user_groups, p.claims
             FROM sessions s JOIN people p ON p.provider = s.provider AND p.subject = s.subject WHERE ",
            $condition
        )
    };
}

macro_rules! end_sessions {
    ($condition:literal) => {
        concat!("DELETE FROM sessions WHERE provider = $1 AND ", $condition, " RETURNING id_hash")
    };
}

impl Store {
    /// Remembers a new session.
    pub async fn create_session(&self, session: &NewSession<'_>) -> Result<(), StoreError> {
        let query = sqlx::query(
            "INSERT INTO sessions (id_hash, provider, subject, sid, sealed, user_agent, client, created_at, used_at)
             VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $8)",
        )
        .bind(session.id_hash)
        .bind(&session.owner.provider)
        .bind(&session.owner.subject)
        .bind(session.sid)
        .bind(session.sealed)
        .bind(session.user_agent)
        .bind(session.client)
        .bind(now());
        self.within(query.execute(&self.pool)).await?;
        Ok(())
    }

    /// The session whose id has this hash.
    pub async fn session(&self, id_hash: &str) -> Result<Option<Session>, StoreError> {
        let query = sqlx::query(select_session!("s.id_hash = $1")).bind(id_hash);
        let row = self.within(query.fetch_optional(&self.pool)).await?;
        Ok(row.as_ref().map(Session::from_row).transpose()?)
    }

    /// Somebody's sessions, the newest first; at most two hundred.
    pub async fn sessions_of(&self, owner: &PersonId) -> Result<Vec<Session>, StoreError> {
        let query = sqlx::query(select_session!(
            "s.provider = $1 AND s.subject = $2 ORDER BY s.created_at DESC, s.id_hash LIMIT 200"
        ));
        let rows = self.within(query.bind(&owner.provider).bind(&owner.subject).fetch_all(&self.pool)).await?;
        Ok(rows.iter().map(Session::from_row).collect::<Result<_, _>>()?)
    }

    /// Ends a session.
    pub async fn end_session(&self, id_hash: &str) -> Result<(), StoreError> {
        let query = sqlx::query("DELETE FROM sessions WHERE id_hash = $1").bind(id_hash);
        self.within(query.execute(&self.pool)).await?;
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
        let query = match (subject, sid) {
            (None, None) => return Ok(Vec::new()),
            (Some(subject), None) => sqlx::query(end_sessions!("subject = $2")).bind(provider).bind(subject),
            (None, Some(sid)) => sqlx::query(end_sessions!("sid = $2")).bind(provider).bind(sid),
            (Some(subject), Some(sid)) => {
                sqlx::query(end_sessions!("subject = $2 AND sid = $3")).bind(provider).bind(subject).bind(sid)
            }
        };
        let rows = self.within(query.fetch_all(&self.pool)).await?;
        Ok(rows.iter().map(|row| row.try_get("id_hash")).collect::<Result<_, _>>()?)
    }

    /// Forgets the sessions that are too old.
    pub async fn delete_old_sessions(&self, idle: Duration, absolute: Duration) -> Result<(), StoreError> {
        let query = sqlx::query("DELETE FROM sessions WHERE used_at < $1 OR created_at < $2");
        self.within(query.bind(before(idle)).bind(before(absolute)).execute(&self.pool)).await?;
        Ok(())
    }
}
