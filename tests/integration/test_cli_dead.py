"""
`logsluice dead` and deadletters/: rows that a real table refused to a real handler, looked at, mended, sent again.

The oracle is the test's own ids: in the table once, in dead_letter once, and never in both without a mark.
"""

from __future__ import annotations

import json
import logging
import os
import re
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import datetime, timedelta, timezone

import psycopg
import pytest

from logsluice import deadletters, partitions, schema
from logsluice.cli import dead, main
from logsluice.deadletters import Id, replaying
from logsluice.errors import LogsluiceError
from support.howto import PAGES, Page, environment
from support.processes import ended, until
from support.proxy import Proxy, query
from support.shop import LIMIT, Shop, message, writer

NOW = datetime.now(timezone.utc)
MINUTE, DAY = timedelta(minutes=1), timedelta(days=1)
LOCK = 4711  # an advisory lock of the tests
# Where a sent row waits while a test holds LOCK: as the COPY ends, or after it, when deferred constraints are checked.
HOLD = """
CREATE FUNCTION public.hold() RETURNS trigger LANGUAGE plpgsql AS
    'BEGIN PERFORM pg_advisory_xact_lock_shared(4711); RETURN NULL; END';
"""
AS_COPY_ENDS = HOLD + "CREATE TRIGGER hold AFTER INSERT ON {} FOR EACH STATEMENT EXECUTE FUNCTION public.hold()"
BEFORE_COMMIT = (
    HOLD
    + "CREATE CONSTRAINT TRIGGER hold AFTER INSERT ON {} DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION public.hold()"
)


class Orders(Shop):
    """A table of the user's own: a record for an unknown user is refused (23503)."""

    table, column, sqlstate = "public.orders", "note", "23503"
    refused = {"user_id": 999}
    taken = {"user_id": 1}
    heal = "INSERT INTO users VALUES (999)"

    def __init__(self, dsn, **options):
        columns = {"user_id": "extra.user_id", "note": "message", "amount": "extra.amount"}
        super().__init__(dsn, table="public.orders", columns=columns, **options)

    @staticmethod
    def prepare(conn):
        conn.execute("CREATE TABLE users (id bigint PRIMARY KEY); INSERT INTO users VALUES (1)")
        conn.execute(
            "CREATE TABLE orders (id bigserial, user_id bigint CONSTRAINT known REFERENCES users, note text, amount integer)"
        )


class Logs(Shop):
    """The table `logs`, with a check (23514) on what is logged."""

    table, column, sqlstate = "logsluice.logs", "message", "23514"
    refused = {"user_id": "nobody"}
    taken = {"user_id": "somebody"}
    heal = "ALTER TABLE logsluice.logs DROP CONSTRAINT known"

    @staticmethod
    def prepare(conn):
        conn.execute("ALTER TABLE logsluice.logs ADD CONSTRAINT known CHECK (user_id <> 'nobody')")


@contextmanager
def opened(made, dsn, **options):
    with psycopg.connect(dsn, autocommit=True) as conn:
        made.prepare(conn)
    with made(dsn, **options) as shop:
        shop.dsn = dsn
        yield shop


@pytest.fixture(params=[Orders, Logs], ids=["columns", "logs"])
def shop(request, dsn):
    with opened(request.param, dsn) as shop:
        yield shop


@pytest.fixture
def orders(dsn):
    with opened(Orders, dsn) as shop:
        yield shop


@pytest.fixture
def logs(dsn):
    with opened(Logs, dsn) as shop:
        yield shop


def refuse(shop, count=1):
    """Have so many records refused, each beside one that is stored; their ids in the order of their positions."""
    ids = []
    for _ in range(count):
        shop.log(**shop.taken)
        ids += shop.log(**shop.refused)
    assert shop.flush()
    assert sorted(shop.dead()) == ids
    assert shop.query("SELECT DISTINCT sqlstate FROM logsluice.dead_letter") == [(shop.sqlstate,)]
    return ids


def names(shop, where="replayed_at IS NULL"):
    """The names of dead letters, as people write them."""
    query = f"SELECT stream || ':' || position FROM logsluice.dead_letter WHERE {where} ORDER BY at, stream, position"
    return [row[0] for row in shop.query(query)]


def stored(shop):
    return sorted(shop.stored(shop.table, shop.column))


def once(shop):
    """Every id is in the table, and none twice."""
    twice = [tid for tid, times in Counter(stored(shop)).items() if times > 1]
    assert not twice, twice
    return stored(shop) == sorted(shop.given)


@contextmanager
def connect(dsn):
    with psycopg.connect(dsn, autocommit=True) as conn:
        yield conn


def replay(dsn, now=NOW, **options):
    with connect(dsn) as conn:
        return deadletters.replay(conn, now=now, **options)


def run(shop, *argv, dsn=None):
    """`logsluice dead ...`; its status."""
    return main(["dead", argv[0], "--dsn", dsn or shop.read, *argv[1:]])


def pasted(line, dsn):
    """Run a command that was printed, with the DSN that it leaves out; its status."""
    words = shlex.split(line)
    assert words[0] == "logsluice"
    return main([dsn if word == "..." else word for word in words[1:]])


# --- looking --------------------------------------------------------------------------------------------------------


def test_list_shows_one_line_each_with_the_reason(shop, capsys):
    refuse(shop, 3)
    capsys.readouterr()
    assert run(shop, "list") == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("  ")[1] for line in lines] == names(shop)
    for line in lines:
        at, _, target, state, sqlstate, why = line.split("  ", 5)
        assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\dZ", at)
        assert (target, state, sqlstate) == (shop.route.target.name, "waiting", shop.sqlstate)
        assert "known" in why
        assert "tid=" not in line
        assert "nobody" not in line


def test_list_shows_the_latest_and_says_that_there_may_be_more(orders, capsys):
    refuse(orders, 5)
    capsys.readouterr()
    assert run(orders, "list", "--limit", "2") == 0
    out, err = capsys.readouterr()
    assert [line.split("  ")[1] for line in out.splitlines()] == names(orders)[-2:]
    assert "--limit" in err


