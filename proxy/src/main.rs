//! `berth-proxy` is the only door of a Berth registry: it signs people in, checks credentials, applies the rules, and
//! forwards what is allowed to `berth-registry`.
//!
//! ```text
//! main → gateway → admission → { route → identity → policy } → forward
//!           └──────→ site (pages, login, keys, token service)
//! identity, site → oidc, store
//! ```

mod admission;
mod answer;
mod app;
mod challenge;
mod config;
mod forward;
mod gateway;
mod identity;
mod oidc;
mod policy;
mod registry;
mod route;
mod secrets;
mod serve;
mod site;
mod store;
mod tls;

use std::{path::PathBuf, process::ExitCode};

use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(version, about = "The only door of Berth, a private container registry")]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Serve what the file says.
    Serve {
        /// The configuration file, zot's config.json.
        config: PathBuf,
    },
    /// Check everything that can be checked without serving; print each problem under its key.
    Verify {
        /// The configuration file, zot's config.json.
        config: PathBuf,
    },
    /// Exit with 0 if the proxy of this file serves, and the registry behind it.
    Health {
        /// The configuration file, zot's config.json.
        config: PathBuf,
    },
}

fn main() -> ExitCode {
    let outcome = match Arguments::parse().command {
        Command::Serve { config } => serve::serve(&config),
        Command::Verify { config } => serve::verify(&config),
        Command::Health { config } => serve::health(&config),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            eprintln!("{message}");
            ExitCode::FAILURE
        }
    }
}
