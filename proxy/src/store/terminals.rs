//! Terminals that somebody has signed in, and those that ask to be.

use std::time::Duration;

use sqlx::{Row, any::AnyRow};

use super::{PersonId, Store, StoreError, User, before, now};

/// A terminal that asks.
pub struct NewDeviceCode<'a> {
    /// The hash of what it asks with.
    pub device_hash: &'a str,
    /// The hash of the letters that somebody types.
    pub user_hash: &'a str,
    /// What it calls itself.
    pub name: &'a str,
    /// What it wants to be for, as in an API key.
    pub scopes: &'a [String],
    /// Its address.
    pub client: &'a str,
    /// The network of that.
    pub network: &'a str,
    /// For how long it may ask, in seconds.
    pub lifetime: i64,
    /// How often, in seconds.
    pub poll_interval: i64,
}

/// How many terminals may be asking, of one network and in all.
pub struct MostAsking {
    /// Of one network.
    pub per_network: i64,
    /// In all.
    pub all: i64,
}

/// A terminal that nobody has decided about.
#[derive(Clone, Debug)]
pub struct Asking {
    /// What it calls itself.
    pub name: String,
    /// What it wants to be for.
    pub scopes: Vec<String>,
    /// Its address.
    pub client: String,
    /// Since when.
    pub created_at: i64,
}

/// What a terminal hears that asks whether it was decided about.
#[derive(Debug)]
pub enum Poll {
    /// It has expired, or never was.
    Expired,
    /// It has asked too soon, and waits longer from now on.
    TooSoon,
    /// Not yet.
    Pending,
    /// Somebody has said no.
    Denied,
    /// Somebody has said yes.
    SignedIn(Box<Terminal>),
}

/// A terminal that is signed in.
#[derive(Clone, Debug)]
pub struct Terminal {
    /// Its public name.
    pub id: String,
    /// Of its refresh token, which is another one after each use.
    pub generation: i64,
    /// The hash of what the last use may be repeated with; empty if with nothing.
    pub retry_hash: String,
    /// Whose it is, with the claims of now.
    pub user: User,
    /// What it calls itself.
    pub name: String,
    /// What it is for; everything that its owner may do, if that is empty.
    pub scopes: Vec<String>,
    /// When it was signed in.
    pub created_at: i64,
    /// When it last asked for a secret.
    pub used_at: i64,
    /// From where.
    pub used_from: String,
}

fn scopes(row: &AnyRow) -> Result<Vec<String>, sqlx::Error> {
    serde_json::from_str(row.try_get("scopes")?).map_err(|e| sqlx::Error::Decode(Box::new(e)))
}

impl Terminal {
    fn from_row(row: &AnyRow) -> Result<Self, sqlx::Error> {
        Ok(Self {
            id: row.try_get("id")?,
            generation: row.try_get("generation")?,
            retry_hash: row.try_get("retry_hash")?,
            user: User::from_row(row)?,
            // Of the terminal; its owner's is beside it.
            name: row.try_get("terminal")?,
            scopes: scopes(row)?,
            created_at: row.try_get("created_at")?,
            used_at: row.try_get("used_at")?,
            used_from: row.try_get("used_from")?,
        })
    }
}

macro_rules! select_terminal {
    ($condition:literal) => {
        concat!(
            "SELECT t.id, t.generation, t.retry_hash, t.name AS terminal, t.scopes, t.created_at, t.used_at, t.used_from,
                    p.provider, p.subject, p.name, p.user_groups, p.claims
             FROM terminals t JOIN people p ON p.provider = t.provider AND p.subject = t.subject WHERE ",
            $condition
        )
    };
}

impl Store {
    /// Whether another terminal may ask.
    pub async fn may_ask(&self, network: &str, most: &MostAsking) -> Result<bool, StoreError> {
        let query = sqlx::query(
            "SELECT (SELECT COUNT(*) FROM device_codes WHERE network = $1 AND expires_at > $2) AS here,
                    (SELECT COUNT(*) FROM device_codes WHERE expires_at > $2) AS everywhere",
        );
        let row = self.within(query.bind(network).bind(now()).fetch_one(&self.pool)).await?;
        let count = |name: &str| row.try_get::<i64, _>(name);
        Ok(count("here")? < most.per_network && count("everywhere")? < most.all)
    }

