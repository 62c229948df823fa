//! The proxy's own questions to the registry: is it there, which repositories has it?

use std::{
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use berth_config::Upstream;
use berth_oci::{
    Descriptor, Digest, HolderList, MANIFEST_LIMIT, MediaType, NoticeList, Operation, Page, Push, Reference,
    Repository, RepositoryList, RepositoryOverview, Search, TagOverviewList, TagSelection, UsageList, decode_user,
};
use futures_util::StreamExt;
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header::ACCEPT};
use serde::Deserialize;

/// How long the registry may take for one answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);

/// How long it may take for a probe, or for its counters.
const PROBE_TIMEOUT: Duration = Duration::from_secs(3);

/// The most that is read of its counters, in bytes.
const MAX_METRICS_BYTES: usize = 1024 * 1024;

/// The most that is told of why it isn't ready.
const MAX_REASON_CHARS: usize = 300;

/// For how many pages of repositories it is asked which hold a blob.
const MAX_HOLDER_PAGES: usize = 5;

/// How many repositories are asked for at once.
const PAGE_SIZE: usize = 1000;

/// The registry doesn't answer, or not as one.
#[derive(Debug, thiserror::Error)]
#[error("the registry at {upstream} does not answer: {cause}")]
pub struct RegistryError {
    upstream: String,
    cause: String,
}

/// A client of the registry.
pub struct Registry {
    http: reqwest::Client,
    upstream: Upstream,
    /// Whether the log says already that it decides no conditions.
    warned: AtomicBool,
}

/// The header of a registry that knows conditions, in its answer to `GET /v2/`.
const CONDITIONS: &str = "berth-push-conditions";

/// Who has pushed a tag, for our pages alone, percent-encoded.
pub const PUSHED_BY: HeaderName = HeaderName::from_static("berth-pushed-by");

/// By which the registry knows that nobody pulls what is asked for.
const UNCOUNTED: HeaderName = HeaderName::from_static("berth-uncounted");

#[derive(Deserialize)]
struct Catalog {
    repositories: Vec<String>,
}

#[derive(Deserialize)]
struct TagList {
    tags: Option<Vec<String>>,
}

#[derive(Deserialize)]
struct Referrers {
    manifests: Vec<Descriptor>,
}

/// A manifest as the registry has it.
pub struct StoredManifest {
    /// Its digest.
    pub digest: Digest,
    /// Its `Content-Type`.
    pub media_type: String,
    /// Its bytes.
    pub bytes: Vec<u8>,
    /// When its tag was set, and by whom, if that is known.
    pub pushed: Option<Push>,
}

/// A manifest that the registry has.
pub struct FoundManifest {
    /// Its digest.
    pub digest: Digest,
    /// Its `Content-Type`.
    pub media_type: String,
}

/// What became of a deletion.
pub enum Deletion {
    /// It is gone.
    Done,
    /// It wasn't there.
    NotFound,
    /// The registry won't, and says why.
    Refused(String),
}

/// The most that is read of a list, in bytes.
const MAX_LIST_BYTES: usize = 4 * 1024 * 1024;

/// The most that is told of why something isn't deleted.
const MAX_REFUSAL_BYTES: usize = 64 * 1024;

impl Registry {
    /// A client of the registry at `upstream`; it connects when it is asked.
    ///
    /// # Errors
    /// A sentence, if no client can be made.
    pub fn new(upstream: &Upstream) -> Result<Self, String> {
        let headers = HeaderMap::from_iter([(UNCOUNTED, HeaderValue::from_static("1"))]);
        let builder = reqwest::Client::builder().no_proxy().timeout(ANSWER_TIMEOUT).default_headers(headers);
        let builder = match upstream {
            Upstream::Tcp { .. } => builder,
            Upstream::Unix(path) => builder.unix_socket(path.as_path()),
        };
        let http = builder.build().map_err(|e| format!("sidecar.upstream: {e}"))?;
        Ok(Self { http, upstream: upstream.clone(), warned: AtomicBool::new(false) })
    }

