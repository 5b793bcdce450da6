-- logsluice's tables, version 1. To run it by hand, in one transaction:
--
--     psql -1 -v ON_ERROR_STOP=1 -v schema=logsluice -f sql/0001_schema.sql
--
-- `logsluice migrate` runs the same text; `logsluice migrate --sql` prints it with GRANTs for a writer.
-- ASCII only: a database may have any encoding.
-- Two lines are dropped by schema.py when they do not apply, so they stand alone:
-- CREATE SCHEMA (it asks for CREATE on the database even when the schema is there) and PARTITION BY.

-- Otherwise the views below could take an operator that somebody planted in public.
SET LOCAL search_path = pg_catalog, pg_temp;

CREATE SCHEMA IF NOT EXISTS :"schema";

CREATE TABLE :"schema".version (
    version  integer PRIMARY KEY,
    name     text NOT NULL,
    checksum text,
    applied  timestamptz NOT NULL DEFAULT now()
);
COMMENT ON TABLE :"schema".version IS 'One row for each numbered SQL file that was applied here.';
COMMENT ON COLUMN :"schema".version.version IS 'Number of the file.';
COMMENT ON COLUMN :"schema".version.name IS 'Name of the file, without its ending.';
COMMENT ON COLUMN :"schema".version.checksum IS 'SHA-256 of the file, hexadecimal; NULL when it was run by hand with psql.';
COMMENT ON COLUMN :"schema".version.applied IS 'When it was applied.';

-- No DEFAULT partition, ever: with one, DETACH ... CONCURRENTLY is refused, and a partition made later
-- fails on the rows that the default already holds.
CREATE TABLE :"schema".logs (
    ts              timestamptz NOT NULL,
    level           smallint NOT NULL,
    logger          text,
    message         text,
    service         text,
    trace_id        text,
    span_id         text,
    correlation_id  text,
    user_id         text,
    organization_id text,
    file            text,
    line            integer,
    func            text,
    thread          text,
    task            text,
    exc_type        text,
    exc_message     text,
    exc_text        text,
    template        text,
    attributes      jsonb,
    stream          bigint NOT NULL,
    seq             bigint NOT NULL
)
PARTITION BY RANGE (ts)
;
COMMENT ON TABLE :"schema".logs IS 'One row for each log record. Partitioned by range of ts (UTC) unless it was made with partition=none.';
COMMENT ON COLUMN :"schema".logs.ts IS 'When the logging call was made, microseconds.';
COMMENT ON COLUMN :"schema".logs.level IS 'Python''s level number: 10 DEBUG, 20 INFO, 30 WARNING, 40 ERROR, 50 CRITICAL.';
COMMENT ON COLUMN :"schema".logs.logger IS 'Name of the logger.';
COMMENT ON COLUMN :"schema".logs.message IS 'The message with its arguments filled in.';
COMMENT ON COLUMN :"schema".logs.service IS 'Name of the program, from the handler''s option.';
COMMENT ON COLUMN :"schema".logs.trace_id IS 'W3C trace id, 32 hexadecimal digits.';
COMMENT ON COLUMN :"schema".logs.span_id IS 'W3C span id, 16 hexadecimal digits.';
COMMENT ON COLUMN :"schema".logs.correlation_id IS 'Id of the request or job that the record belongs to.';
COMMENT ON COLUMN :"schema".logs.user_id IS 'Id of the user it was done for.';
COMMENT ON COLUMN :"schema".logs.organization_id IS 'Id of the customer or tenant it was done for.';
COMMENT ON COLUMN :"schema".logs.file IS 'Path of the source file of the logging call.';
COMMENT ON COLUMN :"schema".logs.line IS 'Line of the logging call, from 1.';
COMMENT ON COLUMN :"schema".logs.func IS 'Function of the logging call.';
COMMENT ON COLUMN :"schema".logs.thread IS 'Name of the thread.';
COMMENT ON COLUMN :"schema".logs.task IS 'Name of the asyncio task.';
COMMENT ON COLUMN :"schema".logs.exc_type IS 'Type of the exception, with its module.';
COMMENT ON COLUMN :"schema".logs.exc_message IS 'Text of the exception.';
COMMENT ON COLUMN :"schema".logs.exc_text IS 'Traceback with causes and groups. A stack that was asked for is in attributes, key "stack_info".';
COMMENT ON COLUMN :"schema".logs.template IS 'The message before its arguments were filled in: groups records of one call site.';
COMMENT ON COLUMN :"schema".logs.attributes IS 'Everything else that was given with extra=; key "logsluice" tells what was changed on the way.';
COMMENT ON COLUMN :"schema".logs.stream IS 'The stream the record came in by; with seq, its identity. No reference: stream rows are deleted earlier.';
COMMENT ON COLUMN :"schema".logs.seq IS 'Number of the record in its stream. Not the order.';

