//! Sends what waits for one sink. Of one repository it sends one event after another; of many, several at once.

use std::{
    collections::{HashMap, HashSet, VecDeque},
    sync::Arc,
    time::{Duration, Instant},
};

use aws_lc_rs::hmac;
use berth_oci::Reference;
use futures_util::{StreamExt, stream::FuturesUnordered};
use http::{HeaderName, StatusCode, header};
use serde_json::Value;
use time::{OffsetDateTime, format_description::well_known::Rfc3339};
use uuid::Uuid;

use super::{Events, Kind, SinkConfig};
use crate::{
    registry::Registry,
    secrets::hex,
    store::{Announcement, EventWrite, StoreError, now},
};

/// How many repositories are told of at once.
const SEND_CONCURRENCY: usize = 16;

/// How many events are read at once, and how many of one repository: the others have their turn, too.
const MAX_BATCH: i64 = 200;
const MAX_PER_STREAM: i64 = 50;

/// How often it is looked whether others have something to send.
const POLL_INTERVAL: Duration = Duration::from_secs(1);

/// How long the first wait after a failure is, and the longest.
const MIN_WAIT: Duration = Duration::from_secs(1);
const MAX_WAIT: Duration = Duration::from_mins(1);

/// After how many failures of several repositories in a row nothing is sent for a while: the sink is down.
const MAX_FAILURES: u32 = 16;

/// How many repositories wait at most, each by itself, before they are taken for a sink that is down.
const MAX_WAITING_STREAMS: usize = 500;

/// The longest wait that a receiver may ask for.
const MAX_RETRY_AFTER: Duration = Duration::from_mins(5);

/// How old an event may become, in seconds: a receiver that takes none for a week gets no older ones.
const MAX_AGE_SECONDS: i64 = 7 * 24 * 60 * 60;

/// For how long a process sends alone, in seconds, and how often it says that it goes on.
const LEASE_SECONDS: i64 = 15;
const LEASE_INTERVAL: Duration = Duration::from_secs(5);

/// Every receiver takes as much, in bytes.
const MAX_SURE_BYTES: usize = 64 * 1024;

/// How often the log says that something can't be sent.
const COMPLAINT_INTERVAL: Duration = Duration::from_mins(1);

const SIGNATURE: HeaderName = HeaderName::from_static("x-berth-signature");

/// Why an event wasn't taken.
struct NotTaken {
    why: String,
    wait: Option<Duration>,
}

/// How long to wait after so many failures. Not all wait as long.
fn backoff(failures: u32) -> Duration {
    let longest = MIN_WAIT.saturating_mul(1 << failures.min(7)).min(MAX_WAIT);
    let jitter = u32::from(Uuid::new_v4().as_bytes()[0]);
    longest / 2 + longest / 2 * jitter / 255
}

/// What waits after failures.
#[derive(Default)]
struct Waits {
    /// Until when a stream waits, and how often it has failed.
    streams: HashMap<String, (Instant, u32)>,
    /// How many failures there were in a row, of whatever stream.
    failures: u32,
    /// Until when all wait.
    all: Option<Instant>,
    complained: Option<Instant>,
}

impl Waits {
    /// The streams that wait, and those that are being sent.
    fn but(&mut self, busy: &HashSet<String>) -> Vec<String> {
        let at = Instant::now();
        // One that has waited long enough, and isn't heard of any more, had its events dropped.
        self.streams.retain(|_, (until, _)| *until + 2 * MAX_RETRY_AFTER > at);
        let waiting = self.streams.iter().filter(|(_, (until, _))| *until > at).map(|(name, _)| name);
        waiting.chain(busy).cloned().collect()
    }

    /// How many may be sent at once.
    fn places(&self) -> usize {
        match self.all {
            Some(until) if until > Instant::now() => 0,
            // One finds out whether the sink is there again.
            Some(_) => 1,
            None => SEND_CONCURRENCY,
        }
    }

    fn note(&mut self, sink: &str, stream: String, outcome: Result<(), NotTaken>) {
        let Err(NotTaken { why, wait }) = outcome else {
            self.streams.remove(&stream);
            (self.failures, self.all) = (0, None);
            return;
        };
        self.complain(sink, &stream, &why);
        let failures = self.streams.get(&stream).map_or(0, |(_, failures)| *failures) + 1;
        let wait = wait.map_or_else(|| backoff(failures), |asked| asked.clamp(backoff(failures), MAX_RETRY_AFTER));
        self.streams.insert(stream, (Instant::now() + wait, failures));
        self.failures += 1;
        if self.failures >= MAX_FAILURES || self.streams.len() >= MAX_WAITING_STREAMS {
            self.all = Some(Instant::now() + backoff(self.failures - MAX_FAILURES.min(self.failures)));
        }
    }

    fn complain(&mut self, sink: &str, stream: &str, error: &str) {
        if self.complained.is_none_or(|at| at.elapsed() > COMPLAINT_INTERVAL) {
            self.complained = Some(Instant::now());
            tracing::error!(sink, of = stream, error, "an event could not be sent; it is tried again");
        }
    }
}

