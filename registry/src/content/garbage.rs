//! Garbage collection, while pushes run.
//!
//! Two things are garbage: a blob that a repository holds and none of its manifests names, and bytes that no
//! repository holds. Both must be older than a delay, within which a push names what it has sent.
//!
//! A storage that other processes write too keeps leases itself, see [`Storage`](crate::storage::Storage). What follows is
//! about one that this process has for itself.
//!
//! A push that has been *told* that a blob exists (by HEAD, by a mount) doesn't send it, and names it later; so what
//! was told is [remembered](super::recent) for as long as the delay, and what is remembered isn't collected; nothing is, as
//! long as not everything is known that was told within the delay. Two locks close the gaps between looking and removing: a
//! repository's, shared by whoever tells or names something in it, and a digest's, shared by whoever lets a repository hold
//! it. A push tells again what it has named, before its lock goes: it may have taken longer than the delay.

use std::{
    collections::HashSet,
    io,
    time::{Duration, Instant},
};

use berth_oci::{Digest, Error, ErrorCode, Manifest, Repository};
use http::StatusCode;
use tokio::sync::{OwnedRwLockReadGuard, watch};

use super::{Content, quotas::Kind, recent::Recent, statistics::Usage, storage_error};
use crate::storage::{StoredBlob, keys};

/// An upload that nobody has gone on with for so long has expired.
const UPLOAD_LIFETIME: Duration = Duration::from_hours(24);

/// How often it is looked for them where no garbage is collected.
const EXPIRY_INTERVAL: Duration = Duration::from_hours(1);

/// How long a push waits for the end of a collection of the same bytes, longer than a mark of one that has died counts, and
/// how often it looks.
const COLLECTION_WAIT: Duration = Duration::from_secs(20);
const COLLECTION_POLL: Duration = Duration::from_millis(200);

/// Somebody lets a repository hold a digest.
pub struct BlobGuard<'a> {
    recent: &'a Recent,
    digest: Digest,
    _shared: OwnedRwLockReadGuard<()>,
}

impl Drop for BlobGuard<'_> {
    /// Before the lock is released, so that whoever waits for it finds this.
    fn drop(&mut self) {
        self.recent.held(&self.digest);
    }
}

/// How a collection goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Nothing is removed, only counted. What was told to pushes isn't known, so it may be a little less.
    DryRun,
    /// Pushes are running in this process.
    Online,
    /// No registry is running.
    Offline,
}

/// What isn't collected: whatever is younger than the delay was when the collection began.
#[derive(Clone, Copy)]
struct Young {
    delay: Duration,
    began: Instant,
}

impl Young {
    fn age(self) -> Duration {
        self.delay + self.began.elapsed()
    }
}

/// What a collection did, or would do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Collected {
    /// Blobs that a repository held and no manifest of it named.
    pub unnamed: u64,
    /// Blobs whose bytes nobody held.
    pub unheld: u64,
    /// How many bytes those had.
    pub bytes: u64,
    /// Uploads that had expired.
    pub uploads: u64,
    /// Blobs that would be garbage if they were older.
    pub waiting: u64,
    /// How many bytes those have.
    pub waiting_bytes: u64,
}

impl Collected {
    /// Whether nothing was removed.
    pub fn is_nothing(&self) -> bool {
        (self.unnamed, self.unheld, self.uploads) == (0, 0, 0)
    }
}

