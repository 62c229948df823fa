//! What lists show of repositories and tags, kept so that nobody reads the store for it: sizes, platforms, when something was
//! pushed by whom, when it was pulled and how often.
//!
//! What changes is only noted, by name, and found out when somebody asks or a minute has passed; so a push or a pull writes
//! nothing for it. What is known is written down beside the repository. A process that is killed loses a minute of counted
//! pulls, and nothing else: what was written down is compared with what is stored before it is believed.

mod answers;
mod describe;
mod record;
mod version;

use std::{
    collections::{HashMap, HashSet},
    io,
    sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard},
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use berth_oci::{Digest, Error, Repository, Tag, Totals};
use futures_util::{StreamExt, TryStreamExt, stream};
use http::StatusCode;
use moka::sync::Cache;
use tokio::sync::{Notify, Semaphore};

use self::record::{News, Overview, Snapshot};
use super::{Content, manifests::CHECK_CONCURRENCY, storage_error};
use crate::storage::keys;

/// How much memory the overviews may take that were asked for lately, in bytes, about.
const MAX_CACHE_BYTES: u64 = 48 * 1024 * 1024;

/// For how long they are kept that nobody asks for.
const CACHE_IDLE: Duration = Duration::from_mins(10);

/// A repository with more tags, manifests and blobs together has no overview.
const MAX_THINGS: usize = 1_500_000;

/// How many repositories' totals are kept, and for how long where others push as well.
const MAX_KEPT_TOTALS: u64 = 20_000;
const TOTALS_LIFETIME: Duration = Duration::from_mins(1);

/// How many names of changes are held before they are looked at, and at most: then it is compared what there is.
const LOOK_AT_CHANGES: usize = 20_000;
const MAX_CHANGES: usize = 100_000;

/// How many overviews are found out at once.
const COMPARE_CONCURRENCY: usize = 2;

/// Where others push as well, how old an overview may be.
const SHARED_LIFETIME: Duration = Duration::from_secs(15);

/// What was written so long before an overview may have been written after: clocks differ.
const CLOCK_SLACK: Duration = Duration::from_mins(5);

/// How long the changes of a crowd are gathered at least, before they are looked at.
const LOOK_PAUSE: Duration = Duration::from_secs(1);

/// How often what has changed is written down; for each so many things an overview waits as long again.
const SAVE_INTERVAL: Duration = Duration::from_mins(1);
const THINGS_PER_INTERVAL: usize = 20_000;

/// What has changed in a repository, by name.
#[derive(Debug, Default)]
struct Changes {
    tags: HashSet<String>,
    manifests: HashSet<Digest>,
    blobs: HashSet<Digest>,
    pulls: HashMap<Digest, (u64, u64)>,
    /// There were more changes than are held.
    more: bool,
}

impl Changes {
    fn len(&self) -> usize {
        self.tags.len() + self.manifests.len() + self.blobs.len() + self.pulls.len()
    }

    fn is_empty(&self) -> bool {
        self.len() == 0 && !self.more
    }

    fn add(&mut self, others: Self) {
        self.tags.extend(others.tags);
        self.manifests.extend(others.manifests);
        self.blobs.extend(others.blobs);
        for (digest, (count, at)) in others.pulls {
            let known = self.pulls.entry(digest).or_default();
            *known = (known.0 + count, known.1.max(at));
        }
        self.more |= others.more;
    }
}

#[derive(Default)]
struct Noted {
    changes: HashMap<Repository, Changes>,
    /// How many names there are in all of them, about.
    len: usize,
    /// What is known and not written down, and since when.
    unsaved: HashMap<Repository, (Instant, Known)>,
}

/// What is known of one repository, while somebody looks.
pub(super) type Known = Arc<RwLock<Overview>>;

/// Changes that are being looked at. Who gives up puts them back.
struct Taken<'a> {
    overviews: &'a Overviews,
    repository: &'a Repository,
    changes: Changes,
}

impl Drop for Taken<'_> {
    fn drop(&mut self) {
        let changes = std::mem::take(&mut self.changes);
        if !changes.is_empty() {
            self.overviews.note(self.repository, |noted| noted.add(changes));
        }
    }
}

