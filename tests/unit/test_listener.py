"""
The loop, with sinks that do what a test wants: two routes at once, when it wakes and when it does not, what it says, what
it makes of a rejection. PostgreSQL's side is tests/integration.
"""

import logging
import queue
import threading
import time
from collections import deque
from functools import partialmethod

import pytest

from logsluice import lifecycle, notices
from logsluice import listener as module
from logsluice.buffer import Batch, Buffer
from logsluice.capture import Rules
from logsluice.columns import target_from
from logsluice.config import PostgresSettings, settings_from
from logsluice.contrib import JobLog
from logsluice.delivery import ATTEMPTS, STORM, Failure
from logsluice.diagnostics import Diagnostics
from logsluice.figures import stats_of
from logsluice.handlers import PostgresHandler
from logsluice.intake import Intake
from logsluice.isolation import named_rows
from logsluice.listener import Listener
from logsluice.redaction import Redactor
from logsluice.routes import Route
from logsluice.sinks import Outcome, SinkError
from support.buffers import at_every_line
from support.processes import until

LIMIT = 20  # seconds: a net below what takes milliseconds


class FakeSink:
    """It keeps what it is given; `fails(batch)` returns a Failure or None, before anything is kept."""

    def __init__(self, name, journal):
        self.name, self.journal = name, journal
        self.frames, self.dead, self.batches = [], [], []
        self.attempts, self.tries = [], 0  # writes until one succeeded, for each that did
        self.fails = self.opens = lambda *_: None
        self.stop, self.go = threading.Event(), threading.Event()
        self.connected = self.closed = False
        self.connections = 0
        self.idled = []
        self.go.set()

    def open(self):
        failure = self.opens()
        if failure:
            raise SinkError(failure)
        self.connections += not self.connected
        self.connected = True

    def write(self, batch, counts):
        self.journal.append(self.name)
        self.stop.set()
        assert self.go.wait(LIMIT)
        self.batches.append(batch)
        self.tries += 1
        failure = self.fails(batch)
        if failure:
            raise SinkError(failure)
        self.attempts.append(self.tries)
        self.tries = 0
        self.frames += [line for at, line in batch.lines() if at not in batch.aside]
        self.dead += [line for at, line in batch.lines() if at in batch.aside]
        return Outcome(batch.rows - len(batch.aside), len(batch.aside))

    def accepts_any(self, rows):
        return any(not self.fails(Batch(0, row)) for row in rows)

    def idle(self, seconds):
        self.idled.append(seconds)
        self.connected = False

    def close(self):
        self.closed = True


class Bench:
    """A listener with routes of fake sinks."""

    def __init__(self, *names, columns=None, **options):
        self.settings = settings_from(
            {"linger": 0.005, "backoff_initial": 0.005, "backoff_max": 0.02, "slow_batch": 60, **options},
            PostgresSettings,
        )
        tokens = queue.SimpleQueue()
        self.lines = []
        diagnostics = Diagnostics("test")
        diagnostics._write = self.lines.append
        self.listener = Listener(tokens, self.settings, diagnostics)
        self.journal = []
        for name in names or ("logs",):
            target = target_from("logsluice", name, columns or (None if name == "logs" else {"id": "extra.id"}))
            buffer = Buffer(
                stream=len(self.listener.routes) + 1,
                capacity_bytes=self.settings.capacity_bytes,
                capacity=self.settings.capacity,
                keep_level=self.settings.keep_level,
                when_full=self.settings.when_full,
                block_timeout=self.settings.block_timeout,
                wake=self.listener.hurry,
            )
            rules = Rules(self.settings.limits, 1024, Redactor(None), None, lambda: None, time.time)
            intake = Intake(tokens, buffer, target, self.settings, rules)
            sink = FakeSink(name, self.journal)
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
        self.route = self.listener.routes[0]
        self.sink = self.route.sink

    def __enter__(self):
        self.listener.start()
        return self

    def __exit__(self, *exc_info):
        for route in self.listener.routes:
            route.sink.go.set()
        self.listener.finish(time.monotonic() + (0.1 if exc_info[0] else LIMIT))
        assert self.listener.done.wait(LIMIT)

    def put(self, text, route=0, level=logging.INFO):
        route = self.listener.routes[route]
        route.buffer.next_seq()
        route.intake.enqueue(b"%s\n" % text.encode(), level)

    def settled(self):
        return until(lambda: not any(route.waits for route in self.listener.routes), LIMIT)

    def said(self, text):
        return [line for line in self.lines if text in line]