-- Few on purpose: every index is paid for by each stored row.
CREATE INDEX logs_ts ON :"schema".logs (ts);
CREATE INDEX logs_level_ts ON :"schema".logs (level, ts) WHERE level >= 30;
CREATE INDEX logs_trace_id ON :"schema".logs (trace_id) WHERE trace_id IS NOT NULL;

-- One row a stream, updated once a batch. Half of each page is left free, so that the new version fits beside
-- the old one (a HOT update): no index entry a batch, no bloat.
CREATE TABLE :"schema".stream (
    stream      bigint PRIMARY KEY,
    position    bigint NOT NULL DEFAULT 0,
    stored      bigint NOT NULL DEFAULT 0,
    dead        bigint NOT NULL DEFAULT 0,
    offered     bigint NOT NULL DEFAULT 0,
    dropped     bigint NOT NULL DEFAULT 0,
    service     text,
    environment text,
    version     text,
    host        text,
    pid         integer,
    started     timestamptz NOT NULL DEFAULT now(),
    updated     timestamptz NOT NULL DEFAULT now(),
    retired     timestamptz
) WITH (fillfactor = 50);
COMMENT ON TABLE :"schema".stream IS 'One row for each stream (one life of one handler in one process on one table): how far it is stored.';
COMMENT ON COLUMN :"schema".stream.stream IS 'Random 63-bit id.';
COMMENT ON COLUMN :"schema".stream.position IS 'The watermark: everything up to it is committed. Segment number x 2^32 + offset in bytes.';
COMMENT ON COLUMN :"schema".stream.stored IS 'Records stored.';
COMMENT ON COLUMN :"schema".stream.dead IS 'Records set aside in dead_letter.';
COMMENT ON COLUMN :"schema".stream.offered IS 'Records offered to the handler when the row was last updated.';
COMMENT ON COLUMN :"schema".stream.dropped IS 'Records dropped, for any reason, when the row was last updated.';
COMMENT ON COLUMN :"schema".stream.service IS 'Name of the program.';
COMMENT ON COLUMN :"schema".stream.environment IS 'Where it runs: production, staging.';
COMMENT ON COLUMN :"schema".stream.version IS 'Version of the program.';
COMMENT ON COLUMN :"schema".stream.host IS 'Host that it ran on.';
COMMENT ON COLUMN :"schema".stream.pid IS 'Id of its process on that host.';
COMMENT ON COLUMN :"schema".stream.started IS 'When the stream was first seen here.';
COMMENT ON COLUMN :"schema".stream.updated IS 'When its last batch was committed.';
COMMENT ON COLUMN :"schema".stream.retired IS 'When its journal folder was gone; NULL while it may still send. Only a retired row may be deleted.';

CREATE TABLE :"schema".dead_letter (
    at          timestamptz NOT NULL DEFAULT now(),
    stream      bigint NOT NULL,
    seq         bigint,
    position    bigint NOT NULL,
    target      text NOT NULL,
    columns     text[],
    row         bytea NOT NULL,
    sqlstate    text,
    error       text,
    replayed_at timestamptz
);
COMMENT ON TABLE :"schema".dead_letter IS 'One row for each record that PostgreSQL rejected for what it contains. Takes any bytes in any database encoding.';
COMMENT ON COLUMN :"schema".dead_letter.at IS 'When it was rejected.';
COMMENT ON COLUMN :"schema".dead_letter.stream IS 'Its stream.';
COMMENT ON COLUMN :"schema".dead_letter.seq IS 'Its number in the stream; NULL when it could not be read from the row.';
COMMENT ON COLUMN :"schema".dead_letter.position IS 'Where the row ends in its stream: segment number x 2^32 + offset in bytes.';
COMMENT ON COLUMN :"schema".dead_letter.target IS 'The table it was meant for.';
COMMENT ON COLUMN :"schema".dead_letter.columns IS 'The columns of the row, in its order.';
COMMENT ON COLUMN :"schema".dead_letter.row IS 'The row as it was sent: one line of COPY text, UTF-8.';
COMMENT ON COLUMN :"schema".dead_letter.sqlstate IS 'SQLSTATE of the rejection.';
COMMENT ON COLUMN :"schema".dead_letter.error IS 'Message of the rejection, ASCII.';
COMMENT ON COLUMN :"schema".dead_letter.replayed_at IS 'When it was sent again and stored; NULL while it waits.';
CREATE INDEX dead_letter_at ON :"schema".dead_letter (at);

