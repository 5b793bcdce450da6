"""
PostgreSQL and the network fail, one fault a test. Each test proves that its fault happened, and then that every record,
known by an id of its own, is in the table exactly once.
"""

from __future__ import annotations

import random
import threading
import time
from datetime import datetime, timezone

import psycopg
import pytest

from logsluice import partitions
from logsluice.sinks import postgres
from support.commits import COMMIT, late_commit_without_lock, late_commits, lose_commits, without_watermark
from support.faults import (
    BREAKS,
    PASSWORDS,
    broken,
    dated,
    deadlock,
    demoted,
    drifted,
    one_bad_row_in_5000,
    password_rotated,
    reject,
    slow_rows,
    stuck_for,
    table_locked,
    terminate,
    too_slow_for_its_limit,
)
from support.processes import until
from support.proxy import Proxy, kind
from support.shop import LIMIT, Shop, message, writer


@pytest.fixture
def proxy(dsn):
    with Proxy(dsn) as proxy:
        yield proxy


@pytest.fixture
def shop(proxy, dsn):
    """A program that has stored one record through the proxy."""
    with Shop(proxy.dsn, read=dsn) as shop:
        shop.watch()
        shop.log()
        assert shop.flush()
        yield shop


# --- the server is away ---------------------------------------------------------------------------------------------


def test_a_server_that_is_down_at_the_start_gets_everything_when_it_is_up(dsn):
    with Proxy(dsn) as proxy:
        proxy.refuse()
        with Shop(proxy.dsn, read=dsn) as shop:
            began = time.monotonic()
            shop.log(1000)
            print(f"1000 calls while refused: {time.monotonic() - began:.3f} s")
            shop.await_failure(count=3)
            assert shop.stats.breaker in {"open", "half_open"}
            assert shop.stats.waiting == 1000
            assert not shop.flush(0)
            proxy.heal()
            assert shop.flush()
            shop.check()
            assert shop.stats.breaker == "closed"


def test_a_killed_and_restarted_server(own_server):
    with Shop(own_server.dsn()) as shop:
        shop.log(100)
        assert shop.flush()
        pid = own_server.pid
        shop.log(300)
        own_server.kill()
        shop.log(300)
        shop.await_failure()
        own_server.start()
        assert own_server.pid != pid
        assert shop.flush()
        shop.log(100)
        assert shop.flush()
        _, dead = shop.check()
        assert not dead


def test_a_session_ended_in_the_middle_of_a_copy(shop):
    with slow_rows(shop, 5):
        shop.log(200)
        copying = "SELECT count(*) FROM pg_stat_activity WHERE query LIKE 'COPY %' AND state = 'active'"
        for _ in range(3):
            assert until(lambda: shop.query(f"{copying} AND datname = current_database()") == [(1,)], LIMIT)
            terminate(shop)
            assert until(lambda: shop.stats.retries, LIMIT)
    shop.await_failure("57P01")
    assert shop.flush()
    _, dead = shop.check()
    assert not dead


# --- the answer to COMMIT is lost -----------------------------------------------------------------------------------


def test_a_lost_answer_to_commit_stores_nothing_twice(shop, proxy):
    rounds = 12
    cuts = lose_commits(shop, proxy, rounds)
    shop.check()
    print(f"{cuts} COMMIT answers lost, {shop.known} of them found by the watermark")
    assert cuts == rounds
    # Flushed while rows still came, a round may be two batches, and a cut may meet the COMMIT of new partitions.
    assert shop.known >= rounds * 0.75


def test_without_the_watermark_the_same_fault_stores_rows_twice(shop, proxy):
    """The control: the test above bites."""
    with without_watermark():
        cuts = lose_commits(shop, proxy, 5)
    stored = shop.stored()
    print(f"control: {len(stored)} rows for {len(set(stored))} records after {cuts} lost answers")
    assert len(stored) - len(set(stored)) >= 20 * 3


