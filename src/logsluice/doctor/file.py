"""
The file of a `JsonFileHandler`, for `logsluice doctor`: rights, lock, room, where it lies, who else rotates it.

Nothing is made and nothing is written: a log file that root made, only looking, would be closed to the program.
"""

from __future__ import annotations

import os
import re
import shlex
import stat
import time
from contextlib import suppress
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any

from logsluice.doctor import FAIL, OK, WARN, Finding
from logsluice.folder import file_system
from logsluice.journals import sized
from logsluice.primitives import Done

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from logsluice.config import FileSettings

LOCK_SECONDS = 2.0  # that another process may hold the lock: it holds it for one write, or a rename
LOCK_POLL = 0.01  # seconds between two tries
LOGROTATE = ("/etc/logrotate.conf", "/etc/logrotate.d")  # Debian's places, and most others'
NETWORK = re.compile(r"nfs|cifs|smb|ceph|gluster|lustre|afs|9p|fuse\.")  # in a file system's name
_SCRIPT = re.compile(r"^\s*(?:pre|post)\w+$.*?^\s*endscript$|^\s*\w+action$.*?^\s*endscript$", re.MULTILINE | re.DOTALL)
_BLOCK = re.compile(r"([^{}]*)\{([^{}]*)\}")


def check_file(settings: FileSettings, config: Mapping[str, Any] | None = None) -> Iterator[Finding]:
    """Check the file of a handler with these settings; `config`: where it stands. Blocks for at most `LOCK_SECONDS`."""
    path = Path(os.path.realpath(settings.filename))
    found = list(_rights(path, settings))
    yield from found
    if any(one.status == FAIL for one in found):
        return
    if path.exists():
        yield _lock(path)
    folder = existing(path)
    yield from _room(path, folder, settings)
    yield _ground(path, folder)
    yield from _rotation(path, settings)
    yield from _strangers(path, config or {})


def existing(path: Path) -> Path:
    """Return the folder that a file is in, or the nearest above it that is there and may be seen."""
    return next(one for one in path.parents if os.path.exists(one))  # noqa: PTH110 - Path's raises where it may not look


def refused(path: Path) -> Finding | None:
    """Return why a file of this name cannot be made, None if it can."""
    folder = existing(path)
    if not folder.is_dir():
        return Finding(FAIL, "file", f"{folder} is no folder: {path} cannot be made in it", "correct the path")
    if os.statvfs(folder).f_flag & os.ST_RDONLY:
        return Finding(FAIL, "file", f"{folder} is on a read-only disk", "mount it for writing, or name another folder")
    if not _may(folder):
        what = f"user {_me()} may not write into {folder} ({_owned(folder)}), where {path} is to be made"
        return Finding(FAIL, "file", what, _mend(f"chown {_me()} {shlex.quote(str(folder))}"))
    return None


def _mend(command: str) -> str:
    return f"run doctor as the user that your program runs as; if it is this one: {command}"


def _may(folder: Path) -> bool:
    real = os.access in os.supports_effective_ids
    return os.access(folder, os.W_OK | os.X_OK, effective_ids=real)


def _me() -> str:
    return _name_of("pwd", "getpwuid", os.geteuid())


def _name_of(module: str, ask: str, number: int) -> str:
    try:
        return str(getattr(__import__(module), ask)(number)[0])
    except (ImportError, KeyError):
        return str(number)


def _owned(path: Path) -> str:
    there = path.stat()
    owner, group = _name_of("pwd", "getpwuid", there.st_uid), _name_of("grp", "getgrgid", there.st_gid)
    return f"{owner}:{group} {stat.S_IMODE(there.st_mode):04o}"


# --- rights -----------------------------------------------------------------------------------------------------


