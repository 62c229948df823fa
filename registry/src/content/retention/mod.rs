//! Retention: tags, and manifests that no tag points at, go by the rules of the file (zot's `storage.retention`). Without rules
//! nothing ever goes.
//!
//! [`rules`] says what goes. Here it is found out what there is, what hangs together, and what went on meanwhile: whatever has
//! changed since it was judged stays until the next time.

pub mod rules;

use std::{
    collections::{HashMap, HashSet},
    io,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use berth_oci::{Digest, Notice, Reference, Repository, Tag};

use self::rules::{Facts, ImmutableTags, Policy, Retention, Verdict, judge, judge_tags, keeps_always};
use super::{Content, storage_error};
use crate::storage::keys;

/// How many removals are written down together.
const EXPIRED_PER_NOTICE: usize = 100;

/// How many rounds it takes at most until nothing more goes of a repository: each index lets go of what it names.
const MAX_ROUNDS: usize = 8;

/// What is kept, and what nobody may move.
#[derive(Clone, Debug, Default)]
pub struct Rules {
    /// `storage.retention`
    pub retention: Option<Retention>,
    /// `storage.immutableTags`
    pub immutable: Vec<ImmutableTags>,
}

impl Rules {
    /// Whether nobody may move or delete a tag.
    pub fn is_immutable(&self, repository: &Repository, tag: &str) -> bool {
        self.immutable.iter().any(|one| one.has(repository, tag))
    }
}

/// Something that goes, or would go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Expired {
    /// The tag; nothing, if it is a manifest without one.
    pub tag: Option<String>,
    /// The manifest.
    pub digest: Digest,
    /// The rule that decided.
    pub rule: String,
    /// When its tag was set: one that was set since stays.
    set_at: Option<u64>,
    /// What it belongs to, if to something: as long as that is there, this stays.
    subject: Option<Digest>,
}

/// What goes of one repository.
#[derive(Debug, Default)]
pub struct Plan {
    /// What goes.
    pub expired: Vec<Expired>,
    /// How many bytes only that needs, here; other repositories may hold some of them.
    pub bytes: u64,
}

/// A tag, what it points at, and what is known of it.
struct Tagged {
    name: String,
    digest: Digest,
    pushed_at: Option<u64>,
    pull: (u64, bool),
}

/// When manifests were pulled, and whether that is known.
type PullTimes = HashMap<Digest, (u64, bool)>;

/// A manifest that is held.
#[derive(Default)]
struct Held {
    age: Duration,
    pull: (u64, bool),
    parts: Vec<Digest>,
    subject: Option<Digest>,
    blobs: Vec<(Digest, u64)>,
}

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}

/// What is attached under tags: by cosign, before its version 3 (`sha256-<hex>.sig`), and by clients of registries without
/// referrers (`sha256-<hex>`, of whose hash 64 characters stay; the distribution specification, "Referrers Tag Schema").
struct Attachments<'a> {
    /// Of longer hashes, by the first 64 characters.
    cut: HashMap<String, &'a Digest>,
}

/// What a tag is attached to.
enum Attached {
    /// To nothing: it is a tag as others.
    No,
    /// To something that isn't here.
    Gone,
    /// To this.
    To(Digest),
}

impl<'a> Attachments<'a> {
    fn of(held: &'a HashMap<Digest, Held>) -> Self {
        let long = held.keys().filter(|digest| digest.hex().len() > 64);
        let cut = long.map(|digest| (format!("{}-{}", digest.algorithm(), &digest.hex()[..64]), digest));
        Self { cut: cut.collect() }
    }

    fn subject(&self, tag: &str, held: &'a HashMap<Digest, Held>) -> Attached {
        let (subject, kind) = tag.rsplit_once('.').unwrap_or((tag, ""));
        if !matches!(kind, "" | "sig" | "att" | "sbom") {
            return Attached::No;
        }
        if let Some(digest) = self.cut.get(subject) {
            return Attached::To((*digest).clone());
        }
        match subject.replacen('-', ":", 1).parse::<Digest>() {
            Ok(digest) if held.contains_key(&digest) => Attached::To(digest),
            Ok(_) => Attached::Gone,
            Err(_) => Attached::No,
        }
    }
}

