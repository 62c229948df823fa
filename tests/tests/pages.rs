//! The pages, in a real browser: every screen in light, dark and on a phone, without a complaint of axe-core, with pictures in
//! `target/screens/`; and what strangers write shown as text.

use std::{
    fs,
    path::{Path, PathBuf},
};

use berth_tests::{
    api::Api,
    images::{Image, MANIFEST, digest},
    person::Person,
    system::{Setup, System, demonstration_rules},
    tools,
};
use reqwest::{Method, StatusCode, header};
use serde_json::{Value, json};
use thirtyfour::prelude::*;

use crate::browser::Browser;

/// The longest a screen may be, in bytes.
const MAX_SCREEN_BYTES: usize = 60_000;

const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const LAYER: &str = "application/vnd.oci.image.layer.v1.tar+gzip";
const INDEX: &str = "application/vnd.oci.image.index.v1+json";

async fn push(api: &Api, repository: &str, reference: &str, media_type: &str, manifest: &Value) -> String {
    let text = manifest.to_string();
    let put = api.request(Method::PUT, &format!("/v2/{repository}/manifests/{reference}"));
    let answer = put.header(header::CONTENT_TYPE, media_type).body(text.clone()).send().await.unwrap();
    assert_eq!(answer.status(), StatusCode::CREATED, "{}", answer.text().await.unwrap());
    digest(text.as_bytes())
}

async fn blob(api: &Api, repository: &str, media_type: &str, bytes: &[u8]) -> Value {
    assert_eq!(api.push_blob(repository, bytes).await.unwrap().status(), StatusCode::CREATED);
    json!({"mediaType": media_type, "digest": digest(bytes), "size": bytes.len()})
}

/// An image as builders make it, for a platform.
async fn image(api: &Api, repository: &str, architecture: &str, version: &str) -> Value {
    let config = json!({
        "architecture": architecture, "os": "linux", "created": "2026-11-20T10:00:00Z",
        "config": {
            "Entrypoint": ["/usr/bin/api"], "Cmd": ["--listen", ":8080"], "User": "65532:65532", "WorkingDir": "/srv",
            "ExposedPorts": {"8080/tcp": {}}, "Env": ["RUST_LOG=info", "TZ=UTC"],
            "Labels": {"org.opencontainers.image.source": "https://git.company/team/api", "version": version},
        },
        "rootfs": {"type": "layers", "diff_ids": []},
        "history": [
            {"created_by": "FROM gcr.io/distroless/cc-debian13"}, {"created_by": "COPY app /usr/bin/api # buildkit"},
            {"created_by": "/bin/sh -c #(nop) USER 65532:65532", "empty_layer": true},
        ],
    });
    let config = blob(api, repository, CONFIG, config.to_string().as_bytes()).await;
    let base = blob(api, repository, LAYER, &Image::new(1, 210_000).layer).await;
    let app = blob(api, repository, LAYER, &Image::new(u64::from(version.len() as u32) + 7, 58_000).layer).await;
    json!({"schemaVersion": 2, "mediaType": MANIFEST, "config": config, "layers": [base, app],
        "annotations": {"org.opencontainers.image.revision": "3fe9a21", "org.opencontainers.image.version": version}})
}

/// A registry with what people have in theirs.
async fn furnished() -> (System, Api) {
    let mut access_control = demonstration_rules();
    access_control["groups"] = json!({"operators": {"users": ["alice"]}});
    let system = System::start(Setup { access_control, ..Setup::default() }).await;
    let (key, _) = system.signed_in("alice").await.make_key("seed").await;
    let api = Api::basic(&system.url, "alice", &key);
    for name in ["team/web", "team/worker", "shared/base-images/python", "shared/hello", "public/docs"] {
        api.must_push(name, "1.0", &Image::new(name.len() as u64, 4000)).await;
    }
    for version in ["2.13.9", "2.14.0"] {
        let mut platforms = Vec::new();
        for architecture in ["amd64", "arm64"] {
            let manifest = image(&api, "team/api", architecture, version).await;
            let digest = push(&api, "team/api", &digest(manifest.to_string().as_bytes()), MANIFEST, &manifest).await;
            platforms.push(json!({"mediaType": MANIFEST, "digest": digest, "size": manifest.to_string().len(),
                "platform": {"os": "linux", "architecture": architecture}}));
        }
        let index = json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": platforms});
        let digest = push(&api, "team/api", version, INDEX, &index).await;
        let empty = blob(&api, "team/api", "application/vnd.oci.empty.v1+json", b"{}").await;
        for kind in
            ["application/vnd.dev.sigstore.bundle.v0.3+json", "application/spdx+json", "application/vnd.in-toto+json"]
        {
            let layer = blob(&api, "team/api", kind, kind.as_bytes()).await;
            let subject = json!({"mediaType": INDEX, "digest": digest, "size": index.to_string().len()});
            let attached = json!({"schemaVersion": 2, "mediaType": MANIFEST, "artifactType": kind, "config": empty,
                "layers": [layer], "subject": subject});
            push(&api, "team/api", &berth_tests::images::digest(attached.to_string().as_bytes()), MANIFEST, &attached)
                .await;
        }
    }
    let chart = json!({"name": "platform", "version": "1.2.3", "appVersion": "9", "description": "All of it",
        "dependencies": [{"name": "postgresql", "version": "16", "repository": "oci://charts.company"}]});
    let config =
        blob(&api, "charts/platform", "application/vnd.cncf.helm.config.v1+json", chart.to_string().as_bytes()).await;
    let content =
        blob(&api, "charts/platform", "application/vnd.cncf.helm.chart.content.v1.tar+gzip", b"a chart").await;
    let chart = json!({"schemaVersion": 2, "mediaType": MANIFEST, "config": config, "layers": [content]});
    push(&api, "charts/platform", "1.2.3", MANIFEST, &chart).await;
    (system, api)
}

