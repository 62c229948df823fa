//! The distribution API over HTTP: reads a request as an [`Operation`], and writes what [`Content`] says of it.
//!
//! Endpoint numbers (`end-1` …) are the distribution specification's.

mod answers;
mod conditions;
mod handover;
mod limits;
mod server;

use std::{io, ops::Range, sync::Arc, time::Instant};

use axum::{
    body::Body,
    extract::{Request, State},
    response::{IntoResponse, Response},
};
use berth_observe::{Span, Traces};
use berth_oci::{Digest, Error, ErrorCode, MediaType, Operation, Reference, Repository, RouteError, UsageList};
use bytes::Bytes;
use futures_util::{StreamExt, TryStreamExt, stream};
use http::{
    HeaderMap, HeaderName, HeaderValue, Method, StatusCode,
    header::{CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, LINK, RANGE},
};
use serde_json::json;
use tracing::Instrument;

use self::{
    answers::{
        blob_headers, created, error_response, json_response, link, list_response, manifest_response, not_modified,
        redirect, unreadable, upload_response, value,
    },
    conditions::{ByteRange, condition, in_order, matches_etag},
    limits::Place,
};
pub use self::{
    limits::Limits,
    server::{health, serve},
};
use crate::{
    content::{Content, List, ManifestPush, TagPage},
    metrics::Metrics,
    status,
    storage::Blob,
};

const API_VERSION: HeaderName = HeaderName::from_static("docker-distribution-api-version");
/// The proxy's name for a request.
const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
/// The proxy asks for itself, and nobody pulls.
const UNCOUNTED: HeaderName = HeaderName::from_static("berth-uncounted");
/// Who pushes, as the proxy calls them, percent-encoded.
const USER: HeaderName = HeaderName::from_static("berth-user");

/// By which a mirror pushes a manifest whose parts may come later, or never.
const INCOMPLETE: HeaderName = HeaderName::from_static("berth-incomplete");
const OCI_SUBJECT: HeaderName = HeaderName::from_static("oci-subject");
const OCI_TAG: HeaderName = HeaderName::from_static("oci-tag");
/// Tells the proxy that the conditions of a manifest push are decided here, in one step with the write.
const CONDITIONS: HeaderName = HeaderName::from_static("berth-push-conditions");
const OCI_FILTERS_APPLIED: HeaderName = HeaderName::from_static("oci-filters-applied");

/// A longer manifest is sent piece by piece, as a blob is, and not held whole.
const MAX_WHOLE_MANIFEST_BYTES: u64 = 64 * 1024;

/// The longest name that is written down, percent-encoded.
const MAX_USER_BYTES: usize = 768;

/// How many tags are written at once.
const TAGS_PER_PIECE: usize = 500;

/// What all requests share.
pub struct Serving {
    /// The repositories.
    pub content: Arc<Content>,
    /// What is counted.
    pub metrics: Metrics,
    /// Where spans go.
    pub traces: Traces,
    /// What requests may have at once.
    pub limits: Limits,
}

/// How many bytes a request says that it has; none, if it doesn't say.
fn announced(headers: &HeaderMap) -> u64 {
    headers.get(CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse().ok()).unwrap_or_default()
}

async fn answer(State(serving): State<Arc<Serving>>, request: Request) -> Response {
    match request.uri().path() {
        "/metrics" => return status::metrics(&serving).await,
        "/readyz" => return status::ready(&serving).await,
        "/notices" => return status::notices(&serving, request.method(), None).await,
        path => {
            if let Some(id) = path.strip_prefix("/notices/") {
                return status::notices(&serving, request.method(), Some(id)).await;
            }
        }
    }
    let began = Instant::now();
    let trace = serving.traces.begin(request.headers());
    let span = request_span(request.headers(), request.method(), request.uri().path());
    let parsed = Operation::parse(request.method(), request.uri());
    let name = parsed.as_ref().map_or("unknown", Operation::name);
    let outcome = answer_operation(&serving, parsed, request).instrument(span.clone()).await;
    let mut response = outcome.unwrap_or_else(|error| error_response(&error));
    response.headers_mut().insert(API_VERSION, HeaderValue::from_static("registry/2.0"));
    ended(&serving, name, response.status().as_u16(), began, trace, &span);
    response
}

/// Whatever is logged on the way says which request it is about.
fn request_span(headers: &HeaderMap, method: &Method, path: &str) -> tracing::Span {
    let id = headers.get(REQUEST_ID).and_then(|id| id.to_str().ok()).filter(|id| is_request_id(id));
    tracing::error_span!("request", id, %method, path)
}

