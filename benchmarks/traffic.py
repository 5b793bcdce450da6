"""
A day in ten minutes: what a program's own traffic does, from night to noon and back, with bursts.

    python benchmarks/traffic.py [--minutes 10] [--journal] [--seed 1] [--quick] [--json FILE]

The rate follows a sine, 25 records a second at night and 500 at noon; in bursts of some seconds it is 20 times that.
Records come at drawn times (Poisson), whatever the handler does: one that cannot be logged in time is logged late, and
its lateness counted, so that a stall is not hidden by the calls that it held up. 300 loggers by Zipf's law, 2 % ERROR
with a traceback, 1 % messages of 32 KiB, 30 % with extras, 20 % with bound context values. All is drawn from the seed
before the clock starts; one thread logs.

Between two records the thread waits for milliseconds, and then runs with cold caches: so one record in ten comes with a
call of a NullHandler at the same moment, timed beside.

By minute (a tenth of the day): offered and stored a second, the call, lateness, the age of the oldest waiting record,
records a batch, resident memory. At the end each record's number is looked for in the table: none lost, none twice.
"""

from __future__ import annotations

import argparse
import bisect
import contextlib
import itertools
import logging
import math
import random
import sys
import tempfile
import threading
import time
from array import array
from pathlib import Path

import common
import psycopg
from common import LIMIT, row
from growth import WORDS, memory

from logsluice import PostgresHandler, context

NIGHT, NOON = 25, 500  # records a second
BURST = 20  # times the rate of the hour: at noon 10,000 a second, a third of what one process can log beside the rest
BURSTS, BURST_SECONDS = 10, (2, 5)  # in a day of ten minutes, and how long each lasts; both less in a shorter day
LOGGERS, ZIPF = 300, 1.1
ERRORS, LARGE, EXTRAS, BOUND = 0.02, 0.01, 0.3, 0.2  # parts of all records; one may be several of them
LARGE_BYTES = 32 * 1024
SLOTS = 10  # "minutes" of a day
SAMPLE = 0.2  # seconds between two looks at the handler: less than `linger`, so that staleness is seen
PROBES = 10  # before one record in so many a NullHandler is called as well: what a call costs whose code is cold
SHORTEST = 1e-4  # seconds: a wait that costs as much as it lasts is not worth it
IS_ERROR, IS_LARGE, HAS_EXTRAS, IS_BOUND = 1, 2, 4, 8


# --- what is to come ----------------------------------------------------------------------------------------------


