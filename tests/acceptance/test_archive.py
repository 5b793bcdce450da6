"""
Archives under kills and beside a writer: every row is in the table, or in one file that is whole; and DuckDB reads them.
"""

from __future__ import annotations

import logging
import signal
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import duckdb
import psycopg
import pytest

from logsluice import archiving, crashpoints, maintenance, partitions
from logsluice.archive import Settings, manifest, places
from logsluice.archive.files import format_module, read
from support.howto import Service
from support.processes import run_program, until
from support.shop import LIMIT, Shop, message

DAY = timedelta(days=1)
ROWS = 30
RULES = {"DEBUG": "2d", "*": "30d"}
MAINTAIN = "import sys; from logsluice.cli import main; sys.exit(main(sys.argv[1:]))"
INSERT = """
INSERT INTO logsluice.logs (ts, level, message, attributes, stream, seq)
SELECT %s::timestamptz + n * interval '100 ms', %s, %s || n, jsonb_build_object('n', n, 'odd', E'a\\n"b'), 1, n
  FROM generate_series(1, %s) n
"""


@pytest.fixture
def conn(dsn):
    with psycopg.connect(dsn, autocommit=True) as conn:
        yield conn


@pytest.fixture
def target(tmp_path):
    return tmp_path / "archive"


def put(conn, moment, text, level=20, rows=ROWS):
    partitions.ensure_at(conn, "logsluice", "day", moment)
    conn.execute(INSERT, [moment, level, text, rows])


def messages(conn):
    """Those of `logs`, and of partitions that are detached and not dropped yet."""
    found = [row[0] for row in conn.execute("SELECT message FROM logsluice.logs").fetchall()]
    for part in partitions.listed(conn, "logsluice"):
        if part.state == "detached":
            found += [row[0] for row in conn.execute(f"SELECT message FROM {part.full_name}").fetchall()]
    return found


def archived(target):
    """The messages in all files that are archives; each file is read to its end, and summed."""
    place, found = places.place_of(str(target)), []
    for one in archiving.manifests(place, None):
        manifest.check(place, one)
        number = [column.name for column in one.columns].index("message")
        found += [line.split(b"\t")[number].decode() for line in read(place, one)]
    return found


def maintain(dsn, target, **env):
    keep = [part for rule, span in RULES.items() for part in ("--keep", f"{rule}={span}")]
    argv = ["maintain", "--once", *keep, "--archive", str(target), "--format", "jsonl"]
    return run_program(MAINTAIN, args=argv, env={"LOGSLUICE_DSN": dsn, **env}, timeout=2 * LIMIT)


def next_run(dsn, target):
    """The run after one that died, whose session the server may not have ended yet: while it has the lock, none works."""
    ran = []
    assert until(lambda: ran.append(maintain(dsn, target)) or "another maintainer" not in ran[-1].stdout, LIMIT)
    assert ran[-1].returncode == 0, ran[-1].stdout + ran[-1].stderr


@pytest.mark.parametrize("name", crashpoints.ARCHIVE_NAMES)
def test_it_dies_at(name, dsn, conn, now, target):
    """Whatever the place: nothing is lost then, and nothing is in two files after the next run."""
    put(conn, now - 40 * DAY, "old ")
    put(conn, now - 5 * DAY, "debug ", 10)
    before = sorted(messages(conn))
    rows = conn.execute("SELECT l::text FROM logsluice.logs l ORDER BY 1").fetchall()
    died = maintain(dsn, target, LOGSLUICE_CRASH_AT=name)
    assert (died.returncode, died.stderr) == (crashpoints.STATUS, f"logsluice: crash point {name}\n")
    assert set(messages(conn)) | set(archived(target)) == set(before)
    next_run(dsn, target)
    assert messages(conn) == []
    assert sorted(archived(target)) == before
    assert not list(target.rglob("*.tmp")), "what it left is swept"
    assert duckdb.sql(f"SELECT count(*) FROM read_json('{target}/*/*/*/*.jsonl.gz')").fetchall() == [(2 * ROWS,)]
    place = places.place_of(str(target))
    work = archiving.Restore(conn, place)
    assert sum(work.file(one).stored for one in archiving.manifests(place, None)) == 2 * ROWS
    assert conn.execute("SELECT l::text FROM logsluice.logs l ORDER BY 1").fetchall() == rows


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_it_is_ended_while_it_writes(how, dsn, conn, now, target, tmp_path):
    put(conn, now - 40 * DAY, "old ", rows=30_000)
    command = f"logsluice maintain --every 6h --keep '*=30d' --archive {target} --format jsonl"
    with Service(command, tmp_path, LOGSLUICE_DSN=dsn) as service:
        assert until(lambda: list(target.rglob("*.*")), LIMIT), service.output
        service.stop(how)
    # On a busy machine it may have come to its end before: that is no loss either.
    everything = {f"old {n}" for n in range(1, 30_001)}
    assert set(messages(conn)) | set(archived(target)) == everything
    next_run(dsn, target)
    assert messages(conn) == []
    assert len(archived(target)) == 30_000
    assert set(archived(target)) == everything


