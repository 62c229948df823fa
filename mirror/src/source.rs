//! Another registry: asks it, with the token that it wants to see.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use base64::{Engine, prelude::BASE64_STANDARD};
use berth_oci::{Digest, MANIFEST_LIMIT, Manifest, MediaType};
use bytes::{Bytes, BytesMut};
use http::{
    HeaderMap, HeaderValue, Method, StatusCode,
    header::{ACCEPT, ACCEPT_ENCODING, AUTHORIZATION, RANGE, RETRY_AFTER},
};
use moka::future::Cache;
use reqwest::Response;
use serde::Deserialize;
use serde_json::Value;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use url::Url;

use crate::{
    challenge::Challenge,
    config::{Credentials, SourceConfig},
    download::digest_of,
};

/// How many tokens are kept, and for how long at most.
const MAX_TOKENS: u64 = 10_000;
const TOKEN_TTL: Duration = Duration::from_mins(4);

/// How long a token lives whose service doesn't say (the token specification).
const DEFAULT_TOKEN_SECONDS: f64 = 60.0;

/// How long a token service may take, and the most that is read of its answer.
const TOKEN_TIMEOUT: Duration = Duration::from_secs(15);
const MAX_TOKEN_BYTES: usize = 64 * 1024;

/// How long a manifest may take to come, and how long it may take to say whether there is one.
const MANIFEST_TIMEOUT: Duration = Duration::from_secs(30);
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);

/// How many blobs are fetched of one registry at once, and how long the next one waits.
const MAX_DOWNLOADS: usize = 64;
const PLACE_TIMEOUT: Duration = Duration::from_secs(30);

/// For how long a registry isn't asked that didn't answer.
const SILENT_WAIT: Duration = Duration::from_secs(10);

/// Why it gives nothing.
#[derive(Clone, Debug, thiserror::Error)]
pub enum SourceError {
    /// There is no such thing there.
    #[error("{0} doesn't have it")]
    Missing(String),
    /// It doesn't let us in.
    #[error("{host} answers {status}; check its user and password in extensions.sync.credentialsFile")]
    Refused {
        /// Who.
        host: String,
        /// How.
        status: StatusCode,
    },
    /// It wants to be asked less often.
    #[error("{host} answers 429: it was asked too often")]
    Busy {
        /// Who.
        host: String,
        /// When it may be asked again, in seconds, if it says.
        retry_after: Option<u64>,
    },
    /// As much is fetched of it as may be at once.
    #[error("{most} blobs of {host} are being fetched, which is as many as may be at once; try again")]
    Full {
        /// Who.
        host: String,
        /// How many.
        most: usize,
    },
    /// It can't be asked now.
    #[error("{host} can't be asked: {cause}")]
    Away {
        /// Who.
        host: String,
        /// Why.
        cause: String,
    },
}

/// A manifest as it is there.
pub struct Fetched {
    /// Its digest, computed.
    pub digest: Digest,
    /// Its `Content-Type`.
    pub media_type: String,
    /// Its bytes.
    pub bytes: Bytes,
}

/// A client of it.
pub struct Source {
    /// How it is asked.
    pub config: Arc<SourceConfig>,
    client: reqwest::Client,
    /// By host and repository.
    tokens: Cache<(String, String), Token>,
    /// How many blobs are fetched of it at once.
    places: Arc<Semaphore>,
    /// It didn't answer a moment ago, and isn't asked until then.
    silent: Mutex<Option<(Instant, SourceError)>>,
}

/// What is shown, and until when.
#[derive(Clone)]
struct Token {
    header: HeaderValue,
    until: Instant,
}

#[derive(Deserialize)]
struct TokenAnswer {
    token: Option<String>,
    access_token: Option<String>,
    /// A number; some write it otherwise.
    expires_in: Option<Value>,
}

impl Source {
    /// A client of the registry that is set up so.
    ///
    /// # Errors
    /// A sentence, if there can't be one.
    pub fn new(config: Arc<SourceConfig>) -> Result<Self, String> {
        let tokens = Cache::builder().max_capacity(MAX_TOKENS).time_to_live(TOKEN_TTL).build();
        let places = Arc::new(Semaphore::new(MAX_DOWNLOADS));
        Ok(Self { client: config.client()?, config, tokens, places, silent: Mutex::default() })
    }