def test_list_as_json_can_be_read_by_programs(orders, capsys):
    refuse(orders, 2)
    capsys.readouterr()
    assert run(orders, "list", "--json") == 0
    found = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [one["id"] for one in found] == names(orders)
    assert [f"{one['stream']}:{one['position']}" for one in found] == names(orders)
    one = found[0]
    assert (one["target"], one["sqlstate"], one["state"], one["tries"]) == ('"public"."orders"', "23503", "waiting", 0)
    assert (one["due"], one["stuck"], one["replayed_at"]) == (None, None, None)
    assert datetime.fromisoformat(one["at"].replace("Z", "+00:00")) - NOW < DAY


def test_list_of_one_table(dsn, capsys):
    with opened(Orders, dsn) as orders, opened(Logs, dsn) as logs:
        orders.log(**orders.refused)
        logs.log(**logs.refused)
        assert orders.flush()
        assert logs.flush()
        capsys.readouterr()
        for target, shop in (("public.orders", orders), ("logs", logs), ("logsluice.logs", logs)):
            assert run(shop, "list", "--target", target) == 0
            (line,) = capsys.readouterr().out.splitlines()
            assert line.split("  ")[2] == shop.route.target.name
        with pytest.raises(SystemExit) as ended:
            run(orders, "list", "--target", "a.b.c")
        assert ended.value.code == 2
        assert "--target: table must be a name" in capsys.readouterr().err


def test_no_dead_letter_is_no_error(shop, capsys):
    for argv in (["list"], ["replay"], ["replay", "--yes"], ["replay", "--due"], ["drop"], ["drop", "--yes"]):
        assert run(shop, *argv) == 0, argv
    out, err = capsys.readouterr()
    assert "no dead letter waits in" in err
    assert out.count("no dead letter waits\n") == 2
    assert "no dead letter is due\n" in out


def test_show_prints_each_column_the_reason_and_what_to_do(orders, capsys):
    (tid,) = refuse(orders)
    capsys.readouterr()
    (name,) = names(orders)
    assert run(orders, "show", name) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"dead letter {name}, waiting"
    assert re.fullmatch(r'rejected \d{4}-.*Z by "public"\."orders"', lines[1])
    assert lines[2].startswith(
        'reason: 23503 insert or update on table "orders" violates foreign key constraint "known"'
    )
    assert lines[4:7] == ["user_id = 999", f"note = {message(tid)}", r"amount = \N"]
    assert lines[-4].startswith("Mend what the reason names")
    assert lines[-3] == f"  logsluice dead edit {name} --dsn ... COLUMN=VALUE"
    # What it tells to run does it.
    orders.do(orders.heal)
    assert pasted(lines[-2], orders.read) == 0
    assert once(orders)
    assert run(orders, "show", name) == 0
    shown = capsys.readouterr().out
    assert f"dead letter {name}, replayed" in shown
    assert pasted(shown.splitlines()[-1], orders.read) == 0
    assert names(orders, "true") == []


def test_the_line_on_stderr_names_the_command(orders, capfd):
    refuse(orders)
    said = []
    assert until(lambda: said.append(capfd.readouterr().err) or "`logsluice dead list` shows them" in "".join(said)), (
        said
    )


# --- mending --------------------------------------------------------------------------------------------------------


def test_an_edited_row_is_stored_as_edited_and_the_rest_as_logged(orders, capsys):
    (tid,) = refuse(orders)
    (name,) = names(orders)
    odd = "tab\t, back\\slash \\. \\N, new\nline, é\u2028"
    capsys.readouterr()
    assert run(orders, "edit", name, "user_id=1", "amount=17") == 0
    out = capsys.readouterr().out
    assert "user_id = 1\namount = 17\n" in out
    assert orders.query("SELECT replayed_at FROM logsluice.dead_letter") == [(None,)]
    assert pasted(out.splitlines()[-1], orders.read) == 0
    assert once(orders)
    assert orders.query("SELECT user_id, amount FROM orders WHERE note = %s", message(tid)) == [(1, 17)]

    (other,) = orders.log(amount=5, **orders.refused)
    assert orders.flush()
    (name,) = names(orders)
    assert run(orders, "edit", name, "user_id=1", f"note={odd}", r"amount=\N") == 0
    assert run(orders, "replay", name) == 0
    assert orders.query("SELECT user_id, amount FROM orders WHERE note = %s", odd) == [(1, None)]
    assert other not in stored(orders)


def test_an_edited_log_row_keeps_all_that_was_not_edited(logs):
    (tid,) = refuse(logs)
    (name,) = names(logs)
    assert run(logs, "edit", name, "user_id=somebody") == 0
    assert run(logs, "replay", name) == 0
    columns = "level, logger, message, file, func, thread, user_id, line, seq"
    mended, beside = (
        logs.query(f"SELECT {columns} FROM logsluice.logs WHERE message = %s", message(one)) for one in (tid, tid - 1)
    )
    assert mended[0][2] == message(tid)
    assert mended[0][:2] + mended[0][3:8] == beside[0][:2] + beside[0][3:8]
    assert mended[0][8] == beside[0][8] + 1
    assert once(logs)


def test_an_edit_that_cannot_be_says_what_can(orders, capsys):
    refuse(orders)
    (name,) = names(orders)
    capsys.readouterr()
    assert run(orders, "edit", name, "user=1") == 1
    assert "has no column 'user'; did you mean 'user_id'?" in capsys.readouterr().err
    assert run(orders, "edit", "1:2", "user_id=1") == 1
    err = capsys.readouterr().err
    assert "there is no dead letter 1:2" in err
    assert "logsluice dead list" in err
    orders.do(orders.heal)
    assert run(orders, "replay", name) == 0
    assert run(orders, "edit", name, "user_id=1") == 1
    assert "was stored at" in capsys.readouterr().err
    assert orders.query("SELECT count(*) FROM orders WHERE user_id = 999") == [(1,)]


def test_an_edit_waits_for_the_replay_that_holds_its_row(orders):
    refuse(orders)
    orders.do(orders.heal, AS_COPY_ENDS.format(orders.table))
    one = Id.parse(names(orders)[0])
    with connect(orders.read) as conn, ThreadPoolExecutor(2) as pool:
        with holding(orders) as held:
            sent = pool.submit(replay, orders.read)
            held(1)
            edited = pool.submit(deadletters.edit, conn, one, {"note": "other"})
            waits = "SELECT count(*) FROM pg_stat_activity WHERE wait_event IN ('transactionid', 'tuple')"
            assert until(lambda: orders.query(waits) == [(1,)], LIMIT)
        assert sent.result(LIMIT).stored == [one]
        with pytest.raises(LogsluiceError, match="was stored at"):
            edited.result(LIMIT)
    assert once(orders)


