//! Staying open while somebody tries to shut everybody out.

use std::{
    net::{IpAddr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use berth_tests::{
    api::Api,
    process::{trusting, wait_for, wait_within},
    system::{Setup, System},
};
use reqwest::{Client, StatusCode};
use rustls::{ClientConfig, crypto::aws_lc_rs, pki_types::ServerName};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpSocket, TcpStream},
    task::JoinSet,
};
use tokio_rustls::TlsConnector;

use crate::authority::Authority;

/// How many connections the attacker keeps open.
const HOSTILE: usize = 6000;

/// How long each kind is tried: two minutes together.
const EACH: Duration = Duration::from_secs(30);

/// How long it waits to open another for one that was closed.
const COMES_AGAIN: Duration = Duration::from_secs(10);

#[derive(Clone, Copy, Debug)]
enum Kind {
    /// HTTP/2 was agreed on, and its preface never comes.
    WithoutPreface,
    /// No ClientHello comes.
    WithoutHello,
    /// A plain connection without a request.
    Idle,
    /// A request whose body never comes.
    WithoutBody,
}

/// As many descriptors as this process may have.
fn raise_descriptor_limit() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum }).unwrap();
}

async fn connect(to: SocketAddr) -> std::io::Result<TcpStream> {
    tokio::time::timeout(Duration::from_secs(20), TcpSocket::new_v4()?.connect(to)).await?
}

/// One of the attacker's connections, again and again, each for as long as it is left open.
async fn besiege(kind: Kind, to: SocketAddr, tls: TlsConnector, over: Arc<AtomicBool>, opened: Arc<AtomicUsize>) {
    while !over.load(Ordering::Relaxed) {
        let Ok(stream) = connect(to).await else { continue };
        let silent: Result<(), std::io::Error> = async {
            let mut byte = [0];
            match kind {
                Kind::WithoutHello | Kind::Idle => {
                    opened.fetch_add(1, Ordering::Relaxed);
                    let mut stream = stream;
                    while stream.read(&mut byte).await? > 0 {}
                }
                Kind::WithoutBody => {
                    let mut stream = stream;
                    let request = "POST /zot/auth/token HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\n\r\n";
                    stream.write_all(request.as_bytes()).await?;
                    opened.fetch_add(1, Ordering::Relaxed);
                    while stream.read(&mut byte).await? > 0 {}
                }
                Kind::WithoutPreface => {
                    let name = ServerName::try_from("localhost").unwrap();
                    let mut stream = tls.connect(name, stream).await?;
                    opened.fetch_add(1, Ordering::Relaxed);
                    // What the server says first is read, and nothing is said.
                    while stream.read(&mut byte).await? > 0 {}
                }
            }
            Ok(())
        }
        .await;
        drop(silent);
        // Whoever was shown out comes again, though not at once: this is about places, and not about handshakes.
        tokio::time::sleep(COMES_AGAIN).await;
    }
}

fn tls_that_takes_h2() -> TlsConnector {
    let mut config = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(anything::TakesAnything))
        .with_no_client_auth();
    config.alpn_protocols = vec![b"h2".to_vec()];
    TlsConnector::from(Arc::new(config))
}

/// The tests make their own certificates.
mod anything {
    use rustls::{
        DigitallySignedStruct, Error, SignatureScheme,
        client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
        crypto::aws_lc_rs::default_provider,
        pki_types::{CertificateDer, ServerName, UnixTime},
    };

    #[derive(Debug)]
    pub struct TakesAnything;