def _rights(path: Path, settings: FileSettings) -> Iterator[Finding]:
    unmakable = refused(path)
    if not os.path.exists(path):  # noqa: PTH110 - as above
        yield unmakable or Finding(OK, "file", f"{path} is not there yet; the first record makes it{_as_root(path)}")
    else:
        try:
            os.close(os.open(path, os.O_RDWR | os.O_APPEND | os.O_CLOEXEC | os.O_NONBLOCK))
        except OSError as error:
            what = f"{path} ({_owned(path)}) cannot be written by user {_me()}: {error.strerror}"
            yield Finding(FAIL, "file", what, _mend(f"chown {_me()} {shlex.quote(str(path))}"))
            return
        yield Finding(OK, "file", f"{path} can be written ({_owned(path)}){_as_root(path)}")
        if unmakable is not None:
            rotates = bool(settings.max_bytes or settings.when)
            what = f"{path} cannot be rotated: {unmakable.what}"
            yield Finding(FAIL if rotates else WARN, "file", what, unmakable.next)
        yield from _looks(path, settings)
    yield from _giving(settings)


def _as_root(path: Path) -> str:
    there = path if path.exists() else existing(path)
    if os.geteuid() != 0 or there.stat().st_uid == 0:
        return ""
    return f"; {there} is not root's, and doctor runs as root, who may write anywhere: run it as your program's user"


def _looks(path: Path, settings: FileSettings) -> Iterator[Finding]:
    """Compare what the file is with what new ones will be."""
    there, ids = path.stat(), settings.ids() or (-1, -1)
    name = shlex.quote(str(path))
    if stat.S_IMODE(there.st_mode) != settings.mode:
        what = f"{path} has mode {stat.S_IMODE(there.st_mode):04o}; mode= ({settings.mode:04o}) is that of new files"
        yield Finding(WARN, "file", what, f"chmod {settings.mode:04o} {name}")
    if any(wanted not in {-1, is_} for wanted, is_ in zip(ids, (there.st_uid, there.st_gid), strict=True)):
        what = f"{path} belongs to {_owned(path)[:-5]}; owner= ({settings.owner}) is that of new files"
        yield Finding(WARN, "file", what, f"chown {settings.owner} {name}")


def _giving(settings: FileSettings) -> Iterator[Finding]:
    uid, gid = settings.ids() or (-1, -1)
    mine = uid in {-1, os.geteuid()} and gid in {-1, os.getegid(), *os.getgroups()}
    if os.geteuid() != 0 and not mine:
        what = f"user {_me()} may not give files to {settings.owner} (owner=): they stay {_me()}'s"
        yield Finding(WARN, "file", what, "name this user and one of its groups in owner=, or leave it out")


# --- the lock ---------------------------------------------------------------------------------------------------


def _lock(path: Path) -> Finding:
    import fcntl  # noqa: PLC0415 - not on Windows, nor are files of ours

    descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    end = time.monotonic() + LOCK_SECONDS
    try:
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() < end:
                    Done().wait(LOCK_POLL)
                    continue
                what = (
                    f"{_holder(descriptor)} has held the lock of {path} for {LOCK_SECONDS:g} s: nobody else can write"
                )
                return Finding(FAIL, "lock", what, "see what it does (is it stopped?), and end it if it hangs")
            except OSError as error:
                what = f"{path} cannot be locked: {error.strerror}"
                return Finding(FAIL, "lock", what, "name a file on a disk of this machine, or mount with locks")
            return Finding(OK, "lock", "its lock can be taken")
    finally:
        os.close(descriptor)


def _holder(descriptor: int) -> str:
    """Return who holds a file's lock, as far as Linux says."""
    inode = os.fstat(descriptor).st_ino
    with suppress(OSError, ValueError, IndexError):
        for line in Path("/proc/locks").read_text(encoding="ascii").splitlines():
            _, kind, _, _, pid, where, *_ = line.replace("-> ", "").split()
            if kind == "FLOCK" and int(where.rpartition(":")[2]) == inode:
                return f"process {pid}"
    return "another process"


# --- the disk ---------------------------------------------------------------------------------------------------


