"""
Connecting, for `logsluice doctor`: the connection, or the cause in one sentence and what to do about it. `Database` is
what the checks of database.py, tables.py and record.py share.

No text of libpq is shown that may hold a part of the password: a password with an `@` that is not percent-encoded
becomes half of a host name, and libpq quotes host names.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import psycopg
from psycopg import conninfo

from logsluice.columns import quote
from logsluice.doctor import FAIL, Finding
from logsluice.errors import ConfigError
from logsluice.sinks.failures import first_line
from logsluice.sinks.link import LimitedConnection, check_dsn, read_times, resolve_dsn

if TYPE_CHECKING:
    from collections.abc import Callable

    from logsluice.columns import Table
    from logsluice.config import PostgresSettings

# Seconds, for connecting and for each answer: a person waits; a server that needs longer is the finding.
LIMIT = 10


class Place(NamedTuple):
    """What an error says of where it happened; empty when it does not."""

    where: str  # host and port, or the socket
    role: str
    database: str
    host: str


# What libpq or the server says: what it means, what to do. {where}, {role}, {database}, {host} are filled in. The words
# are English ones; a server that speaks another language is quoted instead.
_CAUSES = (
    (r"failed to resolve host|could not translate host name",
     "host {host} is not known here", "correct the host in the dsn; `getent hosts {host}` asks this machine"),
    (r"Connection refused",
     "nothing listens at {where}", "start PostgreSQL there, or correct host and port in the dsn"),
    (r"on socket .* No such file or directory",
     "no PostgreSQL listens on the socket {where}",
     "start PostgreSQL on this machine, or name its host in the dsn: host=... dbname=... user=..."),
    (r"timeout expired|timed out|did not answer|No route to host|Network is unreachable",
     "{where} does not answer", "correct host and port in the dsn, or let the firewall between pass them"),
    (r"password authentication failed",
     "role {role} and this password do not fit at {where}",
     "correct user and password (dsn, PGPASSWORD or ~/.pgpass), or set it there: \\password {role} in psql"),
    (r"no password supplied",
     "{where} asks for a password and none is given", "put one into PGPASSWORD, ~/.pgpass or the dsn"),
    (r"(?:Peer|Ident|GSSAPI|LDAP|RADIUS|PAM|certificate) authentication failed",
     "{where} does not take this login for role {role}: {said}",
     "connect as the role that pg_hba.conf maps to this user, or through host=localhost with a password"),
    (r"no pg_hba\.conf entry",
     "pg_hba.conf at {where} lets nobody in from here: {said}",
     'have a line for this database, role and address put there ("no encryption" in it: try sslmode=require first)'),
    (r"database .* does not exist",
     "there is no database {database} at {where}", "correct dbname in the dsn, or make it: createdb {database}"),
    (r"role .* does not exist",
     "there is no role {role} at {where}",
     "correct user in the dsn, or make it: CREATE ROLE {quoted_role} LOGIN PASSWORD '...';"),
    (r"is not permitted to log in", "role {role} may not log in", "ALTER ROLE {quoted_role} LOGIN;"),
    (r"permission denied for database",
     "role {role} may not connect to this database", "GRANT CONNECT ON DATABASE ... TO {quoted_role};"),
    (r"server does not support SSL",
     "{where} offers no TLS, and the dsn demands it", "switch TLS on at the server, or take sslmode out of the dsn"),
    (r"certificate|SSL|TLS",
     "TLS with {where} fails: {said}",
     "let sslrootcert name the CA that signed the server's certificate, and host be the name in it"),
    (r"too many clients|connection slots|too many connections",
     "{where} has no connection to spare", "end idle ones, raise max_connections, or put a pooler before it"),
    (r"unsupported startup parameter",
     "the pooler at {where} takes no such setting: {said}",
     "take options= and the like out of the dsn, or name them in ignore_startup_parameters of pgbouncer.ini"),
    (r"starting up|shutting down|recovery mode|not yet accepting", "{where} is {said}", "wait and run doctor again"),
    (r"invalid port number", "the port is no number from 1 to 65535", "correct the port in the dsn"),
    (r"expected authentication request",
     "what answers at {where} is no PostgreSQL", "correct host and port in the dsn"),
)  # fmt: skip


@dataclass(frozen=True)
class Database:
    """What the checks share."""

    conn: psycopg.Connection[Any]
    settings: PostgresSettings
    target: Table
    now: Callable[[], float]  # this machine's clock, seconds since the epoch

    def one(self, query: str, *values: Any) -> Any:
        """Return the first column of the first row, None without a row."""
        row = self.conn.execute(query, values or None).fetchone()
        return None if row is None else row[0]

    def may(self, privilege: str, table: str) -> bool:
        """Whether the role has a privilege on a table, whose schema it may use."""
        return bool(self.one("SELECT has_table_privilege(to_regclass(%s), %s)", table, privilege))

    def table(self, name: str) -> str:
        """Return a table of our schema as SQL."""
        return f"{quote(self.settings.schema)}.{name}"


def connect(settings: PostgresSettings) -> LimitedConnection | Finding:
    """Connect as the handler would, with autocommit; or say why that fails. Blocks for at most some `LIMIT`s."""
    try:
        dsn = resolve_dsn(settings)
        wrong = check_dsn(settings)
    except ConfigError as error:
        return Finding(FAIL, "connect", str(error), "give the handler a dsn that doctor can read, too")
    except Exception as error:
        what = f"the dsn callable raises {type(error).__name__}"
        return Finding(FAIL, "connect", what, "call it by hand in your program's environment")
    if wrong is not None:
        what, _, step = wrong.partition(". ")
        return Finding(FAIL, "connect", what, step or "correct the dsn")
    given = conninfo.conninfo_to_dict(dsn)
    ours: dict[str, Any] = {"fallback_application_name": "logsluice doctor"}
    if "PGCONNECT_TIMEOUT" not in os.environ:
        ours["connect_timeout"] = LIMIT
    try:
        conn = LimitedConnection.connect(autocommit=True, prepare_threshold=None, **{**ours, **given})
        read_times(conn)
    except psycopg.Error as error:
        return cause(str(error), given)
    conn.limit = LIMIT
    return conn


def cause(text: str, given: dict[str, Any]) -> Finding:
    """Return what an error while connecting means."""
    line = _scrub(first_line(text), given)
    at = re.search(r'server (?:at|on socket) "([^"]+)"(?:, port (\d+))?', line)
    host = re.search(r"resolve host '([^']+)'", line)
    role = re.search(r'(?:user|role) "([^"]+)"', line)
    database = re.search(r'database "([^"]+)"', line)
    place = Place(
        "the server" if at is None else f"{at[1]}:{at[2]}" if at[2] else at[1],
        role[1] if role else str(given.get("user") or "(libpq's default)"),
        database[1] if database else str(given.get("dbname") or "(libpq's default)"),
        host[1] if host else str(given.get("host") or ""),
    )
    said = re.sub(r"^.* failed: |FATAL: +", "", line)
    words = {**place._asdict(), "said": said, "quoted_role": quote(place.role)}
    for pattern, what, step in _CAUSES:
        if re.search(pattern, text):
            implicit = "" if given.get("host") or "host" in text else " (the dsn names no host)"
            return Finding(FAIL, "connect", what.format(**words) + implicit, step.format(**words))
    return Finding(FAIL, "connect", f"cannot connect: {line}", "correct the dsn, or ask who runs that server")


def next_step(error: psycopg.Error) -> str:
    """Return what to do about an error that ended the checks."""
    if "statement pooling" in str(error):
        return "set pool_mode = transaction for this database in pgbouncer.ini: a batch is one transaction"
    if error.sqlstate == "55P03":
        return (
            "end what holds the lock: SELECT pid, query FROM pg_stat_activity WHERE state LIKE 'idle in transaction%';"
        )
    return "look into the server's log of this minute, then run doctor again"


def _scrub(text: str, given: dict[str, Any]) -> str:
    """Take out the password, unless it is a word that is no secret, such as the role's name."""
    public = {str(given.get(key)) for key in ("user", "dbname", "host", "port")}
    for key in ("password", "sslpassword", "oauth_client_secret"):
        if given.get(key) and str(given[key]) not in public:
            text = text.replace(str(given[key]), "***")
    return text


def reason(error: psycopg.Error) -> str:
    """Return the server's message without DETAIL, which can hold row content."""
    return first_line(error.diag.message_primary or str(error)) or type(error).__name__
