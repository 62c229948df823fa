//! Three pods behind a load balancer, with one database and one bucket, all of them real: rolled one after the other and then
//! killed at random, while clients push and pull, people sign in, and keys are revoked.
//!
//! `BERTH_REHEARSAL_SECONDS` is for how long they are killed: 20 as a rule, 600 before a release.

use std::{
    collections::BTreeMap,
    fmt::Write,
    fs,
    path::{Path, PathBuf},
    process::Command,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use berth_tests::{
    api::{Api, Credential},
    bucket::{Bucket, driver},
    images::{Image, digest},
    person::Person,
    postgres::Postgres,
    process::{Process, free_port, wait_for},
    system::{CLIENT_ID, CLIENT_SECRET, answers, demonstration_rules, serve_with, stand_in},
    tools::find,
};
use futures_util::future::join_all;
use reqwest::{Client, Response, StatusCode, redirect::Policy};
use serde_json::{Value, json};
use tokio::{
    process::Command as AsyncCommand,
    task::{JoinHandle, LocalSet, spawn_local},
    time::sleep,
};

const PODS: usize = 3;

/// How often a client tries again, and how long it waits first; twice as long each time, as docker's and skopeo's do.
const ATTEMPTS: u32 = 8;
const FIRST_WAIT: Duration = Duration::from_millis(200);

/// How soon a revocation is seen everywhere.
const REVOKED_WITHIN: Duration = Duration::from_secs(5);

/// A registry and the proxy in front of it.
struct Pod {
    folder: PathBuf,
    url: String,
    registry: Process,
    proxy: Process,
}

impl Pod {
    fn start(name: &str, folder: &Path) -> Process {
        serve_with(name, &folder.join("config.json"), &folder.join(format!("{name}.log")))
    }

    fn restart(&mut self, is_proxy: bool) {
        let (name, process) =
            if is_proxy { ("berth-proxy", &mut self.proxy) } else { ("berth-registry", &mut self.registry) };
        *process = Self::start(name, &self.folder);
    }

    async fn ready(&self) {
        answers(&format!("{}/readyz", self.url)).await;
    }

    fn knew_from_memory(&self) -> bool {
        self.proxy.printed().contains("a credential is taken from memory")
    }
}

struct Rehearsal {
    url: String,
    pods: Vec<Pod>,
    _balancer: Process,
    _stand_in: Process,
    _bucket: Bucket,
    _postgres: Postgres,
    folder: tempfile::TempDir,
}

impl Rehearsal {
    async fn start() -> Option<Self> {
        let haproxy = find("haproxy")?;
        let folder = tempfile::tempdir().unwrap();
        let postgres = Postgres::start(&folder.path().join("postgres")).await?;
        postgres.sql("postgres", "CREATE DATABASE berth");
        let bucket = Bucket::start(folder.path()).await?;
        let (port, provider) = (free_port(), free_port());
        let url = format!("http://localhost:{port}");
        let stand_in = stand_in(folder.path(), provider, &url);
        let issuer = format!("http://localhost:{provider}/application/o/berth/");
        answers(&format!("{issuer}.well-known/openid-configuration")).await;
        let credentials = folder.path().join("credentials.json");
        fs::write(&credentials, json!({"clientid": CLIENT_ID, "clientsecret": CLIENT_SECRET}).to_string()).unwrap();
        let mut pods = Vec::new();
        let mut servers = String::new();
        for i in 0..PODS {
            let files = folder.path().join(format!("pod-{i}"));
            fs::create_dir(&files).unwrap();
            let own = free_port();
            let config = json!({
                "http": {
                    "address": "127.0.0.1", "port": own.to_string(), "externalUrl": url,
                    "auth": {"openid": {"providers": {"oidc": {
                        "credentialsFile": credentials, "issuer": issuer, "keypath": "",
                        "scopes": ["openid", "profile", "email"], "claimMapping": {"username": "preferred_username"},
                    }}}},
                    "accessControl": demonstration_rules(),
                },
                "storage": {"storageDriver": driver(&bucket.endpoint), "gcDelay": "10m"},
                "log": {"level": "info"},
                "sidecar": {
                    "upstream": format!("unix:{}", files.join("registry.sock").display()),
                    "database": postgres.url("berth"), "secretFile": folder.path().join("secret"),
                    "trustedProxies": ["127.0.0.1"],
                },
            });
            fs::write(files.join("config.json"), config.to_string()).unwrap();
            let [registry, proxy] = ["berth-registry", "berth-proxy"].map(|name| Pod::start(name, &files));
            writeln!(servers, "  server pod{i} 127.0.0.1:{own}").unwrap();
            pods.push(Pod { folder: files, url: format!("http://localhost:{own}"), registry, proxy });
        }
        for pod in &pods {
            pod.ready().await;
        }
        let config = format!(
            "global\n  maxconn 2000\ndefaults\n  mode http\n  timeout connect 2s\n  timeout client 60s\n  timeout server 60s\n  \
             option forwardfor\n  option redispatch 1\n  retries 6\n  \
             retry-on conn-failure empty-response response-timeout 502 503 504\nfrontend door\n  bind 127.0.0.1:{port}\n  \
             http-request disable-l7-retry if METH_POST\n  http-request disable-l7-retry if {{ method PATCH }}\n  \
             default_backend pods\nbackend pods\n  balance roundrobin\n  option httpchk GET /readyz\n  \
             default-server check inter 300ms fall 1 rise 1\n{servers}"
        );
        let path = folder.path().join("haproxy.cfg");
        fs::write(&path, config).unwrap();
        let mut command = Command::new(haproxy);
        let balancer = Process::start(command.arg("-db").arg("-f").arg(&path), &folder.path().join("haproxy.log"));
        answers(&format!("{url}/readyz")).await;
        let (balancer, bucket, postgres, stand_in) = (balancer.unwrap(), bucket, postgres, stand_in);
        Some(Self { url, pods, _balancer: balancer, _stand_in: stand_in, _bucket: bucket, _postgres: postgres, folder })
    }

    /// Stops and starts each process in turn, as an update does.
    async fn roll(&mut self) {
        for pod in &mut self.pods {
            for is_proxy in [true, false] {
                let process = if is_proxy { &mut pod.proxy } else { &mut pod.registry };
                assert!(Command::new("kill").arg(process.id().to_string()).status().unwrap().success());
                wait_for("the end of a process", async || process.has_ended().then_some(())).await;
                pod.restart(is_proxy);
                pod.ready().await;
            }
        }
    }

    /// Kills the processes of each pod at random, and starts them again.
    async fn kill_for(&mut self, time: Duration) -> u64 {
        let end = Instant::now() + time;
        let killing = self.pods.drain(..).enumerate().map(|(i, mut pod)| {
            spawn_local(async move {
                let (mut random, mut killed) = (Random(i as u64 + 1), 0);
                while Instant::now() < end {
                    sleep(Duration::from_millis(1000 + random.below(3000))).await;
                    let is_proxy = random.below(2) == 0;
                    let process = if is_proxy { &mut pod.proxy } else { &mut pod.registry };
                    process.kill();
                    killed += 1;
                    sleep(Duration::from_millis(random.below(1000))).await;
                    pod.restart(is_proxy);
                    pod.ready().await;
                }
                (pod, killed)
            })
        });
        let mut killed = 0;
        for killing in killing.collect::<Vec<_>>() {
            let (pod, of_pod) = killing.await.unwrap();
            self.pods.push(pod);
            killed += of_pod;
        }
        killed
    }
}

/// Chance that can be repeated (xorshift64*).
struct Random(u64);

impl Random {
    fn below(&mut self, most: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) % most
    }
}

