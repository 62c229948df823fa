//! Counters, log lines, the audit log and traces, as an operator sees them.

use std::{
    collections::BTreeSet,
    io::Write,
    path::Path,
    process::{Command, Stdio},
    sync::{Arc, Mutex},
};

use axum::{Router, body::Bytes, extract::State, routing::post};
use berth_tests::{
    api::{Api, Credential, header_of},
    images::{Image, digest},
    process::{free_port, wait_for},
    system::{Setup, System},
    tools::{find, must},
};
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

/// Everybody reads `open/**`; alice does everything in `r/**`.
fn rules() -> Value {
    json!({
        "repositories": {
            "r/**": {"policies": [{"users": ["alice"], "actions": ["read", "create", "update", "delete"]}]},
            "open/**": {"defaultPolicy": ["read"]},
        },
        "metrics": {"users": ["alice"]},
    })
}

async fn alice(setup: Setup) -> (System, Api) {
    let system = System::start(Setup { access_control: rules(), ..setup }).await;
    let (key, _) = system.signed_in("alice").await.make_key("a").await;
    let api = Api::basic(&system.url, "alice", &key);
    (system, api)
}

fn observability(file: &str) -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/observability").join(file)
}

/// The names of all metrics in a text, without what Prometheus adds to a histogram's.
fn names(text: &str) -> BTreeSet<&str> {
    text.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split(' ').next()).collect()
}

#[tokio::test]
async fn the_counters_of_both_processes_are_as_prometheus_wants_them_and_bounded() {
    let (system, api) = alice(Setup::default()).await;
    api.must_push("r/app", "1", &Image::new(1, 100_000)).await;
    for i in 0..30 {
        assert_eq!(api.get(&format!("/v2/r/app-{i}/manifests/v{i}")).await.status(), StatusCode::NOT_FOUND);
        let wrong = Api::basic(&system.url, &format!("user-{i}"), "zak_wrong");
        assert_ne!(wrong.get("/v2/").await.status(), StatusCode::OK);
    }
    let text = api.get("/metrics").await.text().await.unwrap();
    for line in [
        "berth_requests_total{credential=\"api_key\",operation=\"push_manifest\",status=\"201\"} 1",
        "berth_requests_total{credential=\"api_key\",operation=\"pull_manifest\",status=\"404\"} 30",
        "berth_request_duration_seconds_count{credential=\"api_key\",operation=\"push_manifest\"} 1",
        "berth_credentials_refused_total{reason=\"rejected\"} 30",
        "berth_sign_ins_total{outcome=\"signed_in\"} 1",
        "berth_dependency_up{dependency=\"database\"} 1",
        "berth_dependency_up{dependency=\"registry\"} 1",
        &format!("berth_issuer_up{{issuer=\"{}\"}} 1", system.issuer),
        "berth_registry_requests_total{operation=\"push_manifest\",status=\"201\"} 1",
        "berth_registry_stored_blobs 3",
        "berth_registry_uploads 0",
    ] {
        assert!(text.lines().any(|own| own == line), "{line} is not in {text}");
    }
    let stored = text.lines().find_map(|line| line.strip_prefix("berth_registry_stored_bytes ")).unwrap();
    assert!((100_000.0..104_000.0).contains(&stored.parse::<f64>().unwrap()), "{stored}");
    for name in ["berth_registry_free_bytes", "berth_issuer_keys_age_seconds", "process_open_fds", "berth_connections"]
    {
        assert!(text.contains(&format!("\n{name}")), "{name} is not in {text}");
    }
    assert!(!text.contains("r/app") && !text.contains("user-"), "a label comes from outside: {text}");
    // However many repositories and names there were.
    assert!(text.lines().count() < 700, "{} lines", text.lines().count());

    let Some(promtool) = find("promtool") else { return };
    let mut check = Command::new(promtool)
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    check.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
    let output = check.wait_with_output().unwrap();
    let printed = String::from_utf8_lossy(&[output.stderr, output.stdout].concat()).into_owned();
    assert!(output.status.success() && printed.trim().is_empty(), "{printed}");
}

