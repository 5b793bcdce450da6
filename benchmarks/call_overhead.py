"""
What does one logging call cost beyond the same call with a NullHandler?

    python benchmarks/call_overhead.py [--rounds 5] [--records 100000] [--json FILE]

1. Alone: NullHandler, QueueHandler into queue.Queue (what its documentation and dictConfig give; the ratio is to this
   one) and into queue.SimpleQueue, FileHandler, ours. The two queues have no listener: nobody waits in `get`, which
   would make `put` dearer, and they are emptied after each block, outside the time. FileHandler writes a real file;
   our listener writes to a real server all the while, whoever's turn it is.
   Blocks of 500 calls (shorter than the 5 ms after which Python lets another thread run) in an order drawn anew each
   time. A round goes on until 20 of our segments are filled, and ends when all is committed; nothing may be dropped.
   Then the plain calls once more, with `journal=` in a folder on a disk in the place of ours in memory.
2. Beside three busy Python threads: what FileHandler and we add, each call timed. Means, since waits are the cost.
3. Saturated: one thread logs without a pause, against the standard library's recipe (QueueHandler, QueueListener,
   executemany of 100) with its listener running. By turns, each until all is committed.

The time of a block is taken on the wall and as CPU time of this thread: with two cores and one GIL the listeners' work
shows in the first, not in the second. A machine's counters would be steadier, but virtual ones seldom have them. So
medians of blocks are printed, which are what a program sees, and minima, which repeat better: noise only ever adds.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import gc
import logging
import logging.handlers
import queue
import random
import statistics
import sys
import tempfile
import threading
import time
from collections import defaultdict
from pathlib import Path

import common
from common import ROOM, SEGMENTS, Ours, Recipe, row

from logsluice import context

BLOCK = 500  # calls
FILE_BLOCK = 10  # calls of FileHandler beside busy threads: each waits some 15 ms for the GIL
BUSY = 3  # threads
QUEUES = {"Queue": queue.Queue, "SimpleQueue": queue.SimpleQueue}
OURS, JOURNAL = "logsluice", "logsluice, journal"
OTHERS = ("NullHandler", "QueueHandler, Queue", "QueueHandler, SimpleQueue", "FileHandler")


def plain(info, count):
    for n in range(count):
        info("user %s did %d things to the order", "bob", n)


def extras(info, count):
    for n in range(count):
        info("user %s did %d things to the order", "bob", n, extra={"request": "abc", "n": n})


@contextlib.contextmanager
def nothing_bound():
    yield


def three_bound():
    return context.bound(user_id="u-17", correlation_id="5f0c9e0a", tenant="acme")


# What is logged: the calls, and what is bound around them. Keys are redacted in all, as by default.
KINDS = {"plain": (plain, nothing_bound), "two extras": (extras, nothing_bound), "three bound": (plain, three_bound)}
GOALS = {"plain": 0.40, "two extras": 0.40, "three bound": 0.45}


def nothing():
    pass


def other(name, folder):
    """A handler to be put beside ours, and what to do after each block."""
    if name == "NullHandler":
        return logging.NullHandler(), nothing
    if name == "FileHandler":
        handler = logging.FileHandler(f"{folder}/log")
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s %(message)s"))
        return handler, nothing
    held = QUEUES[name.split()[1]]()

    def empty():
        while not held.empty():
            held.get_nowait()

    return logging.handlers.QueueHandler(held), empty


@contextlib.contextmanager
def contestants(dsn, names, mode):
    """{name: (info, what to do after each block)}, and ours; all fresh. `mode`: the name of ours."""
    with tempfile.TemporaryDirectory() as folder:
        ours = Ours(dsn, **({"journal": f"{folder}/journal", "journal_bytes": ROOM} if mode == JOURNAL else {}))
        others = {name: other(name, folder) for name in names}
        made = {name: (common.logger_of(handler).info, after) for name, (handler, after) in others.items()}
        yield {**made, mode: (ours.logger.info, nothing)}, ours
        for handler, _ in others.values():
            handler.close()
        ours.close()


def alone(dsn, kind, records, draw, mode=OURS):
    """One round; {name: [(CPU ns, wall ns) a call, for each block]} and how many segments were filled."""
    calls, around = KINDS[kind]
    seen, done = defaultdict(list), 0
    common.emptied(dsn)
    with contestants(dsn, OTHERS, mode) as (made, ours), around():
        for info, after in made.values():  # caches, connection, files
            calls(info, BLOCK)
            after()
        ours.finish()
        while done < records or ours.segments() < SEGMENTS:
            for name in draw.sample(list(made), len(made)):
                info, after = made[name]
                wall, cpu = time.perf_counter_ns(), time.thread_time_ns()
                calls(info, BLOCK)
                cpu, wall = time.thread_time_ns() - cpu, time.perf_counter_ns() - wall
                seen[name].append((cpu / BLOCK, wall / BLOCK))
                after()
            done += BLOCK
        ours.finish()
        return seen, ours.segments()


def summed_up(seen):
    """{name: {what: ns a call}} of one round."""
    summary = {}
    for name, blocks in seen.items():
        for what, times in zip(("cpu", "wall"), zip(*blocks, strict=True), strict=True):
            summary.setdefault(name, {}).update(
                {what: statistics.median(times), f"{what}_min": min(times), f"{what}_mean": statistics.fmean(times)}
            )
    return summary


def timed(info, count, took):
    """Log and add each call's ns."""
    clock = time.perf_counter_ns
    for n in range(count):
        started = clock()
        info("user %s did %d things to the order", "bob", n)
        took.append(clock() - started)


