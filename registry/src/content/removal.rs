//! Taking away: tags, manifests with their tags, blobs.
//!
//! What others in the repository name isn't taken away, as zot refuses it: an image would be left without a layer. Whatever
//! grows with a repository is done piece by piece, and its lock is held for one piece.

use berth_oci::{Digest, Error, ErrorCode, Manifest, Reference, Repository, Tag};
use http::StatusCode;

use super::{Content, blobs::blob_unknown, manifests::Stored, quotas::Kind, storage_error, tag_lists::Change};
use crate::storage::{Condition, keys};

/// How many tags are taken away while the repository is locked.
const TAGS_PER_LOCK: usize = 256;

impl Content {
    /// Takes a blob away from a repository. The bytes stay for the others that hold it.
    pub async fn delete_blob(&self, repository: &Repository, digest: &Digest) -> Result<(), Error> {
        let _alone = self.repositories.alone(repository).await;
        let key = keys::held_blob(repository, digest);
        if !self.storage.exists(&key).await.map_err(storage_error)? {
            return Err(blob_unknown(repository, digest));
        }
        self.must_be_unnamed(repository, digest).await?;
        self.storage.remove(&key).await.map_err(storage_error)?;
        self.quotas.remove(repository, Kind::Blob, digest);
        self.overviews.blob_changed(repository, digest);
        if self.storage.is_shared()
            && let Err(wanted) = self.must_not_be_wanted(repository, digest).await
        {
            // Another registry may have found it there before.
            self.storage.mark(vec![key]).await.map_err(storage_error)?;
            return Err(wanted);
        }
        self.prune(repository).await;
        Ok(())
    }

    /// Takes away a tag, or a manifest with every tag that points at it.
    pub async fn delete_manifest(&self, repository: &Repository, reference: &Reference) -> Result<(), Error> {
        match reference {
            Reference::Tag(tag) => self.delete_tag(repository, tag).await,
            Reference::Digest(digest) => self.delete_by_digest(repository, digest).await,
        }
    }

    async fn delete_tag(&self, repository: &Repository, tag: &Tag) -> Result<(), Error> {
        self.must_be_mutable(repository, tag)?;
        let _alone = self.repositories.alone(repository).await;
        let Some(digest) = self.tag(repository, tag).await? else {
            let message = format!("{repository} does not have the tag {tag}");
            return Err(Error::new(StatusCode::NOT_FOUND, ErrorCode::ManifestUnknown, message));
        };
        let removed = self.storage.remove(&keys::tag(repository, tag)).await;
        self.tag_changed(repository, tag, Change::Removed);
        removed.map_err(storage_error)?;
        if !self.storage.is_shared() {
            let entry = keys::tagged_by(repository, &digest, tag);
            self.storage.remove_all(vec![entry]).await.map_err(storage_error)?;
        }
        Ok(())
    }

    async fn delete_by_digest(&self, repository: &Repository, digest: &Digest) -> Result<(), Error> {
        let reference = Reference::Digest(digest.clone());
        let stored = self.find_manifest(repository, &reference).await?;
        self.must_be_unnamed(repository, digest).await?;
        self.must_have_no_immutable_tags(repository, digest).await?;
        // Tags go before, a piece at a time; those that come meanwhile go with the manifest.
        self.remove_all_tags(repository, digest).await?;
        // Where others push as well, the lock keeps nobody away, and what is asked takes long.
        let _alone = match self.storage.is_shared() {
            true => None,
            false => Some(self.repositories.alone(repository).await),
        };
        self.must_be_unnamed(repository, digest).await?;
        let (late, _) = self.tags_of(repository, digest, None).await?;
        self.remove_tags(repository, digest, &late).await?;
        self.remove_manifest(repository, digest, &stored).await
    }

