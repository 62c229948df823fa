//! The stand-in identity provider as a process.

use berth_tests::stand_in::{Application, router};
use clap::Parser;

#[derive(Parser)]
#[command(about = "A stand-in for authentik, for trying Berth out and for tests")]
struct Arguments {
    /// The port to listen on, on loopback.
    #[arg(long)]
    port: u16,
    /// The application's name in its addresses.
    #[arg(long, default_value = "berth")]
    slug: String,
    #[arg(long)]
    client_id: String,
    #[arg(long)]
    client_secret: String,
    /// Where the application may send people back to, exactly.
    #[arg(long)]
    redirect_uri: String,
}

#[tokio::main]
async fn main() -> std::io::Result<()> {
    let Arguments { port, slug, client_id, client_secret, redirect_uri } = Arguments::parse();
    let origin = format!("http://localhost:{port}");
    let application = Application { origin, slug, client_id, client_secret, redirect_uri };
    let listener = tokio::net::TcpListener::bind(("127.0.0.1", port)).await?;
    axum::serve(listener, router(application)).await
}
