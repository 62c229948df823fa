//! What is measured, one file a table.

pub mod bucket;
pub mod credentials;
pub mod curves;
pub mod many;
pub mod peers;
pub mod tls;

use std::{
    any::Any,
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use berth_bench::{
    api::Client,
    client::Dialer,
    content::{Image, Large},
    credential::Credential,
    measure::{Plan, Work, measure},
    report::{Figure, Machine, Settings, digits},
    servers::Servers,
};
use berth_tests::{
    process::{Process, free_port, wait_for},
    system::{Setup, System, binary, demonstration_rules},
    tools,
};
use http_body_util::BodyExt;
use serde_json::json;
use tempfile::TempDir;

/// The one small image that is pulled.
const IMAGE_SEED: u64 = 7;

/// How much is measured.
pub struct Scope {
    /// How often.
    pub rounds: usize,
    /// For how long, in seconds.
    pub seconds: u64,
    /// The large blob.
    pub large_mib: u64,
    /// The programs of before.
    pub before: Option<PathBuf>,
}

impl Scope {
    pub fn settings(&self) -> Settings {
        Settings {
            repository: "public/bench".to_owned(),
            connections: 16,
            seconds: self.seconds,
            large_mib: self.large_mib,
            rounds: 1,
            http2: false,
        }
    }

    pub fn duration(&self) -> Duration {
        Duration::from_secs(self.seconds)
    }
}

/// Something that is measured, and who measures it.
pub struct Peer {
    pub name: String,
    pub url: String,
    pub dialer: Dialer,
    pub credential: Credential,
    pub servers: Servers,
    /// The identity provider's issuer, if there is one.
    pub issuer: String,
    /// Where its files are.
    pub folder: PathBuf,
    /// What ends with it.
    _running: Box<dyn Any>,
}

/// A folder on the disk of the checkout: what is in memory would be no store.
pub fn folder() -> TempDir {
    let target = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target");
    tempfile::Builder::new().prefix("measure-").tempdir_in(target).expect("a folder")
}

/// `berth-registry` without the proxy.
pub async fn alone(name: &str, programs: Option<&Path>, storage: serde_json::Value) -> Peer {
    let folder = folder();
    let url = format!("http://127.0.0.1:{}", free_port());
    let mut config = json!({
        "storage": {"rootDirectory": folder.path().join("data")}, "sidecar": {"upstream": url}, "log": {"level": "warn"},
    });
    if let (Some(into), serde_json::Value::Object(more)) = (config["storage"].as_object_mut(), storage) {
        into.extend(more);
    }
    let path = folder.path().join("config.json");
    std::fs::write(&path, config.to_string()).expect("a file");
    let program = programs.map_or_else(|| binary("berth-registry"), |folder| folder.join("berth-registry"));
    let process = Process::start(Command::new(program).arg("serve").arg(&path), &folder.path().join("log"));
    let process = process.expect("a process");
    answers(name, &url).await;
    let servers = Servers(vec![process.id()]);
    Peer::new(name, &url, Credential::Nobody, servers, process, folder)
}

/// The whole system; who measures is alice with an API key.
pub async fn proxied(name: &str, programs: Option<&Path>, setup: Setup) -> (Peer, String) {
    let folder = folder();
    let tls = setup.tls.clone();
    let setup = Setup { access_control: demonstration_rules(), ..setup };
    let mut system = System::start_in(folder.path(), free_port(), setup).await;
    // At this level every request is logged, and nobody runs a registry so.
    system.configure(|config| config["log"]["level"] = json!("warn"));
    if let Some(programs) = programs {
        system.run_programs_of(programs);
    }
    system.restart_registry().await;
    system.restart_proxy().await;
    let (key, _) = system.signed_in("alice").await.make_key("measure").await;
    let servers = Servers(vec![system.proxy.id(), system.registry.id()]);
    let credential = Credential::Basic("alice".to_owned(), key.clone());
    let (url, issuer) = (system.url.clone(), system.issuer.clone());
    let mut peer = Peer::new(name, &url, credential, servers, system, folder);
    peer.issuer = issuer;
    peer.dialer = Dialer::new(tls.as_ref().map(|(certificate, _)| certificate.as_path()), false).expect("a client");
    (peer, key)
}

/// Debian's `docker-registry`, without authentication; nothing, if it isn't installed.
pub async fn docker_registry() -> Option<Peer> {
    let program = tools::find("docker-registry")?;
    let (folder, port) = (folder(), free_port());
    let config = json!({
        "version": 0.1, "log": {"level": "error", "accesslog": {"disabled": true}},
        "http": {"addr": format!("127.0.0.1:{port}")},
        "storage": {"filesystem": {"rootdirectory": folder.path().join("data")}, "delete": {"enabled": true}},
    });
    let path = folder.path().join("config.yml");
    std::fs::write(&path, config.to_string()).expect("a file");
    let process = Process::start(Command::new(program).arg("serve").arg(&path), &folder.path().join("log"));
    let (process, url) = (process.expect("a process"), format!("http://127.0.0.1:{port}"));
    answers("docker-registry", &url).await;
    let servers = Servers(vec![process.id()]);
    Some(Peer::new("docker-registry, without authentication", &url, Credential::Nobody, servers, process, folder))
}

async fn answers(name: &str, url: &str) {
    let ping = format!("{url}/v2/");
    wait_for(name, async || reqwest::get(&ping).await.ok().map(drop)).await;
}

impl Peer {
    fn new(
        name: &str,
        url: &str,
        credential: Credential,
        servers: Servers,
        running: impl Any,
        folder: TempDir,
    ) -> Self {
        let (name, url, files) = (name.to_owned(), url.to_owned(), folder.path().to_owned());
        let (dialer, running) = (Dialer::new(None, false).expect("a client"), Box::new((running, folder)));
        Self { name, url, dialer, credential, servers, issuer: String::new(), folder: files, _running: running }
    }

    pub async fn measure(&self, settings: Settings, works: &[Work]) -> Vec<Figure> {
        let plan = Plan {
            url: self.url.parse().expect("an address"),
            dialer: self.dialer.clone(),
            credential: self.credential.clone(),
            settings,
            works: works.to_vec(),
            servers: self.servers.clone(),
        };
        let name = &self.name;
        measure(&plan, |work, _| eprintln!("{name}: {}", work.name())).await.expect("measured")
    }

    /// Pushes a large blob; the seconds that this took.
    pub async fn push_blob(&self, repository: &str, large: &Large) -> f64 {
        let url = self.url.parse().expect("an address");
        let mut client = self.client(&url, repository).await;
        let began = Instant::now();
        client.push_blob(&large.digest, large.len, large.reader().boxed()).await.expect("pushed");
        began.elapsed().as_secs_f64()
    }

    /// The same by a client that says the digest before the bytes.
    pub async fn push_blob_at_once(&self, repository: &str, large: &Large) -> f64 {
        let url = self.url.parse().expect("an address");
        let mut client = self.client(&url, repository).await;
        let began = Instant::now();
        client.push_blob_at_once(&large.digest, large.len, large.reader().boxed()).await.expect("pushed");
        began.elapsed().as_secs_f64()
    }

    async fn client<'a>(&'a self, url: &'a url::Url, repository: &'a str) -> Client<'a> {
        Client::new(&self.dialer, url, &self.credential, repository).await.expect("a client")
    }

    /// Pushes a small image, as `measure`.
    pub async fn push_image(&self, repository: &str) {
        let url = self.url.parse().expect("an address");
        let mut client = self.client(&url, repository).await;
        client.push_image(&Image::new(IMAGE_SEED, 4096), "measure").await.expect("pushed");
    }
}