    /// Remembers a terminal that asks, unless there are too many; whether it did.
    pub async fn create_device_code(&self, code: &NewDeviceCode<'_>, most: &MostAsking) -> Result<bool, StoreError> {
        let query = sqlx::query(
            "INSERT INTO device_codes (device_hash, user_hash, name, scopes, client, network, created_at, expires_at,
                                       poll_interval)
             SELECT $1, $2, $3, $4, $5, $6, CAST($7 AS BIGINT), CAST($8 AS BIGINT), CAST($9 AS BIGINT)
             WHERE (SELECT COUNT(*) FROM device_codes WHERE network = $6 AND expires_at > $7) < CAST($10 AS BIGINT)
               AND (SELECT COUNT(*) FROM device_codes WHERE expires_at > $7) < CAST($11 AS BIGINT)",
        )
        .bind(code.device_hash)
        .bind(code.user_hash)
        .bind(code.name)
        .bind(serde_json::Value::from(code.scopes.to_vec()).to_string())
        .bind(code.client)
        .bind(code.network)
        .bind(now())
        .bind(now() + code.lifetime)
        .bind(code.poll_interval)
        .bind(most.per_network)
        .bind(most.all);
        Ok(self.within(query.execute(&self.pool)).await?.rows_affected() == 1)
    }

    /// The terminal that asks under these letters, if nobody has decided yet.
    pub async fn asking_device(&self, user_hash: &str) -> Result<Option<Asking>, StoreError> {
        let query = sqlx::query(
            "SELECT name, scopes, client, created_at FROM device_codes
             WHERE user_hash = $1 AND decision = '' AND expires_at > $2",
        );
        let row = self.within(query.bind(user_hash).bind(now()).fetch_optional(&self.pool)).await?;
        let read = |row: &AnyRow| {
            Ok::<_, sqlx::Error>(Asking {
                name: row.try_get("name")?,
                scopes: scopes(row)?,
                client: row.try_get("client")?,
                created_at: row.try_get("created_at")?,
            })
        };
        Ok(row.as_ref().map(read).transpose()?)
    }

    /// Somebody lets a terminal in, or not; whether there was one to decide about.
    pub async fn decide_device(&self, user_hash: &str, by: &PersonId, allowed: bool) -> Result<bool, StoreError> {
        let query = sqlx::query(
            "UPDATE device_codes SET decision = $1, provider = $2, subject = $3
             WHERE user_hash = $4 AND decision = '' AND expires_at > $5",
        )
        .bind(if allowed { "allowed" } else { "denied" })
        .bind(&by.provider)
        .bind(&by.subject)
        .bind(user_hash)
        .bind(now());
        Ok(self.within(query.execute(&self.pool)).await?.rows_affected() == 1)
    }

    /// What became of a terminal that asks. One that was let in is signed in from now on as `id`, unless its owner has `most`
    /// already, and asks no more.
    pub async fn poll_device(&self, device_hash: &str, id: &str, client: &str, most: i64) -> Result<Poll, StoreError> {
        self.within(self.poll_device_now(device_hash, id, client, most)).await
    }

    async fn poll_device_now(&self, device_hash: &str, id: &str, client: &str, most: i64) -> Result<Poll, sqlx::Error> {
        let mut transaction = self.begin().await?;
        // Nobody else decides about it, or redeems it, from here on.
        let touched = sqlx::query(
            // A second is as fine as times are here.
            "UPDATE device_codes SET polled_at = $1,
                 too_soon = CASE WHEN polled_at + poll_interval - 1 > $1 THEN 1 ELSE 0 END,
                 poll_interval = CASE WHEN polled_at + poll_interval - 1 > $1 THEN poll_interval + 5 ELSE poll_interval END
             WHERE device_hash = $2 AND expires_at > $1 RETURNING too_soon, decision, provider, subject, name, scopes",
        );
        let row = touched.bind(now()).bind(device_hash).fetch_optional(&mut *transaction).await?;
        let Some(row) = row else { return Ok(Poll::Expired) };
        let decision: String = row.try_get("decision")?;
        let outcome = match decision.as_str() {
            "allowed" => {
                let query = sqlx::query(
                    "INSERT INTO terminals (id, generation, retry_hash, provider, subject, name, scopes, created_at, used_at,
                                            used_from)
                     SELECT $1, 0, '', $2, $3, $4, $5, CAST($6 AS BIGINT), CAST($6 AS BIGINT), $7
                     WHERE (SELECT COUNT(*) FROM terminals WHERE provider = $2 AND subject = $3) < CAST($8 AS BIGINT)",
                );
                let text = |name: &str| row.try_get::<String, _>(name);
                let query = query.bind(id).bind(text("provider")?).bind(text("subject")?);
                let query = query.bind(text("name")?).bind(text("scopes")?).bind(now()).bind(client).bind(most);
                query.execute(&mut *transaction).await?;
                let made =
                    sqlx::query(select_terminal!("t.id = $1")).bind(id).fetch_optional(&mut *transaction).await?;
                match made {
                    Some(made) => Poll::SignedIn(Box::new(Terminal::from_row(&made)?)),
                    None => Poll::Denied, // There are too many.
                }
            }
            "denied" => Poll::Denied,
            _ if row.try_get::<i64, _>("too_soon")? == 1 => Poll::TooSoon,
            _ => Poll::Pending,
        };
        if !decision.is_empty() {
            let query = sqlx::query("DELETE FROM device_codes WHERE device_hash = $1").bind(device_hash);
            query.execute(&mut *transaction).await?;
        }
        transaction.commit().await?;
        Ok(outcome)
    }

    /// The terminal of this public name.
    pub async fn terminal(&self, id: &str) -> Result<Option<Terminal>, StoreError> {
        let row = self.within(sqlx::query(select_terminal!("t.id = $1")).bind(id).fetch_optional(&self.pool)).await?;
        Ok(row.as_ref().map(Terminal::from_row).transpose()?)
    }

    /// Somebody's terminals, the newest first.
    pub async fn terminals_of(&self, owner: &PersonId) -> Result<Vec<Terminal>, StoreError> {
        let query =
            sqlx::query(select_terminal!("t.provider = $1 AND t.subject = $2 ORDER BY t.created_at DESC, t.id"));
        let rows = self.within(query.bind(&owner.provider).bind(&owner.subject).fetch_all(&self.pool)).await?;
        Ok(rows.iter().map(Terminal::from_row).collect::<Result<_, _>>()?)
    }

    /// A terminal's refresh token was used: the next one is of the next generation. Whether nobody else has used it.
    pub async fn rotate_terminal(
        &self,
        id: &str,
        generation: i64,
        retry_hash: &str,
        client: &str,
    ) -> Result<bool, StoreError> {
        let query = sqlx::query(
            "UPDATE terminals SET generation = generation + 1, retry_hash = $1, used_at = $2, used_from = $3
             WHERE id = $4 AND generation = $5",
        );
        let query = query.bind(retry_hash).bind(now()).bind(client).bind(id).bind(generation);
        Ok(self.within(query.execute(&self.pool)).await?.rows_affected() == 1)
    }

    /// Ends a terminal; whether there was one.
    pub async fn delete_terminal(&self, id: &str) -> Result<bool, StoreError> {
        let query = sqlx::query("DELETE FROM terminals WHERE id = $1").bind(id);
        Ok(self.within(query.execute(&self.pool)).await?.rows_affected() == 1)
    }

    /// Forgets terminals that were not used for so long, and what has expired unanswered.
    pub async fn delete_old_terminals(&self, unused: Duration) -> Result<(), StoreError> {
        for (statement, time) in [
            ("DELETE FROM terminals WHERE used_at < $1", before(unused)),
            ("DELETE FROM device_codes WHERE expires_at < $1", now()),
        ] {
            self.within(sqlx::query(statement).bind(time).execute(&self.pool)).await?;
        }
        Ok(())
    }
}