def ids(frames):
    return [frame[:-1].decode() for frame in frames]


def test_a_flush_that_gives_up_while_it_is_told_is_no_error():
    """The listener counted one that waits, and found none: at the end the number of those that are lost was not said."""

    def gave_up():
        raise AssertionError

    bench = Bench("logs")
    bench.put("a")

    class GivingUp(deque):
        def __len__(self):
            self.clear()  # as `forget` does, on its own thread
            return 1

    assert not bench.listener.when_settled(gave_up)
    bench.listener._waiters = GivingUp(bench.listener._waiters)
    bench.listener.drain_here()
    assert bench.said("1 records were not stored")
    assert bench.listener.ledger.totals.abandoned == (("exit", 1),)


def test_two_handlers_that_close_at_once_are_both_waited_for_at_exit(monkeypatch):
    """Each made the list anew of what it had read, and one was forgotten: at exit its records were lost unsaid."""
    over, first, second = (Bench("logs").listener for _ in range(3))
    over.done.set()
    others = [second]

    class Overtaken(list):
        def changed(self, way, *given):
            if others:
                lifecycle.drain_later(others.pop())  # another thread's
            return getattr(list, way)(self, *given)

        __setitem__ = partialmethod(changed, "__setitem__")
        append = partialmethod(changed, "append")
        remove = partialmethod(changed, "remove")

    monkeypatch.setattr(lifecycle, "_draining", Overtaken([over]))
    lifecycle.drain_later(first)
    assert set(lifecycle._draining) == {first, second}


def test_a_snapshot_has_seen_offered_what_it_has_seen_go():
    """A record that is handed to the fallback while the figures are read: `waiting` was one below nothing."""
    bench = Bench("logs")
    buffer, real = bench.route.own, bench.route.own.offered

    def offered():
        number = real()
        buffer.next_seq()
        buffer.handed.add()
        return number

    buffer.offered = offered
    assert stats_of(PostgresHandler(dsn=""), [bench.listener]).waiting == 0
    buffer.offered = real
    assert stats_of(PostgresHandler(dsn=""), [bench.listener]).abandoned_by == {"fallback": 1}


def test_two_first_handlers_at_once_register_one_pair_of_hooks(monkeypatch):
    """With two a fork waited for the locks that it held itself, and never let go of them: nothing was sent any more."""
    hooks = []
    monkeypatch.setattr(lifecycle, "_handlers", set())
    monkeypatch.setattr(lifecycle, "_registered", type(lifecycle._registered)())
    monkeypatch.setattr(lifecycle.os, "register_at_fork", lambda **given: hooks.append(given))
    monkeypatch.setattr(lifecycle.atexit, "register", lambda _call: None)
    for line in range(4):
        lifecycle._registered = type(lifecycle._registered)()
        hooks.clear()
        with at_every_line(lambda _line: lifecycle.register("another thread's"), only=line, also={"register"}):
            lifecycle.register("ours")
        assert len(hooks) == 1


def test_a_ctrl_c_while_a_fork_waits_keeps_no_listener_from_its_connection(monkeypatch):
    """Those that it held already were forgotten: nothing was sent any more."""

    class Interrupted:
        def acquire(self, timeout):
            raise KeyboardInterrupt

    held = threading.Lock()
    monkeypatch.setattr(lifecycle, "_gates", [held, Interrupted()])
    with pytest.raises(KeyboardInterrupt):
        lifecycle._before_fork()
    assert held.locked()
    lifecycle._in_parent()  # Python forks all the same
    assert not held.locked()


