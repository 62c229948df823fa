//! The pages by keyboard alone, without a script, and as others than who may do everything see them.

use std::path::Path;

use berth_tests::api::Api;
use reqwest::StatusCode;
use serde_json::json;
use thirtyfour::prelude::*;

use super::{axe_core, furniture::furnished, look};
use crate::browser::Browser;

/// How often Tab is pressed for something before it can't be reached.
const MAX_TABS: usize = 60;

async fn press(browser: &Browser, key: Key) {
    browser.driver.action_chain().key_down(key.clone()).key_up(key).perform().await.unwrap();
}

/// Presses Tab until what has the focus is meant.
async fn tab_to(browser: &Browser, attribute: &str, value: &str) {
    for _ in 0..MAX_TABS {
        press(browser, Key::Tab).await;
        let focused = browser.driver.active_element().await.unwrap();
        let found = match attribute {
            "text" => focused.text().await.unwrap(),
            attribute => focused.attr(attribute).await.unwrap().unwrap_or_default(),
        };
        if found == value {
            return;
        }
    }
    panic!("{value} can't be reached by keyboard");
}

async fn write(browser: &Browser, text: &str) {
    browser.driver.action_chain().send_keys(text).perform().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_script_and_by_keyboard_alone_everything_can_be_done() {
    let (system, api) = furnished().await;
    let folder = tempfile::tempdir().unwrap();
    let Some(browser) = Browser::start_with(folder.path(), &["--window-size=1180,900"]).await else { return };
    browser.driver.goto(&system.url).await.unwrap();
    browser.sign_in("alice").await;
    let devtools = browser.driver.cdp();
    let off = devtools.send_raw("Emulation.setScriptExecutionDisabled", json!({"value": true}));
    off.await.unwrap();
    // The first step leads over the bar.
    browser.driver.goto(format!("{}/repositories", system.url)).await.unwrap();
    press(&browser, Key::Tab).await;
    assert_eq!(browser.driver.active_element().await.unwrap().class_name().await.unwrap().as_deref(), Some("skip"));
    // A search is a form, and an image is a link.
    tab_to(&browser, "name", "q").await;
    write(&browser, "hello").await;
    press(&browser, Key::Enter).await;
    berth_tests::process::wait_for("what was found", async || {
        browser.driver.current_url().await.ok()?.as_str().contains("q=hello").then_some(())
    })
    .await;
    browser.driver.query(By::LinkText("hello")).first().await.unwrap();
    tab_to(&browser, "text", "hello").await;
    press(&browser, Key::Enter).await;
    browser.driver.query(By::LinkText("1.0")).first().await.unwrap();
    assert!(browser.driver.find_all(By::Css(".copy")).await.unwrap().is_empty(), "a script has run");
    tab_to(&browser, "text", "1.0").await;
    press(&browser, Key::Enter).await;
    browser.driver.query(By::LinkText("Delete…")).first().await.unwrap();
    tab_to(&browser, "text", "Delete…").await;
    press(&browser, Key::Enter).await;
    browser.driver.query(By::XPath("//button[text()='Delete the tag']")).first().await.unwrap();
    tab_to(&browser, "text", "Delete the tag").await;
    press(&browser, Key::Enter).await;
    berth_tests::process::wait_for("the deletion", async || {
        (api.get("/v2/shared/hello/manifests/1.0").await.status() == StatusCode::NOT_FOUND).then_some(())
    })
    .await;
    // A key is made, and works.
    browser.driver.goto(format!("{}/keys", system.url)).await.unwrap();
    tab_to(&browser, "name", "label").await;
    write(&browser, "by keyboard").await;
    tab_to(&browser, "text", "Make a key").await;
    press(&browser, Key::Enter).await;
    let key = browser.driver.query(By::Id("new-key")).first().await.unwrap().text().await.unwrap();
    assert_eq!(Api::basic(&system.url, "alice", &key).get("/v2/").await.status(), StatusCode::OK);
    tab_to(&browser, "text", "Sign out").await;
    press(&browser, Key::Enter).await;
    browser.driver.query(By::PartialLinkText("SIGN IN WITH")).first().await.unwrap();
    browser.driver.clone().quit().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_may_little_and_who_is_nobody_see_screens_as_well_made() {
    if axe_core().is_none() {
        return;
    }
    let (system, _) = furnished().await;
    let pictures = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/screens");
    std::fs::create_dir_all(&pictures).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let Some(browser) = Browser::start_with(folder.path(), &["--window-size=1180,900"]).await else { return };
    let visit = async |who: &str, screens: &[(&str, &str)]| {
        for (name, path) in screens {
            browser.driver.goto(format!("{}{path}", system.url)).await.unwrap();
            look(&browser, &format!("{who}-{name}"), &pictures).await;
        }
    };
    let public = [
        ("start", "/"),
        ("repositories", "/repositories"),
        ("image", "/image/public/docs:1.0"),
        ("keys", "/keys"),
        ("nothing", "/repository/team/api"),
    ];
    visit("nobody", &public).await;
    browser.driver.goto(&system.url).await.unwrap();
    browser.sign_in("bob").await;
    let own = [
        ("repositories", "/repositories"),
        ("repository", "/repository/shared/hello"),
        ("image", "/image/shared/hello:1.0"),
        ("access", "/access?repository=team/api"),
        ("keys", "/keys"),
        ("sessions", "/sessions"),
        ("nothing", "/repository/team/api"),
        ("people", "/people"),
    ];
    visit("bob", &own).await;
    browser.driver.clone().quit().await.unwrap();
}
