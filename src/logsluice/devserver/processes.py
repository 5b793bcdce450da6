"""
The two processes of an embedded PostgreSQL: the postmaster, our child, and the watchdog beside it.

Both stand in sessions of their own: Ctrl-C goes to the whole foreground group, and the server must not be gone
before our records are in it.
"""

from __future__ import annotations

import os
import select
import subprocess
import sys
from typing import TYPE_CHECKING

from logsluice.devserver import watchdog

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from logsluice.devserver.cluster import Account

GONE_SECONDS = 10.0  # backends see that their postmaster was killed when they next wait for anything


class Postmaster:
    """One run of the server, from its start to the end of its last backend."""

    def __init__(self, command: Sequence[str | Path], account: Account, log_path: Path) -> None:
        # A pipe whose write end the postmaster and all its children hold: its end is theirs.
        self._alive, held = os.pipe()
        try:
            with log_path.open("ab") as log:
                self._process = subprocess.Popen(
                    command,
                    cwd="/",
                    env={**os.environ, "LC_ALL": "C"},  # one of its messages is looked for, in English
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    pass_fds=(held,),
                    start_new_session=True,
                    **account.popen(),
                )
        except BaseException:
            os.close(self._alive)
            raise
        finally:
            os.close(held)
        self.pid = self._process.pid

    def ended_within(self, seconds: float) -> bool:
        """Whether the postmaster ends in this time."""
        try:
            self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            return False
        return True

    def stop(self) -> None:
        """Fast shutdown, then immediate, then kill; returns when the last backend is gone too."""
        for signum, seconds in watchdog.STOP_STEPS:
            if self.ended_within(0):
                break
            self._process.send_signal(signum)
            self.ended_within(seconds)
        self.await_children()

    def kill(self) -> None:
        """SIGKILL, as a crash; returns when the last backend has noticed."""
        self._process.kill()
        self._process.wait(GONE_SECONDS)
        self.await_children()

    def await_children(self) -> None:
        """
        Wait until the last process of the server is gone.

        A start before that fails: "pre-existing shared memory block is still in use".
        """
        if self._alive >= 0:
            poll = select.poll()  # not select(): it refuses descriptors over 1023
            poll.register(self._alive, select.POLLIN)
            poll.poll(GONE_SECONDS * 1000)  # milliseconds
            os.close(self._alive)
            self._alive = -1


class Watchdog:
    """Stops the server of this data folder and removes `folder` when we are gone: `watchdog.py`."""

    def __init__(self, data: Path, folder: Path) -> None:
        # -I -S: nothing of the user's environment, and none of the packages, in a program that removes folders.
        program = [sys.executable, "-I", "-S", watchdog.__file__]
        self._process = subprocess.Popen(
            [*program, str(os.getpid()), str(data), str(folder)],
            cwd="/",
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,  # ours, held open by it, would make a reader of our output wait for it
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )

    def dismiss(self) -> None:
        """Say that nothing is left to do. A byte: forked children of ours may hold the pipe open."""
        try:
            self._process.communicate(watchdog.DONE, timeout=GONE_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