# --- sending again --------------------------------------------------------------------------------------------------


@contextmanager
def holding(shop):
    """Hold LOCK; `held(n)` returns once n sessions wait for it."""
    with connect(shop.read) as conn:
        conn.execute("SELECT pg_advisory_lock(%s)", [LOCK])
        waits = f"SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND objid = {LOCK} AND NOT granted"

        def held(count):
            assert until(lambda: shop.query(waits) == [(count,)], LIMIT), shop.query(waits)

        yield held


def test_nothing_is_sent_before_it_was_shown(shop, capsys):
    refuse(shop, 3)
    shop.do(shop.heal)
    capsys.readouterr()
    assert run(shop, "replay") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["3", shop.route.target.name, shop.sqlstate]
    assert "dry run" in lines[2]
    assert len(names(shop)) == 3
    assert pasted(lines[-1], shop.read) == 0
    assert capsys.readouterr().out == "stored 3\n"
    assert once(shop)
    assert names(shop) == []


def test_what_is_still_refused_stays_and_its_neighbours_are_stored(shop, capsys):
    ids = refuse(shop, 10)
    bad = ids[::3]
    some = names(shop)[::3]
    shop.do(shop.heal)
    pattern = "|".join(f"tid={tid} " for tid in bad)
    shop.do(f"ALTER TABLE {shop.table} ADD CONSTRAINT later CHECK ({shop.column} !~ '{pattern}')")
    capsys.readouterr()
    assert run(shop, "replay", "--yes") == 1
    out, err = capsys.readouterr()
    assert out == "stored 6\n"
    assert err.startswith("4 stay dead:\n")
    assert '"later" [23514]' in err
    assert f"    {', '.join(some)}\n" in err
    assert "logsluice dead show" in err
    assert set(shop.given) - set(stored(shop)) == set(bad)
    assert names(shop) == some
    fresh = shop.query("SELECT DISTINCT sqlstate, error, tries FROM logsluice.dead_letter WHERE replayed_at IS NULL")
    assert [(row[0], '"later"' in row[1], row[2]) for row in fresh] == [("23514", True, 0)]
    shop.do(f"ALTER TABLE {shop.table} DROP CONSTRAINT later")
    assert run(shop, "replay", *some) == 0
    assert once(shop)


def test_a_replay_again_sends_nothing_twice(shop, capsys):
    refuse(shop, 3)
    shop.do(shop.heal)
    first, *_ = names(shop)
    assert run(shop, "replay", first) == 0
    capsys.readouterr()
    assert run(shop, "replay", first) == 0
    assert "is not sent again" in capsys.readouterr().out
    for _ in range(2):
        assert run(shop, "replay", "--yes") == 0
    assert once(shop)


def test_an_unknown_name_is_said_and_the_others_are_sent(orders, capsys):
    refuse(orders)
    orders.do(orders.heal)
    capsys.readouterr()
    assert run(orders, "replay", "1:2", *names(orders)) == 1
    out, err = capsys.readouterr()
    assert "stored 1\n" in out
    assert "there is no dead letter 1:2. Those that wait:\n  logsluice dead list --dsn ...\n" in err
    assert once(orders)
    for command in (["show", "1:2"], ["drop", "1:2", "--yes"], ["replay", "1:2"]):
        assert run(orders, *command) == 1
        assert "there is no dead letter 1:2" in capsys.readouterr().err


def test_more_than_one_transaction_sees_each_row_once(orders, monkeypatch):
    """A row that is refused again is written anew: found a second time, the replay would never end."""
    monkeypatch.setattr(replaying, "CHUNK", 7)
    ids = refuse(orders, 100)
    assert len(replay(orders.read).refused) == 100
    orders.do(orders.heal, "ALTER TABLE orders ADD CHECK (note !~ 'tid=[0-9]*3 ')")
    done = replay(orders.read)
    bad = [tid for tid in ids if tid % 10 == 3]
    assert (len(done.stored), len(done.refused)) == (100 - len(bad), len(bad))
    assert len(names(orders)) == len(bad) > 5
    orders.do("ALTER TABLE orders DROP CONSTRAINT orders_note_check")
    assert len(replay(orders.read).stored) == len(bad)
    assert once(orders)


# --- two at once ----------------------------------------------------------------------------------------------------


def two_at_once(shop, dsn=None):
    """Two replays: the first has sent its rows and not committed when the second begins. (what each stored)."""
    with ThreadPoolExecutor(2) as pool:
        with holding(shop) as held:
            first = pool.submit(replay, shop.read)
            held(1)
            second = pool.submit(replay, shop.read)
            # It ends, for all rows are taken, or it has sent them as well and waits.
            assert until(lambda: second.done() or shop.query(f"SELECT count(*) FROM pg_locks WHERE objid = {LOCK} AND NOT granted") == [(2,)], LIMIT)  # fmt: skip
        return [len(one.result(LIMIT).stored) for one in (first, second)]


def test_two_replays_at_once_store_each_of_100_once(shop):
    refuse(shop, 100)
    shop.do(shop.heal, AS_COPY_ENDS.format(shop.table))
    counts = two_at_once(shop)
    assert counts == [100, 0]
    assert once(shop)
    print(f"two replays at once of 100: stored {len(stored(shop)) - 100}, twice 0")


def test_control_without_the_lock_two_at_once_store_twice(orders, monkeypatch):
    """The test above can fail."""
    monkeypatch.setattr(replaying, "_LOCK", "")
    monkeypatch.setattr(replaying, "_mark", lambda *_: None)
    refuse(orders, 100)
    orders.do(orders.heal, AS_COPY_ENDS.format(orders.table))
    assert two_at_once(orders) == [100, 100]
    assert len(stored(orders)) == 300