@pytest.mark.parametrize("what", ["flush", "close"])
def test_a_child_that_no_hook_renewed_leaves_its_parents_records_alone(monkeypatch, what):
    """It waited for a thread that it does not have, for all of `shutdown_timeout`, and said that records were lost."""
    handler = PostgresHandler(dsn="host=/nowhere", shutdown_timeout=0.1)
    monkeypatch.setattr(handler, "_start", lambda _listener: None)
    handler.handle(logging.makeLogRecord({"msg": "the parent's"}))
    assert not handler.flush(0)
    monkeypatch.setattr(handler, "_pid", 0)  # as in a child
    monkeypatch.setattr(lifecycle, "forked", handler.renew)
    assert getattr(handler, what)() in {True, None}
    assert handler._pair is None


def test_a_ctrl_c_in_the_first_record_of_a_typed_log_keeps_no_room(monkeypatch):
    """What it had claimed for its first segment was nobody's, for as long as the handler lived."""
    handler = PostgresHandler(dsn="host=/nowhere", shutdown_timeout=0.1)
    monkeypatch.setattr(handler, "_start", lambda _listener: None)
    handler.handle(logging.makeLogRecord({"msg": "first"}))
    family = handler._pair[1].family
    begin = family.begin

    def interrupted(newcomer):
        begin(newcomer)
        raise KeyboardInterrupt

    monkeypatch.setattr(family, "begin", interrupted)
    with pytest.raises(KeyboardInterrupt):
        handler.handle(logging.makeLogRecord({"msg": JobLog(log_type="system", message="typed")}))
    assert not family._claims


# --- two routes -----------------------------------------------------------------------------------------------------


def test_a_route_whose_table_is_missing_does_not_stop_the_other():
    with Bench("logs", "orders") as bench:
        orders = bench.listener.routes[1].sink
        orders.fails = lambda _batch: Failure("no such table", "42P01")
        for n in range(100):
            bench.put(f"log {n}", 0)
            bench.put(f"order {n}", 1)
        assert until(lambda: len(bench.sink.frames) == 100, LIMIT)
        assert until(lambda: len(orders.batches) > 3, LIMIT)
        assert not orders.frames
        bench.put("log 100", 0)
        assert until(lambda: len(bench.sink.frames) == 101, LIMIT)
        assert bench.listener.routes[1].buffer.rows_waiting() == 100
        orders.fails = lambda _batch: None
        assert bench.settled()
        assert ids(orders.frames) == [f"order {n}" for n in range(100)]
        assert ids(bench.sink.frames) == [f"log {n}" for n in range(101)]


def test_the_route_that_waits_longest_is_served_first():
    with Bench("logs", "orders", "spans") as bench:
        bench.sink.go.clear()
        bench.put("first", 0)
        assert bench.sink.stop.wait(LIMIT)  # the listener is busy with it
        bench.sink.fails = lambda _batch: Failure("away")  # and it stays the oldest, but its breaker is open
        bench.listener.routes[0].breaker.backoff.initial = bench.listener.routes[0].breaker.backoff.most = LIMIT
        bench.put("second", 2)
        bench.listener.routes[2].look(time.monotonic() - 2)
        bench.put("third", 1)
        bench.listener.routes[1].look(time.monotonic() - 1)
        bench.sink.go.set()
        assert until(lambda: len(bench.journal) >= 3, LIMIT)
        assert bench.journal[:3] == ["logs", "spans", "orders"]
        bench.sink.fails = lambda _batch: None


