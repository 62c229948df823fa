//! What is kept of registries: in the system's keyring where there is one, or else in a file that only its owner reads.
//!
//! The file lists every login, since not every keyring can; one that is in the keyring has no secret in it. Whoever reads or
//! changes it holds a lock, for as long as that takes and no longer; whoever renews a login holds another one, of that
//! registry, so that of several clients that ask at once one renews and the others read what it got.

use std::{
    collections::BTreeMap,
    env,
    fs::{self, File, OpenOptions},
    io::{self, Write},
    path::{Path, PathBuf},
    time::{SystemTime, UNIX_EPOCH},
};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::{host::Host, system_keyring};

/// What is kept of one registry.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "camelCase", rename_all_fields = "camelCase")]
pub enum Login {
    /// This terminal was signed in.
    Terminal {
        /// The registry's address.
        url: String,
        /// What the next secret is asked for with; it is another one then.
        refresh_token: String,
        /// With what that may be asked again, once it was, if the answer doesn't come.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        retry: Option<String>,
        /// The name that goes with the secret.
        user: String,
        /// The last one.
        secret: String,
        /// When that ends, in seconds since 1970.
        good_until: u64,
    },
    /// What `docker login` was given.
    Password {
        /// The name.
        user: String,
        /// The password.
        secret: String,
    },
}

impl Login {
    /// The name.
    pub fn user(&self) -> &str {
        match self {
            Self::Terminal { user, .. } | Self::Password { user, .. } => user,
        }
    }
}

/// Where a login is.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
enum Place {
    Keyring { user: String },
    File(Login),
}

/// Seconds since 1970.
pub fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

/// All logins, locked while this is held: briefly, and never while somebody is asked over the network.
pub struct Logins {
    folder: PathBuf,
    /// By host; what another version of this program has written stays as it is.
    places: BTreeMap<String, Value>,
    _lock: File,
}

/// The lock of one registry, held until this is dropped.
pub struct Turn {
    _lock: File,
}

impl Turn {
    /// Waits until nobody else renews or ends the login to a registry.
    ///
    /// # Errors
    /// A sentence with the path.
    pub fn wait(host: &Host) -> Result<Self, String> {
        let folder = folder()?;
        make(&folder)?;
        // A host has no character that a file's name may not have, but for that of a port and an address.
        let name = host.to_string().replace([':', '[', ']'], "_");
        Ok(Self { _lock: lock(&folder.join(format!("{name}.lock")))? })
    }
}

fn failed(what: &Path, e: &dyn std::fmt::Display) -> String {
    format!("{} can't be used: {e}", what.display())
}

fn make(folder: &Path) -> Result<(), String> {
    let mut builder = fs::DirBuilder::new();
    #[cfg(unix)]
    std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
    builder.recursive(true).create(folder).map_err(|e| failed(folder, &e))
}

fn lock(path: &Path) -> Result<File, String> {
    let lock = private(OpenOptions::new().create(true).truncate(false).write(true)).open(path);
    lock.and_then(|lock| lock.lock().map(|()| lock)).map_err(|e| failed(path, &e))
}

fn folder() -> Result<PathBuf, String> {
    let set = |name: &str| env::var_os(name).filter(|path| !path.is_empty()).map(PathBuf::from);
    let base =
        set("XDG_STATE_HOME").or_else(|| set("LOCALAPPDATA")).or_else(|| Some(env::home_dir()?.join(".local/state")));
    base.map(|base| base.join("berth")).ok_or_else(|| "there is no home folder to keep a login in; set HOME".to_owned())
}

fn private(options: &mut OpenOptions) -> &mut OpenOptions {
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(options, 0o600);
    options
}

impl Logins {
    /// Reads them, and lets nobody else until this is dropped.
    ///
    /// # Errors
    /// A sentence with the path.
    pub fn open() -> Result<Self, String> {
        Self::open_in(&folder()?)
    }

    fn open_in(folder: &Path) -> Result<Self, String> {
        make(folder)?;
        let lock = lock(&folder.join("logins.lock"))?;
        let path = folder.join("logins.json");
        let places = match fs::read(&path) {
            Ok(text) => serde_json::from_slice(&text).map_err(|e| failed(&path, &e))?,
            Err(e) if e.kind() == io::ErrorKind::NotFound => BTreeMap::new(),
            Err(e) => return Err(failed(&path, &e)),
        };
        Ok(Self { folder: folder.to_owned(), places, _lock: lock })
    }

    fn place(&self, host: &str) -> Option<Place> {
        serde_json::from_value(self.places.get(host)?.clone()).ok()
    }

