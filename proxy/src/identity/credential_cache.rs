//! What was looked up lately, so that the database isn't asked at each request.
//!
//! It is good for a few seconds, which is how long a credential that was revoked at another replica is still taken at
//! this one. While the database is away, what was known goes on being good for a while.

use std::{
    sync::{
        Arc,
        atomic::{AtomicI64, Ordering},
    },
    time::Duration,
};

use moka::{future, sync};

use super::Refusal;
use crate::store::{StoreError, now};

/// How long a credential that ended on another replica may still be taken here.
const FRESH_LIFETIME: Duration = Duration::from_secs(4);

/// How long what is known is good while the database is away.
const OUTAGE_LIFETIME: Duration = Duration::from_mins(10);

/// How long a database that failed isn't asked again, in seconds, by whoever can do without.
const RETRY_PAUSE_SECONDS: i64 = 2;

const MAX_ENTRIES: u64 = 100_000;

/// What was found under names.
pub struct CredentialCache<T> {
    fresh: future::Cache<String, Option<T>>,
    /// What was there when it was last looked for.
    last: sync::Cache<String, T>,
    failed_at: AtomicI64,
}

impl<T: Clone + Send + Sync + 'static> CredentialCache<T> {
    /// Nothing yet.
    pub fn new() -> Self {
        Self {
            fresh: future::Cache::builder().max_capacity(MAX_ENTRIES).time_to_live(FRESH_LIFETIME).build(),
            last: sync::Cache::builder().max_capacity(MAX_ENTRIES).time_to_live(OUTAGE_LIFETIME).build(),
            failed_at: AtomicI64::new(i64::MIN),
        }
    }

    /// What is under `name`; `load` finds that out, once for all who wait.
    ///
    /// # Errors
    /// If the database fails, and nothing was known before.
    pub async fn get(
        &self,
        name: &str,
        load: impl Future<Output = Result<Option<T>, StoreError>>,
    ) -> Result<Option<T>, Refusal> {
        if self.failed_at.load(Ordering::Relaxed).saturating_add(RETRY_PAUSE_SECONDS) > now()
            && let Some(known) = self.last.get(name)
        {
            return Ok(Some(known));
        }
        let load = async {
            let loaded = load.await?;
            match &loaded {
                Some(found) => self.last.insert(name.to_owned(), found.clone()),
                None => self.last.invalidate(name),
            }
            Ok(loaded)
        };
        self.fresh.try_get_with_by_ref(name, load).await.or_else(|error: Arc<StoreError>| {
            self.failed_at.store(now(), Ordering::Relaxed);
            match self.last.get(name) {
                Some(known) => {
                    tracing::warn!(%error, "a credential is taken from memory");
                    Ok(Some(known))
                }
                None => {
                    tracing::error!(%error, "a credential can't be checked");
                    Err(Refusal::from(&*error))
                }
            }
        })
    }

    /// Forgets what is under `name`: it has changed or is gone.
    pub async fn forget(&self, name: &str) {
        self.fresh.invalidate(name).await;
        self.last.invalidate(name);
    }

    /// Looks everything up again; what is known stays good without a database.
    pub fn refresh(&self) {
        self.fresh.invalidate_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn away() -> StoreError {
        StoreError::from(sqlx::Error::PoolTimedOut)
    }

    #[tokio::test]
    async fn what_is_known_is_good_without_a_database_and_what_was_forgotten_is_not() {
        let remembered = CredentialCache::new();
        assert_eq!(remembered.get("a", async { Ok(Some(1)) }).await.expect("found"), Some(1));
        remembered.refresh();
        assert_eq!(remembered.get("a", async { Err(away()) }).await.expect("known"), Some(1));
        assert!(remembered.get("b", async { Err(away()) }).await.is_err());
        remembered.forget("a").await;
        assert!(remembered.get("a", async { Err(away()) }).await.is_err());
        // What was found to be gone isn't known any more.
        assert_eq!(remembered.get("c", async { Ok(Some(1)) }).await.expect("found"), Some(1));
        remembered.refresh();
        remembered.failed_at.store(i64::MIN, Ordering::Relaxed);
        assert_eq!(remembered.get("c", async { Ok(None) }).await.expect("asked"), None);
        remembered.refresh();
        assert!(remembered.get("c", async { Err(away()) }).await.is_err());
    }
}
