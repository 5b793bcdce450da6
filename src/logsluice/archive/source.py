"""What of a table is read for an archive: which rows, which columns, and in which words the server says them."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta, timezone
from typing import TYPE_CHECKING, Any

from logsluice.archive.places import encoded
from logsluice.archive.rows import Column
from logsluice.columns import quote

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from datetime import datetime

    import psycopg

    from logsluice.partitions import Partition

_KEYS = {"dead_letter": ("at", "stream", "position")}


def key_of(table: str) -> tuple[str, str, str]:
    """Return the columns that tell a row of a table from all others; the first is its time."""
    return _KEYS.get(table, ("ts", "stream", "seq"))


@dataclass(frozen=True)
class Source:
    """Rows of one table that belong together: those of a partition, or of a day."""

    schema: str
    table: str
    name: str  # quoted, with its schema: what is read
    label: str  # what the file's name begins with
    starts: datetime | None  # its rows have starts <= time < ends
    ends: datetime | None
    where: str = "true"  # SQL
    whole: bool = True  # all rows of its time, as far as the database has them

    @property
    def key(self) -> tuple[str, str, str]:
        """The columns that tell a row from all others; the first is its time."""
        return key_of(self.table)

    @property
    def folder(self) -> str:
        """The path of the folder: DuckDB and others read `date` from it."""
        day = "beginning" if self.starts is None else f"{self.starts:%Y-%m-%d}"
        return f"{encoded(self.schema)}/{encoded(self.table)}/date={day}"


def of_partition(schema: str, table: str, part: Partition) -> Source:
    """Return the rows of a partition, attached or not."""
    return Source(schema, table, part.full_name, part.name, part.lower, part.upper)


def days(
    conn: psycopg.Connection[Any], name: str, clock: str, starts: datetime | None, ends: datetime
) -> Iterator[tuple[datetime, datetime]]:
    """Yield the days (UTC) of a table that have rows with starts <= time < ends; `clock`: its quoted column of time."""
    while True:
        query = f"SELECT min({clock}) FROM ONLY {name} WHERE %s::timestamptz IS NULL OR {clock} >= %s::timestamptz"
        row = conn.execute(query, [starts, starts], prepare=False).fetchone()  # by the index on it
        if row is None or row[0] is None or row[0] >= ends:
            return
        first = row[0].astimezone(timezone.utc).replace(hour=0, minute=0, second=0, microsecond=0)
        starts = first + timedelta(days=1)
        yield first, starts


def columns_of(conn: psycopg.Connection[Any], name: str) -> tuple[Column, ...]:
    """Return the columns of a table, of its quoted name."""
    found = conn.execute(
        "SELECT attname::text, format_type(atttypid, NULL) FROM pg_attribute "
        "WHERE attrelid = %s::regclass AND attnum > 0 AND NOT attisdropped ORDER BY attnum",
        [name],
        prepare=False,
    ).fetchall()
    return tuple(Column(*row) for row in found)


def words(conn: psycopg.Connection[Any]) -> None:
    """Have this transaction say the same texts everywhere, scan from where tables begin, and end by no time-out."""
    conn.execute(
        "SET LOCAL search_path = pg_catalog, pg_temp; SET LOCAL timezone = 'UTC'; SET LOCAL datestyle = 'ISO'; "
        "SET LOCAL intervalstyle = 'postgres'; SET LOCAL extra_float_digits = 1; SET LOCAL bytea_output = 'hex'; "
        "SET LOCAL synchronize_seqscans = off; "
        # A large partition takes minutes to send, and its file to be read back, while the session is idle.
        "SET LOCAL statement_timeout = 0; SET LOCAL idle_in_transaction_session_timeout = 0",
        prepare=False,
    )


def names(columns: Sequence[Column]) -> str:
    """Return the quoted names of columns, for SQL."""
    return ", ".join(quote(column.name) for column in columns)


def absent(source: str, other: str, columns: Sequence[Column], key: Sequence[str]) -> str:
    """Return SQL that is true for rows of `source` that `other` has not: by their key, and then by all they say."""
    own, its = (", ".join(f"{name}.{quote(column.name)}" for column in columns) for name in (source, "found"))
    keys = " AND ".join(f"found.{quote(name)} = {source}.{quote(name)}" for name in key)
    return f"NOT EXISTS (SELECT FROM {other} AS found WHERE {keys} AND ROW({its})::text = ROW({own})::text)"
