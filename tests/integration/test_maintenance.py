"""Retention beside writers and readers, by an injected clock: what goes, what stays, and what is told of it."""

from __future__ import annotations

import json
import logging
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

import psycopg
import pytest

from logsluice import PostgresHandler, deadletters, holds, maintenance, partitions, retention, sweep, types
from logsluice import maintainer as module
from logsluice.cli import main
from logsluice.contrib import JobLog
from logsluice.errors import ConfigError
from support.processes import run_program, until
from support.servers import acting_as
from support.shop import LIMIT, Shop, writer

DAY = timedelta(days=1)
INSERT = "INSERT INTO logsluice.logs (ts, level, message, attributes, stream, seq) VALUES (%s, %s, %s, %s, 1, 1)"
JOB = "INSERT INTO logsluice.job_log (ts, stream, seq, log_type, message) VALUES (%s, 1, 1, %s, 'x')"
STAR = {"*": "30d"}


def connect(dsn):
    return psycopg.connect(dsn, autocommit=True)


@pytest.fixture
def conn(dsn):
    with connect(dsn) as conn:
        yield conn


def put(conn, moment, level=20, message="m", *, width="day", **attributes):
    partitions.ensure_at(conn, "logsluice", width, moment)
    conn.execute(INSERT, [moment, level, message, json.dumps(attributes)])


def run(conn, given, now, **options):
    return maintenance.run(conn, rules=retention.rules_from(given), now=now, **options)


def messages(conn):
    return [row[0] for row in conn.execute("SELECT message FROM logsluice.logs ORDER BY message").fetchall()]


def figures(report):
    """{(table, rule): (partitions, rows)}"""
    return {(one.table, one.rule): (len(one.partitions), one.rows) for one in report.gone}


def jobs(conn, now, days):
    conn.execute(JobLog.__logtype__.ddl())
    for day in days:
        partitions.ensure_at(conn, "logsluice", "day", now - day * DAY, table="job_log")


@contextmanager
def busy(conn):
    """As if a maintainer were at work on this connection."""
    for how in ("pg_advisory_lock", "pg_advisory_unlock"):
        conn.execute(f"SELECT {how}(hashtextextended('logsluice maintain logsluice', 0))")
        if how == "pg_advisory_lock":
            yield


def hold(conn, name, **values):
    names = ", ".join(["name", "reason", *values])
    given = [json.dumps(one) if isinstance(one, dict) else one for one in values.values()]
    marks = ", ".join(["%s"] * (2 + len(given)))
    conn.execute(f"INSERT INTO logsluice.hold ({names}) VALUES ({marks})", [name, "asked for", *given])


def test_whole_partitions_go_and_what_went_is_told(conn, now):
    for days in (40, 31, 30, 0):
        put(conn, now - days * DAY, message=f"{days}")
    report = run(conn, STAR, now)
    assert messages(conn) == ["0", "30"], "the day of which an hour is not due yet stays"
    (gone,) = report.gone
    assert (gone.table, gone.rule, gone.keep, len(gone.partitions), gone.rows) == ("logs", "*", 30 * 86_400, 2, 0)
    assert gone.size > 0
    assert [name for name in report.made if name.endswith(f"{now + DAY:%Y%m%d}")]
    again = run(conn, STAR, now)
    assert (figures(again), again.made, again.skipped) == ({("logs", "*"): (0, 0)}, [], [])
    assert "logs * 30d: 0 rows" in again.lines(), "also when it is nothing"
    later = run(conn, STAR, now + DAY)
    assert figures(later) == {("logs", "*"): (1, 0)}, "the clock is the one that is given"


def test_levels_and_log_types_go_row_by_row_and_the_rest_with_its_partition(conn, now):
    jobs(conn, now, (40, 8, 3, 0))
    for day in (40, 8, 3, 0):
        for kind in ("jetstream", "sync_job", "other"):
            conn.execute(JOB, [now - day * DAY, kind])
        put(conn, now - day * DAY, 10, f"debug {day:02}")
        put(conn, now - day * DAY, 20, f"info {day:02}", log_type="jetstream")
        put(conn, now - day * DAY, 40, f"error {day:02}")
    given = {"jetstream": "1d", "sync_job": "7d", "DEBUG": "2d", "logs:ERROR": "forever", "*": "30d"}
    report = run(conn, given, now)
    left = conn.execute("SELECT %s::date - ts::date, log_type FROM logsluice.job_log ORDER BY 1, 2", [now]).fetchall()
    assert left == [(0, "jetstream"), (0, "other"), (0, "sync_job"), (3, "other"), (3, "sync_job"), (8, "other")]
    assert messages(conn) == ["debug 00", "error 00", "error 03", "error 08", "error 40", "info 00"]
    found = figures(report)
    assert found["job_log", "*"] == (1, 0)
    assert found["job_log", "jetstream"] == (0, 2)
    assert found["job_log", "sync_job"] == (0, 1)
    assert found["logs", "DEBUG"] == (0, 3), "those of 40 days, too: that partition stays for its errors"
    assert found["logs", "jetstream"] == (0, 3)
    assert found["logs", "logs:ERROR"] == (0, 0)


