-- The transactional outbox, in a schema of its own. Producers need no more than
--   GRANT USAGE ON SCHEMA hub_outbox TO <role>;
-- for publish() runs with its owner's rights; the relay connects as the owner.

-- The external brokers: what publish() forks a published event to, beside the internal broker.
CREATE TABLE hub_outbox.brokers (
    name text PRIMARY KEY,
    -- Events from before are not sent to it afterwards.
    added_at timestamptz NOT NULL DEFAULT clock_timestamp()
);

CREATE SEQUENCE hub_outbox.positions AS bigint CACHE 1;

-- One row per event and target broker.
CREATE TABLE hub_outbox.messages (
    -- The order of insertion; the rows of one event share it.
    position bigint NOT NULL,
    broker text NOT NULL,
    message_id text NOT NULL,
    event_type text NOT NULL,
    stream text NOT NULL,
    lane text NOT NULL CHECK (lane IN ('live', 'bulk')),
    -- Whether the event is published, that is, goes to external brokers too.
    is_public boolean NOT NULL,
    -- The envelope as it is sent: full for 'internal', stripped for the others.
    payload json NOT NULL,
    status text NOT NULL DEFAULT 'pending'
        CHECK (status IN ('pending', 'processing', 'failed', 'published', 'abandoned')),
    -- Failed attempts.
    attempts integer NOT NULL DEFAULT 0,
    -- Of an open row: from when it may be claimed; while it is claimed, when the claim expires.
    due_at timestamptz,
    claimed_by text,
    created_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    -- When it was published or abandoned.
    settled_at timestamptz,
    -- Why the last attempt failed, or why it was abandoned.
    last_error text,
    PRIMARY KEY (position, broker),
    CONSTRAINT messages_once UNIQUE (message_id, broker),
    CONSTRAINT open_rows_are_due CHECK
        ((status IN ('pending', 'processing', 'failed')) = (due_at IS NOT NULL)),
    CONSTRAINT settled_rows_say_when CHECK ((due_at IS NULL) = (settled_at IS NOT NULL)),
    CONSTRAINT claims_have_a_holder CHECK ((status = 'processing') = (claimed_by IS NOT NULL))
) WITH (
    -- The open rows are few and change often: their dead versions must not pile up behind a
    -- threshold that grows with the archive.
    autovacuum_vacuum_scale_factor = 0.0,
    autovacuum_vacuum_threshold = 20000,
    autovacuum_vacuum_insert_scale_factor = 0.1,
    autovacuum_analyze_scale_factor = 0.05
);

-- Only open rows: settled ones, which are most, cost a claim nothing.
CREATE INDEX messages_due ON hub_outbox.messages (broker, lane, due_at, position) WHERE due_at IS NOT NULL;
CREATE INDEX messages_order ON hub_outbox.messages (broker, stream, position) WHERE due_at IS NOT NULL;
CREATE INDEX messages_settled ON hub_outbox.messages (broker, status, settled_at) WHERE settled_at IS NOT NULL;

-- What an external broker may see of a full envelope.
CREATE FUNCTION hub_outbox.external_envelope(payload jsonb) RETURNS jsonb
LANGUAGE sql IMMUTABLE PARALLEL SAFE SET search_path = pg_catalog, pg_temp AS $$
    SELECT payload
        #- '{metadata,domain,expected_version}'
        #- '{metadata,domain,asynchronous}'
        #- '{metadata,domain,priority}'
        #- '{metadata,domain,published}'
        #- '{metadata,event_store}'
        #- '{metadata,envelope,checksum}'
$$;

CREATE FUNCTION hub_outbox.refuse(field text, problem text, remedy text) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    RAISE EXCEPTION USING
        ERRCODE = 'invalid_parameter_value',
        MESSAGE = format('hub_outbox.publish: %s: %s', field, problem),
        HINT = remedy;
END
$$;

-- Everything an event has to be; the first thing that is wrong is told by its field.
CREATE FUNCTION hub_outbox.check_event(event jsonb) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    wrong record;
    required text;
    good boolean;
