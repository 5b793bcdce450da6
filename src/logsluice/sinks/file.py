"""
Lines into a file: appended, rotated, compressed, and each once.

All that changes the file is done under its flock, so several processes may share it: one lock, then

    look whether the name is still this file             logrotate or another process may have renamed it
    rotate, if it is time or the lines would not fit
    write the lines; if that fails, cut the file to where it ended before

so a batch is in the file whole or not at all, also where the disk is full. A process that dies inside the write
leaves a torn line behind, which the next one to hold the lock takes away if it is plainly ours, and else closes with a
newline. A child that is forked meanwhile closes what it inherited: the lock is of the open file, which both have, and
would outlive a parent that is killed.

Once, not at least once: where it is not known what of a stream is in the file (a journal's, of a process that died; or
a write failed, and could not be taken back), its lines are looked for in the end of the file and in those rotated from
it, and what is there is not written again. They are known by the stream's number and the record's in them; lines of a
formatter of one's own hold neither. Then, and where others have written more than `SEARCHED` bytes since, up to a batch
stands there twice.

Rows of damaged blocks of a journal are no lines: they go to `NAME.dead`, with the reason.
"""

from __future__ import annotations

import errno
import fcntl
import gzip
import hashlib
import json
import os
import time
import zlib
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, TYPE_CHECKING, cast

from logsluice import crashpoints
from logsluice.delivery import Failure, Verdict
from logsluice.lines import lines_of
from logsluice.primitives import Done
from logsluice.rotation import CHUNK, PART, Rotation
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
LOOKS = 3  # into files that are rotated meanwhile: two, unless they are again
# Bytes of lines written at once where some are left out: the place up to which all is done is known after each.
RUN = 256 * 1024
DEAD = ".dead"  # at the end of a name: rows of damaged blocks of a journal
# Somebody must act; the rest (no space, an I/O error, a lock that is held) may pass by itself.
_TO_MEND = frozenset(
    {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ELOOP, errno.ENAMETOOLONG}
)


@dataclass
class LogFile:
    """The open file of a handler, and its rotation. Listener thread only; other processes by the lock."""

    settings: FileSettings
    diagnostics: Diagnostics
    deadline: Callable[[], float | None]
    now: Callable[[], float] = time.time
    descriptor: int | None = None
    unsure: bool = False  # a write failed and could not be taken back: some of it may be in the file
    path: Path = field(init=False)  # of the file itself, behind symbolic links; looked up at each `open`
    rotation: Rotation = field(init=False)

    def __post_init__(self) -> None:
        self.rotation = Rotation(self.settings, self.diagnostics, self.deadline, self.now)
        self.path = Path(self.settings.filename)

    def open(self) -> int:
        """Return the descriptor of the file that has the name now, opened or made if need be."""
        self.path = Path(os.path.realpath(self.settings.filename))  # renaming a link would leave its file behind
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
    def held(self) -> Iterator[None]:
        """Hold the lock of the file that has the name; its last line is whole. Waits for at most `io_timeout`."""
        try:
            self._mend(self._lock())
            yield
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
        if self.descriptor is not None:  # else a child that has it open as well would keep it from being compressed
            fcntl.flock(self.descriptor, fcntl.LOCK_UN)
        self.close()
        self._lock()

    def append(self, lines: bytes) -> None:
        """Write lines, or nothing. Under the lock."""
        descriptor = self.open()
        while self.rotation.due(self.path, len(lines)):
            was_empty = os.fstat(descriptor).st_size == 0
            self.rotate()
            descriptor = self.open()
            if was_empty:  # on a share whose clock is another's it would be due for ever
                break
        end, written = os.fstat(descriptor).st_size, 0
        view = memoryview(lines)
        try:
            while written < len(lines):
                written += os.write(descriptor, view[written:])
        except BaseException:
            if written:
                self._take_back(descriptor, end, written)
            raise

    def _take_back(self, descriptor: int, end: int, written: int) -> None:
        try:
            # Not if somebody truncated it meanwhile: it would be filled up with NULs.
            if os.fstat(descriptor).st_size == end + written:
                os.ftruncate(descriptor, end)
                return
        except OSError:
            pass  # said below; whoever holds the lock next mends the torn line
        self.unsure = True

    def _mend(self, descriptor: int) -> None:
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

    def there(self, stream: int) -> set[bytes]:
        """Return the digests of the lines with this number near the end of the file, or of those rotated last."""
        found: set[bytes] = set()
        for _ in range(LOOKS):
            older, left = self._older(), SEARCHED
            for path in [self.path, *older]:
                if left <= 0:
                    break
                with suppress(OSError, EOFError, zlib.error):  # deleted meanwhile, or no gzip file after all
                    left -= _gather(path, str(stream).encode(), left, found)
            if self._older() == older:
                break  # else logrotate, or another process, renamed or compressed what was to be read
        return found

    def _older(self) -> dict[Path, int]:
        """
        Return the files that have the name and more, the newest first, each with its inode.

        They are logrotate's, too, whatever it calls them.
        """
        found: list[tuple[int, Path, int]] = []
        for file in self.path.parent.iterdir():
            if file.name.startswith((f"{self.path.name}.", f"{self.path.name}-")) and not file.name.endswith(
                (PART, DEAD)
            ):
                with suppress(FileNotFoundError):
                    status = file.stat()
                    found.append((status.st_mtime_ns, file, status.st_ino))
        return {file: inode for _, file, inode in sorted(found, reverse=True)}

    def keep_dead(self, entry: dict[str, object]) -> None:
        """Keep a row that is no line. Under the lock."""
        path = self.path.with_name(self.path.name + DEAD)
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC
        descriptor = os.open(path, flags, self.settings.mode)
        try:
            self._give(descriptor)
            end, line = os.fstat(descriptor).st_size, json.dumps(entry).encode() + b"\n"
            if os.write(descriptor, line) < len(line):  # the disk is full: it is written again, whole
                os.ftruncate(descriptor, end)
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        finally:
            os.close(descriptor)


