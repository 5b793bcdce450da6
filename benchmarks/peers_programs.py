"""
The programs of peers.py, each as its library's documentation says; run in a process of its own.

    python benchmarks/peers_programs.py NAME --records N [--first ID] [--kill-at ID]

PEERS_DSN names the server, PEERS_FOLDER a folder of the turn's own (journal, socket), PEERS_PORT the TCP sink of
logstash-async, PEERS_PSQL the program. It prints one line of JSON: what was seen.

Every program logs the same: a number (`order`) and a name (`user`), in the message, or with structlog as its keywords.
"""
# ruff: noqa: PLC0415  (a program imports what it uses: the others need not be installed, and cost no memory)

from __future__ import annotations

import argparse
import array
import dataclasses
import json
import logging
import logging.handlers
import os
import queue
import resource
import signal
import statistics
import subprocess
import sys
import threading
import time
from pathlib import Path

import common
import drain
import psycopg
from common import BATCH, INSERT, NAMES, Naive, Ours, Recipe

from logsluice.columns import LOG_COLUMNS

WARM = 200  # records before the clock starts: connection, prepared statements, caches
WARM_IDS = 1_000_000_000  # theirs start here: they are not counted
PACE = 0.001  # seconds between two calls of a program that is to be killed: about as busy as programs are
COPY_MOST = 1000  # records in one COPY of the careful recipe: more gains little and waits longer
STALLED = 3  # seconds without a new row: what has not come from another process by then will not come
FOLDER = os.environ.get("PEERS_FOLDER")
LIMIT = 60  # seconds until a dead process's records must have been adopted


@dataclasses.dataclass
class Program:
    """`call(n)` logs; `finish()` returns when all is stored, or returns when the last was; `close()` ends."""

    call: object
    finish: object
    close: object
    errors: list = dataclasses.field(default_factory=list)  # calls that could not hand their record on
    earlier: int = 0  # calls of the process before this one, when that was killed


def call_of(logger):
    """What all do that log as logging does: a template and two arguments."""
    return lambda n: logger.info("user %s paid order %d", "bob", n)


def of(contestant):
    """The program of who is in common.py."""
    return Program(call_of(contestant.logger), contestant.finish, contestant.close)


def nothing():
    """Nothing is to be done."""


# --- the standard library ----------------------------------------------------------------------------------------


class CopyListener(common._Inserting, logging.handlers.QueueListener):
    """Stores what waits, at most COPY_MOST records, by one COPY and COMMIT: a batch is what came meanwhile."""

    def __init__(self, waiting, dsn):
        super().__init__(waiting)
        self.connect(dsn, autocommit=False)
        self.rows = []

    def dequeue(self, block):
        if len(self.rows) >= COPY_MOST or self.queue.empty():
            self.store()
        return super().dequeue(block)

    def handle(self, record):
        self.rows.append(self.row(record))

    def store(self):
        if self.rows:
            with self.conn.cursor().copy(f"COPY recipe.logs ({', '.join(NAMES)}) FROM STDIN") as copy:
                for row in self.rows:
                    copy.write_row(row)
            self.conn.commit()
            self.rows.clear()

    def stop(self):
        super().stop()
        self.store()


def copy_recipe(dsn):
    waiting = queue.SimpleQueue()
    listener = CopyListener(waiting, dsn)
    listener.start()

    def finish():
        listener.stop()
        listener.start()

    logger = common.logger_of(logging.handlers.QueueHandler(waiting))
    return Program(call_of(logger), finish, listener.stop)


def memory_handler(dsn):
    target = common.Executemany(dsn)
    memory = logging.handlers.MemoryHandler(BATCH, target=target)
    logger = common.logger_of(memory)

    def finish():
        memory.flush()
        target.flush()

    def close():
        memory.close()
        target.close()

    return Program(call_of(logger), finish, close)


# --- logsluice ---------------------------------------------------------------------------------------------------


def with_journal(dsn):
    ours = Ours(dsn, journal=f"{FOLDER}/journal", journal_bytes=common.ROOM)
    return of(ours)


