"""The connection of a handler: opened when it is needed, never waiting for longer than a limit, closed when idle."""

from __future__ import annotations

import difflib
import os
import re
import time
import traceback
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import psycopg
from psycopg import conninfo, pq

from logsluice import lifecycle, privileges, schema
from logsluice.columns import target_from
from logsluice.delivery import Failure
from logsluice.errors import ConfigError
from logsluice.sinks import SinkError
from logsluice.sinks.failures import IoTimeoutError, first_line, translated

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Mapping

    from logsluice.config import PostgresSettings
    from logsluice.diagnostics import Diagnostics

POLL = 0.1  # seconds between looks at the clock while waiting for the server; also how late a limit may be
KEEPALIVE = {"keepalives_idle": 30, "keepalives_interval": 10, "keepalives_count": 3}  # seconds, seconds, probes

# In libpq's words (translated ones are not recognised and only retried faster). The last: TLS, never without it.
_REFUSED_LOGIN = re.compile(
    r"password authentication failed|no password supplied|no pg_hba\.conf entry|role .* does not exist"
    r"|certificate verify failed|server certificate for .* does not match|does not support SSL"
)
MISREAD = (
    "dsn: libpq takes a part of the password for the host, port or database. Percent-encode its odd characters: "
    "@ is %40, : is %3A, / is %2F, % is %25"
)


class LimitedConnection(psycopg.Connection[Any]):
    """A connection whose every wait ends at a limit; psycopg has none of its own. A timed-out one is closed."""

    limit: float = 30.0  # seconds for one answer
    deadline: Callable[[], float | None] = staticmethod(lambda: None)  # monotonic time at which all waiting ends
    gate: AbstractContextManager[Any] = nullcontext()  # held inside libpq, not while waiting; see lifecycle.new_gate

    def wait(self, gen: Generator[Any, Any, Any], interval: float = POLL, timeout: float | None = None) -> Any:  # noqa: ARG002 - ours rules
        """Run one of psycopg's generators, at most `limit` seconds and not past `deadline`."""
        return super().wait(self._limited(gen), interval=min(interval, POLL))

    @classmethod
    def _connect_gen(cls, *args: Any, **kwargs: Any) -> Generator[Any, Any, Any]:
        """Connect, but not past `deadline`: libpq's own limit may be longer than an exit has time."""
        gen = super()._connect_gen(*args, **kwargs)
        try:
            with cls.gate:
                wanted = next(gen)
            while True:
                ready = yield wanted
                stop = cls.deadline()
                if not ready and stop is not None and time.monotonic() >= stop:
                    raise IoTimeoutError("the server did not answer a new connection in time")
                with cls.gate:
                    wanted = gen.send(ready)
        except StopIteration as stop_iteration:
            return stop_iteration.value

    def _limited(self, gen: Generator[Any, Any, Any]) -> Generator[Any, Any, Any]:
        end = time.monotonic() + self.limit
        try:
            with self.gate:
                wanted = next(gen)
            while True:
                ready = yield wanted
                if ready:
                    with self.gate:
                        wanted = gen.send(ready)
                    continue
                stop = self.deadline()
                if time.monotonic() >= (end if stop is None else min(end, stop)):
                    # Closed before raising: psycopg's cleanup would wait for the same silent server again.
                    with self.gate:
                        self.pgconn.finish()
                    raise IoTimeoutError(f"the server did not answer within {self.limit:g} s")
        except StopIteration as stop_iteration:
            return stop_iteration.value


