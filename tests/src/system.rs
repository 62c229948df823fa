//! The whole system on this machine: an identity provider, `berth-registry` and `berth-proxy`.

use std::{
    path::{Path, PathBuf},
    process::Command,
    sync::OnceLock,
    time::Duration,
};

use serde_json::{Value, json};

use crate::{
    person::Person,
    process::{Process, free_port, trusting, wait_for},
};

/// The client that the identity providers of the tests know.
pub const CLIENT_ID: &str = "berth";
/// Its secret, long enough for HS256.
pub const CLIENT_SECRET: &str = "a-secret-of-the-tests-and-of-nothing-else";

/// How a system is set up.
pub struct Setup {
    /// `http.accessControl`, or nothing for none.
    pub access_control: Value,
    /// Whether the registry listens on a unix socket, and not on a port of loopback.
    pub unix_socket: bool,
    /// More keys of `http.auth`.
    pub auth: Value,
    /// More keys of the provider's section.
    pub provider: Value,
    /// More keys of `sidecar`.
    pub sidecar: Value,
    /// More keys of `storage`.
    pub storage: Value,
    /// `extensions`
    pub extensions: Value,
    /// The issuer of another identity provider; its client is the same.
    pub issuer: Option<String>,
    /// The PEM files of a certificate for localhost and of its key: then the proxy serves https.
    pub tls: Option<(PathBuf, PathBuf)>,
    /// The PEM file of the authorities of client certificates.
    pub client_authorities: Option<PathBuf>,
    /// How many descriptors each process may have, if not as many as this one.
    pub descriptors: Option<u64>,
}

impl Default for Setup {
    fn default() -> Self {
        Self {
            access_control: Value::Null,
            unix_socket: true,
            auth: json!({}),
            provider: json!({}),
            sidecar: json!({}),
            storage: json!({}),
            extensions: json!({}),
            issuer: None,
            tls: None,
            client_authorities: None,
            descriptors: None,
        }
    }
}

/// The rules of the demonstration: alice may push anywhere, bob may only read `shared/**`, the service account ci-robot
/// may push to `ci/**`, and everybody may pull what is public.
pub fn demonstration_rules() -> Value {
    let all = ["read", "create", "update", "delete"];
    let alice = json!({"users": ["alice"], "actions": all});
    json!({"repositories": {
        "**": {"policies": [alice]},
        "shared/**": {"policies": [alice, {"users": ["bob"], "actions": ["read"]}]},
        "ci/**": {"policies": [alice, {"users": ["ci-robot"], "actions": ["read", "create", "update"]}]},
        "public/**": {"policies": [alice], "defaultPolicy": ["read"], "anonymousPolicy": ["read"]},
    }})
}

/// A running system. Everything of it ends, and its folder goes, when it is dropped.
pub struct System {
    /// Where its files are.
    pub folder: PathBuf,
    /// `http://localhost:port` of the proxy.
    pub url: String,
    /// The identity provider's issuer.
    pub issuer: String,
    /// `sidecar.upstream`
    pub upstream: String,
    /// `berth-proxy`
    pub proxy: Process,
    /// `berth-registry`
    pub registry: Process,
    /// The stand-in, unless another provider was given.
    pub stand_in: Option<Process>,
    provider_port: u16,
    programs: Option<PathBuf>,
    _temporary: Option<tempfile::TempDir>,
}

impl System {
    /// Starts a system in a folder of its own, and waits until it serves.
    ///
    /// # Panics
    /// If it doesn't.
    pub async fn start(setup: Setup) -> Self {
        let folder = tempfile::Builder::new().prefix("berth-").tempdir().expect("a folder");
        let path = folder.path().to_owned();
        let port = free_port();
        let mut system = Self::start_in(&path, port, setup).await;
        system._temporary = Some(folder);
        system
    }

