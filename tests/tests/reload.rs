//! What changes while the proxy runs, and the rules that can be asked.

use std::process::Command;

use berth_tests::{
    api::{Api, Credential, error_of},
    images::Image,
    process::wait_for,
    system::{Setup, System, binary},
    tools::{must, run},
};
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

fn rules(actions: &[&str]) -> Value {
    json!({"repositories": {"**": {"policies": [{"users": ["alice"], "actions": actions}]}}})
}

async fn alice(access_control: Value) -> (System, Api) {
    let system = System::start(Setup { access_control, ..Setup::default() }).await;
    let (key, _) = system.signed_in("alice").await.make_key("a").await;
    let api = Api::basic(&system.url, "alice", &key);
    (system, api)
}

fn hang_up(system: &System) {
    must(Command::new("kill").args(["-HUP", &system.proxy.id().to_string()]));
}

#[tokio::test]
async fn new_rules_are_taken_without_dropping_a_connection_and_bad_ones_are_refused_whole() {
    let (system, api) = alice(rules(&["read", "create", "update"])).await;
    api.must_push("r", "1", &Image::new(1, 100)).await;
    // A push that is under way when the rules change.
    let (sender, receiver) = tokio::sync::mpsc::channel::<Result<Vec<u8>, std::io::Error>>(1);
    let stream = futures_util::stream::unfold(receiver, async |mut receiver| Some((receiver.recv().await?, receiver)));
    let address = api.start_upload("r").await;
    let chunk = api.request(Method::PATCH, &address).body(reqwest::Body::wrap_stream(Box::pin(stream)));
    let chunk = tokio::spawn(chunk.send());
    sender.send(Ok(b"first".to_vec())).await.unwrap();
    let upload = system.folder.join("registry/uploads").join(address.rsplit('/').next().unwrap()).join("data");
    wait_for("the first bytes", async || upload.metadata().is_ok_and(|m| m.len() == 5).then_some(())).await;

    system.configure(|config| config["http"]["accessControl"] = rules(&["read"]));
    hang_up(&system);
    wait_for("the new rules", async || {
        (api.post("/v2/r/blobs/uploads/").await.status() == StatusCode::FORBIDDEN).then_some(())
    })
    .await;
    assert_eq!(api.get("/v2/r/manifests/1").await.status(), StatusCode::OK);
    drop(sender);
    assert_eq!(chunk.await.unwrap().unwrap().status(), StatusCode::ACCEPTED);

    system.configure(|config| {
        config["http"]["accessControl"] = json!({"repositories": {"**": {"policies": [
            {"users": ["alice"], "actions": ["read", "create"], "conditions": [{"expression": "req.tag =="}]},
        ]}}});
    });
    hang_up(&system);
    wait_for("the refusal", async || {
        let printed = system.proxy.printed();
        let expected = "http.accessControl.repositories.**.policies[0].conditions[0].expression: is no CEL expression";
        (printed.contains(expected) && printed.contains("what was goes on")).then_some(())
    })
    .await;
    assert_eq!(api.get("/v2/r/manifests/1").await.status(), StatusCode::OK);
    assert_eq!(api.post("/v2/r/blobs/uploads/").await.status(), StatusCode::FORBIDDEN);
    // A changed file is noticed without a signal, too. What can't be taken over is named.
    system.configure(|config| {
        config["http"]["accessControl"] = rules(&["read", "create"]);
        config["http"]["externalUrl"] = json!("https://elsewhere.company");
        config["sidecar"]["trustedProxies"] = json!(["10.0.0.0/8"]);
    });
    wait_for("the next rules", async || {
        (api.post("/v2/r/blobs/uploads/").await.status() == StatusCode::ACCEPTED).then_some(())
    })
    .await;
    let waiting =
        "waiting for a restart of the proxy: http.externalUrl, http.auth.secureSession, sidecar.trustedProxies";
    system.proxy.prints(waiting).await;
}

