//! Operator commands and upkeep on SQLite.

use super::{BEGIN, LAST_TIME, Sqlite, array, furthest_due, now};
use crate::rows::{Batch, BrokerStatus, Retention, Row, RowColumns, RowCursor, RowSelection, milliseconds};
use crate::unreadable::{NeverDueColumns, NeverDueRow, UnreadableColumn};

/// Condition for the rows of a selection. ?1 broker, ?2 statuses, ?3 message ids, ?4 stream, ?5 event type; ?6, ?7 the
/// cursor. Lists are JSON arrays.
macro_rules! selected {
    ($head:literal, $tail:literal) => {
        concat!(
            $head,
            " FROM hub_outbox_messages WHERE (?1 IS NULL OR broker = ?1) \
             AND (?2 = '[]' OR status IN (SELECT value FROM json_each(?2))) \
             AND (?3 = '[]' OR message_id IN (SELECT value FROM json_each(?3))) \
             AND (?4 IS NULL OR stream = ?4) AND (?5 IS NULL OR event_type = ?5) AND (position, broker) > (?6, ?7) ",
            $tail
        )
    };
}

macro_rules! bind_selection {
    ($query:expr, $selection:expr, $after:expr) => {
        $query
            .bind(&$selection.broker)
            .bind(array(&$selection.statuses.iter().map(|status| status.as_str()).collect::<Vec<_>>()))
            .bind(array(&$selection.message_ids))
            .bind(&$selection.stream)
            .bind(&$selection.event_type)
            .bind($after.position)
            .bind(&$after.broker)
    };
}

impl Sqlite {
    pub(crate) async fn status(&self, open_only: bool) -> Result<Vec<BrokerStatus>, sqlx::Error> {
        let configured =
            sqlx::query_scalar("SELECT name FROM hub_outbox_brokers").fetch_all(&self.pool).await?;
        let statement = if open_only {
            "SELECT broker, status, count(*), min(max(min(created_at), -62135596800000), 253402300799999) * 1000
             FROM hub_outbox_messages WHERE due_at IS NOT NULL GROUP BY broker, status"
        } else {
            "SELECT broker, status, count(*), min(max(min(created_at), -62135596800000), 253402300799999) * 1000
             FROM hub_outbox_messages GROUP BY broker, status"
        };
        let counts = sqlx::query_as(statement).fetch_all(&self.pool).await?;
        BrokerStatus::join(configured, counts)
    }

    pub(crate) async fn list(
        &self,
        selection: &RowSelection,
        after: &RowCursor,
        limit: usize,
    ) -> Result<Vec<Row>, sqlx::Error> {
        let query = sqlx::query_as::<_, RowColumns>(selected!(
            "SELECT position, broker, message_id, event_type, stream, lane, status, attempts,
                 min(max(due_at, -62135596800000), 253402300799999) * 1000, claimed_by,
                 min(max(created_at, -62135596800000), 253402300799999) * 1000,
                 min(max(settled_at, -62135596800000), 253402300799999) * 1000, last_error",
            "ORDER BY position, broker LIMIT ?8"
        ));
        let rows = bind_selection!(query, selection, after).bind(limit as i64).fetch_all(&self.pool).await?;
        rows.into_iter().map(Row::read).collect()
    }

    pub(crate) async fn payload(
        &self,
        broker: &str,
        message_id: &str,
    ) -> Result<Option<String>, sqlx::Error> {
        sqlx::query_scalar("SELECT payload FROM hub_outbox_messages WHERE message_id = ?1 AND broker = ?2")
            .bind(message_id)
            .bind(broker)
            .fetch_optional(&self.pool)
            .await
    }

