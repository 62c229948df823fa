//! The distribution API as clients need it, through the proxy. `end-N` are the specification's endpoints.

use base64::{Engine, prelude::BASE64_STANDARD};
use berth_tests::{
    api::{Api, error_of, header_of, location},
    images::{Image, MANIFEST, digest},
    process::wait_for,
    system::{Setup, System},
    tools,
};
use reqwest::{Method, StatusCode, header};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

async fn alice() -> (System, Api) {
    let system = System::start(Setup::default()).await;
    let (key, _) = system.signed_in("alice").await.make_key("a").await;
    let api = Api::basic(&system.url, "alice", &key);
    (system, api)
}

#[tokio::test]
async fn an_image_comes_back_as_it_was_pushed() {
    let (_system, api) = alice().await;
    let image = Image::new(1, 3_000_000);
    api.must_push("a/b", "1", &image).await;
    for reference in ["1".to_owned(), digest(&image.manifest)] {
        let target = format!("/v2/a/b/manifests/{reference}");
        let head = api.head(&target).await;
        assert_eq!(header_of(&head, "docker-content-digest"), digest(&image.manifest));
        assert_eq!(header_of(&head, "content-length"), image.manifest.len().to_string());
        let answer = api.get(&target).await;
        assert_eq!(header_of(&answer, "content-type"), MANIFEST);
        assert_eq!(answer.bytes().await.unwrap(), image.manifest);
    }
    let target = format!("/v2/a/b/blobs/{}", digest(&image.layer));
    let answer = api.get(&target).await;
    assert_eq!(header_of(&answer, "docker-content-digest"), digest(&image.layer));
    assert!(answer.bytes().await.unwrap() == image.layer);
    // A blob belongs to the repositories that hold it.
    let elsewhere = api.get(&target.replace("/a/b/", "/c/")).await;
    assert_eq!(error_of(elsewhere).await, (404, "BLOB_UNKNOWN".to_owned()));
}

#[tokio::test]
async fn end_2_ranges() {
    let (_system, api) = alice().await;
    let bytes: Vec<u8> = (0..=255).cycle().take(100_000).collect();
    assert_eq!(api.push_blob("r", &bytes).await.unwrap().status(), StatusCode::CREATED);
    let target = format!("/v2/r/blobs/{}", digest(&bytes));
    for (range, expected, content_range) in [
        ("bytes=10-19", &bytes[10..20], "bytes 10-19/100000"),
        ("bytes=99990-", &bytes[99_990..], "bytes 99990-99999/100000"),
        ("bytes=-5", &bytes[99_995..], "bytes 99995-99999/100000"),
    ] {
        let answer = api.request(Method::GET, &target).header(header::RANGE, range).send().await.unwrap();
        assert_eq!(answer.status(), StatusCode::PARTIAL_CONTENT);
        assert_eq!(header_of(&answer, "content-range"), content_range);
        assert_eq!(answer.bytes().await.unwrap(), expected);
    }
    let answer = api.request(Method::GET, &target).header(header::RANGE, "bytes=100000-").send().await.unwrap();
    assert_eq!(answer.status(), StatusCode::RANGE_NOT_SATISFIABLE);
    let etag = format!("\"{}\"", digest(&bytes));
    let answer = api.request(Method::GET, &target).header(header::IF_NONE_MATCH, etag).send().await.unwrap();
    assert_eq!(answer.status(), StatusCode::NOT_MODIFIED);
}