@dataclass
class Link:
    """The one connection of a handler, opened when it is needed. Listener thread only."""

    settings: PostgresSettings
    diagnostics: Diagnostics
    deadline: Callable[[], float | None]
    now: Callable[[], float] = time.time
    conn: LimitedConnection | None = None
    checked: set[str] = field(default_factory=set)  # targets whose table was read through this connection
    partitions_due: dict[str, float] = field(default_factory=dict)  # table -> when to look at its partitions, by `now`
    gate: Any = field(default_factory=lifecycle.new_gate)
    kind: type[LimitedConnection] = LimitedConnection  # of its own: connecting knows the deadline by its class

    def __post_init__(self) -> None:
        class OfThisLink(LimitedConnection):
            deadline = staticmethod(self.deadline)
            gate = self.gate

        self.kind = OfThisLink

    def open(self) -> LimitedConnection:
        """Return the connection; connect, and check or make the schema, if there is none."""
        # One that an unforeseen exception left inside a transaction is no beginning: COPY would add its rows again.
        if self.conn is not None and self.conn.pgconn.transaction_status == pq.TransactionStatus.IDLE:
            return self.conn
        self.close()
        conn = self._connect()
        self.conn = conn
        try:
            self._schema(conn)
        except BaseException:
            self.close()
            raise
        return conn

    def close(self) -> None:
        """Close the connection, if there is one."""
        conn, self.conn = self.conn, None
        self.checked.clear()
        self.partitions_due.clear()
        if conn is not None:
            with self.gate:
                conn.pgconn.finish()  # not conn.close(): nothing may wait or warn here

    def _connect(self) -> LimitedConnection:
        try:
            dsn = resolve_dsn(self.settings)
            parameters = conninfo.conninfo_to_dict(dsn)
        except ConfigError as error:
            raise SinkError(Failure(str(error), "28000", connecting=True)) from None
        except BaseException as error:  # a callable that fails (or exits), a dsn that libpq cannot read
            # Its text is not shown: it may quote the secret.
            raise SinkError(
                Failure(f"the dsn could not be read ({type(error).__name__})", "28000", connecting=True)
            ) from None
        if misread(dsn, parameters):
            raise SinkError(Failure(MISREAD, "28000", connecting=True))
        password = parameters.get("password")
        self.diagnostics.secrets = (str(password),) if password else ()
        defaults: dict[str, Any] = {"connect_timeout": max(2, int(self.settings.io_timeout)), **KEEPALIVE}
        name = f"logsluice/{self.settings.service}" if self.settings.service else "logsluice"
        try:
            conn = self.kind.connect(
                dsn,
                autocommit=True,  # we say BEGIN ourselves, in one message with what follows
                prepare_threshold=None,  # a pooler in transaction mode knows no prepared names
                fallback_application_name=name,
                **{key: value for key, value in defaults.items() if key not in parameters},
            )
        except Exception as error:
            # psycopg leaves a timed-out connect in a cycle of frames: its socket would stay open until a collection.
            traceback.clear_frames(error.__traceback__)
            text = str(error)
            refused = isinstance(error, psycopg.OperationalError) and _REFUSED_LOGIN.search(text)
            raise SinkError(Failure(first_line(text), "28000" if refused else None, connecting=True)) from None
        conn.limit = self.settings.io_timeout
        return conn

    def _schema(self, conn: LimitedConnection) -> None:
        """Make the schema if we may, and raise what is missing with the SQL that mends it."""
        name = self.settings.schema
        refused: SinkError | None = None
        if self.settings.create:
            made: list[str] = []
            try:
                with translated():
                    made = schema.migrate(conn, name, self.settings.partition)
            except SinkError as error:
                if conn.closed:
                    raise
                refused = error  # what is missing, if anything is, says it better; if nothing is, we can write
            if made:
                info = conn.info
                self.diagnostics.say(
                    "created",
                    f"made schema {name!r} ({', '.join(made)}) in database {info.dbname!r} on {info.host}:{info.port} "
                    f"as {info.user!r}; create=False stops this",
                )
        what, fix = self.missing(conn)
        if what:
            if refused and refused.failure.sqlstate != "42501":
                raise refused
            also = f" (create=True could not make it: {refused})" if refused else ""
            raise SinkError(Failure(what + also, "42501", hint=fix))

    def missing(self, conn: LimitedConnection) -> tuple[str, str]:
        """Return what our role lacks to write, and the SQL that mends it; two empty texts if nothing."""
        target = target_from(self.settings.schema, self.settings.table, self.settings.columns)
        with translated():
            found = privileges.missing(conn, self.settings.schema, table=(target.schema, target.table))
        return "; ".join(one.what for one in found), "; ".join(one.fix for one in found)


def resolve_dsn(settings: PostgresSettings) -> str:
    """Return the dsn as it is now: environment variables and callables are asked at each connect."""
    if settings.dsn_env is not None:
        try:
            return os.environ[settings.dsn_env]
        except KeyError:
            raise ConfigError(f"the environment variable {settings.dsn_env!r} (dsn_env) is not set") from None
    dsn = settings.dsn() if callable(settings.dsn) else settings.dsn
    if not isinstance(dsn, str):
        raise ConfigError(f"the dsn callable must return a string, it returned {type(dsn).__name__}")
    return dsn


def described(settings: PostgresSettings) -> dict[str, str]:
    """Return where a dsn leads, without secrets: host, port, dbname. A callable is not asked: it may take its time."""
    if callable(settings.dsn):
        return {"host": "(callable)", "port": "", "dbname": ""}
    try:
        given = conninfo.conninfo_to_dict(resolve_dsn(settings))
    except (psycopg.ProgrammingError, ConfigError):
        return {"host": "(unreadable)", "port": "", "dbname": ""}
    found = {
        "host": given.get("host") or given.get("hostaddr") or os.environ.get("PGHOST") or "",
        "port": given.get("port") or os.environ.get("PGPORT") or "5432",
        "dbname": given.get("dbname") or os.environ.get("PGDATABASE") or given.get("user") or "",
    }
    return {key: str(value) for key, value in found.items()}


def read_times(conn: psycopg.Connection[Any]) -> None:
    """Have a reader's session write times as ISO, as psycopg reads them: a database may say another DateStyle."""
    if not (conn.info.parameter_status("DateStyle") or "").startswith("ISO"):
        conn.execute("SET datestyle = 'ISO'")  # of the few settings that poolers keep for each of their clients


def misread(dsn: str, parameters: Mapping[str, Any]) -> bool:
    """Whether an odd character of a password seems to have ended it early: the rest would be shown as the host."""
    if "://" not in dsn:
        return False
    # In the raw text: an encoded @ in a database's name is right.
    authority, _, path = dsn.partition("://")[2].partition("?")[0].partition("/")
    port = str(parameters.get("port") or "")
    return authority.count("@") > 1 or "@" in path or re.fullmatch(r"[\d,]*", port) is None


def check_dsn(settings: PostgresSettings) -> str | None:
    """Return what is wrong with a dsn, in our own words: libpq's message may quote a part of the password."""
    try:
        dsn = resolve_dsn(settings)
        if misread(dsn, conninfo.conninfo_to_dict(dsn)):
            return MISREAD
    except psycopg.ProgrammingError as error:
        option = re.search(r'invalid connection option "(\w{1,40})"', str(error))
        if option:
            known = [o.keyword.decode() for o in pq.Conninfo.get_defaults()]
            near = difflib.get_close_matches(option[1], known, n=1)
            if near:
                return f"dsn: libpq knows no option {option[1]!r}; did you mean {near[0]!r}?"
        return (
            "dsn: libpq cannot read it (its message is not shown, it may quote the password). Write "
            "postgresql://user:password@host:5432/dbname with odd characters percent-encoded, or key=value pairs"
        )
    return None