    /// Starts a system whose files are in `folder` and whose proxy listens on `port`.
    ///
    /// # Panics
    /// If it doesn't serve within a minute.
    pub async fn start_in(folder: &Path, port: u16, setup: Setup) -> Self {
        let provider_port = free_port();
        let scheme = if setup.tls.is_some() { "https" } else { "http" };
        let url = format!("{scheme}://localhost:{port}");
        let stand_in = setup.issuer.is_none().then(|| stand_in(folder, provider_port, &url));
        let issuer = setup.issuer.unwrap_or_else(|| format!("http://localhost:{provider_port}/application/o/berth/"));
        let upstream = if setup.unix_socket {
            format!("unix:{}", folder.join("registry.sock").display())
        } else {
            format!("http://127.0.0.1:{}", free_port())
        };
        let credentials = folder.join("oidc-credentials.json");
        let secret = json!({"clientid": CLIENT_ID, "clientsecret": CLIENT_SECRET});
        std::fs::write(&credentials, secret.to_string()).expect("the credentials file");
        let mut provider = json!({
            "credentialsFile": credentials, "issuer": issuer, "keypath": "", "scopes": ["openid", "profile", "email"],
            "claimMapping": {"username": "preferred_username"},
        });
        merge(&mut provider, setup.provider);
        let database = format!("sqlite:{}", folder.join("proxy.db").display());
        let mut sidecar = json!({"upstream": &upstream, "database": database});
        merge(&mut sidecar, setup.sidecar);
        let mut storage = json!({"rootDirectory": folder.join("registry")});
        merge(&mut storage, setup.storage);
        let authorities = setup.client_authorities;
        let tls = setup.tls.map(|(cert, key)| json!({"cert": cert, "key": key, "cacert": authorities}));
        let mut auth = json!({"openid": {"providers": {"oidc": provider}}});
        merge(&mut auth, setup.auth);
        let config = json!({
            "http": {
                "tls": tls,
                "address": "127.0.0.1", "port": port.to_string(), "externalUrl": url,
                "auth": auth,
                "accessControl": setup.access_control,
            },
            "storage": storage,
            "extensions": setup.extensions,
            "log": {"level": "debug"},
            "sidecar": sidecar,
        });
        let text = serde_json::to_string_pretty(&config).expect("the configuration");
        std::fs::write(folder.join("config.json"), text).expect("the configuration file");
        let descriptors = setup.descriptors;
        let start = |name| serve_within(name, folder, descriptors);
        let (registry, proxy) = (start("berth-registry"), start("berth-proxy"));
        let folder = folder.to_owned();
        let mut system = Self {
            folder,
            url,
            issuer,
            upstream,
            proxy,
            registry,
            stand_in,
            provider_port,
            programs: None,
            _temporary: None,
        };
        if system.stand_in.is_some() {
            answers(&format!("{}.well-known/openid-configuration", system.issuer)).await;
        }
        system.ready().await;
        system
    }

    /// Waits until the proxy and the registry behind it serve.
    ///
    /// # Panics
    /// If they don't within a minute, with what they printed.
    pub async fn ready(&mut self) {
        // One for all attempts: to make one costs more than to ask.
        let client = trusting().timeout(Duration::from_secs(5)).build().expect("a client");
        wait_for("the system to serve", async || {
            let (proxy, registry) = (&mut self.proxy, &mut self.registry);
            assert!(!proxy.has_ended() && !registry.has_ended(), "{}{}", proxy.printed(), registry.printed());
            let answer = client.get(format!("{}/readyz", self.url)).send().await.ok()?;
            answer.status().is_success().then_some(())
        })
        .await;
    }

    /// The path of the configuration file.
    pub fn config(&self) -> PathBuf {
        self.folder.join("config.json")
    }

    /// Changes the configuration file, which is then read again.
    ///
    /// # Panics
    /// If it can't be read or written.
    pub fn configure(&self, change: impl FnOnce(&mut Value)) {
        let text = std::fs::read_to_string(self.config()).expect("the configuration");
        let mut config = serde_json::from_str(&text).expect("JSON");
        change(&mut config);
        std::fs::write(self.config(), config.to_string()).expect("the configuration");
    }