def _room(path: Path, folder: Path, settings: FileSettings) -> Iterator[Finding]:
    disk = os.statvfs(folder)
    free = disk.f_bavail * disk.f_frsize
    used = sum(one.stat().st_size for one in folder.glob("*") if one.name.startswith(path.name)) if path.exists() else 0
    most = settings.total_bytes
    if most is None and settings.max_bytes is not None:
        most = settings.max_bytes * (settings.backup_count + 1)
    if free < settings.batch_bytes or (disk.f_files and not disk.f_favail):
        what = f"{sized(free)} and {disk.f_favail} inodes are free where {path} lies: a batch has no room"
        yield Finding(
            FAIL, "room", what, "make room there; meanwhile records wait, and are dropped when capacity is full"
        )
    elif most is not None and used + free < most:
        what = f"with what is rotated it may grow to {sized(most)}, it has {sized(used)}, and {sized(free)} are free"
        yield Finding(WARN, "room", what, f"make room there, or set total_bytes to at most {used + free}")
    else:
        limit = "no size limits it" if most is None else f"with what is rotated it may grow to {sized(most)}"
        yield Finding(OK, "room", f"{limit}; {sized(free)} are free")


def _ground(path: Path, folder: Path) -> Finding:
    kind = file_system(str(folder))
    if kind == "tmpfs":
        return Finding(
            WARN, "file", f"{path} is on tmpfs, which is memory", "name a folder on a disk to keep the lines"
        )
    if kind == "overlay":
        what = f"{path} is on overlay, a container's own layer: it goes with the container"
        return Finding(WARN, "file", what, "mount a volume there")
    if NETWORK.match(kind):
        what = f"{path} is on {kind}: machines that share it need locks (flock) and one clock"
        return Finding(WARN, "file", what, "give each machine a file of its own, on a disk of its own if it can be")
    return Finding(OK, "file", f"{path} is on {kind}")


# --- who rotates ------------------------------------------------------------------------------------------------


def _rotation(path: Path, settings: FileSettings) -> Iterator[Finding]:
    ours = [f"{name}={getattr(settings, name)}" for name in ("max_bytes", "when") if getattr(settings, name)]
    others = list(_logrotated(path))
    printed = f"logsluice preset logrotate --filename {shlex.quote(str(path))}"
    for file, directives in others:
        if ours:
            what = f"two rotate {path}: the handler ({', '.join(ours)}) and logrotate ({file})"
            yield Finding(
                WARN, "rotation", what, f"take {', '.join(ours)} out of the handler, or the file out of {file}"
            )
        if "copytruncate" in directives:
            what = f"{file} says copytruncate: what is logged between its copy and its cut is lost"
            yield Finding(WARN, "rotation", what, f"take it out, the handler sees a rename by itself: {printed}")
    if not ours and not others:
        what = f"nobody rotates {path}, as far as can be seen here: it grows until the disk is full"
        yield Finding(
            WARN, "rotation", what, f'add "when": "midnight" to the handler, or have logrotate do it: {printed}'
        )
    elif not others:
        yield Finding(OK, "rotation", f"the handler rotates it ({', '.join(ours)}), and logrotate does not")
    elif not ours and not any("copytruncate" in directives for _, directives in others):
        yield Finding(OK, "rotation", f"logrotate rotates it ({others[0][0]})")


def _logrotated(path: Path) -> Iterator[tuple[Path, set[str]]]:
    """Yield the files of logrotate that name this one, with their directives for it. Skips what it may not read."""
    for place in map(Path, LOGROTATE):
        files = [place]
        with suppress(OSError):  # a file, none, or not for this user
            files = sorted(place.iterdir())
        for file in files:
            try:
                text = _SCRIPT.sub("", re.sub(r"#.*", "", file.read_text(encoding="utf-8", errors="replace")))
            except OSError:
                continue
            for names, inside in _BLOCK.findall(text):
                patterns = [word.strip("\"'") for word in names.split() if word.strip("\"'").startswith("/")]
                if any(PurePath(path).match(pattern) for pattern in patterns):
                    yield file, set(inside.split())


def _strangers(path: Path, config: Mapping[str, Any]) -> Iterator[Finding]:
    """Say which handlers that are not ours write into the same file: they take no lock."""
    for name, given in config.get("handlers", {}).items():
        kind, filename = str(given.get("class", given.get("()"))), given.get("filename")
        if kind.startswith("logging.") and isinstance(filename, str) and os.path.realpath(filename) == str(path):
            renames = ", and renames it" if "Rotating" in kind else ""
            what = f"{name!r} ({kind}) writes into {path}, too, without its lock{renames}"
            yield Finding(WARN, "file", what, f"give {name!r} a file of its own, or take it out")
