"""The journal's folder: who may be in it, whose a stream is, and what is refused. Real files, real processes."""

import errno
import os
import shutil
import signal
import stat
import subprocess
import sys
import textwrap
import threading
import time
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest

from logsluice import folder as module
from logsluice.errors import ConfigError
from logsluice.folder import LOCK, OWNER, QUARANTINE, BusyError, Folder, check, file_system, unfit_interpreter
from support.processes import until

LIMIT = 20  # seconds: a net below what takes milliseconds
STREAM = "00000000deadbeef"


@pytest.fixture
def path(tmp_path):
    return tmp_path / "journal"


@pytest.fixture
def folder(path):
    made = Folder(str(path))
    made.root()
    yield made
    made.close()


def mode(path):
    return stat.S_IMODE(os.lstat(path).st_mode)


def descriptors():
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


@contextmanager
def program(text, *args):
    """A Python program that says "ready" and goes on until its stdin is closed."""
    code = "import os, signal, subprocess, sys\nfrom logsluice.folder import Folder\n" + textwrap.dedent(text)
    process = subprocess.Popen(
        [sys.executable, "-c", code, *map(str, args)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout.readline().strip() == "ready"
        yield process
    finally:
        process.stdin.close()  # children of it that are left read it too, and end
        try:
            process.wait(LIMIT)
        finally:
            process.kill()
            process.stdout.close()


# --- the place ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o077, 0o777])
def test_modes_are_exact_whatever_the_umask(path, umask):
    path.mkdir(mode=0o700)
    before = os.umask(umask)
    try:
        folder = Folder(str(path))
        with folder.exclusive(1):
            owner = folder.own(STREAM)
            segment = folder.make(f"{STREAM}/a.seg", 100)
        folder.quarantine(f"{STREAM}/a.seg")
    finally:
        os.umask(before)
    found = {str(one.relative_to(path)): mode(one) for one in path.rglob("*")}
    assert found == {
        LOCK: 0o600,
        STREAM: 0o700,
        f"{STREAM}/{OWNER}": 0o600,
        QUARANTINE: 0o700,
        f"{QUARANTINE}/{STREAM}-a.seg": 0o600,
    }
    for descriptor in (owner, segment):
        os.close(descriptor)
    folder.close()


def test_the_folder_is_made_0700_under_umask_0(tmp_path):
    before = os.umask(0)
    try:
        Folder(str(tmp_path / "made")).root()
    finally:
        os.umask(before)
    assert mode(tmp_path / "made") == 0o700


@pytest.mark.parametrize("wrong", [0o777, 0o775, 0o722, 0o770, 0o1777])
def test_a_folder_that_others_may_write_into_is_refused(path, wrong):
    path.mkdir()
    path.chmod(wrong)
    with pytest.raises(PermissionError, match="chmod go-w"):
        Folder(str(path)).root()
    with pytest.raises(ConfigError, match="others may write into it"):
        check(str(path), unsafe_fs=True)
    assert list(path.iterdir()) == []


@pytest.mark.parametrize("right", [0o755, 0o700, 0o750])
def test_a_folder_that_others_may_only_read_is_taken(path, right):
    path.mkdir()
    path.chmod(right)
    Folder(str(path)).root()


def test_a_folder_of_another_user_is_refused(path, monkeypatch):
    path.mkdir(mode=0o700)
    if os.geteuid() == 0:
        os.chown(path, 12345, 12345)
    else:
        other = os.geteuid() + 1
        monkeypatch.setattr(os, "geteuid", lambda: other)
    with pytest.raises(PermissionError, match="belongs to user"):
        Folder(str(path)).root()
    assert list(path.iterdir()) == []


def test_the_folder_may_be_a_link_of_the_administrators(tmp_path, path):
    path.mkdir(mode=0o700)
    (tmp_path / "link").symlink_to(path)
    folder = Folder(str(tmp_path / "link"))
    os.close(folder.make("a", 10))
    assert (path / "a").stat().st_size == 10


def test_a_folder_that_somebody_removed_is_made_again(path, folder):
    with folder.exclusive(1):
        os.close(folder.own(STREAM))
    shutil.rmtree(path)
    with folder.exclusive(1):  # its lock is gone as well: held in the removed folder it would exclude nobody
        with pytest.raises(BusyError), Folder(str(path)).exclusive(0):
            pass
        os.close(folder.own(STREAM))
    assert {one.name for one in path.rglob("*")} == {LOCK, STREAM, OWNER}


def test_a_lock_that_somebody_removed_is_made_again(path, folder):
    with folder.exclusive(1):
        pass
    (path / LOCK).unlink()
    with folder.exclusive(1), pytest.raises(BusyError), Folder(str(path)).exclusive(0):
        pass


# --- planted ------------------------------------------------------------------------------------------------------------


def plant(kind, where, victim):
    if kind == "symlink":
        where.symlink_to(victim)
    elif kind == "dangling":
        where.symlink_to(victim.parent / "nothing")
    elif kind == "hardlink":
        os.link(victim, where)
    elif kind == "fifo":
        os.mkfifo(where, 0o600)
    elif kind == "folder":
        where.mkdir()
    elif kind == "foreign":
        where.write_bytes(b"theirs")
        os.chown(where, 12345, 12345)


KINDS = ["symlink", "dangling", "hardlink", "fifo", "folder"] + (["foreign"] if os.geteuid() == 0 else [])


@pytest.fixture
def victim(tmp_path):
    """A file of somebody: whatever is planted, it is not touched."""
    file = tmp_path / "victim"
    file.write_bytes(b"precious")
    before = file.stat()
    yield file
    assert file.read_bytes() == b"precious"
    assert (file.stat().st_mode, file.stat().st_mtime_ns) == (before.st_mode, before.st_mtime_ns)
    assert not (tmp_path / "nothing").exists()


@pytest.mark.parametrize("kind", KINDS)
def test_a_planted_lock_is_refused(path, folder, victim, kind):
    plant(kind, path / LOCK, victim)
    before = descriptors()
    for _ in range(3):
        with pytest.raises(OSError), folder.exclusive(1):
            pass
    assert descriptors() == before


@pytest.mark.parametrize("kind", KINDS)
def test_a_planted_owner_is_refused(path, folder, victim, kind):
    (path / STREAM).mkdir()
    plant(kind, path / STREAM / OWNER, victim)
    before = descriptors()
    with pytest.raises(OSError):
        folder.own(STREAM)
    with pytest.raises(OSError):
        folder.take_over(STREAM)
    assert descriptors() == before


@pytest.mark.parametrize("kind", KINDS)
def test_a_planted_segment_is_refused(path, folder, victim, kind):
    (path / STREAM).mkdir()
    plant(kind, path / STREAM / "a.seg", victim)
    before = descriptors()
    with pytest.raises(FileExistsError):
        folder.make(f"{STREAM}/a.seg", 100)
    assert os.path.lexists(path / STREAM / "a.seg")  # not ours to remove
    with pytest.raises(OSError):
        folder.open(f"{STREAM}/a.seg")
    assert descriptors() == before


@pytest.mark.parametrize("kind", ["symlink", "dangling", "hardlink", "fifo", "to a folder"])
@pytest.mark.parametrize("name", [STREAM, QUARANTINE])
def test_a_planted_sub_folder_is_refused(tmp_path, path, folder, victim, kind, name):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    if kind == "to a folder":
        (path / name).symlink_to(elsewhere)
    else:
        plant(kind, path / name, victim)
    os.close(folder.make("a.seg", 10))
    with pytest.raises(OSError):
        folder.own(name) if name == STREAM else folder.quarantine("a.seg")
    assert list(elsewhere.iterdir()) == []
    assert (path / "a.seg").exists()
    assert name not in folder.streams()


# --- whose a stream is --------------------------------------------------------------------------------------------------


def test_only_the_flock_says_whose_a_stream_is(path, folder):
    """What stands in the file, such as the number of a living process, says nothing: numbers are given again."""
    with folder.exclusive(1):
        owner = folder.own(STREAM)
    (path / STREAM / OWNER).write_text(str(2**22 - 1))  # nobody's
    other = Folder(str(path))
    assert other.take_over(STREAM) is None
    (path / STREAM / OWNER).write_text(str(os.getpid()))
    os.close(owner)
    taken = other.take_over(STREAM)
    assert taken is not None
    assert folder.take_over(STREAM) is None  # nobody adopts twice
    os.close(taken)
    assert sorted(one.name for one in path.rglob("*")) == sorted([LOCK, STREAM, OWNER])


def test_a_stream_whose_folder_is_gone_is_nobodys(path, folder):
    with folder.exclusive(1):
        owner = folder.own(STREAM)
        assert folder.remove(STREAM)
    assert folder.status(owner)[0] == 0
    os.close(owner)
    before = descriptors()
    assert folder.take_over(STREAM) is None
    assert descriptors() == before
    assert folder.streams() == []


def test_an_owner_unlinked_between_open_and_flock_is_not_taken(path, folder, monkeypatch):
    """Who held it removed the folder just then: an flock on a file without a name excludes nobody."""
    with folder.exclusive(1):
        os.close(folder.own(STREAM))
    real = module.fcntl.flock

    def flock(descriptor, operation):
        (path / STREAM / OWNER).unlink()
        real(descriptor, operation)

    monkeypatch.setattr(module.fcntl, "flock", flock)
    before = descriptors()
    assert folder.take_over(STREAM) is None
    assert descriptors() == before


def test_a_folder_with_segments_is_not_removed(path, folder):
    with folder.exclusive(1):
        owner = folder.own(STREAM)
    os.close(folder.make(f"{STREAM}/a.seg", 10))
    assert not folder.remove(STREAM)
    assert (path / STREAM / "a.seg").exists()
    assert folder.take_over(STREAM) is None  # and not let go of
    folder.unlink(f"{STREAM}/a.seg")
    folder.unlink(f"{STREAM}/a.seg")  # one that is gone is as good
    assert folder.remove(STREAM)
    assert folder.remove(STREAM)
    os.close(owner)


FORK = """
    folder = Folder(sys.argv[1])
    with folder.exclusive(5):
        owner = folder.own(sys.argv[2])
    pid = os.fork()
    if pid == 0:
        if sys.argv[3] == "lets go":  # as handlers.renew does: the buffers' discard, then the folder's renew
            folder.close_file(owner)
            folder.renew()
        print("ready", flush=True)
        sys.stdin.read()
        os._exit(0)
    signal.pause()
"""


@pytest.mark.parametrize("child", ["lets go", "holds on"])
def test_a_stream_is_an_orphan_when_its_process_is_gone_though_a_forked_child_lives(path, folder, child):
    with program(FORK, path, STREAM, child) as process:
        assert folder.take_over(STREAM) is None  # the child let go, and the parent's is not unlocked by that
        process.send_signal(signal.SIGKILL)
        process.wait(LIMIT)
        with folder.exclusive(LIMIT):
            taken = until(lambda: folder.take_over(STREAM), 0.3 if child == "holds on" else LIMIT)
    assert (taken is not None) is (child == "lets go")  # the other is the control: an inherited flock is held
    if taken is not None:
        os.close(taken)


def test_a_program_that_was_started_holds_no_stream(path, folder):
    text = """
        folder = Folder(sys.argv[1])
        owner = folder.own(sys.argv[2])
        lock = folder.exclusive(5)
        lock.__enter__()
        subprocess.Popen([sys.executable, "-c", "import sys; print('ready', flush=True); sys.stdin.read()"], close_fds=False)
        signal.pause()
    """
    with program(text, path, STREAM) as process:
        process.send_signal(signal.SIGKILL)
        process.wait(LIMIT)
        with folder.exclusive(LIMIT):
            taken = folder.take_over(STREAM)
    assert taken is not None
    os.close(taken)


def test_a_child_forked_inside_exclusive_does_not_free_it(path):
    text = """
        folder = Folder(sys.argv[1])
        with folder.exclusive(5):
            pid = os.fork()
            if pid == 0:
                folder.renew()
                os._exit(0)
            os.waitpid(pid, 0)
            print("ready", flush=True)
            sys.stdin.read()
    """
    other = Folder(str(path))
    with program(text, path), pytest.raises(BusyError), other.exclusive(0.02):
        pass
    with other.exclusive(LIMIT):
        pass


# --- alone of all -------------------------------------------------------------------------------------------------------


def test_another_process_holds_the_folder_for_longer_than_one_waits(path, folder):
    with program("with Folder(sys.argv[1]).exclusive(5): print('ready', flush=True); sys.stdin.read()", path) as holder:
        began = time.monotonic()
        with pytest.raises(BusyError, match="another process"), folder.exclusive(0.1):
            pass
        assert 0.1 <= time.monotonic() - began < LIMIT / 2
        holder.stdin.close()
        with folder.exclusive(LIMIT):  # waits for its end
            pass
        assert holder.wait(LIMIT) == 0


def test_another_thread_holds_the_folder_for_longer_than_one_waits(folder):
    held, end = threading.Event(), threading.Event()

    def hold():
        with folder.exclusive(1):
            held.set()
            end.wait(LIMIT)

    thread = threading.Thread(target=hold)
    thread.start()
    assert held.wait(LIMIT)
    with pytest.raises(BusyError, match="another thread"), folder.exclusive(0.02):
        pass
    end.set()
    with folder.exclusive(LIMIT):
        pass
    thread.join(LIMIT)


def test_a_signal_handler_that_needs_the_folder_while_its_thread_holds_it_goes_through(path, folder):
    other = Folder(str(path))
    went = []

    def handler(_number, _frame):
        with folder.exclusive(0):
            went.append("in")
        with pytest.raises(BusyError), other.exclusive(0):  # leaving the inner one frees nothing
            went.append("wrong")

    before = signal.signal(signal.SIGUSR1, handler)
    try:
        with folder.exclusive(1):
            signal.raise_signal(signal.SIGUSR1)
            with pytest.raises(BusyError), other.exclusive(0):
                pass
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert went == ["in"]
    with other.exclusive(0):  # free again
        pass


def test_a_signal_handler_that_interrupts_the_wait_for_another_process_waits_as_well(path, folder, monkeypatch):
    """It went through without the lock, and made a file between the other one's count and its file."""
    other = Folder(str(path))
    held = other.exclusive(LIMIT)
    held.__enter__()
    went = []

    class Interrupted:
        def wait(self, _seconds):
            monkeypatch.undo()
            with pytest.raises(BusyError), folder.exclusive(0):
                went.append("wrong")
            held.__exit__(None, None, None)
            with folder.exclusive(0):
                went.append("handler")
            with pytest.raises(BusyError), other.exclusive(0):  # our thread has it, and waits no longer
                went.append("wrong")

    monkeypatch.setattr(module, "Done", Interrupted)
    with folder.exclusive(LIMIT):
        went.append("thread")
        with pytest.raises(BusyError), other.exclusive(0):
            pass
    assert went == ["handler", "thread"]
    with other.exclusive(0):
        pass


def test_an_error_inside_frees_the_folder(path, folder):
    with pytest.raises(ZeroDivisionError), folder.exclusive(1):
        1 / 0
    with Folder(str(path)).exclusive(0), pytest.raises(BusyError), folder.exclusive(0):
        pass
    with folder.exclusive(0):
        pass


# --- files --------------------------------------------------------------------------------------------------------------


def test_used_is_the_bytes_of_all_files(path, folder):
    assert folder.used() == 0
    with folder.exclusive(1):
        owner = folder.own(STREAM)
        for n in range(5):
            os.close(folder.make(f"{STREAM}/{n}.seg", 1000 + n))
        os.close(folder.own("0123456789abcdef"))
        os.close(folder.make("0123456789abcdef/x.seg", 70_001))
        folder.quarantine(f"{STREAM}/3.seg")
        (path / "a-note-of-the-administrator").write_bytes(b"x" * 17)
        (path / "link").symlink_to("/etc")
    expected = 5 * 1000 + 10 + 70_001 + 17 + len("/etc")
    assert folder.used() == expected
    assert sum(one.lstat().st_size for one in path.rglob("*") if not stat.S_ISDIR(one.lstat().st_mode)) == expected
    os.close(owner)


def test_a_file_is_made_with_its_place_on_the_disk(path, folder):
    descriptor = folder.make("a", 300_001)
    assert folder.status(descriptor) == (1, 300_001)
    assert os.fstat(descriptor).st_blocks * 512 >= 300_001  # no page can find the disk full when it is written
    assert folder.read(descriptor, 10**6) == bytes(300_001)
    folder.close_file(descriptor)


@pytest.mark.parametrize("code", [errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS])
def test_a_file_system_that_cannot_allocate_gets_zeros_written(folder, monkeypatch, code):
    def cannot(_descriptor, _offset, _size):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "posix_fallocate", cannot)
    descriptor = folder.make("a", 300_001)
    assert os.fstat(descriptor).st_size == 300_001
    assert os.fstat(descriptor).st_blocks * 512 >= 300_001
    folder.close_file(descriptor)


def test_a_disk_without_room_leaves_no_file_and_no_descriptor(path, folder, monkeypatch):
    def full(_descriptor, _offset, _size):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full)
    before = descriptors()
    with pytest.raises(OSError, match="No space left"):
        folder.make("a", 1000)
    assert list(path.iterdir()) == []
    assert descriptors() == before


