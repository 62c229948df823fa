//! `extensions.events`

use std::{net::IpAddr, path::PathBuf, time::Duration};

use base64::{Engine, prelude::BASE64_STANDARD};
use berth_config::{Section, is_public_address};
use http::{HeaderMap, HeaderName, HeaderValue, header::AUTHORIZATION};
use url::{Host, Url};

use crate::events::{EventsConfig, Kind, SinkConfig};

/// How long a sink may take, if the file doesn't say.
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(30);

/// A key that is shorter could be guessed, in bytes.
const MIN_KEY_BYTES: usize = 16;

/// Reads the section; nothing, if nobody is told of anything.
pub fn read(section: Section<'_>, external_url: &str) -> Option<EventsConfig> {
    let is_enabled = section.flag("enable").unwrap_or(true);
    let source = section.text("source").unwrap_or(external_url).to_owned();
    let type_prefix = section.text("typePrefix").unwrap_or("zotregistry").to_owned();
    for (key, text) in [("source", &source), ("typePrefix", &type_prefix)] {
        if HeaderValue::from_str(text).is_err() || !text.is_ascii() {
            section.problem(key, "has letters that no header may have; expected ASCII");
        }
    }
    let sinks: Vec<SinkConfig> =
        section.sections("sinks").into_iter().filter_map(|sink| read_sink(sink, &type_prefix)).collect();
    for (i, sink) in sinks.iter().enumerate() {
        if sinks[..i].iter().any(|other| other.name() == sink.name()) {
            section.problem("sinks", format!("has {} twice; keep one", sink.name()));
        }
    }
    section.close();
    (is_enabled && !sinks.is_empty()).then_some(EventsConfig { source, type_prefix, sinks })
}

fn read_sink(sink: Section<'_>, type_prefix: &str) -> Option<SinkConfig> {
    match sink.text("type") {
        Some("http") => {}
        Some("nats") => {
            sink.warn("type", "is nats, which is not used: events are sent over HTTP; put a bridge there");
            return None;
        }
        _ => sink.problem("type", "is missing, or unknown; expected \"http\""),
    }
    let private_addresses = sink.flag("privateAddresses").unwrap_or(false);
    let proxy = sink.text("proxy").and_then(|text| read_url(&sink, "proxy", text));
    let address = match sink.text("address") {
        Some(text) => read_url(&sink, "address", text),
        None => {
            sink.problem("address", "is missing; expected a URL such as \"https://hooks.company/registry\"");
            None
        }
    };
    if let Some(address) = &address
        && !private_addresses
        && proxy.is_none()
        && is_private(address)
    {
        sink.problem(
            "address",
            "is an address of this network, which nothing is sent to by mistake; set privateAddresses to true if that is meant",
        );
    }
    let timeout = sink.duration("timeout").filter(|timeout| !timeout.is_zero()).unwrap_or(DEFAULT_TIMEOUT);
    let channel = sink.text("channel").and_then(|text| {
        let value = HeaderValue::from_str(text).ok().filter(|_| text.is_ascii());
        if value.is_none() {
            sink.problem("channel", "has letters that no header may have; expected ASCII");
        }
        value
    });
    let headers = read_headers(&sink);
    let tls = [sink.section("tls"), sink.section("tlsconfig")];
    let file = |key: &'static str| {
        let found = tls.iter().find_map(|tls| tls.text(key).map(|path| (tls, path)));
        found.map(|(tls, path)| {
            if let Err(e) = std::fs::File::open(path) {
                tls.problem(key, format!("{path} can't be read ({e}); make it readable for this user"));
            }
            PathBuf::from(path)
        })
    };
    let authorities = file("cacertfile");
    let certificate = file("certfile").zip(file("keyfile"));
    let signing_keys = read_keys(&sink);
    let kinds = read_kinds(&sink, type_prefix);
    let [tls, tlsconfig] = tls;
    tls.close();
    tlsconfig.close();
    let config = address.map(|address| SinkConfig {
        address,
        channel,
        timeout,
        headers,
        proxy,
        authorities,
        certificate,
        private_addresses,
        signing_keys,
        kinds,
    });
    if let Some(Err(problem)) = config.as_ref().map(SinkConfig::client) {
        sink.problem("tls", format!("{problem}; expected files in PEM"));
    }
    sink.close();
    config
}

