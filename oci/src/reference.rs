//! References: what stands behind `/manifests/`, a tag or a digest.

use std::{fmt, str::FromStr};

use crate::{Digest, DigestError};

/// A tag: `[a-zA-Z0-9_][a-zA-Z0-9._-]{0,127}` (distribution specification, "Pulling manifests").
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Tag(Box<str>);

/// A text that is not a tag.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a tag has 1 to 128 letters, digits, '_', '.' or '-', and begins with a letter, a digit or '_'")]
pub struct TagError;

impl Tag {
    /// The tag as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Tag {
    type Err = TagError;

    fn from_str(text: &str) -> Result<Self, TagError> {
        let word = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
        match text.as_bytes() {
            [first, rest @ ..]
                if rest.len() < 128 && word(*first) && rest.iter().all(|&b| word(b) || matches!(b, b'.' | b'-')) =>
            {
                Ok(Self(text.into()))
            }
            _ => Err(TagError),
        }
    }
}

impl fmt::Display for Tag {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Tag {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// How a request names a manifest.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Reference {
    /// By a name that may move.
    Tag(Tag),
    /// By its content.
    Digest(Digest),
}

/// Why a text is neither a tag nor a digest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReferenceError {
    /// It has no colon, and is no tag.
    #[error(transparent)]
    Tag(#[from] TagError),
    /// It has a colon, and is no digest.
    #[error(transparent)]
    Digest(#[from] DigestError),
}

impl FromStr for Reference {
    type Err = ReferenceError;

    fn from_str(text: &str) -> Result<Self, ReferenceError> {
        // No tag has a colon, every digest has one.
        if text.contains(':') { Ok(Self::Digest(text.parse()?)) } else { Ok(Self::Tag(text.parse()?)) }
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tag(tag) => tag.fmt(f),
            Self::Digest(digest) => digest.fmt(f),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tags_of_the_specification_are_accepted() {
        for tag in ["latest", "_", "1.2.3-rc_1", "V2", &"x".repeat(128)] {
            assert!(tag.parse::<Tag>().is_ok(), "{tag}");
        }
    }

    #[test]
    fn anything_else_is_refused() {
        for tag in ["", ".", "..", "-a", ".a", "a/b", "a b", "a:b", "é", &"x".repeat(129)] {
            assert_eq!(tag.parse::<Tag>(), Err(TagError), "{tag:?}");
        }
    }
}
