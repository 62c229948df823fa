//! Many clients at once, and large uploads: what is held for them.

use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

use berth_bench::{
    client::{Asked, Dialer},
    content::Large,
    report::{Machine, digits},
    servers::Servers,
};
use berth_tests::system::Setup;
use futures_util::future::join_all;
use http::Method;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpSocket, TcpStream},
};

use super::{Peer, Scope, folder, median, proxied, tls::certificate};

const CLIENTS: usize = 500;
const LAYER_MIB: u64 = 50;
const LAYERS: usize = 10;
/// As many as Berth takes, but for the one that measures.
const IDLE: usize = 9_990;

pub async fn table(scope: &Scope) -> String {
    let files = folder();
    let tls = certificate(files.path());
    let setup = Setup { tls: Some(tls.clone()), ..Setup::default() };
    let (berth, key) = proxied("Berth", None, setup).await;
    let mut out = format!("{}.\n\n| | |\n|---|---|\n", Machine::this());

    let layers: Vec<Large> = (0..LAYERS).map(|i| Large::new(1000 + i as u64, LAYER_MIB << 20)).collect();
    for layer in &layers {
        berth.push_blob("public/bench", layer).await;
    }
    let credential = berth_bench::credential::Credential::Basic("alice".to_owned(), key);
    let url: url::Url = berth.url.parse().expect("an address");
    let dialer = Dialer::new(Some(&tls.0), false).expect("a client");
    let shown = credential.header(&dialer, &url, "public/bench").await.expect("a header");
    let asked = |i: usize| {
        let mut asked = Asked::new(Method::GET, format!("/v2/public/bench/blobs/{}", layers[i % LAYERS].digest));
        asked.headers.extend(shown.clone());
        asked
    };
    let began = Instant::now();
    let mut connection = dialer.connect(&url).await.expect("a connection");
    for i in 0..LAYERS * 4 {
        connection.read(&asked(i)).await.expect("a layer");
    }
    let mib = |layers: usize, took: Duration| (layers as u64 * LAYER_MIB) as f64 / took.as_secs_f64();
    let one = mib(LAYERS * 4, began.elapsed());
    out +=
        &format!("| one client, {LAYERS} layers of {LAYER_MIB} MiB again and again, TLS | {} MiB/s |\n", digits(one));
    for (name, differ) in [("the same layer", false), ("ten layers", true)] {
        let watch = Watch::new(berth.servers.clone());
        let mut connections = Vec::new();
        for _ in 0..CLIENTS {
            connections.push(dialer.connect(&url).await.expect("a connection"));
        }
        let began = Instant::now();
        let pulls = connections.into_iter().enumerate().map(|(i, mut connection)| {
            let asked = asked(if differ { i } else { 0 });
            tokio::spawn(async move {
                connection.read(&asked).await.expect("a layer");
                began.elapsed().as_secs_f64()
            })
        });
        let times: Vec<f64> =
            join_all(pulls.collect::<Vec<_>>()).await.into_iter().map(|time| time.expect("pulled")).collect();
        let all = mib(CLIENTS, began.elapsed());
        let (slowest, middle) = (times.iter().copied().fold(0.0, f64::max), median(times));
        out += &format!(
            "| {CLIENTS} clients at once, {name} of {LAYER_MIB} MiB each, TLS | {} MiB/s (×{:.2} of one); the slowest took ×{:.2} \
             of the median; RSS {} MiB |\n",
            digits(all),
            all / one,
            slowest / middle,
            digits(watch.end().await)
        );
    }
    out += &pushed(&berth, scope.large_mib * 10).await;
    drop(berth);
    out + &idle().await
}

/// The memory that servers use, at its most.
struct Watch(tokio::task::JoinHandle<()>, std::sync::Arc<std::sync::Mutex<f64>>);

impl Watch {
    fn new(servers: Servers) -> Self {
        let most = std::sync::Arc::new(std::sync::Mutex::new(0.0_f64));
        let seen = std::sync::Arc::clone(&most);
        let watching = async move {
            loop {
                if let Ok(mut most) = seen.lock() {
                    *most = most.max(servers.rss_mib());
                }
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        };
        Self(tokio::spawn(watching), most)
    }

    async fn end(self) -> f64 {
        self.0.abort();
        *self.1.lock().expect("a number")
    }
}

async fn pushed(berth: &Peer, mib: u64) -> String {
    let (large, watch) = (Large::new(5, mib << 20), Watch::new(berth.servers.clone()));
    let began = Instant::now();
    berth.push_blob("public/bench", &large).await;
    let took = began.elapsed().as_secs_f64();
    format!(
        "| a push of {} GiB over TLS | {} MiB/s; RSS {} MiB at most |\n",
        digits(mib as f64 / 1024.0),
        digits(mib as f64 / took),
        digits(watch.end().await)
    )
}

/// Connections that have had an answer and wait. They come from many addresses: one may not have so many.
async fn idle() -> String {
    let (berth, _) = proxied("Berth", None, Setup::default()).await;
    let url: url::Url = berth.url.parse().expect("an address");
    let port = url.port().expect("a port");
    let before = berth.servers.rss_mib();
    let mut streams: Vec<TcpStream> = Vec::new();
    for i in 0..IDLE {
        let socket = TcpSocket::new_v4().expect("a socket");
        let from = format!("127.1.{}.{}:0", i / 50 / 250, i / 50 % 250 + 1);
        socket.bind(from.parse::<SocketAddr>().expect("an address")).expect("an address of this machine");
        let mut stream = socket.connect(([127, 0, 0, 1], port).into()).await.expect("a connection");
        stream.write_all(b"GET /v2/ HTTP/1.1\r\nhost: localhost\r\n\r\n").await.expect("sent");
        let mut answer = [0; 64];
        assert!(stream.read(&mut answer).await.expect("an answer") > 0);
        streams.push(stream);
    }
    let after = berth.servers.rss_mib();
    let open = streams.iter().filter(|stream| !matches!(stream.try_read(&mut [0; 4096]), Ok(0))).count();
    format!("| {open} idle connections | RSS {} MiB (before: {} MiB) |\n", digits(after), digits(before))
}