fn read_url(sink: &Section<'_>, key: &'static str, text: &str) -> Option<Url> {
    let url = Url::parse(text).ok().filter(|url| matches!(url.scheme(), "http" | "https") && url.has_host());
    let problem = match &url {
        None => "is no URL; expected one such as \"https://hooks.company/registry\"",
        Some(url) if key == "address" && (!url.username().is_empty() || url.password().is_some()) => {
            "must not hold a password, which would stand in the log; put it into credentials"
        }
        Some(_) => return url,
    };
    sink.problem(key, problem);
    None
}

fn is_private(address: &Url) -> bool {
    match address.host() {
        Some(Host::Ipv4(ip)) => !is_public_address(IpAddr::V4(ip)),
        Some(Host::Ipv6(ip)) => !is_public_address(IpAddr::V6(ip)),
        Some(Host::Domain(name)) => name == "localhost" || name.ends_with(".localhost"),
        None => true,
    }
}

/// `headers` and `credentials`
fn read_headers(sink: &Section<'_>) -> HeaderMap {
    let mut headers = HeaderMap::new();
    for (name, text) in sink.text_entries("headers") {
        match (HeaderName::try_from(name), HeaderValue::from_str(text)) {
            (Ok(name), Ok(value)) if !is_ours(&name) => drop(headers.append(name, value)),
            (Ok(name), Ok(_)) => {
                sink.problem("headers", format!("has {name}, which Berth writes itself; take it out"));
            }
            _ => sink.problem("headers", "has one that is none; expected {\"Name\": \"value\"}"),
        }
    }
    let credentials = sink.section("credentials");
    let from_file = credentials.text("file").and_then(|path| match std::fs::read_to_string(path) {
        Ok(text) => Some(text.trim().to_owned()),
        Err(e) => {
            credentials.problem("file", format!("{path} can't be read ({e}); make it readable for this user"));
            None
        }
    });
    let secret = |key| credentials.text(key).map(str::to_owned);
    let (username, password, token) = (secret("username"), secret("password"), secret("token"));
    credentials.close();
    let authorization = match (username, token.or_else(|| from_file.clone())) {
        (Some(username), _) => {
            let password = password.or(from_file).unwrap_or_default();
            Some(format!("Basic {}", BASE64_STANDARD.encode(format!("{username}:{password}"))))
        }
        (None, Some(token)) => Some(format!("Bearer {token}")),
        (None, None) => None,
    };
    match authorization.map(|text| HeaderValue::from_str(&text)) {
        Some(Ok(mut value)) => {
            value.set_sensitive(true);
            headers.insert(AUTHORIZATION, value);
        }
        Some(Err(_)) => sink.problem("credentials", "can't stand in a header; expected ASCII without line breaks"),
        None => {}
    }
    headers
}

/// What no file may say instead of us.
fn is_ours(name: &HeaderName) -> bool {
    let name = name.as_str();
    name.starts_with("ce-") || matches!(name, "content-type" | "content-length" | "host" | "x-berth-signature")
}

fn read_keys(sink: &Section<'_>) -> Vec<Vec<u8>> {
    let paths = sink.texts("signingKeyFiles").unwrap_or_default();
    if paths.len() > 2 {
        sink.problem("signingKeyFiles", "has more than two; expected the new key and, for a while, the old one");
    }
    let read = |path: &String| match std::fs::read(path) {
        Ok(bytes) if bytes.trim_ascii().len() < MIN_KEY_BYTES => {
            sink.problem("signingKeyFiles", format!("{path} is too short; expected {MIN_KEY_BYTES} bytes at least"));
            None
        }
        Ok(bytes) => Some(bytes.trim_ascii().to_vec()),
        Err(e) => {
            let problem = format!("{path} can't be read ({e}); make it readable for this user");
            sink.problem("signingKeyFiles", problem);
            None
        }
    };
    paths.iter().filter_map(read).collect()
}

fn read_kinds(sink: &Section<'_>, type_prefix: &str) -> Vec<Kind> {
    let Some(names) = sink.texts("types") else { return Kind::ALL.to_vec() };
    let known = || Kind::ALL.map(Kind::as_str).join(", ");
    let read = |(i, name): (usize, &String)| {
        let short = name.strip_prefix(type_prefix).and_then(|name| name.strip_prefix('.')).unwrap_or(name);
        let kind = Kind::ALL.into_iter().find(|kind| kind.as_str() == short);
        if kind.is_none() {
            sink.problem(
                &format!("types[{i}]"),
                format!("is {name:?}, which never happens here; expected {}", known()),
            );
        }
        kind
    };
    names.iter().enumerate().filter_map(read).collect()
}
