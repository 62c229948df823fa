//! What the mirror reads of the configuration file: `extensions.sync`, where it listens, and where the registry is.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use berth_config::{File, Note, Pattern, Problems, Section, Upstream};
use berth_observe::Log;
use berth_oci::Repository;
use url::Url;

/// How long a tag is taken for what it was, unless the file says otherwise.
const DEFAULT_FRESHNESS: Duration = Duration::from_mins(5);

/// The mirror's settings.
pub struct Config {
    /// Where to listen.
    pub listen: Upstream,
    /// Where the registry is.
    pub registry: Upstream,
    /// Where what is on its way is kept.
    pub folder: PathBuf,
    /// What is mirrored from where, in the file's order.
    pub contents: Vec<Content>,
    /// What to log, and where to.
    pub log: Log,
}

/// Some repositories of another registry, and what they are called here.
#[derive(Clone, Debug)]
pub struct Content {
    /// Of which registry.
    pub from: Arc<SourceConfig>,
    /// Which of its repositories.
    prefix: Pattern,
    /// What is left out of their names here; empty, if nothing is.
    stripped: String,
    /// What their names begin with here; empty, if with nothing.
    destination: String,
}

/// Another registry.
#[derive(Debug)]
pub struct SourceConfig {
    /// Its addresses: the next one is asked if one doesn't answer.
    pub urls: Vec<Url>,
    /// Its users and passwords by host, read again when they are needed.
    pub credentials: Option<PathBuf>,
    /// How long a tag is taken for what it was.
    pub freshness: Duration,
    /// Whether its certificate is looked at.
    pub verify: bool,
    /// Whether its redirects and its token service may lead to addresses that only this network knows.
    pub private_addresses: bool,
    /// A folder with `ca.crt`, `client.cert` and `client.key`, as far as there are.
    pub certificates: Option<PathBuf>,
}

impl Content {
    /// What a repository is called there that is called so here; nothing, if this doesn't mirror it.
    pub fn remote_name(&self, local: &Repository) -> Option<String> {
        let rest = match self.destination.as_str() {
            "" => local.as_str(),
            destination => local.as_str().strip_prefix(destination)?.strip_prefix('/')?,
        };
        let name = match self.stripped.as_str() {
            "" => rest.to_owned(),
            stripped => format!("{stripped}/{rest}"),
        };
        if !self.prefix.matches(&name) {
            return None;
        }
        // Docker Hub's own images have no owner in their names.
        let is_hub =
            |url: &Url| matches!(url.host_str(), Some("docker.io" | "index.docker.io" | "registry-1.docker.io"));
        let name =
            if !name.contains('/') && self.from.urls.iter().any(is_hub) { format!("library/{name}") } else { name };
        name.parse::<Repository>().is_ok().then_some(name)
    }
}

impl Config {
    /// Reads the file at `path`; gives the warnings beside the settings.
    ///
    /// # Errors
    /// Every problem of the parts that the mirror reads.
    pub fn read(path: &Path) -> Result<(Self, Vec<Note>), Problems> {
        Self::from_file(File::read(path)?)
    }

    fn from_file(file: File) -> Result<(Self, Vec<Note>), Problems> {
        let root = file.root();
        let log = Log::read(&root);
        let sidecar = root.section("sidecar");
        let (listen, registry) = (Upstream::read_mirror(&sidecar), Upstream::read(&sidecar));
        if listen == registry {
            sidecar.problem("mirror", "is where the registry listens; expected another port, such as 5001");
        }
        let sync = root.section("extensions").section("sync");
        if sync.flag("enable") == Some(false) {
            sync.problem(
                "enable",
                "is false, so there is nothing to mirror; set it to true, or don't start the mirror",
            );
        }
        let credentials = sync.text("credentialsFile").map(PathBuf::from);
        if let Some(path) = &credentials
            && let Err(problem) = Credentials::read(path)
        {
            sync.problem("credentialsFile", problem);
        }
        let folder = sync.text("downloadDir").map_or_else(std::env::temp_dir, PathBuf::from);
        if let Err(e) = tempfile::tempfile_in(&folder) {
            let problem = format!("{} can't be written ({e}); make it, writable for this user", folder.display());
            sync.problem("downloadDir", problem);
        }
        let contents: Vec<Content> = sync
            .sections("registries")
            .into_iter()
            .flat_map(|section| read_registry(section, credentials.as_deref()))
            .collect();
        for (i, content) in contents.iter().enumerate() {
            let is_same = |other: &Content| {
                other.destination == content.destination && other.prefix.text() == content.prefix.text()
            };
            if contents[..i].iter().any(is_same) {
                sync.warn("registries", format!("has /{} twice; the first counts", content.destination));
            }
        }
        if contents.is_empty() {
            sync.problem(
                "registries",
                "has none with onDemand, so nothing is mirrored; expected [{\"urls\": [\"https://…\"], \"onDemand\": true, …}]",
            );
        }
        sync.close();
        let config = Self { listen, registry, folder, contents, log };
        Ok((config, file.finish()?))
    }
}