def test_a_map_and_a_read_are_the_same_bytes(folder):
    descriptor = folder.make("a", 10_000)
    mapped = folder.map(descriptor, 8000)
    mapped.write(b"row\n")
    folder.write(descriptor, b"tail", 9000)
    second = folder.duplicate(descriptor)
    folder.close_file(descriptor)
    assert folder.read(second, 10_000) == b"row\n".ljust(9000, b"\0") + b"tail".ljust(1000, b"\0")
    os.truncate(second, 2)
    assert folder.read(second, 10_000) == b"ro"  # ends, and nobody dies of SIGBUS
    assert folder.status(second) == (1, 2)
    mapped.close()
    folder.close_file(second)


def test_the_quarantine_keeps_every_byte(path, folder):
    data = os.urandom(100_000)
    (path / STREAM).mkdir()
    for name in ("00000001-0000000a.seg", "00000001-0000000b.seg"):
        (path / STREAM / name).write_bytes(data + name.encode())
        folder.quarantine(f"{STREAM}/{name}")
    kept = {one.name: one.read_bytes() for one in (path / QUARANTINE).iterdir()}
    assert kept == {
        f"{STREAM}-00000001-0000000a.seg": data + b"00000001-0000000a.seg",
        f"{STREAM}-00000001-0000000b.seg": data + b"00000001-0000000b.seg",
    }
    assert list((path / STREAM).iterdir()) == []
    assert folder.streams() == [STREAM]  # nothing in the quarantine is ever adopted


