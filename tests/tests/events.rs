//! What happens is told: whole, in order, at least once, whatever is killed, and to nobody else.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    process::Command,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use aws_lc_rs::hmac;
use berth_tests::{
    api::{Api, Credential},
    images::{Image, MANIFEST, digest},
    process::{wait_for, wait_within},
    receiver::{Mode, Received, Receiver},
    system::{Setup, System, binary},
    tools::run,
};
use reqwest::{Method, StatusCode, header};
use serde_json::{Value, json};

use crate::scim::{Pusher, TOKEN};

fn telling(receiver: &Receiver, more: Value) -> Value {
    let mut sink = json!({"type": "http", "address": receiver.address(), "privateAddresses": true, "timeout": "2s"});
    sink.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    json!({"events": {"enable": true, "sinks": [sink]}})
}

async fn alice(system: &System) -> Api {
    let (key, _) = system.signed_in("alice").await.make_key("events").await;
    Api::basic(&system.url, "alice", &key)
}

/// Another manifest of the same image.
fn variant(image: &Image, n: usize) -> Vec<u8> {
    let mut manifest: Value = serde_json::from_slice(&image.manifest).unwrap();
    manifest["annotations"] = json!({"n": n.to_string()});
    manifest.to_string().into_bytes()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn is_signed(event: &Received, key: &str) -> bool {
    let signature = event.header("x-berth-signature").to_owned();
    let at = signature.strip_prefix("t=").unwrap().split(',').next().unwrap();
    let signed = format!("{at}.{}.{}.{}", event.header("ce-id"), event.header("ce-type"), event.body);
    let tag = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, key.as_bytes()), signed.as_bytes());
    signature.split(',').any(|part| part == format!("v1={}", hex(tag.as_ref())))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_happens_is_told_as_zot_tells_it_and_what_zot_never_tells() {
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str, text: &str| {
        let path = folder.path().join(name);
        std::fs::write(&path, text).unwrap();
        path
    };
    let (new, old) = ("the new key of the receiver", "the old key of the receiver");
    let keys = [file("new", &format!("{new}\n")), file("old", old)];
    let token_file = file("scim", TOKEN);
    let receiver = Receiver::start().await;
    let extensions = telling(
        &receiver,
        json!({"signingKeyFiles": keys, "channel": "registry", "headers": {"X-Team": "a"},
            "credentials": {"username": "berth", "password": "secret"}}),
    );
    let policy = json!({"repositories": ["ci/**"], "keepTags": [{"patterns": ["^keep"]}]});
    let storage = json!({"gcAnyDelay": true, "gcDelay": "1s", "gcInterval": "1s",
        "retention": {"delay": "24h", "policies": [policy]},
        "quotas": [{"repositories": ["ci/**"], "bytes": "100kB"}]});
    let provider = json!({"scim": {"tokenFile": token_file}});
    let mut system = System::start(Setup { extensions, storage, provider, ..Setup::default() }).await;
    system.configure(|config| config["log"]["audit"] = json!(folder.path().join("audit.log")));
    system.restart_proxy().await;
    let api = alice(&system).await;
    let key = receiver.get("key.created", |_| true).await;
    assert_eq!((&key.data["owner"], &key.data["label"]), (&json!("alice"), &json!("events")));
    assert!(!key.body.contains("zak_"), "{}", key.body);

    let image = Image::new(1, 90_000);
    api.must_push("a/b", "1", &image).await;
    let created = receiver.get("zotregistry.repository.created", |_| true).await;
    assert_eq!(created.data["name"], json!("a/b"));
    let pushed = receiver.get("zotregistry.image.updated", |_| true).await;
    for (name, expected) in [
        ("ce-specversion", "1.0"),
        ("ce-source", system.url.as_str()),
        ("ce-channel", "registry"),
        ("x-team", "a"),
        ("content-type", "application/json"),
        ("authorization", "Basic YmVydGg6c2VjcmV0"),
    ] {
        assert_eq!(pushed.header(name), expected, "{name}");
    }
    assert!(pushed.header("ce-time").ends_with('Z') && pushed.header("ce-id") != created.header("ce-id"));
    let expected = json!({"name": "a/b", "reference": "1", "digest": digest(&image.manifest), "mediaType": MANIFEST,
        "manifest": String::from_utf8(image.manifest.clone()).unwrap()});
    for (name, value) in expected.as_object().unwrap() {
        assert_eq!(&pushed.data[name], value, "{name}");
    }
    assert_eq!(pushed.data["actor"], json!({"name": "alice"}));
    assert_eq!(pushed.data["request"]["method"], json!("PUT"));
    assert_eq!(pushed.data["request"]["addr"], json!("127.0.0.1"));
    for event in receiver.received() {
        assert!(is_signed(&event, new) && is_signed(&event, old) && !is_signed(&event, "another"), "{event:?}");
    }

    // By digest with two tags, the tag alone, and from a page.
    let manifest = variant(&image, 2);
    let target = format!("/v2/a/b/manifests/{}?tag=x&tag=y", digest(&manifest));
    let request = api.request(Method::PUT, &target).header(header::CONTENT_TYPE, MANIFEST).body(manifest.clone());
    assert_eq!(request.send().await.unwrap().status(), StatusCode::CREATED);
    for tag in ["x", "y"] {
        let event = receiver.get("image.updated", |event| event.data["reference"] == json!(tag)).await;
        assert_eq!(event.data["digest"], json!(digest(&manifest)));
    }
    assert_eq!(api.delete("/v2/a/b/manifests/x").await.status(), StatusCode::ACCEPTED);
    let gone = receiver.get("image.deleted", |_| true).await;
    assert_eq!((&gone.data["reference"], &gone.data["digest"]), (&json!("x"), &json!(digest(&manifest))));
    let page = system.signed_in("alice").await;
    let deleted = page.http.post(format!("{}/delete/a/b:y", system.url)).header("sec-fetch-site", "same-origin");
    assert!(deleted.send().await.unwrap().status().is_success());
    receiver.get("image.deleted", |event| event.data["reference"] == json!("y")).await;
    // What was refused, or isn't there, is nothing to tell of.
    let refused = api.push_manifest("a/b", "wrong", b"{}").await.unwrap();
    assert_eq!(refused.status(), StatusCode::BAD_REQUEST);
    assert_eq!(api.delete("/v2/a/b/manifests/none").await.status(), StatusCode::NOT_FOUND);

    // What nobody asked for: a tag that goes by the rules, a quota that is nearly used up, somebody who is gone.
    api.must_push("ci/app", "feature", &image).await;
    let expired = receiver.get("image.expired", |_| true).await;
    assert_eq!((&expired.data["name"], &expired.data["reference"]), (&json!("ci/app"), &json!("feature")));
    assert!(expired.data["rule"].as_str().unwrap().contains("keepTags"), "{}", expired.body);
    let warned = receiver.get("quota.warning", |_| true).await;
    assert_eq!(warned.data["bytes"]["limit"], json!(100_000), "{}", warned.body);
    let pusher = Pusher::new(&system.url, TOKEN);
    let id = pusher.push_user("bob", "sub-of-bob").await;
    pusher.set_active(&id, "bob", "sub-of-bob", false).await;
    let out = receiver.get("user.deprovisioned", |_| true).await;
    assert_eq!(out.data["name"], json!("bob"));
    // Removals stand in the audit log.
    wait_for("the audit log", async || {
        let text = std::fs::read_to_string(folder.path().join("audit.log")).unwrap_or_default();
        text.lines()
            .filter_map(|line| serde_json::from_str::<Value>(line).ok())
            .find(|line| line["event"] == json!("expired") && line["reference"] == json!("feature"))
    })
    .await;
    let told: Vec<Received> = receiver.received();
    let of = |text: &str| told.iter().filter(|event| event.body.contains(text)).count();
    assert_eq!((of("\"wrong\""), of("\"none\"")), (0, 0));
    let created: Vec<&Value> =
        told.iter().filter(|e| e.header("ce-type").ends_with("created")).map(|e| &e.data["name"]).collect();
    assert_eq!(created.iter().filter(|name| **name == &json!("a/b")).count(), 1, "{created:?}");
    assert!(!system.proxy.printed().contains("secret") && !system.proxy.printed().contains(new));
    // The log knows the sink without its path, which may be a secret.
    assert!(!system.proxy.printed().contains("/hook"));
    // Everything is told, so nothing waits.
    wait_for("nothing to wait", async || (waiting(&system).unwrap_or(0) == 0).then_some(())).await;
}

