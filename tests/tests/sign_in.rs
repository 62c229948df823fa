//! Signing in and out, sessions, and API keys, against the stand-in.

use berth_tests::{
    api::{Api, error_of},
    person::Person,
    system::{Setup, System},
};
use reqwest::{Client, StatusCode, header, redirect::Policy};
use serde_json::{Value, json};

fn no_redirects() -> Client {
    Client::builder().redirect(Policy::none()).cookie_store(true).build().unwrap()
}

#[tokio::test]
async fn the_first_page_offers_the_provider_and_then_shows_who_one_is() {
    let system = System::start(Setup::default()).await;
    let page = reqwest::get(&system.url).await.unwrap().text().await.unwrap();
    assert!(page.contains("SIGN IN WITH OIDC"), "{page}");
    let alice = system.signed_in("alice").await;
    let page = alice.get("/").await.text().await.unwrap();
    for expected in ["Signed in as alice", "Your groups: dev", "Sign out", "Push a first image"] {
        assert!(page.contains(expected), "{expected} is missing: {page}");
    }
}

#[tokio::test]
async fn the_sign_in_uses_pkce_state_and_nonce_and_authentik_s_redirect_uri() {
    let system = System::start(Setup::default()).await;
    let answer = no_redirects().get(format!("{}/zot/auth/login?provider=oidc", system.url)).send().await.unwrap();
    assert_eq!(answer.status(), StatusCode::FOUND);
    let location = url::Url::parse(answer.headers()[header::LOCATION].to_str().unwrap()).unwrap();
    let query: std::collections::HashMap<_, _> = location.query_pairs().into_owned().collect();
    assert_eq!(location.path(), "/application/o/authorize/");
    assert_eq!(query["redirect_uri"], format!("{}/zot/auth/callback/oidc", system.url));
    assert_eq!((query["response_type"].as_str(), query["code_challenge_method"].as_str()), ("code", "S256"));
    assert!(query["state"].len() >= 43 && query["nonce"].len() >= 43 && query["code_challenge"].len() == 43);
    assert_eq!(query["scope"], "openid profile email");
    let cookie = answer.headers()[header::SET_COOKIE].to_str().unwrap();
    for attribute in ["HttpOnly", "SameSite=Lax", "Path=/", "Max-Age=600"] {
        assert!(cookie.contains(attribute), "{cookie}");
    }
}

#[tokio::test]
async fn two_tabs_can_sign_in_at_once_and_a_callback_works_once() {
    let system = System::start(Setup::default()).await;
    let browser = no_redirects();
    let begin = async || {
        let answer = browser.get(format!("{}/zot/auth/login", system.url)).send().await.unwrap();
        answer.headers()[header::LOCATION].to_str().unwrap().to_owned()
    };
    let (one, two) = (begin().await, begin().await);
    // Signing in once at the provider is enough for both.
    let form = [("username", "alice"), ("password", "alice"), ("next", "/")];
    let origin = url::Url::parse(&one).unwrap().origin().ascii_serialization();
    browser.post(format!("{origin}/if/flow/default-authentication-flow/")).form(&form).send().await.unwrap();
    let mut callbacks = Vec::new();
    for authorize in [one, two] {
        let answer = browser.get(authorize).send().await.unwrap();
        callbacks.push(answer.headers()[header::LOCATION].to_str().unwrap().to_owned());
    }
    for callback in callbacks.iter().rev() {
        assert_eq!(browser.get(callback).send().await.unwrap().status(), StatusCode::FOUND);
    }
    let replayed = browser.get(&callbacks[0]).send().await.unwrap();
    assert_eq!(replayed.status(), StatusCode::BAD_REQUEST);
    // In a browser that didn't begin it, a callback signs nobody in.
    let stranger = no_redirects();
    let forced = stranger.get(&callbacks[1]).send().await.unwrap();
    assert_eq!(forced.status(), StatusCode::BAD_REQUEST);
    assert!(forced.text().await.unwrap().contains("this browser brought back no sign-in that fits"));
}

