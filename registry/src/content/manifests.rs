//! Manifests, tags and referrers.

use std::collections::HashSet;

use berth_oci::{Algorithm, Digest, Error, ErrorCode, Manifest, Reference, Repository, Tag};
use futures_util::{StreamExt, TryStreamExt, stream};
use http::StatusCode;
use serde_json::json;

use super::{Content, storage_error};
use crate::storage::{Condition, digest_of, keys};

/// A manifest that a repository holds.
pub struct Stored {
    /// Its digest.
    pub digest: Digest,
    /// The `Content-Type` that it was pushed with.
    pub media_type: String,
}

/// How many names are looked up at once.
const CHECK_CONCURRENCY: usize = 16;

/// How many blobs and manifests one manifest may name: each is looked up.
const MAX_PARTS: usize = 10_000;

/// What a push did.
pub struct Pushed {
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
        let digest = match reference {
            Reference::Digest(digest) => Some(digest.clone()),
            Reference::Tag(tag) => self.tag(repository, tag).await?,
        };
        if let Some(digest) = digest
            && let Some(bytes) = self.storage.read(&keys::manifest(repository, &digest)).await.map_err(storage_error)?
        {
            return Ok(Stored { digest, media_type: String::from_utf8_lossy(&bytes).into_owned() });
        }
        let message = format!("{repository} does not hold the manifest {reference}");
        Err(Error::new(StatusCode::NOT_FOUND, ErrorCode::ManifestUnknown, message))
    }

    /// The bytes of a manifest, as they were pushed.
    pub async fn manifest_bytes(&self, stored: &Stored) -> Result<Vec<u8>, Error> {
        let bytes = self.storage.read(&keys::blob(&stored.digest)).await.map_err(storage_error)?;
        bytes.ok_or_else(|| bytes_missing(stored))
    }

    /// The length of a manifest in bytes.
    pub async fn manifest_len(&self, stored: &Stored) -> Result<u64, Error> {
        let len = self.storage.blob_len(&stored.digest).await.map_err(storage_error)?;
        len.ok_or_else(|| bytes_missing(stored))
    }

    /// What a tag points at.
    pub(super) async fn tag(&self, repository: &Repository, tag: &Tag) -> Result<Option<Digest>, Error> {
        let bytes = self.storage.read(&keys::tag(repository, tag)).await.map_err(storage_error)?;
        Ok(bytes.and_then(|bytes| String::from_utf8(bytes).ok()?.trim_end().parse().ok()))
    }

    /// Keeps a manifest under `reference` and `more_tags`.
    ///
    /// The condition (`If-None-Match: *` or `If-Match: *` of RFC 9110, section 13.1) is about the tags, and about the
    /// digest if there is no tag.
    pub async fn push_manifest(
        &self,
        repository: &Repository,
        reference: &Reference,
        more_tags: &[Tag],
        content_type: Option<&str>,
        bytes: Vec<u8>,
        condition: Condition,
    ) -> Result<Pushed, Error> {
        let manifest = Manifest::parse(content_type, &bytes)
            .map_err(|e| Error::new(StatusCode::BAD_REQUEST, ErrorCode::ManifestInvalid, e.to_string()))?;
        let (algorithm, tags) = match reference {
            Reference::Digest(digest) => (digest.algorithm(), more_tags),
            Reference::Tag(tag) => (Algorithm::default(), std::slice::from_ref(tag)),
        };
        let digest = digest_of(algorithm, &bytes).map_err(storage_error)?;
        if let Reference::Digest(expected) = reference
            && *expected != digest
        {
            let message = format!("the manifest has the digest {digest}, not {expected}");
            return Err(Error::new(StatusCode::BAD_REQUEST, ErrorCode::DigestInvalid, message));
        }
        // With a condition the repository is ours alone from the look to the last write, so that a push is refused
        // whole; without, pushes go on side by side.
        let lock = self.lock_of(repository);
        let (_shared, _alone) = match condition {
            Condition::None => (Some(lock.read().await), None),
            Condition::Absent | Condition::Present => (None, Some(lock.write().await)),
        };
        if condition != Condition::None {
            let names: Vec<String> = match tags {
                [] => vec![keys::manifest(repository, &digest)],
                tags => tags.iter().map(|tag| keys::tag(repository, tag)).collect(),
            };
            for name in names {
                if self.storage.exists(&name).await.map_err(storage_error)? != (condition == Condition::Present) {
                    return Err(refusal(condition));
                }
            }
        }
        self.must_hold_parts(repository, &manifest).await?;

        let _guard = self.guard_blob(&digest).await?;
        let descriptor = manifest.descriptor(digest.clone(), bytes.len() as u64);
        let len = bytes.len() as u64;
        if self.storage.put_blob(&digest, bytes).await.map_err(storage_error)? {
            self.statistics.added(len);
        }
        if let Some(subject) = &manifest.subject {
            let entry = serde_json::to_vec(&descriptor).map_err(|e| storage_error(e.into()))?;
            self.write(keys::referrer(repository, subject, &digest), entry, Condition::None).await?;
        }
        let media_type = manifest.media_type.to_string().into_bytes();
        // Other processes may have written since we looked, where they can: then the last writes decide.
        let (of_manifest, of_tags) =
            if tags.is_empty() { (condition, Condition::None) } else { (Condition::None, condition) };
        self.write(keys::manifest(repository, &digest), media_type, of_manifest).await?;
        for tag in tags {
            let written = self.write(keys::tag(repository, tag), digest.to_string().into_bytes(), of_tags).await;
            self.tag_lists.changed(repository);
            written?;
        }
        // Another process may have deleted the manifest before it could see these tags.
        let key = keys::manifest(repository, &digest);
        if self.storage.is_shared() && !self.storage.exists(&key).await.map_err(storage_error)? {
            self.write(key, manifest.media_type.to_string().into_bytes(), Condition::None).await?;
        }
        Ok(Pushed { digest, subject: manifest.subject })
    }

    /// An image can't be pushed before its parts.
    async fn must_hold_parts(&self, repository: &Repository, manifest: &Manifest) -> Result<(), Error> {
        // Whatever is named twice is looked for once.
        let blobs: HashSet<Digest> = manifest.required_blobs().map(|blob| blob.digest.clone()).collect();
        let children: HashSet<Digest> = manifest.manifests.iter().map(|child| child.digest.clone()).collect();
        if blobs.len() + children.len() > MAX_PARTS {
            let message = format!("a manifest names at most {MAX_PARTS} blobs and manifests");
            return Err(Error::new(StatusCode::BAD_REQUEST, ErrorCode::ManifestInvalid, message));
        }
        let blobs = stream::iter(blobs).map(async |digest| {
            self.protect_link(repository, &digest).await?;
            let held = self.held_len(repository, &digest).await?.is_some();
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

    /// Takes away a tag, or a manifest with every tag that points at it.
    pub async fn delete_manifest(&self, repository: &Repository, reference: &Reference) -> Result<(), Error> {
        let _alone = self.lock_of(repository).write().await;
        let stored = self.find_manifest(repository, reference).await?;
        let digest = match reference {
            Reference::Tag(tag) => {
                return self.remove_tag(repository, tag).await;
            }
            Reference::Digest(_) => stored.digest.clone(),
        };
        let tags = stream::iter(self.all_tags(repository).await?);
        let mut tags =
            tags.map(async |tag| (self.tag(repository, &tag).await, tag)).buffer_unordered(CHECK_CONCURRENCY);
        while let Some((target, tag)) = tags.next().await {
            // Read again where others write, too: it may have moved since.
            if target?.as_ref() == Some(&digest)
                && (!self.storage.is_shared() || self.tag(repository, &tag).await?.as_ref() == Some(&digest))
            {
                self.remove_tag(repository, &tag).await?;
            }
        }
        drop(tags);
        // If they are missing, it has no subject that could be known; it can be deleted all the same.
        let bytes = self.storage.read(&keys::blob(&digest)).await.map_err(storage_error)?.unwrap_or_default();
        self.storage.remove(&keys::manifest(repository, &digest)).await.map_err(storage_error)?;
        if let Some(subject) = Manifest::parse(Some(&stored.media_type), &bytes).ok().and_then(|m| m.subject) {
            self.storage.remove(&keys::referrer(repository, &subject, &digest)).await.map_err(storage_error)?;
        }
        Ok(())
    }

    async fn remove_tag(&self, repository: &Repository, tag: &Tag) -> Result<(), Error> {
        let removed = self.storage.remove(&keys::tag(repository, tag)).await;
        self.tag_lists.changed(repository);
        removed.map(drop).map_err(storage_error)
    }

    async fn write(&self, key: String, bytes: Vec<u8>, condition: Condition) -> Result<(), Error> {
        let written = self.storage.write(&key, bytes, condition).await.map_err(storage_error)?;
        if written { Ok(()) } else { Err(refusal(condition)) }
    }
}

fn bytes_missing(stored: &Stored) -> Error {
    storage_error(std::io::Error::other(format!("the bytes of {} are missing", stored.digest)))
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
        (0..4).map(|_| Arc::new(Content::new(Arc::new(bucket.clone()), true))).collect()
    }

    fn manifest(subject: Option<&Digest>, seed: usize) -> Vec<u8> {
        let mut document = json!({"schemaVersion": 2, "manifests": [], "artifactType": "a/b", "annotations": {"seed": seed.to_string()}});
        if let Some(subject) = subject {
            document["subject"] =
                json!({"mediaType": "application/vnd.oci.image.index.v1+json", "digest": subject, "size": 1});
        }
        document.to_string().into_bytes()
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn of_many_who_create_a_tag_at_several_registries_one_does() {
        let (registries, r) = (registries(), "r".parse::<Repository>().expect("a name"));
        for round in 0..10 {
            let tag = Reference::Tag(format!("t{round}").parse().expect("a tag"));
            let creators = (0..48).map(|i| {
                let (content, r, tag) = (Arc::clone(&registries[i % 4]), r.clone(), tag.clone());
                tokio::spawn(async move {
                    content.push_manifest(&r, &tag, &[], None, manifest(None, i), Condition::Absent).await
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
            let pushed =
                content.push_manifest(&r, &reference, &[], None, bytes, Condition::None).await.expect("pushed");
            assert_eq!(pushed.subject.as_ref(), Some(&subject));
            for other in &registries {
                assert_eq!(other.referrers(&r, &subject, Some("a/b"), None).await.expect("listed").0.len(), i + 1);
                assert!(other.referrers(&r, &subject, Some("c/d"), None).await.expect("listed").0.is_empty());
            }
        }
    }
}
