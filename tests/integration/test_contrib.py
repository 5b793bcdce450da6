"""The six typed tables, filled by a program of its own, column by column; and by none that does not use them."""

from __future__ import annotations

import json
import uuid

import psycopg
import pytest

from support.processes import run_program

BEGIN = """
import json, logging, logging.config, os, uuid
logging.config.dictConfig({
    "version": 1,
    "handlers": {"rows": {"class": "logsluice.PostgresHandler", "dsn_env": "SHOP_DSN", "service": "shop"}},
    "root": {"level": "DEBUG", "handlers": ["rows"]},
})
log = logging.getLogger("shop")
"""
PROGRAM = (
    BEGIN
    + """
from logsluice import context
from logsluice.contrib import Activity, AdminActivity, ApiRequest, JobLog, MessageEvent, SystemEvent
given = json.loads(os.environ["GIVEN"])
context.bind(user_id="u-1", organization_id="o-1", correlation_id="c-1", trace_id="a" * 32, span_id="b" * 16, tenant=7)
kinds = {kind.__name__: kind for kind in (Activity, AdminActivity, ApiRequest, JobLog, MessageEvent, SystemEvent)}
for name, values in given.items():
    log.warning(kinds[name](**values))
    log.info(f"about {name}", extra={"logsluice": kinds[name](**values), "more": [1, 2]})
try:
    raise LookupError("no model")
except LookupError as exc:
    log.exception(Activity(activity_type="llm_error", error=exc))
"""
)
JOB = str(uuid.uuid4())
GIVEN = {
    "Activity": {
        "activity_type": "message_sent", "activity_status": "warning", "session_id": "s-1", "user_id": "u-2",
        "document_id": "d-1", "message_content": "what\tis\\it?\n", "response_content": "it is é", "token_count": 812,
        "retrieval_skipped": False, "similarity_score": 0.83, "processing_time_ms": 12.5, "llm_call_duration_ms": 10.0,
        "retrieval_duration_ms": 2.25, "error_message": "em", "error_type": "et", "user_agent": "ua",
        "ip_address": "127.0.0.1",
    },
    "AdminActivity": {
        "admin_id": "a-1", "action": "update", "resource_type": "user", "resource_id": "7",
        "changes": {"name": ["a", "b"], "deep": {"x": None}}, "ip_address": "::1",
    },
    "ApiRequest": {
        "method": "POST", "path": "/orders/17", "route": "/orders/{id}", "status": 500, "duration_ms": 1.5,
        "client_ip": "::1", "request_bytes": 10, "response_bytes": 20, "user_agent": "ua", "request_body": "{}",
        "error": "ValueError: x",
    },
    "JobLog": {
        "log_type": "sync_job", "message": "begun", "job_id": JOB, "user_did": "did:plc:x", "slice_uri": "at://x",
        "level": 40, "metadata": {"pages": [1, 2]},
    },
    "MessageEvent": {
        "job_id": "j-1", "channel": "email", "status": "queued", "recipient_email": "a@example.org",
        "recipient_phone": "+49", "recipient_name": "A", "template_id": "t", "template_name": "tn", "subject": "s",
        "attempts": 2, "priority": 3, "message_id": "m", "error_message": "e",
    },
    "SystemEvent": {"message": "disk nearly full", "level": 50, "metadata": {"free": 0.01}},
}  # fmt: skip
TABLES = {
    "Activity": "activity", "AdminActivity": "admin_activity", "ApiRequest": "api_request", "JobLog": "job_log",
    "MessageEvent": "message_event", "SystemEvent": "system_event",
}  # fmt: skip
CONTEXT = {
    "service": "shop", "logger": "shop", "organization_id": "o-1", "correlation_id": "c-1", "trace_id": "a" * 32,
    "span_id": "b" * 16,
}  # fmt: skip


@pytest.fixture
def conn(dsn):
    with psycopg.connect(dsn, autocommit=True, row_factory=psycopg.rows.dict_row) as conn:
        yield conn


def tables(conn):
    return {row["name"] for row in conn.execute(
        "SELECT relname AS name FROM pg_class WHERE relnamespace = 'logsluice'::regnamespace "
        "AND relkind IN ('r', 'p') AND NOT relispartition"
    )}  # fmt: skip


def test_each_is_filled_column_by_column(dsn, conn):
    program = run_program(PROGRAM, env={"SHOP_DSN": dsn, "GIVEN": json.dumps(GIVEN)}, timeout=60)
    assert program.returncode == 0, program.stderr
    for name, given in GIVEN.items():
        first, second, *rest = conn.execute(f"SELECT * FROM logsluice.{TABLES[name]} ORDER BY seq").fetchall()
        values = {**given, "job_id": uuid.UUID(JOB)} if name == "JobLog" else given
        for row, level in ((first, 30), (second, 20)):
            assert row.pop("ts") is not None
            assert row.pop("stream") > 0
            assert row.pop("seq") > 0
            attributes = row.pop("attributes")
            assert row == {"level": level, "user_id": "u-1", **CONTEXT, **values}, name
            assert attributes.pop("tenant") == 7
            if row is second and name not in {"JobLog", "SystemEvent"}:  # these have a column for it
                assert attributes.pop("message") == f"about {name}"
            assert attributes == ({} if row is first else {"more": [1, 2]}), name
        assert len(rest) == (name == "Activity")
    (failed,) = conn.execute("SELECT * FROM logsluice.activity WHERE activity_type = 'llm_error'").fetchall()
    assert (failed["error_message"], failed["error_type"]) == ("no model", "LookupError")
    assert (failed["activity_status"], failed["level"], failed["user_id"]) == ("error", 40, "u-1")
    assert "LookupError: no model" in failed["attributes"]["exc_text"]
    assert conn.execute("SELECT count(*) AS n FROM logsluice.logs").fetchone() == {"n": 0}
    indexes = {row["indexname"] for row in conn.execute(
        "SELECT indexname FROM pg_indexes WHERE schemaname = 'logsluice' AND tablename = ANY(%s)", [list(TABLES.values())]
    )}  # fmt: skip
    assert {"activity_user_id_session_id_ts", "job_log_slice_uri_ts", "system_event_level_ts"} <= indexes


def test_a_plain_program_has_the_five_tables_alone(dsn, conn):
    program = run_program(BEGIN + "import logsluice.contrib\nlog.info('hello')\n", env={"SHOP_DSN": dsn}, timeout=60)
    assert program.returncode == 0, program.stderr
    assert conn.execute("SELECT message FROM logsluice.logs").fetchone() == {"message": "hello"}
    assert tables(conn) == {"logs", "stream", "dead_letter", "hold", "version"}
