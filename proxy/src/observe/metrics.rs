//! What is counted, in Prometheus' text format. No label comes from outside: neither repositories nor users are labels.

use std::{
    sync::{Mutex, PoisonError},
    time::Duration,
};

use berth_observe::{COMMIT, ProcessMetrics};
use prometheus::{
    GaugeVec, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry,
    TextEncoder, core::Collector,
};

/// From a look at what is in memory to a large layer, in seconds.
const DURATION_BUCKETS: [f64; 14] =
    [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0, 15.0, 60.0, 300.0];

/// What begins every line of the registry's.
const REGISTRY_PREFIX: &str = "berth_registry_";

/// What a request was.
#[derive(Clone, Copy, Debug)]
pub struct Labels {
    /// The kind of operation, or of page.
    pub operation: &'static str,
    /// The kind of credential.
    pub credential: &'static str,
}

/// Counters of this process.
pub struct Metrics {
    registry: Registry,
    requests: IntCounterVec,
    durations: HistogramVec,
    bytes: IntCounterVec,
    credentials_refused: IntCounterVec,
    tokens_issued: IntCounterVec,
    sign_ins: IntCounterVec,
    handshakes_failed: IntCounter,
    connections_evicted: IntCounter,
    connections_refused: IntCounter,
    audit_lines_lost: IntCounter,
    events_sent: IntCounterVec,
    events_lost: IntCounter,
    events_waiting: IntGauge,
    events_oldest: IntGauge,
    connections: IntGauge,
    dependency_up: IntGaugeVec,
    issuer_up: IntGaugeVec,
    issuer_keys_age: GaugeVec,
    renewals_refused: IntGaugeVec,
    process: ProcessMetrics,
    writing: Mutex<()>,
}

/// What is looked up when somebody asks for the counters.
pub struct Snapshot {
    /// Whether the database answers.
    pub database: bool,
    /// The registry's own counters, if it answers.
    pub registry: Option<String>,
    /// Providers and issuers: whether the last question was answered, and how old their keys are.
    pub issuers: Vec<(String, bool, Option<Duration>)>,
    /// Providers that renew nobody's sign-in.
    pub troubled: Vec<String>,
}

fn registered<C: Collector + Clone + 'static>(
    registry: &Registry,
    new: prometheus::Result<C>,
) -> prometheus::Result<C> {
    let collector = new?;
    registry.register(Box::new(collector.clone()))?;
    Ok(collector)
}

impl Metrics {
    /// Nothing has been counted yet.
    ///
    /// # Errors
    /// If two have the same name.
    pub fn new() -> prometheus::Result<Self> {
        let registry = Registry::new();
        let counter = |name: &str, help: &str| registered(&registry, IntCounter::new(name, help));
        let counters = |name: &str, help: &str, labels: &[&str]| {
            registered(&registry, IntCounterVec::new(Opts::new(name, help), labels))
        };
        let gauges = |name: &str, help: &str, label: &str| {
            registered(&registry, IntGaugeVec::new(Opts::new(name, help), &[label]))
        };
        let durations =
            HistogramOpts::new("berth_request_duration_seconds", "How long requests took, to the last byte.");
        let durations = durations.buckets(DURATION_BUCKETS.to_vec());
        let build = gauges("berth_build_info", "The version that runs.", "version")?;
        build.with_label_values(&[&format!("{} ({COMMIT})", env!("CARGO_PKG_VERSION"))]).set(1);
        Ok(Self {
            requests: counters(
                "berth_requests_total",
                "Requests that have ended, by what they were, the kind of credential and the status; 0 without an answer.",
                &["operation", "credential", "status"],
            )?,
            durations: registered(&registry, HistogramVec::new(durations, &["operation", "credential"]))?,
            bytes: counters(
                "berth_body_bytes_total",
                "Bytes of bodies, as clients sent and got them.",
                &["direction"],
            )?,
            credentials_refused: counters(
                "berth_credentials_refused_total",
                "Credentials that were not taken: rejected, throttled, or unavailable when they can't be checked.",
                &["reason"],
            )?,
            tokens_issued: counters(
                "berth_tokens_issued_total",
                "Tokens that the token service made, by the kind of credential that was shown for them.",
                &["credential"],
            )?,
            sign_ins: counters("berth_sign_ins_total", "Sign-ins of browsers, by how they ended.", &["outcome"])?,
            handshakes_failed: counter(
                "berth_handshakes_failed_total",
                "TLS handshakes that failed or took too long.",
            )?,
            connections_evicted: counter(
                "berth_connections_evicted_total",
                "Idle connections that were closed to make room.",
            )?,
            connections_refused: counter("berth_connections_refused_total", "Connections that there was no room for.")?,
            audit_lines_lost: counter(
                "berth_audit_lines_lost_total",
                "Lines of the audit log that could not be written.",
            )?,
            events_sent: counters(
                "berth_events_sent_total",
                "Events that were sent to a sink, by whether it took them.",
                &["outcome"],
            )?,
            events_lost: counter(
                "berth_events_lost_total",
                "Events that no sink has taken for a week, and were dropped.",
            )?,
            events_waiting: registered(
                &registry,
                IntGauge::new(
                    "berth_events_waiting",
                    "Events that wait to be taken; from 100,000 on nothing can be pushed.",
                ),
            )?,
            events_oldest: registered(
                &registry,
                IntGauge::new("berth_events_oldest_seconds", "How long ago the oldest of those happened."),
            )?,
            connections: registered(&registry, IntGauge::new("berth_connections", "Connections that are open."))?,
            dependency_up: gauges(
                "berth_dependency_up",
                "Whether it answers: the database, the registry.",
                "dependency",
            )?,
            issuer_up: gauges(
                "berth_issuer_up",
                "Whether its keys could be fetched when that was last tried.",
                "issuer",
            )?,
            issuer_keys_age: registered(
                &registry,
                GaugeVec::new(
                    Opts::new("berth_issuer_keys_age_seconds", "How long ago its keys were fetched; none if never."),
                    &["issuer"],
                ),
            )?,
            renewals_refused: gauges(
                "berth_renewals_refused",
                "Providers that renew no sign-ins: allow the grant type refresh_token there.",
                "provider",
            )?,
            process: ProcessMetrics::register(&registry, "")?,
            writing: Mutex::default(),
            registry,
        })
    }

