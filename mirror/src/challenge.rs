//! What another registry wants to see: a `WWW-Authenticate` header (RFC 9110, section 11.6.1), as registries write it.

use http::{HeaderMap, header::WWW_AUTHENTICATE};

/// The longest header that is read, in bytes.
const MAX_CHALLENGE_BYTES: usize = 4096;

/// What is wanted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Challenge {
    /// A token of this token service.
    Bearer {
        /// Where that is.
        realm: String,
        /// For whom the token is.
        service: Option<String>,
        /// What for.
        scope: Option<String>,
    },
    /// A user and a password.
    Basic,
}

impl Challenge {
    /// The best of them that can be met: a token is less than a password.
    pub fn read(headers: &HeaderMap) -> Option<Self> {
        let texts = headers.get_all(WWW_AUTHENTICATE).iter().filter_map(|value| value.to_str().ok());
        let texts: Vec<&str> = texts.filter(|text| text.len() <= MAX_CHALLENGE_BYTES).collect();
        let bearer = texts.iter().filter_map(|text| {
            // Several may stand in one line.
            let at = text.to_ascii_lowercase().find("bearer ")?;
            Self::parse(&text[at..])
        });
        bearer.chain(texts.iter().filter_map(|text| Self::parse(text))).next()
    }

    fn parse(text: &str) -> Option<Self> {
        let (scheme, rest) = text.trim().split_once(' ').unwrap_or((text.trim(), ""));
        if scheme.eq_ignore_ascii_case("basic") {
            return Some(Self::Basic);
        }
        if !scheme.eq_ignore_ascii_case("bearer") {
            return None;
        }
        let (mut realm, mut service, mut scope) = (None, None, None);
        for (name, value) in parameters(rest) {
            match name.to_ascii_lowercase().as_str() {
                "realm" => realm = Some(value),
                "service" => service = Some(value),
                "scope" => scope = Some(value),
                _ => {}
            }
        }
        Some(Self::Bearer { realm: realm?, service, scope })
    }
}

/// `name="value"`, separated by commas; the values may be quoted, and hold commas then.
fn parameters(text: &str) -> Vec<(String, String)> {
    let (mut found, mut rest) = (Vec::new(), text);
    while let Some((name, after)) = rest.split_once('=') {
        let (mut value, mut end) = (String::new(), after.len());
        let is_quoted = after.starts_with('"');
        let mut letters = after.char_indices().skip(usize::from(is_quoted));
        while let Some((at, letter)) = letters.next() {
            match letter {
                '\\' if is_quoted => value.extend(letters.next().map(|(_, letter)| letter)),
                '"' if is_quoted => {
                    end = after[at..].find(',').map_or(after.len(), |comma| at + comma);
                    break;
                }
                ',' if !is_quoted => {
                    end = at;
                    break;
                }
                letter => value.push(letter),
            }
        }
        found.push((name.trim_matches([' ', ',', '\t']).to_owned(), value.trim_end().to_owned()));
        rest = after.get(end + 1..).unwrap_or_default();
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_registries_write_is_read() {
        let bearer = |realm: &str, service: Option<&str>, scope: Option<&str>| {
            let text = |text: Option<&str>| text.map(str::to_owned);
            Some(Challenge::Bearer { realm: realm.to_owned(), service: text(service), scope: text(scope) })
        };
        for (text, expected) in [
            (
                r#"Bearer realm="https://auth.docker.io/token",service="registry.docker.io",scope="repository:a/b:pull,push""#,
                bearer("https://auth.docker.io/token", Some("registry.docker.io"), Some("repository:a/b:pull,push")),
            ),
            (r#"bearer realm="https://x/y", error="invalid_token""#, bearer("https://x/y", None, None)),
            ("Bearer realm=https://x/y,service=z", bearer("https://x/y", Some("z"), None)),
            (r#"Bearer realm="a\"b""#, bearer("a\"b", None, None)),
            (r#"Basic realm="x""#, Some(Challenge::Basic)),
            ("Bearer", None),
            ("Bearer service=\"x\"", None),
            ("Negotiate", None),
            ("", None),
            ("Bearer realm=\"", bearer("", None, None)),
            ("Bearer =\"\",=", None),
        ] {
            assert_eq!(Challenge::parse(text), expected, "{text}");
        }
    }
}
