"""
The journal's folder on a disk: every system call that the journal makes, and the rules of the place.

Everything below the folder is opened by names of ours relative to its descriptor, never through a link, and is a plain
file of ours with one name, 0600 in folders of 0700, whatever the umask. Whoever else may write into the folder could
plant a link there, so such a folder is refused.

`exclusive` is held while a file is made or a stream is taken over. It is an flock, which other processes see, behind an
RLock: a signal handler that logs while its thread holds it goes through, and other threads wait at most `timeout`.
"""

from __future__ import annotations

import errno
import mmap
import os
import stat
import sys
import time
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from logsluice import crashpoints
from logsluice.errors import ConfigError
from logsluice.primitives import Done, RLock

if sys.platform != "win32":  # `check` refuses a journal there
    import fcntl

if TYPE_CHECKING:
    from collections.abc import Iterator

QUARANTINE = "quarantine"
OWNER = "owner"
LOCK = "lock"
CHECK = 64 * 1024  # bytes of the file that is made and removed to see whether it can be
_ZEROS = bytes(CHECK)
LOOKS = 10  # lists of a sub-folder whose files go meanwhile: one is enough, unless a file server's lists are old
POLL = 0.001  # seconds between tries for the flock: it is held for about 0.2 ms

# Where a preallocated file's pages can always be written: no copy on write, no server in between. statfs names are in
# /proc/self/mountinfo. overlay: a container's own layer, which lies on one of the others.
SAFE = {"ext4", "ext3", "ext2", "xfs", "overlay", "tmpfs"}
OPEN = os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW
TO_LIST = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC | os.O_NOFOLLOW


class BusyError(OSError):
    """Another process or thread holds the folder for longer than one may wait."""


