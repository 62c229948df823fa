//! Manifests, tags and referrers.

use std::{
    collections::HashSet,
    fmt::Display,
    io,
    time::{Instant, SystemTime, UNIX_EPOCH},
};

use berth_oci::{Algorithm, Digest, Error, ErrorCode, Manifest, MediaType, Reference, Repository, Tag};
use bytes::Bytes;
use futures_util::{StreamExt, TryStreamExt, stream, try_join};
use http::StatusCode;
use serde_json::json;

use super::{
    Content,
    index::{entries, referrer_entry},
    quotas::Kind,
    storage_error,
    tag_lists::Change,
};
use crate::storage::{Blob, Condition, digest_of, keys};

/// A manifest that a repository holds.
pub struct Stored {
    /// Its digest.
    pub digest: Digest,
    /// The `Content-Type` that it was pushed with.
    pub media_type: String,
    /// When its tag was set, and by whom, if that is known.
    pub pushed: Option<Pushed>,
}

/// When a tag was set, and by whom.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pushed {
    /// In seconds since 1970.
    pub at: u64,
    /// As the proxy calls them, percent-encoded; empty if it didn't say.
    pub by: String,
}

/// What a tag points at, and when it was set by whom, if that is known.
pub type TagTarget = (Digest, Option<Pushed>);

/// What is written down of a tag: `<digest>`, and in a second line `<seconds> <name> <media type>`. Older ones lack the type, or
/// that line.
struct TagRecord {
    digest: Digest,
    pushed: Option<Pushed>,
    /// Of the manifest, so that a pull by the tag needn't look for it.
    media_type: Option<MediaType>,
}

impl TagRecord {
    fn parse(bytes: &[u8]) -> Option<Self> {
        let text = std::str::from_utf8(bytes).ok()?;
        let (digest, line) = text.split_once('\n').unwrap_or((text, ""));
        let mut words = line.splitn(3, ' ');
        let at = words.next().and_then(|at| at.parse().ok());
        let pushed = at.zip(words.next()).map(|(at, by)| Pushed { at, by: by.to_owned() });
        Some(Self { digest: digest.parse().ok()?, pushed, media_type: words.next().and_then(|word| word.parse().ok()) })
    }

    fn text(digest: &Digest, media_type: MediaType, by: &str) -> String {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        format!("{digest}\n{now} {by} {media_type}")
    }
}

/// A manifest to push.
#[derive(Clone, Debug)]
pub struct ManifestPush<'a> {
    /// As what.
    pub reference: &'a Reference,
    /// Further tags; only with a digest.
    pub more_tags: &'a [Tag],
    /// `Content-Type`.
    pub content_type: Option<&'a str>,
    /// Its bytes.
    pub bytes: Bytes,
    /// What must be so (`If-None-Match: *` or `If-Match: *` of RFC 9110, section 13.1): of the tags, or of the digest if there
    /// is no tag.
    pub condition: Condition,
    /// Who pushes, as in [`Pushed`].
    pub by: &'a str,
    /// Its parts may come later, or never: a mirror fetches them when somebody asks.
    pub is_incomplete: bool,
}

impl<'a> ManifestPush<'a> {
    /// A push without a condition, of somebody who doesn't say who they are.
    pub fn new(reference: &'a Reference, bytes: Bytes) -> Self {
        let (more_tags, content_type, condition) = (&[][..], None, Condition::None);
        Self { reference, more_tags, content_type, bytes, condition, by: "", is_incomplete: false }
    }

    /// What its digest is of, and the tags that it sets.
    pub(super) fn algorithm_and_tags(&self) -> (Algorithm, &'a [Tag]) {
        match self.reference {
            Reference::Digest(digest) => (digest.algorithm(), self.more_tags),
            Reference::Tag(tag) => (Algorithm::default(), std::slice::from_ref(tag)),
        }
    }
}

/// How many names are looked up at once.
pub const CHECK_CONCURRENCY: usize = 16;

/// A longer manifest is read on a thread of its own.
const MAX_INLINE_BYTES: usize = 64 * 1024;

/// What a push did.
pub struct Push {
    /// The manifest's digest.
    pub digest: Digest,
    /// Its subject, if it has one: the referrers list of that was updated.
    pub subject: Option<Digest>,
}