/// What the clients have seen.
#[derive(Default)]
struct Seen {
    has_ended: AtomicBool,
    /// How often each thing was done, how often it was tried again, and how long it took at most.
    done: Mutex<BTreeMap<&'static str, (u64, u64, Duration)>>,
    /// What was not done, though a client tried again.
    failures: Mutex<Vec<String>>,
    /// The images that were acknowledged: tag and seed.
    images: Mutex<Vec<(String, u64)>>,
    /// How late a revoked key was still taken, at most.
    latest: Mutex<Duration>,
}

/// Why something has to be tried again, or never works.
enum Failed {
    Again(String),
    Never(String),
}

impl From<reqwest::Error> for Failed {
    fn from(error: reqwest::Error) -> Self {
        Self::Again(error.to_string())
    }
}

/// An answer that is meant, or why it isn't.
async fn meant(answer: Response, status: StatusCode) -> Result<Response, Failed> {
    let is = answer.status();
    if is == status {
        return Ok(answer);
    }
    let what = format!("{} {is}", answer.url());
    let text = format!("{what}: {}", answer.text().await.unwrap_or_default());
    let again = is.is_server_error() || is == StatusCode::TOO_MANY_REQUESTS;
    Err(if again { Failed::Again(text) } else { Failed::Never(text) })
}

