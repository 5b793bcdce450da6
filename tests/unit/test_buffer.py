"""
The rules on top of buffer.py, one section each. Frames carry ids of their own: what `take` hands out is compared with
what was put in, never with the buffer's counters alone.
"""

import asyncio
import contextlib
import itertools
import logging
import signal
import sys
import threading
import time
from collections import deque

import pytest

from logsluice import buffer as module
from logsluice.buffer import Batch, Buffer, Family, Segment, Tally, position
from support.buffers import LIMIT, MIB, at_every_line, drain, law, log, log_inside, numbers, run


@pytest.fixture
def small(monkeypatch):
    """Segments of a page, so that everything rolls all the time."""
    monkeypatch.setattr(module, "FIRST_SEGMENT", 4096)
    monkeypatch.setattr(module, "LARGEST_SEGMENT", 4096)


@pytest.fixture
def switching():
    """Threads are switched as often as Python can."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


def make(capacity_bytes=64 * MIB, **options):
    return Buffer(stream=1, capacity_bytes=capacity_bytes, **options)


class Taker:
    """The listener's side in a thread: takes and settles until told to end."""

    def __init__(self, buffer, batch_bytes=3000):
        self.buffer, self.batch_bytes = buffer, batch_bytes
        self.frames, self.positions = [], []
        self.end = threading.Event()
        self.thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self):
        self.thread.start()
        return self

    def __exit__(self, *exc_info):
        self.end.set()
        self.thread.join(LIMIT)
        assert not self.thread.is_alive()

    def _run(self):
        while True:
            last = self.end.is_set()
            while (batch := self.buffer.take(self.batch_bytes)) is not None:
                self.positions += [at for at, _ in batch.lines()]
                self.frames += batch.data.splitlines()
                self.buffer.settle(batch)
            if last:
                return


# --- 1 one C call; never a lock -------------------------------------------------------------------------------------


def test_a_frame_costs_one_write_and_is_there_at_once():
    buffer = make()
    assert buffer.append is buffer._oldest.write  # nothing of ours between the caller and mmap.write
    buffer.append(b"a\n")
    buffer.append_low(b"b\n")
    assert buffer.take(MIB).data == b"a\nb\n"


@pytest.mark.parametrize("segment", [4096, 256 * 1024])
def test_many_threads_lose_nothing_double_nothing_and_keep_their_order(monkeypatch, switching, segment):
    monkeypatch.setattr(module, "FIRST_SEGMENT", segment)
    monkeypatch.setattr(module, "LARGEST_SEGMENT", segment)
    buffer = make(1024 * MIB)  # more than is written: nothing may be dropped
    threads, each = 8, 20_000

    def write(me):
        for n in range(each):
            log(buffer, b"%d %d %s\n" % (me, n, b"x" * (n % 40)))

    with Taker(buffer) as taker:
        run(*(lambda me=me: write(me) for me in range(threads)))
    assert not buffer.dropped()
    by_thread = {me: [] for me in range(threads)}
    for frame in taker.frames:
        me, n, fill = frame.split(b" ")
        assert len(fill) == int(n) % 40  # whole, and not mixed with another
        by_thread[int(me)].append(int(n))
    assert all(found == list(range(each)) for found in by_thread.values())
    assert taker.positions == sorted(set(taker.positions))
    assert numbers(buffer)[0] > 10 or segment > 4096  # it rolled
    law(buffer, threads * each)


def test_a_record_logged_inside_any_line_of_the_slow_path_is_kept(small):
    _, lines = log_inside(make(), 300, 200)
    assert lines > 300


def test_whole_segments_rolled_and_settled_inside_any_line_of_the_slow_path(small):
    """The same with all that can come between: another thread fills three segments, and the listener settles them."""

    def attempt(only):
        buffer = make()
        expected, got = [], []

        def meanwhile(i):
            for n in range(60):
                expected.append(b"inner %d %d %s" % (i, n, b"y" * 200))
                log(buffer, expected[-1] + b"\n")
            got.extend(drain(buffer))

        for n in range(25):  # 25 frames of 200 bytes: one roll
            frame = b"outer %d %s" % (n, b"x" * 200)
            with at_every_line(meanwhile, only) as lines:
                assert log(buffer, frame + b"\n")
            expected.append(frame)
            if lines:
                break
        assert lines
        got.extend(drain(buffer))
        assert sorted(got) == sorted(expected), only
        assert not buffer.dropped()
        law(buffer, len(expected))
        return len(lines)

    steps = attempt(only=-1)
    assert steps > 20
    for i in range(steps):
        attempt(i)