def test_a_partition_that_is_emptied_goes(conn, now):
    put(conn, now - 40 * DAY, 10)
    put(conn, now - 41 * DAY, 40)
    conn.execute("ANALYZE logsluice.logs")
    dry = run(conn, {"ERROR": "90d", "*": "30d"}, now, dry_run=True)
    report = run(conn, {"ERROR": "90d", "*": "30d"}, now)
    assert dry.gone == report.gone
    assert figures(report) == {("logs", "ERROR"): (0, 0), ("logs", "*"): (1, 1)}
    assert [one.partition_rows for one in report.gone] == [0, 0], "no row is counted twice"
    assert messages(conn) == ["m"]


def test_many_rows_go_in_many_small_transactions(conn, now, monkeypatch):
    monkeypatch.setattr(sweep, "WINDOW", 2)
    put(conn, now - 5 * DAY, 40, "kept")
    conn.execute(
        "INSERT INTO logsluice.logs (ts, level, stream, seq) SELECT %s, 10, 1, n FROM generate_series(1, 2000) n",
        [now - 5 * DAY],
    )
    before = conn.execute("SELECT txid_current()").fetchone()[0]
    assert figures(run(conn, {"DEBUG": "1d"}, now)) == {("logs", "DEBUG"): (0, 2000)}
    assert conn.execute("SELECT txid_current()").fetchone()[0] - before > 5
    assert messages(conn) == ["kept"]


def test_rows_of_long_partitions_are_not_kept_until_their_end(conn, now):
    for days in range(50, 20, -5):
        put(conn, now - days * DAY, message=f"{days}", width="month")
    run(conn, STAR, now)
    assert messages(conn) == ["25", "30"]


def test_a_plain_table_is_swept(empty_dsn, now):
    from logsluice import schema

    with connect(empty_dsn) as conn:
        schema.migrate(conn, partition="none")
        for days in (40, 5, 0):
            conn.execute(INSERT, [now - days * DAY, 10 if days == 5 else 20, f"{days}", "{}"])
        assert figures(run(conn, {"DEBUG": "3d", **STAR}, now)) == {("logs", "DEBUG"): (0, 1), ("logs", "*"): (0, 1)}
        assert messages(conn) == ["0"]
        assert run(conn, {"DEBUG": "3d", **STAR}, now).made == []


def test_a_dry_run_changes_nothing_and_says_the_same(dsn, conn, now):
    put(conn, now - 40 * DAY)
    put(conn, now - 5 * DAY, 10)
    given = {"DEBUG": "3d", **STAR}
    with connect(dsn) as other, busy(other):
        dry = run(conn, given, now, dry_run=True)  # needs no turn
    assert len(messages(conn)) == 2
    wet = run(conn, given, now)
    assert figures(dry) == figures(wet) == {("logs", "DEBUG"): (0, 1), ("logs", "*"): (1, 0)}
    assert dry.made == []


def test_what_types_declare_is_the_default_and_holds_where_the_class_is_not_known(conn, now, monkeypatch):
    @types.logtype(table="test_payment", retention="10d")
    class Payment:
        amount: int

    conn.execute(Payment.__logtype__.ddl())
    monkeypatch.delitem(types.known, "test_payment")  # another program's
    for days in (20, 5):
        partitions.ensure_at(conn, "logsluice", "day", now - days * DAY, table="test_payment")
        put(conn, now - days * DAY)
    report = run(conn, None, now)
    assert figures(report) == {("test_payment", retention.DECLARED): (1, 0)}
    assert len(messages(conn)) == 2


