//! `credHelpers` in the configuration of docker and of podman, buildah and skopeo: that they ask this helper.

use std::{
    env, fs, io,
    path::{Path, PathBuf},
};

use serde_json::{Map, Value, json};

use crate::{host::Host, logins::replace};

/// As whom clients call us: `docker-credential-berth`.
const NAME: &str = "berth";

const HELPERS: &str = "credHelpers";

/// The files: docker's, and that of podman, buildah and skopeo, which survives a restart.
fn files() -> Vec<PathBuf> {
    let set = |name: &str| env::var_os(name).filter(|path| !path.is_empty()).map(PathBuf::from);
    let home = env::home_dir();
    let below_home = |path: &str| home.as_ref().map(|home| home.join(path));
    let docker = set("DOCKER_CONFIG").or_else(|| below_home(".docker")).map(|folder| folder.join("config.json"));
    let config = set("XDG_CONFIG_HOME").or_else(|| below_home(".config"));
    let containers = set("REGISTRY_AUTH_FILE").or_else(|| Some(config?.join("containers/auth.json")));
    docker.into_iter().chain(containers).collect()
}

fn failed(path: &Path, e: &dyn std::fmt::Display) -> String {
    format!("{} can't be changed: {e}", path.display())
}

/// What is in a file; nothing, if it isn't there.
fn read(path: &Path) -> Result<Map<String, Value>, String> {
    match fs::read(path) {
        Ok(text) if text.trim_ascii().is_empty() => Ok(Map::new()),
        Ok(text) => serde_json::from_slice(&text).map_err(|e| failed(path, &e)),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(Map::new()),
        Err(e) => Err(failed(path, &e)),
    }
}

fn write(path: &Path, config: &Map<String, Value>) -> Result<(), String> {
    // Somebody may keep it elsewhere, and have a link here.
    let path = &fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    let mut text = serde_json::to_vec_pretty(config).map_err(|e| failed(path, &e))?;
    text.push(b'\n');
    let folder = path.parent().map_or(Ok(()), fs::create_dir_all);
    let mode = fs::metadata(path).map(|known| known.permissions());
    folder.and_then(|()| replace(path, &text)).map_err(|e| failed(path, &e))?;
    // Who could read it before can read it now.
    mode.map_or(Ok(()), |mode| fs::set_permissions(path, mode)).map_err(|e| failed(path, &e))
}

fn helper(config: &Map<String, Value>, host: &Host) -> Option<String> {
    Some(config.get(HELPERS)?.get(host.to_string())?.as_str()?.to_owned())
}

/// Whether docker asks us for this registry.
pub fn is_asked(host: &Host) -> bool {
    let config = files().first().and_then(|path| read(path).ok()).unwrap_or_default();
    let asks_for_all = config.get("credsStore").and_then(Value::as_str) == Some(NAME);
    helper(&config, host).map_or(asks_for_all, |name| name == NAME)
}

/// Nothing, or why clients can't be made to ask us: nothing is changed by halves.
///
/// # Errors
/// Which file is the matter, and why.
pub fn check(host: &Host) -> Result<(), String> {
    for path in files() {
        let config = read(&path)?;
        if config.get(HELPERS).is_some_and(|helpers| !helpers.is_object()) {
            return Err(failed(&path, &"its credHelpers is no object"));
        }
        if let Some(other) = helper(&config, host).filter(|name| name != NAME) {
            return Err(failed(&path, &format!("it asks docker-credential-{other} for {host}; take that out first")));
        }
    }
    Ok(())
}

/// Makes clients ask us for this registry; gives the files that were changed.
///
/// # Errors
/// Which file can't be changed, and why.
pub fn add(host: &Host) -> Result<Vec<PathBuf>, String> {
    let mut changed = Vec::new();
    for path in files() {
        let mut config = read(&path)?;
        if helper(&config, host).as_deref() == Some(NAME) {
            continue;
        }
        let helpers = config.entry(HELPERS).or_insert_with(|| json!({}));
        let helpers = helpers.as_object_mut().ok_or_else(|| failed(&path, &"its credHelpers is no object"))?;
        helpers.insert(host.to_string(), NAME.into());
        write(&path, &config)?;
        changed.push(path);
    }
    Ok(changed)
}

/// Undoes that; gives the files that were changed.
///
/// # Errors
/// Which file can't be changed, and why.
pub fn remove(host: &Host) -> Result<Vec<PathBuf>, String> {
    let mut changed = Vec::new();
    for path in files() {
        let mut config = read(&path)?;
        if helper(&config, host).as_deref() != Some(NAME) {
            continue;
        }
        if let Some(helpers) = config.get_mut(HELPERS).and_then(Value::as_object_mut) {
            helpers.remove(&host.to_string());
            if helpers.is_empty() {
                config.remove(HELPERS);
            }
        }
        write(&path, &config)?;
        changed.push(path);
    }
    Ok(changed)
}
