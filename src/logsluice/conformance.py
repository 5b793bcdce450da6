"""
The rules of a sink (sinks/__init__.py), tried: one function a rule. For our own sinks and for anybody's.

`logsluice.testing.check_sink` runs them all. Each gets a `Bench`, makes a sink of a new stream, and raises
`AssertionError` with the rule's number and what was wrong.
"""

from __future__ import annotations

import os
import random
import signal
import threading
import time
import warnings
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from logsluice.buffer import Batch
from logsluice.delivery import Failure
from logsluice.sinks import Counts, SinkError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from logsluice.sinks import Sink

ROWS = 20  # of a batch: more than one, and few enough to look at


@dataclass
class Bench:
    """
    What the rules need of a sink.

    `factory(stream)`: a new sink of a stream. `read()`: all that is stored, as texts that hold each row's line or
    message. `frame(seq, text)`: a frame whose row can be told by its text. `broken`: makes what is behind the sink fail
    until it is called with False; `silent`: the same, but it does not answer; `limit`: seconds that any one wait may
    take then. `once`: whether rows that are sent twice are stored once; else at least once is asked for.
    `trial_stores`: nobody can be asked without storing.
    """

    factory: Callable[[int], Sink]
    read: Callable[[], Iterable[str]]
    frame: Callable[[int, str], bytes]
    once: bool = True
    broken: Callable[[bool], object] | None = None
    silent: Callable[[bool], object] | None = None
    limit: float = 30.0
    trial_stores: bool = False
    streams: list[int] = field(default_factory=list)

    def sink(self) -> Sink:
        """Return a sink of a new stream, open."""
        self.streams.append(random.SystemRandom().getrandbits(62) | 1)
        sink = self.factory(self.streams[-1])
        sink.open()
        return sink

    def batch(self, count: int = ROWS, *, start: int = 0, first: int = 1) -> tuple[Batch, list[str]]:
        """Return a batch, and the texts of its rows."""
        texts = [f"row-{random.SystemRandom().getrandbits(64):016x}" for _ in range(count)]
        return Batch(start, b"".join(self.frame(first + n, text) for n, text in enumerate(texts))), texts

    def stored(self, texts: list[str]) -> list[int]:
        """Return how often each of these texts is stored."""
        there = list(self.read())
        return [sum(text in one for one in there) for text in texts]


def _ensure(rule: int, *, right: bool, why: str) -> None:
    if not right:
        raise AssertionError(f"rule {rule}: {why}")


def _counts(batch: Batch) -> Counts:
    return Counts(batch.rows, 0)


def rule_1(bench: Bench) -> None:
    """One thread calls it, the listener's; `close` may come from another, and twice."""
    made: list[Any] = []
    texts: list[str] = []

    def work() -> None:
        try:
            sink = bench.sink()
            batch, these = bench.batch()
            texts.extend(these)
            sink.write(batch, _counts(batch))
            made.append(sink)
        except BaseException as error:
            made.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    if isinstance(made[0], BaseException):
        raise made[0]
    made[0].close()
    made[0].close()
    _ensure(1, right=bench.stored(texts) == [1] * ROWS, why="rows were lost or doubled by a close from another thread")


def rule_2(bench: Bench) -> None:
    """`write` returns only when every row is stored, and says how many."""
    sink = bench.sink()
    try:
        at = 0
        for n in range(3):
            batch, texts = bench.batch(start=at, first=1 + n * ROWS)
            outcome = sink.write(batch, _counts(batch))
            _ensure(2, right=bench.stored(texts) == [1] * ROWS, why="write returned, and not every row is stored once")
            _ensure(2, right=(outcome.stored, outcome.dead) == (ROWS, 0), why=f"it said {outcome} of {ROWS} rows")
            at = batch.end
    finally:
        sink.close()


def rule_3(bench: Bench) -> None:
    """`write` and `open` raise SinkError and nothing else; afterwards, all is stored by another try."""
    if bench.broken is None:
        return
    sink = bench.sink()
    batch, texts = bench.batch()
    try:
        _raises(3, bench.broken, sink, batch)
        sink.open()
        sink.write(batch, _counts(batch))
        _ensure(3, right=_well(bench, texts), why="after a failure and another try rows are lost or doubled")
    finally:
        sink.close()


