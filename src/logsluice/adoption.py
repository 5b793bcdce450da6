"""
Orphans: streams in the journal's folder whose process is gone. They are sent under their old stream, by their own turn.

Who looks holds the folder, tries the flock of each stream's `owner`, and keeps it: nobody adopts twice, and a process
id proves nothing. The flock goes with the last descriptor, so a forked child lets go of its parent's (handlers.renew),
and exec closes it.
"""

from __future__ import annotations

from collections import Counter, deque
from contextlib import suppress
from typing import TYPE_CHECKING

from logsluice import crashpoints
from logsluice.buffer import position
from logsluice.folder import BusyError
from logsluice.journal import (
    END_OF_DATA,
    MOST_HEADER,
    MOST_HINT,
    SEALED,
    SEGMENT_NAME,
    STREAM_NAME,
    Header,
    Image,
    UnfinishedError,
    UnreadableError,
    acknowledged,
    read_acknowledged,
    read_header,
)
from logsluice.journal_buffer import TRIES, UNFINISHED, read_segment

if TYPE_CHECKING:
    from logsluice.buffer import Batch
    from logsluice.diagnostics import Diagnostics
    from logsluice.folder import Folder

LOOK_EVERY = 5.0  # seconds between looks for orphans: one stat and one flock for each stream; a dead worker's rows wait
TYPED = "typed"  # in a header's target: the table is a typed log's, and any handler of its schema sends its rows
HOLD = 2.0  # seconds to wait for the folder; nothing hurries


