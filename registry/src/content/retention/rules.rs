//! What is kept and what goes, by the rules alone (zot's `storage.retention`): no clock, no storage.

use std::{cmp::Reverse, time::Duration};

use berth_config::Pattern;
use berth_oci::Repository;
use regex::Regex;

/// How long what no tag points at is kept, unless the file says otherwise.
pub const DEFAULT_DELAY: Duration = Duration::from_hours(24);

/// `storage.retention`
#[derive(Clone, Debug)]
pub struct Retention {
    /// Nothing is removed, only told.
    pub dry_run: bool,
    /// What no tag points at, and what is attached to something that is gone, is kept for so long.
    pub delay: Duration,
    /// The first one that has a repository counts for it, alone.
    pub policies: Vec<Policy>,
}

impl Retention {
    /// The policy of a repository.
    pub fn policy_of(&self, repository: &Repository) -> Option<&Policy> {
        let matches = |policy: &&Policy| policy.repositories.iter().any(|one| one.matches(repository.as_str()));
        self.policies.iter().find(matches)
    }
}

/// One of `policies`.
#[derive(Clone, Debug)]
pub struct Policy {
    /// Where it stands in the file.
    pub path: String,
    /// Which repositories it is for.
    pub repositories: Vec<Pattern>,
    /// Which tags are kept; all, if there are none of these.
    pub keep_tags: Vec<KeepTags>,
    /// Whether manifests go that no tag points at.
    pub delete_untagged: bool,
    /// Which of those are kept.
    pub keep_untagged: Option<Limits>,
    /// Whether what is attached to something goes when that is gone.
    pub delete_referrers: bool,
}

/// One of `keepTags`.
#[derive(Clone, Debug)]
pub struct KeepTags {
    /// Where it stands in the file.
    pub path: String,
    /// Which tags it is for; all, if there are none.
    pub patterns: Vec<Regex>,
    /// Which of those are kept.
    pub limits: Limits,
}

impl KeepTags {
    fn is_for(&self, tag: &str) -> bool {
        self.patterns.is_empty() || self.patterns.iter().any(|pattern| pattern.is_match(tag))
    }
}

/// What is kept if any of these holds; everything, if there are none.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Limits {
    /// It is one of the so many that were pushed last.
    pub pushed_count: Option<usize>,
    /// It is one of the so many that were pulled last.
    pub pulled_count: Option<usize>,
    /// It was pushed so long ago at most.
    pub pushed_within: Option<Duration>,
    /// It was pulled or pushed so long ago at most.
    pub pulled_within: Option<Duration>,
}

impl Limits {
    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// What is known of a tag, or of a manifest that has none. Times are in seconds since 1970.
#[derive(Clone, Debug)]
pub struct Facts<'a> {
    /// Its name: among those of one time the last by name is the newest.
    pub name: &'a str,
    /// When it was pushed; nothing, if that isn't known.
    pub pushed_at: Option<u64>,
    /// When it was pulled; 0 if it never was. Of what is older than the counting, when that began at least.
    pub pulled_at: u64,
    /// Whether that is known, and not only that it may have been.
    pub is_pull_known: bool,
}

/// What becomes of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// Whether it is kept.
    pub is_kept: bool,
    /// The rule that decided.
    pub rule: String,
    /// Until when it is kept, if the rule says that by itself.
    pub until: Option<u64>,
}

impl Verdict {
    fn kept(rule: impl Into<String>, until: Option<u64>) -> Self {
        Self { is_kept: true, rule: rule.into(), until }
    }
}

