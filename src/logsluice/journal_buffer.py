"""
The journal's buffer: buffer.py's rules over segments that are files, so that what was appended outlives the process.

The append is the same `mmap.write`, into the page cache. What else a disk can do is kept away from logging calls:

- A segment is preallocated, so its pages have their places before the first record. `tend` makes the next one ahead of
  need; a call makes one itself only when it comes too early, and waits at most `WAIT` for others.
- Segments that must wait are unmapped and get checksums (`tend`); they are read back one at a time, without a map.
- While the disk refuses (full, read-only, gone, too slow) records go on in memory, up to `capacity_bytes`, and are
  written down when it lets us: accepted, and not durable meanwhile. That is said.
- A file whose fdatasync failed is not trusted again: its frames are written into another one under the same number.

`journal_bytes` bounds the folder exactly, all processes, orphans, spares and the quarantine together: a file is made
behind a lock, and only after all files were counted. Past it records are dropped, counted as "journal_full".

Locks, none of them on the way of an append: `_files` guards what a segment's file is (the listener reads, `tend`
moves); `_tending` lets one thread at a time do the chores; `_syncing` makes a group of the calls that wait for the same
fdatasync.
"""

from __future__ import annotations

import itertools
import mmap
import os
import time
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING

from logsluice import buffer, crashpoints
from logsluice.buffer import QUICK, QUIET, Buffer, Segment, position
from logsluice.journal import (
    BLOCK,
    MOST_HINT,
    PIECE,
    Header,
    Image,
    UnreadableError,
    acknowledged,
    file_size,
    read_image,
    trailer,
)
from logsluice.primitives import Done, RLock

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Any

    from logsluice.buffer import Batch
    from logsluice.diagnostics import Diagnostics
    from logsluice.folder import Folder

# Seconds a logging call waits for the folder. Its lock is held for 0.2 ms; on a busy machine until its holder has its
# turn (0.3 s were seen, and cost a child that ended at once all it had logged). Longer is a disk in trouble.
WAIT = 2.0
AGAIN = 1.0  # seconds until the disk is asked again after it refused: each record asking would be the next trouble
LINGERS = 1.0  # seconds after which a sealed segment counts as waiting: a healthy one is unlinked long before
STALE = 60.0  # seconds after which a segment whose frames are all stored is rolled: stored text leaves the disk
# Seconds that a thread of ours sleeps between two pieces of work that hold the GIL. Who only lets go of it for a moment
# takes it back before who waits for it has woken, and that one waits for another 5 ms.
BREATH = 0.0001
UNFINISHED = ".new"  # ends the name of a file that another process must not read
TRIES = 3  # of reading a segment, before it is moved to the quarantine


class JournalSegment(Segment):
    """A segment whose map is a file's, or, while the disk refuses, memory with the same bytes."""

    __slots__ = ("descriptor", "distrusted", "file", "final", "folder", "quick", "rests", "rows", "tries")

    def __init__(
        self,
        header: Header,
        folder: Folder,
        mapped: mmap.mmap,
        file: str = "",
        descriptor: int = -1,
        *,
        written: bool = False,
    ) -> None:
        first = header.encode()
        if written:
            mapped.seek(len(first))
        else:
            mapped.write(first)
        super().__init__(header.segment, header.size, mapped)
        self.folder = folder
        self.file = file  # its name below the folder; "": in memory
        self.descriptor = descriptor  # -1: closed, to be opened by its name
        self.distrusted = False  # an fdatasync failed: what is on the disk may be anything
        self.final = -1  # where the data ends, once that is written in its trailer
        self.rows = 0  # records in it, counted then
        self.tries = 0  # failed reads
        self.quick = False  # it came soon after the one before: the next one should be larger
        # Its pages were given back, or must not be: what is in memory alone is nowhere else.
        self.rests = not file

    @property
    def sealed(self) -> bool:
        """Whether no append can succeed."""
        return self.map.closed or super().sealed

    def end(self, after: int) -> tuple[int, bool]:
        """Return where the data ends, and whether that is final."""
        return (self.final, True) if self.final >= 0 else super().end(after)

    def rest(self) -> None:
        """Give the pages of a sealed segment back: the kernel has them, of a file, and they come again when read."""
        if not self.rests:
            try:
                if self.sealed:
                    self.map.madvise(mmap.MADV_DONTNEED)
                    self.rests = True
            except ValueError:
                pass  # unmapped meanwhile

    def let_go(self) -> None:
        """Unmap and close, and leave the file where it is."""
        self.map.close()
        descriptor, self.descriptor = self.descriptor, -1
        if descriptor >= 0:
            self.folder.close_file(descriptor)

    def drop(self) -> None:
        """Unmap, close and unlink: never published, or settled."""
        self.let_go()
        if self.file:
            try:
                self.folder.unlink(self.file)
            except OSError:
                pass  # read-only by now: it is sent again by whoever adopts it, and known by the watermark


