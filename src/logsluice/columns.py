"""
Which column gets what: the `logs` table, or any table that the user has (DESIGN D12).

`columns={"session_id": "extra.session_id", "note": ("extra.note", "none"), "rest": "attributes"}`: each column names
its source, or a pair of source and default. Text COPY lets the server convert, so no types are configured here.
"""

from __future__ import annotations

import difflib
import math
import os
import re
import socket
from dataclasses import dataclass
from json.encoder import encode_basestring
from typing import TYPE_CHECKING, Any

from logsluice import decoding
from logsluice.capture import ID_COLUMNS, Captured, Rules, attributes_json, safe_str, tidy
from logsluice.encoding import SEAM, JsonWriter, copy_row
from logsluice.errors import ConfigError

if TYPE_CHECKING:
    import logging
    from collections.abc import Mapping

    import psycopg

    from logsluice.config import Settings
    from logsluice.targets import Encode
    from logsluice.types import LogType

# In the order of the frame: what changes with every record, then what is cached by call site, then the rest.
LOG_COLUMNS = (
    "seq", "ts", "stream", "level", "logger", "file", "line", "func", "service", "thread", "task", "message",
    "template", "trace_id", "span_id", "correlation_id", "user_id", "organization_id", "exc_type", "exc_message",
    "exc_text", "attributes",
)  # fmt: skip
FIELDS = frozenset(LOG_COLUMNS) | {"levelname", "host", "pid", "environment"}

NAME_BYTES = 63  # PostgreSQL's NAMEDATALEN - 1: a longer name is cut silently, and two could become one


@dataclass(frozen=True)
class Source:
    """Where a column's value comes from: a field, or a path into extras or bound context values."""

    kind: str  # "field", "extra", "context"; "typed": the typed log's value, or else what is known by its name
    path: tuple[str, ...]
    default: Any = None
    json: bool = False  # whether the column holds JSON: a plain text must become one


@dataclass(frozen=True)
class Table:
    """
    The table that the frames of one route are for: a `Target`. `sources` is None for `logs`; `typed`: it is a typed
    log's (types.py).
    """

    home: str  # the schema of stream and dead_letter
    schema: str
    table: str
    columns: tuple[str, ...]
    sources: tuple[Source, ...] | None = None
    typed: bool = False

    @property
    def ours(self) -> bool:
        """Whether the table is one that logsluice made: `logs`, or a typed log's."""
        return self.plain or self.typed

    @property
    def name(self) -> str:
        """The table as people write it."""
        return f"{quote(self.schema)}.{quote(self.table)}"

    @property
    def copy(self) -> str:
        """The COPY statement for its frames."""
        return f"COPY {self.name} ({', '.join(map(quote, self.columns))}) FROM STDIN (FORMAT text, ENCODING 'UTF8')"

    @property
    def plain(self) -> bool:
        """Whether frames are rows of `logs`; else they are of a table that the user has."""
        return self.sources is None

    @property
    def marks(self) -> bool:
        """No rows of ours in a user's table."""
        return self.plain

    @property
    def refused(self) -> str:
        """Where rejected rows are, and how to see them."""
        return f"{self.home}.dead_letter: `logsluice dead list` shows them"

    def encoder(self, rules: Rules, settings: Settings) -> Encode:
        """Return what makes a row of a captured record."""
        if self.sources is None:
            return _logs_row
        mapper = Mapper(self, rules, settings.environment)

        def encode(captured: Captured, record: logging.LogRecord, given: Rules) -> bytes:
            # Tighter ones, for a record that is too large.
            chosen = mapper if given is rules else Mapper(self, given, settings.environment)
            return copy_row(chosen.texts(_whole(captured, record, self) if self.typed else captured, record))

        return encode

    def record_of(self, frame: bytes) -> logging.LogRecord | None:
        """Return the record that a frame was made of, as far as it tells; None for a row of our own."""
        if self.plain and frame.startswith(b"-"):
            return None
        return decoding.record(frame, self.columns, typed=self.plain)

    def row_of(self, frame: bytes) -> dict[str, Any]:
        """Return {column: value}, typed where the columns are those of `logs`."""
        return decoding.row(frame, self.columns, typed=self.plain)


def _logs_row(captured: Captured, _record: logging.LogRecord, rules: Rules) -> bytes:
    captured.fields["attributes"] = attributes_json(captured, rules)
    return copy_row([captured.fields[name] for name in LOG_COLUMNS])


def _whole(captured: Captured, record: logging.LogRecord, table: Table) -> Captured:
    """Have what a typed log's table has no column for go to its attributes: the message, an exception."""
    said = () if hasattr(type(record.msg), "__logtype__") else ("message",)
    for name in (*said, "exc_type", "exc_message", "exc_text"):
        if captured.fields.get(name) and name not in table.columns:
            captured.attributes.setdefault(name, captured.fields[name])
    return captured


