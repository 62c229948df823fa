//! Real clients that ask the helper, which somebody has signed in with a browser.

use std::process::Command;

use berth_tests::{
    api::Api,
    images::Image,
    process::wait_for,
    system::System,
    tools::{self, run},
};
use reqwest::StatusCode;
use thirtyfour::prelude::*;

use super::{Machine, demonstration};
use crate::browser::Browser;

/// A client, and what it does in a folder with a Dockerfile and a layout: `$TO` is where to, `$HOST` the registry. None of them
/// logs in.
const CLIENTS: [(&str, &str); 8] = [
    (
        "docker",
        "docker build --quiet --tag $TO . && docker push $TO && docker rmi --force $TO && docker pull $TO && docker rmi $TO",
    ),
    (
        "docker-buildx",
        "mkdir -p $HOME/.docker/cli-plugins && ln -sf $(command -v docker-buildx) $HOME/.docker/cli-plugins/
         docker buildx build --quiet --tag $TO --push .",
    ),
    (
        "podman",
        "podman --root $PWD/p --runroot $PWD/r --storage-driver vfs build --isolation chroot --tag $TO .
         podman --root $PWD/p --runroot $PWD/r --storage-driver vfs push --tls-verify=false $TO",
    ),
    (
        "buildah",
        "buildah --root $PWD/b --runroot $PWD/c --storage-driver vfs build --isolation chroot --tag $TO .
         buildah --root $PWD/b --runroot $PWD/c --storage-driver vfs push --tls-verify=false $TO",
    ),
    (
        "skopeo",
        "skopeo copy --dest-tls-verify=false oci:layout:1 docker://$TO && skopeo inspect --tls-verify=false docker://$TO",
    ),
    ("crane", "crane push --insecure layout $TO && crane manifest --insecure $TO"),
    ("oras", "oras push --plain-http $TO Dockerfile:text/plain && oras pull --plain-http --output got $TO"),
    (
        "helm",
        "helm create app > /dev/null && helm package app > /dev/null
         helm push --plain-http app-0.1.0.tgz oci://$HOST/shared/by-helm
         helm pull --plain-http oci://$HOST/shared/by-helm/app --version 0.1.0 --destination got-chart || ls",
    ),
];

/// Somebody confirms the code in a browser, as they would.
async fn sign_in_with_a_browser(system: &System, machine: &Machine) -> Option<()> {
    let browser = Browser::start_with(machine.home.path(), &[]).await?;
    let waiting = machine.begin(system.authority(), &["--configure"]);
    browser.driver.goto(&waiting.page).await.unwrap();
    browser.click(By::LinkText("SIGN IN WITH OIDC")).await;
    browser.driver.query(By::Name("username")).first().await.unwrap().send_keys("alice").await.unwrap();
    browser.driver.find(By::Name("password")).await.unwrap().send_keys("alice").await.unwrap();
    browser.click(By::Css("button")).await;
    // Back at the code.
    browser.until("Sign in this terminal?").await;
    browser.until(&waiting.code).await;
    browser.click(By::XPath("//button[text()='Sign it in']")).await;
    browser.until("Go back to your terminal").await;
    browser.driver.clone().quit().await.unwrap();
    waiting.end(true);
    Some(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_client_pushes_after_a_code_was_confirmed_in_a_browser_and_none_after_the_logout() {
    let system = demonstration().await;
    let machine = Machine::new();
    let Some(()) = sign_in_with_a_browser(&system, &machine).await else { return };
    let host = system.authority();
    let (user, secret) = machine.get(host);
    let api = Api::basic(&system.url, &user, &secret);
    let work = tempfile::tempdir().unwrap();
    let attempt = |client: &str, script: &str, folder: &str| {
        let folder = work.path().join(folder).join(client);
        std::fs::create_dir_all(&folder).unwrap();
        std::fs::write(folder.join("Dockerfile"), "FROM scratch\nCOPY Dockerfile /\n").unwrap();
        Image::new(7, 1000).write_layout(&folder.join("layout"), "1");
        let mut command = machine.command("bash");
        command.args(["-euo", "pipefail", "-c", script]).current_dir(&folder);
        run(command.env("HOST", host).env("TO", format!("{host}/shared/by-{client}:1")))
    };
    let mut installed = Vec::new();
    for (client, script) in CLIENTS {
        if tools::find(client).is_none() {
            continue;
        }
        if client.starts_with("docker") && !run(Command::new("docker").arg("info")).success {
            tools::skip("no docker engine runs");
            continue;
        }
        installed.push((client, script));
        let pushed = attempt(client, script, "in");
        assert!(pushed.success, "{client}: {}", pushed.printed);
        let (repository, tag) =
            if client == "helm" { ("by-helm/app", "0.1.0") } else { (&*format!("by-{client}"), "1") };
        let there = api.get(&format!("/v2/shared/{repository}/manifests/{tag}")).await;
        assert_eq!(there.status(), StatusCode::OK, "{client}");
    }
    // docker writes down again what it got; the terminal stays one.
    if installed.iter().any(|(client, _)| *client == "docker") {
        assert!(run(machine.command("docker").args(["login", host])).success);
        assert!(machine.kept(host)["refreshToken"].is_string());
    }
    system.proxy.prints("user=\"alice\" credential=\"terminal\"").await;
    assert!(run(machine.helper().args(["logout", host])).success);
    for (client, script) in installed {
        assert!(!attempt(client, script, "out").success, "{client}");
    }
    wait_for("the end", async || (api.get("/v2/").await.status() == StatusCode::UNAUTHORIZED).then_some(())).await;
}
