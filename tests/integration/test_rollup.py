"""The hourly roll-up: the same figures as the rows themselves, whatever comes late, twice, back, or in between."""

from __future__ import annotations

import dataclasses
import json
import logging
import threading
from concurrent.futures import ThreadPoolExecutor, wait
from datetime import datetime, timedelta, timezone

import psycopg
import pytest
from psycopg.rows import dict_row

from logsluice import deadletters, erasure, maintenance, partitions, reports, retention, rollup, schema
from logsluice.cli import main
from logsluice.errors import ConfigError, LogsluiceError
from logsluice.query import Query
from support.processes import until
from support.shop import LIMIT, Shop, writer

HOUR, DAY = timedelta(hours=1), timedelta(days=1)
NOW = datetime.now(timezone.utc).replace(minute=0, second=0, microsecond=0)
SCOPE = reports.Scope(NOW - 30 * DAY, NOW + DAY)


def connect(dsn):
    return psycopg.connect(dsn, autocommit=True)


@pytest.fixture
def plain(dsn):
    """Without a roll-up, partitions of two days made."""
    with connect(dsn) as conn:
        partitions.ensure(conn, "logsluice", "day", NOW - DAY)
        yield conn


@pytest.fixture
def conn(plain):
    """With one, that has begun."""
    schema.apply(plain, schema.rollup())
    assert rollup.refresh(plain, "logsluice") == 0
    return plain


def put(conn, moment=NOW, number=1, **values):
    row = {"ts": moment, "level": 20, "service": "shop", "logger": "a", "message": "é", "stream": 1, "seq": 1, **values}
    marks = ", ".join(f"%({name})s" for name in row)
    conn.execute(f"INSERT INTO logsluice.logs ({', '.join(row)}) SELECT {marks} FROM generate_series(1, {number})", row)


def asked(conn, scope):
    """What each of the reports says, in any order."""
    every = {"levels": 6 * HOUR, "error_rate": 6 * HOUR}
    with reports.snapshot(conn):
        found = {one: getattr(reports, one)(conn, scope, *filter(None, [every.get(one)])) for one in reports.ROLLED}
    return {name: sorted(map(str, rows)) for name, rows in found.items()}


def rolled(conn, scope=SCOPE):
    return asked(conn, dataclasses.replace(scope, rolled=True))


def records(conn, scope=SCOPE):
    return sum(one.records for one in reports.services(conn, dataclasses.replace(scope, rolled=True)))


def test_a_connection_whose_rows_are_dicts_is_given_the_same_figures(dsn, conn):
    put(conn, NOW - HOUR, 3)
    assert rollup.refresh(conn, "logsluice") == 3
    with psycopg.connect(dsn, autocommit=True, row_factory=dict_row) as other:
        assert rolled(other) == rolled(conn)
        with other.transaction(), pytest.raises(ConfigError, match="READ COMMITTED has no one state"):
            records(other)


def counted(conn):
    """The rows that are in the table of the roll-up itself."""
    return conn.execute("SELECT coalesce(sum(records), 0)::int FROM logsluice.logs_hourly").fetchone()[0]


def maintain(conn, given, now=NOW):
    return maintenance.run(conn, rules=retention.rules_from(given), now=now)


def test_its_column_is_no_part_of_a_record(conn):
    put(conn)
    (found,) = Query(conn).logs()
    assert (found.message, found.fields) == ("é", {})


def test_it_says_what_the_rows_say_before_they_are_counted_and_after(conn):
    for moment in (NOW - 3 * HOUR, NOW - 3 * HOUR + timedelta(minutes=59), NOW):
        for service in ("shop", "", None):
            put(conn, moment, service=service, logger=None)
            put(conn, moment, 2, service=service, logger="", level=40, exc_text="x" * 50, attributes='{"a": [1]}')
    put(conn, NOW, logger="l" * 9000, level=35)  # more than an entry of an index may have
    raw = asked(conn, SCOPE)
    assert rolled(conn) == raw
    assert counted(conn) == 0
    assert rollup.refresh(conn, "logsluice") == 28
    assert (counted(conn), rolled(conn)) == (28, raw)
    assert rollup.refresh(conn, "logsluice") == 0
    assert (counted(conn), rolled(conn)) == (28, raw)
    shop = dataclasses.replace(SCOPE, since=NOW - 3 * HOUR, until=NOW, service="shop")
    assert rolled(conn, shop) == asked(conn, shop)
    put(conn, NOW - 3 * HOUR, 5)  # an hour that is counted already
    raw = asked(conn, SCOPE)
    assert rolled(conn) == raw
    assert rollup.refresh(conn, "logsluice") == 5
    assert (counted(conn), rolled(conn)) == (33, raw)


