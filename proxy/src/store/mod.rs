//! What the proxy remembers: people, their sessions, API keys and terminals, the refresh tokens of jobs, and what is to be told
//! of what has happened.
//!
//! Queries are here and nowhere else, one file for each thing that is remembered.

mod backup;
mod events;
mod keys;
mod people;
mod refresh_tokens;
mod scim;
mod sessions;
mod terminals;
mod transaction;
mod usage;

use std::{
    fs::{OpenOptions, Permissions},
    io,
    os::unix::fs::{OpenOptionsExt, PermissionsExt},
    path::Path,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use sqlx::{
    AnyConnection, AnyPool, Connection, Executor, SqlSafeStr,
    any::AnyPoolOptions,
    migrate::{Migration, MigrationType, Migrator},
};

pub use self::{
    backup::back_up,
    events::{Announcement, EventWrite, Intent},
    keys::{ApiKey, NewKey},
    people::{Due, PASSWORD_FILE, Person, PersonId, Renewability, SignInRefused, Standing, SuspensionCause, User},
    refresh_tokens::RefreshToken,
    scim::{Provisioned, ScimLink, ScimRefused, ScimResource},
    sessions::{NewSession, Session},
    terminals::{Asking, MostAsking, NewDeviceCode, Poll, Terminal},
    usage::Usage,
};

/// How long a request waits for a connection to the database.
const ACQUIRE_TIMEOUT: Duration = Duration::from_secs(3);

/// How long it waits for one answer of a server. One that takes longer is as good as away.
const QUERY_TIMEOUT: Duration = Duration::from_secs(2);

/// The same for a file, whose disk may be busy with what others flush.
const FILE_TIMEOUT: Duration = Duration::from_secs(5);

/// How long a start waits for it.
const STARTUP_TIMEOUT: Duration = Duration::from_mins(1);

/// SQLite's, and not a server's.
fn is_file(url: &str) -> bool {
    file_of(url).is_some()
}

/// The file of a database, if it is one.
fn file_of(url: &str) -> Option<&Path> {
    let path = url.strip_prefix("sqlite:")?;
    Some(Path::new(path.split('?').next().unwrap_or(path)))
}

/// How the schema came to be: the files of the folder `migrations`, in their order. None may ever change.
fn migrations() -> Migrator {
    let files = [
        ("people", include_str!("../../migrations/0001_people.sql")),
        ("credentials", include_str!("../../migrations/0002_credentials.sql")),
        ("standing", include_str!("../../migrations/0003_standing.sql")),
        ("used_from", include_str!("../../migrations/0004_used_from.sql")),
        ("scim", include_str!("../../migrations/0005_scim.sql")),
        ("terminals", include_str!("../../migrations/0006_terminals.sql")),
        ("events", include_str!("../../migrations/0007_events.sql")),
    ];
    let migrations = files.into_iter().zip(1..).map(|((description, sql), version)| {
        Migration::new(version, description.into(), MigrationType::Simple, sql.into_sql_str(), false)
    });
    Migrator::with_migrations(migrations.collect())
}

/// A file that is no database, or not a whole one.
fn broken(path: &Path, error: &dyn std::error::Error) -> String {
    format!(
        "sidecar.database: {} is damaged, or no database ({error}); restore it from a backup that `berth-proxy backup` made \
         (a copy of the file alone lacks what stands in its -wal)",
        path.display()
    )
}

/// The database can't be used now.
#[derive(Debug, thiserror::Error)]
#[error("the database failed: {0}")]
pub struct StoreError(#[from] sqlx::Error);

/// The database.
#[derive(Clone)]
pub struct Store {
    pool: AnyPool,
    is_exclusive: bool,
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
        if let Some(path) = file_of(url) {
            make_private(path).map_err(|e| failed(&e))?;
            // The pool would try again and again, and then say that it took too long.
            let mut connection = AnyConnection::connect(&with_mode).await.map_err(|e| failed(&e))?;
            connection.execute("PRAGMA schema_version").await.map_err(|e| broken(path, &e))?;
            connection.close().await.map_err(|e| broken(path, &e))?;
        }
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
        migrations().run(&pool).await.map_err(|e| failed(&e))?;
        Ok(Self { pool, is_exclusive: is_file(url) })
    }

    /// Whether a server can be used, and changes nothing there.
    ///
    /// # Errors
    /// A sentence with the mend.
    pub async fn can_connect(url: &str) -> Result<(), String> {
        sqlx::any::install_default_drivers();
        let connected = tokio::time::timeout(ACQUIRE_TIMEOUT, AnyConnection::connect(url)).await;
        let why = match connected {
            Ok(Ok(connection)) => return connection.close().await.map_err(|e| e.to_string()),
            Ok(Err(error)) => error.to_string(),
            Err(_) => format!("it takes longer than {} s", ACQUIRE_TIMEOUT.as_secs()),
        };
        Err(format!("sidecar.database: PostgreSQL can't be used ({why}); check its address, user and password"))
    }

    /// Whether the database answers.
    pub async fn ping(&self) -> Result<(), StoreError> {
        // Who asks how we are hears it soon, also while the disk is busy.
        answer_within(QUERY_TIMEOUT, sqlx::query("SELECT 1").execute(&self.pool)).await.map(drop)
    }

    /// What a query gives, if the database answers in time.
    async fn within<T>(&self, query: impl Future<Output = Result<T, sqlx::Error>>) -> Result<T, StoreError> {
        answer_within(if self.is_exclusive { FILE_TIMEOUT } else { QUERY_TIMEOUT }, query).await
    }
}

async fn answer_within<T>(
    limit: Duration,
    query: impl Future<Output = Result<T, sqlx::Error>>,
) -> Result<T, StoreError> {
    let late = |_| {
        let message = format!("it takes longer than {} s to answer", limit.as_secs());
        sqlx::Error::from(io::Error::new(io::ErrorKind::TimedOut, message))
    };
    Ok(tokio::time::timeout(limit, query).await.map_err(late)??)
}

/// Makes a database file that only its owner reads, and its folder, or takes the rights of others away. SQLite makes the
/// files beside it with the same rights.
fn make_private(path: &Path) -> io::Result<()> {
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder)?;
    }
    OpenOptions::new().create(true).append(true).mode(0o600).open(path)?;
    for suffix in ["", "-wal", "-shm"] {
        let mut name = path.as_os_str().to_owned();
        name.push(suffix);
        match std::fs::set_permissions(&name, Permissions::from_mode(0o600)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
    }
    Ok(())
}

