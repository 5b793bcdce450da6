"""
Frames back to what they say: one row of COPY text -> column texts, a dict, or a LogRecord for a handler of last resort.

Format: https://www.postgresql.org/docs/current/sql-copy.html, "Text Format".
"""

from __future__ import annotations

import json
import logging
import re
from datetime import datetime
from pathlib import PurePath
from typing import TYPE_CHECKING, Any

from logsluice.encoding import NULL

if TYPE_CHECKING:
    from collections.abc import Callable

_ESCAPED = re.compile(r"\\(.)", re.DOTALL)
_LETTERS = {"n": "\n", "r": "\r", "t": "\t", "b": "\b", "f": "\f", "v": "\v"}
_TYPES: dict[str, Callable[[str], Any]] = {
    "ts": lambda text: datetime.fromisoformat(text.replace("Z", "+00:00")),  # Python 3.10 does not read the Z
    "attributes": json.loads,
    **dict.fromkeys(("level", "line", "stream", "seq"), int),
}


def texts(frame: bytes) -> list[str | None]:
    """Return the text of each column, None for NULL."""
    return [
        None
        if text == NULL
        else text
        if "\\" not in text  # nearly all
        else _ESCAPED.sub(lambda found: _LETTERS.get(found[1], found[1]), text)
        for text in frame.decode(errors="replace").removesuffix("\n").split("\t")
    ]


def row(frame: bytes, columns: tuple[str, ...], *, typed: bool) -> dict[str, Any]:
    """
    Return {column: value}. Typed, for the columns of `logs`: `ts` an aware datetime, `level`, `line`, `stream` and
    `seq` int, `attributes` a dict; else each is its text or None.
    """
    found: dict[str, Any] = {}
    for column, text in zip(columns, texts(frame), strict=True):
        if text is None:
            found[column] = {} if typed and column == "attributes" else None
        else:
            found[column] = _TYPES.get(column, str)(text) if typed else text
    return found


def record(frame: bytes, columns: tuple[str, ...], *, typed: bool) -> logging.LogRecord:
    """Return the record that a frame was made of, as far as it tells; of a table of the user's own its columns."""
    values = row(frame, columns, typed=typed)
    return rebuilt(values) if typed else of_line(json.dumps(values, ensure_ascii=False))


def of_line(text: str, *, level: int = logging.INFO, logger: str = "logsluice") -> logging.LogRecord:
    """Return a record that says a text of which no more is known."""
    return logging.makeLogRecord(
        {"name": logger, "levelno": level, "levelname": logging.getLevelName(level), "msg": text}
    )


def rebuilt(values: dict[str, Any]) -> logging.LogRecord:
    """
    Return a record that says what the columns of `logs` do: {column: value}, typed or as `capture` left them.

    Nothing in it is of the program: a formatter may do with it what it likes.
    """
    level = int(values["level"])
    ts = values["ts"]
    moment = ts if isinstance(ts, datetime) else _TYPES["ts"](ts)
    attributes: dict[str, Any] = values["attributes"]
    ids = ("trace_id", "span_id", "correlation_id", "user_id", "organization_id")
    file = values["file"] or ""
    return logging.makeLogRecord(
        {
            **{key: value for key, value in attributes.items() if key not in {"message", "asctime", "levelname"}},
            **{key: values[key] for key in ids if values[key] is not None},
            "name": values["logger"],
            "levelno": level,
            "levelname": attributes.get("levelname") or logging.getLevelName(level),
            "msg": values["message"],
            "args": None,
            "pathname": file,
            "filename": PurePath(file).name,
            "module": PurePath(file).stem,
            "lineno": int(values["line"] or 0),
            "funcName": values["func"],
            "threadName": values["thread"],
            "created": moment.timestamp(),
            "msecs": float(moment.microsecond // 1000),  # of the float above it would be one less now and then
            "exc_info": None,
            "exc_text": values["exc_text"],
        }
    )
