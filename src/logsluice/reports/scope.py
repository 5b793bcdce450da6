"""What a report looks at, and how its query is run."""

from __future__ import annotations

import contextlib
import functools
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from typing import TYPE_CHECKING, Any, TypeVar

from logsluice.columns import quote
from logsluice.errors import ConfigError, LogsluiceError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Concatenate, ParamSpec

    import psycopg

    Conn = psycopg.Connection[Any]
    P = ParamSpec("P")

T = TypeVar("T")

ERROR, WARNING = 40, 30  # Python's level numbers. In SQL they stand as they are: logs_level_ts is a partial index
# Buckets of time begin at whole multiples of their width from here: a Monday, so that weeks begin on Mondays.
ORIGIN = datetime(2001, 1, 1, tzinfo=timezone.utc)
# Buckets of one report: each is an object, and a line. A width of 1 ms by mistake must not fill the memory.
MOST_BUCKETS = 10_000

# The rows of a scope, and figures of times in milliseconds. `x` is what was measured.
IN_SCOPE = "ts >= %(since)s AND ts < %(until)s AND (%(service)s::text IS NULL OR service = %(service)s)"
BUCKET = "date_bin(%(every)s::interval, ts, %(origin)s::timestamptz)"


@dataclass(frozen=True)
class Scope:
    """Rows with since <= ts < until, of one service or (None) of all, in the tables of a schema."""

    since: datetime
    until: datetime
    service: str | None = None
    schema: str = "logsluice"

    def __post_init__(self) -> None:
        for name in ("since", "until"):
            if getattr(self, name).tzinfo is None:
                raise ConfigError(f"{name} has no time zone: write datetime(..., tzinfo=timezone.utc)")
        if self.since >= self.until:
            raise ConfigError(f"since ({self.since}) must be before until ({self.until})")

    @classmethod
    def last(
        cls, span: timedelta, *, service: str | None = None, schema: str = "logsluice", now: datetime | None = None
    ) -> Scope:
        """Return the scope of the last so long, up to now."""
        until = datetime.now(timezone.utc) if now is None else now
        return cls(until - span, until, service, schema)

    def table(self, name: str) -> str:
        """Return the quoted name of a table."""
        return f"{quote(self.schema)}.{quote(name)}"

    def values(self, **more: Any) -> dict[str, Any]:
        """Return the parameters of a query."""
        return {"since": self.since, "until": self.until, "service": self.service, "origin": ORIGIN, **more}

    def buckets(self, every: timedelta) -> list[datetime]:
        """Return when the buckets begin that hold the scope; the first one may begin before it."""
        if every <= timedelta(0):
            raise ConfigError(f"every must be more than nothing, got {every}")
        try:
            at = ORIGIN + (self.since - ORIGIN) // every * every
            if (self.until - at) / every > MOST_BUCKETS:
                raise ConfigError(
                    f"{self.until - self.since} in steps of {every} is more than {MOST_BUCKETS:,}: widen them"
                )
            found = []
            while at < self.until:
                found.append(at.astimezone(timezone.utc))
                at += every
        except OverflowError:
            raise ConfigError(
                f"steps of {every} leave the years 1 to 9999: ask for less, or make them less wide"
            ) from None
        return found


def figures(x: str) -> str:
    """Return the SQL of avg_ms, max_ms, p50_ms, p95_ms and p99_ms of an expression; NULL is not measured."""
    percentiles = ", ".join(f"percentile_cont(0.{p}) WITHIN GROUP (ORDER BY {x}) AS p{p}_ms" for p in (50, 95, 99))
    return f"avg({x})::float8 AS avg_ms, max({x})::float8 AS max_ms, {percentiles}"


def percent(part: str, whole: str) -> str:
    """Return the SQL of a share in percent; NULL of nothing."""
    return f"(100.0 * {part} / nullif({whole}, 0))::float8"


@contextlib.contextmanager
def snapshot(where: Conn | str, *, timeout: float | None = None) -> Iterator[Conn]:
    """
    Give a connection on which all reports see the same rows, and nothing can be written.

    `timeout`: seconds for each query, then the server ends it. A connection must not be in a transaction already.
    """
    with _opened(where) as conn, conn.transaction():
        # pg_catalog alone: nobody can plant a function or an operator in public that a report would call.
        # jit: it compiles the same expressions anew for each partition, half of a report's time of 60 days.
        conn.execute(
            "SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY; SET LOCAL timezone = 'UTC'; "
            "SET LOCAL search_path = pg_catalog, pg_temp; SET LOCAL jit = off",
            prepare=False,
        )
        if timeout is not None:
            conn.execute("SELECT set_config('statement_timeout', %s, true)", [f"{timeout * 1000:.0f}"], prepare=False)
        yield conn


@contextlib.contextmanager
def _opened(where: Conn | str) -> Iterator[Conn]:
    if not isinstance(where, str):
        yield where
        return
    import psycopg  # noqa: PLC0415 - with the first read: importing this package costs no driver

    with psycopg.connect(where, autocommit=True) as conn:
        yield conn


def report(
    run: Callable[Concatenate[Conn, Scope, P], list[T]],
) -> Callable[Concatenate[Conn | str, Scope, P], list[T]]:
    """Make a report take a libpq string, too. Raises for a missing `logs`: a wrong schema is no empty one."""

    @functools.wraps(run)
    def opened(where: Conn | str, scope: Scope, /, *args: P.args, **options: P.kwargs) -> list[T]:
        with _opened(where) as conn:
            if not has(conn, scope, "logs"):
                raise LogsluiceError(
                    f"there is no table {scope.table('logs')} in database {quote(conn.info.dbname)}. A handler makes "
                    "it with its first record; `logsluice migrate` makes it now; --schema and --dsn say where to look"
                )
            return run(conn, scope, *args, **options)

    return opened


def has(conn: Conn, scope: Scope, *names: str) -> list[str]:
    """Return which of these tables are there."""
    from psycopg.rows import tuple_row  # noqa: PLC0415 - as above

    query = (
        "SELECT c.relname FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace "
        "WHERE n.nspname = %s::text AND c.relname = ANY(%s::text[]) AND c.relkind IN ('r', 'p', 'v', 'm', 'f')"
    )
    with conn.cursor(row_factory=tuple_row) as cursor:
        return [row[0] for row in cursor.execute(query, [scope.schema, list(names)], prepare=False)]


def fetch(conn: Conn, kind: type[T], query: str, values: dict[str, Any]) -> list[T]:
    """Return an object for each row: its columns are named as the fields."""
    from psycopg.rows import class_row  # noqa: PLC0415 - as above

    with conn.cursor(row_factory=class_row(kind)) as cursor:
        # Not prepared: the planner must see the times, to leave out partitions.
        return cursor.execute(query, values, prepare=False).fetchall()