-- make_partitions: what lets a role with no more than INSERT cross midnight.
--
-- It runs with the rights of its owner, so:
--   * its first two statements narrow search_path to pg_catalog (a function or operator planted in the schema, in
--     public or in pg_temp is never found); the schema's name comes from the function's own fixed setting;
--   * the parent is looked up in this schema only and must have the same owner: cloning the index expressions of
--     somebody else's table would run his functions as us;
--   * starts and ends are bounded.
-- The parent is never locked against readers or writers: a plain table is made and attached (SHARE UPDATE EXCLUSIVE).
-- CREATE TABLE ... PARTITION OF takes ACCESS EXCLUSIVE: behind one open reader every writer would stand still.
-- A new partition needs no GRANT: rows go in, and are read, through the parent.
-- A parent that is a plain table (partition=none) has room for every row: nothing is made.
CREATE FUNCTION :"schema".make_partitions(
    starts timestamptz, ends timestamptz, parent text DEFAULT 'logs', width text DEFAULT 'day'
) RETURNS SETOF text
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, :"schema", pg_temp
SET timezone = 'UTC'
AS $body$
DECLARE
    home    text;              -- the schema of this function
    step    interval;          -- the width
    pattern text;              -- what a partition's name ends in: all four are distinct, none can clash
    family  oid;               -- the parent
    kind    "char";
    key     text;              -- its partition key
    covered tstzmultirange;    -- what the attached partitions cover already
    stuck   text;              -- one whose DETACH ... CONCURRENTLY was interrupted: blocks its range, takes no rows
    pieces  tstzrange[];       -- what is to be made
    piece   tstzrange;
    stem    text;              -- what a name begins with
    label   text;              -- the name
    suffix  integer;