def test_two_replays_at_once_share_what_is_free(shop, monkeypatch):
    """Each takes seven at a time, as fast as it can."""
    monkeypatch.setattr(replaying, "CHUNK", 7)
    refuse(shop, 100)
    shop.do(shop.heal)
    begin = threading.Barrier(2)

    def work():
        with connect(shop.read) as conn:
            begin.wait(LIMIT)
            return len(deadletters.replay(conn, now=NOW).stored)

    with ThreadPoolExecutor(2) as pool:
        counts = [one.result(LIMIT) for one in [pool.submit(work), pool.submit(work)]]
    assert sum(counts) == 100
    assert once(shop)
    print(f"two replays at once, seven rows a transaction: stored {counts}, twice 0")


def test_one_that_another_replay_holds_is_said_when_it_was_named(orders, capsys):
    refuse(orders)
    orders.do(orders.heal, AS_COPY_ENDS.format(orders.table))
    (name,) = names(orders)
    capsys.readouterr()
    with ThreadPoolExecutor(1) as pool:
        with holding(orders) as held:
            first = pool.submit(replay, orders.read)
            held(1)
            assert run(orders, "replay", name) == 1
        assert len(first.result(LIMIT).stored) == 1
    assert "another replay or edit has it now: run the same again" in capsys.readouterr().err
    assert run(orders, "replay", name) == 0
    assert once(orders)


# --- killed ---------------------------------------------------------------------------------------------------------


def test_a_connection_cut_between_copy_and_commit_leaves_all_dead(shop, capsys):
    ids = refuse(shop, 10)
    shop.do(shop.heal)
    capsys.readouterr()
    with Proxy(shop.read) as proxy:
        proxy.cut_before(query(b"COMMIT"))
        assert run(shop, "replay", "--yes", dsn=proxy.dsn) == 1
        assert proxy.cuts == 1
    assert "run the same again" in capsys.readouterr().err
    assert not set(ids) & set(stored(shop))
    assert len(names(shop)) == 10
    assert run(shop, "replay", "--yes") == 0
    assert once(shop)


def test_a_lost_answer_to_commit_doubles_nothing(shop, capsys):
    refuse(shop, 10)
    shop.do(shop.heal)
    with Proxy(shop.read) as proxy:
        proxy.cut_after(query(b"COMMIT"))
        assert run(shop, "replay", "--yes", dsn=proxy.dsn) == 1
        assert proxy.cuts == 1
    assert once(shop)
    capsys.readouterr()
    assert run(shop, "replay", "--yes") == 0
    assert "no dead letter waits" in capsys.readouterr().out
    assert once(shop)


def test_a_process_killed_after_its_copy_leaves_all_dead(shop):
    """It waits behind the COPY, where deferred constraints are checked, when it is killed."""
    ids = refuse(shop, 10)
    shop.do(shop.heal, BEFORE_COMMIT.format(shop.table))
    command = [sys.executable, "-m", "logsluice", "dead", "replay", "--yes", "--dsn", shop.read]
    with holding(shop) as held:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        try:
            held(1)
            waits = f"SELECT pid FROM pg_locks WHERE objid = {LOCK} AND NOT granted"
            ((backend,),) = shop.query(waits)
            assert shop.query("SELECT query FROM pg_stat_activity WHERE pid = %s", backend) == [
                ("SET CONSTRAINTS ALL IMMEDIATE",)
            ]
            os.kill(process.pid, signal.SIGKILL)
        finally:
            process.kill()
            process.communicate(timeout=LIMIT)
    assert process.returncode == -signal.SIGKILL
    assert ended(backend, LIMIT)
    assert not set(ids) & set(stored(shop))
    assert len(names(shop)) == 10
    assert run(shop, "replay", "--yes") == 0
    assert once(shop)


# --- by itself ------------------------------------------------------------------------------------------------------


def state(shop):
    """(tries, seconds from the rejection to the next try, given up) of the only dead letter."""
    (row,) = shop.query(
        "SELECT tries, extract(epoch FROM due - at)::float, stuck IS NOT NULL FROM logsluice.dead_letter"
    )
    return row


def rejected(shop):
    return shop.query("SELECT at FROM logsluice.dead_letter")[0][0]


def test_what_can_heal_is_tried_after_1_2_and_4_minutes_and_then_given_up(shop, capsys, monkeypatch):
    (tid,) = refuse(shop)
    at = rejected(shop)
    clock = [at]
    monkeypatch.setattr(dead, "now", lambda: clock[0])

    def due(seconds):
        clock[0] = at + timedelta(seconds=seconds)
        capsys.readouterr()
        status = run(shop, "replay", "--due")
        return status, "".join(capsys.readouterr())

    assert due(59) == (0, "no dead letter is due\n")
    assert state(shop) == (0, None, False)
    status, said = due(60)
    assert (status, "1 stay dead:" in said) == (1, True)
    assert state(shop) == (1, 60 + 120, False)
    assert due(179)[0] == 0
    assert state(shop)[0] == 1
    assert due(180)[0] == 1
    assert state(shop) == (2, 180 + 240, False)
    assert due(419)[0] == 0
    status, said = due(420)
    assert (status, "given up after 3 tries" in said) == (1, True)
    assert state(shop) == (3, None, True)
    assert shop.query("SELECT stuck - at FROM logsluice.dead_letter") == [(timedelta(seconds=420),)]
    assert due(400 * 86400) == (0, "no dead letter is due\n")
    assert run(shop, "list") == 0
    assert "  stuck  " in capsys.readouterr().out
    # A person may still send it.
    shop.do(shop.heal)
    assert run(shop, "replay", *names(shop)) == 0
    assert tid in stored(shop)
    assert once(shop)
    assert state(shop) == (3, None, False)


def test_what_has_healed_is_stored_by_the_next_try(shop):
    refuse(shop)
    at = rejected(shop)
    assert len(replay(shop.read, at + MINUTE, due=True).refused) == 1
    shop.do(shop.heal)
    assert replay(shop.read, at + 2 * MINUTE, due=True) == deadletters.Replayed()  # not due yet
    assert len(replay(shop.read, at + 3 * MINUTE, due=True).stored) == 1
    assert once(shop)
    assert state(shop) == (1, None, False)


def test_a_late_try_counts_from_when_it_was_made(orders):
    refuse(orders)
    late = rejected(orders) + DAY
    assert len(replay(orders.read, late, due=True).refused) == 1
    assert state(orders) == (1, 86400 + 120, False)


