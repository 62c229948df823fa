//! Signing out, and being signed out.

use berth_tests::{
    api::Api,
    certified::Provider,
    person::Person,
    process::{free_port, wait_for},
    stand_in::signed,
    system::{CLIENT_ID, Setup, System},
};
use reqwest::{StatusCode, header};
use serde_json::{Value, json};

const EVENT: &str = "http://schemas.openid.net/event/backchannel-logout";

async fn is_signed_in(person: &Person) -> bool {
    person.get("/").await.text().await.unwrap().contains("Signed in as")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_signs_out_at_the_certified_provider_is_signed_out_here() {
    let folder = tempfile::tempdir().unwrap();
    let port = free_port();
    let url = format!("http://localhost:{port}");
    let Some(provider) = Provider::start(free_port(), &url, folder.path(), &[]).await else { return };
    let setup = Setup { issuer: Some(provider.issuer.clone()), ..Setup::default() };
    let system = System::start_in(folder.path(), port, setup).await;
    let (one, two) = (Person::new(&system.url), Person::new(&system.url));
    for person in [&one, &two] {
        provider.sign_in(person, "alice").await;
        assert!(is_signed_in(person).await);
    }
    let (key, _) = one.make_key("a").await;

    // In one browser, at the provider's own page, of which Berth is told behind the browser's back.
    let page = one.http.get(format!("{}end-session/", provider.issuer)).send().await.unwrap();
    let page = page.text().await.unwrap();
    let attribute = |after: &str, name: &str| {
        let rest = page.split(after).nth(1).unwrap_or_else(|| panic!("no {after} in {page}"));
        rest.split(&format!("{name}=\"")).nth(1).unwrap().split('"').next().unwrap().to_owned()
    };
    let (action, xsrf) = (attribute("<form", "action"), attribute("name=\"xsrf\"", "value"));
    one.http.post(action).form(&[("xsrf", xsrf.as_str()), ("logout", "yes")]).send().await.unwrap();
    wait_for("the session to end", async || (!is_signed_in(&one).await).then_some(())).await;
    system.proxy.prints("the provider has signed somebody out").await;
    // The other browser's session is another one, and so is the key.
    assert!(is_signed_in(&two).await);
    assert_eq!(Api::basic(&system.url, "alice", &key).get("/v2/").await.status(), StatusCode::OK);
}

#[tokio::test]
async fn only_a_genuine_logout_token_signs_out_and_only_once() {
    let system = System::start(Setup::default()).await;
    let (one, two) = (system.signed_in("alice").await, system.signed_in("alice").await);
    let bob = system.signed_in("bob").await;
    let claims_of = async |token: &str| {
        // Genuine claims, to be bent.
        let mut claims = json!({"aud": CLIENT_ID, "jti": token, "events": {EVENT: {}}});
        claims["sub"] = json!(hex_of("alice"));
        claims
    };
    let send = async |token: &str| {
        let http = reqwest::Client::new();
        let url = format!("{}/zot/auth/backchannel-logout/oidc", system.url);
        let answer = http.post(url).form(&[("logout_token", token)]).send().await.unwrap();
        assert_eq!(answer.headers()[header::CACHE_CONTROL], "no-store");
        let status = answer.status();
        (status, answer.text().await.unwrap())
    };
    for (change, value, expected) in [
        ("aud", json!("another"), "made for another, and not for berth"),
        ("iss", json!("https://evil.example/"), "another issuer"),
        ("events", json!({}), "event of a logout"),
        ("nonce", json!("n"), "nonce"),
        ("jti", Value::Null, "jti"),
        ("sub", json!(""), "neither a subject nor a session"),
        ("iat", json!(1), "too old"),
        ("iat", json!(99_999_999_999_u64), "not valid yet"),
        ("exp", json!(1), "expired"),
    ] {
        let mut claims = claims_of("refused").await;
        claims[change] = value;
        let (status, body) = send(&signed(&system.issuer, claims).await).await;
        assert_eq!(status, StatusCode::BAD_REQUEST, "{change}");
        assert!(body.contains(expected), "{change}: {body}");
    }
    let good = signed(&system.issuer, claims_of("good").await).await;
    let (head, rest) = good.split_once('.').unwrap();
    let payload = rest.split('.').next().unwrap();
    for forged in [format!("{head}.{payload}."), format!("{head}.{payload}.AAAA"), String::new(), "x".to_owned()] {
        assert_eq!(send(&forged).await.0, StatusCode::BAD_REQUEST);
    }
    // An ID token is no logout token.
    let id_token = signed(&system.issuer, json!({"aud": CLIENT_ID, "sub": hex_of("alice")})).await;
    assert_eq!(send(&id_token).await.0, StatusCode::BAD_REQUEST);
    assert!(is_signed_in(&one).await && is_signed_in(&two).await);

    // Of a subject without a session: everything of theirs, and nobody else's.
    assert_eq!(send(&good).await.0, StatusCode::OK);
    assert!(!is_signed_in(&one).await && !is_signed_in(&two).await && is_signed_in(&bob).await);
    let again = system.signed_in("alice").await;
    let (status, body) = send(&good).await;
    assert!(status == StatusCode::BAD_REQUEST && body.contains("used before"), "{body}");
    assert!(is_signed_in(&again).await);
    // It can't be had by a link.
    let by_link = again.get(&format!("/zot/auth/backchannel-logout/oidc?logout_token={good}")).await;
    assert_eq!(by_link.status(), StatusCode::METHOD_NOT_ALLOWED);
}

/// The `sub` that the stand-in gives to somebody.
fn hex_of(user: &str) -> String {
    berth_tests::images::digest(user.as_bytes()).replace("sha256:", "")
}

#[tokio::test]
async fn one_s_sessions_are_listed_and_can_be_ended_one_by_one() {
    let system = System::start(Setup::default()).await;
    let (one, two, bob) =
        (system.signed_in("alice").await, system.signed_in("alice").await, system.signed_in("bob").await);
    let page = one.get("/sessions").await.text().await.unwrap();
    assert!(page.contains("Where you are signed in") && page.contains("127.0.0.1"), "{page}");
    assert_eq!((page.matches("this one").count(), page.matches("/sessions/end").count()), (1, 1));
    let id = page.split("/sessions/end").nth(1).unwrap().split("value=\"").nth(1).unwrap();
    let id = id.split('"').next().unwrap();
    let end = async |person: &Person, site: &str| {
        let request = person.http.post(format!("{}/sessions/end", system.url)).header("sec-fetch-site", site);
        request.form(&[("id", id)]).send().await.unwrap()
    };
    // Not by another person, and not by another site's page.
    end(&bob, "same-origin").await;
    assert_eq!(end(&one, "cross-site").await.status(), StatusCode::FORBIDDEN);
    assert!(is_signed_in(&two).await);
    end(&one, "same-origin").await;
    assert!(!is_signed_in(&two).await && is_signed_in(&one).await && is_signed_in(&bob).await);
}
