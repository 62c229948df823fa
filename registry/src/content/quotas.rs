//! Quotas: how much the repositories of a pattern may hold together. A blob that several of them hold counts once.
//!
//! What is held is counted in memory, by fingerprints; and the sums are written down by the minute, so that a start knows them
//! at once, while it counts anew in the background. Until everything is counted, what was written down and has come since
//! holds, or what is counted, if that is more.

use std::{
    collections::{BTreeMap, HashMap, HashSet, hash_map::RandomState},
    hash::{BuildHasher, Hash},
    io,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use berth_config::Pattern;
use berth_oci::{Amount, Digest, Error, ErrorCode, Notice, QuotaUsage, Repository, Tag};
use http::StatusCode;
use serde::{Deserialize, Serialize};
use tokio::sync::Notify;

use super::{Content, digests_in, manifests::ManifestPush};
use crate::storage::{Condition, Upload, digest_of, keys};

/// How often the sums are written down, if they have changed.
const SAVE_INTERVAL: Duration = Duration::from_mins(1);

/// From which part of a limit on an operator is warned, in percent, and below which the warning may come again.
const WARN_PERCENT: u64 = 80;
const CALM_PERCENT: u64 = 75;

/// One of `storage.quotas`.
#[derive(Clone, Debug)]
pub struct Limit {
    /// Whose repositories count together.
    pub repositories: Vec<Pattern>,
    /// How many bytes they may hold.
    pub bytes: Option<u64>,
    /// How many tags they may have.
    pub tags: Option<u64>,
}

impl Limit {
    /// What it is called by: its patterns.
    fn name(&self) -> String {
        self.repositories.iter().map(Pattern::text).collect::<Vec<_>>().join(", ")
    }
}

/// What has been counted, and what was written down.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Sums {
    bytes: u64,
    tags: u64,
}

#[derive(Default)]
struct Counted {
    /// Which repository holds which blob.
    held: HashSet<u64>,
    /// How many of them hold a blob, and what it weighs.
    blobs: HashMap<u64, (u32, u64)>,
    /// Which repository has which tag.
    tags: HashSet<u64>,
    bytes: u64,
    /// What uploads need that are about to end.
    reserved: u64,
    /// What has come since it is counted, while what was there before isn't.
    grown: Sums,
    /// What went while everything is counted, so that it isn't counted after; nothing, once everything is.
    gone: Option<HashSet<u64>>,
    written: Sums,
    has_warned: bool,
}

impl Counted {
    fn sums(&self) -> Sums {
        let sums = Sums { bytes: self.bytes, tags: self.tags.len() as u64 };
        match self.gone {
            None => sums,
            Some(_) => Sums {
                bytes: sums.bytes.max(self.written.bytes.saturating_add(self.grown.bytes)),
                tags: sums.tags.max(self.written.tags.saturating_add(self.grown.tags)),
            },
        }
    }

    /// By how much the sum grows with a blob.
    fn growth(&self, (held, blob): (u64, u64), len: u64) -> u64 {
        if self.held.contains(&held) || self.blobs.contains_key(&blob) { 0 } else { len }
    }

    fn add(&mut self, (held, blob): (u64, u64), len: u64) {
        if !self.held.insert(held) {
            return;
        }
        let known = self.blobs.entry(blob).or_insert((0, len));
        known.0 += 1;
        if known.0 == 1 {
            self.bytes = self.bytes.saturating_add(len);
        }
    }

    /// It has come just now, and wasn't there before.
    fn come(&mut self, prints: (u64, u64), len: u64) {
        if let Some(gone) = &mut self.gone {
            gone.remove(&prints.0);
            self.grown.bytes = self.grown.bytes.saturating_add(self.growth(prints, len));
        }
        self.add(prints, len);
    }

    fn remove(&mut self, (held, blob): (u64, u64)) {
        if !self.held.remove(&held) {
            return;
        }
        if let Some((holders, len)) = self.blobs.get_mut(&blob) {
            *holders -= 1;
            if *holders == 0 {
                self.bytes = self.bytes.saturating_sub(*len);
                self.grown.bytes = self.grown.bytes.saturating_sub(*len);
                self.blobs.remove(&blob);
            }
        }
    }
}

