//! Tokens of other issuers: JWTs (RFC 7519) that are signed with a key of the issuer's own key set, in the way that its
//! discovery lists, and in no other. A key or an address that a token brings along (`jwk`, `jku`, `x5u`) is never used.

use jsonwebtoken::{
    Algorithm, DecodingKey, Validation, decode, decode_header,
    errors::ErrorKind,
    jwk::{Jwk, PublicKeyUse},
};
use serde::de::IgnoredAny;
use serde_json::{Map, Value};

use crate::store::now;

/// By how much clocks may differ, in seconds.
const LEEWAY_SECONDS: i64 = 30;

/// The claims of a token.
pub type Claims = Map<String, Value>;

/// Why a token isn't taken. Of a token whose signature is wrong the sentences hold nothing.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum JwtError {
    /// Its issuer has no signing key, so that everybody who knows the client secret could have made it.
    #[error(
        "the identity provider signs its tokens with the client secret, which can't be trusted in the hands of clients; \
         choose a signing key for the provider in authentik"
    )]
    NoSigningKey,
    /// It is signed in another way than its issuer signs.
    #[error("the token is not signed with the algorithm that its issuer uses")]
    Algorithm,
    /// Its key isn't in the issuer's key set.
    #[error("the token is signed with a key that its issuer does not publish")]
    UnknownKey,
    /// Its signature is wrong, or it is no JWT.
    #[error("the token's signature is wrong")]
    Signature,
    /// Its time is over.
    #[error("the token has expired")]
    Expired,
    /// Its time has not come.
    #[error("the token is not valid yet; do the clocks differ?")]
    Early,
    /// It is of another issuer.
    #[error("the token is of another issuer")]
    Issuer,
    /// It was made for somebody else.
    #[error("the token was made for {shown}, and not for {expected}: ask for one with that audience (aud)")]
    Audience {
        /// For whom it was made.
        shown: String,
        /// For whom it must have been made.
        expected: String,
    },
    /// A claim that it must have is missing or malformed.
    #[error("the token lacks a claim that it must have (iss, aud, exp), or one of them is malformed")]
    Claims,
    /// It says of itself that it isn't for signing in.
    #[error("the token is a logout token, which signs nobody in")]
    NotForSigningIn,
    /// It asks for something that we don't know to be looked at.
    #[error("the token's header has critical parameters (crit) that are not known here")]
    Critical,
    /// It is an ID token, or may be one.
    #[error(
        "the token can't be told from an ID token, which says to a registry who has signed in and opens nothing; show an \
         access token: one of authentik (with the claims azp and uid), one with the header typ at+jwt (RFC 9068), or one \
         with the claim typ Bearer (Keycloak). Where the provider's access tokens look like its ID tokens, use an API key"
    )]
    NotAnAccessToken,
}

impl JwtError {
    /// Whether other keys of the issuer could say otherwise.
    pub fn may_be_stale(&self) -> bool {
        matches!(self, Self::UnknownKey | Self::Signature)
    }
}

/// What a token must be.
pub struct Expected<'a> {
    /// Its `iss`; any, if there is none.
    pub issuer: Option<&'a str>,
    /// One of these must be among its `aud`.
    pub audiences: &'a [String],
}

/// The keys of an issuer.
pub struct JwtKeys {
    keys: Vec<Key>,
    algorithms: Vec<Algorithm>,
    secret: Option<DecodingKey>,
}

struct Key {
    id: Option<String>,
    algorithm: Option<Algorithm>,
    key: DecodingKey,
}

impl JwtKeys {
    /// Reads a key set (RFC 7517, section 5) and the names of algorithms. What can't be used is left out. `secret` is
    /// the client's, for issuers that sign with that.
    pub fn new(set: &Value, algorithms: &[String], secret: Option<&str>) -> Self {
        let listed = set.get("keys").and_then(Value::as_array).into_iter().flatten();
        let keys = listed.filter_map(|value| {
            let jwk: Jwk = serde_json::from_value(value.clone()).ok()?;
            if jwk.common.public_key_use.as_ref().is_some_and(|its| *its != PublicKeyUse::Signature) {
                return None;
            }
            // A symmetric key that is published is nobody's secret.
            if value.get("kty").and_then(Value::as_str) == Some("oct") {
                return None;
            }
            let algorithm = value.get("alg").and_then(Value::as_str).and_then(|name| name.parse().ok());
            Some(Key { id: jwk.common.key_id.clone(), algorithm, key: DecodingKey::from_jwk(&jwk).ok()? })
        });
        Self {
            keys: keys.collect(),
            algorithms: algorithms.iter().filter_map(|name| name.parse().ok()).collect(),
            secret: secret.map(|secret| DecodingKey::from_secret(secret.as_bytes())),
        }
    }

