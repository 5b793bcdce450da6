"""
A model of everything that can come between two lines: a journal on a disk that may crash, and a server.

One process at a time on one machine. It logs, rolls, seals, syncs, sends and settles; a signal handler or another thread
comes in before any line of any of these; the process is killed at any line; the machine loses its power; the next
process adopts what is left. After each step nothing may be stored twice, nothing that was never logged, no position may
have named two frames, and every accepted record must be stored, dead, waiting where it can be read, or among those that
the guarantee does not cover.

LOGSLUICE_MODEL_EXAMPLES: how many runs, 200 unless told.
"""

import contextlib
import itertools
import os
import random
from collections import Counter
from types import SimpleNamespace

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from logsluice import adoption, buffer, folder, journal, journal_buffer
from logsluice.adoption import Adopter
from logsluice.delivery import Failure
from logsluice.diagnostics import Diagnostics
from logsluice.journal import Header, UnfinishedError, UnreadableError, read_image
from logsluice.journal_buffer import JournalBuffer, JournalSegment
from support.disk import DiedError, Disk, MemoryFolder, RejectedError, Server, at_line

IN_CI = 200  # runs, about 10 s; at night 2,000
EXAMPLES = int(os.environ.get("LOGSLUICE_MODEL_EXAMPLES", IN_CI))
STEPS = 30  # of one run
SEGMENT = 1024  # bytes, header included: about five frames
BLOCK = 256  # bytes under one checksum
TRACED = {module.__file__ for module in (buffer, journal_buffer, adoption)}

lines = st.integers(0, 120)
seeds = st.integers(0, 2**32)


class Quiet(Diagnostics):
    def _write(self, text):
        pass


def id_of(row):
    return int(row.split(b" ", 1)[0])