/// The answer when a condition doesn't hold.
fn refusal(condition: Condition) -> Error {
    let message = match condition {
        Condition::Present => "there is nothing here to update (If-Match: *)",
        Condition::None | Condition::Absent => "there is something here already (If-None-Match: *)",
    };
    Error::new(StatusCode::PRECONDITION_FAILED, ErrorCode::Denied, message)
}

impl Content {
    /// Finds the manifest that `reference` names.
    pub async fn find_manifest(&self, repository: &Repository, reference: &Reference) -> Result<Stored, Error> {
        let (digest, pushed) = match reference {
            Reference::Digest(digest) => (Some(digest.clone()), None),
            Reference::Tag(tag) => match self.tag_record(repository, tag).await.map_err(storage_error)? {
                // A tag is set after its manifest is there, and taken away before that is.
                Some(TagRecord { digest, pushed, media_type: Some(media_type) }) => {
                    return Ok(Stored { digest, media_type: media_type.to_string(), pushed });
                }
                record => {
                    (record.as_ref().map(|record| record.digest.clone()), record.and_then(|record| record.pushed))
                }
            },
        };
        if let Some(digest) = digest
            && let Some(bytes) = self.storage.read(&keys::manifest(repository, &digest)).await.map_err(storage_error)?
        {
            return Ok(Stored { digest, media_type: String::from_utf8_lossy(&bytes).into_owned(), pushed });
        }
        Err(manifest_unknown(repository, reference))
    }

    /// The same for a client that asks whether it is there: then that stays so for a while, since it may name it in an index.
    pub async fn tell_manifest(&self, repository: &Repository, reference: &Reference) -> Result<Stored, Error> {
        // Looked and told under one lock, so that it isn't removed in between.
        let _telling = self.repositories.shared(repository).await;
        let stored = self.find_manifest(repository, reference).await?;
        self.recent.told(repository, &stored.digest);
        Ok(stored)
    }

    /// The bytes of a manifest, as they were pushed, open for reading.
    pub async fn manifest(&self, repository: &Repository, stored: &Stored) -> Result<Box<dyn Blob>, Error> {
        match self.storage.blob(&stored.digest).await.map_err(storage_error)? {
            Some(blob) => Ok(blob),
            None => Err(self.bytes_missing(repository, stored).await),
        }
    }

    /// The length of a manifest in bytes.
    pub async fn manifest_len(&self, repository: &Repository, stored: &Stored) -> Result<u64, Error> {
        match self.storage.blob_len(&stored.digest).await.map_err(storage_error)? {
            Some(len) => Ok(len),
            None => Err(self.bytes_missing(repository, stored).await),
        }
    }

    /// Two registries that were both stopped, the one in the middle of a push and the other of a removal, may leave a tag
    /// without its manifest. It is served until the bytes are collected, and then it is none.
    async fn bytes_missing(&self, repository: &Repository, stored: &Stored) -> Error {
        match self.storage.exists(&keys::manifest(repository, &stored.digest)).await {
            Ok(false) => manifest_unknown(repository, &stored.digest),
            Ok(true) => storage_error(io::Error::other(format!("the bytes of {} are missing", stored.digest))),
            Err(error) => storage_error(error),
        }
    }

    /// What a tag points at.
    pub(super) async fn tag(&self, repository: &Repository, tag: &Tag) -> Result<Option<Digest>, Error> {
        Ok(self.read_tag(repository, tag).await.map_err(storage_error)?.map(|(digest, _)| digest))
    }

    /// What a tag points at, and when it was set by whom.
    pub(super) async fn read_tag(&self, repository: &Repository, tag: &Tag) -> io::Result<Option<TagTarget>> {
        Ok(self.tag_record(repository, tag).await?.map(|record| (record.digest, record.pushed)))
    }

    async fn tag_record(&self, repository: &Repository, tag: &Tag) -> io::Result<Option<TagRecord>> {
        Ok(self.storage.read(&keys::tag(repository, tag)).await?.and_then(|bytes| TagRecord::parse(&bytes)))
    }

    /// Keeps a manifest.
    ///
    /// # Errors
    /// Why it isn't kept, for the client.
    pub async fn push_manifest(&self, repository: &Repository, push: &ManifestPush<'_>) -> Result<Push, Error> {
        // One that is new to the registry counts until it is there.
        let _creating = self.may_create(repository).await?;
        let pushed = self.push_manifest_now(repository, push).await;
        if pushed.is_err() && !self.quotas.is_empty() {
            self.count_what_is_there(repository, push).await?;
        }
        pushed
    }

