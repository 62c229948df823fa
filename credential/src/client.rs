//! What is asked of the registry: RFC 8628 to sign a terminal in, RFC 8693 for a job's token, RFC 7009 to sign out.

use std::{sync::Arc, time::Duration};

use rustls::crypto::aws_lc_rs;
use serde::{Deserialize, Deserializer, de::DeserializeOwned};
use ureq::{
    Agent,
    tls::{RootCerts, TlsConfig, TlsProvider},
};

use crate::host::Host;

/// How long one question takes at most.
const TIMEOUT: Duration = Duration::from_secs(30);

/// The most that is read of an answer.
const MAX_ANSWER_BYTES: u64 = 256 * 1024;

const TOKEN_PATH: &str = "/zot/auth/token";

/// What the registry is told of us.
const CLIENT_ID: &str = "docker-credential-berth";

/// Why there is no answer, or not the one that was hoped for.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// It can't be reached now.
    #[error("{0} does not answer: {1}")]
    Unreachable(String, String),
    /// Whatever it is, it is no Berth, or one of before.
    #[error("{0} is no Berth that signs terminals in (it answered {1})")]
    NotBerth(String, u16),
    /// It says no: what OAuth 2.0 calls it (RFC 6749, section 5.2), and the reason.
    #[error("{description}")]
    Refused {
        /// `invalid_grant` and the like.
        error: String,
        /// The reason, for people.
        description: String,
    },
}

#[derive(Deserialize)]
struct OauthError {
    error: String,
    #[serde(default)]
    error_description: String,
}

/// A terminal that waits to be let in (RFC 8628, section 3.2).
#[derive(Deserialize)]
pub struct DeviceCode {
    pub device_code: String,
    pub user_code: String,
    pub verification_uri: String,
    #[serde(default)]
    pub verification_uri_complete: Option<String>,
    #[serde(default = "five")]
    pub interval: u64,
    pub expires_in: u64,
}

fn five() -> u64 {
    5
}

/// A secret, which is a password for so many seconds.
#[derive(Deserialize)]
pub struct Secret {
    #[serde(rename = "access_token")]
    pub secret: String,
    pub username: String,
    #[serde(deserialize_with = "an_hour_at_most")]
    pub expires_in: u64,
    #[serde(default)]
    pub refresh_token: Option<String>,
}

fn an_hour_at_most<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u64, D::Error> {
    Ok(u64::deserialize(deserializer)?.min(60 * 60))
}

/// A registry at an address.
pub struct Client {
    agent: Agent,
    /// Its address, without a path.
    pub url: String,
}

fn agent(is_loopback: bool) -> Agent {
    let tls = TlsConfig::builder()
        .provider(TlsProvider::Rustls)
        .unversioned_rustls_crypto_provider(Arc::new(aws_lc_rs::default_provider()))
        .root_certs(RootCerts::PlatformVerifier)
        .build();
    let config = Agent::config_builder().tls_config(tls).http_status_as_error(false).max_redirects(0);
    // A proxy's loopback is another machine's.
    let config = if is_loopback { config.proxy(None) } else { config };
    config
        .timeout_global(Some(TIMEOUT))
        .user_agent(concat!("berth-credential/", env!("CARGO_PKG_VERSION")))
        .build()
        .into()
}

/// JSON from somewhere else, with a bearer token: where a CI service gives out a job's identity.
///
/// # Errors
/// What went wrong, without the token.
pub fn get_json<T: DeserializeOwned>(url: &str, bearer: &str) -> Result<T, String> {
    let answer = agent(false).get(url).header("Authorization", &format!("Bearer {bearer}")).call();
    let mut answer = answer.map_err(|e| e.to_string())?;
    if !answer.status().is_success() {
        return Err(format!("it answered {}", answer.status()));
    }
    let text = answer.body_mut().with_config().limit(MAX_ANSWER_BYTES).read_to_string().map_err(|e| e.to_string())?;
    // The text may hold a token, so nothing of it is told.
    serde_json::from_str(&text)
        .map_err(|e| format!("its answer can't be read (line {}, column {})", e.line(), e.column()))
}

impl Client {
    /// The registry at this address.
    pub fn new(url: &str) -> Self {
        let is_loopback = url.parse().is_ok_and(|host: Host| host.is_loopback());
        Self { agent: agent(is_loopback), url: url.to_owned() }
    }

