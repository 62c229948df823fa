//! An identity provider pushes who is there and who isn't (SCIM): as authentik does it, and as others test it.

use std::{fs, process::Command};

use berth_tests::{
    api::{Api, Credential},
    person::Person,
    process::wait_for,
    system::{Setup, System, demonstration_rules},
    tools,
};
use reqwest::{Method, RequestBuilder, Response, StatusCode};
use serde_json::{Value, json};

use crate::terminal::{Machine, begin, decide, token};

pub const TOKEN: &str = "the-token-that-the-identity-provider-pushes-with";

/// Somebody who pushes.
pub struct Pusher {
    http: reqwest::Client,
    base: String,
    token: String,
}

impl Pusher {
    pub fn new(url: &str, token: &str) -> Self {
        Self { http: reqwest::Client::new(), base: format!("{url}/scim/v2"), token: token.to_owned() }
    }

    pub fn request(&self, method: Method, path: &str) -> RequestBuilder {
        self.http.request(method, format!("{}{path}", self.base)).bearer_auth(&self.token)
    }

    pub async fn send(&self, method: Method, path: &str, body: Value) -> Response {
        let request = self.request(method, path).header("content-type", "application/scim+json");
        request.body(body.to_string()).send().await.unwrap()
    }

    pub async fn get(&self, path: &str) -> Value {
        let answer = self.request(Method::GET, path).send().await.unwrap();
        assert_eq!(answer.status(), StatusCode::OK, "{path}");
        answer.json().await.unwrap()
    }

    /// As authentik writes a user; gives its id here.
    pub async fn push_user(&self, name: &str, sub: &str) -> String {
        let answer = self.send(Method::POST, "/Users", user(name, sub, true)).await;
        let (status, body) = (answer.status(), answer.json::<Value>().await.unwrap());
        assert_eq!(status, StatusCode::CREATED, "{body}");
        body["id"].as_str().unwrap().to_owned()
    }

    pub async fn set_active(&self, id: &str, name: &str, sub: &str, active: bool) {
        let answer = self.send(Method::PUT, &format!("/Users/{id}"), user(name, sub, active)).await;
        assert_eq!(answer.status(), StatusCode::OK);
    }

    pub async fn push_group(&self, name: &str) -> String {
        let group = json!({"schemas": ["urn:ietf:params:scim:schemas:core:2.0:Group"], "displayName": name, "externalId": format!("g-{name}")});
        let answer = self.send(Method::POST, "/Groups", group).await;
        assert_eq!(answer.status(), StatusCode::CREATED);
        answer.json::<Value>().await.unwrap()["id"].as_str().unwrap().to_owned()
    }

    pub async fn patch_members(&self, group: &str, op: &str, user: &str) {
        let patch = json!({"schemas": ["urn:ietf:params:scim:api:messages:2.0:PatchOp"],
            "Operations": [{"op": op, "path": "members", "value": [{"value": user}]}]});
        let answer = self.send(Method::PATCH, &format!("/Groups/{group}"), patch).await;
        assert_eq!(answer.status(), StatusCode::OK, "{}", answer.text().await.unwrap());
    }
}

pub fn user(name: &str, sub: &str, active: bool) -> Value {
    json!({"schemas": ["urn:ietf:params:scim:schemas:core:2.0:User"], "externalId": sub, "userName": name, "displayName": name,
        "name": {"formatted": name, "familyName": " ", "givenName": name}, "photos": null, "locale": "en",
        "active": active, "emails": [{"value": format!("{name}@example.com"), "type": "other", "primary": true}]})
}

async fn pushed_to(scim: Value) -> (System, Pusher) {
    let mut access_control = demonstration_rules();
    access_control["repositories"]["dev/**"] =
        json!({"policies": [{"groups": ["berth-dev"], "actions": ["read", "create", "update"]}]});
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("scim-token");
    fs::write(&file, format!("{TOKEN}\n")).unwrap();
    let mut scim = scim;
    scim["tokenFile"] = json!(file);
    let system = System::start(Setup { access_control, provider: json!({"scim": scim}), ..Setup::default() }).await;
    drop(folder.keep());
    let pusher = Pusher::new(&system.url, TOKEN);
    (system, pusher)
}

/// The `sub` of somebody at the stand-in.
pub fn sub_of(user: &str) -> String {
    berth_tests::images::digest(user.as_bytes()).trim_start_matches("sha256:").to_owned()
}

async fn status(api: &Api, target: &str) -> StatusCode {
    api.get(target).await.status()
}

