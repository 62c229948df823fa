//! The distribution API by hand: a client that shows one credential, and shows the test every answer.

use std::time::{Duration, Instant};

use reqwest::{Client, Method, RequestBuilder, Response, StatusCode, header, redirect::Policy};
use serde_json::{Value, json};

use crate::{
    images::{Image, MANIFEST, digest},
    process::trusting,
};

/// A client of a registry.
#[derive(Clone)]
pub struct Api {
    http: Client,
    url: String,
    credential: Credential,
}

/// What it shows.
#[derive(Clone)]
pub enum Credential {
    /// Nothing.
    None,
    /// A user name and a password.
    Basic(String, String),
    /// A token.
    Bearer(String),
}

impl Api {
    /// A client of the registry at `url`.
    ///
    /// # Panics
    /// If no HTTP client can be made.
    pub fn new(url: &str, credential: Credential) -> Self {
        let http = trusting().redirect(Policy::none()).build().expect("a client");
        Self { http, url: url.to_owned(), credential }
    }

    /// The same over an HTTP client of one's own.
    pub fn over(url: &str, http: Client, credential: Credential) -> Self {
        Self { http, url: url.to_owned(), credential }
    }

    /// A client that shows `user` and `password`.
    pub fn basic(url: &str, user: &str, password: &str) -> Self {
        Self::new(url, Credential::Basic(user.to_owned(), password.to_owned()))
    }

    /// The same client with another credential.
    pub fn with(&self, credential: Credential) -> Self {
        Self { credential, ..self.clone() }
    }

    /// What it shows.
    pub fn credential(&self) -> &Credential {
        &self.credential
    }

    /// A request to be added to. `target` may be absolute, as a `Location` may be.
    pub fn request(&self, method: Method, target: &str) -> RequestBuilder {
        let url = if target.starts_with('/') { format!("{}{target}", self.url) } else { target.to_owned() };
        let request = self.http.request(method, url);
        match &self.credential {
            Credential::None => request,
            Credential::Basic(user, password) => request.basic_auth(user, Some(password)),
            Credential::Bearer(token) => request.bearer_auth(token),
        }
    }

    /// `GET`
    ///
    /// # Panics
    /// If nothing answers.
    pub async fn get(&self, target: &str) -> Response {
        self.request(Method::GET, target).send().await.expect("an answer")
    }

    /// `HEAD`
    ///
    /// # Panics
    /// If nothing answers.
    pub async fn head(&self, target: &str) -> Response {
        self.request(Method::HEAD, target).send().await.expect("an answer")
    }

    /// `DELETE`
    ///
    /// # Panics
    /// If nothing answers.
    pub async fn delete(&self, target: &str) -> Response {
        self.request(Method::DELETE, target).send().await.expect("an answer")
    }

    /// `POST` without a body.
    ///
    /// # Panics
    /// If nothing answers.
    pub async fn post(&self, target: &str) -> Response {
        self.request(Method::POST, target).header(header::CONTENT_LENGTH, 0).send().await.expect("an answer")
    }

    /// What an upload that is begun is answered.
    ///
    /// # Panics
    /// If nothing answers.
    pub async fn start_upload_status(&self, repository: &str) -> StatusCode {
        self.post(&format!("/v2/{repository}/blobs/uploads/")).await.status()
    }

    /// Starts an upload; gives its address.
    ///
    /// # Panics
    /// If that doesn't work.
    pub async fn start_upload(&self, repository: &str) -> String {
        let answer = self.post(&format!("/v2/{repository}/blobs/uploads/")).await;
        assert_eq!(answer.status(), StatusCode::ACCEPTED);
        location(&answer)
    }