def test_what_cannot_heal_is_never_due(orders):
    orders.log(**orders.taken)
    orders.log(user_id=1, amount="many")
    assert orders.flush()
    assert orders.query("SELECT sqlstate FROM logsluice.dead_letter") == [("22P02",)]
    assert replay(orders.read, NOW + 365 * DAY, due=True) == deadletters.Replayed()


def test_a_reason_that_has_become_one_that_cannot_heal_is_due_no_more(orders):
    refuse(orders)
    at = rejected(orders)
    orders.do(orders.heal, "ALTER TABLE orders ALTER note TYPE varchar(3) USING 'x'")
    assert len(replay(orders.read, at + MINUTE, due=True).refused) == 1
    assert orders.query("SELECT sqlstate, tries, due, stuck FROM logsluice.dead_letter") == [("22001", 1, None, None)]
    assert replay(orders.read, at + 365 * DAY, due=True) == deadletters.Replayed()


def test_a_person_s_replay_is_not_counted_and_an_edit_begins_anew(orders):
    refuse(orders)
    (name,) = names(orders)
    at = rejected(orders)
    for minutes in (1, 3, 7):
        assert run(orders, "replay", name) == 1
        assert len(replay(orders.read, at + minutes * MINUTE, due=True).refused) == 1
    assert state(orders) == (3, None, True)
    assert run(orders, "edit", name, "user_id=998") == 0
    assert state(orders) == (0, None, False)
    assert replay(orders.read, at + 10 * MINUTE, due=True).stuck == 0
    assert state(orders)[0] == 1


# --- not the row's fault --------------------------------------------------------------------------------------------


def test_a_table_that_is_gone_keeps_no_other_from_being_stored(dsn, capsys):
    with opened(Orders, dsn) as orders, opened(Logs, dsn) as logs:
        orders.log(2, **orders.refused)
        logs.log(2, **logs.refused)
        assert orders.flush()
        assert logs.flush()
        orders.do(orders.heal, logs.heal, "ALTER TABLE orders RENAME TO moved")
        capsys.readouterr()
        assert run(orders, "replay", "--yes") == 1
        out, err = capsys.readouterr()
        assert out == "stored 2\n"
        assert 'there is no table "public"."orders": make it, or drop these dead letters' in err
        assert stored(logs) == [0, 1]
        # Its reason is not what it was rejected for: a try that is due is due as before.
        assert orders.query("SELECT DISTINCT sqlstate, tries FROM logsluice.dead_letter WHERE replayed_at IS NULL") == [
            ("23503", 0)
        ]
        assert len(replay(dsn, NOW + DAY, due=True).held) == 2
        assert orders.query("SELECT max(tries), count(stuck) FROM logsluice.dead_letter") == [(0, 0)]
        orders.do("ALTER TABLE moved RENAME TO orders")
        assert len(replay(dsn, NOW + DAY, due=True).stored) == 2
        assert stored(orders) == [0, 1]


def test_a_column_that_is_gone_is_said(orders, capsys):
    refuse(orders, 3)
    orders.do(orders.heal, "ALTER TABLE orders RENAME amount TO price")
    capsys.readouterr()
    assert run(orders, "replay", "--yes") == 1
    err = capsys.readouterr().err
    assert 'column "amount" of relation "orders" does not exist' in err
    assert orders.query("SELECT DISTINCT sqlstate FROM logsluice.dead_letter") == [("23503",)]


def test_a_deferred_constraint_speaks_before_the_commit(orders):
    ids = refuse(orders, 6)
    orders.do(
        "INSERT INTO users VALUES (999)",
        "CREATE TABLE good (note text PRIMARY KEY)",
        "INSERT INTO good SELECT note FROM orders",
        *(f"INSERT INTO good VALUES ('{message(tid)}')" for tid in ids[1:]),
        "ALTER TABLE orders ADD CONSTRAINT late FOREIGN KEY (note) REFERENCES good DEFERRABLE INITIALLY DEFERRED",
    )
    done = replay(orders.read)
    assert (len(done.stored), len(done.refused)) == (5, 1)
    assert '"late" [23503]' in done.refused[0][1]
    assert set(orders.given) - set(stored(orders)) == {ids[0]}


def log_at(shop, moment, **extra):
    tid = len(shop.given)
    shop.given.append(tid)
    record = logging.LogRecord(shop.logger.name, logging.INFO, __file__, 1, message(tid), None, None)
    record.created = moment.timestamp()
    vars(record).update(extra)
    shop.logger.handle(record)


def test_a_partition_that_was_pruned_is_made_again(logs):
    for days in (60, 61, 61):
        log_at(logs, NOW - days * DAY, **logs.refused)
    logs.log(**logs.taken)
    assert logs.flush()
    assert len(names(logs)) == 3
    logs.do(logs.heal)
    with connect(logs.read) as conn:
        old = partitions.expired(conn, "logsluice", 30 * DAY, NOW)
        for part in old:
            partitions.drop(conn, "logsluice", part)
    assert len(old) == 2
    done = replay(logs.read)
    assert len(done.stored) == 3
    assert once(logs)


def test_a_partition_that_cannot_be_made_is_said(logs, capsys):
    logs.log(**logs.taken)
    log_at(logs, NOW - 60 * DAY, **logs.refused)
    assert logs.flush()
    logs.do(logs.heal)
    with connect(logs.read) as conn:
        for part in partitions.expired(conn, "logsluice", 30 * DAY, NOW):
            partitions.drop(conn, "logsluice", part)
    (name,) = names(logs)
    logs.do("UPDATE logsluice.dead_letter SET row = regexp_replace(encode(row, 'escape'), '[0-9]{4}-', '1999-')::bytea")
    capsys.readouterr()
    assert run(logs, "replay", name) == 1
    err = capsys.readouterr().err
    assert "no partition of relation" in err
    assert "none can be made" in err
    assert names(logs) == [name]


def test_rows_that_cannot_be_marked_are_not_sent(orders, capsys):
    refuse(orders, 3)
    orders.do(
        orders.heal,
        "CREATE FUNCTION no() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END'",
        "CREATE TRIGGER no BEFORE UPDATE ON logsluice.dead_letter FOR EACH ROW EXECUTE FUNCTION no()",
    )
    capsys.readouterr()
    for _ in range(2):
        assert run(orders, "replay", "--yes") == 1
        assert "could not be marked as stored (a trigger or a policy?); nothing was sent" in capsys.readouterr().err
    assert len(stored(orders)) == 3


