//! Where the registry, or the mirror, listens and the proxy connects: one key, so that the two can't disagree.

use std::{fmt, net::SocketAddr, path::PathBuf};

use url::{Host, Url};

use crate::Section;

/// `sidecar.upstream`, and `sidecar.mirror`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Upstream {
    /// `http://host:port`
    Tcp {
        /// A name or an address.
        host: String,
        /// A port.
        port: u16,
    },
    /// `unix:/path/of/the/socket`
    Unix(PathBuf),
}

const EXPECTED: &str = "expected \"http://127.0.0.1:5000\" or \"unix:/run/berth/registry.sock\"";

impl Upstream {
    /// Where the registry is unless the file says otherwise: `http://127.0.0.1:5000`. The registry knows no user, so an
    /// address that others reach must have been meant (`allowRemoteRegistry`).
    pub fn read(sidecar: &Section<'_>) -> Self {
        Self::read_key(sidecar, "upstream", 5000)
    }

    /// Where the mirror is unless the file says otherwise: `http://127.0.0.1:5001`.
    pub fn read_mirror(sidecar: &Section<'_>) -> Self {
        Self::read_key(sidecar, "mirror", 5001)
    }

    fn read_key(sidecar: &Section<'_>, key: &'static str, port: u16) -> Self {
        let default = Self::Tcp { host: "127.0.0.1".to_owned(), port };
        let may_be_remote = sidecar.flag("allowRemoteRegistry").unwrap_or(false);
        let Some(text) = sidecar.text(key) else { return default };
        let upstream = Self::parse(text).unwrap_or_else(|reason| {
            sidecar.problem(key, format!("{reason}; {EXPECTED}"));
            default
        });
        if !upstream.is_local() && !may_be_remote {
            sidecar.problem(
                key,
                format!(
                    "{upstream} can be reached by others, and what listens there asks nobody who they are; expected a loopback \
                     address or a unix socket, or \"allowRemoteRegistry\": true beside it if your network keeps others out"
                ),
            );
        }
        upstream
    }

    fn parse(text: &str) -> Result<Self, &'static str> {
        if let Some(path) = text.strip_prefix("unix:") {
            let path = PathBuf::from(path);
            return if path.is_absolute() { Ok(Self::Unix(path)) } else { Err("the socket's path must be absolute") };
        }
        let url = Url::parse(text).map_err(|_| "is not a URL")?;
        if url.scheme() != "http" {
            return Err("must be plain http: the registry is on this machine or in this pod");
        }
        if !matches!(url.path(), "" | "/") || url.query().is_some() || !url.username().is_empty() {
            return Err("must be only a host and a port");
        }
        let host = match url.host() {
            Some(Host::Domain(name)) => name.to_owned(),
            Some(Host::Ipv4(address)) => address.to_string(),
            Some(Host::Ipv6(address)) => format!("[{address}]"),
            None => return Err("has no host"),
        };
        Ok(Self::Tcp { host, port: url.port().unwrap_or(80) })
    }

    /// Whether only this machine (or this pod) can reach it. A name other than `localhost` can't be known to be.
    fn is_local(&self) -> bool {
        match self {
            Self::Unix(_) => true,
            Self::Tcp { host, .. } if host == "localhost" => true,
            Self::Tcp { .. } => self.authority().parse::<SocketAddr>().is_ok_and(|a| a.ip().is_loopback()),
        }
    }

    /// `host:port`, or `localhost` for a socket: the `Host` of requests to it.
    pub fn authority(&self) -> String {
        match self {
            Self::Tcp { host, port } => format!("{host}:{port}"),
            Self::Unix(_) => "localhost".to_owned(),
        }
    }
}

impl fmt::Display for Upstream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp { .. } => write!(f, "http://{}", self.authority()),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_loopback_and_sockets_are_local() {
        for (text, local) in [
            ("http://127.0.0.1:5000", true),
            ("http://[::1]:5000", true),
            ("http://localhost:5000/", true),
            ("unix:/run/r.sock", true),
            ("http://10.0.0.1:5000", false),
            ("http://0.0.0.0:5000", false),
            ("http://registry:5000", false),
        ] {
            assert_eq!(Upstream::parse(text).map(|u| u.is_local()), Ok(local), "{text}");
        }
    }

    #[test]
    fn anything_else_is_refused() {
        for text in ["", "127.0.0.1:5000", "https://127.0.0.1", "http://u@h", "http://h/path", "unix:relative.sock"] {
            assert!(Upstream::parse(text).is_err(), "{text}");
        }
    }
}