impl Content {
    /// Collects what is garbage and older than `delay`.
    ///
    /// # Errors
    /// If the disk says no. What was removed until then was garbage.
    pub async fn collect(&self, delay: Duration, mode: Mode) -> io::Result<Collected> {
        let mut collected = Collected::default();
        if mode == Mode::Online && !self.knows_what_was_told(delay) {
            return Ok(collected);
        }
        self.recent.forget(delay);
        let mut complete = true;
        // What was young when this began is young until it ends, however long that takes: what was found live then may
        // have got company since.
        let young = Young { delay, began: Instant::now() };
        // Fingerprints: two that are alike keep a piece of garbage, which is harmless.
        let mut live = HashSet::new();
        // What is held and not named, and too young to be collected.
        let mut waiting = HashSet::new();
        let mut last = None;
        while let Some(repositories) = self.some_repositories(&[keys::BLOBS, keys::MANIFESTS], &mut last).await? {
            for repository in repositories {
                if self.is_stopping() {
                    return Ok(collected);
                }
                let kept = (&mut live, &mut waiting);
                // What one repository holds may be all that keeps some bytes.
                if let Err(error) = self.collect_unnamed(&repository, young, mode, kept, &mut collected).await {
                    tracing::error!(%repository, %error, "this can't be read; the others' garbage is collected");
                    complete = false;
                }
            }
        }
        if !complete {
            return Err(io::Error::other("not all repositories can be read, so no bytes were removed; see above"));
        }
        let (before, mut counted) = (self.statistics.usage(), Usage::default());
        for shard in self.storage.shards().await? {
            for StoredBlob { digest, len, is_old } in self.storage.blobs_in(&shard, young.age()).await? {
                if self.is_stopping() {
                    return Ok(collected);
                }
                counted = Usage { blobs: counted.blobs + 1, bytes: counted.bytes + len };
                let fingerprint = fingerprint(&digest);
                if live.contains(&fingerprint) {
                    continue;
                }
                if !is_old || waiting.contains(&fingerprint) {
                    collected.waiting += 1;
                    collected.waiting_bytes += len;
                    continue;
                }
                let _removing = self.digests.alone(&digest).await;
                if mode == Mode::Online && !self.storage.is_shared() && self.recent.was_held(&digest, delay) {
                    continue;
                }
                if mode == Mode::DryRun || self.was_removed(&keys::blob(&digest), young.age()).await? {
                    collected.unheld += 1;
                    collected.bytes += len;
                    counted = Usage { blobs: counted.blobs - 1, bytes: counted.bytes - len };
                }
            }
        }
        // What came and went meanwhile may have been counted or not: the next collection knows.
        if mode != Mode::DryRun && before.is_none_or(|before| before != counted) {
            self.statistics.counted(counted);
        }
        collected.uploads = self.storage.expire_uploads(UPLOAD_LIFETIME, mode == Mode::DryRun).await?;
        Ok(collected)
    }

    /// Takes away what `repository` holds and none of its manifests names. What it goes on to hold is live, or waits to be
    /// old enough.
    async fn collect_unnamed(
        &self,
        repository: &Repository,
        young: Young,
        mode: Mode,
        (live, waiting): (&mut HashSet<u64>, &mut HashSet<u64>),
        collected: &mut Collected,
    ) -> io::Result<()> {
        let (mut named, mut held, mut absent) = (HashSet::new(), HashSet::new(), Vec::new());
        for digest in self.digests_in(&keys::manifests(repository), Duration::ZERO).await? {
            live.insert(fingerprint(&digest));
            held.insert(digest.hex()[..keys::PREFIX_DIGITS].to_owned());
            match self.read_manifest(repository, &digest).await {
                Ok(Some((manifest, _))) => named.extend(manifest.blobs.iter().map(|blob| fingerprint(&blob.digest))),
                Ok(None) => absent.push(digest),
                Err(error) => {
                    // What it names can't be known, so nothing here is garbage.
                    tracing::error!(%repository, %digest, %error, "a manifest can't be read; what it may name is kept");
                    return self.mark_all_live(repository, live).await;
                }
            }
        }
        // Deleted since they were listed, or else something is there that can't be read.
        if !absent.is_empty() {
            let listed = self.digests_in(&keys::manifests(repository), Duration::ZERO).await?;
            if let Some(digest) = absent.iter().find(|digest| listed.contains(digest)) {
                tracing::error!(%repository, %digest, "a manifest can't be read; what it may name is kept");
                return self.mark_all_live(repository, live).await;
            }
        }
        if mode != Mode::DryRun {
            self.collect_entries(repository, &held, young.age()).await?;
        }
        let old: HashSet<Digest> =
            self.digests_in(&keys::held_blobs(repository), young.age()).await?.into_iter().collect();
        let mut removed = false;
        for digest in self.digests_in(&keys::held_blobs(repository), Duration::ZERO).await? {
            if self.is_stopping() {
                return Ok(());
            }
            if named.contains(&fingerprint(&digest)) {
                live.insert(fingerprint(&digest));
                continue;
            }
            if !old.contains(&digest) {
                waiting.insert(fingerprint(&digest));
                continue;
            }
            // No manifest is pushed while this lasts; one that was pushed since `named` was read has told.
            let _alone = self.repositories.alone(repository).await;
            let is_ours = mode == Mode::Online && !self.storage.is_shared();
            if is_ours && self.recent.was_told(repository, &digest, young.delay) {
                live.insert(fingerprint(&digest));
                continue;
            }
            if mode == Mode::DryRun || self.was_removed(&keys::held_blob(repository, &digest), young.age()).await? {
                collected.unnamed += 1;
                removed = true;
                if mode != Mode::DryRun {
                    self.quotas.remove(repository, Kind::Blob, &digest);
                }
                self.overviews.blob_changed(repository, &digest);
            } else {
                live.insert(fingerprint(&digest));
            }
        }
        if removed && mode != Mode::DryRun {
            let _alone = self.repositories.alone(repository).await;
            self.prune(repository).await;
        }
        Ok(())
    }

