"""Spans as rows, one trace as a tree: by SQL, by Python, on the command line. On a real server."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from concurrent.futures import ThreadPoolExecutor

import psycopg
import pytest
from psycopg.rows import dict_row

from logsluice import PostgresHandler, context, extract, inject, schema, span, start_span, trace, traces
from logsluice.cli import main
from logsluice.errors import LogsluiceError
from support.howto import Page, environment

STORED_SECONDS = 30  # a moment as a rule; a busy machine may take its time
ONE, TWO, THREE = "1" * 16, "2" * 16, "3" * 16
TRACE = "0af7651916cd43dd8448eb211c80319c"


@pytest.fixture
def log(dsn):
    """A logger whose records, and the process's spans, are in the database once its handler was flushed."""
    logger = logging.getLogger("shop.orders")
    handler = PostgresHandler(dsn=dsn, service="shop")
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    logger.propagate = False
    context.clear()
    yield logger
    context.clear()
    logger.removeHandler(handler)
    logger.propagate = True
    handler.close()


@pytest.fixture
def spans(dsn, log):
    """What is stored, as dicts by name."""

    def read():
        assert log.handlers[0].flush(STORED_SECONDS)
        with psycopg.connect(dsn, row_factory=dict_row) as conn:
            return {row["name"]: row for row in conn.execute("SELECT * FROM logsluice.spans ORDER BY ts")}

    return read


def shape(inner):
    """A tree as nested lists of names and messages."""
    return [[one.name, *shape(one)] if isinstance(one, traces.StoredSpan) else one.message for one in inner.items]


def test_a_span_is_a_row_when_it_ends(log, spans):
    error = ValueError("no card")
    with (
        context.bound(tenant="north", user_id="ada"),
        contextlib.suppress(ValueError),
        trace("checkout", customer=7, name="x", password="hunter2") as t,
    ):
        with span("charge"):
            log.info("inside")
        raise error
    found = spans()
    checkout, charge = found["checkout"], found["charge"]
    assert (checkout["trace_id"], checkout["span_id"], checkout["parent_id"]) == (t.trace_id, t.span_id, None)
    assert (charge["parent_id"], charge["status"], charge["service"], charge["level"]) == (t.span_id, "ok", "shop", 20)
    assert (checkout["status"], checkout["level"], checkout["user_id"]) == ("error", 40, "ada")
    assert checkout["started"] <= charge["started"] <= charge["ended"] <= checkout["ended"]
    assert abs((checkout["ts"] - checkout["started"]).total_seconds()) < 2e-6
    attributes = checkout["attributes"]
    marks = attributes.pop("logsluice")
    assert attributes == {
        "customer": 7, "name_": "x", "password": "[redacted]", "tenant": "north",
        "exception.type": "ValueError", "exception.message": "no card",
    }  # fmt: skip
    assert marks["redacted"] == ["password"]


def test_tasks_threads_decorators_and_other_services_are_one_tree(dsn, log):
    @span("decorated")
    def decorated():
        log.info("in a thread")

    @span("values")
    def values():
        yield 1
        log.info("in a generator")

    async def task(n):
        async with span(f"task {n}"):
            await asyncio.sleep(0)
            log.info("in task %d", n)

    async def both():
        await asyncio.gather(task(1), task(2))

    with trace("root") as t:
        asyncio.run(both())
        with context.carry(ThreadPoolExecutor(1)) as pool:
            pool.submit(decorated).result()
        list(values())
        log.info("at the root")
        headers = {}
        inject(headers)
        by_hand = start_span("by hand")
    with trace("elsewhere", parent=extract(headers)):
        log.info("in another service")
    assert by_hand.end() is True
    assert by_hand.end() is False
    assert log.handlers[0].flush(STORED_SECONDS)
    found = traces.read(dsn, t.trace_id)
    assert shape(found) == [
        ["root", ["task 1", "in task 1"], ["task 2", "in task 2"], ["decorated", "in a thread"],
         ["values", "in a generator"], "at the root", ["by hand"], ["elsewhere", "in another service"]],
    ]  # fmt: skip
    (root,) = found.spans()
    assert root.duration <= found.duration
    assert next(root.logs()).service == "shop"


def test_opentelemetrys_trace_is_ours(dsn, log):
    from opentelemetry import trace as otel

    theirs = otel.SpanContext(int(TRACE, 16), int(ONE, 16), is_remote=False, trace_flags=otel.TraceFlags(1))
    with otel.use_span(otel.NonRecordingSpan(theirs)):
        log.info("in theirs")
        with span("ours"):
            log.info("in ours")
    assert log.handlers[0].flush(STORED_SECONDS)
    found = traces.read(dsn, TRACE)
    assert shape(found) == ["in theirs", ["ours", "in ours"]]
    assert next(found.spans()).parent_id == ONE


def test_only_records_or_only_spans_or_nothing(dsn, log, capsys):
    log.info("alone", extra={"trace_id": "request-7"})
    assert log.handlers[0].flush(STORED_SECONDS)
    with psycopg.connect(dsn, autocommit=True) as conn:
        assert conn.execute("SELECT to_regclass('logsluice.spans')").fetchone() == (None,), "made when it is used"
        assert shape(traces.read(conn, "request-7")) == ["alone"]
        assert traces.read(conn, "request-8") is None
        with trace("t") as t:
            pass
        assert log.handlers[0].flush(STORED_SECONDS)
        assert shape(traces.read(conn, t.trace_id)) == [["t"]]
        conn.execute("DROP TABLE logsluice.logs CASCADE")
        assert shape(traces.read(conn, t.trace_id)) == [["t"]]
    assert main(["trace", "--dsn", dsn, "un\x1bknown"]) == 1
    assert r"nothing of trace un\x1bknown is stored in schema" in capsys.readouterr().err


