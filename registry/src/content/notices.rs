//! What the registry has done by itself, written down until the proxy has told of it.

use std::{
    io,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use berth_oci::{Notice, NoticeBatch, NoticeList};
use uuid::Uuid;

use super::Content;
use crate::storage::{Condition, keys};

/// How many batches are given at once.
const MAX_LISTED: usize = 100;

/// How long a batch is kept that nobody asks for.
const NOTICE_LIFETIME: Duration = Duration::from_hours(7 * 24);

impl Content {
    /// Writes down what has happened, durably.
    ///
    /// # Errors
    /// If the storage says no.
    pub(super) async fn notice(&self, notices: Vec<Notice>) -> io::Result<()> {
        if notices.is_empty() {
            return Ok(());
        }
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        // In the order of time, as far as clocks agree.
        let id = format!("{:013}-{}", since.as_millis(), Uuid::new_v4().simple());
        let batch = NoticeBatch { at: i64::try_from(since.as_secs()).unwrap_or_default(), notices, id };
        let bytes = serde_json::to_vec(&batch)?;
        self.storage.write(&keys::notice(&batch.id), bytes, Condition::None).await.map(drop)
    }

    /// The oldest of what is written down.
    ///
    /// # Errors
    /// If the storage says no.
    pub async fn notices(&self) -> io::Result<NoticeList> {
        let mut list = NoticeList::default();
        for id in self.storage.list(keys::NOTICES, None, MAX_LISTED).await? {
            let Some(bytes) = self.storage.read(&keys::notice(&id)).await? else { continue };
            match serde_json::from_slice::<NoticeBatch>(&bytes) {
                Ok(batch) => list.notices.push(NoticeBatch { id, ..batch }),
                Err(error) => tracing::error!(id, %error, "a notice can't be read, and nobody is told of it"),
            }
        }
        Ok(list)
    }

    /// Forgets a batch; whether that is the name of one.
    ///
    /// # Errors
    /// If the storage says no.
    pub async fn forget_notice(&self, id: &str) -> io::Result<bool> {
        let is_one =
            (1..=64).contains(&id.len()) && id.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-');
        Ok(is_one && self.storage.remove(&keys::notice(id)).await?)
    }

    /// Forgets what nobody has asked for.
    ///
    /// # Errors
    /// If the storage says no.
    pub(super) async fn expire_notices(&self) -> io::Result<()> {
        let old = self.storage.older_in(keys::NOTICES, NOTICE_LIFETIME).await?;
        self.storage.remove_all(old.iter().map(|id| keys::notice(id)).collect()).await
    }
}