/// Measures peers in turns; the figures of each.
pub async fn in_turns(peers: &[Peer], scope: &Scope, works: &[Work]) -> Vec<Vec<Figure>> {
    let mut all: Vec<Vec<Figure>> =
        peers.iter().map(|_| works.iter().map(|&work| Figure::new(work)).collect()).collect();
    for _ in 0..scope.rounds {
        for (peer, figures) in peers.iter().zip(&mut all) {
            // What one has left to the kernel isn't written while the next is measured.
            assert!(Command::new("sync").status().expect("sync").success());
            for (figure, new) in figures.iter_mut().zip(peer.measure(scope.settings(), works).await) {
                figure.rounds.extend(new.rounds);
            }
        }
    }
    all
}

/// A table of peers; ratios are to the first.
pub fn side_by_side(peers: &[Peer], all: &[Vec<Figure>], scope: &Scope) -> String {
    let names: Vec<&str> = peers.iter().map(|peer| peer.name.as_str()).collect();
    let mut out = format!(
        "{}; {} rounds in turns, 16 connections, {} s each; the large blob has {} MiB. CPU time is that of the servers.\n\n\
         | | {} |\n|---|{}\n",
        Machine::this(),
        scope.rounds,
        scope.seconds,
        scope.large_mib,
        names.join(" | "),
        "---|".repeat(names.len())
    );
    let Some(first) = all.first() else { return out };
    for (i, of_first) in first.iter().enumerate() {
        let cells = all.iter().map(|figures| {
            let figure = &figures[i];
            let mut cell = format!("{} {}", digits(figure.value()), figure.unit);
            if !std::ptr::eq(figure, of_first) {
                cell += &format!(" (×{:.2})", figure.value() / of_first.value());
            }
            if let Some(cpu) = figure.median(|round| round.cpu) {
                cell += &format!("; {} {}", digits(cpu), figure.cpu_unit);
            }
            cell
        });
        out += &format!("| {} | {} |\n", of_first.work, cells.collect::<Vec<_>>().join(" | "));
    }
    let rss = all.iter().map(|figures| {
        let most =
            figures.iter().flat_map(|figure| &figure.rounds).filter_map(|round| round.rss_mib).fold(0.0, f64::max);
        format!("{} MiB", digits(most))
    });
    out + &format!("| most memory (RSS) | {} |\n", rss.collect::<Vec<_>>().join(" | "))
}

/// The one in the middle.
pub fn median(mut values: Vec<f64>) -> f64 {
    values.sort_unstable_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or_default()
}
