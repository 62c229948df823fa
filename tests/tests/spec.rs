//! The distribution specification, clause by clause, asked of `berth-registry` itself. `docs/registry.md` says which
//! clause each test pins.

use berth_tests::{
    api::{Api, Credential, error_of, header_of, location},
    images::{Image, MANIFEST, digest},
    system::{Setup, System},
};
use reqwest::{Method, Response, StatusCode, header};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha512};

const INDEX: &str = "application/vnd.oci.image.index.v1+json";

async fn registry() -> (System, Api) {
    let system = System::start(Setup { unix_socket: false, ..Setup::default() }).await;
    let api = Api::new(&system.upstream, Credential::None);
    (system, api)
}

/// Every way of uploading, begun without `digest-algorithm` and ended with `digest=sha512:…`.
pub async fn push_unannounced(api: &Api, layer: &[u8]) {
    let whole = sha512(layer);
    for (way, chunks, with_last) in [("a chunk, PUT", 1, false), ("PUT", 0, true), ("chunks, PUT", 3, true)] {
        let repository = format!("unannounced/{chunks}");
        let mut address = api.start_upload(&repository).await;
        let pieces: Vec<&[u8]> = layer.chunks(layer.len().div_ceil(chunks + usize::from(with_last))).collect();
        for piece in &pieces[..chunks] {
            let sent = api.request(Method::PATCH, &address).body(piece.to_vec()).send().await.unwrap();
            assert_eq!(sent.status(), StatusCode::ACCEPTED, "{way}");
            address = location(&sent);
        }
        let last = if with_last { pieces[chunks].to_vec() } else { Vec::new() };
        let put = api.request(Method::PUT, &format!("{address}?digest={whole}")).body(last);
        assert_eq!(put.send().await.unwrap().status(), StatusCode::CREATED, "{way}");
        let back = api.get(&format!("/v2/{repository}/blobs/{whole}")).await;
        assert!(back.bytes().await.unwrap() == layer, "{way}");
    }
    let target = format!("/v2/unannounced/post/blobs/uploads/?digest={whole}");
    assert_eq!(
        api.request(Method::POST, &target).body(layer.to_vec()).send().await.unwrap().status(),
        StatusCode::CREATED
    );
    // Of other bytes it is still refused.
    let begun = api.start_upload("unannounced/wrong").await;
    api.request(Method::PATCH, &begun).body("x").send().await.unwrap();
    let target = format!("{begun}?digest={}", sha512(b"y"));
    let answer = api.request(Method::PUT, &target).header(header::CONTENT_LENGTH, 0).send().await.unwrap();
    assert_eq!(error_of(answer).await, (400, "DIGEST_INVALID".to_owned()));
}

fn sha512(bytes: &[u8]) -> String {
    format!("sha512:{}", Sha512::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect::<String>())
}

async fn put(api: &Api, target: &str, content_type: &str, body: &Value) -> Response {
    let request = api.request(Method::PUT, target).header(header::CONTENT_TYPE, content_type);
    request.body(body.to_string()).send().await.unwrap()
}

fn descriptor(media_type: &str, bytes: &[u8]) -> Value {
    json!({"mediaType": media_type, "digest": digest(bytes), "size": bytes.len()})
}

#[tokio::test]
async fn end_1_the_ping() {
    let (_system, api) = registry().await;
    let answer = api.get("/v2/").await;
    assert_eq!(answer.status(), StatusCode::OK);
    assert_eq!(header_of(&answer, "docker-distribution-api-version"), "registry/2.0");
    assert_eq!(api.get("/").await.status(), StatusCode::NOT_FOUND);
    assert_eq!(error_of(api.post("/v2/").await).await, (405, "UNSUPPORTED".to_owned()));
}

#[tokio::test]
async fn end_2_what_is_immutable_may_be_kept_and_what_moves_may_not() {
    let (_system, api) = registry().await;
    let image = Image::new(1, 100);
    api.must_push("r", "1", &image).await;
    for (target, expected) in [
        (format!("/v2/r/blobs/{}", digest(&image.layer)), "private, max-age=31536000, immutable"),
        (format!("/v2/r/manifests/{}", digest(&image.manifest)), "private, max-age=31536000, immutable"),
        ("/v2/r/manifests/1".to_owned(), "private, no-cache"),
    ] {
        let answer = api.get(&target).await;
        assert_eq!(header_of(&answer, "cache-control"), expected, "{target}");
        let etag = header_of(&answer, "etag");
        let again = api.request(Method::GET, &target).header(header::IF_NONE_MATCH, etag).send().await.unwrap();
        assert_eq!(again.status(), StatusCode::NOT_MODIFIED, "{target}");
    }
}

