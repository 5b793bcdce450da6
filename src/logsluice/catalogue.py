"""
What a database says in one value, and what its catalogues say of a table.

A table is asked for by its name: `to_regclass` raises for a schema that is not there or may not be used, and saying so
is often the purpose.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import psycopg


def scalar(conn: psycopg.Connection[Any], query: str, *values: Any) -> Any:
    """Return the first column of the first row; None without a row."""
    from psycopg.rows import tuple_row  # noqa: PLC0415 - importing this module costs no driver

    # Not as the connection has it: a program that reads its reports may have chosen dicts.
    with conn.cursor(row_factory=tuple_row) as cursor:
        row = cursor.execute(query, values or None, prepare=False).fetchone()
    return None if row is None else row[0]


def relation(conn: psycopg.Connection[Any], schema: str, table: str) -> int | None:
    """Return the oid of a table or view; None: there is none of this name."""
    query = (
        "SELECT c.oid FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace "
        "WHERE n.nspname = %s::text AND c.relname = %s::text AND c.relkind IN ('r', 'p', 'v', 'f')"
    )
    oid: int | None = scalar(conn, query, schema, table)
    return oid
