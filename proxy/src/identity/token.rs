//! Our own registry tokens: what a client gets at `/zot/auth/token` and shows as `Authorization: Bearer`.
//!
//! A token says which credential it was made of and what it was asked for. It proves nothing beyond that: whether
//! the credential is still good and what its owner may do is asked again at each use.

use std::{sync::Arc, time::Duration};

use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, Header, Validation, errors::ErrorKind};
use moka::sync::Cache;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::{AuthMethod, Identity, Refusal, Rejection, scope::Access};
use crate::{
    secrets::{self, RootKey},
    store::{PersonId, now},
};

/// How long a token lives, unless it is configured.
pub const DEFAULT_LIFETIME: Duration = Duration::from_mins(15);

/// How long it lives at least: docker takes less for a mistake.
const MIN_LIFETIME_SECONDS: i64 = 60;

/// By how much clocks may differ, in seconds.
const LEEWAY_SECONDS: i64 = 60;

/// How long an upload may go on with the token that it began with.
const MAX_UPLOAD_DURATION: Duration = Duration::from_hours(24);

/// How many tokens are remembered, and the longest of them in bytes: those of jobs carry all claims of theirs.
const MAX_KNOWN: u64 = 10_000;
const MAX_KNOWN_BYTES: usize = 4096;

/// For how long a token that has run out is taken for the manifest that ends a push that it began. crane would repeat the
/// manifest with an empty body, and fail.
const MAX_MANIFEST_DELAY: Duration = Duration::from_hours(1);

/// What a token says (RFC 7519; `access` as in the registry token specification).
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Claims {
    jti: String,
    iss: String,
    aud: String,
    sub: String,
    iat: i64,
    nbf: i64,
    exp: i64,
    of: Origin,
    access: Vec<Access>,
}

/// The credential that a token was made of.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Origin {
    /// None: it is an anonymous token.
    Nobody,
    /// An API key, by its id.
    Key(String),
    /// A job's refresh token, by its id.
    RefreshToken(String),
    /// A terminal, by its id.
    Terminal(String),
    /// A credential helper's secret, made of a JWT of a workload: its rules are asked about its claims at each use.
    LoginSecret {
        /// Its issuer.
        issuer: String,
        /// Every claim.
        claims: Map<String, Value>,
        /// What the secret was for.
        scopes: Vec<String>,
    },
    /// A password of the password file, by its fingerprint.
    Password(String),
    /// A JWT of a workload: its rules are asked about its claims at each use.
    Workload {
        /// Its issuer.
        issuer: String,
        /// Every claim.
        claims: Map<String, Value>,
    },
    /// Something that isn't stored here: the token carries what it said of its owner.
    SelfContained(Contained),
}

/// What a token carries of its owner, who is not asked for it again.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Contained {
    method: AuthMethod,
    person: Option<PersonId>,
    vouched_at: i64,
    groups: Vec<String>,
    claims: Map<String, Value>,
}

impl Contained {
    /// The owner, called `user`.
    pub fn identity(self, user: String) -> Identity {
        let Self { method, person, vouched_at, groups, claims } = self;
        Identity { person, vouched_at, ..Identity::without_person(user, groups, claims, method) }
    }
}

impl Origin {
    /// The credential that somebody has shown; none, if no token is made of it.
    pub fn of(identity: &Identity) -> Option<Self> {
        Some(match &identity.method {
            AuthMethod::Session(_) => return None,
            AuthMethod::ApiKey(id) => Self::Key(id.clone()),
            AuthMethod::RefreshToken(id) => Self::RefreshToken(id.clone()),
            AuthMethod::Terminal(id) => Self::Terminal(id.clone()),
            AuthMethod::LoginSecret(issuer) => Self::LoginSecret {
                issuer: issuer.clone(),
                claims: identity.claims.clone(),
                scopes: identity.scopes.as_ref().map(|scopes| scopes.texts().to_vec()).unwrap_or_default(),
            },
            AuthMethod::Password(fingerprint) => Self::Password(fingerprint.clone()),
            AuthMethod::Workload(issuer) => Self::Workload { issuer: issuer.clone(), claims: identity.claims.clone() },
            AuthMethod::ProviderToken | AuthMethod::AppPassword | AuthMethod::Certificate(_) => {
                Self::SelfContained(Contained {
                    method: identity.method.clone(),
                    person: identity.person.clone(),
                    vouched_at: identity.vouched_at,
                    groups: identity.groups.clone(),
                    claims: identity.claims.clone(),
                })
            }
        })
    }
}

