//! Disks that are full, read-only, or somebody else's.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use berth_tests::{
    api::{Api, error_of},
    images::{Image, digest},
    process::wait_for,
    system::{Setup, System, binary},
    tools::{self, must, run},
};
use reqwest::StatusCode;
use serde_json::json;

/// A small file system in memory, unmounted when this is dropped.
struct SmallDisk(PathBuf);

impl SmallDisk {
    /// Nothing, where that isn't allowed.
    fn mount(folder: &Path, size: &str) -> Option<Self> {
        fs::create_dir(folder).unwrap();
        let options = format!("size={size}");
        let mounted = run(Command::new("mount").args(["-t", "tmpfs", "-o", &options, "tmpfs"]).arg(folder));
        if !mounted.success {
            tools::skip("this user may not mount a file system");
            return None;
        }
        Some(Self(folder.to_owned()))
    }

    fn remount(&self, options: &str) {
        must(Command::new("mount").args(["-o", &format!("remount,{options}")]).arg(&self.0));
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        run(Command::new("umount").arg("--lazy").arg(&self.0));
    }
}

#[tokio::test]
async fn a_full_disk_is_507_loses_nothing_and_recovers() {
    let folder = tempfile::tempdir().unwrap();
    let Some(disk) = SmallDisk::mount(&folder.path().join("disk"), "8m") else { return };
    let root = disk.0.join("registry");
    let system = System::start(Setup { storage: json!({"rootDirectory": root}), ..Setup::default() }).await;
    let (key, _) = system.signed_in("alice").await.make_key("a").await;
    let api = Api::basic(&system.url, "alice", &key);
    let small = Image::new(1, 1_000_000);
    api.must_push("r", "small", &small).await;

    let large = Image::new(2, 12_000_000);
    // Who still sends when the refusal has waited long enough is cut off.
    if let Ok(refused) = api.push("r", "large", &large).await {
        assert_eq!(error_of(refused).await, (507, "UNAVAILABLE".to_owned()));
    }
    // Filled to the last byte, by somebody else.
    let filler = disk.0.join("filler");
    run(Command::new("dd").arg("if=/dev/zero").arg(format!("of={}", filler.display())).arg("bs=4k"));
    let refused = api.push("r", "another", &Image::new(3, 100_000)).await.unwrap();
    assert_eq!(error_of(refused).await, (507, "UNAVAILABLE".to_owned()));

    // Nobody shall send more here, and the registry says why.
    wait_for("the probe", async || {
        (api.get("/readyz").await.status() == StatusCode::SERVICE_UNAVAILABLE).then_some(())
    })
    .await;
    let health = |arguments: &[&str]| {
        run(Command::new(binary("berth-registry")).arg("health").args(arguments).arg(system.config()))
    };
    let outcome = health(&[]);
    assert!(!outcome.success && outcome.printed.contains("No space left on device"), "{}", outcome.printed);
    assert!(health(&["--live"]).success);
    let strangers = api.get("/readyz").await.text().await.unwrap();
    assert_eq!(strangers, "the registry can store nothing; the log says why\n");
    system.proxy.prints("No space left on device").await;
    // What was there is there, can be pulled, and can be deleted.
    let layer = api.get(&format!("/v2/r/blobs/{}", digest(&small.layer))).await;
    assert!(layer.bytes().await.unwrap() == small.layer);
    let listed: serde_json::Value = api.get("/v2/r/tags/list").await.json().await.unwrap();
    assert_eq!(listed["tags"], json!(["small"]));

    fs::remove_file(filler).unwrap();
    wait_for("the probe", async || (api.get("/readyz").await.status() == StatusCode::OK).then_some(())).await;
    api.must_push("r", "another", &Image::new(3, 100_000)).await;
}

#[tokio::test]
async fn a_directory_that_cannot_be_written_is_named_by_verify() {
    let folder = tempfile::tempdir().unwrap();
    let Some(disk) = SmallDisk::mount(&folder.path().join("disk"), "1m") else { return };
    let root = disk.0.join("registry");
    let config = folder.path().join("config.json");
    fs::write(&config, json!({"storage": {"rootDirectory": root}}).to_string()).unwrap();
    let verify = |program: &mut Command| run(program.arg("verify").arg(&config));
    assert!(verify(&mut Command::new(binary("berth-registry"))).success);
    assert!(!root.exists(), "verify has made something");
    fs::create_dir(&root).unwrap();
    assert!(verify(&mut Command::new(binary("berth-registry"))).success);

    // Somebody else's: as nobody, with a program that nobody may run.
    let program = folder.path().join("berth-registry");
    fs::copy(binary("berth-registry"), &program).unwrap();
    must(Command::new("chmod").arg("-R").arg("a+rX").arg(folder.path()));
    let mut nobody = Command::new("setpriv");
    nobody.args(["--reuid=65534", "--regid=65534", "--clear-groups"]).arg(&program);
    let outcome = verify(&mut nobody);
    let expected = "storage.rootDirectory: ";
    assert!(!outcome.success && outcome.printed.contains(expected), "{}", outcome.printed);
    assert!(outcome.printed.contains("Permission denied"), "{}", outcome.printed);

    disk.remount("ro");
    let outcome = verify(&mut Command::new(binary("berth-registry")));
    assert!(!outcome.success && outcome.printed.contains("Read-only file system"), "{}", outcome.printed);
    assert!(outcome.printed.contains("let this user own it"), "{}", outcome.printed);
}

#[tokio::test]
async fn a_second_request_to_one_upload_is_refused_while_the_first_writes() {
    let system = System::start(Setup::default()).await;
    let (key, _) = system.signed_in("alice").await.make_key("a").await;
    let api = Api::basic(&system.url, "alice", &key);
    let address = api.start_upload("r").await;
    // A body that goes on until it is told to end.
    let (sender, receiver) = tokio::sync::mpsc::channel::<Result<Vec<u8>, std::io::Error>>(1);
    let stream = futures_util::stream::unfold(receiver, async |mut receiver| Some((receiver.recv().await?, receiver)));
    let first = api.request(reqwest::Method::PATCH, &address).body(reqwest::Body::wrap_stream(Box::pin(stream)));
    let first = tokio::spawn(first.send());
    sender.send(Ok(b"first".to_vec())).await.unwrap();
    let upload = system.folder.join("registry/uploads").join(address.rsplit('/').next().unwrap()).join("data");
    wait_for("the first bytes", async || upload.metadata().is_ok_and(|m| m.len() == 5).then_some(())).await;
    let second = api.request(reqwest::Method::PATCH, &address).body("second").send().await.unwrap();
    assert_eq!(error_of(second).await, (409, "BLOB_UPLOAD_INVALID".to_owned()));
    drop(sender);
    assert_eq!(first.await.unwrap().unwrap().status(), StatusCode::ACCEPTED);
    let target = format!("{address}?digest={}", digest(b"first"));
    let closed = api.request(reqwest::Method::PUT, &target).header("content-length", 0).send().await.unwrap();
    assert_eq!(closed.status(), StatusCode::CREATED);
}