    /// The first of these addresses at which a registry answers.
    ///
    /// # Errors
    /// Why none does, at the last of them.
    pub fn at_first(addresses: &[String]) -> Result<Self, ClientError> {
        let mut failed = ClientError::Unreachable(String::new(), "it has no address".to_owned());
        for url in addresses {
            let client = Self::new(url);
            match client.agent.get(format!("{url}/v2/")).call() {
                // What speaks TLS calls anything else a bad request.
                Ok(answer) if answer.status() == 400 => failed = ClientError::NotBerth(url.clone(), 400),
                Ok(_) => return Ok(client),
                Err(e) => failed = ClientError::Unreachable(url.clone(), e.to_string()),
            }
        }
        Err(failed)
    }

    fn post<T: DeserializeOwned>(&self, path: &str, form: &[(&str, &str)]) -> Result<T, ClientError> {
        let unreachable = |e: &dyn std::fmt::Display| ClientError::Unreachable(self.url.clone(), e.to_string());
        let mut answer = self
            .agent
            .post(format!("{}{path}", self.url))
            .send_form(form.iter().copied())
            .map_err(|e| unreachable(&e))?;
        let status = answer.status();
        let text = answer.body_mut().with_config().limit(MAX_ANSWER_BYTES).read_to_string();
        let text = text.map_err(|e| unreachable(&e))?;
        if status.is_success() {
            return serde_json::from_str(&text).map_err(|_| ClientError::NotBerth(self.url.clone(), status.as_u16()));
        }
        match serde_json::from_str::<OauthError>(&text) {
            Ok(OauthError { error, error_description }) if status.is_client_error() => {
                let description = if error_description.is_empty() { error.clone() } else { error_description };
                Err(ClientError::Refused { error, description })
            }
            // A registry that is away for now, or a proxy in front of it.
            _ if status.is_server_error() => Err(unreachable(&format!("it answered {status}"))),
            _ => Err(ClientError::NotBerth(self.url.clone(), status.as_u16())),
        }
    }

    /// Begins to sign a terminal in.
    pub fn begin(&self, name: &str, scopes: &str) -> Result<DeviceCode, ClientError> {
        self.post("/zot/auth/device", &[("client_id", CLIENT_ID), ("name", name), ("scope", scopes)])
    }

    /// Asks whether it was let in.
    pub fn poll(&self, device_code: &str) -> Result<Secret, ClientError> {
        let grant = "urn:ietf:params:oauth:grant-type:device_code";
        self.post(TOKEN_PATH, &[("grant_type", grant), ("client_id", CLIENT_ID), ("device_code", device_code)])
    }

    /// A secret for a refresh token, with the next one. If the answer is lost, the question may be repeated with the same
    /// `retry`.
    pub fn renew(&self, refresh_token: &str, retry: &str) -> Result<Secret, ClientError> {
        let form = [
            ("grant_type", "refresh_token"),
            ("client_id", CLIENT_ID),
            ("refresh_token", refresh_token),
            ("retry", retry),
        ];
        self.post(TOKEN_PATH, &form)
    }

    /// A secret for a job's token; for all that the job may do, if `scope` is empty.
    pub fn exchange(&self, token: &str, scope: &str) -> Result<Secret, ClientError> {
        let form = [
            ("grant_type", "urn:ietf:params:oauth:grant-type:token-exchange"),
            ("client_id", CLIENT_ID),
            ("subject_token", token),
            ("subject_token_type", "urn:ietf:params:oauth:token-type:jwt"),
            ("scope", scope),
        ];
        self.post(TOKEN_PATH, &form)
    }

    /// Ends a refresh token.
    pub fn revoke(&self, refresh_token: &str) -> Result<(), ClientError> {
        let answer = self.agent.post(format!("{}/zot/auth/revoke", self.url)).send_form([("token", refresh_token)]);
        match answer {
            Ok(answer) if answer.status().is_success() => Ok(()),
            Ok(answer) => Err(ClientError::Unreachable(self.url.clone(), format!("it answered {}", answer.status()))),
            Err(e) => Err(ClientError::Unreachable(self.url.clone(), e.to_string())),
        }
    }
}