def typed_target(schema: str, kind: LogType) -> Table:
    """Return the target of a typed log in a schema."""
    field = {"ts", "stream", "seq", "attributes"}
    sources = tuple(
        Source("field" if one.name in field else "typed", (one.name,), json=one.sql in {"jsonb", "json"})
        for one in kind.columns
    )
    return Table(schema, schema, kind.table, tuple(one.name for one in kind.columns), sources, typed=True)


def quote(name: str) -> str:
    """Return an SQL identifier; the caller has checked that it holds no NUL."""
    return '"' + name.replace('"', '""') + '"'


def in_query(*names: str) -> str:
    """Return a quoted name for a statement that has parameters: psycopg takes a % in it for one of them."""
    return ".".join(map(quote, names)).replace("%", "%%")


def target_from(schema: str, table: str, columns: Mapping[str, Any] | None) -> Table:
    """Return the target of these options. Raises `ConfigError` for names and sources that cannot be right."""
    check_name("schema", schema)
    if "%" in schema:  # psycopg takes it for a parameter, in each of the statements that name the schema
        raise ConfigError(f"schema: {schema!r} has a percent sign: name it without")
    where, name = _table(schema, table)
    if columns is None:
        if (where, name) != (schema, "logs"):
            raise ConfigError(
                f"table={table!r} is a table of your own: say with columns={{column: source}} what goes where, "
                f"for example columns={{'message': 'message', 'created_at': 'ts'}}"
            )
        return Table(schema, where, name, LOG_COLUMNS)
    if not isinstance(columns, dict) or not columns:
        raise ConfigError(f"columns must be a mapping of column to source, got {columns!r}")
    for column in columns:
        check_name("columns", column)
    return Table(schema, where, name, tuple(columns), tuple(_source(c, s) for c, s in columns.items()))


def _table(schema: str, table: Any) -> tuple[str, str]:
    if not isinstance(table, str):
        raise ConfigError(f"table must be a string, got {type(table).__name__}")
    parts = re.findall(r'\s*("(?:[^"]|"")*"|[^".]+)\s*(?:\.|$)', table)
    if not 1 <= len(parts) <= 2 or ".".join(parts) != table:
        raise ConfigError(f"table must be a name or schema.name, with odd characters in double quotes, got {table!r}")
    names = [part[1:-1].replace('""', '"') if part.startswith('"') else part for part in parts]
    for name in names:
        check_name("table", name)
    return (names[0], names[1]) if len(names) == 2 else (schema, names[0])


def check_name(option: str, name: Any) -> None:
    """Raise `ConfigError` for what cannot be the name of a schema, a table or a column."""
    if not isinstance(name, str) or not name or "\0" in name:
        raise ConfigError(f"{option}: a name must be a non-empty string without NUL, got {name!r}")
    try:
        size = len(name.encode())
    except UnicodeEncodeError:
        raise ConfigError(f"{option}: {name!r} holds a lone surrogate, which is no character") from None
    if size > NAME_BYTES:
        raise ConfigError(f"{option}: {name!r} has {size} bytes; PostgreSQL's names end at {NAME_BYTES}: shorten it")


def _source(column: str, given: Any) -> Source:
    default = None
    if isinstance(given, (list, tuple)):
        if len(given) != 2:
            raise ConfigError(f"columns[{column!r}]: write a source or a pair (source, default), got {given!r}")
        given, default = given
    if not isinstance(given, str):
        raise ConfigError(f"columns[{column!r}]: a source is a string, for example 'extra.{column}', got {given!r}")
    return source_from(f"columns[{column!r}]", given, default)


def source_from(option: str, given: str, default: Any = None) -> Source:
    """Return what a source names. Raises `ConfigError`, in the option's name, for one that there is not."""
    kind, _, rest = given.partition(".")
    if kind in {"extra", "context"} and rest:
        return Source(kind, tuple(rest.split(".")), default)
    if given in FIELDS:
        return Source("field", (given,), default)
    near = difflib.get_close_matches(given, FIELDS, n=1, cutoff=0.8)  # order_id is no misspelt user_id
    fields = ", ".join(sorted(FIELDS))
    hint = f"did you mean {near[0]!r}?" if near else f"for an extra write 'extra.{given}'; fields: {fields}"
    raise ConfigError(f"{option}: unknown source {given!r}; {hint}")


