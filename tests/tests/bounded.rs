//! No request to the registry costs more than it is worth: what is read, remembered and held is counted, with a hostile client.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use berth_tests::{
    api::{Api, Credential, error_of, header_of},
    images::{Image, MANIFEST, digest},
    process::{Process, free_port, wait_for},
    system::binary,
    tools::{find, must, run},
};
use reqwest::{Method, StatusCode, header};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

/// `berth-registry` by itself, on a port of loopback.
struct Registry {
    folder: tempfile::TempDir,
    port: u16,
    process: Process,
    api: Api,
}

impl Registry {
    async fn start(storage: Value) -> Self {
        Self::start_within(storage, None).await
    }

    /// With at most so many descriptors.
    async fn start_within(storage: Value, descriptors: Option<u64>) -> Self {
        let (folder, port) = (tempfile::tempdir().unwrap(), free_port());
        let mut all = json!({"rootDirectory": folder.path().join("store")});
        all.as_object_mut().unwrap().extend(storage.as_object().unwrap().clone());
        let config = json!({"storage": all, "sidecar": {"upstream": format!("http://127.0.0.1:{port}")}});
        fs::write(folder.path().join("config.json"), config.to_string()).unwrap();
        let process = Self::serve(folder.path(), descriptors);
        let api = Api::new(&format!("http://127.0.0.1:{port}"), Credential::None);
        let registry = Self { folder, port, process, api };
        registry.ready().await;
        registry
    }

    fn serve(folder: &Path, descriptors: Option<u64>) -> Process {
        let limit = descriptors.map_or_else(String::new, |limit| format!("ulimit -n {limit};"));
        let mut command = Command::new("sh");
        command.args(["-c", &format!("{limit} exec \"$0\" serve \"$1\"")]);
        Process::start(command.arg(binary("berth-registry")).arg(folder.join("config.json")), &folder.join("log"))
            .unwrap()
    }

    async fn ready(&self) {
        wait_for("the registry", async || {
            TcpStream::connect(("127.0.0.1", self.port)).await.ok()?;
            self.api.request(Method::GET, "/v2/").send().await.ok()
        })
        .await;
    }

    async fn restart(&mut self) {
        self.process.terminate();
        self.process = Self::serve(self.folder.path(), None);
        self.ready().await;
    }

    fn store(&self, key: &str) -> PathBuf {
        self.folder.path().join("store").join(key)
    }

    /// How many calls something takes.
    async fn calls_of(&self, asked: impl Future<Output = StatusCode>, expected: StatusCode) -> u64 {
        let before = self.process.calls();
        assert_eq!(asked.await, expected);
        self.process.calls() - before
    }

    async fn must_push_manifest(&self, repository: &str, reference: &str, manifest: &Value) -> String {
        let text = manifest.to_string();
        let answer = self.put_manifest(repository, reference, text.clone()).await;
        assert_eq!(answer.status(), StatusCode::CREATED, "{}", answer.text().await.unwrap());
        digest(text.as_bytes())
    }

    async fn put_manifest(&self, repository: &str, reference: &str, text: String) -> reqwest::Response {
        let request = self.api.request(Method::PUT, &format!("/v2/{repository}/manifests/{reference}"));
        request.header(header::CONTENT_TYPE, MANIFEST).body(text).send().await.unwrap()
    }
}

