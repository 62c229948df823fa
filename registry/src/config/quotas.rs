//! `storage.quotas`.

use berth_config::{Pattern, Section};

use crate::content::quotas::Limit;

/// Reads all of them.
pub fn read(storage: &Section<'_>) -> Vec<Limit> {
    storage.sections("quotas").into_iter().map(read_one).collect()
}

fn read_one(quota: Section<'_>) -> Limit {
    let texts = quota.texts("repositories").unwrap_or_default();
    if texts.is_empty() {
        quota.problem("repositories", "is missing; expected patterns of repositories, such as [\"team/**\"]");
    }
    let parse = |text: &String| {
        let parsed = Pattern::parse(text);
        parsed.map_err(|e| quota.problem("repositories", format!("has {text:?}, which is no pattern ({e})"))).ok()
    };
    let repositories = texts.iter().filter_map(parse).collect();
    let bytes = quota.text("bytes").and_then(|text| {
        let bytes = size(text);
        if bytes.is_none() {
            quota
                .problem("bytes", format!("is {text:?}, which is no size; expected one such as \"50GB\" or \"50GiB\""));
        }
        bytes
    });
    let tags = quota.number("tags");
    if quota.is_present() && bytes.is_none() && tags.is_none() {
        quota.warn("bytes", "is missing, and tags too: this limits nothing");
    }
    quota.close();
    Limit { repositories, bytes, tags }
}

/// A number with a unit: `50GB` is decimal, `50GiB` binary.
fn size(text: &str) -> Option<u64> {
    let text = text.trim();
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let factor: u64 = match unit.trim().to_ascii_lowercase().as_str() {
        "" | "b" => 1,
        "kb" => 1000,
        "mb" => 1000 * 1000,
        "gb" => 1000 * 1000 * 1000,
        "tb" => 1000 * 1000 * 1000 * 1000,
        "kib" => 1 << 10,
        "mib" => 1 << 20,
        "gib" => 1 << 30,
        "tib" => 1 << 40,
        _ => return None,
    };
    number.parse::<u64>().ok()?.checked_mul(factor)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_units() {
        for (text, expected) in
            [("1", Some(1)), ("50 GB", Some(50_000_000_000)), ("1GiB", Some(1 << 30)), ("2kb", Some(2000))]
        {
            assert_eq!(size(text), expected, "{text}");
        }
        for text in ["", "GB", "1.5GB", "-1", "1XB", "99999999999TB"] {
            assert_eq!(size(text), None, "{text}");
        }
    }
}
