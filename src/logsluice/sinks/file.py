"""
Lines into a file: appended, rotated, compressed, and each once.

All that changes the file is done under its flock, so several processes may share it: one lock, then

    look whether the name is still this file             logrotate or another process may have renamed it
    rotate, if it is time or the lines would not fit
    write the lines; if that fails, cut the file to where it ended before

so a batch is in the file whole or not at all, also where the disk is full. A process that dies inside the write
leaves a torn line behind, which the next one to open the file takes away if it is plainly ours, and else closes with a
newline.

Once, not at least once: a stream whose end is not known (a journal's, of a process that died) is looked for in the end
of the file, by the `stream` and `seq` that each JSON line holds, and what is there is not written again. Lines of a
formatter of one's own hold neither; then, after a death in the moment between write and acknowledgement, up to a batch
stands there twice.
"""

from __future__ import annotations

import errno
import fcntl
import gzip
import json
import os
import re
import time
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from logsluice.delivery import Failure
from logsluice.lines import lines_of
from logsluice.primitives import Done
from logsluice.rotation import Rotation
from logsluice.sinks import Counts, Outcome, SinkError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from logsluice.buffer import Batch
    from logsluice.config import FileSettings
    from logsluice.diagnostics import Diagnostics

LOCK_POLL = 0.01  # seconds between looks at a lock that another process holds; it holds it for a write or a rename
# Bytes at the end of the file in which lines of a dead process are looked for: what one journal segment (4 MiB) and the
# batch that was in flight can have become, with room for what others wrote since.
SEARCHED = 64 * 1024 * 1024
_OURS = re.compile(rb'^\{.*"stream": ?"(\d+)", ?"seq": ?(-?\d+)', re.MULTILINE)
BLOCKED = "42501"  # insufficient_privilege: of the table in delivery.py the row that says so


@dataclass
class LogFile:
    """The open file of a handler, and its rotation. Listener thread only; other processes by the lock."""

    settings: FileSettings
    diagnostics: Diagnostics
    deadline: Callable[[], float | None]
    now: Callable[[], float] = time.time
    descriptor: int | None = None
    rotation: Rotation = field(init=False)

    def __post_init__(self) -> None:
        self.rotation = Rotation(self.settings, self.diagnostics, self.deadline, self.now)

    @property
    def path(self) -> Path:
        """Of the file that is written to."""
        return Path(self.settings.filename)

    def open(self) -> int:
        """Return the descriptor of the file that has the name now, opened or made if need be."""
        if self.descriptor is not None and not self._is_current(self.descriptor):
            self.close()  # renamed or removed: by logrotate, another process or a person
        if self.descriptor is None:
            self.descriptor = self._made()
        return self.descriptor

    def _is_current(self, descriptor: int) -> bool:
        try:
            there, here = self.path.stat(), os.fstat(descriptor)
        except FileNotFoundError:
            return False
        return (there.st_dev, there.st_ino) == (here.st_dev, here.st_ino)

    def _made(self) -> int:
        flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC
        self.path.parent.mkdir(parents=True, exist_ok=True)
        existed = self.path.exists()
        descriptor = os.open(self.path, flags, self.settings.mode)
        try:
            if not existed:
                self._give(descriptor)
        except BaseException:
            os.close(descriptor)
            raise
        return descriptor

    def _give(self, descriptor: int) -> None:
        """Give a file that was just made its mode and owner, whatever the umask says."""
        with suppress(PermissionError):  # it is another user's, made at the same moment
            os.fchmod(descriptor, self.settings.mode)
        owner = self.settings.ids()
        if owner is not None:
            try:
                os.fchown(descriptor, *owner)
            except PermissionError:
                self.diagnostics.say("owner", f"{self.path} cannot be given to {self.settings.owner}: not permitted")

    def close(self) -> None:
        """Close it. Never raises."""
        descriptor, self.descriptor = self.descriptor, None
        if descriptor is not None:
            with suppress(OSError):
                os.close(descriptor)

    @contextmanager
    def held(self) -> Iterator[int]:
        """Hold the lock of the file that has the name; yields its descriptor. Waits for at most `io_timeout`."""
        try:
            yield self._lock()
        finally:
            if self.descriptor is not None:  # else it was closed, and its lock went with it
                fcntl.flock(self.descriptor, fcntl.LOCK_UN)

    def _lock(self) -> int:
        end = time.monotonic() + self.settings.io_timeout
        while True:
            descriptor = self.open()
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                stop = self.deadline()
                if time.monotonic() >= (end if stop is None else min(end, stop)):
                    raise TimeoutError(errno.ETIMEDOUT, "another process holds the file's lock") from None
                Done().wait(LOCK_POLL)
                continue
            if self._is_current(descriptor):
                return descriptor
            self.close()  # renamed while we waited: the lock is that of the old one

    def rotate(self) -> None:
        """Rename the file and hold the lock of a new one. Under the lock."""
        self.rotation.rotate(self.path)
        self.close()
        self._lock()

    def append(self, lines: bytes) -> None:
        """Write lines, or nothing. Under the lock."""
        descriptor = self.open()
        end = os.fstat(descriptor).st_size
        view, written = memoryview(lines), 0
        try:
            while written < len(lines):
                written += os.write(descriptor, view[written:])
        except BaseException:
            if written:
                with suppress(OSError):  # else the torn line is taken away by whoever opens the file next
                    os.ftruncate(descriptor, end)
            raise

    def mend(self, descriptor: int) -> None:
        """Take away, or close, a line that a dying process left without its end. Under the lock."""
        size = os.fstat(descriptor).st_size
        if size == 0 or os.pread(descriptor, 1, size - 1) == b"\n":
            return
        begin = max(0, size - self.settings.max_frame_bytes - 1)
        tail = os.pread(descriptor, size - begin, begin)
        newline = tail.rfind(b"\n")
        torn = tail[newline + 1 :]
        if torn.startswith(b'{"') and not _is_json(torn) and (newline >= 0 or begin == 0):
            os.ftruncate(descriptor, begin + newline + 1)
            self.diagnostics.say("torn", f"{self.path} ended in a line without its end ({len(torn)} bytes): cut off")
        else:
            os.write(descriptor, b"\n")

    def there(self, stream: int) -> set[int]:
        """Return the seq of each line of a stream that stands near the end of the file, or of those rotated last."""
        found: set[int] = set()
        left = SEARCHED
        for path in [self.path, *reversed(self.rotation.rotated())]:
            if left <= 0:
                break
            with suppress(OSError):
                size = path.stat().st_size
                opened = gzip.open if path.suffix == ".gz" else open
                with opened(path, "rb") as file:
                    if path.suffix != ".gz":
                        file.seek(max(0, size - left))
                    data = file.read(left)
                left -= size
                wanted = str(stream).encode()
                found.update(int(seq) for other, seq in _OURS.findall(data) if other == wanted)
        return found


