"""`logsluice stats`, `top`, `streams`, `partitions` and `version`: what they print of rows that are known."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
from datetime import datetime, timedelta, timezone

import psycopg
import pytest

from logsluice import contrib, reports
from logsluice.cli import COMMANDS, arguments, main, stats, tables, top
from logsluice.cli.tables import Column

NOON = datetime.now(timezone.utc).replace(hour=12, minute=0, second=0, microsecond=0) - timedelta(days=1)
NEW = ("stats", "top", "streams", "partitions", "version")
READ_SECONDS = 60  # a second as a rule; a busy machine may take its time
ESC, RLO, DEL = "\x1b", "\u202e", "\x7f"
HOSTILE = f"{ESC}[2J{RLO}{DEL}\nforged"


@pytest.fixture
def conn(dsn):
    with psycopg.connect(dsn, autocommit=True) as conn:
        conn.execute("SELECT logsluice.make_partitions(%s, %s)", [NOON, NOON + timedelta(days=2)])
        yield conn


@pytest.fixture
def shown(dsn, capsys):
    """What a command prints on stdout: its lines."""

    def show(command, *args, status=0):
        assert main([command, "--dsn", dsn, *args]) == status
        return capsys.readouterr().out.splitlines()

    return show


def log(conn, ts, **columns):
    row = {"ts": ts, "level": 20, "stream": 1, "seq": 1, "service": "shop", **columns}
    conn.execute(
        f"INSERT INTO logsluice.logs ({', '.join(row)}) VALUES ({', '.join(f'%({one})s' for one in row)})", row
    )


def window(minutes=60):
    return ["--since", NOON.isoformat(), "--until", (NOON + timedelta(minutes=minutes)).isoformat()]


def sender(conn, stream, **columns):
    row = {"stream": stream, "service": "shop", "version": "2.1", "host": "web", "pid": 7, "stored": 1000, **columns}
    conn.execute(
        f"INSERT INTO logsluice.stream ({', '.join(row)}) VALUES ({', '.join(f'%({one})s' for one in row)})", row
    )


def test_a_report_is_a_table(conn, shown):
    log(conn, NOON, message="order 1 lost", level=40, exc_type="KeyError", logger="shop.orders")
    log(conn, NOON + timedelta(minutes=31), message="order 22 lost", level=40, exc_type="KeyError")
    log(conn, NOON + timedelta(minutes=31), message="up", level=25)
    assert shown("stats", "errors", *window()) == [
        f"from {NOON:%Y-%m-%d} 12:00:00 to {NOON:%Y-%m-%d} 13:00:00 UTC, all services",
        "",
        "errors, numbers and ids folded",
        "records  first   last  in",
        "      2  12:00  12:31  logs",
        "    KeyError: order # lost",
        "    e.g. order 22 lost",
    ]
    assert shown("stats", "levels", "--by", "30m", *window())[2:] == [
        "records by level, by 30m",
        " from  25  ERROR",
        "12:00   0      1  ##########",
        "12:30   1      1  ####################",
    ]
    assert shown("stats", "levels", "--by", "20m", *window())[4:] == [  # nothing is no short bar
        "12:00   0      1  ##########",
        "12:20   1      1  ####################",
        "12:40   0      0",
    ]
    assert shown("stats", "error-rate", "--by", "1h", "--service", "shop", *window())[-1].split() == [
        "12:00", "3", "2", "66.67",
    ]  # fmt: skip


def test_without_a_report_those_that_have_rows(conn, shown):
    log(conn, NOON, message="up", logger="shop")
    lines = shown("stats", *window())
    titles = [after for before, after in itertools.pairwise(lines) if not before]
    assert titles == ["services", "records by level, by 5m", "messages by template", "loggers"]


def test_all_reports_as_json(conn, shown):
    for kind in (contrib.Activity, contrib.ApiRequest, contrib.MessageEvent):
        conn.execute(kind.__logtype__.ddl(partition="none"))
    log(conn, NOON, message=HOSTILE, level=40, service=HOSTILE)
    conn.execute(
        "INSERT INTO logsluice.api_request (ts, method, path, duration_ms, stream, seq) "
        "VALUES (%s, 'GET', '/', 'NaN', 1, 1)", [NOON],
    )  # fmt: skip
    for report in stats.REPORTS:
        (line,) = shown("stats", report, "-o", "json", *window())
        assert line.isascii()
        assert line.isprintable()
        found = json.loads(line, parse_constant=pytest.fail)  # NaN is no JSON
        assert list(found) == ["since", "until", "service", report]
        assert found["since"] == NOON.isoformat()
    (line,) = shown("stats", "errors", "-o", "json", *window())
    assert json.loads(line)["errors"] == [{
        "pattern": f"{ESC}[#J{RLO}{DEL}", "source": "logs", "error_type": None, "records": 1,
        "first": NOON.isoformat(), "last": NOON.isoformat(), "example": HOSTILE,
    }]  # fmt: skip
    (line,) = shown("stats", "endpoints", "-o", "json", *window())
    assert json.loads(line)["endpoints"][0]["p95_ms"] is None


def test_nothing_that_was_logged_drives_the_terminal(conn, shown, capsys, dsn):
    conn.execute(contrib.MessageEvent.__logtype__.ddl(partition="none"))
    now = datetime.now(timezone.utc)
    log(conn, now, message=HOSTILE, level=40, service=HOSTILE, logger=HOSTILE, exc_type=HOSTILE, template=HOSTILE)
    conn.execute(
        "INSERT INTO logsluice.message_event (ts, job_id, channel, status, attempts, priority, error_message, stream, "
        "seq) VALUES (%s, %s, %s, 'failed', 1, 1, %s, 1, 1)", [now, HOSTILE, HOSTILE, HOSTILE],
    )  # fmt: skip
    sender(conn, 7, service=HOSTILE, host=HOSTILE)
    conn.execute(f'CREATE TABLE logsluice."{HOSTILE}" (ts timestamptz) PARTITION BY RANGE (ts)')
    printed = [
        *shown("stats"), *shown("stats", "tables"), *shown("stats", "channels"), *shown("stats", "--service", HOSTILE),
        *shown("top", "--once", "--every", "0.1"), *shown("streams"), *shown("partitions"),
    ]  # fmt: skip
    assert all(line.isprintable() for line in printed)
    assert not any(line.startswith("forged") for line in printed)
    assert any(r"\x1b[2J\u202e\x7f\nforged" in line for line in printed)
    assert main(["partitions", "--dsn", dsn, HOSTILE + "x"]) == 1
    assert capsys.readouterr().err.removesuffix("\n").isprintable()


def test_no_rows_are_said_and_no_error(conn, dsn, capsys):
    for args in (["stats"], ["stats", "users"], ["stats", "levels", "-o", "json"], ["streams"]):
        assert main([args[0], "--dsn", dsn, *args[1:]]) == 0
        assert re.match("no (rows|streams)", capsys.readouterr().err), args
    assert main(["streams", "--dsn", dsn, "--service", "mail"]) == 0
    assert capsys.readouterr().err == "no streams: no handler of service mail has stored anything here yet\n"


@pytest.mark.parametrize("command", ["stats", "top", "streams", "partitions"])
def test_a_missing_table_is_explained(command, empty_dsn, capsys):
    once = ["--once"] if command == "top" else []
    assert main([command, "--dsn", empty_dsn, "--schema", f"else{ESC}where", *once]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert re.match(r"logsluice: .*there is no (partitioned )?table ", captured.err)
    assert "--schema" in captured.err


@pytest.mark.parametrize(
    "args",
    [
        ["stats", "nonsense"], ["stats", "--since", "soon"], ["stats", "--since", "0001-01-01T00:00:00+23:00"],
        ["stats", "--since", "999999w"], ["stats", "--by", "0s"], ["stats", "--by", "5"], ["stats", "-n", "0"],
        ["stats", "-n", "100001"], ["stats", "-n", "１"], ["stats", "--timeout", "nan"], ["stats", "--timeout", "0"],
        ["stats", "--service", "\udcff"], ["stats", "--schema", "\udcff"], ["streams", "-n", "x"],
        ["top", "--every", "0"], ["top", "--every", "-1"], ["partitions", "\udcff"], ["version", "more"],
        ["trace", "\udcff"],
    ],
    ids=lambda args: ascii(" ".join(args)),
)  # fmt: skip
def test_wrong_usage(args, capsys):
    with pytest.raises(SystemExit) as ended:
        main(args)
    assert ended.value.code == 2
    assert "usage: logsluice" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("args", "why"),
    [
        (["--since", "1h", "--until", "2h"], "must be before until"),
        (["--by", "1s", "--since", "7d"], "more than 10,000: widen them"),
        (["--since", "0001-01-01"], "leave the years 1 to 9999"),
        (["--by", "999999w"], "leave the years 1 to 9999"),
        (
            ["errors", "--rollup", "--since", "2h"],
            "nothing about errors: only levels, error-rate, services, loggers, volume",
        ),
    ],
)
def test_times_that_cannot_be(args, why, dsn, capsys):
    assert main(["stats", "--dsn", dsn, *args]) == 2
    assert why in capsys.readouterr().err


def test_what_takes_too_long_says_what_to_do(conn, dsn, capsys):
    with psycopg.connect(dsn) as other:
        other.execute("LOCK TABLE logsluice.logs IN ACCESS EXCLUSIVE MODE")
        assert main(["stats", "services", "--dsn", dsn, "--timeout", "0.1"]) == 1
    assert capsys.readouterr().err == (
        "logsluice: services: not done in 0.1 s; ask for less time with --since, or give it more with --timeout\n"
    )


def test_a_role_without_the_right_is_told(dsn, conn, capsys):
    name = f"stranger_{conn.info.dbname}"
    conn.execute(f"CREATE ROLE {name}")
    try:
        role = psycopg.conninfo.make_conninfo(dsn, options=f"-c role={name}")
        assert main(["stats", "services", "--dsn", role]) == 1
    finally:
        conn.execute(f"DROP ROLE {name}")
    said = capsys.readouterr().err
    assert said.startswith("logsluice: services: permission denied for schema logsluice")
    assert "connect as a role that may" in said


def test_when_is_when():
    before, found, after = datetime.now(timezone.utc), arguments.moment("15m"), datetime.now(timezone.utc)
    assert before <= found + timedelta(minutes=15) <= after
    midnight = arguments.moment("today")
    assert (midnight.hour, midnight.minute, midnight.tzinfo) == (0, 0, timezone.utc)
    assert midnight - arguments.moment("yesterday") == timedelta(days=1)
    for given in ("2026-11-22T09:00:00Z", "2026-11-22 09:00", "2026-11-22T10:00:00+01:00"):
        assert arguments.moment(given) == datetime(2026, 11, 22, 9, tzinfo=timezone.utc)


# --- top -------------------------------------------------------------------------------------------------------------


def test_top_once(conn, shown):
    conn.execute(contrib.MessageEvent.__logtype__.ddl(partition="none"))
    now = datetime.now(timezone.utc)
    for number in range(7):
        log(conn, now - timedelta(seconds=number), message=f"order {number} lost\nmore", level=40, exc_type="KeyError")
    log(conn, now - timedelta(minutes=10), message="old", level=30)
    conn.execute(
        "INSERT INTO logsluice.message_event (ts, job_id, channel, status, attempts, priority, error_message, stream, "
        "seq) VALUES (%s, 'job-1', 'email', 'failed', 3, 1, 'mailbox full', 1, 1)", [now],
    )  # fmt: skip
    sender(conn, 7, offered=1031, dropped=20, dead=1)
    sender(conn, 8, updated=now - timedelta(hours=2))  # not active
    lines = shown("top", "--once", "--every", "0.1")
    assert lines[0].startswith("logsluice top  ")
    assert lines[0].endswith(" UTC, every 0.1 s")
    assert lines[2].split() == ["waiting", "stored/s", "stored", "dropped", "dead", "last", "process"]
    assert re.fullmatch(r" +10 +0   1,000 +20 +1 +\d+ \w+  shop 2\.1 web:7", lines[3])
    assert lines[4:8] == ["", "records of the last 5 minutes", "INFO  WARNING  ERROR  CRITICAL",
                          "   0        0      7         0"]  # fmt: skip
    assert lines[9] == "last errors"
    assert [line.split("  ")[-1].strip() for line in lines[11:16]] == [f"order {n} lost (KeyError)" for n in range(5)]
    assert lines[17] == "last failed messages"
    assert re.fullmatch(r" *\d+ \w+  email +3  job-1  mailbox full", lines[19])


OLD = reports.StreamState(stream=7, service="shop", environment=None, version=None, host="web", pid=7, offered=0,
                          stored=1000, dropped=0, dead=0, position=0, started=NOON, updated=NOON, retired=None)  # fmt: skip


def test_what_waits_is_known_of_a_stream_that_its_process_spoke_of_and_that_may_still_send():
    assert OLD.waiting == 0  # adopted before its first batch: only its process knew what was offered
    behind = dataclasses.replace(OLD, offered=1040, dropped=20, dead=5)
    assert behind.waiting == 15
    assert dataclasses.replace(behind, retired=NOON).waiting == 0  # its journal is gone


def test_the_rate_is_of_the_time_between_two_looks():
    old = OLD
    begun = dataclasses.replace(old, stream=8, stored=80, started=NOON + timedelta(seconds=1))  # since the look before
    before = top.Look(clock=10.0, now=NOON, streams=[old], levels=[], errors=[], failed=[])
    streams = [begun, dataclasses.replace(old, stored=1500), dataclasses.replace(old, stream=9)]
    now = dataclasses.replace(before, clock=12.0, now=NOON + timedelta(seconds=2), streams=streams)
    assert [line.split()[1:3] for line in top.page(before, now, "", None, None)[3:6]] == [
        ["250", "1,500"], ["40", "80"], ["0", "1,000"],
    ]  # fmt: skip


def test_top_of_nothing(conn, shown):
    lines = shown("top", "--once", "--every", "0.1", "--service", "nobody")
    assert "no stream has stored anything in the last hour" in lines
    assert "no errors in the last 24 hours" in lines


def page_until(terminal, text):
    """Read what a program writes to its terminal until the text is there."""
    seen = b""
    while text not in seen:
        assert select.select([terminal], [], [], READ_SECONDS)[0], f"{text!r} did not come: {seen[-2000:]!r}"
        seen += os.read(terminal, 65536)
    return seen


@contextlib.contextmanager
def on_a_terminal(dsn, *args, lines=24, **env):
    """A command whose stdout is a terminal of 80 columns: its process and our end of the terminal."""
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "logsluice", *args],
        env={"LOGSLUICE_DSN": dsn, "PATH": "", "TERM": "xterm", "COLUMNS": "80", "LINES": str(lines), **env},
        stdin=theirs, stdout=theirs, stderr=subprocess.PIPE, start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),  # a shell's background job ignores it
    )  # fmt: skip
    os.close(theirs)
    try:
        yield process, ours
    finally:
        process.kill()
        process.wait(READ_SECONDS)
        process.stderr.close()
        os.close(ours)


def test_top_fills_a_screen_again_and_again_and_leaves_it_as_it_was(conn, dsn):
    for number in range(30):
        sender(conn, number, host="web-with-a-long-name.example.org", stored=1_000_000 * number)
    for number in range(9):
        log(conn, datetime.now(timezone.utc), message="m" * 200, level=40, seq=number)
    with on_a_terminal(dsn, "top", "--every", "0.1", NO_COLOR="1") as (process, terminal):
        seen = page_until(terminal, b"\x1b[J")
        conn.execute("UPDATE logsluice.stream SET stored = stored + 5000000 WHERE stream = 3")
        seen += page_until(terminal, b"8,000,000")
        process.send_signal(signal.SIGINT)
        seen += page_until(terminal, b"\x1b[?1049l")
        assert process.wait(READ_SECONDS) == 130
        assert process.stderr.read() == b""
    enter, *pages = seen.decode().split("\x1b[H")
    assert enter == "\x1b[?1049h\x1b[?25l"
    assert pages[-1].endswith("\x1b[?25h\x1b[?1049l")
    lines = pages[0].removesuffix("\x1b[J").replace("\x1b[K", "").split("\r\n")[:-1]
    assert len(lines) <= 23  # the cursor stands on the last
    assert all(len(line) <= 80 for line in lines)
    assert any(re.fullmatch(r"\.\.\. and \d+ more: logsluice streams", line) for line in lines)
    assert lines[-4:-3][0].split() == ["ago", "level", "logger", "message"]
    assert ESC not in "".join(lines)


def test_top_leaves_the_terminal_as_it_was_when_it_is_killed(conn, dsn):
    with on_a_terminal(dsn, "top", "--every", "0.1") as (process, terminal):
        seen = page_until(terminal, b"\x1b[J")
        process.send_signal(signal.SIGTERM)
        seen += page_until(terminal, b"\x1b[?1049l")
        assert process.wait(READ_SECONDS) == 143
    assert seen.endswith(b"\x1b[?25h\x1b[?1049l")


def test_colour_on_a_terminal_only(conn, dsn):
    log(conn, datetime.now(timezone.utc), message="up")
    with on_a_terminal(dsn, "stats", "services") as (process, terminal):
        seen = page_until(terminal, b"shop")
        assert b"\x1b[1mservices\x1b[0m" in seen
        assert process.wait(READ_SECONDS) == 0
    with on_a_terminal(dsn, "stats", "services", NO_COLOR="1") as (process, terminal):
        assert b"\x1b" not in page_until(terminal, b"shop")


@pytest.mark.parametrize("args", [["stats"], ["top", "--every", "0.1"], ["streams", "-n", "1000"], ["partitions"]])
def test_a_reader_that_leaves_is_no_error(args, conn, dsn):
    log(conn, datetime.now(timezone.utc), message="up")
    for number in range(1000):  # more than a pipe's 64 KiB, of streams
        sender(conn, number, host="日本" * 10)
    process = subprocess.Popen(
        [sys.executable, "-m", "logsluice", *args, "--dsn", dsn],
        env={"PYTHONIOENCODING": "ascii:strict", "PATH": ""}, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    assert process.stdout.readline()
    process.stdout.close()
    said = process.stderr.read()
    process.stderr.close()
    assert (said, process.wait(READ_SECONDS)) == (b"", 0)


# --- streams, partitions, version ------------------------------------------------------------------------------------


def test_streams(conn, shown):
    now = datetime.now(timezone.utc)
    sender(conn, 7, updated=now, dropped=20, dead=1)
    sender(conn, 8, updated=now - timedelta(days=400), retired=now, service="mailer", version=None)
    head, first, one, second, two = shown("streams")
    assert head.split() == ["stored", "dropped", "dead", "last", "batch", "(UTC)", "process"]
    assert first == f" 1,000       20     1    {now:%m-%d %H:%M:%S}  shop 2.1 web:7"
    assert one.startswith("    stream 7, first seen ")
    assert second.endswith("  mailer web:7 (retired)")
    assert two.startswith("    stream 8, ")
    assert len(shown("streams", "--service", "mailer")) == 3
    (line,) = shown("streams", "-o", "json", "-n", "1")
    assert {name: json.loads(line)[0][name] for name in ("stream", "stored", "dropped", "dead", "retired")} == {
        "stream": 7, "stored": 1000, "dropped": 20, "dead": 1, "retired": None,
    }  # fmt: skip


def test_partitions(conn, shown):
    conn.execute(contrib.JobLog.__logtype__.ddl())
    log(conn, NOON)
    conn.execute("ANALYZE logsluice.logs")
    title, head, *rows, empty, job_log = shown("partitions")
    days = len(rows)
    assert re.fullmatch(rf"logs  {days} partitions, ~1 rows, \d+(\.\d)? KiB", title)
    assert head.split() == ["from", "(UTC)", "to", "(UTC)", "rows", "size", "partition"]
    (row,) = (row for row in rows if row.endswith(f"logs_{NOON:%Y%m%d}"))
    assert row.split()[:5] == [f"{NOON:%Y-%m-%d}", "00:00", f"{NOON + timedelta(days=1):%Y-%m-%d}", "00:00", "~1"]
    assert (empty, job_log) == ("", "job_log  0 partitions, ~0 rows, 0 B")
    assert shown("partitions", "job_log") == [job_log]
    (line,) = shown("partitions", "-o", "json")
    found = json.loads(line)
    assert list(found) == ["logs", "job_log"]
    assert [one["state"] for one in found["logs"]] == ["attached"] * days


def test_version(dsn, empty_dsn, capsys):
    assert main(["version", "--dsn", dsn]) == 0
    client, python, server, schema = capsys.readouterr().out.splitlines()
    assert re.fullmatch(r"logsluice +\d+\.\d+\.\d+", client)
    assert re.fullmatch(r"python +3\.\d+\.\d+\S*, psycopg 3\.\S+, libpq \d+\.\d+", python)
    assert re.fullmatch(r"postgresql +\d+\.\d+", server)
    assert re.match(r'tables +version \d+, as this client \(schema "logsluice" in database "', schema)
    with psycopg.connect(dsn, autocommit=True) as conn:
        conn.execute("INSERT INTO logsluice.version (version, name) VALUES (9999, 'later')")
        assert main(["version", "--dsn", dsn]) == 0
        assert "version 9999, newer than this client" in capsys.readouterr().out
        conn.execute("DELETE FROM logsluice.version WHERE version > 1")
        assert main(["version", "--dsn", dsn]) == 1
        assert re.search(r"version 1, this client has \d+: run `logsluice migrate`", capsys.readouterr().out)
    assert main(["version", "--dsn", empty_dsn, "--schema", "odd name"]) == 1
    assert "none: run `logsluice migrate --schema 'odd name'`" in capsys.readouterr().out
    assert main(["version", "--dsn", "host=127.0.0.1 port=1"]) == 1
    captured = capsys.readouterr()
    assert captured.out.startswith("logsluice ")
    assert captured.err.startswith("logsluice: cannot connect: ")


# --- tables ----------------------------------------------------------------------------------------------------------


def test_the_last_text_is_cut_or_gets_a_line_of_its_own():
    columns = [Column("n", str), Column("what", lambda n: "日本 " * 20 if n == 1 else "short", right=False)]
    for width in (20, 40, 80):
        lines = list(tables.table(columns, [1, 20], width))
        assert all(tables.columns_of(line) <= width for line in lines)
    assert lines == [" n  what", " 1  " + "日本 " * 14 + "日...", "20  short"]
    assert list(tables.table(columns, [1, 20], 20)) == [" n", " 1", "    日本 日本 日...", "20", "    short"]
    assert list(tables.table(columns, [1], None))[1] == ("1  " + "日本 " * 20).rstrip()


@pytest.mark.parametrize(
    ("ms", "shown"),
    [(None, "-"), (0, "0.00 ms"), (0.1234, "0.12 ms"), (12.34, "12.3 ms"), (812.4, "812 ms"), (999.7, "1.00 s"),
     (1250, "1.25 s"), (59_949, "59.9 s"), (59_960, "1m00s"), (245_000, "4m05s"), (3_599_900, "1h00m"),
     (7_800_000, "2h10m"), (-1500, "-1.50 s")],
)  # fmt: skip
def test_times_as_people_read_them(ms, shown):
    assert tables.took(ms) == shown


def test_sizes_as_people_read_them():
    assert [tables.size(n) for n in (0, 1023, 1024, 1536 * 1024, 100 << 20, 5 << 40)] == [
        "0 B", "1023 B", "1.0 KiB", "1.5 MiB", "100 MiB", "5.0 TiB",
    ]  # fmt: skip


def test_they_are_commands():
    assert set(NEW) < set(COMMANDS)
