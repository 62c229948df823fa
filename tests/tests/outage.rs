//! When something is away: the identity provider, or the registry.

use std::time::{Duration, Instant};

use berth_tests::{
    api::{Api, error_of},
    images::Image,
    person::Person,
    process::wait_for,
    system::{Setup, System},
};
use reqwest::StatusCode;

#[tokio::test]
async fn without_the_identity_provider_everything_but_a_new_sign_in_works() {
    let mut system = System::start(Setup::default()).await;
    let alice = system.signed_in("alice").await;
    let (key, _) = alice.make_key("a").await;
    let api = Api::basic(&system.url, "alice", &key);
    api.must_push("r", "1", &Image::new(1, 1000)).await;

    system.stand_in.as_mut().unwrap().kill();
    system.restart_proxy().await;
    assert!(alice.get("/").await.text().await.unwrap().contains("Signed in as alice"));
    assert_eq!(api.get("/v2/r/manifests/1").await.status(), StatusCode::OK);
    let token = api.with_token(&["repository:r:pull"]).await;
    assert_eq!(token.get("/v2/r/manifests/1").await.status(), StatusCode::OK);
    alice.make_key("another").await;

    let answer = Person::new(&system.url).get("/zot/auth/login").await;
    assert_eq!(answer.status(), StatusCode::SERVICE_UNAVAILABLE);
    let page = answer.text().await.unwrap();
    let why = format!("the identity provider at {} can&#39;t be reached", system.issuer);
    let also = why.replace("&#39;", "'");
    assert!((page.contains(&why) || page.contains(&also)) && page.contains("refused"), "{page}");

    // It is back, and nobody had to restart anything.
    system.restart_stand_in().await;
    wait_for("it to be asked again", async || sign_in_status(&system).await.is_redirection().then_some(())).await;
    system.signed_in("bob").await;
}

#[tokio::test]
async fn a_provider_that_goes_away_after_discovery_is_noticed_too() {
    let mut system = System::start(Setup::default()).await;
    system.signed_in("alice").await;
    system.stand_in.as_mut().unwrap().kill();
    // What it said a moment ago is forgotten a moment later.
    wait_for("the page that says so", async || {
        (sign_in_status(&system).await == StatusCode::SERVICE_UNAVAILABLE).then_some(())
    })
    .await;
}

/// How a sign-in begins now: at the provider, or with a page that says why not.
async fn sign_in_status(system: &System) -> StatusCode {
    let http = reqwest::Client::builder().redirect(reqwest::redirect::Policy::none()).build().unwrap();
    http.get(format!("{}/zot/auth/login", system.url)).send().await.unwrap().status()
}

#[tokio::test]
async fn without_the_registry_clients_get_a_clear_503_and_the_page_still_shows() {
    for unix_socket in [true, false] {
        let mut system = System::start(Setup { unix_socket, ..Setup::default() }).await;
        let alice = system.signed_in("alice").await;
        let (key, _) = alice.make_key("a").await;
        let api = Api::basic(&system.url, "alice", &key);
        system.registry.kill();
        let answer = api.get("/v2/r/manifests/1").await;
        assert_eq!(error_of(answer).await, (503, "UNAVAILABLE".to_owned()));
        assert_eq!(error_of(api.get("/v2/_catalog").await).await, (503, "UNAVAILABLE".to_owned()));
        let page = alice.get("/").await.text().await.unwrap();
        assert!(page.contains("The registry behind this page does not answer now"), "{page}");
        system.restart_registry().await;
        assert_eq!(api.get("/v2/r/manifests/1").await.status(), StatusCode::NOT_FOUND);
    }
}

#[tokio::test]
async fn a_request_waits_for_a_registry_that_is_being_started() {
    for unix_socket in [true, false] {
        let mut system = System::start(Setup { unix_socket, ..Setup::default() }).await;
        let (key, _) = system.signed_in("alice").await.make_key("a").await;
        let api = Api::basic(&system.url, "alice", &key);
        let image = Image::new(1, 1000);
        api.must_push("r", "1", &image).await;
        system.registry.kill();
        let (reader, writer, manifest) = (api.clone(), api.clone(), image.manifest.clone());
        let pulled = tokio::spawn(async move { reader.get("/v2/r/manifests/1").await.status() });
        let pushed = tokio::spawn(async move { writer.push_manifest("r", "2", &manifest).await.unwrap().status() });
        let ready = reqwest::get(format!("{}/readyz", system.url)).await.unwrap();
        assert_eq!(ready.status(), StatusCode::SERVICE_UNAVAILABLE);
        assert!(!pulled.is_finished() && !pushed.is_finished());
        let began = Instant::now();
        system.restart_registry().await;
        let restarted = began.elapsed();
        let statuses = (pulled.await.unwrap(), pushed.await.unwrap());
        // Requests wait for eight seconds: a start that took most of them shows nothing.
        if restarted < Duration::from_secs(5) {
            assert_eq!(statuses, (StatusCode::OK, StatusCode::CREATED));
        }
    }
}
