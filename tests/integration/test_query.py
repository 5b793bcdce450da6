"""`logsluice.query` on a real server: what filters find, pages both ways, streaming, following, named queries."""

from __future__ import annotations

import json
import tracemalloc
from datetime import datetime, timedelta, timezone
from uuid import UUID

import psycopg
import pytest
from psycopg_pool import ConnectionPool

from logsluice import query as module
from logsluice.cli import main
from logsluice.contrib import Activity, JobLog, MessageEvent
from logsluice.errors import ConfigError, LogsluiceError
from logsluice.grammar import FilterError
from logsluice.query import Count, Key, Query

NOW = datetime.now(timezone.utc).replace(microsecond=0)
JOB = UUID(int=7)


@pytest.fixture
def conn(dsn):
    with psycopg.connect(dsn, autocommit=True) as conn:
        conn.execute("SELECT logsluice.make_partitions(now() - interval '3 days', now() + interval '1 day')")
        yield conn


@pytest.fixture
def query(dsn):
    with Query(dsn) as query:
        yield query


def insert(conn, *rows, table="logs"):
    """Store rows, each a dict; a later one has a later seq, and a later time unless it says its own."""
    for number, given in enumerate(rows):
        row = {"ts": NOW + timedelta(seconds=number), "level": 20, "stream": 1, "seq": number, **given}
        row = {key: json.dumps(value) if isinstance(value, dict) else value for key, value in row.items()}
        names = ", ".join(f'"{key}"' for key in row)
        conn.execute(
            f"INSERT INTO logsluice.{table} ({names}) VALUES ({', '.join(['%s'] * len(row))})", list(row.values())
        )


def typed(conn, kind):
    table = kind.__logtype__.table
    conn.execute(kind.__logtype__.ddl())
    conn.execute(
        "SELECT logsluice.make_partitions(now() - interval '1 day', now() + interval '1 day', %s, 'day')", [table]
    )


@pytest.fixture
def rows(conn):
    insert(
        conn,
        {"message": "Card refused", "level": 40, "logger": "shop.pay", "user_id": "7", "line": 10,
         "attributes": {"amount": 12.5, "order": {"id": "a b"}, "http.status": 500, "ok": False}},
        {"message": "card accepted", "logger": "shop.pay", "user_id": "8", "attributes": {"amount": 100, "n": "007"}},
        {"message": "100% done_now \\ it", "level": 10, "logger": "shop.mail", "user_id": "", "line": 30,
         "exc_type": "KeyError"},
        {"message": None, "level": 35, "attributes": {"amount": "12.50", "big": "9" * 400, "none": None}},
    )  # fmt: skip


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("", "0123"),
        ("card", "01"),
        ("CARD refused", "0"),
        ('"card refused"', "0"),
        ("100%", "2"),
        ("done_now \\", "2"),
        ("d_ne", ""),
        ("level>=warning", "03"),
        ("level>=warning card", "0"),
        ("level=35", "3"),
        ("level<30 level!=debug", "1"),
        ("logger=shop.pay", "01"),
        ("logger!=shop.pay", "23"),
        ("logger~=^shop[.]m", "2"),
        ("message~=Card", "0"),
        ("message~~=card", "01"),
        ("message!~=Card", "123"),
        ("message!~~=card", "23"),
        ('user_id=""', "23"),
        ('user_id!=""', "01"),
        ('line=""', "13"),
        ("line>=10 line<30", "0"),
        ("exc_type=KeyError", "2"),
        ("amount=12.5", "03"),
        ("amount!=12.5", "12"),
        ("amount>12.5", "1"),
        ("amount>=12.5", "013"),
        ("big>1", ""),
        ("n=7", "1"),
        ("n=007", "1"),
        ('order.id="a b"', "0"),
        ("order.id~=^a", "0"),
        ("http.status>=500", "0"),
        ("ok=false", "0"),
        ('none="" amount!=""', "013"),
        ("attributes~~=AMOUNT", "013"),
        ("attributes.nothing=1", ""),
        ("ts=NOW", "0"),
        ("ts>NOW until=LATER", "1"),
        ("since=2d", "0123"),
        ("until=2d", ""),
        ("'; DROP TABLE logsluice.logs; --", ""),
    ],
)  # fmt: skip
def test_what_filters_find(rows, query, text, found):
    # Not in the parameters: pytest's processes read the clock at different moments, and would find different tests.
    text = text.replace("NOW", NOW.isoformat()).replace("LATER", (NOW + timedelta(seconds=2)).isoformat())
    assert "".join(str(record.seq) for record in query.logs(text, newest_first=False)) == found
    assert query.count(text) == (len(found), False)


