//! A real browser and a certified OpenID provider.

use std::{path::Path, process::Command};

use berth_tests::{
    api::Api,
    certified::Provider,
    process::{Process, free_port, wait_for},
    system::{Setup, System},
    tools,
};
use reqwest::StatusCode;
use serde_json::json;
use thirtyfour::prelude::*;

/// chromedriver with a headless chromium.
pub struct Browser {
    pub driver: WebDriver,
    _chromedriver: Process,
}

impl Browser {
    /// Nothing, if chromium or its driver isn't there.
    async fn start(folder: &Path) -> Option<Self> {
        Self::start_with(folder, &[]).await
    }

    /// The same with more arguments for chromium.
    pub async fn start_with(folder: &Path, more: &[&str]) -> Option<Self> {
        let (chromedriver, chromium) = (tools::find("chromedriver")?, tools::find("chromium")?);
        let port = free_port();
        let mut command = Command::new(chromedriver);
        let process = Process::start(command.arg(format!("--port={port}")), &folder.join("chromedriver.log")).unwrap();
        let url = format!("http://localhost:{port}");
        let status = format!("{url}/status");
        wait_for("chromedriver", async || reqwest::get(&status).await.ok().map(drop)).await;
        let mut capabilities = DesiredCapabilities::chrome();
        capabilities.set_binary(chromium.to_str().unwrap()).unwrap();
        let profile = format!("--user-data-dir={}", folder.join("chromium").display());
        for argument in [
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-background-networking",
            "--disable-component-update",
            "--disable-sync",
            "--no-first-run",
            "--disable-dev-shm-usage",
            &profile,
        ] {
            capabilities.add_arg(argument).unwrap();
        }
        for argument in more {
            capabilities.add_arg(argument).unwrap();
        }
        let driver = WebDriver::new(url, capabilities).await.unwrap();
        Some(Self { driver, _chromedriver: process })
    }

    /// The text of the page. A page that is just being left is read again.
    async fn text(&self) -> String {
        wait_for("a page", async || self.driver.find(By::Tag("body")).await.ok()?.text().await.ok()).await
    }

    pub async fn click(&self, by: By) {
        self.driver.query(by).first().await.unwrap().click().await.unwrap();
    }

    pub async fn until(&self, what: &str) {
        wait_for(what, async || self.text().await.contains(what).then_some(())).await;
    }

    pub async fn sign_in(&self, user: &str) {
        self.click(By::LinkText("SIGN IN WITH OIDC")).await;
        self.driver.query(By::Name("username")).first().await.unwrap().send_keys(user).await.unwrap();
        self.driver.find(By::Name("password")).await.unwrap().send_keys(user).await.unwrap();
        self.click(By::Css("button")).await;
        self.until(&format!("Signed in as {user}")).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn somebody_signs_in_with_a_browser_makes_a_key_and_signs_out() {
    let folder = tempfile::tempdir().unwrap();
    let (port, provider_port) = (free_port(), free_port());
    let url = format!("http://localhost:{port}");
    let Some(provider) = Provider::start(provider_port, &url, folder.path(), &[]).await else { return };
    let Some(browser) = Browser::start(folder.path()).await else { return };
    let setup = Setup { issuer: Some(provider.issuer.clone()), ..Setup::default() };
    let system = System::start_in(folder.path(), port, setup).await;

    browser.driver.goto(&system.url).await.unwrap();
    browser.sign_in("alice").await;
    assert!(browser.text().await.contains("Your groups: dev"));

    browser.click(By::LinkText("Keys")).await;
    let label = browser.driver.query(By::Name("label")).first().await.unwrap();
    label.send_keys("laptop").await.unwrap();
    browser.click(By::XPath("//button[text()='Make a key']")).await;
    let key = browser.driver.query(By::Id("new-key")).first().await.unwrap().text().await.unwrap();
    let api = Api::basic(&system.url, "alice", &key);
    assert_eq!(api.get("/v2/").await.status(), StatusCode::OK);
    // Shown once.
    browser.driver.goto(&format!("{}/keys", system.url)).await.unwrap();
    let page = browser.text().await;
    assert!(page.contains("laptop") && !page.contains(&key), "{page}");

    browser.click(By::XPath("//button[text()='Revoke']")).await;
    wait_for("the key to go", async || (!browser.text().await.contains("laptop")).then_some(())).await;
    assert_eq!(api.get("/v2/").await.status(), StatusCode::UNAUTHORIZED);

    // To the provider's own page, and back to ours.
    browser.click(By::XPath("//button[text()='Sign out']")).await;
    browser.click(By::Id("sign-out")).await;
    browser.until("SIGN IN WITH OIDC").await;
    browser.sign_in("bob").await;
    browser.driver.clone().quit().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_certified_provider_s_tokens_are_accepted_whatever_it_signs_with() {
    for (algorithm, at_userinfo) in [("RS256", "1"), ("ES256", "0"), ("HS256", "0")] {
        let folder = tempfile::tempdir().unwrap();
        let port = free_port();
        let url = format!("http://localhost:{port}");
        let env = [("ALG", algorithm), ("CLAIMS_AT_USERINFO", at_userinfo)];
        let Some(provider) = Provider::start(free_port(), &url, folder.path(), &env).await else { return };
        let setup = Setup { issuer: Some(provider.issuer.clone()), provider: json!({}), ..Setup::default() };
        let system = System::start_in(folder.path(), port, setup).await;
        let person = berth_tests::person::Person::new(&system.url);
        provider.sign_in(&person, "alice").await;
        let page = person.get("/").await.text().await.unwrap();
        assert!(page.contains("Signed in as alice") && page.contains("dev"), "{algorithm}: {page}");
    }
}
