"""`Query.follow`: what it reads, what it tells of late rows, and what it does without rights, xmin or connection."""

from __future__ import annotations

import threading

import psycopg
import pytest

from logsluice import following
from logsluice.errors import LogsluiceError
from logsluice.late import LateRows
from logsluice.query import Query

STREAM, OTHER = 77, 88


@pytest.fixture
def conn(dsn):
    with psycopg.connect(dsn, autocommit=True) as conn:
        conn.execute("SELECT logsluice.make_partitions(now() - interval '3 days', now())")
        yield conn


def store(conn, *rows, stream=STREAM, known=True):
    """Store rows as a handler does: [(seconds ago, seq)], and the stream's count, in one transaction."""
    with conn.transaction():
        for ago, seq in rows:
            conn.execute(
                "INSERT INTO logsluice.logs (ts, level, message, stream, seq) "
                "VALUES (now() - %s * interval '1 s', 20, %s, %s, %s)", [ago, f"row {seq}", stream, seq],
            )  # fmt: skip
        if known:
            conn.execute(
                "INSERT INTO logsluice.stream AS s (stream, stored) VALUES (%s, %s) ON CONFLICT (stream) DO UPDATE "
                "SET stored = s.stored + excluded.stored", [stream, len(rows)],
            )  # fmt: skip


class Followed:
    """A follower that is asked look by look: each `+` is what happens before the next one."""

    def __init__(self, query, text="", **options):
        self.late, self.said, self.steps = [], [], []
        self.stop = threading.Event()
        options = {"poll": 0.001, "window": 60, "late": self.late.append, "notice": self.said.append, **options}
        self.stop.wait = self._step
        self.found = query.follow(text, stop=self.stop, **options)

    def _step(self, _seconds):
        if not self.steps:
            self.stop.set()
            return True
        self.steps.pop(0)()
        return False

    def run(self, *steps):
        self.steps = list(steps)
        return [record.seq for record in self.found]


def nothing():
    pass


def test_each_row_once_in_order_with_those_that_were_there(dsn, conn):
    store(conn, (30, 1), (20, 2), (10, 3))
    slow = psycopg.connect(dsn)
    slow.execute("INSERT INTO logsluice.logs (ts, level, stream, seq) VALUES (now() - interval '5 s', 20, 1, 9)")
    with slow, Query(dsn) as query:
        follow = Followed(query, last=2)
        assert follow.run(
            nothing,
            lambda: store(conn, (1, 6), (2, 5), (3, 4)),  # by time within a look
            lambda: store(conn, (1, 8), known=False),  # by hand
            slow.commit,  # it began before the first look
            *[nothing] * 3,
            lambda: store(conn, (40, 10)),  # no narrow look reads that far
            lambda: store(conn, (0, 11)),
        ) in ([2, 3, 4, 5, 6, 8, 9, 10, 11], [2, 3, 4, 5, 6, 10, 8, 9, 11], [2, 3, 4, 5, 6, 8, 10, 9, 11])
    assert follow.late == follow.said == []


def test_late_rows_are_counted_whatever_the_filter_is_and_found_by_what_is_told(dsn, conn):
    store(conn, (0, 1), stream=OTHER)
    store(conn, (3700, 1), (0, 2))
    with Query(dsn) as query:
        follow = Followed(query, "message~=9")
        assert follow.run(
            lambda: store(conn, (3600, 9), (3500, 10), (0, 19)),
            lambda: store(conn, (3400, 11)),
            lambda: store(conn, (90_000, 7), stream=99),  # of a day before: a stream nobody knows
            nothing,
        ) == [19]
        ours, unknown = sorted(follow.late, key=lambda late: late.stream)
        assert (ours.stream, ours.count, ours.found, ours.seqs) == (STREAM, 3, 3, (9, 11))
        assert (unknown.stream, unknown.count, unknown.found) == (99, 1, 1)
        for late, seqs in ((ours, [9, 10, 11]), (unknown, [7])):
            assert [r.seq for r in query.iterate(late.filter, since=late.since, until=late.until)] == seqs


def test_late_rows_of_a_stream_are_told_once_a_window_and_the_rest_at_the_end(dsn, conn):
    store(conn, (0, 1))
    told = []
    with Query(dsn) as query:
        follow = Followed(query)

        def note():
            told.append([late.count for late in follow.late])

        first, more = (lambda: store(conn, (3600, 2))), (lambda: store(conn, (3500, 3), (3400, 4)))
        assert follow.run(first, nothing, note, more, nothing, note) == []
    assert told == [[1], [1]]
    assert [late.count for late in follow.late] == [1, 2]


