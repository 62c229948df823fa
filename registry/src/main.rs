//! `berth-registry` stores and serves OCI content. It knows no user and no password: whoever reaches it may do
//! everything, so it listens on loopback or a unix socket, behind `berth-proxy`.
//!
//! `http` reads requests and writes answers, `content` holds the registry's rules, `storage` keeps bytes. Beside
//! `http`, `import_export` brings whole repositories in and out, and `scrub` looks whether all bytes are what they were.

mod config;
mod content;
mod http;
mod import_export;
mod metrics;
mod progress_bar;
mod scrub;
mod status;
mod storage;

use std::{
    path::{Path, PathBuf},
    process::ExitCode,
    sync::Arc,
    time::Duration,
};

use berth_observe::{Health, QUIET, Traces, answer_health_checks, ask_health, raise_descriptor_limit, reopen_log};
use clap::{Parser, Subcommand};
use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    sync::watch,
};

use crate::{
    config::{Config, Garbage, Place, SubPaths},
    content::{Content, Mode, quotas::Quotas},
    http::{Limits, Serving},
    metrics::Metrics,
    storage::{Directory, Objects, Storage},
};

/// Threads of its own give memory back that a crowd has needed, also when nothing else is done; and musl's own allocator has
/// one lock for all threads.
#[cfg(feature = "jemalloc")]
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

#[derive(Parser)]
#[command(version = berth_observe::VERSION, about = "The storage process of Berth, a private container registry")]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Serve the distribution API where the file's sidecar.upstream says.
    Serve {
        /// The configuration file, zot's config.json.
        config: PathBuf,
    },
    /// Check everything that can be checked without serving; print each problem under its key.
    Verify {
        /// The configuration file, zot's config.json.
        config: PathBuf,
        /// Only warn of zot's storage.subPaths, to see what else there is; serving refuses them.
        #[arg(long)]
        ignore_sub_paths: bool,
        /// Look at the file alone, and not at the folder or bucket that it names.
        #[arg(long)]
        offline: bool,
    },
    /// Remove what no manifest names, while no registry runs; a running one does it of itself.
    Gc {
        /// The configuration file, zot's config.json.
        config: PathBuf,
        /// Remove nothing, only count; also while a registry runs.
        #[arg(long)]
        dry_run: bool,
    },
    /// Print what the rules of storage.retention would remove now, also while a registry runs; that removes it of itself.
    Retention {
        /// The configuration file, zot's config.json.
        config: PathBuf,
        /// Required: a running registry removes, this never does.
        #[arg(long, required = true)]
        dry_run: bool,
    },
    /// Read every blob, and report those whose bytes are damaged; exit with 1 if there are any.
    Scrub {
        /// The configuration file, zot's config.json.
        config: PathBuf,
    },
    /// Bring in an OCI image layout, or a zot root directory, while no registry runs.
    Import {
        /// The configuration file, zot's config.json.
        config: PathBuf,
        /// The layout, or the folder of layouts whose paths name their repositories.
        #[arg(required_unless_present = "from_driver")]
        folder: Option<PathBuf>,
        /// Bring in the layouts of a bucket instead: the one of storage.storageDriver in this file, zot's config.json. A run
        /// that was stopped goes on where it was.
        #[arg(long, conflicts_with_all = ["folder", "repository", "copy"])]
        from_driver: Option<PathBuf>,
        /// The repository that a single layout becomes.
        #[arg(long)]
        repository: Option<String>,
        /// Copy bytes, and link none: what is imported goes its own way, also on the same file system.
        #[arg(long)]
        copy: bool,
    },
    /// Write a repository as an OCI image layout.
    Export {
        /// The configuration file, zot's config.json.
        config: PathBuf,
        /// The repository.
        repository: String,
        /// The folder to make.
        folder: PathBuf,
    },
    /// Exit with 0 if the registry of this file answers, and can store something.
    Health {
        /// The configuration file, zot's config.json.
        config: PathBuf,
        /// Only ask whether it answers: to start it anew helps nobody whose disk is full.
        #[arg(long)]
        live: bool,
    },
}

/// How long a collection may take to end when the process does.
const COLLECTION_END_TIMEOUT: Duration = Duration::from_secs(5);

/// How long what was counted may take to be written down when the process ends.
const SAVE_TIMEOUT: Duration = Duration::from_secs(3);

