//! What is known of one repository: in memory while somebody looks, and written down as one document.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, HashMap},
    hash::Hash,
    sync::{Arc, OnceLock},
};

use berth_oci::{
    Algorithm, ContentOverview, Digest, LastPush, Pulls, Push, TagOrder, TagOverview, TagSelection, Totals, decode_user,
};
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;

use super::{super::manifests::TagTarget, version::version};

/// A digest's hash alone, of which there are many: the length tells the algorithm.
type Hashed = Box<[u8]>;

fn packed(digest: &Digest) -> Hashed {
    digest.hash().into()
}

fn unpacked(hash: &Hashed) -> Option<Digest> {
    Algorithm::ALL.into_iter().find_map(|algorithm| Digest::from_hash(algorithm, hash).ok())
}

/// What is said of many, kept once.
#[derive(Clone, Debug)]
struct Interned<T> {
    all: Vec<T>,
    places: HashMap<T, u32>,
}

impl<T> Default for Interned<T> {
    fn default() -> Self {
        Self { all: Vec::new(), places: HashMap::new() }
    }
}

impl<T: Clone + Eq + Hash> Interned<T> {
    fn of(&mut self, value: T) -> u32 {
        if let Some(place) = self.places.get(&value) {
            return *place;
        }
        let place = u32::try_from(self.all.len()).unwrap_or(u32::MAX);
        self.all.push(value.clone());
        self.places.insert(value, place);
        place
    }

    fn get(&self, place: u32) -> Option<&T> {
        self.all.get(usize::try_from(place).ok()?)
    }
}

#[derive(Clone, Debug)]
struct Tagged {
    hash: Hashed,
    /// In seconds since 1970; 0 if it isn't known.
    at: u64,
    by: u32,
}

#[derive(Clone, Debug, Default)]
struct Described {
    /// Its artifact type and platforms; nothing if it couldn't be read.
    kind: Option<u32>,
    size: u64,
    pulls: u64,
    pulled_at: u64,
}

/// What is known of a repository.
#[derive(Default)]
pub struct Overview {
    /// When it was last compared with what is stored, in seconds since 1970.
    pub compared_at: u64,
    /// Since when pulls are counted: who knows whether it was pulled what was there before, and it shall not be taken for
    /// never pulled.
    counted_since: u64,
    tags: BTreeMap<Arc<str>, Tagged>,
    manifests: HashMap<Hashed, Described>,
    /// What each blob weighs.
    blobs: HashMap<Hashed, u64>,
    names: Interned<String>,
    /// Without their sizes.
    kinds: Interned<ContentOverview>,
    /// How often what was pulled since this was written down.
    new_pulls: HashMap<Hashed, u64>,
    by_time: OnceLock<Vec<Arc<str>>>,
    by_version: OnceLock<Vec<Arc<str>>>,
}

/// What has been found out about a repository since.
#[derive(Default)]
pub struct News {
    /// What tags point at now, when they were set, by whom; nothing of those that are gone.
    pub tags: Vec<(String, Option<TagTarget>)>,
    /// What manifests are, if they are still held.
    pub manifests: Vec<(Digest, Option<Description>)>,
    /// What blobs weigh, if they are still held.
    pub blobs: Vec<(Digest, Option<u64>)>,
    /// How often manifests were pulled, and when the last time, in seconds since 1970.
    pub pulls: Vec<(Digest, u64, u64)>,
}

impl News {
    /// Whether nothing was found out.
    pub fn is_empty(&self) -> bool {
        let Self { tags, manifests, blobs, pulls } = self;
        tags.is_empty() && manifests.is_empty() && blobs.is_empty() && pulls.is_empty()
    }
}

/// What a manifest is.
#[derive(Default)]
pub struct Description {
    /// Nothing if it couldn't be read.
    pub content: Option<ContentOverview>,
    /// The images of an index.
    pub images: Vec<Digest>,
    /// Its own bytes.
    pub len: u64,
}

fn time(seconds: u64) -> Option<OffsetDateTime> {
    let seconds = i64::try_from(seconds).ok().filter(|seconds| *seconds > 0)?;
    OffsetDateTime::from_unix_timestamp(seconds).ok()
}

impl Overview {
    /// Nothing is known yet, nor whether anything was pulled before.
    pub fn counted_since(at: u64) -> Self {
        Self { counted_since: at, ..Self::default() }
    }

    /// When a manifest was pulled the last time, as far as that is known: what is older than the counting counts as pulled
    /// when that began.
    /// And whether it is known.
    fn last_pull(&self, hash: &Hashed, pushed_at: u64) -> (u64, bool) {
        let pulled_at = self.manifests.get(hash).map_or(0, |known| known.pulled_at);
        match pulled_at == 0 && pushed_at <= self.counted_since {
            true => (self.counted_since, false),
            false => (pulled_at, true),
        }
    }

