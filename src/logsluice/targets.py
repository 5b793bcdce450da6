"""What the frames of a route are for: a table, a file, an endpoint. It says how a captured record becomes a frame."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import logging
    from collections.abc import Callable

    from logsluice.capture import Captured, Rules
    from logsluice.config import Settings

    Encode = Callable[[Captured, logging.LogRecord, Rules], bytes]


class Target(Protocol):
    """
    A frame is one line. Where `marks`, or where a sink needs it, the line begins with the record's seq and a tab; a
    negative one is of a row of our own.
    """

    @property
    def name(self) -> str:
        """The target as people write it; no secret."""

    @property
    def columns(self) -> tuple[str, ...]:
        """What stands between the tabs of a frame; () where a frame has no columns."""

    @property
    def plain(self) -> bool:
        """Whether frames are rows of `logs`, which quick.py makes; quicklines.py knows a `LineTarget` by its class."""

    @property
    def marks(self) -> bool:
        """Whether rows of our own (what was dropped) go among the program's."""

    @property
    def refused(self) -> str:
        """Where rejected frames are kept, and how to see them; for a line on stderr."""

    def encoder(self, rules: Rules, settings: Settings) -> Encode:
        """Return what makes a frame of a captured record that has `stream` and `seq`. Any thread calls it."""

    def record_of(self, frame: bytes) -> logging.LogRecord | None:
        """Return a record that says what the frame says, None for a row of our own. Raises ValueError."""

    def row_of(self, frame: bytes) -> dict[str, Any]:
        """Return what the frame says, for people's own tests."""
