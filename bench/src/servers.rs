//! What servers on this machine use, for who says which processes they are (proc(5)).

use std::fs;

/// Processes of this machine that answer.
#[derive(Clone, Default)]
pub struct Servers(pub Vec<u32>);

impl Servers {
    /// Whether it is known which ones they are.
    pub fn are_known(&self) -> bool {
        !self.0.is_empty()
    }

    /// Their CPU time so far, in seconds. The kernel counts it in hundredths.
    pub fn cpu_seconds(&self) -> f64 {
        let of = |pid: &u32| {
            let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
            // The name in parentheses may hold anything.
            let fields: Vec<&str> = stat.rsplit(") ").next().unwrap_or_default().split(' ').collect();
            let ticks = |i: usize| fields.get(i).and_then(|text| text.parse::<f64>().ok()).unwrap_or_default();
            (ticks(11) + ticks(12)) / 100.0
        };
        self.0.iter().map(of).sum()
    }

    /// How much of their memory is in use, in MiB (`VmRSS`).
    pub fn rss_mib(&self) -> f64 {
        let of = |pid: &u32| {
            let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
            let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap_or_default();
            line.trim().trim_end_matches(" kB").parse::<f64>().unwrap_or_default() / 1024.0
        };
        self.0.iter().map(of).sum()
    }
}