#[tokio::test]
async fn end_5_chunks_come_in_order_and_survive_a_restart() {
    let (mut system, api) = alice().await;
    let bytes = Image::new(2, 50_000).layer;
    let (one, rest) = bytes.split_at(20_000);
    let address = api.start_upload("r").await;
    let chunk = async |address: &str, from: usize, chunk: &[u8]| {
        let range = format!("{from}-{}", from + chunk.len() - 1);
        let request = api.request(Method::PATCH, address).header(header::CONTENT_RANGE, range);
        request.body(chunk.to_vec()).send().await.unwrap()
    };
    let answer = chunk(&address, 0, one).await;
    assert_eq!((answer.status(), header_of(&answer, "range").as_str()), (StatusCode::ACCEPTED, "0-19999"));
    let wrong = chunk(&location(&answer), 30_000, &rest[10_000..]).await;
    assert_eq!(wrong.status(), StatusCode::RANGE_NOT_SATISFIABLE);
    system.restart_registry().await;
    let status = api.get(&address).await;
    assert_eq!((status.status(), header_of(&status, "range").as_str()), (StatusCode::NO_CONTENT, "0-19999"));
    let answer = chunk(&location(&status), 20_000, rest).await;
    assert_eq!(answer.status(), StatusCode::ACCEPTED);
    let target = format!("{}?digest={}", location(&answer), digest(&bytes));
    let answer = api.request(Method::PUT, &target).header(header::CONTENT_LENGTH, 0).send().await.unwrap();
    assert_eq!(answer.status(), StatusCode::CREATED);
    assert_eq!(location(&answer), format!("/v2/r/blobs/{}", digest(&bytes)));
    assert!(api.get(&location(&answer)).await.bytes().await.unwrap() == bytes);
    // It is finished, and an upload that is cancelled is gone too.
    assert_eq!(error_of(api.get(&address).await).await, (404, "BLOB_UPLOAD_UNKNOWN".to_owned()));
    let address = api.start_upload("r").await;
    assert_eq!(api.delete(&address).await.status(), StatusCode::NO_CONTENT);
    assert_eq!(api.get(&address).await.status(), StatusCode::NOT_FOUND);
}

#[tokio::test]
async fn end_4b_a_blob_in_one_post_and_streamed_without_a_length() {
    let (_system, api) = alice().await;
    let bytes = b"hello".to_vec();
    let target = format!("/v2/r/blobs/uploads/?digest={}", digest(&bytes));
    let answer = api.request(Method::POST, &target).body(bytes.clone()).send().await.unwrap();
    assert_eq!(answer.status(), StatusCode::CREATED);
    // Docker sends a layer as one PATCH, chunked, without Content-Range.
    let chunks = Image::new(3, 300_000).layer;
    let stream = reqwest::Body::wrap_stream(futures_stream(chunks.clone()));
    let address = api.start_upload("r").await;
    let answer = api.request(Method::PATCH, &address).body(stream).send().await.unwrap();
    assert_eq!(answer.status(), StatusCode::ACCEPTED);
    let target = format!("{}?digest={}", location(&answer), digest(&chunks));
    let answer = api.request(Method::PUT, &target).header(header::CONTENT_LENGTH, 0).send().await.unwrap();
    assert_eq!(answer.status(), StatusCode::CREATED);
}

/// The names of uploads that aren't finished.
fn uploads(system: &System) -> Vec<std::ffi::OsString> {
    let entries = std::fs::read_dir(system.folder.join("registry/uploads")).unwrap();
    entries.map(|entry| entry.unwrap().file_name()).collect()
}

#[tokio::test]
async fn a_single_post_that_is_wrong_or_breaks_off_leaves_nothing() {
    let (system, api) = alice().await;
    let target = format!("/v2/r/blobs/uploads/?digest={}", digest(b"other"));
    let answer = api.request(Method::POST, &target).body("content").send().await.unwrap();
    assert_eq!(error_of(answer).await, (400, "DIGEST_INVALID".to_owned()));
    assert!(uploads(&system).is_empty(), "{:?}", uploads(&system));
    // A client that goes away in the middle.
    let (sender, receiver) = tokio::sync::mpsc::channel::<Result<Vec<u8>, std::io::Error>>(1);
    let stream = futures_util::stream::unfold(receiver, async |mut receiver| Some((receiver.recv().await?, receiver)));
    let body = reqwest::Body::wrap_stream(Box::pin(stream));
    let pushing = tokio::spawn(api.request(Method::POST, &target).body(body).send());
    sender.send(Ok(b"first".to_vec())).await.unwrap();
    wait_for("the upload", async || (uploads(&system).len() == 1).then_some(())).await;
    sender.send(Err(std::io::Error::other("gone"))).await.unwrap();
    assert!(pushing.await.unwrap().is_err());
    wait_for("the upload to go", async || uploads(&system).is_empty().then_some(())).await;
}

