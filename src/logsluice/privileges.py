"""
What the current role lacks to write, or to do what a command does, and the statement that gives it.

Blocked rows wait until somebody has run that statement, so it must be the whole truth: what is granted on the schema,
the tables, the version and the function that makes partitions. Each call blocks for some queries of the catalogues,
changes nothing, and raises psycopg's errors.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from logsluice.catalogue import relation, scalar
from logsluice.columns import quote
from logsluice.schema import FUNCTION, WRITERS_NEED, WRITERS_TABLES, grant, migration, version

if TYPE_CHECKING:
    from collections.abc import Iterator

    import psycopg

    from logsluice.columns import Table
    from logsluice.types import LogType


@dataclass(frozen=True)
class Missing:
    """Something that the current role needs and does not have."""

    what: str  # a sentence
    fix: str  # one SQL statement, or the command that does it


def missing(
    conn: psycopg.Connection[Any],
    schema: str = "logsluice",
    *,
    table: str | tuple[str, str] = "logs",
    dead_letter: bool = True,
) -> list[Missing]:
    """
    Return what the current role lacks to write into this table; an empty list when it can.

    `table` is a name in `schema`, or a pair of schema and name. Only catalogues are read.
    """
    where, name = (schema, table) if isinstance(table, str) else table
    role, usable = _role(conn), _usable(conn, schema)
    if usable is None:
        return [Missing(f"schema {quote(schema)} does not exist", migration(schema))]
    found = [lack for home in dict.fromkeys((where, schema)) for lack in _missing_usage(conn, home, role)]
    found += _missing_on(conn, where, name, ("INSERT",), role=role, home=schema)
    for other, privileges in WRITERS_TABLES.items():
        if dead_letter or other != "dead_letter":
            found += _missing_on(conn, schema, other, privileges, role=role, home=schema)
    if usable and not _missing_on(conn, schema, "version", ("SELECT",), role=role, home=schema):
        found += _missing_version(conn, schema)
    if (where, name) == (schema, "logs"):
        found += _missing_function(conn, schema, role)
    return found


@dataclass(frozen=True)
class MissingTyped(Missing):
    """What a typed log's table lacks. `makes`: the SQL that a role with rights on the schema can mend it with."""

    makes: str = ""


def missing_typed(
    conn: psycopg.Connection[Any], target: Table, kind: LogType | None, partition: str
) -> MissingTyped | None:
    """Return what a typed log's table lacks to be written to by the current role; None when nothing."""
    role = _role(conn)
    oid = relation(conn, target.schema, target.table)
    if oid is None:
        if kind is None:
            fix = "import the module that declares it in this program, or run the output of `logsluice types MODULE`"
            return MissingTyped(f"table {target.name} of a typed log does not exist", fix)
        fix = f"logsluice types {kind.kind.__module__} | psql"
        return MissingTyped(f"table {target.name} does not exist", fix, kind.ddl(target.schema, partition))
    there = conn.execute(
        "SELECT attname FROM pg_attribute WHERE attrelid = %s::oid AND attnum > 0 AND NOT attisdropped",
        [oid], prepare=False,
    ).fetchall()  # fmt: skip
    lost = [one for one in target.columns if (one,) not in there]
    if lost:
        sql = {one.name: one.sql for one in kind.columns} if kind is not None else {}
        add = ", ".join(f"ADD COLUMN {quote(one)} {sql.get(one, 'text')}" for one in lost)
        # By hand: it takes an ACCESS EXCLUSIVE lock, behind which every writer waits.
        return MissingTyped(f"table {target.name} lacks {', '.join(lost)}", f"ALTER TABLE {target.name} {add}")
    found = _missing_on(conn, target.schema, target.table, ("INSERT",), role=role, home=target.home)
    return MissingTyped(found[0].what, found[0].fix) if found else None


def lacking(
    conn: psycopg.Connection[Any], schema: str, table: str, privileges: tuple[str, ...], *, home: str = "logsluice"
) -> list[Missing]:
    """
    Return what the current role lacks to do this with one table; `home` is the schema of logsluice's tables.

    For the commands, which do more than write. Only catalogues are read.
    """
    role = _role(conn)
    return [*_missing_usage(conn, schema, role), *_missing_on(conn, schema, table, privileges, role=role, home=home)]


def _role(conn: psycopg.Connection[Any]) -> str:
    return str(scalar(conn, "SELECT current_user::text"))


def _usable(conn: psycopg.Connection[Any], schema: str) -> bool | None:
    """Whether the role may use a schema; None: there is none of this name."""
    query = "SELECT has_schema_privilege(oid, 'USAGE') FROM pg_namespace WHERE nspname = %s::text"
    usable: bool | None = scalar(conn, query, schema)
    return usable


def _missing_usage(conn: psycopg.Connection[Any], schema: str, role: str) -> Iterator[Missing]:
    if _usable(conn, schema) is False:
        what = f"role {quote(role)} may not use schema {quote(schema)}"
        yield Missing(what, grant("USAGE", f"SCHEMA {quote(schema)}", role))


def _missing_on(
    conn: psycopg.Connection[Any], schema: str, table: str, privileges: tuple[str, ...], *, role: str, home: str
) -> list[Missing]:
    full = f"{quote(schema)}.{quote(table)}"
    oid = relation(conn, schema, table)
    if oid is None:
        ours = schema == home and table in {"logs", *WRITERS_TABLES}
        if ours and table != "version" and relation(conn, schema, "version") is not None:
            # Made once and dropped since: `migrate` goes by the version and would find nothing to do.
            old = quote(f"{schema}_old")
            fix = f"ALTER SCHEMA {quote(schema)} RENAME TO {old}; -- keeps the rest; then {migration(schema)}"
            return [Missing(f"table {full} does not exist", fix)]
        fix = migration(schema) if ours else f"CREATE TABLE {full} (...), or name another one with table="
        return [Missing(f"table {full} does not exist", fix)]
    # Any column will do for a table of the user's own: INSERT is often granted on some columns only.
    check = "has_table_privilege" if table in WRITERS_TABLES else "has_any_column_privilege"
    return [
        Missing(f"role {quote(role)} may not {privilege} on {full}", grant(privilege, full, role))
        for privilege in privileges
        if not scalar(conn, f"SELECT {check}(%s::oid, %s::text)", oid, privilege)
    ]


def _missing_version(conn: psycopg.Connection[Any], schema: str) -> Iterator[Missing]:
    applied = version(conn, schema)
    if applied < WRITERS_NEED:
        what = f"schema {quote(schema)} is at version {applied}, this logsluice needs {WRITERS_NEED}"
        yield Missing(what, migration(schema))


def _missing_function(conn: psycopg.Connection[Any], schema: str, role: str) -> Iterator[Missing]:
    if scalar(conn, "SELECT relkind::text FROM pg_class WHERE oid = %s::oid", relation(conn, schema, "logs")) != "p":
        return  # a plain table has room for every row
    full = f"{quote(schema)}.{FUNCTION}"
    allowed = scalar(
        conn,
        "SELECT has_function_privilege(p.oid, 'EXECUTE') FROM pg_proc p JOIN pg_namespace n ON n.oid = p.pronamespace "
        "WHERE n.nspname = %s::text AND p.proname = 'make_partitions'",
        schema,
    )
    if allowed is None:
        yield Missing(f"function {full} does not exist", migration(schema))
    elif not allowed:
        yield Missing(f"role {quote(role)} may not EXECUTE {full}", grant("EXECUTE", f"FUNCTION {full}", role))