/// All overviews.
pub struct Overviews {
    noted: Mutex<Noted>,
    kept: Cache<Repository, Known>,
    totals: Cache<Repository, Totals>,
    comparing: Semaphore,
    /// Since when pulls are noted, in seconds since 1970.
    started: u64,
    /// There are many changes.
    many: Notify,
}

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}

fn read(known: &Known) -> RwLockReadGuard<'_, Overview> {
    known.read().unwrap_or_else(PoisonError::into_inner)
}

impl Overviews {
    /// None yet; whether others push here as well.
    pub fn new(is_shared: bool) -> Self {
        let weigh = |_: &Repository, known: &Known| u32::try_from(read(known).weight()).unwrap_or(u32::MAX);
        let kept = Cache::builder().max_capacity(MAX_CACHE_BYTES).weigher(weigh).time_to_idle(CACHE_IDLE).build();
        let totals = Cache::builder().max_capacity(MAX_KEPT_TOTALS);
        let totals = if is_shared { totals.time_to_live(TOTALS_LIFETIME).build() } else { totals.build() };
        Self {
            noted: Mutex::default(),
            kept,
            totals,
            comparing: Semaphore::new(COMPARE_CONCURRENCY),
            started: now(),
            many: Notify::new(),
        }
    }

    fn noted(&self) -> MutexGuard<'_, Noted> {
        self.noted.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn note(&self, repository: &Repository, note: impl FnOnce(&mut Changes)) {
        let mut noted = self.noted();
        let changes = match noted.changes.get_mut(repository) {
            Some(changes) => changes,
            None => noted.changes.entry(repository.clone()).or_default(),
        };
        let before = changes.len();
        note(changes);
        let added = changes.len().saturating_sub(before);
        if changes.len() > MAX_CHANGES {
            *changes = Changes { more: true, ..Changes::default() };
        }
        noted.len += added;
        if noted.len >= LOOK_AT_CHANGES {
            self.many.notify_one();
        }
    }

    /// A tag was set or taken away.
    pub fn tag_changed(&self, repository: &Repository, tag: &str) {
        self.note(repository, |changes| {
            changes.tags.insert(tag.to_owned());
        });
    }

    /// A manifest was pushed or deleted.
    pub fn manifest_changed(&self, repository: &Repository, digest: &Digest) {
        self.note(repository, |changes| {
            changes.manifests.insert(digest.clone());
        });
    }

    /// A repository holds a blob, or holds it no more.
    pub fn blob_changed(&self, repository: &Repository, digest: &Digest) {
        self.note(repository, |changes| {
            changes.blobs.insert(digest.clone());
        });
    }

    /// Something may have changed, it isn't known what.
    pub fn changed(&self, repository: &Repository) {
        self.note(repository, |changes| changes.more = true);
    }

    /// A manifest was pulled.
    pub fn pulled(&self, repository: &Repository, digest: &Digest) {
        let now = now();
        self.note(repository, |changes| {
            let (count, at) = changes.pulls.entry(digest.clone()).or_default();
            (*count, *at) = (*count + 1, now);
        });
    }

    fn take<'a>(&'a self, repository: &'a Repository) -> Taken<'a> {
        let mut noted = self.noted();
        let changes = noted.changes.remove(repository).unwrap_or_default();
        noted.len = if noted.changes.is_empty() { 0 } else { noted.len.saturating_sub(changes.len()) };
        Taken { overviews: self, repository, changes }
    }

    fn kept(&self, repository: &Repository) -> Option<Known> {
        let unsaved = || self.noted().unsaved.get(repository).map(|(_, known)| Arc::clone(known));
        self.kept.get(repository).or_else(unsaved)
    }

    fn has_changes(&self, repository: &Repository) -> bool {
        self.noted().changes.contains_key(repository)
    }
}

