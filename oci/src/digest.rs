//! Content digests: `algorithm:hex`, of the two algorithms that the image specification registers.
//!
//! <https://github.com/opencontainers/image-spec/blob/v1.0.1/descriptor.md#digests>

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

/// A hash algorithm that a digest may be of.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Algorithm {
    /// SHA-256, what every client uses unless told otherwise.
    #[default]
    Sha256,
    /// SHA-512.
    Sha512,
}

impl Algorithm {
    /// Each of them.
    pub const ALL: [Self; 2] = [Self::Sha256, Self::Sha512];

    /// Its registered name, as it stands before the colon of a digest.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Sha256 => "sha256",
            Self::Sha512 => "sha512",
        }
    }

    /// How many hexadecimal digits a digest of this algorithm has.
    pub fn hex_len(self) -> usize {
        match self {
            Self::Sha256 => 64,
            Self::Sha512 => 128,
        }
    }
}

impl FromStr for Algorithm {
    type Err = DigestError;

    fn from_str(text: &str) -> Result<Self, DigestError> {
        match text {
            "sha256" => Ok(Self::Sha256),
            "sha512" => Ok(Self::Sha512),
            _ => Err(DigestError::Algorithm),
        }
    }
}

impl fmt::Display for Algorithm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The digest of some bytes: a known algorithm and as many lower-case hexadecimal digits as it has.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Digest {
    algorithm: Algorithm,
    hex: Box<str>,
}

/// Why a text is not a digest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DigestError {
    /// There is no colon.
    #[error("a digest is written algorithm:hex, as in sha256:6c3c…")]
    Shape,
    /// The algorithm isn't one we compute.
    #[error("the digest algorithm must be sha256 or sha512")]
    Algorithm,
    /// The encoded part has a wrong length or other characters than 0-9 and a-f.
    #[error("a digest has 64 (sha256) or 128 (sha512) lower-case hexadecimal digits")]
    Hex,
}

impl Digest {
    /// The digest of `algorithm` whose raw hash value is `hash`.
    ///
    /// # Errors
    /// [`DigestError::Hex`] if `hash` doesn't have the algorithm's length.
    pub fn from_hash(algorithm: Algorithm, hash: &[u8]) -> Result<Self, DigestError> {
        use fmt::Write;
        if hash.len() * 2 != algorithm.hex_len() {
            return Err(DigestError::Hex);
        }
        let mut hex = String::with_capacity(algorithm.hex_len());
        for byte in hash {
            let _ = write!(hex, "{byte:02x}");
        }
        Ok(Self { algorithm, hex: hex.into() })
    }

    /// The raw hash value.
    pub fn hash(&self) -> Vec<u8> {
        let digit = |byte: u8| if byte.is_ascii_digit() { byte - b'0' } else { byte - b'a' + 10 };
        self.hex.as_bytes().chunks_exact(2).map(|pair| digit(pair[0]) << 4 | digit(pair[1])).collect()
    }

    /// The algorithm before the colon.
    pub fn algorithm(&self) -> Algorithm {
        self.algorithm
    }

    /// The lower-case hexadecimal digits after the colon.
    pub fn hex(&self) -> &str {
        &self.hex
    }
}

impl FromStr for Digest {
    type Err = DigestError;

    fn from_str(text: &str) -> Result<Self, DigestError> {
        let (algorithm, hex) = text.split_once(':').ok_or(DigestError::Shape)?;
        let algorithm: Algorithm = algorithm.parse()?;
        let lower_hex = |b: u8| b.is_ascii_digit() || (b'a'..=b'f').contains(&b);
        if hex.len() != algorithm.hex_len() || !hex.bytes().all(lower_hex) {
            return Err(DigestError::Hex);
        }
        Ok(Self { algorithm, hex: hex.into() })
    }
}

impl TryFrom<String> for Digest {
    type Error = DigestError;

    fn try_from(text: String) -> Result<Self, DigestError> {
        text.parse()
    }
}

impl From<Digest> for String {
    fn from(digest: Digest) -> Self {
        digest.to_string()
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.algorithm, self.hex)
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_digest_prints_as_it_was_written() {
        for text in [format!("sha256:{}", "0a".repeat(32)), format!("sha512:{}", "f9".repeat(64))] {
            assert_eq!(text.parse::<Digest>().map(String::from), Ok(text));
        }
    }

    #[test]
    fn what_is_no_digest_is_refused_with_its_reason() {
        let upper = format!("sha256:{}", "0A".repeat(32));
        let long = format!("sha256:{}", "0a".repeat(33));
        for (text, why) in [
            ("", DigestError::Shape),
            ("latest", DigestError::Shape),
            ("md5:d41d8cd98f00b204e9800998ecf8427e", DigestError::Algorithm),
            ("sha256:", DigestError::Hex),
            ("sha256:../../../../etc/passwd", DigestError::Hex),
            (&upper, DigestError::Hex),
            (&long, DigestError::Hex),
        ] {
            assert_eq!(text.parse::<Digest>(), Err(why), "{text}");
        }
    }
}