#[tokio::test]
async fn a_sign_in_that_was_cut_short_after_its_code_was_taken_begins_again_and_only_once() {
    let system = System::start(Setup::default()).await;
    let (browser, elsewhere) = (no_redirects(), Client::builder().redirect(Policy::none()).build().unwrap());
    let location = |answer: &reqwest::Response| answer.headers()[header::LOCATION].to_str().unwrap().to_owned();
    let pending = |answer: &reqwest::Response| {
        let mut cookies = answer.headers().get_all(header::SET_COOKIE).iter().map(|cookie| cookie.to_str().unwrap());
        cookies.find(|cookie| cookie.starts_with("berth_sign_in_") && !cookie.contains("Max-Age=0")).unwrap().to_owned()
    };
    let mut begun =
        browser.get(format!("{}/zot/auth/login?callback_ui=/repositories", system.url)).send().await.unwrap();
    let origin = url::Url::parse(&location(&begun)).unwrap().origin().ascii_serialization();
    let form = [("username", "alice"), ("password", "alice"), ("next", "/")];
    browser.post(format!("{origin}/if/flow/default-authentication-flow/")).form(&form).send().await.unwrap();
    for is_second in [false, true] {
        let cookie = pending(&begun);
        let callback = location(&browser.get(location(&begun)).send().await.unwrap());
        // Its answer is lost: the browser asks again, with what it had.
        let lost =
            elsewhere.get(&callback).header(header::COOKIE, cookie.split(';').next().unwrap()).send().await.unwrap();
        assert_eq!((lost.status(), &*location(&lost)), (StatusCode::FOUND, &*format!("{}/repositories", system.url)));
        begun = browser.get(&callback).send().await.unwrap();
        if is_second {
            assert_eq!(begun.status(), StatusCode::FORBIDDEN);
            break;
        }
        assert_eq!(begun.status(), StatusCode::FOUND);
        assert!(location(&begun).starts_with(&origin), "{}", location(&begun));
    }
    // Who isn't cut short again is signed in, and is where it began.
    let begun = browser.get(format!("{}/zot/auth/login?callback_ui=/repositories", system.url)).send().await.unwrap();
    let callback = location(&browser.get(location(&begun)).send().await.unwrap());
    let home = browser.get(&callback).send().await.unwrap();
    assert_eq!((home.status(), &*location(&home)), (StatusCode::FOUND, &*format!("{}/repositories", system.url)));
}

#[tokio::test]
async fn a_sign_in_returns_only_to_where_it_may() {
    let setup = Setup::default();
    let system = System::start(setup).await;
    for evil in [
        "https://evil.example/",
        "//evil.example/",
        "/%5Cevil.example/",
        "/%09/evil.example/",
        "%5C%5Cevil.example",
        "http:evil.example",
        "javascript:alert(1)",
        "http://user@evil.example",
        // It has the origin of what is inside.
        "blob:REGISTRY/x",
        "filesystem:REGISTRY/x",
    ] {
        let target = evil.replace("REGISTRY", &system.url);
        let answer = no_redirects().get(format!("{}/zot/auth/login?callback_ui={target}", system.url)).send().await;
        let answer = answer.unwrap();
        let status = answer.status();
        assert!(
            status == StatusCode::BAD_REQUEST
                // Read as a browser reads it, this one is a path of ours.
                || evil == "http:evil.example" && status == StatusCode::FOUND,
            "{evil}: {status}"
        );
    }
    let person = Person::new(&system.url);
    person.sign_in("alice", "alice").await;
    let answer = person.get("/zot/auth/login?callback_ui=/livez%3Fx=1").await;
    assert_eq!(answer.url().as_str(), format!("{}/livez?x=1", system.url));
}

#[tokio::test]
async fn a_refused_sign_in_shows_its_reason_and_logs_the_same() {
    // Without the scope no claim names anybody, neither in the ID token nor at userinfo; the e-mail address is no name.
    let system = System::start(Setup { provider: json!({"scopes": ["openid", "email"]}), ..Setup::default() }).await;
    let answer = Person::new(&system.url).sign_in("alice", "alice").await;
    assert_eq!(answer.status(), StatusCode::FORBIDDEN);
    let page = answer.text().await.unwrap();
    assert!(page.contains("preferred_username") && page.contains("Add the scope"), "{page}");
    let id = page.split("Request <code>").nth(1).unwrap().split('<').next().unwrap();
    let log = system.proxy.printed();
    let line = log.lines().find(|line| line.contains(id) && line.contains("a sign-in was refused"));
    assert!(line.is_some_and(|line| line.contains("preferred_username")), "{log}");
}

