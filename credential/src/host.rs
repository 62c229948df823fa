//! The name of a registry, as image names begin with it: `registry.company`, `localhost:5000`.

use std::{fmt, net::IpAddr, str::FromStr};

/// A host, with a port if it has one.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Host(String);

/// What is no host.
#[derive(Debug, thiserror::Error)]
#[error("{0:?} is no registry: give its name as image names begin, such as registry.company or localhost:5000")]
pub struct NoHost(String);

impl FromStr for Host {
    type Err = NoHost;

    /// Reads what clients write: with or without a scheme, and with a path behind it, which doesn't matter.
    fn from_str(text: &str) -> Result<Self, NoHost> {
        let bad = || NoHost(text.chars().take(100).collect());
        let trimmed = text.trim();
        let lower = trimmed.to_ascii_lowercase();
        let rest = lower.strip_prefix("https://").or_else(|| lower.strip_prefix("http://")).unwrap_or(&lower);
        let authority = rest.split('/').next().unwrap_or_default().to_owned();
        let (name, port) = match authority.rsplit_once(':') {
            Some((name, port)) if !port.contains(']') => (name, Some(port)),
            _ => (authority.as_str(), None),
        };
        let is_name = match name.strip_prefix('[').and_then(|name| name.strip_suffix(']')) {
            Some(address) => address.parse::<std::net::Ipv6Addr>().is_ok(),
            None => {
                let is_label = |label: &str| {
                    !label.is_empty()
                        && !label.starts_with('-')
                        && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
                };
                name.len() <= 253 && name.split('.').all(is_label)
            }
        };
        let is_port = port.is_none_or(|port| port.parse::<u16>().is_ok_and(|port| port > 0));
        (is_name && is_port).then(|| Self(authority.clone())).ok_or_else(bad)
    }
}

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl Host {
    /// Whether it is this machine, where a registry may do without TLS, as it may for docker.
    pub fn is_loopback(&self) -> bool {
        let name = self.0.rsplit_once(':').filter(|(_, port)| !port.contains(']')).map_or(&*self.0, |(name, _)| name);
        let bare = name.trim_start_matches('[').trim_end_matches(']');
        bare == "localhost"
            || bare.ends_with(".localhost")
            || bare.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
    }

    /// The addresses under which it may be, in the order in which they are tried: a server without TLS waits long for the
    /// rest of what is no request to it.
    pub fn addresses(&self) -> Vec<String> {
        let plain = self.is_loopback().then(|| format!("http://{self}"));
        plain.into_iter().chain([format!("https://{self}")]).collect()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn clients_write_a_registry_in_many_ways() {
        for (text, expected) in [
            ("registry.company", "registry.company"),
            ("https://registry.company/v2/", "registry.company"),
            ("registry.company/team/app", "registry.company"),
            ("HTTPS://Registry.Company:5000\n", "registry.company:5000"),
            ("http://[::1]:5000", "[::1]:5000"),
            ("[::1]", "[::1]"),
        ] {
            assert_eq!(text.parse::<Host>().map(|host| host.to_string()).ok().as_deref(), Some(expected), "{text}");
        }
        for text in ["", "https://", "user@registry", "a:b", "a:0", "a b", "-o/x..y", "a:1:2", "[x]", "ftp://a b"] {
            assert!(text.parse::<Host>().is_err(), "{text}");
        }
    }

    #[test]
    fn only_this_machine_does_without_tls() {
        for (text, expected) in [
            ("localhost:5000", true),
            ("berth.localhost", true),
            ("127.0.0.1", true),
            ("[::1]:5000", true),
            ("localhost.evil.com", false),
            ("registry.company", false),
            ("10.0.0.1:5000", false),
        ] {
            let host: Host = text.parse().expect("a host");
            assert_eq!(host.is_loopback(), expected, "{text}");
            assert_eq!(host.addresses().iter().any(|address| address.starts_with("http://")), expected);
        }
    }

    proptest! {
        #[test]
        fn nothing_panics_and_what_is_taken_is_taken_again(text: String) {
            if let Ok(host) = text.parse::<Host>() {
                prop_assert_eq!(host.to_string().parse::<Host>().ok(), Some(host));
            }
        }
    }
}
