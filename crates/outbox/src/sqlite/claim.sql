-- The due rows of one broker and priority (the column lane), each with the first open row of its stream that is none of them:
-- ?1 broker, ?2 priority, ?3 now in milliseconds, ?4 most rows, ?5 streams to pass over (a JSON array).
-- Read inside a write transaction, so nobody else claims meanwhile.
WITH due AS MATERIALIZED (
    SELECT position, stream FROM hub_outbox_messages
    WHERE broker = ?1 AND lane = ?2 AND due_at <= ?3 AND stream NOT IN (SELECT value FROM json_each(?5))
    ORDER BY due_at, position
    LIMIT ?4
),
blocker AS MATERIALIZED (
    SELECT s.stream, (
        SELECT m.position FROM hub_outbox_messages AS m
        WHERE m.broker = ?1 AND m.stream = s.stream AND m.due_at IS NOT NULL
            AND m.position NOT IN (SELECT position FROM due)
        ORDER BY m.position LIMIT 1
    ) AS position
    FROM (SELECT DISTINCT stream FROM due) AS s
)
SELECT d.stream, d.position, b.position AS blocker, m.lane, m.status, m.due_at
FROM due AS d
    LEFT JOIN blocker AS b ON b.stream = d.stream
    LEFT JOIN hub_outbox_messages AS m ON m.broker = ?1 AND m.position = b.position
ORDER BY d.stream, d.position