/// What becomes of all tags of a repository, in their order.
pub fn judge_tags(policy: &Policy, tags: &[Facts<'_>], now: u64) -> Vec<Verdict> {
    if policy.keep_tags.is_empty() {
        return vec![Verdict::kept("no keepTags", None); tags.len()];
    }
    let nobodys =
        Verdict { is_kept: false, rule: format!("{}.keepTags has no entry for it", policy.path), until: None };
    let mut verdicts = vec![nobodys; tags.len()];
    let mut groups = vec![Vec::new(); policy.keep_tags.len()];
    for (i, tag) in tags.iter().enumerate() {
        if let Some(group) = policy.keep_tags.iter().position(|entry| entry.is_for(tag.name)) {
            groups[group].push(i);
        }
    }
    for (entry, group) in policy.keep_tags.iter().zip(groups) {
        let among: Vec<Facts<'_>> = group.iter().map(|i| tags[*i].clone()).collect();
        for (i, verdict) in group.into_iter().zip(judge(&entry.path, &entry.limits, &among, now)) {
            verdicts[i] = verdict;
        }
    }
    verdicts
}

/// Whether an entry without rules keeps a tag by itself.
pub fn keeps_always(policy: &Policy, tag: &str) -> bool {
    policy.keep_tags.iter().find(|entry| entry.is_for(tag)).is_some_and(|entry| entry.limits.is_empty())
}

/// What becomes of some by one set of limits, which stands at `path`.
pub fn judge(path: &str, limits: &Limits, all: &[Facts<'_>], now: u64) -> Vec<Verdict> {
    if limits.is_empty() {
        return vec![Verdict::kept(path, None); all.len()];
    }
    // What isn't known takes nobody's place.
    let newest = |count: Option<usize>, time: &dyn Fn(&Facts<'_>) -> Option<u64>| {
        let known = (0..all.len()).filter_map(|i| Some((time(&all[i])?, i)));
        let mut order: Vec<(u64, usize)> = known.collect();
        order.sort_unstable_by_key(|(at, i)| Reverse((*at, all[*i].name)));
        let mut is_one = vec![false; all.len()];
        order.into_iter().take(count.unwrap_or_default()).for_each(|(_, i)| is_one[i] = true);
        is_one
    };
    let pushed = newest(limits.pushed_count, &|one| one.pushed_at);
    let pulled = newest(limits.pulled_count, &|one| one.pushed_at.filter(|_| one.is_pull_known).map(|_| one.pulled_at));
    let judge_one = |(i, one): (usize, &Facts<'_>)| {
        let Some(pushed_at) = one.pushed_at else { return Verdict::kept("it isn't known when it was pushed", None) };
        if pushed[i] {
            return Verdict::kept(format!("{path}.mostRecentlyPushedCount"), None);
        }
        if limits.pulled_count.is_some() && !one.is_pull_known {
            return Verdict::kept("it isn't known when it was pulled", None);
        }
        if pulled[i] {
            return Verdict::kept(format!("{path}.mostRecentlyPulledCount"), None);
        }
        let of_push = limits.pushed_within.map(|within| ("pushedWithin", pushed_at.saturating_add(within.as_secs())));
        let last = pushed_at.max(one.pulled_at);
        let of_pull = limits.pulled_within.map(|within| ("pulledWithin", last.saturating_add(within.as_secs())));
        // Whichever keeps it longer.
        let longest = of_push.into_iter().chain(of_pull).max_by_key(|(_, until)| *until);
        match longest.filter(|(_, until)| *until >= now) {
            Some((key, until)) => Verdict::kept(format!("{path}.{key}"), Some(until)),
            None => Verdict { is_kept: false, rule: path.to_owned(), until: None },
        }
    };
    all.iter().enumerate().map(judge_one).collect()
}

/// `storage.immutableTags`: tags that nobody moves or deletes.
#[derive(Clone, Debug)]
pub struct ImmutableTags {
    /// In which repositories.
    pub repositories: Vec<Pattern>,
    /// Which; all, if there are none of these.
    pub patterns: Vec<Regex>,
}

impl ImmutableTags {
    /// Whether this tag is one.
    pub fn has(&self, repository: &Repository, tag: &str) -> bool {
        self.repositories.iter().any(|one| one.matches(repository.as_str()))
            && (self.patterns.is_empty() || self.patterns.iter().any(|pattern| pattern.is_match(tag)))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    const NOW: u64 = 1_000_000;

    fn regex(text: &str) -> Regex {
        Regex::new(text).expect("a pattern")
    }

    fn policy(keep_tags: Vec<(Vec<&str>, Limits)>) -> Policy {
        let entry = |(i, (patterns, limits)): (usize, (Vec<&str>, Limits))| KeepTags {
            path: format!("keepTags[{i}]"),
            patterns: patterns.into_iter().map(regex).collect(),
            limits,
        };
        Policy {
            path: "p".to_owned(),
            repositories: vec![Pattern::parse("**").expect("a pattern")],
            keep_tags: keep_tags.into_iter().enumerate().map(entry).collect(),
            delete_untagged: true,
            keep_untagged: None,
            delete_referrers: false,
        }
    }

    fn kept(policy: &Policy, tags: &[(&str, u64, u64)]) -> Vec<String> {
        let facts: Vec<Facts<'_>> = tags
            .iter()
            .map(|(name, pushed, pulled)| Facts {
                name,
                pushed_at: Some(*pushed),
                pulled_at: *pulled,
                is_pull_known: true,
            })
            .collect();
        let verdicts = judge_tags(policy, &facts, NOW);
        facts.iter().zip(verdicts).filter(|(_, v)| v.is_kept).map(|(f, _)| f.name.to_owned()).collect()
    }

    #[test]
    fn zot_s_examples() {
        let newest_two = Limits { pushed_count: Some(2), ..Limits::default() };
        let tags = [("v1", 10, 0), ("v2", 20, 0), ("v3", 30, 0), ("main", 5, 0)];
        assert_eq!(
            kept(&policy(vec![(vec!["v.*"], newest_two.clone()), (vec!["main"], Limits::default())]), &tags),
            ["v2", "v3", "main"]
        );
        // What no entry has goes, and the first entry that has it decides.
        assert_eq!(kept(&policy(vec![(vec!["v.*"], newest_two.clone())]), &tags), ["v2", "v3"]);
        assert_eq!(
            kept(&policy(vec![(vec!["v1"], Limits::default()), (vec![], newest_two)]), &tags),
            ["v1", "v2", "v3"]
        );
        // Without keepTags all stay.
        assert_eq!(kept(&policy(vec![]), &tags).len(), 4);
        // A recent push counts as a pull, and any rule is enough.
        let hour = Some(Duration::from_hours(1));
        let pulled = Limits { pulled_within: hour, ..Limits::default() };
        let tags = [("old", 1, 0), ("pulled", 1, NOW - 3600), ("pushed", NOW - 10, 0)];
        assert_eq!(kept(&policy(vec![(vec![], pulled)]), &tags), ["pulled", "pushed"]);
        // What nobody knows anything of stays.
        let unknown = [Facts { name: "x", pushed_at: None, pulled_at: 0, is_pull_known: true }];
        let strict = policy(vec![(vec![], Limits { pushed_within: hour, ..Limits::default() })]);
        assert!(judge_tags(&strict, &unknown, NOW)[0].is_kept);
        // And takes nobody's place: neither a push nor a pull that isn't known.
        let one = |name, pushed_at, is_pull_known| Facts { name, pushed_at, pulled_at: 5, is_pull_known };
        let all = [one("u", None, true), one("a", Some(1), true), one("f", Some(2), false)];
        for limits in [
            Limits { pushed_count: Some(2), ..Limits::default() },
            Limits { pulled_count: Some(1), ..Limits::default() },
        ] {
            assert!(judge_tags(&policy(vec![(vec![], limits)]), &all, NOW).iter().all(|verdict| verdict.is_kept));
        }
    }

    /// Written down straight from what zot says that it does, as slowly as can be.
    fn naive(policy: &Policy, tags: &BTreeMap<String, (u64, u64)>) -> Vec<String> {
        let mut kept = Vec::new();
        for (name, (pushed_at, pulled_at)) in tags {
            let entry = |tag: &str| {
                policy
                    .keep_tags
                    .iter()
                    .position(|e| e.patterns.is_empty() || e.patterns.iter().any(|p| p.is_match(tag)))
            };
            let is_kept = if policy.keep_tags.is_empty() {
                true
            } else if let Some(own) = entry(name) {
                let limits = &policy.keep_tags[own].limits;
                let none = limits.pushed_count.is_none()
                    && limits.pulled_count.is_none()
                    && limits.pushed_within.is_none()
                    && limits.pulled_within.is_none();
                let rank = |by_pull: bool| {
                    let time = |(pushed, pulled): (u64, u64)| if by_pull { pulled } else { pushed };
                    let mine = time((*pushed_at, *pulled_at));
                    let others = tags.iter().filter(|(other, _)| entry(other) == Some(own));
                    others.filter(|(other, times)| (time(**times), *other) > (mine, name)).count()
                };
                none || limits.pushed_count.is_some_and(|n| rank(false) < n)
                    || limits.pulled_count.is_some_and(|n| rank(true) < n)
                    || limits.pushed_within.is_some_and(|d| NOW - pushed_at <= d.as_secs())
                    || limits
                        .pulled_within
                        .is_some_and(|d| NOW - pushed_at <= d.as_secs() || NOW - pulled_at <= d.as_secs())
            } else {
                false
            };
            if is_kept {
                kept.push(name.clone());
            }
        }
        kept
    }

    fn limits() -> impl Strategy<Value = Limits> {
        let count = || proptest::option::of(1_usize..4);
        let within = || proptest::option::of((1_u64..2000).prop_map(Duration::from_secs));
        (count(), count(), within(), within()).prop_map(|(pushed_count, pulled_count, pushed_within, pulled_within)| {
            Limits { pushed_count, pulled_count, pushed_within, pulled_within }
        })
    }

    proptest! {
        #[test]
        fn as_the_naive_model_says(
            tags in proptest::collection::btree_map("[ab][0-9]", (NOW - 3000..=NOW, 0..=NOW), 0..12),
            entries in proptest::collection::vec((proptest::collection::vec(proptest::sample::select(vec!["a", "b", "[0-4]$", "^a1"]), 0..3), limits()), 0..4),
        ) {
            let borrowed = entries.iter().map(|(patterns, limits)| (patterns.clone(), limits.clone()));
            let policy = policy(borrowed.collect());
            let listed: Vec<(&str, u64, u64)> = tags.iter().map(|(name, (a, b))| (name.as_str(), *a, *b)).collect();
            prop_assert_eq!(kept(&policy, &listed), naive(&policy, &tags));
        }
    }
}
