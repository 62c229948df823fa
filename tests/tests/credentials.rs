//! Every way to prove who one is, side by side.

use std::{fs, process::Command};

use berth_tests::{
    api::{Api, Credential, error_of, header_of},
    images::Image,
    process::{Process, free_port, wait_for},
    stand_in::{access_token, signed},
    system::{CLIENT_ID, Setup, System, answers, demonstration_rules, stand_in},
    tools::{self, must},
};
use reqwest::{Method, Response, StatusCode};
use serde_json::{Value, json};

async fn demonstration() -> System {
    System::start(Setup { access_control: demonstration_rules(), ..Setup::default() }).await
}

async fn post(api: &Api, path: &str, fields: &[(&str, &str)]) -> Response {
    api.with(Credential::None).request(Method::POST, path).form(fields).send().await.unwrap()
}

async fn message(answer: Response) -> String {
    let body: Value = answer.json().await.unwrap();
    body["errors"][0]["message"].as_str().unwrap_or_default().to_owned()
}

#[tokio::test]
async fn an_app_password_works_as_the_password_of_docker_login() {
    let system = demonstration().await;
    let robot = Api::basic(&system.url, "ci-robot", "ci-robot-app-password");
    robot.must_push("ci/app", "1", &Image::new(1, 1000)).await;
    let token = robot.with_token(&["repository:ci/app:pull,push", "repository:shared/x:push"]).await;
    token.must_push("ci/app", "2", &Image::new(2, 1000)).await;
    assert_eq!(token.get("/v2/shared/x/manifests/1").await.status(), StatusCode::UNAUTHORIZED);
    // No longer than the answer of authentik is believed.
    let answer: Value = robot.ask_token(&[]).await.json().await.unwrap();
    assert!((60..=300).contains(&answer["expires_in"].as_i64().unwrap()), "{answer}");

    for (user, password) in [("ci-robot", "wrong"), ("alice", "ci-robot-app-password"), ("ci-robot", "")] {
        let wrong = Api::basic(&system.url, user, password).get("/v2/").await;
        assert_eq!(wrong.status(), StatusCode::UNAUTHORIZED, "{user}");
        assert!(message(wrong).await.contains("nor an app password of this user"));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn authentik_is_asked_once_for_many_who_show_the_same_app_password() {
    let system = demonstration().await;
    let robot = Api::basic(&system.url, "ci-robot", "ci-robot-app-password");
    let asked = async || {
        let answer = reqwest::get(format!("{}/test/asked/client_credentials", system.provider_origin())).await.unwrap();
        answer.text().await.unwrap()
    };
    let all = (0..50).map(|_| {
        let robot = robot.clone();
        tokio::spawn(async move { robot.get("/v2/").await.status() })
    });
    for one in all.collect::<Vec<_>>() {
        assert_eq!(one.await.unwrap(), StatusCode::OK);
    }
    assert_eq!(asked().await, "1");
    // And once for many who show the same wrong one.
    let wrong = Api::basic(&system.url, "ci-robot", "wrong");
    for _ in 0..5 {
        assert_eq!(wrong.get("/v2/").await.status(), StatusCode::UNAUTHORIZED);
    }
    assert_eq!(asked().await, "2");
}

#[tokio::test]
async fn a_deactivated_service_account_is_not_let_in() {
    let system = demonstration().await;
    let robot = Api::basic(&system.url, "ci-robot", "ci-robot-app-password");
    reqwest::Client::new().post(format!("{}/test/disable/ci-robot", system.provider_origin())).send().await.unwrap();
    assert_eq!(robot.get("/v2/").await.status(), StatusCode::UNAUTHORIZED);
}

#[tokio::test]
async fn without_authentik_an_app_password_is_not_called_wrong() {
    let mut system = demonstration().await;
    let robot = Api::basic(&system.url, "ci-robot", "ci-robot-app-password");
    system.stand_in.as_mut().unwrap().kill();
    assert_eq!(error_of(robot.get("/v2/").await).await, (503, "UNAVAILABLE".to_owned()));
    system.restart_stand_in().await;
    wait_for("authentik to be asked again", async || {
        (robot.get("/v2/").await.status() == StatusCode::OK).then_some(())
    })
    .await;
}

#[tokio::test]
async fn authentik_s_tokens_work_as_bearer_and_as_password_with_any_user_name() {
    let system = demonstration().await;
    let jwt = access_token(&system.issuer, CLIENT_ID, "alice").await;
    let bearer = Api::new(&system.url, Credential::Bearer(jwt.clone()));
    bearer.must_push("mine/app", "1", &Image::new(1, 100)).await;
    let basic = Api::basic(&system.url, "whoever", &jwt);
    basic.must_push("mine/app", "2", &Image::new(2, 100)).await;
    let token = basic.with_token(&["repository:mine/app:pull"]).await;
    assert_eq!(token.get("/v2/mine/app/manifests/2").await.status(), StatusCode::OK);
    // Its owner may no more than the rules let them.
    let bob = access_token(&system.issuer, CLIENT_ID, "bob").await;
    let bob = Api::new(&system.url, Credential::Bearer(bob));
    assert_eq!(error_of(bob.post("/v2/shared/x/blobs/uploads/").await).await, (403, "DENIED".to_owned()));

    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
    let alice = |more: Value| {
        let mut claims = json!({"aud": CLIENT_ID, "sub": "1", "preferred_username": "alice"});
        claims.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        claims
    };
    for (claims, expected) in [
        (alice(json!({"aud": "somebody-else"})), "another audience"),
        (alice(json!({"azp": "somebody-else"})), "another audience"),
        (alice(json!({"exp": now - 100})), "has expired"),
        (alice(json!({"nbf": now + 1000})), "not valid yet"),
        (alice(json!({"iss": "https://evil.example/"})), "neither a provider of this registry"),
        (alice(json!({"events": {"http://schemas.openid.net/event/backchannel-logout": {}}})), "logout token"),
        (json!({"aud": CLIENT_ID, "sub": "1"}), "claimMapping.username"),
    ] {
        let jwt = signed(&system.issuer, claims.clone()).await;
        for api in [Api::new(&system.url, Credential::Bearer(jwt.clone())), Api::basic(&system.url, "alice", &jwt)] {
            let answer = api.get("/v2/").await;
            assert_eq!(answer.status(), StatusCode::UNAUTHORIZED, "{claims}");
            let challenge = header_of(&answer, "www-authenticate");
            assert!(challenge.contains("error=\"invalid_token\""), "{challenge}");
            let message = message(answer).await;
            assert!(message.contains(expected), "{claims}: {message}");
        }
    }
}

/// A system that takes the tokens of a CI service, and that service.
async fn with_ci() -> (System, Process, String) {
    let folder = tempfile::tempdir().unwrap();
    let port = free_port();
    let process = stand_in(folder.path(), port, "http://localhost");
    let issuer = format!("http://localhost:{port}/application/o/berth/");
    answers(&format!("{issuer}.well-known/openid-configuration")).await;
    let rule = |branch: &str| {
        json!({
            "issuer": issuer, "audiences": ["registry.company"],
            "claimMapping": {
                "validations": [
                    {"expression": "claims.repository_owner_id == '1'"},
                    {"expression": format!("claims.ref == 'refs/heads/{branch}'"), "message": "only from that branch"},
                ],
                "username": "'ci-' + claims.repository", "groups": "['ci']",
            },
        })
    };
    let mut main = rule("main");
    main["claimMapping"]["variables"] = json!([{"name": "owner", "expression": "claims.repository_owner_id"}]);
    main["claimMapping"]["groups"] = json!("['ci', 'owner-' + vars.owner]");
    let rules = json!({"repositories": {
        "built/**": {"policies": [{"groups": ["owner-1"], "actions": ["read", "create", "update"]}]},
        "released/**": {"policies": [{"users": ["ci-o/n"], "actions": ["read", "create"]}]},
    }});
    let auth = json!({"bearer": {"oidc": [rule("release"), main]}});
    let system = System::start(Setup { auth, access_control: rules, ..Setup::default() }).await;
    (system, process, issuer)
}

fn job(changes: Value) -> Value {
    let mut claims = json!({
        "aud": "registry.company", "sub": "repo:o@1/n@2:ref:refs/heads/main", "repository": "o/n",
        "repository_owner_id": "1", "ref": "refs/heads/main",
    });
    claims.as_object_mut().unwrap().extend(changes.as_object().unwrap().clone());
    claims
}

#[tokio::test]
async fn a_ci_job_pushes_with_its_own_token_and_a_refusal_says_what_was_missed() {
    let (system, _ci, issuer) = with_ci().await;
    let jwt = signed(&issuer, job(json!({}))).await;
    for api in [Api::new(&system.url, Credential::Bearer(jwt.clone())), Api::basic(&system.url, "x", &jwt)] {
        api.must_push("built/app", "1", &Image::new(1, 100)).await;
        let answer = api.with_token(&["repository:built/app:pull,push"]).await.get("/v2/built/app/manifests/1").await;
        assert_eq!(answer.status(), StatusCode::OK);
        assert_eq!(api.post("/v2/other/blobs/uploads/").await.status(), StatusCode::FORBIDDEN);
    }
    for (changes, expected) in [
        (json!({"ref": "refs/heads/x"}), r#"http.auth.bearer.oidc[0] came nearest: only from that branch"#),
        (json!({"repository_owner_id": "2"}), r#"repository_owner_id is "2""#),
        (json!({"aud": "another"}), "another audience"),
    ] {
        let jwt = signed(&issuer, job(changes)).await;
        let answer = Api::new(&system.url, Credential::Bearer(jwt)).get("/v2/").await;
        assert_eq!(answer.status(), StatusCode::UNAUTHORIZED);
        let message = message(answer).await;
        assert!(message.contains(expected), "{message}");
        system.proxy.prints(expected).await;
    }
}

#[tokio::test]
async fn a_job_goes_on_after_its_token_has_expired_with_a_refresh_token() {
    let (system, _ci, issuer) = with_ci().await;
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
    let jwt = signed(&issuer, job(json!({"exp": now + 20}))).await;
    let api = Api::basic(&system.url, "x", &jwt);
    let scope = "repository:built/app:pull,push";
    // docker asks so at a login.
    let answer = api.get(&format!("/zot/auth/token?service=x&scope={scope}&offline_token=true&account=x")).await;
    let body: Value = answer.json().await.unwrap();
    assert!((60..=90).contains(&body["expires_in"].as_i64().unwrap()), "{body}");
    let refresh = body["refresh_token"].as_str().unwrap().to_owned();
    let form = [("grant_type", "password"), ("username", "x"), ("password", &jwt), ("access_type", "offline")];
    let posted = post(&api, "/zot/auth/token", &form);
    assert!(posted.await.json::<Value>().await.unwrap()["refresh_token"].is_string());

    let refreshed = async || {
        let fields = [("grant_type", "refresh_token"), ("refresh_token", &refresh), ("scope", scope), ("service", "x")];
        post(&api, "/zot/auth/token", &fields).await
    };
    let body: Value = refreshed().await.json().await.unwrap();
    assert_eq!(body["scope"], scope);
    let token = api.with(Credential::Bearer(body["token"].as_str().unwrap().to_owned()));
    token.must_push("built/app", "1", &Image::new(1, 100)).await;
    // It is for the token service alone.
    for credential in [Credential::Bearer(refresh.clone()), Credential::Basic("x".to_owned(), refresh.clone())] {
        assert_eq!(api.with(credential).get("/v2/").await.status(), StatusCode::UNAUTHORIZED);
    }
    // The rule that it came from holds for it, too.
    system.configure(|config| {
        config["http"]["auth"]["bearer"]["oidc"][1]["claimMapping"]["validations"][0]["expression"] =
            json!("claims.repository_owner_id == '7'");
    });
    wait_for("the new rule", async || (refreshed().await.status() == StatusCode::UNAUTHORIZED).then_some(())).await;
    assert_eq!(token.get("/v2/built/app/manifests/1").await.status(), StatusCode::UNAUTHORIZED);
    system.configure(|config| {
        config["http"]["auth"]["bearer"]["oidc"][1]["claimMapping"]["validations"][0]["expression"] =
            json!("claims.repository_owner_id == '1'");
    });
    wait_for("the old rule", async || (refreshed().await.status() == StatusCode::OK).then_some(())).await;
    assert_eq!(token.get("/v2/built/app/manifests/1").await.status(), StatusCode::OK);
    // Revoked, it ends with the tokens that were made of it.
    assert_eq!(post(&api, "/zot/auth/revoke", &[("token", &refresh)]).await.status(), StatusCode::OK);
    assert_eq!(refreshed().await.status(), StatusCode::UNAUTHORIZED);
    assert_eq!(token.get("/v2/built/app/manifests/1").await.status(), StatusCode::UNAUTHORIZED);
}

#[tokio::test]
async fn an_api_key_gets_no_refresh_token_since_it_needs_none() {
    let system = demonstration().await;
    let (key, _) = system.signed_in("alice").await.make_key("a").await;
    let alice = Api::basic(&system.url, "alice", &key);
    let answer = alice.get("/zot/auth/token?service=x&offline_token=true").await;
    assert!(answer.json::<Value>().await.unwrap().get("refresh_token").is_none());
}

#[tokio::test]
async fn a_password_file_is_read_again_when_it_changes() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("htpasswd");
    let write = |password: &str| {
        fs::write(&path, format!("dave:{}\n", bcrypt::hash(password, 5).unwrap())).unwrap();
    };
    write("one");
    let auth = json!({"htpasswd": {"path": path}});
    let system = System::start(Setup { auth, ..Setup::default() }).await;
    let dave = Api::basic(&system.url, "dave", "one");
    dave.must_push("r", "1", &Image::new(1, 100)).await;
    let token = dave.with_token(&["repository:r:pull"]).await;
    assert_eq!(token.get("/v2/r/manifests/1").await.status(), StatusCode::OK);
    let wrong = Api::basic(&system.url, "dave", "two");
    assert_eq!(wrong.get("/v2/").await.status(), StatusCode::UNAUTHORIZED);
    let methods: Value = dave.get("/v2/_zot/ext/mgmt").await.json().await.unwrap();
    assert!(methods["http"]["auth"]["htpasswd"].is_object(), "{methods}");

    write("two");
    wait_for("the new password", async || (wrong.get("/v2/").await.status() == StatusCode::OK).then_some(())).await;
    assert_eq!(dave.get("/v2/").await.status(), StatusCode::UNAUTHORIZED);
    // What was made of the old one has ended.
    assert_eq!(token.get("/v2/r/manifests/1").await.status(), StatusCode::UNAUTHORIZED);
    // A file that is none is refused whole.
    fs::write(&path, "dave:plain").unwrap();
    wait_for("the refusal", async || {
        let printed = system.proxy.printed();
        (printed.contains("line 1 is no bcrypt hash") && printed.contains("what was goes on")).then_some(())
    })
    .await;
    assert_eq!(wrong.get("/v2/").await.status(), StatusCode::OK);
}

#[tokio::test]
async fn a_key_goes_no_further_than_its_scopes() {
    let system = demonstration().await;
    let alice = system.signed_in("alice").await;
    let make = async |scopes: Value| {
        let request = alice.http.post(format!("{}/zot/auth/apikey", system.url));
        request.json(&json!({"label": "scoped", "scopes": scopes})).send().await.unwrap()
    };
    let refused = make(json!(["read", "["])).await;
    assert_eq!(refused.status(), StatusCode::BAD_REQUEST);
    let made: Value = make(json!(["push", "team/**"])).await.json().await.unwrap();
    assert_eq!(made["scopes"], json!(["push", "team/**"]));
    let key = Api::basic(&system.url, "alice", made["apiKey"].as_str().unwrap());
    key.must_push("team/app", "1", &Image::new(1, 100)).await;
    let (whole, _) = alice.make_key("whole").await;
    let whole = Api::basic(&system.url, "alice", &whole);
    whole.must_push("other/app", "1", &Image::new(1, 100)).await;
    for api in [key.clone(), key.with_token(&["repository:other/app:pull,push", "repository:team/app:*"]).await] {
        assert!(!api.get("/v2/other/app/manifests/1").await.status().is_success());
        assert!(!api.delete("/v2/team/app/manifests/1").await.status().is_success());
        assert_eq!(api.get("/v2/team/app/manifests/1").await.status(), StatusCode::OK);
    }
    let listed: Value = key.get("/v2/_catalog").await.json().await.unwrap();
    assert_eq!(listed["repositories"], json!(["team/app"]));
    assert!(alice.get("/").await.text().await.unwrap().contains("push team/**"));
}

#[tokio::test]
async fn a_wrong_credential_is_told_even_where_anybody_would_be_let_in() {
    let system = demonstration().await;
    let (key, _) = system.signed_in("alice").await.make_key("a").await;
    let alice = Api::basic(&system.url, "alice", &key);
    alice.must_push("public/x", "1", &Image::new(1, 100)).await;
    assert_eq!(alice.with(Credential::None).get("/v2/public/x/manifests/1").await.status(), StatusCode::OK);
    for credential in [
        Credential::Basic("alice".to_owned(), "zak_mistyped".to_owned()),
        Credential::Basic("alice".to_owned(), "mistyped".to_owned()),
        Credential::Bearer("mistyped".to_owned()),
    ] {
        let answer = alice.with(credential).get("/v2/public/x/manifests/1").await;
        assert_eq!(answer.status(), StatusCode::UNAUTHORIZED);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_thousand_bad_logins_are_limited_and_lock_out_nobody_who_has_a_key() {
    let system = demonstration().await;
    let (key, _) = system.signed_in("alice").await.make_key("a").await;
    let alice = Api::basic(&system.url, "alice", &key);
    let guessers = (0..10).map(|guesser| {
        let alice = alice.clone();
        tokio::spawn(async move {
            let mut limited = 0;
            for i in 0..1000 {
                let password = format!("guess-{guesser}-{i}");
                let answer = alice.with(Credential::Basic("ci-robot".to_owned(), password)).get("/v2/").await;
                match answer.status() {
                    StatusCode::UNAUTHORIZED => {}
                    StatusCode::TOO_MANY_REQUESTS => {
                        let wait: u64 = header_of(&answer, "retry-after").parse().unwrap();
                        assert!((1..=120).contains(&wait), "{wait}");
                        limited += 1;
                    }
                    other => panic!("{other}"),
                }
            }
            limited
        })
    });
    let mut limited = 0;
    for guesser in guessers.collect::<Vec<_>>() {
        limited += guesser.await.unwrap();
    }
    // A few more than the burst may slip through while the minutes go by.
    assert!(limited > 9_800, "only {limited} of 10,000 were limited");
    let asked = reqwest::get(format!("{}/test/asked/client_credentials", system.provider_origin())).await.unwrap();
    let asked: u64 = asked.text().await.unwrap().parse().unwrap();
    assert!(asked < 200, "authentik was asked {asked} times");
    // The right password of that user waits with the wrong ones; keys and tokens of anybody don't.
    let robot = Api::basic(&system.url, "ci-robot", "ci-robot-app-password").get("/v2/").await;
    assert_eq!(robot.status(), StatusCode::TOO_MANY_REQUESTS);
    assert_eq!(alice.get("/v2/").await.status(), StatusCode::OK);
    let jwt = access_token(&system.issuer, CLIENT_ID, "ci-robot").await;
    assert_eq!(Api::basic(&system.url, "ci-robot", &jwt).get("/v2/").await.status(), StatusCode::OK);
}

/// Makes claims due to be renewed, as if a quarter of an hour were over; whether that can be done here.
fn grow_old(system: &System) -> bool {
    let Some(sqlite) = tools::find("sqlite3") else { return false };
    let database = system.folder.join("proxy.db");
    let statement =
        "PRAGMA busy_timeout = 5000; UPDATE sessions SET renewed_at = renewed_at - 1000 WHERE renewed_at > 0";
    must(Command::new(sqlite).arg(database).arg(statement));
    true
}

#[tokio::test]
async fn claims_are_renewed_and_keys_follow_them() {
    let rules = json!({"repositories": {"**": {"policies": [
        {"groups": ["dev", "ops"], "actions": ["read", "create", "update"]},
    ]}}});
    let provider = json!({"scopes": ["openid", "profile", "email", "offline_access"]});
    let system = System::start(Setup { access_control: rules, provider, ..Setup::default() }).await;
    let origin = system.provider_origin();
    let alice = system.signed_in("alice").await;
    let (key, _) = alice.make_key("a").await;
    let api = Api::basic(&system.url, "alice", &key);
    api.must_push("r", "1", &Image::new(1, 100)).await;
    let http = reqwest::Client::new();
    let renewals = async || {
        let asked = reqwest::get(format!("{origin}/test/asked/refresh_token")).await.unwrap();
        asked.text().await.unwrap()
    };

    http.post(format!("{origin}/test/groups/alice/guests")).send().await.unwrap();
    assert_eq!(api.get("/v2/r/manifests/1").await.status(), StatusCode::OK);
    if !grow_old(&system) {
        return;
    }
    wait_for("the new groups", async || {
        (api.get("/v2/r/manifests/1").await.status() == StatusCode::FORBIDDEN).then_some(())
    })
    .await;
    assert!(alice.get("/").await.text().await.unwrap().contains("Your groups: guests"));
    assert_eq!(renewals().await, "1");
    http.post(format!("{origin}/test/groups/alice/ops")).send().await.unwrap();
    grow_old(&system);
    wait_for("the next groups", async || (api.get("/v2/r/manifests/1").await.status() == StatusCode::OK).then_some(()))
        .await;

    // Gone at authentik: the session ends, and the key waits until they sign in again.
    http.post(format!("{origin}/test/disable/alice")).send().await.unwrap();
    grow_old(&system);
    wait_for("the end", async || (api.get("/v2/").await.status() == StatusCode::UNAUTHORIZED).then_some(())).await;
    assert!(message(api.get("/v2/").await).await.contains("does not know the owner of this API key any more"));
    assert!(alice.get("/").await.text().await.unwrap().contains("Your session has ended"));
}

#[tokio::test]
async fn a_provider_that_is_away_ends_no_session() {
    let provider = json!({"scopes": ["openid", "profile", "email", "offline_access"]});
    let mut system = System::start(Setup { provider, ..Setup::default() }).await;
    let alice = system.signed_in("alice").await;
    system.stand_in.as_mut().unwrap().kill();
    if !grow_old(&system) {
        return;
    }
    system.proxy.prints("claims can't be renewed now; they stay as they are").await;
    assert!(alice.get("/").await.text().await.unwrap().contains("Signed in as alice"));
}

#[tokio::test]
async fn keys_follow_their_owner_after_the_owner_has_signed_out() {
    let provider = json!({"scopes": ["openid", "profile", "email", "offline_access"]});
    let system = System::start(Setup { provider, ..Setup::default() }).await;
    let alice = system.signed_in("alice").await;
    let (key, _) = alice.make_key("a").await;
    let api = Api::basic(&system.url, "alice", &key);
    let out = alice.http.post(format!("{}/zot/auth/logout", system.url)).header("content-type", "application/json");
    assert_eq!(out.send().await.unwrap().status(), StatusCode::OK);
    assert!(!alice.get("/").await.text().await.unwrap().contains("Signed in as"));
    assert_eq!(api.get("/v2/").await.status(), StatusCode::OK);
    let disable = format!("{}/test/disable/alice", system.provider_origin());
    reqwest::Client::new().post(disable).send().await.unwrap();
    if !grow_old(&system) {
        return;
    }
    wait_for("the end of the key", async || (api.get("/v2/").await.status() == StatusCode::UNAUTHORIZED).then_some(()))
        .await;
    assert!(message(api.get("/v2/").await).await.contains("does not know the owner of this API key any more"));
}

#[tokio::test]
async fn keys_that_are_switched_off_open_nothing() {
    let mut system = demonstration().await;
    let alice = system.signed_in("alice").await;
    let (key, _) = alice.make_key("a").await;
    let api = Api::basic(&system.url, "alice", &key);
    let token = api.with_token(&[]).await;
    assert_eq!(token.get("/v2/").await.status(), StatusCode::OK);
    system.configure(|config| config["http"]["auth"]["apikey"] = json!(false));
    system.restart_proxy().await;
    for api in [&api, &token, &api.with(Credential::Bearer(key.clone()))] {
        assert_eq!(api.get("/v2/").await.status(), StatusCode::UNAUTHORIZED);
    }
    assert_eq!(api.ask_token(&[]).await.status(), StatusCode::UNAUTHORIZED);
}
