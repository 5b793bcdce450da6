"""
What commands print of records: as lines for people, and in the formats of `logsluice query`.

    2026-11-22 09:01:02.123Z INFO  shop.orders  order 17 paid  {"amount": 12.5}

A record begins in the first column and nothing else does: its further lines and its traceback are indented, so no
message can pass itself off as another record. What was logged by strangers must not drive the terminal either:
`visible` shows control characters instead of sending them, and the other formats have escapes for them.
"""

from __future__ import annotations

import csv
import io
import json
import logging
import math
import os
import re
from datetime import datetime, tzinfo
from decimal import Decimal
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from logsluice.records import Record

INDENT = "    "
# C0 and DEL, C1 (a lone \x9b is ESC [ to some terminals), marks and overrides of direction, line separators, the
# byte order mark, tags. Not the joiners U+200C and U+200D: Persian and emoji need them.
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff\U000e0000-\U000e007f]")
_SHORT = {"\t": r"\t", "\r": r"\r", "\n": r"\n"}
_STYLES = {"dim": "2", "green": "32", "yellow": "33", "red": "31", "bold": "1", "bold red": "1;31"}


# As text: Python's datetime ends at the year 9999, PostgreSQL's does not, and rows may come from elsewhere.
TIME = "coalesce(to_char(ts AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24:MI:SS.MS') || 'Z', ts::text)"
COLUMNS = f"{TIME}, level, logger, message, exc_type, exc_message, exc_text, attributes::text"


class Row(NamedTuple):
    """What is shown of a row, in the order of COLUMNS."""

    time: str
    level: int
    logger: str | None
    message: str | None
    exc_type: str | None
    exc_message: str | None
    exc_text: str | None
    attributes: str | None  # JSON


def lines(row: Row, *, colour: bool = False, width: int = 0) -> Iterator[str]:
    """Yield the lines of a row, safe for a terminal. `width`: of the level, so that messages stand below each other."""
    first, more = split(row.message or "")
    level = paint(visible(name(row.level)).ljust(width), _style(row.level), on=colour)
    parts = [f"{paint(visible(row.time), 'dim', on=colour)} {level}", visible(row.logger or "-"), first]
    if row.attributes and row.attributes != "{}":
        parts.append(paint(visible(row.attributes), "dim", on=colour))
    yield "  ".join(part for part in parts if part)
    yield from _indented(more)
    if row.exc_text or row.exc_type:
        first, more = split(row.exc_text or f"{row.exc_type}: {row.exc_message}")
        yield from _indented((first, *more))


def _indented(texts: Iterable[str]) -> Iterator[str]:
    return (INDENT + text if text else "" for text in texts)


def split(text: str) -> tuple[str, Iterable[str]]:
    """Return the first line and the others, made visible. Only a newline ends a line, alone or after a CR."""
    first, *more = (visible(line) for line in text.replace("\r\n", "\n").rstrip("\n").split("\n"))
    return first, more


def visible(text: str) -> str:
    r"""Return the text with its control characters spelled out: ESC as \x1b, a right-to-left override as \u202e."""
    return text if text.isascii() and text.isprintable() else _CONTROL.sub(_spelled, text)


def _spelled(found: re.Match[str]) -> str:
    char = found[0]
    code = ord(char)
    return _SHORT.get(char) or (f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}")


def wants_colour(stream: Any) -> bool:
    """Whether to colour: only a terminal that can, and not against https://no-color.org."""
    return bool(stream.isatty()) and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def paint(text: str, style: str, *, on: bool) -> str:
    """Return the text in a style of `_STYLES`; "" is none."""
    return f"\x1b[{_STYLES[style]}m{text}\x1b[0m" if on and style and text else text


def say_anything(stream: Any) -> None:
    """Let a stream of a narrow encoding print every text: `LC_ALL=C` must not end in a UnicodeEncodeError."""
    if hasattr(stream, "reconfigure"):
        stream.reconfigure(errors="backslashreplace")


def _style(level: int) -> str:
    for least, style in ((logging.CRITICAL, "bold red"), (logging.ERROR, "red"), (logging.WARNING, "yellow")):
        if level >= least:
            return style
    return "green" if level >= logging.INFO else "dim"


def name(level: int) -> str:
    """Return the name of one of Python's five levels; another level is a number here, its name was the program's."""
    known = str(logging.getLevelName(level))
    return str(level) if known.startswith("Level ") else known


# --- records in a format ----------------------------------------------------------------------------------------------

FORMATS = ("pretty", "json", "ndjson", "logfmt", "csv", "raw")
_QUOTES = re.compile(r"[\s\"=\\]")  # a value of logfmt with one of these needs quotes
_FORMULA = ("=", "+", "-", "@", "\t", "\r")  # a spreadsheet computes a cell that begins so, with whatever is in it