#[tokio::test]
async fn who_is_deactivated_is_out_with_all_they_have_and_back_when_they_are_back() {
    let (system, pusher) = pushed_to(json!({})).await;
    let bob = system.signed_in("bob").await;
    let (key, _) = bob.make_key("laptop").await;
    let by_key = Api::basic(&system.url, "bob", &key);
    let minted = by_key.with_token(&["repository:shared/x:pull"]).await;
    let of_provider = berth_tests::stand_in::access_token(&system.issuer, berth_tests::system::CLIENT_ID, "bob").await;
    let of_provider = Api::new(&system.url, Credential::Bearer(of_provider));
    let terminal = Machine::new();
    terminal.sign_in(system.authority(), &bob, &[]).await;
    let (_, secret) = terminal.get(system.authority());
    let by_terminal = Api::basic(&system.url, "bob", &secret);
    let minted_there = by_terminal.with_token(&["repository:shared/x:pull"]).await;
    let all = [
        ("/v2/", &by_key),
        ("/v2/shared/x/tags/list", &minted),
        ("/v2/", &of_provider),
        ("/v2/", &by_terminal),
        ("/v2/shared/x/tags/list", &minted_there),
    ];
    // authentik's sequence: what can you do, who is there, then each one.
    let told = pusher.get("/ServiceProviderConfig").await;
    assert_eq!((&told["patch"]["supported"], &told["filter"]["supported"]), (&json!(true), &json!(true)));
    assert_eq!(pusher.get("/Users?startIndex=1").await["totalResults"], json!(0));
    let id = pusher.push_user("bob", &sub_of("bob")).await;
    let again = pusher.send(Method::POST, "/Users", user("BOB", "another", true)).await;
    assert_eq!(again.status(), StatusCode::CONFLICT);
    let found = pusher.get("/Users?filter=userName%20eq%20%22bob%22").await;
    assert_eq!(found["Resources"][0]["id"], json!(id));
    for (target, api) in all {
        assert_ne!(status(api, target).await, StatusCode::UNAUTHORIZED);
    }
    // One that was let in, and hasn't heard of it, is out with the others.
    let unheard = begin(&system.url).await;
    decide(&bob, system.authority(), unheard["user_code"].as_str().unwrap(), "allow").await;
    pusher.set_active(&id, "bob", &sub_of("bob"), false).await;
    for (target, api) in all {
        let answer = api.get(target).await;
        assert_eq!(answer.status(), StatusCode::UNAUTHORIZED, "{target}");
        let why = answer.text().await.unwrap();
        assert!(why.contains("deactivated") || why.contains("was revoked"), "{target}: {why}");
    }
    terminal.age(system.authority());
    assert!(!terminal.ask("get", system.authority()).success);
    assert!(bob.get("/keys").await.text().await.unwrap().contains("SIGN IN WITH"));
    let refused = bob.sign_in("bob", "bob").await;
    assert_eq!(refused.status(), StatusCode::FORBIDDEN);
    assert!(refused.text().await.unwrap().contains("deactivated"));
    // Back: the keys work again, and a browser signs in again.
    pusher.set_active(&id, "bob", &sub_of("bob"), true).await;
    assert_eq!(status(&by_key, "/v2/").await, StatusCode::OK);
    assert!(bob.get("/keys").await.text().await.unwrap().contains("SIGN IN WITH"), "the session has ended for good");
    let grant = "urn:ietf:params:oauth:grant-type:device_code";
    let form = [("grant_type", grant), ("device_code", unheard["device_code"].as_str().unwrap())];
    let (status_of_poll, told) = token(&system.url, &form).await;
    assert_eq!((status_of_poll, &told["error"]), (StatusCode::BAD_REQUEST, &json!("expired_token")));
    let bob = system.signed_in("bob").await;
    assert!(bob.get("/keys").await.text().await.unwrap().contains("laptop"));
    // A terminal has ended for good, too.
    for (target, one) in [("/v2/", &by_terminal), ("/v2/shared/x/tags/list", &minted_there)] {
        assert_eq!(status(one, target).await, StatusCode::UNAUTHORIZED);
    }
    // Deleted is as out as deactivated, until they are pushed again.
    let deleted = pusher.request(Method::DELETE, &format!("/Users/{id}")).send().await.unwrap();
    assert_eq!(deleted.status(), StatusCode::NO_CONTENT);
    assert_eq!(status(&by_key, "/v2/").await, StatusCode::UNAUTHORIZED);
    let update = pusher.send(Method::PUT, &format!("/Users/{id}"), user("bob", &sub_of("bob"), true)).await;
    assert_eq!(update.status(), StatusCode::NOT_FOUND);
    pusher.push_user("bob", &sub_of("bob")).await;
    assert_eq!(status(&by_key, "/v2/").await, StatusCode::OK);
    system.proxy.prints("pushed by SCIM").await;
}

