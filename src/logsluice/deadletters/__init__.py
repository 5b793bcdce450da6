r"""
Dead letters: looked at, mended, sent again, dropped. `logsluice dead` is this package at a terminal.

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

letters.py: what one is, and how it is found; replaying.py: sent again. Here: mended, dropped.

Connections are given with autocommit on, moments as aware datetimes; those of a `DeadLetter` are texts, in UTC, as
PostgreSQL's years go further than Python's. psycopg's errors are raised as they are; nothing is changed then.
"""

from __future__ import annotations

import difflib
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from logsluice import holds
from logsluice.deadletters.letters import (
    SELECT,
    DeadLetter,
    Id,
    Waiting,
    changing,
    find,
    is_line,
    latest,
    letter_of,
    named,
    table_of,
    waiting,
)
from logsluice.deadletters.replaying import HEALS, MOST_TRIES, Replayed, replay
from logsluice.encoding import NULL, Marks, clean, copy_text
from logsluice.errors import ConfigError, LogsluiceError

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence
    from datetime import datetime

    import psycopg

__all__ = [
    "DEAD_LETTER_RETENTION", "HEALS", "MOST_TRIES", "DeadLetter", "Id", "Replayed", "Waiting", "drop", "droppable",
    "edit", "find", "is_line", "latest", "replay", "waiting",
]  # fmt: skip

# Long enough for a person to come back from a holiday. The audit preset of a later version uses 24 h: there nothing may
# stay unexamined for longer.
DEAD_LETTER_RETENTION = timedelta(days=30)


def edit(
    conn: psycopg.Connection[Any], one: Id, values: Mapping[str, str | None], home: str = "logsluice"
) -> DeadLetter:
    """
    Replace the values of columns of a waiting dead letter, None for NULL, and return it as it is now.

    The other columns keep their bytes, the reason stays until the next replay, the count of tries begins anew. Waits up
    to 10 s for a replay that holds it. Raises `LogsluiceError` when it is not there, was stored, or has no such column.
    """
    where, ids = named([one])
    with changing(conn):
        query = f"{SELECT}, row, ctid::text FROM {table_of(home)} WHERE {where}"
        row = conn.execute(f"{query} ORDER BY replayed_at NULLS FIRST FOR UPDATE", ids, prepare=False).fetchone()
        if row is None:
            raise LogsluiceError(f"there is no dead letter {one}; `logsluice dead list` shows those that wait")
        letter = letter_of(row[:-1])
        if letter.replayed_at is not None:
            raise LogsluiceError(f"dead letter {one} was stored at {letter.replayed_at}: change the row in its table")
        conn.execute(
            f"UPDATE {table_of(home)} SET row = %s, tries = 0, due = NULL, stuck = NULL WHERE ctid = %s::tid",
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
        f"SELECT count(*) FILTER (WHERE replayed_at IS NULL), count(replayed_at) FROM {table_of(home)} WHERE {where}",
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
    with changing(conn):
        return conn.execute(f"DELETE FROM {table_of(home)} WHERE {where}", values, prepare=False).rowcount


def _droppable(
    ids: Collection[Id] | None, before: datetime | None, held: Sequence[holds.Hold], *, replayed: bool
) -> tuple[str, list[Any]]:
    parts = ["replayed_at IS NOT NULL"] if replayed else []
    values: list[Any] = []
    if ids is not None:
        part, values = named(ids)
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
