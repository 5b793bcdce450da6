"""
Typed logs: a dataclass that is a table, and an instance of it that is logged like a message.

    @logtype(table="payment", retention="90d", indexes=["customer", ("status", "ts desc")])
    class Payment:
        customer: str
        amount: Decimal
        status: Literal["paid", "refused"] = "paid"

    log.info(Payment(customer="c-7", amount=Decimal("9.90")))

Each type is a route of its own (DESIGN D4): it has a stream, and the handler's thread, connection and limits. Its table
is made when the first row comes. A pydantic model will do in the place of a dataclass.

What the columns are: `ts`, `stream` and `seq`; the class's own fields; of `COMMON` those that it does not have itself;
`attributes`, for extras and bound values without a column. A field that is None takes what the record or the context
knows under its name. An instance that does not fit its own annotations is stored in `logs`, with what is wrong.
"""

from __future__ import annotations

import dataclasses
import enum
import inspect
import logging
import math
import re
import sys
import types
import typing
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from decimal import Decimal
from typing import TYPE_CHECKING, Any, Literal, TypeVar, overload

from logsluice import lifecycle
from logsluice.errors import ConfigError

if TYPE_CHECKING:
    from typing_extensions import dataclass_transform
else:

    def dataclass_transform(**_options: Any) -> Any:
        """For type checkers only, which know keyword arguments by it."""
        return lambda decorator: decorator


T = TypeVar("T")

# Columns that each typed table has, unless the class has a field of that name.
COMMON: Mapping[str, tuple[str, str]] = {
    "level": ("smallint", "Python's level number: 10 DEBUG, 20 INFO, 30 WARNING, 40 ERROR, 50 CRITICAL."),
    "logger": ("text", "Name of the logger."),
    "service": ("text", "Name of the program, from the handler's option."),
    "trace_id": ("text", "W3C trace id, 32 hexadecimal digits."),
    "span_id": ("text", "W3C span id, 16 hexadecimal digits."),
    "correlation_id": ("text", "Id of the request or job that the row belongs to."),
    "user_id": ("text", "Id of the user it was done for."),
    "organization_id": ("text", "Id of the customer or tenant it was done for."),
}
IDENTITY: Mapping[str, tuple[str, str]] = {
    "ts": ("timestamptz", "When the logging call was made, microseconds."),
    "stream": ("bigint", "The stream the row came in by; with seq, its identity."),
    "seq": ("bigint", "Number of the row in its stream. Not the order."),
}
ATTRIBUTES = (
    "jsonb",
    'Extras and bound values that have no column; key "logsluice" tells what was changed on the way.',
)

BIGINT = 2**63 - 1  # the greatest of PostgreSQL's bigint
RANGES = {"smallint": 2**15 - 1, "integer": 2**31 - 1, "bigint": BIGINT}
LINE = 500  # characters of an instance as a message: a line that a person can read
NAME = re.compile(r"[a-z_][a-z0-9_]{0,62}")  # of tables and columns: PostgreSQL's names that need no quotes, 63 bytes
OURS = frozenset({"logs", "stream", "dead_letter", "version", "hold", "logs_hourly", "logs_hourly_state"})
_SPAN = re.compile(r"(\d+)\s*([smhdw])")
LONGEST = 36_525 * 86_400  # seconds, 100 years: now minus a longer span may be before the year 1, and no datetime
UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}  # seconds


@dataclass(frozen=True)
class Sql:
    """`Annotated[int, Sql("smallint")]`: the column's type in PostgreSQL, where the usual one is not meant."""

    type: str


@dataclass(frozen=True)
class Column:
    """One column of a typed table."""

    name: str
    sql: str  # its type
    null: bool
    doc: str
    wrong: Callable[[Any], str | None] | None = None  # says what is wrong with a value; None: not of the class


