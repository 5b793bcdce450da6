"""
The fault matrix, part C: the journal and the disk it is on. C-01 is in test_kills.py, C-02 and C-03 in
test_crash_points.py; C-05, C-06 and C-04's page are at every offset in tests/unit/test_journal.py, here once end to end.

Mounts and strace need root and Debian's packages; where they are not allowed or not there a row fails and says so.
"""

from __future__ import annotations

import contextlib
import fcntl
import itertools
import logging
import os
import re
import shutil
import signal
import stat
import subprocess
import sys
import threading
import time
import zlib
from dataclasses import replace
from pathlib import Path

import pytest

from logsluice import adoption, base
from logsluice.errors import ConfigError
from logsluice.handlers import PostgresHandler
from logsluice.journal import BLOCK, UnfinishedError, file_size, trailer
from support import matrix
from support.journals import (
    KEEPS,
    given,
    heir,
    ids_in,
    ids_of,
    image_of,
    inherit,
    lost_and_twice,
    mounted,
    only_segment,
    remount,
    returned,
    segments,
    streams,
)
from support.processes import ended, until
from support.proxy import Proxy
from support.shop import LIMIT, Shop
from support.situations import stored_ids
from support.written import BEGIN, run

ROOM = 10  # times the matrix's own limit: the machine of a test is shared
MIB = 1024 * 1024
SMALL = {"journal_bytes": 4 * MIB, "max_frame_bytes": MIB}  # a frame may be a quarter of it

# So many records of about 1 KB while nobody is there; then the death of the process.
DIES = (
    KEEPS
    + """
journaled()
for n in range(int(sys.argv[1])):
    order(f"{RUN}-{n}", f"{n:04d}" * 200)
"""
)
GONE = "os._exit(9)\n"


@pytest.fixture
def proxy(dsn):
    """Orphans are adopted by who has their target: host and port are part of it."""
    with Proxy(dsn) as proxy:
        yield proxy


@pytest.fixture
def journal(tmp_path):
    return tmp_path / "journal"


def leave_behind(proxy, tmp_path, journal, records, *, name="run", text=DIES + GONE, **options):
    """A process logs so many records while the server is away, and dies."""
    proxy.refuse()
    run(proxy.dsn, tmp_path, text, status=9, args=[str(records)], **given(journal, name, **options))
    proxy.heal()


def spoil(file, at, data):
    """Write these bytes over what is there."""
    with Path(file).open("r+b") as opened:
        opened.seek(at)
        opened.write(data)


def judge(row, dsn, tmp_path, *, note, recovery=None, lost_as=()):
    """Ids of programs: all stored or dead once, but for those that must be lost."""
    lost, twice = lost_and_twice(dsn, tmp_path)
    assert sorted(lost_as) == lost
    matrix.row(row, "journal", lost=len(lost) - len(lost_as), twice=twice, recovery=recovery, note=note)


def judge_shop(row, shop, *, note, recovery=None, dropped=0):
    """Ids of this process: as above; `dropped`: counted, and lost for that."""
    lost, twice = shop.lost_and_twice()
    matrix.row(row, "journal", lost=len(lost) - dropped, twice=twice, recovery=recovery, note=note)
    assert shop.law().dropped == dropped


# --- what a file holds after an accident ----------------------------------------------------------------------------


def zeroed_page(journal):
    """The third page of the only segment never reached the disk: the ids of the rows that it held a part of."""
    file = only_segment(journal)
    before = ids_of(file)
    spoil(file, 3 * 4096, bytes(4096))
    after = set(ids_of_another_boot(file))
    gone = [one for one in before if one not in after]
    assert 4 <= len(gone) <= 6  # a page holds a little less than four rows of this length, and cuts two
    return before, gone


def ids_of_another_boot(file):
    image = image_of(file, boot="another")
    return [one for span in image.spans for one in ids_in(image.data[span.begin : span.end])]


def test_c_04_power_loss(dsn, proxy, journal, tmp_path, monkeypatch):
    """The machine loses power: a page never reached the disk."""
    leave_behind(proxy, tmp_path, journal, 100)
    _, gone = zeroed_page(journal)
    monkeypatch.setattr(base, "boot_id", lambda: "another")
    after = inherit(proxy.dsn, journal, read=dsn)
    assert [(one["holes"], one["stored"]) for one in after.adopted] == [(1, 100 - len(gone))]
    note = f"1 hole of a page, {len(gone)} rows in it gone, {100 - len(gone)} stored; nothing was fsynced"
    judge("C-04", dsn, tmp_path, note=note, recovery=after.seconds, lost_as=gone)


def test_c_04_control_without_the_boot_id(dsn, proxy, journal, tmp_path):
    """Read as after a death of the process alone, the data would end at the hole."""
    leave_behind(proxy, tmp_path, journal, 100)
    before, gone = zeroed_page(journal)
    inherit(proxy.dsn, journal, read=dsn)
    lost, twice = lost_and_twice(dsn, tmp_path)
    assert set(lost) == set(before[before.index(gone[0]) :])
    matrix.control("C-04", "journal", lost=set(lost) - set(gone), twice=twice, note="boot id not compared")


