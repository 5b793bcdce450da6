"""What takes longer than a test should: many late COMMITs, many cuts, storms of bad rows beside a clean run."""

from __future__ import annotations

import random
import threading

import psycopg

from support.commits import late_commits, lose_commits
from support.faults import storm, storm_tables
from support.processes import until
from support.proxy import Proxy
from support.shop import LIMIT, Shop

ROWS = 50_000


def test_twenty_commits_that_arrive_late(own_server):
    with Shop(own_server.dsn(), io_timeout=10) as shop:
        late_commits(shop, 20)
        shop.check()
        print(f"20 late COMMITs, {shop.known} found by the watermark, 0 rows twice")
        assert shop.known >= 20


def test_two_hundred_lost_answers_to_commit(dsn):
    with Proxy(dsn) as proxy, Shop(proxy.dsn, read=dsn) as shop:
        shop.watch()
        shop.log()
        assert shop.flush()
        cuts = lose_commits(shop, proxy, 200)
        shop.check()
        print(f"{cuts} COMMIT answers lost, {shop.known} found by the watermark")
        assert cuts == 200
        assert shop.known >= 150


def test_three_hundred_cuts_at_random_bytes(dsn):
    rng = random.Random(17)
    with Proxy(dsn) as proxy, Shop(proxy.dsn, read=dsn) as shop:
        shop.log()
        assert shop.flush()
        while proxy.cuts < 300:
            proxy.cut_at(rng.randrange(30_000))
            shop.log(150)
            assert shop.flush()
        _, dead = shop.check()
        assert not dead
        print(f"{proxy.cuts} cuts, {len(shop.given)} records, {shop.stats.retries} retries")


def test_a_server_that_comes_and_goes(dsn):
    """Every half second: each time something is stored, and everything when it stays."""
    with Proxy(dsn) as proxy, Shop(proxy.dsn, read=dsn) as shop:
        stop, progress = threading.Event(), []

        def flap():
            while not stop.wait(0.5):
                proxy.refuse()
                proxy.cut()
                stop.wait(0.5)
                before = shop.stats.stored
                proxy.heal()
                until(lambda: shop.stats.stored > before, LIMIT)  # on a busy machine it stays longer
                progress.append(shop.stats.stored - before)

        flapping = threading.Thread(target=flap)
        flapping.start()
        while len(progress) < 15 and all(progress):
            shop.log(200)
            stop.wait(0.1)
        stop.set()
        flapping.join(LIMIT)
        proxy.heal()
        assert shop.flush()
        shop.check()
        print(f"{proxy.cuts} cuts, {proxy.connections} connections, {len(shop.given)} records")
        assert proxy.cuts > 5
        assert min(progress) > 0


def test_a_tenth_of_50_000_rows_name_one_of_40_unknown_users(dsn):
    storm_tables(dsn)
    clean, _ = storm(dsn, ROWS, user=lambda n: 1 + n % 1000)
    with psycopg.connect(dsn, autocommit=True) as conn:
        conn.execute("TRUNCATE public.acts")
    bad, shop = storm(dsn, ROWS, user=lambda n: 2000 + n // 10 % 40 if n % 10 == 0 else 1 + n % 1000)
    worst = max(shop.attempts_a_batch())
    print(
        f"clean {clean:,.0f} rows/s; 10 % bad {bad:,.0f} rows/s ({bad / clean:.0%}); at most {worst} attempts a batch"
    )
    assert worst <= 32


def test_a_hundredth_of_rows_are_bad_each_in_its_own_way(dsn):
    """No key is shared: each bad row costs an attempt, and the batches get short, but no attempt is without progress."""
    rows = 10_000
    storm_tables(dsn)
    bad, shop = storm(dsn, rows, user=lambda n: 10_000 + n if n % 100 == 0 else 1 + n % 1000)
    worst = max(shop.attempts_a_batch())
    print(f"1 % bad, all different: {bad:,.0f} rows/s, at most {worst} attempts a batch, {len(shop.writes)} in all")
    assert worst <= 32
    assert len(shop.writes) < 3 * rows / 100
