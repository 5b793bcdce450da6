"""
The buffer: the segments of one stream that wait. Rules, each tried over every kind of buffer by
tests/conformance_buffers.py, and at length by tests/unit/test_buffer.py:

1. A frame is appended by one C call, `mmap.write`, atomic under the GIL. No lock, so a signal handler or a `__del__`
   that logs in the middle of anything here appends as well.
2. Segments start zeroed and frames hold no NUL: data ends at the write position or, once sealed, at the first NUL.
3. A full segment raises ValueError; only then `put` seals it, publishes the next and tries again, in a loop.
4. Sealing order: take `tell()`, move the write position to the end, then publish the next by one atomic
   `setdefault`; the loser's is thrown away. Every step may be repeated, or re-entered by a signal handler.
5. The next segment hangs on its predecessor, not in a table of numbers: a writer that slept through whole segments
   follows the chain to the live one, and can never publish a number that was settled long ago.
6. A segment is finished only when it is sealed; it is unmapped when it is finished, read, and has a successor.
7. Mapped bytes of a family, the buffers that share one `capacity_bytes`, never exceed it: only the last segment can
   get a successor, which is counted before it is published. The last fifth is a reserve for `keep_level` and above.
   Threads that append in the same moment may exceed `capacity`, which counts records, by one each.
8. What is not taken in is counted by reason and level, where it happens.

Who writes what: any thread calls `append`, `append_low`, `put`; the listener alone calls `take` and `settle`.
"""

from __future__ import annotations

import itertools
import logging
import mmap
import queue
import random
import sys
import threading
import time
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeVar

from logsluice import crashpoints
from logsluice.primitives import SimpleQueue, on_event_loop

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from logsluice.delivery import Failure

_Waiting = TypeVar("_Waiting")

FIRST_SEGMENT = 256 * 1024  # bytes: small programs stay small; a quiet one never fills it
LARGEST_SEGMENT = 4 * 1024 * 1024  # bytes: two batches; larger gains nothing and is settled later
QUICK = 1.0  # seconds: a segment filled sooner doubles the next, so that a busy program rolls a few times a second
RESERVE = 5  # one part in five is kept for keep_level and above, as Logback's AsyncAppender keeps 20 %
# A batch takes the rest of its segment along if that is not more than this share of it: cut at a newline, two batches
# left a row or two of every other full segment to a transaction of their own.
CRUMB = 16
POSITION_BITS = 32  # a position is segment number * 2^32 + offset
QUIET = 0.02  # a pressure below this is one or two small segments: not worth recomputing each time
ALWAYS = -(10**9)  # below every level: each append wakes the listener


class Family:
    """The buffers that share one limit of bytes: those of a listener's routes. Any thread."""

    def __init__(self) -> None:
        self.buffers: list[Buffer] = []
        # Sealed segment, or who begins -> whose the next one is, and its bytes while it is being made.
        self._claims: dict[object, tuple[Buffer | None, int]] = {}

    def begin(self, newcomer: object) -> bool:
        """Whether another buffer may begin: then its first segment is claimed, until `release`."""
        limit = self.buffers[0].capacity_bytes
        self._claims[newcomer] = None, first_size(limit)
        claimed = sum(size for _, size in list(self._claims.values()))
        if sum(one.held_bytes() for one in self.buffers) + claimed <= limit:
            return True
        self.release(newcomer)
        return False

    def others(self, buffer: Buffer) -> int:
        """Return how many bytes the others hold, or are about to."""
        if len(self.buffers) < 2 and len(self._claims) < 2:
            return 0
        held = sum(one.held_bytes() for one in self.buffers if one is not buffer)
        return held + sum(size for one, size in list(self._claims.values()) if one is not buffer)

    def claim(self, buffer: Buffer, sealed: Segment, size: int) -> None:
        """
        Hear of a segment before it is judged whether there is room for it; `release` it once it is published or not.

        Of two threads that roll two buffers in the same moment at least one so sees what the other takes.
        """
        self._claims[sealed] = buffer, size

    def release(self, claimed: object) -> None:
        """Hear that what was claimed is among its buffer's segments, or was not made."""
        self._claims.pop(claimed, None)


