"""
Counts of `logs` by hour, service, level and logger, kept right under late rows: `logs_hourly`, which is optional.

`sql/rollup.sql` makes it; `maintain` counts what is new, before it deletes anything. Rules, each against an accident:

1. A row is new when the transaction that stored it (`logs.xact`, filled in by the server) was not seen by the snapshot
   of the last count. Neither `ts` (rows come late) nor `seq` (no order, and dead letters are sent again) can tell.
2. The counts and the snapshot that they were made with are committed together, by one statement, so that it sees one
   state of the database: killed in the middle nothing has happened, and who comes next counts what is left.
3. One counts at a time: it holds the row of `logs_hourly_state`, and takes its snapshot only then.
4. What is deleted from `logs` stays counted. Rows that come back with their `xact`, as an archive keeps it, are known;
   rows that come without one are new. An UPDATE leaves `xact` as it is.
5. What was there before the roll-up has no `xact`: it is counted day by day, as of the first snapshot. Until that is
   done nobody reads the counts, and nothing is deleted.
6. Rows of a partition whose drop was interrupted are counted as well, though nobody who reads `logs` sees them: it goes
   later, and by then they would be taken for counted.
7. Writers wait for nothing: a BRIN index finds the new rows, made CONCURRENTLY; `xact` costs a row 8 bytes.

Connections are given with autocommit on.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from logsluice import partitions
from logsluice.catalogue import relation, scalar
from logsluice.columns import quote
from logsluice.errors import LogsluiceError

if TYPE_CHECKING:
    from collections.abc import Callable

    import psycopg

# Where hours begin: that of reports' buckets.
HOUR = "date_bin('1 hour', ts, '2001-01-01Z')"
# Of a row: what `volume` adds up.
TEXT_BYTES = " + ".join(f"coalesce(octet_length({one}), 0)" for one in ("message", "exc_text", "attributes::text"))
# The planner takes a BRIN index without figures of its column for one that finds nothing, and reads whole partitions:
# xact of old ones is NULL throughout. And what it is kept from has a cost that would have the query compiled.
BY_INDEX = "SET LOCAL enable_seqscan = off; SET LOCAL jit = off"
COLUMNS = "service, level, logger, records, text_bytes, last"  # what both have, after the hour or the moment


@dataclass(frozen=True)
class State:
    """Which rows are counted."""

    began: str | None  # snapshots as text
    counted: str | None
    filled: str | None  # a moment as text: Python knows no infinity
    full: bool  # all that was there when it began is counted

    def new(self) -> tuple[str, dict[str, Any]]:
        """Return the condition that a row is not counted, its first half for the index, of a roll-up that is full."""
        where = (
            "xact >= txid_snapshot_xmin(%(counted)s::txid_snapshot) "
            "AND NOT txid_visible_in_snapshot(xact, %(counted)s::txid_snapshot)"
        )
        return where, {"counted": self.counted}

    def known(self) -> tuple[str, list[Any]]:
        """Return the opposite."""
        return "coalesce(txid_visible_in_snapshot(xact, %s::txid_snapshot), true)", [self.counted]


def lacks(conn: psycopg.Connection[Any], seen: State, full_name: str) -> bool:
    """Whether a partition, attached or not, has rows that are not counted, or may have: the roll-up is not full."""
    if not seen.full:  # rows of before have no `xact` to tell by, and somebody else may be counting them now
        return True
    has = "SELECT true FROM pg_attribute WHERE attrelid = %s::regclass AND attname = 'xact' AND NOT attisdropped"
    if scalar(conn, has, full_name) is None:  # detached before there was a roll-up: counted with what was there
        return False
    where, values = seen.known()
    query = f"SELECT true FROM ONLY {full_name} WHERE NOT {where} LIMIT 1"
    return conn.execute(query, values, prepare=False).fetchone() is not None


def state(conn: psycopg.Connection[Any], schema: str) -> State | None:
    """Return how far it is; None: there is no roll-up in this schema. Raises LogsluiceError when half of it is gone."""
    if relation(conn, schema, "logs_hourly_state") is None:
        return None
    found = _read(conn, schema, "")
    if found is None:
        raise LogsluiceError(
            f"{quote(schema)}.logs_hourly_state is empty: which rows are counted cannot be told. "
            "To count anew what is there: empty logs_hourly, too, then `logsluice migrate --rollup`"
        )
    return found


def _read(conn: psycopg.Connection[Any], schema: str, how: str) -> State | None:
    from psycopg.rows import args_row  # noqa: PLC0415 - importing this module costs no driver

    query = (
        "SELECT began::text, counted::text, filled::text, coalesce(filled = 'infinity', false) "
        f"FROM {quote(schema)}.logs_hourly_state {how}"
    )
    with conn.cursor(row_factory=args_row(State)) as cursor:
        return cursor.execute(query, prepare=False).fetchone()


def refresh(conn: psycopg.Connection[Any], schema: str, *, stop: Callable[[], bool] = lambda: False) -> int | None:
    """
    Count what is new and return how many rows that were; None where there is no roll-up, or somebody else counts now.

    Blocks for as long as it takes to read the new rows, at the first time all rows. `stop` is asked between two days of
    that. Raises psycopg's errors, and LogsluiceError on another server than before.
    """
    if state(conn, schema) is None:
        return None
    logs = _everywhere(conn, schema)
    number = _count(conn, schema, logs, _new)
    while number is not None and not stop():
        more = _count(conn, schema, logs, _old)
        if more is None:
            break
        number += more
    return number


# Partitions whose drop was interrupted. One from before the roll-up has no `xact`, and no row that is new.
_HIDDEN = """
SELECT CASE WHEN a.attname IS NULL THEN 'NULL::bigint AS xact' ELSE 'xact' END,
       format('ONLY %%I.%%I', n.nspname, c.relname)
  FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
  LEFT JOIN pg_attribute a ON a.attrelid = c.oid AND a.attname = 'xact' AND NOT a.attisdropped
 WHERE c.oid IN (SELECT inhrelid FROM pg_inherits WHERE inhparent = %(logs)s::regclass AND inhdetachpending)
    OR NOT c.relispartition
       AND starts_with(obj_description(c.oid, 'pg_class'), concat(%(mark)s::text, ' ', %(logs)s::regclass::oid, ' '))
