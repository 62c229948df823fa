//! The commands, as an operator types them.

use std::process::Command;

use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD};
use berth_tests::{
    api::Api,
    process::wait_for,
    system::{CLIENT_ID, Setup, System, binary},
    tools::{must, run},
};
use serde_json::json;

use crate::authority::Authority;

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
        // Who isn't root may not write where it keeps everything; nothing else is wrong.
        let outcome = run(Command::new(binary(name)).arg("verify").arg(&config));
        let places = ["sidecar.database: /var", "sidecar.secretFile: /var", "storage.rootDirectory: /var"];
        let mut problems = outcome.printed.lines();
        assert!(
            outcome.success || problems.all(|line| places.iter().any(|place| line.starts_with(place))),
            "{name}: {}",
            outcome.printed
        );
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
async fn verify_finds_what_would_fail_later() {
    let system = System::start(Setup::default()).await;
    let folder = tempfile::tempdir().unwrap();
    let config = folder.path().join("config.json");
    let good: serde_json::Value = serde_json::from_str(&std::fs::read_to_string(system.config()).unwrap()).unwrap();
    let verify = |change: &dyn Fn(&mut serde_json::Value), more: &[&str]| {
        let mut changed = good.clone();
        change(&mut changed);
        std::fs::write(&config, changed.to_string()).unwrap();
        run(Command::new(binary("berth-proxy")).arg("verify").args(more).arg(&config))
    };
    let outcome = verify(&|_| {}, &["--online"]);
    assert!(outcome.success, "{}", outcome.printed);

    let authority = Authority::new();
    let (cert, key) = authority.write(folder.path());
    let condition = |expression: &'static str| {
        move |config: &mut serde_json::Value| {
            config["http"]["accessControl"] = json!({"repositories": {"**": {"policies": [
                {"users": ["a"], "actions": ["read"], "conditions": [{"expression": expression}]}]}}});
        }
    };
    let job = |expression: &'static str| {
        move |config: &mut serde_json::Value| {
            config["http"]["auth"]["bearer"] = json!({"oidc": [{
                "issuer": "https://token.actions.githubusercontent.com", "audiences": ["x"], "claimMapping": {"validations": [
                    {"expression": "claims.repository_owner_id == '1'"}, {"expression": expression}]}}]});
        }
    };
    let tls = |config: &mut serde_json::Value| {
        config["http"]["tls"] = json!({"cert": cert, "key": key});
        config["http"]["externalUrl"] = json!("https://registry.company");
    };
    let (old, old_key) = authority.expired("registry.company");
    std::fs::write(folder.path().join("old.pem"), old).unwrap();
    std::fs::write(folder.path().join("old.key"), old_key).unwrap();
    let expired = |config: &mut serde_json::Value| {
        tls(config);
        config["http"]["tls"] = json!({"cert": folder.path().join("old.pem"), "key": folder.path().join("old.key")});
    };
    let issuer = |config: &mut serde_json::Value| {
        let own = config["http"]["auth"]["openid"]["providers"]["oidc"]["issuer"].as_str().unwrap().to_owned();
        config["http"]["auth"]["openid"]["providers"]["oidc"]["issuer"] = json!(own.replace("localhost", "127.0.0.1"));
    };
    let database = |config: &mut serde_json::Value| config["sidecar"]["database"] = json!("sqlite:/dev/null/proxy.db");
    let audit = |config: &mut serde_json::Value| config["log"]["audit"] = json!("/dev/null/audit.log");
    for (change, more, expected, is_fatal) in [
        (&condition("req.tagg == 'x'") as &dyn Fn(&mut serde_json::Value), &[][..], "looks at req.tagg", true),
        (&condition("req.tag"), &[], "is a text, and neither true nor false", true),
        (&condition("req.tag.startswith('x')"), &[], "calls startswith, which is no function here", true),
        (&condition("req.tag.matches('[')"), &[], "no regular expression", true),
        (&condition("req.tag in 'abc'"), &[], "can't be evaluated", true),
        (&condition("claims.sub == 'x'"), &[], "looks at claims, which there isn't", true),
        (
            &condition("req.tag == 5"),
            &[],
            "warning: http.accessControl.repositories.**.policies[0].conditions[0]",
            false,
        ),
        (&job("claims.repository_id == 5"), &[], "compares a text with a number", false),
        (&job("claims.ref"), &[], "http.auth.bearer.oidc[0].claimMapping.validations[1].expression: is a text", true),
        (&job("vars.owner == '1'"), &[], "looks at vars.owner, which isn't among the variables", true),
        (&tls, &[], "is for localhost, and not for registry.company", true),
        (&expired, &[], "has expired", true),
        (&database, &[], "sidecar.database: /dev/null can't be written (it is no folder)", true),
        (&audit, &[], "log.audit: /dev/null can't be written (it is no folder)", true),
        (&issuer, &["--online"], "calls itself http://localhost:", true),
    ] {
        let outcome = verify(change, more);
        assert!(outcome.printed.contains(expected), "{expected}: {}", outcome.printed);
        assert_eq!(outcome.success, !is_fatal, "{expected}: {}", outcome.printed);
    }
}

