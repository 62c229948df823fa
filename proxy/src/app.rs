//! What all requests share.

use std::sync::Arc;

use crate::{
    config::{Config, ExternalUrl},
    identity::{Identities, Keys, Sessions, Tokens},
    oidc::Provider,
    policy::Rules,
    registry::Registry,
    secrets::{RootKey, Sealer},
    store::{Store, Usage},
};

/// The state of the running proxy.
pub struct App {
    /// The address that every URL of ours begins with.
    pub external_url: ExternalUrl,
    /// Who signs people in.
    pub providers: Vec<Arc<Provider>>,
    /// Other origins that a sign-in may return to.
    pub callback_origins: Vec<url::Origin>,
    /// Whether people may make API keys.
    pub api_keys: bool,
    /// Whether cookies are for https alone.
    pub secure_cookies: bool,
    /// Who is asking?
    pub identities: Identities,
    /// May they?
    pub rules: Rules,
    /// Our own questions to the registry.
    pub registry: Registry,
    /// The database.
    pub store: Store,
    /// What was used lately.
    pub usage: Arc<Usage>,
    /// Seals what a browser keeps for us during a sign-in.
    pub sign_in_sealer: Sealer,
}

impl App {
    /// Opens everything that `config` names, but asks no one on the network.
    ///
    /// # Errors
    /// A sentence with the key's path and the mend.
    pub async fn open(config: &Config) -> Result<Self, String> {
        let root = RootKey::load_or_create(&config.state.secret_file)?;
        let store = Store::open(&config.state.database).await?;
        let usage = Arc::new(Usage::default());
        let sealer = Sealer::new(&root, "provider tokens");
        let (idle, absolute) = (config.state.session_idle, config.state.session_absolute);
        let service = config.external_url.authority().to_owned();
        let identities = Identities {
            keys: Keys::new(store.clone(), Arc::clone(&usage)),
            sessions: Sessions::new(store.clone(), Arc::clone(&usage), sealer, idle, absolute),
            tokens: Tokens::new(&root, config.external_url.join(""), service),
        };
        let providers = config.providers.iter().map(|provider| {
            let callback = config.external_url.join(&format!("/zot/auth/callback/{}", provider.id));
            Provider::new(provider.clone(), callback).map(Arc::new)
        });
        Ok(Self {
            external_url: config.external_url.clone(),
            providers: providers.collect::<Result<_, _>>()?,
            callback_origins: config.callback_origins.clone(),
            api_keys: config.api_keys,
            secure_cookies: config.secure_cookies,
            identities,
            rules: config.rules.clone(),
            registry: Registry::new(&config.upstream)?,
            store,
            usage,
            sign_in_sealer: Sealer::new(&root, "sign-in"),
        })
    }

    /// The name of the session cookie. `__Host-` keeps other hosts from setting it (RFC 6265bis, section 4.1.3.2).
    pub fn session_cookie(&self) -> &'static str {
        if self.secure_cookies { "__Host-berth_session" } else { "berth_session" }
    }
}
