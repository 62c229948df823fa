//! People, as their provider last spoke of them, and how they stand with it.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use sqlx::{Row, any::AnyRow};

use super::{Store, StoreError, before, now};

/// Who somebody is, whatever they are called: a subject (OpenID Connect Core, section 2) at a provider.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct PersonId {
    /// The provider's key in the configuration.
    pub provider: String,
    /// Their `sub` there.
    pub subject: String,
}

/// The provider of those whom the password file has signed in; none of the configuration can be called so.
pub const PASSWORD_FILE: &str = "password file";

/// What a provider says of somebody.
#[derive(Clone, Debug, PartialEq)]
pub struct User {
    /// Who they are.
    pub id: PersonId,
    /// The name that rules know.
    pub name: String,
    /// Their groups, by the claims.
    pub groups: Vec<String>,
    /// Every claim.
    pub claims: Map<String, Value>,
}

impl User {
    /// Reads the columns `provider, subject, name, user_groups, claims`.
    pub(super) fn from_row(row: &AnyRow) -> Result<Self, sqlx::Error> {
        let json = |e| sqlx::Error::Decode(Box::new(e));
        Ok(Self {
            id: PersonId::from_row(row)?,
            name: row.try_get("name")?,
            groups: serde_json::from_str(row.try_get("user_groups")?).map_err(json)?,
            claims: serde_json::from_str(row.try_get("claims")?).map_err(json)?,
        })
    }
}

impl PersonId {
    fn from_row(row: &AnyRow) -> Result<Self, sqlx::Error> {
        Ok(Self { provider: row.try_get("provider")?, subject: row.try_get("subject")? })
    }
}

/// Why somebody's sessions and API keys open nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SuspensionCause {
    /// The provider does not vouch for them any more.
    Refused,
    /// For too long, the provider could not be asked about them.
    Unconfirmed,
    /// An operator has given their name away.
    Released,
}

impl SuspensionCause {
    fn text(self) -> &'static str {
        match self {
            Self::Refused => "refused",
            Self::Unconfirmed => "unconfirmed",
            Self::Released => "released",
        }
    }

    fn from_text(text: &str) -> Self {
        [Self::Unconfirmed, Self::Released].into_iter().find(|cause| cause.text() == text).unwrap_or(Self::Refused)
    }
}

/// How somebody stands with their provider, as far as it is known here.
#[derive(Clone, Debug, PartialEq)]
pub struct Standing {
    /// Who.
    pub id: PersonId,
    /// The name that they hold.
    pub name: String,
    /// When they last signed in.
    pub seen_at: i64,
    /// Since when the provider can't be asked about them any more, if it can't.
    pub unconfirmed_since: Option<i64>,
    /// Since when they are suspended, and why.
    pub suspended: Option<(i64, SuspensionCause)>,
}

impl Standing {
    fn from_row(row: &AnyRow) -> Result<Self, sqlx::Error> {
        let time = |column| Ok::<_, sqlx::Error>(Some(row.try_get::<i64, _>(column)?).filter(|at| *at > 0));
        let why = SuspensionCause::from_text(row.try_get("suspended_why")?);
        Ok(Self {
            id: PersonId::from_row(row)?,
            name: row.try_get("name")?,
            seen_at: row.try_get("seen_at")?,
            unconfirmed_since: time("unconfirmed_since")?,
            suspended: time("suspended_at")?.map(|at| (at, why)),
        })
    }
}

/// Somebody, for who looks after the registry.
#[derive(Clone, Debug)]
pub struct Person {
    /// How they stand.
    pub standing: Standing,
    /// How many sessions they have.
    pub sessions: i64,
    /// How many terminals.
    pub terminals: i64,
    /// How many API keys.
    pub keys: i64,
}

impl Person {
    fn from_row(row: &AnyRow) -> Result<Self, sqlx::Error> {
        Ok(Self {
            standing: Standing::from_row(row)?,
            sessions: row.try_get("sessions")?,
            terminals: row.try_get("terminals")?,
            keys: row.try_get("keys")?,
        })
    }
}

