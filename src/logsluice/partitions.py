"""
The partitions of `logs`: made ahead and on demand, listed, dropped when they are old.

Rules, each against an accident:

1. Nothing here waits for readers or writers of `logs`, nor lets them wait: no `CREATE ... PARTITION OF`, no plain
   `DETACH`. Both take ACCESS EXCLUSIVE: behind one open report every writer would stand still.
2. Nothing here runs inside a batch's transaction, and making and dropping fail apart from each other: a prune that
   cannot get its lock must not keep tomorrow's partition from being made.
3. Only whole partitions are dropped, and only what is marked or attached: a table that somebody detached by hand to
   keep it is never touched.

Connections are given with autocommit on. Moments are aware datetimes; partitions begin and end in UTC.
"""

from __future__ import annotations

import contextlib
import re
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from typing import TYPE_CHECKING, Any

from logsluice import crashpoints
from logsluice.columns import quote
from logsluice.errors import ConfigError, LogsluiceError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import psycopg

AHEAD = timedelta(days=1)  # kept ready before and after now: late records, and clocks that differ by hours
# 2 s: another process that makes the same needs milliseconds. What can last (ANALYZE, CREATE INDEX, DETACH) must not
# hold up the listener, which makes the partitions between two batches.
MAKE_LOCK_TIMEOUT = "2s"
# 3 s: an autovacuum in the way gives up after `deadlock_timeout` (1 s); whoever reads longer is left in peace.
DROP_LOCK_TIMEOUT = "3s"
# 10 s: our transactions have no pauses of their own; those that have (an archive's, the look of `forget`) lift it.
# A process that is killed in one leaves its socket to its children, the server sees no end of the session, and its
# locks would keep every other process from making a partition.
IDLE_LIMIT = "10s"

_OVERLAPS = "42P17"  # what ATTACH raises where another partition has a part of the range
MARK = "logsluice prune: to be dropped, was a partition of"
_MOMENT = re.compile(r"\b(\d{4}-\d\d-\d\d \d\d:\d\d:\d\d)(?:\.(\d{1,6}))?(?:Z|([+-])(\d\d)(?::(\d\d))?(?::(\d\d))?)")


class KeptError(LogsluiceError):
    """A partition must stay: the text says why."""


@dataclass(frozen=True)
class Partition:
    """One partition: the rows with lower <= ts < upper."""

    schema: str
    name: str
    lower: datetime | None  # None: without a bound
    upper: datetime | None
    rows: int  # PostgreSQL's estimate
    size: int  # bytes, with indexes
    state: str  # "attached"; "pending" or "detached": an interrupted drop, to be finished

    @property
    def full_name(self) -> str:
        """The quoted name."""
        return f"{quote(self.schema)}.{quote(self.name)}"


def ensure(conn: psycopg.Connection[Any], schema: str, width: str, now: datetime, *, table: str = "logs") -> list[str]:
    """Make what is missing for now - 1 day to now + 1 day and return the names. One query when nothing is missing."""
    return _make(conn, (schema, table), width, now - AHEAD, now + AHEAD)


def ensure_between(
    conn: psycopg.Connection[Any], schema: str, width: str, starts: datetime, ends: datetime, *, table: str = "logs"
) -> list[str]:
    """As `ensure_at` for all moments from starts to ends, both included: 500 partitions at most."""
    return _make(conn, (schema, table), width, starts, ends)


def ensure_at(
    conn: psycopg.Connection[Any], schema: str, width: str, moment: datetime, *, table: str = "logs"
) -> list[str]:
    """
    Make the partition for this moment (see `moment_of`) and return its name; nothing when it is there already.

    The server refuses what is not within now - 400 days to now + 8 days.
    """
    return _make(conn, (schema, table), width, moment, moment)


