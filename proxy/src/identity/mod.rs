//! Who is asking? Whatever the credential was, one [`Identity`] comes of it.
//!
//! One file a kind: [`session`] cookies, [`api_key`]s, the bearer [`token`]s that our own token service makes of
//! credentials, the [`refresh_token`]s of jobs; and those that others give out, which are the [`verifiers`]' business:
//! authentik's tokens and [`app_password`]s, the tokens of [`workload`]s, the passwords of an [`htpasswd`] file. A client
//! [`certificate`] comes with the connection. [`credential`] reads the others off a request.

pub mod api_key;
pub mod api_key_scopes;
pub mod app_password;
pub mod certificate;
pub mod credential;
pub mod credential_cache;
pub mod htpasswd;
pub mod limits;
pub mod refresh_token;
pub mod scope;
pub mod session;
pub mod token;
pub mod verifiers;
pub mod workload;

use std::{net::IpAddr, sync::Arc, time::Duration};

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

pub use self::{
    api_key::Keys, credential::Credential, refresh_token::RefreshTokens, session::Sessions, token::Tokens,
    verifiers::Verifiers,
};
use self::{
    api_key_scopes::KeyScopes,
    limits::Limits,
    scope::Access,
    token::{Origin, VerifiedToken},
};
use crate::{
    oidc::jwt::JwtError,
    store::{RefreshToken, StoreError, User, now},
};

/// Somebody who proved who they are.
#[derive(Clone, Debug)]
pub struct Identity {
    /// The name that rules know.
    pub user: String,
    /// The groups, by the claims.
    pub groups: Vec<String>,
    /// Every claim.
    pub claims: Map<String, Value>,
    /// How they proved it.
    pub via: AuthMethod,
    /// The provider that vouched for them, if it was one.
    pub provider: Option<String>,
    /// What their API key is for, if it isn't for everything that they may do.
    pub scopes: Option<Arc<KeyScopes>>,
    /// When the proof ends, in seconds since 1970, if it ends by itself.
    pub good_until: Option<i64>,
}

/// The kind of a credential, and its public name.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AuthMethod {
    /// A browser's session, by the hash of its id.
    Session(String),
    /// An API key, by its id.
    ApiKey(String),
    /// A token of the provider that signs people in.
    ProviderToken,
    /// An app password of authentik.
    AppPassword,
    /// A token of another issuer, by that.
    Workload(String),
    /// A job's refresh token, by its id.
    RefreshToken(String),
    /// A password of the password file, by its fingerprint.
    Password(String),
    /// A client certificate.
    Certificate,
}

impl Identity {
    fn new(user: User, via: AuthMethod) -> Self {
        let User { name, groups, claims, provider, .. } = user;
        Self { provider: Some(provider), ..Self::without_provider(name, groups, claims, via) }
    }

    /// Somebody whom no provider has signed in, whose proof doesn't end by itself.
    fn without_provider(user: String, groups: Vec<String>, claims: Map<String, Value>, via: AuthMethod) -> Self {
        Self { user, groups, claims, via, provider: None, scopes: None, good_until: None }
    }

    /// For how long the proof may be remembered, and no longer than `at_most`: it is good until it says so.
    fn remembered_for(&self, at_most: Duration) -> Duration {
        let left = self.good_until.unwrap_or_default().saturating_sub(now());
        Duration::from_secs(u64::try_from(left).unwrap_or_default()).min(at_most)
    }

    /// Somebody for a test of the rules, or for a question about them.
    pub fn named(user: &str, groups: Vec<String>) -> Self {
        Self::without_provider(user.to_owned(), groups, Map::new(), AuthMethod::ApiKey(String::new()))
    }

    /// Somebody for a test of the rules.
    #[cfg(test)]
    pub fn for_test(user: &str, groups: &[&str]) -> Self {
        Self::named(user, groups.iter().map(ToString::to_string).collect())
    }
}

