//! `storage.retention`, as zot has it, and `storage.immutableTags` beside it.

use std::time::Duration;

use berth_config::{Pattern, Section};
use regex::{Regex, RegexBuilder};

use crate::content::retention::{
    Rules,
    rules::{DEFAULT_DELAY, ImmutableTags, KeepTags, Limits, Policy, Retention},
};

/// The most memory that one pattern may take, in bytes.
const MAX_PATTERN_BYTES: usize = 1024 * 1024;

/// Reads both.
pub fn read(storage: &Section<'_>) -> Rules {
    let section = storage.section("retention");
    let retention = section.is_present().then(|| {
        let policies = section.sections("policies").into_iter().map(read_policy).collect();
        let dry_run = section.flag("dryRun").unwrap_or(false);
        Retention { dry_run, delay: section.duration("delay").unwrap_or(DEFAULT_DELAY), policies }
    });
    section.close();
    let immutable = storage.sections("immutableTags").into_iter().map(|entry| {
        let read = ImmutableTags { repositories: repositories(&entry), patterns: patterns(&entry) };
        entry.close();
        read
    });
    Rules { retention, immutable: immutable.collect() }
}

fn read_policy(policy: Section<'_>) -> Policy {
    let path = policy.path_of("");
    let path = path.trim_end_matches('.').to_owned();
    let keep_tags = policy.sections("keepTags").into_iter().map(|entry| {
        let path = entry.path_of("").trim_end_matches('.').to_owned();
        let read = KeepTags { path, patterns: patterns(&entry), limits: limits(&entry) };
        entry.close();
        read
    });
    let keep_tags = keep_tags.collect();
    let untagged = policy.section("keepUntagged");
    let keep_untagged = untagged.is_present().then(|| limits(&untagged)).filter(|limits| !limits.is_empty());
    untagged.close();
    let read = Policy {
        path,
        repositories: repositories(&policy),
        keep_tags,
        delete_untagged: policy.flag("deleteUntagged").unwrap_or(true),
        keep_untagged,
        delete_referrers: policy.flag("deleteReferrers").unwrap_or(false),
    };
    policy.close();
    read
}

fn limits(section: &Section<'_>) -> Limits {
    // zot takes 0 for none.
    let count = |key| section.number(key).and_then(|n| usize::try_from(n).ok()).filter(|n| *n > 0);
    let within = |key| {
        let within = section.duration(key).filter(|within| !within.is_zero())?;
        if within < Duration::from_secs(1) {
            section.problem(key, "is less than a second; expected a length of time with its unit, such as \"720h\"");
        }
        Some(within)
    };
    Limits {
        pushed_count: count("mostRecentlyPushedCount"),
        pulled_count: count("mostRecentlyPulledCount"),
        pushed_within: within("pushedWithin"),
        pulled_within: within("pulledWithin"),
    }
}

fn repositories(section: &Section<'_>) -> Vec<Pattern> {
    let texts = section.texts("repositories").unwrap_or_default();
    if texts.is_empty() {
        section.problem("repositories", "is missing; expected patterns of repositories, such as [\"team/**\"]");
    }
    let parse = |text: &String| {
        let parsed = Pattern::parse(text);
        parsed.map_err(|e| section.problem("repositories", format!("has {text:?}, which is no pattern ({e})"))).ok()
    };
    texts.iter().filter_map(parse).collect()
}

/// Regular expressions as Go has them: they match anywhere unless they say where.
fn patterns(section: &Section<'_>) -> Vec<Regex> {
    let texts = section.texts("patterns").unwrap_or_default();
    let parse = |text: &String| {
        let parsed = RegexBuilder::new(text).size_limit(MAX_PATTERN_BYTES).build();
        parsed
            .map_err(|e| section.problem("patterns", format!("has {text:?}, which is no regular expression ({e})")))
            .ok()
    };
    texts.iter().filter_map(parse).collect()
}