/// What a repository holds under a digest: the same bytes may be both.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// A blob.
    Blob,
    /// A manifest.
    Manifest,
}

/// Room that is kept, until this is dropped.
pub struct Reservation<'a> {
    quotas: &'a Quotas,
    repository: Repository,
    /// In each of its quotas.
    growths: Vec<u64>,
}

impl Reservation<'_> {
    /// The upload has ended as the blob that it said it was: it takes the room that was kept for it.
    pub fn settle(mut self, digest: &Digest, len: u64) {
        let prints = self.quotas.prints(&self.repository, Kind::Blob, digest);
        let growths = std::mem::take(&mut self.growths);
        for ((limit, mut counted), growth) in self.quotas.of(&self.repository).zip(growths) {
            counted.reserved = counted.reserved.saturating_sub(growth);
            counted.come(prints, len);
            self.quotas.warn(limit, &mut counted);
        }
    }
}

impl Drop for Reservation<'_> {
    fn drop(&mut self) {
        for ((_, mut counted), growth) in self.quotas.of(&self.repository).zip(&self.growths) {
            counted.reserved = counted.reserved.saturating_sub(*growth);
        }
    }
}

/// All quotas.
#[derive(Default)]
pub struct Quotas {
    all: Vec<(Limit, Mutex<Counted>)>,
    hasher: RandomState,
    /// What isn't written down yet of those that are nearly used up.
    warnings: Mutex<Vec<Notice>>,
    warned: Notify,
}

impl Quotas {
    /// Nothing is counted yet.
    pub fn new(limits: Vec<Limit>) -> Self {
        let counting = || Counted { gone: Some(HashSet::new()), ..Counted::default() };
        let all = limits.into_iter().map(|limit| (limit, Mutex::new(counting()))).collect();
        Self { all, ..Self::default() }
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.all.is_empty()
    }

    /// Those that count a repository, in their order: whoever locks several locks them so.
    fn of(&self, repository: &Repository) -> impl Iterator<Item = (&Limit, MutexGuard<'_, Counted>)> {
        let counts = |limit: &Limit| limit.repositories.iter().any(|one| one.matches(repository.as_str()));
        let all = self.all.iter().filter(move |(limit, _)| counts(limit));
        all.map(|(limit, counted)| (limit, counted.lock().unwrap_or_else(PoisonError::into_inner)))
    }

    fn prints(&self, repository: &Repository, kind: Kind, digest: &Digest) -> (u64, u64) {
        (self.hasher.hash_one((repository.as_str(), kind, digest)), self.hasher.hash_one(digest))
    }

    fn tag_print(&self, repository: &Repository, tag: &str) -> u64 {
        self.hasher.hash_one((repository.as_str(), tag))
    }

    /// Whether a repository may hold a blob of so many bytes; nothing is counted. Of one that isn't named yet it isn't known
    /// whether another repository that counts with it holds it.
    ///
    /// # Errors
    /// 403 `DENIED`
    pub fn must_fit(&self, repository: &Repository, digest: Option<&Digest>, len: u64) -> Result<(), Error> {
        let prints = digest.map(|digest| self.prints(repository, Kind::Blob, digest));
        self.of(repository).try_for_each(|(limit, counted)| {
            must_fit(limit, &counted, prints.map_or(len, |prints| counted.growth(prints, len)))
        })
    }

