//! Hands a request to the site, whole.

use std::time::Duration;

use axum::body::Body;
use berth_oci::{Error as OciError, ErrorCode};
use bytes::{Bytes, BytesMut};
use http::{StatusCode, header::EXPECT};
use pingora::{Error, ErrorType, Result, proxy::Session};
use tower::ServiceExt;

use super::{Context, Gateway};
use crate::{answer::error_response, connections::InFlight, site::max_body_bytes};

/// How long a form may take to come.
const FORM_TIMEOUT: Duration = Duration::from_secs(30);

impl Gateway {
    /// Hands a request to the site.
    pub(super) async fn ask_site(&self, session: &mut Session, context: &Context) -> http::Response<Body> {
        let bad_request = |message: &str| OciError::new(StatusCode::BAD_REQUEST, ErrorCode::Unsupported, message);
        let waiting = context.in_flight.as_ref().map(InFlight::wait_for_client);
        let read = read_form(session).await;
        drop(waiting);
        let body = match read {
            Ok(Some(body)) => body,
            Ok(None) => {
                let message = format!(
                    "a request to this address has at most {} bytes",
                    max_body_bytes(session.req_header().uri.path())
                );
                let error = OciError::new(StatusCode::PAYLOAD_TOO_LARGE, ErrorCode::SizeInvalid, message);
                return error_response(&error);
            }
            Err(error) if *error.etype() == ErrorType::ReadTimedout => {
                let message = format!("the form took longer than {} s to come", FORM_TIMEOUT.as_secs());
                let error = OciError::new(StatusCode::REQUEST_TIMEOUT, ErrorCode::Unsupported, message);
                return error_response(&error);
            }
            Err(_) => return error_response(&bad_request("the body could not be read")),
        };
        let from = session.req_header();
        let target = from.uri.path_and_query().map_or("/", |target| target.as_str());
        let request = http::Request::builder().method(from.method.clone()).uri(target).extension(context.info.clone());
        let Ok(mut request) = request.body(Body::from(body)) else {
            return error_response(&bad_request("the request target can't be read"));
        };
        *request.headers_mut() = from.headers.clone();
        let Ok(response) = self.site.clone().oneshot(request).await;
        response
    }
}

/// The body of a request to the site; nothing if it is too long.
async fn read_form(session: &mut Session) -> Result<Option<Bytes>> {
    if session.is_body_empty() {
        return Ok(Some(Bytes::new()));
    }
    if session.get_header(EXPECT).is_some() {
        session.write_continue_response().await?;
    }
    let most = max_body_bytes(session.req_header().uri.path());
    let reading = async {
        let mut body = BytesMut::new();
        while let Some(chunk) = session.read_request_body().await? {
            if body.len() + chunk.len() > most {
                return Ok(None);
            }
            body.extend_from_slice(&chunk);
        }
        Ok(Some(body.freeze()))
    };
    let slow = |_| Error::explain(ErrorType::ReadTimedout, "a form took too long to come").into_down();
    tokio::time::timeout(FORM_TIMEOUT, reading).await.map_err(slow)?
}