# --- rights ---------------------------------------------------------------------------------------------------------


def test_a_writer_is_told_each_grant_that_it_lacks(dsn, admin, capsys):
    """It has INSERT alone on dead_letter, and that is enough for the handler; what is printed is enough for the rest."""
    with connect(dsn) as conn:
        Orders.prepare(conn)
        with writer(dsn, admin) as (role_dsn, role):
            conn.execute(f"GRANT INSERT, SELECT ON orders TO {role}; GRANT USAGE ON SEQUENCE orders_id_seq TO {role}")
            with Orders(role_dsn, read=dsn, create=False) as orders:
                refuse(orders, 2)
                conn.execute(orders.heal)
                conn.execute(f"REVOKE INSERT ON orders FROM {role}")
                first, second = names(orders)
                capsys.readouterr()
                lacking = {
                    ("list",): ["SELECT"],
                    ("show", first): [],
                    ("edit", first, "amount=5"): ["UPDATE"],
                    ("drop", second, "--yes"): ["DELETE", "SELECT"],
                }
                tables = {"SELECT": "dead_letter", "UPDATE": "dead_letter", "DELETE": "dead_letter"}
                for argv, privileges in lacking.items():
                    status = run(orders, *argv, dsn=role_dsn)
                    err = capsys.readouterr().err
                    fixes = re.findall(r"^  (GRANT .*);$", err, re.MULTILINE)
                    if argv[0] == "drop":
                        tables["SELECT"] = "hold"  # who drops must know what may not go
                    assert fixes == [f'GRANT {one} ON "logsluice"."{tables[one]}" TO "{role}"' for one in privileges], (
                        argv
                    )
                    assert status == (1 if privileges else 0), argv
                    for fix in fixes:
                        assert "may not" in err
                        conn.execute(fix)
                    assert run(orders, *argv, dsn=role_dsn) == 0, capsys.readouterr()
                    capsys.readouterr()
                assert run(orders, "replay", "--yes", dsn=role_dsn) == 1
                err = capsys.readouterr().err
                assert "permission denied for table orders" in err
                (fix,) = re.findall(r"GRANT [^;]*", err)
                assert fix == f'GRANT INSERT ON "public"."orders" TO "{role}"'
                assert orders.query("SELECT sqlstate FROM logsluice.dead_letter") == [("23503",)]
                conn.execute(fix)
                assert run(orders, "replay", "--yes", dsn=role_dsn) == 0
                assert conn.execute("SELECT amount FROM orders WHERE user_id = 999").fetchall() == [(5,)]


def test_a_database_of_an_earlier_version_is_written_to_and_the_command_says_what_to_run(empty_dsn, capsys):
    with connect(empty_dsn) as conn, pytest.MonkeyPatch.context() as patch:
        files = schema.sql_files()
        patch.setattr(schema, "sql_files", lambda: files[:1])
        schema.migrate(conn)
    with opened(Orders, empty_dsn, create=False) as orders:
        refuse(orders, 2)
        capsys.readouterr()
        assert run(orders, "list") == 1
        assert "was made by an earlier logsluice: run `logsluice migrate`" in capsys.readouterr().err
        assert main(["migrate", "--dsn", empty_dsn]) == 0
        orders.do(orders.heal)
        assert run(orders, "replay", "--yes") == 0
        assert once(orders)
        orders.log(**orders.taken)
        assert orders.flush()  # the handler that began before goes on


def test_no_table_here_is_said(empty_dsn, capsys):
    assert main(["dead", "list", "--dsn", empty_dsn]) == 1
    assert 'there is no table "logsluice"."dead_letter" in database' in capsys.readouterr().err


def test_another_schema_is_in_every_command(dsn, capsys):
    with opened(Orders, dsn, schema="My Logs") as orders:
        orders.log(**orders.taken)
        orders.log(**orders.refused)
        assert orders.flush()
        orders.do(orders.heal)
        here = ["--schema", "My Logs"]
        assert run(orders, "list", *here) == 0
        name = capsys.readouterr().out.split("  ")[1]
        assert run(orders, "show", *here, name) == 0
        shown = capsys.readouterr().out.splitlines()
        assert shown[-2] == f"  logsluice dead replay --schema 'My Logs' {name} --dsn ..."
        assert pasted(shown[-2], dsn) == 0
        assert stored(orders) == [0, 1]


# --- what strangers logged, or put there ----------------------------------------------------------------------------


def test_what_was_logged_cannot_drive_the_terminal_or_forge_a_line(orders, capsys):
    hostile = "tid=\x1b]0;title\a\x9b2J\u202e\u2028\x7f\r\nuser_id = 1\nreason: none\t\\N\\."
    orders.logger.info("%s", hostile, extra=orders.refused)
    assert orders.flush()
    orders.do("UPDATE logsluice.dead_letter SET error = E'red \\x1b[31m\\nforged', target = E'\"a\\x1b\".\"b\"'")
    (name,) = names(orders)
    capsys.readouterr()
    for argv in (["list"], ["list", "--json"], ["show", name], ["replay"], ["replay", name]):
        run(orders, *argv)
        out, err = capsys.readouterr()
        odd = {char for char in out + err if not char.isprintable() and char != "\n"}
        assert not odd, (argv, odd)
        assert "\nforged" not in out + err
        if argv[0] == "show":
            assert [line for line in out.splitlines() if line.startswith(("user_id", "reason"))] == [
                r"reason: 23503 red \x1b[31m\nforged", "user_id = 999",
            ]  # fmt: skip
    orders.do('UPDATE logsluice.dead_letter SET target = \'"public"."orders"\'', orders.heal)
    assert run(orders, "replay", name) == 0
    assert orders.query("SELECT note FROM orders WHERE user_id = 999") == [(hostile,)]


TARGETS = [
    '"pg_catalog"."pg_authid"',
    '"information_schema"."sql_features"',
    '"logsluice"."dead_letter"',
    '"logsluice"."stream"',
    '"logsluice"."version"',
    '"logsluice"."hold"',
    '"logsluice"."logs_hourly"',
    '"logsluice"."logs_hourly_state"',
    "pg_catalog.pg_authid",
    "public.orders",
    '"public"."orders" (note) FROM PROGRAM \'true\'; --"',
    '"public"."orders"; DROP TABLE public.orders; --',
    '"public"."no""such"',
    "",
    "%s",
]
SYSTEM = 8  # so many of them are there