def test_a_signal_handler_that_logs_while_segments_roll(small):
    buffer = make(256 * MIB)
    inner, numbered, depth = [], itertools.count(), [0]

    def handler(_number, _frame):
        if depth[0] < 3:  # on a busy machine each handler may be interrupted by the next, and so on
            depth[0] += 1
            mine = next(numbered)
            inner.append(mine)
            log(buffer, b"inner %d\n" % mine)
            depth[0] -= 1

    before = signal.signal(signal.SIGALRM, handler)
    outer = 0
    with Taker(buffer, MIB) as taker:
        try:
            signal.setitimer(signal.ITIMER_REAL, 0.0001, 0.0001)
            deadline = time.monotonic() + LIMIT
            while len(inner) < 2000 and time.monotonic() < deadline:
                log(buffer, b"outer %d %s\n" % (outer, b"x" * 1500))  # every second or third frame rolls
                outer += 1
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)
    assert len(inner) >= 2000
    assert [int(f.split()[1]) for f in taker.frames if f.startswith(b"outer")] == list(range(outer))
    assert sorted(int(f.split()[1]) for f in taker.frames if f.startswith(b"inner")) == list(range(len(inner)))
    assert not buffer.dropped()
    law(buffer, outer + len(inner))


# --- 2 data ends at the first NUL -----------------------------------------------------------------------------------


def test_a_sealed_segment_ends_where_its_data_ends(small):
    buffer = make()
    segment = buffer._oldest
    segment.write(b"a\n")
    assert segment.end(0) == (2, False)
    segment.seal()
    assert segment.end(0) == (2, True)
    assert segment.map.tell() == segment.size
    with pytest.raises(ValueError, match="out of range"):
        segment.write(b"b\n")


def test_an_append_between_the_two_steps_of_sealing_is_not_lost(small):
    segment = Segment(0, 4096)
    segment.write(b"a\n")

    def slip_in(_i):
        with contextlib.suppress(ValueError):
            segment.write(b"b\n")

    with at_every_line(slip_in):
        segment.seal()
    end, final = segment.end(0)
    assert final
    frames = segment.map[:end].splitlines()
    assert frames[0] == b"a"
    assert frames[1:] == [b"b"] * len(frames[1:])
    assert len(frames) >= 3  # it slipped in before and after tell()


def test_an_exactly_full_segment(small):
    buffer = make()
    frame = b"x" * 1023 + b"\n"
    for _ in range(4):
        assert log(buffer, frame)
    assert buffer._oldest.map.tell() == 4096
    assert buffer._oldest.end(0) == (4096, True)  # no NUL is left to find
    assert buffer.take(MIB).data == frame * 4
    assert log(buffer, b"next\n")
    assert buffer.take(MIB).data == frame * 4
    assert drain(buffer) == [frame[:-1]] * 4 + [b"next"]
    law(buffer, 5)


def test_a_batch_read_while_the_segment_is_open_is_not_read_again_when_it_is_sealed(small):
    buffer = make()
    log(buffer, b"a\n")
    buffer.settle(buffer.take(MIB))
    log(buffer, b"b\n")
    buffer._oldest.seal()
    assert drain(buffer) == [b"b"]


# --- 3 a full segment is rolled -------------------------------------------------------------------------------------


def test_a_full_segment_is_sealed_and_the_next_is_published(small):
    buffer = make()
    woken = []
    buffer._wake = lambda: woken.append(1)
    frames = [b"%d %s" % (n, b"x" * 1000) for n in range(9)]
    for frame in frames:
        log(buffer, frame + b"\n")
    assert numbers(buffer) == [0, 1, 2]
    assert len(woken) == 2  # a full segment is worth a batch
    assert drain(buffer) == frames
    assert numbers(buffer) == [2]


@pytest.mark.parametrize("size", [4095, 4096, 4097, 9000, 100_000])
def test_a_frame_larger_than_a_segment_opens_one_that_fits(small, size):
    buffer = make()
    large = b"L" * (size - 1) + b"\n"
    assert log(buffer, b"before\n")
    assert log(buffer, large)
    assert log(buffer, b"after\n")
    assert drain(buffer, batch_bytes=1000) == [b"before", large[:-1], b"after"]
    law(buffer, 3)