    /// Whether it decides `If-None-Match: *` and `If-Match: *` of a manifest push itself, as `berth-registry` does. It is
    /// asked each time: another one may have taken its place.
    pub async fn knows_conditions(&self) -> Result<bool, RegistryError> {
        let knows = self.get("/v2/").await?.headers().contains_key(CONDITIONS);
        if !self.warned.swap(!knows, Ordering::Relaxed) && !knows {
            tracing::warn!(
                "the registry at {} decides no conditions: whether a tag exists is looked up before a push, and two \
                 pushes at once may both find that it doesn't",
                self.upstream
            );
        }
        Ok(knows)
    }

    /// Which manifest a reference names, if it is there.
    pub async fn find_manifest(
        &self,
        repository: &Repository,
        reference: &Reference,
    ) -> Result<Option<FoundManifest>, RegistryError> {
        let operation = Operation::HeadManifest { repository: repository.clone(), reference: reference.clone() };
        let url = format!("http://{}{}", self.upstream.authority(), operation.target());
        // Without this, some registries say that there is nothing that the asker could read.
        let accept = MediaType::ALL.map(MediaType::as_str).join(", ");
        let answer = self.http.head(url).header(ACCEPT, accept).send().await.map_err(|e| self.error(&e))?;
        let wrong = |cause: String| RegistryError { upstream: self.upstream.to_string(), cause };
        match answer.status() {
            StatusCode::NOT_FOUND => Ok(None),
            status if status.is_success() => {
                let header = |name: &str| answer.headers().get(name).and_then(|value| value.to_str().ok());
                let digest = header("docker-content-digest").and_then(|digest| digest.parse().ok());
                let digest = digest.ok_or_else(|| wrong("it doesn't say what a manifest's digest is".to_owned()))?;
                Ok(Some(FoundManifest { digest, media_type: header("content-type").unwrap_or_default().to_owned() }))
            }
            status => Err(wrong(format!("it answers {status}"))),
        }
    }

    /// Whether a repository holds a blob.
    pub async fn has_blob(&self, repository: &Repository, digest: &Digest) -> Result<bool, RegistryError> {
        let operation = Operation::HeadBlob { repository: repository.clone(), digest: digest.clone() };
        let url = format!("http://{}{}", self.upstream.authority(), operation.target());
        let answer = self.http.head(url).send().await.map_err(|e| self.error(&e))?;
        match answer.status() {
            StatusCode::NOT_FOUND => Ok(false),
            status if status.is_success() => Ok(true),
            status => Err(RegistryError { upstream: self.upstream.to_string(), cause: format!("it answers {status}") }),
        }
    }

    /// Nothing if it can store and serve, or else why not. Another registry than ours is only asked whether it answers.
    pub async fn readiness(&self) -> Result<Option<String>, RegistryError> {
        self.soon(self.ask_readiness()).await
    }

    async fn ask_readiness(&self) -> Result<Option<String>, RegistryError> {
        let answer = self.ask("/readyz").await?;
        if answer.status() != StatusCode::SERVICE_UNAVAILABLE {
            return self.get("/v2/").await.map(|_| None);
        }
        let reason = answer.text().await.map_err(|e| self.error(&e))?;
        Ok(Some(reason.trim().chars().take(MAX_REASON_CHARS).collect()))
    }

    /// What it counts; empty, if it is another registry than ours.
    pub async fn metrics(&self) -> Result<String, RegistryError> {
        self.soon(self.ask_metrics()).await
    }

    /// What somebody waits for who gives up after ten seconds, and must hear that we don't know.
    async fn soon<T>(&self, asked: impl Future<Output = Result<T, RegistryError>>) -> Result<T, RegistryError> {
        let late = |_| RegistryError {
            upstream: self.upstream.to_string(),
            cause: format!("it takes longer than {} s", PROBE_TIMEOUT.as_secs()),
        };
        tokio::time::timeout(PROBE_TIMEOUT, asked).await.map_err(late)?
    }

