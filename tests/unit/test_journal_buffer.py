"""
What journal_buffer.py adds to the buffer: files made, filled, sealed, read back and removed, on a real file system.

Frames carry ids of their own. What the disk refuses is refused by a subclass of Folder at chosen calls; the clock is a
test's own, so nothing waits for time to go by.
"""

import contextlib
import errno
import logging
import os
import re
import shutil
import signal
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from logsluice import buffer, journal, journal_buffer, journals
from logsluice.adoption import Adopter
from logsluice.buffer import position
from logsluice.config import PostgresSettings
from logsluice.diagnostics import Diagnostics
from logsluice.folder import Folder, boot_id
from logsluice.journal import Header, UnreadableError, acknowledged, file_size, read_header, read_image
from logsluice.journal_buffer import AGAIN, LINGERS, STALE, TRIES, JournalBuffer
from logsluice.listener import Listener
from logsluice.primitives import SimpleQueue
from support.buffers import LIMIT, MIB, Said, at_every_line, drain, header, law, log, run

SEGMENT = 4096  # bytes, in `small`


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """Segments of a page, so that everything rolls all the time."""
    monkeypatch.setattr(buffer, "FIRST_SEGMENT", SEGMENT)
    monkeypatch.setattr(buffer, "LARGEST_SEGMENT", SEGMENT)


@pytest.fixture
def clock(monkeypatch):
    """Time goes by when the test says so."""
    clock = SimpleNamespace(now=1000.0, time=time.time)
    clock.monotonic = lambda: clock.now
    monkeypatch.setattr(journal_buffer, "time", clock)
    monkeypatch.setattr(buffer, "time", clock)
    return clock


@pytest.fixture
def switching():
    """Threads are switched as often as Python can."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


class Disk(Folder):
    """A folder whose disk refuses what the test says: `refuses` is {method: error code}, `calls` counts all."""

    def __init__(self, path):
        super().__init__(str(path))
        self.refuses, self.calls, self.most = {}, {}, 0
        self.others = 0  # bytes that other processes hold in it
        self.synced = []  # (device's number of the file, whether it succeeded)

    def _called(self, name):
        self.calls[name] = self.calls.get(name, 0) + 1
        if (code := self.refuses.get(name)) is not None:
            raise OSError(code, os.strerror(code))

    def make(self, name, size):
        self._called("make")
        made = super().make(name, size)
        self.most = max(self.most, super().used())  # here it is largest, and nobody else can make one now
        return made

    def used(self):
        self._called("used")
        return super().used() + self.others

    def fill(self, descriptor, size):
        self._called("fill")
        super().fill(descriptor, size)

    def map(self, descriptor, size):
        self._called("map")
        return super().map(descriptor, size)

    def write(self, descriptor, data, at):
        self._called("write")
        super().write(descriptor, data, at)

    def read(self, descriptor, size):
        self._called("read")
        return super().read(descriptor, size)

    def sync(self, descriptor):
        inode = os.fstat(descriptor).st_ino
        self.synced.append(inode)
        self._called("sync")
        super().sync(descriptor)

    def sync_folder(self, name):
        self._called("sync_folder")
        super().sync_folder(name)

    def unlink(self, name):
        self._called("unlink")
        super().unlink(name)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "journal"


@pytest.fixture
def disk(path):
    return Disk(path)


@pytest.fixture
def make(disk):
    made = []

    def make(*, stream=0xABC, mapped=True, folder=None, **options):
        settings = {"journal_bytes": 64 * MIB, "memory_bytes": MIB, "fsync": "never", "diagnostics": Said()}
        one = JournalBuffer(folder or disk, header(stream, mapped=mapped), **{**settings, **options})
        made.append(one)
        return one

    yield make
    for one in made:
        with contextlib.suppress(OSError):
            one.discard()


def fill(buffer, segments, first=0):
    """Log until so many segments more were begun; the frames."""
    goal = buffer._live().number + segments
    frames = []
    while buffer._live().number < goal:
        frames.append(b"%d %s" % (first + len(frames), b"x" * 300))
        assert log(buffer, frames[-1] + b"\n")
    return frames


def files(path, stream=0xABC):
    """(number, size) of the stream's segments."""
    return sorted((int(one.name[:8], 16), one.stat().st_size) for one in path.glob(f"{stream:016x}/*.seg"))


def numbers(path, stream=0xABC):
    return [number for number, _ in files(path, stream)]


def rows_of(file, boot=None):
    image = read_image(file.read_bytes(), boot or boot_id())
    return [row for one in image.spans for row in image.data[one.begin : one.end].splitlines()], image


def mapped_files():
    """How many segments this process has mapped: the kernel's word."""
    return sum(".seg" in line for line in Path("/proc/self/maps").read_text().splitlines())


def adopt(path, boot=None):
    """What the next process finds: the frames of all streams that nobody owns, in order."""
    folder = Folder(str(path))
    wanted = header()
    if boot is not None:
        wanted = Header(**{**vars(wanted), "boot": boot})
    frames = []
    for orphan in Adopter(folder, wanted, set(), Said()).look(set()):
        while (batch := orphan.take(MIB)) is not None:
            assert not batch.aside
            frames += batch.data.splitlines()
            orphan.settle(batch)
        assert orphan.remove()
        orphan.discard()
    folder.close()
    return frames


# --- files are made, filled and removed ---------------------------------------------------------------------------------


def test_frames_are_in_the_file_when_the_call_returns(path, make):
    one = make()
    assert one.append.__name__ == "write"  # mmap's own: nothing of ours between the caller and the page cache
    log(one, b"a\n")
    (file,) = path.glob("*/*.seg")
    assert rows_of(file)[0] == [b"a"]
    assert file.stat().st_size == file_size(SEGMENT)
    assert one.held_bytes() == Folder(str(path)).used() == file_size(SEGMENT)


def test_segments_roll_and_are_removed_when_they_are_settled(path, make):
    one = make()
    frames = fill(one, 5)
    assert numbers(path) == [0, 1, 2, 3, 4, 5]
    assert drain(one) == frames
    assert numbers(path) == [5]
    law(one, len(frames))
    assert one.measure() == file_size(SEGMENT)


