//! The request that goes to the registry, and what comes back.
//!
//! The request line is written from the [`Operation`] that was authorized, and the headers come from an allow-list:
//! nothing that a client says about itself reaches the registry.

mod handover;

use berth_oci::{Operation, UploadId, encode_user};
use http::{
    HeaderMap, HeaderName, HeaderValue, StatusCode, Uri,
    header::{
        ACCEPT, ACCEPT_ENCODING, CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, EXPECT, IF_MATCH, IF_NONE_MATCH,
        IF_RANGE, LOCATION, RANGE, SERVER, SET_COOKIE, TRANSFER_ENCODING, WWW_AUTHENTICATE,
    },
};

pub use self::handover::Handover;
use crate::{policy::WriteCondition, registry::PUSHED_BY};

/// What the registry needs to know of a request, and nothing else.
const PASSED: [HeaderName; 11] = [
    ACCEPT,
    ACCEPT_ENCODING,
    CONTENT_LENGTH,
    CONTENT_RANGE,
    CONTENT_TYPE,
    EXPECT,
    IF_MATCH,
    IF_NONE_MATCH,
    IF_RANGE,
    RANGE,
    TRANSFER_ENCODING,
];

/// What the registry may not say to a client: we are the door.
pub const KEPT_BACK: [HeaderName; 4] = [SERVER, SET_COOKIE, WWW_AUTHENTICATE, PUSHED_BY];

/// Who pushes, for the registry to write down with the tag, percent-encoded.
const USER: HeaderName = HeaderName::from_static("berth-user");

/// The headers of the forwarded request.
pub fn request_headers(from: &HeaderMap, condition: WriteCondition) -> Vec<(HeaderName, HeaderValue)> {
    // Only of Accept may there be several; of the others the first is the one that the proxy itself went by.
    let passed = PASSED.iter().flat_map(|name| {
        let most = if *name == ACCEPT { usize::MAX } else { 1 };
        from.get_all(name).iter().take(most).map(|value| (name.clone(), value.clone()))
    });
    let star = HeaderValue::from_static("*");
    // Ours stands instead of the client's.
    let (ours, without) = match condition {
        WriteCondition::None => (None, None),
        WriteCondition::OnlyCreate => (Some((IF_NONE_MATCH, star)), Some(IF_NONE_MATCH)),
        WriteCondition::OnlyUpdate => (Some((IF_MATCH, star)), Some(IF_MATCH)),
    };
    passed.filter(|(name, _)| Some(name) != without.as_ref()).chain(ours).collect()
}

/// Who pushes a manifest, in a header of our own.
pub fn pusher(operation: &Operation, user: &str) -> Option<(HeaderName, HeaderValue)> {
    if !matches!(operation, Operation::PushManifest { .. }) || user.is_empty() {
        return None;
    }
    Some((USER, HeaderValue::from_str(&encode_user(user)).ok()?))
}

/// `Location` as clients can follow it: a registry may answer an absolute one with its own host, which they can't
/// reach. Redirects elsewhere stay as they are.
pub fn location(status: StatusCode, value: &HeaderValue) -> Option<HeaderValue> {
    let uri: Uri = value.to_str().ok()?.parse().ok()?;
    if status.is_redirection() || uri.authority().is_none() {
        return None;
    }
    HeaderValue::from_str(uri.path_and_query()?.as_str()).ok()
}

/// The upload that an answer has begun.
pub fn begun_upload(operation: &Operation, status: StatusCode, headers: &HeaderMap) -> Option<UploadId> {
    let begins = matches!(operation, Operation::StartUpload { .. } | Operation::MountBlob { .. });
    if !begins || status != StatusCode::ACCEPTED {
        return None;
    }
    let uri: Uri = headers.get(LOCATION)?.to_str().ok()?.parse().ok()?;
    uri.path().rsplit('/').next()?.parse().ok()
}

/// The upload that a request is about.
pub fn upload_of(operation: &Operation) -> Option<&UploadId> {
    match operation {
        Operation::UploadStatus(session)
        | Operation::UploadChunk(session)
        | Operation::CancelUpload(session)
        | Operation::FinishUpload { session, .. } => Some(&session.id),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_that_a_client_says_about_itself_is_passed() {
        let mut from = HeaderMap::new();
        for name in [
            "authorization",
            "cookie",
            "x-forwarded-for",
            "x-forwarded-user",
            "x_forwarded_email",
            "x-real-ip",
            "forwarded",
            "host",
            "connection",
            "x-http-method-override",
            "accept",
            "range",
        ] {
            from.insert(HeaderName::from_static(name), HeaderValue::from_static("x"));
        }
        let mut passed: Vec<_> = request_headers(&from, WriteCondition::None).into_iter().map(|(n, _)| n).collect();
        passed.sort_by_key(|name| name.to_string());
        assert_eq!(passed, [ACCEPT, RANGE]);
    }

    #[test]
    fn our_condition_stands_instead_of_the_client_s() {
        let mut from = HeaderMap::new();
        from.insert(IF_NONE_MATCH, HeaderValue::from_static("\"sha256:x\""));
        let headers = request_headers(&from, WriteCondition::OnlyCreate);
        assert_eq!(headers, [(IF_NONE_MATCH, HeaderValue::from_static("*"))]);
    }

    #[test]
    fn locations_are_made_relative_and_redirects_are_not() {
        let location = |status, text| location(status, &HeaderValue::from_static(text));
        let absolute = "http://127.0.0.1:5000/v2/a/blobs/uploads/x?_state=y";
        let relative = HeaderValue::from_static("/v2/a/blobs/uploads/x?_state=y");
        assert_eq!(location(StatusCode::ACCEPTED, absolute), Some(relative));
        assert_eq!(location(StatusCode::ACCEPTED, "/v2/a"), None);
        assert_eq!(location(StatusCode::TEMPORARY_REDIRECT, "https://bucket.example/x"), None);
    }
}
