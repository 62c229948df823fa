//! The registry in a bucket: two processes over one S3 server, which keeps its objects as files.

use std::{fs, path::Path, process::Command};

use berth_tests::{
    api::{Api, Credential, error_of, header_of, location},
    images::{Image, MANIFEST, digest},
    process::{Process, free_port, wait_for},
    system::binary,
    tools::{must, run},
};
use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    server::conn::auto::Builder,
};
use reqwest::{Method, StatusCode, header};
use s3s::{auth::SimpleAuth, service::S3ServiceBuilder};
use serde_json::{Value, json};
use tokio::net::TcpListener;

const KEY: (&str, &str) = ("an-access-key", "and-its-secret");

/// A server of S3, and two registries that share a bucket of it.
struct Shared {
    folder: tempfile::TempDir,
    endpoint: String,
    registries: Vec<(Process, Api)>,
}

impl Shared {
    async fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().join("s3");
        fs::create_dir_all(root.join("bucket")).unwrap();
        let mut service = S3ServiceBuilder::new(s3s_fs::FileSystem::new(&root).unwrap());
        service.set_auth(SimpleAuth::from_single(KEY.0, KEY.1));
        let service = service.build();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let service = service.clone();
                tokio::spawn(async move {
                    let connections = Builder::new(TokioExecutor::new());
                    let _ = connections.serve_connection(TokioIo::new(stream), service).await;
                });
            }
        });
        let mut shared = Self { folder, endpoint, registries: Vec::new() };
        for name in ["one", "two"] {
            let registry = shared.registry(name).await;
            shared.registries.push(registry);
        }
        shared
    }

    fn config(&self, name: &str, url: &str) -> std::path::PathBuf {
        let driver = json!({
            "name": "s3", "region": "eu-central-1", "regionendpoint": self.endpoint, "bucket": "bucket",
            "accesskey": KEY.0, "secretkey": KEY.1, "rootdirectory": "/berth", "secure": false,
        });
        let config = json!({
            "storage": {"storageDriver": driver, "gcDelay": "10m", "gcInterval": "1h"},
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
        self.folder.path().join("s3/bucket/berth").join(key).exists()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_one_registry_takes_the_other_gives() {
    let shared = Shared::start().await;
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
    assert_eq!(files(&shared.folder.path().join("s3/bucket/berth/uploads")), 0);
    // A blob belongs to the repositories that hold it.
    assert_eq!(two.get(&target.replace("team/app", "other")).await.status(), StatusCode::NOT_FOUND);
    let mount = format!("/v2/other/blobs/uploads/?mount={}&from=team/app", digest(&image.layer));
    assert_eq!(two.post(&mount).await.status(), StatusCode::CREATED);
    assert_eq!(one.head(&target.replace("team/app", "other")).await.status(), StatusCode::OK);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_chunked_upload_hops_between_two_registries() {
    let shared = Shared::start().await;
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
    // One that is cancelled at the other one is gone, with its parts, which this server keeps as `.upload…`.
    let address = one.start_upload("r").await;
    one.request(Method::PATCH, &address).body(bytes).send().await.unwrap();
    assert_eq!(two.delete(&address).await.status(), StatusCode::NO_CONTENT);
    assert_eq!(one.get(&address).await.status(), StatusCode::NOT_FOUND);
    let parts = fs::read_dir(shared.folder.path().join("s3")).unwrap();
    let left: Vec<_> = parts.map(|part| part.unwrap().file_name()).collect();
    let left: Vec<_> = left.iter().filter(|name| name.to_string_lossy().starts_with(".upload")).collect();
    assert!(left.is_empty(), "{left:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn lists_and_deletions_are_the_same_at_both() {
    let shared = Shared::start().await;
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
    let shared = Shared::start().await;
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
    let file = shared.folder.path().join("s3/bucket/berth/blobs/sha256").join(&hex[..2]).join(&hex);
    damage(&file);
    let outcome = run(&mut shared.command(&["scrub"]));
    assert!(!outcome.success && outcome.printed.contains(&hex), "{}", outcome.printed);

    // Young garbage stays, also after nobody names it.
    let manifest = format!("/v2/moved/in/manifests/{}", digest(&image.manifest));
    assert_eq!(one.delete(&manifest).await.status(), StatusCode::ACCEPTED);
    let printed = must(&mut shared.command(&["gc"]));
    assert!(printed.contains("removed: 0 blobs that no manifest named, 0 blobs"), "{printed}");
    // An hour later.
    grow_old(&shared.folder.path().join("s3/bucket/berth"));
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
    let shared = Shared::start().await;
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

/// How many files there are in a folder, however deep.
fn files(folder: &Path) -> usize {
    let entries = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
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