#[tokio::test]
async fn a_provider_that_does_not_allow_the_grant_is_told_what_to_allow() {
    let system = System::start(Setup::default()).await;
    system.at_stand_in("grants", json!([])).await;
    let refused = Person::new(&system.url).get("/zot/auth/login").await;
    assert_eq!(refused.status(), StatusCode::FORBIDDEN);
    let page = refused.text().await.unwrap();
    assert!(page.contains("allow the grant type authorization_code at the provider"), "{page}");
    assert!(page.contains("The request is otherwise malformed"), "{page}");
    let robot = Api::basic(&system.url, "ci-robot", "ci-robot-app-password").get("/v2/").await;
    assert_eq!(robot.status(), StatusCode::UNAUTHORIZED);
    let body: Value = robot.json().await.unwrap();
    assert!(body["errors"][0]["message"].as_str().unwrap().contains("client_credentials"), "{body}");
    system.at_stand_in("grants", json!(["authorization_code"])).await;
    system.signed_in("alice").await;
}

#[tokio::test]
async fn an_issuer_that_calls_itself_otherwise_is_named() {
    let system = System::start(Setup::default()).await;
    // The same provider, asked by another name than the one that it uses.
    let other = system.issuer.replace("localhost", "127.0.0.1");
    let second = System::start(Setup { issuer: Some(other.clone()), ..Setup::default() }).await;
    let answer = Person::new(&second.url).get("/zot/auth/login").await;
    let page = answer.text().await.unwrap();
    assert!(page.contains(&other) && page.contains(&system.issuer) && page.contains("one public name"), "{page}");
}

#[tokio::test]
async fn signing_out_ends_the_session_and_names_the_provider_s_page() {
    let system = System::start(Setup::default()).await;
    let alice = system.signed_in("alice").await;
    let foreign = alice.http.post(format!("{}/zot/auth/logout", system.url)).header("origin", "https://evil.example");
    assert_eq!(foreign.send().await.unwrap().status(), StatusCode::FORBIDDEN);
    let answer = alice.http.post(format!("{}/zot/auth/logout", system.url)).send().await.unwrap();
    assert_eq!(answer.status(), StatusCode::OK);
    let body: Value = answer.json().await.unwrap();
    let end_session = body["endSessionUrl"].as_str().unwrap();
    assert!(end_session.contains("/application/o/berth/end-session/?id_token_hint="), "{end_session}");
    assert!(alice.get("/").await.text().await.unwrap().contains("SIGN IN WITH OIDC"));
}

#[tokio::test]
async fn a_session_cookie_is_opaque_and_a_made_up_one_is_told_that_it_ended() {
    let system = System::start(Setup::default()).await;
    let client = Client::new();
    let request = client.get(&system.url).header(header::COOKIE, "berth_session=made-up");
    let answer = request.send().await.unwrap();
    let cookie = answer.headers()[header::SET_COOKIE].to_str().unwrap().to_owned();
    assert!(cookie.starts_with("berth_session=;") && cookie.contains("Max-Age=0"), "{cookie}");
    assert!(answer.text().await.unwrap().contains("Your session has ended"));
    system.proxy.prints("the session has ended; sign in again").await;
}

#[tokio::test]
async fn a_session_ends_when_it_is_idle_and_survives_a_restart() {
    let sidecar = json!({"session": {"idle": "1m", "absolute": "1m"}});
    let mut system = System::start(Setup { sidecar, ..Setup::default() }).await;
    let alice = system.signed_in("alice").await;
    system.restart_proxy().await;
    assert!(alice.get("/").await.text().await.unwrap().contains("Signed in as alice"));
    // Time is moved in the database instead of being waited for.
    system.proxy.kill();
    let database = system.folder.join("proxy.db");
    let moved = std::process::Command::new("sqlite3")
        .arg(&database)
        .arg("UPDATE sessions SET created_at = created_at - 61, used_at = used_at - 61")
        .status();
    if !moved.is_ok_and(|status| status.success()) {
        return berth_tests::tools::skip("sqlite3 is not installed");
    }
    system.restart_proxy().await;
    assert!(alice.get("/").await.text().await.unwrap().contains("Your session has ended"));
}

