//! Client certificates.

use std::{fs, path::Path};

use berth_tests::{
    process::wait_for,
    system::{Setup, System},
};
use reqwest::{Client, Identity, StatusCode};
use serde_json::{Value, json};

use crate::authority::Authority;

async fn system(folder: &Path, server: &Authority, clients: &Authority, auth: Value) -> System {
    let tls = Some(server.write(folder));
    let authorities = folder.join("clients.pem");
    fs::write(&authorities, &clients.pem).unwrap();
    System::start(Setup { tls, client_authorities: Some(authorities), auth, ..Setup::default() }).await
}

fn client(certificate: Option<(String, String)>) -> Client {
    let mut builder = Client::builder().tls_danger_accept_invalid_certs(true);
    if let Some((certificate, key)) = certificate {
        builder = builder.identity(Identity::from_pem(format!("{certificate}{key}").as_bytes()).unwrap());
    }
    builder.build().unwrap()
}

#[tokio::test]
async fn the_holder_of_a_certificate_is_whom_it_names() {
    let folder = tempfile::tempdir().unwrap();
    let (server, clients, strangers) = (Authority::new(), Authority::new(), Authority::new());
    let system = system(folder.path(), &server, &clients, json!({})).await;
    let (url, alice) = (&system.url, clients.certify(&[], "alice", None));
    let get = async |client: &Client, path: &str| client.get(format!("{url}{path}")).send().await.unwrap();
    let with = client(Some(alice));
    assert_eq!(get(&with, "/v2/").await.status(), StatusCode::OK);
    let token: Value = get(&with, "/zot/auth/token?service=x&scope=repository:r:pull").await.json().await.unwrap();
    let bearer = client(None).get(format!("{url}/v2/")).bearer_auth(token["token"].as_str().unwrap());
    assert_eq!(bearer.send().await.unwrap().status(), StatusCode::OK);
    // Whoever shows none comes with something else.
    assert_eq!(get(&client(None), "/v2/").await.status(), StatusCode::UNAUTHORIZED);
    // A header wins over the certificate.
    let wrong = with.get(format!("{url}/v2/")).bearer_auth("mistyped").send().await.unwrap();
    assert_eq!(wrong.status(), StatusCode::UNAUTHORIZED);
    // Certificates of others don't get as far as a request, and one without a name gets no further.
    let stranger = client(Some(strangers.certify(&[], "alice", None)));
    assert!(stranger.get(format!("{url}/v2/")).send().await.is_err());
    let nameless = client(Some(clients.certify(&[], "", Some("alice@company"))));
    assert_eq!(get(&nameless, "/v2/").await.status(), StatusCode::UNAUTHORIZED);
}

#[tokio::test]
async fn the_name_may_be_another_part_of_the_certificate() {
    let folder = tempfile::tempdir().unwrap();
    let (server, clients) = (Authority::new(), Authority::new());
    let auth = json!({"mtls": {"identityAttributes": ["Email", "CommonName"]}});
    let system = system(folder.path(), &server, &clients, auth).await;
    let users = || {
        let printed = system.proxy.printed();
        let lines = printed.lines().filter(|line| line.contains("path=\"/v2/\""));
        let users = lines.filter_map(|line| line.split("user=\"").nth(1)?.split('"').next());
        users.map(str::to_owned).collect::<Vec<_>>()
    };
    let user = async |certificate| {
        let before = users().len();
        client(Some(certificate)).get(format!("{}/v2/", system.url)).send().await.unwrap();
        // The line is written when the answer has gone.
        wait_for("the line of the request", async || users().into_iter().nth(before)).await
    };
    assert_eq!(user(clients.certify(&[], "alice", Some("alice@company"))).await, "alice@company");
    assert_eq!(user(clients.certify(&[], "alice", None)).await, "alice");
}

#[tokio::test]
async fn an_authority_that_is_withdrawn_lets_nobody_in_any_more() {
    let folder = tempfile::tempdir().unwrap();
    let (server, clients, others) = (Authority::new(), Authority::new(), Authority::new());
    let system = system(folder.path(), &server, &clients, json!({})).await;
    let ask = async |authority: &Authority| {
        let with = client(Some(authority.certify(&[], "alice", None)));
        with.get(format!("{}/v2/", system.url)).send().await.is_ok_and(|answer| answer.status() == StatusCode::OK)
    };
    assert!(ask(&clients).await && !ask(&others).await);
    fs::write(folder.path().join("clients.pem"), &others.pem).unwrap();
    wait_for("the new authority", async || ask(&others).await.then_some(())).await;
    assert!(!ask(&clients).await);
}

#[tokio::test]
async fn a_condition_sees_the_version_of_tls_as_zot_writes_it() {
    let folder = tempfile::tempdir().unwrap();
    let (server, clients) = (Authority::new(), Authority::new());
    let tls = Some(server.write(folder.path()));
    let authorities = folder.path().join("clients.pem");
    fs::write(&authorities, &clients.pem).unwrap();
    let policy =
        json!({"users": ["alice"], "actions": ["create"], "conditions": [{"expression": "req.tls.version == '1.3'"}]});
    let access_control = json!({"repositories": {"**": {"policies": [policy]}}});
    let setup = Setup { tls, client_authorities: Some(authorities), access_control, ..Setup::default() };
    let system = System::start(setup).await;
    let alice = client(Some(clients.certify(&[], "alice", None)));
    let upload = alice.post(format!("{}/v2/r/blobs/uploads/", system.url)).header("content-length", "0");
    assert_eq!(upload.send().await.unwrap().status(), StatusCode::ACCEPTED);
}

#[tokio::test]
async fn another_site_s_page_can_t_use_the_certificate_of_a_browser() {
    let folder = tempfile::tempdir().unwrap();
    let (server, clients) = (Authority::new(), Authority::new());
    let system = system(folder.path(), &server, &clients, json!({})).await;
    let alice = client(Some(clients.certify(&[], "alice", None)));
    let upload = |path: &str| alice.post(format!("{}{path}", system.url)).header("content-length", "0");
    let path = "/v2/r/blobs/uploads/";
    // docker pushes so, and nothing says that a page does.
    assert_eq!(upload(path).send().await.unwrap().status(), StatusCode::ACCEPTED);
    for (name, value) in [
        ("sec-fetch-site", "cross-site"),
        ("sec-fetch-site", "same-site"),
        ("origin", "https://evil.example"),
        ("origin", "null"),
        ("content-type", "text/plain"),
    ] {
        let answer = upload(path).header(name, value).send().await.unwrap();
        assert_eq!(answer.status(), StatusCode::FORBIDDEN, "{name}: {value}");
        let form = [("grant_type", "password")];
        let token = alice.post(format!("{}/zot/auth/token", system.url)).header(name, value);
        let token = if name == "content-type" { token.body("grant_type=password") } else { token.form(&form) };
        assert_eq!(token.send().await.unwrap().status(), StatusCode::FORBIDDEN, "{name}: {value}");
    }
    let ours = upload(path).header("origin", &system.url).header("sec-fetch-site", "same-origin");
    assert_eq!(ours.send().await.unwrap().status(), StatusCode::ACCEPTED);
}
