//! Who may do what, seen from outside.

use std::process::Command;

use berth_tests::{
    api::{Api, Credential, error_of, header_of, location},
    images::{self, Image, digest},
    system::{Setup, System, demonstration_rules},
    tools::{self, run},
};
use reqwest::StatusCode;
use serde_json::{Value, json};

async fn people(rules: Value) -> (System, Api, Api) {
    let system = System::start(Setup { access_control: rules, ..Setup::default() }).await;
    let (alice, _) = system.signed_in("alice").await.make_key("a").await;
    let (bob, _) = system.signed_in("bob").await.make_key("b").await;
    let (alice, bob) = (Api::basic(&system.url, "alice", &alice), Api::basic(&system.url, "bob", &bob));
    (system, alice, bob)
}

async fn catalog(api: &Api, target: &str) -> (Vec<String>, Option<String>) {
    let answer = api.get(target).await;
    assert_eq!(answer.status(), StatusCode::OK);
    let link = answer.headers().get("link").map(|link| link.to_str().unwrap().to_owned());
    let body: Value = answer.json().await.unwrap();
    let names = body["repositories"].as_array().unwrap().iter().map(|name| name.as_str().unwrap().to_owned());
    let next = link.map(|link| link.trim_start_matches('<').split('>').next().unwrap().to_owned());
    (names.collect(), next)
}

#[tokio::test]
async fn a_second_user_reads_what_is_shared_and_sees_nothing_else() {
    let (system, alice, bob) = people(demonstration_rules()).await;
    let image = Image::new(1, 1000);
    for repository in ["shared/app", "secret/app"] {
        alice.must_push(repository, "1", &image).await;
    }
    assert_eq!(bob.get("/v2/shared/app/manifests/1").await.status(), StatusCode::OK);
    // What may not be read and what doesn't exist answer alike.
    let hidden = error_of(bob.get("/v2/secret/app/manifests/1").await).await;
    assert_eq!(hidden, error_of(bob.get("/v2/nothing/here/manifests/1").await).await);
    assert_eq!(hidden, (403, "DENIED".to_owned()));
    for denied in ["shared/app", "secret/app"] {
        let answer = bob.push(denied, "2", &image).await.unwrap();
        assert_eq!(error_of(answer).await, (403, "DENIED".to_owned()));
        let answer = bob.delete(&format!("/v2/{denied}/manifests/1")).await;
        assert_eq!(error_of(answer).await, (403, "DENIED".to_owned()));
    }
    assert_eq!(catalog(&bob, "/v2/_catalog").await.0, ["shared/app"]);
    let page = system.signed_in("bob").await.get("/").await.text().await.unwrap();
    assert!(page.contains("/shared/app") && !page.contains("secret/app"), "{page}");
}

#[tokio::test]
async fn the_catalogue_pages_correctly_over_what_one_may_read() {
    let (_system, alice, bob) = people(demonstration_rules()).await;
    let image = Image::new(2, 10);
    for i in 0..5 {
        for parent in ["hidden", "shared"] {
            alice.must_push(&format!("{parent}/r{i}"), "1", &image).await;
        }
    }
    let mut target = Some("/v2/_catalog?n=2".to_owned());
    let mut pages = Vec::new();
    while let Some(next) = target {
        let (names, link) = catalog(&bob, &next).await;
        pages.push(names);
        target = link;
    }
    assert_eq!(pages, [vec!["shared/r0", "shared/r1"], vec!["shared/r2", "shared/r3"], vec!["shared/r4"]]);
    assert_eq!(catalog(&alice, "/v2/_catalog").await.0.len(), 10);
    // Nobody sees what is public, and nothing says how much else there is. Without a token clients are asked to sign in, or
    // they never would, and would hide what is private.
    let answer = bob.with(Credential::None).get("/v2/_catalog").await;
    assert_eq!(answer.status(), StatusCode::UNAUTHORIZED);
    let challenge = header_of(&answer, "www-authenticate");
    assert!(challenge.ends_with(",scope=\"registry:catalog:*\""), "{challenge}");
    alice.must_push("public/x", "1", &image).await;
    let nobody = bob.with(Credential::None).with_token(&["registry:catalog:*"]).await;
    assert_eq!(catalog(&nobody, "/v2/_catalog").await, (vec!["public/x".to_owned()], None));
}

