"""
How large a batch should be: records a second by batch size and by how far away the server is.

    python benchmarks/batches.py [--rounds 3] [--records 100000] [--delays 0,1,10,50] [--json FILE]

Each turn fills a buffer whose listener has not started and drains it in batches of one size, through a proxy in a
process of its own that adds half of the delay in each direction and limits no rate. Sizes and delays come by turns, in
an order that is drawn. Beside it, what a size costs the program: how long the listener holds the GIL to cut and count.
"""

from __future__ import annotations

import argparse
import asyncio
import mmap
import multiprocessing
import random
import statistics
import sys
import time
from pathlib import Path

import common
from common import Ours, row
from drain import drained
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from logsluice.buffer import Batch

KIB = 1024
SIZES = tuple(KIB * 2**n for n in range(6, 13))  # 64 KiB to 4 MiB: a batch never spans segments, and none is larger
DELAYS = "0,1,10,50"  # milliseconds of added round trip
BATCHES = 24  # at most in a turn: far away, many small ones would take minutes and tell nothing more
A_RECORD = 200  # bytes, about: only to choose how many records a turn takes


# --- the proxy, in its own process --------------------------------------------------------------------------------


async def pump(reader, writer, seconds):
    """Pass on what comes, each piece so many seconds after it came."""
    pieces = asyncio.Queue()

    async def deliver():
        while (piece := await pieces.get()) is not None:
            due, data = piece
            await asyncio.sleep(due - asyncio.get_running_loop().time())
            writer.write(data)
            await writer.drain()
        writer.close()

    delivering = asyncio.create_task(deliver())
    try:
        while data := await reader.read(256 * KIB):
            pieces.put_nowait((asyncio.get_running_loop().time() + seconds, data))
    except ConnectionError:
        pass
    pieces.put_nowait(None)
    await delivering


async def serve(host, port, delay, pipe):
    async def connected(reader, writer):
        up_reader, up_writer = await asyncio.open_connection(host, port)
        await asyncio.gather(pump(reader, up_writer, delay / 2), pump(up_reader, writer, delay / 2))

    server = await asyncio.start_server(connected, "127.0.0.1", 0)
    pipe.send(server.sockets[0].getsockname()[1])
    async with server:
        await server.serve_forever()


def proxy_process(host, port, delay, pipe):
    asyncio.run(serve(host, port, delay, pipe))


class Away:
    """A server that is so many milliseconds away; `dsn` leads there."""

    def __init__(self, dsn, milliseconds):
        self.dsn, self._process = dsn, None
        if milliseconds:
            given = conninfo_to_dict(dsn)
            ours, theirs = multiprocessing.Pipe()
            where = given["host"], int(given["port"]), milliseconds / 1000, theirs
            self._process = multiprocessing.get_context("spawn").Process(target=proxy_process, args=where, daemon=True)
            self._process.start()
            self.dsn = make_conninfo(dsn, host="127.0.0.1", port=ours.recv(), sslmode="disable", gssencmode="disable")

    def close(self):
        if self._process is not None:
            self._process.kill()
            self._process.join()


# --- the measurements ---------------------------------------------------------------------------------------------


def turn(away, size, records):
    """Records a second in batches of this size, and how many batches it took."""
    ours = Ours(away.dsn, batch_bytes=size)
    with common.no_listener():
        for n in range(records):
            ours.logger.info("user %s did %d things to the order", "bob", n, extra={"request": "abc", "n": n})
    seconds = drained(ours.handler)
    stats = ours.handler.stats()
    assert stats.stored == records == stats.offered, stats
    ours.close()
    return records / seconds, stats.batches


def held(size, times=9):
    """Milliseconds, the least of some, to cut a batch of this size out of a segment and to count its rows."""
    line = (
        b"17\t2026-11-25 04:10:46.123456+00\t20\tbench.orders\tuser bob did 17 things\tbench\t\\N\t{}\t/srv/app.py\t9\n"
    )
    with mmap.mmap(-1, 2 * size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as segment:
        segment.write((line * (2 * size // len(line) + 1))[: 2 * size])
        took = []
        for n in range(times):
            at = size if n % 2 else 0  # not the slice that is in the cache
            began = time.perf_counter()
            Batch(0, segment[at : at + size])
            took.append(time.perf_counter() - began)
    return min(took) * 1000


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--records", type=int, default=100_000)
    parser.add_argument("--delays", default=DELAYS)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    delays = [float(delay) for delay in args.delays.split(",")]
    rates = {(delay, size): [] for delay in delays for size in SIZES}
    batches = {}
    with common.prepared_server() as server:
        dsn = server.dsn()
        away = {delay: Away(dsn, delay) for delay in delays}
        turn(away[delays[0]], SIZES[0], 100)
        for _ in range(args.rounds):
            for delay, size in random.sample(list(rates), len(rates)):
                common.emptied(dsn)
                records = min(args.records, BATCHES * size // A_RECORD)
                rate, batches[delay, size] = turn(away[delay], size, records)
                rates[delay, size].append(rate)
        for one in away.values():
            one.close()
        machine = common.facts(server)
    medians = {key: statistics.median(found) for key, found in rates.items()}
    rows = []
    for delay in delays:
        best = max(medians[delay, size] for size in SIZES)
        for size in SIZES:
            what = (
                f"{delay:g} ms away, batches of {size // KIB} KiB: {medians[delay, size]:,.0f} records/s, of the best"
            )
            rows.append(row(what, medians[delay, size] / best, unit="times"))
    rows += [row(f"cutting and counting {size // KIB} KiB holds the GIL", held(size), unit="ms") for size in SIZES]
    details = [
        {"delay_ms": delay, "batch_bytes": size, "records_per_second": found, "batches": batches[delay, size]}
        for (delay, size), found in rates.items()
    ]
    result = {"facts": machine, "rounds": args.rounds, "records": args.records, "rows": rows, "details": details}
    common.report("batches", result, args.json)


if __name__ == "__main__":
    sys.exit(main())
