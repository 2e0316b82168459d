-- Whatever the relay or the hub would refuse later is refused in the producer's transaction. The rules are those of
-- `RaisedEvent::validate` and of the Event Processor.

-- What the database is told of the hub's settings, by `hub outbox setup` and by each relay.
CREATE TABLE hub_outbox_limits (
    -- event_bytes: events.max_size
    name TEXT PRIMARY KEY,
    value INTEGER NOT NULL CHECK (value > 0)
) STRICT, WITHOUT ROWID;
INSERT INTO hub_outbox_limits (name, value) VALUES ('event_bytes', 900000);

-- The beginnings of what SQLite makes of half of a surrogate pair; no text in UTF-8 has them.
CREATE TABLE hub_outbox_surrogates (bytes BLOB PRIMARY KEY) STRICT, WITHOUT ROWID;
INSERT INTO hub_outbox_surrogates (bytes) VALUES
    (x'eda0'), (x'eda1'), (x'eda2'), (x'eda3'), (x'eda4'), (x'eda5'), (x'eda6'), (x'eda7'),
    (x'eda8'), (x'eda9'), (x'edaa'), (x'edab'), (x'edac'), (x'edad'), (x'edae'), (x'edaf'),
    (x'edb0'), (x'edb1'), (x'edb2'), (x'edb3'), (x'edb4'), (x'edb5'), (x'edb6'), (x'edb7'),
    (x'edb8'), (x'edb9'), (x'edba'), (x'edbb'), (x'edbc'), (x'edbd'), (x'edbe'), (x'edbf');

DROP TRIGGER hub_outbox_publish_insert;