class RefusedError(Exception):
    """There is no room for a record, and it may go to the fallback. The arguments are the reason and the buffer."""


def first_size(capacity_bytes: int) -> int:
    """Return how many bytes a buffer's first segment has."""
    return min(FIRST_SEGMENT, capacity_bytes // 8)


def position(number: int, offset: int) -> int:
    """Return where in its stream this offset of this segment lies."""
    return (number << POSITION_BITS) + offset


class Segment:
    """A fixed-size, zero-filled memory map that frames are appended to. `mapped`: a file's, for the journal."""

    __slots__ = ("following", "map", "number", "published", "sealed_at", "size", "start", "write")

    def __init__(self, number: int, size: int, mapped: mmap.mmap | None = None) -> None:
        self.number = number
        self.size = size
        # MAP_PRIVATE: a fork that runs no Python hooks must not write into its parent's segment.
        self.map = mapped or mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        self.start = self.map.tell()  # where frames begin: a file has its header in front of them
        self.write: Callable[[bytes], int] = crashpoints.around("append", self.map.write)
        if not getattr(sys, "_is_gil_enabled", lambda: True)():  # free-threaded Python: `write` is not atomic
            self.write = _locked(self.write)
        self.sealed_at = 0  # a lower bound of where the data ends; written by whoever seals, read by the listener
        self.following: dict[int, Segment] = {}  # at most one entry, n + 1: set once by setdefault, never removed
        self.published = time.monotonic()

    def seal(self) -> None:
        """Make every later append fail. Any thread, any number of times."""
        try:
            at = self.map.tell()
            if at < self.size:  # else somebody sealed it: the end must not be mistaken for where the data ends
                self.map.seek(self.size)
                self.sealed_at = at  # a lower bound: an append between the two lines lies behind it
                crashpoints.reach("seal")
        except ValueError:
            pass  # unmapped: sealed, read and settled while this thread slept

    @property
    def sealed(self) -> bool:
        """Whether no append can succeed."""
        return self.map.tell() >= self.size

    def end(self, after: int) -> tuple[int, bool]:
        """Return where the data ends, and whether that is final. `after`: an offset up to which it was seen before."""
        at = self.map.tell()
        if at < self.size:
            return at, False
        nul = self.map.find(b"\0", max(after, self.sealed_at))
        return (self.size if nul < 0 else nul), True

    def drop(self) -> None:
        """Let go of a segment that was made and never published, or whose frames are settled."""
        self.map.close()  # a writer that still holds it gets ValueError and follows the chain


def _locked(write: Callable[[bytes], int]) -> Callable[[bytes], int]:
    lock = threading.RLock()

    def locked(frame: bytes) -> int:
        with lock:
            return write(frame)

    return locked


class Tally:
    """A counter that any thread may add to without a lock: `next` on a count is one C call."""

    __slots__ = ("_first", "add", "count")

    def __init__(self, first: int = 0) -> None:
        self._first = first
        self.count = itertools.count(first)  # `next` of it is what `add` is, in half the time
        self.add = self.count.__next__  # returns `first`, then one more each time

    @property
    def value(self) -> int:
        """How often `add` was called."""
        return int(repr(self.count)[6:-1]) - self._first  # "count(17)": the one public way to read it without counting


@dataclass
class Batch:
    """A slice of a segment that begins at a frame and ends at a newline, sent in one transaction."""

    start: int  # position of the first byte
    data: bytes
    aside: dict[int, Failure] = field(default_factory=dict)  # position of a row -> why it is not sent
    marked: bool = True  # whether drop markers may be in it
    rows: int = field(init=False)  # how many frames there are, those set aside included
    markers: int = field(init=False)  # how many of them are drop markers: their seq is negative, and it stands first

    def __post_init__(self) -> None:
        # At once, 0.9 ms for 2 MiB, 2.1 more for markers where there may be any: `functools.cached_property` has one
        # lock for the class up to Python 3.11, and a fork while the listener holds it would stop every child's.
        self.rows = self.data.count(b"\n")
        self.markers = self.data.count(b"\n-") + self.data.startswith(b"-") if self.marked else 0

    @property
    def end(self) -> int:
        """The position behind the last byte: the watermark once this is stored."""
        return self.start + len(self.data)

    def lines(self) -> Iterator[tuple[int, bytes]]:
        """Yield (position, frame) of every row. The only place where a batch is taken apart."""
        at = self.start
        for line in self.data.split(b"\n")[:-1]:  # not splitlines: that would also split at a carriage return
            yield at, line + b"\n"
            at += len(line) + 1

    def head(self, length: int) -> Batch:
        """Return the batch of the first `length` bytes, which must end at a newline."""
        end = self.start + length
        left = {at: why for at, why in self.aside.items() if at < end}
        return Batch(self.start, self.data[:length], left, self.marked)

    def after(self, watermark: int) -> Batch:
        """Return what lies behind a watermark inside this batch."""
        left = {at: why for at, why in self.aside.items() if at >= watermark}
        if left.keys() != self.aside.keys() and self.data[watermark - self.start - 1] != 0x0A:
            # It was sent before its newline was damaged: the rest of a damaged row is no row either.
            left[watermark] = self.aside[max(at for at in self.aside if at < watermark)]
        return Batch(watermark, self.data[watermark - self.start :], left, self.marked)


class Buffer:
    """The segments of one stream. `capacity` counts records, `capacity_bytes` mapped bytes."""

    def __init__(
        self,
        *,
        stream: int,
        capacity_bytes: int,
        capacity: int | None = None,
        keep_level: int = logging.WARNING,
        when_full: str = "drop",
        block_timeout: float = 1.0,
        wake: Callable[[], None] = lambda: None,
        family: Family | None = None,
    ) -> None:
        self.stream = stream
        self.family = family or Family()
        self.keep_level = keep_level
        self.capacity_bytes = capacity_bytes
        self._capacity = capacity
        self._when_full = when_full
        self._block_timeout = block_timeout
        self._wake = wake
        # Shared: `next` on the counts is atomic, entries are made by setdefault.
        self._offered = Tally(1)
        self.next_seq = self._offered.add
        self.numbers = self._offered.count
        errors = Tally()
        self.drops: dict[tuple[str, int], Tally] = {("error", logging.NOTSET): errors}  # (reason, level) -> how many
        self.lost = errors.add  # one C call, for callers that have no stack left for more
        self.closed = False  # set by close(); from then on records are dropped, counted as "closed"
        # (whether of a low level, called once when there is room again)
        self._waiting_writers: deque[tuple[bool, Callable[[], None]]] = deque()
        self._taken = Tally()  # frames appended by `put`: with `capacity`, all
        self._full = False  # no room for anybody; set by writers, cleared by `settle`
        self.full_reason = "full"  # what a drop for want of room is counted as
        # Listener only.
        self._oldest = self._first(first_size(capacity_bytes))
        self._read = self._oldest.start  # offset in the oldest segment up to which all is settled
        self.rows_settled = 0  # frames that left the buffer, whatever became of them
        self.own_rows = 0  # frames that the listener itself put in: drop markers
        self.has_fallback = False  # then a refusal is raised, not counted: the record may find another place
        self.given_up: dict[str, int] = {}  # reason -> records that were accepted and cannot be read any more
        self.handed = Tally()  # records that the fallback took in the place of a drop; any thread
        self.dropping_since: float | None = None  # epoch seconds; set by whoever drops first, cleared by the listener
        self.pressure = 0.0  # 0.0 to 1.0; an attribute, so that a request handler can ask for next to nothing
        self._low_refused = False  # only reserve segments are left
        self._newest = self._oldest  # a hint, may be stale: `put` follows the chain from there
        self.append = self.append_low = self._oldest.write
        self.family.buffers.append(self)
        self._aim()

    # --- writers, any thread ------------------------------------------------------------------------------------

    def put(self, frame: bytes, level: int, *, own: bool = False) -> bool:
        """
        Append a frame whose quick append failed: roll to the next segment, or drop and count.

        Blocks for at most `block_timeout` seconds with `when_full="block"`, never on a thread that runs an event loop.
        `own`: a row of ours, which is neither offered nor dropped and never waits.
        """
        low = level < self.keep_level
        deadline = None
        while True:
            if self.closed and not own:
                return self._turn_away("closed", level)
            if not self._refuses(low):
                segment = self._live()
                try:
                    segment.write(frame)
                except ValueError:
                    segment.seal()
                    if self._publish(segment, len(frame), low=low):
                        continue
                else:
                    self._taken.add()
                    try:
                        self._aim()
                    except RecursionError:
                        pass  # the frame is in, and must not be offered again; the next one aims
                    return True
            if own:
                return False
            if self._when_full == "drop":
                return self._turn_away("full" if self._at_capacity(low) else self.full_reason, level)
            if on_event_loop():
                return self._turn_away("event_loop", level)
            now = time.monotonic()
            deadline = now + self._block_timeout if deadline is None else deadline
            if now >= deadline or not self._wait_for_room(deadline - now, low=low):
                return self._turn_away("block_timeout", level)

    def drop(self, reason: str, level: int) -> None:
        """Count a record that never became a frame or could not be taken in."""
        self._drop(reason, level)

    def _live(self) -> Segment:
        segment = self._newest
        while segment.following:
            segment = segment.following[segment.number + 1]
        self._newest = segment
        return segment

    def _publish(self, segment: Segment, least: int, *, low: bool) -> bool:
        """Hang the next segment on a sealed one; False if there is no room for it."""
        if segment.following:
            return True
        try:
            following = self._following(segment, least, low=low)
            if following is None:
                self._aim(reserve=True)
                self._wake()  # else an idle listener, done since we looked, would never `relieve`: refused for ever
                return False
            crashpoints.reach("roll")
            self._newest = published = segment.following.setdefault(following.number, following)
            if published is not following:  # not `_newest`: whoever came in between may have rolled on already
                following.drop()
        finally:
            self.family.release(segment)
        self._aim()
        self._wake()  # a full segment is worth a batch
        return True

    def _first(self, size: int) -> Segment:
        """Return the segment that the stream begins with."""
        return Segment(0, size)

    def _following(self, segment: Segment, least: int, *, low: bool) -> Segment | None:
        """Make what comes after a sealed segment and holds a frame of `least` bytes; None if it may not be."""
        size = self._next_size(segment, least)
        self.family.claim(self, segment, size)
        held = self.held_bytes() + self.family.others(self) + self._cost(size)
        if held > self.capacity_bytes or (low and held > self._open_to_all):
            self._full = held > self.capacity_bytes
            return None
        try:
            return Segment(segment.number + 1, size)
        except (OSError, MemoryError):  # the machine has no memory left: no room, like any other
            self._full = True
            return None

    def _next_size(self, segment: Segment, least: int) -> int:
        quick = time.monotonic() - segment.published < QUICK
        size = min(segment.size, LARGEST_SEGMENT) * (2 if quick else 1)
        size = min(size, LARGEST_SEGMENT, self.capacity_bytes // 8)
        return max(size, least)  # a frame larger than the next segment opens one that fits it

    def _cost(self, size: int) -> int:
        """Return what a new segment adds to `held_bytes`."""
        return size

    @property
    def _open_to_all(self) -> int:
        return self.capacity_bytes - self.capacity_bytes // RESERVE

    def _aim(self, *, reserve: bool = False) -> None:
        """Point the two quick appends at the live segment, or at a refusal where `put` must decide."""
        write = self._live().write
        refuse_all = self._full or self.closed or self._capacity is not None
        self.append = _refuse if refuse_all else write
        held = self.held_bytes() + self.family.others(self)
        in_reserve = reserve or held > self._open_to_all
        self._low_refused = in_reserve
        self.append_low = _refuse if refuse_all or in_reserve else write
        share = held / self.capacity_bytes
        if self._capacity is not None:
            share = max(share, self._held() / self._capacity)
        self.pressure = 1.0 if self._full else min(1.0, share)

    @property
    def under_pressure(self) -> bool:
        """Whether records of some level are being refused."""
        return self._refuses(low=True)

    def _refuses(self, low: bool) -> bool:
        return self._full or (low and self._low_refused) or self._at_capacity(low)

    def _at_capacity(self, low: bool) -> bool:
        """Whether there are as many records as `capacity` says: a limit of its own, whatever bytes are left."""
        if self._capacity is None:
            return False
        return self._held() >= (self._capacity - self._capacity // RESERVE if low else self._capacity)

    def _held(self) -> int:
        # Not `rows_waiting`: that counts blocked calls as well, which would then wait for each other.
        return sum(one._taken.value - one.rows_settled for one in self.family.buffers)  # noqa: SLF001 - one family

    def _turn_away(self, reason: str, level: int) -> bool:
        if self.has_fallback:
            raise RefusedError(reason, self)
        return self._drop(reason, level)

    def _drop(self, reason: str, level: int) -> bool:
        if self.dropping_since is None:
            self.dropping_since = time.time()
        self.drops.setdefault((reason, level), Tally()).add()
        return False

    def _wait_for_room(self, seconds: float, *, low: bool) -> bool:
        token: SimpleQueue[None] = SimpleQueue()

        def room() -> None:
            token.put(None)

        self._waiting_writers.append((low, room))
        if not self._refuses(low):  # room came between the look and the registration
            return True
        self._wake()
        try:
            token.get(timeout=seconds)
        except queue.Empty:
            self.forget(room)
            return False
        return True

    def forget(self, call: Callable[[], None]) -> None:
        """Take back what was to be called when there is room; in an outage those that gave up must not pile up."""
        for entry in list(self._waiting_writers):
            if entry[1] is call:
                try:
                    self._waiting_writers.remove(entry)
                except (ValueError, IndexError):
                    pass  # the listener has it in hand

    def when_room(self, call: Callable[[], None]) -> bool:
        """Return True if there is room; else keep `call` and call it once, from the listener, when there may be."""
        if not self._refuses(low=True):
            return True
        self._waiting_writers.append((True, call))
        return not self._refuses(low=True)

    def hasten(self) -> None:
        """Hear that a record of `flush_level` came."""

    # --- counts, any thread -------------------------------------------------------------------------------------

    def held_bytes(self) -> int:
        """Bytes that count against `capacity_bytes`: of all segments. Walks them: tens at most, when one is rolled."""
        return sum(segment.size for segment in self._chain())

    def waiting_bytes(self) -> int:
        """Bytes of frames that wait."""
        total = self._oldest.start - self._read
        for segment in self._chain():
            try:
                total += segment.end(segment.start)[0] - segment.start
            except ValueError:
                pass  # settled while we walked
        return max(0, total)

    def offered(self) -> int:
        """How many records were given a number."""
        return self._offered.value

    def dropped(self) -> dict[tuple[str, int], int]:
        """How many records were not taken in, by reason and level."""
        return {key: value for key, tally in list(self.drops.items()) if (value := tally.value)}

    def rows_waiting(self) -> int:
        """Records accepted and not settled, those inside their logging call included."""
        # Read first: a record is offered before it can go.
        gone = self.rows_settled + self.handed.value + sum(self.dropped().values())
        return self.offered() + self.own_rows - gone

    def _chain(self) -> Iterator[Segment]:
        segment: Segment | None = self._oldest
        while segment is not None:
            yield segment
            segment = segment.following.get(segment.number + 1)

    # --- the listener -------------------------------------------------------------------------------------------

    @property
    def settled(self) -> int:
        """The position up to which everything is settled."""
        return position(self._oldest.number, self._read)

    def tail(self) -> int:
        """The position behind the last frame."""
        while True:
            segment = self._live()
            try:
                seen = self._read if segment is self._oldest else segment.start
                return position(segment.number, segment.end(seen)[0])
            except ValueError:  # unmapped meanwhile: a later one is live, unless all were discarded
                if not segment.following:
                    return self.settled

    def take(self, batch_bytes: int, batch_size: int | None = None) -> Batch | None:
        """Return the oldest batch of at most `batch_bytes`, or None. It stays here until `settle`; listener only."""
        while True:
            segment = self._oldest
            batch, finished = self._rows_of(segment, batch_bytes, batch_size)
            if batch is not None:
                return batch
            if not finished or not segment.following:
                return None
            self._advance(segment)

    def _rows_of(self, segment: Segment, batch_bytes: int, batch_size: int | None) -> tuple[Batch | None, bool]:
        """Return the oldest batch of the oldest segment, and whether no other row can come into it."""
        end, finished = segment.end(self._read)
        if end <= self._read:
            return None, finished
        data = segment.map[self._read : self._batch_end(segment, end, batch_bytes)]
        if batch_size is not None:
            data = first_rows(data, batch_size)
        return Batch(position(segment.number, self._read), data, marked=self.own_rows > 0), finished

    def _batch_end(self, segment: Segment, end: int, batch_bytes: int) -> int:
        if end - self._read <= batch_bytes + batch_bytes // CRUMB:
            return end
        newline = segment.map.rfind(b"\n", self._read, self._read + batch_bytes)
        if newline < 0:  # one frame larger than a batch
            newline = segment.map.find(b"\n", self._read, end)
        return newline + 1

    def sample(self, count: int) -> list[bytes]:
        """Return about so many of the waiting frames, at random from all segments, and the newest; listener only."""
        spans = list(self._readable())
        frames = []
        for data, begin, end in spans:
            for _ in range(-(-count // len(spans))):
                start = data.rfind(b"\n", begin, random.randrange(begin, end)) + 1 or begin
                frames.append(data[start : data.find(b"\n", start, end) + 1])
        for data, begin, end in spans[-1:]:
            frames.append(data[data.rfind(b"\n", begin, end - 1) + 1 or begin : end])
        return list(dict.fromkeys(frames))

    def _readable(self) -> Iterator[tuple[mmap.mmap | bytes, int, int]]:
        """Yield (bytes, begin, end) of whole rows that wait, those of the oldest segment first."""
        for segment in self._chain():
            begin = self._read if segment is self._oldest else segment.start
            end = segment.end(begin)[0]
            if end > begin:
                yield segment.map, begin, end

    def settle(self, batch: Batch) -> None:
        """Forget a batch that is stored, dead or abandoned, and let waiting writers in. Listener only."""
        self._read = batch.end - position(self._oldest.number, 0)
        self.rows_settled += batch.rows
        end, finished = self._oldest.end(self._read)
        if finished and end <= self._read and self._oldest.following:
            self._advance(self._oldest)
        self.relieve()

    def _advance(self, segment: Segment) -> None:
        following = segment.following[segment.number + 1]
        # The offset first: between the two, another thread must not see more settled than is.
        self._read, self._oldest = following.start, following
        segment.drop()

    def relieve(self) -> None:
        """Open the quick appends again where there is room; each tick, so that a lost race heals itself."""
        if self._full or self._low_refused or self._waiting_writers or self.pressure > QUIET:
            # With what the next append would map: opened while it is still full, the next record would close it again
            # and wake us, and so on without a pause all through an outage.
            newest = self._live()
            least = self._cost(self._next_size(newest, 0)) if newest.sealed else 0
            held = self.held_bytes() + self.family.others(self) + least
            self._full = held > self.capacity_bytes
            self._aim(reserve=held > self._open_to_all)
            for low, call in in_turn(self._waiting_writers):
                if self._refuses(low):
                    self._waiting_writers.append((low, call))
                else:
                    call()

    def keep(self) -> None:
        """Leave out of `take` what will be there for the next process. At the end, any number of times."""

    def finish(self) -> tuple[int, bool]:
        """Close everything for good; return how many records are kept, and whether nothing is left of the stream."""
        self.discard()
        return 0, False

    def close(self) -> None:
        """Refuse every later record."""
        self.closed = True
        self._aim()

    def seal(self) -> bool:
        """Make an append fail that was decided before `close`; return whether one was possible."""
        newest = self._live()
        was_open = not newest.sealed
        newest.seal()
        return was_open

    def discard(self) -> None:
        """Unmap everything without reading it: in a forked child, or when the handler is done."""
        if self in self.family.buffers:
            self.family.buffers.remove(self)
        for segment in list(self._chain()):
            segment.map.close()


def in_turn(waiting: deque[_Waiting]) -> Iterator[_Waiting]:
    """Take out, one by one, what is in a deque now; its owners may take it back meanwhile."""
    for _ in range(len(waiting)):
        try:
            yield waiting.popleft()
        except IndexError:
            return


def _refuse(_frame: bytes) -> int:
    raise ValueError


def first_rows(data: bytes, count: int) -> bytes:
    """Return the first so many lines, or all if there are fewer."""
    at = -1
    for _ in range(count):
        following = data.find(b"\n", at + 1)
        if following < 0:
            return data
        at = following
    return data[: at + 1]