TRUNCATED = (
    KEEPS
    + """
journaled(linger=float(sys.argv[1]), backoff_max=0.05)
orders(f"{RUN}-before", 100)
(path,) = [f"{where}/{name}" for where, _, names in os.walk(JOURNAL) for name in names if name.endswith(".seg")]
if sys.argv[3] != "seen":
    handler()._pair[0].buffer.watch = lambda: None      # the look comes too late
os.truncate(path, int(sys.argv[2]))      # as another process would
if sys.argv[3] == "seen":
    until(lambda: handler()._pair[0].buffer.truncated)
tell(seen=handler()._pair[0].buffer.truncated)
orders(f"{RUN}-after", 100)
stats = handler().stats()
tell(after=True, waiting=stats.waiting, abandoned=stats.abandoned_by, truncated=stats.journal["truncated"])
"""
)


@pytest.mark.parametrize("when", ["at once", "seen"])
def test_a_file_truncated_by_somebody(when, dsn, proxy, journal, tmp_path):
    """
    A page behind a file's end is touched: SIGBUS, and nothing in Python can be done about it.

    Unless it was seen before the next append: then what stood in front of the cut is there, and the program goes on.
    What is in front of the cut is stored by the next process either way.
    """
    cut = 8192  # bytes: two pages of rows are left, appends go on in the fourth
    proxy.refuse()
    linger = "0.01" if when == "seen" else "30"
    status = 9 if when == "seen" else -signal.SIGBUS
    ran = run(proxy.dsn, tmp_path, TRUNCATED + GONE, status=status, args=[linger, str(cut), when], **given(journal))
    proxy.heal()
    if when == "seen":
        assert "somebody truncated a file of the journal" in ran.program.stderr
        assert ran.told["truncated"] == 1
    else:
        assert ran.told == {"seen": 0}  # it died in its next append
    kept = [one for file in segments(journal) for one in ids_of(file)]
    after = inherit(proxy.dsn, journal, read=dsn)
    lost, twice = lost_and_twice(dsn, tmp_path)
    print(
        f"truncated, {when}: {len(returned(tmp_path))} logged, {len(lost)} behind the cut, {after.seconds:.2f} s",
        ran.told,
    )
    assert not twice
    assert set(lost) == set(returned(tmp_path)) - set(kept)
    assert lost
    assert all("before" in one for one in lost)
    assert len(kept) >= 10


@pytest.mark.parametrize("tear", ["zeros", "end of file"])
def test_c_05_torn_tail(tear, dsn, proxy, journal, tmp_path):
    """The last frame is only half there."""
    leave_behind(proxy, tmp_path, journal, 20)
    file = only_segment(journal)
    image = image_of(file)
    if tear == "zeros":
        spoil(file, image.end - 500, bytes(500))
    else:
        os.truncate(file, image.end - 500)
    after = inherit(proxy.dsn, journal, read=dsn)
    assert after.adopted[0]["stored"] == 19
    assert 300 < after.adopted[0]["torn_bytes"] < 1500
    note = f"{tear}: 19 of 20 rows stored, {after.adopted[0]['torn_bytes']} bytes of a torn one cut"
    judge("C-05", dsn, tmp_path, note=note, recovery=after.seconds, lost_as=["run-19"])


# Dies when the first segment has its checksums: a second after it was sealed.
SEALED = DIES + 'first = sorted(os.listdir(f"{JOURNAL}/{handler()._pair[0].buffer.stream:016x}"))[0]\n' + (
    'path = f"{JOURNAL}/{handler()._pair[0].buffer.stream:016x}/{first}"\n'
    'assert until(lambda: b"logsluice-sealed" in open(path, "rb").read())\n'
)  # fmt: skip


def test_c_06_flipped_bit(dsn, proxy, journal, tmp_path):
    """A bit is flipped in a sealed segment of a real backlog."""
    leave_behind(proxy, tmp_path, journal, 800, text=SEALED + GONE)
    file = segments(journal)[0]
    whole = image_of(file)
    assert whole.sealed
    block = 1
    at = whole.data.index(b"0123" if b"0123" in whole.data[BLOCK : 2 * BLOCK] else b"00", BLOCK + 1000)
    assert BLOCK < at < 2 * BLOCK
    spoil(file, at, bytes([whole.data[at] ^ 0x01]))  # a digit becomes another: COPY itself would take the row
    rows = whole.data[whole.start : whole.end].splitlines(keepends=True)
    offsets, place = [], whole.start
    for row in rows:
        offsets.append((place, place + len(row), ids_in(row)[0]))
        place += len(row)
    touched = [one for begin, end, one in offsets if begin < (block + 1) * BLOCK and end > block * BLOCK]
    after = inherit(proxy.dsn, journal, read=dsn)
    with Shop(dsn) as shop:
        letters = shop.query("SELECT row, error FROM logsluice.dead_letter ORDER BY position")
    dead = [one for row, _ in letters for one in ids_in(bytes(row))]
    # The block's rows, and the one behind it if the block ended with a row: its first newline may have been the damage.
    assert touched == dead[: len(touched)]
    assert len(dead) <= len(touched) + 1
    assert all("damaged" in error for _, error in letters)
    assert sum(one["stored"] for one in after.adopted) == 800 - len(dead)
    note = f"{len(dead)} rows of the 64 KiB block are dead letters, {800 - len(dead)} stored"
    judge("C-06", dsn, tmp_path, note=note, recovery=after.seconds)


# --- the disk refuses -----------------------------------------------------------------------------------------------


def written_down(journal):
    """The records in the files, those of our own process included."""
    ids = []
    for file in segments(journal):
        with contextlib.suppress(FileNotFoundError, UnfinishedError):  # settled meanwhile; a spare that is being made
            image = image_of(file)
            ids += [
                int(one)
                for span in image.spans
                for one in re.findall(rb"tid=(\d+) ", image.data[span.begin : span.end])
            ]
    return ids


