"""What an `HttpHandler`'s frames are for: an endpoint, in one format. A `Target`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from logsluice import decoding
from logsluice.lines import COLUMNS

if TYPE_CHECKING:
    import logging
    from collections.abc import Callable

    from logsluice.capture import Captured, Rules
    from logsluice.config import Settings
    from logsluice.formatters import SluiceJsonFormatter
    from logsluice.httpformats import Format
    from logsluice.targets import Encode


@dataclass(frozen=True)
class HttpTarget:
    """An endpoint by its url without secrets. `formatter` is asked for each record: it may be replaced."""

    name: str
    format: Format
    formatter: Callable[[], SluiceJsonFormatter]
    refused: str
    columns: tuple[str, ...] = COLUMNS
    plain: bool = False
    marks: bool = True

    def encoder(self, rules: Rules, settings: Settings) -> Encode:  # noqa: ARG002 - a Target's signature
        """Return what makes a frame of a captured record: as in lines.py, a newline inside is a vertical tab."""

        def encode(captured: Captured, _record: logging.LogRecord, rules: Rules) -> bytes:
            line = self.format.line(self.formatter(), captured, rules).replace("\n", "\v")
            fields = captured.fields
            logger = (fields["logger"] or "").replace("\t", " ").replace("\n", " ")
            return f"{fields['seq']}\t{fields['level']}\t{logger}\t{line}\n".encode()

        return encode

    def record_of(self, frame: bytes) -> logging.LogRecord | None:
        """Return a record of that level and logger whose message is the line; None for a row of our own."""
        if frame.startswith(b"-"):
            return None
        _, level, logger, line = frame.decode().removesuffix("\n").split("\t", 3)
        return decoding.of_line(line.replace("\v", "\n"), level=int(level), logger=logger)
