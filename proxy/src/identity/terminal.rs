//! Terminals that somebody has signed in (RFC 8628). Each holds a refresh token, which is another one after each use, and gets
//! a [`login_secret`](super::login_secret) for it.
//!
//! A refresh token says which terminal's it is and how many there were before it, under a keyed hash. So one that was used
//! before is known: whoever shows it is not the terminal, or the terminal isn't the only one that has it, and then it ends
//! (RFC 9700, section 2.2.2). An answer may be lost, though: a terminal that sends something random with its question may
//! repeat that question with it, and gets the same answer.

use std::{net::IpAddr, sync::Arc, time::Duration};

use aws_lc_rs::constant_time::verify_slices_are_equal;
use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD};
use uuid::Uuid;

use super::{AuthMethod, Identity, Refusal, Rejection, api_key_scopes::KeyScopes, credential_cache::CredentialCache};
use crate::{
    network::Network,
    secrets::{self, Mac, RootKey},
    store::{Asking, MostAsking, NewDeviceCode, PersonId, Poll, Store, StoreError, Terminal},
};

/// What every refresh token of a terminal begins with.
pub const PREFIX: &str = "btr_";

/// A terminal that asked for nothing for so long has ended.
const UNUSED_LIFETIME: Duration = Duration::from_hours(30 * 24);

/// How many terminals one person may have.
pub const MAX_TERMINALS: usize = 100;

/// How long a terminal may wait to be let in, in seconds.
pub const CODE_LIFETIME_SECONDS: i64 = 600;

/// How often it may ask, in seconds.
pub const POLL_INTERVAL_SECONDS: i64 = 2;

/// How many may be waiting, of one network and in all.
const MOST_ASKING: MostAsking = MostAsking { per_network: 100, all: 10_000 };

/// The letters of the codes that people type: without vowels, which make words, and without look-alikes (RFC 8628, section 6.1).
const CODE_LETTERS: &[u8; 20] = b"BCDFGHJKLMNPQRSTVWXZ";
const CODE_LEN: usize = 8;

/// How much is kept of what a terminal calls itself.
pub const MAX_NAME_CHARS: usize = 80;

/// Whether a text looks like a terminal's refresh token.
pub fn is_refresh_token(text: &str) -> bool {
    text.starts_with(PREFIX)
}

/// The letters of a code that somebody has typed, however they were set.
fn letters(typed: &str) -> String {
    let letters = typed.chars().filter(char::is_ascii_alphanumeric).map(|c| c.to_ascii_uppercase());
    letters.take(CODE_LEN + 1).collect()
}

/// The code as people read it: `WDJB-MJHT`.
pub fn set_code(code: &str) -> String {
    let letters = letters(code);
    match letters.split_at_checked(CODE_LEN / 2) {
        Some((first, second)) => format!("{first}-{second}"),
        None => letters,
    }
}

/// A terminal that has begun to ask.
pub struct DeviceCode {
    /// What it asks with.
    pub device: String,
    /// What somebody types.
    pub user: String,
}

/// What a terminal hears that asks.
pub enum Answer {
    /// It has expired, or never was.
    Expired,
    /// It has asked too soon, and waits five seconds longer from now on.
    TooSoon,
    /// Nobody has decided yet.
    Pending,
    /// Somebody has said no.
    Denied,
    /// Somebody has said yes: it has this refresh token.
    SignedIn(Box<Terminal>, String),
}

/// The terminals, with those in use in memory.
pub struct Terminals {
    store: Store,
    mac: Mac,
    by_id: CredentialCache<Known>,
}

#[derive(Clone)]
struct Known {
    terminal: Arc<Terminal>,
    identity: Arc<Identity>,
}

impl TryFrom<Terminal> for Known {
    type Error = Rejection;

    fn try_from(terminal: Terminal) -> Result<Self, Rejection> {
        let mut identity = Identity::of_person(terminal.user.clone(), AuthMethod::Terminal(terminal.id.clone()));
        identity.scopes = KeyScopes::parse(&terminal.scopes).map_err(|_| Rejection::UnreadableKey)?;
        Ok(Self { terminal: Arc::new(terminal), identity: Arc::new(identity) })
    }
}

fn network(client: Option<IpAddr>) -> String {
    client.map(|client| Network::of(client).to_string()).unwrap_or_default()
}

fn address(client: Option<IpAddr>) -> String {
    client.map(|client| client.to_string()).unwrap_or_default()
}

impl Terminals {
    /// The terminals in `store`.
    pub fn new(store: Store, root: &RootKey) -> Self {
        Self { store, mac: Mac::new(root, "refresh tokens of terminals"), by_id: CredentialCache::new() }
    }

