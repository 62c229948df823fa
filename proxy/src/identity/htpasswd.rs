//! The password file: `user:bcrypt hash`, a line each, as Apache's `htpasswd -B` writes it.
//!
//! Checking a password takes a tenth of a second of work by design, so it is done once and off the async threads, and
//! the answer is remembered under a keyed hash.

use std::{collections::HashMap, sync::Arc, time::Duration};

use moka::future::Cache;
use serde_json::Map;
use tokio::sync::Semaphore;

use super::{AuthMethod, Identity, Refusal, limits::Checking};
use crate::secrets::{Mac, hex};

/// How long an answer is remembered.
const ANSWER_LIFETIME: Duration = Duration::from_mins(5);

/// How many passwords are checked at once; the others wait.
const BCRYPT_CONCURRENCY: usize = 2;

/// The users of the file, and their hashes.
pub type PasswordFile = HashMap<String, String>;

/// Reads a password file.
///
/// # Errors
/// The line that isn't one, with its mend; nothing of the line itself.
pub fn parse(text: &str) -> Result<PasswordFile, String> {
    let mut users = PasswordFile::new();
    for (i, line) in text.lines().enumerate() {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let wrong = |what: &str| format!("line {} {what}; expected user:$2y$…, as `htpasswd -B` writes it", i + 1);
        let (user, hash) = line.split_once(':').ok_or_else(|| wrong("has no colon"))?;
        if hash.parse::<bcrypt::HashParts>().is_err() {
            return Err(wrong("is no bcrypt hash"));
        }
        if user.is_empty() || users.insert(user.to_owned(), hash.to_owned()).is_some() {
            return Err(wrong("names nobody, or somebody who is named already"));
        }
    }
    Ok(users)
}

/// The passwords of a file.
pub struct Passwords {
    users: Arc<PasswordFile>,
    mac: Mac,
    right: Cache<[u8; 32], bool>,
    permits: Semaphore,
}

impl Passwords {
    /// The passwords of `users`.
    pub fn new(users: PasswordFile, mac: Mac) -> Self {
        let right = Cache::builder().max_capacity(10_000).time_to_live(ANSWER_LIFETIME).build();
        Self { users: Arc::new(users), mac, right, permits: Semaphore::new(BCRYPT_CONCURRENCY) }
    }

    /// Whether the file has this user.
    pub fn knows(&self, user: &str) -> bool {
        self.users.contains_key(user)
    }

    /// The user, if this was found to be their password lately.
    pub async fn known(&self, user: &str, password: &str) -> Option<Arc<Identity>> {
        let hash = self.users.get(user)?;
        let right = self.right.get(&self.mac.of(&[user, password, hash])).await?;
        right.then(|| Arc::new(self.identity(user, hash)))
    }

    /// The user, if this is their password.
    pub async fn find<'a>(
        &self,
        user: &str,
        password: &str,
        may_try: impl FnOnce() -> Result<Checking<'a>, Refusal>,
    ) -> Result<Arc<Identity>, Arc<Refusal>> {
        let Some(hash) = self.users.get(user) else { return Err(Arc::new(Refusal::WrongPassword)) };
        let check = async {
            let _checking = may_try()?;
            // Closed never.
            let _permit = self.permits.acquire().await;
            let (password, hash) = (password.to_owned(), hash.clone());
            let check = tokio::task::spawn_blocking(move || bcrypt::verify(password, &hash).unwrap_or(false));
            Ok::<_, Refusal>(check.await.unwrap_or(false))
        };
        if !self.right.try_get_with(self.mac.of(&[user, password, hash]), check).await? {
            return Err(Arc::new(Refusal::WrongPassword));
        }
        Ok(Arc::new(self.identity(user, hash)))
    }

    /// The user, if their password is still the one of this fingerprint.
    pub fn find_by_fingerprint(&self, user: &str, fingerprint: &str) -> Option<Arc<Identity>> {
        let hash = self.users.get(user)?;
        (self.fingerprint(user, hash) == fingerprint).then(|| Arc::new(self.identity(user, hash)))
    }

    fn identity(&self, user: &str, hash: &str) -> Identity {
        let via = AuthMethod::Password(self.fingerprint(user, hash));
        Identity::without_provider(user.to_owned(), Vec::new(), Map::new(), via)
    }

    /// Changes with the password, and says nothing of it.
    fn fingerprint(&self, user: &str, hash: &str) -> String {
        hex(&self.mac.of(&["fingerprint", user, hash])[..12])
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::secrets::RootKey;

    #[test]
    fn a_line_that_is_none_is_named_without_its_content() {
        let good = bcrypt::hash("secret", 4).expect("a hash");
        assert_eq!(parse(&format!("# people\n\nalice:{good}\nbob:{good}\n")).expect("a file").len(), 2);
        for (text, expected) in [
            ("alice", "line 1 has no colon"),
            ("alice:plain", "line 1 is no bcrypt hash"),
            ("alice:{SHA}x", "line 1 is no bcrypt hash"),
            (&format!("a:{good}\na:{good}"), "line 2 names nobody"),
            (&format!(":{good}"), "line 1 names nobody"),
        ] {
            let error = parse(text).expect_err(text);
            assert!(error.starts_with(expected) && !error.contains("plain"), "{error}");
        }
    }

    #[tokio::test]
    async fn a_new_password_ends_what_was_made_of_the_old_one() {
        let folder = tempfile::tempdir().expect("a folder");
        let root = RootKey::load_or_create(&folder.path().join("k")).expect("a key");
        let passwords = |password: &str| {
            let hash = bcrypt::hash(password, 4).expect("a hash");
            Passwords::new(HashMap::from([("alice".to_owned(), hash)]), Mac::new(&root, "passwords"))
        };
        let before = passwords("one");
        let limits = crate::identity::limits::Limits::new();
        let find = async |user: &str, password: &str| before.find(user, password, || limits.may_try(None, user)).await;
        let alice = find("alice", "one").await.expect("right");
        for (user, password) in [("alice", "two"), ("bob", "one")] {
            let refusal = find(user, password).await.expect_err("wrong");
            assert!(matches!(*refusal, Refusal::WrongPassword));
        }
        let AuthMethod::Password(fingerprint) = &alice.via else { panic!("{:?}", alice.via) };
        assert!(before.find_by_fingerprint("alice", fingerprint).is_some());
        assert!(passwords("two").find_by_fingerprint("alice", fingerprint).is_none());
    }
}
