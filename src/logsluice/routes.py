"""A route: the table that frames are for, as a stream of its own. Here is where its delivery stands."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from logsluice.accounting import Ledger
from logsluice.buffer import Buffer

if TYPE_CHECKING:
    from logsluice.adoption import OrphanBuffer
    from logsluice.buffer import Batch
    from logsluice.delivery import Breaker, Failure
    from logsluice.intake import Intake
    from logsluice.sinks import Sink
    from logsluice.targets import Target

MAX_MARKS = 4096  # remembered arrival times, 8 bytes and a float each; older ones are merged


@dataclass
class Route:
    """
    One table's stream: its buffer, its way in, its sink, and where its delivery stands. Listener only.

    One that was adopted from a dead process has no way in, and a book of its own.
    """

    name: str
    buffer: Buffer | OrphanBuffer
    intake: Intake | None
    target: Target
    sink: Sink
    breaker: Breaker
    batch_bytes: int  # halved by time limits, doubled by success
    ledger: Ledger = field(default_factory=Ledger)
    batch: Batch | None = None  # in flight: tried, not settled
    whole: Batch | None = None  # what was taken, of which `batch` may be the beginning
    part: int | None = None  # bytes of a batch to send at once: halved by rejections in a row, doubled by success
    aside: dict[int, Failure] = field(default_factory=dict)  # rows of the slice that the server rejected
    attempts: int = 0  # with this batch
    retries: int = 0  # RETRY verdicts in a row
    given_up: int = 0  # records of it so far
    streak: int = 0  # rejections since the last stored row
    seen: deque[tuple[float, int]] = field(default_factory=deque)  # (monotonic, position): it was there by then
    storing_since: float = 0.0  # monotonic: when waiting began, or the last row was stored
    complained: bool = False

    @property
    def own(self) -> Buffer:
        """The buffer of a route that this process logs to."""
        assert isinstance(self.buffer, Buffer)
        return self.buffer

    @property
    def waits(self) -> bool:
        """Whether anything is in the buffer."""
        return self.buffer.tail() > self.buffer.settled

    def gone(self) -> int:
        """Return how many of its records never come to its table: dropped, given up, or taken by the fallback."""
        handed = self.buffer.handed.value if isinstance(self.buffer, Buffer) else 0
        return sum(self.buffer.dropped().values()) + handed + self.given_up

    def markers(self, batch: Batch) -> int:
        """Return how many rows of a batch are markers of our own."""
        return batch.markers if self.target.marks else 0

    def look(self, now: float) -> None:
        """Remember how far the buffer has come."""
        tail = self.buffer.tail()
        if not self.seen or self.seen[-1][1] < tail:
            at = self.seen.pop()[0] if len(self.seen) >= MAX_MARKS else now  # merged: the earlier time counts
            self.seen.append((at, tail))

    def waiting_since(self) -> float | None:
        """Return the monotonic time by which the oldest waiting frame had arrived, None if nothing waits."""
        settled = self.buffer.settled
        while self.seen and self.seen[0][1] <= settled:
            self.seen.popleft()
        return self.seen[0][0] if self.seen else None

    def first_seen(self) -> float | None:
        """As `waiting_since`, for any thread: it changes nothing."""
        settled = self.buffer.settled
        return next((at for at, where in list(self.seen) if where > settled), None)