def _is_json(text: bytes) -> bool:
    try:
        json.loads(text)
    except ValueError:
        return False
    return True


@dataclass
class FileSink:
    """One stream's way into the file. Rules: sinks/__init__.py."""

    file: LogFile
    stream: int
    fresh: bool = True  # it began in this process: nothing of it can be in the file
    position: int = 0  # up to which it is in the file, as far as this process knows
    _there: set[int] | None = None  # of a stream that is not fresh: what is in the file already

    @property
    def connected(self) -> bool:
        """Whether the file is open."""
        return self.file.descriptor is not None

    def open(self) -> None:
        """Open the file, make it if it is not there, and mend its last line."""
        with _translated(self.file):
            if self.file.descriptor is None:
                with self.file.held() as descriptor:
                    self.file.mend(descriptor)
            if not self.fresh and self._there is None:
                self._there = self.file.there(self.stream)

    def write(self, batch: Batch, counts: Counts) -> Outcome:  # noqa: ARG002 - a file keeps no books
        """Append a batch: see the top of the file. Blocks for at most `io_timeout`, and what the disk takes."""
        outcome = Outcome(batch.rows - len(batch.aside), len(batch.aside), known=self.position >= batch.end)
        if outcome.known:
            return outcome
        rest = batch if self.position <= batch.start else batch.after(self.position)
        there = self._there or set()
        with _translated(self.file), self.file.held():
            if rest.aside or there:
                for at, frame in rest.lines():
                    if at not in rest.aside and int(frame[: frame.index(b"\t")]) not in there:
                        self._append(frame)
                    self.position = at + len(frame)
            else:
                frames, at = rest.data, rest.start
                while frames:
                    fits = self.file.rotation.fits(self.file.path, frames)
                    self._append(frames[:fits])
                    frames, at = frames[fits:], at + fits
                    self.position = at
        self.position = batch.end
        self.file.rotation.tidy(self.file.path)
        return outcome

    def _append(self, frames: bytes) -> None:
        lines = lines_of(frames)
        if self.file.rotation.due(self.file.path, len(lines)):
            self.file.rotate()
        self.file.append(lines)

    def accepts_any(self, rows: list[bytes]) -> bool:  # noqa: ARG002 - a file refuses no line for what it says
        """Whether the file takes lines at all."""
        return True

    def idle(self, seconds: float) -> None:
        """Rotate if it is time, also where nothing is logged; let go of the file after `idle_close` seconds."""
        with suppress(OSError):
            if self.file.rotation.due(self.file.path, 0):
                with self.file.held():
                    if self.file.rotation.due(self.file.path, 0):  # nobody else was first
                        self.file.rotate()
                self.file.rotation.tidy(self.file.path)
        if seconds >= self.file.settings.idle_close:
            self.file.close()

    def retire(self) -> None:
        """Nothing to do: no books say anything of the stream."""

    def close(self) -> None:
        """Close the file."""
        self.file.close()


@contextmanager
def _translated(file: LogFile) -> Iterator[None]:
    try:
        yield
    except SinkError:
        raise
    except OSError as error:
        file.close()
        text = f"{file.path}: {error.strerror or error}"
        if isinstance(error, (PermissionError, NotADirectoryError, IsADirectoryError)):
            hint = f"let this process's user write into {file.path.parent} and {file.path.name}"
            raise SinkError(Failure(text, BLOCKED, hint=hint)) from None
        raise SinkError(Failure(text)) from None
