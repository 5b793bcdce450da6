"""
A person's rows, or any others of one value, deleted from all of logsluice's tables, dead letters included.

In small transactions, beside readers and writers; a row that a legal hold keeps stays, and is counted. It reaches what
is stored: records that still wait in memory or in a journal come later.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

from logsluice import decoding, holds, maintenance, partitions
from logsluice.columns import quote
from logsluice.errors import ConfigError
from logsluice.sinks.link import read_times

if TYPE_CHECKING:
    from collections.abc import Mapping

    import psycopg

    from logsluice.retention import LogTable

CHUNK = 1000  # rows deleted in one transaction: milliseconds, and a lock that it waits for holds up no more
PAGE = 50  # dead letters read at once: each may have 4 MiB
LOOKS = 10  # at dead letters that others change meanwhile: two are enough, unless a trigger or a policy keeps them


@dataclass
class Erased:
    """What became of one table's rows."""

    table: str
    rows: int = 0  # deleted; of a dry run, to be deleted
    held: int = 0  # kept by a legal hold
    unread: int = 0  # dead letters that hold the text and cannot be read as rows: a person must look


def erase(
    conn: psycopg.Connection[Any], match: Mapping[str, str], schema: str = "logsluice", *, dry_run: bool = False
) -> list[Erased]:
    """
    Delete all rows in which these columns, or attributes of these names, have these values; one `Erased` a table.

    With `dry_run` they are only counted. Blocks until all tables were read. Raises `LogsluiceError` for
    a schema without tables of logs, psycopg's error when a lock cannot be had in time or a right is missing; what was
    deleted before stays deleted, the same again goes on from there.
    """
    if not match or not all(name and value for name, value in match.items()):
        raise ConfigError("say which rows: COLUMN=VALUE, neither of them empty")
    read_times(conn)
    found, tables = [], maintenance.known(conn, schema)
    letters = Erased("dead_letter")  # first: one that is sent again meanwhile is a row of the tables then
    _dead_letters(conn, schema, match, one=letters, dry_run=dry_run)
    for table in tables:
        one = Erased(table.name)
        found.append(one)
        _rows(conn, schema, table, match, one=one, dry_run=dry_run)
    return [*found, letters]


def _held(conn: psycopg.Connection[Any], schema: str, table: str) -> list[holds.Hold]:
    return [hold for hold in holds.read(conn, schema) if hold.about(table)]


def _rows(
    conn: psycopg.Connection[Any], schema: str, table: LogTable, match: Mapping[str, str], *, one: Erased, dry_run: bool
) -> None:
    wanted, values = holds.equals(table.columns, match)
    names = [f"{quote(schema)}.{quote(table.name)}"]
    if table.partitioned:  # those whose drop was interrupted, too: they are there until it is finished
        names = [part.full_name for part in partitions.listed(conn, schema, table.name)]
    for name in names:
        kept = _held(conn, schema, table.name)
        held, held_values = holds.any_of(kept, table.columns)
        free = f"{wanted} AND {held} IS NOT TRUE"
        given = [*values, *held_values]
        count = f"SELECT count(*) FILTER (WHERE {held} IS NOT TRUE), count(*) FROM ONLY {name} WHERE {wanted}"
        if dry_run or kept:
            row = conn.execute(count, [*held_values, *values], prepare=False).fetchone()
            assert row is not None
            one.held += row[1] - row[0]
            one.rows += row[0] if dry_run else 0
        number = 0 if dry_run else CHUNK
        while number > 0:  # not `== CHUNK`: somebody may have deleted some of them meanwhile
            chosen = f"SELECT ctid FROM ONLY {name} WHERE {free} LIMIT {CHUNK}"
            with conn.transaction():
                partitions.settings(conn, partitions.DROP_LOCK_TIMEOUT)
                query = f"DELETE FROM ONLY {name} WHERE ctid = ANY(ARRAY({chosen}))"
                number = conn.execute(query, given, prepare=False).rowcount
            one.rows += number


def _dead_letters(
    conn: psycopg.Connection[Any], schema: str, match: Mapping[str, str], *, one: Erased, dry_run: bool
) -> None:
    table = f"{quote(schema)}.dead_letter"
    found = _letters(conn, schema, match, one)
    if dry_run:
        one.rows = len(found)
        return
    for _ in range(LOOKS):
        number = 0
        for start in range(0, len(found), CHUNK):
            with conn.transaction():
                partitions.settings(conn, partitions.DROP_LOCK_TIMEOUT)
                # Not by its place alone: another letter may lie there by now.
                places = "unnest(%s::tid[], %s::bigint[], %s::bigint[]) AS f (place, stream, position)"
                same = "d.ctid = f.place AND d.stream = f.stream AND d.position = f.position"
                query = f"DELETE FROM {table} AS d USING {places} WHERE {same}"
                given = [list(each) for each in zip(*found[start : start + CHUNK], strict=True)]
                number += conn.execute(query, given, prepare=False).rowcount
        one.rows += number
        if number == len(found):
            return
        found = _letters(conn, schema, match, one)  # who changed one has put it in another place


def _letters(
    conn: psycopg.Connection[Any], schema: str, match: Mapping[str, str], one: Erased
) -> list[tuple[str, int, int]]:
    """Return (place, stream, position) of what is to go, and count what stays."""
    table, kept = f"{quote(schema)}.dead_letter", _held(conn, schema, "dead_letter")
    found: list[tuple[str, int, int]] = []
    one.held = one.unread = 0
    with conn.transaction():
        partitions.settings(conn, partitions.DROP_LOCK_TIMEOUT)
        # To look through a page of large ones takes longer than `IDLE_LIMIT`; nobody waits for what this locks.
        conn.execute("SET LOCAL idle_in_transaction_session_timeout = 0", prepare=False)
        with conn.cursor(name="logsluice_forget") as cursor:
            cursor.itersize = PAGE
            cursor.execute(f"SELECT ctid::text, stream, position, at, columns, row FROM {table}")
            for place, stream, position, at, columns, row in cursor:
                values = _texts(columns, row)
                if values is None:
                    one.unread += all(value.encode() in row for value in match.values())
                elif holds.has(values, match):
                    moment = _moment(values.get("ts")) or at
                    if any(hold.keeps(moment, values) for hold in kept):
                        one.held += 1
                    else:
                        found.append((place, stream, position))
    return found


def _texts(columns: Any, row: bytes) -> dict[str, str | None] | None:
    """Return {column: text} of a dead letter; None when its row does not have the columns that it should."""
    texts = decoding.texts(bytes(row))
    if not columns or not all(isinstance(name, str) for name in columns) or len(columns) != len(texts):
        return None
    return dict(zip(columns, texts, strict=True))


def _moment(text: str | None) -> datetime | None:
    try:
        found = datetime.fromisoformat((text or "").replace("Z", "+00:00"))
    except ValueError:
        return None
    return found if found.tzinfo is not None else None
