//! A copy of the database while it is used.

use std::path::Path;

use sqlx::{AnyConnection, Connection};

use super::{broken, file_of, make_private};

/// Writes a whole copy of the database at `url` to `to`, while it is used; false if it is a server's, which has its own
/// tools.
///
/// # Errors
/// A sentence with the mend.
pub async fn back_up(url: &str, to: &Path) -> Result<bool, String> {
    let Some(path) = file_of(url) else { return Ok(false) };
    sqlx::any::install_default_drivers();
    let failed = |e: &dyn std::error::Error| format!("{}: can't be written ({e})", to.display());
    let from = format!("sqlite:{}?mode=rw", path.display());
    let mut connection = AnyConnection::connect(&from).await.map_err(|e| broken(path, &e))?;
    // An empty file of its own, which nobody else reads, is taken for a new database.
    make_private(to).map_err(|e| failed(&e))?;
    let copied = sqlx::query("VACUUM INTO $1").bind(to.to_string_lossy().into_owned()).execute(&mut connection).await;
    copied.map_err(|e| failed(&e))?;
    let written = std::fs::File::open(to).and_then(|file| file.sync_all());
    written.map_err(|e| failed(&e))?;
    connection.close().await.map_err(|e| broken(path, &e))?;
    Ok(true)
}
