//! Transactions.

use std::ops::{Deref, DerefMut};

use sqlx::{Any, AnyConnection, Executor, pool::PoolConnection};

use super::Store;

/// A transaction. If it isn't committed, whatever the reason, its connection is closed: after an error of the disk SQLite has
/// rolled back by itself or not, and what came on that connection next might never be committed.
pub struct Transaction {
    connection: PoolConnection<Any>,
    is_committed: bool,
}

impl Store {
    /// Begins a transaction that writes.
    pub(super) async fn begin(&self) -> Result<Transaction, sqlx::Error> {
        let connection = self.pool.acquire().await?;
        let mut transaction = Transaction { connection, is_committed: false };
        // Who reads first and writes later is refused by SQLite at once if somebody else has written in between.
        transaction.execute(if self.is_exclusive { "BEGIN IMMEDIATE" } else { "BEGIN" }).await?;
        Ok(transaction)
    }
}

impl Transaction {
    /// Makes everything of it durable.
    pub async fn commit(mut self) -> Result<(), sqlx::Error> {
        self.execute("COMMIT").await?;
        self.is_committed = true;
        Ok(())
    }
}

impl Deref for Transaction {
    type Target = AnyConnection;

    fn deref(&self) -> &AnyConnection {
        &self.connection
    }
}

impl DerefMut for Transaction {
    fn deref_mut(&mut self) -> &mut AnyConnection {
        &mut self.connection
    }
}

impl Drop for Transaction {
    fn drop(&mut self) {
        if !self.is_committed {
            self.connection.close_on_drop();
        }
    }
}

#[cfg(test)]
mod tests {
    use sqlx::Row;

    use super::*;
    use crate::store::for_test;

    async fn count(store: &Store) -> i64 {
        let row = sqlx::query("SELECT COUNT(*) AS n FROM event_leases").fetch_one(&store.pool).await.expect("counted");
        row.try_get("n").expect("a number")
    }

    async fn insert(connection: &mut AnyConnection, name: &str, len: usize) -> Result<(), sqlx::Error> {
        let query = sqlx::query("INSERT INTO event_leases (name, holder, held_until) VALUES ($1, $2, 0)");
        query.bind(name).bind("x".repeat(len)).execute(connection).await.map(drop)
    }

    #[tokio::test]
    async fn a_connection_whose_transaction_failed_is_used_no_more() {
        let (_folder, store) = for_test().await;
        for round in 0..20 {
            // Dropped, and failed for want of room.
            let mut transaction = store.begin().await.expect("begun");
            insert(&mut transaction, "dropped", 10).await.expect("inserted");
            drop(transaction);
            let mut transaction = store.begin().await.expect("begun");
            transaction.execute("PRAGMA max_page_count = 1").await.expect("set");
            assert!(insert(&mut transaction, "full", 10_000_000).await.is_err());
            drop(transaction);
            let mut transaction = store.begin().await.expect("begun");
            insert(&mut transaction, &format!("kept {round}"), 10).await.expect("inserted");
            transaction.commit().await.expect("committed");
            assert_eq!(count(&store).await, round + 1);
        }
    }
}
