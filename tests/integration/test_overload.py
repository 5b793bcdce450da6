"""More records than can be stored: dropped or waited for as configured, counted exactly, and said in the log itself."""

from __future__ import annotations

import asyncio
import itertools
import logging
import threading
import time
from pathlib import Path

import psycopg
import pytest

from support.overload import SMALL, flood, markers, stopped
from support.processes import until
from support.shop import LIMIT, Shop


def test_drop_loses_low_levels_first_counts_them_and_says_so_in_the_log(dsn, capfd):
    with Shop(dsn, **SMALL) as shop:
        with stopped(shop):
            low = flood(shop, 1500)
            assert shop.stats.full
            high = flood(shop, 50, logging.ERROR)
            assert low
            assert not high
            stats = shop.law()
            assert stats.dropped_by == {("full", logging.INFO): len(low)}
            assert shop.handler.pressure > 0.7
        assert shop.flush()
        stored, dead = shop.check(lost=len(low))
        assert not dead
        assert not set(stored) & set(low)
        assert until(lambda: markers(shop), LIMIT)
        shop.flush()
        (mark,) = markers(shop)
        assert mark["dropped"] == len(low)
        assert mark["since"] <= mark["until"]
        assert "INFO (full)" in mark["reasons"]
        assert shop.stats.markers == 1
        assert shop.handler.pressure < 0.5
        assert not shop.stats.full
        shop.log(10)
        assert shop.flush()
        shop.check(lost=len(low))
    assert f"{len(low)} records were dropped: {len(low)} INFO (full)" in capfd.readouterr().err


def test_each_time_of_pressure_has_one_mark_and_they_add_up(dsn):
    with Shop(dsn, **SMALL) as shop:
        lost = 0
        for n in range(3):
            with stopped(shop):
                lost += len(flood(shop, 1200))
            assert shop.flush()
            assert until(lambda n=n: len(markers(shop)) == n + 1, LIMIT)
        assert sum(mark["dropped"] for mark in markers(shop)) == lost == shop.stats.dropped
        shop.check(lost=lost)


def test_block_waits_and_loses_nothing(dsn):
    with Shop(dsn, when_full="block", block_timeout=LIMIT, **SMALL) as shop:
        done = threading.Event()
        with stopped(shop):
            thread = threading.Thread(target=lambda: (flood(shop, 3000), done.set()))
            thread.start()
            assert until(lambda: shop.stats.full, LIMIT)
            assert not done.wait(0.2)  # it stands still
            assert len(shop.given) < 3000
        assert done.wait(LIMIT)
        thread.join()
        assert shop.flush()
        shop.check()
        assert shop.stats.dropped == 0
        assert not markers(shop)


def test_block_ends_at_its_time_and_then_drops(dsn):
    with Shop(dsn, when_full="block", block_timeout=0.1, capacity=50, **SMALL) as shop:
        with stopped(shop):
            shop.log(40)
            began = time.monotonic()
            lost = flood(shop, 3)
            took = time.monotonic() - began
            assert len(lost) == 3
            assert 0.3 <= took < 10
        assert shop.flush()
        shop.check(lost=3)
        assert shop.stats.dropped_by == {("block_timeout", logging.INFO): 3}


def test_an_event_loop_is_not_blocked_and_can_wait_for_room(dsn):
    async def main(shop):
        lost = []
        beats = []

        async def heartbeat():
            while True:
                beats.append(time.monotonic())
                await asyncio.sleep(0.01)

        beating = asyncio.create_task(heartbeat())
        await asyncio.sleep(0.02)
        for _ in range(30):
            lost += flood(shop, 50)
            await asyncio.sleep(0)
        assert lost
        assert not await shop.handler.wait_ready(0.1)
        return lost, beating, beats

    async def whole(shop):
        with psycopg.connect(shop.read) as other:
            other.execute("LOCK TABLE logsluice.logs IN ACCESS EXCLUSIVE MODE")
            lost, beating, beats = await main(shop)
            room = asyncio.create_task(shop.handler.wait_ready(LIMIT))
            await asyncio.sleep(0.05)
            assert not room.done()
        assert await room
        assert not flood(shop, 10)
        beating.cancel()
        return lost, max(b - a for a, b in itertools.pairwise(beats))

    with Shop(dsn, when_full="block", block_timeout=LIMIT, **SMALL) as shop:
        shop.log()
        assert shop.flush()
        assert asyncio.run(shop.handler.wait_ready(1))
        lost, longest = asyncio.run(whole(shop))
        print(f"{len(lost)} dropped on the loop, its longest pause {longest * 1000:.0f} ms")
        assert longest < LIMIT / 4  # block_timeout would have been 30 s
        assert shop.flush()
        shop.check(lost=len(lost))
        assert shop.stats.dropped_by == {("event_loop", logging.INFO): len(lost)}


