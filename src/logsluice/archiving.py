"""
Archives by hand: all that is old into files, with nothing dropped; and files back into tables.

What a file is, and how it is verified, is told in archive/.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import psycopg

from logsluice import maintenance, partitions, types
from logsluice.archive import Archive, files, manifest, rows
from logsluice.archive.places import told
from logsluice.archive.source import Source, absent, columns_of, days, key_of, names, of_partition, words
from logsluice.columns import check_name, quote
from logsluice.errors import ConfigError, LogsluiceError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from datetime import datetime

    from logsluice.archive import Manifest, Settings
    from logsluice.archive.places import Place
    from logsluice.retention import LogTable

_STAGE = "logsluice_restored"
_OUT_OF_BOUNDS = "22023"  # what make_partitions raises for a time that it makes none for


def sources(
    conn: psycopg.Connection[Any], schema: str, *, table: str | None, since: datetime | None, until: datetime
) -> Iterator[Source]:
    """
    Yield what there is to archive in since <= time < until: whole partitions, and days of a table without partitions.

    Without `table`: of all tables of logs. Dead letters must be named.
    """
    found = maintenance.known(conn, schema)
    known = [one.name for one in found]
    if table == "dead_letter":
        yield from _days(conn, schema, table, since, until)
    elif table is not None and table not in known:
        raise LogsluiceError(f"{table!r} is no table of logs in schema {schema!r}: {', '.join(known)}, dead_letter are")
    for one in found:
        if table in {None, one.name}:
            yield from _of(conn, schema, one, since, until)


def _of(
    conn: psycopg.Connection[Any], schema: str, table: LogTable, since: datetime | None, until: datetime
) -> Iterator[Source]:
    if not table.partitioned:
        yield from _days(conn, schema, table.name, since, until)
        return
    for part in partitions.listed(conn, schema, table.name):
        late = since is None or (part.upper is not None and part.upper > since)
        if late and part.upper is not None and part.upper <= until:
            yield of_partition(schema, table.name, part)


def _days(
    conn: psycopg.Connection[Any], schema: str, table: str, since: datetime | None, until: datetime
) -> Iterator[Source]:
    name = f"{quote(schema)}.{quote(table)}"
    clock = quote(key_of(table)[0])
    for first, end in days(conn, name, clock, since, until):
        if end <= until:
            where = f"{clock} >= '{first.isoformat()}' AND {clock} < '{end.isoformat()}'"
            yield Source(schema, table, name, table, first, end, where)


def archive_all(
    conn: psycopg.Connection[Any],
    settings: Settings,
    schema: str = "logsluice",
    *,
    table: str | None = None,
    since: datetime | None = None,
    until: datetime,
    stop: Callable[[], bool] = lambda: False,
    progress: Callable[[int], None] = lambda _rows: None,
) -> Archive | None:
    """
    Archive what ended before `until` and return what was written; None when a maintainer is at work.

    Nothing is dropped. What is in a file already gets no second one. A connection of its own with autocommit on, no
    pooler before it. Blocks until all is written and read back; raises `ArchiveError`, `LogsluiceError` for a table or
    schema that is not there, psycopg's error.
    """
    partitions.check_session(conn)
    store = Archive(conn, settings, stop=stop, progress=progress)
    with maintenance.leading(conn, schema, needed=True) as leads:
        if not leads:
            return None
        for source in list(sources(conn, schema, table=table, since=since, until=until)):
            store.whole(source)
    return store


# --- back into tables ---


@dataclass(frozen=True)
class Restored:
    """What became of one file."""

    manifest: Manifest
    wanted: int  # rows of it in the time that was asked for
    stored: int  # rows that the table did not have; of a dry run 0


def manifests(place: Place, path: str | None) -> list[Manifest]:
    """Return those of a place, or that of one file; the earliest rows first."""
    with told("the archive cannot be listed"):
        paths = [one for one in place.find() if one.endswith(manifest.ENDING)] if path is None else []
    found = [manifest.load(place, one) for one in ([manifest.manifest_path(path)] if path is not None else paths)]
    return sorted(found, key=lambda one: (str(one.table), str(one.starts or ""), one.file))


@dataclass
class Restore:
    """Restoring into one schema. `into`: another table, made if it is not there; None: the one that a file names."""

    conn: psycopg.Connection[Any]
    place: Place
    schema: str = "logsluice"
    into: str | None = None
    since: datetime | None = None
    until: datetime | None = None

    def __post_init__(self) -> None:
        if self.into in types.OURS - {"logs", "dead_letter"}:
            raise ConfigError(f"{self.into!r} is logsluice's own table: restore into another")
        if self.into is not None:
            check_name("--into", self.into)  # PostgreSQL would cut a long one, and it might be another table's then
        self._tables = {one.name: one for one in maintenance.tables(self.conn, self.schema)}

    def file(
        self, one: Manifest, *, dry_run: bool = False, progress: Callable[[int], None] = lambda _rows: None
    ) -> Restored:
        """
        Load one file in one transaction: the rows that the table does not have yet, none twice. Watermarks stay.

        With `dry_run` it is verified, and its rows are counted. Blocks until it is read and stored. Raises
        `ArchiveError` for a file that is damaged, of which nothing is stored then, `LogsluiceError` for a table that
        cannot take it, psycopg's error.
        """
        manifest.check(self.place, one)
        if dry_run:
            return Restored(one, sum(self._wanted(one, progress)), 0)
        target, partitioned = self._target(one)
        if partitioned:
            self._partitions(one)
        with self.conn.transaction():
            words(self.conn)
            # Two restores of one file at once would both find its rows missing.
            lock = "SELECT pg_advisory_xact_lock(hashtextextended(%s::text, 0))"
            self.conn.execute(lock, [f"logsluice restore {target}"], prepare=False)
            columns = names(one.columns)
            self._stage(one, target, columns, progress)
            during, values = self._during(one)
            wanted = self.conn.execute(
                f"SELECT count(*) FROM {_STAGE} WHERE {during}", values, prepare=False
            ).fetchone()
            given = names(self._given(one, target))
            insert = f"INSERT INTO {target} ({given}) SELECT {given} FROM {_STAGE} WHERE "
            key = key_of(one.table)
            # A dead letter that was edited or stored since is the same one: put back beside it, it would be sent again.
            same = [each for each in one.columns if one.table != "dead_letter" or each.name in key]
            lacking = f" AND {absent(_STAGE, target, same, key)}"
            query = insert.replace("%", "%%") + during + lacking.replace("%", "%%")
            stored = self.conn.execute(query, values, prepare=False).rowcount
        return Restored(one, wanted[0] if wanted is not None else 0, stored)

    def _wanted(self, one: Manifest, progress: Callable[[int], None]) -> Iterator[bool]:
        """Read a file to its end; yield of each row whether it lies in the time that was asked for."""
        number = [column.name for column in one.columns].index(one.clock)
        edges = [None if edge is None else round(edge.timestamp() * 1_000_000) for edge in (self.since, self.until)]
        for line in files.read(self.place, one, progress):
            when = rows.micros(line.split(b"\t")[number].rstrip(b"\n").decode())
            yield when is None or ((edges[0] is None or when >= edges[0]) and (edges[1] is None or when < edges[1]))

    def _during(self, one: Manifest) -> tuple[str, list[Any]]:
        parts, values = ["true"], []
        for edge, how in ((self.since, ">="), (self.until, "<")):
            if edge is not None:
                parts.append(f"{quote(one.clock)} {how} %s::timestamptz")
                values.append(edge)
        return " AND ".join(parts), values

    def _given(self, one: Manifest, target: str) -> list[rows.Column]:
        """Return the file's columns but for those that the table computes itself: PostgreSQL takes no values there."""
        query = "SELECT attname::text FROM pg_attribute WHERE attrelid = %s::regclass AND attgenerated <> ''"
        computed = {row[0] for row in self.conn.execute(query, [target], prepare=False).fetchall()}
        return [column for column in one.columns if column.name not in computed]

    def _target(self, one: Manifest) -> tuple[str, bool]:
        """Return the table's quoted name, and whether it has partitions. Raises unless it has the file's columns."""
        table = self.into or one.table
        name = f"{quote(self.schema)}.{quote(table)}"
        if self.into is not None and self.into not in self._tables:
            with self.conn.transaction():
                self._make(one, name)
        elif table not in self._tables and table != "dead_letter":
            raise LogsluiceError(f"there is no table {name} of logs: make it (logsluice migrate), or say --into TABLE")
        lacking = {column.name for column in one.columns} - {column.name for column in columns_of(self.conn, name)}
        if lacking:
            raise LogsluiceError(f"{name} has no column {', '.join(sorted(lacking))}: restore it --into another table")
        return name, table in self._tables and self._tables[table].partitioned

    def _make(self, one: Manifest, name: str) -> None:
        """Make a table of the file's columns, unless it is there."""
        columns = []
        for column in one.columns:
            # Asked for, as a file is not to be trusted with SQL; text for a type that is not here.
            query = "SELECT coalesce(format_type(to_regtype(%s::text), NULL), 'text')"
            row = self.conn.execute(query, [column.type], prepare=False).fetchone()
            assert row is not None
            columns.append(f"{quote(column.name)} {row[0]}")
        self.conn.execute(f"CREATE TABLE IF NOT EXISTS {name} ({', '.join(columns)})", prepare=False)

    def _partitions(self, one: Manifest) -> None:
        """Make the partitions that its rows need."""
        first, last = one.span()
        if first is None or last is None or not one.overlaps(self.since, self.until):
            return
        starts = first if self.since is None else max(first, self.since)
        ends = last if self.until is None else max(starts, min(last, self.until - timedelta(microseconds=1)))
        table = one.table if self.into is None else self.into
        width = partitions.width_of(partitions.listed(self.conn, self.schema, table))
        try:
            partitions.ensure_between(self.conn, self.schema, width, starts, ends, table=table)
        except psycopg.Error as error:
            if error.sqlstate == _OUT_OF_BOUNDS:
                raise LogsluiceError(
                    f"{one.path}: {table} takes no rows of {starts:%Y-%m-%d} ({error.diag.message_primary}): "
                    f"restore it --into another table"
                ) from None
            raise

    def _stage(self, one: Manifest, target: str, columns: str, progress: Callable[[int], None]) -> None:
        """Load all rows into a table of this transaction, with the target's types; raises unless each is as it was."""
        self.conn.execute(
            f"CREATE TEMP TABLE {_STAGE} ON COMMIT DROP AS SELECT {columns} FROM {target} LIMIT 0", prepare=False
        )
        with (
            self.conn.cursor() as cursor,
            cursor.copy(f"COPY {_STAGE} ({columns}) FROM STDIN (ENCODING 'UTF8')") as copy,
        ):
            for line in files.read(self.place, one, progress):
                copy.write(line)
        self.conn.execute(f"ANALYZE {_STAGE}", prepare=False)


def warning(found: Sequence[Restored]) -> str | None:
    """Return what a person must know of rows that he has restored; None where there are none."""
    if not any(one.stored for one in found):
        return None
    return (
        "these rows are as old as they were: the next `maintain` whose rules name them takes them away again. "
        "A row in the table `hold` keeps them, or restore them --into a table of their own"
    )
