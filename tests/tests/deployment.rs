//! The image and the compose file.

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use berth_tests::{
    api::{Api, Credential},
    images::Image,
    person::Person,
    process::{free_port, wait_for},
    system::{answers, binary},
    tools::{self, must, run},
};
use reqwest::{Method, StatusCode};
use serde_json::json;

use crate::authority::Authority;

pub fn checkout() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

/// `docker compose`: the plug-in if there is one, or else the program of its own.
fn compose() -> Option<Command> {
    let mut command = if run(Command::new("sh").args(["-c", "docker compose version"])).success {
        let mut command = Command::new("docker");
        command.arg("compose");
        command
    } else {
        Command::new(tools::find("docker-compose")?)
    };
    command.current_dir(checkout());
    Some(command)
}

#[test]
fn the_compose_files_are_valid_and_leave_authentik_s_containers_as_they_are() {
    let names = [("BERTH_HOST", "registry.company"), ("AUTHENTIK_HOST", "auth.company")];
    for files in [&["compose.yaml"][..], &["compose.yaml", "compose.tls.yaml"]] {
        let Some(mut command) = compose() else { return };
        command.args(files.iter().flat_map(|file| ["--file", file]));
        let printed = must(command.arg("config").envs(names));
        let config: serde_json::Value = serde_saphyr::from_str(&printed).unwrap();
        for name in ["server", "worker"] {
            let service = &config["services"][name];
            assert!(service["entrypoint"].is_null(), "{service}");
            assert!(service["image"].as_str().unwrap().starts_with("ghcr.io/goauthentik/server:2026.8"), "{service}");
            assert!(!service["shm_size"].is_null() && service.to_string().contains("/data"), "{service}");
        }
        if files.len() == 2 {
            assert!(printed.contains("BERTH_URL: https://registry.company"), "{printed}");
        }
    }
}

#[test]
fn the_reverse_proxy_s_configuration_is_valid() {
    let Some(caddy) = tools::find("caddy") else { return };
    let file = checkout().join("deploy/compose/Caddyfile");
    let names = [("BERTH_HOST", "registry.company"), ("AUTHENTIK_HOST", "auth.company")];
    must(Command::new(caddy).args(["validate", "--adapter", "caddyfile", "--config"]).arg(file).envs(names));
}

#[test]
fn authentik_s_models_take_every_attribute_of_the_blueprint() {
    let Some(node) = tools::find("node") else { return };
    let home = Path::new(env!("CARGO_MANIFEST_DIR")).join("provider");
    if !home.join("node_modules/@goauthentik/api").is_dir() {
        return tools::skip("the npm package @goauthentik/api is not installed in tests/provider");
    }
    let check = |file: &Path| run(Command::new(&node).arg("blueprint.mjs").arg(file).current_dir(&home));
    let file = checkout().join("deploy/authentik/berth.yaml");
    let checked = check(&file);
    assert!(checked.success, "{}", checked.printed);
    // What is wrong is found.
    let folder = tempfile::tempdir().unwrap();
    let text = std::fs::read_to_string(file).unwrap();
    for (from, to, expected) in [
        ("logout_method:", "logout_metod:", "logout_metod: the model has no such field"),
        ("- client_credentials", "- client_credential", "client_credential is no value of it"),
        ("      grant_types:", "      sub_mode: hashed_user_id\n      grants:", "grant_types: is missing"),
        ("      name: Berth\n      provider", "      provider", "a required field is missing"),
    ] {
        let path = folder.path().join("wrong.yaml");
        assert!(text.contains(from), "{from}");
        std::fs::write(&path, text.replace(from, to)).unwrap();
        let checked = check(&path);
        assert!(!checked.success && checked.printed.contains(expected), "{from}: {}", checked.printed);
    }
}