def test_c_07_disk_full(dsn, proxy, journal, capfd):
    """The journal's disk is full: records go on in memory; then there is room again."""
    options = {"capacity_bytes": 8 * MIB, "max_frame_bytes": MIB}
    with (
        mounted(journal, "-t", "tmpfs", "-o", "size=2m,mode=700", "tmpfs"),
        Shop(proxy.dsn, read=dsn, journal=str(journal), **options) as shop,
    ):
        shop.log()
        assert shop.flush()
        proxy.refuse()
        proxy.cut()
        assert until(lambda: bool(shop.log(200, payload="x" * 1000)) and shop.stats.journal["trouble"], LIMIT)
        figures = shop.stats.journal
        assert "No space left" in figures["trouble"]
        assert not shop.stats.dropped
        assert until(lambda: bool(shop.log(200, payload="x" * 1000)) and shop.stats.dropped, LIMIT)
        in_memory = shop.stats.journal["in_memory_bytes"]
        assert in_memory > 4 * MIB
        assert {reason for reason, _ in shop.stats.dropped_by} == {"full"}
        dropped = shop.stats.dropped
        remount(journal, "size=64m")
        began = time.monotonic()
        assert until(lambda: not shop.stats.journal["in_memory_bytes"], LIMIT), shop.stats.journal
        resumed = time.monotonic() - began
        assert shop.stats.journal["trouble"] is None
        shop.log(100)
        assert shop.stats.dropped == dropped
        assert len(written_down(journal)) >= len(shop.given) - dropped - 1  # but for the first, stored record
        proxy.heal()
        recovery = shop.recover()
        note = (
            f"tmpfs of 2 MiB; {in_memory // 1024} KiB went on in memory, then {dropped} dropped and counted; "
            f"in files {resumed:.1f} s after there was room"
        )
        judge_shop("C-07", shop, note=note, recovery=recovery, dropped=dropped)
        assert resumed < 5 * ROOM
    said = capfd.readouterr().err
    assert said.count("takes no new file (No space left on device)") == 1


def test_c_07_a_quiet_program(dsn, proxy, journal):
    """There is room again, and the program logs so little that it would go on in its segment in memory for hours."""
    with (
        mounted(journal, "-t", "tmpfs", "-o", "size=128k,mode=700", "tmpfs"),
        Shop(proxy.dsn, read=dsn, journal=str(journal)) as shop,
    ):
        proxy.refuse()
        shop.log(100)
        assert "No space left" in shop.stats.journal["trouble"]
        assert not segments(journal)
        remount(journal, "size=16m")
        began = time.monotonic()
        assert until(lambda: not shop.stats.journal["in_memory_bytes"], LIMIT), shop.stats.journal
        resumed = time.monotonic() - began
        assert written_down(journal) == shop.given
        proxy.heal()
        judge_shop(
            "C-07", shop, recovery=shop.recover(), note=f"100 records in files {resumed:.1f} s after there was room"
        )
        assert resumed < 5 * ROOM


# Dies when the file whose sync failed has been written anew: on a busy machine that is later than the last record.
FSYNCS = (
    DIES.replace("order(f", "threading.Event().wait(float(sys.argv[2])); order(f")
    + """
buffer = handler()._pair[0].buffer
segments = lambda: list(buffer._journal_chain())     # one until the failure, then another for what comes
assert until(lambda: len(segments()) > 1 and not any(one.distrusted for one in segments()))
"""
)


def calls_of(trace):
    """What `strace -f` wrote, a call a line: it breaks one in two where another thread calls in between.

    A call stands where it began, and one that strace made fail where it failed: only then does the program know.
    """
    lines, begun = [], {}
    for line in trace.read_text().splitlines():
        thread = line.split(None, 1)[0]
        if line.endswith("<unfinished ...>"):
            begun[thread] = len(lines)
            lines.append(line.removesuffix("<unfinished ...>"))
        elif " resumed>" in line:
            at = begun.pop(thread)
            call = lines[at] + line.split(" resumed>", 1)[1]
            if "INJECTED" in call:
                lines.append(call)
            else:
                lines[at] = call
        else:
            lines.append(line)
    return lines


@pytest.mark.parametrize("fsync", ["always", 0.05])
def test_c_08_fsync_fails(fsync, dsn, proxy, journal, tmp_path):
    """fdatasync says EIO, once: what is on the disk may be anything, and asking again is no use."""
    strace = shutil.which("strace")
    if strace is None:
        pytest.fail("strace is not there: apt-get install -y strace", pytrace=False)
    trace, script = tmp_path / "trace", tmp_path / "program.py"
    script.write_text(BEGIN + FSYNCS + GONE, encoding="utf-8")
    proxy.refuse()
    calls = "fdatasync,pwrite64,ftruncate,openat,unlinkat,rename,renameat,renameat2"
    ran = subprocess.run(
        [strace, "-f", "-y", "-qq", "-o", trace, "-e", f"trace={calls}", "-e", "inject=fdatasync:error=EIO:when=3",
         sys.executable, script, "100", "0.002"],
        env={**os.environ, "DSN": proxy.dsn, "IDS": str(tmp_path / "ids"), **given(journal, fsync=fsync)},
        capture_output=True, text=True, timeout=2 * LIMIT, check=False,
    )  # fmt: skip
    assert ran.returncode == 9, ran.stderr
    proxy.heal()
    seen = [line for line in calls_of(trace) if str(journal) in line]
    (failed,) = [n for n, line in enumerate(seen) if "INJECTED" in line]
    poisoned = re.search(r"<([^>]+\.seg)>", seen[failed])[1]
    # Its place is taken by a whole new file: from then on the name is that one's.
    taken = next(n for n, line in enumerate(seen) if n > failed and "rename" in line and Path(poisoned).name in line)
    later = [line for line in seen[failed + 1 : taken] if f"{poisoned}>" in line]
    later += [line for line in seen[taken:] if f"{poisoned} (deleted)" in line]
    assert not [line for line in later if "fdatasync" in line or "pwrite64" in line], later
    fresh = [line for line in seen[failed + 1 : taken] if "fdatasync" in line and ".seg.new>" in line and "= 0" in line]
    assert fresh
    assert "fdatasync of a file of the journal" in ran.stderr
    after = inherit(proxy.dsn, journal, read=dsn)
    note = f"fsync={fsync}: the third fdatasync was EIO; that file was not synced or written again, its rows are in another"
    judge("C-08", dsn, tmp_path, note=note, recovery=after.seconds)


