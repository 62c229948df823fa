//! The challenge and the token service, as clients need them.

use berth_tests::{
    api::{Api, Credential, error_of, header_of},
    images::{Image, digest},
    process::wait_for,
    system::{Setup, System, demonstration_rules},
};
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

async fn demonstration() -> (System, Api, Api) {
    let setup = Setup { access_control: demonstration_rules(), ..Setup::default() };
    let system = System::start(setup).await;
    let (alice, _) = system.signed_in("alice").await.make_key("a").await;
    let (bob, _) = system.signed_in("bob").await.make_key("b").await;
    let (alice, bob) = (Api::basic(&system.url, "alice", &alice), Api::basic(&system.url, "bob", &bob));
    (system, alice, bob)
}

#[tokio::test]
async fn nobody_gets_one_bearer_challenge_that_is_always_the_same() {
    let (system, alice, _) = demonstration().await;
    alice.must_push("public/x", "1", &Image::new(1, 100)).await;
    let nobody = alice.with(Credential::None);
    let realm = format!("Bearer realm=\"{}/zot/auth/token\",service=\"{}\"", system.url, system.authority());
    let answer = nobody.get("/v2/").await;
    assert_eq!((answer.status(), header_of(&answer, "www-authenticate")), (StatusCode::UNAUTHORIZED, realm.clone()));
    // Never built from Host, which would send passwords elsewhere.
    let request = nobody.request(Method::GET, "/v2/").header("host", "evil.example");
    assert_eq!(header_of(&request.send().await.unwrap(), "www-authenticate"), realm);
    // podman's way to say nobody.
    let empty = alice.with(Credential::Basic(String::new(), String::new())).get("/v2/").await;
    assert_eq!(header_of(&empty, "www-authenticate"), realm);

    let answer = nobody.get("/v2/private/x/manifests/1").await;
    let expected = format!("{realm},scope=\"repository:private/x:pull\"");
    assert_eq!(header_of(&answer, "www-authenticate"), expected);
    let answer = nobody.post("/v2/private/x/blobs/uploads/").await;
    let expected = format!("{realm},scope=\"repository:private/x:pull,push\"");
    assert_eq!(header_of(&answer, "www-authenticate"), expected);
    // What is public is simply served.
    assert_eq!(nobody.get("/v2/public/x/manifests/1").await.status(), StatusCode::OK);
    // A browser would show its own password box.
    let request = nobody.request(Method::GET, "/v2/").header("x-zot-api-client", "zot-ui");
    let answer = request.send().await.unwrap();
    assert!(answer.status() == StatusCode::UNAUTHORIZED && !answer.headers().contains_key("www-authenticate"));
}

#[tokio::test]
async fn the_error_in_the_challenge_says_whether_another_token_helps() {
    let (_system, alice, bob) = demonstration().await;
    let made_up = alice.with(Credential::Bearer("made.up.token".to_owned())).get("/v2/").await;
    assert_eq!(made_up.status(), StatusCode::UNAUTHORIZED);
    assert!(header_of(&made_up, "www-authenticate").ends_with(",error=\"invalid_token\""));
    let small = alice.with_token(&["repository:shared/x:pull"]).await.post("/v2/shared/x/blobs/uploads/").await;
    assert_eq!(small.status(), StatusCode::UNAUTHORIZED);
    let challenge = header_of(&small, "www-authenticate");
    assert!(
        challenge.ends_with(",scope=\"repository:shared/x:pull,push\",error=\"insufficient_scope\""),
        "{challenge}"
    );
    // No token helps whom the rules don't let: with every credential, and to HEAD too.
    let token = bob.with_token(&["repository:shared/x:pull"]).await;
    for bob in [&bob, &token] {
        assert_eq!(error_of(bob.post("/v2/shared/x/blobs/uploads/").await).await, (403, "DENIED".to_owned()));
        assert_eq!(bob.head("/v2/private/x/manifests/1").await.status(), StatusCode::FORBIDDEN);
    }
    // Two credentials: which one would count?
    let request = alice.request(Method::GET, "/v2/").header("authorization", "Bearer x");
    assert_eq!(request.send().await.unwrap().status(), StatusCode::BAD_REQUEST);
}

#[tokio::test]
async fn a_token_carries_what_the_rules_grant_of_what_was_asked() {
    let (_system, alice, bob) = demonstration().await;
    let answer = bob.ask_token(&["repository:shared/x:pull,push", "repository:private/y:pull"]).await;
    assert_eq!((answer.status(), header_of(&answer, "cache-control").as_str()), (StatusCode::OK, "no-store"));
    let body: Value = answer.json().await.unwrap();
    assert_eq!(body["token"], body["access_token"]);
    assert_eq!(body["expires_in"], 900);
    assert!(body.get("issued_at").is_none() && body.get("refresh_token").is_none());

    let form = [
        ("grant_type", "password"),
        ("service", "x"),
        ("client_id", "test"),
        ("username", "alice"),
        ("scope", "repository:a:pull,push repository:b:*"),
    ];
    let Credential::Basic(_, password) = alice.credential() else { panic!("alice shows a key") };
    let post = async |password: &str| {
        let fields = form.iter().copied().chain([("password", password)]).collect::<Vec<_>>();
        alice.with(Credential::None).request(Method::POST, "/zot/auth/token").form(&fields).send().await.unwrap()
    };
    let body: Value = post(password).await.json().await.unwrap();
    assert_eq!(body["scope"], "repository:a:pull,push repository:b:pull,push,delete");
    assert_eq!(error_of(post("zak_wrong").await).await, (401, "UNAUTHORIZED".to_owned()));
    let wrong = alice.with(Credential::Basic("alice".to_owned(), "wrong".to_owned()));
    assert_eq!(wrong.ask_token(&[]).await.status(), StatusCode::UNAUTHORIZED);
    assert_eq!(wrong.get("/v2/").await.status(), StatusCode::UNAUTHORIZED);
}

