//! The npm package `oidc-provider`, a certified OpenID provider, with authentik's addresses.

use std::{
    path::Path,
    process::Command,
    time::{Duration, Instant},
};

use crate::{
    person::Person,
    process::{Process, trusting},
    system::{CLIENT_ID, CLIENT_SECRET},
    tools,
};

/// The provider, serving until this is dropped.
pub struct Provider {
    _process: Process,
    /// Its issuer.
    pub issuer: String,
}

impl Provider {
    /// Starts it on `port` for the registry at `url`; nothing, if Node or the package isn't there. `env` is described
    /// in `provider.mjs`.
    ///
    /// # Panics
    /// If it doesn't serve.
    pub async fn start(port: u16, url: &str, folder: &Path, env: &[(&str, &str)]) -> Option<Self> {
        let node = tools::find("node")?;
        let home = Path::new(env!("CARGO_MANIFEST_DIR")).join("provider");
        if !home.join("node_modules/oidc-provider").is_dir() {
            tools::skip("the npm package oidc-provider is not installed in tests/provider");
            return None;
        }
        let mut command = Command::new(node);
        command.arg("provider.mjs").current_dir(home).env("PORT", port.to_string()).env("RP", url);
        command.env("CLIENT_ID", CLIENT_ID).env("CLIENT_SECRET", CLIENT_SECRET).envs(env.iter().copied());
        let mut process = Process::start(&mut command, &folder.join("provider.log")).expect("a process");
        let scheme = if env.iter().any(|(name, _)| *name == "CERT") { "https" } else { "http" };
        let issuer = format!("{scheme}://localhost:{port}/application/o/berth/");
        let discovery = format!("{issuer}.well-known/openid-configuration");
        let client = trusting().build().expect("a client");
        let began = Instant::now();
        loop {
            assert!(!process.has_ended(), "{}", process.printed());
            let answer = client.get(&discovery).timeout(Duration::from_secs(5)).send().await;
            if answer.as_ref().is_ok_and(|answer| answer.status().is_success()) {
                break;
            }
            // It reads a thousand files before it listens, from a disk that may be busy.
            assert!(began.elapsed() < Duration::from_mins(3), "{answer:?}: {}", process.printed());
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        Some(Self { _process: process, issuer })
    }

    /// Signs somebody in with its form.
    ///
    /// # Panics
    /// If it doesn't answer.
    pub async fn sign_in(&self, person: &Person, user: &str) {
        let form = person.get("/zot/auth/login").await;
        let fields = [("username", user), ("password", user)];
        person.http.post(form.url().clone()).form(&fields).send().await.expect("an answer");
    }
}