REMOVED = KEEPS + """
import shutil
journaled(linger=0.05, backoff_max=0.1)
stream = f"{handler()._open()[0].buffer.stream:016x}"
orders(f"{RUN}-before", 500)
while os.path.exists(JOURNAL):      # it is made anew in the middle
    shutil.rmtree(JOURNAL, ignore_errors=True)
began = time.monotonic()
there = until(lambda: os.path.isdir(f"{JOURNAL}/{stream}") and
              any(name.endswith(".seg") for name in os.listdir(f"{JOURNAL}/{stream}")))
tell(there=bool(there), seconds=time.monotonic() - began)
orders(f"{RUN}-after", 500)
until(lambda: not handler().stats().journal["in_memory_bytes"])
"""  # fmt: skip


def test_c_09_folder_removed(dsn, proxy, journal, tmp_path):
    """Somebody removes the journal's folder while the program logs."""
    proxy.refuse()
    ran = run(proxy.dsn, tmp_path, REMOVED + GONE, status=9, **given(journal))
    proxy.heal()
    assert ran.told["there"]
    assert "somebody removed a file of the journal" in ran.program.stderr
    after = inherit(proxy.dsn, journal, read=dsn)
    note = (
        f"rm -rf: written anew {ran.told['seconds']:.2f} s later; then the process died, and all 1000 records are there"
    )
    judge("C-09", dsn, tmp_path, note=note, recovery=after.seconds)
    assert ran.told["seconds"] < 1 * ROOM


def refusal(path, uid=None, **options):
    """What the configuration says to a journal there; as another user, in a child."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        text = b""
        try:
            if uid is not None:
                os.setgroups([])
                os.setgid(uid)
                os.setuid(uid)
            PostgresHandler(dsn="", journal=str(path), **options)
        except ConfigError as error:
            text = str(error).encode()
        except BaseException as error:
            text = f"unexpected: {error!r}".encode()
        os.write(writer, text or b"accepted")
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        text = pipe.read().decode()
    os.waitpid(pid, 0)
    return text


@pytest.fixture
def open_folder():
    """A folder that other users may walk into: pytest's own are root's alone."""
    path = Path(
        subprocess.run(["mktemp", "-d"], capture_output=True, text=True, check=True, timeout=LIMIT).stdout.strip()
    )
    path.chmod(0o755)
    yield path
    shutil.rmtree(path)


def test_c_10_not_writable(open_folder):
    """The folder is read-only, or another user's: the configuration fails, and says which and for whom."""
    theirs = refusal(open_folder / "journal", uid=12345)
    assert str(open_folder / "journal") in theirs
    assert "user 12345" in theirs
    assert "Permission denied" in theirs
    with mounted(open_folder, "-t", "tmpfs", "-o", "size=1m,mode=755", "tmpfs"):
        assert refusal(open_folder / "journal") == "accepted"
        remount(open_folder, "ro")
        read_only = refusal(open_folder / "journal")
    assert str(open_folder / "journal") in read_only
    assert "user 0" in read_only
    assert "Read-only file system" in read_only
    matrix.row(
        "C-10", "journal", lost=0, twice=0, note="both refused when configured, with path and uid; no silent fallback"
    )


class Watched:
    """The most bytes that a folder held, looked at all the time by another thread."""

    def __init__(self, journal):
        self.journal, self.most, self.most_on_disk, self.looks = journal, 0, 0, 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._look)

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *exc_info):
        self._stop.set()
        self._thread.join(LIMIT)

    def _held(self):
        """Hold the folder: no file is made during a look, else one that went and its successor were counted both."""
        lock = os.open(self.journal / "lock", os.O_RDWR | os.O_CREAT, 0o600)
        fcntl.flock(lock, fcntl.LOCK_EX)
        return lock

    def _look(self):
        while not self._stop.wait(0.001):
            size = on_disk = 0
            lock = self._held()
            for folder, _, files in os.walk(self.journal):  # which takes a folder that goes meanwhile for empty
                for file in files:
                    with contextlib.suppress(FileNotFoundError):
                        found = os.lstat(os.path.join(folder, file))  # noqa: PTH118 - as quick as can be
                        size, on_disk = size + found.st_size, on_disk + found.st_blocks * 512
            os.close(lock)
            self.most, self.most_on_disk = max(self.most, size), max(self.most_on_disk, on_disk)
            self.looks += 1