#[tokio::test]
async fn what_is_not_there_is_not_remembered_however_often_one_asks() {
    let registry = Registry::start(json!({})).await;
    registry.api.must_push("r", "1", &Image::new(1, 100)).await;
    let mut stream = TcpStream::connect(("127.0.0.1", registry.port)).await.unwrap();
    let mut ask = async |from: usize, to: usize| {
        for first in (from..to).step_by(500) {
            let digests = (first..first + 500).map(|i| digest(&i.to_le_bytes()));
            let requests = digests.map(|digest| format!("HEAD /v2/r/blobs/{digest} HTTP/1.1\r\nHost: r\r\n\r\n"));
            stream.write_all(requests.collect::<String>().as_bytes()).await.unwrap();
            let mut answers = Vec::new();
            while answers.windows(4).filter(|end| end == b"\r\n\r\n").count() < 500 {
                assert!(stream.read_buf(&mut answers).await.unwrap() > 0);
            }
            assert!(answers.starts_with(b"HTTP/1.1 404"));
        }
    };
    ask(0, 5_000).await;
    let before = registry.process.memory();
    ask(5_000, 60_000).await;
    let after = registry.process.memory();
    // It was 460 bytes each: 25 MB.
    assert!(after < before + 5 * 1024, "{before} KiB before, {after} KiB after");
}

/// Writes a repository of so many tags as an earlier version left it: each names a manifest of its own, and some name `all`.
fn write_tags(registry: &Registry, repository: &str, tags: usize, all: &str) {
    let folder = registry.store(&format!("repositories/{repository}/_tags"));
    fs::create_dir_all(&folder).unwrap();
    for i in 0..tags {
        fs::write(folder.join(format!("t{i:06}")), digest(&i.to_le_bytes())).unwrap();
    }
    fs::write(folder.join("a"), all).unwrap();
}