    /// A place among those who fetch a blob of it.
    ///
    /// # Errors
    /// If there is none for a while.
    pub async fn place(&self) -> Result<OwnedSemaphorePermit, SourceError> {
        let place = tokio::time::timeout(PLACE_TIMEOUT, Arc::clone(&self.places).acquire_owned()).await;
        let busy = || SourceError::Full { host: self.host(), most: MAX_DOWNLOADS };
        place.ok().and_then(Result::ok).ok_or_else(busy)
    }

    /// Why it isn't asked now, if it isn't.
    fn asleep(&self) -> Option<SourceError> {
        let silent = self.silent.lock().unwrap_or_else(PoisonError::into_inner);
        silent.as_ref().filter(|(until, _)| *until > Instant::now()).map(|(_, error)| error.clone())
    }

    /// It doesn't answer: whoever asks it next would wait as long.
    fn silent(&self, host: &str, error: reqwest::Error) -> SourceError {
        let is_silent = error.is_connect() || error.is_timeout();
        let error = SourceError::Away { host: host.to_owned(), cause: cause(error) };
        if is_silent {
            let mut silent = self.silent.lock().unwrap_or_else(PoisonError::into_inner);
            *silent = Some((Instant::now() + SILENT_WAIT, error.clone()));
        }
        error
    }

    /// Who it is.
    pub fn host(&self) -> String {
        self.config.urls.first().map(host_of).unwrap_or_default()
    }

    /// What a reference is there: its digest, if it says that; nothing, if it doesn't.
    ///
    /// # Errors
    /// Why it can't be found out.
    pub async fn head_manifest(&self, name: &str, reference: &str) -> Result<Option<Digest>, SourceError> {
        let path = format!("/v2/{name}/manifests/{reference}");
        let answer = self.ask(Method::HEAD, name, &path, manifest_headers(), Some(HEAD_TIMEOUT)).await?;
        Ok(digest_header(answer.headers()))
    }

    /// A manifest.
    ///
    /// # Errors
    /// Why it can't be had.
    pub async fn manifest(&self, name: &str, reference: &str) -> Result<Fetched, SourceError> {
        let path = format!("/v2/{name}/manifests/{reference}");
        let answer = self.ask(Method::GET, name, &path, manifest_headers(), Some(MANIFEST_TIMEOUT)).await?;
        let host = host_of(answer.url());
        let media_type = answer.headers().get("content-type").and_then(|value| value.to_str().ok());
        let media_type = media_type.unwrap_or_default().to_owned();
        // Whatever else stood under our name would be taken for ours.
        if media_type.parse::<MediaType>().is_err() {
            return Err(SourceError::Away { host, cause: "it sends what is no manifest".to_owned() });
        }
        let claimed = digest_header(answer.headers());
        let wrong = |cause: &str| SourceError::Away { host: host.clone(), cause: cause.to_owned() };
        let bytes = bounded(answer, MANIFEST_LIMIT).await.map_err(|cause| wrong(&cause))?;
        let expected = reference.parse::<Digest>().ok().or(claimed);
        if Manifest::parse(Some(&media_type), &bytes).is_err() {
            return Err(wrong("it sends what is no manifest"));
        }
        let algorithm = expected.as_ref().map(Digest::algorithm).unwrap_or_default();
        let digest = digest_of(algorithm, &bytes).ok_or_else(|| wrong("it can't be hashed"))?;
        if expected.is_some_and(|expected| expected != digest) {
            return Err(wrong("it sends a manifest that has another digest than it says"));
        }
        Ok(Fetched { digest, media_type, bytes })
    }

    /// How long a blob is there.
    ///
    /// # Errors
    /// Why that can't be found out.
    pub async fn blob_len(&self, name: &str, digest: &Digest) -> Result<Option<u64>, SourceError> {
        let path = format!("/v2/{name}/blobs/{digest}");
        let answer = self.ask(Method::HEAD, name, &path, HeaderMap::new(), Some(HEAD_TIMEOUT)).await?;
        Ok(answer.headers().get("content-length").and_then(|value| value.to_str().ok()?.parse().ok()))
    }