#[tokio::test]
async fn uploads_are_counted_while_they_run_and_nothing_else_is() {
    let (system, api) = alice(Setup::default()).await;
    let uploads = async || {
        let text = api.get("/metrics").await.text().await.unwrap();
        text.lines().find_map(|line| line.strip_prefix("berth_registry_uploads ").map(str::to_owned)).unwrap()
    };
    let (one, _two) = (api.start_upload("r/app").await, api.start_upload("r/app").await);
    // What a crash left half written.
    std::fs::write(system.folder.join("registry/uploads/tmp-0b0e7a4e-2c0e-4c39-9d7e-1df3a6a5b1f7"), "x").unwrap();
    assert_eq!(uploads().await, "2");
    assert_eq!(api.delete(&one).await.status(), StatusCode::NO_CONTENT);
    assert_eq!(uploads().await, "1");
}

#[tokio::test]
async fn a_registry_that_hangs_takes_no_counters_away() {
    let (system, api) = alice(Setup::default()).await;
    let signal = |name: &str| must(Command::new("kill").args([name, &system.registry.id().to_string()]));
    signal("-STOP");
    let asked = std::time::Instant::now();
    let text = api.get("/metrics").await.text().await.unwrap();
    signal("-CONT");
    assert!(text.contains("berth_dependency_up{dependency=\"registry\"} 0") && text.contains("berth_requests_total"));
    // Prometheus gives up after ten seconds.
    assert!(asked.elapsed() < std::time::Duration::from_secs(8), "{:?}", asked.elapsed());
}

#[tokio::test]
async fn what_is_stored_is_known_after_a_restart_and_counted_anew_by_a_collection() {
    let storage = json!({"gcAnyDelay": true, "gcDelay": "1s", "gcInterval": "1h"});
    let (mut system, api) = alice(Setup { storage, ..Setup::default() }).await;
    let (one, two) = (Image::new(1, 50_000), Image::new(2, 70_000));
    api.must_push("r/app", "1", &one).await;
    api.must_push("r/app", "2", &two).await;
    let value = async |name: &str| {
        let text = api.get("/metrics").await.text().await.unwrap();
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')).map(str::to_owned);
        line.map(|line| line.parse::<f64>().unwrap())
    };
    let all = [&one.layer, &one.config, &one.manifest, &two.layer, &two.config, &two.manifest].map(Vec::len);
    let before = f64::from(u32::try_from(all.iter().sum::<usize>()).unwrap());
    let is = async |bytes: f64| (value("berth_registry_stored_bytes").await? == bytes).then_some(());
    wait_for("what is stored to be known", async || is(before).await).await;
    // What a graceful stop has written down: no collection has counted it.
    system.registry.terminate();
    system.restart_registry().await;
    wait_for("it to be known after a restart", async || is(before).await).await;
    system.configure(|config| config["storage"]["gcInterval"] = json!("2s"));
    system.restart_registry().await;
    assert_eq!(api.delete("/v2/r/app/manifests/2").await.status(), StatusCode::ACCEPTED);
    // The tag is gone; the manifest goes by its digest.
    api.must_push("r/app", "2", &two).await;
    let target = format!("/v2/r/app/manifests/{}", digest(&two.manifest));
    assert_eq!(api.delete(&target).await.status(), StatusCode::ACCEPTED);
    wait_for("the collection", async || {
        let now = value("berth_registry_stored_bytes").await?;
        (now < before - 60_000.0 && value("berth_registry_collection_failed").await == Some(0.0)).then_some(())
    })
    .await;
    assert!(value("berth_registry_collection_end_time_seconds").await.unwrap() > 1.7e9);
}

#[test]
fn alerts_fire_when_they_should_and_name_metrics_that_there_are() {
    let Some(promtool) = find("promtool") else { return };
    must(Command::new(&promtool).args(["check", "rules"]).arg(observability("berth-alerts.yml")));
    must(Command::new(&promtool).args(["test", "rules"]).arg(observability("berth-alerts.test.yml")));
    must(Command::new(&promtool).args(["check", "config", "--syntax-only"]).arg(observability("prometheus.yml")));
}

