//! `docker-credential-berth`: logs docker, podman and their kin in to a Berth registry, without a password that is stored.
//!
//! Clients ask it as they ask any credential helper (`get`, `store`, `erase`, `list`). On somebody's machine it has been signed in
//! once with a browser (`login`); in a CI job it finds the job's own identity; and under the name `berth-credential-provider` it
//! answers a kubelet with the identity of a pod's service account.

mod client;
mod configure;
mod host;
mod job;
mod kubelet;
mod login;
mod logins;
mod protocol;
mod system_keyring;

use std::{path::Path, process::ExitCode};

use clap::{Parser, Subcommand};

use self::host::Host;

/// The name under which a kubelet calls it.
const PROVIDER_NAME: &str = "berth-credential-provider";

#[derive(Parser)]
#[command(
    name = "docker-credential-berth",
    version,
    about = "Logs clients in to a Berth registry without a stored password"
)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Sign this terminal in: confirm a code in the browser
    Login(LoginArguments),
    /// Sign this terminal out
    Logout {
        /// The registry, as image names begin
        registry: Host,
    },
    /// Print a name and a secret for the registry that stands on standard input (docker's protocol)
    Get,
    /// Keep what `docker login` was given (docker's protocol)
    Store,
    /// Forget a registry, as `docker logout` does (docker's protocol)
    Erase,
    /// Print which registries are known (docker's protocol)
    List,
}

#[derive(clap::Args)]
struct LoginArguments {
    /// The registry, as image names begin: registry.company
    registry: Host,
    /// Only pull
    #[arg(long)]
    read_only: bool,
    /// Only in these repositories: team/** (may be given more than once)
    #[arg(long, value_name = "PATTERN")]
    repository: Vec<String>,
    /// Make docker, podman and their kin ask this helper for the registry
    #[arg(long)]
    configure: bool,
    /// Open no browser
    #[arg(long)]
    no_browser: bool,
    /// What the registry's page calls this terminal; the host's name, if it isn't given
    #[arg(long)]
    name: Option<String>,
}

fn main() -> ExitCode {
    let own_name = std::env::args_os().next().unwrap_or_default();
    if Path::new(&own_name).file_stem().is_some_and(|name| name == PROVIDER_NAME) {
        return kubelet::answer();
    }
    match Arguments::parse().command {
        Command::Login(arguments) => told(login::login(&arguments)),
        Command::Logout { registry } => told(login::logout(&registry)),
        Command::Get => protocol::answer(protocol::get),
        Command::Store => protocol::answer(protocol::store),
        Command::Erase => protocol::answer(protocol::erase),
        Command::List => protocol::answer(|_| protocol::list()),
    }
}

/// What a person is told of a failure.
fn told(outcome: Result<(), String>) -> ExitCode {
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            eprintln!("{}", protocol::plain(&message));
            ExitCode::FAILURE
        }
    }
}