def test_what_somebody_detached_by_hand_is_nobodys(conn, now):
    put(conn, now - 40 * DAY)
    name = partitions.listed(conn, "logsluice")[0].name
    conn.execute(f"ALTER TABLE logsluice.logs DETACH PARTITION logsluice.{name}")
    run(conn, {"DEBUG": "1d", "*": "2d"}, now)
    assert conn.execute(f"SELECT count(*) FROM logsluice.{name}").fetchone() == (1,)


def test_dead_letters_go_only_by_a_rule_that_names_them(conn, now):
    for days in (40, 20):
        conn.execute(
            "INSERT INTO logsluice.dead_letter (at, stream, position, target, row) VALUES (%s, 1, 1, 'logs', 'x')",
            [now - days * DAY],
        )
    run(conn, STAR, now)
    assert conn.execute("SELECT count(*) FROM logsluice.dead_letter").fetchone() == (2,)
    assert figures(run(conn, {"dead_letter": "30d"}, now)) == {("dead_letter", "dead_letter"): (0, 1)}
    hold(conn, "case", ends=now, match={"user_id": "u-7"})
    assert figures(run(conn, {"dead_letter": "10d"}, now)) == {("dead_letter", "dead_letter"): (0, 0)}
    assert deadletters.drop(conn, before=now) == 0
    conn.execute("DELETE FROM logsluice.hold")
    assert figures(run(conn, {"dead_letter": "10d"}, now)) == {("dead_letter", "dead_letter"): (0, 1)}


# Watermarks


def test_a_watermark_goes_only_when_nobody_can_need_it(conn, now):
    put(conn, now - 50 * DAY)
    rows = {
        "a journal that may still wait": (None, 100, True),
        "of a program that does not say": (None, 100, None),
        "a journal that is gone": (40, 100, True),
        "gone, and nothing said": (40, 100, None),
        "gone of late": (20, 100, True),
        "memory, before the oldest partition": (None, 60, False),
        "memory, whose rows may be there": (None, 49, False),
        "memory, whose rows may be a day ahead of it": (None, 51.5, False),
        "memory, in use": (None, 1, False),
    }
    for number, (service, (retired, updated, journal)) in enumerate(rows.items()):
        conn.execute(
            "INSERT INTO logsluice.stream (stream, service, updated, retired, journal) VALUES (%s, %s, %s, %s, %s)",
            [
                number, service, now - updated * DAY, None if retired is None else now - retired * DAY, journal
            ],
        )  # fmt: skip

    def left():
        return {row[0] for row in conn.execute("SELECT service FROM logsluice.stream").fetchall()}

    first = {"a journal that is gone", "gone, and nothing said", "memory, before the oldest partition"}
    assert run(conn, None, now, dry_run=True).streams == 3
    assert run(conn, None, now).streams == 3
    assert left() == set(rows) - first
    assert run(conn, STAR, now).streams == 2, "their last partition is gone"
    assert left() == set(rows) - first - {one for one in rows if one.startswith("memory, whose rows may")}


def test_a_watermark_that_a_writer_holds_is_left_to_it(dsn, conn, now, monkeypatch):
    monkeypatch.setattr(partitions, "DROP_LOCK_TIMEOUT", "50ms")
    for number in (1, 2):
        conn.execute("INSERT INTO logsluice.stream (stream, retired) VALUES (%s, %s)", [number, now - 40 * DAY])
    with connect(dsn) as other, other.transaction():
        other.execute("SELECT FROM logsluice.stream WHERE stream = 1 FOR UPDATE")
        report = run(conn, None, now)
    assert (report.streams, report.skipped) == (1, [])
    assert conn.execute("SELECT stream FROM logsluice.stream").fetchall() == [(1,)]


KILLED = """
import logging, os
from logsluice import PostgresHandler

handler = PostgresHandler(dsn=os.environ["LOGS_DSN"], journal=os.environ["JOURNAL"])
log = logging.getLogger("shop")
log.addHandler(handler)
for number in range(5):
    log.warning("before %d", number)
assert handler.flush(30)
os._exit(0)
"""


