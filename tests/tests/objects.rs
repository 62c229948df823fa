//! The registry in a bucket: two processes over one S3 server, which keeps its objects as files.

use std::{
    fs,
    path::Path,
    process::Command,
    sync::{Arc, Mutex},
    time::Duration,
};

use berth_tests::{
    api::{Api, Credential, error_of, header_of, location},
    bucket::{Bucket, Fault, FaultProxy, KEY, driver, within},
    images::{Image, MANIFEST, digest},
    process::{Process, free_port, wait_for},
    relay::Relay,
    system::{Setup, System, binary, demonstration_rules},
    tools::{must, run},
};
use reqwest::{Method, StatusCode, header, redirect::Policy};
use serde_json::{Value, json};

/// What a registry asks of its bucket, by method and path with query.
#[derive(Clone, Default)]
struct BucketRequests(Arc<Mutex<Vec<(Method, String)>>>);

impl BucketRequests {
    /// Of a registry.
    fn of(shared: &Shared, registry: usize) -> Self {
        let asked = Self::default();
        let seen = asked.clone();
        shared.faults[registry].set(move |method, path| {
            seen.0.lock().unwrap().push((method.clone(), path.to_owned()));
            None
        });
        asked
    }

    /// Since this was asked the last time.
    fn lately(&self) -> Vec<(Method, String)> {
        std::mem::take(&mut *self.0.lock().unwrap())
    }
}

/// A server of S3, and two registries that share a bucket of it, each behind a proxy of its own that makes faults.
struct Shared {
    /// More keys of `storage`.
    storage: Value,
    folder: tempfile::TempDir,
    bucket: Bucket,
    faults: Vec<FaultProxy>,
    registries: Vec<(Process, Api)>,
}

impl Shared {
    async fn start() -> Option<Self> {
        Self::start_with(json!({})).await
    }

    async fn start_with(storage: Value) -> Option<Self> {
        let folder = tempfile::tempdir().unwrap();
        let bucket = Bucket::start(folder.path()).await?;
        let mut shared = Self { storage, folder, bucket, faults: Vec::new(), registries: Vec::new() };
        for name in ["one", "two"] {
            shared.faults.push(FaultProxy::start(&shared.bucket.endpoint).await);
            let registry = shared.registry(name).await;
            shared.registries.push(registry);
        }
        Some(shared)
    }

    fn config(&self, name: &str, url: &str) -> std::path::PathBuf {
        let endpoint = &self.faults[usize::from(name == "two")].endpoint;
        let mut storage = json!({"storageDriver": driver(endpoint), "gcDelay": "10m", "gcInterval": "1h"});
        storage.as_object_mut().unwrap().extend(self.storage.as_object().unwrap().clone());
        let config = json!({
            "storage": storage,
            "sidecar": {"upstream": url}, "log": {"level": "debug"},
        });
        let path = self.folder.path().join(format!("{name}.json"));
        fs::write(&path, config.to_string()).unwrap();
        path
    }

    async fn registry(&self, name: &str) -> (Process, Api) {
        let url = format!("http://127.0.0.1:{}", free_port());
        let mut command = Command::new(binary("berth-registry"));
        command.arg("serve").arg(self.config(name, &url));
        let mut process = Process::start(&mut command, &self.folder.path().join(format!("{name}.log"))).unwrap();
        wait_for("a registry", async || {
            assert!(!process.has_ended(), "{}", process.printed());
            reqwest::get(format!("{url}/v2/")).await.ok()
        })
        .await;
        (process, Api::new(&url, Credential::None))
    }

    fn apis(&self) -> (&Api, &Api) {
        (&self.registries[0].1, &self.registries[1].1)
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(binary("berth-registry"));
        command.arg(arguments[0]).arg(self.folder.path().join("one.json")).args(&arguments[1..]);
        command
    }