    /// The claims of a token that signs somebody in.
    ///
    /// # Errors
    /// [`JwtError`]
    pub fn verify(&self, token: &str, expected: &Expected<'_>) -> Result<Claims, JwtError> {
        self.verify_with_type(token, expected).map(|(claims, _)| claims)
    }

    /// The claims of an access token: one that is positively known to be one.
    ///
    /// # Errors
    /// [`JwtError`]; [`JwtError::NotAnAccessToken`] for an ID token and for what can't be told from one.
    pub fn verify_access_token(&self, token: &str, expected: &Expected<'_>) -> Result<Claims, JwtError> {
        let (claims, typ) = self.verify_with_type(token, expected)?;
        if is_access_token(typ.as_deref(), &claims) { Ok(claims) } else { Err(JwtError::NotAnAccessToken) }
    }

    /// The claims of a token that signs somebody in, and the `typ` of its header.
    fn verify_with_type(&self, token: &str, expected: &Expected<'_>) -> Result<(Claims, Option<String>), JwtError> {
        let header = decode_header(token).map_err(|_| JwtError::Signature)?;
        if !self.algorithms.is_empty() && self.algorithms.iter().all(|algorithm| is_symmetric(*algorithm)) {
            return Err(JwtError::NoSigningKey);
        }
        if is_symmetric(header.alg) {
            return Err(JwtError::Algorithm);
        }
        let logs_out = header.typ.as_ref().is_some_and(|typ| typ.eq_ignore_ascii_case("logout+jwt"));
        let claims = self.check(token, expected, true)?;
        if logs_out || claims.contains_key("events") {
            return Err(JwtError::NotForSigningIn);
        }
        Ok((claims, header.typ))
    }

    /// The claims of a logout token, which need not expire and may be signed with the client secret, since the issuer
    /// brings it itself.
    ///
    /// # Errors
    /// [`JwtError`]
    pub fn verify_logout(&self, token: &str, expected: &Expected<'_>) -> Result<Claims, JwtError> {
        self.check(token, expected, false)
    }

    fn check(&self, token: &str, expected: &Expected<'_>, must_expire: bool) -> Result<Claims, JwtError> {
        let header = decode_header(token).map_err(|_| JwtError::Signature)?;
        if !self.algorithms.contains(&header.alg) {
            return Err(JwtError::Algorithm);
        }
        // RFC 7515, section 4.1.11: what must be understood and isn't makes the token invalid.
        if has_critical_parameters(token) {
            return Err(JwtError::Critical);
        }
        let mut validation = Validation::new(header.alg);
        // Times are looked at below: they may be fractions (RFC 7519, section 2).
        validation.validate_exp = false;
        validation.validate_nbf = false;
        validation.set_audience(expected.audiences);
        let required = ["iss", "aud"];
        validation.set_required_spec_claims(&required);
        if let Some(issuer) = expected.issuer {
            validation.set_issuer(&[issuer]);
        }
        let mut outcome = Err(JwtError::UnknownKey);
        for key in self.candidates(header.alg, header.kid.as_deref()) {
            outcome = decode::<Claims>(token, key, &validation).map_err(|e| reason(e.kind(), token, expected));
            if !matches!(outcome, Err(JwtError::Signature)) {
                break;
            }
        }
        let claims = outcome?.claims;
        let time = |name| match claims.get(name) {
            None => Ok(None),
            Some(value) => numeric_date(value).map(Some).ok_or(JwtError::Claims),
        };
        let (expires, not_before, issued) = (time("exp")?, time("nbf")?, time("iat")?);
        match (expires, must_expire) {
            (None, true) => return Err(JwtError::Claims),
            (Some(at), _) if at + LEEWAY_SECONDS <= now() => return Err(JwtError::Expired),
            _ => {}
        }
        let is_early = |at: Option<i64>| at.is_some_and(|at| at > now() + LEEWAY_SECONDS);
        if is_early(not_before) || is_early(issued) {
            return Err(JwtError::Early);
        }
        Ok(claims)
    }

