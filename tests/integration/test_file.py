"""
JsonFileHandler on real files, by plain dictConfig: ids in = ids out after whatever happens to the file.

Fault matrix, I-08. Mounts, owners and other users need root; where they are not allowed a test fails and says so.
"""

from __future__ import annotations

import contextlib
import fcntl
import gzip
import json
import logging
import os
import signal
import stat
import subprocess
from collections import Counter
from pathlib import Path

import pytest

from logsluice.config import FileSettings, settings_from
from logsluice.diagnostics import Diagnostics
from logsluice.errors import ConfigError
from logsluice.handlers import JsonFileHandler
from logsluice.sinks import file as module
from logsluice.sinks.file import LogFile
from support.files import (
    LIMIT,
    Process,
    config,
    family,
    ids_in,
    lines_of,
    logging_to,
    logrotate,
    text_of,
)
from support.journals import image_of, mounted, remount, segments, streams
from support.processes import until

MIB = 1024 * 1024


@pytest.fixture
def path(tmp_path):
    return tmp_path / "logs" / "app.log"


@pytest.fixture
def open_folder():
    """A folder that other users may walk into: pytest's own are root's alone."""
    done = subprocess.run(["mktemp", "-d"], capture_output=True, text=True, check=True, timeout=LIMIT)
    path = Path(done.stdout.strip())
    path.chmod(0o755)
    yield path
    subprocess.run(["rm", "-rf", path], check=True, timeout=LIMIT)


def descriptors(path):
    """The open descriptors of this process on a file that has, or had, this name."""
    found = []
    for fd in Path("/proc/self/fd").iterdir():
        try:
            if str(fd.readlink()).startswith(str(path)):
                found.append(int(fd.name))
        except OSError:
            pass
    return found


# --- on an ordinary day ---------------------------------------------------------------------------------------------


def test_a_record_is_a_line_and_the_folder_is_made(path):
    with logging_to(path, service="shop") as log:
        log(3, amount=12.5)
        assert log.flush()
        lines = lines_of(path)
        assert [line["seq"] for line in lines] == [1, 2, 3]
        assert {line["stream"] for line in lines} == {str(log.handler._routes()[0].buffer.stream)}
        assert lines[0]["message"] == f"order {log.given[0]} "
        assert (lines[0]["service"], lines[0]["amount"], lines[0]["level"]) == ("shop", 12.5, "INFO")
        stats = log.stats
        assert (stats.offered, stats.stored, stats.waiting, stats.dropped) == (3, 3, 0, 0)
    log.check()


def test_nothing_is_opened_before_the_first_record(path):
    with logging_to(path):
        assert not path.parent.exists()
    assert not path.parent.exists()


def test_exit_drains(path, tmp_path):
    process = Process(
        "for n in range(5000): order(n)\n",
        tmp_path,
        "a",
        config=config({"file": {"filename": str(path), "linger": 30}}),
    )
    process.wait()
    assert len(process.ids) == 5000
    assert ids_in(path) == Counter(process.ids)


def test_dictconfig_again_loses_nothing(path, tmp_path):
    """The old handler is closed under logging's lock, and goes on sending; the new one writes to the same file."""
    text = """
for again in range(20):
    for n in range(50):
        order(again * 50 + n)
    logging.config.dictConfig(CONFIG)
"""
    process = Process(text, tmp_path, "a", config=config({"file": {"filename": str(path), "linger": 30}}))
    process.wait()
    assert ids_in(path) == Counter(process.ids)


def test_level_split_files(path):
    """errors.log and combined.log by the standard `level` of a handler."""
    errors = path.with_name("error.log")
    with logging_to(path, also={"errors": {"filename": str(errors), "level": "ERROR"}}) as log:
        log(5)
        log(2, level=logging.ERROR)
        log(1, level=logging.CRITICAL)
    log.check()
    assert [line["level"] for line in lines_of(errors)] == ["ERROR", "ERROR", "CRITICAL"]
    assert ids_in(errors) == Counter(log.given[5:])


