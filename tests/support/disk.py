"""
A file system in memory that a test may crash: what the kernel holds, and what the device holds.

`Disk` is the machine's: each file has a page cache, which outlives processes, and an image on the device, which outlives
the machine. `MemoryFolder` is one process's way to it, with the methods of `logsluice.folder.Folder`. A power cut keeps
a random part of what was not synced, page by page and name by name, as journaling file systems may.

`Server` is what PostgreSQL is to a journal: rows, dead letters and a watermark for each stream, changed together.
"""

from __future__ import annotations

import errno
import mmap
import os
import sys
from collections import Counter
from contextlib import contextmanager

from logsluice.folder import LOCK, OWNER, QUARANTINE, BusyError

# Bytes that reach the device together. A sector, not the kernel's page of 4 KiB: segments in a model are small, and
# more places can be torn.
PAGE = 256


class DiedError(BaseException):
    """The process was killed at this line. Not an Exception: nothing may catch it and go on."""


class Inode:
    """A file. `cache` is a memory file, so that several maps of it show the same bytes."""

    def __init__(self):
        self.cache = os.memfd_create("inode")
        self.names = 1
        self.device = b""  # as long as the file is known to be there
        self.lied = {}  # page -> contents that the kernel calls clean, though they never reached the device

    @property
    def size(self):
        return os.fstat(self.cache).st_size

    def read(self):
        return os.pread(self.cache, self.size, 0)

    def dirty(self):
        """Pages whose contents are not on the device, and the contents."""
        now = self.read()
        old = self.device.ljust(len(now), b"\0")
        for at in range(0, len(now), PAGE):
            page = now[at : at + PAGE]
            if page != old[at : at + PAGE] or at >= len(self.device):
                yield at, page

    def write_out(self, pages):
        image = bytearray(self.device.ljust(self.size, b"\0"))
        for at, page in pages:
            image[at : at + len(page)] = page
        self.device = bytes(image)

    def forget_cache(self):
        os.truncate(self.cache, 0)
        os.truncate(self.cache, len(self.device))
        os.pwrite(self.cache, self.device, 0)
        self.lied = {}


class Disk:
    """The machine: names and files, as the kernel shows them (`names`) and on the device (`durable`)."""

    def __init__(self):
        self.boot = "boot-1"
        self.names, self.durable = {}, {}  # "stream/file" -> Inode
        self.folders, self.durable_folders = set(), set()
        self.locks = {}  # Inode -> the open file whose flock it is
        self.holder = None  # (MemoryFolder, actor, depth) of who is inside `exclusive`
        self.actor = "main"  # which thread of the process runs, in a model that has one
        self.full = self.failing_sync = False
        self.before_page = lambda: None  # called before each page that is written by `write`
        self.inodes = []
        self.happened = Counter()  # what a test asks for, to know that it was there
        self._boots = 1

    def close(self):
        for inode in self.inodes:
            os.close(inode.cache)

    def new(self):
        self.inodes.append(Inode())
        return self.inodes[-1]

    def sync(self, inode):
        dirty = list(inode.dirty())
        if self.failing_sync:
            # The kernel tells of the error once, and calls the pages clean from then on.
            inode.lied.update(dirty)
            self.happened["failed sync"] += 1
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        inode.write_out([(at, page) for at, page in dirty if inode.lied.get(at) != page])

    def sync_names(self, folder):
        # With one journal of the file system's own for all names, what came before is there, too; a model is harsher.
        for name in self.names.keys() | self.durable.keys():
            if name.startswith(f"{folder}/") or "/" not in name:
                self._make_durable(name)
        self.durable_folders = set(self.folders)

    def _make_durable(self, name):
        if name in self.names:
            self.durable[name] = self.names[name]
        else:
            self.durable.pop(name, None)

    def write_back(self, random):
        """What the kernel does now and then: some pages and some names reach the device."""
        for inode in self.inodes:
            inode.write_out(
                [one for one in inode.dirty() if random.random() < 0.5 and inode.lied.get(one[0]) != one[1]]
            )
        self.durable_folders = {one for one in self.folders | self.durable_folders if one in self.folders}
        for name in sorted(self.names.keys() | self.durable.keys()):
            if random.random() < 0.5:
                self._make_durable(name)

    def cut_power(self, random):
        """The machine is off and on again. Some of what was not synced is there."""
        self.write_back(random)
        self.folders = set(self.durable_folders) | {name.partition("/")[0] for name in self.durable if "/" in name}
        self.names = dict(self.durable)
        self.locks, self.holder = {}, None
        for inode in self.inodes:
            inode.names = sum(one is inode for one in self.names.values())
            if not inode.device.strip(b"\0") and random.random() < 0.5:
                inode.device = b""  # not even its size was there
            inode.forget_cache()
        self.durable_folders = set(self.folders)
        self._boots += 1
        self.boot = f"boot-{self._boots}"
        self.happened["power cut"] += 1

    def image(self, name):
        return self.names[name].read()


