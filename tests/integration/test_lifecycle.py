"""Beginning, end and what lies between: threads that do not start, processes that end, calls that fail half way."""

from __future__ import annotations

import logging
import threading

import pytest

from logsluice import lifecycle
from logsluice.buffer import Batch
from logsluice.handlers import PostgresHandler
from logsluice.isolation import set_aside
from logsluice.listener import Listener
from logsluice.sinks import Counts, SinkError
from support.processes import run_program, until
from support.shop import LIMIT, Shop, message


def test_a_record_of_another_process_with_the_listeners_thread_number_is_stored(dsn):
    """The cookbook's QueueListener hands in records of forked workers, whose thread may carry the same number."""
    with Shop(dsn) as shop:
        shop.log()
        assert shop.flush()
        own = next(iter(lifecycle.OWN_THREADS & {shop.listener.thread_id}))
        record = logging.LogRecord("worker", logging.INFO, "", 1, message(1), None, None)
        record.thread = own
        shop.given.append(1)
        assert shop.handler.handle(record)
        assert shop.flush()
        shop.check()


def test_exit_within_a_back_off_tries_once_more(own_server, monkeypatch):
    """The server is back, the next attempt is minutes away: the flush of logging.shutdown must not wait for it."""
    dsn = own_server.dsn()
    own_server.kill()
    with Shop(dsn, backoff_initial=600, backoff_max=600) as shop:
        shop.log(3)
        shop.await_failure()
        monkeypatch.setattr(shop.listener.breaker, "open_until", shop.listener.breaker.open_until + 600)
        own_server.start()
        assert not shop.handler.flush(0.05)  # the back-off is in force
        monkeypatch.setattr(lifecycle, "_exiting", True)
        monkeypatch.setattr(lifecycle, "_exit_deadline", None)
        assert shop.handler.flush()
        shop.check()


def test_closed_while_the_pair_is_made_takes_nothing_in(dsn, monkeypatch):
    """close() between making the buffers and showing them: what is logged then is counted, not accepted for ever."""
    handler = PostgresHandler(dsn=dsn)
    make = handler._make

    def made(**options):
        pair = make(**options)
        handler.close()
        return pair

    monkeypatch.setattr(handler, "_make", made)
    handler.handle(logging.LogRecord("a", logging.INFO, "", 1, "x", None, None))
    stats = handler.stats()
    assert (1, {("closed", logging.INFO): 1}, 0) == (stats.offered, stats.dropped_by, stats.waiting)


def test_a_thread_that_did_not_start_is_started_later(dsn, monkeypatch):
    start, calls = Listener.start, []

    def failing(listener):
        calls.append(1)
        if len(calls) == 1:
            raise RuntimeError("can't start new thread")
        start(listener)

    monkeypatch.setattr(Listener, "start", failing)
    with Shop(dsn) as shop:
        shop.log(3)
        assert not shop.listener.started
        assert shop.flush()
        assert len(calls) >= 2
        shop.check()


def test_a_dsn_callable_that_exits_does_not_end_the_delivery(dsn):
    """sys.exit in a helper that fetches secrets is a SystemExit in the listener's thread."""
    answers = iter([SystemExit(1), KeyboardInterrupt()])

    def ask():
        for error in answers:
            raise error
        return dsn

    shop = Shop(ask, read=dsn)
    with shop:
        shop.log(3)
        assert shop.flush()
        assert shop.stats.retries == 2
        shop.check()


def test_drops_before_the_end_are_told_in_the_log(dsn):
    """The row about drops is still written when the handler is closed while it drains."""
    shop = Shop(dsn, capacity=50, linger=30)
    held = threading.Event()
    shop.watch()
    opened = shop.route.sink.open
    shop.route.sink.open = lambda: (held.wait(LIMIT), opened())
    for _ in range(200):
        shop.log()
    closing = threading.Thread(target=shop.handler.close)
    closing.start()
    assert until(lambda: shop.route.buffer.closed)
    held.set()
    closing.join()
    stats = shop.stats
    assert stats.dropped > 0
    told = shop.query("SELECT (attributes->>'dropped')::int FROM logsluice.logs WHERE logger = 'logsluice'")
    assert stats.dropped == sum(row[0] for row in told)
    assert stats.waiting == 0


