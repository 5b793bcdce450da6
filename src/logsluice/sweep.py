"""
What a run of maintenance is told and tells, and how it deletes rows: a window of the table at a time, or where there is
an archive, so many as a file gets. The rules are those of maintenance.py.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import psycopg

from logsluice import archive, crashpoints, holds, partitions, retention
from logsluice.archive.source import Source, days, key_of
from logsluice.catalogue import scalar
from logsluice.columns import quote

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from datetime import datetime

    from logsluice.retention import Rules

WINDOW = 256  # blocks of 8 KiB that one transaction looks at: about 5,000 rows, some 20 ms


@dataclass
class Gone:
    """What one rule took from one table."""

    table: str
    rule: str
    keep: float | None  # seconds; None: for ever
    rows: int = 0  # deleted, exact
    partitions: list[str] = field(default_factory=list)
    partition_rows: int = 0  # PostgreSQL's estimate
    size: int = 0  # bytes of the partitions, with indexes

    def line(self) -> str:
        """Return it in one line."""
        what = f"{self.rows:,} rows"
        if self.partitions:
            mib = self.size / (1 << 20)
            what += f", {len(self.partitions)} partitions (~{self.partition_rows:,} rows, {mib:.1f} MiB)"
        return f"{self.table} {self.rule} {retention.shown(self.keep)}: {what}"


@dataclass
class Report:
    """What a run did; of a dry run, what it would do."""

    at: datetime
    dry_run: bool = False
    leader: bool = True  # False: another maintainer was at work, nothing was done
    made: list[str] = field(default_factory=list)  # partitions
    gone: list[Gone] = field(default_factory=list)  # by table and rule, also when it is nothing
    counted: int | None = None  # rows that are new in the roll-up; None: there is none, or another was at it
    streams: int = 0  # rows of `stream`
    held: list[str] = field(default_factory=list)  # sentences: partitions that a legal hold keeps
    archived: str | None = None  # a sentence: which files were written; None: rules name no archive
    skipped: list[str] = field(default_factory=list)  # sentences: what could not be done, and why

    def lines(self) -> list[str]:
        """Return it as people read it."""
        if not self.leader:
            return ["another maintainer is at work: nothing done"]
        found = [one.line() for one in self.gone]
        found.append(f"stream (retired or out of use) 30d: {self.streams:,} rows")
        if self.counted is not None:
            found.append(f"roll-up: {self.counted:,} rows counted")
        if not self.dry_run:
            found.append(f"partitions made: {', '.join(self.made) or 'none'}")
        if self.archived is not None and not self.dry_run:
            found.append(f"archived before it went: {self.archived}")
        return found + [f"kept: {one}" for one in self.held] + [f"not done: {one}" for one in self.skipped]


@dataclass(frozen=True)
class Due:
    """Rows that are to go: which, and by which rule."""

    table: str
    name: str  # quoted: the table, or one partition of it
    where: str  # SQL
    values: Sequence[Any]  # its parameters
    which: str  # SQL of the rule's number
    its: Sequence[Any]  # its parameters
    ends: datetime  # no row from then on is due


@dataclass
class Job:
    """One run: where, by what rules, as of when, and what it did so far."""

    conn: psycopg.Connection[Any]
    schema: str
    rules: Rules
    now: datetime
    width: str | None
    stop: Callable[[], bool]
    report: Report
    store: archive.Archive | None  # what goes is written there first

    def holds(self, table: str, lower: datetime | None = None, upper: datetime | None = None) -> list[holds.Hold]:
        """Return the holds that can be about these rows, as they are now."""
        return [one for one in holds.read(self.conn, self.schema) if one.about(table, lower, upper)]

    def sweep(self, due: Due) -> Iterator[tuple[int, int]]:
        """Delete (of a dry run: count) what is due, window by window; yield (rule, rows)."""
        name, where, which = due.name, due.where, due.which
        if self.report.dry_run:
            # In the order of its parameters.
            query = f"SELECT {which} AS rule, count(*) FROM ONLY {name} WHERE {where} GROUP BY 1"
            yield from self.conn.execute(query, [*due.its, *due.values], prepare=False).fetchall()
            return
        if self.store is not None:
            yield from self._archived(due, self.store)
            return
        size = "SELECT pg_relation_size(%s::regclass) / current_setting('block_size')::bigint"
        blocks = scalar(self.conn, size, name)
        # By place and not with LIMIT, which would read what is kept from the beginning for each transaction.
        window = "ctid >= %s::tid AND ctid < %s::tid"
        query = (
            f"WITH gone AS (DELETE FROM ONLY {name} WHERE {window} AND {where} RETURNING {which} AS rule) "
            "SELECT rule, count(*) FROM gone GROUP BY 1"
        )
        for start in range(0, blocks, WINDOW):
            if self.stop():
                return
            with self.conn.transaction():
                partitions.settings(self.conn, partitions.DROP_LOCK_TIMEOUT)
                place = [f"({start},0)", f"({start + WINDOW},0)"]
                found = self.conn.execute(query, [*place, *due.values, *due.its], prepare=False).fetchall()
            yield from found

    def _archived(self, due: Due, store: archive.Archive) -> Iterator[tuple[int, int]]:
        """As `sweep`: each day's rows go to files of their own, so many in a transaction as a file gets."""
        name = due.name
        clock = quote(key_of(due.table)[0])
        label = name.partition('"."')[2].removesuffix('"')
        span = f"{clock} >= %s::timestamptz AND {clock} < %s::timestamptz"
        for first, end in days(self.conn, name, clock, None, due.ends):
            source = Source(self.schema, due.table, name, label, first, end, whole=False)
            chosen = f"SELECT ctid FROM ONLY {name} WHERE {span} AND {due.where} LIMIT {archive.CHUNK}"
            number = archive.CHUNK
            while number >= archive.CHUNK and not self.stop():
                with self.conn.transaction():
                    partitions.settings(self.conn, partitions.DROP_LOCK_TIMEOUT)
                    delete = f"DELETE FROM ONLY {name} WHERE ctid = ANY(ARRAY({chosen}))"
                    found = store.deleted(source, delete, [first, end, *due.values], due.which, due.its)
                crashpoints.reach("deleted")
                number = found.total()
                yield from found.items()


def reason(error: Exception) -> str:
    """Return why something failed in one line, without row content."""
    if isinstance(error, psycopg.errors.LockNotAvailable):
        return "an open transaction still uses it"
    if isinstance(error, psycopg.Error) and error.diag.message_primary:
        hint = " (give it to the owner of the tables to do)" if error.sqlstate == "42501" else ""
        return " ".join(error.diag.message_primary.split()) + hint
    return " ".join(str(error).split()) or type(error).__name__
