//! What the registry reads of the configuration file: `storage`, `log` and `sidecar.upstream`.

use std::path::{Path, PathBuf};

use berth_config::{File, Log, Note, Problems, Section, Upstream};

/// The registry's settings.
pub struct Config {
    /// Where to listen.
    pub upstream: Upstream,
    /// Where everything is kept.
    pub root_directory: PathBuf,
    /// What to log, and where to.
    pub log: Log,
}

impl Config {
    /// Reads the file at `path`; gives the warnings beside the settings.
    ///
    /// # Errors
    /// Every problem of the parts that the registry reads.
    pub fn read(path: &Path) -> Result<(Self, Vec<Note>), Problems> {
        let file = File::read(path)?;
        let root = file.root();
        let config = Self {
            upstream: read_upstream(&root.section("sidecar")),
            root_directory: read_storage(root.section("storage")),
            log: Log::read(&root),
        };
        Ok((config, file.finish()?))
    }
}

/// The registry knows no user, so an address that others reach must have been meant.
fn read_upstream(sidecar: &Section<'_>) -> Upstream {
    let upstream = Upstream::read(sidecar);
    if !upstream.is_local() && sidecar.flag("allowRemoteRegistry") != Some(true) {
        sidecar.problem(
            "upstream",
            format!(
                "{upstream} can be reached by others, and the registry asks nobody who they are; expected a loopback \
                 address or a unix socket, or \"allowRemoteRegistry\": true beside it if your network keeps others out"
            ),
        );
    }
    upstream
}

fn read_storage(storage: Section<'_>) -> PathBuf {
    let root = storage.text("rootDirectory").unwrap_or("/var/lib/berth/registry");
    if storage.flag("dedupe") == Some(false) {
        storage.warn("dedupe", "is always on: a blob is stored once, and belongs to the repositories that hold it");
    }
    if storage.flag("commit") == Some(false) {
        storage.warn("commit", "is always on: what was acknowledged is on the disk");
    }
    storage.flag("gc");
    storage.duration("gcDelay");
    storage.duration("gcInterval");
    if let Some(driver) = storage.value("storageDriver") {
        let local = driver.get("name").and_then(|name| name.as_str()) == Some("local");
        if !local {
            storage.problem("storageDriver", "is not supported; leave it out to store in rootDirectory");
        }
    }
    storage.ignore("remoteCache", "there is no cache database");
    storage.ignore("cacheDriver", "there is no cache database");
    storage.ignore("subPaths", "everything is stored under rootDirectory");
    storage.ignore("retention", "nothing is removed by age or count");
    storage.close();
    PathBuf::from(root)
}