/// The screens of somebody who is signed in.
const SCREENS: [(&str, &str); 11] = [
    ("repositories", "/repositories"),
    ("search", "/repositories?q=nothing-like-that"),
    ("repository", "/repository/team/api"),
    ("image", "/image/team/api:2.14.0"),
    ("chart", "/image/charts/platform:1.2.3"),
    ("manifest", "/image/team/api:2.14.0?raw=1"),
    ("delete", "/delete/team/api:2.14.0"),
    ("access", "/access?repository=shared/hello"),
    ("keys", "/keys"),
    ("sessions", "/sessions"),
    ("nothing", "/repository/there/is/none"),
];

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
    let (system, _) = furnished().await;
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
        for (name, path) in SCREENS {
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

#[tokio::test]
async fn screens_show_what_one_may_see_and_are_light() {
    let (system, api) = furnished().await;
    let (alice, bob, nobody) =
        (system.signed_in("alice").await, system.signed_in("bob").await, Person::new(&system.url));
    let page = async |person: &Person, path: &str| {
        let answer = person.get(path).await;
        let (status, text) = (answer.status(), answer.text().await.unwrap());
        assert!(text.len() < MAX_SCREEN_BYTES, "{path}: {} bytes", text.len());
        (status, text)
    };
    for (_, path) in SCREENS {
        let (status, text) = page(&alice, path).await;
        let expected = if path.ends_with("/none") { StatusCode::NOT_FOUND } else { StatusCode::OK };
        assert_eq!(status, expected, "{path}: {text}");
    }
    // What is in them.
    let (_, text) = page(&alice, "/repositories").await;
    for name in ["team/", "base-images/", "/repository/team/api", "/repository/charts/platform"] {
        assert!(text.contains(name), "{name}: {text}");
    }
    let (_, text) = page(&alice, "/repository/team/api").await;
    assert!(text.find("2.14.0").unwrap() < text.find("2.13.9").unwrap() && text.contains("linux/amd64, linux/arm64"));
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
    assert!(text.contains("pushed ") && text.contains("by <strong>alice</strong>"), "{text}");
    // By whom is for who is signed in; when, for all; and clients are told of nobody.
    let (_, text) = page(&nobody, "/image/public/docs:1.0").await;
    assert!(text.contains("pushed ") && !text.contains("alice"), "{text}");
    let answer = api.get("/v2/public/docs/manifests/1.0").await;
    assert!(answer.headers().contains_key("last-modified") && !answer.headers().contains_key("berth-pushed-by"));
    let (_, text) = page(&alice, "/image/charts/platform:1.2.3").await;
    assert!(text.contains("helm pull oci://") && text.contains("postgresql"), "{text}");
    let (_, text) = page(&alice, "/access?repository=ci/app").await;
    assert!(text.contains("operators") && text.contains("http.accessControl.repositories"), "{text}");
    // bob may read shared/** and what is public; what he may not read looks as if it weren't there.
    let (_, text) = page(&bob, "/repositories").await;
    assert!(text.contains("/repository/shared/hello") && !text.contains("/repository/team"), "{text}");
    let hidden = page(&bob, "/repository/team/api").await;
    let missing = page(&bob, "/repository/team/none").await;
    assert_eq!((hidden.0, hidden.1), (StatusCode::NOT_FOUND, missing.1));
    assert_eq!(page(&bob, "/image/team/api:2.14.0").await.0, StatusCode::NOT_FOUND);
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
    ] {
        let text = alice.get(path).await.text().await.unwrap();
        assert!(!text.contains("<script>"), "{path}");
    }
}