fn read_registry(section: Section<'_>, credentials: Option<&Path>) -> Vec<Content> {
    let mut urls: Vec<Url> = Vec::new();
    for (i, text) in section.texts("urls").unwrap_or_default().iter().enumerate() {
        match Url::parse(text) {
            Ok(url) if matches!(url.scheme(), "http" | "https") && url.has_host() && matches!(url.path(), "" | "/") => {
                urls.push(url);
            }
            _ => section
                .problem(&format!("urls[{i}]"), "is no address; expected one such as \"https://registry-1.docker.io\""),
        }
    }
    if urls.iter().any(|url| !url.username().is_empty() || url.password().is_some()) {
        section.problem("urls", "must not hold a password; put it into credentialsFile");
    }
    let on_demand = section.flag("onDemand").unwrap_or(false);
    let freshness = section.duration("pollInterval").unwrap_or(DEFAULT_FRESHNESS);
    let verify = section.flag("tlsVerify").unwrap_or(true);
    let certificates = section.text("certDir").map(PathBuf::from);
    let private_addresses = section.flag("privateAddresses").unwrap_or(false);
    if section.flag("onlySigned") == Some(true) {
        section.problem("onlySigned", "is not supported, and leaving it out silently would let in what it keeps out; take it out, and verify signatures where images are run");
    }
    section.ignore("preserveDigest", "digests always stay as they are");
    section.ignore("syncLegacyCosignTags", "they are fetched as other tags are, when somebody asks");
    for key in ["maxRetries", "retryDelay", "maxRetryDelay", "syncTimeout"] {
        section.ignore(key, "what breaks off goes on where it was, five times, after one second and more");
    }
    for key in ["credentialHelper", "oauth2CredentialHelper"] {
        if section.text(key).is_some() || section.holds_object(key) {
            section.problem(key, "is not supported; put a user and a password into credentialsFile");
        }
    }
    let contents = section.sections("content");
    if on_demand && urls.is_empty() {
        section.problem("urls", "is missing; expected [\"https://registry-1.docker.io\"]");
    }
    if on_demand && contents.is_empty() {
        section.problem("content", "is missing; expected [{\"prefix\": \"**\", \"destination\": \"/docker.io\"}]");
    }
    if !on_demand {
        section.warn(
            "onDemand",
            "is not true, so this registry isn't mirrored: Berth fetches what somebody asks for, and nothing else",
        );
    }
    let from = Arc::new(SourceConfig {
        urls,
        credentials: credentials.map(Path::to_owned),
        freshness,
        verify,
        private_addresses,
        certificates,
    });
    if let Err(problem) = from.client() {
        section.problem("certDir", problem);
    }
    let contents = contents.into_iter().filter_map(|content| read_content(content, &from)).collect();
    section.close();
    if on_demand { contents } else { Vec::new() }
}