def wait_adopted(program):
    """Wait until the records of the killed process are stored by this one."""
    handler, deadline = program.finish.__self__.handler, time.monotonic() + LIMIT
    while not (found := handler.stats().journal["adopted"]) or any(one["state"] != "done" for one in found):
        assert time.monotonic() < deadline, handler.stats().journal
        threading.Event().wait(0.02)


# --- structlog and loguru ----------------------------------------------------------------------------------------


def structlog_on(contestant):
    """As docs/howto/structlog.md: structlog makes the event, logging carries it."""
    import structlog

    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            structlog.contextvars.merge_contextvars,
            structlog.stdlib.render_to_log_kwargs,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=True,
    )
    log = structlog.get_logger("bench.orders")
    below = logging.getLogger("bench.orders")
    below.propagate = False
    below.setLevel(logging.INFO)
    for handler in contestant.logger.handlers:
        below.addHandler(handler)
    return Program(lambda n: log.info("order paid", user="bob", order=n), contestant.finish, contestant.close)


class LoguruSink(common._Inserting):
    """A function as sink that gathers BATCH messages for one executemany and COMMIT."""

    def __init__(self, dsn):
        self.connect(dsn, autocommit=False)
        self.rows = []

    def __call__(self, message):
        record = message.record
        self.rows.append((
            next(self.numbers), record["time"], 1, record["level"].no, record["name"], record["file"].path,
            record["line"], record["function"], "bench", record["thread"].name, record["message"],
            json.dumps(record["extra"]) if record["extra"] else None,
        ))  # fmt: skip
        if len(self.rows) >= BATCH:
            self.store()

    def store(self):
        with self.conn.cursor() as cursor:
            cursor.executemany(INSERT, self.rows)
        self.conn.commit()
        self.rows.clear()


def loguru_enqueue(dsn):
    from loguru import logger

    sink = LoguruSink(dsn)
    logger.remove()
    logger.add(sink, level="INFO", format="{message}", enqueue=True)

    def finish():
        logger.complete()  # until the queue is empty
        sink.store()

    def close():
        logger.remove()
        sink.conn.close()

    return Program(lambda n: logger.info("user {} paid order {}", "bob", n), finish, close)


def loguru_on_ours(dsn):
    """As docs/howto/loguru.md."""
    from loguru import logger

    ours = Ours(dsn)
    logger.remove()
    logger.add(ours.handler, level="INFO", format=lambda _record: "{message}")
    return Program(lambda n: logger.info("user {} paid order {}", "bob", n), ours.finish, logger.remove)


# --- others ------------------------------------------------------------------------------------------------------


def pico(dsn):
    """The recipe made of picologging's own logger, queue handler, listener and buffering handler."""
    import picologging
    import picologging.handlers

    class Batches(common._Inserting, picologging.handlers.BufferingHandler):
        flush = common.Executemany.flush

    target = Batches(BATCH)
    target.connect(dsn, autocommit=False)
    waiting = queue.Queue(-1)
    listener = picologging.handlers.QueueListener(waiting, target)
    listener.start()
    logger = picologging.Logger("bench.orders", picologging.INFO)
    logger.addHandler(picologging.handlers.QueueHandler(waiting))

    def finish():
        listener.stop()
        target.flush()
        listener.start()

    def close():
        listener.stop()
        target.close()

    return Program(call_of(logger), finish, close)


def logstash(_dsn):
    """Its defaults, events kept in SQLite, sent by TCP; `close` is what logging.shutdown calls: all is sent by then."""
    from logstash_async.handler import AsynchronousLogstashHandler

    path = f"{FOLDER}/events.db"
    handler = AsynchronousLogstashHandler("127.0.0.1", int(os.environ["PEERS_PORT"]), database_path=path)
    logger = common.logger_of(handler)
    return Program(call_of(logger), handler.close, nothing)