    async fn push_manifest_now(&self, repository: &Repository, push: &ManifestPush<'_>) -> Result<Push, Error> {
        let ((algorithm, tags), bytes, condition) = (push.algorithm_and_tags(), push.bytes.clone(), push.condition);
        let (manifest, digest) = examine(push.content_type, bytes.clone(), algorithm).await?;
        if let Reference::Digest(expected) = push.reference
            && *expected != digest
        {
            let message = format!("the manifest has the digest {digest}, not {expected}");
            return Err(Error::new(StatusCode::BAD_REQUEST, ErrorCode::DigestInvalid, message));
        }
        // With a condition the repository is ours alone from the look to the last write, so that a push is refused
        // whole; without, pushes go on side by side.
        let immutable: Vec<&Tag> =
            tags.iter().filter(|tag| self.rules.is_immutable(repository, tag.as_str())).collect();
        let (_shared, _alone) = match condition {
            Condition::None if immutable.is_empty() => (Some(self.repositories.shared(repository).await), None),
            _ => (None, Some(self.repositories.alone(repository).await)),
        };
        for tag in &immutable {
            if self.tag(repository, tag).await?.is_some_and(|is| is != digest) {
                self.must_be_mutable(repository, tag)?;
            }
        }
        self.must_be(condition, repository, &digest, tags).await?;
        let told = Instant::now();
        let marks = entries(repository, &digest, &manifest, tags);
        if self.storage.is_shared() {
            // Before anything is looked for: who deletes it elsewhere looks for these after.
            self.storage.mark(marks.clone()).await.map_err(storage_error)?;
        }
        if !push.is_incomplete {
            self.must_hold_parts(repository, &manifest).await?;
        }
        for tag in tags {
            self.quotas.add_tag(repository, tag)?;
        }
        self.quotas.add(repository, Kind::Manifest, &digest, bytes.len() as u64)?;

        let _guard = self.guard_blob(&digest).await?;
        let len = bytes.len();
        let stored = self.storage.put_blob(&digest, bytes.into());
        let marked = async { if self.storage.is_shared() { Ok(()) } else { self.storage.mark(marks.clone()).await } };
        // Who gave its parts their names may not have flushed them yet.
        let folder =
            if manifest.manifests.is_empty() { keys::held_blobs(repository) } else { keys::manifests(repository) };
        let folders = Algorithm::ALL.map(|algorithm| format!("{folder}/{algorithm}"));
        let settled = self.storage.settle(folders.to_vec());
        let storing = async { try_join!(stored, marked, settled).map_err(storage_error) };
        let tag_keys: Vec<String> = tags.iter().map(|tag| keys::tag(repository, tag)).collect();
        let reviving = stream::iter(tag_keys.clone())
            .map(async |key: String| self.revive(&key).await)
            .buffer_unordered(CHECK_CONCURRENCY);
        let ((is_new, (), ()), ()) = try_join!(storing, reviving.try_collect())?;
        if is_new {
            self.statistics.added(len as u64);
        }
        if let Some(subject) = &manifest.subject {
            let (name, descriptor) = referrer_entry(&manifest, &digest, len).map_err(storage_error)?;
            self.write(keys::referrer(repository, subject, &name), descriptor, Condition::None).await?;
        }
        let media_type = manifest.media_type.to_string().into_bytes();
        // Other processes may have written since we looked, where they can: then the last writes decide.
        let (of_manifest, of_tags) =
            if tags.is_empty() { (condition, Condition::None) } else { (Condition::None, condition) };
        self.write(keys::manifest(repository, &digest), media_type.clone(), of_manifest).await?;
        self.recent.told(repository, &digest);
        self.names.added(repository).await;
        self.overviews.manifest_changed(repository, &digest);
        if !push.is_incomplete {
            self.tell_parts_again(repository, &manifest, told).await?;
        }
        let target = TagRecord::text(&digest, manifest.media_type, push.by).into_bytes();
        for (tag, key) in tags.iter().zip(tag_keys) {
            let is_immutable = immutable.contains(&tag);
            if is_immutable && self.tag(repository, tag).await?.as_ref() == Some(&digest) {
                continue; // It is what it is, and as old.
            }
            let of_tag = if is_immutable { Condition::Absent } else { of_tags };
            let written = self.write(key, target.clone(), of_tag).await;
            match &written {
                Ok(()) => self.tag_changed(repository, tag, Change::Set),
                Err(_) => self.tags_changed(repository),
            }
            written?;
        }
        // Another process may have deleted the manifest before it could see these tags.
        let key = keys::manifest(repository, &digest);
        if self.storage.is_shared() && !self.storage.exists(&key).await.map_err(storage_error)? {
            self.storage.mark(marks).await.map_err(storage_error)?;
            self.write(key, media_type, Condition::None).await?;
            for tag in tags {
                let key = keys::tag(repository, tag);
                self.revive(&key).await?;
                self.write(key, target.clone(), Condition::None).await?;
            }
        }
        Ok(Push { digest, subject: manifest.subject })
    }

