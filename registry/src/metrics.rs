//! What is counted, in Prometheus' text format, at `GET /metrics` of the registry's own socket. The proxy shows it with its
//! own counters. No label comes from outside: what quotas are called stands in the configuration.

use std::{sync::Once, time::Duration};

use berth_observe::ProcessMetrics;
use berth_oci::Amount;
use prometheus::{Gauge, GaugeVec, HistogramOpts, HistogramVec, IntCounterVec, IntGauge, Opts, Registry, TextEncoder};

use crate::{
    content::{Content, LastCollection, Usage},
    storage::Space,
};

const DURATION_BUCKETS: [f64; 14] =
    [0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.1, 0.5, 1.0, 5.0, 30.0, 300.0];

/// How long it may take to find out whether something can be stored.
const READINESS_TIMEOUT: Duration = Duration::from_secs(2);

/// Counters of this process.
pub struct Metrics {
    registry: Registry,
    requests: IntCounterVec,
    durations: HistogramVec,
    uploads: IntGauge,
    writable: IntGauge,
    stored: Later<2>,
    space: Later<2>,
    collection: Later<4>,
    quotas: GaugeVec,
    process: ProcessMetrics,
}

/// Gauges that are shown as soon as there is something to show: a 0 would be taken for one.
struct Later<const N: usize> {
    gauges: [Gauge; N],
    shown: Once,
}

impl<const N: usize> Later<N> {
    fn new(named: [(&str, &str); N]) -> prometheus::Result<Self> {
        let gauges = named.map(|(name, help)| Gauge::new(name, help));
        let gauges = gauges.into_iter().collect::<prometheus::Result<Vec<_>>>()?;
        let gauges = gauges.try_into().map_err(|_| prometheus::Error::Msg("as many as names".to_owned()))?;
        Ok(Self { gauges, shown: Once::new() })
    }

    fn set(&self, registry: &Registry, values: [f64; N]) {
        for (gauge, value) in self.gauges.iter().zip(values) {
            gauge.set(value);
        }
        self.shown.call_once(|| {
            for gauge in &self.gauges {
                // None of them is there yet, so this can't fail.
                let _ = registry.register(Box::new(gauge.clone()));
            }
        });
    }
}

impl Metrics {
    /// Nothing has been counted yet.
    ///
    /// # Errors
    /// If two have the same name.
    pub fn new() -> prometheus::Result<Self> {
        let registry = Registry::new();
        let requests = IntCounterVec::new(
            Opts::new("berth_registry_requests_total", "Requests that were answered, by operation and status."),
            &["operation", "status"],
        )?;
        let durations =
            HistogramOpts::new("berth_registry_request_duration_seconds", "How long it took until an answer began.");
        let durations = HistogramVec::new(durations.buckets(DURATION_BUCKETS.to_vec()), &["operation"])?;
        let uploads = IntGauge::new("berth_registry_uploads", "Uploads that aren't finished.")?;
        registry.register(Box::new(requests.clone()))?;
        registry.register(Box::new(durations.clone()))?;
        registry.register(Box::new(uploads.clone()))?;
        let writable = IntGauge::new("berth_registry_writable", "Whether something can be stored.")?;
        registry.register(Box::new(writable.clone()))?;
        let quotas = GaugeVec::new(
            Opts::new("berth_registry_quota", "What is used of quotas, and what may be, by their patterns."),
            &["repositories", "what"],
        )?;
        registry.register(Box::new(quotas.clone()))?;
        Ok(Self {
            requests,
            durations,
            uploads,
            writable,
            stored: Later::new([
                ("berth_registry_stored_bytes", "Bytes of all blobs, each once."),
                ("berth_registry_stored_blobs", "Blobs, manifests too, each once."),
            ])?,
            space: Later::new([
                ("berth_registry_free_bytes", "What is free on the disk of storage.rootDirectory."),
                ("berth_registry_disk_bytes", "The size of that disk."),
            ])?,
            collection: Later::new([
                ("berth_registry_collection_end_time_seconds", "When the last collection ended, since 1970."),
                ("berth_registry_collection_duration_seconds", "How long it took."),
                ("berth_registry_collection_failed", "Whether it failed."),
                ("berth_registry_collection_freed_bytes", "How many bytes it freed."),
            ])?,
            quotas,
            process: ProcessMetrics::register(&registry, "berth_registry_")?,
            registry,
        })
    }

    /// An answer begins.
    pub fn request(&self, operation: &'static str, status: u16, took: Duration) {
        self.requests.with_label_values(&[operation, status.to_string().as_str()]).inc();
        self.durations.with_label_values(&[operation]).observe(took.as_secs_f64());
    }

    /// Everything as text.
    ///
    /// # Errors
    /// If it can't be written, which is a mistake of ours.
    pub async fn text(&self, content: &Content) -> prometheus::Result<String> {
        self.process.update();
        let readiness = tokio::time::timeout(READINESS_TIMEOUT, content.readiness()).await;
        self.writable.set(readiness.is_ok_and(|ready| ready.is_ok()).into());
        match content.uploads().await {
            Ok(uploads) => self.uploads.set(i64::try_from(uploads).unwrap_or(i64::MAX)),
            Err(error) => tracing::warn!(%error, "uploads can't be counted"),
        }
        if let Some(Usage { blobs, bytes }) = content.statistics().usage() {
            self.stored.set(&self.registry, [as_f64(bytes), as_f64(blobs)]);
        }
        if let Some(Space { free, size }) = content.space().await {
            self.space.set(&self.registry, [as_f64(free), as_f64(size)]);
        }
        if let Some(LastCollection { ended_at, took, collected }) = content.statistics().last_collection() {
            let freed = collected.map_or(0, |collected| collected.bytes);
            let failed = u64::from(collected.is_none());
            self.collection.set(&self.registry, [ended_at, took.as_secs_f64(), as_f64(failed), as_f64(freed)]);
        }
        for quota in content.all_quotas() {
            let name = quota.repositories.join(", ");
            for (kind, amount) in [("bytes", quota.bytes), ("tags", quota.tags)] {
                let Some(Amount { used, limit }) = amount else { continue };
                let set =
                    |what: &str, value: u64| self.quotas.with_label_values(&[name.as_str(), what]).set(as_f64(value));
                set(&format!("used_{kind}"), used);
                set(&format!("limit_{kind}"), limit);
            }
        }
        TextEncoder::new().encode_to_string(&self.registry.gather())
    }
}

/// Beyond 2^53 some of the last digits are lost.
#[allow(clippy::cast_precision_loss)]
fn as_f64(n: u64) -> f64 {
    n as f64
}
