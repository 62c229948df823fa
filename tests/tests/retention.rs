//! What is kept, and what goes: by zot's rules, from outside.

use std::{process::Command, time::Duration};

use berth_tests::{
    api::{Api, error_of},
    images::{Image, MANIFEST, digest},
    process::wait_for,
    system::{Setup, System, binary},
    tools::{must, run},
};
use reqwest::{Method, StatusCode, header};
use serde_json::{Value, json};

const INDEX: &str = "application/vnd.oci.image.index.v1+json";
const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
const DOCKER_LIST: &str = "application/vnd.docker.distribution.manifest.list.v2+json";

async fn keeping(retention: Value, immutable: Value) -> (System, Api) {
    let storage = json!({"gcAnyDelay": true, "gcDelay": "1s", "gcInterval": "1s", "retention": retention,
        "immutableTags": immutable});
    storing(storage).await
}

async fn storing(storage: Value) -> (System, Api) {
    let system = System::start(Setup { storage, ..Setup::default() }).await;
    let (key, _) = system.signed_in("alice").await.make_key("a").await;
    let api = Api::basic(&system.url, "alice", &key);
    (system, api)
}

async fn tags(api: &Api, repository: &str) -> Vec<String> {
    let list: Value = api.get(&format!("/v2/{repository}/tags/list")).await.json().await.unwrap();
    list["tags"].as_array().cloned().unwrap_or_default().iter().map(|tag| tag.as_str().unwrap().to_owned()).collect()
}

async fn push(api: &Api, repository: &str, reference: &str, manifest: &Value) -> String {
    let text = manifest.to_string();
    let media_type = manifest["mediaType"].as_str().unwrap().to_owned();
    let request = api.request(Method::PUT, &format!("/v2/{repository}/manifests/{reference}"));
    let answer = request.header(header::CONTENT_TYPE, media_type).body(text.clone()).send().await.unwrap();
    assert_eq!(answer.status(), StatusCode::CREATED, "{}", answer.text().await.unwrap());
    digest(text.as_bytes())
}

