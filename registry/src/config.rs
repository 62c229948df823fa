//! What the registry reads of the configuration file: `storage`, `log` and `sidecar.upstream`.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use berth_config::{File, Note, Problems, Section, Upstream};
use berth_observe::{Collector, Log};
use url::Url;

use crate::{
    content::{quotas::Limit, retention::Rules},
    storage::{Kind, Redirect, SHORTEST_SHARED_DELAY, Service},
};

mod quotas;
mod retention;

/// The registry's settings.
pub struct Config {
    /// Where to listen.
    pub upstream: Upstream,
    /// Where everything is kept.
    pub place: Place,
    /// How long what no manifest names is kept, and how often it is looked for; `None` if never.
    pub garbage: Option<Garbage>,
    /// What is kept, and what nobody may move.
    pub rules: Rules,
    /// How much may be held.
    pub quotas: Vec<Limit>,
    /// How many repositories there may be.
    pub max_repositories: Option<usize>,
    /// What to log, and where to.
    pub log: Log,
    /// Where traces are sent to, if they are.
    pub traces: Option<Collector>,
}

/// Where bytes are kept.
#[derive(PartialEq)]
pub enum Place {
    /// `storage.rootDirectory`
    Directory(PathBuf),
    /// `storage.storageDriver`
    Objects(Service),
}

impl Place {
    /// Why it can't be used, for the person who starts the registry.
    pub fn problem(&self, error: &std::io::Error) -> String {
        match self {
            Self::Directory(_) => error.to_string(), // It names its key itself.
            Self::Objects(service) => format!(
                "storage.storageDriver: the bucket {} can't be used ({error}); check its name, the address of the \
                 service, and what the credentials may do",
                service.bucket
            ),
        }
    }
}

/// `storage.gcDelay` and `gcInterval`
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Garbage {
    /// A push must name what it has sent within this.
    pub delay: Duration,
    /// How often it is looked for.
    pub interval: Duration,
}

impl Garbage {
    /// The delay unless the file says otherwise.
    pub const DEFAULT_DELAY: Duration = Duration::from_hours(1);

    /// The interval unless the file says otherwise.
    const DEFAULT_INTERVAL: Duration = Duration::from_hours(1);
}

impl Default for Garbage {
    fn default() -> Self {
        Self { delay: Self::DEFAULT_DELAY, interval: Self::DEFAULT_INTERVAL }
    }
}

/// What becomes of zot's `storage.subPaths`, which has other root directories for some repositories.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SubPaths {
    /// They are a problem: what lies there would be gone.
    Refused,
    /// They are warned of, for who looks what else is to be changed.
    Ignored,
}

impl Config {
    /// Reads the file at `path`; gives the warnings beside the settings.
    ///
    /// # Errors
    /// Every problem of the parts that the registry reads.
    pub fn read(path: &Path) -> Result<(Self, Vec<Note>), Problems> {
        Self::read_with(path, SubPaths::Refused)
    }

    /// The same, with a choice of what becomes of zot's `storage.subPaths`.
    ///
    /// # Errors
    /// Every problem of the parts that the registry reads.
    pub fn read_with(path: &Path, sub_paths: SubPaths) -> Result<(Self, Vec<Note>), Problems> {
        Self::from_file(File::read(path)?, sub_paths)
    }

    fn from_file(file: File, sub_paths: SubPaths) -> Result<(Self, Vec<Note>), Problems> {
        let root = file.root();
        let sidecar = root.section("sidecar");
        let (upstream, traces) = (Upstream::read(&sidecar), Collector::read(&sidecar));
        let storage = root.section("storage");
        if !["http", "storage", "sidecar", "log", "extensions"].iter().any(|key| root.holds_object(key)) {
            root.problem(
                "storage",
                "is missing, and so is all else of a registry's configuration; give zot's config.json",
            );
        } else if !storage.is_present() {
            root.warn("storage", "is missing; everything is kept in /var/lib/berth/registry");
        }
        if !sidecar.is_present() {
            root.warn(
                "sidecar",
                format!("is missing; the registry listens on {upstream}, where the proxy looks for it"),
            );
        }
        let max_repositories = storage.number("maxRepos").and_then(|n| usize::try_from(n).ok()).filter(|n| *n > 0);
        let quotas = quotas::read(&storage);
        let (place, garbage, rules) = read_storage(storage, sub_paths);
        if let Place::Objects(service) = &place {
            must_be_another_domain(&root, service);
        }
        let config = Self { upstream, place, garbage, rules, quotas, max_repositories, log: Log::read(&root), traces };
        Ok((config, file.finish()?))
    }

