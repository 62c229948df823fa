//! https, at our own door and at the identity provider's.

use berth_tests::{
    api::{Api, Credential},
    certified::Provider,
    images::{Image, digest},
    person::Person,
    process::{free_port, wait_for},
    system::{Setup, System},
};
use reqwest::{StatusCode, header};
use serde_json::json;

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

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_image_goes_in_and_out_over_http_2() {
    let folder = tempfile::tempdir().unwrap();
    let tls = Some(Authority::new().write(folder.path()));
    let system = System::start(Setup { tls, ..Setup::default() }).await;
    let (key, _) = system.signed_in("alice").await.make_key("a").await;
    let api = Api::basic(&system.url, "alice", &key);
    let image = Image::new(1, 20_000_000);
    api.must_push("r", "1", &image).await;
    let answer = api.get(&format!("/v2/r/blobs/{}", digest(&image.layer))).await;
    assert_eq!(answer.version(), reqwest::Version::HTTP_2);
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
    assert_eq!((answer.status(), answer.version()), (StatusCode::OK, reqwest::Version::HTTP_2));
    assert!(new.client().get(&live).send().await.is_err());
    new.write(folder.path());
    wait_for("the new certificate", async || new.client().get(&live).send().await.ok().map(drop)).await;
    assert!(old.client().get(&live).send().await.is_err());
}
