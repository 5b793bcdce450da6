"""
Several connections: N pairs of a handler, each with its own stream, buffer, thread and connection (DESIGN D4).

For servers far away, where one connection waits for answers most of the time. Two ways to share out the records:

- Without `shard_by` segments go round. Records go to one pair for as long as its listener keeps up; to another one,
  the least loaded, from when a segment is full and its listener is busy or has more than a batch before it. So a
  trickle has one connection, a flood all, and one that hangs gets nothing more. No order holds between streams.
- With `shard_by` equal keys go to the same pair, always: they keep their order, in an outage, too.

Nothing in here is on the way of a record but for `shard_by`, and nothing at all is used with one connection.
"""

from __future__ import annotations

import time
import zlib
from typing import TYPE_CHECKING, Any

from logsluice.listener import Listener

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from logsluice.buffer import Buffer
    from logsluice.config import Settings
    from logsluice.diagnostics import Diagnostics
    from logsluice.intake import Intake
    from logsluice.primitives import SimpleQueue
    from logsluice.routes import Route

    Pair = tuple[Intake, Listener]

AGAIN = 1.0  # seconds until a full buffer with nothing to send looks for room


class ShardListener(Listener):
    """A listener that says when it is sending, and when there is reason to see who gets the next records."""

    busy = False  # in a sweep

    def __init__(
        self, tokens: SimpleQueue[None], settings: Settings, diagnostics: Diagnostics, turn: Callable[..., None]
    ) -> None:
        super().__init__(tokens, settings, diagnostics)
        self.turn = turn  # `PostgresHandler._turn`

    def _sweep(self) -> None:
        self.busy = True
        began = time.monotonic()
        try:
            super()._sweep()
            # Slower than a record may wait, and more came meanwhile: the next connection is to take what comes now.
            if time.monotonic() - began > self.settings.linger and any(route.waits for route in self.routes):
                self.turn(of=self)
        finally:
            self.busy = False

    def _sleep(self, until: float | None) -> None:
        # A journal's folder is shared: what others make room for, nobody tells a listener that has nothing to send.
        if any(route.buffer.under_pressure for route in self.routes):
            again = time.monotonic() + AGAIN
            until = again if until is None else min(until, again)
        super()._sleep(until)

    def _settle(self, route: Route, batch: Any) -> None:
        super()._settle(route, batch)
        self.turn(if_full=True)  # here is room now, and where there is none records are being dropped


def next_pair(pairs: Sequence[Pair], current: Pair, batch_bytes: int, *, if_full: bool) -> Pair:
    """Return who gets the next records: `current` unless it has enough to do (is full), else the least loaded."""
    buffer = current[0].buffer
    if if_full and not buffer.under_pressure:
        return current
    enough = min(batch_bytes, buffer.capacity_bytes // 8)  # bytes: a batch, or the largest segment if that is smaller
    if not (_busy(current) or buffer.under_pressure) and buffer.waiting_bytes() <= enough:
        return current
    at = pairs.index(current)
    return min([*pairs[at + 1 :], *pairs[: at + 1]], key=_load)  # of equals the next one: they go round


def _busy(pair: Pair) -> bool:
    return isinstance(pair[1], ShardListener) and pair[1].busy


def _load(pair: Pair) -> tuple[float, bool, int]:
    buffer = pair[0].buffer
    return buffer.pressure if buffer.under_pressure else 0.0, _busy(pair), buffer.waiting_bytes()


def watch_capacity(buffer: Buffer, turn: Callable[..., None]) -> None:
    """Have a buffer whose `capacity` counts records give the turn away at that: no segment need be full by then."""
    put = buffer.put

    def watched(frame: bytes, level: int, *, own: bool = False) -> bool:
        try:
            return put(frame, level, own=own)
        finally:
            if not own:
                turn(if_full=True)

    buffer.put = watched  # type: ignore[method-assign]  # with `capacity` each record comes here; others pay nothing


def index_of(key: object, count: int) -> int:
    """Return the shard of a key: the same in each process and each run."""
    return zlib.crc32(str.encode(str(key), "utf-8", "surrogatepass")) % count