    /// The keys whose values in `new` need a restart, for the registry that runs with these.
    pub fn needs_restart_for(&self, new: &Self) -> Vec<&'static str> {
        let Self { upstream, place, garbage, rules, quotas, max_repositories, log, traces } = self;
        let differs = [
            ("sidecar.upstream", *upstream != new.upstream),
            ("storage", *place != new.place),
            ("storage.gc", garbage.is_some() != new.garbage.is_some()),
            ("storage.gcDelay", self.is_shared() && self.delay() != new.delay()),
            // Patterns have no other likeness than their texts.
            ("storage.retention", format!("{rules:?}") != format!("{:?}", new.rules)),
            ("storage.quotas", format!("{quotas:?}") != format!("{:?}", new.quotas)),
            ("storage.maxRepos", *max_repositories != new.max_repositories),
            ("log", !log.is_like(&new.log)),
            ("sidecar.traces", *traces != new.traces),
        ];
        differs.into_iter().filter_map(|(key, differs)| differs.then_some(key)).collect()
    }

    /// Whether other registries may store in the same place.
    pub fn is_shared(&self) -> bool {
        matches!(self.place, Place::Objects(_))
    }

    /// How long garbage is kept.
    pub fn delay(&self) -> Duration {
        self.garbage.map_or(Garbage::DEFAULT_DELAY, |garbage| garbage.delay)
    }
}

fn read_storage(storage: Section<'_>, sub_paths: SubPaths) -> (Place, Option<Garbage>, Rules) {
    let root = storage.text("rootDirectory").unwrap_or("/var/lib/berth/registry");
    if storage.flag("dedupe") == Some(false) {
        storage.warn("dedupe", "is always on: a blob is stored once, and belongs to the repositories that hold it");
    }
    if storage.flag("commit") == Some(false) {
        storage.warn("commit", "is always on: what was acknowledged is on the disk");
    }
    let on = storage.flag("gc").unwrap_or(true);
    let mut delay = storage.duration("gcDelay").unwrap_or(Garbage::DEFAULT_DELAY);
    // Nobody waits a minute in a test.
    let any_delay = storage.flag(berth_config::reference::ANY_GC_DELAY) == Some(true);
    if delay < SHORTEST_DELAY && !any_delay {
        storage.warn("gcDelay", "is too short for a push to name what it has sent; a minute is taken");
        delay = SHORTEST_DELAY;
    }
    let interval = storage.duration("gcInterval").unwrap_or(Garbage::DEFAULT_INTERVAL);
    if on && interval < Duration::from_secs(1) {
        storage.problem("gcInterval", "is too short; expected a second at least, such as \"1h\"");
    }
    let mut service = read_driver(storage.section("storageDriver"));
    read_redirect(&storage, service.as_mut());
    if service.is_some() && on && delay < SHORTEST_SHARED_DELAY {
        storage.problem(
            "gcDelay",
            "is too short for a bucket that several registries may share, whose clocks differ; expected ten minutes at \
             least, such as \"1h\"",
        );
    }
    storage.ignore("remoteCache", "there is no cache database");
    storage.ignore("cacheDriver", "there is no cache database");
    let there = storage.holds_object("subPaths");
    match sub_paths {
        SubPaths::Ignored if there => storage.warn("subPaths", "is not used: everything is stored under rootDirectory"),
        SubPaths::Refused if there => storage.problem(
            "subPaths",
            "is not supported, and without it the repositories that it stores elsewhere would be gone; import each of its \
             folders (berth-registry import), and take it out",
        ),
        _ => {}
    }
    for key in ["gcTimeWindow", "gcMaxSchedulerDelay", "fastRestart"] {
        storage.ignore(key, "Berth collects garbage beside its other work, and lists repositories without a database");
    }
    let rules = retention::read(&storage);
    if rules.retention.is_some() && !on {
        storage.problem("retention", "is a part of collecting garbage, which is off; set gc to true");
    }
    storage.close();
    let place = service.map_or_else(|| Place::Directory(PathBuf::from(root)), Place::Objects);
    (place, on.then_some(Garbage { delay, interval }), rules)
}

