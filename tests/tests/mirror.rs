//! What the registry lacks is fetched from another one when somebody pulls it who may cause that; and is there when that one
//! isn't.

use std::{
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Instant,
};

use axum::{
    Router,
    body::{Body, Bytes},
    http::{HeaderMap, HeaderValue, Method as HttpMethod, Uri},
    response::Response as Answer,
};
use berth_tests::{
    api::Api,
    images::{Image, MANIFEST, digest},
    process::{Process, free_port, wait_for},
    relay::Relay,
    system::{Setup, System, answers, binary, serve_with},
    tools::{self, must, run},
};
use futures_util::{StreamExt, future::join_all};
use reqwest::StatusCode;
use serde_json::{Value, json};
use tokio::net::TcpListener;

const INDEX: &str = "application/vnd.oci.image.index.v1+json";

/// A registry with a mirror, and people: alice lets fetch, bob only reads what is there.
struct Mirrored {
    system: System,
    mirror: Process,
    alice: Api,
    bob: Api,
}

/// What the rules of the mirroring registry say of `up/**`.
fn rules() -> Value {
    let all = ["read", "create", "update", "delete"];
    json!({"repositories": {
        "up/**": {"policies": [
            {"users": ["bob"], "actions": ["read"]},
            {"users": ["alice"], "actions": ["read"], "onDemand": true}], "anonymousPolicy": ["read"]},
        "**": {"policies": [{"users": ["alice"], "actions": all}]}}})
}

impl Mirrored {
    async fn of(url: &str, more: Value) -> Self {
        let mut registry = json!({"urls": [url], "onDemand": true, "pollInterval": "1s",
            "content": [{"prefix": "**", "destination": "/up"}]});
        registry.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        Self::with(json!({"enable": true, "registries": [registry]}), json!({})).await
    }

    async fn with(sync: Value, storage: Value) -> Self {
        let sidecar = json!({"mirror": format!("http://127.0.0.1:{}", free_port())});
        let extensions = json!({"sync": sync});
        let setup = Setup { access_control: rules(), extensions, sidecar, storage, ..Setup::default() };
        let system = System::start(setup).await;
        let mirror = serve_with("berth-mirror", &system.config(), &system.folder.join("berth-mirror.log"));
        mirror.prints("listening on").await;
        let mut keys = Vec::new();
        for who in ["alice", "bob"] {
            let (key, _) = system.signed_in(who).await.make_key("a").await;
            keys.push(Api::basic(&system.url, who, &key));
        }
        let bob = keys.pop().unwrap();
        Self { system, mirror, alice: keys.pop().unwrap(), bob }
    }
}

/// Another registry, from which everybody may pull.
async fn upstream() -> (System, Api) {
    let all = ["read", "create", "update", "delete"];
    let access_control = json!({"repositories": {
        "**": {"policies": [{"users": ["alice"], "actions": all}], "anonymousPolicy": ["read"]},
        "private/**": {"policies": [{"users": ["alice"], "actions": all}]}}});
    let system = System::start(Setup { access_control, ..Setup::default() }).await;
    let (key, _) = system.signed_in("alice").await.make_key("a").await;
    let api = Api::basic(&system.url, "alice", &key);
    (system, api)
}

/// Waits until the blobs of `up/team/app` are kept: they are given away before that.
async fn kept(bob: &Api, image: &Image) {
    for blob in [&image.layer, &image.config] {
        wait_for("a blob to be kept", async || {
            let blob = bob.head(&format!("/v2/up/team/app/blobs/{}", digest(blob))).await;
            blob.status().is_success().then_some(())
        })
        .await;
    }
}

