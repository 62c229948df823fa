//! The names under which things are kept, the same in every backend.
//!
//! ```text
//! blobs/sha256/ab/abcdef…                            bytes, once, read-only
//! repositories/<name>/_tags/<tag>                    the digest that the tag points at
//! repositories/<name>/_manifests/sha256/<hex>        the repository holds this manifest; its media type
//! repositories/<name>/_blobs/sha256/<hex>            the repository holds this blob
//! repositories/<name>/_referrers/sha256/<hex>/<digest> a descriptor, ready to serve
//! uploads/<id>/…                                     what has not been finished
//! statistics.json                                    how much is stored
//! ```
//! No part of a repository name begins with `_`, so a repository `a/tags` never meets the tags of `a`.

use berth_oci::{Algorithm, Digest, Repository, Tag, UploadId};

/// Where the bytes with this digest are.
pub fn blob(digest: &Digest) -> String {
    let (algorithm, hex) = (digest.algorithm(), digest.hex());
    format!("blobs/{algorithm}/{}/{hex}", &hex[..2])
}

/// The folder of what has not been finished.
pub const UPLOADS: &str = "uploads";

/// The folder of one upload.
pub fn upload(id: &UploadId) -> String {
    format!("{UPLOADS}/{id}")
}

/// How much is stored.
pub const STATISTICS: &str = "statistics.json";

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

/// The digest that a file on a shard, `blobs/<algorithm>/<two digits>`, is named after.
pub fn digest_in(shard: &str, name: &str) -> Option<Digest> {
    format!("{}:{name}", shard.split('/').nth(1)?).parse().ok()
}

/// Whether a repository comes after `last`, in the order of their parts.
pub fn is_after(name: &str, last: Option<&str>) -> bool {
    last.is_none_or(|last| name.split('/').gt(last.split('/')))
}

/// Whether what comes after `last` may be at or below `name`: everything below a name that comes before `last`, and
/// isn't above it, comes before it too.
pub fn is_after_or_above(name: &str, last: Option<&str>) -> bool {
    is_after(name, last)
        || last.is_none_or(|last| last.strip_prefix(name).is_some_and(|rest| rest.is_empty() || rest.starts_with('/')))
}