def plant(shop, rows, **given):
    """Put dead letters in front of the real ones, as nobody of ours makes them: (1, 0), (1, 1), ..."""
    with connect(shop.read) as conn:
        for position, changes in enumerate(rows):
            values = {"target": '"public"."orders"', "columns": ["note"], "row": b"x\n", **given, **changes}
            conn.execute(
                "INSERT INTO logsluice.dead_letter (at, stream, position, target, columns, row, sqlstate) "
                "VALUES (now() - interval '1 day', 1, %s, %s, %s::text[], %s, '23503')",
                [position, *(values[name] for name in ("target", "columns", "row"))],
            )


def only_planted(done):
    """What stays dead is what was planted, all of it: position -> reason."""
    dead = [*done.held, *done.refused]
    assert {one.stream for one, _ in dead} == {1}
    return {one.position: why for one, why in dead}


def test_a_target_that_no_handler_wrote_is_not_written_to(orders):
    """Whoever may INSERT into dead_letter names the table; the role that replays may be the superuser."""
    refuse(orders, 3)
    orders.do(orders.heal)
    orders.do(schema.rollup())
    plant(orders, [{"target": target} for target in TARGETS])
    done = replay(orders.read)
    assert len(done.stored) == 3
    reasons = only_planted(done)
    assert len(reasons) == len(TARGETS)
    for position, why in reasons.items():
        ours = "no handler made this" if position < SYSTEM else "there is no table"
        assert ours in why, (TARGETS[position], why)
    assert once(orders)


COLUMNS = [
    ["note) FROM PROGRAM 'true' --"],
    ['note"'],
    [""],
    ["note", "note"],
    ["%s"],
    [None],
    [],
    None,
    [["a"], ["b"]],
]


def test_columns_that_no_handler_wrote_hurt_nobody(orders):
    refuse(orders, 3)
    orders.do(orders.heal)
    plant(orders, [{"columns": columns} for columns in COLUMNS])
    done = replay(orders.read)
    assert len(done.stored) == 3
    assert len(only_planted(done)) == len(COLUMNS)
    assert once(orders)
    for position in range(len(COLUMNS)):
        assert run(orders, "show", f"1:{position}") == 0


ROWS = [b"", b"torn", b"x\\\n", b"\\.\n", b"x\\.\n", b"two\nrows\n", b"x\r\n", b"x\0y\n", b"\xff\xfe\n"]


def one_column(shop):
    """Make the real dead letters rows of one text column as well, so that they are sent together with planted ones."""
    shop.do(
        "UPDATE logsluice.dead_letter SET columns = '{note}', "
        r"row = split_part(encode(row, 'escape'), E'\t', 2)::bytea || '\012'::bytea"
    )


def test_bytes_that_are_no_line_take_no_neighbour_with_them(orders, capsys):
    refuse(orders, 3)
    orders.do(orders.heal)
    one_column(orders)
    plant(orders, [{"row": row} for row in ROWS])
    done = replay(orders.read)
    assert len(done.stored) == 3
    reasons = only_planted(done)
    assert len(reasons) == len(ROWS)
    assert "invalid byte sequence" in reasons.pop(len(ROWS) - 1)  # a line, of bytes that are no text
    assert all("not one line of COPY text" in why for why in reasons.values())
    assert once(orders)
    assert orders.query("SELECT count(*) FROM orders") == [(6,)]
    capsys.readouterr()
    for position in reasons:
        assert run(orders, "show", f"1:{position}") == 0
        out = capsys.readouterr().out
        assert "its row is not one line of COPY text" in out
        assert [line.split()[2] for line in out.splitlines() if line.startswith("  logsluice")] == ["drop"]


@pytest.mark.parametrize(("row", "lost"), [(b"x\\\n", 1), (b"\\.\n", 3)], ids=repr)
def test_control_such_bytes_do_take_neighbours_with_them(orders, monkeypatch, row, lost):
    """Sent unseen, an escaped newline or the end of a COPY makes rows that are marked as stored vanish."""
    monkeypatch.setattr(replaying, "is_line", lambda _row: True)
    refuse(orders, 3)
    orders.do(orders.heal)
    one_column(orders)
    plant(orders, [{"row": row}])
    assert len(replay(orders.read).stored) == 4
    assert orders.query("SELECT count(*) FROM orders WHERE note LIKE 'tid=%%'") == [(6 - lost,)]
    assert names(orders) == []


def test_moments_and_numbers_that_nobody_of_ours_wrote_stop_nothing(orders, capsys):
    refuse(orders)
    odd = ["'infinity'", "'-infinity'", "'294276-12-31 23:59:59Z'", "'4713-01-01 00:00:00Z BC'", "now()"]
    for position, at in enumerate(odd):
        orders.do(
            "INSERT INTO logsluice.dead_letter (at, stream, position, target, columns, row, sqlstate, tries) "
            f"VALUES ({at}, 1, {position}, '\"public\".\"orders\"', '{{user_id}}', '999\n', '23503', {2**31 - 1})"
        )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(replaying, "CHUNK", 1)
        assert len(replay(orders.read, NOW + DAY, due=True).refused) == 4  # neither 'infinity' nor the last moment
        assert len(replay(orders.read, NOW).refused) == 6
    capsys.readouterr()
    for argv in (["list"], ["show", "1:0"], ["show", "1:3"], ["list", "--json"]):
        assert run(orders, *argv) == 0, argv
    assert "infinity" in capsys.readouterr().out
    orders.do(orders.heal)
    assert len(replay(orders.read, NOW).stored) == 6


# --- a damaged block of a journal -----------------------------------------------------------------------------------