def test_a_formatter_of_ones_own_with_tracebacks(path):
    """Records of several lines are whole and in order; a terminal's control characters of a record do nothing."""
    formatters = {"plain": {"format": "%(asctime)s %(levelname)s %(name)s %(message)s"}}
    with logging_to(path, formatters=formatters, formatter="plain") as log:
        for n in range(300):
            try:
                raise ValueError(f"bad {n}")
            except ValueError:
                log.logger.exception("order %s\x1b[2J failed", n)
    text = path.read_text(encoding="utf-8")
    parts = text.split("Traceback (most recent call last):\n")
    assert len(parts) == 301
    for n, part in enumerate(parts[:-1]):
        assert part.endswith(f"ERROR {log.logger.name} order {n}\\x1b[2J failed\n")
    for n, part in enumerate(parts[1:]):
        first, second, third = part.split("\n")[:3]
        assert first.startswith('  File "')
        assert "raise ValueError" in second
        assert f"ValueError: bad {n}" in part.split("\n")[2:4], (first, second, third)
    assert "\x1b" not in text


def test_json_of_python_json_loggers_own_formatter(path):
    formatters = {"json": {"()": "pythonjsonlogger.json.JsonFormatter", "fmt": "%(levelname)s %(message)s"}}
    with logging_to(path, formatters=formatters, formatter="json") as log:
        log(2, token="s3cret")
    assert [(line["levelname"], line["token"]) for line in lines_of(path)] == [("INFO", "[redacted]")] * 2


def test_two_handlers_of_one_process_on_one_file(path):
    with logging_to(path, max_bytes=64 * 1024, also={"other": {"filename": str(path), "max_bytes": 64 * 1024}}) as log:
        log(2000, text="x" * 50)
    assert ids_in(path) == Counter(log.given + log.given)
    assert len(family(path)) > 5


@pytest.mark.parametrize("umask", [0o000, 0o077])
def test_mode_whatever_the_umask(path, tmp_path, umask):
    given = {"filename": str(path), "max_bytes": 4096, "compress": True}
    Process("for n in range(100): order(n)\n", tmp_path, "a", config=config({"file": given}), umask=umask).wait()
    files = family(path)
    assert any(file.suffix == ".gz" for file in files)
    assert {stat.S_IMODE(file.stat().st_mode) for file in files} == {0o640}


def test_mode_and_owner(path):
    with logging_to(path, mode="0604", owner="nobody:daemon", max_bytes=4096, compress=True) as log:
        log(100)
    for file in family(path):
        there = file.stat()
        assert (file.owner(), file.group(), stat.S_IMODE(there.st_mode)) == ("nobody", "daemon", 0o604)
    log.check()


def test_a_symbolic_link_stays(path, tmp_path):
    """The file behind the link is written to and rotated, in its own folder."""
    path.parent.mkdir()
    elsewhere = tmp_path / "disk2" / "shop.log"
    path.symlink_to(elsewhere)
    with logging_to(path, max_bytes=4096) as log:
        log(100)
    assert path.is_symlink()
    assert list(path.parent.iterdir()) == [path]
    assert len(family(elsewhere)) > 3
    assert ids_in(elsewhere) == Counter(log.given)


def test_what_is_no_file_is_refused():
    for name in ("/dev/null", "/", "", "logs/"):
        with pytest.raises(ConfigError, match="file"):
            JsonFileHandler(filename=name)


# --- what others do to the file -------------------------------------------------------------------------------------


ROTATED = """{path} {{
    rotate 100
    missingok
    notifempty
    {more}
}}
"""


@contextlib.contextmanager
def rotated_by_logrotate(path, folder, more, *, times):
    """Have logrotate run between flushed records and others; nothing is lost, nothing doubled."""
    (folder / "logrotate.conf").write_text(ROTATED.format(path=path, more=more))
    with logging_to(path) as log:
        for _ in range(times):
            log(50)
            assert log.flush()
            logrotate(folder, "--force")
            log(50)
        assert log.flush()
        yield
    log.check()


@pytest.mark.parametrize("more", ["create 0640", "nocreate", "create 0640\n    compress\n    delaycompress"])
def test_logrotate_renames(path, tmp_path, more):
    """Neither a signal nor copytruncate: the handler sees that the name is another file, or none."""
    with rotated_by_logrotate(path, tmp_path, more, times=5):
        assert len(descriptors(path)) == 1
    assert len(family(path)) == 6