/// `storage.redirectBlobURL`: zot's flag, or an object with the address at which clients reach the service.
fn read_redirect(storage: &Section<'_>, service: Option<&mut Service>) {
    let redirect = if storage.holds_object("redirectBlobURL") {
        let section = storage.section("redirectBlobURL");
        let endpoint = section.text("endpoint").map(|text| {
            let is_one = text.parse::<Url>().is_ok_and(|url| {
                let is_bare = url.path() == "/" && url.query().is_none() && url.fragment().is_none();
                let is_open = url.username().is_empty() && url.password().is_none();
                matches!(url.scheme(), "https" | "http") && url.has_host() && is_bare && is_open
            });
            if !is_one {
                section.problem(
                    "endpoint",
                    "is no address of a service; expected one such as \"https://s3.company\", without a path",
                );
            }
            text.trim_end_matches('/').to_owned()
        });
        section.close();
        Some(Redirect { endpoint })
    } else {
        storage.flag("redirectBlobURL").unwrap_or(false).then(Redirect::default)
    };
    let Some(redirect) = redirect else { return };
    let Some(service) = service else {
        return storage
            .warn("redirectBlobURL", "does nothing without a bucket; blobs are served by the registry itself");
    };
    match (&service.kind, &redirect.endpoint) {
        (Kind::S3 { endpoint: Some(endpoint), .. }, None) => storage.warn(
            "redirectBlobURL",
            format!("sends clients to {endpoint}; if they reach the service elsewhere, give {{\"endpoint\": …}}"),
        ),
        (Kind::Gcs { .. } | Kind::Azure { .. }, Some(_)) => storage.problem(
            "redirectBlobURL.endpoint",
            "is for S3 alone; this service has one address for all, so expected true",
        ),
        _ => {}
    }
    service.redirect = Some(redirect);
}

/// Go's clients show their credential wherever they are sent in the registry's own domain (net/http, `shouldCopyHeaderOnRedirect`),
/// and S3 refuses two credentials with 400.
fn must_be_another_domain(root: &Section<'_>, service: &Service) {
    // A name may end with a dot.
    let host = |address: &str| Some(address.parse::<Url>().ok()?.host_str()?.trim_end_matches('.').to_owned());
    let at = match (&service.redirect, &service.kind) {
        (Some(Redirect { endpoint: Some(endpoint) }), _) => Some(endpoint),
        (Some(Redirect { endpoint: None }), Kind::S3 { endpoint, .. }) => endpoint.as_ref(),
        _ => None,
    };
    let ours = root.section("http").text("externalUrl").and_then(host);
    let (Some(at), Some(ours)) = (at.and_then(|at| host(at)), ours) else { return };
    if at == ours || at.ends_with(&format!(".{ours}")) {
        root.problem(
            "storage.redirectBlobURL",
            format!(
                "sends clients to {at}, which belongs to the domain of http.externalUrl: they would show their credential \
                 there too, and be refused; expected an endpoint in another domain"
            ),
        );
    }
}

/// A push names what it has sent within this, or its layers may be gone.
const SHORTEST_DELAY: Duration = Duration::from_mins(1);