@pytest.mark.parametrize("kept", [True, False])
def test_a_journal_that_comes_back_after_a_year_is_not_stored_again(dsn, conn, now, tmp_path, kept):
    """Its rows are committed, its file is not unlinked. Without the watermark they would be twice: the test can fail."""
    folder = str(tmp_path / "journal")
    program = run_program(KILLED, env={"LOGS_DSN": dsn, "JOURNAL": folder}, timeout=2 * LIMIT)
    assert program.returncode == 0, program.stderr
    conn.execute("UPDATE logsluice.stream SET updated = %s, started = updated", [now - 365 * DAY])
    assert run(conn, None, now).streams == 0
    if not kept:
        conn.execute("DELETE FROM logsluice.stream")
    with Shop(dsn, journal=folder) as shop:
        shop.logger.info("after")
        assert until(lambda: shop.listener.adoptions, LIMIT)
        assert shop.flush()
    assert len([one for one in messages(conn) if one.startswith("before")]) == (5 if kept else 10)


def test_a_stream_says_whether_it_has_a_journal(dsn, conn, tmp_path):
    for options in ({}, {"journal": str(tmp_path / "journal")}):
        with Shop(dsn, **options) as shop:
            shop.log(1)
            assert shop.flush()
    assert conn.execute("SELECT journal FROM logsluice.stream ORDER BY started").fetchall() == [(False,), (True,)]


def test_a_database_of_version_3_keeps_what_it_does_not_know(dsn, conn, now):
    """A program that is updated before its database stores, and retention takes no memory stream for a journal."""
    conn.execute("ALTER TABLE logsluice.stream DROP COLUMN journal; DROP TABLE logsluice.hold")
    with Shop(dsn, create=False) as shop:
        shop.log(3)
        assert shop.flush()
        shop.check()
    conn.execute("UPDATE logsluice.stream SET updated = %s", [now - 100 * DAY])
    put(conn, now - 40 * DAY)
    report = run(conn, STAR, now)
    assert (report.streams, report.skipped, figures(report)) == (0, [], {("logs", "*"): (1, 0)})


# Beside others


def test_a_writer_runs_while_partitions_and_rows_go(dsn, conn, now):
    """Nothing lost, nothing twice, and no batch failed."""
    for days in range(60, 0, -6):
        for level in (10, 20):
            put(conn, now - days * DAY, level, f"old {days}")
    ended = threading.Event()
    with Shop(dsn) as shop:

        def log():
            while not ended.is_set():
                shop.log(20)
                shop.flush()  # no faster than they are stored

        with ThreadPoolExecutor(1) as pool:
            logging = pool.submit(log)
            try:
                went = 0
                for day in range(0, 50, 2):
                    report = run(conn, {"DEBUG": "2d", "*": "30d"}, now - (50 - day) * DAY)
                    assert report.skipped == []
                    went += sum(len(one.partitions) for one in report.gone)
                assert until(lambda: shop.stats.stored > 200, LIMIT)
            finally:
                ended.set()
            logging.result(LIMIT)
        assert went >= 5, "those of old rows; others were made ahead of the clock and went in their turn"
        assert not conn.execute("SELECT 1 FROM logsluice.logs WHERE ts < %s", [now - 32 * DAY]).fetchall()
        assert shop.flush()
        shop.check()
        assert shop.failed() == []


def test_two_at_once(dsn, conn, now):
    for days in range(60, 40, -1):
        put(conn, now - days * DAY)
    with connect(dsn) as other, busy(other):
        report = run(conn, STAR, now)
        assert (report.leader, report.gone, report.made) == (False, [], [])
        assert report.lines() == ["another maintainer is at work: nothing done"]

    def work():
        with connect(dsn) as mine:
            return run(mine, STAR, now)

    with ThreadPoolExecutor(2) as pool:
        reports = [one.result(LIMIT) for one in [pool.submit(work), pool.submit(work)]]
    assert any(one.leader for one in reports)
    assert all(one.skipped == [] for one in reports)
    assert sum(len(gone.partitions) for one in reports for gone in one.gone) == 20
    assert run(conn, STAR, now).leader, "the lock is given back"


def test_a_reader_that_stays_is_told_and_the_rest_is_done_next_time(dsn, conn, now, monkeypatch):
    monkeypatch.setattr(partitions, "DROP_LOCK_TIMEOUT", "50ms")
    for days in (40, 41):
        put(conn, now - days * DAY)
    jobs(conn, now, (40,))
    with psycopg.connect(dsn) as reader:
        reader.execute("SELECT count(*) FROM logsluice.logs")
        report = run(conn, STAR, now)
        assert report.skipped == [
            f"logs_{now - 41 * DAY:%Y%m%d} is not dropped, it is tried again next time: an open transaction still uses it"
        ]
        assert figures(report) == {("logs", "*"): (0, 0), ("job_log", "*"): (1, 0)}, "the other table is not kept by it"
        assert report.made, "tomorrow's partition was made"
        with connect(dsn) as other:
            other.execute(INSERT, [now, 20, "stored", "{}"])
    report = run(conn, STAR, now)
    assert (figures(report)["logs", "*"], report.skipped) == ((2, 0), [])
    assert messages(conn) == ["stored"]