def test_streams_of_other_tables_are_not_late_here(dsn, conn):
    conn.execute("CREATE TABLE logsluice.job_log (LIKE logsluice.logs)")
    with Query(dsn) as query:
        follow = Followed(query)

        def elsewhere():
            conn.execute(
                "WITH row AS (INSERT INTO logsluice.job_log (ts, level, stream, seq) VALUES (now(), 20, 5, 1)) "
                "INSERT INTO logsluice.stream (stream, stored) VALUES (5, 1), (6, 1)"
            )  # 6 is of a table that is not here at all

        assert follow.run(elsewhere, lambda: conn.execute("UPDATE logsluice.stream SET stored = stored + 1")) == []
    assert follow.late == []


def test_without_the_right_to_read_streams_and_of_a_view(dsn, conn):
    role = psycopg.conninfo.conninfo_to_dict(dsn)["dbname"] + "_reader"
    conn.execute(f"CREATE ROLE {role}")
    try:
        conn.execute(f"GRANT USAGE ON SCHEMA logsluice TO {role}; GRANT SELECT ON logsluice.logs TO {role}")
        with Query(f"{dsn}&options=-c%20role%3D{role}") as query:
            follow = Followed(query)
            assert follow.run(lambda: store(conn, (1, 1), (3600, 2)), lambda: store(conn, (40, 3)), nothing) == [1, 3]
            (said,) = follow.said
            assert "this role may not read" in said
        conn.execute("CREATE VIEW logsluice.mine AS SELECT * FROM logsluice.logs")
        with Query(dsn) as query:
            follow = Followed(query, table="mine")
            assert follow.run(lambda: store(conn, (-1, 4)), lambda: store(conn, (-1, 5)), nothing) == [4, 5]
            assert follow.late == []
    finally:
        conn.execute(f"DROP OWNED BY {role}; DROP ROLE {role}")


def test_a_lost_connection_is_said_and_nothing_missed(dsn, conn):
    def cut():
        conn.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'logsluice' "
                     "AND datname = current_database()")  # fmt: skip
        store(conn, (0, 2))

    with Query(dsn) as query:
        follow = Followed(query)
        assert follow.run(lambda: store(conn, (0, 1)), cut, nothing, lambda: store(conn, (0, 3))) == [1, 2, 3]
        assert [text.split(":")[0] for text in follow.said] == [
            "the connection is lost, trying again",
            "connected again",
        ]
        with pytest.raises(LogsluiceError, match="window must be"):
            next(query.follow(window=0))
    with psycopg.connect(dsn, autocommit=True) as given:
        follow = Followed(Query(given))
        with pytest.raises(psycopg.OperationalError):
            follow.run(given.close)


def test_a_late_row_that_the_server_is_too_slow_to_find_is_told_all_the_same(dsn, conn, monkeypatch):
    def slow(_follower, conn, *_run):
        conn.execute("SET LOCAL statement_timeout = '10ms'")  # of the search alone: all else takes what it takes
        conn.execute("SELECT pg_sleep(60)")

    monkeypatch.setattr(LateRows, "_measured", slow)
    store(conn, (0, 1))
    with Query(dsn) as query:
        follow = Followed(query)
        assert follow.run(lambda: store(conn, (3600, 2)), lambda: store(conn, (0, 3)), nothing) == [3]
        (late,) = follow.late
        assert (late.stream, late.count, late.found, late.since, late.seqs) == (STREAM, 1, None, None, None)
        assert [one.seq for one in query.iterate(late.filter, until=late.until)] == [2]


def test_late_rows_are_told_at_the_end_also_between_two_pages(dsn, conn, monkeypatch):
    monkeypatch.setattr(following, "PAGE", 1)
    store(conn, (0, 1))
    with Query(dsn) as query:
        follow = Followed(query)
        follow.steps = [lambda: store(conn, (3600, 2), (0, 3)), lambda: store(conn, (0, 4), (0, 5))]
        for record in follow.found:
            if record.seq == 4:
                follow.stop.set()
    assert [(late.count, late.seqs) for late in follow.late] == [(1, (2, 2))]
