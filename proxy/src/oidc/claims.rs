//! From claims to a person.

use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD};
use openidconnect::core::CoreIdToken;
use serde_json::{Map, Value};

use super::{Provider, ProviderConfig, SignInError, discovery::Discovered};
use crate::store::{PersonId, User};

/// Every claim of an ID token that has been checked.
pub fn claims_of(id_token: &CoreIdToken) -> Result<Map<String, Value>, SignInError> {
    let text = id_token.to_string();
    let payload = text.split('.').nth(1).and_then(|payload| BASE64_URL_SAFE_NO_PAD.decode(payload).ok());
    let claims = payload.and_then(|payload| serde_json::from_slice(&payload).ok());
    claims.ok_or_else(|| SignInError::IdToken("its payload can't be read".to_owned()))
}

impl Provider {
    /// The person that checked claims speak of.
    ///
    /// # Errors
    /// [`NoName`]
    pub fn user_of(&self, claims: Map<String, Value>) -> Result<User, NoName> {
        user_of(&self.config, claims)
    }

    /// The claims of a token, completed with those that the provider has.
    ///
    /// # Errors
    /// As [`Provider::begin`](super::Provider::begin).
    pub async fn completed(
        &self,
        claims: Map<String, Value>,
        access_token: &str,
    ) -> Result<Map<String, Value>, SignInError> {
        let discovered = self.discovered().await?;
        self.complete(&discovered, claims, access_token).await
    }

    /// Asks the provider for the claims that aren't in the ID token (OpenID Connect Core, section 5.3).
    pub(super) async fn complete(
        &self,
        discovered: &Discovered,
        mut claims: Map<String, Value>,
        access_token: &str,
    ) -> Result<Map<String, Value>, SignInError> {
        let missing = |name: &str| claims.get(name).is_none_or(|value| value.is_null() || value == "");
        if discovered.user_info.is_none() {
            return Ok(claims);
        }
        if !missing(&self.config.username_claim) && !missing(&self.config.groups_claim) {
            return Ok(claims);
        }
        let more = self.user_info(discovered, access_token).await?;
        // Without this, an answer for somebody else could be taken for this person's (section 5.3.2).
        if more.get("sub") != claims.get("sub") {
            return Err(unusable("speaks of another person than the ID token"));
        }
        for (name, value) in more {
            claims.entry(name).or_insert(value);
        }
        Ok(claims)
    }

    /// What the provider says of the person whose access token this is.
    pub(super) async fn user_info(
        &self,
        discovered: &Discovered,
        access_token: &str,
    ) -> Result<Map<String, Value>, SignInError> {
        let url = discovered.user_info.as_ref().ok_or_else(|| unusable("is missing"))?;
        let request = http::Request::get(url.as_str()).header("authorization", format!("Bearer {access_token}"));
        let request = request.body(Vec::new()).map_err(|e| unusable(&e.to_string()))?;
        let answer = self.http.send(request).await.map_err(|e| unusable(&format!("can't be reached ({e})")))?;
        if !answer.status().is_success() {
            return Err(unusable(&format!("answers {}", answer.status())));
        }
        serde_json::from_slice(answer.body()).map_err(|_| unusable("doesn't answer with a JSON object"))
    }
}

fn unusable(cause: &str) -> SignInError {
    SignInError::Exchange(format!("its userinfo endpoint {cause}"))
}

/// Nobody is named: the claim that is missing.
#[derive(Debug)]
pub struct NoName(pub String);

/// The person that checked claims speak of. No other claim stands in for the one that is configured: whoever could do
/// without it would be called by what they may choose themselves.
///
/// # Errors
/// [`NoName`]
pub fn user_of(config: &ProviderConfig, claims: Map<String, Value>) -> Result<User, NoName> {
    let text = |name: &str| claims.get(name).and_then(Value::as_str).filter(|text| !text.is_empty());
    let required = |claim: &str| text(claim).map(str::to_owned).ok_or_else(|| NoName(claim.to_owned()));
    let (name, subject) = (required(&config.username_claim)?, required("sub")?);
    let groups = match claims.get(&config.groups_claim) {
        Some(Value::String(one)) => vec![one.clone()],
        Some(Value::Array(many)) => many.iter().filter_map(Value::as_str).map(str::to_owned).collect(),
        _ => Vec::new(),
    };
    Ok(User { id: PersonId { provider: config.id.clone(), subject }, name, groups, claims })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn user(claims: Value, username: &str) -> Result<User, NoName> {
        let config = ProviderConfig {
            id: "oidc".to_owned(),
            name: "OIDC".to_owned(),
            issuer: "https://a/".to_owned(),
            client_id: "c".to_owned(),
            client_secret: None,
            scopes: Vec::new(),
            username_claim: username.to_owned(),
            groups_claim: "groups".to_owned(),
            authority: crate::oidc::TrustRoots::default(),
            scim: None,
            files: Vec::new(),
        };
        user_of(&config, claims.as_object().cloned().unwrap_or_default())
    }

    #[test]
    fn the_name_is_the_configured_claim_and_no_other() {
        let claims = json!({"sub": "1", "email": "a@b", "preferred_username": "alice", "nickname": ""});
        assert_eq!(user(claims.clone(), "preferred_username").expect("a user").name, "alice");
        for claim in ["nickname", "upn"] {
            assert_eq!(user(claims.clone(), claim).expect_err("nobody").0, claim);
        }
        assert_eq!(user(json!({"email": "a@b"}), "email").expect_err("nobody").0, "sub");
    }

    #[test]
    fn groups_are_an_array_or_one_text() {
        for (groups, expected) in [
            (json!(["a", "b"]), vec!["a", "b"]),
            (json!("a"), vec!["a"]),
            (json!({"a": 1}), vec![]),
            (json!(null), vec![]),
        ] {
            assert_eq!(
                user(json!({"sub": "1", "email": "x", "groups": groups}), "email").expect("a user").groups,
                expected
            );
        }
    }
}
