"""
When a log file is full or its day is over: renamed, compressed, and the oldest deleted. No state but the files' own.

A rotated file is `NAME.YYYY-MM-DD_HH-MM-SS`, the moment of its last line, with `.1`, `.2` … where that is taken, and
`.gz` when compressed. Time is judged by when the file was last written to, so a restart forgets nothing, and of several
processes the one that comes first rotates: the others find a file of today. The first line of a day rotates the one
before; where nothing is logged nothing is rotated, and nobody wakes up for it. Called under the file's lock, but for
`tidy`.

Order is that of the last writes, not of the names: in the hour that local time has twice the names go back.
"""

from __future__ import annotations

import fcntl
import gzip
import os
import re
import time
from contextlib import suppress
from dataclasses import dataclass
from datetime import date
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from logsluice.config import FileSettings
    from logsluice.diagnostics import Diagnostics

CHUNK = 1024 * 1024  # bytes compressed between two looks at the deadline: about 20 ms, with the GIL released
LEVEL = 6  # of gzip, the program's own default: Python's 9 takes twice the time for 1 % less
PART = ".gz.part"  # at the end of a name: being compressed
STAMP = "%Y-%m-%d_%H-%M-%S"
_STAMPED = re.compile(r"(\d{4}-\d\d-\d\d_\d\d-\d\d-\d\d)(?:\.(\d+))?(?:\.gz)?")
# What of a moment says in which period it is; two moments of one period have the same.
PERIODS: dict[str, Callable[[time.struct_time], tuple[int, ...]]] = {
    # With the offset: when summer time ends an hour comes twice, and is two.
    "hour": lambda t: (t.tm_year, t.tm_yday, t.tm_hour, t.tm_gmtoff),
    "midnight": lambda t: (t.tm_year, t.tm_yday),
    "week": lambda t: (date(t.tm_year, t.tm_mon, t.tm_mday).toordinal() - t.tm_wday,),  # its Monday
    "month": lambda t: (t.tm_year, t.tm_mon),
}


