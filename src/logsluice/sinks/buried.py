"""
Dead letters of a sink that has no table for them: JSON lines in a file, readable by its owner alone.

    {"at": …, "stream": …, "seq": …, "reason": …, "status": …, "answer": …, "line": …}

`line` is what would have been sent. The file is appended to by as many processes as like to; a batch is in it whole,
or, where the disk is full, not at all.
"""

from __future__ import annotations

import json
import os
import sys
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from logsluice.delivery import Failure, Verdict
from logsluice.sinks import SinkError

if sys.platform != "win32":
    import fcntl

if TYPE_CHECKING:
    from collections.abc import Iterable


def letter(at: str, stream: int, frame: bytes, why: Failure) -> dict[str, Any]:
    """Return what is kept of a frame."""
    seq, _, rest = frame.decode(errors="replace").removesuffix("\n").partition("\t")
    line = rest.split("\t", 2)[-1].replace("\v", "\n")
    return {
        "at": at,
        "stream": str(stream),
        "seq": int(seq) if seq.removeprefix("-").isdecimal() else None,  # of a damaged frame there is none
        "reason": why.message,
        "status": why.status,
        "answer": why.detail or None,
        "line": line,
    }


def bury(path: str, letters: Iterable[dict[str, Any]]) -> None:
    """Append letters. Raises SinkError, BLOCKED, where the file cannot be written; then none of them is in it."""
    text = "".join(json.dumps(one, ensure_ascii=False) + "\n" for one in letters).encode(errors="replace")
    try:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0)  # not on Windows
        descriptor = os.open(path, flags, 0o600)
        try:
            if sys.platform != "win32":
                fcntl.flock(descriptor, fcntl.LOCK_EX)  # held for one write
            end = os.fstat(descriptor).st_size
            try:
                view = memoryview(text)
                while view:
                    view = view[os.write(descriptor, view) :]
            except BaseException:
                with suppress(OSError):
                    os.ftruncate(descriptor, end)
                raise
            finally:
                if sys.platform != "win32":  # else a child that was forked meanwhile would hold it as long as it lives
                    fcntl.flock(descriptor, fcntl.LOCK_UN)
        finally:
            os.close(descriptor)
    except OSError as error:
        raise SinkError(
            Failure(
                f"dead letters cannot be written to {path}: {error.strerror or error}",
                verdict=Verdict.BLOCKED,
                hint="let this process's user write there",
            )
        ) from None