class Folder:
    """A journal's folder. Any thread. Raises OSError for what the disk refuses."""

    def __init__(self, path: str) -> None:
        self.path = path
        self._root = -1
        self._lock = -1
        self._mutex = RLock()
        self._depth = 0
        self._locked = False  # the flock is ours; not while it is waited for

    # --- the place ----------------------------------------------------------------------------------------------

    def root(self) -> int:
        """Return the folder's descriptor; make the folder if it is not there, or is no more."""
        if self._is_there():
            return self._root
        with self._mutex:
            if self._is_there():
                return self._root  # another thread was first
            _make_path(Path(self.path), 0o700)
            # The last part may be a link of the administrator's; what is below may not.
            root = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            found = os.fstat(root)
            if found.st_uid != os.geteuid():
                os.close(root)
                raise PermissionError(errno.EPERM, f"it belongs to user {found.st_uid}, this is user {os.geteuid()}")
            if found.st_mode & 0o022:
                os.close(root)
                mode = stat.S_IMODE(found.st_mode)
                raise PermissionError(errno.EPERM, f"others may write into it (mode {mode:03o}): chmod go-w it")
            if self._root < 0:
                self._root = root
            else:
                self.renumber(root, self._root)
        return self._root

    def _is_there(self) -> bool:
        return self._root >= 0 and os.fstat(self._root).st_nlink > 0

    def close(self) -> None:
        """Close what is open: after a fork, in the child, too; an flock is never unlocked there, only let go of."""
        for descriptor in (self._root, self._lock):
            if descriptor >= 0:
                os.close(descriptor)
        self._root = self._lock = -1

    def __del__(self) -> None:
        try:
            self.close()  # else each handler that a reload replaces would leave two descriptors behind
        except OSError:
            pass  # closed by somebody else: a daemon closes all there are

    def renew(self) -> None:
        """Forget what a fork inherited. The child's only thread."""
        self._mutex, self._depth, self._locked = RLock(), 0, False
        self.close()

    @contextmanager
    def exclusive(self, timeout: float) -> Iterator[None]:
        """Hold the folder, alone of all threads and processes. Waits for at most `timeout` seconds, then BusyError."""
        end = time.monotonic() + timeout
        if not self._mutex.acquire(timeout=timeout):
            raise BusyError(errno.EAGAIN, "another thread holds the folder")
        try:
            self._depth += 1
            try:
                lock = self._lock_file()
                while not self._locked:  # also a signal handler that interrupted this wait
                    try:
                        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                        self._locked = True
                    except BlockingIOError:
                        if time.monotonic() >= end:
                            raise BusyError(errno.EAGAIN, "another process holds the folder") from None
                        Done().wait(POLL)
                yield
            finally:
                self._depth -= 1
                if not self._depth and self._lock >= 0:
                    self._locked = False  # first: a signal handler in between takes it again
                    fcntl.flock(self._lock, fcntl.LOCK_UN)
        finally:
            self._mutex.release()

    def _lock_file(self) -> int:
        root = self.root()
        if self._lock < 0 or not os.fstat(self._lock).st_nlink:
            if self._lock >= 0:
                os.close(self._lock)
            self._lock, self._locked = -1, False
            self._lock = self._open(LOCK, root, os.O_CREAT)
        return self._lock

    def used(self) -> int:
        """Return the bytes of all files in it, whoever made them. Inside `exclusive` never too few."""
        total = 0
        # The quarantine last: a file that moves there during the look is counted twice, and never not at all.
        for name in sorted(self.names(), key=QUARANTINE.__eq__):
            try:
                found = self._stat(name)
                if stat.S_ISDIR(found.st_mode):
                    total += sum(size for _, size in self.files(name))
                else:
                    total += found.st_size
            except FileNotFoundError:
                pass  # settled by its owner meanwhile
        return total

    # --- a stream's folder --------------------------------------------------------------------------------------

    def streams(self) -> list[str]:
        """Return the names of all sub-folders but the quarantine."""
        return sorted(name for name in self.names() if name not in {QUARANTINE, LOCK} and self._is_folder(name))

    def _is_folder(self, name: str) -> bool:
        try:
            return stat.S_ISDIR(self._stat(name).st_mode)
        except FileNotFoundError:
            return False

    def own(self, name: str) -> int:
        """Make a stream's folder and take it; return the descriptor whose flock says so. Inside `exclusive`."""
        root = self.root()
        self._make_folder(name)
        owner = self._open(f"{name}/{OWNER}", root, os.O_CREAT)
        fcntl.flock(owner, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return owner

    def take_over(self, name: str) -> int | None:
        """Take a stream whose owner is gone; None if it is not. Inside `exclusive`."""
        try:
            owner = self._open(f"{name}/{OWNER}", self.root(), os.O_CREAT)
        except FileNotFoundError:
            return None
        try:
            fcntl.flock(owner, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(owner)
            return None
        if not os.fstat(owner).st_nlink:  # who held it has just removed the folder
            os.close(owner)
            return None
        return owner

    def give_back(self, owner: int) -> None:
        """Let another process take a stream: at once, also where a child that was forked meanwhile has it open, too."""
        fcntl.flock(owner, fcntl.LOCK_UN)
        os.close(owner)

    def names(self, name: str = ".") -> list[str]:
        """
        Return the names in a sub-folder, or in the folder itself.

        The descriptor is opened for this one list: two threads that read the folder's own would share its place in it,
        and each would miss what the other read. So `journal_bytes` was exceeded by a segment.
        """
        folder = os.open(name, TO_LIST, dir_fd=self.root())
        try:
            return os.listdir(folder)  # noqa: PTH208 - of a descriptor
        finally:
            os.close(folder)

    def files(self, name: str) -> list[tuple[str, int]]:
        """Return (name, bytes) of a sub-folder's files."""
        found: dict[str, int] = {}
        for _ in range(LOOKS):
            found, entries = {}, self.names(name)
            for entry in entries:
                with suppress(FileNotFoundError):  # settled meanwhile, or it has another name: a new list has that
                    found[entry] = self._stat(f"{name}/{entry}").st_size
            if len(found) == len(entries):
                break
        return sorted(found.items())

    def remove(self, name: str) -> bool:
        """Remove a stream's folder if nothing but its owner's file is left; whether it is gone. Its owner only."""
        try:
            if any(entry != OWNER for entry, _ in self.files(name)):
                return False
            self.unlink(f"{name}/{OWNER}")
            os.rmdir(name, dir_fd=self.root())
        except FileNotFoundError:
            pass
        except OSError:
            return False
        return True

    def _make_folder(self, name: str) -> None:
        try:
            os.mkdir(name, 0o700, dir_fd=self.root())
        except FileExistsError:
            if self._is_folder(name):
                return
            raise PermissionError(errno.EPERM, f"{name} is not a folder of ours") from None  # a planted link
        os.chmod(name, 0o700, dir_fd=self._root)  # whatever the umask

    # --- files --------------------------------------------------------------------------------------------------

    def make(self, name: str, size: int) -> int:
        """Make a file whose every byte has its place on the disk, zeroed; return its descriptor."""
        descriptor = self._open(name, self.root(), os.O_CREAT | os.O_EXCL)
        try:
            crashpoints.reach("create")
            self._allocate(descriptor, size)
            crashpoints.reach("preallocate")
        except BaseException:
            os.close(descriptor)
            self.unlink(name)
            raise
        return descriptor

    def _allocate(self, descriptor: int, size: int) -> None:
        try:
            os.posix_fallocate(descriptor, 0, size)
        except OSError as error:
            if error.errno not in {errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS}:
                raise
            for at in range(0, size, CHECK):  # a file system that cannot: written zeros have their places as well
                self.write(descriptor, bytes(min(CHECK, size - at)), at)

    def _open(self, name: str, root: int, flags: int = 0) -> int:
        descriptor = os.open(name, OPEN | os.O_NONBLOCK | flags, 0o600, dir_fd=root)
        if descriptor <= 2:  # a daemon closed its stderr, and whoever still writes there would write into a segment
            low, descriptor = descriptor, fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, 3)
            os.close(low)
            while (null := os.open(os.devnull, os.O_RDWR)) <= 2:
                pass  # it stays there: a map has a descriptor of its own, which would be the next to come there
            os.close(null)
        found = os.fstat(descriptor)
        # A fifo, a hard link to somebody's file, a file of another user: planted.
        if not stat.S_ISREG(found.st_mode) or found.st_nlink > 1 or found.st_uid != os.geteuid():
            os.close(descriptor)
            raise PermissionError(errno.EPERM, f"{name} is not a file of ours alone")
        if flags & os.O_CREAT and stat.S_IMODE(found.st_mode) != 0o600:
            os.fchmod(descriptor, 0o600)  # whatever the umask
        return descriptor

    def open(self, name: str) -> int:
        """Open a file that is there; return its descriptor."""
        return self._open(name, self.root())

    def map(self, descriptor: int, size: int) -> mmap.mmap:
        """Map the first `size` bytes of a file."""
        return mmap.mmap(descriptor, size, flags=mmap.MAP_SHARED, prot=mmap.PROT_READ | mmap.PROT_WRITE)

    def read(self, descriptor: int, size: int) -> bytes:
        """Return a file's first bytes; no map, so that a file somebody truncates ends the data and not the process."""
        parts = []
        at = 0
        while at < size and (part := os.pread(descriptor, size - at, at)):
            parts.append(part)
            at += len(part)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def fill(self, descriptor: int, size: int) -> None:
        """Have pages made for a new file's first bytes by writing zeros, in one call: it gives up the GIL once."""
        os.pwritev(descriptor, [_ZEROS] * (size // CHECK), 0)  # written in part it is as good: they are there already

    def write(self, descriptor: int, data: bytes, at: int) -> None:
        """Write all bytes at an offset."""
        while data:
            written = os.pwrite(descriptor, data, at)
            data, at = data[written:], at + written

    def sync(self, descriptor: int) -> None:
        """Have a file's data on the device; blocks for as long as that takes. Never `mmap.flush`: it holds the GIL."""
        os.fdatasync(descriptor)
        crashpoints.reach("fsync")

    def sync_folder(self, name: str) -> None:
        """Have the names in a sub-folder, and its own, on the device."""
        for folder in (os.open(name, TO_LIST, dir_fd=self.root()), os.dup(self.root())):
            try:
                os.fsync(folder)
            finally:
                os.close(folder)

    def status(self, descriptor: int) -> tuple[int, int]:
        """Return (names, bytes) of an open file: 0 names: somebody unlinked it."""
        found = os.fstat(descriptor)
        return found.st_nlink, found.st_size

    def close_file(self, descriptor: int) -> None:
        """Close a file."""
        os.close(descriptor)

    def duplicate(self, descriptor: int) -> int:
        """Return a second descriptor of an open file."""
        return os.dup(descriptor)

    def renumber(self, descriptor: int, number: int) -> None:
        """Have the number of another open file mean this one. Never closed between: a thread may be about to use it."""
        os.dup2(descriptor, number, inheritable=False)
        os.close(descriptor)

    def _stat(self, name: str) -> os.stat_result:
        """After `root` or `names`. Not by `root` itself: a look at many files would give up the GIL twice for each."""
        return os.stat(name, dir_fd=self._root, follow_symlinks=False)

    def exists(self, name: str) -> bool:
        """Whether there is a file of this name."""
        try:
            self.root()
            self._stat(name)
        except OSError:
            return False
        return True

    def unlink(self, name: str) -> None:
        """Remove a file; one that is gone is as good."""
        try:
            os.unlink(name, dir_fd=self.root())
        except FileNotFoundError:
            pass

    def rename(self, name: str, to: str) -> None:
        """Give a file another name, in the place of the file that has it."""
        os.rename(name, to, src_dir_fd=self.root(), dst_dir_fd=self.root())

    def quarantine(self, name: str) -> None:
        """Move a file, by a name that says where it was, to where nothing is read or removed."""
        self._make_folder(QUARANTINE)
        os.rename(
            name, f"{QUARANTINE}/{name.replace('/', '-')}", src_dir_fd=self.root(), dst_dir_fd=self.root()
        )  # fmt: skip
        crashpoints.reach("quarantine")
        self.sync_folder(QUARANTINE)


def _make_path(path: Path, mode: int) -> None:
    """Make a folder with this mode, and what is missing above it, where nobody else may write whatever the umask."""
    try:
        path.mkdir(mode)
    except FileExistsError:
        if not path.is_dir():
            raise
    except FileNotFoundError:
        _make_path(path.parent, 0o755)
        path.mkdir(mode, exist_ok=True)


# ---- at configuration


def check(path: str, *, unsafe_fs: bool) -> str | None:
    """
    Make, allocate and remove one file of 64 KiB; return what a person should hear of the place, None if nothing.

    Raises ConfigError where no journal can be: an interpreter or a file system on which its promise does not hold, a
    folder that cannot be written.
    """
    wrong = unfit_interpreter()
    if wrong:
        raise ConfigError(f"journal: {wrong}")
    folder = Folder(path)
    name = f"check-{os.getpid()}-{os.urandom(4).hex()}"
    try:
        descriptor = folder.make(name, CHECK)
        os.close(descriptor)
        folder.unlink(name)
    except OSError as error:
        if error.errno in {errno.ENOSPC, errno.EDQUOT}:  # a full disk must not keep a program from starting
            return f"the journal {path} has no room now ({error.strerror}): records wait in memory until it has"
        raise ConfigError(
            f"journal={path!r} cannot be used by user {os.geteuid()}: {error.strerror or error}; "
            "name a folder that this user alone may write into, on a local disk with room"
        ) from None
    finally:
        folder.close()
    kind = file_system(path)
    if kind not in SAFE and not unsafe_fs:
        raise ConfigError(
            f"journal={path!r} is on {kind}: a page of a mapped file may have no place there when it is written, and "
            "the process would die of SIGBUS. Use ext4 or XFS, or say journal_unsafe_fs=True (docs/howto/journal.md)"
        )
    if kind == "tmpfs":
        return f"the journal {path} is on tmpfs: it survives the process, not the machine"
    return None


def unfit_interpreter() -> str | None:
    """Return why this interpreter cannot keep the journal's promise, None if it can."""
    if sys.implementation.name != "cpython":
        return (
            f"{sys.implementation.name} does not say that mmap.write is one step, so a record could be mixed with "
            "another; use CPython, or leave journal= out"
        )
    if sys.platform == "win32":
        return "this system has no flock, which tells whether a journal's process lives; leave journal= out"
    if not getattr(sys, "_is_gil_enabled", lambda: True)():
        return "free-threaded Python is not tested with it; use the build with the GIL, or leave journal= out"
    return None


def file_system(path: str) -> str:
    """Return the name of the file system that a folder is on, such as "ext4"; "unknown" where Linux does not say."""
    try:
        device = Path(path).stat().st_dev
        wanted = f"{os.major(device)}:{os.minor(device)}"
        best, found = "", "unknown"
        real = os.path.realpath(path)
        with open("/proc/self/mountinfo", encoding="utf-8", errors="replace") as mounts:  # noqa: PTH123 - as above, os alone
            for line in mounts:
                before, _, after = line.partition(" - ")
                fields = before.split()
                where = fields[4].encode().decode("unicode_escape")  # a space is \040
                inside = real == where or real.startswith(where.rstrip("/") + "/")
                # btrfs gives its files a device number that no mount has: then the path alone decides.
                if inside and (fields[2] == wanted or not found or len(where) >= len(best)):
                    best, found = where, after.split()[0]
        return found
    except OSError:
        return "unknown"


def boot_id() -> str:
    """Return what names this run of the machine; after a crash it is another."""
    try:
        with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:  # noqa: PTH123
            return file.read().strip()
    except OSError:
        return ""