class JournalBuffer(Buffer):
    """The segments of one stream in a folder. `journal_bytes` bounds that, `memory_bytes` what the disk refused."""

    def __init__(
        self,
        folder: Folder,
        header: Header,
        *,
        journal_bytes: int,
        memory_bytes: int,
        fsync: str | float,
        diagnostics: Diagnostics,
        hints: bool = False,
        hurry: Callable[[], None] = lambda: None,
        **options: Any,
    ) -> None:
        self.folder = folder
        self.header = header
        self.name = f"{header.stream:016x}"
        self.memory_bytes = memory_bytes
        self.fsync = fsync
        self.hints = hints  # whether the journal itself must say how far the stream was acknowledged
        self.hurry = hurry  # wakes whoever tends
        self.trouble: str | None = None  # what the disk said last, None when it took the last segment
        self.sync_failures = 0
        self.truncated = 0  # files that somebody made shorter under us
        self.harmed = False  # records were lost whose number only the end tells
        self.quarantined = 0
        self._diagnostics = diagnostics
        self._owner = -1
        self._used = 0  # bytes in the folder when it was last looked at
        self._measured = -AGAIN  # monotonic: when `measure` did
        self._making = 0  # bytes of files that are being made
        self._ask_at = 0.0  # monotonic: the disk is not asked before
        self._spares: list[JournalSegment] = []  # at most one; list.pop is atomic
        self._image: tuple[JournalSegment, Image] | None = None  # of the oldest segment, if it was read back
        self._kept = False  # the end has come: what is in files stays there
        self._kept_rows = 0
        self._files = RLock()
        self._tending = RLock()
        self._syncing = RLock()
        self.synced = 0  # position up to which all is on the device
        self._room = len(header.encode()) + 16  # bytes: the header of a later segment may have longer numbers
        super().__init__(stream=header.stream, capacity_bytes=journal_bytes, **options)
        if self.trouble is None:  # else memory is what is full first
            self.full_reason = "journal_full"

    # --- making segments, any thread ----------------------------------------------------------------------------

    def _first(self, size: int) -> Segment:
        size = max(size, 2 * self._room)
        try:
            made = self._on_disk(0, size, self.capacity_bytes)
        except OSError as error:
            self._refused(error)
            made = None
        return made or self._in_memory(0, size)

    def _following(self, segment: Segment, least: int, *, low: bool) -> Segment | None:
        size = self._next_size(segment, least + self._room)
        limit = self._open_to_all if low else self.capacity_bytes
        quick = time.monotonic() - segment.published < QUICK
        made: JournalSegment | None
        spare = self._take_spare(segment.number + 1, least + self._room)
        if spare is not None:
            # It is in the folder already. To look again gives up the GIL for each file there, and beside busy threads
            # each may cost 5 ms to get back (a call of 157 ms was seen): only where the last look was near the limit.
            if low and self._used > limit and self.measure() > limit:
                self._spares.append(spare)
                self.full_reason, self._full = "journal_full", False
                return None
            spare.quick, spare.published = quick, time.monotonic()
            self.hurry()
            return spare
        try:
            if time.monotonic() < self._ask_at:
                made = self._within_memory(segment.number + 1, size)
            else:
                made = self._on_disk(segment.number + 1, size, limit)
                if made is None:
                    self.full_reason, self._full = "journal_full", self._used + self._cost(size) > self.capacity_bytes
        except (OSError, MemoryError) as error:
            self._refused(error)
            made = self._within_memory(segment.number + 1, size)
        if made is not None:
            made.quick = quick
        self.hurry()
        return made

    def _header(self, number: int, size: int) -> Header:
        return replace(self.header, segment=number, size=size)

    def _on_disk(self, number: int, size: int, limit: int, *, ahead: bool = False) -> JournalSegment | None:
        """
        Make a file and map it; None if the folder would hold more than `limit` bytes. Raises OSError.

        `ahead`: by the keeper, whom nobody waits for. It has the pages made, which lets go of the GIL; through the map
        the header's first byte makes them, and holds it for 0.9 ms of 4 MiB, and appends are dearer by 0.1 µs a record.
        Not where files are synced: the zeros would be written to the device as well.
        """
        folder = self.folder
        if (made := self._make_file(number, file_size(size), limit)) is None:
            return None
        file, descriptor = made
        mapped = None
        try:
            header = self._header(number, size)
            written = ahead and self.fsync == "never"
            if written:
                folder.fill(descriptor, size)
                folder.write(descriptor, header.encode(), 0)
            mapped = folder.map(descriptor, size)
            segment = JournalSegment(header, folder, mapped, file, descriptor, written=written)
            crashpoints.reach("header")
            if self.fsync != "never":
                folder.sync_folder(self.name)
        except BaseException:
            if mapped is not None:
                mapped.close()
            folder.close_file(descriptor)
            folder.unlink(file)
            raise
        self.trouble, self.full_reason = None, "journal_full"
        return segment

    def _make_file(self, number: int, total: int, limit: int, suffix: str = "") -> tuple[str, int] | None:
        """Make a file of so many bytes; None if the folder would hold more than `limit`. Raises OSError."""
        with self.folder.exclusive(WAIT):
            self._making += total  # first: a signal handler that comes after the count may make one as well
            try:
                self._used = self.folder.used()
                if self._used + self._making + (MOST_HINT if self.hints else 0) > limit:
                    return None
                file = self._new_file(number) + suffix
                descriptor = self.folder.make(file, total)
                self._used += total
                return file, descriptor
            finally:
                self._making -= total

    def _new_file(self, number: int) -> str:
        """Return a name for a file of this number; the stream's folder is made if need be. Inside `exclusive`."""
        folder = self.folder
        if self._owner < 0 or not folder.status(self._owner)[0]:
            owner = folder.own(self.name)
            if self._owner < 0:
                self._owner = owner
            else:
                folder.renumber(owner, self._owner)
            if self.hints:  # at once: its bytes are counted from now on, whoever makes the next file
                with suppress(OSError):  # without one all is sent again
                    folder.write(self._owner, acknowledged(self.header.stream, 0), 0)
        return f"{self.name}/{number:08x}-{os.urandom(4).hex()}.seg"

    def _in_memory(self, number: int, size: int) -> JournalSegment:
        mapped = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        return JournalSegment(self._header(number, size), self.folder, mapped)

    def _within_memory(self, number: int, size: int) -> JournalSegment | None:
        held = sum(one.size for one in self._journal_chain() if not one.file)
        if held + size > self.memory_bytes:
            self.full_reason, self._full = "full", True
            return None
        try:
            return self._in_memory(number, size)
        except (OSError, MemoryError):
            self.full_reason, self._full = "full", True
            return None

    def _refused(self, error: BaseException) -> None:
        self._ask_at = time.monotonic() + AGAIN
        self.trouble = getattr(error, "strerror", None) or str(error) or type(error).__name__
        self._diagnostics.say(
            "journal",
            f"the journal {self.folder.path} takes no new file ({self.trouble}): records wait in memory, up to "
            "capacity_bytes, and would be lost with the process, until it does; see to the disk and the folder",
        )

    def _take_spare(self, number: int, least: int) -> JournalSegment | None:
        try:
            spare = self._spares.pop()
        except IndexError:
            return None
        if spare.number == number and spare.size >= least:
            return spare
        spare.drop()
        return None

    def _next_size(self, segment: Segment, least: int) -> int:
        return max(super()._next_size(segment, least), 2 * self._room)

    def _cost(self, size: int) -> int:
        return 0 if self._spares else file_size(size)

    def held_bytes(self) -> int:
        """Bytes in the folder, of all processes, when it was last looked at."""
        return self._used

    def measure(self, *, older: float = 0.0) -> int:
        """Look again, if the last look is older than so many seconds: bytes in the folder, of all processes."""
        now = time.monotonic()
        if now - self._measured < older:
            return self._used
        self._measured = now
        try:
            self._used = self.folder.used()
        except OSError:
            pass  # the disk is in trouble: what was there before is the best guess
        return self._used

    def relieve(self) -> None:
        """Open the quick appends again where there is room; each tick."""
        if self._full and self.full_reason == "full" and time.monotonic() < self._ask_at:
            return  # the disk refuses and memory is full: nothing has changed
        if self._full or self._low_refused or self._waiting_writers or self.pressure > QUIET:
            self.measure()
        super().relieve()

    def _journal_chain(self) -> Iterator[JournalSegment]:
        for segment in self._chain():
            assert isinstance(segment, JournalSegment)
            yield segment

    # --- the listener -------------------------------------------------------------------------------------------

    def take(self, batch_bytes: int, batch_size: int | None = None) -> Batch | None:
        """As Buffer's. Raises UnreadableError for a segment that cannot be read now; the third time it is given up."""
        with self._files:
            return super().take(batch_bytes, batch_size)

    def settle(self, batch: Batch) -> None:
        """Forget a batch that is stored, dead or abandoned."""
        with self._files:
            super().settle(batch)
            # Not at the end: what is given up then from memory may lie behind what stays in files.
            if self.hints and not self._kept and self._owner >= 0:
                with suppress(OSError):  # the old hint stays: more is sent again
                    self.folder.write(self._owner, acknowledged(self.stream, self.settled), 0)
            self._roll_if_stale()
            if self._begun and not self._oldest.number and not self._spares:
                self.hurry()  # else a call would have to make the second segment: nobody else looks before it is full

    def _rows_of(self, segment: Segment, batch_bytes: int, batch_size: int | None) -> tuple[Batch | None, bool]:
        assert isinstance(segment, JournalSegment)
        if self._kept and segment.file:
            return None, True
        if not segment.map.closed:
            return super()._rows_of(segment, batch_bytes, batch_size)
        image = self._read_back(segment)
        if image is None:
            return None, True
        return image.batch(self._read, batch_bytes, batch_size, marked=self.own_rows > 0), True

    def _read_back(self, segment: JournalSegment) -> Image | None:
        """Return what an unmapped segment's file holds; None once it is given up."""
        if self._image is not None and self._image[0] is segment:
            return self._image[1]
        if segment.tries >= TRIES:
            return None
        try:
            image = read_segment(self.folder, segment.file, segment.number, self.header.boot)
        except Exception as error:
            segment.tries += 1
            gone = isinstance(error, FileNotFoundError)
            if gone or segment.tries >= TRIES:
                segment.tries = TRIES
                self._give_up(segment, "journal_lost" if gone else "quarantined", error)
                return None
            raise UnreadableError(f"a journal segment cannot be read: {error}") from None
        self._image = segment, image
        # With all checksums right nothing is missing; counting the rows of 4 MiB would hold the GIL for 6 ms.
        whole = image.sealed and image.end == segment.final and not any(span.damaged for span in image.spans)
        if not whole and (cut := segment.rows - self.count_image(image, image.start)) > 0:  # truncated meanwhile
            self._count_given_up("journal_lost", cut, "a file is shorter than it was")
        return image

    def _give_up(self, segment: JournalSegment, reason: str, error: Exception) -> None:
        if reason == "quarantined":
            self.quarantined += 1
            try:
                self.folder.quarantine(segment.file)
            except OSError:
                pass  # it stays where it is, and whoever adopts this stream meets it again
            segment.file = ""
        self._count_given_up(reason, segment.rows, error)

    def _count_given_up(self, reason: str, records: int, why: Exception | str) -> None:
        self.given_up[reason] = self.given_up.get(reason, 0) + records
        self.rows_settled += records
        self._diagnostics.say(
            "journal-given-up",
            f"{records} records of a journal segment are given up ({reason}): {why}; "
            f"what is left of it is in {self.folder.path}",
        )

    def _advance(self, segment: Segment) -> None:
        assert isinstance(segment, JournalSegment)
        self._image = None
        if self._kept and segment.file and (left := self._rows_left(segment)):
            self._kept_rows += left
            self.rows_settled += left
            following = segment.following[segment.number + 1]
            self._read, self._oldest = following.start, following
            segment.let_go()
            return
        crashpoints.reach("unlink")
        super()._advance(segment)

    def _roll_if_stale(self) -> None:
        segment = self._oldest
        if segment.following or self._read == segment.start or time.monotonic() - segment.published < STALE:
            return
        if segment.end(self._read)[0] == self._read:
            segment.seal()
            self._publish(segment, 0, low=False)

    def roll_if_stale(self) -> None:
        """Replace a segment of stored frames, older than a minute, by an empty one."""
        with self._files:
            self._roll_if_stale()
            super().take(1)  # a sealed one that is wholly read is let go of

    def sample(self, count: int) -> list[bytes]:
        """As Buffer's."""
        with self._files:  # else the keeper unmaps what is being looked at
            return super().sample(count)

    def _readable(self) -> Iterator[tuple[mmap.mmap | bytes, int, int]]:
        for segment in self._journal_chain():
            begin = self._read if segment is self._oldest else segment.start
            if not segment.map.closed:
                end = segment.end(begin)[0]
                if end > begin:
                    yield segment.map, begin, end
            elif self._image is not None and self._image[0] is segment:
                for span in self._image[1].spans:
                    if span.end > begin and not span.damaged:
                        yield self._image[1].data, max(begin, span.begin), span.end

    # --- chores: the keeper's thread, or whoever is there ---------------------------------------------------------

    def tend(self) -> None:
        """Do what the disk needs, unless another thread is at it. Blocks for as long as the disk does. Never raises."""
        if not self._tending.acquire(blocking=False):
            return
        try:
            # One by one: a disk that is full must not keep what it holds already from being synced.
            for chore in (
                self.watch,
                self._make_spare,
                self._sync_if_due,
                self._write_down_all,
                self._finish_what_waits,
            ):
                try:
                    chore()
                except (OSError, MemoryError) as error:
                    self._refused(error)
        finally:
            self._tending.release()

    def _sync_if_due(self) -> None:
        if isinstance(self.fsync, (int, float)):
            self.sync()

    def tend_again(self) -> float | None:
        """Return in how many seconds there may be something to do; None: after the next roll."""
        chain = list(self._journal_chain())
        waits = any(one.final < 0 or not one.file or one.distrusted for one in chain[:-1])
        return LINGERS if waits or not chain[-1].file else None

    def watch(self) -> None:
        """See whether somebody removed or truncated the file that is written to; if so, go on in another."""
        with self._files:  # else the listener closes a descriptor, and its number is another file's
            for segment in list(self._journal_chain()):
                if segment.descriptor < 0 or segment.map.closed:
                    continue
                names, size = self.folder.status(segment.descriptor)
                if size < file_size(segment.size):
                    self._on_truncated(segment, size)
                elif not names and segment.file:
                    self._on_removed(segment)

    def _on_removed(self, segment: JournalSegment) -> None:
        segment.file = ""  # its map still has the frames: as one in memory, to be written down again
        self._diagnostics.say(
            "journal-removed", f"somebody removed a file of the journal {self.folder.path}: it is written anew"
        )
        self._leave_behind(segment)

    def _on_truncated(self, segment: JournalSegment, size: int) -> None:
        """A touch behind the file's end would be SIGBUS: it is read without a map, up to where it ends."""
        segment.final = min(segment.size, size)  # before all else: each append and look until here may be the last
        self._leave_behind(segment)
        segment.let_go()
        self.harmed = True
        self._diagnostics.say(
            "journal-truncated",
            f"somebody truncated a file of the journal {self.folder.path} to {size} bytes: what stood behind is lost",
            every=0,
        )
        self.truncated += 1  # last: who waits for the count and ends the process has the line on stderr

    def _leave_behind(self, segment: JournalSegment) -> None:
        segment.seal()
        if not segment.following:
            self._publish(segment, 0, low=False)

    def _write_down_all(self) -> None:
        if time.monotonic() < self._ask_at:
            return
        for segment in list(self._journal_chain()):
            if not (segment.file and not segment.distrusted) and segment.sealed and not segment.map.closed:
                self._write_down(segment)

    def _write_down(self, segment: JournalSegment) -> None:
        """
        Write a segment's frames into a new file under its number; its old file, if there is one, is not trusted.

        It gets its name when it is whole, in the place of the old one's: of two files with one number one is sent.
        """
        folder = self.folder
        made = self._make_file(segment.number, file_size(segment.size), self.capacity_bytes, UNFINISHED)
        if made is None:
            return
        file, descriptor = made
        try:
            with self._files:
                if segment.map.closed:  # settled meanwhile
                    raise FileNotFoundError
                data = segment.map[: segment.end(segment.start)[0]]
            folder.write(descriptor, data, 0)
            if self.fsync != "never":
                folder.sync(descriptor)
            with self._files:  # the listener may settle it meanwhile, and `watch` look whether its file has a name
                if segment.map.closed:
                    raise FileNotFoundError
                name = segment.file or file.removesuffix(UNFINISHED)
                folder.rename(file, name)
                old, segment.descriptor = segment.descriptor, descriptor
                segment.file, segment.distrusted = name, self.fsync != "never"
        except FileNotFoundError:
            folder.close_file(descriptor)
            folder.unlink(file)
            return
        except BaseException:
            folder.close_file(descriptor)
            folder.unlink(file)
            raise
        if old >= 0:
            folder.close_file(old)
        if self.fsync != "never":
            folder.sync_folder(self.name)
            segment.distrusted = False  # not before its name is on the device
        self.trouble = None

    def _breathe(self) -> None:
        """
        Between two pieces of work let others have the GIL, and give back the pages of what was sealed since.

        A program that logs 150 MB a second seals segments faster than they get their checksums and are unmapped: in an
        outage 170 MiB of 256 were in its memory.
        """
        for segment in list(self._journal_chain())[1:-1]:
            segment.rest()
        Done().wait(BREATH)

    def _finish_what_waits(self) -> None:
        chain = list(self._journal_chain())
        now = time.monotonic()
        for segment, following in itertools.pairwise(chain):
            waits = segment is not chain[0] or now - following.published > LINGERS
            if waits and segment.final < 0 and segment.file and not segment.distrusted and self._is_synced(segment):
                self._finish(segment, unmap=segment is not chain[0])
                self._make_spare()  # it may have been taken meanwhile, and no call should have to make one
            elif segment.final >= 0 and segment is not chain[0] and not segment.map.closed:
                with self._files:
                    if segment is not self._oldest:
                        segment.let_go()

    def _is_synced(self, segment: JournalSegment) -> bool:
        return self.fsync == "never" or self.synced > position(segment.number, segment.size)

    def _finish(self, segment: JournalSegment, *, unmap: bool) -> None:
        """Write a sealed segment's checksums behind its data, and unmap it, unless it is being read."""
        try:
            if not segment.sealed:
                return
            end = segment.end(segment.start)[0]
            last = trailer(segment.map, end, rest=self._breathe)  # outside of the lock: the listener would wait for it
            rows = self._rows_between(segment, segment.start, end)
        except ValueError:
            return  # settled and unmapped meanwhile
        with self._files:
            if segment.map.closed or not segment.file:  # removed meanwhile: its map is all that there is
                return
            self.folder.write(segment.descriptor, last, segment.size)
            segment.rows, segment.final = rows, end
            if unmap and segment is not self._oldest:
                segment.let_go()

    def count(self, data: bytes) -> int:
        """Return how many records stand in these rows: markers of our own are none."""
        rows = data.count(b"\n")
        return rows if self.header.mapped else rows - data.count(b"\n-") - data.startswith(b"-")

    def _rows_between(self, segment: JournalSegment, begin: int, end: int) -> int:
        """Return how many records stand between two ends of rows, a block at a time."""
        rows, before = 0, b"\n"
        for at in range(begin, end, BLOCK):
            block = segment.map[at : min(at + BLOCK, end)]
            rows += block.count(b"\n")
            if (at - begin) % PIECE == PIECE - BLOCK:
                self._breathe()
            if self.own_rows and not self.header.mapped:
                rows -= (before + block).count(b"\n-")  # markers of our own
            before = block[-1:]
        return rows

    @property
    def _begun(self) -> bool:
        """Whether this stream logs enough to need a second segment: the first is filled to a quarter."""
        newest = self._live()
        try:
            return newest.number > 0 or newest.sealed or newest.end(0)[0] > newest.size // 4
        except ValueError:
            return True  # unmapped meanwhile: a later one is live

    def _make_spare(self) -> None:
        newest = self._live()
        assert isinstance(newest, JournalSegment)
        if not (self._begun or not newest.file) or self.closed or time.monotonic() < self._ask_at:
            return  # a program that hardly logs needs no second one
        number = newest.number + 1
        if any(spare.number == number for spare in self._spares):
            return
        if (old := self._take_spare(-1, 0)) is not None:  # its number went to another: never taken
            old.drop()
        most = min(buffer.LARGEST_SEGMENT, self.capacity_bytes // 8)
        quick = newest.quick or not newest.number
        size = max(min(newest.size * (2 if quick else 1), most), 2 * self._room)
        spare = self._on_disk(number, size, self._open_to_all, ahead=True)
        if spare is not None:
            self._spares.append(spare)
            if not newest.file:  # the disk takes files again: a quiet program would stay in memory for hours
                self._leave_behind(newest)

    # --- durability against power loss ------------------------------------------------------------------------------

    def hasten(self) -> None:
        """Hear that a record of `flush_level` came: with `fsync=seconds` it is synced at once."""
        if isinstance(self.fsync, (int, float)):
            self.hurry()

    def sync(self) -> bool:
        """
        Have all that is appended now on the device; False if that failed, or memory holds some of it.

        Blocks for as long as the disk does. Threads that wait here together share one fdatasync.
        """
        goal = self.tail()
        with self._syncing:
            if self.synced >= goal:
                return True
            goal = self.tail()  # with what came while we waited
            files: list[tuple[JournalSegment, int]] = []
            whole = True
            with self._files:
                for segment in self._journal_chain():
                    if position(segment.number, segment.size) < self.synced or segment.final >= 0:
                        continue
                    if segment.descriptor < 0 or not segment.file or segment.distrusted:
                        whole = False
                    else:  # a second descriptor: the listener may unlink and close the first meanwhile
                        files.append((segment, self.folder.duplicate(segment.descriptor)))
            for segment, descriptor in files:
                try:
                    self.folder.sync(descriptor)
                except OSError as error:
                    whole = False
                    self._on_failed_sync(segment, error)
                finally:
                    self.folder.close_file(descriptor)
            if whole:
                self.synced = max(self.synced, goal)
            return whole

    def _on_failed_sync(self, segment: JournalSegment, error: OSError) -> None:
        """
        After a failed fdatasync the kernel may call the same pages clean: asking again would be told a lie.

        https://wiki.postgresql.org/wiki/Fsync_Errors
        """
        self.sync_failures += 1
        segment.distrusted = True
        self._diagnostics.say(
            "journal-fsync",
            f"fdatasync of a file of the journal {self.folder.path} failed ({error.strerror}): its records are written "
            "into another one; see to the disk",
        )
        self._leave_behind(segment)
        self.hurry()

    # --- the end ----------------------------------------------------------------------------------------------------

    def keep(self) -> None:
        """Write down what is in memory, if the disk lets us; what is in files is not taken any more."""
        got = self._tending.acquire(timeout=AGAIN)  # else the keeper hangs in the disk, and exit must not
        try:
            with self._files:
                while self._spares:
                    self._spares.pop().drop()
                try:
                    self._ask_at = 0.0
                    self._write_down_all()
                except (OSError, MemoryError) as error:
                    self._refused(error)
                self._kept = True
        finally:
            if got:
                self._tending.release()

    def _rows_left(self, segment: JournalSegment) -> int:
        """Return how many records of a segment are not settled."""
        begin = self._read if segment is self._oldest else segment.start
        if not segment.map.closed:
            return self._rows_between(segment, begin, segment.end(begin)[0])
        image = self._image
        if not self.folder.exists(segment.file):
            self.harmed = True
            return 0  # somebody removed it: found out here, it is lost, and not left
        return self.count_image(image[1], begin) if image is not None and image[0] is segment else segment.rows

    def count_image(self, image: Image, begin: int) -> int:
        """Return how many records stand in an image behind an offset."""
        return sum(self.count(image.data[max(one.begin, begin) : one.end]) for one in image.spans if one.end > begin)

    def finish(self) -> tuple[int, bool]:
        """Close everything; return how many records stay in files, and whether the stream's folder is gone."""
        with self._files:
            last = list(self._journal_chain())[-1]
            if last.file and (left := self._rows_left(last)):
                self._kept_rows += left
                self.rows_settled += left
                last.let_go()
            else:
                last.drop()
        owner, self._owner = self._owner, -1
        if owner < 0:
            return self._kept_rows, False
        gone = not self._kept_rows and self.folder.remove(self.name)
        self.folder.give_back(owner)
        return self._kept_rows, gone

    def discard(self) -> None:
        """Unmap and close everything, and touch no file: in a forked child, whose parent goes on with them."""
        for segment in [*self._journal_chain(), *self._spares]:
            segment.let_go()
        if self._owner >= 0:
            self.folder.close_file(self._owner)
            self._owner = -1


def read_segment(folder: Folder, file: str, number: int, boot: str) -> Image:
    """Read a segment's file. Raises OSError, UnfinishedError, UnreadableError."""
    descriptor = folder.open(file)
    try:
        image = read_image(folder.read(descriptor, folder.status(descriptor)[1]), boot)
    finally:
        folder.close_file(descriptor)
    if image.header.segment != number:
        raise UnreadableError(f"its first line says segment {image.header.segment}, its name {number}")
    return image
