//! The names under which things are kept, the same in every backend.
//!
//! ```text
//! blobs/sha256/ab/abcdef…                            bytes, once, read-only
//! repositories/<name>/_tags/<tag>                    the digest that the tag points at; when it was set, by whom
//! repositories/<name>/_manifests/sha256/<hex>        the repository holds this manifest; its media type
//! repositories/<name>/_blobs/sha256/<hex>            the repository holds this blob
//! repositories/<name>/_referrers/sha256/<hex>/<digest>.<type>.<len> a descriptor, ready to serve
//! repositories/<name>/_tagged/a/abcdef…-<tag>        the tag was pushed for the manifest abcdef…
//! repositories/<name>/_named/a/abcdef…-<digest>      a manifest names the blob or manifest abcdef…
//! repositories/<name>/_overview/all                  what lists show of it; may be found out anew
//! repositories/<name>/_overview/totals               its size, and the like
//! uploads/<id>/…                                     what has not been finished
//! notices/<time>-<id>                                what the registry did by itself, until the proxy has told of it
//! statistics.json                                    how much is stored
//! layout.json                                        which of these folders have been kept from the beginning
//! ```
//! No part of a repository name begins with `_`, so a repository `a/tags` never meets the tags of `a`.

use std::{fmt, str::FromStr};

use berth_oci::{Algorithm, Digest, Repository, Tag, UploadId};
use sha2::{Digest as _, Sha256};

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

/// The folder of what the registry did by itself.
pub const NOTICES: &str = "notices";

/// Some of that.
pub fn notice(id: &str) -> String {
    format!("{NOTICES}/{id}")
}

/// How much is stored.
pub const STATISTICS: &str = "statistics.json";

/// What is used of quotas, as it was written down.
pub const QUOTAS: &str = "quotas.json";

/// Which folders have been kept from the beginning.
pub const LAYOUT: &str = "layout.json";

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

/// Whether what is empty in a folder was taken away, in a bucket.
pub fn has_tombstones(folder: &str) -> bool {
    folder.ends_with("/_tags")
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

/// The descriptor of one manifest that refers to `subject`, of this type and length: a list finds in the name what it needs
/// to know of it.
pub fn referrer(repository: &Repository, subject: &Digest, referrer: &ReferrerName) -> String {
    format!("{}/{referrer}", referrers(repository, subject))
}

/// What the name of a referrer's descriptor tells.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReferrerName {
    /// The manifest that refers to another.
    pub digest: Digest,
    /// The [fingerprint](type_fingerprint) of its artifact type.
    pub artifact_type: String,
    /// How many bytes the descriptor has.
    pub len: usize,
}

impl fmt::Display for ReferrerName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}.{}.{}", self.digest.algorithm(), self.digest.hex(), self.artifact_type, self.len)
    }
}

impl FromStr for ReferrerName {
    type Err = ();

    fn from_str(name: &str) -> Result<Self, ()> {
        let mut parts = name.splitn(3, '.');
        let (digest, artifact_type, len) = (parts.next().ok_or(())?, parts.next().ok_or(())?, parts.next().ok_or(())?);
        let digest = digest.replacen('-', ":", 1).parse().map_err(drop)?;
        Ok(Self { digest, artifact_type: artifact_type.to_owned(), len: len.parse().map_err(drop)? })
    }
}

/// An artifact type, however long it is, in sixteen characters.
pub fn type_fingerprint(artifact_type: Option<&str>) -> String {
    let hash = Sha256::digest(artifact_type.unwrap_or_default());
    hash[..8].iter().map(|byte| format!("{byte:02x}")).collect()
}

/// How many digits of a digest stand for it in the name of an entry that also has another name in it.
pub const PREFIX_DIGITS: usize = 32;

/// What the names of all entries about a digest begin with.
pub fn prefix_of(digest: &Digest) -> String {
    format!("{}-", &digest.hex()[..PREFIX_DIGITS])
}

/// The folder of the tags that were pushed for manifests like this one.
pub fn tagged(repository: &Repository, digest: &Digest) -> String {
    format!("{REPOSITORIES}/{repository}/{TAGGED}/{}", &digest.hex()[..1])
}

/// That a tag was pushed for a manifest; it may have moved since.
pub fn tagged_by(repository: &Repository, digest: &Digest, tag: &Tag) -> String {
    format!("{}/{}{tag}", tagged(repository, digest), prefix_of(digest))
}

/// The folder of what is named by manifests, and by which.
pub fn named(repository: &Repository, part: &Digest) -> String {
    format!("{REPOSITORIES}/{repository}/{NAMED}/{}", &part.hex()[..1])
}

/// That a manifest names a blob or another manifest.
pub fn named_by(repository: &Repository, part: &Digest, manifest: &Digest) -> String {
    format!("{}/{}{}-{}", named(repository, part), prefix_of(part), manifest.algorithm(), manifest.hex())
}

/// The folders of the two, which have folders themselves.
pub const TAGGED: &str = "_tagged";
/// See [`TAGGED`].
pub const NAMED: &str = "_named";

/// What is known of a repository.
pub fn overview(repository: &Repository) -> String {
    format!("{REPOSITORIES}/{repository}/{OVERVIEW}/all")
}

/// What is counted of a repository.
pub fn totals(repository: &Repository) -> String {
    format!("{REPOSITORIES}/{repository}/{OVERVIEW}/totals")
}

/// The folder of the two.
const OVERVIEW: &str = "_overview";

/// The folders of a repository that something may be in, in the order in which they become empty.
pub fn folders(repository: &Repository) -> [String; 7] {
    [MANIFESTS, OVERVIEW, "_tags", TAGGED, NAMED, "_referrers", BLOBS]
        .map(|folder| format!("{REPOSITORIES}/{repository}/{folder}"))
}

/// The folders of the entries in [`TAGGED`], or in [`NAMED`]: few enough for pushes to share a flush.
pub fn shards_of(root: &str) -> Vec<String> {
    (0..16).map(|shard| format!("{root}/{shard:x}")).collect()
}

/// An entry by its name, which begins with the name of its folder.
pub fn entry(root: &str, name: &str) -> String {
    format!("{root}/{}/{name}", name.get(..1).unwrap_or_default())
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