#[tokio::test]
async fn a_body_that_does_not_fit_its_range_is_refused_and_nothing_of_it_counts() {
    let (_system, api) = alice().await;
    let address = api.start_upload("r").await;
    let chunk = |range: &'static str, bytes: &'static [u8]| {
        // Without Content-Length, which would say the same.
        let stream = reqwest::Body::wrap_stream(futures_stream(bytes.to_vec()));
        api.request(Method::PATCH, &address).header(header::CONTENT_RANGE, range).body(stream).send()
    };
    for range in ["0-9", "0-1"] {
        assert_eq!(error_of(chunk(range, b"hello").await.unwrap()).await, (400, "SIZE_INVALID".to_owned()), "{range}");
    }
    assert_eq!(chunk("0-4", b"hello").await.unwrap().status(), StatusCode::ACCEPTED);
    let answer = api.request(Method::PUT, &format!("{address}?digest={}", digest(b"hello"))).send().await.unwrap();
    assert_eq!(answer.status(), StatusCode::CREATED);
}

#[tokio::test]
async fn uploads_expire_also_where_no_garbage_is_collected() {
    let mut system = System::start(Setup { storage: json!({"gc": false}), ..Setup::default() }).await;
    let (key, _) = system.signed_in("alice").await.make_key("a").await;
    let api = Api::basic(&system.url, "alice", &key);
    let (old, young) = (api.start_upload("r").await, api.start_upload("r").await);
    system.registry.kill();
    let name = |address: &str| address.rsplit('/').next().unwrap().to_owned();
    let folder = system.folder.join("registry/uploads").join(name(&old));
    for file in [folder.join("data"), folder.join("state"), folder.clone()] {
        tools::must(std::process::Command::new("touch").args(["-d", "2 days ago"]).arg(file));
    }
    system.restart_registry().await;
    wait_for("the old one to go", async || (uploads(&system) == [name(&young).as_str()]).then_some(())).await;
}

/// A body that comes in pieces.
fn futures_stream(bytes: Vec<u8>) -> impl futures_util::Stream<Item = Result<Vec<u8>, std::io::Error>> {
    futures_util::stream::iter(bytes.chunks(10_000).map(|chunk| Ok(chunk.to_vec())).collect::<Vec<_>>())
}

#[tokio::test]
async fn what_is_wrong_gets_the_right_code() {
    let (_system, api) = alice().await;
    let image = Image::new(4, 100);
    let address = api.start_upload("r").await;
    let target = format!("{address}?digest={}", digest(b"other"));
    let answer = api.request(Method::PUT, &target).body("content").send().await.unwrap();
    assert_eq!(error_of(answer).await, (400, "DIGEST_INVALID".to_owned()));
    let answer = api.push_manifest("r", "1", &image.manifest).await.unwrap();
    assert_eq!(error_of(answer).await, (404, "MANIFEST_BLOB_UNKNOWN".to_owned()));
    api.must_push("r", "1", &image).await;
    let answer = api.push_manifest("r", &digest(b"other"), &image.manifest).await.unwrap();
    assert_eq!(error_of(answer).await, (400, "DIGEST_INVALID".to_owned()));
    let answer = api.push_manifest("r", "1", b"{}").await.unwrap();
    assert_eq!(error_of(answer).await, (400, "MANIFEST_INVALID".to_owned()));
    let answer = api.push_manifest("r", "1", &vec![b' '; 5 * 1024 * 1024]).await.unwrap();
    assert_eq!(error_of(answer).await, (413, "SIZE_INVALID".to_owned()));
    for (target, expected) in [
        ("/v2/r/manifests/none", (404, "MANIFEST_UNKNOWN")),
        ("/v2/none/tags/list", (404, "NAME_UNKNOWN")),
        ("/v2/UPPER/tags/list", (400, "NAME_INVALID")),
        ("/v2/r/blobs/sha256:short", (400, "DIGEST_INVALID")),
    ] {
        assert_eq!(error_of(api.get(target).await).await, (expected.0, expected.1.to_owned()), "{target}");
    }
}