impl Content {
    /// Takes away what goes by the rules, in all repositories; each removal is told in the log. What a push was told within
    /// `told` stays; nothing, while no registry runs.
    ///
    /// # Errors
    /// If the repositories can't be listed.
    pub async fn retain(&self, told: Option<Duration>) -> io::Result<()> {
        let Some(retention) = &self.rules.retention else { return Ok(()) };
        let mut last = None;
        while let Some(repositories) = self.some_repositories(&[keys::MANIFESTS], &mut last).await? {
            for repository in repositories {
                if self.is_stopping() {
                    return Ok(());
                }
                if let Err(error) = self.retain_in(&repository, retention, told).await {
                    tracing::error!(%repository, %error, "what this repository keeps can't be found out; nothing of it goes");
                }
            }
        }
        Ok(())
    }

    /// Gives what would go of each repository, and takes nothing away.
    ///
    /// # Errors
    /// If something can't be read.
    pub async fn each_retention_plan(&self, mut give: impl FnMut(&Repository, Plan)) -> io::Result<()> {
        let mut last = None;
        while let Some(repositories) = self.some_repositories(&[keys::MANIFESTS], &mut last).await? {
            for repository in repositories {
                if let Some(plan) = self.plan_retention(&repository, None).await? {
                    give(&repository, plan);
                }
            }
        }
        Ok(())
    }

    async fn retain_in(
        &self,
        repository: &Repository,
        retention: &Retention,
        told: Option<Duration>,
    ) -> io::Result<()> {
        for _ in 0..MAX_ROUNDS {
            let Some(plan) = self.plan_retention(repository, told).await? else { return Ok(()) };
            let mut removed = 0;
            for some in plan.expired.chunks(EXPIRED_PER_NOTICE) {
                if self.is_stopping() {
                    return Ok(());
                }
                removed += self.expire_some(repository, some, retention.dry_run, told).await?;
            }
            if removed == 0 {
                break;
            }
        }
        Ok(())
    }

    /// Takes some away, and writes down what has gone; how much that is.
    async fn expire_some(
        &self,
        repository: &Repository,
        some: &[Expired],
        dry_run: bool,
        told: Option<Duration>,
    ) -> io::Result<usize> {
        let (mut notices, mut outcome) = (Vec::new(), Ok(()));
        for one in some {
            let Expired { tag, digest, rule, .. } = one;
            if dry_run {
                tracing::info!(%repository, tag, %digest, rule, "this would expire");
                continue;
            }
            match self.expire(repository, one, told).await {
                Ok(false) => {}
                Ok(true) => {
                    tracing::info!(%repository, tag, %digest, rule, "expired");
                    let (repository, tag, digest, rule) =
                        (repository.clone(), tag.clone(), digest.clone(), rule.clone());
                    notices.push(Notice::Expired { repository, tag, digest, rule });
                }
                Err(error) => {
                    outcome = Err(error);
                    break;
                }
            }
        }
        // What went before something failed went, too.
        let removed = notices.len();
        self.notice(notices).await?;
        outcome.map(|()| removed)
    }