ODD = {
    "1": {"tags": ["x", 5], "ok": "true", "price": "12.50", "o": {"a": 1}, "k": '\\ "é', "a": {"b": 3}},
    "2": {"tags": "x", "ok": True, "price": 12.5, "o": '{"a": 1}', "k": "\\", "a.b": 3.0, "big": 10**40},
    "3": {"tags": [["x"]], "ok": False, "price": "12.5x", "o": None, "k": "", "a": {"b": "3"}, "a.b": 4},
}


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("tags=x", "2"),
        ("tags.0=x", "1"),
        ("tags.1=5.0", "1"),
        ("ok=true", "12"),
        ("ok!=true", "3"),
        ("price=12.5", "12"),
        ("price=12.500", "12"),
        ("price=1.25e1", "12"),
        ("price!=12.5", "3"),
        ('o="{\\"a\\": 1}"', "12"),
        ('k="\\\\ \\"é"', "1"),
        ('k="\\\\"', "2"),
        ("a.b=3", "123"),
        ("a.b!=3", ""),
        ("big=1e40", "2"),
    ],
)
def test_which_attributes_are_equal(conn, query, text, found):
    insert(conn, *({"message": name, "attributes": attributes} for name, attributes in ODD.items()))
    assert "".join(sorted(record.message for record in query.logs(text))) == found


def test_an_index_of_attributes_serves_what_is_no_number(conn, query):
    conn.execute("CREATE INDEX odd ON logsluice.logs USING gin (attributes jsonb_path_ops)")
    insert(conn, *({"attributes": {"region": f"r{number % 50}"}} for number in range(200)))
    conn.execute("ANALYZE logsluice.logs; SET enable_seqscan = off; SET enable_indexscan = off")
    text, values = query._plan(conn, "region=r7", "logs", None, None).select(backwards=True)
    ((shown,),) = conn.execute("EXPLAIN (FORMAT JSON) " + text.as_string(conn), values).fetchall()
    assert "Bitmap Index Scan" in json.dumps(shown)


def test_what_a_record_is(rows, query):
    record = query.logs("refused")[0]
    assert (record.table, record.ts, record.level, record.message) == ("logs", NOW, 40, "Card refused")
    assert record.attributes["order"] == {"id": "a b"}
    assert record.key == Key(NOW, 1, 0)
    assert query.logs(after=record.id, limit=1)[0].seq == 1
    assert list(record.values()) == [
        "ts",
        "stream",
        "seq",
        "level",
        "logger",
        "message",
        "user_id",
        "line",
        "attributes",
    ]
    with pytest.raises(AttributeError):
        record.level = 10


def test_times_as_arguments(rows, query):
    for since in (NOW + timedelta(seconds=2), (NOW + timedelta(seconds=2)).isoformat()):
        assert [one.seq for one in query.logs(since=since)] == [3, 2]
        assert [one.seq for one in query.logs(until=since)] == [1, 0]
    assert len(query.logs(since=timedelta(days=1))) == 4
    with pytest.raises(FilterError, match="'soon' is no time"):
        query.logs(since="soon")
    with pytest.raises(LogsluiceError, match="since must be a text such as '15m'"):
        query.logs(since=5)