/// authentik is asked about an app password once in five minutes, and who was deactivated doesn't wait for that.
#[tokio::test]
async fn a_service_account_s_remembered_app_password_ends_with_its_deactivation() {
    let (system, pusher) = pushed_to(json!({})).await;
    let robot = Api::basic(&system.url, "ci-robot", berth_tests::stand_in::CI_PASSWORD);
    let minted = robot.with_token(&["repository:ci/x:pull"]).await;
    let id = pusher.push_user("ci-robot", &sub_of("ci-robot")).await;
    for active in [true, false, true] {
        pusher.set_active(&id, "ci-robot", &sub_of("ci-robot"), active).await;
        for (target, api) in [("/v2/", &robot), ("/v2/ci/x/tags/list", &minted)] {
            assert_eq!(status(api, target).await == StatusCode::UNAUTHORIZED, !active, "{target}: {active}");
        }
    }
}

#[tokio::test]
async fn pushed_groups_are_a_person_s_groups_at_once() {
    let (system, pusher) = pushed_to(json!({})).await;
    let bob = system.signed_in("bob").await;
    let (key, _) = bob.make_key("laptop").await;
    let by_key = Api::basic(&system.url, "bob", &key);
    assert_eq!(by_key.post("/v2/dev/x/blobs/uploads/").await.status(), StatusCode::FORBIDDEN);
    let id = pusher.push_user("bob", &sub_of("bob")).await;
    let group = pusher.push_group("berth-dev").await;
    assert_eq!(by_key.post("/v2/dev/x/blobs/uploads/").await.status(), StatusCode::FORBIDDEN);
    pusher.patch_members(&group, "add", &id).await;
    pusher.patch_members(&group, "add", &id).await;
    assert_eq!(by_key.post("/v2/dev/x/blobs/uploads/").await.status(), StatusCode::ACCEPTED);
    assert!(bob.get("/access").await.text().await.unwrap().contains("berth-dev"));
    let members = pusher.get(&format!("/Groups/{group}")).await;
    assert_eq!((members["members"].as_array().unwrap().len(), &members["members"][0]["value"]), (1, &json!(id)));
    assert_eq!(pusher.get(&format!("/Users/{id}")).await["groups"][0]["display"], json!("berth-dev"));
    // A group that claims still have, and that was pushed without them, isn't theirs any more.
    system.at_stand_in("groups/bob/late", json!({})).await;
    let bob = system.signed_in("bob").await;
    assert!(bob.get("/access").await.text().await.unwrap().contains("late"));
    pusher.push_group("late").await;
    assert!(!bob.get("/access").await.text().await.unwrap().contains("late"));
    pusher.patch_members(&group, "remove", &id).await;
    assert_eq!(by_key.post("/v2/dev/x/blobs/uploads/").await.status(), StatusCode::FORBIDDEN);
    // Who isn't there yet may be named, and is nobody.
    pusher.patch_members(&group, "add", "somebody-to-come").await;
    assert_eq!(by_key.post("/v2/dev/x/blobs/uploads/").await.status(), StatusCode::FORBIDDEN);
    // What stays as it is isn't written.
    let before = pusher.get(&format!("/Users/{id}")).await;
    pusher.set_active(&id, "bob", &sub_of("bob"), true).await;
    assert_eq!(pusher.get(&format!("/Users/{id}")).await["meta"], before["meta"]);
}

#[tokio::test]
async fn where_it_is_required_nobody_else_signs_in_and_names_link_where_subjects_cannot() {
    let (system, pusher) = pushed_to(json!({"required": true, "linkBy": "userName"})).await;
    let alice = Person::new(&system.url);
    let refused = alice.sign_in("alice", "alice").await;
    assert_eq!(refused.status(), StatusCode::FORBIDDEN);
    assert!(refused.text().await.unwrap().contains("has not pushed this user"));
    let id = pusher.push_user("Alice", "a-number-of-authentik-s").await;
    let alice = system.signed_in("alice").await;
    let (key, _) = alice.make_key("laptop").await;
    let by_key = Api::basic(&system.url, "alice", &key);
    assert_eq!(status(&by_key, "/v2/").await, StatusCode::OK);
    let patch = json!({"Operations": [{"op": "replace", "value": {"active": false}}]});
    assert_eq!(pusher.send(Method::PATCH, &format!("/Users/{id}"), patch).await.status(), StatusCode::OK);
    assert_eq!(status(&by_key, "/v2/").await, StatusCode::UNAUTHORIZED);
    assert!(alice.get("/keys").await.text().await.unwrap().contains("SIGN IN WITH"));
}

