"""
Stored records, read: filtered, page by page, streamed, followed, counted.

    with Query("dbname=logs") as query:
        for record in query.logs('level>=warning service=shop "card refused"', since="2h"):
            print(record.ts, record.message, record.attributes)

grammar.py says what a filter may be, docs/howto/query.md shows it. Each call is one read-only transaction with a
statement timeout and a search_path of pg_catalog alone; every value is a parameter.
"""

from __future__ import annotations

import contextlib
import threading
from datetime import datetime, timedelta, timezone
from typing import TYPE_CHECKING, Any
from uuid import UUID

import psycopg
from psycopg import sql
from psycopg.pq import TransactionStatus
from psycopg.rows import tuple_row
from psycopg_pool import ConnectionPool, PoolTimeout

from logsluice import conditions, grammar
from logsluice.columns import in_query, quote
from logsluice.config import PostgresSettings
from logsluice.errors import ConfigError, LogsluiceError
from logsluice.following import Follower
from logsluice.late import Late
from logsluice.records import Count, Key, Plan, Record, key_of, maker, read_json, shown
from logsluice.sinks.link import check_dsn
from logsluice.types import RANGES

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator, Sequence
    from datetime import tzinfo

    from logsluice.conditions import Condition

    When = str | datetime | timedelta | None  # "2h", a time, or how long ago
    Position = Record | Key | str  # str: an id that says when, ts~stream~seq

__all__ = ["Count", "Key", "Late", "Query", "Record"]

CONNECT_SECONDS = 10.0  # that a call waits for a connection of the pool: a person may be waiting
POOL_SIZE = 4  # connections at most, opened as they are needed: readers are people and pages, not traffic
FETCH = 1_000  # rows fetched at a time while streaming: 1 MB of ordinary ones
FOLLOW_WINDOW = 60.0  # seconds that a record may be late for `follow`: batches commit after their records were made
MOST_WINDOW = 86_400  # seconds, a day: each wide look reads all rows of it
# jit: it compiles the same expressions anew for each partition, longer than the query then takes.
_SETTINGS = """
    SELECT pg_catalog.set_config('transaction_read_only', 'on', true),
           pg_catalog.set_config('statement_timeout', %s, true), pg_catalog.set_config('timezone', 'UTC', true),
           pg_catalog.set_config('datestyle', 'ISO', true), pg_catalog.set_config('client_encoding', 'UTF8', true),
           pg_catalog.set_config('search_path', 'pg_catalog', true), pg_catalog.set_config('jit', 'off', true)
"""
_COLUMNS = """
    SELECT a.attname, format_type(a.atttypid, NULL)
      FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace JOIN pg_attribute a ON a.attrelid = c.oid
     WHERE n.nspname = %s AND c.relname = %s AND c.relkind = ANY ('{r,p,v,m,f}') AND a.attnum > 0
       AND NOT a.attisdropped AND has_column_privilege(c.oid, a.attnum, 'SELECT')
     ORDER BY a.attnum
"""
# Tables with the columns of a record. Partitions are read through their parent; `logs` comes first.
TABLES = """
    SELECT c.relname FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
     WHERE n.nspname = %s AND c.relkind IN ('r', 'p') AND NOT c.relispartition
       AND (SELECT count(*) FROM pg_catalog.pg_attribute a WHERE a.attrelid = c.oid AND NOT a.attisdropped
                AND a.attname IN ('ts', 'stream', 'seq')) = 3
       AND has_table_privilege(c.oid, 'SELECT')
     ORDER BY c.relname <> 'logs', c.relname
"""


class _AwayError(LogsluiceError):
    """No connection was to be had."""


