"""
Places where a test lets the process die: LOGSLUICE_CRASH_AT=NAME or NAME:N (the Nth time it comes there).

The process leaves by `os._exit(137)`, as after SIGKILL: no exit handler, no buffer of Python's is written. Before, it
says where on stderr, so that a test knows that it died there and nowhere else. Without the variable a place costs one
look into an empty dict, and the append nothing at all.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from logsluice.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable

VARIABLE = "LOGSLUICE_CRASH_AT"
# In the order in which a record meets them.
NAMES = ("create", "preallocate", "header", "append", "roll", "seal", "fsync", "send", "after-commit", "unlink",
         "adopt", "quarantine")  # fmt: skip
# In the order in which rows go to an archive and then away.
ARCHIVE_NAMES = ("archive-written", "archive-verified", "archive-renamed", "archive-manifest", "detached", "deleted")
STATUS = 137  # what a shell reports of a process that SIGKILL ended

_left: dict[str, int] = {}  # name -> how many times it is still passed


def _arm(value: str) -> None:
    name, _, times = value.partition(":")
    if name not in (*NAMES, *ARCHIVE_NAMES) or not (times or "1").isdigit():
        raise ConfigError(
            f"{VARIABLE}={value!r}: write one of {', '.join((*NAMES, *ARCHIVE_NAMES))}, or NAME:N for the Nth time"
        )
    _left[name] = int(times or 1)


def reach(name: str) -> None:
    """Die here if this place is armed."""
    if name in _left:
        _left[name] -= 1
        if _left[name] <= 0:
            os.write(2, f"logsluice: crash point {name}\n".encode())
            os._exit(STATUS)


def around(name: str, call: Callable[[bytes], int]) -> Callable[[bytes], int]:
    """Return the call itself, or, if the place is armed, one that dies after it."""
    if name not in _left:
        return call

    def then_reach(frame: bytes) -> int:
        result = call(frame)
        reach(name)
        return result

    return then_reach


if os.environ.get(VARIABLE):
    _arm(os.environ[VARIABLE])
