-- The transactional outbox on SQLite (3.38+). Times are milliseconds since 1970. The columns are those
-- of PostgreSQL's hub_outbox.messages.

-- The external brokers: what a published event is forked to, beside the internal broker.
CREATE TABLE hub_outbox_brokers (
    name TEXT PRIMARY KEY,
    added_at INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

-- The last position that was given out.
CREATE TABLE hub_outbox_positions (last INTEGER NOT NULL) STRICT;
INSERT INTO hub_outbox_positions (last) VALUES (0);

CREATE TABLE hub_outbox_messages (
    position INTEGER NOT NULL,
    broker TEXT NOT NULL,
    message_id TEXT NOT NULL,
    event_type TEXT NOT NULL,
    stream TEXT NOT NULL,
    lane TEXT NOT NULL CHECK (lane IN ('live', 'bulk')),
    is_public INTEGER NOT NULL CHECK (is_public IN (0, 1)),
    payload TEXT NOT NULL,
    status TEXT NOT NULL DEFAULT 'pending'
        CHECK (status IN ('pending', 'processing', 'failed', 'published', 'abandoned')),
    attempts INTEGER NOT NULL DEFAULT 0,
    due_at INTEGER,
    claimed_by TEXT,
    created_at INTEGER NOT NULL,
    settled_at INTEGER,
    last_error TEXT,
    PRIMARY KEY (position, broker),
    UNIQUE (message_id, broker),
    CHECK ((status IN ('pending', 'processing', 'failed')) = (due_at IS NOT NULL)),
    CHECK ((due_at IS NULL) = (settled_at IS NOT NULL)),
    CHECK ((status = 'processing') = (claimed_by IS NOT NULL))
) STRICT;

CREATE INDEX hub_outbox_messages_due ON hub_outbox_messages (broker, lane, due_at, position) WHERE due_at IS NOT NULL;
CREATE INDEX hub_outbox_messages_order ON hub_outbox_messages (broker, stream, position) WHERE due_at IS NOT NULL;
CREATE INDEX hub_outbox_messages_settled ON hub_outbox_messages (broker, status, settled_at) WHERE settled_at IS NOT NULL;

-- To raise an event: INSERT INTO hub_outbox_publish (event) VALUES ('{"type": …, "stream": …, "data": …}')
CREATE VIEW hub_outbox_publish (event) AS SELECT NULL WHERE 0;

-- Everything an event has to be, then one row for the internal broker and, if the event is published,
-- one for each external broker. (A message of RAISE can only be a literal before SQLite 3.47, so an
-- unknown field cannot be told by its name.)
CREATE TRIGGER hub_outbox_publish_insert INSTEAD OF INSERT ON hub_outbox_publish
BEGIN
    SELECT RAISE(ABORT, 'hub_outbox_publish: event: is not a JSON object; write {"type": "user.created", "stream": "user-u1", "data": {…}}')
    WHERE NEW.event IS NULL OR NOT json_valid(NEW.event) OR json_type(NEW.event) <> 'object';
    SELECT RAISE(ABORT, 'hub_outbox_publish: a field is not one of id, type, source, time, tenant, stream, data, published, priority, traceparent, correlation_id, causation_id, version, fqn, kind, sequence_id, origin_stream, stream_category, expected_version, asynchronous, event_store, extensions; anything else goes into data or extensions')
    WHERE EXISTS (SELECT 1 FROM json_each(NEW.event) WHERE key NOT IN (
        'id', 'type', 'source', 'time', 'tenant', 'stream', 'data', 'published', 'priority', 'traceparent',
        'correlation_id', 'causation_id', 'version', 'fqn', 'kind', 'sequence_id', 'origin_stream', 'stream_category',
        'expected_version', 'asynchronous', 'event_store', 'extensions'));
    SELECT RAISE(ABORT, 'hub_outbox_publish: a field is given twice; give each once')
    WHERE EXISTS (SELECT 1 FROM json_each(NEW.event) GROUP BY key HAVING count(*) > 1);
    SELECT RAISE(ABORT, 'hub_outbox_publish: data: is missing; write any JSON, {} or null if there is nothing to say')
    WHERE json_type(NEW.event, '$.data') IS NULL;
    SELECT RAISE(ABORT, 'hub_outbox_publish: id: is not a string, or empty, too long, or holds a control character; write 1 to 512 bytes of plain text, or leave it out')
    WHERE json_type(NEW.event, '$.id') NOT IN ('text', 'null') OR length(CAST(NEW.event ->> '$.id' AS BLOB)) NOT BETWEEN 1 AND 512
        OR NEW.event ->> '$.id' GLOB '*[' || char(1) || '-' || char(31) || char(127) || ']*' OR instr(NEW.event ->> '$.id', char(0)) > 0;
    SELECT RAISE(ABORT, 'hub_outbox_publish: type: is missing or not a string, or empty, too long, or holds a control character; write 1 to 512 bytes of plain text')
    WHERE json_type(NEW.event, '$.type') IS NULL OR json_type(NEW.event, '$.type') NOT IN ('text') OR length(CAST(NEW.event ->> '$.type' AS BLOB)) NOT BETWEEN 1 AND 512
        OR NEW.event ->> '$.type' GLOB '*[' || char(1) || '-' || char(31) || char(127) || ']*' OR instr(NEW.event ->> '$.type', char(0)) > 0;
    SELECT RAISE(ABORT, 'hub_outbox_publish: stream: is missing or not a string, or empty, too long, or holds a control character; write 1 to 512 bytes of plain text')
    WHERE json_type(NEW.event, '$.stream') IS NULL OR json_type(NEW.event, '$.stream') NOT IN ('text') OR length(CAST(NEW.event ->> '$.stream' AS BLOB)) NOT BETWEEN 1 AND 512
        OR NEW.event ->> '$.stream' GLOB '*[' || char(1) || '-' || char(31) || char(127) || ']*' OR instr(NEW.event ->> '$.stream', char(0)) > 0;
    SELECT RAISE(ABORT, 'hub_outbox_publish: source: is not a string, or empty, too long, or holds a control character; write 1 to 512 bytes of plain text, or leave it out')
    WHERE json_type(NEW.event, '$.source') NOT IN ('text', 'null') OR length(CAST(NEW.event ->> '$.source' AS BLOB)) NOT BETWEEN 1 AND 512
        OR NEW.event ->> '$.source' GLOB '*[' || char(1) || '-' || char(31) || char(127) || ']*' OR instr(NEW.event ->> '$.source', char(0)) > 0;
    SELECT RAISE(ABORT, 'hub_outbox_publish: tenant: is not a string, or empty, too long, or holds a control character; write 1 to 512 bytes of plain text, or leave it out')
    WHERE json_type(NEW.event, '$.tenant') NOT IN ('text', 'null') OR length(CAST(NEW.event ->> '$.tenant' AS BLOB)) NOT BETWEEN 1 AND 512
        OR NEW.event ->> '$.tenant' GLOB '*[' || char(1) || '-' || char(31) || char(127) || ']*' OR instr(NEW.event ->> '$.tenant', char(0)) > 0;
    SELECT RAISE(ABORT, 'hub_outbox_publish: time: is not a string, or empty, too long, or holds a control character; write 1 to 512 bytes of plain text, or leave it out')
    WHERE json_type(NEW.event, '$.time') NOT IN ('text', 'null') OR length(CAST(NEW.event ->> '$.time' AS BLOB)) NOT BETWEEN 1 AND 512
        OR NEW.event ->> '$.time' GLOB '*[' || char(1) || '-' || char(31) || char(127) || ']*' OR instr(NEW.event ->> '$.time', char(0)) > 0;
    SELECT RAISE(ABORT, 'hub_outbox_publish: priority: is not a string, or empty, too long, or holds a control character; write 1 to 512 bytes of plain text, or leave it out')
    WHERE json_type(NEW.event, '$.priority') NOT IN ('text', 'null') OR length(CAST(NEW.event ->> '$.priority' AS BLOB)) NOT BETWEEN 1 AND 512
        OR NEW.event ->> '$.priority' GLOB '*[' || char(1) || '-' || char(31) || char(127) || ']*' OR instr(NEW.event ->> '$.priority', char(0)) > 0;
    SELECT RAISE(ABORT, 'hub_outbox_publish: kind: is not a string, or empty, too long, or holds a control character; write 1 to 512 bytes of plain text, or leave it out')
    WHERE json_type(NEW.event, '$.kind') NOT IN ('text', 'null') OR length(CAST(NEW.event ->> '$.kind' AS BLOB)) NOT BETWEEN 1 AND 512
        OR NEW.event ->> '$.kind' GLOB '*[' || char(1) || '-' || char(31) || char(127) || ']*' OR instr(NEW.event ->> '$.kind', char(0)) > 0;
    SELECT RAISE(ABORT, 'hub_outbox_publish: traceparent: is not a string, or empty, too long, or holds a control character; write 1 to 512 bytes of plain text, or leave it out')
    WHERE json_type(NEW.event, '$.traceparent') NOT IN ('text', 'null') OR length(CAST(NEW.event ->> '$.traceparent' AS BLOB)) NOT BETWEEN 1 AND 512
        OR NEW.event ->> '$.traceparent' GLOB '*[' || char(1) || '-' || char(31) || char(127) || ']*' OR instr(NEW.event ->> '$.traceparent', char(0)) > 0;
    SELECT RAISE(ABORT, 'hub_outbox_publish: correlation_id: is not a string, or empty, too long, or holds a control character; write 1 to 512 bytes of plain text, or leave it out')
    WHERE json_type(NEW.event, '$.correlation_id') NOT IN ('text', 'null') OR length(CAST(NEW.event ->> '$.correlation_id' AS BLOB)) NOT BETWEEN 1 AND 512
        OR NEW.event ->> '$.correlation_id' GLOB '*[' || char(1) || '-' || char(31) || char(127) || ']*' OR instr(NEW.event ->> '$.correlation_id', char(0)) > 0;
    SELECT RAISE(ABORT, 'hub_outbox_publish: causation_id: is not a string, or empty, too long, or holds a control character; write 1 to 512 bytes of plain text, or leave it out')
    WHERE json_type(NEW.event, '$.causation_id') NOT IN ('text', 'null') OR length(CAST(NEW.event ->> '$.causation_id' AS BLOB)) NOT BETWEEN 1 AND 512
        OR NEW.event ->> '$.causation_id' GLOB '*[' || char(1) || '-' || char(31) || char(127) || ']*' OR instr(NEW.event ->> '$.causation_id', char(0)) > 0;
    SELECT RAISE(ABORT, 'hub_outbox_publish: fqn: is not a string, or empty, too long, or holds a control character; write 1 to 512 bytes of plain text, or leave it out')
    WHERE json_type(NEW.event, '$.fqn') NOT IN ('text', 'null') OR length(CAST(NEW.event ->> '$.fqn' AS BLOB)) NOT BETWEEN 1 AND 512
        OR NEW.event ->> '$.fqn' GLOB '*[' || char(1) || '-' || char(31) || char(127) || ']*' OR instr(NEW.event ->> '$.fqn', char(0)) > 0;
    SELECT RAISE(ABORT, 'hub_outbox_publish: origin_stream: is not a string, or empty, too long, or holds a control character; write 1 to 512 bytes of plain text, or leave it out')
    WHERE json_type(NEW.event, '$.origin_stream') NOT IN ('text', 'null') OR length(CAST(NEW.event ->> '$.origin_stream' AS BLOB)) NOT BETWEEN 1 AND 512
        OR NEW.event ->> '$.origin_stream' GLOB '*[' || char(1) || '-' || char(31) || char(127) || ']*' OR instr(NEW.event ->> '$.origin_stream', char(0)) > 0;
    SELECT RAISE(ABORT, 'hub_outbox_publish: stream_category: is not a string, or empty, too long, or holds a control character; write 1 to 512 bytes of plain text, or leave it out')
    WHERE json_type(NEW.event, '$.stream_category') NOT IN ('text', 'null') OR length(CAST(NEW.event ->> '$.stream_category' AS BLOB)) NOT BETWEEN 1 AND 512
        OR NEW.event ->> '$.stream_category' GLOB '*[' || char(1) || '-' || char(31) || char(127) || ']*' OR instr(NEW.event ->> '$.stream_category', char(0)) > 0;
    SELECT RAISE(ABORT, 'hub_outbox_publish: sequence_id: is not a string or an integer, or empty, too long, or holds a control character; write 1 to 512 bytes of plain text, or leave it out')
    WHERE json_type(NEW.event, '$.sequence_id') NOT IN ('text', 'integer', 'null') OR length(CAST(NEW.event ->> '$.sequence_id' AS BLOB)) NOT BETWEEN 1 AND 512
        OR NEW.event ->> '$.sequence_id' GLOB '*[' || char(1) || '-' || char(31) || char(127) || ']*' OR instr(NEW.event ->> '$.sequence_id', char(0)) > 0;
    SELECT RAISE(ABORT, 'hub_outbox_publish: type: is not an event key; write <resource>.<operation>, such as user.created: words of letters, digits, _ and -, joined by dots')
    WHERE length(CAST(NEW.event ->> '$.type' AS BLOB)) > 255
        OR NEW.event ->> '$.type' GLOB '*[^A-Za-z0-9_.-]*' OR NEW.event ->> '$.type' NOT LIKE '%.%'
        OR NEW.event ->> '$.type' LIKE '.%' OR NEW.event ->> '$.type' LIKE '%.' OR NEW.event ->> '$.type' LIKE '%..%';
    SELECT RAISE(ABORT, 'hub_outbox_publish: tenant: is not a tenant name; write 1 to 64 letters, digits, _, . and -')
    WHERE NEW.event ->> '$.tenant' GLOB '*[^A-Za-z0-9_.-]*' OR length(NEW.event ->> '$.tenant') > 64;
    SELECT RAISE(ABORT, 'hub_outbox_publish: time: is not RFC 3339; write it like 2026-01-31T12:00:00Z')
    WHERE NEW.event ->> '$.time' NOT GLOB '[0-9][0-9][0-9][0-9]-[01][0-9]-[0-3][0-9]T[0-2][0-9]:[0-5][0-9]:[0-6][0-9]*'
        OR (NEW.event ->> '$.time' NOT GLOB '*Z' AND NEW.event ->> '$.time' NOT GLOB '*[+-][0-2][0-9]:[0-5][0-9]')
        OR (NEW.event ->> '$.time' IS NOT NULL AND julianday(NEW.event ->> '$.time') IS NULL)
        -- 30 February is read as 2 March.
        OR date(substr(NEW.event ->> '$.time', 1, 10), '+0 days') <> substr(NEW.event ->> '$.time', 1, 10);
    SELECT RAISE(ABORT, 'hub_outbox_publish: priority: is neither live nor bulk; write one of them, or leave it out')
    WHERE NEW.event ->> '$.priority' NOT IN ('live', 'bulk');
    SELECT RAISE(ABORT, 'hub_outbox_publish: kind: is neither EVENT nor COMMAND; write one of them, or leave it out')
    WHERE NEW.event ->> '$.kind' NOT IN ('EVENT', 'COMMAND');
    SELECT RAISE(ABORT, 'hub_outbox_publish: traceparent: is not W3C Trace Context; write 00-<32 hex digits>-<16 hex digits>-<2 hex digits>')
    WHERE length(NEW.event ->> '$.traceparent') <> 55 OR NEW.event ->> '$.traceparent' NOT GLOB '00-*-*-[0-9a-f][0-9a-f]'
        OR substr(NEW.event ->> '$.traceparent', 4, 32) GLOB '*[^0-9a-f]*'
        OR substr(NEW.event ->> '$.traceparent', 36, 1) <> '-'
        OR substr(NEW.event ->> '$.traceparent', 37, 16) GLOB '*[^0-9a-f]*'
        OR substr(NEW.event ->> '$.traceparent', 4, 32) = '00000000000000000000000000000000'
        OR substr(NEW.event ->> '$.traceparent', 37, 16) = '0000000000000000';
    SELECT RAISE(ABORT, 'hub_outbox_publish: published: is not a boolean; write true or false, or leave it out')
    WHERE json_type(NEW.event, '$.published') NOT IN ('true', 'false', 'null');
    SELECT RAISE(ABORT, 'hub_outbox_publish: asynchronous: is not a boolean; write true or false, or leave it out')
    WHERE json_type(NEW.event, '$.asynchronous') NOT IN ('true', 'false', 'null');
    SELECT RAISE(ABORT, 'hub_outbox_publish: version: is not a whole number from 1; write 1, 2, …, or leave it out')
    WHERE json_type(NEW.event, '$.version') NOT IN ('integer', 'null') OR NEW.event ->> '$.version' NOT BETWEEN 1 AND 999999999;
    SELECT RAISE(ABORT, 'hub_outbox_publish: expected_version: is not a whole number; write an integer, or leave it out')
    WHERE json_type(NEW.event, '$.expected_version') NOT IN ('integer', 'null');
    SELECT RAISE(ABORT, 'hub_outbox_publish: event_store: is not an object; write one, or leave it out')
    WHERE json_type(NEW.event, '$.event_store') NOT IN ('object', 'null');
    SELECT RAISE(ABORT, 'hub_outbox_publish: extensions: are not an object; write one, or leave it out')
    WHERE json_type(NEW.event, '$.extensions') NOT IN ('object', 'null');
    SELECT RAISE(ABORT, 'hub_outbox_publish: extensions: hold id, type, time, source, tenant, specversion, data, data_base64 or datacontenttype, which the event itself says; write it as a field of the event, or name it otherwise')
    WHERE json_type(NEW.event, '$.extensions') = 'object' AND EXISTS (
        SELECT 1 FROM json_each(NEW.event, '$.extensions') WHERE key IN
            ('id', 'type', 'time', 'source', 'tenant', 'specversion', 'data', 'data_base64', 'datacontenttype'));
    SELECT RAISE(ABORT, 'hub_outbox_publish: extensions: hold more than 16384 bytes; put it into data')
    WHERE length(CAST(NEW.event -> '$.extensions' AS BLOB)) > 16384;
    SELECT RAISE(ABORT, 'hub_outbox_publish: id: an event with this id was raised before; give each event an id of its own, or leave it out')
    WHERE EXISTS (SELECT 1 FROM hub_outbox_messages WHERE message_id = NEW.event ->> '$.id' AND broker = 'internal');

    UPDATE hub_outbox_positions SET last = last + 1;

    -- The id is made up once, in the inner query.
    INSERT INTO hub_outbox_messages
        (position, broker, message_id, event_type, stream, lane, is_public, payload, due_at, created_at)
    SELECT e.position, 'internal', e.id, NEW.event ->> '$.type', NEW.event ->> '$.stream', e.lane, e.is_public,
        json_object(
            'data', json(NEW.event -> '$.data'),
            'metadata', json_object(
                'headers', json_object(
                    'id', e.id,
                    'type', NEW.event ->> '$.type',
                    'time', coalesce(NEW.event ->> '$.time', strftime('%Y-%m-%dT%H:%M:%fZ', 'now')),
                    'stream', NEW.event ->> '$.stream',
                    'traceparent', CASE WHEN NEW.event ->> '$.traceparent' IS NOT NULL THEN json_object(
                        'trace_id', substr(NEW.event ->> '$.traceparent', 4, 32),
                        'parent_id', substr(NEW.event ->> '$.traceparent', 37, 16),
                        'sampled', json(CASE WHEN NEW.event ->> '$.traceparent' GLOB '*[13579bdf]' THEN 'true' ELSE 'false' END))
                        ELSE json('null') END),
                'domain', json_object(
                    'fqn', NEW.event ->> '$.fqn',
                    'kind', coalesce(NEW.event ->> '$.kind', 'EVENT'),
                    'version', coalesce(NEW.event ->> '$.version', 1),
                    'sequence_id', CAST(NEW.event ->> '$.sequence_id' AS TEXT),
                    'correlation_id', NEW.event ->> '$.correlation_id',
                    'causation_id', NEW.event ->> '$.causation_id',
                    'origin_stream', NEW.event ->> '$.origin_stream',
                    'stream_category', NEW.event ->> '$.stream_category',
                    'expected_version', NEW.event ->> '$.expected_version',
                    'asynchronous', json(CASE NEW.event ->> '$.asynchronous' WHEN 0 THEN 'false' ELSE 'true' END),
                    -- Protean's numbers for normal and for bulk.
                    'priority', CASE e.lane WHEN 'bulk' THEN -100 ELSE 0 END,
                    'published', json(CASE e.is_public WHEN 1 THEN 'true' ELSE 'false' END)),
                'event_store', json(coalesce(NEW.event -> '$.event_store', 'null')),
                -- SQLite has no SHA-256.
                'envelope', json_object('specversion', '1.0', 'checksum', NULL),
                'extensions', json_patch(
                    CASE json_type(NEW.event, '$.extensions') WHEN 'object' THEN NEW.event -> '$.extensions' ELSE '{}' END,
                    json_object('source', NEW.event ->> '$.source', 'tenant', NEW.event ->> '$.tenant')))),
        e.now, e.now
    FROM (
        SELECT
            (SELECT last FROM hub_outbox_positions) AS position,
            coalesce(NEW.event ->> '$.id', lower(hex(randomblob(16)))) AS id,
            coalesce(NEW.event ->> '$.priority', 'live') AS lane,
            coalesce(NEW.event ->> '$.published', 0) AS is_public,
            CAST((julianday('now') - 2440587.5) * 86400000.0 AS INTEGER) AS now
        -- Keeps the query from being flattened, which would make up an id for each use.
        LIMIT 1
    ) AS e;

    INSERT INTO hub_outbox_messages
        (position, broker, message_id, event_type, stream, lane, is_public, payload, due_at, created_at)
    SELECT m.position, b.name, m.message_id, m.event_type, m.stream, m.lane, m.is_public,
        json_remove(m.payload, '$.metadata.domain.expected_version', '$.metadata.domain.asynchronous',
            '$.metadata.domain.priority', '$.metadata.domain.published', '$.metadata.event_store',
            '$.metadata.envelope.checksum'),
        m.due_at, m.created_at
    FROM hub_outbox_messages AS m CROSS JOIN hub_outbox_brokers AS b
    WHERE m.broker = 'internal' AND m.is_public = 1 AND m.position = (SELECT last FROM hub_outbox_positions);
END;