    /// A blob, from a byte on. The answer may begin at the first one all the same (200, not 206).
    ///
    /// # Errors
    /// Why it can't be had.
    pub async fn blob(&self, name: &str, digest: &Digest, from: u64) -> Result<Response, SourceError> {
        let mut headers = HeaderMap::new();
        // Its bytes, and not another coding of them.
        headers.insert(ACCEPT_ENCODING, HeaderValue::from_static("identity"));
        if from > 0
            && let Ok(range) = format!("bytes={from}-").parse()
        {
            headers.insert(RANGE, range);
        }
        self.ask(Method::GET, name, &format!("/v2/{name}/blobs/{digest}"), headers, None).await
    }

    /// Its answer, if that is good: of the first of its addresses that can be asked.
    async fn ask(
        &self,
        method: Method,
        name: &str,
        path: &str,
        headers: HeaderMap,
        timeout: Option<Duration>,
    ) -> Result<Response, SourceError> {
        if let Some(error) = self.asleep() {
            return Err(error);
        }
        let mut away = None;
        for url in &self.config.urls {
            match self.ask_at(url, &method, name, path, &headers, timeout).await {
                Err(error @ (SourceError::Away { .. } | SourceError::Busy { .. })) => away = Some(error),
                outcome => return outcome,
            }
        }
        let nowhere = || SourceError::Away { host: String::new(), cause: "it has no address".to_owned() };
        Err(away.unwrap_or_else(nowhere))
    }

    async fn ask_at(
        &self,
        url: &Url,
        method: &Method,
        name: &str,
        path: &str,
        headers: &HeaderMap,
        timeout: Option<Duration>,
    ) -> Result<Response, SourceError> {
        let host = host_of(url);
        let known = (host.clone(), name.to_owned());
        let mut token = self.tokens.get(&known).await.filter(|token| token.until > Instant::now());
        for attempt in 0..2 {
            let target = url.join(path).map_err(|e| SourceError::Away { host: host.clone(), cause: e.to_string() })?;
            let mut request = self.client.request(method.clone(), target).headers(headers.clone());
            if let Some(timeout) = timeout {
                request = request.timeout(timeout);
            }
            if let Some(token) = &token {
                request = request.header(AUTHORIZATION, &token.header);
            }
            let answer = request.send().await.map_err(|e| self.silent(&host, e))?;
            match answer.status() {
                status if status.is_success() => return Ok(answer),
                // Where a redirect leads is somebody else, who hears nothing of our password.
                StatusCode::UNAUTHORIZED if answer.url().origin() != url.origin() => {
                    return Err(SourceError::Away {
                        host,
                        cause: "it redirects where a password is wanted".to_owned(),
                    });
                }
                StatusCode::UNAUTHORIZED if attempt == 0 => {
                    let challenge = Challenge::read(answer.headers());
                    let fresh = self.token(url, name, challenge).await?;
                    self.tokens.insert(known.clone(), fresh.clone()).await;
                    token = Some(fresh);
                }
                StatusCode::NOT_FOUND => return Err(SourceError::Missing(host)),
                StatusCode::TOO_MANY_REQUESTS => {
                    let retry_after =
                        answer.headers().get(RETRY_AFTER).and_then(|value| value.to_str().ok()?.parse().ok());
                    return Err(SourceError::Busy { host, retry_after });
                }
                status @ (StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN) => {
                    self.tokens.invalidate(&known).await;
                    return Err(SourceError::Refused { host, status });
                }
                status => return Err(SourceError::Away { host, cause: format!("it answers {status}") }),
            }
        }
        Err(SourceError::Refused { host, status: StatusCode::UNAUTHORIZED })
    }