macro_rules! select_standing {
    ($rest:literal) => {
        concat!(
            "SELECT provider, subject, name, seen_at, unconfirmed_since, suspended_at, suspended_why FROM people ",
            $rest
        )
    };
}

/// What a sign-in gives to ask the provider again with.
#[derive(Clone, Copy, Debug)]
pub struct Renewability<'a> {
    /// The refresh token, sealed.
    pub sealed: &'a str,
    /// When it is used.
    pub renew_after: i64,
}

/// Somebody who is due to be asked about.
#[derive(Clone, Debug)]
pub struct Due {
    /// As they were.
    pub user: User,
    /// The refresh token, sealed.
    pub sealed: String,
    /// Not 0 if an earlier attempt was never answered.
    pub renewing_until: i64,
    /// When they last signed in: what is answered to a question from before that doesn't count any more.
    seen_at: i64,
}

impl Due {
    fn from_row(row: &AnyRow) -> Result<Self, sqlx::Error> {
        let user = User::from_row(row)?;
        let (sealed, renewing_until) = (row.try_get("sealed")?, row.try_get("renewing_until")?);
        Ok(Self { user, sealed, renewing_until, seen_at: row.try_get("seen_at")? })
    }

    /// Whether an earlier attempt was never answered: it may have spent the refresh token.
    pub fn lost_an_answer(&self) -> bool {
        self.renewing_until != 0
    }
}

/// Why somebody isn't signed in.
#[derive(Debug, thiserror::Error)]
pub enum SignInRefused {
    /// Another person holds the name.
    #[error("another person holds this name")]
    NameTaken,
    /// The database failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl From<sqlx::Error> for SignInRefused {
    fn from(error: sqlx::Error) -> Self {
        match &error {
            // Two who bring one name at the same time: the database lets one have it.
            sqlx::Error::Database(cause) if cause.is_unique_violation() => Self::NameTaken,
            _ => Self::Store(error.into()),
        }
    }
}

impl Store {
    /// Remembers what a provider said of somebody who signs in, and ends their suspension.
    ///
    /// # Errors
    /// [`SignInRefused::NameTaken`] if another person holds the name; nothing has changed then.
    pub async fn sign_in(&self, user: &User, renewability: Option<Renewability<'_>>) -> Result<(), SignInRefused> {
        self.within(self.sign_in_now(user, renewability)).await?
    }

    async fn sign_in_now(
        &self,
        user: &User,
        renewability: Option<Renewability<'_>>,
    ) -> Result<Result<(), SignInRefused>, sqlx::Error> {
        let holder = sqlx::query("SELECT provider, subject FROM people WHERE name = $1").bind(&user.name);
        let holder = holder.fetch_optional(&self.pool).await?.as_ref().map(PersonId::from_row).transpose()?;
        if holder.is_some_and(|holder| holder != user.id) {
            return Ok(Err(SignInRefused::NameTaken));
        }
        let written = sqlx::query(
            "INSERT INTO people (provider, subject, name, user_groups, claims, seen_at, sealed, renewed_at, renew_after)
             VALUES ($1, $2, $3, $4, $5, $6, $7, $6, $8)
             ON CONFLICT (provider, subject) DO UPDATE SET name = excluded.name, user_groups = excluded.user_groups,
                 claims = excluded.claims, seen_at = excluded.seen_at, sealed = excluded.sealed,
                 renewed_at = excluded.renewed_at, renew_after = excluded.renew_after, renewing_until = 0,
                 unconfirmed_since = 0, suspended_at = 0, suspended_why = ''",
        )
        .bind(&user.id.provider)
        .bind(&user.id.subject)
        .bind(&user.name)
        .bind(Value::from(user.groups.clone()).to_string())
        .bind(Value::from(user.claims.clone()).to_string())
        .bind(now())
        .bind(renewability.map_or("", |renewability| renewability.sealed))
        .bind(renewability.map_or(0, |renewability| renewability.renew_after))
        .execute(&self.pool)
        .await;
        Ok(written.map(drop).map_err(SignInRefused::from))
    }