    /// Every tag with its manifest, when it was set (0 if that isn't known), and when that was pulled.
    pub fn tags_with_times(&self) -> impl Iterator<Item = (&str, Digest, u64, (u64, bool))> {
        self.tags
            .iter()
            .filter_map(|(tag, is)| Some((&**tag, unpacked(&is.hash)?, is.at, self.last_pull(&is.hash, is.at))))
    }

    /// When manifests were pulled.
    pub fn pull_times(&self) -> impl Iterator<Item = (Digest, (u64, bool))> {
        self.manifests.keys().filter_map(|hash| Some((unpacked(hash)?, self.last_pull(hash, 0))))
    }

    /// About how many bytes it takes.
    pub fn weight(&self) -> usize {
        let orders = [&self.by_time, &self.by_version].map(|order| order.get().map_or(0, Vec::len) * 16);
        let said = self.kinds.all.len() * 1024 + self.names.all.len() * 128;
        said + self.tags.len() * 160 + self.manifests.len() * 128 + self.blobs.len() * 80 + orders.iter().sum::<usize>()
    }

    /// How many things it tells of.
    pub fn len(&self) -> usize {
        self.tags.len() + self.manifests.len() + self.blobs.len()
    }

    /// Which tags, manifests and blobs it tells of.
    pub fn has_tag(&self, tag: &str) -> bool {
        self.tags.contains_key(tag)
    }

    /// See [`Self::has_tag`].
    pub fn has_manifest(&self, digest: &Digest) -> bool {
        self.manifests.contains_key(&*digest.hash())
    }

    /// See [`Self::has_tag`].
    pub fn has_blob(&self, digest: &Digest) -> bool {
        self.blobs.contains_key(&*digest.hash())
    }

    /// Every tag, manifest and blob that it tells of.
    pub fn all_tags(&self) -> impl Iterator<Item = &str> {
        self.tags.keys().map(|tag| &**tag)
    }

    /// See [`Self::all_tags`].
    pub fn all_manifests(&self) -> impl Iterator<Item = Digest> {
        self.manifests.keys().filter_map(unpacked)
    }

    /// See [`Self::all_tags`].
    pub fn all_blobs(&self) -> impl Iterator<Item = Digest> {
        self.blobs.keys().filter_map(unpacked)
    }

    /// Takes in what was found out.
    pub fn apply(&mut self, news: News) {
        if !news.tags.is_empty() {
            (self.by_time, self.by_version) = Default::default();
        }
        for (tag, found) in news.tags {
            match found {
                None => drop(self.tags.remove(&*tag)),
                Some((digest, pushed)) => {
                    let at = pushed.as_ref().map_or(0, |pushed| pushed.at);
                    let by = pushed.and_then(|pushed| decode_user(&pushed.by));
                    let by = self.names.of(by.unwrap_or_default());
                    self.tags.insert(tag.into(), Tagged { hash: packed(&digest), at, by });
                }
            }
        }
        let mut indexes = Vec::new();
        for (digest, found) in news.manifests {
            let hash = packed(&digest);
            let Some(Description { content, images, len }) = found else {
                self.manifests.remove(&hash);
                self.blobs.remove(&hash);
                continue;
            };
            self.blobs.insert(hash.clone(), len);
            let size = content.as_ref().map_or(0, |content| content.size);
            let kind = content.map(|content| self.kinds.of(ContentOverview { size: 0, ..content }));
            let known = self.manifests.entry(hash.clone()).or_default();
            (known.kind, known.size) = (kind, size);
            if !images.is_empty() {
                indexes.push((hash, images));
            }
        }
        // Their images come with them or came before.
        for (hash, images) in indexes {
            let sizes = images.iter().filter_map(|image| Some(self.manifests.get(&*image.hash())?.size));
            let heaviest = sizes.max().unwrap_or_default();
            if let Some(index) = self.manifests.get_mut(&hash) {
                index.size = heaviest;
            }
        }
        for (digest, len) in news.blobs {
            match len {
                None => drop(self.blobs.remove(&*digest.hash())),
                Some(len) => drop(self.blobs.insert(packed(&digest), len)),
            }
        }
        for (digest, count, at) in news.pulls {
            if let Some(known) = self.manifests.get_mut(&*digest.hash()) {
                known.pulls = known.pulls.saturating_add(count);
                known.pulled_at = known.pulled_at.max(at);
                *self.new_pulls.entry(packed(&digest)).or_default() += count;
            }
        }
    }