def test_rows_that_commit_late_are_counted_once(dsn, conn):
    with connect(dsn) as late, connect(dsn) as savepoints:
        late.execute("BEGIN")
        put(late, NOW - 20 * HOUR)
        savepoints.execute("BEGIN; SAVEPOINT one")
        put(savepoints, NOW - 20 * HOUR, level=40)
        put(conn, NOW, 3)
        assert rollup.refresh(conn, "logsluice") == 3
        put(late, NOW)
        late.execute("COMMIT")
        assert records(conn) == 5
        assert rollup.refresh(conn, "logsluice") == 2
        savepoints.execute("RELEASE one; COMMIT")
        assert rollup.refresh(conn, "logsluice") == 1
    assert (counted(conn), rolled(conn)) == (6, asked(conn, SCOPE))


def test_what_was_there_before_is_counted_day_by_day(dsn, plain, monkeypatch):
    patient = schema.rollup().replace("'2s'", f"'{LIMIT}s'")  # on a busy machine we may be slow to let it go on
    monkeypatch.setattr(schema, "rollup", lambda *_: patient)
    for days in range(2, 6):
        partitions.ensure_at(plain, "logsluice", "day", NOW - days * DAY)
        put(plain, NOW - days * DAY, 10)
    with connect(dsn) as late:  # the column is made behind it
        late.execute("BEGIN")
        put(late, NOW - 2 * DAY)
        with ThreadPoolExecutor(1) as pool:
            made = pool.submit(main, ["migrate", "--rollup", "--dsn", dsn])
            waits = (
                "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND query LIKE '%%ALTER TABLE%%'"
            )
            assert until(lambda: plain.execute(waits).fetchone() == (1,), LIMIT)
            late.execute("COMMIT")
            assert made.result(LIMIT) == 0
        late.execute("BEGIN")
        put(late, NOW - 4 * DAY)
        put(plain, NOW - 4 * DAY, 3)
        with pytest.raises(LogsluiceError, match=r"the roll-up has not counted all rows yet, then `logsluice maintain"):
            rolled(plain)
        stops = iter([False, False, True])
        assert rollup.refresh(plain, "logsluice", stop=lambda: next(stops)) == 10 + 13, "two days of the four"
        put(plain, NOW - 5 * DAY, 2)  # days that are counted already, and one that is not
        put(plain, NOW - 3 * DAY, 2)
        late.execute("COMMIT")
    with pytest.raises(LogsluiceError, match="not counted all rows yet"):
        rolled(plain)
    assert rollup.refresh(plain, "logsluice") == 1 + 4 + 10 + 11
    assert (counted(plain), rolled(plain)) == (49, asked(plain, SCOPE))
    assert main(["migrate", "--rollup", "--dsn", dsn]) == 0, "again"
    assert rollup.refresh(plain, "logsluice") == 0


@pytest.mark.parametrize("by_hand", [False, True])
def test_a_row_that_comes_when_its_partition_is_dropped_is_counted_first(dsn, conn, monkeypatch, by_hand):
    partitions.ensure_at(conn, "logsluice", "day", NOW - 20 * DAY)
    put(conn, NOW - 20 * DAY)
    detach = partitions._detach

    def late(*given):
        monkeypatch.undo()
        put(conn, NOW - 20 * DAY)
        detach(*given)

    monkeypatch.setattr(partitions, "_detach", late)
    for left in (2, 0):
        if by_hand:
            assert main(["prune", "--dsn", dsn, "--keep", "15d", "--yes"]) == 0
        else:
            assert len(maintain(conn, {"*": "15d"}).skipped) == (left > 0)
        assert conn.execute("SELECT count(*) FROM logsluice.logs").fetchone() == (left,)
    assert conn.execute("SELECT sum(records) FROM logsluice.logs_hourly").fetchone() == (2,)


