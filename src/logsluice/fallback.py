"""The last resort: what would be dropped, or left in memory at exit, goes to another handler of `logging`."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from logsluice import lifecycle

if TYPE_CHECKING:
    from logsluice.diagnostics import Diagnostics
    from logsluice.targets import Target


class Fallback:
    """`name`: the other handler's, as `dictConfig` knows it. Any thread. Looked up when needed: it may come later."""

    def __init__(self, name: str, owner: logging.Handler, diagnostics: Diagnostics) -> None:
        self.name = name
        self._owner = owner
        self._diagnostics = diagnostics

    def take(self, record: logging.LogRecord) -> bool:
        """Hand a record over; False if there is nobody, it does not want the level, or it raised."""
        handler = logging._handlers.get(self.name)  # type: ignore[attr-defined]  # noqa: SLF001 - public from Python 3.12
        if handler is None or handler is self._owner:
            self._diagnostics.say(
                "fallback",
                f"there is no other handler named {self.name!r} (fallback=): it is not used (logging forgets a handler "
                "that is on no logger)",
            )
            return False
        if record.levelno < handler.level:
            return False
        try:
            if lifecycle.on_own_thread() and hasattr(handler, "take_over"):
                # One of ours would take a record of our thread for our driver's, and count it away.
                return bool(handler.take_over(record))
            handler.handle(record)
        except Exception as error:
            self._diagnostics.say("fallback", f"the handler {self.name!r} (fallback=) raised {type(error).__name__}")
            return False
        return True

    def take_frame(self, frame: bytes, target: Target) -> bool:
        """Hand over what a frame was made of; rows of our own are nobody's records."""
        try:
            record = target.record_of(frame)
        except ValueError as error:
            self._diagnostics.say("fallback", f"a frame could not be read back ({type(error).__name__})")
            return False
        return record is not None and self.take(record)
