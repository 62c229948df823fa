//! `kill -9`: what was acknowledged is there afterwards, and the client's retry succeeds.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use berth_tests::{
    api::{Api, header_of},
    images::{Image, digest},
    process::wait_for,
    system::{Setup, System},
};
use reqwest::StatusCode;
use serde_json::Value;

/// How often the registry is killed. More finds more; a full run sets `BERTH_CRASH_ROUNDS`.
fn rounds() -> u64 {
    std::env::var("BERTH_CRASH_ROUNDS").ok().and_then(|text| text.parse().ok()).unwrap_or(10)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_the_registry_acknowledged_survives_kill_9_in_the_middle_of_pushes() {
    let mut system = System::start(Setup::default()).await;
    let (key, _) = system.signed_in("alice").await.make_key("a").await;
    let api = Api::basic(&system.url, "alice", &key);
    let mut acknowledged: Vec<(String, Arc<Image>)> = Vec::new();
    for round in 0..rounds() {
        let stop = Arc::new(AtomicBool::new(false));
        let pushers = (0..4).map(|pusher| {
            let (api, stop) = (api.clone(), Arc::clone(&stop));
            tokio::spawn(async move {
                let mut done = Vec::new();
                for i in 0.. {
                    if stop.load(Ordering::Relaxed) {
                        break;
                    }
                    let seed = round * 1_000_000 + pusher * 10_000 + i;
                    let (tag, image) = (format!("t{seed}"), Arc::new(Image::new(seed, 200_000)));
                    if api.push("r", &tag, &image).await.is_ok_and(|a| a.status() == StatusCode::CREATED) {
                        done.push((tag, image));
                    }
                }
                done
            })
        });
        let pushers: Vec<_> = pushers.collect();
        // Some pushes have been acknowledged; where the others are differs from round to round.
        let uploads = system.folder.join("registry/uploads");
        let tags = system.folder.join("registry/repositories/r/_tags");
        let before = std::fs::read_dir(&tags).map_or(0, Iterator::count);
        wait_for("some pushes", async || {
            let now = std::fs::read_dir(&tags).map_or(0, Iterator::count);
            let in_flight = std::fs::read_dir(&uploads).map_or(0, Iterator::count);
            (now > before + (round % 5) as usize && in_flight > 0).then_some(())
        })
        .await;
        system.registry.kill();
        stop.store(true, Ordering::Relaxed);
        for pusher in pushers {
            acknowledged.extend(pusher.await.unwrap());
        }
        system.restart_registry().await;
        let listed: Value = api.get("/v2/r/tags/list").await.json().await.unwrap();
        let listed: Vec<_> = listed["tags"].as_array().unwrap().iter().map(|t| t.as_str().unwrap()).collect();
        for (tag, image) in &acknowledged {
            assert!(listed.contains(&tag.as_str()), "round {round}: {tag} was acknowledged and is gone");
            let manifest = api.get(&format!("/v2/r/manifests/{tag}")).await;
            assert_eq!(header_of(&manifest, "docker-content-digest"), digest(&image.manifest));
            assert_eq!(manifest.bytes().await.unwrap(), image.manifest);
            let layer = api.get(&format!("/v2/r/blobs/{}", digest(&image.layer))).await;
            assert!(layer.bytes().await.unwrap() == image.layer, "round {round}: the layer of {tag} is damaged");
        }
        // No tag points at nothing, acknowledged or not.
        for tag in listed {
            assert_eq!(api.get(&format!("/v2/r/manifests/{tag}")).await.status(), StatusCode::OK, "{tag}");
        }
        // A retry succeeds.
        api.must_push("r", &format!("retry{round}"), &Image::new(round, 200_000)).await;
    }
    assert!(!acknowledged.is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keys_and_pushes_survive_kill_9_of_the_proxy() {
    let mut system = System::start(Setup::default()).await;
    let alice = system.signed_in("alice").await;
    let (key, _) = alice.make_key("a").await;
    let api = Api::basic(&system.url, "alice", &key);
    for round in 0..3 {
        let image = Arc::new(Image::new(100 + round, 30_000_000));
        let push = {
            let (api, image) = (api.clone(), Arc::clone(&image));
            tokio::spawn(async move { api.push("r", "big", &image).await })
        };
        let uploads = system.folder.join("registry/uploads");
        wait_for("an upload", async || {
            let mut entries = std::fs::read_dir(&uploads).ok()?;
            entries.any(|e| e.is_ok_and(|e| e.path().join("data").metadata().is_ok_and(|m| m.len() > 0))).then_some(())
        })
        .await;
        system.proxy.kill();
        let broken = push.await.unwrap();
        assert!(broken.is_err() || broken.is_ok_and(|answer| !answer.status().is_success()));
        system.restart_proxy().await;
        api.must_push("r", "big", &image).await;
        // A key that was made is there, whatever came after.
        let (another, _) = alice.make_key("another").await;
        system.restart_proxy().await;
        assert_eq!(Api::basic(&system.url, "alice", &another).get("/v2/").await.status(), StatusCode::OK);
    }
}
