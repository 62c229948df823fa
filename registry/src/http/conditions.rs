//! What a request's headers ask for: a part of a blob, a place in an upload, a condition.

use berth_oci::{Digest, Error, ErrorCode, Repository};
use http::{
    HeaderMap, HeaderValue, StatusCode,
    header::{CONTENT_LENGTH, CONTENT_RANGE, IF_MATCH, IF_NONE_MATCH},
};

use crate::storage::{Condition, Upload};

#[derive(Debug, PartialEq, Eq)]
pub enum ByteRange {
    Part { first: u64, last: u64 },
    Unsatisfiable,
}

impl ByteRange {
    /// Reads `bytes=a-b`, `bytes=a-` or `bytes=-n` for a representation of `len` bytes.
    pub fn parse(text: &str, len: u64) -> Option<Self> {
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
pub fn in_order(headers: &HeaderMap, repository: &Repository, upload: &dyn Upload) -> Result<Option<u64>, Error> {
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
pub fn condition(headers: &HeaderMap) -> Result<Condition, Error> {
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

/// Whether `If-None-Match` names this digest (RFC 9110, section 13.1.2).
pub fn matches_etag(headers: &HeaderMap, digest: &Digest) -> bool {
    let tag = format!("\"{digest}\"");
    headers
        .get_all(IF_NONE_MATCH)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .any(|list| list.split(',').map(|one| one.trim().trim_start_matches("W/")).any(|one| one == tag || one == "*"))
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