    async fn ask_metrics(&self) -> Result<String, RegistryError> {
        let answer = self.ask("/metrics").await?;
        if !answer.status().is_success() {
            return self.get("/v2/").await.map(|_| String::new());
        }
        let text = self.bounded(answer, MAX_METRICS_BYTES).await?.unwrap_or_default();
        Ok(String::from_utf8_lossy(&text).into_owned())
    }

    /// At most `n` of the repositories after `last` that `readable` says yes to, and whether there are more of
    /// them. However many it says no to, a page is full unless the list is at its end.
    pub async fn repositories(
        &self,
        n: usize,
        last: Option<String>,
        readable: impl Fn(&str) -> bool,
    ) -> Result<(Vec<String>, bool), RegistryError> {
        let mut found = Vec::new();
        let mut page = Page { n: Some(PAGE_SIZE), last };
        loop {
            let answer = self.get(&page.append_to("/v2/_catalog".to_owned())).await?;
            let more = answer.headers().contains_key(http::header::LINK);
            let catalog: Catalog = answer.json().await.map_err(|e| self.error(&e))?;
            page.last = catalog.repositories.last().cloned();
            let ended = !more || page.last.is_none();
            for name in catalog.repositories.into_iter().filter(|name| readable(name)) {
                if found.len() == n {
                    return Ok((found, true));
                }
                found.push(name);
            }
            if ended {
                return Ok((found, false));
            }
        }
    }

    /// Repositories that `readable` says yes to, with what is counted of them; nothing of a registry that doesn't count.
    /// However many it says no to, a page is full unless the list is at its end.
    pub async fn describe_repositories(
        &self,
        search: &Search,
        readable: impl Fn(&str) -> bool,
    ) -> Result<Option<RepositoryList>, RegistryError> {
        let n = search.page.n.unwrap_or(PAGE_SIZE).min(PAGE_SIZE);
        let (mut found, mut search): (Vec<RepositoryOverview>, _) = (Vec::new(), search.clone());
        search.page.n = Some(n);
        loop {
            let target = Operation::DescribeRepositories(search.clone()).target();
            let list: Option<RepositoryList> = self.describe(&target).await?;
            let Some(list) = list else { return Ok(None) };
            for described in list.repositories.into_iter().filter(|described| readable(described.name.as_str())) {
                if found.len() == n {
                    let next = found.last().map(|last| last.name.to_string());
                    return Ok(Some(RepositoryList { repositories: found, next }));
                }
                found.push(described);
            }
            // Most of the next ones may be none of theirs.
            search.page = Page { n: Some(PAGE_SIZE), last: list.next };
            if search.page.last.is_none() {
                return Ok(Some(RepositoryList { repositories: found, next: None }));
            }
        }
    }

    /// Tags, with what they point at; nothing if there is no such repository, or it isn't counted.
    pub async fn describe_tags(
        &self,
        repository: &Repository,
        selection: TagSelection,
    ) -> Result<Option<TagOverviewList>, RegistryError> {
        self.describe(&Operation::DescribeTags { repository: repository.clone(), selection }.target()).await
    }

    /// Which repositories that `readable` says yes to hold a blob of one; nothing if that one doesn't. A page may end early,
    /// and what comes next is never a name that it says no to.
    pub async fn holders(
        &self,
        repository: &Repository,
        digest: &Digest,
        page: &Page,
        readable: impl Fn(&Repository) -> bool,
    ) -> Result<Option<HolderList>, RegistryError> {
        let n = page.n.unwrap_or(PAGE_SIZE).min(PAGE_SIZE);
        let (mut repositories, mut last): (Vec<Repository>, _) = (Vec::new(), page.last.clone());
        for asked in 0..MAX_HOLDER_PAGES {
            let (repository, digest) = (repository.clone(), digest.clone());
            // Most of the next ones may be none of theirs.
            let page = Page { n: Some(if asked == 0 { n + 1 } else { PAGE_SIZE }), last };
            let list: Option<HolderList> =
                self.describe(&Operation::ListHolders { repository, digest, page }.target()).await?;
            let Some(list) = list else { return Ok(None) };
            repositories.extend(list.repositories.into_iter().filter(&readable));
            last = list.next;
            if last.is_none() || repositories.len() > n {
                break;
            }
        }
        let more = last.is_some() || repositories.len() > n;
        repositories.truncate(n);
        let next = repositories.last().filter(|_| more).map(ToString::to_string);
        Ok(Some(HolderList { repositories, next }))
    }

