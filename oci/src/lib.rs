//! The wire of the OCI distribution protocol, as both processes understand it: repository names,
//! tags, digests, routes, manifests and error bodies.
//!
//! Nothing here does I/O. Every type is parsed from hostile text into a value that can't be wrong,
//! and [`Operation::parse`] is the one place where a request line gets its meaning: the proxy
//! authorizes the value and the registry acts on the same value.

mod bounded;
mod digest;
mod error;
mod manifest;
mod notice;
mod operation;
mod overview;
mod reference;
mod repository;

pub use digest::{Algorithm, Digest, DigestError};
pub use error::{Error, ErrorCode};
pub use manifest::{Descriptor, MANIFEST_LIMIT, Manifest, ManifestError, MediaType, Part};
pub use notice::{Notice, NoticeBatch, NoticeList};
pub use operation::{MAX_TAGS_PER_PUSH, Operation, Page, RouteError, UploadId, UploadSession};
pub use overview::{
    Amount, ContentOverview, HolderList, LastPush, MAX_SEARCH_BYTES, Pulls, Push, QuotaUsage, RepositoryList,
    RepositoryOverview, Search, TagOrder, TagOverview, TagOverviewList, TagRetention, TagSelection, Totals, UsageList,
    decode_user, encode_user,
};
pub use reference::{Reference, ReferenceError, Tag, TagError};
pub use repository::{Repository, RepositoryError};