def tail(took):
    took = sorted(took)
    return {"mean": statistics.fmean(took), "p99.9": took[int(len(took) * 0.999)], "longest": took[-1]}


def spin(stop):
    while not stop.is_set():
        sum(range(1000))


def busy(dsn, records, draw, mode=OURS):
    """One round beside busy threads; {name: what tail() says}."""
    took, stop = defaultdict(list), threading.Event()
    common.emptied(dsn)
    with contestants(dsn, ("NullHandler", "FileHandler"), mode) as (made, ours):
        for info, _ in made.values():
            plain(info, BLOCK)
        ours.finish()
        threads = [threading.Thread(target=spin, args=(stop,), daemon=True) for _ in range(BUSY)]
        for thread in threads:
            thread.start()
        while len(took[mode]) < records or ours.segments() < SEGMENTS:
            for name in draw.sample(list(made), len(made)):
                timed(made[name][0], FILE_BLOCK if name == "FileHandler" else 10 * BLOCK, took[name])
        stop.set()
        for thread in threads:
            thread.join()
        ours.finish()
    return {name: tail(times) for name, times in took.items()}


def saturated(dsn, records):
    """One round; {name: what tail() says}. The recipe, which keeps each record as an object, logs a quarter."""
    found = {}
    folder = tempfile.TemporaryDirectory()
    journal = functools.partial(Ours, journal=f"{folder.name}/journal", journal_bytes=ROOM)
    for name, made in (("recipe", Recipe), ("logsluice", Ours), (JOURNAL, journal)):
        common.emptied(dsn)
        contestant, took = made(dsn), []
        plain(contestant.logger.info, BLOCK)
        contestant.finish()
        gc.collect()
        while len(took) < records // (4 if made is Recipe else 1) or (
            made is not Recipe and contestant.segments() < SEGMENTS
        ):
            timed(contestant.logger.info, BLOCK, took)
        contestant.finish()
        contestant.close()
        found[name] = tail(took)
    folder.cleanup()
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--records", type=int, default=100_000, help="at least, of each handler in a round")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    draw = random.Random(17)  # the same order in every run
    calls, segments = {kind: [] for kind in KINDS}, []
    beside, full, journal, beside_journal = [], [], [], []
    with common.prepared_server() as server:
        for number in range(args.rounds):
            for kind in KINDS:
                seen, filled = alone(server.dsn(), kind, args.records, draw)
                calls[kind].append(summed_up(seen))
                segments.append(filled)
                show(f"round {number + 1}, {kind}, {filled} segments filled", calls[kind][-1])
            seen, filled = alone(server.dsn(), "plain", args.records, draw, JOURNAL)
            journal.append(summed_up(seen))
            show(f"round {number + 1}, plain, journal, {filled} segments filled", journal[-1])
            beside.append(busy(server.dsn(), args.records, draw))
            show(f"round {number + 1}, beside {BUSY} busy threads", beside[-1])
            beside_journal.append(busy(server.dsn(), args.records, draw, JOURNAL))
            show(f"round {number + 1}, beside {BUSY} busy threads, journal", beside_journal[-1])
            full.append(saturated(server.dsn(), args.records))
            show(f"round {number + 1}, saturated", full[-1])
        machine = common.facts(server)
    result = {
        "facts": machine, "rounds": args.rounds, "records": args.records,
        "rows": rows(calls, beside, full, journal, beside_journal),
        "details": {
            "ns_a_call": calls, "journal_ns_a_call": journal, "journal_busy": beside_journal, "segments": segments,
            "busy": beside, "saturated": full,
        },
    }  # fmt: skip
    common.report("call_overhead", result, args.json)