def test_c_11_quota(dsn, proxy, journal, tmp_path):
    """`journal_bytes` is reached by two handlers and an orphan in one folder."""
    leave_behind(proxy, tmp_path, journal, 300, **SMALL)
    proxy.refuse()
    with (
        Shop(proxy.dsn, read=dsn, journal=str(journal), **SMALL) as one,
        Shop(proxy.dsn, read=dsn, journal=str(journal), **SMALL) as other,
        Watched(journal) as watched,
    ):
        other.given = one.given  # one set of ids for both
        for level in [logging.INFO] * 50 + [logging.WARNING] * 150:  # the last fifth is for WARNING and above
            one.log(20, level, payload="x" * 500)
            other.log(20, level, payload="x" * 500)
        assert one.stats.dropped
        assert other.stats.dropped
        assert {reason for shop in (one, other) for reason, _ in shop.stats.dropped_by} == {"journal_full"}
        proxy.heal()
        recovery = max(one.recover(), other.recover())
        assert one.flush()
        assert other.flush()
        dropped = one.stats.dropped + other.stats.dropped
        lost, twice = one.lost_and_twice()
        assert len(lost) == dropped
        assert until(lambda: streams(journal) == {f"{shop.route.buffer.stream:016x}" for shop in (one, other)}, LIMIT)
        looks = watched.looks
    assert looks > 50
    assert watched.most <= SMALL["journal_bytes"]
    assert watched.most > SMALL["journal_bytes"] * 0.85  # no segment fitted any more
    _, twice_of_orphan = lost_and_twice(dsn, tmp_path)
    note = (
        f"at most {watched.most} of {SMALL['journal_bytes']} bytes ({watched.most_on_disk} on the disk) in {looks} looks; "
        f"{dropped} dropped = missing"
    )
    matrix.row(
        "C-11", "journal", lost=len(lost) - dropped, twice=[*twice, *twice_of_orphan], recovery=recovery, note=note
    )


# --- more than one process ------------------------------------------------------------------------------------------


@contextlib.contextmanager
def processes(dsn, tmp_path, journal, text, names):
    """Programs that run at the same time, by name. Each has a file of its own for the ids."""
    script = tmp_path / "program.py"
    script.write_text(BEGIN + KEEPS + text, encoding="utf-8")
    running = {}
    try:
        for name in names:
            env = {**os.environ, "DSN": dsn, "IDS": str(tmp_path / f"ids-{name}"), **given(journal, name)}
            running[name] = subprocess.Popen(
                [sys.executable, script], env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                text=True,
            )  # fmt: skip
        yield running
    finally:
        for process in running.values():
            if process.poll() is None:
                process.kill()
            process.communicate(timeout=LIMIT)


def test_c_12_one_folder_for_eight(dsn, journal, tmp_path):
    """Eight processes have one folder."""
    text = "journaled(linger=0.05)\norders(RUN, 500)\ntell(stream=f'{handler()._pair[0].buffer.stream:016x}')\n"
    began = time.monotonic()
    with processes(dsn, tmp_path, journal, text, [f"p{n}" for n in range(8)]) as running:
        said = [process.communicate(timeout=2 * LIMIT) for process in running.values()]
        assert [process.returncode for process in running.values()] == [0] * 8, said
    assert len({out for out, _ in said}) == 8  # streams
    assert not streams(journal)
    took = time.monotonic() - began
    judge(
        "C-12", dsn, tmp_path, note=f"8 processes, 8 streams, 4000 records in {took:.1f} s, nothing left in the folder"
    )


# Logs and waits for a line on stdin: nothing is sent meanwhile (linger 10 min), but by the one that is named "quick".
WAITS = """
journaled(linger=0.05 if RUN == "quick" else 600)
orders(RUN, 100)
tell(ready=1)
sys.stdin.readline()
"""


def ready(process):
    """It has logged; what it told."""
    line = process.stdout.readline()
    assert line, process.stderr.read()
    return line


def stored(dsn, name):
    """How many of a program's ids are stored."""
    return sum(times for one, times in stored_ids(dsn).items() if one.startswith(f"{name}-"))


def test_c_13_adoption_by_a_sibling(dsn, journal, tmp_path):
    """Three of four processes are killed; the fourth goes on, idle."""
    names = ["p0", "p1", "p2"]
    with processes(dsn, tmp_path, journal, WAITS, ["quick", *names]) as running:
        for process in running.values():
            ready(process)
        assert until(lambda: stored(dsn, "quick") == 100, LIMIT)  # so it has looked for orphans, and found none
        assert not any(stored(dsn, name) for name in names)
        for name in names:
            running[name].kill()
            assert running[name].wait(LIMIT) == -signal.SIGKILL
        began = time.monotonic()
        assert until(lambda: len(streams(journal)) == 1, 2 * LIMIT), streams(journal)
        took = time.monotonic() - began
        assert running["quick"].poll() is None
        with Shop(dsn) as shop:
            retired = shop.query("SELECT count(*) FROM logsluice.stream WHERE retired IS NOT NULL")[0][0]
        running["quick"].stdin.write("\n")
        running["quick"].stdin.flush()
        assert running["quick"].wait(LIMIT) == 0
    note = (
        f"3 of 4 killed, none of their 300 records stored by then; adopted by the fourth, all stored {took:.1f} s later"
    )
    judge("C-13", dsn, tmp_path, note=note, recovery=took)
    assert retired == 3
    assert took < 10 * ROOM


