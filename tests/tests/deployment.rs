//! The image and the compose file.

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use berth_tests::{
    process::wait_for,
    system::binary,
    tools::{self, must, run},
};
use serde_json::json;

fn checkout() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

#[test]
fn the_compose_file_is_valid() {
    // The plug-in if there is one, or else the program of its own.
    let with_plugin = run(Command::new("sh").args(["-c", "docker compose version"])).success;
    let mut command = if with_plugin {
        let mut command = Command::new("docker");
        command.arg("compose");
        command
    } else {
        let Some(program) = tools::find("docker-compose") else { return };
        Command::new(program)
    };
    let printed = must(command.args(["--file", "compose.yaml", "config"]).current_dir(checkout()));
    for expected in ["service:proxy", "berth-registry", "authentik/server"] {
        assert!(printed.contains(expected), "{expected} is missing: {printed}");
    }
}

#[test]
fn both_accept_the_compose_file_s_configuration() {
    let folder = tempfile::tempdir().unwrap();
    let text = std::fs::read_to_string(checkout().join("deploy/compose/config.json")).unwrap();
    let credentials = folder.path().join("oidc-credentials.json");
    std::fs::write(&credentials, r#"{"clientid": "berth", "clientsecret": "x"}"#).unwrap();
    let text = text.replace("/run/client/oidc-credentials.json", credentials.to_str().unwrap());
    let text = text.replace("/var/lib/berth", folder.path().to_str().unwrap());
    let config = folder.path().join("config.json");
    std::fs::write(&config, text).unwrap();
    for name in ["berth-proxy", "berth-registry"] {
        must(Command::new(binary(name)).arg("verify").arg(&config));
    }
}

#[test]
fn the_secrets_are_made_once() {
    let folder = tempfile::tempdir().unwrap();
    let (secrets, client) = (folder.path().join("secrets"), folder.path().join("client"));
    for folder in [&secrets, &client] {
        std::fs::create_dir(folder).unwrap();
    }
    let make = || {
        must(Command::new("sh").arg(checkout().join("deploy/compose/make-secrets.sh")).args([&secrets, &client]));
        // Berth gets nothing of the others.
        assert_eq!(std::fs::read_dir(&client).unwrap().count(), 1);
        std::fs::read_to_string(client.join("oidc-credentials.json")).unwrap()
    };
    let first = make();
    let credentials: serde_json::Value = serde_json::from_str(&first).unwrap();
    assert_eq!(credentials["clientid"], "berth");
    assert!(credentials["clientsecret"].as_str().unwrap().len() >= 40);
    assert_eq!(make(), first);
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

    // The image that the Dockerfile makes, of programs that are here already.
    let programs = binary("berth-proxy");
    let script = checkout().join("deploy/image.sh");
    must(Command::new(script).arg(programs.parent().unwrap()).arg(work.join("root")));
    let archive = work.join("root.tar");
    must(Command::new("tar").arg("-C").arg(work.join("root")).arg("-cf").arg(&archive).arg("."));
    let import = ["import", "--change", "USER 65532:65532", "--change", "ENV PATH=/usr/bin"];
    must(containers.docker(&import).arg(&archive).arg(&containers.image));

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