@dataclass(frozen=True, eq=False)
class LogType:
    """What `logtype` makes of a class. `retention` is in seconds, None for ever."""

    kind: type
    table: str
    retention: float | None
    fields: tuple[Column, ...]
    indexes: tuple[tuple[str, ...], ...]
    doc: str

    @property
    def columns(self) -> tuple[Column, ...]:
        """All columns of the table: identity first, so that the row's first moment is `ts`."""
        own = {column.name for column in self.fields}
        identity = [Column(name, sql, null=False, doc=doc) for name, (sql, doc) in IDENTITY.items()]
        common = [Column(name, sql, null=True, doc=doc) for name, (sql, doc) in COMMON.items() if name not in own]
        return (*identity, *self.fields, *common, Column("attributes", ATTRIBUTES[0], null=True, doc=ATTRIBUTES[1]))

    def values(self, instance: Any) -> dict[str, Any]:
        """Return {field: value} of an instance, without those that are None."""
        found = {}
        for column in self.fields:
            value = getattr(instance, column.name, None)
            if value is not None:
                found[column.name] = _plain(column.name, value)
        return found

    def problems(self, instance: Any) -> dict[str, str]:
        """Return {field: what is wrong with it}; {} for an instance that fits. Never raises."""
        found = {}
        for column in self.fields:
            try:
                value = getattr(instance, column.name, None)
                if value is None:
                    why = None if column.null else "is missing"
                else:
                    why = column.wrong(value) if column.wrong else None
            except Exception as error:
                why = f"could not be looked at: {type(error).__name__}"
            if why:
                found[column.name] = why
        return found

    def ddl(self, schema: str = "logsluice", partition: str = "day", grant_to: str | None = None) -> str:
        """Return the SQL that makes the table, its indexes and comments where they are not there yet."""
        name = f"{quote(schema)}.{quote(self.table)}"
        lines = [f"    {quote(one.name)} {one.sql}{'' if one.null else ' NOT NULL'}" for one in self.columns]
        partitioned = "" if partition == "none" else " PARTITION BY RANGE (ts)"
        keep = (
            "for ever" if self.retention is None else str(timedelta(seconds=self.retention)).removesuffix(", 0:00:00")
        )
        statements = [
            f"CREATE TABLE IF NOT EXISTS {name} (\n" + ",\n".join(lines) + f"\n){partitioned}",
            f"COMMENT ON TABLE {name} IS {literal(f'{self.doc} (typed log, kept {keep})')}",
            *(f"COMMENT ON COLUMN {name}.{quote(one.name)} IS {literal(one.doc)}" for one in self.columns if one.doc),
        ]
        for parts in (("ts",), *self.indexes):
            index = quote("_".join([self.table, *(part.partition(" ")[0] for part in parts)])[:63])
            keys = ", ".join(quote(part.partition(" ")[0]) + part[len(part.partition(" ")[0]) :] for part in parts)
            statements.append(f"CREATE INDEX IF NOT EXISTS {index} ON {name} ({keys})")
        if grant_to is not None:
            statements.append(f"GRANT INSERT ON {name} TO {quote(grant_to)}")
        return ";\n".join(statements) + ";\n"

    def line(self, instance: Any) -> str:
        """Return an instance as a person reads it: its message, if it has one, and what else is set."""
        values = self.values(instance)
        message = values.pop("message", None)
        rest = " ".join(f"{name}={value}" for name, value in values.items())
        text = f"{message} {rest}".rstrip() if message else f"{self.table} {rest}".rstrip()
        return text if len(text) <= LINE else f"{text[:LINE]}…"


known: dict[str, LogType] = {}  # table -> type, of all classes of this process; orphans of a dead one need their tables