#[tokio::test]
async fn who_may_only_create_moves_no_tag_and_who_may_only_update_makes_none() {
    let rules = json!({"repositories": {"**": {"policies": [
        {"users": ["alice"], "actions": ["read", "create"]},
        {"groups": ["ops"], "actions": ["read", "update", "create"]},
    ]}, "only-update": {"policies": [{"users": ["alice"], "actions": ["update", "read"]}]}}});
    let (_system, alice, bob) = people(rules).await;
    let (one, two) = (Image::new(3, 10), Image::new(4, 10));
    alice.must_push("r", "tag", &one).await;
    let moved = alice.push("r", "tag", &two).await.unwrap();
    assert_eq!(error_of(moved).await, (403, "DENIED".to_owned()));
    let by_tags = format!("{}?tag=tag", digest(&two.manifest));
    let moved = alice.push_manifest("r", &by_tags, &two.manifest).await.unwrap();
    assert_eq!(error_of(moved).await, (403, "DENIED".to_owned()));
    assert_eq!(header_of(&alice.get("/v2/r/manifests/tag").await, "docker-content-digest"), digest(&one.manifest));
    // By digest nothing is moved.
    alice.must_push("r", &digest(&two.manifest), &two).await;
    bob.must_push("r", "tag", &two).await;
    let made = alice.push_manifest("only-update", "new", &one.manifest).await.unwrap();
    assert!(made.status() == StatusCode::FORBIDDEN || made.status() == StatusCode::NOT_FOUND);
}

#[tokio::test]
async fn in_front_of_a_registry_that_knows_no_conditions_the_proxy_looks_first_and_says_so() {
    let rules = json!({"repositories": {"**": {"policies": [{"users": ["alice"], "actions": ["read", "create"]}]}}});
    let setup = Setup { access_control: rules, unix_socket: false, ..Setup::default() };
    let mut system = System::start(setup).await;
    let (key, _) = system.signed_in("alice").await.make_key("a").await;
    let alice = Api::basic(&system.url, "alice", &key);
    // The one before did, and the proxy isn't told that another has taken its place.
    alice.must_push("before", "tag", &Image::new(8, 10)).await;
    if system.use_another_registry().await.is_none() {
        return;
    }
    alice.must_push("r", "tag", &Image::new(8, 10)).await;
    system.proxy.prints("decides no conditions").await;
    let moved = alice.push("r", "tag", &Image::new(9, 10)).await.unwrap();
    assert_eq!(error_of(moved).await, (403, "DENIED".to_owned()));
    alice.must_push("r", "another", &Image::new(9, 10)).await;
}

#[tokio::test]
async fn of_many_who_create_a_tag_at_once_one_does() {
    let rules = json!({"repositories": {"**": {"policies": [{"users": ["alice"], "actions": ["read", "create"]}]}}});
    let (_system, alice, _) = people(rules).await;
    let image = Image::new(5, 10);
    alice.must_push("r", "first", &image).await;
    let pushes = (0..50).map(|_| {
        let (alice, manifest) = (alice.clone(), image.manifest.clone());
        tokio::spawn(async move { alice.push_manifest("r", "contested", &manifest).await.unwrap().status() })
    });
    let mut statuses = Vec::new();
    for push in pushes.collect::<Vec<_>>() {
        statuses.push(push.await.unwrap());
    }
    assert_eq!(statuses.iter().filter(|status| **status == StatusCode::CREATED).count(), 1);
    assert_eq!(statuses.iter().filter(|status| **status == StatusCode::FORBIDDEN).count(), 49);
}

#[tokio::test]
async fn a_mount_needs_read_on_its_source_and_otherwise_becomes_an_upload() {
    let rules = json!({"repositories": {
        "**": {"policies": [{"users": ["alice"], "actions": ["read", "create", "update"]}]},
        "bobs/**": {"policies": [{"users": ["bob"], "actions": ["read", "create"]}]},
    }});
    let (_system, alice, bob) = people(rules).await;
    let image = Image::new(6, 1000);
    alice.must_push("secret/app", "1", &image).await;
    let layer = digest(&image.layer);
    for source in ["&from=secret/app", ""] {
        let answer = bob.post(&format!("/v2/bobs/x/blobs/uploads/?mount={layer}{source}")).await;
        assert_eq!(answer.status(), StatusCode::ACCEPTED, "{source}");
        assert!(location(&answer).starts_with("/v2/bobs/x/blobs/uploads/"));
        assert_eq!(bob.head(&format!("/v2/bobs/x/blobs/{layer}")).await.status(), StatusCode::NOT_FOUND);
    }
    let answer = alice.post(&format!("/v2/mine/blobs/uploads/?mount={layer}&from=secret/app")).await;
    assert_eq!(answer.status(), StatusCode::CREATED);
    assert_eq!(alice.head(&format!("/v2/mine/blobs/{layer}")).await.status(), StatusCode::OK);
}

