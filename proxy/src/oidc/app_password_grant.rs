//! Machines that sign in with an app password: authentik's form of the client credentials grant (RFC 6749, section 4.4).

use form_urlencoded::Serializer;
use serde::Deserialize;

use super::{
    Provider, SignInError,
    jwt::{Claims, JwtError},
};

/// Why an app password opens nothing.
#[derive(Debug, thiserror::Error)]
pub enum ExchangeError {
    /// It is wrong, or its user is deactivated or may not use the application.
    #[error("authentik does not take it as an app password of this user")]
    Refused,
    /// Nobody can tell now.
    #[error(transparent)]
    Unavailable(#[from] SignInError),
    /// What came of it isn't good.
    #[error(transparent)]
    Token(#[from] JwtError),
}

#[derive(Deserialize)]
struct Granted {
    access_token: String,
    #[serde(default)]
    expires_in: Option<u64>,
}

impl Provider {
    /// Asks authentik whose app password this is; the claims of that user, and for how many seconds they are good.
    ///
    /// # Errors
    /// [`ExchangeError`]
    pub async fn exchange_app_password(&self, user: &str, password: &str) -> Result<(Claims, u64), ExchangeError> {
        let discovered = self.discovered().await?;
        let no_endpoint = || SignInError::NotAProvider {
            url: self.config.issuer.clone(),
            cause: "it has no token endpoint".to_owned(),
        };
        let url = discovered.token.as_ref().ok_or_else(no_endpoint)?;
        let body = Serializer::new(String::new())
            .append_pair("grant_type", "client_credentials")
            .append_pair("client_id", &self.config.client_id)
            .append_pair("username", user)
            .append_pair("password", password)
            .append_pair("scope", &self.config.scopes.join(" "))
            .finish();
        let request = http::Request::post(url.as_str())
            .header("content-type", "application/x-www-form-urlencoded")
            .header("accept", "application/json")
            .body(body.into_bytes())
            .map_err(|e| self.http.unreachable(&e))?;
        let answer = self.http.send(request).await.map_err(|e| self.http.unreachable(&e))?;
        if answer.status().is_client_error() {
            return Err(ExchangeError::Refused);
        }
        if !answer.status().is_success() {
            return Err(self.http.unreachable(&format!("it answers {}", answer.status())).into());
        }
        let granted: Granted = serde_json::from_slice(answer.body())
            .map_err(|e| SignInError::Exchange(format!("its answer can't be read ({e})")))?;
        let claims = match self.verify(&granted.access_token).await? {
            Ok(claims) => self.complete(&discovered, claims, &granted.access_token).await?,
            // It came from the provider itself, who can say whose it is.
            Err(JwtError::NoSigningKey) => self.user_info(&discovered, &granted.access_token).await?,
            Err(error) => return Err(error.into()),
        };
        Ok((claims, granted.expires_in.unwrap_or(60)))
    }
}
