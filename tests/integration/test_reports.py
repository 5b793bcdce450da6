"""`logsluice.reports` on rows whose figures were counted by hand, on a real server."""

from __future__ import annotations

import dataclasses
import inspect
from datetime import datetime, timedelta, timezone

import psycopg
import pytest

from logsluice import contrib, reports, schema
from logsluice.errors import ConfigError, LogsluiceError
from logsluice.reports import Scope
from logsluice.tracing import SpanRow

NOON = datetime.now(timezone.utc).replace(hour=12, minute=0, second=0, microsecond=0) - timedelta(days=1)
MINUTE = timedelta(minutes=1)
HOUR = Scope(NOON, NOON + 60 * MINUTE)
SHOP = dataclasses.replace(HOUR, service="shop")
TYPES = [contrib.Activity, contrib.ApiRequest, contrib.JobLog, contrib.MessageEvent, contrib.SystemEvent, SpanRow]


@pytest.fixture
def conn(dsn):
    with psycopg.connect(dsn, autocommit=True) as conn:
        conn.execute("SELECT logsluice.make_partitions(%s, %s)", [NOON - timedelta(days=1), NOON + timedelta(days=1)])
        yield conn


@pytest.fixture
def typed(conn):
    """The connection, with all typed tables there."""
    for kind in TYPES:
        conn.execute(kind.__logtype__.ddl(partition="none"))
    return conn


def add(conn, table, *rows, **common):
    """Store rows: each (minutes after noon, columns)."""
    for number, (minutes, values) in enumerate(rows):
        row = {"ts": NOON + minutes * MINUTE, "stream": 1, "seq": number, "service": "shop", **common, **values}
        marks = ", ".join(f"%({name})s" for name in row)
        conn.execute(f"INSERT INTO logsluice.{table} ({', '.join(row)}) VALUES ({marks})", row)


def test_levels_and_the_error_rate_by_time(conn):
    add(
        conn, "logs",
        (0, {"level": 20}), (1, {"level": 20}), (9.99, {"level": 40}), (10, {"level": 50}), (25, {"level": 35}),
        (60, {"level": 20}), (-0.01, {"level": 20}), (0, {"level": 40, "service": "other"}),
    )  # fmt: skip
    found = reports.levels(conn, SHOP, 10 * MINUTE)
    assert [one.counts for one in found] == [{20: 2, 40: 1}, {50: 1}, {35: 1}, {}, {}, {}]
    assert [one.at for one in found] == [NOON + n * 10 * MINUTE for n in range(6)]
    assert [(one.records, one.errors) for one in found[:3]] == [(3, 1), (1, 1), (1, 0)]
    rates = reports.error_rate(conn, HOUR, 10 * MINUTE)
    assert [(one.records, one.errors, one.error_percent) for one in rates[:4]] == [
        (4, 2, 50.0), (1, 1, 100.0), (1, 0, 0.0), (0, 0, None),
    ]  # fmt: skip


def test_buckets_begin_at_whole_multiples_whatever_the_session_thinks(conn):
    add(conn, "logs", (3, {"level": 20}))
    conn.execute("SET timezone = 'Asia/Kathmandu'")  # 5 h 45 min ahead
    odd = Scope(NOON + 2 * MINUTE, NOON + 14 * MINUTE)
    assert [(one.at, one.records) for one in reports.levels(conn, odd, 10 * MINUTE)] == [
        (NOON, 1), (NOON + 10 * MINUTE, 0),
    ]  # fmt: skip
    week = reports.levels(conn, HOUR, timedelta(days=7))
    assert {one.at.weekday() for one in week} == {0}
    assert sum(one.records for one in week) == 1