#[tokio::test]
async fn a_token_mounts_only_from_repositories_that_it_is_for() {
    let rules = json!({"repositories": {"**": {"policies": [{"users": ["alice"], "actions": ["read", "create"]}]}}});
    let (_system, alice, _) = people(rules).await;
    let image = Image::new(6, 1000);
    alice.must_push("secret/app", "1", &image).await;
    let layer = digest(&image.layer);
    let target = format!("/v2/drop/box/blobs/uploads/?mount={layer}&from=secret/app");
    let small = alice.with_token(&["repository:drop/box:pull,push"]).await;
    assert_eq!(small.post(&target).await.status(), StatusCode::ACCEPTED);
    assert_eq!(small.get(&format!("/v2/drop/box/blobs/{layer}")).await.status(), StatusCode::NOT_FOUND);
    let push_alone = alice.with_token(&["repository:drop/box:pull,push", "repository:secret/app:push"]).await;
    assert_eq!(push_alone.post(&target).await.status(), StatusCode::ACCEPTED);
    let both = alice.with_token(&["repository:drop/box:pull,push", "repository:secret/app:pull"]).await;
    assert_eq!(both.post(&target).await.status(), StatusCode::CREATED);
    assert_eq!(small.get(&format!("/v2/drop/box/blobs/{layer}")).await.status(), StatusCode::OK);
}

#[tokio::test]
async fn the_source_of_a_mount_is_read_by_its_digest() {
    let (open, kept) = (Image::new(1, 1000), Image::new(2, 1000));
    let condition = format!("req.method == 'GET' && req.digest == '{}'", digest(&open.layer));
    let rules = json!({"repositories": {
        "source": {"policies": [
            {"users": ["alice"], "actions": ["read", "create"]},
            {"users": ["bob"], "actions": ["read"], "conditions": [{"expression": condition}]},
        ]},
        "bobs": {"policies": [{"users": ["bob"], "actions": ["read", "create"]}]},
    }});
    let (_system, alice, bob) = people(rules).await;
    for (image, tag) in [(&open, "open"), (&kept, "kept")] {
        alice.must_push("source", tag, image).await;
    }
    for (image, pulled, mounted) in
        [(&open, StatusCode::OK, StatusCode::CREATED), (&kept, StatusCode::FORBIDDEN, StatusCode::ACCEPTED)]
    {
        let layer = digest(&image.layer);
        assert_eq!(bob.get(&format!("/v2/source/blobs/{layer}")).await.status(), pulled);
        let target = format!("/v2/bobs/blobs/uploads/?mount={layer}&from=source");
        assert_eq!(bob.post(&target).await.status(), mounted);
    }
}

#[tokio::test]
async fn the_counters_need_a_credential_that_nothing_narrows() {
    let rules = json!({"repositories": {}, "metrics": {"users": ["alice"]}});
    let system = System::start(Setup { access_control: rules, ..Setup::default() }).await;
    let person = system.signed_in("alice").await;
    let (key, _) = person.make_key("a").await;
    let scoped = person.http.post(format!("{}/zot/auth/apikey", system.url));
    let scoped = scoped.json(&json!({"label": "x", "scopes": ["read", "team/**"]})).send().await.unwrap();
    let scoped: Value = scoped.json().await.unwrap();
    let alice = Api::basic(&system.url, "alice", &key);
    assert_eq!(alice.get("/metrics").await.status(), StatusCode::OK);
    let token = alice.with_token(&["repository:a:pull"]).await;
    let narrow = alice.with(Credential::Bearer(scoped["apiKey"].as_str().unwrap().to_owned()));
    for narrowed in [token, narrow] {
        assert_eq!(error_of(narrowed.get("/metrics").await).await, (403, "DENIED".to_owned()));
    }
}

/// The JSON of the section "Conditions" of the documentation, and the expressions of its table.
fn documented_conditions() -> (Value, Vec<String>) {
    let text = include_str!("../../docs/configuration.md");
    let section = text.split("### Conditions").nth(1).unwrap().split("\n## ").next().unwrap();
    let block = section.split("```json").nth(1).unwrap().split("```").next().unwrap();
    let policies: Value = serde_json::from_str(&format!("{{{block}}}")).unwrap();
    let table = section.split("| expression | lets push |").nth(1).unwrap().split("\n\n").next().unwrap();
    let expressions = table.lines().filter_map(|line| line.split('`').nth(1)).map(|text| text.replace("\\|", "|"));
    (policies["policies"].clone(), expressions.collect())
}

