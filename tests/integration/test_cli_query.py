"""`logsluice query`: formats, exit statuses, errors with a caret, hostile rows, readers that leave."""

from __future__ import annotations

import csv
import io
import json
import re
import subprocess
import sys

import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from logsluice.cli import main, output
from logsluice.contrib import ApiRequest

ESC, RLO = "\x1b", "\u202e"


@pytest.fixture
def conn(dsn):
    with psycopg.connect(dsn, autocommit=True) as conn:
        # By hand: make_partitions makes none that is far from the clock of the day on which this runs.
        bounds = "FROM ('2026-11-22 00:00Z') TO ('2026-11-23 00:00Z')"
        conn.execute(f"CREATE TABLE logsluice.of_that_day PARTITION OF logsluice.logs FOR VALUES {bounds}")
        yield conn


@pytest.fixture
def stored(conn):
    conn.execute(
        "INSERT INTO logsluice.logs (ts, level, logger, message, user_id, trace_id, exc_text, attributes, stream, seq) "
        "VALUES ('2026-11-22 09:01:02.123456Z', 20, 'shop', 'order 17 paid', '7', 'ab', NULL, %s, 1, 1), "
        "('2026-11-22 09:01:03Z', 40, 'shop', %s, NULL, NULL, %s, %s, 1, 2)",
        [
            json.dumps({"amount": 12.5, "odd key": "two words"}),
            f"=cmd|' /C calc'!A0\nforged {ESC}[31m{RLO}",
            f"Traceback\nValueError: {ESC}]0;title\a",
            json.dumps({f"k{ESC}=": f'say "{ESC}[2J"\x7f\x9b'}),
        ],
    )


@pytest.fixture
def run(dsn, stored, capsys):
    def run(*args, status=0):
        assert main(["query", "--dsn", dsn, *args]) == status
        return capsys.readouterr()

    return run


def test_pretty_is_as_tail_shows_it_oldest_first(run, monkeypatch):
    first, second, *more = run().out.splitlines()
    assert first == ('2026-11-22 09:01:02.123Z INFO      shop  order 17 paid  {"amount": 12.5, "odd key": "two words"}')
    assert second.startswith("2026-11-22 09:01:03.000Z ERROR     shop  =cmd|' /C calc'!A0  {")
    assert more[0] == r"    forged \x1b[31m\u202e"
    assert all(line.startswith("    ") for line in more)
    there = "2026-11-22 14:46:02.123+05:45 INFO"
    assert run("--tz", "Asia/Kathmandu", "paid").out.startswith(there)
    monkeypatch.setenv("TZ", "Asia/Kathmandu")
    assert run("--tz", "local", "paid").out.startswith(there)
    monkeypatch.setenv("TZ", ":Asia/Kathmandu")
    assert run("--tz", "local", "paid").out.startswith(there)


def test_words_of_the_filter_before_and_behind_options(run):
    assert run("level=info", "-o", "raw", "paid").out == "order 17 paid\n"
    assert run("level=info", "-o", "raw", "refused", status=1).out == ""
    with pytest.raises(SystemExit) as ended:
        run("level=info", "-o", "raw", "--nonsense")
    assert ended.value.code == 2


def test_the_newest_and_all_of_them(run):
    assert [json.loads(line)["seq"] for line in run("-n", "1", "-o", "ndjson").out.splitlines()] == [2]
    assert [json.loads(line)["seq"] for line in run("-n", "all", "-o", "ndjson").out.splitlines()] == [1, 2]


def test_ends_as_grep_does(run):
    assert run("level>=error").err == ""
    said = run("level>=critical", status=1)
    assert (said.out, said.err.startswith('no records that fit in "logsluice"."logs"')) == ("", True)
    said = run("shop", "level>=loud", status=2)
    assert said.err.splitlines()[0].startswith("logsluice: 'loud' is no level: write trace")
    assert said.err.splitlines()[1:] == ["    shop level>=loud", "                ^"]
    assert "there is no table" in run("--table", "nope", status=2).err
    assert run("--since", "soon", status=2).err.splitlines()[1:] == ["    soon", "    ^"]
    assert run("message~=(", status=2).err.splitlines()[1:] == ["    message~=(", "             ^"]
    assert main(["query", "--dsn", "host=/nowhere"]) == 2


@pytest.mark.parametrize(
    "args",
    [["-n", "0"], ["-n", "x"], ["-o", "xml"], ["--tz", "Mars/Base"], ["--tz", "/etc"], ["--keys", "kebab"],
     ["--timeout", "0"], ["--timeout", "nan"]],
    ids=" ".join,
)  # fmt: skip
def test_wrong_usage(args, capsys):
    with pytest.raises(SystemExit) as ended:
        main(["query", *args])
    assert ended.value.code == 2
    assert args[-1] in capsys.readouterr().err


def test_a_zone_of_the_environment_that_is_none_is_named(monkeypatch, capsys):
    monkeypatch.setenv("TZ", "JST-9")
    with pytest.raises(SystemExit) as ended:
        main(["query", "--tz", "local"])
    assert ended.value.code == 2
    assert "no time zone 'JST-9' here" in capsys.readouterr().err