def test_services_and_loggers(conn):
    add(
        conn, "logs",
        (0, {"level": 20, "logger": "a"}), (1, {"level": 30, "logger": "a"}), (2, {"level": 39, "logger": "b"}),
        (3, {"level": 40, "logger": "a"}), (4, {"level": 20, "logger": None, "service": "other"}),
    )  # fmt: skip
    assert [dataclasses.astuple(one) for one in reports.services(conn, HOUR)] == [
        ("shop", 4, 1, 2, 25.0, NOON + 3 * MINUTE), ("other", 1, 0, 0, 0.0, NOON + 4 * MINUTE),
    ]  # fmt: skip
    assert [dataclasses.astuple(one) for one in reports.loggers(conn, HOUR)] == [
        ("a", 3, 1, 1, NOON + 3 * MINUTE), ("b", 1, 0, 1, NOON + 2 * MINUTE), (None, 1, 0, 0, NOON + 4 * MINUTE),
    ]  # fmt: skip
    assert [one.logger for one in reports.loggers(conn, HOUR, limit=1)] == ["a"]


def test_messages_by_template(conn):
    paid = {"level": 20, "logger": "a", "template": "order %s paid"}
    add(
        conn, "logs",
        (0, {**paid, "message": "order 1 paid"}), (2, {**paid, "message": "order 2 paid", "level": 30}),
        (1, {"level": 20, "logger": "a", "message": "up"}), (3, {"level": 20, "logger": "a"}),
    )  # fmt: skip
    first, *rest = reports.messages(conn, HOUR)
    assert dataclasses.astuple(first) == ("order %s paid", 30, "a", 2, NOON, NOON + 2 * MINUTE, "order 2 paid")
    assert sorted((one.template, one.records) for one in rest) == [("", 1), ("up", 1)]


@pytest.mark.parametrize(
    ("text", "pattern"),
    [
        ("order 17 not found", "order # not found"),
        ("took 1.25 s at 10.0.0.7:5432", "took # s at #"),
        ("job 550e8400-e29b-41d4-a716-446655440000 died", "job <id> died"),
        ("trace 0af7651916cd43dd8448eb211c80319c", "trace <id>"),
        ("<Shop object at 0x7f3a9c>", "<Shop object at <id>>"),
        ("token a1b2c3d4e5f6g7h8i9j0k refused", "token <id> refused"),
        ("no mailbox ada@example.org", "no mailbox <email>"),
        ("u-7 and user17", "u-# and user#"),
        ("a facade of deadbeef", "a facade of deadbeef"),
        ("a_very_long_name_without_a_number failed", "a_very_long_name_without_a_number failed"),
        ("first 1\nsecond 2", "first #"),
        ("x" * 400, "x" * 300),
        ("100 %s (done)", "# %s (done)"),
    ],
)  # fmt: skip
def test_what_is_folded(conn, text, pattern):
    add(conn, "logs", (0, {"level": 40, "message": text}))
    (one,) = reports.errors(conn, HOUR)
    assert (one.pattern, one.example) == (pattern, text)


def test_errors_of_all_tables(typed):
    add(
        typed, "logs",
        (0, {"level": 40, "message": "order 1 lost", "exc_type": "KeyError"}),
        (5, {"level": 50, "message": "order 22 lost", "exc_type": "KeyError"}),
        (6, {"level": 40, "message": "order 3 lost", "exc_type": "ValueError"}),
        (7, {"level": 30, "message": "order 4 lost", "exc_type": "KeyError"}),
    )  # fmt: skip
    add(typed, "activity", (1, {"error_message": "no answer in 30 s", "error_type": "TimeoutError"}),
        (2, {"error_message": None}), activity_type="llm_error", activity_status="error")  # fmt: skip
    add(typed, "message_event", (3, {"status": "failed", "error_message": "mailbox 7 full"}), (3, {"status": "sent"}),
        job_id="1", channel="email", attempts=1, priority=1)  # fmt: skip
    add(typed, "api_request", (4, {"error": "ValueError: 9"}), (4, {"error": None}), method="GET", path="/")
    add(typed, "job_log", (8, {"level": 40}), (8, {"level": 20}), log_type="system", message="job 5 died")
    add(typed, "system_event", (9, {"level": 40}), (9, {"level": None}), message="disk 2 full")
    first, *rest = reports.errors(typed, HOUR)
    assert dataclasses.astuple(first) == (
        "order # lost", "logs", "KeyError", 2, NOON, NOON + 5 * MINUTE, "order 22 lost",
    )  # fmt: skip
    assert [(one.source, one.pattern, one.error_type, one.records) for one in rest] == [
        ("system_event", "disk # full", None, 1),
        ("job_log", "job # died", None, 1),
        ("logs", "order # lost", "ValueError", 1),
        ("api_request", "ValueError: #", None, 1),
        ("message_event", "mailbox # full", None, 1),
        ("activity", "llm_error", None, 1),
        ("activity", "no answer in # s", "TimeoutError", 1),
    ]
    assert len(reports.errors(typed, HOUR, limit=3)) == 3