BEGIN
    home := (pg_catalog.current_schemas(false))[2];
    PERFORM pg_catalog.set_config('search_path', 'pg_catalog, pg_temp', true);

    -- 400 days back: a journal that waited a year is still stored. 8 days ahead: what a caller may prepare.
    -- A wrong clock or a hostile caller fills no catalogue.
    IF (starts <= ends AND starts >= now() - interval '400 days' AND ends <= now() + interval '8 days') IS NOT TRUE THEN
        RAISE EXCEPTION 'make_partitions: % to % is not within now - 400 days to now + 8 days', starts, ends
            USING ERRCODE = 'invalid_parameter_value';
    END IF;
    pattern := CASE width WHEN 'hour' THEN 'YYYYMMDDHH24' WHEN 'day' THEN 'YYYYMMDD'
                          WHEN 'week' THEN 'IYYY"w"IW' WHEN 'month' THEN 'YYYYMM' END;
    IF pattern IS NULL THEN
        RAISE EXCEPTION 'make_partitions: width is %, not hour, day, week or month', coalesce(width, 'NULL')
            USING ERRCODE = 'invalid_parameter_value';
    END IF;
    step := ('1 ' || width)::interval;

    SELECT c.oid, c.relkind, a.attname INTO family, kind, key
      FROM pg_class c
      JOIN pg_namespace n ON n.oid = c.relnamespace
      LEFT JOIN pg_partitioned_table p ON p.partrelid = c.oid AND p.partstrat = 'r' AND p.partnatts = 1
      LEFT JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum = p.partattrs[0]
                              AND a.atttypid = 'timestamptz'::regtype
     WHERE n.nspname = home AND c.relname = parent AND c.relkind IN ('r', 'p')
       AND pg_get_userbyid(c.relowner) = current_user;
    IF family IS NULL THEN
        RAISE EXCEPTION 'make_partitions: schema % has no table % that belongs to %', home, parent, current_user
            USING ERRCODE = 'undefined_table';
    END IF;
    IF kind = 'r' THEN
        RETURN;
    END IF;
    IF key IS NULL THEN
        RAISE EXCEPTION 'make_partitions: %.% is not partitioned by range of one timestamptz column', home, parent
            USING ERRCODE = 'wrong_object_type';
    END IF;

    -- Twice at most: the first look takes no lock, for nearly always nothing is missing; the second one, behind the
    -- lock, sees what another process has made meanwhile.
    FOR look IN 1..2 LOOP
        SELECT range_agg(span), min(part) FILTER (WHERE pending AND span && tstzrange(starts, ends, '[]'))
          INTO covered, stuck
          FROM (SELECT c.relname::text AS part, i.inhdetachpending AS pending,
                       regexp_match(pg_get_expr(c.relpartbound, c.oid), 'FROM \((.+)\) TO \((.+)\)') AS edge
                  FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid WHERE i.inhparent = family) AS attached,
               LATERAL (SELECT tstzrange(
                   CASE edge[1] WHEN 'MINVALUE' THEN '-infinity' ELSE btrim(edge[1], '''') END::timestamptz,
                   CASE edge[2] WHEN 'MAXVALUE' THEN 'infinity' ELSE btrim(edge[2], '''') END::timestamptz) AS span
               ) AS bounds
         WHERE edge IS NOT NULL;  -- a DEFAULT partition that somebody else made has no bounds

        -- Only what no partition covers: after a change of width the old ones stay, and the holes are filled.
        SELECT array_agg(gap ORDER BY gap) INTO pieces
          FROM generate_series(date_trunc(width, starts), ends, step) AS period,
               unnest(tstzmultirange(tstzrange(period, period + step)) - coalesce(covered, '{}')) AS gap;
        EXIT WHEN pieces IS NULL;
        IF look = 1 THEN
            PERFORM pg_advisory_xact_lock(hashtextextended('logsluice make_partitions', family::bigint));
        END IF;
    END LOOP;

    IF pieces IS NULL AND stuck IS NOT NULL THEN
        RAISE EXCEPTION 'make_partitions: dropping partition % was interrupted, its range takes no rows', stuck
            USING ERRCODE = 'object_in_use',
                  HINT = 'Finish it: logsluice prune, or ALTER TABLE ... DETACH PARTITION ... FINALIZE.';
    END IF;
    IF cardinality(pieces) > 500 THEN  -- each holds about 10 locks until COMMIT; the server has 6,400 by default
        RAISE EXCEPTION 'make_partitions: % partitions are too many for one call, 500 at most', cardinality(pieces)
            USING ERRCODE = 'invalid_parameter_value';
    END IF;

    stem := parent;
    WHILE octet_length(stem) > 48 LOOP  -- a name has 63 bytes: "_", 10 digits and a suffix must fit behind it
        stem := left(stem, -1);
    END LOOP;
    FOREACH piece IN ARRAY coalesce(pieces, '{}') LOOP
        -- The name may be taken: by a table that was detached and not yet dropped, or by another piece of this period.
        label := stem || '_' || to_char(lower(piece), pattern);
        suffix := 1;
        WHILE EXISTS (SELECT FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
                       WHERE n.nspname = home AND c.relname = label) LOOP
            suffix := suffix + 1;
            label := stem || '_' || to_char(lower(piece), pattern) || '_' || suffix;
        END LOOP;
        -- Without identity: a table to be attached may not have its own.
        EXECUTE format('CREATE TABLE %I.%I (LIKE %I.%I INCLUDING ALL EXCLUDING IDENTITY, CHECK (%I >= %L AND %I < %L))',
                       home, label, home, parent, key, lower(piece), key, upper(piece));
        EXECUTE format('ALTER TABLE %I.%I ATTACH PARTITION %I.%I FOR VALUES FROM (%L) TO (%L)',
                       home, parent, home, label, lower(piece), upper(piece));
        RETURN NEXT label;
    END LOOP;
END
$body$;
REVOKE ALL ON FUNCTION :"schema".make_partitions(timestamptz, timestamptz, text, text) FROM PUBLIC;
COMMENT ON FUNCTION :"schema".make_partitions(timestamptz, timestamptz, text, text) IS
    'Makes the partitions that hold every moment from starts to ends, both included (width: hour, day, week or month, in UTC) and returns their names.';

-- The names that readers of other tools expect. SELECT on a view is enough to read through it.
CREATE VIEW :"schema".otel_logs AS
SELECT ts AS "timestamp",
       trace_id,
       span_id,
       CASE WHEN level >= 50 THEN 'CRITICAL' WHEN level >= 40 THEN 'ERROR' WHEN level >= 30 THEN 'WARNING'
            WHEN level >= 20 THEN 'INFO' WHEN level >= 10 THEN 'DEBUG' WHEN level > 0 THEN 'TRACE' END AS severity_text,
       -- Four numbers a level: TRACE 1, DEBUG 5, INFO 9, WARNING 13, ERROR 17, CRITICAL 21 to 24; 0 is unspecified.
       CASE WHEN level > 0 THEN least(1 + 4 * (level / 10) + least(level % 10, 3), 24) ELSE 0 END AS severity_number,
       message AS body,
       service AS service_name,
       logger AS scope_name,
       coalesce(attributes, '{}') || jsonb_strip_nulls(jsonb_build_object(
           'code.file.path', file, 'code.line.number', line, 'code.function.name', func, 'thread.name', thread,
           'exception.type', exc_type, 'exception.message', exc_message, 'exception.stacktrace', exc_text,
           'user.id', user_id)) AS attributes
  FROM :"schema".logs;
COMMENT ON VIEW :"schema".otel_logs IS 'logs with the names of OpenTelemetry''s data model and semantic conventions.';
COMMENT ON COLUMN :"schema".otel_logs."timestamp" IS 'logs.ts.';
COMMENT ON COLUMN :"schema".otel_logs.trace_id IS 'logs.trace_id.';
COMMENT ON COLUMN :"schema".otel_logs.span_id IS 'logs.span_id.';
COMMENT ON COLUMN :"schema".otel_logs.severity_text IS 'Name of the nearest of Python''s levels at or below logs.level.';
COMMENT ON COLUMN :"schema".otel_logs.severity_number IS 'SeverityNumber, 1 to 24; 0 is unspecified.';
COMMENT ON COLUMN :"schema".otel_logs.body IS 'logs.message.';
COMMENT ON COLUMN :"schema".otel_logs.service_name IS 'logs.service.';
COMMENT ON COLUMN :"schema".otel_logs.scope_name IS 'logs.logger.';
COMMENT ON COLUMN :"schema".otel_logs.attributes IS 'logs.attributes with code, thread, exception and user under their conventional keys.';

CREATE VIEW :"schema".grafana_logs AS
SELECT ts AS "timestamp",
       message AS body,
       CASE WHEN level >= 50 THEN 'critical' WHEN level >= 40 THEN 'error' WHEN level >= 30 THEN 'warning'
            WHEN level >= 20 THEN 'info' WHEN level >= 10 THEN 'debug' WHEN level > 0 THEN 'trace' END AS severity,
       stream || '~' || seq AS id,
       jsonb_strip_nulls(jsonb_build_object(
           'service', service, 'logger', logger, 'trace_id', trace_id, 'correlation_id', correlation_id,
           'exception', exc_text)) || coalesce(attributes, '{}') AS attributes
  FROM :"schema".logs;
COMMENT ON VIEW :"schema".grafana_logs IS 'logs with the column names that Grafana''s logs panel looks for.';
COMMENT ON COLUMN :"schema".grafana_logs."timestamp" IS 'logs.ts.';
COMMENT ON COLUMN :"schema".grafana_logs.body IS 'logs.message.';
COMMENT ON COLUMN :"schema".grafana_logs.severity IS 'Name of the level as Grafana colours it.';
COMMENT ON COLUMN :"schema".grafana_logs.id IS 'stream~seq: tells equal lines apart.';
COMMENT ON COLUMN :"schema".grafana_logs.attributes IS 'logs.attributes with service, logger, ids and traceback.';

-- The checksum is filled in by schema.py: a file cannot hold its own.
INSERT INTO :"schema".version (version, name) VALUES (1, '0001_schema');