def test_a_connection_that_fails_is_one_connection_for_all_routes():
    with Bench("logs", "orders") as bench:
        attempts = []

        def refused():
            attempts.append(1)
            return Failure("refused", None, connecting=True)

        for route in bench.listener.routes:
            route.sink.opens = refused
        bench.put("a", 0)
        bench.put("b", 1)
        assert until(lambda: len(attempts) >= 5, LIMIT)
        assert bench.listener.breaker.failing_since is not None
        assert all(route.breaker.failing_since is None for route in bench.listener.routes)
        for route in bench.listener.routes:
            route.sink.opens = lambda: None
        assert bench.settled()
        assert bench.listener.breaker.failing_since is None


def test_a_failure_that_passed_waits_for_the_back_off_and_not_for_linger():
    """Else a flush after one failed attempt would last as long as `linger`."""
    with Bench(linger=60 * LIMIT, flush_level=logging.INFO) as bench:
        failures = [Failure("away"), Failure("away")]
        bench.sink.fails = lambda _batch: failures.pop() if failures else None
        bench.put("one")
        assert bench.settled()
        assert bench.route.ledger.totals.retries == 2


def test_each_route_has_its_own_position():
    with Bench("logs", "orders") as bench:
        for n in range(10):
            bench.put(f"{n}", 0)
        for n in range(3):
            bench.put(f"{n}", 1)
        assert bench.settled()
        assert [route.buffer.settled for route in bench.listener.routes] == [20, 6]
        assert [route.buffer.rows_settled for route in bench.listener.routes] == [10, 3]


# --- waking and sleeping --------------------------------------------------------------------------------------------


def test_an_error_does_not_linger():
    with Bench(linger=60) as bench:
        bench.put("info")
        assert not until(lambda: bench.sink.frames, 0.2)
        began = time.monotonic()
        bench.put("error", level=logging.ERROR)
        assert bench.settled()
        assert time.monotonic() - began < 10
        assert ids(bench.sink.frames) == ["info", "error"]


def test_idle_costs_no_wake_ups_and_the_first_append_after_it_is_delivered():
    with Bench(idle_close=3600) as bench:
        sweeps = []
        sweep = bench.listener._sweep
        bench.listener._sweep = lambda: (sweeps.append(1), sweep())
        for n in range(20):
            bench.put(f"{n}")
            assert bench.settled()
            assert until(lambda: bench.route.intake.wake_level < 0, LIMIT)  # it sleeps
            before, looks = len(sweeps), []
            bench.listener._hurried = lambda: looks.append(1)
            assert not until(lambda: looks, 0.02)  # four times linger
            del bench.listener._hurried
            assert len(sweeps) == before
        assert ids(bench.sink.frames) == [str(n) for n in range(20)]


def test_an_append_just_as_it_falls_asleep_is_not_overlooked():
    with Bench() as bench:
        for n in range(700):
            bench.put(f"{n}")
            if n % 7 == 0:
                bench.settled()
        assert bench.settled()
        assert ids(bench.sink.frames) == [str(n) for n in range(700)]


def test_an_idle_connection_is_closed_and_opened_again():
    with Bench(idle_close=0.1) as bench:
        bench.put("a")
        assert until(lambda: bench.sink.idled, LIMIT)
        assert not bench.sink.connected
        assert not until(lambda: len(bench.sink.idled) > 1, 0.3)  # once: there is nothing left to close
        bench.put("b")
        assert bench.settled()
        assert bench.sink.connections == 2  # and perhaps closed again by now
        assert ids(bench.sink.frames) == ["a", "b"]


def test_a_full_buffer_in_an_outage_does_not_keep_the_listener_busy():
    """Records go on being dropped; the listener sleeps until its back-off is over."""
    with Bench(capacity_bytes=2**20, max_frame_bytes=2**16, backoff_initial=60, backoff_max=60) as bench:
        bench.listener.breaker.backoff.random.uniform = bench.route.breaker.backoff.random.uniform = lambda _a, b: b
        bench.sink.fails = lambda _batch: Failure("away")
        bench.put("first")
        assert until(lambda: bench.route.breaker.failing_since, LIMIT)
        sweeps = []
        sweep = bench.listener._sweep
        bench.listener._sweep = lambda: (sweeps.append(1), sweep())
        for n in range(20_000):
            bench.put(f"{n} {'x' * 990}")
        dropped = sum(bench.route.buffer.dropped().values())
        assert dropped > 15_000
        print(f"{dropped} drops, {len(sweeps)} sweeps")
        assert len(sweeps) < 30  # one for each segment that was filled, and one for each kind of refusal
        bench.sink.fails = lambda _batch: None
    assert len(bench.sink.frames) == 20_001 - dropped + bench.listener.ledger.totals.markers