def _make(
    conn: psycopg.Connection[Any], parent: tuple[str, str], width: str, starts: datetime, ends: datetime
) -> list[str]:
    schema, table = parent
    if width == "none":
        return []
    with conn.transaction():
        settings(conn, MAKE_LOCK_TIMEOUT)
        # SQL from quoted names; types are given so that no other function of that name can be meant.
        rows = conn.execute(
            f"SELECT {quote(schema)}.make_partitions(%s::timestamptz, %s::timestamptz, %s::text, %s::text)",
            [starts, ends, table, width],
            prepare=False,
        ).fetchall()
    return [row[0] for row in rows]


def settings(conn: psycopg.Connection[Any], lock_timeout: str) -> None:
    """
    All that a transaction here needs; READ COMMITTED, to see what others made while we waited for a lock.

    standard_conforming_strings: make_partitions reads bounds by a regular expression, whose backslashes it would lose.
    """
    conn.execute(
        "SET TRANSACTION ISOLATION LEVEL READ COMMITTED; SET LOCAL search_path = pg_catalog, pg_temp; "
        "SET LOCAL standard_conforming_strings = on; "
        f"SET LOCAL timezone = 'UTC'; SET LOCAL datestyle = 'ISO'; SET LOCAL lock_timeout = '{lock_timeout}'; "
        f"SET LOCAL idle_in_transaction_session_timeout = '{IDLE_LIMIT}'",
        prepare=False,
    )


def moment_of(text: str | None) -> datetime | None:
    """
    Return the moment that a 23514 "no partition of relation ... found for row" is about, or None.

    Give it the error's CONTEXT, `COPY logs, line 1: "17<tab>2026-11-22 09:00:00.5Z<tab>..."`: it quotes our own frame,
    whose first timestamp is `ts`. The DETAIL, `... contains (ts) = (2026-11-22 09:00:00+00).`, will do as well, in any
    TimeZone, if the transaction said `SET LOCAL datestyle = 'ISO'` and the role may SELECT `ts`: PostgreSQL shows it to
    nobody else, and a writer with INSERT alone gets none. The words around it, which are translated, do not matter.
    """
    found = _MOMENT.search(text or "")
    if found is None:
        return None
    clock, fraction, sign, hours, minutes, seconds = found.groups()
    offset = timedelta(hours=int(hours or 0), minutes=int(minutes or 0), seconds=int(seconds or 0))
    try:
        moment = datetime.strptime(clock, "%Y-%m-%d %H:%M:%S").replace(
            microsecond=int((fraction or "0").ljust(6, "0")), tzinfo=timezone.utc
        )
        return moment + offset if sign == "-" else moment - offset
    except (ValueError, OverflowError):  # year 0, a leap second, year 10000
        return None


def expired(
    conn: psycopg.Connection[Any], schema: str, keep: timedelta, now: datetime, *, table: str = "logs"
) -> list[Partition]:
    """
    Return what lies wholly before now - keep, in the order to drop it: what was interrupted, then the oldest first.

    PostgreSQL has one pending DETACH a table: until that one is finished, every other is refused.
    """
    old = [part for part in listed(conn, schema, table) if part.upper is not None and part.upper <= now - keep]
    return sorted(old, key=lambda part: part.state == "attached")


_LISTED = """
SELECT n.nspname, c.relname, source.state, source.bounds,
       CASE WHEN c.reltuples < 0 THEN pg_stat_get_live_tuples(c.oid) ELSE c.reltuples END::bigint,
       coalesce(pg_total_relation_size(c.oid), 0)
  FROM (SELECT i.inhrelid, CASE WHEN i.inhdetachpending THEN 'pending' ELSE 'attached' END,
               pg_get_expr(p.relpartbound, p.oid)
          FROM pg_inherits i JOIN pg_class p ON p.oid = i.inhrelid WHERE i.inhparent = %(parent)s::oid
         UNION ALL
        SELECT d.objoid, 'detached', d.description
          FROM pg_description d JOIN pg_class p ON p.oid = d.objoid AND NOT p.relispartition
         WHERE d.classoid = 'pg_class'::regclass AND d.objsubid = 0 AND starts_with(d.description, %(mark)s::text)
       ) AS source (oid, state, bounds)
  JOIN pg_class c ON c.oid = source.oid
  JOIN pg_namespace n ON n.oid = c.relnamespace
"""


