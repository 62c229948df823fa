//! The distribution API over HTTP: reads a request as an [`Operation`], and writes what [`Content`] says of it.
//!
//! Endpoint numbers (`end-1` …) are the distribution specification's.

use std::{
    future::Future,
    io,
    sync::Arc,
    time::{Duration, Instant},
};

use axum::{
    Router,
    body::Body,
    extract::{Request, State},
    response::{IntoResponse, Response},
    serve::ListenerExt,
};
use berth_config::Upstream;
use berth_observe::Traces;
use berth_oci::{
    Digest, Error, ErrorCode, MANIFEST_LIMIT, MediaType, Operation, Page, Reference, Repository, RouteError,
};
use bytes::Bytes;
use http::{
    HeaderMap, HeaderName, HeaderValue, StatusCode,
    header::{
        ACCEPT_RANGES, CACHE_CONTROL, CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, ETAG, IF_MATCH, IF_NONE_MATCH, LINK,
        LOCATION, RANGE,
    },
};
use http_body_util::{BodyExt, Empty, LengthLimitError, Limited};
use hyper_util::rt::TokioIo;
use serde_json::json;
use tokio::{
    net::{TcpListener, TcpStream, UnixListener, UnixStream},
    signal::unix::{SignalKind, signal},
};
use tracing::Instrument;

use crate::{
    content::{Content, List, Stored},
    metrics::Metrics,
    status,
    storage::{Condition, Upload},
};

const CONTENT_DIGEST: HeaderName = HeaderName::from_static("docker-content-digest");
const API_VERSION: HeaderName = HeaderName::from_static("docker-distribution-api-version");
/// The proxy's name for a request.
const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
const UPLOAD_UUID: HeaderName = HeaderName::from_static("docker-upload-uuid");
const OCI_SUBJECT: HeaderName = HeaderName::from_static("oci-subject");
const OCI_TAG: HeaderName = HeaderName::from_static("oci-tag");
/// Tells the proxy that the conditions of a manifest push are decided here, in one step with the write.
const CONDITIONS: HeaderName = HeaderName::from_static("berth-push-conditions");
const OCI_FILTERS_APPLIED: HeaderName = HeaderName::from_static("oci-filters-applied");

/// How long requests may go on after the registry was told to stop.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(8);

/// What all requests share.
pub struct Serving {
    /// The repositories.
    pub content: Arc<Content>,
    /// What is counted.
    pub metrics: Metrics,
    /// Where spans go.
    pub traces: Traces,
}

/// Serves until SIGTERM or SIGINT.
///
/// # Errors
/// A sentence, if it can't listen.
pub async fn serve(upstream: &Upstream, serving: Arc<Serving>) -> Result<(), String> {
    let router = Router::new().fallback(answer).with_state(serving);
    let cannot = |error: io::Error| format!("sidecar.upstream: can't listen on {upstream} ({error})");
    let stopping = stop_signal()?;
    match upstream {
        Upstream::Tcp { .. } => {
            let listener = TcpListener::bind(upstream.authority()).await.map_err(cannot)?;
            let listener = listener.tap_io(|stream| {
                let _ = stream.set_nodelay(true);
            });
            tracing::info!("listening on {upstream}");
            finish(axum::serve(listener, router).with_graceful_shutdown(stopping.clone()).into_future(), stopping).await
        }
        Upstream::Unix(path) => {
            // A socket that a killed process left behind would keep this one from listening.
            match std::fs::remove_file(path) {
                Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(cannot(e)),
                _ => {}
            }
            let listener = UnixListener::bind(path).map_err(cannot)?;
            tracing::info!("listening on {upstream}");
            finish(axum::serve(listener, router).with_graceful_shutdown(stopping.clone()).into_future(), stopping).await
        }
    }
}

/// Serves until told to stop, and then lets the last requests end, for a while.
async fn finish(
    serving: impl Future<Output = io::Result<()>>,
    stopping: impl Future<Output = ()>,
) -> Result<(), String> {
    let overdue = async {
        stopping.await;
        tokio::time::sleep(DRAIN_TIMEOUT).await;
    };
    tokio::select! {
        outcome = serving => outcome.map_err(|e| e.to_string()),
        () = overdue => {
            tracing::warn!("some requests were cut off");
            Ok(())
        }
    }
}