    /// Everybody, by name.
    pub async fn people(&self) -> Result<Vec<Standing>, StoreError> {
        let rows = self
            .within(
                sqlx::query(select_standing!("WHERE suspended_why <> 'released' ORDER BY name")).fetch_all(&self.pool),
            )
            .await?;
        Ok(rows.iter().map(Standing::from_row).collect::<Result<_, _>>()?)
    }

    /// People whose names have `wanted` somewhere, by name after `after`; at most so many.
    pub async fn find_people(&self, wanted: &str, after: &str, most: i64) -> Result<Vec<Person>, StoreError> {
        // What a pattern would read otherwise is escaped (LIKE, ESCAPE).
        let escaped: String = wanted
            .to_lowercase()
            .chars()
            .flat_map(|c| matches!(c, '%' | '_' | '\\').then_some('\\').into_iter().chain([c]))
            .collect();
        let query = sqlx::query(
            "SELECT p.provider, p.subject, p.name, p.seen_at, p.unconfirmed_since, p.suspended_at, p.suspended_why,
                    (SELECT COUNT(*) FROM sessions s WHERE s.provider = p.provider AND s.subject = p.subject) AS sessions,
                    (SELECT COUNT(*) FROM terminals t WHERE t.provider = p.provider AND t.subject = p.subject) AS terminals,
                    (SELECT COUNT(*) FROM api_keys k WHERE k.provider = p.provider AND k.subject = p.subject) AS keys
             FROM people p WHERE p.suspended_why <> 'released' AND LOWER(p.name) LIKE $1 ESCAPE '\\' AND p.name > $2
             ORDER BY p.name LIMIT $3",
        );
        let query = query.bind(format!("%{escaped}%")).bind(after).bind(most);
        let rows = self.within(query.fetch_all(&self.pool)).await?;
        Ok(rows.iter().map(Person::from_row).collect::<Result<_, _>>()?)
    }

    /// What their provider last said of somebody, by name.
    pub async fn user_by_name(&self, name: &str) -> Result<Option<User>, StoreError> {
        let query = sqlx::query("SELECT provider, subject, name, user_groups, claims FROM people WHERE name = $1");
        let row = self.within(query.bind(name).fetch_optional(&self.pool)).await?;
        Ok(row.as_ref().map(User::from_row).transpose()?)
    }

    /// Ends what somebody has: their sessions, API keys and terminals.
    pub async fn end_all_of(&self, id: &PersonId) -> Result<(), StoreError> {
        for forget in [
            "DELETE FROM sessions WHERE provider = $1 AND subject = $2",
            "DELETE FROM api_keys WHERE provider = $1 AND subject = $2",
            "DELETE FROM terminals WHERE provider = $1 AND subject = $2",
            "DELETE FROM device_codes WHERE provider = $1 AND subject = $2",
        ] {
            self.within(sqlx::query(forget).bind(&id.provider).bind(&id.subject).execute(&self.pool)).await?;
        }
        Ok(())
    }

    /// Whether anybody has signed in yet.
    pub async fn has_people(&self) -> Result<bool, StoreError> {
        Ok(self.within(sqlx::query("SELECT 1 FROM people LIMIT 1").fetch_optional(&self.pool)).await?.is_some())
    }

    /// Holds a name for somebody who came without a browser, unless somebody has it.
    pub async fn hold_name(&self, id: &PersonId, name: &str) -> Result<(), StoreError> {
        let query = sqlx::query(
            "INSERT INTO people (provider, subject, name, user_groups, claims, seen_at) VALUES ($1, $2, $3, '[]', '{}', $4)
             ON CONFLICT DO NOTHING",
        );
        let query = query.bind(&id.provider).bind(&id.subject).bind(name).bind(now());
        self.within(query.execute(&self.pool)).await?;
        Ok(())
    }