def listed(conn: psycopg.Connection[Any], schema: str, table: str = "logs") -> list[Partition]:
    """Return all partitions, and tables whose drop was interrupted, by their bounds."""
    with conn.transaction():
        settings(conn, MAKE_LOCK_TIMEOUT)
        parent = _parent(conn, schema, table)
        marks = {"parent": parent, "mark": f"{MARK} {parent} "}
        rows = conn.execute(_LISTED, marks, prepare=False).fetchall()
    parts = []
    for home, name, state, bounds, estimate, size in rows:
        edges = re.search(r"FROM \((.+)\) TO \((.+)\)$", bounds)
        lower, upper = map(moment_of, edges.groups()) if edges else (None, None)
        parts.append(Partition(home, name, lower, upper, estimate, size, state))
    utmost = datetime.max.replace(tzinfo=timezone.utc)
    return sorted(parts, key=lambda part: (part.upper or utmost, part.name))


def width_of(parts: list[Partition]) -> str:
    """Return the width of the newest partition, "day" where there is none."""
    spans = [part.upper - part.lower for part in parts if part.upper and part.lower and part.state == "attached"]
    span = spans[-1] if spans else timedelta(days=1)
    limits = (("hour", timedelta(hours=1)), ("day", timedelta(days=1)), ("week", timedelta(weeks=1)))
    return next((name for name, limit in limits if span <= limit), "month")


def _parent(conn: psycopg.Connection[Any], schema: str, table: str) -> int:
    row = conn.execute(
        "SELECT c.oid FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace "
        "WHERE n.nspname = %s::text AND c.relname = %s::text AND c.relkind = 'p'",
        [schema, table],
        prepare=False,
    ).fetchone()
    if row is None:
        raise LogsluiceError(
            f"there is no partitioned table {quote(schema)}.{quote(table)} here; --schema and --dsn say where to look. "
            "Rows of a table without partitions go by `logsluice maintain`"
        )
    return int(row[0])


def drop(
    conn: psycopg.Connection[Any], schema: str, partition: Partition, *, table: str = "logs",
    before: Callable[[], None] | None = None,
) -> None:  # fmt: skip
    """
    Drop one partition of what `expired` returned; one that is gone, or has other bounds by now, is left alone.

    Raises psycopg's error when a lock cannot be had in time. What was begun then stays begun and is listed as
    "pending" (its rows are not seen any more, its range takes none) or "detached"; dropping it again finishes it.
    `before` is called when it is detached, in the transaction that drops it and has it locked: nobody adds a row any
    more. If it raises `KeptError` the partition is attached again, and the error goes on; with any other error it stays
    "detached".
    DETACH ... CONCURRENTLY refuses a transaction block, so this needs a session of its own: no transaction pooler.
    """
    for current in listed(conn, schema, table):
        if (current.full_name, current.lower, current.upper) == (partition.full_name, partition.lower, partition.upper):
            with session(conn):
                parent = f"{quote(schema)}.{quote(table)}"
                try:
                    _drop(conn, parent, current, _parent(conn, schema, table), before)
                except KeptError:
                    _attach(conn, schema, table, current)
                    raise


def _drop(
    conn: psycopg.Connection[Any], parent: str, part: Partition, oid: int, before: Callable[[], None] | None
) -> None:
    if part.state == "pending":
        conn.execute(f"ALTER TABLE {parent} DETACH PARTITION {part.full_name} FINALIZE", prepare=False)
    elif part.state == "attached":
        _detach(conn, parent, part, oid)
    crashpoints.reach("detached")
    # Nothing hangs on it now but readers that named it themselves.
    with conn.transaction():
        settings(conn, DROP_LOCK_TIMEOUT)
        if before is not None:
            conn.execute(f"LOCK TABLE {part.full_name} IN ACCESS EXCLUSIVE MODE", prepare=False)
            before()
        conn.execute(f"DROP TABLE {part.full_name}", prepare=False)