def test_making_and_dropping_fail_apart(conn, now):
    put(conn, now - 40 * DAY)
    put(conn, now - 39 * DAY)
    first = partitions.listed(conn, "logsluice")[0].name
    conn.execute(f"CREATE VIEW public.report AS SELECT * FROM logsluice.{first}")
    report = run(conn, STAR, now)
    assert len(report.made) == 3
    assert [line for line in report.skipped if first in line and "depend on it" in line]
    assert figures(report)["logs", "*"] == (1, 0), "one that is in use keeps no other"
    conn.execute("DROP VIEW public.report; DROP FUNCTION logsluice.make_partitions")
    report = run(conn, STAR, now + DAY)
    assert [line for line in report.skipped if line.startswith("logs: no partition can be made ahead")]
    assert figures(report)["logs", "*"] == (1, 0)


def test_least_privileges(dsn, conn, admin, now):
    """The owner of the tables needs no more; a writer's role takes nothing, and is told."""
    for days in (40, 5):
        put(conn, now - days * DAY, 10)
    given = {"DEBUG": "3d", **STAR}
    with writer(dsn, admin) as (role_dsn, _), connect(role_dsn) as mine:
        report = run(mine, given, now)
        assert figures(report)["logs", "*"] == (0, 0)
        assert len(report.made) >= 2, "partitions are made by the function"
        assert len(report.skipped) >= 2
        assert len(messages(conn)) == 2
    owner = f"owner_{conn.info.dbname}"
    conn.execute(f"CREATE ROLE {owner}")
    me = conn.execute("SELECT current_user").fetchone()[0]
    moved = (
        "DO $$ DECLARE one record; BEGIN FOR one IN SELECT oid::regclass AS name FROM pg_class WHERE relnamespace = "
        "'logsluice'::regnamespace AND relkind IN ('r', 'p') LOOP EXECUTE format('ALTER TABLE %s OWNER TO {}', one.name); "
        "END LOOP; EXECUTE 'ALTER SCHEMA logsluice OWNER TO {}; ALTER FUNCTION logsluice.make_partitions OWNER TO {}'; "
        "END $$"
    )
    try:
        conn.execute(moved.replace("{}", owner))
        with acting_as(conn, owner):
            report = run(conn, given, now)
        assert (figures(report), report.skipped) == ({("logs", "DEBUG"): (0, 1), ("logs", "*"): (1, 0)}, [])
    finally:
        conn.execute(f"REASSIGN OWNED BY {owner} TO {me}; DROP OWNED BY {owner}; DROP ROLE {owner}")


def test_a_killed_connection_leaves_no_lock(dsn, conn, now):
    mine = connect(dsn)
    put(conn, now - 40 * DAY)

    def stop():
        conn.execute("SELECT pg_terminate_backend(%s)", [mine.info.backend_pid])
        return False

    with pytest.raises(psycopg.OperationalError):
        run(mine, STAR, now, stop=stop)
    mine.close()
    assert until(lambda: run(conn, STAR, now).leader, LIMIT)
    assert messages(conn) == []


@pytest.mark.parametrize(
    "argv",
    [["maintain", "--once", "--keep", "*=30d"], ["forget", "--user", "u-7"], ["archive", "x", "--format", "jsonl"]],
)
def test_a_misspelt_schema_does_not_pass_for_a_tidy_one(dsn, argv, capsys):
    assert main([*argv, "--dsn", dsn, "--schema", "logsluce"]) == 1
    said = capsys.readouterr()
    assert said.out == ""
    assert 'there are no tables of logs in schema "logsluce" of database' in said.err
    assert "--schema and --dsn say where to look" in said.err


def test_a_stop_ends_it_between_two_steps(conn, now):
    for days in (40, 41):
        put(conn, now - days * DAY)
    asked = []
    report = run(conn, STAR, now, stop=lambda: asked.append(1) or len(asked) > 2)
    assert sum(len(one.partitions) for one in report.gone) == 1


# Legal holds


