"""How far long work is, on stderr and only where that is a terminal: by rich if it is there, else one plain line."""

from __future__ import annotations

import contextlib
import sys
import time
from typing import TYPE_CHECKING

from logsluice.cli.output import visible

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_EVERY = 0.2  # seconds between two looks of the plain line: more often only flickers


@contextlib.contextmanager
def shown(what: str, total: int | None = None) -> Iterator[Callable[[int], None]]:
    """Yield what is to be called with each number of rows that is done. `total`: of them, None where nobody knows."""
    if not sys.stderr.isatty():
        yield lambda _rows: None
        return
    try:
        from rich.console import Console  # noqa: PLC0415 - an extra
        from rich.progress import Progress  # noqa: PLC0415 - as above
    except ImportError:
        yield from _plain(visible(what), total)
        return
    with Progress(console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(visible(what).replace("[", "\\["), total=total)
        yield lambda rows: progress.advance(task, rows)


def _plain(what: str, total: int | None) -> Iterator[Callable[[int], None]]:
    done, last = 0, 0.0

    def told(rows: int) -> None:
        nonlocal done, last
        done += rows
        if time.monotonic() - last >= _EVERY:
            last = time.monotonic()
            of = f" of {total:,}" if total is not None else ""
            print(f"\r{what}: {done:,}{of} rows", end="", file=sys.stderr, flush=True)

    try:
        yield told
    finally:
        print("\r\x1b[K", end="", file=sys.stderr, flush=True)