    fn stored(&self, key: &str) -> bool {
        self.bucket.objects().join(key).exists()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_one_registry_takes_the_other_gives() {
    let Some(shared) = Shared::start().await else { return };
    let (one, two) = shared.apis();
    let image = Image::new(1, 20_000_000);
    one.must_push("team/app", "1", &image).await;
    for reference in ["1".to_owned(), digest(&image.manifest)] {
        let answer = two.get(&format!("/v2/team/app/manifests/{reference}")).await;
        assert_eq!(header_of(&answer, "content-type"), MANIFEST);
        assert_eq!(answer.bytes().await.unwrap(), image.manifest);
    }
    let target = format!("/v2/team/app/blobs/{}", digest(&image.layer));
    assert!(two.get(&target).await.bytes().await.unwrap() == image.layer);
    let part = two.request(Method::GET, &target).header(header::RANGE, "bytes=10000000-10000009").send().await.unwrap();
    assert_eq!(part.status(), StatusCode::PARTIAL_CONTENT);
    assert_eq!(part.bytes().await.unwrap(), image.layer[10_000_000..10_000_010]);
    // The same keys as in a directory.
    assert!(shared.stored("repositories/team/app/_tags/1"));
    let hex = digest(&image.layer).replace("sha256:", "");
    assert!(shared.stored(&format!("blobs/sha256/{}/{hex}", &hex[..2])));
    assert_eq!(files(&shared.bucket.objects().join("uploads")), 0);
    // A blob belongs to the repositories that hold it.
    assert_eq!(two.get(&target.replace("team/app", "other")).await.status(), StatusCode::NOT_FOUND);
    let mount = format!("/v2/other/blobs/uploads/?mount={}&from=team/app", digest(&image.layer));
    assert_eq!(two.post(&mount).await.status(), StatusCode::CREATED);
    assert_eq!(one.head(&target.replace("team/app", "other")).await.status(), StatusCode::OK);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_kept_and_how_much_is_so_in_a_bucket_too() {
    let retention = json!({"delay": "1s", "policies": [
        {"repositories": ["ci/**"], "keepTags": [{"mostRecentlyPushedCount": 2}]}]});
    let quotas = json!([{"repositories": ["small/**"], "bytes": "100kB"}]);
    let storage = json!({"gcInterval": "1s", "retention": retention, "quotas": quotas,
        "immutableTags": [{"repositories": ["release/**"]}]});
    let Some(shared) = Shared::start_with(storage).await else { return };
    let (one, two) = shared.apis();
    let images: Vec<Image> = (0..4).map(|i| Image::new(i, 1000)).collect();
    for (i, image) in images.iter().enumerate() {
        [one, two][i % 2].must_push("ci/app", &format!("v{i}"), image).await;
    }
    let status =
        async |api: &Api, reference: &str| api.get(&format!("/v2/ci/app/manifests/{reference}")).await.status();
    for gone in ["v0", "v1", &digest(&images[0].manifest), &digest(&images[1].manifest)] {
        for api in [one, two] {
            wait_for(gone, async || (status(api, gone).await == StatusCode::NOT_FOUND).then_some(())).await;
        }
    }
    for stays in ["v2", "v3", &digest(&images[2].manifest)] {
        assert_eq!(status(two, stays).await, StatusCode::OK, "{stays}");
    }
    // Of two registries that set an immutable tag at once, one does.
    for image in &images[..2] {
        for bytes in [&image.layer, &image.config] {
            one.push_blob("release/app", bytes).await.unwrap();
        }
    }
    let (first, second) = tokio::join!(
        one.push_manifest("release/app", "v1", &images[0].manifest),
        two.push_manifest("release/app", "v1", &images[1].manifest)
    );
    let statuses = [first.unwrap().status(), second.unwrap().status()];
    assert_eq!(statuses.iter().filter(|status| status.is_success()).count(), 1, "{statuses:?}");
    let kept = one.get("/v2/release/app/manifests/v1").await.bytes().await.unwrap();
    let winner = usize::from(!statuses[0].is_success());
    assert!(kept == images[winner].manifest);
    assert_eq!(two.delete("/v2/release/app/manifests/v1").await.status(), StatusCode::FORBIDDEN);
    // What one registry has taken counts there. (A minute after its start each counts anew, and knows nothing for sure.)
    wait_for("the count", async || {
        let usage: Value = one.get("/v2/_berth/usage/small/a").await.json().await.ok()?;
        (usage["quotas"][0]["counting"] != json!(true)).then_some(())
    })
    .await;
    assert_eq!(one.push_blob("small/a", &Image::new(7, 60_000).layer).await.unwrap().status(), StatusCode::CREATED);
    let refused = one.push_blob("small/b", &Image::new(8, 60_000).layer).await.unwrap();
    assert_eq!(error_of(refused).await, (403, "DENIED".to_owned()));
    assert_eq!(one.push_blob("small/b", &Image::new(7, 60_000).layer).await.unwrap().status(), StatusCode::CREATED);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_chunked_upload_hops_between_two_registries() {
    let Some(shared) = Shared::start().await else { return };
    let (one, two) = shared.apis();
    let bytes = Image::new(2, 18_000_000).layer;
    let mut address = one.start_upload("r").await;
    let mut at = 0;
    for (api, len) in [(two, 100_000), (one, 9_000_000), (two, 1), (one, 8_500_000)] {
        let range = format!("{at}-{}", at + len - 1);
        let request = api.request(Method::PATCH, &address).header(header::CONTENT_RANGE, range);
        let answer = request.body(bytes[at..at + len].to_vec()).send().await.unwrap();
        assert_eq!(answer.status(), StatusCode::ACCEPTED);
        at += len;
        assert_eq!(header_of(&answer, "range"), format!("0-{}", at - 1));
        address = location(&answer);
    }
    assert_eq!(header_of(&two.get(&address).await, "range"), format!("0-{}", at - 1));
    let wrong = format!("{address}?digest={}", digest(b"something else"));
    let answer = one.request(Method::PUT, &wrong).body(bytes[at..].to_vec()).send().await.unwrap();
    assert_eq!(error_of(answer).await, (400, "DIGEST_INVALID".to_owned()));
    let target = format!("{address}?digest={}", digest(&bytes));
    let answer = two.request(Method::PUT, &target).body(bytes[at..].to_vec()).send().await.unwrap();
    assert_eq!(answer.status(), StatusCode::CREATED);
    assert!(one.get(&location(&answer)).await.bytes().await.unwrap() == bytes);
    assert_eq!(error_of(one.get(&address).await).await, (404, "BLOB_UPLOAD_UNKNOWN".to_owned()));
    // One that is cancelled at the other one is gone, with its parts.
    let address = one.start_upload("r").await;
    one.request(Method::PATCH, &address).body(bytes).send().await.unwrap();
    assert_eq!(two.delete(&address).await.status(), StatusCode::NO_CONTENT);
    assert_eq!(one.get(&address).await.status(), StatusCode::NOT_FOUND);
    let parts = shared.bucket.objects().parent().unwrap().join(".sgwtmp");
    assert_eq!(files(&parts), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn lists_and_deletions_are_the_same_at_both() {
    let Some(shared) = Shared::start().await else { return };
    let (one, two) = shared.apis();
    let image = Image::new(3, 1000);
    for repository in ["a", "a/b", "a-b", "z"] {
        one.must_push(repository, "1", &image).await;
    }
    one.must_push("a", "zzz", &Image::new(4, 1000)).await;
    for i in 2..12 {
        let answer = two.push_manifest("a", &format!("t{i:02}"), &image.manifest).await.unwrap();
        assert_eq!(answer.status(), StatusCode::CREATED);
    }
    let answer = one.get("/v2/_catalog?n=2").await;
    let next = header_of(&answer, "link");
    assert_eq!(answer.json::<Value>().await.unwrap()["repositories"], json!(["a", "a/b"]));
    let next = next.trim_start_matches('<').split('>').next().unwrap().to_owned();
    assert_eq!(two.get(&next).await.json::<Value>().await.unwrap()["repositories"], json!(["a-b", "z"]));
    let answer = one.get("/v2/a/tags/list?n=3&last=1").await;
    assert!(header_of(&answer, "link").contains("last=t04"));
    assert_eq!(answer.json::<Value>().await.unwrap()["tags"], json!(["t02", "t03", "t04"]));
    assert_eq!(one.get("/v2/nothing/tags/list").await.status(), StatusCode::NOT_FOUND);

    let create = one.request(Method::PUT, "/v2/a/manifests/1").header(header::IF_NONE_MATCH, "*");
    let refused = create.header(header::CONTENT_TYPE, MANIFEST).body(image.manifest.clone()).send().await.unwrap();
    assert_eq!(refused.status(), StatusCode::PRECONDITION_FAILED);
    let update = one.request(Method::PUT, "/v2/a/manifests/1").header(header::IF_MATCH, "*");
    let moved = update.header(header::CONTENT_TYPE, MANIFEST).body(image.manifest.clone()).send().await.unwrap();
    assert_eq!(moved.status(), StatusCode::CREATED);

    let manifest = format!("/v2/a/manifests/{}", digest(&image.manifest));
    assert_eq!(one.delete(&manifest).await.status(), StatusCode::ACCEPTED);
    assert_eq!(two.get("/v2/a/tags/list").await.json::<Value>().await.unwrap()["tags"], json!(["zzz"]));
    assert_eq!(two.get("/v2/a-b/manifests/1").await.status(), StatusCode::OK);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_commands_work_on_a_bucket_too() {
    let Some(shared) = Shared::start().await else { return };
    let (one, two) = shared.apis();
    must(&mut shared.command(&["verify"]));
    let (layout, image) = (shared.folder.path().join("layout"), Image::new(4, 9_000_000));
    image.write_layout(&layout, "1");
    must(&mut shared.command(&["import", layout.to_str().unwrap(), "--repository", "moved/in"]));
    assert_eq!(two.get("/v2/moved/in/manifests/1").await.bytes().await.unwrap(), image.manifest);
    let out = shared.folder.path().join("out");
    must(&mut shared.command(&["export", "moved/in", out.to_str().unwrap()]));
    let hex = digest(&image.layer).replace("sha256:", "");
    assert!(fs::read(out.join("blobs/sha256").join(&hex)).unwrap() == image.layer);

    let printed = must(&mut shared.command(&["scrub"]));
    assert!(printed.contains("read 3 blobs; 0 are damaged"), "{printed}");
    let file = shared.bucket.objects().join("blobs/sha256").join(&hex[..2]).join(&hex);
    damage(&file);
    let outcome = run(&mut shared.command(&["scrub"]));
    assert!(!outcome.success && outcome.printed.contains(&hex), "{}", outcome.printed);

    // Young garbage stays, also after nobody names it.
    let manifest = format!("/v2/moved/in/manifests/{}", digest(&image.manifest));
    assert_eq!(one.delete(&manifest).await.status(), StatusCode::ACCEPTED);
    let printed = must(&mut shared.command(&["gc"]));
    assert!(printed.contains("removed: 0 blobs that no manifest named, 0 blobs"), "{printed}");
    // An hour later.
    grow_old(&shared.bucket.objects());
    let printed = must(&mut shared.command(&["gc", "--dry-run"]));
    assert!(printed.contains("2 blobs that no manifest named, 3 blobs"), "{printed}");
    // One of them is asked for at the other registry, which promises it.
    let config = format!("/v2/moved/in/blobs/{}", digest(&image.config));
    assert_eq!(two.head(&config).await.status(), StatusCode::OK);
    let printed = must(&mut shared.command(&["gc"]));
    assert!(printed.contains("removed: 1 blobs that no manifest named, 2 blobs"), "{printed}");
    assert_eq!(two.head(&config).await.status(), StatusCode::OK);
    assert!(!file.exists());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bucket_that_is_not_there_is_named_by_verify() {
    let Some(shared) = Shared::start().await else { return };
    let path = shared.folder.path().join("one.json");
    let right = fs::read_to_string(&path).unwrap();
    for (bucket, secret) in [("bucket", "mistaken"), ("another", KEY.1)] {
        let mut config: Value = serde_json::from_str(&right).unwrap();
        config["storage"]["storageDriver"]["bucket"] = json!(bucket);
        config["storage"]["storageDriver"]["secretkey"] = json!(secret);
        fs::write(&path, config.to_string()).unwrap();
        let outcome = run(&mut shared.command(&["verify"]));
        let expected = format!("storage.storageDriver: the bucket {bucket} can't be used");
        assert!(!outcome.success && outcome.printed.contains(&expected), "{}", outcome.printed);
        assert!(!outcome.printed.contains(secret), "{}", outcome.printed);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_digest_that_nobody_announced_is_computed_in_a_bucket_too() {
    let Some(shared) = Shared::start().await else { return };
    // Three parts and a rest, and less than a part.
    for len in [1000, 20_000_000] {
        crate::spec::push_unannounced(shared.apis().0, &Image::new(len as u64, len).layer).await;
    }
    // That of a wrong digest, too: its parts were joined to be read.
    assert_eq!(files(&shared.bucket.objects().join("uploads")), 0);
}

/// A post that breaks off or is wrong leaves nothing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_single_post_that_is_wrong_leaves_nothing_in_a_bucket() {
    let Some(shared) = Shared::start().await else { return };
    let api = shared.apis().0;
    let target = format!("/v2/r/blobs/uploads/?digest={}", digest(b"something else"));
    let layer = Image::new(1, 9_000_000).layer;
    let wrong = api.request(Method::POST, &target).body(layer).send().await.unwrap();
    assert_eq!(wrong.status(), StatusCode::BAD_REQUEST);
    assert_eq!(files(&shared.bucket.objects().join("uploads")), 0);
}

/// Whatever happens, a tag that is listed serves, and what serves is listed.
async fn tags_serve(api: &Api, repository: &str) {
    let list: Value = api.get(&format!("/v2/{repository}/tags/list")).await.json().await.unwrap();
    for tag in list["tags"].as_array().into_iter().flatten() {
        let tag = tag.as_str().unwrap();
        let served = api.get(&format!("/v2/{repository}/manifests/{tag}")).await;
        assert_eq!(served.status(), StatusCode::OK, "{tag} is listed");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tag_that_is_set_while_its_manifest_is_deleted_serves_or_is_gone() {
    let Some(shared) = Shared::start().await else { return };
    let (one, two) = shared.apis();
    let (image, other) = (Image::new(1, 100), Image::new(2, 100));
    let target = format!("/v2/r/manifests/{}", digest(&image.manifest));
    one.must_push("r", "other", &other).await;
    for round in 0..40 {
        one.must_push("r", "before", &image).await;
        let tag = format!("t{round}");
        let (deleted, pushed) = tokio::join!(one.delete(&target), two.push_manifest("r", &tag, &image.manifest));
        assert!([202, 404].contains(&deleted.status().as_u16()), "{}", deleted.status());
        let pushed = pushed.unwrap();
        assert!([201, 404].contains(&pushed.status().as_u16()), "{}", pushed.status());
        for api in [one, two] {
            tags_serve(api, "r").await;
        }
        // What is acknowledged last is there, and can be made and taken away again.
        let served = one.get(&format!("/v2/r/manifests/{tag}")).await.status() == StatusCode::OK;
        let again = two.delete(&format!("/v2/r/manifests/{tag}")).await.status();
        assert_eq!(again, if served { StatusCode::ACCEPTED } else { StatusCode::NOT_FOUND }, "round {round}");
        one.must_push("r", "x", &image).await;
        let create = two.request(Method::PUT, &format!("/v2/r/manifests/{tag}")).header(header::IF_NONE_MATCH, "*");
        let created = create.header(header::CONTENT_TYPE, MANIFEST).body(image.manifest.clone()).send().await.unwrap();
        assert_eq!(created.status(), StatusCode::CREATED, "round {round}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tag_that_another_registry_moves_is_not_deleted_with_what_it_pointed_at() {
    let Some(shared) = Shared::start().await else { return };
    let (one, two) = shared.apis();
    let (old, new) = (Image::new(1, 100), Image::new(2, 100));
    let target = format!("/v2/r/manifests/{}", digest(&old.manifest));
    for round in 0..20 {
        one.must_push("r", "latest", &new).await;
        one.must_push("r", "latest", &old).await;
        let (deleted, moved) = tokio::join!(one.delete(&target), two.push_manifest("r", "latest", &new.manifest));
        assert_eq!((deleted.status(), moved.unwrap().status()), (StatusCode::ACCEPTED, StatusCode::CREATED));
        for api in [one, two] {
            let latest = api.get("/v2/r/manifests/latest").await;
            assert_eq!(latest.status(), StatusCode::OK, "round {round}");
            assert_eq!(latest.bytes().await.unwrap(), new.manifest);
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bucket_is_asked_no_more_than_must_be() {
    let Some(shared) = Shared::start().await else { return };
    let (one, two) = shared.apis();
    let image = Image::new(1, 20_000_000);
    let seen = [0, 1].map(|registry| BucketRequests::of(&shared, registry));
    // Its digest is said before its first byte: nothing is copied.
    assert_eq!(one.push_blob("r", &image.layer).await.unwrap().status(), StatusCode::CREATED);
    let of_layer = seen[0].lately();
    assert!(of_layer.iter().all(|(_, path)| !path.contains("/data")), "{of_layer:?}");
    assert_eq!(one.push_blob("r", &image.config).await.unwrap().status(), StatusCode::CREATED);
    seen[0].lately();
    assert_eq!(one.push_manifest("r", "1", &image.manifest).await.unwrap().status(), StatusCode::CREATED);
    let of_manifest = seen[0].lately();
    assert!(of_manifest.len() <= 14, "{of_manifest:#?}");
    // Its pusher knows its bytes, and another registry after the first pull.
    let pulled = async |api: &Api, target: &str| {
        let answer = api.get(target).await;
        assert_eq!(answer.status(), StatusCode::OK, "{target}");
        answer.bytes().await.unwrap()
    };
    for (api, seen, firsts) in [(one, &seen[0], [1, 1, 2]), (two, &seen[1], [2, 1, 2])] {
        let held = |path: &str, folder: &str| path.contains(folder) && !path.contains("/blobs/");
        for (reference, first, folder) in
            [("1".to_owned(), firsts[0], "/_tags/"), (digest(&image.manifest), firsts[1], "/_manifests/")]
        {
            for expected in [first, 1] {
                assert_eq!(pulled(api, &format!("/v2/r/manifests/{reference}")).await, image.manifest);
                let asked = seen.lately();
                assert_eq!(asked.len(), expected, "{asked:?}");
                assert!(held(&asked[0].1, folder), "{asked:?}");
            }
        }
        for expected in [firsts[2], 1] {
            assert_eq!(pulled(api, &format!("/v2/r/blobs/{}", digest(&image.config))).await, image.config);
            assert_eq!(seen.lately().len(), expected);
        }
    }
    // Whether it is still there is asked all the same.
    assert_eq!(
        one.delete(&format!("/v2/r/manifests/{}", digest(&image.manifest))).await.status(),
        StatusCode::ACCEPTED
    );
    for reference in ["1".to_owned(), digest(&image.manifest)] {
        assert_eq!(two.get(&format!("/v2/r/manifests/{reference}")).await.status(), StatusCode::NOT_FOUND);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_write_whose_answer_is_lost_is_known_as_one_s_own() {
    let Some(shared) = Shared::start().await else { return };
    let (api, faults) = (shared.apis().0, &shared.faults[0]);
    let image = Image::new(1, 9_000_000);
    api.must_push("r", "1", &image).await;
    for round in 0..5 {
        faults.once(Method::PUT, "_tags/", Fault::LostAnswer);
        let create =
            api.request(Method::PUT, &format!("/v2/r/manifests/new{round}")).header(header::IF_NONE_MATCH, "*");
        let created = create.header(header::CONTENT_TYPE, MANIFEST).body(image.manifest.clone()).send().await.unwrap();
        assert_eq!(created.status(), StatusCode::CREATED);
        // And somebody else's is somebody else's.
        let create =
            api.request(Method::PUT, &format!("/v2/r/manifests/new{round}")).header(header::IF_NONE_MATCH, "*");
        let refused = create.header(header::CONTENT_TYPE, MANIFEST).body(image.manifest.clone()).send().await.unwrap();
        assert_eq!(refused.status(), StatusCode::PRECONDITION_FAILED);
        let address = api.start_upload("r").await;
        faults.once(Method::PUT, "/state", Fault::LostAnswer);
        let chunk = api.request(Method::PATCH, &address).body("abc").send().await.unwrap();
        assert_eq!(chunk.status(), StatusCode::ACCEPTED, "{}", chunk.text().await.unwrap());
        let target = format!("{address}?digest={}", digest(b"abc"));
        faults.once(Method::PUT, "/state", Fault::LostAnswer);
        let finished = api.request(Method::PUT, &target).header(header::CONTENT_LENGTH, 0).send().await.unwrap();
        assert_eq!(finished.status(), StatusCode::CREATED);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_stored_is_acknowledged_though_it_cannot_be_cleared_up() {
    let Some(shared) = Shared::start().await else { return };
    let api = shared.apis().0;
    shared.faults[0]
        .set(|method, path| (method == Method::DELETE && path.contains("uploads/")).then_some(Fault::Answer(403)));
    let layer = Image::new(1, 9_000_000).layer;
    assert_eq!(api.push_blob("r", &layer).await.unwrap().status(), StatusCode::CREATED);
    assert!(api.get(&format!("/v2/r/blobs/{}", digest(&layer))).await.bytes().await.unwrap() == layer);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_bucket_is_told_so() {
    let Some(shared) = Shared::start().await else { return };
    let api = shared.apis().0;
    api.must_push("r", "1", &Image::new(1, 100)).await;
    shared.faults[0].set(|method, _| (method == Method::PUT).then_some(Fault::Answer(507)));
    let answer = within(Duration::from_secs(60), "a full bucket", api.post("/v2/r/blobs/uploads/")).await;
    assert_eq!(error_of(answer).await.0, 507);
    assert_eq!(api.get("/v2/r/manifests/1").await.status(), StatusCode::OK);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bucket_that_is_silent_or_away_is_told_within_half_a_minute() {
    let Some(mut shared) = Shared::start().await else { return };
    let (one, two) = shared.apis();
    let (one, two) = (one.clone(), two.clone());
    one.must_push("r", "1", &Image::new(1, 100)).await;
    let must_say = async |what: &str| {
        for target in ["/v2/r/manifests/1", "/v2/r/tags/list"] {
            let answer = within(Duration::from_secs(45), what, one.get(target)).await;
            assert_eq!(answer.status(), StatusCode::SERVICE_UNAVAILABLE, "{what}: {target}");
            assert!(answer.headers().contains_key("retry-after"), "{what}");
        }
        let ready = within(Duration::from_secs(10), what, one.get("/readyz")).await;
        assert_eq!(ready.status(), StatusCode::SERVICE_UNAVAILABLE, "{what}");
        let health = run(&mut shared.command(&["health"]));
        assert!(!health.success, "{what}: {}", health.printed);
    };
    shared.faults[0].set(|_, _| Some(Fault::Silence));
    must_say("a silent bucket").await;
    shared.faults[0].set(|_, _| None);
    assert_eq!(one.get("/v2/r/manifests/1").await.status(), StatusCode::OK);
    // One that is gone.
    shared.bucket.kill();
    let answer = within(Duration::from_secs(45), "a bucket that is away", two.get("/v2/r/manifests/1")).await;
    assert_eq!(answer.status(), StatusCode::SERVICE_UNAVAILABLE);
    wait_for("/readyz to say so", async || {
        (two.get("/readyz").await.status() == StatusCode::SERVICE_UNAVAILABLE).then_some(())
    })
    .await;
    shared.bucket.restart().await;
    wait_for("the bucket again", async || {
        (two.get("/v2/r/manifests/1").await.status() == StatusCode::OK).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_collection_that_fails_or_is_killed_holds_nobody_up() {
    let Some(shared) = Shared::start().await else { return };
    let two = shared.apis().1;
    let blob = Image::new(1, 1000).layer;
    let collecting = async |fault: Fault| {
        two.push_blob("r", &blob).await.unwrap();
        grow_old(&shared.bucket.objects());
        let hex = digest(&blob).replace("sha256:", "");
        shared.faults[0].set(move |method, path| {
            // Between the mark and the removal.
            (*method == Method::DELETE && path.contains(&hex) && !path.contains("condemned")).then_some(fault)
        });
        let mut gc = Process::start(&mut shared.command(&["gc"]), &shared.folder.path().join("gc.log")).unwrap();
        let mark = shared.bucket.objects().join("condemned");
        wait_for("the mark", async || (files(&mark) > 0).then_some(())).await;
        if fault == Fault::Silence {
            gc.kill();
        }
        let began = std::time::Instant::now();
        let pushed = two.push_blob("r", &blob).await.unwrap();
        assert_eq!(pushed.status(), StatusCode::CREATED);
        assert!(began.elapsed() < Duration::from_secs(25), "{:?}", began.elapsed());
        assert_eq!(two.get(&format!("/v2/r/blobs/{}", digest(&blob))).await.status(), StatusCode::OK);
    };
    collecting(Fault::Answer(403)).await;
    fs::remove_dir_all(shared.bucket.objects().join("condemned")).unwrap_or_default();
    collecting(Fault::Silence).await;
}

/// What one registry has promised for two hours, another one doesn't collect that keeps garbage for ten minutes.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_promise_holds_for_as_long_as_whoever_made_it_said() {
    let Some(shared) = Shared::start().await else { return };
    let blob = Image::new(1, 1000).layer;
    // A third one, of another opinion.
    let url = format!("http://127.0.0.1:{}", free_port());
    let path = shared.config("three", &url);
    let text = fs::read_to_string(&path).unwrap().replace("\"10m\"", "\"2h\"");
    fs::write(&path, text).unwrap();
    let mut command = Command::new(binary("berth-registry"));
    let _patient = Process::start(command.arg("serve").arg(&path), &shared.folder.path().join("three.log")).unwrap();
    wait_for("a registry", async || reqwest::get(format!("{url}/v2/")).await.ok()).await;
    let patient = Api::new(&url, Credential::None);
    patient.push_blob("r", &blob).await.unwrap();
    let target = format!("/v2/r/blobs/{}", digest(&blob));
    assert_eq!(patient.head(&target).await.status(), StatusCode::OK);
    // An hour later, the promise is as old as all the rest.
    grow_old(&shared.bucket.objects());
    let printed = must(&mut shared.command(&["gc"]));
    assert!(printed.contains("removed: 0 blobs that no manifest named, 0 blobs"), "{printed}");
    assert_eq!(patient.head(&target).await.status(), StatusCode::OK);
}

/// How many files there are in a folder, however deep.
fn files(folder: &Path) -> usize {
    let entries = fs::read_dir(folder).into_iter().flatten().map(|entry| entry.unwrap().path());
    entries.map(|entry| if entry.is_dir() { files(&entry) } else { 1 }).sum()
}

fn damage(file: &Path) {
    let mut bytes = fs::read(file).unwrap();
    bytes[100] ^= 1;
    fs::write(file, bytes).unwrap();
}

/// Makes every object an hour old.
fn grow_old(folder: &Path) {
    for entry in fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()) {
        if entry.is_dir() {
            grow_old(&entry);
        } else {
            let hour = std::time::Duration::from_hours(1);
            fs::File::open(&entry).unwrap().set_modified(std::time::SystemTime::now() - hour).unwrap();
        }
    }
}

/// zot's layout in a bucket: a folder a repository, and of a blob that two have an empty object in one of them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_of_zot_s_in_a_bucket_is_brought_over_and_a_second_run_reads_little() {
    let Some(shared) = Shared::start().await else { return };
    let zot = shared.bucket.objects().parent().unwrap().join("zot");
    let (one, two) = (Image::new(1, 2_000_000), Image::new(1, 2_000_000));
    for (name, image, tag) in [("team/app", &one, "1"), ("other", &two, "2")] {
        image.write_layout(&zot.join(name), tag);
    }
    let hex = digest(&one.layer).replace("sha256:", "");
    fs::write(zot.join("other/blobs/sha256").join(&hex), "").unwrap();
    let mut driver = driver(&shared.faults[1].endpoint);
    driver["rootdirectory"] = json!("/zot");
    let from = shared.folder.path().join("zot.json");
    let config = json!({"distSpecVersion": "1.1.0", "storage": {"rootDirectory": "/zot", "storageDriver": driver}});
    fs::write(&from, config.to_string()).unwrap();
    let import = || must(&mut shared.command(&["import", "--from-driver", from.to_str().unwrap()]));
    let printed = import();
    assert!(printed.contains("imported 2 repositories: 2 manifests, 2 tags, 4 blobs"), "{printed}");
    let api = shared.apis().0;
    for (name, tag) in [("team/app", "1"), ("other", "2")] {
        assert_eq!(api.get(&format!("/v2/{name}/manifests/{tag}")).await.bytes().await.unwrap(), one.manifest);
        let layer = api.get(&format!("/v2/{name}/blobs/{}", digest(&one.layer))).await;
        assert!(layer.bytes().await.unwrap() == one.layer, "{name}");
    }
    // Begun again, no layer is read.
    let wanted = hex.clone();
    shared.faults[1]
        .set(move |method, path| (method == Method::GET && path.contains(&wanted)).then_some(Fault::Answer(500)));
    import();
    let wrong =
        run(&mut shared.command(&["import", "--from-driver", shared.folder.path().join("one.json").to_str().unwrap()]));
    assert!(!wrong.success && wrong.printed.contains("name the same bucket"), "{}", wrong.printed);
    // What can be said of a file without its bucket.
    shared.faults[0].set(|_, _| Some(Fault::Answer(500)));
    must(&mut shared.command(&["verify", "--offline"]));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_are_sent_to_the_bucket_for_blobs_and_only_who_may_read_them() {
    let folder = tempfile::tempdir().unwrap();
    let Some(bucket) = Bucket::start(folder.path()).await else { return };
    // What clients are told is another address than ours.
    let relay = Relay::to(bucket.endpoint.trim_start_matches("http://")).await;
    let public = relay.url().replace("localhost", "127.0.0.1");
    let storage = json!({
        "storageDriver": driver(&bucket.endpoint), "gcDelay": "10m", "redirectBlobURL": {"endpoint": public},
    });
    let system = System::start(Setup { access_control: demonstration_rules(), storage, ..Setup::default() }).await;
    let (key, _) = system.signed_in("alice").await.make_key("redirects").await;
    let stay = reqwest::Client::builder().redirect(Policy::none()).build().unwrap();
    let alice = Api::over(&system.url, stay, Credential::Basic("alice".to_owned(), key.clone()));
    let image = Image::new(7, 6_000_000);
    alice.must_push("team/app", "1", &image).await;
    let target = format!("/v2/team/app/blobs/{}", digest(&image.layer));

    let answer = alice.get(&target).await;
    assert_eq!(answer.status(), StatusCode::TEMPORARY_REDIRECT);
    assert_eq!(header_of(&answer, "cache-control"), "no-store");
    let address = header_of(&answer, "location");
    assert!(address.starts_with(&public) && address.contains("X-Amz-Expires=300"), "{address}");
    assert!(!address.contains(KEY.1) && !address.contains(&key), "{address}");
    // Nobody else hears of it, and it is good for this object alone.
    let bob = Api::over(&system.url, reqwest::Client::new(), Credential::None);
    assert_eq!(bob.get(&target).await.status(), StatusCode::UNAUTHORIZED);
    assert_eq!(alice.get(&target.replace("team/app", "team/other")).await.status(), StatusCode::NOT_FOUND);
    let config = digest(&image.config).replace("sha256:", "");
    let layer = digest(&image.layer).replace("sha256:", "");
    let other = address.replace(&format!("{}/{layer}", &layer[..2]), &format!("{}/{config}", &config[..2]));
    assert_ne!(other, address);
    assert_eq!(reqwest::get(&other).await.unwrap().status(), StatusCode::FORBIDDEN);
    assert_eq!(reqwest::Client::new().put(&address).send().await.unwrap().status(), StatusCode::FORBIDDEN);
    // HEAD, what is known already, and what is small stay here.
    let head = alice.head(&target).await;
    assert_eq!((head.status(), header_of(&head, "content-length")), (StatusCode::OK, image.layer.len().to_string()));
    let known = alice.request(Method::GET, &target).header(header::IF_NONE_MATCH, header_of(&head, "etag"));
    assert_eq!(known.send().await.unwrap().status(), StatusCode::NOT_MODIFIED);
    let small = alice.get(&format!("/v2/team/app/blobs/{}", digest(&image.config))).await;
    assert_eq!((small.status(), small.bytes().await.unwrap().to_vec()), (StatusCode::OK, image.config.clone()));

    // Who follows has the bytes, a range of them too, and shows the service no credential of ours.
    let credential = Credential::Basic("alice".to_owned(), key.clone());
    let follow = Api::over(&system.url, reqwest::Client::new(), credential);
    assert!(follow.get(&target).await.bytes().await.unwrap() == image.layer);
    let range = follow.request(Method::GET, &target).header(header::RANGE, "bytes=1000-1999").send().await.unwrap();
    assert_eq!(range.status(), StatusCode::PARTIAL_CONTENT);
    assert_eq!(range.bytes().await.unwrap(), image.layer[1000..2000]);
    let registry = system.url.trim_start_matches("http://");
    for (client, arguments) in [
        ("crane", vec!["pull", "--insecure", "REF", "OUT.tar"]),
        ("skopeo", vec!["copy", "--src-tls-verify=false", "docker://REF", "dir:OUT"]),
    ] {
        let Some(program) = berth_tests::tools::find(client) else { continue };
        let out = folder.path().join(client);
        let place =
            |text: &str| text.replace("REF", &format!("{registry}/team/app:1")).replace("OUT", out.to_str().unwrap());
        let auth = folder.path().join("config.json");
        let shown = base64::Engine::encode(&base64::engine::general_purpose::STANDARD, format!("alice:{key}"));
        fs::write(&auth, json!({"auths": {registry: {"auth": shown}}}).to_string()).unwrap();
        let mut command = Command::new(program);
        command.args(arguments.iter().map(|text| place(text)));
        must(command.env("DOCKER_CONFIG", folder.path()).env("REGISTRY_AUTH_FILE", &auth));
    }
    assert!(relay.requests("GET /bucket/berth/blobs/sha256/") >= 2);
    assert_eq!((relay.requests("authorization:"), relay.requests("cookie:")), (0, 0));
}

#[test]
fn clients_are_sent_to_no_place_where_they_would_show_their_credential() {
    let folder = tempfile::tempdir().unwrap();
    let verified = |redirect: Value, endpoint: &str| {
        let config = json!({
            "http": {"externalUrl": "https://registry.company"},
            "storage": {"storageDriver": driver(endpoint), "redirectBlobURL": redirect}, "sidecar": {},
        });
        let path = folder.path().join("config.json");
        fs::write(&path, config.to_string()).unwrap();
        let output = Command::new(binary("berth-registry")).arg("verify").arg(&path).output().unwrap();
        String::from_utf8_lossy(&[output.stderr, output.stdout].concat()).into_owned()
    };
    for (redirect, endpoint) in [
        (json!({"endpoint": "https://s3.registry.company"}), "https://s3.internal"),
        (json!({"endpoint": "https://REGISTRY.company.:9000"}), "https://s3.internal"),
        (json!(true), "https://s3.registry.company"),
    ] {
        let printed = verified(redirect, endpoint);
        assert!(printed.contains("belongs to the domain of http.externalUrl"), "{printed}");
    }
    for mistake in [
        "s3.company",
        "https://:9000",
        "https://s3.company:99999",
        "https://s3.company?x=1",
        "https://s3.company#f",
        "https://s3.company/path",
        "https://user@s3.company",
        "ftp://s3.company",
    ] {
        let printed = verified(json!({"endpoint": mistake}), "https://s3.internal");
        assert!(
            printed.contains("storage.redirectBlobURL.endpoint: is no address of a service"),
            "{mistake}: {printed}"
        );
    }
    let printed = verified(json!(true), "https://s3.internal");
    assert!(printed.contains("sends clients to https://s3.internal"), "{printed}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_pauses_for_longer_than_a_bucket_may_gets_all_of_a_blob() {
    let Some(shared) = Shared::start().await else { return };
    let (one, _) = shared.apis();
    let image = Image::new(1, 40_000_000);
    one.must_push("team/app", "1", &image).await;
    let target = format!("/v2/team/app/blobs/{}", digest(&image.layer));
    // More of them than are sent pieces ahead.
    let readers = (0..6).map(|_| {
        let (api, target, layer) = (one.clone(), target.clone(), image.layer.clone());
        tokio::spawn(async move {
            let mut answer = api.get(&target).await;
            let mut bytes = Vec::with_capacity(layer.len());
            while bytes.len() < 1_000_000 {
                bytes.extend_from_slice(&answer.chunk().await.unwrap().unwrap());
            }
            // Longer than a service may be silent, with all that is tried again.
            tokio::time::sleep(Duration::from_secs(25)).await;
            while let Some(chunk) = answer.chunk().await.unwrap() {
                bytes.extend_from_slice(&chunk);
            }
            assert!(bytes == layer, "{} of {}", bytes.len(), layer.len());
        })
    });
    for reader in readers.collect::<Vec<_>>() {
        reader.await.unwrap();
    }
}
