"""
How much of COPY's own speed is left around it: draining a backlog, beside psycopg writing the same bytes alone.

    python benchmarks/drain.py [--rounds 5] [--records 100000] [--json FILE]

Each round fills a buffer whose listener has not started, writes the same frames with one plain psycopg connection in
batches of the same size, then starts the listener. Medians of rounds.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from pathlib import Path

import common
import psycopg
from common import Ours, row

from logsluice.columns import LOG_COLUMNS

BATCH = 2 * 1024 * 1024  # bytes: the handler's own batch_bytes


def fill(dsn, records):
    """Return a handler whose buffer holds the records and whose listener has not started."""
    ours = Ours(dsn)
    with common.no_listener():
        for n in range(records):
            ours.logger.info("user %s did %d things to the order", "bob", n, extra={"request": "abc", "n": n})
    return ours.handler


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
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--records", type=int, default=100_000)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    ours, plain = [], []
    with common.prepared_server() as server:
        dsn = server.dsn()
        warm = fill(dsn, 100)
        drained(warm)
        warm.close()
        for _ in range(args.rounds):
            common.emptied(dsn)
            handler = fill(dsn, args.records)
            data = frames_of(handler)
            plain.append(args.records / alone(dsn, data))
            common.emptied(dsn)
            ours.append(args.records / drained(handler))
            handler.close()
        machine = common.facts(server)
    ratio = statistics.median(mine / other for mine, other in zip(ours, plain, strict=True))
    rows = [
        row("draining a backlog, beside psycopg's COPY of the same bytes alone", ratio, 0.9, least=True, unit="times"),
        row("drained", statistics.median(ours), unit="records/s"),
    ]
    details = {"drained_per_second": ours, "plain_copy_per_second": plain, "bytes_a_record": len(data) // args.records}
    result = {"facts": machine, "rounds": args.rounds, "records": args.records, "rows": rows, "details": details}
    common.report("drain", result, args.json)


if __name__ == "__main__":
    sys.exit(main())
