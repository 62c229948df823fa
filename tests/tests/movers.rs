//! Moving from zot: its configuration, and its store.

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use berth_tests::{
    api::{Api, Credential, error_of},
    images::Image,
    system::{Setup, System, binary},
    tools::{Outcome, run},
};
use reqwest::StatusCode;
use serde_json::{Value, json};

struct Files {
    folder: tempfile::TempDir,
}

impl Files {
    fn new() -> Self {
        Self { folder: tempfile::tempdir().unwrap() }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// A configuration of zot's with a password file, changed.
    fn config(&self, change: impl FnOnce(&mut Value)) -> PathBuf {
        let passwords = self.path("htpasswd");
        if !passwords.exists() {
            std::fs::write(&passwords, format!("dave:{}\n", bcrypt::hash("x", 4).unwrap())).unwrap();
        }
        std::fs::create_dir_all(self.path("store")).unwrap();
        let mut config = json!({
            "distSpecVersion": "1.1.1",
            "http": {"address": "127.0.0.1", "port": "8080", "externalUrl": "http://localhost:8080",
                     "auth": {"htpasswd": {"path": passwords}}},
            "storage": {"rootDirectory": self.path("store")},
            "sidecar": {"database": format!("sqlite:{}", self.path("proxy.db").display())},
        });
        change(&mut config);
        let path = self.path("config.json");
        std::fs::write(&path, config.to_string()).unwrap();
        path
    }
}

fn verify(name: &str, config: &Path, more: &[&str]) -> Outcome {
    run(Command::new(binary(name)).arg("verify").args(more).arg(config))
}

/// What verifying says, which must succeed.
fn verified(name: &str, config: &Path) -> String {
    let outcome = verify(name, config, &[]);
    assert!(outcome.success, "{}", outcome.printed);
    outcome.printed
}

/// What verifying says, which must fail.
fn refused(name: &str, config: &Path) -> String {
    let outcome = verify(name, config, &[]);
    assert!(!outcome.success, "{}", outcome.printed);
    outcome.printed
}

#[test]
fn keys_that_only_add_something_are_warned_of() {
    let files = Files::new();
    let config = files.config(|config| {
        config["http"]["readTimeout"] = json!("60s");
        config["http"]["writeTimeout"] = json!("60s");
        config["storage"]["gcTimeWindow"] = json!({"start": "01:00", "end": "02:00"});
        config["storage"]["fastRestart"] = json!(true);
        config["storage"]["maxRepos"] = json!(10);
        config["storage"]["redirectBlobURL"] = json!(true);
        config["extensions"] = json!({
            "search": {"enable": true, "cve": {"updateInterval": "2h"}}, "ui": {"enable": true}, "mgmt": {"enable": true},
            "userprefs": {"enable": true}, "sync": {"registries": []}, "scrub": {"interval": "24h"},
            "trust": {"enable": true, "cosign": true}, "events": {"enable": true, "sinks": []},
            "metrics": {"enable": true, "prometheus": {"path": "/counters"}}, "lint": {"enable": true},
        });
    });
    let printed = verified("berth-proxy", &config);
    for key in ["http.readTimeout", "http.writeTimeout", "extensions.search"] {
        assert!(printed.contains(&format!("warning: {key}: ")), "{key}: {printed}");
    }
    let printed = verified("berth-registry", &config);
    for key in ["gcTimeWindow", "fastRestart", "redirectBlobURL"] {
        assert!(printed.contains(&format!("warning: storage.{key}: ")), "{key}: {printed}");
    }
    assert!(!printed.contains("maxRepos"), "{printed}");
    // What is mirrored needs somebody who may cause it; sinks that Berth can't speak to are told of.
    let config = files.config(|config| {
        config["http"]["accessControl"] = json!({"repositories": {"**": {"defaultPolicy": ["read"]}}});
        config["extensions"] = json!({"sync": {"registries": []},
            "events": {"sinks": [{"type": "nats", "address": "nats://x"}]}});
    });
    let printed = verified("berth-proxy", &config);
    for key in ["extensions.sync: lets nobody fetch", "extensions.events.sinks[0].type: is nats"] {
        assert!(printed.contains(&format!("warning: {key}")), "{key}: {printed}");
    }
}

#[test]
fn what_guards_something_is_refused() {
    let files = Files::new();
    let lint = json!({"lint": {"enable": true, "mandatoryAnnotations": ["org.opencontainers.image.source"]}});
    let config = files.config(|config| config["extensions"] = lint);
    assert!(refused("berth-proxy", &config).contains("extensions.lint.mandatoryAnnotations: is not supported"));
    for path in ["/", "/livez", "/zot/auth/token", "/{*x}", "/v2/x", "counters"] {
        let config = files.config(|config| config["extensions"] = json!({"metrics": {"prometheus": {"path": path}}}));
        assert!(refused("berth-proxy", &config).contains("extensions.metrics.prometheus.path: is no path"), "{path}");
    }
    // Of two keys of one name a reader would take one or the other.
    let config = files.config(|_| {});
    let text = std::fs::read_to_string(&config).unwrap().replacen('{', r#"{"http": {}, "#, 1);
    std::fs::write(&config, text).unwrap();
    assert!(refused("berth-proxy", &config).contains("the key \"http\" stands twice"));
    let config = files.config(|config| config["extensions"] = json!({"surprise": {}}));
    assert!(refused("berth-proxy", &config).contains("extensions.surprise: is not a known key"));
    let sub_paths = json!({"/a": {"rootDirectory": "/elsewhere"}});
    let config = files.config(|config| config["storage"]["subPaths"] = sub_paths);
    assert!(refused("berth-registry", &config).contains("storage.subPaths: is not supported"));
    let ignored = verify("berth-registry", &config, &["--ignore-sub-paths"]);
    assert!(
        ignored.success && ignored.printed.contains("warning: storage.subPaths: is not used"),
        "{}",
        ignored.printed
    );
    for expression in ["req.tags == 'x'", "req.user.name == 'x'", "req['tagg'] == 'x'", "has(req.claim)"] {
        let policies = json!([{"users": ["a"], "actions": ["read"], "conditions": [{"expression": expression}]}]);
        let config = files.config(|config| {
            config["http"]["accessControl"] = json!({"repositories": {"**": {"policies": policies}}});
        });
        let printed = refused("berth-proxy", &config);
        assert!(printed.contains("conditions[0].expression: looks at req.") && printed.contains("expected one of"));
    }
    let config = files.config(|config| config["sidecar"]["upstream"] = json!("http://10.0.0.1:5000"));
    for name in ["berth-proxy", "berth-registry"] {
        assert!(refused(name, &config).contains("sidecar.upstream: http://10.0.0.1:5000 can be reached by others"));
    }
    let config = files.config(|config| {
        config["sidecar"] = json!({"upstream": "http://10.0.0.1:5000", "allowRemoteRegistry": true});
    });
    verified("berth-proxy", &config);
}

#[test]
fn a_rule_for_a_shared_issuer_that_pins_nobody_must_say_that_it_means_it() {
    let files = Files::new();
    let with = |validation: &str, any_owner: bool| {
        let mut rule = json!({
            "issuer": "https://TOKEN.actions.githubusercontent.com", "audiences": ["r"],
            "claimMapping": {"validations": [{"expression": validation}]},
        });
        if any_owner {
            rule["anyOwner"] = json!(true);
        }
        files.config(|config| config["http"]["auth"]["bearer"] = json!({"oidc": [rule]}))
    };
    for open in ["claims.repository_owner != 'x'", "claims.repository.matches('^o/')", "size(claims.repository) > 0"] {
        let printed = refused("berth-proxy", &with(open, false));
        assert!(
            printed.contains("lets everybody in who uses that service") && printed.contains("anyOwner"),
            "{printed}"
        );
        verified("berth-proxy", &with(open, true));
    }
    verified("berth-proxy", &with("claims.repository in ['o/n']", false));
}

#[test]
fn values_are_read_as_zot_s_parser_reads_them() {
    let files = Files::new();
    let config = files.config(|config| {
        config["storage"]["dedupe"] = json!("true");
        config["storage"]["gc"] = json!("false");
        config["storage"]["gcDelay"] = json!(3_600_000_000_000_u64);
        config["http"]["auth"]["apikey"] = json!("True");
    });
    verified("berth-proxy", &config);
    verified("berth-registry", &config);
    let config = files.config(|config| config["storage"]["gc"] = json!("maybe"));
    assert!(
        refused("berth-registry", &config)
            .contains("storage.gc: is a text that can't be read as that; expected true or false")
    );
}

#[test]
fn a_mistake_in_yaml_shows_no_secret_of_the_lines_beside_it() {
    let folder = tempfile::tempdir().unwrap();
    let config = folder.path().join("config.yaml");
    std::fs::write(&config, "http:\n  auth:\n    clientsecret: hunter2\n    scopes: [openid\n    name: x\n").unwrap();
    for name in ["berth-proxy", "berth-registry"] {
        let printed = refused(name, &config);
        assert!(printed.contains("is not YAML") && printed.contains("line"), "{printed}");
        assert!(!printed.contains("hunter2"), "{printed}");
    }
}

#[test]
fn a_yaml_file_is_read_like_a_json_one() {
    let files = Files::new();
    let json = files.config(|_| {});
    let yaml = files.path("config.yaml");
    let text = format!(
        "# zot's\nhttp:\n  address: 127.0.0.1\n  port: 8080\n  externalUrl: http://localhost:8080\n  auth:\n    htpasswd:\n      \
         path: {}\nstorage:\n  rootDirectory: {}\n  gc: \"true\"\nsidecar:\n  database: sqlite:{}\n",
        files.path("htpasswd").display(),
        files.path("store").display(),
        files.path("proxy.db").display()
    );
    std::fs::write(&yaml, &text).unwrap();
    for name in ["berth-proxy", "berth-registry"] {
        verified(name, &json);
        verified(name, &yaml);
    }
    std::fs::write(&yaml, text.replace("htpasswd:", "htpasswdd:")).unwrap();
    assert!(refused("berth-proxy", &yaml).contains("http.auth.htpasswdd: is not a known key"));
    std::fs::write(&yaml, "http: [unclosed").unwrap();
    assert!(refused("berth-proxy", &yaml).contains("is not YAML"));
}

#[test]
fn a_line_of_the_password_file_that_is_no_bcrypt_is_skipped_with_a_warning() {
    let files = Files::new();
    let bcrypt = bcrypt::hash("x", 4).unwrap();
    std::fs::write(files.path("htpasswd"), format!("dave:{bcrypt}\nsha:$6$salt$hash\n")).unwrap();
    let printed = verified("berth-proxy", &files.config(|_| {}));
    assert!(printed.contains("warning: http.auth.htpasswd.path: ") && printed.contains("line 2"), "{printed}");
    std::fs::write(files.path("htpasswd"), "sha:$6$salt$hash\n").unwrap();
    assert!(refused("berth-proxy", &files.config(|_| {})).contains("http.auth.htpasswd.path: "));
}

#[test]
fn a_store_of_zot_s_is_not_taken_for_an_empty_one() {
    let files = Files::new();
    let config = files.config(|_| {});
    verified("berth-registry", &config);
    Image::new(1, 10).write_layout(&files.path("store/team/app"), "1");
    for command in ["verify", "serve"] {
        let outcome = run(Command::new(binary("berth-registry")).arg(command).arg(&config));
        assert!(!outcome.success, "{}", outcome.printed);
        assert!(outcome.printed.contains("holds a store of zot's"), "{}", outcome.printed);
        assert!(outcome.printed.contains("berth-registry import"), "{}", outcome.printed);
    }
}

#[tokio::test]
async fn a_registry_for_everybody_is_simply_served() {
    let rules = json!({"repositories": {"**": {"anonymousPolicy": ["read", "create"]}, "kept/**": {}}});
    let system = System::start(Setup { access_control: rules, ..Setup::default() }).await;
    // Nobody can sign in at all.
    let mut system = system;
    system.configure(|config| drop(config["http"].as_object_mut().unwrap().remove("auth")));
    system.restart_proxy().await;
    let nobody = Api::new(&system.url, Credential::None);
    assert_eq!(nobody.get("/v2/").await.status(), StatusCode::OK);
    nobody.must_push("open/app", "1", &Image::new(1, 100)).await;
    let listed: Value = nobody.get("/v2/_catalog").await.json().await.unwrap();
    assert_eq!(listed["repositories"], json!(["open/app"]));
    // No credential could help.
    assert_eq!(error_of(nobody.get("/v2/kept/app/manifests/1").await).await, (403, "DENIED".to_owned()));
    assert_eq!(nobody.with_token(&["repository:open/app:pull"]).await.get("/v2/").await.status(), StatusCode::OK);
}

#[tokio::test]
async fn probes_and_counters_are_where_zot_has_them() {
    let mut system = System::start(Setup::default()).await;
    system.configure(|config| {
        config["extensions"] = json!({"metrics": {"prometheus": {"path": "/counters"}}});
        config["http"]["accessControl"] = json!({"metrics": {"users": ["alice"]}, "repositories": {}});
    });
    system.restart_proxy().await;
    for probe in ["/startupz", "/livez", "/readyz"] {
        assert_eq!(reqwest::get(format!("{}{probe}", system.url)).await.unwrap().status(), StatusCode::OK, "{probe}");
    }
    let (key, _) = system.signed_in("alice").await.make_key("a").await;
    let alice = Api::basic(&system.url, "alice", &key);
    for path in ["/counters", "/metrics"] {
        assert!(alice.get(path).await.text().await.unwrap().contains("berth_requests_total"), "{path}");
        let nobody = alice.with(Credential::None).get(path).await;
        assert_eq!(nobody.status(), StatusCode::UNAUTHORIZED);
    }
}