/// By which name a health check asks for us.
const PROGRAM: &str = "berth-registry";

fn main() -> ExitCode {
    let outcome = match Arguments::parse().command {
        Command::Serve { config } => serve(config),
        Command::Verify { config, ignore_sub_paths, offline } => verify(config, ignore_sub_paths, offline),
        Command::Gc { config, dry_run } => gc(config, dry_run),
        Command::Retention { config, .. } => retention(config),
        Command::Scrub { config } => scrub(config),
        Command::Import { config, folder: Some(folder), repository, copy, .. } => {
            import(config, folder, repository, copy)
        }
        Command::Import { config, from_driver, .. } => import_driver(config, from_driver.unwrap_or_default()),
        Command::Export { config, repository, folder } => export(config, repository, folder),
        Command::Health { config, live } => health(config, live),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            eprintln!("{message}");
            ExitCode::FAILURE
        }
    }
}

#[tokio::main]
async fn serve(path: PathBuf) -> Result<(), String> {
    // Before anything is waited for: without it SIGHUP ends the process.
    let hangups = signal(SignalKind::hangup()).map_err(|e| format!("SIGHUP can't be watched ({e})"))?;
    let (config, warnings) = Config::read(&path).map_err(|problems| problems.to_string())?;
    config.log.start(&QUIET, &warnings)?;
    refuse_zot_store(&config, &path)?;
    let descriptors = raise_descriptor_limit();
    tracing::debug!(limit = descriptors, "descriptors");
    let traces = tokio::task::block_in_place(|| Traces::start(config.traces.as_ref(), "berth-registry"))?;
    let metrics = Metrics::new().map_err(|e| format!("nothing can be counted: {e}"))?;
    let quotas = Quotas::new(config.quotas.clone());
    let content = Content::new(open(&config)?, config.garbage.is_some()).with_rules(config.rules.clone());
    let content = content.with_limits(quotas, config.max_repositories);
    let content = Arc::new(content);
    let Garbage { delay, interval } = config.garbage.unwrap_or_default();
    let (schedule, changes) = watch::channel((delay, interval));
    content.upgrade().await.map_err(|e| config.place.problem(&e))?;
    let (collector, is_collecting) = (Arc::clone(&content), config.garbage.is_some());
    let collecting = tokio::spawn(async move {
        if is_collecting {
            collector.keep_collecting(changes).await;
        }
    });
    if !is_collecting {
        let content = Arc::clone(&content);
        tokio::spawn(async move { content.keep_expiring_uploads().await });
    }
    let upstream = config.upstream.clone();
    tokio::spawn(keep_reloading(path.clone(), config, schedule, hangups));
    let (asked, address) = (Arc::clone(&content), upstream.clone());
    tokio::spawn(async move {
        let check = || {
            let (content, address) = (Arc::clone(&asked), address.clone());
            // By the way that the proxy comes.
            async move {
                http::health(&address).await?;
                content.readiness().await
            }
        };
        answer_health_checks(PROGRAM, &path, check).await;
    });
    let counting = Arc::clone(&content);
    tokio::spawn(async move { counting.keep_statistics().await });
    let looking = Arc::clone(&content);
    tokio::spawn(async move { looking.keep_overviews().await });
    let limiting = Arc::clone(&content);
    tokio::spawn(async move { limiting.keep_quotas(interval).await });
    let warning = Arc::clone(&content);
    tokio::spawn(async move { warning.keep_warnings().await });
    let serving = Arc::new(Serving { content, metrics, traces, limits: Limits::new(descriptors) });
    let served = http::serve(&upstream, Arc::clone(&serving)).await;
    // What it is removing is removed, and no more.
    serving.content.stop_collecting();
    let _ = tokio::time::timeout(COLLECTION_END_TIMEOUT, collecting).await;
    if !serving.content.is_shared() {
        serving.content.save_statistics().await;
        serving.content.save_quotas().await;
    }
    let _ = tokio::time::timeout(SAVE_TIMEOUT, serving.content.save_overviews(true)).await;
    tokio::task::block_in_place(|| serving.traces.stop());
    served
}