    /// Keeps room for an upload that is about to end, until it has or hasn't: what it weighs is only believed then.
    ///
    /// # Errors
    /// 403 `DENIED`, if there isn't so much.
    pub fn reserve(&self, repository: &Repository, digest: &Digest, len: u64) -> Result<Reservation<'_>, Error> {
        let prints = self.prints(repository, Kind::Blob, digest);
        let mut all: Vec<_> = self.of(repository).collect();
        for (limit, counted) in &all {
            must_fit(limit, counted, counted.growth(prints, len))?;
        }
        let grow = |(_, counted): &mut (&Limit, MutexGuard<'_, Counted>)| {
            let growth = counted.growth(prints, len);
            counted.reserved = counted.reserved.saturating_add(growth);
            growth
        };
        let growths = all.iter_mut().map(grow).collect();
        drop(all);
        Ok(Reservation { quotas: self, repository: repository.clone(), growths })
    }

    /// A repository holds a blob or a manifest, or is about to.
    ///
    /// # Errors
    /// 403 `DENIED`, if that is more than it may: then nothing is counted.
    pub fn add(&self, repository: &Repository, kind: Kind, digest: &Digest, len: u64) -> Result<(), Error> {
        let prints = self.prints(repository, kind, digest);
        let mut all: Vec<_> = self.of(repository).collect();
        for (limit, counted) in &all {
            must_fit(limit, counted, counted.growth(prints, len))?;
        }
        for (limit, counted) in &mut all {
            counted.come(prints, len);
            self.warn(limit, counted);
        }
        Ok(())
    }

    /// A repository doesn't hold a blob or a manifest any more.
    pub fn remove(&self, repository: &Repository, kind: Kind, digest: &Digest) {
        let prints = self.prints(repository, kind, digest);
        for (limit, mut counted) in self.of(repository) {
            counted.remove(prints);
            if let Some(gone) = &mut counted.gone {
                gone.insert(prints.0);
            }
            self.warn(limit, &mut counted);
        }
    }

    /// A repository is about to have a tag.
    ///
    /// # Errors
    /// 403 `DENIED`, if that is more than it may: then nothing is counted.
    pub fn add_tag(&self, repository: &Repository, tag: &Tag) -> Result<(), Error> {
        let print = self.tag_print(repository, tag.as_str());
        let mut all: Vec<_> = self.of(repository).collect();
        for (limit, counted) in &all {
            let used = counted.sums().tags;
            if let Some(most) = limit.tags.filter(|most| used >= *most && !counted.tags.contains(&print)) {
                let message = format!(
                    "the quota of {} is {most} tags, and {used} are there; delete some, or ask whoever runs the registry",
                    limit.name()
                );
                return Err(denied(&message));
            }
        }
        for (_, counted) in &mut all {
            if counted.tags.insert(print) && counted.gone.is_some() {
                counted.grown.tags += 1;
            }
            if let Some(gone) = &mut counted.gone {
                gone.remove(&print);
            }
        }
        Ok(())
    }

    /// A repository doesn't have a tag any more.
    pub fn remove_tag(&self, repository: &Repository, tag: &Tag) {
        let print = self.tag_print(repository, tag.as_str());
        for (_, mut counted) in self.of(repository) {
            if counted.tags.remove(&print) {
                counted.grown.tags = counted.grown.tags.saturating_sub(1);
            }
            if let Some(gone) = &mut counted.gone {
                gone.insert(print);
            }
        }
    }

    /// Says once that a quota is nearly used up.
    fn warn(&self, limit: &Limit, counted: &mut Counted) {
        let Some(most) = limit.bytes else { return };
        let percent = counted.bytes.saturating_mul(100) / most.max(1);
        if percent >= WARN_PERCENT && !counted.has_warned {
            counted.has_warned = true;
            let (used, most) = (readable(counted.bytes), readable(most));
            tracing::warn!(repositories = limit.name(), used, limit = most, "a quota is nearly used up");
            let warning = Notice::QuotaWarning { usage: usage(limit, counted) };
            self.warnings.lock().unwrap_or_else(PoisonError::into_inner).push(warning);
            self.warned.notify_one();
        } else if percent < CALM_PERCENT {
            counted.has_warned = false;
        }
    }

    /// What is used of what, for a repository.
    pub fn usage(&self, repository: &Repository) -> Vec<QuotaUsage> {
        self.of(repository).map(|(limit, counted)| usage(limit, &counted)).collect()
    }

    /// The same of all.
    pub fn all(&self) -> Vec<QuotaUsage> {
        let all = self.all.iter();
        all.map(|(limit, counted)| usage(limit, &counted.lock().unwrap_or_else(PoisonError::into_inner))).collect()
    }
}