#[tokio::test]
async fn end_7b_a_push_by_digest_sets_its_tags() {
    let (_system, api) = alice().await;
    let image = Image::new(5, 100);
    for bytes in [&image.layer, &image.config] {
        api.push_blob("r", bytes).await.unwrap();
    }
    let reference = format!("{}?tag=1.2.3&tag=1.2&tag=1&tag=latest", digest(&image.manifest));
    let answer = api.push_manifest("r", &reference, &image.manifest).await.unwrap();
    assert_eq!(answer.status(), StatusCode::CREATED);
    let tags: Vec<_> = answer.headers().get_all("oci-tag").iter().map(|tag| tag.to_str().unwrap()).collect();
    assert_eq!(tags, ["1.2.3", "1.2", "1", "latest"]);
}

#[tokio::test]
async fn end_8_tags_are_listed_in_order_and_in_pages() {
    let (_system, api) = alice().await;
    let image = Image::new(6, 100);
    for tag in ["b", "a", "C", "_", "10", "9"] {
        api.must_push("r", tag, &image).await;
    }
    let mut all: Vec<String> = Vec::new();
    let mut target = Some("/v2/r/tags/list?n=4".to_owned());
    while let Some(next) = target {
        let answer = api.get(&next).await;
        let link = answer.headers().get("link").map(|link| link.to_str().unwrap().to_owned());
        target = link.map(|link| link.trim_start_matches('<').split('>').next().unwrap().to_owned());
        let body: Value = answer.json().await.unwrap();
        assert_eq!(body["name"], "r");
        all.extend(body["tags"].as_array().unwrap().iter().map(|tag| tag.as_str().unwrap().to_owned()));
    }
    assert_eq!(all, ["10", "9", "C", "_", "a", "b"]);
    let answer = api.get("/v2/r/tags/list?n=0").await;
    assert!(!answer.headers().contains_key("link"));
    assert_eq!(answer.json::<Value>().await.unwrap()["tags"], json!([]));
    let answer: Value = api.get("/v2/r/tags/list?last=a").await.json().await.unwrap();
    assert_eq!(answer["tags"], json!(["b"]));
}

#[tokio::test]
async fn end_9_a_deleted_manifest_takes_its_tags_along() {
    let (_system, api) = alice().await;
    let (one, two) = (Image::new(7, 100), Image::new(8, 100));
    for (tag, image) in [("a", &one), ("b", &one), ("c", &two)] {
        api.must_push("r", tag, image).await;
    }
    assert_eq!(api.delete("/v2/r/manifests/a").await.status(), StatusCode::ACCEPTED);
    assert_eq!(api.get("/v2/r/manifests/b").await.status(), StatusCode::OK);
    let target = format!("/v2/r/manifests/{}", digest(&one.manifest));
    assert_eq!(api.delete(&target).await.status(), StatusCode::ACCEPTED);
    for gone in ["/v2/r/manifests/a", "/v2/r/manifests/b", &target] {
        assert_eq!(api.get(gone).await.status(), StatusCode::NOT_FOUND, "{gone}");
    }
    assert_eq!(api.get("/v2/r/manifests/c").await.status(), StatusCode::OK);
    let target = format!("/v2/r/blobs/{}", digest(&one.layer));
    assert_eq!(api.delete(&target).await.status(), StatusCode::ACCEPTED);
    assert_eq!(api.delete(&target).await.status(), StatusCode::NOT_FOUND);
}