#[tokio::test]
async fn a_login_asks_for_no_scope_and_its_token_opens_the_ping() {
    let (_system, alice, _) = demonstration().await;
    let token = alice.with_token(&[]).await;
    assert_eq!(token.get("/v2/").await.status(), StatusCode::OK);
    assert_eq!(token.get("/v2/shared/x/tags/list").await.status(), StatusCode::UNAUTHORIZED);
    // A token is no way to get a token that lives longer.
    assert_eq!(token.ask_token(&[]).await.status(), StatusCode::UNAUTHORIZED);
}

#[tokio::test]
async fn an_anonymous_token_opens_what_is_public_and_nothing_else() {
    let (_system, alice, _) = demonstration().await;
    alice.must_push("public/x", "1", &Image::new(2, 100)).await;
    alice.must_push("private/x", "1", &Image::new(3, 100)).await;
    let nobody = alice.with(Credential::None);
    let token = nobody.with_token(&["repository:public/x:pull,push", "repository:private/x:pull"]).await;
    assert_eq!(token.get("/v2/public/x/manifests/1").await.status(), StatusCode::OK);
    assert_eq!(token.get("/v2/private/x/manifests/1").await.status(), StatusCode::UNAUTHORIZED);
    assert_eq!(token.post("/v2/public/x/blobs/uploads/").await.status(), StatusCode::UNAUTHORIZED);
}

#[tokio::test]
async fn a_token_stops_with_the_key_that_it_was_made_of() {
    let system = System::start(Setup::default()).await;
    let person = system.signed_in("alice").await;
    let (key, id) = person.make_key("short").await;
    let api = Api::basic(&system.url, "alice", &key);
    let token = api.with_token(&["repository:a:pull,push"]).await;
    assert_eq!(token.get("/v2/").await.status(), StatusCode::OK);
    person.revoke_key(&id).await;
    assert_eq!(error_of(token.get("/v2/").await).await, (401, "UNAUTHORIZED".to_owned()));
    assert_eq!(api.get("/v2/").await.status(), StatusCode::UNAUTHORIZED);
    assert_eq!(api.ask_token(&[]).await.status(), StatusCode::UNAUTHORIZED);
}

#[tokio::test]
async fn a_refusal_comes_before_the_body_is_read() {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let (system, _, _) = demonstration().await;
    let mut stream = tokio::net::TcpStream::connect(system.authority()).await.unwrap();
    // Ten gigabytes are announced, and none of them is sent.
    let request = format!(
        "POST /v2/private/x/blobs/uploads/?digest=sha256:{} HTTP/1.1\r\nHost: x\r\nContent-Length: 10737418240\r\n\
         Expect: 100-continue\r\n\r\n",
        "0".repeat(64)
    );
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 401 ") && answer.contains("onnection: close"), "{answer}");
}

#[tokio::test]
async fn a_push_goes_on_to_its_manifest_when_its_token_has_run_out() {
    let sidecar = json!({"tokenLifetime": "3s"});
    let system = System::start(Setup { sidecar, ..Setup::default() }).await;
    let person = system.signed_in("alice").await;
    let (key, id) = person.make_key("a").await;
    let alice = Api::basic(&system.url, "alice", &key);
    let image = Image::new(1, 100_000);
    alice.push_blob("a/b", &image.config).await.unwrap();
    let scopes = ["repository:a/b:pull,push,delete", "repository:other:pull,push"];
    let (token, bystander) = (alice.with_token(&scopes).await, alice.with_token(&scopes).await);
    let upload = token.start_upload("a/b").await;
    wait_for("the end of the token", async || {
        (token.get("/v2/a/b/tags/list").await.status() == StatusCode::UNAUTHORIZED).then_some(())
    })
    .await;
    let and = if upload.contains('?') { '&' } else { '?' };
    let end = format!("{upload}{and}digest={}", digest(&image.layer));
    let ended = token.request(Method::PUT, &end).body(image.layer.clone()).send().await.unwrap();
    assert_eq!(ended.status(), StatusCode::CREATED);
    // Nobody else's token, nowhere else, and nothing else.
    for (api, repository) in [(&bystander, "a/b"), (&token, "other")] {
        let answer = api.push_manifest(repository, "1", &image.manifest).await.unwrap();
        assert_eq!(answer.status(), StatusCode::UNAUTHORIZED, "{repository}");
    }
    assert_eq!(token.delete("/v2/a/b/manifests/1").await.status(), StatusCode::UNAUTHORIZED);
    let pushed = token.push_manifest("a/b", "1", &image.manifest).await.unwrap();
    assert_eq!(pushed.status(), StatusCode::CREATED);
    assert_eq!(alice.get("/v2/a/b/manifests/1").await.status(), StatusCode::OK);
    // What it was made of is asked for all the same.
    person.revoke_key(&id).await;
    let revoked = token.push_manifest("a/b", "2", &image.manifest).await.unwrap();
    assert_eq!(revoked.status(), StatusCode::UNAUTHORIZED);
}