def test_sync_leaves_no_descriptor(folder):
    with folder.exclusive(1):
        owner = folder.own(STREAM)
    before = descriptors()
    descriptor = folder.make(f"{STREAM}/a.seg", 10)
    folder.sync(descriptor)
    folder.sync_folder(STREAM)
    folder.close_file(descriptor)
    assert descriptors() == before
    folder.close_file(owner)


# --- at configuration ---------------------------------------------------------------------------------------------------


def test_check_leaves_nothing_behind(path):
    before = descriptors()
    check(str(path), unsafe_fs=True)
    assert list(path.iterdir()) == []
    assert descriptors() == before


def test_a_folder_that_cannot_be_is_refused_with_its_path_and_user(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=rf"{tmp_path}/file/journal.* user {os.geteuid()}: "):
        check(str(tmp_path / "file" / "journal"), unsafe_fs=True)


def test_a_disk_without_room_is_said_at_configuration_and_stops_no_program(path, monkeypatch):
    def full(_descriptor, _offset, _size):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full)
    assert "records wait in memory" in check(str(path), unsafe_fs=True)
    assert list(path.iterdir()) == []


def test_the_file_system_is_named(tmp_path):
    assert file_system("/dev/shm") == "tmpfs"
    assert file_system("/proc") == "proc"
    for where in (tmp_path, Path("/")):
        said = subprocess.run(
            ["df", "--output=fstype", where], check=True, capture_output=True, text=True, timeout=LIMIT
        )
        assert file_system(str(where)) == said.stdout.split()[-1]
    assert file_system(str(tmp_path / "nowhere")) == "unknown"


