"""
The rules on top of buffer.py, one test a rule, over a buffer in memory, one in files, and what an orphan left.

What is special to one kind of buffer, and storms of threads, are in tests/unit/test_buffer.py, test_journal_buffer.py.
"""

import contextlib
import itertools
import logging
import sys
import threading
from collections import Counter
from dataclasses import replace

import pytest

from logsluice import buffer as module
from logsluice.adoption import OrphanBuffer
from logsluice.buffer import Buffer, Family, Tally
from logsluice.folder import Folder, boot_id
from logsluice.journal import Span, file_size
from logsluice.journal_buffer import JournalBuffer
from support.buffers import MIB, Said, at_every_line, drain, header, law, log, log_inside, numbers
from support.tables import numbered, rule_number, rule_text, shown, table

SEGMENT = 4096  # bytes: a page, so that everything rolls all the time
ROOM = 20  # segments of a small capacity: its fifth is a whole number of them


@pytest.fixture(autouse=True)
def small(monkeypatch):
    monkeypatch.setattr(module, "FIRST_SEGMENT", SEGMENT)
    monkeypatch.setattr(module, "LARGEST_SEGMENT", SEGMENT)


class Memory:
    """Where buffers are made that share a limit, as far as the rules ask. `broken`: what breaks one of them, mixed in."""

    kind = Buffer
    segment = SEGMENT  # bytes that one costs
    stays = 1  # segments when all is settled: the one that is written to

    def __init__(self, path, broken=None):
        self.broken, self.made, self.family = broken, [], Family()

    def made_of(self, kind):
        return type(self.broken.__name__, (self.broken, kind), {}) if self.broken else kind

    def make(self, segments=1000, **options):
        """A buffer; all of one place together hold at most so many segments."""
        capacity = segments * self.segment
        made = self.made_of(Buffer)(stream=1, capacity_bytes=capacity, family=self.family, **options)
        self.made.append(made)
        return made

    def reader(self, buffer):
        """What the listener reads: the buffer itself."""
        return buffer

    def held(self):
        """Bytes, counted without the buffers' own sums."""
        return sum(one.size for buffer in self.made for one in buffer._chain() if not one.map.closed)

    def close(self):
        for one in self.made:
            with contextlib.suppress(OSError):
                one.discard()


class Journal(Memory):
    kind = JournalBuffer
    segment = file_size(SEGMENT)

    def __init__(self, path, broken=None):
        super().__init__(path, broken)
        self.folder = Folder(str(path / "journal"))

    def make(self, segments=1000, **options):
        made = self.made_of(JournalBuffer)(
            self.folder, header(len(self.made) + 1), journal_bytes=segments * self.segment, memory_bytes=MIB,
            fsync="never", diagnostics=Said(), **options,
        )  # fmt: skip
        self.made.append(made)
        return made

    def held(self):
        return self.folder.used()

    def close(self):
        super().close()
        self.folder.close()


class Orphan(Journal):
    """The next process's, after the buffer's own has died."""

    kind = OrphanBuffer
    stays = 0

    def made_of(self, kind):
        return super().made_of(kind) if kind is OrphanBuffer else kind

    def reader(self, buffer):
        buffer.discard()  # what a death leaves: files as they are, none sealed
        owner = self.folder.take_over(buffer.name)
        assert owner is not None
        self.made.append(self.made_of(OrphanBuffer)(self.folder, buffer.name, owner, buffer.header, boot_id()))
        return self.made[-1]


def fill(buffer, segments):
    """Roll so many times; the frames."""
    frames = []
    goal = buffer._live().number + segments
    while buffer._live().number < goal:
        frames.append(b"fill %d %s" % (len(frames), b"x" * 700))
        assert log(buffer, frames[-1] + b"\n")
    return frames


# --- the rules ----------------------------------------------------------------------------------------------------------


def rule_1(place):
    """An append is one C call; what is logged in the middle of anything is appended as well."""
    one = place.make()
    if getattr(sys, "_is_gil_enabled", lambda: True)():
        assert one.append == one.append_low == one._live().map.write
    inner, _ = log_inside(one, 60, 400, every=5)  # with one at each line all rolls would be the inner ones'
    assert inner > 20


