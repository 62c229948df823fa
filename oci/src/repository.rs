//! Repository names: `<name>` of the distribution specification.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

/// The name of a repository, such as `team/app`.
///
/// It matches `[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*(\/[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*)*` (distribution
/// specification, "Pulling manifests") and has at most 255 bytes, so it is safe as a relative path.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Repository(Box<str>);

/// Why a text is not a repository name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RepositoryError {
    /// It has more than 255 bytes.
    #[error("a repository name has at most 255 characters")]
    TooLong,
    /// It doesn't match the specification's expression.
    #[error(
        "a repository name is made of lower-case letters and digits, joined by '.', '_', '__' or '-', in parts separated by '/'"
    )]
    Shape,
}

impl Repository {
    /// The longest name that is accepted, in bytes.
    pub const MAX_LEN: usize = 255;

    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Repository {
    type Err = RepositoryError;

    fn from_str(text: &str) -> Result<Self, RepositoryError> {
        if text.len() > Self::MAX_LEN {
            return Err(RepositoryError::TooLong);
        }
        if !text.split('/').all(is_component) {
            return Err(RepositoryError::Shape);
        }
        Ok(Self(text.into()))
    }
}

impl TryFrom<String> for Repository {
    type Error = RepositoryError;

    fn try_from(text: String) -> Result<Self, RepositoryError> {
        text.parse()
    }
}

impl From<Repository> for String {
    fn from(repository: Repository) -> Self {
        repository.0.into()
    }
}

/// `[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*`
fn is_component(text: &str) -> bool {
    let alphanumeric = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let bytes = text.as_bytes();
    let (Some(first), Some(last)) = (bytes.first(), bytes.last()) else { return false };
    // Between two separators stands at least one alphanumeric, since a run of
    // non-alphanumerics is taken whole and must be one separator.
    alphanumeric(*first)
        && alphanumeric(*last)
        && text
            .split(|c: char| c.is_ascii() && alphanumeric(c as u8))
            .filter(|run| !run.is_empty())
            .all(|run| matches!(run, "." | "_" | "__") || run.bytes().all(|b| b == b'-'))
}

impl fmt::Display for Repository {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Repository {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_the_specification_are_accepted() {
        for name in ["a", "library/ubuntu", "a.b_c__d---e/0", "team/blobs/uploads", "x/manifests"] {
            assert!(name.parse::<Repository>().is_ok(), "{name}");
        }
    }

    #[test]
    fn anything_else_is_refused() {
        for name in [
            "", "/", "a/", "/a", "a//b", "A", "a..b", "a._b", "a___b", "-a", "a-", "_a", "a/../b", "a/./b", "a b", "ä",
            "a%2fb", "a\0", "a\\b", "_catalog",
        ] {
            assert_eq!(name.parse::<Repository>(), Err(RepositoryError::Shape), "{name:?}");
        }
        assert_eq!("a".repeat(256).parse::<Repository>(), Err(RepositoryError::TooLong));
    }
}