/// Ready when the process is told to stop.
fn stop_signal() -> Result<impl Future<Output = ()> + Clone, String> {
    let unable = |e: io::Error| format!("can't watch for signals: {e}");
    let mut terminate = signal(SignalKind::terminate()).map_err(unable)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(unable)?;
    Ok(futures_util::FutureExt::shared(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        tracing::info!("stopping");
    }))
}

/// Asks the registry at `upstream` whether it is one.
///
/// # Errors
/// A sentence that says what is wrong.
pub async fn health(upstream: &Upstream) -> Result<(), String> {
    let unwell = |e: &dyn std::fmt::Display| format!("the registry at {upstream} does not answer: {e}");
    let asked = async {
        match upstream {
            Upstream::Tcp { .. } => {
                let stream = TcpStream::connect(upstream.authority()).await.map_err(|e| unwell(&e))?;
                ping(TokioIo::new(stream)).await.map_err(|e| unwell(&e))
            }
            Upstream::Unix(path) => {
                let stream = UnixStream::connect(path).await.map_err(|e| unwell(&e))?;
                ping(TokioIo::new(stream)).await.map_err(|e| unwell(&e))
            }
        }
    };
    let status = tokio::time::timeout(Duration::from_secs(5), asked).await.map_err(|e| unwell(&e))??;
    if status == StatusCode::OK { Ok(()) } else { Err(unwell(&status)) }
}

async fn ping<S>(stream: S) -> Result<StatusCode, hyper::Error>
where
    S: hyper::rt::Read + hyper::rt::Write + Unpin + Send + 'static,
{
    let (mut sender, connection) = hyper::client::conn::http1::handshake(stream).await?;
    tokio::spawn(connection);
    let request = http::Request::get("/v2/").header("host", "localhost").body(Empty::<Bytes>::new());
    let Ok(request) = request else { return Ok(StatusCode::INTERNAL_SERVER_ERROR) };
    Ok(sender.send_request(request).await?.status())
}

async fn answer(State(serving): State<Arc<Serving>>, request: Request) -> Response {
    match request.uri().path() {
        "/metrics" => return status::metrics(&serving).await,
        "/readyz" => return status::ready(&serving).await,
        _ => {}
    }
    let began = Instant::now();
    let trace = serving.traces.begin(request.headers());
    // Whatever is logged on the way says which request it is about.
    let id = request.headers().get(REQUEST_ID).and_then(|id| id.to_str().ok()).filter(|id| is_request_id(id));
    let span = tracing::error_span!("request", id, method = %request.method(), path = request.uri().path());
    let parsed = Operation::parse(request.method(), request.uri());
    let name = parsed.as_ref().map_or("unknown", Operation::name);
    let outcome = answer_operation(&serving, parsed, request).instrument(span.clone()).await;
    let mut response = outcome.unwrap_or_else(|error| error_response(&error));
    response.headers_mut().insert(API_VERSION, HeaderValue::from_static("registry/2.0"));
    let (status, took) = (response.status().as_u16(), began.elapsed());
    serving.metrics.request(name, status, took);
    let us = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
    span.in_scope(|| tracing::debug!(operation = name, status, us, "answered"));
    if trace.is_recording() {
        trace.named(name);
        trace.end(status);
    }
    response
}

async fn answer_operation(
    serving: &Arc<Serving>,
    parsed: Result<Operation, RouteError>,
    request: Request,
) -> Result<Response, Error> {
    let operation = parsed?;
    if request.method().is_safe() {
        return perform(&serving.content, operation, request).await;
    }
    // A client that goes away takes its answer along, and not the half of a write: that goes on to its end, under its
    // locks.
    let content = Arc::clone(&serving.content);
    let writing = async move { perform(&content, operation, request).await };
    let writing = tokio::spawn(writing.in_current_span());
    writing.await.unwrap_or_else(|panic| Err(unreadable(&io::Error::other(panic))))
}

/// What a proxy may call a request: it stands in every line of the log.
fn is_request_id(id: &str) -> bool {
    (1..=64).contains(&id.len()) && id.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
}