class Day:
    """When each record is due, of which logger and kind. Drawn from a seed."""

    def __init__(self, seconds, seed):
        dice = random.Random(seed)
        self.seconds = seconds
        number = max(2, round(BURSTS * seconds / 600))
        starts = sorted(dice.uniform(0, 0.95 * seconds) for _ in range(number))
        most = 0.03 * seconds  # a burst of 5 s would be a sixth of a day of 30 s
        self.bursts = [(start, start + min(most, dice.uniform(*BURST_SECONDS))) for start in starts]
        self.due = array("d", self._due(dice))
        count = len(self.due)
        weights = list(itertools.accumulate(1 / rank**ZIPF for rank in range(1, LOGGERS + 1)))
        self.loggers = array(
            "H", (bisect.bisect(weights, dice.random() * weights[-1], 0, LOGGERS - 1) for _ in range(count))
        )
        parts = ((IS_ERROR, ERRORS), (IS_LARGE, LARGE), (HAS_EXTRAS, EXTRAS), (IS_BOUND, BOUND))
        self.kinds = bytes(sum(kind for kind, part in parts if dice.random() < part) for _ in range(count))
        self.large = [" ".join(dice.choices(WORDS, k=LARGE_BYTES // 3))[:LARGE_BYTES] for _ in range(20)]

    def rate(self, at):
        """Records a second: low at night, where the day begins and ends."""
        calm = NIGHT + (NOON - NIGHT) * (1 - math.cos(2 * math.pi * at / self.seconds)) / 2
        return calm * BURST if self._within(at) else calm

    def _due(self, dice):
        """Poisson by thinning: drawn at the highest rate, kept as often as the rate of the moment is of it."""
        for begin, end in itertools.pairwise(sorted({0.0, self.seconds, *itertools.chain(*self.bursts)})):
            at = begin
            highest = NOON * (BURST if self._within(begin) else 1)
            while (at := at + dice.expovariate(highest)) < end:
                if dice.random() * highest < self.rate(at):
                    yield at

    def _within(self, at):
        return any(start <= at < end for start, end in self.bursts)


def buy(number):
    return pay(number, {})


def pay(number, cards):
    return cards[f"card of {number}"]


class Program:
    """Logs a day."""

    def __init__(self, day, handler):
        self.day = day
        self.loggers = [logging.Logger(f"shop.part_{n}") for n in range(LOGGERS)]
        for logger in self.loggers:
            logger.addHandler(handler)
        self.null = logging.Logger("shop")
        self.null.addHandler(logging.NullHandler())
        self.calls, self.late, self.nulls = array("d"), array("d"), array("d")  # seconds
        self.logged = 0  # read by the sampler

    def log(self, number):
        """Log a record; return the seconds that the call took. Its number is what the table is asked for."""
        kind, info = self.day.kinds[number], self.loggers[self.day.loggers[number]]
        extra = {"request": f"r-{number}", "status": 200, "took": 0.017} if kind & HAS_EXTRAS else None
        values = {"user_id": f"u-{number % 97}", "correlation_id": f"c-{number // 10}"} if kind & IS_BOUND else None
        with context.bound(**values) if values else contextlib.nullcontext():
            if kind & IS_ERROR:
                try:
                    buy(number)
                except KeyError:
                    began = time.perf_counter()
                    info.exception("n=%d: order of %s failed", number, "bob", extra=extra)
                    return time.perf_counter() - began
            if kind & IS_LARGE:
                text = self.day.large[number % len(self.day.large)]
                began = time.perf_counter()
                info.info("n=%d: answer %s", number, text, extra=extra)
                return time.perf_counter() - began
            began = time.perf_counter()
            info.info("n=%d: user %s did %d things to the order", number, "bob", number % 7, extra=extra)
            return time.perf_counter() - began

    def run(self, began):
        wait = threading.Event().wait
        for number, due in enumerate(self.day.due):
            while (left := began + due - time.monotonic()) > SHORTEST:
                wait(left)
            self.late.append(max(0.0, -left))
            if number % PROBES == 0:
                asked = time.perf_counter()
                self.null.info("n=%d: user %s did %d things to the order", number, "bob", number % 7)
                self.nulls.append(time.perf_counter() - asked)
            self.calls.append(self.log(number))
            self.logged = number + 1

    def measured(self, begin=0, end=None):
        """Calls without those that a probe has warmed up for."""
        return [call for number, call in enumerate(self.calls[begin:end], begin) if number % PROBES]


# --- what is seen -------------------------------------------------------------------------------------------------


def sample(program, handler, began, over, series):
    """Look at the handler until the day is over."""
    for number in itertools.count(1):
        stats = handler.stats()
        series.append({
            "at": time.monotonic() - began, "logged": program.logged, "offered": stats.offered,
            "stored": stats.stored, "batches": stats.batches, "dropped": stats.dropped, "waiting": stats.waiting,
            "waiting_bytes": stats.waiting_bytes, "stale": stats.oldest_waiting_seconds,
            "resident": memory("self", "VmRSS"),
        })  # fmt: skip
        if over.wait(max(0.0, began + number * SAMPLE - time.monotonic())):
            return


def part_of(values, part):
    values = sorted(values)
    return values[min(len(values) - 1, int(len(values) * part))] if values else 0.0


def minutes(day, program, series):
    """The day by slots."""
    found, length = [], day.seconds / SLOTS
    last = {"stored": 0, "batches": 0, "dropped": 0, "at": 0.0}
    for slot in range(SLOTS):
        begin, end = slot * length, (slot + 1) * length
        at, until = bisect.bisect_left(day.due, begin), bisect.bisect_left(day.due, end)
        calls, late = program.measured(at, until), program.late[at:until]
        seen = [one for one in series if begin <= one["at"] < end] or [series[-1]]
        now = seen[-1]
        batches, stored = now["batches"] - last["batches"], now["stored"] - last["stored"]
        found.append({
            "minute": slot + 1,
            "offered_a_second": (until - at) / length,
            "stored_a_second": stored / max(now["at"] - last["at"], SAMPLE),
            "call_p50_us": 1e6 * part_of(calls, 0.5),
            "call_p999_us": 1e6 * part_of(calls, 0.999),
            "call_longest_ms": 1e3 * max(calls, default=0.0),
            "late_p99_ms": 1e3 * part_of(late, 0.99),
            "late_longest_ms": 1e3 * max(late, default=0.0),
            "stale_s": max(one["stale"] for one in seen),
            "batches": batches,
            "records_a_batch": stored / batches if batches else 0.0,
            "dropped": now["dropped"] - last["dropped"],
            "resident_mb": max(one["resident"] for one in seen) / 1e6,
        })  # fmt: skip
        last = now
    return found


def thinned(series, points=300):
    """The series for a plot: the last of every so many samples, with the worst age among them."""
    step = -(-len(series) // points)
    groups = [series[at : at + step] for at in range(0, len(series), step)]
    worst = [{**group[-1], "stale": max(one["stale"] for one in group)} for group in groups]
    return {key: [round(one[key], 3) for one in worst] for key in series[0]}


def show(found):
    names = {key: key.replace("_a_second", "/s").replace("_", " ") for key in found[0]}
    print("\n" + "".join(f"{name:>17}" for name in names.values()))
    for one in found:
        print("".join(f"{one[key]:>17,.5g}" for key in names))


def ids(dsn, count):
    """How many of the numbers are not in the table, and how many are there more than once."""
    with psycopg.connect(dsn) as conn:
        numbers = conn.execute(
            "SELECT substring(message from '^n=([0-9]+):')::int, count(*) FROM logsluice.logs GROUP BY 1"
        ).fetchall()
    assert {number for number, _ in numbers} <= set(range(count)), "rows that nobody logged"
    return count - len(numbers), sum(times > 1 for _, times in numbers)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0].strip())
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--quick", action="store_true", help="a day of 30 seconds")
    parser.add_argument("--rounds", type=int, default=1, help="days, each from the next seed")
    parser.add_argument("--journal", action="store_true", help="with a journal, in a temporary folder")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    days = []
    for number in range(args.rounds):
        days.append(one_day(30 if args.quick else 60 * args.minutes, args.seed + number, journal=args.journal))
        show(days[-1]["minutes"])
    facts = days[-1].pop("facts")

    def worst(what):
        return max(day[what] for day in days)

    rows = [
        row("lost", worst("lost"), 0),
        row("stored twice", worst("twice"), 0),
        row("dropped", worst("dropped"), 0),
        row("a call, p50", worst("call_p50_us"), 10, unit="µs"),
        row("a NullHandler's at the same moments, p50", worst("null_p50_us"), unit="µs"),
        row("a call, p99.9", worst("call_p999_us"), unit="µs"),
        row("a NullHandler's at the same moments, p99.9", worst("null_p999_us"), unit="µs"),
        row("longest call", worst("call_longest_ms"), 10, unit="ms"),
        row("longest call from when it was due", worst("late_longest_ms"), unit="ms"),
        row("logged more than 10 ms late", worst("late_percent"), unit="%"),
        row("age of the oldest waiting record, at most", worst("stale_s"), unit="s"),
        row("transactions for 50 records", worst("transactions_for_50"), 1),
        row("growth of the process, at most", worst("grown_mb"), 64, unit="MB"),
        row("most that waited", worst("waiting_mb"), unit="MB"),
    ]
    result = {
        "facts": facts, "rounds": args.rounds, "journal": args.journal, "seed": args.seed, "rows": rows,
        "details": {"days": days},
    }  # fmt: skip
    common.report("traffic" + (" with a journal" if args.journal else ""), result, args.json)
    if any(day["lost"] or day["twice"] or day["dropped"] for day in days):
        raise SystemExit("records are missing or there twice")


def one_day(seconds, seed, *, journal):
    """Live a day; what was seen."""
    day = Day(seconds, seed)
    count = len(day.due)
    print(f"a day of {seconds:g} s from seed {seed}: {count:,} records, bursts at "
          + ", ".join(f"{start:.0f} s" for start, _ in day.bursts), flush=True)  # fmt: skip
    with common.prepared_server() as server, tempfile.TemporaryDirectory() as folder:
        options = {"journal": f"{folder}/journal"} if journal else {}
        handler = PostgresHandler(dsn=server.dsn(), service="bench", shutdown_timeout=LIMIT, **options)
        program, series, over = Program(day, handler), [], threading.Event()
        before, began = memory("self", "VmRSS"), time.monotonic() + SAMPLE
        sampler = threading.Thread(target=sample, args=(program, handler, began, over, series))
        sampler.start()
        try:
            program.run(began)
            assert handler.flush(LIMIT)
        finally:
            over.set()
            sampler.join()
        stats = handler.stats()
        handler.close()
        lost, twice = ids(server.dsn(), count)
        facts = common.facts(server)
    calls = program.measured()
    from_due = [late + call for late, call in zip(program.late, program.calls, strict=True)]
    return {
        "facts": facts,
        "records": count,
        "bursts": day.bursts,
        "lost": lost,
        "twice": twice,
        "dropped": stats.dropped,
        "call_p50_us": 1e6 * part_of(calls, 0.5),
        "call_p999_us": 1e6 * part_of(calls, 0.999),
        "call_longest_ms": 1e3 * max(calls),
        "null_p50_us": 1e6 * part_of(program.nulls, 0.5),
        "null_p999_us": 1e6 * part_of(program.nulls, 0.999),
        "null_longest_ms": 1e3 * max(program.nulls),
        "late_longest_ms": 1e3 * max(from_due),
        "late_percent": 100 * sum(late > 0.01 for late in program.late) / count,
        "stale_s": max(one["stale"] for one in series),
        "transactions_for_50": 50 * stats.batches / count,
        "grown_mb": (max(one["resident"] for one in series) - before) / 1e6,
        "waiting_mb": max(one["waiting_bytes"] for one in series) / 1e6,
        "histograms": stats.histograms,
        "minutes": minutes(day, program, series),
        "series": thinned(series),
    }


if __name__ == "__main__":
    sys.exit(main())