    /// How this person stands, and whoever else holds the name.
    pub async fn standings(&self, id: &PersonId, name: &str) -> Result<Vec<Standing>, StoreError> {
        let query = sqlx::query(select_standing!("WHERE (provider = $1 AND subject = $2) OR name = $3"));
        let query = query.bind(&id.provider).bind(&id.subject).bind(name).fetch_all(&self.pool);
        Ok(self.within(query).await?.iter().map(Standing::from_row).collect::<Result<_, _>>()?)
    }

    /// Ends everything that the holder of a name has: the name is whose who signs in with it next. Of the holder it is only
    /// kept that they were, so that what their provider has given them before opens nothing either. Whether anybody held it.
    pub async fn release(&self, name: &str) -> Result<bool, StoreError> {
        self.within(self.release_now(name)).await
    }

    async fn release_now(&self, name: &str) -> Result<bool, sqlx::Error> {
        let mut transaction = self.begin().await?;
        let holder = sqlx::query("SELECT provider, subject FROM people WHERE name = $1").bind(name);
        let holder = holder.fetch_optional(&mut *transaction).await?.as_ref().map(PersonId::from_row).transpose()?;
        let Some(holder) = holder else { return Ok(false) };
        for forget in [
            "DELETE FROM sessions WHERE provider = $1 AND subject = $2",
            "DELETE FROM api_keys WHERE provider = $1 AND subject = $2",
            "DELETE FROM terminals WHERE provider = $1 AND subject = $2",
            "DELETE FROM device_codes WHERE provider = $1 AND subject = $2",
            "UPDATE people SET name = '(released) ' || provider || ' ' || subject, user_groups = '[]', claims = '{}',
                 sealed = '', renewing_until = 0, unconfirmed_since = 0, suspended_why = 'released'
             WHERE provider = $1 AND subject = $2",
        ] {
            sqlx::query(forget).bind(&holder.provider).bind(&holder.subject).execute(&mut *transaction).await?;
        }
        let query = sqlx::query("UPDATE people SET suspended_at = $1 WHERE provider = $2 AND subject = $3");
        query.bind(now()).bind(&holder.provider).bind(&holder.subject).execute(&mut *transaction).await?;
        transaction.commit().await?;
        Ok(true)
    }

    /// Who is due to be asked about: they have an API key, a terminal or a session, and something of theirs was used since the provider
    /// last vouched for them, or that was longer than `unused` ago. At most a hundred.
    pub async fn people_to_renew(
        &self,
        provider: &str,
        unused: Duration,
        idle: Duration,
    ) -> Result<Vec<Due>, StoreError> {
        let query = sqlx::query(
            "SELECT p.provider, p.subject, p.name, p.user_groups, p.claims, p.sealed, p.renewing_until, p.seen_at FROM people p
             WHERE p.provider = $4 AND p.sealed <> '' AND p.renew_after <= $1 AND p.renewing_until < $1 AND p.suspended_why <> 'refused'
             AND (EXISTS (SELECT 1 FROM sessions s WHERE s.provider = p.provider AND s.subject = p.subject
                          AND s.used_at > $3 AND (s.used_at >= p.renewed_at OR p.renewed_at <= $2))
                  OR EXISTS (SELECT 1 FROM api_keys k WHERE k.provider = p.provider AND k.subject = p.subject
                             AND (k.expires_at IS NULL OR k.expires_at > $1)
                             AND (COALESCE(k.used_at, k.created_at) >= p.renewed_at OR p.renewed_at <= $2))
                  OR EXISTS (SELECT 1 FROM terminals t WHERE t.provider = p.provider AND t.subject = p.subject
                             AND (t.used_at >= p.renewed_at OR p.renewed_at <= $2)))
             ORDER BY p.renew_after LIMIT 100",
        );
        let rows = query.bind(now()).bind(before(unused)).bind(before(idle)).bind(provider).fetch_all(&self.pool);
        Ok(self.within(rows).await?.iter().map(Due::from_row).collect::<Result<_, _>>()?)
    }