/// Sends to one sink.
pub struct Sender {
    events: Arc<Events>,
    config: SinkConfig,
    name: String,
    client: reqwest::Client,
    keys: Vec<hmac::Key>,
}

impl Sender {
    /// Will send to a sink.
    ///
    /// # Errors
    /// Why that can't be.
    pub fn new(events: Arc<Events>, config: SinkConfig) -> Result<Self, String> {
        Ok(Self {
            events,
            client: config.client()?,
            keys: config.signing_keys.iter().map(|key| hmac::Key::new(hmac::HMAC_SHA256, key)).collect(),
            name: config.name(),
            config,
        })
    }

    /// Sends, for as long as the process runs.
    pub async fn run(self) {
        let (mut sending, mut busy) = (FuturesUnordered::new(), HashSet::new());
        let (mut ready, mut waits) = (VecDeque::new(), Waits::default());
        let mut held: Option<Instant> = None;
        loop {
            let news = self.events.news.notified();
            if held.is_none_or(|at| at.elapsed() > LEASE_INTERVAL) {
                match self.hold().await {
                    Ok(true) => held = Some(Instant::now()),
                    Ok(false) => held = None, // Another process sends.
                    Err(error) => waits.complain(&self.name, "", &error.to_string()),
                }
                // What was read a while ago may have been told by another one since.
                ready.clear();
            }
            let places = if held.is_some() { waits.places() } else { 0 };
            if sending.len() < places && ready.is_empty() {
                match self.next_streams(&waits.but(&busy)).await {
                    Ok(streams) => ready.extend(streams),
                    Err(error) => waits.complain(&self.name, "", &error.to_string()),
                }
            }
            while sending.len() < places
                && let Some((stream, events)) = ready.pop_front()
            {
                busy.insert(stream.clone());
                let this = &self;
                sending.push(async move { (stream, this.send_in_order(events).await) });
            }
            if held.is_none() {
                // Whatever they were about to send, somebody else does.
                sending.clear();
                busy.clear();
            }
            tokio::select! {
                Some((stream, outcome)) = sending.next(), if !sending.is_empty() => {
                    busy.remove(&stream);
                    waits.note(&self.name, stream, outcome);
                }
                () = news => {}
                () = tokio::time::sleep(POLL_INTERVAL) => {}
            }
        }
    }

    /// Whether this process sends, and no other.
    async fn hold(&self) -> Result<bool, StoreError> {
        let Events { store, holder, metrics, .. } = &*self.events;
        if !store.is_exclusive() && !store.hold_lease(&self.name, holder, LEASE_SECONDS).await? {
            return Ok(false);
        }
        let lost = store.drop_events(&self.name, now() - MAX_AGE_SECONDS).await?;
        if lost > 0 {
            tracing::error!(sink = self.name, lost, "events were dropped that nobody has taken for a week");
            metrics.events_lost(lost);
        }
        Ok(true)
    }

    /// What is to be told next, by repository.
    async fn next_streams(&self, but: &[String]) -> Result<Vec<(String, Vec<Announcement>)>, StoreError> {
        let batch = self.events.store.events_for(&self.name, but, MAX_PER_STREAM, MAX_BATCH).await?;
        let mut streams: Vec<(String, Vec<Announcement>)> = Vec::new();
        let mut known: HashMap<String, usize> = HashMap::new();
        for one in batch {
            let index = *known.entry(one.stream.clone()).or_insert_with(|| {
                streams.push((one.stream.clone(), Vec::new()));
                streams.len() - 1
            });
            streams[index].1.push(one);
        }
        Ok(streams)
    }

    async fn send_in_order(&self, events: Vec<Announcement>) -> Result<(), NotTaken> {
        for event in events {
            let sent = self.send(&event).await;
            self.events.metrics.event_sent(sent.is_ok());
            sent?;
            // If this is lost, it is told once more.
            if let Err(error) = self.events.outbox.write(EventWrite::Told(self.name.clone(), event.id)).await {
                return Err(NotTaken { why: error.to_string(), wait: None });
            }
        }
        Ok(())
    }

    async fn send(&self, event: &Announcement) -> Result<(), NotTaken> {
        let not_taken = |why: String| NotTaken { why, wait: None };
        let body = with_manifest(&self.events.registry, event).await.map_err(not_taken)?;
        let is_long = body.len() > MAX_SURE_BYTES;
        match self.post(event, body).await {
            // Better without the manifest's text than not at all: who takes no such length may just close the connection.
            Err(_) if is_long => self.post(event, event.data.clone()).await,
            outcome => outcome,
        }
    }

