"""What a report looks at, and how its query is run."""

from __future__ import annotations

import contextlib
import functools
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from typing import TYPE_CHECKING, Any, TypeVar

from logsluice import rollup
from logsluice.catalogue import scalar
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
IN_SCOPE, HOURS_IN_SCOPE = (
    f"{one} >= %(since)s AND {one} < %(until)s AND (%(service)s::text IS NULL OR service = %(service)s)"
    for one in ("ts", "hour")
)
HOUR = timedelta(hours=1)
ROLLED = ("levels", "error_rate", "services", "loggers", "volume")  # reports that the roll-up has the figures of
BUCKET = "date_bin(%(every)s::interval, ts, %(origin)s::timestamptz)"


@dataclass(frozen=True)
class Scope:
    """
    Rows with since <= ts < until, of one service or (None) of all, in the tables of a schema.

    `rolled`: count what was ever stored, with what retention has deleted since, from the hourly roll-up and the rows
    that are not in it yet. It knows whole hours: `since` and `until` become the beginnings of theirs.
    """

    since: datetime
    until: datetime
    service: str | None = None
    schema: str = "logsluice"
    rolled: bool = False

    def __post_init__(self) -> None:
        for name in ("since", "until"):
            if getattr(self, name).tzinfo is None:
                raise ConfigError(f"{name} has no time zone: write datetime(..., tzinfo=timezone.utc)")
        if self.rolled:
            for name in ("since", "until"):
                object.__setattr__(self, name, ORIGIN + (getattr(self, name) - ORIGIN) // HOUR * HOUR)
            if self.since == self.until:
                raise ConfigError("the roll-up has whole hours that are over: ask for more time than one")
        if self.since >= self.until:
            raise ConfigError(f"since ({self.since}) must be before until ({self.until})")

    @classmethod
    def last(
        cls, span: timedelta, *, service: str | None = None, schema: str = "logsluice", rolled: bool = False,
        now: datetime | None = None,
    ) -> Scope:  # fmt: skip
        """Return the scope of the last so long, up to now."""
        until = datetime.now(timezone.utc) if now is None else now
        return cls(until - span, until, service, schema, rolled)

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
        if self.rolled and every % HOUR:
            raise ConfigError(f"the roll-up has hours: every must be a multiple of one, got {every}")
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


# Of what `counts` gives.
RECORDS = "sum(records)::bigint"
ERRORS, WARNINGS = (
    f"coalesce(sum(records) FILTER (WHERE {where}), 0)::bigint"
    for where in (f"level >= {ERROR}", f"level >= {WARNING} AND level < {ERROR}")
)


def counts(conn: Conn, scope: Scope) -> tuple[str, dict[str, Any]]:
    """
    Return the SQL of rows that count rows of `logs`, and its parameters.

    They have ts, service, level, logger, records, text_bytes, last. One row for each record; of a roll-up one for each
    hour, and one for each record that is not in it yet.
    """
    logs = (
        f"SELECT ts, service, level, logger, 1 AS records, {rollup.TEXT_BYTES} AS text_bytes, ts AS last "
        f"FROM {scope.table('logs')} WHERE {IN_SCOPE}"
    )
    if not scope.rolled:
        return f"({logs}) AS counted", {}
    seen = rollup.state(conn, scope.schema)
    if seen is None or not seen.full:
        what = "there is no roll-up: `logsluice migrate --rollup` makes it"
        what = what if seen is None else "the roll-up has not counted all rows yet"
        raise LogsluiceError(f"{what}, then `logsluice maintain --once` counts what is there")
    new, values = seen.new()
    hours = f"SELECT hour AS ts, {rollup.COLUMNS} FROM {scope.table('logs_hourly')} WHERE {HOURS_IN_SCOPE}"
    return f"({hours} UNION ALL {logs} AND {new}) AS counted", values


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
            "SET LOCAL datestyle = 'ISO'; SET LOCAL search_path = pg_catalog, pg_temp; SET LOCAL jit = off",
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

    from logsluice.sinks.link import read_times  # noqa: PLC0415 - as above

    with psycopg.connect(where, autocommit=True) as conn:
        read_times(conn)
        yield conn


@contextlib.contextmanager
def _one_state(conn: Conn, scope: Scope) -> Iterator[None]:
    """See the roll-up and what is not in it as of one moment, the latter by its index; the report has two queries."""
    if not scope.rolled:
        yield
    elif conn.info.transaction_status == 0:  # idle
        with snapshot(conn), _one_state(conn, scope):
            yield
    else:
        if scalar(conn, "SELECT current_setting('transaction_isolation')") == "read committed":
            raise ConfigError("READ COMMITTED has no one state, and the roll-up needs one: use reports.snapshot")
        conn.execute(rollup.BY_INDEX, prepare=False)
        yield
        # Other reports may follow in this transaction; after an error nothing can.
        conn.execute("SET LOCAL enable_seqscan TO DEFAULT; SET LOCAL jit TO DEFAULT", prepare=False)


def report(
    run: Callable[Concatenate[Conn, Scope, P], list[T]],
) -> Callable[Concatenate[Conn | str, Scope, P], list[T]]:
    """Make a report take a libpq string, too. Raises for a missing `logs`: a wrong schema is no empty one."""

    @functools.wraps(run)
    def opened(where: Conn | str, scope: Scope, /, *args: P.args, **options: P.kwargs) -> list[T]:
        if scope.rolled and run.__name__ not in ROLLED:
            raise ConfigError(f"the roll-up has nothing about {run.__name__}: only {', '.join(ROLLED)}")
        with _opened(where) as conn, _one_state(conn, scope):
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
