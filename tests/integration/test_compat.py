"""`logsluice migrate --compat`: each view column by column, as a reader with no right but on the views."""

from __future__ import annotations

import uuid
from datetime import datetime, timedelta, timezone

import psycopg
import pytest
from psycopg.types.json import Jsonb

from logsluice import schema
from logsluice.cli import main

NOW = datetime.now(timezone.utc).replace(microsecond=123456)
VIEWS = ("log_entry", "activity_logs", "api_logs", "message_logs", "system_logs", "admin_activity_logs", "job_logs")
TABLES = ("activity", "admin_activity", "api_request", "job_log", "message_event", "system_event")
STREAM, SEQ = 0x1234, 7
ID = uuid.UUID("00000000-0000-1234-0000-000000000007")
LEVELS = {
    0: "trace",
    5: "trace",
    10: "debug",
    20: "info",
    25: "info",
    30: "warn",
    40: "error",
    50: "critical",
    99: "critical",
}


def connect(dsn):
    return psycopg.connect(dsn, autocommit=True, row_factory=psycopg.rows.dict_row)


@pytest.fixture
def conn(empty_dsn):
    """A database with the views, all tables without partitions."""
    assert main(["migrate", "--dsn", empty_dsn, "--compat", "--partition", "none"]) == 0
    with connect(empty_dsn) as conn:
        yield conn


def put(conn, table, **values):
    values = {"ts": NOW, "level": 20, "stream": STREAM, "seq": SEQ, **values}
    names = ", ".join(f'"{name}"' for name in values)
    marks = ", ".join(["%s"] * len(values))
    given = [Jsonb(value) if isinstance(value, dict) else value for value in values.values()]
    conn.execute(f"INSERT INTO logsluice.{table} ({names}) VALUES ({marks})", given)


def read(conn, view, order="1"):
    return conn.execute(f"SELECT * FROM logsluice.{view} ORDER BY {order}").fetchall()


def test_log_entry(conn):
    ids = {"trace_id": "a" * 32, "span_id": "b" * 16, "correlation_id": "c", "user_id": "u", "organization_id": "o"}
    attributes = {"module": "billing", "component": "cards", "operation": "charge", "amount": 3}
    put(
        conn, "logs", level=40, service="shop", logger="shop.pay", message="refused", func="pay", attributes=attributes,
        exc_type="ValueError", exc_message="no card", exc_text="Traceback", **ids,
    )  # fmt: skip
    (row,) = read(conn, "log_entry")
    assert list(row) == [
        "id", "timestamp", "level", "service", "module", "operation", "message", "trace_id", "span_id", "correlation_id",
        "user_id", "organization_id", "metadata", "error_details",
    ]  # fmt: skip
    assert row == {
        "id": ID, "timestamp": NOW, "level": "error", "service": "shop", "module": "billing", "operation": "charge",
        "message": "refused", **ids, "metadata": {"component": "cards", "amount": 3},
        "error_details": {"type": "ValueError", "message": "no card", "stack": "Traceback"},
    }  # fmt: skip


def test_log_entry_without_what_it_asks_for(conn):
    put(conn, "logs", seq=-2)
    put(conn, "logs", ts=NOW + timedelta(seconds=1), logger="shop.pay", func="pay", attributes={"component": ""})
    put(conn, "logs", ts=NOW + timedelta(seconds=2), logger="shop.pay", attributes={"component": "cards"})
    bare, logged, component = read(conn, "log_entry", "timestamp")
    assert bare["id"] == uuid.UUID("00000000-0000-1234-ffff-fffffffffffe")
    assert [bare[name] for name in ("service", "module", "operation", "message")] == ["-"] * 4
    assert (bare["metadata"], bare["error_details"], bare["user_id"]) == ({}, None, None)
    assert (logged["module"], logged["operation"]) == ("shop.pay", "pay")
    assert component["module"] == "cards"


def test_an_operation_is_the_spans_name_where_none_is_given(conn):
    ids = {"trace_id": "a" * 32, "span_id": "b" * 16}
    put(conn, "spans", name="charge", started=NOW, ended=NOW, status="ok", **ids)
    put(conn, "logs", func="pay", **ids)
    put(conn, "logs", ts=NOW + timedelta(seconds=1), func="pay", attributes={"operation": "refund"}, **ids)
    put(conn, "logs", ts=NOW + timedelta(seconds=2), func="pay", trace_id="a" * 32, span_id="c" * 16)
    assert [row["operation"] for row in read(conn, "log_entry", "timestamp")] == ["charge", "refund", "pay"]


