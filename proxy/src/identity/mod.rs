//! Who is asking? Whatever the credential was, one [`Identity`] comes of it.
//!
//! One file a kind: [`session`] cookies, [`api_key`]s, the bearer [`token`]s that our own token service makes of
//! credentials, the [`refresh_token`]s of jobs, [`terminal`]s that somebody has signed in, and the [`login_secret`]s that
//! credential helpers get; and those that others give out, which are the [`verifiers`]' business:
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
pub mod login_secret;
pub mod refresh_token;
pub mod refusal;
pub mod renewal;
pub mod scope;
pub mod session;
pub mod shared_issuer;
pub mod standing;
pub mod terminal;
pub mod token;
pub mod verifiers;
pub mod workload;

use std::{net::IpAddr, sync::Arc, time::Duration};

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use tokio::time::Instant;

pub use self::{
    api_key::Keys,
    credential::Credential,
    login_secret::LoginSecrets,
    refresh_token::RefreshTokens,
    refusal::{Refusal, Rejection},
    renewal::Renewals,
    session::Sessions,
    standing::Standings,
    terminal::Terminals,
    token::Tokens,
    verifiers::Verifiers,
};
use self::{
    api_key_scopes::KeyScopes,
    certificate::ClientCertificate,
    limits::Limits,
    login_secret::Source,
    scope::Access,
    token::{Origin, Push, VerifiedToken},
};
use crate::store::{PersonId, RefreshToken, User, now};

/// How long it takes to refuse a password, whoever's it is said to be and wherever it was looked for: in the password file,
/// or at a provider, which must answer within it for the two not to be told apart.
const WRONG_PASSWORD_TIME: Duration = Duration::from_secs(1);

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
    pub method: AuthMethod,
    /// Which person it is, if a provider that signs people in has vouched for them.
    pub person: Option<PersonId>,
    /// When it has, in seconds since 1970, if that was after their last sign-in here.
    pub vouched_at: i64,
    /// What their API key is for, if it isn't for everything that they may do.
    pub scopes: Option<Arc<KeyScopes>>,
    /// When the proof ends, in seconds since 1970; never, if it doesn't end by itself.
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
    /// An access token of the provider that signs people in.
    ProviderToken,
    /// An app password of authentik.
    AppPassword,
    /// A token of another issuer, by that.
    Workload(String),
    /// A job's refresh token, by its id.
    RefreshToken(String),
    /// A terminal that somebody has signed in, by its id.
    Terminal(String),
    /// A secret that a credential helper got for a workload's token, by the issuer of that.
    LoginSecret(String),
    /// A password of the password file, by its fingerprint.
    Password(String),
    /// A client certificate, by the fingerprint of the authorities that it was checked with.
    Certificate(String),
}

impl AuthMethod {
    /// The kind, in one word.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Session(_) => "session",
            Self::ApiKey(_) => "api_key",
            Self::ProviderToken => "provider_token",
            Self::AppPassword => "app_password",
            Self::Workload(_) => "workload",
            Self::RefreshToken(_) => "refresh_token",
            Self::Terminal(_) => "terminal",
            Self::LoginSecret(_) => "login_secret",
            Self::Password(_) => "password",
            Self::Certificate(_) => "certificate",
        }
    }
}

impl Identity {
    /// Somebody whom a provider has signed in.
    fn of_person(user: User, method: AuthMethod) -> Self {
        let User { id, name, groups, claims } = user;
        Self { person: Some(id), ..Self::without_person(name, groups, claims, method) }
    }

    /// Somebody whom no provider has signed in, whose proof doesn't end by itself.
    fn without_person(user: String, groups: Vec<String>, claims: Map<String, Value>, method: AuthMethod) -> Self {
        Self { user, groups, claims, method, person: None, vouched_at: 0, scopes: None, good_until: None }
    }

    /// For how long the proof may be remembered: `at_most`, and not after its end.
    fn remembered_for(&self, at_most: Duration) -> Duration {
        let left = |until: i64| Duration::from_secs(u64::try_from(until.saturating_sub(now())).unwrap_or_default());
        self.good_until.map_or(at_most, |until| left(until).min(at_most))
    }

    /// Somebody for a test of the rules, or for a question about them.
    pub fn named(user: &str, groups: Vec<String>) -> Self {
        Self::without_person(user.to_owned(), groups, Map::new(), AuthMethod::ApiKey(String::new()))
    }

