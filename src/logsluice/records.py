"""
Records, as readers get them: what a row of `logs` or of a typed table becomes.

Whatever stands in a row can be read: years that Python's datetime does not have are its first or last, a value of a
type that it may not hold is PostgreSQL's text.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any, NamedTuple

from psycopg import sql
from psycopg.types.json import set_json_loads

from logsluice import ids
from logsluice.columns import in_query
from logsluice.errors import LogsluiceError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from datetime import datetime

    from logsluice.conditions import Condition

# What Python's datetime holds, in any time zone; PostgreSQL's goes on, and rows may come from elsewhere.
_FIRST, _LAST = "0001-01-02 00:00:00+00", "9999-12-30 00:00:00+00"


class Key(NamedTuple):
    """Where a record stands in the order of all: what paging goes on from."""

    ts: datetime
    stream: int
    seq: int


@dataclass(frozen=True)
class Record:
    """One stored record, of `logs` or of a typed table, whose own columns are in `fields`."""

    table: str
    ts: datetime
    stream: int
    seq: int
    level: int | None = None
    logger: str | None = None
    message: str | None = None
    service: str | None = None
    trace_id: str | None = None
    span_id: str | None = None
    correlation_id: str | None = None
    user_id: str | None = None
    organization_id: str | None = None
    file: str | None = None
    line: int | None = None
    func: str | None = None
    thread: str | None = None
    task: str | None = None
    exc_type: str | None = None
    exc_message: str | None = None
    exc_text: str | None = None
    template: str | None = None
    attributes: Any = field(default_factory=dict)  # a dict, unless somebody else inserted the row
    fields: Mapping[str, Any] = field(default_factory=dict)

    @property
    def key(self) -> Key:
        """Where it stands."""
        return Key(self.ts, self.stream, self.seq)

    @property
    def id(self) -> str:
        """Its id, as `logsluice show` takes it."""
        return ids.made(self.stream, self.seq, self.ts)

    def values(self) -> dict[str, Any]:
        """Return {column: value} of all columns that are set, those of its table before its attributes."""
        found = {name: getattr(self, name) for name in _KNOWN if name != "attributes"}
        found.update(self.fields, attributes=self.attributes or None)
        return {name: value for name, value in found.items() if value is not None}


_KNOWN = tuple(one.name for one in fields(Record) if one.name not in {"table", "fields"})


class Plan(NamedTuple):
    """One query, understood: what it selects, and what makes a Record of a row."""

    source: sql.Composable
    columns: sql.Composable
    where: Condition
    record: Callable[[Sequence[Any]], Record]

    def select(self, *, backwards: bool = False, limit: int | None = None) -> tuple[sql.Composed, list[Any]]:
        """Return the statement and its values: rows in the order of their keys."""
        query = sql.SQL("SELECT {} FROM {} r WHERE {} ORDER BY r.ts {way}, r.stream {way}, r.seq {way}{limit}").format(
            self.columns, self.source, self.where.sql, way=sql.SQL("DESC" if backwards else "ASC"),
            limit=sql.SQL("" if limit is None else " LIMIT %s"),
        )  # fmt: skip
        return query, [*self.where.values, *([] if limit is None else [limit])]


class Count(NamedTuple):
    """How many records there are; `more`: at least so many, counting ended there. As a text "10,000+"."""

    number: int
    more: bool

    def __str__(self) -> str:
        return f"{self.number:,}{'+' if self.more else ''}"


def shown(column: str, kind: str) -> sql.Composable:
    """Return how a column is read: as it is, or as text where Python has no type that holds all of its values."""
    name = sql.SQL(f"r.{in_query(column)}")
    if kind == "time":
        return sql.SQL("CASE WHEN {0} < {1} THEN {1} WHEN {0} > {2} THEN {2} ELSE {0} END").format(
            name, *(sql.SQL("{}::timestamptz").format(sql.Literal(edge)) for edge in (_FIRST, _LAST))
        )
    return sql.SQL("{}::text").format(name) if kind == "other" else name


def maker(table: str, columns: tuple[str, ...]) -> Callable[[Sequence[Any]], Record]:
    """Return what makes a record of a row with these columns."""
    known = [(at, name) for at, name in enumerate(columns) if name in _KNOWN]
    own = [(at, name) for at, name in enumerate(columns) if name not in _KNOWN]

    def record(row: Sequence[Any]) -> Record:
        values = {name: row[at] for at, name in known}
        if values.get("attributes") is None:
            values["attributes"] = {}
        return Record(table, fields={name: row[at] for at, name in own}, **values)

    return record


def read_json(cursor: Any) -> None:
    """Have a cursor read any JSON."""
    set_json_loads(_loads, cursor)


def _loads(data: str | bytes) -> Any:
    try:
        return json.loads(data)
    except (ValueError, RecursionError):  # numbers of thousands of digits, or lists in lists: rows from elsewhere
        return data if isinstance(data, str) else data.decode("utf-8", "backslashreplace")


def key_of(given: Record | Key | tuple[Any, ...] | str | None) -> Key | None:
    """Return the key of a record, a key, or an id that says when."""
    if given is None or isinstance(given, Key):
        return given
    if isinstance(given, Record):
        return given.key
    if isinstance(given, tuple) and len(given) == len(Key._fields):
        return Key(*given)
    if not isinstance(given, str):
        raise LogsluiceError(f"after and before take a record, its key or its id, got {given!r:.100}")
    found = ids.parse(given)
    if found.ts is None:
        raise LogsluiceError(f"the id {given!r} does not say when: give one as ts~stream~seq, a record, or its key")
    return Key(found.ts, found.stream, found.seq)