@pytest.mark.parametrize("kind", ["btrfs", "zfs", "nfs4", "fuse.sshfs", "unknown"])
def test_a_file_system_on_which_the_promise_does_not_hold_must_be_asked_for(path, monkeypatch, kind):
    monkeypatch.setattr(module, "file_system", lambda _path: kind)
    with pytest.raises(ConfigError, match=rf"is on {kind}: .*journal_unsafe_fs=True"):
        check(str(path), unsafe_fs=False)
    assert check(str(path), unsafe_fs=True) is None


def test_tmpfs_is_allowed_and_said(path, monkeypatch):
    monkeypatch.setattr(module, "file_system", lambda _path: "tmpfs")
    assert "not the machine" in check(str(path), unsafe_fs=False)
    monkeypatch.setattr(module, "file_system", lambda _path: "ext4")
    assert check(str(path), unsafe_fs=False) is None


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("implementation", SimpleNamespace(**{**vars(sys.implementation), "name": "pypy"}), "pypy does not say"),
        ("_is_gil_enabled", lambda: False, "free-threaded"),
        ("platform", "win32", "no flock"),
    ],
)
def test_an_interpreter_that_cannot_keep_the_promise_is_refused(path, name, value, says):
    assert unfit_interpreter() is None
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, name, value, raising=False)
        reason = unfit_interpreter()
        refused = pytest.raises(ConfigError, match=f"journal: .*{says}")
        with refused:
            check(str(path), unsafe_fs=True)
    assert says in reason
    assert not path.exists()