    /// An image can't be pushed before its parts.
    async fn must_hold_parts(&self, repository: &Repository, manifest: &Manifest) -> Result<(), Error> {
        // Whatever is named twice is looked for once.
        let blobs: HashSet<Digest> = manifest.required_blobs().map(|blob| blob.digest.clone()).collect();
        let children: HashSet<Digest> = manifest.manifests.iter().map(|child| child.digest.clone()).collect();
        let blobs = stream::iter(blobs).map(async |digest| {
            let key = keys::held_blob(repository, &digest);
            // Whoever has leased it here has seen its bytes, which stay as long as somebody holds them.
            let held = if self.storage.is_leased(&key) {
                self.storage.exists(&key).await.map_err(storage_error)?
            } else {
                self.tell_len(repository, &digest).await?.is_some()
            };
            Ok::<_, Error>((digest, held))
        });
        let children = stream::iter(children).map(async |digest| {
            let held = self.storage.exists(&keys::manifest(repository, &digest)).await;
            Ok::<_, Error>((digest, held.map_err(storage_error)?))
        });
        let (mut blobs, mut children) =
            (blobs.buffer_unordered(CHECK_CONCURRENCY), children.buffer_unordered(CHECK_CONCURRENCY));
        while let Some((digest, held)) = blobs.try_next().await? {
            if !held {
                return Err(part_unknown(repository, &digest));
            }
        }
        while let Some((digest, held)) = children.try_next().await? {
            if !held {
                return Err(part_unknown(repository, &digest));
            }
        }
        Ok(())
    }

    /// Nothing, or the error that the condition of a push doesn't hold. A tag of which the manifest is gone is none.
    async fn must_be(
        &self,
        condition: Condition,
        repository: &Repository,
        digest: &Digest,
        tags: &[Tag],
    ) -> Result<(), Error> {
        let wanted = match condition {
            Condition::None => return Ok(()),
            Condition::Absent => false,
            Condition::Present => true,
        };
        if tags.is_empty() {
            let held = self.storage.exists(&keys::manifest(repository, digest)).await.map_err(storage_error)?;
            return if held == wanted { Ok(()) } else { Err(refusal(condition)) };
        }
        for tag in tags {
            let target = self.tag(repository, tag).await?;
            let serves = match &target {
                Some(target) => {
                    self.storage.exists(&keys::manifest(repository, target)).await.map_err(storage_error)?
                }
                None => false,
            };
            if serves != wanted {
                return Err(refusal(condition));
            }
            if let Some(target) = target.filter(|_| !serves) {
                let removed = self.storage.remove_if(vec![keys::tag(repository, tag)], &target.to_string()).await;
                self.tags_changed(repository);
                removed.map_err(storage_error)?;
            }
        }
        Ok(())
    }

    /// Promises once more what the manifest names, now that it is written: a collection may have begun before, and last
    /// longer than the first promise. Where another process may have collected already, it is looked at again.
    async fn tell_parts_again(&self, repository: &Repository, manifest: &Manifest, told: Instant) -> Result<(), Error> {
        if !self.storage.is_shared() {
            manifest.required_blobs().for_each(|blob| self.recent.told(repository, &blob.digest));
            return Ok(());
        }
        // Half an hour, or however long a lease holds at least.
        if told.elapsed() < self.renewal { Ok(()) } else { self.must_hold_parts(repository, manifest).await }
    }

    /// Makes sure that what is written under a key now isn't taken for what was taken away before.
    async fn revive(&self, key: &str) -> Result<(), Error> {
        if self.storage.revive(key).await.map_err(storage_error)? { Ok(()) } else { self.acquire_lease(key).await }
    }

    pub(super) async fn write(&self, key: String, bytes: Vec<u8>, condition: Condition) -> Result<(), Error> {
        let written = self.storage.write(&key, bytes, condition).await.map_err(storage_error)?;
        if written { Ok(()) } else { Err(refusal(condition)) }
    }
}