/// The page of the stand-in, as `./try.sh` shows it.
#[tokio::test]
async fn what_is_changed_at_the_stand_in_is_so_here_at_once() {
    let (system, pusher) = pushed_to(json!({})).await;
    system.at_stand_in("scim", json!({"url": pusher.base, "token": TOKEN})).await;
    assert_eq!(pusher.get("/Users").await["totalResults"], json!(3));
    let bob = system.signed_in("bob").await;
    let (key, _) = bob.make_key("laptop").await;
    let by_key = Api::basic(&system.url, "bob", &key);
    let change = async |change: &str| {
        let form = reqwest::Client::new().post(format!("{}/people", system.provider_origin()));
        let answer = form.form(&[("user", "bob"), ("change", change)]).send().await.unwrap();
        assert!(answer.status().is_success(), "{change}: {}", answer.text().await.unwrap());
    };
    change("join").await;
    assert!(bob.get("/access").await.text().await.unwrap().contains("dev "));
    change("leave").await;
    assert!(!bob.get("/access").await.text().await.unwrap().contains("dev "));
    change("deactivate").await;
    assert_eq!(status(&by_key, "/v2/").await, StatusCode::UNAUTHORIZED);
    change("activate").await;
    assert_eq!(status(&by_key, "/v2/").await, StatusCode::OK);
}

#[tokio::test]
async fn only_the_token_pushes_and_nothing_hostile_comes_through() {
    let (system, pusher) = pushed_to(json!({})).await;
    let alice = system.signed_in("alice").await;
    let (key, _) = alice.make_key("k").await;
    let targets = ["/ServiceProviderConfig", "/Schemas", "/ResourceTypes", "/Users", "/Groups", "/Users/x", "/Nothing"];
    for token in ["", "x", &key, &TOKEN[1..], &format!("{TOKEN}x")] {
        let other = Pusher::new(&system.url, token);
        for target in targets {
            let answer = other.request(Method::GET, target).send().await.unwrap();
            let status = answer.status();
            assert!(matches!(status.as_u16(), 401 | 429), "{target}: {status}");
        }
    }
    // A browser's session is none.
    assert_eq!(alice.get("/scim/v2/Users").await.status(), StatusCode::UNAUTHORIZED);
    assert_eq!(
        Api::new(&system.url, Credential::Bearer(TOKEN.to_owned())).get("/v2/").await.status(),
        StatusCode::UNAUTHORIZED
    );
    let id = pusher.push_user("carol", "carol-s-sub").await;
    let users = format!("/Users/{id}");
    for (method, path, body, expected) in [
        (Method::POST, "/Users", json!({"userName": ""}), 400),
        (Method::POST, "/Users", json!([]), 400),
        (Method::POST, "/Users", json!({"userName": "x".repeat(2000)}), 400),
        (Method::POST, "/Users", json!({"schemas": ["urn:other"], "userName": "x"}), 400),
        (Method::POST, "/Users", json!({"userName": "d", "emails": vec![json!({"value": "x"}); 200]}), 400),
        (Method::POST, "/Groups", json!({"displayName": "g", "members": ["x"]}), 400),
        (Method::POST, "/Nothing", json!({}), 404),
        (
            Method::PATCH,
            &users,
            json!({"Operations": [{"op": "replace", "path": "emails[type eq \"", "value": 1}]}),
            400,
        ),
        (Method::PATCH, &users, json!({"Operations": [{"op": "replace", "path": "id", "value": "x"}]}), 400),
        (Method::PUT, "/Users/none", json!({"userName": "x"}), 404),
        (Method::DELETE, "/Groups/none", json!({}), 404),
    ] {
        let answer = pusher.send(method, path, body.clone()).await;
        assert_eq!(answer.status().as_u16(), expected, "{path}: {body}");
        let error: Value = answer.json().await.unwrap();
        assert_eq!(error["status"], json!(expected.to_string()), "{error}");
    }
    for filter in ["userName", "userName eq", "userName eq \"", "((((", "a eq \"x\" or"] {
        let answer = pusher.request(Method::GET, "/Users").query(&[("filter", filter)]).send().await.unwrap();
        assert_eq!(answer.status(), StatusCode::BAD_REQUEST, "{filter}");
        assert_eq!(answer.json::<Value>().await.unwrap()["scimType"], json!("invalidFilter"));
    }
    let long = pusher.send(Method::POST, "/Users", json!({"userName": "x".repeat(2_000_000)})).await;
    assert_eq!(long.status(), StatusCode::PAYLOAD_TOO_LARGE);
    // A change on a version that is over isn't made; another token takes over when the file changes.
    let stale = pusher.request(Method::PUT, &users).header("if-match", "W/\"99\"").json(&user("carol", "s", true));
    assert_eq!(stale.send().await.unwrap().status(), StatusCode::PRECONDITION_FAILED);
    let config: Value = serde_json::from_slice(&fs::read(system.config()).unwrap()).unwrap();
    let file = config["http"]["auth"]["openid"]["providers"]["oidc"]["scim"]["tokenFile"].as_str().unwrap().to_owned();
    fs::write(file, "another-token-of-twenty-characters").unwrap();
    let other = Pusher::new(&system.url, "another-token-of-twenty-characters");
    wait_for("the new token", async || {
        let answer = other.request(Method::GET, "/Users").send().await.ok()?;
        (answer.status() == StatusCode::OK).then_some(())
    })
    .await;
    let over = pusher.request(Method::GET, "/Users").send().await.unwrap();
    assert!(matches!(over.status().as_u16(), 401 | 429));
    assert!(!system.proxy.printed().contains(TOKEN));
}

