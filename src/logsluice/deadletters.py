r"""
Dead letters: looked at, mended, sent again, dropped. `logsluice dead` is this module at a terminal.

A dead letter is a row that its table refused for what it contains. `stream:position` names it: its stream, and where
its row ends in it.

Rules, each against an accident:

1. A row is locked before it is sent, and marked in the transaction that stores it. Two replays at once, or one that is
   killed anywhere, store it once.
2. What is sent is the row's own bytes, and only if they are one line of COPY text: in a row of other bytes a `\.` ends
   the COPY, and a last backslash swallows the next row; both would be marked as stored.
3. `target` is what a role with no more than INSERT on dead_letter put there. It is looked up and never a part of SQL,
   and is never a table of the system or one of ours but `logs`: the one who replays may do more than the one who wrote.
4. What may heal by itself is judged by the caller's clock.
5. Reasons hold no row content, `DeadLetter.texts` does.

Connections are given with autocommit on, moments as aware datetimes; those of a `DeadLetter` are texts, in UTC, as
PostgreSQL's years go further than Python's. psycopg's errors are raised as they are; nothing is changed then.
"""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, NamedTuple

import psycopg

from logsluice import holds, partitions, privileges, types
from logsluice.columns import Table, quote, target_from
from logsluice.delivery import Failure, Verdict, decide
from logsluice.encoding import NULL, Marks, clean, copy_text
from logsluice.errors import ConfigError, LogsluiceError
from logsluice.sinks.failures import failure_of

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

# Long enough for a person to come back from a holiday. The audit preset of a later version uses 24 h: there nothing may
# stay unexamined for longer.
DEAD_LETTER_RETENTION = timedelta(days=30)

# Reasons that can go without a change of the row: the row that a foreign key names is stored later, a check is mended.
HEALS = ("23503", "23514")
FIRST_TRY = timedelta(minutes=1)  # after the rejection; then 2 and 4 minutes after the try before
MOST_TRIES = 3  # what has not healed after 7 minutes waits for a person
CHUNK = 100  # rows in one transaction: 400 MB at `max_frame_bytes`, the most that a frame has
_LOCK = "FOR UPDATE SKIP LOCKED"
_AGAIN = "; sent again: "  # between the reason of a damaged one and what its table said of it
_DAMAGED = "coalesce(sqlstate IS NULL AND starts_with(error, 'journal:'), false)"
# READ COMMITTED: a row that another replay has just stored is seen as it is now. The rest as when it was first sent.
_SETTINGS = (
    "SET TRANSACTION ISOLATION LEVEL READ COMMITTED; SET LOCAL timezone = 'UTC'; SET LOCAL datestyle = 'ISO'; "
    "SET LOCAL lock_timeout = '10s'"  # a lock held for longer is a person's, who wants to hear of it
)
_ESCAPE = re.compile(rb"\\(?:x([0-9A-Fa-f]{1,2})|([0-7]{1,3})|(.))", re.DOTALL)
_CONTROLS = {b"b": b"\b", b"f": b"\f", b"n": b"\n", b"r": b"\r", b"t": b"\t", b"v": b"\v"}
_TARGET = re.compile(r'"((?:[^"]|"")+)"\."((?:[^"]|"")+)"')
_ID = re.compile(r"([0-9]{1,19}):([0-9]{1,19})")
_MOST_BIGINT = 2**63 - 1


class Id(NamedTuple):
    """What names a dead letter."""

    stream: int
    position: int

    def __str__(self) -> str:
        return f"{self.stream}:{self.position}"

    @classmethod
    def parse(cls, text: str) -> Id:
        """Return the id that was written as `stream:position`. Raises `ConfigError`."""
        found = _ID.fullmatch(text)
        if found is None or max(map(int, found.groups())) > _MOST_BIGINT:
            raise ConfigError(f"{text!r} names no dead letter: write stream:position, as `logsluice dead list` does")
        return cls(int(found[1]), int(found[2]))


