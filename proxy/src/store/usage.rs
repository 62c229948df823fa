//! When things were last used: gathered in memory and written every few seconds, so that a pull writes nothing.

use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
};

use super::{Store, StoreError, now};

/// What was used since it was last written.
#[derive(Default)]
pub struct Usage {
    keys: Mutex<HashMap<String, i64>>,
    sessions: Mutex<HashMap<String, i64>>,
}

fn note(map: &Mutex<HashMap<String, i64>>, name: &str) {
    let mut map = map.lock().unwrap_or_else(PoisonError::into_inner);
    match map.get_mut(name) {
        Some(at) => *at = now(),
        None => drop(map.insert(name.to_owned(), now())),
    }
}

fn taken(map: &Mutex<HashMap<String, i64>>) -> HashMap<String, i64> {
    std::mem::take(&mut *map.lock().unwrap_or_else(PoisonError::into_inner))
}

impl Usage {
    /// The key of this id was used now.
    pub fn key(&self, id: &str) {
        note(&self.keys, id);
    }

    /// The session whose id has this hash was used now.
    pub fn session(&self, id_hash: &str) {
        note(&self.sessions, id_hash);
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
        // One flush for all.
        let mut transaction = store.pool.begin().await?;
        for (id, at) in keys {
            let query = sqlx::query("UPDATE api_keys SET used_at = $1 WHERE id = $2 AND COALESCE(used_at, 0) < $1");
            query.bind(at).bind(id).execute(&mut *transaction).await?;
        }
        for (id_hash, at) in sessions {
            let query = sqlx::query("UPDATE sessions SET used_at = $1 WHERE id_hash = $2 AND used_at < $1");
            query.bind(at).bind(id_hash).execute(&mut *transaction).await?;
        }
        transaction.commit().await?;
        Ok(())
    }
}
