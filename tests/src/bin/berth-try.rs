//! The whole system on this machine, for trying it out: see `try.sh`.

use std::{error::Error, fmt::Write, fs, path::Path};

use berth_tests::{
    process::free_port,
    stand_in::{ACCOUNTS, CI_PASSWORD, access_token},
    system::{CLIENT_ID, Setup, System, binary, demonstration_rules},
};
use serde_json::json;
use tokio::signal::unix::{SignalKind, signal};

/// The port that is tried first.
const PORT: u16 = 8080;

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let folder = Path::new("target/try");
    if folder.exists() {
        fs::remove_dir_all(folder)?;
    }
    fs::create_dir_all(folder)?;
    let folder = folder.canonicalize()?;
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let port = std::net::TcpListener::bind(("127.0.0.1", PORT)).map_or_else(|_| free_port(), |_| PORT);
    let (token_file, scim_token) = (folder.join("scim-token"), "the-stand-in-pushes-with-this-token".to_owned());
    fs::write(&token_file, &scim_token)?;
    let provider = json!({"scim": {"tokenFile": token_file}});
    let setup = Setup { access_control: demonstration_rules(), unix_socket: false, provider, ..Setup::default() };

    let started = async {
        let system = System::start_in(&folder, port, setup).await;
        let (key, _) = system.signed_in("alice").await.make_key("try").await;
        let jwt = access_token(&system.issuer, CLIENT_ID, "alice").await;
        let scim = json!({"url": format!("{}/scim/v2", system.url), "token": scim_token});
        system.at_stand_in("scim", scim).await;
        (system, key, jwt)
    };
    let (mut system, key, jwt) = tokio::select! {
        started = started => started,
        _ = terminate.recv() => return Ok(()),
        _ = interrupt.recv() => return Ok(()),
    };
    let robot = ACCOUNTS.iter().find(|account| account.is_service).ok_or("nobody has an app password")?;
    let mut env = String::new();
    for (name, value) in [
        ("BERTH_URL", system.url.clone()),
        ("BERTH_USER", "alice".to_owned()),
        ("BERTH_API_KEY", key.clone()),
        ("BERTH_APP_USER", robot.name.to_owned()),
        ("BERTH_APP_PASSWORD", CI_PASSWORD.to_owned()),
        ("BERTH_JWT", jwt),
        ("BERTH_ISSUER", system.issuer.clone()),
        ("BERTH_SCIM_URL", format!("{}/scim/v2", system.url)),
        ("BERTH_SCIM_TOKEN", scim_token.clone()),
        ("BERTH_CONFIG", system.config().display().to_string()),
        ("BERTH_PROXY_PID", system.proxy.id().to_string()),
        ("BERTH_REGISTRY_PID", system.registry.id().to_string()),
    ] {
        writeln!(env, "{name}='{value}'")?;
    }
    // Whoever waits for the file finds it whole.
    fs::write(folder.join("env.next"), env)?;
    fs::rename(folder.join("env.next"), folder.join("env"))?;

    let (url, authority) = (&system.url, system.authority());
    let (robot, password) = (robot.name, CI_PASSWORD);
    let people = format!("{}/people", system.provider_origin());
    let helper = binary("docker-credential-berth");
    let helpers = helper.parent().ok_or("the credential helper is in no folder")?.display();
    println!(
        "
Berth is running, with a stand-in for authentik.

  Open       {url}
  Click      SIGN IN WITH OIDC
  Type       alice and alice (may push anywhere), or bob and bob (may only read shared/…)

Push something, as alice:

  docker login -u alice -p {key} {authority}
  printf 'FROM scratch\\nCOPY README.md /\\n' | docker build -q -t {authority}/shared/hello:1 -f - .
  docker push {authority}/shared/hello:1

Or without a password: sign this terminal in with a code that you confirm in the browser (logout undoes it all):

  PATH={helpers}:$PATH
  docker-credential-berth login --configure {authority}
  docker push {authority}/shared/hello:1
  docker-credential-berth logout {authority}

A CI job may push to ci/… as the service account, with its app password:

  docker login -u {robot} -p {password} {authority}

Deactivate bob, or add him to a group, and see him out or in at once (the stand-in pushes it by SCIM):

  {people}

Another shell can read all of this: . target/try/env
The configuration and the logs are in target/try. Ctrl-C stops everything.
"
    );
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    system.proxy.terminate();
    system.registry.terminate();
    fs::remove_file(folder.join("env"))?;
    Ok(())
}
