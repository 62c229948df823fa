//! Quotas: how much the repositories of a pattern may hold together. A blob that several of them hold counts once.
//!
//! What is held is counted in memory, by fingerprints; and the sums are written down by the minute, so that a start knows them
//! at once, while it counts anew in the background. What is written down is only ever taken for too much, and never for too
//! little: until everything is counted, the larger of the two sums holds.

use std::{
    collections::{BTreeMap, HashMap, HashSet, hash_map::RandomState},
    hash::{BuildHasher, Hash},
    io,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use berth_config::Pattern;
use berth_oci::{Amount, Digest, Error, ErrorCode, QuotaUsage, Repository, Tag};
use http::StatusCode;
use serde::{Deserialize, Serialize};

use super::{Content, digests_in};
use crate::storage::{Condition, Upload, keys};

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
            Some(_) => Sums { bytes: sums.bytes.max(self.written.bytes), tags: sums.tags.max(self.written.tags) },
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

    fn remove(&mut self, (held, blob): (u64, u64)) {
        if !self.held.remove(&held) {
            return;
        }
        if let Some((holders, len)) = self.blobs.get_mut(&blob) {
            *holders -= 1;
            if *holders == 0 {
                self.bytes = self.bytes.saturating_sub(*len);
                self.blobs.remove(&blob);
            }
        }
    }
}

/// All quotas.
#[derive(Default)]
pub struct Quotas {
    all: Vec<(Limit, Mutex<Counted>)>,
    hasher: RandomState,
}

impl Quotas {
    /// Nothing is counted yet.
    pub fn new(limits: Vec<Limit>) -> Self {
        let counting = || Counted { gone: Some(HashSet::new()), ..Counted::default() };
        let all = limits.into_iter().map(|limit| (limit, Mutex::new(counting()))).collect();
        Self { all, hasher: RandomState::new() }
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

    fn prints(&self, repository: &Repository, what: impl Hash) -> (u64, u64) {
        (self.hasher.hash_one((repository.as_str(), &what)), self.hasher.hash_one(("", &what)))
    }

    /// Whether a repository may hold a blob of so many bytes; nothing is counted. Of one that isn't named yet it isn't known
    /// whether another repository that counts with it holds it.
    ///
    /// # Errors
    /// 403 `DENIED`
    pub fn must_fit(&self, repository: &Repository, digest: Option<&Digest>, len: u64) -> Result<(), Error> {
        let prints = digest.map(|digest| self.prints(repository, digest));
        self.of(repository).try_for_each(|(limit, counted)| {
            must_fit(limit, &counted, prints.map_or(len, |prints| counted.growth(prints, len)))
        })
    }

    /// A repository is about to hold a blob.
    ///
    /// # Errors
    /// 403 `DENIED`, if that is more than it may: then nothing is counted.
    pub fn add_blob(&self, repository: &Repository, digest: &Digest, len: u64) -> Result<(), Error> {
        let prints = self.prints(repository, digest);
        let mut all: Vec<_> = self.of(repository).collect();
        for (limit, counted) in &all {
            must_fit(limit, counted, counted.growth(prints, len))?;
        }
        for (limit, counted) in &mut all {
            counted.add(prints, len);
            if let Some(gone) = &mut counted.gone {
                gone.remove(&prints.0);
            }
            warn(limit, counted);
        }
        Ok(())
    }

    /// A repository doesn't hold a blob any more.
    pub fn remove_blob(&self, repository: &Repository, digest: &Digest) {
        let prints = self.prints(repository, digest);
        for (limit, mut counted) in self.of(repository) {
            counted.remove(prints);
            if let Some(gone) = &mut counted.gone {
                gone.insert(prints.0);
            }
            warn(limit, &mut counted);
        }
    }

    /// A repository is about to have a tag.
    ///
    /// # Errors
    /// 403 `DENIED`, if that is more than it may: then nothing is counted.
    pub fn add_tag(&self, repository: &Repository, tag: &Tag) -> Result<(), Error> {
        let (print, _) = self.prints(repository, tag.as_str());
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
            counted.tags.insert(print);
            if let Some(gone) = &mut counted.gone {
                gone.remove(&print);
            }
        }
        Ok(())
    }