def test_a_frame_too_large_for_what_another_thread_published_rolls_once_more(small):
    buffer = make()
    stale = buffer._live()
    log(buffer, b"a\n")
    stale.seal()
    buffer._publish(stale, 10, low=False)
    assert log(buffer, b"L" * 9999 + b"\n")
    assert numbers(buffer) == [0, 1, 2]  # 1 stayed empty
    assert drain(buffer) == [b"a", b"L" * 9999]
    assert numbers(buffer) == [2]


def test_segments_grow_with_the_rate(monkeypatch):
    monkeypatch.setattr(module, "FIRST_SEGMENT", 4096)
    monkeypatch.setattr(module, "LARGEST_SEGMENT", 4096 * 4)
    buffer = make()
    while len(numbers(buffer)) < 6:
        log(buffer, b"x" * 999 + b"\n")
    assert [segment.size for segment in buffer._chain()] == [4096, 8192, 16384, 16384, 16384, 16384]
    monkeypatch.setattr(module, "QUICK", 0)  # and stay as they are when it takes longer to fill one
    while len(numbers(buffer)) < 7:
        log(buffer, b"x" * 999 + b"\n")
    assert buffer._live().size == 16384


# --- 4 sealing order ------------------------------------------------------------------------------------------------


def test_sealing_again_and_by_many_at_once_changes_nothing(small, switching):
    for _ in range(200):
        segment = Segment(0, 4096)
        segment.write(b"a\n")
        barrier = threading.Barrier(4)

        def seal(barrier=barrier, segment=segment):
            barrier.wait()
            segment.seal()

        run(*[seal] * 4)
        segment.seal()
        assert segment.end(0) == (2, True)


def test_sealing_what_is_unmapped_is_nothing(small):
    segment = Segment(0, 4096)
    segment.map.close()
    segment.seal()


def test_of_two_that_publish_at_once_one_wins_and_both_use_its_segment(small):
    buffer = make()
    first = buffer._oldest
    first.seal()
    real, results = Segment, []

    def racing(number, size):
        monkeypatch.undo()  # the second comes through before the first has published
        results.append(buffer._publish(first, 10, low=False))
        return real(number, size)

    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(module, "Segment", racing)
        assert buffer._publish(first, 10, low=False)
    assert results == [True]
    assert numbers(buffer) == [0, 1]
    assert buffer._live() is first.following[1]
    assert log(buffer, b"a\n")
    assert drain(buffer) == [b"a"]


# --- 5 the chain ----------------------------------------------------------------------------------------------------


def fill(buffer, segments):
    """Roll so many times; the frames."""
    frames = []
    last = numbers(buffer)[-1] + segments
    while numbers(buffer)[-1] < last:
        frames.append(b"fill %d %s" % (len(frames), b"x" * 900))
        assert log(buffer, frames[-1] + b"\n")
    return frames


@pytest.mark.parametrize("settled", [False, True])
@pytest.mark.parametrize("rolls", [1, 5])
def test_a_writer_that_slept_with_the_old_append_reaches_the_live_segment(small, rolls, settled):
    buffer = make()
    stale = buffer.append
    expected = fill(buffer, rolls)
    got = drain(buffer) if settled else []
    before = numbers(buffer)[-1]
    with pytest.raises(ValueError, match=r"out of range|closed"):
        stale(b"late\n")
    buffer.next_seq()
    assert buffer.put(b"late\n", logging.INFO)
    got += drain(buffer)
    assert got == [*expected, b"late"]
    assert numbers(buffer)[-1] == before  # no number was published again


@pytest.mark.parametrize("settled", [False, True])
def test_a_writer_that_slept_inside_put_reaches_the_live_segment(small, settled):
    """It holds a segment that five others have followed, and goes on with sealing and publishing."""
    buffer = make()
    stale = buffer._oldest
    expected = fill(buffer, 5)
    got = drain(buffer) if settled else []
    before = numbers(buffer)
    stale.seal()
    assert buffer._publish(stale, 100, low=False)
    assert numbers(buffer) == before
    assert buffer._live().number == before[-1]
    assert log(buffer, b"late\n")
    assert [*got, *drain(buffer)] == [*expected, b"late"]


