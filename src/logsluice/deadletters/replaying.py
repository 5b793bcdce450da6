"""Dead letters sent again: which, in one transaction for each `CHUNK`, and what became of each. Rules 1 to 4."""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

import psycopg

from logsluice import partitions, privileges, types
from logsluice.catalogue import relation
from logsluice.columns import Table
from logsluice.deadletters.letters import DAMAGED, SELECT, DeadLetter, Id, changing, is_line, letter_of, named, table_of
from logsluice.delivery import Failure, Verdict, decide
from logsluice.errors import LogsluiceError
from logsluice.sinks.failures import failure_of

if TYPE_CHECKING:
    from collections.abc import Collection

# Reasons that can go without a change of the row: the row that a foreign key names is stored later, a check is mended.
HEALS = ("23503", "23514")
FIRST_TRY = timedelta(minutes=1)  # after the rejection; then 2 and 4 minutes after the try before
MOST_TRIES = 3  # what has not healed after 7 minutes waits for a person
CHUNK = 100  # rows in one transaction: 400 MB at `max_frame_bytes`, the most that a frame has
_LOCK = "FOR UPDATE SKIP LOCKED"
_AGAIN = "; sent again: "  # between the reason of a damaged one and what its table said of it
_TARGET = re.compile(r'"((?:[^"]|"")+)"\."((?:[^"]|"")+)"')


@dataclass
class Replayed:
    """What became of the rows of a replay. Each reason is one line without row content."""

    stored: list[Id] = field(default_factory=list)
    refused: list[tuple[Id, str]] = field(default_factory=list)  # by their table; the reason is in dead_letter too
    held: list[tuple[Id, str]] = field(default_factory=list)  # not the row's fault, or not sent; unchanged
    stuck: int = 0  # of the refused: given up now

    def add(self, more: Replayed) -> None:
        """Count what became of more rows."""
        self.stored += more.stored
        self.refused += more.refused
        self.held += more.held
        self.stuck += more.stuck


def replay(
    conn: psycopg.Connection[Any],
    home: str = "logsluice",
    *,
    now: datetime,
    ids: Collection[Id] | None = None,
    due: bool = False,
    even_damaged: bool = False,
) -> Replayed:
    """
    Send dead letters again and return what became of each. What is stored is marked, and never sent twice.

    All that wait, or those named by `ids`, or, with `due`, those whose reason can heal (`HEALS`) and whose next try is
    due at `now`; a try that fails makes the next one due later, the third gives up. What is from a damaged block of a
    journal is sent only when it is named and `even_damaged` is true. A transaction takes 100 rows: an error of the
    connection leaves those of its transaction as they were, and those before it stored.
    """
    what = _Selection(home, now, ids=ids, due=due, even_damaged=even_damaged)
    done = Replayed()
    while True:
        step = _step(conn, what)
        done.add(step.done)
        again = _with_partition(conn, home, step, done)
        if again:
            second = _step(conn, replace(what, ids=again, after=None))
            done.add(second.done)
            done.held += [(one, why) for one, why, _ in second.unplaced]
        if step.last is None:
            return done
        what = replace(what, after=step.last)


@dataclass(frozen=True)
class _Selection:
    home: str
    now: datetime
    ids: Collection[Id] | None = None
    due: bool = False
    even_damaged: bool = False
    after: tuple[str, int, int] | None = None  # what the transaction before came to

    def where(self) -> tuple[str, list[Any]]:
        parts = ["replayed_at IS NULL"]
        values: list[Any] = []
        if self.ids is not None:
            part, values = named(self.ids)
            parts.append(part)
        if self.ids is None or not self.even_damaged:
            parts.append(f"NOT {DAMAGED}")
        if self.due:
            # Never `at + 1 minute`: one row with the last moment that PostgreSQL knows would be an error for all.
            parts.append("stuck IS NULL AND sqlstate = ANY(%s)")
            parts.append("CASE WHEN due IS NULL THEN at <= %s ELSE due <= %s END")
            values += [list(HEALS), self.now - FIRST_TRY, self.now]
        if self.after is not None:
            parts.append("(at, stream, position) > (%s::timestamptz, %s, %s)")
            values += self.after
        return " AND ".join(parts), values