    /// A request has ended.
    pub fn request(&self, labels: Labels, status: u16, took: Duration, received: usize, sent: usize) {
        let Labels { operation, credential } = labels;
        let mut buffer = [0; 3];
        self.requests.with_label_values(&[operation, credential, status_text(status, &mut buffer)]).inc();
        self.durations.with_label_values(&[operation, credential]).observe(took.as_secs_f64());
        self.bytes.with_label_values(&["received"]).inc_by(received as u64);
        self.bytes.with_label_values(&["sent"]).inc_by(sent as u64);
    }

    /// A credential was not taken.
    pub fn credential_refused(&self, reason: &'static str) {
        self.credentials_refused.with_label_values(&[reason]).inc();
    }

    /// The token service has made a token.
    pub fn token_issued(&self, credential: &'static str) {
        self.tokens_issued.with_label_values(&[credential]).inc();
    }

    /// A sign-in has ended.
    pub fn sign_in(&self, outcome: &'static str) {
        self.sign_ins.with_label_values(&[outcome]).inc();
    }

    /// A TLS handshake has failed, or took too long.
    pub fn handshake_failed(&self) {
        self.handshakes_failed.inc();
    }

    /// An idle connection was closed to make room.
    pub fn connection_evicted(&self) {
        self.connections_evicted.inc();
    }

    /// A connection was closed at once, because there was no room.
    pub fn connection_refused(&self) {
        self.connections_refused.inc();
    }

    /// So many connections more, or fewer, are open.
    pub fn connections_changed(&self, by: i64) {
        self.connections.add(by);
    }

    /// A line of the audit log could not be written.
    pub fn audit_line_lost(&self) {
        self.audit_lines_lost.inc();
    }

    /// An event was sent, and taken or not.
    pub fn event_sent(&self, is_taken: bool) {
        self.events_sent.with_label_values(&[if is_taken { "taken" } else { "not_taken" }]).inc();
    }

    /// Events were dropped.
    pub fn events_lost(&self, count: u64) {
        self.events_lost.inc_by(count);
    }

    /// So many events wait, the oldest for so many seconds.
    pub fn events_waiting(&self, count: i64, oldest: i64) {
        self.events_waiting.set(count);
        self.events_oldest.set(oldest);
    }

    /// Everything as text: what was counted, what was looked up now, and what the registry counts.
    ///
    /// # Errors
    /// If it can't be written, which is a mistake of ours.
    pub fn text(&self, now: &Snapshot) -> prometheus::Result<String> {
        // Two who ask at once would each find the other's half.
        let _alone = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        self.dependency_up.with_label_values(&["database"]).set(now.database.into());
        self.dependency_up.with_label_values(&["registry"]).set(now.registry.is_some().into());
        // Those that the configuration doesn't name any more are gone.
        self.issuer_up.reset();
        self.issuer_keys_age.reset();
        self.renewals_refused.reset();
        for (issuer, up, age) in &now.issuers {
            self.issuer_up.with_label_values(&[issuer]).set((*up).into());
            if let Some(age) = age {
                self.issuer_keys_age.with_label_values(&[issuer]).set(age.as_secs_f64());
            }
        }
        for provider in &now.troubled {
            self.renewals_refused.with_label_values(&[provider]).set(1);
        }
        self.process.update();
        let mut text = TextEncoder::new().encode_to_string(&self.registry.gather())?;
        for line in now.registry.iter().flat_map(|text| text.lines()) {
            let about = line.strip_prefix("# HELP ").or_else(|| line.strip_prefix("# TYPE "));
            // One bad line would cost all the others.
            let is_sample = || line.rsplit_once(' ').is_some_and(|(_, value)| value.parse::<f64>().is_ok());
            if about.unwrap_or(line).starts_with(REGISTRY_PREFIX) && (about.is_some() || is_sample()) {
                text.push_str(line);
                text.push('\n');
            }
        }
        Ok(text)
    }
}

/// Three digits, or 0.
fn status_text(status: u16, buffer: &mut [u8; 3]) -> &str {
    if !(100..1000).contains(&status) {
        return "0";
    }
    for (digit, power) in buffer.iter_mut().zip([100, 10, 1]) {
        *digit = b'0' + u8::try_from(status / power % 10).unwrap_or_default();
    }
    std::str::from_utf8(buffer).unwrap_or("0")
}