def test_a_full_buffer_is_no_reason_to_refuse_a_successor_that_is_there(small):
    buffer = make(32 * 1024)
    stale = buffer._oldest
    while numbers(buffer)[-1] < 7:
        log(buffer, b"x" * 900 + b"\n", logging.ERROR)
    assert buffer.held_bytes() == buffer.capacity_bytes
    assert buffer._publish(stale, 100, low=False)


def test_a_stale_hint_of_the_newest_heals_itself(small):
    buffer = make()
    stale = buffer._newest
    fill(buffer, 4)
    got = drain(buffer)
    buffer._newest = stale  # a thread that slept writes what it knew
    buffer.append = buffer.append_low = stale.write
    assert log(buffer, b"a\n")
    assert buffer._live().number == 4
    assert buffer.append == buffer._live().write  # and the quick append is right again
    assert drain(buffer)[-1:] == [b"a"]
    assert got


# --- 6 finished only when sealed ------------------------------------------------------------------------------------


def test_a_read_segment_stays_until_it_is_sealed_and_has_a_successor(small):
    buffer = make()
    log(buffer, b"a\n")
    first = buffer._oldest
    assert drain(buffer) == [b"a"]
    assert not first.map.closed
    log(buffer, b"b\n")  # there is room still
    assert drain(buffer) == [b"b"]
    first.seal()
    assert buffer.take(MIB) is None
    assert not first.map.closed  # no successor: the next append hangs one on it
    log(buffer, b"c\n")
    assert drain(buffer) == [b"c"]
    assert first.map.closed


def test_settled_segments_are_unmapped(small):
    buffer = make()
    fill(buffer, 10)
    segments = list(buffer._chain())
    drain(buffer)
    assert [segment.map.closed for segment in segments] == [True] * 10 + [False]
    assert buffer.held_bytes() == 4096


def test_the_tail_is_asked_while_segments_are_settled(small, switching):
    """Another thread's `flush` asks where the end is: never a position before what it has logged."""
    buffer = make(256 * MIB)
    with Taker(buffer):
        last = 0
        for n in range(5000):
            log(buffer, b"%d %s\n" % (n, b"x" * 700))
            tail = buffer.tail()
            assert tail > last
            last = tail
            buffer.waiting_bytes()
            buffer.held_bytes()


# --- 7 capacity -----------------------------------------------------------------------------------------------------


def test_the_capacity_is_never_exceeded_and_used_nearly_whole(switching):
    buffer = make(MIB)
    most = [0]
    stop = threading.Event()

    def watch():
        while not stop.is_set():
            most[0] = max(most[0], buffer.held_bytes())

    def write():
        for _ in range(3000):
            log(buffer, b"x" * 999 + b"\n", logging.ERROR)
        most[0] = max(most[0], buffer.held_bytes())

    watcher = threading.Thread(target=watch)
    watcher.start()
    run(*[write] * 4)
    stop.set()
    watcher.join(LIMIT)
    assert most[0] <= MIB
    taken_in = len(drain(buffer))
    assert taken_in * 1000 > 0.85 * MIB
    assert buffer.dropped() == {("full", logging.ERROR): 12_000 - taken_in}
    law(buffer, taken_in)


def test_low_levels_are_dropped_first_and_a_fifth_is_kept_for_the_others():
    buffer = make(MIB)
    low = sum(log(buffer, b"low  %s\n" % (b"x" * 994)) for _ in range(2000))
    assert low < 2000
    assert low * 1000 <= 0.8 * MIB
    assert buffer.under_pressure
    before = buffer.dropped()
    high = sum(log(buffer, b"high %s\n" % (b"x" * 994), logging.WARNING) for _ in range(2000))
    assert high * 1000 >= 0.12 * MIB  # what is left, less than one segment of 1/8 may be lost to rounding
    assert before == {("full", logging.INFO): 2000 - low}
    assert buffer.dropped() == {("full", logging.INFO): 2000 - low, ("full", logging.WARNING): 2000 - high}
    frames = drain(buffer)
    assert (sum(f[:1] == b"l" for f in frames), sum(f[:1] == b"h" for f in frames)) == (low, high)
    law(buffer, low + high)