@overload
def logtype(kind: type[T], /) -> type[T]: ...
@overload
def logtype(
    *, table: str = ..., retention: str | float | None = ..., indexes: Iterable[str | Sequence[str]] = ...
) -> Callable[[type[T]], type[T]]: ...
@dataclass_transform(kw_only_default=True, field_specifiers=(dataclasses.field,))
def logtype(
    kind: type[T] | None = None,
    /,
    *,
    table: str = "",
    retention: str | float | None = None,
    indexes: Iterable[str | Sequence[str]] = (),
) -> type[T] | Callable[[type[T]], type[T]]:
    """
    Make a class a typed log: see the top of this file.

    `table`: its name in the handler's schema; the class's name in small letters and underscores when empty.
    `retention`: how long rows are to be kept, as "30d" (s, m, h, d, w) or seconds; None: for ever. `indexes`: each a
    column or a sequence of columns, with " desc" where it is meant. A class that is no dataclass becomes one whose
    fields are keywords. Raises `ConfigError` for a name or an annotation that PostgreSQL has no column for.
    """

    def decorate(cls: type[T]) -> type[T]:
        if not dataclasses.is_dataclass(cls) and not hasattr(cls, "model_fields"):
            cls = dataclass(kw_only=True)(cls)
        found = _described(cls, table or snake(cls.__name__), retention, tuple(indexes))
        before = known.get(found.table)
        if before is not None and (before.kind.__module__, before.kind.__qualname__) != (
            cls.__module__,
            cls.__qualname__,
        ):
            raise ConfigError(
                f"@logtype: table {found.table!r} is that of {before.kind.__module__}.{before.kind.__qualname__} "
                "already; give this class another table="
            )
        known[found.table] = found
        cls.__logtype__ = found  # type: ignore[attr-defined]
        if not any("__str__" in one.__dict__ for one in cls.__mro__[:-1] if not one.__module__.startswith("pydantic")):
            cls.__str__ = _line  # type: ignore[method-assign]
        return cls

    return decorate if kind is None else decorate(kind)


def _line(instance: Any) -> str:
    kind: LogType = instance.__logtype__
    return kind.line(instance)


def deliver(instance: Any, level: int = logging.INFO, *, created: float | None = None) -> None:
    """
    Have an instance stored by each PostgresHandler of this process, once for each table; no logger is asked.

    `created`: seconds since the epoch, of its `ts`; now when None. For what is no logging call, such as a span that
    ended. Returns at once; never raises, and does nothing where there is no handler.
    """
    kind: LogType = instance.__logtype__
    record = logging.LogRecord(kind.table, level, "", 0, instance, None, None)
    if created is not None:
        record.created = created
    places = {handler: handler.typed_at(kind) for handler in lifecycle.handlers()}
    # One of last resort gets what the other gives up, and no copy of what that one stores.
    spare = {handler.fallback for handler, place in places.items() if place is not None}
    taken = set()
    for handler, place in places.items():
        if place is None or place in taken or level < handler.level or handler.get_name() in spare - {None}:
            continue
        taken.add(place)
        handler.handle(record)


def snake(name: str) -> str:
    """Return a class's name as a table's: ApiRequest -> api_request."""
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", name).lower()


def quote(name: str) -> str:
    """Return an SQL identifier."""
    return '"' + name.replace('"', '""') + '"'


def literal(text: str) -> str:
    """Return an SQL string, ASCII: a database may have any encoding."""
    plain = text.encode("ascii", "backslashreplace").decode()
    return ("E'" if "\\" in plain else "'") + plain.replace("\\", "\\\\").replace("'", "''") + "'"


# --- a class, read ----------------------------------------------------------------------------------------------------


def _described(kind: type, table: str, retention: Any, indexes: tuple[Any, ...]) -> LogType:
    _name("table", table)
    if table in OURS:
        raise ConfigError(f"@logtype: {table!r} is a table of logsluice itself; give the class another table=")
    fields = tuple(_column(*one) for one in _annotated(kind))
    if not fields:
        raise ConfigError(f"@logtype: {kind.__name__} has no fields; annotate them: `name: str`")
    for name in (*IDENTITY, "attributes"):
        if any(one.name == name for one in fields):
            raise ConfigError(
                f"@logtype: every table has a column {name!r} already; rename the field of {kind.__name__}"
            )
    found = LogType(
        kind,
        table,
        seconds(retention, "@logtype: retention"),
        fields,
        (),
        (kind.__doc__ or kind.__name__).strip().split("\n")[0],
    )
    if kind.__doc__ and kind.__doc__.startswith(f"{kind.__name__}("):  # what dataclass wrote
        found = dataclasses.replace(found, doc=kind.__name__)
    names = {one.name for one in found.columns}
    keys = tuple((one,) if isinstance(one, str) else tuple(one) for one in indexes)
    for part in (part for key in keys for part in key):
        column, _, order = part.partition(" ")
        if column not in names or order.lower() not in {"", "asc", "desc"}:
            raise ConfigError(f"@logtype: indexes: {part!r} is no column of {table}, it has {', '.join(sorted(names))}")
    return dataclasses.replace(found, indexes=keys)