"""


def _everywhere(conn: psycopg.Connection[Any], schema: str) -> str:
    """Return `logs`, with the rows that do not show in it: what SQL reads from."""
    logs = f"{quote(schema)}.logs"
    hidden = conn.execute(_HIDDEN, {"logs": logs, "mark": partitions.MARK}, prepare=False).fetchall()
    if not hidden:
        return logs
    each = "SELECT ts, service, level, logger, message, exc_text, attributes"
    return f"({' UNION ALL '.join(f'{each}, {xact} FROM {one}' for xact, one in (('xact', logs), *hidden))}) AS logs"


def _count(
    conn: psycopg.Connection[Any],
    schema: str,
    logs: str,
    which: Callable[[psycopg.Connection[Any], str, State], tuple[str, dict[str, Any]] | None],
) -> int | None:
    """Add rows in one transaction and return how many; None: there are none of these, or somebody else counts."""
    with conn.transaction():
        partitions.settings(conn, partitions.DROP_LOCK_TIMEOUT)
        seen = _read(conn, schema, "FOR UPDATE SKIP LOCKED")
        chosen = None if seen is None else which(conn, schema, seen)
        if chosen is None:
            return None
        home, (where, values) = quote(schema), chosen
        groups = "hour, service, level, logger"
        # An hour's rows are made anew, not updated: there is no key to find them by, see rollup.sql.
        row = conn.execute(
            f"WITH fresh AS MATERIALIZED (SELECT {HOUR} AS hour, service, level, logger, count(*) AS records, "
            f"sum({TEXT_BYTES})::bigint AS text_bytes, max(ts) AS last FROM {logs} WHERE {where} "
            f"GROUP BY 1, 2, 3, 4), "
            f"gone AS (DELETE FROM {home}.logs_hourly WHERE hour IN (SELECT f.hour FROM fresh f) RETURNING *), "
            f"put AS (INSERT INTO {home}.logs_hourly (hour, {COLUMNS}) SELECT {groups}, sum(records)::bigint, "
            f"sum(text_bytes)::bigint, max(last) FROM (SELECT hour, {COLUMNS} FROM fresh UNION ALL "
            f"SELECT hour, {COLUMNS} FROM gone) AS one GROUP BY {groups}), "
            f"moved AS (UPDATE {home}.logs_hourly_state SET {values.pop('moves')}) "
            "SELECT coalesce(sum(records), 0)::bigint FROM fresh",
            values,
            prepare=False,
        ).fetchone()
    return None if row is None else row[0]


def _new(conn: psycopg.Connection[Any], schema: str, seen: State) -> tuple[str, dict[str, Any]]:
    """Return the condition of what was stored since the last count; of the first count: none, it only looks."""
    if seen.counted is None:
        return "false", {
            "moves": "began = txid_current_snapshot(), counted = txid_current_snapshot(), filled = '-infinity'"
        }
    query = "SELECT txid_snapshot_xmax(%s::txid_snapshot) > txid_current()"
    if conn.execute(query, [seen.counted], prepare=False).fetchone() == (True,):
        # Numbers of transactions begin anew there: rows would be taken for counted ones.
        home = quote(schema)
        raise LogsluiceError(
            f"{home}.logs_hourly was counted on another server and came here in a dump. To count what is stored from "
            f"now on: ALTER TABLE {home}.logs DROP COLUMN xact; UPDATE {home}.logs_hourly_state SET "
            "counted = txid_current_snapshot(); then `logsluice migrate --rollup`"
        )
    conn.execute(BY_INDEX, prepare=False)
    where, values = seen.new()
    return where, {**values, "moves": "counted = txid_current_snapshot()"}


def _old(conn: psycopg.Connection[Any], schema: str, seen: State) -> tuple[str, dict[str, Any]] | None:
    """Return the condition of the next day of what was there before the roll-up; None: all are counted."""
    if seen.full:
        return None
    end = (
        "SELECT coalesce(date_bin('1 day', min(ts), '2001-01-01Z') + interval '1 day', 'infinity')::text "
        f"FROM {quote(schema)}.logs WHERE ts >= %s::timestamptz"
    )
    row = conn.execute(end, [seen.filled], prepare=False).fetchone()
    assert row is not None
    where = (
        "ts >= %(filled)s::timestamptz AND ts < %(upper)s::timestamptz "
        "AND coalesce(txid_visible_in_snapshot(xact, %(began)s::txid_snapshot), true)"
    )
    values = {"filled": seen.filled, "upper": row[0], "began": seen.began}
    return where, {**values, "moves": "filled = %(upper)s::timestamptz"}


# Tables that rows are in, each with its indexes on xact, of which there may be none.
_INDEXES = """
SELECT n.nspname::text, c.relname::text, x.relname::text, i.indisvalid, i.indexrelid
  FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
  JOIN pg_attribute a ON a.attrelid = c.oid AND a.attname = 'xact' AND NOT a.attisdropped
  LEFT JOIN (pg_index i JOIN pg_class x ON x.oid = i.indexrelid) ON i.indrelid = c.oid AND i.indkey[0] = a.attnum
 WHERE c.relkind = 'r' AND (c.oid = %(logs)s::regclass OR c.oid IN (
       SELECT inhrelid FROM pg_inherits WHERE inhparent = %(logs)s::regclass AND NOT inhdetachpending))
"""


def index(conn: psycopg.Connection[Any], schema: str) -> None:
    """
    Give each partition its BRIN index, and have each index know the pages that were filled since.

    For one process at a time, in a session of its own. Without it a count reads whole partitions, and is as exact.
    Raises psycopg's error when an open transaction is in the way for longer than 3 s; the next call goes on from there.
    """
    if state(conn, schema) is None:
        return
    found = conn.execute(_INDEXES, {"logs": f"{quote(schema)}.logs"}, prepare=False).fetchall()
    with partitions.session(conn):
        for home, table, old, valid, number in found:
            if valid:
                # Else every count would read all pages since the last VACUUM again.
                conn.execute("SELECT brin_summarize_new_values(%s::regclass)", [number], prepare=False)
                continue
            if old is not None:  # of a CREATE INDEX that was interrupted
                conn.execute(f"DROP INDEX CONCURRENTLY {quote(home)}.{quote(old)}", prepare=False)
            conn.execute(f"CREATE INDEX CONCURRENTLY ON {quote(home)}.{quote(table)} USING brin (xact)", prepare=False)