def test_the_law_at_the_end_with_calls_that_are_late():
    """Threads go on logging while the handler is closed: each record is stored, abandoned or dropped, and counted."""
    for _ in range(6):
        bench = Bench()
        stop = threading.Event()
        tried = []

        def work(bench=bench, stop=stop, tried=tried):
            n = 0
            while not stop.is_set():
                bench.put(f"{n}")
                n += 1
            tried.append(n)

        with bench:
            threads = [threading.Thread(target=work) for _ in range(3)]
            for thread in threads:
                thread.start()
            assert until(lambda: bench.sink.frames, LIMIT)
            bench.route.buffer.close()
            bench.listener.finish(time.monotonic() + LIMIT)
            assert bench.listener.done.wait(LIMIT)
            stop.set()
            for thread in threads:
                thread.join(LIMIT)
        buffer, totals = bench.route.buffer, bench.listener.ledger.totals
        assert buffer.offered() == sum(tried)
        assert totals.stored == len(bench.sink.frames)
        assert buffer.offered() == totals.stored + sum(dict(totals.abandoned).values()) + sum(buffer.dropped().values())
        assert buffer.rows_waiting() == 0
        assert bench.sink.closed
        assert threading.get_ident() not in lifecycle.OWN_THREADS


def test_an_append_that_was_decided_before_the_end_is_counted():
    """A call holds the old append while the listener abandons what is left: taken and counted, or refused."""
    bench = Bench()
    stale = bench.route.buffer.append
    bench.put("a")
    bench.route.buffer.next_seq()
    take = bench.route.buffer.take

    def late(*args):
        batch = take(*args)
        if batch is None and stale:
            try:
                stale(b"late\n")
            except ValueError:
                bench.route.buffer.put(b"late\n", logging.INFO)
            bench.route.buffer.take = take
        return batch

    bench.route.buffer.take = late
    bench.listener._abandon(bench.route, "exit")
    totals, buffer = bench.listener.ledger.totals, bench.route.buffer
    assert buffer.offered() == 2
    assert sum(dict(totals.abandoned).values()) + sum(buffer.dropped().values()) == 2
    assert buffer.rows_waiting() == 0


# --- rejections -----------------------------------------------------------------------------------------------------


def rejecting(bad, *, names_the_line=False, key=False):
    """What PostgreSQL does: it stops at the first bad row."""

    def fails(batch):
        rows = [line for at, line in batch.lines() if at not in batch.aside]
        for number, line in enumerate(rows, 1):
            value = line[:-1].decode()
            if value in bad:
                named = (("id",), (value,)) if key else ((), ())
                return Failure("bad", "23503", line=number if names_the_line else None, key=named[0], value=named[1])
        return None

    return fails


@pytest.mark.parametrize("how", ["line", "key", "nothing"])
@pytest.mark.parametrize("bad", [[0], [999], [500], [0, 1, 2], list(range(100, 180)), list(range(0, 1000, 10))])
def test_bad_rows_are_set_aside_whatever_the_server_says_of_them(how, bad):
    bench = Bench("orders", linger=0.05)
    names = {f"{n}" for n in bad}
    bench.sink.fails = rejecting(names, names_the_line=how == "line", key=how == "key")
    for n in range(1000):
        bench.put(f"{n}")
    with bench:
        assert bench.settled()
    assert ids(bench.sink.frames) == [f"{n}" for n in range(1000) if n not in bad]
    assert ids(bench.sink.dead) == [f"{n}" for n in bad]
    assert max(bench.sink.attempts) <= ATTEMPTS


