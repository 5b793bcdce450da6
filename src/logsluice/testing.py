"""
For people's own tests: the rows that would be stored, as dicts. No server, no connection, no thread.

    with logsluice.testing.captured() as rows:
        checkout(order=17)
    assert rows[0]["message"] == "order 17 paid"
    assert rows[0]["attributes"] == {"amount": 12.5}

The rows are made by the handlers' own code and read back from the frames, so what a handler redacts, cuts or maps to
columns is seen as the table would see it. pytest users have the same as the fixture `logsluice_rows`.
"""

from __future__ import annotations

import contextlib
import logging
from typing import TYPE_CHECKING, Any

from logsluice import lifecycle
from logsluice.decoding import row
from logsluice.handlers import PostgresHandler

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


@contextlib.contextmanager
def captured(
    level: int | str | None = None, *, logger: str | None = None, **options: Any
) -> Iterator[list[dict[str, Any]]]:
    """
    Yield the list that every record's row goes to meanwhile, as {column: value}.

    Every PostgresHandler of the process hands its rows here and stores nothing: those that exist and those that the
    code under test makes (which store nothing afterwards either, only count). Where no logger has one, or `options`
    are given, one with these options is put on `logger` (None: root), whose level becomes `level` (None: INFO) until
    the end. Where handlers exist, levels stay as they are unless `level` is given.

    Values of `logs` are typed: `ts` an aware datetime, `level`, `line`, `stream` and `seq` int, `attributes` a dict,
    the rest str or None. With `columns=` they are the texts that the server would convert. Blocks for nothing. Raises
    ConfigError for a wrong option.
    """
    rows: list[dict[str, Any]] = []
    inside: list[PostgresHandler] = []

    def divert(handler: PostgresHandler) -> None:
        handler.__dict__["handle"] = _taker(handler, rows)

    def divert_new(handler: PostgresHandler) -> None:
        inside.append(handler)
        divert(handler)

    before = {handler: handler.__dict__.get("handle") for handler in lifecycle.handlers()}
    outer, lifecycle.diversion = lifecycle.diversion, divert_new
    target = logging.getLogger(logger)
    old_level, own = target.level, None
    try:
        for handler in before:
            divert(handler)
        if options or not any(_attached(handler) for handler in before):
            own = PostgresHandler(**options)
            target.addHandler(own)
            target.setLevel(logging.INFO if level is None else level)
        elif level is not None:
            target.setLevel(level)
        yield rows
    finally:
        lifecycle.diversion = outer
        if own is not None:
            target.removeHandler(own)
        if own is not None or level is not None:
            target.setLevel(old_level)
        for handler, handle in before.items():
            if handle is None:
                handler.__dict__.pop("handle", None)
            else:
                handler.__dict__["handle"] = handle
        for handler in inside:
            handler.__dict__["handle"] = handler.only_count


def _taker(handler: PostgresHandler, rows: list[dict[str, Any]]) -> Callable[[logging.LogRecord], bool]:
    """Return what stands in for `handle`: the way to the frame, and no further."""
    intake, target = handler.entry()
    typed = target.plain

    def handle(record: logging.LogRecord) -> bool:
        passed: Any = handler.filter(record)
        if not passed:
            return False
        frame = intake.prepare(passed if isinstance(passed, logging.LogRecord) else record)
        if frame is None:  # one of our own
            return False
        rows.append(row(frame, target.columns, typed=typed))
        return True

    return handle


def _attached(handler: logging.Handler) -> bool:
    loggers = [logging.root, *logging.root.manager.loggerDict.values()]
    return any(handler in one.handlers for one in loggers if isinstance(one, logging.Logger))
