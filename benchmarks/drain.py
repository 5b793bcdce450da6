"""
How much of COPY's own speed is left around it: draining a backlog, beside psycopg writing the same bytes alone.

    python benchmarks/drain.py [--records 100000] [--rounds 5]

Each round fills a buffer whose listener has not started, writes the same frames with one plain psycopg connection in
batches of the same size, then starts the listener. Medians and their ratio are printed, and one line of JSON.
"""

from __future__ import annotations

import argparse
import json
import logging
import platform
import statistics
import sys
import time

import psycopg

from logsluice import PostgresHandler, schema
from logsluice.columns import LOG_COLUMNS
from logsluice.devserver import EmbeddedPostgres
from logsluice.listener import Listener

BATCH = 2 * 1024 * 1024  # bytes: the handler's own batch_bytes


def fill(dsn, records):
    """Return a handler whose buffer holds the records and whose listener has not started."""
    start, Listener.start = Listener.start, lambda _self: None
    handler = PostgresHandler(dsn=dsn, service="bench", capacity_bytes=512 * 1024 * 1024)
    logger = logging.Logger("bench")
    logger.addHandler(handler)
    for n in range(records):
        logger.info("user %s did %d things to the order", "bob", n, extra={"request": "abc", "n": n})
    Listener.start = start
    return handler


def frames_of(handler):
    """Return what waits, as the listener would take it, without settling it."""
    segment, frames = handler._pair[1].routes[0].buffer._oldest, []
    while segment is not None:
        frames.append(segment.map[: segment.end(0)[0]])
        segment = segment.following.get(segment.number + 1)
    return b"".join(frames)


def drained(handler):
    """Return the seconds from the listener's start until everything is committed."""
    started = time.perf_counter()
    handler._pair[1].start()
    assert handler.flush(600)
    return time.perf_counter() - started


def alone(dsn, data):
    """Return the seconds that the same bytes take with nothing around COPY."""
    statement = f"COPY logsluice.logs ({', '.join(LOG_COLUMNS)}) FROM STDIN"
    started = time.perf_counter()
    with psycopg.connect(dsn) as conn:
        at = 0
        while at < len(data):
            end = len(data) if len(data) - at <= BATCH else data.rfind(b"\n", at, at + BATCH) + 1
            with conn.cursor().copy(statement) as copy:
                copy.write(data[at:end])
            conn.commit()
            at = end
    return time.perf_counter() - started


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--records", type=int, default=100_000)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    ours, plain = [], []
    with EmbeddedPostgres() as server:
        dsn = server.dsn()
        with psycopg.connect(dsn, autocommit=True) as conn:
            schema.migrate(conn)
        warm = fill(dsn, 100)
        drained(warm)
        warm.close()
        for _ in range(args.rounds):
            handler = fill(dsn, args.records)
            data = frames_of(handler)
            plain.append(args.records / alone(dsn, data))
            ours.append(args.records / drained(handler))
            handler.close()
        version = server.version
    result = {
        "python": platform.python_version(), "postgresql": version, "psycopg": psycopg.__version__,
        "records": args.records, "bytes_a_record": round(len(data) / args.records), "rounds": args.rounds,
        "drained_per_second": round(statistics.median(ours)), "plain_copy_per_second": round(statistics.median(plain)),
        "ratio": round(statistics.median(ours) / statistics.median(plain), 3),
    }  # fmt: skip
    print(f"drained {result['drained_per_second']:,}/s, plain COPY {result['plain_copy_per_second']:,}/s, "
          f"ratio {result['ratio']}")  # fmt: skip
    print(json.dumps(result))


if __name__ == "__main__":
    sys.exit(main())
