//! Random values, their hashes, and the key that seals what is stored.

use std::{
    fs::{self, OpenOptions},
    io::{self, Read, Write},
    os::unix::fs::OpenOptionsExt,
    path::Path,
};

use aws_lc_rs::{
    aead::{AES_256_GCM, Aad, Nonce, RandomizedNonceKey},
    digest, hmac, rand,
};
use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD};
use serde::{Serialize, de::DeserializeOwned};

/// The length of a nonce of AES-256-GCM.
const NONCE: usize = 12;

/// How long [`random_text`] is.
pub const TEXT_LEN: usize = 43;

/// 256 random bits, as text for a URL, a cookie or a password.
pub fn random_text() -> String {
    BASE64_URL_SAFE_NO_PAD.encode(random_bytes())
}

fn random_bytes() -> [u8; 32] {
    let mut bytes = [0; 32];
    // Without the system's randomness nothing that follows could be trusted.
    #[allow(clippy::expect_used)]
    rand::fill(&mut bytes).expect("the system's random numbers");
    bytes
}

/// So many letters of an alphabet of at most 256, each as likely as the others.
pub fn random_letters(alphabet: &[u8], len: usize) -> String {
    // What lies beyond the last whole alphabet would make its first letters likelier.
    let end = 256 - 256 % alphabet.len();
    let bytes = std::iter::repeat_with(random_bytes).flatten().map(usize::from);
    bytes.filter(|byte| *byte < end).map(|byte| char::from(alphabet[byte % alphabet.len()])).take(len).collect()
}

/// SHA-256 of a secret in hexadecimal: what is stored instead of it. A secret of 256 random bits needs no salt.
pub fn hash(secret: &str) -> String {
    hex(&digest(secret))
}

/// SHA-256 of a secret: what is remembered instead of it.
pub fn digest(secret: &str) -> [u8; 32] {
    let mut bytes = [0; 32];
    bytes.copy_from_slice(digest::digest(&digest::SHA256, secret.as_bytes()).as_ref());
    bytes
}

/// Bytes in hexadecimal.
pub fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write;
    bytes.iter().fold(String::with_capacity(2 * bytes.len()), |mut hex, byte| {
        let _ = write!(hex, "{byte:02x}");
        hex
    })
}

/// The key of this installation. Other keys are derived from it, each for one purpose.
pub struct RootKey(hmac::Key);

impl RootKey {
    /// Reads the key from `path`; makes one there on the first start.
    ///
    /// # Errors
    /// A sentence with the path and the mend.
    pub fn load_or_create(path: &Path) -> Result<Self, String> {
        // Of anything else than that it isn't there, reading says it better.
        if let Ok(false) = path.try_exists() {
            Self::create(path)?;
        }
        Self::load(path)
    }

    /// Makes a key, whole or not at all: of two that start at once, both go on with the first one's.
    fn create(path: &Path) -> Result<(), String> {
        let problem = |e: io::Error| {
            format!(
                "sidecar.secretFile: {} can't be made ({e}); make its folder, writable for this user",
                path.display()
            )
        };
        let mut name = path.as_os_str().to_owned();
        name.push(format!(".{}", random_text()));
        let next = Path::new(&name);
        let made = OpenOptions::new().write(true).create_new(true).mode(0o600).open(next).and_then(|mut file| {
            file.write_all(BASE64_URL_SAFE_NO_PAD.encode(random_bytes()).as_bytes())?;
            file.sync_all()
        });
        let linked = made.and_then(|()| match fs::hard_link(next, path) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(error),
            _ => path
                .parent()
                .filter(|folder| !folder.as_os_str().is_empty())
                .map_or(Ok(()), |folder| fs::File::open(folder)?.sync_all()),
        });
        let _ = fs::remove_file(next);
        linked.map_err(problem)
    }

    /// Reads the key from `path`.
    ///
    /// # Errors
    /// A sentence with the path and the mend.
    pub fn load(path: &Path) -> Result<Self, String> {
        let problem = |what: &str| format!("sidecar.secretFile: {} {what}", path.display());
        let mut text = String::new();
        let read = OpenOptions::new().read(true).open(path).and_then(|mut file| file.read_to_string(&mut text));
        read.map_err(|e| problem(&format!("can't be read ({e}); let this user own it")))?;
        match BASE64_URL_SAFE_NO_PAD.decode(text.trim().trim_end_matches('=')) {
            Ok(bytes) if bytes.len() >= 32 => Ok(Self(hmac::Key::new(hmac::HMAC_SHA256, &bytes))),
            _ => Err(problem("must hold 32 random bytes in URL-safe base64; remove it to have a new one made")),
        }
    }

    /// A key of which others are derived, all for one purpose.
    pub fn branch(&self, purpose: &str) -> Self {
        Self(hmac::Key::new(hmac::HMAC_SHA256, &self.derive(purpose)))
    }

    /// The key for `purpose`.
    pub fn derive(&self, purpose: &str) -> [u8; 32] {
        let mut key = [0; 32];
        key.copy_from_slice(hmac::sign(&self.0, purpose.as_bytes()).as_ref());
        key
    }
}