@pytest.mark.parametrize("by_hand", [False, True])
def test_rows_of_a_partition_whose_drop_was_interrupted_are_counted(dsn, conn, by_hand):
    """Readers of `logs` do not see them any more: the next count passed them over, and they went uncounted."""
    partitions.ensure_at(conn, "logsluice", "day", NOW - 20 * DAY)
    put(conn, NOW - 20 * DAY)
    rollup.refresh(conn, "logsluice")
    put(conn, NOW - 20 * DAY)  # late
    (part,) = partitions.expired(conn, "logsluice", 15 * DAY, NOW)

    def killed():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        partitions.drop(conn, "logsluice", part, before=killed)
    if by_hand:
        assert main(["prune", "--dsn", dsn, "--keep", "15d", "--yes"]) == 0
    else:
        assert maintain(conn, {"*": "15d"}).skipped == []
    assert partitions.expired(conn, "logsluice", 15 * DAY, NOW) == []
    assert (counted(conn), rollup.refresh(conn, "logsluice")) == (2, 0)


def test_a_partition_whose_drop_was_interrupted_before_there_was_a_roll_up_is_counted_and_goes(plain):
    """It has no `xact`, and was neither counted nor ever dropped."""
    partitions.ensure_at(plain, "logsluice", "day", NOW - 20 * DAY)
    put(plain, NOW - 20 * DAY)
    put(plain)
    (part,) = partitions.expired(plain, "logsluice", 15 * DAY, NOW)

    def killed():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        partitions.drop(plain, "logsluice", part, before=killed)
    schema.apply(plain, schema.rollup())
    assert maintain(plain, {"*": "15d"}).skipped == []
    assert partitions.expired(plain, "logsluice", 15 * DAY, NOW) == []
    assert (counted(plain), rollup.refresh(plain, "logsluice")) == (2, 0)


def test_nothing_is_deleted_before_it_is_counted(conn, monkeypatch):
    for days in (20, 10):
        partitions.ensure_at(conn, "logsluice", "day", NOW - days * DAY)
        put(conn, NOW - days * DAY, 4)
        put(conn, NOW - days * DAY, 4, level=10)
    refresh = rollup.refresh

    def overtaken(*args, **options):
        number = refresh(*args, **options)
        put(conn, NOW - 20 * DAY)
        put(conn, NOW - 10 * DAY, level=10)
        return number

    monkeypatch.setattr(rollup, "refresh", overtaken)
    raw = asked(conn, SCOPE)
    assert rolled(conn) == raw
    report = maintain(conn, {"DEBUG": "2d", "*": "15d"})
    assert report.counted == 16
    assert "roll-up: 16 rows counted" in report.lines()
    assert [one.split(":")[0] for one in report.skipped] == [f"logs_{NOW - 20 * DAY:%Y%m%d} is not dropped"]
    assert records(conn) == 18
    monkeypatch.undo()
    report = maintain(conn, {"DEBUG": "2d", "*": "15d"})
    assert (report.counted, report.skipped, sum(len(one.partitions) for one in report.gone)) == (2, [], 1)
    assert conn.execute("SELECT count(*) FROM logsluice.logs").fetchone() == (4,)
    assert (records(conn), counted(conn)) == (18, 18)


def test_prune_by_hand_counts_first_and_forget_leaves_the_counts(dsn, conn):
    partitions.ensure_at(conn, "logsluice", "day", NOW - 20 * DAY)
    put(conn, NOW - 20 * DAY, 4)
    assert main(["prune", "--keep", "10d", "--yes", "--dsn", dsn]) == 0
    assert conn.execute("SELECT count(*) FROM logsluice.logs").fetchone() == (0,)
    assert records(conn) == 4
    put(conn, NOW, 3, user_id="u-7", message="of u-7")
    rollup.refresh(conn, "logsluice")
    assert sum(one.rows for one in erasure.erase(conn, {"user_id": "u-7"})) == 3
    assert records(conn) == 7
    assert "u-7" not in str(conn.execute("SELECT * FROM logsluice.logs_hourly").fetchall())


def test_pruning_waits_for_a_roll_up_that_is_not_full(plain, monkeypatch):
    partitions.ensure_at(plain, "logsluice", "day", NOW - 20 * DAY)
    put(plain, NOW - 20 * DAY)
    schema.apply(plain, schema.rollup())
    monkeypatch.setattr(rollup, "refresh", lambda *_, **__: None)
    report = maintain(plain, {"*": "10d"})
    assert report.skipped == ["logs: cannot be pruned: the roll-up has not counted all of its rows yet"]
    assert plain.execute("SELECT count(*) FROM logsluice.logs").fetchone() == (1,)


