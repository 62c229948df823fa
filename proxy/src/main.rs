//! `berth-proxy` is the only door of a Berth registry: it signs people in, checks credentials, applies the rules, and
//! forwards what is allowed to `berth-registry`.
//!
//! ```text
//! main → connections → gateway → authorize → { route → identity → policy } → forward
//!                         └──────→ site (pages, login, keys, sessions, token service)
//! identity, site → oidc, store
//! ```
//! `app` is what they share, and `reload` replaces the part of it that the configuration may change.

mod action;
mod answer;
mod app;
mod authorize;
mod certificate_check;
mod challenge;
mod client_authorities;
mod commands;
mod config;
mod connections;
mod events;
mod expression;
mod forward;
mod gateway;
mod identity;
mod lists;
mod network;
mod observe;
mod oidc;
mod policy;
mod questions;
mod readiness;
mod registry;
mod reload;
mod request;
mod route;
mod scim;
mod secrets;
mod site;
mod store;
mod tickets;
mod tls;
mod verify;

use std::{net::IpAddr, path::PathBuf, process::ExitCode};

use clap::{Parser, Subcommand};

/// Threads of its own give memory back that a crowd of connections has needed, also when nothing else is done.
#[cfg(feature = "jemalloc")]
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

#[derive(Parser)]
#[command(version = berth_observe::VERSION, about = "The only door of Berth, a private container registry")]
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
        /// Ask the providers and issuers, too, and the registry and the database.
        #[arg(long)]
        online: bool,
    },
    /// Say whether somebody may do something, and which rule decides; exit with 1 if not.
    Can {
        /// The configuration file, zot's config.json.
        config: PathBuf,
        /// The user's name; nobody, without it.
        #[arg(long)]
        user: Option<String>,
        /// A group that the user's claims have; as often as there are groups.
        #[arg(long = "group", requires = "user")]
        groups: Vec<String>,
        /// A JSON file with the claims of the user, whom their provider's claimMapping then names; their groups, too.
        #[arg(long, conflicts_with_all = ["user", "groups"])]
        claims: Option<PathBuf>,
        /// Where the request comes from, for conditions that look at it.
        #[arg(long)]
        ip: Option<IpAddr>,
        /// read, create, update or delete.
        action: String,
        /// The repository, with :TAG or @DIGEST if it is about one.
        target: String,
    },
    /// Say whose a token is, and which rule takes it, or why none does, without asking its issuer: its signature isn't
    /// checked.
    Token {
        /// The configuration file, zot's config.json.
        config: PathBuf,
        /// A file with the token, or - for standard input: an argument would be seen by everybody on this machine.
        jwt: PathBuf,
    },
    /// List who holds which user name, or give a name to whoever signs in with it next.
    People {
        /// The configuration file, zot's config.json.
        config: PathBuf,
        #[command(subcommand)]
        action: Option<PeopleAction>,
    },
    /// Copy the database and the secret into a folder, while the proxy runs.
    Backup {
        /// The configuration file, zot's config.json.
        config: PathBuf,
        /// The folder.
        to: PathBuf,
    },
    /// Print every key of the configuration, as a page of Markdown.
    Reference,
    /// Exit with 0 if the proxy of this file serves, and the registry behind it.
    Health {
        /// The configuration file, zot's config.json.
        config: PathBuf,
    },
}

#[derive(Subcommand)]
enum PeopleAction {
    /// End the sessions and API keys of a name's holder, and forget them: whoever signs in with the name next has it.
    Release {
        /// The user name.
        name: String,
    },
}

fn main() -> ExitCode {
    let outcome = match Arguments::parse().command {
        Command::Serve { config } => commands::serve(&config),
        Command::Verify { config, online } => verify::verify(&config, online),
        Command::Can { config, user, groups, claims, ip, action, target } => {
            let who = questions::Who { user, groups, claims, ip };
            questions::can(&config, who, &action, &target)
        }
        Command::Token { config, jwt } => questions::token(&config, &jwt),
        Command::People { config, action } => {
            let release = action.map(|PeopleAction::Release { name }| name);
            commands::people(&config, release.as_deref())
        }
        Command::Backup { config, to } => commands::backup(&config, &to),
        Command::Reference => {
            print!("{}", berth_config::reference::page());
            Ok(())
        }
        Command::Health { config } => commands::health(&config),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            eprintln!("{message}");
            ExitCode::FAILURE
        }
    }
}