def test_a_commit_that_arrives_late_stores_nothing_twice(own_server):
    with Shop(own_server.dsn(), io_timeout=10) as shop:
        late_commits(shop, 1)  # twenty: tests/acceptance/test_storms.py
        shop.check()
        assert shop.known >= 1


def test_without_the_lock_a_late_commit_stores_rows_twice(own_server):
    with Shop(own_server.dsn(), io_timeout=10) as shop:
        late_commit_without_lock(shop)
        assert len(shop.stored()) > len(set(shop.stored()))


# --- the connection breaks in the middle ----------------------------------------------------------------------------


def test_cut_at_random_bytes(shop, proxy):
    rng = random.Random(5)
    rounds, size = 20, 30_000  # bytes: what 150 records take with everything around them
    for _ in range(rounds):
        proxy.cut_at(rng.randrange(size))
        shop.log(150)
        assert shop.flush()
    _, dead = shop.check()
    print(f"{proxy.cuts} cuts at random bytes, {shop.stats.retries} retries")
    assert proxy.cuts >= rounds * 0.75
    assert not dead


# --- the server does not answer -------------------------------------------------------------------------------------

IO_TIMEOUT = 0.5  # seconds; connecting has 2, the least that libpq knows


@pytest.mark.parametrize("where", ["copy", "commit", "begin"])
def test_an_answer_that_never_comes(dsn, where):
    match = {"copy": kind(b"c"), "commit": COMMIT, "begin": lambda m: b"FOR UPDATE" in m}[where]
    with Proxy(dsn) as proxy, Shop(proxy.dsn, read=dsn, io_timeout=IO_TIMEOUT) as shop:
        shop.watch()
        shop.log()
        assert shop.flush()
        took, failure, _ = stuck_for(shop, lambda: proxy.swallow_after(match), proxy)
        print(f"no answer in {where}: ended after {took:.2f} s of io_timeout {IO_TIMEOUT}")
        assert IO_TIMEOUT * 0.9 < took < IO_TIMEOUT * 10
        assert failure["verdict"] == "shrink"
        shop.check()
        if where == "commit":
            assert shop.known  # it had been stored


def test_a_server_that_does_not_answer_a_new_connection(dsn):
    with Proxy(dsn) as proxy, Shop(proxy.dsn, read=dsn, io_timeout=IO_TIMEOUT) as shop:
        shop.watch()
        took, failure, _ = stuck_for(shop, proxy.swallow, proxy)
        print(f"no answer in connect: ended after {took:.2f} s (at least 2 s: libpq's least connect_timeout)")
        assert 1.5 < took < 20
        assert failure["verdict"] == "retry"
        shop.check()


def test_a_server_that_does_not_answer_does_not_keep_the_program_from_ending(dsn):
    with Proxy(dsn) as proxy:
        shop = Shop(proxy.dsn, read=dsn, io_timeout=LIMIT, shutdown_timeout=0.3)
        shop.log()
        assert shop.flush()
        proxy.swallow()
        shop.log(10)
        shop.handler.flush(0)
        began = time.monotonic()
        shop.handler.close()
        took = time.monotonic() - began
        print(f"close() with a silent server: {took:.2f} s of shutdown_timeout 0.3")
        assert took < 10  # seconds: 0.3 and 0.5; io_timeout is three times as long
        assert proxy.swallowed > 0
        assert shop.listener.done.wait(LIMIT)
        stats = shop.law()
        assert (stats.stored, stats.abandoned, stats.abandoned_by) == (1, 10, {"exit": 10})
        assert shop.stored() == [0]


# --- limits and locks -----------------------------------------------------------------------------------------------


def test_a_time_limit_too_small_for_the_batch_shrinks_it(dsn, capfd):
    with Shop(dsn, io_timeout=0.3, linger=0.2) as shop:
        shop.watch()
        shop.log()
        assert shop.flush()
        with slow_rows(shop, 2):
            shrunk, first = too_slow_for_its_limit(shop)
        _, dead = shop.check()
        assert not dead
        print(f"400 rows of 2 ms within 0.3 s: {shrunk} attempts shrank, first stored at attempt {first}")


