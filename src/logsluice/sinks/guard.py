"""Around a sink of somebody else: what it raises becomes a `SinkError`, so that nothing it does ends the listener."""

from __future__ import annotations

from typing import TYPE_CHECKING

from logsluice.delivery import Failure
from logsluice.sinks import Counts, Outcome, SinkError

if TYPE_CHECKING:
    from logsluice.buffer import Batch
    from logsluice.sinks import Sink


class Guard:
    """It passes all on to the sink. An exception that is no `SinkError` is taken for an outage: retried, for ever."""

    def __init__(self, sink: Sink) -> None:
        self.sink = sink

    @property
    def connected(self) -> bool:
        """Whether something is held open."""
        try:
            return bool(self.sink.connected)
        except Exception:
            return False

    def open(self) -> None:
        """Connect and check."""
        try:
            self.sink.open()
        except SinkError:
            raise
        except Exception as error:
            raise SinkError(_failure(error, connecting=True)) from None

    def write(self, batch: Batch, counts: Counts) -> Outcome:
        """Store a batch."""
        try:
            outcome = self.sink.write(batch, counts)
        except SinkError:
            raise
        except Exception as error:
            raise SinkError(_failure(error)) from None
        return Outcome(batch.rows - len(batch.aside), len(batch.aside)) if outcome is None else outcome

    def accepts_any(self, rows: list[bytes]) -> bool:
        """Whether the sink would take one of these."""
        try:
            return self.sink.accepts_any(rows)
        except SinkError:
            raise
        except Exception as error:
            raise SinkError(_failure(error)) from None

    def idle(self, seconds: float) -> None:
        """Tell it that nothing was written for so long."""
        try:
            self.sink.idle(seconds)
        except Exception:
            self.close()

    def retire(self) -> None:
        """Tell it that the stream is over."""
        try:
            self.sink.retire()
        except Exception:
            self.close()

    def forked(self) -> None:
        """Tell it, in a child, to let go of what is its parent's."""
        try:
            self.sink.forked()
        except Exception:
            pass  # the child makes a new one

    def close(self) -> None:
        """Have it release everything."""
        try:
            self.sink.close()
        except Exception:
            pass  # it is let go of in any case


def _failure(error: Exception, *, connecting: bool = False) -> Failure:
    # Not its text: it may quote a row or a secret.
    return Failure(f"the sink raised {type(error).__name__}", connecting=connecting)