    /// `btr_`, and in base64 the terminal's id, the generation, and the keyed hash of both.
    fn refresh_token(&self, id: &str, generation: i64) -> String {
        let mut bytes = Uuid::try_parse(id).unwrap_or_default().into_bytes().to_vec();
        bytes.extend_from_slice(&generation.to_be_bytes());
        bytes.extend_from_slice(&self.mac.of(&[id, &generation.to_string()]));
        format!("{PREFIX}{}", BASE64_URL_SAFE_NO_PAD.encode(bytes))
    }

    /// The terminal and the generation of a refresh token that we have made.
    fn genuine(&self, text: &str) -> Option<(String, i64)> {
        let bytes = BASE64_URL_SAFE_NO_PAD.decode(text.strip_prefix(PREFIX)?).ok()?;
        let (id, rest) = bytes.split_first_chunk::<16>()?;
        let (generation, mac) = rest.split_first_chunk::<8>()?;
        let (id, generation) = (Uuid::from_bytes(*id).simple().to_string(), i64::from_be_bytes(*generation));
        verify_slices_are_equal(mac, &self.mac.of(&[&id, &generation.to_string()])).ok()?;
        Some((id, generation))
    }

    /// Whether another terminal may begin to ask from there.
    pub async fn may_begin(&self, client: Option<IpAddr>) -> Result<bool, StoreError> {
        self.store.may_ask(&network(client), &MOST_ASKING).await
    }

    /// A terminal begins to ask; nothing, if too many do already.
    pub async fn begin(
        &self,
        name: &str,
        scopes: &[String],
        client: Option<IpAddr>,
    ) -> Result<Option<DeviceCode>, StoreError> {
        let code = DeviceCode { device: secrets::random_text(), user: secrets::random_letters(CODE_LETTERS, CODE_LEN) };
        let new = NewDeviceCode {
            device_hash: &secrets::hash(&code.device),
            user_hash: &secrets::hash(&code.user),
            name,
            scopes,
            client: &address(client),
            network: &network(client),
            lifetime: CODE_LIFETIME_SECONDS,
            poll_interval: POLL_INTERVAL_SECONDS,
        };
        Ok(self.store.create_device_code(&new, &MOST_ASKING).await?.then_some(code))
    }

    /// The terminal that asks under the code that somebody has typed.
    ///
    /// # Errors
    /// [`Rejection::UnknownCode`], which is a guess.
    pub async fn asking(&self, typed: &str) -> Result<Asking, Refusal> {
        let found = self.store.asking_device(&secrets::hash(&letters(typed))).await?;
        found.ok_or_else(|| Rejection::UnknownCode.into())
    }

    /// Lets the terminal in that asks under a code, or not.
    ///
    /// # Errors
    /// [`Rejection::UnknownCode`], which is a guess.
    pub async fn decide(&self, typed: &str, by: &PersonId, allowed: bool) -> Result<(), Refusal> {
        match self.store.decide_device(&secrets::hash(&letters(typed)), by, allowed).await? {
            true => Ok(()),
            false => Err(Rejection::UnknownCode.into()),
        }
    }

    /// What a terminal hears that asks.
    pub async fn poll(&self, device: &str, client: Option<IpAddr>) -> Result<Answer, StoreError> {
        let id = Uuid::new_v4().simple().to_string();
        let most = i64::try_from(MAX_TERMINALS).unwrap_or(i64::MAX);
        Ok(match self.store.poll_device(&secrets::hash(device), &id, &address(client), most).await? {
            Poll::Expired => Answer::Expired,
            Poll::TooSoon => Answer::TooSoon,
            Poll::Pending => Answer::Pending,
            Poll::Denied => Answer::Denied,
            Poll::SignedIn(terminal) => {
                let token = self.refresh_token(&terminal.id, terminal.generation);
                Answer::SignedIn(terminal, token)
            }
        })
    }

    /// Whose refresh token this is, or was.
    pub async fn find(&self, text: &str) -> Result<Arc<Identity>, Refusal> {
        let (id, _) = self.genuine(text).ok_or(Rejection::UnknownRefreshToken)?;
        Ok(Known::try_from(self.load(&id).await?)?.identity)
    }

