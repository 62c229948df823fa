//! The commands, as an operator types them.

use std::process::Command;

use berth_tests::{
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
