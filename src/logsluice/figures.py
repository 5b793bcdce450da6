"""What `stats` says: the books, buffers and breakers of a handler's listeners in one snapshot. Any thread."""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING, Any

from logsluice import filters
from logsluice.accounting import Stats, together
from logsluice.journal_buffer import JournalBuffer
from logsluice.listener import adoption_figures

if TYPE_CHECKING:
    from logsluice.base import BaseHandler
    from logsluice.listener import Listener


def stats_of(handler: BaseHandler, listeners: list[Listener]) -> Stats:
    """Return what `stats` says, of a handler's listeners; the law in accounting.py holds for it."""
    settings = handler._settings  # noqa: SLF001 - one room
    ledger = together([listener.ledger for listener in listeners])
    routes = [route for listener in listeners for route in listener.routes]
    totals = ledger.totals  # first: what is stored was offered before, so `waiting` is never negative
    dropped_by: dict[tuple[str, int], int] = {}
    for route in routes:
        for key, count in route.buffer.dropped().items():
            dropped_by[key] = dropped_by.get(key, 0) + count
    if off := handler._off_count.value:  # noqa: SLF001 - one room
        dropped_by["off", logging.NOTSET] = off
    if lost := handler._lost.value:  # noqa: SLF001
        dropped_by["error", logging.NOTSET] = dropped_by.get(("error", logging.NOTSET), 0) + lost
    dropped = sum(dropped_by.values())
    handed = sum(route.own.handed.value for route in routes)  # before those that were offered, as all that is gone
    offered = sum(route.buffer.offered() for route in routes) + off + lost
    abandoned_by = dict(totals.abandoned)
    if handed:
        abandoned_by["fallback"] = abandoned_by.get("fallback", 0) + handed
    abandoned = sum(abandoned_by.values())
    now = time.monotonic()
    since = [since for route in routes if (since := route.first_seen()) is not None]
    breakers = [*(listener.breaker for listener in listeners), *(route.breaker for route in routes)]
    states = [breaker.state(now) for breaker in breakers]
    return Stats(
        offered=offered,
        accepted=offered - dropped,
        stored=totals.stored,
        dead=totals.dead,
        dropped=dropped,
        dropped_by=dropped_by,
        abandoned=abandoned,
        abandoned_by=abandoned_by,
        waiting=offered - dropped - totals.stored - totals.dead - abandoned,
        waiting_bytes=sum(route.buffer.waiting_bytes() for route in routes),
        capacity_bytes=settings.capacity_bytes if settings.journal is None else settings.journal_bytes,
        full=any(route.buffer.under_pressure for route in routes),
        sanitized=sum(intake.sanitized for listener in listeners for intake in listener.intakes),
        own_noise=handler._noise,  # noqa: SLF001
        markers=totals.markers,
        batches=totals.batches,
        retries=totals.retries,
        breaker="open" if "open" in states else "half_open" if "half_open" in states else "closed",
        last_stored_at=totals.last_stored_at,
        oldest_waiting_seconds=max((now - one for one in since), default=0.0),
        histograms=ledger.histograms(),
        recent={"stored": list(ledger.recent_stored), "failed": list(ledger.recent_failed)},
        watermark_missing=sum(getattr(route.sink, "missing", 0) for route in routes)
        + sum(one["watermark_missing"] for listener in listeners for one in adoptions(listener)),
        journal=None if settings.journal is None or not listeners else journal_figures(settings.journal, listeners),
        suppressed_by=filters.suppressed_by(handler.filters),
    )


def journal_figures(path: str, listeners: list[Listener]) -> dict[str, Any]:
    """
    Return what `stats().journal` says.

    folder; bytes: of all files in it, of all processes, at most a second old; segments: of this process;
    in_memory_bytes: accepted while the disk refused, and not durable; trouble: what the disk said, None when it took
    the last file; sync_failures, truncated, quarantined: files; adopted: one entry for each orphan, by its state
    (sending, blocked, done); left: orphans of other targets, and why.
    """
    routes = [route for listener in listeners for route in listener.routes]
    buffers = [route.buffer for route in routes if isinstance(route.buffer, JournalBuffer)]
    adopter = listeners[0].adopter  # the others have none
    chains = [list(buffer._journal_chain()) for buffer in buffers]  # noqa: SLF001 - one room
    return {
        "folder": path,
        "bytes": max((buffer.measure(older=1.0) for buffer in buffers), default=0),
        "segments": sum(map(len, chains)),
        "in_memory_bytes": sum(one.size for chain in chains for one in chain if not one.file),
        "trouble": next((buffer.trouble for buffer in buffers if buffer.trouble), None),
        "sync_failures": sum(buffer.sync_failures for buffer in buffers),
        "truncated": sum(buffer.truncated for buffer in buffers),
        "quarantined": sum(buffer.quarantined for buffer in buffers),
        "adopted": adoptions(listeners[0]),
        "left": dict(adopter.left) if adopter is not None else {},
    }


def adoptions(listener: Listener) -> list[dict[str, Any]]:
    """Return what became of each orphan that this handler took over, and where the others stand."""
    now = time.monotonic()
    return [
        *list(listener.adoptions.values()),
        *(
            adoption_figures(route, "blocked" if route.breaker.state(now) == "open" else "sending")
            for route in list(listener.adopted)
        ),
    ]