def test_durations(typed):
    # 1..101 ms: p50 is 51, p95 is 1 + 0.95 * 100 = 96, p99 is 100.
    add(typed, "api_request", *((0, {"duration_ms": float(n)}) for n in range(1, 102)), (0, {"duration_ms": None}),
        method="GET", path="/", status=200)  # fmt: skip
    add(typed, "activity", (0, {"llm_call_duration_ms": 10.0, "retrieval_duration_ms": 4.0, "processing_time_ms": 20.0}),
        (0, {"llm_call_duration_ms": 20.0}), activity_type="message_sent", activity_status="success")  # fmt: skip
    for name, ms in (("charge", 1500), ("charge", 500), ("mail", 3000)):
        add(typed, "spans", (0, {"ended": NOON + timedelta(milliseconds=ms), "name": name}),
            trace_id="1", span_id="1", started=NOON, status="ok")  # fmt: skip
    found = {(one.kind, one.name): dataclasses.astuple(one)[2:] for one in reports.durations(typed, HOUR)}
    assert found.pop(("request", None)) == pytest.approx((101, 51, 101, 51, 96, 100))
    assert found.pop(("llm call", None)) == pytest.approx((2, 15, 20, 15, 19.5, 19.9))
    assert found.pop(("retrieval", None)) == pytest.approx((1, 4, 4, 4, 4, 4))
    assert found.pop(("processing", None)) == pytest.approx((1, 20, 20, 20, 20, 20))
    assert list(found) == [("span", "mail"), ("span", "charge")]
    assert found["span", "charge"] == pytest.approx((2, 1000, 1500, 1000, 1450, 1490))


def test_requests_by_service_and_period_and_the_slowest_endpoints(typed):
    asked = {"method": "GET", "path": "/orders/7", "route": "/orders/{id}", "status": 200}
    add(
        typed, "api_request",
        (0, {**asked, "duration_ms": 10.0}), (1, {**asked, "duration_ms": 30.0, "status": 500}),
        (2, {**asked, "duration_ms": 20.0, "status": 404}), (3, {**asked, "duration_ms": None, "status": None}),
        (31, {**asked, "method": "POST", "route": None, "path": "/login", "duration_ms": 100.0}),
        (31, {**asked, "service": "other", "duration_ms": None}),
    )  # fmt: skip
    first, other, second = reports.requests(typed, HOUR, 30 * MINUTE)
    assert (first.service, first.at) == ("shop", NOON)
    assert dataclasses.astuple(first)[2:] == pytest.approx((4, 2, 50.0, 20, 30, 20, 29, 29.8))
    assert dataclasses.astuple(other) == ("other", NOON + 30 * MINUTE, 1, 0, 0.0, None, None, None, None, None)
    assert (second.requests, second.avg_ms) == (1, 100.0)
    assert [(one.method, one.route, one.requests, one.errors, one.p95_ms) for one in reports.endpoints(typed, HOUR)] == [
        ("POST", "/login", 1, 0, 100.0), ("GET", "/orders/{id}", 5, 2, 29.0),
    ]  # fmt: skip


