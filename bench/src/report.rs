//! What was measured: printed as one table, written as JSON, compared with what was measured before.

use std::fmt::{self, Write};

use serde::{Deserialize, Serialize};

use crate::{measure::Work, servers::Servers};

/// How much was measured, and how often.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Settings {
    /// The repository.
    pub repository: String,
    /// How many connections there are where work is done at once.
    pub connections: usize,
    /// For how long a request is repeated.
    pub seconds: u64,
    /// The large blob, in MiB.
    pub large_mib: u64,
    /// How often all of it was done.
    pub rounds: usize,
    /// Whether connections are HTTP/2.
    pub http2: bool,
}

/// What came of one work in one round.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Measured {
    /// MiB or requests a second.
    pub value: f64,
    /// How long half of the requests, and 99 of 100, took at most, in milliseconds.
    pub ms: Option<(f64, f64)>,
    /// The servers' CPU time: seconds a GiB, or microseconds a request.
    pub cpu: Option<f64>,
    /// The servers' memory when it was done, in MiB.
    pub rss_mib: Option<f64>,
}

/// What came of one work.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Figure {
    /// Its name.
    pub work: String,
    /// In what it is counted.
    pub unit: String,
    /// In what CPU time is counted.
    pub cpu_unit: String,
    /// Each round.
    pub rounds: Vec<Measured>,
}

impl Figure {
    /// Nothing yet.
    pub fn new(work: Work) -> Self {
        let (unit, cpu_unit) = (work.unit().to_owned(), work.cpu_unit().to_owned());
        Self { work: work.name().to_owned(), unit, cpu_unit, rounds: Vec::new() }
    }

    /// The median of something of all rounds that have it.
    pub fn median(&self, of: impl Fn(&Measured) -> Option<f64>) -> Option<f64> {
        let mut all: Vec<f64> = self.rounds.iter().filter_map(of).collect();
        all.sort_unstable_by(f64::total_cmp);
        all.get(all.len() / 2).copied()
    }

    /// The median of the rounds.
    pub fn value(&self) -> f64 {
        self.median(|round| Some(round.value)).unwrap_or_default()
    }

    /// The worst and the best round.
    fn range(&self) -> (f64, f64) {
        let values = self.rounds.iter().map(|round| round.value);
        (values.clone().fold(f64::INFINITY, f64::min), values.fold(0.0, f64::max))
    }
}

/// The machine that has measured.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Machine {
    /// How many cores it has.
    pub cores: usize,
    /// What they are called.
    pub cpu: String,
    /// The kernel.
    pub kernel: String,
}

impl Machine {
    /// This one.
    pub fn this() -> Self {
        let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
        let model = read("/proc/cpuinfo");
        let model =
            model.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": ")).map(|(_, name)| name);
        Self {
            cores: std::thread::available_parallelism().map_or(0, usize::from),
            cpu: model.unwrap_or("an unknown CPU").to_owned(),
            kernel: read("/proc/sys/kernel/osrelease").trim().to_owned(),
        }
    }
}

impl fmt::Display for Machine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} cores ({}), Linux {}", self.cores, self.cpu, self.kernel)
    }
}

/// A measurement.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Run {
    /// What was measured, without a credential.
    pub url: String,
    /// When, RFC 3339.
    pub at: String,
    /// By which version of this program.
    pub version: String,
    /// Where it ran.
    pub machine: Machine,
    /// How much.
    pub settings: Settings,
    /// What came of it.
    pub figures: Vec<Figure>,
}

/// A number with as many digits as it deserves.
pub fn digits(value: f64) -> String {
    match value {
        value if value >= 100.0 => format!("{value:.0}"),
        value if value >= 10.0 => format!("{value:.1}"),
        value => format!("{value:.2}"),
    }
}

