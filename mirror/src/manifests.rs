//! Manifests: asks the other registry whether a tag has moved, when it is time, and gives the registry what it lacks.

use std::{sync::Arc, time::Duration};

use berth_oci::{Digest, Reference, Repository, Tag};
use moka::future::Cache;

use crate::{
    registry::{Registry, RegistryError},
    source::{Fetched, Source, SourceError},
};

/// How long it is known that something isn't there, and how many such things.
const MISSING_TTL: Duration = Duration::from_mins(1);
const MAX_KNOWN: u64 = 100_000;

/// How much is remembered of manifests that the registry doesn't take, in bytes.
const MAX_HERE_BYTES: u64 = 16 * 1024 * 1024;

/// For how long a registry isn't asked about a tag again that could not be asked.
const AWAY_TTL: Duration = Duration::from_secs(10);

/// Where a manifest can be had now.
pub enum Had {
    /// In the registry.
    Kept,
    /// Here alone: the registry doesn't take it.
    Here(Arc<Fetched>),
}

/// Why it can't be had.
#[derive(Clone, Debug, thiserror::Error)]
pub enum ManifestError {
    /// The other registry doesn't give it.
    #[error(transparent)]
    Source(#[from] SourceError),
    /// Ours fails.
    #[error("{0}")]
    Registry(Arc<RegistryError>),
}

impl From<RegistryError> for ManifestError {
    fn from(error: RegistryError) -> Self {
        Self::Registry(Arc::new(error))
    }
}

type Key = (Repository, Tag);

/// What is known of tags and manifests there.
pub struct Manifests {
    registry: Arc<Registry>,
    /// Tags that are what the registry has, for as long as the file says.
    fresh: Cache<Key, ()>,
    /// What the other registry said a moment ago that gave nothing.
    missing: Cache<(Repository, String), SourceError>,
    /// Tags that could not be asked about.
    away: Cache<Key, ()>,
    /// What tags are that the registry doesn't take.
    here: Cache<Key, Arc<Fetched>>,
    /// Who fetches the same manifest does so once.
    fetching: Cache<(Repository, Digest), Arc<Fetched>>,
}

impl Manifests {
    /// Nothing is known of tags that are taken for what they were for `freshness`.
    pub fn new(registry: Arc<Registry>, freshness: Duration) -> Self {
        let known = || Cache::builder().max_capacity(MAX_KNOWN);
        Self {
            registry,
            fresh: known().time_to_live(freshness).build(),
            missing: Cache::builder().max_capacity(MAX_KNOWN).time_to_live(MISSING_TTL).build(),
            away: known().time_to_live(AWAY_TTL).build(),
            here: Cache::builder()
                .weigher(|_, fetched: &Arc<Fetched>| u32::try_from(fetched.bytes.len()).unwrap_or(u32::MAX))
                .max_capacity(MAX_HERE_BYTES)
                .time_to_live(freshness)
                .build(),
            fetching: Cache::builder().max_capacity(16).time_to_live(Duration::from_secs(10)).build(),
        }
    }

    /// Makes sure that the registry has a manifest, as new as it must be.
    ///
    /// # Errors
    /// Why it can't be had.
    pub async fn ensure(
        &self,
        source: &Source,
        name: &str,
        repository: &Repository,
        reference: &Reference,
    ) -> Result<Had, ManifestError> {
        let known = (repository.clone(), reference.to_string());
        match reference {
            Reference::Digest(digest) => {
                if self.registry.find_manifest(repository, reference).await?.is_some() {
                    return Ok(Had::Kept);
                }
                if let Some(missing) = self.missing.get(&known).await {
                    return Err(missing.into());
                }
                self.fetch(source, name, repository, reference, digest).await
            }
            Reference::Tag(tag) => {
                let key = (repository.clone(), tag.clone());
                let is_known = self.fresh.contains_key(&key) || self.away.contains_key(&key);
                if is_known && self.registry.find_manifest(repository, reference).await?.is_some() {
                    return Ok(Had::Kept);
                }
                if let Some(missing) = self.missing.get(&known).await {
                    return Err(missing.into());
                }
                if let Some(here) = self.here.get(&key).await {
                    return Ok(Had::Here(here));
                }
                match self.ask(source, name, repository, reference).await {
                    Ok(Had::Kept) => {
                        self.fresh.insert(key, ()).await;
                        Ok(Had::Kept)
                    }
                    Ok(Had::Here(fetched)) => {
                        self.here.insert(key, Arc::clone(&fetched)).await;
                        Ok(Had::Here(fetched))
                    }
                    // What it hasn't any more isn't served under that name any more.
                    Err(error @ ManifestError::Source(SourceError::Missing(_))) => Err(error),
                    Err(error) => {
                        if self.registry.find_manifest(repository, reference).await?.is_none() {
                            return Err(error);
                        }
                        tracing::warn!(%repository, %tag, %error, "what is kept is served, whether it is new or not");
                        self.away.insert(key, ()).await;
                        Ok(Had::Kept)
                    }
                }
            }
        }
    }