BEGIN
    IF event IS NULL OR jsonb_typeof(event) <> 'object' THEN
        PERFORM hub_outbox.refuse('event', 'is not a JSON object',
            'Write {"type": "user.created", "stream": "user-u1", "data": {…}}.');
    END IF;
    SELECT given.key, known.field, known.kinds INTO wrong
    FROM jsonb_each(event) AS given
    LEFT JOIN (
        SELECT spec.field, spec.kinds
        FROM (VALUES
            ('id', '{string}'::text[]), ('type', '{string}'), ('source', '{string}'), ('time', '{string}'),
            ('tenant', '{string}'), ('stream', '{string}'), ('data', NULL), ('published', '{boolean}'),
            ('priority', '{string}'), ('traceparent', '{string}'), ('correlation_id', '{string}'),
            ('causation_id', '{string}'), ('version', '{number}'), ('fqn', '{string}'), ('kind', '{string}'),
            ('sequence_id', '{string,number}'), ('origin_stream', '{string}'), ('stream_category', '{string}'),
            ('expected_version', '{number}'), ('asynchronous', '{boolean}'), ('event_store', '{object}'),
            ('extensions', '{object}')
        ) AS spec (field, kinds)
    ) AS known ON known.field = given.key
    WHERE known.field IS NULL
        OR (known.kinds IS NOT NULL AND jsonb_typeof(given.value) <> 'null'
            AND jsonb_typeof(given.value) <> ALL (known.kinds))
    ORDER BY given.key LIMIT 1;
    IF FOUND THEN
        IF wrong.field IS NULL THEN
            PERFORM hub_outbox.refuse(wrong.key, 'is not a field of an event',
                'Fields are id, type, source, time, tenant, stream, data, published, priority, traceparent, '
                'correlation_id, causation_id, version, fqn, kind, sequence_id, origin_stream, stream_category, '
                'expected_version, asynchronous, event_store, extensions; anything else goes into data or extensions.');
        END IF;
        PERFORM hub_outbox.refuse(wrong.key, format('is a %s', jsonb_typeof(event -> wrong.key)),
            format('Write a %s, or leave it out.', array_to_string(wrong.kinds, ' or a ')));
    END IF;
    FOREACH required IN ARRAY ARRAY['type', 'stream'] LOOP
        IF event ->> required IS NULL THEN
            PERFORM hub_outbox.refuse(required, 'is missing', 'Every event needs type, stream and data.');
        END IF;
    END LOOP;
    IF NOT event ? 'data' THEN
        PERFORM hub_outbox.refuse('data', 'is missing', 'Write any JSON; {} or null if there is nothing to say.');
    END IF;
    IF octet_length(event ->> 'type') > 255 OR event ->> 'type' !~ '^[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)+$' THEN
        PERFORM hub_outbox.refuse('type', format('%L is not an event key', left(event ->> 'type', 300)),
            'Write <resource>.<operation>, such as user.created: words of letters, digits, _ and -, joined by dots.');
    END IF;
    SELECT given.key, NULL, NULL INTO wrong
    FROM jsonb_each_text(event) AS given
    WHERE given.key IN ('id', 'stream', 'source', 'correlation_id', 'causation_id', 'fqn', 'sequence_id',
                        'origin_stream', 'stream_category')
        AND (octet_length(given.value) NOT BETWEEN 1 AND 512 OR given.value ~ '[\x01-\x1f\x7f]')
    ORDER BY given.key LIMIT 1;
    IF FOUND THEN
        PERFORM hub_outbox.refuse(wrong.key, 'is empty, too long, or holds a control character',
            'Write 1 to 512 bytes of plain text, or leave it out.');
    END IF;
    IF event ->> 'tenant' !~ '^[A-Za-z0-9_.-]{1,64}$' THEN
        PERFORM hub_outbox.refuse('tenant', 'is not a tenant name', 'Write 1 to 64 letters, digits, _, . and -.');
    END IF;
    IF event ->> 'time' IS NOT NULL THEN
        good := event ->> 'time' ~ '^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{1,9})?(Z|[+-]\d\d:\d\d)$';
        IF good THEN
            BEGIN
                PERFORM (event ->> 'time')::timestamptz;
            EXCEPTION WHEN data_exception THEN
                good := false;
            END;
        END IF;
        IF NOT good THEN
            PERFORM hub_outbox.refuse('time', 'is not RFC 3339', 'Write it like 2026-01-31T12:00:00Z.');
        END IF;
    END IF;
    IF event ->> 'priority' NOT IN ('live', 'bulk') THEN
        PERFORM hub_outbox.refuse('priority', 'is neither live nor bulk', 'Write "live" or "bulk", or leave it out.');
    END IF;
    IF event ->> 'kind' NOT IN ('EVENT', 'COMMAND') THEN
        PERFORM hub_outbox.refuse('kind', 'is neither EVENT nor COMMAND', 'Write "EVENT" or "COMMAND", or leave it out.');
    END IF;
    IF event ->> 'traceparent' !~ '^00-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}$' THEN
        PERFORM hub_outbox.refuse('traceparent', 'is not W3C Trace Context',
            'Write 00-<32 hex digits>-<16 hex digits>-<2 hex digits>.');
    END IF;
    IF event ->> 'version' !~ '^[1-9][0-9]{0,8}$' THEN
        PERFORM hub_outbox.refuse('version', 'is not a whole number from 1', 'Write 1, 2, …, or leave it out.');
    END IF;
    IF event ->> 'expected_version' !~ '^-?[0-9]{1,18}$' THEN
        PERFORM hub_outbox.refuse('expected_version', 'is not a whole number', 'Write an integer, or leave it out.');
    END IF;
    IF jsonb_typeof(event -> 'sequence_id') = 'number' AND event ->> 'sequence_id' !~ '^-?[0-9]{1,18}$' THEN
        PERFORM hub_outbox.refuse('sequence_id', 'is a number, but not a whole one', 'Write an integer or a string.');
    END IF;
    IF jsonb_typeof(event -> 'extensions') = 'object' THEN
        SELECT name INTO required FROM jsonb_object_keys(event -> 'extensions') AS name
        WHERE name IN ('id', 'type', 'time', 'source', 'tenant', 'specversion', 'data', 'data_base64', 'datacontenttype')
        LIMIT 1;
        IF FOUND THEN
            PERFORM hub_outbox.refuse('extensions.' || required, 'is what the event itself says',
                'Write it as a field of the event, or name it otherwise.');
        END IF;
        IF octet_length((event -> 'extensions')::text) > 16384 THEN
            PERFORM hub_outbox.refuse('extensions', 'hold more than 16384 bytes', 'Put it into data.');
        END IF;
    END IF;
