//! Every way to prove who one is, side by side.

use std::fs;

use berth_tests::{
    api::{Api, Credential, error_of, header_of},
    certified::Provider,
    images::Image,
    person::Person,
    process::{Process, free_port, wait_for},
    stand_in::{access_token, signed, signed_with},
    system::{CLIENT_ID, Setup, System, answers, demonstration_rules, stand_in},
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
    assert_eq!(token.get("/v2/shared/x/manifests/1").await.status(), StatusCode::FORBIDDEN);
    // No longer than the answer of authentik is believed.
    let answer: Value = robot.ask_token(&[]).await.json().await.unwrap();
    assert!((60..=300).contains(&answer["expires_in"].as_i64().unwrap()), "{answer}");

    for (user, password) in [("ci-robot", "wrong"), ("alice", "ci-robot-app-password"), ("ci-robot", "")] {
        let wrong = Api::basic(&system.url, user, password).get("/v2/").await;
        assert_eq!(wrong.status(), StatusCode::UNAUTHORIZED, "{user}");
        let message = message(wrong).await;
        assert!(
            message.contains("the user name or the password is wrong") && message.contains("client_credentials"),
            "{message}"
        );
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
        let mut claims =
            json!({"aud": CLIENT_ID, "azp": CLIENT_ID, "uid": "x", "sub": "1", "preferred_username": "alice"});
        claims.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        claims
    };
    for (claims, expected) in [
        (alice(json!({"aud": "somebody-else"})), "made for somebody-else, and not for berth"),
        (alice(json!({"azp": "somebody-else"})), "made for somebody-else (azp), and not for berth"),
        (alice(json!({"exp": now - 100})), "has expired"),
        (alice(json!({"nbf": now + 1000})), "not valid yet"),
        (alice(json!({"iss": "https://evil.example/"})), "neither a provider of this registry"),
        (alice(json!({"events": {"http://schemas.openid.net/event/backchannel-logout": {}}})), "logout token"),
        (json!({"aud": CLIENT_ID, "azp": CLIENT_ID, "uid": "x", "sub": "1"}), "claimMapping.username"),
        // What stands in the logout URL.
        (json!({"aud": CLIENT_ID, "sub": "1", "preferred_username": "alice"}), "can't be told from an ID token"),
        (alice(json!({"at_hash": "x"})), "can't be told from an ID token"),
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

/// The ID token that stands in the address of the provider's page for signing out.
async fn id_token_of(person: &Person, system: &System) -> String {
    let answer = person.http.post(format!("{}/zot/auth/logout", system.url)).send().await.unwrap();
    let end: Value = answer.json().await.unwrap();
    let end = url::Url::parse(end["endSessionUrl"].as_str().unwrap()).unwrap();
    end.query_pairs().find(|(name, _)| name == "id_token_hint").unwrap().1.into_owned()
}

async fn opens_nothing(system: &System, token: &str) {
    let by_password = Api::basic(&system.url, "alice", token);
    for api in [Api::new(&system.url, Credential::Bearer(token.to_owned())), by_password.clone()] {
        let answer = api.get("/v2/").await;
        assert_eq!(answer.status(), StatusCode::UNAUTHORIZED);
        let message = message(answer).await;
        assert!(message.contains("can't be told from an ID token") && message.contains("use an API key"), "{message}");
        assert_eq!(api.post("/v2/r/blobs/uploads/").await.status(), StatusCode::UNAUTHORIZED);
    }
    let bought = by_password.get("/zot/auth/token?service=x&offline_token=true").await;
    assert_eq!(bought.status(), StatusCode::UNAUTHORIZED);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_id_token_of_a_sign_in_opens_nothing() {
    let system = System::start(Setup::default()).await;
    let alice = system.signed_in("alice").await;
    opens_nothing(&system, &id_token_of(&alice, &system).await).await;

    let folder = tempfile::tempdir().unwrap();
    let port = free_port();
    let url = format!("http://localhost:{port}");
    let Some(provider) = Provider::start(free_port(), &url, folder.path(), &[]).await else { return };
    let setup = Setup { issuer: Some(provider.issuer.clone()), ..Setup::default() };
    let system = System::start_in(folder.path(), port, setup).await;
    let alice = Person::new(&system.url);
    provider.sign_in(&alice, "alice").await;
    opens_nothing(&system, &id_token_of(&alice, &system).await).await;
}

#[tokio::test]
async fn of_a_provider_only_what_is_positively_an_access_token_is_taken() {
    let system = System::start(Setup::default()).await;
    let claims = |more: Value| {
        let mut claims = json!({"aud": CLIENT_ID, "sub": "1", "preferred_username": "carol"});
        claims.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        claims
    };
    for (who, header, more, is_taken) in [
        ("authentik, access", json!({}), json!({"azp": CLIENT_ID, "uid": "x", "nonce": "n"}), true),
        ("authentik, ID", json!({}), json!({"nonce": "n"}), false),
        ("authentik before 2026.8, ID", json!({}), json!({"azp": CLIENT_ID, "uid": "x", "at_hash": "h"}), false),
        ("dex, both", json!({}), json!({"at_hash": "h", "c_hash": "c", "email": "c@x", "email_verified": true}), false),
        ("oidc-provider, ID", json!({}), json!({"at_hash": "h", "auth_time": 1}), false),
        ("oidc-provider, JWT access", json!({"typ": "at+jwt"}), json!({"client_id": CLIENT_ID, "jti": "x"}), true),
        ("Keycloak, access", json!({}), json!({"typ": "Bearer", "azp": CLIENT_ID}), true),
        ("Keycloak, ID", json!({}), json!({"typ": "ID", "azp": CLIENT_ID}), false),
        ("Keycloak, refresh", json!({}), json!({"typ": "Refresh", "azp": CLIENT_ID}), false),
    ] {
        let token = signed_with(&system.issuer, header, claims(more)).await;
        if is_taken {
            let api = Api::new(&system.url, Credential::Bearer(token));
            assert_eq!(api.get("/v2/").await.status(), StatusCode::OK, "{who}");
            // And buys nothing that outlives it.
            let bought: Value = api.get("/zot/auth/token?service=x&offline_token=true").await.json().await.unwrap();
            assert!(bought.get("refresh_token").is_none(), "{who}");
        } else {
            opens_nothing(&system, &token).await;
        }
    }
}

#[tokio::test]
async fn what_a_jwt_calls_critical_must_be_understood_and_its_times_may_be_fractions() {
    let system = System::start(Setup::default()).await;
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs_f64();
    let claims = |more: Value| {
        let mut claims =
            json!({"aud": CLIENT_ID, "azp": CLIENT_ID, "uid": "x", "sub": "1", "preferred_username": "carol"});
        claims.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        claims
    };
    let asked = async |header: Value, more: Value| {
        let token = signed_with(&system.issuer, header, claims(more)).await;
        Api::new(&system.url, Credential::Bearer(token)).get("/v2/").await
    };
    let critical = asked(json!({"crit": ["b64"], "b64": true}), json!({})).await;
    assert_eq!(critical.status(), StatusCode::UNAUTHORIZED);
    assert!(message(critical).await.contains("crit"));
    let times = json!({"exp": now + 100.5, "nbf": now - 0.5, "iat": now - 0.25});
    assert_eq!(asked(json!({}), times).await.status(), StatusCode::OK);
    let over = asked(json!({}), json!({"exp": now - 100.5})).await;
    assert!(message(over).await.contains("expired"));
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
        (json!({"aud": "another"}), "made for another, and not for registry.company"),
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
    system.proxy.prints("what was goes on").await;
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
    assert!(alice.get("/keys").await.text().await.unwrap().contains("push · team/**"));
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
    let robot = Api::basic(&system.url, "ci-robot", "ci-robot-app-password");
    let guess = robot.with(Credential::Basic("ci-robot".to_owned(), "another guess".to_owned()));
    let waits = async || has_to_wait(&guess.get("/v2/").await).then_some(());
    wait_for("another guess to wait", waits).await;
    assert_eq!(robot.get("/v2/").await.status(), StatusCode::TOO_MANY_REQUESTS);
    assert_eq!(alice.get("/v2/").await.status(), StatusCode::OK);
    let jwt = access_token(&system.issuer, CLIENT_ID, "ci-robot").await;
    assert_eq!(Api::basic(&system.url, "ci-robot", &jwt).get("/v2/").await.status(), StatusCode::OK);
}

#[tokio::test]
async fn a_wrong_password_and_an_unknown_user_are_answered_alike() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("htpasswd");
    fs::write(&path, format!("dave:{}\n", bcrypt::hash("right", 5).unwrap())).unwrap();
    let auth = json!({"htpasswd": {"path": path}});
    let mut system = System::start(Setup { auth, ..Setup::default() }).await;
    for with_provider in [true, false] {
        if !with_provider {
            system.configure(|config| drop(config["http"]["auth"].as_object_mut().unwrap().remove("openid")));
            system.restart_proxy().await;
        }
        let mut messages = Vec::new();
        for user in ["dave", "nobody"] {
            let began = std::time::Instant::now();
            let answer = Api::basic(&system.url, user, "wrong").get("/v2/").await;
            assert_eq!(answer.status(), StatusCode::UNAUTHORIZED, "{user}");
            // However long it takes to find out.
            assert!(began.elapsed() >= std::time::Duration::from_secs(1), "{user}: {:?}", began.elapsed());
            messages.push(message(answer).await);
        }
        assert_eq!(messages[0], messages[1]);
    }
    assert_eq!(Api::basic(&system.url, "dave", "right").get("/v2/").await.status(), StatusCode::OK);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_office_of_which_all_sign_in_at_once_is_let_in() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("htpasswd");
    let users = (0..24).map(|i| format!("user{i}:{}\n", bcrypt::hash(format!("secret{i}"), 4).unwrap()));
    fs::write(&path, users.collect::<String>()).unwrap();
    let system = System::start(Setup { auth: json!({"htpasswd": {"path": path}}), ..Setup::default() }).await;
    let all = (0..24).map(|i| {
        let user = Api::basic(&system.url, &format!("user{i}"), &format!("secret{i}"));
        async move { user.get("/v2/").await.status() }
    });
    for status in futures_util::future::join_all(all).await {
        assert_eq!(status, StatusCode::OK);
    }
}

/// Whether an answer says to wait, and for more than a moment.
fn has_to_wait(answer: &reqwest::Response) -> bool {
    let seconds = || header_of(answer, "retry-after").parse::<u64>().unwrap();
    answer.status() == StatusCode::TOO_MANY_REQUESTS && seconds() >= 2
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_made_no_mistake_never_waits_for_those_who_guess_at_their_name() {
    let system = demonstration().await;
    let from = |address: &str| {
        let address: std::net::IpAddr = address.parse().unwrap();
        reqwest::Client::builder().local_address(address).build().unwrap()
    };
    let ask = async |client: &reqwest::Client, password: &str| {
        let request = client.get(format!("{}/v2/", system.url)).basic_auth("ci-robot", Some(password));
        request.send().await.unwrap()
    };
    // Two attackers, until both have to wait.
    let attackers = [from("127.0.0.3"), from("127.0.0.4")];
    wait_for("the attackers to be limited", async || {
        let guesses = (0..8).flat_map(|i| attackers.iter().map(move |attacker| (attacker, format!("guess {i}"))));
        let guesses = guesses.map(|(attacker, guess)| async move { ask(attacker, &guess).await });
        let answers = futures_util::future::join_all(guesses).await;
        answers.iter().filter(|answer| answer.status() == StatusCode::TOO_MANY_REQUESTS).count().checked_sub(12)
    })
    .await;
    let waits = async || has_to_wait(&ask(&attackers[0], "guess").await).then_some(());
    wait_for("another guess to wait", waits).await;
    assert_eq!(ask(&attackers[0], "ci-robot-app-password").await.status(), StatusCode::TOO_MANY_REQUESTS);
    // The owner, who has made no mistake, is let in at once.
    assert_eq!(ask(&from("127.0.0.2"), "ci-robot-app-password").await.status(), StatusCode::OK);
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
