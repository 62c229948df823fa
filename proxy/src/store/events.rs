//! What requests are about to change, and what is to be told of it.

use sqlx::{AnyConnection, Row};

use super::{Store, StoreError, now};

/// What a request is about to change.
#[derive(Clone, Debug)]
pub struct Intent {
    /// The request's name.
    pub id: String,
    /// In which what happens is told in its order.
    pub stream: String,
    /// What it is about to do, as JSON.
    pub change: String,
}

/// Something to tell a sink.
#[derive(Clone, Debug)]
pub struct Announcement {
    /// Its address.
    pub sink: String,
    /// The event's name, the same whenever it is told.
    pub id: String,
    /// In which what happens is told in its order.
    pub stream: String,
    /// What has happened.
    pub kind: String,
    /// When, in seconds since 1970.
    pub at: i64,
    /// More of it, as JSON.
    pub data: String,
}

/// One thing to write down of events.
#[derive(Clone, Debug)]
pub enum EventWrite {
    /// A request is about to change something, at this process.
    Intend(Intent),
    /// It is known what became of it: this is to be told, or nothing.
    Settle(String, Vec<Announcement>),
    /// Nobody at this process will know what became of it.
    Abandon(String),
    /// Something else is to be told, in this order.
    Announce(Vec<Announcement>),
    /// A sink was told.
    Told(String, String),
}

/// What waits for a sink.
#[derive(Clone, Debug)]
pub struct Waiting {
    /// Its address.
    pub sink: String,
    /// How many there are.
    pub count: i64,
    /// When the oldest happened.
    pub oldest: i64,
}

impl Store {
    /// Whether no other process uses this database.
    pub fn is_exclusive(&self) -> bool {
        self.is_exclusive
    }

    /// Writes some things down, all of them or none, in one step.
    pub async fn write_events(&self, holder: &str, writes: &[EventWrite]) -> Result<(), StoreError> {
        self.within(self.write_events_now(holder, writes)).await
    }

    async fn write_events_now(&self, holder: &str, writes: &[EventWrite]) -> Result<(), sqlx::Error> {
        let mut transaction = self.begin().await?;
        let wanted = writes.iter().map(|write| match write {
            EventWrite::Intend(_) | EventWrite::Announce(_) => 1,
            EventWrite::Settle(_, announcements) => i64::from(!announcements.is_empty()),
            EventWrite::Abandon(_) | EventWrite::Told(..) => 0,
        });
        let wanted: i64 = wanted.sum();
        let mut position = 0;
        if wanted > 0 {
            // Whoever else writes waits for this one: the numbers are in the order in which they can be seen.
            let order = sqlx::query("UPDATE event_order SET last = last + $1 RETURNING last").bind(wanted);
            position = order.fetch_one(&mut *transaction).await?.try_get::<i64, _>("last")? - wanted;
        }
        for write in writes {
            match write {
                EventWrite::Intend(intent) => {
                    position += 1;
                    let query = sqlx::query(
                        "INSERT INTO event_intents (id, position, stream, change, holder, touched_at)
                         VALUES ($1, $2, $3, $4, $5, $6)",
                    );
                    let query = query.bind(&intent.id).bind(position).bind(&intent.stream).bind(&intent.change);
                    query.bind(holder).bind(now()).execute(&mut *transaction).await?;
                }
                EventWrite::Settle(id, announcements) => {
                    let query = sqlx::query("DELETE FROM event_intents WHERE id = $1 RETURNING position").bind(id);
                    let row = query.fetch_optional(&mut *transaction).await?;
                    position += i64::from(!announcements.is_empty());
                    // Somebody else may have thought that nobody serves the request any more: it is told all the same.
                    let position = row.map_or(Ok(position), |row| row.try_get("position"))?;
                    announce(&mut transaction, position, announcements).await?;
                }
                EventWrite::Abandon(id) => {
                    let query = sqlx::query("UPDATE event_intents SET holder = '', touched_at = $2 WHERE id = $1");
                    query.bind(id).bind(now()).execute(&mut *transaction).await?;
                }
                EventWrite::Announce(announcements) => {
                    position += 1;
                    announce(&mut transaction, position, announcements).await?;
                }
                EventWrite::Told(sink, id) => {
                    let query = sqlx::query("DELETE FROM events WHERE sink = $1 AND id = $2").bind(sink).bind(id);
                    query.execute(&mut *transaction).await?;
                }
            }
        }
        transaction.commit().await
    }

    /// The intents of a process.
    pub async fn intents_of(&self, holder: &str) -> Result<Vec<String>, StoreError> {
        let query = sqlx::query("SELECT id FROM event_intents WHERE holder = $1").bind(holder);
        let rows = self.within(query.fetch_all(&self.pool)).await?;
        Ok(rows.iter().map(|row| row.try_get("id")).collect::<Result<_, sqlx::Error>>()?)
    }

    /// Tells others that the requests of this process go on.
    pub async fn touch_intents(&self, holder: &str) -> Result<(), StoreError> {
        let query = sqlx::query("UPDATE event_intents SET touched_at = $1 WHERE holder = $2");
        self.within(query.bind(now()).bind(holder).execute(&self.pool)).await?;
        Ok(())
    }

