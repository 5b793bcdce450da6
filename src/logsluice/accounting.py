"""
What became of every record, in one snapshot.

The conservation law, checked by tests after every fault against the rows in the table:

    offered  = accepted + dropped
    accepted = stored + dead + abandoned + waiting

A record inside its logging call counts as waiting. Rows of our own (drop markers) are counted apart. What a filter kept
back was never offered; what the filters of logsluice.filters kept back is shown beside, as `suppressed_by`.
"""

from __future__ import annotations

import bisect
from collections import Counter, deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Sequence

SUMMED = ("stored", "dead", "markers", "batches", "retries")  # of several books together


class Histogram:
    """Counts by upper bound. One thread adds, any thread reads."""

    def __init__(self, *bounds: float) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)  # the last: over every bound
        self.sum = 0.0

    def add(self, value: float) -> None:
        """Count one value."""
        self.counts[bisect.bisect_left(self.bounds, value)] += 1
        self.sum += value

    def include(self, other: Histogram) -> None:
        """Count what another one of the same bounds has counted."""
        self.counts = [mine + theirs for mine, theirs in zip(self.counts, other.counts, strict=True)]
        self.sum += other.sum

    def snapshot(self) -> dict[str, Any]:
        """Return `{"bounds": [...], "counts": [...], "sum": ...}`; one count more than bounds."""
        return {"bounds": list(self.bounds), "counts": list(self.counts), "sum": self.sum}


class Totals(NamedTuple):
    """What the listener did with frames. Replaced as a whole, so that a reader never sees half a batch."""

    stored: int = 0
    dead: int = 0
    abandoned: tuple[tuple[str, int], ...] = ()  # (reason, records)
    markers: int = 0  # rows of our own
    batches: int = 0
    retries: int = 0
    last_stored_at: float | None = None  # seconds since the epoch

    def abandon(self, reason: str, records: int) -> Totals:
        """Return these totals with so many records more given up."""
        counts = dict(self.abandoned)
        counts[reason] = counts.get(reason, 0) + records
        return self._replace(abandoned=tuple(counts.items()))


@dataclass
class Ledger:
    """The listener's book: totals, histograms and the last batches. Written by the listener only."""

    totals: Totals = field(default_factory=Totals)
    # Bounds: a record alone up to more than a batch holds; one frame to a batch; a fast COPY to io_timeout.
    records: Histogram = field(default_factory=lambda: Histogram(1, 10, 100, 1000, 10_000, 100_000))
    bytes: Histogram = field(default_factory=lambda: Histogram(1e3, 1e4, 1e5, 1e6, 4e6))
    seconds: Histogram = field(default_factory=lambda: Histogram(0.005, 0.01, 0.05, 0.1, 0.5, 1, 5, 30))
    call_to_commit: Histogram = field(default_factory=lambda: Histogram(0.01, 0.05, 0.1, 0.5, 1, 5, 30, 300, 3600))
    # No row content in these. Ten good ones show the rhythm; fifty failures the course of an outage.
    recent_stored: deque[dict[str, Any]] = field(default_factory=lambda: deque(maxlen=10))
    recent_failed: deque[dict[str, Any]] = field(default_factory=lambda: deque(maxlen=50))

    def histograms(self) -> dict[str, dict[str, Any]]:
        """Return all four, by what they measure."""
        return {
            "batch_records": self.records.snapshot(),
            "batch_bytes": self.bytes.snapshot(),
            "batch_seconds": self.seconds.snapshot(),
            "call_to_commit_seconds": self.call_to_commit.snapshot(),
        }


def together(ledgers: Sequence[Ledger]) -> Ledger:
    """Return one book of several, as of now; of one, itself."""
    if len(ledgers) == 1:
        return ledgers[0]
    every = [ledger.totals for ledger in ledgers]  # first: see figures.py
    abandoned: Counter[str] = Counter()
    for totals in every:
        abandoned.update(dict(totals.abandoned))
    counts = {name: sum(getattr(totals, name) for totals in every) for name in SUMMED}
    stored_at = [totals.last_stored_at for totals in every if totals.last_stored_at is not None]
    book = Ledger(Totals(**counts, abandoned=tuple(abandoned.items()), last_stored_at=max(stored_at, default=None)))
    for ledger in ledgers:
        for name in ("records", "bytes", "seconds", "call_to_commit"):
            getattr(book, name).include(getattr(ledger, name))
    for name in ("recent_stored", "recent_failed"):
        batches = [batch for ledger in ledgers for batch in list(getattr(ledger, name))]
        getattr(book, name).extend(sorted(batches, key=lambda batch: batch["at"]))
    return book


@dataclass(frozen=True)
class Stats:
    """One consistent snapshot of a handler in this process."""

    offered: int  # records that logging handed to us
    accepted: int  # offered less dropped
    stored: int  # committed in PostgreSQL
    dead: int  # in dead_letter, with the reason
    dropped: int
    dropped_by: dict[tuple[str, int], int]  # (reason, level) -> records
    abandoned: int
    abandoned_by: dict[str, int]  # reason -> records
    waiting: int  # records in the buffer, in flight, or inside their logging call
    waiting_bytes: int
    capacity_bytes: int
    full: bool  # records are being dropped, or callers blocked
    sanitized: int  # records in which a value had to be repaired
    own_noise: int  # records of our own threads and names, never stored
    markers: int  # rows of our own
    batches: int
    retries: int
    breaker: str  # closed, open, half_open
    watermark_missing: int  # how often the row of a stream in use was gone: from there on at least once
    last_stored_at: float | None  # seconds since the epoch
    oldest_waiting_seconds: float  # an upper bound, to within `linger`
    histograms: dict[str, dict[str, Any]]
    recent: dict[str, list[dict[str, Any]]]  # "stored": the last 10 batches, "failed": the last 50
    journal: dict[str, Any] | None = None  # of the folder, if there is one: see figures.py
    # (reason, level) -> records that filters on the handler kept back: never offered. What those on loggers kept back,
    # which no handler hears of, is in logsluice.filters.figures().
    suppressed_by: dict[tuple[str, int], int] = field(default_factory=dict)