@dataclass(frozen=True)
class DeadLetter:
    """One row of dead_letter. Moments are texts, in UTC."""

    at: str
    id: Id
    seq: int | None
    target: str  # quoted
    columns: tuple[str, ...] | None
    sqlstate: str | None
    error: str | None
    tries: int
    due: str | None
    stuck: str | None
    replayed_at: str | None
    damaged: bool  # from a damaged block of a journal: its bytes may be anything
    row: bytes = field(default=b"", repr=False)

    @property
    def state(self) -> str:
        """Return "replayed", "stuck", "damaged" or "waiting"."""
        if self.replayed_at is not None:
            return "replayed"
        return "damaged" if self.damaged else "waiting" if self.stuck is None else "stuck"

    def texts(self) -> dict[str, str | None] | None:
        """Return the text of each column, None for NULL; None when the row does not have the columns it should."""
        values = self.row[:-1].split(b"\t")
        if not is_line(self.row) or self.columns is None or len(values) != len(self.columns):
            return None
        return {name: _plain(value) for name, value in zip(self.columns, values, strict=True)}


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


class Waiting(NamedTuple):
    """How many dead letters of one table and reason wait."""

    target: str
    sqlstate: str | None
    damaged: bool
    number: int


# --- looking -------------------------------------------------------------------------------------------------------


def _moment(column: str) -> str:
    return f"""coalesce(to_char({column} AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"'), {column}::text)"""


_MOMENTS = {name: _moment(name) for name in ("at", "due", "stuck", "replayed_at")}
_SELECT = (
    f"SELECT {_MOMENTS['at']}, stream, position, seq, target, columns, sqlstate, error, tries, {_MOMENTS['due']}, "
    f"{_MOMENTS['stuck']}, {_MOMENTS['replayed_at']}, {_DAMAGED}"
)


def _letter(row: Sequence[Any]) -> DeadLetter:
    at, stream, position, seq, target, columns, *rest = row
    named = columns and all(isinstance(name, str) for name in columns)  # nested or with NULLs: nobody of ours wrote it
    return DeadLetter(at, Id(stream, position), seq, target, tuple(columns) if named else None, *rest)


def latest(
    conn: psycopg.Connection[Any],
    home: str = "logsluice",
    *,
    limit: int = 20,
    target: str | None = None,
    replayed: bool = False,
) -> list[DeadLetter]:
    """
    Return the latest dead letters that wait, oldest first, without their rows.

    `target`: only those of this table, written as the handler's option `table`. `replayed`: those that were stored
    as well.
    """
    where = [] if replayed else ["replayed_at IS NULL"]
    values: list[Any] = []
    if target is not None:
        where.append("target = %s")
        values.append(target_from(home, target, {"any": "message"}).name)  # which column goes where is not asked here
    rows = conn.execute(
        f"{_SELECT} FROM {_table(home)} WHERE {' AND '.join(where) or 'true'} "
        f"ORDER BY at DESC, stream DESC, position DESC LIMIT {int(limit)}",
        values,
        prepare=False,
    ).fetchall()
    return [_letter(row) for row in reversed(rows)]


def waiting(conn: psycopg.Connection[Any], home: str = "logsluice") -> list[Waiting]:
    """Return how many wait, by table and reason, the most first."""
    rows = conn.execute(
        f"SELECT target, sqlstate, {_DAMAGED} AS damaged, count(*) FROM {_table(home)} WHERE replayed_at IS NULL "
        "GROUP BY 1, 2, 3 ORDER BY 4 DESC, 1, 2",
        prepare=False,
    ).fetchall()
    return [Waiting(*row) for row in rows]


def find(conn: psycopg.Connection[Any], ids: Collection[Id], home: str = "logsluice") -> dict[Id, DeadLetter]:
    """Return the dead letters of these names, with their rows; a name that is not there is left out."""
    where, values = _named(ids)
    # What waits comes last, and hides what was stored under the same name.
    query = f"{_SELECT}, row FROM {_table(home)} WHERE {where} ORDER BY replayed_at NULLS LAST"
    rows = conn.execute(query, values, prepare=False).fetchall()
    return {letter.id: letter for letter in map(_letter, rows)}