/// Who sends a request, and how far their credential goes.
#[derive(Clone, Debug)]
pub struct Caller {
    /// Nobody, if there is none: an anonymous request, or one with an anonymous token.
    pub identity: Option<Arc<Identity>>,
    /// What a token was made for; everything, if it wasn't a token.
    pub grant: Grant,
}

/// How far a credential goes.
#[derive(Clone, Debug)]
pub enum Grant {
    /// As far as its owner may go. Nobody was asked for by a token.
    Everything,
    /// As far as a token's scope.
    Token(Arc<[Access]>),
}

impl Caller {
    /// A request without any credential.
    pub const ANONYMOUS: Self = Self { identity: None, grant: Grant::Everything };

    /// The name for the log.
    pub fn name(&self) -> &str {
        self.identity.as_ref().map_or("anonymous", |identity| &identity.user)
    }
}

/// Where a request comes from, beside what it shows.
#[derive(Clone, Copy, Debug, Default)]
pub struct ConnectionInfo<'a> {
    /// The client's address.
    pub client: Option<IpAddr>,
    /// The client certificate that the connection was made with, in DER.
    pub certificate: Option<&'a [u8]>,
    /// The upload that the request is about: a token that ran out in the middle of a long push is still taken for it.
    pub upload: Option<&'a str>,
}

/// Why a credential isn't taken. The sentence goes to the log and to the client; it holds nothing of the credential.
#[derive(Debug, thiserror::Error)]
pub enum Refusal {
    /// There is no such key.
    #[error("this API key does not exist or was revoked; make a new one on the registry's page")]
    UnknownKey,
    /// It has expired.
    #[error("this API key has expired; make a new one on the registry's page")]
    ExpiredKey,
    /// Another user's key.
    #[error("this API key belongs to another user name than the one given; the registry's page shows yours")]
    OthersKey,
    /// Nobody vouches for its owner any more.
    #[error("the provider that signed its owner in is not one of this registry's any more")]
    UnknownProvider,
    /// They are switched off.
    #[error("API keys are switched off here (http.auth.apikey)")]
    KeysOff,
    /// Its owner is gone.
    #[error("the identity provider does not know the owner of this API key any more; sign in again in a browser")]
    Suspended,
    /// There is no such session.
    #[error("the session has ended; sign in again")]
    UnknownSession,
    /// A bearer token that isn't ours.
    #[error("the bearer token is not one of this registry's")]
    NotAToken,
    /// A token whose time is over.
    #[error("the token has expired")]
    ExpiredToken,
    /// A token whose credential is gone.
    #[error("the credential that this token was made of was revoked or has expired")]
    OrphanToken,
    /// A refresh token that is none.
    #[error("this refresh token does not exist, was revoked or has expired; log in again")]
    UnknownRefreshToken,
    /// No registry token is made of that.
    #[error("a token is made of a user name and a password: an API key, an app password or a JWT")]
    NoTokenOfThis,
    /// A JWT of somebody we don't know.
    #[error(
        "the token is of the issuer {0:?}, which is neither a provider of this registry nor in http.auth.bearer.oidc"
    )]
    UnknownIssuer(String),
    /// A JWT that isn't good.
    #[error(transparent)]
    Jwt(#[from] JwtError),
    /// A good JWT that no rule takes.
    #[error("no rule takes this token; {0}")]
    NoRule(String),
    /// Good, but without the claim that names people.
    #[error(
        "the token has no '{0}' claim, which names people here (claimMapping.username), and userinfo does not say it either; \
         ask for a token with the scope that has it"
    )]
    NoName(String),
    /// Good, but it names nobody.
    #[error("{0}")]
    Unnamed(String),
    /// Neither a key nor an app password.
    #[error(
        "the password is neither an API key (they begin with zak_; make one on the registry's page in a browser), nor a \
         token, nor an app password of this user at the identity provider"
    )]
    NotAPassword,
    /// Not the one in the password file.
    #[error("the user name or the password is wrong")]
    WrongPassword,
    /// What it is for can't be read any more.
    #[error("the scopes of this API key can't be read; make a new one on the registry's page")]
    UnreadableKey,
    /// A certificate without a name.
    #[error("the client certificate names nobody, by the attributes in http.auth.mtls.identityAttributes")]
    UnnamedCertificate,
    /// Too many failures.
    #[error("there were too many failed sign-ins; try again in {} s", .0.as_secs() + 1)]
    Limited(Duration),
    /// Not a refusal: nobody knows.
    #[error("the credential can't be checked now: {0}")]
    Unavailable(String),
    /// Not a refusal: nobody knows.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// What several requests waited for.
    #[error(transparent)]
    Shared(Arc<Refusal>),
}

