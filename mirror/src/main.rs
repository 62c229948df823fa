//! `berth-mirror` fetches what the registry lacks from other registries (zot's `extensions.sync` with `onDemand`), when somebody
//! pulls it who may cause that. Without that section it isn't needed.
//!
//! It stands between the proxy and the registry, for these pulls alone: `answer` reads a request; `manifests` makes sure that
//! the registry has what is asked for, as new as it must be; `blobs` streams what is being fetched to everybody who wants it,
//! and into the registry. It keeps nothing itself: what is on its way is in files without a name.

mod answer;
mod blobs;
mod challenge;
mod client;
mod config;
mod download;
mod manifests;
mod registry;
mod serve;
mod source;

use std::{path::PathBuf, process::ExitCode, sync::Arc};

use berth_observe::{Health, QUIET, answer_health_checks, ask_health};
use clap::{Parser, Subcommand};

use crate::{answer::Mirror, config::Config};

#[derive(Parser)]
#[command(version = berth_observe::VERSION, about = "Fetches what Berth's registry lacks from other registries")]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Serve pulls where the file's sidecar.mirror says.
    Serve {
        /// The configuration file, zot's config.json.
        config: PathBuf,
    },
    /// Check everything that can be checked without serving; print each problem under its key.
    Verify {
        /// The configuration file, zot's config.json.
        config: PathBuf,
    },
    /// Exit with 0 if the mirror of this file serves.
    Health {
        /// The configuration file, zot's config.json.
        config: PathBuf,
    },
}

/// By which name a health check asks for us.
const PROGRAM: &str = "berth-mirror";

fn main() -> ExitCode {
    let outcome = match Arguments::parse().command {
        Command::Serve { config } => serve(config),
        Command::Verify { config } => verify(&config),
        Command::Health { config } => match ask_health(PROGRAM, &config) {
            Some(Health::Well) => Ok(()),
            Some(health) => Err(format!("the mirror of {} is not well: {health}", config.display())),
            None => Err(format!("no mirror serves {}", config.display())),
        },
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            eprintln!("{message}");
            ExitCode::FAILURE
        }
    }
}

fn verify(path: &std::path::Path) -> Result<(), String> {
    let (_, warnings) = Config::read(path).map_err(|problems| problems.to_string())?;
    for warning in warnings {
        eprintln!("warning: {warning}");
    }
    println!("{}: the mirror can serve this", path.display());
    Ok(())
}

#[tokio::main]
async fn serve(path: PathBuf) -> Result<(), String> {
    let (config, warnings) = Config::read(&path).map_err(|problems| problems.to_string())?;
    config.log.start(&QUIET, &warnings)?;
    let listen = config.listen.clone();
    let mirror = Arc::new(Mirror::new(config)?);
    let asked = Arc::clone(&mirror);
    tokio::spawn(async move {
        let check = || {
            let mirror = Arc::clone(&asked);
            async move { mirror.readiness().await }
        };
        answer_health_checks(PROGRAM, &path, check).await;
    });
    serve::serve(&listen, mirror).await
}