@dataclass
class _Step:
    """One transaction."""

    done: Replayed = field(default_factory=Replayed)
    unplaced: list[tuple[Id, str, datetime | None]] = field(default_factory=list)  # no partition takes them
    last: tuple[str, int, int] | None = None  # where the next transaction goes on; None: there is no more


@dataclass(frozen=True)
class _Row:
    letter: DeadLetter
    ctid: str  # where it lies: it stays there, as we hold it locked


def _step(conn: psycopg.Connection[Any], what: _Selection) -> _Step:
    step = _Step()
    where, values = what.where()
    with changing(conn):
        # Not called at: ORDER BY would mean the text.
        found = conn.execute(
            f"{SELECT}, row, ctid::text, at::text AS moment FROM {table_of(what.home)} WHERE {where} "
            f"ORDER BY at, stream, position LIMIT {CHUNK} {_LOCK}",
            values,
            prepare=False,
        ).fetchall()
        rows = [_Row(letter_of(row[:-2]), row[-2]) for row in found]
        groups: dict[tuple[str, tuple[str, ...] | None], list[_Row]] = {}
        for row in rows:
            groups.setdefault((row.letter.target, row.letter.columns), []).append(row)
        for group in groups.values():
            _send_group(conn, what, group, step)
    if len(rows) == CHUNK:
        step.last = (found[-1][-1], *rows[-1].letter.id)
    return step


def _send_group(conn: psycopg.Connection[Any], what: _Selection, group: list[_Row], step: _Step) -> None:
    """Send rows of one table with the same columns, mark what was stored, write down why the others were not."""
    target = _looked_up(conn, what.home, group[0].letter)
    if isinstance(target, str):
        step.done.held += [(row.letter.id, target) for row in group]
        return
    whole = [row for row in group if is_line(row.letter.row)]
    why = "its bytes are not one line of COPY text: write its row anew with SQL, or drop it"
    step.done.held += [(row.letter.id, why) for row in group if not is_line(row.letter.row)]
    refused = _send(conn, target, whole)
    failed = {row.ctid for row, _ in refused}
    stored = [row for row in whole if row.ctid not in failed]
    if stored:
        _mark(conn, what, stored)
        step.done.stored += [row.letter.id for row in stored]
    fix = _grants(conn, what.home, target) if any(failure.sqlstate == "42501" for _, failure in refused) else ""
    for row, failure in refused:
        one = row.letter.id
        if _no_partition(failure):
            ours = (target.schema, target.table) == (what.home, "logs")
            step.unplaced.append((one, failure.message, failure.moment if ours else None))
        elif decide(failure) is Verdict.BLOCKED:
            step.done.held.append((one, f"{target.name}: {failure.message}{fix}"))
        else:
            step.done.refused.append((one, f"{target.name}: {failure.message}"))
            step.done.stuck += _put_back(conn, what, row, failure)


def _looked_up(conn: psycopg.Connection[Any], home: str, letter: DeadLetter) -> Table | str:
    """Return where the rows go, by names that are in the catalogue; or why they may not go there."""
    if letter.columns is None:
        return "its columns are not known: say them with UPDATE ... dead_letter SET columns = ..., or drop it"
    found = _TARGET.fullmatch(letter.target)
    where, name = (one.replace('""', '"') for one in found.groups()) if found else ("", "")
    if relation(conn, where, name) is None:
        return f"there is no table {letter.target}: make it, or drop these dead letters"
    system = where.startswith("pg_") or where == "information_schema"
    if system or (where == home and name in types.OURS - {"logs"}):
        return f"{letter.target} is no table that records go to: no handler made this dead letter, drop it"
    return Table(home, where, name, letter.columns)