impl Refusal {
    /// Whether the credential may be good all the same.
    pub fn is_indeterminate(&self) -> bool {
        match self {
            Self::Store(_) | Self::Unavailable(_) => true,
            Self::Shared(refusal) => refusal.is_indeterminate(),
            _ => false,
        }
    }

    /// For how long nobody looks at what this client or user shows.
    pub fn must_wait(&self) -> Option<Duration> {
        match self {
            Self::Limited(wait) => Some(*wait),
            Self::Shared(refusal) => refusal.must_wait(),
            _ => None,
        }
    }

    /// Whether somebody may have tried out what they don't know. What was genuine once is no guess.
    fn is_guess(&self) -> bool {
        match self {
            Self::UnknownKey
            | Self::OthersKey
            | Self::NotAToken
            | Self::UnknownRefreshToken
            | Self::NotAPassword
            | Self::WrongPassword => true,
            Self::Shared(refusal) => refusal.is_guess(),
            _ => false,
        }
    }
}

/// Somebody whose provider is still configured.
fn vouched_for(verifiers: &Verifiers, identity: Arc<Identity>) -> Result<Arc<Identity>, Refusal> {
    let known = |id: &String| verifiers.providers.iter().any(|provider| provider.config.id == *id);
    if identity.provider.as_ref().is_none_or(known) { Ok(identity) } else { Err(Refusal::UnknownProvider) }
}

/// Turns credentials into callers.
pub struct Identities {
    /// API keys.
    pub keys: Keys,
    /// Browsers' sessions.
    pub sessions: Sessions,
    /// Our bearer tokens.
    pub tokens: Tokens,
    /// What jobs go on with.
    pub refresh_tokens: RefreshTokens,
    /// Whether API keys are taken, and people may make them.
    pub api_keys: bool,
    /// Failures.
    pub limits: Limits,
    /// Which part of a client certificate is a name.
    pub certificate_names: Vec<certificate::NameAttribute>,
}

impl Identities {
    /// Who shows this credential.
    ///
    /// # Errors
    /// [`Refusal`] if the credential is wrong, or if that can't be found out now.
    pub async fn identify(
        &self,
        verifiers: &Verifiers,
        credential: &Credential,
        from: &ConnectionInfo<'_>,
    ) -> Result<Caller, Refusal> {
        let everything = |identity| Caller { identity: Some(identity), grant: Grant::Everything };
        let found = match credential {
            Credential::None => match from.certificate {
                None => return Ok(Caller::ANONYMOUS),
                Some(der) => certificate::holder(der, &self.certificate_names).map(everything),
            },
            Credential::Session(id) => {
                let found = self.sessions.find(id).await.and_then(|identity| vouched_for(verifiers, identity));
                return found.map(everything);
            }
            Credential::Basic { user, password } => {
                return self.by_password(verifiers, user, password, from).await.map(everything);
            }
            Credential::Bearer(text) => self.by_bearer(verifiers, text, from).await,
        };
        found.map_err(|refusal| self.count(refusal, from.client, None))
    }

