//! What the configuration says may change while the proxy runs: on SIGHUP, or when one of the files has changed.
//!
//! Rules, providers, issuers, the password file and certificates are replaced; no connection notices. A bad file is
//! refused whole: what was stays, and the log says why.

use std::{
    collections::HashMap,
    iter,
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

fn look<'a>(files: impl IntoIterator<Item = &'a PathBuf>) -> Seen {
    let seen = |path: &PathBuf| {
        let metadata = std::fs::metadata(path).ok()?;
        Some((metadata.modified().ok()?, metadata.len()))
    };
    files.into_iter().map(|path| (path.clone(), seen(path))).collect()
}

/// The files that are looked at, and how they were when they were last read.
pub struct Watched {
    path: PathBuf,
    files: Seen,
    certificates: Seen,
}

impl Watched {
    /// The configuration file, before it is read.
    pub fn new(path: &Path) -> Self {
        let path = path.to_owned();
        Self { files: look([&path]), certificates: Seen::new(), path }
    }

    /// What the configuration names, before that is read. What was looked at already stays as it was seen then, so that what
    /// was written while it was read is read, too.
    pub fn follow(&mut self, config: &Config) {
        let stay = |now: Seen, before: &Seen| -> Seen {
            now.into_iter()
                .map(|(path, seen)| {
                    let seen = before.get(&path).copied().unwrap_or(seen);
                    (path, seen)
                })
                .collect()
        };
        let certificates =
            config.tls.iter().flat_map(|tls| [&tls.certificate, &tls.key].into_iter().chain(&tls.client_authorities));
        self.files = stay(look(iter::once(&self.path).chain(&config.watched)), &self.files);
        self.certificates = stay(look(certificates), &self.certificates);
    }

    /// Whether the configuration, and whether certificates have changed since this was last asked.
    fn have_changed(&mut self) -> (bool, bool) {
        let changed = |seen: &mut Seen| {
            let now = look(seen.keys());
            let is_changed = now != *seen;
            *seen = now;
            is_changed
        };
        (changed(&mut self.files), changed(&mut self.certificates))
    }
}

/// Reloads for as long as the process runs.
pub async fn keep_reloading(app: Arc<App>, mut watched: Watched, first: Config, shown: Shown, mut hangups: Signal) {
    loop {
        let asked = tokio::select! {
            _ = hangups.recv() => true,
            () = tokio::time::sleep(POLL_INTERVAL) => false,
        };
        if asked {
            reopen_log();
            app.audit.reopen();
        }
        let (is_changed, are_renewed) = watched.have_changed();
        if asked || are_renewed {
            shown.read_again();
        }
        if (asked || is_changed)
            && let Some(config) = reload(&app, &watched.path, &first)
        {
            watched.follow(&config);
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_while_it_is_read_is_seen() {
        let folder = tempfile::tempdir().expect("a folder");
        let file = |name: &str, text: &str| {
            let path = folder.path().join(name);
            std::fs::write(&path, text).expect("written");
            path
        };
        let passwords = file("htpasswd", "");
        let text = serde_json::json!({"http": {"address": "127.0.0.1", "port": "0", "auth": {"htpasswd": {"path": passwords}}},
            "storage": {"rootDirectory": folder.path()}, "sidecar": {}});
        let path = file("config.json", &text.to_string());
        let mut watched = Watched::new(&path);
        let (config, _) = Config::read(&path).unwrap_or_else(|problems| panic!("{problems}"));
        file("config.json", &format!("{text} "));
        watched.follow(&config);
        assert_eq!(watched.have_changed(), (true, false));
        assert_eq!(watched.have_changed(), (false, false));
        // And what it names.
        file("htpasswd", "dave:x");
        watched.follow(&config);
        assert_eq!(watched.have_changed(), (true, false));
        std::fs::remove_file(&passwords).expect("removed");
        assert_eq!(watched.have_changed(), (true, false));
        assert_eq!(watched.have_changed(), (false, false));
    }
}
