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

/// When a file was changed, and how long it is; nothing, if it isn't there.
type Seen = Option<(SystemTime, u64)>;

fn look(path: &Path) -> Seen {
    let metadata = std::fs::metadata(path).ok()?;
    Some((metadata.modified().ok()?, metadata.len()))
}

/// The files that are looked at, and how they were seen last.
pub struct Watched {
    path: PathBuf,
    files: HashMap<PathBuf, Seen>,
    certificates: HashMap<PathBuf, Seen>,
}

impl Watched {
    /// The configuration file, before it is read.
    pub fn new(path: &Path) -> Self {
        let files = HashMap::from([(path.to_owned(), look(path))]);
        Self { path: path.to_owned(), files, certificates: HashMap::new() }
    }

    /// Looks at what the configuration names from now on. What was looked at already stays as it was seen then: what was written
    /// while it was read is read, too.
    pub fn follow(&mut self, config: &Config) {
        self.files.retain(|path, _| *path == self.path || config.watched.contains(path));
        for path in &config.watched {
            self.files.entry(path.clone()).or_insert_with(|| look(path));
        }
        // Those of before are shown until a restart, and may be renewed.
        if let Some(tls) = &config.tls {
            for path in [&tls.certificate, &tls.key].into_iter().chain(&tls.client_authorities) {
                self.certificates.entry(path.clone()).or_insert_with(|| look(path));
            }
        }
    }

    /// Whether the configuration, and whether certificates have changed since this was last asked.
    fn have_changed(&mut self) -> (bool, bool) {
        let changed = |files: &mut HashMap<PathBuf, Seen>| {
            let mut is_changed = false;
            for (path, seen) in files {
                let now = look(path);
                is_changed |= now != *seen;
                *seen = now;
            }
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
    use serde_json::{Value, json};

    use super::*;

    #[test]
    fn what_is_written_while_it_is_read_is_seen() {
        let folder = tempfile::tempdir().expect("a folder");
        let file = |name: &str, text: &str| {
            let path = folder.path().join(name);
            std::fs::write(&path, text).expect("written");
            path
        };
        let (passwords, certificate) = (file("htpasswd", ""), file("cert.pem", ""));
        let text = |tls: Value| {
            let http = json!({"address": "127.0.0.1", "port": "0", "externalUrl": "https://localhost", "tls": tls,
                "auth": {"htpasswd": {"path": passwords}}});
            json!({"http": http, "storage": {"rootDirectory": folder.path()}, "sidecar": {}}).to_string()
        };
        let with_tls = text(json!({"cert": certificate, "key": certificate}));
        let path = file("config.json", &with_tls);
        let read = || Config::read(&path).unwrap_or_else(|problems| panic!("{problems}")).0;
        let mut watched = Watched::new(&path);
        let config = read();
        file("config.json", &format!("{with_tls} "));
        watched.follow(&config);
        assert_eq!(watched.have_changed(), (true, false));
        assert_eq!(watched.have_changed(), (false, false));
        // And what it names.
        file("htpasswd", "dave:x");
        file("cert.pem", "renewed");
        watched.follow(&config);
        assert_eq!(watched.have_changed(), (true, true));
        std::fs::remove_file(&passwords).expect("removed");
        assert_eq!(watched.have_changed(), (true, false));
        // A certificate that the file names no more is shown until a restart.
        file("htpasswd", "");
        file("config.json", &text(Value::Null));
        assert_eq!(watched.have_changed(), (true, false));
        watched.follow(&read());
        file("cert.pem", "renewed once more");
        assert_eq!(watched.have_changed(), (false, true));
    }
}
