//! What all requests share.

use std::sync::{Arc, PoisonError, RwLock, atomic::AtomicBool};

use ipnet::IpNet;
use tokio::task::JoinSet;

use crate::{
    client_authorities::ClientAuthorities,
    config::{Config, ExternalUrl},
    events::Events,
    identity::{
        Identities, Keys, LoginSecrets, RefreshTokens, Refusal, Renewals, Sessions, Standings, Terminals, Tokens,
        Verifiers, app_password::AppPasswords, htpasswd::Passwords, limits::Limits, workload::Workloads,
    },
    observe::{Audit, Metrics},
    oidc::{Provider, ProviderConfig},
    policy::Rules,
    registry::Registry,
    request::RequestInfo,
    secrets::{Mac, RootKey, Sealer},
    store::{Store, Usage},
    tickets::Tickets,
};

/// The state of the running proxy.
pub struct App {
    /// The address that every URL of ours begins with.
    pub external_url: ExternalUrl,
    /// Whether cookies are for https alone.
    pub secure_cookies: bool,
    /// By which connections are resumed.
    pub tickets: Arc<Tickets>,
    /// Proxies whose `X-Forwarded-For` is believed.
    pub trusted_proxies: Vec<IpNet>,
    /// Who is asking?
    pub identities: Identities,
    /// Our own questions to the registry.
    pub registry: Arc<Registry>,
    /// Whether other registries are mirrored.
    pub mirrors: bool,
    /// What is counted.
    pub metrics: Arc<Metrics>,
    /// Who did what.
    pub audit: Arc<Audit>,
    /// Who is told of what happens, if anybody is.
    pub events: Option<Arc<Events>>,
    /// Where they are shown beside `/metrics`.
    pub metrics_path: String,
    /// Whether the proxy was told to stop.
    pub stopping: AtomicBool,
    /// The database.
    pub store: Store,
    /// What was used lately.
    pub usage: Arc<Usage>,
    /// Seals what a browser keeps for us during a sign-in.
    pub sign_in_sealer: Sealer,
    /// The authorities of client certificates, if there are any.
    pub client_authorities: Option<Arc<ClientAuthorities>>,
    passwords_mac: Mac,
    live: RwLock<Arc<Reloadable>>,
}

/// What is replaced as a whole when the configuration is read again.
pub struct Reloadable {
    /// Who vouches for people?
    pub verifiers: Verifiers,
    /// May they?
    pub rules: Rules,
    /// Other origins that a sign-in may return to.
    pub callback_origins: Vec<url::Origin>,
    /// Keep the keys of providers and issuers fresh; they end with this.
    _tasks: JoinSet<()>,
}

impl Reloadable {
    fn new(
        config: &Config,
        mac: &Mac,
        client_authorities: Option<Arc<ClientAuthorities>>,
        before: Option<&Self>,
    ) -> Result<Self, String> {
        let known = |config: &ProviderConfig| {
            let providers = before.map_or(&[][..], |before| &before.verifiers.providers);
            providers.iter().find(|provider| provider.config == *config).cloned()
        };
        let providers = config.providers.iter().map(|provider| {
            let callback = config.external_url.join(&format!("/zot/auth/callback/{}", provider.id));
            known(provider).map_or_else(|| Provider::new(provider.clone(), callback).map(Arc::new), Ok)
        });
        let providers = providers.collect::<Result<Vec<_>, _>>()?;
        let none = Workloads::default();
        let known_workloads = before.map_or(&none, |before| &before.verifiers.workloads);
        let workloads = Workloads::new(config.workloads.clone(), known_workloads)?;
        let passwords = config.passwords.clone().map(|users| Passwords::new(users, mac.clone()));
        let mut tasks = JoinSet::new();
        for provider in &providers {
            tasks.spawn(Arc::clone(provider).keep_discovered());
        }
        for issuer in workloads.issuers() {
            tasks.spawn(Arc::clone(issuer).keep_keys());
        }
        Ok(Self {
            verifiers: Verifiers::new(
                providers,
                workloads,
                passwords,
                client_authorities,
                AppPasswords::new(mac.clone()),
            ),
            rules: config.rules.clone(),
            callback_origins: config.callback_origins.clone(),
            _tasks: tasks,
        })
    }

    /// Who signs people in.
    pub fn providers(&self) -> &[Arc<Provider>] {
        &self.verifiers.providers
    }
}

