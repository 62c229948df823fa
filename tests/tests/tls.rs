//! https, at our own door and at the identity provider's.

use std::{path::Path, sync::Arc};

use berth_tests::{
    api::{Api, Credential},
    certified::Provider,
    images::{Image, digest},
    person::Person,
    process::{free_port, wait_for},
    system::{Setup, System},
};
use futures_util::future::join_all;
use reqwest::{StatusCode, Version, header};
use rustls::{
    ClientConfig, HandshakeKind, RootCertStore,
    pki_types::{CertificateDer, pem::PemObject},
};
use serde_json::json;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};
use tokio_rustls::TlsConnector;

use crate::authority::Authority;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_private_authentik_is_trusted_by_its_authority_and_cookies_are_for_this_host_alone() {
    let folder = tempfile::tempdir().unwrap();
    let authority = Authority::new();
    let (cert, key) = authority.write(folder.path());
    let port = free_port();
    let url = format!("https://localhost:{port}");
    let env = [("CERT", cert.to_str().unwrap()), ("KEY", key.to_str().unwrap())];
    let Some(provider) = Provider::start(free_port(), &url, folder.path(), &env).await else { return };
    let tls = Some((cert, key));
    let trust = json!({"certificateAuthorityFile": folder.path().join("ca.pem")});
    let setup = Setup { issuer: Some(provider.issuer.clone()), provider: trust, tls, ..Setup::default() };
    let system = System::start_in(folder.path(), port, setup).await;

    let person = Person::new(&system.url);
    let form = person.get("/zot/auth/login").await;
    let fields = [("username", "alice"), ("password", "alice")];
    let home = person.http.post(form.url().clone()).form(&fields).send().await.unwrap();
    assert!(home.text().await.unwrap().contains("Signed in as alice"));

    let answer = authority.client().get(format!("{url}/zot/auth/login")).send().await.unwrap();
    let cookie = answer.headers()[header::SET_COOKIE].to_str().unwrap();
    assert!(cookie.starts_with("__Host-berth_sign_in_") && cookie.contains("Secure"), "{cookie}");
    assert!(answer.headers().contains_key(header::STRICT_TRANSPORT_SECURITY));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_unknown_authority_is_named_as_the_reason() {
    let folder = tempfile::tempdir().unwrap();
    let (cert, key) = Authority::new().write(folder.path());
    let port = free_port();
    let env = [("CERT", cert.to_str().unwrap()), ("KEY", key.to_str().unwrap())];
    let url = format!("http://localhost:{port}");
    let Some(provider) = Provider::start(free_port(), &url, folder.path(), &env).await else { return };
    let setup = Setup { issuer: Some(provider.issuer.clone()), ..Setup::default() };
    let system = System::start_in(folder.path(), port, setup).await;
    let answer = Person::new(&system.url).get("/zot/auth/login").await;
    assert_eq!(answer.status(), StatusCode::SERVICE_UNAVAILABLE);
    let page = answer.text().await.unwrap();
    assert!(page.contains("certificate"), "{page}");
}

/// A system over https with an image of so many bytes, and Alice's key.
async fn with_image(folder: &Path, bytes: usize) -> (System, String, Image) {
    let tls = Some(Authority::new().write(folder));
    let system = System::start(Setup { tls, ..Setup::default() }).await;
    let (key, _) = system.signed_in("alice").await.make_key("a").await;
    let image = Image::new(1, bytes);
    Api::basic(&system.url, "alice", &key).must_push("r", "1", &image).await;
    (system, key, image)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_image_goes_in_and_out_over_http_2() {
    let folder = tempfile::tempdir().unwrap();
    let (system, key, image) = with_image(folder.path(), 20_000_000).await;
    let api = Api::basic(&system.url, "alice", &key);
    let answer = api.get(&format!("/v2/r/blobs/{}", digest(&image.layer))).await;
    assert_eq!(answer.version(), Version::HTTP_2);
    assert!(answer.bytes().await.unwrap() == image.layer);
    // A refusal in front of a large body leaves the connection to the others.
    let nobody = api.with(Credential::None);
    let target = format!("/v2/r/blobs/uploads/?digest={}", digest(&image.layer));
    let request = nobody.request(reqwest::Method::POST, &target).body(image.layer.clone());
    assert_eq!(request.send().await.unwrap().status(), StatusCode::UNAUTHORIZED);
    assert_eq!(api.get("/v2/r/manifests/1").await.status(), StatusCode::OK);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_certificate_is_taken_without_a_restart_and_http_2_is_offered() {
    let folder = tempfile::tempdir().unwrap();
    let (old, new) = (Authority::new(), Authority::new());
    let tls = Some(old.write(folder.path()));
    let system = System::start(Setup { tls, ..Setup::default() }).await;
    let live = format!("{}/livez", system.url);
    let answer = old.client().get(&live).send().await.unwrap();
    assert_eq!((answer.status(), answer.version()), (StatusCode::OK, Version::HTTP_2));
    assert!(new.client().get(&live).send().await.is_err());
    new.write(folder.path());
    wait_for("the new certificate", async || new.client().get(&live).send().await.ok().map(drop)).await;
    assert!(old.client().get(&live).send().await.is_err());
}

/// How a client that remembers sessions shakes hands: once, and then with the answer read.
async fn handshake(client: &TlsConnector, url: &str) -> HandshakeKind {
    let stream = TcpStream::connect(url.trim_start_matches("https://")).await.unwrap();
    let mut stream = client.connect("localhost".try_into().unwrap(), stream).await.unwrap();
    stream.write_all(b"GET /livez HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n").await.unwrap();
    let mut answer = String::new();
    // Tickets come before the answer.
    stream.read_to_string(&mut answer).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    stream.get_ref().1.handshake_kind().unwrap()
}

fn that_remembers(folder: &Path) -> TlsConnector {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(folder.join("ca.pem")).unwrap()).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    TlsConnector::from(Arc::new(config.with_root_certificates(roots).with_no_client_auth()))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_comes_back_is_known_at_every_replica_of_one_secret() {
    let folder = tempfile::tempdir().unwrap();
    let (authority, port) = (Authority::new(), free_port());
    let tls = Some(authority.write(folder.path()));
    let sidecar = json!({"secretFile": folder.path().join("secret")});
    let mut system = System::start_in(folder.path(), port, Setup { tls, sidecar, ..Setup::default() }).await;
    let client = that_remembers(folder.path());
    assert_eq!(handshake(&client, &system.url).await, HandshakeKind::Full);
    assert_eq!(handshake(&client, &system.url).await, HandshakeKind::Resumed);
    // Another process with the same secret.
    system.restart_proxy().await;
    assert_eq!(handshake(&client, &system.url).await, HandshakeKind::Resumed);
    // One with another secret shakes hands anew, and nobody is turned away.
    system.proxy.kill();
    std::fs::remove_file(folder.path().join("secret")).unwrap();
    system.restart_proxy().await;
    assert_eq!(handshake(&client, &system.url).await, HandshakeKind::Full);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn where_clients_show_certificates_each_connection_is_looked_at() {
    let folder = tempfile::tempdir().unwrap();
    let authority = Authority::new();
    let tls = Some(authority.write(folder.path()));
    let client_authorities = Some(folder.path().join("ca.pem"));
    let system = System::start(Setup { tls, client_authorities, ..Setup::default() }).await;
    let client = that_remembers(folder.path());
    for _ in 0..3 {
        assert_eq!(handshake(&client, &system.url).await, HandshakeKind::Full);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_head_has_no_body_over_http_2_whatever_it_is_about() {
    let folder = tempfile::tempdir().unwrap();
    let (system, key, image) = with_image(folder.path(), 1000).await;
    let api = Api::basic(&system.url, "alice", &key);
    for (target, status) in [
        ("/v2/r/manifests/1".to_owned(), StatusCode::OK),
        ("/v2/r/manifests/2".to_owned(), StatusCode::NOT_FOUND),
        (format!("/v2/r/blobs/{}", digest(&image.layer)), StatusCode::OK),
        (format!("/v2/r/blobs/{}", digest(b"something else")), StatusCode::NOT_FOUND),
        (format!("/v2/other/blobs/{}", digest(&image.layer)), StatusCode::NOT_FOUND),
    ] {
        // A client that is strict about it: `h2` ends the stream with an error if there is a body.
        let answer = api.head(&target).await;
        assert_eq!((answer.version(), answer.status()), (Version::HTTP_2, status), "{target}");
        assert!(answer.headers().contains_key(header::CONTENT_LENGTH), "{target}");
        assert_eq!(answer.bytes().await.unwrap().len(), 0, "{target}");
    }
}

/// 400 answers whose clients let everything come and read nothing: over HTTP/2 a connection has many of them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_of_http_2_that_read_nothing_hold_little() {
    let folder = tempfile::tempdir().unwrap();
    let (system, key, image) = with_image(folder.path(), 50_000_000).await;
    let url = format!("{}/v2/r/blobs/{}", system.url, digest(&image.layer));
    let before = system.proxy.memory();
    // What isn't driven any more reads nothing.
    let held = std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let answers = runtime.block_on(async {
            let clients: Vec<_> = (0..4).map(|_| greedy_client()).collect();
            let asked = (0..400).map(|i| clients[i % 4].get(&url).basic_auth("alice", Some(&key)).send());
            join_all(asked).await.into_iter().map(Result::unwrap).collect::<Vec<_>>()
        });
        (runtime, answers)
    });
    let held = held.join().unwrap();
    assert!(held.1.iter().all(|answer| answer.status() == StatusCode::OK && answer.version() == Version::HTTP_2));
    let (mut sent, mut rests) = (0, 0);
    wait_for("the proxy to have sent what it can", async || {
        let now = system.proxy.counter("io", "wchar");
        rests = if now == sent { rests + 1 } else { 0 };
        sent = now;
        (rests > 50).then_some(())
    })
    .await;
    let grown = system.proxy.memory().saturating_sub(before) / 1024;
    std::thread::spawn(move || drop(held)).join().unwrap();
    assert!(grown < 100, "{grown} MiB");
}

/// Lets two gigabytes come.
fn greedy_client() -> reqwest::Client {
    let window = i32::MAX.unsigned_abs();
    let client = reqwest::Client::builder().no_proxy().danger_accept_invalid_certs(true);
    let client = client.http2_initial_stream_window_size(window).http2_initial_connection_window_size(window);
    client.build().unwrap()
}