    /// A manifest of a repository, unless it isn't held any more, and its length.
    pub(super) async fn read_manifest(
        &self,
        repository: &Repository,
        digest: &Digest,
    ) -> io::Result<Option<(Manifest, usize)>> {
        let Some(media_type) = self.storage.read(&keys::manifest(repository, digest)).await? else { return Ok(None) };
        let bytes = self.storage.read(&keys::blob(digest)).await?;
        let bytes = bytes.ok_or_else(|| io::Error::other("its bytes are missing"))?;
        // Read as what it was pushed as.
        let manifest = Manifest::parse_stored(&String::from_utf8_lossy(&media_type), &bytes);
        Ok(Some((manifest.map_err(io::Error::other)?, bytes.len())))
    }

    /// Removes garbage, unless it is protected. What can't be removed is reported, and stops nothing else; a service that
    /// doesn't answer does.
    async fn was_removed(&self, key: &str, age: Duration) -> io::Result<bool> {
        match self.storage.delete_if_unprotected(key, age).await {
            Err(error) if error.kind() != io::ErrorKind::NotConnected => {
                tracing::error!(key, %error, "this garbage can't be removed");
                Ok(false)
            }
            removed => removed,
        }
    }

    /// Whether everything that was told to pushes within the delay is known.
    fn knows_what_was_told(&self, delay: Duration) -> bool {
        self.storage.is_shared() || self.recent.knows_all(delay)
    }