fn read_content(section: Section<'_>, from: &Arc<SourceConfig>) -> Option<Content> {
    let text = section.text("prefix").unwrap_or("**").trim_start_matches('/');
    let prefix = Pattern::parse(text).map_err(|e| section.problem("prefix", format!("is no glob ({e}); mend it")));
    let destination = section.text("destination").unwrap_or("/").trim_matches('/').to_owned();
    if !destination.is_empty() && destination.parse::<Repository>().is_err() {
        section.problem("destination", "is no beginning of a name; expected one such as \"/docker.io\"");
    }
    if destination.is_empty() {
        section.warn(
            "destination",
            "is missing, so what is mirrored stands among what is pushed; expected one such as \"/docker.io\"",
        );
    }
    // What stands before the first star.
    let fixed = text
        .find(['*', '?', '[', '{'])
        .map_or(text, |star| text[..star].rsplit_once('/').map_or("", |(fixed, _)| fixed));
    let stripped = if section.flag("stripPrefix").unwrap_or(false) { fixed.to_owned() } else { String::new() };
    if section.holds_object("tags") {
        section.warn(
            "tags",
            "is not used: what somebody may fetch is a rule of accessControl, with a condition on req.tag",
        );
    }
    section.close();
    Some(Content { from: Arc::clone(from), prefix: prefix.ok()?, stripped, destination })
}

/// A user and a password.
#[derive(Clone, serde::Deserialize)]
pub struct Credentials {
    /// The user.
    pub username: String,
    /// The password.
    pub password: String,
}

impl Credentials {
    /// Reads zot's file: `{"host": {"username": "…", "password": "…"}}`.
    ///
    /// # Errors
    /// A sentence that repeats nothing of it.
    pub fn read(path: &Path) -> Result<std::collections::HashMap<String, Self>, String> {
        let wrong = |what: &dyn std::fmt::Display| {
            let expected = "expected {\"registry-1.docker.io\": {\"username\": \"…\", \"password\": \"…\"}}";
            format!("{} {what}; {expected}", path.display())
        };
        let text = std::fs::read(path).map_err(|e| wrong(&format!("can't be read ({e})")))?;
        serde_json::from_slice(&text).map_err(|e| wrong(&format!("is not such JSON (line {})", e.line())))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn content(prefix: &str, destination: &str, strip: bool, url: &str) -> Content {
        let sync = serde_json::json!({"extensions": {"sync": {"registries": [{"urls": [url], "onDemand": true,
            "content": [{"prefix": prefix, "destination": destination, "stripPrefix": strip}]}]}}});
        let file = File::parse(&sync.to_string()).expect("JSON");
        let (config, _) = Config::from_file(file).expect("settings");
        config.contents[0].clone()
    }

    #[test]
    fn the_reference_has_every_key_that_the_mirror_reads() {
        let text = r#"{"extensions": {"sync": {"registries": [{"onDemand": true, "content": [{}]}]}}, "sidecar": {}}"#;
        let file = File::parse(text).expect("JSON");
        let read = file.record();
        let _ = Config::from_file(file);
        berth_config::reference::must_describe("the mirror", &read.keys());
        berth_config::reference::must_be_read(&["extensions.sync.", "sidecar.mirror"], &read.keys());
    }

    #[test]
    fn names_are_those_of_the_other_registry() {
        let remote = |content: &Content, name: &str| content.remote_name(&name.parse().expect("a name"));
        let hub = content("**", "/docker.io", false, "https://registry-1.docker.io");
        assert_eq!(remote(&hub, "docker.io/library/nginx").as_deref(), Some("library/nginx"));
        assert_eq!(remote(&hub, "docker.io/nginx").as_deref(), Some("library/nginx"));
        assert_eq!(remote(&hub, "docker.io"), None);
        assert_eq!(remote(&hub, "docker.iox/nginx"), None);
        assert_eq!(remote(&hub, "team/app"), None);
        let some = content("/org/**", "mirror", true, "https://ghcr.io");
        assert_eq!(remote(&some, "mirror/app").as_deref(), Some("org/app"));
        let kept = content("org/**", "mirror", false, "https://ghcr.io");
        assert_eq!(remote(&kept, "mirror/org/app").as_deref(), Some("org/app"));
        assert_eq!(remote(&kept, "mirror/other/app"), None);
        let all = content("**", "/", false, "https://ghcr.io");
        assert_eq!(remote(&all, "org/app").as_deref(), Some("org/app"));
    }
}
