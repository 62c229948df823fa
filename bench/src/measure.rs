//! The work that is measured, as clients do it.

use std::{
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use http::{Method, StatusCode};
use http_body_util::BodyExt;
use url::Url;

use crate::{
    Error,
    api::Client,
    client::{Asked, Dialer, empty},
    content::{Image, Large, digest},
    credential::Credential,
    load::{Load, repeat},
    report::{Figure, Measured, Settings},
    servers::Servers,
};

/// The layer of small images, and the small blob, in bytes.
const SMALL_BYTES: usize = 4096;

/// What is pulled on many connections at once, in bytes.
const MEDIUM_BYTES: u64 = 16 * 1024 * 1024;

/// How many tags are listed.
const LISTED_TAGS: u64 = 100;

const MIB: f64 = 1_048_576.0;

/// What is measured, and how it is called in tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Work {
    /// One large blob is pushed.
    PushLarge,
    /// One large blob is pulled.
    PullLarge,
    /// A blob is pulled on all connections at once.
    PullAtOnce,
    /// Small images are pushed: two blobs and a manifest each.
    PushImages,
    /// Tags are moved.
    PushManifests,
    /// HEAD of a manifest by its tag.
    HeadManifest,
    /// GET of a manifest by its tag.
    PullManifest,
    /// A blob of 4 KiB is pulled.
    PullSmall,
    /// Tags are listed.
    ListTags,
    /// A small image is pulled over a new connection, from the challenge to its layer.
    ColdPull,
}

impl Work {
    /// All of it, in the order of the table.
    pub const ALL: [Self; 10] = [
        Self::PushLarge,
        Self::PullLarge,
        Self::PullAtOnce,
        Self::PushImages,
        Self::PushManifests,
        Self::HeadManifest,
        Self::PullManifest,
        Self::PullSmall,
        Self::ListTags,
        Self::ColdPull,
    ];

    /// Its name, which stays the same from version to version: two runs are compared by it.
    pub fn name(self) -> &'static str {
        match self {
            Self::PushLarge => "push of a large blob",
            Self::PullLarge => "pull of a large blob",
            Self::PullAtOnce => "pulls of a blob at once",
            Self::PushImages => "small images pushed",
            Self::PushManifests => "tags moved",
            Self::HeadManifest => "HEAD of a manifest by tag",
            Self::PullManifest => "GET of a manifest by tag",
            Self::PullSmall => "GET of a blob of 4 KiB",
            Self::ListTags => "first 100 tags",
            Self::ColdPull => "cold pulls of a small image",
        }
    }

    /// Whether bytes are counted, and not requests.
    fn counts_bytes(self) -> bool {
        matches!(self, Self::PushLarge | Self::PullLarge | Self::PullAtOnce)
    }

    /// In what it is counted; more is better.
    pub fn unit(self) -> &'static str {
        if self.counts_bytes() { "MiB/s" } else { "/s" }
    }

    /// In what the servers' CPU time is counted.
    pub fn cpu_unit(self) -> &'static str {
        if self.counts_bytes() { "s/GiB" } else { "µs each" }
    }
}

/// What is to be measured.
pub struct Plan {
    /// Where the registry is.
    pub url: Url,
    /// How it is reached.
    pub dialer: Dialer,
    /// Who measures.
    pub credential: Credential,
    /// How much, and how often.
    pub settings: Settings,
    /// Which work; all of it as a rule.
    pub works: Vec<Work>,
    /// The servers, if they run on this machine.
    pub servers: Servers,
}

/// Measures what is planned, every work once a round. What was pushed is deleted again, as far as that is allowed.
///
/// # Errors
/// If the registry doesn't do what it is asked.
pub async fn measure(plan: &Plan, progress: impl Fn(Work, usize)) -> Result<Vec<Figure>, Error> {
    let bench = Bench::new(plan).await?;
    let mut figures: Vec<Figure> = plan.works.iter().map(|&work| Figure::new(work)).collect();
    for round in 0..plan.settings.rounds {
        for (work, figure) in plan.works.iter().zip(&mut figures) {
            progress(*work, round);
            let measured = bench.run(*work, round).await.map_err(|error| format!("{}: {error}", work.name()))?;
            figure.rounds.push(measured);
        }
    }
    bench.clear().await;
    Ok(figures)
}

