-- Claims rows of one broker and lane: $1 broker, $2 lane, $3 most rows, $4 holder, $5 claim time in
-- milliseconds, $6 streams to pass over. Gives the rows claimed, and each stream that is blocked: its
-- first open row that is no candidate is in other hands or not due, and what comes after it may not go.
WITH candidate AS MATERIALIZED (
    SELECT m.position, m.stream
    FROM hub_outbox.messages AS m
    WHERE m.broker = $1 AND m.lane = $2 AND m.due_at <= now() AND m.stream <> ALL ($6)
    ORDER BY m.due_at, m.position
    LIMIT $3
    FOR UPDATE SKIP LOCKED
),
blocker AS MATERIALIZED (
    SELECT s.stream, b.*
    FROM (SELECT DISTINCT c.stream FROM candidate AS c) AS s
    CROSS JOIN LATERAL (
        SELECT m.position, m.lane, m.status, m.due_at
        FROM hub_outbox.messages AS m
        WHERE m.broker = $1 AND m.stream = s.stream AND m.due_at IS NOT NULL
            AND m.position NOT IN (SELECT c.position FROM candidate AS c)
        ORDER BY m.position
        LIMIT 1
    ) AS b
),
claimed AS (
    UPDATE hub_outbox.messages AS m
    SET status = 'processing', claimed_by = $4, due_at = now() + $5 * interval '1 millisecond'
    FROM candidate AS c LEFT JOIN blocker AS b ON b.stream = c.stream
    WHERE m.broker = $1 AND m.position = c.position AND (b.position IS NULL OR c.position < b.position)
    RETURNING m.position, m.message_id, m.event_type, m.stream, m.lane, m.is_public, m.payload::text AS payload,
        m.attempts, m.created_at
),
-- What waits behind a row that waits itself is looked at again when that one is, not at every claim.
deferred AS (
    UPDATE hub_outbox.messages AS m
    SET due_at = CASE WHEN b.lane = $2 THEN b.due_at
                      ELSE greatest(b.due_at, now() + interval '250 milliseconds') END
    FROM candidate AS c JOIN blocker AS b ON b.stream = c.stream AND c.position > b.position
    WHERE m.broker = $1 AND m.position = c.position
        AND (b.due_at > m.due_at OR b.lane <> $2)
        -- A live claim ends any moment.
        AND (b.status <> 'processing' OR b.due_at <= now())
)
SELECT position, message_id, event_type, stream, lane, is_public, payload, attempts,
    (extract(epoch FROM created_at) * 1000000)::bigint AS created_at, (SELECT count(*) FROM candidate) AS candidates
FROM claimed
UNION ALL
SELECT NULL, NULL, NULL, b.stream, NULL, NULL, NULL, NULL, NULL, (SELECT count(*) FROM candidate)
FROM blocker AS b