def test_prune_by_hand_drops_nothing_while_another_one_fills_it(dsn, plain, capsys):
    partitions.ensure_at(plain, "logsluice", "day", NOW - 20 * DAY)
    put(plain, NOW - 20 * DAY)
    schema.apply(plain, schema.rollup())
    prune = ["prune", "--dsn", dsn, "--keep", "10d", "--yes"]
    with connect(dsn) as other, other.transaction():
        other.execute("SELECT FROM logsluice.logs_hourly_state FOR UPDATE")
        assert main(prune) == 0
    assert "rows came that the roll-up has not counted yet" in capsys.readouterr().out
    assert plain.execute("SELECT count(*) FROM logsluice.logs").fetchone() == (1,)
    assert main(prune) == 0
    assert (plain.execute("SELECT count(*) FROM logsluice.logs").fetchone(), counted(plain)) == ((0,), 1)


def test_rows_that_are_restored_from_an_archive_are_known(dsn, conn, tmp_path):
    partitions.ensure_at(conn, "logsluice", "day", NOW - 20 * DAY)
    put(conn, NOW - 20 * DAY, 3)
    put(conn, NOW - HOUR, 2, level=10)
    args = ["maintain", "--once", "--keep", "*=10d", "--archive", str(tmp_path), "--format", "jsonl", "--dsn", dsn]
    assert main(args) == 0
    assert conn.execute("SELECT count(*) FROM logsluice.logs").fetchone() == (2,)
    assert main(["restore", str(tmp_path), "--dsn", dsn]) == 0
    assert conn.execute("SELECT count(*) FROM logsluice.logs").fetchone() == (5,)
    assert rollup.refresh(conn, "logsluice") == 0
    assert rolled(conn) == asked(conn, SCOPE)


def test_an_update_counts_nothing_again(conn):
    put(conn, NOW - HOUR, 3)
    rollup.refresh(conn, "logsluice")
    conn.execute("UPDATE logsluice.logs SET attributes = '{}'")
    conn.execute("VACUUM FULL logsluice.logs")
    assert rollup.refresh(conn, "logsluice") == 0


def test_dead_letters_are_counted_when_they_are_stored(dsn, conn):
    conn.execute("ALTER TABLE logsluice.logs ADD CONSTRAINT known CHECK (user_id <> 'nobody')")
    with Shop(dsn) as shop:
        shop.log(5)
        shop.log(2, user_id="nobody")
        assert shop.flush()
        assert rollup.refresh(conn, "logsluice") == 5
        conn.execute("ALTER TABLE logsluice.logs DROP CONSTRAINT known")
        assert len(deadletters.replay(conn, now=datetime.now(timezone.utc)).stored) == 2
        assert deadletters.replay(conn, now=datetime.now(timezone.utc)).stored == []
        assert rollup.refresh(conn, "logsluice") == 2
    assert rolled(conn) == asked(conn, SCOPE)


def test_a_writer_needs_no_more_rights(dsn, admin, conn):
    with writer(dsn, admin) as (writers_dsn, _), Shop(writers_dsn, read=dsn, create=False) as shop:
        shop.log(20, level=logging.WARNING)
        assert shop.flush()
        shop.check()
        assert rollup.refresh(conn, "logsluice") == 20


def test_one_counts_at_a_time_and_a_writer_waits_for_none(dsn, conn):
    ends = threading.Event()

    def write():
        with Shop(dsn) as shop:
            while not ends.is_set():
                shop.log(50)
                assert shop.flush()
            return len(shop.given)

    def count():
        with connect(dsn) as mine:
            return sum(rollup.refresh(mine, "logsluice") or 0 for _ in range(15))

    with ThreadPoolExecutor(4) as pool:
        writers = [pool.submit(write) for _ in range(2)]
        counters = [pool.submit(count) for _ in range(2)]
        wait(counters, LIMIT)
        ends.set()
        found = sum(one.result() for one in counters)
        given = sum(one.result(LIMIT) for one in writers)
    found += rollup.refresh(conn, "logsluice")
    assert found == given == counted(conn)
    assert rolled(conn) == asked(conn, SCOPE)