fn about(image: &Image, subject: &str, annotation: &str) -> Value {
    let mut artifact: Value = serde_json::from_slice(&image.manifest).unwrap();
    artifact["artifactType"] = json!("application/vnd.example.signature");
    artifact["subject"] = json!({"mediaType": MANIFEST, "digest": subject, "size": 1});
    artifact["annotations"] = json!({"of": annotation});
    artifact
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_newest_stay_with_all_that_belongs_to_them_and_the_rest_goes() {
    let policy = json!({"repositories": ["ci/**"], "deleteReferrers": true,
        "keepTags": [{"patterns": ["^v"], "mostRecentlyPushedCount": 2}, {"patterns": ["^main$"]}]});
    // Not yet: what is pushed first is there first.
    let retention = json!({"delay": "1s", "dryRun": true, "policies": [policy]});
    let immutable = json!([{"repositories": ["ci/**"], "patterns": ["^v0$"]}]);
    let (mut system, api) = keeping(retention, immutable).await;
    let images: Vec<Image> = (0..5).map(|i| Image::new(i, 1000)).collect();
    for (i, image) in images.iter().enumerate() {
        api.must_push("ci/app", &format!("v{i}"), image).await;
        api.must_push("other/app", &format!("v{i}"), image).await;
    }
    let of = |i: usize| digest(&images[i].manifest);
    // Beside the rules: a tag that no entry has, an index, what is attached to one that stays and to one that goes.
    api.must_push("ci/app", "feature", &images[1]).await;
    let index = json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": [
        {"mediaType": MANIFEST, "digest": of(1), "size": images[1].manifest.len()}]});
    push(&api, "ci/app", "main", &index).await;
    let kept_signature = about(&images[4], &of(4), "v4");
    let gone_signature = about(&images[4], &of(2), "v2");
    let kept_signature = push(&api, "ci/app", &digest(kept_signature.to_string().as_bytes()), &kept_signature).await;
    let gone_signature = push(&api, "ci/app", &digest(gone_signature.to_string().as_bytes()), &gone_signature).await;
    let cosign = |i: usize| format!("{}.sig", of(i).replace(':', "-"));
    api.must_push("ci/app", &cosign(3), &Image::new(30, 100)).await;
    api.must_push("ci/app", &cosign(2), &Image::new(20, 100)).await;
    // What would go, and why; nothing does.
    let mut command = Command::new(binary("berth-registry"));
    command.arg("retention").arg(system.config()).arg("--dry-run");
    let printed = must(&mut command);
    for goes in ["ci/app:v2 ", "ci/app:feature ", "ci/app:v1 "] {
        assert!(printed.contains(goes), "{goes}: {printed}");
    }
    assert!(printed.contains("keepTags[0]") && printed.contains("has no entry for it"), "{printed}");
    assert!(!printed.contains("other/app") && !printed.contains(":v0 ") && !printed.contains(":v4 "), "{printed}");
    system.registry.prints("this would expire").await;
    assert_eq!(tags(&api, "ci/app").await.len(), 9);
    let described: Value = api.get("/v2/_berth/tags/ci/app").await.json().await.unwrap();
    let retention = |tag: &str| {
        let all = described["tags"].as_array().unwrap();
        all.iter().find(|one| one["tag"] == tag).unwrap()["retention"].clone()
    };
    assert_eq!((retention("v2")["kept"].clone(), retention("v4")["kept"].clone()), (json!(false), json!(true)));
    assert!(retention("v4")["rule"].as_str().unwrap().ends_with("keepTags[0].mostRecentlyPushedCount"));
    let page = system.signed_in("alice").await.get("/repository/ci/app").await.text().await.unwrap();
    assert!(page.contains("among the newest") && page.contains("goes soon") && page.contains("for ever"), "{page}");

    system.configure(|config| config["storage"]["retention"]["dryRun"] = json!(false));
    system.restart_registry().await;
    let expected = vec!["main".to_owned(), cosign(3), "v0".to_owned(), "v3".to_owned(), "v4".to_owned()];
    wait_for("tags to go", async || (tags(&api, "ci/app").await == expected).then_some(())).await;
    // By GET: what a client was told by HEAD stays for a while, since it may name it.
    let is_there = async |reference: &str| api.get(&format!("/v2/ci/app/manifests/{reference}")).await.status();
    wait_for("manifests to go", async || (is_there(&of(2)).await == StatusCode::NOT_FOUND).then_some(())).await;
    wait_for("a signature to go", async || (is_there(&gone_signature).await == StatusCode::NOT_FOUND).then_some(()))
        .await;
    // The index's image lost its tags, and stays with it; and so does what is signed.
    for stays in [&of(0), &of(1), &of(3), &of(4), &kept_signature] {
        assert_eq!(is_there(stays).await, StatusCode::OK, "{stays}");
    }
    assert_eq!(tags(&api, "other/app").await.len(), 5);
    system.registry.prints("expired").await;
    // With the index goes what it named.
    assert_eq!(api.delete("/v2/ci/app/manifests/main").await.status(), StatusCode::ACCEPTED);
    wait_for("the image of the index", async || (is_there(&of(1)).await == StatusCode::NOT_FOUND).then_some(())).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_immutable_tag_is_pushed_once_and_moved_and_deleted_by_nobody() {
    let (system, api) = keeping(Value::Null, json!([{"repositories": ["release/**"], "patterns": ["^v\\d"]}])).await;
    let (one, other) = (Image::new(1, 1000), Image::new(2, 1000));
    api.must_push("release/app", "v1", &one).await;
    api.must_push("release/app", "latest", &one).await;
    // The same again is no change, and another one is refused, by tag and by digest.
    api.must_push("release/app", "v1", &one).await;
    for image in [&one.layer, &other.layer, &other.config] {
        api.push_blob("release/app", image).await.unwrap();
    }
    let by_digest = format!("{}?tag=fresh&tag=v1", digest(&other.manifest));
    for reference in ["v1", by_digest.as_str()] {
        let refused = api.push_manifest("release/app", reference, &other.manifest).await.unwrap();
        assert_eq!(error_of(refused).await, (403, "DENIED".to_owned()), "{reference}");
    }
    assert_eq!(tags(&api, "release/app").await, ["latest", "v1"]);
    let target = |reference: &str| format!("/v2/release/app/manifests/{reference}");
    for reference in ["v1".to_owned(), digest(&one.manifest)] {
        let refused = api.delete(&target(&reference)).await;
        assert_eq!(error_of(refused).await, (403, "DENIED".to_owned()), "{reference}");
    }
    assert_eq!(tags(&api, "release/app").await, ["latest", "v1"]);
    // Of many who push it at once, with different images, one does.
    let all: Vec<Image> = (10..18).map(|i| Image::new(i, 200)).collect();
    let pushes = all.iter().map(|image| async {
        api.push_blob("release/app", &image.layer).await.unwrap();
        api.push_blob("release/app", &image.config).await.unwrap();
        api.push_manifest("release/app", "v2", &image.manifest).await.unwrap().status()
    });
    let mut statuses = futures_util::future::join_all(pushes).await;
    statuses.sort();
    assert_eq!(statuses.iter().filter(|status| status.is_success()).count(), 1, "{statuses:?}");
    assert!(statuses[1..].iter().all(|status| *status == StatusCode::FORBIDDEN), "{statuses:?}");
    // Others move as ever.
    api.must_push("release/app", "latest", &other).await;
    assert_eq!(api.delete(&target("latest")).await.status(), StatusCode::ACCEPTED);
    drop(system);
}