/// On SIGHUP, for as long as the process runs: opens the log again, goes on with what the file says where that can be, and
/// says what needs a restart.
async fn keep_reloading(
    path: PathBuf,
    running: Config,
    schedule: watch::Sender<(Duration, Duration)>,
    mut hangups: Signal,
) {
    while hangups.recv().await.is_some() {
        reopen_log();
        let new = match Config::read(&path) {
            Ok((new, _)) => new,
            Err(problems) => {
                for problem in &problems.0 {
                    tracing::error!("{problem}");
                }
                tracing::error!("the configuration can't be used; what was goes on");
                continue;
            }
        };
        tracing::info!("the configuration was read again: storage.gcDelay and gcInterval");
        // What another registry of the same bucket was promised depends on the delay.
        let delay = new.garbage.filter(|_| !running.is_shared()).map(|garbage| garbage.delay);
        if let Some(Garbage { interval, .. }) = new.garbage {
            schedule.send_if_modified(|current| {
                let next = (delay.unwrap_or(current.0), interval);
                std::mem::replace(current, next) != next
            });
        }
        let waiting = running.needs_restart_for(&new);
        if !waiting.is_empty() {
            tracing::warn!("changed in the file, and waiting for a restart of the registry: {}", waiting.join(", "));
        }
    }
}

/// A store of zot's isn't served as it is, and must not look as if it were empty.
fn refuse_zot_store(config: &Config, path: &Path) -> Result<(), String> {
    let Place::Directory(root) = &config.place else { return Ok(()) };
    let Some(layout) = import_export::zot_store(root) else { return Ok(()) };
    Err(format!(
        "storage.rootDirectory: {} holds a store of zot's ({}), which Berth doesn't serve as it is; give Berth an empty \
         folder there, and bring the store over with: berth-registry import {} {}",
        root.display(),
        layout.display(),
        path.display(),
        root.display()
    ))
}

/// The storage, for this process to write.
fn open(config: &Config) -> Result<Arc<dyn Storage>, String> {
    match &config.place {
        Place::Directory(root) => Ok(Arc::new(Directory::open(root).map_err(|e| e.to_string())?)),
        Place::Objects(_) => open_to_read(config),
    }
}

/// The storage, also while a registry is using it.
fn open_to_read(config: &Config) -> Result<Arc<dyn Storage>, String> {
    Ok(match &config.place {
        Place::Directory(root) => Arc::new(Directory::open_to_read(root)),
        Place::Objects(service) => Arc::new(Objects::open(service, config.delay())?),
    })
}

#[tokio::main]
async fn gc(path: PathBuf, dry_run: bool) -> Result<(), String> {
    let (config, _) = Config::read(&path).map_err(|problems| problems.to_string())?;
    let (storage, mode, did) = if dry_run {
        (open_to_read(&config)?, Mode::DryRun, "would be removed")
    } else {
        (open(&config)?, Mode::Offline, "removed")
    };
    let content = Content::new(storage, false);
    let collected = content.collect(config.delay(), mode).await.map_err(|e| e.to_string())?;
    content.save_statistics().await;
    println!("{did}: {collected}");
    Ok(())
}

#[tokio::main]
async fn retention(path: PathBuf) -> Result<(), String> {
    let (config, _) = Config::read(&path).map_err(|problems| problems.to_string())?;
    if config.rules.retention.is_none() {
        return Err("storage.retention: is missing, so nothing is ever removed".to_owned());
    }
    let content = Content::new(open_to_read(&config)?, false).with_rules(config.rules.clone());
    let (mut things, mut bytes) = (0, 0);
    let judged = content.each_retention_plan(|repository, plan| {
        for expired in &plan.expired {
            let what = expired.tag.as_deref().map_or_else(|| format!("@{}", expired.digest), |tag| format!(":{tag}"));
            println!("{repository}{what}  {}", expired.rule);
        }
        things += plan.expired.len();
        bytes += plan.bytes;
    });
    judged.await.map_err(|e| e.to_string())?;
    println!(
        "{things} tags and manifests would go; their {bytes} bytes, as far as no other repository holds them, are garbage then"
    );
    Ok(())
}

#[tokio::main]
async fn scrub(path: PathBuf) -> Result<(), String> {
    let (config, _) = Config::read(&path).map_err(|problems| problems.to_string())?;
    let scrubbed = scrub::scrub(&*open_to_read(&config)?).await.map_err(|e| e.to_string())?;
    for damaged in &scrubbed.damaged {
        println!("damaged: {damaged}");
    }
    println!("read {} blobs; {} are damaged", scrubbed.blobs, scrubbed.damaged.len());
    if scrubbed.damaged.is_empty() {
        Ok(())
    } else {
        Err("remove these files and push their images again, or restore them".to_owned())
    }
}

