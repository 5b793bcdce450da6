"""
One batch, one transaction (DESIGN D5): rows, dead letters and the watermark are committed together.

    BEGIN · SET LOCAL limits · SELECT position … FOR UPDATE       the lock comes before any data
    drop what lies below the watermark                            an earlier COMMIT may have arrived after all
    COPY the slice as it is
    COPY the rows set aside into dead_letter
    SET CONSTRAINTS ALL IMMEDIATE                                 a deferred constraint fails here, not in COMMIT
    UPDATE stream SET position, or an error                       a trigger or policy may swallow it
    COMMIT

The first line is one message and so are the last three, and an error skips what is left of its message: four round
trips a batch (the lock, COPY's beginning, its end, the end), and nothing is committed without its watermark. The lock
and COPY cannot share a message: psycopg's copy() refuses more than one statement, and COPY inside a pipeline.

Why a watermark and not a look before sending again: docs/explanation/pair.md. Only SET LOCAL, no prepared names, no
temporary tables, no session locks: it runs through PgBouncer in transaction mode.
"""

from __future__ import annotations

import dataclasses
import re
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import TYPE_CHECKING

import psycopg
from psycopg import pq

from logsluice import crashpoints, partitions, privileges, schema, types
from logsluice.columns import Table, check_table, quote
from logsluice.config import identity
from logsluice.delivery import Failure, Verdict, decide
from logsluice.encoding import copy_text
from logsluice.sinks import Counts, Outcome, SinkError
from logsluice.sinks.failures import escaped, failure_of, translated

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

    from logsluice.buffer import Batch
    from logsluice.sinks.link import LimitedConnection, Link

LOCK_SHARE = 4  # lock_timeout is a quarter of io_timeout: a held lock is said early, and is no time limit of the batch
PARTITION_CHECK = 3600.0  # seconds: partitions are made a day ahead, so one look an hour has 23 to spare
# A text, so that the server's cast of it is an error that quotes it, in whatever language its messages are.
NOT_MOVED = "the watermark could not be moved"
_NUMBER = re.compile(rb"-?\d{1,18}")
_WHO = ("service", "environment", "version", "host", "pid")
_JOURNAL_KNOWN = (
    "SELECT true FROM pg_attribute WHERE attrelid = %s::regclass AND attname = 'journal' AND NOT attisdropped"
)
PARTITION_RETRIES = 32  # partitions made for one batch, as it names them one at a time