    /// The keys that may have made a signature: the one of this id, or of an id-less token any that fits.
    fn candidates(&self, algorithm: Algorithm, id: Option<&str>) -> Vec<&DecodingKey> {
        if is_symmetric(algorithm) {
            return self.secret.iter().collect();
        }
        let fits =
            |key: &&Key| (id.is_none() || key.id.as_deref() == id) && key.algorithm.is_none_or(|its| its == algorithm);
        self.keys.iter().filter(fits).map(|key| &key.key).collect()
    }
}

/// A time in a token, which may be a fraction (RFC 7519, section 2), in whole seconds; nothing if it is none, or too far
/// away to be reckoned with.
pub fn numeric_date(value: &Value) -> Option<i64> {
    const FAR: f64 = 1e12;
    let seconds = value.as_f64().filter(|seconds| seconds.abs() < FAR)?;
    #[allow(clippy::cast_possible_truncation)]
    Some(seconds.floor() as i64)
}

/// Whether a token is positively an access token. An ID token speaks to whoever has signed somebody in, stands in
/// addresses and logs, and may not open anything; but to a verifier it looks much the same.
///
/// - RFC 9068, section 2.1: the header's `typ` is `at+jwt`.
/// - Keycloak: the claim `typ` is `Bearer`, and `ID` in ID tokens.
/// - authentik: access tokens have `azp` and `uid`. Its ID tokens have neither; those of before 2026.8 have `at_hash`.
///
/// Dex gives both kinds the same claims, `at_hash` too: they can't be told apart.
fn is_access_token(typ: Option<&str>, claims: &Claims) -> bool {
    if typ.is_some_and(|typ| matches!(typ.to_ascii_lowercase().as_str(), "at+jwt" | "application/at+jwt")) {
        return true;
    }
    // OpenID Connect Core, sections 3.1.3.6 and 3.3.2.11: only ID tokens have these.
    if claims.contains_key("at_hash") || claims.contains_key("c_hash") {
        return false;
    }
    match claims.get("typ") {
        Some(typ) => typ == "Bearer",
        None => ["azp", "uid"]
            .iter()
            .all(|name| claims.get(*name).and_then(Value::as_str).is_some_and(|text| !text.is_empty())),
    }
}

/// The same of a token that isn't verified.
pub fn is_access_token_of(token: &str, claims: &Claims) -> bool {
    let typ = decode_header(token).ok().and_then(|header| header.typ);
    is_access_token(typ.as_deref(), claims)
}

/// Why a token is refused whoever signed it, as far as that can be seen in it.
pub fn never_taken(token: &str, claims: &Claims) -> Option<JwtError> {
    let Ok(header) = decode_header(token) else { return Some(JwtError::Signature) };
    let is_early = |name| claims.get(name).and_then(numeric_date).is_some_and(|at| at > now() + LEEWAY_SECONDS);
    let logs_out = header.typ.is_some_and(|typ| typ.eq_ignore_ascii_case("logout+jwt"));
    if is_symmetric(header.alg) {
        Some(JwtError::Algorithm)
    } else if has_critical_parameters(token) {
        Some(JwtError::Critical)
    } else if logs_out || claims.contains_key("events") {
        Some(JwtError::NotForSigningIn)
    } else {
        (is_early("nbf") || is_early("iat")).then_some(JwtError::Early)
    }
}

/// Whether a token's header has `crit`.
fn has_critical_parameters(token: &str) -> bool {
    use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD};
    let header = token.split('.').next().and_then(|header| BASE64_URL_SAFE_NO_PAD.decode(header).ok());
    let header = header.and_then(|header| serde_json::from_slice::<Map<String, Value>>(&header).ok());
    header.is_none_or(|header| header.contains_key("crit"))
}

fn is_symmetric(algorithm: Algorithm) -> bool {
    matches!(algorithm, Algorithm::HS256 | Algorithm::HS384 | Algorithm::HS512)
}

