//! The lists that are served of what is known.

use std::time::{Duration, Instant};

use berth_oci::{
    Digest, Error, ErrorCode, HolderList, Page, Repository, RepositoryList, RepositoryOverview, Search,
    TagOverviewList, TagRetention, TagSelection,
};
use futures_util::{StreamExt, TryStreamExt, stream};
use http::StatusCode;
use time::OffsetDateTime;

use super::{super::Content, CHECK_CONCURRENCY, read, storage_error};
use crate::storage::keys;

/// How many repositories, and tags, one page has at most.
const MAX_REPOSITORIES_PER_PAGE: usize = 1000;
const MAX_TAGS_PER_PAGE: usize = 1000;

/// How long it may take to find out what isn't known of a page of repositories: then it is served without.
const MAX_PAGE_TIME: Duration = Duration::from_secs(2);

/// How many repositories are asked whether they hold a blob, for one answer; in a bucket that is dear.
const MAX_ASKED: usize = 10_000;
const MAX_ASKED_IN_BUCKET: usize = 200;

impl Content {
    /// Repositories, with what is counted of them.
    pub async fn describe_repositories(&self, search: &Search) -> Result<RepositoryList, Error> {
        let n = search.page.n.unwrap_or(MAX_REPOSITORIES_PER_PAGE).min(MAX_REPOSITORIES_PER_PAGE);
        let wanted = search.q.as_deref().map(str::to_lowercase).unwrap_or_default();
        let names = self.names(&wanted, search.page.last.as_deref(), n + 1).await.map_err(storage_error)?;
        let mut found: Vec<Repository> = names.iter().filter_map(|name| name.parse().ok()).collect();
        let more = found.len() > n;
        found.truncate(n);
        let next = found.last().filter(|_| more).map(ToString::to_string);
        let deadline = Instant::now() + MAX_PAGE_TIME;
        let described = stream::iter(found).map(async |name| {
            let totals = self.totals(&name, deadline).await;
            RepositoryOverview { name, totals }
        });
        Ok(RepositoryList { repositories: described.buffered(CHECK_CONCURRENCY).collect().await, next })
    }

    /// Tags of a repository, with what is known of them.
    pub async fn describe_tags(
        &self,
        repository: &Repository,
        selection: &TagSelection,
    ) -> Result<TagOverviewList, Error> {
        self.must_exist(repository).await?;
        let known = self.overview(repository).await.map_err(storage_error)?.ok_or_else(|| too_large(repository))?;
        let n = selection.search.page.n.unwrap_or(MAX_TAGS_PER_PAGE).min(MAX_TAGS_PER_PAGE);
        let selection = selection.clone();
        let name = repository.clone();
        let selected = tokio::task::spawn_blocking(move || {
            let known = read(&known);
            let (matching, tags, next) = known.select(&selection, n);
            TagOverviewList { name, totals: known.totals(), matching, tags, next }
        });
        let mut list = selected.await.map_err(|panic| storage_error(std::io::Error::other(panic)))?;
        let mut verdicts = self.verdicts(repository).await.map_err(storage_error)?;
        for tag in &mut list.tags {
            tag.retention = verdicts.remove(&tag.tag).map(|verdict| TagRetention {
                kept: verdict.is_kept,
                rule: verdict.rule,
                until: verdict.until.and_then(|at| OffsetDateTime::from_unix_timestamp(i64::try_from(at).ok()?).ok()),
            });
        }
        Ok(list)
    }

    /// Repositories that hold a blob which `repository` holds; itself among them.
    pub async fn holders(&self, repository: &Repository, digest: &Digest, page: &Page) -> Result<HolderList, Error> {
        self.held_len(repository, digest)
            .await?
            .ok_or_else(|| super::super::blobs::blob_unknown(repository, digest))?;
        let n = page.n.unwrap_or(MAX_REPOSITORIES_PER_PAGE).min(MAX_REPOSITORIES_PER_PAGE);
        let asked = if self.is_shared() { MAX_ASKED_IN_BUCKET } else { MAX_ASKED };
        let names =
            self.storage.repositories(&[keys::BLOBS], page.last.as_deref(), asked).await.map_err(storage_error)?;
        let is_end = names.len() < asked;
        let names = names.into_iter().filter_map(|name| name.parse::<Repository>().ok());
        let end = names.clone().next_back();
        let held = stream::iter(names).map(async |name| {
            let holds = self.storage.exists(&keys::held_blob(&name, digest)).await.map_err(storage_error)?;
            Ok::<_, Error>(holds.then_some(name))
        });
        let held = held.buffered(CHECK_CONCURRENCY).try_filter_map(async |name| Ok(name));
        let mut held: Vec<Repository> = held.take(n + 1).try_collect().await?;
        let next = match held.len() > n {
            true => n.checked_sub(1).and_then(|last| held.get(last)).cloned(),
            false => end.filter(|_| !is_end),
        };
        held.truncate(n);
        Ok(HolderList { repositories: held, next: next.map(|name| name.to_string()) })
    }
}

fn too_large(repository: &Repository) -> Error {
    let message = format!("{repository} is too large to be counted; its tags can be listed");
    Error::new(StatusCode::NOT_IMPLEMENTED, ErrorCode::Unsupported, message)
}
