//! `extensions`, zot's: each that Berth doesn't have is judged by what leaving it out would mean.

use berth_config::Section;

use super::events;
use crate::events::EventsConfig;

/// Those that only add something, and what there is instead.
const ADDED: [(&str, &str); 6] = [
    ("search", "Berth doesn't search inside images"),
    ("ui", "Berth's own pages are always there"),
    ("mgmt", "what it answered is always answered"),
    ("userprefs", "there are no bookmarks and stars"),
    ("scrub", "berth-registry scrub does it when it is asked"),
    ("trust", "signatures are kept beside what they sign, and checked by clients"),
];

/// The first parts of paths that are taken.
const OURS: [&str; 9] = ["", "v2", "zot", "keys", "sessions", "static", "livez", "readyz", "startupz"];

/// What is read of it.
pub struct Extensions {
    /// Where the counters are.
    pub metrics_path: String,
    /// Who is told of what happens.
    pub events: Option<EventsConfig>,
    /// Whether other registries are mirrored.
    pub is_mirror: bool,
}

/// Reads the section; events are from `external_url`.
pub fn read(section: Section<'_>, external_url: &str) -> Extensions {
    for (name, instead) in ADDED {
        let extension = section.section(name);
        if extension.is_present() {
            section.warn(name, format!("is not used: {instead}"));
        }
    }
    let metrics = section.section("metrics");
    metrics.flag("enable");
    let prometheus = metrics.section("prometheus");
    let path = prometheus.text("path").unwrap_or("/metrics");
    let is_path = path.starts_with('/') && path.chars().all(|c| c.is_ascii_alphanumeric() || "/._-".contains(c));
    let first = path.split('/').nth(1).unwrap_or_default();
    if !is_path || OURS.contains(&first) {
        prometheus.problem("path", "is no path, or one of Berth's own; expected one such as \"/metrics\"");
    }
    prometheus.close();
    metrics.close();
    read_lint(&section.section("lint"));
    let events = events::read(section.section("events"), external_url);
    // The mirror reads the rest of it.
    let sync = section.section("sync");
    let is_mirror = sync.is_present() && sync.flag("enable").unwrap_or(true);
    section.close();
    Extensions { metrics_path: path.to_owned(), events, is_mirror }
}

/// The only one that guards something.
fn read_lint(lint: &Section<'_>) {
    let is_enabled = lint.flag("enable").unwrap_or(true);
    let guards = lint.texts("mandatoryAnnotations").is_some_and(|annotations| !annotations.is_empty());
    if is_enabled && guards {
        lint.problem(
            "mandatoryAnnotations",
            "is not supported, and leaving it out silently would let in what it keeps out; check annotations in CI before \
             the push, and take it out",
        );
    }
}
