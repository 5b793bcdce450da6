"""
One run of maintenance: partitions made ahead, the roll-up counted (where there is one), what retention says dropped or
deleted, old watermarks swept.

Rules, each against an accident:

1. Never in a writer's way: partitions go as partitions.py says; rows go in transactions that look at 2 MiB of a table
   each and wait for no lock for longer than `DROP_LOCK_TIMEOUT`. What cannot be had now is told, and done next time.
2. The parts fail apart: a table that cannot be pruned keeps no partition from being made, and no other table.
3. Never a resend: a journal's row of `stream` goes only when the journal is gone (`retired`); a memory stream's only
   when no partition is left that could hold its rows. Both when they are 30 days old.
4. What a hold (holds.py) keeps is not touched; a partition in which it keeps a row is not dropped. Each is looked at
   again when it is detached and nobody adds a row any more; one that has to stay is attached again.
5. `now` is given. The clock of the server decides about nothing that goes; partitions are made within 8 days of it.
6. One at a time for each schema: a lock of the session, which a killed maintainer gives back by dying.
7. Only tables that logsluice made: a partition that somebody detached by hand to keep it is no table of ours.
8. With an archive nothing goes that is not in it, verified (archive/). Watermarks do not go there: they are no records.
9. Where there is a roll-up (rollup.py), a row is counted before it goes.

A row that is due is kept for a day more at most, for what is deleted with its whole partition.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import psycopg

from logsluice import archive as archives
from logsluice import holds, partitions, retention, rollup, types
from logsluice.catalogue import scalar
from logsluice.columns import quote
from logsluice.errors import ConfigError, LogsluiceError
from logsluice.pruning import Pruning
from logsluice.retention import LogTable
from logsluice.sweep import Due, Gone, Job, Report, reason

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from datetime import datetime

    from logsluice.retention import Rules

AT_WORK = "logsluice: a maintainer is at work: nothing done, try again when it is through"  # what commands say then
STREAMS = 1000  # rows of `stream` in one transaction
STREAM_AGE = timedelta(days=30)  # of a stream's row since its last use; DESIGN D4
LATE = timedelta(days=2)  # a row's ts may be so much later than its storing: capture's own limit


def run(
    conn: psycopg.Connection[Any],
    schema: str = "logsluice",
    rules: Rules | None = None,
    *,
    now: datetime,
    width: str | None = None,
    dry_run: bool = False,
    archive: archives.Settings | None = None,
    stop: Callable[[], bool] = lambda: False,
) -> Report:
    """
    Do one run and return what went. A connection of its own, with autocommit on and no pooler before it.

    `rules`: see `retention.rules_from`. `width`: of partitions made ahead; None: that of the newest. `dry_run`: nothing
    is changed, rows are counted. `archive`: where rows go before they are dropped or deleted; what cannot be written
    there stays. `stop` is asked between two steps, and while an archive is written. Blocks for as long as it takes:
    seconds, or minutes where rules are finer than tables, which read what they are about, and for each million rows
    that is archived about half a minute. Raises `ConfigError` for a pooler, `LogsluiceError` for a schema without
    tables of logs, psycopg's error when the connection is lost; all else is told in `skipped`.
    """
    shelf = archives.Archive(conn, archive, stop=stop) if archive is not None and not dry_run else None
    job = _Run(conn, schema, rules or {}, now, width, stop, Report(now, dry_run), shelf)
    partitions.check_session(conn)
    with leading(conn, schema, needed=not dry_run) as leads:
        job.report.leader = leads
        if leads:
            job.all()
            job.report.archived = shelf.line() if shelf is not None else None
    return job.report


@contextlib.contextmanager
def leading(conn: psycopg.Connection[Any], schema: str, *, needed: bool) -> Iterator[bool]:
    """Take the lock of rule 6 if nobody has it; tell whether we may work. The owner's session finds no planted name."""
    conn.execute("SET search_path = pg_catalog, pg_temp; SET timezone = 'UTC'; SET datestyle = 'ISO'", prepare=False)
    key, lock = f"logsluice maintain {schema}", "SELECT pg_{}advisory_{}lock(hashtextextended(%s::text, 0))"
    mine = not needed or conn.execute(lock.format("try_", ""), [key], prepare=False).fetchone() == (True,)
    try:
        yield mine
    finally:
        if not conn.closed:
            if needed and mine:
                conn.execute(lock.format("", "un"), [key], prepare=False)
            conn.execute("RESET search_path; RESET timezone", prepare=False)  # datestyle stays: psycopg reads no other


_TABLES = """
SELECT c.relname::text, c.relkind = 'p', obj_description(c.oid, 'pg_class'),
       array(SELECT a.attname::text FROM pg_attribute a
              WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped)
  FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
 WHERE n.nspname = %s::text AND c.relkind IN ('r', 'p') AND NOT c.relispartition
 ORDER BY c.relname = 'logs' DESC, c.relname
"""


def tables(conn: psycopg.Connection[Any], schema: str) -> list[LogTable]:
    """Return the tables of this schema that hold logs: `logs`, and those of typed logs, by their comment or class."""
    found = []
    for name, partitioned, comment, columns in conn.execute(_TABLES, [schema], prepare=False).fetchall():
        typed, declared = retention.declared_in(comment)
        kind = types.known.get(name)
        if {"ts", "stream", "seq"} <= set(columns) and (name == "logs" or typed or (kind and partitioned)):
            keep = kind.retention if kind is not None else declared
            found.append(LogTable(name, frozenset(columns), partitioned, keep))
    return found