def test_killed_in_the_middle_nothing_has_happened(dsn, conn):
    put(conn, NOW - 2 * HOUR, 4)
    rollup.refresh(conn, "logsluice")
    put(conn, NOW - 2 * HOUR, 3)
    # As the last rows of the count are written it waits for us.
    conn.execute(
        "CREATE FUNCTION wait() RETURNS trigger LANGUAGE plpgsql AS "
        "'BEGIN PERFORM pg_advisory_xact_lock(4711); RETURN NULL; END'; "
        "CREATE TRIGGER wait AFTER INSERT ON logsluice.logs_hourly EXECUTE FUNCTION wait()"
    )
    conn.execute("SELECT pg_advisory_lock(4711)")
    with connect(dsn) as victim, ThreadPoolExecutor(1) as pool:
        counts = pool.submit(rollup.refresh, victim, "logsluice")
        waits = "SELECT pid FROM pg_locks WHERE locktype = 'advisory' AND NOT granted"
        assert until(lambda: conn.execute(waits).fetchone(), LIMIT)
        assert rollup.refresh(conn, "logsluice") is None, "one counts at a time"
        assert records(conn) == 7, "readers see one state, and do not wait"
        conn.execute(f"SELECT pg_terminate_backend(pid) FROM ({waits}) AS one")
        with pytest.raises(psycopg.OperationalError):
            counts.result(LIMIT)
    conn.execute("SELECT pg_advisory_unlock(4711)")
    assert (counted(conn), records(conn)) == (4, 7)
    assert rollup.refresh(conn, "logsluice") == 3
    assert (counted(conn), rolled(conn)) == (7, asked(conn, SCOPE))


INDEXES = """
SELECT c.relname, i.indisvalid FROM pg_index i JOIN pg_class c ON c.oid = i.indrelid
  JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum = i.indkey[0] WHERE a.attname = 'xact' ORDER BY 1
"""


def test_new_rows_are_found_by_an_index(conn):
    rollup.index(conn, "logsluice")
    parts = [part.name for part in partitions.listed(conn, "logsluice")]
    assert conn.execute(INDEXES).fetchall() == [(name, True) for name in sorted(parts)]
    partitions.ensure_at(conn, "logsluice", "day", NOW - 9 * DAY)
    assert len(conn.execute(INDEXES).fetchall()) == len(parts)
    # As a CREATE INDEX CONCURRENTLY leaves it that was interrupted.
    conn.execute("UPDATE pg_index SET indisvalid = false WHERE indrelid = %s::regclass", [f"logsluice.{parts[0]}"])
    rollup.index(conn, "logsluice")
    assert [valid for _, valid in conn.execute(INDEXES).fetchall()] == [True] * (len(parts) + 1)
    put(conn, NOW - DAY, 40_000)  # 500 pages and more
    rollup.index(conn, "logsluice")  # knows the pages now
    rollup.refresh(conn, "logsluice")
    put(conn, NOW - DAY)
    where, values = rollup.state(conn, "logsluice").new()
    conn.execute("SET enable_seqscan = off")
    (plan,) = conn.execute(
        f"EXPLAIN (ANALYZE, FORMAT JSON) SELECT FROM logsluice.logs WHERE {where}", values
    ).fetchone()
    assert '"Lossy Heap Blocks"' in json.dumps(plan)
    assert lossy(plan[0]["Plan"]) <= 128, "only the range of pages that is not full"


def lossy(plan):
    return plan.get("Lossy Heap Blocks", 0) + sum(map(lossy, plan.get("Plans", [])))


def test_without_partitions(empty_dsn):
    assert main(["migrate", "--partition", "none", "--rollup", "--dsn", empty_dsn]) == 0
    with connect(empty_dsn) as conn:
        put(conn, NOW - 300 * DAY, 3)
        assert rollup.refresh(conn, "logsluice") == 3
        put(conn, NOW, 2)
        assert maintain(conn, {"*": "200d"}).counted == 2
        assert conn.execute(INDEXES).fetchall() == [("logs", True)]
        assert conn.execute("SELECT count(*) FROM logsluice.logs").fetchone() == (2,)
        assert records(conn, dataclasses.replace(SCOPE, since=NOW - 301 * DAY)) == 5


