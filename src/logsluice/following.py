"""
Stored records, followed: each once, as they are stored; those that are too late to be shown are counted.

A look reads the rows that were stored since the last one (snapshots.py), by the index on `ts`:

1. Rows are shown that were stored at most `window` after they were made. Older ones are *late*.
2. Mostly what is new is seconds old. A *narrow* look reads the last seconds alone, and the tables of streams proves
   that this was all: `stored` of each stream, read in the same snapshot, has risen by the rows that were counted.
3. Where it has risen by more, or after a sixth of the window, the look is *wide*: it reads the whole window, of all
   that was stored since the last wide look. Rows without a stream (restored, or inserted by hand) are found by it.
4. What a stream has stored beyond the rows of a wide look is late (late.py).
5. A row that may be found again by a later look is kept by its identity until it cannot be; that is what `xmin` below
   `oldest` means. All other state is two snapshots and a number for each stream.

Without the right to read `stream` every look is wide, and nothing is known of late rows. A view has no `xmin`: there
each look reads the window anew and keeps all its identities. Nothing here waits, or knows how the connection was made.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING, Any, NamedTuple

from psycopg import sql
from psycopg.rows import tuple_row

from logsluice import conditions, snapshots
from logsluice.columns import in_query
from logsluice.conditions import between, rows
from logsluice.errors import LogsluiceError
from logsluice.late import LateRows
from logsluice.records import Key, read_json

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    import psycopg

    from logsluice.conditions import Condition
    from logsluice.records import Plan, Record
    from logsluice.snapshots import Snapshot

PAGE = 10_000  # rows read in one transaction: 2 s of a busy system, 10 MB of ordinary ones
# Of the window, between wide looks at least: rows without a stream are shown so late, and rows are late by so much more
# than the window before they are not shown. 10 s of a minute.
WIDE = 1 / 6
# What a narrow look reads at least: a batch waits for `linger` (0.5 s), and a slow one takes a second.
NARROW = timedelta(seconds=2)
_RIGHTS = """
    SELECT c.relname, c.relkind IN ('r', 'p') AND has_table_privilege(c.oid, 'SELECT')
                      AND NOT row_security_active(c.oid)
      FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
     WHERE n.nspname = %s AND c.relname = ANY (%s::text[])
