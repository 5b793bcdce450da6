"""
Does throughput hold when the server is far away, and how many connections does that take?

    python benchmarks/far.py [--rounds 1] [--records 240000] [--delays 0,1,10,50] [--connections 1,2,4,8] [--json FILE]

Records a second from the first `logger.info` to the last COMMIT, logged as fast as two threads can, through a relay
that adds a round trip of so many milliseconds and limits no bandwidth. The relay runs in a process of its own, one for
each delay; no delay goes through one, too. What the relay could carry, and what a round trip is with it, is measured
first and printed beside what went through it.

All pairs of delay and connections take turns, in a new random order each round. Before a turn the tables are emptied, a
checkpoint is made, and each connection has stored a record. At its end each record is looked for: once, and no other.
"""

from __future__ import annotations

import argparse
import contextlib
import queue
import random
import socket
import statistics
import subprocess
import sys
import threading
import time
from pathlib import Path

import common
import psycopg
from common import Ours, row
from psycopg.conninfo import conninfo_to_dict, make_conninfo

CHUNK = 1 << 18  # bytes: what one recv takes; the fewer, the less the relay costs
THREADS = 2  # that log: one cannot keep a listener and a server busy while it waits for the GIL
CEILING = 256 << 20  # bytes sent through a relay to see what it carries
PADDING = "x" * 150  # with it a frame has about 400 bytes


# --- the relay: python far.py --relay HOST PORT SECONDS ------------------------------------------------------------