END
$$;

-- Raises an event in the caller's transaction: one row for the internal broker and, if the event is
-- published, one for each external broker. Gives the event's id. Commit, and the rows go out; roll
-- back, and there are none.
CREATE FUNCTION hub_outbox.publish(event jsonb) RETURNS text
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    v_id text;
    v_position bigint;
    v_now timestamptz := clock_timestamp();
    v_public boolean;
    v_lane text;
    v_trace text;
    v_data jsonb;
    v_full jsonb;
BEGIN
    PERFORM hub_outbox.check_event(event);
    v_id := coalesce(event ->> 'id', gen_random_uuid()::text);
    v_public := coalesce((event ->> 'published')::boolean, false);
    v_lane := coalesce(event ->> 'priority', 'live');
    v_trace := event ->> 'traceparent';
    v_data := event -> 'data';
    v_full := jsonb_build_object(
        'data', v_data,
        'metadata', jsonb_build_object(
            'headers', jsonb_build_object(
                'id', v_id,
                'type', event ->> 'type',
                'time', coalesce(event ->> 'time',
                    to_char(v_now AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"')),
                'stream', event ->> 'stream',
                'traceparent', CASE WHEN v_trace IS NOT NULL THEN jsonb_build_object(
                    'trace_id', split_part(v_trace, '-', 2),
                    'parent_id', split_part(v_trace, '-', 3),
                    'sampled', right(v_trace, 1) ~ '[13579bdf]') END),
            'domain', jsonb_build_object(
                'fqn', event ->> 'fqn',
                'kind', coalesce(event ->> 'kind', 'EVENT'),
                'version', coalesce((event ->> 'version')::integer, 1),
                'sequence_id', event ->> 'sequence_id',
                'correlation_id', event ->> 'correlation_id',
                'causation_id', event ->> 'causation_id',
                'origin_stream', event ->> 'origin_stream',
                'stream_category', event ->> 'stream_category',
                'expected_version', (event ->> 'expected_version')::bigint,
                'asynchronous', coalesce((event ->> 'asynchronous')::boolean, true),
                -- Protean's numbers for normal and for bulk.
                'priority', CASE v_lane WHEN 'bulk' THEN -100 ELSE 0 END,
                'published', v_public),
            'event_store', event -> 'event_store',
            'envelope', jsonb_build_object(
                'specversion', '1.0',
                -- Of the data as it is written in the envelope.
                'checksum', encode(sha256(convert_to(v_data::text, 'UTF8')), 'hex')),
            'extensions', coalesce(nullif(event -> 'extensions', 'null'), '{}')
                || jsonb_strip_nulls(jsonb_build_object('source', event ->> 'source', 'tenant', event ->> 'tenant'))));
    v_position := nextval('hub_outbox.positions');
    INSERT INTO hub_outbox.messages
        (position, broker, message_id, event_type, stream, lane, is_public, payload, due_at, created_at)
    VALUES (v_position, 'internal', v_id, event ->> 'type', event ->> 'stream', v_lane, v_public, v_full::json, v_now, v_now)
    ON CONFLICT (message_id, broker) DO NOTHING;
    IF NOT FOUND THEN
        RAISE EXCEPTION USING
            ERRCODE = 'unique_violation',
            MESSAGE = format('hub_outbox.publish: id: an event with the id %L was raised before', v_id),
            HINT = 'Give each event an id of its own, or leave it out.';
    END IF;
    IF v_public THEN
        INSERT INTO hub_outbox.messages
            (position, broker, message_id, event_type, stream, lane, is_public, payload, due_at, created_at)
        SELECT v_position, b.name, v_id, event ->> 'type', event ->> 'stream', v_lane, true,
            hub_outbox.external_envelope(v_full)::json, v_now, v_now
        FROM hub_outbox.brokers AS b;
    END IF;
    -- The same notification is sent once per transaction, however often it is asked for.
    PERFORM pg_notify('hub_outbox', '');
    RETURN v_id;
END
$$;

-- For producers with nothing else to lock: whoever holds it is the only one with an open transaction on
-- this stream, so that the order of insertion is the order of commits.
CREATE FUNCTION hub_outbox.lock_stream(stream text) RETURNS void
LANGUAGE sql SET search_path = pg_catalog, pg_temp AS $$
    SELECT pg_advisory_xact_lock(hashtextextended('hub_outbox:' || stream, 0))
$$;

REVOKE EXECUTE ON FUNCTION hub_outbox.external_envelope(jsonb), hub_outbox.refuse(text, text, text),
    hub_outbox.check_event(jsonb) FROM PUBLIC;