def _annotated(kind: Any) -> list[tuple[str, Any, str]]:
    """Return (name, annotation, what it means) of each field."""
    model: Any = getattr(kind, "model_fields", None)  # pydantic's
    if model is not None:
        found = [(name, one.description or "") for name, one in model.items()]
    else:
        found = [(one.name, str(one.metadata.get("doc", ""))) for one in dataclasses.fields(kind)]
    hints: dict[str, Any] = {}
    for base in reversed(kind.__mro__):
        # Of the fields alone: Python 3.10 refuses a class that has an InitVar.
        mine = {name: one for name, one in inspect.get_annotations(base).items() if name in dict(found)}
        space = vars(sys.modules[base.__module__]) if base.__module__ in sys.modules else {}
        try:
            holder = types.SimpleNamespace(__annotations__=mine)
            hints |= typing.get_type_hints(holder, space, dict(vars(base)), include_extras=True)
        except NameError as error:
            raise ConfigError(f"@logtype: an annotation of {kind.__name__} cannot be read: {error}") from None
    return [(name, hints[name], doc) for name, doc in found]


def _name(what: str, name: str) -> None:
    if NAME.fullmatch(name) is None:
        raise ConfigError(
            f"@logtype: {what} {name!r}: small letters, digits and underscores, 63 at most, no digit first"
        )


def seconds(given: Any, what: str) -> float | None:
    """Return the seconds of "30d" (s, m, h, d, w) or a number; None of None. Raises `ConfigError`, `what` first."""
    if given is None:
        return None
    found = _SPAN.fullmatch(given.strip()) if isinstance(given, str) else None
    if found is not None:
        # int() refuses thousands of digits; ten of them are too many already.
        given = int(found[1]) * UNITS[found[2]] if len(found[1]) <= 10 else math.inf
    elif not isinstance(given, (int, float)) or isinstance(given, bool) or not given > 0:
        raise ConfigError(f"{what} is '30d' (s, m, h, d, w) or seconds, got {given!r:.100}")
    if given > LONGEST:
        raise ConfigError(f"{what} is more than 100 years: write 'forever' in rules, or leave it out of a type")
    return float(given)


def _column(name: str, annotation: Any, doc: str) -> Column:
    _name("field", name)
    sql = ""
    if typing.get_origin(annotation) is typing.Annotated:
        annotation, *more = typing.get_args(annotation)
        sql = next((one.type for one in more if isinstance(one, Sql)), "")
    null = False
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        rest = [one for one in typing.get_args(annotation) if one is not type(None)]
        null = len(rest) < len(typing.get_args(annotation))
        annotation = rest[0] if len(rest) == 1 else typing.Union[tuple(rest)]  # noqa: UP007 - made of a list
        if typing.get_origin(annotation) is typing.Annotated:  # Annotated[int, Sql("smallint")] | None
            inner = _column(name, annotation, doc)
            return dataclasses.replace(inner, null=null)
    if name == "level":
        return Column(name, sql or "smallint", null=True, doc=doc or COMMON["level"][1], wrong=_wrong_level)
    return _typed(name, annotation, sql, null=null, doc=doc)


def _typed(name: str, annotation: Any, sql: str, *, null: bool, doc: str) -> Column:
    origin = typing.get_origin(annotation)
    if origin is Literal:
        choices = typing.get_args(annotation)
        return Column(name, sql or _sql_of(name, type(choices[0])), null=null, doc=doc, wrong=_of_choices(choices))
    kind = origin or annotation
    if isinstance(kind, type) and issubclass(kind, enum.Enum):
        return Column(name, sql or "text", null=null, doc=doc, wrong=_of_enum(kind))
    if kind is Any or kind is object:
        return Column(name, sql or "jsonb", null=True, doc=doc)
    if not isinstance(kind, type):
        if sql:
            return Column(name, sql, null=null, doc=doc)
        raise ConfigError(f"@logtype: no column for {name}: {annotation}; say it: Annotated[..., Sql('text')]")
    return Column(name, sql or _sql_of(name, kind), null=null, doc=doc, wrong=_checker(kind, sql))