class OrphanBuffer:
    """
    What an orphan left: a buffer that nobody appends to. The listener's side of Buffer, and the same rules for `take`.

    One segment is in memory at a time.
    """

    closed = True
    under_pressure = False
    dropping_since: float | None = None
    pressure = 0.0

    def __init__(
        self, folder: Folder, name: str, owner: int, header: Header | None, boot: str, *, hints: bool = False
    ) -> None:
        self.folder = folder
        self.name = name
        self.stream = int(name, 16)
        self.header = header  # of its first segment; None if there is none left
        self.given_up: Counter[str] = Counter()  # reason -> records
        self.refused: dict[str, str] = {}  # file that went to the quarantine -> why
        self.holes = 0
        self.torn = 0  # bytes
        self.rows_settled = 0
        self._owner = owner
        self._boot = boot
        self._hints = hints  # as in JournalBuffer
        # Up to where the stream was acknowledged; 0 where that is for the sink to know.
        self._acknowledged = read_acknowledged(folder.read(owner, MOST_HINT), self.stream) if hints else 0
        self._files: deque[tuple[int, str, int]] = deque()  # (number, name, bytes), in order
        for file, size in folder.files(name):
            if (found := SEGMENT_NAME.fullmatch(file)) is not None:
                self._files.append((int(found[1], 16), f"{name}/{file}", size))
            elif file.endswith(UNFINISHED):
                folder.unlink(f"{name}/{file}")  # half of a copy: the segment was in another file, or in memory
        self._image: Image | None = None
        self._read = 0
        self._last = 0  # number of the last segment that held rows: a second file of that number must not be skipped
        self._held_rows = False
        self._tries: Counter[str] = Counter()
        self.capacity_bytes = self.waiting_bytes()
        self.known = bool(self._files) and self._files[0][0] > 0  # earlier segments are gone, so they were stored

    # --- what the listener asks -----------------------------------------------------------------------------------

    @property
    def settled(self) -> int:
        """The position up to which everything is settled."""
        return position(self._files[0][0], self._read) if self._files else self.tail()

    def tail(self) -> int:
        """A position behind the last frame."""
        return position(self._files[-1][0] + 1, 0) if self._files else 0

    def waiting_bytes(self) -> int:
        """Bytes of the files that are left."""
        return sum(size for _, _, size in tuple(self._files))  # a copy: the listener takes them off meanwhile

    def rows_waiting(self) -> int:
        """Records of the segment being read that are not settled; of the others only their bytes are known."""
        return 0 if self._image is None else self._image.rows(self._read)

    def offered(self) -> int:
        """0: only its own process knew."""
        return 0

    def dropped(self) -> dict[tuple[str, int], int]:
        """Nothing: it takes nothing in."""
        return {}

    def relieve(self) -> None:
        """Nothing waits for room."""

    def take(self, batch_bytes: int, batch_size: int | None = None) -> Batch | None:
        """Return the oldest batch, None when nothing is left. Raises UnreadableError for what cannot be read now."""
        while self._files:
            number, file, _ = self._files[0]
            if position(number + 1, 0) <= self._acknowledged:
                self._next(unlink=True)  # its process died between the answer and the unlink
                continue
            if self._image is None:
                try:
                    self._image = self._read_back(number, file)
                except UnfinishedError:
                    self._next(unlink=True)
                    continue
                except Exception as error:
                    self._tries[file] += 1
                    if isinstance(error, FileNotFoundError):
                        self._next(unlink=False)
                    elif not self._hopeless(file, error) or not self._quarantine(file, error):
                        raise UnreadableError(f"a journal segment cannot be read: {error}") from None
                    continue
            batch = self._image.batch(self._read, batch_bytes, batch_size)
            if batch is not None:
                self._held_rows = True
                return batch
            self._next(unlink=True)
        return None

    def _read_back(self, number: int, file: str) -> Image:
        image = read_segment(self.folder, file, number, self._boot)
        if image.header.stream != self.stream:
            raise UnreadableError(f"its first line says stream {image.header.stream:016x}, its folder {self.name}")
        if image.spans and self._held_rows and number == self._last:
            # Sent after the other, it would lie below the watermark, and be skipped as known.
            raise UnreadableError(f"there is another segment {number} with records")
        self.holes += image.holes
        self.torn += image.torn
        self._last, self._held_rows = number, False
        self._read = image.start
        offset = self._acknowledged - position(number, 0)
        # A hint that points into the middle of a frame is none: the segment is sent whole.
        if offset > image.start and image.data[offset - 1 : offset] == b"\n":
            self._read = offset
        return image

    def _hopeless(self, file: str, error: Exception) -> bool:
        return isinstance(error, UnreadableError) or self._tries[file] >= TRIES

    def _next(self, *, unlink: bool) -> None:
        self._image, self._read = None, 0
        file = self._files.popleft()[1]
        if unlink:
            crashpoints.reach("unlink")
            try:
                self.folder.unlink(file)
            except OSError:
                pass  # read-only by now: the next who adopts it is told by the watermark that it is stored

    def _quarantine(self, file: str, error: Exception) -> bool:
        data = b""
        try:
            descriptor = self.folder.open(file)
            try:
                data = self.folder.read(descriptor, self.folder.status(descriptor)[1])
            finally:
                self.folder.close_file(descriptor)
        except OSError:
            pass  # the device does not give it: how many records it holds cannot be known
        try:
            self.folder.quarantine(file)
        except OSError:
            return False
        rows = data.partition(b"\n")[2].partition(END_OF_DATA + SEALED.encode())[0]
        self.given_up["quarantined"] += rows.count(b"\n")
        self.refused[file] = str(error)
        self._next(unlink=False)
        return True

    def settle(self, batch: Batch) -> None:
        """Forget a batch that is stored or dead."""
        self.rows_settled += batch.rows
        self._read = batch.end - position(self._files[0][0], 0)
        if self._hints:
            with suppress(OSError):  # the old hint stays: more is sent again
                self.folder.write(self._owner, acknowledged(self.stream, batch.end), 0)
        if self._image is not None and self._read >= self._image.end:
            self._next(unlink=True)

    def sample(self, count: int) -> list[bytes]:
        """Return about so many of the waiting frames, evenly from the segment being read."""
        if self._image is None:
            return []
        rows = [
            row
            for span in self._image.spans
            if not span.damaged and span.end > self._read
            for row in self._image.data[max(span.begin, self._read) : span.end].splitlines(keepends=True)
        ]
        return rows[:: max(1, len(rows) // count)] + rows[-1:]

    def remove(self) -> bool:
        """Remove the stream's folder once nothing is left in it; whether it is gone."""
        return not self._files and self.folder.remove(self.name)

    def give_back(self) -> None:
        """Let go of the stream: the next who looks adopts what is left."""
        owner, self._owner = self._owner, -1
        if owner >= 0:
            self.folder.give_back(owner)

    def discard(self) -> None:
        """Close what is open, and unlock nothing: in a forked child, whose parent goes on with it."""
        owner, self._owner = self._owner, -1
        if owner >= 0:
            self.folder.close_file(owner)

    close = relieve


class Adopter:
    """It finds orphans of one target in a folder. `mine`: the names of the handler's own streams."""

    def __init__(
        self, folder: Folder, wanted: Header, mine: set[str], diagnostics: Diagnostics, *, hints: bool = False
    ) -> None:
        self.folder = folder
        self._hints = hints
        self.wanted = wanted
        self.mine = mine
        self.left: dict[str, str] = {}  # name of a stream that is left alone -> why
        self._diagnostics = diagnostics

    def look(self, taken: set[str]) -> list[OrphanBuffer]:
        """Take what nobody owns, but for `taken`; other targets' streams stay. Waits for `HOLD` seconds at most."""
        found: list[OrphanBuffer] = []
        try:
            names = [one for one in self.folder.streams() if one not in self.mine | taken and one not in self.left]
            if any(STREAM_NAME.fullmatch(name) for name in names):
                with self.folder.exclusive(HOLD):
                    for name in filter(STREAM_NAME.fullmatch, names):
                        found += self._try(name)
        except BusyError:
            pass  # next time
        except OSError as error:
            self._cannot(error)
        return found

    def _cannot(self, error: OSError, name: str = "") -> None:
        place = f"{self.folder.path}/{name}" if name else self.folder.path
        self._diagnostics.say(f"adopt-{name}", f"cannot look for orphans in the journal {place}: {error.strerror}")

    def _try(self, name: str) -> list[OrphanBuffer]:
        owner = None
        try:
            owner = self.folder.take_over(name)
            if owner is not None:
                crashpoints.reach("adopt")
                return self._adopt(name, owner)
        except OSError as error:  # of this one: the others do not wait for it
            if owner is not None:
                self.folder.give_back(owner)  # else nobody could adopt it for as long as this process lives
            self._cannot(error, name)
        return []

    def _adopt(self, name: str, owner: int) -> list[OrphanBuffer]:
        header = first_header(self.folder, name)
        why = None if header is None else differs(header, self.wanted)
        if why is not None:
            self.folder.give_back(owner)
            self.left[name] = why
            self._diagnostics.say(
                f"left-{name}",
                f"the journal {self.folder.path} holds records for another target ({why}): they are left there; "
                f"`logsluice journal {self.folder.path}` shows and loads them",
            )
            return []
        return [OrphanBuffer(self.folder, name, owner, header, self.wanted.boot, hints=self._hints)]


def first_header(folder: Folder, name: str) -> Header | None:
    """Return the header of the first readable segment of a stream, None if there is none."""
    for file, _ in folder.files(name):
        if SEGMENT_NAME.fullmatch(file) is None:
            continue
        descriptor = folder.open(f"{name}/{file}")
        try:
            return read_header(folder.read(descriptor, MOST_HEADER))[0]
        except (UnfinishedError, UnreadableError):
            continue  # the listener meets it again, and puts it where it belongs
        finally:
            folder.close_file(descriptor)
    return None


def differs(header: Header, wanted: Header) -> str | None:
    """Return in what the target of a header is not the wanted one, None if it is the same."""
    if header.sink != wanted.sink:
        return f"sink {header.sink}, not {wanted.sink}"
    for key, value in wanted.target.items():
        if header.target.get(key) != value and not (key == "table" and TYPED in header.target):
            return f"{key} {header.target.get(key)!r}, not {value!r}"
    return f"schema {header.home!r}, not {wanted.home!r}" if header.home != wanted.home else None
