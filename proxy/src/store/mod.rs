//! What the proxy remembers: people, their sessions, their API keys.
//!
//! Queries are here and nowhere else, one file for each thing that is remembered.

mod keys;
mod sessions;
mod usage;
mod users;

use std::time::{SystemTime, UNIX_EPOCH};

use sqlx::{AnyPool, Executor, any::AnyPoolOptions};

pub use self::{
    keys::{ApiKey, NewKey},
    sessions::{NewSession, Session},
    usage::Usage,
    users::User,
};

/// The database can't be used now.
#[derive(Debug, thiserror::Error)]
#[error("the database failed: {0}")]
pub struct StoreError(#[from] sqlx::Error);

/// The database.
#[derive(Clone)]
pub struct Store {
    pool: AnyPool,
}

impl Store {
    /// Opens the database at `url`, makes it if need be, and brings its schema up to date.
    ///
    /// # Errors
    /// A sentence with the mend.
    pub async fn open(url: &str) -> Result<Self, String> {
        let failed = |e: &dyn std::error::Error| {
            format!("sidecar.database: {url} can't be opened ({e}); make its folder, writable for this user")
        };
        sqlx::any::install_default_drivers();
        let with_mode = if url.contains('?') { url.to_owned() } else { format!("{url}?mode=rwc") };
        let pool = AnyPoolOptions::new().max_connections(8).after_connect(|connection, _| {
            Box::pin(async move {
                // FULL: what was acknowledged survives a power failure, also in WAL mode.
                connection.execute("PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL").await.map(drop)
            })
        });
        let pool = pool.connect(&with_mode).await.map_err(|e| failed(&e))?;
        sqlx::migrate!().run(&pool).await.map_err(|e| failed(&e))?;
        Ok(Self { pool })
    }

    /// Whether the database answers.
    pub async fn ping(&self) -> Result<(), StoreError> {
        sqlx::query("SELECT 1").execute(&self.pool).await?;
        Ok(())
    }
}

/// Seconds since 1970.
pub fn now() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_secs()).unwrap_or(i64::MAX)
}

#[cfg(test)]
pub(crate) async fn for_test() -> (tempfile::TempDir, Store) {
    let folder = tempfile::tempdir().expect("a folder");
    let store = Store::open(&format!("sqlite:{}", folder.path().join("proxy.db").display())).await;
    (folder, store.expect("a new database"))
}