def test_a_row_of_a_damaged_block_is_sent_only_when_it_is_named_and_meant(orders, capsys):
    ids = refuse(orders, 3)
    orders.do(orders.heal)
    (name, *_) = names(orders)
    orders.do(
        "UPDATE logsluice.dead_letter SET sqlstate = NULL, error = 'journal: a block of 64 KiB is damaged (checksum)' "
        f"WHERE position = {Id.parse(name).position}"
    )
    capsys.readouterr()
    assert run(orders, "list") == 0
    assert "  damaged  -  journal: a block of 64 KiB is damaged (checksum)" in capsys.readouterr().out
    assert run(orders, "replay") == 0
    assert "from a damaged block of a journal: not sent" in capsys.readouterr().out
    assert run(orders, "replay", "--due") == 0
    assert run(orders, "replay", "--yes") == 1
    out, err = capsys.readouterr()
    assert "stored 2\n" in out
    assert "1 from a damaged block of a journal were not sent" in err
    assert run(orders, "replay", name) == 1
    assert ids[0] not in stored(orders)
    line = capsys.readouterr().out.splitlines()[-1]
    assert run(orders, "show", name) == 0
    assert line in capsys.readouterr().out
    assert pasted(line, orders.read) == 0
    assert once(orders)


def test_a_damaged_row_that_is_refused_stays_a_damaged_one(orders):
    """With the reason of the table alone the next `replay --yes`, or cron, would send it unseen."""
    refuse(orders)
    (name,) = names(orders)
    orders.do("UPDATE logsluice.dead_letter SET sqlstate = NULL, error = 'journal: damaged'")
    for _ in range(2):
        assert run(orders, "replay", "--even-damaged", name) == 1
        ((sqlstate, error),) = orders.query("SELECT sqlstate, error FROM logsluice.dead_letter")
        assert sqlstate is None
        assert re.fullmatch(
            r'journal: damaged; sent again: [^;]* violates foreign key constraint "known" \[23503\]', error
        )
    orders.do(orders.heal)
    assert run(orders, "replay", "--yes") == 1
    assert replay(orders.read, NOW + DAY, due=True) == deadletters.Replayed()
    assert run(orders, "replay", "--even-damaged", name) == 0
    assert once(orders)


# --- dropping -------------------------------------------------------------------------------------------------------


def test_drop_shows_first_and_drops_what_is_old_stored_or_not(orders, capsys):
    refuse(orders, 4)
    orders.do(orders.heal)
    old, older, young, kept = names(orders)
    assert run(orders, "replay", older, young) == 0
    for name, days in ((old, 31), (older, 31), (young, 29)):
        orders.do(
            f"UPDATE logsluice.dead_letter SET at = at - interval '{days} days' WHERE position = {Id.parse(name).position}"
        )
    capsys.readouterr()
    assert run(orders, "drop") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "1 that wait and were never stored, 1 that were stored since"
    assert "dry run" in lines[2]
    assert len(names(orders, "true")) == 4
    assert pasted(lines[-1], orders.read) == 0
    assert capsys.readouterr().out == "dropped 2\n"
    assert sorted(names(orders, "true")) == sorted([young, kept])
    assert run(orders, "drop", "--older-than", "4w") == 0
    line = capsys.readouterr().out.splitlines()[-1]
    assert line == "  logsluice dead drop --older-than 28d --yes --dsn ..."
    assert pasted(line, orders.read) == 0
    assert names(orders, "true") == [kept]


def test_drop_of_what_was_stored_leaves_what_waits(orders, capsys):
    refuse(orders, 3)
    orders.do(orders.heal)
    first, *rest = names(orders)
    assert run(orders, "replay", first) == 0
    assert run(orders, "drop", "--replayed", "--older-than", "90m", "--yes") == 0
    assert len(names(orders, "true")) == 3
    assert run(orders, "drop", "--replayed", "--yes") == 0
    assert capsys.readouterr().out.splitlines()[-1] == "dropped 1"
    assert names(orders, "true") == rest


def test_drop_of_those_that_are_named(orders, capsys):
    refuse(orders, 3)
    first, second, third = names(orders)
    capsys.readouterr()
    assert run(orders, "drop", first, third) == 0
    line = capsys.readouterr().out.splitlines()[-1]
    assert pasted(line, orders.read) == 0
    assert names(orders, "true") == [second]
    with connect(orders.read) as conn, pytest.raises(LogsluiceError, match="say what to drop"):
        deadletters.drop(conn)


# --- the page -------------------------------------------------------------------------------------------------------


def test_the_page_does_what_it_says(dsn, tmp_path, monkeypatch, capsys):
    """docs/howto/dead-letters.md: its SQL makes the table, its program the dead letters, its commands mend them."""
    page = Page("dead-letters")
    page.lay_out(tmp_path)
    (shown,) = set(re.findall(r"\b\d+:\d+\b", "\n".join(page.commands)))
    (example,) = re.findall(r"^```text\n(.*?)^```$", (PAGES / "dead-letters.md").read_text(), re.MULTILINE | re.DOTALL)
    started, real, said = time.monotonic(), shown, {}
    monkeypatch.setenv("LOGSLUICE_DSN", dsn)
    with connect(dsn) as conn:
        conn.execute(page.files["tables.sql"])
        for line in page.commands:
            words = shlex.split(line.replace(shown, real))
            if words[0] == "export":
                assert words[1].startswith("LOGSLUICE_DSN=")
            elif words[0] == "psql":
                conn.execute(words[-1])
            elif words[0] == "logsluice":
                capsys.readouterr()
                assert main(words[1:]) == 0, (line, capsys.readouterr())
                said[line] = capsys.readouterr().out
            else:
                subprocess.run(words, cwd=tmp_path, env=environment(LOGS_DSN=dsn), timeout=LIMIT, check=True)
            if line == "logsluice dead list":
                assert len(said[line].splitlines()) == 3
                real = said[line].split("  ")[1]
        moment = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\dZ"
        as_shown = said[f"logsluice dead show {shown}"].replace(real, shown)
        assert re.sub(moment, "then", as_shown) == re.sub(moment, "then", example)
        assert conn.execute("SELECT note, user_id, amount::float FROM orders ORDER BY note").fetchall() == [
            ("order 17 paid", 1, 12.5), ("order 18 paid", 1, 12.5), ("order 19 paid", 2, None), ("order 20 paid", 2, None),
        ]  # fmt: skip
        assert conn.execute("SELECT count(*) FROM logsluice.dead_letter").fetchone() == (0,)
    print(f"{len(page.commands)} commands of the page: {time.monotonic() - started:.1f} s")