#[tokio::test]
async fn five_thousand_users_and_five_hundred_groups_are_synchronized_and_again_without_a_write() {
    let (system, pusher) = pushed_to(json!({})).await;
    let began = std::time::Instant::now();
    let mut ids = Vec::new();
    for i in 0..5000 {
        ids.push(pusher.push_user(&format!("user-{i:04}"), &format!("sub-{i}")).await);
    }
    let mut groups = Vec::new();
    for i in 0..500 {
        let group = pusher.push_group(&format!("group-{i:03}")).await;
        let operations: Vec<Value> = (0..20)
            .map(|k| json!({"op": "add", "path": "members", "value": [{"value": ids[(i * 10 + k) % 5000]}]}))
            .collect();
        let answer = pusher.send(Method::PATCH, &format!("/Groups/{group}"), json!({"Operations": operations})).await;
        assert_eq!(answer.status(), StatusCode::OK);
        groups.push(group);
    }
    println!("first synchronization: {:?}", began.elapsed());
    let database = |file: &str| fs::metadata(system.folder.join(file)).map_or(0, |file| file.len());
    println!("database {} kB, resident {} kB", database("proxy.db") / 1000, system.proxy.memory());
    let versions = async || {
        let mut versions = Vec::new();
        for start in (1..=5000).step_by(200) {
            let page = pusher.get(&format!("/Users?startIndex={start}&count=200")).await;
            assert_eq!(page["totalResults"], json!(5000));
            let all = page["Resources"].as_array().unwrap().clone();
            versions.extend(all.into_iter().map(|one| (one["id"].clone(), one["meta"]["version"].clone())));
        }
        versions
    };
    let before = versions().await;
    assert_eq!(before.len(), 5000);
    let began = std::time::Instant::now();
    for (i, id) in ids.iter().enumerate() {
        pusher.set_active(id, &format!("user-{i:04}"), &format!("sub-{i}"), true).await;
    }
    println!("the same again: {:?}", began.elapsed());
    assert_eq!(versions().await, before);
    assert_eq!(pusher.get(&format!("/Groups/{}", groups[7])).await["members"].as_array().unwrap().len(), 20);
    let found = pusher.get("/Users?filter=userName%20sw%20%22user-49%22%20and%20active%20eq%20true").await;
    assert_eq!(found["totalResults"], json!(100));
}

/// What the tools of others, which know nothing of us, say of it.
#[tokio::test]
async fn the_testers_of_others_find_nothing() {
    let (Some(tester), Some(sanity)) = (tools::find("scim2"), tools::find("scim-sanity")) else { return };
    let (system, _) = pushed_to(json!({})).await;
    let base = format!("{}/scim/v2", system.url);
    let header = format!("Authorization: Bearer {TOKEN}");
    let outcome = tools::run(Command::new(tester).args(["--url", &base, "--header", &header, "test", "--verbose"]));
    println!("{}", outcome.printed);
    assert!(outcome.success && outcome.printed.contains("SUCCESS"), "{}", outcome.printed);
    for finding in ["ERROR", "CRITICAL", "DEVIATION"] {
        assert!(!outcome.printed.contains(finding), "{finding}: {}", outcome.printed);
    }
    let arguments = ["probe", &base, "--token", TOKEN, "--i-accept-side-effects"];
    let outcome = tools::run(Command::new(sanity).args(arguments));
    println!("{}", outcome.printed);
    assert!(outcome.success, "{}", outcome.printed);
}
