//! What the registry knows of its repositories and tags without reading them: right, filtered by the rules, there after a crash,
//! and the same cost however much there is.

use std::{fs, path::Path, time::Duration};

use berth_tests::{
    api::{Api, Credential, header_of},
    images::{Image, MANIFEST, digest},
    process::wait_within,
    system::{Setup, System, demonstration_rules},
};
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

async fn list(api: &Api, target: &str) -> Value {
    let answer = api.get(target).await;
    assert_eq!(answer.status(), StatusCode::OK, "{target}");
    answer.json().await.unwrap()
}

fn names(list: &Value, of: &str, key: &str) -> Vec<String> {
    let all = list[of].as_array().unwrap_or_else(|| panic!("{list}"));
    all.iter().map(|one| one[key].as_str().or(one.as_str()).unwrap().to_owned()).collect()
}

#[tokio::test]
async fn what_is_known_of_tags_is_found_counted_and_survives() {
    let mut system = System::start(Setup { access_control: demonstration_rules(), ..Setup::default() }).await;
    let (key, _) = system.signed_in("alice").await.make_key("seed").await;
    let alice = Api::basic(&system.url, "alice", &key);
    let images: Vec<Image> = (0..3).map(|seed| Image::new(seed, 3000)).collect();
    for (tag, image) in [("1.9", &images[0]), ("1.10", &images[1]), ("latest", &images[1]), ("a", &images[2])] {
        alice.must_push("team/app", tag, image).await;
    }
    let all = list(&alice, "/v2/_berth/tags/team/app").await;
    assert_eq!(names(&all, "tags", "tag"), ["1.10", "1.9", "a", "latest"]);
    let size = |image: &Image| (image.layer.len() + image.config.len()) as u64;
    let one = &all["tags"][1];
    assert_eq!(
        (&one["digest"], &one["size"], &one["platforms"], &one["artifactType"], &one["pushed"]["by"]),
        (
            &json!(digest(&images[0].manifest)),
            &json!(size(&images[0])),
            &json!(["linux/amd64"]),
            &json!("application/vnd.oci.image.config.v1+json"),
            &json!("alice")
        )
    );
    let whole: u64 = images.iter().map(|image| size(image) + image.manifest.len() as u64).sum();
    assert_eq!((&all["tagCount"], &all["size"], &all["matching"]), (&json!(4), &json!(whole), &json!(4)));
    // Found by a part of the name in any case, by digest, in pages.
    assert_eq!(names(&list(&alice, "/v2/_berth/tags/team/app?q=LAT").await, "tags", "tag"), ["latest"]);
    let target = format!("/v2/_berth/tags/team/app?digest={}", digest(&images[1].manifest));
    assert_eq!(names(&list(&alice, &target).await, "tags", "tag"), ["1.10", "latest"]);
    // All were set within a second or two.
    let by_time = names(&list(&alice, "/v2/_berth/tags/team/app?order=pushed").await, "tags", "tag");
    for (order, expected) in [
        ("version", ["latest", "a", "1.10", "1.9"].map(str::to_owned).to_vec()),
        ("name", ["1.10", "1.9", "a", "latest"].map(str::to_owned).to_vec()),
        ("pushed", by_time),
    ] {
        let (mut found, mut target) = (Vec::new(), format!("/v2/_berth/tags/team/app?order={order}&n=1"));
        loop {
            let answer = alice.get(&target).await;
            let next = answer.headers().contains_key("link").then(|| header_of(&answer, "link"));
            found.extend(names(&answer.json().await.unwrap(), "tags", "tag"));
            let Some(next) = next else { break };
            target = next.trim_start_matches('<').split('>').next().unwrap().to_owned();
        }
        assert_eq!(found, expected, "{order}");
    }
    let answer = alice.get("/v2/_berth/tags/team/app").await;
    let etag = header_of(&answer, "etag");
    let again = alice.request(Method::GET, "/v2/_berth/tags/team/app").header("if-none-match", &etag);
    assert_eq!(again.send().await.unwrap().status(), StatusCode::NOT_MODIFIED);
    // What clients pull is counted, what pages look at isn't.
    for _ in 0..3 {
        alice.get("/v2/team/app/manifests/latest").await;
    }
    alice.head("/v2/team/app/manifests/latest").await;
    system.signed_in("alice").await.get("/image/team/app:latest").await;
    let pulls = async |alice: &Api| {
        let all = list(alice, "/v2/_berth/tags/team/app?q=1.10").await;
        all["tags"][0]["pulls"]["count"].as_u64()
    };
    assert_eq!(pulls(&alice).await, Some(3));
    // A stop keeps all of it, a kill what was stored.
    system.registry.terminate();
    system.restart_registry().await;
    assert_eq!(pulls(&alice).await, Some(3));
    alice.must_push("team/app", "2.0", &images[2]).await;
    alice.must_push("team/app", "1.9", &images[2]).await;
    system.restart_registry().await;
    let all = list(&alice, "/v2/_berth/tags/team/app").await;
    assert_eq!(names(&all, "tags", "tag"), ["1.10", "1.9", "2.0", "a", "latest"]);
    assert_eq!(all["tags"][1]["digest"], json!(digest(&images[2].manifest)));
    // A store of before has nothing of it, and something else may lie there.
    let known = system.folder.join("registry/repositories/team/app/_overview");
    system.registry.terminate();
    for broken in [None, Some("{}"), Some("[[[["), Some("")] {
        fs::remove_dir_all(&known).unwrap();
        if let Some(text) = broken {
            fs::create_dir_all(&known).unwrap();
            fs::write(known.join("all"), text).unwrap();
            fs::write(known.join("totals"), text).unwrap();
        }
        system.restart_registry().await;
        let again = list(&alice, "/v2/_berth/tags/team/app").await;
        assert_eq!((&again["tags"], &again["size"]), (&without_pulls(&all)["tags"], &all["size"]), "{broken:?}");
        let repositories = list(&alice, "/v2/_berth/repositories").await;
        assert_eq!(repositories["repositories"][0]["tagCount"], json!(5), "{broken:?}: {repositories}");
        system.registry.terminate();
    }
    system.restart_registry().await;
    // What is deleted is gone, and of what is gone nothing is left.
    assert_eq!(alice.delete("/v2/team/app/manifests/a").await.status(), StatusCode::ACCEPTED);
    assert_eq!(list(&alice, "/v2/_berth/tags/team/app").await["tagCount"], json!(4));
    for image in &images {
        alice.delete(&format!("/v2/team/app/manifests/{}", digest(&image.manifest))).await;
    }
    assert_eq!(list(&alice, "/v2/_berth/repositories").await["repositories"], json!([]));
    assert_eq!(alice.get("/v2/_berth/tags/team/app").await.status(), StatusCode::NOT_FOUND);
    assert!(!known.exists());
}

