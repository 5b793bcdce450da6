"""
A pager for what is longer than the screen, by git's conventions.

Only where stdout is a terminal: `$LOGSLUICE_PAGER`, else `$PAGER`, else less where there is one. Empty or `cat` is
none, as is `--no-pager`. less gets `-FRX` by its own variable LESS, unless that is set: it ends at once when all fits,
shows colours, and leaves the text on the screen. It starts with the first text, so an error before it needs no pager.
"""

from __future__ import annotations

import contextlib
import io
import os
import shutil
import signal
import subprocess
import sys
from typing import TYPE_CHECKING, Any

from logsluice.errors import ConfigError

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator

NOT_RUN = {126, 127}  # a shell's status for a command that is none, or is not there


def add_option(parser: argparse.ArgumentParser) -> None:
    """Give a command a pager, and what turns it off."""
    parser.add_argument("--no-pager", action="store_true", help="print more than a screen at once")
    parser.set_defaults(paged=True)


def command(args: argparse.Namespace) -> str | None:
    """Return what to start, as a line for the shell; None for no pager."""
    if not getattr(args, "paged", False) or args.no_pager or not sys.stdout.isatty():
        return None
    if os.environ.get("TERM", "dumb") == "dumb":
        return None
    for name in ("LOGSLUICE_PAGER", "PAGER"):
        if name in os.environ:
            found = os.environ[name].strip()
            return None if found in {"", "cat"} else found
    return "less" if shutil.which("less") else None


@contextlib.contextmanager
def paged(args: argparse.Namespace) -> Iterator[None]:
    """Send stdout through the pager, if there is to be one, and wait until the reader leaves it."""
    wanted = command(args)
    if wanted is None:
        yield
        return
    before, raw = sys.stdout, _Raw(wanted)
    out = sys.stdout = _Out(io.BufferedWriter(raw), encoding=before.encoding, errors=before.errors)
    try:
        yield
    finally:
        sys.stdout = before
        # Ctrl-C reaches us as well as the pager, which means something else by it: its reader ends it.
        handler = signal.signal(signal.SIGINT, signal.SIG_IGN)
        try:
            with contextlib.suppress(BrokenPipeError):  # the reader has seen enough
                out.close()
            status = raw.wait()
        finally:
            signal.signal(signal.SIGINT, handler)
        if status in NOT_RUN:
            raise ConfigError(
                f"the pager {wanted!r} cannot be run: name another in LOGSLUICE_PAGER or PAGER, or say --no-pager"
            )


class _Raw(io.RawIOBase):
    """The pager's stdin."""

    def __init__(self, wanted: str) -> None:
        self._wanted = wanted
        self._pager: subprocess.Popen[bytes] | None = None

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        if self._pager is None:
            # By the shell, as git does it: the variable is its owner's, and may hold options and pipes.
            self._pager = subprocess.Popen(  # noqa: S602
                self._wanted, shell=True, stdin=subprocess.PIPE, bufsize=0,
                env={"LESS": "FRX", **os.environ},
            )  # fmt: skip
        assert self._pager.stdin is not None
        return self._pager.stdin.write(data) or 0

    def wait(self) -> int:
        """Wait for its end and return its status; 0 where none was started."""
        if self._pager is None:
            return 0
        assert self._pager.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._pager.stdin.close()
        return self._pager.wait()


class _Out(io.TextIOWrapper):
    """What is printed is read at a terminal: in colour, as wide as it is, and nothing may drive it."""

    def isatty(self) -> bool:
        return True