    async fn post(&self, event: &Announcement, body: String) -> Result<(), NotTaken> {
        let not_taken = |why: String| NotTaken { why, wait: None };
        let kind = format!("{}.{}", self.events.config.type_prefix, event.kind);
        let at = OffsetDateTime::from_unix_timestamp(event.at).ok().and_then(|at| at.format(&Rfc3339).ok());
        let mut request = self
            .client
            .post(self.config.address.clone())
            .headers(self.config.headers.clone())
            .header("ce-specversion", "1.0")
            .header("ce-id", &event.id)
            .header("ce-source", &self.events.config.source)
            .header("ce-type", &kind)
            .header("ce-time", at.unwrap_or_default())
            .header(header::CONTENT_TYPE, "application/json")
            .header(header::USER_AGENT, concat!("berth/", env!("CARGO_PKG_VERSION")));
        if let Some(channel) = &self.config.channel {
            request = request.header("ce-channel", channel);
        }
        if !self.keys.is_empty() {
            request = request.header(SIGNATURE, self.signature(now(), &event.id, &kind, &body));
        }
        let answer = request.body(body).send().await.map_err(|error| not_taken(why(error)))?;
        let status = answer.status();
        if status.is_success() {
            return Ok(());
        }
        let wait = (status == StatusCode::TOO_MANY_REQUESTS || status == StatusCode::SERVICE_UNAVAILABLE)
            .then(|| answer.headers().get(header::RETRY_AFTER)?.to_str().ok()?.parse().ok().map(Duration::from_secs))
            .flatten();
        Err(NotTaken { why: format!("it answers {status}"), wait })
    }

    /// When it is sent, and the HMAC-SHA-256 of `<when>.<id>.<type>.<body>` under each key.
    fn signature(&self, at: i64, id: &str, kind: &str, body: &str) -> String {
        let signed = format!("{at}.{id}.{kind}.{body}");
        let tags = self.keys.iter().map(|key| format!(",v1={}", hex(hmac::sign(key, signed.as_bytes()).as_ref())));
        format!("t={at}{}", tags.collect::<String>())
    }
}

/// The cause, without the address, which may hold a secret.
fn why(error: reqwest::Error) -> String {
    if error.is_timeout() {
        return "it takes too long to answer".to_owned();
    }
    let error = error.without_url();
    let mut last: &dyn std::error::Error = &error;
    while let Some(source) = last.source() {
        last = source;
    }
    last.to_string()
}

/// The data of an event; of a push with the manifest's text (as zot's), while that is there.
async fn with_manifest(registry: &Registry, event: &Announcement) -> Result<String, String> {
    if event.kind != Kind::ImageUpdated.as_str() {
        return Ok(event.data.clone());
    }
    let Ok(mut data) = serde_json::from_str::<Value>(&event.data) else { return Ok(event.data.clone()) };
    let repository = data["name"].as_str().and_then(|name| name.parse().ok());
    let digest = data["digest"].as_str().and_then(|digest| digest.parse().ok());
    let (Some(repository), Some(digest)) = (repository, digest) else { return Ok(event.data.clone()) };
    let found = registry.manifest(&repository, &Reference::Digest(digest)).await;
    let found = found.map_err(|error| error.to_string())?;
    let text = found.and_then(|stored| String::from_utf8(stored.bytes).ok()).unwrap_or_default();
    data["manifest"] = text.into();
    Ok(data.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn not_taken(wait: Option<u64>) -> Result<(), NotTaken> {
        Err(NotTaken { why: "it answers 503".to_owned(), wait: wait.map(Duration::from_secs) })
    }

    #[test]
    fn waits_double_up_to_a_minute_and_are_not_all_alike() {
        for (failures, longest) in [(1, 2), (2, 4), (5, 32), (6, 60), (1000, 60)] {
            let longest = Duration::from_secs(longest);
            let waits: HashSet<Duration> = (0..100).map(|_| backoff(failures)).collect();
            assert!(waits.iter().all(|wait| (longest / 2..=longest).contains(wait)), "{failures}: {waits:?}");
            assert!(waits.len() > 1, "{failures}: {waits:?}");
        }
    }

    #[test]
    fn one_repository_waits_alone_and_all_wait_when_many_fail() {
        let mut waits = Waits::default();
        waits.note("s", "a".to_owned(), not_taken(None));
        assert_eq!((waits.but(&HashSet::new()), waits.places()), (vec!["a".to_owned()], SEND_CONCURRENCY));
        // As long as the receiver asks for, and no longer than some minutes.
        for (asked, least, most) in [(120, 119, 120), (1_000_000, 299, 300)] {
            waits.note("s", "b".to_owned(), not_taken(Some(asked)));
            let left = waits.streams["b"].0.duration_since(Instant::now());
            assert!((Duration::from_secs(least)..=Duration::from_secs(most)).contains(&left), "{left:?}");
        }
        for n in 0..MAX_FAILURES {
            waits.note("s", n.to_string(), not_taken(None));
        }
        assert_eq!(waits.places(), 0);
        // One that is taken ends that.
        waits.note("s", "0".to_owned(), Ok(()));
        assert_eq!(waits.places(), SEND_CONCURRENCY);
    }
}
