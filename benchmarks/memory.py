"""
What waiting records cost in memory, what an outage does to it, and whether anything grows.

    python benchmarks/memory.py [--rounds 3] [--json FILE]
    python benchmarks/memory.py --soak [60] [--modes memory:5000 journal:2500] [--json FILE]

1. Waiting: a fresh process, 10,000 records that nobody takes, of 1,000 bytes; what it grew by. The listener never
   starts: its connecting would add its thread, its heap and libpq's pages (0.5 MB of RSS, once, not for each record).
2. Outage: a fresh process logs as fast as it can while the proxy before the server refuses, until half as much again
   as fits was offered; then the proxy heals. Its peak above what it held before (the kernel's own high-water mark, so
   no moment is missed), and what it holds when all is stored. Every number is looked for in the table.
3. Soak: processes that log at a steady rate (open loop: what is late is caught up with) into one real server; each
   mode is one process. The slope of what they hold over the last 80 % of the time. Every five minutes the table is
   locked, its numbers are checked (of each stream the next ones, without a gap, each once) and it is emptied: an hour
   would leave gigabytes. For that second the writers wait, so a small stall every five minutes is part of the run.
   Figures so far are written to the JSON every minute: an interrupted run counts as far as it came.

Memory is what Linux says in smaps_rollup. USS: pages that are this process's alone. Anonymous: those of them that no
file stands behind; the rest are mapped files: code, and a journal's segments. Whether something leaks with a journal is
read from anonymous: USS less that is the part of the segment that is filled. When another Python on the machine ends,
pages of shared code become "private" in ours, so a step in USS that anonymous does not have is not growth of ours.
"""

from __future__ import annotations

import argparse
import gc
import itertools
import json
import logging.handlers
import os
import queue
import random
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import common
import psycopg
from common import LIMIT, Ours, row

from logsluice.listener import Listener

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from support.proxy import Proxy

MIB = 1024 * 1024
# Seconds between two looks at a soaking process, on average: each is drawn between half and one and a half of it. A
# journal's pages rise and fall with the segment that is written to. At a steady rate looks at even intervals meet it at
# nearly the same height each time: a beat, which looked like growth of 3 MB an hour (uss; anonymous stood still).
SAMPLE = 10
TICK = 0.01  # seconds: what is due is logged this often
WINDOW = 300  # seconds between two checks of the table
SAVE = 60  # seconds between two writes of the JSON
SETTLED = 0.2  # part of a soak that is left out: caches fill, the heap finds its size
BLOCK = 30  # samples drawn together, five minutes: neighbours resemble each other, and so do windows
RESAMPLES = 2000
WAITING, SIZE = 10_000, 1000  # records that wait; bytes of each
QUIET = 1.5  # seconds: what the keeper unmaps has waited for one
DIGITS = 12  # of a record's number, in front of its message
WARM = 100  # records stored before the outage: connection, caches
PRODUCERS = 2  # threads
OVER = 1.5  # times what fits is logged; every other one is a WARNING, so that the reserve fills, too
AWAY = 2  # seconds that the outage goes on when all is full: the listener tries in vain
# What an outage may add to the limit in memory: a slice of 2 MiB, and psycopg's copy of it.
SLACK = 4 * MIB
# What may stay when it is over: heap that malloc keeps, since after a large block was freed it trims only above twice
# that block's size (mallopt(3)): 8 MiB after a journal's segment was read back. And one segment.
KEPT = 12 * MIB
# With a journal, however large: three mapped segments of 4 MiB, one read back without a map (4 MiB), the same slice.
FLAT = 12 * MIB + 4 * MIB + SLACK
OUTAGES = [(capacity * MIB, 1000) for capacity in (16, 64, 256)] + [(16 * MIB, 100), (64 * MIB, 64 * 1024)]
ERROR_EVERY = 1000  # records: each error wakes the listener, so more would make a commit of each


def held():
    """What this process holds now, in bytes."""
    kib = {}
    for line in Path("/proc/self/smaps_rollup").read_text(encoding="ascii").splitlines()[1:]:
        name, value = line.split(":")
        kib[name] = int(value.split()[0])
    return {
        "rss": 1024 * kib["Rss"],
        "uss": 1024 * (kib["Private_Clean"] + kib["Private_Dirty"]),
        "anonymous": 1024 * kib["Anonymous"],
    }


def entries(folder):
    return sum(1 for _ in Path("/proc/self", folder).iterdir())