def test_pages_both_ways_with_equal_timestamps(conn, query):
    """Three instants, three streams, counting downwards in one: each row once in either way, from any place."""
    keys = [
        (NOW + timedelta(seconds=at), stream, seq * (-1 if stream == 2 else 1))
        for at in range(3) for stream in (1, 2, 3) for seq in range(4)
    ]  # fmt: skip
    insert(conn, *({"ts": ts, "stream": stream, "seq": seq} for ts, stream, seq in keys))
    keys.sort()
    for size in (1, 5, 36, 40):
        older, newer = [], []
        page = query.logs(limit=size)
        while page:
            older += page
            page = query.logs(limit=size, before=page[-1])
        assert [one.key for one in older] == keys[::-1]
        page = query.logs(limit=size, newest_first=False)
        while page:
            newer += page
            page = query.logs(limit=size, after=page[-1].key, newest_first=False)
        assert [one.key for one in newer] == keys
    page = query.logs(limit=5)
    second = query.logs(limit=5, before=page[-1])
    assert query.logs(limit=5, after=second[0]) == page  # back again: the nearest, in the order of the page
    assert [one.key for one in query.logs(after=keys[3], before=keys[7])] == keys[4:7][::-1]
    assert [one.key for one in query.logs(before=keys[7], limit=2, newest_first=False)] == keys[5:7]
    with pytest.raises(LogsluiceError, match="does not say when"):
        query.logs(after="1~2")


def test_a_million_rows_stream_in_the_memory_of_a_thousand(conn, query):
    conn.execute(
        "INSERT INTO logsluice.logs (ts, level, message, stream, seq) "
        "SELECT now() - n * interval '1 ms', 20, repeat('x', 500), 1, n FROM generate_series(1, 20000) n"
    )
    tracemalloc.start()
    try:
        total = sum(1 for _ in query.iterate("level>=info"))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert total == 20_000
    assert peak < 5 << 20  # all of them would be 30 MB and more
    first = query.iterate(newest_first=True)
    assert next(first).seq == 1
    first.close()
    assert query.count(capped=10) == Count(10, more=True)
    assert str(query.count()) == "10,000+"


def test_nothing_is_written_nothing_waits_for_ever_and_no_operator_of_others_is_used(conn, query, dsn):
    insert(conn, {})
    with query._reading() as reader, pytest.raises(psycopg.errors.ReadOnlySqlTransaction):
        reader.execute("DELETE FROM logsluice.logs")
    hasty = Query(conn, statement_timeout=0.05)
    with pytest.raises(LogsluiceError, match=r"was stopped after 0\.05 s"), hasty._reading() as reader:
        reader.execute("SELECT pg_sleep(60)")
    conn.execute("CREATE FUNCTION public.no(text, text) RETURNS bool LANGUAGE sql AS 'SELECT true'")
    conn.execute("CREATE OPERATOR public.~ (LEFTARG = text, RIGHTARG = text, FUNCTION = public.no)")
    conn.execute("SET search_path = public, pg_catalog")
    assert Query(conn).logs("message~=x") == []
    assert conn.execute("SHOW search_path").fetchone() == ("public, pg_catalog",)
    assert conn.execute("SHOW transaction_read_only").fetchone() == ("off",)
    for wrong in (0, -1, 1e9):
        with pytest.raises(ConfigError, match="statement_timeout must be"):
            Query("", statement_timeout=wrong)


def test_pools_and_connections_of_the_program(dsn, rows):
    with ConnectionPool(dsn, min_size=1, max_size=1, open=True) as pool:
        assert len(Query(pool).logs()) == 4
        with pool.connection() as conn:
            assert Query(conn).count() == (4, False)  # one without autocommit, in no transaction
            conn.execute("SELECT 1")
            with pytest.raises(LogsluiceError, match="is in a transaction: commit it first"):
                Query(conn).logs()