class MemoryFolder:
    """One process's folder: `logsluice.folder.Folder` on a Disk."""

    path = "/journal"

    def __init__(self, disk):
        self.disk = disk
        self.dead = False
        self._open_files = {}  # descriptor -> [Inode, of how many descriptors]
        self._next = 1000  # no number of a real descriptor

    def die(self):
        """SIGKILL: descriptors and flocks are gone, and whatever the process still tries does nothing."""
        self.dead = True
        for entry in self._open_files.values():
            self._let_go(entry)
        if self.disk.holder is not None and self.disk.holder[0] is self:
            self.disk.holder = None
        self.disk.happened["process died"] += 1

    def _alive(self):
        if self.dead:
            raise DiedError

    def _let_go(self, entry):
        if self.disk.locks.get(entry[0]) is entry:
            del self.disk.locks[entry[0]]

    def _descriptor(self, inode):
        self._next += 1
        self._open_files[self._next] = [inode, 1]
        return self._next

    def _inode(self, descriptor):
        self._alive()
        return self._open_files[descriptor][0]

    def root(self):
        self._alive()
        return 0

    def close(self):
        self._alive()

    renew = close

    @contextmanager
    def exclusive(self, timeout):
        self._alive()
        disk = self.disk
        depth = 0
        if disk.holder is not None:
            folder, actor, depth = disk.holder
            if folder is not self or actor != disk.actor:
                disk.happened["busy"] += 1
                raise BusyError(errno.EAGAIN, "another holds the folder")
        disk.holder = self, disk.actor, depth + 1
        if LOCK not in disk.names:
            disk.names[LOCK] = disk.new()
        try:
            yield
        finally:
            if not self.dead:
                disk.holder = (self, disk.holder[1], depth) if depth else None

    def used(self):
        self._alive()
        return sum(inode.size for inode in self.disk.names.values())

    def streams(self):
        self._alive()
        return sorted(self.disk.folders - {QUARANTINE})

    def own(self, name):
        self._alive()
        self.disk.folders.add(name)
        inode = self.disk.names.setdefault(f"{name}/{OWNER}", None) or self.disk.new()
        self.disk.names[f"{name}/{OWNER}"] = inode
        assert inode not in self.disk.locks
        descriptor = self._descriptor(inode)
        self.disk.locks[inode] = self._open_files[descriptor]
        return descriptor

    def take_over(self, name):
        self._alive()
        if name not in self.disk.folders:
            return None
        inode = self.disk.names.get(f"{name}/{OWNER}")
        return None if inode in self.disk.locks else self.own(name)

    def files(self, name):
        self._alive()
        if name not in self.disk.folders:
            raise FileNotFoundError(errno.ENOENT, name)
        return sorted(
            (one.partition("/")[2], inode.size) for one, inode in self.disk.names.items() if one.startswith(f"{name}/")
        )

    def remove(self, name):
        self._alive()
        if name in self.disk.folders:
            if any(entry != OWNER for entry, _ in self.files(name)):
                return False
            self.unlink(f"{name}/{OWNER}")
            self.disk.folders.discard(name)
        return True

    def make(self, name, size):
        self._alive()
        assert name not in self.disk.names
        if self.disk.full:
            self.disk.happened["disk full"] += 1
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self.disk.names[name] = inode = self.disk.new()
        os.truncate(inode.cache, size)
        return self._descriptor(inode)

    def open(self, name):
        self._alive()
        if name not in self.disk.names:
            raise FileNotFoundError(errno.ENOENT, name)
        return self._descriptor(self.disk.names[name])

    def map(self, descriptor, size):
        return mmap.mmap(self._inode(descriptor).cache, size)

    def read(self, descriptor, size):
        return os.pread(self._inode(descriptor).cache, size, 0)

    def fill(self, descriptor, size):
        self._inode(descriptor)  # its cache holds zeros from the beginning

    def write(self, descriptor, data, at):
        cache = self._inode(descriptor).cache
        for off in range(0, len(data), PAGE):
            self.disk.before_page()  # a kill may come in the middle
            os.pwrite(cache, data[off : off + PAGE], at + off)

    def sync(self, descriptor):
        self.disk.sync(self._inode(descriptor))

    def sync_folder(self, name):
        self._alive()
        self.disk.sync_names(name)

    def status(self, descriptor):
        inode = self._inode(descriptor)
        return inode.names, inode.size

    def close_file(self, descriptor):
        self._alive()
        entry = self._open_files.pop(descriptor)  # KeyError: closed twice, and the number may be another's
        entry[1] -= 1
        if not entry[1]:
            self._let_go(entry)

    def duplicate(self, descriptor):
        entry = self._open_files[descriptor]
        entry[1] += 1
        self._next += 1
        self._open_files[self._next] = entry
        return self._next

    def unlink(self, name):
        self._alive()
        inode = self.disk.names.pop(name, None)
        if inode is not None:
            inode.names -= 1

    def rename(self, name, to):
        self.unlink(to)
        self.disk.names[to] = self.disk.names.pop(name)

    def quarantine(self, name):
        self._alive()
        self.disk.folders.add(QUARANTINE)
        self.disk.names[f"{QUARANTINE}/{name.replace('/', '-')}"] = self.disk.names.pop(name)
        self.sync_folder(QUARANTINE)


