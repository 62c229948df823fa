//! `berth-proxy verify`: everything that is wrong with a configuration, as far as it can be found out without serving.

use std::{io::Read, path::Path};

use rustix::fs::{Access, access};
use tokio::runtime::Runtime;

use crate::{
    certificate_check::{self, Findings},
    client_authorities::ClientAuthorities,
    config::Config,
    identity::workload::Workloads,
    oidc::Provider,
    registry::Registry,
    secrets::RootKey,
    store::Store,
    tls::Certificate,
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
                let named = |what| format!("http.tls.cert: {} {what}", files.certificate.display());
                let Findings { problems: found, soon } = certificate_check::look(files, config.external_url.host());
                problems.extend(found.into_iter().map(named));
                soon.into_iter().for_each(|soon| eprintln!("warning: {}", named(soon)));
            }
            Err(problem) => problems.push(problem),
        }
        problems.extend(files.client_authorities.as_deref().and_then(|path| ClientAuthorities::read(path).err()));
    }
    if config.state.secret_file.exists() {
        problems.extend(RootKey::load(&config.state.secret_file).err());
    }
    problems.extend(unwritable_places(&config));
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

/// The files and folders that this user may not write.
fn unwritable_places(config: &Config) -> Vec<String> {
    let database = config.state.database.strip_prefix("sqlite:").map(|path| path.split('?').next().unwrap_or(path));
    let named = [
        ("sidecar.database", database.map(Path::new)),
        ("sidecar.secretFile", Some(config.state.secret_file.as_path())),
        ("log.output", config.log.output.as_deref()),
        ("log.audit", config.log.audit.as_deref()),
    ];
    let in_database_folder = |file: &Path| database.map(Path::new).and_then(Path::parent) == file.parent();
    let problem = |(key, file): (&str, Option<&Path>)| {
        let file = file?;
        let problem = |path: &Path, error: &dyn std::fmt::Display| {
            Some(format!("{key}: {} can't be written ({error}); make it, and let this user own it", path.display()))
        };
        if file.is_dir() {
            return Some(format!("{key}: {} is a folder; give the path of a file", file.display()));
        }
        if file.exists() {
            if key == "sidecar.database" && !looks_like_sqlite(file) {
                return Some(format!(
                    "{key}: {} is no SQLite database; give another path, or restore it",
                    file.display()
                ));
            }
            // A secret that is there is only read.
            let wanted = if key == "sidecar.secretFile" { Access::READ_OK } else { Access::WRITE_OK };
            if let Err(error) = access(file, wanted) {
                return problem(file, &error);
            }
            // Beside a database others are made.
            if key != "sidecar.database" {
                return None;
            }
        }
        let folder = file.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        // The database's folder is made, and the secret beside it, too.
        let is_made = key == "sidecar.database" || key == "sidecar.secretFile" && in_database_folder(file);
        let folder = if is_made { folder.ancestors().find(|path| path.exists()).unwrap_or(folder) } else { folder };
        if !folder.is_dir() {
            return problem(folder, &"it is no folder");
        }
        access(folder, Access::WRITE_OK | Access::EXEC_OK).err().and_then(|error| problem(folder, &error))
    };
    named.into_iter().filter_map(problem).collect()
}

/// Whether a file is empty, or begins as every SQLite database does (its file format, section 1.3). One that can't be read is
/// told otherwise.
fn looks_like_sqlite(file: &Path) -> bool {
    let mut magic = Vec::new();
    let read = std::fs::File::open(file).and_then(|file| file.take(16).read_to_end(&mut magic));
    read.is_err() || magic.is_empty() || magic == b"SQLite format 3\0"
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
