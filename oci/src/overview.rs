//! What a registry knows of its repositories beyond the distribution API: what a list of repositories or tags shows of each.
//! The answers of `GET /v2/_berth/…`, which the proxy reads, filters and gives to who may.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};
use time::OffsetDateTime;

use crate::{Digest, Page, Repository};

/// The longest text that names are searched for, in bytes.
pub const MAX_SEARCH_BYTES: usize = 255;

/// Some of a list: those with a text in their name, a page of them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Search {
    /// What their names have somewhere, in any case.
    pub q: Option<String>,
    /// Which part of them.
    pub page: Page,
}

/// Which tags are wanted, and in which order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TagSelection {
    /// Those with a text in their name; `last` is as the answer's `next` has it.
    pub search: Search,
    /// Only those that point at this manifest.
    pub digest: Option<Digest>,
    /// Which comes first.
    pub order: TagOrder,
    /// Without those under which cosign, before its version 3, keeps what is attached to an image: `sha256-<hex>.sig`, `.att`
    /// and `.sbom`.
    pub without_attached: bool,
}

/// The order of a list of tags.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum TagOrder {
    /// By name, as end-8 of the distribution API.
    #[default]
    Name,
    /// The one that was set last comes first.
    Pushed,
    /// The highest version comes first; numbers are compared as numbers.
    Version,
}

impl TagOrder {
    /// As it stands in a query.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Name => "name",
            Self::Pushed => "pushed",
            Self::Version => "version",
        }
    }
}

impl FromStr for TagOrder {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        [Self::Name, Self::Pushed, Self::Version].into_iter().find(|order| order.as_str() == text).ok_or(())
    }
}

impl fmt::Display for TagOrder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// `GET /v2/_berth/repositories`
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RepositoryList {
    /// A page of them, ordered as the catalogue.
    pub repositories: Vec<RepositoryOverview>,
    /// What to go on after, if there are more.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<String>,
}

/// What is known of a repository.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RepositoryOverview {
    /// Its name.
    pub name: Repository,
    /// What is counted of it; nothing while that isn't known.
    #[serde(flatten)]
    pub totals: Option<Totals>,
}

/// What is counted of a repository.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Totals {
    /// How many tags it has.
    pub tag_count: u64,
    /// What all that it holds weighs, in bytes; what others hold as well is counted here, too.
    pub size: u64,
    /// The tag that was set last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_push: Option<LastPush>,
    /// When something of it was pulled, and how often.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pulls: Option<Pulls>,
}

/// The tag that was set last.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LastPush {
    /// Which.
    pub tag: String,
    /// When, and by whom.
    #[serde(flatten)]
    pub pushed: Push,
}

/// A user's name as a header or a file of the registry carries it: percent-encoded, without white space.
pub fn encode_user(name: &str) -> String {
    form_urlencoded::byte_serialize(name.as_bytes()).collect()
}

/// The name that [`encode_user`] has written, if there is one.
pub fn decode_user(text: &str) -> Option<String> {
    // One value without a name.
    form_urlencoded::parse(text.as_bytes()).next().map(|(name, _)| name.into_owned()).filter(|name| !name.is_empty())
}

/// When a tag was set, and by whom.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Push {
    /// RFC 3339.
    #[serde(with = "time::serde::rfc3339")]
    pub at: OffsetDateTime,
    /// As the proxy called them; nobody, if it didn't say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub by: Option<String>,
}

/// How often something was pulled, about, and when the last time.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pulls {
    /// Since it is counted.
    pub count: u64,
    /// RFC 3339.
    #[serde(with = "time::serde::rfc3339")]
    pub at: OffsetDateTime,
}

/// `GET /v2/_berth/tags/<name>`
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TagOverviewList {
    /// Whose tags.
    pub name: Repository,
    /// What is counted of the repository.
    #[serde(flatten)]
    pub totals: Totals,
    /// How many tags were selected.
    pub matching: u64,
    /// A page of those.
    pub tags: Vec<TagOverview>,
    /// What to go on after, if there are more.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<String>,
}

/// What is known of a tag.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct TagOverview {
    /// Its name.
    pub tag: String,
    /// What it points at.
    pub digest: Digest,
    /// When it was set, and by whom, if that is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pushed: Option<Push>,
    /// What it points at, if that could be read.
    #[serde(flatten)]
    pub content: Option<ContentOverview>,
    /// When what it points at was pulled, and how often, under whatever name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pulls: Option<Pulls>,
    /// Whether it is kept, and why, where rules say that of tags.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retention: Option<TagRetention>,
}

/// Whether a tag is kept.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TagRetention {
    /// If it isn't, it goes with the next collection.
    pub kept: bool,
    /// The rule that decides, as it stands in the configuration.
    pub rule: String,
    /// Until when, if the rule says so by itself.
    #[serde(default, with = "time::serde::rfc3339::option", skip_serializing_if = "Option::is_none")]
    pub until: Option<OffsetDateTime>,
}

/// What is known of a manifest.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ContentOverview {
    /// `artifactType`, or else the configuration's media type; empty for an index without one.
    pub artifact_type: String,
    /// What its blobs weigh, in bytes; of an index, those of its heaviest image.
    pub size: u64,
    /// What it runs on, as `linux/arm64/v8`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub platforms: Vec<String>,
}

/// `GET /v2/_berth/usage/<name>`: what is used of the quotas that count a repository.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct UsageList {
    /// Each with all repositories that count together.
    pub quotas: Vec<QuotaUsage>,
}

/// What is used of a quota.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct QuotaUsage {
    /// The patterns of the repositories that count together.
    pub repositories: Vec<String>,
    /// Bytes, each blob once.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bytes: Option<Amount>,
    /// Tags.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tags: Option<Amount>,
    /// Not everything is counted yet, after a start.
    #[serde(default, rename = "counting", skip_serializing_if = "std::ops::Not::not")]
    pub is_counting: bool,
}

/// So much of so much.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Amount {
    /// What is used.
    pub used: u64,
    /// What may be.
    pub limit: u64,
}

/// `GET /v2/_berth/holders/<name>/<digest>`
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct HolderList {
    /// Repositories that hold the blob.
    pub repositories: Vec<Repository>,
    /// What to go on after, if others may hold it as well.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<String>,
}