    /// Gives the terminal its next refresh token for this one; its id, and that. With `retry`, the same question may be asked
    /// again until the next token is used.
    ///
    /// # Errors
    /// [`Rejection::ReplayedRefreshToken`] for one that was used before: then the terminal ends.
    pub async fn rotate(
        &self,
        text: &str,
        retry: Option<&str>,
        client: Option<IpAddr>,
    ) -> Result<(String, String), Refusal> {
        let (id, generation) = self.genuine(text).ok_or(Rejection::UnknownRefreshToken)?;
        let retry_hash = retry.map(secrets::hash).unwrap_or_default();
        if self.store.rotate_terminal(&id, generation, &retry_hash, &address(client)).await? {
            let next = self.refresh_token(&id, generation + 1);
            return Ok((id, next));
        }
        let terminal = self.load(&id).await?;
        let is_same = verify_slices_are_equal(terminal.retry_hash.as_bytes(), retry_hash.as_bytes()).is_ok();
        if retry.is_some() && terminal.generation == generation + 1 && is_same {
            let next = self.refresh_token(&id, terminal.generation);
            return Ok((id, next));
        }
        self.end(&id).await?;
        Err(Rejection::ReplayedRefreshToken.into())
    }

    /// A terminal that is in use. It is asked for seldom, and so of the database.
    async fn load(&self, id: &str) -> Result<Terminal, Refusal> {
        let found = self.store.terminal(id).await?.filter(is_in_use);
        found.ok_or_else(|| Rejection::UnknownRefreshToken.into())
    }

    /// The owner of the terminal of this id.
    pub async fn find_by_id(&self, id: &str) -> Result<Arc<Identity>, Refusal> {
        let load = async { Ok(self.store.terminal(id).await?.and_then(|terminal| Known::try_from(terminal).ok())) };
        let known = self.by_id.get(id, load).await?.filter(|known| is_in_use(&known.terminal));
        Ok(known.ok_or(Rejection::OrphanToken)?.identity)
    }

    /// Somebody's terminals.
    pub async fn of(&self, owner: &PersonId) -> Result<Vec<Terminal>, StoreError> {
        let mut terminals = self.store.terminals_of(owner).await?;
        terminals.retain(is_in_use);
        Ok(terminals)
    }

    /// Ends a terminal of this person; whether there was one. What it has got stops here at once.
    pub async fn end_of(&self, owner: &PersonId, id: &str) -> Result<bool, StoreError> {
        let theirs = self.store.terminal(id).await?.is_some_and(|terminal| terminal.user.id == *owner);
        Ok(theirs && self.end(id).await?)
    }

    /// Ends the terminal of a refresh token, also of one that was used before; gives its id, if there was one.
    pub async fn end_by_token(&self, text: &str) -> Result<Option<String>, StoreError> {
        let Some((id, _)) = self.genuine(text) else { return Ok(None) };
        Ok(self.end(&id).await?.then_some(id))
    }

    async fn end(&self, id: &str) -> Result<bool, StoreError> {
        let there = self.store.delete_terminal(id).await?;
        self.by_id.forget(id).await;
        Ok(there)
    }

    /// Looks the terminals up again, because their owner's claims or standing have changed.
    pub fn refresh(&self) {
        self.by_id.refresh();
    }

    /// Forgets those that have ended.
    pub async fn sweep(&self) -> Result<(), StoreError> {
        self.store.delete_old_terminals(UNUSED_LIFETIME).await
    }
}

fn is_in_use(terminal: &Terminal) -> bool {
    let unused = crate::store::now().saturating_sub(terminal.used_at);
    u64::try_from(unused).unwrap_or_default() <= UNUSED_LIFETIME.as_secs()
}

#[cfg(test)]
mod tests {
    use serde_json::Map;

    use super::*;
    use crate::store::{User, for_test};

    fn rejection<T>(found: Result<T, Refusal>) -> Rejection {
        match found {
            Err(Refusal::Rejected(rejection)) => rejection,
            Err(other) => panic!("{other:?}"),
            Ok(_) => panic!("it was taken"),
        }
    }

    fn terminals_in(store: Store) -> Terminals {
        let folder = tempfile::tempdir().expect("a folder");
        Terminals::new(store, &RootKey::load_or_create(&folder.path().join("k")).expect("a key"))
    }

    async fn signed_in(terminals: &Terminals, by: &PersonId) -> String {
        let code = terminals.begin("laptop", &["read".to_owned()], None).await.expect("stored").expect("a code");
        assert!(matches!(terminals.poll(&code.device, None).await.expect("asked"), Answer::Pending));
        // It is too soon within the same second of the clock, and another one may have begun.
        let mut polls = 0;
        while !matches!(terminals.poll(&code.device, None).await.expect("asked"), Answer::TooSoon) {
            polls += 1;
            assert!(polls < 20, "it is never too soon");
        }
        terminals.decide(&set_code(&code.user.to_lowercase()), by, true).await.expect("decided");
        let Answer::SignedIn(_, token) = terminals.poll(&code.device, None).await.expect("asked") else {
            panic!("not signed in");
        };
        assert!(matches!(terminals.poll(&code.device, None).await.expect("asked"), Answer::Expired));
        token
    }

