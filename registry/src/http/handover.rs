//! Hands open blobs to the proxy, over a socket beside our own: what it was allowed to read it then sends by itself. What is short
//! comes as it is, and is sooner there than over HTTP.
//!
//! What is served is decided here, as for a request over HTTP; only the bytes go another way. With a bucket, or over TCP, there
//! is no such socket, and the proxy asks over HTTP.

use std::{fs::File, io, path::Path, sync::Arc, time::Instant};

use axum::{body::Body, response::Response};
use berth_files::{Asked, Given, MAX_BODY_BYTES, receive, send, socket_of};
use berth_oci::{Error, ErrorCode, Operation};
use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, StatusCode, Uri};
use tokio::{
    net::{UnixListener, UnixStream},
    sync::Semaphore,
};

use tracing::Instrument;

use super::{
    Serving, answers::error_response, blob_part, ended, manifest_part, perform, request_span, server::bind_anew, whole,
};

/// How many connections there may be: the proxy keeps few, and makes one for each request that it asks at once.
const MAX_CONNECTIONS: usize = 1024;

/// Listens beside the socket at `path`.
///
/// # Errors
/// If it can't.
pub fn listen(path: &Path) -> io::Result<UnixListener> {
    bind_anew(&socket_of(path))
}

/// Answers for as long as the process runs.
pub async fn serve(listener: UnixListener, serving: Arc<Serving>) {
    let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    loop {
        let Ok(place) = Arc::clone(&places).acquire_owned().await else { return };
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                // There are no descriptors, say.
                crate::content::report_descriptors(&error);
                tokio::time::sleep(std::time::Duration::from_millis(100)).await;
                continue;
            }
        };
        let serving = Arc::clone(&serving);
        tokio::spawn(async move {
            if let Err(error) = answer_all(&stream, &serving).await {
                tracing::debug!(%error, "a connection for open files has ended");
            }
            drop(place);
        });
    }
}

async fn answer_all(stream: &UnixStream, serving: &Serving) -> io::Result<()> {
    while let Some(asked) = receive::<Asked>(stream).await? {
        let (given, body, file) = answer(serving, &asked.message).await;
        send(stream, &given, &body, file.as_ref()).await?;
    }
    Ok(())
}

type Answer = (Given, Bytes, Option<File>);

async fn answer(serving: &Serving, asked: &Asked) -> Answer {
    let (began, headers) = (Instant::now(), headers(&asked.headers));
    let method: Method = asked.method.parse().unwrap_or_default();
    let (trace, span) = (serving.traces.begin(&headers), request_span(&headers, &method, &asked.target));
    let parsed = asked.target.parse().map_err(|_| unsupported());
    let parsed = parsed.and_then(|target: Uri| Ok(Operation::parse(&method, &target)?));
    let name = parsed.as_ref().map_or("unknown", Operation::name);
    let opened = open(serving, parsed, headers).instrument(span.clone()).await;
    let refused = |error: Error| (given(&error_response(&error)), error.body().into(), None);
    let answer = opened.unwrap_or_else(refused);
    ended(serving, name, answer.0.status, began, trace, &span);
    answer
}

/// The proxy asks over HTTP then (RFC 9110, section 15.5.22).
fn unsupported() -> Error {
    Error::new(StatusCode::UPGRADE_REQUIRED, ErrorCode::Unsupported, "this is asked over HTTP")
}

async fn open(serving: &Serving, parsed: Result<Operation, Error>, headers: HeaderMap) -> Result<Answer, Error> {
    let content = &serving.content;
    let (response, part) = match parsed? {
        Operation::PullBlob { repository, digest } => {
            // Only until it is open: then it is the proxy's.
            let _place = serving.limits.transfer()?;
            blob_part(content, &headers, &repository, &digest).await?
        }
        Operation::PullManifest { repository, reference } => {
            let _place = serving.limits.transfer()?;
            manifest_part(content, &headers, &repository, &reference).await?
        }
        operation if operation.has_short_answer() => {
            let mut request = Request::new(Body::empty());
            *request.headers_mut() = headers;
            (perform(serving, operation, request).await?, None)
        }
        _ => return Err(unsupported()),
    };
    let mut given = given(&response);
    let Some((blob, range)) = part else {
        // Some lists are long, and few.
        let body = axum::body::to_bytes(response.into_body(), MAX_BODY_BYTES).await.map_err(|_| unsupported())?;
        return Ok((given, body, None));
    };
    if range.end - range.start <= MAX_BODY_BYTES as u64 {
        return Ok((given, whole(blob, range).await?, None));
    }
    given.part = (range.start, range.end);
    Ok((given, Bytes::new(), blob.file()))
}

/// What an answer says without its body.
fn given(response: &Response) -> Given {
    Given { status: response.status().as_u16(), headers: texts(response.headers()), part: (0, 0) }
}

fn headers(texts: &[(String, String)]) -> HeaderMap {
    let mut headers = HeaderMap::new();
    for (name, value) in texts {
        if let (Ok(name), Ok(value)) = (HeaderName::try_from(name), HeaderValue::try_from(value)) {
            headers.append(name, value);
        }
    }
    headers
}

fn texts(headers: &HeaderMap) -> Vec<(String, String)> {
    let text = |(name, value): (&HeaderName, &HeaderValue)| Some((name.to_string(), value.to_str().ok()?.to_owned()));
    headers.iter().filter_map(text).collect()
}
