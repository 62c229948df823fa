//! Error bodies: `{"errors": [{"code": …, "message": …, "detail": …}]}` (distribution specification, "Error Codes").

use http::StatusCode;
use serde_json::{Value, json};

/// The `code` of an error body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ErrorCode {
    /// code-1: the repository doesn't hold this blob.
    BlobUnknown,
    /// code-2: the upload can't go on like this.
    BlobUploadInvalid,
    /// code-3: there is no such upload.
    BlobUploadUnknown,
    /// code-4: the digest is malformed, or isn't the content's.
    DigestInvalid,
    /// code-5: a manifest names something that the repository doesn't hold.
    ManifestBlobUnknown,
    /// code-6: the manifest isn't one.
    ManifestInvalid,
    /// code-7: the repository doesn't hold this manifest or tag.
    ManifestUnknown,
    /// code-8: the repository name is malformed.
    NameInvalid,
    /// code-9: there is no such repository.
    NameUnknown,
    /// code-10: a length isn't the content's, or is over a limit.
    SizeInvalid,
    /// code-11: the credential is missing or wrong.
    Unauthorized,
    /// code-12: whoever this is may not do that.
    Denied,
    /// code-13: this registry doesn't do that.
    Unsupported,
    /// code-14: slow down.
    TooManyRequests,
    /// For 5xx answers, where the specification leaves the body open; CNCF Distribution's word.
    Unavailable,
    /// For 5xx answers: something is broken here. CNCF Distribution's word.
    Unknown,
}

impl ErrorCode {
    /// The code as it is written in the body.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::BlobUnknown => "BLOB_UNKNOWN",
            Self::BlobUploadInvalid => "BLOB_UPLOAD_INVALID",
            Self::BlobUploadUnknown => "BLOB_UPLOAD_UNKNOWN",
            Self::DigestInvalid => "DIGEST_INVALID",
            Self::ManifestBlobUnknown => "MANIFEST_BLOB_UNKNOWN",
            Self::ManifestInvalid => "MANIFEST_INVALID",
            Self::ManifestUnknown => "MANIFEST_UNKNOWN",
            Self::NameInvalid => "NAME_INVALID",
            Self::NameUnknown => "NAME_UNKNOWN",
            Self::SizeInvalid => "SIZE_INVALID",
            Self::Unauthorized => "UNAUTHORIZED",
            Self::Denied => "DENIED",
            Self::Unsupported => "UNSUPPORTED",
            Self::TooManyRequests => "TOOMANYREQUESTS",
            Self::Unavailable => "UNAVAILABLE",
            Self::Unknown => "UNKNOWN",
        }
    }
}

/// An answer that says what went wrong: a status, a code and a sentence for the person who reads it.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{message}")]
pub struct Error {
    /// The HTTP status of the answer.
    pub status: StatusCode,
    /// The code in the body.
    pub code: ErrorCode,
    /// The cause and, where there is one, the mend.
    pub message: String,
    /// Anything that helps a program; `null` if there is nothing.
    pub detail: Value,
}

impl Error {
    /// An error without a detail.
    pub fn new(status: StatusCode, code: ErrorCode, message: impl Into<String>) -> Self {
        Self { status, code, message: message.into(), detail: Value::Null }
    }

    /// The same error with a detail.
    pub fn with_detail(self, detail: Value) -> Self {
        Self { detail, ..self }
    }

    /// The JSON body.
    pub fn body(&self) -> String {
        let mut error = json!({"code": self.code.as_str(), "message": self.message});
        if !self.detail.is_null() {
            error["detail"] = self.detail.clone();
        }
        json!({"errors": [error]}).to_string()
    }
}