"""


class Counted(NamedTuple):
    """The new rows of a stream that a look found."""

    rows: int
    oldest: datetime


@dataclass
class Look:
    """One look: what it reads, in pages, and what is known when all of them were."""

    snapshot: Snapshot
    base: Condition  # what is new
    floor: datetime | None
    wide: bool
    stored: dict[int, int] = field(default_factory=dict)  # of streams that moved
    late: dict[int, int] = field(default_factory=dict)
    last: Key | None = None  # of the page before
    again: set[tuple[int, int]] = field(default_factory=set)  # rows that a later look may find


class Page(NamedTuple):
    """What `read` found and `accept` takes in."""

    look: Look
    found: Sequence[tuple[Record, bool]]  # whether a later look may find it, too
    end: bool


class Follower:
    """
    It follows one query. `read` needs a transaction that is REPEATABLE READ, and changes nothing: where the connection
    breaks, the same is read again. `accept` takes in what was read, once the transaction is over.
    """

    def __init__(
        self, conn: psycopg.Connection[Any], plan: Plan, schema: str, table: str, others: Sequence[str], *,
        since: datetime | None, last: int | None, window: timedelta,
    ) -> None:  # fmt: skip
        self._plan, self.window = plan, window
        self._since, self._last = since, last
        self._streams = sql.Identifier(schema, "stream")
        elsewhere = [sql.SQL(in_query(schema, one)) for one in others if one != table]
        self.late = LateRows(table, plan.source, elsewhere, window)
        rights = dict(rows(conn, conditions.made("{}", sql.SQL(_RIGHTS), values=[schema, [table, "stream"]])))
        self._dated = rights.get(table, False)  # its rows say which transaction stored them
        self.counts_late = self._dated and rights.get("stream", False)
        self._base: Snapshot | None = None  # of the last look
        self._wide: Snapshot | None = None  # of the last wide one
        self._shown: set[tuple[int, int]] = set()
        self._stored: dict[int, int] = {}
        self._reach = NARROW
        self._under_way: Look | None = None

    def read(self, conn: psycopg.Connection[Any]) -> Page:
        """Begin a look, or read the next page of the one that is under way."""
        look = self._under_way or self._begin(conn)
        if self._base is not None or self._last is None:
            # From `since` on; without it there is nothing to show yet.
            found = self._select(conn, look, PAGE) if self._base is not None or self._since is not None else []
            return Page(look, found, end=len(found) < PAGE)
        found = self._select(conn, look, self._last, backwards=True) if self._last else []
        return Page(look, found[::-1], end=True)

    def accept(self, page: Page) -> list[Record]:
        """Take in a page, and return what is to be shown of it."""
        look = page.look
        new = []
        for record, again in page.found:
            key = (record.stream, record.seq)
            if key not in self._shown:
                new.append(record)
            if not look.wide:
                self._shown.add(key)
            elif again:
                look.again.add(key)
        self._under_way = None if page.end else look
        if not page.end:
            look.last = page.found[-1][0].key
            return new
        if self._base is None and not self._dated:
            # What was there before cannot be told from what comes.
            self._since = self._since or look.snapshot.now
        if look.wide:
            self._wide, self._shown = look.snapshot, look.again
        self.late.looked(look.snapshot, look.floor, look.late)
        self._base = look.snapshot
        self._stored.update(look.stored)
        return new

    def _begin(self, conn: psycopg.Connection[Any]) -> Look:
        """Decide what a look reads."""
        snapshot = snapshots.take(conn)
        if self._base is None or self._wide is None:
            stored = self._moved(conn, None)
            return Look(snapshot, snapshots.EVER, None, wide=True, stored=stored)
        if snapshot.next < self._base.next:  # a transaction's number was given again: xmin says nothing any more
            raise LogsluiceError("the server is another one now, or has lost transactions: follow anew")
        window = self._wide.now - self.window
        if not self.counts_late:
            return Look(snapshot, self._new(self._wide), window, wide=True)
        moved = self._moved(conn, self._base)
        risen = {
            stream: rise for stream, now in moved.items()
            if stream not in self.late.foreign and (rise := self._rise(stream, now)) > 0
        }  # fmt: skip
        if snapshot.now - self._wide.now < self.window * WIDE:
            floor = max(window, self._base.now - self._reach)
            counted = self._count(conn, floor) if risen else {}
            if all(stream in counted and counted[stream].rows >= rise for stream, rise in risen.items()):
                new = self._new(self._base)
                return Look(snapshot, new, floor, wide=False, stored=moved)
        counted = self._count(conn, window)
        self._reach = self._reached(counted)
        lacking = {
            stream: lack for stream, rise in risen.items()
            if (lack := rise - (counted[stream].rows if stream in counted else 0)) > 0
        }  # fmt: skip
        self.late.ours |= counted.keys()
        late = {stream: lacking[stream] for stream in self.late.of_this_table(conn, lacking, window)}
        return Look(snapshot, self._new(self._wide), window, wide=True, stored=moved, late=late)

    def _rise(self, stream: int, now: int) -> int:
        """Return how many rows a stream has stored since; one that fell was deleted, and has begun anew."""
        before = self._stored.get(stream, 0)
        return now - before if now >= before else now

    def _reached(self, counted: dict[int, Counted]) -> timedelta:
        """Return how far back a narrow look must go, as things are: as far as the rows of this one, and a bit."""
        assert self._base is not None
        oldest = min((one.oldest for one in counted.values()), default=self._base.now)
        return min(max(self._base.now - oldest, timedelta()) + NARROW, self.window)

    def _new(self, base: Snapshot) -> Condition:
        return base.maybe_after() if self._dated else snapshots.EVER

    def _select(
        self, conn: psycopg.Connection[Any], look: Look, limit: int, *, backwards: bool = False
    ) -> list[tuple[Record, bool]]:
        plan = self._plan
        bounds = [look.base, between(look.floor, None), between(self._since, None)]
        if look.last is not None:
            bounds.append(conditions.made("r.ts >= %s AND (r.ts, r.stream, r.seq) > (%s, %s, %s)",
                                          values=[look.last.ts, *look.last]))  # fmt: skip
        # Only what the next wide look reads can be found again.
        again = conditions.made(
            "({} AND r.ts >= %s)", self._new(look.snapshot), values=[look.snapshot.now - self.window]
        )
        asked = plan._replace(
            columns=sql.SQL("{}, {}").format(plan.columns, again.sql), where=conditions.all_of([*bounds, plan.where])
        )
        cursor = conn.cursor(row_factory=tuple_row)
        read_json(cursor)
        text, values = asked.select(backwards=backwards, limit=limit)
        cursor.execute(text, [*again.values, *values])
        return [(plan.record(row), row[-1]) for row in cursor]

    def _moved(self, conn: psycopg.Connection[Any], base: Snapshot | None) -> dict[int, int]:
        """Return `stored` of the streams that moved since, of all without a `base`."""
        if not self.counts_late:
            return {}
        new = snapshots.EVER if base is None else base.maybe_after()
        return dict(rows(conn, conditions.made("SELECT r.stream, r.stored FROM {} r WHERE {}", self._streams, new)))

    def _count(self, conn: psycopg.Connection[Any], floor: datetime) -> dict[int, Counted]:
        """Count the new rows from `floor` on, whatever the filter is, by stream."""
        assert self._base is not None
        query = conditions.made(
            "SELECT r.stream, count(*), min(r.ts) FROM {} r WHERE {} AND {} GROUP BY r.stream",
            self._plan.source, between(floor, None), self._base.after(),
        )  # fmt: skip
        return {stream: Counted(*rest) for stream, *rest in rows(conn, query)}