def test_keep_level_moves_the_line():
    buffer = make(MIB, keep_level=logging.ERROR)
    while log(buffer, b"x" * 999 + b"\n", logging.WARNING):
        pass
    assert log(buffer, b"x" * 999 + b"\n", logging.ERROR)
    assert buffer.dropped() == {("full", logging.WARNING): 1}


def test_room_is_used_again_as_soon_as_it_is_settled():
    buffer = make(MIB)
    while log(buffer, b"x" * 999 + b"\n", logging.ERROR):
        pass
    assert not log(buffer, b"low\n")
    assert buffer.pressure == 1.0
    drain(buffer)
    assert buffer.pressure < 0.2
    assert not buffer.under_pressure
    assert log(buffer, b"low\n")
    assert log(buffer, b"high\n", logging.ERROR)
    assert drain(buffer) == [b"low", b"high"]


def test_a_refusal_decided_before_the_last_settle_heals():
    """A writer saw a full buffer, slept, and says so when all is settled and the listener idle: it wakes it, and then."""
    woken = []
    buffer = make(MIB, wake=lambda: woken.append(1))
    while log(buffer, b"x" * 999 + b"\n", logging.ERROR):
        pass
    drain(buffer)
    woken.clear()
    real = buffer.held_bytes
    buffer.held_bytes = lambda: MIB  # what the writer had counted before the settle
    segment = buffer._live()
    segment.seal()
    assert not buffer._publish(segment, 1000, low=False)
    buffer.held_bytes = real
    assert woken  # or an idle listener would never look
    assert not log(buffer, b"x\n")
    buffer.relieve()  # what the woken listener does in each sweep and before it sleeps
    assert log(buffer, b"y\n")
    assert drain(buffer) == [b"y"]


def test_a_full_buffer_does_not_keep_the_listener_awake():
    """In an outage nothing leaves: each look of the listener must not reopen what the next record finds full again."""
    woken = []
    buffer = make(MIB, wake=lambda: woken.append(1))
    for level in (logging.INFO, logging.ERROR):
        while log(buffer, b"x" * 999 + b"\n", level):
            pass
    woken.clear()
    for _ in range(100):
        buffer.relieve()
        assert not log(buffer, b"x" * 999 + b"\n", logging.INFO)
        assert not log(buffer, b"x" * 999 + b"\n", logging.ERROR)
    assert not woken
    assert len(drain(buffer)) > 0
    assert log(buffer, b"x\n")


def test_capacity_counts_records():
    buffer = make(capacity=100)
    low = sum(log(buffer, b"low\n") for _ in range(150))
    high = sum(log(buffer, b"high\n", logging.ERROR) for _ in range(150))
    assert (low, high) == (80, 20)  # the last fifth is for keep_level and above
    assert buffer.dropped() == {("full", logging.INFO): 70, ("full", logging.ERROR): 130}
    assert buffer.under_pressure
    assert buffer.pressure == 1.0
    buffer.settle(buffer.take(MIB, 40))
    assert sum(log(buffer, b"low\n") for _ in range(150)) == 20
    assert len(drain(buffer)) == 80
    assert not buffer.under_pressure
    assert buffer.pressure < 0.1
    law(buffer, 120)


def test_a_large_frame_that_does_not_fit_does_not_shut_out_small_ones_for_long():
    buffer = make(MIB)
    for _ in range(700):
        log(buffer, b"x" * 999 + b"\n", logging.ERROR)
    assert not log(buffer, b"L" * (400 * 1024) + b"\n", logging.ERROR)
    buffer.relieve()
    assert log(buffer, b"small\n", logging.ERROR)
    assert buffer.dropped() == {("full", logging.ERROR): 1}


# --- 7 when full: block ---------------------------------------------------------------------------------------------


def full(**options):
    buffer = make(MIB, when_full="block", **options)
    while not buffer.under_pressure:
        # What does not fit is not waited for: the timeout is set afterwards.
        buffer._block_timeout = 0
        log(buffer, b"x" * 999 + b"\n", options.get("keep_level", logging.WARNING))
    buffer.drops.clear()
    return buffer


def test_block_waits_for_its_time_and_then_drops():
    buffer = full()
    buffer._block_timeout = 0.2
    began = time.monotonic()
    assert not log(buffer, b"x\n")
    assert 0.2 <= time.monotonic() - began < 5
    assert buffer.dropped() == {("block_timeout", logging.INFO): 1}


