//! Our own registry tokens: what a client gets at `/zot/auth/token` and shows as `Authorization: Bearer`.
//!
//! A token says which credential it was made of and what it was asked for. It proves nothing beyond that: whether
//! the credential is still good and what its owner may do is asked again at each use.

use std::time::Duration;

use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, Header, Validation, errors::ErrorKind};
use moka::sync::Cache;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::{AuthMethod, Identity, Refusal, scope::Access};
use crate::{secrets::RootKey, store::now};

/// How long a token lives at most.
const MAX_LIFETIME_SECONDS: i64 = 15 * 60;

/// How long it lives at least: docker takes less for a mistake.
const MIN_LIFETIME_SECONDS: i64 = 60;

/// By how much clocks may differ, in seconds.
const LEEWAY_SECONDS: i64 = 60;

/// How long a push may go on with the token that it began with.
const MAX_PUSH_DURATION: Duration = Duration::from_hours(24);

/// What a token says (RFC 7519; `access` as in the registry token specification).
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Claims {
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
    /// A password of the password file, by its fingerprint.
    Password(String),
    /// Something that can't be revoked here and lives no longer than the token: it said this of its owner.
    SelfContained {
        /// What it was.
        via: AuthMethod,
        /// The groups, by the claims.
        groups: Vec<String>,
        /// Every claim.
        claims: Map<String, Value>,
    },
}

impl Origin {
    /// The credential that somebody has shown; none, if no token is made of it.
    pub fn of(identity: &Identity) -> Option<Self> {
        Some(match &identity.via {
            AuthMethod::Session(_) => return None,
            AuthMethod::ApiKey(id) => Self::Key(id.clone()),
            AuthMethod::RefreshToken(id) => Self::RefreshToken(id.clone()),
            AuthMethod::Password(fingerprint) => Self::Password(fingerprint.clone()),
            via @ (AuthMethod::ProviderToken
            | AuthMethod::AppPassword
            | AuthMethod::Workload(_)
            | AuthMethod::Certificate) => Self::SelfContained {
                via: via.clone(),
                groups: identity.groups.clone(),
                claims: identity.claims.clone(),
            },
        })
    }
}

/// A genuine token.
#[derive(Clone, Debug)]
pub struct VerifiedToken {
    /// Whose it is; empty for an anonymous token.
    pub user: String,
    /// What it was made of.
    pub origin: Origin,
    /// What it was made for.
    pub access: Vec<Access>,
}

/// Makes tokens, and knows them again.
pub struct Tokens {
    sign: EncodingKey,
    check: DecodingKey,
    validation: Validation,
    issuer: String,
    service: String,
    /// Uploads that are going on, who began each, and when.
    uploads: Cache<String, (String, i64)>,
}

