//! Measures registries side by side: the same work, in one run, on this machine.
//!
//! ```sh
//! cargo run --release -p berth-tests --bin berth-bench
//! ```
//! With `--credentials` it measures the proxy instead: what each kind of credential costs.
//!
//! It starts `berth-registry`, Debian's `docker-registry` and nginx (serving the same bytes as files) where they are
//! installed, and prints a table. Machines are noisy: compare what stands in one table, and nothing else.

use std::{
    fs,
    path::Path,
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use berth_tests::{
    api::{Api, Credential, location},
    images::{Image, MANIFEST, digest},
    process::{Process, free_port, wait_for},
    stand_in::access_token,
    system::{CLIENT_ID, Setup, System, binary, demonstration_rules},
    tools,
};
use clap::Parser;
use reqwest::{Method, StatusCode, header};
use serde_json::json;

#[derive(Parser)]
struct Arguments {
    /// How long each request is repeated, in seconds.
    #[arg(long, default_value_t = 3)]
    seconds: u64,
    /// The large blob, in MiB.
    #[arg(long, default_value_t = 1024)]
    large: usize,
    /// How many small images are pushed.
    #[arg(long, default_value_t = 1000)]
    images: u64,
    /// How many tags the longest list has.
    #[arg(long, default_value_t = 10_000)]
    tags: u64,
    /// Ask the proxy with each kind of credential.
    #[arg(long)]
    credentials: bool,
}

/// How many connections ask at once.
const AT_ONCE: usize = 16;

/// A registry, or something that serves the same bytes.
struct Peer {
    name: &'static str,
    process: Process,
    url: String,
    writable: bool,
}

/// What was measured of one peer, in the order of the table.
type Row = Vec<(String, String)>;

#[tokio::main]
async fn main() {
    let arguments = Arguments::parse();
    if arguments.credentials {
        return credentials(Duration::from_secs(arguments.seconds)).await;
    }
    let folder = tempfile::Builder::new().prefix("berth-bench-").tempdir_in(".").expect("a folder");
    let mut tables = Vec::new();
    let large = Arc::new(large_blob(arguments.large));
    // One at a time, so that none disturbs another.
    let berth = Some(berth(folder.path()).await);
    measured(&mut tables, berth, &arguments, &large).await;
    measured(&mut tables, docker_registry(folder.path()).await, &arguments, &large).await;
    measured(&mut tables, nginx(folder.path(), &large).await, &arguments, &large).await;
    print(&tables);
}

/// HEAD of a public manifest through the proxy, with nothing and with each kind of credential in turn.
async fn credentials(duration: Duration) {
    let setup = Setup { access_control: demonstration_rules(), unix_socket: true, ..Setup::default() };
    let system = System::start(setup).await;
    // At this level every request is logged, and nobody runs a registry so.
    system.configure(|config| config["log"]["level"] = json!("warn"));
    let mut system = system;
    system.restart_registry().await;
    system.restart_proxy().await;
    let person = system.signed_in("alice").await;
    let (key, _) = person.make_key("bench").await;
    let alice = Api::basic(&system.url, "alice", &key);
    let image = Image::new(1, 1000);
    alice.must_push("public/app", "1", &image).await;
    let token = alice.with_token(&["repository:public/app:pull"]).await;
    let jwt = access_token(&system.issuer, CLIENT_ID, "alice").await;
    let url = format!("{}/v2/public/app/manifests/1", system.url);
    let with = |api: &Api| api.request(Method::HEAD, "/v2/public/app/manifests/1").build().expect("a request");
    let bearer = |text: String| with(&alice.with(Credential::Bearer(text)));
    let session = person.http.head(&url).build().expect("a request");
    let kinds = [
        ("nothing", reqwest::Client::new(), with(&alice.with(Credential::None))),
        ("a session", person.http.clone(), session),
        ("an API key", reqwest::Client::new(), with(&alice)),
        ("our token", reqwest::Client::new(), with(&token)),
        ("authentik's token", reqwest::Client::new(), bearer(jwt)),
    ];
    let mut rates = vec![Vec::new(); kinds.len()];
    for _ in 0..5 {
        for (i, (_, client, request)) in kinds.iter().enumerate() {
            rates[i].push(rate_of(client, request, duration).await);
        }
    }
    println!("| HEAD of a manifest with | req/s | of nothing |\n|---|---|---|");
    let median = |rates: &[f64]| {
        let mut sorted = rates.to_vec();
        sorted.sort_by(f64::total_cmp);
        sorted[sorted.len() / 2]
    };
    let nothing = median(&rates[0]);
    for ((name, ..), rates) in kinds.iter().zip(&rates) {
        println!("| {name} | {:.0} | ×{:.2} |", median(rates), median(rates) / nothing);
    }
}

/// How often a request is answered with 200 in a second, on many connections.
async fn rate_of(client: &reqwest::Client, request: &reqwest::Request, duration: Duration) -> f64 {
    let end = Instant::now() + duration;
    let askers = (0..AT_ONCE).map(|_| {
        let (client, request) = (client.clone(), request.try_clone().expect("a request without a body"));
        tokio::spawn(async move {
            let mut count = 0_u64;
            while Instant::now() < end {
                let request = request.try_clone().expect("a request without a body");
                let answer = client.execute(request).await.expect("an answer");
                assert_eq!(answer.status(), StatusCode::OK);
                count += 1;
            }
            count
        })
    });
    let mut count = 0;
    for asker in askers.collect::<Vec<_>>() {
        count += asker.await.expect("answers");
    }
    count as f64 / duration.as_secs_f64()
}

async fn measured(
    tables: &mut Vec<(&'static str, Row)>,
    peer: Option<Peer>,
    arguments: &Arguments,
    large: &Arc<Vec<u8>>,
) {
    if let Some(peer) = peer {
        tables.push((peer.name, measure(&peer, arguments, large).await));
    }
}

fn large_blob(mib: usize) -> Vec<u8> {
    Image::new(99, mib * 1024 * 1024 - 2048).layer
}

async fn berth(folder: &Path) -> Peer {
    let (root, port) = (folder.join("berth"), free_port());
    fs::create_dir(&root).expect("a folder");
    let url = format!("http://127.0.0.1:{port}");
    let config = json!({"storage": {"rootDirectory": root.join("data")}, "sidecar": {"upstream": url}});
    let path = root.join("config.json");
    fs::write(&path, config.to_string()).expect("a file");
    let process = Process::start(Command::new(binary("berth-registry")).arg("serve").arg(&path), &root.join("log"));
    started(Peer { name: "berth-registry", process: process.expect("a process"), url, writable: true }).await
}

async fn docker_registry(folder: &Path) -> Option<Peer> {
    let program = tools::find("docker-registry")?;
    let (root, port) = (folder.join("docker-registry"), free_port());
    fs::create_dir(&root).expect("a folder");
    let config = json!({
        "version": 0.1, "log": {"level": "error", "accesslog": {"disabled": true}},
        "http": {"addr": format!("127.0.0.1:{port}")},
        "storage": {"filesystem": {"rootdirectory": root.join("data")}, "delete": {"enabled": true}},
    });
    let path = root.join("config.yml");
    fs::write(&path, config.to_string()).expect("a file");
    let process = Process::start(Command::new(program).arg("serve").arg(&path), &root.join("log"));
    let url = format!("http://127.0.0.1:{port}");
    started(Peer { name: "docker-registry", process: process.expect("a process"), url, writable: true }).await.into()
}

/// The same bytes under the same addresses, as static files with sendfile.
async fn nginx(folder: &Path, large: &[u8]) -> Option<Peer> {
    let program = tools::find("nginx")?;
    let (root, port) = (folder.canonicalize().expect("a path").join("nginx"), free_port());
    let repository = root.join("www/v2/bench");
    for part in ["blobs", "manifests"] {
        fs::create_dir_all(repository.join(part)).expect("a folder");
    }
    for size in SIZES {
        let image = Image::new(size as u64, size);
        fs::write(repository.join("blobs").join(digest(&image.layer)), &image.layer).expect("a file");
        for name in [tag(size), digest(&image.manifest)] {
            fs::write(repository.join("manifests").join(name), &image.manifest).expect("a file");
        }
    }
    fs::write(repository.join("blobs").join(digest(large)), large).expect("a file");
    let config = format!(
        "daemon off; master_process off; pid {0}/pid; error_log {0}/log; events {{}} http {{ access_log off; \
         sendfile on; keepalive_requests 1000000000; server {{ listen 127.0.0.1:{port}; root {0}/www; \
         location = /v2/ {{ return 200; }} }} }}",
        root.display()
    );
    let path = root.join("nginx.conf");
    fs::write(&path, config).expect("a file");
    let process = Process::start(Command::new(program).arg("-c").arg(&path), &root.join("out"));
    let url = format!("http://127.0.0.1:{port}");
    started(Peer { name: "nginx", process: process.expect("a process"), url, writable: false }).await.into()
}

async fn started(peer: Peer) -> Peer {
    let url = format!("{}/v2/", peer.url);
    wait_for(peer.name, async || reqwest::get(&url).await.ok().map(drop)).await;
    peer
}

const SIZES: [usize; 2] = [4 * 1024 - 1536, 1024 * 1024 - 1536];

fn tag(size: usize) -> String {
    format!("size-{size}")
}

async fn measure(peer: &Peer, arguments: &Arguments, large: &Arc<Vec<u8>>) -> Row {
    eprintln!("measuring {}", peer.name);
    let api = Api::new(&peer.url, Credential::None);
    let mut row = Row::new();
    let mut add = |what: &str, value: String| row.push((what.to_owned(), value));
    let duration = Duration::from_secs(arguments.seconds);
    if peer.writable {
        for size in SIZES {
            api.must_push("bench", &tag(size), &Image::new(size as u64, size)).await;
        }
        let before = cpu(peer);
        let begun = api.post("/v2/bench/blobs/uploads/").await;
        let location = location(&begun);
        let and = if location.contains('?') { '&' } else { '?' };
        let target = format!("{location}{and}digest={}", digest(large));
        let body = large.as_ref().clone();
        let began = Instant::now();
        let pushed = api.request(Method::PUT, &target).body(body).send().await.expect("an answer");
        assert_eq!(pushed.status(), StatusCode::CREATED);
        add("push of the large blob, MiB/s", rate(large.len(), began.elapsed()));
        add("  its CPU-seconds per GiB", per_gib(cpu(peer) - before, large.len()));
        add("  RSS after it, MiB", rss(peer));
        let began = Instant::now();
        push_images(&api, arguments.images).await;
        add("small images pushed per second, 16 at once", per_second(arguments.images, began.elapsed()));
    }
    let manifest = digest(&Image::new(SIZES[0] as u64, SIZES[0]).manifest);
    for (what, reference) in [("manifest by tag", tag(SIZES[0])), ("manifest by digest", manifest)] {
        let (count, mut times) = repeat(&peer.url, &format!("/v2/bench/manifests/{reference}"), duration).await;
        times.sort_unstable();
        add(&format!("{what}, req/s"), per_second(count as u64, duration));
        let at = |share: usize| format!("{:.2}", times[times.len() * share / 100].as_secs_f64() * 1e3);
        add(&format!("  {what}, p50 and p99 in ms"), format!("{}, {}", at(50), at(99)));
    }
    for size in SIZES {
        let layer = digest(&Image::new(size as u64, size).layer);
        let (count, _) = repeat(&peer.url, &format!("/v2/bench/blobs/{layer}"), duration).await;
        add(&format!("blob of {} KiB, MiB/s", (size + 1536) / 1024), rate(count * (size + 1536), duration));
    }
    let (before, began) = (cpu(peer), Instant::now());
    let read = download(&peer.url, &format!("/v2/bench/blobs/{}", digest(large))).await;
    assert_eq!(read, large.len());
    add("large blob, MiB/s", rate(read, began.elapsed()));
    add("  CPU-seconds per GiB", per_gib(cpu(peer) - before, read));
    if peer.writable {
        for tags in [100, arguments.tags] {
            push_tags(&api, tags).await;
            let target = format!("/v2/tags-{tags}/tags/list?n=100");
            let (count, _) = repeat(&peer.url, &target, duration).await;
            add(&format!("first 100 of {tags} tags, req/s"), per_second(count as u64, duration));
        }
    }
    add("RSS in the end, MiB", rss(peer));
    row
}

async fn push_images(api: &Api, images: u64) {
    let next = Arc::new(AtomicUsize::new(0));
    let pushers = (0..AT_ONCE).map(|_| {
        let (api, next) = (api.clone(), Arc::clone(&next));
        tokio::spawn(async move {
            loop {
                let i = next.fetch_add(1, Ordering::Relaxed) as u64;
                if i >= images {
                    break;
                }
                api.must_push("small", &format!("t{i}"), &Image::new(1_000_000 + i, 2000)).await;
            }
        })
    });
    for pusher in pushers.collect::<Vec<_>>() {
        pusher.await.expect("pushed");
    }
}

async fn push_tags(api: &Api, tags: u64) {
    let (repository, image) = (format!("tags-{tags}"), Arc::new(Image::new(5, 100)));
    api.must_push(&repository, "t0", &image).await;
    let next = Arc::new(AtomicUsize::new(1));
    let pushers = (0..AT_ONCE).map(|_| {
        let (api, repository, image, next) = (api.clone(), repository.clone(), Arc::clone(&image), Arc::clone(&next));
        tokio::spawn(async move {
            loop {
                let i = next.fetch_add(1, Ordering::Relaxed) as u64;
                if i >= tags {
                    break;
                }
                let pushed = api.push_manifest(&repository, &format!("t{i}"), &image.manifest).await;
                assert_eq!(pushed.expect("an answer").status(), StatusCode::CREATED);
            }
        })
    });
    for pusher in pushers.collect::<Vec<_>>() {
        pusher.await.expect("pushed");
    }
}

/// Asks for `target` on many connections for `duration`; how often it was answered, and how long each took.
async fn repeat(url: &str, target: &str, duration: Duration) -> (usize, Vec<Duration>) {
    let end = Instant::now() + duration;
    let askers = (0..AT_ONCE).map(|_| {
        let url = format!("{url}{target}");
        tokio::spawn(async move {
            let client = reqwest::Client::new();
            let mut times = Vec::new();
            while Instant::now() < end {
                let began = Instant::now();
                let request = client.get(&url).header(header::ACCEPT, MANIFEST);
                let mut answer = request.send().await.expect("an answer");
                assert_eq!(answer.status(), StatusCode::OK, "{url}");
                while answer.chunk().await.expect("a body").is_some() {}
                times.push(began.elapsed());
            }
            times
        })
    });
    let mut all = Vec::new();
    for asker in askers.collect::<Vec<_>>() {
        all.extend(asker.await.expect("answers"));
    }
    (all.len(), all)
}

async fn download(url: &str, target: &str) -> usize {
    let mut answer = reqwest::get(format!("{url}{target}")).await.expect("an answer");
    let mut read = 0;
    while let Some(chunk) = answer.chunk().await.expect("a body") {
        read += chunk.len();
    }
    read
}

/// The CPU time of the server so far, in seconds (proc(5), `stat`, in ticks of 10 ms).
fn cpu(peer: &Peer) -> f64 {
    let stat = fs::read_to_string(format!("/proc/{}/stat", peer.process.id())).unwrap_or_default();
    let fields: Vec<&str> = stat.rsplit(") ").next().unwrap_or_default().split(' ').collect();
    let ticks = |i: usize| fields.get(i).and_then(|text| text.parse::<f64>().ok()).unwrap_or_default();
    (ticks(11) + ticks(12)) / 100.0
}

fn rss(peer: &Peer) -> String {
    let status = fs::read_to_string(format!("/proc/{}/status", peer.process.id())).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap_or_default();
    let kib: f64 = line.trim().trim_end_matches(" kB").parse().unwrap_or_default();
    format!("{:.1}", kib / 1024.0)
}

fn rate(bytes: usize, time: Duration) -> String {
    format!("{:.0}", bytes as f64 / 1048576.0 / time.as_secs_f64())
}

fn per_second(count: u64, time: Duration) -> String {
    format!("{:.0}", count as f64 / time.as_secs_f64())
}

fn per_gib(seconds: f64, bytes: usize) -> String {
    format!("{:.2}", seconds / (bytes as f64 / 1073741824.0))
}

/// A Markdown table; ratios are to the first column.
fn print(tables: &[(&str, Row)]) {
    let Some((_, first)) = tables.first() else { return };
    let names: Vec<&str> = tables.iter().map(|(name, _)| *name).collect();
    println!("| | {} |\n|---|{}", names.join(" | "), "---|".repeat(names.len()));
    for (what, value) in first {
        let cells = tables.iter().map(|(_, row)| {
            let Some((_, other)) = row.iter().find(|(name, _)| name == what) else { return "–".to_owned() };
            match (value.parse::<f64>(), other.parse::<f64>()) {
                (Ok(ours), Ok(theirs)) if theirs > 0.0 && !std::ptr::eq(value, other) => {
                    format!("{other} (×{:.2})", ours / theirs)
                }
                _ => other.clone(),
            }
        });
        println!("| {what} | {} |", cells.collect::<Vec<_>>().join(" | "));
    }
}