def test_block_ends_as_soon_as_there_is_room():
    buffer = full()
    buffer._block_timeout = LIMIT
    asked = threading.Event()
    buffer._wake = asked.set
    results = []
    writers = [threading.Thread(target=lambda n=n: results.append(log(buffer, b"late %d\n" % n))) for n in range(5)]
    began = time.monotonic()
    for writer in writers:
        writer.start()
    assert asked.wait(LIMIT)
    assert not results
    got = drain(buffer)
    for writer in writers:
        writer.join(LIMIT)
    assert results == [True] * 5
    assert time.monotonic() - began < LIMIT / 2
    got += drain(buffer)
    assert sorted(f for f in got if f.startswith(b"late")) == [b"late %d" % n for n in range(5)]
    assert not buffer.dropped()


def test_a_blocked_writer_does_not_keep_the_listener_awake():
    """The listener answers each wake-up with `relieve`: with nothing settled, that must not wake the writer again."""
    buffer = full()
    buffer._block_timeout = 0.3
    woken = []

    def wake():
        woken.append(1)
        if len(woken) < 1000:
            threading.Thread(target=buffer.relieve).start()

    buffer._wake = wake
    for level in (logging.INFO, logging.ERROR):
        while log(buffer, b"x" * 999 + b"\n", level):
            pass
    assert set(buffer.dropped()) == {("block_timeout", logging.INFO), ("block_timeout", logging.ERROR)}
    assert len(woken) < 20


def test_an_event_loop_is_never_blocked():
    buffer = full()
    buffer._block_timeout = LIMIT

    async def main():
        return log(buffer, b"x\n")

    began = time.monotonic()
    assert asyncio.run(main()) is False
    assert time.monotonic() - began < LIMIT / 2
    assert buffer.dropped() == {("event_loop", logging.INFO): 1}


def test_waiting_writers_are_forgotten_when_they_gave_up():
    buffer = full()
    buffer._block_timeout = 0.001
    for _ in range(50):
        log(buffer, b"x\n")
    drain(buffer)
    assert not buffer._waiting_writers


def test_room_that_comes_while_a_writer_registers_is_not_overlooked():
    buffer = full()
    buffer._block_timeout = LIMIT
    got = []

    class Registering(deque):
        def append(self, waiting):
            got.extend(drain(buffer))  # all is settled, and nobody was told: the writer is not in the list yet
            super().append(waiting)

    buffer._waiting_writers = Registering()
    began = time.monotonic()
    assert log(buffer, b"late\n")
    assert time.monotonic() - began < LIMIT / 2
    assert drain(buffer) == [b"late"]
    assert got


def test_a_writer_that_gives_up_while_room_is_given_is_no_error():
    """The listener counted one that waits, and found none: "internal error", and all routes waited for a back-off."""
    buffer = full()

    def gave_up():
        raise AssertionError

    class GivingUp(deque):
        def __len__(self):
            self.clear()  # as `forget` does, on its own thread
            return 1

    assert not buffer.when_room(gave_up)
    buffer._waiting_writers = GivingUp(buffer._waiting_writers)
    buffer.settle(buffer.take(MIB))


def test_when_room_keeps_the_call_until_there_is_room():
    buffer = full()
    called = []
    assert not buffer.when_room(lambda: called.append(1))
    assert not called
    drain(buffer)
    assert called == [1]
    assert buffer.when_room(lambda: called.append(2))
    assert called == [1]


@pytest.mark.parametrize("capacity", [5, 10])
def test_blocked_calls_do_not_wait_for_each_other(capacity):
    """Twenty calls wait for room in a buffer of five records: they get in as it is emptied, none in vain."""
    buffer = make(capacity=capacity, when_full="block", block_timeout=LIMIT)
    results = []

    def write(n):
        results.append(log(buffer, b"%d\n" % n, logging.ERROR))

    with Taker(buffer) as taker:
        run(*(lambda n=n: write(n) for n in range(20)))
    assert results == [True] * 20
    assert sorted(taker.frames, key=int) == [b"%d" % n for n in range(20)]
    law(buffer, 20)


def test_when_room_means_room_for_one_more():
    buffer = make(capacity=100)
    for _ in range(80):
        log(buffer, b"x\n")
    assert not buffer.when_room(lambda: None)
    assert not log(buffer, b"x\n")