#[tokio::test]
async fn alerts_and_dashboard_ask_for_metrics_that_there_are() {
    let storage = json!({"gcAnyDelay": true, "gcDelay": "1s", "gcInterval": "1s"});
    let (system, api) = alice(Setup { storage, ..Setup::default() }).await;
    api.must_push("r/app", "1", &Image::new(1, 100)).await;
    api.with_token(&["repository:r/app:pull"]).await.get("/v2/r/app/tags/list").await;
    Api::basic(&system.url, "x", "zak_wrong").get("/v2/").await;
    // Shown only while it is so.
    let sometimes = ["berth_renewals_refused"];
    let files =
        ["berth-alerts.yml", "berth-dashboard.json"].map(|file| std::fs::read_to_string(observability(file)).unwrap());
    let dashboard: Value = serde_json::from_str(&files[1]).unwrap();
    assert!(dashboard["panels"].as_array().unwrap().len() > 20);
    wait_for("every metric", async || {
        let text = api.get("/metrics").await.text().await.unwrap();
        let known = names(&text);
        let is_name = |c: char| c.is_ascii_lowercase() || c == '_';
        let words = files.iter().flat_map(|file| file.split(|c: char| !is_name(c)));
        let asked = words.filter(|word| word.starts_with("berth_") || word.starts_with("process_"));
        let missing: Vec<_> = asked
            .filter(|word| {
                let histogram = word.strip_suffix("_bucket").unwrap_or(word);
                !known.contains(histogram) && !sometimes.contains(word)
            })
            .collect();
        if missing.is_empty() {
            Some(())
        } else {
            println!("missing: {missing:?}");
            None
        }
    })
    .await;
}

/// The lines of the proxy's log that are about requests, as JSON.
fn requests(system: &System) -> Vec<Value> {
    let lines: Vec<Value> = system.proxy.printed().lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
    lines.into_iter().filter(|line| line["message"] == "request").collect()
}

#[tokio::test]
async fn a_request_is_one_line_that_says_who_what_why_and_how_much() {
    let (mut system, api) = alice(Setup::default()).await;
    system.configure(|config| config["log"]["format"] = json!("json"));
    system.restart_proxy().await;
    api.must_push("r/app", "1", &Image::new(1, 100_000)).await;
    let denied = api.push_manifest("open/app", "1", b"{}").await.unwrap();
    let denied_id = header_of(&denied, "x-request-id").to_owned();
    let text = denied.text().await.unwrap();
    assert!(text.contains("alice (dev) may not push to open/app:1"), "{text}");
    Api::basic(&system.url, "mallory\u{202e}", "zak_wrong").get("/v2/r/app/tags/list").await;
    let token = format!("{}/zot/auth/token?service=x&scope=repository:r/app:pull", system.url);
    let http = reqwest::Client::new();
    assert!(http.get(&token).basic_auth("eve", Some("wrong")).send().await.unwrap().status().is_client_error());
    let image = Image::new(1, 100_000);
    let layer = digest(&image.layer);
    api.get(&format!("/v2/r/app/blobs/{layer}")).await.bytes().await.unwrap();

    let line = async |what: &str, is: &dyn Fn(&Value) -> bool| {
        wait_for(what, async || requests(&system).into_iter().find(|line| is(line))).await
    };
    let pushed = line("the push", &|line| line["operation"] == "push_manifest" && line["status"] == 201).await;
    assert_eq!((&pushed["user"], &pushed["credential"]), (&json!("alice"), &json!("api_key")));
    assert_eq!(pushed["decision"], "allowed");
    assert_eq!(pushed["rule"], "http.accessControl.repositories.r/**.policies[0]");
    assert!(pushed["received"].as_u64().unwrap() > 100 && pushed["ms"].is_u64(), "{pushed}");
    let pulled = line("the pull", &|line| line["operation"] == "pull_blob" && line["status"] == 200).await;
    assert_eq!(pulled["sent"], image.layer.len());
    let refused = line("the denial", &|line| line["request"] == denied_id.as_str()).await;
    assert_eq!((&refused["decision"], &refused["status"]), (&json!("denied"), &json!(403)));
    assert_eq!(refused["rule"], "http.accessControl.repositories.open/** grants no create");
    let wrong = line("the wrong key", &|line| line["path"] == "/v2/r/app/tags/list" && line["status"] == 401).await;
    assert_eq!((&wrong["decision"], &wrong["user"]), (&json!("refused"), &json!("anonymous")));
    assert_eq!(wrong["tried"], "mallory\u{202e}");
    assert!(wrong["reason"].as_str().unwrap().contains("does not exist or was revoked"), "{wrong}");
    let login = line("the failed login", &|line| line["operation"] == "token").await;
    assert_eq!((&login["decision"], &login["tried"]), (&json!("refused"), &json!("eve")));
    // The same id in the registry's lines.
    let id = pushed["request"].as_str().unwrap().to_owned();
    system.registry.prints(&format!("id=\"{id}\"")).await;
}