def test_a_wrong_dsn_is_said_without_its_password():
    with pytest.raises(ConfigError, match="dsn: libpq") as raised:
        Query("postgresql://me:se@cret%zz@host/db")
    assert "cret" not in str(raised.value)


def test_no_dsn_is_said():
    with pytest.raises(ConfigError, match="must be a libpq string, a ConnectionPool or a Connection, got None"):
        Query(None)


def test_no_server_is_said(monkeypatch):
    monkeypatch.setattr(module, "CONNECT_SECONDS", 0.1)
    with Query("host=/nowhere") as query, pytest.raises(LogsluiceError, match="no connection to the database within"):
        query.logs()


@pytest.mark.parametrize("text", ["message~=(", "level>=info message~~=a{2,1} x"])
def test_a_wrong_expression_is_pointed_at_on_an_empty_table_too(query, text):
    with pytest.raises(FilterError, match="invalid regular expression") as raised:
        query.logs(text)
    assert raised.value.at == text.index("=", text.index("~")) + 1


def test_a_table_that_is_not_there_and_limits_that_are_none(query, empty_dsn):
    with pytest.raises(LogsluiceError, match=r'no table "logsluice"."nope" .* of records there: logs[.]'):
        query.logs(table="nope")
    with Query(empty_dsn) as empty, pytest.raises(LogsluiceError, match="of records there: none"):
        empty.logs()
    for name in ("a\0b", "a\udc80b"):
        with pytest.raises(LogsluiceError, match="is no name of a table"):
            query.logs(table=name)
    for wrong in (0, "5", True, 10**19):
        with pytest.raises(LogsluiceError, match="must be a whole number from 1 on"):
            query.logs(limit=wrong)


def test_arguments_that_are_none_are_said(query):
    for key in (5, (1, 2)):
        with pytest.raises(LogsluiceError, match="after and before take a record, its key or its id"):
            query.logs(before=key)
    with pytest.raises(LogsluiceError, match="before the year 1"):
        query.logs(since=timedelta(days=10**6))


def test_rows_that_somebody_else_inserted(dsn, conn):
    conn.execute("CREATE SCHEMA own; CREATE TABLE own.logs (LIKE logsluice.logs, at date, span interval, many int[])")
    conn.execute(
        "INSERT INTO own.logs (ts, level, stream, seq, attributes, at, span, many) VALUES "
        "('infinity', 20, 1, 1, '[1]', 'infinity', '1000000 years', '{1,2}'), "
        "('20000-01-01', 20, 1, 2, (repeat('9', 5000))::jsonb, null, null, null), "
        "('4000-01-01 BC', 20, 1, 3, (repeat('[', 3000) || repeat(']', 3000))::jsonb, null, null, null)"
    )
    found = Query(conn, schema="own").logs()
    assert [one.ts.year for one in found] == [9999, 9999, 1]
    assert found[0].fields == {"at": "infinity", "span": "1000000 years", "many": "{1,2}"}
    assert found[1].attributes == "9" * 5000
    assert [one.seq for one in Query(conn, schema="own").logs("many={1,2}")] == [1]


def test_names_that_drivers_and_templates_read(dsn, conn, capsys):
    """Of tables and columns that somebody else made, or `restore --into`."""
    conn.execute('CREATE TABLE logsluice."100% {x}" (LIKE logsluice.logs, "50% ""off" text, "{}%s" timestamptz)')
    conn.execute(
        'INSERT INTO logsluice."100% {x}" (ts, level, stream, seq, attributes, "50% ""off", "{}%s") '
        "VALUES ('2026-11-27Z', 20, 7, 8, '{\"a\": 1}', 'x', '2026-11-28Z')"
    )
    with Query(dsn) as query:
        (found,) = query.logs("a=1 seq=8", table="100% {x}")
        assert found.fields['50% "off'] == "x"
        assert found.fields["{}%s"].day == 28
        assert [one.key for one in query.iterate(table="100% {x}")] == [found.key]
        assert query.count(table="100% {x}").number == 1
    assert main(["show", found.id, "--dsn", dsn]) == 0
    assert '50% "off' in capsys.readouterr().out