/// In zot, an index that was lost or made anew let everything expire.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_known_of_pulls_may_be_lost_and_nothing_goes_for_it() {
    let policy = json!({"repositories": ["**"], "deleteUntagged": false, "keepTags": [{"pulledWithin": "1h"}]});
    let (mut system, api) = keeping(json!({"policies": [policy]}), Value::Null).await;
    for i in 0..3 {
        api.must_push("r", &format!("v{i}"), &Image::new(i, 100)).await;
    }
    // All of it was pushed two hours ago; one was pulled lately.
    let folder = system.folder.join("registry/repositories/r/_tags");
    system.registry.terminate();
    let age = |file: &std::path::Path| {
        let text = std::fs::read_to_string(file).unwrap();
        let (digest, pushed) = text.split_once('\n').unwrap();
        let (at, by) = pushed.split_once(' ').unwrap();
        std::fs::write(file, format!("{digest}\n{} {by}", at.parse::<u64>().unwrap() - 7200)).unwrap();
    };
    for i in 0..3 {
        age(&folder.join(format!("v{i}")));
    }
    std::fs::remove_dir_all(system.folder.join("registry/repositories/r/_overview")).unwrap();
    system.restart_registry().await;
    // Collections pass, and who has counted nothing takes nothing for never pulled.
    let _ = api.get("/v2/_berth/tags/r").await;
    system.registry.terminate();
    system.restart_registry().await;
    tokio::time::timeout(Duration::from_secs(20), system.registry.prints("listening")).await.unwrap();
    let logged = || std::fs::read_to_string(system.folder.join("berth-registry.log")).unwrap_or_default();
    let garbage = Image::new(99, 5000).layer;
    api.push_blob("r", &garbage).await.unwrap();
    wait_for("two collections", async || (logged().matches("garbage was collected").count() >= 1).then_some(())).await;
    assert_eq!(tags(&api, "r").await, ["v0", "v1", "v2"]);
}

#[tokio::test]
async fn rules_that_cannot_be_meant_are_named() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("config.json");
    for (storage, problem) in [
        (
            json!({"retention": {"policies": [{"keepTags": []}]}}),
            "storage.retention.policies[0].repositories: is missing",
        ),
        (
            json!({"retention": {"policies": [{"repositories": ["**"], "keepTags": [{"patterns": ["("]}]}]}}),
            "storage.retention.policies[0].keepTags[0].patterns: has \"(\"",
        ),
        (json!({"gc": false, "retention": {"policies": []}}), "storage.retention: is a part of collecting garbage"),
        (json!({"retention": {"polices": []}}), "storage.retention.polices"),
        (json!({"immutableTags": [{"patterns": ["v"]}]}), "storage.immutableTags[0].repositories: is missing"),
    ] {
        let mut all = json!({"rootDirectory": folder.path().join("store")});
        all.as_object_mut().unwrap().extend(storage.as_object().unwrap().clone());
        std::fs::write(&path, json!({"storage": all, "sidecar": {}}).to_string()).unwrap();
        let verified = run(Command::new(binary("berth-registry")).arg("verify").arg(&path));
        assert!(!verified.success && verified.printed.contains(problem), "{problem}: {}", verified.printed);
    }
}