#[tokio::test]
async fn a_proxy_in_front_that_nobody_trusts_is_told_of_once() {
    let (system, api) = alice(Setup::default()).await;
    for _ in 0..3 {
        api.request(Method::GET, "/v2/").header("x-forwarded-for", "192.0.2.7").send().await.unwrap();
    }
    system.proxy.prints("name it in sidecar.trustedProxies").await;
    assert_eq!(system.proxy.printed().matches("name it in sidecar.trustedProxies").count(), 1);
    assert!(!system.proxy.printed().contains("client=192.0.2.7"));
}

#[tokio::test]
async fn a_storage_error_is_told_with_its_path_repository_and_request() {
    let (system, api) = alice(Setup::default()).await;
    api.must_push("r/app", "1", &Image::new(1, 100)).await;
    // A file where a folder should be.
    let tag = system.folder.join("registry/repositories/r/app/_tags");
    std::fs::remove_dir_all(&tag).unwrap();
    std::fs::write(&tag, "").unwrap();
    let answer = api.push_manifest("r/app", "broken", &Image::new(1, 100).manifest).await.unwrap();
    assert_eq!(answer.status(), StatusCode::INTERNAL_SERVER_ERROR);
    let id = header_of(&answer, "x-request-id").to_owned();
    system.registry.prints("storage failed").await;
    let log = system.registry.printed();
    let line = log.lines().find(|line| line.contains("storage failed")).unwrap();
    assert!(line.contains(&tag.display().to_string()) && line.contains(&id), "{line}");
    assert!(line.contains("/v2/r/app/manifests/broken"), "{line}");
}

