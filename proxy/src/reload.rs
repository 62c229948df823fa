//! What the configuration says may change while the proxy runs: on SIGHUP, or when one of the files has changed.
//!
//! Rules, providers, issuers, the password file and certificates are replaced; no connection notices. A bad file is
//! refused whole: what was stays, and the log says why.

use std::{
    collections::HashMap,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, SystemTime},
};

use berth_observe::reopen_log;
use tokio::signal::unix::Signal;

use crate::{app::App, client_authorities::ClientAuthorities, config::Config, observe::Event, tls::Certificate};

/// How often the files are looked at.
const POLL_INTERVAL: Duration = Duration::from_secs(2);

/// What handshakes are made with.
pub struct Shown {
    /// Our certificate.
    pub certificate: Option<Arc<Certificate>>,
    /// The authorities of clients'.
    pub clients: Option<Arc<ClientAuthorities>>,
}

impl Shown {
    fn read_again(&self) {
        if let Some(certificate) = &self.certificate {
            certificate.read_again();
        }
        if let Some(clients) = &self.clients {
            clients.read_again();
        }
    }
}

/// When files were changed, and how long they are.
type Seen = HashMap<PathBuf, Option<(SystemTime, u64)>>;

fn look(files: &[PathBuf]) -> Seen {
    let seen = |path: &PathBuf| {
        let metadata = std::fs::metadata(path).ok()?;
        Some((metadata.modified().ok()?, metadata.len()))
    };
    files.iter().map(|path| (path.clone(), seen(path))).collect()
}

/// Looks at files that were read just now: those that were seen before they were read are as they were then, so that what was
/// written in between is read, too.
fn look_after(files: &[PathBuf], before: &Seen) -> Seen {
    let known = before.iter().filter(|(path, _)| files.contains(path)).map(|(path, seen)| (path.clone(), *seen));
    look(files).into_iter().chain(known).collect()
}

/// Reloads for as long as the process runs.
pub async fn keep_reloading(app: Arc<App>, path: PathBuf, first: Config, shown: Shown, mut hangups: Signal) {
    let tls_of = |config: &Config| {
        let tls = config.tls.iter();
        let tls = tls.flat_map(|tls| [&tls.certificate, &tls.key].into_iter().chain(&tls.client_authorities));
        tls.cloned().collect::<Vec<PathBuf>>()
    };
    let mut tls = tls_of(&first);
    let files_of = |config: &Config| [vec![path.clone()], config.watched.clone()].concat();
    let mut files = files_of(&first);
    let (mut seen, mut seen_tls) = (look(&files), look(&tls));
    loop {
        let asked = tokio::select! {
            _ = hangups.recv() => true,
            () = tokio::time::sleep(POLL_INTERVAL) => false,
        };
        let (now, now_tls) = (look(&files), look(&tls));
        if asked {
            reopen_log();
            app.audit.reopen();
        }
        if asked || now_tls != seen_tls {
            shown.read_again();
        }
        seen_tls = now_tls;
        if !asked && now == seen {
            continue;
        }
        seen = now;
        if let Some(config) = reload(&app, &path, &first) {
            (files, tls) = (files_of(&config), tls_of(&config));
            (seen, seen_tls) = (look_after(&files, &seen), look_after(&tls, &seen_tls));
        }
    }
}

/// Goes on with what the file says now, where the proxy that runs with `running` can.
fn reload(app: &App, path: &Path, running: &Config) -> Option<Config> {
    let outcome = |outcome: &str| app.audit.record_own(&Event::Reload { outcome });
    let (config, warnings) = match Config::read(path) {
        Ok(read) => read,
        Err(problems) => {
            for problem in &problems.0 {
                tracing::error!("{problem}");
            }
            tracing::error!("the configuration has changed and can't be used; what was goes on");
            outcome("refused: the file can't be used");
            return None;
        }
    };
    for warning in warnings {
        tracing::warn!("{warning}");
    }
    match app.reload(&config) {
        Ok(()) => {
            tracing::info!("the configuration was read again: rules, providers, issuers and passwords");
            outcome("rules, providers, issuers and passwords are those of the file now");
            let waiting = running.needs_restart_for(&config);
            if !waiting.is_empty() {
                tracing::warn!("changed in the file, and waiting for a restart of the proxy: {}", waiting.join(", "));
            }
        }
        Err(error) => {
            tracing::error!("{error}; what was goes on");
            outcome("refused: a part of it can't be used");
        }
    }
    Some(config)
}
