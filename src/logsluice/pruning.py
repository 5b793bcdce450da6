"""
What one run of maintenance takes from one table: whole partitions, and rows (sweep.py).

The rules are those of maintenance.py. A partition goes whole when every row in it is due, whatever rule it is of, or
when nothing is left in it. Rows go where a rule is finer than the table, where a hold keeps the partition, and where a
partition is so long that its first rows would be kept for more than a day too long.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import psycopg

from logsluice import holds, partitions, rollup
from logsluice.archive.source import of_partition
from logsluice.catalogue import scalar
from logsluice.columns import quote
from logsluice.errors import LogsluiceError
from logsluice.sweep import Due, Gone, Job, reason

if TYPE_CHECKING:
    from datetime import datetime

    from logsluice.partitions import Partition
    from logsluice.retention import LogTable, Rule

DAY = timedelta(days=1)  # a partition up to so long is left until all of it is due; of longer ones rows go before


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