impl Tokens {
    /// Tokens of the registry `service`, whose address is `issuer`.
    pub fn new(root: &RootKey, issuer: String, service: String) -> Self {
        let key = root.derive("registry tokens");
        let mut validation = Validation::new(Algorithm::HS256);
        validation.set_issuer(&[&issuer]);
        validation.set_audience(&[&service]);
        validation.set_required_spec_claims(&["exp", "nbf", "iss", "aud"]);
        validation.validate_nbf = true;
        validation.validate_exp = false; // Looked at below: a push that began in time may end.
        validation.leeway = LEEWAY_SECONDS.unsigned_abs();
        Self {
            sign: EncodingKey::from_secret(&key),
            check: DecodingKey::from_secret(&key),
            validation,
            issuer,
            service,
            uploads: Cache::builder().max_capacity(100_000).time_to_live(MAX_PUSH_DURATION).build(),
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
    /// [`Refusal::NoTokenOfThis`] if no token is made of this credential.
    pub fn mint(&self, identity: Option<&Identity>, access: Vec<Access>) -> Result<(String, i64), Refusal> {
        let origin = match identity {
            None => Origin::Nobody,
            Some(identity) => Origin::of(identity).ok_or(Refusal::NoTokenOfThis)?,
        };
        let left =
            identity.and_then(|identity| identity.good_until).map_or(MAX_LIFETIME_SECONDS, |until| until - now());
        let lifetime = left.clamp(MIN_LIFETIME_SECONDS, MAX_LIFETIME_SECONDS);
        let claims = Claims {
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
            Refusal::NoTokenOfThis
        })?;
        Ok((token, lifetime))
    }

    /// Reads a token; one that has run out only for the `upload` that its own subject began.
    pub fn verify(&self, token: &str, upload: Option<&str>) -> Result<VerifiedToken, Refusal> {
        let decoded = jsonwebtoken::decode::<Claims>(token, &self.check, &self.validation);
        let claims = decoded.map_err(|error| {
            match error.kind() {
                ErrorKind::InvalidSignature | ErrorKind::InvalidToken => {}
                kind => tracing::debug!(?kind, "a token was refused"),
            }
            Refusal::NotAToken
        })?;
        let claims = claims.claims;
        let in_time = claims.exp + LEEWAY_SECONDS > now();
        // One that was good when the upload began, and not any old one.
        let fits = |(user, at): (String, i64)| user == claims.sub && claims.exp + LEEWAY_SECONDS > at;
        let begun = || upload.and_then(|id| self.uploads.get(id)).is_some_and(fits);
        if in_time || begun() {
            return Ok(VerifiedToken { user: claims.sub, origin: claims.of, access: claims.access });
        }
        Err(Refusal::ExpiredToken)
    }

    /// Remembers that `user` began the upload `id`.
    pub fn began_upload(&self, id: &str, user: &str) {
        self.uploads.insert(id.to_owned(), (user.to_owned(), now()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tokens() -> (tempfile::TempDir, Tokens) {
        let folder = tempfile::tempdir().expect("a folder");
        let root = RootKey::load_or_create(&folder.path().join("k")).expect("a key");
        (folder, Tokens::new(&root, "https://r".to_owned(), "r".to_owned()))
    }

    fn expired(tokens: &Tokens, user: &str) -> String {
        let (service, iss) = (tokens.service.clone(), tokens.issuer.clone());
        let (iat, exp) = (now() - 10_000, now() - 9_000);
        let of = Origin::Key("key".to_owned());
        let claims = Claims { iss, aud: service, sub: user.to_owned(), iat, nbf: iat, exp, of, access: Vec::new() };
        jsonwebtoken::encode(&Header::new(Algorithm::HS256), &claims, &tokens.sign).expect("a token")
    }

    #[test]
    fn a_token_comes_back_as_it_was_made() {
        let (_folder, tokens) = tokens();
        let access = vec![Access::parse("repository:a:pull").expect("a scope")];
        let mut alice = Identity::for_test("alice", &["dev"]);
        for (via, expected) in [
            (AuthMethod::ApiKey("key".to_owned()), Origin::Key("key".to_owned())),
            (AuthMethod::RefreshToken("r".to_owned()), Origin::RefreshToken("r".to_owned())),
            (
                AuthMethod::AppPassword,
                Origin::SelfContained {
                    via: AuthMethod::AppPassword,
                    groups: vec!["dev".to_owned()],
                    claims: Map::new(),
                },
            ),
        ] {
            alice.via = via;
            let (token, lifetime) = tokens.mint(Some(&alice), access.clone()).expect("a token");
            let verified = tokens.verify(&token, None).expect("genuine");
            assert_eq!((verified.user.as_str(), verified.origin, &verified.access), ("alice", expected, &access));
            assert_eq!(lifetime, 900);
        }
        alice.via = AuthMethod::Session("s".to_owned());
        assert!(matches!(tokens.mint(Some(&alice), access), Err(Refusal::NoTokenOfThis)));
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
    fn an_expired_token_ends_only_the_upload_that_its_subject_began() {
        let (_folder, tokens) = tokens();
        // Begun while the token was good, by another one, and when it had expired already.
        tokens.uploads.insert("mine".to_owned(), ("alice".to_owned(), now() - 9_500));
        tokens.uploads.insert("other".to_owned(), ("bob".to_owned(), now() - 9_500));
        tokens.began_upload("later", "alice");
        let token = expired(&tokens, "alice");
        assert!(tokens.verify(&token, Some("mine")).is_ok());
        for upload in [None, Some("other"), Some("later"), Some("unknown")] {
            assert!(matches!(tokens.verify(&token, upload), Err(Refusal::ExpiredToken)), "{upload:?}");
        }
    }

    #[test]
    fn a_token_of_another_key_or_algorithm_is_none() {
        let ((_a, ours), (_b, theirs)) = (tokens(), tokens());
        let (token, _) = theirs.mint(None, Vec::new()).expect("a token");
        assert!(matches!(ours.verify(&token, None), Err(Refusal::NotAToken)));
        // {"alg":"none","typ":"JWT"}
        let payload = token.split('.').nth(1).expect("a payload");
        let none = format!("eyJhbGciOiJub25lIiwidHlwIjoiSldUIn0.{payload}.");
        assert!(matches!(ours.verify(&none, None), Err(Refusal::NotAToken)));
        assert!(matches!(ours.verify("", None), Err(Refusal::NotAToken)));
    }
}
