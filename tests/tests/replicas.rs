//! More than one proxy, on one PostgreSQL.

use std::{
    path::Path,
    time::{Duration, Instant},
};

use berth_tests::{
    api::{Api, error_of},
    images::Image,
    person::Person,
    postgres::Postgres,
    process::{Process, free_port, wait_for},
    system::{Setup, System, answers, serve_with},
};
use reqwest::{StatusCode, header};
use serde_json::json;

/// A system on PostgreSQL, and a second proxy of it.
struct Replicas {
    postgres: Postgres,
    system: System,
    second: Process,
    second_url: String,
    folder: tempfile::TempDir,
}

impl Replicas {
    async fn start() -> Option<Self> {
        let folder = tempfile::tempdir().unwrap();
        let postgres = Postgres::start(&folder.path().join("postgres")).await?;
        postgres.sql("postgres", "CREATE DATABASE berth");
        let sidecar = json!({"database": postgres.url("berth"), "secretFile": folder.path().join("secret")});
        let provider = json!({"scopes": ["openid", "profile", "email", "offline_access"]});
        let files = folder.path().join("system");
        std::fs::create_dir(&files).unwrap();
        let system = System::start_in(&files, free_port(), Setup { sidecar, provider, ..Setup::default() }).await;
        let (second, second_url) = second(&system, folder.path());
        answers(&format!("{second_url}/readyz")).await;
        Some(Self { postgres, system, second, second_url, folder })
    }

    /// A client of the second proxy, with an API key.
    fn second(&self, key: &str) -> Api {
        Api::basic(&self.second_url, "alice", key)
    }

    /// Whom the second proxy takes the sessions of this browser for.
    async fn second_page(&self, person: &Person) -> String {
        // Both are one registry to browsers: the cookie of the one goes to the other.
        person.http.get(&self.second_url).send().await.unwrap().text().await.unwrap()
    }
}

