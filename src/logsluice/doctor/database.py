"""
The database, for `logsluice doctor`: server, rights, clock; then the tables (tables.py, upkeep.py) and one
record sent and read back (record.py).

In the order in which things depend on each other; what a failure makes pointless is not tried. Nothing is changed that
the handler would not change itself with its first record: the schema with `create=True`, partitions.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import psycopg

from logsluice import privileges, schema
from logsluice.columns import check_table, quote, target_from
from logsluice.doctor import FAIL, OK, WARN, Finding, record, tables, upkeep
from logsluice.doctor.connect import Database, connect, next_step, reason
from logsluice.handlers import PostgresHandler

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from logsluice.config import PostgresSettings

OLDEST = 140000  # PostgreSQL 14: make_partitions needs multiranges
SKEW = 60.0  # seconds: beyond it "the last five minutes" shows other rows than the reader means
SKEW_DAY = 86400.0  # seconds: beyond it rows lie on another day, where nobody looks for them


def check_database(
    settings: PostgresSettings,
    make: Callable[[], PostgresHandler] | None = None,
    *,
    now: Callable[[], float] = time.time,
) -> Iterator[Finding]:
    """
    Check what a handler with these settings meets; yields findings as they come. Blocks for some `LIMIT`s at most.

    `make` makes the handler that sends the test record; None for one that fits the tables found.
    """
    conn = connect(settings)
    if isinstance(conn, Finding):
        yield conn
        return
    try:
        target = target_from(settings.schema, settings.table, settings.columns)
        yield from _checks(Database(conn, settings, target, now), make)
    except psycopg.Error as error:
        what = f"the checks could not be finished: {reason(error)}"
        yield Finding(FAIL, "server", what, next_step(error))
    finally:
        conn.pgconn.finish()  # not close(): nothing may wait or warn here


def _checks(database: Database, make: Callable[[], PostgresHandler] | None) -> Iterator[Finding]:
    found = list(_server(database))
    yield from found
    if any(one.status == FAIL for one in found):
        return
    reader = make is None and _reads_only(database)
    if reader:
        what = f"the role may read {database.target.name} and not write: looked at as a reader"
        yield Finding(OK, "rights", what)
    else:
        found = list(_rights(database))
        yield from found
        if any(one.status == FAIL for one in found):
            return
    yield from upkeep.unapplied(database)
    yield from _clock(database)
    width = database.settings.partition
    if not database.target.plain:
        found = list(_table(database))
    else:
        found, width = tables.check_partitions(database, None if make is None else width, make=not reader)
    yield from found
    yield from tables.dead_letters(database)
    yield from tables.streams(database)
    yield from upkeep.gaps(database)
    yield from upkeep.indexes(database)
    if reader or any(one.status == FAIL for one in found):
        return
    settings = database.settings
    yield record.probe(
        database,
        make() if make else PostgresHandler(dsn=settings.dsn, schema=settings.schema, create=False, partition=width),
    )


def _server(database: Database) -> Iterator[Finding]:
    conn = database.conn
    query = (
        "SELECT current_setting('server_version'), current_setting('transaction_read_only') = 'on', "
        "current_user::text, current_database()::text, pg_is_in_recovery(), pg_backend_pid()"
    )
    version, read_only, role, name, standby, pid = conn.execute(query).fetchone() or ("", False, "", "", False, 0)
    tls = "with TLS" if conn.pgconn.ssl_in_use else "without TLS"
    pooler = "" if pid == conn.info.backend_pid else ", behind a pooler"
    where = conn.info.host if conn.info.host.startswith("/") else f"{conn.info.host}:{conn.info.port}"
    what = f"PostgreSQL {version.split()[0]} at {where}, database {name}, role {role}, {tls}{pooler}"
    yield Finding(OK, "connect", what)
    if conn.info.server_version < OLDEST:
        yield Finding(
            FAIL, "server", "logsluice needs PostgreSQL 14 or newer", "update the server, or name another one"
        )
    if standby:
        step = "name the primary: host=one,other target_session_attrs=read-write in the dsn finds it"
        yield Finding(FAIL, "server", "this server is a standby and takes no rows", step)
    elif read_only:
        step = "take it out of the dsn (options=), the role or the database: \\drds in psql shows who sets it"
        yield Finding(FAIL, "server", "default_transaction_read_only is on: no rows are taken", step)


# --- rights -----------------------------------------------------------------------------------------------------


def _reads_only(database: Database) -> bool:
    """Whether the role is one of those that read: `doctor --dsn` is theirs, too."""
    home, logs = database.settings.schema, database.table("logs")
    # First: to_regclass raises for a schema that may not be used.
    usable = "SELECT has_schema_privilege(oid, 'USAGE') FROM pg_namespace WHERE nspname = %s"
    return bool(database.one(usable, home)) and database.may("SELECT", logs) and not database.may("INSERT", logs)


def _rights(database: Database) -> Iterator[Finding]:
    """Compare the role's rights with what a writer needs, after making what the handler itself would make."""
    conn, settings, target = database.conn, database.settings, database.target
    refused = ""
    if settings.create:
        try:
            made = schema.migrate(conn, settings.schema, settings.partition)
        except psycopg.Error as error:
            refused = f"; create=True could not make it: {reason(error)}"
        else:
            if made:
                what = f"made schema {quote(settings.schema)} ({', '.join(made)}), as the handler does (create=True)"
                yield Finding(OK, "schema", what)
    missing = privileges.missing(conn, settings.schema, table=(target.schema, target.table))
    for one in missing:
        ours = one.fix.startswith("logsluice migrate")
        yield Finding(FAIL, "rights", one.what + (refused if ours else ""), _fix(database, one, refused=bool(refused)))
    if refused and not missing:
        what = f"records are stored, but create=True cannot update the schema:{refused.rpartition(':')[2]}"
        yield Finding(WARN, "schema", what, "set create=False in the handler, and migrate as the owner")
    elif not missing:
        version = database.one(f"SELECT max(version) FROM {database.table('version')}")
        newer = ", made by a newer logsluice" if version > schema.sql_files()[-1].number else ""
        what = f"the role may write into {target.name}; schema {quote(settings.schema)} is at version {version}{newer}"
        yield Finding(OK, "rights", what)