def test_a_reader_needs_select_alone(dsn, conn, rows):
    name = f"reader_{conn.info.dbname}"
    conn.execute(f"CREATE ROLE {name}")
    try:
        conn.execute(
            f"GRANT USAGE ON SCHEMA logsluice TO {name}; GRANT SELECT (ts, stream, seq, message) ON logsluice.logs TO {name}"
        )
        with psycopg.connect(dsn, autocommit=True) as reader:
            reader.execute(f"SET ROLE {name}")
            assert [one.message for one in Query(reader).logs("accepted")] == ["card accepted"]
            with pytest.raises(FilterError, match="there is no column 'level'"):
                Query(reader).logs("level>=info")
    finally:
        conn.execute(f"DROP OWNED BY {name}; DROP ROLE {name}")


def test_named_queries_of_jobs(conn, query):
    typed(conn, JobLog)
    common = {"message": "m"}
    insert(
        conn,
        {"log_type": "sync_job", "job_id": JOB, "slice_uri": "at://a", **common},
        {"log_type": "jetstream", "slice_uri": "at://a", **common},
        {"log_type": "jetstream", "slice_uri": "at://b", **common},
        {"log_type": "jetstream", **common},
        {"log_type": "sync_job", "job_id": JOB, "metadata": {"step": 2}, **common},
        table="job_log",
    )
    seqs = lambda found: [one.seq for one in found]  # noqa: E731
    assert seqs(query.job(JOB)) == seqs(query.job(str(JOB))) == [0, 4]
    assert seqs(query.job(JOB, limit=1)) == [0]
    assert seqs(query.jetstream()) == [3, 2, 1]
    assert seqs(query.jetstream("at://a")) == [3, 1]
    assert seqs(query.slice("at://a")) == [1, 0]
    assert seqs(query.slice("at://a", log_type="sync_job", limit=5)) == [0]
    assert seqs(query.logs(f"job_id={JOB} metadata.step=2", table="job_log")) == [4]
    assert query.job(JOB)[0].fields == {"log_type": "sync_job", "job_id": JOB, "user_did": None, "slice_uri": "at://a",
                                        "metadata": None}  # fmt: skip
    with pytest.raises(LogsluiceError, match="job_id must be a uuid"):
        query.job("7")


def test_named_queries_of_messages_and_users(conn, query):
    typed(conn, MessageEvent)
    typed(conn, Activity)
    message = {"channel": "email", "attempts": 1, "priority": 1}
    insert(
        conn,
        {"job_id": "a", "status": "failed", **message},
        {"job_id": "b", "status": "queued", **message},
        {"job_id": "a", "status": "sent", **message},
        {"job_id": "b", "status": "failed", "ts": NOW + timedelta(seconds=1), **message},  # with "queued"
        table="message_event",
    )
    assert [one.fields["job_id"] for one in query.status("failed")] == ["b"]
    assert [one.fields["job_id"] for one in query.status("sent")] == ["a"]
    assert query.status("queued") == []
    done = {"activity_type": "message_sent", "activity_status": "success"}
    insert(
        conn,
        {"user_id": "u1", "session_id": "s1", **done},
        {"user_id": "u1", "session_id": "s2", **done},
        {"user_id": "u2", "session_id": "s2", **done},
        {"user_id": "7", "session_id": "s3", **done},
        table="activity",
    )
    assert [one.seq for one in query.user(7)] == [3]
    assert [one.seq for one in query.user("u1")] == [1, 0]
    assert [one.seq for one in query.user("u1", session_id="s1")] == [0]
    assert [one.seq for one in query.session("s2", limit=1)] == [2]
    with pytest.raises(FilterError, match="has no message to look for"):
        query.logs("sent", table="activity")