class RejectedError(Exception):
    """The server refuses rows of a batch: their positions."""


class Server:
    """PostgreSQL, as far as sinks/postgres.py asks it: the same rules for a batch and a watermark."""

    def __init__(self):
        self.watermarks, self.rows, self.dead = {}, [], []

    def write(self, stream, batch):
        """One transaction: all of it or nothing."""
        watermark = self.watermarks.get(stream, 0)
        if watermark >= batch.end:
            return
        rest = batch if watermark <= batch.start else batch.after(watermark)
        refused = [at for at, row in rest.lines() if at not in rest.aside and b"bad" in row]
        if refused:
            raise RejectedError(refused)
        lines, end = list(rest.lines()), rest.end  # now: COMMIT is one step, and nothing may come in between
        for at, row in lines:
            (self.dead if at in rest.aside else self.rows).append((stream, row))
        self.watermarks[stream] = end


@contextmanager
def at_line(number, call, files, inside=None):
    """Call once, before a line of code in these files, counted as they are executed; `inside`: of this function alone."""
    seen = []

    def local(_frame, event, _arg):
        if event == "line":
            seen.append(1)
            if len(seen) == number + 1:
                sys.settrace(None)
                call()
        return local if len(seen) <= number else None

    def trace(frame, _event, _arg):
        code = frame.f_code
        ours = code.co_filename in files and inside in {None, code.co_name}
        return local if ours and len(seen) <= number else None

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        yield
    finally:
        sys.settrace(before)