def _table(home: str) -> str:
    return f"{quote(home)}.dead_letter"


def _named(ids: Collection[Id]) -> tuple[str, list[Any]]:
    streams, positions = [one.stream for one in ids], [one.position for one in ids]
    return "(stream, position) IN (SELECT * FROM unnest(%s::bigint[], %s::bigint[]))", [streams, positions]


def is_line(row: bytes) -> bool:
    r"""Whether COPY reads this as one row: one newline, at its end and not escaped, and no `\.`, which ends a COPY."""
    body = row[:-1]
    rest = body.replace(b"\\\\", b"")  # what is left of a backslash escapes something
    plain = not (b"\n" in body or b"\r" in body or b"\0" in body)
    return row.endswith(b"\n") and plain and b"\\." not in rest and not rest.endswith(b"\\")


def _plain(value: bytes) -> str | None:
    if value == NULL.encode():
        return None
    return _ESCAPE.sub(_unescaped, value).decode(errors="backslashreplace")


def _unescaped(found: re.Match[bytes]) -> bytes:
    if found[1]:
        return bytes([int(found[1], 16)])
    if found[2]:
        return bytes([int(found[2], 8) & 0xFF])
    return _CONTROLS.get(found[3], found[3])


# --- mending -------------------------------------------------------------------------------------------------------


def edit(
    conn: psycopg.Connection[Any], one: Id, values: Mapping[str, str | None], home: str = "logsluice"
) -> DeadLetter:
    """
    Replace the values of columns of a waiting dead letter, None for NULL, and return it as it is now.

    The other columns keep their bytes, the reason stays until the next replay, the count of tries begins anew. Waits up
    to 10 s for a replay that holds it. Raises `LogsluiceError` when it is not there, was stored, or has no such column.
    """
    where, ids = _named([one])
    with conn.transaction():
        conn.execute(_SETTINGS, prepare=False)
        query = f"{_SELECT}, row, ctid::text FROM {_table(home)} WHERE {where}"
        row = conn.execute(f"{query} ORDER BY replayed_at NULLS FIRST FOR UPDATE", ids, prepare=False).fetchone()
        if row is None:
            raise LogsluiceError(f"there is no dead letter {one}; `logsluice dead list` shows those that wait")
        letter = _letter(row[:-1])
        if letter.replayed_at is not None:
            raise LogsluiceError(f"dead letter {one} was stored at {letter.replayed_at}: change the row in its table")
        conn.execute(
            f"UPDATE {_table(home)} SET row = %s, tries = 0, due = NULL, stuck = NULL WHERE ctid = %s::tid",
            [_mended(letter, values), row[-1]],
            prepare=False,
        )
    return find(conn, [one], home)[one]


