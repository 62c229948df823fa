//! Somebody with a browser, without the browser: an HTTP client that keeps cookies and fills in forms.

use std::sync::Arc;

use reqwest::{Client, ClientBuilder, Response, StatusCode, cookie::Jar, header, redirect::Policy};
use serde_json::{Value, json};

use crate::process::trusting;

/// A browser's worth of cookies.
pub struct Person {
    /// The client.
    pub http: Client,
    url: String,
}

impl Person {
    /// Somebody who isn't signed in.
    ///
    /// # Panics
    /// If no HTTP client can be made.
    pub fn new(url: &str) -> Self {
        Self::with(url, trusting())
    }

    /// The same with a client of one's own.
    ///
    /// # Panics
    /// If no HTTP client can be made.
    pub fn with(url: &str, client: ClientBuilder) -> Self {
        Self::with_cookies(url, client, Arc::default())
    }

    /// The same with cookies that somebody else looks at.
    ///
    /// # Panics
    /// If no HTTP client can be made.
    pub fn with_cookies(url: &str, client: ClientBuilder, cookies: Arc<Jar>) -> Self {
        let http = client.cookie_provider(cookies).redirect(Policy::limited(10)).build().expect("a client");
        Self { http, url: url.to_owned() }
    }

    /// Somebody who has signed in at the stand-in, whose passwords are the names.
    ///
    /// # Panics
    /// If that doesn't work.
    pub async fn signed_in(url: &str, user: &str) -> Self {
        let person = Self::new(url);
        let home = person.sign_in(user, user).await;
        let (status, page) = (home.status(), home.text().await.expect("a page"));
        assert!(status.is_success() && page.contains(&format!("Signed in as {user}")), "{status}: {page}");
        person
    }

    /// Clicks SIGN IN, fills in the stand-in's form, and comes back.
    ///
    /// # Panics
    /// If a page can't be had.
    pub async fn sign_in(&self, user: &str, password: &str) -> Response {
        let form = self.get("/zot/auth/login?provider=oidc&callback_ui=/").await;
        let address = form.url().clone();
        let next = address.query_pairs().find(|(name, _)| name == "next").map(|(_, next)| next.into_owned());
        let Some(next) = next else { return form };
        let fields = [("username", user), ("password", password), ("next", &next)];
        self.http.post(address).form(&fields).send().await.expect("an answer")
    }

    /// `GET` of one of Berth's addresses.
    ///
    /// # Panics
    /// If nothing answers.
    pub async fn get(&self, path: &str) -> Response {
        self.http.get(format!("{}{path}", self.url)).send().await.expect("an answer")
    }

    /// Makes an API key; gives its text and its id.
    ///
    /// # Panics
    /// If that doesn't work.
    pub async fn make_key(&self, label: &str) -> (String, String) {
        let request = self.http.post(format!("{}/zot/auth/apikey", self.url)).json(&json!({"label": label}));
        let answer = request.send().await.expect("an answer");
        assert_eq!(answer.status(), StatusCode::CREATED);
        let key: Value = answer.json().await.expect("JSON");
        let text = |name: &str| key[name].as_str().expect("a text").to_owned();
        (text("apiKey"), text("uuid"))
    }

    /// Revokes an API key.
    ///
    /// # Panics
    /// If nothing answers.
    pub async fn revoke_key(&self, id: &str) -> StatusCode {
        let request = self.http.delete(format!("{}/zot/auth/apikey?id={id}", self.url));
        request.header(header::CONTENT_TYPE, "application/json").send().await.expect("an answer").status()
    }
}
