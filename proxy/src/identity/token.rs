//! Our own registry tokens: what a client gets at `/zot/auth/token` and shows as `Authorization: Bearer`.
//!
//! A token says which credential it was made of and what it was asked for. It proves nothing beyond that: whether
//! the credential is still good and what its owner may do is asked again at each use.

use std::time::Duration;

use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, Header, Validation, errors::ErrorKind};
use moka::sync::Cache;
use serde::{Deserialize, Serialize};

use super::{Refusal, scope::Access};
use crate::{secrets::RootKey, store::now};

/// How long a token lives, in seconds.
pub const LIFETIME: i64 = 15 * 60;

/// By how much clocks may differ, in seconds.
const LEEWAY: i64 = 60;

/// How long a push may go on with the token that it began with.
const LONGEST_PUSH: Duration = Duration::from_hours(24);

/// What a token says (RFC 7519; `access` as in the registry token specification).
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Claims {
    iss: String,
    aud: String,
    sub: String,
    iat: i64,
    nbf: i64,
    exp: i64,
    #[serde(skip_serializing_if = "Option::is_none")]
    key: Option<String>,
    access: Vec<Access>,
}

/// A genuine token.
#[derive(Clone, Debug)]
pub struct Minted {
    /// The API key that it was made of; nothing for an anonymous token.
    pub credential: Option<String>,
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
    /// Uploads that are going on, and the credential that began each.
    uploads: Cache<String, Option<String>>,
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
        validation.leeway = LEEWAY.unsigned_abs();
        Self {
            sign: EncodingKey::from_secret(&key),
            check: DecodingKey::from_secret(&key),
            validation,
            issuer,
            service,
            uploads: Cache::builder().max_capacity(100_000).time_to_live(LONGEST_PUSH).build(),
        }
    }

    /// The constant `service` of the challenge, the audience of the tokens.
    pub fn service(&self) -> &str {
        &self.service
    }

    /// Makes a token of the API key `credential` for `access`.
    ///
    /// # Errors
    /// Never, as long as the claims can be written as JSON.
    pub fn mint(
        &self,
        user: &str,
        credential: Option<&str>,
        access: Vec<Access>,
    ) -> Result<String, jsonwebtoken::errors::Error> {
        let claims = Claims {
            iss: self.issuer.clone(),
            aud: self.service.clone(),
            sub: user.to_owned(),
            iat: now(),
            nbf: now(),
            exp: now() + LIFETIME,
            key: credential.map(str::to_owned),
            access,
        };
        jsonwebtoken::encode(&Header::new(Algorithm::HS256), &claims, &self.sign)
    }

    /// Reads a token; one that has run out only for the `upload` that its own credential began.
    pub fn verify(&self, token: &str, upload: Option<&str>) -> Result<Minted, Refusal> {
        let decoded = jsonwebtoken::decode::<Claims>(token, &self.check, &self.validation);
        let claims = decoded.map_err(|error| {
            match error.kind() {
                ErrorKind::InvalidSignature | ErrorKind::InvalidToken => {}
                kind => tracing::debug!(?kind, "a token was refused"),
            }
            Refusal::NotAToken
        })?;
        let claims = claims.claims;
        let in_time = claims.exp + LEEWAY > now();
        let begun = || upload.and_then(|id| self.uploads.get(id)).is_some_and(|by| by == claims.key);
        if in_time || begun() {
            return Ok(Minted { credential: claims.key, access: claims.access });
        }
        Err(Refusal::ExpiredToken)
    }

    /// Remembers that the upload `id` was begun with `credential`.
    pub fn began_upload(&self, id: &str, credential: Option<&str>) {
        self.uploads.insert(id.to_owned(), credential.map(str::to_owned));
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

    fn expired(tokens: &Tokens, key: &str) -> String {
        let (service, iss) = (tokens.service.clone(), tokens.issuer.clone());
        let (iat, exp) = (now() - 10_000, now() - 9_000);
        let claims = Claims {
            iss,
            aud: service,
            sub: "alice".to_owned(),
            iat,
            nbf: iat,
            exp,
            key: Some(key.to_owned()),
            access: Vec::new(),
        };
        jsonwebtoken::encode(&Header::new(Algorithm::HS256), &claims, &tokens.sign).expect("a token")
    }

    #[test]
    fn a_token_comes_back_as_it_was_made() {
        let (_folder, tokens) = tokens();
        let access = vec![Access::parse("repository:a:pull").expect("a scope")];
        let token = tokens.mint("alice", Some("key"), access.clone()).expect("a token");
        let minted = tokens.verify(&token, None).expect("genuine");
        assert_eq!((minted.credential.as_deref(), minted.access), (Some("key"), access));
    }

    #[test]
    fn an_expired_token_ends_only_the_upload_that_its_credential_began() {
        let (_folder, tokens) = tokens();
        tokens.began_upload("mine", Some("key"));
        tokens.began_upload("other", Some("another key"));
        let token = expired(&tokens, "key");
        assert!(tokens.verify(&token, Some("mine")).is_ok());
        for upload in [None, Some("other"), Some("unknown")] {
            assert!(matches!(tokens.verify(&token, upload), Err(Refusal::ExpiredToken)), "{upload:?}");
        }
    }

    #[test]
    fn a_token_of_another_key_or_algorithm_is_none() {
        let ((_a, ours), (_b, theirs)) = (tokens(), tokens());
        let token = theirs.mint("alice", None, Vec::new()).expect("a token");
        assert!(matches!(ours.verify(&token, None), Err(Refusal::NotAToken)));
        // {"alg":"none","typ":"JWT"}
        let payload = token.split('.').nth(1).expect("a payload");
        let none = format!("eyJhbGciOiJub25lIiwidHlwIjoiSldUIn0.{payload}.");
        assert!(matches!(ours.verify(&none, None), Err(Refusal::NotAToken)));
        assert!(matches!(ours.verify("", None), Err(Refusal::NotAToken)));
    }
}