/// One measurement on its way.
struct Bench<'a> {
    plan: &'a Plan,
    /// Seeds that nobody has used before begin here.
    seed: u64,
    next: AtomicU64,
    images: [Image; 2],
    medium: Large,
    /// The digests of manifests that are to be deleted.
    pushed: Mutex<Vec<String>>,
}

impl<'a> Bench<'a> {
    /// Pushes what is pulled later.
    async fn new(plan: &'a Plan) -> Result<Self, Error> {
        let seed = uuid::Uuid::new_v4().as_u64_pair().0;
        let images = [Image::new(seed, SMALL_BYTES), Image::new(seed ^ 1, SMALL_BYTES)];
        let medium = Large::new(seed ^ 2, MEDIUM_BYTES);
        let pushed = images.iter().map(|image| digest(&image.manifest)).collect();
        let bench = Self { plan, seed, next: AtomicU64::new(3), images, medium, pushed: Mutex::new(pushed) };
        let mut client = bench.client().await?;
        for image in &bench.images {
            client.push_image(image, "bench-0").await?;
        }
        if plan.works.contains(&Work::ListTags) {
            for tag in 0..LISTED_TAGS {
                client.push_manifest(&bench.images[0], &format!("bench-list-{tag}")).await?;
            }
        }
        if plan.works.contains(&Work::PullAtOnce) {
            client.push_blob(&bench.medium.digest, bench.medium.len, bench.medium.reader().boxed()).await?;
        }
        Ok(bench)
    }

    fn new_seed(&self) -> u64 {
        self.seed.wrapping_add(self.next.fetch_add(1, Ordering::Relaxed).wrapping_mul(0x9e37_79b9_7f4a_7c15))
    }

    /// The large blob of a round: pushed and pulled in the same one.
    fn large(&self, round: usize) -> Large {
        Large::new(self.seed ^ (1 << 32) ^ round as u64, self.plan.settings.large_mib << 20)
    }

