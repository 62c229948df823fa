//! The password file: `user:bcrypt hash`, a line each, as Apache's `htpasswd -B` writes it.
//!
//! Checking a password takes a tenth of a second of work by design, so it is done once and off the async threads, and
//! the answer is remembered under a keyed hash.

use std::{collections::HashMap, sync::Arc, time::Duration};

use moka::future::Cache;
use serde_json::{Map, Value};
use tokio::sync::Semaphore;

use super::{AuthMethod, Identity, Refusal, Rejection, limits::Checking};
use crate::secrets::{Mac, hex};

/// How long an answer is remembered.
const ANSWER_LIFETIME: Duration = Duration::from_mins(5);

/// How many passwords are checked at once; the others wait.
const BCRYPT_CONCURRENCY: usize = 2;

/// The claim that holds the fingerprint of a password.
const FINGERPRINT_CLAIM: &str = "password_fingerprint";

/// The users of the file, and their hashes.
pub type PasswordFile = HashMap<String, String>;

/// Reads a password file; beside its users, what is said of the lines that were left out: those whose hash is another than
/// bcrypt, which zot takes in part.
///
/// # Errors
/// The line that isn't one, with its mend; nothing of the line itself. Also if no line is left.
pub fn parse(text: &str) -> Result<(PasswordFile, Vec<String>), String> {
    let mut users = PasswordFile::new();
    let mut left_out = Vec::new();
    for (i, line) in text.lines().enumerate() {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let wrong = |what: &str| format!("line {} {what}; expected user:$2y$…, as `htpasswd -B` writes it", i + 1);
        let (user, hash) = line.split_once(':').ok_or_else(|| wrong("has no colon"))?;
        if user.is_empty() || users.contains_key(user) {
            return Err(wrong("names nobody, or somebody who is named already"));
        }
        if hash.parse::<bcrypt::HashParts>().is_err() {
            left_out.push(wrong("is no bcrypt hash, and was left out"));
            continue;
        }
        users.insert(user.to_owned(), hash.to_owned());
    }
    match left_out.first() {
        Some(first) if users.is_empty() => Err(first.clone()),
        _ => Ok((users, left_out)),
    }
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

    /// The user, if this is their password. Somebody who isn't in the file is refused after the same work.
    pub async fn find<'a>(
        &self,
        user: &str,
        password: &str,
        may_try: impl FnOnce() -> Result<Checking<'a>, Refusal>,
    ) -> Result<Arc<Identity>, Refusal> {
        let known = self.users.get(user);
        let Some(hash) = known.or_else(|| self.users.values().next()) else {
            return Err(Rejection::WrongPassword.into());
        };
        let check = async {
            let _checking = may_try()?;
            // Closed never.
            let _permit = self.permits.acquire().await;
            let (password, hash) = (password.to_owned(), hash.clone());
            let check = tokio::task::spawn_blocking(move || bcrypt::verify(password, &hash).unwrap_or(false));
            Ok::<_, Refusal>(check.await.unwrap_or(false))
        };
        let right = self.right.try_get_with(self.mac.of(&[user, password, hash]), check).await;
        match (right.map_err(|refusal| Refusal::clone(&refusal))?, known) {
            (true, Some(hash)) => Ok(Arc::new(self.identity(user, hash))),
            _ => Err(Rejection::WrongPassword.into()),
        }
    }

    /// The user, if their password is still the one of this fingerprint.
    pub fn find_by_fingerprint(&self, user: &str, fingerprint: &str) -> Option<Arc<Identity>> {
        let hash = self.users.get(user)?;
        (self.fingerprint(user, hash) == fingerprint).then(|| Arc::new(self.identity(user, hash)))
    }

    /// What is kept of somebody who has signed in with a browser, to see that their password is still the same.
    pub fn claims(&self, fingerprint: &str) -> Map<String, Value> {
        Map::from_iter([(FINGERPRINT_CLAIM.to_owned(), fingerprint.into())])
    }

    /// Whether the password of that is still theirs.
    pub fn vouches_for(&self, identity: &Identity) -> bool {
        let fingerprint = identity.claims.get(FINGERPRINT_CLAIM).and_then(Value::as_str);
        fingerprint.is_some_and(|fingerprint| self.find_by_fingerprint(&identity.user, fingerprint).is_some())
    }

    fn identity(&self, user: &str, hash: &str) -> Identity {
        let method = AuthMethod::Password(self.fingerprint(user, hash));
        Identity::without_person(user.to_owned(), Vec::new(), Map::new(), method)
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
        let (users, left_out) = parse(&format!("# people\n\nalice:{good}\nbob:{good}\n")).expect("a file");
        assert_eq!((users.len(), left_out.len()), (2, 0));
        // zot takes SHA-crypt, too; whoever has that gets a new password, and the others aren't shut out for it.
        let (users, left_out) = parse(&format!("alice:{good}\nbob:$6$salt$hash\ncarol:plain")).expect("a file");
        assert_eq!((users.len(), left_out.len()), (1, 2));
        assert!(left_out[0].starts_with("line 2 is no bcrypt hash") && !left_out[1].contains("plain"), "{left_out:?}");
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
            assert!(matches!(refusal, Refusal::Rejected(Rejection::WrongPassword)));
        }
        let AuthMethod::Password(fingerprint) = &alice.method else { panic!("{:?}", alice.method) };
        assert!(before.find_by_fingerprint("alice", fingerprint).is_some());
        assert!(passwords("two").find_by_fingerprint("alice", fingerprint).is_none());
    }
}