def test_a_lock_on_the_table_is_waited_for_a_bounded_time(shop):
    with table_locked(shop) as failures:
        print("waited for the lock:", [round(f["seconds"], 2) for f in failures], "s of 0.25")
    assert shop.flush()
    shop.check()


def test_a_zombie_transaction_that_holds_the_watermark(shop):
    shop.handler._settings.__dict__["io_timeout"] = 1.0
    with psycopg.connect(shop.read) as zombie:
        zombie.execute("SELECT * FROM logsluice.stream FOR UPDATE")
        shop.log(10)
        shop.await_failure("55P03", count=3)
        assert shop.stored() == [0]
    assert shop.flush()
    shop.check()


def test_an_abandoned_attempt_lets_the_watermark_go(own_server):
    """A client machine that vanished: its session ends by the limits that it had set itself."""
    with Shop(own_server.dsn(), io_timeout=0.5) as shop:
        shop.watch()
        shop.log()
        assert shop.flush()
        limits = shop.route.sink._limits()
        with psycopg.connect(own_server.dsn(), autocommit=True) as zombie:
            zombie.execute(f"BEGIN; {limits}; SELECT * FROM logsluice.stream FOR UPDATE")
            began = time.monotonic()
            shop.log(10)
            assert shop.flush()
            print(f"a zombie with a limit of 0.5 s held the watermark for {time.monotonic() - began:.2f} s")
            assert shop.failed("55P03")
            with pytest.raises(psycopg.errors.IdleInTransactionSessionTimeout):
                zombie.execute("SELECT 1")
        shop.check()


def test_a_deadlock_is_tried_again(shop):
    """The one that the server chooses is ours: it waits longer, and the other asks for the row last."""
    deadlock(shop)
    assert shop.flush()
    shop.check()


def test_a_demoted_primary_is_left(shop, admin, proxy):
    with demoted(shop, admin, proxy):
        pass
    assert shop.flush()
    _, dead = shop.check()
    assert not dead


def test_too_many_connections(dsn, admin):
    with writer(dsn, admin, "CONNECTION LIMIT 0") as (theirs, name), Shop(theirs, read=dsn, create=False) as shop:
        shop.log(10)
        failures = shop.await_failure(count=3)
        assert "too many connections" in failures[0]["error"]
        assert {f["verdict"] for f in failures} == {"retry"}
        admin.execute(f"ALTER ROLE {name} CONNECTION LIMIT -1")
        assert shop.flush()
        shop.check()


def test_a_changed_password_is_waited_for_and_asked_anew(dsn, admin, capfd):
    with password_rotated(dsn, admin) as (shop, mend):
        mend()
        assert shop.flush()
        shop.check()
    said = capfd.readouterr().err
    assert "password authentication failed" in said
    assert not any(password in said for password in PASSWORDS)


# --- somebody changed the tables ------------------------------------------------------------------------------------


@pytest.mark.parametrize("what", BREAKS)
def test_what_somebody_must_mend_is_blocked_and_nothing_is_lost(dsn, admin, capfd, what):
    with writer(dsn, admin) as (theirs, role), Shop(theirs, read=dsn, create=False) as shop:
        shop.watch()
        with broken(shop, what, role) as says:
            pass
        assert shop.flush()
        _, dead = shop.check()
        assert dead == ([150] if "dead letters" in what else [])
    said = capfd.readouterr().err
    assert "blocked, records are kept" in said
    assert says in said, said


def test_a_new_column_that_nothing_fills_blocks_and_rejects_next_to_nothing(shop):
    with drifted(shop) as attempts:
        pass
    assert shop.flush()
    _, dead = shop.check()
    print(f"schema drift: blocked after {attempts} attempts, {len(dead)} dead letters of 1000")
    assert len(dead) <= 20


# --- the data -------------------------------------------------------------------------------------------------------


def test_one_bad_row_in_5000_is_set_aside_and_the_others_are_stored_with_it(dsn):
    with Shop(dsn, linger=0.3) as shop:
        attempts = one_bad_row_in_5000(shop)
        print(f"one bad row in 5000: {attempts} attempts at most for a batch")


