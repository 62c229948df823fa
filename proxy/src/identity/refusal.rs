//! Why a credential opens nothing: it is no good, its bearer has to wait, or nobody can tell now.
//!
//! The sentences go to the log and to the client. They hold nothing that would open anything; of a workload's token, the
//! claims that its rules have looked at.

use std::{sync::Arc, time::Duration};

use crate::{
    oidc::{SignInError, jwt::JwtError},
    store::{StoreError, SuspensionCause},
};

/// Why nobody was identified.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Refusal {
    /// The credential is no good.
    #[error(transparent)]
    Rejected(#[from] Rejection),
    /// There were too many failures: nobody looks at it for so long.
    #[error("there were too many failed sign-ins; try again in {} s", .0.as_secs() + 1)]
    Throttled(Duration),
    /// Nobody knows.
    #[error("the credential can't be checked now: {0}")]
    Unavailable(Arc<str>),
}

impl From<&StoreError> for Refusal {
    fn from(error: &StoreError) -> Self {
        Self::Unavailable(error.to_string().into())
    }
}

impl From<StoreError> for Refusal {
    fn from(error: StoreError) -> Self {
        Self::from(&error)
    }
}

impl From<SignInError> for Refusal {
    fn from(error: SignInError) -> Self {
        Self::Unavailable(error.to_string().into())
    }
}

impl From<JwtError> for Refusal {
    fn from(error: JwtError) -> Self {
        Self::Rejected(error.into())
    }
}

/// Why a credential is no good.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Rejection {
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
    /// API keys are switched off.
    #[error("API keys are switched off here (http.auth.apikey)")]
    KeysOff,
    /// Its owner is gone.
    #[error("{}", suspended(*.0))]
    Suspended(SuspensionCause),
    /// Another person holds the name.
    #[error(
        "the user name {0:?} is another person's here (another subject or another provider); whoever runs the registry can \
         give it away with `berth-proxy people FILE release NAME`"
    )]
    NameTaken(String),
    /// There is no such session.
    #[error("the session has ended; sign in again")]
    UnknownSession,
    /// The password that its owner has signed in with isn't theirs any more.
    #[error("the password was changed, or its owner was taken from the password file; sign in again")]
    ChangedPassword,
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
    /// A terminal's refresh token that was used before.
    #[error(
        "this refresh token was used before, so somebody else may have it: the terminal was signed out; sign it in again"
    )]
    ReplayedRefreshToken,
    /// A credential helper's secret whose time is over.
    #[error("this login has expired; the credential helper gets another one")]
    ExpiredSecret,
    /// No login secret is made of that.
    #[error("a login secret is made of the token of a CI job or another workload, or of a terminal that was signed in")]
    NoSecretOfThis,
    /// A code that no terminal waits under.
    #[error(
        "no terminal waits for this code: it was mistyped, has expired (after ten minutes), or was decided about before"
    )]
    UnknownCode,
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
    /// Neither a key nor a token, nor anybody's password. It says the same of who exists and of who doesn't.
    #[error(
        "the user name or the password is wrong. The password may be an API key (they begin with zak_; make one on the \
         registry's page in a browser), a token, or an app password of the identity provider, which must allow the grant \
         type client_credentials for it"
    )]
    WrongPassword,
    /// What it is for can't be read any more.
    #[error("the scopes of this API key can't be read; make a new one on the registry's page")]
    UnreadableKey,
    /// A token that no provider pushes with.
    #[error("this is the token of no provider's scim.tokenFile")]
    WrongScimToken,
    /// The provider has pushed that they are out.
    #[error("the identity provider has deactivated the owner of this credential")]
    Deactivated,
    /// The provider has pushed nothing of them, and only those are let in of whom it has.
    #[error(
        "the identity provider has not pushed this user to the registry (SCIM), which lets in nobody else; assign the \
         application to them there, or wait for its next synchronization"
    )]
    NotProvisioned,
    /// A certificate without a name.
    #[error("the client certificate names nobody, by the attributes in http.auth.mtls.identityAttributes")]
    UnnamedCertificate,
    /// A certificate that ended after the connection was made.
    #[error("the client certificate has expired; renew it")]
    ExpiredCertificate,
    /// A certificate whose authority was withdrawn after the connection was made.
    #[error("the authorities of client certificates have changed, and the one of this certificate is not among them")]
    WithdrawnCertificate,
}

fn suspended(cause: SuspensionCause) -> &'static str {
    match cause {
        SuspensionCause::Refused => {
            "the identity provider does not know the owner of this credential any more; sign in again in a browser"
        }
        SuspensionCause::Released => {
            "an operator has given the name of this credential's owner away; sign in again in a browser"
        }
        SuspensionCause::Unconfirmed => {
            "for too long, the identity provider could not be asked whether it still knows the owner of this credential; \
             sign in again in a browser"
        }
    }
}

impl Rejection {
    /// Whether somebody may have tried out what they don't know. What was genuine once is no guess.
    fn is_guess(&self) -> bool {
        match self {
            Self::UnknownKey
            | Self::OthersKey
            | Self::NotAToken
            | Self::UnknownRefreshToken
            | Self::UnknownCode
            | Self::WrongScimToken
            | Self::WrongPassword => true,
            Self::ExpiredKey
            | Self::UnknownProvider
            | Self::KeysOff
            | Self::Suspended(_)
            | Self::NameTaken(_)
            | Self::UnknownSession
            | Self::ExpiredToken
            | Self::ReplayedRefreshToken
            | Self::ExpiredSecret
            | Self::NoSecretOfThis
            | Self::OrphanToken
            | Self::ChangedPassword
            | Self::NoTokenOfThis
            | Self::UnknownIssuer(_)
            | Self::Jwt(_)
            | Self::NoRule(_)
            | Self::NoName(_)
            | Self::UnreadableKey
            | Self::Deactivated
            | Self::NotProvisioned
            | Self::UnnamedCertificate
            | Self::ExpiredCertificate
            | Self::WithdrawnCertificate => false,
        }
    }
}

impl Refusal {
    /// The kind, in one word.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Rejected(_) => "rejected",
            Self::Throttled(_) => "throttled",
            Self::Unavailable(_) => "unavailable",
        }
    }

    /// Whether somebody may have tried out what they don't know.
    pub fn is_guess(&self) -> bool {
        match self {
            Self::Rejected(rejection) => rejection.is_guess(),
            Self::Throttled(_) | Self::Unavailable(_) => false,
        }
    }
}
