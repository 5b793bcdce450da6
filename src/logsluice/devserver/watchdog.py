"""
The watchdog beside an embedded PostgreSQL: a tiny program that stops the server when our process is gone.

A process that is killed runs no cleanup, and the server would live on with nobody who knows its password.
PR_SET_PDEATHSIG is not enough: it fires when the *thread* that started the server ends, and is cleared when root
drops to another user. So this file runs as a program of its own, by its path (`python -I -S`), without the package:

1. It waits for the parent by a pidfd, which also fires when the parent has forked children that hold every pipe
   open; where the kernel has none, for the end of its stdin, a pipe from the parent.
2. A byte on stdin says that the parent did everything itself: it leaves, touching nothing.
3. Else it stops the postmaster that the data folder names, and removes the temporary folder.

`devserver` imports the three functions it shares with it.
"""

from __future__ import annotations

import os
import select
import shutil
import signal
import sys
import threading
import time
from pathlib import Path

# Signal, and the seconds to wait for it: fast (its checkpoint may have to write kept data), immediate, kill.
STOP_STEPS = ((signal.SIGINT, 30.0), (signal.SIGQUIT, 5.0), (signal.SIGKILL, 5.0))
REMOVE_SECONDS = 5.0  # a killed postmaster's children may still write into the folder for so long
POLL_SECONDS = 0.05  # where there is no event to wait for
DONE = b"q"  # what the parent writes when nothing is left to do


def postmaster(data: Path) -> int:
    """Pid of the living postmaster of this data folder; 0 when there is none, whatever its pid file says."""
    try:
        # Negative: initdb's single-user server.
        pid = abs(int((data / "postmaster.pid").read_text(encoding="utf-8").split("\n", 1)[0]))
    except (OSError, ValueError):
        return 0
    if not Path("/proc/self").exists():  # not Linux: nothing tells whose the pid is
        return pid
    try:
        # A postmaster stands in its data folder. The pid alone may be a stranger's: after a reboot, and in
        # containers, where the same small numbers come again, that stranger would get our signal.
        return pid if Path(f"/proc/{pid}/cwd").samefile(data) else 0
    except PermissionError:
        return pid
    except OSError:
        return 0


def open_pidfd(pid: int) -> int:
    """Return a descriptor that is readable once the process has ended; -1 where the kernel has none (before 5.3)."""
    try:
        return os.pidfd_open(pid)
    except (AttributeError, OSError):
        return -1


def remove(folder: Path) -> None:
    """Remove the tree, again as long as something still writes into it, for `REMOVE_SECONDS` at most."""
    deadline = time.monotonic() + REMOVE_SECONDS
    while True:
        shutil.rmtree(folder, ignore_errors=True)
        if not folder.exists() or time.monotonic() > deadline:
            return
        threading.Event().wait(POLL_SECONDS)


def parent_died(parent: int, pipe: int) -> bool:
    """Wait until the parent is gone (True) or has done everything itself (False)."""
    poll = select.poll()
    poll.register(pipe, select.POLLIN)
    pidfd = open_pidfd(parent)
    if pidfd >= 0:
        poll.register(pidfd, select.POLLIN)
    if os.getppid() != parent:  # it died before the pidfd was open, which may now be a stranger's
        return True
    ready = {fd for fd, _ in poll.poll()}
    # The pipe first: a parent may say that it is done and end before we wake.
    return pipe not in ready or os.read(pipe, 1) != DONE


def stop_postmaster(data: Path) -> None:
    """Ask, insist, kill: what `EmbeddedPostgres.stop` does, by pid instead of by child."""
    pid = postmaster(data)
    if not pid:
        return
    pidfd = open_pidfd(pid)
    for signum, seconds in STOP_STEPS:
        try:
            os.kill(pid, signum)
        except OSError:
            return
        if _ended(pid, pidfd, seconds):
            return


def _ended(pid: int, pidfd: int, seconds: float) -> bool:
    if pidfd >= 0:
        return bool(select.select([pidfd], [], [], seconds)[0])
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            os.kill(pid, 0)
        except OSError:
            return True
        threading.Event().wait(POLL_SECONDS)
    return False


def main(parent: str, data: str, folder: str) -> None:
    """Arguments: the parent's pid, the server's data folder, the folder to remove."""
    for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        # What stops a whole group or container must not take the watchdog before the server.
        signal.signal(signum, signal.SIG_IGN)
    if parent_died(int(parent), sys.stdin.fileno()):
        stop_postmaster(Path(data))
        remove(Path(folder))


if __name__ == "__main__":
    main(*sys.argv[1:])