def test_a_run_of_bad_rows_amid_good_ones_is_set_aside(shop):
    reject(shop, "(attributes->>'bad')::boolean")
    shop.log(100, bad=False)
    bad = shop.log(30, bad=True)
    shop.log(100, bad=False)
    assert shop.flush()
    _, dead = shop.check()
    assert sorted(dead) == bad


def test_a_run_of_bad_rows_alone_is_set_aside_when_a_good_one_comes(shop):
    """Only bad rows wait: nobody can know whether they or the table are to blame. The next good row tells."""
    reject(shop, "(attributes->>'bad')::boolean")
    bad = shop.log(60, bad=True)
    assert until(lambda: any(f["verdict"] == "blocked" for f in shop.failed("23514")), LIMIT)
    shop.log(1, bad=False)
    assert shop.flush()
    _, dead = shop.check()
    assert sorted(dead) == bad


def test_more_bad_rows_than_a_batch_holds_do_not_block_for_ever(shop):
    reject(shop, "(attributes->>'bad')::boolean")
    shop.listener.settings.__dict__["batch_size"] = 50
    bad = shop.log(130, bad=True)
    shop.log(20, bad=False)
    assert shop.flush()
    _, dead = shop.check()
    assert sorted(dead) == bad


def test_a_trigger_that_refuses_is_recognised_and_its_words_stay_in_the_server(shop, capfd):
    """RAISE says what its author likes, the row's text included: that goes neither to stderr nor into stats."""
    shop.do(
        "CREATE FUNCTION public.refuse() RETURNS trigger LANGUAGE plpgsql AS $$BEGIN "
        "IF NEW.attributes->>'bad' = 'canary' THEN RAISE EXCEPTION 'not wanted: % %', NEW.message, NEW.attributes; END IF; "
        "RETURN NEW; END$$",
        "CREATE TRIGGER refuse BEFORE INSERT ON logsluice.logs FOR EACH ROW EXECUTE FUNCTION public.refuse()",
    )
    shop.log(1000, bad="no")
    bad = shop.log(1, bad="canary")
    shop.log(1000, bad="no")
    assert shop.flush()
    _, dead = shop.check()
    assert dead == bad
    assert max(shop.attempts_a_batch()) <= 3  # the server named the row, although a function stood in between
    letters = shop.query("SELECT sqlstate, error FROM logsluice.dead_letter")
    assert letters[0][0] == "P0001"
    everything = repr((letters, shop.stats, capfd.readouterr()))
    assert "canary" not in everything
    assert "tid=" not in everything


def test_a_partition_dropped_under_the_writer_is_made_again(shop):
    shop.log(50)
    assert shop.flush()
    with psycopg.connect(shop.read, autocommit=True) as conn:
        today = datetime.now(timezone.utc)
        for part in partitions.listed(conn, "logsluice"):
            if part.lower <= today < part.upper:
                conn.execute(f"DROP TABLE {part.full_name}")
    gone, shop.given = shop.given, []
    ids = [len(gone) + n for n in range(50)]
    for tid in ids:
        shop.logger.info(message(tid))
    assert shop.flush()
    assert sorted(shop.stored()) == ids
    assert not shop.dead()
    assert shop.stats.stored == len(gone) + len(ids)


def test_records_of_other_days_get_their_partitions(shop):
    for tid, days in [(1, -300), (2, -299), (3, 1.9), (4, -2), (5, 0)]:
        shop.given.append(tid)
        shop.handler.handle(dated(tid, days))
    assert shop.flush()
    _, dead = shop.check()
    assert not dead
    oldest = shop.query("SELECT min(ts) < now() - interval '299 days' FROM logsluice.logs")
    assert oldest == [(True,)]


def test_more_days_in_a_batch_than_are_made_at_once_arrive_all_the_same(shop):
    for tid in range(1, 41):
        shop.given.append(tid)
        shop.handler.handle(dated(tid, -2 - 2 * tid))
    assert shop.flush()
    _, dead = shop.check()
    assert not dead