/// `storage.storageDriver`, in the words of zot and CNCF Distribution; nothing if it is the directory.
fn read_driver(driver: Section<'_>) -> Option<Service> {
    if !driver.is_present() {
        return None;
    }
    let text = |key| driver.text(key).map(str::to_owned);
    let required = |key: &'static str, what: &str| {
        text(key).unwrap_or_else(|| {
            driver.problem(key, format!("is missing; expected {what}"));
            String::new()
        })
    };
    let folder = text("rootdirectory").unwrap_or_default();
    let (kind, bucket) = match driver.text("name") {
        Some("local") => {
            driver.close();
            return None;
        }
        Some("s3") => {
            let key = (text("accesskey"), text("secretkey"));
            let credentials = match key {
                (Some(id), Some(secret)) => Some((id, secret, text("sessiontoken"))),
                (None, None) => None,
                _ => {
                    driver
                        .problem("accesskey", "and secretkey go together; give both, or none to take AWS_* variables");
                    None
                }
            };
            let secure = driver.flag("secure").unwrap_or(true);
            let endpoint = text("regionendpoint").or_else(|| text("endpoint")).map(|endpoint| {
                let scheme = if secure { "https" } else { "http" };
                if endpoint.contains("://") { endpoint } else { format!("{scheme}://{endpoint}") }
            });
            let kind = Kind::S3 {
                region: text("region"),
                // Whoever has a service of their own seldom has names for its buckets.
                path_style: driver.flag("forcepathstyle").unwrap_or(endpoint.is_some()),
                skip_verify: driver.flag("skipverify").unwrap_or(false),
                endpoint,
                credentials,
            };
            (kind, required("bucket", "the name of the bucket"))
        }
        Some("gcs") => {
            let key_file = driver.text("keyfile").or_else(|| driver.text("credentialsFile"));
            let kind = Kind::Gcs { key_file: key_file.map(PathBuf::from) };
            (kind, required("bucket", "the name of the bucket"))
        }
        Some("azure") => {
            let account = required("accountname", "the name of the storage account");
            let credentials = driver.section("credentials");
            if !matches!(credentials.text("type"), None | Some("shared_key" | "default_credentials")) {
                credentials.problem(
                    "type",
                    "is not read from the file; expected shared_key with accountkey, or default_credentials with \
                     AZURE_CLIENT_ID, AZURE_CLIENT_SECRET and AZURE_TENANT_ID in the environment",
                );
            }
            credentials.close();
            (Kind::Azure { account, key: text("accountkey") }, required("container", "the name of the container"))
        }
        _ => {
            driver.problem("name", "is none that Berth knows; expected s3, gcs, azure or local");
            return None;
        }
    };
    for key in ["encrypt", "keyid", "objectacl"] {
        driver.ignore(key, "it is set on the bucket itself");
    }
    for key in ["chunksize", "storageclass", "loglevel", "multipartcopychunksize", "v4auth", "useragent"] {
        driver.ignore(key, "it is chosen for you");
    }
    driver.close();
    Some(Service { kind, bucket, folder, redirect: None })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_reference_has_every_key_that_the_registry_reads() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("config.json");
        let mut read = std::collections::BTreeSet::new();
        for name in ["local", "s3", "gcs", "azure"] {
            let redirect = if name == "s3" { r#"{"endpoint": "https://s3.company"}"# } else { "true" };
            let keys = r#""accesskey": "k", "secretkey": "s", "credentials": {}"#;
            let rules = r#""retention": {"policies": [{"keepTags": [{}], "keepUntagged": {}}]}, "immutableTags": [{}], "quotas": [{}]"#;
            let text = format!(
                r#"{{"storage": {{"storageDriver": {{"name": "{name}", {keys}}}, "redirectBlobURL": {redirect}, {rules}}}}}"#
            );
            std::fs::write(&path, text).expect("a file");
            let file = File::read(&path).expect("JSON");
            let record = file.record();
            let _ = Config::from_file(file, SubPaths::Refused);
            read.extend(record.keys());
        }
        berth_config::reference::must_describe("the registry", &read);
        berth_config::reference::must_be_read(&["storage."], &read);
    }
}