impl Seen {
    fn goes_on(&self) -> bool {
        !self.has_ended.load(Ordering::Relaxed)
    }

    /// Does something as clients do it: again, if it fails for a while.
    async fn again<T>(&self, what: &'static str, work: impl AsyncFn() -> Result<T, Failed>) -> Option<T> {
        let began = Instant::now();
        let mut retries = 0;
        loop {
            let failure = match work().await {
                Ok(done) => {
                    let mut all = self.done.lock().unwrap_or_else(PoisonError::into_inner);
                    let (count, again, longest) = all.entry(what).or_default();
                    (*count, *again, *longest) = (*count + 1, *again + retries, began.elapsed().max(*longest));
                    return Some(done);
                }
                Err(Failed::Again(why)) if u64::from(ATTEMPTS) <= retries => why,
                Err(Failed::Again(_)) => {
                    sleep(FIRST_WAIT * 2_u32.pow(u32::try_from(retries).unwrap().min(5))).await;
                    retries += 1;
                    continue;
                }
                Err(Failed::Never(why)) => why,
            };
            self.failures.lock().unwrap_or_else(PoisonError::into_inner).push(format!("{what}: {failure}"));
            return None;
        }
    }

    /// One of the images that were acknowledged.
    fn image(&self, random: &mut Random) -> Option<(String, u64)> {
        let images = self.images.lock().unwrap_or_else(PoisonError::into_inner);
        let at = random.below(images.len().max(1) as u64);
        images.get(usize::try_from(at).unwrap()).cloned()
    }
}

fn image_of(seed: u64) -> Image {
    Image::new(seed, 200_000 + usize::try_from(seed % 7).unwrap() * 100_000)
}

async fn push(seen: Arc<Seen>, api: Api, next: Arc<AtomicU64>) {
    while seen.goes_on() {
        let seed = next.fetch_add(1, Ordering::Relaxed);
        let (image, tag) = (image_of(seed), format!("t{seed}"));
        for bytes in [&image.layer, &image.config] {
            let pushed = seen.again("blobs pushed", async || {
                match meant(api.push_blob("ci/app", bytes).await?, StatusCode::CREATED).await {
                    // An upload that broke off is begun anew.
                    Err(Failed::Never(why)) if why.contains("BLOB_UPLOAD") => Err(Failed::Again(why)),
                    pushed => pushed,
                }
            });
            if pushed.await.is_none() {
                return;
            }
        }
        let pushed = seen.again("manifests pushed", async || {
            meant(api.push_manifest("ci/app", &tag, &image.manifest).await?, StatusCode::CREATED).await
        });
        if pushed.await.is_some() {
            seen.images.lock().unwrap_or_else(PoisonError::into_inner).push((tag, seed));
        }
    }
}

async fn pull(seen: Arc<Seen>, api: Api, seed: u64) {
    let mut random = Random(seed);
    while seen.goes_on() {
        match seen.image(&mut random) {
            Some((tag, seed)) => drop(pull_one(&seen, &api, &tag, seed, "images pulled").await),
            None => sleep(Duration::from_millis(50)).await,
        }
    }
}

async fn pull_one(seen: &Seen, api: &Api, tag: &str, seed: u64, what: &'static str) -> Option<()> {
    let image = image_of(seed);
    let pulled = seen.again(what, async || {
        let asked = api.request(reqwest::Method::GET, &format!("/v2/ci/app/manifests/{tag}")).send().await?;
        let manifest = meant(asked, StatusCode::OK).await?.bytes().await?;
        let asked = api.request(reqwest::Method::GET, &format!("/v2/ci/app/blobs/{}", digest(&image.layer)));
        let layer = meant(asked.send().await?, StatusCode::OK).await?.bytes().await?;
        let is_it = manifest == image.manifest && layer == image.layer;
        if is_it { Ok(()) } else { Err(Failed::Never(format!("{tag} is another image"))) }
    });
    pulled.await
}

