"""
SQL of the filter's terms. Every value, and every name of an attribute, is a parameter: no text of a filter is in it.

Names of columns are identifiers that the table has (grammar.py refuses others). `r` is the row that is looked at.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from psycopg import sql
from psycopg.rows import tuple_row

from logsluice.columns import in_query
from logsluice.grammar import EQUAL, REGEX, TEXT, Term, number

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    import psycopg

# Digits are bounded: PostgreSQL's numeric has 131,072 of them, and an attribute may be a longer text of digits.
_NUMBER = sql.Literal(r"^[+-]?[0-9]{1,30}(\.[0-9]{0,30})?([eE][+-]?[0-9]{1,2})?$")
_MATCHES = {"~=": "~", "!~=": "~", "~~=": "~*", "!~~=": "~*"}


@dataclass(frozen=True)
class Condition:
    """A piece of SQL and the values of its placeholders, in their order."""

    sql: sql.Composable
    values: tuple[Any, ...] = ()


def made(template: str, *parts: Condition | sql.Composable, values: Sequence[Any] = ()) -> Condition:
    """Put parts into a template of ours, at its {}; `values`: of its own placeholders, which stand behind the parts."""
    inner = [part.sql if isinstance(part, Condition) else part for part in parts]
    of_parts = [value for part in parts if isinstance(part, Condition) for value in part.values]
    return Condition(sql.SQL(template).format(*inner), (*of_parts, *values))


def all_of(conditions: Sequence[Condition]) -> Condition:
    """Return what holds when all hold: with nothing to hold, always."""
    if not conditions:
        return Condition(sql.SQL("true"))
    return Condition(
        sql.SQL(" AND ").join(one.sql for one in conditions), tuple(v for one in conditions for v in one.values)
    )


def between(since: datetime | None, until: datetime | None) -> Condition:
    """Return the condition of since <= ts < until; None: no such bound."""
    bounds = ((">=", since), ("<", until))
    return all_of([made(f"r.ts {operator} %s", values=[edge]) for operator, edge in bounds if edge is not None])


def rows(conn: psycopg.Connection[Any], query: Condition) -> list[tuple[Any, ...]]:
    """Return what a whole query finds."""
    cursor = conn.cursor(row_factory=tuple_row)
    cursor.execute(sql.Composed([query.sql]), query.values)
    return cursor.fetchall()


def of_term(term: Term) -> Condition:
    """Return the condition of a term."""
    column = Condition(sql.SQL(f"r.{in_query(term.column)}"))
    if term.operator == TEXT:
        # ILIKE, and regular expressions, use an index of pg_trgm where there is one.
        pattern = re.sub(r"([\\%_])", r"\\\1", str(term.value))
        return made("{} ILIKE %s::text", column, values=[f"%{pattern}%"])
    left = _text(term, column) if term.kind in {"attribute", "json", "other"} else column
    if term.operator in REGEX:
        found = made(f"{{}} {_MATCHES[term.operator]} %s::text", left, values=[term.value])
        return made("NOT coalesce({}, false)", found) if term.operator.startswith("!") else found
    if term.value is None:
        # Of a text the empty one is none, too.
        empty = made("coalesce({}, '') = ''" if left is not column or term.kind == "text" else "{} IS NULL", left)
        return made("NOT ({})", empty) if term.operator == "!=" else empty
    if term.kind == "attribute":
        return _attribute(term, left)
    cast = "::text" if isinstance(term.value, str) else ""
    operator = "IS DISTINCT FROM" if term.operator == "!=" else term.operator
    return made(f"{{}} {operator} %s{cast}", left, values=[term.value])


def _text(term: Term, column: Condition) -> Condition:
    """Return a value of JSON, or of a type that is not compared by itself, as text."""
    if not term.path:
        return made("{}::text", column)
    if len(term.path) == 1:
        return made("({} ->> %s::text)", column, values=term.path)
    # OpenTelemetry's names have dots inside; what a program gives as a dict is nested.
    return made("coalesce({0} #>> %s::text[], {0} ->> %s::text)", column, values=[list(term.path), ".".join(term.path)])


def _attribute(term: Term, left: Condition) -> Condition:
    """Compare a value of an attribute: as a number where both are one, for 12.5 and 12.50 are the same."""
    text = str(term.value)
    value = number(text)
    operator = term.operator if term.operator not in EQUAL else "="
    as_number = Condition(
        sql.SQL(f"CASE WHEN {{0}} ~ {{1}} THEN ({{0}})::numeric {operator} %s ELSE false END").format(
            left.sql, _NUMBER
        ),
        (*left.values, *left.values, value),
    )
    if term.operator not in EQUAL:
        return as_number
    if any(part.lstrip("-").isdecimal() for part in term.path[1:]):  # into a list, where @> does not go
        same = made("{} = %s::text", left, values=[text])
        same = same if value is None else made("({} OR {})", same, as_number)
        return made("NOT coalesce({}, false)", same) if term.operator == "!=" else same
    # By @>, which finds JSON's own text, number or boolean quicker than ->> does, and by an index where there is one.
    column = sql.SQL(f"r.{in_query(term.column)}::jsonb")
    words = [json.dumps(text), *([str(value)] if value is not None else [text] if text in {"true", "false"} else [])]
    documents = [_document(path, word) for path in _paths(term.path) for word in words]
    same = made(f"({' OR '.join('{0} @> %s::jsonb' for _ in documents)})", column, values=documents)
    if value is not None:  # decimal.Decimal is stored as a text
        kind = made("jsonb_typeof(coalesce({0} #> %s::text[], {0} -> %s::text)) = 'string'", column,
                    values=[list(term.path), ".".join(term.path)])  # fmt: skip
        same = made("({} OR CASE WHEN {} THEN {} ELSE false END)", same, kind, as_number)
    elif text[:1] in {"{", "["}:  # what JSON is as a text
        same = made("({} OR {} = %s::text)", same, left, values=[text])
    return made("NOT coalesce({}, false)", same) if term.operator == "!=" else same


def _paths(path: tuple[str, ...]) -> list[tuple[str, ...]]:
    """Return where an attribute may be: see `_text`."""
    return [path] if len(path) == 1 else [path, (".".join(path),)]


def _document(path: tuple[str, ...], word: str) -> str:
    """Return the JSON of a value in its place."""
    return "".join(f"{{{json.dumps(name)}:" for name in path) + word + "}" * len(path)