def test_a_hold_keeps_its_rows_and_no_others(conn, now):
    for days in (40, 41):
        put(conn, now - days * DAY, message=f"mine {days}", user_id="u-7")
        put(conn, now - days * DAY, message=f"other {days}")
    hold(conn, "case 7", match={"user_id": "u-7"}, target="logs", ends=now - 40.5 * DAY)
    hold(conn, "elsewhere", target="job_log")
    report = run(conn, STAR, now)
    assert messages(conn) == ["mine 41"]
    assert report.held == [f"logs_{now - 41 * DAY:%Y%m%d}: hold 'case 7' keeps rows of it"]
    assert figures(report) == {("logs", "*"): (1, 1)}
    conn.execute("DELETE FROM logsluice.hold")
    run(conn, STAR, now)
    assert messages(conn) == []


@pytest.fixture
def late(monkeypatch):
    """What it is set to is done when a partition was looked at, a moment before it is detached."""
    todo = []
    detach = partitions._detach

    def detached(*given):
        while todo:
            todo.pop()()
        detach(*given)

    monkeypatch.setattr(partitions, "_detach", detached)
    return todo


def test_a_held_row_that_comes_at_the_last_moment_stays(conn, now, late):
    put(conn, now - 40 * DAY, message="other")
    hold(conn, "case 7", match={"user_id": "u-7"})
    late.append(lambda: put(conn, now - 40 * DAY, message="mine", user_id="u-7"))
    name = f"logs_{now - 40 * DAY:%Y%m%d}"
    assert run(conn, STAR, now).skipped == [f"{name} is not dropped: hold 'case 7' keeps rows of it"]
    assert not late
    assert messages(conn) == ["mine", "other"], "it is a partition again"
    report = run(conn, STAR, now)
    assert (messages(conn), report.held) == (["mine"], [f"{name}: hold 'case 7' keeps rows of it"])
    put(conn, now - 40 * DAY, message="later")
    conn.execute("DELETE FROM logsluice.hold")
    assert figures(run(conn, STAR, now)) == {("logs", "*"): (1, 0)}


def test_rows_that_stay_are_seen_also_where_a_writer_made_another_partition_meanwhile(conn, now, monkeypatch):
    """It could not be attached again, and nobody saw its rows any more."""
    conn.execute("ALTER TABLE logsluice.logs ADD COLUMN size int GENERATED ALWAYS AS (length(message)) STORED")
    put(conn, now - 40 * DAY, message="mine", user_id="u-7")
    detach = partitions._detach

    def overtaken(*given):
        monkeypatch.undo()
        hold(conn, "case 7", match={"user_id": "u-7"})
        detach(*given)
        partitions.ensure_at(conn, "logsluice", "hour", now - 40 * DAY)
        put(conn, now - 40 * DAY, message="late")

    monkeypatch.setattr(partitions, "_detach", overtaken)
    (said,) = run(conn, STAR, now).skipped
    assert said.endswith("is not dropped: hold 'case 7' keeps rows of it")
    assert messages(conn) == ["late", "mine"]
    assert run(conn, STAR, now).skipped == []
    assert messages(conn) == ["mine"]


def test_what_is_forgotten_while_rows_are_moved_is_not_moved(dsn, conn, now, monkeypatch):
    """Copied before the DELETE was committed, the row was in `logs` again when `forget` had gone by."""
    monkeypatch.setattr(partitions, "DROP_LOCK_TIMEOUT", f"{LIMIT}s")
    put(conn, now - 40 * DAY, message="forgotten")
    put(conn, now - 40 * DAY, message="other")
    (part,) = partitions.expired(conn, "logsluice", 30 * DAY, now)
    conn.execute(f"ALTER TABLE logsluice.logs DETACH PARTITION {part.full_name}")
    partitions.ensure_at(conn, "logsluice", "day", now - 40 * DAY)
    with connect(dsn) as forget, connect(dsn) as mine, ThreadPoolExecutor(1) as pool:
        with forget.transaction():
            forget.execute(f"DELETE FROM {part.full_name} WHERE message = 'forgotten'")
            moving = pool.submit(partitions._move, mine, "logsluice.logs", part)
            waits = "SELECT true FROM pg_locks WHERE pid = %s AND NOT granted"
            assert until(lambda: conn.execute(waits, [mine.info.backend_pid]).fetchone(), LIMIT)
        moving.result(LIMIT)
    assert messages(conn) == ["other"]