    /// What answers a challenge.
    async fn token(&self, url: &Url, name: &str, challenge: Option<Challenge>) -> Result<Token, SourceError> {
        let host = host_of(url);
        let away = |cause: String| SourceError::Away { host: host.clone(), cause };
        let credentials = self.credentials(&host).map_err(away)?;
        let (realm, service, scope) = match challenge {
            Some(Challenge::Bearer { realm, service, scope }) => (realm, service, scope),
            Some(Challenge::Basic) => {
                let Some(Credentials { username, password }) = credentials else {
                    return Err(SourceError::Refused { host, status: StatusCode::UNAUTHORIZED });
                };
                let text = format!("Basic {}", BASE64_STANDARD.encode(format!("{username}:{password}")));
                return shown(&text, TOKEN_TTL).ok_or_else(|| away("its password can't stand in a header".to_owned()));
            }
            None => return Err(away("it asks for a credential of a kind that is not known here".to_owned())),
        };
        let mut realm = url.join(&realm).map_err(|_| away("its token service has no address".to_owned()))?;
        if !self.config.may_ask(&realm) {
            return Err(away("its token service is where nothing is asked for".to_owned()));
        }
        realm.query_pairs_mut().extend_pairs(service.iter().map(|service| ("service", service)));
        let pull = format!("repository:{name}:pull");
        // Whatever it names: of its repositories, this one is pulled from.
        let scope = scope.filter(|scope| !scope.starts_with("repository")).unwrap_or(pull);
        realm.query_pairs_mut().append_pair("scope", &scope);
        let mut request = self.client.get(realm).timeout(TOKEN_TIMEOUT);
        if let Some(Credentials { username, password }) = credentials {
            request = request.basic_auth(username, Some(password));
        }
        let answer = request.send().await.map_err(|e| away(format!("its token service: {}", cause(e))))?;
        match answer.status() {
            status if status.is_success() => {}
            StatusCode::TOO_MANY_REQUESTS => return Err(SourceError::Busy { host, retry_after: None }),
            status if status.is_client_error() => return Err(SourceError::Refused { host, status }),
            status => return Err(away(format!("its token service answers {status}"))),
        }
        let bytes = bounded(answer, MAX_TOKEN_BYTES).await.map_err(away)?;
        let unreadable = || away("its token service gives no token".to_owned());
        let answer: TokenAnswer = serde_json::from_slice(&bytes).map_err(|_| unreadable())?;
        let some = |token: Option<String>| token.filter(|token| !token.is_empty());
        let token = some(answer.token).or(some(answer.access_token)).ok_or_else(unreadable)?;
        let seconds = match answer.expires_in {
            Some(Value::Number(number)) => number.as_f64(),
            Some(Value::String(text)) => text.parse().ok(),
            _ => None,
        };
        // A little earlier than it ends.
        let lifetime = (seconds.unwrap_or(DEFAULT_TOKEN_SECONDS) - 10.0).clamp(1.0, TOKEN_TTL.as_secs_f64());
        shown(&format!("Bearer {token}"), Duration::from_secs_f64(lifetime)).ok_or_else(unreadable)
    }

    fn credentials(&self, host: &str) -> Result<Option<Credentials>, String> {
        let Some(path) = &self.config.credentials else { return Ok(None) };
        Ok(Credentials::read(path)?.remove(host))
    }
}

/// What is shown, if it can stand in a header.
fn shown(text: &str, lifetime: Duration) -> Option<Token> {
    let mut header = HeaderValue::from_str(text).ok()?;
    header.set_sensitive(true);
    Some(Token { header, until: Instant::now() + lifetime })
}

fn manifest_headers() -> HeaderMap {
    let accept = MediaType::ALL.map(MediaType::as_str).join(", ");
    accept.parse().map(|accept| HeaderMap::from_iter([(ACCEPT, accept)])).unwrap_or_default()
}

fn digest_header(headers: &HeaderMap) -> Option<Digest> {
    headers.get("docker-content-digest")?.to_str().ok()?.parse().ok()
}

/// `host`, or `host:port`.
fn host_of(url: &Url) -> String {
    let host = url.host_str().unwrap_or_default();
    url.port().map_or_else(|| host.to_owned(), |port| format!("{host}:{port}"))
}

/// The cause, without the address, which may hold a signature.
pub fn cause(error: reqwest::Error) -> String {
    if error.is_timeout() {
        return "it takes too long".to_owned();
    }
    let error = error.without_url();
    let mut last: &dyn std::error::Error = &error;
    while let Some(source) = last.source() {
        last = source;
    }
    last.to_string()
}

/// A body of at most `limit` bytes.
async fn bounded(mut answer: Response, limit: usize) -> Result<Bytes, String> {
    let mut bytes = BytesMut::new();
    while let Some(piece) = answer.chunk().await.map_err(cause)? {
        if bytes.len() + piece.len() > limit {
            return Err(format!("its answer is longer than {limit} bytes"));
        }
        bytes.extend_from_slice(&piece);
    }
    Ok(bytes.freeze())
}