/// Another proxy with the same configuration, but for its port.
fn second(system: &System, folder: &Path) -> (Process, String) {
    let port = free_port();
    let text = std::fs::read_to_string(system.config()).unwrap();
    let mut config: serde_json::Value = serde_json::from_str(&text).unwrap();
    config["http"]["port"] = json!(port.to_string());
    let path = folder.join("second.json");
    std::fs::write(&path, config.to_string()).unwrap();
    let process = serve_with("berth-proxy", &path, &folder.join("second.log"));
    (process, format!("http://localhost:{port}"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_one_replica_knows_the_other_knows_within_seconds() {
    let Some(replicas) = Replicas::start().await else { return };
    let system = &replicas.system;
    let alice = system.signed_in("alice").await;
    assert!(replicas.second_page(&alice).await.contains("Signed in as alice"));
    let (key, id) = alice.make_key("a").await;
    let api = replicas.second(&key);
    api.must_push("r", "1", &Image::new(1, 100)).await;
    let token = api.with_token(&["repository:r:pull"]).await;
    assert_eq!(token.get("/v2/r/manifests/1").await.status(), StatusCode::OK);
    // A token of the one is good at the other.
    let of_first = Api::basic(&system.url, "alice", &key).with_token(&[]).await;
    assert_eq!(replicas.second("").with(of_first.credential().clone()).get("/v2/").await.status(), StatusCode::OK);

    assert_eq!(alice.revoke_key(&id).await, StatusCode::OK);
    let revoked = Instant::now();
    wait_for("the revocation", async || (api.get("/v2/").await.status() == StatusCode::UNAUTHORIZED).then_some(()))
        .await;
    // What was made of it stops with it, each within what is remembered.
    wait_for("the end of the token", async || {
        (token.get("/v2/r/manifests/1").await.status() == StatusCode::UNAUTHORIZED).then_some(())
    })
    .await;
    assert!(revoked.elapsed() < Duration::from_secs(7), "{:?}", revoked.elapsed());
    let out =
        alice.http.post(format!("{}/zot/auth/logout", system.url)).header(header::CONTENT_TYPE, "application/json");
    assert_eq!(out.send().await.unwrap().status(), StatusCode::OK);
    wait_for("the end of the session", async || {
        (!replicas.second_page(&alice).await.contains("Signed in as alice")).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refresh_token_is_used_by_one_replica_and_once() {
    let Some(replicas) = Replicas::start().await else { return };
    let (system, origin) = (&replicas.system, replicas.system.provider_origin());
    let alice = system.signed_in("alice").await;
    // Near their end refresh tokens are good once.
    system.at_stand_in("rotate/true", json!({})).await;
    let http = reqwest::Client::new();
    for round in 1..=2 {
        http.post(format!("{origin}/test/groups/alice/round-{round}")).send().await.unwrap();
        replicas.postgres.sql("berth", "UPDATE people SET renew_after = 0, renewed_at = renewed_at - 1000");
        let groups = format!("Your groups: round-{round}");
        for url in [&system.url, &replicas.second_url] {
            wait_for("the new groups", async || {
                alice.http.get(url).send().await.ok()?.text().await.ok()?.contains(&groups).then_some(())
            })
            .await;
        }
        let asked = reqwest::get(format!("{origin}/test/asked/refresh_token")).await.unwrap().text().await.unwrap();
        assert_eq!(asked, round.to_string());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_replicas_that_start_at_once_make_one_schema_and_one_secret() {
    let Some(mut replicas) = Replicas::start().await else { return };
    replicas.second.kill();
    replicas.system.proxy.kill();
    for round in 0..3 {
        let database = format!("fresh{round}");
        replicas.postgres.sql("postgres", &format!("CREATE DATABASE {database}"));
        let url = replicas.postgres.url(&database);
        replicas.system.configure(|config| config["sidecar"]["database"] = json!(url));
        let folder = replicas.folder.path();
        std::fs::remove_file(folder.join("secret")).unwrap();
        let first = serve_with("berth-proxy", &replicas.system.config(), &folder.join("first.log"));
        let (_second, second_url) = second(&replicas.system, folder);
        for url in [&replicas.system.url, &second_url] {
            answers(&format!("{url}/readyz")).await;
        }
        assert!(!first.printed().contains("panicked"), "{}", first.printed());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_database_that_does_not_answer_is_as_good_as_away() {
    let Some(replicas) = Replicas::start().await else { return };
    let alice = replicas.system.signed_in("alice").await;
    let (key, _) = alice.make_key("known").await;
    let (another, _) = alice.make_key("never used before").await;
    let api = Api::basic(&replicas.system.url, "alice", &key);
    assert_eq!(api.get("/v2/").await.status(), StatusCode::OK);
    let locked = "BEGIN; LOCK TABLE api_keys, people, sessions IN ACCESS EXCLUSIVE MODE; SELECT pg_sleep(60)";
    let mut psql = replicas.postgres.psql("berth", locked);
    let _lock = Process::start(&mut psql, &replicas.folder.path().join("psql.log")).unwrap();
    let unknown = Api::basic(&replicas.system.url, "alice", &another);
    let locks = "SELECT count(*) FROM pg_locks WHERE mode = 'AccessExclusiveLock' AND granted";
    wait_for("the lock", async || (replicas.postgres.sql("postgres", locks).trim() >= "3").then_some(())).await;
    let began = Instant::now();
    let answer = unknown.get("/v2/").await;
    assert!(began.elapsed() < Duration::from_secs(10), "{:?}", began.elapsed());
    assert_eq!(error_of(answer).await, (503, "UNAVAILABLE".to_owned()));
    // Who is known goes on, for longer than anything is fresh.
    let began = Instant::now();
    while began.elapsed() < Duration::from_secs(8) {
        assert_eq!(api.get("/v2/").await.status(), StatusCode::OK);
    }
    replicas.system.proxy.prints("it takes longer than 2 s to answer").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_the_database_who_is_known_goes_on_and_it_heals_by_itself() {
    let Some(mut replicas) = Replicas::start().await else { return };
    let alice = replicas.system.signed_in("alice").await;
    let (key, _) = alice.make_key("a").await;
    let (another, _) = alice.make_key("never used before").await;
    let api = Api::basic(&replicas.system.url, "alice", &key);
    api.must_push("r", "1", &Image::new(1, 100)).await;
    let token = api.with_token(&["repository:r:pull"]).await;
    assert_eq!(token.get("/v2/r/manifests/1").await.status(), StatusCode::OK);

    replicas.postgres.stop();
    // For longer than anything is fresh.
    let stopped = Instant::now();
    wait_for("the memory to be all that there is", async || {
        assert_eq!(api.get("/v2/r/manifests/1").await.status(), StatusCode::OK);
        assert_eq!(token.get("/v2/r/manifests/1").await.status(), StatusCode::OK);
        (stopped.elapsed() > Duration::from_secs(12)).then_some(())
    })
    .await;
    replicas.system.proxy.prints("a credential is taken from memory").await;
    let unknown = Api::basic(&replicas.system.url, "alice", &another);
    assert_eq!(error_of(unknown.get("/v2/").await).await, (503, "UNAVAILABLE".to_owned()));
    let refused = Person::new(&replicas.system.url).sign_in("bob", "bob").await;
    assert_eq!(refused.status(), StatusCode::SERVICE_UNAVAILABLE);
    let page = refused.text().await.unwrap();
    assert!(
        page.contains("the registry&#39;s database can&#39;t be reached") || page.contains("database can't be reached"),
        "{page}"
    );

    replicas.postgres.restart().await;
    wait_for("the database to be used again", async || {
        (unknown.get("/v2/").await.status() == StatusCode::OK).then_some(())
    })
    .await;
    replicas.system.signed_in("bob").await;
}
