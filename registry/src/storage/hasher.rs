//! A running hash whose state can be put down and taken up again, so that an upload survives a restart without
//! its bytes being read a second time.

use std::io;

use berth_oci::{Algorithm, Digest, DigestError};
use sha2::{
    Digest as _, Sha256, Sha512,
    digest::common::hazmat::{SerializableState, SerializedState},
};

/// The hash of the bytes so far.
#[derive(Clone)]
pub enum Hasher {
    Sha256(Sha256),
    Sha512(Sha512),
}

impl Hasher {
    pub fn new(algorithm: Algorithm) -> Self {
        match algorithm {
            Algorithm::Sha256 => Self::Sha256(Sha256::new()),
            Algorithm::Sha512 => Self::Sha512(Sha512::new()),
        }
    }

    pub fn algorithm(&self) -> Algorithm {
        match self {
            Self::Sha256(_) => Algorithm::Sha256,
            Self::Sha512(_) => Algorithm::Sha512,
        }
    }

    pub fn update(&mut self, bytes: &[u8]) {
        match self {
            Self::Sha256(hash) => hash.update(bytes),
            Self::Sha512(hash) => hash.update(bytes),
        }
    }

    pub fn finish(self) -> Result<Digest, DigestError> {
        match self {
            Self::Sha256(hash) => Digest::from_hash(Algorithm::Sha256, &hash.finalize()),
            Self::Sha512(hash) => Digest::from_hash(Algorithm::Sha512, &hash.finalize()),
        }
    }

    /// The state as bytes, for [`Hasher::load`].
    pub fn save(&self) -> Vec<u8> {
        match self {
            Self::Sha256(hash) => hash.serialize().to_vec(),
            Self::Sha512(hash) => hash.serialize().to_vec(),
        }
    }

    /// The hasher that an upload's state names.
    pub fn of_upload(algorithm: &str, saved: &[u8]) -> io::Result<Self> {
        let hasher = algorithm.parse().ok().and_then(|algorithm| Self::load(algorithm, saved));
        hasher.ok_or_else(|| io::Error::other("an upload's hash state is unreadable"))
    }

    /// The hasher that was saved, or nothing if the bytes aren't one.
    pub fn load(algorithm: Algorithm, saved: &[u8]) -> Option<Self> {
        match algorithm {
            Algorithm::Sha256 => {
                let state = SerializedState::<Sha256>::try_from(saved).ok()?;
                Some(Self::Sha256(Sha256::deserialize(&state).ok()?))
            }
            Algorithm::Sha512 => {
                let state = SerializedState::<Sha512>::try_from(saved).ok()?;
                Some(Self::Sha512(Sha512::deserialize(&state).ok()?))
            }
        }
    }
}

/// The digest of bytes that are all at hand.
///
/// # Errors
/// Never, as long as the algorithms are the ones of [`Algorithm`].
pub fn digest_of(algorithm: Algorithm, bytes: &[u8]) -> io::Result<Digest> {
    let mut hasher = Hasher::new(algorithm);
    hasher.update(bytes);
    hasher.finish().map_err(io::Error::other)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hash_goes_on_where_it_was_put_down() {
        for algorithm in [Algorithm::Sha256, Algorithm::Sha512] {
            let mut first = Hasher::new(algorithm);
            first.update(b"some bytes that are no whole block");
            let mut second = Hasher::load(algorithm, &first.save()).expect("a saved state");
            second.update(b", and the rest");
            let whole = digest_of(algorithm, b"some bytes that are no whole block, and the rest");
            assert_eq!(second.finish().expect("a digest"), whole.expect("a digest"));
        }
        assert!(Hasher::load(Algorithm::Sha256, b"too short").is_none());
    }
}