#[tokio::test]
async fn end_12_referrers_are_listed_and_filtered() {
    let (_system, api) = alice().await;
    let image = Image::new(9, 100);
    // Before its subject: either order is right.
    let mut artifact: Value = serde_json::from_slice(&image.manifest).unwrap();
    artifact["artifactType"] = json!("application/x.sbom");
    artifact["annotations"] = json!({"k": "v"});
    artifact["subject"] = json!({"mediaType": MANIFEST, "digest": digest(&image.manifest), "size": 1});
    for bytes in [&image.layer, &image.config] {
        api.push_blob("r", bytes).await.unwrap();
    }
    let artifact = artifact.to_string().into_bytes();
    let answer = api.push_manifest("r", &digest(&artifact), &artifact).await.unwrap();
    assert_eq!(header_of(&answer, "oci-subject"), digest(&image.manifest));
    api.must_push("r", "1", &image).await;
    let target = format!("/v2/r/referrers/{}", digest(&image.manifest));
    let list = async |target: &str| {
        let answer = api.get(target).await;
        assert_eq!(header_of(&answer, "content-type"), "application/vnd.oci.image.index.v1+json");
        let filtered = answer.headers().contains_key("oci-filters-applied");
        (answer.json::<Value>().await.unwrap()["manifests"].take(), filtered)
    };
    let expected = json!([{"mediaType": MANIFEST, "digest": digest(&artifact), "size": artifact.len(),
        "artifactType": "application/x.sbom", "annotations": {"k": "v"}}]);
    assert_eq!(list(&target).await, (expected.clone(), false));
    assert_eq!(list(&format!("{target}?artifactType=application/x.sbom")).await, (expected, true));
    assert_eq!(list(&format!("{target}?artifactType=other")).await, (json!([]), true));
    api.delete(&format!("/v2/r/manifests/{}", digest(&artifact))).await;
    assert_eq!(list(&target).await, (json!([]), false));
}

#[tokio::test]
async fn sha512_goes_all_the_way() {
    use sha2::{Digest as _, Sha512};
    let (_system, api) = alice().await;
    let hex: String = Sha512::digest(b"content").iter().map(|byte| format!("{byte:02x}")).collect();
    let target = format!("/v2/r/blobs/uploads/?digest=sha512:{hex}");
    let answer = api.request(Method::POST, &target).body("content").send().await.unwrap();
    assert_eq!(answer.status(), StatusCode::CREATED);
    assert_eq!(api.get(&location(&answer)).await.text().await.unwrap(), "content");
}

/// A client that sends all of a body before it looks for an answer sees why it was refused, and no reset.
#[tokio::test]
async fn a_refusal_reaches_whoever_is_still_sending() {
    let system = System::start(Setup { unix_socket: false, ..Setup::default() }).await;
    let (key, _) = system.signed_in("alice").await.make_key("a").await;
    let good = format!("Basic {}", BASE64_STANDARD.encode(format!("alice:{key}")));
    let registry = system.upstream.trim_start_matches("http://");
    for (address, authorization, expected) in [
        (system.authority(), good.as_str(), "HTTP/1.1 413"),
        (system.authority(), "Basic YWxpY2U6d3Jvbmc=", "HTTP/1.1 401"),
        (registry, "", "HTTP/1.1 413"),
    ] {
        let mut stream = TcpStream::connect(address).await.unwrap();
        let piece = vec![b' '; 1024 * 1024];
        let head = format!(
            "PUT /v2/r/manifests/1 HTTP/1.1\r\nHost: r\r\nAuthorization: {authorization}\r\nContent-Length: {}\r\n\r\n",
            12 * piece.len()
        );
        stream.write_all(head.as_bytes()).await.unwrap();
        for sent in 0..12 {
            stream.write_all(&piece).await.unwrap_or_else(|e| panic!("{expected}: {sent} MiB were sent: {e}"));
        }
        let mut answer = [0; 12];
        stream.read_exact(&mut answer).await.unwrap();
        assert_eq!(std::str::from_utf8(&answer).unwrap(), expected);
    }
}
