//! Moving in, moving out, and looking whether everything is whole.

use std::{fs, process::Command};

use berth_tests::{
    api::Api,
    images::{Image, digest},
    system::{Setup, System, binary},
    tools::{self, must, run},
};
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

async fn stopped() -> (System, Api) {
    let mut system = System::start(Setup::default()).await;
    let (key, _) = system.signed_in("alice").await.make_key("a").await;
    let api = Api::basic(&system.url, "alice", &key);
    system.registry.kill();
    (system, api)
}

fn registry(system: &System, arguments: &[&str]) -> Command {
    let mut command = Command::new(binary("berth-registry"));
    command.arg(arguments[0]).arg(system.config()).args(&arguments[1..]);
    command
}

#[tokio::test]
async fn a_zot_root_directory_is_moved_in_by_one_command() {
    let (mut system, api) = stopped().await;
    let zot = system.folder.join("zot");
    let images = [Image::new(1, 100_000), Image::new(2, 100_000)];
    images[0].write_layout(&zot.join("team/app"), "1");
    images[1].write_layout(&zot.join("team/app"), "2");
    images[1].write_layout(&zot.join("other"), "latest");
    fs::create_dir_all(zot.join("team/app/.uploads")).unwrap();
    fs::create_dir_all(zot.join("_trivy")).unwrap();
    let printed = must(&mut registry(&system, &["import", zot.to_str().unwrap()]));
    assert!(printed.contains("imported 2 repositories: 3 manifests, 3 tags"), "{printed}");
    // Twice is as good as once.
    must(&mut registry(&system, &["import", zot.to_str().unwrap()]));
    must(&mut registry(&system, &["scrub"]));
    // What was imported is Berth's own.
    fs::remove_dir_all(&zot).unwrap();
    system.restart_registry().await;
    for (repository, tag, image) in
        [("team/app", "1", &images[0]), ("team/app", "2", &images[1]), ("other", "latest", &images[1])]
    {
        let manifest = api.get(&format!("/v2/{repository}/manifests/{tag}")).await;
        assert_eq!(manifest.bytes().await.unwrap(), image.manifest);
        let layer = api.get(&format!("/v2/{repository}/blobs/{}", digest(&image.layer))).await;
        assert!(layer.bytes().await.unwrap() == image.layer);
    }
    let catalog: Value = api.get("/v2/_catalog").await.json().await.unwrap();
    assert_eq!(catalog["repositories"], json!(["other", "team/app"]));
    // What lists show is known of it, too: it counts as pushed now, by nobody.
    let known: Value = api.get("/v2/_berth/tags/team/app").await.json().await.unwrap();
    let tag = &known["tags"][0];
    assert_eq!((&known["tagCount"], &tag["platforms"]), (&json!(2), &json!(["linux/amd64"])), "{known}");
    assert!(tag["size"].as_u64().unwrap() > 100_000 && tag["pushed"]["at"].is_string(), "{known}");
    assert!(tag["pushed"]["by"].is_null(), "{known}");
}

#[tokio::test]
async fn what_an_import_cannot_take_is_named_and_the_rest_is_taken() {
    let (mut system, api) = stopped().await;
    let source = system.folder.join("source");
    let (whole, broken) = (Image::new(3, 1000), Image::new(4, 1000));
    whole.write_layout(&source.join("a"), "1");
    broken.write_layout(&source.join("b"), "1");
    fs::remove_file(source.join("b/blobs").join(digest(&broken.layer).replace(':', "/"))).unwrap();
    whole.write_layout(&source.join("Upper"), "1");
    let outcome = run(&mut registry(&system, &["import", source.to_str().unwrap()]));
    assert!(!outcome.success);
    for expected in ["left out: b@sha256:", &digest(&broken.layer), "left out: Upper: ", "2 things were left out"] {
        assert!(outcome.printed.contains(expected), "{expected} is missing: {}", outcome.printed);
    }
    let nothing = run(&mut registry(&system, &["import", system.folder.join("registry").to_str().unwrap()]));
    assert!(!nothing.success && nothing.printed.contains("neither an OCI image layout"), "{}", nothing.printed);
    system.restart_registry().await;
    assert_eq!(api.get("/v2/a/manifests/1").await.status(), StatusCode::OK);
}

#[tokio::test]
async fn a_repository_is_given_back_as_a_layout_that_others_read() {
    let (mut system, api) = stopped().await;
    system.restart_registry().await;
    let (one, two) = (Image::new(5, 50_000), Image::new(6, 50_000));
    api.must_push("team/app", "1", &one).await;
    api.must_push("team/app", "latest", &one).await;
    api.must_push("team/app", &digest(&two.manifest), &two).await;
    let out = system.folder.join("out");
    // Also while the registry runs.
    let printed = must(&mut registry(&system, &["export", "team/app", out.to_str().unwrap()]));
    assert!(printed.contains("exported 2 manifests"), "{printed}");
    if let Some(skopeo) = tools::find("skopeo") {
        for tag in ["1", "latest"] {
            let copied = format!("oci:{}:x", system.folder.join(format!("copy-{tag}")).display());
            must(Command::new(&skopeo).args(["copy", &format!("oci:{}:{tag}", out.display()), &copied]));
        }
    }
    // And brought in again under another name, elsewhere.
    system.registry.kill();
    must(&mut registry(&system, &["import", out.to_str().unwrap(), "--repository", "again"]));
    system.restart_registry().await;
    let target = format!("/v2/again/manifests/{}", digest(&two.manifest));
    assert_eq!(api.get(&target).await.status(), StatusCode::OK);
    assert_eq!(api.get("/v2/again/manifests/latest").await.status(), StatusCode::OK);
}