def _detach(conn: psycopg.Connection[Any], parent: str, part: Partition, oid: int) -> None:
    # Marked first: when we are killed while the server detaches, it still completes, and without a mark the table
    # would be a stranger that nobody ever drops.
    bounds = f"FROM (''{part.lower or 'MINVALUE'}'') TO (''{part.upper}'')"
    conn.execute(f"COMMENT ON TABLE {part.full_name} IS '{MARK} {oid} {bounds}'", prepare=False)
    try:
        conn.execute(f"ALTER TABLE {parent} DETACH PARTITION {part.full_name} CONCURRENTLY", prepare=False)
    except Exception:
        with contextlib.suppress(Exception):  # the first error is the one to tell
            pending = "SELECT inhdetachpending FROM pg_inherits WHERE inhrelid = %s::regclass"
            row = conn.execute(pending, [part.full_name], prepare=False).fetchone()
            if row == (False,):  # not begun: whoever detaches it by hand now wants to keep it
                conn.execute(f"COMMENT ON TABLE {part.full_name} IS NULL", prepare=False)
        raise


def _attach(conn: psycopg.Connection[Any], schema: str, table: str, part: Partition) -> None:
    """Make a detached table a partition again. The constraint that DETACH left is of its bounds: it is not read."""
    lower = "MINVALUE" if part.lower is None else f"'{part.lower}'"
    parent = f"{quote(schema)}.{quote(table)}"
    try:
        with conn.transaction():
            settings(conn, DROP_LOCK_TIMEOUT)
            bounds = f"FOR VALUES FROM ({lower}) TO ('{part.upper}')"
            conn.execute(f"ALTER TABLE {parent} ATTACH PARTITION {part.full_name} {bounds}", prepare=False)
            conn.execute(f"COMMENT ON TABLE {part.full_name} IS NULL", prepare=False)
    except Exception as error:
        if getattr(error, "sqlstate", None) != _OVERLAPS or part.lower is None or part.upper is None:
            raise
        # A row came meanwhile, and its writer made another partition there: what is in this one goes there as well.
        ensure_between(conn, schema, "day", part.lower, part.upper - timedelta(microseconds=1), table=table)
        _move(conn, parent, part)


def _move(conn: psycopg.Connection[Any], parent: str, part: Partition) -> None:
    names = "SELECT string_agg(quote_ident(attname), ', ') FROM pg_attribute WHERE attrelid = %s::regclass"
    with conn.transaction():
        settings(conn, DROP_LOCK_TIMEOUT)
        # Now, and not by the DROP: what `forget` is just deleting would be copied first.
        conn.execute(f"LOCK TABLE {part.full_name} IN ACCESS EXCLUSIVE MODE", prepare=False)
        query = f"{names} AND attnum > 0 AND NOT attisdropped AND attgenerated = ''"
        ((columns,),) = conn.execute(query, [part.full_name], prepare=False).fetchall()
        conn.execute(f"INSERT INTO {parent} ({columns}) SELECT {columns} FROM {part.full_name}", prepare=False)
        conn.execute(f"DROP TABLE {part.full_name}", prepare=False)


@contextlib.contextmanager
def session(conn: psycopg.Connection[Any]) -> Iterator[None]:
    """Limit how long statements outside a transaction wait for a lock; the only place that needs a session setting."""
    check_session(conn)
    conn.execute(f"SET lock_timeout = '{DROP_LOCK_TIMEOUT}'", prepare=False)
    try:
        yield
    finally:
        if not conn.closed:
            conn.execute("RESET lock_timeout", prepare=False)


def check_session(conn: psycopg.Connection[Any]) -> None:
    """Raise `ConfigError` where a pooler answers: a setting or a lock of ours could reach anybody."""
    row = conn.execute("SELECT pg_backend_pid()", prepare=False).fetchone()
    if row is None or row[0] != conn.info.backend_pid:
        raise ConfigError("dropping partitions needs a session of its own: connect to PostgreSQL, not to a pooler")