#[tokio::test]
async fn the_audit_log_has_what_everybody_did_and_goes_on_after_a_rotation() {
    let folder = tempfile::tempdir().unwrap();
    let (mut system, api) = alice(Setup::default()).await;
    let audit = folder.path().join("audit.log");
    system.configure(|config| config["log"]["audit"] = json!(audit));
    system.restart_proxy().await;
    let read = |path: &Path| {
        let text = std::fs::read_to_string(path).unwrap_or_default();
        // The last one may be half written.
        let whole = text.rfind('\n').map_or("", |end| &text[..end]);
        whole.lines().map(|line| serde_json::from_str::<Value>(line).expect("a line of JSON")).collect::<Vec<_>>()
    };
    let event = async |path: &Path, what: &str| {
        wait_for(what, async || read(path).into_iter().find(|line| line["event"] == what)).await
    };
    let person = system.signed_in("alice").await;
    let signed_in = event(&audit, "sign_in").await;
    assert_eq!((&signed_in["subject"], &signed_in["provider"]), (&json!("alice"), &json!("oidc")));
    let (key, _) = person.make_key("laptop").await;
    assert_eq!(event(&audit, "key_created").await["label"], "laptop");
    let api = api.with(Credential::Basic("alice".to_owned(), key.clone()));
    let image = Image::new(1, 1000);
    api.must_push("r/app", "1", &image).await;
    let pushes = wait_for("the pushes", async || {
        let pushes: Vec<_> = read(&audit).into_iter().filter(|line| line["event"] == "push").collect();
        (pushes.len() == 3).then_some(pushes)
    })
    .await;
    let manifest = pushes.iter().find(|line| line["operation"] == "push_manifest").unwrap();
    assert_eq!((&manifest["repository"], &manifest["reference"]), (&json!("r/app"), &json!("1")));
    assert_eq!((&manifest["subject"], &manifest["credential"]), (&json!("alice"), &json!("api_key")));
    assert_eq!((&manifest["action"], &manifest["object"]), (&json!("PUT"), &json!("/v2/r/app/manifests/1")));
    assert_eq!((&manifest["status"], &manifest["clientIP"]), (&json!(201), &json!("127.0.0.1")));
    api.get("/v2/r/app/manifests/1").await;
    assert_eq!(event(&audit, "pull").await["reference"], "1");
    api.with_token(&["repository:r/app:pull"]).await;
    assert_eq!(event(&audit, "token_issued").await["scope"], "repository:r/app:pull");
    api.post("/v2/open/app/blobs/uploads/").await;
    assert_eq!(event(&audit, "denied").await["rule"], "http.accessControl.repositories.open/** grants no create");
    Api::basic(&system.url, "mallory", "zak_wrong").get("/v2/").await;
    assert_eq!(event(&audit, "credential_refused").await["tried"], "mallory");
    Api::basic(&system.url, "zak_swapped", "alice").get("/metrics").await;
    wait_for("the refusal of the page", async || {
        read(&audit).into_iter().find(|line| line["object"] == "/metrics" && line["event"] == "credential_refused")
    })
    .await;

    // What a path doesn't say: the tags of a push by digest.
    let put = format!("/v2/r/app/manifests/{}?tag=latest&tag=2", digest(&image.manifest));
    let put = api.request(Method::PUT, &put).header("content-type", "application/vnd.oci.image.manifest.v1+json");
    assert_eq!(put.body(image.manifest.clone()).send().await.unwrap().status(), StatusCode::CREATED);
    let tagged = |line: &Value| line["tags"] == json!(["latest", "2"]);
    wait_for("the tags", async || read(&audit).into_iter().find(tagged)).await;
    system.proxy.prints("tags=\"latest,2\"").await;

    // logrotate: renamed, and then told.
    let old = folder.path().join("audit.log.1");
    std::fs::rename(&audit, &old).unwrap();
    must(Command::new("kill").args(["-HUP", &system.proxy.id().to_string()]));
    wait_for("the new file", async || audit.exists().then_some(())).await;
    event(&audit, "reload").await;
    assert_eq!(api.delete("/v2/r/app/manifests/1").await.status(), StatusCode::ACCEPTED);
    assert_eq!(event(&audit, "delete").await["subject"], "alice");
    assert!(read(&old).iter().all(|line| line["event"] != "delete"));
    person.http.post(format!("{}/zot/auth/logout", system.url)).send().await.unwrap();
    assert_eq!(event(&audit, "sign_out").await["subject"], "alice");
    // No credential, and no part of one.
    for path in [&audit, &old] {
        let text = std::fs::read_to_string(path).unwrap();
        for secret in [&key[4..], "zak_wrong", "zak_swapped"] {
            assert!(!text.contains(secret), "{text}");
        }
    }
}

#[tokio::test]
async fn lines_of_the_audit_log_that_are_lost_are_told() {
    let (mut system, api) = alice(Setup::default()).await;
    // The one file that can't ever be written, and can be opened.
    system.configure(|config| config["log"]["audit"] = json!("/dev/full"));
    system.restart_proxy().await;
    assert_eq!(api.get("/v2/r/app/manifests/1").await.status(), StatusCode::NOT_FOUND);
    system.proxy.prints("log.audit: /dev/full can't be written, and lines are lost").await;
    let text = api.get("/metrics").await.text().await.unwrap();
    let lost = text.lines().find_map(|line| line.strip_prefix("berth_audit_lines_lost_total ")).unwrap();
    assert!(lost.parse::<u64>().unwrap() >= 1, "{lost}");
    // Once a minute, and not for each.
    for _ in 0..20 {
        api.get("/v2/r/app/manifests/1").await;
    }
    assert_eq!(system.proxy.printed().matches("lines are lost").count(), 1);
}

