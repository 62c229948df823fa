//! What a provider says of itself (OpenID Connect Discovery 1.0), and its keys.

use std::{sync::Arc, time::Duration};

use openidconnect::{
    AuthType, ClientId, ClientSecret, EndpointMaybeSet, EndpointNotSet, EndpointSet, HttpRequest, HttpResponse,
    RedirectUrl,
    core::{CoreClient, CoreClientAuthMethod, CoreJsonWebKeySet, CoreJwsSigningAlgorithm, CoreProviderMetadata},
};
use serde::de::DeserializeOwned;
use url::Url;

use super::{LARGEST_ANSWER, PATIENCE, Provider, SignInError};
use crate::config::ProviderConfig;

/// How often discovery is fetched again while it works.
const REFRESH: Duration = Duration::from_mins(10);

/// How long to wait after a failure: at first, and at most.
const RETRY: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(30));

/// A provider that has been discovered.
pub struct Discovered {
    pub client: OidcClient,
    /// The algorithms that ID tokens may be signed with, and no other.
    pub algorithms: Vec<CoreJwsSigningAlgorithm>,
    pub user_info: Option<Url>,
    pub end_session: Option<Url>,
}

pub type OidcClient =
    CoreClient<EndpointSet, EndpointNotSet, EndpointNotSet, EndpointNotSet, EndpointMaybeSet, EndpointMaybeSet>;

/// Why an answer didn't come.
#[derive(Debug, thiserror::Error)]
pub enum HttpError {
    #[error("{}", chain(.0))]
    Request(#[from] reqwest::Error),
    #[error("its answer is longer than {LARGEST_ANSWER} bytes")]
    TooLong,
    #[error(transparent)]
    Http(#[from] http::Error),
}

/// An error with its causes: reqwest's own sentence names only the URL.
fn chain(error: &reqwest::Error) -> String {
    let mut last: &dyn std::error::Error = error;
    while let Some(source) = last.source() {
        last = source;
    }
    if error.is_timeout() { format!("it takes longer than {} s", PATIENCE.as_secs()) } else { last.to_string() }
}

/// A client that follows no redirects: nothing that a provider answers sends our secret elsewhere.
pub fn client(config: &ProviderConfig) -> Result<reqwest::Client, String> {
    let problem = |e: &dyn std::fmt::Display| {
        format!("http.auth.openid.providers.{}.certificateAuthorityFile: {e}; expected PEM certificates", config.id)
    };
    let mut builder = reqwest::Client::builder().redirect(reqwest::redirect::Policy::none()).timeout(PATIENCE);
    if let Some(path) = &config.certificate_authority {
        let pem = std::fs::read(path).map_err(|e| problem(&e))?;
        let certificates = reqwest::Certificate::from_pem_bundle(&pem).map_err(|e| problem(&e))?;
        if certificates.is_empty() {
            return Err(problem(&"holds no certificate"));
        }
        builder = builder.tls_certs_merge(certificates);
    }
    builder.build().map_err(|e| problem(&e))
}

/// Sends a request, and reads an answer of a bounded length.
pub async fn send(client: &reqwest::Client, request: HttpRequest) -> Result<HttpResponse, HttpError> {
    let mut answer = client.execute(request.try_into()?).await?;
    let mut body = Vec::new();
    while let Some(chunk) = answer.chunk().await? {
        if body.len() + chunk.len() > LARGEST_ANSWER {
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

impl Provider {
    /// Keeps discovery fresh for as long as the process runs. Nothing waits for this.
    pub async fn keep_discovered(self: Arc<Self>) {
        let mut wait = RETRY.0;
        loop {
            match self.discover().await {
                Ok(_) => {
                    tracing::debug!(issuer = self.config.issuer, "the identity provider was discovered");
                    wait = RETRY.0;
                    tokio::time::sleep(REFRESH).await;
                }
                Err(error) => {
                    tracing::warn!(provider = self.config.id, "{error}; trying again in {wait:?}");
                    tokio::time::sleep(wait).await;
                    wait = (wait * 2).min(RETRY.1);
                }
            }
        }
    }

    /// What was discovered before, or else now.
    pub(super) async fn discovered(&self) -> Result<Arc<Discovered>, SignInError> {
        let known = self.discovered.read().await.clone();
        match known {
            Some(known) => Ok(known),
            None => self.discover().await,
        }
    }

    /// Asks the provider what it is, and remembers that.
    pub(super) async fn discover(&self) -> Result<Arc<Discovered>, SignInError> {
        let issuer = &self.config.issuer;
        let slash = if issuer.ends_with('/') { "" } else { "/" };
        let url = format!("{issuer}{slash}.well-known/openid-configuration");
        let document: serde_json::Value = self.get(&url).await?;
        // Compared before the rest is read: a wrong issuer is the likelier mistake, and the clearer message.
        if let Some(received) = document.get("issuer").and_then(|v| v.as_str())
            && received != issuer
        {
            return Err(SignInError::Issuer { asked: issuer.clone(), received: received.to_owned() });
        }
        let wrong = |cause: String| SignInError::NotAProvider { url: url.clone(), cause };
        let metadata: CoreProviderMetadata =
            serde_json::from_value(document.clone()).map_err(|e| wrong(e.to_string()))?;
        let keys: serde_json::Value = self.get(metadata.jwks_uri().as_str()).await?;
        // Without a signing key authentik signs with the client secret, and its key set is an empty object.
        let keys = match keys.get("keys") {
            None => CoreJsonWebKeySet::new(Vec::new()),
            Some(_) => serde_json::from_value(keys).map_err(|e| wrong(format!("its key set can't be read ({e})")))?,
        };
        let algorithms = metadata.id_token_signing_alg_values_supported().clone();
        let address = |key: &str| document.get(key).and_then(|v| v.as_str()).and_then(|text| Url::parse(text).ok());
        let (user_info, end_session) = (address("userinfo_endpoint"), address("end_session_endpoint"));
        let methods = metadata.token_endpoint_auth_methods_supported();
        let by_post = methods.is_some_and(|methods| !methods.contains(&CoreClientAuthMethod::ClientSecretBasic));
        let client = CoreClient::from_provider_metadata(
            metadata.set_jwks(keys),
            ClientId::new(self.config.client_id.clone()),
            self.config.client_secret.clone().map(ClientSecret::new),
        )
        .set_redirect_uri(RedirectUrl::new(self.redirect_uri.clone()).map_err(|e| wrong(e.to_string()))?)
        .set_auth_type(if by_post { AuthType::RequestBody } else { AuthType::BasicAuth });
        let discovered = Arc::new(Discovered { client, algorithms, user_info, end_session });
        *self.discovered.write().await = Some(Arc::clone(&discovered));
        Ok(discovered)
    }

    async fn get<T: DeserializeOwned>(&self, url: &str) -> Result<T, SignInError> {
        let wrong = |cause: String| SignInError::NotAProvider { url: url.to_owned(), cause };
        let request = http::Request::get(url).header("accept", "application/json").body(Vec::new());
        let answer = self.send(request.map_err(|e| wrong(e.to_string()))?).await;
        let answer = answer.map_err(|cause| SignInError::Unreachable {
            issuer: self.config.issuer.clone(),
            cause: cause.to_string(),
        })?;
        if answer.status().is_server_error() {
            let cause = format!("it answers {}", answer.status());
            return Err(SignInError::Unreachable { issuer: self.config.issuer.clone(), cause });
        }
        if !answer.status().is_success() {
            return Err(wrong(format!("it answers {}", answer.status())));
        }
        serde_json::from_slice(answer.body()).map_err(|e| wrong(e.to_string()))
    }
}