@pytest.mark.parametrize("size", [3000, SEGMENT - 1, SEGMENT, SEGMENT + 1, 100_000])
def test_a_frame_larger_than_a_segment_opens_one_that_fits(path, make, size):
    one = make()
    frames = [b"s" * 10, b"L" * size, b"t" * 10]
    for frame in frames:
        assert log(one, frame + b"\n")
    assert drain(one) == frames
    assert not one.dropped()


def test_a_positions_number_is_its_files(path, make):
    """`take` in small steps, over segments that are open, sealed and read back: each position once, in order."""
    one = make()
    frames = fill(one, 6)
    one.tend()
    places = []
    while (batch := one.take(700)) is not None:
        places += [(at, row) for at, row in batch.lines()]
        one.settle(batch)
        one.tend()
    assert [row[:-1] for _, row in places] == frames
    assert [at for at, _ in places] == sorted({at for at, _ in places})
    first = len(one._header(0, SEGMENT).encode())
    assert places[0][0] == position(0, first)
    assert {at >> 32 for at, _ in places} == set(range(7))


def test_what_is_settled_is_unlinked_and_what_is_not_stays(path, make):
    one = make()
    fill(one, 3)
    batch = one.take(1)
    one.settle(batch)
    assert numbers(path) == [0, 1, 2, 3]
    while (batch := one.take(MIB)).start < position(1, 0):
        one.settle(batch)
    assert numbers(path) == [1, 2, 3]


# --- the spare ----------------------------------------------------------------------------------------------------------


def test_a_program_that_never_filled_a_segment_has_no_spare(path, make):
    one = make()
    log(one, b"a\n")
    one.tend()
    assert numbers(path) == [0]


