"""Several connections: nothing lost, nothing twice, equal keys in their order, one end, one journal."""

from __future__ import annotations

import asyncio
import json
import logging
import signal
import threading
from collections import defaultdict

import psycopg
import pytest

from logsluice import buffer, schema, shards
from support.journals import KEEPS, given, heir, inherit, lost_and_twice, restart, streams
from support.overload import markers, stopped
from support.processes import until
from support.proxy import Proxy, ending
from support.shop import LIMIT, Shop, message
from support.situations import judge, stored_ids
from support.written import STORM, run

MANY = {"connections": 4}
KEYED = {**MANY, "shard_by": "extra.key"}
ROOM = {"capacity_bytes": 512 * 2**20}  # nothing is dropped while the server is away
KEYS = [f"session-{n}" for n in range(12)]
PAYLOAD = "x" * 900


@pytest.fixture
def proxy(dsn):
    with Proxy(dsn) as proxy:
        yield proxy


@pytest.fixture
def small(monkeypatch):
    """Segments of 64 KiB: the turn goes round after a few dozen records."""
    monkeypatch.setattr(buffer, "FIRST_SEGMENT", 65_536)
    monkeypatch.setattr(buffer, "LARGEST_SEGMENT", 65_536)


def in_threads(work, count=8):
    threads = [threading.Thread(target=work, args=(n,)) for n in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(2 * LIMIT)
        assert not thread.is_alive()


def stored_by(shop):
    """Records stored by each of the connections."""
    return [listener.ledger.totals.stored for _, listener in shop.handler._pairs]


def key_of(shard, count=4):
    """A key of this shard."""
    return next(key for key in map(str, range(1000)) if shards.index_of(key, count) == shard)


# --- once each ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [MANY, KEYED], ids=["turns", "keys"])
def test_eight_threads_four_connections_every_record_once(dsn, small, options):
    with Shop(dsn, **options) as shop:

        def work(number):
            for tid in range(number, 16_000, 8):
                shop.logger.info(message(tid), extra={"key": KEYS[tid % 12], "payload": PAYLOAD})

        shop.given = list(range(16_000))
        in_threads(work)
        assert shop.flush()
        shop.check()
        assert all(stored_by(shop))
        stats = shop.stats
        assert (stats.waiting, stats.breaker) == (0, "closed")
        assert sum(stats.histograms["batch_records"]["counts"]) == stats.batches
        assert sum(one["records"] for one in stats.recent["stored"]) > 0
        times = [one["at"] for one in stats.recent["stored"]]
        assert times == sorted(times)
        assert len(times) == 10
    assert shop.query("SELECT count(DISTINCT stream) FROM logsluice.logs") == [(4,)]


def test_a_trickle_has_one_connection(proxy, dsn):
    # Sent by `flush` alone: a sweep that a busy machine makes slower than `linger`, and that five more come into, is a
    # reason to give the turn away.
    with Shop(proxy.dsn, read=dsn, linger=LIMIT, **MANY) as shop:
        for _ in range(40):
            shop.log(5)
            assert shop.flush()
        shop.check()
        assert proxy.connections == 1
        assert [listener.started for _, listener in shop.handler._pairs] == [True, False, False, False]


def test_idle_connections_are_closed(proxy, dsn, small):
    with Shop(proxy.dsn, read=dsn, idle_close=0.3, **MANY) as shop:
        shop.log(8000, payload=PAYLOAD)
        assert shop.flush()
        assert sum(map(bool, stored_by(shop))) > 1
        routes = shop.handler._routes()
        assert until(lambda: not any(route.sink.connected for route in routes), LIMIT)
        before = proxy.connections
        shop.log()
        assert shop.flush()
        assert proxy.connections == before + 1  # those that were made: it may be closed again by now
        shop.check()


def test_one_connection_that_hangs_does_not_hold_up_the_others(proxy, dsn, small):
    """Control for the order of keys, too: without a key later records are stored before earlier ones."""
    with Shop(proxy.dsn, read=dsn, **MANY) as shop:
        (before,) = shop.log()
        assert shop.flush()
        held = proxy.hold_at(ending(b"COMMIT"))
        (first,) = shop.log(1, key="a")
        assert held.wait(LIMIT)
        later = shop.log(2000, payload=PAYLOAD, key="a")
        assert until(lambda: len(shop.stored()) > 1000, LIMIT)
        assert first not in shop.stored()
        held.release()
        assert shop.flush()
        assert set(shop.stored()) == {before, first, *later}
        shop.check()


def test_equal_keys_wait_for_each_other_and_others_do_not(proxy, dsn, small):
    with Shop(proxy.dsn, read=dsn, **KEYED) as shop:
        shop.log(1, key=key_of(1))
        assert shop.flush()
        held = proxy.hold_at(ending(b"COMMIT"))
        shop.log(1, key=key_of(1))
        assert held.wait(LIMIT)
        shop.log(500, payload=PAYLOAD, key=key_of(1))
        others = shop.log(500, payload=PAYLOAD, key=key_of(2))
        assert until(lambda: len(shop.stored()) == 501, LIMIT)
        assert set(shop.stored()) == {0, *others}
        assert not shop.flush(0.1)
        held.release()
        assert shop.flush()
        shop.check()


@pytest.mark.parametrize("options", [MANY, KEYED], ids=["turns", "keys"])
def test_cuts_and_restarts_lose_nothing_and_keep_the_order_of_keys(own_server, small, options):
    dsn = own_server.dsn()
    with psycopg.connect(dsn, autocommit=True) as conn:
        schema.migrate(conn)
    over, early = threading.Event(), []
    with Proxy(dsn) as proxy, Shop(proxy.dsn, read=dsn, **ROOM, **options) as shop:

        def faults():
            for number in range(12):
                for _ in range(3):
                    over.wait(0.1)
                    proxy.cut()
                if number % 4 == 3:
                    restart(own_server, (signal.SIGINT, signal.SIGQUIT)[number % 8 == 7])
            over.set()

        def watch():
            """What is there of a key is a beginning of what was logged, at each moment."""
            while not over.is_set():
                try:
                    early.extend(gaps(shop))
                except psycopg.OperationalError:
                    pass  # it is restarting

        logged = defaultdict(list)

        def work(number):
            while not over.wait(0.005):
                for _ in range(10):
                    tid = next(numbers)
                    key = f"{number}"  # one thread each: the order of the calls is known
                    logged[key].append(tid)
                    shop.logger.info(message(tid), extra={"key": key, "payload": PAYLOAD, "n": len(logged[key])})

        numbers = iter(range(10**9))
        faulty, watcher = threading.Thread(target=faults), threading.Thread(target=watch)
        faulty.start()
        watcher.start()
        in_threads(work)
        for thread in (faulty, watcher):
            thread.join(LIMIT)
        assert shop.flush(2 * LIMIT)
        shop.given = list(range(next(numbers)))
        assert not shop.stats.dropped
        shop.check()
        assert not gaps(shop)
        assert proxy.cuts > 3
        assert shop.stats.retries > 3
        of_key = shop.query("SELECT attributes->>'key', count(DISTINCT stream) FROM logsluice.logs GROUP BY 1")
        assert len(of_key) == 8
        if options is KEYED:
            assert not early
            assert {count for _, count in of_key} == {1}
            by_seq = "SELECT attributes->>'key', (attributes->>'n')::int FROM logsluice.logs ORDER BY stream, seq"
            seen = defaultdict(list)
            for key, n in shop.query(by_seq):
                seen[key].append(n)
            assert all(order == list(range(1, len(order) + 1)) for order in seen.values())
        else:
            assert max(count for _, count in of_key) > 1  # no order is promised


def gaps(shop):
    """The keys of which a record is stored while an earlier one is not."""
    text = (
        "SELECT attributes->>'key', max((attributes->>'n')::int), count(*) FROM logsluice.logs "
        "GROUP BY 1 HAVING max((attributes->>'n')::int) <> count(*)"
    )
    return shop.query(text)


# --- no room --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [MANY, KEYED], ids=["turns", "keys"])
def test_more_than_there_is_room_for_is_counted_said_and_over(dsn, options):
    room = {"capacity_bytes": 2**20, "max_frame_bytes": 2**16, **options}
    with Shop(dsn, **room) as shop:
        with stopped(shop):
            for number in range(2500):
                shop.log(1, payload=PAYLOAD, key=KEYS[number % 12])
            assert shop.stats.full
            dropped = shop.law().dropped
            assert dropped > 1000
            assert sum(route.buffer.held_bytes() for route in shop.handler._routes()) <= 2**20
            assert not asyncio.run(shop.handler.wait_ready(0.05))
            assert shop.handler.pressure > 0.6
        assert shop.flush()
        assert asyncio.run(shop.handler.wait_ready(LIMIT))
        shop.check(lost=dropped)
        assert until(lambda: sum(mark["dropped"] for mark in markers(shop)) == dropped, LIMIT)
        shop.log(100)
        assert shop.flush()
        shop.check(lost=dropped)


def test_capacity_counts_the_records_of_all(dsn):
    with Shop(dsn, capacity=100, **MANY) as shop:
        with stopped(shop):
            shop.log(150, level=logging.ERROR)
            stats = shop.law()
            assert (stats.waiting, stats.dropped) == (100, 50)
        assert shop.flush()
        shop.check(lost=50)


def test_what_is_refused_goes_to_the_fallback(dsn):
    taken = []

    class Other(logging.Handler):
        def emit(self, record):
            taken.append(record.getMessage())

    other = Other()
    other.set_name("other")
    with Shop(dsn, fallback="other", capacity=40, **MANY) as shop:
        with stopped(shop):
            shop.log(100, level=logging.ERROR)
            stats = shop.law()
            assert (stats.waiting, stats.dropped, stats.abandoned_by) == (40, 0, {"fallback": 60})
        assert shop.flush()
        assert shop.law().stored == 41
    assert len(taken) == 60


# --- the end, forks -------------------------------------------------------------------------------------------------


def test_close_in_an_outage_has_one_deadline(proxy, dsn):
    proxy.refuse()
    with Shop(proxy.dsn, read=dsn, **KEYED) as shop:
        for shard in range(4):
            shop.log(100, key=key_of(shard))
        assert not shop.flush(0.05)
        shop.handler._settings.__dict__["shutdown_timeout"] = 0.5
        shop.handler.close()
        listeners = [listener for _, listener in shop.handler._pairs]
        assert len({listener.deadline() for listener in listeners}) == 1
        assert until(lambda: all(listener.done.is_set() for listener in listeners), LIMIT)  # `close` waits 0.5 s longer
        stats = shop.law()
        assert (stats.abandoned_by, stats.waiting) == ({"exit": 400}, 0)
        shop.log(3, key="a")
        assert shop.law().dropped_by == {("closed", logging.INFO): 3}


END = """
configure(connections=4, **json.loads(os.environ["MORE"]))
for n in range(400):
    log.info("order", extra={"id": f"a-{n}", "key": str(n % 40)})
    wrote(f"a-{n}")
"""


def test_exit_sends_what_waits_in_all_of_them(dsn, tmp_path):
    ran = run(dsn, tmp_path, END, MORE=json.dumps({"shard_by": "extra.key"}))
    outcome = judge("connections: exit", dsn, ran.ids, seconds=ran.seconds)
    assert (outcome.logged, outcome.lost, outcome.twice) == (400, 0, 0)


def test_exit_in_an_outage_is_over_after_one_timeout(proxy, dsn, tmp_path):
    proxy.refuse()
    ran = run(proxy.dsn, tmp_path, END, MORE=json.dumps({"shard_by": "extra.key", "shutdown_timeout": 1}))
    assert ran.seconds < 20  # a net: one second for all of them
    assert not stored_ids(dsn)
    assert ran.program.stderr.count("are lost") >= 1


@pytest.mark.parametrize("more", [{}, {"shard_by": "extra.id"}], ids=["turns", "keys"])
def test_forks_while_threads_log(dsn, tmp_path, more):
    ran = run(dsn, tmp_path, STORM, args=("12",), LOGSLUICE_TEST_OPTIONS=json.dumps({"connections": 3, **more}))
    assert ran.told["late"] == 0
    outcome = judge("connections: forks", dsn, ran.ids, seconds=ran.seconds)
    assert (outcome.lost, outcome.twice) == (0, 0)
    assert outcome.logged == 120 + sum(ran.told["sent"])


def test_switched_off_it_only_counts(monkeypatch):
    monkeypatch.setenv("LOGSLUICE_OFF", "1")
    with Shop("", **KEYED) as shop:
        shop.log(3, key="a")
        assert shop.stats.dropped_by == {("off", logging.NOTSET): 3}
        assert not shop.handler._pairs


# --- a journal ------------------------------------------------------------------------------------------------------

DIES = """
journaled(connections=3, batch_bytes=65536, **json.loads(os.environ["MORE"]))
import logsluice.buffer
handler()._open()  # of four first records at once, three make pairs and throw them away: an empty folder may stay behind
def work(name):
    for n in range(3000):
        order(f"{RUN}-{name}-{n}", "x" * 200)
threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
tell(rows=[listener.routes[0].buffer.rows_waiting() for _, listener in handler()._pairs])
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize("more", [{}, {"shard_by": "extra.id"}], ids=["turns", "keys"])
@pytest.mark.parametrize("heirs", [1, 3])
def test_killed_and_adopted_nothing_is_lost_or_twice(proxy, dsn, tmp_path, more, heirs):
    journal = tmp_path / "journal"
    proxy.refuse()
    ran = run(proxy.dsn, tmp_path, KEEPS + DIES, status=-signal.SIGKILL, MORE=json.dumps(more), **given(journal, "run"))
    proxy.heal()
    assert sum(ran.told["rows"]) == 12_000
    assert min(ran.told["rows"]) > 0  # each of the three had some
    assert len(streams(journal)) == 3
    after = inherit(proxy.dsn, journal, read=dsn, connections=heirs)
    assert lost_and_twice(dsn, tmp_path) == ([], [])
    assert sum(one["stored"] for one in after.adopted) == 12_000
    assert len(after.adopted) == 3
    assert not after.figures["left"]
    assert not streams(journal)


def test_only_one_adopts_and_never_its_siblings(dsn, tmp_path):
    journal = tmp_path / "journal"
    with heir(dsn, journal, connections=3) as shop:
        assert [listener.adopter is not None for _, listener in shop.handler._pairs] == [True, False, False]
        adopter = shop.listener.adopter
        assert {f"{route.buffer.stream:016x}" for route in shop.handler._routes()} == adopter.mine
        assert not adopter.look(set())
        assert not adopter.left
        adopter.mine = set()
        assert not adopter.look(set())  # their flock says so as well
        shop.log(100)
        assert shop.flush()
        shop.check()
        assert shop.stats.journal["segments"] == 3
    assert not streams(journal)


AGAIN = """
for n in range(10):
    configure(connections=4, journal=os.environ["JOURNAL"])      # closes the one before under logging's lock
    order(n)
from logsluice import lifecycle
assert until(lambda: all(one.done.is_set() for one in lifecycle._draining))
tell(files=len(os.listdir("/proc/self/fd")), streams=len([one for one in os.listdir(os.environ["JOURNAL"]) if len(one) == 16]))
"""


def test_configured_again_and_again_nothing_piles_up(dsn, tmp_path):
    journal = tmp_path / "journal"
    ran = run(dsn, tmp_path, AGAIN, JOURNAL=str(journal))
    assert ran.told["streams"] == 4
    assert ran.told["files"] < 40  # of ten handlers with four streams each it would be hundreds
    outcome = judge("connections: dictConfig again", dsn, ran.ids)
    assert (outcome.logged, outcome.lost, outcome.twice) == (10, 0, 0)
    assert not streams(journal)


def test_what_is_left_at_the_end_stays_in_the_journal_of_all(proxy, dsn, tmp_path):
    journal = tmp_path / "journal"
    proxy.refuse()
    with Shop(proxy.dsn, read=dsn, journal=str(journal), **KEYED) as shop:
        for shard in range(4):
            shop.log(50, key=key_of(shard))
        shop.handler._settings.__dict__["shutdown_timeout"] = 0.2
        shop.handler.close()
        assert until(lambda: all(listener.done.is_set() for _, listener in shop.handler._pairs), LIMIT)
        stats = shop.law()
        assert (stats.abandoned_by, stats.waiting) == ({"journal": 200}, 0)
    assert len(streams(journal)) == 4
    proxy.heal()
    with heir(proxy.dsn, journal, read=dsn, connections=2) as after:
        assert until(lambda: len(after.stats.journal["adopted"]) == 4 and after.stats.waiting == 0, LIMIT)
        assert until(lambda: not after.listener.adopted, LIMIT)
        assert sum(one["stored"] for one in after.stats.journal["adopted"]) == 200


def test_a_full_folder_opens_again_for_one_that_has_nothing_to_send(proxy, dsn, tmp_path):
    """What a sibling frees is found by a listener that nobody wakes."""
    with Shop(proxy.dsn, read=dsn, journal=str(tmp_path / "journal"), **KEYED) as shop:
        shop.log(1, key=key_of(0))
        shop.log(1, key=key_of(1))
        assert shop.flush()
        quiet = shop.handler._pairs[1][0].buffer
        # Asleep: `flush` returns before the sweep is over, and its end would open the buffer again at once.
        assert until(lambda: shop.handler._pairs[1][1].keeper.idle, LIMIT)
        quiet._full, quiet.full_reason = True, "journal_full"
        quiet._aim()
        shop.log(1, key=key_of(1))
        assert until(lambda: not quiet.under_pressure, LIMIT)
        shop.log(1, key=key_of(1))
        assert shop.flush()
        shop.check(lost=1)