def test_two_threads_that_find_the_folder_removed_make_it_once(path, folder, monkeypatch):
    """The second one closed the descriptor that the first one had just been given."""
    real, seen = os.fstat, threading.Event()

    def fstat(descriptor):
        found = real(descriptor)
        if threading.current_thread() is thread:
            seen.set()
        return found

    thread = threading.Thread(target=folder.root)
    path.rmdir()
    monkeypatch.setattr(module.os, "fstat", fstat)
    with folder._mutex:
        thread.start()
        assert seen.wait(LIMIT)
        ours = folder.root()
        os.set_inheritable(ours, True)  # a mark of this descriptor
    thread.join(LIMIT)
    assert folder.root() == ours
    assert os.get_inheritable(ours)


def test_the_number_of_a_removed_folder_is_no_other_file_between(path, folder, monkeypatch):
    """A thread that was about to use it made its file in a folder of the program."""
    before, real, numbers = folder.root(), os.open, []

    def opened(name, flags, *given, **options):
        numbers.append(real(os.devnull, os.O_RDONLY))
        return real(name, flags, *given, **options)

    path.rmdir()
    monkeypatch.setattr(module.os, "open", opened)
    with folder.exclusive(LIMIT):
        after = folder.root()
    monkeypatch.undo()
    assert before == after
    assert numbers
    assert before not in numbers
    assert not os.get_inheritable(after)
    assert folder.names() == [LOCK]
    for number in numbers:
        os.close(number)