def _gather(path: Path, wanted: bytes, most: int, found: set[bytes]) -> int:
    """Add the digests of the lines in the last `most` bytes of a file that hold a text; return the bytes looked at."""
    zipped = path.suffix == ".gz"
    with cast("IO[bytes]", gzip.open(path, "rb") if zipped else path.open("rb")) as file:
        if not zipped:  # else all of it: it has no end to begin at
            file.seek(max(0, path.stat().st_size - most))
        looked, rest = 0, b""
        while data := file.read(CHUNK):
            looked += len(data)
            *lines, rest = (rest + data).split(b"\n")
            found.update(_digest(line) for line in lines if wanted in line)
    return looked


def _digest(line: bytes) -> bytes:
    return hashlib.blake2b(line, digest_size=16).digest()


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
    _there: set[bytes] | None = None  # of a stream that is not fresh: digests of its lines in the file

    @property
    def connected(self) -> bool:
        """Whether the file is open."""
        return self.file.descriptor is not None

    def open(self) -> None:
        """Open the file, make it if it is not there, and look for what of the stream is in it if that is not known."""
        look = not self.fresh and self._there is None
        if self.connected and not look:
            return
        with _translated(self.file), self.file.held():  # under the lock, or a file renamed meanwhile is not looked into
            if look:
                self._there = self.file.there(self.stream)

    def write(self, batch: Batch, counts: Counts) -> Outcome:  # noqa: ARG002 - a file keeps no books
        """Append a batch: see the top of the file. Blocks for at most `io_timeout`, and what the disk takes."""
        outcome = Outcome(batch.rows - len(batch.aside), len(batch.aside), known=self.position >= batch.end)
        if outcome.known:
            return outcome
        rest = batch if self.position <= batch.start else batch.after(self.position)
        try:
            with _translated(self.file), self.file.held():
                if rest.aside or self._there:
                    self._write_some(rest)
                else:
                    self._write_all(rest)
            crashpoints.reach("after-commit")
        finally:
            if self.file.unsure:
                self.file.unsure, self.fresh, self._there = False, False, None
        self.file.rotation.tidy(self.file.path)
        return outcome

    def _write_all(self, batch: Batch) -> None:
        frames, at = batch.data, batch.start
        while frames:
            fits = self.file.rotation.fits(self.file.path, frames)
            self.file.append(lines_of(frames[:fits]))
            frames, at = frames[fits:], at + fits
            self.position = at

    def _write_some(self, batch: Batch) -> None:
        """Write what is not there already; keep what was set aside."""
        most = min(RUN, self.file.settings.max_bytes or RUN)
        run = b""
        for at, frame in batch.lines():
            why = batch.aside.get(at)
            if run and (why is not None or len(run) + len(frame) > most):
                self.file.append(lines_of(run))
                run, self.position = b"", at
            if why is not None:
                row = frame.decode(errors="backslashreplace").removesuffix("\n")
                self.file.keep_dead({"stream": str(self.stream), "position": at, "error": why.message, "row": row})
                self.position = at + len(frame)
            elif not self._is_there(frame):
                run += frame
        if run:
            self.file.append(lines_of(run))
        self.position = batch.end

    def _is_there(self, frame: bytes) -> bool:
        line = lines_of(frame).removesuffix(b"\n")
        return str(self.stream).encode() in line and _digest(line) in (self._there or ())

    def accepts_any(self, rows: list[bytes]) -> bool:  # noqa: ARG002 - a file refuses no line for what it says
        """Whether the file takes lines at all."""
        return True

    def idle(self, seconds: float) -> None:
        """Let go of the file after `idle_close` seconds: it may have been deleted, and takes room as long."""
        if seconds >= self.file.settings.idle_close:
            self.file.close()

    def retire(self) -> None:
        """Nothing to do: no books say anything of the stream."""

    def forked(self) -> None:
        """Close what the child inherited; the parent's lock stays the parent's."""
        self.file.close()

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
        if error.errno not in _TO_MEND:
            raise SinkError(Failure(text)) from None
        hint = f"let user {os.geteuid()} write into {file.path.parent} and {file.path.name}"
        if error.errno == errno.EROFS:
            hint = f"mount the disk of {file.path.parent} so that it can be written"
        raise SinkError(Failure(text, verdict=Verdict.BLOCKED, hint=hint)) from None
