//! This process as the system sees it.

use std::fs;

use prometheus::{Counter, Gauge, IntGauge, Registry};
use rustix::{
    param::{clock_ticks_per_second, page_size},
    process::{Resource, Rlimit, getrlimit, setrlimit},
};

/// Takes as many descriptors as this process may have; how many those are, if there is a limit.
pub fn raise_descriptor_limit() -> Option<u64> {
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    match setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum }) {
        Ok(()) => maximum,
        Err(error) => {
            tracing::warn!(%error, "the limit of descriptors can't be raised");
            current
        }
    }
}

/// What Prometheus' own client libraries tell of a process, by the same names.
pub struct ProcessMetrics {
    memory: IntGauge,
    open_descriptors: IntGauge,
    max_descriptors: IntGauge,
    cpu: Counter,
}

impl ProcessMetrics {
    /// The metrics `<prefix>process_…` in `registry`.
    ///
    /// # Errors
    /// If they are there already.
    pub fn register(registry: &Registry, prefix: &str) -> prometheus::Result<Self> {
        let name = |name: &str| format!("{prefix}process_{name}");
        let gauge = |what: &str, help: &str| {
            let gauge = IntGauge::new(name(what), help)?;
            registry.register(Box::new(gauge.clone()))?;
            Ok::<_, prometheus::Error>(gauge)
        };
        let metrics = Self {
            memory: gauge("resident_memory_bytes", "Memory that is in use.")?,
            open_descriptors: gauge("open_fds", "Descriptors that are open.")?,
            max_descriptors: gauge("max_fds", "Descriptors that may be open.")?,
            cpu: Counter::new(name("cpu_seconds_total"), "Time of all processors.")?,
        };
        registry.register(Box::new(metrics.cpu.clone()))?;
        let started = Gauge::new(name("start_time_seconds"), "When it began, in seconds since 1970.")?;
        started.set(start_time().unwrap_or_default());
        registry.register(Box::new(started))?;
        Ok(metrics)
    }

    /// Reads anew what the system says.
    pub fn update(&self) {
        let as_gauge = |n: u64| i64::try_from(n).unwrap_or(i64::MAX);
        let statm = fs::read_to_string("/proc/self/statm").unwrap_or_default();
        if let Some(pages) = statm.split(' ').nth(1).and_then(|pages| pages.parse::<u64>().ok()) {
            self.memory.set(as_gauge(pages.saturating_mul(page_size() as u64)));
        }
        if let Ok(open) = fs::read_dir("/proc/self/fd") {
            self.open_descriptors.set(as_gauge(open.count() as u64));
        }
        self.max_descriptors.set(getrlimit(Resource::Nofile).current.map_or(i64::MAX, as_gauge));
        if let Some(seconds) = cpu_seconds() {
            self.cpu.inc_by((seconds - self.cpu.get()).max(0.0));
        }
    }
}

/// The fields of `/proc/self/stat` after the name, which may hold anything (proc(5)): the first is the third there.
fn stat() -> Option<Vec<String>> {
    let text = fs::read_to_string("/proc/self/stat").ok()?;
    Some(text.rsplit_once(')')?.1.split_ascii_whitespace().map(str::to_owned).collect())
}

fn ticks(fields: &[String], field: usize) -> Option<f64> {
    Some(fields.get(field - 3)?.parse::<f64>().ok()? / clock_ticks_per_second() as f64)
}

fn cpu_seconds() -> Option<f64> {
    let fields = stat()?;
    Some(ticks(&fields, 14)? + ticks(&fields, 15)?)
}

fn start_time() -> Option<f64> {
    let booted = fs::read_to_string("/proc/stat").ok()?;
    let booted = booted.lines().find_map(|line| line.strip_prefix("btime "))?.trim().parse::<f64>().ok()?;
    Some(booted + ticks(&stat()?, 22)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_knows_itself() {
        let registry = Registry::new();
        let metrics = ProcessMetrics::register(&registry, "x_").expect("new names");
        metrics.update();
        assert!(metrics.memory.get() > 100_000 && metrics.open_descriptors.get() >= 3);
        assert!(metrics.max_descriptors.get() >= metrics.open_descriptors.get());
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("after 1970").as_secs_f64();
        let started = start_time().expect("a time");
        assert!((now - 3600.0..=now + 2.0).contains(&started), "{started} {now}");
    }
}
