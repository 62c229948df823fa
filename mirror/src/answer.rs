//! What becomes of a pull: the registry answers it, once it has what is asked for; or what is on its way does.

use std::{sync::Arc, time::Duration};

use axum::{
    body::Body,
    extract::{Request, State},
    response::Response,
};
use berth_oci::{Digest, Error, ErrorCode, Operation, Reference, Repository};
use futures_util::stream;
use http::{
    HeaderMap, HeaderValue, Method, StatusCode,
    header::{ACCEPT_RANGES, CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, ETAG, IF_RANGE, RANGE, RETRY_AFTER},
};

use crate::{
    blobs::Blobs,
    config::{Config, Content},
    manifests::{Had, ManifestError, Manifests},
    registry::{Registry, unavailable},
    source::{Fetched, Source, SourceError},
};

/// Some repositories of another registry, with what is known of them.
struct Mirrored {
    content: Content,
    source: Arc<Source>,
    manifests: Arc<Manifests>,
}

/// All of it.
pub struct Mirror {
    registry: Arc<Registry>,
    mirrored: Vec<Mirrored>,
    blobs: Arc<Blobs>,
}

impl Mirror {
    /// Mirrors what `config` says.
    ///
    /// # Errors
    /// A sentence, if something can't be made.
    pub fn new(config: Config) -> Result<Self, String> {
        let registry = Arc::new(Registry::new(&config.registry)?);
        let mut mirrored: Vec<Mirrored> = Vec::new();
        for content in config.contents {
            let known = mirrored.iter().find(|one| Arc::ptr_eq(&one.content.from, &content.from));
            let (source, manifests) = match known {
                Some(one) => (Arc::clone(&one.source), Arc::clone(&one.manifests)),
                None => {
                    let freshness: Duration = content.from.freshness;
                    let manifests = Arc::new(Manifests::new(Arc::clone(&registry), freshness));
                    (Arc::new(Source::new(Arc::clone(&content.from))?), manifests)
                }
            };
            mirrored.push(Mirrored { content, source, manifests });
        }
        let blobs = Arc::new(Blobs::new(Arc::clone(&registry), config.folder));
        Ok(Self { registry, mirrored, blobs })
    }

    /// Nothing, or why nothing can be served.
    pub async fn readiness(&self) -> Result<(), String> {
        self.registry.ping().await.map_err(|error| error.to_string())
    }

    /// The first that mirrors a repository, and what that is called there.
    fn of(&self, repository: &Repository) -> Option<(&Mirrored, String)> {
        self.mirrored.iter().find_map(|one| Some((one, one.content.remote_name(repository)?)))
    }

    async fn perform(&self, operation: &Operation, headers: &HeaderMap) -> Result<Response, Error> {
        let Some((mirrored, name)) = operation.repository().and_then(|repository| self.of(repository)) else {
            return self.registry.answer(operation, headers).await;
        };
        match operation {
            Operation::HeadManifest { repository, reference } | Operation::PullManifest { repository, reference } => {
                let had = mirrored.manifests.ensure(&mirrored.source, &name, repository, reference).await;
                match had.map_err(|error| manifest_refusal(&error, repository, reference))? {
                    Had::Kept => self.registry.answer(operation, headers).await,
                    Had::Here(fetched) => manifest_response(operation, &fetched),
                }
            }
            Operation::HeadBlob { repository, digest } | Operation::PullBlob { repository, digest } => {
                if self.registry.has_blob(repository, digest).await.map_err(|error| unavailable(&error))? {
                    return self.registry.answer(operation, headers).await;
                }
                let refused =
                    |error: SourceError| refusal(&error, ErrorCode::BlobUnknown, &format!("{repository}@{digest}"));
                if operation.method() == Method::HEAD {
                    let len = mirrored.source.blob_len(&name, digest).await.map_err(refused)?;
                    return Ok(blob_response(digest, len));
                }
                let download = self.blobs.fetch(&mirrored.source, &name, repository, digest).await.map_err(refused)?;
                let mut response = blob_response(digest, download.len);
                let (mut from, mut to) = (0, None);
                if let Some(len) = download.len
                    && let Some((first, end)) = range(headers, len)
                {
                    (from, to) = (first, Some(end));
                    *response.status_mut() = StatusCode::PARTIAL_CONTENT;
                    let headers = response.headers_mut();
                    headers.insert(CONTENT_RANGE, value(&format!("bytes {first}-{}/{len}", end - 1)));
                    headers.insert(CONTENT_LENGTH, HeaderValue::from(end - first));
                }
                *response.body_mut() = Body::from_stream(download.read(from, to));
                Ok(response)
            }
            _ => self.registry.answer(operation, headers).await,
        }
    }
}