def test_logrotate_renames_while_it_is_written(path, tmp_path):
    """In the middle of the stream: what is written between rename and look goes into the renamed file."""
    (tmp_path / "logrotate.conf").write_text(ROTATED.format(path=path, more="nocreate"))
    text = """
n = 0
while not os.path.exists(os.environ["STOP"]):
    order(n)
    n += 1
"""
    stop = tmp_path / "stop"
    process = Process(
        text,
        tmp_path,
        "a",
        config=config({"file": {"filename": str(path), "when_full": "block", "block_timeout": 60}}),
        env={"STOP": str(stop)},
    )
    for count in range(1, 11):
        before = len(process.ids)
        assert until(lambda: path.exists() and path.stat().st_size and len(process.ids) > before + 100, LIMIT), (
            process.err
        )
        logrotate(tmp_path, "--force")
    stop.touch()
    process.wait()
    assert ids_in(path) == Counter(process.ids)
    assert len(family(path)) >= 10


def test_a_file_renamed_before_its_lock_is_taken(path, monkeypatch):
    """The lock is then that of the old one: the new one's is taken, or two would write into it at once."""
    flock, old = fcntl.flock, path.with_suffix(".old")

    def meanwhile(descriptor, how):
        monkeypatch.undo()
        path.rename(old)
        flock(descriptor, how)

    file = LogFile(settings_from({"filename": str(path)}, FileSettings), Diagnostics("test"), lambda: None)
    monkeypatch.setattr(fcntl, "flock", meanwhile)
    with file.held():
        file.append(b"{}\n")
        with path.open("rb") as other, pytest.raises(BlockingIOError):
            flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
    file.close()
    assert (old.read_bytes(), path.read_bytes()) == (b"", b"{}\n")


def test_copytruncate(path, tmp_path):
    """Written again from the beginning, no hole. (What is logged between its copy and its cut is lost to anybody.)"""
    with rotated_by_logrotate(path, tmp_path, "copytruncate", times=3):
        assert b"\0" not in path.read_bytes()


def test_the_file_is_deleted(path):
    with logging_to(path) as log:
        log(10)
        assert log.flush()
        path.unlink()
        log(10)
        assert log.flush()
        assert ids_in(path) == Counter(log.given[10:])
        subprocess.run(["rm", "-r", path.parent], check=True, timeout=LIMIT)
        log(10)
    assert ids_in(path) == Counter(log.given[20:])


def test_another_file_has_the_name(path):
    """An editor saves by renaming a copy over it."""
    with logging_to(path) as log:
        log(10)
        assert log.flush()
        copy = path.with_name("copy")
        copy.write_bytes(path.read_bytes())
        copy.rename(path)
        log(10)
    log.check()


# --- several processes ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("compress", [False, True])
def test_four_processes_on_one_file_that_is_rotated(path, tmp_path, compress):
    """No line is torn, none is lost, none stands twice, no file is larger than it may be."""
    given = {"filename": str(path), "max_bytes": 100_000, "backup_count": 10_000, "compress": compress, "linger": 0.005,
             "io_timeout": LIMIT}  # fmt: skip
    text = """
for n in range(2500):
    order(n, "x" * (n % 200))
    if n % 25 == 0:
        handler().flush()
"""
    processes = [Process(text, tmp_path, f"p{n}", config=config({"file": given})) for n in range(4)]
    for process in processes:
        process.wait()
        assert process.err == ""
    given_ids = [one for process in processes for one in process.ids]
    assert len(given_ids) == 10_000
    assert ids_in(path) == Counter(given_ids)
    files = family(path)
    assert len(files) > 10
    assert max(len(text_of(file)) for file in files) <= 100_000
    for name in ("p0", "p1", "p2", "p3"):
        mine = [line for file in [path] for line in lines_of(file) if line.get("id", "").startswith(f"{name}-")]
        assert len({line["stream"] for line in mine}) == 1


def test_a_forked_child_has_a_stream_of_its_own(path, tmp_path):
    text = """
def child(n):
    for m in range(100):
        order(f"{n}-{m}")

order("parent")
for n in range(4):
    if os.fork() == 0:
        child(n)
        sys.exit()
for n in range(4):
    assert os.wait()[1] == 0
"""
    process = Process(text, tmp_path, "a", config=config({"file": {"filename": str(path)}}))
    process.wait()
    assert len(process.ids) == 401
    assert ids_in(path) == Counter(process.ids)
    assert len({line["stream"] for line in lines_of(path)}) == 5