def relay(host, port, seconds):
    """Print a port, and carry what comes there to host:port and back, each chunk `seconds` later."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        print(listener.getsockname()[1], flush=True)
        while True:
            client, _ = listener.accept()
            server = socket.create_connection((host, port))
            for one, other in ((client, server), (server, client)):
                one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                chunks = queue.SimpleQueue()
                threading.Thread(target=take, args=(one, chunks, seconds), daemon=True).start()
                threading.Thread(target=give, args=(other, chunks), daemon=True).start()


def take(source, chunks, seconds):
    """Read as fast as it comes: what is under way does not hold up who sends."""
    data = b"-"
    while data:
        try:
            data = source.recv(CHUNK)
        except OSError:
            data = b""
        chunks.put((time.monotonic() + seconds, data))


def give(target, chunks):
    never = threading.Event()
    with contextlib.suppress(OSError):
        while True:
            due, data = chunks.get()
            if (wait := due - time.monotonic()) > 0:
                never.wait(wait)
            if not data:
                target.shutdown(socket.SHUT_WR)
                return
            target.sendall(data)


@contextlib.contextmanager
def relayed(host, port, milliseconds):
    """A port that leads to host:port over a line with this round trip."""
    command = [sys.executable, __file__, "--relay", host, str(port), str(milliseconds / 2000)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield int(process.stdout.readline())
        finally:
            process.kill()


# --- what the relay can do -----------------------------------------------------------------------------------------


def ceiling(milliseconds):
    """Bytes a second that one connection gets through a relay to somebody who only reads."""

    def read(listener):
        client, _ = listener.accept()
        with client:
            while client.recv(CHUNK):
                pass
            client.sendall(b".")

    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=read, args=(listener,), daemon=True).start()
        with relayed("127.0.0.1", listener.getsockname()[1], milliseconds) as port:
            data, started = bytes(CHUNK), time.perf_counter()
            with socket.create_connection(("127.0.0.1", port)) as client:
                for _ in range(CEILING // CHUNK):
                    client.sendall(data)
                client.shutdown(socket.SHUT_WR)
                assert client.recv(1) == b"."
            return CEILING / (time.perf_counter() - started - milliseconds / 1000)


def round_trip(dsn):
    """Milliseconds that a question takes; the least of some, the others waited for the processor."""
    with psycopg.connect(dsn, autocommit=True) as conn:
        taken = []
        for _ in range(20):
            started = time.perf_counter()
            conn.execute("SELECT 1")
            taken.append(time.perf_counter() - started)
        return 1000 * min(taken)


# --- a turn ----------------------------------------------------------------------------------------------------------


def turn(dsn, direct, connections, records):
    common.emptied(direct)
    ours = Ours(dsn, connections=connections)
    handler, logger = ours.handler, ours.logger
    try:
        handler._open()
        for pair in handler._pairs:  # each has its connection, and has looked at the tables
            handler._pair = pair
            if not pair[1].started:
                handler._start(pair[1])
            logger.info("warm")
        ours.finish()
        handler._pair = handler._pairs[0]
        warm = handler.stats()

        def log(thread):
            for n in range(thread, records, THREADS):
                logger.info("order %s of %s", n, PADDING, extra={"tid": n})

        threads = [threading.Thread(target=log, args=(n,)) for n in range(THREADS)]
        started = time.perf_counter()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        logged = time.perf_counter() - started
        ours.finish()
        seconds = time.perf_counter() - started
        stats = handler.stats()
        used = sum(listener.ledger.totals.stored > 1 for _, listener in handler._pairs)
    finally:
        ours.close()
    with psycopg.connect(direct) as conn:
        found = conn.execute(
            "SELECT count(*), count(DISTINCT tid), min(tid), max(tid) FROM "
            "(SELECT (attributes->>'tid')::int FROM logsluice.logs WHERE attributes ? 'tid') AS one(tid)"
        ).fetchone()
    assert found == (records, records, 0, records - 1), found
    sent = stats.histograms["batch_bytes"]["sum"] - warm.histograms["batch_bytes"]["sum"]
    return {
        "a_second": records / seconds,
        "bytes_a_second": sent / seconds,
        "logged_a_second": records / logged,
        "batches": stats.batches - warm.batches,
        "connections_used": used,
    }


def numbers(text):
    return [int(one) for one in text.split(",")]


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--rounds", type=int, default=1, help="two to three minutes each")
    # Five seconds a turn: the first and the last answers take half a second at 50 ms, however many connections.
    parser.add_argument("--records", type=int, default=240_000)
    parser.add_argument("--delays", type=numbers, default=[0, 1, 10, 50], help="ms of round trip that are added")
    parser.add_argument("--connections", type=numbers, default=[1, 2, 4, 8])
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    pairs = [(delay, count) for delay in args.delays for count in args.connections]
    seen = {pair: [] for pair in pairs}
    ceilings = {delay: ceiling(delay) for delay in args.delays}
    with common.prepared_server() as server, contextlib.ExitStack() as stack:
        direct = server.dsn()
        known = conninfo_to_dict(direct)
        dsns, trips = {}, {}
        for delay in args.delays:
            port = stack.enter_context(relayed(known["host"], known["port"], delay))
            dsns[delay] = make_conninfo(direct, host="127.0.0.1", port=port)
            trips[delay] = round_trip(dsns[delay])
            carries = f"{ceilings[delay] / 1e6:,.0f} MB/s"
            print(
                f"{delay} ms added: a round trip takes {trips[delay]:.2f} ms, the relay carries {carries}", flush=True
            )
        for number in range(args.rounds):
            for pair in random.sample(pairs, len(pairs)):
                figures = turn(dsns[pair[0]], direct, pair[1], args.records)
                seen[pair].append(figures)
                print(
                    f"round {number + 1}, {pair[0]:>2} ms, {pair[1]} connections ({figures['connections_used']} used): "
                    f"{figures['a_second']:>8,.0f} records/s, {figures['bytes_a_second'] / 1e6:.1f} MB/s, "
                    f"{figures['batches']} batches",
                    flush=True,
                )
        machine = common.facts(server)

    def median(pair, what="a_second"):
        return statistics.median(one[what] for one in seen[pair])

    first = pairs[0]
    rows = [row(f"committed, {first[1]} connection, {first[0]} ms added", median(first), unit="records/s")]
    for delay, count in pairs[1:]:
        # Side by side within a round: the machine's mood is the same for both.
        ratio = statistics.median(
            one["a_second"] / base["a_second"] for one, base in zip(seen[delay, count], seen[first], strict=True)
        )
        goal = 0.9 if count == max(args.connections) and delay else None
        rows.append(row(f"{delay} ms added, {count} connections, of that", ratio, goal, least=True, unit="times"))
    for delay in args.delays:
        most = max(one["bytes_a_second"] for count in args.connections for one in seen[delay, count])
        what = f"what the relay carries at {delay} ms, of what went through it"
        rows.append(row(what, ceilings[delay] / most, 3, least=True, unit="times"))
    details = {
        "records": args.records,
        "turns": [{"delay_ms": delay, "connections": count, "rounds": seen[delay, count]} for delay, count in pairs],
        "round_trip_ms": trips,
        "relay_bytes_a_second": ceilings,
    }
    common.report("far", {"facts": machine, "rounds": args.rounds, "rows": rows, "details": details}, args.json)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--relay"]:
        relay(sys.argv[2], int(sys.argv[3]), float(sys.argv[4]))
    else:
        main()