    /// Takes away a manifest that no tag points at and nothing names. For who has the repository alone, where that keeps
    /// others away.
    pub(super) async fn remove_manifest(
        &self,
        repository: &Repository,
        digest: &Digest,
        stored: &Stored,
    ) -> Result<(), Error> {
        // If its bytes are missing, what it names can't be known; it can be deleted all the same.
        let bytes = self.storage.read(&keys::blob(digest)).await.map_err(storage_error)?.unwrap_or_default();
        self.storage.remove(&keys::manifest(repository, digest)).await.map_err(storage_error)?;
        self.quotas.remove(repository, Kind::Manifest, digest);
        self.overviews.manifest_changed(repository, digest);
        if self.storage.is_shared() {
            let wanted = self.must_not_be_wanted(repository, digest).await;
            let tagged = self.tags_of(repository, digest, None).await.map(|(tags, _)| !tags.is_empty());
            if wanted.is_err() || !matches!(tagged, Ok(false)) {
                // Another registry has tagged or named it since we looked, and may have seen it there: then it stays.
                let media_type = stored.media_type.clone().into_bytes();
                self.write(keys::manifest(repository, digest), media_type, Condition::None).await?;
                return wanted.and(tagged.map(drop));
            }
        }
        if let Ok(manifest) = Manifest::parse_stored(&stored.media_type, &bytes) {
            self.forget_names(repository, digest, &manifest, bytes.len()).await?;
        }
        self.prune(repository).await;
        Ok(())
    }

    /// Nothing, or the error that the manifest has a tag that nobody may delete: then none of them goes.
    async fn must_have_no_immutable_tags(&self, repository: &Repository, digest: &Digest) -> Result<(), Error> {
        if self.rules.immutable.is_empty() {
            return Ok(());
        }
        let mut last = None;
        loop {
            let (tags, next) = self.tags_of(repository, digest, last).await?;
            for tag in &tags {
                // An entry may be older than what the tag points at now.
                let is_one = self.rules.is_immutable(repository, tag.as_str());
                if is_one && self.tag(repository, tag).await?.as_ref() == Some(digest) {
                    self.must_be_mutable(repository, tag)?;
                }
            }
            match next {
                Some(next) => last = Some(next),
                None => return Ok(()),
            }
        }
    }

    /// Takes away all tags of a manifest, a piece at a time.
    async fn remove_all_tags(&self, repository: &Repository, digest: &Digest) -> Result<(), Error> {
        let mut last = None;
        loop {
            let (tags, next) = self.tags_of(repository, digest, last).await?;
            for piece in tags.chunks(TAGS_PER_LOCK) {
                let _alone = self.repositories.alone(repository).await;
                self.must_be_unnamed(repository, digest).await?;
                self.remove_tags(repository, digest, piece).await?;
            }
            match next {
                Some(next) => last = Some(next),
                None => return Ok(()),
            }
        }
    }

    /// Takes away those of the tags that still point at a manifest.
    pub(super) async fn remove_tags(
        &self,
        repository: &Repository,
        digest: &Digest,
        tags: &[Tag],
    ) -> Result<(), Error> {
        for tag in tags {
            if self.rules.is_immutable(repository, tag.as_str())
                && self.tag(repository, tag).await?.as_ref() == Some(digest)
            {
                self.must_be_mutable(repository, tag)?;
            }
        }
        let names = tags.iter().map(|tag| keys::tag(repository, tag)).collect();
        let removed = self.storage.remove_if(names, &digest.to_string()).await;
        match &removed {
            Ok(removed) => {
                for (tag, _) in tags.iter().zip(removed).filter(|(_, removed)| **removed) {
                    self.tag_changed(repository, tag, Change::Removed);
                }
            }
            // Some of them, perhaps.
            Err(_) => self.tags_changed(repository),
        }
        removed.map_err(storage_error)?;
        if self.storage.is_shared() {
            return Ok(()); // Another registry may be using the entries; a collection removes them.
        }
        let entries = tags.iter().map(|tag| keys::tagged_by(repository, digest, tag)).collect();
        self.storage.remove_all(entries).await.map_err(storage_error)
    }

    /// A repository that holds nothing any more leaves the catalogue, and its folders go. For who has it alone.
    pub(super) async fn prune(&self, repository: &Repository) {
        for (i, folder) in keys::folders(repository).iter().enumerate() {
            match self.storage.prune(folder).await {
                Ok(true) if i == 0 => {
                    self.names.removed(repository).await;
                    self.overviews.gone(repository);
                    let known = vec![keys::overview(repository), keys::totals(repository)];
                    if let Err(error) = self.storage.remove_all(known).await {
                        return tracing::warn!(%repository, %error, "what was known of it can't be removed");
                    }
                }
                Ok(true) => {}
                Ok(false) => return, // The first is that of the manifests: while there are some, all else stays.
                Err(error) => return tracing::warn!(%repository, %error, "an empty folder can't be removed"),
            }
        }
    }
}
