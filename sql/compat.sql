-- Views with the names and columns of systems that kept such tables by hand: what read those reads these.
--
-- `logsluice migrate --compat` applies it and first makes the typed tables that it reads, where they are not there yet;
-- `logsluice migrate --sql --compat` prints all of that. It may be applied again. It has no version: no writer needs it.
-- A reader needs USAGE on the schema and SELECT on the views, nothing on the tables.
-- New columns of a view go to its end: CREATE OR REPLACE VIEW keeps the GRANTs, and takes nothing else.
--
-- id: a uuid made of stream and seq, 16 hexadecimal digits each; `logsluice show ID` takes it.
-- level: trace, debug, info, warn, error, critical, by the nearest of Python's levels at or below the number.

SET LOCAL search_path = pg_catalog, pg_temp;

CREATE OR REPLACE VIEW :"schema".log_entry AS
SELECT (lpad(to_hex(stream), 16, '0') || lpad(to_hex(seq), 16, '0'))::uuid AS id,
       ts AS "timestamp",
       CASE WHEN level >= 50 THEN 'critical' WHEN level >= 40 THEN 'error' WHEN level >= 30 THEN 'warn'
            WHEN level >= 20 THEN 'info' WHEN level >= 10 THEN 'debug' ELSE 'trace' END AS level,
       coalesce(nullif(service, ''), '-') AS service,
       coalesce(nullif(attributes ->> 'module', ''), nullif(attributes ->> 'component', ''), nullif(logger, ''), '-')
           AS module,
       -- A row that none of the query's conditions left out costs one look by trace_id, and only if it has a span.
       coalesce(nullif(attributes ->> 'operation', ''),
                (SELECT min(spans.name) FROM :"schema".spans
                  WHERE spans.trace_id = logs.trace_id AND spans.span_id = logs.span_id),
                nullif(func, ''), '-') AS operation,
       coalesce(nullif(message, ''), '-') AS message,
       trace_id,
       span_id,
       correlation_id,
       user_id,
       organization_id,
       coalesce(attributes, '{}') - 'module' - 'operation' AS metadata,
       CASE WHEN coalesce(exc_type, exc_message, exc_text) IS NOT NULL THEN
           jsonb_build_object('type', exc_type, 'message', exc_message, 'stack', exc_text) END AS error_details
  FROM :"schema".logs;
COMMENT ON VIEW :"schema".log_entry IS 'logs with the names of systems whose entries have a module and an operation.';
COMMENT ON COLUMN :"schema".log_entry.id IS 'stream and seq as a uuid; `logsluice show` takes it.';
COMMENT ON COLUMN :"schema".log_entry."timestamp" IS 'logs.ts. A query that says from when on reads only the partitions of that time.';
COMMENT ON COLUMN :"schema".log_entry.level IS 'trace, debug, info, warn, error or critical.';
COMMENT ON COLUMN :"schema".log_entry.service IS 'logs.service; "-" for none.';
COMMENT ON COLUMN :"schema".log_entry.module IS 'The attribute "module", else "component", else the name of the logger.';
COMMENT ON COLUMN :"schema".log_entry.operation IS 'The attribute "operation", else the name of the span, else the function that logged.';
COMMENT ON COLUMN :"schema".log_entry.message IS 'logs.message; "-" for none.';
COMMENT ON COLUMN :"schema".log_entry.trace_id IS 'logs.trace_id.';
COMMENT ON COLUMN :"schema".log_entry.span_id IS 'logs.span_id.';
COMMENT ON COLUMN :"schema".log_entry.correlation_id IS 'logs.correlation_id.';
COMMENT ON COLUMN :"schema".log_entry.user_id IS 'logs.user_id.';
COMMENT ON COLUMN :"schema".log_entry.organization_id IS 'logs.organization_id.';
COMMENT ON COLUMN :"schema".log_entry.metadata IS 'logs.attributes without "module" and "operation"; {} for none.';
COMMENT ON COLUMN :"schema".log_entry.error_details IS '{"type", "message", "stack"} of the exception; NULL for none.';