def test_a_dump_on_another_server_is_not_counted_wrongly(conn):
    put(conn, NOW - HOUR, 3)
    rollup.refresh(conn, "logsluice")
    conn.execute("UPDATE logsluice.logs_hourly_state SET counted = '900000000:900000000:'")
    put(conn, NOW - HOUR, 2)
    with pytest.raises(LogsluiceError, match="counted on another server") as caught:
        rollup.refresh(conn, "logsluice")
    conn.execute(str(caught.value).split("now on: ")[1].split("; then")[0])
    schema.apply(conn, schema.rollup())
    assert rollup.refresh(conn, "logsluice") == 0
    put(conn, NOW - HOUR, 4)
    assert rollup.refresh(conn, "logsluice") == 4
    assert counted(conn) == 7


def test_what_it_cannot_do_is_said(plain):
    whole = dataclasses.replace(SCOPE, rolled=True)
    with pytest.raises(LogsluiceError, match="there is no roll-up: `logsluice migrate --rollup` makes it, then"):
        reports.services(plain, whole)
    assert rollup.refresh(plain, "logsluice") is None
    assert maintain(plain, {}).counted is None
    schema.apply(plain, schema.rollup())
    rollup.refresh(plain, "logsluice")
    with pytest.raises(
        ConfigError, match="has nothing about messages: only levels, error_rate, services, loggers, volu"
    ):
        reports.messages(plain, whole)
    with pytest.raises(ConfigError, match="every must be a multiple of one, got 0:30:00"):
        reports.levels(plain, whole, timedelta(minutes=30))
    with pytest.raises(ConfigError, match="ask for more time than one"):
        reports.Scope(NOW, NOW + HOUR / 2, rolled=True)
    odd = reports.Scope(NOW - HOUR / 2, NOW + HOUR / 2, rolled=True)
    assert (odd.since, odd.until) == (NOW - HOUR, NOW)
    with plain.transaction(), pytest.raises(ConfigError, match=r"use reports\.snapshot"):
        reports.services(plain, whole)
    with reports.snapshot(plain) as still:
        assert reports.services(still, whole) == []
        assert still.execute("SHOW enable_seqscan").fetchone() == ("on",), "for the reports that follow"


def test_a_lost_state_counts_nothing_twice(conn):
    put(conn, NOW - HOUR, 3)
    rollup.refresh(conn, "logsluice")
    conn.execute("DELETE FROM logsluice.logs_hourly_state")
    for _ in range(2):
        with pytest.raises(LogsluiceError, match="logs_hourly_state is empty: which rows are counted cannot be told"):
            rolled(conn)
        schema.apply(conn, schema.rollup())
    conn.execute("TRUNCATE logsluice.logs_hourly")
    schema.apply(conn, schema.rollup())
    assert rollup.refresh(conn, "logsluice") == 3
    assert rolled(conn) == asked(conn, SCOPE)


def test_the_command_line(dsn, conn, capsys):
    partitions.ensure_at(conn, "logsluice", "day", NOW - 2 * DAY)
    put(conn, NOW - 2 * DAY, 3, level=40)
    put(conn, NOW - HOUR, 1)
    assert main(["stats", "--rollup", "--since", "3d", "-o", "json", "--dsn", dsn]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [one for one in found if one not in {"since", "until", "service"}] == [
        "levels", "error-rate", "services", "loggers", "volume",
    ]  # fmt: skip
    assert (found["services"][0]["records"], found["services"][0]["errors"]) == (4, 3)
    assert found["until"].endswith(":00:00+00:00")
    for days, width in (("1", "3h"), ("400", "800h")):
        assert main(["stats", "levels", "--rollup", "--since", f"{days}d", "--dsn", dsn]) == 0
        assert f"by level, by {width}" in capsys.readouterr().out
    assert main(["query", "--dsn", dsn]) == 0
    assert "xact" not in capsys.readouterr().out
    assert main(["stats", "errors", "--rollup", "--dsn", dsn]) == 2
    assert "has nothing about errors" in capsys.readouterr().err
    assert main(["migrate", "--sql", "--rollup", "--after", str(schema.sql_files()[-1].number)]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("BEGIN;\n-- Counts")
    conn.execute(printed)  # again
    assert rollup.refresh(conn, "logsluice") == 4