@dataclass
class PostgresSink:
    """One stream's way into PostgreSQL. Rules: sinks/__init__.py."""

    link: Link
    target: Table
    stream: int
    known_base: bool = False  # the stream's row was seen: its absence later is no beginning
    missing: int = 0  # how often it was absent all the same
    who: Mapping[str, Any] | None = None  # of a stream that was adopted: whose it was
    sent_from: int = 0  # position of the first row of the last attempt

    @property
    def connected(self) -> bool:
        """Whether the connection is open."""
        return self.link.conn is not None

    def open(self) -> None:
        """Connect, make or check the schema, read the table, keep partitions ready; what is done is not done again."""
        conn = self.link.open()
        self._check(conn)
        self._partitions(conn)

    def write(self, batch: Batch, counts: Counts) -> Outcome:
        """Store a batch: see the top of the file. Blocks for at most a few times `io_timeout`."""
        conn = self.link.open()
        for _ in range(PARTITION_RETRIES):
            try:
                with translated(self.target.table):
                    return self._transaction(conn, batch, counts)
            except SinkError as error:
                self._recover(conn, error)  # raises, unless the same batch may be sent again
        raise SinkError(
            Failure(f"{PARTITION_RETRIES} partitions were made for one batch and more are missing", "23514")
        )

    def retire(self) -> None:
        """Say in the stream's row that its journal is gone; a lost chance only leaves the row for longer."""
        if self.link.conn is None:
            return
        try:
            with translated():
                self.link.open().execute(
                    f"BEGIN; {self._limits()}; UPDATE {self._table('stream')} SET retired = now() "
                    f"WHERE stream = {self.stream}; COMMIT".encode()
                )
        except SinkError as error:
            self.link.diagnostics.detail(f"the stream could not be retired: {error.failure.message}")
            self.link.close()

    def idle(self, seconds: float) -> None:
        """Close the connection after `idle_close` seconds without a batch."""
        if seconds >= self.link.settings.idle_close:
            self.link.close()

    def forked(self) -> None:
        """Leave the connection as it is: closing it would say goodbye on the parent's socket."""

    def close(self) -> None:
        """Close the connection."""
        self.link.close()

    def accepts_any(self, rows: list[bytes]) -> bool:
        """Try rows one by one in a transaction that is rolled back; True as soon as the table takes one."""
        conn = self.link.open()
        with translated():
            for row in rows:
                conn.execute(f"BEGIN; {self._limits()}")
                try:
                    self._copy(conn, row)
                    conn.execute("SET CONSTRAINTS ALL IMMEDIATE")
                except psycopg.Error:
                    if conn.closed:
                        raise
                else:
                    return True
                finally:
                    if not conn.closed:
                        conn.execute("ROLLBACK")
        return False

    # --- the transaction ----------------------------------------------------------------------------------------

    def _transaction(self, conn: LimitedConnection, batch: Batch, counts: Counts) -> Outcome:
        self.sent_from = batch.start
        watermark = self._lock_watermark(conn, batch.start)
        outcome = Outcome(batch.rows - len(batch.aside), len(batch.aside), known=watermark >= batch.end)
        if outcome.known:
            conn.execute("COMMIT")
            return outcome
        rest = batch if watermark <= batch.start else batch.after(watermark)
        self.sent_from = rest.start
        rows = b"".join(line for at, line in rest.lines() if at not in rest.aside) if rest.aside else rest.data
        if rows:
            self._copy(conn, rows)
        if rest.aside:
            self._dead_letters(conn, rest)
        dead = len(rest.aside)
        stored = rest.rows - dead - (rest.markers if self.target.plain else 0)
        crashpoints.reach("send")
        self._commit(
            conn,
            rest.end,
            f"stored = stored + {stored}, dead = dead + {dead}, offered = greatest(offered, {counts.offered}), "
            f"dropped = greatest(dropped, {counts.dropped})",
        )
        crashpoints.reach("after-commit")
        self.known_base = True  # not before: a row made by a transaction that fails is gone with it
        return outcome

    def _commit(self, conn: LimitedConnection, position: int, figures: str) -> None:
        """Move the watermark and commit, or neither, in one message: a fifth of the round trips of a small batch."""
        update = (
            f"UPDATE {self._table('stream')} SET position = {position}, {figures}, updated = now() "
            f"WHERE stream = {self.stream} RETURNING position"
        )
        # A trigger or a policy may swallow the UPDATE or change the number: without a watermark a retry would double.
        # An error in the SELECT is what keeps COMMIT, in the same message, from being reached.
        moved = f"SELECT (CASE count(*) WHEN 1 THEN '1' ELSE '{NOT_MOVED}' END)::int"
        guarded = f"WITH moved AS ({update}) {moved} FROM moved WHERE position = {position}"
        try:
            conn.execute(f"SET CONSTRAINTS ALL IMMEDIATE; {guarded}; COMMIT".encode())
        except psycopg.errors.InvalidTextRepresentation as error:
            # Ours has no context; the same error in a deferred trigger has one: where in the function it happened.
            if error.diag.context is None and NOT_MOVED in (error.diag.message_primary or ""):
                raise SinkError(Failure(f"{NOT_MOVED}: a trigger or policy on stream?", "55000")) from None
            raise

    def _lock_watermark(self, conn: LimitedConnection, base: int) -> int:
        look = f"SELECT position FROM {self._table('stream')} WHERE stream = {self.stream} FOR UPDATE"
        cursor = conn.execute(f"BEGIN; {self._limits()}; {look}".encode())
        while cursor.nextset():
            pass
        row = cursor.fetchone()
        if row is None:
            if base > 0 and self.known_base:
                self.missing += 1
                self.link.diagnostics.say(
                    "watermark",
                    "watermark_missing: the row of this stream is gone; from here to the last known "
                    "position records are stored at least once. Do not delete rows of stream in use.",
                )
            self._register(conn)
            row = conn.execute(look.encode()).fetchone()
            assert row is not None
        else:
            self.known_base = True
        return int(row[0])

    def _register(self, conn: LimitedConnection) -> None:
        who = identity(self.link.settings) if self.who is None else self.who
        values = {"stream": self.stream, **{key: who.get(key) for key in _WHO}}
        # Since version 4; a database may be older. An orphan's records were in a journal.
        if conn.execute(_JOURNAL_KNOWN, [self._table("stream")]).fetchone():
            values["journal"] = self.who is not None or self.link.settings.journal is not None
        conn.execute(
            f"INSERT INTO {self._table('stream')} ({', '.join(values)}) "
            f"VALUES ({', '.join(['%s'] * len(values))}) ON CONFLICT DO NOTHING",
            list(values.values()),
        )

    def _limits(self) -> str:
        """Return what bounds this transaction on the server, so that an abandoned one lets the watermark go."""
        settings = self.link.settings
        limit = max(100, int(settings.io_timeout * 1000))  # milliseconds
        # Twice ours: a server that gives up in the middle of a COPY closes the connection, which looks like an outage.
        # Its own limits are there to free what a dead client left behind.
        late = 2 * limit
        commit = (
            f"; SET LOCAL synchronous_commit = {settings.synchronous_commit}" if settings.synchronous_commit else ""
        )
        return (
            f"SET LOCAL lock_timeout = {limit // LOCK_SHARE}; SET LOCAL statement_timeout = {late}; "
            f"SET LOCAL idle_in_transaction_session_timeout = {late}; "
            f"SET LOCAL timezone = 'UTC'; SET LOCAL datestyle = 'ISO'{commit}"
        )

    def _copy(self, conn: LimitedConnection, rows: bytes) -> None:
        # Complete before copy() is entered: an exception inside it would travel into the server's log.
        with conn.cursor().copy(self.target.copy.encode()) as copy:
            copy.write(rows)

    def _dead_letters(self, conn: LimitedConnection, batch: Batch) -> None:
        seq_at = self.target.columns.index("seq") if self.target.ours else None
        columns = (
            "{" + ",".join('"' + c.replace("\\", "\\\\").replace('"', '\\"') + '"' for c in self.target.columns) + "}"
        )
        lines = []
        for at, line in batch.lines():
            why = batch.aside.get(at)
            if why is not None:
                seq = line.split(b"\t")[seq_at] if seq_at is not None else b""
                # Of a damaged row it may be anything.
                number = seq.decode() if _NUMBER.fullmatch(seq) else r"\N"
                texts = [
                    str(self.stream), number, str(at + len(line)), copy_text(self.target.name), copy_text(columns),
                    "\\\\x" + line.hex(), why.sqlstate or r"\N", escaped(self.link.diagnostics.scrub(why.message)),
                ]  # fmt: skip
                lines.append("\t".join(texts) + "\n")
        names = "stream, seq, position, target, columns, row, sqlstate, error"
        statement = f"COPY {self._table('dead_letter')} ({names}) FROM STDIN (FORMAT text, ENCODING 'UTF8')"
        try:
            with conn.cursor().copy(statement.encode()) as copy:
                copy.write("".join(lines).encode())
        except psycopg.Error as error:
            failure = failure_of(error)
            if decide(failure) is not Verdict.REJECT:
                raise
            # No row of the batch is to blame: taken for a rejection, one good row after the other would be set aside.
            raise SinkError(Failure(f"dead_letter takes no rows: {failure.message}", "55000")) from None

    # --- around it ----------------------------------------------------------------------------------------------

    def _check(self, conn: LimitedConnection) -> None:
        if self.target.typed and self.target.name not in self.link.checked:
            self._typed_table(conn)
        if not self.target.plain and self.target.name not in self.link.checked:
            with translated():
                wrong = check_table(conn, self.target)
            if wrong:
                raise SinkError(Failure(wrong, "42703"))
            self.link.checked.add(self.target.name)

    def _typed_table(self, conn: LimitedConnection) -> None:
        """Make a typed log's table if we may; raise what is missing in it, with the SQL that mends it."""
        settings, kind = self.link.settings, types.known.get(self.target.table)
        with translated():
            lacks = privileges.missing_typed(conn, self.target, kind, settings.partition)
            if lacks is not None and lacks.makes and settings.create:
                if schema.make_typed(conn, self.target, lacks.makes):
                    self.link.diagnostics.say(f"created-{self.target.table}", f"made table {self.target.name}", every=0)
                lacks = privileges.missing_typed(conn, self.target, kind, settings.partition)
        if lacks is not None:
            raise SinkError(Failure(lacks.what, "42P01", hint=lacks.fix))

    def _partitions(self, conn: LimitedConnection) -> None:
        """Keep partitions for today ± 1 day ready. A failure is said, and is no failure of the batch."""
        link, table = self.link, self.target.table
        due = link.partitions_due.get(table, 0.0)
        if not self.target.ours or link.settings.partition == "none" or link.now() < due:
            return
        link.partitions_due[table] = link.now() + PARTITION_CHECK
        try:
            with translated():
                partitions.ensure(conn, link.settings.schema, link.settings.partition, self._moment(), table=table)
        except SinkError as error:
            if conn.closed:
                raise
            link.diagnostics.say("partitions", f"partitions could not be made ahead: {error.failure.message}")

    def _moment(self) -> datetime:
        return datetime.fromtimestamp(self.link.now(), timezone.utc)

    def _recover(self, conn: LimitedConnection, error: SinkError) -> None:
        """Return if the batch may be sent again at once; else leave no transaction open and raise the error."""
        failure = error.failure = dataclasses.replace(error.failure, sent_from=self.sent_from)
        if not conn.closed and conn.info.transaction_status != pq.TransactionStatus.IDLE:
            try:
                conn.execute("ROLLBACK")
            except psycopg.Error:
                self.link.close()
        if self.link.conn is None or conn.closed or failure.sqlstate == "25006":
            self.link.close()  # 25006: a demoted primary looks healthy; the next connect must look for the new one
            raise error
        if failure.moment is not None and self.target.ours:
            settings = self.link.settings
            if settings.partition == "none":
                hint = "say partition='day' in the handler's options, or the width that it has"
                hint = f"{self.target.table} is partitioned: {hint}"
                raise SinkError(dataclasses.replace(failure, hint=hint)) from None
            try:
                with translated():
                    partitions.ensure_at(
                        conn, settings.schema, settings.partition, failure.moment, table=self.target.table
                    )
            except SinkError as refused:
                if refused.failure.sqlstate != "22023":
                    raise
                # Of all rows like it: no partition will ever be made for them, so they are kept as dead letters.
                message = "the row's time is too far from the server's for a partition: is this host's clock right?"
                raise SinkError(dataclasses.replace(failure, message=message, sqlstate="22023")) from None
            return
        if (failure.sqlstate or "").startswith(("42", "3F")):
            raise self._with_hint(conn, failure) from None
        raise error

    def _with_hint(self, conn: LimitedConnection, failure: Failure) -> SinkError:
        """Say at once what mends it: the next attempt may be half a minute away, and its line too many."""
        try:
            what, fix = self.link.missing(conn)
        except SinkError:
            what = fix = ""
        self.link.close()  # the next attempt looks at the schema again, and makes it if it may
        message = f"{failure.message}: {what}" if what else failure.message
        return SinkError(dataclasses.replace(failure, message=message, hint=fix or failure.hint))

    def _table(self, name: str) -> str:
        return f"{quote(self.target.home)}.{quote(name)}"