def test_messages_by_channel(typed):
    def event(minutes, job, status, channel="email"):
        return minutes, {"job_id": job, "status": status, "channel": channel}

    add(
        typed, "message_event",
        event(-5, "1", "queued"), event(1, "1", "processing"), event(2, "1", "failed"), event(3, "1", "processing"),
        event(4, "1", "sent"),  # a second attempt
        event(5, "2", "queued"), event(6, "2", "processing"), event(8, "2", "sent"),
        event(5, "3", "queued"), event(6, "3", "failed"),
        event(7, "4", "queued", "whatsapp"),
        event(59, "5", "queued"), event(61, "5", "sent"),  # after the scope
        event(-9, "6", "sent"),  # before it
        attempts=1, priority=1,
    )  # fmt: skip
    assert [dataclasses.astuple(one) for one in reports.channels(typed, HOUR)] == [
        ("email", 4, 2, 1, 1, pytest.approx(100 * 2 / 3)), ("whatsapp", 1, 0, 0, 1, None),
    ]  # fmt: skip
    found = {one.stage: (one.channel, one.measured, one.avg_ms, one.max_ms) for one in reports.deliveries(typed, HOUR)}
    assert found == {
        "queued to processing": ("email", 2, 210_000.0, 360_000.0),  # 6 and 1 minutes
        "processing to sent": ("email", 2, 150_000.0, 180_000.0),  # 3 and 2
        "queued to sent": ("email", 2, 360_000.0, 540_000.0),  # 9 and 3
    }
    assert [(one.job_id, one.ts) for one in reports.failed_messages(typed, HOUR)] == [
        ("3", NOON + 6 * MINUTE), ("1", NOON + 2 * MINUTE),
    ]  # fmt: skip


def test_users_and_sessions(typed):
    add(
        typed, "activity",
        (0, {"user_id": "ada", "session_id": "s1", "token_count": 10}),
        (1, {"user_id": "ada", "session_id": "s1", "token_count": 5, "activity_status": "error"}),
        (2, {"user_id": "ada", "session_id": "s2", "activity_status": "warning"}),
        (3, {"user_id": None, "session_id": "s2"}),
        activity_type="message_sent", activity_status="success",
    )  # fmt: skip
    assert [dataclasses.astuple(one) for one in reports.users(typed, HOUR)] == [
        ("ada", 2, 3, 1, 1, 15, NOON, NOON + 2 * MINUTE), (None, 1, 1, 0, 0, 0, NOON + 3 * MINUTE, NOON + 3 * MINUTE),
    ]  # fmt: skip
    assert [dataclasses.astuple(one) for one in reports.sessions(typed, HOUR)] == [
        ("s1", "ada", 2, 1, 0, 15, NOON, NOON + 1 * MINUTE),
        ("s2", "ada", 2, 0, 1, 0, NOON + 2 * MINUTE, NOON + 3 * MINUTE),
    ]


def test_volume_sizes_and_streams(conn):
    add(
        conn, "logs", (0, {"level": 20, "message": "é" * 10}),
        (1, {"level": 20, "message": "x", "exc_text": "yy", "attributes": "{}"}),
    )  # fmt: skip
    assert [dataclasses.astuple(one) for one in reports.volume(conn, HOUR)] == [("shop", 2, 2 / 3600, 25, 12.5)]
    conn.execute(contrib.JobLog.__logtype__.ddl(partition="none"))
    conn.execute("ANALYZE logsluice.logs")
    sizes = {one.table: one for one in reports.tables(conn, HOUR)}
    assert {"logs", "stream", "dead_letter", "hold", "version", "job_log"} == set(sizes)
    logs, job_log = sizes["logs"], sizes["job_log"]
    (parts,) = conn.execute("SELECT count(*) FROM pg_inherits WHERE inhparent = 'logsluice.logs'::regclass").fetchone()
    assert (logs.partitions, logs.rows, job_log.partitions) == (parts, 2, 0)
    assert logs.total_bytes == logs.table_bytes + logs.index_bytes > job_log.total_bytes > 0

    for stream, minutes in ((7, 5), (8, 10), (9, 70)):
        conn.execute(
            "INSERT INTO logsluice.stream (stream, service, offered, stored, dropped, dead, position, updated) "
            "VALUES (%s, 'shop', 9, 6, 2, 1, 77, %s)", [stream, NOON + minutes * MINUTE],
        )  # fmt: skip
    found = reports.streams(conn, SHOP)
    assert [one.stream for one in found] == [8, 7]
    assert (found[0].offered, found[0].stored, found[0].dropped, found[0].dead, found[0].position) == (9, 6, 2, 1, 77)