fn without_pulls(list: &Value) -> Value {
    let mut list = list.clone();
    for tag in list["tags"].as_array_mut().unwrap() {
        tag.as_object_mut().unwrap().remove("pulls");
    }
    list
}

#[tokio::test]
async fn everybody_is_told_of_what_they_may_read_and_of_nothing_else() {
    let system = System::start(Setup { access_control: demonstration_rules(), ..Setup::default() }).await;
    let (key, _) = system.signed_in("alice").await.make_key("seed").await;
    let alice = Api::basic(&system.url, "alice", &key);
    let bob_in_browser = system.signed_in("bob").await;
    let (key, _) = bob_in_browser.make_key("seed").await;
    let bob = Api::basic(&system.url, "bob", &key);
    let image = Image::new(1, 500);
    for name in ["team/secret", "shared/a", "public/b", "zz/secret"] {
        alice.must_push(name, "1", &image).await;
    }
    let repositories = async |api: &Api, query: &str| {
        names(&list(api, &format!("/v2/_berth/repositories{query}")).await, "repositories", "name")
    };
    assert_eq!(repositories(&alice, "").await, ["public/b", "shared/a", "team/secret", "zz/secret"]);
    assert_eq!(repositories(&alice, "?q=SECRET").await, ["team/secret", "zz/secret"]);
    assert_eq!(repositories(&bob, "").await, ["public/b", "shared/a"]);
    assert_eq!(repositories(&bob, "?q=secret").await, Vec::<String>::new());
    // No page leads to a name that one may not read.
    let answer = bob.get("/v2/_berth/repositories?n=1&last=public/b").await;
    assert!(!answer.headers().contains_key("link"));
    assert!(!answer.text().await.unwrap().contains("secret"));
    // Nobody is asked who they are, as for the catalogue; with a token they see what is public, and not who pushed it.
    let nobody = Api::new(&system.url, Credential::None);
    assert_eq!(nobody.get("/v2/_berth/repositories").await.status(), StatusCode::UNAUTHORIZED);
    let nobody = nobody.with_token(&["registry:catalog:*", "repository:public/b:pull"]).await;
    let public = list(&nobody, "/v2/_berth/repositories").await;
    assert_eq!(names(&public, "repositories", "name"), ["public/b"]);
    let tags = list(&nobody, "/v2/_berth/tags/public/b").await;
    assert!(!format!("{public}{tags}").contains("alice") && tags["tags"][0]["pushed"]["at"].is_string(), "{tags}");
    // Tags, and who else holds a layer.
    assert_eq!(bob.get("/v2/_berth/tags/team/secret").await.status(), StatusCode::FORBIDDEN);
    assert_eq!(bob.get("/v2/_berth/tags/team/none").await.status(), StatusCode::FORBIDDEN);
    let layer = digest(&image.layer);
    let holders = async |api: &Api, target: String| names(&list(api, &target).await, "repositories", "name");
    let of = |name: &str| format!("/v2/_berth/holders/{name}/{layer}");
    assert_eq!(holders(&alice, of("shared/a")).await, ["public/b", "shared/a", "team/secret", "zz/secret"]);
    assert_eq!(holders(&bob, of("shared/a")).await, ["public/b", "shared/a"]);
    let answer = bob.get(&format!("{}?n=2", of("shared/a"))).await;
    assert!(!answer.headers().contains_key("link"), "{:?}", answer.headers());
    assert_eq!(bob.get(&of("team/secret")).await.status(), StatusCode::FORBIDDEN);
    // Not from where it isn't, and a token goes as far as it goes.
    let unheld = format!("/v2/_berth/holders/shared/a/{}", digest(b"nothing like that"));
    assert_eq!(bob.get(&unheld).await.status(), StatusCode::NOT_FOUND);
    let narrow = alice.with_token(&["repository:shared/a:pull"]).await;
    assert_eq!(holders(&narrow, of("shared/a")).await, ["shared/a"]);
    assert_eq!(narrow.get("/v2/_berth/repositories").await.status(), StatusCode::UNAUTHORIZED);
    assert_eq!(narrow.get("/v2/_berth/tags/team/secret").await.status(), StatusCode::UNAUTHORIZED);
    // A client can't say that it counts for nothing, nor who it is.
    let pull = bob.request(Method::GET, "/v2/shared/a/manifests/1").header("berth-uncounted", "1");
    pull.send().await.unwrap();
    let tags = list(&bob, "/v2/_berth/tags/shared/a").await;
    assert_eq!(tags["tags"][0]["pulls"]["count"], json!(1), "{tags}");
    for hostile in ["?n=x", "?order=size", "?digest=x", "?q=a&q=b", &format!("?q={}", "x".repeat(300))] {
        let status = bob.get(&format!("/v2/_berth/tags/shared/a{hostile}")).await.status();
        assert_eq!(status, StatusCode::BAD_REQUEST, "{hostile}");
    }
    for method in [Method::POST, Method::PUT, Method::DELETE, Method::PATCH] {
        let status = alice.request(method, "/v2/_berth/repositories").send().await.unwrap().status();
        assert_eq!(status, StatusCode::METHOD_NOT_ALLOWED);
    }
}