class Journal(RuleBasedStateMachine):
    """One run. `buffers`: the class under test; a mutant is another."""

    buffer_class = JournalBuffer
    server_class = Server
    segment_class = JournalSegment
    happened = Counter()  # over all runs: that the model comes to where it means to

    def __init__(self):
        super().__init__()
        self.patch = pytest.MonkeyPatch()
        self.clock = SimpleNamespace(now=1000.0, time=lambda: 0.0)
        self.clock.monotonic = lambda: self.clock.now
        for module in (buffer, journal_buffer):
            self.patch.setattr(module, "time", self.clock)
        self.patch.setattr(buffer, "FIRST_SEGMENT", SEGMENT)
        self.patch.setattr(buffer, "LARGEST_SEGMENT", SEGMENT)
        self.patch.setattr(journal, "BLOCK", BLOCK)
        self.patch.setattr(journal_buffer, "JournalSegment", self.segment_class)
        chance = random.Random(1)
        self.patch.setattr(os, "urandom", lambda n: chance.randbytes(n))
        self.disk = Disk()
        self.server = self.server_class()
        self.ids, self.streams = itertools.count(1), itertools.count(1)
        self.frames = {}  # id -> row, of everything that was ever offered
        self.uncertain = set()  # ids: the process died inside of the call
        self.accepted = set()
        self.synced = set()  # ids that `sync` promised
        self.lost = set()  # ids that may be lost: in memory at a kill, not synced at a power cut
        self.refused = set()  # ids: dropped, and counted
        self.named = {}  # (stream, position) -> row
        self.orphans = []
        self.folder = None
        self.after_cut = 0  # bytes in the folder after the last power cut

    @initialize(fsync=st.sampled_from(["never", "always", 1.0]), tight=st.booleans())
    def begin(self, fsync, tight):
        self.fsync, self.limit = fsync, 16 * SEGMENT if tight else 2**20
        self.start()

    def begin_stream(self):
        return next(self.streams)

    def start(self):
        """A process begins."""
        self.folder = MemoryFolder(self.disk)
        self.disk.actor = "main"
        stream = self.begin_stream()
        header = Header(stream, 0, 0, self.disk.boot, "postgres", "l", {}, ("m",), mapped=True)
        self.header = header
        self.buffer = self.buffer_class(
            self.folder, header, journal_bytes=self.limit, memory_bytes=6 * SEGMENT, fsync=self.fsync,
            diagnostics=Quiet("model"),
        )  # fmt: skip
        self.adopter = Adopter(self.folder, header, {self.buffer.name}, Quiet("model"))
        self.orphans = []
        self.batch = None  # in flight
        self.mine = set()  # ids accepted by this buffer
        self.settled = 0
        self.held = self.buffer.append  # what a slow thread has in its hand

    def teardown(self):
        try:
            if self.folder is not None:
                self.all_is_stored_in_the_end()
        finally:
            Journal.happened.update(self.disk.happened)
            self.patch.undo()
            self.disk.close()

    # --- what a process does, each a call without arguments -------------------------------------------------------------

    def frame(self, size, *, bad=False):
        number = next(self.ids)
        row = b"%d %s\n" % (number, (b"bad" if bad else b"") + b"x" * size)
        self.frames[number] = row
        self.uncertain.add(number)
        return number, row

    def took(self, number, taken):
        self.uncertain.discard(number)
        if taken:
            self.accepted.add(number)
            self.mine.add(number)
        else:
            self.refused.add(number)

    def log(self, size=60, level=20, *, bad=False):
        number, row = self.frame(size, bad=bad)
        one = self.buffer
        one.next_seq()
        try:
            (one.append if level >= one.keep_level else one.append_low)(row)
            taken = True
        except ValueError:
            taken = one.put(row, level)
        self.took(number, taken)

    def burst(self):
        for _ in range(14):  # two or three segments
            self.log(200, 40)

    def roll(self):
        self.buffer._live().seal()
        self.log()

    def seal(self):
        self.buffer._live().seal()

    def tend(self):
        self.buffer.tend()

    def sync(self):
        before = set(self.mine)
        if self.buffer.sync() and self.fsync != "never":
            self.synced |= before

    def deliver(self, outcome="stored", batch_bytes=700, batch_size=None):
        one = self.buffer
        if self.batch is None:
            with contextlib.suppress(UnreadableError):
                self.batch = one.take(batch_bytes, batch_size)
            if self.batch is None:
                return
        if self.send(one.stream, self.batch, outcome):
            batch, self.batch = self.batch, None
            self.settled += batch.rows
            one.settle(batch)

    def send(self, stream, batch, outcome):
        """Whether it can be settled. `lost`: it was stored, and the answer did not come."""
        for at, row in batch.lines():
            if at not in batch.aside:
                assert self.named.setdefault((stream, at), row) == row, "a position named two frames"
        if outcome == "failed":
            return False
        try:
            self.server.write(stream, batch)
        except RejectedError as error:
            for at in error.args[0]:
                batch.aside[at] = Failure("bad")
            return self.send(stream, batch, outcome)
        return outcome == "stored"

    def drain(self):
        for _ in range(8):
            self.deliver()

    def stale(self):
        self.clock.now += 100.0
        self.buffer.roll_if_stale()

    def orphan(self):
        """Serve one batch of each orphan, and look for more."""
        for one in list(self.orphans):
            with contextlib.suppress(UnreadableError):
                batch = one.take(500)
                if batch is None:
                    one.remove()
                    one.discard()
                    self.orphans.remove(one)
                elif self.send(one.stream, batch, "stored"):
                    one.settle(batch)
        self.orphans += self.adopter.look({one.name for one in self.orphans})

    # --- rules ----------------------------------------------------------------------------------------------------------

    @rule(size=st.integers(0, 300), level=st.sampled_from([20, 40]), bad=st.integers(0, 9))
    def logs(self, size, level, bad):
        self.log(size, level, bad=not bad)

    @rule()
    def logs_much(self):
        self.burst()

    @rule(size=st.integers(900, 3000))
    def logs_something_larger_than_a_segment(self, size):
        self.log(size, 40)

    @rule()
    def a_thread_takes_the_append_in_its_hand(self):
        self.held = self.buffer.append

    @rule()
    def and_uses_it_now(self):
        number, row = self.frame(50)
        self.buffer.next_seq()
        try:
            self.held(row)
            taken = True
        except ValueError:
            taken = self.buffer.put(row, 40)
        self.took(number, taken)

    @rule(name=st.sampled_from(["seal", "roll", "tend", "sync", "drain", "stale", "orphan"]))
    def does(self, name):
        getattr(self, name)()

    @rule(
        outcome=st.sampled_from(["stored", "stored", "lost", "failed"]),
        batch_bytes=st.integers(1, 2000),
        batch_size=st.none() | st.integers(1, 5),
    )
    def delivers(self, outcome, batch_bytes, batch_size):
        self.deliver(outcome, batch_bytes, batch_size)

    @rule(seconds=st.sampled_from([0.6, 1.2, 70.0]))
    def time_goes_by(self, seconds):
        self.clock.now += seconds

    @rule()
    def the_disk_is_full_or_not(self):
        self.disk.full = not self.disk.full

    @rule()
    def the_disk_fails_to_sync_or_not(self):
        self.disk.failing_sync = not self.disk.failing_sync

    @rule(seed=seeds)
    def the_kernel_writes_some_pages(self, seed):
        self.disk.write_back(random.Random(seed))

    @rule(
        outer=st.sampled_from(["roll", "burst", "tend", "deliver", "drain", "sync", "stale", "seal"]),
        inner=st.sampled_from(["log", "burst", "roll", "tend", "deliver", "drain", "sync", "seal"]),
        line=lines,
        signal=st.booleans(),
    )
    def something_comes_in_between(self, outer, inner, line, signal):
        self.come_in_between(outer, inner, line, signal=signal)

    @rule(
        inside=st.sampled_from(
            ["put", "_publish", "_following", "_on_disk", "_make_file", "_take_spare", "_live", "_aim"]
        ),
        line=st.integers(0, 9),
        inner=st.sampled_from(["roll", "burst", "drain"]),
        signal=st.booleans(),
    )
    def two_roll_at_once(self, inside, line, inner, signal):
        self.come_in_between("roll", inner, line, inside, signal=signal)

    @rule(line=st.integers(0, 6), signal=st.booleans())
    def an_append_comes_in_a_step_of_sealing(self, line, signal):
        self.come_in_between("seal", "log", line, signal=signal)

    def come_in_between(self, outer, inner, line, inside=None, *, signal):
        """Before any line of one call the other happens, whole: a signal handler's, or another thread's."""
        one = self.buffer
        by_handler = signal and outer in {"roll", "burst", "seal", "sync"} and inner in {"log", "burst", "roll"}
        came = []

        def come_in():
            if not by_handler:
                needs = {
                    "tend": (one._tending, one._files, one._syncing),
                    "log": (),
                    "burst": (),
                    "roll": (),
                    "seal": (),
                }
                if any(lock._is_owned() for lock in needs.get(inner, (one._files, one._syncing))):
                    return  # it would wait there until the other is done
                if {outer, inner} <= {"deliver", "drain"}:
                    return  # there is one listener
                self.disk.actor = "other"
            try:
                came.append(1)
                getattr(self, inner)()
            finally:
                self.disk.actor = "main"

        with at_line(line, come_in, TRACED, inside):
            getattr(self, outer)()
        if came:
            self.disk.happened[f"{inner} inside of {outer}"] += 1

    @rule(
        what=st.sampled_from(["roll", "burst", "tend", "deliver", "drain", "sync", "stale", "orphan", "end"]),
        line=lines,
    )
    def it_is_killed_at_a_line(self, what, line):
        self.it_is_killed(what, line)

    def it_is_killed(self, what, line, page=None, power=None):
        """Before a line, or a page that is written, whichever comes first."""
        pages = itertools.count()

        def die():
            if not self.folder.dead:
                self.kill()
                raise DiedError

        def before_page():
            if next(pages) == page:
                die()

        self.disk.before_page = before_page
        try:
            with at_line(line, die, TRACED):
                getattr(self, what)()
        except DiedError:
            self.disk.happened[f"killed in {what}"] += 1
        self.disk.before_page = lambda: None
        if not self.folder.dead:
            self.kill()
        if power is not None:
            self.cut_power(power)
        self.start()

    @precondition(lambda self: self.fsync != "never")
    @rule(
        line=st.integers(0, 250),
        page=st.none() | st.integers(0, 6),
        then=st.sampled_from(["goes on", "is killed", "loses power"]),
        seed=seeds,
    )
    def a_sync_fails_and_what_it_was_for_is_written_anew(self, line, page, then, seed):
        self.log()
        self.sync()
        self.log()
        self.disk.failing_sync = True
        self.sync()
        self.disk.failing_sync = False
        self.clock.now += 2.0
        if then != "goes on":
            self.it_is_killed("rewrite", line, page, seed if then == "loses power" else None)
        else:
            self.rewrite()

    def rewrite(self):
        self.tend()
        self.sync()

    def kill(self):
        """What was in no file is gone with the process; everything else is still there."""
        for segment in self.buffer._journal_chain():
            if not segment.file and not segment.map.closed:
                data = segment.map[segment.start : segment.end(segment.start)[0]]
                self.lost |= {id_of(row) for row in data.splitlines() if row}
        self.lost |= self.uncertain
        self.folder.die()
        self.held = self.buffer = None

    @rule(seed=seeds)
    def the_power_goes(self, seed):
        self.cut(seed)

    def cut(self, seed):
        self.kill()
        self.cut_power(seed)
        self.start()

    def cut_power(self, seed):
        self.lost |= self.accepted - self.synced
        self.disk.cut_power(random.Random(seed))
        self.after_cut = self.used()  # a file that was unlinked may be there again

    def used(self):
        return sum(inode.size for inode in self.disk.names.values())

    def end(self):
        """An end in order: what waits stays in files, but for what the disk refuses."""
        one = self.buffer
        one.close()
        one.seal()
        one.keep()
        while (batch := one.take(10**6)) is not None:
            self.lost |= {id_of(row) for _, row in batch.lines()}  # in memory alone: counted as abandoned
            one.settle(batch)
        one.finish()

    # --- what must hold -------------------------------------------------------------------------------------------------

    def stored(self):
        return [id_of(row) for _, row in self.server.rows]

    def dead(self):
        """Ids of dead letters whose bytes are whole: of a damaged row they may be any."""
        return {
            number
            for _, row in self.server.dead
            if (number := whole(row)) in self.frames and row == self.frames[number]
        }

    @invariant()
    def what_is_given_up_was_not_stored(self):
        """A file in quarantine is counted as records that nobody stored."""
        ended = set(self.stored()) | self.dead()
        for name, inode in self.disk.names.items():
            if name.startswith(folder.QUARANTINE):
                with contextlib.suppress(UnfinishedError, UnreadableError):
                    assert not ids(read_image(inode.read(), self.disk.boot)) & ended, "given up, and stored"

    def visible(self):
        """Ids of all rows that somebody can read now: in memory, in files."""
        found = set()
        chain = []
        if self.buffer is not None:
            chain = list(self.buffer._journal_chain())
            for segment in chain:
                if not segment.map.closed:
                    data = segment.map[segment.start : segment.end(segment.start)[0]]
                    found |= {id_of(row) for row in data.splitlines()}
        for name, inode in self.disk.names.items():
            if name.endswith(".seg") and not name.startswith(folder.QUARANTINE):
                with contextlib.suppress(UnfinishedError, UnreadableError):
                    found |= ids(read_image(inode.read(), self.disk.boot))
        return found

    @invariant()
    def nothing_twice_and_nothing_that_was_never_logged(self):
        stored = self.stored()
        assert len(stored) == len(set(stored)), "stored twice"
        assert not set(stored) & self.dead(), "stored and dead"
        for _, row in self.server.rows:
            assert self.frames.get(id_of(row)) == row
        assert not set(stored) & self.refused, "stored, and counted as dropped"

    @invariant()
    def every_accepted_record_is_somewhere(self):
        if self.folder is None:
            return
        missing = self.accepted - set(self.stored()) - self.dead() - self.lost
        if missing:
            missing -= self.visible()
        assert not missing, f"accepted, and nowhere: {missing}"

    @invariant()
    def the_law_holds(self):
        if self.folder is None:
            return
        one = self.buffer
        dropped = sum(one.dropped().values())
        assert one.offered() == len(self.mine) + dropped
        assert one.rows_settled == self.settled
        assert one.rows_waiting() == len(self.mine) - self.settled
        assert one.offered() == self.settled + one.rows_waiting() + dropped
        assert not one.given_up
        chain = [segment.number for segment in one._journal_chain()]
        assert chain == list(range(chain[0], chain[0] + len(chain)))

    @invariant()
    def the_folder_keeps_to_its_bytes(self):
        if self.folder is not None:
            assert self.used() <= max(self.limit, self.after_cut)

    def all_is_stored_in_the_end(self):
        """The disk is well again, the process is killed, and the next one sends what is left."""
        self.disk.full = self.disk.failing_sync = False
        self.kill()
        self.start()
        for _ in range(400):
            self.orphan()
            if not self.orphans:
                break
        assert not self.orphans
        self.nothing_twice_and_nothing_that_was_never_logged()
        self.what_is_given_up_was_not_stored()
        missing = self.accepted - self.lost - set(self.stored()) - self.dead()
        assert not missing, f"never stored: {missing}"
        left = {name for name in self.disk.names if "/" in name and not name.startswith(self.buffer.name)}
        assert {name for name in left if not name.startswith(folder.QUARANTINE)} == set()


