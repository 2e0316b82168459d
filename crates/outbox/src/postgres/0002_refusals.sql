-- Whatever the relay or the hub would refuse later is refused in the producer's transaction. The rules are those of
-- `RaisedEvent::validate` and of the Event Processor.

-- What the database is told of the hub's settings, by `hub outbox setup` and by each relay.
CREATE TABLE hub_outbox.limits (
    -- event_bytes: events.max_size
    name text PRIMARY KEY,
    value bigint NOT NULL CHECK (value > 0)
);
INSERT INTO hub_outbox.limits (name, value) VALUES ('event_bytes', 900000);

-- RFC 3339 with T, t or a blank between date and time: null for null. The second 60 is the last one of a month in UTC.
CREATE FUNCTION hub_outbox.is_timestamp(input text) RETURNS boolean
LANGUAGE plpgsql IMMUTABLE STRICT PARALLEL SAFE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    part text[] := regexp_match(input, '^([0-9]{4})-([0-9]{2})-([0-9]{2})[Tt ]([0-9]{2}):([0-9]{2}):([0-9]{2})'
        '(?:\.[0-9]+)?(?:[Zz]|([+-])([0-9]{2}):([0-9]{2}))$');
    y integer := part[1];
    m integer := part[2];
    d integer := part[3];
    offset_minutes integer := coalesce((part[7] || '1')::integer * (part[8]::integer * 60 + part[9]::integer), 0);
    days integer := CASE
        WHEN m = 2 AND y % 4 = 0 AND (y % 100 <> 0 OR y % 400 = 0) THEN 29
        WHEN m = 2 THEN 28
        WHEN m IN (4, 6, 9, 11) THEN 30
        ELSE 31 END;
    minute_utc integer := part[4]::integer * 60 + part[5]::integer - offset_minutes;
BEGIN
    RETURN part IS NOT NULL AND octet_length(input) <= 512
        AND m BETWEEN 1 AND 12 AND d BETWEEN 1 AND days
        AND part[4]::integer <= 23 AND part[5]::integer <= 59 AND part[6]::integer <= 60
        AND coalesce(part[8]::integer, 0) <= 23 AND coalesce(part[9]::integer, 0) <= 59
        AND (part[6]::integer < 60 OR CASE minute_utc
            WHEN 1439 THEN d = days
            -- The day before, and the day after.
            WHEN -1 THEN d = 1
            WHEN 2879 THEN d + 1 = days
            ELSE false END);
END
$$;

-- The whole number that a JSON number is: null where it is none of at most 18 digits. JSON has one kind of number, so
-- that 7, 7.0 and 7e0 are the same; one with a fraction is read as an IEEE 754 double, as other readers do.
CREATE FUNCTION hub_outbox.whole(number numeric) RETURNS bigint
LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE SET search_path = pg_catalog, pg_temp AS $$
    SELECT CASE
        WHEN abs(number) >= 1e18 THEN NULL
        WHEN number % 1 = 0 THEN number::bigint
        -- The half of the least double.
        WHEN abs(number) < 2.4703282292062327e-324 THEN 0
        WHEN abs(number) < 0.5 THEN NULL
        WHEN trunc(number::double precision) = number::double precision AND abs(number::double precision) < 1e18
            THEN number::double precision::bigint
        END
$$;