    /// What goes of a repository now; nothing, if no policy has it.
    ///
    /// # Errors
    /// If something of it can't be read: then nothing of it goes.
    pub async fn plan_retention(&self, repository: &Repository, told: Option<Duration>) -> io::Result<Option<Plan>> {
        let Some(retention) = &self.rules.retention else { return Ok(None) };
        let Some(policy) = retention.policy_of(repository) else { return Ok(None) };
        let Some((tags, pulls)) = self.tags_with_pulls(repository).await? else {
            tracing::warn!(%repository, "this repository is too large to be counted, so nothing of it goes");
            return Ok(None);
        };
        let held = self.held_manifests(repository, &pulls).await?;
        let mut plan = Plan::default();
        // What is attached to something takes no other tag's place, and goes or stays with that.
        let attachments = Attachments::of(&held);
        let (mut tagged, mut attached, mut going) = (HashSet::new(), Vec::new(), Vec::new());
        let (mut own, mut orphans) = (Vec::new(), Vec::new());
        for tag in &tags {
            match attachments.subject(&tag.name, &held) {
                Attached::No => own.push(tag),
                _ if self.stays_by_itself(repository, policy, &tag.name) => drop(tagged.insert(&tag.digest)),
                Attached::To(subject) => attached.push((tag, subject)),
                Attached::Gone if policy.delete_referrers => orphans.push(tag),
                Attached::Gone => drop(tagged.insert(&tag.digest)),
            }
        }
        let verdicts = self.judge(repository, policy, &own);
        for (tag, verdict) in own.into_iter().zip(verdicts) {
            match verdict.is_kept {
                true => drop(tagged.insert(&tag.digest)),
                false => going.push((tag, verdict.rule)),
            }
        }
        let may_be_told = |digest: &Digest| self.may_be_told(repository, digest, told);
        let untagged = untagged_that_stay(policy, retention.delay, &tags, &held, may_be_told);
        let kept = keep_together(&held, tagged, untagged, policy, retention.delay, &mut attached);
        // With their images; once those are gone, as referrers are.
        let with_images = attached.into_iter().map(|(tag, subject)| (tag, Some(subject)));
        let with_images = with_images.filter(|_| policy.delete_referrers);
        let orphans = orphans.into_iter().map(|tag| (tag, None));
        let rule = format!("{}.deleteReferrers", policy.path);
        let referrers = with_images.chain(orphans).map(|(tag, subject)| (tag, subject, rule.clone()));
        let own = going.into_iter().map(|(tag, rule)| (tag, None, rule));
        plan.expired.extend(own.chain(referrers).map(|(tag, subject, rule)| Expired {
            tag: Some(tag.name.clone()),
            digest: tag.digest.clone(),
            rule,
            set_at: tag.pushed_at,
            subject,
        }));
        // What a tag still points at, or points at until this is done, isn't without one.
        let pointed_at: HashSet<&Digest> = tags.iter().map(|tag| &tag.digest).collect();
        let gone = held.iter().filter(|(digest, _)| !kept.contains(*digest));
        for (digest, manifest) in gone.clone().filter(|(digest, _)| !pointed_at.contains(*digest)) {
            let key = if manifest.subject.is_some() { "deleteReferrers" } else { "deleteUntagged" };
            let (digest, rule, subject) = (digest.clone(), format!("{}.{key}", policy.path), manifest.subject.clone());
            plan.expired.push(Expired { tag: None, digest, rule, set_at: None, subject });
        }
        let still: HashSet<&Digest> = held
            .iter()
            .filter(|(digest, _)| kept.contains(*digest))
            .flat_map(|(_, one)| &one.blobs)
            .map(|(b, _)| b)
            .collect();
        let freed: HashMap<&Digest, u64> = gone
            .flat_map(|(_, one)| &one.blobs)
            .filter(|(blob, _)| !still.contains(blob))
            .map(|(b, n)| (b, *n))
            .collect();
        plan.bytes = freed.values().sum();
        Ok(Some(plan))
    }

    /// Whether a tag that is attached to something stays for itself.
    fn stays_by_itself(&self, repository: &Repository, policy: &Policy, tag: &str) -> bool {
        policy.keep_tags.is_empty() || keeps_always(policy, tag) || self.rules.is_immutable(repository, tag)
    }

    /// What becomes of tags: none of those goes that nobody may move.
    fn judge(&self, repository: &Repository, policy: &Policy, tags: &[&Tagged]) -> Vec<Verdict> {
        let facts: Vec<Facts<'_>> = tags.iter().map(|tag| tag.facts()).collect();
        let mut verdicts = judge_tags(policy, &facts, now());
        for (tag, verdict) in tags.iter().zip(&mut verdicts) {
            if self.rules.is_immutable(repository, &tag.name) {
                *verdict = Verdict { is_kept: true, rule: "storage.immutableTags".to_owned(), until: None };
            }
        }
        verdicts
    }

    /// All tags of a repository, and when manifests were pulled; nothing, if there are too many.
    async fn tags_with_pulls(&self, repository: &Repository) -> io::Result<Option<(Vec<Tagged>, PullTimes)>> {
        let Some(known) = self.overview(repository).await? else { return Ok(None) };
        let known = known.read().unwrap_or_else(std::sync::PoisonError::into_inner);
        let tag = |(name, digest, pushed_at, pull): (&str, Digest, u64, (u64, bool))| Tagged {
            name: name.to_owned(),
            digest,
            pushed_at: (pushed_at > 0).then_some(pushed_at),
            pull,
        };
        Ok(Some((known.tags_with_times().map(tag).collect(), known.pull_times().collect())))
    }

