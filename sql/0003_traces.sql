-- One trace as a tree, version 3. To run it by hand, in one transaction:
--
--     psql -1 -v ON_ERROR_STOP=1 -v schema=logsluice -f sql/0003_traces.sql
--
-- Programs that know only an earlier version go on: nothing that they use is changed.

SET LOCAL search_path = pg_catalog, pg_temp;

-- It runs with the rights of its caller. `spans` is made by the first span: until then, and where a program writes
-- spans alone, the table that is not there counts as empty.
-- Spans whose parent is not stored (another system's, one that is still open) stand at depth 0, as do records of no
-- stored span; so do spans that are each other's parents, which only a forger can write.
CREATE FUNCTION :"schema".trace(id text) RETURNS TABLE (
    depth integer, kind text, ts timestamptz, ended timestamptz, name text, status text, level smallint, message text,
    span_id text, parent_id text, service text, exc_text text, attributes jsonb, stream bigint, seq bigint
)
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, :"schema", pg_temp
AS $body$
DECLARE
    home  text := (pg_catalog.current_schemas(false))[2];
    spans text := 'SELECT now() AS ts, now() AS ended, '''' AS name, '''' AS status, 0::smallint AS level,
        '''' AS span_id, '''' AS parent_id, '''' AS service, NULL::jsonb AS attributes, 0::bigint AS stream,
        0::bigint AS seq, '''' AS trace_id';
    logs  text := 'SELECT now() AS ts, '''' AS logger, 0::smallint AS level, '''' AS message, '''' AS span_id,
        '''' AS service, '''' AS exc_text, NULL::jsonb AS attributes, 0::bigint AS stream, 0::bigint AS seq,
        '''' AS trace_id';
BEGIN
    IF to_regclass(format('%I.spans', home)) IS NULL THEN
        spans := spans || ' WHERE false';
    ELSE
        spans := format('SELECT ts, ended, name, status, level, span_id, parent_id, service, attributes, stream, seq,
            trace_id FROM %I.spans', home);
    END IF;
    IF to_regclass(format('%I.logs', home)) IS NULL THEN
        logs := logs || ' WHERE false';
    ELSE
        logs := format('SELECT ts, logger, level, message, span_id, service,
            coalesce(exc_text, exc_type || '': '' || exc_message) AS exc_text, attributes, stream, seq,
            trace_id FROM %I.logs', home);
    END IF;
    -- A row's place is the list of the keys of those above it and its own: when it began, what it is, who it is.
    RETURN QUERY EXECUTE $query$
        WITH RECURSIVE one AS (
            SELECT DISTINCT ON (s.span_id) s.*,
                   to_char(s.ts AT TIME ZONE 'UTC', 'YYYYMMDDHH24MISSUS') || '0' || s.span_id AS key
              FROM ($query$ || spans || $query$) s WHERE s.trace_id = $1 ORDER BY s.span_id, s.ts
        ), tree AS (
            SELECT one.*, 0 AS depth, ARRAY[one.key] AS place FROM one
             WHERE one.parent_id IS NULL OR one.parent_id NOT IN (SELECT o.span_id FROM one o)
            UNION ALL
            SELECT one.*, tree.depth + 1, tree.place || one.key FROM tree JOIN one ON one.parent_id = tree.span_id
        ), whole AS (
            SELECT * FROM tree
            UNION ALL
            SELECT one.*, 0, ARRAY[one.key] FROM one WHERE one.span_id NOT IN (SELECT t.span_id FROM tree t)
        ), line AS (
            SELECT w.depth, 'span' AS kind, w.ts, w.ended, w.name, w.status, w.level, NULL AS message, w.span_id,
                   w.parent_id, w.service, NULL AS exc_text, w.attributes, w.stream, w.seq, w.place
              FROM whole w
            UNION ALL
            SELECT coalesce(w.depth + 1, 0), 'log', l.ts, NULL, l.logger, NULL, l.level, l.message, l.span_id,
                   NULL, l.service, l.exc_text, l.attributes, l.stream, l.seq,
                   coalesce(w.place, '{}') || (to_char(l.ts AT TIME ZONE 'UTC', 'YYYYMMDDHH24MISSUS') || '1'
                       || lpad(l.stream::text, 20, '0') || lpad(l.seq::text, 20, '0'))
              FROM ($query$ || logs || $query$) l LEFT JOIN whole w ON w.span_id = l.span_id WHERE l.trace_id = $1
        )
        SELECT line.depth, line.kind, line.ts, line.ended, line.name, line.status, line.level, line.message,
               line.span_id, line.parent_id, line.service, line.exc_text, line.attributes, line.stream, line.seq
          FROM line ORDER BY line.place COLLATE "C"
    $query$ USING id;
END
$body$;
COMMENT ON FUNCTION :"schema".trace(text) IS
    'One trace as a tree: its spans (kind span) and their log records (kind log), each behind what it is in; depth counts from 0.';

INSERT INTO :"schema".version (version, name) VALUES (3, '0003_traces');
