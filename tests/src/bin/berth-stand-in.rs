//! The stand-in identity provider as a process.

use std::{net::SocketAddr, path::PathBuf};

use berth_tests::{
    blueprint,
    stand_in::{Application, CI_PASSWORD, GRANT_TYPES, router},
};
use clap::Parser;

#[derive(Parser)]
#[command(about = "A stand-in for authentik, for trying Berth out and for tests")]
struct Arguments {
    /// The port to listen on, on loopback.
    #[arg(long, default_value_t = 9000)]
    port: u16,
    /// Another address to listen on.
    #[arg(long)]
    listen: Option<SocketAddr>,
    /// The address that browsers and registries use, if it isn't http://localhost with the port.
    #[arg(long)]
    origin: Option<String>,
    /// An authentik blueprint that says the rest.
    #[arg(long, conflicts_with_all = ["client_id", "client_secret", "redirect_uri"])]
    blueprint: Option<PathBuf>,
    #[arg(long, default_value = "")]
    client_id: String,
    #[arg(long, default_value = "")]
    client_secret: String,
    /// Where the application may send people back to, exactly.
    #[arg(long, default_value = "")]
    redirect_uri: String,
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let Arguments { port, listen, origin, blueprint, client_id, client_secret, redirect_uri } = Arguments::parse();
    let origin = origin.unwrap_or_else(|| format!("http://localhost:{port}"));
    let application = match blueprint {
        Some(path) => blueprint::application(&path, &origin)?,
        None => Application {
            origin,
            slug: "berth".to_owned(),
            client_id,
            client_secret,
            redirect_uri,
            grant_types: GRANT_TYPES.map(str::to_owned).to_vec(),
            ci_password: CI_PASSWORD.to_owned(),
        },
    };
    let listener = tokio::net::TcpListener::bind(listen.unwrap_or(SocketAddr::from(([127, 0, 0, 1], port)))).await?;
    axum::serve(listener, router(application)).await?;
    Ok(())
}