    /// While this lives, the bytes of `digest` aren't collected; and not for a while after.
    pub(super) async fn guard_blob(&self, digest: &Digest) -> Result<BlobGuard<'_>, Error> {
        let shared = self.digests.shared(digest).await;
        let guard = BlobGuard { recent: &self.recent, digest: digest.clone(), _shared: shared };
        self.acquire_lease(&keys::blob(digest)).await?;
        Ok(guard)
    }

    /// Promises that what is written under a key stays. If another process is collecting what was there, that ends
    /// first.
    pub(super) async fn acquire_lease(&self, key: &str) -> Result<(), Error> {
        let begun = Instant::now();
        loop {
            if self.storage.acquire_lease(key).await.map_err(storage_error)? {
                return Ok(());
            }
            if begun.elapsed() > COLLECTION_WAIT {
                break;
            }
            tokio::time::sleep(COLLECTION_POLL).await;
        }
        let message = "what is pushed is being collected as garbage; push it again in a minute";
        Err(Error::new(StatusCode::SERVICE_UNAVAILABLE, ErrorCode::Unavailable, message))
    }

    async fn mark_all_live(&self, repository: &Repository, live: &mut HashSet<u64>) -> io::Result<()> {
        for folder in [keys::manifests(repository), keys::held_blobs(repository)] {
            live.extend(self.digests_in(&folder, Duration::ZERO).await?.iter().map(fingerprint));
        }
        Ok(())
    }

    /// Drops what has expired of uploads, for as long as the process lives, where nothing else is collected.
    pub async fn keep_expiring_uploads(&self) {
        loop {
            match self.storage.expire_uploads(UPLOAD_LIFETIME, false).await {
                Ok(0) => {}
                Ok(expired) => tracing::info!(expired, "uploads have expired"),
                Err(error) => tracing::error!(%error, "uploads can't be dropped that have expired"),
            }
            tokio::time::sleep(EXPIRY_INTERVAL).await;
        }
    }

    pub(super) fn is_stopping(&self) -> bool {
        *self.stopping.borrow()
    }

    /// A collection ends before the next thing that it would remove.
    pub fn stop_collecting(&self) {
        self.stopping.send_replace(true);
    }

    /// Collects every `interval`, for as long as the process lives. `schedule` gives delay and interval, which may change.
    pub async fn keep_collecting(&self, mut schedule: watch::Receiver<(Duration, Duration)>) {
        let mut stopping = self.stopping.subscribe();
        loop {
            let (delay, interval) = *schedule.borrow_and_update();
            tokio::select! {
                () = tokio::time::sleep(interval) => {}
                Ok(()) = schedule.changed() => continue,
                _ = stopping.wait_for(|stopping| *stopping) => return,
            }
            if !self.knows_what_was_told(delay) {
                continue;
            }
            // What it lets go is garbage from now on, and collected when it is old enough.
            if let Err(error) = self.retain(Some(delay)).await {
                tracing::error!(%error, "what expires can't be found out");
            }
            if let Err(error) = self.expire_notices().await {
                tracing::error!(%error, "what nobody wants to be told can't be forgotten");
            }
            let began = Instant::now();
            let outcome = self.collect(delay, Mode::Online).await;
            if self.is_stopping() {
                return; // It has ended early.
            }
            self.statistics.collected(began, outcome.as_ref().ok().copied());
            match outcome {
                Ok(collected) if collected.is_nothing() => {}
                Ok(collected) => tracing::info!("garbage was collected: {collected}"),
                Err(error) => tracing::error!(%error, "garbage can't be collected"),
            }
            self.save_statistics().await;
        }
    }
}

impl std::fmt::Display for Collected {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { unnamed, unheld, bytes, uploads, waiting, waiting_bytes } = self;
        write!(f, "{unnamed} blobs that no manifest named, {unheld} blobs that no repository held ({bytes} bytes), ")?;
        write!(f, "{uploads} uploads that had expired; ")?;
        write!(f, "{waiting} blobs that nothing names are younger than storage.gcDelay ({waiting_bytes} bytes)")
    }
}