CREATE OR REPLACE VIEW :"schema".activity_logs AS
SELECT (lpad(to_hex(stream), 16, '0') || lpad(to_hex(seq), 16, '0'))::uuid AS id,
       ts AS created_at,
       session_id, user_id, activity_type, activity_status, document_id, message_content, response_content, token_count,
       retrieval_skipped, similarity_score, processing_time_ms, llm_call_duration_ms, retrieval_duration_ms,
       error_message, error_type, user_agent, ip_address
  FROM :"schema".activity;
COMMENT ON VIEW :"schema".activity_logs IS 'activity under its older name. Columns without a comment are those of the table.';
COMMENT ON COLUMN :"schema".activity_logs.id IS 'stream and seq as a uuid; `logsluice show` takes it.';
COMMENT ON COLUMN :"schema".activity_logs.created_at IS 'activity.ts.';

CREATE OR REPLACE VIEW :"schema".api_logs AS
SELECT path AS endpoint,
       method,
       client_ip AS ip_address,
       request_body,
       status AS response_status,
       duration_ms AS response_time_ms,
       error AS error_message,
       ts AS created_at
  FROM :"schema".api_request;
COMMENT ON VIEW :"schema".api_logs IS 'api_request under its older name.';
COMMENT ON COLUMN :"schema".api_logs.endpoint IS 'api_request.path: what was asked for, without the query.';
COMMENT ON COLUMN :"schema".api_logs.method IS 'api_request.method.';
COMMENT ON COLUMN :"schema".api_logs.ip_address IS 'api_request.client_ip.';
COMMENT ON COLUMN :"schema".api_logs.request_body IS 'api_request.request_body; NULL unless bodies are kept.';
COMMENT ON COLUMN :"schema".api_logs.response_status IS 'api_request.status.';
COMMENT ON COLUMN :"schema".api_logs.response_time_ms IS 'api_request.duration_ms, milliseconds.';
COMMENT ON COLUMN :"schema".api_logs.error_message IS 'api_request.error.';
COMMENT ON COLUMN :"schema".api_logs.created_at IS 'api_request.ts.';

-- Of each column the newest value that there is: a later step need not say again whom the message is for. But the
-- status, the attempt and the error are those of the last step: one that was sent at last has no error any more.
-- GROUP BY job_id alone, so that a WHERE on job_id reaches the index.
CREATE OR REPLACE VIEW :"schema".message_logs AS
SELECT job_id,
       (array_agg(channel ORDER BY ts DESC, stream, seq DESC))[1] AS channel,
       (array_agg(recipient_email ORDER BY ts DESC, stream, seq DESC) FILTER (WHERE recipient_email IS NOT NULL))[1] AS recipient_email,
       (array_agg(recipient_phone ORDER BY ts DESC, stream, seq DESC) FILTER (WHERE recipient_phone IS NOT NULL))[1] AS recipient_phone,
       (array_agg(recipient_name ORDER BY ts DESC, stream, seq DESC) FILTER (WHERE recipient_name IS NOT NULL))[1] AS recipient_name,
       (array_agg(template_id ORDER BY ts DESC, stream, seq DESC) FILTER (WHERE template_id IS NOT NULL))[1] AS template_id,
       (array_agg(template_name ORDER BY ts DESC, stream, seq DESC) FILTER (WHERE template_name IS NOT NULL))[1] AS template_name,
       (array_agg(subject ORDER BY ts DESC, stream, seq DESC) FILTER (WHERE subject IS NOT NULL))[1] AS subject,
       (array_agg(status ORDER BY ts DESC, stream, seq DESC))[1] AS status,
       (array_agg(attempts ORDER BY ts DESC, stream, seq DESC))[1] AS attempts,
       (array_agg(priority ORDER BY ts DESC, stream, seq DESC))[1] AS priority,
       (array_agg(message_id ORDER BY ts DESC, stream, seq DESC) FILTER (WHERE message_id IS NOT NULL))[1] AS message_id,
       (array_agg(error_message ORDER BY ts DESC, stream, seq DESC))[1] AS error_message,
       min(ts) AS created_at,
       max(ts) AS updated_at
  FROM :"schema".message_event
 GROUP BY job_id;
