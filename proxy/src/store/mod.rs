//! What the proxy remembers: people, their sessions, their API keys, the refresh tokens of jobs.
//!
//! Queries are here and nowhere else, one file for each thing that is remembered.

mod keys;
mod refresh_tokens;
mod sessions;
mod usage;
mod users;

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use sqlx::{AnyPool, Executor, any::AnyPoolOptions};

pub use self::{
    keys::{ApiKey, NewKey},
    refresh_tokens::RefreshToken,
    sessions::{NewSession, Session},
    usage::Usage,
    users::User,
};

/// How long a request waits for the database.
const ACQUIRE_TIMEOUT: Duration = Duration::from_secs(3);

/// How long a start waits for it.
const STARTUP_TIMEOUT: Duration = Duration::from_mins(1);

/// SQLite's, and not a server's.
fn is_file(url: &str) -> bool {
    url.starts_with("sqlite:")
}

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
    /// Opens the database at `url`, makes it if it is a file and need be, and brings its schema up to date.
    ///
    /// A server that isn't there yet is waited for, since both may just have been started.
    ///
    /// # Errors
    /// A sentence with the mend.
    pub async fn open(url: &str) -> Result<Self, String> {
        sqlx::any::install_default_drivers();
        let began = Instant::now();
        loop {
            match Self::connect(url).await {
                Err(error) if !is_file(url) && began.elapsed() < STARTUP_TIMEOUT => {
                    tracing::warn!("{error}; trying again");
                    tokio::time::sleep(Duration::from_secs(1)).await;
                }
                outcome => return outcome,
            }
        }
    }

    async fn connect(url: &str) -> Result<Self, String> {
        let failed = |e: &dyn std::error::Error| match is_file(url) {
            true => format!("sidecar.database: {url} can't be opened ({e}); make its folder, writable for this user"),
            // Without the URL, which may hold a password.
            false => format!("sidecar.database: PostgreSQL can't be used ({e}); check its address, user and password"),
        };
        let with_mode = if is_file(url) && !url.contains('?') { format!("{url}?mode=rwc") } else { url.to_owned() };
        let mut pool = AnyPoolOptions::new().max_connections(8).acquire_timeout(ACQUIRE_TIMEOUT);
        if is_file(url) {
            pool = pool.after_connect(|connection, _| {
                Box::pin(async move {
                    // FULL: what was acknowledged survives a power failure, also in WAL mode.
                    connection.execute("PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL").await.map(drop)
                })
            });
        }
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
