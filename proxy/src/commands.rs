//! The commands.

use std::{
    fs::File,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    path::Path,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use async_trait::async_trait;
use berth_observe::{Health, QUIET, Traces, answer_health_checks, ask_health, raise_descriptor_limit};
use pingora::{
    apps::HttpServerOptions,
    protocols::http::v2::server::default_h2_options,
    proxy::http_proxy,
    server::{RunArgs, Server, ShutdownSignal, ShutdownSignalWatch, configuration::ServerConf},
};
use time::{OffsetDateTime, format_description::well_known::Rfc3339};
use tokio::{
    net::TcpStream,
    runtime::Runtime,
    signal::unix::{SignalKind, signal},
};

use crate::{
    app::App,
    config::Config,
    connections::{self, Connections, Door, Limits},
    events::read_notices,
    gateway::Gateway,
    readiness::{Wanted, readiness},
    reload::{self, Shown, Watched},
    secrets::RootKey,
    store::{Standing, Store, back_up},
    tls::{self, Certificate},
};

/// How often what has ended is forgotten.
const CHORES_INTERVAL: Duration = Duration::from_mins(1);

/// How often what was used is written, and it is looked for who is due to be asked about.
const RENEWALS_INTERVAL: Duration = Duration::from_secs(10);

/// How much of an answer HTTP/2 takes ahead of a client that reads slowly, in bytes a stream; by default it is 400 KiB.
const MAX_H2_SENT_BYTES: usize = 64 * 1024;

/// `berth-proxy serve`
pub fn serve(path: &Path) -> Result<(), String> {
    let mut watched = Watched::new(path);
    let (config, warnings) = Config::read(path).map_err(|problems| problems.to_string())?;
    watched.follow(&config);
    config.log.start(&QUIET, &warnings)?;
    // First, so that it is told by its key before anything is opened.
    let socket = connections::bind(config.listen).map_err(|e| {
        format!("http.address, http.port: can't listen on {} ({e}); choose an address that is free", config.listen)
    })?;
    let traces = Arc::new(Traces::start(config.traces.as_ref(), "berth-proxy")?);
    let runtime = Runtime::new().map_err(|e| format!("can't start threads: {e}"))?;
    // Before anything is waited for: without it SIGHUP ends the process.
    let hangups = runtime.block_on(async { signal(SignalKind::hangup()) });
    let hangups = hangups.map_err(|e| format!("SIGHUP can't be watched ({e})"))?;
    let app = Arc::new(runtime.block_on(App::open(&config))?);
    let certificate = config.tls.as_ref().map(Certificate::read).transpose()?.map(Arc::new);
    let clients = app.client_authorities.clone();

    let (asked, file, door) = (Arc::clone(&app), path.to_owned(), reachable(config.listen));
    runtime.spawn(async move {
        let check = || {
            let app = Arc::clone(&asked);
            async move {
                // By the way that clients come.
                TcpStream::connect(door).await.map_err(|e| format!("nothing listens on {door} ({e})"))?;
                readiness(&app, Wanted::Everything).await.map_err(|unready| unready.to_string())
            }
        };
        answer_health_checks(PROGRAM, &file, check).await;
    });
    runtime.spawn(chores(Arc::clone(&app)));
    if let Some(events) = app.events.clone() {
        runtime.spawn(events.run());
    }
    if app.events.is_some() || app.audit.is_on() {
        let (registry, audit, events) = (Arc::clone(&app.registry), Arc::clone(&app.audit), app.events.clone());
        runtime.spawn(read_notices(registry, app.store.clone(), audit, events));
    }
    runtime.spawn(renewals(Arc::clone(&app)));

    let threads = std::thread::available_parallelism().map_or(2, usize::from);
    let conf = ServerConf {
        threads,
        grace_period_seconds: Some(0),
        graceful_shutdown_timeout_seconds: Some(1),
        // How often the registry is tried is decided by the time (`gateway`): never as often.
        max_retries: 200,
        ..ServerConf::default()
    };
    let mut server = Server::new_with_opt_and_conf(None, conf);
    server.bootstrap();
    let connections = Arc::new(Connections::new(Limits {
        connections: connections::connections_for(raise_descriptor_limit()),
        per_address: config.connections_per_address,
        exempt: config.trusted_proxies.clone(),
    }));
    let (upstream, mirror) = (config.upstream.clone(), config.mirror.clone());
    let gateway = Gateway::new(Arc::clone(&app), upstream, mirror, Arc::clone(&connections), Arc::clone(&traces));
    let mut proxy = http_proxy(&server.configuration, gateway);
    let mut options = HttpServerOptions::default();
    options.h2_idle_timeout = Some(connections::IDLE_TIMEOUT);
    proxy.server_options = Some(options);
    let mut h2_options = default_h2_options();
    h2_options.max_send_buffer_size(MAX_H2_SENT_BYTES);
    proxy.h2_options = Some(h2_options);
    let acceptor = certificate
        .as_ref()
        .map(|certificate| tls::acceptor(Arc::clone(certificate), clients.clone(), Arc::clone(&app.tickets)));
    let metrics = Arc::clone(&app.metrics);
    let (address, drain_timeout) = (config.listen, config.drain_timeout);
    server.add_service(Door::new(socket, proxy, acceptor.transpose()?, Arc::clone(&connections), metrics));
    tracing::info!("listening on {address} for {}, in front of {}", config.external_url.join(""), config.upstream);
    let shown = Shown { certificate, clients };
    runtime.spawn(reload::keep_reloading(Arc::clone(&app), watched, config, shown, hangups));
    let stop = StopSignal { app: Arc::clone(&app), connections, drain_timeout };
    server.run(RunArgs { shutdown_signal: Box::new(stop) });

    runtime.block_on(write_usage(&app));
    app.audit.flush();
    traces.stop();
    Ok(())
}

/// SIGTERM or SIGINT, and then the end of the requests that are being served, or of our patience.
struct StopSignal {
    app: Arc<App>,
    connections: Arc<Connections>,
    drain_timeout: Duration,
}

#[async_trait]
impl ShutdownSignalWatch for StopSignal {
    async fn recv(&self) -> ShutdownSignal {
        match (signal(SignalKind::terminate()), signal(SignalKind::interrupt())) {
            (Ok(mut terminate), Ok(mut interrupt)) => {
                tokio::select! {
                    _ = terminate.recv() => {}
                    _ = interrupt.recv() => {}
                }
            }
            (Err(error), _) | (_, Err(error)) => {
                tracing::error!(%error, "signals can't be watched; the proxy stops only when it is killed");
                std::future::pending::<()>().await;
            }
        }
        tracing::info!("stopping");
        // Nobody shall send us more; those who do all the same are served.
        self.app.stopping.store(true, Ordering::Relaxed);
        let idle = async {
            while !self.connections.is_idle() {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        };
        if tokio::time::timeout(self.drain_timeout, idle).await.is_err() {
            tracing::warn!("some requests were cut off");
        }
        ShutdownSignal::FastShutdown
    }
}

async fn write_usage(app: &App) {
    if let Err(error) = app.usage.write(&app.store).await {
        tracing::warn!(%error, "when keys were last used can't be written");
    }
}

async fn chores(app: Arc<App>) {
    loop {
        tokio::time::sleep(CHORES_INTERVAL).await;
        let swept = app.identities.sessions.sweep().await;
        let terminals = app.identities.terminals.sweep().await;
        let expired = app.store.delete_expired_tokens().await;
        let unused = app.store.forget_unused_refresh_tokens().await;
        for outcome in [swept, terminals, expired, unused] {
            if let Err(error) = outcome {
                tracing::warn!(%error, "what has ended can't be forgotten");
            }
        }
    }
}

/// Renews the claims of who is signed in, when they are due.
async fn renewals(app: Arc<App>) {
    loop {
        tokio::time::sleep(RENEWALS_INTERVAL).await;
        let live = app.live();
        // What somebody does shall count: it is looked up whether anything of theirs was used.
        write_usage(&app).await;
        if let Err(error) = app.identities.renewals.run(&live.verifiers).await {
            tracing::warn!(%error, "claims can't be renewed");
        }
    }
}

/// `berth-proxy people`: who holds which name; or gives a name away.
pub fn people(path: &Path, release: Option<&str>) -> Result<(), String> {
    let (config, _) = Config::read(path).map_err(|problems| problems.to_string())?;
    let runtime = Runtime::new().map_err(|e| format!("can't start threads: {e}"))?;
    runtime.block_on(async {
        let store = Store::open(&config.state.database).await?;
        if let Some(name) = release {
            return match store.release(name).await.map_err(|e| e.to_string())? {
                true => {
                    println!(
                        "{name} is whose who signs in with it next; the sessions and API keys of before have ended"
                    );
                    Ok(())
                }
                false => Err(format!("nobody holds the name {name}")),
            };
        }
        for Standing { id, name, seen_at, suspended, .. } in store.people().await.map_err(|e| e.to_string())? {
            let seen = OffsetDateTime::from_unix_timestamp(seen_at).ok().and_then(|at| at.format(&Rfc3339).ok());
            let (seen, suspended) = (seen.unwrap_or_default(), if suspended.is_some() { "\tsuspended" } else { "" });
            // Names are what a provider says: nothing of them shall move a terminal.
            let (name, subject) = (name.escape_debug(), id.subject.escape_debug());
            println!("{name}\t{}\t{subject}\t{seen}{suspended}", id.provider);
        }
        Ok(())
    })
}

/// `berth-proxy backup`: copies the database and the secret, while the proxy runs.
pub fn backup(path: &Path, to: &Path) -> Result<(), String> {
    let (config, _) = Config::read(path).map_err(|problems| problems.to_string())?;
    let runtime = Runtime::new().map_err(|e| format!("can't start threads: {e}"))?;
    let failed = |path: &Path, e: std::io::Error| format!("{}: {e}", path.display());
    std::fs::create_dir_all(to).map_err(|e| failed(to, e))?;
    let (database, secret) = (to.join("proxy.db"), to.join("proxy.key"));
    for taken in [&database, &secret] {
        if taken.exists() {
            return Err(format!("{} is there already; give a folder without a backup", taken.display()));
        }
    }
    // The secret first: whatever the copy of the database holds was sealed with it.
    RootKey::load(&config.state.secret_file)?;
    let copied = std::fs::copy(&config.state.secret_file, &secret).and_then(|_| File::open(&secret)?.sync_all());
    copied.map_err(|e| failed(&secret, e))?;
    match runtime.block_on(back_up(&config.state.database, &database))? {
        true => println!("{} and {}: keep them apart, and the second one safe", database.display(), secret.display()),
        false => println!("{}; the database is PostgreSQL's: use pg_dump", secret.display()),
    }
    Ok(())
}

/// Where this machine reaches a server that listens there.
fn reachable(listen: SocketAddr) -> SocketAddr {
    match listen.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => SocketAddr::new(Ipv4Addr::LOCALHOST.into(), listen.port()),
        IpAddr::V6(ip) if ip.is_unspecified() => SocketAddr::new(Ipv6Addr::LOCALHOST.into(), listen.port()),
        _ => listen,
    }
}

/// By which name a health check asks for us.
const PROGRAM: &str = "berth-proxy";

/// `berth-proxy health`: asks the running proxy, whatever the file says by now; on the port of the file, if it can't be
/// asked otherwise.
pub fn health(path: &Path) -> Result<(), String> {
    if let Some(health) = ask_health(PROGRAM, path) {
        return match health {
            Health::Well => Ok(()),
            health => Err(format!("the proxy of {} is not well: {health}", path.display())),
        };
    }
    let (config, _) = Config::read(path).map_err(|problems| problems.to_string())?;
    let address = reachable(config.listen);
    let scheme = if config.tls.is_some() { "https" } else { "http" };
    let unwell = |cause: String| format!("the proxy at {scheme}://{address} is not well: {cause}");
    let asked = async {
        // Its certificate is for its public name; here it is asked by its address, on this machine.
        let client = reqwest::Client::builder().no_proxy().tls_danger_accept_invalid_certs(true);
        let client = client.timeout(Duration::from_secs(5)).build().map_err(|e| e.to_string())?;
        let answer = client.get(format!("{scheme}://{address}/readyz")).send().await.map_err(|e| e.to_string())?;
        let status = answer.status();
        let text = answer.text().await.map_err(|e| e.to_string())?;
        if status.is_success() { Ok(()) } else { Err(format!("{status}: {}", text.trim())) }
    };
    let runtime = Runtime::new().map_err(|e| unwell(e.to_string()))?;
    runtime.block_on(asked).map_err(unwell)
}
