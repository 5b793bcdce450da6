"""
One measured program of stall.py: a contestant in a case, in a process of its own, so that heap, threads and collector
are alike for all. It takes its case as JSON in its argument and says `ready` when its handler is warm, then waits for a
line; it measures, says `measured`, and waits again (the server gets well meanwhile). Then it prints what it found.

A call's time is stored in an array that was there before: measuring allocates nothing that stays.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import logging
import math
import sys
import tempfile
import threading
import time
from array import array
from collections import Counter
from pathlib import Path

import common

WARM = 500  # calls before: caches, connection, files
PACE = 500  # records a second of one paced producer
MOST = 1_000_000  # calls of all producers together; more than any here can make in a second or two
TASKS = 16
TICK = 0.001  # seconds: the loop's timer whose lateness is measured
BUCKETS = 20  # of the histogram, in a decade
FULL = 1 << 20  # bytes, `full`: the least that the handler takes
SMALL = 1 << 18  # bytes, `full`: a frame must fit into a quarter of the capacity


def spin(stop):
    while not stop.is_set():
        sum(range(1000))


def at_once(info, took, end):
    """Log without a pause until the time `end` (ns); return how many."""
    clock, done = time.perf_counter_ns, 0
    for n in range(len(took)):
        started = clock()
        if n and started >= end:  # one call at least, however busy the machine is
            break
        info("user %s did %d things to the order", "bob", n)
        took[n] = clock() - started
        done = n + 1
    return done


def paced(info, took, end):
    """Log PACE records a second; who comes late goes on at once, as a program does that has work waiting."""
    clock, done, due, never = time.perf_counter_ns, 0, time.perf_counter_ns(), threading.Event()
    for n in range(len(took)):
        if (early := due - clock()) > 0:
            never.wait(early / 1e9)
        started = clock()
        if n and started >= end:  # one call at least, however busy the machine is
            break
        info("user %s did %d things to the order", "bob", n)
        took[n] = clock() - started
        done, due = n + 1, due + 10**9 // PACE
    return done


async def task(info, took, end, pace):
    clock, done, due = time.perf_counter_ns, 0, time.perf_counter_ns()
    for n in range(len(took)):
        await asyncio.sleep(max(0, due - clock()) / 1e9 if pace else 0)
        started = clock()
        if n and started >= end:  # one call at least, however busy the machine is
            break
        info("user %s did %d things to the order", "bob", n)
        took[n] = clock() - started
        done, due = n + 1, due + 10**9 // PACE
    return done


async def ticker(late, end):
    """How late a timer of the loop comes: what every request in such a program waits."""
    clock, n = time.perf_counter_ns, 0
    while (started := clock()) < end or not n:
        await asyncio.sleep(TICK)
        late[n] = max(0, clock() - started - int(TICK * 1e9))
        n += 1
    return n


def with_threads(info, count, seconds, pace):
    """Return the calls' times, of all producers together, and None."""
    took = [array("Q", bytes(8 * (MOST // count))) for _ in range(count)]
    done, end = [0] * count, time.perf_counter_ns() + int(seconds * 1e9)

    def produce(number):
        done[number] = (paced if pace else at_once)(info, took[number], end)

    threads = [threading.Thread(target=produce, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return [one for number in range(count) for one in took[number][: done[number]]], None


def with_tasks(info, seconds, pace):
    """Return the calls' times, and how late the loop's timer came."""
    took = [array("Q", bytes(8 * (MOST // TASKS))) for _ in range(TASKS)]
    late = array("Q", bytes(8 * int(seconds / TICK + 100)))

    async def main():
        end = time.perf_counter_ns() + int(seconds * 1e9)
        return await asyncio.gather(ticker(late, end), *(task(info, one, end, pace) for one in took))

    ticks, *done = asyncio.run(main())
    return [one for times, n in zip(took, done, strict=True) for one in times[:n]], late[:ticks]


# --- contestants --------------------------------------------------------------------------------------------------


class Other:
    """A handler of logging's own; nothing has to be finished."""

    def __init__(self, handler):
        self.handler, self.logger = handler, common.logger_of(handler)

    def finish(self):
        pass

    def close(self):
        self.handler.close()


class Ours(common.Ours):
    """Ours, where records may be dropped: in the case `full`, and there alone."""

    full = False

    def finish(self):
        assert self.handler.flush(common.LIMIT)
        stats = self.handler.stats()
        self.dropped = stats.dropped
        assert stats.stored + self.dropped == stats.offered, stats
        assert bool(self.dropped) == self.full, stats

    def fill(self):
        """Log until records are dropped."""
        while not self.handler.stats().dropped:
            self.logger.info("%s", "x" * 1000)
            self.calls += 1
        self.full = True

    calls = dropped = 0


def contestant(case, folder):
    name = case["who"]
    if name == "NullHandler":
        return Other(logging.NullHandler())
    if name == "FileHandler":
        handler = logging.FileHandler(f"{folder}/log")
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s %(message)s"))
        return Other(handler)
    if name == "recipe":
        return common.Recipe(case["dsn"])
    options = {"backoff_max": 1.0, "slow_batch": 60}  # seconds: an outage here is short, and slow is what is asked for
    if case["server"] == "full":
        options |= {"capacity_bytes": FULL, "max_frame_bytes": SMALL}
    if name == "journal":
        room = FULL if case["server"] == "full" else common.ROOM
        options |= {"journal": f"{folder}/journal", "journal_bytes": room}
    return Ours(case["dsn"], **options)


def summed_up(took):
    """The percentiles in ns, and the histogram: {bucket: how many}; bucket b begins at 10^(b/BUCKETS) ns."""
    took = sorted(took)
    at = {f"p{p:g}": took[min(len(took) - 1, int(len(took) * p / 100))] for p in (50, 99, 99.9)}
    buckets = Counter(int(math.log10(max(1, one)) * BUCKETS) for one in took)
    return {"calls": len(took), "mean": sum(took) / len(took), **at, "longest": took[-1], "buckets": dict(buckets)}


def tell(word):
    print(word, flush=True)
    if not sys.stdin.readline():  # who started us is gone
        sys.exit(1)


def main():
    case = json.loads(sys.argv[1])
    if case.get("switch"):
        sys.setswitchinterval(case["switch"])
    stop = threading.Event()
    spinners = [threading.Thread(target=spin, args=(stop,), daemon=True) for _ in range(case["busy"])]
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        one = contestant(case, folder)
        stack.callback(one.close)
        info, warm = one.logger.info, array("Q", bytes(8 * WARM))
        at_once(info, warm, sys.maxsize)
        one.finish()
        gc.collect()
        tell("ready")
        if case["server"] == "full":
            one.fill()
        for spinner in spinners:
            spinner.start()
        pace = case["mode"] == "paced"
        if case["producers"] == "asyncio":
            took, late = with_tasks(info, case["seconds"], pace)
        else:
            took, late = with_threads(info, case["producers"], case["seconds"], pace)
        stop.set()
        for spinner in spinners:
            spinner.join()
        tell("measured")
        one.finish()
        found = summed_up(took)
        found["kept"] = WARM + len(took) + getattr(one, "calls", 0) - getattr(one, "dropped", 0)
        found["dropped"] = getattr(one, "dropped", 0)
        if late is not None:
            found["late"] = summed_up(late)
        if case["who"] == "FileHandler":
            found["lines"] = Path(folder, "log").read_bytes().count(b"\n")
        print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main()