#[tokio::test]
async fn end_2_several_ranges_or_unreadable_ones_are_answered_with_the_whole() {
    let (_system, api) = registry().await;
    api.push_blob("r", b"0123456789").await.unwrap();
    let target = format!("/v2/r/blobs/{}", digest(b"0123456789"));
    for range in ["bytes=0-1,4-5", "bytes=x-y", "items=0-1", "bytes=5-2"] {
        let answer = api.request(Method::GET, &target).header(header::RANGE, range).send().await.unwrap();
        assert_eq!(answer.status(), StatusCode::OK, "{range}");
        assert_eq!(answer.text().await.unwrap(), "0123456789");
    }
    let answer = api.request(Method::GET, &target).header(header::RANGE, "bytes=10-").send().await.unwrap();
    assert_eq!(header_of(&answer, "content-range"), "bytes */10");
    assert_eq!(error_of(answer).await, (416, "SIZE_INVALID".to_owned()));
}

#[tokio::test]
async fn end_3_the_type_and_every_byte_are_kept() {
    let (_system, api) = registry().await;
    let image = Image::new(2, 100);
    api.must_push("r", "1", &image).await;
    let docker = "application/vnd.docker.distribution.manifest.v2+json";
    let mut document: Value = serde_json::from_slice(&image.manifest).unwrap();
    document["mediaType"] = json!(docker);
    document["layers"][0]["data"] = json!("aGVsbG8=");
    document["org.example.custom"] = json!({"kept": [1, 2.50, null]});
    let text = format!("  {document}\n\n");
    let request = api.request(Method::PUT, "/v2/r/manifests/docker").header(header::CONTENT_TYPE, docker);
    assert_eq!(request.body(text.clone()).send().await.unwrap().status(), StatusCode::CREATED);
    let answer = api.get("/v2/r/manifests/docker").await;
    assert_eq!(header_of(&answer, "content-type"), docker);
    assert_eq!(answer.text().await.unwrap(), text);
    // Parameters of the type are ignored, and aren't answered.
    let request = api.request(Method::PUT, "/v2/r/manifests/p");
    let request = request.header(header::CONTENT_TYPE, format!("{MANIFEST}; charset=utf-8"));
    request.body(image.manifest.clone()).send().await.unwrap();
    assert_eq!(header_of(&api.get("/v2/r/manifests/p").await, "content-type"), MANIFEST);
    let unknown = put(&api, "/v2/r/manifests/x", "text/plain", &json!({"schemaVersion": 2})).await;
    assert_eq!(error_of(unknown).await, (400, "MANIFEST_INVALID".to_owned()));
}

#[tokio::test]
async fn end_4_an_empty_blob_is_a_blob() {
    let (_system, api) = registry().await;
    assert_eq!(api.push_blob("r", b"").await.unwrap().status(), StatusCode::CREATED);
    let target = format!("/v2/r/blobs/{}", digest(b""));
    assert_eq!(header_of(&api.head(&target).await, "content-length"), "0");
    assert_eq!(api.get(&target).await.text().await.unwrap(), "");
}

#[tokio::test]
async fn end_4c_another_algorithm_from_the_first_chunk_to_the_manifest() {
    let (_system, api) = registry().await;
    let config = b"{}".to_vec();
    let begun = api.post("/v2/r/blobs/uploads/?digest-algorithm=sha512").await;
    let answer = api.request(Method::PATCH, &location(&begun)).body(config.clone()).send().await.unwrap();
    let target = format!("{}?digest={}", location(&answer), sha512(&config));
    let answer = api.request(Method::PUT, &target).header(header::CONTENT_LENGTH, 0).send().await.unwrap();
    assert_eq!(answer.status(), StatusCode::CREATED);
    let manifest = json!({"schemaVersion": 2, "mediaType": MANIFEST, "layers": [],
        "config": {"mediaType": "application/x", "digest": sha512(&config), "size": 2}});
    let reference = sha512(manifest.to_string().as_bytes());
    let answer = put(&api, &format!("/v2/r/manifests/{reference}?tag=t"), MANIFEST, &manifest).await;
    assert_eq!(header_of(&answer, "docker-content-digest"), reference);
    assert_eq!(header_of(&api.get("/v2/r/manifests/t").await, "docker-content-digest"), reference);
    assert_eq!(api.post("/v2/r/blobs/uploads/?digest-algorithm=md5").await.status(), StatusCode::BAD_REQUEST);
}