/// Reads a manifest and computes its digest, where it harms nobody that this takes a while.
async fn examine(content_type: Option<&str>, bytes: Bytes, algorithm: Algorithm) -> Result<(Manifest, Digest), Error> {
    let content_type = content_type.map(str::to_owned);
    let is_long = bytes.len() > MAX_INLINE_BYTES;
    let examined = move || {
        let manifest = Manifest::parse(content_type.as_deref(), &bytes)
            .map_err(|e| Error::new(StatusCode::BAD_REQUEST, ErrorCode::ManifestInvalid, e.to_string()))?;
        Ok((manifest, digest_of(algorithm, &bytes).map_err(storage_error)?))
    };
    if !is_long {
        return examined();
    }
    let examining = tokio::task::spawn_blocking(examined).await;
    examining.unwrap_or_else(|panic| Err(storage_error(std::io::Error::other(panic))))
}

fn manifest_unknown(repository: &Repository, reference: impl Display) -> Error {
    let message = format!("{repository} does not hold the manifest {reference}");
    Error::new(StatusCode::NOT_FOUND, ErrorCode::ManifestUnknown, message)
}

fn part_unknown(repository: &Repository, digest: &Digest) -> Error {
    let message = format!("the manifest names {digest}, which {repository} does not hold; push that first");
    let error = Error::new(StatusCode::NOT_FOUND, ErrorCode::ManifestBlobUnknown, message);
    error.with_detail(json!({"digest": digest}))
}

#[cfg(test)]
mod tests {
    use std::{sync::Arc, time::Duration};

    use super::*;
    use crate::storage::Objects;

    /// Registries that share a bucket.
    fn registries() -> Vec<Arc<Content>> {
        let bucket = Objects::in_memory(Duration::from_hours(1));
        (0..4).map(|_| Arc::new(Content::new(Arc::new(bucket.of_another_process()), true))).collect()
    }

    fn manifest(subject: Option<&Digest>, seed: usize) -> Bytes {
        let mut document = json!({"schemaVersion": 2, "manifests": [], "artifactType": "a/b", "annotations": {"seed": seed.to_string()}});
        if let Some(subject) = subject {
            document["subject"] =
                json!({"mediaType": "application/vnd.oci.image.index.v1+json", "digest": subject, "size": 1});
        }
        document.to_string().into()
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn of_many_who_create_a_tag_at_several_registries_one_does() {
        let (registries, r) = (registries(), "r".parse::<Repository>().expect("a name"));
        for round in 0..10 {
            let tag = Reference::Tag(format!("t{round}").parse().expect("a tag"));
            let creators = (0..48).map(|i| {
                let (content, r, tag) = (Arc::clone(&registries[i % 4]), r.clone(), tag.clone());
                tokio::spawn(async move {
                    let push =
                        ManifestPush { condition: Condition::Absent, ..ManifestPush::new(&tag, manifest(None, i)) };
                    content.push_manifest(&r, &push).await
                })
            });
            let mut created = Vec::new();
            for creator in creators.collect::<Vec<_>>() {
                match creator.await.expect("ended") {
                    Ok(pushed) => created.push(pushed.digest),
                    Err(error) => assert_eq!(error.status, StatusCode::PRECONDITION_FAILED, "{error}"),
                }
            }
            assert_eq!(created.len(), 1, "round {round}");
            for content in &registries {
                assert_eq!(content.find_manifest(&r, &tag).await.expect("there").digest, created[0]);
            }
        }
    }

    #[tokio::test]
    async fn referrers_are_seen_by_every_registry() {
        let (registries, r) = (registries(), "r".parse::<Repository>().expect("a name"));
        let subject = digest_of(Algorithm::Sha256, b"a manifest to come").expect("a digest");
        for (i, content) in registries.iter().enumerate() {
            let bytes = manifest(Some(&subject), i);
            let reference = Reference::Digest(digest_of(Algorithm::Sha256, &bytes).expect("a digest"));
            let pushed = content.push_manifest(&r, &ManifestPush::new(&reference, bytes)).await.expect("pushed");
            assert_eq!(pushed.subject.as_ref(), Some(&subject));
            for other in &registries {
                assert_eq!(other.referrers(&r, &subject, Some("a/b"), None).await.expect("listed").0.len(), i + 1);
                assert!(other.referrers(&r, &subject, Some("c/d"), None).await.expect("listed").0.is_empty());
            }
        }
    }
}
