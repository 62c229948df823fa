//! The answers of the distribution API, each with its headers.

use std::{
    io,
    time::{Duration, UNIX_EPOCH},
};

use axum::{
    body::Body,
    response::{IntoResponse, Response},
};
use berth_oci::{Digest, Error, ErrorCode, Page, Reference, Repository};
use http::{
    HeaderMap, HeaderName, HeaderValue, StatusCode,
    header::{
        ACCEPT_RANGES, CACHE_CONTROL, CONTENT_LENGTH, CONTENT_TYPE, ETAG, LAST_MODIFIED, LINK, LOCATION, RANGE,
        RETRY_AFTER,
    },
};

use super::conditions::matches_etag;
use crate::{content::Stored, storage::Upload};

const CONTENT_DIGEST: HeaderName = HeaderName::from_static("docker-content-digest");
/// Who has set the tag, for the proxy's pages: percent-encoded, as the proxy has said it.
const PUSHED_BY: HeaderName = HeaderName::from_static("berth-pushed-by");
const UPLOAD_UUID: HeaderName = HeaderName::from_static("docker-upload-uuid");

/// How long a client should wait before it asks again, in seconds.
const RETRY_AFTER_SECONDS: u32 = 5;

pub fn manifest_response(
    headers: &HeaderMap,
    reference: &Reference,
    stored: &Stored,
    len: u64,
) -> Result<Response, Error> {
    let mut response = Response::new(Body::empty());
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
    if let Some(pushed) = &stored.pushed {
        let at = httpdate::fmt_http_date(UNIX_EPOCH + Duration::from_secs(pushed.at));
        out.insert(LAST_MODIFIED, value(&at)?);
        if !pushed.by.is_empty() {
            out.insert(PUSHED_BY, value(&pushed.by)?);
        }
    }
    if matches_etag(headers, &stored.digest) { Ok(not_modified(response)) } else { Ok(response) }
}

/// What a digest names never changes; whether one may see it does, so no shared cache may keep it.
pub const FOR_EVER: HeaderValue = HeaderValue::from_static("private, max-age=31536000, immutable");

pub fn blob_headers(digest: &Digest, len: u64) -> Result<Response, Error> {
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

/// Sends a client to where the blob is: the same request, and so the same range of it (RFC 9110, section 15.4.8). The address is
/// good for a short time.
pub fn redirect(digest: &Digest, address: &str) -> Result<Response, Error> {
    let mut response = StatusCode::TEMPORARY_REDIRECT.into_response();
    let out = response.headers_mut();
    out.insert(LOCATION, value(&address)?);
    out.insert(CONTENT_DIGEST, value(digest)?);
    out.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    Ok(response)
}

pub fn not_modified(mut response: Response) -> Response {
    *response.status_mut() = StatusCode::NOT_MODIFIED;
    *response.body_mut() = Body::empty();
    response.headers_mut().remove(CONTENT_LENGTH);
    response.headers_mut().remove(CONTENT_TYPE);
    response
}

pub fn upload_response(status: StatusCode, repository: &Repository, upload: &dyn Upload) -> Result<Response, Error> {
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

pub fn created(location: String, digest: &Digest) -> Result<Response, Error> {
    let mut response = StatusCode::CREATED.into_response();
    response.headers_mut().insert(LOCATION, value(&location)?);
    response.headers_mut().insert(CONTENT_DIGEST, value(digest)?);
    Ok(response)
}

pub fn list_response(body: serde_json::Value, next: Option<Page>, path: String) -> Response {
    let mut response = json_response("application/json", body.to_string());
    link(&mut response, next, path);
    response
}

/// Where a list goes on (RFC 8288).
pub fn link(response: &mut Response, next: Option<Page>, path: String) {
    if let Some(next) = next
        && let Ok(link) = HeaderValue::from_str(&format!("<{}>; rel=\"next\"", next.append_to(path)))
    {
        response.headers_mut().insert(LINK, link);
    }
}

pub fn json_response(content_type: &'static str, body: impl Into<Body>) -> Response {
    ([(CONTENT_TYPE, HeaderValue::from_static(content_type))], body.into()).into_response()
}

pub fn error_response(error: &Error) -> Response {
    let mut response = json_response("application/json", error.body());
    *response.status_mut() = error.status;
    if error.status == StatusCode::SERVICE_UNAVAILABLE {
        response.headers_mut().insert(RETRY_AFTER, HeaderValue::from(RETRY_AFTER_SECONDS));
    }
    response
}

/// A header's value. Everything that is written into one is made of parsed values.
pub fn value(text: &impl ToString) -> Result<HeaderValue, Error> {
    HeaderValue::from_str(&text.to_string()).map_err(|e| unreadable(&io::Error::other(e)))
}

pub fn unreadable(error: &io::Error) -> Error {
    tracing::error!(%error, "a stored file can't be read");
    Error::new(StatusCode::INTERNAL_SERVER_ERROR, ErrorCode::Unknown, "the registry's storage failed; its log says how")
}
