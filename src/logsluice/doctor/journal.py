"""The journal's folder, for `logsluice doctor`: what it lies on, room, what waits in it, what a power loss takes."""

from __future__ import annotations

import os
import shlex
from typing import TYPE_CHECKING

from logsluice import folder, journals
from logsluice.doctor import FAIL, OK, WARN, Finding
from logsluice.errors import ConfigError
from logsluice.journals import sized

if TYPE_CHECKING:
    from collections.abc import Iterator

    from logsluice.config import Settings

PAGE = "docs/howto/journal.md"


def check_journal(settings: Settings) -> Iterator[Finding]:
    """Check the folder of a handler with these settings; makes it, and one file for a moment, as the handler does."""
    path = settings.journal
    if path is None:
        return
    try:
        folder.check(path, unsafe_fs=True)
    except ConfigError as error:
        what, _, step = str(error).partition("; ")
        yield Finding(FAIL, "journal", what, step or "take journal= out of the handler")
        return
    yield _place(path, unsafe_fs=settings.journal_unsafe_fs)
    place = folder.Folder(path)
    try:
        yield _room(path, settings.journal_bytes, place.used())
        yield from _waiting(path, journals.look(place, count=False))
    except OSError as error:
        why, _, step = str(journals.refused(path, error)).partition("; ")
        yield Finding(FAIL, "journal", why, step or f"see {PAGE}")
    finally:
        place.close()
    yield Finding(OK, "journal", _fsync(settings.fsync))


def _place(path: str, *, unsafe_fs: bool) -> Finding:
    kind = folder.file_system(path)
    where = f"{path} is on {kind}, user {os.geteuid()} alone may write into it"
    if kind == "tmpfs":
        what = f"{path} is on tmpfs, which is memory: it survives the process, not the machine or the container"
        return Finding(WARN, "journal", what, "name a folder on a disk, unless that is what you want")
    if kind == "overlay":
        what = f"{path} is on overlay, a container's own layer: what waits there goes with the container"
        return Finding(WARN, "journal", what, f"mount a volume that the next container gets, too: {PAGE}")
    if kind in folder.SAFE:
        return Finding(OK, "journal", f"{where}: a killed process loses nothing whose call had returned")
    what = f"{path} is on {kind}, where a full or failing disk can end the program with SIGBUS"
    if not unsafe_fs:
        return Finding(FAIL, "journal", what, f"name a folder on ext4 or XFS, or set journal_unsafe_fs=True: {PAGE}")
    return Finding(WARN, "journal", f"{what} (journal_unsafe_fs=True takes that)", "name a folder on ext4 or XFS")


def _room(path: str, journal_bytes: int, used: int) -> Finding:
    disk = os.statvfs(path)
    free = disk.f_bavail * disk.f_frsize
    what = f"{sized(used)} are in it, it may grow to {sized(journal_bytes)} (journal_bytes), and {sized(free)} are free"
    if used + free < journal_bytes:
        return Finding(WARN, "journal", what, f"make room there, or set journal_bytes to at most {used + free}")
    return Finding(OK, "journal", what)


def _waiting(path: str, place: journals.Place) -> Iterator[Finding]:
    show = shlex.join(["logsluice", "journal", path])
    orphans = place.orphans
    living = sum(one.alive for one in place.streams)
    if orphans:
        size = sized(sum(one.bytes for one in orphans))
        what = (
            f"{_many(len(orphans), 'stream')} of dead processes, {size}: the next process with this journal sends them"
        )
        yield Finding(WARN, "journal", what, f"{show} shows whose they are, and loads them")
    else:
        yield Finding(OK, "journal", f"nothing of a dead process waits in it; {_many(living, 'stream')} in use")
    if place.quarantine:
        what = f"{_many(len(place.quarantine), 'file')} in {path}/quarantine: they cannot be read, and count as used"
        yield Finding(WARN, "journal", what, f"{show} says why; remove them once you have what you want of them")


def _fsync(fsync: str | float) -> str:
    if fsync == "never":
        return "fsync is never: records survive the process; a power loss may take the last half minute or so"
    if fsync == "always":
        return "fsync is always: a call returns when its record is on the device, and takes as long as that"
    return f"fsync is {fsync:g} s: so much a power loss may take at most, of records of flush_level the last moment"


def _many(count: int, thing: str) -> str:
    return f"{count} {thing}{'' if count == 1 else 's'}"