#[tokio::test]
async fn end_4c_a_digest_that_nobody_announced_is_computed_at_the_end() {
    let (_system, api) = registry().await;
    let layer = Image::new(1, 3_000_000).layer;
    push_unannounced(&api, &layer).await;
}

#[tokio::test]
async fn end_5_a_chunk_says_where_it_belongs() {
    let (_system, api) = registry().await;
    let address = api.start_upload("r").await;
    for (range, body, expected) in [
        ("1-3", "abc", 416),
        ("0-9", "abc", 400),
        ("x", "abc", 400),
        ("3-1", "abc", 400),
        ("bytes 0-2", "abc", 202),
        ("0-2", "abc", 416),
    ] {
        let request = api.request(Method::PATCH, &address).header(header::CONTENT_RANGE, range);
        assert_eq!(request.body(body).send().await.unwrap().status(), expected, "{range}");
    }
    let target = format!("{address}?digest={}", digest(b"abcdef"));
    let request = api.request(Method::PUT, &target).header(header::CONTENT_RANGE, "9-11").body("def");
    assert_eq!(request.send().await.unwrap().status(), StatusCode::RANGE_NOT_SATISFIABLE);
    let request = api.request(Method::PUT, &target).header(header::CONTENT_RANGE, "3-5").body("def");
    assert_eq!(request.send().await.unwrap().status(), StatusCode::CREATED);
}

#[tokio::test]
async fn end_6_an_upload_belongs_to_its_repository() {
    let (_system, api) = registry().await;
    let address = api.start_upload("mine").await.replace("/mine/", "/other/");
    assert_eq!(error_of(api.get(&address).await).await, (404, "BLOB_UPLOAD_UNKNOWN".to_owned()));
    let missing = api.request(Method::PUT, &address).body("x").send().await.unwrap();
    assert_eq!(error_of(missing).await, (400, "DIGEST_INVALID".to_owned()));
}

#[tokio::test]
async fn end_7_conditions_are_decided_with_the_write() {
    let (_system, api) = registry().await;
    let image = Image::new(3, 100);
    api.must_push("r", "there", &image).await;
    let push = async |reference: &str, name: header::HeaderName, value: &str| {
        let request = api.request(Method::PUT, &format!("/v2/r/manifests/{reference}"));
        let request = request.header(header::CONTENT_TYPE, MANIFEST).header(name, value);
        request.body(image.manifest.clone()).send().await.unwrap().status().as_u16()
    };
    assert_eq!(push("there", header::IF_NONE_MATCH, "*").await, 412);
    assert_eq!(push("new", header::IF_MATCH, "*").await, 412);
    assert_eq!(push("new", header::IF_NONE_MATCH, "*").await, 201);
    assert_eq!(push("there", header::IF_MATCH, "*").await, 201);
    assert_eq!(push("there", header::IF_MATCH, "\"sha256:x\"").await, 400);
}

#[tokio::test]
async fn end_7_a_push_that_is_refused_leaves_nothing() {
    let (_system, api) = registry().await;
    let image = Image::new(7, 100);
    api.must_push("r", "there", &image).await;
    let subject = digest(b"subject");
    let mut artifact: Value = serde_json::from_slice(&image.manifest).unwrap();
    artifact["subject"] = json!({"mediaType": MANIFEST, "digest": subject, "size": 1});
    let text = artifact.to_string().into_bytes();
    // The first tag could be made and the second couldn't.
    let target = format!("/v2/r/manifests/{}?tag=new&tag=there", digest(&text));
    let request = api.request(Method::PUT, &target).header(header::CONTENT_TYPE, MANIFEST);
    let answer = request.header(header::IF_NONE_MATCH, "*").body(text.clone()).send().await.unwrap();
    assert_eq!(answer.status(), StatusCode::PRECONDITION_FAILED);
    for gone in ["new".to_owned(), digest(&text)] {
        assert_eq!(api.get(&format!("/v2/r/manifests/{gone}")).await.status(), StatusCode::NOT_FOUND, "{gone}");
    }
    let referrers: Value = api.get(&format!("/v2/r/referrers/{subject}")).await.json().await.unwrap();
    assert_eq!(referrers["manifests"], json!([]));
}

