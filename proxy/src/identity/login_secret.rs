//! What a client shows as a password when a credential helper logs it in: a secret that lives an hour at most, made of a
//! terminal's refresh token or of a workload's JWT.
//!
//! It is a JWT of ours that says what it was made of, and nothing more: whether that is still good is asked again at each use.

use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, Header, Validation, errors::ErrorKind};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::{AuthMethod, Identity, Refusal, Rejection};
use crate::{secrets::RootKey, store::now};

/// What every such secret begins with.
pub const PREFIX: &str = "bls_";

/// How long it lives, in seconds.
const LIFETIME_SECONDS: i64 = 60 * 60;

/// Whether a text looks like one.
pub fn is_login_secret(text: &str) -> bool {
    text.starts_with(PREFIX)
}

/// What a secret was made of.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Source {
    /// A terminal, by its id.
    Terminal(String),
    /// A JWT of a workload: its rules are asked about its claims at each use.
    Workload {
        /// Its issuer.
        issuer: String,
        /// Every claim.
        claims: Map<String, Value>,
        /// What the secret is for, as in an API key; everything that the workload may do, if that is empty.
        scopes: Vec<String>,
    },
}

impl Source {
    /// The JWT with which a workload was identified.
    ///
    /// # Errors
    /// [`Rejection::NoSecretOfThis`] for any other credential: a secret would outlive it, or go further.
    pub fn of_workload(identity: &Identity, scopes: Vec<String>) -> Result<Self, Rejection> {
        match &identity.method {
            AuthMethod::Workload(issuer) => {
                Ok(Self::Workload { issuer: issuer.clone(), claims: identity.claims.clone(), scopes })
            }
            _ => Err(Rejection::NoSecretOfThis),
        }
    }
}

#[derive(Serialize, Deserialize)]
struct Claims {
    iss: String,
    aud: String,
    iat: i64,
    exp: i64,
    of: Source,
}

/// Makes secrets, and knows them again.
pub struct LoginSecrets {
    sign: EncodingKey,
    check: DecodingKey,
    validation: Validation,
    issuer: String,
    service: String,
}

impl LoginSecrets {
    /// Secrets of the registry `service`, whose address is `issuer`.
    pub fn new(root: &RootKey, issuer: String, service: String) -> Self {
        // A key of their own: a secret is no bearer token, and a bearer token no secret.
        let key = root.derive("login secrets");
        let mut validation = Validation::new(Algorithm::HS256);
        validation.set_issuer(&[&issuer]);
        validation.set_audience(&[&service]);
        validation.set_required_spec_claims(&["exp", "iss", "aud"]);
        validation.leeway = 0;
        Self {
            sign: EncodingKey::from_secret(&key),
            check: DecodingKey::from_secret(&key),
            validation,
            issuer,
            service,
        }
    }

    /// Makes a secret of what was shown for it; and how many seconds it lives.
    ///
    /// # Errors
    /// If it can't be written, as the log says.
    pub fn mint(&self, of: Source) -> Result<(String, i64), Refusal> {
        let (iss, aud, iat) = (self.issuer.clone(), self.service.clone(), now());
        let claims = Claims { iss, aud, iat, exp: iat + LIFETIME_SECONDS, of };
        let token = jsonwebtoken::encode(&Header::new(Algorithm::HS256), &claims, &self.sign).map_err(|error| {
            tracing::error!(%error, "a login secret can't be written");
            Refusal::Unavailable("a login secret can't be written".into())
        })?;
        Ok((format!("{PREFIX}{token}"), LIFETIME_SECONDS))
    }

    /// What a secret was made of, and until when it is good.
    ///
    /// # Errors
    /// If it isn't one, or not any more.
    pub fn verify(&self, text: &str) -> Result<(Source, i64), Refusal> {
        let token = text.strip_prefix(PREFIX).ok_or(Rejection::NotAToken)?;
        let decoded = jsonwebtoken::decode::<Claims>(token, &self.check, &self.validation);
        let claims = decoded.map_err(|error| match error.kind() {
            ErrorKind::ExpiredSignature => Rejection::ExpiredSecret,
            _ => Rejection::NotAToken,
        })?;
        Ok((claims.claims.of, claims.claims.exp))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_comes_back_as_it_was_made_and_of_nothing_else_is_one_made() {
        let folder = tempfile::tempdir().expect("a folder");
        let root = RootKey::load_or_create(&folder.path().join("k")).expect("a key");
        let secrets = LoginSecrets::new(&root, "https://r".to_owned(), "r".to_owned());
        let mut job = Identity::for_test("job", &[]);
        job.method = AuthMethod::Workload("https://ci".to_owned());
        job.claims.insert("sub".to_owned(), "x".into());
        let scopes = ["read".to_owned(), "team/app".to_owned()];
        let made = Source::of_workload(&job, scopes.to_vec()).expect("a workload");
        let (text, lifetime) = secrets.mint(made.clone()).expect("a secret");
        let (source, until) = secrets.verify(&text).expect("genuine");
        assert!(is_login_secret(&text) && lifetime == 3600 && until <= now() + 3600);
        assert_eq!(source, made);
        // Of a secret no other is made, nor of what is stored.
        for method in [AuthMethod::LoginSecret, AuthMethod::Terminal, AuthMethod::ApiKey] {
            job.method = method("https://ci".to_owned());
            assert!(Source::of_workload(&job, Vec::new()).is_err());
        }
        let other = LoginSecrets::new(&root, "https://r".to_owned(), "other".to_owned());
        assert!(other.verify(&text).is_err());
        for bad in ["", "bls_", &text[4..], &format!("{text}x")] {
            assert!(secrets.verify(bad).is_err(), "{bad}");
        }
    }
}