/// Writes a store of so many repositories, and one of so many tags, as an earlier version left it.
fn write_store(root: &Path, repositories: usize, tags: usize) {
    let image = Image::new(1, 300);
    for bytes in [&image.layer, &image.config, &image.manifest] {
        let digest = digest(bytes);
        let hex = digest.strip_prefix("sha256:").unwrap();
        let folder = root.join("blobs/sha256").join(&hex[..2]);
        fs::create_dir_all(&folder).unwrap();
        fs::write(folder.join(hex), bytes).unwrap();
    }
    let manifest = digest(&image.manifest);
    let hex = |digest: &str| digest.strip_prefix("sha256:").unwrap().to_owned();
    let write = |name: &str| {
        let folder = root.join("repositories").join(name);
        for (kind, digest, content) in [
            ("_manifests/sha256", &manifest, MANIFEST),
            ("_blobs/sha256", &digest(&image.layer), ""),
            ("_blobs/sha256", &digest(&image.config), ""),
        ] {
            fs::create_dir_all(folder.join(kind)).unwrap();
            fs::write(folder.join(kind).join(hex(digest)), content).unwrap();
        }
        fs::create_dir_all(folder.join("_tags")).unwrap();
        folder.join("_tags")
    };
    for i in 0..repositories {
        let folder = write(&format!("group-{:02}/app-{i:05}", i % 40));
        fs::write(folder.join("1.0"), format!("{manifest}\n{} alice", 1_760_000_000 + i)).unwrap();
    }
    // Nothing that an upgrade would have to write first.
    fs::write(root.join("layout.json"), r#"{"version":2}"#).unwrap();
    let folder = write("large");
    for i in 0..tags {
        let content = format!("{manifest}\n{} alice", 1_760_000_000 + (i * 7919) % tags);
        fs::write(folder.join(format!("1.{i}")), content).unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_thousand_repositories_and_a_hundred_thousand_tags_are_as_quick_to_look_at_as_few() {
    let folder = tempfile::tempdir().unwrap();
    let store = folder.path().join("registry");
    write_store(&store, 10_000, 100_000);
    let port = berth_tests::process::free_port();
    let setup = Setup { access_control: demonstration_rules(), ..Setup::default() };
    let system = System::start_in(folder.path(), port, setup).await;
    let alice = system.signed_in("alice").await;
    // Found out once, in the background.
    wait_within(Duration::from_mins(5), "what there is to be known", async || {
        let known = store.join("repositories/large/_overview/totals").exists();
        known.then_some(())
    })
    .await;
    let calls = || system.registry.calls();
    // The first look reads what was written down.
    alice.get("/repository/large").await;
    for (path, expected) in [
        ("/repositories", "app-00000"),
        ("/repositories?q=app-09999", "app-09999"),
        ("/repositories?q=nothing-like-that", "No repository that you can read"),
        ("/repositories?after=group-20/app-05020", "group-20"),
        ("/repository/large", "100,000 tags"),
        ("/repository/large?order=version", "1.99999"),
        ("/repository/large?q=9999", "19 with"),
        ("/repository/large?q=nothing", "No tag has that"),
        ("/delete/large:1.5", "99,987 more"),
        ("/image/large:1.5", "where used"),
        ("/layer/large@LAYER", "200 on this page"),
    ] {
        let path = &path.replace("LAYER", &digest(&Image::new(1, 300).layer));
        let before = calls();
        alice.get(path).await;
        let of_first = calls() - before;
        let (before, began) = (calls(), std::time::Instant::now());
        let answer = alice.get(path).await;
        let took = began.elapsed();
        assert_eq!(answer.status(), StatusCode::OK, "{path}");
        let text = answer.text().await.unwrap();
        assert!(text.contains(expected), "{path}: {text}");
        assert!(text.len() < 60_000, "{path}: {} bytes", text.len());
        let of_second = calls() - before;
        println!("{path}: {took:?}, {} bytes, {of_second} calls", text.len());
        // A page that would read the store would need thousands. (What else the registry does counts, too.)
        assert!(of_first.min(of_second) < 1_500, "{path}: {of_first} and {of_second} calls");
    }
}
