//! What of a changed file the running proxy can't take over.

use super::{Config, State};

impl Config {
    /// The keys whose values in `new` need a restart, for the proxy that runs with these.
    pub fn needs_restart_for(&self, new: &Self) -> Vec<&'static str> {
        // Every setting is named, so that a new one is looked at, too.
        let Self {
            listen,
            tls,
            external_url,
            certificate_names,
            trusted_proxies,
            drain_timeout,
            connections_per_address,
            api_keys,
            secure_cookies,
            upstream,
            mirror,
            metrics_path,
            events,
            state,
            log,
            traces,
            // These are taken over.
            providers: _,
            workloads: _,
            passwords: _,
            watched: _,
            callback_origins: _,
            rules: _,
        } = self;
        let State {
            database,
            secret_file,
            session_idle,
            session_absolute,
            session_grace,
            token_lifetime,
            refresh_token_lifetime,
        } = state;
        let files = |config: &Self| config.tls.as_ref().map(|tls| (tls.certificate.clone(), tls.key.clone()));
        let differs = [
            ("http.address", listen.ip() != new.listen.ip()),
            ("http.port", listen.port() != new.listen.port()),
            ("http.externalUrl", external_url.join("") != new.external_url.join("")),
            ("http.tls", tls.is_some() != new.tls.is_some() || files(self) != files(new)),
            ("http.auth.mtls", *certificate_names != new.certificate_names),
            ("http.auth.apikey", *api_keys != new.api_keys),
            ("http.auth.secureSession", *secure_cookies != new.secure_cookies),
            ("sidecar.trustedProxies", *trusted_proxies != new.trusted_proxies),
            ("sidecar.drainTimeout", *drain_timeout != new.drain_timeout),
            ("sidecar.connectionsPerAddress", *connections_per_address != new.connections_per_address),
            ("sidecar.upstream", *upstream != new.upstream),
            ("sidecar.mirror, extensions.sync", *mirror != new.mirror),
            ("sidecar.database", *database != new.state.database),
            ("sidecar.secretFile", *secret_file != new.state.secret_file),
            ("sidecar.session.idle", *session_idle != new.state.session_idle),
            ("sidecar.session.absolute", *session_absolute != new.state.session_absolute),
            ("sidecar.session.grace", *session_grace != new.state.session_grace),
            ("sidecar.tokenLifetime", *token_lifetime != new.state.token_lifetime),
            ("sidecar.refreshTokenLifetime", *refresh_token_lifetime != new.state.refresh_token_lifetime),
            ("sidecar.traces", *traces != new.traces),
            ("extensions.metrics.prometheus.path", *metrics_path != new.metrics_path),
            ("extensions.events", *events != new.events),
            ("log", *log != new.log),
        ];
        differs.into_iter().filter_map(|(key, differs)| differs.then_some(key)).collect()
    }
}