/// Somebody signs in, and is signed in at every request after.
async fn sign_in(seen: Arc<Seen>, url: String) {
    while seen.goes_on() {
        let person = Person::with(&url, Client::builder());
        let home = seen.again("sign-ins", async || {
            let form = person.http.get(format!("{url}/zot/auth/login?provider=oidc&callback_ui=/")).send().await?;
            let address = form.url().clone();
            let next = address.query_pairs().find(|(name, _)| name == "next").map(|(_, next)| next.into_owned());
            let home = match next {
                None => form,
                Some(next) => {
                    let fields = [("username", "alice"), ("password", "alice"), ("next", &next)];
                    person.http.post(address).form(&fields).send().await?
                }
            };
            let text = meant(home, StatusCode::OK).await?.text().await?;
            let is_in = text.contains("Signed in as alice");
            if is_in { Ok(()) } else { Err(Failed::Again("nobody is signed in".to_owned())) }
        });
        if home.await.is_none() {
            return;
        }
        for _ in 0..5 {
            seen.again("pages of a session", async || {
                let page = meant(person.http.get(&url).send().await?, StatusCode::OK).await?.text().await?;
                let is_in = page.contains("Signed in as alice");
                if is_in { Ok(()) } else { Err(Failed::Never("the session was lost".to_owned())) }
            })
            .await;
            sleep(Duration::from_millis(200)).await;
        }
    }
}

/// Keys are made, used at every pod, revoked, and then refused by every pod.
async fn revoke(seen: Arc<Seen>, person: Arc<Person>, url: String, pods: Vec<String>) {
    while seen.goes_on() {
        let address = format!("{url}/zot/auth/apikey");
        let made = seen.again("keys made", async || {
            let asked = person.http.post(&address).json(&json!({"label": "rehearsal"})).send().await?;
            Ok(meant(asked, StatusCode::CREATED).await?.json::<Value>().await?)
        });
        let Some(made) = made.await else { return };
        let (key, id) = (made["apiKey"].as_str().unwrap(), made["uuid"].as_str().unwrap());
        let stay = Client::builder().redirect(Policy::none()).build().unwrap();
        let apis: Vec<Api> = pods
            .iter()
            .map(|pod| Api::over(pod, stay.clone(), Credential::Basic("alice".to_owned(), key.to_owned())))
            .collect();
        for api in &apis {
            seen.again("uses of a new key", async || {
                meant(api.request(reqwest::Method::GET, "/v2/").send().await?, StatusCode::OK).await.map(drop)
            })
            .await;
        }
        let revoked = seen.again("keys revoked", async || {
            let asked = person.http.delete(format!("{address}?id={id}"));
            let answer = asked.header("content-type", "application/json").send().await?;
            // The answer to the first attempt may have been lost.
            if answer.status() == StatusCode::NOT_FOUND {
                Ok(())
            } else {
                meant(answer, StatusCode::OK).await.map(drop)
            }
        });
        if revoked.await.is_none() {
            return;
        }
        let at = Instant::now();
        for api in &apis {
            let mut refused = false;
            while !refused && at.elapsed() < REVOKED_WITHIN * 4 {
                let asked = Instant::now();
                match api.request(reqwest::Method::GET, "/v2/").send().await {
                    Ok(answer) if answer.status() == StatusCode::OK => {
                        let mut latest = seen.latest.lock().unwrap_or_else(PoisonError::into_inner);
                        *latest = asked.duration_since(at).max(*latest);
                    }
                    Ok(answer) => refused = answer.status() == StatusCode::UNAUTHORIZED,
                    Err(_) => {} // It is being killed.
                }
                sleep(Duration::from_millis(50)).await;
            }
        }
    }
}

