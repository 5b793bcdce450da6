"""
One record, for `logsluice doctor`: sent, read back, and taken out again.

It goes through a real handler into `logs`, and is deleted again if the role may. Into a table of the user's own its row
goes as COPY in a transaction that is rolled back: doctor leaves no junk there.
"""

from __future__ import annotations

import logging
import random
import string
import time
from dataclasses import replace
from typing import TYPE_CHECKING

import psycopg

from logsluice.doctor import FAIL, OK, WARN, Finding
from logsluice.sinks.failures import failure_of

if TYPE_CHECKING:
    from logsluice.doctor.connect import Database
    from logsluice.handlers import PostgresHandler

LOGGER = "logsluice_doctor"  # not `logsluice.doctor`: records of that name are our own noise and never stored
SECONDS = 10.0  # for one record: a healthy server needs some ms, a person does not wait longer
KEY = "doctor"  # the extra that holds the mark


def probe(database: Database, handler: PostgresHandler) -> Finding:
    """Send one record. Blocks for at most `SECONDS` and the handler's `shutdown_timeout`."""
    # Letters only: a pattern of redact= may take digits for a card number.
    mark = "".join(random.choices(string.ascii_lowercase, k=12))
    text = f"logsluice doctor was here ({mark}): this row shows that records arrive, and may be deleted"
    record = logging.LogRecord(LOGGER, logging.INFO, __file__, 0, text, None, None)
    record.__dict__[KEY] = mark
    # Without its journal: to look must not send what dead processes left, nor leave a file there.
    handler._settings = replace(handler._settings, journal=None)  # noqa: SLF001
    if database.target.plain:
        return _through(database, handler, record)
    return _rolled_back(database, handler, record)


def _through(database: Database, handler: PostgresHandler, record: logging.LogRecord) -> Finding:
    started = time.perf_counter()
    handler.set_name("doctor")
    handler.handle(record)
    settled = handler.flush(SECONDS)
    stats = handler.stats()
    if stats.stored == 1:
        rows = _found(database, record)
        took = f"{(time.perf_counter() - started) * 1000:.0f} ms"
        handler.close()
        return _read_back(database, record, rows, took)
    handler.close()
    failed = stats.recent["failed"]
    why = failed[-1]["error"] if failed else "no attempt has ended"
    what = f"the test record was rejected: {why}" if settled else f"not stored within {SECONDS:.0f} s: {why}"
    return Finding(FAIL, "record", what, "run the same with LOGSLUICE_DEBUG=1 before it: it shows each attempt")


def _where(record: logging.LogRecord) -> tuple[str, list[object]]:
    # The time lets the index find it; a second is more than any rounding.
    condition = (
        f"ts BETWEEN to_timestamp(%s) AND to_timestamp(%s) AND logger = '{LOGGER}' AND attributes->>'{KEY}' = %s"
    )
    return condition, [record.created - 1, record.created + 1, record.__dict__[KEY]]


def _found(database: Database, record: logging.LogRecord) -> list[int] | None:
    """Return the streams of the rows that the record became, None if the role may not look."""
    logs = database.target.name
    if not database.may("SELECT", logs):
        return None
    where, values = _where(record)
    query = f"SELECT stream FROM {_literal(logs)} WHERE {where}"
    return [row[0] for row in database.conn.execute(query.encode(), values).fetchall()]


def _read_back(database: Database, record: logging.LogRecord, rows: list[int] | None, took: str) -> Finding:
    logs, stream = database.target.name, database.table("stream")
    if rows is None:
        what = f"a test record was committed in {took}; it stays (logger {LOGGER}), as the role may not read {logs}"
        return Finding(OK, "record", what)
    if len(rows) != 1:
        what = f"a test record was committed in {took}, but SELECT finds it {len(rows)} times"
        return Finding(FAIL, "record", what, f"look for triggers, rules and row security: \\d+ {logs} in psql")
    if not database.may("DELETE", logs):
        what = f"a test record was stored and read back in {took}; it stays (logger {LOGGER}), the role may not delete"
        return Finding(OK, "record", what)
    where, values = _where(record)
    database.conn.execute(f"DELETE FROM {_literal(logs)} WHERE {where}".encode(), values)
    if database.may("DELETE", stream):
        database.conn.execute(f"DELETE FROM {_literal(stream)} WHERE stream = %s".encode(), rows)
    return Finding(OK, "record", f"a test record was stored and read back in {took}, and deleted again")


def _rolled_back(database: Database, handler: PostgresHandler, record: logging.LogRecord) -> Finding:
    intake, _ = handler._make()  # the frame as the handler makes it; its thread is not started
    frame = intake.prepare(record)
    assert frame is not None
    name, conn = database.target.name, database.conn
    try:
        with conn.transaction(force_rollback=True):
            # As in the sink: what a frame says means the same only under these.
            conn.execute("SET LOCAL lock_timeout = '2s'; SET LOCAL timezone = 'UTC'; SET LOCAL datestyle = 'ISO'")
            with conn.cursor().copy(database.target.copy.encode()) as copy:
                copy.write(frame)
            conn.execute("SET CONSTRAINTS ALL IMMEDIATE")
    except psycopg.Error as error:
        what = f"{name} refuses a test row (rolled back): {failure_of(error).message}"
        if (error.sqlstate or "").startswith(("22", "23", "44", "P0001")):
            # Real records may do better.
            column = error.diag.column_name or "n"
            step = f'always log what it needs, or give a default: columns={{"{column}": ["extra.{column}", "..."]}}'
            return Finding(WARN, "record", f"{what}; the test record has no extras", step)
        return Finding(FAIL, "record", what, f"correct columns= or {name}")
    what = f"{name} takes a test row; it was rolled back, so nothing stays (a sequence may have moved on)"
    return Finding(OK, "record", what)


def _literal(name: str) -> str:
    """Return a quoted name for a query with values, in which `%` is a sign of its own."""
    return name.replace("%", "%%")
