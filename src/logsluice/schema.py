"""
The tables in PostgreSQL: the SQL files that make them, what a database lacks, and how to bring it there.

`sql/` holds plain numbered files that psql can run. Python does what psql does, it writes the quoted schema name for
`:"schema"`, and leaves out two lines that do not always apply. Each file runs in one transaction behind one lock, so
that ten processes that start at once apply it once. Everything is `SET LOCAL` or belongs to a transaction: it runs
through PgBouncer in transaction mode. Connections are given with autocommit on.
"""

from __future__ import annotations

import contextlib
import hashlib
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from logsluice.catalogue import relation, scalar
from logsluice.columns import quote, target_from
from logsluice.config import PARTITION_WIDTHS
from logsluice.errors import ConfigError, LogsluiceError

if TYPE_CHECKING:
    from collections.abc import Iterator

    import psycopg

    from logsluice.columns import Table

# 10 s: the first of many processes that start at once needs less than 1 s for everything; a longer wait means that
# somebody holds a table that a file alters, and each second of ours in that queue stops the writers behind us.
# Idle for 10 s: `partitions.IDLE_LIMIT` says which accident that ends.
# READ COMMITTED: with a snapshot from before the lock, the second process would not see what the first one made.
_SETTINGS = """
    SET TRANSACTION ISOLATION LEVEL READ COMMITTED;
    SET LOCAL lock_timeout = '10s';
    SET LOCAL idle_in_transaction_session_timeout = '10s';
    SET LOCAL search_path = pg_catalog, pg_temp;
    SET LOCAL standard_conforming_strings = on;
"""
# The version that a writer needs. What came later serves the commands alone: a program that is updated before its
# database, or while pg_dump holds the table that a file alters, must not stop storing.
WRITERS_NEED = 1
_LATER_LOCK_TIMEOUT = "2s"  # for such a file: so long do writers wait behind us at each connect, with pg_dump before us
_LOCK_NOT_AVAILABLE = "55P03"
_NAME_BYTES = 63  # PostgreSQL cuts longer names, and the role would be another one
_CREATE_SCHEMA = 'CREATE SCHEMA IF NOT EXISTS :"schema";\n'
_PARTITIONED = "PARTITION BY RANGE (ts)\n"
FUNCTION = "make_partitions(timestamptz, timestamptz, text, text)"


@dataclass(frozen=True)
class SqlFile:
    """One numbered file of `sql/`."""

    number: int
    name: str  # without ".sql"
    text: str
    checksum: str  # SHA-256 of the text, hexadecimal


def sql_files() -> list[SqlFile]:
    """Return the SQL files in order: the copy in the wheel, or the checkout's `sql/` in an editable install."""
    return [_read(path) for path in _found("[0-9][0-9][0-9][0-9]_*.sql")]


def _found(pattern: str) -> list[Path]:
    here = Path(__file__).resolve()
    folders = (here.parent / "sql", here.parents[2] / "sql")
    for folder in folders:
        paths = sorted(folder.glob(pattern))
        if paths:
            return paths
    raise LogsluiceError(f"no SQL files in {' or '.join(map(str, folders))}: install logsluice again")


def _read(path: Path) -> SqlFile:
    text = path.read_text(encoding="ascii")
    return SqlFile(int(path.stem[:4]), path.stem, text, hashlib.sha256(text.encode()).hexdigest())


def render(schema: str = "logsluice", partition: str = "day", grant_to: str | None = None, *, after: int = 0) -> str:
    """
    Return the DDL, for a DBA to read and to run once with psql on a database that has none of it.

    `after` is the version that the database has: only later files are returned. With `grant_to` it ends with the least
    that a writer needs.
    """
    _check(schema, partition)
    newest = sql_files()[-1].number
    if not 0 <= after < newest:
        raise ConfigError(f"after must be a version from 0 to {newest - 1}, got {after}: {newest} is the newest")
    lines = ["-- logsluice: tables, function, views. Run it with psql -v ON_ERROR_STOP=1.", "BEGIN;", ""]
    for file in sql_files():
        if file.number > after:
            lines += [_ddl(file, schema, partition), _record(file, schema), ""]
    if grant_to is not None:
        lines.append(f"-- What {quote(grant_to)} needs to write. Partitions need no grant: rows go in through logs.")
        lines += [f"{grant};" for grant in grants(schema, grant_to)]
    lines += ["COMMIT;", ""]
    return "\n".join(lines)


def migrate(conn: psycopg.Connection[Any], schema: str = "logsluice", partition: str = "day") -> list[str]:
    """
    Apply the files that are missing and return their names. Partitions are made by `partitions.ensure`.

    A file that writers can do without waits for another time (`pending`) when somebody holds the table that it alters.
    """
    _check(schema, partition)
    applied = _applied(conn, schema)  # a look without the lock: every process of a fleet asks, hardly any has to wait
    made = []
    for file in sql_files():
        if file.number in applied:
            continue
        try:
            if _apply(conn, file, schema=schema, partition=partition):
                made.append(file.name)
        except Exception as error:
            if file.number > WRITERS_NEED and getattr(error, "sqlstate", None) == _LOCK_NOT_AVAILABLE:
                break  # the files behind it may build on it
            raise
    return made


def compat(schema: str = "logsluice") -> str:
    """Return the SQL of the views with other systems' names; the typed tables that they read must be there."""
    return _optional("compat.sql", schema)


def rollup(schema: str = "logsluice") -> str:
    """Return the SQL of the hourly counts of `logs`, see rollup.py."""
    return _optional("rollup.sql", schema)


def _optional(file: str, schema: str) -> str:
    _check(schema, PARTITION_WIDTHS[0])
    return _found(file)[0].read_text(encoding="ascii").replace(':"schema"', quote(schema))