/// A collector of spans, and what it has been sent.
async fn collector() -> (u16, Arc<Mutex<Vec<Value>>>) {
    type Spans = Arc<Mutex<Vec<Value>>>;
    let spans = Spans::default();
    async fn take(State(spans): State<Spans>, body: Bytes) -> &'static str {
        let sent: Value = serde_json::from_slice(&body).unwrap();
        for resource in sent["resourceSpans"].as_array().unwrap() {
            let attributes = resource["resource"]["attributes"].as_array().unwrap();
            let service = attributes.iter().find(|one| one["key"] == "service.name").unwrap()["value"].clone();
            for scope in resource["scopeSpans"].as_array().unwrap() {
                for span in scope["spans"].as_array().unwrap() {
                    let mut span = span.clone();
                    span["service"] = service["stringValue"].clone();
                    spans.lock().unwrap().push(span);
                }
            }
        }
        "{}"
    }
    let port = free_port();
    let listener = tokio::net::TcpListener::bind(("127.0.0.1", port)).await.unwrap();
    let router = Router::new().route("/v1/traces", post(take)).with_state(Arc::clone(&spans));
    tokio::spawn(async move { axum::serve(listener, router).await });
    (port, spans)
}

#[tokio::test]
async fn a_trace_leads_from_the_client_through_the_proxy_to_the_registry() {
    let (port, spans) = collector().await;
    let sidecar = json!({"traces": format!("http://127.0.0.1:{port}")});
    let (system, api) = alice(Setup { sidecar, ..Setup::default() }).await;
    let (trace, parent) = ("0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331");
    let request = api.request(Method::GET, "/v2/r/app/manifests/1");
    let answer = request.header("traceparent", format!("00-{trace}-{parent}-01")).send().await.unwrap();
    assert_eq!(answer.status(), StatusCode::NOT_FOUND);
    let both = wait_for("the spans of both", async || {
        let all = spans.lock().unwrap().clone();
        let own: Vec<_> = all.into_iter().filter(|span| span["traceId"] == trace).collect();
        (own.len() == 2).then_some(own)
    })
    .await;
    let of = |service: &str| both.iter().find(|span| span["service"] == service).unwrap();
    let (proxy, registry) = (of("berth-proxy"), of("berth-registry"));
    assert_eq!((&proxy["parentSpanId"], &registry["parentSpanId"]), (&json!(parent), &proxy["spanId"]));
    assert_eq!((&proxy["name"], &registry["name"]), (&json!("pull_manifest"), &json!("pull_manifest")));
    system.proxy.prints(&format!("trace=\"{trace}\"")).await;
    // What a client doesn't want recorded isn't.
    let unwanted = format!("00-{}-{parent}-00", trace.replace('0', "1"));
    api.request(Method::GET, "/v2/r/app/manifests/2").header("traceparent", unwanted).send().await.unwrap();
    // Nonsense begins a trace of its own, and breaks nothing.
    let odd = api.request(Method::GET, "/v2/r/app/manifests/3").header("traceparent", "00-zz-..");
    assert_eq!(odd.send().await.unwrap().status(), StatusCode::NOT_FOUND);
    wait_for("the last span", async || {
        let all = spans.lock().unwrap();
        let paths = all.iter().filter(|span| span.to_string().contains("/v2/r/app/manifests/3")).count();
        assert!(!all.iter().any(|span| span.to_string().contains("/v2/r/app/manifests/2")));
        (paths > 0).then_some(())
    })
    .await;
}

#[tokio::test]
async fn nobody_waits_for_a_collector_that_never_answers_neither_a_request_nor_an_end() {
    // It takes connections, and says nothing.
    let silent = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let sidecar = json!({"traces": format!("http://{}", silent.local_addr().unwrap())});
    let (mut system, api) = alice(Setup { sidecar, ..Setup::default() }).await;
    for _ in 0..50 {
        assert_eq!(api.get("/v2/r/app/manifests/1").await.status(), StatusCode::NOT_FOUND);
    }
    // Docker kills after ten seconds, as this does.
    for process in [&mut system.proxy, &mut system.registry] {
        process.terminate();
        assert!(process.has_ended() && !process.printed().contains("panicked"));
    }
}