def _mended(letter: DeadLetter, values: Mapping[str, str | None]) -> bytes:
    parts = letter.row[:-1].split(b"\t")
    if letter.columns is None or letter.texts() is None:
        raise LogsluiceError(
            f"the row of dead letter {letter.id} is not one line of COPY text with one value for each of its columns: "
            "write it anew with UPDATE ... dead_letter SET row = ..., or drop it"
        )
    for name, text in values.items():
        if name not in letter.columns:
            near = difflib.get_close_matches(name, letter.columns, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"it has {', '.join(letter.columns)}"
            raise LogsluiceError(f"dead letter {letter.id} has no column {name!r}; {hint}")
        new = NULL if text is None else copy_text(clean(text, name, Marks()))
        parts[letter.columns.index(name)] = new.encode()
    return b"\t".join(parts) + b"\n"


# --- sending again -------------------------------------------------------------------------------------------------


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
            part, values = _named(self.ids)
            parts.append(part)
        if self.ids is None or not self.even_damaged:
            parts.append(f"NOT {_DAMAGED}")
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
    with conn.transaction():
        conn.execute(_SETTINGS, prepare=False)
        # Not called at: ORDER BY would mean the text.
        found = conn.execute(
            f"{_SELECT}, row, ctid::text, at::text AS moment FROM {_table(what.home)} WHERE {where} "
            f"ORDER BY at, stream, position LIMIT {CHUNK} {_LOCK}",
            values,
            prepare=False,
        ).fetchall()
        rows = [_Row(_letter(row[:-2]), row[-2]) for row in found]
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
    """Return where the rows go, in names that the catalogue gave; or why they may not go there."""
    if letter.columns is None:
        return "its columns are not known: say them with UPDATE ... dead_letter SET columns = ..., or drop it"
    named = _TARGET.fullmatch(letter.target)
    found = (
        named
        and conn.execute(
            "SELECT n.nspname::text, c.relname::text, n.nspname ~ '^pg_' OR n.nspname = 'information_schema' "
            "FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace "
            "WHERE n.nspname = %s::text AND c.relname = %s::text AND c.relkind IN ('r', 'p', 'v', 'f')",
            [name.replace('""', '"') for name in named.groups()],
            prepare=False,
        ).fetchone()
    )
    if not found:
        return f"there is no table {letter.target}: make it, or drop these dead letters"
    where, name, system = found
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
        f"UPDATE {_table(what.home)} SET replayed_at = %s, due = NULL, stuck = NULL WHERE ctid = ANY(%s::tid[])",
        [what.now, [row.ctid for row in rows]],
        prepare=False,
    )
    if cursor.rowcount != len(rows):  # unmarked they would be sent again
        raise LogsluiceError(
            f"{_table(what.home)}: rows could not be marked as stored (a trigger or a policy?); nothing was sent"
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
        f"UPDATE {_table(what.home)} SET sqlstate = %s, error = %s"
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


# --- dropping ------------------------------------------------------------------------------------------------------


def droppable(
    conn: psycopg.Connection[Any],
    home: str = "logsluice",
    *,
    ids: Collection[Id] | None = None,
    before: datetime | None = None,
    replayed: bool = False,
) -> tuple[int, int]:
    """Return how many `drop` would drop: (of those that wait, of those that were stored)."""
    where, values = _droppable(ids, before, holds.read(conn, home), replayed=replayed)
    row = conn.execute(
        f"SELECT count(*) FILTER (WHERE replayed_at IS NULL), count(replayed_at) FROM {_table(home)} WHERE {where}",
        values,
        prepare=False,
    ).fetchone()
    assert row is not None
    return row[0], row[1]


def drop(
    conn: psycopg.Connection[Any],
    home: str = "logsluice",
    *,
    ids: Collection[Id] | None = None,
    before: datetime | None = None,
    replayed: bool = False,
) -> int:
    """
    Delete dead letters and return how many: those named, or those rejected before a moment, stored since or not.

    What a legal hold keeps stays. `replayed`: of these only what was stored since. `now - DEAD_LETTER_RETENTION` is the
    moment if nothing speaks for another. Waits up to 10 s for a replay that holds one.
    """
    where, values = _droppable(ids, before, holds.read(conn, home), replayed=replayed)
    with conn.transaction():
        conn.execute(_SETTINGS, prepare=False)
        return conn.execute(f"DELETE FROM {_table(home)} WHERE {where}", values, prepare=False).rowcount


def _droppable(
    ids: Collection[Id] | None, before: datetime | None, held: Sequence[holds.Hold], *, replayed: bool
) -> tuple[str, list[Any]]:
    parts = ["replayed_at IS NOT NULL"] if replayed else []
    values: list[Any] = []
    if ids is not None:
        part, values = _named(ids)
        parts.append(part)
    if before is not None:
        parts.append("at < %s")
        values.append(before)
    if not parts:
        raise ConfigError("say what to drop: ids, before or replayed")
    if held:
        kept, its = holds.of_dead_letters(held)
        parts.append(f"{kept} IS NOT TRUE")
        values += its
    return " AND ".join(parts), values