class Child:
    """A fresh process that runs a function of this file, given by its name. It answers in lines of JSON."""

    def __init__(self, task, **options):
        self.process = subprocess.Popen(
            [sys.executable, __file__, "--child", task], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.tell(options)  # not as arguments: the DSN holds a password

    def tell(self, what):
        self.process.stdin.write(json.dumps(what) + "\n")
        self.process.stdin.flush()

    def hear(self):
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"a child ended with status {self.process.wait(LIMIT)}")
        return json.loads(line)

    def end(self):
        self.process.stdin.close()
        self.process.stdout.close()
        if status := self.process.wait(LIMIT):
            raise RuntimeError(f"a child ended with status {status}")


def say(**what):
    print(json.dumps(what), flush=True)


def options_of(mode, folder, capacity_bytes):
    """Ours as it is by default, but for the bound; with `journal` the same bound for its folder."""
    journal = {"journal": f"{folder}/journal-{mode}", "journal_bytes": capacity_bytes} if mode == "journal" else {}
    return {"capacity_bytes": capacity_bytes, **journal}


# --- 1: waiting -------------------------------------------------------------------------------------------------------


def waiting(dsn, mode, reading):
    """In the child: what 10,000 records hold that nobody takes. The keeper does its chores: they are the journal's."""
    Listener.start = lambda _self: None  # for good: the first full segment would start it, and count its connecting
    with tempfile.TemporaryDirectory() as folder:
        if mode == "QueueHandler":
            logger = common.logger_of(logging.handlers.QueueHandler(queue.Queue(-1)))
        else:
            ours = Ours(dsn, **options_of(mode, folder, common.ROOM))
            logger = ours.logger
        logger.info("the first makes the buffer")
        beside = 0
        if mode != "QueueHandler":
            buffer = ours.handler._pair[1].routes[0].buffer
            before = buffer.tail()
            logger.info(f"{0:0{SIZE}}")
            beside = buffer.tail() - before - SIZE  # bytes of a frame that are not the message
        length = SIZE - (beside if reading == "frame" else 0)
        gc.collect()
        before, blocks = held(), sys.getallocatedblocks()
        for n in range(WAITING):
            logger.info(f"{n:0{length}}")  # a text of its own, as each message is
        threading.Event().wait(QUIET)
        gc.collect()
        grown = {what: value - before[what] for what, value in held().items()}
        frames = 0 if mode == "QueueHandler" else buffer.waiting_bytes()
        say(**grown, blocks=sys.getallocatedblocks() - blocks, frames=frames, beside=beside)
        if mode != "QueueHandler":
            buffer.discard()  # nobody is there to whom it could be sent
        sys.stdin.read()
    os._exit(0)


def waiting_rows(seen):
    rows = []
    for (mode, reading), found in seen.items():
        what = f"{mode}: {WAITING:,} waiting records, {reading} of {SIZE:,} bytes"

        def median(key, found=found):
            return statistics.median(one[key] for one in found)

        rows.append(row(what, median("uss") / 1e6, None if mode == "QueueHandler" else 12, unit="MB"))
        if mode != "QueueHandler":
            rows.append(row("  of it anonymous", median("anonymous") / 1e6, unit="MB"))
            rows.append(row("  frames, wherever they are", median("frames") / 1e6, unit="MB"))
            rows.append(row("  a frame's bytes beside its message", median("beside"), unit="bytes"))
        if mode == "memory":
            rows.append(row("  beyond the frames", (median("uss") - median("frames")) / 1e3, unit="KB"))
            rows.append(row("  beside what a peer claims", median("uss") / 1e6, 11, unit="MB"))
    return rows


# --- 2: outage --------------------------------------------------------------------------------------------------------