/// `age` ago, in seconds since 1970.
fn before(age: Duration) -> i64 {
    now().saturating_sub(i64::try_from(age.as_secs()).unwrap_or(i64::MAX))
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

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_database_of_before_keeps_its_sessions_and_keys() {
        let folder = tempfile::tempdir().expect("a folder");
        let url = format!("sqlite:{}", folder.path().join("proxy.db").display());
        sqlx::any::install_default_drivers();
        let pool = AnyPoolOptions::new().connect(&format!("{url}?mode=rwc")).await.expect("a new database");
        let before: Vec<_> = migrations().iter().filter(|migration| migration.version < 3).cloned().collect();
        let before = Migrator::with_migrations(before);
        before.run(&pool).await.expect("the schema of before");
        // Alice had another name once; bob is gone at his provider.
        let statements = "
            INSERT INTO users VALUES ('alicia', 'oidc', '1', '[]', '{}', 100, 0);
            INSERT INTO users VALUES ('alice', 'oidc', '1', '[\"dev\"]', '{}', 200, 0);
            INSERT INTO users VALUES ('bob', 'oidc', '2', '[]', '{}', 300, 1);
            INSERT INTO sessions VALUES ('s1', 'alice', 'oidc', '1', 'sid', 'tokens', 'agent', 150, 160, 'here', 155, 0, 0);
            INSERT INTO sessions VALUES ('s2', 'alice', 'oidc', '1', NULL, 'older', 'agent', 140, 160, '', 145, 0, 1);
            INSERT INTO api_keys VALUES ('k1', 'h1', 'alice', 'new', 'agent', 150, NULL, NULL, '[]');
            INSERT INTO api_keys VALUES ('k2', 'h2', 'alicia', 'old', 'agent', 90, NULL, 95, '[\"read\"]');
            INSERT INTO api_keys VALUES ('k3', 'h3', 'bob', 'his', 'agent', 90, NULL, 95, '[]');";
        pool.execute(statements).await.expect("rows of before");
        pool.close().await;

        let store = Store::open(&url).await.expect("the schema of now");
        let owner = async |hash| store.key_by_hash(hash).await.expect("read").expect("the key").user;
        for hash in ["h1", "h2"] {
            let alice = owner(hash).await;
            assert_eq!((alice.name.as_str(), alice.groups), ("alice", vec!["dev".to_owned()]));
        }
        let bob = owner("h3").await;
        let standing = store.standings(&bob.id, "bob").await.expect("read").remove(0);
        assert_eq!(standing.suspended, Some((300, SuspensionCause::Refused)));
        assert_eq!(store.session("s1").await.expect("read").expect("the session").user.name, "alice");
        assert!(store.session("s2").await.expect("read").is_none());
        // What the provider is asked with is the newest session's.
        let due =
            store.people_to_renew("oidc", Duration::ZERO, Duration::from_hours(24 * 365 * 100)).await.expect("read");
        assert_eq!(due.iter().map(|due| due.sealed.as_str()).collect::<Vec<_>>(), ["tokens"]);
    }
}