FORKS = """
journaled(linger=600)
orders(f"{RUN}-parent", 100)
pid = os.fork()
if pid == 0:
    orders(f"{RUN}-child", 100)
    tell(ready=os.getpid())
    sys.stdin.readline()
    sys.exit()
os.waitpid(pid, 0)
"""


def test_c_14_the_child_lives_on(dsn, journal, tmp_path):
    """The owner is killed, a forked child lives on: it must not hold what its parent held."""
    with processes(dsn, tmp_path, journal, FORKS, ["p"]) as running:
        parent = running["p"]
        child = int(re.search(r"\d+", ready(parent))[0])
        assert len(streams(journal)) == 2
        parent.kill()
        assert parent.wait(LIMIT) == -signal.SIGKILL
        began = time.monotonic()
        with heir(dsn, journal) as shop:
            assert until(lambda: shop.stats.journal["adopted"], LIMIT)
            assert until(lambda: stored(dsn, "p-parent") == 100, LIMIT)
            took = time.monotonic() - began
            assert not ended(child, 0)
            assert len(shop.stats.journal["adopted"]) == 1  # the child's is owned
            assert not stored(dsn, "p-child")
        parent.stdin.write("\n")
        parent.stdin.flush()
        assert ended(child, LIMIT)
    judge(
        "C-14",
        dsn,
        tmp_path,
        note=f"adopted {took:.2f} s after, while the child lived; the child sent its own",
        recovery=took,
    )
    assert not streams(journal)
    assert took < 10 * ROOM