    /// Some intents of requests that nobody serves any more, and since when: their process, which isn't `holder`, has been
    /// silent since `silent_since`, or let go.
    pub async fn abandoned_intents(
        &self,
        holder: &str,
        silent_since: i64,
        most: i64,
    ) -> Result<Vec<(Intent, i64)>, StoreError> {
        let query = sqlx::query(
            "SELECT id, stream, change, touched_at FROM event_intents
             WHERE holder = '' OR (holder <> $1 AND touched_at < $2) ORDER BY touched_at, position LIMIT $3",
        );
        let query = query.bind(holder).bind(silent_since).bind(most);
        let rows = self.within(query.fetch_all(&self.pool)).await?;
        let read = |row: &sqlx::any::AnyRow| {
            let intent =
                Intent { id: row.try_get("id")?, stream: row.try_get("stream")?, change: row.try_get("change")? };
            Ok((intent, row.try_get("touched_at")?))
        };
        Ok(rows.iter().map(read).collect::<Result<_, sqlx::Error>>()?)
    }

    /// Forgets who held what: a process that has the database for itself has just begun.
    pub async fn release_events(&self) -> Result<(), StoreError> {
        let query = sqlx::query("UPDATE event_intents SET holder = '', touched_at = $1").bind(now());
        self.within(query.execute(&self.pool)).await?;
        self.within(sqlx::query("DELETE FROM event_leases").execute(&self.pool)).await?;
        Ok(())
    }

    /// The next of what a sink is to be told, in order, and of no stream more than `each`; without the streams `but`, and without
    /// what comes after a request of its stream of which it isn't known what became.
    pub async fn events_for(
        &self,
        sink: &str,
        but: &[String],
        each: i64,
        most: i64,
    ) -> Result<Vec<Announcement>, StoreError> {
        let holes: Vec<String> = (0..but.len()).map(|i| format!("${}", i + 4)).collect();
        let others = if but.is_empty() { String::new() } else { format!("AND stream NOT IN ({})", holes.join(", ")) };
        let text = format!(
            "SELECT sink, id, stream, kind, at, data FROM (
                 SELECT *, ROW_NUMBER() OVER (PARTITION BY stream ORDER BY position, part) AS place
                 FROM events WHERE sink = $1 {others}
             ) e WHERE place <= $2
             AND NOT EXISTS (SELECT 1 FROM event_intents i WHERE i.stream = e.stream AND i.position < e.position)
             ORDER BY position, part LIMIT $3"
        );
        // As many texts as there may be streams: none is worth being kept.
        let query = sqlx::query(sqlx::AssertSqlSafe(text)).persistent(false);
        let mut query = query.bind(sink).bind(each).bind(most);
        for stream in but {
            query = query.bind(stream);
        }
        let rows = self.within(query.fetch_all(&self.pool)).await?;
        let read = |row: &sqlx::any::AnyRow| {
            Ok(Announcement {
                sink: row.try_get("sink")?,
                id: row.try_get("id")?,
                stream: row.try_get("stream")?,
                kind: row.try_get("kind")?,
                at: row.try_get("at")?,
                data: row.try_get("data")?,
            })
        };
        Ok(rows.iter().map(read).collect::<Result<_, sqlx::Error>>()?)
    }

    /// What waits for whom.
    pub async fn waiting_events(&self) -> Result<Vec<Waiting>, StoreError> {
        let query = sqlx::query("SELECT sink, COUNT(*) AS n, MIN(at) AS oldest FROM events GROUP BY sink");
        let rows = self.within(query.fetch_all(&self.pool)).await?;
        let read = |row: &sqlx::any::AnyRow| {
            Ok(Waiting { sink: row.try_get("sink")?, count: row.try_get("n")?, oldest: row.try_get("oldest")? })
        };
        Ok(rows.iter().map(read).collect::<Result<_, sqlx::Error>>()?)
    }

    /// Forgets what waits for a sink, as far as it happened before `at`; how much that was.
    pub async fn drop_events(&self, sink: &str, at: i64) -> Result<u64, StoreError> {
        let query = sqlx::query("DELETE FROM events WHERE sink = $1 AND at < $2").bind(sink).bind(at);
        Ok(self.within(query.execute(&self.pool)).await?.rows_affected())
    }

    /// Holds something for `holder` alone, for so many seconds, or goes on doing so; whether it does.
    pub async fn hold_lease(&self, name: &str, holder: &str, seconds: i64) -> Result<bool, StoreError> {
        let query = sqlx::query(
            "INSERT INTO event_leases (name, holder, held_until) VALUES ($1, $2, $3)
             ON CONFLICT (name) DO UPDATE SET holder = $2, held_until = $3
             WHERE event_leases.holder = $2 OR event_leases.held_until < $4",
        );
        let query = query.bind(name).bind(holder).bind(now() + seconds).bind(now());
        Ok(self.within(query.execute(&self.pool)).await?.rows_affected() == 1)
    }
}

async fn announce(
    connection: &mut AnyConnection,
    position: i64,
    announcements: &[Announcement],
) -> Result<(), sqlx::Error> {
    for (one, part) in announcements.iter().zip(0_i64..) {
        let query = sqlx::query(
            "INSERT INTO events (sink, id, position, part, stream, kind, at, data)
             VALUES ($1, $2, $3, $4, $5, $6, $7, $8) ON CONFLICT DO NOTHING",
        );
        let query = query.bind(&one.sink).bind(&one.id).bind(position).bind(part).bind(&one.stream);
        query.bind(&one.kind).bind(one.at).bind(&one.data).execute(&mut *connection).await?;
    }
    Ok(())
}