def test_rows_of_one_key_go_together():
    bench = Bench("orders", linger=0.05)
    bench.sink.fails = rejecting({"7"}, key=True)
    for n in range(1000):
        bench.put(f"{n % 10}")
    with bench:
        assert bench.settled()
    assert len(bench.sink.batches) == 2
    assert ids(bench.sink.dead) == ["7"] * 100


def test_after_two_rejections_less_is_sent_and_a_key_still_goes_in_all_that_was_taken():
    bench = Bench("orders", linger=0.05)
    bench.sink.fails = rejecting({f"{n}" for n in range(20)}, key=True)
    names = [f"{n % 200}" for n in range(2000)]
    for name in names:
        bench.put(name)
    with bench:
        assert bench.settled()
    assert ids(bench.sink.frames) == [name for name in names if int(name) >= 20]
    assert ids(bench.sink.dead) == [name for name in names if int(name) < 20]
    assert sum(batch.rows for batch in bench.sink.batches) < 6 * len(names)  # 21 times with all of them


def test_a_table_that_takes_nothing_is_blocked_and_nothing_is_lost():
    with Bench("orders") as bench:
        changed = [True]
        bench.sink.fails = lambda batch: Failure("new column", "23502", line=1) if changed[0] else None
        for n in range(500):
            bench.put(f"{n}")
        assert until(lambda: bench.said("blocked"), LIMIT)
        assert len(bench.sink.batches) <= STORM + 2
        assert not bench.sink.dead
        assert "see what was changed" in bench.said("blocked")[0]
        changed[0] = False
        assert bench.settled()
        assert ids(bench.sink.frames) == [f"{n}" for n in range(500)]


def test_only_bad_rows_wait_and_then_a_good_one_comes():
    with Bench("orders") as bench:
        bad = {f"bad {n}" for n in range(100)}
        bench.sink.fails = rejecting(bad, names_the_line=True)
        for name in sorted(bad):
            bench.put(name)
        assert until(lambda: bench.said("blocked"), LIMIT)
        assert not bench.sink.dead
        bench.put("good")
        assert bench.settled()
        assert sorted(ids(bench.sink.dead)) == sorted(bad)
        assert ids(bench.sink.frames) == ["good"]


def test_when_every_row_is_set_aside_and_it_still_fails_somebody_must_act():
    """Not the rows but dead_letter, a trigger, the watermark: no further row may be blamed, no index may run out."""
    with Bench("orders") as bench:
        broken = [True]

        def fails(batch):
            if len(batch.aside) < batch.rows:
                return Failure("bad", "23514", constraint="c", line=1)
            return Failure("not the rows", "23514", constraint="c") if broken[0] else None

        bench.sink.fails = fails
        bench.put("a")
        assert until(lambda: bench.said("blocked"), LIMIT)
        assert not bench.said("internal error")
        broken[0] = False
        assert bench.settled()


@pytest.mark.parametrize(
    ("failure", "expected"),
    [
        (Failure("x", "22P02", line=2), [1]),
        (Failure("x", "22P02", line=9), []),  # beyond the batch: not ours
        (Failure("x", "22P02", line=0), []),
        (Failure("x", "23503", key=("user",), value=("7",)), [0, 2]),
        (Failure("x", "23503", key=("user",), value=("007",)), [0, 2]),  # numbers are compared as numbers
        (Failure("x", "23503", key=("user",), value=("8",)), []),
        (Failure("x", "23503", key=("other",), value=("7",)), []),
        (Failure("x", "23503", key=("user", "name"), value=("7", "c\td")), [2]),
        (Failure("x", "23505", line=1, key=("user",), value=("7",)), [0, 2]),  # the table had it: all go
        (Failure("x", "23505", line=3, key=("user",), value=("7",)), [2]),  # it stands twice: the first is good
        (Failure("x", "23505", line=3), [2]),
        (Failure("x", "23514", line=1, key=("user",), value=("7",)), [0]),
        (Failure("x", "23503"), []),
    ],
)
def test_which_rows_an_error_names(failure, expected):
    rows = [(0, b"7\ta\n"), (1, b"9\tb\n"), (2, b"7\tc\\td\n")]
    assert named_rows(rows, failure, ("user", "name")) == expected


