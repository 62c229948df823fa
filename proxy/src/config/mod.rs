//! What the proxy reads of the configuration file: `http`, `accessControl` (zot's) and `sidecar` (ours).

mod access;
mod events;
mod extensions;
mod provider;
mod restart;
mod trust_roots;
mod workloads;

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    time::Duration,
};

use berth_config::{File, Note, Problems, Section, Upstream};
use berth_observe::{Collector, Log};
use ipnet::IpNet;
use url::Url;

use crate::{
    events::EventsConfig,
    identity::{
        certificate::NameAttribute,
        htpasswd::{self, PasswordFile},
        token::DEFAULT_LIFETIME,
        workload::Rule,
    },
    oidc::ProviderConfig,
    policy::Rules,
};

/// The proxy's settings.
pub struct Config {
    /// Where to listen.
    pub listen: SocketAddr,
    /// The certificate chain and its key, in PEM; plain HTTP without.
    pub tls: Option<Tls>,
    /// The address that people and clients use. Every URL that we write begins with it.
    pub external_url: ExternalUrl,
    /// Who signs people in.
    pub providers: Vec<ProviderConfig>,
    /// Whose workloads' tokens are taken, and which.
    pub workloads: Vec<Rule>,
    /// The users of the password file, if there is one.
    pub passwords: Option<PasswordFile>,
    /// Which part of a client certificate is the user's name.
    pub certificate_names: Vec<NameAttribute>,
    /// Other files whose change makes this one to be read again.
    pub watched: Vec<PathBuf>,
    /// Proxies in front of this one, whose `X-Forwarded-For` is believed.
    pub trusted_proxies: Vec<IpNet>,
    /// How long requests may go on after the proxy was told to stop.
    pub drain_timeout: Duration,
    /// How many connections one address may have at once, if that is bounded.
    pub connections_per_address: Option<usize>,
    /// Other origins that a sign-in may return to.
    pub callback_origins: Vec<url::Origin>,
    /// Whether people may make API keys.
    pub api_keys: bool,
    /// Whether cookies are for https alone.
    pub secure_cookies: bool,
    /// Who may do what.
    pub rules: Rules,
    /// Where the registry is.
    pub upstream: Upstream,
    /// Where the mirror of other registries is, if there is one.
    pub mirror: Option<Upstream>,
    /// Where the counters are, beside `/metrics`.
    pub metrics_path: String,
    /// Who is told of what happens, if anybody is.
    pub events: Option<EventsConfig>,
    /// What is remembered.
    pub state: State,
    /// What to log, and where to.
    pub log: Log,
    /// Where traces are sent to, if they are.
    pub traces: Option<Collector>,
}

/// `http.tls`
#[derive(Clone)]
pub struct Tls {
    /// The chain, PEM.
    pub certificate: PathBuf,
    /// The key, PEM.
    pub key: PathBuf,
    /// The authorities of client certificates, PEM.
    pub client_authorities: Option<PathBuf>,
}

/// `sidecar.database`, `secretFile` and `session`
pub struct State {
    /// A `sqlite:` or `postgres://` URL.
    pub database: String,
    /// The key that seals what the database holds; never in the database itself.
    pub secret_file: PathBuf,
    /// A session ends when it wasn't used for so long.
    pub session_idle: Duration,
    /// A session ends after so long in any case.
    pub session_absolute: Duration,
    /// Somebody whose provider can't be asked about them any more is suspended after so long.
    pub session_grace: Duration,
    /// A token of the token service lives so long.
    pub token_lifetime: Duration,
    /// A job's refresh token ends after so long.
    pub refresh_token_lifetime: Duration,
}

/// `http.externalUrl`: an origin, kept without a slash at its end.
#[derive(Clone, Debug)]
pub struct ExternalUrl {
    url: Url,
    text: String,
}

impl ExternalUrl {
    /// Reads a URL that has nothing but a scheme and an authority.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn parse(text: &str) -> Result<Self, &'static str> {
        let url = Url::parse(text).map_err(|_| "is not a URL")?;
        if !matches!(url.scheme(), "http" | "https") || url.host().is_none() {
            return Err("must begin with http:// or https://");
        }
        if !matches!(url.path(), "" | "/") || url.query().is_some() || url.fragment().is_some() {
            return Err("must be only a scheme and a host");
        }
        if !url.username().is_empty() || url.password().is_some() {
            return Err("must not hold a password");
        }
        let text = url.as_str().trim_end_matches('/').to_owned();
        Ok(Self { url, text })
    }

    /// The absolute URL of `path`, which begins with a slash.
    pub fn join(&self, path: &str) -> String {
        format!("{}{path}", self.text)
    }

    /// `host[:port]`, which is also the `service` of our tokens.
    pub fn authority(&self) -> &str {
        self.url.authority()
    }

    /// The host alone.
    pub fn host(&self) -> &str {
        self.url.host_str().unwrap_or_default()
    }

    /// Whether it is https.
    pub fn is_https(&self) -> bool {
        self.url.scheme() == "https"
    }

    /// Its origin, to compare with a browser's.
    pub fn origin(&self) -> url::Origin {
        self.url.origin()
    }
}

