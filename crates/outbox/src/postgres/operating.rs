//! Operator commands and upkeep on PostgreSQL.

use super::{Postgres, run};
use crate::rows::{
    Batch, BrokerStatus, FURTHEST_DUE_DAYS, Retention, Row, RowColumns, RowCursor, RowSelection, milliseconds,
};
use crate::unreadable::{NeverDueColumns, NeverDueRow, UnreadableColumn};

/// Condition for the rows of a selection. $1 broker, $2 statuses, $3 message ids, $4 stream, $5 event type; $6, $7 the
/// cursor. Repeated in each statement, because statements are constants.
macro_rules! selected {
    ($head:literal, $tail:literal) => {
        concat!(
            $head,
            " WHERE ($1::text IS NULL OR m.broker = $1) AND (cardinality($2::text[]) = 0 OR m.status = ANY ($2)) \
             AND (cardinality($3::text[]) = 0 OR m.message_id = ANY ($3)) AND ($4::text IS NULL OR m.stream = $4) \
             AND ($5::text IS NULL OR m.event_type = $5) AND (m.position, m.broker) > ($6, $7) ",
            $tail
        )
    };
}

macro_rules! bind_selection {
    ($query:expr, $selection:expr, $after:expr) => {
        $query
            .bind(&$selection.broker)
            .bind($selection.statuses.iter().map(|status| status.as_str()).collect::<Vec<_>>())
            .bind(&$selection.message_ids)
            .bind(&$selection.stream)
            .bind(&$selection.event_type)
            .bind($after.position)
            .bind(&$after.broker)
    };
}