    /// `http://host:port` of the identity provider.
    ///
    /// # Panics
    /// If its issuer is no URL.
    pub fn provider_origin(&self) -> String {
        url::Url::parse(&self.issuer).expect("a URL").origin().ascii_serialization()
    }

    /// Changes something at the stand-in, at one of its addresses for tests.
    ///
    /// # Panics
    /// If it doesn't answer well.
    pub async fn at_stand_in(&self, path: &str, body: Value) {
        let request = reqwest::Client::new().post(format!("{}/test/{path}", self.provider_origin())).json(&body);
        assert!(request.send().await.expect("an answer").status().is_success(), "{path}");
    }

    /// Runs SQL on the proxy's database, which is a file; false, having said so, if `sqlite3` isn't there.
    pub fn sql(&self, sql: &str) -> bool {
        let Some(sqlite) = crate::tools::find("sqlite3") else { return false };
        // The proxy may be writing.
        crate::tools::must(
            Command::new(sqlite).args(["-cmd", ".timeout 10000"]).arg(self.folder.join("proxy.db")).arg(sql),
        );
        true
    }

    /// `localhost:port` of the proxy, as image names have it.
    pub fn authority(&self) -> &str {
        self.url.trim_start_matches("https://").trim_start_matches("http://")
    }

    /// Somebody with a browser of their own, signed in.
    pub async fn signed_in(&self, user: &str) -> Person {
        Person::signed_in(&self.url, user).await
    }

    /// Runs the programs of this folder from the next start on, and not our own.
    pub fn run_programs_of(&mut self, programs: &Path) {
        self.programs = Some(programs.to_owned());
    }

    /// Starts the proxy again, after it was killed.
    pub async fn restart_proxy(&mut self) {
        self.proxy.kill();
        self.proxy = self.serve("berth-proxy");
        self.ready().await;
    }

    fn serve(&self, name: &str) -> Process {
        let Some(programs) = &self.programs else { return serve(name, &self.folder) };
        let mut command = Command::new(programs.join(name));
        command.arg("serve").arg(self.config());
        Process::start(&mut command, &self.folder.join(format!("{name}.log"))).expect("a process")
    }

    /// Starts the registry again, after it was killed.
    pub async fn restart_registry(&mut self) {
        self.registry.kill();
        self.registry = self.serve("berth-registry");
        self.ready().await;
    }

    /// Puts Debian's `docker-registry` in the place of `berth-registry`; nothing, if it isn't installed.
    ///
    /// # Panics
    /// If the system listens on a unix socket, which that one doesn't know, or doesn't serve.
    pub async fn use_another_registry(&mut self) -> Option<()> {
        let program = crate::tools::find("docker-registry")?;
        self.registry.kill();
        let address = self.upstream.strip_prefix("http://").expect("a port");
        let config = json!({
            "version": 0.1, "http": {"addr": address},
            "storage": {"filesystem": {"rootdirectory": self.folder.join("other")}, "delete": {"enabled": true}},
        });
        let path = self.folder.join("other.yml");
        std::fs::write(&path, config.to_string()).expect("a file");
        let mut command = Command::new(program);
        command.arg("serve").arg(&path);
        self.registry = Process::start(&mut command, &self.folder.join("other.log")).expect("a process");
        self.ready().await;
        Some(())
    }

    /// Starts the stand-in again, after it was killed. It has forgotten who was signed in.
    pub async fn restart_stand_in(&mut self) {
        self.stand_in = Some(stand_in(&self.folder, self.provider_port, &self.url));
        answers(&format!("{}.well-known/openid-configuration", self.issuer)).await;
    }
}

fn serve(name: &str, folder: &Path) -> Process {
    serve_with(name, &folder.join("config.json"), &folder.join(format!("{name}.log")))
}

