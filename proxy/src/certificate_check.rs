//! What `verify` finds out about the certificate that we show.

use std::net::IpAddr;

use x509_parser::{
    extensions::GeneralName,
    pem::Pem,
    prelude::{FromDer, X509Certificate},
};

use crate::{config::Tls, store::now};

/// How soon an end is told, in seconds.
const SOON: i64 = 14 * 24 * 60 * 60;

/// What was found out.
#[derive(Default)]
pub struct Findings {
    /// What browsers and clients refuse.
    pub problems: Vec<String>,
    /// That it ends soon.
    pub soon: Option<String>,
}

/// Looks whether browsers and clients take it. One that can't be read was told already.
pub fn look(files: &Tls, host: &str) -> Findings {
    let mut findings = Findings::default();
    let Ok(pem) = std::fs::read(&files.certificate) else { return findings };
    // The first is ours, the others lead to an authority.
    let Some(Ok(first)) = Pem::iter_from_buffer(&pem).next() else { return findings };
    let Ok((_, certificate)) = X509Certificate::from_der(&first.contents) else { return findings };
    let found = &mut findings.problems;
    let validity = certificate.validity();
    let (begins, ends) = (validity.not_before, validity.not_after);
    if ends.timestamp() <= now() {
        found.push(format!("has expired ({ends}); renew it"));
    } else if ends.timestamp() <= now() + SOON {
        findings.soon = Some(format!("expires soon ({ends}); is it renewed by something?"));
    }
    if begins.timestamp() > now() {
        found.push(format!("is not valid yet ({begins}); is the clock right?"));
    }
    let names = names_of(&certificate);
    if !names.iter().any(|name| is_for(name, host)) {
        found.push(format!(
            "is for {}, and not for {host}, the host of http.externalUrl; get one for that host",
            if names.is_empty() { "no host at all".to_owned() } else { names.join(", ") }
        ));
    }
    findings
}

/// The hosts that it is for (RFC 9525: only the alternative names count).
fn names_of(certificate: &X509Certificate<'_>) -> Vec<String> {
    let Ok(Some(names)) = certificate.subject_alternative_name() else { return Vec::new() };
    let name = |name: &GeneralName<'_>| match name {
        GeneralName::DNSName(name) => Some((*name).to_owned()),
        GeneralName::IPAddress(bytes) => match bytes.len() {
            4 => <[u8; 4]>::try_from(*bytes).ok().map(|bytes| IpAddr::from(bytes).to_string()),
            16 => <[u8; 16]>::try_from(*bytes).ok().map(|bytes| IpAddr::from(bytes).to_string()),
            _ => None,
        },
        _ => None,
    };
    names.value.general_names.iter().filter_map(name).collect()
}

/// Whether a name of a certificate is for a host; `*` is one label (RFC 9525, section 6.3).
fn is_for(name: &str, host: &str) -> bool {
    let host = host.trim_start_matches('[').trim_end_matches(']');
    if name.eq_ignore_ascii_case(host) {
        return true;
    }
    let rest = |text: &str| text.split_once('.').map(|(_, rest)| rest.to_ascii_lowercase());
    name.starts_with("*.") && rest(name).is_some_and(|own| Some(own) == rest(host))
}

#[cfg(test)]
mod tests {
    use super::is_for;

    #[test]
    fn a_star_is_one_label() {
        for (name, host, expected) in [
            ("registry.company", "Registry.company", true),
            ("*.company", "registry.company", true),
            ("*.company", "a.registry.company", false),
            ("*.company", "company", false),
            ("other.company", "registry.company", false),
            ("::1", "[::1]", true),
        ] {
            assert_eq!(is_for(name, host), expected, "{name} {host}");
        }
    }
}
