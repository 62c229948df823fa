//! Answers of ours to clients of the distribution API.

use axum::body::Body;
use berth_oci::{Error, ErrorCode};
use http::{
    HeaderValue, Response, StatusCode,
    header::{CONTENT_TYPE, RETRY_AFTER},
};

use crate::identity::Refusal;

/// The error that the credential is good, and may not do this.
pub fn denied(message: &str) -> Error {
    Error::new(StatusCode::FORBIDDEN, ErrorCode::Denied, message)
}

/// The error that something we need is away.
pub fn unavailable(message: &str) -> Error {
    Error::new(StatusCode::SERVICE_UNAVAILABLE, ErrorCode::Unavailable, message)
}

/// An error as an answer.
pub fn error_response(error: &Error) -> Response<Body> {
    json_response(error.status, error.body())
}

/// JSON as an answer.
pub fn json_response(status: StatusCode, body: String) -> Response<Body> {
    let mut response = Response::new(Body::from(body));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

/// The answer to a credential that can't be looked at now: because something is away, or because there were too many
/// wrong ones.
pub fn retry_later_response(refusal: &Refusal) -> Option<Response<Body>> {
    match refusal {
        Refusal::Rejected(_) => None,
        Refusal::Throttled(wait) => {
            let error = Error::new(StatusCode::TOO_MANY_REQUESTS, ErrorCode::TooManyRequests, refusal.to_string());
            let mut response = error_response(&error);
            response.headers_mut().insert(RETRY_AFTER, HeaderValue::from(wait.as_secs() + 1));
            Some(response)
        }
        Refusal::Unavailable(_) => Some(error_response(&unavailable("the credential can't be checked now; try again"))),
    }
}
