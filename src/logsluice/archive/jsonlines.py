"""
Archive files that are JSON lines in gzip: one object a row, keys in the table's order.

Numbers are written as PostgreSQL wrote them and read back as text, so that no float comes between. Times, bytea, jsonb,
numeric and arrays are strings, in PostgreSQL's own words.
"""

from __future__ import annotations

import gzip
import json
import re
from json.encoder import encode_basestring
from typing import IO, TYPE_CHECKING, Any

from logsluice.archive import rows

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from logsluice.archive.rows import Column

ENDING = "jsonl.gz"
_LEVEL = 6  # gzip's own default: 9 takes three times as long for 2 % less
_NUMBER = re.compile(r"-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?")
_BOOLS = {"t": "true", "f": "false"}


class Writer:
    """It writes rows into a binary file that stays the caller's to close."""

    def __init__(self, file: IO[bytes], columns: Sequence[Column]) -> None:
        # No time in the header: the same rows are the same bytes.
        self._zip = gzip.GzipFile(fileobj=file, mode="wb", compresslevel=_LEVEL, mtime=0)
        self._keys = [encode_basestring(column.name) for column in columns]
        self._write = [_written(column) for column in columns]

    def write(self, batch: Sequence[Sequence[str | None]]) -> None:
        """Write the texts of these rows."""
        lines = []
        for texts in batch:
            parts = [
                f"{key}:{'null' if text is None else write(text)}"
                for key, write, text in zip(self._keys, self._write, texts, strict=True)
            ]
            lines.append(f"{{{','.join(parts)}}}\n")
        self._zip.write("".join(lines).encode())

    def close(self) -> None:
        """Write what ends the file."""
        self._zip.close()


def _written(column: Column) -> Callable[[str], str]:
    kind = rows.kind(column).name
    if kind == "bool":
        return _BOOLS.__getitem__
    if kind in {"int16", "int32", "int64", "float64"}:
        return lambda text: text if _NUMBER.fullmatch(text) else encode_basestring(text)  # NaN is no JSON
    return encode_basestring


def read(file: IO[bytes], columns: Sequence[Column]) -> Iterator[list[str | None]]:
    """Yield the texts of each row."""
    names = [column.name for column in columns]
    load = json.JSONDecoder(parse_int=str, parse_float=str).decode
    with gzip.GzipFile(fileobj=file, mode="rb") as lines:
        for line in lines:
            row: dict[str, Any] = load(line.decode())
            yield [_text(row[name]) for name in names]


def _text(value: Any) -> str | None:
    return value if value is None or isinstance(value, str) else "t" if value else "f"