    #[tokio::test]
    async fn a_refresh_token_is_good_once_and_a_second_use_ends_the_terminal() {
        let (_folder, store) = for_test().await;
        let id = PersonId { provider: "oidc".to_owned(), subject: "1".to_owned() };
        let alice = User { id: id.clone(), name: "alice".to_owned(), groups: Vec::new(), claims: Map::new() };
        store.sign_in(&alice, None).await.expect("signed in");
        let terminals = terminals_in(store);
        let first = signed_in(&terminals, &id).await;
        assert_eq!(terminals.find(&first).await.expect("good").user, "alice");
        let (of, second) = terminals.rotate(&first, None, None).await.expect("another one");
        // An answer that was lost is given again to whoever can repeat the question, until the next one is used.
        let (_, third) = terminals.rotate(&second, Some("random"), None).await.expect("another one");
        let (_, again) = terminals.rotate(&second, Some("random"), None).await.expect("the same one");
        assert_eq!(again, third);
        let (_, fourth) = terminals.rotate(&third, Some("other"), None).await.expect("another one");
        // What we haven't made ends nothing.
        let mut forged = fourth.clone().into_bytes();
        forged[40] = if forged[40] == b'A' { b'B' } else { b'A' };
        let forged = String::from_utf8(forged).expect("text");
        assert!(matches!(rejection(terminals.rotate(&forged, None, None).await), Rejection::UnknownRefreshToken));
        assert_eq!(terminals.end_by_token(&forged).await.expect("asked"), None);
        let replay = terminals.rotate(&second, Some("random"), None).await;
        assert!(matches!(rejection(replay), Rejection::ReplayedRefreshToken));
        assert!(matches!(rejection(terminals.find(&fourth).await), Rejection::UnknownRefreshToken));
        assert!(matches!(rejection(terminals.find_by_id(&of).await), Rejection::OrphanToken));
        // Without that, or with another, whoever comes second has copied it.
        for (with, retry) in [(None, None), (Some("a"), None), (Some("a"), Some("b"))] {
            let token = signed_in(&terminals, &id).await;
            terminals.rotate(&token, with, None).await.expect("another one");
            let replay = terminals.rotate(&token, retry, None).await;
            assert!(matches!(rejection(replay), Rejection::ReplayedRefreshToken));
        }
        // Another terminal of the same person goes on.
        let other = signed_in(&terminals, &id).await;
        let (other, _) = terminals.rotate(&other, None, None).await.expect("another one");
        let bob = PersonId { subject: "2".to_owned(), ..id.clone() };
        assert!(!terminals.end_of(&bob, &other).await.expect("asked"));
        assert!(terminals.end_of(&id, &other).await.expect("ended"));
        assert!(matches!(rejection(terminals.find_by_id(&other).await), Rejection::OrphanToken));
    }

    #[tokio::test]
    async fn a_code_is_decided_about_once_and_only_so_many_ask() {
        let (_folder, store) = for_test().await;
        let id = PersonId { provider: "oidc".to_owned(), subject: "1".to_owned() };
        let terminals = terminals_in(store);
        let code = terminals.begin("laptop", &[], None).await.expect("stored").expect("a code");
        assert_eq!(terminals.asking(&code.user).await.expect("found").name, "laptop");
        terminals.decide(&code.user, &id, false).await.expect("decided");
        assert!(matches!(rejection(terminals.decide(&code.user, &id, true).await), Rejection::UnknownCode));
        assert!(matches!(rejection(terminals.asking(&code.user).await), Rejection::UnknownCode));
        assert!(matches!(terminals.poll(&code.device, None).await.expect("asked"), Answer::Denied));
        let client = Some(IpAddr::from([192, 0, 2, 1]));
        for _ in 0..MOST_ASKING.per_network {
            assert!(terminals.begin("laptop", &[], client).await.expect("stored").is_some());
        }
        assert!(terminals.begin("laptop", &[], client).await.expect("asked").is_none());
        assert!(terminals.begin("laptop", &[], Some(IpAddr::from([192, 0, 2, 2]))).await.expect("stored").is_some());
    }

    #[test]
    fn codes_are_read_however_they_are_typed() {
        for typed in ["WDJB-MJHT", "wdjbmjht", " wdjb mjht\n"] {
            assert_eq!((letters(typed).as_str(), set_code(typed).as_str()), ("WDJBMJHT", "WDJB-MJHT"));
        }
        assert_eq!(letters("WDJBMJHTX").len(), 9);
        assert_eq!(set_code("WD"), "WD");
    }
}
