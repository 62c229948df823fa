//! Sizes, times and strangers' texts as people read them.

use berth_oci::Push;
use maud::{Markup, html};
use time::{OffsetDateTime, macros::format_description};

use super::viewer::Viewer;
use crate::store::now;

/// How much of a stranger's text a page shows.
pub const MAX_TEXT_CHARS: usize = 400;

/// `84.2 MB`: decimal, as the disk's makers count, three digits at most.
pub fn size(bytes: u64) -> String {
    const UNITS: [&str; 6] = ["B", "kB", "MB", "GB", "TB", "PB"];
    let (mut scaled, mut unit) = (bytes, 0);
    let mut rest = 0;
    while scaled >= 1000 && unit + 1 < UNITS.len() {
        (rest, scaled, unit) = (scaled % 1000, scaled / 1000, unit + 1);
    }
    if unit == 0 || scaled >= 100 {
        format!("{scaled} {}", UNITS[unit])
    } else {
        format!("{scaled}.{} {}", rest / 100, UNITS[unit])
    }
}

/// `4 minutes ago`, with the exact time on hover.
pub fn ago(seconds: i64) -> Markup {
    let Some(at) = OffsetDateTime::from_unix_timestamp(seconds).ok() else { return html! { "long ago" } };
    let exact = at.format(format_description!("[year]-[month]-[day] [hour]:[minute]:[second] UTC")).unwrap_or_default();
    let machine = at.format(format_description!("[year]-[month]-[day]T[hour]:[minute]:[second]Z")).unwrap_or_default();
    html! { time datetime=(machine) title=(exact) { (relative(now() - seconds, at)) } }
}

/// When a tag was set, and by whom: that is for who is signed in.
pub fn pushed(push: &Push, viewer: &Viewer) -> Markup {
    let by = push.by.as_deref().filter(|_| viewer.owner.is_some());
    html! { (ago(push.at.unix_timestamp())) @if let Some(by) = by { " by " (plain(by)) } }
}

/// `1,204`
pub fn count(n: u64) -> String {
    let digits = n.to_string();
    let groups = digits.as_bytes().rchunks(3).rev().map(String::from_utf8_lossy);
    groups.collect::<Vec<_>>().join(",")
}

fn relative(elapsed: i64, at: OffsetDateTime) -> String {
    let many = |n: i64, unit: &str| format!("{n} {unit}{} ago", if n == 1 { "" } else { "s" });
    match elapsed {
        ..=-60 => day(at),
        -59..=59 => "just now".to_owned(),
        60..=3599 => many(elapsed / 60, "minute"),
        3600..=86_399 => many(elapsed / 3600, "hour"),
        86_400..=604_799 => many(elapsed / 86_400, "day"),
        _ => day(at),
    }
}

/// `3 Dec 2026`, with the exact time on hover.
pub fn until_day(seconds: i64) -> Markup {
    let Some(at) = OffsetDateTime::from_unix_timestamp(seconds).ok() else { return html! { "some day" } };
    let machine = at.format(format_description!("[year]-[month]-[day]T[hour]:[minute]:[second]Z")).unwrap_or_default();
    html! { time datetime=(machine) title=(machine) { (day(at)) } }
}

/// `in 3 days`, or the day itself.
pub fn until(seconds: i64) -> Markup {
    let Some(at) = OffsetDateTime::from_unix_timestamp(seconds).ok() else { return html! { "some day" } };
    let left = seconds - now();
    let text = match left {
        ..0 => format!("on {}", day(at)),
        0..=86_399 => "within a day".to_owned(),
        86_400..=1_209_599 => format!("in {} days", left / 86_400),
        _ => format!("on {}", day(at)),
    };
    let machine = at.format(format_description!("[year]-[month]-[day]T[hour]:[minute]:[second]Z")).unwrap_or_default();
    html! { time datetime=(machine) title=(machine) { (text) } }
}

fn day(at: OffsetDateTime) -> String {
    at.format(format_description!("[day padding:none] [month repr:short] [year]")).unwrap_or_default()
}

/// A stranger's text: bounded, and without what would turn the text around it, hide in it or move a cursor.
pub fn plain(text: &str) -> String {
    let is_harmless = |c: &char| {
        !c.is_control()
            && !matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}' | '\u{61c}')
    };
    let mut harmless = text.chars().filter(is_harmless);
    let mut kept: String = harmless.by_ref().take(MAX_TEXT_CHARS).collect();
    if harmless.next().is_some() {
        kept.pop();
        kept.push('…');
    }
    kept
}

/// A stranger's address, as a link if it is one of the web.
pub fn link(text: &str) -> Markup {
    let shown = plain(text);
    let is_web = url::Url::parse(text).is_ok_and(|url| {
        matches!(url.scheme(), "http" | "https")
            && url.has_host()
            && url.username().is_empty()
            && url.password().is_none()
    });
    html! {
        @if is_web && shown == text { a href=(shown) rel="noreferrer nofollow external" { (shown) } } @else { (shown) }
    }
}

/// A text as it stands in a query (the URL standard, "application/x-www-form-urlencoded").
pub fn in_query(text: &str) -> String {
    form_urlencoded::byte_serialize(text.as_bytes()).collect()
}

/// The beginning of a digest, with all of it on hover.
pub fn digest(digest: &str) -> Markup {
    let short = digest.split_once(':').map_or(digest, |(_, hex)| hex);
    html! { code title=(digest) { (short.chars().take(12).collect::<String>()) } }
}

/// Something to be pasted, whole; a script adds a button that copies it.
pub fn command(text: &str) -> Markup {
    html! { pre class="command" tabindex="0" { code { (text) } } }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn sizes_have_three_digits_at_most() {
        for (bytes, expected) in [
            (0, "0 B"),
            (999, "999 B"),
            (1000, "1.0 kB"),
            (84_212_345, "84.2 MB"),
            (999_999_999, "999 MB"),
            (3_400_000_000, "3.4 GB"),
        ] {
            assert_eq!(size(bytes), expected);
        }
    }

    #[test]
    fn long_numbers_are_grouped() {
        for (n, expected) in [(0, "0"), (999, "999"), (1204, "1,204"), (1_000_000, "1,000,000")] {
            assert_eq!(count(n), expected);
        }
    }

    #[test]
    fn only_the_web_is_linked() {
        for text in [
            "javascript:alert(1)",
            "data:text/html,x",
            "//evil",
            "https://user:pw@x/",
            "https:/\u{202e}/x",
            "file:///etc",
        ] {
            assert!(!link(text).into_string().contains("<a "), "{text}");
        }
        assert!(
            link("https://git.company/team/api").into_string().contains("<a href=\"https://git.company/team/api\"")
        );
    }

    proptest! {
        #[test]
        fn what_strangers_write_is_bounded_and_goes_one_way(text in "\\PC{0,600}|[\u{202a}-\u{202e}\u{2066}-\u{2069}\n\r\t\u{1b}a]{0,50}") {
            let shown = plain(&text);
            prop_assert!(shown.chars().count() <= MAX_TEXT_CHARS);
            let hostile = ['\u{202e}', '\u{2066}', '\u{1b}', '\n', '\u{200b}'];
            prop_assert!(!shown.contains(hostile));
        }
    }
}
