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
import json
import logging
from typing import TYPE_CHECKING, Any

from logsluice import lifecycle
from logsluice.conformance import RULES, Bench
from logsluice.handlers import PostgresHandler
from logsluice.sinks.guard import Guard

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from logsluice.base import BaseHandler
    from logsluice.sinks import Sink


@contextlib.contextmanager
def captured(
    level: int | str | None = None, *, logger: str | None = None, **options: Any
) -> Iterator[list[dict[str, Any]]]:
    """
    Yield the list that every record's row goes to meanwhile, as {column: value}.

    Every handler of ours in the process hands its rows here and stores nothing: those that exist and those that the
    code under test makes (which store nothing afterwards either, only count). Where no logger has one, or `options`
    are given, a PostgresHandler with these options is put on `logger` (None: root), whose level becomes `level` (None:
    INFO) until the end. Where handlers exist, levels stay as they are unless `level` is given.

    Values of `logs` are typed: `ts` an aware datetime, `level`, `line`, `stream` and `seq` int, `attributes` a dict,
    the rest str or None. With `columns=` they are the texts that the server would convert. A JsonFileHandler's row is
    the object that its line would be, or {"line": text} where a formatter makes no JSON; a record that two handlers
    take is two rows. Blocks for nothing. Raises ConfigError for a wrong option.
    """
    rows: list[dict[str, Any]] = []
    inside: list[BaseHandler] = []

    def divert(handler: BaseHandler) -> None:
        handler.__dict__["handle"] = _taker(handler, rows)

    def divert_new(handler: BaseHandler) -> None:
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


def check_sink(
    factory: Callable[[int], Sink],
    read: Callable[[], Iterable[str]],
    *,
    once: bool = True,
    broken: Callable[[bool], object] | None = None,
    silent: Callable[[bool], object] | None = None,
    limit: float = 30.0,
) -> None:
    """
    Try the numbered rules of a sink (`logsluice.sinks`) over one of your own, made for `format="json"`.

    `factory(stream)` makes a sink of a stream; what it raises is treated as `SinkHandler` treats it. `read()` returns
    all that is stored, as texts that hold the lines. `broken(True)` makes what is behind the sink fail and
    `broken(False)` mends it; `silent` the same, but it does not answer, for longer than the sink's own `limit` of
    seconds; a rule whose fault is not given is left out. `once=False`: rows sent again may be stored again. Forks a
    child, which ends at once. Blocks for what the sink takes. Raises AssertionError, which says the rule's number and
    what was wrong.
    """

    def frame(seq: int, text: str) -> bytes:
        line = json.dumps({"message": text, "stream": str(bench.streams[-1]), "seq": seq})
        return f"{seq}\t{logging.INFO}\tcheck\t{line}\n".encode()

    bench = Bench(
        lambda stream: Guard(factory(stream)), read, frame, once=once, broken=broken, silent=silent, limit=limit
    )
    for rule in RULES:
        rule(bench)


def _taker(handler: BaseHandler, rows: list[dict[str, Any]]) -> Callable[[logging.LogRecord], bool]:
    """Return what stands in for `handle`: the way to the frame, and no further."""
    intake, target = handler.entry()

    def handle(record: logging.LogRecord) -> bool:
        passed: Any = handler.filter(record)
        if not passed:
            return False
        frame = intake.prepare(passed if isinstance(passed, logging.LogRecord) else record)
        if frame is None:  # one of our own
            return False
        rows.append(target.row_of(frame))
        return True

    return handle


def _attached(handler: logging.Handler) -> bool:
    loggers = [logging.root, *logging.root.manager.loggerDict.values()]
    return any(handler in one.handlers for one in loggers if isinstance(one, logging.Logger))