def _send(conn: psycopg.Connection[Any], target: Table, rows: list[_Row]) -> list[tuple[_Row, Failure]]:
    """COPY rows, halving what is refused down to the single row; return those that stay dead. In a savepoint each."""
    if not rows:
        return []
    try:
        with conn.transaction():
            with conn.cursor().copy(target.copy.encode()) as copy:
                copy.write(b"".join(row.letter.row for row in rows))
            conn.execute("SET CONSTRAINTS ALL IMMEDIATE", prepare=False)  # a deferred one fails here, not in COMMIT
    except psycopg.Error as error:
        failure = failure_of(error, target.table)
        verdict = decide(failure)
        if verdict in {Verdict.RETRY, Verdict.SHRINK}:
            raise  # the connection, a lock, a time limit: says nothing about the rows
        if len(rows) == 1 or (verdict is Verdict.BLOCKED and not _no_partition(failure)):
            return [(row, failure) for row in rows]
        half = len(rows) // 2
        return _send(conn, target, rows[:half]) + _send(conn, target, rows[half:])
    return []


def _no_partition(failure: Failure) -> bool:
    return failure.sqlstate == "23514" and failure.constraint is None


def _grants(conn: psycopg.Connection[Any], home: str, target: Table) -> str:
    lacks = privileges.lacking(conn, target.schema, target.table, ("INSERT",), home=home)
    return "".join(f"; {lack.fix};" for lack in lacks)


def _mark(conn: psycopg.Connection[Any], what: _Selection, rows: list[_Row]) -> None:
    cursor = conn.execute(
        f"UPDATE {table_of(what.home)} SET replayed_at = %s, due = NULL, stuck = NULL WHERE ctid = ANY(%s::tid[])",
        [what.now, [row.ctid for row in rows]],
        prepare=False,
    )
    if cursor.rowcount != len(rows):  # unmarked they would be sent again
        raise LogsluiceError(
            f"{table_of(what.home)}: rows could not be marked as stored (a trigger or a policy?); nothing was sent"
        )


def _put_back(conn: psycopg.Connection[Any], what: _Selection, row: _Row, failure: Failure) -> bool:
    """Write the new reason down and, after a try that was due, when the next one is; whether it was given up."""
    tries = due = stuck = None
    if what.due:
        tries = 1 + min(max(row.letter.tries, 0), MOST_TRIES)  # a writer may have put any number there
        if tries >= MOST_TRIES:
            stuck = what.now
        elif failure.sqlstate in HEALS:
            due = what.now + FIRST_TRY * 2**tries
    sqlstate, error = failure.sqlstate, failure.message
    if row.letter.damaged:  # it stays what it is: sent by name only
        sqlstate, error = None, f"{(row.letter.error or '').split(_AGAIN)[0]}{_AGAIN}{error}"
    error = error.encode("ascii", "backslashreplace").decode()
    conn.execute(
        f"UPDATE {table_of(what.home)} SET sqlstate = %s, error = %s"
        + (", tries = %s, due = %s, stuck = %s" if what.due else "")
        + " WHERE ctid = %s::tid",
        [sqlstate, error, *([tries, due, stuck] if what.due else []), row.ctid],
        prepare=False,
    )
    return stuck is not None


def _with_partition(conn: psycopg.Connection[Any], home: str, step: _Step, done: Replayed) -> list[Id]:
    """Make the partitions that rows of `logs` lacked, in transactions of their own; return what may be sent again."""
    again = []
    for one, why, moment in step.unplaced:
        if moment is None:
            done.held.append((one, why))
            continue
        try:
            partitions.ensure_at(conn, home, "day", moment)  # fills what the others leave open, whatever their width
        except psycopg.Error as error:
            if conn.closed:
                raise
            done.held.append((one, f"{why}, and none can be made: {failure_of(error).message}"))
        else:
            again.append(one)
    return again
