//! The HTTP client of another registry: it goes where the file says, and from there to public addresses alone.

use std::{collections::HashSet, io, net::SocketAddr, sync::Arc, time::Duration};

use berth_config::is_public_address;
use reqwest::{
    Certificate, Client, Identity,
    dns::{Addrs, Name, Resolve, Resolving},
    redirect::Policy,
};
use url::{Host, Url};

use crate::config::SourceConfig;

/// How long a connection may take to be made.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// How long it may be silent in the middle of an answer. There is no limit on the whole.
const READ_TIMEOUT: Duration = Duration::from_secs(30);

/// How many redirects are followed: to where the bytes are.
const MAX_REDIRECTS: usize = 5;

/// Leaves private addresses out, but for the hosts that the file names.
struct Addresses {
    named: HashSet<String>,
    /// None is left out.
    all: bool,
}

impl Resolve for Addresses {
    fn resolve(&self, name: Name) -> Resolving {
        let is_named = self.all || self.named.contains(name.as_str());
        Box::pin(async move {
            let found = tokio::net::lookup_host((name.as_str(), 0)).await?;
            let good: Vec<SocketAddr> = found.filter(|one| is_named || is_public_address(one.ip())).collect();
            if good.is_empty() {
                return Err(io::Error::other("it has only addresses of this network").into());
            }
            Ok(Box::new(good.into_iter()) as Addrs)
        })
    }
}

impl SourceConfig {
    /// Whether something may be asked for at an address that another answer has named.
    pub fn may_ask(&self, url: &Url) -> bool {
        let is_public = match url.host() {
            Some(_) if self.private_addresses => true,
            Some(Host::Ipv4(ip)) => is_public_address(ip.into()),
            Some(Host::Ipv6(ip)) => is_public_address(ip.into()),
            // Names are looked at when they are looked up.
            Some(Host::Domain(_)) => true,
            None => false,
        };
        // The same host has other services on other ports.
        let is_named = self.urls.iter().any(|known| known.origin() == url.origin());
        let is_plain_here = self.private_addresses && self.urls.iter().all(|known| known.scheme() == "http");
        is_named || (is_public && (url.scheme() == "https" || (url.scheme() == "http" && is_plain_here)))
    }

    /// The client.
    ///
    /// # Errors
    /// A sentence, if its certificates can't be used.
    pub fn client(self: &Arc<Self>) -> Result<Client, String> {
        let named = self.urls.iter().filter_map(|url| url.host_str().map(str::to_owned)).collect();
        let this = Arc::clone(self);
        let policy = Policy::custom(move |attempt| {
            if attempt.previous().len() > MAX_REDIRECTS {
                return attempt.error("it redirects again and again");
            }
            if this.may_ask(attempt.url()) {
                attempt.follow()
            } else {
                attempt.error("it redirects where nothing is asked for")
            }
        });
        let mut builder = Client::builder()
            .connect_timeout(CONNECT_TIMEOUT)
            .read_timeout(READ_TIMEOUT)
            .redirect(policy)
            .referer(false)
            .dns_resolver(Arc::new(Addresses { named, all: self.private_addresses }))
            .user_agent(concat!("berth/", env!("CARGO_PKG_VERSION")))
            .tls_danger_accept_invalid_certs(!self.verify);
        if let Some(folder) = &self.certificates {
            let read = |name: &str| std::fs::read(folder.join(name)).ok();
            let wrong = |what: &str, e: &dyn std::fmt::Display| {
                format!("{} can't be used ({e}); expected PEM", folder.join(what).display())
            };
            if let Some(pem) = read("ca.crt") {
                let certificates = Certificate::from_pem_bundle(&pem).map_err(|e| wrong("ca.crt", &e))?;
                builder = builder.tls_certs_merge(certificates);
            }
            if let (Some(certificate), Some(key)) = (read("client.cert"), read("client.key")) {
                let pem = [certificate, b"\n".to_vec(), key].concat();
                builder = builder.identity(Identity::from_pem(&pem).map_err(|e| wrong("client.cert", &e))?);
            }
        }
        builder.build().map_err(|e| e.to_string())
    }
}