def test_capacity_in_records(dsn):
    with Shop(dsn, capacity=100, linger=0.01) as shop:
        with stopped(shop):
            lost = flood(shop, 150) + flood(shop, 150, logging.ERROR)
            assert len(lost) == 200
            assert shop.stats.waiting == 100
            assert shop.handler.pressure == 1.0
        assert shop.flush()
        shop.check(lost=200)
        assert until(lambda: markers(shop), LIMIT)
        assert [mark["dropped"] for mark in markers(shop)] == [200]


def test_wait_ready_with_a_capacity_in_records(dsn):
    with Shop(dsn, capacity=100, linger=0.01) as shop:
        with stopped(shop):
            shop.log(80)
            assert not asyncio.run(shop.handler.wait_ready(0.05))
        assert asyncio.run(shop.handler.wait_ready(LIMIT))
        shop.log(10)
        assert shop.flush()
        shop.check()


@pytest.mark.parametrize("level", [logging.ERROR, logging.CRITICAL])
def test_an_error_is_in_the_table_long_before_a_huge_linger_is_over(dsn, level):
    with Shop(dsn, linger=60) as shop:
        shop.log()
        assert not until(shop.stored, 0.3)
        began = time.monotonic()
        shop.log(1, level)
        assert until(lambda: len(shop.stored()) == 2, LIMIT)
        print(f"an ERROR was in the table after {time.monotonic() - began:.3f} s of linger 60")
        assert time.monotonic() - began < 20


def test_a_thread_that_has_nothing_to_do_does_nothing(dsn):
    with Shop(dsn) as shop:
        shop.log(100)
        assert shop.flush()
        thread = next(one for one in threading.enumerate() if one.ident == shop.listener.thread_id)
        assert until(lambda: shop.route.intake.wake_level < 0, LIMIT)

        def switches():
            with Path(f"/proc/self/task/{thread.native_id}/status").open() as status:
                return [line for line in status if "ctxt_switches" in line]

        def still():
            before = switches()
            threading.Event().wait(0.5)  # seconds: fifty times linger
            return switches() == before

        assert until(still, LIMIT)  # on a busy machine it takes a while to fall asleep
        shop.log()  # and the first record after it is delivered
        assert until(lambda: len(shop.stored()) == 101, LIMIT)
        shop.check()


def test_the_listener_sleeps_through_an_outage_with_a_full_buffer(dsn):
    """Dropping costs the program a counter, and the listener nothing: it has its back-off."""
    with Shop(dsn, backoff_initial=LIMIT, backoff_max=LIMIT, **SMALL) as shop:
        shop.log()
        assert shop.flush()
        shop.listener.breaker.backoff.random.uniform = shop.route.breaker.backoff.random.uniform = lambda _a, b: b
        shop.do("ALTER TABLE logsluice.logs RENAME TO gone")
        shop.log()
        shop.await_failure("42P01")
        sweeps = []
        sweep = shop.listener._sweep
        shop.listener._sweep = lambda: (sweeps.append(1), sweep())
        lost = flood(shop, 5000)
        assert len(lost) > 3000
        print(f"{len(lost)} drops, {len(sweeps)} sweeps of the listener")
        assert len(sweeps) < 30
        shop.do("ALTER TABLE logsluice.gone RENAME TO logs")
        shop.route.breaker.open_until = 0
        assert shop.flush()
        shop.check(lost=len(lost))
