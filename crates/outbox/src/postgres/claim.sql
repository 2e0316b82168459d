-- Claims rows of one broker and priority (the column lane): $1 broker, $2 priority, $3 most rows, $4 holder, $5 claim
-- time in milliseconds, $6 streams to pass over. Gives the rows claimed, and each stream of which not all that is
-- due was: an earlier row is claimed by another relay, or not due.
WITH due AS MATERIALIZED (
    SELECT m.position, m.stream
    FROM hub_outbox.messages AS m
    WHERE m.broker = $1 AND m.lane = $2 AND m.due_at <= now()
        -- (Not <> ALL: of a stream that is most of the table, the planner would expect nothing, and sort all.)
        AND CASE WHEN m.stream = ANY ($6) THEN 1 ELSE 0 END <> 1
    ORDER BY m.due_at, m.position
    LIMIT $3
    FOR UPDATE SKIP LOCKED
),
-- Of each of their streams as many open rows, from the first one on: mostly the same, but an expired claim
-- is before what is due for longer.
head AS MATERIALIZED (
    SELECT s.stream, h.*, bool_and(h.due_at <= now() AND h.lane = $2) OVER (PARTITION BY s.stream ORDER BY h.position) AS free
    FROM (SELECT d.stream, count(*) AS rows FROM due AS d GROUP BY d.stream) AS s
    CROSS JOIN LATERAL (
        SELECT m.position, m.lane, m.status, m.due_at
        FROM hub_outbox.messages AS m
        -- (A range of one, in this order: only the index of open rows has it. By position alone the planner may
        -- take the primary key, and go through all settled rows.)
        WHERE m.broker = $1 AND m.stream BETWEEN s.stream AND s.stream AND m.due_at IS NOT NULL
        ORDER BY m.stream, m.position
        LIMIT s.rows
    ) AS h
),
-- Another relay may be at them, or have been since this statement began.
locked AS MATERIALIZED (
    SELECT m.position
    FROM hub_outbox.messages AS m
    WHERE m.broker = $1 AND m.position = ANY (ARRAY(SELECT h.position FROM head AS h WHERE h.free))
        AND m.due_at <= now()
    FOR UPDATE SKIP LOCKED
),
-- (Arrays, IN and windows rather than joins: the planner guesses the rows of a CTE, and would read the
-- whole table for many, or loop over one CTE within the other for one.)
judged AS MATERIALIZED (
    SELECT h.*, bool_and(h.position IN (SELECT l.position FROM locked AS l))
        OVER (PARTITION BY h.stream ORDER BY h.position) AS mine
    FROM head AS h
),
claimed AS (
    UPDATE hub_outbox.messages AS m
    SET status = 'processing', claimed_by = $4, due_at = now() + $5 * interval '1 millisecond'
    WHERE m.broker = $1 AND m.position = ANY (ARRAY(SELECT j.position FROM judged AS j WHERE j.mine))
    RETURNING m.position, m.message_id, m.event_type, m.stream, m.lane, m.is_public, m.payload::text AS payload,
        m.attempts, m.created_at
),
-- The first row of a stream that is not claimed, and until when rows behind it cannot be claimed: not known
-- of a live claim, which ends any moment.
blocker AS MATERIALIZED (
    SELECT DISTINCT ON (j.stream) j.stream,
        CASE WHEN j.due_at > now() AND j.due_at <= now() + interval '2 days' AND j.status <> 'processing' THEN j.due_at
             WHEN j.lane <> $2 THEN now() + interval '250 milliseconds' END AS until
    FROM judged AS j
    WHERE NOT j.mine
    ORDER BY j.stream, j.position
),
waiting AS MATERIALIZED (
    SELECT u.position, max(u.until) OVER (PARTITION BY u.stream) AS until
    FROM (
        SELECT d.position, d.stream, NULL::timestamptz AS until FROM due AS d
        UNION ALL
        SELECT NULL, b.stream, b.until FROM blocker AS b
    ) AS u
),
deferred AS (
    UPDATE hub_outbox.messages AS m
    SET due_at = (SELECT w.until FROM waiting AS w WHERE w.position = m.position)
    WHERE m.broker = $1
        AND m.position = ANY (ARRAY(SELECT w.position FROM waiting AS w WHERE w.position IS NOT NULL AND w.until IS NOT NULL))
        AND m.position NOT IN (SELECT j.position FROM judged AS j WHERE j.mine)
)
SELECT position, message_id, event_type, stream, lane, is_public, payload, attempts,
    CASE WHEN created_at BETWEEN '0001-01-01 00:00:00+00' AND '9999-12-31 23:59:59.999999+00'
        THEN (extract(epoch FROM created_at) * 1000000)::bigint END AS created_at, (SELECT count(*) FROM due) AS due,
    -- Not waiting for the disk: a claim that a crash undoes costs at most a message sent twice.
    (SELECT set_config('synchronous_commit', 'off', true)) AS setting
FROM claimed
UNION ALL
SELECT NULL, NULL, NULL, b.stream, NULL, NULL, NULL, NULL, NULL, (SELECT count(*) FROM due), NULL
FROM blocker AS b
