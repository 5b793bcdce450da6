"""Records from logging calls to rows: in order, whole, once; several routes over one connection; idle; what is sent."""

from __future__ import annotations

import logging
import queue
import threading
import time

import psycopg
import pytest

from logsluice.buffer import Buffer
from logsluice.capture import Rules
from logsluice.columns import target_from
from logsluice.config import PostgresSettings, settings_from
from logsluice.diagnostics import Diagnostics
from logsluice.intake import Intake
from logsluice.listener import Listener
from logsluice.redaction import Redactor
from logsluice.routes import Route
from logsluice.sinks.link import LimitedConnection, Link
from logsluice.sinks.postgres import PostgresSink
from support.processes import until
from support.proxy import Proxy
from support.shop import LIMIT, QUICK, Shop, message


def test_eight_threads_are_stored_whole_and_each_in_its_order(dsn):
    with Shop(dsn) as shop:
        lock, each, sent = threading.Lock(), 1000, []
        shop.watch()
        write = shop.route.sink.write
        shop.route.sink.write = lambda batch, counts: (sent.append(batch.data), write(batch, counts))[1]

        def work():
            for _ in range(each):
                with lock:
                    tid = len(shop.given)
                    shop.given.append(tid)
                shop.logger.info(message(tid))

        threads = [threading.Thread(target=work, name=f"worker-{n}") for n in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(LIMIT)
        assert shop.flush()
        stored, dead = shop.check()
        assert (len(stored), dead) == (8 * each, [])
        assert shop.query("SELECT thread, count(*) FROM logsluice.logs GROUP BY 1 ORDER BY 1") == [
            (f"worker-{n}", each) for n in range(8)
        ]
        lines = b"".join(sent).splitlines()
        for n in range(8):
            mine = [int(line.split(b"tid=")[1].split()[0]) for line in lines if b"\tworker-%d\t" % n in line]
            assert mine == sorted(mine)
            assert len(mine) == each


def test_stats_are_one_consistent_snapshot_while_threads_log(dsn):
    with Shop(dsn) as shop:
        stop, tries = threading.Event(), []

        def work():
            while not stop.is_set():
                shop.logger.info("x")
                stop.wait(0.001)  # seconds: else they only fill the buffer

        threads = [threading.Thread(target=work) for _ in range(8)]
        shop.logger.info("x")
        for thread in threads:
            thread.start()
        last = shop.stats
        end = time.monotonic() + LIMIT
        while (len(tries) < 100 or len(set(tries)) <= 3) and time.monotonic() < end:
            stats = shop.stats
            assert stats.offered == stats.accepted + stats.dropped
            assert stats.accepted == stats.stored + stats.dead + stats.abandoned + stats.waiting
            assert stats.waiting >= 0
            assert stats.offered >= last.offered
            assert stats.stored >= last.stored
            last = stats
            tries.append(stats.stored)
        stop.set()
        for thread in threads:
            thread.join(LIMIT)
        assert shop.flush()
        stats = shop.stats
        assert stats.offered == stats.stored
        assert shop.query("SELECT count(*) FROM logsluice.logs") == [(stats.stored,)]
        assert len(set(tries)) > 3  # batches were stored meanwhile


@pytest.mark.parametrize("batch", [{"batch_size": 1}, {"batch_size": 7}, {"batch_bytes": 1024}, {}])
def test_batches_of_any_size(dsn, batch):
    with Shop(dsn, linger=0.1, **batch) as shop:
        shop.watch()
        shop.log(60)
        shop.log(1, level=logging.DEBUG, payload="x" * 100_000)  # one frame larger than some batches
        shop.log(60)
        assert shop.flush()
        shop.check()
        sizes = [rows for rows, _, _ in shop.writes]
        assert max(sizes) <= batch.get("batch_size", 10**9)
        assert len(sizes) >= {1: 121, 7: 18}.get(batch.get("batch_size"), 1)
        assert sum(sizes) == 121


def test_records_of_every_size_roll_through_segments(dsn):
    with Shop(dsn, linger=0.05) as shop:
        for n in range(60):
            shop.log(20, payload="x" * (n * 997))  # 36 MB in all: every segment size is passed
        assert shop.flush()
        shop.check()
        lengths = shop.query("SELECT sum(length(attributes->>'payload')) FROM logsluice.logs")
        assert lengths == [(sum(20 * n * 997 for n in range(60)),)]


def test_a_batch_takes_four_round_trips(dsn):
    """The lock of the watermark, the beginning of COPY, its data, the end of the transaction."""
    with Proxy(dsn) as proxy, Shop(proxy.dsn, read=dsn, linger=LIMIT) as shop:  # sent when `flush` says so
        shop.log()
        assert shop.flush()
        for count in (1, 500):
            turns, batches = proxy.turns, shop.stats.batches
            shop.log(count)
            assert shop.flush()
            assert (proxy.turns - turns, shop.stats.batches - batches) == (4, 1)
        shop.check()


def test_an_idle_connection_is_closed_and_opened_again(dsn):
    with Shop(dsn, idle_close=1) as shop:  # seconds: ten times what the first look takes
        sessions = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND application_name LIKE 'logsluice%'"
        shop.watch()
        shop.log()
        assert shop.flush()
        assert shop.query(sessions) == [(1,)]
        assert until(lambda: shop.query(sessions) == [(0,)], LIMIT)
        shop.log()
        assert shop.flush()
        shop.check()
        assert shop.connection_attempts == 2


def test_nothing_is_left_in_the_session_and_nothing_is_prepared(dsn):
    """It must run through a pooler in transaction mode: another client may get the session after each COMMIT."""
    with Shop(dsn, synchronous_commit="off") as shop:
        shop.watch()
        shop.log(10)
        shop.handler.handle(aged(shop, days=-40))  # a partition is made on the way
        assert shop.flush()
        shop.check()
        conn, mine = shop.route.sink.link.conn, []
        assert shop.listener.tokens.empty()
        # The listener sleeps: the connection is ours for a moment.
        names = ("lock_timeout", "statement_timeout", "idle_in_transaction_session_timeout", "datestyle", "timezone",
                 "synchronous_commit", "search_path")  # fmt: skip
        mine = [conn.execute(f"SHOW {name}").fetchone()[0] for name in names]
        with psycopg.connect(dsn) as fresh:
            assert mine == [fresh.execute(f"SHOW {name}").fetchone()[0] for name in names]
        assert conn.execute("SELECT count(*) FROM pg_prepared_statements").fetchone() == (0,)
        held = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid()"
        assert conn.execute(held).fetchone() == (0,)
        assert conn.info.transaction_status == psycopg.pq.TransactionStatus.IDLE


def aged(shop, days):
    tid = len(shop.given)
    shop.given.append(tid)
    record = logging.LogRecord("shop", logging.INFO, __file__, 1, message(tid), None, None)
    record.created = time.time() + days * 86_400
    return record


def test_the_stream_row_says_who_and_how_far(dsn):
    with Shop(dsn, service="checkout", environment="test", service_version="1.2") as shop:
        shop.log(7)
        assert shop.flush()
        shop.check()
        (row,) = shop.query(
            "SELECT position, stored, offered, dropped, service, environment, version, pid > 0 FROM logsluice.stream"
        )
        assert row == (shop.route.buffer.settled, 7, 7, 0, "checkout", "test", "1.2", True)
        names = shop.query("SELECT application_name FROM pg_stat_activity WHERE application_name LIKE 'logsluice%'")
        assert ("logsluice/checkout",) in names


def test_the_listeners_limit_ends_a_wait_and_keeps_no_connection(dsn):
    with LimitedConnection.connect(dsn, autocommit=True) as conn:
        conn.limit = 0.3
        began = time.monotonic()
        with pytest.raises(psycopg.OperationalError, match=r"did not answer within 0\.3 s"):
            conn.execute("SELECT pg_sleep(30)")
        took = time.monotonic() - began
        assert 0.25 < took < 5
        assert conn.closed


def test_the_deadline_of_shutdown_ends_a_wait_earlier(dsn):
    with LimitedConnection.connect(dsn, autocommit=True) as conn:
        end = time.monotonic() + 0.2
        conn.limit, conn.deadline = 60, lambda: end
        with pytest.raises(psycopg.OperationalError):
            conn.execute("SELECT pg_sleep(30)")
        assert time.monotonic() - end < 5


# --- two routes over one connection ------------------------------------------------------------------------------------


class TwoRoutes:
    """Built as `base._make` does, for two tables."""

    def __init__(self, dsn):
        self.settings = settings_from({**QUICK, "dsn": dsn}, PostgresSettings)
        tokens = queue.SimpleQueue()
        self.diagnostics = Diagnostics("test")
        self.listener = Listener(tokens, self.settings, self.diagnostics)
        self.link = Link(self.settings, self.diagnostics, self.listener.deadline)
        columns = {"id": "extra.tid", "text": "message"}
        targets = {
            "logs": target_from("logsluice", "logs", None),
            "orders": target_from("logsluice", "public.orders", columns),
        }
        for stream, (name, target) in enumerate(targets.items(), 1):
            buffer = Buffer(stream=stream, capacity_bytes=self.settings.capacity_bytes // 2, wake=self.listener.hurry)
            rules = Rules(self.settings.limits, 1024, Redactor(None), None, lambda: None, time.time)
            intake = Intake(tokens, buffer, target, self.settings, rules)
            sink = PostgresSink(self.link, target, stream)
            self.listener.add(
                Route(
                    name,
                    buffer,
                    intake,
                    target,
                    sink,
                    self.listener.new_breaker(),
                    self.settings.batch_bytes,
                    storing_since=time.monotonic(),
                )
            )
        self.listener.start()

    def log(self, route, tid):
        record = logging.LogRecord("shop", logging.INFO, __file__, 1, message(tid), None, None)
        record.tid = tid
        intake = self.listener.routes[route].intake
        intake.enqueue(intake.prepare(record), record.levelno)

    def settled(self, route):
        one = self.listener.routes[route]
        return until(lambda: not one.waits, LIMIT)

    def close(self):
        self.listener.finish(time.monotonic() + LIMIT)
        assert self.listener.done.wait(LIMIT)


def test_a_route_whose_table_is_missing_does_not_stop_the_other(dsn):
    with Proxy(dsn) as proxy, psycopg.connect(dsn, autocommit=True) as conn:
        both = TwoRoutes(proxy.dsn)
        for tid in range(100):
            both.log(0, tid)
            both.log(1, tid)
        assert both.settled(0)
        blocked = both.listener.ledger.recent_failed
        assert until(lambda: len(blocked) >= 3, LIMIT)
        assert {f["route"] for f in blocked} == {"orders"}
        both.log(0, 100)
        assert both.settled(0)
        assert both.listener.routes[1].buffer.rows_waiting() == 100
        conn.execute("CREATE TABLE public.orders (id int CHECK (id <> 150), text text)")
        assert both.settled(1)
        # A lost answer to COMMIT: each stream looks at its own watermark.
        for tid in range(101, 200):
            both.log(tid % 2, tid)
        proxy.cut()
        assert both.settled(0)
        assert both.settled(1)
        both.close()
        logs = conn.execute(
            "SELECT substring(message from 'tid=(\\d+)')::int FROM logsluice.logs ORDER BY 1"
        ).fetchall()
        assert [tid for (tid,) in logs] == [*range(101), *range(102, 200, 2)]
        orders = conn.execute("SELECT id FROM public.orders ORDER BY 1").fetchall()
        assert [tid for (tid,) in orders] == [*range(100), *range(101, 200, 2)]
        streams = conn.execute("SELECT stream, position, stored, dead FROM logsluice.stream ORDER BY 1").fetchall()
        assert streams == [
            (n + 1, r.buffer.settled, len((logs, orders)[n]), 0) for n, r in enumerate(both.listener.routes)
        ]
        assert proxy.cuts >= 1


def test_a_dead_letter_says_which_table_it_was_meant_for(dsn):
    with psycopg.connect(dsn, autocommit=True) as conn:
        conn.execute("CREATE TABLE public.orders (id int CHECK (id <> 5), text text)")
        both = TwoRoutes(dsn)
        for tid in range(10):
            both.log(0, tid)
            both.log(1, tid)
        assert both.settled(0)
        assert both.settled(1)
        both.close()
        assert conn.execute("SELECT count(*) FROM logsluice.logs").fetchone() == (10,)
        assert conn.execute("SELECT count(*) FROM public.orders").fetchone() == (9,)
        letters = conn.execute("SELECT stream, target, columns FROM logsluice.dead_letter").fetchall()
        assert letters == [(2, '"public"."orders"', ["id", "text"])]