/// A request has been answered.
fn ended(serving: &Serving, name: &'static str, status: u16, began: Instant, trace: Span, span: &tracing::Span) {
    let took = began.elapsed();
    serving.metrics.request(name, status, took);
    let us = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
    span.in_scope(|| tracing::debug!(operation = name, status, us, "answered"));
    if trace.is_recording() {
        trace.named(name);
        trace.end(status);
    }
}

async fn answer_operation(
    serving: &Arc<Serving>,
    parsed: Result<Operation, RouteError>,
    request: Request,
) -> Result<Response, Error> {
    let operation = parsed?;
    if request.method().is_safe() {
        return perform(serving, operation, request).await;
    }
    // A client that goes away takes its answer along, and not the half of a write: that goes on to its end, under its
    // locks.
    let serving = Arc::clone(serving);
    let writing = async move { perform(&serving, operation, request).await };
    let writing = tokio::spawn(writing.in_current_span());
    writing.await.unwrap_or_else(|panic| Err(unreadable(&io::Error::other(panic))))
}

/// What a proxy may call a request: it stands in every line of the log.
fn is_request_id(id: &str) -> bool {
    (1..=64).contains(&id.len()) && id.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
}

async fn perform(serving: &Serving, operation: Operation, request: Request) -> Result<Response, Error> {
    use Operation as Op;
    let (content, limits) = (&*serving.content, &serving.limits);
    let place = limits.transfer()?;
    let (parts, body) = request.into_parts();
    let headers = &parts.headers;
    match operation {
        Op::Ping => {
            let mut response = json_response("application/json", "{}".to_owned());
            response.headers_mut().insert(CONDITIONS, HeaderValue::from_static("create, update"));
            Ok(response)
        }
        Op::ListRepositories(page) => {
            let List { entries, next } = content.repositories(&page).await?;
            Ok(list_response(json!({"repositories": entries}), next, "/v2/_catalog".to_owned()))
        }
        Op::ListTags { repository, page } => {
            let page = content.tags(&repository, &page).await?;
            Ok(tags_response(&repository, page))
        }
        Op::HeadManifest { repository, reference } => {
            let stored = content.tell_manifest(&repository, &reference).await?;
            let len = content.manifest_len(&repository, &stored).await?;
            manifest_response(headers, &reference, &stored, len)
        }
        Op::PullManifest { repository, reference } => {
            let (mut response, part) = manifest_part(content, headers, &repository, &reference).await?;
            if let Some((blob, range)) = part {
                *response.body_mut() = match range.end {
                    0..=MAX_WHOLE_MANIFEST_BYTES => whole(blob, range).await?.into(),
                    _ => body_of(blob, range, place),
                };
            }
            Ok(response)
        }
        Op::PushManifest { repository, reference, tags } => {
            let condition = condition(headers)?;
            let content_type = headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok());
            let (bytes, _place) = limits.receive_manifest(headers, body).await?;
            let is_incomplete = headers.contains_key(INCOMPLETE);
            let by = user(headers);
            let (reference, more_tags) = (&reference, &tags[..]);
            let push = ManifestPush { reference, more_tags, content_type, bytes, condition, by, is_incomplete };
            let pushed = content.push_manifest(&repository, &push).await?;
            let mut response = created(format!("/v2/{repository}/manifests/{}", pushed.digest), &pushed.digest)?;
            for tag in &tags {
                response.headers_mut().append(OCI_TAG, value(tag)?);
            }
            if let Some(subject) = pushed.subject {
                response.headers_mut().insert(OCI_SUBJECT, value(&subject)?);
            }
            Ok(response)
        }
        Op::DeleteManifest { repository, reference } => {
            content.delete_manifest(&repository, &reference).await?;
            Ok(StatusCode::ACCEPTED.into_response())
        }
        Op::HeadBlob { repository, digest } => blob_headers(&digest, content.blob_len(&repository, &digest).await?),
        Op::PullBlob { repository, digest } => pull_blob(content, headers, &repository, &digest, place).await,
        Op::DeleteBlob { repository, digest } => {
            content.delete_blob(&repository, &digest).await?;
            Ok(StatusCode::ACCEPTED.into_response())
        }
        Op::StartUpload { repository, algorithm } => {
            let upload = content.start_upload(&repository, algorithm).await?;
            upload_response(StatusCode::ACCEPTED, &repository, &*upload)
        }
        Op::PushBlob { repository, digest } => {
            content.push_blob(&repository, &digest, announced(headers), body.into_data_stream()).await?;
            created(format!("/v2/{repository}/blobs/{digest}"), &digest)
        }
        Op::MountBlob { repository, digest, from } => {
            if let Some(from) = from
                && content.mount(&repository, &digest, &from).await?
            {
                return created(format!("/v2/{repository}/blobs/{digest}"), &digest);
            }
            let upload = content.start_upload(&repository, digest.algorithm()).await?;
            upload_response(StatusCode::ACCEPTED, &repository, &*upload)
        }
        Op::UploadStatus(session) => {
            let upload = content.resume_upload(&session).await?;
            upload_response(StatusCode::NO_CONTENT, &session.repository, &*upload)
        }
        Op::UploadChunk(session) => {
            let upload = content.resume_upload(&session).await?;
            let len = in_order(headers, &session.repository, &*upload)?;
            let upload = content.fitting(&session.repository, None, upload, announced(headers)).await?;
            let upload = content.append(&session.repository, upload, body.into_data_stream(), len).await?;
            upload_response(StatusCode::ACCEPTED, &session.repository, &*upload)
        }
        Op::FinishUpload { session, digest } => {
            let mut upload = content.resume_upload(&session).await?;
            let len = in_order(headers, &session.repository, &*upload)?;
            // Nothing has been hashed or written yet.
            if upload.len() == 0 {
                upload.announce(&digest);
            }
            let upload = content.fitting(&session.repository, Some(&digest), upload, announced(headers)).await?;
            let upload =
                content.receive(&session.repository, Some(&digest), upload, body.into_data_stream(), len).await?;
            content.finish_upload(&session.repository, upload, digest.clone()).await?;
            created(format!("/v2/{}/blobs/{digest}", session.repository), &digest)
        }
        Op::CancelUpload(session) => {
            content.cancel_upload(&session).await?;
            Ok(StatusCode::NO_CONTENT.into_response())
        }
        Op::DescribeRepositories(search) => described(&content.describe_repositories(&search).await?),
        Op::DescribeTags { repository, selection } => described(&content.describe_tags(&repository, &selection).await?),
        Op::DescribeUsage { repository } => {
            content.must_exist(&repository).await?;
            described(&UsageList { quotas: content.quota_usage(&repository) })
        }
        Op::ListHolders { repository, digest, page } => described(&content.holders(&repository, &digest, &page).await?),
        Op::ListReferrers { repository, subject, artifact_type, last } => {
            let (manifests, next) =
                content.referrers(&repository, &subject, artifact_type.as_deref(), last.as_deref()).await?;
            // Ready to serve, as they were stored.
            let mut index = br#"{"schemaVersion":2,"mediaType":""#.to_vec();
            index.extend_from_slice(MediaType::OciIndex.as_str().as_bytes());
            index.extend_from_slice(br#"","manifests":["#);
            index.extend_from_slice(&manifests.join(&b','));
            index.extend_from_slice(b"]}");
            let mut response = json_response(MediaType::OciIndex.as_str(), index);
            if next.is_some() {
                let next = Op::ListReferrers { repository, subject, artifact_type: artifact_type.clone(), last: next };
                response.headers_mut().insert(LINK, value(&format!("<{}>; rel=\"next\"", next.target()))?);
            }
            if artifact_type.is_some() {
                response.headers_mut().insert(OCI_FILTERS_APPLIED, HeaderValue::from_static("artifactType"));
            }
            Ok(response)
        }
    }
}

