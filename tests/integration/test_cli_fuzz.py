"""Hostile names, filters and times where a server answers: an exit status and a sentence, never a traceback."""

from __future__ import annotations

import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from logsluice.cli import main

NAMES = st.sampled_from([
    "", "logsluice", 'a"b', "a'b", "a.b", "%s", "é" * 40, "x" * 200, "pg_catalog", "a b", "{}", "\x1b[31m", "logs", "\\", "日本", "\udcff",
])  # fmt: skip
FILTERS = st.sampled_from([
    "", "level>=error", "level!=99999999999", 'logger="%s"', "message~=(((", "message~~=\\\\", "attributes.a.b.c>1e99", "line=" + "9" * 30,
    "ts>0001-01-01", "ts<9999-12-31", "%", "_%\\", '"', "amount=" + "9" * 30 + "e99", "amount=1e-99", "since=999999w", "trace_id=",
    "attributes~=a{99999}", "%(schema)s %s {}",
]) | st.text(st.sampled_from("a=~!<>\"\\ .%'()[{*1é日"), max_size=12)  # fmt: skip
TIMES = st.sampled_from(
    ["999999w", "0001-01-01", "9999-12-31T23:59:59Z", "yesterday", "0001-01-01T00:00:00+14:00", "1m"]
)
FORMATS = st.sampled_from(["pretty", "json", "ndjson", "logfmt", "csv", "raw"])
IDS = st.sampled_from([
    "0001-01-01T00:00:00Z~1~1", "1~1", "9223372036854775807~9223372036854775807", "9223372036854775808~1", "9999-12-31T23:59:59.999999Z~1~1",
    "00000000-0000-0000-0000-000000000000", "ffffffff-ffff-ffff-ffff-ffffffffffff",
])  # fmt: skip
COMMANDS = st.one_of(
    st.tuples(st.just("query"), FILTERS, st.just("--since"), TIMES, st.just("-o"), FORMATS),
    st.tuples(st.just("query"), FILTERS, st.just("--table"), NAMES, st.just("--schema"), NAMES),
    st.tuples(st.just("tail"), st.just("--schema"), NAMES),
    st.tuples(st.just("show"), IDS, st.just("--schema"), NAMES),
    st.tuples(st.just("trace"), NAMES.filter(bool)),
    st.tuples(st.just("stats"), st.just("--since"), TIMES, st.just("--service"), NAMES),
    st.tuples(st.just("prune"), st.just("--keep"), st.sampled_from(["1d", "5000w", "36525d", "999999m"])),
    st.tuples(st.just("maintain"), st.sampled_from(["--once"]), st.just("--dry-run"), st.just("--keep"), st.sampled_from([
        "*=36525d", "a'b=5000w", "logs:%s=2d", "-1=3d", "99999=3d", "é=1d", "logs=forever", '"=2d', "10=2d",
    ])),
    st.tuples(st.just("forget"), NAMES.map(lambda name: f"{name}=1")),
    st.tuples(st.just("forget"), NAMES.map(lambda name: f"user_id={name}")),
    st.tuples(st.just("dead"), st.just("list"), st.just("--target"), NAMES),
    st.tuples(st.just("dead"), st.sampled_from(["show", "drop", "replay"]), st.just("9223372036854775807:9223372036854775807")),
    st.tuples(st.just("decrypt"), st.just("--key"), st.just("/dev/null"), st.just("--table"), NAMES, st.just("--column"), NAMES),
    st.tuples(st.just("partitions"), st.just("--schema"), NAMES),
    st.tuples(st.just("streams"), st.just("--schema"), NAMES, st.just("--service"), NAMES),
)  # fmt: skip


@pytest.fixture
def stored(dsn, monkeypatch):
    """Some rows, odd ones among them; an exception that nobody expected is raised, not told of."""
    with psycopg.connect(dsn, autocommit=True) as conn:
        conn.execute("SELECT logsluice.make_partitions(now() - interval '2 days', now() + interval '1 day')")
        conn.execute(
            "INSERT INTO logsluice.logs (ts, level, logger, message, attributes, stream, seq) SELECT now(), 40, 'a', m, "
            "a::jsonb, 1, n FROM (VALUES (1, 'x %s {}', '{\"amount\": 1e300}'), (2, NULL, NULL), (3, '', '[[1]]')) r (n, m, a)"
        )
    monkeypatch.setenv("LOGSLUICE_DSN", dsn)
    monkeypatch.setenv("LOGSLUICE_DEBUG", "1")


@settings(
    max_examples=30, derandomize=True, database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)  # fmt: skip
@given(COMMANDS)
def test_no_argument_gives_a_traceback_where_a_server_answers(stored, capsys, argv):
    try:
        status = main(argv)
    except SystemExit as ended:
        status = ended.code
    said = capsys.readouterr()
    assert status in {0, 1, 2}
    assert (said.out + said.err).strip()
    assert "Traceback" not in said.err