    /// Others of the same provider whom it could be asked about now, those first whom it has vouched for lately.
    pub async fn others_to_ask(&self, id: &PersonId, most: i64) -> Result<Vec<Due>, StoreError> {
        let query = sqlx::query(
            "SELECT provider, subject, name, user_groups, claims, sealed, renewing_until, seen_at FROM people
             WHERE provider = $1 AND subject <> $2 AND sealed <> '' AND renewing_until = 0 AND suspended_why = ''
             ORDER BY renewed_at DESC LIMIT $3",
        );
        let rows = query.bind(&id.provider).bind(&id.subject).bind(most).fetch_all(&self.pool);
        Ok(self.within(rows).await?.iter().map(Due::from_row).collect::<Result<_, _>>()?)
    }

    /// Claims the question about somebody for a while. Of all replicas one gets it. If an earlier answer was lost, their
    /// standing is unconfirmed from now on.
    pub async fn claim_renewal(&self, due: &Due, lasting: Duration) -> Result<bool, StoreError> {
        let until = now().saturating_add(i64::try_from(lasting.as_secs()).unwrap_or_default());
        let claimed = sqlx::query(
            "UPDATE people SET renewing_until = $1,
                 unconfirmed_since = CASE WHEN $2 <> 0 AND unconfirmed_since = 0 THEN $3 ELSE unconfirmed_since END
             WHERE provider = $4 AND subject = $5 AND sealed = $6 AND renewing_until = $2",
        )
        .bind(until)
        .bind(due.renewing_until)
        .bind(now())
        .bind(&due.user.id.provider)
        .bind(&due.user.id.subject)
        .bind(&due.sealed);
        Ok(self.within(claimed.execute(&self.pool)).await?.rows_affected() == 1)
    }

    /// Puts a question off that has certainly not been asked, or that was answered without a word on the person.
    pub async fn postpone_renewal(&self, due: &Due, wait: Duration) -> Result<(), StoreError> {
        let later = now().saturating_add(i64::try_from(wait.as_secs()).unwrap_or_default());
        // What was lost before is lost all the same: 1 is over, and not 0.
        let query = sqlx::query(
            "UPDATE people SET renewing_until = $1, renew_after = $2 WHERE provider = $3 AND subject = $4 AND sealed = $5",
        );
        let query = query.bind(due.renewing_until.min(1)).bind(later);
        let query = query.bind(&due.user.id.provider).bind(&due.user.id.subject).bind(&due.sealed);
        self.within(query.execute(&self.pool)).await?;
        Ok(())
    }

    /// Keeps the refresh token that an answer gave, before anything else is made of that.
    pub async fn keep_renewed(&self, due: &Due, next: Renewability<'_>) -> Result<(), StoreError> {
        let query = sqlx::query(
            "UPDATE people SET sealed = $1, renew_after = $2, renewed_at = $3, renewing_until = 0
             WHERE provider = $4 AND subject = $5 AND sealed = $6",
        );
        let query = query.bind(next.sealed).bind(next.renew_after).bind(now());
        let query = query.bind(&due.user.id.provider).bind(&due.user.id.subject).bind(&due.sealed);
        self.within(query.execute(&self.pool)).await?;
        Ok(())
    }

    /// Remembers what the provider says of somebody by now: it vouches for them.
    pub async fn confirm(&self, user: &User, due: &Due) -> Result<(), StoreError> {
        let query = sqlx::query(
            "UPDATE people SET user_groups = $1, claims = $2, unconfirmed_since = 0, suspended_at = 0, suspended_why = ''
             WHERE provider = $3 AND subject = $4 AND suspended_why <> 'refused' AND seen_at <= $5",
        );
        let query = query.bind(Value::from(user.groups.clone()).to_string());
        let query = query.bind(Value::from(user.claims.clone()).to_string());
        let query = query.bind(&user.id.provider).bind(&user.id.subject).bind(due.seen_at);
        self.within(query.execute(&self.pool)).await?;
        Ok(())
    }