def test_an_older_database_is_told_what_to_run(dsn):
    with psycopg.connect(dsn, autocommit=True) as conn:
        conn.execute("DROP FUNCTION logsluice.trace")
        with pytest.raises(LogsluiceError, match="run `logsluice migrate`"):
            traces.read(conn, TRACE)
        with pytest.raises(LogsluiceError, match="run `logsluice migrate --schema other`"):
            traces.read(conn, TRACE, schema="other")


def test_another_schema_and_a_reader_with_select_alone(empty_dsn):
    with psycopg.connect(empty_dsn, autocommit=True) as conn:
        schema.migrate(conn, 'odd "name')
        reader = f"reader_{conn.info.dbname}"
        conn.execute(f"CREATE ROLE {reader}")
        conn.execute(f'GRANT USAGE ON SCHEMA "odd ""name" TO {reader}')
        conn.execute(f'GRANT SELECT ON "odd ""name".logs TO {reader}')
        try:
            conn.execute(f"SET ROLE {reader}")
            assert traces.read(conn, TRACE, schema='odd "name') is None
        finally:
            conn.execute("RESET ROLE")
            conn.execute(f"DROP OWNED BY {reader}; DROP ROLE {reader}")


def stored_spans(conn, *pairs):
    """Store spans (id, parent) a second after each other."""
    for second, (span_id, parent) in enumerate(pairs):
        conn.execute(
            "INSERT INTO logsluice.spans (ts, trace_id, span_id, parent_id, name, started, ended, status, stream, seq) "
            "SELECT t, %s, %s, %s, %s, t, t + interval '1 s', 'ok', 1, %s FROM (SELECT now() + %s * interval '1 s' AS t) x",
            [TRACE, span_id, parent, span_id[0], second, second],
        )  # fmt: skip


@pytest.fixture
def made(dsn, log):
    """A connection to a database that has the table."""
    with trace("first"):
        pass
    assert log.handlers[0].flush(STORED_SECONDS)
    with psycopg.connect(dsn, autocommit=True) as conn:
        yield conn


def test_odd_trees_lose_nothing(made):
    """A parent that is not stored, one's own parent, each other's parents, one that began later, twice the same."""
    four, five = "4" * 16, "5" * 16
    stored_spans(made, (ONE, "f" * 16), (TWO, TWO), (THREE, four), (four, THREE), (five, ONE), (five, ONE))
    found = traces.read(made, TRACE)
    assert sorted(map(str, shape(found))) == ["['1', ['5']]", "['2']", "['3']", "['4']"]


def test_a_deep_trace(made):
    count = 1200  # more than Python's stack
    names = [f"{n:016x}" for n in range(1, count + 1)]
    with made.transaction():
        stored_spans(made, *zip(names, [None, *names], strict=False))
    assert max(depth for depth, _ in traces.read(made, TRACE).walk()) == count - 1


def test_the_command_prints_a_tree_that_nobody_can_forge(dsn, log, capsys, monkeypatch):
    with trace("check\x1b[31mout", customer="\u202e") as t:
        log.info("one\ntrace forged")
        with contextlib.suppress(ZeroDivisionError), span("charge"):
            try:
                1 / 0
            except ZeroDivisionError:
                log.exception("bad")
                raise
    assert log.handlers[0].flush(STORED_SECONDS)
    monkeypatch.setenv("LOGSLUICE_DSN", dsn)
    assert main(["trace", t.trace_id]) == 0
    first, root, one, forged, charge, bad, *rest = capsys.readouterr().out.splitlines()
    assert first.startswith(f"trace {t.trace_id}  2 spans, 2 records, ")
    assert root.split("  ")[1::2] == [r"check\x1b[31mout", "ok", r'{"customer": "\u202e"}']
    assert one.split("  ")[-1] == "one"
    assert forged == "        | trace forged"
    assert '  error  shop  {"exception.type": "ZeroDivisionError"' in charge
    assert bad.startswith("        +")
    assert rest[0] == "            | Traceback (most recent call last):"
    assert rest[-1] == "            | ZeroDivisionError: division by zero"


def test_what_the_page_shows_runs(dsn, tmp_path, capsys):
    """docs/howto/traces.md."""
    import subprocess
    import sys

    page = Page("traces")
    page.lay_out(tmp_path)
    trees = {}
    for name in page.files:
        done = subprocess.run(
            [sys.executable, name], cwd=tmp_path, env=environment(LOGS_DSN=dsn), capture_output=True, text=True, check=True
        )  # fmt: skip
        assert main(["trace", "--dsn", dsn, done.stdout.strip()]) == 0
        lines = capsys.readouterr().out.splitlines()
        trees[name] = [(len(line) - len(line.lstrip()), line.split("  {")[0].split()[-2:]) for line in lines[1:]]
        for line in done.stderr.splitlines():
            assert "made table" in line or "slow batch" in line  # a busy machine may be slow
    assert [indent for indent, _ in trees["app.py"]] == [0, 4, 4, 8, 4, 4]
    assert [indent for indent, _ in trees["pools.py"]] == [0, 4, 4, 4]
    assert [indent for indent, _ in trees["services.py"]] == [0, 4, 8, 12]
    assert [indent for indent, _ in trees["queue_worker.py"]] == [0, 4]
