//! What the registry reads of the configuration file: `storage`, `log` and `sidecar.upstream`.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use berth_config::{File, Log, Note, Problems, Section, Upstream};

/// The registry's settings.
pub struct Config {
    /// Where to listen.
    pub upstream: Upstream,
    /// Where everything is kept.
    pub root_directory: PathBuf,
    /// How long what no manifest names is kept, and how often it is looked for; `None` if never.
    pub garbage: Option<Garbage>,
    /// What to log, and where to.
    pub log: Log,
}

/// `storage.gcDelay` and `gcInterval`
#[derive(Clone, Copy)]
pub struct Garbage {
    /// A push must name what it has sent within this.
    pub delay: Duration,
    /// How often it is looked for.
    pub interval: Duration,
}

impl Garbage {
    /// The delay unless the file says otherwise.
    pub const DEFAULT_DELAY: Duration = Duration::from_hours(1);
}

impl Config {
    /// Reads the file at `path`; gives the warnings beside the settings.
    ///
    /// # Errors
    /// Every problem of the parts that the registry reads.
    pub fn read(path: &Path) -> Result<(Self, Vec<Note>), Problems> {
        let file = File::read(path)?;
        let root = file.root();
        let upstream = read_upstream(&root.section("sidecar"));
        let (root_directory, garbage) = read_storage(root.section("storage"));
        let config = Self { upstream, root_directory, garbage, log: Log::read(&root) };
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

fn read_storage(storage: Section<'_>) -> (PathBuf, Option<Garbage>) {
    let root = storage.text("rootDirectory").unwrap_or("/var/lib/berth/registry");
    if storage.flag("dedupe") == Some(false) {
        storage.warn("dedupe", "is always on: a blob is stored once, and belongs to the repositories that hold it");
    }
    if storage.flag("commit") == Some(false) {
        storage.warn("commit", "is always on: what was acknowledged is on the disk");
    }
    let on = storage.flag("gc").unwrap_or(true);
    let delay = storage.duration("gcDelay").unwrap_or(Garbage::DEFAULT_DELAY);
    let interval = storage.duration("gcInterval").unwrap_or(Duration::from_hours(1));
    if on && interval < Duration::from_secs(1) {
        storage.problem("gcInterval", "is too short; expected a second at least, such as \"1h\"");
    }
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
    (PathBuf::from(root), on.then_some(Garbage { delay, interval }))
}
