//! Tags in the order of versions.

/// A part of a tag, in the order in which versions come: `2-rc1`, `2`, `2.1`.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
pub enum VersionPart {
    Text(String),
    End,
    Number(u64),
}

/// What a tag is sorted by: its numbers as numbers, so that 1.10 comes after 1.9, and names such as `latest` after all.
pub fn version(tag: &str) -> (bool, Vec<VersionPart>) {
    let parts = tag.split(['.', '-', '_', '+']).map(|part| {
        let part = part.strip_prefix('v').filter(|rest| rest.starts_with(|c: char| c.is_ascii_digit())).unwrap_or(part);
        part.parse().map_or_else(|_| VersionPart::Text(part.to_owned()), VersionPart::Number)
    });
    let parts: Vec<VersionPart> = parts.chain([VersionPart::End]).collect();
    (matches!(parts.first(), Some(VersionPart::Text(_))), parts)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_sorted_as_numbers() {
        let mut tags = ["1.9", "latest", "1.10", "2-rc1", "v2", "1.10.1", "main"];
        tags.sort_by_cached_key(|tag| std::cmp::Reverse(version(tag)));
        assert_eq!(tags, ["main", "latest", "v2", "2-rc1", "1.10.1", "1.10", "1.9"]);
    }
}