impl Run {
    /// The table (Markdown).
    pub fn table(&self, servers: &Servers) -> String {
        let Settings { connections, seconds, large_mib, rounds, http2, .. } = &self.settings;
        let mut out = format!(
            "{}: {rounds} rounds; {connections} connections{}, {seconds} s each; the large blob has {large_mib} MiB\n\n",
            self.url,
            if *http2 { " of HTTP/2" } else { "" }
        );
        let known = servers.are_known();
        let more = if known { " servers' CPU | RSS, MiB |" } else { "" };
        let _ = writeln!(out, "| work | median | worst to best | p50, p99 in ms |{more}");
        let _ = writeln!(out, "|---|---|---|---|{}", if known { "---|---|" } else { "" });
        for figure in &self.figures {
            let (worst, best) = figure.range();
            let ms = |of: fn(&(f64, f64)) -> f64| figure.median(|round| round.ms.as_ref().map(of)).map(digits);
            let ms = ms(|ms| ms.0).zip(ms(|ms| ms.1)).map_or(String::new(), |(half, most)| format!("{half}, {most}"));
            let _ = write!(out, "| {} | {} {} | ", figure.work, digits(figure.value()), figure.unit);
            let _ = write!(out, "{} to {} | {ms} |", digits(worst), digits(best));
            if known {
                let cpu = figure
                    .median(|round| round.cpu)
                    .map_or(String::new(), |cpu| format!("{} {}", digits(cpu), figure.cpu_unit));
                let rss = figure.median(|round| round.rss_mib).map_or(String::new(), digits);
                let _ = write!(out, " {cpu} | {rss} |");
            }
            out.push('\n');
        }
        out
    }
}

/// Two measurements side by side (Markdown). What differs by less than its rounds do is called the same.
pub fn compare(before: &Run, after: &Run) -> String {
    let mut out = format!("before: {} at {}\nafter: {} at {}\n", before.url, before.at, after.url, after.at);
    if before.settings != after.settings {
        out.push_str("They were measured with different settings.\n");
    }
    out.push_str("\n| work | before | after | after/before |\n|---|---|---|---|\n");
    for figure in &after.figures {
        let Some(old) = before.figures.iter().find(|old| old.work == figure.work) else { continue };
        let ((old_worst, old_best), (worst, best)) = (old.range(), figure.range());
        let overlap = worst <= old_best && old_worst <= best;
        let ratio = figure.value() / old.value();
        let _ = writeln!(
            out,
            "| {} | {} {unit} | {} {unit} | ×{ratio:.2}{} |",
            figure.work,
            digits(old.value()),
            digits(figure.value()),
            if overlap { ", within the noise" } else { "" },
            unit = figure.unit,
        );
    }
    for old in before.figures.iter().filter(|old| !after.figures.iter().any(|new| new.work == old.work)) {
        let _ = writeln!(out, "| {} | {} {} | – | |", old.work, digits(old.value()), old.unit);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(values: &[f64]) -> Run {
        let round = |value: &f64| Measured { value: *value, ms: None, cpu: None, rss_mib: None };
        let mut figure = Figure::new(Work::PullLarge);
        figure.rounds = values.iter().map(round).collect();
        Run {
            url: "http://r.example".to_owned(),
            at: "2026-01-01T00:00:00Z".to_owned(),
            version: "0".to_owned(),
            machine: Machine::this(),
            settings: Settings {
                repository: "r".into(),
                connections: 1,
                seconds: 1,
                large_mib: 1,
                rounds: 3,
                http2: false,
            },
            figures: vec![figure],
        }
    }

    #[test]
    fn what_differs_by_less_than_its_rounds_is_within_the_noise() {
        let text = compare(&run(&[100.0, 90.0, 110.0]), &run(&[120.0, 105.0, 130.0]));
        assert!(text.contains("| 100 MiB/s | 120 MiB/s | ×1.20, within the noise |"), "{text}");
        let text = compare(&run(&[100.0, 90.0, 110.0]), &run(&[200.0, 210.0, 190.0]));
        assert!(text.contains("| ×2.00 |"), "{text}");
    }
}