fn reason(kind: &ErrorKind, token: &str, expected: &Expected<'_>) -> JwtError {
    match kind {
        ErrorKind::InvalidIssuer => JwtError::Issuer,
        // Of a token whose signature is good.
        ErrorKind::InvalidAudience => JwtError::Audience {
            shown: unchecked_claims(token)
                .and_then(|claims| claims.get("aud").map(audiences_of))
                .unwrap_or_else(|| "nobody".to_owned()),
            expected: expected.audiences.join(" or "),
        },
        ErrorKind::MissingRequiredClaim(_) | ErrorKind::InvalidClaimFormat(_) | ErrorKind::Json(_) => JwtError::Claims,
        _ => JwtError::Signature,
    }
}

/// The claims of a token, of which nothing was checked.
pub fn unchecked_claims(token: &str) -> Option<Claims> {
    use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD};
    let payload = BASE64_URL_SAFE_NO_PAD.decode(token.split('.').nth(1)?).ok()?;
    serde_json::from_slice(&payload).ok()
}

/// How much is told of audiences, in characters.
const MAX_AUDIENCE_CHARS: usize = 200;

/// `aud` in words: it is one text, or several (RFC 7519, section 4.1.3).
pub fn audiences_of(aud: &Value) -> String {
    let words = match aud {
        Value::String(one) => one.clone(),
        Value::Array(many) => many.iter().filter_map(Value::as_str).collect::<Vec<_>>().join(", "),
        other => other.to_string(),
    };
    words.chars().filter(|c| !c.is_control()).take(MAX_AUDIENCE_CHARS).collect()
}

/// The `iss` that a text claims to have if it is a JWT. Nothing of it was checked: it only says whom to ask.
pub fn claimed_issuer(text: &str) -> Option<String> {
    #[derive(serde::Deserialize)]
    struct Unchecked {
        iss: String,
        #[serde(flatten)]
        _rest: std::collections::HashMap<String, IgnoredAny>,
    }
    use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD};
    let mut parts = text.split('.');
    let (_header, payload, _signature) = (parts.next()?, parts.next()?, parts.next()?);
    if parts.next().is_some() {
        return None;
    }
    let payload = BASE64_URL_SAFE_NO_PAD.decode(payload).ok()?;
    let unchecked: Unchecked = serde_json::from_slice(&payload).ok()?;
    Some(unchecked.iss)
}