    /// Somebody with claims, for a question about the rules.
    pub fn for_question(user: String, groups: Vec<String>, claims: Map<String, Value>) -> Self {
        Self::without_person(user, groups, claims, AuthMethod::ProviderToken)
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
    /// As far as its owner may go.
    Everything,
    /// As far as the scope of one of our tokens.
    Token {
        /// The token's own name.
        id: String,
        /// What it was made for.
        access: Arc<[Access]>,
    },
}

impl Grant {
    /// Whether it goes so far.
    pub fn covers(&self, needed: &Access) -> bool {
        match self {
            Self::Everything => true,
            Self::Token { access, .. } => access.iter().any(|own| own.covers(needed)),
        }
    }

    /// The name of the token, if it is one's.
    pub fn token(&self) -> Option<&str> {
        match self {
            Self::Everything => None,
            Self::Token { id, .. } => Some(id),
        }
    }
}

impl Caller {
    /// A request without any credential.
    pub const ANONYMOUS: Self = Self { identity: None, grant: Grant::Everything };

    /// Whether the credential goes as far as its owner: neither a token's grant nor an API key's scopes narrow it.
    pub fn is_unrestricted(&self) -> bool {
        matches!(self.grant, Grant::Everything)
            && self.identity.as_ref().is_none_or(|identity| identity.scopes.is_none())
    }

    /// The name for the log.
    pub fn name(&self) -> &str {
        self.identity.as_ref().map_or("anonymous", |identity| &identity.user)
    }

    /// The kind of credential for the log: what a token of ours was made of, and not the token.
    pub fn credential(&self) -> &'static str {
        self.identity.as_ref().map_or("none", |identity| identity.method.kind())
    }
}

/// Where a request comes from, beside what it shows.
#[derive(Clone, Copy, Debug, Default)]
pub struct ConnectionInfo<'a> {
    /// The client's address.
    pub client: Option<IpAddr>,
    /// The client certificate that the connection was made with.
    pub certificate: Option<&'a ClientCertificate>,
    /// The push that the request is a part of: a token that ran out in the middle of a long one is still taken for it.
    pub push: Option<Push<'a>>,
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
    /// Terminals that people have signed in.
    pub terminals: Terminals,
    /// What credential helpers get.
    pub login_secrets: LoginSecrets,
    /// Whether people are still vouched for.
    pub standings: Standings,
    /// Asks their providers that.
    pub renewals: Renewals,
    /// Whether API keys are taken, and people may make them.
    pub api_keys: bool,
    /// Failures.
    pub limits: Limits,
    /// Which part of a client certificate is a name.
    pub certificate_names: Vec<certificate::NameAttribute>,
}

impl Identities {
    /// Who shows this credential, if somebody still vouches for them. Every credential comes through here, and every
    /// failure is counted here.
    ///
    /// # Errors
    /// [`Refusal`] if the credential is wrong, or if that can't be found out now.
    pub async fn identify(
        &self,
        verifiers: &Verifiers,
        credential: &Credential,
        from: &ConnectionInfo<'_>,
    ) -> Result<Caller, Refusal> {
        let identified = async {
            let caller = self.resolve(verifiers, credential, from).await?;
            let Some(identity) = caller.identity else { return Ok(caller) };
            let identity = self.standings.vouch(verifiers, identity).await?;
            Ok(Caller { identity: Some(identity), ..caller })
        };
        identified.await.map_err(|refusal: Refusal| match refusal.is_guess() {
            true => self.limits.failed(from.client, credential.guessed_user(), refusal),
            false => refusal,
        })
    }

