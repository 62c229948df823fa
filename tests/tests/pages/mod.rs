//! The pages, in a real browser: every screen in light, dark and on a phone, without a complaint of axe-core, with pictures in
//! `target/screens/`; and what strangers write shown as text.

mod furniture;
mod keyboard;
mod people;

use std::{
    fs,
    path::{Path, PathBuf},
};

use berth_tests::{
    api::{Api, Credential, header_of},
    images::MANIFEST,
    person::Person,
    process::wait_for,
    system::{Setup, System},
    tools,
};
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use thirtyfour::prelude::*;

use self::furniture::{CONFIG, LAYER, blob, furnished, push};
use crate::browser::Browser;

/// The longest a screen may be, in bytes.
const MAX_SCREEN_BYTES: usize = 60_000;

/// The screens of somebody who is signed in.
const SCREENS: [(&str, &str); 18] = [
    ("repositories", "/repositories"),
    ("search", "/repositories?q=nothing-like-that"),
    ("repository", "/repository/team/api"),
    ("image", "/image/team/api:2.14.0"),
    ("chart", "/image/charts/platform:1.2.3"),
    ("manifest", "/image/team/api:2.14.0?raw=1"),
    ("delete", "/delete/team/api:2.14.0"),
    ("compare", "/compare/team/api?from=2.13.9&to=2.14.0"),
    ("access", "/access?repository=shared/hello"),
    ("access-of", "/access?repository=shared/hello&user=bob&groups=dev"),
    ("people", "/people"),
    ("jobs", "/people/jobs"),
    ("keys", "/keys"),
    ("sessions", "/sessions"),
    ("device", "/device"),
    ("no-device", "/device?user_code=none"),
    ("refused", "/zot/auth/login?provider=none"),
    ("nothing", "/repository/there/is/none"),
];

/// The screens of what is attached to an image, and of a layer.
async fn screens_of_parts(api: &Api) -> Vec<(&'static str, String)> {
    let json = async |target: &str| -> Value { api.get(target).await.json().await.unwrap() };
    let index = api.get("/v2/team/api/manifests/2.14.0").await;
    let digest = header_of(&index, "docker-content-digest");
    let index: Value = index.json().await.unwrap();
    let referrers = json(&format!("/v2/team/api/referrers/{digest}")).await;
    let of = |kind: &str| {
        let all = referrers["manifests"].as_array().unwrap();
        let one = all.iter().find(|one| one["artifactType"].as_str().unwrap().contains(kind)).unwrap();
        format!("/image/team/api@{}", one["digest"].as_str().unwrap())
    };
    let image = json(&format!("/v2/team/api/manifests/{}", index["manifests"][0]["digest"].as_str().unwrap())).await;
    let layer = format!("/layer/team/api@{}", image["layers"][0]["digest"].as_str().unwrap());
    let form = [("client_id", "tests"), ("name", "laptop-7"), ("scope", "read team/**")];
    let anyone = api.with(Credential::None);
    let device = anyone.request(Method::POST, "/zot/auth/device").form(&form).send().await.unwrap();
    let device = format!("/device?user_code={}", device.json::<Value>().await.unwrap()["user_code"].as_str().unwrap());
    vec![
        ("bill", of("spdx")),
        ("attestation", of("in-toto")),
        ("signature", of("sigstore")),
        ("layer", layer),
        ("confirm-device", device),
    ]
}

/// Looks at a screen with axe-core, and takes a picture.
async fn look(browser: &Browser, name: &str, folder: &Path) {
    let axe = fs::read_to_string(axe_core().expect("axe-core")).unwrap();
    browser.driver.execute(&axe, vec![]).await.unwrap();
    let run = "const done = arguments[0]; axe.run(document, {runOnly: ['wcag2a', 'wcag2aa', 'wcag21a', 'wcag21aa', 'wcag22aa', 'best-practice']})
        .then(found => done(found.violations.map(v => v.id + ': ' + v.nodes.map(n => n.html + ' ' + n.failureSummary).join(' | '))));";
    let found: Vec<String> = browser.driver.execute_async(run, vec![]).await.unwrap().convert().unwrap();
    browser.driver.screenshot(&folder.join(format!("{name}.png"))).await.unwrap();
    assert!(found.is_empty(), "{name}: {found:#?}");
    // Nothing is wider than the screen.
    let wide = "return document.documentElement.scrollWidth - document.documentElement.clientWidth;";
    let wide: i64 = browser.driver.execute(wide, vec![]).await.unwrap().convert().unwrap();
    assert!(wide <= 0, "{name} is {wide} px too wide");
}

