//! Client certificates.

use std::{fs, path::Path};

use berth_tests::system::{Setup, System};
use rcgen::{BasicConstraints, CertificateParams, DistinguishedName, DnType, IsCa, Issuer, KeyPair, SanType};
use reqwest::{Client, Identity, StatusCode};
use serde_json::{Value, json};

struct Authority {
    issuer: Issuer<'static, KeyPair>,
    pem: String,
}

impl Authority {
    fn new() -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let pem = params.self_signed(&key).unwrap().pem();
        Self { issuer: Issuer::new(params, key), pem }
    }

    /// A certificate and its key, in PEM.
    fn certify(&self, names: &[&str], common_name: &str, email: Option<&str>) -> (String, String) {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(names.iter().map(ToString::to_string).collect::<Vec<_>>()).unwrap();
        params.distinguished_name = DistinguishedName::new();
        if !common_name.is_empty() {
            params.distinguished_name.push(DnType::CommonName, common_name);
        }
        if let Some(email) = email {
            params.subject_alt_names.push(SanType::Rfc822Name(email.try_into().unwrap()));
        }
        (params.signed_by(&key, &self.issuer).unwrap().pem(), key.serialize_pem())
    }
}

async fn system(folder: &Path, server: &Authority, clients: &Authority, auth: Value) -> System {
    let (cert, key) = server.certify(&["localhost"], "localhost", None);
    let write = |name: &str, text: &str| {
        fs::write(folder.join(name), text).unwrap();
        folder.join(name)
    };
    let tls = Some((write("cert.pem", &cert), write("key.pem", &key)));
    let client_authorities = Some(write("clients.pem", &clients.pem));
    System::start(Setup { tls, client_authorities, auth, ..Setup::default() }).await
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
    let user = async |certificate| {
        client(Some(certificate)).get(format!("{}/v2/", system.url)).send().await.unwrap();
        let printed = system.proxy.printed();
        let line = printed.lines().rfind(|line| line.contains("path=\"/v2/\"")).unwrap().to_owned();
        line.split("user=\"").nth(1).unwrap().split('"').next().unwrap().to_owned()
    };
    assert_eq!(user(clients.certify(&[], "alice", Some("alice@company"))).await, "alice@company");
    assert_eq!(user(clients.certify(&[], "alice", None)).await, "alice");
}
