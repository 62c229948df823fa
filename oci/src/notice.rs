//! What the registry does by itself, for the proxy to tell of: nobody's request, so nobody's answer.

use serde::{Deserialize, Serialize};

use crate::{Digest, QuotaUsage, Repository};

/// `GET /notices` on the registry's own socket: the oldest of what it hasn't been told to forget.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct NoticeList {
    /// Each is told until it is forgotten (`DELETE /notices/<id>`).
    pub notices: Vec<NoticeBatch>,
}

/// Some things that happened together.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct NoticeBatch {
    /// Its name.
    pub id: String,
    /// When, in seconds since 1970.
    pub at: i64,
    /// What.
    pub notices: Vec<Notice>,
}

/// Something that happened.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "camelCase")]
pub enum Notice {
    /// A tag, or a manifest without one, went by the rules of retention.
    Expired {
        /// Of which repository.
        repository: Repository,
        /// The tag; nothing, if it is a manifest without one.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        tag: Option<String>,
        /// The manifest.
        digest: Digest,
        /// The rule that decided.
        rule: String,
    },
    /// Much of a quota is used.
    QuotaWarning {
        /// How much of what.
        usage: QuotaUsage,
    },
}
