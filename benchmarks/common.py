"""
What the benchmarks share: a real server, the handlers that ours is put beside, the machine, the report.

Rows of a result are `row(what, measured, goal, ...)`; `tables.py` makes README's table of the same rows.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import itertools
import json
import logging
import logging.handlers
import os
import platform
import queue
from pathlib import Path

import psycopg
from pythonjsonlogger.json import JsonFormatter
from tables import measured_and_goal

from logsluice import PostgresHandler, partitions, schema
from logsluice.devserver import EmbeddedPostgres
from logsluice.listener import Listener

RESULTS = Path(__file__).parent / "results"
SEGMENTS = 20  # that a round fills at least: rolling, mapping and first touches belong to the cost
ROOM = 1 << 30  # bytes: no round may come near dropping
LIMIT = 600  # seconds: a flush that takes longer hangs
BATCH = 100  # records of the stdlib recipe in one executemany and transaction

NAMES = ("seq", "ts", "stream", "level", "logger", "file", "line", "func", "service", "thread", "message", "attributes")
INSERT = f"INSERT INTO recipe.logs ({', '.join(NAMES)}) VALUES ({', '.join(['%s'] * len(NAMES))})"
STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


@contextlib.contextmanager
def prepared_server():
    """A server as PostgreSQL comes (it flushes to the device), with our tables, and the same again for the recipes."""
    with EmbeddedPostgres(settings={"fsync": "on", "full_page_writes": "on"}) as server:
        with psycopg.connect(server.dsn(), autocommit=True) as conn:
            for name in ("logsluice", "recipe"):
                schema.migrate(conn, name)
                partitions.ensure(conn, name, "day", dt.datetime.now(dt.timezone.utc))
        yield server


def emptied(dsn):
    """Empty the tables and write out what PostgreSQL still holds, so that nobody pays for who came before."""
    with psycopg.connect(dsn, autocommit=True) as conn:
        conn.execute("TRUNCATE logsluice.logs, recipe.logs")
        conn.execute("CHECKPOINT")


# --- what the standard library gives -----------------------------------------------------------------------------


class _Inserting:
    """Turns records into rows of recipe.logs. What it does not set is NULL; `template` is lost in a QueueHandler."""

    def connect(self, dsn, *, autocommit):
        self.conn = psycopg.connect(dsn, autocommit=autocommit)
        self.numbers = itertools.count(1)

    def row(self, record):
        extras = {key: value for key, value in vars(record).items() if key not in STANDARD}
        return (
            next(self.numbers), dt.datetime.fromtimestamp(record.created, dt.timezone.utc), 1, record.levelno,
            record.name, record.pathname, record.lineno, record.funcName, "bench", record.threadName,
            record.getMessage(), json.dumps(extras) if extras else None,
        )  # fmt: skip

    def close(self):
        self.conn.close()
        super().close()


class Executemany(_Inserting, logging.handlers.BufferingHandler):
    """The batching handler of the recipe: one connection, one executemany (psycopg's pipeline) and COMMIT for 100."""

    def __init__(self, dsn):
        super().__init__(BATCH)
        self.connect(dsn, autocommit=False)

    def flush(self):
        if self.buffer:
            with self.conn.cursor() as cursor:
                cursor.executemany(INSERT, [self.row(record) for record in self.buffer])
            self.conn.commit()
            self.buffer.clear()


class InsertEach(_Inserting, logging.Handler):
    """One INSERT a record, in the logging call, as most programs begin. Prepared by psycopg, in autocommit."""

    def __init__(self, dsn):
        super().__init__()
        self.connect(dsn, autocommit=True)

    def emit(self, record):
        self.conn.execute(INSERT, self.row(record))


# --- who is measured: a logger, `finish` (all is committed when it returns), `close` -----------------------------


def json_file(path):
    """The standard library's handler that writes lines of JSON."""
    handler = logging.FileHandler(path)
    handler.setFormatter(JsonFormatter("%(asctime)s %(levelname)s %(name)s %(message)s %(pathname)s %(lineno)d"))
    return handler


def logger_of(handler):
    """A logger outside of logging's tree."""
    logger = logging.Logger("bench.orders")
    logger.addHandler(handler)
    return logger


class Ours:
    table = "logsluice.logs"

    def __init__(self, dsn, **options):
        options = {"capacity_bytes": ROOM, **options}
        self.handler = PostgresHandler(dsn=dsn, service="bench", shutdown_timeout=LIMIT, **options)
        self.logger = logger_of(self.handler)

    def segments(self):
        """How many segments have been filled."""
        return self.handler._pair[1].routes[0].buffer._live().number

    def finish(self):
        assert self.handler.flush(LIMIT)
        stats = self.handler.stats()
        assert stats.stored == stats.offered, stats

    def close(self):
        self.handler.close()


class Recipe:
    """QueueHandler, QueueListener, a handler that batches."""

    table = "recipe.logs"

    def __init__(self, dsn):
        self.target = Executemany(dsn)
        self.queue = queue.Queue(-1)
        self.logger = logger_of(logging.handlers.QueueHandler(self.queue))
        self.listener = logging.handlers.QueueListener(self.queue, self.target)
        self.listener.start()

    def finish(self):
        self.listener.stop()  # drains the queue and joins the thread
        self.target.flush()
        self.listener.start()

    def close(self):
        self.listener.stop()
        self.target.close()


class Naive:
    table = "recipe.logs"

    def __init__(self, dsn):
        self.target = InsertEach(dsn)
        self.logger = logger_of(self.target)

    def finish(self):
        pass  # each call has committed

    def close(self):
        self.target.close()


@contextlib.contextmanager
def no_listener():
    """Handlers that get their first record in here start no thread: all waits."""
    start, Listener.start = Listener.start, lambda _self: None
    try:
        yield
    finally:
        Listener.start = start


# --- results -----------------------------------------------------------------------------------------------------


def row(what, measured, goal=None, *, least=False, unit=""):
    """One line of a result: the goal is a maximum, or with `least` a minimum."""
    return {"what": what, "measured": float(f"{measured:.4g}"), "goal": goal, "least": least, "unit": unit}


def facts(server):
    """The machine and the versions."""
    cpuinfo = Path("/proc/cpuinfo")
    names = [line.split(":")[1].strip() for line in cpuinfo.read_text().splitlines() if line.startswith("model name")]
    release = platform.freedesktop_os_release()["PRETTY_NAME"] if hasattr(platform, "freedesktop_os_release") else ""
    return {
        "cpu": names[0] if names else platform.machine(),
        "cores": os.cpu_count(),
        "os": f"{release}, Linux {platform.release().split('-')[0]}",
        "python": platform.python_version(),
        "psycopg": f"{psycopg.__version__} ({psycopg.pq.__impl__})",
        "postgresql": server.version,
    }


def report(name, result, path=None):
    """Print the rows beside their goals, and write the JSON if a path is given."""
    print(f"\n{name}: " + ", ".join(f"{key} {value}" for key, value in result["facts"].items()))
    width = max(len(line["what"]) for line in result["rows"])
    for line in result["rows"]:
        measured, goal, missed = measured_and_goal(line)
        print(f"  {line['what']:<{width}}  {measured:>14}  {goal:<14} {'goal missed' if missed else ''}")
    if path:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