    /// Where they are, for people.
    pub fn path(&self) -> PathBuf {
        self.folder.join("logins.json")
    }

    /// Every registry, and who one is there.
    pub fn all(&self) -> BTreeMap<&str, String> {
        let users = self.places.keys().filter_map(|host| match self.place(host)? {
            Place::Keyring { user } => Some((host.as_str(), user)),
            Place::File(login) => Some((host.as_str(), login.user().to_owned())),
        });
        users.collect()
    }

    /// What is kept of a registry.
    ///
    /// # Errors
    /// If the keyring has it and gives nothing.
    pub fn find(&self, host: &Host) -> Result<Option<Login>, String> {
        match self.place(&host.to_string()) {
            None => Ok(None),
            Some(Place::File(login)) => Ok(Some(login)),
            Some(Place::Keyring { .. }) => {
                let failed = |e: &dyn std::fmt::Display| format!("the keyring does not give the login to {host}: {e}");
                let secret = system_keyring::get(host).map_err(|e| failed(&e))?;
                secret.map(|secret| serde_json::from_slice(&secret)).transpose().map_err(|e| failed(&e))
            }
        }
    }

    /// Keeps what is known of a registry, before anything is done with it; whether the keyring took it.
    ///
    /// # Errors
    /// If it can't be kept anywhere.
    pub fn keep(&mut self, host: &Host, login: Login) -> Result<bool, String> {
        let in_keyring = serde_json::to_vec(&login).is_ok_and(|secret| system_keyring::set(host, &secret));
        let place = match in_keyring {
            true => Place::Keyring { user: login.user().to_owned() },
            false => Place::File(login),
        };
        self.put(host, &place)?;
        self.write()?;
        Ok(in_keyring)
    }

    /// Forgets a registry; whether something was kept of it.
    ///
    /// # Errors
    /// If that can't be written.
    pub fn forget(&mut self, host: &Host) -> Result<bool, String> {
        let place = self.place(&host.to_string());
        if self.places.remove(&host.to_string()).is_none() {
            return Ok(false);
        }
        if let Some(Place::Keyring { .. }) = place {
            system_keyring::delete(host);
        }
        self.write()?;
        Ok(true)
    }

    fn put(&mut self, host: &Host, place: &Place) -> Result<(), String> {
        let value = serde_json::to_value(place).map_err(|e| e.to_string())?;
        self.places.insert(host.to_string(), value);
        Ok(())
    }

    /// Whole or not at all: a refresh token that is lost is a login that is lost.
    fn write(&self) -> Result<(), String> {
        let path = self.path();
        let failed = |e: io::Error| format!("{} can't be written: {e}", path.display());
        let text = serde_json::to_vec_pretty(&self.places).map_err(|e| failed(e.into()))?;
        replace(&path, &text).map_err(failed)
    }
}

/// Writes a file that only its owner reads, under its name when it is whole.
pub fn replace(path: &Path, text: &[u8]) -> io::Result<()> {
    let mut name = path.as_os_str().to_owned();
    name.push(format!(".{}", std::process::id()));
    let next = PathBuf::from(name);
    let _ = fs::remove_file(&next);
    let written = private(OpenOptions::new().create_new(true).write(true)).open(&next).and_then(|mut file| {
        file.write_all(text)?;
        file.sync_all()
    });
    let renamed = written.and_then(|()| fs::rename(&next, path));
    if renamed.is_err() {
        let _ = fs::remove_file(&next);
    }
    renamed
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_login_is_kept_for_its_owner_alone_and_forgotten() {
        let folder = tempfile::tempdir().expect("a folder");
        let host: Host = "registry.company".parse().expect("a host");
        let login = Login::Password { user: "alice".to_owned(), secret: "s".to_owned() };
        let mut logins = Logins::open_in(folder.path()).expect("opened");
        logins.put(&host, &Place::File(login.clone())).expect("JSON");
        logins.write().expect("written");
        drop(logins);
        let mut logins = Logins::open_in(folder.path()).expect("opened");
        assert_eq!(logins.find(&host).expect("read"), Some(login));
        assert_eq!(logins.all(), BTreeMap::from([("registry.company", "alice".to_owned())]));
        #[cfg(unix)]
        {
            let mode =
                std::os::unix::fs::PermissionsExt::mode(&fs::metadata(logins.path()).expect("the file").permissions());
            assert_eq!(mode & 0o777, 0o600);
        }
        assert!(logins.forget(&host).expect("forgotten") && !logins.forget(&host).expect("asked"));
        assert_eq!(logins.find(&host).expect("read"), None);
    }
}
