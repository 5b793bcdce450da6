"""Other processes: run a Python program apart, wait for the end of a process that is not our child."""

from __future__ import annotations

import os
import resource
import select
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import NamedTuple

KILL_SECONDS = 5  # after the request for tracebacks, which takes milliseconds


class Program(NamedTuple):
    """How a program ended."""

    stdout: str
    stderr: str
    returncode: int
    seconds: float


def run_program(code_or_path, *, env=None, python=sys.executable, timeout=30, args=()):
    """
    Run a Python program in a process of its own: a Path, or its text.

    One that hangs gets SIGABRT after `timeout` seconds, to which faulthandler answers with the tracebacks of all
    threads on stderr. Not `dump_traceback_later`: in a forked child its thread is gone and its lock is not, so every
    child that ends as Python programs end would hang.
    """
    with tempfile.TemporaryDirectory(prefix="program-") as folder:
        path = code_or_path
        if not isinstance(path, Path):  # a file and not `-c`: spawned children import it, tracebacks quote it
            path = Path(folder) / "program.py"
            path.write_text(code_or_path, encoding="utf-8")
        started = time.monotonic()
        process = subprocess.Popen(
            [python, path, *args],
            env={**os.environ, "PYTHONFAULTHANDLER": "1", **(env or {})},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        stdout, stderr = _outcome(process, timeout)
        return Program(stdout, stderr, process.returncode, time.monotonic() - started)


def _outcome(process, timeout):
    try:
        return process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        resource.prlimit(process.pid, resource.RLIMIT_CORE, (0, 0))  # tracebacks, no memory dump
        os.killpg(process.pid, signal.SIGABRT)  # its children too: they hold the pipes that we read
    try:
        return process.communicate(timeout=KILL_SECONDS)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        return process.communicate()


def ended(pid, seconds):
    """Whether a process that is not our child ends within this time. A zombie has ended."""
    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        return bool(select.select([pidfd], [], [], seconds)[0])
    finally:
        os.close(pidfd)


def until(condition, seconds=10):
    """Wait for something that gives no event; its last value."""
    deadline = time.monotonic() + seconds
    while not (value := condition()) and time.monotonic() < deadline:
        threading.Event().wait(0.01)  # seconds: short beside every timeout that tests wait for
    return value
