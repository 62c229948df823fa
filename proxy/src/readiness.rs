//! Whether requests can be served, for probes and health checks.

use std::sync::atomic::Ordering;

use crate::app::App;

/// What somebody wants to know.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wanted {
    /// Whether everything can be done.
    Everything,
    /// Whether pulls can be served, also while nothing can be stored.
    Pulls,
}

/// Why requests can't be served.
pub struct Unready {
    /// For everybody.
    pub what: &'static str,
    /// For who runs the registry.
    pub why: Option<String>,
}

impl std::fmt::Display for Unready {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.what)?;
        self.why.iter().try_for_each(|why| write!(f, ": {why}"))
    }
}

/// Whether requests can be served. The identity provider isn't asked: without it only sign-ins fail.
///
/// # Errors
/// Why not.
pub async fn readiness(app: &App, wanted: Wanted) -> Result<(), Unready> {
    if app.stopping.load(Ordering::Relaxed) {
        return Err(Unready { what: "the proxy is stopping", why: None });
    }
    let because = |what, error: &dyn std::fmt::Display| Unready { what, why: Some(error.to_string()) };
    app.store.ping().await.map_err(|error| because("the database does not answer", &error))?;
    match app.registry.readiness().await {
        Ok(Some(reason)) if wanted == Wanted::Everything => Err(because("the registry can store nothing", &reason)),
        Ok(_) => Ok(()),
        Err(error) => Err(because("the registry does not answer", &error)),
    }
}