/// A genuine token.
#[derive(Debug)]
pub struct VerifiedToken {
    /// Its own name.
    pub id: String,
    /// Whose it is; empty for an anonymous token.
    pub user: String,
    /// What it was made of.
    pub origin: Origin,
    /// What it was made for.
    pub access: Arc<[Access]>,
    /// When it ends.
    expires_at: i64,
}

/// What a request has to do with a push that goes on for long.
#[derive(Clone, Copy, Debug)]
pub enum Push<'a> {
    /// It is about this upload.
    Upload(&'a str),
    /// It pushes a manifest to this repository.
    Manifest(&'a str),
}

/// Makes tokens, and knows them again.
pub struct Tokens {
    sign: EncodingKey,
    check: DecodingKey,
    validation: Validation,
    issuer: String,
    service: String,
    /// How long a token lives, in seconds.
    lifetime: i64,
    /// By how much clocks may differ, in seconds.
    leeway: i64,
    /// Those that were found to be genuine, by their hashes: a client shows the same one for many requests.
    known: Cache<[u8; 32], Arc<VerifiedToken>>,
    /// Uploads that are going on, who began each, and when.
    uploads: Cache<String, (String, i64)>,
    /// The tokens that have begun uploads, and in which repositories.
    pushes: Cache<(String, String), ()>,
}

impl Tokens {
    /// Tokens of the registry `service`, whose address is `issuer`, that live so long.
    pub fn new(root: &RootKey, issuer: String, service: String, lifetime: Duration) -> Self {
        let key = root.derive("registry tokens");
        let lifetime = i64::try_from(lifetime.as_secs()).unwrap_or(i64::MAX);
        let leeway = LEEWAY_SECONDS.min(lifetime);
        let mut validation = Validation::new(Algorithm::HS256);
        validation.set_issuer(&[&issuer]);
        validation.set_audience(&[&service]);
        validation.set_required_spec_claims(&["exp", "nbf", "iss", "aud"]);
        validation.validate_nbf = true;
        validation.validate_exp = false; // Looked at below: a push that began in time may end.
        validation.leeway = leeway.unsigned_abs();
        Self {
            sign: EncodingKey::from_secret(&key),
            check: DecodingKey::from_secret(&key),
            validation,
            issuer,
            service,
            lifetime,
            leeway,
            known: Cache::builder().max_capacity(MAX_KNOWN).time_to_live(DEFAULT_LIFETIME).build(),
            uploads: Cache::builder().max_capacity(100_000).time_to_live(MAX_UPLOAD_DURATION).build(),
            pushes: Cache::builder().max_capacity(100_000).time_to_live(MAX_UPLOAD_DURATION).build(),
        }
    }

    /// The constant `service` of the challenge, the audience of the tokens.
    pub fn service(&self) -> &str {
        &self.service
    }

    /// The `iss` of the tokens.
    pub fn issuer(&self) -> &str {
        &self.issuer
    }

    /// Makes a token of somebody's credential, or an anonymous one, for `access`; and how many seconds it lives: no
    /// longer than the credential, but a minute.
    ///
    /// # Errors
    /// [`Rejection::NoTokenOfThis`] if no token is made of this credential.
    pub fn mint(&self, identity: Option<&Identity>, access: Vec<Access>) -> Result<(String, i64), Refusal> {
        let origin = match identity {
            None => Origin::Nobody,
            Some(identity) => Origin::of(identity).ok_or(Rejection::NoTokenOfThis)?,
        };
        let left = identity.and_then(|identity| identity.good_until).map_or(self.lifetime, |until| until - now());
        let lifetime = left.max(MIN_LIFETIME_SECONDS).min(self.lifetime);
        let claims = Claims {
            jti: secrets::random_text(),
            iss: self.issuer.clone(),
            aud: self.service.clone(),
            sub: identity.map(|identity| identity.user.clone()).unwrap_or_default(),
            iat: now(),
            nbf: now(),
            exp: now() + lifetime,
            of: origin,
            access,
        };
        let token = jsonwebtoken::encode(&Header::new(Algorithm::HS256), &claims, &self.sign).map_err(|error| {
            tracing::error!(%error, "a token can't be written");
            Rejection::NoTokenOfThis
        })?;
        Ok((token, lifetime))
    }

    /// A token that was found to be genuine a while ago; it may have run out.
    pub fn known(&self, token: &str) -> Option<Arc<VerifiedToken>> {
        self.known.get(&secrets::digest(token))
    }

    /// Reads a token, and remembers it if it is genuine; it may have run out.
    ///
    /// # Errors
    /// [`Rejection::NotAToken`]
    pub fn read(&self, token: &str) -> Result<Arc<VerifiedToken>, Refusal> {
        let verified = Arc::new(self.decode(token)?);
        if token.len() <= MAX_KNOWN_BYTES {
            self.known.insert(secrets::digest(token), Arc::clone(&verified));
        }
        Ok(verified)
    }

    fn decode(&self, token: &str) -> Result<VerifiedToken, Refusal> {
        let decoded = jsonwebtoken::decode::<Claims>(token, &self.check, &self.validation);
        let claims = decoded.map_err(|error| {
            match error.kind() {
                ErrorKind::InvalidSignature | ErrorKind::InvalidToken => {}
                kind => tracing::debug!(?kind, "a token was refused"),
            }
            Rejection::NotAToken
        })?;
        let Claims { jti: id, sub: user, of: origin, access, exp: expires_at, .. } = claims.claims;
        Ok(VerifiedToken { id, user, origin, access: access.into(), expires_at })
    }

    /// Fails if a token has run out: it is still taken for the upload that its own subject began, and for the manifest that
    /// ends a push that it began itself.
    ///
    /// # Errors
    /// [`Rejection::ExpiredToken`]
    pub fn must_be_in_time(&self, token: &VerifiedToken, push: Option<Push<'_>>) -> Result<(), Refusal> {
        let good_until = token.expires_at + self.leeway;
        let in_time = good_until > now();
        let begun = || match push {
            // A token that was good when the upload began, and not any old one.
            Some(Push::Upload(id)) => {
                self.uploads.get(id).is_some_and(|(user, at)| user == token.user && good_until > at)
            }
            Some(Push::Manifest(repository)) => {
                let delay = u64::try_from(now().saturating_sub(token.expires_at)).unwrap_or_default();
                delay <= MAX_MANIFEST_DELAY.as_secs()
                    && self.pushes.contains_key(&(token.id.clone(), repository.to_owned()))
            }
            None => false,
        };
        if in_time || begun() { Ok(()) } else { Err(Rejection::ExpiredToken.into()) }
    }

    /// Remembers that `user` began the upload `id` in a repository, with this token if it was one.
    pub fn began_upload(&self, id: &str, user: &str, repository: &str, token: Option<&str>) {
        self.uploads.insert(id.to_owned(), (user.to_owned(), now()));
        if let Some(token) = token {
            self.pushes.insert((token.to_owned(), repository.to_owned()), ());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tokens() -> (tempfile::TempDir, Tokens) {
        let folder = tempfile::tempdir().expect("a folder");
        let root = RootKey::load_or_create(&folder.path().join("k")).expect("a key");
        (folder, Tokens::new(&root, "https://r".to_owned(), "r".to_owned(), DEFAULT_LIFETIME))
    }

    fn expired(tokens: &Tokens, user: &str, ago: i64) -> String {
        let (service, iss) = (tokens.service.clone(), tokens.issuer.clone());
        let (iat, exp) = (now() - ago - 900, now() - ago);
        let (jti, of, access) = ("j".to_owned(), Origin::Key("key".to_owned()), Vec::new());
        let claims = Claims { jti, iss, aud: service, sub: user.to_owned(), iat, nbf: iat, exp, of, access };
        jsonwebtoken::encode(&Header::new(Algorithm::HS256), &claims, &tokens.sign).expect("a token")
    }

    impl Tokens {
        fn verify(&self, token: &str, push: Option<Push<'_>>) -> Result<Arc<VerifiedToken>, Refusal> {
            let token = self.known(token).map_or_else(|| self.read(token), Ok)?;
            self.must_be_in_time(&token, push).map(|()| token)
        }

        fn is_known(&self, token: &str) -> bool {
            self.known(token).is_some()
        }
    }

    fn rejection(verified: Result<Arc<VerifiedToken>, Refusal>) -> Rejection {
        match verified {
            Err(Refusal::Rejected(rejection)) => rejection,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_token_comes_back_as_it_was_made() {
        let (_folder, tokens) = tokens();
        let access = vec![Access::parse("repository:a:pull").expect("a scope")];
        let mut alice = Identity::for_test("alice", &["dev"]);
        for (method, expected) in [
            (AuthMethod::ApiKey("key".to_owned()), Some(Origin::Key("key".to_owned()))),
            (AuthMethod::RefreshToken("r".to_owned()), Some(Origin::RefreshToken("r".to_owned()))),
            (AuthMethod::AppPassword, None),
        ] {
            alice.method = method;
            let (token, lifetime) = tokens.mint(Some(&alice), access.clone()).expect("a token");
            let verified = tokens.verify(&token, None).expect("genuine");
            assert_eq!((verified.user.as_str(), &verified.access[..], lifetime), ("alice", &access[..], 900));
            match (&verified.origin, expected) {
                (Origin::SelfContained(contained), None) => {
                    let identity = contained.clone().identity("alice".to_owned());
                    assert_eq!((identity.groups, identity.method), (alice.groups.clone(), alice.method.clone()));
                }
                (origin, expected) => assert_eq!(Some(origin), expected.as_ref()),
            }
            // It is remembered, and nothing else is taken for it.
            assert!(tokens.is_known(&token) && !tokens.is_known(&token[1..]));
            assert!(tokens.verify(&format!("{token}x"), None).is_err());
        }
        alice.method = AuthMethod::Session("s".to_owned());
        assert!(matches!(tokens.mint(Some(&alice), access), Err(Refusal::Rejected(Rejection::NoTokenOfThis))));
    }

    #[test]
    fn a_token_lives_no_longer_than_its_credential_but_a_minute() {
        let (_folder, tokens) = tokens();
        let mut job = Identity::for_test("job", &[]);
        for (left, expected) in [(10_000, 900), (300, 300), (5, 60), (-5, 60)] {
            job.good_until = Some(now() + left);
            let (_, lifetime) = tokens.mint(Some(&job), Vec::new()).expect("a token");
            assert!((expected - 1..=expected).contains(&lifetime), "{left}: {lifetime}");
        }
    }

    #[test]
    fn an_expired_token_ends_only_what_it_began() {
        let (_folder, tokens) = tokens();
        // Begun while the token was good, by another one, and when it had expired already.
        tokens.uploads.insert("mine".to_owned(), ("alice".to_owned(), now() - 1_000));
        tokens.uploads.insert("other".to_owned(), ("bob".to_owned(), now() - 1_000));
        tokens.began_upload("later", "alice", "a/b", Some("another token"));
        let token = expired(&tokens, "alice", 900);
        assert!(tokens.verify(&token, Some(Push::Upload("mine"))).is_ok());
        // It is remembered now, and as good for nothing else as before.
        assert!(tokens.is_known(&token));
        let manifest = Some(Push::Manifest("a/b"));
        for push in [None, Some(Push::Upload("other")), Some(Push::Upload("later")), Some(Push::Upload("?")), manifest]
        {
            assert!(matches!(rejection(tokens.verify(&token, push)), Rejection::ExpiredToken), "{push:?}");
        }
        // The manifest that ends the push, there and for an hour.
        tokens.began_upload("x", "alice", "a/b", Some("j"));
        assert!(tokens.verify(&token, manifest).is_ok());
        assert!(tokens.verify(&token, Some(Push::Manifest("a/c"))).is_err());
        assert!(tokens.verify(&expired(&tokens, "alice", 3_700), manifest).is_err());
    }

    #[test]
    fn a_token_of_another_key_or_algorithm_is_none() {
        let ((_a, ours), (_b, theirs)) = (tokens(), tokens());
        let (token, _) = theirs.mint(None, Vec::new()).expect("a token");
        // {"alg":"none","typ":"JWT"}
        let payload = token.split('.').nth(1).expect("a payload");
        let none = format!("eyJhbGciOiJub25lIiwidHlwIjoiSldUIn0.{payload}.");
        for token in [token.as_str(), &none, ""] {
            assert!(matches!(rejection(ours.verify(token, None)), Rejection::NotAToken));
        }
    }
}
