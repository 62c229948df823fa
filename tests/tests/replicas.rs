//! More than one proxy, on one PostgreSQL.

use std::time::{Duration, Instant};

use berth_tests::{
    api::{Api, error_of},
    images::Image,
    person::Person,
    postgres::Postgres,
    process::{Process, free_port, wait_for},
    receiver::Receiver,
    system::{Setup, System, another_proxy, answers, serve_with},
};
use reqwest::{Method, StatusCode, header};
use serde_json::{Value, json};

use crate::{
    scim::{Pusher, TOKEN, sub_of, user},
    terminal::Machine,
};

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
        Self::start_with(json!({}), json!({})).await
    }

    /// The same with more keys of the provider, and with `extensions`.
    async fn start_with(more: Value, extensions: Value) -> Option<Self> {
        let folder = tempfile::tempdir().unwrap();
        let postgres = Postgres::start(&folder.path().join("postgres")).await?;
        postgres.sql("postgres", "CREATE DATABASE berth");
        let sidecar = json!({"database": postgres.url("berth"), "secretFile": folder.path().join("secret")});
        let mut provider = json!({"scopes": ["openid", "profile", "email", "offline_access"]});
        provider.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        let files = folder.path().join("system");
        std::fs::create_dir(&files).unwrap();
        let system =
            System::start_in(&files, free_port(), Setup { sidecar, provider, extensions, ..Setup::default() }).await;
        let (second, second_url) = another_proxy(&system.config(), folder.path(), "second");
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
        let (_second, second_url) = another_proxy(&replicas.system.config(), folder, "second");
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

/// How often who is deactivated is brought back and deactivated again.
const DEACTIVATIONS: usize = 3;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_is_deactivated_is_out_at_every_replica_within_seconds() {
    let tokens = tempfile::tempdir().unwrap();
    let file = tokens.path().join("scim-token");
    std::fs::write(&file, TOKEN).unwrap();
    let Some(replicas) = Replicas::start_with(json!({"scim": {"tokenFile": file}}), json!({})).await else { return };
    let system = &replicas.system;
    let pusher = Pusher::new(&system.url, TOKEN);
    let id = pusher.push_user("alice", &sub_of("alice")).await;
    let (key, _) = system.signed_in("alice").await.make_key("a").await;
    let mut times = Vec::new();
    for _ in 0..DEACTIVATIONS {
        let alice = system.signed_in("alice").await;
        let terminal = Machine::new();
        terminal.sign_in(system.authority(), &alice, &[]).await;
        let (_, secret) = terminal.get(system.authority());
        // At the other replica, where they are known a moment before.
        let by_key = replicas.second(&key);
        let minted = by_key.with_token(&[]).await;
        let all = [by_key, minted, replicas.second(&secret)];
        for api in &all {
            assert_eq!(api.get("/v2/").await.status(), StatusCode::OK);
        }
        assert!(replicas.second_page(&alice).await.contains("Signed in as alice"));
        pusher.set_active(&id, "alice", &sub_of("alice"), false).await;
        let deactivated = Instant::now();
        // At the one that was told, at once.
        assert_eq!(Api::basic(&system.url, "alice", &key).get("/v2/").await.status(), StatusCode::UNAUTHORIZED);
        for api in &all {
            wait_for("the end", async || (api.get("/v2/").await.status() == StatusCode::UNAUTHORIZED).then_some(()))
                .await;
        }
        wait_for("the end of the session", async || {
            (!replicas.second_page(&alice).await.contains("Signed in as alice")).then_some(())
        })
        .await;
        times.push(deactivated.elapsed());
        pusher.set_active(&id, "alice", &sub_of("alice"), true).await;
        wait_for("the key", async || (all[0].get("/v2/").await.status() == StatusCode::OK).then_some(())).await;
    }
    times.sort();
    println!(
        "from deactivation to the last refusal: median {:?}, worst {:?}",
        times[times.len() / 2],
        times[times.len() - 1]
    );
    assert!(times[times.len() - 1] < Duration::from_secs(7), "{times:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_database_that_goes_away_in_the_middle_of_a_synchronization_leaves_nothing_half_done() {
    let tokens = tempfile::tempdir().unwrap();
    let file = tokens.path().join("scim-token");
    std::fs::write(&file, TOKEN).unwrap();
    let Some(mut replicas) = Replicas::start_with(json!({"scim": {"tokenFile": file}}), json!({})).await else {
        return;
    };
    let pusher = Pusher::new(&replicas.system.url, TOKEN);
    let group = pusher.push_group("everybody").await;
    // As authentik does it: a user, and then that they are in the group.
    let push = async |n: usize| {
        let made = pusher.send(Method::POST, "/Users", user(&format!("user{n}"), &format!("sub{n}"), true)).await;
        let id = match made.status() {
            StatusCode::CREATED => made.json::<Value>().await.unwrap()["id"].as_str().unwrap().to_owned(),
            StatusCode::CONFLICT => {
                let found = pusher.get(&format!("/Users?filter=userName%20eq%20%22user{n}%22")).await;
                found["Resources"][0]["id"].as_str().unwrap().to_owned()
            }
            status => return Err((None, status)),
        };
        let patch = json!({"schemas": ["urn:ietf:params:scim:api:messages:2.0:PatchOp"],
            "Operations": [{"op": "add", "path": "members", "value": [{"value": id}]}]});
        let joined = pusher.send(Method::PATCH, &format!("/Groups/{group}"), patch).await.status();
        if joined == StatusCode::OK { Ok(id) } else { Err((Some(id), joined)) }
    };
    let (mut joined, mut made, mut failed) = (Vec::new(), Vec::new(), 0);
    for n in 0..60 {
        if n == 20 {
            replicas.postgres.stop();
        }
        match push(n).await {
            Ok(id) => joined.push(id),
            Err((id, status)) => {
                assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE);
                made.extend(id);
                failed += 1;
            }
        }
        if failed == 3 {
            break;
        }
    }
    assert!(joined.len() >= 20 && failed == 3, "{}, {failed}", joined.len());
    replicas.postgres.restart().await;
    answers(&format!("{}/readyz", replicas.system.url)).await;
    let members = async || {
        let group = pusher.get(&format!("/Groups/{group}")).await;
        let members = group["members"].as_array().cloned().unwrap_or_default();
        members.iter().map(|member| member["value"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    // What was acknowledged is there, and who was not is nowhere by half.
    let there = members().await;
    assert!(joined.iter().all(|id| there.contains(id)));
    for id in &made {
        assert_eq!(pusher.get(&format!("/Users/{id}")).await["active"], json!(true));
    }
    for n in 0..60 {
        // A database that has just begun may be slow.
        wait_for("a user", async || match push(n).await {
            Err((_, StatusCode::SERVICE_UNAVAILABLE)) => None,
            outcome => Some(outcome.unwrap()),
        })
        .await;
    }
    assert_eq!((members().await.len(), pusher.get("/Users?count=0").await["totalResults"].clone()), (60, json!(60)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_replica_sends_events_and_another_goes_on_when_it_is_killed() {
    let receiver = Receiver::start().await;
    let sink =
        json!({"type": "http", "address": receiver.address(), "privateAddresses": true, "types": ["image.updated"]});
    let extensions = json!({"events": {"sinks": [sink]}});
    let Some(mut replicas) = Replicas::start_with(json!({}), extensions).await else { return };
    let (key, _) = replicas.system.signed_in("alice").await.make_key("a").await;
    let first = Api::basic(&replicas.system.url, "alice", &key);
    let second = replicas.second(&key);
    let image = Image::new(1, 100);
    for n in 0..20 {
        let api = if n % 2 == 0 { &first } else { &second };
        api.must_push("r", &format!("t{n}"), &image).await;
    }
    receiver.get("image.updated", |event| event.data["reference"] == json!("t19")).await;
    let mut order: Vec<Value> = receiver.received().iter().map(|event| event.data["reference"].clone()).collect();
    // One may be told twice, if the answer took long.
    order.dedup();
    assert_eq!(order, (0..20).map(|n| json!(format!("t{n}"))).collect::<Vec<_>>());
    // Whichever of them sends, and whatever it was about to do.
    replicas.system.proxy.kill();
    second.must_push("r", "after", &image).await;
    receiver.get("image.updated", |event| event.data["reference"] == json!("after")).await;
    replicas.system.restart_proxy().await;
    replicas.second.kill();
    first.must_push("r", "last", &image).await;
    receiver.get("image.updated", |event| event.data["reference"] == json!("last")).await;
}