    /// Every manifest of a repository.
    async fn held_manifests(&self, repository: &Repository, pulls: &PullTimes) -> io::Result<HashMap<Digest, Held>> {
        let mut held = HashMap::new();
        for (digest, age) in self.digests_with_ages(&keys::manifests(repository)).await? {
            let Some((manifest, len)) = self.read_manifest(repository, &digest).await? else { continue };
            let one = Held {
                age,
                pull: pulls.get(&digest).copied().unwrap_or((0, true)),
                parts: manifest.manifests.iter().map(|part| part.digest.clone()).collect(),
                // Its own bytes, too.
                blobs: manifest
                    .blobs
                    .iter()
                    .map(|blob| (blob.digest.clone(), blob.size))
                    .chain([(digest.clone(), len as u64)])
                    .collect(),
                subject: manifest.subject,
            };
            held.insert(digest, one);
        }
        Ok(held)
    }

    /// Whether a push may have been told that a manifest is there, and name it in an index.
    fn may_be_told(&self, repository: &Repository, digest: &Digest, told: Option<Duration>) -> bool {
        !self.storage.is_shared() && told.is_some_and(|within| self.recent.was_told(repository, digest, within))
    }

    /// Takes away a tag, or a manifest without one, unless something has changed since it was judged; whether it did.
    async fn expire(&self, repository: &Repository, one: &Expired, told: Option<Duration>) -> io::Result<bool> {
        let _alone = self.repositories.alone(repository).await;
        let refused = |error: berth_oci::Error| io::Error::other(error.to_string());
        // What belongs to something goes when that has gone: it may have come back since this was judged.
        if let Some(subject) = &one.subject
            && self.storage.exists(&keys::manifest(repository, subject)).await?
        {
            return Ok(false);
        }
        if let Some(name) = &one.tag {
            let Ok(tag) = name.parse::<Tag>() else { return Ok(false) };
            let found = self.read_tag(repository, &tag).await?;
            let is_same = found
                .is_some_and(|(digest, pushed)| digest == one.digest && pushed.map(|pushed| pushed.at) == one.set_at);
            if is_same {
                self.remove_tags(repository, &one.digest, &[tag]).await.map_err(refused)?;
            }
            return Ok(is_same);
        }
        // A part of an index goes after that.
        if self.may_be_told(repository, &one.digest, told)
            || self.is_tagged(repository, &one.digest).await.map_err(refused)?
            || self.must_be_unnamed(repository, &one.digest).await.is_err()
        {
            return Ok(false);
        }
        match self.find_manifest(repository, &Reference::Digest(one.digest.clone())).await {
            Ok(stored) => self.remove_manifest(repository, &one.digest, &stored).await.map(|()| true).map_err(refused),
            Err(_) => Ok(false),
        }
    }

    /// Whether a tag points at a manifest, or may: an entry says that one did, and the tag can't be read.
    async fn is_tagged(&self, repository: &Repository, digest: &Digest) -> Result<bool, berth_oci::Error> {
        let mut last = None;
        loop {
            let (tags, next) = self.tags_of(repository, digest, last).await?;
            for tag in &tags {
                let is_other = match self.read_tag(repository, tag).await.map_err(storage_error)? {
                    Some((target, _)) => target != *digest,
                    None => !self.storage.exists(&keys::tag(repository, tag)).await.map_err(storage_error)?,
                };
                if !is_other {
                    return Ok(true);
                }
            }
            match next {
                Some(next) => last = Some(next),
                None => return Ok(false),
            }
        }
    }

    /// What keeps a tag, or that it goes; nothing, where tags aren't judged.
    pub(super) async fn verdicts(&self, repository: &Repository) -> io::Result<HashMap<String, Verdict>> {
        let Some(policy) = self.rules.retention.as_ref().and_then(|retention| retention.policy_of(repository)) else {
            return Ok(HashMap::new());
        };
        let Some((tags, _)) = self.tags_with_pulls(repository).await? else { return Ok(HashMap::new()) };
        if policy.keep_tags.is_empty() {
            return Ok(HashMap::new());
        }
        // What is attached to something isn't judged by itself.
        let nothing = HashMap::new();
        let attachments = Attachments::of(&nothing);
        let is_own = |tag: &&Tagged| matches!(attachments.subject(&tag.name, &nothing), Attached::No);
        let own: Vec<&Tagged> = tags.iter().filter(is_own).collect();
        let verdicts = self.judge(repository, policy, &own);
        Ok(own.into_iter().map(|tag| tag.name.clone()).zip(verdicts).collect())
    }

