"""
The keeper: the thread that does a journal's chores, so that neither a logging call nor the listener waits for a disk.

The listener may be waiting for a server for `io_timeout`; what must be on the device within `fsync` seconds cannot wait
for that. One thread a handler with `journal=` and process. Where no thread can be started the listener does the chores.
"""

from __future__ import annotations

import queue
from typing import TYPE_CHECKING

from logsluice import lifecycle
from logsluice.primitives import Done, SimpleQueue, get_ident, start_thread

if TYPE_CHECKING:
    from logsluice.diagnostics import Diagnostics
    from logsluice.journal_buffer import JournalBuffer


class Keeper:
    """It tends journal buffers when they ask for it, and every `fsync` seconds while something is being logged."""

    def __init__(self, diagnostics: Diagnostics) -> None:
        self.buffers: list[JournalBuffer] = []
        self.idle = False  # set by the listener while nothing waits and the next append wakes it
        self.started = False
        self._diagnostics = diagnostics
        self._tokens: SimpleQueue[None] = SimpleQueue()
        self._ending = False
        self._starter: dict[str, object] = {}  # setdefault elects the one that starts the thread
        self._runner: dict[str, object] = {}  # and the one that runs
        self._done = Done()

    def start(self) -> None:
        """Start the thread. Raises RuntimeError if the interpreter will not."""
        mine = object()
        if self.buffers and not self.started and self._starter.setdefault("", mine) is mine:
            try:
                start_thread(self._run, f"logsluice-{self._diagnostics.name}-journal")
                self.started = True
            except BaseException:  # a Ctrl-C, too: the thread may run all the same
                del self._starter[""]
                raise

    def hurry(self) -> None:
        """Have the chores done now. Any thread, signal handlers included; takes no lock."""
        if self._tokens.empty():
            self._tokens.put(None)

    def stop(self, timeout: float) -> None:
        """End the thread; wait for it for at most `timeout` seconds."""
        self._ending = True
        self.hurry()
        if self.started:
            self._done.wait(timeout)

    def _due(self) -> float | None:
        """Return the seconds until the next chore, None while there is none before somebody calls."""
        waits = [again for one in self.buffers if (again := one.tend_again()) is not None]
        waits += [
            float(one.fsync)
            for one in self.buffers
            if isinstance(one.fsync, (int, float)) and not (self.idle and one.synced >= one.tail())
        ]
        return min(waits, default=None)

    def _run(self) -> None:
        mine, me = object(), get_ident()
        if self._runner.setdefault("", mine) is not mine:
            return  # its starter was interrupted, and somebody started another
        lifecycle.OWN_THREADS.add(me)
        try:
            while not self._ending:
                try:
                    self._tokens.get(timeout=self._due())
                except queue.Empty:
                    pass
                try:
                    for one in self.buffers:
                        if not self._ending:
                            one.tend()
                except Exception as error:
                    # A mistake of ours must not end the thread: nothing would be synced any more, unsaid.
                    self._diagnostics.say("keeper", f"internal error in the journal: {type(error).__name__}: {error}")
        finally:
            lifecycle.OWN_THREADS.discard(me)
            self._done.set()