def known(conn: psycopg.Connection[Any], schema: str) -> list[LogTable]:
    """As `tables`. Raises LogsluiceError where there are none: a misspelt schema must not pass for a tidy one."""
    found = tables(conn, schema)
    if not found:
        raise LogsluiceError(
            f"there are no tables of logs in schema {quote(schema)} of database {quote(conn.info.dbname)}. A handler "
            "makes them with its first record, `logsluice migrate` now; --schema and --dsn say where to look"
        )
    return found


@dataclass
class _Run(Job):
    def all(self) -> None:
        found = known(self.conn, self.schema)
        names = frozenset(table.name for table in found) | {"dead_letter"}
        for key in retention.unknown_tables(self.rules, names):
            self.report.skipped.append(f"rule {key!r}: there is no table of that name")
        with self._apart("the legal holds cannot be read"):
            self.report.skipped += holds.vain(holds.read(self.conn, self.schema), names)
        for table in found:
            if table.partitioned and not self.report.dry_run:
                with self._apart(f"{table.name}: no partition can be made ahead"):
                    self._make(table)
        if not self.report.dry_run:
            with self._apart("the roll-up: rows cannot be counted"):  # before any of them is deleted
                self.report.counted = rollup.refresh(self.conn, self.schema, stop=self.stop)
            with self._apart("the roll-up: an index cannot be made"):
                rollup.index(self.conn, self.schema)
        for table in found:
            if not self.stop():
                with self._apart(f"{table.name}: cannot be pruned"):
                    Pruning(self, table, *retention.of_table(self.rules, table, names)).prune()
        if "dead_letter" in self.rules and not self.stop():
            with self._apart("dead_letter: cannot be pruned"):
                self._dead_letters(self.rules["dead_letter"])
        if not self.stop():
            with self._apart("stream: old rows cannot be deleted"):
                self._streams(found)

    @contextlib.contextmanager
    def _apart(self, what: str) -> Iterator[None]:
        """Tell a failure and go on, unless the connection is lost with it."""
        try:
            yield
        except archives.StoppedError:
            pass  # as everywhere when a run is stopped: the next one goes on
        except (psycopg.Error, LogsluiceError) as error:
            if self.conn.closed or isinstance(error, ConfigError):
                raise
            self.report.skipped.append(f"{what}: {reason(error)}")

    def _make(self, table: LogTable) -> None:
        width = self.width or partitions.width_of(partitions.listed(self.conn, self.schema, table.name))
        self.report.made += partitions.ensure(self.conn, self.schema, width, self.now, table=table.name)

    def _dead_letters(self, keep: float | None) -> None:
        """Delete old dead letters, which a rule must name: they wait for a person. A hold keeps all of its time."""
        gone = Gone("dead_letter", "dead_letter", keep)
        self.report.gone.append(gone)
        if keep is not None:
            name = f"{quote(self.schema)}.dead_letter"
            kept, values = holds.of_dead_letters(holds.read(self.conn, self.schema))
            where, cut = f"at < %s::timestamptz AND {kept} IS NOT TRUE", self.now - timedelta(seconds=keep)
            for _, number in self.sweep(Due("dead_letter", name, where, [cut, *values], "0", [], cut)):
                gone.rows += number

    def _streams(self, found: Sequence[LogTable]) -> None:
        """Delete watermarks that nobody can need: see rule 3."""
        name, due = f"{quote(self.schema)}.stream", self.now - STREAM_AGE
        known = scalar(
            self.conn,
            "SELECT true FROM pg_attribute WHERE attrelid = %s::regclass AND attname = 'journal' AND NOT attisdropped",
            name,
        )
        where, values = "retired < %s::timestamptz", [due]
        if known is not None:
            where, oldest = f"journal IS NOT FALSE AND {where}", self._oldest(found)
            if oldest is not None:
                where = f"({where} OR journal IS FALSE AND updated < %s::timestamptz)"
                values.append(min(due, oldest - LATE))
        if self.report.dry_run:
            self.report.streams = scalar(self.conn, f"SELECT count(*) FROM {name} WHERE {where}", *values)
            return
        # SKIP LOCKED: whoever holds a row is a writer, and the row in use.
        chosen = f"SELECT stream FROM {name} WHERE {where} LIMIT {STREAMS} FOR UPDATE SKIP LOCKED"
        number = STREAMS
        while number > 0 and not self.stop():
            with self.conn.transaction():
                partitions.settings(self.conn, partitions.DROP_LOCK_TIMEOUT)
                query = f"DELETE FROM {name} WHERE stream = ANY(ARRAY({chosen}))"
                number = self.conn.execute(query, values, prepare=False).rowcount
            self.report.streams += number

    def _oldest(self, found: Sequence[LogTable]) -> datetime | None:
        """Return the moment before which no table can hold a row any more; None where nobody can tell."""
        edges: list[datetime] = [self.now]
        for table in found:
            if table.partitioned:
                for part in partitions.listed(self.conn, self.schema, table.name):
                    if part.lower is None:
                        return None
                    edges.append(part.lower)
            else:
                full = f"{quote(self.schema)}.{quote(table.name)}"
                oldest = scalar(self.conn, f"SELECT min(ts) FROM {full}")
                edges += [] if oldest is None else [oldest]
        return min(edges)