def test_a_row_that_is_kept_for_ever_and_comes_at_the_last_moment_stays(conn, now, late):
    put(conn, now - 40 * DAY)
    late.append(lambda: put(conn, now - 40 * DAY, 40, "late"))
    given = {"ERROR": "forever", "*": "30d"}
    (said,) = run(conn, given, now).skipped
    assert said.endswith("is not dropped: it has rows that are not due or came late")
    assert (messages(conn), late) == (["late"], [])
    assert run(conn, given, now).skipped == []
    assert messages(conn) == ["late"]


def test_a_hold_that_is_written_after_an_interrupted_drop_brings_the_partition_back(conn, now, late):
    put(conn, now - 40 * DAY)
    (part,) = [one for one in partitions.listed(conn, "logsluice") if one.upper <= now - 30 * DAY]

    def killed():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        partitions.drop(conn, "logsluice", part, before=killed)
    assert messages(conn) == []
    hold(conn, "case 7")
    assert run(conn, STAR, now).skipped == [f"{part.name} is not dropped: hold 'case 7' keeps rows of it"]
    assert messages(conn) == ["m"]


def test_a_hold_knows_numbers_as_postgresql_writes_them(conn, now):
    """Of a float Python writes 1e-05, ->> of jsonb 0.00001: a hold that asked for the former would keep nothing."""
    for number in (0.00001, 1e22, -2.5e-7, 1.0, 1.5, 7):
        put(conn, now - 40 * DAY, message=f"{number}", ratio=number)
        hold(conn, f"of {number}", match={"ratio": number})
        assert holds.has({"attributes": json.dumps({"ratio": number})}, {"ratio": number})
    put(conn, now - 40 * DAY, message="other", ratio=0.5)
    run(conn, STAR, now)
    assert messages(conn) == sorted(["1e-05", "1e+22", "-2.5e-07", "1.0", "1.5", "7"])


@pytest.mark.parametrize("given", [{"*": "90d"}, {"ERROR": "forever", "*": "30d"}])
def test_a_drop_that_was_interrupted_is_undone_where_rows_are_not_due(conn, now, given):
    """They came late, or the rules are others by now: detached no reader would ever see them."""
    put(conn, now - 40 * DAY, 40)
    (part,) = partitions.listed(conn, "logsluice")

    def killed():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        partitions.drop(conn, "logsluice", part, before=killed)
    assert messages(conn) == []
    assert run(conn, given, now, dry_run=True).skipped == []
    assert run(conn, given, now).skipped == [f"{part.name} is not dropped: it has rows that are not due or came late"]
    assert messages(conn) == ["m"]
    assert run(conn, given, now).skipped == []


def test_a_hold_may_end_never(conn, now):
    for days in (40, 41):
        put(conn, now - days * DAY, message=f"{days}")
    hold(conn, "case", starts=f"{now - 40.5 * DAY}", ends="infinity")
    hold(conn, "elsewhere", target="dead_letter", starts="-infinity", ends="infinity")
    assert run(conn, STAR, now).skipped == []
    assert messages(conn) == ["40"]


def test_a_hold_that_keeps_nothing_is_told(conn, now):
    hold(conn, "a slip", target="Logs")
    hold(conn, "turned", starts=now, ends=now - DAY)
    hold(conn, "right", target="dead_letter")
    assert run(conn, STAR, now, dry_run=True).skipped == [
        "hold 'a slip' keeps nothing: there is no table 'Logs'",
        "hold 'turned' keeps nothing: it ends before it starts",
    ]


def test_a_hold_of_a_time_keeps_it_whole(conn, now):
    for days in (40, 41, 42):
        put(conn, now - days * DAY, 10, message=f"{days}")
    hold(conn, "week", starts=now - 41.4 * DAY, ends=now - 40.6 * DAY)
    run(conn, {"DEBUG": "1d", "*": "30d"}, now)
    assert messages(conn) == ["41"]
    hold(conn, "all")
    conn.execute("DELETE FROM logsluice.hold WHERE name = 'week'")
    report = run(conn, {"DEBUG": "1d", "*": "30d"}, now)
    assert (messages(conn), len(report.held)) == (["41"], 1)