    pub(crate) async fn retry(
        &self,
        selection: &RowSelection,
        after: &RowCursor,
        limit: usize,
    ) -> Result<Batch, sqlx::Error> {
        let mut tx = self.pool.begin_with(BEGIN).await?;
        let query = sqlx::query_as(selected!(
            "SELECT position, broker",
            " AND status IN ('failed', 'abandoned') ORDER BY position, broker LIMIT ?8"
        ));
        let batch: Vec<(i64, String)> =
            bind_selection!(query, selection, after).bind(limit as i64).fetch_all(&mut *tx).await?;
        let keys = array(&batch);
        // Later rows of the stream were postponed to the due time of such a row; they are due now as well.
        sqlx::query(
            "UPDATE hub_outbox_messages AS m SET due_at = ?2
             FROM (SELECT DISTINCT h.broker, h.stream FROM json_each(?1) AS k
                   JOIN hub_outbox_messages AS h ON h.position = k.value ->> 0 AND h.broker = k.value ->> 1) AS s
             WHERE m.broker = s.broker AND m.stream = s.stream AND m.status = 'pending' AND m.due_at > ?2",
        )
        .bind(&keys)
        .bind(now())
        .execute(&mut *tx)
        .await?;
        let done = sqlx::query(
            "UPDATE hub_outbox_messages AS m SET status = 'pending', attempts = 0, due_at = ?2, settled_at = NULL
             FROM json_each(?1) AS k WHERE m.position = k.value ->> 0 AND m.broker = k.value ->> 1",
        )
        .bind(&keys)
        .bind(now())
        .execute(&mut *tx)
        .await?;
        tx.commit().await?;
        Ok(batch_of(done.rows_affected(), batch, limit))
    }

    pub(crate) async fn discard(
        &self,
        selection: &RowSelection,
        reason: &str,
        after: &RowCursor,
        limit: usize,
    ) -> Result<Batch, sqlx::Error> {
        let mut tx = self.pool.begin_with(BEGIN).await?;
        let query = sqlx::query_as(selected!(
            "SELECT position, broker",
            " AND status IN ('pending', 'failed') ORDER BY position, broker LIMIT ?8"
        ));
        let batch: Vec<(i64, String)> =
            bind_selection!(query, selection, after).bind(limit as i64).fetch_all(&mut *tx).await?;
        let done = sqlx::query(
            "UPDATE hub_outbox_messages AS m
             SET status = 'abandoned', due_at = NULL, settled_at = ?2, last_error = ?3
             FROM json_each(?1) AS k WHERE m.position = k.value ->> 0 AND m.broker = k.value ->> 1",
        )
        .bind(array(&batch))
        .bind(now())
        .bind(reason)
        .execute(&mut *tx)
        .await?;
        tx.commit().await?;
        Ok(batch_of(done.rows_affected(), batch, limit))
    }

