"""What commands, above all those that read, have in common: a reader that leaves, signals, exit statuses."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from datetime import datetime, timedelta, timezone

import psycopg
import pytest

from logsluice import erasure, maintenance, reports, traces
from logsluice.cli import main
from support.howto import Service, environment
from support.processes import until

LIMIT = 60  # seconds: a moment as a rule
READING = {
    "query": ["query"], "tail": ["tail", "-n", "4000"], "tail -f": ["tail", "-f", "-n", "4000"],
    "show": ["show", "1~1"], "trace": ["trace", "ab"],
}  # fmt: skip


@pytest.fixture
def stored(dsn):
    with psycopg.connect(dsn, autocommit=True) as conn:
        conn.execute("SELECT logsluice.make_partitions(now() - interval '1 day', now())")
        conn.execute(
            "INSERT INTO logsluice.logs (ts, level, message, stream, seq, trace_id) "
            "SELECT now() - n * interval '1 ms', 20, repeat('row ', 20000 / (1 + n)) || n, 1, n, 'ab' "
            "FROM generate_series(1, 4000) n"
        )  # more than a pipe's 64 KiB, the first row alone as well
        conn.execute("UPDATE logsluice.logs SET message = repeat('row ', 50000) WHERE seq = 1")
    return dsn


def test_a_database_with_settings_of_its_own(dsn, capsys):
    """Whoever set them for all of a server is no reason for a command to fail, nor for maintenance inside a program."""
    with psycopg.connect(dsn, autocommit=True) as conn:
        conn.execute("SELECT logsluice.make_partitions(now() - interval '4 days', now())")
        conn.execute("INSERT INTO logsluice.logs (ts, level, stream, seq, trace_id) VALUES (now(), 20, 1, 1, 'ab')")
        conn.execute("INSERT INTO logsluice.hold (name, reason, starts) VALUES ('h', 'r', now())")
        conn.execute(f"ALTER DATABASE {conn.info.dbname} SET datestyle = 'German'")
        conn.execute(f"ALTER DATABASE {conn.info.dbname} SET standard_conforming_strings = off")
    for argv in (
        ["migrate", "--plan"], ["prune", "--keep", "2d", "--yes"], ["maintain", "--once", "--keep", "*=1d"], ["partitions"],
        ["forget", "--user", "u"], ["top", "--once"], ["streams"], ["dead", "list"], ["doctor"],
    ):  # fmt: skip
        assert main([*argv, "--dsn", dsn]) == 0, argv
        assert "bug" not in capsys.readouterr().err
    now = datetime.now(timezone.utc)
    with psycopg.connect(dsn, autocommit=True) as conn:
        maintenance.run(conn, now=now)
    with psycopg.connect(dsn, autocommit=True) as conn:
        erasure.erase(conn, {"user_id": "u"})
    scope = reports.Scope(now - timedelta(days=1), now)
    with psycopg.connect(dsn, autocommit=True) as conn, reports.snapshot(conn):
        found = reports.streams(conn, scope), reports.levels(conn, scope, timedelta(hours=6))
    assert found == (reports.streams(dsn, scope), reports.levels(dsn, scope, timedelta(hours=6)))
    assert traces.read(dsn, "ab").items


@pytest.mark.parametrize("args", READING.values(), ids=READING)
def test_a_reader_that_leaves_is_no_error(stored, args):
    process = subprocess.Popen(
        [sys.executable, "-m", "logsluice", *args], env=environment(LOGSLUICE_DSN=stored), stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )  # fmt: skip
    assert process.stdout.read(1)
    process.stdout.close()
    said = process.stderr.read()
    process.stderr.close()
    assert (said, process.wait(LIMIT)) == (b"", 0)


@pytest.mark.parametrize("args", [["preset", "basic"], ["types", "logsluice.contrib"]], ids=" ".join)
def test_a_reader_that_was_never_there_is_no_error(args):
    """Of what needs no database, too; the text is so short that only a flush meets the closed pipe."""
    reader, writer = os.pipe()
    os.close(reader)
    try:
        done = subprocess.run(
            [sys.executable, "-m", "logsluice", *args],
            env=environment(PYTHONUNBUFFERED=""),
            stdout=writer,
            stderr=subprocess.PIPE,
            timeout=LIMIT,
            check=False,
        )
    finally:
        os.close(writer)
    assert (done.stderr, done.returncode) == (b"", 0)


@pytest.mark.parametrize(
    ("shell", "said", "status"),
    [
        (">&-", b"", 0),
        (">/dev/full", b"logsluice: [Errno 28] No space left on device\n", 2),
        (">/dev/full 2>&-", b"", 2),
    ],
)  # fmt: skip
def test_an_output_that_takes_nothing(shell, said, status, stored):
    """Closed, or on a full disk: neither is a bug of ours, and what would go to stderr does not go there instead."""
    done = subprocess.run(
        ["sh", "-c", f'exec "$@" {shell}', "sh", sys.executable, "-m", "logsluice", "query", "-n", "2"],
        env=environment(LOGSLUICE_DSN=stored), capture_output=True, timeout=LIMIT, check=False,
    )  # fmt: skip
    assert (done.stdout, done.stderr, done.returncode) == (b"", said, status)


@pytest.mark.parametrize(("how", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, -signal.SIGTERM)])
def test_following_ends_quietly(stored, tmp_path, how, status):
    with Service("logsluice tail -f -n 1 -o raw", tmp_path, LOGSLUICE_DSN=stored) as service:
        assert until(lambda: "row" in service.output, LIMIT)
        assert service.stop(how) == status
        assert set(service.output.split()) == {"row"}


def test_nothing_found_is_one_and_an_error_two(stored, capsys):
    for args, status in (
        (["query", "nope"], 1), (["tail", "nope"], 1), (["show", "9~9"], 1), (["trace", "cd"], 1),
        (["tail", "level>=loud"], 2), (["tail", "-f", "level>=loud"], 2), (["show", "no id"], 2),
        (["trace", "ab", "--schema", "nowhere"], 2), (["tail", "--table", "nope"], 2),
    ):  # fmt: skip
        assert main([*args, "--dsn", stored]) == status, args
        captured = capsys.readouterr()
        assert captured.out == ""
        assert captured.err


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["partitions", "--dsn", "nonsense"], "the DSN cannot be read"),
        (["maintain", "--once", "--dsn", "postgresql://logs:se@cret@db/logs"], "Percent-encode"),  # --every ends, too
        (["decrypt", "--key", "private.pem", "--table", "logs"], "--table and --column go together"),
        (["decrypt", "--key", "private.pem", "--dsn", "dbname=logs"], "--dsn says nothing without --table"),
        (["demo", "--look"], "--look goes with --data DIR"),
    ],
    ids=lambda one: one if isinstance(one, str) else one[0],
)
def test_wrong_arguments_that_argparse_takes_end_with_two(args, said, capsys):
    assert main(args) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert said in captured.err