class Query:
    """
    It reads stored records.

    `where`: a libpq string or URI, for a pool of its own that the first call opens (at most 4 connections; `close` ends
    it); a `psycopg_pool.ConnectionPool`; or a `psycopg.Connection` that is in no transaction. `statement_timeout`:
    seconds a statement may take, None for ever. `zone`: of dates and times in filters that do not say theirs. Raises
    `ConfigError` for arguments that cannot be right, such as a dsn that libpq cannot read.

    A call blocks for at most 10 s for a connection, and for `statement_timeout`. It raises `grammar.FilterError` for a
    filter that cannot be read, `LogsluiceError` for a table that is not there, an id that is none, or what took too
    long, and psycopg's errors for what the server says. It may be used by several threads, unless `where` is a
    connection. It needs SELECT on the tables, no other right.
    """

    def __init__(
        self, where: str | ConnectionPool[Any] | psycopg.Connection[Any], *, schema: str = "logsluice",
        statement_timeout: float | None = 30.0, zone: tzinfo = timezone.utc,
    ) -> None:  # fmt: skip
        if statement_timeout is not None and not 0.001 <= statement_timeout <= 2_000_000:  # what PostgreSQL takes
            raise ConfigError(
                f"statement_timeout must be 0.001 to 2,000,000 seconds, or None for no limit, got {statement_timeout!r}"
            )
        if not isinstance(where, (str, ConnectionPool, psycopg.Connection)):  # above all None, of an environment
            raise ConfigError(f"where must be a libpq string, a ConnectionPool or a Connection, got {where!r:.100}")
        self.schema, self.zone = schema, zone
        self._timeout = statement_timeout
        self._owned = isinstance(where, str)
        self._where: Any = where
        if isinstance(where, str):
            wrong = check_dsn(PostgresSettings(dsn=where))
            if wrong:
                raise ConfigError(wrong)
            # prepare_threshold: prepared statements do not go through PgBouncer in transaction mode.
            options = {"autocommit": True, "prepare_threshold": None, "fallback_application_name": "logsluice"}
            self._where = ConnectionPool(where, kwargs=options, min_size=0, max_size=POOL_SIZE, open=False)

    def __enter__(self) -> Query:  # noqa: PYI034 - Self is typing_extensions'
        return self

    def __exit__(self, *_exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the pool, if it is our own. May be called again."""
        if self._owned:
            self._where.close()

    # --- records ------------------------------------------------------------------------------------------------------

    def logs(
        self, filter: str = "", *, table: str = "logs", since: When = None, until: When = None,  # noqa: A002 - its name
        limit: int = 100, after: Position | None = None, before: Position | None = None, newest_first: bool = True,
    ) -> list[Record]:  # fmt: skip
        """
        Return at most `limit` records, from `since` on and before `until`.

        `after` and `before` take a record, its key or its id: what comes later in time than it, or earlier. With one of
        them the records nearest to it are taken, whichever way they are then sorted, so the next page of older ones is
        `before=page[-1]`, and back again is `after=page[0]`. The order is by ts, stream and seq: records of the same
        microsecond have one, too, and no page shows a record twice.
        """
        more = [
            conditions.made(f"r.ts {op}= %s AND (r.ts, r.stream, r.seq) {op} (%s, %s, %s)", values=[key.ts, *key])
            for op, key in ((">", key_of(after)), ("<", key_of(before))) if key is not None
        ]  # fmt: skip
        backwards = newest_first if (after is None) == (before is None) else after is None
        found = self._page(filter, table, since, until, limit, backwards=backwards, more=more)
        return found if backwards == newest_first else found[::-1]

    def iterate(
        self, filter: str = "", *, table: str = "logs", since: When = None, until: When = None,  # noqa: A002 - as above
        newest_first: bool = False,
    ) -> Generator[Record, None, None]:  # fmt: skip
        """
        Yield all records that fit, any number of them in the memory of 1,000, as they are when the first is asked for.

        Until it ends or is closed (`contextlib.closing`) it keeps a connection and a transaction open, and the server
        cannot clean up what is deleted meanwhile. The timeout is for each 1,000.
        """
        with self._reading() as conn:
            plan = self._plan(conn, filter, table, since, until)
            with conn.cursor("logsluice_query", row_factory=tuple_row) as cursor:
                cursor.itersize = FETCH
                read_json(cursor)
                cursor.execute(*plan.select(backwards=newest_first))
                for row in cursor:
                    yield plan.record(row)

    def follow(
        self, filter: str = "", *, table: str = "logs", since: When = None, last: int | None = None,  # noqa: A002 - as above
        poll: float = 1.0, window: float = FOLLOW_WINDOW, late: Callable[[Late], None] | None = None,
        notice: Callable[[str], None] | None = None, stop: threading.Event | None = None,
    ) -> Iterator[Record]:  # fmt: skip
        """
        Yield records as they are stored, each once; it ends when `stop` is set, else never.

        It begins with what is stored from `since` on, oldest first, or with the `last` so many of it; without either
        with what comes. It looks every `poll` seconds, yields what a look finds in the order of its time, and holds no
        connection in between.

        A record that is stored more than `window` seconds after it was made is not yielded: its program was cut off, or
        its clock is slow. `late` is called with a `Late` that says how many such a stream had, whatever the filter is,
        and what finds them: when no more of them come, and at most once a window for each stream. That needs SELECT on
        `stream`, too; without it, and of a view, late records go unnoticed, and each look reads the whole window.

        `notice` is called with a sentence about what a person should know: that, and when the connection is lost and
        there again. Over a pool it goes on after that, with nothing missed and nothing twice; over a connection of
        yours the error is raised, as is any error of the first look.
        """
        stop = stop or threading.Event()
        say = notice or (lambda _text: None)
        follower: Follower | None = None
        lost = end = False
        while not end:
            wait = True
            try:
                with self._reading(repeatable=True) as conn:
                    if follower is None:
                        follower = self._follower(conn, filter, table, since, last=last, window=window)
                        if not follower.counts_late:
                            say(f'this role may not read {quote(self.schema)}."stream", or {quote(table)} is a view: '
                                f"what is stored more than {window:g} s late is not told")  # fmt: skip
                    page = follower.read(conn)
                if lost:
                    say("connected again: nothing was missed")
                lost, wait = False, page.end
                yield from follower.accept(page)
                end = stop.is_set()
                self._tell_late(follower, late, at_end=end)
            except (psycopg.OperationalError, _AwayError) as error:
                if follower is None or isinstance(self._where, psycopg.Connection):
                    raise
                if not lost:
                    say(f"the connection is lost, trying again: {' '.join(str(error).split())}")
                lost, end = True, stop.is_set()
            if wait and not end:
                end = stop.wait(poll) and lost  # one look more: what came before `stop` is shown

    def _follower(
        self, conn: psycopg.Connection[Any], text: str, table: str, since: When, *, last: int | None,
        window: float,
    ) -> Follower:  # fmt: skip
        if not 0 < window <= MOST_WINDOW:
            raise LogsluiceError(f"window must be more than 0 and at most {MOST_WINDOW:,} seconds, got {window!r}")
        if last is not None and last != 0:
            _positive("last", last)
        others = [row[0] for row in conn.cursor(row_factory=tuple_row).execute(TABLES, [self.schema])]
        return Follower(
            conn, self._plan(conn, text, table, None, None), self.schema, table, others,
            since=None if since is None else self._when("since", since), last=last, window=timedelta(seconds=window),
        )  # fmt: skip

    def _tell_late(self, follower: Follower, late: Callable[[Late], None] | None, *, at_end: bool) -> None:
        for stream in follower.late.untold(at_end=at_end):
            with self._reading(repeatable=True) as conn:
                found = follower.late.measure(conn, stream)
            follower.late.told(found)
            if late is not None:
                late(found)

    def count(
        self, filter: str = "", *, table: str = "logs", since: When = None, until: When = None,  # noqa: A002 - as above
        capped: int = 10_000,
    ) -> Count:  # fmt: skip
        """Return how many records fit, counted up to `capped`: to count all of a big table takes minutes."""
        _positive("capped", capped)
        with self._reading() as conn:
            plan = self._plan(conn, filter, table, since, until)
            query = sql.SQL("SELECT count(*) FROM (SELECT FROM {} r WHERE {} LIMIT %s) AS found")
            cursor = conn.cursor(row_factory=tuple_row)
            cursor.execute(query.format(plan.source, plan.where.sql), [*plan.where.values, capped + 1])
            number = cursor.fetchone()[0]  # type: ignore[index]  # one row
        return Count(min(number, capped), number > capped)

    def columns(self, table: str = "logs") -> dict[str, str]:
        """Return the columns of a table that this role may read, each with its kind: what a filter may name."""
        with self._reading() as conn:
            return self._columns(conn, table)

    # --- named queries, over the tables of contrib --------------------------------------------------------------------

    def job(self, job_id: UUID | str, limit: int = 100) -> list[Record]:
        """Return the first lines of a job (`job_log`), oldest first."""
        return self._named("job_log", limit, _same("job_id", _uuid("job_id", job_id)), backwards=False)

    def jetstream(self, slice_uri: str | None = None, limit: int = 100) -> list[Record]:
        """Return the last lines of log_type "jetstream" (`job_log`), newest first: of a slice, and those of none."""
        ours = _same("log_type", "jetstream")
        if slice_uri is None:
            return self._named("job_log", limit, ours)
        of_slice = conditions.made("(r.slice_uri = %s::text OR r.slice_uri IS NULL)", values=[slice_uri])
        return self._named("job_log", limit, ours, of_slice)

    def slice(self, slice_uri: str, log_type: str | None = None, limit: int = 100) -> list[Record]:
        """Return the last lines of a slice (`job_log`), of one log_type or of all, newest first."""
        return self._named("job_log", limit, _same("slice_uri", slice_uri), _same("log_type", log_type))

    def status(self, status: str, limit: int = 100) -> list[Record]:
        """Return the last step of each message (`message_event`) whose last step has this status, newest first."""
        last = conditions.made(
            "NOT EXISTS (SELECT FROM {} l WHERE l.job_id = r.job_id AND (l.ts, -l.stream, l.seq) > (r.ts, -r.stream, "
            "r.seq))",
            sql.Identifier(self.schema, "message_event"),
        )  # the view message_logs breaks ties in the same way
        return self._named("message_event", limit, _same("status", status), last)

    def user(self, user_id: str, session_id: str | None = None, limit: int = 100) -> list[Record]:
        """Return what a user did last (`activity`), in one session or in all, newest first."""
        return self._named("activity", limit, _same("user_id", user_id), _same("session_id", session_id))

    def session(self, session_id: str, limit: int = 100) -> list[Record]:
        """Return what was done last in a session (`activity`), newest first."""
        return self._named("activity", limit, _same("session_id", session_id))

    def _named(self, table: str, limit: int, *more: Condition | None, backwards: bool = True) -> list[Record]:
        return self._page("", table, None, None, limit, backwards=backwards, more=[one for one in more if one])

    # --- how ----------------------------------------------------------------------------------------------------------

    def _page(
        self, filter: str, table: str, since: When, until: When, limit: int, *, backwards: bool,  # noqa: A002
        more: Sequence[Condition],
    ) -> list[Record]:  # fmt: skip
        _positive("limit", limit)
        with self._reading() as conn:
            plan = self._plan(conn, filter, table, since, until, more=more)
            cursor = conn.cursor(row_factory=tuple_row)
            read_json(cursor)
            cursor.execute(*plan.select(backwards=backwards, limit=limit))
            return [plan.record(row) for row in cursor]

    @contextlib.contextmanager
    def _reading(self, *, repeatable: bool = False) -> Iterator[psycopg.Connection[Any]]:
        """Begin a transaction that only reads, in which no statement takes for ever; of one snapshot if asked to."""
        timeout = "0" if self._timeout is None else f"{round(self._timeout * 1000)}ms"
        with self._connection() as conn:
            if conn.closed:  # whose status is none of those
                raise psycopg.OperationalError("the connection is closed")
            if conn.info.transaction_status != TransactionStatus.IDLE:
                raise LogsluiceError("the connection is in a transaction: commit it first, or give another one")
            try:
                with conn.transaction():
                    if repeatable:
                        conn.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
                    conn.execute(_SETTINGS, [timeout])
                    yield conn
            except psycopg.errors.QueryCanceled:
                raise LogsluiceError(
                    f"the query was stopped after {self._timeout:g} s: look at a shorter time (since, until), or give "
                    "it longer (statement_timeout, --timeout)"
                    if self._timeout is not None else "the query was stopped by somebody"
                ) from None  # fmt: skip

    @contextlib.contextmanager
    def _connection(self) -> Iterator[psycopg.Connection[Any]]:
        if isinstance(self._where, psycopg.Connection):
            yield self._where
            return
        if self._owned:
            self._where.open()
        try:
            conn = self._where.getconn(CONNECT_SECONDS)
        except PoolTimeout:
            raise _AwayError(
                f"no connection to the database within {CONNECT_SECONDS:g} s: the logger psycopg.pool says why"
            ) from None
        try:
            yield conn
        finally:
            self._where.putconn(conn)

    def _when(self, name: str, given: When) -> datetime:
        """Return the time that an argument means."""
        now = datetime.now(timezone.utc)
        if isinstance(given, timedelta):
            try:
                return now - given
            except OverflowError:
                raise LogsluiceError(f"{name}: {given} ago is before the year 1: give a shorter time") from None
        if isinstance(given, datetime):
            return given if given.tzinfo else given.replace(tzinfo=self.zone)
        if isinstance(given, str):
            return grammar.moment(given, now, self.zone)
        raise LogsluiceError(f"{name} must be a text such as '15m', a datetime or a timedelta, got {given!r:.100}")

    def _columns(self, conn: psycopg.Connection[Any], table: str) -> dict[str, str]:
        for name in (self.schema, table):
            if not name.isprintable():  # NUL and halves of characters would not even reach the server
                raise LogsluiceError(f"{name!r:.100} is no name of a table or schema that can be read")
        cursor = conn.cursor(row_factory=tuple_row)
        types: dict[str, str] = dict(cursor.execute(_COLUMNS, [self.schema, table]).fetchall())
        if not {"ts", "stream", "seq"} <= types.keys():
            there = ", ".join(row[0] for row in cursor.execute(TABLES, [self.schema])) or "none"
            raise LogsluiceError(
                f"there is no table {quote(self.schema)}.{quote(table)} with ts, stream and seq that this role may "
                f"read; tables of records there: {there}. A handler makes one with its first record, "
                "`logsluice migrate` makes logs now"
            )
        if table == "logs":
            types.pop("xact", None)  # the roll-up's own, of each row of it: nothing that was logged
        return {name: grammar.kind_of(name, sql_type) for name, sql_type in types.items()}

    def _plan(
        self, conn: psycopg.Connection[Any], text: str, table: str, since: When, until: When, *,
        more: Sequence[Condition] = (),
    ) -> Plan:  # fmt: skip
        kinds = self._columns(conn, table)
        cursor = conn.cursor()
        terms = grammar.parse(text, kinds, now=datetime.now(timezone.utc), zone=self.zone)
        for term in terms:
            if term.operator in grammar.REGEX:
                _try_regex(cursor, text, term)
        bounds = (
            None if given is None else self._when(name, given) for name, given in (("since", since), ("until", until))
        )
        where = conditions.all_of([conditions.between(*bounds), *more, *map(conditions.of_term, terms)])
        columns = sql.SQL(", ").join(shown(name, kind) for name, kind in kinds.items())
        return Plan(sql.SQL(in_query(self.schema, table)), columns, where, maker(table, tuple(kinds)))


def _try_regex(cursor: psycopg.Cursor[Any], text: str, term: grammar.Term) -> None:
    """Have the server read an expression before a table is: a wrong one is the filter's error, wherever rows are."""
    try:
        cursor.execute("SELECT '' ~ %s::text", [term.value])
    except psycopg.errors.InvalidRegularExpression as error:
        said = " ".join(str(error.diag.message_primary).split())
        raise grammar.FilterError(text, term.at, f"{said}: mend it, or write \\ before . ( [ * + ?") from None


def _same(column: str, value: Any) -> Condition | None:
    """Return the condition that a column has a value; None where none is asked for."""
    if value is None:
        return None
    # As a text: programs whose users have numbers give numbers, and PostgreSQL compares no text with them.
    cast, value = ("", value) if isinstance(value, UUID) else ("::text", str(value))
    return conditions.made(f"{{}} = %s{cast}", sql.SQL("r.{}").format(sql.Identifier(column)), values=[value])


def _uuid(name: str, given: UUID | str) -> UUID:
    try:
        return given if isinstance(given, UUID) else UUID(given)
    except (ValueError, AttributeError, TypeError):
        raise LogsluiceError(f"{name} must be a uuid, got {given!r:.100}") from None


def _positive(name: str, given: int) -> None:
    if not isinstance(given, int) or isinstance(given, bool) or not 1 <= given < RANGES["bigint"]:
        raise LogsluiceError(f"{name} must be a whole number from 1 on, got {given!r:.100}")