def test_json_and_ndjson(run):
    text = run("-o", "json").out
    first, second = json.loads(text)
    assert text.isascii()
    assert first == {
        "id": first["id"], "table": "logs", "ts": "2026-11-22T09:01:02.123456Z", "stream": 1, "seq": 1, "level": 20,
        "logger": "shop", "message": "order 17 paid", "trace_id": "ab", "user_id": "7",
        "attributes": {"amount": 12.5, "odd key": "two words"},
    }  # fmt: skip
    assert [json.loads(line) for line in run("-o", "ndjson").out.splitlines()] == [first, second]
    assert json.loads(run("-o", "json", "nothing", status=1).out) == []
    (camel,) = json.loads(run("-o", "json", "--keys", "camel", "--tz", "Europe/Paris", "paid").out)
    assert (camel["traceId"], camel["ts"]) == ("ab", "2026-11-22T10:01:02.123456+01:00")
    assert camel["attributes"] == first["attributes"]  # these are the program's own names
    assert main(["show", first["id"], "--dsn", "host=/nowhere"]) == 2  # the id is one; there is no server


def test_logfmt(run):
    first, second = run("-o", "logfmt").out.splitlines()
    assert re.sub(r"id=\S+ ", "", first, count=1) == (
        'table=logs ts=2026-11-22T09:01:02.123456Z stream=1 seq=1 level=info logger=shop message="order 17 paid" '
        'trace_id=ab user_id=7 amount=12.5 odd_key="two words"'
    )
    assert second.isprintable()
    assert second.endswith('k__="say \\"\\u001b[2J\\"\\u007f\\u009b"')


def test_csv_for_spreadsheets(run):
    text = run("-o", "csv").out
    reader = csv.DictReader(io.StringIO(text))
    head, (first, second) = reader.fieldnames, reader
    assert head[:3] == ["id", "ts", "level"]
    assert (first["message"], first["user_id"], second["user_id"]) == ("order 17 paid", "7", "")
    assert second["message"] == "'=cmd|' /C calc'!A0\nforged \\x1b[31m\\u202e"  # no formula, no control characters
    assert run("-o", "csv", "--keys", "camel", "nothing", status=1).out.startswith(
        "id,ts,level,logger,message,service,traceId"
    )


def test_raw_is_the_message_but_not_onto_a_terminal(run, monkeypatch):
    assert run("-o", "raw").out == f"order 17 paid\n=cmd|' /C calc'!A0\nforged {ESC}[31m{RLO}\n"
    style = output.Style("raw", (), None, terminal=True)
    record = type("Record", (), {"message": f"a\n{ESC}"})
    assert list(output.printed([record], style)) == ["a\n\\x1b"]


def test_a_typed_table(conn, run):
    conn.execute(ApiRequest.__logtype__.ddl(partition="none"))
    conn.execute(
        "INSERT INTO logsluice.api_request (ts, level, stream, seq, method, path, status, duration_ms) VALUES "
        "('2026-11-22', 20, 1, 1, 'GET', '/orders', 503, 1200.5), ('2026-11-22', 20, 1, 2, 'GET', '/', 200, 1)"
    )
    line = run("--table", "api_request", "status>=500", "duration_ms>1000").out
    assert line.endswith('INFO      -  {"method": "GET", "path": "/orders", "status": 503, "duration_ms": 1200.5}\n')
    assert "duration_ms=1200.5" in run("--table", "api_request", "-o", "logfmt", "status>=500").out
    assert json.loads(run("--table", "api_request", "-o", "raw", "status>=500").out)["path"] == "/orders"


def test_as_a_program_whose_reader_leaves(dsn, conn):
    conn.execute(
        "INSERT INTO logsluice.logs (ts, level, message, stream, seq) "
        "SELECT '2026-11-22 09:00Z'::timestamptz + n * interval '1 ms', 20, 'payé ' || n, 1, n "
        "FROM generate_series(1, 5000) n"
    )  # more than a pipe's 64 KiB
    for count in ("5000", "all"):
        process = subprocess.Popen(
            [sys.executable, "-m", "logsluice", "query", "-n", count, "--dsn", dsn],
            env={"PYTHONIOENCODING": "ascii:strict", "PATH": ""}, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip
        assert process.stdout.readline().endswith(b"pay\\xe9 1\n")
        process.stdout.close()
        said = process.stderr.read()
        process.stderr.close()
        assert (said, process.wait(60)) == (b"", 0)


ARGUMENTS = st.lists(
    st.sampled_from(["-n", "-o", "--since", "--until", "--table", "--tz", "--keys", "5", "all", "json", "csv", "15m",
                     "level>=warning", "message~=", "(", '"', "logs", "spans", "UTC", "local"])
    | st.text(st.characters(), max_size=12),
    max_size=5,
)  # fmt: skip


@settings(
    max_examples=60, derandomize=True, database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)  # fmt: skip
@given(ARGUMENTS)
def test_no_argument_makes_a_traceback(dsn, stored, arguments):
    try:
        status = main(["query", "--dsn", dsn, *arguments])
    except SystemExit as ended:
        status = ended.code
    assert status in {0, 1, 2}