impl Config {
    /// Reads the file at `path`, and the files that it names; gives the warnings beside the settings.
    ///
    /// # Errors
    /// Every problem of the parts that the proxy reads.
    pub fn read(path: &Path) -> Result<(Self, Vec<Note>), Problems> {
        Self::from_file(File::read(path)?)
    }

    fn from_file(file: File) -> Result<(Self, Vec<Note>), Problems> {
        let root = file.root();
        let log = Log::read(&root);
        let sidecar = root.section("sidecar");
        let http = root.section("http");
        let upstream = Upstream::read(&sidecar);
        let mirror = Upstream::read_mirror(&sidecar);
        let state = read_state(&sidecar);
        let trusted_proxies = read_trusted_proxies(&sidecar);
        let traces = Collector::read(&sidecar);
        let connections_per_address = sidecar.number("connectionsPerAddress").and_then(|n| usize::try_from(n).ok());
        // Docker kills after ten seconds.
        let drain_timeout = sidecar.duration("drainTimeout").unwrap_or(Duration::from_secs(8));
        if connections_per_address.is_some_and(|most| most < 8) {
            sidecar.problem("connectionsPerAddress", "is too few for one browser; expected 8 at least, or nothing");
        }
        sidecar.close();
        let listen = SocketAddr::new(read_address(&http), http.port("port").unwrap_or(8080));
        let external_url = read_external_url(&http);
        let tls = read_tls(http.section("tls"));

        let auth = http.section("auth");
        let openid = auth.section("openid");
        let providers: Vec<_> = openid
            .entries("providers")
            .into_iter()
            .filter_map(|(name, section)| provider::read(name, section))
            .collect();
        let callback_origins = read_origins(&openid);
        if openid.is_present() && providers.is_empty() {
            openid.problem("providers", "has no provider that can be used; expected {\"oidc\": {\"issuer\": …}}");
        }
        openid.close();
        let api_keys = auth.flag("apikey").unwrap_or(true);
        let secure_cookies = auth.flag("secureSession").unwrap_or(external_url.is_https());
        if secure_cookies && !external_url.is_https() {
            auth.problem(
                "secureSession",
                "can't be true while http.externalUrl is plain http; use https, or leave it out",
            );
        }
        let workloads = workloads::read(auth.section("bearer"));
        let mut watched: Vec<PathBuf> = Vec::new();
        let passwords = read_passwords(auth.section("htpasswd"), &mut watched);
        let certificate_names = read_certificate_names(auth.section("mtls"), tls.as_ref());
        watched.extend(providers.iter().flat_map(|provider| provider.files.clone()));
        watched.extend(workloads.iter().filter_map(|rule| rule.issuer.authority.file().map(Path::to_owned)));
        let certificates = tls.as_ref().is_some_and(|tls| tls.client_authorities.is_some());
        let nobody = providers.is_empty() && workloads.is_empty() && passwords.is_none() && !certificates;
        let rules = access::read(http.section("accessControl"));
        // A registry for everybody needs nobody to sign in.
        read_other_auth(auth, &http, nobody && !rules.has_anonymous());
        read_other_http(http);
        let extensions = extensions::read(root.section("extensions"), &external_url.join(""));
        if extensions.is_mirror && !rules.lets_fetch() {
            let mend = "write \"onDemand\": true into a policy of http.accessControl that lets read";
            root.section("extensions").warn("sync", format!("lets nobody fetch anything; {mend}"));
        }
        read_other_root(root);
        let config = Self {
            listen,
            tls,
            external_url,
            providers,
            workloads,
            passwords,
            certificate_names,
            watched,
            trusted_proxies,
            drain_timeout,
            connections_per_address,
            callback_origins,
            api_keys,
            secure_cookies,
            rules,
            upstream,
            metrics_path: extensions.metrics_path,
            mirror: extensions.is_mirror.then_some(mirror),
            events: extensions.events,
            state,
            log,
            traces,
        };
        Ok((config, file.finish()?))
    }
}

