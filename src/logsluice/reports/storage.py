"""Reports of what is stored and by whom: volume, sizes of tables, streams."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime  # noqa: TC003 - a field of dataclasses
from typing import TYPE_CHECKING

from logsluice.reports.scope import RECORDS, Scope, counts, fetch, report

if TYPE_CHECKING:
    from logsluice.reports.scope import Conn


@dataclass(frozen=True)
class Volume:
    """How much a service logged into `logs`."""

    service: str | None
    records: int
    per_second: float  # records, over the whole scope
    text_bytes: int  # of message, traceback and attributes, UTF-8, before compression
    avg_bytes: float  # the same, of one record


@dataclass(frozen=True)
class TableSize:
    """A table with all its partitions."""

    table: str
    partitions: int  # 0: it has none
    rows: int  # PostgreSQL's estimate: ANALYZE makes it better
    table_bytes: int  # with what is stored out of line
    index_bytes: int
    total_bytes: int


@dataclass(frozen=True)
class StreamState:
    """One stream, as its last batch left it."""

    stream: int
    service: str | None
    environment: str | None
    version: str | None
    host: str | None
    pid: int | None
    offered: int  # records, as are the next three
    stored: int
    dropped: int  # with those that were given up, or taken by the fallback
    dead: int
    position: int  # the watermark, segment number x 2^32 + offset in bytes
    started: datetime
    updated: datetime  # its last batch
    retired: datetime | None  # its journal folder is gone

    @property
    def waiting(self) -> int:
        """Records that its process had in hand when it sent its last batch, behind that; 0 where nobody knows."""
        if self.retired is not None:
            return 0  # what is not stored by now went with a damaged file
        return max(self.offered - self.dropped - self.stored - self.dead, 0)


@report
def volume(conn: Conn, scope: Scope) -> list[Volume]:
    """Return how much each service logged, the one with most bytes first."""
    counted, values = counts(conn, scope)
    query = (
        f"SELECT service, {RECORDS} AS records, (sum(records) / extract(epoch FROM %(until)s::timestamptz - "
        "%(since)s::timestamptz))::float8 AS per_second, sum(text_bytes)::bigint AS text_bytes, "
        f"(sum(text_bytes)::float8 / sum(records)) AS avg_bytes FROM {counted} "
        "GROUP BY service ORDER BY 4 DESC, service"
    )
    return fetch(conn, Volume, query, scope.values(**values))


@report
def tables(conn: Conn, scope: Scope) -> list[TableSize]:
    """Return the size of each table of the schema, the largest first. Of the scope only the schema counts."""
    # A partitioned table has no storage: what hangs on it, at any depth, has.
    query = """
        WITH RECURSIVE family AS (
            SELECT c.oid AS root, c.relname::text AS "table", c.oid, c.relkind FROM pg_catalog.pg_class c
              JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
             WHERE n.nspname = %(schema)s AND c.relkind IN ('r', 'p') AND NOT c.relispartition
            UNION ALL
            SELECT f.root, f."table", c.oid, c.relkind FROM family f
              JOIN pg_catalog.pg_inherits i ON i.inhparent = f.oid JOIN pg_catalog.pg_class c ON c.oid = i.inhrelid
        )
        SELECT f."table", (count(*) FILTER (WHERE f.oid <> f.root AND f.relkind = 'r'))::int AS partitions,
               coalesce(sum(CASE WHEN c.reltuples < 0 THEN pg_stat_get_live_tuples(c.oid) ELSE c.reltuples END)
                        FILTER (WHERE f.relkind = 'r'), 0)::bigint AS rows,
               coalesce(sum(pg_table_size(f.oid)), 0)::bigint AS table_bytes,
               coalesce(sum(pg_indexes_size(f.oid)), 0)::bigint AS index_bytes,
               coalesce(sum(pg_total_relation_size(f.oid)), 0)::bigint AS total_bytes
          FROM family f JOIN pg_catalog.pg_class c ON c.oid = f.oid
         GROUP BY f.root, f."table" ORDER BY total_bytes DESC, f."table"
    """
    return fetch(conn, TableSize, query, {"schema": scope.schema})


@report
def streams(conn: Conn, scope: Scope, limit: int = 1000) -> list[StreamState]:
    """Return the streams that sent something in the scope, the last one first; of all times with a wide scope."""
    query = (
        "SELECT stream, service, environment, version, host, pid, offered, stored, dropped, dead, position, started, "
        f"updated, retired FROM {scope.table('stream')} WHERE updated >= %(since)s AND updated < %(until)s "
        "AND (%(service)s::text IS NULL OR service = %(service)s) ORDER BY updated DESC, stream LIMIT %(limit)s"
    )
    return fetch(conn, StreamState, query, scope.values(limit=limit))
