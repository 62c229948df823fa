//! Questions to an identity provider over HTTP.

use std::time::Duration;

use http::StatusCode;
use openidconnect::{HttpRequest, HttpResponse};
use serde::de::DeserializeOwned;

use super::{ANSWER_TIMEOUT, SignInError, TrustRoots};

/// How long a connection may take to be made.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// The most that is read of one answer.
const MAX_ANSWER_BYTES: usize = 1024 * 1024;

/// A client of one issuer. It follows no redirects: nothing that a provider answers sends our secret elsewhere.
#[derive(Clone)]
pub struct Http {
    client: reqwest::Client,
    issuer: String,
}

/// Why an answer didn't come.
#[derive(Debug, thiserror::Error)]
pub enum HttpError {
    #[error("{}", chain(.0))]
    Request(#[from] reqwest::Error),
    #[error("its answer is longer than {MAX_ANSWER_BYTES} bytes")]
    TooLong,
    #[error("it answers {0}")]
    Busy(StatusCode),
    #[error(transparent)]
    Http(#[from] http::Error),
}

impl HttpError {
    /// Whether nobody can have done what was asked: it wasn't sent, or turned away at the door.
    pub fn was_not_processed(&self) -> bool {
        match self {
            Self::Request(error) => error.is_connect() || error.is_builder(),
            Self::Http(_) | Self::Busy(_) => true,
            Self::TooLong => false,
        }
    }
}

/// An error with its causes: reqwest's own sentence names only the URL.
fn chain(error: &reqwest::Error) -> String {
    let mut last: &dyn std::error::Error = error;
    while let Some(source) = last.source() {
        last = source;
    }
    if error.is_timeout() { format!("it takes longer than {} s", ANSWER_TIMEOUT.as_secs()) } else { last.to_string() }
}

impl Http {
    /// A client of `issuer`, which trusts `authority` beside the system's.
    ///
    /// # Errors
    /// A sentence with the key's path, if the authority can't be read.
    pub fn new(issuer: &str, authority: &TrustRoots) -> Result<Self, String> {
        let mut builder =
            reqwest::Client::builder().redirect(reqwest::redirect::Policy::none()).timeout(ANSWER_TIMEOUT);
        // Shorter, so that it is known that nobody was asked.
        builder = builder.connect_timeout(CONNECT_TIMEOUT);
        if let Some(certificates) = authority.certificates()? {
            builder = builder.tls_certs_merge(certificates);
        }
        let client = builder.build().map_err(|e| authority.problem(&e))?;
        Ok(Self { client, issuer: issuer.to_owned() })
    }

    /// Sends a request, and reads an answer of a bounded length.
    pub async fn send(&self, request: HttpRequest) -> Result<HttpResponse, HttpError> {
        let mut answer = self.client.execute(request.try_into()?).await?;
        // What a proxy in front of it says while it restarts, or has too much to do.
        let busy = [StatusCode::TOO_MANY_REQUESTS, StatusCode::BAD_GATEWAY, StatusCode::SERVICE_UNAVAILABLE];
        if busy.contains(&answer.status()) {
            return Err(HttpError::Busy(answer.status()));
        }
        let mut body = Vec::new();
        while let Some(chunk) = answer.chunk().await? {
            if body.len() + chunk.len() > MAX_ANSWER_BYTES {
                return Err(HttpError::TooLong);
            }
            body.extend_from_slice(&chunk);
        }
        let mut response = http::Response::builder().status(answer.status());
        for (name, value) in answer.headers() {
            response = response.header(name, value);
        }
        Ok(response.body(body)?)
    }

    /// Asks for a JSON document.
    pub async fn json<T: DeserializeOwned>(&self, url: &str) -> Result<T, SignInError> {
        let wrong = |cause: String| SignInError::NotAProvider { url: url.to_owned(), cause };
        let request = http::Request::get(url).header("accept", "application/json").body(Vec::new());
        let answer = self.send(request.map_err(|e| wrong(e.to_string()))?).await;
        let answer = answer.map_err(|e| self.unreachable(&e))?;
        if answer.status().is_server_error() {
            return Err(self.unreachable(&format!("it answers {}", answer.status())));
        }
        if !answer.status().is_success() {
            return Err(wrong(format!("it answers {}", answer.status())));
        }
        serde_json::from_slice(answer.body()).map_err(|e| wrong(e.to_string()))
    }

    /// What the issuer says of itself (OpenID Connect Discovery 1.0, section 4), unless it calls itself otherwise.
    pub async fn discovery(&self, any_issuer: bool) -> Result<(String, serde_json::Value), SignInError> {
        let slash = if self.issuer.ends_with('/') { "" } else { "/" };
        let url = format!("{}{slash}.well-known/openid-configuration", self.issuer);
        let document: serde_json::Value = self.json(&url).await?;
        // Compared before the rest is read: a wrong issuer is the likelier mistake, and the clearer message.
        match document.get("issuer").and_then(|v| v.as_str()) {
            Some(received) if received != self.issuer && !any_issuer => {
                Err(SignInError::Issuer { asked: self.issuer.clone(), received: received.to_owned() })
            }
            _ => Ok((url, document)),
        }
    }

    /// The error that it can't be reached.
    pub fn unreachable(&self, cause: &impl ToString) -> SignInError {
        SignInError::Unreachable { issuer: self.issuer.clone(), cause: cause.to_string() }
    }
}
