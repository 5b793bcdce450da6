-- The views otel_logs and grafana_logs as readers know them, version 5. To run it by hand, in one transaction:
--
--     psql -1 -v ON_ERROR_STOP=1 -v schema=logsluice -f sql/0005_views.sql
--
-- Programs that know only an earlier version go on: no table is touched. Columns keep their places, new ones come last.
-- CREATE OR REPLACE VIEW locks the two views for a moment, never a table.

SET LOCAL search_path = pg_catalog, pg_temp;

-- Names of OpenTelemetry's log data model in snake_case: Timestamp, TraceId, ..., ObservedTimestamp, Resource.
CREATE OR REPLACE VIEW :"schema".otel_logs AS
SELECT ts AS "timestamp",
       trace_id,
       span_id,
       CASE WHEN level >= 50 THEN 'CRITICAL' WHEN level >= 40 THEN 'ERROR' WHEN level >= 30 THEN 'WARNING'
            WHEN level >= 20 THEN 'INFO' WHEN level >= 10 THEN 'DEBUG' WHEN level > 0 THEN 'TRACE' END AS severity_text,
       -- As formatters.severity has it: a record has one number, read here or sent by HttpHandler.
       CASE WHEN level >= 50 THEN least(24, 21 + (level - 50) * 4 / 10) WHEN level >= 40 THEN 17 + (level - 40) * 4 / 10
            WHEN level >= 30 THEN 13 + (level - 30) * 4 / 10 WHEN level >= 20 THEN 9 + (level - 20) * 4 / 10
            WHEN level >= 10 THEN 5 + (level - 10) * 4 / 10 ELSE 1 END AS severity_number,
       message AS body,
       service AS service_name,
       logger AS scope_name,
       coalesce(attributes, '{}') || jsonb_strip_nulls(jsonb_build_object(
           'code.file.path', file, 'code.line.number', line, 'code.function.name', func, 'thread.name', thread,
           'exception.type', exc_type, 'exception.message', exc_message, 'exception.stacktrace', exc_text,
           'user.id', user_id, 'organization.id', organization_id, 'correlation_id', correlation_id,
           'task.name', task, 'log.record.uid', stream || '~' || seq)) AS attributes,
       ts AS observed_timestamp,
       jsonb_strip_nulls(jsonb_build_object('service.name', service)) AS resource_attributes
  FROM :"schema".logs;
COMMENT ON COLUMN :"schema".otel_logs.severity_number IS 'SeverityNumber, 1 to 24.';
COMMENT ON COLUMN :"schema".otel_logs.attributes IS 'logs.attributes with code, thread, exception, ids and user under their conventional keys.';
COMMENT ON COLUMN :"schema".otel_logs.observed_timestamp IS 'logs.ts: a record is observed by the call that makes it.';
COMMENT ON COLUMN :"schema".otel_logs.resource_attributes IS 'Who wrote it: service.name. Host, version and process are in stream.';

-- Columns that Grafana's logs panel looks for; labels is what newer ones call attributes.
CREATE OR REPLACE VIEW :"schema".grafana_logs AS
SELECT ts AS "timestamp",
       coalesce(message, '') AS body,
       CASE WHEN level >= 50 THEN 'critical' WHEN level >= 40 THEN 'error' WHEN level >= 30 THEN 'warning'
            WHEN level >= 20 THEN 'info' WHEN level >= 10 THEN 'debug' WHEN level > 0 THEN 'trace' END AS severity,
       stream || '~' || seq AS id,
       jsonb_strip_nulls(jsonb_build_object(
           'service', service, 'logger', logger, 'trace_id', trace_id, 'correlation_id', correlation_id,
           'exception', exc_text)) || coalesce(attributes, '{}') AS attributes,
       jsonb_strip_nulls(jsonb_build_object(
           'service', service, 'logger', logger, 'trace_id', trace_id, 'correlation_id', correlation_id,
           'exception', exc_text)) || coalesce(attributes, '{}') AS labels
  FROM :"schema".logs;
COMMENT ON COLUMN :"schema".grafana_logs.body IS 'logs.message; empty where there is none, for the panel takes no NULL.';
COMMENT ON COLUMN :"schema".grafana_logs.labels IS 'As attributes, under the name that Grafana''s data plane has.';

-- From PostgreSQL 15 on a view can read with the rights of who asks, so that it is no way around those on logs. One that
-- somebody was given, who may not read logs, stays as it is: an update must not empty a dashboard.
SET LOCAL search_path = pg_catalog, :"schema", pg_temp;
DO $body$
DECLARE
    home text := (pg_catalog.current_schemas(false))[2];
    name text;
BEGIN
    PERFORM pg_catalog.set_config('search_path', 'pg_catalog, pg_temp', true);
    IF current_setting('server_version_num')::integer < 150000 THEN
        RETURN;
    END IF;
    FOREACH name IN ARRAY ARRAY['otel_logs', 'grafana_logs'] LOOP
        IF NOT EXISTS (SELECT FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace, aclexplode(c.relacl) AS given
                        WHERE n.nspname = home AND c.relname = name
                          AND given.privilege_type = 'SELECT' AND given.grantee <> c.relowner
                          AND NOT has_table_privilege(given.grantee, format('%I.logs', home), 'SELECT')) THEN
            EXECUTE format('ALTER VIEW %I.%I SET (security_invoker = true)', home, name);
        END IF;
    END LOOP;
END
$body$;

INSERT INTO :"schema".version (version, name) VALUES (5, '0005_views');
