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

/// A client of the examples, and what it does with a job's token as its password, in the folder of the job: `$TO` is where to,
/// `$HOST` the registry, `$TOKEN` the token.
const CLIENTS: [(&str, &str); 8] = [
    (
        "docker",
        "mkdir docker && echo '{}' > docker/config.json && export DOCKER_CONFIG=$PWD/docker
         echo $TOKEN | docker login --username github --password-stdin $HOST
         docker build --quiet --tag $TO . && docker push $TO && docker rmi --force $TO",
    ),
    (
        "docker-buildx",
        "mkdir -p docker/cli-plugins && echo '{}' > docker/config.json && export DOCKER_CONFIG=$PWD/docker
         ln -s $(command -v docker-buildx) docker/cli-plugins/
         echo $TOKEN | docker login --username github --password-stdin $HOST
         docker buildx build --quiet --tag $TO --push .",
    ),
    (
        "podman",
        "export REGISTRY_AUTH_FILE=$PWD/podman.json
         echo $TOKEN | podman login --tls-verify=false --username x --password-stdin $HOST
         podman --root $PWD/p --runroot $PWD/r --storage-driver vfs build --isolation chroot --tag $TO .
         podman --root $PWD/p --runroot $PWD/r --storage-driver vfs push --tls-verify=false $TO",
    ),
    (
        "buildah",
        "export REGISTRY_AUTH_FILE=$PWD/buildah.json
         echo $TOKEN | buildah login --tls-verify=false --username gitlab --password-stdin $HOST
         buildah --root $PWD/b --runroot $PWD/c --storage-driver vfs build --isolation chroot --tag $TO .
         buildah --root $PWD/b --runroot $PWD/c --storage-driver vfs push --tls-verify=false $TO",
    ),
    (
        "skopeo",
        "export REGISTRY_AUTH_FILE=$PWD/skopeo.json
         echo $TOKEN | skopeo login --tls-verify=false --username forgejo --password-stdin $HOST
         skopeo copy --dest-tls-verify=false oci:layout:1 docker://$TO",
    ),
    (
        "crane",
        "mkdir crane && export DOCKER_CONFIG=$PWD/crane
         crane auth login --username x --password $TOKEN --insecure $HOST
         crane push --insecure layout $TO",
    ),
    (
        "oras",
        "mkdir oras && export DOCKER_CONFIG=$PWD/oras
         echo $TOKEN | oras login --plain-http --username x --password-stdin $HOST
         oras push --plain-http $TO Dockerfile:text/plain",
    ),
    (
        "helm",
        "mkdir helm && export HELM_REGISTRY_CONFIG=$PWD/helm/config.json
         echo $TOKEN | helm registry login --plain-http --username x --password-stdin $HOST
         helm create app > /dev/null && helm package app > /dev/null
         helm push --plain-http app-0.1.0.tgz oci://$HOST/team/by-helm
         helm pull --plain-http oci://$HOST/team/by-helm/app --version 0.1.0 --destination helm",
    ),
];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_client_of_the_examples_pushes_with_a_job_s_own_token() {
    let folder = tempfile::tempdir().unwrap();
    let port = free_port();
    let _service = stand_in(folder.path(), port, "http://localhost");
    let issuer = format!("http://localhost:{port}/application/o/berth/");
    answers(&format!("{issuer}.well-known/openid-configuration")).await;
    let (service, mut claims, _) = tokens().into_iter().next().unwrap();
    let mut rule = documented_rule(service);
    rule["issuer"] = json!(issuer);
    let access_control = json!({"repositories": {"team/**": {"policies": [
        {"groups": ["ci"], "actions": ["read", "create", "update"]}]}}});
    let auth = json!({"bearer": {"oidc": [rule]}});
    let system = System::start(Setup { auth, access_control, ..Setup::default() }).await;
    claims["aud"] = json!("registry.company");
    let token = signed(&issuer, claims).await;
    for (client, script) in CLIENTS {
        let (Some(_), Some(bash)) = (tools::find(client), tools::find("bash")) else { continue };
        if client.starts_with("docker") && !run(Command::new("docker").arg("info")).success {
            tools::skip("no docker engine runs");
            continue;
        }
        let job = folder.path().join(client).join("job");
        std::fs::create_dir_all(&job).unwrap();
        std::fs::write(job.join("Dockerfile"), "FROM scratch\nCOPY Dockerfile /\n").unwrap();
        Image::new(7, 1000).write_layout(&job.join("layout"), "1");
        let host = system.authority();
        let to = format!("{host}/team/by-{client}:1");
        let mut command = Command::new(bash);
        command.args(["-euo", "pipefail", "-c", script]).current_dir(&job).env("HOME", &job);
        let pushed = run(command.env("HOST", host).env("TO", &to).env("TOKEN", &token));
        assert!(pushed.success, "{client}: {}", pushed.printed);
        let (repository, tag) =
            if client == "helm" { ("by-helm/app", "0.1.0") } else { (&*format!("by-{client}"), "1") };
        let there = Api::basic(&system.url, "x", &token).get(&format!("/v2/team/{repository}/manifests/{tag}")).await;
        assert_eq!(there.status(), StatusCode::OK, "{client}");
    }
    // Who pushed is in the log, and by what.
    system.proxy.prints("user=\"github-team/app\" credential=\"workload\"").await;
}