#[test]
fn both_accept_the_compose_file_s_configuration() {
    let folder = tempfile::tempdir().unwrap();
    let text = std::fs::read_to_string(checkout().join("deploy/compose/config.json")).unwrap();
    let credentials = folder.path().join("oidc-credentials.json");
    std::fs::write(&credentials, r#"{"clientid": "berth", "clientsecret": "x"}"#).unwrap();
    let text = text.replace("/run/secrets/oidc-credentials.json", credentials.to_str().unwrap());
    let token = folder.path().join("scim-token");
    std::fs::write(&token, "a-token-of-twenty-characters").unwrap();
    let text = text.replace("/run/secrets/scim-token", token.to_str().unwrap());
    let text = text.replace("/var/lib/berth", folder.path().to_str().unwrap());
    let config = folder.path().join("config.json");
    std::fs::write(&config, text).unwrap();
    for name in ["berth-proxy", "berth-registry"] {
        must(Command::new(binary(name)).arg("verify").arg(&config));
    }
}

#[test]
fn the_secrets_are_made_once_and_each_service_gets_its_own() {
    use std::os::unix::fs::{MetadataExt, PermissionsExt};
    if must(Command::new("id").arg("-u")).trim() != "0" {
        return tools::skip("only root gives files to others");
    }
    let folder = tempfile::tempdir().unwrap();
    let folders = folder.path();
    let make = |names: &[(&str, &str)]| {
        let mut command = Command::new("sh");
        command.arg(checkout().join("deploy/compose/setup.sh")).arg(folders);
        must(command.arg(checkout().join("deploy/compose/config.json")).envs(names.iter().copied()));
        std::fs::read_to_string(folders.join("proxy/oidc-credentials.json")).unwrap()
    };
    let first = make(&[]);
    let credentials: serde_json::Value = serde_json::from_str(&first).unwrap();
    assert_eq!(credentials["clientid"], "berth");
    assert!(credentials["clientsecret"].as_str().unwrap().len() >= 40);
    for (name, owner, files) in
        [("authentik", 1000, 6), ("postgresql", 70, 1), ("proxy", 65532, 2), ("config", 65532, 1)]
    {
        let entries: Vec<_> = std::fs::read_dir(folders.join(name)).unwrap().map(|entry| entry.unwrap()).collect();
        assert_eq!(entries.len(), files, "{name}");
        for entry in entries {
            let metadata = entry.metadata().unwrap();
            let mode = metadata.permissions().mode() & 0o777;
            assert_eq!((metadata.uid(), mode), (owner, 0o400), "{name}: {:?}", entry.file_name());
        }
    }
    let names = [("BERTH_URL", "https://r.company"), ("BERTH_TRUSTED_PROXIES", "\"10.0.0.1\"")];
    assert_eq!(make(&names), first);
    let config = std::fs::read_to_string(folders.join("config/config.json")).unwrap();
    let config: serde_json::Value = serde_json::from_str(&config).unwrap();
    assert_eq!(config["http"]["externalUrl"], "https://r.company");
    assert_eq!(config["sidecar"]["trustedProxies"], json!(["10.0.0.1"]));
}

/// Makes the image that the Dockerfile makes, of programs that are here already.
pub fn berth_image(docker: &Path, work: &Path, name: &str) {
    let root = work.join("berth");
    let programs = binary("berth-proxy");
    must(Command::new(checkout().join("deploy/image.sh")).arg(programs.parent().unwrap()).arg(&root));
    import(docker, &root, name, "65532:65532");
}

/// Makes an image of a folder.
pub fn import(docker: &Path, root: &Path, name: &str, user: &str) {
    let archive = root.with_extension("tar");
    must(Command::new("tar").arg("-C").arg(root).arg("-cf").arg(&archive).arg("."));
    let mut command = Command::new(docker);
    command.args(["import", "--change", &format!("USER {user}"), "--change", "ENV PATH=/usr/bin:/bin"]);
    must(command.arg(&archive).arg(name));
    std::fs::remove_file(archive).unwrap();
}

/// The compose file's services, ended with all that they have when this is dropped.
struct Project {
    files: Vec<PathBuf>,
    name: String,
    env: Vec<(&'static str, String)>,
    docker: PathBuf,
    images: Vec<String>,
}

impl Project {
    fn compose(&self, arguments: &[&str]) -> Command {
        let mut command = compose().expect("docker compose");
        command.args(["--project-name", &self.name]);
        for file in &self.files {
            command.arg("--file").arg(file);
        }
        command.args(arguments).envs(self.env.iter().map(|(name, value)| (name, value)));
        command
    }

    /// A script of ours that works on these services.
    fn command_of(&self, script: &str) -> Command {
        let compose = self.compose(&[]);
        let words = std::iter::once(compose.get_program()).chain(compose.get_args());
        let words: Vec<_> = words.map(|word| word.to_string_lossy().into_owned()).collect();
        let mut command = Command::new(checkout().join(script));
        command.env("COMPOSE", words.join(" ")).env("COMPOSE_UP_OPTIONS", "--no-build");
        command.envs(self.env.iter().map(|(name, value)| (name, value)));
        command
    }

    fn address(&self, service: &str) -> String {
        let id = must(&mut self.compose(&["ps", "-q", service]));
        let format = "{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}";
        must(Command::new(&self.docker).args(["inspect", "--format", format, id.trim()])).trim().to_owned()
    }
}

impl Drop for Project {
    fn drop(&mut self) {
        run(&mut self.compose(&["down", "--volumes", "--timeout", "1"]));
        self.images.iter().for_each(|image| drop(run(Command::new(&self.docker).args(["rmi", "--force", image]))));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_compose_file_signs_people_in_and_lets_ci_push() {
    let (Some(docker), Some(busybox)) = (tools::find("docker"), tools::find("busybox")) else { return };
    if !run(Command::new(&docker).arg("info")).success || compose().is_none() {
        return tools::skip("no docker engine runs");
    }
    let folder = tempfile::tempdir().unwrap();
    let (work, id) = (folder.path(), std::process::id());
    let [berth, stand_in, shell] = rehearsal_images(&docker, &busybox, work, &id.to_string());
    let services = rehearsal_services(&stand_in, &shell, "http://authentik.localhost:9000");
    let rehearsal = json!({"services": services});
    let override_file = work.join("rehearsal.json");
    std::fs::write(&override_file, rehearsal.to_string()).unwrap();
    let (port, provider_port) = (free_port(), free_port());
    let url = format!("http://localhost:{port}");
    let project = Project {
        files: vec![checkout().join("compose.yaml"), override_file],
        name: format!("berth{id}"),
        env: vec![
            ("BERTH_IMAGE", berth.clone()),
            ("POSTGRESQL_IMAGE", shell.clone()),
            ("BERTH_URL", url.clone()),
            ("BERTH_PORT", port.to_string()),
            ("AUTHENTIK_PORT", provider_port.to_string()),
        ],
        docker,
        images: vec![berth, stand_in, shell],
    };
    must(&mut project.compose(&["up", "--detach", "--no-build"]));
    wait_for("the proxy to be ready", async || {
        reqwest::get(format!("{url}/readyz")).await.ok()?.status().is_success().then_some(())
    })
    .await;

    // A browser knows authentik.localhost; here it is looked up.
    let provider: std::net::IpAddr = project.address("server").parse().unwrap();
    answers(&format!("http://{provider}:9000/application/o/berth/.well-known/openid-configuration")).await;
    let client = reqwest::Client::builder().resolve("authentik.localhost", (provider, 9000).into());
    let alice = Person::with(&url, client);
    let page = alice.sign_in("alice", "alice").await.text().await.unwrap();
    assert!(page.contains("Signed in as alice"), "{page}");
    let (key, _) = alice.make_key("a").await;
    let by_key = Api::basic(&url, "alice", &key);
    assert_eq!(by_key.post("/v2/team/app/blobs/uploads/").await.status(), StatusCode::FORBIDDEN);
    // Who is in authentik's group pushes: the service account, with the password that was generated for it.
    let passwords = must(&mut project.compose(&["run", "--rm", "passwords"]));
    let password = passwords.lines().find_map(|line| line.trim().strip_prefix("ci-password: ")).unwrap().to_owned();
    let group = format!("http://{provider}:9000/test/groups/ci-robot/registry-ci");
    reqwest::Client::new().post(group).send().await.unwrap();
    Api::basic(&url, "ci-robot", &password).must_push("team/app", "1", &Image::new(1, 1000)).await;
    assert_eq!(by_key.get("/v2/team/app/manifests/1").await.status(), StatusCode::OK);

    // What is kept survives a new start of everything, and the secrets stay.
    must(&mut project.compose(&["down", "--timeout", "5"]));
    must(&mut project.compose(&["up", "--detach", "--no-build"]));
    wait_for("the image after a new start", async || {
        let answer = by_key.request(Method::GET, "/v2/team/app/manifests/1").send().await.ok()?;
        answer.status().is_success().then_some(())
    })
    .await;
    // Everything is lost, and comes back from a backup that was made while all of it ran.
    let backup = work.join("backup");
    let script = |name: &str| {
        let mut command = project.command_of(&format!("deploy/{name}"));
        must(command.arg(&backup))
    };
    assert!(script("backup.sh").contains("everything is in"));
    let mode = std::fs::metadata(backup.join("proxy/proxy.key")).unwrap().permissions();
    assert_eq!(std::os::unix::fs::PermissionsExt::mode(&mode) & 0o777, 0o600);
    let dumped = std::fs::read_to_string(backup.join("authentik.dump")).unwrap();
    assert_eq!(dumped.trim(), "--username authentik --format custom authentik");
    must(&mut project.compose(&["down", "--volumes", "--timeout", "5"]));
    assert!(script("restore.sh").contains("everything is back"));
    wait_for("the image after the restoration", async || {
        let answer = by_key.request(Method::GET, "/v2/team/app/manifests/1").send().await.ok()?;
        answer.status().is_success().then_some(())
    })
    .await;
    // The session of before, and the password that was generated then.
    assert!(alice.get("/").await.text().await.unwrap().contains("Signed in as alice"));
    assert!(must(&mut project.compose(&["run", "--rm", "passwords"])).contains(&password));

    // Its log is JSON, one object a line, and names no secret.
    let log = must(&mut project.compose(&["logs", "--no-color", "proxy"]));
    let lines = log.lines().filter_map(|line| line.split_once('|')).map(|(_, line)| line.trim());
    let parsed = lines.filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok());
    assert!(parsed.filter(|line| line["message"] == "request").count() > 0, "{log}");
    assert!(!log.contains(&password) && !log.contains(&key));
    // The registry reads no secret, and reaches nothing.
    let registry = must(&mut project.compose(&["ps", "-q", "registry"]));
    let inspected = must(Command::new(&project.docker).args(["inspect", registry.trim()]));
    let inspected: serde_json::Value = serde_json::from_str(&inspected).unwrap();
    let mounts = inspected[0]["Mounts"].to_string();
    assert!(!mounts.contains("/run/secrets"), "{mounts}");
    assert_eq!(inspected[0]["HostConfig"]["NetworkMode"], "none");
}

/// The images of the rehearsal: Berth's own, the stand-in in authentik's place, and one with a shell in PostgreSQL's, for the
/// service that makes the secrets.
fn rehearsal_images(docker: &Path, busybox: &Path, work: &Path, id: &str) -> [String; 3] {
    let image = |name: &str| format!("berth-compose-{name}-{id}");
    let (berth, stand_in, shell) = (image("berth"), image("stand-in"), image("shell"));
    berth_image(docker, work, &berth);
    // Without a shell, as authentik's own image will be.
    let root = work.join("stand-in");
    let programs = binary("berth-stand-in");
    let script = checkout().join("deploy/image.sh");
    must(Command::new(script).arg(programs.parent().unwrap()).arg(&root).arg("berth-stand-in"));
    import(docker, &root, &stand_in, "1000:1000");
    let root = work.join("shell");
    std::fs::create_dir_all(root.join("bin")).unwrap();
    std::fs::copy(busybox, root.join("bin/busybox")).unwrap();
    for name in ["sh", "sed", "cat", "cp", "mv", "mkdir", "chown", "chmod", "head", "base64", "tr", "sleep", "true"] {
        std::os::unix::fs::symlink("busybox", root.join("bin").join(name)).unwrap();
    }
    // The tools of PostgreSQL say what they are asked, and take it back.
    for (name, script) in [("pg_dump", "echo \"$@\""), ("pg_isready", "true"), ("pg_restore", "cat")] {
        let path = root.join("bin").join(name);
        std::fs::write(&path, format!("#!/bin/sh\n{script}\n")).unwrap();
        std::fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    }
    import(docker, &root, &shell, "0:0");
    [berth, stand_in, shell]
}

/// What the rehearsal puts in the places of authentik and PostgreSQL: the stand-in, which says that it is at `origin` and
/// reads the very blueprint.
fn rehearsal_services(stand_in: &str, shell: &str, origin: &str) -> serde_json::Value {
    let serve = ["berth-stand-in", "--listen", "0.0.0.0:9000", "--origin", origin, "--blueprint"];
    let serve: Vec<_> = serve.into_iter().chain(["/blueprints/custom/berth/berth.yaml"]).collect();
    let nothing = json!({"image": shell, "entrypoint": ["sleep"], "command": ["1000000"]});
    let mut database = nothing.clone();
    database["healthcheck"] = json!({"test": ["CMD", "true"], "interval": "1s", "timeout": "5s", "retries": 3});
    json!({"server": {"image": stand_in, "command": serve}, "worker": nothing, "postgresql": database})
}

/// The same behind Caddy, whose certificates are of an authority of the test: Caddy takes what it finds for the names below
/// `.localhost`, for which it asks nobody else.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_compose_file_with_tls_signs_people_in_behind_caddy() {
    let (Some(docker), Some(busybox)) = (tools::find("docker"), tools::find("busybox")) else { return };
    let Some(caddy) = tools::find("caddy") else { return };
    if !run(Command::new(&docker).arg("info")).success || compose().is_none() {
        return tools::skip("no docker engine runs");
    }
    let folder = tempfile::tempdir().unwrap();
    let (work, id) = (folder.path(), format!("tls-{}", std::process::id()));
    let [berth, stand_in, shell] = rehearsal_images(&docker, &busybox, work, &id);
    let caddy_image = format!("berth-compose-caddy-{id}");
    let root = work.join("caddy");
    must(Command::new(checkout().join("deploy/image.sh")).arg(caddy.parent().unwrap()).arg(&root).arg("caddy"));
    let authority = Authority::new();
    let place = root.join("data/caddy/pki/authorities/local");
    std::fs::create_dir_all(&place).unwrap();
    std::fs::write(place.join("root.crt"), &authority.pem).unwrap();
    std::fs::write(place.join("root.key"), authority.key()).unwrap();
    import(&docker, &root, &caddy_image, "0:0");
    let ca = work.join("ca.crt");
    std::fs::write(&ca, &authority.pem).unwrap();
    must(Command::new("chmod").args(["-R", "a+rX"]).arg(work));

    let [berth_host, authentik_host] = ["registry.localhost", "auth.localhost"];
    let mut services = rehearsal_services(&stand_in, &shell, &format!("https://{authentik_host}"));
    services["caddy"] = json!({
        "command": ["caddy", "run", "--config", "/etc/caddy/Caddyfile", "--adapter", "caddyfile"],
        "environment": {"XDG_DATA_HOME": "/data", "XDG_CONFIG_HOME": "/data/config"},
    });
    services["proxy"] = json!({
        "environment": {"SSL_CERT_FILE": "/ca.crt"}, "volumes": [format!("{}:/ca.crt:ro", ca.display())],
    });
    let override_file = work.join("rehearsal.json");
    std::fs::write(&override_file, json!({"services": services}).to_string()).unwrap();
    let project = Project {
        files: vec![checkout().join("compose.yaml"), checkout().join("compose.tls.yaml"), override_file],
        name: format!("berth{id}"),
        env: vec![
            ("BERTH_IMAGE", berth.clone()),
            ("POSTGRESQL_IMAGE", shell.clone()),
            ("CADDY_IMAGE", caddy_image.clone()),
            ("BERTH_HOST", berth_host.to_owned()),
            ("AUTHENTIK_HOST", authentik_host.to_owned()),
            ("BERTH_PORT", free_port().to_string()),
            ("AUTHENTIK_PORT", free_port().to_string()),
            ("HTTP_PORT", free_port().to_string()),
            ("HTTPS_PORT", free_port().to_string()),
        ],
        docker,
        images: vec![berth, stand_in, shell, caddy_image],
    };
    must(&mut project.compose(&["up", "--detach", "--no-build"]));
    let front: std::net::IpAddr = project.address("caddy").parse().unwrap();
    let client = || {
        let certificate = reqwest::Certificate::from_pem(authority.pem.as_bytes()).unwrap();
        let client = reqwest::Client::builder().tls_certs_only([certificate]);
        client.resolve(berth_host, (front, 443).into()).resolve(authentik_host, (front, 443).into())
    };
    let (url, asking) = (format!("https://{berth_host}"), client().build().unwrap());
    wait_for("the proxy to be ready", async || {
        asking.get(format!("{url}/readyz")).send().await.ok()?.status().is_success().then_some(())
    })
    .await;
    let discovery = format!("https://{authentik_host}/application/o/berth/.well-known/openid-configuration");
    wait_for("the provider", async || asking.get(&discovery).send().await.ok()?.status().is_success().then_some(()))
        .await;
    let alice = Person::with(&url, client());
    let page = alice.sign_in("alice", "alice").await.text().await.unwrap();
    assert!(page.contains("Signed in as alice"), "{page}");
    // Plain http leads to https, and a layer goes through.
    let passwords = must(&mut project.compose(&["run", "--rm", "passwords"]));
    let password = passwords.lines().find_map(|line| line.trim().strip_prefix("ci-password: ")).unwrap().to_owned();
    let group = format!("https://{authentik_host}/test/groups/ci-robot/registry-ci");
    asking.post(group).send().await.unwrap();
    let ci = Api::over(&url, asking.clone(), Credential::Basic("ci-robot".to_owned(), password));
    ci.must_push("team/app", "1", &Image::new(1, 20_000_000)).await;
    let plain = client().resolve(berth_host, (front, 80).into()).redirect(reqwest::redirect::Policy::none());
    let answer = plain.build().unwrap().get(format!("http://{berth_host}/")).send().await.unwrap();
    assert_eq!(answer.headers()["location"], format!("{url}/"));
    // Berth believes Caddy, and nobody else, who the client is.
    let log = must(&mut project.compose(&["logs", "--no-color", "proxy"]));
    let gateway = log.lines().find(|line| line.contains("push_manifest")).unwrap();
    assert!(!gateway.contains("172.31.255.2\""), "{gateway}");
}

/// Containers and an image, removed when this is dropped.
struct Containers {
    docker: PathBuf,
    image: String,
    names: Vec<String>,
}

impl Containers {
    fn docker(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(&self.docker);
        command.args(arguments);
        command
    }
}

impl Drop for Containers {
    fn drop(&mut self) {
        for name in &self.names {
            run(&mut self.docker(&["rm", "--force", "--volumes", name]));
        }
        run(&mut self.docker(&["rmi", "--force", &self.image]));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn in_containers_only_the_proxy_reaches_the_registry() {
    let Some(docker) = tools::find("docker") else { return };
    if !run(Command::new(&docker).arg("info")).success {
        return tools::skip("no docker engine runs");
    }
    let folder = tempfile::tempdir().unwrap();
    let work = folder.path();
    let id = std::process::id();
    let mut containers = Containers { docker, image: format!("berth-test-{id}"), names: Vec::new() };

    berth_image(&containers.docker, work, &containers.image);

    let etc = work.join("etc");
    std::fs::create_dir(&etc).unwrap();
    std::fs::write(etc.join("oidc-credentials.json"), r#"{"clientid": "a", "clientsecret": "b"}"#).unwrap();
    let config = json!({
        "http": {"address": "0.0.0.0", "port": "8080", "externalUrl": "http://localhost:8080", "auth": {"openid": {
            "providers": {"oidc": {"credentialsFile": "/etc/berth/oidc-credentials.json",
                "issuer": "http://authentik.invalid/application/o/berth/"}}}}},
    });
    std::fs::write(etc.join("config.json"), config.to_string()).unwrap();
    must(Command::new("chmod").arg("-R").arg("a+rX").arg(work));

    let (proxy, registry) = (format!("berth-proxy-{id}"), format!("berth-registry-{id}"));
    let mount = format!("{}:/etc/berth:ro", etc.display());
    let network = format!("container:{proxy}");
    for (name, program, network) in [(&proxy, "berth-proxy", "bridge"), (&registry, "berth-registry", &*network)] {
        containers.names.push(name.clone());
        let start = ["run", "--detach", "--name", name, "--network", network, "--volume", &mount, "--cap-drop", "ALL"];
        must(containers.docker(&start).args([&containers.image, program, "serve", "/etc/berth/config.json"]));
    }
    // The health checks, by the programs themselves, in an image without a shell.
    for (name, program) in [(&proxy, "berth-proxy"), (&registry, "berth-registry")] {
        wait_for(program, async || {
            let check = ["exec", name.as_str(), program, "health", "/etc/berth/config.json"];
            run(&mut containers.docker(&check)).success.then_some(())
        })
        .await;
    }
    assert!(!run(&mut containers.docker(&["exec", &proxy, "sh", "-c", "true"])).success, "there is a shell");

    // From here, another network namespace: the proxy's port is open, and the registry's is not.
    let inspect = ["inspect", "--format", "{{.NetworkSettings.IPAddress}}", &proxy];
    let address = must(&mut containers.docker(&inspect));
    let address = address.trim();
    let answer = reqwest::get(format!("http://{address}:8080/v2/")).await.unwrap();
    assert_eq!(answer.status(), reqwest::StatusCode::UNAUTHORIZED);
    let refused = tokio::net::TcpStream::connect(format!("{address}:5000")).await;
    assert_eq!(refused.unwrap_err().kind(), std::io::ErrorKind::ConnectionRefused);
}