# --- 8 drops are counted --------------------------------------------------------------------------------------------


def test_drops_are_exact_under_many_threads(switching):
    buffer = make(MIB)
    levels = [logging.DEBUG, logging.INFO, logging.WARNING, logging.ERROR]
    refused = [dict.fromkeys(levels, 0) for _ in range(64)]

    def write(me):
        for n in range(200):
            level = levels[(me + n) % 4]
            if not log(buffer, b"%d %d %s\n" % (me, n, b"x" * 400), level):
                refused[me][level] += 1

    run(*(lambda me=me: write(me) for me in range(64)))
    expected = {("full", level): sum(one[level] for one in refused) for level in levels}
    assert buffer.dropped() == {key: count for key, count in expected.items() if count}
    assert min(expected.values()) > 0
    stored = drain(buffer)
    assert len(set(stored)) == len(stored) == 64 * 200 - sum(expected.values())
    law(buffer, len(stored))


def test_capacity_in_records_is_exceeded_by_no_more_than_the_threads(switching):
    buffer = make(capacity=1000)
    taken = [0] * 64

    def write(me):
        for n in range(100):
            taken[me] += log(buffer, b"%d %d\n" % (me, n), logging.ERROR)

    run(*(lambda me=me: write(me) for me in range(64)))
    frames = drain(buffer)
    assert 1000 <= len(frames) == sum(taken) <= 1064
    assert buffer.dropped() == {("full", logging.ERROR): 6400 - len(frames)}
    law(buffer, len(frames))


def test_an_append_decided_before_close_is_taken_or_refused_but_never_lost():
    buffer = make()
    stale = buffer.append
    buffer.close()
    stale(b"between\n")
    assert buffer.seal()
    assert drain(buffer) == [b"between"]
    with pytest.raises(ValueError, match="out of range"):
        stale(b"too late\n")
    assert not buffer.put(b"too late\n", logging.INFO)
    assert not buffer.seal()
    assert buffer.dropped() == {("closed", logging.INFO): 1}


def test_after_close_records_are_dropped_and_counted():
    buffer = make()
    log(buffer, b"before\n")
    buffer.close()
    assert not log(buffer, b"after\n")
    assert not log(buffer, b"after\n", logging.ERROR)
    assert buffer.dropped() == {("closed", logging.INFO): 1, ("closed", logging.ERROR): 1}
    assert drain(buffer) == [b"before"]
    buffer.discard()
    assert not log(buffer, b"after\n")
    assert buffer.dropped()["closed", logging.INFO] == 2


def test_a_row_of_our_own_is_neither_offered_nor_dropped():
    buffer = make(MIB)
    while log(buffer, b"x" * 999 + b"\n", logging.ERROR):
        pass
    before = buffer.dropped()
    assert not buffer.put(b"-1\n" * 100, logging.CRITICAL, own=True)
    assert buffer.dropped() == before
    drain(buffer)
    assert buffer.put(b"-1\n", logging.CRITICAL, own=True)
    assert drain(buffer) == [b"-1"]


def test_a_tally_counts_without_a_lock(switching):
    tally = Tally(1)
    assert tally.value == 0
    run(*[lambda: [tally.add() for _ in range(10_000)]] * 8)
    assert tally.value == 80_000
    assert tally.add() == 80_001
    assert tally.value == 80_001


# --- take and settle ------------------------------------------------------------------------------------------------


def test_batches_are_cut_at_newlines(small):
    buffer = make()
    for n in range(10):
        log(buffer, b"%d\n" % n * 1)
    assert buffer.take(1).data == b"0\n"  # one frame larger than a batch goes alone
    assert buffer.take(2).data == b"0\n"
    assert buffer.take(3).data == b"0\n"
    assert buffer.take(5).data == b"0\n1\n"
    assert buffer.take(MIB, 3).data == b"0\n1\n2\n"
    assert buffer.take(4, 3).data == b"0\n1\n"
    assert buffer.take(MIB, 100).data == buffer.take(MIB).data == b"".join(b"%d\n" % n for n in range(10))
    assert drain(buffer, 5) == [b"%d" % n for n in range(10)]


def test_take_changes_nothing_until_settle(small):
    buffer = make()
    log(buffer, b"a\n")
    one, two = buffer.take(MIB), buffer.take(MIB)
    assert (one.start, one.data) == (two.start, two.data) == (0, b"a\n")
    log(buffer, b"b\n")
    buffer.settle(one)
    assert buffer.take(MIB).data == b"b\n"
    assert buffer.settled == position(0, 2)


