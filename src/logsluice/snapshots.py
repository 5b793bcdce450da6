"""
Which rows came since: what a reader knows of PostgreSQL's transactions.

`pg_current_snapshot()` says which transactions are over at a moment, and each row says in `xmin` which one stored it.
So what is new since an earlier moment is known exactly, whatever the rows' times, their numbers and the order of the
commits are. Neither needs a right besides SELECT.

The numbers are compared by `age`, in 32 bits, as `xmin` has them: right for 2^31 transactions, which take days.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from psycopg.rows import tuple_row

from logsluice import conditions

if TYPE_CHECKING:
    from datetime import datetime

    import psycopg

    from logsluice.conditions import Condition

_WRAP = 1 << 32  # a snapshot's numbers have 64 bits, those of rows have the lower half
EVER = conditions.all_of([])


class Snapshot(NamedTuple):
    """What was committed at a moment: a row is seen if its transaction is below `next` and not among `running`."""

    now: datetime  # the server's clock
    oldest: int  # all transactions below were over
    next: int  # none from here on had begun
    running: tuple[int, ...]

    def maybe_after(self) -> Condition:
        """
        Return what holds for every row stored since, and for a few from before, if transactions ran.

        `running` has no subtransactions (savepoints), so a row of one that ran looks as if it had been there.
        """
        return conditions.made("age(r.xmin) <= age(%s::text::xid)", values=[_text(self.oldest)])

    def after(self) -> Condition:
        """Return what holds for exactly the rows stored since, but for those of savepoints. No handler has any."""
        running = "{" + ",".join(map(_text, self.running)) + "}"
        return conditions.made(
            "(age(r.xmin) <= age(%s::text::xid) OR r.xmin = ANY (%s::text::xid[]))", values=[_text(self.next), running]
        )


def take(conn: psycopg.Connection[Any]) -> Snapshot:
    """Return the snapshot of a transaction that is REPEATABLE READ."""
    cursor = conn.cursor(row_factory=tuple_row)
    cursor.execute("SELECT clock_timestamp(), pg_current_snapshot()::text")
    now, text = cursor.fetchone()  # type: ignore[misc]  # one row
    oldest, following, running = text.split(":")
    return Snapshot(now, int(oldest), int(following), tuple(map(int, running.split(","))) if running else ())


def _text(number: int) -> str:
    return str(number % _WRAP)
