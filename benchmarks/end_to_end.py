"""
How many records a second are committed, from `logger.info` to COMMIT, by one process?

    python benchmarks/end_to_end.py [--rounds 5] [--records 400000] [--json FILE]

Beside us: the standard library's recipe (QueueHandler, QueueListener, a handler that batches 100 records into one
executemany and COMMIT), and one INSERT a record. Both write into a table like ours, with its partitions and indexes.

The three take turns. Before each turn the tables are emptied, a checkpoint is made, the connection opened and some
records are stored. A turn ends when all is committed; then the rows in the table are counted. The slower two log
fewer records (a tenth, a hundredth): their rate does not depend on it. Medians of rounds.

Also: CPU time of the whole process less that of the calling thread; transactions by PostgreSQL's own count; and how
much a process grows while 10,000 records with messages of 1,000 bytes wait, in processes of their own (resident
memory: of a memory map nothing else is to be seen).
"""

from __future__ import annotations

import argparse
import logging.handlers
import os
import queue
import statistics
import subprocess
import sys
import threading
import time
from pathlib import Path

import common
import psycopg
from common import LIMIT, SEGMENTS, Naive, Ours, Recipe, row

WARM = 200  # records before the clock starts: connection, prepared statement, caches
CONTESTANTS = {"logsluice": (Ours, 1), "recipe": (Recipe, 10), "one INSERT a record": (Naive, 100)}
WAITING, MESSAGE = 10_000, 1000  # records that wait; bytes of each message


def log(logger, count):
    for n in range(count):
        logger.info("user %s did %d things to the order", "bob", n)


def commits(dsn):
    """How many transactions the database counts, when all sessions that did work have ended and told it."""
    with psycopg.connect(dsn, autocommit=True) as conn:
        others = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
        for _ in range(LIMIT):
            if conn.execute(others).fetchone()[0] == 0:
                break
            threading.Event().wait(0.05)  # a session that was left needs some milliseconds
        return conn.execute("SELECT xact_commit FROM pg_stat_database WHERE datname = current_database()").fetchone()[0]


def turn(dsn, made, records):
    """Log and commit so many records; what was seen."""
    common.emptied(dsn)
    before = commits(dsn)
    contestant = made(dsn)
    try:
        log(contestant.logger, WARM)
        contestant.finish()
        cpu, own, started = time.process_time(), time.thread_time(), time.perf_counter()
        log(contestant.logger, records)
        own = time.thread_time() - own
        contestant.finish()
        seconds, cpu = time.perf_counter() - started, time.process_time() - cpu
        if made is Ours:
            assert contestant.segments() >= SEGMENTS, f"{contestant.segments()} segments filled: give more --records"
    finally:
        contestant.close()
    transactions = commits(dsn) - before
    with psycopg.connect(dsn) as conn:
        stored = conn.execute(f"SELECT count(*) FROM {contestant.table}").fetchone()[0]
    assert stored == records + WARM, (stored, records)
    return {
        "a_second": records / seconds,
        "cpu_beyond_call_us": 1e6 * (cpu - own) / records,
        "transactions_for_50": 50 * transactions / stored,
    }


def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def waiting(name):
    """Print by how many bytes this process grows while records wait that nobody takes."""
    handler = Ours("").handler if name == "logsluice" else logging.handlers.QueueHandler(queue.Queue(-1))
    logger = common.logger_of(handler)
    with common.no_listener():  # around all: a full segment starts a listener that is not there, with its connecting
        logger.info("the first makes the buffer")
        before = resident()
        for n in range(WAITING):
            logger.info(f"{n:0{MESSAGE}}")  # a text of its own, as each message is
    print(resident() - before, flush=True)
    os._exit(0)  # nobody is there to whom what waits could be sent


def grown(name):
    done = subprocess.run([sys.executable, __file__, "--waiting", name], capture_output=True, text=True, check=True)
    return int(done.stdout) / 1e6


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--records", type=int, default=400_000, help="of ours in a round")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--waiting", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.waiting:
        waiting(args.waiting)
    seen = {name: [] for name in CONTESTANTS}
    with common.prepared_server() as server:
        for number in range(args.rounds):
            for name, (made, part) in CONTESTANTS.items():
                seen[name].append(turn(server.dsn(), made, args.records // part))
                print(f"round {number + 1}, {name}: {seen[name][-1]['a_second']:,.0f}/s", flush=True)
        machine = common.facts(server)
    memory = {name: statistics.median(grown(name) for _ in range(args.rounds)) for name in ("logsluice", "recipe")}

    def median(of):
        return statistics.median(of(number) for number in range(args.rounds))

    def beside(other):
        return median(lambda n: seen["logsluice"][n]["a_second"] / seen[other][n]["a_second"])

    def ours(what):
        return median(lambda n: seen["logsluice"][n][what])

    rows = [
        row("committed, beside QueueListener + executemany of 100", beside("recipe"), 4, least=True, unit="times"),
        row("committed, beside one INSERT a record", beside("one INSERT a record"), 30, least=True, unit="times"),
        row("committed end to end", ours("a_second"), 5000, least=True, unit="records/s"),
        row("process CPU beyond the logging call", ours("cpu_beyond_call_us"), 4, unit="µs/record"),
        row("transactions for 50 records", ours("transactions_for_50"), 1),
        row("memory of 10,000 waiting records of 1 KB", memory["logsluice"], 12, unit="MB"),
        row("the same in QueueHandler's queue", memory["recipe"], unit="MB"),
    ]
    details = {"seen": seen, "memory_mb": memory}
    result = {"facts": machine, "rounds": args.rounds, "records": args.records, "rows": rows, "details": details}
    common.report("end_to_end", result, args.json)


if __name__ == "__main__":
    sys.exit(main())
