//! Real clients, through the proxy, with an API key: in front of `berth-registry`, and in front of another registry.

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use berth_tests::{
    images::Image,
    system::{Setup, System, demonstration_rules},
    tools::{self, must, run},
};

/// A system with the demonstration's rules, and the keys of its people.
struct Demonstration {
    system: System,
    alice: String,
    bob: String,
    work: tempfile::TempDir,
}

impl Demonstration {
    async fn start() -> Self {
        let system = System::start(Setup { access_control: demonstration_rules(), ..Setup::default() }).await;
        let (alice, _) = system.signed_in("alice").await.make_key("alice").await;
        let (bob, _) = system.signed_in("bob").await.make_key("bob").await;
        Self { system, alice, bob, work: tempfile::tempdir().unwrap() }
    }

    /// The same in front of CNCF Distribution; nothing, if that isn't installed.
    async fn in_front_of_another() -> Option<Self> {
        let setup = Setup { access_control: demonstration_rules(), unix_socket: false, ..Setup::default() };
        let mut system = System::start(setup).await;
        let (alice, _) = system.signed_in("alice").await.make_key("alice").await;
        let (bob, _) = system.signed_in("bob").await.make_key("bob").await;
        system.use_another_registry().await?;
        Some(Self { system, alice, bob, work: tempfile::tempdir().unwrap() })
    }

    fn image(&self, name: &str) -> String {
        format!("{}/{name}", self.system.authority())
    }

    fn layout(&self, image: &Image, tag: &str) -> PathBuf {
        let folder = self.work.path().join("layout");
        image.write_layout(&folder, tag);
        folder
    }
}

/// The docker CLI with a configuration of its own, and the engine that runs on this machine.
struct Docker {
    program: PathBuf,
    config: PathBuf,
}

impl Docker {
    fn find(work: &Path, who: &str) -> Option<Self> {
        let program = tools::find("docker")?;
        let docker = Self { program, config: work.join(format!("docker-{who}")) };
        if !run(&mut docker.command(&["info"])).success {
            tools::skip("no docker engine runs");
            return None;
        }
        Some(docker)
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(&self.program);
        command.arg("--config").arg(&self.config).args(arguments);
        command
    }

    fn login(&self, authority: &str, user: &str, key: &str) {
        must(&mut self.command(&["login", "--username", user, "--password", key, authority]));
    }

    /// An image in the engine, with this file system.
    fn import(&self, work: &Path, image: &Image, name: &str) {
        let archive = work.join("layer.tar");
        std::fs::write(&archive, &image.layer).unwrap();
        must(&mut self.command(&["import", archive.to_str().unwrap(), name]));
    }

