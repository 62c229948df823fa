//! The power goes: what was acknowledged is there in each state that a disk may be left in, and not only after `kill -9`.
//!
//! The real process runs under `strace` while two clients push, move tags, delete, and leave uploads, and while garbage is
//! collected. The trace is replayed into a [disk](disk) that knows what is durable after which flush. Of the states that a cut
//! may leave at any moment some are drawn by a seed, and the registry is started on each. A replay that forgets the flushes of
//! one kind must find a state in which something is missing: so each of them is needed, and the test can fail.

mod disk;
mod trace;

use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    fs,
    path::Path,
    process::Command,
    sync::Mutex,
};

use berth_tests::{
    api::{Api, Credential},
    images::{Image, MANIFEST, digest},
    process::{Process, free_port, wait_for},
    system::binary,
    tools::{find, run},
};
use reqwest::StatusCode;
use serde_json::json;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use self::{
    disk::{Disk, State},
    trace::{Call, Event},
};

/// How many states are tried; `BERTH_POWER_CUTS` says otherwise.
fn cuts() -> usize {
    std::env::var("BERTH_POWER_CUTS").ok().and_then(|text| text.parse().ok()).unwrap_or(400)
}

/// Whether a flush of this path is of a kind.
type Kind = fn(&str) -> bool;

/// What a tag points at, if it is there.
type Tags = BTreeMap<(String, String), Option<usize>>;

/// Something that a client did: the tags that it set or took away, and how many answers its connection had had when it was
/// acknowledged.
struct Done {
    port: u16,
    answers: usize,
    tags: Tags,
}

/// A client with one connection, on which it asks one thing after the other.
struct Client {
    stream: TcpStream,
    port: u16,
    answers: usize,
}

impl Client {
    async fn connect(port: u16) -> Self {
        let stream = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
        let port = stream.local_addr().unwrap().port();
        Self { stream, port, answers: 0 }
    }

    /// The status, and where to go on.
    async fn ask(&mut self, method: &str, target: &str, content_type: &str, body: &[u8]) -> (u16, String) {
        let head = format!(
            "{method} {target} HTTP/1.1\r\nHost: r\r\nContent-Type: {content_type}\r\nContent-Length: {}\r\n\r\n",
            body.len()
        );
        self.stream.write_all(&[head.as_bytes(), body].concat()).await.unwrap();
        let mut answer = Vec::new();
        let end = loop {
            if let Some(end) = answer.windows(4).position(|bytes| bytes == b"\r\n\r\n") {
                break end + 4;
            }
            assert!(self.stream.read_buf(&mut answer).await.unwrap() > 0, "{target}");
        };
        let head = String::from_utf8_lossy(&answer[..end]).to_lowercase();
        let header =
            |name: &str| head.lines().find_map(|line| line.strip_prefix(name)).map(str::trim).map(str::to_owned);
        let len: usize = header("content-length:").map_or(0, |len| len.parse().unwrap());
        while answer.len() < end + len {
            assert!(self.stream.read_buf(&mut answer).await.unwrap() > 0, "{target}");
        }
        self.answers += 1;
        (head[9..12].parse().unwrap(), header("location:").unwrap_or_default())
    }

    async fn push_blob(&mut self, repository: &str, bytes: &[u8], in_chunks: bool) {
        let kind = "application/octet-stream";
        if !in_chunks {
            let target = format!("/v2/{repository}/blobs/uploads/?digest={}", digest(bytes));
            assert_eq!(self.ask("POST", &target, kind, bytes).await.0, 201);
            return;
        }
        let (_, mut at) = self.ask("POST", &format!("/v2/{repository}/blobs/uploads/"), kind, b"").await;
        for chunk in bytes.chunks(bytes.len().div_ceil(2)) {
            let (status, next) = self.ask("PATCH", &at, kind, chunk).await;
            assert_eq!(status, 202);
            at = next;
        }
        assert_eq!(self.ask("PUT", &format!("{at}?digest={}", digest(bytes)), kind, b"").await.0, 201);
    }
}

/// The image that a number stands for.
fn image(number: usize) -> Image {
    Image::new(number as u64, 700)
}