def syslog(dsn):
    """SysLogHandler on rsyslogd's Unix socket. A call that fails is counted; logging would print it and go on."""
    handler = logging.handlers.SysLogHandler(f"{FOLDER}/log")
    handler.setFormatter(logging.Formatter("%(name)s: %(message)s"))
    errors = []
    handler.handleError = errors.append
    logger = common.logger_of(handler)
    watch = psycopg.connect(dsn, autocommit=True)
    calls = [0]

    def call(n):
        logger.info("user %s paid order %d", "bob", n)
        calls[0] += 1

    def finish():
        """Count, for rsyslogd says nothing: 20 ms is 1 % of a turn, and a count takes 2 of them from the server."""
        seen, moved = 0, time.perf_counter()
        while seen < program.earlier + calls[0] - len(errors) and time.perf_counter() - moved < STALLED:
            threading.Event().wait(0.02)
            count = watch.execute("SELECT count(*) FROM recipe.logs").fetchone()[0]
            if count != seen:
                seen, moved = count, time.perf_counter()
        return moved

    program = Program(call, finish, handler.close, errors)
    return program


# --- ceilings: the rows that logsluice's calls make, as bytes, before the clock starts ------------------------------


def prepared(dsn, records):
    program = Ours(dsn)
    call = call_of(program.logger)
    with common.no_listener():
        for n in range(records):
            call(n)
    return drain.frames_of(program.handler)


def by_psycopg(dsn, records):
    data = prepared(dsn, records)
    cpu = time.process_time()
    seconds = drain.alone(dsn, data)
    return {"seconds": seconds, "cpu_us": 1e6 * (time.process_time() - cpu) / records}


def by_psql(dsn, records):
    """The seconds hold the start of psql and its connection. The password travels in its environment."""
    data = prepared(dsn, records)
    info = psycopg.conninfo.conninfo_to_dict(dsn)
    names = {"host": "PGHOST", "port": "PGPORT", "user": "PGUSER", "password": "PGPASSWORD", "dbname": "PGDATABASE"}
    place = {names[key]: value for key, value in info.items() if key in names}
    copy = f"\\copy logsluice.logs ({', '.join(LOG_COLUMNS)}) FROM STDIN"
    started = time.perf_counter()
    subprocess.run(
        [os.environ["PEERS_PSQL"], "-X", "-q", "-c", copy], input=data, check=True, env={**os.environ, **place}
    )
    seconds = time.perf_counter() - started
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return {"seconds": seconds, "cpu_us": 1e6 * (used.ru_utime + used.ru_stime) / records}


# --- who takes part ----------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Contestant:
    """`differs`: what is not the same as for logsluice, for whoever reads the figures."""

    make: object = None
    table: str | None = "recipe.logs"
    part: int = 1  # logs a so-manieth of the records: the slow ones, whose rate does not depend on it
    needs: tuple = ()  # packages to install
    ceiling: object = None
    helper: str = ""  # what it needs beside PostgreSQL
    differs: str = ""