def ids(image):
    return {
        id_of(row) for span in image.spans if not span.damaged for row in image.data[span.begin : span.end].splitlines()
    }


def whole(row):
    try:
        return id_of(row)
    except ValueError:
        return None


def check(machine, examples, phases=(Phase.generate,)):
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=examples,
            stateful_step_count=STEPS,
            deadline=None,
            derandomize=examples <= IN_CI,  # in CI the same each time; a longer run looks elsewhere
            database=None,
            phases=phases,
            report_multiple_bugs=False,
            suppress_health_check=list(HealthCheck),
        ),
    )


def test_the_journal_keeps_its_promise_whatever_comes():
    Journal.happened.clear()
    check(Journal, EXAMPLES, [Phase.generate, Phase.shrink])
    happened = Journal.happened
    print(f"{EXAMPLES} runs:", ", ".join(f"{name} {count}" for name, count in sorted(happened.items())))
    assert happened["power cut"] > EXAMPLES / 2
    assert sum(count for name, count in happened.items() if name.startswith("killed in")) > EXAMPLES / 2
    assert sum(count for name, count in happened.items() if " inside of " in name) > EXAMPLES / 2
    assert min(happened[name] for name in ("disk full", "failed sync")) > 0


# --- the model bites ----------------------------------------------------------------------------------------------------


