"""
Legal holds, and the SQL of "rows in which these columns have these values" that they share with `forget`.

A hold is a row of the table `hold`, written by a person. Whatever deletes reads the holds before each partition, so
that a hold counts from the next step on. What cannot be understood holds more, never less.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from decimal import Decimal
from typing import TYPE_CHECKING, Any

from logsluice.catalogue import relation
from logsluice.columns import in_query, quote

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence
    from datetime import datetime

    import psycopg

    Condition = tuple[str, list[Any]]  # SQL and its parameters


@dataclass(frozen=True)
class Hold:
    """What one hold keeps: rows of `target` (None: of every table) with starts <= ts < ends in which `match` is so."""

    name: str
    target: str | None
    starts: datetime | None
    ends: datetime | None
    match: Mapping[str, Any]

    def about(self, table: str, lower: datetime | None = None, upper: datetime | None = None) -> bool:
        """Whether it can be about rows of this table with lower <= ts < upper."""
        return (
            self.target in {None, table}
            and (self.starts is None or upper is None or self.starts < upper)
            and (self.ends is None or lower is None or lower < self.ends)
        )

    def keeps(self, moment: datetime | None, values: Mapping[str, Any]) -> bool:
        """Whether it keeps a row of this moment (None: not known) and these texts."""
        if moment is not None and not self.about(self.target or "", moment, moment + (moment.resolution)):
            return False
        return has(values, self.match)

    def condition(self, columns: Collection[str], clock: str = "ts") -> Condition:
        """Return what is true for the rows that it keeps in a table of these columns; `clock`: that of a row's time."""
        sql, given = equals(columns, self.match)
        parts, values = [sql], [*given]
        for edge, how in ((self.starts, ">="), (self.ends, "<")):
            if edge is not None:
                parts.append(f"{clock} {how} %s::timestamptz")
                values.append(edge)
        return f"({' AND '.join(parts)})", values


def there(conn: psycopg.Connection[Any], schema: str) -> bool:
    """Whether the database has the table: version 4 makes it."""
    return relation(conn, schema, "hold") is not None


def read(conn: psycopg.Connection[Any], schema: str) -> list[Hold]:
    """Return all holds; none where the table is not there yet."""
    if not there(conn, schema):
        return []
    # Not as timestamps beyond Python's: they would be an error here, and nothing at all would be deleted.
    edges = ", ".join(f"CASE WHEN isfinite({one}) THEN {one} END" for one in ("starts", "ends"))
    rows = conn.execute(
        f"SELECT name, target, {edges}, match FROM {quote(schema)}.hold ORDER BY name", prepare=False
    ).fetchall()
    return [Hold(*row) for row in rows]


def vain(holds: Sequence[Hold], tables: Collection[str]) -> list[str]:
    """Return what to say of holds that keep nothing: a slip of the pen must not be found out when rows are gone."""
    found = []
    for one in holds:
        if one.target is not None and one.target not in tables:
            found.append(f"hold {one.name!r} keeps nothing: there is no table {one.target!r}")
        elif one.starts is not None and one.ends is not None and one.starts >= one.ends:
            found.append(f"hold {one.name!r} keeps nothing: it ends before it starts")
    return found


def any_of(holds: Sequence[Hold], columns: Collection[str], clock: str = "ts") -> Condition:
    """Return what is true for rows that any of these holds keeps; false without holds."""
    conditions = [hold.condition(columns, clock) for hold in holds]
    values = [value for _, given in conditions for value in given]
    return f"({' OR '.join(sql for sql, _ in conditions) or 'false'})", values


def of_dead_letters(holds: Sequence[Hold]) -> Condition:
    """Return what is true for dead letters that may not go: all of a hold's time, as SQL cannot read their rows."""
    about = [Hold(one.name, None, one.starts, one.ends, {}) for one in holds if one.about("dead_letter")]
    return any_of(about, (), "at")


def keeping(
    conn: psycopg.Connection[Any], holds: Sequence[Hold], full_name: str, columns: Collection[str]
) -> str | None:
    """Return the name of a hold that keeps a row of this table; None when none does. Reads it until it finds one."""
    for hold in holds:
        sql, values = hold.condition(columns)
        if not hold.match:
            return hold.name  # whether rows are there or not: they may still come
        if conn.execute(f"SELECT true FROM ONLY {full_name} WHERE {sql} LIMIT 1", values, prepare=False).fetchone():
            return hold.name
    return None


def equals(columns: Collection[str], match: Mapping[str, Any]) -> Condition:
    """Return what is true for rows of a table in which all these columns, or attributes of their names, are so."""
    parts, values = [], []
    for name, wanted in match.items():
        text = None if wanted is None else as_text(wanted)
        either = []
        if name in columns:
            own = f"{in_query(name)}::text"
            either.append(f"{own} IS NULL" if text is None else f"{own} = %s")
            values += [] if text is None else [text]
        if "attributes" in columns and (text is not None or name not in columns):
            key = "attributes->>%s::text"
            either.append(f"{key} IS NULL" if text is None else f"{key} = %s")
            values += [name] if text is None else [name, text]
        parts.append(f"({' OR '.join(either) or 'false'})")
    return " AND ".join(parts) or "true", values


def has(values: Mapping[str, Any], match: Mapping[str, Any]) -> bool:
    """As `equals`, for a row that is at hand: {column: text or None}, `attributes` as JSON."""
    try:
        attributes = json.loads(values.get("attributes") or "{}")
    except ValueError:
        attributes = {}
    if not isinstance(attributes, dict):
        attributes = {}
    for name, wanted in match.items():
        found = [values.get(name), attributes.get(name)]
        if wanted is None:
            if found[0 if name in values else 1] is not None:
                return False
        elif as_text(wanted) not in {as_text(one) for one in found if one is not None}:
            return False
    return True


def as_text(value: Any) -> str:
    """Return a JSON value as PostgreSQL's ->> has it: numbers without an exponent, 0.00001 and not 1e-05."""
    if isinstance(value, float) and math.isfinite(value):
        return format(Decimal(repr(value)), "f")
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