def rule_2(place):
    """Data ends at the first NUL: in a segment sealed early, in a full one, and with an append while it was sealed."""
    one = place.make()
    expected = [b"a", b"b" * (_left(one) - 3)]
    for frame in expected:
        assert log(one, frame + b"\n")
    assert not _left(one)  # no NUL in it
    expected += fill(one, 2)  # their ends have no room for another frame
    assert _left(one)
    slipped = []

    def slip_in(_i):
        with contextlib.suppress(ValueError):
            one.append(b"slipped in %d\n" % len(slipped))
            slipped.append(b"slipped in %d" % len(slipped))
            one.next_seq()

    with at_every_line(slip_in):
        one._live().seal()
    assert len(slipped) > 2  # before and after the end was told
    expected += slipped
    expected.append(b"next")
    assert log(one, b"next\n")
    assert drain(place.reader(one)) == expected


def _left(buffer):
    segment = buffer._live()
    return segment.size - segment.map.tell()


def rule_3(place):
    """A full segment raises ValueError, and only then the next is published, as often as it takes."""
    one = place.make()
    frame = b"x" * 999 + b"\n"
    one.next_seq()
    assert one.put(frame, logging.INFO)  # there is room: nothing rolls
    assert numbers(one) == [0]
    expected = [frame[:-1]]
    while _left(one) >= len(frame):
        one.append(frame)
        one.next_seq()
        expected.append(frame[:-1])
    with pytest.raises(ValueError, match="out of range"):
        one.append(frame)
    assert numbers(one) == [0]
    one.next_seq()
    assert one.put(frame, logging.INFO)
    assert numbers(one) == [0, 1]
    stale = one._live()
    stale.seal()
    assert one._publish(stale, 10, low=False)  # another thread's, with room for its own frame only
    large = b"L" * 9999
    assert log(one, large + b"\n")
    assert numbers(one) == [0, 1, 2, 3]
    assert drain(one) == [*expected, frame[:-1], large]
    law(one, len(expected) + 2)


def rule_4(place):
    """Of two that publish at once one wins, both use its segment, and the other's is thrown away."""
    one = place.make()
    assert log(one, b"first\n")
    first, held, real, losers = one._live(), place.held(), one._following, []
    first.seal()
    first.seal()

    def following(segment, least, *, low):
        del one._following
        losers.append(real(segment, least, low=low))
        assert log(one, b"came in between\n")  # before the other has published
        return losers[0]

    one._following = following
    assert log(one, b"outer\n")
    assert numbers(one) == [0, 1]
    assert place.held() == held + place.segment
    assert losers[0].map.closed
    assert drain(one) == [b"first", b"came in between", b"outer"]
    law(one, 3)


def rule_5(place):
    """A writer that slept through whole segments reaches the live one, and publishes no number again."""
    one = place.make()
    stale, append = one._live(), one.append
    frames = fill(one, 5)
    assert drain(one) == frames
    with pytest.raises(ValueError, match=r"out of range|closed"):
        append(b"late\n")
    stale.seal()
    assert one._publish(stale, 100, low=False)
    one._newest = stale
    assert log(one, b"late\n")
    assert one._live().number == 5
    assert drain(one) == [b"late"]
    assert numbers(one) == [5]
    law(one, len(frames) + 1)


def rule_6(place):
    """A segment goes when it is sealed and read and, where somebody still writes, has a successor; not sooner."""
    one = place.make()
    frames = fill(one, 3)
    reader = place.reader(one)
    batch = reader.take(1)
    assert place.held() == 4 * place.segment
    reader.settle(batch)
    assert place.held() == 4 * place.segment
    assert [batch.data[:-1], *drain(reader)] == frames
    assert place.held() == place.stays * place.segment
    if not place.stays:
        return
    last = one._live()
    last.seal()
    assert one.take(MIB) is None
    assert not last.map.closed  # no successor: the next append hangs one on it
    assert log(one, b"next\n")
    assert drain(one) == [b"next"]
    assert last.map.closed
    assert place.held() == place.segment


