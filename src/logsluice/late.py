"""
Late rows: stored too long after they were made to be shown by who follows a table. Whose they are, how many, and where.

What a stream's `stored` has risen by beyond the rows that a wide look found is late (following.py). `stored` does not
say in which table: a stream that was never seen in this one is looked for once, in the other tables, then in the older
rows of this one. Late rows are told for each stream when no more of them come, and else once a window.

Connections are in a transaction that is REPEATABLE READ. Where the server ends a search because it takes too long, the
rows are told all the same, without the place.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import psycopg

from logsluice import conditions
from logsluice.conditions import between, rows

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence
    from datetime import datetime

    from psycopg import sql

    from logsluice.snapshots import Snapshot

_DAY = timedelta(days=1)  # they are looked for in the last day first, then in all partitions


@dataclass(frozen=True)
class Late:
    """
    Rows that were stored too late to be shown: of one stream, `count` of them.

    `query.iterate(late.filter, table=late.table, since=late.since, until=late.until)` finds them. `found`: how many
    rows it finds. It is more than `count` where a stream was late, caught up, and was late again: some were shown.
    None where the server took too long to count them; then `since` is None, too, and `filter` names the stream alone.
    """

    table: str
    stream: int
    count: int
    found: int | None
    since: datetime | None
    until: datetime
    seqs: tuple[int, int] | None  # the lowest and the highest

    @property
    def filter(self) -> str:
        """What finds them, in the grammar of filters."""
        seqs = "" if self.seqs is None else f" seq>={self.seqs[0]} seq<={self.seqs[1]}"
        return f"stream={self.stream}{seqs}"


@dataclass(frozen=True)
class _Run:
    """Late rows of a stream that were not told yet."""

    base: Snapshot  # they were stored after this one,
    first: datetime
    count: int
    before: datetime  # are older than this,
    end: Snapshot  # and were stored up to here


class LateRows:
    """The late rows of one table: of which streams they are, and those that were not told yet."""

    def __init__(self, table: str, source: sql.Composable, others: Sequence[sql.Composable], window: timedelta) -> None:
        self.ours: set[int] = set()  # streams of this table, as far as known,
        self.foreign: set[int] = set()  # and of others
        self._table, self._source, self._others, self._window = table, source, others, window
        self._last: Snapshot | None = None  # of the last look
        self._runs: dict[int, _Run] = {}
        self._told: dict[int, datetime] = {}

    def of_this_table(self, conn: psycopg.Connection[Any], streams: Collection[int], begin: datetime) -> set[int]:
        """Return which of these streams are; one that is not known is looked for once. `begin`: of the window."""
        self._tell_apart(conn, set(streams) - self.ours, begin)
        return self.ours.intersection(streams)

    def looked(self, snapshot: Snapshot, floor: datetime | None, late: Mapping[int, int]) -> None:
        """Take note of a look that is over: what was late in it, by stream, is older than `floor`."""
        for stream, count in late.items():
            assert self._last is not None
            assert floor is not None
            run = self._runs.get(stream) or _Run(self._last, snapshot.now, 0, floor, snapshot)
            self._runs[stream] = replace(run, count=run.count + count, before=floor, end=snapshot)
        self._last = snapshot

    def _tell_apart(self, conn: psycopg.Connection[Any], left: set[int], begin: datetime) -> None:
        """Find out which of these streams are of this table: once for each, as long as it is followed."""
        for other in self._others:
            if not left:
                return
            there = conditions.made("SELECT DISTINCT r.stream FROM {} r WHERE {} AND r.stream = ANY (%s)",
                                    other, between(begin, None), values=[list(left)])  # fmt: skip
            found = {row[0] for row in rows(conn, there)}
            self.foreign |= found
            left -= found
        if not left:
            return
        assert self._last is not None
        try:
            with conn.transaction():
                for floor in (begin - _DAY, None):
                    here = conditions.made(
                        "SELECT DISTINCT r.stream FROM {} r WHERE {} AND {} AND r.stream = ANY (%s)",
                        self._source, self._last.after(), between(floor, begin), values=[list(left)],
                    )  # fmt: skip
                    found = {row[0] for row in rows(conn, here)}
                    self.ours |= found
                    left -= found
                    if not left:
                        return
            self.foreign |= left  # of a table that is in another schema, or that this role may not read
        except psycopg.errors.QueryCanceled:
            self.ours |= left  # better said than kept quiet

    def untold(self, *, at_end: bool) -> list[int]:
        """Return the streams whose late rows are to be told: when no more of them come, else once a window."""
        if self._last is None:
            return []
        last, now = self._last, self._last.now
        return [
            stream for stream, run in self._runs.items()
            if at_end or (
                (run.end is not last or now - run.first >= self._window)
                and (stream not in self._told or now - self._told[stream] >= self._window)
            )
        ]  # fmt: skip

    def measure(self, conn: psycopg.Connection[Any], stream: int) -> Late:
        """Find the late rows of a stream: where they begin and end, by a search of the older rows."""
        run = self._runs[stream]
        try:
            with conn.transaction():
                return self._measured(conn, stream, run)
        except psycopg.errors.QueryCanceled:
            return Late(self._table, stream, run.count, None, None, run.before, None)

    def _measured(self, conn: psycopg.Connection[Any], stream: int, run: _Run) -> Late:
        for floor in (run.before - _DAY, None):
            query = conditions.made(
                "SELECT count(*), min(r.ts), max(r.ts), min(r.seq), max(r.seq) FROM {} r "
                "WHERE {} AND NOT {} AND {} AND r.stream = %s",
                self._source, run.base.after(), run.end.after(), between(floor, run.before), values=[stream],
            )  # fmt: skip
            found, first, last, *seqs = rows(conn, query)[0]
            if found >= run.count:
                break
        if not found:  # they are gone already
            return Late(self._table, stream, run.count, 0, None, run.before, None)
        until = last + timedelta(microseconds=1)
        query = conditions.made(
            "SELECT count(*) FROM {} r WHERE {} AND r.stream = %s AND r.seq BETWEEN %s AND %s",
            self._source, between(first, until), values=[stream, *seqs],
        )  # fmt: skip
        found = rows(conn, query)[0][0]
        return Late(self._table, stream, run.count, found, first, until, (seqs[0], seqs[1]))

    def told(self, late: Late) -> None:
        """Take note that late rows were told."""
        assert self._last is not None
        del self._runs[late.stream]
        self._told[late.stream] = self._last.now
