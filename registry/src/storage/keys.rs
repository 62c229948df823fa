//! The names under which things are kept, the same in every backend.
//!
//! ```text
//! blobs/sha256/ab/abcdef…                            bytes, once, read-only
//! repositories/<name>/_tags/<tag>                    the digest that the tag points at
//! repositories/<name>/_manifests/sha256/<hex>        the repository holds this manifest; its media type
//! repositories/<name>/_blobs/sha256/<hex>            the repository holds this blob
//! repositories/<name>/_referrers/sha256/<hex>/<digest> a descriptor, ready to serve
//! ```
//! No part of a repository name begins with `_`, so a repository `a/tags` never meets the tags of `a`.

use berth_oci::{Algorithm, Digest, Repository, Tag};

/// Where the bytes with this digest are.
pub fn blob(digest: &Digest) -> String {
    let (algorithm, hex) = (digest.algorithm(), digest.hex());
    format!("blobs/{algorithm}/{}/{hex}", &hex[..2])
}

/// The folder of all repositories.
pub const REPOSITORIES: &str = "repositories";

/// The folder by which a repository exists for clients: it is made by the first manifest.
pub const MANIFESTS: &str = "_manifests";

/// The folder that the first blob makes.
pub const BLOBS: &str = "_blobs";

/// The folder of a repository's tags.
pub fn tags(repository: &Repository) -> String {
    format!("{REPOSITORIES}/{repository}/_tags")
}

/// One tag.
pub fn tag(repository: &Repository, tag: &Tag) -> String {
    format!("{}/{tag}", tags(repository))
}

/// The folder of the manifests that a repository holds.
pub fn manifests(repository: &Repository) -> String {
    format!("{REPOSITORIES}/{repository}/{MANIFESTS}")
}

/// That a repository holds a manifest.
pub fn manifest(repository: &Repository, digest: &Digest) -> String {
    format!("{}/{}/{}", manifests(repository), digest.algorithm(), digest.hex())
}

/// That a repository holds a blob.
pub fn held_blob(repository: &Repository, digest: &Digest) -> String {
    format!("{}/{}/{}", held_blobs(repository), digest.algorithm(), digest.hex())
}

/// The folder of the blobs that a repository holds.
pub fn held_blobs(repository: &Repository) -> String {
    format!("{REPOSITORIES}/{repository}/{BLOBS}")
}

/// The folder of the descriptors that refer to `subject`.
pub fn referrers(repository: &Repository, subject: &Digest) -> String {
    format!("{REPOSITORIES}/{repository}/_referrers/{}/{}", subject.algorithm(), subject.hex())
}

/// The descriptor of one manifest that refers to `subject`.
pub fn referrer(repository: &Repository, subject: &Digest, referrer: &Digest) -> String {
    format!("{}/{}-{}", referrers(repository, subject), referrer.algorithm(), referrer.hex())
}

/// The folders of blobs, by algorithm.
pub fn blobs(algorithm: Algorithm) -> String {
    format!("blobs/{algorithm}")
}