    /// A repository doesn't have a tag any more.
    pub fn remove_tag(&self, repository: &Repository, tag: &Tag) {
        let (print, _) = self.prints(repository, tag.as_str());
        for (_, mut counted) in self.of(repository) {
            counted.tags.remove(&print);
            if let Some(gone) = &mut counted.gone {
                gone.insert(print);
            }
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
    let used = counted.sums().bytes;
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

/// Says once that a quota is nearly used up.
fn warn(limit: &Limit, counted: &mut Counted) {
    let Some(most) = limit.bytes else { return };
    let percent = counted.bytes.saturating_mul(100) / most.max(1);
    if percent >= WARN_PERCENT && !counted.has_warned {
        counted.has_warned = true;
        let (used, most) = (readable(counted.bytes), readable(most));
        tracing::warn!(repositories = limit.name(), used, limit = most, "a quota is nearly used up");
    } else if percent < CALM_PERCENT {
        counted.has_warned = false;
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
        match self.quotas.must_fit(repository, digest, upload.len() + more) {
            Ok(()) => Ok(upload),
            Err(full) => {
                upload.cancel().await.map_err(super::storage_error)?;
                Err(full)
            }
        }
    }

    /// A repository is about to hold a blob, or still holds it.
    pub(super) async fn count_blob(&self, repository: &Repository, digest: &Digest) -> Result<(), Error> {
        if self.quotas.is_empty() {
            return Ok(());
        }
        let len = self.storage.blob_len(digest).await.map_err(super::storage_error)?.unwrap_or_default();
        self.quotas.add_blob(repository, digest, len)
    }

    /// Counts what all repositories hold, and writes the sums down, for as long as the process lives. Where others push as well,
    /// it is counted anew every `interval`.
    pub async fn keep_quotas(&self, interval: Duration) {
        if self.quotas.is_empty() {
            return;
        }
        self.load_quotas().await;
        loop {
            if let Err(error) = self.count_quotas().await {
                tracing::error!(%error, "what quotas allow can't be counted; what was counted before holds");
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
                *counted = Counted {
                    gone: Some(HashSet::new()),
                    written,
                    has_warned: counted.has_warned,
                    ..Counted::default()
                };
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
        let mut last: Option<String> = None;
        loop {
            let names = self.storage.repositories(&[keys::BLOBS, keys::MANIFESTS], last.as_deref(), 1000).await?;
            for repository in names.iter().filter_map(|name| name.parse::<Repository>().ok()) {
                if self.quotas.of(&repository).next().is_some() {
                    self.count_repository(&repository).await?;
                }
            }
            match names.into_iter().last() {
                Some(name) => last = Some(name),
                None => break,
            }
        }
        for (_, counted) in &self.quotas.all {
            counted.lock().unwrap_or_else(PoisonError::into_inner).gone = None;
        }
        Ok(())
    }

    async fn count_repository(&self, repository: &Repository) -> io::Result<()> {
        for folder in [keys::held_blobs(repository), keys::manifests(repository)] {
            for digest in digests_in(&*self.storage, &folder, Duration::ZERO).await? {
                let len = self.storage.blob_len(&digest).await?.unwrap_or_default();
                let prints = self.quotas.prints(repository, &digest);
                for (_, mut counted) in self.quotas.of(repository) {
                    if counted.gone.as_ref().is_none_or(|gone| !gone.contains(&prints.0)) {
                        counted.add(prints, len);
                    }
                }
            }
        }
        for tag in self.storage.list(&keys::tags(repository), None, usize::MAX).await? {
            let (print, _) = self.quotas.prints(repository, tag.as_str());
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
        assert!(quotas.add_blob(&a, &digest(1), 60).is_ok());
        // Again, and in another repository that counts together with it.
        assert!(quotas.add_blob(&a, &digest(1), 60).is_ok() && quotas.add_blob(&b, &digest(1), 60).is_ok());
        assert_eq!(quotas.usage(&a)[0].bytes.as_ref().map(|bytes| bytes.used), Some(60));
        let refused = quotas.add_blob(&b, &digest(2), 41).expect_err("too much");
        assert_eq!(refused.status, StatusCode::FORBIDDEN);
        assert!(refused.to_string().contains("the quota of team/** is 100 B, of which 60 B are used"), "{refused}");
        assert!(quotas.add_blob(&b, &digest(2), 40).is_ok());
        // The wider one counts all, and what was refused was counted by neither.
        assert!(quotas.add_blob(&other, &digest(3), 51).is_err() && quotas.add_blob(&other, &digest(3), 50).is_ok());
        // It is there as long as somebody holds it.
        quotas.remove_blob(&a, &digest(1));
        assert!(quotas.add_blob(&a, &digest(4), 1).is_err());
        quotas.remove_blob(&b, &digest(1));
        quotas.remove_blob(&b, &digest(1));
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
                    quotas.add_blob(&of, &digest(blob), u64::from(blob) + 1).expect("room");
                    held.insert((name, blob));
                } else {
                    quotas.remove_blob(&of, &digest(blob));
                    held.remove(&(name, blob));
                }
            }
            let blobs: HashSet<u8> = held.iter().map(|(_, blob)| *blob).collect();
            let sum: u64 = blobs.into_iter().map(|blob| u64::from(blob) + 1).sum();
            prop_assert_eq!(quotas.all()[0].bytes.as_ref().map(|bytes| bytes.used), Some(sum));
        }
    }
}
