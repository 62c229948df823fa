//! What somebody's claims are by now: the refresh token grant (RFC 6749, section 6; OpenID Connect Core, section 12).

use openidconnect::{
    OAuth2TokenResponse, RefreshToken, RequestTokenError, TokenResponse,
    core::{CoreErrorResponseType, CoreIdToken},
};

use super::{Provider, ProviderTokens, SignInError, jwt::JwtError, renewal_delay};
use crate::store::User;

/// Why claims can't be renewed.
#[derive(Debug, thiserror::Error)]
pub enum RenewalError {
    /// The provider does not renew this sign-in any more.
    #[error("the identity provider does not renew this sign-in any more ({0})")]
    Refused(String),
    /// The provider calls the person by another name now.
    #[error("the identity provider calls them by another name now")]
    Renamed,
    /// The provider wasn't asked, or said nothing of the person; the refresh token is as good as before.
    #[error(transparent)]
    Undecided(SignInError),
    /// Nobody can tell now; what is known stays.
    #[error(transparent)]
    Unavailable(#[from] SignInError),
    /// The answer isn't good.
    #[error(transparent)]
    Token(#[from] JwtError),
}

/// What an answer gave, before anything is made of it.
pub struct Renewed {
    /// The tokens to go on with: the old refresh token too, if there is no new one.
    pub tokens: ProviderTokens,
    /// In how many seconds the provider is to be asked again.
    pub expires_in: i64,
}

impl Provider {
    /// Uses a refresh token, which may be good once; gives the same person with the claims of now. `keep` is given the next
    /// token as soon as it is here, before anything else can fail.
    ///
    /// # Errors
    /// [`RenewalError`]
    pub async fn renew(
        &self,
        before: &User,
        tokens: &ProviderTokens,
        keep: impl AsyncFnOnce(&Renewed),
    ) -> Result<User, RenewalError> {
        let discovered = self.discovered().await.map_err(RenewalError::Undecided)?;
        let token = RefreshToken::new(tokens.refresh_token.clone().unwrap_or_default());
        let request = discovered.client.exchange_refresh_token(&token).map_err(|e| SignInError::NotAProvider {
            url: self.config.issuer.clone(),
            cause: format!("it has no token endpoint ({e})"),
        })?;
        let answer = request.request_async(&self.sender()).await.map_err(|error| match error {
            RequestTokenError::ServerResponse(answer) if *answer.error() == CoreErrorResponseType::InvalidGrant => {
                RenewalError::Refused(answer.to_string())
            }
            RequestTokenError::ServerResponse(answer) => {
                RenewalError::Undecided(SignInError::Exchange(answer.to_string()))
            }
            RequestTokenError::Request(cause) if cause.was_not_processed() => {
                RenewalError::Undecided(self.http.unreachable(&cause))
            }
            RequestTokenError::Request(cause) => self.http.unreachable(&cause).into(),
            // The body isn't shown: it may hold tokens.
            RequestTokenError::Parse(cause, _) => {
                SignInError::Exchange(format!("its answer can't be read ({cause})")).into()
            }
            RequestTokenError::Other(cause) => SignInError::Exchange(cause).into(),
        })?;
        let next = ProviderTokens {
            id_token: answer.id_token().map_or_else(|| tokens.id_token.clone(), CoreIdToken::to_string),
            refresh_token: answer.refresh_token().map(|token| token.secret().clone()).or(tokens.refresh_token.clone()),
        };
        keep(&Renewed { tokens: next, expires_in: renewal_delay(answer.expires_in()) }).await;
        let access_token = answer.access_token().secret();
        let claims = match answer.id_token() {
            None => self.user_info(&discovered, access_token).await?,
            Some(id_token) => match self.verify(&id_token.to_string()).await? {
                Ok(claims) => self.complete(&discovered, claims, access_token).await?,
                Err(JwtError::NoSigningKey) => self.user_info(&discovered, access_token).await?,
                Err(error) => return Err(error.into()),
            },
        };
        let user = self.user_of(claims).map_err(|claim| SignInError::NoUserName(claim.0))?;
        // Section 12.2: the same subject. A name that has changed is another one to the rules: sign in again.
        if user.id != before.id || user.name != before.name {
            return Err(RenewalError::Renamed);
        }
        Ok(user)
    }
}