# --- what is in it, while it changes ------------------------------------------------------------------------------------


def filled(folder, *names, size=1000):
    with folder.exclusive(LIMIT):
        os.close(folder.own(STREAM))
        for name in names:
            os.close(folder.make(f"{STREAM}/{name}", size))


def test_two_threads_that_list_the_folder_at_once_both_see_all_of_it(folder):
    """One descriptor has one place in the list: with a shared one, each thread got what the other had not read yet."""
    filled(folder, "one", "two")
    with os.scandir(folder.root()) as half:
        next(half)  # the list is in the middle, and another thread comes
        assert folder.used() == 2000
        assert folder.streams() == [STREAM]


def test_a_look_asks_once_for_each_file(folder, monkeypatch):
    """Each system call gives up the GIL, and a logging call that makes a segment waits for the look."""
    filled(folder, *map(str, range(20)))
    calls = []
    for name in ("stat", "fstat", "open", "listdir"):
        real = getattr(os, name)
        monkeypatch.setattr(module.os, name, lambda *a, real=real, **o: calls.append(a) or real(*a, **o))
    assert folder.used() == 20 * 1000
    assert len(calls) <= 20 + 10  # the owner's and the lock's, the two folders' own


def moves_between(monkeypatch, wanted, move):
    """Have something happen after a name was listed and before its file is looked at."""
    real, done = os.stat, []

    def stat_after(name, **options):
        if not done and str(name).endswith(wanted):
            done.append(move())
        return real(name, **options)

    monkeypatch.setattr(module.os, "stat", stat_after)
    return done


def test_a_file_that_gets_another_name_during_the_look_is_counted(folder, monkeypatch):
    filled(folder, "one.new", "two")
    done = moves_between(monkeypatch, ".new", lambda: folder.rename(f"{STREAM}/one.new", f"{STREAM}/one"))
    assert folder.used() == 2000
    assert len(done) == 1
    assert folder.files(STREAM) == [("one", 1000), ("owner", 0), ("two", 1000)]


def test_a_name_that_stays_in_the_list_and_is_no_more_is_left_out(folder, monkeypatch):
    """As file servers list it for some time: the look never ended."""
    filled(folder, "one")
    monkeypatch.setattr(folder, "names", lambda name=".": [*Folder.names(folder, name), *["gone"] * (name == STREAM)])
    assert folder.files(STREAM) == [("one", 1000), ("owner", 0)]
    assert folder.used() == 1000


def test_a_file_that_moves_to_the_quarantine_during_the_look_is_counted(folder, monkeypatch):
    filled(folder, "one", "two", "three")
    folder.quarantine(f"{STREAM}/three")  # so that the quarantine is there, and is listed
    monkeypatch.setattr(folder, "names", lambda name=".": sorted(Folder.names(folder, name), reverse=True))
    done = moves_between(monkeypatch, STREAM, lambda: folder.quarantine(f"{STREAM}/one"))
    assert folder.used() >= 3000
    assert len(done) == 1