-- Everything an event has to be, then one row for the internal broker and, if the event is published,
-- one for each external broker. (A message of RAISE can only be a literal before SQLite 3.47, so an
-- unknown field cannot be told by its name.)
CREATE TRIGGER hub_outbox_publish_insert INSTEAD OF INSERT ON hub_outbox_publish
BEGIN
    SELECT RAISE(ABORT, 'hub_outbox_publish: event: is not a JSON object; write {"type": "user.created", "stream": "user-u1", "data": {…}}')
    WHERE typeof(NEW.event) <> 'text' OR NOT json_valid(NEW.event) OR json_type(NEW.event) <> 'object';
    SELECT RAISE(ABORT, 'hub_outbox_publish: a field is not one of id, type, source, time, tenant, stream, data, published, priority, traceparent, correlation_id, causation_id, version, fqn, kind, sequence_id, origin_stream, stream_category, expected_version, asynchronous, event_store, extensions; anything else goes into data or extensions')
    WHERE EXISTS (SELECT 1 FROM json_each(NEW.event) WHERE key NOT IN (
        'id', 'type', 'source', 'time', 'tenant', 'stream', 'data', 'published', 'priority', 'traceparent',
        'correlation_id', 'causation_id', 'version', 'fqn', 'kind', 'sequence_id', 'origin_stream', 'stream_category',
        'expected_version', 'asynchronous', 'event_store', 'extensions'));
    SELECT RAISE(ABORT, 'hub_outbox_publish: a field is given twice; give each once')
    WHERE EXISTS (SELECT 1 FROM json_each(NEW.event) GROUP BY key HAVING count(*) > 1);
    SELECT RAISE(ABORT, 'hub_outbox_publish: data: is missing; write any JSON, {} or null if there is nothing to say')
    WHERE json_type(NEW.event, '$.data') IS NULL;
    SELECT RAISE(ABORT, 'hub_outbox_publish: id: is not a string, or empty, too long, or holds a control character or half of a surrogate pair, or begins or ends with a blank; write 1 to 255 bytes of plain text, or leave it out')
    WHERE json_type(NEW.event, '$.id') NOT IN ('text', 'null') OR length(CAST(NEW.event ->> '$.id' AS BLOB)) NOT BETWEEN 1 AND 255
        OR NEW.event ->> '$.id' GLOB '*[' || char(1) || '-' || char(31) || char(127) || '-' || char(159) || ']*' OR instr(NEW.event ->> '$.id', char(0)) > 0
        OR (NEW.event -> '$.id' LIKE '%\ud%' AND EXISTS (
            SELECT 1 FROM hub_outbox_surrogates AS s WHERE instr(CAST(NEW.event ->> '$.id' AS BLOB), s.bytes) > 0))
        OR NEW.event ->> '$.id' GLOB '[' || char(32, 133, 160, 5760, 8192, 8193, 8194, 8195, 8196, 8197, 8198, 8199, 8200, 8201, 8202, 8232, 8233, 8239, 8287, 12288) || ']*'
        OR NEW.event ->> '$.id' GLOB '*[' || char(32, 133, 160, 5760, 8192, 8193, 8194, 8195, 8196, 8197, 8198, 8199, 8200, 8201, 8202, 8232, 8233, 8239, 8287, 12288) || ']';
    SELECT RAISE(ABORT, 'hub_outbox_publish: type: is missing or not a string, or empty, too long, or holds a control character or half of a surrogate pair; write 1 to 512 bytes of plain text')
    WHERE json_type(NEW.event, '$.type') IS NULL OR json_type(NEW.event, '$.type') NOT IN ('text') OR length(CAST(NEW.event ->> '$.type' AS BLOB)) NOT BETWEEN 1 AND 512
        OR NEW.event ->> '$.type' GLOB '*[' || char(1) || '-' || char(31) || char(127) || '-' || char(159) || ']*' OR instr(NEW.event ->> '$.type', char(0)) > 0
        OR (NEW.event -> '$.type' LIKE '%\ud%' AND EXISTS (
            SELECT 1 FROM hub_outbox_surrogates AS s WHERE instr(CAST(NEW.event ->> '$.type' AS BLOB), s.bytes) > 0));
    SELECT RAISE(ABORT, 'hub_outbox_publish: stream: is missing or not a string, or empty, too long, or holds a control character or half of a surrogate pair; write 1 to 512 bytes of plain text')
    WHERE json_type(NEW.event, '$.stream') IS NULL OR json_type(NEW.event, '$.stream') NOT IN ('text') OR length(CAST(NEW.event ->> '$.stream' AS BLOB)) NOT BETWEEN 1 AND 512
        OR NEW.event ->> '$.stream' GLOB '*[' || char(1) || '-' || char(31) || char(127) || '-' || char(159) || ']*' OR instr(NEW.event ->> '$.stream', char(0)) > 0
        OR (NEW.event -> '$.stream' LIKE '%\ud%' AND EXISTS (
            SELECT 1 FROM hub_outbox_surrogates AS s WHERE instr(CAST(NEW.event ->> '$.stream' AS BLOB), s.bytes) > 0));
    SELECT RAISE(ABORT, 'hub_outbox_publish: source: is not a string, or empty, too long, or holds a control character or half of a surrogate pair; write 1 to 512 bytes of plain text, or leave it out')
    WHERE json_type(NEW.event, '$.source') NOT IN ('text', 'null') OR length(CAST(NEW.event ->> '$.source' AS BLOB)) NOT BETWEEN 1 AND 512
        OR NEW.event ->> '$.source' GLOB '*[' || char(1) || '-' || char(31) || char(127) || '-' || char(159) || ']*' OR instr(NEW.event ->> '$.source', char(0)) > 0
        OR (NEW.event -> '$.source' LIKE '%\ud%' AND EXISTS (
            SELECT 1 FROM hub_outbox_surrogates AS s WHERE instr(CAST(NEW.event ->> '$.source' AS BLOB), s.bytes) > 0));
    SELECT RAISE(ABORT, 'hub_outbox_publish: tenant: is not a string, or empty, too long, or holds a control character or half of a surrogate pair; write 1 to 512 bytes of plain text, or leave it out')
    WHERE json_type(NEW.event, '$.tenant') NOT IN ('text', 'null') OR length(CAST(NEW.event ->> '$.tenant' AS BLOB)) NOT BETWEEN 1 AND 512
        OR NEW.event ->> '$.tenant' GLOB '*[' || char(1) || '-' || char(31) || char(127) || '-' || char(159) || ']*' OR instr(NEW.event ->> '$.tenant', char(0)) > 0
        OR (NEW.event -> '$.tenant' LIKE '%\ud%' AND EXISTS (
            SELECT 1 FROM hub_outbox_surrogates AS s WHERE instr(CAST(NEW.event ->> '$.tenant' AS BLOB), s.bytes) > 0));
    SELECT RAISE(ABORT, 'hub_outbox_publish: time: is not a string, or empty, too long, or holds a control character or half of a surrogate pair; write 1 to 512 bytes of plain text, or leave it out')
    WHERE json_type(NEW.event, '$.time') NOT IN ('text', 'null') OR length(CAST(NEW.event ->> '$.time' AS BLOB)) NOT BETWEEN 1 AND 512
        OR NEW.event ->> '$.time' GLOB '*[' || char(1) || '-' || char(31) || char(127) || '-' || char(159) || ']*' OR instr(NEW.event ->> '$.time', char(0)) > 0
        OR (NEW.event -> '$.time' LIKE '%\ud%' AND EXISTS (
            SELECT 1 FROM hub_outbox_surrogates AS s WHERE instr(CAST(NEW.event ->> '$.time' AS BLOB), s.bytes) > 0));
    SELECT RAISE(ABORT, 'hub_outbox_publish: priority: is not a string, or empty, too long, or holds a control character or half of a surrogate pair; write 1 to 512 bytes of plain text, or leave it out')
    WHERE json_type(NEW.event, '$.priority') NOT IN ('text', 'null') OR length(CAST(NEW.event ->> '$.priority' AS BLOB)) NOT BETWEEN 1 AND 512
        OR NEW.event ->> '$.priority' GLOB '*[' || char(1) || '-' || char(31) || char(127) || '-' || char(159) || ']*' OR instr(NEW.event ->> '$.priority', char(0)) > 0
        OR (NEW.event -> '$.priority' LIKE '%\ud%' AND EXISTS (
            SELECT 1 FROM hub_outbox_surrogates AS s WHERE instr(CAST(NEW.event ->> '$.priority' AS BLOB), s.bytes) > 0));
    SELECT RAISE(ABORT, 'hub_outbox_publish: kind: is not a string, or empty, too long, or holds a control character or half of a surrogate pair; write 1 to 512 bytes of plain text, or leave it out')
    WHERE json_type(NEW.event, '$.kind') NOT IN ('text', 'null') OR length(CAST(NEW.event ->> '$.kind' AS BLOB)) NOT BETWEEN 1 AND 512
        OR NEW.event ->> '$.kind' GLOB '*[' || char(1) || '-' || char(31) || char(127) || '-' || char(159) || ']*' OR instr(NEW.event ->> '$.kind', char(0)) > 0
        OR (NEW.event -> '$.kind' LIKE '%\ud%' AND EXISTS (
            SELECT 1 FROM hub_outbox_surrogates AS s WHERE instr(CAST(NEW.event ->> '$.kind' AS BLOB), s.bytes) > 0));
    SELECT RAISE(ABORT, 'hub_outbox_publish: traceparent: is not a string, or empty, too long, or holds a control character or half of a surrogate pair; write 1 to 512 bytes of plain text, or leave it out')
    WHERE json_type(NEW.event, '$.traceparent') NOT IN ('text', 'null') OR length(CAST(NEW.event ->> '$.traceparent' AS BLOB)) NOT BETWEEN 1 AND 512
        OR NEW.event ->> '$.traceparent' GLOB '*[' || char(1) || '-' || char(31) || char(127) || '-' || char(159) || ']*' OR instr(NEW.event ->> '$.traceparent', char(0)) > 0
        OR (NEW.event -> '$.traceparent' LIKE '%\ud%' AND EXISTS (
            SELECT 1 FROM hub_outbox_surrogates AS s WHERE instr(CAST(NEW.event ->> '$.traceparent' AS BLOB), s.bytes) > 0));
    SELECT RAISE(ABORT, 'hub_outbox_publish: correlation_id: is not a string, or empty, too long, or holds a control character or half of a surrogate pair; write 1 to 512 bytes of plain text, or leave it out')
    WHERE json_type(NEW.event, '$.correlation_id') NOT IN ('text', 'null') OR length(CAST(NEW.event ->> '$.correlation_id' AS BLOB)) NOT BETWEEN 1 AND 512
        OR NEW.event ->> '$.correlation_id' GLOB '*[' || char(1) || '-' || char(31) || char(127) || '-' || char(159) || ']*' OR instr(NEW.event ->> '$.correlation_id', char(0)) > 0
        OR (NEW.event -> '$.correlation_id' LIKE '%\ud%' AND EXISTS (
            SELECT 1 FROM hub_outbox_surrogates AS s WHERE instr(CAST(NEW.event ->> '$.correlation_id' AS BLOB), s.bytes) > 0));
    SELECT RAISE(ABORT, 'hub_outbox_publish: causation_id: is not a string, or empty, too long, or holds a control character or half of a surrogate pair; write 1 to 512 bytes of plain text, or leave it out')
    WHERE json_type(NEW.event, '$.causation_id') NOT IN ('text', 'null') OR length(CAST(NEW.event ->> '$.causation_id' AS BLOB)) NOT BETWEEN 1 AND 512
        OR NEW.event ->> '$.causation_id' GLOB '*[' || char(1) || '-' || char(31) || char(127) || '-' || char(159) || ']*' OR instr(NEW.event ->> '$.causation_id', char(0)) > 0
        OR (NEW.event -> '$.causation_id' LIKE '%\ud%' AND EXISTS (
            SELECT 1 FROM hub_outbox_surrogates AS s WHERE instr(CAST(NEW.event ->> '$.causation_id' AS BLOB), s.bytes) > 0));
    SELECT RAISE(ABORT, 'hub_outbox_publish: fqn: is not a string, or empty, too long, or holds a control character or half of a surrogate pair; write 1 to 512 bytes of plain text, or leave it out')
    WHERE json_type(NEW.event, '$.fqn') NOT IN ('text', 'null') OR length(CAST(NEW.event ->> '$.fqn' AS BLOB)) NOT BETWEEN 1 AND 512
        OR NEW.event ->> '$.fqn' GLOB '*[' || char(1) || '-' || char(31) || char(127) || '-' || char(159) || ']*' OR instr(NEW.event ->> '$.fqn', char(0)) > 0
        OR (NEW.event -> '$.fqn' LIKE '%\ud%' AND EXISTS (
            SELECT 1 FROM hub_outbox_surrogates AS s WHERE instr(CAST(NEW.event ->> '$.fqn' AS BLOB), s.bytes) > 0));
    SELECT RAISE(ABORT, 'hub_outbox_publish: origin_stream: is not a string, or empty, too long, or holds a control character or half of a surrogate pair; write 1 to 512 bytes of plain text, or leave it out')
    WHERE json_type(NEW.event, '$.origin_stream') NOT IN ('text', 'null') OR length(CAST(NEW.event ->> '$.origin_stream' AS BLOB)) NOT BETWEEN 1 AND 512
        OR NEW.event ->> '$.origin_stream' GLOB '*[' || char(1) || '-' || char(31) || char(127) || '-' || char(159) || ']*' OR instr(NEW.event ->> '$.origin_stream', char(0)) > 0
        OR (NEW.event -> '$.origin_stream' LIKE '%\ud%' AND EXISTS (
            SELECT 1 FROM hub_outbox_surrogates AS s WHERE instr(CAST(NEW.event ->> '$.origin_stream' AS BLOB), s.bytes) > 0));
    SELECT RAISE(ABORT, 'hub_outbox_publish: stream_category: is not a string, or empty, too long, or holds a control character or half of a surrogate pair; write 1 to 512 bytes of plain text, or leave it out')
    WHERE json_type(NEW.event, '$.stream_category') NOT IN ('text', 'null') OR length(CAST(NEW.event ->> '$.stream_category' AS BLOB)) NOT BETWEEN 1 AND 512
        OR NEW.event ->> '$.stream_category' GLOB '*[' || char(1) || '-' || char(31) || char(127) || '-' || char(159) || ']*' OR instr(NEW.event ->> '$.stream_category', char(0)) > 0
        OR (NEW.event -> '$.stream_category' LIKE '%\ud%' AND EXISTS (
            SELECT 1 FROM hub_outbox_surrogates AS s WHERE instr(CAST(NEW.event ->> '$.stream_category' AS BLOB), s.bytes) > 0));
    SELECT RAISE(ABORT, 'hub_outbox_publish: sequence_id: is not a string or a number, or empty, too long, or holds a control character or half of a surrogate pair; write 1 to 512 bytes of plain text, or leave it out')
    WHERE json_type(NEW.event, '$.sequence_id') NOT IN ('text', 'integer', 'real', 'null') OR length(CAST(NEW.event ->> '$.sequence_id' AS BLOB)) NOT BETWEEN 1 AND 512
        OR NEW.event ->> '$.sequence_id' GLOB '*[' || char(1) || '-' || char(31) || char(127) || '-' || char(159) || ']*' OR instr(NEW.event ->> '$.sequence_id', char(0)) > 0
        OR (NEW.event -> '$.sequence_id' LIKE '%\ud%' AND EXISTS (
            SELECT 1 FROM hub_outbox_surrogates AS s WHERE instr(CAST(NEW.event ->> '$.sequence_id' AS BLOB), s.bytes) > 0));
    SELECT RAISE(ABORT, 'hub_outbox_publish: type: is not an event key; write <resource>.<operation>, such as user.created: words of letters, digits, _ and -, joined by dots')
    WHERE length(CAST(NEW.event ->> '$.type' AS BLOB)) > 255
        OR NEW.event ->> '$.type' GLOB '*[^A-Za-z0-9_.-]*' OR NEW.event ->> '$.type' NOT LIKE '%.%'
        OR NEW.event ->> '$.type' LIKE '.%' OR NEW.event ->> '$.type' LIKE '%.' OR NEW.event ->> '$.type' LIKE '%..%';
    SELECT RAISE(ABORT, 'hub_outbox_publish: tenant: is not a tenant name; write 1 to 64 letters, digits, _, . and -')
    WHERE NEW.event ->> '$.tenant' GLOB '*[^A-Za-z0-9_.-]*' OR length(NEW.event ->> '$.tenant') > 64;
    -- RFC 3339 with T, t or a blank between date and time. The second 60 is the last one of a month in UTC.
    SELECT RAISE(ABORT, 'hub_outbox_publish: time: is not RFC 3339; write it like 2026-01-31T12:00:00Z')
    FROM (
        SELECT *, CASE
                WHEN m = 2 AND y % 4 = 0 AND (y % 100 <> 0 OR y % 400 = 0) THEN 29
                WHEN m = 2 THEN 28
                WHEN m IN (4, 6, 9, 11) THEN 30
                ELSE 31 END AS days,
            hour * 60 + minute - CASE substr(zone, 1, 1) WHEN '-' THEN -1 ELSE 1 END * (zone_hour * 60 + zone_minute) AS minute_utc
        FROM (
            SELECT *, substr(rest, 1, length(rest) - length(zone)) AS fraction,
                CAST(substr(t, 1, 4) AS INTEGER) AS y, CAST(substr(t, 6, 2) AS INTEGER) AS m, CAST(substr(t, 9, 2) AS INTEGER) AS d,
                CAST(substr(t, 12, 2) AS INTEGER) AS hour, CAST(substr(t, 15, 2) AS INTEGER) AS minute,
                CAST(substr(t, 18, 2) AS INTEGER) AS second,
                CASE length(zone) WHEN 6 THEN CAST(substr(zone, 2, 2) AS INTEGER) ELSE 0 END AS zone_hour,
                CASE length(zone) WHEN 6 THEN CAST(substr(zone, 5, 2) AS INTEGER) ELSE 0 END AS zone_minute
            FROM (
                SELECT t, substr(t, 20) AS rest, CASE
                    WHEN substr(t, 20) GLOB '*[Zz]' THEN substr(t, -1)
                    WHEN substr(t, 20) GLOB '*[+-][0-9][0-9]:[0-9][0-9]' THEN substr(t, -6)
                    ELSE '' END AS zone
                FROM (SELECT NEW.event ->> '$.time' AS t))))
    WHERE t IS NOT NULL AND (t NOT GLOB '[0-9][0-9][0-9][0-9]-[0-9][0-9]-[0-9][0-9][Tt ][0-9][0-9]:[0-9][0-9]:[0-9][0-9]*'
        OR zone = '' OR NOT (fraction = '' OR fraction GLOB '.[0-9]*' AND substr(fraction, 2) NOT GLOB '*[^0-9]*')
        OR m NOT BETWEEN 1 AND 12 OR d NOT BETWEEN 1 AND days OR hour > 23 OR minute > 59 OR second > 60
        OR zone_hour > 23 OR zone_minute > 59
        OR second = 60 AND NOT CASE minute_utc WHEN 1439 THEN d = days WHEN -1 THEN d = 1 WHEN 2879 THEN d + 1 = days ELSE 0 END);
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
    -- JSON has one kind of number: 7, 7.0 and 7e0 are the same.
    SELECT RAISE(ABORT, 'hub_outbox_publish: version: is not a whole number from 1; write 1, 2, … 999999999, or leave it out')
    WHERE json_type(NEW.event, '$.version') NOT IN ('integer', 'real', 'null')
        OR NEW.event ->> '$.version' <> CAST(NEW.event ->> '$.version' AS INTEGER) OR CAST(NEW.event ->> '$.version' AS INTEGER) NOT BETWEEN 1 AND 999999999;
    SELECT RAISE(ABORT, 'hub_outbox_publish: expected_version: is not a whole number of at most 18 digits; write an integer, or leave it out')
    WHERE json_type(NEW.event, '$.expected_version') NOT IN ('integer', 'real', 'null')
        OR NEW.event ->> '$.expected_version' <> CAST(NEW.event ->> '$.expected_version' AS INTEGER) OR CAST(NEW.event ->> '$.expected_version' AS INTEGER) NOT BETWEEN -999999999999999999 AND 999999999999999999;
    SELECT RAISE(ABORT, 'hub_outbox_publish: sequence_id: is a number, but not a whole one of at most 18 digits; write an integer or a string')
    WHERE json_type(NEW.event, '$.sequence_id') IN ('integer', 'real') AND (NEW.event ->> '$.sequence_id' <> CAST(NEW.event ->> '$.sequence_id' AS INTEGER) OR CAST(NEW.event ->> '$.sequence_id' AS INTEGER) NOT BETWEEN -999999999999999999 AND 999999999999999999);
    SELECT RAISE(ABORT, 'hub_outbox_publish: event_store: is not an object; write one, or leave it out')
    WHERE json_type(NEW.event, '$.event_store') NOT IN ('object', 'null');
    SELECT RAISE(ABORT, 'hub_outbox_publish: extensions: are not an object; write one, or leave it out')
    WHERE json_type(NEW.event, '$.extensions') NOT IN ('object', 'null');
    SELECT RAISE(ABORT, 'hub_outbox_publish: extensions: hold id, type, time, source, tenant, specversion, data, data_base64 or datacontenttype, which the event itself says; write it as a field of the event, or name it otherwise')
    WHERE json_type(NEW.event, '$.extensions') = 'object' AND EXISTS (
        SELECT 1 FROM json_each(NEW.event, '$.extensions') WHERE key IN
            ('id', 'type', 'time', 'source', 'tenant', 'specversion', 'data', 'data_base64', 'datacontenttype'));
    -- The hub writes a number that is no integer in its own way, in up to 24 bytes.
    SELECT RAISE(ABORT, 'hub_outbox_publish: extensions: hold more than 16384 bytes; put it into data')
    WHERE length(CAST(NEW.event -> '$.extensions' AS BLOB))
        + (SELECT 20 * count(*) FROM json_tree(NEW.event, '$.extensions') WHERE type = 'real') > 16384;
    -- What PostgreSQL does not keep, and what readers of JSON do not read.
    SELECT RAISE(ABORT, 'hub_outbox_publish: data: holds the character \u0000, which PostgreSQL cannot store; remove it')
    WHERE instr(replace(NEW.event -> '$.data', '\\', ''), '\u0000') > 0;
    SELECT RAISE(ABORT, 'hub_outbox_publish: data: holds half of a surrogate pair; write the whole character')
    WHERE NEW.event -> '$.data' LIKE '%\ud%' AND EXISTS (
        SELECT 1 FROM json_tree(NEW.event, '$.data') AS t, hub_outbox_surrogates AS s
        WHERE instr(CAST(t.atom AS BLOB), s.bytes) > 0 OR instr(CAST(t.key AS BLOB), s.bytes) > 0);
    SELECT RAISE(ABORT, 'hub_outbox_publish: data: is nested more than 100 levels deep; flatten it')
    WHERE length(NEW.event -> '$.data') - length(replace(replace(NEW.event -> '$.data', '[', ''), '{', '')) > 100 AND EXISTS (
        WITH RECURSIVE nested (value, level) AS (
            SELECT NEW.event -> '$.data', 0
            UNION ALL
            SELECT c.value, n.level + 1 FROM nested AS n, json_each(n.value) AS c
            WHERE c.type IN ('array', 'object') AND n.level < 100)
        SELECT 1 FROM nested AS n WHERE n.level = 100 AND EXISTS (SELECT 1 FROM json_each(n.value)));
    SELECT RAISE(ABORT, 'hub_outbox_publish: data: holds a number beyond an IEEE 754 double; write it as a string')
    WHERE EXISTS (SELECT 1 FROM json_tree(NEW.event, '$.data')
        WHERE type IN ('integer', 'real') AND abs(CAST(atom AS REAL)) > 1.7976931348623157e308);
    SELECT RAISE(ABORT, 'hub_outbox_publish: extensions: holds the character \u0000, which PostgreSQL cannot store; remove it')
    WHERE instr(replace(NEW.event -> '$.extensions', '\\', ''), '\u0000') > 0;
    SELECT RAISE(ABORT, 'hub_outbox_publish: extensions: holds half of a surrogate pair; write the whole character')
    WHERE NEW.event -> '$.extensions' LIKE '%\ud%' AND EXISTS (
        SELECT 1 FROM json_tree(NEW.event, '$.extensions') AS t, hub_outbox_surrogates AS s
        WHERE instr(CAST(t.atom AS BLOB), s.bytes) > 0 OR instr(CAST(t.key AS BLOB), s.bytes) > 0);
    SELECT RAISE(ABORT, 'hub_outbox_publish: extensions: is nested more than 100 levels deep; flatten it')
    WHERE length(NEW.event -> '$.extensions') - length(replace(replace(NEW.event -> '$.extensions', '[', ''), '{', '')) > 100 AND EXISTS (
        WITH RECURSIVE nested (value, level) AS (
            SELECT NEW.event -> '$.extensions', 0
            UNION ALL
            SELECT c.value, n.level + 1 FROM nested AS n, json_each(n.value) AS c
            WHERE c.type IN ('array', 'object') AND n.level < 100)
        SELECT 1 FROM nested AS n WHERE n.level = 100 AND EXISTS (SELECT 1 FROM json_each(n.value)));
    SELECT RAISE(ABORT, 'hub_outbox_publish: extensions: holds a number beyond an IEEE 754 double; write it as a string')
    WHERE EXISTS (SELECT 1 FROM json_tree(NEW.event, '$.extensions')
        WHERE type IN ('integer', 'real') AND abs(CAST(atom AS REAL)) > 1.7976931348623157e308);
    SELECT RAISE(ABORT, 'hub_outbox_publish: event_store: holds the character \u0000, which PostgreSQL cannot store; remove it')
    WHERE instr(replace(NEW.event -> '$.event_store', '\\', ''), '\u0000') > 0;
    SELECT RAISE(ABORT, 'hub_outbox_publish: event_store: holds half of a surrogate pair; write the whole character')
    WHERE NEW.event -> '$.event_store' LIKE '%\ud%' AND EXISTS (
        SELECT 1 FROM json_tree(NEW.event, '$.event_store') AS t, hub_outbox_surrogates AS s
        WHERE instr(CAST(t.atom AS BLOB), s.bytes) > 0 OR instr(CAST(t.key AS BLOB), s.bytes) > 0);
    SELECT RAISE(ABORT, 'hub_outbox_publish: event_store: is nested more than 100 levels deep; flatten it')
    WHERE length(NEW.event -> '$.event_store') - length(replace(replace(NEW.event -> '$.event_store', '[', ''), '{', '')) > 100 AND EXISTS (
        WITH RECURSIVE nested (value, level) AS (
            SELECT NEW.event -> '$.event_store', 0
            UNION ALL
            SELECT c.value, n.level + 1 FROM nested AS n, json_each(n.value) AS c
            WHERE c.type IN ('array', 'object') AND n.level < 100)
        SELECT 1 FROM nested AS n WHERE n.level = 100 AND EXISTS (SELECT 1 FROM json_each(n.value)));
    SELECT RAISE(ABORT, 'hub_outbox_publish: event_store: holds a number beyond an IEEE 754 double; write it as a string')
    WHERE EXISTS (SELECT 1 FROM json_tree(NEW.event, '$.event_store')
        WHERE type IN ('integer', 'real') AND abs(CAST(atom AS REAL)) > 1.7976931348623157e308);
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
                    'version', coalesce(CAST(NEW.event ->> '$.version' AS INTEGER), 1),
                    'sequence_id', CASE json_type(NEW.event, '$.sequence_id')
                        WHEN 'real' THEN CAST(CAST(NEW.event ->> '$.sequence_id' AS INTEGER) AS TEXT)
                        ELSE CAST(NEW.event ->> '$.sequence_id' AS TEXT) END,
                    'correlation_id', NEW.event ->> '$.correlation_id',
                    'causation_id', NEW.event ->> '$.causation_id',
                    'origin_stream', NEW.event ->> '$.origin_stream',
                    'stream_category', NEW.event ->> '$.stream_category',
                    'expected_version', CAST(NEW.event ->> '$.expected_version' AS INTEGER),
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

    -- The hub refuses a larger body.
    SELECT RAISE(ABORT, 'hub_outbox_publish: data: makes an envelope larger than is taken (events.max_size); publish a reference to large data instead')
    FROM hub_outbox_messages AS m
    WHERE m.broker = 'internal' AND m.position = (SELECT last FROM hub_outbox_positions)
        AND length(CAST(m.payload AS BLOB)) > (SELECT value FROM hub_outbox_limits WHERE name = 'event_bytes');

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