    /// It is about to be written down where others have written: their counts, and what was counted here since.
    pub fn add_pulls_to(&mut self, others: impl Iterator<Item = (Digest, u64, u64)>, since: u64) {
        if since > 0 {
            self.counted_since = self.counted_since.min(since);
        }
        for (digest, count, at) in others {
            if let Some(known) = self.manifests.get_mut(&*digest.hash()) {
                known.pulls = count.saturating_add(self.new_pulls.get(&*digest.hash()).copied().unwrap_or_default());
                known.pulled_at = known.pulled_at.max(at);
            }
        }
        self.new_pulls.clear();
    }

    /// What is counted of it.
    pub fn totals(&self) -> Totals {
        let last = self.by_time().first().and_then(|tag| Some((tag, self.push_of(self.tags.get(tag)?)?)));
        let (mut count, mut at) = (0_u64, 0);
        for known in self.manifests.values() {
            count = count.saturating_add(known.pulls);
            at = known.pulled_at.max(at);
        }
        Totals {
            tag_count: self.tags.len() as u64,
            size: self.blobs.values().fold(0, |sum, len| sum.saturating_add(*len)),
            last_push: last.map(|(tag, pushed)| LastPush { tag: tag.to_string(), pushed }),
            pulls: time(at).map(|at| Pulls { count, at }),
        }
    }

    fn push_of(&self, tagged: &Tagged) -> Option<Push> {
        let by = self.names.get(tagged.by).filter(|by| !by.is_empty()).cloned();
        Some(Push { at: time(tagged.at)?, by })
    }

    /// Those that were set last come first; of those that were set at once, the last by name.
    fn by_time(&self) -> &[Arc<str>] {
        self.by_time.get_or_init(|| {
            let mut tags: Vec<(u64, Arc<str>)> = self.tags.iter().map(|(tag, is)| (is.at, Arc::clone(tag))).collect();
            tags.sort_unstable_by(|one, other| other.cmp(one));
            tags.into_iter().map(|(_, tag)| tag).collect()
        })
    }

    fn by_version(&self) -> &[Arc<str>] {
        self.by_version.get_or_init(|| {
            let mut tags: Vec<Arc<str>> = self.tags.keys().map(Arc::clone).collect();
            tags.sort_by_cached_key(|tag| Reverse((version(tag), Arc::clone(tag))));
            tags
        })
    }

    /// The tags that are selected, a page of them: how many match, the page, and where the next begins.
    pub fn select(&self, selection: &TagSelection, n: usize) -> (u64, Vec<TagOverview>, Option<String>) {
        let wanted = selection.search.q.as_deref().map(str::to_lowercase);
        let hash = selection.digest.as_ref().map(packed);
        let is_wanted = |tag: &&Arc<str>| {
            wanted.as_deref().is_none_or(|wanted| contains(tag, wanted))
                && !(selection.without_attached && is_attached(tag))
                && hash.as_ref().is_none_or(|hash| self.tags.get(&***tag).is_some_and(|tagged| tagged.hash == *hash))
        };
        let last = selection.search.page.last.as_deref();
        let (mut matching, mut page, mut more) = (0, Vec::new(), false);
        let mut take = |tag: &Arc<str>, is_after: bool| {
            matching += 1;
            if is_after && page.len() < n {
                page.extend(self.tags.get(tag).map(|tagged| (Arc::clone(tag), tagged)));
            } else if is_after {
                more = true;
            }
        };
        match selection.order {
            TagOrder::Name => {
                self.tags.keys().filter(is_wanted).for_each(|tag| take(tag, last.is_none_or(|last| &**tag > last)));
            }
            TagOrder::Pushed => {
                let last =
                    last.and_then(|last| last.split_once('.')).and_then(|(at, tag)| Some((at.parse().ok()?, tag)));
                let is_after = |tag: &Arc<str>, (at, last): (u64, &str)| {
                    self.tags.get(tag).is_some_and(|tagged| (tagged.at, &**tag) < (at, last))
                };
                let tags = self.by_time().iter().filter(is_wanted);
                tags.for_each(|tag| take(tag, last.is_none_or(|last| is_after(tag, last))));
            }
            TagOrder::Version => {
                let last = last.map(|last| (version(last), last.to_owned()));
                // Only until the page begins is it looked where that is.
                let mut begun = last.is_none();
                for tag in self.by_version().iter().filter(is_wanted) {
                    begun = begun || last.as_ref().is_some_and(|last| (version(tag), tag.to_string()) < *last);
                    take(tag, begun);
                }
            }
        }
        let next = page.last().filter(|_| more).map(|(tag, tagged)| match selection.order {
            TagOrder::Pushed => format!("{}.{tag}", tagged.at),
            TagOrder::Name | TagOrder::Version => tag.to_string(),
        });
        (matching, page.into_iter().filter_map(|(tag, tagged)| self.tag(&tag, tagged)).collect(), next)
    }