    /// Whoever has this user name and password, whichever kind of password it is.
    async fn by_password(
        &self,
        verifiers: &Verifiers,
        user: &str,
        password: &str,
        from: &ConnectionInfo<'_>,
    ) -> Result<Arc<Identity>, Refusal> {
        if api_key::is_key(password) {
            // Who guesses at keys guesses at no user's.
            let found = self.by_key(verifiers, Some(user), password).await;
            return found.map_err(|refusal| self.count(refusal, from.client, None));
        }
        if let Some(issuer) = Verifiers::issuer_of(password) {
            return verifiers.by_jwt(&issuer, password).await;
        }
        // What can be guessed; but what was right a moment ago is no guess.
        if let Some(known) = verifiers.known_password(user, password).await {
            return Ok(known);
        }
        let may_try = || self.limits.may_try(from.client, user);
        let found = verifiers.by_password(user, password, may_try).await;
        found.map_err(|refusal| self.count(refusal, from.client, Some(user)))
    }

    async fn by_key(&self, verifiers: &Verifiers, user: Option<&str>, text: &str) -> Result<Arc<Identity>, Refusal> {
        if !self.api_keys {
            return Err(Refusal::KeysOff);
        }
        self.keys.find(user, text).await.and_then(|identity| vouched_for(verifiers, identity))
    }

    async fn by_bearer(&self, verifiers: &Verifiers, text: &str, from: &ConnectionInfo<'_>) -> Result<Caller, Refusal> {
        let everything = |identity| Caller { identity: Some(identity), grant: Grant::Everything };
        if api_key::is_key(text) {
            return self.by_key(verifiers, None, text).await.map(everything);
        }
        match Verifiers::issuer_of(text) {
            Some(issuer) if issuer != self.tokens.issuer() => verifiers.by_jwt(&issuer, text).await.map(everything),
            _ => {
                let verified = self.tokens.verify(text, from.upload)?;
                self.owner_of(verifiers, verified).await
            }
        }
    }

    /// A token is good as long as the credential that it was made of.
    async fn owner_of(&self, verifiers: &Verifiers, verified: VerifiedToken) -> Result<Caller, Refusal> {
        let VerifiedToken { user, origin, access } = verified;
        let identity = match origin {
            Origin::Nobody => None,
            Origin::Key(_) if !self.api_keys => return Err(Refusal::KeysOff),
            Origin::Key(id) => {
                let found = self.keys.find_by_id(&id).await?.ok_or(Refusal::OrphanToken)?;
                Some(vouched_for(verifiers, found)?)
            }
            Origin::RefreshToken(id) => {
                let token = self.refresh_tokens.find_by_id(&id).await?;
                Some(self.of_refresh_token(verifiers, &token)?)
            }
            Origin::Password(fingerprint) => {
                let passwords = verifiers.passwords.as_ref();
                let found = passwords.and_then(|passwords| passwords.find_by_fingerprint(&user, &fingerprint));
                Some(found.ok_or(Refusal::OrphanToken)?)
            }
            // By the rules of now.
            Origin::SelfContained { via: AuthMethod::Workload(issuer), claims, .. } => {
                Some(Arc::new(verifiers.by_claims(&issuer, &claims)?))
            }
            Origin::SelfContained { via, groups, claims } => {
                Some(Arc::new(Identity::without_provider(user, groups, claims, via)))
            }
        };
        Ok(Caller { identity, grant: Grant::Token(access.into()) })
    }

    /// Whose refresh token this is, by the rules of now.
    ///
    /// # Errors
    /// [`Refusal`] if they don't take the claims any more that it was made of.
    pub fn of_refresh_token(&self, verifiers: &Verifiers, token: &RefreshToken) -> Result<Arc<Identity>, Refusal> {
        let mut identity = verifiers.by_claims(&token.issuer, &token.claims)?;
        identity.via = AuthMethod::RefreshToken(token.id.clone());
        identity.good_until = Some(token.expires_at);
        Ok(Arc::new(identity))
    }

    /// Counts a failure, if it may have been a guess.
    pub fn count(&self, refusal: Refusal, client: Option<IpAddr>, user: Option<&str>) -> Refusal {
        if refusal.is_guess() { self.limits.failed(client, user, refusal) } else { refusal }
    }
}