# --- shrinking, giving up ---------------------------------------------------------------------------------------------


def test_a_time_limit_halves_the_batch_and_success_doubles_it_again():
    bench = Bench("orders", linger=0.05)
    most = [3000]
    bench.sink.fails = lambda batch: Failure("too slow", "57014") if len(batch.data) > most[0] else None
    for n in range(1000):
        bench.put(f"{n:019d}")  # 20 bytes each
    with bench:
        assert bench.settled()
        failed = [len(b.data) for b in bench.sink.batches if len(b.data) > most[0]]
        assert failed[:3] == [20_000, 10_000, 5_000]
        assert ids(bench.sink.frames) == [f"{n:019d}" for n in range(1000)]
        most[0] = 10**9
        for n in range(20):
            bench.put(f"{n}")
            assert bench.settled()
        assert bench.route.batch_bytes == bench.settings.batch_bytes


def test_a_single_row_that_takes_too_long_is_kept_and_tried():
    with Bench("orders") as bench:
        bench.sink.fails = lambda batch: Failure("too slow", timed_out=True)
        bench.put("a")
        assert until(lambda: len(bench.sink.batches) > 5, LIMIT)
        assert not bench.sink.dead
        bench.sink.fails = lambda batch: None
        assert bench.settled()
        assert ids(bench.sink.frames) == ["a"]


@pytest.mark.parametrize("code", [None, "42P01"])
def test_retry_limit_gives_a_batch_up_and_counts_it(code):
    with Bench("orders", retry_limit=3) as bench:
        bench.sink.fails = lambda _batch: Failure("away", code)
        bench.put("a")
        bench.put("b")
        assert bench.settled()
        bench.sink.fails = lambda _batch: None
        bench.put("c")
        assert bench.settled()
        assert dict(bench.listener.ledger.totals.abandoned) == {"retry_limit": 2}
        assert ids(bench.sink.frames) == ["c"]
        assert bench.said("2 records given up after 3 retries")


def test_a_mistake_of_ours_is_said_and_delivery_goes_on():
    with Bench("orders") as bench:
        broken = [3]

        def fails(_batch):
            if broken[0]:
                broken[0] -= 1
                raise ZeroDivisionError("ours")

        bench.sink.fails = fails
        bench.put("a")
        assert bench.settled()
        assert ids(bench.sink.frames) == ["a"]
        assert bench.said("internal error, delivery goes on: ZeroDivisionError")


# --- what it says -----------------------------------------------------------------------------------------------------


def test_a_slow_batch_is_said_with_its_figures(monkeypatch):
    with Bench("orders", slow_batch=0) as bench:
        bench.put("first")  # it pays for a cold server: not said
        assert bench.settled()
        assert not bench.said("slow batch")
        bench.put("a")
        assert bench.settled()
        (line,) = until(lambda: bench.said("slow batch"), LIMIT)
        assert "slow batch: 1 records, 2 bytes, " in line
        assert " ms, verdict stored" in line
        assert "slow_batch=0" in line


def test_debug_lines_tell_every_attempt(monkeypatch):
    monkeypatch.setenv("LOGSLUICE_DEBUG", "1")
    with Bench("orders") as bench:
        failures = [Failure("away")]
        bench.sink.fails = lambda _batch: failures.pop() if failures else None
        bench.put("a")
        assert bench.settled()
        assert until(lambda: bench.said("stored 1 records, 2 bytes"), LIMIT)
        assert bench.said("attempt 1 failed: 1 records, 2 bytes")[0].endswith("verdict retry: away")


