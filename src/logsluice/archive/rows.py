r"""
Rows on their way: a line of COPY text, the texts of its columns, the values that a file holds, and back. Pure.

What is summed and compared is always the line as PostgreSQL sends it. A file holds values of types that other tools
know; where such a value cannot say exactly what PostgreSQL said (a time that is infinite, `NaN`), the text stands
beside it.
"""

from __future__ import annotations

import hashlib
from datetime import date
from typing import TYPE_CHECKING, Any, NamedTuple

from logsluice.encoding import copy_row

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

_WIDTH = 16  # bytes of each row's SHA-256 that count: two different tables have one sum by chance in 2^128
_EPOCH = date(1970, 1, 1).toordinal()
_DAY = 86_400_000_000  # microseconds
_MOST_DAYS = 10_000  # remembered texts of days: rows of one file have a few, of a hostile one any number
# What COPY escapes and `copy_row` leaves alone, as the server reads both.
_ALSO = ((b"\b", b"\\b"), (b"\v", b"\\v"), (b"\f", b"\\f"))

_ordinals: dict[str, int] = {}
_days: dict[int, str] = {}


class Column(NamedTuple):
    """A column and its type as PostgreSQL calls it."""

    name: str
    type: str


class Sum:
    """The number of rows and a checksum of them that does not depend on their order."""

    def __init__(self) -> None:
        self.rows = 0
        self._sum = 0

    def add(self, line: bytes) -> None:
        """Count one row, a line of COPY text with its newline."""
        self.rows += 1
        self._sum += int.from_bytes(hashlib.sha256(line).digest()[:_WIDTH], "big")

    @property
    def checksum(self) -> str:
        """The sum modulo 2^128, hexadecimal."""
        return f"{self._sum % (1 << 8 * _WIDTH):0{2 * _WIDTH}x}"


def line(texts: Sequence[str | None]) -> bytes:
    """Return the line that PostgreSQL sends for these texts; None is NULL."""
    row = copy_row(texts)
    for raw, escaped in _ALSO:
        if raw in row:
            row = row.replace(raw, escaped)
    return row


class Kind(NamedTuple):
    """How values of a type are stored: `value` gives None for a text that has none, `text` its way back."""

    name: str
    value: Callable[[str], Any]
    text: Callable[[Any], str]


def micros(text: str) -> int | None:
    """Return microseconds since 1970 of a time as PostgreSQL writes it in UTC; None beyond the years 1 to 9999."""
    day = text[:10]
    ordinal = _ordinals.get(day)
    try:
        if ordinal is None:
            if len(_ordinals) >= _MOST_DAYS:
                _ordinals.clear()
            ordinal = _ordinals[day] = date.fromisoformat(day).toordinal() - _EPOCH
        seconds = int(text[11:13]) * 3600 + int(text[14:16]) * 60 + int(text[17:19])
        found = ordinal * _DAY + seconds * 1_000_000 + int(text[20:-3].ljust(6, "0"))
    except ValueError:
        return None
    return found if moment(found) == text else None


def moment(number: int) -> str:
    """Return the time as PostgreSQL writes it in UTC."""
    days, rest = divmod(number, _DAY)
    day = _days.get(days)
    if day is None:
        if len(_days) >= _MOST_DAYS:
            _days.clear()
        day = _days[days] = date.fromordinal(days + _EPOCH).isoformat()
    seconds, fraction = divmod(rest, 1_000_000)
    minutes, seconds = divmod(seconds, 60)
    part = f".{fraction:06}".rstrip("0") if fraction else ""
    return f"{day} {minutes // 60:02}:{minutes % 60:02}:{seconds:02}{part}+00"


def _float(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def _bytes(text: str) -> bytes | None:
    try:
        return bytes.fromhex(text[2:])
    except ValueError:
        return None


_BOOL = Kind("bool", {"t": True, "f": False}.get, lambda value: "t" if value else "f")
_FLOAT = Kind("float64", _float, lambda value: repr(value).removesuffix(".0"))
KINDS = {
    "boolean": _BOOL,
    "smallint": Kind("int16", int, str),
    "integer": Kind("int32", int, str),
    "bigint": Kind("int64", int, str),
    "real": _FLOAT,  # not float32: 0.1 would be read as 0.10000000149
    "double precision": _FLOAT,
    "timestamp with time zone": Kind("timestamp", micros, moment),
    "bytea": Kind("binary", _bytes, lambda value: f"\\x{value.hex()}"),
}
TEXT = Kind("string", str, str)


def kind(column: Column) -> Kind:
    """Return how a column is stored. Text: what has no exact match elsewhere, jsonb, numeric, uuid and arrays too."""
    return KINDS.get(column.type, TEXT)