#[tokio::test]
async fn api_keys_have_zot_s_shape_and_belong_to_their_owner() {
    let system = System::start(Setup::default()).await;
    let (alice, bob) = (system.signed_in("alice").await, system.signed_in("bob").await);
    let address = format!("{}/zot/auth/apikey", system.url);
    let wanted = json!({"label": "ci", "scopes": [], "expirationDate": "2099-01-31T12:00:00Z"});
    let made = alice.http.post(&address).header("user-agent", "test").json(&wanted).send().await.unwrap();
    assert_eq!(made.status(), StatusCode::CREATED);
    let text = made.text().await.unwrap();
    let key: Value = serde_json::from_str(&text).unwrap();
    assert!(key["apiKey"].as_str().unwrap().starts_with("zak_"));
    // Byte for byte, but for what is different each time.
    let expected = format!(
        "{{\"createdAt\":{},\"expirationDate\":\"2099-01-31T12:00:00Z\",\"isExpired\":false,\"creatorUa\":\"test\",\
         \"generatedBy\":\"manual\",\"lastUsed\":\"0001-01-01T00:00:00Z\",\"label\":\"ci\",\"scopes\":[],\"uuid\":{},\
         \"apiKey\":{}}}",
        key["createdAt"], key["uuid"], key["apiKey"]
    );
    assert_eq!(text, expected);

    let listed: Value = alice.get("/zot/auth/apikey").await.json().await.unwrap();
    assert_eq!(listed["apiKeys"].as_array().unwrap().len(), 1);
    assert_eq!(listed["apiKeys"][0]["uuid"], key["uuid"]);
    assert!(listed["apiKeys"][0].get("apiKey").is_none());
    assert_eq!(bob.get("/zot/auth/apikey").await.text().await.unwrap(), r#"{"apiKeys":[]}"#);

    let id = key["uuid"].as_str().unwrap();
    assert_eq!(bob.revoke_key(id).await, StatusCode::NOT_FOUND);
    assert_eq!(alice.revoke_key(id).await, StatusCode::OK);
    assert_eq!(alice.revoke_key(id).await, StatusCode::NOT_FOUND);
    let nobody = reqwest::get(&address).await.unwrap();
    assert_eq!(error_of(nobody).await, (401, "UNAUTHORIZED".to_owned()));
}

#[tokio::test]
async fn without_a_provider_the_page_takes_passwords_and_says_how_to_log_in() {
    let mut system = System::start(Setup::default()).await;
    let users = system.folder.join("users");
    std::fs::write(&users, "alice:$2b$04$abcdefghijklmnopqrstuuhLPmC1CzBWz1/kTcm/POWvNYqkJ/UKS\n").unwrap();
    system.configure(|config| config["http"]["auth"] = json!({"htpasswd": {"path": users}}));
    system.restart_proxy().await;
    let page = reqwest::get(&system.url).await.unwrap().text().await.unwrap();
    assert!(page.contains("type=\"password\"") && !page.contains("SIGN IN WITH"), "{page}");
    assert!(page.contains(&format!("docker login {}", system.authority())), "{page}");
}

#[tokio::test]
async fn a_person_has_two_hundred_keys_at_most() {
    let system = System::start(Setup::default()).await;
    let alice = system.signed_in("alice").await;
    alice.make_key("first").await;
    let copies = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 199)
                  INSERT INTO api_keys (id, key_hash, provider, subject, label, user_agent, scopes, created_at)
                  SELECT 'id' || i, 'hash' || i, provider, subject, 'copy', '', '[]', created_at FROM api_keys, n";
    if !system.sql(copies) {
        return;
    }
    let made = alice.http.post(format!("{}/zot/auth/apikey", system.url)).json(&json!({"label": "x"})).send().await;
    assert_eq!(error_of(made.unwrap()).await, (403, "DENIED".to_owned()));
    let form = alice.http.post(format!("{}/keys", system.url)).header("origin", &system.url);
    let page = form.form(&[("label", "x"), ("days", "1")]).send().await.unwrap().text().await.unwrap();
    assert!(page.contains("No key was made") && page.contains("you have 200 API keys"), "{page}");
    assert_eq!(alice.revoke_key("id1").await, StatusCode::OK);
    alice.make_key("again").await;
}