fn usage(limit: &Limit, counted: &Counted) -> QuotaUsage {
    let sums = counted.sums();
    let amount = |used: u64, limit: Option<u64>| limit.map(|limit| Amount { used, limit });
    QuotaUsage {
        repositories: limit.repositories.iter().map(|pattern| pattern.text().to_owned()).collect(),
        bytes: amount(sums.bytes, limit.bytes),
        tags: amount(sums.tags, limit.tags),
        is_counting: counted.gone.is_some(),
    }
}

fn denied(message: &str) -> Error {
    Error::new(StatusCode::FORBIDDEN, ErrorCode::Denied, message)
}

fn must_fit(limit: &Limit, counted: &Counted, more: u64) -> Result<(), Error> {
    let Some(most) = limit.bytes else { return Ok(()) };
    let used = counted.sums().bytes.saturating_add(counted.reserved);
    // What is there already can be named again when all is full.
    if more == 0 || used.saturating_add(more) <= most {
        return Ok(());
    }
    let message = format!(
        "the quota of {} is {}, of which {} are used, and this needs {} more; delete something, or ask whoever runs the registry",
        limit.name(),
        readable(most),
        readable(used),
        readable(more)
    );
    Err(denied(&message))
}

/// `1.5 GB`
fn readable(bytes: u64) -> String {
    let units = [("TB", 1_000_000_000_000), ("GB", 1_000_000_000), ("MB", 1_000_000), ("kB", 1000)];
    match units.into_iter().find(|(_, unit)| bytes >= *unit) {
        Some((name, unit)) => format!("{}.{} {name}", bytes / unit, bytes % unit * 10 / unit),
        None => format!("{bytes} B"),
    }
}

impl Content {
    /// What is used of what, for a repository.
    pub fn quota_usage(&self, repository: &Repository) -> Vec<QuotaUsage> {
        self.quotas.usage(repository)
    }

    /// The same of all quotas.
    pub fn all_quotas(&self) -> Vec<QuotaUsage> {
        self.quotas.all()
    }

    /// The upload, if with so many bytes more it would fit; or else it is dropped.
    ///
    /// # Errors
    /// 403 `DENIED`
    pub async fn fitting(
        &self,
        repository: &Repository,
        digest: Option<&Digest>,
        upload: Box<dyn Upload>,
        more: u64,
    ) -> Result<Box<dyn Upload>, Error> {
        match self.quotas.must_fit(repository, digest, upload.len().saturating_add(more)) {
            Ok(()) => Ok(upload),
            Err(full) => {
                upload.cancel().await.map_err(super::storage_error)?;
                Err(full)
            }
        }
    }

    /// A repository is about to hold a blob, if it doesn't yet.
    pub(super) async fn count_blob(&self, repository: &Repository, digest: &Digest) -> Result<(), Error> {
        if self.quotas.is_empty() {
            return Ok(());
        }
        let len = self.storage.blob_len(digest).await.map_err(super::storage_error)?.unwrap_or_default();
        self.quotas.add(repository, Kind::Blob, digest, len)
    }

    /// A push has failed: what it would have brought and isn't there doesn't count.
    pub(super) async fn count_what_is_there(
        &self,
        repository: &Repository,
        push: &ManifestPush<'_>,
    ) -> Result<(), Error> {
        let (algorithm, tags) = push.algorithm_and_tags();
        for tag in tags {
            if !self.storage.exists(&keys::tag(repository, tag)).await.map_err(super::storage_error)? {
                self.quotas.remove_tag(repository, tag);
            }
        }
        let digest = digest_of(algorithm, &push.bytes).map_err(super::storage_error)?;
        if !self.storage.exists(&keys::manifest(repository, &digest)).await.map_err(super::storage_error)? {
            self.quotas.remove(repository, Kind::Manifest, &digest);
        }
        Ok(())
    }

