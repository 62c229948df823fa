//! The registry hands open blobs to the proxy: what is served is decided by the registry as ever, and only the bytes go another
//! way.

use berth_tests::{
    api::Api,
    images::{Image, digest},
    system::{Setup, System, demonstration_rules},
};
use futures_util::{StreamExt, future::join_all};
use reqwest::{Method, StatusCode};

async fn start(unix_socket: bool) -> (System, Api, Image) {
    let setup = Setup { unix_socket, access_control: demonstration_rules(), ..Setup::default() };
    let system = System::start(setup).await;
    let (key, _) = system.signed_in("alice").await.make_key("a").await;
    let api = Api::basic(&system.url, "alice", &key);
    let image = Image::new(1, 30_000_000);
    api.must_push("shared/app", "1", &image).await;
    (system, api, image)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pull_goes_on_without_the_registry_once_it_has_handed_the_blob_over() {
    let (mut system, api, image) = start(true).await;
    let blob = format!("/v2/shared/app/blobs/{}", digest(&image.layer));
    let answer = api.get(&blob).await;
    assert_eq!(answer.status(), StatusCode::OK);
    // It has its bytes from nowhere else any more: neither the process nor the name is there.
    system.registry.kill();
    std::fs::remove_dir_all(system.folder.join("registry/blobs")).unwrap();
    let mut got = Vec::new();
    let mut pieces = answer.bytes_stream();
    while let Some(piece) = pieces.next().await {
        got.extend_from_slice(&piece.unwrap());
    }
    assert!(got == image.layer);
    // The next one is told what is so.
    assert_eq!(api.get(&blob).await.status(), StatusCode::SERVICE_UNAVAILABLE);
    system.restart_registry().await;
    assert_eq!(api.get(&blob).await.status(), StatusCode::NOT_FOUND);
    // The old connections are gone, and it is asked on new ones.
    api.must_push("shared/app", "2", &image).await;
    assert!(api.get(&blob).await.bytes().await.unwrap() == image.layer);
    // Without that way, it is asked over HTTP.
    std::fs::remove_file(system.folder.join("registry.sock.files")).unwrap();
    system.restart_proxy().await;
    assert!(api.get(&blob).await.bytes().await.unwrap() == image.layer);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_cannot_tell_which_way_the_bytes_came() {
    let (by_file, api, image) = start(true).await;
    let (by_http, other, _) = start(false).await;
    let blob = format!("/v2/shared/app/blobs/{}", digest(&image.layer));
    let nobody = Api::new(&by_file.url, berth_tests::api::Credential::None);
    let stranger = Api::new(&by_http.url, berth_tests::api::Credential::None);
    let etag = format!("\"{}\"", digest(&image.layer));
    let requests: [(&str, &str); 9] = [
        ("accept", "*/*"),
        ("range", "bytes=0-0"),
        ("range", "bytes=1000-99999"),
        ("range", "bytes=-5"),
        ("range", "bytes=40000000-"),
        ("range", "bytes=0-1,3-4"),
        ("if-none-match", &etag),
        ("if-range", &etag),
        ("berth-uncounted", "1"),
    ];
    for (name, value) in requests {
        let mut answers = Vec::new();
        for api in [&api, &other] {
            let answer = api.request(Method::GET, &blob).header(name, value).send().await.unwrap();
            let mut headers: Vec<(String, String)> = answer
                .headers()
                .iter()
                .filter(|(name, _)| !["date", "x-request-id"].contains(&name.as_str()))
                .map(|(name, value)| (name.to_string(), value.to_str().unwrap().to_owned()))
                .collect();
            headers.sort();
            answers.push((answer.status(), headers, answer.bytes().await.unwrap()));
        }
        assert!(answers[0] == answers[1], "{name}: {value}: {:?} {:?}", answers[0].1, answers[1].1);
    }
    // Nor does anybody get more by it.
    for target in [&blob, "/v2/shared/other/blobs/sha256:", &blob.replace("shared/app", "private/app")] {
        assert_eq!(nobody.get(target).await.status(), stranger.get(target).await.status(), "{target}");
        assert_eq!(api.get(target).await.status(), other.get(target).await.status(), "{target}");
    }
    // A connection serves on after it.
    for _ in 0..3 {
        assert!(api.get(&blob).await.bytes().await.unwrap() == image.layer);
        assert_eq!(api.get("/v2/shared/app/tags/list").await.status(), StatusCode::OK);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_that_read_slowly_or_go_away_cost_little() {
    let (system, api, image) = start(true).await;
    let blob = format!("/v2/shared/app/blobs/{}", digest(&image.layer));
    let before = system.proxy.memory();
    let mut answers = join_all((0..200).map(|_| api.get(&blob))).await;
    for answer in &mut answers {
        assert!(answer.chunk().await.unwrap().is_some());
    }
    let grown = system.proxy.memory().saturating_sub(before);
    assert!(grown < 100 * 1024, "{grown} KiB for 200 clients");
    // Half of them go away, the others get all of it.
    answers.truncate(20);
    let read = answers.into_iter().map(|answer| async { answer.bytes().await.unwrap().len() });
    for len in join_all(read).await {
        assert!(len > 20_000_000);
    }
    let descriptors = || std::fs::read_dir(format!("/proc/{}/fd", system.proxy.id())).unwrap().count();
    berth_tests::process::wait_for("the files to be closed", async || (descriptors() < 150).then_some(())).await;
}
