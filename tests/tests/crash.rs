//! `kill -9`: what was acknowledged is there afterwards, and the client's retry succeeds.

use std::{
    collections::HashSet,
    path::PathBuf,
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use berth_tests::{
    api::Api,
    images::{Image, digest},
    process::wait_for,
    system::{Setup, System, binary},
    tools::run,
};
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

/// How often the registry is killed. More finds more; a full run sets `BERTH_CRASH_ROUNDS`.
fn rounds() -> u64 {
    std::env::var("BERTH_CRASH_ROUNDS").ok().and_then(|text| text.parse().ok()).unwrap_or(10)
}

/// Whether the `i`th of `of` is looked at in this round: a hundred of them at most, others in each.
fn in_turn(i: usize, of: usize, round: u64) -> bool {
    let every = of.div_ceil(100).max(1);
    i % every == usize::try_from(round).unwrap_or_default() % every
}

/// What a pusher knows for certain.
#[derive(Default)]
struct Acknowledged {
    /// Repository, tag and image that were acknowledged.
    pushed: Vec<(String, String, Arc<Image>)>,
    /// Repository and manifest whose deletion was acknowledged.
    deleted: Vec<(String, String)>,
}

/// Pushes, mounts and deletes until it is told to stop; every image is its own.
async fn push_and_delete(api: Api, seeds: impl Iterator<Item = u64>, stop: Arc<AtomicBool>) -> Acknowledged {
    let mut known = Acknowledged::default();
    let took =
        |answer: &reqwest::Result<reqwest::Response>, status| answer.as_ref().is_ok_and(|a| a.status() == status);
    for seed in seeds {
        if stop.load(Ordering::Relaxed) {
            break;
        }
        let (tag, image) = (format!("t{seed}"), Arc::new(Image::new(seed, 100_000)));
        if !took(&api.push("r", &tag, &image).await, StatusCode::CREATED) {
            continue;
        }
        let manifest = digest(&image.manifest);
        if seed % 3 == 0 {
            let request = api.request(Method::DELETE, &format!("/v2/r/manifests/{manifest}"));
            match request.send().await {
                Ok(answer) if answer.status() == StatusCode::ACCEPTED => known.deleted.push(("r".to_owned(), manifest)),
                // It may have been deleted or not.
                _ => {}
            }
            continue;
        }
        known.pushed.push(("r".to_owned(), tag.clone(), Arc::clone(&image)));
        let mut mounted = true;
        for part in [&image.layer, &image.config] {
            let target = format!("/v2/mounted/blobs/uploads/?mount={}&from=r", digest(part));
            let request = api.request(Method::POST, &target).header("content-length", 0);
            mounted &= took(&request.send().await, StatusCode::CREATED);
        }
        if mounted && took(&api.push_manifest("mounted", &tag, &image.manifest).await, StatusCode::CREATED) {
            known.pushed.push(("mounted".to_owned(), tag, image));
        }
    }
    known
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_the_registry_acknowledged_survives_kill_9_in_the_middle_of_everything() {
    let storage = json!({"gcAnyDelay": true, "gcDelay": "1s", "gcInterval": "1s"});
    let mut system = System::start(Setup { storage, ..Setup::default() }).await;
    let (key, _) = system.signed_in("alice").await.make_key("a").await;
    let api = Api::basic(&system.url, "alice", &key);
    let (mut pushed, mut deleted) = (Vec::new(), Vec::new());
    for round in 0..rounds() {
        let stop = Arc::new(AtomicBool::new(false));
        let pushers: Vec<_> = (0..4)
            .map(|pusher| {
                let seeds = (0..10_000).map(move |i| round * 1_000_000 + pusher * 10_000 + i);
                tokio::spawn(push_and_delete(api.clone(), seeds, Arc::clone(&stop)))
            })
            .collect();
        // Some pushes have been acknowledged; where the others are differs from round to round. In every fourth round
        // garbage has been collected, and is again about then.
        let uploads = system.folder.join("registry/uploads");
        let tags = system.folder.join("registry/repositories/r/_tags");
        let collections = || system.registry.printed().matches("garbage was collected").count();
        let collected = collections();
        if round % 4 == 3 {
            wait_for("a collection", async || (collections() > collected).then_some(())).await;
        }
        let before = std::fs::read_dir(&tags).map_or(0, Iterator::count);
        let more = if round % 4 == 3 { 20 } else { usize::try_from(round % 5).unwrap() };
        wait_for("some pushes", async || {
            let now = std::fs::read_dir(&tags).map_or(0, Iterator::count);
            let in_flight = std::fs::read_dir(&uploads).map_or(0, Iterator::count);
            (now > before + more && in_flight > 0).then_some(())
        })
        .await;
        system.registry.kill();
        stop.store(true, Ordering::Relaxed);
        let already = pushed.len();
        for pusher in pushers {
            let known = pusher.await.unwrap();
            pushed.extend(known.pushed);
            deleted.extend(known.deleted);
        }
        system.restart_registry().await;
        // What is new is read whole; of the rest, another part in every round, and all of it after the last.
        let last = round + 1 == rounds();
        let old = pushed[..already].iter().enumerate().filter(|(i, _)| last || in_turn(*i, already, round));
        for (repository, tag, image) in pushed[already..].iter().chain(old.map(|(_, image)| image)) {
            let manifest = api.get(&format!("/v2/{repository}/manifests/{tag}")).await;
            assert_eq!(manifest.status(), StatusCode::OK, "round {round}: {repository}:{tag} is gone");
            assert_eq!(manifest.bytes().await.unwrap(), image.manifest);
            for part in [&image.layer, &image.config] {
                let blob = api.get(&format!("/v2/{repository}/blobs/{}", digest(part))).await;
                assert!(blob.bytes().await.unwrap() == part.as_slice(), "round {round}: {repository}:{tag} is damaged");
            }
        }
        for (i, (repository, manifest)) in deleted.iter().enumerate() {
            if last || in_turn(i, deleted.len(), round) {
                let answer = api.head(&format!("/v2/{repository}/manifests/{manifest}")).await;
                assert_eq!(answer.status(), StatusCode::NOT_FOUND, "round {round}: {manifest} is back");
            }
        }
        // No tag points at nothing, acknowledged or not.
        for repository in ["r", "mounted"] {
            let listed: Value = api.get(&format!("/v2/{repository}/tags/list")).await.json().await.unwrap();
            let tags: Vec<_> = listed["tags"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
            for (i, tag) in tags.iter().enumerate() {
                if last || in_turn(i, tags.len(), round) {
                    let answer = api.head(&format!("/v2/{repository}/manifests/{tag}")).await;
                    assert_eq!(answer.status(), StatusCode::OK, "round {round}: {repository}:{tag} points at nothing");
                }
            }
        }
        // A retry succeeds.
        api.must_push("retried", &format!("t{round}"), &Image::new(round, 100_000)).await;
    }
    assert!(!pushed.is_empty() && !deleted.is_empty());
    let scrubbed = run(Command::new(binary("berth-registry")).arg("scrub").arg(system.config()));
    assert!(scrubbed.success, "{}", scrubbed.printed);
    println!("{} rounds: {} pushes and {} deletions were acknowledged", rounds(), pushed.len(), deleted.len());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keys_and_pushes_survive_kill_9_of_the_proxy() {
    let mut system = System::start(Setup::default()).await;
    let alice = system.signed_in("alice").await;
    let (key, _) = alice.make_key("a").await;
    let api = Api::basic(&system.url, "alice", &key);
    let folder = system.folder.join("registry/uploads");
    let uploads = || -> HashSet<PathBuf> {
        std::fs::read_dir(&folder).into_iter().flatten().flatten().map(|entry| entry.path()).collect()
    };
    let mut broken = 0;
    for round in 0..3 {
        let left = uploads();
        let image = Arc::new(Image::new(100 + round, 30_000_000));
        let push = {
            let (api, image) = (api.clone(), Arc::clone(&image));
            tokio::spawn(async move { api.push("r", "big", &image).await })
        };
        wait_for("an upload", async || {
            let mut begun = uploads().into_iter().filter(|upload| !left.contains(upload));
            begun.any(|upload| upload.join("data").metadata().is_ok_and(|meta| meta.len() > 0)).then_some(())
        })
        .await;
        system.proxy.kill();
        let pushed = push.await.unwrap();
        broken += usize::from(pushed.is_err() || pushed.is_ok_and(|answer| !answer.status().is_success()));
        system.restart_proxy().await;
        api.must_push("r", "big", &image).await;
        // A key that was made is there, whatever came after.
        let (another, _) = alice.make_key("another").await;
        system.restart_proxy().await;
        assert_eq!(Api::basic(&system.url, "alice", &another).get("/v2/").await.status(), StatusCode::OK);
    }
    assert!(broken > 0, "no push was in the middle");
}
