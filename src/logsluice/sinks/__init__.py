"""
A sink takes batches to where they are stored. Rules:

1. One thread calls it, the listener's; `close` may come from another after that thread has ended.
2. `write` returns only when every row of the batch is stored, dead-lettered, given up and counted, or known to have
   been before; of those up to `Outcome.end`, where it sent less than the batch.
3. `write` raises `SinkError` and nothing else. Then none of the batch is stored, or it cannot be known.
4. After an error `write` may be called again with the same batch, a part of it, or the same with rows set aside.
5. Any one wait ends within `io_timeout`; a connection that timed out is never used again.
6. Rows in `batch.aside` are not sent; they are kept as dead letters together with the rest, or not at all.
7. No message holds a secret or row content.
8. `accepts_any` stores nothing, or nothing that `write` stores again. After `idle` and `close`, `open` begins anew.
9. In a forked child `forked` is called, once, and nothing after it: what is open is the parent's.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from logsluice.errors import LogsluiceError
from logsluice.lines import parts

if TYPE_CHECKING:
    from collections.abc import Iterator

    from logsluice.buffer import Batch
    from logsluice.delivery import Failure


class SinkError(LogsluiceError):
    """What a sink raises, and nothing else. `failure` says what happened; `delivery.decide` what to do."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure.message)
        self.failure = failure


@dataclass(frozen=True)
class Outcome:
    """What became of a batch: rows stored by this attempt or an earlier one, and rows now dead letters."""

    stored: int
    dead: int
    known: bool = False  # the watermark had passed the whole batch: an earlier COMMIT arrived after all
    given_up: tuple[tuple[str, int], ...] = ()  # (reason, rows) that are kept nowhere, or were handed to the fallback
    end: int | None = None  # the position up to which this is told, where the sink takes less than a batch at once


@dataclass(frozen=True)
class Counts:
    """What the stream's row says about its client, sent along with each batch."""

    offered: int
    dropped: int  # with those that were given up, or taken by the fallback: none of them waits


def rows(batch: Batch) -> Iterator[tuple[int, str]]:
    """
    Yield (seq, line) of each row of a batch that is to be stored, for `format="json"`: the line is the JSON object.

    A negative seq is of a row of our own, which says how many records were dropped.
    """
    for at, frame in batch.lines():
        if at not in batch.aside:
            seq, _, _, line = parts(frame)
            yield seq, line


class Sink(Protocol):
    """The contract above. A class of one's own inherits from it and writes `write`, and of the rest what it needs."""

    @property
    def connected(self) -> bool:
        """Whether something is held open that `idle` may close."""
        return False

    def accepts_any(self, rows: list[bytes]) -> bool:  # noqa: ARG002 - by default nothing is refused for all rows
        """
        Try frames one by one, storing none; True as soon as one would be taken.

        Where nobody can be asked without storing, what was taken is remembered, and not sent again.
        """
        return True

    def open(self) -> None:
        """Connect and check, if that is still to be done; `write` may count on it. Raises `SinkError`."""
        return

    def write(self, batch: Batch, counts: Counts) -> Outcome:
        """Store a batch of one stream and advance its watermark."""
        ...

    def idle(self, seconds: float) -> None:  # noqa: ARG002 - by default nothing is held open
        """Hear that nothing was written for so long; a connection may be closed."""
        return

    def retire(self) -> None:
        """Hear that the stream's journal is gone: nothing of it comes any more. Never raises."""
        return

    def forked(self) -> None:
        """In a child: let go of what it would share with its parent, without a word to the other end. Never raises."""

    def close(self) -> None:
        """Release everything. Never raises."""
        return