def roles(
    schema: str = "logsluice",
    writer: str = "logsluice_writer",
    reader: str = "logsluice_reader",
    admin: str = "logsluice_admin",
) -> str:
    """Return the SQL that makes the roles of writers, readers and admins and says what each may; it may run again."""
    _check(schema, PARTITION_WIDTHS[0])
    names = {"schema": schema, "writer": writer, "reader": reader, "admin": admin}
    for kind in ("writer", "reader", "admin"):
        if not 1 <= len(names[kind].encode()) <= _NAME_BYTES or "\0" in names[kind]:
            raise ConfigError(f"{kind} must be a role's name of 1 to {_NAME_BYTES} bytes, got {names[kind]!r}")
    if len({writer, reader, admin}) < 3:
        raise ConfigError(f"writer, reader and admin must be three roles, got {writer!r}, {reader!r} and {admin!r}")
    text = _found("roles.sql")[0].read_text(encoding="ascii")
    text = "".join(line for line in text.splitlines(keepends=True) if not line.startswith("\\"))  # psql's own
    for name, value in names.items():
        literal = value.replace("'", "''")
        text = text.replace(f":'{name}'", f"'{literal}'")
    return f"BEGIN;\n{text}COMMIT;\n"


def apply(conn: psycopg.Connection[Any], text: str, schema: str = "logsluice") -> None:
    """Run SQL that may be run again, in one transaction behind the lock of `migrate`."""
    with _alone(conn, schema):
        conn.execute(text, prepare=False)


def make_typed(conn: psycopg.Connection[Any], target: Table, ddl: str) -> bool:
    """Make a typed log's table; whether this call did, and not another process meanwhile."""
    with _alone(conn, target.schema):
        if relation(conn, target.schema, target.table) is not None:
            return False
        conn.execute(ddl, prepare=False)
    return True


def pending(conn: psycopg.Connection[Any], schema: str = "logsluice") -> list[str]:
    """Return the names of the files that are not applied here yet."""
    applied = _applied(conn, schema)
    return [file.name for file in sql_files() if file.number not in applied]


def version(conn: psycopg.Connection[Any], schema: str = "logsluice") -> int:
    """Return the number of the newest file that is applied here; 0 when there is none."""
    return max(_applied(conn, schema), default=0)


def migration(schema: str) -> str:
    """Return the command that applies what is missing."""
    return "logsluice migrate" if schema == "logsluice" else f"logsluice migrate --schema {shlex.quote(schema)}"


def _apply(conn: psycopg.Connection[Any], file: SqlFile, *, schema: str, partition: str) -> bool:
    with _alone(conn, schema, _LATER_LOCK_TIMEOUT if file.number > WRITERS_NEED else None):
        if file.number in _applied(conn, schema):  # another process was first
            return False
        exists = scalar(conn, "SELECT true FROM pg_namespace WHERE nspname = %s::text", schema)
        # CREATE SCHEMA IF NOT EXISTS is refused without CREATE on the database even when the schema is there.
        ddl = _ddl(file, schema, partition, create_schema=not exists)
        conn.execute(ddl + _record(file, schema), prepare=False)
    return True


@contextlib.contextmanager
def _alone(conn: psycopg.Connection[Any], schema: str, lock_timeout: str | None = None) -> Iterator[None]:
    """Begin a transaction in which no other process changes this schema."""
    with conn.transaction():
        conn.execute(_SETTINGS, prepare=False)
        if lock_timeout is not None:
            conn.execute(f"SET LOCAL lock_timeout = '{lock_timeout}'", prepare=False)
        key = f"logsluice migrate {schema}"
        conn.execute("SELECT pg_advisory_xact_lock(hashtextextended(%s::text, 0))", [key], prepare=False)
        yield


def _ddl(file: SqlFile, schema: str, partition: str, *, create_schema: bool = True) -> str:
    text = file.text
    if not create_schema:
        text = text.replace(_CREATE_SCHEMA, "")
    if partition == "none":
        text = text.replace(_PARTITIONED, "")
    return text.replace(':"schema"', quote(schema))


def _record(file: SqlFile, schema: str) -> str:
    return f"UPDATE {quote(schema)}.version SET checksum = '{file.checksum}' WHERE version = {file.number};"


def _check(schema: str, partition: str) -> None:
    target_from(schema, "logs", None)  # raises for a name that PostgreSQL would cut or refuse
    if partition not in PARTITION_WIDTHS:
        raise ConfigError(f"partition must be one of {', '.join(map(repr, PARTITION_WIDTHS))}, got {partition!r}")


def _applied(conn: psycopg.Connection[Any], schema: str) -> set[int]:
    if relation(conn, schema, "version") is None:
        return set()
    rows = conn.execute(f"SELECT version FROM {quote(schema)}.version", prepare=False).fetchall()
    return {row[0] for row in rows}


# What a writer needs, and nothing else: the one list behind `render` and privileges.py.
WRITERS_TABLES = {"dead_letter": ("INSERT",), "stream": ("SELECT", "INSERT", "UPDATE"), "version": ("SELECT",)}


def grants(schema: str, role: str) -> Iterator[str]:
    """Yield the statements that let a role write."""
    yield grant("USAGE", f"SCHEMA {quote(schema)}", role)
    for table, privileges in {"logs": ("INSERT",), **WRITERS_TABLES}.items():
        yield grant(", ".join(privileges), f"{quote(schema)}.{quote(table)}", role)
    yield grant("EXECUTE", f"FUNCTION {quote(schema)}.{FUNCTION}", role)


def grant(privileges: str, thing: str, role: str) -> str:
    """Return the statement that gives a role privileges on something."""
    return f"GRANT {privileges} ON {thing} TO {quote(role)}"