def test_an_open_reader_and_a_new_day_delay_no_commit(shop):
    with psycopg.connect(shop.read) as reader:
        reader.execute("SELECT count(*) FROM logsluice.logs")  # its transaction stays open, with its locks
        shop.given.append(1)
        began = time.monotonic()
        shop.handler.handle(dated(1, 1.9))
        shop.log(10)
        assert shop.flush()
        took = time.monotonic() - began
        print(f"a new day beside an open reader: stored after {took:.2f} s")
        assert took < 5
        shop.check()


@pytest.mark.parametrize("body", ["RETURN NULL;", "NEW.position = OLD.position; RETURN NEW;"], ids=["row", "number"])
def test_a_trigger_that_swallows_the_watermark_is_an_error_and_no_loss(shop, body):
    shop.do(
        f"CREATE FUNCTION public.swallow() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN {body} END'",
        "CREATE TRIGGER swallow BEFORE UPDATE ON logsluice.stream FOR EACH ROW EXECUTE FUNCTION public.swallow()",
    )
    shop.log(10)
    failures = shop.await_failure("55000", count=2)
    assert failures[-1]["verdict"] == "blocked"
    assert shop.stored() == [0]
    shop.do("DROP TRIGGER swallow ON logsluice.stream")
    assert shop.flush()
    shop.check()


def test_a_deferred_trigger_with_the_words_of_a_watermark_that_did_not_move_blames_its_row(shop):
    """Both fail in the same message, with the same code; only ours is none of the data's."""
    shop.do(
        "CREATE FUNCTION public.judge() RETURNS trigger LANGUAGE plpgsql AS "
        f"$$BEGIN IF NEW.level = 50 THEN PERFORM '{postgres.NOT_MOVED}'::text::int; END IF; RETURN NULL; END$$",
        "CREATE CONSTRAINT TRIGGER judge AFTER INSERT ON logsluice.logs DEFERRABLE INITIALLY DEFERRED "
        "FOR EACH ROW EXECUTE FUNCTION public.judge()",
    )
    shop.log(5)
    (bad,) = shop.log(1, level=50)
    shop.log(5)
    assert shop.flush()
    _, dead = shop.check()
    assert dead == [bad]


def test_a_deleted_watermark_is_said(shop, capfd):
    shop.log(10)
    assert shop.flush()
    shop.do("DELETE FROM logsluice.stream")
    shop.log(10)
    assert shop.flush()
    assert "watermark_missing" in capfd.readouterr().err
    assert sorted(shop.stored()) == shop.given


def test_a_batch_given_up_after_retry_limit_is_counted(dsn, capfd):
    with Shop(dsn, retry_limit=3) as shop:
        shop.log(10)
        assert shop.flush()
        shop.do("ALTER TABLE logsluice.logs RENAME TO gone")
        shop.log(10)
        assert shop.flush()
        shop.do("ALTER TABLE logsluice.gone RENAME TO logs")
        shop.log(10)
        assert shop.flush()
        stored, _ = shop.check(lost=10)
        assert sorted(stored) == [*range(10), *range(20, 30)]
        assert shop.stats.abandoned_by == {"retry_limit": 10}
        assert shop.query("SELECT offered - dropped - stored - dead FROM logsluice.stream") == [(0,)]  # nothing waits
    assert "10 records given up" in capfd.readouterr().err


def test_a_mistake_of_ours_does_not_end_the_delivery(shop, monkeypatch, capfd):
    broken = threading.Event()

    def transaction(*_args):
        broken.set()
        monkeypatch.undo()
        raise ZeroDivisionError("of ours")

    monkeypatch.setattr(type(shop.listener), "_stored", transaction)
    shop.log(10)
    assert broken.wait(LIMIT)
    assert shop.flush()
    shop.check()
    assert "internal error, delivery goes on: ZeroDivisionError" in capfd.readouterr().err
    assert postgres  # the module that the patch above must not reach