def show(title, found):
    print(f"{title}: ns a call")
    for name, figures in found.items():
        print(f"  {name:26}" + "".join(f"{what:>10} {value:<12,.0f}" for what, value in figures.items()), flush=True)


def rows(calls, beside, full, journal, beside_journal):
    """The lines of the table: medians of what the rounds say."""

    def added(found, what, name="logsluice", to="QueueHandler, Queue"):
        """What we add, as a part of what another adds."""
        null = [one["NullHandler"][what] for one in found]
        parts = [(one[name][what] - zero) / (one[to][what] - zero) for one, zero in zip(found, null, strict=True)]
        return statistics.median(parts)

    def part(found, what, of, name="logsluice"):
        return statistics.median(one[name][what] / one[of][what] for one in found)

    ours = statistics.median(one["logsluice"]["wall_mean"] for one in calls["plain"]) / 1000
    lines = []
    for kind, goal in GOALS.items():
        for what, clock in (("cpu", "CPU time"), ("cpu_min", "CPU time, least"), ("wall", "wall clock")):
            text = f"added to a call, {kind}, of what QueueHandler adds ({clock})"
            lines.append(row(text, added(calls[kind], what), goal if what == "cpu" else None))
    simple = added(calls["plain"], "cpu", to="QueueHandler, SimpleQueue")
    longest = statistics.median(one[JOURNAL]["longest"] for one in full) / 1e6
    slowest = statistics.median(one["logsluice"]["longest"] for one in full) / 1e6
    return [
        *lines,
        row("with the journal, plain (CPU time)", added(journal, "cpu", JOURNAL), GOALS["plain"]),
        row("the same, plain, with a SimpleQueue instead of QueueHandler's own Queue (CPU time)", simple),
        row("a whole call, plain (mean of the wall clock)", ours, 10, unit="µs"),
        row("appended by one thread", 1e6 / ours, 100_000, least=True, unit="records/s"),
        row("added beside three busy threads, of what FileHandler adds", added(beside, "mean", to="FileHandler"), 0.05),
        row("the same with the journal", added(beside_journal, "mean", JOURNAL, to="FileHandler"), 0.05),
        row("longest call there, of NullHandler's longest", part(beside, "longest", "NullHandler"), 1.2),
        row("the same with the journal, longest call", part(beside_journal, "longest", "NullHandler", JOURNAL), 1.2),
        row("p99.9 of the call, saturated, of the stdlib recipe's", part(full, "p99.9", "recipe"), 0.3),
        row(
            "p99.9 of the call with the journal, saturated, of the stdlib recipe's",
            part(full, "p99.9", "recipe", JOURNAL),
            0.3,
        ),
        row("longest call, saturated, one thread", slowest, 10, unit="ms"),
        row("longest call with the journal, saturated, one thread", longest, 10, unit="ms"),
    ]


if __name__ == "__main__":
    sys.exit(main())