    pub(crate) async fn cleanup(&self, retention: Retention, limit: usize) -> Result<u64, sqlx::Error> {
        let mut deleted = 0;
        for statement in [
            "DELETE FROM hub_outbox_messages WHERE (position, broker) IN (
                 SELECT position, broker FROM hub_outbox_messages
                 WHERE broker = 'internal' AND status = ?1 AND settled_at < ?2 ORDER BY settled_at LIMIT ?3)",
            // Cleanup deletes external rows after the internal row, so a missing one was never written.
            "DELETE FROM hub_outbox_messages WHERE (position, broker) IN (
                 SELECT o.position, o.broker FROM hub_outbox_messages AS o
                 WHERE o.broker <> 'internal' AND o.status = ?1 AND o.settled_at < ?2
                     AND NOT EXISTS (SELECT 1 FROM hub_outbox_messages AS i
                                     WHERE i.position = o.position AND i.broker = 'internal') LIMIT ?3)",
        ] {
            for (status, kept) in [("published", retention.published), ("abandoned", retention.abandoned)] {
                let room = (limit as u64).saturating_sub(deleted);
                if room == 0 {
                    return Ok(deleted);
                }
                let done = sqlx::query(statement)
                    .bind(status)
                    .bind(now().saturating_sub(milliseconds(kept)))
                    .bind(room as i64)
                    .execute(&self.pool)
                    .await?;
                deleted += done.rows_affected();
            }
        }
        Ok(deleted)
    }

    /// Checked before the write lock is taken, as in a claim.
    pub(crate) async fn bring_forward(&self, limit: usize) -> Result<u64, sqlx::Error> {
        let now = now();
        let found: bool = sqlx::query_scalar(
            "SELECT EXISTS (SELECT 1 FROM hub_outbox_messages WHERE due_at > ?1 AND due_at <= ?2)",
        )
        .bind(furthest_due(now))
        .bind(LAST_TIME)
        .fetch_one(&self.pool)
        .await?;
        if !found {
            return Ok(0);
        }
        let done = sqlx::query(
            "UPDATE hub_outbox_messages SET due_at = ?3
             WHERE (position, broker) IN (SELECT position, broker FROM hub_outbox_messages
                                          WHERE due_at > ?1 AND due_at <= ?2 LIMIT ?4)",
        )
        .bind(furthest_due(now))
        .bind(LAST_TIME)
        .bind(now)
        .bind(limit as i64)
        .execute(&self.pool)
        .await?;
        Ok(done.rows_affected())
    }

    /// Checked before the write lock is taken, as in a claim.
    pub(crate) async fn abandon_never_due(&self, limit: usize) -> Result<Vec<NeverDueRow>, sqlx::Error> {
        let found: bool =
            sqlx::query_scalar("SELECT EXISTS (SELECT 1 FROM hub_outbox_messages WHERE due_at > ?1)")
                .bind(LAST_TIME)
                .fetch_one(&self.pool)
                .await?;
        if !found {
            return Ok(Vec::new());
        }
        let rows: Vec<NeverDueColumns> = sqlx::query_as(
            "UPDATE hub_outbox_messages
             SET status = 'abandoned', due_at = NULL, claimed_by = NULL, settled_at = ?2, last_error = ?3
             WHERE (position, broker) IN (SELECT position, broker FROM hub_outbox_messages WHERE due_at > ?1 LIMIT ?4)
             RETURNING position, broker, message_id, event_type, stream",
        )
        .bind(LAST_TIME)
        .bind(now())
        .bind(UnreadableColumn::NEVER_DUE.to_string())
        .bind(limit as i64)
        .fetch_all(&self.pool)
        .await?;
        Ok(rows.into_iter().map(NeverDueRow::read).collect())
    }

    pub(crate) async fn reconcile(&self, after: i64, limit: usize) -> Result<Batch, sqlx::Error> {
        let mut tx = self.pool.begin_with(BEGIN).await?;
        let last: Option<i64> = sqlx::query_scalar(
            "SELECT max(position) FROM (SELECT position FROM hub_outbox_messages
             WHERE broker = 'internal' AND is_public = 1 AND position > ?1 ORDER BY position LIMIT ?2)",
        )
        .bind(after)
        .bind(limit as i64)
        .fetch_one(&mut *tx)
        .await?;
        let Some(last) = last else { return Ok(Batch::default()) };
        let done = sqlx::query(
            "INSERT INTO hub_outbox_messages
                 (position, broker, message_id, event_type, stream, lane, is_public, payload, due_at, created_at)
             SELECT i.position, b.name, i.message_id, i.event_type, i.stream, i.lane, 1,
                 json_remove(i.payload, '$.metadata.domain.expected_version', '$.metadata.domain.asynchronous',
                     '$.metadata.domain.priority', '$.metadata.domain.published', '$.metadata.event_store',
                     '$.metadata.envelope.checksum'),
                 ?3, i.created_at
             FROM hub_outbox_messages AS i CROSS JOIN hub_outbox_brokers AS b
             WHERE i.broker = 'internal' AND i.is_public = 1 AND i.position > ?1 AND i.position <= ?2
                 AND i.created_at >= b.added_at AND json_valid(i.payload)
                 AND NOT EXISTS (SELECT 1 FROM hub_outbox_messages AS m
                                 WHERE m.position = i.position AND m.broker = b.name)
             ON CONFLICT DO NOTHING",
        )
        .bind(after)
        .bind(last)
        .bind(now())
        .execute(&mut *tx)
        .await?;
        tx.commit().await?;
        Ok(Batch::of(Some((done.rows_affected() as i64, last, String::new())), 0))
    }
}

fn batch_of(changed: u64, batch: Vec<(i64, String)>, limit: usize) -> Batch {
    let last = batch.into_iter().next_back();
    Batch::of(last.map(|(position, broker)| (changed as i64, position, broker)), limit)
}
