"""What the listener says on stderr, and the row it leaves in the log when records were dropped. Listener only."""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from logsluice.config import Settings
    from logsluice.diagnostics import Diagnostics
    from logsluice.routes import Route

STUCK = 60.0  # seconds without a stored row, while records wait, until it is said; and between such lines


class Notices:
    """The listener's voice: slow batches, dead letters, records that wait too long, and drops."""

    def __init__(self, settings: Settings, diagnostics: Diagnostics) -> None:
        self._settings = settings
        self._diagnostics = diagnostics
        self._reported_drops: dict[str, dict[tuple[str, int], int]] = {}
        self._dropping_since: dict[str, float] = {}

    def stored(self, route: Route, figures: dict[str, Any], batches: int, now: float) -> None:
        """Tell of a stored batch: slow, with dead letters, or the first after trouble."""
        text = f"{figures['records']} records, {figures['bytes']} bytes, {figures['seconds'] * 1000:.0f} ms"
        self._diagnostics.detail(f"stored {text}, {figures['dead']} dead, route {route.name}")
        # Not the first: it pays for a cold server and a new stream, and a newcomer's first line would be a false alarm.
        if figures["seconds"] > self._settings.slow_batch and batches > 1:
            self._diagnostics.say(
                "slow",
                f"slow batch: {text}, verdict stored; slow_batch={self._settings.slow_batch} sets when this is said",
            )
        if figures["dead"]:
            self._diagnostics.say(
                "dead",
                f"{figures['dead']} of {figures['records']} records were rejected by {route.target.name} and kept, "
                f"with the reason, in {route.target.refused}",
            )
        if route.complained:
            route.complained = False
            waited = now - route.storing_since
            self._diagnostics.say("over", f"records are stored again after {waited:.0f} s, route {route.name}", every=0)
        route.storing_since = now

    def stuck(self, routes: list[Route], failures: list[dict[str, Any]], now: float) -> None:
        """Say once a minute that nothing is stored while records wait: since when, how many, why, what to do."""
        for route in routes:
            stuck = now - route.storing_since
            if stuck < STUCK or not route.waits:
                continue
            failed = [f for f in failures if f["route"] == route.name]
            why = failed[-1]["error"] if failed else "no attempt has ended yet"
            said = self._diagnostics.say(
                f"stuck-{route.name}",
                f"nothing stored for {stuck:.0f} s, {route.buffer.rows_waiting()} records wait in "
                f"{route.buffer.waiting_bytes()} of {route.buffer.capacity_bytes} bytes: {why}. "
                "Records are kept until the buffer is full; run `logsluice doctor` for what to do",
                every=STUCK,
            )
            route.complained = route.complained or said

    def drops(self, route: Route) -> None:
        """When the pressure is over, put one row into the log itself: how many were dropped, from when to when, why."""
        drops = {key: count for key, count in route.buffer.dropped().items() if key[0] != "closed"}
        reported = self._reported_drops.setdefault(route.name, {})
        new = {key: count - reported.get(key, 0) for key, count in drops.items() if count > reported.get(key, 0)}
        if not new:
            return
        now = time.time()
        since = self._dropping_since.setdefault(route.name, route.buffer.dropping_since or now)
        total = sum(new.values())
        reasons = ", ".join(
            f"{count} {logging.getLevelName(level)} ({reason})" for (reason, level), count in sorted(new.items())
        )
        limit = "capacity_bytes" if self._settings.journal is None else "journal_bytes"
        if route.buffer.under_pressure:
            self._diagnostics.say("dropped", f"{total} records dropped so far: {reasons}; see when_full, {limit}")
            return
        self._diagnostics.say("dropped-over", f"{total} records were dropped: {reasons}; see when_full, {limit}")
        if not route.target.marks or route.intake is None or route.intake.mark(total, reasons, since, now):
            reported.update(drops)
            del self._dropping_since[route.name]
            route.buffer.dropping_since = None