def test_a_fork_while_the_lock_is_held(path, tmp_path):
    """The parent is killed inside of the lock; its child lives on, and must not hold the lock of the file for it."""
    text = """
from logsluice.sinks.file import LogFile
inside, append = threading.Event(), LogFile.append
def slow(self, lines):
    inside.set()
    append(self, lines)
    threading.Event().wait()            # the lock is held for ever
LogFile.append = slow
order(1)
assert inside.wait(60)
pid = os.fork()
if pid == 0:
    os.write(1, b"child\\n")
    signal.pause()                      # it lives, and logs nothing
os.write(1, f"{pid}\\n".encode())
signal.pause()
"""
    process = Process(text, tmp_path, "a", config=config({"file": {"filename": str(path)}}))
    told = {process.process.stdout.readline().strip(), process.process.stdout.readline().strip()}
    (child,) = told - {"child"}
    try:
        with path.open("rb") as file, pytest.raises(BlockingIOError):
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        process.process.kill()
        process.process.wait(LIMIT)
        os.kill(int(child), 0)
        with logging_to(path, io_timeout=LIMIT) as log:
            log(10)
            assert log.flush()
        assert set(log.given) <= set(ids_in(path))
    finally:
        os.kill(int(child), signal.SIGKILL)
        process.process.stdout.close()


def test_a_lock_that_somebody_holds_is_waited_for(path, capfd):
    """For io_timeout; then it is said, and tried again."""
    with logging_to(path, io_timeout=0.1) as log:
        log(1)
        assert log.flush()
        with path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            log(10)
            assert until(lambda: log.stats.retries, LIMIT)
            assert log.stats.waiting == 10
        assert log.flush()
    log.check()
    assert "another process holds the file's lock" in capfd.readouterr().err


# --- the disk -------------------------------------------------------------------------------------------------------


def test_disk_full_in_the_middle_of_a_batch(tmp_path, capfd):
    """Counted, said, no half line; then there is room again."""
    place = tmp_path / "small"
    with mounted(place, "-t", "tmpfs", "-o", "size=256k,mode=700", "tmpfs"):
        path = place / "app.log"
        with logging_to(path, capacity_bytes=16 * MIB, max_frame_bytes=MIB, batch_bytes=100_000) as log:
            log(10)
            assert log.flush()
            log(2000, text="x" * 400)
            assert until(lambda: log.stats.retries, LIMIT)
            assert os.statvfs(place).f_bavail == 0 or log.stats.waiting
            with path.open("rb") as file:
                fcntl.flock(file, fcntl.LOCK_SH)  # between two tries: in one there is half a line, until it is cut off
                waiting = log.stats.waiting
                assert 0 < waiting < 2000
                assert log.stats.stored + waiting == 2010
                assert ids_in(path) == Counter(log.given[: 2010 - waiting])  # each line is whole
            remount(place, "size=16m")
            assert log.flush()
            log(10)
            assert log.flush()
            assert log.stats.dropped == 0
        log.check()
    assert "No space left on device" in capfd.readouterr().err


def test_disk_full_and_the_half_line_cannot_be_taken_back(tmp_path, monkeypatch):
    """What of it is in the file is looked for, before it is written again."""
    path = tmp_path / "app.log"
    write, truncate = os.write, os.ftruncate
    failures = []

    def fails(descriptor, data):
        if len(data) > 20_000 and len(failures) < 1 and Path(f"/proc/self/fd/{descriptor}").readlink() == path:
            return write(descriptor, data[:10_001])
        if failures == [] and len(data) > 5_000 and os.fstat(descriptor).st_size > 10_000:
            failures.append("write")
            raise OSError(5, "Input/output error")
        return write(descriptor, data)

    def fails_too(descriptor, length):
        if len(failures) == 1:
            failures.append("truncate")
            raise OSError(5, "Input/output error")
        return truncate(descriptor, length)

    with logging_to(path, io_timeout=LIMIT) as log:
        log(1)
        assert log.flush()
        monkeypatch.setattr(os, "write", fails)
        monkeypatch.setattr(os, "ftruncate", fails_too)
        with path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX)  # nothing is written before all is logged: a batch is large enough to fail
            log(200, text="x" * 100)
        assert log.flush()
        monkeypatch.undo()
        log(1)
    assert failures == ["write", "truncate"]
    log.check()
    assert log.stats.stored == 202