async fn perform(content: &Content, operation: Operation, request: Request) -> Result<Response, Error> {
    use Operation as Op;
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
            let List { entries, next } = content.tags(&repository, &page).await?;
            let body = json!({"name": repository.as_str(), "tags": entries});
            Ok(list_response(body, next, format!("/v2/{repository}/tags/list")))
        }
        Op::HeadManifest { repository, reference } => {
            let stored = content.find_manifest(&repository, &reference).await?;
            let len = content.manifest_len(&stored).await?;
            manifest_response(headers, &reference, &stored, len, Body::empty())
        }
        Op::PullManifest { repository, reference } => {
            let stored = content.find_manifest(&repository, &reference).await?;
            let bytes = content.manifest_bytes(&stored).await?;
            manifest_response(headers, &reference, &stored, bytes.len() as u64, Body::from(bytes))
        }
        Op::PushManifest { repository, reference, tags } => {
            let condition = condition(headers)?;
            let content_type = headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok());
            let bytes = manifest_body(body).await?;
            let pushed = content.push_manifest(&repository, &reference, &tags, content_type, bytes, condition).await?;
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
        Op::PullBlob { repository, digest } => pull_blob(content, headers, &repository, &digest).await,
        Op::DeleteBlob { repository, digest } => {
            content.delete_blob(&repository, &digest).await?;
            Ok(StatusCode::ACCEPTED.into_response())
        }
        Op::StartUpload { repository, algorithm } => {
            let upload = content.start_upload(&repository, algorithm).await?;
            upload_response(StatusCode::ACCEPTED, &repository, &*upload)
        }
        Op::PushBlob { repository, digest } => {
            content.push_blob(&repository, &digest, body.into_data_stream()).await?;
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
            let upload = content.append(upload, body.into_data_stream(), len).await?;
            upload_response(StatusCode::ACCEPTED, &session.repository, &*upload)
        }
        Op::FinishUpload { session, digest } => {
            let mut upload = content.resume_upload(&session).await?;
            let len = in_order(headers, &session.repository, &*upload)?;
            // Nothing has been hashed yet, so it isn't too late to learn the algorithm.
            if upload.len() == 0 {
                upload.restart(digest.algorithm());
            }
            let upload = content.receive(upload, body.into_data_stream(), len).await?;
            content.finish_upload(&session.repository, upload, digest.clone()).await?;
            created(format!("/v2/{}/blobs/{digest}", session.repository), &digest)
        }
        Op::CancelUpload(session) => {
            content.cancel_upload(&session).await?;
            Ok(StatusCode::NO_CONTENT.into_response())
        }
        Op::ListReferrers { repository, subject, artifact_type, last } => {
            let (manifests, next) =
                content.referrers(&repository, &subject, artifact_type.as_deref(), last.as_deref()).await?;
            let index = json!({
                "schemaVersion": 2,
                "mediaType": MediaType::OciIndex.as_str(),
                "manifests": manifests,
            });
            let mut response = json_response(MediaType::OciIndex.as_str(), index.to_string());
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

/// end-2, with `Range` (RFC 9110, section 14).
async fn pull_blob(
    content: &Content,
    headers: &HeaderMap,
    repository: &Repository,
    digest: &Digest,
) -> Result<Response, Error> {
    let blob = content.blob(repository, digest).await?;
    let whole = blob.len();
    let mut response = blob_headers(digest, whole)?;
    if matches_etag(headers, digest) {
        return Ok(not_modified(response));
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
            return Ok(response);
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
    *response.body_mut() = Body::from_stream(blob.read(range));
    Ok(response)
}

#[derive(Debug, PartialEq, Eq)]
enum ByteRange {
    Part { first: u64, last: u64 },
    Unsatisfiable,
}

impl ByteRange {
    /// Reads `bytes=a-b`, `bytes=a-` or `bytes=-n` for a representation of `len` bytes.
    fn parse(text: &str, len: u64) -> Option<Self> {
        let (first, last) = text.strip_prefix("bytes=")?.trim().split_once('-')?;
        let (first, last) = match (first.parse::<u64>(), last.parse::<u64>()) {
            (Ok(first), Ok(last)) if first <= last => (first, last),
            (Ok(first), Err(_)) if last.is_empty() => (first, u64::MAX),
            (Err(_), Ok(0)) if first.is_empty() => return Some(Self::Unsatisfiable),
            (Err(_), Ok(suffix)) if first.is_empty() => (len.saturating_sub(suffix), u64::MAX),
            _ => return None,
        };
        if first >= len { Some(Self::Unsatisfiable) } else { Some(Self::Part { first, last: last.min(len - 1) }) }
    }
}

/// `Content-Range: a-b` of a chunk must begin where the upload ends (distribution specification, "Pushing a blob in
/// chunks"), and says how long the chunk is. Without the header the body is appended, whatever its length.
fn in_order(headers: &HeaderMap, repository: &Repository, upload: &dyn Upload) -> Result<Option<u64>, Error> {
    let Some(range) = headers.get(CONTENT_RANGE) else { return Ok(None) };
    let parsed = range.to_str().ok().and_then(|range| {
        let (first, last) = range.strip_prefix("bytes ").unwrap_or(range).split_once('-')?;
        let (first, last): (u64, u64) = (first.parse().ok()?, last.parse().ok()?);
        Some((first, last.checked_sub(first)?.checked_add(1)?))
    });
    let Some((first, len)) = parsed else {
        let message = "Content-Range must be <first>-<last>, both inclusive";
        return Err(Error::new(StatusCode::BAD_REQUEST, ErrorCode::BlobUploadInvalid, message));
    };
    if first != upload.len() {
        let message = format!("the next byte of this upload to {repository} is {}, not {first}", upload.len());
        return Err(Error::new(StatusCode::RANGE_NOT_SATISFIABLE, ErrorCode::BlobUploadInvalid, message));
    }
    let announced = headers.get(CONTENT_LENGTH).and_then(|v| v.to_str().ok()).and_then(|v| v.parse::<u64>().ok());
    if announced.is_some_and(|announced| announced != len) {
        let message = "Content-Range and Content-Length disagree";
        return Err(Error::new(StatusCode::BAD_REQUEST, ErrorCode::SizeInvalid, message));
    }
    Ok(Some(len))
}

/// `If-None-Match: *` and `If-Match: *` of a manifest push; conditions on a certain digest aren't supported.
fn condition(headers: &HeaderMap) -> Result<Condition, Error> {
    let star = |name| headers.get(name).map(|value: &HeaderValue| value.as_bytes() == b"*");
    match (star(IF_NONE_MATCH), star(IF_MATCH)) {
        (None, None) => Ok(Condition::None),
        (Some(true), None) => Ok(Condition::Absent),
        (None, Some(true)) => Ok(Condition::Present),
        _ => {
            let message = "a push takes If-None-Match: * or If-Match: *, and nothing else";
            Err(Error::new(StatusCode::BAD_REQUEST, ErrorCode::Unsupported, message))
        }
    }
}

async fn manifest_body(body: Body) -> Result<Vec<u8>, Error> {
    match Limited::new(body, MANIFEST_LIMIT).collect().await {
        Ok(collected) => Ok(collected.to_bytes().into()),
        Err(error) if error.is::<LengthLimitError>() => {
            let message = format!("a manifest has at most {MANIFEST_LIMIT} bytes");
            Err(Error::new(StatusCode::PAYLOAD_TOO_LARGE, ErrorCode::SizeInvalid, message))
        }
        Err(_) => Err(Error::new(StatusCode::BAD_REQUEST, ErrorCode::ManifestInvalid, "the body ended too early")),
    }
}

fn manifest_response(
    headers: &HeaderMap,
    reference: &Reference,
    stored: &Stored,
    len: u64,
    body: Body,
) -> Result<Response, Error> {
    let mut response = Response::new(body);
    let out = response.headers_mut();
    out.insert(CONTENT_TYPE, value(&stored.media_type)?);
    out.insert(CONTENT_LENGTH, HeaderValue::from(len));
    out.insert(CONTENT_DIGEST, value(&stored.digest)?);
    out.insert(ETAG, value(&format!("\"{}\"", stored.digest))?);
    out.insert(
        CACHE_CONTROL,
        match reference {
            Reference::Digest(_) => FOR_EVER,
            Reference::Tag(_) => HeaderValue::from_static("private, no-cache"),
        },
    );
    if matches_etag(headers, &stored.digest) { Ok(not_modified(response)) } else { Ok(response) }
}

/// What a digest names never changes; whether one may see it does, so no shared cache may keep it.
const FOR_EVER: HeaderValue = HeaderValue::from_static("private, max-age=31536000, immutable");

fn blob_headers(digest: &Digest, len: u64) -> Result<Response, Error> {
    let mut response = Response::new(Body::empty());
    let out = response.headers_mut();
    out.insert(CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"));
    out.insert(CONTENT_LENGTH, HeaderValue::from(len));
    out.insert(CONTENT_DIGEST, value(digest)?);
    out.insert(ETAG, value(&format!("\"{digest}\""))?);
    out.insert(ACCEPT_RANGES, HeaderValue::from_static("bytes"));
    out.insert(CACHE_CONTROL, FOR_EVER);
    Ok(response)
}

/// Whether `If-None-Match` names this digest (RFC 9110, section 13.1.2).
fn matches_etag(headers: &HeaderMap, digest: &Digest) -> bool {
    let tag = format!("\"{digest}\"");
    headers
        .get_all(IF_NONE_MATCH)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .any(|list| list.split(',').map(|one| one.trim().trim_start_matches("W/")).any(|one| one == tag || one == "*"))
}

fn not_modified(mut response: Response) -> Response {
    *response.status_mut() = StatusCode::NOT_MODIFIED;
    *response.body_mut() = Body::empty();
    response.headers_mut().remove(CONTENT_LENGTH);
    response.headers_mut().remove(CONTENT_TYPE);
    response
}

fn upload_response(status: StatusCode, repository: &Repository, upload: &dyn Upload) -> Result<Response, Error> {
    let id = upload.id();
    let mut response = status.into_response();
    let out = response.headers_mut();
    out.insert(LOCATION, value(&format!("/v2/{repository}/blobs/uploads/{id}"))?);
    // An empty upload has no last byte; clients take 0-0 for that, as CNCF Distribution answers.
    out.insert(RANGE, value(&format!("0-{}", upload.len().saturating_sub(1)))?);
    out.insert(UPLOAD_UUID, value(id)?);
    out.insert(CONTENT_LENGTH, HeaderValue::from(0));
    if status == StatusCode::NO_CONTENT {
        out.remove(CONTENT_LENGTH);
    }
    Ok(response)
}

fn created(location: String, digest: &Digest) -> Result<Response, Error> {
    let mut response = StatusCode::CREATED.into_response();
    response.headers_mut().insert(LOCATION, value(&location)?);
    response.headers_mut().insert(CONTENT_DIGEST, value(digest)?);
    Ok(response)
}

fn list_response(body: serde_json::Value, next: Option<Page>, path: String) -> Response {
    let mut response = json_response("application/json", body.to_string());
    if let Some(next) = next
        && let Ok(link) = HeaderValue::from_str(&format!("<{}>; rel=\"next\"", next.append_to(path)))
    {
        response.headers_mut().insert(LINK, link);
    }
    response
}

fn json_response(content_type: &'static str, body: String) -> Response {
    ([(CONTENT_TYPE, HeaderValue::from_static(content_type))], body).into_response()
}

fn error_response(error: &Error) -> Response {
    let mut response = json_response("application/json", error.body());
    *response.status_mut() = error.status;
    response
}

/// A header's value. Everything that is written into one is made of parsed values.
fn value(text: &impl ToString) -> Result<HeaderValue, Error> {
    HeaderValue::from_str(&text.to_string()).map_err(|e| unreadable(&io::Error::other(e)))
}

fn unreadable(error: &io::Error) -> Error {
    tracing::error!(%error, "a stored file can't be read");
    Error::new(StatusCode::INTERNAL_SERVER_ERROR, ErrorCode::Unknown, "the registry's storage failed; its log says how")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_read_as_rfc_9110_says() {
        let part = |first, last| Some(ByteRange::Part { first, last });
        for (text, expected) in [
            ("bytes=0-4", part(0, 4)),
            ("bytes=5-", part(5, 9)),
            ("bytes=-3", part(7, 9)),
            ("bytes=-30", part(0, 9)),
            ("bytes=0-99", part(0, 9)),
            ("bytes=10-", Some(ByteRange::Unsatisfiable)),
            ("bytes=-0", Some(ByteRange::Unsatisfiable)),
            ("bytes=4-2", None),
            ("bytes=0-1,3-4", None),
            ("bytes=a-b", None),
            ("items=0-1", None),
        ] {
            assert_eq!(ByteRange::parse(text, 10), expected, "{text}");
        }
        assert_eq!(ByteRange::parse("bytes=0-0", 0), Some(ByteRange::Unsatisfiable));
    }
}
