//! Manifests, tags and referrers.

use berth_oci::{Algorithm, Digest, Error, ErrorCode, Manifest, Reference, Repository, Tag};
use http::StatusCode;
use serde_json::json;

use super::{Content, storage_error};
use crate::storage::{Precondition, WriteError, digest_of, keys};

/// A manifest that a repository holds.
pub struct Stored {
    /// Its digest.
    pub digest: Digest,
    /// The `Content-Type` that it was pushed with.
    pub media_type: String,
}

/// What a push did.
pub struct Pushed {
    /// The manifest's digest.
    pub digest: Digest,
    /// Its subject, if it has one: the referrers list of that was updated.
    pub subject: Option<Digest>,
}

/// What a client asks to be so before a manifest is written (RFC 9110, sections 13.1.1 and 13.1.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Condition {
    /// Nothing.
    None,
    /// `If-None-Match: *`: only create.
    Create,
    /// `If-Match: *`: only update.
    Update,
}

impl From<Condition> for Precondition {
    fn from(condition: Condition) -> Self {
        match condition {
            Condition::None => Self::None,
            Condition::Create => Self::Absent,
            Condition::Update => Self::Present,
        }
    }
}

impl Content {
    /// Finds the manifest that `reference` names.
    pub async fn find_manifest(&self, repository: &Repository, reference: &Reference) -> Result<Stored, Error> {
        let digest = match reference {
            Reference::Digest(digest) => Some(digest.clone()),
            Reference::Tag(tag) => self.tag(repository, tag).await?,
        };
        if let Some(digest) = digest
            && let Some(bytes) = self.storage.read(keys::manifest(repository, &digest)).await.map_err(storage_error)?
        {
            return Ok(Stored { digest, media_type: String::from_utf8_lossy(&bytes).into_owned() });
        }
        let message = format!("{repository} does not hold the manifest {reference}");
        Err(Error::new(StatusCode::NOT_FOUND, ErrorCode::ManifestUnknown, message))
    }

    /// The bytes of a manifest, as they were pushed.
    pub async fn manifest_bytes(&self, stored: &Stored) -> Result<Vec<u8>, Error> {
        let bytes = self.storage.read(keys::blob(&stored.digest)).await.map_err(storage_error)?;
        bytes.ok_or_else(|| storage_error(std::io::Error::other(format!("the bytes of {} are missing", stored.digest))))
    }

    /// The length of a manifest in bytes.
    pub async fn manifest_len(&self, stored: &Stored) -> Result<u64, Error> {
        let len = self.storage.blob_len(&stored.digest).await.map_err(storage_error)?;
        len.ok_or_else(|| storage_error(std::io::Error::other(format!("the bytes of {} are missing", stored.digest))))
    }

    /// What a tag points at.
    pub(super) async fn tag(&self, repository: &Repository, tag: &Tag) -> Result<Option<Digest>, Error> {
        let bytes = self.storage.read(keys::tag(repository, tag)).await.map_err(storage_error)?;
        Ok(bytes.and_then(|bytes| String::from_utf8(bytes).ok()?.trim_end().parse().ok()))
    }

    /// Keeps a manifest under `reference` and `more_tags`.
    ///
    /// The condition is about the tags, and about the digest if there is no tag.
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
        let _pushing = self.lock_of(repository).read().await;
        self.must_hold_parts(repository, &manifest).await?;

        let _holding = self.promises.holding(&digest).await;
        let descriptor = manifest.descriptor(digest.clone(), bytes.len() as u64);
        self.storage.put_blob(&digest, bytes).await.map_err(storage_error)?;
        if let Some(subject) = &manifest.subject {
            let entry = serde_json::to_vec(&descriptor).map_err(|e| storage_error(e.into()))?;
            self.write(keys::referrer(repository, subject, &digest), entry, Condition::None).await?;
        }
        let on_digest = if tags.is_empty() { condition } else { Condition::None };
        let media_type = manifest.media_type.to_string().into_bytes();
        self.write(keys::manifest(repository, &digest), media_type, on_digest).await?;
        for tag in tags {
            self.write(keys::tag(repository, tag), digest.to_string().into_bytes(), condition).await?;
        }
        Ok(Pushed { digest, subject: manifest.subject })
    }

    /// An image can't be pushed before its parts.
    async fn must_hold_parts(&self, repository: &Repository, manifest: &Manifest) -> Result<(), Error> {
        let blobs = manifest.required_blobs().map(|d| (&d.digest, keys::held_blob(repository, &d.digest)));
        let manifests = manifest.manifests.iter().map(|d| (&d.digest, keys::manifest(repository, &d.digest)));
        for (digest, key) in blobs.chain(manifests) {
            self.promises.tell(repository, digest);
            if !self.storage.exists(key).await.map_err(storage_error)? {
                let message = format!("the manifest names {digest}, which {repository} does not hold; push that first");
                return Err(Error::new(StatusCode::NOT_FOUND, ErrorCode::ManifestBlobUnknown, message)
                    .with_detail(json!({"digest": digest})));
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
                self.storage.remove(keys::tag(repository, tag)).await.map_err(storage_error)?;
                return Ok(());
            }
            Reference::Digest(_) => stored.digest.clone(),
        };
        for name in self.storage.list(keys::tags(repository)).await.map_err(storage_error)?.unwrap_or_default() {
            let Ok(tag) = name.parse() else { continue };
            if self.tag(repository, &tag).await?.as_ref() == Some(&digest) {
                self.storage.remove(keys::tag(repository, &tag)).await.map_err(storage_error)?;
            }
        }
        let bytes = self.manifest_bytes(&stored).await?;
        self.storage.remove(keys::manifest(repository, &digest)).await.map_err(storage_error)?;
        if let Some(subject) = Manifest::parse(Some(&stored.media_type), &bytes).ok().and_then(|m| m.subject) {
            self.storage.remove(keys::referrer(repository, &subject, &digest)).await.map_err(storage_error)?;
        }
        Ok(())
    }

    async fn write(&self, key: String, bytes: Vec<u8>, condition: Condition) -> Result<(), Error> {
        self.storage.write(key, bytes, condition.into()).await.map_err(|error| match error {
            WriteError::Io(error) => storage_error(error),
            WriteError::Precondition => {
                let message = match condition {
                    Condition::Update => "there is nothing here to update (If-Match: *)",
                    _ => "there is something here already (If-None-Match: *)",
                };
                Error::new(StatusCode::PRECONDITION_FAILED, ErrorCode::Denied, message)
            }
        })
    }
}