impl Postgres {
    pub(crate) async fn status(&self, open_only: bool) -> Result<Vec<BrokerStatus>, sqlx::Error> {
        let configured = run!(self, fetch_all, sqlx::query_scalar("SELECT name FROM hub_outbox.brokers"))?;
        let statement = if open_only {
            "SELECT broker, status, count(*), (extract(epoch FROM CASE WHEN min(created_at) > '9999-12-31 23:59:59.999999+00' THEN '9999-12-31 23:59:59.999999+00'
                     WHEN min(created_at) < '0001-01-01 00:00:00+00' THEN '0001-01-01 00:00:00+00' ELSE min(created_at) END) * 1000000)::bigint
             FROM hub_outbox.messages WHERE due_at IS NOT NULL GROUP BY broker, status"
        } else {
            "SELECT broker, status, count(*), (extract(epoch FROM CASE WHEN min(created_at) > '9999-12-31 23:59:59.999999+00' THEN '9999-12-31 23:59:59.999999+00'
                     WHEN min(created_at) < '0001-01-01 00:00:00+00' THEN '0001-01-01 00:00:00+00' ELSE min(created_at) END) * 1000000)::bigint
             FROM hub_outbox.messages GROUP BY broker, status"
        };
        let counts = run!(self, fetch_all, sqlx::query_as(statement))?;
        BrokerStatus::join(configured, counts)
    }

    pub(crate) async fn list(
        &self,
        selection: &RowSelection,
        after: &RowCursor,
        limit: usize,
    ) -> Result<Vec<Row>, sqlx::Error> {
        let query = sqlx::query_as::<_, RowColumns>(selected!(
            "SELECT m.position, m.broker, m.message_id, m.event_type, m.stream, m.lane, m.status, m.attempts::bigint,
                 (extract(epoch FROM CASE WHEN m.due_at > '9999-12-31 23:59:59.999999+00' THEN '9999-12-31 23:59:59.999999+00'
                     WHEN m.due_at < '0001-01-01 00:00:00+00' THEN '0001-01-01 00:00:00+00' ELSE m.due_at END) * 1000000)::bigint, m.claimed_by,
                 (extract(epoch FROM CASE WHEN m.created_at > '9999-12-31 23:59:59.999999+00' THEN '9999-12-31 23:59:59.999999+00'
                     WHEN m.created_at < '0001-01-01 00:00:00+00' THEN '0001-01-01 00:00:00+00' ELSE m.created_at END) * 1000000)::bigint,
                 (extract(epoch FROM CASE WHEN m.settled_at > '9999-12-31 23:59:59.999999+00' THEN '9999-12-31 23:59:59.999999+00'
                     WHEN m.settled_at < '0001-01-01 00:00:00+00' THEN '0001-01-01 00:00:00+00' ELSE m.settled_at END) * 1000000)::bigint, m.last_error
             FROM hub_outbox.messages AS m",
            "ORDER BY m.position, m.broker LIMIT $8"
        ));
        let rows = run!(self, fetch_all, bind_selection!(query, selection, after).bind(limit as i64))?;
        rows.into_iter().map(Row::read).collect()
    }

    pub(crate) async fn payload(
        &self,
        broker: &str,
        message_id: &str,
    ) -> Result<Option<String>, sqlx::Error> {
        run!(
            self,
            fetch_optional,
            sqlx::query_scalar(
                "SELECT payload::text FROM hub_outbox.messages WHERE message_id = $1 AND broker = $2",
            )
            .bind(message_id)
            .bind(broker)
        )
    }

    pub(crate) async fn retry(
        &self,
        selection: &RowSelection,
        after: &RowCursor,
        limit: usize,
    ) -> Result<Batch, sqlx::Error> {
        // Later rows of the stream were postponed to the due time of such a row; they are due now as well.
        let query = sqlx::query_as(selected!(
            "WITH batch AS MATERIALIZED (
                 SELECT m.position, m.broker, m.stream FROM hub_outbox.messages AS m",
            " AND m.status IN ('failed', 'abandoned') ORDER BY m.position, m.broker LIMIT $8 FOR UPDATE
             ), retried AS (
                 UPDATE hub_outbox.messages AS m
                 SET status = 'pending', attempts = 0, due_at = now(), settled_at = NULL
                 FROM batch AS b WHERE m.position = b.position AND m.broker = b.broker RETURNING 1
             ), woken AS (
                 UPDATE hub_outbox.messages AS m SET due_at = now()
                 FROM (SELECT DISTINCT b.broker, b.stream FROM batch AS b) AS s
                 WHERE m.broker = s.broker AND m.stream = s.stream AND m.status = 'pending' AND m.due_at > now()
             ), notified AS MATERIALIZED (SELECT pg_notify('hub_outbox', '') FROM batch LIMIT 1)
             SELECT (SELECT count(*) FROM retried) AS changed, b.position, b.broker, (SELECT count(*) FROM notified)
             FROM batch AS b ORDER BY b.position DESC, b.broker DESC LIMIT 1"
        ));
        let last = run!(self, fetch_optional, bind_selection!(query, selection, after).bind(limit as i64))?;
        Ok(Batch::of(
            last.map(|(changed, position, broker, _): (i64, i64, String, i64)| (changed, position, broker)),
            limit,
        ))
    }

    pub(crate) async fn discard(
        &self,
        selection: &RowSelection,
        reason: &str,
        after: &RowCursor,
        limit: usize,
    ) -> Result<Batch, sqlx::Error> {
        let query = sqlx::query_as(selected!(
            "WITH batch AS MATERIALIZED (
                 SELECT m.position, m.broker FROM hub_outbox.messages AS m",
            " AND m.status IN ('pending', 'failed') ORDER BY m.position, m.broker LIMIT $8 FOR UPDATE
             ), discarded AS (
                 UPDATE hub_outbox.messages AS m
                 SET status = 'abandoned', due_at = NULL, settled_at = now(), last_error = $9
                 FROM batch AS b WHERE m.position = b.position AND m.broker = b.broker RETURNING 1
             )
             SELECT (SELECT count(*) FROM discarded) AS changed, b.position, b.broker
             FROM batch AS b ORDER BY b.position DESC, b.broker DESC LIMIT 1"
        ));
        let last = run!(
            self,
            fetch_optional,
            bind_selection!(query, selection, after).bind(limit as i64).bind(reason)
        )?;
        Ok(Batch::of(last, limit))
    }

    pub(crate) async fn cleanup(&self, retention: Retention, limit: usize) -> Result<u64, sqlx::Error> {
        let mut deleted = 0;
        for statement in [
            "DELETE FROM hub_outbox.messages AS m USING (
                 SELECT o.position, o.broker FROM hub_outbox.messages AS o
                 WHERE o.broker = 'internal' AND o.status = $1
                     AND o.settled_at < now() - $2 * interval '1 millisecond'
                 ORDER BY o.settled_at LIMIT $3 FOR UPDATE SKIP LOCKED
             ) AS old WHERE m.position = old.position AND m.broker = old.broker",
            // Cleanup deletes external rows after the internal row, so a missing one was never written.
            "DELETE FROM hub_outbox.messages AS m USING (
                 SELECT o.position, o.broker FROM hub_outbox.messages AS o
                 WHERE o.broker <> 'internal' AND o.status = $1
                     AND o.settled_at < now() - $2 * interval '1 millisecond'
                     AND NOT EXISTS (SELECT 1 FROM hub_outbox.messages AS i
                                     WHERE i.position = o.position AND i.broker = 'internal')
                 LIMIT $3 FOR UPDATE SKIP LOCKED
             ) AS old WHERE m.position = old.position AND m.broker = old.broker",
        ] {
            for (status, kept) in [("published", retention.published), ("abandoned", retention.abandoned)] {
                let room = (limit as u64).saturating_sub(deleted);
                if room == 0 {
                    return Ok(deleted);
                }
                let done = run!(
                    self,
                    execute,
                    sqlx::query(statement).bind(status).bind(milliseconds(kept)).bind(room as i64)
                )?;
                deleted += done.rows_affected();
            }
        }
        Ok(deleted)
    }

    pub(crate) async fn bring_forward(&self, limit: usize) -> Result<u64, sqlx::Error> {
        let done = run!(
            self,
            execute,
            sqlx::query(
                "UPDATE hub_outbox.messages AS m SET due_at = now() FROM (
                 SELECT position, broker FROM hub_outbox.messages
                 WHERE due_at > now() + $2 * interval '1 day' AND due_at <= '9999-12-31 23:59:59.999999+00'
                 LIMIT $1 FOR UPDATE SKIP LOCKED
             ) AS far WHERE m.position = far.position AND m.broker = far.broker",
            )
            .bind(limit as i64)
            .bind(FURTHEST_DUE_DAYS)
        )?;
        Ok(done.rows_affected())
    }

    pub(crate) async fn abandon_never_due(&self, limit: usize) -> Result<Vec<NeverDueRow>, sqlx::Error> {
        let rows: Vec<NeverDueColumns> = run!(
            self,
            fetch_all,
            sqlx::query_as(
                "WITH never AS MATERIALIZED (
                 SELECT m.position, m.broker FROM hub_outbox.messages AS m
                 WHERE m.due_at > '9999-12-31 23:59:59.999999+00' LIMIT $1 FOR UPDATE SKIP LOCKED
             )
             UPDATE hub_outbox.messages AS m
             SET status = 'abandoned', due_at = NULL, claimed_by = NULL, settled_at = now(), last_error = $2
             FROM never AS n WHERE m.position = n.position AND m.broker = n.broker
             RETURNING m.position, m.broker, m.message_id, m.event_type, m.stream",
            )
            .bind(limit as i64)
            .bind(UnreadableColumn::NEVER_DUE.to_string())
        )?;
        Ok(rows.into_iter().map(NeverDueRow::read).collect())
    }

    pub(crate) async fn reconcile(&self, after: i64, limit: usize) -> Result<Batch, sqlx::Error> {
        let last: Option<(i64, i64)> = run!(self, fetch_optional, sqlx::query_as(
            "WITH batch AS MATERIALIZED (
                 SELECT i.* FROM hub_outbox.messages AS i
                 WHERE i.broker = 'internal' AND i.is_public AND i.position > $1
                 ORDER BY i.position LIMIT $2
             ), derived AS (
                 INSERT INTO hub_outbox.messages
                     (position, broker, message_id, event_type, stream, lane, is_public, payload, due_at, created_at)
                 SELECT i.position, b.name, i.message_id, i.event_type, i.stream, i.lane, true,
                     hub_outbox.external_envelope(i.payload::jsonb)::json, now(), i.created_at
                 FROM batch AS i CROSS JOIN hub_outbox.brokers AS b
                 WHERE i.created_at >= b.added_at
                     AND NOT EXISTS (SELECT 1 FROM hub_outbox.messages AS m
                                     WHERE m.position = i.position AND m.broker = b.name)
                 ON CONFLICT DO NOTHING RETURNING 1
             ), notified AS MATERIALIZED (SELECT pg_notify('hub_outbox', '') FROM derived LIMIT 1)
             SELECT (SELECT count(*) FROM derived) + 0 * (SELECT count(*) FROM notified), max(i.position)
             FROM batch AS i HAVING max(i.position) IS NOT NULL",
        )
        .bind(after)
        .bind(limit as i64))?;
        Ok(Batch::of(last.map(|(changed, position)| (changed, position, String::new())), 0))
    }
}