fn read_address(http: &Section<'_>) -> IpAddr {
    // Everyone may knock: whoever isn't let in by a rule stays out.
    let everywhere = IpAddr::V4(Ipv4Addr::UNSPECIFIED);
    match http.text("address") {
        None => everywhere,
        Some("localhost") => IpAddr::V4(Ipv4Addr::LOCALHOST),
        Some(text) => text.parse().unwrap_or_else(|_| {
            http.problem("address", "is not an IP address; expected one such as \"0.0.0.0\" or \"127.0.0.1\"");
            everywhere
        }),
    }
}

fn read_external_url(http: &Section<'_>) -> ExternalUrl {
    let example = "expected the address that people and clients use, such as \"https://registry.company\"";
    let reason = match http.text("externalUrl").map(ExternalUrl::parse) {
        Some(Ok(url)) => return url,
        Some(Err(reason)) => reason,
        None => "is missing",
    };
    http.problem("externalUrl", format!("{reason}; {example}"));
    // Never used: a problem was recorded.
    let Ok(url) = ExternalUrl::parse("http://localhost") else { unreachable!("a constant URL") };
    url
}

fn read_tls(tls: Section<'_>) -> Option<Tls> {
    if !tls.is_present() {
        return None;
    }
    let file = |key: &'static str| {
        let Some(path) = tls.text(key) else {
            tls.problem(key, "is missing; expected the path of a PEM file, or no \"tls\" section for plain http");
            return None;
        };
        if let Err(e) = std::fs::File::open(path) {
            tls.problem(key, format!("{path} can't be read ({e}); make it readable for this user"));
        }
        Some(PathBuf::from(path))
    };
    let (certificate, key) = (file("cert"), file("key"));
    let client_authorities = tls.text("cacert").is_some().then(|| file("cacert")).flatten();
    tls.close();
    Some(Tls { certificate: certificate?, key: key?, client_authorities })
}

fn read_origins(openid: &Section<'_>) -> Vec<url::Origin> {
    let origins = openid.texts("callbackAllowOrigins").unwrap_or_default();
    let parsed = origins.iter().enumerate().filter_map(|(i, text)| match ExternalUrl::parse(text) {
        Ok(url) => Some(url.origin()),
        Err(reason) => {
            let key = format!("callbackAllowOrigins[{i}]");
            openid.problem(&key, format!("{reason}; expected an origin such as \"https://ui.company\""));
            None
        }
    });
    parsed.collect()
}

fn read_state(sidecar: &Section<'_>) -> State {
    let database = sidecar.text("database").unwrap_or("sqlite:/var/lib/berth/proxy.db");
    let file = database.strip_prefix("sqlite:").map(|path| path.split('?').next().unwrap_or(path));
    let server = database.starts_with("postgres://") || database.starts_with("postgresql://");
    if !server && file.is_none_or(str::is_empty) {
        sidecar.problem(
            "database",
            "is not supported; expected \"sqlite:/var/lib/berth/proxy.db\", or \"postgres://user:password@host/name\" for \
             more than one replica",
        );
    }
    let secret_file = sidecar.text("secretFile").map(PathBuf::from);
    if server && secret_file.is_none() {
        sidecar.problem(
            "secretFile",
            "is missing; expected a file that all replicas have, since what one seals the others must open",
        );
    }
    let secret_file = secret_file.unwrap_or_else(|| Path::new(file.unwrap_or_default()).with_extension("key"));
    let session = sidecar.section("session");
    let idle = session.duration("idle").unwrap_or(Duration::from_hours(2));
    let absolute = session.duration("absolute").unwrap_or(Duration::from_hours(24));
    if idle < Duration::from_mins(1) {
        session.problem("idle", "is too short; expected a minute at least, such as \"2h\"");
    }
    if absolute < idle {
        session.problem("absolute", "is shorter than session.idle; expected something longer, such as \"24h\"");
    }
    let session_grace = session.duration("grace").unwrap_or(Duration::from_hours(24));
    session.close();
    let token_lifetime = sidecar.duration("tokenLifetime").unwrap_or(DEFAULT_LIFETIME);
    if token_lifetime > DEFAULT_LIFETIME || token_lifetime < Duration::from_secs(1) {
        sidecar.problem("tokenLifetime", "is not possible; expected a quarter of an hour at most, such as \"15m\"");
    }
    let refresh_token_lifetime = sidecar.duration("refreshTokenLifetime").unwrap_or(Duration::from_hours(1));
    if refresh_token_lifetime > Duration::from_hours(24) {
        sidecar.problem("refreshTokenLifetime", "is too long; expected a day at most, such as \"1h\"");
    }
    let (session_idle, session_absolute) = (idle, absolute);
    State {
        database: database.to_owned(),
        secret_file,
        session_idle,
        session_absolute,
        session_grace,
        token_lifetime,
        refresh_token_lifetime,
    }
}

