"""
Maintenance inside a program: `PostgresHandler(maintenance=...)`.

A thread and a connection of its own, so that the listener never waits for it. Every process may have one: who has the
lock works, the others find it taken and try again at their next turn.
"""

from __future__ import annotations

import dataclasses
import queue
from datetime import datetime, timezone
from typing import TYPE_CHECKING

import psycopg

from logsluice import lifecycle, maintenance, sweep
from logsluice.errors import LogsluiceError
from logsluice.primitives import Done, SimpleQueue, get_ident, start_thread
from logsluice.sinks import SinkError
from logsluice.sinks.link import Link

if TYPE_CHECKING:
    from collections.abc import Callable

    from logsluice.archive import Settings
    from logsluice.config import PostgresSettings
    from logsluice.diagnostics import Diagnostics
    from logsluice.retention import Rules

EVERY = 6 * 3600.0  # seconds between two runs
AGAIN = 300.0  # seconds after a run that failed: the server is away, or its schema not made yet
ANSWER = 600.0  # seconds for one answer, at least: to count or look through a large partition takes minutes


class Maintainer:
    """It runs maintenance at its start and every six hours, and says on stderr what went."""

    def __init__(
        self,
        settings: PostgresSettings,
        rules: Rules,
        archive: Settings | None,
        diagnostics: Diagnostics,
        now: Callable[[], float],
    ) -> None:
        self.runs = 0  # that ended, well or not
        self.last: sweep.Report | None = None  # of the last run that ended well
        self.link = Link(
            dataclasses.replace(settings, io_timeout=max(settings.io_timeout, ANSWER)), diagnostics, lambda: None, now
        )
        self._rules = rules
        self._archive = archive
        self._tokens: SimpleQueue[None] = SimpleQueue()
        self._ending = False
        self._starter: dict[str, object] = {}  # setdefault elects the one that starts the thread
        self.done = Done()

    def start(self) -> None:
        """Start the thread. Raises RuntimeError if the interpreter will not."""
        mine = object()
        if self._starter.setdefault("", mine) is mine:
            try:
                start_thread(self._run, f"logsluice-{self.link.diagnostics.name}-maintenance")
            except BaseException:
                del self._starter[""]
                raise

    def hurry(self) -> None:
        """Have a run begin now. Any thread; takes no lock."""
        self._tokens.put(None)

    def stop(self) -> None:
        """Let the thread end after the step that it is at; waits for nothing."""
        self._ending = True
        self.hurry()

    def _run(self) -> None:
        me = get_ident()
        lifecycle.OWN_THREADS.add(me)
        try:
            while not self._ending:
                seconds = EVERY if self._once() else AGAIN
                self.runs += 1
                try:
                    self._tokens.get(timeout=seconds)
                except queue.Empty:
                    pass
        finally:
            self.link.close()
            lifecycle.OWN_THREADS.discard(me)
            self.done.set()

    def _once(self) -> bool:
        """Do one run and say what went; whether it did not fail. The connection is closed: six hours are long."""
        settings, diagnostics = self.link.settings, self.link.diagnostics
        try:
            now = datetime.fromtimestamp(self.link.now(), timezone.utc)
            width = None if settings.partition == "none" else settings.partition
            self.last = maintenance.run(
                self.link.open(),
                settings.schema,
                self._rules,
                now=now,
                width=width,
                archive=self._archive,
                stop=lambda: self._ending,
            )
            if not self._ending or self.last.gone:
                diagnostics.say("maintenance", f"maintenance: {'; '.join(self.last.lines())}", every=0)
        except (SinkError, LogsluiceError, psycopg.Error) as error:
            if not self._ending:
                diagnostics.say("maintenance-failed", f"maintenance failed, it is tried again: {_why(error)}")
            return False
        except Exception as error:
            # A mistake of ours must not end the thread unsaid.
            diagnostics.say("maintenance-failed", f"internal error in maintenance: {type(error).__name__}: {error}")
            return False
        finally:
            self.link.close()
        return True


def _why(error: Exception) -> str:
    return error.failure.message if isinstance(error, SinkError) else sweep.reason(error)