fn described(list: &impl serde::Serialize) -> Result<Response, Error> {
    let text = serde_json::to_vec(list).map_err(|error| unreadable(&error.into()))?;
    Ok(json_response("application/json", text))
}

/// Who the proxy says pushes; nobody, if it is no name as it writes them.
fn user(headers: &HeaderMap) -> &str {
    let user = headers.get(USER).and_then(|user| user.to_str().ok()).unwrap_or_default();
    let is_one = user.len() <= MAX_USER_BYTES && user.bytes().all(|byte| byte.is_ascii_graphic());
    if is_one { user } else { "" }
}

async fn pull_blob(
    content: &Content,
    headers: &HeaderMap,
    repository: &Repository,
    digest: &Digest,
    place: Place,
) -> Result<Response, Error> {
    // Not the proxy itself, which reads it for a page.
    if !headers.contains_key(UNCOUNTED)
        && !matches_etag(headers, digest)
        && let Some(address) = content.blob_address(repository, digest).await?
    {
        return redirect(digest, &address);
    }
    let (mut response, part) = blob_part(content, headers, repository, digest).await?;
    if let Some((blob, range)) = part {
        *response.body_mut() = body_of(blob, range, place);
    }
    Ok(response)
}

/// A part of something that is stored.
type Part = (Box<dyn Blob>, Range<u64>);

