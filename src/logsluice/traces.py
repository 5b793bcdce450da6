"""
One stored trace as a tree: its spans, each with what was done and logged inside.

    found = logsluice.traces.read("dbname=logs", trace_id)
    for span in found.spans():
        print(span.name, span.duration, [log.message for log in span.logs()])

What is where is the SQL function `logsluice.trace`'s to say (sql/0003); here its lines become objects.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from logsluice.columns import quote
from logsluice.errors import LogsluiceError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from datetime import datetime

    import psycopg

__all__ = ["StoredLog", "StoredSpan", "Trace", "read"]


@dataclass(frozen=True)
class StoredLog:
    """One log record of the trace."""

    ts: datetime
    level: int
    logger: str | None
    message: str | None
    span_id: str | None
    service: str | None
    exc_text: str | None
    attributes: dict[str, Any]
    stream: int
    seq: int


@dataclass(frozen=True)
class _Inner:
    items: list[StoredSpan | StoredLog] = field(default_factory=list, kw_only=True)  # by the time they began

    def spans(self) -> Iterator[StoredSpan]:
        """Yield the spans right inside."""
        return (one for one in self.items if isinstance(one, StoredSpan))

    def logs(self) -> Iterator[StoredLog]:
        """Yield the records right inside."""
        return (one for one in self.items if isinstance(one, StoredLog))

    def walk(self) -> Iterator[tuple[int, StoredSpan | StoredLog]]:
        """Yield all inside, each behind what it is in, with its depth from 0."""
        waiting = [(0, one) for one in reversed(self.items)]
        while waiting:  # not by recursion: a trace may be deeper than Python's stack
            depth, one = waiting.pop()
            yield depth, one
            if isinstance(one, StoredSpan):
                waiting += [(depth + 1, inner) for inner in reversed(one.items)]


@dataclass(frozen=True)
class StoredSpan(_Inner):
    """One span of the trace, and what is in it."""

    name: str
    span_id: str
    parent_id: str | None  # stored or not
    started: datetime
    ended: datetime
    status: str  # "ok", "error"
    service: str | None
    attributes: dict[str, Any]

    @property
    def duration(self) -> float:
        """Seconds from its begin to its end."""
        return (self.ended - self.started).total_seconds()


@dataclass(frozen=True)
class Trace(_Inner):
    """One trace: the spans that have no stored parent, the records of no stored span."""

    trace_id: str

    @property
    def started(self) -> datetime:
        """When the first of it began."""
        return min(one.started if isinstance(one, StoredSpan) else one.ts for one in self.items)

    @property
    def duration(self) -> float:
        """Seconds from its begin to the end of what ended last; clocks of several hosts may disagree."""
        end = max(one.ended if isinstance(one, StoredSpan) else one.ts for _, one in self.walk())
        return (end - self.started).total_seconds()


def read(where: psycopg.Connection[Any] | str, trace_id: str, *, schema: str = "logsluice") -> Trace | None:
    """
    Return a trace with its spans and log records; None when nothing of it is stored.

    `where` is a connection, which stays open, or a libpq string. Blocks for as long as connecting and the query take.
    Raises psycopg's errors, and LogsluiceError where the database has no function `trace` yet.
    """
    import psycopg  # noqa: PLC0415 - with the first read: importing this module costs no driver
    from psycopg.rows import tuple_row  # noqa: PLC0415 - as above

    from logsluice.sinks.link import read_times  # noqa: PLC0415 - as above

    query = (
        "SELECT depth, kind, ts, ended, name, status, level, message, span_id, parent_id, service, exc_text, "
        f"attributes, stream, seq FROM {quote(schema)}.trace(%s::text)"
    )
    with contextlib.ExitStack() as stack:
        conn = stack.enter_context(psycopg.connect(where, autocommit=True)) if isinstance(where, str) else where
        if conn is not where:
            read_times(conn)
        try:
            rows = conn.cursor(row_factory=tuple_row).execute(query, [trace_id]).fetchall()
        except (psycopg.errors.UndefinedFunction, psycopg.errors.InvalidSchemaName) as error:
            there = "" if schema == "logsluice" else f" --schema {schema}"
            raise LogsluiceError(
                f"there is no function {quote(schema)}.trace here: run `logsluice migrate{there}`"
            ) from error
    return _tree(trace_id, rows)


def _tree(trace_id: str, rows: list[Any]) -> Trace | None:
    found = Trace(trace_id)
    open_spans: list[_Inner] = [found]  # at [depth] is what lines of this depth are in
    for row in rows:
        depth, kind, ts, ended, name, status, level, message, span_id, parent, service, exc, attributes, *id_ = row
        one: StoredSpan | StoredLog
        if kind == "span":
            one = StoredSpan(name, span_id, parent, ts, ended, status, service, attributes or {})
            open_spans[depth + 1 :] = [one]
        else:
            one = StoredLog(ts, level, name, message, span_id, service, exc, attributes or {}, *id_)
        open_spans[depth].items.append(one)
    return found if found.items else None