def test_where_holds_cannot_be_read_nothing_goes(conn, admin, dsn, now):
    put(conn, now - 40 * DAY)
    owner = f"owner_{conn.info.dbname}"
    conn.execute(f"CREATE ROLE {owner}; GRANT ALL ON SCHEMA logsluice TO {owner}")
    try:
        conn.execute(f"ALTER TABLE logsluice.logs OWNER TO {owner}")
        with acting_as(conn, owner):
            report = run(conn, STAR, now)
        assert [line for line in report.skipped if "permission denied for table hold" in line]
        assert messages(conn) == ["m"]
    finally:
        conn.execute(f"ALTER TABLE logsluice.logs OWNER TO CURRENT_USER; DROP OWNED BY {owner}; DROP ROLE {owner}")


# In a handler


def test_a_handler_that_is_closed_by_its_first_record_maintains_nothing(monkeypatch):
    """Another thread closed it a moment before its maintenance began, which then went on for ever."""
    made = module.Maintainer

    def closed_meanwhile(*given):
        handler.close()
        return made(*given)

    monkeypatch.setattr(module, "Maintainer", closed_meanwhile)
    handler = PostgresHandler(dsn="host=/nowhere", maintenance=STAR, shutdown_timeout=0.1)
    handler.handle(logging.makeLogRecord({"msg": "first"}))
    assert not handler._maintainer._starter


def test_a_handler_maintains_and_says_what_went(dsn, conn, now, capfd):
    put(conn, now - 40 * DAY)
    with Shop(dsn, maintenance=STAR) as shop:
        shop.log(3)
        maintainer = shop.handler._maintainer
        assert until(lambda: maintainer.runs, LIMIT)
        assert figures(maintainer.last) == {("logs", "*"): (1, 0)}
        clock = [now.timestamp() + 40 * 86_400]
        put(conn, now - 20 * DAY)
        maintainer.link.now = lambda: clock[0]
        maintainer.hurry()
        assert until(lambda: maintainer.runs == 2, LIMIT)
        assert sum(len(one.partitions) for one in maintainer.last.gone) >= 1
        assert shop.flush()
        shop.law()
    maintainer.done.wait(LIMIT)
    assert maintainer.done.is_set()
    said = capfd.readouterr().err
    assert "maintenance: logs * 30d: 0 rows, 1 partitions (" in said


def test_a_failure_is_said_and_stores_on(dsn, conn, now, admin, capfd):
    put(conn, now - 40 * DAY)
    with writer(dsn, admin) as (role_dsn, _), Shop(role_dsn, read=dsn, create=False, maintenance=STAR) as shop:
        shop.log(3)
        assert until(lambda: shop.handler._maintainer.runs, LIMIT)
        assert shop.flush()
        assert len(shop.stored()) == 3
    assert "not done: logs: cannot be pruned" in capfd.readouterr().err


def test_without_the_option_there_is_no_thread(dsn):
    with Shop(dsn) as shop:
        shop.log(1)
        assert shop.flush()
        assert shop.handler._maintainer is None
        assert not [one for one in threading.enumerate() if one.name.endswith("-maintenance")]


@pytest.mark.parametrize("given", [{"*": "3m"}, 7, "", "/nowhere.json", {"*": "x"}])
def test_wrong_rules_are_refused_where_the_handler_is_made(given):
    from logsluice import PostgresHandler

    with pytest.raises(ConfigError, match=r"maintenance|retention rule"):
        PostgresHandler(dsn="", maintenance=given)


FORKED = """
import logging, os, sys
from logsluice import PostgresHandler
sys.path.insert(0, sys.argv[1])
from support.processes import run_program, until

handler = PostgresHandler(dsn=os.environ["LOGS_DSN"], maintenance={"*": "30d"})
log = logging.getLogger("shop")
log.addHandler(handler)
log.warning("parent")
assert until(lambda: handler._maintainer.runs, 30)
inherited = handler._maintainer
pid = os.fork()
if pid == 0:
    log.warning("child")
    fresh = handler._maintainer is not inherited and until(lambda: handler._maintainer.runs, 30)
    os._exit(0 if fresh and handler.flush(30) else 2)
assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
inherited.hurry()
assert until(lambda: inherited.runs == 2, 30)
assert handler.flush(30)
"""


def test_a_forked_child_has_a_maintainer_of_its_own(dsn, conn, now):
    """What it inherited it never touches: the parent goes on."""
    put(conn, now - 40 * DAY)
    program = run_program(FORKED, env={"LOGS_DSN": dsn}, args=[str(Path(__file__).parents[1])], timeout=3 * LIMIT)
    assert program.returncode == 0, program.stderr
    assert messages(conn) == ["child", "parent"]
    assert program.stderr.count("maintenance: ") == 3