/// Pushes, moves, deletes, and remembers what was acknowledged.
async fn work(port: u16, client: usize, done: &Mutex<Vec<Done>>) {
    let mut connection = Client::connect(port).await;
    for round in 0..10_usize {
        let number = 100 * client + round;
        let image = image(number);
        // One repository for both, and one for each.
        let repository = if round % 2 == 0 { "shared/app".to_owned() } else { format!("own/{client}") };
        connection.push_blob(&repository, &image.layer, round % 3 == 0).await;
        connection.push_blob(&repository, &image.config, false).await;
        // Two tags of its own, one of which always moves.
        for tag in [format!("latest-{client}"), format!("t{number}")] {
            let target = format!("/v2/{repository}/manifests/{tag}");
            assert_eq!(connection.ask("PUT", &target, MANIFEST, &image.manifest).await.0, 201);
            let tags = Tags::from([((repository.clone(), tag), Some(number))]);
            done.lock().unwrap().push(Done { port: connection.port, answers: connection.answers, tags });
        }
        let mut deletion = None;
        if round % 4 == 2 {
            deletion = Some((format!("t{number}"), vec![format!("t{number}")]));
        } else if round % 4 == 3 {
            deletion = Some((digest(&image.manifest), vec![format!("t{number}"), format!("latest-{client}")]));
        }
        if let Some((reference, gone)) = deletion {
            let target = format!("/v2/{repository}/manifests/{reference}");
            assert_eq!(connection.ask("DELETE", &target, "", b"").await.0, 202);
            let tags = gone.into_iter().map(|tag| ((repository.clone(), tag), None)).collect();
            done.lock().unwrap().push(Done { port: connection.port, answers: connection.answers, tags });
        }
        // An upload that nobody ends.
        let (_, upload) = connection.ask("POST", &format!("/v2/{repository}/blobs/uploads/"), "", b"").await;
        connection.ask("PATCH", &upload, "application/octet-stream", b"left").await;
    }
}

/// What must be there at a moment of the trace: for each tag, all that it may point at.
fn expected(
    done: &[Done],
    answers: &BTreeMap<u16, Vec<usize>>,
    moment: usize,
) -> BTreeMap<(String, String), HashSet<Option<usize>>> {
    let mut expected: BTreeMap<_, HashSet<Option<usize>>> = BTreeMap::new();
    let mut under_way = BTreeSet::new();
    for Done { port, answers: count, tags } in done {
        let acknowledged = answers[port].get(count - 1).is_some_and(|at| *at < moment);
        if acknowledged {
            expected.extend(tags.iter().map(|(tag, target)| (tag.clone(), HashSet::from([*target]))));
        } else if under_way.insert(*port) {
            // What this client is at may have happened, or a part of it.
            for (tag, target) in tags {
                expected.entry(tag.clone()).or_insert_with(|| HashSet::from([None])).insert(*target);
            }
        }
    }
    expected
}

/// States that power cuts leave, with the moments of the trace at which they do.
fn draw(events: &[Event], root: &str, ignored: &dyn Fn(&str) -> bool, count: usize) -> Vec<(usize, State)> {
    let mut seed = 0x9e37_79b9_7f4a_7c15_u64;
    let mut chance = move |below: usize| {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        usize::try_from(seed >> 33).unwrap() % below
    };
    let (mut disk, mut seen, mut states) = (Disk::default(), HashSet::new(), Vec::new());
    for event in events {
        disk.apply(event, ignored);
        let draws = if matches!(event.call, Call::Answer { .. }) { 2 } else { 1 };
        for _ in 0..draws {
            let state = disk.cut(root, &mut chance);
            if seen.insert(state.clone()) {
                states.push((event.ended + 1, state));
            }
        }
    }
    let mut drawn: Vec<_> = (0..count.min(states.len())).map(|_| states.swap_remove(chance(states.len()))).collect();
    drawn.sort_by_key(|(moment, _)| *moment);
    drawn
}

/// Starts the registry on a state; what is wrong with it.
async fn examine(
    state: &State,
    root: &str,
    expected: &BTreeMap<(String, String), HashSet<Option<usize>>>,
) -> Vec<String> {
    let folder = tempfile::tempdir().unwrap();
    let store = folder.path().join("store");
    state.write(root, &store);
    let port = free_port();
    let config = folder.path().join("config.json");
    let text =
        json!({"storage": {"rootDirectory": store}, "sidecar": {"upstream": format!("http://127.0.0.1:{port}")}});
    fs::write(&config, text.to_string()).unwrap();
    let mut command = Command::new(binary("berth-registry"));
    let mut process = Process::start(command.arg("serve").arg(&config), &folder.path().join("log")).unwrap();
    let api = Api::new(&format!("http://127.0.0.1:{port}"), Credential::None);
    let mut wrong = Vec::new();
    let starts = wait_for("the registry", async || {
        let serves = TcpStream::connect(("127.0.0.1", port)).await.is_ok();
        (serves || process.has_ended()).then_some(serves)
    })
    .await;
    if !starts {
        return vec![format!("it doesn't start: {}", process.printed())];
    }
    for ((repository, tag), targets) in expected {
        let answer = api.get(&format!("/v2/{repository}/manifests/{tag}")).await;
        let status = answer.status();
        let manifest = answer.bytes().await.unwrap();
        let found = targets.iter().flatten().find(|number| manifest == image(**number).manifest);
        match found {
            Some(number) => {
                let image = image(*number);
                let answer = api.get(&format!("/v2/{repository}/manifests/{}", digest(&image.manifest))).await;
                if answer.status() != StatusCode::OK {
                    wrong.push(format!("{repository}:{tag} is there, and not by its digest"));
                }
                for blob in [&image.layer, &image.config] {
                    let answer = api.get(&format!("/v2/{repository}/blobs/{}", digest(blob))).await;
                    if answer.status() != StatusCode::OK || answer.bytes().await.unwrap() != *blob {
                        wrong.push(format!("{repository}:{tag} lacks a blob"));
                    }
                }
            }
            None if status == StatusCode::NOT_FOUND && targets.contains(&None) => {}
            None => wrong.push(format!("{repository}:{tag} is {status}, expected {targets:?}")),
        }
    }
    process.terminate();
    let scrub = run(Command::new(binary("berth-registry")).arg("scrub").arg(&config));
    // What nobody holds yet may be half written; it was never acknowledged.
    for line in
        scrub.printed.lines().filter(|line| line.starts_with("damaged:") && !line.contains("no repository holds it"))
    {
        wrong.push(line.to_owned());
    }
    wrong
}