/// `sidecar.trustedProxies`: nobody, unless they are named.
fn read_trusted_proxies(sidecar: &Section<'_>) -> Vec<IpNet> {
    let texts = sidecar.texts("trustedProxies").unwrap_or_default();
    let parsed = texts.iter().enumerate().filter_map(|(i, text)| {
        let net = text.parse::<IpNet>().or_else(|_| text.parse::<IpAddr>().map(IpNet::from));
        let key = format!("trustedProxies[{i}]");
        match net {
            Ok(net) if net.prefix_len() == 0 => {
                sidecar.problem(&key, "is everybody, who could then say to come from anywhere; expected your proxies");
                None
            }
            Ok(net) => Some(net),
            Err(_) => {
                sidecar.problem(&key, "is no address; expected one such as \"10.0.0.1\" or \"10.0.0.0/24\"");
                None
            }
        }
    });
    parsed.collect()
}

/// `http.auth.htpasswd`
fn read_passwords(section: Section<'_>, watched: &mut Vec<PathBuf>) -> Option<PasswordFile> {
    if !section.is_present() {
        return None;
    }
    let path = section.text("path").map(PathBuf::from);
    let read = match &path {
        None => Err("is missing; expected the path of a file that `htpasswd -B` has written".to_owned()),
        Some(path) => std::fs::read_to_string(path)
            .map_err(|e| format!("{} can't be read ({e}); make it readable for this user", path.display()))
            .and_then(|text| htpasswd::parse(&text).map_err(|e| format!("{}: {e}", path.display()))),
    };
    let (users, left_out) = read.map_err(|problem| section.problem("path", problem)).unwrap_or_default();
    for line in left_out {
        section.warn("path", line);
    }
    watched.extend(path);
    section.close();
    Some(users)
}

/// `http.auth.mtls`
fn read_certificate_names(section: Section<'_>, tls: Option<&Tls>) -> Vec<NameAttribute> {
    let expected = "expected CommonName, Subject, Email, DNSName or URI";
    let names = section.texts("identityAttributes").unwrap_or_default();
    let parsed = names.iter().enumerate().filter_map(|(i, name)| {
        let attribute = NameAttribute::from_name(name);
        if attribute.is_none() {
            section.problem(&format!("identityAttributes[{i}]"), format!("is no part of a certificate; {expected}"));
        }
        attribute
    });
    let mut parsed: Vec<NameAttribute> = parsed.collect();
    if parsed.is_empty() {
        parsed.push(NameAttribute::CommonName);
    }
    for key in ["uriSanPattern", "uriSanIndex", "dnsSanIndex", "emailSanIndex"] {
        section.refuse(key, "the first name of its kind is taken; give the user's name a place of its own");
    }
    if section.is_present() && tls.is_none_or(|tls| tls.client_authorities.is_none()) {
        section
            .problem("identityAttributes", "needs client certificates; expected their authorities in http.tls.cacert");
    }
    section.close();
    parsed
}

/// zot's other ways to sign in: refused where leaving them out would change who gets in.
fn read_other_auth(auth: Section<'_>, http: &Section<'_>, no_provider: bool) {
    auth.refuse("ldap", "connect the directory to authentik, which signs people in from it");
    auth.ignore("failDelay", "failed sign-ins are counted, and limited per client and user");
    auth.ignore("sessionKeysFile", "sessions are in sidecar.database, sealed with sidecar.secretFile");
    auth.ignore("sessionDriver", "sessions are in sidecar.database");
    if no_provider {
        http.problem(
            "auth",
            "signs nobody in; expected http.auth.openid.providers.oidc with the issuer of your authentik application, or an \
             anonymousPolicy in http.accessControl for a registry that is for everybody",
        );
    }
    auth.close();
}

fn read_other_http(http: Section<'_>) {
    http.ignore("realm", "clients are asked for a bearer token, of the realm that externalUrl gives");
    http.ignore("allowOrigin", "browsers of other origins are not let in");
    http.ignore("ratelimit", "there is no limit by method");
    http.ignore("compat", "Docker's manifests are always accepted");
    for key in ["readTimeout", "writeTimeout"] {
        http.ignore(key, "a request may take as long as it goes on; one that is silent for two minutes ends");
    }
    http.close();
}