-- Everything an event has to be; the first thing that is wrong is told by its field.
CREATE OR REPLACE FUNCTION hub_outbox.check_event(event jsonb) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    wrong record;
    required text;
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
    -- As a header's value it has no blanks at its ends, and AMQP takes no longer one. The blanks are Unicode's.
    IF octet_length(event ->> 'id') NOT BETWEEN 1 AND 255
        OR event ->> 'id' ~ '[\x01-\x1f\x7f-\x9f]|^[ \u0085\u00a0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000]|[ \u0085\u00a0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000]$' THEN
        PERFORM hub_outbox.refuse('id', 'is empty, too long, holds a control character, or begins or ends with a blank',
            'Write 1 to 255 bytes of plain text, or leave it out.');
    END IF;
    SELECT given.key, NULL, NULL INTO wrong
    FROM jsonb_each_text(event) AS given
    WHERE given.key IN ('stream', 'source', 'correlation_id', 'causation_id', 'fqn', 'sequence_id',
                        'origin_stream', 'stream_category')
        AND (octet_length(given.value) NOT BETWEEN 1 AND 512 OR given.value ~ '[\x01-\x1f\x7f-\x9f]')
    ORDER BY given.key LIMIT 1;
    IF FOUND THEN
        PERFORM hub_outbox.refuse(wrong.key, 'is empty, too long, or holds a control character',
            'Write 1 to 512 bytes of plain text, or leave it out.');
    END IF;
    IF event ->> 'tenant' !~ '^[A-Za-z0-9_.-]{1,64}$' THEN
        PERFORM hub_outbox.refuse('tenant', 'is not a tenant name', 'Write 1 to 64 letters, digits, _, . and -.');
    END IF;
    IF NOT hub_outbox.is_timestamp(event ->> 'time') THEN
        PERFORM hub_outbox.refuse('time', 'is not RFC 3339', 'Write it like 2026-01-31T12:00:00Z.');
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
    IF event ->> 'version' IS NOT NULL
        AND coalesce(hub_outbox.whole((event ->> 'version')::numeric), 0) NOT BETWEEN 1 AND 999999999 THEN
        PERFORM hub_outbox.refuse('version', 'is not a whole number from 1', 'Write 1, 2, … 999999999, or leave it out.');
    END IF;
    IF event ->> 'expected_version' IS NOT NULL
        AND hub_outbox.whole((event ->> 'expected_version')::numeric) IS NULL THEN
        PERFORM hub_outbox.refuse('expected_version', 'is not a whole number of at most 18 digits',
            'Write an integer, or leave it out.');
    END IF;
    IF jsonb_typeof(event -> 'sequence_id') = 'number' THEN
        IF hub_outbox.whole((event ->> 'sequence_id')::numeric) IS NULL THEN
            PERFORM hub_outbox.refuse('sequence_id', 'is a number, but not a whole one of at most 18 digits',
                'Write an integer or a string.');
        END IF;
    END IF;
    -- What readers of JSON do not read. (PostgreSQL itself refuses \u0000 and half of a surrogate pair.)
    IF jsonb_path_exists(event, 'strict $.**{102}') OR jsonb_path_exists(event,
        'strict $.** ? (@.type() == "number" && (@ > 1.7976931348623157e308 || @ < -1.7976931348623157e308))') THEN
        SELECT given.key, NULL, NULL INTO wrong FROM jsonb_each(event) AS given
        WHERE jsonb_path_exists(given.value, 'strict $.**{101}') ORDER BY given.key LIMIT 1;
        IF FOUND THEN
            PERFORM hub_outbox.refuse(wrong.key, 'is nested more than 100 levels deep', 'Flatten it.');
        END IF;
        SELECT given.key, NULL, NULL INTO wrong FROM jsonb_each(event) AS given
        WHERE jsonb_path_exists(given.value,
            'strict $.** ? (@.type() == "number" && (@ > 1.7976931348623157e308 || @ < -1.7976931348623157e308))')
        ORDER BY given.key LIMIT 1;
        PERFORM hub_outbox.refuse(wrong.key, 'holds a number beyond an IEEE 754 double', 'Write it as a string.');
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
CREATE OR REPLACE FUNCTION hub_outbox.publish(event jsonb) RETURNS text
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
    v_text text;
    v_largest bigint;
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
                'version', coalesce(hub_outbox.whole((event ->> 'version')::numeric), 1),
                'sequence_id', CASE jsonb_typeof(event -> 'sequence_id')
                    WHEN 'number' THEN hub_outbox.whole((event ->> 'sequence_id')::numeric)::text
                    ELSE event ->> 'sequence_id' END,
                'correlation_id', event ->> 'correlation_id',
                'causation_id', event ->> 'causation_id',
                'origin_stream', event ->> 'origin_stream',
                'stream_category', event ->> 'stream_category',
                'expected_version', hub_outbox.whole((event ->> 'expected_version')::numeric),
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
    -- The hub refuses a larger body.
    v_text := v_full::text;
    v_largest := (SELECT l.value FROM hub_outbox.limits AS l WHERE l.name = 'event_bytes');
    IF octet_length(v_text) > v_largest THEN
        PERFORM hub_outbox.refuse('data', format('makes an envelope of %s bytes, at most %s are taken (events.max_size)',
            octet_length(v_text), v_largest), 'Publish a reference to large data instead.');
    END IF;
    v_position := nextval('hub_outbox.positions');
    INSERT INTO hub_outbox.messages
        (position, broker, message_id, event_type, stream, lane, is_public, payload, due_at, created_at)
    VALUES (v_position, 'internal', v_id, event ->> 'type', event ->> 'stream', v_lane, v_public, v_text::json, v_now, v_now)
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

REVOKE EXECUTE ON FUNCTION hub_outbox.is_timestamp(text), hub_outbox.whole(numeric) FROM PUBLIC;
