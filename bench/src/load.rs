//! The same request, again and again, on many connections at once.

use std::time::{Duration, Instant};

use crate::{
    Error,
    client::{Asked, Dialer},
};
use url::Url;

/// How it went.
pub struct Load {
    /// How long each request took, sorted.
    pub times: Vec<Duration>,
    /// How many bytes came.
    pub bytes: u64,
    /// How long all of it took.
    pub took: Duration,
}

impl Load {
    /// How many requests were answered in a second.
    pub fn rate(&self) -> f64 {
        self.times.len() as f64 / self.took.as_secs_f64()
    }

    /// How long the given hundredths of the requests took at most, in milliseconds.
    pub fn percentile_ms(&self, hundredths: usize) -> f64 {
        let at = (self.times.len() * hundredths / 100).min(self.times.len().saturating_sub(1));
        self.times.get(at).map_or(0.0, |time| time.as_secs_f64() * 1e3)
    }
}

/// Sends `asked` on each of `connections` until `duration` is over.
///
/// # Errors
/// If a request isn't answered as it should.
pub async fn repeat(
    dialer: &Dialer,
    url: &Url,
    asked: &Asked,
    connections: usize,
    duration: Duration,
) -> Result<Load, Error> {
    let mut ready = Vec::with_capacity(connections);
    for _ in 0..connections {
        ready.push(dialer.connect(url).await?);
    }
    let began = Instant::now();
    let askers = ready.into_iter().map(|mut connection| {
        let asked = asked.clone();
        tokio::spawn(async move {
            let (mut times, mut bytes) = (Vec::new(), 0);
            while began.elapsed() < duration {
                let began = Instant::now();
                bytes += connection.read(&asked).await?;
                times.push(began.elapsed());
            }
            Ok::<_, Error>((times, bytes))
        })
    });
    let mut load = Load { times: Vec::new(), bytes: 0, took: Duration::ZERO };
    for asker in askers.collect::<Vec<_>>() {
        let (times, bytes) = asker.await??;
        load.times.extend(times);
        load.bytes += bytes;
    }
    load.took = began.elapsed();
    load.times.sort_unstable();
    Ok(load)
}