    /// Remembers that the provider can't be asked about somebody any more, before they sign in again.
    pub async fn cannot_confirm(&self, due: &Due) -> Result<(), StoreError> {
        let query = sqlx::query(
            "UPDATE people SET unconfirmed_since = CASE WHEN unconfirmed_since = 0 THEN $1 ELSE unconfirmed_since END,
                 sealed = '', renewing_until = 0
             WHERE provider = $2 AND subject = $3 AND sealed = $4",
        );
        let query = query.bind(now());
        let query = query.bind(&due.user.id.provider).bind(&due.user.id.subject).bind(&due.sealed);
        self.within(query.execute(&self.pool)).await?;
        Ok(())
    }

    /// Remembers that the provider does not vouch for somebody any more: their sessions and terminals end, and their keys wait until they
    /// sign in again. Not if they just have; whether they hadn't.
    pub async fn suspend(&self, due: &Due) -> Result<bool, StoreError> {
        let id = &due.user.id;
        let query = sqlx::query(
            "UPDATE people SET suspended_at = $1, suspended_why = 'refused', sealed = '', renewing_until = 0
             WHERE provider = $2 AND subject = $3 AND seen_at <= $4",
        );
        let query = query.bind(now()).bind(&id.provider).bind(&id.subject).bind(due.seen_at);
        let is_suspended = self.within(query.execute(&self.pool)).await?.rows_affected() == 1;
        if is_suspended {
            for end in [
                "DELETE FROM sessions WHERE provider = $1 AND subject = $2",
                "DELETE FROM terminals WHERE provider = $1 AND subject = $2",
                "DELETE FROM device_codes WHERE provider = $1 AND subject = $2",
            ] {
                self.within(sqlx::query(end).bind(&id.provider).bind(&id.subject).execute(&self.pool)).await?;
            }
        }
        Ok(is_suspended)
    }

    /// Suspends whoever was unconfirmed for longer than `grace`; their providers and names.
    pub async fn suspend_unconfirmed(&self, grace: Duration) -> Result<Vec<(String, String)>, StoreError> {
        let query = sqlx::query(
            "UPDATE people SET suspended_at = $1, suspended_why = 'unconfirmed'
             WHERE suspended_at = 0 AND unconfirmed_since > 0 AND unconfirmed_since <= $2 RETURNING provider, name",
        );
        let rows = self.within(query.bind(now()).bind(before(grace)).fetch_all(&self.pool)).await?;
        let read = |row: &AnyRow| Ok((row.try_get("provider")?, row.try_get("name")?));
        Ok(rows.iter().map(read).collect::<Result<_, sqlx::Error>>()?)
    }