impl Content {
    /// What is known of a repository that exists; nothing, if it is too large.
    pub(super) async fn overview(&self, repository: &Repository) -> io::Result<Option<Known>> {
        let overviews = &self.overviews;
        let _reading = self.reading.alone(repository).await;
        let kept = overviews.kept(repository);
        if let Some(known) = &kept
            && !overviews.has_changes(repository)
            && !(self.is_shared() && read(known).compared_at + SHARED_LIFETIME.as_secs() < now())
        {
            return Ok(kept);
        }
        let mut taken = overviews.take(repository);
        let Changes { tags, manifests, blobs, more, .. } = &taken.changes;
        let found = match kept {
            Some(known) if !more && !self.is_shared() => {
                let news = self.look(repository, tags.iter().cloned(), manifests.iter(), blobs.iter()).await?;
                Some((known, news))
            }
            kept => self.compare(repository, kept).await?,
        };
        let changes = std::mem::take(&mut taken.changes);
        let Some((known, mut news)) = found else { return Ok(None) };
        news.pulls = changes.pulls.into_iter().map(|(digest, (count, at))| (digest, count, at)).collect();
        let is_new = !news.is_empty();
        let totals = {
            let mut overview = known.write().unwrap_or_else(PoisonError::into_inner);
            overview.apply(news);
            overview.totals()
        };
        overviews.totals.insert(repository.clone(), totals);
        overviews.kept.insert(repository.clone(), Arc::clone(&known));
        if is_new {
            let unsaved = || (Instant::now(), Arc::clone(&known));
            overviews.noted().unsaved.entry(repository.clone()).or_insert_with(unsaved);
        }
        Ok(Some(known))
    }