def flooding(dsn, options, size):
    """In the child: store a few, then log twice what fits while the server is away, and wait until all is stored."""
    ours = Ours(dsn, backoff_max=1, **options)
    info, warning = ours.logger.info, ours.logger.warning
    text = "x" * (size - DIGITS)
    for n in range(WARM):
        info(f"{n:0{DIGITS}}{text}")
    ours.finish()
    gc.collect()
    base, started = held(), time.monotonic()
    say(**base)
    sys.stdin.readline()  # the server is away
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # the highest resident size starts anew from here
    count = int(OVER * options["capacity_bytes"]) // (size + 150)  # 150: the frame's bytes beside the message
    numbers = itertools.count(WARM)

    def log():
        while (n := next(numbers)) < WARM + count:
            (warning if n % 2 else info)(f"{n:0{DIGITS}}{text}")

    curve = []

    def look(seconds):
        """Samples for a plot until the threads are done or the time is over."""
        until = time.monotonic() + seconds
        while time.monotonic() < until and (seconds < LIMIT or any(one.is_alive() for one in threads)):
            curve.append([round(time.monotonic() - started, 2), held()["rss"] - base["rss"]])
            threading.Event().wait(0.1)

    threads = [threading.Thread(target=log) for _ in range(PRODUCERS)]
    for one in threads:
        one.start()
    look(LIMIT)
    look(AWAY)
    stats = ours.handler.stats()
    assert stats.full, stats
    assert stats.dropped, stats
    say(peak=highest() - base["rss"], **{what: value - base[what] for what, value in held().items()})
    sys.stdin.readline()  # it is back
    assert ours.handler.flush(LIMIT)
    gc.collect()
    peak, after = highest() - base["rss"], {what: value - base[what] for what, value in held().items()}
    curve.append([round(time.monotonic() - started, 2), after["rss"]])
    stats = ours.handler.stats()
    segments = sum(1 for _ in ours.handler._pair[1].routes[0].buffer._chain())
    ours.close()
    say(
        **after, peak=peak, segments=segments, offered=stats.offered, accepted=stats.accepted, stored=stats.stored,
        dropped=stats.dropped, abandoned=stats.abandoned, logged=WARM + count, curve=curve,
    )  # fmt: skip


def highest():
    """The kernel's own record of the highest resident size."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return 1024 * int(next(line for line in status.splitlines() if line.startswith("VmHWM")).split()[1])


def outage(dsn, proxy, mode, capacity, size):
    """One flood; what the child saw, when the table holds what it should."""
    with psycopg.connect(dsn, autocommit=True) as conn, tempfile.TemporaryDirectory() as folder:
        conn.execute("TRUNCATE logsluice.logs")
        child = Child("flooding", dsn=proxy.dsn, options=options_of(mode, folder, capacity), size=size)
        base = child.hear()
        proxy.refuse()
        proxy.cut()
        child.tell("away")
        full = child.hear()
        proxy.heal()
        child.tell("back")
        seen = child.hear()
        child.end()
        ids = f"left(message, {DIGITS})"
        rows, different, said = conn.execute(
            f"SELECT count(*) FILTER (WHERE seq > 0), count(DISTINCT {ids}) FILTER (WHERE seq > 0), "
            "coalesce(sum((attributes->>'dropped')::bigint) FILTER (WHERE seq < 0), 0) FROM logsluice.logs"
        ).fetchone()
    assert rows == different == seen["stored"] == seen["accepted"], (rows, different, seen)
    assert seen["offered"] == seen["logged"] == seen["accepted"] + seen["dropped"], seen
    assert said == seen["dropped"], (said, seen)
    return {"mode": mode, "capacity": capacity, "size": size, "base": base, "full": full, "end": seen}


def show(one):
    end, what = one["end"], f"{one['mode']}, limit {one['capacity'] // MIB} MiB, {one['size']:,} bytes"
    peak, after = end["peak"] / MIB, end["rss"] / MIB
    print(f"{what}: peak {peak:.1f} MiB over base, {after:.1f} after, {end['curve'][-1][0]:.0f} s", flush=True)


def outage_rows(seen):
    rows = []
    for one in seen:
        what = f"{one['mode']}, outage, limit {one['capacity'] // MIB} MiB, {one['size']:,} bytes"
        limit = one["capacity"] + SLACK if one["mode"] == "memory" else FLAT
        rows.append(row(f"{what}: peak over base", one["end"]["peak"] / MIB, limit // MIB, unit="MiB"))
        if one["mode"] == "memory":
            rows.append(row("  of the limit itself", one["end"]["peak"] / one["capacity"], unit="times"))
        rows.append(row("  when all is stored, over base", one["end"]["rss"] / MIB, KEPT // MIB, unit="MiB"))
        rows.append(row("  dropped", 100 * one["end"]["dropped"] / one["end"]["offered"], unit="%"))
    return rows


# --- 3: soak ----------------------------------------------------------------------------------------------------------


def soaking(dsn, options, rate, seconds):
    """In the child: log `rate` records a second, and say every ten seconds what is held."""
    ours = Ours(dsn, **options)
    info, failed = ours.logger.info, ours.logger.exception
    pause = threading.Event()
    logged, started, draw = 0, time.monotonic(), random.Random(17)
    look_at = started + SAMPLE
    while (now := time.monotonic()) < started + seconds:
        for n in range(logged, int((now - started) * rate)):
            if n % ERROR_EVERY:
                info("user %s did %d things to the order", f"u-{n % 5000}", n, extra={"request": f"{n:x}", "n": n})
            else:
                try:
                    raise ValueError(f"order {n}")
                except ValueError:
                    failed("order %d failed", n)
            logged = n + 1
        if now >= look_at:
            say(
                seconds=round(now - started, 1), logged=logged, **held(), objects=len(gc.get_objects()),
                blocks=sys.getallocatedblocks(), fds=entries("fd"),
                threads=entries("task"),
            )  # fmt: skip
            look_at += SAMPLE * draw.uniform(0.5, 1.5)
        pause.wait(TICK)
    assert ours.handler.flush(LIMIT)
    stats = ours.handler.stats()
    stream = ours.handler._pair[1].routes[0].buffer.stream
    say(
        stream=stream, logged=logged, offered=stats.offered, stored=stats.stored, dropped=stats.dropped,
        abandoned=stats.abandoned, dead=stats.dead, retries=stats.retries, **held(),
    )  # fmt: skip
    ours.close()


class Soaked:
    """A soaking process as its parent sees it."""

    def __init__(self, dsn, mode, rate, seconds, folder):
        self.mode, self.rate = mode, rate
        self.samples, self.end, self.error = [], None, None
        self.child = Child("soaking", dsn=dsn, options=options_of(mode, folder, 64 * MIB), rate=rate, seconds=seconds)
        self.thread = threading.Thread(target=self._listen, daemon=True)
        self.thread.start()

    def _listen(self):
        try:
            while self.end is None:
                heard = self.child.hear()
                if "stream" in heard:
                    self.end = heard
                else:
                    self.samples.append(heard)
        except (RuntimeError, ValueError) as error:
            self.error = str(error)

    def details(self):
        return {"rate": self.rate, "error": self.error, "end": self.end, "samples": self.samples}


class Windows:
    """The table's numbers, checked from one look to the next."""

    def __init__(self, dsn):
        self.dsn = dsn
        self.last, self.broken = {}, []  # stream -> the highest number so far; what was wrong

    def check(self):
        with psycopg.connect(self.dsn) as conn:
            conn.execute("LOCK TABLE logsluice.logs IN ACCESS EXCLUSIVE MODE")
            found = conn.execute(
                "SELECT stream, count(*), count(DISTINCT seq), min(seq), max(seq) FROM logsluice.logs GROUP BY stream"
            ).fetchall()
            conn.execute("TRUNCATE logsluice.logs")
        for stream, rows, numbers, first, last in found:
            # One thread logs, so a stream's numbers come in order: each look finds the next ones, whole.
            if first != self.last.get(stream, 0) + 1 or not rows == numbers == last - first + 1:
                self.broken.append([stream, self.last.get(stream, 0), rows, numbers, first, last])
            self.last[stream] = last


