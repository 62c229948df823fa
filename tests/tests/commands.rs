//! The commands, as an operator types them.

use std::process::Command;

use berth_tests::{
    process::wait_for,
    system::{Setup, System, binary},
    tools::{must, run},
};
use serde_json::json;

#[test]
fn the_guide_s_two_files_are_accepted_by_both() {
    let folder = tempfile::tempdir().unwrap();
    let credentials = folder.path().join("oidc-credentials.json");
    std::fs::write(&credentials, r#"{"clientid": "…", "clientsecret": "…"}"#).unwrap();
    // Verbatim, but for the path of the credentials.
    let guide = r#"{"http": {"externalUrl": "https://zot.company", "port": "8080", "auth": {"openid": {"providers": {"oidc": {
      "credentialsFile": "/etc/zot/oidc-credentials.json",
      "issuer": "https://authentik.company/application/o/<application_slug>/",
      "keypath": "", "scopes": ["openid", "profile", "email"]}}}}}}"#;
    let guide = guide.replace("/etc/zot/oidc-credentials.json", credentials.to_str().unwrap());
    let config = folder.path().join("config.json");
    std::fs::write(&config, guide).unwrap();
    for name in ["berth-proxy", "berth-registry"] {
        let outcome = run(Command::new(binary(name)).arg("verify").arg(&config));
        assert!(outcome.success || outcome.printed.contains("/var/lib/berth"), "{name}: {}", outcome.printed);
    }
}

#[test]
fn verify_tells_every_problem_by_its_path_and_exits_with_an_error() {
    let folder = tempfile::tempdir().unwrap();
    let config = folder.path().join("config.json");
    let bad = json!({
        "http": {"port": "eighty", "auth": {"ldap": {}, "openid": {"providers": {"oidc": {"issuer": "nowhere"}}}}},
        "storage": {"rootDirectory": 5, "gcDelay": "soon"},
        "sidecar": {"upstream": "http://0.0.0.0:5000"},
    });
    std::fs::write(&config, bad.to_string()).unwrap();
    for (name, paths) in [
        (
            "berth-proxy",
            &["http.port: ", "http.externalUrl: ", "http.auth.ldap: ", "http.auth.openid.providers.oidc.issuer: "][..],
        ),
        ("berth-registry", &["storage.rootDirectory: ", "storage.gcDelay: ", "sidecar.upstream: "]),
    ] {
        let outcome = run(Command::new(binary(name)).arg("verify").arg(&config));
        assert!(!outcome.success);
        for path in paths {
            assert!(outcome.printed.lines().any(|l| l.starts_with(path)), "{path} is missing: {}", outcome.printed);
        }
    }
}

#[tokio::test]
async fn health_says_whether_the_processes_serve() {
    let mut system = System::start(Setup::default()).await;
    let config = system.config();
    for name in ["berth-proxy", "berth-registry"] {
        must(Command::new(binary(name)).arg("health").arg(&config));
    }
    // They are asked themselves: the file may have got a mistake since.
    let good = std::fs::read_to_string(&config).unwrap();
    std::fs::write(&config, "{\"http\": oops").unwrap();
    for name in ["berth-proxy", "berth-registry"] {
        must(Command::new(binary(name)).arg("health").arg(&config));
    }
    std::fs::write(&config, good).unwrap();
    system.registry.kill();
    for name in ["berth-proxy", "berth-registry"] {
        assert!(!run(Command::new(binary(name)).arg("health").arg(&config)).success, "{name}");
    }
}

#[tokio::test]
async fn a_second_registry_is_kept_from_the_same_directory() {
    let system = System::start(Setup::default()).await;
    let outcome = run(Command::new(binary("berth-registry")).arg("serve").arg(system.config()));
    assert!(!outcome.success && outcome.printed.contains("in use by another berth-registry"), "{}", outcome.printed);
}

#[tokio::test]
async fn both_stop_when_they_are_told_to() {
    let mut system = System::start(Setup::default()).await;
    for process in [&mut system.proxy, &mut system.registry] {
        let began = std::time::Instant::now();
        process.terminate();
        assert!(began.elapsed() < std::time::Duration::from_secs(9), "it had to be killed");
        assert!(process.printed().contains("stopping"));
    }
}

#[tokio::test]
async fn a_log_that_was_renamed_is_opened_again_by_both_on_sighup() {
    let mut system = System::start(Setup::default()).await;
    let log = system.folder.join("berth.log");
    system.configure(|config| config["log"]["output"] = json!(log));
    system.restart_registry().await;
    system.restart_proxy().await;
    std::fs::rename(&log, system.folder.join("berth.log.1")).unwrap();
    for (process, expected) in
        [(&system.proxy, "the configuration was read again"), (&system.registry, "the log was opened again")]
    {
        must(Command::new("kill").args(["-HUP", &process.id().to_string()]));
        wait_for(expected, async || {
            std::fs::read_to_string(&log).is_ok_and(|text| text.contains(expected)).then_some(())
        })
        .await;
    }
    let answer = reqwest::get(format!("{}/v2/", system.url)).await.unwrap();
    let id = answer.headers()["x-request-id"].to_str().unwrap().to_owned();
    wait_for("the request's line", async || std::fs::read_to_string(&log).unwrap().contains(&id).then_some(())).await;
    assert!(!system.registry.has_ended() && !system.proxy.has_ended());
}

#[tokio::test]
async fn a_backup_of_a_running_proxy_is_whole_and_what_is_damaged_or_missing_is_named() {
    let mut system = System::start(Setup::default()).await;
    let alice = system.signed_in("alice").await;
    let (key, _) = alice.make_key("a").await;
    let to = system.folder.join("backup");
    let backup = || run(Command::new(binary("berth-proxy")).arg("backup").arg(system.config()).arg(&to));
    let made = backup();
    assert!(made.success, "{}", made.printed);
    // Nothing is overwritten.
    assert!(!backup().success);
    system.proxy.kill();
    let serve = || run(Command::new("timeout").arg("20").arg(binary("berth-proxy")).arg("serve").arg(system.config()));
    let (database, secret) = (system.folder.join("proxy.db"), system.folder.join("proxy.key"));
    for beside in ["proxy.db-wal", "proxy.db-shm"] {
        let _ = std::fs::remove_file(system.folder.join(beside));
    }
    // A secret is not made anew beside what the old one has sealed.
    std::fs::remove_file(&secret).unwrap();
    std::fs::copy(to.join("proxy.db"), &database).unwrap();
    let outcome = serve();
    assert!(!outcome.success && outcome.printed.contains("sidecar.secretFile: "), "{}", outcome.printed);
    assert!(outcome.printed.contains("is missing, and the database was sealed with it") && !secret.exists());
    // What is no database is named, at once.
    std::fs::write(&database, vec![7; 8192]).unwrap();
    let outcome = serve();
    assert!(!outcome.success && outcome.printed.contains("proxy.db is damaged, or no database"), "{}", outcome.printed);
    // And the backup is as good as what was.
    for (name, path) in [("proxy.db", &database), ("proxy.key", &secret)] {
        std::fs::copy(to.join(name), path).unwrap();
    }
    system.restart_proxy().await;
    let api = berth_tests::api::Api::basic(&system.url, "alice", &key);
    assert_eq!(api.get("/v2/").await.status(), reqwest::StatusCode::OK);
    assert!(alice.get("/").await.text().await.unwrap().contains("Signed in as alice"));
}
