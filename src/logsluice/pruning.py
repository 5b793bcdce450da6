"""
What one run of maintenance takes from one table, and how: whole partitions, and rows a window at a time.

The rules are those of maintenance.py. A partition goes whole when every row in it is due, whatever rule it is of, or
when nothing is left in it. Rows go where a rule is finer than the table, where a hold keeps the partition, and where a
partition is so long that its first rows would be kept for more than a day too long.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import psycopg

from logsluice import archive, crashpoints, holds, partitions, retention, rollup
from logsluice.archive.source import Source, days, key_of, of_partition
from logsluice.catalogue import scalar
from logsluice.columns import quote
from logsluice.errors import LogsluiceError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from datetime import datetime

    from logsluice.partitions import Partition
    from logsluice.retention import LogTable, Rule, Rules

WINDOW = 256  # blocks of 8 KiB that one transaction looks at: about 5,000 rows, some 20 ms
DAY = timedelta(days=1)  # a partition up to so long is left until all of it is due; of longer ones rows go before


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


@dataclass
class Pruning:
    """Pruning one table."""

    run: Job
    table: LogTable
    finer: list[Rule]
    base: Rule | None

    def __post_init__(self) -> None:
        rules = [*self.finer, *([self.base] if self.base is not None else [])]
        self.gone = [Gone(self.table.name, rule.key, rule.keep) for rule in rules]
        self.run.report.gone += self.gone
        self.counted: rollup.State | None = None  # what the roll-up had counted when it began

    def prune(self) -> None:
        """Do it."""
        seen = rollup.state(self.run.conn, self.run.schema) if self.table.name == "logs" else None
        if seen is not None and not self.run.report.dry_run:
            if not seen.full:
                raise LogsluiceError("the roll-up has not counted all of its rows yet")
            self.counted = seen
        keeps = [one.keep for one in self.gone]
        if not self.table.partitioned:
            self._plain(f"{quote(self.run.schema)}.{quote(self.table.name)}")
            return
        # Before this moment every row is due, whatever rule it is of.
        finite = [keep for keep in keeps if keep is not None]
        whole = self._cut(max(finite)) if self.base is not None and len(finite) == len(keeps) else None
        parts = partitions.listed(self.run.conn, self.run.schema, self.table.name)
        old = [part for part in parts if whole is not None and part.upper is not None and part.upper <= whole]
        blocked = False  # PostgreSQL has one pending DETACH a table: until it is finished, every other is refused
        for part in sorted(old, key=lambda one: one.state == "attached"):
            if not self.run.stop() and not blocked:
                blocked = self._whole(part)
        for part in parts:
            if part not in old and not self.run.stop() and (self._begun(part) or self._partly(part)) and not blocked:
                blocked = self._whole(part, emptied=True)

    def _begun(self, part: Partition) -> bool:
        """Whether dropping it was begun and its rows are not due: it is a partition again, or nobody ever sees them."""
        return part.state != "attached" and bool(self.gone) and not self.run.report.dry_run

    def _plain(self, name: str) -> None:
        """Delete what is due in a table without partitions, if its oldest row is."""
        cuts = [self._cut(one.keep) for one in self.gone if one.keep is not None]
        oldest = scalar(self.run.conn, f"SELECT min(ts) FROM {name}")  # by the index on ts
        if cuts and oldest is not None and oldest < max(cuts):
            self._rows(name, None, None, all_due=True)

    def _cut(self, keep: float) -> datetime:
        return self.run.now - timedelta(seconds=keep)

    def _whole(self, part: Partition, *, emptied: bool = False) -> bool:
        """Drop a partition unless something keeps it; whether no other can be dropped before it."""
        run, conn, attached = self.run, self.run.conn, part.state == "attached"
        held = self._held(part)
        if held is not None and attached:
            run.report.held.append(f"{part.name}: {held}")
            self._rows(part.full_name, part.lower, part.upper, all_due=True)
            return False
        try:
            if attached:
                self._look(part, emptied=emptied)
            if not run.report.dry_run:
                self._drop(part, emptied=emptied)
        except partitions.KeptError as why:
            run.report.skipped.append(f"{part.name} is not dropped: {why}")
            return False
        except psycopg.Error as error:
            if conn.closed:
                raise
            run.report.skipped.append(f"{part.name} is not dropped, it is tried again next time: {reason(error)}")
            now = partitions.listed(conn, run.schema, self.table.name)
            return any(one.state == "pending" for one in now)
        self._went(part, 0 if emptied else part.rows)  # those of an emptied one were counted as they went
        return False

    def _went(self, part: Partition, rows: int) -> None:
        gone = self.gone[-1]
        gone.partitions.append(part.name)
        gone.partition_rows += rows
        gone.size += part.size

    def _drop(self, part: Partition, *, emptied: bool) -> None:
        """Drop a partition; with an archive only when all of it is there, what came in while it was written, too."""
        run = self.run
        source = of_partition(run.schema, self.table.name, part)
        if run.store is not None and part.state == "attached":
            run.store.whole(source)

        def before() -> None:
            # Nobody adds a row any more. What came since the first look must not go with the rest.
            held = self._held(part)
            if held is not None:
                raise partitions.KeptError(held)
            self._look(part, emptied=emptied)
            if run.store is not None:
                run.store.whole(source, locked=True)

        partitions.drop(run.conn, run.schema, part, table=self.table.name, before=before)

    def _held(self, part: Partition) -> str | None:
        """Return which hold keeps rows of it, as a sentence."""
        held = self.run.holds(self.table.name, part.lower, part.upper)
        name = holds.keeping(self.run.conn, held, part.full_name, self.table.columns)
        return None if name is None else f"hold {name!r} keeps rows of it"

    def _look(self, part: Partition, *, emptied: bool) -> None:
        """Raise `KeptError` for rows that may not go: no rule was asked about them, or the roll-up lacks them."""
        if emptied and self._any(part):
            raise partitions.KeptError("it has rows that are not due or came late")
        if self.counted is not None and rollup.lacks(self.run.conn, self.counted, part.full_name):
            raise partitions.KeptError("rows came that the roll-up has not counted yet")

    def _any(self, part: Partition) -> bool:
        return scalar(self.run.conn, f"SELECT true FROM ONLY {part.full_name} LIMIT 1") is not None

    def _partly(self, part: Partition) -> bool:
        """Delete what is due in a partition that stays; whether it is empty now, and past its table's own rule."""
        base = self.base.keep if self.base is not None else None
        past = base is not None and part.upper is not None and part.upper <= self._cut(base)
        long = part.lower is None or part.upper is None or part.upper - part.lower > DAY
        cuts = [self._cut(one.keep) for one in self.finer if one.keep is not None]
        if base is not None and (past or long):
            cuts.append(self._cut(base))
        if not any(part.lower is None or part.lower < cut for cut in cuts):
            return False
        taken = self._rows(part.full_name, part.lower, part.upper, all_due=past or long)
        if past and self.run.report.dry_run:  # the rows are there: are they all that there is?
            query = f"SELECT count(*) FROM ONLY {part.full_name}"
            if self.run.conn.execute(query, prepare=False).fetchone() == (taken,) and self._held(part) is None:
                self._went(part, 0)
            return False
        return past and not self._any(part)

    def _rows(self, name: str, lower: datetime | None, upper: datetime | None, *, all_due: bool) -> int:
        """Delete the rows that are due and return how many; with `all_due` also those of the table's own rule."""
        cases, which, its = ["CASE"], ["CASE"], []
        cuts: list[Any] = []
        for number, rule in enumerate(self.finer):
            value = [] if rule.value is None else [rule.value]
            cases.append(f"WHEN {rule.where} THEN " + ("false" if rule.keep is None else "ts < %s::timestamptz"))
            cuts += value + ([] if rule.keep is None else [self._cut(rule.keep)])
            which.append(f"WHEN {rule.where} THEN {number}")
            its += value
        base = self.base.keep if self.base is not None and all_due else None
        if base is not None:
            cuts.append(self._cut(base))
        cases.append("ELSE " + ("false" if base is None else "ts < %s::timestamptz") + " END")
        which.append(f"ELSE {len(self.finer)} END")
        if base is None and all(rule.keep is None for rule in self.finer):
            return 0
        # Without WHEN a CASE is no SQL.
        due_sql, which_sql = (" ".join(cases), " ".join(which)) if self.finer else ("ts < %s::timestamptz", "0")
        kept, kept_values = holds.any_of(self.run.holds(self.table.name, lower, upper), self.table.columns)
        known, snapshot = self.counted.known() if self.counted is not None else ("true", [])
        where = f"({due_sql}) AND {kept} IS NOT TRUE AND {known}"
        ends = max(
            [self._cut(one.keep) for one in (*self.finer, self.base) if one is not None and one.keep is not None]
        )
        due = Due(self.table.name, name, where, [*cuts, *kept_values, *snapshot], which_sql, its, ends)
        taken = 0
        for number, rows in self.run.sweep(due):
            self.gone[number].rows += rows
            taken += rows
        return taken


def reason(error: Exception) -> str:
    """Return why something failed in one line, without row content."""
    if isinstance(error, psycopg.errors.LockNotAvailable):
        return "an open transaction still uses it"
    if isinstance(error, psycopg.Error) and error.diag.message_primary:
        hint = " (give it to the owner of the tables to do)" if error.sqlstate == "42501" else ""
        return " ".join(error.diag.message_primary.split()) + hint
    return " ".join(str(error).split()) or type(error).__name__