/// A real client, which tries again by itself.
async fn skopeo(seen: Arc<Seen>, folder: PathBuf, registry: String, credentials: String) {
    let layout = folder.join("layout");
    Image::new(1 << 40, 300_000).write_layout(&layout, "1");
    for round in 0.. {
        if !seen.goes_on() {
            return;
        }
        for (what, from, to) in [
            (
                "skopeo's pushes",
                format!("oci:{}:1", layout.display()),
                format!("docker://{registry}/ci/skopeo:{round}"),
            ),
            (
                "skopeo's pulls",
                format!("docker://{registry}/ci/skopeo:{round}"),
                format!("dir:{}", folder.join("out").display()),
            ),
        ] {
            seen.again(what, async || {
                let mut command = AsyncCommand::new("skopeo");
                command.args(["copy", "--retry-times", "5", "--src-tls-verify=false", "--dest-tls-verify=false"]);
                let side = if what.ends_with("pushes") { "--dest-creds" } else { "--src-creds" };
                command.args([side, &credentials, &from, &to]).kill_on_drop(true);
                let output = command.output().await.map_err(|error| Failed::Never(error.to_string()))?;
                let text = String::from_utf8_lossy(&output.stderr).into_owned();
                // It tries again by itself if a connection breaks; whoever runs it does, if it gives up.
                if output.status.success() { Ok(()) } else { Err(Failed::Again(text)) }
            })
            .await;
        }
    }
}

#[tokio::test]
async fn pods_are_rolled_and_killed_while_clients_work_and_nothing_is_lost() {
    LocalSet::new().run_until(rehearse()).await;
}

async fn rehearse() {
    let Some(mut rehearsal) = Rehearsal::start().await else { return };
    let seconds = std::env::var("BERTH_REHEARSAL_SECONDS").ok().and_then(|text| text.parse().ok()).unwrap_or(20);
    let (url, seen) = (rehearsal.url.clone(), Arc::<Seen>::default());
    let person = Arc::new(Person::signed_in(&url, "alice").await);
    let (key, _) = person.make_key("rehearsal").await;
    let api = || Api::basic(&url, "alice", &key);
    let next = Arc::new(AtomicU64::new(1));
    let mut workers: Vec<JoinHandle<()>> = Vec::new();
    for i in 0..3 {
        workers.push(spawn_local(push(Arc::clone(&seen), api(), Arc::clone(&next))));
        workers.push(spawn_local(pull(Arc::clone(&seen), api(), i + 1)));
    }
    workers.push(spawn_local(sign_in(Arc::clone(&seen), url.clone())));
    let pods = rehearsal.pods.iter().map(|pod| pod.url.clone()).collect();
    workers.push(spawn_local(revoke(Arc::clone(&seen), person, url.clone(), pods)));
    if find("skopeo").is_some() {
        let registry = url.trim_start_matches("http://").to_owned();
        let folder = rehearsal.folder.path().to_owned();
        workers.push(spawn_local(skopeo(Arc::clone(&seen), folder, registry, format!("alice:{key}"))));
    }
    wait_for("the first images", async || (seen.images.lock().unwrap().len() > 3).then_some(())).await;

    rehearsal.roll().await;
    // Nobody has noticed.
    let failed = seen.failures.lock().unwrap().clone();
    assert!(failed.is_empty(), "{failed:#?}");
    let retried: u64 = seen.done.lock().unwrap().values().map(|(_, again, _)| again).sum();
    let rolled = format!("rolled; {retried} requests were tried again\n");
    let killed = rehearsal.kill_for(Duration::from_secs(seconds)).await;
    seen.has_ended.store(true, Ordering::Relaxed);
    for worker in workers {
        worker.await.unwrap();
    }
    // What was acknowledged is there, at every pod.
    let images = seen.images.lock().unwrap().clone();
    let looks = rehearsal.pods.iter().map(async |pod| {
        let api = Api::basic(&pod.url, "alice", &key);
        for (tag, seed) in &images {
            pull_one(&seen, &api, tag, *seed, "images looked for in the end").await;
        }
    });
    join_all(looks).await;
    let mut table = format!(
        "{rolled}{killed} kills in {seconds} s\n| what | done | tried again | longest, s |\n|---|---|---|---|\n"
    );
    for (what, (count, again, longest)) in &*seen.done.lock().unwrap() {
        writeln!(table, "| {what} | {count} | {again} | {:.1} |", longest.as_secs_f64()).unwrap();
    }
    let latest = *seen.latest.lock().unwrap();
    println!("{table}a revoked key was taken for {:.1} s at most", latest.as_secs_f64());
    let failures = seen.failures.lock().unwrap();
    assert!(failures.is_empty(), "{failures:#?}\n{table}");
    // Who can't ask the database for a moment goes on with what was known, and says so.
    let limit = if rehearsal.pods.iter().any(Pod::knew_from_memory) { 3 * REVOKED_WITHIN } else { REVOKED_WITHIN };
    assert!(latest <= limit, "{latest:?}");
}