/// A keyed hash: under it, what is remembered of a secret in memory says nothing of it.
#[derive(Clone)]
pub struct Mac(hmac::Key);

impl Mac {
    /// The keyed hash for `purpose`.
    pub fn new(root: &RootKey, purpose: &str) -> Self {
        Self(hmac::Key::new(hmac::HMAC_SHA256, &root.derive(purpose)))
    }

    /// The hash of some texts, as they are divided.
    pub fn of(&self, texts: &[&str]) -> [u8; 32] {
        let mut context = hmac::Context::with_key(&self.0);
        for text in texts {
            context.update(&(text.len() as u64).to_be_bytes());
            context.update(text.as_bytes());
        }
        let mut out = [0; 32];
        out.copy_from_slice(context.sign().as_ref());
        out
    }
}

/// Encrypts what others keep for us: the database, or a browser.
pub struct Sealer(RandomizedNonceKey);

/// Something that we didn't seal, or not for this purpose.
#[derive(Debug, thiserror::Error)]
#[error("not sealed by this installation")]
pub struct Unsealable;

impl Sealer {
    /// The sealer for `purpose`; no other opens what it seals.
    pub fn new(root: &RootKey, purpose: &str) -> Self {
        // The key has the algorithm's length by its type.
        #[allow(clippy::expect_used)]
        Self(RandomizedNonceKey::new(&AES_256_GCM, &root.derive(purpose)).expect("a key of 256 bits"))
    }

    /// Encrypts `plain` with AES-256-GCM under a random nonce, which stands before it.
    ///
    /// # Errors
    /// Only for texts of many gigabytes.
    pub fn seal(&self, plain: &[u8]) -> Result<String, Unsealable> {
        let mut bytes = plain.to_vec();
        let nonce = self.0.seal_in_place_append_tag(Aad::empty(), &mut bytes).map_err(|_| Unsealable)?;
        let mut out = nonce.as_ref().to_vec();
        out.append(&mut bytes);
        Ok(BASE64_URL_SAFE_NO_PAD.encode(out))
    }

    /// Seals a value as JSON; an empty text, which nothing opens, if it can't be.
    pub fn seal_json(&self, value: &impl Serialize) -> String {
        let sealed = serde_json::to_vec(value).ok().and_then(|plain| self.seal(&plain).ok());
        sealed.unwrap_or_default()
    }

    /// What [`Sealer::seal_json`] sealed; nothing, if we didn't, or not for this purpose.
    pub fn open_json<T: DeserializeOwned>(&self, sealed: &str) -> Option<T> {
        serde_json::from_slice(&self.open(sealed).ok()?).ok()
    }

    /// What was sealed.
    ///
    /// # Errors
    /// [`Unsealable`] for anything else.
    pub fn open(&self, sealed: &str) -> Result<Vec<u8>, Unsealable> {
        let bytes = BASE64_URL_SAFE_NO_PAD.decode(sealed).map_err(|_| Unsealable)?;
        let (nonce, rest) = bytes.split_at_checked(NONCE).ok_or(Unsealable)?;
        let nonce = Nonce::try_assume_unique_for_key(nonce).map_err(|_| Unsealable)?;
        let mut rest = rest.to_vec();
        let plain = self.0.open_in_place(nonce, Aad::empty(), &mut rest).map_err(|_| Unsealable)?;
        Ok(plain.to_vec())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_made_once_and_for_its_owner_alone() {
        use std::os::unix::fs::PermissionsExt;
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("proxy.key");
        let first = RootKey::load_or_create(&path).expect("a new key").derive("x");
        let second = RootKey::load_or_create(&path).expect("the same key").derive("x");
        assert_eq!(first, second);
        let mode = std::fs::metadata(&path).expect("the file").permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }

    #[test]
    fn many_that_start_at_once_have_one_key() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("proxy.key");
        let starts: Vec<_> = (0..20)
            .map(|_| {
                let path = path.clone();
                std::thread::spawn(move || RootKey::load_or_create(&path).expect("a key").derive("x"))
            })
            .collect();
        let keys: std::collections::HashSet<_> = starts.into_iter().map(|start| start.join().expect("ended")).collect();
        assert_eq!(keys.len(), 1);
        assert_eq!(std::fs::read_dir(folder.path()).expect("the folder").count(), 1);
    }

    #[test]
    fn only_what_was_sealed_for_a_purpose_is_opened() {
        let folder = tempfile::tempdir().expect("a folder");
        let root = RootKey::load_or_create(&folder.path().join("k")).expect("a key");
        let (one, other) = (Sealer::new(&root, "one"), Sealer::new(&root, "other"));
        let sealed = one.seal(b"secret").expect("sealed");
        assert_eq!(one.open(&sealed).expect("opened"), b"secret");
        assert!(other.open(&sealed).is_err());
        let mut changed = sealed.into_bytes();
        changed[20] = if changed[20] == b'A' { b'B' } else { b'A' };
        assert!(one.open(&String::from_utf8(changed).expect("text")).is_err());
        assert!(one.open("").is_err());
    }
}