fn read_other_root(root: Section<'_>) {
    for key in ["storage", "log"] {
        root.not_ours(key);
    }
    root.ignore("distSpecVersion", "the newest one is served");
    root.ignore("scheduler", "there is nothing to schedule");
    root.ignore("cluster", "replicas share a database and an object store");
    root.close();
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<(Config, Vec<Note>), Vec<String>> {
        let file = File::parse(text).expect("JSON");
        Config::from_file(file).map_err(|Problems(notes)| notes.iter().map(ToString::to_string).collect())
    }

    /// authentik's guide "Integrate with Zot", with the credentials file of the test.
    fn guide(credentials: &Path) -> String {
        serde_json::json!({"http": {"externalUrl": "https://zot.company/", "port": "8080", "auth": {"openid": {
            "providers": {"oidc": {"credentialsFile": credentials, "keypath": "",
                "issuer": "https://authentik.company/application/o/zot/",
                "scopes": ["openid", "profile", "email"]}}}}}})
        .to_string()
    }

    #[test]
    fn the_guide_s_files_are_read_as_they_are() {
        let folder = tempfile::tempdir().expect("a folder");
        let credentials = folder.path().join("oidc-credentials.json");
        std::fs::write(&credentials, r#"{"clientid": "id", "clientsecret": "secret"}"#).expect("a file");
        let (config, warnings) = read(&guide(&credentials)).expect("the guide's configuration");
        assert!(warnings.is_empty(), "{warnings:?}");
        assert_eq!(config.listen.port(), 8080);
        assert_eq!(config.external_url.join("/x"), "https://zot.company/x");
        assert!(config.secure_cookies && config.api_keys);
        assert_eq!(config.providers[0].client_id, "id");
    }

    #[test]
    fn the_reference_has_every_key_that_the_proxy_reads() {
        let condition = r#"{"expression": "req.tag == ''", "message": "x"}"#;
        let policy = format!(r#"{{"users": [], "groups": [], "actions": [], "conditions": [{condition}]}}"#);
        let text = format!(
            r#"{{"http": {{"tls": {{}}, "auth": {{"openid": {{"providers": {{"NAME": {{"scim": {{}}}}}}}}, "bearer": {{"oidc": [{{
                "issuer": "https://x", "claimMapping": {{"variables": [{{}}], "validations": [{{}}]}}}}]}}, "htpasswd": {{}}, "mtls": {{}}}},
                "accessControl": {{"groups": {{"NAME": {{}}}}, "repositories": {{"NAME": {{"policies": [{policy}]}}}},
                "adminPolicy": {policy}, "metrics": {{}}}}}},
                "sidecar": {{"session": {{}}}}, "extensions": {{"metrics": {{"prometheus": {{}}}}, "lint": {{}},
                "events": {{"sinks": [{{"type": "http", "tls": {{}}, "tlsconfig": {{}}, "credentials": {{}}}}]}}}}}}"#
        );
        let file = File::parse(&text).expect("JSON");
        let read = file.record();
        let _ = Config::from_file(file);
        berth_config::reference::must_describe("the proxy", &read.keys());
        berth_config::reference::must_be_read(&["http.", "sidecar.", "log.", "extensions.events."], &read.keys());
    }

    #[test]
    fn every_problem_is_told_at_once() {
        let problems = read(
            r#"{"http": {"port": "eighty", "auth": {"ldap": {}, "openid": {"providers": {"oidc": {"issuer": "x", "isuer": ""}}}},
                "accessControl": {"adminPolcy": {}, "repositories": {"**": {"polices": []}}}}, "sidecar": {"database": "mysql://x", "databse": ""}}"#,
        );
        let problems = problems.err().expect("problems");
        for path in [
            "http.port:",
            "http.externalUrl:",
            "http.auth.ldap:",
            "http.auth.openid.providers.oidc.issuer:",
            "http.auth.openid.providers.oidc.clientid:",
            "http.accessControl.repositories.**.polices:",
            "sidecar.database:",
            "sidecar.databse:",
            "http.auth.openid.providers.oidc.isuer:",
            "http.accessControl.adminPolcy:",
        ] {
            assert!(problems.iter().any(|p| p.starts_with(path)), "{path} is missing in {problems:#?}");
        }
    }

    #[test]
    fn nobody_is_let_in_by_an_empty_file() {
        let problems = read(r#"{"http": {"externalUrl": "http://localhost"}}"#).err().expect("problems");
        assert!(problems[0].starts_with("http.auth: signs nobody in"), "{problems:?}");
    }
}