class Mapper:
    """It turns captured fields into the column texts of a user's table."""

    def __init__(self, target: Table, rules: Rules, environment: str | None) -> None:
        assert target.sources is not None
        self._sources = target.sources
        self._rules = rules
        # An extra with a column of its own does not go to `attributes` as well.
        self._taken = frozenset(s.path[0] for s in self._sources if s.kind != "field" and len(s.path) == 1)
        self._constant = {"host": socket.gethostname(), "pid": str(os.getpid()), "environment": environment}

    def texts(self, captured: Captured, record: logging.LogRecord) -> list[str | None]:
        """Return one text a column, in the target's order."""
        values = [self._text(source, captured, record) for source in self._sources]
        for i, source in enumerate(self._sources):
            if source.kind == "field" and source.path[0] == "attributes":  # last: the marks are complete now
                values[i] = attributes_json(captured, self._rules, without=self._taken)
        return values

    def _text(self, source: Source, captured: Captured, record: logging.LogRecord) -> str | None:
        if source.kind == "field":
            return self._field(source.path[0], captured, record)
        value = lookup(captured.context if source.kind == "context" else captured.attributes, source.path)
        if value is None and source.kind == "typed":
            value = captured.context.get(source.path[0])
        where, secret = ".".join(source.path), self._secret(source.path)
        if value is None and source.kind != "extra" and len(source.path) == 1:
            value = captured.fields.get(source.path[0])  # a bound user_id has become the field of that name
            secret = None if source.path[0] in ID_COLUMNS else secret  # which is treated already
        if value is None:
            value = source.default
        elif secret is not None:
            captured.marks.redacted.append(where)
            text = self._rules.redactor.instead(secret, value, lambda: self._json(value, where, captured))
            return encode_basestring(text) if source.json else text
        elif source.json:
            return self._json(value, where, captured)
        return column_text(value, where, self._rules, captured)

    def _secret(self, path: tuple[str, ...]) -> str | None:
        """Return the first key of a path whose value must not be stored as it is."""
        redactor = self._rules.redactor
        return next((step for step in path if redactor.is_secret(step)), None) if redactor.active else None

    def _json(self, value: Any, where: str, captured: Captured) -> str:
        rules = self._rules
        return JsonWriter(rules.limits, rules.max_message_bytes, rules.redactor, captured.marks).value(value, where)

    def _field(self, name: str, captured: Captured, record: logging.LogRecord) -> str | None:
        if name == "levelname":
            return tidy(safe_str(record.levelname), name, self._rules, captured.marks)
        return captured.fields.get(name, self._constant.get(name))


def lookup(values: Any, path: tuple[str, ...]) -> Any:
    """Return the value at this path of nested dicts, or None."""
    for step in path:
        if not isinstance(values, dict) or step not in values:
            return None
        values = values[step]
    return values


def column_text(value: Any, where: str, rules: Rules, captured: Captured) -> str | None:
    """Return what the server converts to the column's type: JSON for containers, hex for bytes, else the plain text."""
    if value is None:
        return None
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if value != value else "Infinity" if value > 0 else "-Infinity"  # noqa: PLR0124 - NaN is the one
    if isinstance(value, (bytes, bytearray)):
        most = rules.max_message_bytes // 2  # two digits a byte
        data = bytes(value[: most + SEAM])  # a secret that is cut in two is not seen
        text = data.decode("latin-1")
        if rules.redactor.active and (cleaned := rules.redactor.clean(text)) != text:
            captured.marks.redacted.append(where)
            data = cleaned.encode("latin-1")
        if len(value) > most:
            captured.marks.cut[where] = len(value) - most
        return "\\x" + data[:most].hex()
    if isinstance(value, (dict, list, tuple, set, frozenset)):
        return JsonWriter(rules.limits, rules.max_message_bytes, rules.redactor, captured.marks).value(value, where)
    isoformat = getattr(value, "isoformat", None)
    return tidy(safe_str(isoformat() if callable(isoformat) else value), where, rules, captured.marks)


def check_table(conn: psycopg.Connection[Any], target: Table) -> str | None:
    """
    Read the table and return what is wrong with the mapping, as a sentence that says what to change; None if nothing.

    A NOT NULL column that nothing can fill would make every row a dead letter: better said once, at first connect.
    """
    row = conn.execute("SELECT to_regclass(%s)::oid", [target.name]).fetchone()
    if row is None or row[0] is None:
        return f"table {target.name} does not exist or its schema may not be used; create it or correct table="
    columns = conn.execute(
        "SELECT attname, attnotnull, atthasdef OR attidentity <> '', attgenerated <> '' OR attidentity = 'a' "
        "FROM pg_catalog.pg_attribute WHERE attrelid = %s AND attnum > 0 AND NOT attisdropped ORDER BY attnum",
        [row[0]],
    ).fetchall()
    names = [column[0] for column in columns]
    for mapped in target.columns:
        if mapped not in names:
            near = difflib.get_close_matches(mapped, names, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"it has {', '.join(names)}"
            return f"table {target.name} has no column {mapped!r}; {hint}"
    for name, not_null, has_default, generated in columns:
        if name in target.columns and generated:
            return f"column {name!r} of {target.name} is generated by the server; take it out of columns="
        if name not in target.columns and not_null and not has_default:
            return (
                f"column {name!r} of {target.name} is NOT NULL without a default and nothing fills it; "
                f"add it to columns=, for example {{{name!r}: 'extra.{name}'}}, or give it a default"
            )
    return None