/// axe-core's script; nothing, having said so, if it isn't installed.
fn axe_core() -> Option<PathBuf> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("provider/node_modules/axe-core/axe.min.js");
    if !path.is_file() {
        tools::skip("the npm package axe-core is not installed in tests/provider");
        return None;
    }
    Some(path)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_screen_is_for_everybody_in_light_and_dark_and_on_a_phone() {
    if axe_core().is_none() {
        return;
    }
    let (system, api) = furnished().await;
    let pictures = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/screens");
    fs::create_dir_all(&pictures).unwrap();
    for (look_name, arguments) in [
        ("light", &["--window-size=1180,900"][..]),
        ("dark", &["--window-size=1180,900", "--force-dark-mode", "--blink-settings=preferredColorScheme=0"]),
        ("phone", &["--window-size=500,900"]),
    ] {
        let folder = tempfile::tempdir().unwrap();
        let Some(browser) = Browser::start_with(folder.path(), arguments).await else { return };
        browser.driver.goto(&system.url).await.unwrap();
        look(&browser, &format!("{look_name}-sign-in"), &pictures).await;
        // The form is the stand-in's, and not a screen of ours.
        browser.sign_in("alice").await;
        let parts = screens_of_parts(&api).await;
        let screens = SCREENS.iter().map(|(name, path)| (*name, (*path).to_owned()));
        for (name, path) in screens.chain(parts) {
            browser.driver.goto(format!("{}{path}", system.url)).await.unwrap();
            look(&browser, &format!("{look_name}-{name}"), &pictures).await;
        }
        // A key that is shown once.
        browser.driver.goto(format!("{}/keys", system.url)).await.unwrap();
        browser.driver.find(By::Name("label")).await.unwrap().send_keys("laptop").await.unwrap();
        browser.click(By::XPath("//button[text()='Make a key']")).await;
        browser.driver.query(By::Id("new-key")).first().await.unwrap();
        look(&browser, &format!("{look_name}-new-key"), &pictures).await;
        browser.driver.clone().quit().await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_search_goes_on_as_one_types_and_an_empty_registry_says_how_to_push() {
    let (system, _) = furnished().await;
    let folder = tempfile::tempdir().unwrap();
    let Some(browser) = Browser::start_with(folder.path(), &[]).await else { return };
    browser.driver.goto(&system.url).await.unwrap();
    browser.sign_in("alice").await;
    browser.driver.goto(format!("{}/repositories", system.url)).await.unwrap();
    browser.until("worker").await;
    // Typed, and not sent.
    browser.driver.find(By::Name("q")).await.unwrap().send_keys("PLATF").await.unwrap();
    wait_for("the list and its address", async || {
        let list = browser.driver.find(By::Id("list")).await.ok()?.text().await.ok()?;
        let address = browser.driver.current_url().await.ok()?;
        let is_found = list.contains("platform") && !list.contains("worker");
        (is_found && address.query().is_some_and(|query| query.contains("q=PLATF"))).then_some(())
    })
    .await;
    browser.driver.clone().quit().await.unwrap();
    // The last image takes its repository along.
    let alice = system.signed_in("alice").await;
    let delete = alice.http.post(format!("{}/delete/public/docs:1.0", system.url));
    let deleted = delete.header("sec-fetch-site", "same-origin").send().await.unwrap();
    assert_eq!(deleted.url().path(), "/repository/public/docs");
    let digest = api_digest(&system, "shared/hello", "1.0").await;
    let delete = alice.http.post(format!("{}/delete/shared/hello@{digest}", system.url));
    let deleted = delete.header("sec-fetch-site", "same-origin").send().await.unwrap();
    assert_eq!((deleted.url().path(), deleted.status()), ("/repositories", StatusCode::OK));
    // What isn't there is told on a page, whatever is missing.
    for path in ["/compare/team/api", "/people/one", "/delete/none"] {
        let answer = alice.get(path).await;
        assert_eq!(answer.status(), StatusCode::NOT_FOUND, "{path}");
        assert!(answer.text().await.unwrap().contains("There is nothing here"), "{path}");
    }
    let empty = System::start(Setup::default()).await;
    let page = empty.signed_in("alice").await.get("/repositories").await.text().await.unwrap();
    let host = empty.authority();
    for command in [format!("docker login -u alice {host}"), format!("docker push {host}/alice/hello:1")] {
        assert!(page.contains(&command), "{command}: {page}");
    }
}

async fn api_digest(system: &System, repository: &str, tag: &str) -> String {
    let (key, _) = system.signed_in("alice").await.make_key("digest").await;
    let answer = Api::basic(&system.url, "alice", &key).head(&format!("/v2/{repository}/manifests/{tag}")).await;
    header_of(&answer, "docker-content-digest")
}

#[tokio::test]
async fn screens_show_what_one_may_see_and_are_light() {
    let (system, api) = furnished().await;
    let (alice, bob, nobody) =
        (system.signed_in("alice").await, system.signed_in("bob").await, Person::new(&system.url));
    let page = async |person: &Person, path: &str| {
        let answer = person.get(path).await;
        let (status, text) = (answer.status(), answer.text().await.unwrap());
        assert!(text.len() < MAX_SCREEN_BYTES, "{path}: {} bytes", text.len());
        // Nothing that the policy would keep from working, and nothing of another host's.
        let scripts = text.matches("<script").count();
        assert_eq!(scripts, text.matches("<script src=\"/static/berth.js\" defer>").count(), "{path}");
        for barred in [" style=\"", "<style", " onclick=", " onload=", " src=\"http", "url(", "<iframe", "<base"] {
            assert!(!text.contains(barred), "{path}: {barred}");
        }
        (status, text)
    };
    for (_, path) in SCREENS {
        let (status, text) = page(&alice, path).await;
        let expected = if path.ends_with("none") { StatusCode::NOT_FOUND } else { StatusCode::OK };
        assert_eq!(status, expected, "{path}: {text}");
    }
    // What is in them.
    let (_, text) = page(&alice, "/repositories").await;
    for name in ["team/", "base-images/", "/repository/team/api", "/repository/charts/platform"] {
        assert!(text.contains(name), "{name}: {text}");
    }
    let (_, text) = page(&alice, "/repository/team/api").await;
    assert!(text.find("2.14.0").unwrap() < text.find("2.13.9").unwrap() && text.contains("linux/amd64, linux/arm64"));
    assert!(text.contains("2 more tags are signatures") && !text.contains(".sig"), "{text}");
    let (_, text) = page(&alice, "/image/team/api:2.14.0").await;
    for expected in [
        "has a signature",
        "SBOM",
        "attestation",
        "FROM gcr.io/distroless",
        "COPY app /usr/bin/api",
        "65532:65532",
        "8080/tcp",
        "RUST_LOG=info",
        "https://git.company/team/api",
        "3fe9a21",
        "linux/arm64",
        "docker pull",
    ] {
        assert!(text.contains(expected), "{expected}: {text}");
    }
    assert!(!text.contains(">signed<"));
    assert!(text.contains("pushed ") && text.contains(" by alice"), "{text}");
    // By whom is for who is signed in; when, for all; and clients are told of nobody.
    let (_, text) = page(&nobody, "/image/public/docs:1.0").await;
    assert!(text.contains("pushed ") && !text.contains("alice"), "{text}");
    let answer = api.get("/v2/public/docs/manifests/1.0").await;
    assert!(answer.headers().contains_key("last-modified") && !answer.headers().contains_key("berth-pushed-by"));
    let (_, text) = page(&alice, "/image/charts/platform:1.2.3").await;
    assert!(text.contains("helm pull oci://") && text.contains("postgresql"), "{text}");
    assert!(text.contains("replicas: 2"), "{text}");
    // What is attached, as what it is.
    let parts = screens_of_parts(&api).await;
    let (bill, attestation, layer) = (&parts[0].1, &parts[1].1, &parts[3].1);
    let (_, text) = page(&alice, bill).await;
    assert!(text.contains("lib000") && text.contains("200 of 300") && !text.contains("lib299"), "{text}");
    assert!(text.contains("Nobody here has verified it"), "{text}");
    let (_, text) = page(&alice, &format!("{bill}?q=LIB299")).await;
    assert!(text.contains("1.299") && !text.contains("lib000"), "{text}");
    let (_, text) = page(&alice, attestation).await;
    assert!(text.contains("https://ci.company/runner") && text.contains("https://git.company/team/api"), "{text}");
    // The other tag's image has the same base layer, in the same repository; nobody else has it.
    let (_, text) = page(&alice, layer).await;
    assert!(text.contains("One repository that you can read") && text.contains("/repository/team/api"), "{text}");
    let (_, text) = page(&alice, "/compare/team/api?from=2.13.9&to=2.14.0").await;
    for expected in ["added", "removed", "label version", "2.13.9", "is already there"] {
        assert!(text.contains(expected), "{expected}: {text}");
    }
    let (_, text) = page(&alice, "/delete/team/api:2.14.0").await;
    assert!(text.contains("signatures and documents attached to it"), "{text}");
    let (_, text) = page(&alice, "/access?repository=ci/app").await;
    assert!(text.contains("operators") && text.contains("http.accessControl.repositories"), "{text}");
    // bob may read shared/** and what is public; what he may not read looks as if it weren't there.
    let (_, text) = page(&bob, "/repositories").await;
    assert!(text.contains("/repository/shared/hello") && !text.contains("/repository/team"), "{text}");
    let hidden = page(&bob, "/repository/team/api").await;
    let missing = page(&bob, "/repository/team/none").await;
    assert_eq!((hidden.0, hidden.1), (StatusCode::NOT_FOUND, missing.1));
    assert_eq!(page(&bob, "/image/team/api:2.14.0").await.0, StatusCode::NOT_FOUND);
    for (_, part) in &parts[..4] {
        assert_eq!(page(&bob, part).await.0, StatusCode::NOT_FOUND, "{part}");
    }
    assert_eq!(page(&bob, "/compare/team/api?from=2.13.9&to=2.14.0").await.0, StatusCode::NOT_FOUND);
    assert_eq!(page(&bob, "/delete/shared/hello:1.0").await.0, StatusCode::NOT_FOUND);
    assert!(!page(&bob, "/image/shared/hello:1.0").await.1.contains("Delete"));
    // Nobody looks around in what is public, and is led to sign in elsewhere.
    let (_, text) = page(&nobody, "/").await;
    assert!(text.contains("Look around without signing in"), "{text}");
    let (_, text) = page(&nobody, "/repositories").await;
    assert!(text.contains("/repository/public/docs") && !text.contains("shared"), "{text}");
    assert_eq!(page(&nobody, "/image/public/docs:1.0").await.0, StatusCode::OK);
    assert!(page(&nobody, "/keys").await.1.contains("callback_ui=%2Fkeys"));
    // Deleting asks first, is refused to others, and says what the registry says.
    let delete = async |person: &Person, target: &str, site: &str| {
        let request = person.http.post(format!("{}/delete/{target}", system.url)).header("sec-fetch-site", site);
        request.send().await.unwrap()
    };
    assert_eq!(delete(&bob, "shared/hello:1.0", "same-origin").await.status(), StatusCode::NOT_FOUND);
    assert_eq!(delete(&alice, "shared/hello:1.0", "cross-site").await.status(), StatusCode::FORBIDDEN);
    assert_eq!(alice.get("/delete/shared/hello:1.0").await.status(), StatusCode::OK);
    assert_eq!(api.get("/v2/shared/hello/manifests/1.0").await.status(), StatusCode::OK);
    let index: Value = api.get("/v2/team/api/manifests/2.14.0").await.json().await.unwrap();
    let child = index["manifests"][0]["digest"].as_str().unwrap();
    let refused = delete(&alice, &format!("team/api@{child}"), "same-origin").await;
    assert_eq!(refused.status(), StatusCode::CONFLICT);
    assert!(refused.text().await.unwrap().contains("delete that first"));
    delete(&alice, "shared/hello:1.0", "same-origin").await;
    assert_eq!(api.get("/v2/shared/hello/manifests/1.0").await.status(), StatusCode::NOT_FOUND);
}

/// All of it is text: it closes no tag, leads nowhere but to the web, and turns nothing around.
#[tokio::test]
async fn what_strangers_write_is_text() {
    let (system, api) = furnished().await;
    let alice = system.signed_in("alice").await;
    let evil = "<script>alert(1)</script>\u{202e}\u{1b}[31m\"'";
    let config = json!({"architecture": evil, "os": evil, "created": evil,
        "config": {"Entrypoint": [evil, 7], "Env": {"a": []}, "User": 5, "Labels": {evil: evil, "org.opencontainers.image.source": "javascript:alert(1)"}},
        "history": [{"created_by": evil}, 5]});
    let config = blob(&api, "r", CONFIG, config.to_string().as_bytes()).await;
    let mut layer = blob(&api, "r", LAYER, b"x").await;
    layer["annotations"] = json!({evil: evil});
    let annotations = json!({evil: evil, "org.opencontainers.image.documentation": "data:text/html,<script>", "org.opencontainers.image.revision": "https://x\u{202e}y"});
    let manifest = json!({"schemaVersion": 2, "mediaType": MANIFEST, "config": config, "layers": [layer], "annotations": annotations});
    let pushed = push(&api, "r", "1", MANIFEST, &manifest).await;
    let attached = json!({"schemaVersion": 2, "mediaType": MANIFEST, "artifactType": evil, "config": config, "layers": [],
        "subject": {"mediaType": MANIFEST, "digest": pushed, "size": 1}});
    push(&api, "r", "attached", MANIFEST, &attached).await;
    let many: serde_json::Map<_, _> = (0..9000).map(|i| (format!("key-{i:05}"), json!("v".repeat(300)))).collect();
    let large = json!({"schemaVersion": 2, "mediaType": MANIFEST, "config": config, "layers": vec![manifest["layers"][0].clone(); 900], "annotations": many});
    push(&api, "r", "large", MANIFEST, &large).await;
    for path in [
        "/image/r:1",
        "/image/r:1?raw=1",
        "/repository/r",
        "/image/r:attached",
        "/image/r:large",
        "/image/r:large?raw=1",
    ] {
        let answer = alice.get(path).await;
        assert_eq!(answer.status(), StatusCode::OK, "{path}");
        let text = answer.text().await.unwrap();
        assert!(!text.contains("<script>") && !text.contains(['\u{202e}', '\u{1b}']), "{path}: {text}");
        assert!(!text.contains("href=\"javascript") && !text.contains("href=\"data"), "{path}: {text}");
        assert!(text.len() < 3 * MAX_SCREEN_BYTES, "{path}: {}", text.len());
    }
    for path in [
        "/image/r:1?platform=<script>",
        "/access?repository=<script>alert(1)</script>",
        "/repositories?q=<script>",
        "/repository/r?q=%00<script>&from=99999999999",
        "/image/%2e%2e/x:1",
        "/repository/..",
        "/image/r@sha256:zz",
        "/image/:",
        "/repositories?after=%00",
        "/repository/r?after=%00",
    ] {
        let answer = alice.get(path).await;
        assert!(!answer.status().is_server_error(), "{path}: {}", answer.status());
        let text = answer.text().await.unwrap();
        assert!(!text.contains("<script>"), "{path}");
    }
}