def slope(samples, what, draw):
    """KB an hour that `what` grows by in what is left of the samples, and 95 % of the slopes of resampled blocks."""
    points = [(one["seconds"] / 3600, one[what] / 1000) for one in samples[int(len(samples) * SETTLED) :]]
    if len(points) < 3:
        return None
    size = max(1, min(BLOCK, len(points) // 4))
    blocks = [points[at : at + size] for at in range(len(points) - size + 1)]
    slopes = []
    for _ in range(RESAMPLES):
        drawn = [point for block in draw.choices(blocks, k=-(-len(points) // size)) for point in block]
        if len({x for x, _ in drawn}) > 1:
            slopes.append(statistics.linear_regression(*zip(*drawn, strict=True)).slope)
    slopes.sort()
    return {
        "kb_an_hour": statistics.linear_regression(*zip(*points, strict=True)).slope,
        "least": slopes[int(len(slopes) * 0.025)],
        "most": slopes[int(len(slopes) * 0.975)],
        "samples": len(points),
    }


def soak_rows(soaked, windows):
    """Rows and slopes of what was seen so far."""
    rows, slopes = [], {}
    for one in soaked:
        draw = random.Random(17)
        slopes[one.mode] = {what: slope(one.samples, what, draw) for what in ("uss", "anonymous", "rss")}
        for what, found in slopes[one.mode].items():
            if found and what != "rss":
                rows.append(row(f"{one.mode}: {what} grows, an hour", found["kb_an_hour"], unit="KB"))
                rows.append(row(f"{one.mode}: 95 % of resampled slopes, from", found["least"], 0, unit="KB"))
                rows.append(row(f"{one.mode}: to", found["most"], unit="KB"))
        for what in ("objects", "blocks", "fds", "threads"):
            if one.samples:
                settled = one.samples[int(len(one.samples) * SETTLED) :]
                more = settled[-1][what] - settled[0][what]
                rows.append(row(f"{one.mode}: {what}, more at the end than after the first fifth", more))
        if one.end:
            end = one.end
            rows.append(row(f"{one.mode}: offered and not stored", end["offered"] - end["stored"], 0))
            missing = end["logged"] - windows.last.get(end["stream"], 0)
            rows.append(row(f"{one.mode}: logged and not in the table", missing, 0))
    return rows, slopes


def soak(minutes, modes, path):
    """Run until the time is over; the result, written every minute on the way."""
    with common.prepared_server() as server, tempfile.TemporaryDirectory() as folder:
        dsn = server.dsn()
        machine = common.facts(server)
        windows = Windows(dsn)
        soaked = [Soaked(dsn, mode, rate, 60 * minutes, folder) for mode, rate in modes.items()]

        def result(complete):
            rows, slopes = soak_rows(soaked, windows)
            details = {
                "complete": complete, "minutes": minutes, "slopes": slopes, "gaps": windows.broken,
                "modes": {one.mode: one.details() for one in soaked},
            }  # fmt: skip
            return {"facts": machine, "rounds": 1, "rows": rows, "details": details}

        started = time.monotonic()
        save_at, check_at = started + SAVE, started + WINDOW
        while any(one.thread.is_alive() for one in soaked):
            soaked[0].thread.join(1)
            threading.Event().wait(1)
            if time.monotonic() >= check_at:
                windows.check()
                check_at += WINDOW
            if time.monotonic() >= save_at:
                save(path, result(complete=False))
                save_at += SAVE
        windows.check()
        for one in soaked:
            if one.error is None:
                one.child.end()
        final = result(complete=all(one.error is None for one in soaked))
    save(path, final)
    common.report("memory_soak", final, path)
    wrong = [f"gaps {windows.broken}"] if windows.broken else []
    for one in soaked:
        end = one.end
        if end is None:
            wrong.append(f"{one.mode}: {one.error}")
        elif not end["logged"] == end["offered"] == end["stored"] == windows.last.get(end["stream"]):
            wrong.append(f"{one.mode}: {end}, in the table {windows.last.get(end['stream'])}")
    return wrong


def save(path, result):
    """Write the JSON in one step: whoever reads it, or an end at any time, finds it whole."""
    if path:
        path.parent.mkdir(parents=True, exist_ok=True)
        new = path.with_suffix(".new")
        new.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
        new.replace(path)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--most", type=int, default=256, help="MiB: leave out outages with a larger limit")
    parser.add_argument("--soak", type=float, nargs="?", const=60, metavar="MINUTES")
    parser.add_argument("--modes", nargs="+", default=["memory:5000"], help="of the soak, with records a second")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--child", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        globals()[args.child](**json.loads(sys.stdin.readline()))
        return None
    if args.soak:
        modes = {mode: int(rate) for mode, rate in (one.split(":") for one in args.modes)}
        return "\n".join(soak(args.soak, modes, args.json)) or None
    modes = [(mode, reading) for mode in ("memory", "journal", "QueueHandler") for reading in ("message", "frame")]
    modes.remove(("QueueHandler", "frame"))  # it has none
    seen, outages = {one: [] for one in modes}, []
    with common.prepared_server() as server:
        for _ in range(args.rounds):
            for mode, reading in modes:
                child = Child("waiting", dsn=server.dsn(), mode=mode, reading=reading)
                seen[mode, reading].append(child.hear())
                child.end()
        with Proxy(server.dsn()) as proxy:
            for capacity, size in OUTAGES:
                if capacity > args.most * MIB:
                    continue
                for mode in ("memory", "journal"):
                    outages.append(outage(server.dsn(), proxy, mode, capacity, size))
                    show(outages[-1])
        machine = common.facts(server)
    details = {
        "waiting": [{"mode": mode, "reading": reading, "seen": found} for (mode, reading), found in seen.items()],
        "slack_bytes": SLACK, "flat_bytes": FLAT, "kept_bytes": KEPT, "outages": outages,
    }  # fmt: skip
    rows = waiting_rows(seen) + outage_rows(outages)
    common.report("memory", {"facts": machine, "rounds": args.rounds, "rows": rows, "details": details}, args.json)
    return None


if __name__ == "__main__":
    sys.exit(main())