#[cfg(test)]
mod tests {
    use aws_lc_rs::{
        rsa::{KeyPair, KeySize, PublicKeyComponents},
        signature::KeyPair as _,
    };
    use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD};
    use jsonwebtoken::{EncodingKey, Header, encode};
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    struct Issuer {
        sign: EncodingKey,
        set: Value,
        public: Vec<u8>,
    }

    fn issuer() -> Issuer {
        use aws_lc_rs::encoding::{AsDer, Pkcs8V1Der};
        let pair = KeyPair::generate(KeySize::Rsa2048).expect("a key");
        let der: Pkcs8V1Der<'_> = pair.as_der().expect("its encoding");
        // What is in the PKCS #8 structure is PKCS #1 (RFC 5208), after 26 bytes for a key of this size.
        let sign = EncodingKey::from_rsa_der(&der.as_ref()[26..]);
        let public = PublicKeyComponents::<Vec<u8>>::from(pair.public_key());
        let number = |bytes: &[u8]| BASE64_URL_SAFE_NO_PAD.encode(bytes);
        let set = json!({"keys": [{"kty": "RSA", "use": "sig", "alg": "RS256", "kid": "k", "n": number(&public.n), "e": number(&public.e)}]});
        Issuer { sign, set, public: pair.public_key().as_ref().to_vec() }
    }

    fn claims() -> Value {
        json!({"iss": "https://a/", "aud": "berth", "sub": "1", "exp": now() + 300, "iat": now()})
    }

    fn header() -> Header {
        Header { kid: Some("k".to_owned()), ..Header::new(Algorithm::RS256) }
    }

    fn verify(keys: &JwtKeys, token: &str) -> Result<Claims, JwtError> {
        keys.verify(token, &Expected { issuer: Some("https://a/"), audiences: &["berth".to_owned()] })
    }

    #[test]
    fn only_a_token_of_this_issuer_for_us_and_now_is_taken() {
        let (ours, theirs) = (issuer(), issuer());
        let keys = JwtKeys::new(&ours.set, &["RS256".to_owned()], None);
        let with = |changes: Value| {
            let mut claims = claims();
            for (name, value) in changes.as_object().expect("an object") {
                claims[name] = value.clone();
            }
            claims.as_object_mut().expect("an object").retain(|_, value| !value.is_null());
            encode(&header(), &claims, &ours.sign).expect("a token")
        };
        assert!(verify(&keys, &with(json!({}))).is_ok());
        assert!(verify(&keys, &with(json!({"aud": ["other", "berth"]}))).is_ok());
        let fractions = json!({"exp": now() as f64 + 300.25, "nbf": now() as f64 - 0.5, "iat": now() as f64 - 0.5});
        assert!(verify(&keys, &with(fractions)).is_ok());
        for (changes, expected) in [
            (json!({"iss": "https://b/"}), JwtError::Issuer),
            (json!({"iss": null}), JwtError::Claims),
            (json!({"aud": "other"}), JwtError::Audience { shown: "other".to_owned(), expected: "berth".to_owned() }),
            (json!({"aud": null}), JwtError::Claims),
            (json!({"exp": now() - 31}), JwtError::Expired),
            (json!({"exp": null}), JwtError::Claims),
            (json!({"exp": "soon"}), JwtError::Claims),
            (json!({"exp": 1e300}), JwtError::Claims),
            (json!({"exp": now() as f64 - 31.5}), JwtError::Expired),
            (json!({"nbf": now() as f64 + 60.5}), JwtError::Early),
            (json!({"nbf": now() + 60}), JwtError::Early),
            (json!({"iat": now() + 60}), JwtError::Early),
            (json!({"events": {}}), JwtError::NotForSigningIn),
        ] {
            assert_eq!(verify(&keys, &with(changes.clone())), Err(expected), "{changes}");
        }
        let foreign = encode(&header(), &claims(), &theirs.sign).expect("a token");
        assert_eq!(verify(&keys, &foreign), Err(JwtError::Signature));
        let unknown = Header { kid: Some("other".to_owned()), ..header() };
        assert_eq!(
            verify(&keys, &encode(&unknown, &claims(), &ours.sign).expect("a token")),
            Err(JwtError::UnknownKey)
        );
    }

    #[test]
    fn a_token_chooses_neither_its_algorithm_nor_its_key() {
        let (ours, theirs) = (issuer(), issuer());
        let keys = JwtKeys::new(&ours.set, &["RS256".to_owned()], Some("the-client-secret"));
        // RS256 to HS256: the public key, which everybody knows, as a secret.
        let confused = EncodingKey::from_secret(&ours.public);
        let hs256 = Header { kid: Some("k".to_owned()), ..Header::new(Algorithm::HS256) };
        assert_eq!(verify(&keys, &encode(&hs256, &claims(), &confused).expect("a token")), Err(JwtError::Algorithm));
        let by_secret = EncodingKey::from_secret(b"the-client-secret");
        assert_eq!(verify(&keys, &encode(&hs256, &claims(), &by_secret).expect("a token")), Err(JwtError::Algorithm));
        // Another algorithm of the same key.
        let rs512 = Header { kid: Some("k".to_owned()), ..Header::new(Algorithm::RS512) };
        assert_eq!(verify(&keys, &encode(&rs512, &claims(), &ours.sign).expect("a token")), Err(JwtError::Algorithm));
        let part = |value: Value| BASE64_URL_SAFE_NO_PAD.encode(value.to_string());
        for alg in ["none", "None", "NONE", ""] {
            let none = format!("{}.{}.", part(json!({"alg": alg, "typ": "JWT"})), part(claims()));
            assert!(verify(&keys, &none).is_err(), "{alg}");
        }
        // A key that the token brings along, and addresses of keys.
        let signed = encode(&header(), &claims(), &theirs.sign).expect("a token");
        let signature = signed.rsplit('.').next().expect("a signature");
        for extra in
            [json!({"jwk": theirs.set["keys"][0]}), json!({"jku": "http://evil/"}), json!({"x5u": "http://evil/"})]
        {
            let mut head = json!({"alg": "RS256", "kid": "k"});
            head.as_object_mut().expect("an object").extend(extra.as_object().expect("an object").clone());
            let token = format!("{}.{}.{signature}", part(head), part(claims()));
            assert_eq!(verify(&keys, &token), Err(JwtError::Signature), "{extra}");
        }
        for kid in ["../../etc/passwd", "k' OR '1'='1", ""] {
            let header = Header { kid: Some(kid.to_owned()), ..header() };
            let token = encode(&header, &claims(), &ours.sign).expect("a token");
            assert_eq!(verify(&keys, &token), Err(JwtError::UnknownKey), "{kid}");
        }
    }

    #[test]
    fn what_a_token_says_is_critical_and_is_not_known_here_makes_it_invalid() {
        let ours = issuer();
        let keys = JwtKeys::new(&ours.set, &["RS256".to_owned()], None);
        let part = |value: &Value| BASE64_URL_SAFE_NO_PAD.encode(value.to_string());
        for (crit, expected) in [(json!(["exp"]), Err(JwtError::Critical)), (json!([]), Err(JwtError::Critical))] {
            let head = json!({"alg": "RS256", "kid": "k", "typ": "JWT", "crit": crit, "exp": 1});
            let message = format!("{}.{}", part(&head), part(&claims()));
            let signature = jsonwebtoken::crypto::sign(message.as_bytes(), &ours.sign, Algorithm::RS256);
            let token = format!("{message}.{}", signature.expect("a signature"));
            assert_eq!(verify(&keys, &token).map(drop), expected, "{head}");
        }
    }

    /// Tokens as their issuers make them: authentik 2026.8 and 2026.2, Keycloak 26, dex 2.4x, and whoever follows RFC 9068.
    #[test]
    fn only_what_is_positively_an_access_token_is_one() {
        let common = json!({"iss": "https://a/", "aud": "berth", "sub": "1", "exp": 1, "iat": 1, "auth_time": 1});
        let with = |more: Value| {
            let mut claims = common.as_object().expect("an object").clone();
            claims.extend(more.as_object().expect("an object").clone());
            claims
        };
        for (who, typ, claims, expected) in [
            ("authentik", "JWT", json!({"azp": "berth", "uid": "x", "sid": "s", "amr": ["pwd"], "nonce": "n"}), true),
            ("authentik's ID token", "JWT", json!({"sid": "s", "amr": ["pwd"], "nonce": "n"}), false),
            ("authentik's ID token of before", "JWT", json!({"at_hash": "h", "nonce": "n"}), false),
            ("an ID token that has everything", "JWT", json!({"at_hash": "h", "azp": "berth", "uid": "x"}), false),
            ("Keycloak", "JWT", json!({"typ": "Bearer", "azp": "berth", "scope": "openid"}), true),
            ("Keycloak's ID token", "JWT", json!({"typ": "ID", "azp": "berth", "at_hash": "h"}), false),
            ("Keycloak's refresh token", "JWT", json!({"typ": "Refresh", "azp": "berth", "uid": "x"}), false),
            ("dex, either", "", json!({"at_hash": "h", "name": "alice"}), false),
            ("Google's ID token", "JWT", json!({"azp": "berth"}), false),
            ("RFC 9068", "at+jwt", json!({"client_id": "berth"}), true),
            ("RFC 9068 in full", "application/AT+JWT", json!({"client_id": "berth"}), true),
            ("nobody", "JWT", json!({"azp": 1, "uid": null}), false),
        ] {
            assert_eq!(is_access_token(Some(typ), &with(claims)), expected, "{who}");
        }
    }

    #[test]
    fn who_signs_with_the_client_secret_is_told_to_choose_a_signing_key() {
        let keys = JwtKeys::new(&json!({}), &["HS256".to_owned()], Some("secret"));
        let token = encode(&Header::new(Algorithm::HS256), &claims(), &EncodingKey::from_secret(b"secret"));
        assert_eq!(verify(&keys, &token.expect("a token")), Err(JwtError::NoSigningKey));
        let published = JwtKeys::new(&json!({"keys": [{"kty": "oct", "k": "AAAA"}]}), &["RS256".to_owned()], None);
        assert!(published.keys.is_empty());
    }

    proptest! {
        #[test]
        fn no_text_panics(text in r"[A-Za-z0-9_.=-]{0,120}", bytes: Vec<u8>) {
            let keys = JwtKeys::new(&json!({"keys": [{"kty": "RSA", "n": text, "e": "AQAB"}]}), &["RS256".to_owned()], None);
            for token in [text.clone(), String::from_utf8_lossy(&bytes).into_owned(), format!("{text}.{text}.{text}")] {
                let _ = claimed_issuer(&token);
                prop_assert!(verify(&keys, &token).is_err());
            }
        }
    }
}