/// Runs the registry under strace, with its clients; the trace, and what was acknowledged.
async fn record(folder: &Path) -> Option<(String, Vec<Done>)> {
    let strace = find("strace")?;
    let (port, config, trace) = (free_port(), folder.join("config.json"), folder.join("trace"));
    let storage =
        json!({"rootDirectory": folder.join("store"), "gcAnyDelay": true, "gcDelay": "2s", "gcInterval": "1s"});
    let text = json!({"storage": storage, "sidecar": {"upstream": format!("http://127.0.0.1:{port}")}});
    fs::write(&config, text.to_string()).unwrap();
    let calls = "open,openat,creat,write,writev,sendto,sendmsg,ftruncate,mkdir,mkdirat,rename,renameat,renameat2,unlink,\
                 unlinkat,rmdir,fsync,fdatasync,pwrite64,pwritev,pwritev2,link,linkat,copy_file_range";
    let mut command = Command::new(strace);
    command.args(["-f", "-yy", "-s", "200000", "--seccomp-bpf", "-e", &format!("trace={calls}"), "-o"]);
    command.arg(&trace).arg(binary("berth-registry")).arg("serve").arg(&config);
    let process = Process::start(&mut command, &folder.join("log")).unwrap();
    wait_for("the registry", async || TcpStream::connect(("127.0.0.1", port)).await.ok()).await;
    let done = Mutex::new(Vec::new());
    tokio::join!(work(port, 1, &done), work(port, 2, &done));
    // A collection at the end has something to take.
    process.prints("garbage was collected").await;
    let pids = run(Command::new("pgrep").args(["-P", &process.id().to_string()])).printed;
    run(Command::new("kill").args(pids.split_whitespace()));
    wait_for("the trace", async || fs::read_to_string(&trace).ok()?.contains("+++ exited").then_some(())).await;
    let trace = fs::read_to_string(&trace).unwrap();
    for unknown in ["pwrite64(", "pwritev(", "pwritev2(", "copy_file_range(", " link(", " linkat("] {
        assert!(!trace.contains(unknown), "the disk doesn't know {unknown}");
    }
    Some((trace, done.into_inner().unwrap()))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_acknowledged_survives_a_power_cut_at_any_moment_and_each_flush_is_needed() {
    let folder = tempfile::tempdir().unwrap();
    let Some((text, done)) = record(folder.path()).await else { return };
    let root = folder.path().join("store").to_str().unwrap().to_owned();
    let events = trace::read(&text, &root);
    let mut answers: BTreeMap<u16, Vec<usize>> = BTreeMap::new();
    for event in &events {
        if let Call::Answer { port } = event.call {
            answers.entry(port).or_default().push(event.began);
        }
    }
    let states = draw(&events, &root, &|_| false, cuts());
    assert!(states.len() >= cuts().min(100), "{} states", states.len());
    for (moment, state) in &states {
        let wrong = examine(state, &root, &expected(&done, &answers, *moment)).await;
        assert!(wrong.is_empty(), "after line {moment} of the trace: {wrong:#?}");
    }
    println!("{} states of {} events", states.len(), events.len());
    // Each kind of flush, left out.
    let kinds: [(&str, Kind); 5] = [
        ("the bytes of uploads and of new files", |path| path.contains("/uploads/")),
        ("the folders of blobs", |path| path.contains("/blobs/sha256/")),
        ("the folders of manifests", |path| path.contains("_manifests")),
        ("the folders of tags", |path| path.contains("_tags")),
        ("the folders of folders", |path| path.ends_with("/repositories") || path.ends_with("/shared")),
    ];
    for (kind, ignored) in kinds {
        let mut found = false;
        for (moment, state) in draw(&events, &root, &ignored, cuts()) {
            if !examine(&state, &root, &expected(&done, &answers, moment)).await.is_empty() {
                found = true;
                break;
            }
        }
        assert!(found, "nothing is lost without flushing {kind}");
    }
}