/// Answers a request; none but reads.
pub async fn answer(State(mirror): State<Arc<Mirror>>, request: Request) -> Response {
    let (parts, _) = request.into_parts();
    let outcome = match Operation::parse(&parts.method, &parts.uri) {
        Ok(operation) if parts.method.is_safe() => mirror.perform(&operation, &parts.headers).await,
        Ok(_) => Err(Error::new(StatusCode::METHOD_NOT_ALLOWED, ErrorCode::Unsupported, "a mirror is only read")),
        Err(error) => Err(error.into()),
    };
    outcome.unwrap_or_else(|error| {
        let mut response = Response::new(Body::from(error.body()));
        *response.status_mut() = error.status;
        response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        if error.status == StatusCode::TOO_MANY_REQUESTS {
            let seconds = error.detail["retryAfter"].as_u64().unwrap_or(60);
            response.headers_mut().insert(RETRY_AFTER, HeaderValue::from(seconds));
        }
        response
    })
}

fn manifest_refusal(error: &ManifestError, repository: &Repository, reference: &Reference) -> Error {
    match error {
        ManifestError::Registry(error) => unavailable(error),
        ManifestError::Source(error) => {
            refusal(error, ErrorCode::ManifestUnknown, &format!("{repository}, {reference}"))
        }
    }
}

fn refusal(error: &SourceError, unknown: ErrorCode, what: &str) -> Error {
    let message = format!("{what}: {error}");
    match error {
        SourceError::Missing(_) => Error::new(StatusCode::NOT_FOUND, unknown, message),
        SourceError::Busy { retry_after, .. } => {
            let error = Error::new(StatusCode::TOO_MANY_REQUESTS, ErrorCode::TooManyRequests, message);
            error.with_detail(serde_json::json!({"retryAfter": retry_after.unwrap_or(60)}))
        }
        SourceError::Full { .. } => {
            let error = Error::new(StatusCode::TOO_MANY_REQUESTS, ErrorCode::TooManyRequests, message);
            error.with_detail(serde_json::json!({"retryAfter": 5}))
        }
        SourceError::Refused { .. } | SourceError::Away { .. } => {
            tracing::warn!(%error, what, "it can't be fetched");
            Error::new(StatusCode::BAD_GATEWAY, ErrorCode::Unavailable, message)
        }
    }
}

fn value(text: &str) -> HeaderValue {
    HeaderValue::from_str(text).unwrap_or_else(|_| HeaderValue::from_static(""))
}

fn manifest_response(operation: &Operation, fetched: &Fetched) -> Result<Response, Error> {
    let is_head = operation.method() == Method::HEAD;
    let mut response = Response::new(if is_head { Body::empty() } else { Body::from(fetched.bytes.clone()) });
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, value(&fetched.media_type));
    headers.insert(CONTENT_LENGTH, HeaderValue::from(fetched.bytes.len()));
    headers.insert("docker-content-digest", value(&fetched.digest.to_string()));
    Ok(response)
}

fn blob_response(digest: &Digest, len: Option<u64>) -> Response {
    let mut response = Response::new(Body::empty());
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"));
    headers.insert("docker-content-digest", value(&digest.to_string()));
    headers.insert(ETAG, value(&format!("\"{digest}\"")));
    headers.insert(ACCEPT_RANGES, HeaderValue::from_static("bytes"));
    match len {
        Some(len) => drop(headers.insert(CONTENT_LENGTH, HeaderValue::from(len))),
        // It isn't empty, it isn't known how long it is.
        None => *response.body_mut() = Body::from_stream(stream::empty::<std::io::Result<bytes::Bytes>>()),
    }
    response
}

/// One part of so many bytes, from one to before another; anything else may be answered with the whole (RFC 9110, section 14.2).
fn range(headers: &HeaderMap, len: u64) -> Option<(u64, u64)> {
    if headers.contains_key(IF_RANGE) {
        return None;
    }
    let (first, last) = headers.get(RANGE)?.to_str().ok()?.strip_prefix("bytes=")?.split_once('-')?;
    let first: u64 = first.parse().ok()?;
    let end = if last.is_empty() { len } else { last.parse::<u64>().ok()?.checked_add(1)?.min(len) };
    (first < end).then_some((first, end))
}