def test_levels_by_their_names(conn):
    for number in LEVELS:
        put(conn, "logs", level=number, seq=number)
        put(conn, "system_event", level=number, seq=number, message="m")
        put(conn, "job_log", level=number, seq=number, message="m", log_type="system")
    for view in ("log_entry", "system_logs", "job_logs"):
        assert {row["id"].int & 0xFFFF: row["level"] for row in read(conn, view)} == LEVELS


def test_activity_logs(conn):
    values = {
        "session_id": "s", "user_id": "u", "activity_type": "llm_error", "activity_status": "error", "document_id": "d",
        "message_content": "mc", "response_content": "rc", "token_count": 3, "retrieval_skipped": True,
        "similarity_score": 0.5, "processing_time_ms": 1.5, "llm_call_duration_ms": 2.5, "retrieval_duration_ms": 3.5,
        "error_message": "em", "error_type": "et", "user_agent": "ua", "ip_address": "127.0.0.1",
    }  # fmt: skip
    put(conn, "activity", **values)
    (row,) = read(conn, "activity_logs")
    assert row == {"id": ID, "created_at": NOW, **values}


def test_api_logs(conn):
    put(
        conn, "api_request", method="POST", path="/orders/17", route="/orders/{id}", status=500, duration_ms=1.5,
        client_ip="::1", request_bytes=10, response_bytes=20, user_agent="ua", request_body="{}", error="ValueError: x",
    )  # fmt: skip
    (row,) = read(conn, "api_logs")
    assert list(row.items()) == [
        ("endpoint", "/orders/17"), ("method", "POST"), ("ip_address", "::1"), ("request_body", "{}"),
        ("response_status", 500), ("response_time_ms", 1.5), ("error_message", "ValueError: x"), ("created_at", NOW),
    ]  # fmt: skip


def test_message_logs_folds_the_events_of_a_job(conn):
    whom = {
        "recipient_email": "a@example.org", "recipient_phone": "+49", "recipient_name": "A", "template_id": "t",
        "template_name": "tn", "subject": "s",
    }  # fmt: skip
    step = {"job_id": "j", "channel": "email", "priority": 2}
    put(conn, "message_event", **step, **whom, status="queued", attempts=1)
    put(
        conn,
        "message_event",
        **step,
        ts=NOW + timedelta(seconds=1),
        seq=8,
        status="failed",
        attempts=1,
        error_message="e",
    )
    put(conn, "message_event", **step, ts=NOW + timedelta(seconds=2), seq=9, status="sent", attempts=2, message_id="m")
    put(conn, "message_event", job_id="k", channel="whatsapp", status="queued", attempts=1, priority=1, seq=10)
    first, second = read(conn, "message_logs")
    assert first == {
        "job_id": "j", "channel": "email", **whom, "status": "sent", "attempts": 2, "priority": 2, "message_id": "m",
        "error_message": None, "created_at": NOW, "updated_at": NOW + timedelta(seconds=2),
    }  # fmt: skip
    assert (second["job_id"], second["created_at"], second["updated_at"]) == ("k", NOW, NOW)
    conn.execute("SET enable_seqscan = off")
    plan = str(conn.execute("EXPLAIN SELECT * FROM logsluice.message_logs WHERE job_id = 'j'").fetchall())
    assert "message_event_job_id" in plan


def test_system_admin_and_job_logs(conn):
    job = uuid.uuid4()
    put(conn, "system_event", level=30, message="m", metadata={"a": 1})
    admin = {
        "admin_id": "a",
        "action": "update",
        "resource_type": "user",
        "resource_id": "7",
        "changes": {"n": [1, 2]},
        "ip_address": "::1",
    }
    put(conn, "admin_activity", **admin)
    put(
        conn,
        "job_log",
        log_type="sync_job",
        job_id=job,
        user_did="did:x",
        slice_uri="at://x",
        message="m",
        metadata={"a": 1},
    )
    assert read(conn, "system_logs") == [
        {"id": ID, "created_at": NOW, "level": "warn", "message": "m", "metadata": {"a": 1}}
    ]
    assert read(conn, "admin_activity_logs") == [{"id": ID, "created_at": NOW, **admin}]
    (row,) = read(conn, "job_logs")
    assert list(row.items()) == [
        ("id", ID), ("created_at", NOW), ("log_type", "sync_job"), ("job_id", job), ("user_did", "did:x"),
        ("slice_uri", "at://x"), ("level", "info"), ("message", "m"), ("metadata", {"a": 1}),
    ]  # fmt: skip