#[tokio::test]
async fn every_line_of_a_page_s_request_names_its_user() {
    let system = System::start(Setup::default()).await;
    let alice = system.signed_in("alice").await;
    let (_, id) = alice.make_key("x").await;
    alice.revoke_key(&id).await;
    alice.http.post(format!("{}/zot/auth/logout", system.url)).send().await.unwrap();
    for line in ["signed in", "an API key was made", "an API key was revoked", "signed out"] {
        system.proxy.prints(line).await;
        let printed = system.proxy.printed();
        let line = printed.lines().find(|printed| printed.contains(line)).unwrap();
        assert!(line.contains("user=\"alice\"") && line.contains("request="), "{line}");
    }
    system.proxy.prints("path=\"/zot/auth/logout\"").await;
    let printed = system.proxy.printed();
    for path in ["/zot/auth/apikey", "/zot/auth/logout"] {
        let lines = printed.lines().filter(|line| line.contains(&format!("path=\"{path}\"")));
        lines.for_each(|line| assert!(line.contains("user=\"alice\""), "{line}"));
    }
}

#[tokio::test]
async fn a_key_makes_no_keys_and_another_site_s_page_makes_none_either() {
    let system = System::start(Setup::default()).await;
    let alice = system.signed_in("alice").await;
    let (key, _) = alice.make_key("x").await;
    let by_key = Api::basic(&system.url, "alice", &key);
    let answer = by_key.request(reqwest::Method::POST, "/zot/auth/apikey").json(&json!({"label": "y"})).send().await;
    assert_eq!(error_of(answer.unwrap()).await, (401, "UNAUTHORIZED".to_owned()));
    let request = alice.http.post(format!("{}/zot/auth/apikey", system.url)).header("sec-fetch-site", "cross-site");
    let answer = request.json(&json!({"label": "y"})).send().await.unwrap();
    assert_eq!(error_of(answer).await, (403, "DENIED".to_owned()));
    let form = alice.http.post(format!("{}/keys", system.url)).form(&[("label", "y"), ("days", "1")]);
    assert_eq!(form.send().await.unwrap().status(), StatusCode::FORBIDDEN);
}

#[tokio::test]
async fn no_secret_is_in_the_log_or_in_the_database() {
    let mut system = System::start(Setup::default()).await;
    let alice = system.signed_in("alice").await;
    let (key, _) = alice.make_key("x").await;
    let api = Api::basic(&system.url, "alice", &key);
    let token: Value = api.ask_token(&["repository:a:pull"]).await.json().await.unwrap();
    api.get("/v2/_catalog").await;
    let cookie = alice.http.get(format!("{}/zot/auth/login", system.url)).send().await.unwrap();
    drop(cookie);
    let token = token["token"].as_str().unwrap().to_owned();
    let secret_file = std::fs::read_to_string(system.folder.join("proxy.key")).unwrap();
    system.proxy.terminate();
    let mut seen = system.proxy.printed().into_bytes();
    for file in ["proxy.db", "proxy.db-wal"] {
        seen.extend(std::fs::read(system.folder.join(file)).unwrap_or_default());
    }
    let seen = String::from_utf8_lossy(&seen);
    let client_secret = berth_tests::system::CLIENT_SECRET;
    for secret in [key.as_str(), &token, client_secret, secret_file.trim(), "code=", "eyJhbGci"] {
        assert!(!seen.contains(secret), "a secret is kept or logged: {}…", &secret[..4]);
    }
}
