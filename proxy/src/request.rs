//! What is known of a request beside the request itself: who it comes from, and through what.

use std::{
    net::{IpAddr, SocketAddr},
    sync::{Arc, OnceLock},
};

use http::{
    HeaderMap, HeaderName, HeaderValue, Method,
    header::{CONTENT_TYPE, USER_AGENT},
};
use ipnet::IpNet;

use crate::{
    config::ExternalUrl,
    events::Asker,
    identity::{ConnectionInfo, Refusal, certificate::ClientCertificate, token::Push},
    observe::Origin,
    policy::Circumstances,
    store::now,
};

const FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");

/// How much the log tells of a name that somebody has tried.
const MAX_LOGGED_NAME_CHARS: usize = 200;

/// Of one request.
#[derive(Clone, Debug, Default)]
pub struct RequestInfo {
    /// In every log line about the request, and on every page that says what went wrong.
    pub id: String,
    /// Where it came from.
    pub client: Option<IpAddr>,
    /// The client certificate that the connection was made with.
    pub certificate: Option<Arc<ClientCertificate>>,
    /// The version of TLS as zot writes it (`1.3`), if the connection is.
    pub tls: Option<Arc<str>>,
    forwarded_for: String,
    user_agent: String,
    /// What became known of it on its way, whoever found it out.
    findings: Arc<Findings>,
}

/// What becomes known of a request on its way, for its line in the log, the counters and the audit log.
#[derive(Debug, Default)]
struct Findings {
    operation: OnceLock<&'static str>,
    caller: OnceLock<(String, &'static str)>,
    tried: OnceLock<String>,
    ruling: OnceLock<Ruling>,
}

/// What was decided about a request.
#[derive(Debug)]
pub struct Ruling {
    /// In one word.
    pub decision: Decision,
    /// What of the file decided, if something did.
    pub rule: Option<String>,
    /// Why not.
    pub reason: Option<String>,
}

/// In one word, what was decided about a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision {
    /// It is served.
    Allowed,
    /// It shows no credential, and needs one.
    Challenged,
    /// Its credential is no good, or can't be checked now.
    Refused,
    /// Its credential is good, and may not do this.
    Denied,
}

impl Decision {
    /// The word.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Allowed => "allowed",
            Self::Challenged => "challenged",
            Self::Refused => "refused",
            Self::Denied => "denied",
        }
    }
}

impl RequestInfo {
    /// Of a request of which nothing is known yet.
    pub fn new(id: String) -> Self {
        Self { id, ..Self::default() }
    }

    /// Notes where a request comes from: the peer, or whom a trusted proxy names. Whatever anybody else says of itself
    /// isn't looked at.
    pub fn arrive(&mut self, peer: Option<IpAddr>, headers: &HeaderMap, trusted: &[IpNet]) {
        let peer = peer.map(|peer| peer.to_canonical());
        let is_trusted = |address: &IpAddr| trusted.iter().any(|net| net.contains(address));
        self.client = peer;
        self.user_agent = text(headers, &USER_AGENT);
        if !peer.as_ref().is_some_and(is_trusted) {
            return;
        }
        self.forwarded_for = text(headers, &FORWARDED_FOR);
        // Each proxy appends whom it has seen: the last one that isn't a proxy of ours is the client. Read as bytes and
        // from the end, since what stands before is the client's own. Who can't be read is nobody.
        let values: Vec<&HeaderValue> = headers.get_all(&FORWARDED_FOR).iter().collect();
        let named = values.iter().rev().flat_map(|value| value.as_bytes().rsplit(|byte| *byte == b','));
        for named in named {
            self.client = std::str::from_utf8(named).ok().and_then(|text| address(text.trim()));
            if !self.client.as_ref().is_some_and(is_trusted) {
                return;
            }
        }
    }

    /// Whether somebody who isn't trusted says on whose behalf it comes: a proxy that `sidecar.trustedProxies` lacks, or
    /// anybody.
    pub fn is_forwarded_by_a_stranger(&self, headers: &HeaderMap) -> bool {
        self.forwarded_for.is_empty() && headers.contains_key(FORWARDED_FOR)
    }

    /// Notes what it is.
    pub fn asks_for(&self, operation: &'static str) {
        let _ = self.findings.operation.set(operation);
    }