#[tokio::test]
async fn a_scrub_finds_the_blob_that_was_damaged_and_no_other() {
    let (mut system, api) = stopped().await;
    system.restart_registry().await;
    let image = Image::new(7, 100_000);
    api.must_push("r", "1", &image).await;
    let printed = must(&mut registry(&system, &["scrub"]));
    assert!(printed.contains("read 3 blobs; 0 are damaged"), "{printed}");
    let hex = digest(&image.layer).replace("sha256:", "");
    let path = system.folder.join("registry/blobs/sha256").join(&hex[..2]).join(&hex);
    let mut bytes = fs::read(&path).unwrap();
    bytes[50_000] ^= 1;
    fs::remove_file(&path).unwrap();
    fs::write(&path, bytes).unwrap();
    let outcome = run(&mut registry(&system, &["scrub"]));
    assert!(!outcome.success);
    assert!(outcome.printed.contains(&hex) && outcome.printed.contains("1 are damaged"), "{}", outcome.printed);
    assert!(outcome.printed.contains("; in r:1\n"), "{}", outcome.printed);
    // An index and another repository that are made of it are named, and nothing else is.
    let parts = json!([{"mediaType": "application/vnd.oci.image.manifest.v1+json", "digest": digest(&image.manifest),
                        "size": image.manifest.len()}]);
    let index = json!({"schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json", "manifests": parts});
    let put = api.request(Method::PUT, "/v2/r/manifests/all").body(index.to_string());
    let put = put.header("content-type", "application/vnd.oci.image.index.v1+json");
    assert_eq!(put.send().await.unwrap().status(), StatusCode::CREATED);
    api.must_push("other", "2", &Image::new(8, 100)).await;
    let outcome = run(&mut registry(&system, &["scrub"]));
    assert!(outcome.printed.contains("; in r:1, r:all\n"), "{}", outcome.printed);
    // What a restore has left out.
    fs::remove_file(&path).unwrap();
    let manifest = digest(&Image::new(8, 100).manifest).replace("sha256:", "");
    fs::remove_file(system.folder.join("registry/blobs/sha256").join(&manifest[..2]).join(&manifest)).unwrap();
    let outcome = run(&mut registry(&system, &["scrub"]));
    let missing =
        |hex: &str, images: &str| outcome.printed.contains(&format!("{hex}: its bytes are missing; in {images}\n"));
    assert!(!outcome.success && missing(&hex, "r:1, r:all") && missing(&manifest, "other:2"), "{}", outcome.printed);
}

#[tokio::test]
async fn repositories_below_others_are_brought_in_and_no_link_leads_out_of_the_folder() {
    let (mut system, api) = stopped().await;
    let zot = system.folder.join("zot");
    for (i, name) in ["app", "app/tools", "app/tools/x"].into_iter().enumerate() {
        Image::new(i as u64, 1000).write_layout(&zot.join(name), "1");
    }
    // Somebody's layout with a file of this machine's, and one that is none.
    let hex = "b".repeat(64);
    std::os::unix::fs::symlink("/etc/hostname", zot.join("app/blobs/sha256").join(&hex)).unwrap();
    fs::create_dir_all(zot.join("broken")).unwrap();
    fs::write(zot.join("broken/index.json"), "{").unwrap();
    let outcome = run(&mut registry(&system, &["import", zot.to_str().unwrap()]));
    assert!(!outcome.success && outcome.printed.contains("imported 3 repositories"), "{}", outcome.printed);
    assert!(outcome.printed.contains(&format!("{hex}: is no file of this folder")), "{}", outcome.printed);
    assert!(outcome.printed.contains("broken/index.json: "), "{}", outcome.printed);
    system.restart_registry().await;
    for name in ["app", "app/tools", "app/tools/x"] {
        assert_eq!(api.get(&format!("/v2/{name}/manifests/1")).await.status(), StatusCode::OK, "{name}");
    }
    assert_eq!(api.get(&format!("/v2/app/blobs/sha256:{hex}")).await.status(), StatusCode::NOT_FOUND);
}

#[tokio::test]
async fn what_is_imported_shares_its_bytes_with_the_source_unless_it_is_copied() {
    use std::os::unix::fs::MetadataExt;
    let (system, _) = stopped().await;
    let image = Image::new(9, 10_000);
    let layout = system.folder.join("layout");
    image.write_layout(&layout, "1");
    let hex = digest(&image.layer).replace("sha256:", "");
    let source = fs::metadata(layout.join("blobs/sha256").join(&hex)).unwrap();
    let stored = || fs::metadata(system.folder.join("registry/blobs/sha256").join(&hex[..2]).join(&hex)).unwrap();
    let import = |more: &[&str]| {
        let arguments = [&["import", layout.to_str().unwrap(), "--repository", "r"], more].concat();
        must(&mut registry(&system, &arguments));
    };
    import(&["--copy"]);
    assert_ne!(stored().ino(), source.ino());
    fs::remove_dir_all(system.folder.join("registry")).unwrap();
    import(&[]);
    assert_eq!(stored().ino(), source.ino());
    // An export makes its folder, and says so if it is there.
    let outcome = run(&mut registry(&system, &["export", "r", layout.to_str().unwrap()]));
    assert!(!outcome.success && outcome.printed.contains("exists already; name a folder that doesn't"));
}