#[tokio::test]
async fn the_documented_conditions_let_real_pushes_through() {
    let Some(skopeo) = tools::find("skopeo") else { return };
    let (policies, expressions) = documented_conditions();
    let with = |expression: &String| {
        json!([
            {"groups": ["dev"], "actions": ["read"]},
            {"groups": ["dev"], "actions": ["create", "update"], "conditions": [{"expression": expression}]},
        ])
    };
    let mut cases = vec![(policies, "dev-1")];
    assert_eq!(expressions.len(), 3, "{expressions:?}");
    cases.extend(expressions.iter().map(with).zip(["1", "v1.0", ""]));
    let mut repositories = serde_json::Map::new();
    for (i, (policies, _)) in cases.iter().enumerate() {
        repositories.insert(format!("r{i}"), json!({"policies": policies}));
    }
    let (system, alice, _) = people(json!({"repositories": repositories})).await;
    let Credential::Basic(_, key) = alice.credential() else { panic!("alice shows a key") };
    let folder = tempfile::tempdir().unwrap();
    let platforms = [Image::new(1, 100), Image::new(2, 100)];
    images::write_index(folder.path(), "multi", &platforms);
    for (i, (_, tag)) in cases.iter().enumerate() {
        let copy = |tag: &str| {
            let mut command = Command::new(&skopeo);
            command.args(["copy", "--all", "--dest-tls-verify=false", "--dest-creds", &format!("alice:{key}")]);
            command.arg(format!("oci:{}:multi", folder.path().display()));
            command.arg(format!("docker://{}/r{i}:{tag}", system.authority()));
            run(&mut command)
        };
        // By digest alone, as what is attached to an image is pushed.
        let attached = Image::new(3, 100);
        alice.must_push(&format!("r{i}"), &digest(&attached.manifest), &attached).await;
        if !tag.is_empty() {
            let pushed = copy(tag);
            assert!(pushed.success, "r{i}:{tag}: {}", pushed.printed);
            // Each of several tags is judged.
            let two = format!("{}?tag={tag}&tag=latest", digest(&attached.manifest));
            let answer = alice.push_manifest(&format!("r{i}"), &two, &attached.manifest).await.unwrap();
            assert_eq!(answer.status(), StatusCode::FORBIDDEN, "r{i}");
        }
        let refused = copy("latest");
        assert!(!refused.success && refused.printed.contains("denied"), "r{i}: {}", refused.printed);
        if i == 0 {
            assert!(refused.printed.contains("dev pushes dev-… only"), "{}", refused.printed);
        }
    }
    // The log names the rule and the request.
    system.proxy.prints("policies[1]: req.tag == '' || req.tag.startsWith('dev-') does not hold").await;
}

#[tokio::test]
async fn what_the_proxy_does_not_understand_never_travels() {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let (system, alice, _) = people(demonstration_rules()).await;
    alice.must_push("secret/x", "1", &Image::new(7, 10)).await;
    for target in [
        "//v2/secret/x/manifests/1",
        "/v2//secret/x/manifests/1",
        "/v2/public/..%2fsecret/x/manifests/1",
        "/v2/public/../secret/x/manifests/1",
        "/v2/public/%2e%2e/secret/x/manifests/1",
        "/v2/public%252f..%252fsecret/x/manifests/1",
        "/v2/public;/../secret/x/manifests/1",
        "/v2/public\\..\\secret/x/manifests/1",
        "/v2/secret/x/manifests/1?x=/v2/public/x/manifests/1",
        "/v2/secret/x/manifests/1#/v2/public/x",
        "http://localhost/v2/secret/x/manifests/1",
    ] {
        let mut stream = tokio::net::TcpStream::connect(system.authority()).await.unwrap();
        let request = format!(
            "GET {target} HTTP/1.1\r\nHost: localhost\r\nX-Forwarded-User: alice\r\nX_Forwarded_User: alice\r\n\
             X-Original-URL: /v2/public/x/manifests/1\r\nConnection: close\r\n\r\n"
        );
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        let status: u16 = answer.split(' ').nth(1).unwrap_or("0").parse().unwrap();
        assert!((400..500).contains(&status), "{target}: {answer}");
    }
}