    /// Looks at what has changed.
    async fn look<'a>(
        &self,
        repository: &Repository,
        tags: impl Iterator<Item = String>,
        manifests: impl Iterator<Item = &'a Digest>,
        blobs: impl Iterator<Item = &'a Digest>,
    ) -> io::Result<News> {
        let tags = stream::iter(tags).map(async |name| {
            let target = match name.parse::<Tag>() {
                Ok(tag) => self.read_tag(repository, &tag).await?,
                Err(_) => None, // None of ours.
            };
            Ok::<_, io::Error>((name, target))
        });
        let manifests = stream::iter(manifests.cloned())
            .map(async |digest| Ok::<_, io::Error>((self.describe(repository, &digest).await?, digest)));
        let blobs = stream::iter(blobs.cloned()).map(async |digest| {
            let held = self.storage.exists(&keys::held_blob(repository, &digest)).await?;
            let len = if held { self.storage.blob_len(&digest).await? } else { None };
            Ok::<_, io::Error>((digest, len))
        });
        let manifests: Vec<_> = manifests.buffer_unordered(CHECK_CONCURRENCY).try_collect().await?;
        Ok(News {
            tags: tags.buffer_unordered(CHECK_CONCURRENCY).try_collect().await?,
            manifests: manifests.into_iter().map(|(description, digest)| (digest, description)).collect(),
            blobs: blobs.buffer_unordered(CHECK_CONCURRENCY).try_collect().await?,
            pulls: Vec::new(),
        })
    }

    /// Compares what is known, or was written down, with what is stored, and looks at what differs.
    async fn compare(&self, repository: &Repository, kept: Option<Known>) -> io::Result<Option<(Known, News)>> {
        let _comparing = self.overviews.comparing.acquire().await.map_err(io::Error::other)?;
        let began = now();
        let known = match kept {
            Some(known) => known,
            None => {
                let written = self.written(repository).await?;
                // What was pulled since the start is noted.
                let since = self.overviews.started;
                Arc::new(RwLock::new(written.unwrap_or_else(|| Overview::counted_since(since))))
            }
        };
        // A clock that was set back tells nothing of what is old.
        let compared_at = Some(read(&known).compared_at).filter(|at| *at <= began).unwrap_or_default();
        let age = Duration::from_secs(began.saturating_sub(compared_at)) + CLOCK_SLACK;
        let folder = keys::tags(repository);
        let all = self.storage.list(&folder, None, MAX_THINGS + 1).await?;
        let old: HashSet<String> = match compared_at {
            0 => HashSet::new(),
            _ => self.storage.older_in(&folder, age).await?.into_iter().collect(),
        };
        let manifests = self.digests_in(&keys::manifests(repository), Duration::ZERO).await?;
        let blobs = self.digests_in(&keys::held_blobs(repository), Duration::ZERO).await?;
        if all.len() + manifests.len() + blobs.len() > MAX_THINGS {
            return Ok(None);
        }
        let (tags, manifests, blobs) = {
            let known = read(&known);
            let held: HashSet<&str> = all.iter().map(String::as_str).collect();
            let mut tags: HashSet<String> =
                known.all_tags().filter(|tag| !held.contains(tag)).map(str::to_owned).collect();
            tags.extend(all.iter().filter(|tag| !old.contains(*tag) || !known.has_tag(tag)).cloned());
            let manifests = differing(known.all_manifests(), manifests, |digest| known.has_manifest(digest));
            // A manifest is a blob as well.
            let blobs = differing(known.all_blobs().filter(|digest| !known.has_manifest(digest)), blobs, |digest| {
                known.has_blob(digest)
            });
            (tags, manifests, blobs)
        };
        let news = self.look(repository, tags.into_iter(), manifests.iter(), blobs.iter()).await?;
        known.write().unwrap_or_else(PoisonError::into_inner).compared_at = began;
        Ok(Some((known, news)))
    }

    /// The overview that was written down.
    async fn written(&self, repository: &Repository) -> io::Result<Option<Overview>> {
        let Some(bytes) = self.storage.read(&keys::overview(repository)).await? else { return Ok(None) };
        let since = self.overviews.started;
        let restored = move || serde_json::from_slice::<Snapshot>(&bytes).ok().and_then(|known| known.restore(since));
        tokio::task::spawn_blocking(restored).await.map_err(io::Error::other)
    }

    /// What is counted of a repository, if that is known, or found out before `deadline`.
    async fn totals(&self, repository: &Repository, deadline: Instant) -> Option<Totals> {
        let overviews = &self.overviews;
        if !overviews.has_changes(repository) {
            if let Some(totals) = overviews.totals.get(repository) {
                return Some(totals);
            }
            let written = self.storage.read(&keys::totals(repository)).await.ok().flatten();
            if let Some(totals) = written.and_then(|bytes| serde_json::from_slice::<Totals>(&bytes).ok()) {
                overviews.totals.insert(repository.clone(), totals.clone());
                return Some(totals);
            }
        }
        let found = tokio::time::timeout_at(deadline.into(), self.overview(repository)).await;
        if let Ok(Err(error)) = &found {
            tracing::error!(%repository, %error, "what this repository holds can't be counted");
        }
        found.ok()?.ok()??;
        overviews.totals.get(repository)
    }

    /// Writes down what is known of a repository.
    async fn save(&self, repository: &Repository) -> Result<(), Error> {
        let Some(known) = self.overview(repository).await.map_err(storage_error)? else { return Ok(()) };
        // What comes to be known from here on is written down the next time.
        self.overviews.noted().unsaved.remove(repository);
        let written = self.write_overview(repository, &known).await;
        if written.is_err() {
            let unsaved = (Instant::now(), known);
            self.overviews.noted().unsaved.entry(repository.clone()).or_insert(unsaved);
        }
        written
    }

    async fn write_overview(&self, repository: &Repository, known: &Known) -> Result<(), Error> {
        if self.is_shared()
            && let Some(bytes) = self.storage.read(&keys::overview(repository)).await.map_err(storage_error)?
            && let Ok(others) = serde_json::from_slice::<Snapshot>(&bytes)
        {
            // What other registries have counted.
            let mut known = known.write().unwrap_or_else(PoisonError::into_inner);
            known.add_pulls_to(others.pulls(), others.counted_since());
        }
        let known = Arc::clone(known);
        let (overview, totals) = tokio::task::spawn_blocking(move || {
            let known = read(&known);
            Ok::<_, serde_json::Error>((
                serde_json::to_vec(&Snapshot::from(&*known))?,
                serde_json::to_vec(&known.totals())?,
            ))
        })
        .await
        .map_err(|panic| storage_error(io::Error::other(panic)))?
        .map_err(|error| storage_error(error.into()))?;
        // The folder of a repository that is gone isn't made again.
        let _shared = self.repositories.shared(repository).await;
        match self.must_exist(repository).await {
            Err(error) if error.status == StatusCode::NOT_FOUND => self.overviews.forget(repository),
            exists => {
                exists?;
                self.storage.write_derived(&keys::overview(repository), overview).await.map_err(storage_error)?;
                self.storage.write_derived(&keys::totals(repository), totals).await.map_err(storage_error)?;
            }
        }
        Ok(())
    }

    /// Writes down what is known and has changed; all of it, or what is due.
    pub async fn save_overviews(&self, all: bool) {
        if all {
            // Pulls that nobody has asked about are known nowhere else.
            self.look_at_changes().await;
        }
        let due: Vec<Repository> = {
            let noted = self.overviews.noted();
            let weight: usize = noted.unsaved.values().map(|(_, known)| read(known).weight()).sum();
            let all = all || weight as u64 > MAX_CACHE_BYTES;
            let is_due = |since: &Instant, known: &Known| {
                let factor = u32::try_from(1 + read(known).len() / THINGS_PER_INTERVAL).unwrap_or(u32::MAX);
                all || since.elapsed() >= SAVE_INTERVAL.saturating_mul(factor)
            };
            let due = noted.unsaved.iter().filter(|(_, (since, known))| is_due(since, known));
            due.map(|(repository, _)| repository.clone()).collect()
        };
        for repository in due {
            if let Err(error) = self.save(&repository).await {
                tracing::warn!(%repository, %error, "what is known of it can't be written down");
            }
            if self.is_stopping() && !all {
                return;
            }
        }
    }

    /// Looks at all that has changed.
    async fn look_at_changes(&self) {
        let changed: Vec<Repository> = self.overviews.noted().changes.keys().cloned().collect();
        for repository in changed {
            match self.must_exist(&repository).await {
                Err(error) if error.status == StatusCode::NOT_FOUND => self.overviews.forget(&repository),
                _ => self.find_out(&repository).await,
            }
        }
    }

    async fn find_out(&self, repository: &Repository) {
        if let Err(error) = self.overview(repository).await {
            tracing::error!(%repository, %error, "what this repository holds can't be counted");
        }
    }

    /// Finds out what isn't known, and writes down what changes, for as long as the process lives.
    pub async fn keep_overviews(&self) {
        if let Err(error) = self.fill_overviews().await {
            tracing::warn!(%error, "what the repositories hold is counted when somebody asks");
        }
        loop {
            let _ = tokio::time::timeout(SAVE_INTERVAL, self.overviews.many.notified()).await;
            self.look_at_changes().await;
            self.save_overviews(false).await;
            tokio::time::sleep(LOOK_PAUSE).await;
        }
    }

    /// Compares all that was written down with what is stored; in a bucket, where that is dear, finds out only what wasn't.
    async fn fill_overviews(&self) -> io::Result<()> {
        let mut last = None;
        while let Some(repositories) = self.some_repositories(&[keys::MANIFESTS], &mut last).await? {
            for repository in repositories {
                if self.is_stopping() {
                    return Ok(());
                }
                if self.is_shared() && self.storage.exists(&keys::totals(&repository)).await? {
                    continue;
                }
                self.find_out(&repository).await;
                let is_unsaved = self.overviews.noted().unsaved.contains_key(&repository);
                if is_unsaved && let Err(error) = self.save(&repository).await {
                    tracing::warn!(%repository, %error, "what is known of it can't be written down");
                }
                // Nobody has asked for it.
                self.overviews.kept.invalidate(&repository);
            }
        }
        Ok(())
    }
}

impl Overviews {
    /// A repository was taken away. Whoever is looking at it now may put back what it was: the next one compares.
    pub fn gone(&self, repository: &Repository) {
        self.forget(repository);
        self.changed(repository);
    }

    /// There is no such repository.
    fn forget(&self, repository: &Repository) {
        let mut noted = self.noted();
        noted.changes.remove(repository);
        noted.unsaved.remove(repository);
        self.kept.invalidate(repository);
        self.totals.invalidate(repository);
    }
}

/// What is only known, or only stored.
fn differing(
    known: impl Iterator<Item = Digest>,
    stored: Vec<Digest>,
    is_known: impl Fn(&Digest) -> bool,
) -> Vec<Digest> {
    let held: HashSet<&Digest> = stored.iter().collect();
    let gone: Vec<Digest> = known.filter(|digest| !held.contains(digest)).collect();
    stored.iter().filter(|digest| !is_known(digest)).cloned().chain(gone).collect()
}