def rule_4(bench: Bench) -> None:
    """`write` may be called again with the same batch, a part of it, or with rows set aside."""
    sink = bench.sink()
    try:
        batch, texts = bench.batch()
        half = sum(len(frame) for _, frame in list(batch.lines())[: ROWS // 2])
        sink.write(batch.head(half), _counts(batch))
        sink.write(batch, _counts(batch))
        sink.write(batch, _counts(batch))
        sink.write(batch.after(batch.start + half), _counts(batch))
        _ensure(4, right=_well(bench, texts), why="a batch that was sent again is stored with rows lost or doubled")
        more, others = bench.batch(start=batch.end, first=ROWS + 1)
        half = sum(len(frame) for _, frame in list(more.lines())[: ROWS // 2])
        sink.write(more.head(half), _counts(more))
        *_, (last, _) = more.lines()
        more.aside[last] = Failure("a test says so", "22000")
        sink.write(more, _counts(more))
        there = _well(bench, others[:-1]) and bench.stored(others[-1:]) == [0]
        _ensure(4, right=there, why="sent again with a row set aside, that row is stored, or another lost or doubled")
    finally:
        sink.close()


def rule_5(bench: Bench) -> None:
    """Any one wait ends within the limit."""
    if bench.silent is None:
        return
    sink = bench.sink()
    batch, texts = bench.batch()
    try:
        began = time.monotonic()
        _raises(5, bench.silent, sink, batch)
        waited = time.monotonic() - began
        # Opening and writing may each wait a few times.
        _ensure(5, right=waited < 10 * bench.limit, why=f"it waited for {waited:.1f} s at a limit of {bench.limit:g} s")
        sink.open()
        sink.write(batch, _counts(batch))
        _ensure(5, right=_well(bench, texts), why="after a wait in vain and another try rows are lost or doubled")
    finally:
        sink.close()


def rule_6(bench: Bench) -> None:
    """Rows set aside are not sent, and counted as dead."""
    sink = bench.sink()
    try:
        batch, texts = bench.batch()
        aside = [at for at, _ in batch.lines()][::5]
        batch.aside.update(dict.fromkeys(aside, Failure("a test says so", "22000")))
        outcome = sink.write(batch, _counts(batch))
        wanted = [0 if n % 5 == 0 else 1 for n in range(ROWS)]
        _ensure(6, right=bench.stored(texts) == wanted, why="rows set aside were stored, or others were not")
        told = (outcome.stored, outcome.dead)
        _ensure(6, right=told == (ROWS - len(aside), len(aside)), why=f"it said {outcome}, {len(aside)} were set aside")
    finally:
        sink.close()


def rule_7(bench: Bench) -> None:
    """No message holds row content."""
    if bench.broken is None:
        return
    sink = bench.sink()
    batch, texts = bench.batch()
    try:
        said = _raises(7, bench.broken, sink, batch)
        _ensure(7, right=not any(text in said for text in texts), why="what it raised quotes a row")
    finally:
        sink.close()


def rule_8(bench: Bench) -> None:
    """`accepts_any` stores nothing, or nothing that `write` stores again; after `idle`, `open` and `write` go on."""
    sink = bench.sink()
    try:
        batch, texts = bench.batch()
        frames = [frame for _, frame in batch.lines()]
        _ensure(8, right=sink.accepts_any(frames) is True, why="it would take none of some good rows")
        tried = bench.stored(texts)
        _ensure(8, right=bench.trial_stores or tried == [0] * ROWS, why="a trial was stored")
        sink.write(batch, _counts(batch))
        again = [now for now, before in zip(bench.stored(texts), tried, strict=True) if before]
        _ensure(8, right=again == [1] * len(again), why="what a trial had stored was stored again")
        sink.idle(3600.0)
        sink.open()
        more, others = bench.batch(start=batch.end, first=ROWS + 1)
        sink.write(more, _counts(more))
        _ensure(8, right=bench.stored(others) == [1] * ROWS, why="it did not go on after it was idle")
    finally:
        sink.close()


def rule_9(bench: Bench) -> None:
    """`forked`, in a child, raises nothing and touches nothing of its parent's, who goes on as if nothing had been."""
    sink = bench.sink()
    try:
        batch, texts = bench.batch()
        sink.write(batch, _counts(batch))
        # As a wait in rule 5: it has nobody to ask, so this is only for a busy machine.
        _ensure(9, right=_in_child(sink.forked, 10 * bench.limit), why="`forked` raised in a child, or did not return")
        more, others = bench.batch(start=batch.end, first=ROWS + 1)
        try:
            sink.write(more, _counts(more))  # without `open`: it is open, whatever a child of ours did
        except SinkError as error:
            raise AssertionError(f"rule 9: after `forked` in a child the parent could not write: {error}") from error
        _ensure(9, right=_well(bench, texts + others), why="a child's `forked` lost or doubled rows of the parent")
    finally:
        sink.close()


def _in_child(call: Callable[[], object], seconds: float) -> bool:
    """Return whether a call returned, in a forked child and within the time."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # 3.12 warns of fork beside threads
        pid = os.fork()
    if not pid:
        status = 1
        try:
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
            signal.setitimer(signal.ITIMER_REAL, seconds)
            call()
            status = 0
        finally:
            os._exit(status)  # nothing else of the parent's may end here: not even an exception
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def _well(bench: Bench, texts: list[str]) -> bool:
    found = bench.stored(texts)
    return found == [1] * len(texts) if bench.once else all(found)


def _raises(rule: int, fault: Callable[[bool], object], sink: Sink, batch: Batch) -> str:
    """Open and write during a fault, and fail as one must; return all that was said."""
    fault(True)
    try:
        sink.open()
        sink.write(batch, _counts(batch))
    except SinkError as error:
        return f"{error} {error!r} {error.failure!r}"
    except BaseException as error:
        raise AssertionError(f"rule {rule}: it raised {type(error).__name__}, not SinkError") from error
    finally:
        fault(False)
    raise AssertionError(f"rule {rule}: it stored a batch while what is behind it was broken")


RULES = (rule_1, rule_2, rule_3, rule_4, rule_5, rule_6, rule_7, rule_8, rule_9)
