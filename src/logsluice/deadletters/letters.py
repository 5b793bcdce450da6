"""What a dead letter is: its name, its row as COPY text, and the SQL that finds it."""

from __future__ import annotations

import contextlib
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from logsluice.columns import quote, target_from
from logsluice.encoding import NULL
from logsluice.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Sequence

    import psycopg

DAMAGED = "coalesce(sqlstate IS NULL AND starts_with(error, 'journal:'), false)"
# READ COMMITTED: a row that another replay has just stored is seen as it is now. The rest as when it was first sent.
_SETTINGS = (
    "SET TRANSACTION ISOLATION LEVEL READ COMMITTED; SET LOCAL timezone = 'UTC'; SET LOCAL datestyle = 'ISO'; "
    "SET LOCAL lock_timeout = '10s'"  # a lock held for longer is a person's, who wants to hear of it
)
_ESCAPE = re.compile(rb"\\(?:x([0-9A-Fa-f]{1,2})|([0-7]{1,3})|(.))", re.DOTALL)
_CONTROLS = {b"b": b"\b", b"f": b"\f", b"n": b"\n", b"r": b"\r", b"t": b"\t", b"v": b"\v"}
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


class Waiting(NamedTuple):
    """How many dead letters of one table and reason wait."""

    target: str
    sqlstate: str | None
    damaged: bool
    number: int


def _moment(column: str) -> str:
    return f"""coalesce(to_char({column} AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"'), {column}::text)"""


_MOMENTS = {name: _moment(name) for name in ("at", "due", "stuck", "replayed_at")}
SELECT = (
    f"SELECT {_MOMENTS['at']}, stream, position, seq, target, columns, sqlstate, error, tries, {_MOMENTS['due']}, "
    f"{_MOMENTS['stuck']}, {_MOMENTS['replayed_at']}, {DAMAGED}"
)


def letter_of(row: Sequence[Any]) -> DeadLetter:
    """Return what a row of `SELECT` says; one that was asked for the letter's row as well has that last."""
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
        f"{SELECT} FROM {table_of(home)} WHERE {' AND '.join(where) or 'true'} "
        f"ORDER BY at DESC, stream DESC, position DESC LIMIT {int(limit)}",
        values,
        prepare=False,
    ).fetchall()
    return [letter_of(row) for row in reversed(rows)]


def waiting(conn: psycopg.Connection[Any], home: str = "logsluice") -> list[Waiting]:
    """Return how many wait, by table and reason, the most first."""
    rows = conn.execute(
        f"SELECT target, sqlstate, {DAMAGED} AS damaged, count(*) FROM {table_of(home)} WHERE replayed_at IS NULL "
        "GROUP BY 1, 2, 3 ORDER BY 4 DESC, 1, 2",
        prepare=False,
    ).fetchall()
    return [Waiting(*row) for row in rows]


def find(conn: psycopg.Connection[Any], ids: Collection[Id], home: str = "logsluice") -> dict[Id, DeadLetter]:
    """Return the dead letters of these names, with their rows; a name that is not there is left out."""
    where, values = named(ids)
    # What waits comes last, and hides what was stored under the same name.
    query = f"{SELECT}, row FROM {table_of(home)} WHERE {where} ORDER BY replayed_at NULLS LAST"
    rows = conn.execute(query, values, prepare=False).fetchall()
    return {letter.id: letter for letter in map(letter_of, rows)}


def table_of(home: str) -> str:
    """Return the quoted name of the table."""
    return f"{quote(home)}.dead_letter"


@contextlib.contextmanager
def changing(conn: psycopg.Connection[Any]) -> Iterator[None]:
    """Begin a transaction that changes dead letters."""
    with conn.transaction():
        conn.execute(_SETTINGS, prepare=False)
        yield


def named(ids: Collection[Id]) -> tuple[str, list[Any]]:
    """Return the condition of those of these names, and its parameters."""
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