    async fn client(&self) -> Result<Client<'a>, Error> {
        let Plan { url, dialer, credential, settings, .. } = self.plan;
        Client::new(dialer, url, credential, &settings.repository).await
    }

    async fn run(&self, work: Work, round: usize) -> Result<Measured, Error> {
        match work {
            Work::PushLarge => {
                let (large, mut client) = (self.large(round), self.client().await?);
                let (cpu, began) = (self.plan.servers.cpu_seconds(), Instant::now());
                client.push_blob(&large.digest, large.len, large.reader().boxed()).await?;
                Ok(self.bytes(large.len, began.elapsed(), cpu))
            }
            Work::PullLarge => {
                let (large, mut client) = (self.large(round), self.client().await?);
                if !self.plan.works.contains(&Work::PushLarge) {
                    client.push_blob(&large.digest, large.len, large.reader().boxed()).await?;
                }
                let asked = client.blob(Method::GET, &large.digest);
                let (cpu, began) = (self.plan.servers.cpu_seconds(), Instant::now());
                let read = client.connection.read(&asked).await?;
                let measured = self.bytes(read, began.elapsed(), cpu);
                // The disk isn't ours.
                client.delete_blob(&large.digest).await;
                Ok(measured)
            }
            Work::PullAtOnce => {
                let (cpu, asked) =
                    (self.plan.servers.cpu_seconds(), self.client().await?.blob(Method::GET, &self.medium.digest));
                let load = self.repeat(&asked).await?;
                let measured = self.bytes(load.bytes, load.took, cpu);
                Ok(Measured { ms: Some((load.percentile_ms(50), load.percentile_ms(99))), ..measured })
            }
            Work::PushImages => {
                self.at_once(async |bench, client, _| {
                    let image = Image::new(bench.new_seed(), SMALL_BYTES);
                    client.push_image(&image, "bench-1").await?;
                    let digest = digest(&image.manifest);
                    bench.pushed.lock().unwrap_or_else(PoisonError::into_inner).push(digest);
                    Ok(())
                })
                .await
            }
            Work::PushManifests => {
                self.at_once(async |bench, client, count| {
                    let tag = format!("bench-moved-{}", count % 64);
                    client.push_manifest(&bench.images[usize::from(bench.new_seed() % 2 == 0)], &tag).await
                })
                .await
            }
            Work::HeadManifest => self.requests(|client| client.manifest(Method::HEAD, "bench-0")).await,
            Work::PullManifest => self.requests(|client| client.manifest(Method::GET, "bench-0")).await,
            Work::PullSmall => self.requests(|client| client.blob(Method::GET, &digest(&self.images[0].layer))).await,
            Work::ListTags => {
                let target = format!("/v2/{}/tags/list?n={LISTED_TAGS}", self.plan.settings.repository);
                self.requests(|client| client.shown(Asked::new(Method::GET, target))).await
            }
            Work::ColdPull => {
                self.at_once(async |bench, client, _| {
                    *client = bench.client().await?;
                    let image = &bench.images[0];
                    let manifest = client.manifest(Method::GET, &digest(&image.manifest));
                    let blobs = [&image.config, &image.layer].map(|bytes| client.blob(Method::GET, &digest(bytes)));
                    for asked in [manifest].iter().chain(&blobs) {
                        client.connection.read(asked).await?;
                    }
                    Ok(())
                })
                .await
            }
        }
    }

    fn duration(&self) -> Duration {
        Duration::from_secs(self.plan.settings.seconds)
    }

    async fn repeat(&self, asked: &Asked) -> Result<Load, Error> {
        let Plan { url, dialer, settings, .. } = self.plan;
        repeat(dialer, url, asked, settings.connections, self.duration()).await
    }

    async fn requests(&self, asked: impl FnOnce(&Client<'_>) -> Asked) -> Result<Measured, Error> {
        let asked = asked(&self.client().await?);
        let cpu = self.plan.servers.cpu_seconds();
        let load = self.repeat(&asked).await?;
        Ok(self.counted(&load, cpu))
    }

    /// Does `work` on all connections until the time is over. It is told how often it has been done.
    async fn at_once(
        &self,
        work: impl AsyncFn(&Self, &mut Client<'a>, u64) -> Result<(), Error>,
    ) -> Result<Measured, Error> {
        let mut clients = Vec::new();
        for _ in 0..self.plan.settings.connections {
            clients.push(self.client().await?);
        }
        let (cpu, began, count) = (self.plan.servers.cpu_seconds(), Instant::now(), AtomicU64::new(0));
        let workers = clients.into_iter().map(async |mut client| {
            let mut times = Vec::new();
            while began.elapsed() < self.duration() {
                let began = Instant::now();
                work(self, &mut client, count.fetch_add(1, Ordering::Relaxed)).await?;
                times.push(began.elapsed());
            }
            Ok::<_, Error>(times)
        });
        let times = futures_util::future::try_join_all(workers).await?;
        let mut load = Load { times: times.concat(), bytes: 0, took: began.elapsed() };
        load.times.sort_unstable();
        Ok(self.counted(&load, cpu))
    }

    /// What the servers' CPU time was since `before`, for so much work.
    fn cpu(&self, before: f64, work: f64) -> Option<f64> {
        self.plan.servers.are_known().then(|| (self.plan.servers.cpu_seconds() - before) / work)
    }

    fn bytes(&self, bytes: u64, took: Duration, cpu: f64) -> Measured {
        let mib = bytes as f64 / MIB;
        Measured { value: mib / took.as_secs_f64(), ms: None, cpu: self.cpu(cpu, mib / 1024.0), rss_mib: self.rss() }
    }

    fn counted(&self, load: &Load, cpu: f64) -> Measured {
        let ms = Some((load.percentile_ms(50), load.percentile_ms(99)));
        Measured { value: load.rate(), ms, cpu: self.cpu(cpu, load.times.len() as f64 / 1e6), rss_mib: self.rss() }
    }

    fn rss(&self) -> Option<f64> {
        self.plan.servers.are_known().then(|| self.plan.servers.rss_mib())
    }

    /// Deletes the manifests; blobs that nothing names are garbage then.
    async fn clear(&self) {
        let Ok(mut client) = self.client().await else { return };
        let pushed = std::mem::take(&mut *self.pushed.lock().unwrap_or_else(PoisonError::into_inner));
        for digest in pushed {
            let asked = client.manifest(Method::DELETE, &digest);
            if client.connection.expect(&asked, empty(), &[StatusCode::ACCEPTED]).await.is_err() {
                break; // It isn't allowed, say.
            }
        }
        client.delete_blob(&self.medium.digest).await;
    }
}