    impl ServerCertVerifier for TakesAnything {
        fn verify_server_cert(
            &self,
            _: &CertificateDer<'_>,
            _: &[CertificateDer<'_>],
            _: &ServerName<'_>,
            _: &[u8],
            _: UnixTime,
        ) -> Result<ServerCertVerified, Error> {
            Ok(ServerCertVerified::assertion())
        }

        fn verify_tls12_signature(
            &self,
            _: &[u8],
            _: &CertificateDer<'_>,
            _: &DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, Error> {
            Ok(HandshakeSignatureValid::assertion())
        }

        fn verify_tls13_signature(
            &self,
            _: &[u8],
            _: &CertificateDer<'_>,
            _: &DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, Error> {
            Ok(HandshakeSignatureValid::assertion())
        }

        fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
            default_provider().signature_verification_algorithms.supported_schemes()
        }
    }
}

/// A client at another address.
fn elsewhere() -> Client {
    let address: IpAddr = "127.0.0.2".parse().unwrap();
    trusting().local_address(address).pool_max_idle_per_host(0).timeout(Duration::from_secs(30)).build().unwrap()
}

/// Keeps up an attack from 127.0.0.1, and asks from 127.0.0.2; every request must be answered.
async fn withstands(system: &System, kind: Kind, key: &str) {
    let to: SocketAddr = format!("127.0.0.1:{}", system.authority().split(':').nth(1).unwrap()).parse().unwrap();
    let (over, opened) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
    let tls = tls_that_takes_h2();
    let mut attack = JoinSet::new();
    for _ in 0..HOSTILE {
        attack.spawn(besiege(kind, to, tls.clone(), Arc::clone(&over), Arc::clone(&opened)));
    }
    // Handshakes take long where machines are slow.
    wait_within(Duration::from_mins(5), "the attack", async || {
        (opened.load(Ordering::Relaxed) >= HOSTILE).then_some(())
    })
    .await;
    let (began, mut asked) = (Instant::now(), 0);
    let kept = trusting().local_address("127.0.0.2".parse::<IpAddr>().unwrap()).timeout(Duration::from_secs(30));
    let kept = kept.build().unwrap();
    while began.elapsed() < EACH || asked <= 20 {
        for client in [&elsewhere(), &kept] {
            let answer = client.get(format!("{}/v2/", system.url)).basic_auth("alice", Some(key)).send().await;
            let status = answer.unwrap_or_else(|error| panic!("{kind:?}, request {asked}: {error:?}")).status();
            assert_eq!(status, StatusCode::OK, "{kind:?}, request {asked}");
            asked += 1;
        }
    }
    assert!(began.elapsed() < 4 * EACH, "{asked} requests in {:?}", began.elapsed());
    over.store(true, Ordering::Relaxed);
    attack.shutdown().await;
    assert!(opened.load(Ordering::Relaxed) > HOSTILE, "nobody was ever shown out");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn six_thousand_silent_connections_of_one_address_shut_nobody_else_out() {
    raise_descriptor_limit();
    let folder = tempfile::tempdir().unwrap();
    // Fewer places than the attacker takes: room must be made.
    let descriptors = Some(6000);
    let tls = Some(Authority::new().write(folder.path()));
    let secure = System::start(Setup { tls, descriptors, ..Setup::default() }).await;
    let plain = System::start(Setup { descriptors, ..Setup::default() }).await;
    for (system, kind) in [
        (&secure, Kind::WithoutPreface),
        (&secure, Kind::WithoutHello),
        (&plain, Kind::Idle),
        (&plain, Kind::WithoutBody),
    ] {
        let (key, _) = system.signed_in("alice").await.make_key("a").await;
        withstands(system, kind, &key).await;
        let metrics = Api::basic(&system.url, "alice", &key).get("/metrics").await.text().await.unwrap();
        let evicted = metrics.lines().find(|line| line.starts_with("berth_connections_evicted_total")).unwrap();
        assert!(!evicted.ends_with(" 0"), "{evicted}");
    }
    secure.proxy.prints("an idle connection was closed to make room").await;
    secure.proxy.prints("a handshake failed").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_mebibyte_of_headers_on_each_of_1500_connections_costs_little_and_is_given_back() {
    raise_descriptor_limit();
    let system = System::start(Setup::default()).await;
    let to: SocketAddr = format!("127.0.0.1:{}", system.authority().split(':').nth(1).unwrap()).parse().unwrap();
    let mut attack = JoinSet::new();
    let at_the_brim = Arc::new(tokio::sync::Barrier::new(1501));
    for _ in 0..1500 {
        let at_the_brim = Arc::clone(&at_the_brim);
        attack.spawn(async move {
            let mut stream = connect(to).await.unwrap();
            let line = |i: usize| format!("X-{i}: {}\r\n", "y".repeat(1015));
            let headers: String = (0..62).map(line).collect();
            let _ = stream.write_all(format!("GET /v2/ HTTP/1.1\r\nHost: x\r\n{headers}").as_bytes()).await;
            // All of them at once with as much as there may be.
            at_the_brim.wait().await;
            for i in 62..1024 {
                if stream.write_all(line(i).as_bytes()).await.is_err() {
                    break;
                }
            }
            // The headers never end; the answer is there all the same.
            let mut answer = vec![0; 12];
            let answered = tokio::time::timeout(Duration::from_secs(60), stream.read_exact(&mut answer)).await;
            let _ = answered.expect("an answer, or the end");
            (String::from_utf8_lossy(&answer).into_owned(), stream)
        });
    }
    at_the_brim.wait().await;
    let mut highest = system.proxy.memory() / 1024;
    let (mut held, mut refused) = (Vec::new(), 0);
    while let Some(answer) = attack.join_next().await {
        let (answer, stream) = answer.unwrap();
        // Whose headers took longer than they may, on a slow machine, hears nothing.
        assert!(matches!(answer.as_str(), "HTTP/1.1 431" | "\0\0\0\0\0\0\0\0\0\0\0\0"), "{answer:?}");
        refused += usize::from(answer.starts_with("HTTP"));
        held.push(stream);
        highest = highest.max(system.proxy.memory() / 1024);
    }
    assert!(refused > 300, "{refused}");
    assert!(highest < 150, "{highest} MiB");
    drop(held);
    wait_for("the memory to be given back", async || (system.proxy.memory() < 100 * 1024).then_some(())).await;
}

#[tokio::test]
async fn headers_that_come_slowly_or_never_end_the_connection() {
    let system = System::start(Setup::default()).await;
    let silent = async |first: &'static [u8]| {
        let began = Instant::now();
        let mut stream = TcpStream::connect(system.authority()).await.unwrap();
        stream.write_all(first).await.unwrap();
        let mut answer = Vec::new();
        let _ = tokio::time::timeout(Duration::from_secs(30), stream.read_to_end(&mut answer)).await.unwrap();
        (began.elapsed(), answer)
    };
    let (nothing, half) = tokio::join!(silent(b""), silent(b"GET /v2/ HTTP/1.1\r\nHost: x\r\n"));
    for (took, answer) in [nothing, half] {
        assert!(took >= Duration::from_secs(9), "{took:?}");
        assert!(answer.is_empty(), "{}", String::from_utf8_lossy(&answer));
    }
    // A request's headers have as long from their first byte, on a connection that had one before.
    let mut stream = TcpStream::connect(system.authority()).await.unwrap();
    stream.write_all(b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
    let mut answer = Vec::new();
    while !answer.ends_with(b"ok\n") {
        assert!(stream.read_buf(&mut answer).await.unwrap() > 0);
    }
    let began = Instant::now();
    stream.write_all(b"GET /livez HTTP/1.1\r\n").await.unwrap();
    let closed = tokio::time::timeout(Duration::from_secs(30), stream.read(&mut [0])).await.unwrap();
    assert!(matches!(closed, Ok(0) | Err(_)) && began.elapsed() >= Duration::from_secs(9), "{:?}", began.elapsed());
}

#[tokio::test]
async fn many_requests_on_one_connection_are_no_long_header() {
    let system = System::start(Setup::default()).await;
    let mut stream = TcpStream::connect(system.authority()).await.unwrap();
    let request = format!("GET /livez HTTP/1.1\r\nHost: x\r\nX: {}\r\n\r\n", "y".repeat(8000));
    for i in 0..40 {
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = Vec::new();
        while !answer.ends_with(b"ok\n") {
            let read = stream.read_buf(&mut answer).await.unwrap();
            assert!(read > 0, "request {i}: {}", String::from_utf8_lossy(&answer));
        }
        assert!(answer.starts_with(b"HTTP/1.1 200"), "request {i}: {}", String::from_utf8_lossy(&answer));
    }
}