def test_c_15_process_ids_prove_nothing(dsn, journal, tmp_path):
    """Two containers on one volume: the living owner has the pid 1 of its own, and so has the dead one."""
    with processes(dsn, tmp_path, journal, WAITS, ["outer"]) as running:
        ready(running["outer"])
        script = tmp_path / "program.py"
        env = {**os.environ, "DSN": dsn, "IDS": str(tmp_path / "ids-inner"), **given(journal, "inner")}
        inner = subprocess.Popen(
            ["unshare", "--pid", "--fork", "--kill-child", sys.executable, script],
            env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        try:
            ready(inner)
            pids = {image_of(file).header.who["pid"] for file in segments(journal)}
            assert 1 in pids  # of its namespace; here that is init, alive for ever
            with heir(dsn, journal) as shop:
                assert shop.flush()
                assert not shop.stats.journal["adopted"]  # both live
            assert len(streams(journal)) == 2
        finally:
            inner.kill()
            inner.communicate(timeout=LIMIT)
        after = inherit_all_but(dsn, journal, 1)
        assert stored(dsn, "inner") == 100
        assert not stored(dsn, "outer")
        running["outer"].stdin.write("\n")
        running["outer"].stdin.flush()
        assert running["outer"].wait(LIMIT) == 0
    note = "the stream of a dead pid 1 was adopted though pid 1 lives; those of the living were not"
    judge("C-15", dsn, tmp_path, note=note, recovery=after)


def inherit_all_but(dsn, journal, living):
    """Be the next process until only so many streams are left beside its own; the seconds."""
    began = time.monotonic()
    with heir(dsn, journal) as shop:
        assert until(lambda: len(streams(journal)) == living + 1 and not shop.listener.adopted, LIMIT), streams(journal)
        return time.monotonic() - began


# --- who else is in the folder --------------------------------------------------------------------------------------


def test_c_16_planted_links(dsn, proxy, journal, tmp_path, open_folder):
    """Links and pipes stand where the journal's files should."""
    target = tmp_path / "target"
    target.write_bytes(b"precious\n")
    target.chmod(0o644)
    nobody = tmp_path / "nobody"  # where a link points to that makes what it opens
    # A folder that others may write into is refused.
    open_folder.chmod(0o1777)
    assert "others may write into it" in refusal(open_folder)
    assert "belongs to user 12345" in refusal_of_theirs(open_folder)
    # In one of ours: as a restored backup or an old bug may leave them.
    leave_behind(proxy, tmp_path, journal, 100, name="a")
    leave_behind(proxy, tmp_path, journal, 100, name="b")
    good = sorted(streams(journal))
    plants = {
        "0000000000000001": lambda folder: (folder / "owner").symlink_to(target),
        "0000000000000002": lambda folder: os.mkfifo(folder / "owner"),
        "0000000000000003": lambda folder: (folder / "00000000-00000000.seg").symlink_to(target),
        "0000000000000004": lambda folder: os.link(target, folder / "00000000-00000000.seg"),
        "0000000000000005": lambda folder: os.mkfifo(folder / "00000000-00000000.seg"),
        "0000000000000006": lambda folder: (folder / "00000000-00000000.seg").mkdir(),
        "0000000000000008": lambda folder: (folder / "owner").symlink_to(nobody),
    }
    for name, plant in plants.items():
        (journal / name).mkdir(mode=0o700)
        plant(journal / name)
    (journal / "0000000000000007").symlink_to(tmp_path)
    began = time.monotonic()
    with heir(proxy.dsn, journal, read=dsn) as shop:
        assert until(lambda: not set(good) & streams(journal), LIMIT), (streams(journal), shop.stats.journal)
        took = time.monotonic() - began
        assert shop.flush()
        assert shop.stats.stored == 1
    for goal in (target, nobody):
        (journal / "lock").unlink()
        (journal / "lock").symlink_to(goal)
        assert refusal(journal) == "accepted"  # the lock is opened with the first record
        with heir(proxy.dsn, journal, read=dsn) as shop:
            assert shop.flush()  # it goes on in memory, and says so
            assert shop.stats.stored == 1
            assert "Too many levels of symbolic links" in shop.stats.journal["trouble"]
    assert target.read_bytes() == b"precious\n"
    assert stat.S_IMODE(target.stat().st_mode) == 0o644
    assert not nobody.exists()
    note = f"{len(plants) + 3} plants: 0 bytes of the target changed, both real orphans adopted in {took:.1f} s; 1777 refused"
    judge("C-16", dsn, tmp_path, note=note, recovery=took)


def refusal_of_theirs(folder):
    theirs = folder / "theirs"
    theirs.mkdir(mode=0o700)
    os.chown(theirs, 12345, 12345)
    return refusal(theirs)


def test_c_17_umask(dsn, proxy, journal, tmp_path):
    """The program's umask is 000."""
    before = os.umask(0)
    try:
        with Shop(proxy.dsn, read=dsn, journal=str(journal)) as shop:
            proxy.refuse()
            shop.log(2000, payload="x" * 500)  # with a second segment and a spare
            assert until(lambda: len(segments(journal)) >= 3, LIMIT)
            shop.handler._folder.quarantine(str(segments(journal)[-1].relative_to(journal)))
            modes = set()
            for path in [journal, *(found := list(journal.rglob("*")))]:
                with contextlib.suppress(FileNotFoundError):  # the new file in the place of the one that went
                    mode = path.stat().st_mode
                    modes.add((stat.S_ISDIR(mode), stat.S_IMODE(mode)))
            files = len(found)
            assert (journal / "quarantine").is_dir()
            proxy.heal()
            recovery = shop.recover()
            judge_shop("C-17", shop, note=f"folders 0700, files 0600: {files} of them", recovery=recovery)
    finally:
        os.umask(before)
    assert modes == {(True, 0o700), (False, 0o600)}


def with_header(data, change):
    """A segment's bytes with another first line; its checksum is right."""
    newline = data.index(b"\n")
    line = change(data[:newline].rpartition(b" ")[0])
    return line + b" %08x" % zlib.crc32(line) + data[newline:]


@pytest.mark.parametrize("version", [0, 99])
def test_c_18_another_format(version, dsn, proxy, journal, tmp_path, capfd):
    """A segment was written by an older or a newer logsluice."""
    leave_behind(proxy, tmp_path, journal, 400)
    file = segments(journal)[0]
    theirs = ids_of(file)
    data = with_header(file.read_bytes(), lambda line: line.replace(b"journal 1 {", b"journal %d {" % version))
    file.write_bytes(data)
    after = inherit(proxy.dsn, journal, read=dsn)
    (kept,) = (journal / "quarantine").iterdir()
    assert kept.read_bytes() == data
    assert after.adopted[0]["abandoned"] == {"quarantined": len(theirs)}
    assert "internal error" not in capfd.readouterr().err
    note = f"v{version}: kept whole in quarantine ({len(theirs)} records counted), {400 - len(theirs)} of other files stored"
    judge("C-18", dsn, tmp_path, note=note, recovery=after.seconds, lost_as=sorted(theirs))


# --- much, and odd --------------------------------------------------------------------------------------------------


def multiply(journal, files, rows):
    """Make a backlog of so many sealed segments of one stream out of a real one; its records."""
    file = only_segment(journal)
    image = image_of(file)
    frame = image.data[image.start : image.end].splitlines(keepends=True)[0]
    name = ids_in(frame)[0]
    begin, end = frame.split(f'"id": "{name}"'.encode())
    _seq, _, rest = begin.partition(b"\t")
    for number in range(files):
        header = replace(image.header, segment=number, size=256 * 1024).encode()
        data = header + b"".join(
            b'%d\t%s"id": "huge-%d"%s' % (number * rows + n + 1, rest, number * rows + n, end) for n in range(rows)
        )
        assert len(data) <= 256 * 1024
        text = data.ljust(256 * 1024, b"\0") + trailer(data)
        made = file.with_name(f"{number:08x}-{number:08x}.seg")
        made.write_bytes(text.ljust(file_size(256 * 1024), b"\0"))
        made.chmod(0o600)
    file.unlink()
    return files * rows


# As it logs, so does the next program: with a backlog of hundreds of megabytes in its folder.
MEETS_A_BACKLOG = (
    KEEPS
    + """
journaled(linger=0.05)

def memory(which):      # not getrusage: its peak may be the parent's, from before exec
    text = open("/proc/self/status").read()
    return int(text.split(which + ":")[1].split()[0]) * 1024

def own():              # not stats(): it counts the bytes of all files, and there are 800
    return handler()._pair[1].ledger.totals.stored

began = time.monotonic()
order("new-0")
first = until(lambda: own() >= 1) and time.monotonic() - began
base = memory("VmRSS")
slowest = 0.0
streams = lambda: [name for name in os.listdir(JOURNAL) if len(name) == 16]
n = 1
while len(streams()) > 1 or handler()._pair[1].adopted:
    since = time.monotonic()
    order(f"new-{n}")
    n += 1
    assert until(lambda: own() >= n)
    slowest = max(slowest, time.monotonic() - since)
    threading.Event().wait(0.1)
    assert since - began < 100, handler().stats().journal
tell(first=first, seconds=time.monotonic() - began, grown=memory("VmHWM") - base, slowest=slowest, new=n)
"""
)


def test_c_19_huge_backlog(dsn, journal, tmp_path):
    """A backlog of 200 MiB in 800 segments waits when the program starts."""
    run(dsn, tmp_path, DIES + GONE, status=9, args=["1"], **given(journal, "seed"))
    records = multiply(journal, 800, 220)
    size = sum(file.stat().st_size for file in segments(journal))
    assert size > 200 * MIB
    (tmp_path / "ids").unlink()
    (tmp_path / "ids.begun").unlink()
    ran = run(dsn, tmp_path, MEETS_A_BACKLOG, timeout=120, **given(journal, "new"))
    told = ran.told
    with Shop(dsn) as shop:
        counted = "SELECT count(*), count(DISTINCT attributes->>'id') FROM logsluice.logs WHERE attributes->>'id' LIKE "
        old = shop.query(counted + "'huge-%'")[0]
        new = shop.query(counted + "'new-%'")[0]
    note = (
        f"{size // MIB} MiB in 800 segments, {records} records, sent in {told['seconds']:.1f} s; first new record stored "
        f"after {told['first']:.2f} s, slowest of {told['new']} {told['slowest']:.2f} s; peak memory grew by "
        f"{told['grown'] / MIB:.1f} MiB"
    )
    missing = records - old[1] + told["new"] - new[1]
    matrix.row(
        "C-19", "journal", lost=missing, twice=old[0] - old[1] + new[0] - new[1], recovery=told["seconds"], note=note
    )
    assert told["first"] < 5 * ROOM
    assert told["slowest"] < 5 * ROOM
    assert told["grown"] < 64 * MIB


def test_c_20_poison(dsn, proxy, journal, tmp_path, monkeypatch, capfd):
    """Reading one segment raises what nobody foresaw, each time."""
    leave_behind(proxy, tmp_path, journal, 3000)
    files = [file for file in segments(journal) if ids_of(file)]
    assert len(files) >= 3
    poisoned = ids_of(files[1])
    name = str(files[1].relative_to(journal))
    real, reads = adoption.read_segment, []

    def read_segment(folder, file, number, boot):
        reads.append(file)
        if file == name:
            raise RuntimeError("a mistake of ours")
        return real(folder, file, number, boot)

    monkeypatch.setattr(adoption, "read_segment", read_segment)
    after = inherit(proxy.dsn, journal, read=dsn)
    assert reads.count(name) == 3
    (kept,) = (journal / "quarantine").iterdir()
    assert ids_in(kept.read_bytes()) == poisoned
    assert after.adopted[0]["abandoned"] == {"quarantined": len(poisoned)}
    note = f"tried 3 times, then in quarantine ({len(poisoned)} records counted); {3000 - len(poisoned)} of the others stored"
    judge("C-20", dsn, tmp_path, note=note, recovery=after.seconds, lost_as=sorted(poisoned))


def test_c_21_file_systems(dsn, tmp_path, capfd):
    """The folder is on tmpfs, and on a file system that nobody has tried."""
    place = tmp_path / "place"
    with mounted(place, "-t", "tmpfs", "-o", "size=16m,mode=700", "tmpfs"), Shop(dsn, journal=str(place)) as shop:
        shop.log(100)
        assert shop.flush()
        judge_shop("C-21", shop, note="tmpfs: 1 warning; ramfs: refused, and taken with journal_unsafe_fs")
    said = capfd.readouterr().err
    assert said.count("is on tmpfs: it survives the process, not the machine") == 1
    with mounted(place, "-t", "ramfs", "-o", "mode=700", "ramfs"):
        refused = refusal(place)
        assert "is on ramfs" in refused
        assert "journal_unsafe_fs=True" in refused
        assert refusal(place, journal_unsafe_fs=True) == "accepted"


def test_c_22_oscillation(dsn, proxy, journal):
    """PostgreSQL comes and goes every half second."""
    with Shop(proxy.dsn, read=dsn, journal=str(journal)) as shop:
        shop.log()
        assert shop.flush()
        # Counts rows in the order in which they arrive; what is rolled back leaves gaps.
        shop.do(
            "CREATE SEQUENCE public.arrivals",
            "ALTER TABLE logsluice.logs ADD COLUMN arrived bigint DEFAULT nextval('public.arrivals')",
        )
        stop = threading.Event()

        def load():
            while not stop.wait(0.005):
                shop.log(20)

        thread = threading.Thread(target=load)
        thread.start()
        progress = []
        try:
            for _ in range(5):
                proxy.refuse()
                proxy.cut()
                threading.Event().wait(0.5)  # the fault's own time
                before = shop.stats.stored
                proxy.heal()
                threading.Event().wait(0.5)
                assert until(
                    lambda before=before: shop.stats.stored > before, LIMIT
                )  # it stays longer on a busy machine
                progress.append(shop.stats.stored - before)
        finally:
            stop.set()
            thread.join(LIMIT)
        recovery = shop.recover()
        assert proxy.cuts >= 5
        rows = shop.query("SELECT seq FROM logsluice.logs WHERE stream = %s ORDER BY arrived", shop.route.buffer.stream)
        seqs = [row[0] for row in rows if row[0] > 0]
        disordered = sum(later < earlier for earlier, later in itertools.pairwise(seqs))
        assert not disordered
        note = (
            f"5 times away for 0.5 s; {len(shop.given)} records, out of order {disordered}, stored each time {progress}"
        )
        judge_shop("C-22", shop, note=note, recovery=recovery)
