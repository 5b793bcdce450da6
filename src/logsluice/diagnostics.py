"""
What logsluice says of itself: lines on the process's original stderr, rate-limited, never with a secret.

Not through `logging`: a handler that logs about itself feeds itself. `sys.__stderr__`, because programs put logging
behind `sys.stderr`. No row content and no dsn is ever passed in; `scrub` is the second line of defence.
"""

from __future__ import annotations

import os
import stat
import sys
import time

_INTERVAL = 60.0  # seconds between two lines of one kind: an outage must not flood the journal of the host
_MAX_LINE = 2000  # characters; a server's message can be as long as a row


class Diagnostics:
    """The voice of one handler. Any thread may use it; it takes no lock and never raises."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.secrets: tuple[str, ...] = ()  # replaced in every line; set at each connect
        self.debug = os.environ.get("LOGSLUICE_DEBUG", "") not in {"", "0"}
        self._said: dict[str, float] = {}  # kind -> monotonic time of its last line
        self._held: dict[str, int] = {}  # kind -> lines not said since

    def say(self, kind: str, text: str, *, every: float = _INTERVAL) -> bool:
        """Write one line, unless one of the same kind was written within `every` seconds. Return whether it was."""
        now = time.monotonic()
        last = self._said.get(kind)
        if last is not None and now - last < every:
            self._held[kind] = self._held.get(kind, 0) + 1
            return False
        self._said[kind] = now
        held = self._held.pop(kind, 0)
        self._write(text + (f" ({held} more of these not shown)" if held else ""))
        return True

    def detail(self, text: str) -> None:
        """Write one line if LOGSLUICE_DEBUG=1."""
        if self.debug:
            self._write(text)

    def scrub(self, text: str) -> str:
        """Return the text without any secret known so far."""
        for secret in self.secrets:
            text = text.replace(secret, "***")
        return text

    def _write(self, text: str) -> None:
        line = " ".join(self.scrub(text).split())  # a server's message has line breaks; ours is one line
        if len(line) > _MAX_LINE:
            line = line[:_MAX_LINE] + "…"
        write_line(f"logsluice[{self.name}]: {line}")


def _stderr_status() -> os.stat_result | None:
    try:
        return os.fstat(sys.__stderr__.fileno()) if sys.__stderr__ is not None else None
    except Exception:
        return None  # closed, or no file


_AT_START = _stderr_status()


def _is_foreign(now: os.stat_result | None) -> bool:
    """Whether somebody closed descriptor 2 and a socket has its number now: our line would go to PostgreSQL."""
    if now is None or not stat.S_ISSOCK(now.st_mode):
        return False
    return _AT_START is None or (now.st_dev, now.st_ino) != (_AT_START.st_dev, _AT_START.st_ino)


def write_line(line: str) -> None:
    """Write to the original stderr; a closed or missing one is not our program's problem."""
    try:
        stream = sys.__stderr__
        if stream is not None and not _is_foreign(_stderr_status()):
            stream.write(line.encode("ascii", "backslashreplace").decode() + "\n")
            stream.flush()
    except Exception:
        pass  # nowhere left to say it