def test_a_writer_stores_into_what_is_being_archived(dsn, conn, now, target, monkeypatch):
    """Late records into partitions that are read, detached and dropped meanwhile: each once, in the table or in a file."""
    ended, drop = threading.Event(), partitions.drop
    created = (now - 40 * DAY).timestamp()
    with Shop(dsn) as shop:

        def log():
            while not ended.is_set():
                for _ in range(20):
                    tid = len(shop.given)
                    shop.given.append(tid)
                    record = logging.makeLogRecord(
                        {"name": "late", "levelno": 20, "levelname": "INFO", "msg": message(tid)}
                    )
                    record.created = created + tid % 100
                    shop.logger.handle(record)
                shop.flush()

        def drop_later(*given, **options):
            """Once the writer has stored more, after the file was written and before the partition is detached."""
            stored = shop.stats.stored
            assert until(lambda: shop.stats.stored > stored + 20, LIMIT)
            drop(*given, **options)

        monkeypatch.setattr(partitions, "drop", drop_later)
        with ThreadPoolExecutor(1) as pool:
            writing = pool.submit(log)
            try:
                went = []
                for _ in range(5):
                    assert until(
                        lambda: any(part.upper < now - 30 * DAY for part in partitions.listed(conn, "logsluice")), LIMIT
                    )
                    report = maintenance.run(
                        conn, rules={"*": 30 * 86_400.0}, now=now, archive=Settings(str(target), "jsonl")
                    )
                    assert report.skipped == []
                    went += [name for one in report.gone for name in one.partitions]
            finally:
                ended.set()
            writing.result(LIMIT)
        assert shop.flush()
        stats = shop.stats
    assert len(went) >= 5
    parts = Counter((one.partition, one.starts) for one in archiving.manifests(places.place_of(str(target)), None))
    assert max(parts.values()) > 1, "late rows have a file of their own"
    assert (stats.dropped, stats.dead, stats.offered) == (0, 0, len(shop.given))
    found = Counter(text for text in messages(conn) + archived(target) if text.startswith("tid="))
    assert found == Counter(message(tid) for tid in shop.given)


@pytest.mark.parametrize(("form", "reader"), [("parquet", "read_parquet"), ("jsonl", "read_json")])
def test_duckdb_reads_it_as_it_is(conn, now, target, form, reader):
    for days in (40, 39):
        put(conn, now - days * DAY, f"é {days} ")
    facts = "SELECT count(*), count(DISTINCT ts), min(epoch_us(ts)), max(level), sum(seq), min(message), max(attributes->>'odd') FROM "
    expected = conn.execute(
        facts.replace("epoch_us(ts)", "(extract(epoch FROM ts) * 1000000)::bigint").replace(
            "(message)", '(message COLLATE "C")'
        )
        + "logsluice.logs"
    ).fetchone()
    days = conn.execute("SELECT DISTINCT ts::date FROM logsluice.logs ORDER BY 1").fetchall()
    assert archiving.archive_all(conn, Settings(str(target), form), until=now).written
    files = f"{reader}('{target}/logsluice/logs/*/*.{format_module(form).ENDING}')"
    assert duckdb.sql(facts + files).fetchall() == [expected]
    assert duckdb.sql(f"SELECT DISTINCT date FROM {files} ORDER BY 1").fetchall() == days
    ours = conn.execute("SELECT ts, message, attributes::text FROM logsluice.logs ORDER BY ts, message").fetchall()
    its = duckdb.sql(f"SELECT epoch_us(ts), message, attributes FROM {files} ORDER BY ts, message").fetchall()
    assert its == [(round(ts.timestamp() * 1e6), *rest) for ts, *rest in ours]