    /// What it is: the name of an operation, or of a kind of page.
    pub fn operation(&self) -> &'static str {
        self.findings.operation.get().copied().unwrap_or("unknown")
    }

    /// Notes who sends it, and how they proved it.
    pub fn identified(&self, user: &str, credential: &'static str) {
        let _ = self.findings.caller.set((user.to_owned(), credential));
    }

    /// Who sends it.
    pub fn user(&self) -> &str {
        self.findings.caller.get().map_or("anonymous", |(user, _)| user)
    }

    /// The kind of credential that it shows, if that is any good.
    pub fn credential(&self) -> &'static str {
        self.findings.caller.get().map_or("none", |(_, credential)| credential)
    }

    /// Notes that its credential wasn't taken, and whose it was said to be.
    pub fn refused(&self, tried: Option<&str>, refusal: &Refusal) {
        if let Some(tried) = tried {
            let _ = self.findings.tried.set(tried.chars().take(MAX_LOGGED_NAME_CHARS).collect());
        }
        self.decided(Ruling { decision: Decision::Refused, rule: None, reason: Some(refusal.to_string()) });
    }

    /// Whose credential it was said to be that wasn't taken.
    pub fn tried(&self) -> Option<&str> {
        self.findings.tried.get().map(String::as_str)
    }

    /// Notes what was decided about it.
    pub fn decided(&self, ruling: Ruling) {
        let _ = self.findings.ruling.set(ruling);
    }

    /// What was decided about it.
    pub fn ruling(&self) -> Option<&Ruling> {
        self.findings.ruling.get()
    }

    /// All of that for the audit log.
    pub fn origin(&self) -> Origin<'_> {
        let ruling = self.ruling();
        Origin {
            subject: self.user(),
            credential: self.credential(),
            client: self.client,
            user_agent: &self.user_agent,
            tried: self.tried(),
            rule: ruling.and_then(|ruling| ruling.rule.as_deref()),
            reason: ruling.and_then(|ruling| ruling.reason.as_deref()),
            request: &self.id,
        }
    }

    /// Who sends it, for whoever is told of events.
    pub fn asker(&self, method: &Method) -> Asker {
        Asker {
            actor: self.user().to_owned(),
            addr: self.client.map(|client| client.to_string()).unwrap_or_default(),
            method: method.to_string(),
            user_agent: self.user_agent.clone(),
        }
    }

    /// Where it comes from, for who looks at its credential.
    pub fn connection<'a>(&'a self, push: Option<Push<'a>>) -> ConnectionInfo<'a> {
        ConnectionInfo { client: self.client, certificate: self.certificate.as_deref(), push }
    }

    /// What conditions may look at.
    pub fn circumstances(&self, method: &Method) -> Circumstances {
        Circumstances {
            time: now(),
            method: method.to_string(),
            user_agent: self.user_agent.clone(),
            client: self.client,
            forwarded_for: self.forwarded_for.clone(),
            tls: self.tls.as_deref().map(str::to_owned),
        }
    }
}

/// What a form of any page can send.
const FORM_TYPES: [&str; 3] = ["application/x-www-form-urlencoded", "multipart/form-data", "text/plain"];

/// Whether a request that changes something comes from a page of ours, or from no browser at all.
///
/// A browser says where a request comes from in `Sec-Fetch-Site`, or at least in `Origin`; a page can't keep it from
/// doing so. What an old browser may send without either is what a form can send (the simple requests of the Fetch
/// standard, "CORS-safelisted request-header").
pub fn is_our_own(headers: &HeaderMap, external_url: &ExternalUrl) -> bool {
    let text = |name: &str| headers.get(name).map(|value| value.to_str().unwrap_or("?"));
    match (text("sec-fetch-site"), text("origin")) {
        (Some(site), _) => matches!(site, "same-origin" | "none"),
        (None, Some(origin)) => url::Url::parse(origin).is_ok_and(|url| url.origin() == external_url.origin()),
        (None, None) => {
            let content_type = headers.get(CONTENT_TYPE).map(|value| value.to_str().unwrap_or("text/plain"));
            let essence = content_type.and_then(|text| text.split(';').next()).unwrap_or_default().trim();
            !FORM_TYPES.iter().any(|form| essence.eq_ignore_ascii_case(form))
        }
    }
}

/// An address, with or without a port.
fn address(text: &str) -> Option<IpAddr> {
    let without_port = || text.parse::<SocketAddr>().ok().map(|address| address.ip());
    let bare = text.strip_prefix('[').and_then(|text| text.strip_suffix(']')).unwrap_or(text);
    bare.parse().ok().or_else(without_port).map(|address: IpAddr| address.to_canonical())
}