def test_nothing_stored_for_a_minute_is_said_and_when_it_is_over(monkeypatch):
    monkeypatch.setattr(notices, "STUCK", 0.2)
    monkeypatch.setattr(module, "LOOK", 0.05)
    with Bench("orders") as bench:
        bench.sink.fails = lambda _batch: Failure("connection refused")
        for n in range(7):
            bench.put(f"{n}")
        (line, *_) = until(lambda: bench.said("nothing stored for"), LIMIT)
        assert "7 records wait in 14 of 67108864 bytes: connection refused" in line
        assert "logsluice doctor" in line
        assert until(lambda: len(bench.said("nothing stored for")) >= 2, LIMIT)  # once a minute, while it lasts
        bench.sink.fails = lambda _batch: None
        assert bench.settled()
        assert until(lambda: bench.said("records are stored again after"), LIMIT)
        lines = len(bench.lines)
        bench.put("x")
        assert bench.settled()
        assert not until(lambda: len(bench.lines) > lines, 0.3)  # quiet again


def test_nothing_stored_is_said_even_when_errors_come_without_a_pause(monkeypatch):
    """Each ERROR wakes the listener before it looks at the clock."""
    monkeypatch.setattr(notices, "STUCK", 0.2)
    monkeypatch.setattr(module, "LOOK", 0.05)
    stop = threading.Event()

    def flood(bench):
        while not stop.is_set():
            bench.route.intake.urgent = True
            bench.listener.tokens.put(None)

    with Bench("orders") as bench:
        bench.sink.fails = lambda _batch: Failure("refused")
        bench.put("a")
        thread = threading.Thread(target=flood, args=(bench,))
        thread.start()
        try:
            assert until(lambda: bench.said("nothing stored for"), LIMIT / 2)
        finally:
            stop.set()
            thread.join(LIMIT)
            bench.sink.fails = lambda _batch: None


def test_drops_are_marked_in_the_log_when_the_pressure_is_over():
    with Bench("logs", capacity_bytes=2**20, max_frame_bytes=2**16) as bench:
        bench.sink.go.clear()
        dropped = 0
        for n in range(2000):
            before = sum(bench.route.buffer.dropped().values())
            bench.put(f"{n}\t{'x' * 990}", level=logging.INFO)
            dropped += sum(bench.route.buffer.dropped().values()) - before
        assert dropped > 500
        bench.sink.go.set()
        assert until(lambda: bench.listener.ledger.totals.markers, LIMIT)
        assert bench.settled()
        marks = [frame for frame in bench.sink.frames if frame.startswith(b"-")]
        assert len(marks) == 1
        assert f"{dropped} records were dropped: {dropped} INFO (full)".encode() in marks[0]
        assert bench.said(f"{dropped} records were dropped")
        assert bench.listener.ledger.totals.stored == 2000 - dropped == len(bench.sink.frames) - 1


def test_with_a_capacity_in_records_the_mark_comes_when_the_pressure_is_over():
    with Bench("logs", capacity=100) as bench:
        bench.sink.fails = lambda _batch: Failure("away")
        for n in range(150):
            bench.put(f"{n}\t")
        assert until(lambda: len(bench.sink.batches) > 5, LIMIT)
        assert bench.route.buffer.own_rows == 0
        bench.sink.fails = lambda _batch: None
        assert until(lambda: bench.listener.ledger.totals.markers, LIMIT)
        assert bench.settled()
        marks = [frame for frame in bench.sink.frames if frame.startswith(b"-")]
        assert len(marks) == 1
        assert b"70 records were dropped: 70 INFO (full)" in marks[0]


def test_a_table_of_the_users_own_gets_no_marks_but_a_line():
    with Bench("orders", capacity=100) as bench:
        bench.sink.fails = lambda _batch: Failure("away")
        for n in range(150):
            bench.put(f"{n}")
        bench.sink.fails = lambda _batch: None
        assert until(lambda: bench.said("70 records were dropped: 70 INFO (full)"), LIMIT)
        assert bench.settled()
        assert len(bench.sink.frames) == 80
