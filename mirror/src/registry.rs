//! The registry beside us, by its public API.

use std::time::Duration;

use axum::{body::Body, response::Response};
use berth_config::Upstream;
use berth_oci::{Digest, Error, ErrorCode, MediaType, Operation, Reference, Repository, encode_user};
use bytes::Bytes;
use futures_util::Stream;
use http::{
    HeaderMap, HeaderName, StatusCode,
    header::{ACCEPT, CONTENT_LENGTH, CONTENT_TYPE, IF_NONE_MATCH, IF_RANGE, RANGE},
};
use reqwest::redirect::Policy;

use crate::source::{Fetched, cause};

/// What the registry must know of a request.
const PASSED: [HeaderName; 5] = [ACCEPT, IF_NONE_MATCH, IF_RANGE, RANGE, HeaderName::from_static("x-request-id")];

/// By which it takes a manifest whose parts come later, or never.
const INCOMPLETE: HeaderName = HeaderName::from_static("berth-incomplete");

/// Who pushes, for its pages.
const USER: HeaderName = HeaderName::from_static("berth-user");

/// How long it may take to connect, and to answer what is short.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);

/// It doesn't do what it should.
#[derive(Debug, thiserror::Error)]
#[error("the registry at {upstream} {cause}")]
pub struct RegistryError {
    upstream: String,
    cause: String,
}

/// A client of it.
pub struct Registry {
    client: reqwest::Client,
    upstream: Upstream,
}

impl Registry {
    /// A client of the registry at `upstream`.
    ///
    /// # Errors
    /// A sentence, if there can't be one.
    pub fn new(upstream: &Upstream) -> Result<Self, String> {
        // Where it sends clients for a blob, they go themselves.
        let builder = reqwest::Client::builder().no_proxy().redirect(Policy::none()).connect_timeout(CONNECT_TIMEOUT);
        let builder = match upstream {
            Upstream::Tcp { .. } => builder,
            Upstream::Unix(path) => builder.unix_socket(path.as_path()),
        };
        let client = builder.build().map_err(|e| format!("sidecar.upstream: {e}"))?;
        Ok(Self { client, upstream: upstream.clone() })
    }

    fn url(&self, target: &str) -> String {
        format!("http://{}{target}", self.upstream.authority())
    }

    fn error(&self, cause: impl Into<String>) -> RegistryError {
        RegistryError { upstream: self.upstream.to_string(), cause: cause.into() }
    }

    fn away(&self, error: reqwest::Error) -> RegistryError {
        self.error(format!("does not answer: {}", cause(error)))
    }

    /// Whether it answers.
    pub async fn ping(&self) -> Result<(), RegistryError> {
        let answer =
            self.client.get(self.url("/v2/")).timeout(ANSWER_TIMEOUT).send().await.map_err(|e| self.away(e))?;
        if answer.status().is_success() { Ok(()) } else { Err(self.error(format!("answers {}", answer.status()))) }
    }

    /// Which manifest a reference names, if it is there.
    pub async fn find_manifest(
        &self,
        repository: &Repository,
        reference: &Reference,
    ) -> Result<Option<Digest>, RegistryError> {
        let operation = Operation::HeadManifest { repository: repository.clone(), reference: reference.clone() };
        let accept = MediaType::ALL.map(MediaType::as_str).join(", ");
        let request = self.client.head(self.url(&operation.target())).header(ACCEPT, accept).timeout(ANSWER_TIMEOUT);
        let answer = request.send().await.map_err(|e| self.away(e))?;
        match answer.status() {
            StatusCode::NOT_FOUND => Ok(None),
            status if status.is_success() => {
                let digest =
                    answer.headers().get("docker-content-digest").and_then(|value| value.to_str().ok()?.parse().ok());
                digest.map(Some).ok_or_else(|| self.error("doesn't say what a manifest's digest is"))
            }
            status => Err(self.error(format!("answers {status}"))),
        }
    }

    /// Whether a repository holds a blob.
    pub async fn has_blob(&self, repository: &Repository, digest: &Digest) -> Result<bool, RegistryError> {
        let operation = Operation::HeadBlob { repository: repository.clone(), digest: digest.clone() };
        let request = self.client.head(self.url(&operation.target())).timeout(ANSWER_TIMEOUT);
        let answer = request.send().await.map_err(|e| self.away(e))?;
        match answer.status() {
            StatusCode::NOT_FOUND => Ok(false),
            status if status.is_success() => Ok(true),
            status => Err(self.error(format!("answers {status}"))),
        }
    }

    /// Keeps a manifest, whose parts may not be there.
    pub async fn push_manifest(
        &self,
        repository: &Repository,
        reference: &Reference,
        fetched: &Fetched,
        from: &str,
    ) -> Result<(), RegistryError> {
        let (repository, reference) = (repository.clone(), reference.clone());
        let operation = Operation::PushManifest { repository, reference, tags: Vec::new() };
        let request = self.client.put(self.url(&operation.target())).header(CONTENT_TYPE, &fetched.media_type);
        let request = request.header(INCOMPLETE, "1").header(USER, encode_user(from)).timeout(ANSWER_TIMEOUT);
        let request = request.body(fetched.bytes.clone());
        self.must_take(request.send().await.map_err(|e| self.away(e))?).await
    }

    /// Keeps a blob.
    pub async fn push_blob(
        &self,
        repository: &Repository,
        digest: &Digest,
        len: Option<u64>,
        pieces: impl Stream<Item = std::io::Result<Bytes>> + Send + 'static,
    ) -> Result<(), RegistryError> {
        let operation = Operation::PushBlob { repository: repository.clone(), digest: digest.clone() };
        let mut request = self.client.post(self.url(&operation.target())).body(reqwest::Body::wrap_stream(pieces));
        if let Some(len) = len {
            request = request.header(CONTENT_LENGTH, len);
        }
        self.must_take(request.send().await.map_err(|e| self.away(e))?).await
    }

    async fn must_take(&self, answer: reqwest::Response) -> Result<(), RegistryError> {
        let status = answer.status();
        if status.is_success() {
            return Ok(());
        }
        let text: serde_json::Value = answer.json().await.unwrap_or_default();
        let message = text["errors"][0]["message"].as_str().unwrap_or_default();
        Err(self.error(format!("answers {status}: {message}")))
    }

    /// Its answer to a read.
    pub async fn answer(&self, operation: &Operation, headers: &HeaderMap) -> Result<Response, Error> {
        let mut passed = HeaderMap::new();
        for name in PASSED {
            for value in headers.get_all(&name) {
                passed.append(name.clone(), value.clone());
            }
        }
        let request = self.client.request(operation.method(), self.url(&operation.target())).headers(passed);
        let answer = request.send().await.map_err(|e| unavailable(&self.away(e)))?;
        let mut response = Response::new(Body::empty());
        *response.status_mut() = answer.status();
        for (name, value) in answer.headers() {
            response.headers_mut().append(name.clone(), value.clone());
        }
        response.headers_mut().remove("transfer-encoding");
        response.headers_mut().remove("connection");
        *response.body_mut() = Body::from_stream(answer.bytes_stream());
        Ok(response)
    }
}

/// The answer when the registry doesn't.
pub fn unavailable(error: &RegistryError) -> Error {
    tracing::error!(%error, "a pull can't be served");
    Error::new(
        StatusCode::SERVICE_UNAVAILABLE,
        ErrorCode::Unavailable,
        "the registry behind this mirror does not answer; try again",
    )
}
