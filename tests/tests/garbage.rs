//! Garbage collection, from outside.

use std::{
    path::Path,
    process::Command,
    time::{Duration, Instant},
};

use berth_tests::{
    api::Api,
    images::{Image, digest},
    process::wait_for,
    system::{Setup, System, binary},
    tools::must,
};
use reqwest::StatusCode;
use serde_json::json;

async fn collecting(storage: serde_json::Value) -> (System, Api) {
    let system = System::start(Setup { storage, ..Setup::default() }).await;
    let (key, _) = system.signed_in("alice").await.make_key("a").await;
    let api = Api::basic(&system.url, "alice", &key);
    (system, api)
}

fn stored(folder: &Path, digest: &str) -> bool {
    let hex = digest.trim_start_matches("sha256:");
    folder.join("registry/blobs/sha256").join(&hex[..2]).join(hex).exists()
}

#[tokio::test]
async fn what_a_deleted_manifest_named_goes_and_what_others_name_stays() {
    let (system, api) = collecting(json!({"gcAnyDelay": true, "gcDelay": "1s", "gcInterval": "1s"})).await;
    let (gone, kept) = (Image::new(1, 1000), Image::new(2, 1000));
    api.must_push("a", "1", &gone).await;
    api.must_push("a", "2", &kept).await;
    api.must_push("b", "1", &kept).await;
    for image in [&gone, &kept] {
        let target = format!("/v2/a/manifests/{}", digest(&image.manifest));
        assert_eq!(api.delete(&target).await.status(), StatusCode::ACCEPTED);
    }
    wait_for("the layer to go", async || (!stored(&system.folder, &digest(&gone.layer))).then_some(())).await;
    wait_for("the manifest to go", async || (!stored(&system.folder, &digest(&gone.manifest))).then_some(())).await;
    let target = |repository: &str| format!("/v2/{repository}/blobs/{}", digest(&kept.layer));
    assert_eq!(api.head(&target("b")).await.status(), StatusCode::OK);
    wait_for("a to let go", async || (api.head(&target("a")).await.status() == StatusCode::NOT_FOUND).then_some(()))
        .await;
}

#[tokio::test]
async fn the_command_counts_beside_a_running_registry_and_removes_without_one() {
    let (mut system, api) =
        collecting(json!({"gc": true, "gcAnyDelay": true, "gcDelay": "1ms", "gcInterval": "1h"})).await;
    let bytes = Image::new(3, 5000).layer;
    api.must_push("r", "1", &Image::new(4, 10)).await;
    api.push_blob("r", &bytes).await.unwrap();
    let config = system.config();
    let gc = |more: &[&str]| {
        let mut command = Command::new(binary("berth-registry"));
        command.arg("gc").arg(&config).args(more);
        command
    };
    let counted = must(&mut gc(&["--dry-run"]));
    assert!(counted.contains("would be removed: 1 blobs that no manifest named"), "{counted}");
    assert!(counted.contains("; 0 blobs that nothing names are younger than storage.gcDelay"), "{counted}");
    // What waits is counted, too.
    let text = std::fs::read_to_string(&config).unwrap().replace("\"1ms\"", "\"1h\"");
    let patient = system.folder.join("patient.json");
    std::fs::write(&patient, text).unwrap();
    let waiting = must(Command::new(binary("berth-registry")).arg("gc").arg(&patient).arg("--dry-run"));
    let expected = format!("; 1 blobs that nothing names are younger than storage.gcDelay ({} bytes)", bytes.len());
    assert!(waiting.contains("would be removed: 0 blobs") && waiting.contains(&expected), "{waiting}");
    assert!(stored(&system.folder, &digest(&bytes)));
    let busy = berth_tests::tools::run(&mut gc(&[]));
    assert!(!busy.success && busy.printed.contains("in use"), "{}", busy.printed);
    system.registry.kill();
    let removed = must(&mut gc(&[]));
    assert!(removed.contains(&format!("({} bytes)", bytes.len())), "{removed}");
    assert!(!stored(&system.folder, &digest(&bytes)));
    system.restart_registry().await;
    assert_eq!(api.get("/v2/r/manifests/1").await.status(), StatusCode::OK);
}

/// How long is pushed and collected at once. More finds more; a full run sets `BERTH_GC_SECONDS=60`.
fn seconds() -> u64 {
    std::env::var("BERTH_GC_SECONDS").ok().and_then(|text| text.parse().ok()).unwrap_or(10)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pushing_and_collecting_at_once_loses_nothing() {
    let (_system, api) = collecting(json!({"gcAnyDelay": true, "gcDelay": "1s", "gcInterval": "1s"})).await;
    let end = Instant::now() + Duration::from_secs(seconds());
    let pushers = (0..4u64).map(|pusher| {
        let api = api.clone();
        tokio::spawn(async move {
            let repository = format!("r{pusher}");
            let mut pushed = 0u64;
            while Instant::now() < end {
                // The same few images again and again, whose bytes all share: pushed, deleted, collected, and pushed
                // once more.
                let image = Image::new(pushed % 5, 20_000);
                let began = Instant::now();
                let answer = api.push(&repository, "tag", &image).await.unwrap();
                if answer.status() == StatusCode::NOT_FOUND && began.elapsed() >= Duration::from_secs(1) {
                    continue; // It took longer than its blobs are kept.
                }
                assert_eq!(answer.status(), StatusCode::CREATED, "{}", answer.text().await.unwrap());
                let manifest = api.get(&format!("/v2/{repository}/manifests/tag")).await;
                assert_eq!(manifest.status(), StatusCode::OK);
                for part in [&image.layer, &image.config] {
                    let blob = api.get(&format!("/v2/{repository}/blobs/{}", digest(part))).await;
                    assert!(blob.bytes().await.unwrap() == part.as_slice(), "a part of {repository} is gone");
                }
                api.delete(&format!("/v2/{repository}/manifests/{}", digest(&image.manifest))).await;
                pushed += 1;
            }
            pushed
        })
    });
    let mut pushed = 0;
    for pusher in pushers.collect::<Vec<_>>() {
        pushed += pusher.await.unwrap();
    }
    assert!(pushed > 0);
}
