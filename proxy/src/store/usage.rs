//! When things were last used: gathered in memory and written every few seconds, so that a pull writes nothing.

use std::{
    collections::HashMap,
    net::IpAddr,
    sync::{Mutex, PoisonError},
};

use super::{Store, StoreError, now};

/// What was used since it was last written.
#[derive(Default)]
pub struct Usage {
    /// When, and from where.
    keys: Mutex<HashMap<String, (i64, Option<IpAddr>)>>,
    sessions: Mutex<HashMap<String, i64>>,
}

fn note<T>(map: &Mutex<HashMap<String, T>>, name: &str, use_of_now: T) {
    let mut map = map.lock().unwrap_or_else(PoisonError::into_inner);
    match map.get_mut(name) {
        Some(noted) => *noted = use_of_now,
        None => drop(map.insert(name.to_owned(), use_of_now)),
    }
}

fn taken<T>(map: &Mutex<HashMap<String, T>>) -> HashMap<String, T> {
    std::mem::take(&mut *map.lock().unwrap_or_else(PoisonError::into_inner))
}

impl Usage {
    /// The key of this id was used now, from there.
    pub fn key(&self, id: &str, client: Option<IpAddr>) {
        note(&self.keys, id, (now(), client));
    }

    /// The session whose id has this hash was used now.
    pub fn session(&self, id_hash: &str) {
        note(&self.sessions, id_hash, now());
    }

    /// When the session was last used, if that isn't written yet.
    pub fn of_session(&self, id_hash: &str) -> Option<i64> {
        self.sessions.lock().unwrap_or_else(PoisonError::into_inner).get(id_hash).copied()
    }

    /// Writes what was gathered. What can't be written is lost: it says when something ends unused, and who is asked about,
    /// and the next use says it again.
    pub async fn write(&self, store: &Store) -> Result<(), StoreError> {
        store.within(self.write_now(store)).await
    }

    async fn write_now(&self, store: &Store) -> Result<(), sqlx::Error> {
        let (keys, sessions) = (taken(&self.keys), taken(&self.sessions));
        if keys.is_empty() && sessions.is_empty() {
            return Ok(());
        }
        // One flush for all.
        let mut transaction = store.begin().await?;
        for (id, (at, client)) in keys {
            let query = "UPDATE api_keys SET used_at = $1, used_from = $3 WHERE id = $2 AND COALESCE(used_at, 0) < $1";
            let client = client.map(|client| client.to_string()).unwrap_or_default();
            sqlx::query(query).bind(at).bind(id).bind(client).execute(&mut *transaction).await?;
        }
        for (id_hash, at) in sessions {
            let query = sqlx::query("UPDATE sessions SET used_at = $1 WHERE id_hash = $2 AND used_at < $1");
            query.bind(at).bind(id_hash).execute(&mut *transaction).await?;
        }
        transaction.commit().await?;
        Ok(())
    }
}
