r"""
Frames that are lines of text, for files and HTTP: `SEQ TAB LEVEL TAB LOGGER TAB LINE NEWLINE`. Pure; made on the
caller's thread.

The line is what a formatter makes of the record. It is handed a record that was rebuilt from what `capture` took: so
nothing secret, nothing that changes later and nothing hostile comes before it, whoever wrote it, and the program's own
record is not touched. Characters that a terminal obeys are shown as `\x1b` in that record, but for tabs and line
breaks; what the formatter itself adds (colours) stays. A line break inside (a traceback) is carried as a vertical tab,
`\v`, and put back by `lines_of`.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from logsluice import decoding
from logsluice.capture import attributes_json, tidy
from logsluice.formatters import SluiceJsonFormatter

if TYPE_CHECKING:
    import logging
    from collections.abc import Callable

    from logsluice.capture import Captured, Rules
    from logsluice.config import Settings
    from logsluice.targets import Encode

COLUMNS = ("seq", "level", "logger", "line")
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029]")
_BEFORE = re.compile(rb"^-?\d+\t-?\d+\t[^\t\n]*\t", re.MULTILINE)


def lines_of(frames: bytes) -> bytes:
    """Return the lines of some frames as they are written into a file: two searches in C, no loop over frames."""
    return _BEFORE.sub(b"", frames).replace(b"\v", b"\n")


def visible(value: Any) -> Any:
    """Return a tree of values with control characters in its texts shown as what they are."""
    if isinstance(value, str):
        if value.isprintable():
            return value
        return _CONTROL.sub(lambda found: _shown(ord(found[0])), value.replace("\r\n", "\n"))
    if isinstance(value, dict):
        return {visible(key): visible(one) for key, one in value.items()}
    return [visible(one) for one in value] if isinstance(value, list) else value


def _shown(code: int) -> str:
    return f"\\x{code:02x}" if code < 256 else f"\\u{code:04x}"


def parts(frame: bytes) -> tuple[int, int, str, str]:
    """Return seq, level, logger and line of one frame."""
    seq, level, logger, line = frame.decode().removesuffix("\n").split("\t", 3)
    return int(seq), int(level), logger, line.replace("\v", "\n")


@dataclass(frozen=True)
class LineTarget:
    """A file or an endpoint, by its name without secrets. `formatter` is asked for each record: it may be replaced."""

    name: str
    formatter: Callable[[], logging.Formatter]
    refused: str
    columns: tuple[str, ...] = COLUMNS
    plain: bool = False
    marks: bool = True

    def encoder(self, rules: Rules, settings: Settings) -> Encode:  # noqa: ARG002 - a Target's signature
        """Return what makes a frame of a captured record."""

        def encode(captured: Captured, _record: logging.LogRecord, rules: Rules) -> bytes:
            line = self.line(captured, rules).replace("\r\n", "\n").replace("\n", "\v")
            fields = captured.fields
            logger = (fields["logger"] or "").replace("\t", " ").replace("\n", " ")
            return f"{fields['seq']}\t{fields['level']}\t{logger}\t{line}\n".encode()

        return encode

    def line(self, captured: Captured, rules: Rules) -> str:
        """Return what is written of a captured record, without a newline at its end."""
        formatter = self.formatter()
        if isinstance(formatter, SluiceJsonFormatter):
            return formatter.line(captured, rules)
        text = attributes_json(captured, rules)
        values = visible({**captured.fields, "attributes": {} if text is None else json.loads(text)})
        line = str(formatter.format(decoding.rebuilt(values)))
        return tidy(line.replace("\v", "\\x0b"), "line", rules, captured.marks)

    def record_of(self, frame: bytes) -> logging.LogRecord | None:
        """Return a record of that level and logger whose message is the line; None for a row of our own."""
        if frame.startswith(b"-"):
            return None
        _, level, logger, line = parts(frame)
        return decoding.of_line(line, level=level, logger=logger)

    def row_of(self, frame: bytes) -> dict[str, Any]:
        """Return the line's JSON object; {"line": text} of a line that is none."""
        line = lines_of(frame).decode().removesuffix("\n")
        try:
            found = json.loads(line)
        except ValueError:
            found = None
        return found if isinstance(found, dict) else {"line": line}