class Style(NamedTuple):
    """How records are printed."""

    form: str
    columns: Sequence[str]  # of the table: the header of csv
    zone: tzinfo
    camel: bool = False  # keys as traceId, not trace_id
    colour: bool = False
    terminal: bool = False  # it goes to one: nothing may drive it


def printed(records: Iterable[Record], style: Style) -> Iterator[str]:
    """Yield the lines of records, none of them held back: there may be a million."""
    if style.form == "json":
        yield "["
        before = None
        for record in records:
            if before is not None:
                yield f"{before},"
            before = _json(record, style)
        if before is not None:
            yield before
        yield "]"
        return
    if style.form == "csv":
        yield _csv([_key(name, style) for name in ("id", *style.columns)])
    one: Callable[[Record, Style], str] = {
        "pretty": _pretty, "ndjson": _json, "logfmt": _logfmt, "csv": _cells, "raw": _raw,
    }[style.form]  # fmt: skip
    for record in records:
        yield one(record, style)


def _pretty(record: Record, style: Style) -> str:
    ts = record.ts.astimezone(style.zone)
    time = ts.isoformat(" ", "milliseconds").replace("+00:00", "Z")
    rest = {name: value for name, value in record.fields.items() if value is not None}
    more = record.attributes if isinstance(record.attributes, dict) else {"": record.attributes}
    shown = {**rest, **more, **rest}  # columns first, and no attribute in the place of one
    text = json.dumps(shown, ensure_ascii=False, default=_plain)
    row = Row(time, record.level or 0, record.logger, record.message, record.exc_type, record.exc_message,
              record.exc_text, text)  # fmt: skip
    return "\n".join(lines(row, colour=style.colour, width=len("CRITICAL")))


def _json(record: Record, style: Style) -> str:
    # ASCII: control characters and marks of direction are spelled out.
    return json.dumps(_object(record, style), ensure_ascii=True, default=str)


def _object(record: Record, style: Style) -> dict[str, Any]:
    values = {"id": record.id, "table": record.table, **record.values()}
    return {_key(name, style): _plain(value, style.zone) for name, value in values.items()}


def _logfmt(record: Record, style: Style) -> str:
    values = _object(record, style)
    if record.level is not None:
        values["level"] = name(record.level).lower()
    attributes = values.pop("attributes", {})
    for key, value in attributes.items() if isinstance(attributes, dict) else [("attributes", attributes)]:
        values.setdefault(key if key not in values else f"attributes.{key}", value)
    return " ".join(f"{_word(key)}={_value(value)}" for key, value in values.items())


def _word(key: str) -> str:
    return re.sub(r"[^\w.-]", "_", key) or "_"


def _value(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    if text and visible(text) == text and not _QUOTES.search(text):
        return text
    quoted = json.dumps(text, ensure_ascii=False)
    return _CONTROL.sub(lambda found: json.dumps(found[0])[1:-1], quoted)


def _cells(record: Record, style: Style) -> str:
    values = {"id": record.id, **record.values()}
    cells = []
    for column in ("id", *style.columns):
        value = _plain(values.get(column), style.zone)
        if isinstance(value, (dict, list)):
            value = json.dumps(value, ensure_ascii=True, default=str)
        if isinstance(value, str):
            text = "\n".join(visible(line) for line in value.replace("\r\n", "\n").split("\n"))
            value = f"'{text}" if value.startswith(_FORMULA) else text
        cells.append(value)
    return _csv(cells)


def _csv(cells: Sequence[Any]) -> str:
    out = io.StringIO()
    csv.writer(out, lineterminator="\n").writerow(cells)  # with another end of lines it may leave "\n" unquoted
    return out.getvalue()[:-1]


def _raw(record: Record, style: Style) -> str:
    if record.message is None:
        return _json(record, style)
    return "\n".join(visible(line) for line in record.message.split("\n")) if style.terminal else record.message


def _key(column: str, style: Style) -> str:
    return re.sub(r"_([a-z0-9])", lambda found: found[1].upper(), column) if style.camel else column


def _plain(value: Any, zone: tzinfo | None = None) -> Any:
    """Return what JSON has for a value; a text where it has nothing."""
    if isinstance(value, datetime):
        return value.astimezone(zone).isoformat(timespec="microseconds").replace("+00:00", "Z")
    if isinstance(value, Decimal):
        number = float(value) if value.is_finite() else math.nan
        return number if Decimal(repr(number)) == value else str(value)
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value if value is None or isinstance(value, (str, int, float, dict, list)) else str(value)