/// What docker made before there were OCI's types is kept and goes by the same rules, with what it is made of.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn images_of_docker_s_own_types_are_kept_and_go_as_others_do() {
    let policy = json!({"repositories": ["**"], "keepTags": [{"mostRecentlyPushedCount": 1}]});
    let storage = json!({"gcAnyDelay": true, "gcDelay": "1h", "gcInterval": "1s"});
    let (mut system, api) = storing(storage).await;
    let (old, new) = (Image::new(1, 1000), Image::new(2, 1000));
    let mut digests = Vec::new();
    for (tag, image) in [("v1", &old), ("v2", &new)] {
        api.must_push("oci", tag, image).await;
        for blob in [&image.layer, &image.config] {
            assert!(api.push_blob("docker", blob).await.unwrap().status().is_success());
        }
        let mut manifest: Value = serde_json::from_slice(&image.manifest).unwrap();
        manifest["mediaType"] = json!(DOCKER_MANIFEST);
        let child = push(&api, "docker", &digest(manifest.to_string().as_bytes()), &manifest).await;
        let list = json!({"schemaVersion": 2, "mediaType": DOCKER_LIST, "manifests": [
            {"mediaType": DOCKER_MANIFEST, "digest": child, "size": manifest.to_string().len(),
             "platform": {"architecture": "amd64", "os": "linux"}}]});
        let list = push(&api, "docker", tag, &list).await;
        digests.push([child, list]);
    }
    system.configure(|config| {
        config["storage"]["gcDelay"] = json!("1s");
        config["storage"]["retention"] = json!({"delay": "1s", "policies": [policy]});
    });
    system.restart_registry().await;
    let status = async |reference: &str| api.get(&format!("/v2/docker/manifests/{reference}")).await.status();
    for gone in &digests[0] {
        wait_for("the older to go", async || (status(gone).await == StatusCode::NOT_FOUND).then_some(())).await;
    }
    wait_for("the others", async || (tags(&api, "oci").await == ["v2"]).then_some(())).await;
    assert_eq!(tags(&api, "docker").await, ["v2"]);
    for kept in &digests[1] {
        assert_eq!(status(kept).await, StatusCode::OK);
    }
    for blob in [&new.layer, &new.config] {
        assert_eq!(api.get(&format!("/v2/docker/blobs/{}", digest(blob))).await.status(), StatusCode::OK);
    }
}

/// What is attached to an image is no image: it takes no other tag's place, and goes or stays with it; an image that lost its tag
/// goes, and who only counts what was pulled takes nothing for never pulled.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_attached_takes_no_place_and_an_image_without_its_tag_goes() {
    let newest = json!({"repositories": ["one/**"], "keepTags": [{"mostRecentlyPushedCount": 1}]});
    let pulled = json!({"repositories": ["pulled/**"], "keepTags": [{"mostRecentlyPulledCount": 1}]});
    let untagged = json!({"repositories": ["moving/**"]});
    let retention = json!({"delay": "1s", "policies": [newest, pulled, untagged]});
    let (mut system, api) = keeping(json!({"policies": []}), Value::Null).await;
    let cosign = |image: &Image| format!("{}.sig", digest(&image.manifest).replace(':', "-"));
    let images: Vec<Image> = (0..4).map(|i| Image::new(i, 500)).collect();
    api.must_push("one/app", "v1", &images[1]).await;
    api.must_push("one/app", "v2", &images[2]).await;
    api.must_push("one/app", &cosign(&images[2]), &Image::new(20, 100)).await;
    let referrer = about(&images[1], &digest(&images[1].manifest), "v1");
    let referrer = push(&api, "one/app", &digest(referrer.to_string().as_bytes()), &referrer).await;
    for (i, image) in images.iter().enumerate() {
        api.must_push("pulled/app", &format!("v{i}"), image).await;
        api.must_push("moving/app", "latest", image).await;
    }
    // What was pulled is lost.
    system.registry.terminate();
    let _ = std::fs::remove_dir_all(system.folder.join("registry/repositories/pulled/app/_overview"));
    system.configure(|config| config["storage"]["retention"] = retention);
    system.restart_registry().await;
    let expected = [cosign(&images[2]), "v2".to_owned()];
    wait_for("one to stay", async || (tags(&api, "one/app").await == expected).then_some(())).await;
    let status = async |repository: &str, reference: &str| {
        api.get(&format!("/v2/{repository}/manifests/{reference}")).await.status()
    };
    for image in &images[..3] {
        let digest = digest(&image.manifest);
        wait_for("the images of before", async || {
            (status("moving/app", &digest).await == StatusCode::NOT_FOUND).then_some(())
        })
        .await;
    }
    assert_eq!(status("moving/app", "latest").await, StatusCode::OK);
    // Without deleteReferrers, what was attached stays though its image has gone.
    wait_for("the image", async || {
        (status("one/app", &digest(&images[1].manifest)).await == StatusCode::NOT_FOUND).then_some(())
    })
    .await;
    assert_eq!(status("one/app", &referrer).await, StatusCode::OK);
    assert_eq!(tags(&api, "pulled/app").await.len(), 4);
}
