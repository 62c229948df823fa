//! Who is who: a person is a provider and a subject there, and a name is one person's.

use std::process::Command;

use berth_tests::{
    api::{Api, Credential},
    person::Person,
    process::{free_port, wait_for},
    stand_in::access_token,
    system::{CLIENT_ID, Setup, System, answers, binary, stand_in_for},
    tools::{must, run},
};
use reqwest::StatusCode;
use serde_json::json;

async fn is_signed_in(person: &Person) -> bool {
    person.get("/").await.text().await.unwrap().contains("Signed in as")
}

fn people(system: &System, more: &[&str]) -> String {
    must(Command::new(binary("berth-proxy")).arg("people").arg(system.config()).args(more))
}

#[tokio::test]
async fn another_subject_with_a_taken_name_is_refused_until_the_name_is_released() {
    let system = System::start(Setup::default()).await;
    let alice = system.signed_in("alice").await;
    let (key, _) = alice.make_key("a").await;
    let api = Api::basic(&system.url, "alice", &key);
    let jwt = access_token(&system.issuer, CLIENT_ID, "alice").await;
    let bearer = Api::new(&system.url, Credential::Bearer(jwt));
    let minted = bearer.with_token(&[]).await;
    assert_eq!(minted.get("/v2/").await.status(), StatusCode::OK);
    // authentik was set up anew, or has another subject mode.
    system.at_stand_in("subject/alice/another", json!({})).await;
    let other = Person::new(&system.url);
    let refused = other.sign_in("alice", "alice").await;
    assert_eq!(refused.status(), StatusCode::FORBIDDEN);
    let page = refused.text().await.unwrap();
    assert!(page.contains("belongs to somebody else here") && page.contains("people CONFIG release NAME"), "{page}");
    assert!(is_signed_in(&alice).await && !is_signed_in(&other).await);
    assert_eq!(api.get("/v2/").await.status(), StatusCode::OK);

    let listed = people(&system, &[]);
    assert!(listed.starts_with("alice\toidc\t") && !listed.contains("another"), "{listed}");
    assert!(people(&system, &["release", "alice"]).contains("alice is whose who signs in with it next"));
    assert_eq!(people(&system, &[]), "");
    let nobody = run(Command::new(binary("berth-proxy")).arg("people").arg(system.config()).args(["release", "alice"]));
    assert!(!nobody.success && nobody.printed.contains("nobody holds the name alice"), "{}", nobody.printed);
    wait_for("the end of what the first had", async || {
        let open = [&api, &bearer, &minted].map(|api| async { api.get("/v2/").await.status() == StatusCode::OK });
        let open = futures_util::future::join_all(open).await.contains(&true);
        (!open && !is_signed_in(&alice).await).then_some(())
    })
    .await;
    assert_eq!(bearer.ask_token(&[]).await.status(), StatusCode::UNAUTHORIZED);
    assert!(other.sign_in("alice", "alice").await.text().await.unwrap().contains("Signed in as alice"));
    assert!(people(&system, &[]).contains("\tanother\t"));
    // Whoever comes without a browser holds their name, too.
    let robot = Api::basic(&system.url, "ci-robot", "ci-robot-app-password");
    assert_eq!(robot.get("/v2/").await.status(), StatusCode::OK);
    assert!(people(&system, &[]).contains("ci-robot\toidc\t"));
    // What the first had is gone for good.
    assert_eq!(api.get("/v2/").await.status(), StatusCode::UNAUTHORIZED);
}

#[tokio::test]
async fn another_provider_with_a_taken_name_is_refused_and_touches_nothing() {
    let mut system = System::start(Setup::default()).await;
    let alice = system.signed_in("alice").await;
    let (key, _) = alice.make_key("a").await;
    let api = Api::basic(&system.url, "alice", &key);
    let port = free_port();
    let folder = tempfile::tempdir().unwrap();
    let _second = stand_in_for(folder.path(), port, &system.url, "second");
    let issuer = format!("http://localhost:{port}/application/o/berth/");
    answers(&format!("{issuer}.well-known/openid-configuration")).await;
    system.configure(|config| {
        let providers = &mut config["http"]["auth"]["openid"]["providers"];
        let mut second = providers["oidc"].clone();
        second["issuer"] = json!(issuer);
        providers["second"] = second;
    });
    system.restart_proxy().await;
    let other = Person::new(&system.url);
    let form = other.get("/zot/auth/login?provider=second").await;
    let next = form.url().query_pairs().find(|(name, _)| name == "next").unwrap().1.into_owned();
    let fields = [("username", "alice"), ("password", "alice"), ("next", &next)];
    let refused = other.http.post(form.url().clone()).form(&fields).send().await.unwrap();
    assert_eq!(refused.status(), StatusCode::FORBIDDEN);
    assert!(refused.text().await.unwrap().contains("belongs to somebody else here"));
    assert!(is_signed_in(&alice).await && !is_signed_in(&other).await);
    assert_eq!(api.get("/v2/").await.status(), StatusCode::OK);
    let page = alice.get("/").await.text().await.unwrap();
    assert!(page.contains("Your groups: dev"), "{page}");
}
