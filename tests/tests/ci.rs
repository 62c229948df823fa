//! The examples of `docs/ci.md`, each with a token of the same shape as its service makes, and with the clients that jobs use.

use std::process::Command;

use berth_tests::{
    api::{Api, Credential},
    images::Image,
    process::free_port,
    stand_in::signed,
    system::{Setup, System, answers, stand_in},
    tools::{self, run},
};
use reqwest::StatusCode;
use serde_json::{Value, json};

/// What the services say of a job, and what they say of another one that the rule refuses.
fn tokens() -> [(&'static str, Value, Value); 4] {
    [
        (
            "GitHub Actions",
            json!({"sub": "repo:team@12345/app@678:ref:refs/heads/main", "repository": "team/app", "ref": "refs/heads/main",
                   "repository_owner": "team", "repository_owner_id": "12345", "repository_id": "678", "ref_type": "branch",
                   "event_name": "push", "actor": "someone", "workflow": "push", "runner_environment": "github-hosted"}),
            json!({"repository_owner_id": "99"}),
        ),
        (
            "GitLab",
            json!({"sub": "project_path:team/app:ref_type:branch:ref:main", "namespace_id": "12345", "namespace_path": "team",
                   "project_id": "678", "project_path": "team/app", "ref": "main", "ref_type": "branch",
                   "ref_protected": "true", "pipeline_source": "push", "user_login": "someone"}),
            json!({"ref_protected": "false"}),
        ),
        (
            "Forgejo",
            json!({"sub": "repo:team/app:ref:refs/heads/main", "repository": "team/app", "repository_owner": "team",
                   "repository_owner_id": "12345", "repository_id": "678", "ref": "refs/heads/main", "event_name": "push", "actor": "someone", "workflow": "push.yml"}),
            json!({"ref": "refs/heads/other"}),
        ),
        (
            "Buildkite",
            json!({"sub": "organization:company:pipeline:app:ref:refs/heads/main:commit:0:step:push",
                   "organization_slug": "company", "pipeline_slug": "app", "build_branch": "main", "build_number": 7,
                   "step_key": "push", "job_id": "1", "agent_id": "1"}),
            json!({"organization_slug": "another"}),
        ),
    ]
}

/// The rule that stands in the section of a service.
fn documented_rule(service: &str) -> Value {
    let text = include_str!("../../docs/ci.md");
    let section = text.split(&format!("## {service}\n")).nth(1).unwrap_or_else(|| panic!("no section {service}"));
    let block = section.split("```json").nth(1).unwrap().split("```").next().unwrap();
    serde_json::from_str(block).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_documented_rules_take_the_tokens_of_their_services_and_no_others() {
    let folder = tempfile::tempdir().unwrap();
    let mut services = Vec::new();
    for (service, claims, stranger) in tokens() {
        let rule = documented_rule(service);
        // As it is written, it is taken.
        assert!(rule["issuer"].as_str().unwrap().starts_with("https://"), "{service}");
        let port = free_port();
        let process = stand_in(folder.path(), port, "http://localhost");
        let issuer = format!("http://localhost:{port}/application/o/berth/");
        answers(&format!("{issuer}.well-known/openid-configuration")).await;
        services.push((service, claims, stranger, rule, issuer, process));
    }
    let rules = services.iter().map(|(.., rule, issuer, _)| {
        let mut rule = rule.clone();
        rule["issuer"] = json!(issuer);
        rule
    });
    let all = ["read", "create", "update"];
    let access_control = json!({"repositories": {"team/**": {"policies": [{"groups": ["ci"], "actions": all}]}}});
    let auth = json!({"bearer": {"oidc": rules.collect::<Vec<_>>()}});
    let system = System::start(Setup { auth, access_control, ..Setup::default() }).await;
    // The rules as they are written, with the services' own issuers, are taken too.
    let written: Vec<&Value> = services.iter().map(|(.., rule, _, _)| rule).collect();
    let (config, path) = (system.config(), system.folder.join("written.json"));
    let mut text: Value = serde_json::from_str(&std::fs::read_to_string(config).unwrap()).unwrap();
    text["http"]["auth"]["bearer"]["oidc"] = json!(written);
    std::fs::write(&path, text.to_string()).unwrap();
    let verified = run(Command::new(berth_tests::system::binary("berth-proxy")).arg("verify").arg(path));
    assert!(verified.success, "{}", verified.printed);

    for (i, (service, claims, stranger, _, issuer, _)) in services.iter().enumerate() {
        let token = async |changes: &Value| {
            let mut claims = claims.clone();
            claims["aud"] = json!("registry.company");
            claims.as_object_mut().unwrap().extend(changes.as_object().unwrap().clone());
            signed(issuer, claims).await
        };
        let image = Image::new(i as u64, 1000);
        let job = token(&json!({})).await;
        // As `docker login` shows it, whatever the user is called.
        Api::basic(&system.url, "whoever", &job).must_push("team/app", &format!("{i}"), &image).await;
        for wrong in [stranger, &json!({"aud": "somebody-else"})] {
            let refused = Api::new(&system.url, Credential::Bearer(token(wrong).await)).get("/v2/").await;
            assert_eq!(refused.status(), StatusCode::UNAUTHORIZED, "{service}: {wrong}");
        }
        // And with the clients of the examples.
        image.write_layout(&folder.path().join("layout"), "1");
        let from = format!("oci:{}:1", folder.path().join("layout").display());
        let to = format!("{}/team/by-client-{i}:1", system.authority());
        if let Some(skopeo) = tools::find("skopeo") {
            let mut copy = Command::new(skopeo);
            copy.args(["copy", "--dest-tls-verify=false", "--dest-creds", &format!("job:{job}"), &from]);
            let copied = run(copy.arg(format!("docker://{to}")));
            assert!(copied.success, "{service}: {}", copied.printed);
        }
        std::fs::remove_dir_all(folder.path().join("layout")).unwrap();
    }
}