    fn remove(&self, name: &str) {
        run(&mut self.command(&["rmi", "--force", name]));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn docker_logs_in_pushes_pulls_and_logs_out() {
    // A few hundred MB.
    docker_with(&Demonstration::start().await, 300_000_000);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn docker_works_in_front_of_another_registry() {
    let Some(demo) = Demonstration::in_front_of_another().await else { return };
    docker_with(&demo, 3_000_000);
}

fn docker_with(demo: &Demonstration, size: usize) {
    let Some(docker) = Docker::find(demo.work.path(), "alice") else { return };
    let Some(bob) = Docker::find(demo.work.path(), "bob") else { return };
    let wrong = docker.command(&["login", "-u", "alice", "-p", "wrong", demo.system.authority()]).output().unwrap();
    assert!(!wrong.status.success());
    docker.login(demo.system.authority(), "alice", &demo.alice);

    let (app, public) = (demo.image("shared/app:1"), demo.image("public/app:1"));
    docker.import(demo.work.path(), &Image::new(1, size), &app);
    must(&mut docker.command(&["push", &app]));
    docker.remove(&app);
    must(&mut docker.command(&["pull", &app]));

    // A second repository: docker mounts the layer.
    must(&mut docker.command(&["tag", &app, &public]));
    let printed = must(&mut docker.command(&["push", &public]));
    assert!(printed.contains("Mounted from shared/app"), "{printed}");

    // bob may pull it and not push it: a denial, and not a loop.
    bob.login(demo.system.authority(), "bob", &demo.bob);
    must(&mut bob.command(&["pull", &app]));
    let refused = run(&mut bob.command(&["push", &app]));
    assert!(!refused.success && refused.printed.contains("denied"), "{}", refused.printed);

    // Anonymously: what is public, beside what is private.
    must(&mut docker.command(&["logout", demo.system.authority()]));
    docker.remove(&public);
    must(&mut docker.command(&["pull", &public]));
    let refused = run(&mut docker.command(&["pull", &app]));
    assert!(!refused.success && refused.printed.contains("denied"), "{}", refused.printed);
    for name in [&app, &public] {
        docker.remove(name);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn podman_logs_in_pushes_and_pulls() {
    podman_with(&Demonstration::start().await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn podman_works_in_front_of_another_registry() {
    let Some(demo) = Demonstration::in_front_of_another().await else { return };
    podman_with(&demo);
}

fn podman_with(demo: &Demonstration) {
    let Some(podman) = tools::find("podman") else { return };
    let work = demo.work.path();
    let archive = work.join("layer.tar");
    std::fs::write(&archive, Image::new(2, 5_000_000).layer).unwrap();
    let command = |arguments: &[&str]| {
        let mut command = Command::new(&podman);
        command.arg("--root").arg(work.join("root")).arg("--runroot").arg(work.join("runroot"));
        command.args(["--storage-driver", "vfs"]).args(arguments).env("REGISTRY_AUTH_FILE", work.join("podman.json"));
        command
    };
    let login = ["login", "--tls-verify=false", "-u", "alice", "-p", &demo.alice, demo.system.authority()];
    must(&mut command(&login));
    let image = demo.image("private/app:1");
    must(&mut command(&["import", archive.to_str().unwrap(), &image]));
    must(&mut command(&["push", "--tls-verify=false", &image]));
    must(&mut command(&["rmi", "--all", "--force"]));
    must(&mut command(&["pull", "--tls-verify=false", &image]));
    must(&mut command(&["logout", demo.system.authority()]));
    assert!(!run(&mut command(&["pull", "--tls-verify=false", &image])).success);
    must(&mut command(&["rmi", "--all", "--force"]));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn skopeo_copies_all_tags_and_deletes() {
    skopeo_with(&Demonstration::start().await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn skopeo_works_in_front_of_another_registry() {
    let Some(demo) = Demonstration::in_front_of_another().await else { return };
    skopeo_with(&demo);
}

fn skopeo_with(demo: &Demonstration) {
    let Some(skopeo) = tools::find("skopeo") else { return };
    let command = |arguments: &[&str]| {
        let mut command = Command::new(&skopeo);
        command.args(arguments).env("REGISTRY_AUTH_FILE", demo.work.path().join("skopeo.json"));
        command
    };
    let login = ["login", "--tls-verify=false", "-u", "alice", "-p", &demo.alice, demo.system.authority()];
    must(&mut command(&login));
    for (seed, tag) in [(3, "1"), (4, "2"), (5, "latest")] {
        let layout = demo.layout(&Image::new(seed, 1_000_000), tag);
        let source = format!("oci:{}:{tag}", layout.display());
        let target = format!("docker://{}", demo.image(&format!("a/app:{tag}")));
        must(&mut command(&["copy", "--dest-tls-verify=false", &source, &target]));
    }
    // Every tag, from one repository to another.
    let sync = ["sync", "--src-tls-verify=false", "--dest-tls-verify=false", "--src", "docker", "--dest", "docker"];
    let (from, to) = (demo.image("a/app"), demo.image("mirror"));
    must(command(&sync).args([&from, &to]));
    let listed =
        must(&mut command(&["list-tags", "--tls-verify=false", &format!("docker://{}", demo.image("mirror/app"))]));
    assert!(["\"1\"", "\"2\"", "\"latest\""].iter().all(|tag| listed.contains(tag)), "{listed}");
    // And back to files.
    let back = format!("oci:{}:2", demo.work.path().join("back").display());
    let source = format!("docker://{}", demo.image("mirror/app:2"));
    must(&mut command(&["copy", "--src-tls-verify=false", &source, &back]));
    must(&mut command(&["delete", "--tls-verify=false", &source]));
    assert!(!run(&mut command(&["inspect", "--tls-verify=false", &source])).success);
    must(&mut command(&["inspect", "--tls-verify=false", &format!("docker://{}", demo.image("mirror/app:1"))]));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_oci_client_crate_pushes_and_pulls() {
    oci_client_with(&Demonstration::start().await).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_oci_client_crate_works_in_front_of_another_registry() {
    let Some(demo) = Demonstration::in_front_of_another().await else { return };
    oci_client_with(&demo).await;
}

async fn oci_client_with(demo: &Demonstration) {
    use oci_client::{
        Client, Reference,
        client::{ClientConfig, ClientProtocol, Config, ImageLayer},
        manifest::IMAGE_LAYER_MEDIA_TYPE,
        secrets::RegistryAuth,
    };
    let client = Client::new(ClientConfig { protocol: ClientProtocol::Http, ..ClientConfig::default() });
    let reference: Reference = demo.image("shared/crate:1").parse().unwrap();
    let alice = RegistryAuth::Basic("alice".to_owned(), demo.alice.clone());
    let layers = [ImageLayer::new(vec![7; 100_000], IMAGE_LAYER_MEDIA_TYPE.to_owned(), None)];
    let config = Config::oci_v1(b"{}".to_vec(), None);
    client.push(&reference, &layers, config, &alice, None).await.unwrap();
    let client = Client::new(ClientConfig { protocol: ClientProtocol::Http, ..ClientConfig::default() });
    let bob = RegistryAuth::Basic("bob".to_owned(), demo.bob.clone());
    let pulled = client.pull(&reference, &bob, vec![IMAGE_LAYER_MEDIA_TYPE]).await.unwrap();
    assert_eq!(pulled.layers[0].data.len(), 100_000);
    let client = Client::new(ClientConfig { protocol: ClientProtocol::Http, ..ClientConfig::default() });
    assert!(client.pull(&reference, &RegistryAuth::Anonymous, vec![IMAGE_LAYER_MEDIA_TYPE]).await.is_err());
}