def test_read_only_file_system_is_blocked_and_heals(tmp_path, capfd):
    place = tmp_path / "disk"
    with mounted(place, "-t", "tmpfs", "-o", "size=4m,mode=700", "tmpfs"):
        path = place / "app.log"
        with logging_to(path) as log:
            log(10)
            assert log.flush()
            log.handler._routes()[0].sink.close()  # a disk that is written to cannot be made read-only
            remount(place, "ro")
            log(10)
            assert until(lambda: log.stats.recent["failed"], LIMIT)
            assert log.stats.recent["failed"][-1]["verdict"] == "blocked"
            assert log.stats.waiting == 10
            remount(place, "rw")
            assert log.flush()
        log.check()
    said = capfd.readouterr().err
    assert f"blocked, records are kept: {path}: Read-only file system; to mend it: mount the disk of {place} so" in said


def test_a_folder_without_the_right_is_blocked_and_heals(open_folder, tmp_path):
    """As another user: root may write everywhere."""
    place = open_folder / "logs"
    place.mkdir(mode=0o755)
    path = place / "app.log"
    text = """
os.setgroups([])
os.setgid(65534)
os.setuid(65534)
order(1)
def blocked():
    return handler().stats().recent["failed"]
end = time.monotonic() + 30
while not blocked() and time.monotonic() < end:
    threading.Event().wait(0.01)
os.write(1, (json.dumps([one["verdict"] for one in blocked()][:1]) + "\\n").encode())
order(2)
assert handler().flush(30)
"""
    process = Process(text, tmp_path, "a", config=config({"file": {"filename": str(path)}}))
    assert process.process.stdout.readline() == '["blocked"]\n', process.err
    os.chown(place, 65534, 65534)
    process.wait()
    assert ids_in(path) == Counter(process.ids)
    assert len(process.ids) == 2
    assert (
        f"blocked, records are kept: {path}: Permission denied; to mend it: let user 65534 write into {place} and app.log"
        in process.err
    )


def test_a_folder_that_is_a_file_is_blocked(tmp_path, capfd):
    (tmp_path / "logs").write_text("")
    with logging_to(tmp_path / "logs" / "app.log") as log:
        log(1)
        assert until(lambda: log.stats.recent["failed"], LIMIT)
        (tmp_path / "logs").unlink()
        assert log.flush()
    log.check()
    assert "blocked, records are kept" in capfd.readouterr().err


# --- a process that dies --------------------------------------------------------------------------------------------


def inherit(path, journal, **options):
    """Be the next process until nothing of a dead one is left; `stats().journal`."""
    with logging_to(path, journal=str(journal), **options) as log:
        log(1)
        mine = {f"{route.buffer.stream:016x}" for route in log.handler._routes()}
        assert until(lambda: streams(journal) <= mine and not log.handler._pairs[0][1].adopted, LIMIT), log.stats
        assert log.flush()
        return log.given, log.stats.journal


WRITES = """
n = 0
while True:
    order(n, "x" * (n % 300))
    n += 1
"""


def judge(path, processes, given):
    """Lost 0, twice 0. A record whose call had not returned may be there, once."""
    found = ids_in(path)
    wanted = {one for process in processes for one in process.ids} | set(given)
    lost, twice = wanted - found.keys(), [one for one, times in found.items() if times > 1]
    print(f"{len(wanted)} records of {len(processes)} killed processes: lost {len(lost)}, twice {len(twice)}")
    assert (sorted(lost), twice) == ([], [])
    assert len(found) <= len(wanted) + len(processes)  # at most the one in whose call it died


@pytest.mark.parametrize("names", ["sluice", "otel", "ecs", "plain"])
def test_kill_9_while_it_writes(path, tmp_path, names):
    """With a journal: nothing lost, nothing twice, whatever the names of the keys."""
    journal = tmp_path / "journal"
    # An extra stands flat, in Attributes or in labels.
    given = {"filename": str(path), "journal": str(journal), "names": names, "linger": 0.001, "max_bytes": 300_000,
             "compress": names == "otel", "when_full": "block", "block_timeout": LIMIT, "backup_count": 10_000}  # fmt: skip
    processes = []
    for n in range(4):
        process = Process(WRITES, tmp_path, f"p{n}", config=config({"file": given}))
        assert until(lambda: len(process.ids) > 500 + 700 * n, LIMIT), process.err
        process.kill()
        processes.append(process)
    ids, _ = inherit(path, journal, names=names)
    found = Counter()
    for line in lines_of(path):
        where = {"otel": line.get("Attributes"), "ecs": line.get("labels")}.get(names, line)
        if "id" in where:
            found[where["id"]] += 1
    wanted = {one for process in processes for one in process.ids} | set(ids)
    lost, twice = wanted - found.keys(), [one for one, times in found.items() if times > 1]
    print(f"{names}: {len(wanted)} records of {len(processes)} killed processes: lost {len(lost)}, twice {len(twice)}")
    assert (sorted(lost), twice) == ([], [])