#[tokio::test]
async fn end_7_a_manifest_is_an_index_or_an_image_and_not_both() {
    let (_system, api) = registry().await;
    api.push_blob("r", b"{}").await.unwrap();
    let config = descriptor("application/x", b"{}");
    let both = json!({"schemaVersion": 2, "config": config, "layers": [], "manifests": []});
    for content_type in [MANIFEST, INDEX] {
        let answer = put(&api, "/v2/r/manifests/1", content_type, &both).await;
        assert_eq!(error_of(answer).await, (400, "MANIFEST_INVALID".to_owned()));
    }
}

#[tokio::test]
async fn the_catalogue_has_every_repository_in_pages_of_any_size() {
    let (_system, api) = registry().await;
    let names = ["team", "team/1password", "team/app", "team-a", "zed", "1"];
    for name in names {
        api.must_push(name, "1", &Image::new(8, 100)).await;
    }
    for n in 1..=names.len() {
        let (mut all, mut target) = (Vec::new(), Some(format!("/v2/_catalog?n={n}")));
        while let Some(next) = target {
            let answer = api.get(&next).await;
            let link = answer.headers().get("link").map(|link| link.to_str().unwrap().to_owned());
            target = link.map(|link| link.trim_start_matches('<').split('>').next().unwrap().to_owned());
            let page: Value = answer.json().await.unwrap();
            all.extend(page["repositories"].as_array().unwrap().iter().map(|name| name.as_str().unwrap().to_owned()));
        }
        assert_eq!(all, ["1", "team", "team/1password", "team/app", "team-a", "zed"], "n={n}");
    }
}

#[tokio::test]
async fn end_7b_too_many_tags_are_414() {
    let (_system, api) = registry().await;
    let image = Image::new(4, 100);
    let tags: Vec<String> = (0..100).map(|i| format!("tag=t{i}")).collect();
    let reference = format!("{}?{}", digest(&image.manifest), tags.join("&"));
    let answer = api.push_manifest("r", &reference, &image.manifest).await.unwrap();
    assert_eq!(answer.status(), StatusCode::URI_TOO_LONG);
}

#[tokio::test]
async fn end_7_indexes_nest_and_name_only_what_is_there() {
    let (_system, api) = registry().await;
    let image = Image::new(5, 100);
    let inner = json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": [descriptor(MANIFEST, &image.manifest)]});
    let early = put(&api, "/v2/r/manifests/inner", INDEX, &inner).await;
    assert_eq!(error_of(early).await, (404, "MANIFEST_BLOB_UNKNOWN".to_owned()));
    api.must_push("r", &digest(&image.manifest), &image).await;
    assert_eq!(put(&api, "/v2/r/manifests/inner", INDEX, &inner).await.status(), StatusCode::CREATED);
    let manifests = [descriptor(INDEX, inner.to_string().as_bytes())];
    let outer = json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": manifests});
    assert_eq!(put(&api, "/v2/r/manifests/outer", INDEX, &outer).await.status(), StatusCode::CREATED);
    let empty = json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": []});
    assert_eq!(put(&api, "/v2/r/manifests/empty", INDEX, &empty).await.status(), StatusCode::CREATED);
}

#[tokio::test]
async fn end_7_layers_that_are_kept_elsewhere_need_not_be_here() {
    let (_system, api) = registry().await;
    api.push_blob("r", b"{}").await.unwrap();
    let layer_type = "application/vnd.oci.image.layer.nondistributable.v1.tar";
    let mut layer = descriptor(layer_type, b"elsewhere");
    layer["urls"] = json!(["https://example.com/layer"]);
    let config = descriptor("application/vnd.oci.image.config.v1+json", b"{}");
    let manifest = json!({"schemaVersion": 2, "mediaType": MANIFEST, "config": config, "layers": [layer]});
    assert_eq!(put(&api, "/v2/r/manifests/1", MANIFEST, &manifest).await.status(), StatusCode::CREATED);
    // An artifact without layers is one, too.
    let manifest =
        json!({"schemaVersion": 2, "mediaType": MANIFEST, "artifactType": "application/x", "config": config});
    assert_eq!(put(&api, "/v2/r/manifests/2", MANIFEST, &manifest).await.status(), StatusCode::CREATED);
}

