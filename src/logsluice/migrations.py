"""
What is applied in a database, what is not, and which file was changed since: what `logsluice migrate --plan` says.

Nothing is changed here, and no lock is taken. Checksums are for people: a handler applies what is missing and asks for
no checksum, for a record must never wait for somebody to look into an old file.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from logsluice.catalogue import relation, scalar
from logsluice.columns import quote
from logsluice.schema import sql_files

if TYPE_CHECKING:
    from datetime import datetime

    import psycopg

    from logsluice.schema import SqlFile

PENDING, APPLIED, UNRECORDED, CHANGED = "to apply", "applied", "applied, checksum not recorded", "changed since"


@dataclass(frozen=True)
class Step:
    """One file of `sql/`, and how it stands here."""

    file: SqlFile
    state: str  # PENDING, APPLIED, UNRECORDED: by psql, or by hand; CHANGED: the file is another one than was applied
    applied: datetime | None  # None: not yet
    checksum: str | None = None  # what was recorded

    @property
    def about(self) -> str:
        """What the file does: the first words of its heading."""
        return re.split(r", version \d+\.", self.file.text.removeprefix("-- "), maxsplit=1)[0]

    @property
    def lock(self) -> str:
        """What it locks, if its heading says so."""
        heading = re.match(r"(?:--.*\n)*", self.file.text)
        lines = heading[0].splitlines() if heading else []
        return next((line.removeprefix("-- ") for line in lines if re.search(r"\block", line)), "")


def plan(conn: psycopg.Connection[Any], schema: str = "logsluice") -> list[Step]:
    """Return all files in order, applied or not. Raises psycopg's error when `version` may not be read."""
    rows = []
    if relation(conn, schema, "version") is not None:
        query = f"SELECT version, checksum, applied FROM {quote(schema)}.version"
        rows = conn.execute(query, prepare=False).fetchall()
    there = {number: (checksum, applied) for number, checksum, applied in rows}
    steps = []
    for file in sql_files():
        checksum, applied = there.get(file.number, (None, None))
        if file.number not in there:
            state = PENDING
        elif checksum is None:
            state = UNRECORDED
        else:
            state = APPLIED if checksum == file.checksum else CHANGED
        steps.append(Step(file, state, applied, checksum))
    return steps


def changed(steps: list[Step], schema: str = "logsluice") -> str:
    """Return what to say and to do about files that are not what was applied; empty when there are none."""
    others = [step for step in steps if step.state == CHANGED]
    if not others:
        return ""
    names = ", ".join(step.file.name for step in others)
    record = "; ".join(
        f"UPDATE {quote(schema)}.version SET checksum = '{step.file.checksum}' WHERE version = {step.file.number}"
        for step in others
    )
    return (
        f"{names} was changed after it was applied here: the checksum that is recorded is another one. Install the "
        "logsluice that applied it, or put the file back: a change belongs into a file with the next number. If this "
        f"database has what the file says now, record that: {record}"
    )


def refusal(conn: psycopg.Connection[Any], schema: str = "logsluice") -> str:
    """Return what keeps the current role from applying files here; empty when nothing does. Reads catalogues only."""
    role, name = scalar(conn, "SELECT current_user::text"), quote(schema)
    if scalar(conn, "SELECT true FROM pg_namespace WHERE nspname = %s::text", schema) is None:
        if scalar(conn, "SELECT has_database_privilege(current_database(), 'CREATE')"):
            return ""
        database = quote(scalar(conn, "SELECT current_database()::text"))
        return f"role {quote(role)} may not make schema {name}: GRANT CREATE ON DATABASE {database} TO {quote(role)}"
    if not scalar(conn, "SELECT has_schema_privilege(%s::text, 'CREATE')", schema):
        return f"role {quote(role)} may not CREATE in schema {name}"
    # Files alter tables and replace views, and that their owner alone may.
    others = conn.execute(
        "SELECT c.relname::text, pg_get_userbyid(c.relowner)::text FROM pg_class c "
        "JOIN pg_namespace n ON n.oid = c.relnamespace WHERE n.nspname = %s::text AND c.relkind IN ('r', 'p', 'v') "
        "AND NOT c.relispartition AND NOT pg_has_role(c.relowner, 'USAGE') ORDER BY 1 LIMIT 1",
        [schema], prepare=False,
    ).fetchone()  # fmt: skip
    return f"role {quote(role)} may not: {quote(others[0])} belongs to {quote(others[1])}" if others else ""