def test_the_second_segment_is_asked_for_when_the_first_is_filled_to_a_quarter(path, disk, make):
    asked = []
    one = make(hurry=lambda: asked.append(True))
    log(one, b"x" * (one._live().size // 8) + b"\n")
    one.settle(one.take(MIB))
    assert not asked
    log(one, b"x" * (one._live().size // 8) + b"\n")
    one.settle(one.take(MIB))
    assert asked
    one.tend()
    assert numbers(path) == [0, 1]
    disk.calls.clear()
    fill(one, 1)
    assert not disk.calls


def test_a_call_that_takes_a_spare_looks_at_the_folder_only_near_its_limit(disk, make):
    total = file_size(SEGMENT)
    one = make(journal_bytes=10 * total)  # eight are open to all
    fill(one, 4)
    one.tend()
    disk.calls.clear()
    fill(one, 1)
    assert not disk.calls
    one.tend()
    disk.others = 4 * total
    one._used = one.capacity_bytes  # what the keeper saw last
    while log(one, b"x" * 300 + b"\n"):
        pass
    assert disk.calls["used"]
    assert one.dropped() == {("journal_full", logging.INFO): 1}
    disk.others = 0
    one.relieve()
    fill(one, 1)


@pytest.mark.parametrize("fsync", ["never", "always"])
def test_a_spare_is_a_whole_segment_however_its_pages_were_made(path, disk, make, fsync):
    one = make(fsync=fsync)
    fill(one, 1)
    disk.calls.clear()
    one.tend()
    assert disk.calls.get("fill", 0) == (fsync == "never")  # else its zeros would be written to the device as well
    (spare,) = one._spares
    data = (path / spare.file).read_bytes()
    found, start = read_header(data)
    assert (found.segment, found.size, start) == (spare.number, spare.size, spare.start)
    assert data[start:] == bytes(file_size(spare.size) - start)
    assert spare.map[:] == data[: spare.size]


def test_a_disk_that_refuses_a_spares_pages_is_a_disk_that_refuses(path, disk, make):
    one = make()
    frames = fill(one, 1)
    disk.refuses["fill"] = errno.EIO
    one.tend()
    assert one.trouble
    assert numbers(path) == [0, 1]
    frames += fill(one, 1)
    assert drain(one)[: len(frames)] == frames


def test_what_is_read_back_is_not_searched_for_markers_where_there_are_none(make):
    one = make(mapped=False)
    fill(one, 3)
    one.tend()
    one.settle(one.take(MIB))
    batch = one.take(MIB)
    assert one._image is not None
    assert not batch.marked
    one.own_rows = 1
    assert one.take(MIB).marked


def test_the_next_segment_is_made_ahead_and_taken_without_the_disk(path, disk, make):
    one = make()
    fill(one, 1)
    one.tend()
    assert numbers(path) == [0, 1, 2]
    disk.calls.clear()
    fill(one, 1)
    assert not disk.calls
    assert one._live().number == 2
    one.tend()
    assert numbers(path) == [0, 1, 2, 3]
    one.tend()
    assert disk.calls["make"] == 1


def test_a_spare_that_is_too_small_or_too_late_is_removed(path, make):
    one = make()
    fill(one, 1)
    one.tend()
    assert log(one, b"L" * 50_000 + b"\n")
    assert [size for number, size in files(path) if number == 2] == [file_size(one._live().size)]
    one.tend()
    spare = one._spares[0]
    one._spares.clear()
    fill(one, 1)  # somebody took it, and then came too late
    one._spares.append(spare)
    one.tend()
    assert numbers(path) == [0, 1, 2, 3, 4]
    assert [one.number for one in one._spares] == [4]
    assert len(drain(one)) == one.offered()


def test_spares_count_and_none_is_made_where_only_the_reserve_is_left(path, disk, make):
    total = file_size(SEGMENT)
    one = make(journal_bytes=10 * total)  # eight are open to all
    fill(one, 6)
    one.tend()
    assert numbers(path) == [0, 1, 2, 3, 4, 5, 6, 7]
    fill(one, 1)
    one.tend()
    assert numbers(path) == [0, 1, 2, 3, 4, 5, 6, 7]
    assert disk.most == 8 * total


# --- waiting: checksums, no map -----------------------------------------------------------------------------------------


def test_at_most_three_are_mapped_and_all_that_wait_have_checksums(path, make):
    before = mapped_files()
    one = make()
    frames = fill(one, 30)
    assert mapped_files() - before == 31
    one.tend()
    assert mapped_files() - before == 3  # the oldest, which is being read, the newest, and the spare
    found, counted = [], 0
    for file in sorted(path.glob("*/*.seg"))[:-1]:
        rows, image = rows_of(file)
        found += rows
        counted += 0 if image.sealed else len(rows)
        assert image.sealed is (0 < image.header.segment < 30)
    assert found == frames
    assert sum(segment.rows for segment in one._journal_chain()) == len(frames) - counted
    assert drain(one, 1000) == frames
    law(one, len(frames))
    assert mapped_files() - before == 2


def test_an_oldest_segment_that_waits_gets_checksums_too(path, clock, make):
    """In an outage with one sealed segment: it is the oldest, and lingers."""
    one = make()
    fill(one, 1)
    one.tend()
    assert not rows_of(sorted(path.glob("*/*.seg"))[0])[1].sealed  # a healthy one is unlinked long before
    assert one.tend_again() == LINGERS
    clock.now += LINGERS + 0.1
    one.tend()
    assert rows_of(sorted(path.glob("*/*.seg"))[0])[1].sealed
    assert one.tend_again() is None
    assert not one._oldest.map.closed  # it is read where it is
    assert len(drain(one)) == one.offered()


def test_a_segment_read_back_with_a_damaged_block_sets_its_rows_aside(path, monkeypatch, make):
    monkeypatch.setattr(journal, "BLOCK", 1024)
    one = make()
    frames = fill(one, 3)
    one.tend()
    file = next(path.glob("*/00000001-*.seg"))
    data = bytearray(file.read_bytes())
    data[1500] ^= 1
    file.write_bytes(data)
    good, dead = [], 0
    while (batch := one.take(MIB)) is not None:
        if batch.aside:
            dead += len(batch.aside)
            assert len(batch.aside) == batch.rows
        else:
            good += batch.data.splitlines()
        one.settle(batch)
    assert len(good) + dead == len(frames)
    assert [frame for frame in frames if frame in good] == good
    assert 3 <= dead <= 6  # 1 KiB of rows of about 300 bytes, and those that reach in
    law(one, len(frames))


def test_what_waits_is_counted_in_rows_and_markers_are_not_records(make):
    one = make(mapped=False)
    assert one.count(b"1\tx\n-2\ty\n3\t-\n") == 2
    assert one.count(b"-1\n") == 0
    assert make(stream=2).count(b"-1\n") == 1  # a table of the user's own has no markers


# --- journal_bytes ------------------------------------------------------------------------------------------------------


def test_the_folder_never_exceeds_its_bytes_with_eight_threads_and_two_buffers(path, switching, make):
    limit = 40 * file_size(SEGMENT) + 1000
    folders = [Disk(path), Disk(path)]  # as of two processes: they meet at the flock
    buffers = [make(stream=n, folder=folders[n - 1], journal_bytes=limit) for n in (1, 2)]
    most, refused = [0], [dict.fromkeys(("low", "high"), 0) for _ in range(8)]
    watcher, over = Folder(str(path)), threading.Event()

    def watch():
        while not over.is_set():
            most[0] = max(most[0], watcher.used())
            for one in buffers:
                one.tend()

    def write(me):
        one = buffers[me % 2]
        for n in range(400):
            level = "low" if n % 2 else "high"
            if not log(one, b"%d %d %s\n" % (me, n, b"x" * 300), logging.INFO if level == "low" else logging.ERROR):
                refused[me][level] += 1

    thread = threading.Thread(target=watch)
    thread.start()
    run(*(lambda me=me: write(me) for me in range(8)))
    over.set()
    thread.join(LIMIT)
    print(f"at most {max(most[0], *(one.most for one in folders))} of {limit} bytes")
    assert 0.8 * limit < max(one.most for one in folders) <= limit
    assert most[0] <= limit
    stored = 0
    for n, one in enumerate(buffers):
        mine = [refused[me] for me in range(8) if me % 2 == n]
        drops = one.dropped()
        assert {reason for reason, _ in drops} <= {"journal_full"}
        assert drops.get(("journal_full", logging.INFO), 0) == sum(each["low"] for each in mine)
        assert drops.get(("journal_full", logging.ERROR), 0) == sum(each["high"] for each in mine)
        got = drain(one)
        assert len(got) == len(set(got)) == 1600 - sum(drops.values())
        law(one, len(got))
        stored += len(got)
    assert sum(sum(each.values()) for each in refused) > 500
    assert stored > 300


def test_low_levels_are_dropped_first_and_all_are_taken_again_when_there_is_room(path, make):
    one = make(journal_bytes=20 * file_size(SEGMENT))
    low = 0
    while log(one, b"low %s\n" % (b"x" * 300)):
        low += 1
    assert len(files(path)) == 16
    high = 0
    while log(one, b"high %s\n" % (b"x" * 300), logging.ERROR):
        high += 1
    assert len(files(path)) == 20
    assert one.dropped() == {("journal_full", logging.INFO): 1, ("journal_full", logging.ERROR): 1}
    assert one.pressure == 1.0
    assert len(drain(one)) == low + high
    one.relieve()
    assert log(one, b"low\n")
    assert one.pressure < 0.2
    law(one, low + high)


def test_room_made_by_another_process_is_found(path, make):
    limit = 16 * file_size(SEGMENT)
    mine, other = make(stream=1, journal_bytes=limit), make(stream=2, folder=Disk(path), journal_bytes=limit)
    frames = fill(other, 10)
    while log(mine, b"x" * 300 + b"\n", logging.ERROR):
        pass
    mine.relieve()
    assert not log(mine, b"x" * 300 + b"\n", logging.ERROR)
    assert drain(other) == frames
    mine.relieve()  # each tick of the listener
    assert log(mine, b"x" * 300 + b"\n", logging.ERROR)


def test_the_quarantine_and_other_files_count(path, make):
    one = make(journal_bytes=16 * file_size(SEGMENT))
    (path / "note").write_bytes(bytes(10 * file_size(SEGMENT)))
    while log(one, b"x" * 300 + b"\n", logging.ERROR):
        pass
    assert len(files(path)) == 6


# --- the disk refuses ---------------------------------------------------------------------------------------------------

CODES = [errno.ENOSPC, errno.EROFS, errno.EIO, errno.EDQUOT]


@pytest.mark.parametrize("code", CODES)
@pytest.mark.parametrize("method", ["make", "map", "sync_folder"])
def test_records_go_on_in_memory_and_are_written_down_when_the_disk_takes_them(path, disk, clock, make, method, code):
    one = make(fsync="always")
    frames = fill(one, 1)
    disk.refuses[method] = code
    frames += fill(one, 2, 1000)
    assert one.trouble == os.strerror(code)
    assert numbers(path) == [0, 1]  # nothing half made is left
    assert not one.sync()  # what is in memory is not durable, and nobody is told so
    lines = one._diagnostics.lines
    assert len([line for line in lines if "takes no new file" in line]) == 1
    asked = disk.calls[method]
    frames += fill(one, 3, 2000)
    assert disk.calls[method] == asked  # not with each record
    clock.now += AGAIN + 0.1
    one.tend()
    if method == "make":  # frames are written down without a map; before their name is on the device, they are nothing
        assert numbers(path) == [0, 1]
    assert not one.sync()
    disk.refuses.clear()
    clock.now += AGAIN + 0.1
    one.tend()
    assert numbers(path)[:6] == [0, 1, 2, 3, 4, 5]
    frames += fill(one, 1, 3000)
    one.tend()
    assert one.sync()
    assert one.trouble is None
    in_files = [row for file in sorted(path.glob("*/*.seg")) for row in rows_of(file)[0]]
    assert in_files == frames
    assert not one.dropped()
    assert drain(one) == frames
    law(one, len(frames))


@pytest.mark.parametrize("code", CODES)
def test_a_disk_that_refuses_from_the_first_record_on(path, disk, clock, make, code):
    disk.refuses["make"] = code
    one = make()
    frames = fill(one, 2)
    assert files(path) == []
    assert drain(one) == frames
    disk.refuses.clear()
    frames = fill(one, 1, 100)
    clock.now += AGAIN + 0.1
    one.tend()
    frames += fill(one, 1, 200)
    one.tend()
    one.discard()
    assert adopt(path)[-len(frames) :] == frames


def test_memory_is_bounded_while_the_disk_refuses(disk, clock, make):
    one = make(memory_bytes=4 * SEGMENT)
    disk.refuses["make"] = errno.ENOSPC
    taken = 0
    while log(one, b"x" * 300 + b"\n", logging.ERROR):
        taken += 1
    assert sum(segment.size for segment in one._journal_chain() if not segment.file) == 4 * SEGMENT
    assert one.dropped() == {("full", logging.ERROR): 1}
    one.relieve()
    assert not log(one, b"x" * 300 + b"\n", logging.ERROR)
    assert len(drain(one)) == taken
    one.relieve()
    clock.now += AGAIN + 0.1
    one.relieve()
    disk.refuses.clear()
    assert log(one, b"x" * 300 + b"\n", logging.ERROR)
    law(one, taken)


def test_a_write_down_that_fails_half_way_leaves_the_frames_in_memory(path, disk, clock, make):
    one = make(fsync="always")
    disk.refuses["make"] = errno.EIO
    frames = fill(one, 3)
    for method in ("write", "sync", "sync_folder"):
        disk.refuses = {method: errno.EIO}
        clock.now += AGAIN + 0.1
        one.tend()
        assert not one.sync()
        assert 1 not in numbers(path) or method == "sync_folder"
    disk.refuses.clear()
    clock.now += AGAIN + 0.1
    one.tend()
    assert numbers(path)[:3] == [0, 1, 2]
    assert drain(one) == frames


def test_a_busy_folder_does_not_hold_a_logging_call(path, make, monkeypatch):
    monkeypatch.setattr(journal_buffer, "WAIT", 0.01)
    one = make()
    with Folder(str(path)).exclusive(1):
        began = time.monotonic()
        frames = fill(one, 5)
        assert time.monotonic() - began < LIMIT / 3
    assert numbers(path) == [0]
    assert "another process holds" in one.trouble
    assert drain(one) == frames


# --- a failed fdatasync -------------------------------------------------------------------------------------------------


def test_a_file_whose_fdatasync_failed_is_written_anew_and_never_synced_again(path, disk, make):
    one = make(fsync="always")
    frames = [b"a", b"b"]
    for frame in frames:
        log(one, frame + b"\n")
    assert one.sync()
    log(one, b"c\n")
    bad = next(path.glob("*/00000000-*.seg")).stat().st_ino
    disk.refuses["sync"] = errno.EIO
    assert not one.sync()
    assert one.sync_failures == 1
    assert disk.synced[-1] == bad
    disk.refuses.clear()
    disk.synced.clear()
    assert log(one, b"d\n")
    assert one._live().number == 1  # nothing more is written into it
    assert not one.sync()  # the next fdatasync succeeds, and says nothing of what was lost
    one.tend()
    (file,) = path.glob("*/00000000-*.seg")
    assert file.stat().st_ino != bad
    assert rows_of(file)[0] == [b"a", b"b", b"c"]
    assert one.sync()
    assert bad not in disk.synced
    assert file.stat().st_ino in disk.synced
    assert numbers(path) == [0, 1, 2]
    assert drain(one) == [b"a", b"b", b"c", b"d"]


@pytest.mark.parametrize("random", [b"\0\0\0\0", b"\xff\xff\xff\xff"])
@pytest.mark.parametrize("moment", ["write", "sync", "sync_folder", "unlink"])
def test_a_kill_while_a_file_is_written_anew_loses_nothing(tmp_path, path, disk, make, monkeypatch, moment, random):
    """The folder as it was in the middle: whichever of two files comes first by its name, all is sent, once."""
    one = make(fsync="always")
    frames = [b"%d %s" % (n, b"x" * 100) for n in range(20)]
    for frame in frames:
        log(one, frame + b"\n")
    disk.refuses["sync"] = errno.EIO
    assert not one.sync()
    disk.refuses.clear()
    monkeypatch.setattr(os, "urandom", lambda _n: random)
    copies = []
    real = getattr(disk, moment)

    def in_the_middle(*args):
        if moment == "write" and not copies:
            descriptor, data, at = args
            real(descriptor, data[:1000], at)
        if not copies:
            copies.append(shutil.copytree(path, tmp_path / "copy"))
        real(*args)

    monkeypatch.setattr(disk, moment, in_the_middle)
    one.tend()
    one._live().seal()
    drain(one)
    assert copies
    assert adopt(copies[0]) == frames
    assert list(copies[0].glob("quarantine/*")) == []


def test_calls_that_wait_for_the_same_fdatasync_share_it(disk, make):
    one = make(fsync="always")
    log(one, b"a\n")
    entered, go = threading.Event(), threading.Event()
    real = disk.sync

    def slow(descriptor):
        entered.set()
        assert go.wait(LIMIT)
        real(descriptor)

    disk.sync = slow
    results = []
    first = threading.Thread(target=lambda: results.append(one.sync()))
    first.start()
    assert entered.wait(LIMIT)
    others = []
    for n in range(5):
        log(one, b"%d\n" % n)
        others.append(threading.Thread(target=lambda: results.append(one.sync())))
        others[-1].start()
    go.set()
    for thread in [first, *others]:
        thread.join(LIMIT)
    assert results == [True] * 6
    assert len(disk.synced) == 2


def test_fsync_in_seconds_is_done_by_tend_and_only_when_there_is_something(disk, make):
    one = make(fsync=1.0)
    log(one, b"a\n")
    assert one.synced < one.tail()
    one.tend()
    assert one.synced == one.tail()
    done = len(disk.synced)
    one.tend()
    assert len(disk.synced) == done


# --- somebody else in the folder ----------------------------------------------------------------------------------------


def test_a_removed_file_is_written_anew(path, make):
    one = make()
    frames = fill(one, 2)
    for file in path.glob("*/*.seg"):
        file.unlink()
    one.watch()
    assert one._live().number == 3  # the live one was sealed
    frames.append(b"next")
    assert log(one, b"next\n")
    one.tend()
    assert numbers(path)[:4] == [0, 1, 2, 3]
    assert [row for file in sorted(path.glob("*/*.seg")) for row in rows_of(file)[0]] == frames
    assert any("removed" in line for line in one._diagnostics.lines)
    assert drain(one) == frames


def test_a_file_that_is_removed_while_it_gets_its_checksums_is_written_anew(path, make, monkeypatch):
    """The keeper unmapped it afterwards: the frames were nowhere else any more."""
    one = make()
    frames = fill(one, 3)
    real = journal_buffer.trailer

    def trailer(*given, **options):
        monkeypatch.undo()
        for file in path.glob("*/*.seg"):
            file.unlink()
        one.watch()  # the listener's
        return real(*given, **options)

    monkeypatch.setattr(journal_buffer, "trailer", trailer)
    one.tend()
    one.tend()
    assert drain(one) == frames
    assert not one.given_up


def test_a_sample_is_taken_while_the_keeper_unmaps_what_waits(path, make):
    """The listener was given maps, and read them after they were closed: "internal error"."""
    one = make()
    frames = fill(one, 3)
    real = one._readable

    def keeper():
        if one._files.acquire(blocking=False):
            one.tend()
            one._files.release()

    def readable():
        yield from real()
        run(keeper)

    one._readable = readable
    assert set(one.sample(50)) <= {frame + b"\n" for frame in frames}


def test_a_removed_folder_is_made_again(path, make):
    one = make()
    log(one, b"a\n")
    shutil.rmtree(path)
    one.tend()
    assert log(one, b"b\n")
    assert numbers(path) == [0, 1, 2]
    one.discard()
    assert adopt(path) == [b"a", b"b"]


def test_a_hint_is_never_written_into_another_file(path, tmp_path, disk, make):
    """The owner's file is opened anew, and its old number was the program's next file for a moment."""
    buffer = make(hints=True)
    log(buffer, b"one\n")
    batch = buffer.take(MIB)
    real, victims = disk.own, []

    def own(name):
        victims.extend(os.open(tmp_path / "victim", os.O_RDWR | os.O_CREAT) for _ in range(8))
        buffer.settle(batch)  # the listener's
        return real(name)

    disk.own = own
    shutil.rmtree(path)
    while not victims:
        log(buffer, b"x" * 1000 + b"\n")
    for victim in victims:
        os.close(victim)
    assert (tmp_path / "victim").read_bytes() == b""
    settled = buffer.settled
    assert (path / f"{0xABC:016x}" / "owner").read_bytes() in {acknowledged(0xABC, at) for at in (0, settled)}


def test_a_removed_and_unmapped_file_is_given_up_and_counted(path, make):
    one = make()
    frames = fill(one, 4)
    one.tend()
    file = next(path.glob("*/00000002-*.seg"))
    lost = len(rows_of(file)[0])
    file.unlink()
    got = drain(one)
    assert len(got) == len(frames) - lost
    assert one.given_up == {"journal_lost": lost}
    law(one, len(got), lost)


@pytest.mark.parametrize("cut", [0, 100, 1000, 2000, SEGMENT - 100])
def test_a_truncated_file_is_read_up_to_where_it_ends(path, make, cut):
    """Without a map: a touch behind its end would be SIGBUS, and the process gone."""
    one = make()
    frames = fill(one, 1)
    file = next(path.glob("*/00000001-*.seg"))
    live = [b"live %d %s" % (n, b"y" * 100) for n in range(20)]
    first = len(one._header(1, SEGMENT).encode())
    at = first + len(rows_of(file)[0][0]) + 1
    for frame in live:
        log(one, frame + b"\n")
    os.truncate(file, cut)
    one.watch()
    assert one.truncated == 1
    assert one._oldest.following[1].map.closed
    expected = frames[:-1]
    if at <= cut:
        expected.append(frames[-1])
    for frame in live:
        at += len(frame) + 1
        if at <= cut:
            expected.append(frame)
    assert log(one, b"next\n")
    got = []
    for _ in range(TRIES + 1):
        with contextlib.suppress(UnreadableError):
            drain(one, into=got)
    assert got == [*expected, b"next"]
    assert any(f"truncated a file of the journal {path} to {cut} bytes" in line for line in one._diagnostics.lines)
    # How many stood behind nobody can say: they stay among those that wait.
    assert one.rows_waiting() == len(frames) + len(live) + 1 - len(got)


def test_a_segment_that_cannot_be_read_is_quarantined_the_third_time(path, disk, make):
    one = make()
    frames = fill(one, 4)
    one.tend()
    file = next(path.glob("*/00000001-*.seg"))
    data = bytearray(file.read_bytes())
    data[5] ^= 1
    file.write_bytes(data)
    before = rows_of(next(path.glob("*/00000000-*.seg")))[0]
    got = []
    failures = 0
    for _ in range(5):
        try:
            drain(one, into=got)
        except UnreadableError:
            failures += 1
            assert got == before
    assert failures == TRIES - 1
    lost = len(frames) - len(got)
    assert one.given_up == {"quarantined": lost}
    assert lost > 5
    assert one.quarantined == 1
    law(one, len(got), lost)
    (kept,) = path.glob("quarantine/*")
    assert kept.read_bytes() == data
    assert one.measure() == Folder(str(path)).used()


def test_a_disk_that_gives_nothing_for_a_while_loses_nothing(path, disk, make):
    one = make()
    frames = fill(one, 4)
    one.tend()
    got = []
    disk.refuses["read"] = errno.EIO
    for _ in range(TRIES - 1):
        with pytest.raises(UnreadableError, match="Input/output error"):
            got += drain(one)
    disk.refuses.clear()
    waiting = drain(one)
    assert waiting == frames[-len(waiting) :]
    law(one, len(frames))


# --- the end ------------------------------------------------------------------------------------------------------------


def test_at_the_end_nothing_waits_and_the_folder_goes(path, make):
    one = make()
    fill(one, 3)
    one.tend()
    drain(one)
    one.close()
    one.seal()
    one.keep()
    assert one.finish() == (0, True)
    assert list(path.glob("*/*")) == []
    assert one.folder.streams() == []


def test_what_waits_at_the_end_stays_in_files_for_the_next_process(path, make):
    one = make()
    frames = fill(one, 4)
    one.tend()
    batch = one.take(1000)
    one.settle(batch)
    one.close()
    one.seal()
    one.keep()
    assert one.take(MIB) is None
    kept, gone = one.finish()
    assert (kept, gone) == (len(frames) - batch.rows, False)
    law(one, len(frames))
    got = adopt(path)
    assert got == frames  # those sent before are known by the watermark
    assert list(path.glob("*/*")) == []


def test_what_memory_holds_at_the_end_is_written_down(path, disk, make):
    one = make()
    disk.refuses["make"] = errno.ENOSPC
    frames = fill(one, 3)
    disk.refuses.clear()
    one.close()
    one.seal()
    one.keep()
    assert one.take(MIB) is None
    assert one.finish() == (len(frames), False)
    assert adopt(path) == frames


def test_what_memory_holds_at_the_end_and_the_disk_refuses_is_taken_still(path, disk, make):
    one = make()
    frames = fill(one, 1)
    disk.refuses["make"] = errno.ENOSPC
    frames += fill(one, 2, 100)
    first = [row for file in sorted(path.glob("*/*.seg")) for row in rows_of(file)[0]]
    one.close()
    one.seal()
    one.keep()
    got = drain(one)
    assert first + got == frames
    assert len(got) > 10
    kept, gone = one.finish()
    assert kept == len(first)
    assert not gone
    law(one, len(got) + kept)
    disk.refuses.clear()
    assert adopt(path) == first


def test_a_forked_child_lets_go_and_touches_nothing(path, make):
    one = make()
    frames = fill(one, 3)
    one.tend()
    before = {file.name: file.read_bytes() for file in path.rglob("*") if file.is_file()}
    one.discard()
    one.discard()
    assert {file.name: file.read_bytes() for file in path.rglob("*") if file.is_file()} == before
    assert mapped_files() == 0
    assert adopt(path) == frames


@pytest.mark.parametrize("tended", [False, True])
def test_a_segment_of_stored_frames_is_rolled_after_a_minute(path, clock, make, tended):
    """Stored text leaves the disk."""
    one = make()
    log(one, b"secret\n")
    assert drain(one) == [b"secret"]
    clock.now += STALE / 2
    one.roll_if_stale()
    assert numbers(path) == [0]
    assert b"secret" in next(path.glob("*/*.seg")).read_bytes()
    clock.now += STALE
    one.roll_if_stale()
    assert numbers(path) == [1]
    assert b"secret" not in next(path.glob("*/*.seg")).read_bytes()
    clock.now += 3 * STALE
    one.roll_if_stale()
    assert numbers(path) == [1]  # an empty one stays
    log(one, b"next\n")
    one.roll_if_stale()
    assert drain(one) == [b"next"]  # what was not stored is not touched by it
    assert one.rows_waiting() == 0


# --- in any line --------------------------------------------------------------------------------------------------------

FOLDER_STEPS = ("exclusive", "_lock_file", "make", "own", "used", "_open", "root")


def test_a_record_logged_inside_any_line_of_the_slow_path_is_kept(make):
    one = make()
    inner, outer = [], []

    def call(i):
        if i % 5 == 0:  # with one at each line all rolls would be the inner ones'
            inner.append(b"inner %d" % len(inner))
            log(one, inner[-1] + b"\n")

    with at_every_line(call, also=FOLDER_STEPS) as lines:
        for n in range(100):
            outer.append(b"outer %d %s" % (n, b"x" * 400))
            log(one, outer[-1] + b"\n")
    assert len({line.split(":")[0] for line in lines} & {"_on_disk", "_publish", "exclusive", "make", "used"}) == 5
    assert not one.dropped()
    frames = drain(one)
    assert [frame for frame in frames if frame.startswith(b"outer")] == outer
    assert [frame for frame in frames if frame.startswith(b"inner")] == inner
    law(one, len(outer) + len(inner))


@pytest.mark.parametrize("state", ["plain", "spare", "full disk", "tight"])
def test_segments_rolled_inside_any_line_of_the_slow_path(path, tmp_path, make, state):
    """A signal handler logs three segments full in the middle of a roll; whatever it is that the roll finds."""
    total = file_size(SEGMENT)

    def attempt(only):
        where = tmp_path / f"{only}"
        disk = Disk(where)
        limit = 10 * total if state == "tight" else 64 * MIB
        one = make(folder=disk, journal_bytes=limit)
        frames = fill(one, 7 if state == "tight" else 1)
        if state == "spare":
            one.tend()
        if state == "full disk":
            disk.refuses["make"] = errno.ENOSPC
        taken, most = list(frames), [0]

        def meanwhile(i):
            for n in range(30):
                frame = b"inner %d %s" % (n, b"y" * 400)
                if log(one, frame + b"\n", logging.ERROR):
                    taken.append(frame)
            most[0] = max(most[0], disk.used())

        for n in range(25):
            frame = b"outer %d %s" % (n, b"x" * 400)
            with at_every_line(meanwhile, only, FOLDER_STEPS) as lines:
                if log(one, frame + b"\n", logging.ERROR):
                    taken.append(frame)
            most[0] = max(most[0], disk.used())
            if lines:
                break
        assert lines
        assert max(most[0], disk.most) <= limit, (only, lines[only])
        chain = [segment.number for segment in one._journal_chain()]
        assert chain == list(range(len(chain)))
        in_files = numbers(where)
        assert len(in_files) == len(set(in_files)), lines[only]  # the loser's file is gone
        got = drain(one)
        assert sorted(got) == sorted(taken), lines[only]
        law(one, len(taken))
        one.discard()
        return lines

    steps = attempt(only=-1)
    assert len(set(steps)) > 15
    for i in sorted({line: n for n, line in reversed(list(enumerate(steps)))}.values()):  # each line's first time
        attempt(i)


def test_a_signal_handler_that_logs_while_files_are_made(path, make):
    one = make(journal_bytes=256 * MIB)
    inner, depth = [0], [0]

    def handler(_number, _frame):
        if depth[0] < 2:  # on a busy machine each handler may be interrupted by the next, and so on
            depth[0] += 1
            mine, inner[0] = inner[0], inner[0] + 1
            log(one, b"inner %d\n" % mine)
            depth[0] -= 1

    got = []
    before = signal.signal(signal.SIGALRM, handler)
    outer = 0
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.0003, 0.0003)
        deadline = time.monotonic() + LIMIT
        while inner[0] < 300 and time.monotonic() < deadline:
            log(one, b"outer %d %s\n" % (outer, b"x" * 1500))  # every second frame rolls
            outer += 1
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    got = drain(one)
    assert inner[0] >= 300
    assert [int(f.split()[1]) for f in got if f.startswith(b"outer")] == list(range(outer))
    assert sorted(int(f.split()[1]) for f in got if f.startswith(b"inner")) == list(range(inner[0]))
    assert not one.dropped()
    law(one, outer + inner[0])


def test_two_threads_roll_at_once_and_one_file_wins(path, make):
    one = make()
    frames = fill(one, 1)
    made, both = [], threading.Barrier(2)
    real = one._on_disk

    def on_disk(number, size, limit):
        segment = real(number, size, limit)
        made.append(segment.file)
        both.wait(LIMIT)  # each has made its own before either publishes
        return segment

    one._on_disk = on_disk
    one._live().seal()
    frames += [b"one", b"two"]
    run(lambda: log(one, b"one\n"), lambda: log(one, b"two\n"))
    assert len(made) == 2
    assert numbers(path) == [0, 1, 2]
    assert one._live().file in made
    assert sorted(drain(one)) == sorted(frames)
    law(one, len(frames))


def test_many_threads_a_keeper_and_a_listener(path, switching, make):
    """All at once for real: nothing lost, nothing doubled, each thread's order kept, no file left."""
    one = make(journal_bytes=512 * MIB)
    threads, each = 4, 1500
    over, frames, places = threading.Event(), [], []

    def tend():
        while not over.is_set():
            one.tend()

    def listen():
        while True:
            last = over.is_set()
            while (batch := one.take(3000)) is not None:
                places.extend(at for at, _ in batch.lines())
                frames.extend(batch.data.splitlines())
                one.settle(batch)
            one.watch()
            if last:
                return

    def write(me):
        for n in range(each):
            log(one, b"%d %d %s\n" % (me, n, b"x" * (n % 200)))

    chores = [threading.Thread(target=tend), threading.Thread(target=listen)]
    for thread in chores:
        thread.start()
    run(*(lambda me=me: write(me) for me in range(threads)))
    over.set()
    for thread in chores:
        thread.join(LIMIT)
        assert not thread.is_alive()
    by_thread = {me: [] for me in range(threads)}
    for frame in frames:
        me, n, fill = frame.split(b" ")
        assert len(fill) == int(n) % 200
        by_thread[int(me)].append(int(n))
    assert all(found == list(range(each)) for found in by_thread.values())
    assert places == sorted(set(places))
    assert not one.dropped()
    assert len(files(path)) <= 2
    law(one, threads * each)


# --- orphans ------------------------------------------------------------------------------------------------------------


def orphan(path, stream, frames, **changes):
    """What a process that was killed leaves."""
    one = JournalBuffer(
        Folder(str(path)),
        Header(**{**vars(header(stream)), **changes}),
        journal_bytes=64 * MIB,
        memory_bytes=MIB,
        fsync="never",
        diagnostics=Said(),
    )
    for frame in frames:
        log(one, frame + b"\n")
    one.discard()


@pytest.mark.parametrize("method", ["read", "open", "files", "take_over"])
def test_an_orphan_whose_file_cannot_be_read_now_is_adopted_later_and_keeps_none_waiting(
    path, disk, monkeypatch, method
):
    for stream in (1, 2, 3):
        orphan(path, stream, [b"of %d" % stream])
    adopter = Adopter(disk, header(), set(), Said())
    real, failed = getattr(Disk, method), []

    def refuse(self, *args):
        if not failed:
            failed.append(args)
            raise OSError(errno.EIO, "Input/output error")
        return real(self, *args)

    monkeypatch.setattr(Disk, method, refuse)
    first = adopter.look(set())
    assert failed
    assert {one.stream for one in first} in ({2, 3}, {1, 2, 3})
    second = adopter.look({one.name for one in first})
    assert {one.stream for one in first + second} == {1, 2, 3}  # its flock was not kept by whoever failed
    for one in first + second:
        assert one.take(MIB).data == b"of %d\n" % one.stream
        one.discard()


def test_an_orphan_of_another_target_is_left_and_said(path, disk):
    orphan(path, 1, [b"a"], target={"host": "elsewhere"})
    orphan(path, 2, [b"b"])
    said = Said()
    adopter = Adopter(disk, header(), set(), said)
    found = adopter.look(set())
    assert [one.stream for one in found] == [2]
    assert adopter.left == {f"{1:016x}": "host 'elsewhere', not 'db'"}
    assert len(said.lines) == 1
    assert Folder(str(path)).take_over(f"{1:016x}") is not None  # let go of
    assert adopter.look({found[0].name}) == []
    assert len(said.lines) == 1


@pytest.mark.parametrize("wrong", ["target", "error"])
def test_a_child_that_is_forked_during_the_look_does_not_hold_what_is_left(path, disk, monkeypatch, wrong):
    """The lock is of the open file, which a child has, too: nobody could adopt the stream for as long as it lived."""
    orphan(path, 1, [b"a"], target={"host": "elsewhere"})
    take_over, children = disk.take_over, []

    def forked(name):
        owner = take_over(name)
        children.append(os.dup(owner))  # as a fork does
        if wrong == "error":
            disk.refuses["read"] = errno.EIO
        return owner

    monkeypatch.setattr(disk, "take_over", forked)
    assert Adopter(disk, header(), set(), Said()).look(set()) == []
    assert Folder(str(path)).take_over(f"{1:016x}") is not None
    os.close(*children)


@pytest.mark.parametrize("who", ["handler", "command"])
def test_a_child_that_is_forked_meanwhile_does_not_hold_what_was_adopted_and_not_sent(path, disk, who):
    """As above: a child that no hook renews, or that was forked before the listener knew of the orphan."""
    orphan(path, 1, [b"a"])
    name = f"{1:016x}"
    if who == "command":
        with journals.taken(disk, name) as found:
            child = os.dup(found._owner)  # as a fork does
    else:
        (found,) = Adopter(disk, header(), set(), Said()).look(set())
        child = os.dup(found._owner)
        listener = Listener(SimpleQueue(), PostgresSettings(), Diagnostics("test"))
        listener.adopted.append(SimpleNamespace(buffer=found))
        listener.drain_here()
    assert Folder(str(path)).take_over(name) is not None
    os.close(child)


def test_stats_are_asked_for_while_an_orphan_is_sent(path, disk):
    """Its files were counted while the listener took one off: RuntimeError, in the program that asked."""
    orphan(path, 1, [b"a"])
    (found,) = Adopter(disk, header(), set(), Said()).look(set())
    found._files *= 3
    before = found.waiting_bytes()
    with at_every_line(lambda _line: found._files.rotate(), also={"<genexpr>"}):
        assert found.waiting_bytes() == before
    found.discard()


def test_two_files_of_one_number_that_both_hold_rows(path, disk):
    """It cannot be; if it is, the second is not sent below the watermark and lost: it is kept apart, and counted."""
    orphan(path, 1, [b"a", b"b"])
    (file,) = path.glob("*/*.seg")
    file.with_name("00000000-ffffffff.seg").write_bytes(file.read_bytes().replace(b"a\nb\n", b"c\nd\n"))
    (found,) = Adopter(disk, header(), set(), Said()).look(set())
    batch = found.take(MIB)
    found.settle(batch)
    assert found.take(MIB) is None
    assert batch.rows + found.given_up["quarantined"] == 4
    assert len(list(path.glob("quarantine/*"))) == 1
    found.discard()


def test_a_file_that_was_never_published_is_removed(path, disk):
    orphan(path, 1, [b"a"])
    folder = path / f"{1:016x}"
    (folder / "00000001-00000001.seg").write_bytes(bytes(file_size(SEGMENT)))
    (folder / "00000001-00000002.seg").write_bytes(b"")
    (found,) = Adopter(disk, header(), set(), Said()).look(set())
    batch = found.take(MIB)
    assert batch.data == b"a\n"
    found.settle(batch)
    assert found.take(MIB) is None
    assert not found.given_up
    assert found.remove()
    assert not folder.exists()
    found.discard()


def test_an_orphans_segment_that_never_reads_is_quarantined_and_the_others_are_sent(path, disk):
    one = JournalBuffer(disk, header(1), journal_bytes=64 * MIB, memory_bytes=MIB, fsync="never", diagnostics=Said())
    frames = fill(one, 3)
    one.discard()
    bad = next(path.glob("*/00000001-*.seg"))
    lost = len(rows_of(bad)[0])
    data = bytearray(bad.read_bytes())
    data[30] ^= 1
    bad.write_bytes(data)
    (found,) = Adopter(Folder(str(path)), header(), set(), Said()).look(set())
    got = []
    while (batch := found.take(1000)) is not None:
        got += batch.data.splitlines()
        found.settle(batch)
    assert len(got) + lost == len(frames)
    assert found.given_up == {"quarantined": lost}
    assert next(path.glob("quarantine/*")).read_bytes() == data
    found.discard()


def test_more_than_one_look_adopts_nobody_twice(path, disk):
    orphan(path, 1, [b"a"])
    adopter = Adopter(disk, header(), set(), Said())
    found = adopter.look(set())
    assert len(found) == 1
    assert Adopter(Folder(str(path)), header(), set(), Said()).look(set()) == []
    assert adopter.look({found[0].name}) == []
    found[0].discard()


def resident(folder):
    """{name of a segment's file: KiB of it in this process's memory}, as Linux counts."""
    found, name = {}, None
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if match := re.search(rf"{re.escape(str(folder))}\S*/([0-9a-f-]+\.seg)", line):
            name = match[1]
        elif line.startswith("Rss:") and name is not None:
            found[name], name = int(line.split()[1]), None
    return found


@pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="Linux's account of memory")
def test_segments_that_wait_for_their_checksums_are_not_in_memory(make, disk):
    """The keeper is slower than a program that logs as fast as it can: what is sealed gives its pages back before."""
    one = make()
    frames = fill(one, 6)
    assert sum(kib > 0 for kib in resident(disk.path).values()) == 7
    one._breathe()
    held = [kib > 0 for _, kib in sorted(resident(disk.path).items())]
    assert held == [True, *[False] * 5, True]  # the oldest is being read, the last is written to
    assert drain(one) == frames
    law(one, len(frames))


def test_what_is_in_memory_alone_keeps_its_pages(make, disk):
    """A disk that refuses: these pages are nowhere else, and to give them back would be to forget them."""
    one = make()
    disk.refuses["make"] = errno.ENOSPC
    frames = fill(one, 3)
    assert sum(not segment.file for segment in one._journal_chain()) >= 3
    one._breathe()
    del disk.refuses["make"]
    one._write_down_all()  # now they have files, but their maps are still the old ones
    one._breathe()
    assert drain(one) == frames
    law(one, len(frames))
