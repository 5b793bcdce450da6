"""
When a log file is full or its day is over: renamed, compressed, and the oldest deleted. No state but the files' own.

A rotated file is `NAME.YYYY-MM-DD_HH-MM-SS`, the moment of its last line, with `.1`, `.2` … where that is taken, and
`.gz` when compressed. Time is judged by when the file was last written to, so a restart forgets nothing, and of several
processes the one that comes first rotates: the others find a file of today. Called under the file's lock, but for
`tidy`.
"""

from __future__ import annotations

import fcntl
import gzip
import os
import re
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from logsluice.config import FileSettings
    from logsluice.diagnostics import Diagnostics

CHUNK = 1024 * 1024  # bytes compressed between two looks at the deadline: about 20 ms, with the GIL released
STAMP = "%Y-%m-%d_%H-%M-%S"
_STAMPED = re.compile(r"\d{4}-\d\d-\d\d_\d\d-\d\d-\d\d(?:\.(\d+))?(?:\.gz)?")
# What of a moment says in which period it is; two moments of one period have the same.
PERIODS: dict[str, Callable[[time.struct_time], tuple[int, ...]]] = {
    "hour": lambda t: (t.tm_year, t.tm_yday, t.tm_hour),
    "midnight": lambda t: (t.tm_year, t.tm_yday),
    "week": lambda t: ((t.tm_year * 366 + t.tm_yday - t.tm_wday),),  # the day number of its Monday, near enough
    "month": lambda t: (t.tm_year, t.tm_mon),
}


@dataclass
class Rotation:
    """The rotation of one file. Listener thread only."""

    settings: FileSettings
    diagnostics: Diagnostics
    deadline: Callable[[], float | None]
    now: Callable[[], float] = time.time

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
        name = f"{path.name}.{stamp}"
        for n in range(1, 10_000):  # one a second, from a burst; far more than a disk's folder likes
            if not any(path.with_name(other).exists() for other in (name, f"{name}.gz")):
                break
            name = f"{path.name}.{stamp}.{n}"
        path.rename(path.with_name(name))

    def rotated(self) -> list[Path]:
        """Return the files that were rotated, the oldest first."""
        path = Path(self.settings.filename)
        before = f"{path.name}."

        def order(file: Path) -> tuple[str, int]:
            found = _STAMPED.fullmatch(file.name[len(before) :])
            return file.name[len(before) :][:19], int(found[1] or 0) if found else 0

        with suppress(OSError):
            return sorted(
                (
                    file
                    for file in path.parent.iterdir()
                    if file.name.startswith(before) and _STAMPED.fullmatch(file.name[len(before) :])
                ),
                key=order,
            )
        return []

    def tidy(self, path: Path) -> None:
        """Compress what was rotated, and delete what is over `backup_count` and `total_bytes`. Never raises."""
        settings = self.settings
        if not (settings.max_bytes or settings.when or settings.total_bytes):
            return
        try:
            files = self.rotated()
            if settings.compress:
                for file in files[: len(files) - 1 if settings.delay_compress else None]:
                    if file.suffix != ".gz":
                        self._compress(file)
                files = self.rotated()
            gone = files[: max(0, len(files) - settings.backup_count)]
            for file in gone:
                file.unlink(missing_ok=True)
            if settings.total_bytes is not None:
                left = files[len(gone) :]
                size = path.stat().st_size + sum(file.stat().st_size for file in left)
                while left and size > settings.total_bytes:
                    oldest = left.pop(0)
                    size -= oldest.stat().st_size
                    oldest.unlink(missing_ok=True)
        except OSError as error:
            self.diagnostics.say("tidy", f"rotated files of {path} cannot be looked after: {error.strerror}")

    def _compress(self, file: Path) -> None:
        """Make `file.gz` of a file; given up at the deadline, and done again by the next rotation."""
        part = file.with_name(f"{file.name}.gz.part")
        with file.open("rb") as source:
            try:
                fcntl.flock(source, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return  # another process is at it
            there = os.fstat(source.fileno())
            descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, there.st_mode & 0o777)
            try:
                with (
                    os.fdopen(descriptor, "wb") as raw,
                    gzip.GzipFile(file.name, "wb", fileobj=raw, mtime=there.st_mtime) as to,
                ):
                    while data := source.read(CHUNK):
                        stop = self.deadline()
                        if stop is not None and time.monotonic() >= stop:
                            part.unlink(missing_ok=True)
                            return
                        to.write(data)
                with suppress(OSError):
                    os.chown(part, there.st_uid, there.st_gid)
                os.utime(part, ns=(there.st_atime_ns, there.st_mtime_ns))
                part.rename(file.with_name(f"{file.name}.gz"))
                file.unlink(missing_ok=True)
            except BaseException:
                part.unlink(missing_ok=True)
                raise