def _fix(database: Database, missing: privileges.Missing, *, refused: bool) -> str:
    name, fix = database.settings.schema, missing.fix
    if fix.startswith("GRANT"):
        owner = database.one("SELECT pg_get_userbyid(nspowner)::text FROM pg_namespace WHERE nspname = %s", name)
        return f"{fix}; -- as {owner}, who owns the schema"
    if refused:
        role = database.one("SELECT current_user::text")
        return f"have the database's owner run: {fix} --sql --grant-to {role} | psql; and set create=False"
    return f"{fix} (--dsn or LOGSLUICE_DSN names this database)"


# --- clock, the user's table -----------------------------------------------------------------------------------


def _clock(database: Database) -> Iterator[Finding]:
    before = database.now()
    server = float(database.one("SELECT extract(epoch FROM clock_timestamp())"))
    ahead = (before + database.now()) / 2 - server
    if abs(ahead) <= SKEW:
        yield Finding(OK, "clock", f"this machine and the server differ by {abs(ahead):.1f} s")
        return
    direction = "ahead of" if ahead > 0 else "behind"
    what = f"this machine is {tables.span(abs(ahead))} {direction} the server, and rows carry this machine's time"
    status = FAIL if abs(ahead) > SKEW_DAY else WARN
    yield Finding(
        status,
        "clock",
        what,
        "set both clocks by NTP (timedatectl set-ntp true); until then look for rows at that distance",
    )


def _table(database: Database) -> Iterator[Finding]:
    """Compare the user's table with `columns`."""
    wrong = check_table(database.conn, database.target)
    if wrong is None:
        what = f"{database.target.name} has every column that columns= names"
        yield Finding(OK, "table", what)
    else:
        what, _, step = wrong.partition("; ")
        if not step.startswith(("add", "take", "create")):  # "did you mean ...", "it has ..."
            step = f"correct columns= ({step})" if step else "correct columns="
        yield Finding(FAIL, "table", what, step)