def test_four_processes_with_one_journal_are_killed_one_after_the_other(path, tmp_path):
    """Siblings, and the next lives, take over what each left; some die while they do."""
    journal = tmp_path / "journal"
    given = {"filename": str(path), "journal": str(journal), "linger": 0.005, "max_bytes": 200_000, "when_full": "block",
             "block_timeout": LIMIT, "backup_count": 10_000}  # fmt: skip
    text = WRITES.replace("n += 1", "n += 1\n    if n % 20 == 0: threading.Event().wait(0.01)")
    begun = []

    def begin():
        begun.append(Process(text, tmp_path, f"p{len(begun)}", config=config({"file": given})))
        return begun[-1]

    running = [begin() for _ in range(4)]
    for turn in range(12):
        oldest = running.pop(0)
        assert until(lambda: len(oldest.ids) > 100, LIMIT), oldest.err
        oldest.kill()
        if turn < 8:
            running.append(begin())
    ids, _ = inherit(path, journal)
    for process in begun:
        assert "internal error" not in process.err, process.err
    judge(path, begun, ids)


@pytest.mark.parametrize("rotated", ["no", "logrotate", "ours"])
@pytest.mark.parametrize("after", [1, 3])
def test_it_dies_between_the_write_and_the_acknowledgement(path, tmp_path, after, rotated):
    """The lines are there, and the journal does not know: they are found, also in a file that was rotated since."""
    journal = tmp_path / "journal"
    more = {"max_bytes": 3000, "compress": True} if rotated == "ours" else {}
    # Sent by `flush` alone: else it may die between a record and the line that says that its call returned.
    given = {"filename": str(path), "journal": str(journal), "linger": LIMIT, **more}
    text = "base = 0\nfor turn in range(5):\n    for n in range(50): order(turn * 50 + n)\n    handler().flush()\n"
    process = Process(
        text, tmp_path, "a", config=config({"file": given}), env={"LOGSLUICE_CRASH_AT": f"after-commit:{after}"}
    )
    process.wait(137)
    assert ids_in(path).keys() & set(process.ids)
    if rotated == "logrotate":
        (tmp_path / "logrotate.conf").write_text(ROTATED.format(path=path, more="create 0640\n compress"))
        logrotate(tmp_path, "--force")
    ids, journaled = inherit(path, journal, **more)
    judge(path, [process], ids)
    assert [one["state"] for one in journaled["adopted"]] == ["done"]


@pytest.mark.parametrize("how", ["renamed", "compressed", "shifted"])
def test_lines_are_found_in_a_file_that_logrotate_takes_during_the_look(path, monkeypatch, how):
    """What was listed had another name when it was opened: its lines stood twice."""
    rotated = path.with_name("app.log.1")
    path.parent.mkdir()
    path.write_text("")
    holds = path if how == "renamed" else rotated
    holds.write_text('{"stream": "77"}\n')
    real, todo = module._gather, [how]

    def gather(file, *given):
        if file == holds and todo:
            todo.pop()
            if how == "compressed":
                rotated.with_name("app.log.1.gz").write_bytes(gzip.compress(rotated.read_bytes()))
                rotated.unlink()
            else:
                if how == "shifted":
                    rotated.rename(path.with_name("app.log.2"))
                path.rename(rotated)
        return real(file, *given)

    monkeypatch.setattr(module, "_gather", gather)
    looked_into = LogFile(settings_from({"filename": str(path)}, FileSettings), Diagnostics("file"), lambda: None)
    looked_into.path = path
    assert len(looked_into.there(77)) == 1
    assert not todo


def test_a_child_that_has_the_file_open_does_not_hold_what_was_rotated(path):
    """The lock is of the open file, which a child has, too: nobody could compress it for as long as it lived."""
    options = settings_from({"filename": str(path), "max_bytes": 1024}, FileSettings)
    file = LogFile(options, Diagnostics("file"), lambda: None)
    with file.held():
        child = os.dup(file.open())  # as a fork does
        file.append(b"x\n")
        file.rotate()
    (rotated,) = path.parent.glob(f"{path.name}.*")
    with rotated.open("rb") as other:
        fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
    os.close(child)
    file.close()