/// The first 64 bits of a digest.
fn fingerprint(digest: &Digest) -> u64 {
    u64::from_str_radix(&digest.hex()[..16], 16).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use std::{path::Path, sync::Arc, time::SystemTime};

    use berth_oci::{Algorithm, Reference};
    use bytes::Bytes;
    use futures_util::stream;

    use super::*;
    use crate::content::ManifestPush;
    use crate::storage::{Directory, digest_of};

    const DELAY: Duration = Duration::from_hours(1);

    struct Store {
        folder: tempfile::TempDir,
        content: Content,
    }

    impl Store {
        /// An empty store, whose process has run for longer than the delay.
        fn new() -> Self {
            let folder = tempfile::tempdir().expect("a folder");
            let content = Content::new(Arc::new(Directory::open(folder.path()).expect("a store")), true);
            content.recent.begin_at(Instant::now().checked_sub(2 * DELAY).expect("a machine that is up"));
            Self { folder, content }
        }

        async fn push_blob(&self, repository: &Repository, bytes: &'static [u8]) -> Digest {
            let digest = digest_of(Algorithm::Sha256, bytes).expect("a digest");
            let upload = self.content.start_upload(repository, Algorithm::Sha256).await.expect("an upload");
            let body = stream::iter([Ok::<_, io::Error>(Bytes::from_static(bytes))]);
            let upload = self.content.append(repository, upload, body, None).await.expect("appended");
            self.content.finish_upload(repository, upload, digest.clone()).await.expect("finished");
            digest
        }

        async fn push_manifest(
            &self,
            repository: &Repository,
            tag: &str,
            blob: &Digest,
        ) -> Result<Digest, berth_oci::Error> {
            let text = manifest_text(tag, blob);
            let reference = Reference::Tag(tag.parse().expect("a tag"));
            let pushed = self.content.push_manifest(repository, &ManifestPush::new(&reference, text.into())).await;
            pushed.map(|pushed| pushed.digest)
        }

        /// Makes everything that was written older than the delay, and what was told and held forgotten.
        fn grow_old(&self) {
            fn age(folder: &Path) {
                for entry in std::fs::read_dir(folder).expect("a folder").map(|e| e.expect("an entry").path()) {
                    if entry.is_dir() {
                        age(&entry);
                    } else if let Ok(file) = std::fs::File::open(&entry) {
                        file.set_modified(SystemTime::now() - 2 * DELAY).expect("an older time");
                    }
                }
            }
            age(self.folder.path());
            self.content.recent.begin_at(Instant::now().checked_sub(2 * DELAY).expect("a machine that is up"));
        }

        async fn collect(&self) -> Collected {
            self.content.collect(DELAY, Mode::Online).await.expect("collected")
        }
    }

    fn manifest_text(tag: &str, blob: &Digest) -> String {
        format!(r#"{{"schemaVersion":2,"config":{{"digest":"{blob}","size":1}},"annotations":{{"t":"{tag}"}}}}"#)
    }

    fn repository(name: &str) -> Repository {
        name.parse().expect("a name")
    }

    #[tokio::test]
    async fn what_is_named_or_young_is_kept_and_the_rest_is_collected() {
        let (store, r) = (Store::new(), repository("r"));
        let (named, unnamed) = (store.push_blob(&r, b"named").await, store.push_blob(&r, b"unnamed").await);
        store.push_manifest(&r, "1", &named).await.expect("pushed");
        assert_eq!(store.collect().await, Collected { waiting: 1, waiting_bytes: 7, ..Collected::default() });
        store.grow_old();
        let would = store.content.collect(DELAY, Mode::DryRun).await.expect("counted");
        let did = store.collect().await;
        assert_eq!((did, would), (Collected { unnamed: 1, unheld: 1, bytes: 7, ..Collected::default() }, did));
        assert!(store.content.blob(&r, &named).await.is_ok());
        assert!(store.content.blob(&r, &unnamed).await.is_err());
        assert_eq!(store.collect().await, Collected::default());
    }

    #[tokio::test]
    async fn a_blob_that_a_push_was_told_of_can_still_be_named() {
        let (store, r) = (Store::new(), repository("r"));
        let blob = store.push_blob(&r, b"old").await;
        store.push_manifest(&r, "other", &store.push_blob(&r, b"x").await).await.expect("pushed");
        store.grow_old();
        store.content.blob_len(&r, &blob).await.expect("HEAD finds it");
        store.collect().await;
        store.push_manifest(&r, "1", &blob).await.expect("and it can be named");
        assert!(store.content.blob(&r, &blob).await.is_ok());
    }

    #[tokio::test]
    async fn the_blobs_of_a_first_push_are_known_before_its_manifest() {
        let (store, r) = (Store::new(), repository("new/app"));
        let (told, forgotten) = (store.push_blob(&r, b"told").await, store.push_blob(&r, b"forgotten").await);
        store.grow_old();
        store.content.blob_len(&r, &told).await.expect("HEAD finds it");
        let collected = store.collect().await;
        assert_eq!((collected.unnamed, collected.unheld), (1, 1));
        store.push_manifest(&r, "1", &told).await.expect("what was told can be named");
        assert!(store.content.blob(&r, &told).await.is_ok());
        let error = store.push_manifest(&r, "2", &forgotten).await.expect_err("what is gone can't");
        assert_eq!(error.code, berth_oci::ErrorCode::ManifestBlobUnknown);
    }

    /// Its flushes take longer than garbage is kept, and a collection begins in the middle of it.
    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_push_that_is_slower_than_the_delay_loses_no_layer() {
        let (store, r) = (Arc::new(Store::new()), repository("r"));
        let keep = store.push_blob(&r, b"kept").await;
        store.push_manifest(&r, "keep", &keep).await.expect("pushed");
        for round in 0..50 {
            let blob = store.push_blob(&r, b"slow").await;
            let tag = format!("t{round}");
            // It has looked at its blobs, and gets no further before we let it.
            let manifest = digest_of(Algorithm::Sha256, manifest_text(&tag, &blob).as_bytes()).expect("a digest");
            let held_up = store.content.digests.alone(&manifest).await;
            store.grow_old();
            let pushing = {
                let (store, r, blob, tag) = (Arc::clone(&store), r.clone(), blob.clone(), tag.clone());
                tokio::spawn(async move { store.push_manifest(&r, &tag, &blob).await.expect("pushed") })
            };
            while !store.content.recent.was_told(&r, &blob, DELAY) {
                tokio::task::yield_now().await;
            }
            store.grow_old();
            let collecting = {
                let store = Arc::clone(&store);
                tokio::spawn(async move { store.collect().await })
            };
            // It has read the manifests before it waits for the push.
            while !store.content.repositories.is_wanted_alone(&r) {
                tokio::task::yield_now().await;
            }
            drop(held_up);
            let manifest = pushing.await.expect("ended");
            collecting.await.expect("ended");
            assert!(store.content.blob(&r, &blob).await.is_ok(), "round {round}");
            store.content.delete_manifest(&r, &Reference::Digest(manifest)).await.expect("deleted");
        }
    }

    #[tokio::test]
    async fn a_process_that_has_just_started_collects_nothing() {
        let (store, r) = (Store::new(), repository("r"));
        store.push_blob(&r, b"x").await;
        store.grow_old();
        store.content.recent.begin_at(Instant::now());
        assert_eq!(store.collect().await, Collected::default());
    }

    /// The one race that matters, many times over: one finds a blob by HEAD and names it, another pushes the same
    /// bytes elsewhere, while a third collects. Whoever was told that a blob exists can name it, and whatever is named
    /// can be read.
    #[tokio::test(flavor = "multi_thread", worker_threads = 4)]
    async fn collecting_never_takes_what_a_push_was_told() {
        let store = Arc::new(Store::new());
        let (r, other) = (repository("r"), repository("other"));
        for round in 0..200 {
            let tag = format!("t{round}");
            let keep = store.push_blob(&r, b"kept").await;
            store.push_manifest(&r, "keep", &keep).await.expect("pushed");
            let blob = store.push_blob(&r, b"contested").await;
            store.grow_old();
            let pusher = {
                let (store, r, blob, tag) = (Arc::clone(&store), r.clone(), blob.clone(), tag.clone());
                tokio::spawn(async move {
                    if store.content.blob_len(&r, &blob).await.is_err() {
                        return None;
                    }
                    tokio::task::yield_now().await;
                    Some(store.push_manifest(&r, &tag, &blob).await.expect("what was told can be named"))
                })
            };
            let elsewhere = {
                let (store, other) = (Arc::clone(&store), other.clone());
                tokio::spawn(async move { store.push_blob(&other, b"contested").await })
            };
            let collector = {
                let store = Arc::clone(&store);
                tokio::spawn(async move { store.collect().await })
            };
            let (named, _, _) =
                (pusher.await.expect("ended"), elsewhere.await.expect("ended"), collector.await.expect("ended"));
            // Pushed while it was collected, it is there.
            assert!(store.content.blob(&other, &blob).await.is_ok(), "round {round}");
            if let Some(manifest) = named {
                assert!(store.content.blob(&r, &blob).await.is_ok(), "round {round}");
                store.content.delete_manifest(&r, &Reference::Digest(manifest)).await.expect("deleted");
            }
            for repository in [&r, &other] {
                let _ = store.content.delete_blob(repository, &blob).await;
            }
        }
    }
}
