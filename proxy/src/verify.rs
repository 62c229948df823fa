//! `berth-proxy verify`: everything that is wrong with a configuration, as far as it can be found out without serving.

use std::path::Path;

use rustix::fs::{Access, access};
use tokio::runtime::Runtime;

use crate::{
    certificate_check, client_authorities::ClientAuthorities, config::Config, identity::workload::Workloads,
    oidc::Provider, registry::Registry, secrets::RootKey, store::Store, tls::Certificate,
};

/// Checks the file, what it names, and with `online` whom it names.
///
/// # Errors
/// Every problem, each in a line under its key.
pub fn verify(path: &Path, online: bool) -> Result<(), String> {
    let (config, warnings) = Config::read(path).map_err(|problems| problems.to_string())?;
    for warning in warnings {
        eprintln!("warning: {warning}");
    }
    let mut problems = Vec::new();
    if let Some(files) = &config.tls {
        match Certificate::read(files) {
            Ok(_) => {
                let found = certificate_check::problems(files, config.external_url.host());
                let named = |what| format!("http.tls.cert: {} {what}", files.certificate.display());
                problems.extend(found.into_iter().map(named));
            }
            Err(problem) => problems.push(problem),
        }
        problems.extend(files.client_authorities.as_deref().and_then(|path| ClientAuthorities::read(path).err()));
    }
    if config.state.secret_file.exists() {
        problems.extend(RootKey::load(&config.state.secret_file).err());
    }
    problems.extend(unwritable_folders(&config));
    for provider in &config.providers {
        problems.extend(Provider::new(provider.clone(), String::new()).err());
    }
    if online && problems.is_empty() {
        let runtime = Runtime::new().map_err(|e| format!("can't start threads: {e}"))?;
        problems.extend(runtime.block_on(ask_everybody(&config)));
    }
    if problems.is_empty() {
        println!("{}: the proxy can serve this", path.display());
        return Ok(());
    }
    Err(problems.join("\n"))
}

/// The files and folders that this user may not write, or make.
fn unwritable_folders(config: &Config) -> Vec<String> {
    let database = config.state.database.strip_prefix("sqlite:").map(|path| path.split('?').next().unwrap_or(path));
    let named = [
        ("sidecar.database", database.map(Path::new)),
        ("sidecar.secretFile", Some(config.state.secret_file.as_path())),
        ("log.output", config.log.output.as_deref()),
        ("log.audit", config.log.audit.as_deref()),
    ];
    let problem = |(key, file): (&str, Option<&Path>)| {
        let file = file?;
        let is_there = file.exists();
        // What isn't there is made, and the folders of the database, too.
        let target = file.ancestors().find(|path| path.exists()).unwrap_or(Path::new("."));
        if !is_there && !target.is_dir() {
            return Some(format!("{key}: {} is no folder; choose another place", target.display()));
        }
        // A secret that is there is only read.
        let wanted = if is_there && key == "sidecar.secretFile" { Access::READ_OK } else { Access::WRITE_OK };
        let error = access(target, wanted).err()?;
        Some(format!(
            "{key}: {} can't be written ({error}); make the folder, and let this user own it",
            target.display()
        ))
    };
    named.into_iter().filter_map(problem).collect()
}

/// Asks whom the file names whether they are what it says.
async fn ask_everybody(config: &Config) -> Vec<String> {
    let mut problems = Vec::new();
    for provider in &config.providers {
        let key = format!("http.auth.openid.providers.{}.issuer", provider.id);
        match Provider::new(provider.clone(), config.external_url.join("/")) {
            Ok(provider) => problems.extend(provider.look().await.err().map(|error| format!("{key}: {error}"))),
            Err(problem) => problems.push(problem),
        }
    }
    match Workloads::new(config.workloads.clone(), &Workloads::default()) {
        Ok(workloads) => {
            for issuer in workloads.issuers() {
                let failed = issuer.look().await.err();
                problems.extend(failed.map(|error| format!("http.auth.bearer.oidc: {}: {error}", issuer.name())));
            }
        }
        Err(problem) => problems.push(problem),
    }
    match Registry::new(&config.upstream) {
        Ok(registry) => match registry.readiness().await {
            Ok(None) => {}
            Ok(Some(reason)) => problems.push(format!("sidecar.upstream: the registry can store nothing: {reason}")),
            Err(error) => problems.push(format!("sidecar.upstream: {error}; start berth-registry with this file")),
        },
        Err(problem) => problems.push(problem),
    }
    // A file is made by the first start; a server should be there.
    if !config.state.database.starts_with("sqlite:") {
        problems.extend(Store::can_connect(&config.state.database).await.err());
    }
    problems
}