COMMENT ON VIEW :"schema".message_logs IS 'One row for each job of message_event, as its last event left it. Columns without a comment are those of the table.';
COMMENT ON COLUMN :"schema".message_logs.status IS 'Of the last event, as attempts, priority and error_message are.';
COMMENT ON COLUMN :"schema".message_logs.created_at IS 'message_event.ts of the first event.';
COMMENT ON COLUMN :"schema".message_logs.updated_at IS 'message_event.ts of the last event.';

CREATE OR REPLACE VIEW :"schema".system_logs AS
SELECT (lpad(to_hex(stream), 16, '0') || lpad(to_hex(seq), 16, '0'))::uuid AS id,
       ts AS created_at,
       CASE WHEN level >= 50 THEN 'critical' WHEN level >= 40 THEN 'error' WHEN level >= 30 THEN 'warn'
            WHEN level >= 20 THEN 'info' WHEN level >= 10 THEN 'debug' ELSE 'trace' END AS level,
       message,
       metadata
  FROM :"schema".system_event;
COMMENT ON VIEW :"schema".system_logs IS 'system_event under its older name.';
COMMENT ON COLUMN :"schema".system_logs.id IS 'stream and seq as a uuid; `logsluice show` takes it.';
COMMENT ON COLUMN :"schema".system_logs.created_at IS 'system_event.ts.';
COMMENT ON COLUMN :"schema".system_logs.level IS 'trace, debug, info, warn, error or critical.';
COMMENT ON COLUMN :"schema".system_logs.message IS 'system_event.message.';
COMMENT ON COLUMN :"schema".system_logs.metadata IS 'system_event.metadata.';

CREATE OR REPLACE VIEW :"schema".admin_activity_logs AS
SELECT (lpad(to_hex(stream), 16, '0') || lpad(to_hex(seq), 16, '0'))::uuid AS id,
       ts AS created_at,
       admin_id, action, resource_type, resource_id, changes, ip_address
  FROM :"schema".admin_activity;
COMMENT ON VIEW :"schema".admin_activity_logs IS 'admin_activity under its older name. Columns without a comment are those of the table.';
COMMENT ON COLUMN :"schema".admin_activity_logs.id IS 'stream and seq as a uuid; `logsluice show` takes it.';
COMMENT ON COLUMN :"schema".admin_activity_logs.created_at IS 'admin_activity.ts.';

CREATE OR REPLACE VIEW :"schema".job_logs AS
SELECT (lpad(to_hex(stream), 16, '0') || lpad(to_hex(seq), 16, '0'))::uuid AS id,
       ts AS created_at,
       log_type, job_id, user_did, slice_uri,
       CASE WHEN level >= 50 THEN 'critical' WHEN level >= 40 THEN 'error' WHEN level >= 30 THEN 'warn'
            WHEN level >= 20 THEN 'info' WHEN level >= 10 THEN 'debug' ELSE 'trace' END AS level,
       message,
       metadata
  FROM :"schema".job_log;
COMMENT ON VIEW :"schema".job_logs IS 'job_log under its older name. Columns without a comment are those of the table.';
COMMENT ON COLUMN :"schema".job_logs.id IS 'stream and seq as a uuid; `logsluice show` takes it.';
COMMENT ON COLUMN :"schema".job_logs.created_at IS 'job_log.ts.';
COMMENT ON COLUMN :"schema".job_logs.level IS 'trace, debug, info, warn, error or critical.';