#[tokio::test]
async fn end_9_and_10_what_is_not_there_cannot_be_deleted() {
    let (_system, api) = registry().await;
    api.must_push("r", "1", &Image::new(6, 100)).await;
    for (target, code) in [
        ("/v2/r/manifests/none".to_owned(), "MANIFEST_UNKNOWN"),
        (format!("/v2/r/manifests/{}", digest(b"none")), "MANIFEST_UNKNOWN"),
        (format!("/v2/r/blobs/{}", digest(b"none")), "BLOB_UNKNOWN"),
        ("/v2/none/manifests/1".to_owned(), "MANIFEST_UNKNOWN"),
    ] {
        assert_eq!(error_of(api.delete(&target).await).await, (404, code.to_owned()), "{target}");
    }
}

#[tokio::test]
async fn end_11_a_mount_without_a_source_or_from_a_wrong_one_begins_an_upload() {
    let (_system, api) = registry().await;
    api.push_blob("source", b"blob").await.unwrap();
    let blob = digest(b"blob");
    for from in ["", "&from=nowhere", "&from=..%2Fsource", "&from="] {
        let answer = api.post(&format!("/v2/r/blobs/uploads/?mount={blob}{from}")).await;
        assert_eq!(answer.status(), StatusCode::ACCEPTED, "{from}");
        assert_eq!(api.head(&format!("/v2/r/blobs/{blob}")).await.status(), StatusCode::NOT_FOUND);
    }
    let answer = api.post(&format!("/v2/r/blobs/uploads/?mount={blob}&from=source")).await;
    assert_eq!((answer.status(), location(&answer)), (StatusCode::CREATED, format!("/v2/r/blobs/{blob}")));
    assert_eq!(api.get(&format!("/v2/r/blobs/{blob}")).await.text().await.unwrap(), "blob");
}

#[tokio::test]
async fn end_12_an_index_refers_too_and_nothing_is_an_empty_list() {
    let (_system, api) = registry().await;
    let subject = descriptor(MANIFEST, b"not pushed yet");
    let target = format!("/v2/r/referrers/{}", digest(b"not pushed yet"));
    let list = async || api.get(&target).await.json::<Value>().await.unwrap();
    assert_eq!(list().await, json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": []}));
    let index = json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": [], "subject": subject,
        "annotations": {"a": "b"}});
    let answer = put(&api, "/v2/r/manifests/referrer", INDEX, &index).await;
    assert_eq!(header_of(&answer, "oci-subject"), digest(b"not pushed yet"));
    let mut expected = descriptor(INDEX, index.to_string().as_bytes());
    expected["annotations"] = json!({"a": "b"});
    // An index without a type is listed without one.
    assert_eq!(list().await["manifests"], json!([expected]));
    assert_eq!(error_of(api.get("/v2/r/referrers/sha256:x").await).await, (400, "DIGEST_INVALID".to_owned()));
}

#[tokio::test]
async fn end_12_a_long_list_of_referrers_comes_in_pages() {
    let (_system, api) = registry().await;
    let image = Image::new(12, 10);
    api.must_push("r", "1", &image).await;
    // What their pushers wrote is as long as they liked.
    for i in 0..5 {
        let annotations = json!({"i": i.to_string(), "long": "x".repeat(400_000)});
        let referrer = json!({
            "schemaVersion": 2, "mediaType": INDEX, "manifests": [], "annotations": annotations,
            "subject": descriptor(MANIFEST, &image.manifest),
        });
        let answer = put(&api, &format!("/v2/r/manifests/ref{i}"), INDEX, &referrer).await;
        assert_eq!(answer.status(), StatusCode::CREATED);
    }
    let (mut next, mut found) = (Some(format!("/v2/r/referrers/{}", digest(&image.manifest))), Vec::new());
    let mut pages = 0;
    while let Some(target) = next {
        let answer = api.get(&target).await;
        next = answer.headers().get("link").map(|link| link.to_str().unwrap().to_owned());
        next = next.map(|link| link.trim_start_matches('<').split('>').next().unwrap().to_owned());
        let text = answer.text().await.unwrap();
        assert!(text.len() < 1_500_000, "{}", text.len());
        let page: Value = serde_json::from_str(&text).unwrap();
        let listed = page["manifests"].as_array().unwrap();
        found.extend(listed.iter().map(|one| one["annotations"]["i"].as_str().unwrap().to_owned()));
        pages += 1;
    }
    found.sort();
    assert_eq!((found, pages), (["0", "1", "2", "3", "4"].map(str::to_owned).to_vec(), 3));
}