class SameNumbers(Journal):
    """Each process begins its stream's numbers anew, under the stream of the one before."""

    def begin_stream(self):
        return 1


class EndsWhereItWasSealed(JournalSegment):
    """Without the rule that data ends at the first NUL: an append between the steps of sealing is not seen."""

    def end(self, after):
        if self.final >= 0 or not self.sealed:
            return super().end(after)
        return self.sealed_at, True


class NoNul(Journal):
    segment_class = EndsWhereItWasSealed


class UnlinksWhatIsSent(JournalBuffer):
    """The file goes when its rows are taken, not when they are settled."""

    def take(self, batch_bytes, batch_size=None):
        batch = super().take(batch_bytes, batch_size)
        if batch is not None and self._oldest.following and self._oldest.file:
            self.folder.unlink(self._oldest.file)
        return batch


class UnlinkBeforeCommit(Journal):
    buffer_class = UnlinksWhatIsSent


class AsksAgain(JournalBuffer):
    """A failed fdatasync is tried again, and believed."""

    def _on_failed_sync(self, segment, error):
        pass


class BelievesSync(Journal):
    buffer_class = AsksAgain


class Forgets(Server):
    """Rows are stored, and no watermark moves."""

    def write(self, stream, batch):
        super().write(stream, batch)
        self.watermarks.clear()


class NoWatermark(Journal):
    server_class = Forgets


@pytest.mark.parametrize(
    ("mutant", "says"),
    [
        (SameNumbers, "named two frames|stored twice|nowhere|never stored"),
        (NoNul, "nowhere|never stored|rows_"),
        (UnlinkBeforeCommit, "nowhere|never stored|rows_"),
        (BelievesSync, "nowhere|never stored"),
        (NoWatermark, "stored twice"),
    ],
)
def test_a_mutant_is_found(mutant, says):
    with pytest.raises(AssertionError, match=says):
        check(mutant, IN_CI)