    /// What is used of the quotas that count a repository.
    pub async fn describe_usage(&self, repository: &Repository) -> Result<Option<UsageList>, RegistryError> {
        self.describe(&Operation::DescribeUsage { repository: repository.clone() }.target()).await
    }

    /// What only our own registry knows.
    async fn describe<T: serde::de::DeserializeOwned>(&self, target: &str) -> Result<Option<T>, RegistryError> {
        match self.find(target).await? {
            Some(answer) => self.json(answer).await,
            None => Ok(None),
        }
    }

    /// A page of a repository's tags, and whether there are more; nothing if there is no such repository.
    pub async fn tags(
        &self,
        repository: &Repository,
        page: Page,
    ) -> Result<Option<(Vec<String>, bool)>, RegistryError> {
        let target = Operation::ListTags { repository: repository.clone(), page }.target();
        let Some(answer) = self.find(&target).await? else { return Ok(None) };
        let more = answer.headers().contains_key(http::header::LINK);
        let list: Option<TagList> = self.json(answer).await?;
        Ok(list.map(|list| (list.tags.unwrap_or_default(), more)))
    }

    /// A manifest, if it is there.
    pub async fn manifest(
        &self,
        repository: &Repository,
        reference: &Reference,
    ) -> Result<Option<StoredManifest>, RegistryError> {
        let target = Operation::PullManifest { repository: repository.clone(), reference: reference.clone() }.target();
        let Some(answer) = self.find(&target).await? else { return Ok(None) };
        let header = |name: &str| answer.headers().get(name).and_then(|value| value.to_str().ok()).map(str::to_owned);
        let media_type = header("content-type").unwrap_or_default();
        let pushed_at = header("last-modified").and_then(|text| httpdate::parse_http_date(&text).ok());
        let by = header(PUSHED_BY.as_str()).and_then(|text| decode_user(&text));
        let pushed = pushed_at.map(|at| Push { at: at.into(), by });
        let digest = header("docker-content-digest").and_then(|digest| digest.parse().ok());
        let digest = match (digest, reference) {
            (Some(digest), _) => digest,
            (None, Reference::Digest(digest)) => digest.clone(),
            (None, Reference::Tag(_)) => return Ok(None),
        };
        let bytes = self.bounded(answer, MANIFEST_LIMIT).await?;
        Ok(bytes.map(|bytes| StoredManifest { digest, media_type, bytes, pushed }))
    }

    /// A blob of at most `limit` bytes, if it is there and no longer.
    pub async fn small_blob(
        &self,
        repository: &Repository,
        digest: &Digest,
        limit: usize,
    ) -> Result<Option<Vec<u8>>, RegistryError> {
        let target = Operation::PullBlob { repository: repository.clone(), digest: digest.clone() }.target();
        match self.find(&target).await? {
            None => Ok(None),
            Some(answer) => self.bounded(answer, limit).await,
        }
    }

    /// The first of the manifests that refer to another.
    pub async fn referrers(&self, repository: &Repository, subject: &Digest) -> Result<Vec<Descriptor>, RegistryError> {
        let (repository, subject) = (repository.clone(), subject.clone());
        let target = Operation::ListReferrers { repository, subject, artifact_type: None, last: None }.target();
        let Some(answer) = self.find(&target).await? else { return Ok(Vec::new()) };
        let referrers: Option<Referrers> = self.json(answer).await?;
        Ok(referrers.map(|list| list.manifests).unwrap_or_default())
    }