def test_a_batch_is_taken_apart_at_its_newlines_only():
    batch = Batch(100, b"a\r\nbc\x0c\n\n", {100: "why", 103: "why"})
    assert list(batch.lines()) == [(100, b"a\r\n"), (103, b"bc\x0c\n"), (107, b"\n")]
    assert (batch.rows, batch.end) == (3, 108)
    head = batch.head(3)
    assert (head.start, head.data, list(head.aside)) == (100, b"a\r\n", [100])
    rest = batch.after(103)
    assert (rest.start, rest.data, list(rest.aside)) == (103, b"bc\x0c\n\n", [103])


def test_what_waits_is_counted(small):
    buffer = make()
    for n in range(20):
        log(buffer, b"%02d%s\n" % (n, b"x" * 497))
    assert buffer.waiting_bytes() == 20 * 500
    assert buffer.rows_waiting() == 20
    buffer.settle(buffer.take(1500))
    assert buffer.waiting_bytes() == 17 * 500
    assert buffer.rows_waiting() == 17
    drain(buffer)
    assert buffer.waiting_bytes() == buffer.rows_waiting() == 0


def test_no_thread_ever_sees_more_settled_than_is(small):
    """The next segment's number with the offset of the one before: `flush` returned before its records were stored."""
    seen = []

    class Seen(Buffer):
        def __setattr__(self, name, value):
            super().__setattr__(name, value)
            if name in {"_oldest", "_read"} and hasattr(self, "_newest"):  # not while it is made
                seen.append(self.settled)

    buffer = Seen(stream=1, capacity_bytes=64 * MIB)
    for _ in range(20):
        log(buffer, b"x" * 999 + b"\n")
    while (batch := buffer.take(MIB)) is not None:
        buffer.settle(batch)
        assert max(seen) <= buffer.settled
    assert len(seen) > 4


# --- buffers that share a limit ------------------------------------------------------------------------------------------


def test_a_family_has_room_for_another_while_its_limit_allows_a_first_segment():
    family = Family()
    size = 2 * 1024 * 1024
    first = Buffer(stream=1, capacity_bytes=size, family=family)
    assert family.begin("another")
    family.release("another")
    while first.put(b"x" * 1000 + b"\n", logging.ERROR):
        pass
    assert first.held_bytes() == size
    assert not family.begin("another")
    first.discard()


def test_what_begins_and_what_rolls_at_once_stay_within_their_limit(monkeypatch):
    """Two typed logs, each with its first record, and a third buffer that is full: each saw the same room."""
    family = Family()
    first = Buffer(stream=1, capacity_bytes=2 * MIB, family=family)
    while first.held_bytes() < 2 * MIB - 256 * 1024:
        first.put(b"x" * 1000 + b"\n", logging.ERROR)
    assert family.begin("another")
    assert not family.begin("a third")
    while first.put(b"x" * 1000 + b"\n", logging.ERROR):
        pass
    second = Buffer(stream=2, capacity_bytes=2 * MIB, family=family)
    family.release("another")
    assert first.held_bytes() + second.held_bytes() == 2 * MIB
    second.discard()
    first.relieve()
    begun = []

    class Begins(Segment):
        def __init__(self, *given):
            begun.append(family.begin("another"))  # it is made, and not published yet
            super().__init__(*given)

    monkeypatch.setattr(module, "Segment", Begins)
    assert first.put(b"x" * 1000 + b"\n", logging.ERROR)
    assert begun == [False]


def test_what_one_of_a_family_holds_another_cannot_have():
    family = Family()
    one, other = (Buffer(stream=n, capacity_bytes=2 * 1024 * 1024, family=family) for n in (1, 2))
    while one.put(b"x" * 1000 + b"\n", logging.ERROR):
        pass
    while other.put(b"x" * 1000 + b"\n", logging.ERROR):
        pass
    assert one.held_bytes() + other.held_bytes() == 2 * 1024 * 1024
    assert other.held_bytes() == 256 * 1024  # its first segment
    one.discard()
    other.relieve()
    assert other.put(b"x" * 1000 + b"\n", logging.ERROR)
    other.discard()
