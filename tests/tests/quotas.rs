//! How much repositories may hold, from outside.

use berth_tests::{
    api::{Api, error_of, location},
    images::{Image, digest},
    process::wait_for,
    system::{Setup, System},
    tools::{self, must, run},
};
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

async fn limited(storage: Value) -> (System, Api) {
    // What no manifest names counts as well, until it is collected: not in the middle of a test.
    let mut all = json!({"gcAnyDelay": true, "gcDelay": "1h", "gcInterval": "1s"});
    all.as_object_mut().unwrap().extend(storage.as_object().unwrap().clone());
    let system = System::start(Setup { storage: all, ..Setup::default() }).await;
    let (key, _) = system.signed_in("alice").await.make_key("a").await;
    let api = Api::basic(&system.url, "alice", &key);
    (system, api)
}

async fn used(api: &Api, repository: &str) -> Option<(u64, bool)> {
    let usage: Value = api.get(&format!("/v2/_berth/usage/{repository}")).await.json().await.ok()?;
    let quota = usage["quotas"].get(0)?;
    Some((quota["bytes"]["used"].as_u64()?, quota["counting"] == true))
}

fn uploads(system: &System) -> usize {
    std::fs::read_dir(system.folder.join("registry/uploads")).map_or(0, Iterator::count)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_does_not_fit_is_refused_at_every_turn_and_deleting_gives_room_back() {
    let quotas = json!([{"repositories": ["team/**"], "bytes": "100kB", "tags": 3}]);
    let (mut system, api) = limited(json!({"quotas": quotas})).await;
    let image = Image::new(1, 60_000);
    api.must_push("team/a", "1", &image).await;
    // What is there counts once, whichever of them holds it.
    api.must_push("team/b", "1", &image).await;
    let weight = (image.layer.len() + image.config.len() + image.manifest.len()) as u64;
    assert_eq!(used(&api, "team/a").await, Some((weight, false)));
    // Others don't count.
    api.must_push("other", "1", &Image::new(2, 200_000)).await;
    let too_much = Image::new(3, 50_000).layer;
    let refused = async |answer: reqwest::Response| {
        let text = answer.text().await.unwrap();
        assert!(text.contains("\"DENIED\"") && text.contains("the quota of team/** is 100.0 kB, of which"), "{text}");
    };
    // In one request, by its length; in pieces of no length, while they come; and at its end, for certain.
    let target = format!("/v2/team/a/blobs/uploads/?digest={}", digest(&too_much));
    let answer = api.request(Method::POST, &target).body(too_much.clone()).send().await.unwrap();
    assert_eq!(answer.status(), StatusCode::FORBIDDEN);
    refused(answer).await;
    let address = api.start_upload("team/a").await;
    let pieces = too_much.chunks(1000).map(|piece| Ok::<_, std::io::Error>(piece.to_vec())).collect::<Vec<_>>();
    let stream = reqwest::Body::wrap_stream(futures_util::stream::iter(pieces));
    let answer = api.request(Method::PATCH, &address).body(stream).send().await.unwrap();
    assert_eq!(answer.status(), StatusCode::FORBIDDEN);
    refused(answer).await;
    let halves = [Image::new(4, 20_000).layer, Image::new(5, 20_000).layer];
    let mut addresses = Vec::new();
    for half in &halves {
        let address = api.start_upload("team/a").await;
        let sent = api.request(Method::PATCH, &address).body(half.clone()).send().await.unwrap();
        assert_eq!(sent.status(), StatusCode::ACCEPTED);
        addresses.push(location(&sent));
    }
    let mut ended = Vec::new();
    for (address, half) in addresses.iter().zip(&halves) {
        let separator = if address.contains('?') { '&' } else { '?' };
        let target = format!("{address}{separator}digest={}", digest(half));
        ended.push(api.request(Method::PUT, &target).send().await.unwrap());
    }
    assert_eq!(ended.remove(0).status(), StatusCode::CREATED);
    let last = ended.remove(0);
    assert_eq!(last.status(), StatusCode::FORBIDDEN);
    refused(last).await;
    wait_for("nothing to stay of it", async || (uploads(&system) == 0).then_some(())).await;
    // Tags: the fourth is one too many, and one that is there may be set again.
    api.must_push("team/a", "2", &image).await;
    let answer = api.push_manifest("team/a", "3", &image.manifest).await.unwrap();
    assert_eq!(error_of(answer).await, (403, "DENIED".to_owned()));
    api.must_push("team/a", "2", &image).await;
    // What is refused leaves nothing counted: neither its tags, nor the manifest that a wrong upload names.
    let manifest_of_before = digest(&image.manifest);
    let sums = used(&api, "team/a").await;
    for i in 0..3 {
        let big = json!({"schemaVersion": 2, "mediaType": berth_tests::images::MANIFEST, "layers": [], "config":
            serde_json::from_slice::<Value>(&image.manifest).unwrap()["config"], "annotations": {"n": "x".repeat(30_000 + i)}});
        let refused = api.push_manifest("team/b", &format!("t{i}"), big.to_string().as_bytes()).await.unwrap();
        assert_eq!(error_of(refused).await, (403, "DENIED".to_owned()));
    }
    let target = format!("/v2/team/a/blobs/uploads/?digest={manifest_of_before}");
    let wrong = api.request(Method::POST, &target).body("x").send().await.unwrap();
    assert_eq!(wrong.status(), StatusCode::BAD_REQUEST);
    assert_eq!(used(&api, "team/a").await, sums);
    let usage: Value = api.get("/v2/_berth/usage/team/a").await.json().await.unwrap();
    assert_eq!(usage["quotas"][0]["tags"]["used"], json!(3), "{usage}");
    // A page says it, and the counters.
    let text = api.get("/metrics").await.text().await.unwrap();
    for (what, value) in
        [("used_bytes", sums.unwrap().0), ("limit_bytes", 100_000), ("used_tags", 3), ("limit_tags", 3)]
    {
        let line = format!("berth_registry_quota{{repositories=\"team/**\",what=\"{what}\"}} {value}");
        assert!(text.lines().any(|own| own == line), "{line} is not in {text}");
    }
    let page = system.signed_in("alice").await.get("/repository/team/a").await.text().await.unwrap();
    assert!(page.contains("Quota of") && page.contains("nearly full"), "{page}");
    system.registry.prints("a quota is nearly used up").await;
    // After kill -9 it is known, and counted anew.
    let before = used(&api, "team/a").await.unwrap().0;
    system.registry.kill();
    system.restart_registry().await;
    wait_for("the count", async || (used(&api, "team/a").await == Some((before, false))).then_some(())).await;
    system.configure(|config| config["storage"]["gcDelay"] = json!("1s"));
    system.restart_registry().await;
    // What is deleted and collected gives room.
    for (repository, target) in [("team/a", digest(&image.manifest)), ("team/b", digest(&image.manifest))] {
        let deleted = api.delete(&format!("/v2/{repository}/manifests/{target}")).await;
        assert_eq!(deleted.status(), StatusCode::ACCEPTED);
    }
    let image = Image::new(6, 90_000);
    wait_for("room", async || {
        let pushed = api.push_blob("team/a", &image.layer).await.ok()?;
        pushed.status().is_success().then_some(())
    })
    .await;
    api.must_push("team/a", "1", &image).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_pushes_at_once_never_go_beyond_a_quota_and_docker_says_why() {
    let (system, api) = limited(json!({"quotas": [{"repositories": ["**"], "bytes": "500kB"}], "maxRepos": 12})).await;
    let pushes = (0..20).map(|i| {
        let api = api.clone();
        async move { api.push_blob(&format!("r{i}"), &Image::new(i, 60_000).layer).await.map(|answer| answer.status()) }
    });
    let statuses = futures_util::future::join_all(pushes).await;
    let taken = statuses.iter().filter(|status| status.as_ref().is_ok_and(|s| s.is_success())).count();
    assert!((7..=8).contains(&taken), "{statuses:?}");
    let blobs = std::fs::read_dir(system.folder.join("registry/blobs/sha256")).unwrap();
    assert_eq!(blobs.count(), taken);
    // docker tells the sentence.
    let (Some(docker), Some(_)) = (tools::find("docker"), tools::find("busybox")) else { return };
    if !run(std::process::Command::new(&docker).arg("info")).success {
        tools::skip("no docker engine runs");
        return;
    }
    let work = tempfile::tempdir().unwrap();
    let name = format!("{}/big:1", system.authority());
    let (key, _) = system.signed_in("alice").await.make_key("docker").await;
    std::fs::write(work.path().join("layer.tar"), Image::new(99, 700_000).layer).unwrap();
    let command = |arguments: &[&str]| {
        let mut command = std::process::Command::new(&docker);
        command.arg("--config").arg(work.path()).args(arguments);
        command
    };
    must(&mut command(&["login", "-u", "alice", "-p", &key, system.authority()]));
    must(&mut command(&["import", work.path().join("layer.tar").to_str().unwrap(), &name]));
    let pushed = run(&mut command(&["push", &name]));
    run(&mut command(&["rmi", &name]));
    assert!(!pushed.success && pushed.printed.contains("the quota of ** is 500.0 kB"), "{}", pushed.printed);
}

#[tokio::test]
async fn there_are_no_more_repositories_than_there_may_be() {
    let (_system, api) = limited(json!({"maxRepos": 2, "gcDelay": "1s"})).await;
    for repository in ["a", "b"] {
        api.must_push(repository, "1", &Image::new(1, 100)).await;
    }
    assert_eq!(api.start_upload_status("c").await, StatusCode::FORBIDDEN);
    api.must_push("b", "2", &Image::new(2, 100)).await;
    // Nor of many that are pushed at once.
    let image = Image::new(3, 100);
    api.push_blob("b", &image.layer).await.unwrap();
    let pushes = (0..8).map(|i| {
        let (api, digest) = (api.clone(), digest(&image.layer));
        async move { api.post(&format!("/v2/new{i}/blobs/uploads/?mount={digest}&from=b")).await.status() }
    });
    let statuses = futures_util::future::join_all(pushes).await;
    assert!(statuses.iter().all(|status| *status == StatusCode::FORBIDDEN), "{statuses:?}");
    let deleted = api.delete(&format!("/v2/a/manifests/{}", digest(&Image::new(1, 100).manifest))).await;
    assert_eq!(deleted.status(), StatusCode::ACCEPTED);
    wait_for("a to go", async || (api.start_upload_status("c").await == StatusCode::ACCEPTED).then_some(())).await;
}
