//! Berth over a bucket, beside the bucket's own client (boto3) in the same run.

use std::{process::Command, time::Instant};

use berth_bench::{
    client::{Asked, Connection},
    content::Large,
    measure::Work,
    report::{Machine, digits},
};
use berth_tests::bucket::{Bucket, KEY, driver};
use http::Method;
use serde_json::json;

use super::{Scope, alone, folder, median};

const MIB: u64 = 100;

/// Prints the MB/s of a push and of a pull, and how many small objects are written in a second by 16 threads.
const BOTO: &str = r#"
import boto3, io, os, sys, time, concurrent.futures as futures
endpoint, key, secret, size = sys.argv[1:4] + [int(sys.argv[4])]
def client(): return boto3.client('s3', endpoint_url=endpoint, aws_access_key_id=key, aws_secret_access_key=secret, region_name='eu-central-1')
s3, data = client(), os.urandom(size)
began = time.time(); s3.upload_fileobj(io.BytesIO(data), 'bucket', 'boto/large'); push = time.time() - began
out = io.BytesIO(); began = time.time(); s3.download_fileobj('bucket', 'boto/large', out); pull = time.time() - began
assert out.getvalue() == data
clients = [client() for _ in range(16)]
def small(i):
    for n in range(30): clients[i].put_object(Bucket='bucket', Key=f'boto/{i}-{n}', Body=b'x' * 500)
with futures.ThreadPoolExecutor(16) as pool:
    began = time.time(); list(pool.map(small, range(16))); rate = 480 / (time.time() - began)
print(push, pull, rate)
"#;

pub async fn table(scope: &Scope) -> String {
    let files = folder();
    let Some(bucket) = Bucket::start(files.path()).await else { return "There is no versitygw here.".to_owned() };
    let storage = json!({"storageDriver": driver(&bucket.endpoint), "gcDelay": "10m"});
    let mut peers = vec![("Berth", alone("Berth over a bucket", None, storage.clone()).await)];
    if let Some(before) = &scope.before {
        peers.push(("Berth, before", alone("before", Some(before), storage).await));
    }
    // Two pushes, a pull; small writes, manifests by tag.
    let mut times: Vec<[Vec<f64>; 5]> = vec![[const { Vec::new() }; 5]; peers.len() + 1];
    for round in 0..scope.rounds {
        for ((_, peer), times) in peers.iter().zip(&mut times) {
            let [first, large] =
                [0, 1].map(|i| Large::new(77 + 2 * round as u64 + i + times.as_ptr() as u64, MIB << 20));
            times[0].push(peer.push_blob("public/bench", &first).await);
            times[1].push(peer.push_blob_at_once("public/bench", &large).await);
            let url = peer.url.parse().expect("an address");
            let mut connection: Connection = peer.dialer.connect(&url).await.expect("a connection");
            let asked = Asked::new(Method::GET, format!("/v2/public/bench/blobs/{}", large.digest));
            let began = Instant::now();
            connection.read(&asked).await.expect("the blob");
            times[2].push(began.elapsed().as_secs_f64());
            for (figure, times) in peer
                .measure(scope.settings(), &[Work::PushManifests, Work::PullManifest])
                .await
                .iter()
                .zip(&mut times[3..])
            {
                times.push(figure.value());
            }
        }
        let mut boto = Command::new("python3");
        boto.args(["-c", BOTO, &bucket.endpoint, KEY.0, KEY.1, &(MIB << 20).to_string()]);
        if let Ok(output) = boto.output()
            && output.status.success()
        {
            let text = String::from_utf8_lossy(&output.stdout).into_owned();
            let values: Vec<f64> = text.split_whitespace().filter_map(|value| value.parse().ok()).collect();
            if let (&[push, pull, rate], Some(times)) = (&*values, times.last_mut()) {
                // It pushes in one way only.
                times.iter_mut().zip([push, push, pull, rate]).for_each(|(times, value)| times.push(value));
            }
        }
    }
    let mut out = format!(
        "{}; versitygw, medians of {} rounds in turns.\n\n| | push of {MIB} MiB, as docker does | as containerd does | pull of it | \
         small writes by 16 at once | manifests by tag |\n|---|---|---|---|---|---|\n",
        Machine::this(),
        scope.rounds
    );
    let mib = |times: &[f64]| format!("{} MiB/s", digits(MIB as f64 / median(times.to_vec())));
    for ((name, _), times) in peers.iter().zip(&times) {
        let each = |i: usize| digits(median(times[i].clone()));
        out += &format!(
            "| {name} | {} | {} | {} | {}/s (manifests) | {}/s |\n",
            mib(&times[0]),
            mib(&times[1]),
            mib(&times[2]),
            each(3),
            each(4)
        );
    }
    match times.last() {
        Some(boto) if !boto[0].is_empty() => {
            out += &format!(
                "| boto3 | {} | the same | {} | {}/s (objects) | |\n",
                mib(&boto[0]),
                mib(&boto[2]),
                digits(median(boto[3].clone()))
            );
        }
        _ => out += "| boto3 | is not installed | | | | |\n",
    }
    out
}