def test_logging_in_a_recursion_keeps_the_law(dsn):
    """A RecursionError may strike anywhere in a logging call: each record is stored or counted, none waits for ever."""
    with Shop(dsn) as shop:

        def deeper():
            shop.log()
            deeper()

        for _ in range(5):
            with pytest.raises(RecursionError):
                deeper()
        assert shop.flush()
        stats = shop.stats
        assert stats.offered == stats.accepted + stats.dropped
        assert stats.accepted == stats.stored + stats.dead + stats.abandoned + stats.waiting
        assert 0 <= stats.waiting <= 5  # at most the call that was left by each RecursionError
        assert len(set(shop.stored())) == len(shop.stored()) == stats.stored


def test_waiters_that_gave_up_are_forgotten(own_server):
    """In an outage every flush and every blocked call leaves after its time; nothing of them may stay."""
    dsn = own_server.dsn()
    own_server.kill()
    shop = Shop(dsn, when_full="block", block_timeout=0.001, capacity=10, shutdown_timeout=0.1)
    for _ in range(50):
        shop.log()
        assert not shop.flush(0)
    assert shop.stats.dropped > 30
    assert len(shop.listener._waiters) <= 1
    assert len(shop.route.buffer._waiting_writers) <= 1
    shop.handler.close()


def test_a_bad_row_behind_an_earlier_commit_is_the_one_that_is_blamed(dsn):
    """The server counts the rows that were sent: those that an earlier COMMIT stored are not among them."""
    with Shop(dsn, linger=30) as shop:
        shop.watch()
        sink = shop.route.sink
        for _ in range(10):
            shop.log()
        whole = shop.route.buffer.take(1 << 20)
        rows = list(whole.lines())
        bad = rows[7][1].split(b"\t")
        bad[3] = b"no level"
        frames = [line for _, line in rows]
        frames[7] = b"\t".join(bad)
        batch = Batch(whole.start, b"".join(frames))
        length = sum(map(len, frames[:5]))
        sink.write(batch.head(length), Counts(10, 0))  # the COMMIT whose answer was lost
        with pytest.raises(SinkError) as error:
            sink.write(batch, Counts(10, 0))
        assert error.value.failure.line == 3
        set_aside(shop.route, batch, error.value.failure)
        assert [batch.start + sum(map(len, frames[:7]))] == list(batch.aside)
        outcome = sink.write(batch, Counts(10, 0))
        assert (9, 1) == (outcome.stored, outcome.dead)
        assert shop.query("SELECT count(*) FROM logsluice.logs") == [(9,)]
        assert shop.query("SELECT count(*) FROM logsluice.dead_letter") == [(1,)]
        sink.close()
        shop.route.buffer.settle(whole)


SIGNALLED = """
import logging, os, signal, threading
from logsluice import PostgresHandler
handler = PostgresHandler(dsn=os.environ["DSN"], journal=os.environ["JOURNAL"])
log = logging.getLogger("shop")
log.addHandler(handler)
for n in range(10):
    log.warning("order %s", n)
assert handler.flush(30)
seen = []
signal.signal(signal.SIGUSR2, lambda *_: seen.append(threading.get_ident()))
signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR2})
os.kill(os.getpid(), signal.SIGUSR2)
names = [thread.name for thread in threading.enumerate()]
print(len(names) > 1, signal.SIGUSR2 in signal.sigpending(), len(seen))
signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGUSR2})
print(seen == [threading.get_ident()])
"""


def test_a_signal_waits_for_the_main_thread_and_goes_to_none_of_ours(dsn, tmp_path):
    """One that a thread of ours answered to would not wake a main thread that waits in a C call."""
    ran = run_program(SIGNALLED, env={"DSN": dsn, "JOURNAL": str(tmp_path / "journal")}, timeout=LIMIT)
    assert ran.stdout.splitlines() == ["True True 0", "True"], ran.stderr