    /// Counts what all repositories hold, and writes the sums down, for as long as the process lives. Where others push as well,
    /// it is counted anew every `interval`.
    pub async fn keep_quotas(&self, interval: Duration) {
        if self.quotas.is_empty() {
            return;
        }
        self.load_quotas().await;
        loop {
            while let Err(error) = self.count_quotas().await {
                tracing::error!(%error, "what quotas allow can't be counted; what was counted before holds");
                tokio::time::sleep(SAVE_INTERVAL).await;
            }
            let again = tokio::time::Instant::now() + interval;
            loop {
                self.save_quotas().await;
                tokio::time::sleep(SAVE_INTERVAL).await;
                if self.storage.is_shared() && tokio::time::Instant::now() >= again {
                    break;
                }
            }
            for (_, counted) in &self.quotas.all {
                let mut counted = counted.lock().unwrap_or_else(PoisonError::into_inner);
                let written = counted.sums();
                let (reserved, has_warned) = (counted.reserved, counted.has_warned);
                *counted = Counted { gone: Some(HashSet::new()), written, reserved, has_warned, ..Counted::default() };
            }
        }
    }

    /// Writes down which quotas are nearly used up, for as long as the process lives.
    pub async fn keep_warnings(&self) {
        loop {
            self.quotas.warned.notified().await;
            let warnings = std::mem::take(&mut *self.quotas.warnings.lock().unwrap_or_else(PoisonError::into_inner));
            if let Err(error) = self.notice(warnings).await {
                tracing::error!(%error, "that a quota is nearly used up can't be written down");
            }
        }
    }

    async fn load_quotas(&self) {
        let Ok(Some(bytes)) = self.storage.read(keys::QUOTAS).await else { return };
        let Ok(written) = serde_json::from_slice::<BTreeMap<String, Sums>>(&bytes) else { return };
        for (limit, counted) in &self.quotas.all {
            let mut counted = counted.lock().unwrap_or_else(PoisonError::into_inner);
            counted.written = written.get(&limit.name()).copied().unwrap_or_default();
        }
    }

    /// Writes the sums down, if they have changed.
    pub async fn save_quotas(&self) {
        let mut changed = false;
        let sums: BTreeMap<String, Sums> = self
            .quotas
            .all
            .iter()
            .map(|(limit, counted)| {
                let mut counted = counted.lock().unwrap_or_else(PoisonError::into_inner);
                let sums = counted.sums();
                changed |= sums != counted.written;
                counted.written = sums;
                (limit.name(), sums)
            })
            .collect();
        if !changed {
            return;
        }
        let written = match serde_json::to_vec(&sums) {
            Ok(bytes) => self.storage.write(keys::QUOTAS, bytes, Condition::None).await.map(drop),
            Err(error) => Err(error.into()),
        };
        if let Err(error) = written {
            tracing::warn!(%error, "what is used of quotas can't be written down");
        }
    }

    async fn count_quotas(&self) -> io::Result<()> {
        let mut last = None;
        while let Some(repositories) = self.some_repositories(&[keys::BLOBS, keys::MANIFESTS], &mut last).await? {
            for repository in repositories {
                if self.quotas.of(&repository).next().is_some() {
                    self.count_repository(&repository).await?;
                }
            }
        }
        for (_, counted) in &self.quotas.all {
            let mut counted = counted.lock().unwrap_or_else(PoisonError::into_inner);
            (counted.gone, counted.grown) = (None, Sums::default());
        }
        Ok(())
    }