    /// Nothing, or the error that nobody may move or delete one of these tags.
    pub(super) fn must_be_mutable(&self, repository: &Repository, tag: &Tag) -> Result<(), berth_oci::Error> {
        if !self.rules.is_immutable(repository, tag.as_str()) {
            return Ok(());
        }
        let message =
            format!("the tag {tag} of {repository} is immutable (storage.immutableTags): it stays what it is");
        Err(berth_oci::Error::new(http::StatusCode::FORBIDDEN, berth_oci::ErrorCode::Denied, message))
    }
}

impl Tagged {
    fn facts(&self) -> Facts<'_> {
        let (pulled_at, is_pull_known) = self.pull;
        Facts { name: &self.name, pushed_at: self.pushed_at, pulled_at, is_pull_known }
    }
}

/// The manifests without a tag that stay for themselves: by a rule, since they are young, or since a push was told of them.
fn untagged_that_stay<'a>(
    policy: &Policy,
    delay: Duration,
    tags: &[Tagged],
    held: &'a HashMap<Digest, Held>,
    may_be_told: impl Fn(&Digest) -> bool,
) -> HashSet<&'a Digest> {
    let own = held.iter().filter(|(_, one)| one.subject.is_none());
    if !policy.delete_untagged {
        return own.map(|(digest, _)| digest).collect();
    }
    let tagged: HashSet<&Digest> = tags.iter().map(|tag| &tag.digest).collect();
    let without: Vec<(&Digest, &Held)> = own.filter(|(digest, _)| !tagged.contains(digest)).collect();
    let names: Vec<String> = without.iter().map(|(digest, _)| digest.to_string()).collect();
    let facts = without.iter().zip(&names).map(|((_, one), name)| {
        let pushed_at = Some(now().saturating_sub(one.age.as_secs()));
        Facts { name, pushed_at, pulled_at: one.pull.0, is_pull_known: one.pull.1 }
    });
    let facts: Vec<Facts<'_>> = facts.collect();
    let path = format!("{}.keepUntagged", policy.path);
    let verdicts = policy.keep_untagged.as_ref().map(|limits| judge(&path, limits, &facts, now()));
    let stays = |(i, (digest, one)): (usize, &(&'a Digest, &Held))| {
        let by_rule = verdicts.as_ref().is_some_and(|verdicts| verdicts[i].is_kept);
        (by_rule || one.age < delay || may_be_told(digest)).then_some(*digest)
    };
    without.iter().enumerate().filter_map(stays).collect()
}

/// Everything that stays: what a tag keeps or a rule, what an index names that stays, and what is attached to what stays.
/// Attached tags whose image stays are taken out of `attached`.
fn keep_together<'a>(
    held: &'a HashMap<Digest, Held>,
    tagged: HashSet<&'a Digest>,
    untagged: HashSet<&'a Digest>,
    policy: &Policy,
    delay: Duration,
    attached: &mut Vec<(&'a Tagged, Digest)>,
) -> HashSet<Digest> {
    let mut kept: HashSet<Digest> = HashSet::new();
    let mut open: Vec<Digest> = tagged.into_iter().chain(untagged).cloned().collect();
    let mut attachments: HashMap<&Digest, Vec<&Digest>> = HashMap::new();
    for (digest, one) in held {
        let Some(subject) = &one.subject else { continue };
        attachments.entry(subject).or_default().push(digest);
        if one.age < delay || !policy.delete_referrers {
            open.push(digest.clone());
        }
    }
    loop {
        while let Some(digest) = open.pop() {
            if !kept.insert(digest.clone()) {
                continue;
            }
            open.extend(attachments.get(&digest).into_iter().flatten().map(|one| (*one).clone()));
            open.extend(held.get(&digest).into_iter().flat_map(|one| one.parts.iter().cloned()));
        }
        attached.retain(|(tag, subject)| {
            let stays = kept.contains(subject);
            if stays {
                open.push(tag.digest.clone());
            }
            !stays
        });
        if open.is_empty() {
            return kept;
        }
    }
}