def rule_7(place):
    """Buffers that share a capacity never exceed it, and low levels leave the last fifth of it to the others."""
    both = [place.make(ROOM), place.make(ROOM)]
    capacity = ROOM * place.segment
    taken, held = Counter(), {}
    for level in (logging.INFO, logging.WARNING):
        while any([_counted(one, level, taken) for one in both]):
            assert place.held() <= capacity
        held[level] = place.held()
    assert held == {logging.INFO: capacity - capacity // 5, logging.WARNING: capacity}
    assert all({level for _, level in one.dropped()} == set(held) for one in both)
    for one in both:
        assert len(drain(one)) == taken[one]
        law(one, taken[one])
    place.family = Family()  # those above do not count records
    other = place.make(capacity=100)
    assert [sum(log(other, b"x\n", level) for _ in range(150)) for level in held] == [80, 20]


def _counted(buffer, level, taken):
    fits = log(buffer, b"x" * 399 + b"\n", level)
    taken[buffer] += fits
    return fits


def rule_8(place):
    """What is not taken in is counted by reason and level."""
    one = place.make(ROOM)
    expected, taken = Counter(), 0
    levels = [logging.DEBUG, logging.INFO, logging.WARNING, logging.ERROR]
    for n in range(600):
        fits = log(one, b"x" * 399 + b"\n", levels[n % 4])
        taken += fits
        expected[one.full_reason, levels[n % 4]] += not fits
    assert all(expected[one.full_reason, level] for level in levels)
    one.next_seq()
    one.lost()
    expected["error", logging.NOTSET] += 1
    one.next_seq()
    one.drop("error", logging.ERROR)
    expected["error", logging.ERROR] += 1
    one.close()
    assert not any(log(one, b"late\n", level) for level in levels)
    expected.update({("closed", level): 1 for level in levels})
    assert one.dropped() == expected
    assert len(drain(one)) == taken
    law(one, taken)


# --- what breaks them ---------------------------------------------------------------------------------------------------


class Locks:
    """Rule 1: a lock, which who comes in between would wait for; here it is turned away, so that the test ends."""

    def __init__(self, *args, **options):
        self._busy = threading.Lock()
        super().__init__(*args, **options)

    def put(self, frame, level, *, own=False):
        if not self._busy.acquire(blocking=False):
            return self._drop("busy", level)
        try:
            return super().put(frame, level, own=own)
        finally:
            self._busy.release()


class Reuses:
    """Rule 2: a segment is used again, and not zeroed."""

    def _first(self, size):
        return self._used_before(super()._first(size))

    def _following(self, segment, least, *, low):
        return self._used_before(super()._following(segment, least, low=low))

    def _used_before(self, segment):
        if segment is None:
            return None
        begin = segment.map.tell()
        segment.map[begin : segment.size] = b"x" * (segment.size - begin)
        return segment


class Reads:
    """Rule 2, of an orphan: a segment is read to its end."""

    def _read_back(self, number, file):
        image = super()._read_back(number, file)
        return replace(image, spans=[Span(image.start, image.header.size)])


class Rolls:
    """Rule 3: before it is full."""

    def put(self, frame, level, *, own=False):
        self._live().seal()
        return super().put(frame, level, own=own)


class Overwrites:
    """Rule 4: the last that publishes wins."""

    def _first(self, size):
        return self._last_wins(super()._first(size))

    def _following(self, segment, least, *, low):
        return self._last_wins(super()._following(segment, least, low=low))

    def _last_wins(self, segment):
        if segment is not None:
            segment.following = LastWins()
        return segment


class LastWins(dict):
    def setdefault(self, key, value):
        self[key] = value
        return value


class Forgets:
    """Rule 5: a segment that is settled no longer knows which came after it."""

    def _advance(self, segment):
        super()._advance(segment)
        segment.following.clear()


class Hastens:
    """Rule 6: a segment goes with the first of its batches."""

    def settle(self, batch):
        super().settle(batch)
        if isinstance(self, OrphanBuffer):
            self.folder.unlink(self._files[0][1])
        elif self._oldest.sealed:
            self._oldest.drop()


class Fills:
    """Rule 7: there is no reserve."""

    @property
    def _open_to_all(self):
        return self.capacity_bytes


class Exceeds:
    """Rule 7: each of a family has the capacity for itself alone."""

    def __init__(self, *args, family=None, **options):
        super().__init__(*args, **options)


class Blurs:
    """Rule 8: drops are counted, and not by level."""

    def _drop(self, reason, level):
        self.drops.setdefault((reason, logging.NOTSET), Tally()).add()
        return False


RULES = (rule_1, rule_2, rule_3, rule_4, rule_5, rule_6, rule_7, rule_8)
PLACES = {"memory": Memory, "journal": Journal, "orphan": Orphan}
APPENDS = "nobody appends to it"
# Why a rule does not apply.
FREE = {
    ("orphan", rule_1): APPENDS,
    ("orphan", rule_3): APPENDS,
    ("orphan", rule_4): "nothing is sealed or published",
    ("orphan", rule_5): APPENDS,
    ("orphan", rule_7): "it makes no segments; the journal's limit counts its files",
    ("orphan", rule_8): "it takes nothing in, so drops nothing",
}
BREAKS = {
    rule_1: (Locks,), rule_2: (Reuses, Reads), rule_3: (Rolls,), rule_4: (Overwrites,), rule_5: (Forgets,),
    rule_6: (Hastens,), rule_7: (Fills, Exceeds), rule_8: (Blurs,),
}  # fmt: skip
CASES = {
    f"{rule.__name__}-{kind}": (rule, kind)
    for rule, kind in itertools.product(RULES, PLACES)
    if (kind, rule) not in FREE
}


def breaks(rule, kind):
    """What breaks a rule in buffers of a kind."""
    others = {"memory": (Reads,), "journal": (Reads, Exceeds), "orphan": (Reuses,)}[kind]
    return [one for one in BREAKS[rule] if one not in others]


@contextlib.contextmanager
def place_of(kind, path, broken=None):
    place = PLACES[kind](path, broken)
    try:
        yield place
    finally:
        place.close()


@pytest.mark.parametrize(("rule", "kind"), CASES.values(), ids=CASES)
def test_buffer(rule, kind, tmp_path):
    with place_of(kind, tmp_path) as place:
        rule(place)


BROKEN = {f"{case}-{one.__name__}": (*CASES[case], one) for case in CASES for one in breaks(*CASES[case])}


@pytest.mark.parametrize(("rule", "kind", "broken"), BROKEN.values(), ids=BROKEN)
def test_a_buffer_that_breaks_a_rule_is_found(rule, kind, broken, tmp_path):
    with place_of(kind, tmp_path, broken) as place, pytest.raises(AssertionError):
        rule(place)


def test_each_rule_is_broken_in_each_kind_that_it_applies_to():
    assert {(rule, kind) for rule, kind, _ in BROKEN.values()} == set(CASES.values())


def test_the_page_shows_each_rule_and_each_buffer():
    """docs/explanation/conformance.md."""
    cells = {(kind, rule): f"`test_buffer[{case}]`" for case, (rule, kind) in CASES.items()} | FREE
    lines = [
        [rule_text(rule), *(cells[kind, rule] for kind in PLACES),
         "; ".join(f"`{one.__name__}`: {one.__doc__.partition(': ')[2].removesuffix('.')}" for one in BREAKS[rule])]
        for rule in RULES
    ]  # fmt: skip
    heads = ["rule", *(f"{kind}: `{place.kind.__name__}`" for kind, place in PLACES.items()), "a buffer that is found"]
    assert shown("explanation/conformance.md", "buffers") == table(heads, lines)
    assert [rule_number(rule) for rule in RULES] == numbered(module.__doc__)