def test_a_reader_needs_the_views_alone_and_keeps_them(conn, empty_dsn):
    name = f"reader_{conn.info.dbname}"
    conn.execute(f"CREATE ROLE {name}; GRANT USAGE ON SCHEMA logsluice TO {name}")
    try:
        for view in VIEWS:
            conn.execute(f"GRANT SELECT ON logsluice.{view} TO {name}")
        put(conn, "logs")
        assert main(["migrate", "--dsn", empty_dsn, "--compat", "--partition", "none"]) == 0  # again: the grants stay
        with connect(psycopg.conninfo.make_conninfo(empty_dsn, options=f"-c role={name}")) as reader:
            assert [len(read(reader, view)) for view in VIEWS] == [1, 0, 0, 0, 0, 0, 0]
            for table in ("logs", *TABLES):
                with pytest.raises(psycopg.errors.InsufficientPrivilege):
                    reader.execute(f"SELECT 1 FROM logsluice.{table}")
    finally:
        conn.execute(f"DROP OWNED BY {name}; DROP ROLE {name}")


def relations(conn):
    return {
        row["name"]: row["kind"]
        for row in conn.execute(
            "SELECT relname AS name, relkind::text AS kind FROM pg_class "
            "WHERE relnamespace = 'logsluice'::regnamespace AND relkind IN ('r', 'p', 'v') AND NOT relispartition"
        )
    }


def test_every_column_of_the_tables_has_a_comment(conn):
    bare = conn.execute(
        "SELECT c.relname, a.attname FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 "
        "WHERE c.relnamespace = 'logsluice'::regnamespace AND c.relkind IN ('r', 'p') "
        "AND col_description(c.oid, a.attnum) IS NULL"
    ).fetchall()
    assert bare == []


def test_what_is_printed_makes_the_same(dsn, empty_dsn, capsys):
    assert main(["migrate", "--sql", "--compat", "--grant-to", "CURRENT"]) == 0
    printed = capsys.readouterr().out.replace('"CURRENT"', "CURRENT_USER")
    with connect(empty_dsn) as conn:
        conn.execute(printed)
        made = relations(conn)
        assert {name: made[name] for name in (*VIEWS, *TABLES)} == {
            **dict.fromkeys(VIEWS, "v"),
            **dict.fromkeys(TABLES, "p"),
        }
    # On a database that has the rest: the views alone.
    newest = schema.sql_files()[-1].number
    assert main(["migrate", "--sql", "--compat", "--after", str(newest)]) == 0
    with connect(dsn) as conn:
        conn.execute(capsys.readouterr().out)
        assert relations(conn) == made
    assert main(["migrate", "--dsn", empty_dsn, "--compat"]) == 0
    assert "made the views of --compat" in capsys.readouterr().out


def test_a_role_that_may_not_is_told_what_the_owner_runs(dsn, capsys):
    with connect(dsn) as conn:
        name = f"nobody_{conn.info.dbname}"
        conn.execute(f"CREATE ROLE {name}; GRANT USAGE ON SCHEMA logsluice TO {name}")
        conn.execute(f"GRANT SELECT ON logsluice.version TO {name}")
        try:
            denied = psycopg.conninfo.make_conninfo(dsn, options=f"-c role={name}")
            assert main(["migrate", "--dsn", denied, "--compat"]) == 1
        finally:
            conn.execute(f"DROP OWNED BY {name}; DROP ROLE {name}")
        said = capsys.readouterr().err
        newest = schema.sql_files()[-1].number
        assert f"run the output of `logsluice migrate --sql --after {newest} --compat`" in said
        # All or nothing: the tables without the views would be a riddle.
        assert not {*VIEWS, *TABLES} & relations(conn).keys()


def test_another_schema_and_no_compat_without_asking(empty_dsn, dsn):
    assert main(["migrate", "--dsn", empty_dsn, "--schema", "Other", "--compat"]) == 0
    with connect(empty_dsn) as conn:
        assert conn.execute('SELECT count(*) AS n FROM "Other".job_logs').fetchone() == {"n": 0}
    with connect(dsn) as conn:
        assert not {*VIEWS, *TABLES} & relations(conn).keys()