/// Starts one of the two with at most so many descriptors.
fn serve_within(name: &str, folder: &Path, descriptors: Option<u64>) -> Process {
    let Some(descriptors) = descriptors else { return serve(name, folder) };
    let mut command = Command::new("sh");
    command.args(["-c", &format!("ulimit -n {descriptors}; exec \"$0\" serve \"$1\"")]);
    command.arg(binary(name)).arg(folder.join("config.json"));
    Process::start(&mut command, &folder.join(format!("{name}.log"))).expect("a process")
}

/// Starts `berth-proxy` or `berth-registry` with a configuration file.
///
/// # Panics
/// If it can't be started.
pub fn serve_with(name: &str, config: &Path, log: &Path) -> Process {
    Process::start(Command::new(binary(name)).arg("serve").arg(config), log).expect("a process")
}

/// Starts another proxy with the same configuration, but for its port, whose files are in `folder`; and where it serves.
///
/// # Panics
/// If it can't be started.
pub fn another_proxy(config: &Path, folder: &Path, name: &str) -> (Process, String) {
    let port = free_port();
    let text = std::fs::read_to_string(config).expect("the configuration");
    let mut config: Value = serde_json::from_str(&text).expect("JSON");
    config["http"]["port"] = json!(port.to_string());
    let path = folder.join(format!("{name}.json"));
    std::fs::write(&path, config.to_string()).expect("the configuration file");
    (serve_with("berth-proxy", &path, &folder.join(format!("{name}.log"))), format!("http://localhost:{port}"))
}

/// Starts a stand-in that serves on `port`, for the registry at `url`.
///
/// # Panics
/// If it can't be started.
pub fn stand_in(folder: &Path, port: u16, url: &str) -> Process {
    stand_in_for(folder, port, url, "oidc")
}

/// The same for a registry that calls it `provider`.
///
/// # Panics
/// If it can't be started.
pub fn stand_in_for(folder: &Path, port: u16, url: &str, provider: &str) -> Process {
    let mut command = Command::new(binary("berth-stand-in"));
    command.args(["--client-id", CLIENT_ID, "--client-secret", CLIENT_SECRET, "--port", &port.to_string()]);
    command.args(["--redirect-uri", &format!("{url}/zot/auth/callback/{provider}")]);
    Process::start(&mut command, &folder.join("stand-in.log")).expect("a process")
}

/// Waits until an address answers well.
pub async fn answers(url: &str) {
    let client = trusting().timeout(Duration::from_secs(5)).build().expect("a client");
    wait_for(url, async || client.get(url).send().await.ok()?.status().is_success().then_some(())).await;
}

fn merge(into: &mut Value, more: Value) {
    if let (Some(into), Value::Object(more)) = (into.as_object_mut(), more) {
        into.extend(more);
    }
}

/// The path of one of our programs, as they are built for this one's profile.
///
/// # Panics
/// If they can't be built.
pub fn binary(name: &str) -> PathBuf {
    static FOLDER: OnceLock<PathBuf> = OnceLock::new();
    let folder = FOLDER.get_or_init(|| {
        let mut folder = std::env::current_exe().expect("our own path");
        folder.pop();
        if !folder.ends_with("deps") {
            return folder; // We are one of the programs ourselves.
        }
        folder.pop();
        // `cargo test` builds no programs of other packages.
        let mut cargo = Command::new(env!("CARGO"));
        cargo.args(["build", "--quiet", "--locked", "--bins", "-p", "berth-proxy", "-p", "berth-registry"]);
        cargo
            .args(["-p", "berth-mirror", "-p", "berth-credential", "-p", "berth-bench", "-p", "berth-tests"])
            .current_dir(env!("CARGO_MANIFEST_DIR"));
        if folder.ends_with("release") {
            cargo.arg("--release");
        }
        assert!(cargo.status().expect("cargo").success(), "the programs can't be built");
        folder
    });
    folder.join(name)
}