#[tokio::test]
async fn a_token_is_judged_without_its_issuer_and_rules_are_asked_with_claims() {
    let auth = json!({"bearer": {"oidc": [{
        "issuer": "https://gitlab.company", "audiences": ["registry.company"],
        "claimMapping": {"validations": [{"expression": "claims.ref == 'main'"}], "username": "'job-' + claims.project",
                         "groups": "['ci']"},
    }]}});
    let access_control = json!({"repositories": {
        "built/**": {"policies": [{"groups": ["ci"], "actions": ["create"],
                                   "conditions": [{"expression": "req.client.ip == '192.0.2.7'"}]}]},
        "team/**": {"policies": [{"groups": ["dev"], "actions": ["read"]}]},
    }});
    let system = System::start(Setup { auth, access_control, ..Setup::default() }).await;
    let file = |name: &str, text: String| {
        let path = system.folder.join(name);
        std::fs::write(&path, text).unwrap();
        path
    };
    let job = |changes: serde_json::Value| {
        let mut claims = json!({"iss": "https://gitlab.company", "aud": "registry.company", "sub": "1", "ref": "main",
                                "project": "app", "exp": 4_000_000_000_u64});
        claims.as_object_mut().unwrap().extend(changes.as_object().unwrap().clone());
        claims
    };
    let token = |claims: &serde_json::Value| {
        let part = |value: &serde_json::Value| BASE64_URL_SAFE_NO_PAD.encode(value.to_string());
        let jwt = format!("{}.{}.c2lnbmF0dXJl", part(&json!({"alg": "RS256", "typ": "JWT"})), part(claims));
        let path = file("token", format!("{jwt}\n"));
        run(Command::new(binary("berth-proxy")).arg("token").arg(system.config()).arg(path))
    };
    let own = |more: serde_json::Value| {
        let mut claims = json!({"iss": system.issuer, "aud": CLIENT_ID, "sub": "1", "preferred_username": "alice",
                                "exp": 4_000_000_000_u64, "groups": ["dev"]});
        claims.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        claims
    };
    for (claims, success, expected) in [
        (
            job(json!({})),
            true,
            "taken by http.auth.bearer.oidc[0], if its signature is good: user \"job-app\", groups [\"ci\"]",
        ),
        (job(json!({"ref": "x"})), false, "refused: no rule takes this token; http.auth.bearer.oidc[0] came nearest"),
        (job(json!({"aud": "other"})), false, "its audience is other, and not registry.company"),
        (job(json!({"iss": "https://nobody.company"})), false, "neither a provider of this registry nor in"),
        (job(json!({"exp": 5})), false, "refused: the token has expired"),
        (own(json!({"azp": CLIENT_ID, "uid": "x"})), true, "taken by http.auth.openid.providers.oidc"),
        (own(json!({})), false, "can't be told from an ID token"),
        (own(json!({"aud": "other"})), false, "not made for berth"),
        (job(json!({"nbf": 4_000_000_000_u64})), false, "not valid yet"),
        (job(json!({"events": {}})), false, "logout token"),
    ] {
        let outcome = token(&claims);
        assert!(outcome.printed.contains(expected), "{claims}: {}", outcome.printed);
        assert_eq!(outcome.success, success, "{claims}: {}", outcome.printed);
    }
    let can = |claims: &serde_json::Value, more: &[&str]| {
        let path = file("claims.json", claims.to_string());
        run(Command::new(binary("berth-proxy")).arg("can").arg(system.config()).arg("--claims").arg(path).args(more))
    };
    let yes = can(&job(json!({})), &["--ip", "192.0.2.7", "create", "built/app:1"]);
    assert!(yes.success && yes.printed.starts_with("job-app (in ci): yes: http.accessControl"), "{}", yes.printed);
    let no = can(&job(json!({})), &["--ip", "192.0.2.8", "create", "built/app:1"]);
    assert!(!no.success && no.printed.contains("does not hold"), "{}", no.printed);
    let person = can(&own(json!({})), &["read", "team/app"]);
    assert!(person.success && person.printed.starts_with("alice (in dev): yes"), "{}", person.printed);
    let nameless = can(&json!({"iss": system.issuer, "sub": "1"}), &["read", "team/app"]);
    assert!(!nameless.success && nameless.printed.contains("preferred_username"), "{}", nameless.printed);
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
    // One that is there and does nothing isn't even alive.
    let signal = |name: &str| must(Command::new("kill").args([name, &system.registry.id().to_string()]));
    signal("-STOP");
    let live = run(Command::new(binary("berth-registry")).args(["health", "--live"]).arg(&config));
    signal("-CONT");
    assert!(!live.success && live.printed.contains("does not answer"), "{}", live.printed);
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
        [(&system.proxy, "the configuration was read again"), (&system.registry, "the configuration was read again")]
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
async fn the_registry_takes_over_what_it_can_on_sighup_and_names_the_rest() {
    let storage = json!({"gcAnyDelay": true, "gcDelay": "1s", "gcInterval": "1h"});
    let system = System::start(Setup { storage, ..Setup::default() }).await;
    let (key, _) = system.signed_in("alice").await.make_key("a").await;
    let api = Api::basic(&system.url, "alice", &key);
    api.push_blob("r", b"nobody names this").await.unwrap();
    let hang_up = || must(Command::new("kill").args(["-HUP", &system.registry.id().to_string()]));
    std::fs::write(system.config(), std::fs::read_to_string(system.config()).unwrap().replace("\"1h\"", "\"soon\""))
        .unwrap();
    hang_up();
    system.registry.prints("storage.gcInterval: is a text that can't be read as that").await;
    system.registry.prints("what was goes on").await;
    system.configure(|config| {
        config["storage"]["gcInterval"] = json!("3s");
        config["storage"]["rootDirectory"] = json!("/elsewhere");
    });
    hang_up();
    system.registry.prints("waiting for a restart of the registry: storage").await;
    // Which would have been an hour later. However often it is told to read the file, it comes to its turn.
    let mut told = 0;
    wait_for("the collection", async || {
        hang_up();
        told += 1;
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
        system.registry.printed().contains("garbage was collected: 1 blobs that no manifest named").then_some(())
    })
    .await;
    assert!(told > 1, "it wasn't told while it waited");
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

#[test]
fn a_file_that_is_something_else_is_told_so_and_missing_sections_too() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("file.json");
    let verify = |text: &str| {
        std::fs::write(&path, text).unwrap();
        run(Command::new(binary("berth-registry")).args(["verify", "--offline"]).arg(&path))
    };
    for text in ["{}", r#"{"name": "a-package", "version": "1.0.0"}"#, r#"{"services": {"web": {}}}"#] {
        let outcome = verify(text);
        assert!(!outcome.success, "{text}");
        assert!(outcome.printed.contains("all else of a registry's configuration"), "{}", outcome.printed);
    }
    let outcome = verify(r#"{"http": {"port": "8080"}}"#);
    assert!(outcome.success);
    for expected in ["storage: is missing; everything is kept in", "sidecar: is missing; the registry listens on"] {
        assert!(outcome.printed.contains(expected), "{}", outcome.printed);
    }
}