RECIPE = "12 of the 22 columns"
CONTESTANTS = {
    "NullHandler": Contestant(
        lambda _dsn: Program(call_of(common.logger_of(logging.NullHandler())), nothing, nothing),
        table=None,
        differs="stores nothing: what a call costs without a handler",
    ),
    "logsluice": Contestant(lambda dsn: of(Ours(dsn)), table="logsluice.logs"),
    "logsluice, journal": Contestant(with_journal, table="logsluice.logs"),
    "one INSERT a record": Contestant(lambda dsn: of(Naive(dsn)), part=10, differs=RECIPE),
    "QueueListener, executemany of 100": Contestant(lambda dsn: of(Recipe(dsn)), differs=RECIPE),
    "QueueListener, COPY": Contestant(copy_recipe, differs=RECIPE),
    "MemoryHandler, executemany of 100": Contestant(
        memory_handler, differs=f"{RECIPE}; every hundredth call waits for the database"
    ),
    "structlog, logsluice": Contestant(
        lambda dsn: structlog_on(Ours(dsn)), "logsluice.logs", needs=("structlog",), differs="two values in attributes"
    ),
    "structlog, QueueListener, executemany of 100": Contestant(
        lambda dsn: structlog_on(Recipe(dsn)), needs=("structlog",), differs=f"{RECIPE}; two values in attributes"
    ),
    "loguru, logsluice": Contestant(loguru_on_ours, "logsluice.logs", needs=("loguru",)),
    "loguru enqueue, executemany of 100": Contestant(loguru_enqueue, needs=("loguru",), differs=RECIPE),
    "picologging, QueueListener, executemany of 100": Contestant(
        pico, needs=("picologging",), differs=f"{RECIPE}, no thread name; what is given with extra= is not kept"
    ),
    "logstash-async, SQLite, TCP": Contestant(
        logstash,
        None,
        part=10,
        needs=("logstash_async",),
        differs="no table: JSON lines, 50 to a connection, to a TCP sink that counts them; default settings",
    ),
    "rsyslog, ompgsql": Contestant(
        syslog,
        helper="rsyslogd",
        differs="7 columns: ts is when rsyslogd's socket had it, level from the severity, logger, service, message; "
        "seq and stream are constants; no file, line, function, thread, exception or attributes",
    ),
    "COPY of prepared bytes, psycopg": Contestant(
        table="logsluice.logs", ceiling=by_psycopg, differs="no logging: a ceiling"
    ),
    "COPY of prepared bytes, psql": Contestant(
        table="logsluice.logs", ceiling=by_psql, differs="no logging, one transaction: the server's ceiling"
    ),
}


# --- what is seen ------------------------------------------------------------------------------------------------


def memory(name, pid="self"):
    """VmRSS or VmHWM (its peak) in bytes."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(name):
            return 1024 * int(line.split()[1])
    raise AssertionError(name)


def measured(program, records, *, elsewhere):
    """Log, wait until all is stored. Who stores `elsewhere` only looks on after the last call: no CPU of its own."""
    for n in range(WARM_IDS, WARM_IDS + WARM):
        program.call(n)
    program.finish()
    took = array.array("q", bytes(8 * records))
    Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
    before = memory("VmRSS")
    call, clock = program.call, time.perf_counter_ns
    cpu, started = time.process_time(), time.perf_counter()
    for n in range(records):
        entered = clock()
        call(n)
        took[n] = clock() - entered
    called = time.process_time()
    ended = program.finish() or time.perf_counter()
    used = (called if elsewhere else time.process_time()) - cpu
    peak = memory("VmHWM")
    program.close()
    ordered = sorted(took)
    return {
        "seconds": ended - started,
        "call_us": statistics.fmean(took) / 1e3,
        "call_p50_us": ordered[records // 2] / 1e3,
        "call_p999_us": ordered[records * 999 // 1000] / 1e3,
        "call_longest_us": ordered[-1] / 1e3,
        "cpu_us": 1e6 * used / records,
        "peak_bytes": peak,
        "grown_bytes": max(0, peak - before),
        "failed_calls": len(program.errors),
    }


def killed(program, first, records, kill_at):
    """Log at PACE; SIGKILL when call `kill_at` has returned: every call before it has returned, too."""
    for n in range(first, first + records):
        program.call(n)
        if n == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)
        threading.Event().wait(PACE)
    program.finish()


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("name", choices=CONTESTANTS)
    parser.add_argument("--records", type=int, required=True)
    parser.add_argument("--first", type=int)
    parser.add_argument("--kill-at", type=int)
    args = parser.parse_args()
    contestant, dsn = CONTESTANTS[args.name], os.environ["PEERS_DSN"]
    if contestant.ceiling:
        seen = contestant.ceiling(dsn, args.records)
    else:
        program = contestant.make(dsn)
        program.earlier = args.first or 0
        if args.first is None:
            seen = measured(program, args.records, elsewhere=bool(contestant.helper))
        else:
            killed(program, args.first, args.records, args.kill_at)
            if args.name == "logsluice, journal" and args.kill_at is None:
                wait_adopted(program)
            program.close()
            seen = {"failed_calls": len(program.errors)}
    print(json.dumps(seen), flush=True)
    os._exit(0)  # a ceiling's handler holds records that nobody is to send


if __name__ == "__main__":
    sys.exit(main())