impl App {
    /// Opens everything that `config` names, but waits for no one on the network save the database.
    ///
    /// # Errors
    /// A sentence with the key's path and the mend.
    pub async fn open(config: &Config) -> Result<Self, String> {
        let store = Store::open(&config.state.database).await?;
        let secret = &config.state.secret_file;
        // Made anew, it would open nothing of what was sealed, and nobody would be told.
        if !secret.exists() && store.has_people().await.map_err(|e| e.to_string())? {
            return Err(format!(
                "sidecar.secretFile: {} is missing, and the database was sealed with it; restore it from the backup (or, to \
                 begin anew without what is sealed, make an empty database)",
                secret.display()
            ));
        }
        let root = RootKey::load_or_create(secret)?;
        let metrics = Arc::new(Metrics::new().map_err(|e| format!("nothing can be counted: {e}"))?);
        let audit = Arc::new(Audit::open(config.log.audit.as_deref(), Arc::clone(&metrics))?);
        let registry = Arc::new(Registry::new(&config.upstream)?);
        let events = match config.events.clone() {
            Some(events) => {
                let opened = Events::open(events, store.clone(), Arc::clone(&registry), Arc::clone(&metrics)).await;
                Some(opened.map_err(|error| format!("extensions.events: {error}"))?)
            }
            None => None,
        };
        let usage = Arc::new(Usage::default());
        let sealer = Arc::new(Sealer::new(&root, "provider tokens"));
        let (idle, absolute) = (config.state.session_idle, config.state.session_absolute);
        let service = config.external_url.authority().to_owned();
        let lifetime = i64::try_from(config.state.refresh_token_lifetime.as_secs()).unwrap_or_default();
        let identities = Identities {
            keys: Keys::new(store.clone(), Arc::clone(&usage)),
            sessions: Sessions::new(store.clone(), Arc::clone(&usage), Arc::clone(&sealer), idle, absolute),
            terminals: Terminals::new(store.clone(), &root),
            login_secrets: LoginSecrets::new(&root, config.external_url.join(""), service.clone()),
            tokens: Tokens::new(&root, config.external_url.join(""), service, config.state.token_lifetime),
            refresh_tokens: RefreshTokens::new(store.clone(), lifetime),
            standings: Standings::new(store.clone()),
            renewals: Renewals::new(
                store.clone(),
                sealer,
                idle,
                config.state.session_grace,
                Arc::clone(&audit),
                events.clone(),
            ),
            api_keys: config.api_keys,
            limits: Limits::new(),
            certificate_names: config.certificate_names.clone(),
        };
        let passwords_mac = Mac::new(&root, "passwords");
        let authorities = config.tls.as_ref().and_then(|tls| tls.client_authorities.as_deref());
        let client_authorities = authorities.map(ClientAuthorities::read).transpose()?.map(Arc::new);
        let live = Reloadable::new(config, &passwords_mac, client_authorities.clone(), None)?;
        Ok(Self {
            external_url: config.external_url.clone(),
            secure_cookies: config.secure_cookies,
            trusted_proxies: config.trusted_proxies.clone(),
            identities,
            registry,
            mirrors: config.mirror.is_some(),
            audit,
            events,
            metrics,
            metrics_path: config.metrics_path.clone(),
            stopping: AtomicBool::new(false),
            store,
            usage,
            sign_in_sealer: Sealer::new(&root, "sign-in"),
            tickets: Arc::new(Tickets::new(&root)),
            client_authorities,
            passwords_mac,
            live: RwLock::new(Arc::new(live)),
        })
    }

    /// A credential wasn't taken: for the request's line in the log, and the counters.
    pub fn refused(&self, request: &RequestInfo, tried: Option<&str>, refusal: &Refusal) {
        request.refused(tried, refusal);
        self.metrics.credential_refused(refusal.kind());
    }

    /// The rules and authorities of now. A request goes by the same ones to its end.
    pub fn live(&self) -> Arc<Reloadable> {
        Arc::clone(&self.live.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Goes on with the rules and authorities of `config`. What else is in it needs a restart.
    ///
    /// # Errors
    /// A sentence; then everything stays as it was.
    pub fn reload(&self, config: &Config) -> Result<(), String> {
        let authorities =
            match (config.tls.as_ref().and_then(|tls| tls.client_authorities.as_deref()), &self.client_authorities) {
                // Without them, no certificate is anybody's any more, whenever its connection was made.
                (None, _) => None,
                (Some(path), Some(authorities)) => {
                    authorities.follow(path)?;
                    Some(Arc::clone(authorities))
                }
                (Some(_), None) => {
                    return Err("http.tls.cacert: was not there at the start; restart the proxy".to_owned());
                }
            };
        let live = Reloadable::new(config, &self.passwords_mac, authorities, Some(&self.live()))?;
        *self.live.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(live);
        Ok(())
    }

    /// The name of the session cookie. `__Host-` keeps other hosts from setting it (RFC 6265bis, section 4.1.3.2).
    pub fn session_cookie(&self) -> &'static str {
        if self.secure_cookies { "__Host-berth_session" } else { "berth_session" }
    }
}