def test_control_without_looking_lines_stand_twice(path, tmp_path, monkeypatch):
    """The test above can fail."""
    from logsluice.sinks.file import LogFile

    journal = tmp_path / "journal"
    given = {"filename": str(path), "journal": str(journal)}
    text = "for n in range(50): order(n)\nhandler().flush()\n"
    process = Process(text, tmp_path, "a", config=config({"file": given}), env={"LOGSLUICE_CRASH_AT": "after-commit:1"})
    process.wait(137)
    monkeypatch.setattr(LogFile, "there", lambda self, stream: set())
    inherit(path, journal)
    found = ids_in(path)
    assert [one for one, times in found.items() if times == 2]


def test_lines_of_a_formatter_of_ones_own_are_written_at_least_once(path, tmp_path):
    """They have no number: after such a death what was in flight stands twice, and nothing is lost."""
    journal = tmp_path / "journal"
    formatters = {"own": {"format": '{"id": "%(id)s"}'}}
    # Sent by `flush` alone: a record whose call had not returned is written, and its id is nowhere.
    given = {"filename": str(path), "journal": str(journal), "formatter": "own", "linger": LIMIT}
    text = "for n in range(50): order(n)\nhandler().flush()\n"
    process = Process(
        text, tmp_path, "a", config=config({"file": given}, formatters=formatters),
        env={"LOGSLUICE_CRASH_AT": "after-commit:1"},
    )  # fmt: skip
    process.wait(137)
    in_flight = set(ids_in(path))
    with logging_to(path, journal=str(journal), formatters=formatters, formatter="own") as log:
        log(1)
        assert until(lambda: len(streams(journal)) == 1, LIMIT)
    found = ids_in(path)
    assert found.keys() == {*process.ids, *log.given} | in_flight
    assert {one for one, times in found.items() if times == 2} == in_flight


def test_a_sibling_adopts_within_its_life(path, tmp_path):
    journal = tmp_path / "journal"
    given = {"filename": str(path), "journal": str(journal), "linger": 30}
    with logging_to(path, journal=str(journal)) as log:
        log(1)
        process = Process(
            "for n in range(100): order(n)\nos.kill(os.getpid(), 9)\n", tmp_path, "a", config=config({"file": given})
        )
        process.wait(-9)
        assert until(lambda: len(streams(journal)) == 1, LIMIT)  # its own: nobody writes while the file is read
        assert log.flush()
        assert set(process.ids) <= set(ids_in(path))
    judge(path, [process], log.given)


def test_a_journal_of_another_file_is_left(path, tmp_path, capfd):
    journal = tmp_path / "journal"
    other = {"filename": str(path.with_name("other.log")), "journal": str(journal), "linger": 30}
    process = Process("order(1)\nos.kill(os.getpid(), 9)\n", tmp_path, "a", config=config({"file": other}))
    process.wait(-9)
    with logging_to(path, journal=str(journal)) as log:
        log(1)
        assert until(lambda: log.stats.journal["left"], LIMIT)
    log.check()
    assert "holds records for another target" in capfd.readouterr().err


TORN = b'{"ts": "2026-11-27T02:56:41.402010Z", "level": "INFO", "message": "ha'


@pytest.mark.parametrize("living", [False, True])
def test_a_torn_last_line_is_taken_away(path, capfd, living):
    """Also by a process that has the file open already: its next line would be glued to it."""
    path.parent.mkdir()
    if not living:
        path.write_bytes(b'{"id": "before"}\n' + TORN)
    with logging_to(path) as log:
        log(1)
        assert log.flush()
        if living:
            with path.open("ab") as file:
                file.write(TORN)
            log(1)
    assert ids_in(path) == Counter(log.given + ([] if living else ["before"]))
    assert f"{path} ended in a line without its end ({len(TORN)} bytes): cut off" in capfd.readouterr().err


@pytest.mark.parametrize("end", [b'{"id": "whole"}', b"somebody's own text", b"x" * 5_000_000])
def test_what_is_not_plainly_a_torn_line_of_ours_is_kept(path, end):
    path.parent.mkdir()
    path.write_bytes(end)
    with logging_to(path) as log:
        log(1)
    data = path.read_bytes()
    assert data.startswith(end + b"\n{")
    assert json.loads(data[len(end) + 1 :])["id"] == log.given[0]