/// How much waits in the database; nothing, if there is no `sqlite3`.
fn waiting(system: &System) -> Option<usize> {
    let database = system.folder.join("proxy.db");
    let sql = "SELECT (SELECT COUNT(*) FROM events) + (SELECT COUNT(*) FROM event_intents)";
    let sqlite = berth_tests::tools::find("sqlite3")?;
    let outcome = run(Command::new(sqlite).args(["-cmd", ".timeout 10000"]).arg(database).arg(sql));
    outcome.printed.trim().parse().ok()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn events_are_sent_where_the_file_says_and_nowhere_else() {
    let receiver = Receiver::start().await;
    // A name that leads into this machine, an address of this network, and what never happens here.
    let sink = |address: String| json!({"type": "http", "address": address});
    let mut system = System::start(Setup::default()).await;
    let verify = |system: &System, extensions: Value| {
        system.configure(|config| config["extensions"] = extensions);
        run(Command::new(binary("berth-proxy")).arg("verify").arg(system.config())).printed
    };
    for host in ["127.0.0.1", "localhost", "[::1]", "169.254.169.254", "10.0.0.1", "0x7f.1", "2130706433"] {
        let printed = verify(&system, json!({"events": {"sinks": [sink(receiver.address_at(host))]}}));
        assert!(
            printed.contains("extensions.events.sinks[0].address: ") && printed.contains("privateAddresses"),
            "{printed}"
        );
    }
    for (key, value, problem) in [
        ("types", json!(["image.lint_failed"]), "never happens here"),
        ("address", json!("https://user:password@hooks.company/"), "must not hold a password"),
        ("address", json!("ftp://hooks.company/"), "is no URL"),
        ("headers", json!({"ce-type": "x"}), "Berth writes itself"),
        ("headers", json!({"X-A": "a\nb"}), "is none"),
        ("signingKeyFiles", json!(["/none"]), "can't be read"),
        ("signingKeyFiles", json!(["a", "b", "c"]), "more than two"),
        ("type", json!("carrier-pigeon"), "unknown"),
        ("priority", json!(1), "is not a known key"),
    ] {
        let mut one = sink("https://hooks.company/x".to_owned());
        one[key] = value;
        let printed = verify(&system, json!({"events": {"sinks": [one]}}));
        assert!(printed.contains(problem) && !printed.contains("user:password"), "{key}: {printed}");
    }
    // What a name server says is looked at when something is sent. Debian's /etc/hosts has this one.
    system.configure(|config| {
        config["extensions"] = json!({"events": {"sinks": [sink(receiver.address_at("ip6-localhost"))]}})
    });
    system.restart_proxy().await;
    alice(&system).await.must_push("a", "1", &Image::new(1, 100)).await;
    system.proxy.prints("an event could not be sent").await;
    // Nor is a redirect followed.
    let extensions = telling(&receiver, json!({}));
    system.configure(|config| config["extensions"] = extensions);
    receiver.set(Mode::Redirect);
    system.restart_proxy().await;
    alice(&system).await.must_push("a", "2", &Image::new(1, 100)).await;
    system.proxy.prints("it answers 307").await;
    receiver.set(Mode::Take);
    receiver.get("image.updated", |event| event.data["reference"] == json!("2")).await;
    assert!(receiver.received().iter().all(|event| event.data["reference"] != json!("1")), "of a sink that is gone");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_nobody_would_hear_of_is_not_done() {
    let receiver = Receiver::start().await;
    let system = System::start(Setup { extensions: telling(&receiver, json!({})), ..Setup::default() }).await;
    let api = alice(&system).await;
    let image = Image::new(1, 100);
    api.must_push("a", "1", &image).await;
    receiver.get("image.updated", |_| true).await;
    receiver.set(Mode::Refuse(500));
    // More waits than may.
    let sink = "(SELECT sink FROM events LIMIT 1)";
    api.must_push("a", "2", &image).await;
    let filled = system.sql(&format!(
        "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 100000)
         INSERT INTO events SELECT {sink}, 'x' || i, 0, i, 'full', 'image.deleted', strftime('%s', 'now') + 0, '{{}}' FROM n"
    ));
    if !filled {
        return;
    }
    let text = wait_for("the end of the room", async || {
        let answer = api.push_manifest("a", "3", &image.manifest).await.ok()?;
        let is_refused = answer.status() == StatusCode::SERVICE_UNAVAILABLE;
        let text = answer.text().await.ok()?;
        // While so much is written to the database by somebody else, it may take too long.
        (is_refused && text.contains("100000 events wait")).then_some(text)
    })
    .await;
    assert!(text.contains("extensions.events"), "{text}");
    assert_eq!(api.delete("/v2/a/manifests/1").await.status(), StatusCode::SERVICE_UNAVAILABLE);
    // Pulls and the blobs of others go on.
    assert_eq!(api.get("/v2/a/manifests/1").await.status(), StatusCode::OK);
    assert!(api.push_blob("b", b"x").await.unwrap().status().is_success());
    system.proxy.prints("nothing can be pushed or deleted").await;
    system.sql("DELETE FROM events WHERE stream = 'full'");
    wait_for("room", async || {
        let answer = api.push_manifest("a", "3", &image.manifest).await.ok()?;
        answer.status().is_success().then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_that_no_receiver_takes_holds_up_its_own_repository_alone() {
    let receiver = Receiver::start().await;
    let system = System::start(Setup {
        extensions: telling(&receiver, json!({"types": ["image.updated"]})),
        ..Setup::default()
    })
    .await;
    let api = alice(&system).await;
    let image = Image::new(1, 100);
    receiver.set(Mode::Refuse(422));
    api.must_push("held", "0", &image).await;
    wait_for("the refusal", async || (receiver.asked() > 0).then_some(())).await;
    receiver.set(Mode::Take);
    for n in 1..20 {
        api.must_push("held", &n.to_string(), &image).await;
        api.must_push("free", &n.to_string(), &image).await;
    }
    receiver
        .get("image.updated", |event| event.data["name"] == json!("held") && event.data["reference"] == json!("19"))
        .await;
    for name in ["held", "free"] {
        let told: Vec<usize> = receiver
            .received()
            .iter()
            .filter(|event| event.data["name"] == json!(name))
            .map(|event| event.data["reference"].as_str().unwrap().parse().unwrap())
            .collect();
        let mut sorted = told.clone();
        sorted.sort_unstable();
        assert_eq!(told, sorted, "{name}");
    }
    assert!(receiver.received().iter().all(|event| event.header("ce-type").ends_with("image.updated")));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_deletes_while_others_push_is_told_of_and_who_hangs_up_too() {
    let receiver = Receiver::start().await;
    let system = System::start(Setup { extensions: telling(&receiver, json!({})), ..Setup::default() }).await;
    let api = alice(&system).await;
    let image = Image::new(1, 100);
    api.must_push("raced", "keep", &image).await;
    // One pushes a tag, and another deletes it.
    let pusher = async {
        for n in 0..150 {
            let pushed = api.push_manifest("raced", "t", &variant(&image, n)).await.unwrap();
            assert_eq!(pushed.status(), StatusCode::CREATED);
        }
    };
    let deleter = async {
        let mut deleted = 0;
        for _ in 0..150 {
            deleted += usize::from(api.delete("/v2/raced/manifests/t").await.status() == StatusCode::ACCEPTED);
        }
        deleted
    };
    let ((), deleted) = tokio::join!(pusher, deleter);
    // One may be told twice, if the answer took long.
    let of = |kind: &str| {
        let of_kind =
            |event: &Received| event.header("ce-type").ends_with(kind).then(|| event.header("ce-id").to_owned());
        receiver.received().iter().filter_map(of_kind).collect::<HashSet<_>>().len()
    };
    wait_for("all of it", async || (of("image.updated") == 151 && of("image.deleted") == deleted).then_some(())).await;
    // Who doesn't wait for the answer has changed something all the same.
    let stored = "/v2/raced/manifests/silent";
    for n in 0..20 {
        let mut manifest: Value = serde_json::from_slice(&image.manifest).unwrap();
        manifest["annotations"] = json!({"n": n.to_string(), "long": "x".repeat(3_000_000)});
        let bytes = manifest.to_string().into_bytes();
        let sent = api.request(Method::PUT, stored).header(header::CONTENT_TYPE, MANIFEST).body(bytes.clone()).send();
        let _ = tokio::time::timeout(Duration::from_millis(60 + 10 * n), sent).await;
        let digest = json!(digest(&bytes));
        let there = api.head(&format!("/v2/raced/manifests/{}", digest.as_str().unwrap())).await.status();
        if there == StatusCode::OK {
            receiver.get("image.updated", |event| event.data["digest"] == digest).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_database_that_fails_for_a_while_loses_nothing_and_stops_no_repository() {
    let receiver = Receiver::start().await;
    let system = System::start(Setup { extensions: telling(&receiver, json!({})), ..Setup::default() }).await;
    let api = alice(&system).await;
    let image = Arc::new(Image::new(1, 100));
    for client in 0..8 {
        api.must_push(&format!("r/{client}"), "first", &image).await;
    }
    let Some(sqlite) = berth_tests::tools::find("sqlite3") else { return };
    let (url, credential, pushed) = (system.url.clone(), api.credential().clone(), Arc::clone(&image));
    let pushing = tokio::spawn(async move { push_many(&url, &credential, &pushed, 0, 400).await });
    told(&receiver, 40).await;
    // Somebody else writes, for longer than anything waits.
    let lock = "BEGIN EXCLUSIVE; UPDATE event_order SET last = last; SELECT printf('%.*c', 1, 'x');";
    let script = format!(
        "(echo \"{lock}\"; sleep 8; echo 'COMMIT;') | {} -bail -cmd '.timeout 10000' {}",
        sqlite.display(),
        system.folder.join("proxy.db").display()
    );
    assert!(run(Command::new("sh").args(["-c", &script])).success);
    let acknowledged = pushing.await.unwrap();
    assert_eq!(acknowledged.len(), 400);
    all_told(&receiver, &acknowledged, "a locked database").await;
    wait_for("nothing to wait", async || (waiting(&system).unwrap_or(0) == 0).then_some(())).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_repository_takes_no_other_s_turn() {
    let receiver = Receiver::start().await;
    let extensions = telling(&receiver, json!({"types": ["image.updated"]}));
    let system = System::start(Setup { extensions, ..Setup::default() }).await;
    let api = alice(&system).await;
    let image = Image::new(1, 100);
    api.must_push("noisy", "first", &image).await;
    api.must_push("quiet", "first", &image).await;
    receiver.set(Mode::Slow(Duration::from_millis(50)));
    for n in 0..10 {
        let manifest = variant(&image, n);
        let tags: Vec<String> = (0..64).map(|tag| format!("tag=t{n}-{tag}")).collect();
        let target = format!("/v2/noisy/manifests/{}?{}", digest(&manifest), tags.join("&"));
        let request = api.request(Method::PUT, &target).header(header::CONTENT_TYPE, MANIFEST).body(manifest);
        assert_eq!(request.send().await.unwrap().status(), StatusCode::CREATED);
    }
    let of_noisy = || receiver.received().iter().filter(|event| event.data["name"] == json!("noisy")).count();
    api.must_push("quiet", "now", &image).await;
    let before = of_noisy();
    receiver.get("image.updated", |event| event.data["reference"] == json!("now")).await;
    let meanwhile = of_noisy() - before;
    assert!(before < 450, "{before} were told before there was another");
    assert!(meanwhile < 150, "{meanwhile} of the other one came first");
}

/// How many pushes each fault is measured with. A full run sets `BERTH_EVENT_PUSHES=10000`.
fn pushes() -> usize {
    std::env::var("BERTH_EVENT_PUSHES").ok().and_then(|text| text.parse().ok()).unwrap_or(300)
}

/// For how long the receiver stays down after the pushes. A full run sets `BERTH_EVENT_DOWN_SECONDS=3600`.
fn down_time() -> Duration {
    let seconds = std::env::var("BERTH_EVENT_DOWN_SECONDS").ok().and_then(|text| text.parse().ok());
    Duration::from_secs(seconds.unwrap_or(0))
}

/// Pushes as many manifests, from eight clients to their repositories, some again after an error; gives what was acknowledged.
async fn push_many(
    url: &str,
    credential: &Credential,
    image: &Arc<Image>,
    from: usize,
    count: usize,
) -> Vec<(String, String)> {
    let acknowledged = Arc::new(Mutex::new(Vec::new()));
    let clients = (0..8).map(|client| {
        let (api, image, acknowledged) =
            (Api::new(url, credential.clone()), Arc::clone(image), Arc::clone(&acknowledged));
        tokio::spawn(async move {
            for n in (from..from + count).filter(|n| n % 8 == client) {
                let (name, manifest) = (format!("r/{client}"), variant(&image, n));
                let end = Instant::now() + Duration::from_secs(30);
                while Instant::now() < end {
                    match api.push_manifest(&name, &format!("t{n}"), &manifest).await {
                        Ok(answer) if answer.status() == StatusCode::CREATED => {
                            acknowledged.lock().unwrap().push((name.clone(), digest(&manifest)));
                            break;
                        }
                        // As clients do it.
                        _ => tokio::time::sleep(Duration::from_millis(50)).await,
                    }
                }
            }
        })
    });
    for client in clients.collect::<Vec<_>>() {
        client.await.unwrap();
    }
    Arc::try_unwrap(acknowledged).unwrap().into_inner().unwrap()
}

/// Waits until all of these were told; gives how many were told more than once. Of each repository they came in order.
async fn all_told(receiver: &Receiver, acknowledged: &[(String, String)], what: &str) -> (usize, usize) {
    let end = Instant::now() + Duration::from_mins(4);
    loop {
        let told: HashSet<(String, String)> = receiver.received().iter().map(told_of).collect();
        let missing: Vec<_> = acknowledged.iter().filter(|one| !told.contains(*one)).collect();
        if missing.is_empty() {
            break;
        }
        assert!(
            Instant::now() < end,
            "{what}: {} of {} are missing, such as {:?}",
            missing.len(),
            acknowledged.len(),
            missing[0]
        );
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let received = receiver.received();
    let mut ids: HashMap<String, usize> = HashMap::new();
    for event in &received {
        *ids.entry(event.header("ce-id").to_owned()).or_default() += 1;
    }
    (received.len(), ids.values().map(|count| count - 1).sum())
}

/// Waits until so many were told.
async fn told(receiver: &Receiver, count: usize) {
    wait_within(Duration::from_mins(10), "some to be told", async || {
        (receiver.received().len() >= count).then_some(())
    })
    .await;
}

fn told_of(event: &Received) -> (String, String) {
    let text = |key: &str| event.data[key].as_str().unwrap_or_default().to_owned();
    (text("name"), text("digest"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_acknowledged_is_told_whatever_is_slow_down_hangs_or_is_killed() {
    let mut receiver = Receiver::start().await;
    let extensions = telling(&receiver, json!({"types": ["image.updated"], "timeout": "1s"}));
    let mut system = System::start(Setup { extensions, ..Setup::default() }).await;
    let api = alice(&system).await;
    let image = Arc::new(Image::new(1, 100));
    for client in 0..8 {
        api.must_push(&format!("r/{client}"), "first", &image).await;
    }
    let (url, credential, count) = (system.url.clone(), api.credential().clone(), pushes());
    let mut from = 0;
    let mut table = BTreeMap::new();
    for fault in [
        "1 none",
        "2 slow",
        "3 refuses",
        "4 hangs",
        "5 forgets",
        "6 down",
        "7 killed",
        "8 proxy killed",
        "9 registry killed",
    ] {
        let pushing = {
            let (url, credential, image) = (url.clone(), credential.clone(), Arc::clone(&image));
            tokio::spawn(async move { push_many(&url, &credential, &image, from, count).await })
        };
        let before = receiver.received().len();
        match fault {
            "2 slow" => receiver.set(Mode::Slow(Duration::from_millis(20))),
            "3 refuses" => receiver.set(Mode::Refuse(500)),
            "4 hangs" => receiver.set(Mode::Hang),
            "5 forgets" => receiver.set(Mode::Forget),
            "6 down" => receiver.kill().await,
            "7 killed" => {
                for round in 1..=3 {
                    told(&receiver, before + round * count / 5).await;
                    receiver.kill().await;
                    receiver.restart().await;
                }
            }
            "8 proxy killed" => {
                for round in 1..=3 {
                    told(&receiver, before + round * count / 5).await;
                    system.proxy.kill();
                    system.restart_proxy().await;
                }
            }
            "9 registry killed" => {
                for round in 1..=3 {
                    told(&receiver, before + round * count / 5).await;
                    system.registry.kill();
                    system.restart_registry().await;
                }
            }
            _ => {}
        }
        let acknowledged = pushing.await.unwrap();
        if fault == "6 down" {
            tokio::time::sleep(down_time()).await;
            receiver.restart().await;
        }
        if fault != "2 slow" {
            receiver.set(Mode::Take);
        }
        let (_, duplicates) = all_told(&receiver, &acknowledged, fault).await;
        receiver.set(Mode::Take);
        wait_for("nothing to wait", async || (waiting(&system).unwrap_or(0) == 0).then_some(())).await;
        table.insert(fault, (acknowledged.len(), receiver.received().len() - before, duplicates));
        from += count;
    }
    println!("fault | acknowledged | received | of one id, once more, so far");
    for (fault, (acknowledged, received, duplicates)) in &table {
        println!("{fault} | {acknowledged} | {received} | {duplicates}");
    }
}
