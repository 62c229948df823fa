//! `berth-bench URL`: how fast a registry is, for whoever has a credential there; `berth-bench compare`: what has changed.

use std::{
    fs,
    path::{Path, PathBuf},
    process::ExitCode,
};

use berth_bench::{
    Error,
    client::Dialer,
    credential::Credential,
    measure::{Plan, Work, measure},
    report::{Machine, Run, Settings, compare},
    servers::Servers,
};
use clap::{Args, Parser, Subcommand};
use time::{OffsetDateTime, format_description::well_known::Rfc3339};
use url::Url;

#[derive(Parser)]
#[command(
    name = "berth-bench",
    version,
    about = "Measures a registry through the distribution API, and compares two runs"
)]
#[command(args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
struct Arguments {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    run: Option<RunArguments>,
}

#[derive(Subcommand)]
enum Command {
    /// Show what has changed from one run to another, of the files that --json has written
    Compare {
        /// The run before
        before: PathBuf,
        /// The run after
        after: PathBuf,
    },
}

#[derive(Args)]
struct RunArguments {
    /// Where the registry is: https://registry.company
    url: Url,
    /// Who measures; with --password-file
    #[arg(long, requires = "password_file")]
    user: Option<String>,
    /// A file with the password, or the API key
    #[arg(long, value_name = "FILE", requires = "user")]
    password_file: Option<PathBuf>,
    /// Show name and password with each request, instead of asking for a token as docker does
    #[arg(long, requires = "user")]
    basic: bool,
    /// A file with a bearer token, instead of a name and a password
    #[arg(long, value_name = "FILE", conflicts_with = "user")]
    token_file: Option<PathBuf>,
    /// Believe in the authorities of this PEM file, too
    #[arg(long, value_name = "FILE")]
    ca: Option<PathBuf>,
    /// Speak HTTP/2
    #[arg(long)]
    http2: bool,
    /// The repository that is pushed to; what is pushed is deleted again, as far as that is allowed
    #[arg(long, default_value = "bench")]
    repository: String,
    /// How many connections work at once
    #[arg(long, default_value_t = 16)]
    connections: usize,
    /// For how long a request is repeated, in seconds
    #[arg(long, default_value_t = 5)]
    seconds: u64,
    /// The large blob, in MiB
    #[arg(long, default_value_t = 256)]
    large: u64,
    /// How often all of it is done
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// Which processes of this machine the registry is, for their CPU time and memory
    #[arg(long, value_name = "PID", value_delimiter = ',')]
    pid: Vec<u32>,
    /// Write the run to this file, too
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

/// The most that work at once, and the largest blob: 1 TiB.
const MAX_CONNECTIONS: usize = 10_000;
const MAX_LARGE_MIB: u64 = 1 << 20;

#[tokio::main]
async fn main() -> ExitCode {
    let Arguments { command, run } = Arguments::parse();
    let done = match (command, run) {
        (Some(Command::Compare { before, after }), _) => compared(&before, &after),
        (None, Some(run)) => measured(run).await,
        (None, None) => Err("say where the registry is: berth-bench https://registry.company".into()),
    };
    match done {
        Ok(text) => {
            print!("{text}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("berth-bench: {error}");
            ExitCode::FAILURE
        }
    }
}

fn compared(before: &Path, after: &Path) -> Result<String, Error> {
    let read = |path: &Path| {
        let unread = |error: &dyn std::fmt::Display| format!("{}: no run of --json ({error})", path.display());
        let text = fs::read(path).map_err(|error| unread(&error))?;
        serde_json::from_slice::<Run>(&text).map_err(|error| unread(&error))
    };
    Ok(compare(&read(before)?, &read(after)?))
}

async fn measured(arguments: RunArguments) -> Result<String, Error> {
    let credential = credential(&arguments)?;
    let mut url = arguments.url;
    if !matches!(url.scheme(), "http" | "https") || !url.username().is_empty() || url.password().is_some() {
        return Err("the address begins with https:// or http:// and has no name and password in it".into());
    }
    let in_bounds =
        (1..=MAX_CONNECTIONS).contains(&arguments.connections) && (1..=MAX_LARGE_MIB).contains(&arguments.large);
    if !in_bounds || arguments.rounds == 0 || arguments.seconds == 0 {
        let bounds = format!("--connections is at most {MAX_CONNECTIONS}, --large at most {MAX_LARGE_MIB}");
        return Err(format!("--connections, --rounds, --seconds and --large are 1 or more; {bounds}").into());
    }
    if let Some(pid) = arguments.pid.iter().find(|pid| !Path::new(&format!("/proc/{pid}")).exists()) {
        return Err(format!("--pid: there is no process {pid} on this machine").into());
    }
    // Before anything is measured.
    let json = arguments
        .json
        .as_ref()
        .map(|path| fs::File::create(path).map_err(|error| format!("{}: {error}", path.display())));
    let json = json.transpose()?;
    url.set_path("/");
    let plan = Plan {
        dialer: Dialer::new(arguments.ca.as_deref(), arguments.http2)?,
        url,
        credential,
        settings: Settings {
            repository: arguments.repository,
            connections: arguments.connections,
            seconds: arguments.seconds,
            large_mib: arguments.large,
            rounds: arguments.rounds,
            http2: arguments.http2,
        },
        works: Work::ALL.to_vec(),
        servers: Servers(arguments.pid),
    };
    let figures = measure(&plan, |work, round| eprintln!("round {}: {}", round + 1, work.name())).await?;
    let run = Run {
        url: plan.url.to_string(),
        at: OffsetDateTime::now_utc().format(&Rfc3339)?,
        version: env!("CARGO_PKG_VERSION").to_owned(),
        machine: Machine::this(),
        settings: plan.settings,
        figures,
    };
    if let Some(file) = json {
        serde_json::to_writer_pretty(file, &run)?;
    }
    Ok(format!("measured from {}\n{}", run.machine, run.table(&plan.servers)))
}

fn credential(arguments: &RunArguments) -> Result<Credential, Error> {
    let secret = |path: &Path| {
        let text = fs::read_to_string(path).map_err(|error| format!("{}: {error}", path.display()))?;
        Ok::<_, Error>(text.trim().to_owned())
    };
    Ok(match (&arguments.user, &arguments.password_file, &arguments.token_file) {
        (Some(user), Some(password), _) if arguments.basic => Credential::Basic(user.clone(), secret(password)?),
        (Some(user), Some(password), _) => Credential::Token(user.clone(), secret(password)?),
        (_, _, Some(token)) => Credential::Bearer(secret(token)?),
        _ => Credential::Nobody,
    })
}