    /// Asks what a tag is there, and fetches that if it is something else than the registry has.
    async fn ask(
        &self,
        source: &Source,
        name: &str,
        repository: &Repository,
        reference: &Reference,
    ) -> Result<Had, ManifestError> {
        let here = self.registry.find_manifest(repository, reference).await?;
        let there = match source.head_manifest(name, &reference.to_string()).await {
            // What is kept isn't given up for a slip: it is asked once more, by GET.
            Err(SourceError::Missing(_)) if here.is_some() => None,
            there => self.note_missing(repository, reference, there).await?,
        };
        match there {
            Some(there) if here.as_ref() == Some(&there) => Ok(Had::Kept),
            Some(there) => match self.fetch(source, name, repository, reference, &there).await {
                // It has moved again, or is nowhere whole yet.
                Err(ManifestError::Source(SourceError::Missing(host))) => {
                    let cause = "it doesn't have the manifest that the tag names".to_owned();
                    Err(SourceError::Away { host, cause }.into())
                }
                fetched => fetched,
            },
            None => {
                let fetched = source.manifest(name, &reference.to_string()).await;
                let fetched = Arc::new(self.note_missing(repository, reference, fetched).await?);
                if here.as_ref() == Some(&fetched.digest) {
                    return Ok(Had::Kept);
                }
                Ok(self.keep(source, repository, reference, fetched).await)
            }
        }
    }

    async fn note_missing<T>(
        &self,
        repository: &Repository,
        reference: &Reference,
        outcome: Result<T, SourceError>,
    ) -> Result<T, SourceError> {
        if let Err(error @ SourceError::Missing(_)) = &outcome {
            self.missing.insert((repository.clone(), reference.to_string()), error.clone()).await;
        }
        outcome
    }

    /// Fetches a manifest by its digest, and keeps it under its reference.
    async fn fetch(
        &self,
        source: &Source,
        name: &str,
        repository: &Repository,
        reference: &Reference,
        digest: &Digest,
    ) -> Result<Had, ManifestError> {
        let fetching = async { source.manifest(name, &digest.to_string()).await.map(Arc::new) };
        let fetched = self.fetching.try_get_with((repository.clone(), digest.clone()), fetching).await;
        let fetched = fetched.map_err(|e| SourceError::clone(&e));
        let by_digest = Reference::Digest(digest.clone());
        let fetched = self.note_missing(repository, &by_digest, fetched).await?;
        Ok(self.keep(source, repository, reference, fetched).await)
    }

    async fn keep(
        &self,
        source: &Source,
        repository: &Repository,
        reference: &Reference,
        fetched: Arc<Fetched>,
    ) -> Had {
        let from = source.host();
        match self.registry.push_manifest(repository, reference, &fetched, &format!("mirror of {from}")).await {
            Ok(()) => {
                tracing::info!(%repository, %reference, digest = %fetched.digest, from, "fetched");
                Had::Kept
            }
            Err(error) => {
                tracing::warn!(%repository, %reference, %error, "a manifest that was fetched can't be kept");
                Had::Here(fetched)
            }
        }
    }
}