# In this order: bool is an int, datetime a date.
_SQL: tuple[tuple[type, str], ...] = (
    (bool, "boolean"), (int, "bigint"), (float, "double precision"), (str, "text"), (datetime, "timestamptz"),
    (date, "date"), (timedelta, "interval"), (uuid.UUID, "uuid"), (Decimal, "numeric"), (bytes, "bytea"),
    (Mapping, "jsonb"), (list, "jsonb"), (tuple, "jsonb"), (set, "jsonb"), (frozenset, "jsonb"), (Sequence, "jsonb"),
)  # fmt: skip


def _sql_of(name: str, kind: type) -> str:
    for one, sql in _SQL:
        if issubclass(kind, one):
            return sql
    if dataclasses.is_dataclass(kind) or hasattr(kind, "model_fields"):
        return "jsonb"
    raise ConfigError(
        f"@logtype: no column for {name}: {kind.__name__}; say it: Annotated[{kind.__name__}, Sql('text')]"
    )


def _of_choices(choices: tuple[Any, ...]) -> Callable[[Any], str | None]:
    return lambda value: None if value in choices else f"is {value!r:.100}, not one of {list(choices)}"


def _of_enum(kind: type[enum.Enum]) -> Callable[[Any], str | None]:
    values = [one.value for one in kind]
    return lambda value: (
        None if isinstance(value, kind) or value in values else f"is {value!r:.100}, no {kind.__name__}"
    )


def _checker(kind: type, sql: str) -> Callable[[Any], str | None] | None:
    """Return what says what is wrong with a value of a field; a little wider than isinstance, as the column is."""
    wider: dict[type, tuple[type, ...]] = {float: (int, float, Decimal), Decimal: (int, float, Decimal)}
    allowed: tuple[type, ...] = wider.get(kind, (kind,))
    if issubclass(kind, (list, tuple, set, frozenset)):
        allowed = (list, tuple, set, frozenset)

    def wrong(value: Any) -> str | None:
        if kind is uuid.UUID and isinstance(value, str):
            try:
                uuid.UUID(value)
            except ValueError:
                return f"is {value!r:.100}, no uuid"
            return None
        if not isinstance(value, allowed) or (isinstance(value, bool) and not issubclass(kind, bool)):
            return f"is a {type(value).__name__}, not a {kind.__name__}"
        if (
            isinstance(value, int)
            and kind is int
            and not -RANGES.get(sql, BIGINT) - 1 <= value <= RANGES.get(sql, BIGINT)
        ):
            return f"is out of the range of {sql or 'bigint'}"
        return None

    return wrong


def _wrong_level(value: Any) -> str | None:
    number = level_number(value)
    if number is None:
        return f"is {value!r:.100}, no level: a number or DEBUG, INFO, WARNING, ERROR, CRITICAL"
    return None if abs(number) <= RANGES["smallint"] else "is out of the range of smallint"


def level_number(value: Any) -> int | None:
    """Return a level's number of its number or name ("warn", "Error", "trace"); None for what is none."""
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    if not isinstance(value, str):
        return None
    found = logging.getLevelName(value.upper())
    return found if isinstance(found, int) else {"TRACE": 5}.get(value.upper())


def _plain(name: str, value: Any) -> Any:
    """Return what a column or JSON takes."""
    if isinstance(value, enum.Enum):
        return value.value
    if name == "level":
        number = level_number(value)
        return value if number is None else number
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.asdict(value)
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, timedelta):
        return f"{value.total_seconds()} seconds"
    dump: Any = getattr(value, "model_dump", None)
    return dump() if callable(dump) else value
