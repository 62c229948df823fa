//! How cost grows with the size of something, each measured at three sizes or more.

use std::process::Command;

use berth_bench::{
    api::Client,
    client::{Asked, Connection},
    content::{Image, MANIFEST},
    load::repeat,
    plot::{Line, svg},
    report::{Machine, digits},
};
use berth_tests::{
    postgres::Postgres,
    process::Process,
    system::{Setup, another_proxy, answers},
};
use futures_util::{StreamExt, stream};
use http::{Method, header::ACCEPT};

use super::{IMAGE_SEED, Peer, Scope, alone, folder, median, proxied};

/// What is asked, by its name.
type Question = (&'static str, Asked);

/// A curve: its name, its table and its picture.
pub type Curve = (&'static str, String, String);

/// Each curve is taken as soon as it is there: together they take minutes.
pub async fn each(scope: &Scope, take: impl Fn(Curve)) {
    take(replicas(scope).await);
    take(keys(scope).await);
    take(repositories(scope).await);
    take(tags(scope).await);
}

/// Pushes go over many connections at once.
async fn push_tags(peer: &Peer, names: impl Iterator<Item = (String, String)>, with_blobs: bool) {
    let (image, url) = (&Image::new(IMAGE_SEED, 4096), &peer.url.parse().expect("an address"));
    let push = async |(repository, tag): (String, String)| {
        let mut client = Client::new(&peer.dialer, url, &peer.credential, &repository).await.expect("a client");
        if with_blobs {
            client.push_image(image, &tag).await.expect("pushed");
        } else {
            client.push_manifest(image, &tag).await.expect("pushed");
        }
    };
    stream::iter(names).for_each_concurrent(16, push).await;
}

fn manifest(repository: &str, tag: &str) -> Asked {
    Asked::new(Method::GET, format!("/v2/{repository}/manifests/{tag}")).with(ACCEPT.as_str(), MANIFEST)
}

/// Milliseconds a request, one after the other, in the middle of some rounds.
async fn cost(peer: &Peer, asked: &Asked, scope: &Scope) -> f64 {
    let url = peer.url.parse().expect("an address");
    let mut asked = asked.clone();
    asked.headers.extend(peer.credential.header(&peer.dialer, &url, "public/bench").await.expect("a header"));
    let mut rounds = Vec::new();
    for _ in 0..scope.rounds {
        let load = repeat(&peer.dialer, &url, &asked, 1, scope.duration()).await.expect("answers");
        rounds.push(load.percentile_ms(50));
    }
    median(rounds)
}

fn curve(
    name: &'static str,
    title: &str,
    sizes: &str,
    measured: Vec<(f64, Vec<(&'static str, f64)>)>,
    more: &str,
) -> Curve {
    let names: Vec<&str> = measured[0].1.iter().map(|(name, _)| *name).collect();
    let mut text = format!(
        "{}; milliseconds a request, one after the other.\n\n![{title}](curves/{name}.svg)\n\n| {sizes} | {} |\n|---|{}\n",
        Machine::this(),
        names.join(" | "),
        "---|".repeat(names.len())
    );
    for (size, costs) in &measured {
        let cells: Vec<String> = costs.iter().map(|(_, cost)| format!("{cost:.3}")).collect();
        text += &format!("| {size} | {} |\n", cells.join(" | "));
    }
    let lines: Vec<Line> = names
        .iter()
        .enumerate()
        .map(|(i, name)| Line {
            name: (*name).to_owned(),
            points: measured.iter().map(|(size, costs)| (*size, costs[i].1)).collect(),
        })
        .collect();
    let picture = svg(title, sizes, "ms a request", &lines);
    (name, text + more, picture)
}

/// Tags of one repository.
async fn tags(scope: &Scope) -> Curve {
    let peer = alone("tags", None, serde_json::json!({})).await;
    peer.push_image("public/bench").await;
    let mut measured = Vec::new();
    let mut last = 0;
    for size in [100_u64, 1000, 10_000, 100_000] {
        push_tags(&peer, (last..size).map(|i| ("public/bench".to_owned(), format!("t{i}"))), false).await;
        last = size;
        let questions: [Question; 3] = [
            ("a manifest by tag", manifest("public/bench", "t7")),
            ("a page of 100 tags", Asked::new(Method::GET, "/v2/public/bench/tags/list?n=100")),
            ("a page from the middle", Asked::new(Method::GET, "/v2/public/bench/tags/list?n=100&last=t5")),
        ];
        measured.push((size as f64, costs(&peer, &questions, scope).await));
    }
    let rss = format!("\nThe registry's memory (RSS) with 100,000 tags: {} MiB.\n", digits(peer.servers.rss_mib()));
    curve("tags", "Tags in one repository", "tags", measured, &rss)
}

async fn costs(peer: &Peer, questions: &[Question], scope: &Scope) -> Vec<(&'static str, f64)> {
    let mut costs = Vec::new();
    for (name, asked) in questions {
        costs.push((*name, cost(peer, asked, scope).await));
    }
    costs
}

/// Repositories of one registry.
async fn repositories(scope: &Scope) -> Curve {
    let peer = alone("repositories", None, serde_json::json!({})).await;
    let mut measured = Vec::new();
    let mut last = 0;
    for size in [10_u64, 100, 1000, 10_000] {
        push_tags(&peer, (last..size).map(|i| (format!("public/r{i}"), "first".to_owned())), true).await;
        last = size;
        let questions: [Question; 2] = [
            ("a manifest by tag", manifest("public/r7", "first")),
            ("a page of 100 repositories", Asked::new(Method::GET, "/v2/_catalog?n=100")),
        ];
        measured.push((size as f64, costs(&peer, &questions, scope).await));
    }
    let rss =
        format!("\nThe registry's memory (RSS) with 10,000 repositories: {} MiB.\n", digits(peer.servers.rss_mib()));
    curve("repositories", "Repositories", "repositories", measured, &rss)
}

/// People and their API keys, through the proxy. They are written into its database as they would be there.
async fn keys(scope: &Scope) -> Curve {
    let (peer, _) = proxied("keys", None, Setup::default()).await;
    peer.push_image("public/bench").await;
    let url: url::Url = peer.url.parse().expect("an address");
    let database = peer.folder.join("proxy.db");
    let mut measured = Vec::new();
    let mut last = 0;
    for size in [100_u64, 1000, 10_000, 100_000] {
        let sql = format!(
            "PRAGMA busy_timeout = 10000; \
             WITH RECURSIVE n(i) AS (SELECT {last} UNION ALL SELECT i + 1 FROM n WHERE i + 1 < {size}) \
             INSERT INTO people (provider, subject, name, user_groups, claims, seen_at) \
             SELECT 'oidc', 's' || i, 'person' || i, '[]', '{{}}', 0 FROM n; \
             WITH RECURSIVE n(i) AS (SELECT {last} UNION ALL SELECT i + 1 FROM n WHERE i + 1 < {size}) \
             INSERT INTO api_keys (id, key_hash, provider, subject, label, user_agent, scopes, created_at) \
             SELECT 'k' || i, 'h' || i, 'oidc', 's' || i, '', '', '[]', 0 FROM n;"
        );
        let written = Command::new("sqlite3").arg(&database).arg(sql).output().expect("sqlite3");
        assert!(written.status.success(), "{}", String::from_utf8_lossy(&written.stderr));
        last = size;
        let known = cost(&peer, &manifest("public/bench", "measure"), scope).await;
        // A key that nobody has is looked for in the database each time.
        let unknown = wrong_keys(&peer, &url).await;
        measured.push((
            size as f64,
            vec![("a pull with a known key", known), ("a key that nobody knows, refused", unknown)],
        ));
    }
    let rss = format!("\nThe memory of both (RSS) with 100,000 people: {} MiB.\n", digits(peer.servers.rss_mib()));
    curve("people", "People with a key each", "people", measured, &rss)
}

/// The time until a wrong key is refused, in milliseconds: before anybody's guesses are slowed down.
async fn wrong_keys(peer: &Peer, url: &url::Url) -> f64 {
    let mut connection: Connection = peer.dialer.connect(url).await.expect("a connection");
    let mut times = Vec::new();
    for i in 0..3 {
        let wrong = berth_bench::credential::Credential::Basic("alice".to_owned(), format!("zak_{i:064x}"));
        let (name, value) = wrong.header(&peer.dialer, url, "public/bench").await.expect("a header").expect("a header");
        let asked = manifest("public/bench", "measure").with(name, value);
        let began = std::time::Instant::now();
        let answer = connection.send(&asked, berth_bench::client::empty()).await.expect("an answer");
        times.push(began.elapsed().as_secs_f64() * 1e3);
        assert!(!answer.status().is_success());
        connection = peer.dialer.connect(url).await.expect("a connection");
    }
    median(times)
}

/// Replicas of the proxy on one PostgreSQL, each with the same clients: what they ask of the database. On one machine more of them
/// aren't faster.
async fn replicas(scope: &Scope) -> Curve {
    let files = folder();
    let postgres = Postgres::start(&files.path().join("postgres")).await.expect("PostgreSQL");
    postgres.sql("postgres", "CREATE DATABASE berth");
    let sidecar = serde_json::json!({"database": postgres.url("berth"), "secretFile": files.path().join("secret")});
    let (mut peer, _) = proxied("replicas", None, Setup { sidecar, ..Setup::default() }).await;
    peer.push_image("public/bench").await;
    let mut more: Vec<Process> = Vec::new();
    let mut urls = vec![peer.url.clone()];
    let mut measured = Vec::new();
    for size in 1..=3 {
        if size > 1 {
            let (process, url) = another_proxy(&peer.folder.join("config.json"), files.path(), &size.to_string());
            answers(&format!("{url}/readyz")).await;
            more.push(process);
            urls.push(url);
        }
        // What a start asks isn't meant.
        for url in &urls {
            peer.url.clone_from(url);
            cost(&peer, &manifest("public/bench", "measure"), scope).await;
        }
        let committed = || {
            let sql = "SELECT xact_commit + xact_rollback FROM pg_stat_database WHERE datname = 'berth'";
            postgres.sql("berth", sql).trim().parse::<f64>().expect("a number")
        };
        let (before, began) = (committed(), std::time::Instant::now());
        let mut costs = Vec::new();
        for url in &urls {
            peer.url.clone_from(url);
            costs.push(cost(&peer, &manifest("public/bench", "measure"), scope).await);
        }
        let rate = (committed() - before) / began.elapsed().as_secs_f64();
        measured.push((
            f64::from(size),
            vec![("a pull with a known key", median(costs)), ("the database's transactions a second", rate)],
        ));
    }
    drop(more);
    curve("replicas", "Replicas of the proxy", "replicas", measured, "")
}