#[tokio::test]
async fn a_condition_that_does_not_hold_says_so_to_the_client() {
    let message = "tags are v and a number here";
    let (_system, api) = alice(json!({"repositories": {"**": {"policies": [
        {"users": ["alice"], "actions": ["read"]},
        {"users": ["alice"], "actions": ["create", "update"], "conditions": [
            {"expression": "req.reference == '' || req.referenceType == 'digest' || req.tag.matches('^v[0-9]+$')",
             "message": message},
        ]},
    ]}}}))
    .await;
    let image = Image::new(1, 100);
    api.must_push("r", "v1", &image).await;
    for api in [api.clone(), api.with_token(&["repository:r:pull,push"]).await] {
        assert_eq!(api.push_manifest("r", "v2", &image.manifest).await.unwrap().status(), StatusCode::CREATED);
        let answer = api.push_manifest("r", "latest", &image.manifest).await.unwrap();
        assert!(!answer.status().is_success());
        let body: Value = answer.json().await.unwrap();
        let message = body["errors"][0]["message"].as_str().unwrap();
        assert!(message.ends_with("tags are v and a number here"), "{message}");
    }
}

#[tokio::test]
async fn the_rules_can_be_asked_and_say_which_one_decides() {
    let (system, _) = alice(json!({
        "groups": {"release": {"users": ["carol"]}},
        "repositories": {
            "team/**": {
                "policies": [
                    {"groups": ["dev", "release"], "actions": ["read", "create"]},
                    {"users": ["dave"], "actions": ["update"], "conditions": [{"expression": "req.tag != 'latest'"}]},
                ],
                "defaultPolicy": ["read"],
            },
            "public/*": {"anonymousPolicy": ["read"]},
        },
        "adminPolicy": {"users": ["root"], "actions": ["delete"]},
    }))
    .await;
    let can = |arguments: &[&str]| {
        let mut command = Command::new(binary("berth-proxy"));
        run(command.arg("can").arg(system.config()).args(arguments))
    };
    for (arguments, success, expected) in [
        (&["--user", "bob", "--group", "dev", "create", "team/x:1"][..], true, "team/**.policies[0]"),
        (&["--user", "carol", "create", "team/x"], true, "team/**.policies[0]"),
        (&["--user", "bob", "read", "team/x"], true, "team/**.defaultPolicy"),
        (&["--user", "bob", "create", "team/x"], false, "team/** grants no create"),
        (&["--user", "dave", "update", "team/x:v1"], true, "team/**.policies[1]"),
        (&["--user", "dave", "update", "team/x:latest"], false, "req.tag != 'latest' does not hold"),
        (&["--user", "root", "delete", "team/x"], true, "http.accessControl.adminPolicy"),
        (&["read", "public/x"], true, "public/*.anonymousPolicy"),
        (&["read", "elsewhere"], false, "no pattern of http.accessControl.repositories matches"),
        (&["--user", "x", "pull", "a"], false, "pull is not an action"),
        (&["--user", "x", "read", "A"], false, "A: "),
    ] {
        let outcome = can(arguments);
        assert_eq!(outcome.success, success, "{arguments:?}: {}", outcome.printed);
        assert!(outcome.printed.contains(expected), "{arguments:?}: {}", outcome.printed);
    }
}

#[tokio::test]
async fn what_is_counted_is_for_whom_the_rules_name() {
    let mut rules = rules(&["read"]);
    rules["metrics"] = json!({"users": ["alice"]});
    let (system, api) = alice(rules).await;
    let (bob, _) = system.signed_in("bob").await.make_key("b").await;
    let text = api.get("/metrics").await.text().await.unwrap();
    let logged_in = "berth_requests_total{credential=\"api_key\",operation=\"metrics\",status=\"200\"} 1";
    let again = api.get("/metrics").await.text().await.unwrap();
    assert!(text.contains("berth_requests_total") && again.contains(logged_in), "{again}");
    let bob = Api::basic(&system.url, "bob", &bob);
    assert_eq!(error_of(bob.get("/metrics").await).await, (403, "DENIED".to_owned()));
    assert_eq!(api.with(Credential::None).get("/metrics").await.status(), StatusCode::UNAUTHORIZED);
    system.configure(|config| config["http"]["accessControl"]["metrics"]["anonymousPolicy"] = json!(["read"]));
    wait_for("the new rules", async || {
        (api.with(Credential::None).get("/metrics").await.status() == StatusCode::OK).then_some(())
    })
    .await;
}