    /// Takes away a tag, or a manifest.
    pub async fn delete(&self, repository: &Repository, reference: &Reference) -> Result<Deletion, RegistryError> {
        let target =
            Operation::DeleteManifest { repository: repository.clone(), reference: reference.clone() }.target();
        let url = format!("http://{}{target}", self.upstream.authority());
        let answer = self.http.delete(url).send().await.map_err(|e| self.error(&e))?;
        match answer.status() {
            status if status.is_success() => Ok(Deletion::Done),
            StatusCode::NOT_FOUND => Ok(Deletion::NotFound),
            status => {
                let text = self.bounded(answer, MAX_REFUSAL_BYTES).await?.unwrap_or_default();
                let error = serde_json::from_slice::<serde_json::Value>(&text).unwrap_or_default();
                let message = error["errors"][0]["message"].as_str().map_or_else(|| status.to_string(), str::to_owned);
                Ok(Deletion::Refused(message))
            }
        }
    }

    /// What it did by itself, as far as it hasn't been told to forget it; nothing of another registry than ours.
    pub async fn notices(&self) -> Result<NoticeList, RegistryError> {
        Ok(self.describe("/notices").await?.unwrap_or_default())
    }

    /// Lets it forget some of that.
    pub async fn forget_notice(&self, id: &str) -> Result<(), RegistryError> {
        let url = format!("http://{}/notices/{id}", self.upstream.authority());
        self.http.delete(url).send().await.map(drop).map_err(|e| self.error(&e))
    }

    /// Its answer, or nothing if it has nothing there.
    async fn find(&self, target: &str) -> Result<Option<reqwest::Response>, RegistryError> {
        let answer = self.ask(target).await?;
        // Where a page begins is what somebody has typed, and there is nothing at a place that is none; what is too large to be
        // counted isn't there for who wants it counted.
        if matches!(answer.status(), StatusCode::NOT_FOUND | StatusCode::NOT_IMPLEMENTED | StatusCode::BAD_REQUEST) {
            return Ok(None);
        }
        answer.error_for_status().map(Some).map_err(|e| self.error(&e))
    }

    async fn json<T: serde::de::DeserializeOwned>(
        &self,
        answer: reqwest::Response,
    ) -> Result<Option<T>, RegistryError> {
        let bytes = self.bounded(answer, MAX_LIST_BYTES).await?;
        Ok(bytes.and_then(|bytes| serde_json::from_slice(&bytes).ok()))
    }

    /// A body, unless it is longer than `limit`.
    async fn bounded(&self, answer: reqwest::Response, limit: usize) -> Result<Option<Vec<u8>>, RegistryError> {
        let (mut bytes, mut body) = (Vec::new(), answer.bytes_stream());
        while let Some(piece) = body.next().await {
            bytes.extend_from_slice(&piece.map_err(|e| self.error(&e))?);
            if bytes.len() > limit {
                return Ok(None);
            }
        }
        Ok(Some(bytes))
    }

    async fn get(&self, target: &str) -> Result<reqwest::Response, RegistryError> {
        self.ask(target).await?.error_for_status().map_err(|e| self.error(&e))
    }

    /// Its answer, whatever that is.
    async fn ask(&self, target: &str) -> Result<reqwest::Response, RegistryError> {
        let url = format!("http://{}{target}", self.upstream.authority());
        // Without this, some registries say that there is nothing that the asker could read.
        let accept = MediaType::ALL.map(MediaType::as_str).join(", ") + ", */*";
        self.http.get(url).header(ACCEPT, accept).send().await.map_err(|e| self.error(&e))
    }

    fn error(&self, error: &reqwest::Error) -> RegistryError {
        let mut cause: &dyn std::error::Error = error;
        while let Some(source) = cause.source() {
            cause = source;
        }
        RegistryError { upstream: self.upstream.to_string(), cause: cause.to_string() }
    }
}