EVERY = {"levels", "error_rate", "requests"}  # reports that ask for a width
TYPED = ["channels", "deliveries", "durations", "endpoints", "failed_messages", "requests", "sessions", "users"]
ALL = sorted(
    name for name in reports.__all__
    if inspect.isfunction(getattr(reports, name)) and name != "snapshot"
)  # fmt: skip


def asked(name, where, scope):
    return getattr(reports, name)(where, scope, *([10 * MINUTE] if name in EVERY else []))


def test_without_typed_tables_and_without_rows(dsn, conn):
    for name in ALL:
        found = asked(name, dsn, HOUR)  # a string, too
        if name in {"levels", "error_rate"}:
            assert sum(one.records for one in found) == 0
        elif name == "tables":
            assert found
        else:
            assert found == [], name
    assert set(TYPED) < set(ALL)


def test_a_wrong_schema_is_no_empty_one(conn):
    for name in ALL:
        with pytest.raises(LogsluiceError, match=r'there is no table "nowhere"."logs" in database'):
            asked(name, conn, dataclasses.replace(HOUR, schema="nowhere"))


def test_values_are_values(typed):
    hostile = "'; DROP TABLE logsluice.logs; --%s%%"
    for name in ALL:
        if name != "tables":
            asked(name, typed, dataclasses.replace(HOUR, service=hostile))
    add(typed, "logs", (0, {"level": 40, "message": hostile, "service": hostile, "logger": hostile}))
    assert reports.services(typed, dataclasses.replace(HOUR, service=hostile))[0].service == hostile


def test_another_schema_and_a_reader_with_select_alone(empty_dsn):
    with psycopg.connect(empty_dsn, autocommit=True) as conn:
        schema.migrate(conn, 'odd "name')
        reader = f"reader_{conn.info.dbname}"
        conn.execute(f"CREATE ROLE {reader}")
        conn.execute(f'GRANT USAGE ON SCHEMA "odd ""name" TO {reader}')
        conn.execute(f'GRANT SELECT ON ALL TABLES IN SCHEMA "odd ""name" TO {reader}')
        try:
            conn.execute(f"SET ROLE {reader}")
            for name in ALL:
                asked(name, conn, dataclasses.replace(HOUR, schema='odd "name'))
        finally:
            conn.execute("RESET ROLE")
            conn.execute(f"DROP OWNED BY {reader}; DROP ROLE {reader}")


def test_a_snapshot_sees_the_same_rows_and_writes_nothing(dsn, conn):
    with reports.snapshot(dsn, timeout=60) as seen:
        assert reports.services(seen, HOUR) == []
        add(conn, "logs", (0, {"level": 20}))
        assert reports.services(seen, HOUR) == []
        assert seen.execute("SHOW statement_timeout").fetchone() == ("1min",)
        with pytest.raises(psycopg.errors.ReadOnlySqlTransaction):
            add(seen, "logs", (0, {"level": 20}))
    assert len(reports.services(conn, HOUR)) == 1
    with reports.snapshot(conn):
        pass
    assert conn.execute("SHOW default_transaction_read_only").fetchone() == ("off",)


def test_what_cannot_be_asked():
    with pytest.raises(ConfigError, match="since has no time zone"):
        Scope(datetime(2026, 1, 1), NOON)
    with pytest.raises(ConfigError, match="must be before until"):
        Scope(NOON, NOON)
    with pytest.raises(ConfigError, match="every must be more than nothing"):
        HOUR.buckets(timedelta(0))
    with pytest.raises(ConfigError, match="more than 10,000: widen them"):
        HOUR.buckets(timedelta(milliseconds=1))
    assert Scope.last(60 * MINUTE, now=HOUR.until) == HOUR