    /// Whose credential this is.
    async fn resolve(
        &self,
        verifiers: &Verifiers,
        credential: &Credential,
        from: &ConnectionInfo<'_>,
    ) -> Result<Caller, Refusal> {
        let identity = match credential {
            Credential::None => match from.certificate {
                None => return Ok(Caller::ANONYMOUS),
                Some(shown) => certificate::holder(shown, verifiers, &self.certificate_names)?,
            },
            Credential::Session(id) => self.sessions.find(id).await?,
            Credential::Basic { user, password } => self.by_password(verifiers, user, password, from).await?,
            Credential::Bearer(text) if api_key::is_key(text) => self.by_key(None, text, from).await?,
            Credential::Bearer(text) if login_secret::is_login_secret(text) => {
                self.by_login_secret(verifiers, text).await?
            }
            Credential::Bearer(text) => {
                if let Some(token) = self.tokens.known(text) {
                    return self.by_own_token(verifiers, &token, from).await;
                }
                match Verifiers::issuer_of(text) {
                    Some(issuer) if issuer != self.tokens.issuer() => verifiers.by_jwt(&issuer, text).await?,
                    _ => return self.by_own_token(verifiers, &*self.tokens.read(text)?, from).await,
                }
            }
            Credential::RefreshToken(text) if terminal::is_refresh_token(text) => self.terminals.find(text).await?,
            Credential::RefreshToken(text) => {
                let token = self.refresh_tokens.find(text).await?;
                self.of_refresh_token(verifiers, &token)?
            }
        };
        Ok(Caller { identity: Some(identity), grant: Grant::Everything })
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
            return self.by_key(Some(user), password, from).await;
        }
        if login_secret::is_login_secret(password) {
            return self.by_login_secret(verifiers, password).await;
        }
        if let Some(issuer) = Verifiers::issuer_of(password) {
            return verifiers.by_jwt(&issuer, password).await;
        }
        // What can be guessed; but what was right a moment ago is no guess.
        if let Some(known) = verifiers.known_password(user, password).await {
            return Ok(known);
        }
        let asked_at = Instant::now();
        let found = verifiers.by_password(user, password, || self.limits.may_try(from.client, user)).await;
        if let Err(Refusal::Rejected(_)) = &found {
            // However long it took to find out: the time says no more than the answer.
            tokio::time::sleep_until(asked_at + WRONG_PASSWORD_TIME).await;
        }
        found
    }

    async fn by_key(
        &self,
        user: Option<&str>,
        text: &str,
        from: &ConnectionInfo<'_>,
    ) -> Result<Arc<Identity>, Refusal> {
        if !self.api_keys {
            return Err(Rejection::KeysOff.into());
        }
        self.keys.find(user, text, from.client).await
    }

    /// A credential helper's secret is good as long as what it was made of.
    async fn by_login_secret(&self, verifiers: &Verifiers, text: &str) -> Result<Arc<Identity>, Refusal> {
        let (source, good_until) = self.login_secrets.verify(text)?;
        let identity = match source {
            Source::Terminal(id) => Identity::clone(&*self.terminals.find_by_id(&id).await?),
            Source::Workload { issuer, claims, scopes } => of_login_secret(verifiers, &issuer, &claims, &scopes)?,
        };
        Ok(Arc::new(Identity { good_until: Some(good_until), ..identity }))
    }

    /// One of our own tokens is good as long as the credential that it was made of.
    async fn by_own_token(
        &self,
        verifiers: &Verifiers,
        token: &VerifiedToken,
        from: &ConnectionInfo<'_>,
    ) -> Result<Caller, Refusal> {
        self.tokens.must_be_in_time(token, from.push)?;
        let VerifiedToken { id, user, origin, access, .. } = token;
        let identity = match origin {
            Origin::Nobody => None,
            Origin::Key(_) if !self.api_keys => return Err(Rejection::KeysOff.into()),
            Origin::Key(id) => Some(self.keys.find_by_id(id, from.client).await?),
            Origin::RefreshToken(id) => {
                let token = self.refresh_tokens.find_by_id(id).await?;
                Some(self.of_refresh_token(verifiers, &token)?)
            }
            Origin::Terminal(id) => Some(self.terminals.find_by_id(id).await?),
            Origin::LoginSecret { issuer, claims, scopes } => {
                Some(Arc::new(of_login_secret(verifiers, issuer, claims, scopes)?))
            }
            Origin::Password(fingerprint) => {
                let passwords = verifiers.passwords.as_ref();
                let found = passwords.and_then(|passwords| passwords.find_by_fingerprint(user, fingerprint));
                Some(found.ok_or(Rejection::OrphanToken)?)
            }
            Origin::Workload { issuer, claims } => Some(Arc::new(verifiers.workloads.apply(issuer, claims)?)),
            Origin::SelfContained(contained) => Some(Arc::new(contained.clone().identity(user.clone()))),
        };
        Ok(Caller { identity, grant: Grant::Token { id: id.clone(), access: Arc::clone(access) } })
    }

    /// Whose refresh token this is, by the rules of now.
    fn of_refresh_token(&self, verifiers: &Verifiers, token: &RefreshToken) -> Result<Arc<Identity>, Refusal> {
        let mut identity = verifiers.workloads.apply(&token.issuer, &token.claims)?;
        identity.method = AuthMethod::RefreshToken(token.id.clone());
        identity.good_until = Some(token.expires_at);
        Ok(Arc::new(identity))
    }

    /// Looks up again what is remembered, because something of somebody has changed.
    pub fn refresh(&self) {
        self.keys.refresh();
        self.sessions.refresh();
        self.terminals.refresh();
        self.standings.refresh();
    }
}

/// The workload whose token a secret was made of, by the rules of now.
fn of_login_secret(
    verifiers: &Verifiers,
    issuer: &str,
    claims: &Map<String, Value>,
    scopes: &[String],
) -> Result<Identity, Refusal> {
    let scopes = KeyScopes::parse(scopes).map_err(|_| Rejection::NotAToken)?;
    let identity = verifiers.workloads.apply(issuer, claims)?;
    Ok(Identity { method: AuthMethod::LoginSecret(issuer.to_owned()), scopes, ..identity })
}
