//! Who is told of events, and how.

use std::{path::PathBuf, time::Duration};

use http::{HeaderMap, HeaderValue};
use url::Url;

use super::Kind;
use crate::secrets;

/// `extensions.events`
#[derive(Clone, PartialEq, Eq)]
pub struct EventsConfig {
    /// Where the events are from (CloudEvents 1.0, "source").
    pub source: String,
    /// What every type begins with, before its dot.
    pub type_prefix: String,
    /// Who is told.
    pub sinks: Vec<SinkConfig>,
}

/// One who is told.
#[derive(Clone, PartialEq, Eq)]
pub struct SinkConfig {
    /// Where to.
    pub address: Url,
    /// An attribute of every event (zot's).
    pub channel: Option<HeaderValue>,
    /// How long it may take for one.
    pub timeout: Duration,
    /// More headers, with its credentials.
    pub headers: HeaderMap,
    /// The proxy on the way.
    pub proxy: Option<Url>,
    /// PEM: authorities to trust beside the system's.
    pub authorities: Option<PathBuf>,
    /// PEM: a certificate to show, and its key.
    pub certificate: Option<(PathBuf, PathBuf)>,
    /// Whether addresses are taken that only this network knows.
    pub private_addresses: bool,
    /// What each event is signed with: a new key and, while receivers learn it, the old one.
    pub signing_keys: Vec<Vec<u8>>,
    /// What it is told of.
    pub kinds: Vec<Kind>,
}

impl SinkConfig {
    /// What it is known by, in the database and in the log: its path may be a secret.
    pub fn name(&self) -> String {
        format!("{}#{}", self.address.origin().ascii_serialization(), &secrets::hash(self.address.as_str())[..12])
    }

    /// A client that sends there, and nowhere else.
    ///
    /// # Errors
    /// Why there can't be one.
    pub fn client(&self) -> Result<reqwest::Client, String> {
        let mut builder = reqwest::Client::builder()
            .redirect(reqwest::redirect::Policy::none())
            .timeout(self.timeout)
            .connect_timeout(self.timeout.min(CONNECT_TIMEOUT))
            .pool_idle_timeout(POOL_IDLE_TIMEOUT);
        let read = |path: &PathBuf| std::fs::read(path).map_err(|e| format!("{} can't be read ({e})", path.display()));
        if let Some(path) = &self.authorities {
            let pem = reqwest::Certificate::from_pem_bundle(&read(path)?)
                .map_err(|e| format!("{} holds no PEM certificates ({e})", path.display()))?;
            builder = builder.tls_certs_merge(pem);
        }
        if let Some((certificate, key)) = &self.certificate {
            let pem = [read(certificate)?, b"\n".to_vec(), read(key)?].concat();
            let identity = reqwest::Identity::from_pem(&pem)
                .map_err(|e| format!("{} and its key can't be used ({e})", certificate.display()))?;
            builder = builder.identity(identity);
        }
        builder = match &self.proxy {
            Some(proxy) => builder.proxy(reqwest::Proxy::all(proxy.clone()).map_err(|e| e.to_string())?),
            None if self.private_addresses => builder.no_proxy(),
            None => builder.no_proxy().dns_resolver(std::sync::Arc::new(super::addresses::PublicAddresses)),
        };
        builder.build().map_err(|e| e.to_string())
    }
}

/// How long a connection may take to be made.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// For how long a connection is kept that nothing is sent on.
const POOL_IDLE_TIMEOUT: Duration = Duration::from_secs(30);