@dataclass
class Rotation:
    """The rotation of one file. Listener thread only."""

    settings: FileSettings
    diagnostics: Diagnostics
    deadline: Callable[[], float | None]
    now: Callable[[], float] = time.time
    untidy: bool = True  # there may be something to compress or to delete; at the beginning what a dead process left

    def due(self, path: Path, more: int) -> bool:
        """Whether the file is to be rotated before `more` bytes are written."""
        settings = self.settings
        try:
            there = path.stat()
        except FileNotFoundError:
            return False
        if there.st_size == 0 and not settings.rotate_empty:
            return False
        if settings.max_bytes and there.st_size and there.st_size + more > settings.max_bytes:
            return True
        return settings.when is not None and self._period(there.st_mtime) != self._period(self.now())

    def fits(self, path: Path, frames: bytes) -> int:
        """Return how many bytes of frames go into one file: this one, or a new one if not even the first fits here."""
        most = self.settings.max_bytes
        if not most:
            return len(frames)
        try:
            size = path.stat().st_size
        except FileNotFoundError:
            size = 0
        for room in (most - size, most):  # a line is never longer than its frame
            cut = frames.rfind(b"\n", 0, max(0, room)) + 1
            if cut:
                return cut
        return frames.index(b"\n") + 1

    def _period(self, moment: float) -> tuple[int, ...]:
        return PERIODS[self.settings.when or "midnight"](self._broken_down(moment))

    def _broken_down(self, moment: float) -> time.struct_time:
        return time.gmtime(moment) if self.settings.utc else time.localtime(moment)

    def rotate(self, path: Path) -> None:
        """Rename the file; whoever writes next makes a new one. Raises OSError."""
        stamp = time.strftime(STAMP, self._broken_down(path.stat().st_mtime))
        # Higher than what is left of its second: another process may be about to delete, or to compress and then to
        # delete, what had a lower one.
        numbers = [int(found[2] or 0) for _, found in self._stamped(path) if found[1] == stamp]
        path.rename(path.with_name(f"{path.name}.{stamp}" + (f".{max(numbers) + 1}" if numbers else "")))
        self.untidy = True

    def rotated(self, path: Path) -> list[Path]:
        """Return the files that were rotated, the oldest first. Raises OSError."""
        found: list[tuple[int, int, Path]] = []
        for file, stamped in self._stamped(path):
            with suppress(FileNotFoundError):  # another process deleted it meanwhile
                found.append((file.stat().st_mtime_ns, int(stamped[2] or 0), file))
        return [file for *_, file in sorted(found)]

    def _stamped(self, path: Path) -> Iterator[tuple[Path, re.Match[str]]]:
        for file in self._siblings(path):
            if (found := _STAMPED.fullmatch(file.name[len(path.name) + 1 :])) is not None:
                yield file, found

    def _siblings(self, path: Path) -> list[Path]:
        return [file for file in path.parent.iterdir() if file.name.startswith(f"{path.name}.")]

    def tidy(self, path: Path) -> None:
        """Compress what was rotated, and delete what is over `backup_count` and `total_bytes`. Never raises."""
        settings = self.settings
        if not (settings.max_bytes or settings.when):
            return
        try:
            if self.untidy:
                self.untidy = False
                self._tidy(path)
            if settings.total_bytes is not None:
                self._limit(path, settings.total_bytes)
        except OSError as error:
            self.diagnostics.say("tidy", f"rotated files of {path} cannot be looked after: {error.strerror}")

    def _tidy(self, path: Path) -> None:
        files = self.rotated(path)
        keep = max(0, len(files) - self.settings.backup_count)
        for file in files[:keep]:
            file.unlink(missing_ok=True)
        if self.settings.compress:
            files = files[keep:]
            for file in files[: len(files) - 1 if self.settings.delay_compress else None]:
                if file.suffix != ".gz":
                    self._compress(file)
        for part in self._siblings(path):  # of a process that died; where the file is still there it is used again
            if part.name.endswith(PART) and not part.with_name(part.name.removesuffix(PART)).exists():
                part.unlink(missing_ok=True)

    def _limit(self, path: Path, most: int) -> None:
        files = self.rotated(path)
        sizes = {}
        for file in [path, *files]:
            with suppress(FileNotFoundError):
                sizes[file] = file.stat().st_size
        total = sum(sizes.values())
        for file in files:
            if total <= most:
                break
            total -= sizes.get(file, 0)
            file.unlink(missing_ok=True)

    def _compress(self, file: Path) -> None:
        """Make `file.gz` of a file; given up at the deadline, and done again by the next rotation."""
        part = file.with_name(f"{file.name}{PART}")
        try:
            source = file.open("rb")
        except FileNotFoundError:
            return  # another process was first
        with source:
            try:
                fcntl.flock(source, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                self.untidy = True  # another process is at it, or is just finding out that the name is no more its own
                return
            if not file.exists():
                return  # it was done while we came to the lock
            there = os.fstat(source.fileno())
            descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, there.st_mode & 0o777)
            try:
                with os.fdopen(descriptor, "wb") as raw:
                    with gzip.GzipFile(file.name, "wb", LEVEL, raw, mtime=there.st_mtime) as to:
                        while data := source.read(CHUNK):
                            stop = self.deadline()
                            if stop is not None and time.monotonic() >= stop:
                                part.unlink(missing_ok=True)
                                return
                            to.write(data)
                    with suppress(OSError):
                        os.fchown(descriptor, there.st_uid, there.st_gid)
                    os.fchmod(descriptor, there.st_mode & 0o777)
                    raw.flush()
                    os.fsync(descriptor)  # or a power loss after the unlink would leave neither
                    os.utime(descriptor, ns=(there.st_atime_ns, there.st_mtime_ns))
                part.rename(file.with_name(f"{file.name}.gz"))
                file.unlink(missing_ok=True)
            except BaseException:
                part.unlink(missing_ok=True)
                raise
            finally:
                fcntl.flock(source, fcntl.LOCK_UN)  # else a child that was forked meanwhile keeps it from the next