    fn tag(&self, tag: &str, tagged: &Tagged) -> Option<TagOverview> {
        let known = self.manifests.get(&tagged.hash);
        let content = known.and_then(|known| Some((self.kinds.get(known.kind?)?, known.size)));
        Some(TagOverview {
            tag: tag.to_owned(),
            digest: unpacked(&tagged.hash)?,
            pushed: self.push_of(tagged),
            content: content.map(|(kind, size)| ContentOverview { size, ..kind.clone() }),
            pulls: known.and_then(|known| Some(Pulls { count: known.pulls, at: time(known.pulled_at)? })),
            retention: None,
        })
    }
}

/// Whether cosign keeps under a tag what is attached to something else.
fn is_attached(tag: &str) -> bool {
    tag.rsplit_once('.').is_some_and(|(subject, kind)| {
        matches!(kind, "sig" | "att" | "sbom") && subject.replacen('-', ":", 1).parse::<Digest>().is_ok()
    })
}

/// Whether a tag has `wanted`, which is in lower case, somewhere.
fn contains(tag: &str, wanted: &str) -> bool {
    // Tags are ASCII.
    wanted.is_empty()
        || tag.as_bytes().windows(wanted.len()).any(|window| window.eq_ignore_ascii_case(wanted.as_bytes()))
}

/// An overview as it is written down.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Snapshot {
    version: u32,
    compared_at: u64,
    /// What was written before this was known begins to count when it is read.
    #[serde(default)]
    counted_since: u64,
    names: Vec<String>,
    kinds: Vec<ContentOverview>,
    /// Tag, digest, time, name.
    tags: Vec<(String, Digest, u64, u32)>,
    /// Digest, kind, size, pulls, time of the last.
    manifests: Vec<(Digest, Option<u32>, u64, u64, u64)>,
    /// Digest, size.
    blobs: Vec<(Digest, u64)>,
}

/// Another one is none: what it tells is found out anew.
const SNAPSHOT_VERSION: u32 = 1;

impl From<&Overview> for Snapshot {
    fn from(overview: &Overview) -> Self {
        let tags = overview.tags.iter();
        let manifests = overview.manifests.iter();
        let manifest = |(hash, known): (&Hashed, &Described)| {
            Some((unpacked(hash)?, known.kind, known.size, known.pulls, known.pulled_at))
        };
        Self {
            version: SNAPSHOT_VERSION,
            compared_at: overview.compared_at,
            counted_since: overview.counted_since,
            names: overview.names.all.clone(),
            kinds: overview.kinds.all.clone(),
            tags: tags.filter_map(|(tag, is)| Some((tag.to_string(), unpacked(&is.hash)?, is.at, is.by))).collect(),
            manifests: manifests.filter_map(manifest).collect(),
            blobs: overview.blobs.iter().filter_map(|(hash, len)| Some((unpacked(hash)?, *len))).collect(),
        }
    }
}

impl Snapshot {
    /// The overview that was written down, if it was by this version. Pulls are counted since `otherwise`, if it doesn't say.
    pub fn restore(self, otherwise: u64) -> Option<Overview> {
        if self.version != SNAPSHOT_VERSION {
            return None;
        }
        let since = if self.counted_since > 0 { self.counted_since } else { otherwise };
        let mut overview = Overview { compared_at: self.compared_at, ..Overview::counted_since(since) };
        // Those that nothing is said of any more are left out.
        for (tag, digest, at, by) in self.tags {
            let by = self.names.get(usize::try_from(by).ok()?).cloned().unwrap_or_default();
            let by = overview.names.of(by);
            overview.tags.insert(tag.into(), Tagged { hash: packed(&digest), at, by });
        }
        for (digest, kind, size, pulls, pulled_at) in self.manifests {
            let kind = kind.and_then(|kind| self.kinds.get(usize::try_from(kind).ok()?));
            let kind = kind.map(|kind| overview.kinds.of(kind.clone()));
            overview.manifests.insert(packed(&digest), Described { kind, size, pulls, pulled_at });
        }
        overview.blobs = self.blobs.iter().map(|(digest, len)| (packed(digest), *len)).collect();
        Some(overview)
    }

    /// Since when pulls are counted there.
    pub fn counted_since(&self) -> u64 {
        self.counted_since
    }

    /// How often each manifest was pulled, as [`News`] has it.
    pub fn pulls(&self) -> impl Iterator<Item = (Digest, u64, u64)> {
        self.manifests.iter().map(|(digest, _, _, pulls, at)| (digest.clone(), *pulls, *at))
    }
}