    /// Forgets the refresh tokens of who has no session, API key or terminal: nothing follows from them any more.
    pub async fn forget_unused_refresh_tokens(&self) -> Result<(), StoreError> {
        let query = sqlx::query(
            "UPDATE people SET sealed = '' WHERE sealed <> '' AND renewing_until = 0 AND seen_at < $2
             AND NOT EXISTS (SELECT 1 FROM sessions s WHERE s.provider = people.provider AND s.subject = people.subject)
             AND NOT EXISTS (SELECT 1 FROM terminals t WHERE t.provider = people.provider AND t.subject = people.subject)
             AND NOT EXISTS (SELECT 1 FROM api_keys k WHERE k.provider = people.provider AND k.subject = people.subject
                             AND (k.expires_at IS NULL OR k.expires_at > $1))",
        );
        // Whoever signs in this minute has no session yet.
        self.within(query.bind(now()).bind(before(Duration::from_mins(1))).execute(&self.pool)).await?;
        Ok(())
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::store::{NewKey, for_test};

    pub(crate) fn alice() -> User {
        User {
            id: PersonId { provider: "oidc".to_owned(), subject: "1".to_owned() },
            name: "alice".to_owned(),
            groups: vec!["dev".to_owned()],
            claims: Map::from_iter([("email".to_owned(), serde_json::json!("a@b"))]),
        }
    }

    fn other(provider: &str, subject: &str) -> User {
        User { id: PersonId { provider: provider.to_owned(), subject: subject.to_owned() }, ..alice() }
    }

    #[tokio::test]
    async fn a_name_is_one_person_s_until_it_is_released() {
        let (_folder, store) = for_test().await;
        store.sign_in(&alice(), None).await.expect("signed in");
        let (label, user_agent) = ("", "");
        let key =
            NewKey { id: "1", key_hash: "h", owner: &alice().id, label, user_agent, expires_at: None, scopes: &[] };
        assert!(store.create_key(&key, 10).await.expect("stored"));
        for taken in [other("oidc", "2"), other("second", "1")] {
            assert!(matches!(store.sign_in(&taken, None).await, Err(SignInRefused::NameTaken)));
        }
        assert!(store.key_by_hash("h").await.expect("read").is_some());
        // The same person under another name keeps what they have, and the old name is free.
        store.sign_in(&User { name: "alicia".to_owned(), ..alice() }, None).await.expect("renamed");
        assert_eq!(store.key_by_hash("h").await.expect("read").expect("the key").user.name, "alicia");
        store.sign_in(&other("oidc", "2"), None).await.expect("signed in");
        let back = store.sign_in(&alice(), None).await;
        assert!(matches!(back, Err(SignInRefused::NameTaken)));
        assert!(store.release("alicia").await.expect("released") && !store.release("alicia").await.expect("asked"));
        assert!(store.key_by_hash("h").await.expect("read").is_none());
    }

    #[tokio::test]
    async fn a_lost_answer_leaves_its_mark_until_the_next_sign_in() {
        let (_folder, store) = for_test().await;
        let renewability = Some(Renewability { sealed: "x", renew_after: 1 });
        store.sign_in(&alice(), renewability).await.expect("signed in");
        let key = NewKey {
            id: "1",
            key_hash: "h",
            owner: &alice().id,
            label: "",
            user_agent: "",
            expires_at: None,
            scopes: &[],
        };
        store.create_key(&key, 10).await.expect("stored");
        let due = async || store.people_to_renew("oidc", Duration::ZERO, Duration::ZERO).await.expect("read").pop();
        let first = due().await.expect("due");
        assert!(!first.lost_an_answer() && store.claim_renewal(&first, Duration::from_mins(1)).await.expect("claimed"));
        assert!(!store.claim_renewal(&first, Duration::from_mins(1)).await.expect("asked"));
        assert!(due().await.is_none());
        // As if the minute were over.
        sqlx::query("UPDATE people SET renewing_until = 5").execute(&store.pool).await.expect("written");
        let second = due().await.expect("due again");
        assert!(second.lost_an_answer() && store.claim_renewal(&second, Duration::ZERO).await.expect("claimed"));
        let standing = async || store.standings(&alice().id, "alice").await.expect("read").remove(0);
        assert!(standing().await.unconfirmed_since.is_some());
        assert!(store.suspend_unconfirmed(Duration::from_hours(1)).await.expect("asked").is_empty());
        let suspended = store.suspend_unconfirmed(Duration::ZERO).await.expect("asked");
        assert_eq!(suspended, [("oidc".to_owned(), "alice".to_owned())]);
        assert_eq!(standing().await.suspended.map(|(_, why)| why), Some(SuspensionCause::Unconfirmed));
        store.sign_in(&alice(), renewability).await.expect("signed in");
        let standing = standing().await;
        assert_eq!((standing.suspended, standing.unconfirmed_since), (None, None));
    }
}
