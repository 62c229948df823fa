//! What a request shows to prove who sends it.

use base64::{Engine, prelude::BASE64_STANDARD};
use cookie::Cookie;
use http::{
    HeaderMap,
    header::{AUTHORIZATION, COOKIE},
};

use super::{api_key, login_secret, refresh_token, terminal};
use crate::oidc::jwt::claimed_issuer;

/// A credential as it came; nothing of it was checked. It has no `Debug`, so that it can't be logged.
pub enum Credential {
    /// There is none.
    None,
    /// The id in the session cookie.
    Session(String),
    /// `Authorization: Basic` (RFC 7617).
    Basic {
        /// Before the colon.
        user: String,
        /// After it.
        password: String,
    },
    /// `Authorization: Bearer` (RFC 6750).
    Bearer(String),
    /// A refresh token, of a job or a terminal, in a form of the token service.
    RefreshToken(String),
}

impl Credential {
    /// The user whose secret somebody would guess at with this: only a password can be guessed.
    pub fn guessed_user(&self) -> Option<&str> {
        match self {
            Self::Basic { user, password }
                if !api_key::is_key(password) && !login_secret::is_login_secret(password) =>
            {
                Some(user)
            }
            Self::Basic { .. } | Self::None | Self::Session(_) | Self::Bearer(_) | Self::RefreshToken(_) => None,
        }
    }

    /// Whose it is said to be, for the log; nothing, if what stands there is a key or a token.
    pub fn claimed_user(&self) -> Option<&str> {
        // Wherever they stand in it: somebody may have pasted white space, too.
        let is_secret = |text: &str| {
            text.contains(api_key::PREFIX)
                || text.contains(refresh_token::PREFIX)
                || text.contains(terminal::PREFIX)
                || text.contains(login_secret::PREFIX)
                || claimed_issuer(text.trim()).is_some()
        };
        match self {
            Self::Basic { user, .. } if !is_secret(user) => Some(user),
            Self::Basic { .. } | Self::None | Self::Session(_) | Self::Bearer(_) | Self::RefreshToken(_) => None,
        }
    }

    /// Whether a browser shows it of itself, whoever wrote the page that makes the request.
    pub fn is_ambient(&self, certificate: bool) -> bool {
        match self {
            Self::Session(_) => true,
            Self::None => certificate,
            Self::Basic { .. } | Self::Bearer(_) | Self::RefreshToken(_) => false,
        }
    }
}

/// Headers that are no credential.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    /// Two `Authorization` headers: which one would count?
    #[error("there is more than one Authorization header; send one")]
    Repeated,
    /// An `Authorization` that we can't read.
    #[error("the Authorization header is neither Basic (RFC 7617) nor Bearer (RFC 6750)")]
    Authorization,
}

impl Credential {
    /// Reads the one credential of a request: `Authorization` if there is one, or else the session cookie.
    ///
    /// # Errors
    /// [`Malformed`]
    pub fn from_headers(headers: &HeaderMap, session_cookie: &str) -> Result<Self, Malformed> {
        let mut all = headers.get_all(AUTHORIZATION).iter();
        match (all.next(), all.next()) {
            (Some(_), Some(_)) => Err(Malformed::Repeated),
            (Some(value), None) => value.to_str().map_err(|_| Malformed::Authorization).and_then(Self::authorization),
            (None, _) => Ok(cookie(headers, session_cookie).map_or(Self::None, Self::Session)),
        }
    }

    fn authorization(text: &str) -> Result<Self, Malformed> {
        let (scheme, rest) = text.split_once(' ').ok_or(Malformed::Authorization)?;
        let rest = rest.trim();
        if scheme.eq_ignore_ascii_case("bearer") && !rest.is_empty() {
            return Ok(Self::Bearer(rest.to_owned()));
        }
        if !scheme.eq_ignore_ascii_case("basic") {
            return Err(Malformed::Authorization);
        }
        let decoded = BASE64_STANDARD.decode(rest).map_err(|_| Malformed::Authorization)?;
        let decoded = String::from_utf8(decoded).map_err(|_| Malformed::Authorization)?;
        match decoded.split_once(':').ok_or(Malformed::Authorization)? {
            // podman's way to say nobody.
            ("", "") => Ok(Self::None),
            (user, password) => Ok(Self::Basic { user: user.to_owned(), password: password.to_owned() }),
        }
    }
}

/// The value of the first cookie of this name.
pub fn cookie(headers: &HeaderMap, name: &str) -> Option<String> {
    cookies(headers).find(|cookie| cookie.name() == name).map(|cookie| cookie.value().to_owned())
}

/// All cookies of a request.
pub fn cookies(headers: &HeaderMap) -> impl Iterator<Item = Cookie<'_>> {
    let texts = headers.get_all(COOKIE).iter().filter_map(|value| value.to_str().ok());
    texts.flat_map(Cookie::split_parse).filter_map(Result::ok)
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;
    use proptest::prelude::*;

    use super::*;

    fn read(values: &[&str]) -> Result<String, Malformed> {
        let mut headers = HeaderMap::new();
        headers.insert(COOKIE, HeaderValue::from_static("a=1; s=cookie"));
        for value in values {
            headers.append(AUTHORIZATION, HeaderValue::from_str(value).expect("a header"));
        }
        Credential::from_headers(&headers, "s").map(|credential| match credential {
            Credential::None => "none".to_owned(),
            Credential::Session(id) => format!("session {id}"),
            Credential::Basic { user, password } => format!("basic {user} {password}"),
            Credential::Bearer(token) => format!("bearer {token}"),
            Credential::RefreshToken(token) => format!("refresh {token}"),
        })
    }

    #[test]
    fn the_header_wins_over_the_cookie() {
        assert_eq!(read(&[]).as_deref(), Ok("session cookie"));
        assert_eq!(read(&["Basic YTpiOmM="]).as_deref(), Ok("basic a b:c"));
        assert_eq!(read(&["bearer x.y.z"]).as_deref(), Ok("bearer x.y.z"));
        assert_eq!(read(&["Basic Og=="]).as_deref(), Ok("none"));
    }

    #[test]
    fn what_could_be_read_in_two_ways_is_refused() {
        assert_eq!(read(&["Basic YTpi", "Bearer x"]), Err(Malformed::Repeated));
        for bad in ["Basic", "Basic ???", "Basic YQ==", "Digest x", "Bearer ", "x"] {
            assert_eq!(read(&[bad]), Err(Malformed::Authorization), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn no_header_panics(authorization: Vec<u8>, cookies: Vec<u8>) {
            let mut headers = HeaderMap::new();
            for (name, bytes) in [(AUTHORIZATION, authorization), (COOKIE, cookies)] {
                if let Ok(value) = HeaderValue::from_bytes(&bytes) {
                    headers.append(name, value);
                }
            }
            let _ = Credential::from_headers(&headers, "s");
        }
    }
}