/// end-3: the answer, and what is its body.
async fn manifest_part(
    content: &Content,
    headers: &HeaderMap,
    repository: &Repository,
    reference: &Reference,
) -> Result<(Response, Option<Part>), Error> {
    let stored = content.find_manifest(repository, reference).await?;
    let blob = content.manifest(repository, &stored).await?;
    let len = blob.len();
    let response = manifest_response(headers, reference, &stored, len)?;
    if response.status() != StatusCode::OK {
        return Ok((response, None));
    }
    if !headers.contains_key(UNCOUNTED) {
        content.pulled(repository, &stored.digest);
    }
    Ok((response, Some((blob, 0..len))))
}

/// end-2, with `Range` (RFC 9110, section 14): the answer, and the part of a blob that is its body.
async fn blob_part(
    content: &Content,
    headers: &HeaderMap,
    repository: &Repository,
    digest: &Digest,
) -> Result<(Response, Option<Part>), Error> {
    let blob = content.blob(repository, digest).await?;
    let whole = blob.len();
    let mut response = blob_headers(digest, whole)?;
    if matches_etag(headers, digest) {
        return Ok((not_modified(response), None));
    }
    let requested = headers.get(RANGE).and_then(|value| value.to_str().ok()).and_then(|range| {
        // A range that can't be read, or several of them, may be answered with the whole (section 14.2).
        ByteRange::parse(range, whole)
    });
    let range = match requested {
        None => 0..whole,
        Some(ByteRange::Unsatisfiable) => {
            let message = format!("the blob has {whole} bytes");
            let error = Error::new(StatusCode::RANGE_NOT_SATISFIABLE, ErrorCode::SizeInvalid, message);
            let mut response = error_response(&error);
            response.headers_mut().insert(CONTENT_RANGE, value(&format!("bytes */{whole}"))?);
            return Ok((response, None));
        }
        Some(ByteRange::Part { first, last }) => {
            *response.status_mut() = StatusCode::PARTIAL_CONTENT;
            let range = format!("bytes {first}-{last}/{whole}");
            response.headers_mut().insert(CONTENT_RANGE, value(&range)?);
            response.headers_mut().insert(CONTENT_LENGTH, HeaderValue::from(last - first + 1));
            first..last + 1
        }
    };
    tracing::debug!(%repository, %digest, ?range, "blob");
    Ok((response, Some((blob, range))))
}

/// A part of a blob as a body; its transfer ends with it.
fn body_of(blob: Box<dyn Blob>, range: Range<u64>, place: Place) -> Body {
    let pieces = blob.read(range).map(move |piece| {
        let _until_the_end = &place;
        // All that the client sees is that it ends too early.
        piece.inspect_err(|error| tracing::error!(%error, "a blob can't be read to its end"))
    });
    Body::from_stream(pieces)
}

/// A small part, whole.
async fn whole(blob: Box<dyn Blob>, range: Range<u64>) -> Result<Bytes, Error> {
    let mut pieces: Vec<Bytes> = blob.read(range).try_collect().await.map_err(|e| unreadable(&e))?;
    // As a rule there is one.
    Ok(if pieces.len() == 1 { pieces.remove(0) } else { pieces.concat().into() })
}

/// end-8: the tags piece by piece, from a list that all readers share.
fn tags_response(repository: &Repository, mut page: TagPage) -> Response {
    let next = page.next.take();
    let head = format!(r#"{{"name":"{repository}","tags":["#);
    let pieces = stream::unfold((page, Some(head)), async |(mut page, head)| {
        let is_first = head.is_some();
        let mut piece = head.unwrap_or_default();
        let tags = page.take(TAGS_PER_PIECE);
        if tags.is_empty() && !is_first {
            return None;
        }
        for (i, tag) in tags.iter().enumerate() {
            // A tag has no character that JSON would escape (distribution specification, "Pulling manifests").
            piece.push_str(if is_first && i == 0 { "\"" } else { ",\"" });
            piece.push_str(tag);
            piece.push('"');
        }
        Some((Ok::<_, io::Error>(Bytes::from(piece)), (page, None)))
    });
    let end = stream::once(async { Ok(Bytes::from_static(b"]}")) });
    let mut response = Response::new(Body::from_stream(pieces.chain(end)));
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    link(&mut response, next, format!("/v2/{repository}/tags/list"));
    response
}