    async fn count_repository(&self, repository: &Repository) -> io::Result<()> {
        let folders = [(Kind::Blob, keys::held_blobs(repository)), (Kind::Manifest, keys::manifests(repository))];
        for (kind, folder) in folders {
            for digest in digests_in(&*self.storage, &folder, Duration::ZERO).await? {
                let len = self.storage.blob_len(&digest).await?.unwrap_or_default();
                let prints = self.quotas.prints(repository, kind, &digest);
                for (_, mut counted) in self.quotas.of(repository) {
                    if counted.gone.as_ref().is_none_or(|gone| !gone.contains(&prints.0)) {
                        counted.add(prints, len);
                    }
                }
            }
        }
        for tag in self.storage.list(&keys::tags(repository), None, usize::MAX).await? {
            let print = self.quotas.tag_print(repository, &tag);
            for (_, mut counted) in self.quotas.of(repository) {
                if counted.gone.as_ref().is_none_or(|gone| !gone.contains(&print)) {
                    counted.tags.insert(print);
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn digest(n: u8) -> Digest {
        format!("sha256:{}", format!("{n:02x}").repeat(32)).parse().expect("a digest")
    }

    fn limit(pattern: &str, bytes: u64) -> Limit {
        Limit { repositories: vec![Pattern::parse(pattern).expect("a pattern")], bytes: Some(bytes), tags: Some(2) }
    }

    fn repository(name: &str) -> Repository {
        name.parse().expect("a name")
    }

    #[test]
    fn a_blob_counts_once_and_what_is_full_takes_no_more() {
        let quotas = Quotas::new(vec![limit("team/**", 100), limit("**", 150)]);
        let (a, b, other) = (repository("team/a"), repository("team/b"), repository("other"));
        assert!(quotas.add(&a, Kind::Blob, &digest(1), 60).is_ok());
        // Again, and in another repository that counts together with it.
        assert!(
            quotas.add(&a, Kind::Blob, &digest(1), 60).is_ok() && quotas.add(&b, Kind::Blob, &digest(1), 60).is_ok()
        );
        assert_eq!(quotas.usage(&a)[0].bytes.as_ref().map(|bytes| bytes.used), Some(60));
        let refused = quotas.add(&b, Kind::Blob, &digest(2), 41).expect_err("too much");
        assert_eq!(refused.status, StatusCode::FORBIDDEN);
        assert!(refused.to_string().contains("the quota of team/** is 100 B, of which 60 B are used"), "{refused}");
        assert!(quotas.add(&b, Kind::Blob, &digest(2), 40).is_ok());
        // The wider one counts all, and what was refused was counted by neither.
        assert!(
            quotas.add(&other, Kind::Blob, &digest(3), 51).is_err()
                && quotas.add(&other, Kind::Blob, &digest(3), 50).is_ok()
        );
        // It is there as long as somebody holds it.
        quotas.remove(&a, Kind::Blob, &digest(1));
        assert!(quotas.add(&a, Kind::Blob, &digest(4), 1).is_err());
        quotas.remove(&b, Kind::Blob, &digest(1));
        quotas.remove(&b, Kind::Blob, &digest(1));
        assert_eq!(quotas.usage(&a)[0].bytes.as_ref().map(|bytes| bytes.used), Some(40));
        let tag = |text: &str| text.parse::<Tag>().expect("a tag");
        assert!(quotas.add_tag(&a, &tag("1")).is_ok() && quotas.add_tag(&b, &tag("1")).is_ok());
        assert!(quotas.add_tag(&a, &tag("1")).is_ok() && quotas.add_tag(&a, &tag("2")).is_err());
        quotas.remove_tag(&b, &tag("1"));
        assert!(quotas.add_tag(&a, &tag("2")).is_ok());
    }

    proptest! {
        #[test]
        fn the_sum_is_that_of_what_is_held(steps in proptest::collection::vec((any::<bool>(), 0_u8..3, 0_u8..6), 0..60)) {
            let quotas = Quotas::new(vec![limit("**", u64::MAX)]);
            let mut held = HashSet::new();
            for (adds, name, blob) in steps {
                let of = repository(&format!("r{name}"));
                if adds {
                    quotas.add(&of, Kind::Blob, &digest(blob), u64::from(blob) + 1).expect("room");
                    held.insert((name, blob));
                } else {
                    quotas.remove(&of, Kind::Blob, &digest(blob));
                    held.remove(&(name, blob));
                }
            }
            let blobs: HashSet<u8> = held.iter().map(|(_, blob)| *blob).collect();
            let sum: u64 = blobs.into_iter().map(|blob| u64::from(blob) + 1).sum();
            prop_assert_eq!(quotas.all()[0].bytes.as_ref().map(|bytes| bytes.used), Some(sum));
        }
    }
}