async fn must_pull(api: &Api, repository: &str, reference: &str, image: &Image) {
    let manifest = api.get(&format!("/v2/{repository}/manifests/{reference}")).await;
    assert_eq!(manifest.status(), StatusCode::OK, "{}", manifest.text().await.unwrap());
    assert_eq!(manifest.headers()["content-type"], MANIFEST);
    assert_eq!(manifest.headers()["docker-content-digest"], digest(&image.manifest).as_str());
    assert_eq!(manifest.bytes().await.unwrap(), image.manifest);
    for blob in [&image.config, &image.layer] {
        let got = api.get(&format!("/v2/{repository}/blobs/{}", digest(blob))).await;
        assert_eq!(got.status(), StatusCode::OK);
        assert!(got.bytes().await.unwrap() == *blob, "the bytes of a blob");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_pulled_is_fetched_once_and_is_there_when_the_other_registry_is_not() {
    let (up, pusher) = upstream().await;
    let relay = Relay::to(up.authority()).await;
    let (one, two) = (Image::new(1, 3_000_000), Image::new(2, 1000));
    pusher.must_push("team/app", "1", &one).await;
    pusher.must_push("team/app", "2", &two).await;
    let mut mirrored = Mirrored::of(&relay.url(), json!({})).await;
    let Mirrored { alice, bob, system, .. } = &mirrored;
    // Who may only read, or is nobody, causes nothing.
    for who in [bob, &Api::new(&system.url, berth_tests::api::Credential::None)] {
        assert_eq!(who.get("/v2/up/team/app/manifests/1").await.status(), StatusCode::NOT_FOUND);
        let blob = format!("/v2/up/team/app/blobs/{}", digest(&one.layer));
        assert_eq!(who.get(&blob).await.status(), StatusCode::NOT_FOUND);
    }
    assert_eq!((relay.requests("GET"), relay.requests("HEAD")), (0, 0));
    let head = alice.head("/v2/up/team/app/manifests/1").await;
    assert_eq!(
        (head.status(), &head.headers()["docker-content-digest"]),
        (StatusCode::OK, &digest(&one.manifest).parse().unwrap())
    );
    must_pull(alice, "up/team/app", "1", &one).await;
    let length = alice.head(&format!("/v2/up/team/app/blobs/{}", digest(&one.layer))).await;
    assert_eq!(length.headers()["content-length"], one.layer.len().to_string().as_str());
    // It is kept, for those, too, who let fetch nothing; and for ranges.
    kept(bob, &one).await;
    must_pull(bob, "up/team/app", "1", &one).await;
    let asked = (relay.requests("GET"), relay.requests("HEAD"));
    must_pull(alice, "up/team/app", &digest(&one.manifest), &one).await;
    assert_eq!((relay.requests("GET"), relay.requests("HEAD")), asked, "what a digest names is what it is");
    assert_eq!(relay.requests(&format!("GET /v2/team/app/blobs/{}", digest(&one.layer))), 1);
    // What isn't there is asked for once a minute.
    for _ in 0..5 {
        assert_eq!(alice.get("/v2/up/team/app/manifests/none").await.status(), StatusCode::NOT_FOUND);
    }
    assert_eq!(relay.requests("HEAD /v2/team/app/manifests/none"), 1);
    // Nothing of it was pushed by anybody here, and nobody may.
    assert_eq!(alice.start_upload_status("up/team/app").await, StatusCode::FORBIDDEN);

    // A tag moves there, and a moment later here.
    pusher.must_push("team/app", "1", &two).await;
    wait_for("the tag to move", async || {
        let manifest = alice.get("/v2/up/team/app/manifests/1").await;
        (manifest.bytes().await.ok()? == two.manifest).then_some(())
    })
    .await;
    must_pull(alice, "up/team/app", "1", &two).await;
    kept(bob, &two).await;
    // With the other registry down, what is here is served, and what isn't is said to be there no longer than that.
    relay.set_down(true);
    must_pull(alice, "up/team/app", "1", &two).await;
    must_pull(bob, "up/team/app", "1", &two).await;
    let away = alice.get("/v2/up/team/app/manifests/2").await;
    assert_eq!(away.status(), StatusCode::BAD_GATEWAY);
    let text = away.text().await.unwrap();
    assert!(text.contains("can't be asked"), "{text}");
    relay.set_down(false);
    wait_for("the other registry", async || {
        alice.get("/v2/up/team/app/manifests/2").await.status().is_success().then_some(())
    })
    .await;
    // A tag that is gone there is gone.
    assert_eq!(pusher.delete("/v2/team/app/manifests/2").await.status(), StatusCode::ACCEPTED);
    wait_for("the tag to go", async || {
        (alice.get("/v2/up/team/app/manifests/2").await.status() == StatusCode::NOT_FOUND).then_some(())
    })
    .await;
    // Without the mirror, the registry answers alone.
    mirrored.mirror.kill();
    must_pull(&mirrored.alice, "up/team/app", "1", &two).await;
    assert_eq!(mirrored.alice.get("/v2/up/team/app/manifests/3").await.status(), StatusCode::NOT_FOUND);
    // Elsewhere nothing has changed.
    mirrored.alice.must_push("own", "1", &one).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_index_is_served_whole_and_of_its_images_those_that_are_pulled() {
    let (up, pusher) = upstream().await;
    let images: Vec<Image> = (0..2).map(|i| Image::new(i, 2000)).collect();
    for image in &images {
        pusher.must_push("multi", "x", image).await;
    }
    let parts: Vec<Value> = images
        .iter()
        .zip(["amd64", "arm64"])
        .map(|(image, architecture)| {
            json!({"mediaType": MANIFEST, "digest": digest(&image.manifest), "size": image.manifest.len(),
                "platform": {"architecture": architecture, "os": "linux"}})
        })
        .collect();
    let index = json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": parts}).to_string();
    let pushed = pusher.request(reqwest::Method::PUT, "/v2/multi/manifests/1").header("content-type", INDEX);
    assert_eq!(pushed.body(index.clone()).send().await.unwrap().status(), StatusCode::CREATED);
    let mirrored = Mirrored::of(&up.url, json!({})).await;
    let got = mirrored.alice.get("/v2/up/multi/manifests/1").await;
    assert_eq!((got.status(), &got.headers()["content-type"]), (StatusCode::OK, &INDEX.parse().unwrap()));
    assert_eq!(got.text().await.unwrap(), index);
    must_pull(&mirrored.alice, "up/multi", &digest(&images[0].manifest), &images[0]).await;
    let other = format!("/v2/up/multi/manifests/{}", digest(&images[1].manifest));
    assert_eq!(mirrored.bob.get(&other).await.status(), StatusCode::NOT_FOUND);
    // Nobody else may push what lacks its parts.
    let answer = mirrored.alice.request(reqwest::Method::PUT, "/v2/own/manifests/1").header("content-type", INDEX);
    let answer = answer.header("berth-incomplete", "1").body(index).send().await.unwrap();
    assert_eq!(answer.status(), StatusCode::NOT_FOUND);
    // Pages show it.
    let page = mirrored.system.signed_in("alice").await.get("/image/up/multi:1").await;
    assert_eq!(page.status(), StatusCode::OK);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_who_want_one_blob_share_one_transfer_and_a_broken_one_goes_on() {
    for is_other in [false, true] {
        let (mut up, pusher) = if is_other {
            let mut system = System::start(Setup { unix_socket: false, ..Setup::default() }).await;
            let (key, _) = system.signed_in("alice").await.make_key("a").await;
            if system.use_another_registry().await.is_none() {
                return;
            }
            let api = Api::basic(&system.url, "alice", &key);
            (system, api)
        } else {
            upstream().await
        };
        let image = Image::new(1, 30_000_000);
        pusher.must_push("big", "1", &image).await;
        // Debian's docker-registry by itself, without the proxy in front of it.
        let authority = if is_other { up.upstream.trim_start_matches("http://") } else { up.authority() };
        let relay = Relay::to(authority).await;
        let mirrored = Mirrored::of(&relay.url(), json!({})).await;
        let blob = format!("/v2/up/big/blobs/{}", digest(&image.layer));
        let manifest = mirrored.alice.get("/v2/up/big/manifests/1").await;
        assert_eq!(manifest.status(), StatusCode::OK, "{}", mirrored.mirror.printed());
        // Every 7 MB the network breaks.
        relay.cut_after(7_000_000);
        let began = Instant::now();
        let pulls = (0..8).map(|_| async {
            let answer = mirrored.alice.get(&blob).await;
            assert_eq!(answer.status(), StatusCode::OK);
            answer.bytes().await.expect("all of it")
        });
        let first = mirrored.alice.get(&blob).await;
        let first_byte = began.elapsed();
        let mut pieces = first.bytes_stream();
        assert!(pieces.next().await.unwrap().is_ok());
        for got in join_all(pulls).await {
            assert!(got == image.layer, "is_other {is_other}");
        }
        while let Some(piece) = pieces.next().await {
            piece.unwrap();
        }
        let asked = relay.requests(&format!("GET /v2/big/blobs/{}", digest(&image.layer)));
        println!("{asked} requests for 9 pulls, first byte after {first_byte:?}, all after {:?}", began.elapsed());
        assert!((5..=8).contains(&asked), "{asked} requests: it goes on where it was");
        // It is kept, and a part of it is served.
        relay.set_down(true);
        wait_for("the blob to be kept", async || mirrored.bob.head(&blob).await.status().is_success().then_some(()))
            .await;
        let part = mirrored
            .alice
            .request(reqwest::Method::GET, &blob)
            .header("range", "bytes=1000-1999")
            .send()
            .await
            .unwrap();
        assert_eq!(part.status(), StatusCode::PARTIAL_CONTENT);
        assert_eq!(part.bytes().await.unwrap(), image.layer[1000..2000]);
        up.proxy.kill();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn credentials_are_for_their_registry_alone() {
    let (up, pusher) = upstream().await;
    let image = Image::new(1, 2000);
    pusher.must_push("private/app", "1", &image).await;
    let (key, _) = up.signed_in("alice").await.make_key("for the mirror").await;
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("credentials.json");
    let authority = up.authority().to_owned();
    let write = |password: &str| {
        let text = json!({&authority: {"username": "alice", "password": password}});
        std::fs::write(&file, text.to_string()).unwrap();
    };
    write("wrong");
    let registry =
        json!({"urls": [up.url], "onDemand": true, "content": [{"prefix": "private/**", "destination": "/up"}]});
    let sync = json!({"credentialsFile": &file, "registries": [registry]});
    let mirrored = Mirrored::with(sync, json!({})).await;
    let refused = mirrored.alice.get("/v2/up/private/app/manifests/1").await;
    assert_eq!(refused.status(), StatusCode::BAD_GATEWAY);
    let text = refused.text().await.unwrap();
    assert!(text.contains("credentialsFile") && !text.contains("wrong"), "{text}");
    // The file is read again when it is needed.
    write(&key);
    must_pull(&mirrored.alice, "up/private/app", "1", &image).await;
    // What the prefix leaves out isn't asked for.
    pusher.must_push("other", "1", &image).await;
    assert_eq!(mirrored.alice.get("/v2/up/other/manifests/1").await.status(), StatusCode::NOT_FOUND);
    assert!(!mirrored.mirror.printed().contains(&key));
}

/// A registry that answers every request by this.
async fn hostile(answer: impl Fn(&HttpMethod, &str) -> Answer + Clone + Send + Sync + 'static) -> String {
    hostile_to(move |method, target, _| answer(method, target)).await
}

/// The same, by what it is shown, too.
async fn hostile_to(
    answer: impl Fn(&HttpMethod, &str, Option<&HeaderValue>) -> Answer + Clone + Send + Sync + 'static,
) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://localhost:{}", listener.local_addr().unwrap().port());
    let handler = move |method: HttpMethod, uri: Uri, headers: HeaderMap| {
        let answer = answer.clone();
        async move { answer(&method, &uri.to_string(), headers.get("authorization")) }
    };
    tokio::spawn(async move { axum::serve(listener, Router::new().fallback(handler)).await });
    url
}

fn answered(status: u16, headers: &[(&'static str, String)], body: impl Into<Body>) -> Answer {
    let mut answer = Answer::new(body.into());
    *answer.status_mut() = axum::http::StatusCode::from_u16(status).unwrap();
    for (name, value) in headers {
        answer.headers_mut().insert(*name, HeaderValue::from_str(value).unwrap());
    }
    answer
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_another_registry_makes_up_is_neither_kept_nor_believed() {
    let image = Arc::new(Image::new(1, 500_000));
    let secret = Arc::new(AtomicUsize::new(0));
    // What nobody outside of this network may see.
    let seen = Arc::clone(&secret);
    let inside = hostile(move |_, _| {
        seen.fetch_add(1, Ordering::Relaxed);
        answered(200, &[], "a secret of this network")
    })
    .await
    .replace("localhost", "127.0.0.1");
    let (served, elsewhere, long) = (Arc::clone(&image), inside.clone(), vec![b'x'; 5_000_000]);
    let up = hostile(move |method, target| {
        let manifest = |bytes: Vec<u8>, claimed: String| {
            let len = bytes.len().to_string();
            let body = if method == HttpMethod::HEAD { Bytes::new() } else { bytes.into() };
            let headers =
                [("content-type", MANIFEST.to_owned()), ("docker-content-digest", claimed), ("content-length", len)];
            answered(200, &headers, body)
        };
        let of_image = digest(&served.manifest);
        match target.rsplit_once('/').unwrap().1 {
            "good" => manifest(served.manifest.clone(), of_image),
            reference if reference == of_image => manifest(served.manifest.clone(), of_image),
            "other" => manifest(served.manifest.clone(), digest(b"other")),
            reference if reference == digest(b"other") => manifest(served.manifest.clone(), digest(b"other")),
            "long" => manifest(long.clone(), digest(&long)),
            reference if reference == digest(&long) => manifest(long.clone(), digest(&long)),
            "html" => answered(200, &[("content-type", "text/html".to_owned())], "<script>alert(1)</script>"),
            "text" => answered(200, &[("content-type", MANIFEST.to_owned())], "<script>alert(1)</script>"),
            "busy" => answered(429, &[("retry-after", "7".to_owned())], ""),
            "broken" => answered(500, &[], ""),
            "inside" => answered(307, &[("location", format!("{elsewhere}/x"))], ""),
            "metadata" => answered(307, &[("location", "http://169.254.169.254/latest".to_owned())], ""),
            "loop" => answered(307, &[("location", target.to_owned())], ""),
            "realm" => answered(401, &[("www-authenticate", format!("Bearer realm=\"{elsewhere}/token\""))], ""),
            "odd" => answered(401, &[("www-authenticate", "Bearer realm=\"".repeat(300))], ""),
            reference if reference == digest(&served.config) => {
                // As long as it shall be, and something else.
                answered(200, &[], vec![b'x'; served.config.len()])
            }
            reference if reference == digest(&served.layer) => {
                answered(307, &[("location", format!("{elsewhere}/layer"))], "")
            }
            _ => answered(404, &[], ""),
        }
    })
    .await;
    let mirrored = Mirrored::of(&up, json!({})).await;
    let get = async |reference: &str| mirrored.alice.get(&format!("/v2/up/app/manifests/{reference}")).await;
    assert_eq!(get("good").await.status(), StatusCode::OK);
    for reference in ["other", "long", "html", "text", "broken", "inside", "metadata", "loop", "realm", "odd"] {
        let answer = get(reference).await;
        assert_eq!(answer.status(), StatusCode::BAD_GATEWAY, "{reference}");
        let text = answer.text().await.unwrap();
        assert!(!text.contains("a secret") && !text.contains("169.254"), "{reference}: {text}");
    }
    let busy = get("busy").await;
    assert_eq!((busy.status(), &busy.headers()["retry-after"]), (StatusCode::TOO_MANY_REQUESTS, &"7".parse().unwrap()));
    // A blob with other bytes breaks off before its end, and isn't kept.
    let config = format!("/v2/up/app/blobs/{}", digest(&image.config));
    // If it breaks off before its first byte was sent, there is an error instead, or what the registry knows alone: nothing.
    let is_broken = async |answer: reqwest::Response| match answer.status() {
        StatusCode::BAD_GATEWAY | StatusCode::NOT_FOUND => true,
        status => status.is_success() && answer.bytes().await.is_err(),
    };
    assert!(is_broken(mirrored.alice.get(&config).await).await);
    // Nor is a part of it whole.
    let part = mirrored.alice.request(reqwest::Method::GET, &config).header("range", "bytes=0-9").send().await.unwrap();
    assert!(is_broken(part).await);
    let layer = mirrored.alice.get(&format!("/v2/up/app/blobs/{}", digest(&image.layer))).await;
    assert_eq!(layer.status(), StatusCode::BAD_GATEWAY);
    assert_eq!(mirrored.bob.head(&config).await.status(), StatusCode::NOT_FOUND);
    assert_eq!(secret.load(Ordering::Relaxed), 0, "nobody was led inside");
    // It lives.
    assert_eq!(get("good").await.status(), StatusCode::OK);
    let health = run(Command::new(binary("berth-mirror")).arg("health").arg(mirrored.system.config()));
    assert!(health.success, "{}", health.printed);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_password_is_shown_to_nobody_to_whom_another_registry_leads() {
    let seen = Arc::new(std::sync::Mutex::new(Vec::new()));
    let note = Arc::clone(&seen);
    // On the same host, by another port: another service of that machine.
    let thief = hostile_to(move |_, target, authorization| {
        note.lock().unwrap().push(authorization.map(|value| value.to_str().unwrap().to_owned()));
        match target.contains("token") {
            true => answered(200, &[], r#"{"token": "x"}"#),
            false => {
                answered(401, &[("www-authenticate", "Bearer realm=\"/token\"".to_owned())], "a secret of a neighbour")
            }
        }
    })
    .await;
    let elsewhere = thief.clone();
    let up = hostile(move |_, target| match target.rsplit_once('/').unwrap().1 {
        "redirected" => answered(307, &[("location", format!("{elsewhere}/v2/x"))], ""),
        "realm" => answered(401, &[("www-authenticate", format!("Bearer realm=\"{elsewhere}/token\""))], ""),
        "both" => answered(401, &[("www-authenticate", format!("Basic x, Bearer realm=\"{elsewhere}/token\""))], ""),
        _ => answered(404, &[], ""),
    })
    .await;
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("credentials.json");
    let host = up.trim_start_matches("http://");
    let credentials = json!({host: {"username": "alice", "password": "the password"}});
    std::fs::write(&file, credentials.to_string()).unwrap();
    let registry = json!({"urls": [up], "onDemand": true, "content": [{"prefix": "**", "destination": "/up"}]});
    let mirrored = Mirrored::with(json!({"credentialsFile": &file, "registries": [registry]}), json!({})).await;
    for reference in ["redirected", "realm", "both"] {
        let answer = mirrored.alice.get(&format!("/v2/up/app/manifests/{reference}")).await;
        assert_eq!(answer.status(), StatusCode::BAD_GATEWAY, "{reference}");
        assert!(!answer.text().await.unwrap().contains("a secret"), "{reference}");
    }
    let seen = seen.lock().unwrap().clone();
    assert!(seen.iter().all(Option::is_none), "{seen:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_not_there_is_asked_for_once_and_a_slip_takes_no_tag_away() {
    let slips = Arc::new(AtomicUsize::new(0));
    let (asked, image) = (Arc::new(AtomicUsize::new(0)), Arc::new(Image::new(1, 1000)));
    let (slip, count, served) = (Arc::clone(&slips), Arc::clone(&asked), Arc::clone(&image));
    let slipped = Arc::new(AtomicUsize::new(0));
    let slippings = Arc::clone(&slipped);
    let up = hostile(move |method, target| {
        let reference = target.rsplit_once('/').unwrap().1;
        if slip.load(Ordering::Relaxed) > 0 {
            slippings.fetch_add(1, Ordering::Relaxed);
        }
        match slip.load(Ordering::Relaxed) {
            // It says that it is asked too often, or that it fails.
            3 => return answered(429, &[("retry-after", "60".to_owned())], ""),
            4 => return answered(500, &[], ""),
            _ => {}
        }
        if target.contains("/blobs/") {
            count.fetch_add(1, Ordering::Relaxed);
            return answered(404, &[], "");
        }
        // One HEAD slips; or what HEAD names isn't there by its digest.
        let is_slip = slip.load(Ordering::Relaxed) == 1 && method == HttpMethod::HEAD;
        let is_gone = slip.load(Ordering::Relaxed) == 2 && reference.contains(':');
        if is_slip || is_gone {
            return answered(404, &[], "");
        }
        let digest = match slip.load(Ordering::Relaxed) {
            2 => digest(b"moved"),
            _ => digest(&served.manifest),
        };
        let headers = [("content-type", MANIFEST.to_owned()), ("docker-content-digest", digest)];
        answered(200, &headers, if method == HttpMethod::HEAD { Vec::new() } else { served.manifest.clone() })
    })
    .await;
    let mirrored = Mirrored::of(&up, json!({"pollInterval": "1ms"})).await;
    for slipping in 1..=4 {
        // Each with a tag of its own: who was away isn't asked about that one for a while.
        let must_serve = async || {
            let pulled = mirrored.alice.get(&format!("/v2/up/app/manifests/{slipping}")).await;
            assert_eq!(pulled.status(), StatusCode::OK, "{slipping}");
        };
        must_serve().await;
        slips.store(slipping, Ordering::Relaxed);
        let before = slipped.load(Ordering::Relaxed);
        wait_for("the other registry to be asked", async || {
            must_serve().await;
            (slipped.load(Ordering::Relaxed) > before).then_some(())
        })
        .await;
        slips.store(0, Ordering::Relaxed);
        must_serve().await;
    }
    let blob = format!("/v2/up/app/blobs/{}", digest(b"none"));
    for status in join_all((0..10).map(|_| mirrored.alice.get(&blob))).await {
        assert_eq!(status.status(), StatusCode::NOT_FOUND);
    }
    assert_eq!(asked.load(Ordering::Relaxed), 1);
}

/// What was fetched is bounded by retention: what nobody has pulled for a while goes, and comes again with who lets fetch it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_nobody_pulls_any_more_goes_and_what_is_pulled_stays() {
    let (up, pusher) = upstream().await;
    let (used, unused) = (Image::new(1, 1000), Image::new(2, 1000));
    pusher.must_push("app", "used", &used).await;
    pusher.must_push("app", "unused", &unused).await;
    let registry = json!({"urls": [up.url], "onDemand": true, "content": [{"prefix": "**", "destination": "/up"}]});
    let policy = json!({"repositories": ["up/**"], "keepTags": [{"pulledWithin": "15s"}]});
    let storage = json!({"gcAnyDelay": true, "gcDelay": "1s", "gcInterval": "1s",
        "retention": {"delay": "1s", "policies": [policy]}});
    let mirrored = Mirrored::with(json!({"registries": [registry]}), storage).await;
    must_pull(&mirrored.alice, "up/app", "used", &used).await;
    must_pull(&mirrored.alice, "up/app", "unused", &unused).await;
    let status = async |target: &str| mirrored.bob.get(&format!("/v2/up/app/{target}")).await.status();
    let tags = async || mirrored.bob.get("/v2/up/app/tags/list").await.text().await.unwrap_or_default();
    wait_for("what nobody pulls to go", async || {
        assert_eq!(status("manifests/used").await, StatusCode::OK);
        (!tags().await.contains("unused")).then_some(())
    })
    .await;
    wait_for("its bytes", async || {
        assert_eq!(status("manifests/used").await, StatusCode::OK);
        (status(&format!("blobs/{}", digest(&unused.layer))).await == StatusCode::NOT_FOUND).then_some(())
    })
    .await;
    assert_eq!(status("manifests/unused").await, StatusCode::NOT_FOUND);
    must_pull(&mirrored.bob, "up/app", "used", &used).await;
    must_pull(&mirrored.alice, "up/app", "unused", &unused).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_the_store_does_not_take_is_served_all_the_same() {
    let (up, pusher) = upstream().await;
    let image = Image::new(1, 2_000_000);
    pusher.must_push("app", "1", &image).await;
    let relay = Relay::to(up.authority()).await;
    let registry =
        json!({"urls": [relay.url()], "onDemand": true, "content": [{"prefix": "**", "destination": "/up"}]});
    let storage = json!({"quotas": [{"repositories": ["up/**"], "bytes": "10kB"}]});
    let mirrored = Mirrored::with(json!({"registries": [registry]}), storage).await;
    for pulls in 1..=2 {
        must_pull(&mirrored.alice, "up/app", "1", &image).await;
        wait_for("it to be given up", async || {
            let printed = mirrored.mirror.printed();
            let of_layer = |line: &&str| line.contains("can't be kept") && line.contains(&digest(&image.layer));
            (printed.lines().filter(of_layer).count() == pulls).then_some(())
        })
        .await;
    }
    // Many who want it at once share it all the same.
    let blob = format!("/v2/up/app/blobs/{}", digest(&image.layer));
    let before = relay.requests("GET /v2/app/blobs/");
    relay.slow_down(true);
    let pulls = join_all((0..8).map(|_| mirrored.alice.get(&blob))).await;
    let got = join_all(pulls.into_iter().map(reqwest::Response::bytes)).await;
    assert!(got.into_iter().all(|bytes| bytes.unwrap() == image.layer));
    assert_eq!(relay.requests("GET /v2/app/blobs/"), before + 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn docker_and_podman_and_containerd_pull_through() {
    let (up, pusher) = upstream().await;
    let image = Image::new(7, 2_000_000);
    pusher.must_push("library/app", "1", &image).await;
    let mirrored = Mirrored::of(&up.url, json!({})).await;
    let (authority, work) = (mirrored.system.authority(), tempfile::tempdir().unwrap());
    let (key, _) = mirrored.system.signed_in("alice").await.make_key("clients").await;
    let name = format!("{authority}/up/library/app:1");
    if let Some(podman) = tools::find("podman") {
        let auth = work.path().join("podman.json");
        let command = |arguments: &[&str]| {
            let mut command = Command::new(&podman);
            command.args([
                "--root",
                work.path().join("root").to_str().unwrap(),
                "--runroot",
                work.path().join("run").to_str().unwrap(),
            ]);
            command.args(["--storage-driver", "vfs"]).args(arguments).env("REGISTRY_AUTH_FILE", &auth);
            command
        };
        must(&mut command(&["login", "--tls-verify=false", "-u", "alice", "-p", &key, authority]));
        must(&mut command(&["pull", "--tls-verify=false", &name]));
        run(&mut command(&["rmi", "--force", &name]));
    }
    if let Some(docker) = tools::find("docker") {
        let config = work.path().join("docker");
        let command = |arguments: &[&str]| {
            let mut command = Command::new(&docker);
            command.arg("--config").arg(&config).args(arguments);
            command
        };
        if run(&mut command(&["info"])).success {
            must(&mut command(&["login", "-u", "alice", "-p", &key, authority]));
            must(&mut command(&["pull", &name]));
            run(&mut command(&["rmi", "--force", &name]));
        } else {
            tools::skip("no docker engine runs");
        }
    }
    // As a mirror of docker.io, by hosts.toml.
    let Some((containerd, ctr)) = tools::find("containerd").zip(tools::find("ctr")) else { return };
    let hosts = work.path().join("hosts/docker.io");
    std::fs::create_dir_all(&hosts).unwrap();
    let toml = format!(
        "server = \"http://127.0.0.1:1\"\n[host.\"http://{authority}/v2/up\"]\n  capabilities = [\"pull\", \"resolve\"]\n  override_path = true\n"
    );
    std::fs::write(hosts.join("hosts.toml"), toml).unwrap();
    let path = |name: &str| work.path().join(name).to_str().unwrap().to_owned();
    let settings = "version = 2\ndisabled_plugins = [\"io.containerd.grpc.v1.cri\"]\n";
    std::fs::write(path("containerd.toml"), settings).unwrap();
    let mut command = Command::new(containerd);
    command.args([
        "--config",
        &path("containerd.toml"),
        "--root",
        &path("c-root"),
        "--state",
        &path("c-state"),
        "--address",
        &path("c.sock"),
    ]);
    let _daemon = Process::start(&mut command, &work.path().join("containerd.log")).unwrap();
    let ctr = |arguments: &[&str]| {
        let mut command = Command::new(&ctr);
        command.args(["--address", &path("c.sock")]).args(arguments);
        command
    };
    wait_for("containerd", async || run(&mut ctr(&["version"])).success.then_some(())).await;
    let user = format!("alice:{key}");
    let hosts = path("hosts");
    must(&mut ctr(&[
        "images",
        "pull",
        "--hosts-dir",
        &hosts,
        "--user",
        &user,
        "--snapshotter",
        "native",
        "docker.io/library/app:1",
    ]));
    let listed = must(&mut ctr(&["images", "ls"]));
    assert!(listed.contains(&digest(&image.manifest)), "{listed}");
    answers(&format!("{}/readyz", mirrored.system.url)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_file_says_what_is_wrong_with_it() {
    let system = System::start(Setup::default()).await;
    let verify = |sync: Value| {
        system.configure(|config| config["extensions"] = json!({"sync": sync}));
        run(Command::new(binary("berth-mirror")).arg("verify").arg(system.config())).printed
    };
    let registry = |key: &str, value: Value| {
        let mut registry = json!({"urls": ["https://registry-1.docker.io"], "onDemand": true,
            "content": [{"prefix": "**", "destination": "/docker.io"}]});
        registry[key] = value;
        json!({"registries": [registry]})
    };
    for (sync, problem) in [
        (json!({}), "extensions.sync.registries: has none"),
        (registry("urls", json!(["docker.io"])), "extensions.sync.registries[0].urls[0]: is no address"),
        (registry("urls", json!(["https://u:p@docker.io"])), "must not hold a password"),
        (registry("content", json!([])), "content: is missing"),
        (registry("content", json!([{"prefix": "[", "destination": "/x"}])), "prefix: is no glob"),
        (registry("onlySigned", json!(true)), "onlySigned: is not supported"),
        (registry("credentialHelper", json!("ecr")), "credentialHelper: is not supported"),
        (registry("onDemand", json!(false)), "has none with onDemand"),
        (registry("tlsVerfy", json!(false)), "is not a known key"),
    ] {
        let printed = verify(sync.clone());
        assert!(printed.contains(problem), "{sync}: {printed}");
    }
    assert!(verify(registry("pollInterval", json!("10m"))).contains("the mirror can serve this"));
    // The proxy takes it, too.
    let printed = run(Command::new(binary("berth-proxy")).arg("verify").arg(system.config())).printed;
    assert!(!printed.contains("extensions"), "{printed}");
}