#[tokio::test]
async fn deleting_a_manifest_reads_only_its_own_tags_and_an_older_store_is_brought_up_to_date() {
    let mut registry = Registry::start(json!({})).await;
    let image = Image::new(1, 100);
    for repository in ["few", "many"] {
        registry.api.must_push(repository, "b", &image).await;
    }
    let manifest = digest(&image.manifest);
    write_tags(&registry, "few", 10, &manifest);
    write_tags(&registry, "many", 20_000, &manifest);
    // As a store of before, which has no entries.
    registry.process.terminate();
    for repository in ["few", "many"] {
        for folder in ["_tagged", "_named"] {
            fs::remove_dir_all(registry.store(&format!("repositories/{repository}/{folder}"))).unwrap();
        }
        // Nobody has asked for it yet, perhaps.
        let _ = fs::remove_dir_all(registry.store(&format!("repositories/{repository}/_overview")));
    }
    fs::remove_file(registry.store("layout.json")).unwrap();
    registry.restart().await;
    // What lists show is found out after a start, which reads all tags once.
    for repository in ["few", "many"] {
        let written = registry.store(&format!("repositories/{repository}/_overview/totals"));
        wait_for("what is known to be written down", async || written.exists().then_some(())).await;
    }
    let mut calls = Vec::new();
    for repository in ["few", "many"] {
        let target = format!("/v2/{repository}/manifests/{manifest}");
        let deleted = async { registry.api.delete(&target).await.status() };
        calls.push(registry.calls_of(deleted, StatusCode::ACCEPTED).await);
        for tag in ["a", "b"] {
            let gone = registry.api.get(&format!("/v2/{repository}/manifests/{tag}")).await;
            assert_eq!(gone.status(), StatusCode::NOT_FOUND);
            assert!(!registry.store(&format!("repositories/{repository}/_tags/{tag}")).exists());
        }
    }
    assert!(calls[1] <= 10 * calls[0], "{calls:?}");
    // What it named can go, too.
    let target = format!("/v2/many/blobs/{}", digest(&image.layer));
    assert_eq!(registry.api.delete(&target).await.status(), StatusCode::ACCEPTED);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn while_a_manifest_with_many_tags_is_deleted_other_repositories_notice_nothing() {
    let mut registry = Registry::start(json!({})).await;
    let image = Image::new(1, 100);
    registry.api.must_push("many", "b", &image).await;
    let folder = registry.store("repositories/many/_tags");
    for i in 0..20_000 {
        fs::write(folder.join(format!("t{i:06}")), digest(&image.manifest)).unwrap();
    }
    fs::remove_file(registry.store("layout.json")).unwrap();
    registry.restart().await;
    let (api, manifest) = (registry.api.clone(), digest(&image.manifest));
    let deleting = tokio::spawn(async move { api.delete(&format!("/v2/many/manifests/{manifest}")).await.status() });
    // As many others as shared the 64 locks of before, and one push to the repository itself.
    let mut pushed = 0;
    while !deleting.is_finished() {
        registry.api.must_push(&format!("other/{pushed}"), "1", &image).await;
        pushed += 1;
    }
    assert_eq!(deleting.await.unwrap(), StatusCode::ACCEPTED);
    // One that had to wait for its end would be the only one.
    assert!(pushed > 1, "{pushed}");
    assert_eq!(fs::read_dir(&folder).map(|entries| entries.count()).unwrap_or(0), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_long_list_of_tags_is_paged_shared_and_kept_up_to_date() {
    let registry = Registry::start(json!({})).await;
    registry.api.must_push("r", "zz", &Image::new(1, 100)).await;
    write_tags(&registry, "r", 100_000, &digest(b"x"));
    let list = async |query: &str| {
        let answer = registry.api.get(&format!("/v2/r/tags/list{query}")).await;
        let link = answer.headers().get("link").map(|link| link.to_str().unwrap().to_owned());
        let body: Value = answer.json().await.unwrap();
        (body["tags"].as_array().unwrap().iter().map(|tag| tag.as_str().unwrap().to_owned()).collect::<Vec<_>>(), link)
    };
    let (first, link) = list("").await;
    assert_eq!((first.len(), first[1].as_str()), (10_000, "t000000"));
    assert!(link.unwrap().contains("n=10000&last=t009998"));
    // All of it, page by page.
    let (mut all, mut last) = (first.clone(), first.last().cloned());
    while let Some(after) = last {
        let (page, link) = list(&format!("?n=20000&last={after}")).await;
        last = link.and(page.last().cloned());
        all.extend(page);
    }
    assert!(all.len() == 100_002 && all.is_sorted());
    // It is kept: a page reads no file, also after a push, which is on it at once.
    registry.api.must_push("r", "t050000-new", &Image::new(2, 100)).await;
    let calls = registry.process.calls();
    let (page, _) = list("?n=3&last=t049999").await;
    assert_eq!(page, ["t050000", "t050000-new", "t050001"]);
    assert!(registry.process.calls() - calls < 20);
    let deleted = registry.api.delete("/v2/r/manifests/t050000").await;
    assert_eq!(deleted.status(), StatusCode::ACCEPTED);
    assert_eq!(list("?n=2&last=t049999").await.0, ["t050000-new", "t050001"]);
    // Two hundred readers that stop reading share it: it was twelve megabytes each.
    let before = registry.process.memory();
    let mut readers = Vec::new();
    for _ in 0..200 {
        let mut stream = TcpStream::connect(("127.0.0.1", registry.port)).await.unwrap();
        stream.write_all(b"GET /v2/r/tags/list HTTP/1.1\r\nHost: r\r\n\r\n").await.unwrap();
        stream.read_u8().await.unwrap();
        readers.push(stream);
    }
    let after = registry.process.memory();
    assert!(after < before + 40 * 1024, "{before} KiB before, {after} KiB with readers");
}

fn annotations(count: usize) -> Value {
    (0..count).map(|i| (i.to_string(), json!(""))).collect::<serde_json::Map<_, _>>().into()
}

fn artifact(artifact_type: &str, subject: &str, annotations: Value) -> Value {
    let empty = digest(b"{}");
    json!({
        "schemaVersion": 2, "mediaType": MANIFEST, "artifactType": artifact_type, "layers": [],
        "config": {"mediaType": "application/vnd.oci.empty.v1+json", "digest": empty, "size": 2},
        "subject": {"mediaType": MANIFEST, "digest": subject, "size": 1}, "annotations": annotations,
    })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hostile_manifests_are_refused_and_hold_no_memory() {
    let registry = Registry::start(json!({})).await;
    registry.api.push_blob("r", b"{}").await.unwrap();
    let subject = digest(b"a subject");
    let hostile = artifact("a/b", &subject, annotations(330_000)).to_string();
    assert!((3_000_000..4_000_000).contains(&hostile.len()), "{}", hostile.len());
    let refused = registry.put_manifest("r", "1", hostile.clone()).await;
    assert_eq!(refused.status(), StatusCode::BAD_REQUEST);
    let text = refused.text().await.unwrap();
    assert!(text.contains("MANIFEST_INVALID") && text.contains("at most 10000"), "{text}");
    let before = registry.process.memory();
    let pushes = (0..40).map(|i| registry.put_manifest("r", "1", hostile.replace("a/b", &format!("a/{i}"))));
    let (answers, peak) = tokio::join!(futures_util::future::join_all(pushes), async {
        let mut peak = 0;
        for _ in 0..50 {
            peak = peak.max(registry.process.memory());
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        peak
    });
    assert!(answers.iter().all(|answer| answer.status() == StatusCode::BAD_REQUEST));
    // It was 800 MB.
    assert!(peak < before + 120 * 1024, "{before} KiB before, {peak} KiB at the worst");
    wait_for("the memory to come back", async || (registry.process.memory() < 60 * 1024).then_some(())).await;
    // What is just within the bounds is taken, wherever the annotations are.
    registry.must_push_manifest("r", "2", &artifact("a/b", &subject, annotations(10_000))).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_filtered_list_of_referrers_reads_no_manifest_that_is_not_wanted() {
    let registry = Registry::start(json!({})).await;
    registry.api.push_blob("r", b"{}").await.unwrap();
    let subject = digest(b"a subject");
    for i in 0..20 {
        let large = json!({"text": "x".repeat(1_500_000), "i": i.to_string()});
        registry.must_push_manifest("r", &format!("large{i}"), &artifact("not/wanted", &subject, large)).await;
    }
    let wanted = registry.must_push_manifest("r", "wanted", &artifact("wanted/one", &subject, json!({}))).await;
    let before = registry.process.counter("io", "rchar");
    let answer = registry.api.get(&format!("/v2/r/referrers/{subject}?artifactType=wanted/one")).await;
    assert_eq!(header_of(&answer, "oci-filters-applied"), "artifactType");
    let list: Value = answer.json().await.unwrap();
    assert_eq!(list["manifests"].as_array().unwrap().len(), 1);
    assert_eq!(list["manifests"][0]["digest"], wanted);
    let read = registry.process.counter("io", "rchar") - before;
    assert!(read < 100_000, "{read} bytes were read");
    // Unfiltered, a page has one of the large ones, and leads on to the next.
    let mut target = format!("/v2/r/referrers/{subject}");
    let mut found = Vec::new();
    loop {
        let answer = registry.api.get(&target).await;
        let link = answer.headers().get("link").map(|link| link.to_str().unwrap().to_owned());
        let list: Value = answer.json().await.unwrap();
        let page = list["manifests"].as_array().unwrap().clone();
        assert!((1..=2).contains(&page.len()));
        found.extend(page);
        let Some(link) = link else { break };
        target = link.trim_start_matches('<').split('>').next().unwrap().to_owned();
    }
    assert_eq!(found.len(), 21);
}

#[tokio::test]
async fn two_hundred_readers_of_a_large_manifest_hold_no_copies() {
    let registry = Registry::start(json!({})).await;
    registry.api.push_blob("r", b"{}").await.unwrap();
    let large = artifact("a/b", &digest(b"s"), json!({"text": "x".repeat(4_000_000)}));
    registry.must_push_manifest("r", "1", &large).await;
    let before = registry.process.memory();
    let mut readers = Vec::new();
    for _ in 0..200 {
        let mut stream = TcpStream::connect(("127.0.0.1", registry.port)).await.unwrap();
        stream.write_all(b"GET /v2/r/manifests/1 HTTP/1.1\r\nHost: r\r\n\r\n").await.unwrap();
        stream.read_u8().await.unwrap();
        readers.push(stream);
    }
    let after = registry.process.memory();
    assert!(after < before + 150 * 1024, "{before} KiB before, {after} KiB with readers");
    let whole = registry.api.get("/v2/r/manifests/1").await.bytes().await.unwrap();
    assert!(whole == large.to_string());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_descriptors_new_work_is_refused_at_once_and_said_once() {
    let registry = Registry::start_within(json!({}), Some(256)).await;
    let layer = Image::new(1, 8_000_000).layer;
    registry.api.push_blob("r", &layer).await.unwrap();
    let target = format!("/v2/r/blobs/{}", digest(&layer));
    let mut held = Vec::new();
    let (mut refused, mut told) = (0, 0);
    for _ in 0..300 {
        let mut stream = TcpStream::connect(("127.0.0.1", registry.port)).await.unwrap();
        stream.write_all(format!("GET {target} HTTP/1.1\r\nHost: r\r\n\r\n").as_bytes()).await.unwrap();
        let mut head = vec![0; 1024];
        // Nobody waits for long.
        let read =
            tokio::time::timeout(Duration::from_secs(5), stream.read(&mut head)).await.expect("at once").unwrap();
        let head = String::from_utf8_lossy(&head[..read]).to_lowercase();
        // Whose request came late is refused without a word.
        if head.is_empty() {
            refused += 1;
        } else if head.starts_with("http/1.1 503") {
            assert!(head.contains("retry-after: "), "{head}");
            (refused, told) = (refused + 1, told + 1);
        } else {
            assert!(head.starts_with("http/1.1 200"), "{head}");
        }
        held.push(stream);
    }
    assert!(refused > 200 && refused < 290 && told > 100, "{refused}, {told} of them were told");
    let log = registry.process.printed();
    assert_eq!(log.matches("no descriptors left").count(), 1, "{log}");
    drop(held);
    wait_for("room", async || {
        let answer = registry.api.request(Method::GET, &target).send().await.ok()?;
        (answer.status() == StatusCode::OK).then_some(())
    })
    .await;
    let log = registry.process.printed();
    assert!(!log.contains("storage failed"), "{log}");
}

#[tokio::test]
async fn what_others_name_is_not_deleted_and_an_empty_repository_leaves() {
    let registry = Registry::start(json!({})).await;
    let image = Image::new(1, 100);
    registry.api.must_push("team/deep/app", "1", &image).await;
    let manifest = digest(&image.manifest);
    let child = json!({"mediaType": MANIFEST, "digest": manifest, "size": image.manifest.len()});
    let index =
        json!({"schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json", "manifests": [child]});
    let text = index.to_string();
    let put = registry.api.request(Method::PUT, "/v2/team/deep/app/manifests/all");
    let put = put.header(header::CONTENT_TYPE, "application/vnd.oci.image.index.v1+json").body(text.clone());
    assert_eq!(put.send().await.unwrap().status(), StatusCode::CREATED);
    let index = digest(text.as_bytes());
    let at = |kind: &str, digest: &str| format!("/v2/team/deep/app/{kind}/{digest}");
    for (target, holder) in [
        (at("blobs", &digest(&image.layer)), &manifest),
        (at("blobs", &digest(&image.config)), &manifest),
        (at("manifests", &manifest), &index),
    ] {
        let refused = registry.api.delete(&target).await;
        let text = refused.text().await.unwrap();
        assert!(text.contains("\"DENIED\"") && text.contains(holder), "{target}: {text}");
        assert_eq!(registry.api.delete(&target).await.status(), StatusCode::METHOD_NOT_ALLOWED);
        assert_eq!(registry.api.head(&target).await.status(), StatusCode::OK);
    }
    // Its tag may go: the index still names it.
    assert_eq!(registry.api.delete("/v2/team/deep/app/manifests/1").await.status(), StatusCode::ACCEPTED);
    // From the whole to its parts, all goes.
    for target in [at("manifests", &index), at("manifests", &manifest)] {
        assert_eq!(registry.api.delete(&target).await.status(), StatusCode::ACCEPTED, "{target}");
    }
    let catalogue = registry.api.get("/v2/_catalog").await.text().await.unwrap();
    assert_eq!(catalogue, r#"{"repositories":[]}"#);
    assert_eq!(error_of(registry.api.get("/v2/team/deep/app/tags/list").await).await.1, "NAME_UNKNOWN");
    for blob in [&image.layer, &image.config] {
        assert_eq!(registry.api.delete(&at("blobs", &digest(blob))).await.status(), StatusCode::ACCEPTED);
    }
    assert_eq!(fs::read_dir(registry.store("repositories")).unwrap().count(), 0);
    // It may come back.
    registry.api.must_push("team/deep/app", "1", &image).await;
    assert_eq!(registry.api.get("/v2/team/deep/app/manifests/1").await.status(), StatusCode::OK);
}

/// Repositories that come and go beside each other, under one folder.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_repository_that_leaves_takes_no_neighbour_along() {
    let registry = Registry::start(json!({})).await;
    let come_and_go = (0..8).map(|i| {
        let api = registry.api.clone();
        tokio::spawn(async move {
            let image = Image::new(i, 100);
            let name = format!("team/x/{}", i % 4);
            for _ in 0..25 {
                api.must_push(&name, &format!("{i}"), &image).await;
                let target = format!("/v2/{name}/manifests/{}", digest(&image.manifest));
                assert_eq!(api.delete(&target).await.status(), StatusCode::ACCEPTED);
                for blob in [&image.layer, &image.config] {
                    api.delete(&format!("/v2/{name}/blobs/{}", digest(blob))).await;
                }
            }
        })
    });
    for outcome in futures_util::future::join_all(come_and_go).await {
        outcome.unwrap();
    }
    let log = registry.process.printed();
    assert!(!log.contains("ERROR"), "{log}");
}

#[tokio::test]
async fn one_entry_that_cannot_be_read_stops_nothing_else() {
    let registry = Registry::start(json!({"gcAnyDelay": true, "gcDelay": "1s", "gcInterval": "1s"})).await;
    let (image, other) = (Image::new(1, 100), Image::new(2, 100));
    registry.api.must_push("r", "1", &image).await;
    registry.api.must_push("s", "1", &other).await;
    // A folder among the tags, and loops where files should be.
    fs::create_dir(registry.store("repositories/r/_tags/folder")).unwrap();
    let manifests = registry.store("repositories/r/_manifests/sha256");
    for path in [registry.store("repositories/r/_tags/loop"), manifests.join(&digest(b"loop")[7..])] {
        std::os::unix::fs::symlink(path.file_name().unwrap(), &path).unwrap();
    }
    let shard = registry.store("blobs/sha256/aa");
    fs::create_dir_all(&shard).unwrap();
    std::os::unix::fs::symlink("x".repeat(20), shard.join(format!("aa{}", "0".repeat(62)))).unwrap();
    let garbage = Image::new(3, 5000).layer;
    assert_eq!(registry.api.push_blob("s", &garbage).await.unwrap().status(), StatusCode::CREATED);
    let hex = digest(&garbage).replace("sha256:", "");
    let path = registry.store(&format!("blobs/sha256/{}/{hex}", &hex[..2]));
    wait_for("the collection of another repository's garbage", async || (!path.exists()).then_some(())).await;
    // Nothing of the repository that can't be read was taken.
    assert_eq!(registry.api.get(&format!("/v2/r/blobs/{}", digest(&image.layer))).await.status(), StatusCode::OK);
    let target = format!("/v2/r/manifests/{}", digest(&image.manifest));
    assert_eq!(registry.api.delete(&target).await.status(), StatusCode::ACCEPTED);
    assert_eq!(registry.api.get("/v2/r/tags/list").await.status(), StatusCode::OK);
    assert!(registry.process.printed().contains("a manifest can't be read; what it may name is kept"));
}

#[tokio::test]
async fn a_collection_that_is_told_to_stop_is_no_error() {
    let mut registry = Registry::start(json!({"gcAnyDelay": true, "gcDelay": "1ms", "gcInterval": "1s"})).await;
    // A thousand blobs that are garbage: one collection is busy with them.
    for i in 0..3000_u32 {
        let folder = registry.store(&format!("repositories/r{i}/_blobs/sha256"));
        fs::create_dir_all(&folder).unwrap();
        fs::write(folder.join(&digest(&i.to_le_bytes())[7..]), "").unwrap();
    }
    wait_for("the collection to begin", async || (!registry.store("repositories/r0/_blobs").exists()).then_some(()))
        .await;
    registry.process.terminate();
    let log = registry.process.printed();
    assert!(log.contains("stopping") && !log.contains("ERROR"), "{log}");
}

#[tokio::test]
async fn a_damaged_blob_that_is_pushed_again_is_healed() {
    let registry = Registry::start(json!({})).await;
    let image = Image::new(1, 5000);
    registry.api.must_push("r", "1", &image).await;
    for bytes in [&image.layer, &image.manifest] {
        let hex = digest(bytes).replace("sha256:", "");
        let path = registry.store(&format!("blobs/sha256/{}/{hex}", &hex[..2]));
        must(Command::new("chmod").arg("u+w").arg(&path));
        fs::write(&path, b"damaged").unwrap();
    }
    registry.api.must_push("r", "1", &image).await;
    let layer = registry.api.get(&format!("/v2/r/blobs/{}", digest(&image.layer))).await;
    assert!(layer.bytes().await.unwrap() == image.layer);
    assert!(registry.api.get("/v2/r/manifests/1").await.bytes().await.unwrap() == image.manifest);
    let scrub =
        run(Command::new(binary("berth-registry")).arg("scrub").arg(registry.folder.path().join("config.json")));
    assert!(scrub.success, "{}", scrub.printed);
}

#[tokio::test]
async fn indexes_may_lie_in_indexes_as_deep_as_anybody_writes_them() {
    let registry = Registry::start(json!({})).await;
    let folder = registry.folder.path().join("layout");
    let image = Image::new(1, 100);
    image.write_layout(&folder, "1");
    let mut inner = json!({"mediaType": MANIFEST, "digest": digest(&image.manifest), "size": image.manifest.len()});
    for _ in 0..20_000 {
        let index = json!({"schemaVersion": 2, "manifests": [inner]}).to_string();
        fs::write(folder.join("blobs/sha256").join(&digest(index.as_bytes())[7..]), &index).unwrap();
        let media_type = "application/vnd.oci.image.index.v1+json";
        inner = json!({"mediaType": media_type, "digest": digest(index.as_bytes()), "size": index.len()});
    }
    inner["annotations"] = json!({"org.opencontainers.image.ref.name": "deep"});
    fs::write(folder.join("index.json"), json!({"schemaVersion": 2, "manifests": [inner]}).to_string()).unwrap();
    let store = tempfile::tempdir().unwrap();
    let config = store.path().join("config.json");
    let text = json!({"storage": {"rootDirectory": store.path().join("store")}, "sidecar": {"upstream": "http://127.0.0.1:1"}});
    fs::write(&config, text.to_string()).unwrap();
    let mut import = Command::new(binary("berth-registry"));
    let printed = must(import.arg("import").arg(&config).arg(&folder).args(["--repository", "deep"]));
    assert!(printed.contains("20001 manifests"), "{printed}");
}

/// After a flush that failed nothing is acknowledged that a second try would only seem to have made durable.
#[tokio::test]
async fn a_flush_that_failed_is_not_tried_again_as_if_nothing_had_been() {
    let Some(strace) = find("strace") else { return };
    let registry = Registry::start(json!({})).await;
    registry.api.must_push("r", "0", &Image::new(1, 100)).await;
    let pid = registry.process.id().to_string();
    // The folder of the tags, each time it is flushed; the files themselves are well.
    let tags = registry.store("repositories/r/_tags");
    let trace = registry.folder.path().join("trace");
    let mut command = Command::new(strace);
    command.args(["-f", "-p", &pid, "-P"]).arg(&tags).args([
        "-e",
        "trace=fsync",
        "-e",
        "inject=fsync:error=EIO:when=1",
    ]);
    let mut tracer = Process::start(&mut command, &trace).unwrap();
    tracer.prints("attached").await;
    let push = async |tag: &str| {
        let text = String::from_utf8(Image::new(1, 100).manifest).unwrap();
        registry.put_manifest("r", tag, text).await.status()
    };
    assert_eq!(push("1").await, StatusCode::INTERNAL_SERVER_ERROR);
    // The disk says that all is well; what it dropped isn't known.
    assert_eq!(push("1").await, StatusCode::INTERNAL_SERVER_ERROR);
    tracer.terminate();
    let ready = registry.api.get("/readyz").await;
    assert_eq!(ready.status(), StatusCode::SERVICE_UNAVAILABLE);
    assert!(ready.text().await.unwrap().contains("a flush has failed"));
    assert_eq!(registry.api.get("/v2/r/manifests/0").await.status(), StatusCode::OK);
}

/// The names of repositories are anybody's, also those that look like our own folders.
#[tokio::test]
async fn a_collection_forgets_nothing_of_a_repository_whose_name_looks_like_ours() {
    let registry = Registry::start(json!({"gcAnyDelay": true, "gcDelay": "1s", "gcInterval": "1s"})).await;
    let image = Image::new(1, 100);
    registry.api.must_push("my_tagged/my_named/app", "1", &image).await;
    let garbage = Image::new(2, 5000).layer;
    assert_eq!(registry.api.push_blob("other", &garbage).await.unwrap().status(), StatusCode::CREATED);
    let hex = digest(&garbage).replace("sha256:", "");
    let path = registry.store(&format!("blobs/sha256/{}/{hex}", &hex[..2]));
    wait_for("a collection", async || (!path.exists()).then_some(())).await;
    let layer = format!("/v2/my_tagged/my_named/app/blobs/{}", digest(&image.layer));
    assert_eq!(registry.api.delete(&layer).await.status(), StatusCode::METHOD_NOT_ALLOWED);
    // What refers to something leaves no folder behind, either.
    registry.api.push_blob("r", b"{}").await.unwrap();
    let attached = registry.must_push_manifest("r", "1", &artifact("a/b", &digest(b"anything"), json!({}))).await;
    assert_eq!(registry.api.delete(&format!("/v2/r/manifests/{attached}")).await.status(), StatusCode::ACCEPTED);
    wait_for("the repository to go", async || (!registry.store("repositories/r").exists()).then_some(())).await;
}

/// Pushes to one repository at once share flushes, and none fails for another's.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_pushes_at_once_are_all_acknowledged() {
    let registry = Registry::start(json!({})).await;
    registry.api.push_blob("r", b"{}").await.unwrap();
    let subject = digest(b"s");
    let mut statuses = Vec::new();
    for round in 0..25 {
        let pushes = (0..16).map(async |i| {
            let text = artifact("a/b", &subject, json!({"i": format!("{round}-{i}")})).to_string();
            registry.put_manifest("r", &format!("t{round}-{i}"), text).await.status()
        });
        statuses.extend(futures_util::future::join_all(pushes).await);
    }
    assert!(statuses.iter().all(|status| *status == StatusCode::CREATED), "{statuses:?}");
    let tags: Value = registry.api.get("/v2/r/tags/list").await.json().await.unwrap();
    assert_eq!(tags["tags"].as_array().unwrap().len(), 400);
}
