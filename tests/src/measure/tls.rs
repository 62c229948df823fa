//! Large pulls over TLS, beside nginx with the same certificate, the same cipher and the same file.

use std::{path::Path, process::Command, time::Instant};

use berth_bench::{
    client::{Asked, Dialer},
    content::Large,
    report::{Machine, digits},
    servers::Servers,
};
use berth_tests::{
    process::{Process, free_port, wait_for},
    system::Setup,
    tools,
};
use http::Method;
use http_body_util::BodyExt;

use super::{Scope, folder, median, proxied};

pub async fn table(scope: &Scope) -> String {
    let files = folder();
    let tls = certificate(files.path());
    let (berth, key) =
        proxied("Berth, with an API key", None, Setup { tls: Some(tls.clone()), ..Setup::default() }).await;
    let large = Large::new(99, scope.large_mib << 20);
    berth.push_blob("public/bench", &large).await;
    let target = format!("/v2/public/bench/blobs/{}", large.digest);
    let mut peers = vec![("Berth, with an API key", berth.url.clone(), berth.servers.clone())];
    let nginx = nginx(files.path(), &tls, &target, &large).await;
    if let Some((process, url)) = &nginx {
        peers.push(("nginx, the file itself", url.clone(), Servers(vec![process.id()])));
    }
    let shown = berth_bench::credential::Credential::Basic("alice".to_owned(), key);
    let mut measured = vec![(Vec::new(), Vec::new()); peers.len() * 2];
    for _ in 0..scope.rounds {
        for (i, (_, url, servers)) in peers.iter().enumerate() {
            for http2 in [false, true] {
                let url = url.parse().expect("an address");
                let dialer = Dialer::new(Some(&tls.0), http2).expect("a client");
                let mut asked = Asked::new(Method::GET, &target);
                asked.headers.extend(shown.header(&dialer, &url, "public/bench").await.expect("a header"));
                let mut connection = dialer.connect(&url).await.expect("a connection");
                let (cpu, began) = (servers.cpu_seconds(), Instant::now());
                assert_eq!(connection.read(&asked).await.expect("the blob"), large.len);
                let (seconds, cpu) = (began.elapsed().as_secs_f64(), servers.cpu_seconds() - cpu);
                let (times, cpus) = &mut measured[i * 2 + usize::from(http2)];
                times.push(seconds);
                cpus.push(cpu);
            }
        }
    }
    let medians: Vec<(f64, f64)> = measured.into_iter().map(|(times, cpus)| (median(times), median(cpus))).collect();
    let mut out = format!(
        "{}; a blob of {} MiB over TLS 1.3 (AES-256-GCM), medians of {} rounds in turns.\n\n\
         | | HTTP/1.1 | HTTP/2 |\n|---|---|---|\n",
        Machine::this(),
        scope.large_mib,
        scope.rounds
    );
    for (i, (name, ..)) in peers.iter().enumerate() {
        let cell = |at: usize| {
            let (seconds, cpu) = medians[at];
            format!("{} s, {} CPU-s", digits(seconds), digits(cpu))
        };
        out += &format!("| {name} | {} | {} |\n", cell(i * 2), cell(i * 2 + 1));
    }
    if let [berth_first, berth_second, nginx_first, nginx_second] = &medians[..] {
        out += &format!(
            "| time of Berth's to nginx's | ×{:.2} | ×{:.2} |\n",
            berth_first.0 / nginx_first.0,
            berth_second.0 / nginx_second.0
        );
    }
    out
}

type Certificate = (std::path::PathBuf, std::path::PathBuf);

/// A certificate for localhost that signs itself.
pub fn certificate(folder: &Path) -> Certificate {
    let (certificate, key) = (folder.join("cert.pem"), folder.join("key.pem"));
    let mut openssl = Command::new("openssl");
    openssl.args(["req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost"]);
    openssl.args([
        "-addext",
        "subjectAltName=DNS:localhost,IP:127.0.0.1",
        "-addext",
        "basicConstraints=critical,CA:FALSE",
    ]);
    openssl.arg("-keyout").arg(&key).arg("-out").arg(&certificate);
    assert!(openssl.output().expect("openssl").status.success(), "openssl makes no certificate");
    (certificate, key)
}

async fn nginx(folder: &Path, tls: &Certificate, target: &str, large: &Large) -> Option<(Process, String)> {
    let program = tools::find("nginx")?;
    let (root, port) = (folder.join("nginx"), free_port());
    let file = root.join("www").join(target.trim_start_matches('/'));
    std::fs::create_dir_all(file.parent().expect("a folder")).expect("a folder");
    let (mut file, mut reader) = (std::fs::File::create(file).expect("a file"), large.reader());
    while let Some(Ok(frame)) = reader.frame().await {
        std::io::Write::write_all(&mut file, frame.data_ref().expect("bytes")).expect("written");
    }
    let config = format!(
        "daemon off; master_process off; pid {0}/pid; error_log {0}/log; events {{}} http {{ access_log off; sendfile on; \
         server {{ listen 127.0.0.1:{port} ssl http2; ssl_certificate {1}; ssl_certificate_key {2}; \
         ssl_protocols TLSv1.3; root {0}/www; }} }}",
        root.display(),
        tls.0.display(),
        tls.1.display()
    );
    let path = root.join("nginx.conf");
    std::fs::write(&path, config).expect("a file");
    let mut process = Process::start(Command::new(program).arg("-c").arg(&path), &root.join("out")).expect("a process");
    let client = berth_tests::process::trusting().build().expect("a client");
    let url = format!("https://localhost:{port}");
    wait_for("nginx", async || {
        assert!(!process.has_ended(), "{}", process.printed());
        client.get(&url).send().await.ok().map(drop)
    })
    .await;
    Some((process, url))
}
