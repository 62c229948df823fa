//! What is pushed to measure: bytes that nobody has pushed before and that don't compress.

use std::{
    convert::Infallible,
    pin::Pin,
    task::{Context, Poll},
};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use serde_json::json;
use sha2::{Digest, Sha256};

/// The media type of an OCI image manifest.
pub const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";

/// How many bytes are sent at once of a large blob.
const PIECE_BYTES: usize = 128 * 1024;

/// `sha256:…` of some bytes.
pub fn digest(bytes: &[u8]) -> String {
    named(Sha256::digest(bytes).as_slice())
}

fn named(hash: &[u8]) -> String {
    let hex: String = hash.iter().map(|byte| format!("{byte:02x}")).collect();
    format!("sha256:{hex}")
}

/// Bytes from a seed (xorshift64*): fast, and no two seeds give the same.
pub fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut bytes = Vec::with_capacity(len + 8);
    while bytes.len() < len {
        state ^= state >> 12;
        state ^= state << 25;
        state ^= state >> 27;
        bytes.extend_from_slice(&state.wrapping_mul(0x2545_f491_4f6c_dd1d).to_le_bytes());
    }
    bytes.truncate(len);
    bytes
}

/// A blob of any length, of which a piece is in memory: the pieces differ by their first bytes.
#[derive(Clone)]
pub struct Large {
    piece: Bytes,
    /// How many bytes it has.
    pub len: u64,
    /// Its digest.
    pub digest: String,
}

impl Large {
    /// A blob of so many bytes, from a seed.
    pub fn new(seed: u64, len: u64) -> Self {
        let mut large = Self { piece: noise(seed, PIECE_BYTES).into(), len, digest: String::new() };
        let mut hash = Sha256::new();
        let mut reader = large.reader();
        while let Some(piece) = reader.next_piece() {
            hash.update(&piece);
        }
        large.digest = named(hash.finalize().as_slice());
        large
    }

    /// The blob as the body of a request.
    pub fn reader(&self) -> Reader {
        Reader { piece: self.piece.clone(), left: self.len, number: 0, rest: Bytes::new() }
    }
}

/// See [`Large::reader`].
pub struct Reader {
    piece: Bytes,
    left: u64,
    number: u64,
    /// What follows the first bytes of a piece.
    rest: Bytes,
}

impl Reader {
    fn next_piece(&mut self) -> Option<Bytes> {
        if self.left == 0 {
            return None;
        }
        if self.rest.is_empty() {
            self.rest = self.piece.slice(8..);
            self.number += 1;
            return Some(self.cut(Bytes::copy_from_slice(&self.number.to_le_bytes())));
        }
        let rest = std::mem::take(&mut self.rest);
        Some(self.cut(rest))
    }

    fn cut(&mut self, mut piece: Bytes) -> Bytes {
        piece.truncate(usize::try_from(self.left).unwrap_or(usize::MAX));
        self.left -= piece.len() as u64;
        piece
    }
}

impl Body for Reader {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        Poll::Ready(self.next_piece().map(|piece| Ok(Frame::data(piece))))
    }

    fn is_end_stream(&self) -> bool {
        self.left == 0
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.left)
    }
}

/// A small image: two blobs and the manifest that names them.
pub struct Image {
    /// The layer.
    pub layer: Bytes,
    /// The configuration.
    pub config: Bytes,
    /// The manifest.
    pub manifest: Bytes,
}

impl Image {
    /// An image with a layer of so many bytes, from a seed.
    pub fn new(seed: u64, layer_bytes: usize) -> Self {
        Self::of(noise(seed, layer_bytes))
    }

    /// An image of one uncompressed layer.
    pub fn of(layer: Vec<u8>) -> Self {
        let config = json!({
            "architecture": "amd64", "os": "linux", "config": {},
            "rootfs": {"type": "layers", "diff_ids": [digest(&layer)]},
        });
        let config = config.to_string().into_bytes();
        let descriptor = |media_type: &str, bytes: &[u8]| json!({"mediaType": media_type, "digest": digest(bytes), "size": bytes.len()});
        let manifest = json!({
            "schemaVersion": 2, "mediaType": MANIFEST,
            "config": descriptor("application/vnd.oci.image.config.v1+json", &config),
            "layers": [descriptor("application/vnd.oci.image.layer.v1.tar", &layer)],
        });
        Self { layer: layer.into(), config: config.into(), manifest: manifest.to_string().into() }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_large_blob_has_the_length_and_the_digest_that_it_says(seed: u64, len in 0_u64..1_000_000) {
            let large = Large::new(seed, len);
            let (mut reader, mut all) = (large.reader(), Vec::new());
            while let Some(piece) = reader.next_piece() {
                all.extend_from_slice(&piece);
            }
            prop_assert_eq!((all.len() as u64, digest(&all)), (len, large.digest));
        }
    }
}
