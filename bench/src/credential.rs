//! Who measures, and how that is shown to a registry.

use base64::{Engine, engine::general_purpose::STANDARD};
use http::{
    Method, StatusCode,
    header::{AUTHORIZATION, COOKIE, WWW_AUTHENTICATE},
};
use serde::Deserialize;
use url::Url;

use crate::{
    Error,
    client::{Asked, Dialer, empty, target_of},
};

/// A credential.
#[derive(Clone)]
pub enum Credential {
    /// None.
    Nobody,
    /// A name and a password, an API key say, with each request.
    Basic(String, String),
    /// A name and a password for which the registry's token service is asked once, as docker does.
    Token(String, String),
    /// A token as it is.
    Bearer(String),
    /// The cookies of a browser.
    Cookie(String),
}

impl Credential {
    /// The header that shows it for work in `repository`, if there is one.
    ///
    /// # Errors
    /// If the token service refuses it.
    pub async fn header(
        &self,
        dialer: &Dialer,
        url: &Url,
        repository: &str,
    ) -> Result<Option<(&'static str, String)>, Error> {
        let basic = |user: &str, password: &str| format!("Basic {}", STANDARD.encode(format!("{user}:{password}")));
        let authorization = |value: String| Some((AUTHORIZATION.as_str(), value));
        Ok(match self {
            Self::Nobody => None,
            Self::Basic(user, password) => authorization(basic(user, password)),
            Self::Bearer(token) => authorization(format!("Bearer {token}")),
            Self::Cookie(cookie) => Some((COOKIE.as_str(), cookie.clone())),
            Self::Token(user, password) => {
                let shown = basic(user, password);
                match challenge(dialer, url).await? {
                    // A registry that knows no tokens.
                    None => authorization(shown),
                    Some(challenge) if url.scheme() == "https" && challenge.realm.scheme() != "https" => {
                        return Err("its token service is no https address; the password isn't sent there".into());
                    }
                    Some(challenge) => {
                        let token = ask_token(dialer, &challenge, &shown, repository).await?;
                        authorization(format!("Bearer {token}"))
                    }
                }
            }
        })
    }
}

/// Where tokens are to be had (the distribution project's token authentication specification).
#[derive(Debug, PartialEq)]
struct Challenge {
    realm: Url,
    service: String,
}

async fn challenge(dialer: &Dialer, url: &Url) -> Result<Option<Challenge>, Error> {
    let ping = Asked::new(Method::GET, "/v2/");
    let mut connection = dialer.connect(url).await?;
    let answer = connection.expect(&ping, empty(), &[StatusCode::UNAUTHORIZED, StatusCode::OK]).await?;
    let all = answer.headers().get_all(WWW_AUTHENTICATE).iter().filter_map(|value| value.to_str().ok());
    Ok(all.filter_map(parse).next())
}

/// `Bearer realm="…",service="…"` (RFC 9110, section 11.6.1).
fn parse(header: &str) -> Option<Challenge> {
    let (scheme, mut rest) = header.trim().split_once(' ')?;
    if !scheme.eq_ignore_ascii_case("bearer") {
        return None;
    }
    let (mut realm, mut service) = (None, String::new());
    while let Some((name, after)) = rest.split_once('=') {
        let value;
        (value, rest) = match after.strip_prefix('"') {
            Some(quoted) => quoted.split_once('"')?,
            None => after.split_once(',').unwrap_or((after, "")),
        };
        match name.trim_matches([',', ' ']).to_ascii_lowercase().as_str() {
            "realm" => realm = Some(value.parse().ok()?),
            "service" => value.clone_into(&mut service),
            _ => {}
        }
    }
    Some(Challenge { realm: realm?, service })
}

async fn ask_token(dialer: &Dialer, challenge: &Challenge, shown: &str, repository: &str) -> Result<String, Error> {
    #[derive(Deserialize)]
    struct Answer {
        token: Option<String>,
        access_token: Option<String>,
    }
    let mut realm = challenge.realm.clone();
    realm
        .query_pairs_mut()
        .append_pair("service", &challenge.service)
        .append_pair("scope", &format!("repository:{repository}:pull,push,delete"));
    let asked = Asked::new(Method::GET, target_of(&realm)).with(AUTHORIZATION.as_str(), shown);
    let answer = dialer.connect(&realm).await?.expect(&asked, empty(), &[StatusCode::OK]).await?;
    let answer: Answer = serde_json::from_slice(answer.body())?;
    answer.token.or(answer.access_token).ok_or_else(|| "the token service gave no token".into())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn challenges_are_read() {
        let header =
            r#"Bearer realm="https://r.example/token?a=b",service="r, example",scope="x:y:z",error=invalid_token"#;
        let realm = "https://r.example/token?a=b".parse().expect("an address");
        assert_eq!(parse(header), Some(Challenge { realm, service: "r, example".to_owned() }));
        assert_eq!(parse(r#"Basic realm="https://r.example""#), None);
        assert_eq!(parse("Bearer"), None);
    }

    proptest! {
        #[test]
        fn no_challenge_panics(text in "(Bearer )?[a-z=\", :/]{0,60}") {
            let _ = parse(&text);
        }
    }
}
