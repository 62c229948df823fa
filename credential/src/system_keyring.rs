//! The system's keyring: the Secret Service (GNOME, KDE), macOS' keychain, Windows' credential manager. Without the feature
//! `keyring` there is none.

use crate::host::Host;

/// Under what the keyring has our entries.
#[cfg(feature = "keyring")]
const SERVICE: &str = "berth";

#[cfg(feature = "keyring")]
fn entry(host: &Host) -> keyring::Result<keyring::Entry> {
    keyring::Entry::new(SERVICE, &host.to_string())
}

/// What it has of a registry.
///
/// # Errors
/// If it gives nothing, as when nobody unlocks it.
#[cfg(feature = "keyring")]
pub fn get(host: &Host) -> Result<Option<Vec<u8>>, String> {
    match entry(host).and_then(|entry| entry.get_secret()) {
        Ok(secret) => Ok(Some(secret)),
        Err(keyring::Error::NoEntry) => Ok(None),
        Err(e) => Err(e.to_string()),
    }
}

#[cfg(not(feature = "keyring"))]
pub fn get(_: &Host) -> Result<Option<Vec<u8>>, String> {
    Err("this program was built without it".to_owned())
}

/// Keeps something of a registry; whether there is a keyring that does.
#[cfg(feature = "keyring")]
pub fn set(host: &Host, secret: &[u8]) -> bool {
    entry(host).and_then(|entry| entry.set_secret(secret)).is_ok()
}

#[cfg(not(feature = "keyring"))]
pub fn set(_: &Host, _: &[u8]) -> bool {
    false
}

/// Forgets what it has of a registry.
#[cfg(feature = "keyring")]
pub fn delete(host: &Host) {
    // What stays opens nothing: the registry has ended it, and no file leads there any more.
    let _ = entry(host).and_then(|entry| entry.delete_credential());
}

#[cfg(not(feature = "keyring"))]
pub fn delete(_: &Host) {}