def test_rows_of_a_damaged_block_go_to_a_file_of_their_own(path, tmp_path):
    """They are no lines any more: kept with the reason, counted as dead letters, the others written."""
    journal = tmp_path / "journal"
    text = """
import fcntl
file = open(os.environ["LOCKED"], "ab")
fcntl.flock(file, fcntl.LOCK_EX)              # nothing can be written: segments wait, and are sealed and summed
for n in range(9000): order(n, "x" * 400)
end = time.monotonic() + 30
from pathlib import Path
journal = Path(CONFIG["handlers"]["file"]["journal"])
def sealed():
    for one in journal.glob("*/*.seg"):
        try:
            if b"logsluice-sealed" in one.read_bytes():
                return True
        except FileNotFoundError:
            pass                                  # its keeper is just making it
while not sealed() and time.monotonic() < end:
    threading.Event().wait(0.05)
os.kill(os.getpid(), 9)
"""
    path.parent.mkdir()
    given = {"filename": str(path), "journal": str(journal), "max_frame_bytes": MIB, "io_timeout": 0.2}
    process = Process(text, tmp_path, "a", config=config({"file": given}), env={"LOCKED": str(path)})
    process.wait(-9)
    (stream,) = streams(journal)
    segment = next(one for one in segments(journal) if image_of(one).sealed)
    data = bytearray(segment.read_bytes())
    at = data.index(b"xxxxxxxxxx", 100_000)
    data[at] ^= 1
    segment.write_bytes(data)
    ids, journaled = inherit(path, journal)
    (adopted,) = journaled["adopted"]
    assert adopted["dead"] > 50
    dead = [json.loads(line) for line in path.with_name("app.log.dead").read_text().splitlines()]
    assert len(dead) == adopted["dead"]
    assert all(one["stream"] == str(int(stream, 16)) and one["error"] for one in dead)
    found = ids_in(path)
    kept = {
        json.loads(one["row"].split("\t", 3)[3])["id"]
        for one in dead
        if one["row"].count("\t") == 3 and one["row"].endswith("}")
    }
    assert {*found, *kept} >= {*process.ids, *ids}
    assert max(found.values()) == 1
    assert not found.keys() & kept


# --- waiting, looking -----------------------------------------------------------------------------------------------


def test_a_damaged_row_that_the_disk_takes_half_of_is_kept_whole(path, monkeypatch):
    path.parent.mkdir()
    file = LogFile(settings_from({"filename": str(path)}, FileSettings), Diagnostics("file"), lambda: None)
    file.path = path
    with monkeypatch.context() as full:
        real = os.write
        full.setattr(module.os, "write", lambda descriptor, data: real(descriptor, data[:5]))
        with pytest.raises(OSError, match="No space left"):
            file.keep_dead({"row": "half"})
    file.keep_dead({"row": "whole"})
    assert path.with_name("app.log.dead").read_text() == '{"row": "whole"}\n'


def test_an_idle_handler_lets_go_of_the_file(path):
    with logging_to(path, idle_close=0.1) as log:
        log(1)
        assert log.flush()
        assert until(lambda: not descriptors(path), LIMIT)
        log(1)
        assert log.flush()
    log.check()


def test_total_bytes_is_never_exceeded_by_more_than_a_batch(path):
    with logging_to(path, max_bytes=20_000, total_bytes=100_000, batch_bytes=5_000) as log:
        for _ in range(60):
            log(20, text="x" * 100)
            assert log.flush()
            assert sum(file.stat().st_size for file in family(path)) <= 100_000
    assert set(ids_in(path)) == set(log.given[-len(ids_in(path)) :]), "the oldest went"


# --- as the fallback of another handler -----------------------------------------------------------------------------


def test_as_a_fallback_it_takes_what_is_left_at_exit(path, tmp_path):
    """Handed over by the other handler's own thread: not to be taken for a record of the driver's.

    With a longer grace than people have: on a busy machine the other's thread may come late.
    """
    given = config({"file": {"filename": str(path)}})
    given["handlers"]["postgres"] = {
        "class": "logsluice.PostgresHandler", "dsn": "host=127.0.0.1 port=1", "fallback": "file", "shutdown_timeout": 0.1
    }  # fmt: skip
    given["loggers"][""]["handlers"] = ["postgres"]
    text = "from logsluice import base, listener\nlistener.GRACE = base.LATE = 60\nfor n in range(30): order(n)\n"
    process = Process(text, tmp_path, "a", config=given)
    process.wait()
    assert ids_in(path) == Counter(process.ids), process.err
    assert len(process.ids) == 30
    assert "are lost" not in process.err