#[tokio::main]
async fn import(path: PathBuf, folder: PathBuf, repository: Option<String>, copy: bool) -> Result<(), String> {
    let (config, _) = Config::read(&path).map_err(|problems| problems.to_string())?;
    let repository = repository.map(|name| name.parse()).transpose();
    let repository = repository.map_err(|e: berth_oci::RepositoryError| format!("--repository: {e}"))?;
    let content = Content::new(open(&config)?, false).with_rules(config.rules.clone());
    content.upgrade().await.map_err(|e| config.place.problem(&e))?;
    content.load_statistics().await.map_err(|e| e.to_string())?;
    let imported = import_export::import_folder(&content, &folder, repository, copy).await;
    content.save_statistics().await;
    report(&imported.map_err(|e| e.to_string())?)?;
    println!("blobs were not read; `berth-registry scrub` does that");
    Ok(())
}

#[tokio::main]
async fn import_driver(path: PathBuf, from: PathBuf) -> Result<(), String> {
    let (config, _) = Config::read(&path).map_err(|problems| problems.to_string())?;
    let (source, _) = Config::read_with(&from, SubPaths::Ignored).map_err(|problems| problems.to_string())?;
    let Place::Objects(service) = &source.place else {
        let from = from.display();
        return Err(format!("{from}: storage.storageDriver names no bucket; give a folder instead of --from-driver"));
    };
    if source.place == config.place {
        return Err(
            "both files name the same bucket and folder; give Berth another storageDriver.rootdirectory".to_owned()
        );
    }
    let bucket = Objects::open(service, config.delay())?;
    let content = Content::new(open(&config)?, false).with_rules(config.rules.clone());
    content.upgrade().await.map_err(|e| config.place.problem(&e))?;
    content.load_statistics().await.map_err(|e| e.to_string())?;
    let imported = import_export::import_bucket(&content, &bucket).await;
    content.save_statistics().await;
    report(&imported.map_err(|e| e.to_string())?)
}

/// Says what was brought in, and fails if something was left out.
fn report(imported: &import_export::Imported) -> Result<(), String> {
    for left_out in &imported.left_out {
        println!("left out: {left_out}");
    }
    let import_export::Imported { repositories, manifests, tags, blobs, left_out } = imported;
    println!("imported {repositories} repositories: {manifests} manifests, {tags} tags, {blobs} blobs");
    if left_out.is_empty() { Ok(()) } else { Err(format!("{} things were left out", left_out.len())) }
}

#[tokio::main]
async fn export(path: PathBuf, repository: String, folder: PathBuf) -> Result<(), String> {
    let (config, _) = Config::read(&path).map_err(|problems| problems.to_string())?;
    let repository = repository.parse().map_err(|e: berth_oci::RepositoryError| e.to_string())?;
    let content = Content::new(open_to_read(&config)?, false);
    let manifests = import_export::export(&content, &repository, &folder).await.map_err(|e| e.to_string())?;
    println!("exported {manifests} manifests of {repository} to {}", folder.display());
    Ok(())
}

#[tokio::main(flavor = "current_thread")]
async fn verify(path: PathBuf, ignore_sub_paths: bool, offline: bool) -> Result<(), String> {
    let sub_paths = if ignore_sub_paths { SubPaths::Ignored } else { SubPaths::Refused };
    let (config, warnings) = Config::read_with(&path, sub_paths).map_err(|problems| problems.to_string())?;
    for warning in warnings {
        eprintln!("warning: {warning}");
    }
    if !offline {
        refuse_zot_store(&config, &path)?;
        open_to_read(&config)?.check().await.map_err(|e| config.place.problem(&e))?;
    }
    println!("{}: the registry can serve this", path.display());
    Ok(())
}

#[tokio::main(flavor = "current_thread")]
async fn health(path: PathBuf, live: bool) -> Result<(), String> {
    // Whatever the file says by now.
    match ask_health(PROGRAM, &path) {
        Some(Health::Well) => return Ok(()),
        Some(Health::Unwell(_)) if live => return Ok(()),
        Some(health) => return Err(format!("the registry of {} is not well: {health}", path.display())),
        None => {}
    }
    let (config, _) = Config::read(&path).map_err(|problems| problems.to_string())?;
    http::health(&config.upstream).await
}