/// All values of a header, as one.
fn text(headers: &HeaderMap, name: &HeaderName) -> String {
    let values: Vec<&str> = headers.get_all(name).iter().filter_map(|value| value.to_str().ok()).collect();
    values.join(", ").chars().take(1000).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn client(peer: &str, forwarded: &[&str], trusted: &[&str]) -> String {
        let mut headers = HeaderMap::new();
        for value in forwarded {
            headers.append(FORWARDED_FOR, HeaderValue::from_str(value).expect("a header"));
        }
        let trusted: Vec<IpNet> = trusted.iter().map(|net| net.parse().expect("a net")).collect();
        let mut info = RequestInfo::default();
        info.arrive(peer.parse().ok(), &headers, &trusted);
        info.client.map(|client| client.to_string()).unwrap_or_default()
    }

    #[test]
    fn only_trusted_proxies_name_the_client() {
        let trusted = ["10.0.0.0/8"];
        assert_eq!(client("192.0.2.1", &["198.51.100.1"], &[]), "192.0.2.1");
        assert_eq!(client("192.0.2.1", &["198.51.100.1"], &trusted), "192.0.2.1");
        assert_eq!(client("10.0.0.1", &["198.51.100.1"], &trusted), "198.51.100.1");
        // What the client itself sent stands before what our proxies append.
        assert_eq!(client("10.0.0.1", &["1.1.1.1, 198.51.100.1, 10.0.0.2"], &trusted), "198.51.100.1");
        assert_eq!(client("10.0.0.1", &["1.1.1.1", "198.51.100.1"], &trusted), "198.51.100.1");
        assert_eq!(client("10.0.0.1", &["1.1.1.1", "198.51.100.1:4711"], &trusted), "198.51.100.1");
        assert_eq!(client("10.0.0.1", &["[2001:db8::1]:4711"], &trusted), "2001:db8::1");
        // Never the proxy's own address, and never what the client wrote, however long it is.
        assert_eq!(client("10.0.0.1", &["1.1.1.1, what"], &trusted), "");
        let long = format!("{}10.0.0.5, 198.51.100.1", "1.1.1.1,".repeat(1000));
        assert_eq!(client("10.0.0.1", &[&long], &trusted), "198.51.100.1");
        let bytes =
            [b"\xe9".as_slice(), b"\xe9, 198.51.100.1"].map(|bytes| HeaderValue::from_bytes(bytes).expect("bytes"));
        for (value, expected) in bytes.into_iter().zip([None, Some("198.51.100.1")]) {
            let headers = HeaderMap::from_iter([(FORWARDED_FOR, value)]);
            let mut info = RequestInfo::default();
            info.arrive("10.0.0.1".parse().ok(), &headers, &["10.0.0.0/8".parse().expect("a net")]);
            assert_eq!(info.client, expected.map(|text| text.parse().expect("an address")));
        }
        assert_eq!(client("10.0.0.1", &[], &trusted), "10.0.0.1");
        assert_eq!(client("::ffff:10.0.0.1", &["198.51.100.1"], &trusted), "198.51.100.1");
    }

    fn ours(headers: &[(&'static str, &'static str)]) -> bool {
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.insert(*name, HeaderValue::from_static(value));
        }
        is_our_own(&map, &ExternalUrl::parse("https://registry.company").expect("a URL"))
    }

    #[test]
    fn only_our_own_pages_change_anything() {
        const FORM: (&str, &str) = ("content-type", "application/x-www-form-urlencoded");
        assert!(ours(&[FORM, ("sec-fetch-site", "same-origin"), ("origin", "https://registry.company")]));
        assert!(ours(&[FORM, ("origin", "https://registry.company")]));
        assert!(ours(&[("content-type", "application/json")]));
        // docker's pushes, with a client certificate.
        assert!(ours(&[]) && ours(&[("content-type", "application/octet-stream")]));
        for foreign in [
            &[FORM, ("sec-fetch-site", "cross-site")][..],
            &[FORM, ("sec-fetch-site", "same-site"), ("origin", "https://registry.company")],
            &[FORM, ("origin", "https://evil.example")],
            &[FORM, ("origin", "http://registry.company")],
            &[FORM, ("origin", "null")],
            &[FORM],
            &[("content-type", "text/plain; charset=utf-8")],
            &[("content-type", "Multipart/form-data; boundary=x")],
        ] {
            assert!(!ours(foreign), "{foreign:?}");
        }
    }
}
