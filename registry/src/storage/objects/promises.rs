//! One registry tells a client that something exists, while another one collects it as garbage: who is first?
//!
//! Each says what it is about to do before it looks what the other one does (Dekker's algorithm). Who promises writes
//! `promises/<key>` and then looks for `condemned/<key>`; who collects writes `condemned/<key>` and then looks for a young
//! `promises/<key>`. The service shows to whoever reads what was written before, so at least one of the two sees the
//! other and gives way. A promise is good for as long as garbage is kept, and is renewed at half of that.
//!
//! A crash leaves a condemned key behind that nobody removes; after a while it counts for nothing.

use std::{io, time::Duration};

use object_store::PutMode;

use super::{Objects, age_of};

/// A collection of one key takes much less.
const LONGEST: Duration = Duration::from_mins(10);

fn promised(key: &str) -> String {
    format!("promises/{key}")
}

fn condemned(key: &str) -> String {
    format!("condemned/{key}")
}

/// See [`Storage::promise`](crate::storage::Storage::promise).
pub async fn promise(storage: &Objects, key: &str) -> io::Result<bool> {
    let known = storage.meta(&promised(key)).await?;
    if known.is_some_and(|promise| age_of(&promise) < storage.0.promised / 2) {
        return Ok(true);
    }
    storage.put(&promised(key), Vec::new(), PutMode::Overwrite).await?;
    let condemned = storage.meta(&condemned(key)).await?;
    Ok(condemned.is_none_or(|condemned| age_of(&condemned) > LONGEST))
}

/// See [`Storage::condemn`](crate::storage::Storage::condemn).
pub async fn condemn(storage: &Objects, key: &str, age: Duration) -> io::Result<bool> {
    storage.put(&condemned(key), Vec::new(), PutMode::Overwrite).await?;
    let young = async |key: &str| Ok::<_, io::Error>(storage.meta(key).await?.is_some_and(|o| age_of(&o) < age));
    let kept = young(&promised(key)).await? || young(key).await?;
    if !kept {
        storage.delete(key).await?;
        storage.delete(&promised(key)).await?;
    }
    storage.delete(&condemned(key)).await?;
    Ok(!kept)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::{Condition, Storage};

    #[tokio::test]
    async fn what_was_promised_is_not_collected_and_what_is_being_collected_is_not_promised() {
        let storage = Objects::in_memory(Duration::from_hours(1));
        let key = "repositories/r/_blobs/sha256/00";
        storage.write(key, Vec::new(), Condition::None).await.expect("written");
        // Young by itself.
        assert!(!condemn(&storage, key, Duration::from_hours(1)).await.expect("asked"));
        assert!(promise(&storage, key).await.expect("asked"));
        assert!(!condemn(&storage, key, Duration::from_hours(1)).await.expect("asked"));
        assert!(storage.exists(key).await.expect("asked"));
        // Old, and the promise too.
        assert!(condemn(&storage, key, Duration::ZERO).await.expect("asked"));
        assert!(!storage.exists(key).await.expect("asked"));
        assert!(promise(&storage, key).await.expect("a new life"));
        // Somebody else is in the middle of it.
        storage.delete(&promised(key)).await.expect("deleted");
        storage.write(&condemned(key), Vec::new(), Condition::None).await.expect("written");
        assert!(!promise(&storage, key).await.expect("asked"));
    }
}
