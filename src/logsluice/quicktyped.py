"""
The quick way of typed logs: an instance's row in one loop over its columns.

It gives up rather than guess, as quick.py does: `Intake.whole` then makes the same row, byte for byte, of any record
(tests/unit/test_quicktyped.py holds them equal). Without it a row costs ten times what a message does, and a request
that is one row and one span is dearer than the work of many.
"""

from __future__ import annotations

import sys
import uuid
from datetime import datetime
from decimal import Decimal
from logging import LogRecord
from math import floor
from typing import TYPE_CHECKING, Any

from logsluice import context
from logsluice.capture import GET_MESSAGE, ID_COLUMNS, ambient_ids, in_range, utc_second
from logsluice.encoding import NULL, JsonWriter, Marks, copy_text
from logsluice.quick import QUICK_FRAME, SCALARS, STANDARD_COUNT, THREE_DIGITS, NotPlainError

if TYPE_CHECKING:
    from collections.abc import Callable

    from logsluice.capture import Rules
    from logsluice.quick import QuickWay
    from logsluice.types import LogType

# What a captured record knows by these names, and a field of that name would take where it is None.
_KNOWN = frozenset(
    {"logger", "file", "line", "func", "thread", "task", "message", "template", "exc_type", "exc_message", "exc_text"}
)
_IDENTITY = 3  # columns before the fields: ts, stream, seq


# Exact types only, as there. Numbers and booleans read in a column as in JSON.
_TEXTS: dict[type, Callable[[Any], str]] = {
    **SCALARS,
    str: copy_text,
    uuid.UUID: str,
    Decimal: str,
    datetime: datetime.isoformat,
}
_JSON = frozenset({dict, list})


def made(quick: QuickWay, kind: LogType, rules: Rules) -> Callable[[LogRecord, int], bytes | None] | None:
    """
    Return what makes the frame of a record that is an instance, or None.

    None where no instance can go this way: a field's name is secret, each text is searched, or characters are limited.
    """
    redactor, limits = rules.redactor, rules.limits
    limited = (limits.service, limits.module, limits.operation, limits.message)
    names = tuple(column.name for column in kind.columns)
    secret = redactor.searches_text or (redactor.active and any(map(redactor.is_secret, names)))
    if secret or any(one is not None for one in limited):
        return None
    own = [(column.name, column.sql in {"jsonb", "json"}) for column in kind.fields]
    common = names[_IDENTITY + len(own) : -1]
    clash = frozenset(names) - frozenset(ID_COLUMNS)
    places = {name: n for n, name in enumerate(ID_COLUMNS)}
    stream, served = str(quick.stream), NULL if rules.service is None else copy_text(rules.service)
    longest = min(QUICK_FRAME, rules.max_message_bytes)

    last = (-1, "")  # the second of the last record, and its text; replaced whole

    def moment_of(second: int) -> str:
        nonlocal last
        known = last
        if known[0] != second:
            if not in_range(second, rules.now()):
                raise NotPlainError
            known = last = (second, f"{utc_second(second)}.")
        return known[1]

    def ids_and_rest(bound: dict[str, Any] | None) -> tuple[list[str], str]:
        if not bound:
            return [NULL] * len(ID_COLUMNS), NULL
        if not clash.isdisjoint(bound):
            raise NotPlainError  # it fills a column
        _, parts, ids, _ = quick.bound(bound)
        json = ", ".join(filter(None, parts))
        return ids.split("\t"), f"{{{quick.escaped(json)}}}" if json else NULL

    def json_of(value: Any, name: str) -> str:
        if type(value) not in _JSON:
            raise NotPlainError
        marks = Marks()
        text = JsonWriter(limits, rules.max_message_bytes, redactor, marks).value(value, name)
        if marks:
            raise NotPlainError
        return copy_text(text)

    def unset(name: str, record: LogRecord, ids: list[str]) -> str:
        if name in places:
            return ids[places[name]]
        if name == "level":
            return repr(record.levelno)
        if name == "service":
            return served
        if name in _KNOWN:
            raise NotPlainError
        return NULL

    def row(record: LogRecord, seq: int) -> bytes | None:
        try:
            d = record.__dict__
            instance = record.msg
            if (
                len(d) != STANDARD_COUNT
                or record.args
                or record.exc_info
                or record.exc_text
                or record.stack_info
                or type(record) is not LogRecord
                or type(record).getMessage is not GET_MESSAGE
                or type(record.levelno) is not int
                or record.processName != "MainProcess"
            ):
                return None
            if len(sys.modules) != quick.modules:
                quick.look_around()
            ids, rest = ids_and_rest(context.get())
            if quick.ambient and (found := ambient_ids()):
                others = quick.id_texts([found.get(column) for column in ID_COLUMNS])
                ids = [mine if mine != NULL else other or NULL for mine, other in zip(ids, others, strict=True)]
            second, micros = divmod(floor(record.created * 1e6), 1_000_000)
            texts = [
                f"{moment_of(second)}{THREE_DIGITS[micros // 1000]}{THREE_DIGITS[micros % 1000]}Z",
                stream,
                str(seq),
            ]
            for name, is_json in own:
                value = getattr(instance, name)
                if value is None:
                    texts.append(unset(name, record, ids))
                elif is_json:
                    texts.append(json_of(value, name))
                elif name == "level" and type(value) is not int:
                    return None
                else:
                    texts.append(_TEXTS[type(value)](value))
            texts += [quick.name(record.name) if name == "logger" else unset(name, record, ids) for name in common]
            texts.append(rest)
            line = "\t".join(texts)
            if "://" in line and redactor.active:
                return None
            frame = f"{line}\n".encode()
            # A NUL would end the segment. The encoder has refused lone surrogates.
            return frame if len(frame) <= longest and 0 not in frame else None
        except Exception:
            return None  # the whole way takes anything

    return row
