//! Storage only keeps bytes: blobs by digest, small named files, and uploads that aren't finished.
//!
//! It knows nothing of what a manifest is. Whatever it has said to have written is on the disk, and appears
//! whole or not at all.

mod directory;
mod durable;
mod hasher;
pub mod keys;
mod upload;

pub use directory::{Directory, digest_of};
pub use hasher::Hasher;
pub use upload::{Upload, UploadError};