    /// Pushes a blob with POST and PUT.
    ///
    /// # Errors
    /// If the connection breaks.
    pub async fn push_blob(&self, repository: &str, bytes: &[u8]) -> reqwest::Result<Response> {
        let request = self.request(Method::POST, &format!("/v2/{repository}/blobs/uploads/"));
        let begun = request.header(header::CONTENT_LENGTH, 0).send().await?;
        if begun.status() != StatusCode::ACCEPTED {
            return Ok(begun);
        }
        let location = location(&begun);
        let and = if location.contains('?') { '&' } else { '?' };
        let target = format!("{location}{and}digest={}", digest(bytes));
        self.request(Method::PUT, &target).body(bytes.to_vec()).send().await
    }

    /// Pushes a manifest.
    ///
    /// # Errors
    /// If the connection breaks.
    pub async fn push_manifest(&self, repository: &str, reference: &str, bytes: &[u8]) -> reqwest::Result<Response> {
        let request = self.request(Method::PUT, &format!("/v2/{repository}/manifests/{reference}"));
        request.header(header::CONTENT_TYPE, MANIFEST).body(bytes.to_vec()).send().await
    }

    /// Pushes an image, whole; gives the answer to the manifest, or to the first part that wasn't taken.
    ///
    /// # Errors
    /// If the connection breaks.
    pub async fn push(&self, repository: &str, tag: &str, image: &Image) -> reqwest::Result<Response> {
        for bytes in [&image.layer, &image.config] {
            let answer = self.push_blob(repository, bytes).await?;
            if answer.status() != StatusCode::CREATED {
                return Ok(answer);
            }
        }
        self.push_manifest(repository, tag, &image.manifest).await
    }

    /// Pushes an image that must be taken. Some tests keep garbage for a second only: if a push takes longer, its blobs may be gone,
    /// and it is done again.
    ///
    /// # Panics
    /// If it isn't taken.
    pub async fn must_push(&self, repository: &str, tag: &str, image: &Image) {
        let mut attempts = 0;
        let answer = loop {
            let began = Instant::now();
            let answer = self.push(repository, tag, image).await.expect("an answer");
            attempts += 1;
            let was_slow = answer.status() == StatusCode::NOT_FOUND && began.elapsed() >= Duration::from_secs(1);
            if !was_slow || attempts == 10 {
                break answer;
            }
        };
        let status = answer.status();
        assert_eq!(status, StatusCode::CREATED, "{}", answer.text().await.unwrap_or_default());
    }

    /// Asks the token service for `scopes`; gives its answer.
    ///
    /// # Panics
    /// If nothing answers.
    pub async fn ask_token(&self, scopes: &[&str]) -> Response {
        let query: String = scopes.iter().map(|scope| format!("&scope={scope}")).collect();
        self.get(&format!("/zot/auth/token?service=x{query}")).await
    }

    /// The same client with a token for `scopes`.
    ///
    /// # Panics
    /// If none is given.
    pub async fn with_token(&self, scopes: &[&str]) -> Self {
        let answer: Value = self.ask_token(scopes).await.json().await.expect("JSON");
        self.with(Credential::Bearer(answer["token"].as_str().expect("a token").to_owned()))
    }
}

/// The `Location` of an answer.
///
/// # Panics
/// If there is none.
pub fn location(answer: &Response) -> String {
    header_of(answer, "location")
}

/// A header of an answer.
///
/// # Panics
/// If it isn't there, or stands twice.
pub fn header_of(answer: &Response, name: &str) -> String {
    let mut all = answer.headers().get_all(name).iter();
    let value = all.next().unwrap_or_else(|| panic!("no {name} in {:?}", answer.headers()));
    assert!(all.next().is_none(), "{name} stands twice");
    value.to_str().expect("text").to_owned()
}

/// The status and the first error code of an answer.
///
/// # Panics
/// If its body isn't one of the specification's errors.
pub async fn error_of(answer: Response) -> (u16, String) {
    let status = answer.status().as_u16();
    let body: Value = answer.json().await.unwrap_or(json!(null));
    let code = body["errors"][0]["code"].as_str();
    (status, code.unwrap_or_else(|| panic!("{status} without an error code: {body}")).to_owned())
}
