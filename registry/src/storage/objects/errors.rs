//! What a service says when it doesn't do what it was asked.

use std::{error, io, time::Duration};

use object_store::Error;

/// How long the bucket may take for one thing in all, retries included; only what copies or joins large objects may take
/// longer.
pub const REQUEST_TIMEOUT: Duration = Duration::from_secs(30);

/// The codes by which services say that there is no room (S3's own, `MinIO`'s, Ceph's); HTTP has 507.
const FULL: [&str; 5] =
    ["status code: 507", "QuotaExceeded", "StorageFull", "InsufficientStorage", "EntityTooLargeForQuota"];

/// The error as the registry knows it: no room, no right, or no answer.
pub fn failed(error: Error) -> io::Error {
    let text = error.to_string() + &sources(&error);
    let kind = match &error {
        _ if FULL.iter().any(|code| text.contains(code)) => io::ErrorKind::StorageFull,
        Error::NotFound { .. } => io::ErrorKind::NotFound,
        Error::PermissionDenied { .. } | Error::Unauthenticated { .. } => io::ErrorKind::PermissionDenied,
        Error::InvalidPath { .. } | Error::NotSupported { .. } | Error::NotImplemented { .. } => io::ErrorKind::Other,
        // Whatever it is, it was tried again and again.
        _ => io::ErrorKind::NotConnected,
    };
    io::Error::new(kind, error)
}

fn sources(error: &dyn error::Error) -> String {
    let mut text = String::new();
    let mut source = error.source();
    while let Some(error) = source {
        text = format!("{text}: {error}");
        source = error.source();
    }
    text
}

/// The slowest that a bucket may take bytes, a second.
const MIN_BYTES_PER_SECOND: usize = 100_000;

/// How long the bucket may take for so many bytes.
pub fn time_for(bytes: usize) -> Duration {
    REQUEST_TIMEOUT + Duration::from_secs((bytes / MIN_BYTES_PER_SECOND) as u64)
}

/// What a service does, within [`REQUEST_TIMEOUT`].
pub async fn in_time<T>(request: impl Future<Output = object_store::Result<T>>) -> object_store::Result<T> {
    within(REQUEST_TIMEOUT, request).await
}

/// The same within another time.
pub async fn within<T>(
    limit: Duration,
    request: impl Future<Output = object_store::Result<T>>,
) -> object_store::Result<T> {
    tokio::time::timeout(limit, request).await.unwrap_or_else(|_| {
        let source = format!("the bucket has not answered for {} seconds", limit.as_secs()).into();
        Err(Error::Generic { store: "bucket", source })
    })
}

/// Nothing instead of an error when there is no such object.
pub fn found<T>(result: object_store::Result<T>) -> io::Result<Option<T>> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(Error::NotFound { .. }) => Ok(None),
        Err(error) => Err(failed(error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_room_is_told_from_no_answer() {
        for (text, kind) in [
            ("status code: 507 Insufficient Storage", io::ErrorKind::StorageFull),
            ("<Code>XAdminBucketQuotaExceeded</Code>", io::ErrorKind::StorageFull),
            ("connection refused", io::ErrorKind::NotConnected),
            ("status code: 500", io::ErrorKind::NotConnected),
        ] {
            let error = Error::Generic { store: "S3", source: text.into() };
            assert_eq!(failed(error).kind(), kind, "{text}");
        }
    }
}
