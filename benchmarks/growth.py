"""
Does a record cost the same when there is more of everything?

    python benchmarks/growth.py [--rounds 5] [--records 20000] [--most 10000000] [--parts rows,loggers] [--quick]
                                [--json FILE]

    rows         10 k to 10 M rows in the partition that is written to; plain records, and records with a trace_id that
                 is random and new for every tenth, so that an index is entered at random places
    partitions   0 (a plain table), 3 (the least: yesterday, today, tomorrow) to 400
    producers    1 to 64 processes, each configured by dictConfig; the same number of records in all
    loggers      1 to 1,000 loggers, all through one line, or each on a line of its own; and 8,000, more than the
                 call-site cache holds
    messages     100 bytes to 64 KiB, of words as texts have them

Each size has a schema of its own, side by side in one server. In each round all sizes take a turn, in an order that is
drawn; a turn is a block of records through a handler of its own, from `logger.info` until all is committed, after a
warm-up and a checkpoint. Slopes are of the medians of rounds over log10, with the middle 95 % of 2,000 resamplings of
the rounds; a slope is flat if that interval holds 0. WAL is split by pg_walinspect into records and page images (whole
pages, written when they are first changed after a checkpoint). Autovacuum is off and checkpoints are ours alone: else
they fall into some blocks. At the end the rows of every schema are counted.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime as dt
import json
import logging
import logging.config
import math
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter, defaultdict
from pathlib import Path

import common
import psycopg
from common import LIMIT, Ours, row

from logsluice import partitions, schema
from logsluice.devserver import EmbeddedPostgres

SIZES = (10_000, 100_000, 1_000_000, 10_000_000)  # rows
REFILLED = 100_000  # rows: so few are made anew before each block, or the block itself would be most of the table
PARTITIONS = (0, 3, 10, 100, 400)
PRODUCERS = (1, 4, 16, 64)
QUICK_PRODUCERS = 16  # at most: to start 64 takes 15 s of two processors
PRODUCER_ROUNDS = 3  # at most, for the same reason
LOGGERS = (1, 30, 300, 1000)
BEYOND = 8000  # loggers: twice the call sites that intake.py remembers
MESSAGES = (100, 1024, 8 * 1024, 64 * 1024)  # bytes
BLOCK_BYTES = 16 << 20  # of messages in a block, at most
PARTS = ("rows", "partitions", "producers", "loggers", "messages")
WARM = 200  # records before the clock starts: connection, the server's own caches, call sites
RESAMPLINGS = 2000
FILLED = "filled"  # the service of rows that no handler wrote
# What fills tables quickly, then what measures: PostgreSQL as it comes, but for what would fall into some blocks only.
FILLING = {"fsync": "off", "full_page_writes": "off", "wal_level": "minimal", "max_wal_senders": 0, "autovacuum": "off"}
MEASURING = {"autovacuum": "off", "checkpoint_timeout": "1h", "max_wal_size": "4GB"}
FIGURES = {
    "cpu_us": "client CPU",
    "call_cpu_us": "of it the calling thread",
    "server_us": "server CPU",
    "wall_us": "wall",
    "wal": "WAL bytes",
    "wal_records": "of it records",
}
WORDS = ("order", "paid", "user", "cart", "price", "item", "stock", "ship", "refund", "card", "bank", "city", "mail")


# --- the server ---------------------------------------------------------------------------------------------------


class Bench:
    """The server of a run, one connection that looks, and how many rows of ours each schema must hold."""

    def __init__(self, server, conn, args):
        self.server, self.conn, self.args = server, conn, args
        self.dsn = server.dsn()
        self.expected = Counter()
        self.random = random.Random(args.seed)

    def one(self, query, *values):
        return self.conn.execute(query, values).fetchone()[0]

    def make(self, name, days=3):
        """A schema of so many daily partitions, the last for tomorrow; 0: a plain table."""
        width = "day" if days else "none"
        schema.migrate(self.conn, name, width)
        today = dt.datetime.now(dt.timezone.utc)
        partitions.ensure(self.conn, name, width, today)
        for back in range(2, days - 1):
            partitions.ensure_at(self.conn, name, width, today - dt.timedelta(days=back))
        made = self.one("SELECT count(*) FROM pg_inherits WHERE inhparent = %s::regclass", f"{name}.logs")
        assert made == days, (made, days)

    def fill(self, name, rows):
        """Empty the table and put rows into today's partition, as if logged since midnight. No WAL if it is minimal."""
        with self.conn.transaction():
            self.conn.execute(f"TRUNCATE {name}.logs")
            self.conn.execute(
                f"""
                INSERT INTO {name}.logs (ts, level, logger, message, service, trace_id, file, line, func, thread,
                                         template, stream, seq)
                SELECT today.at + n * (now() - today.at) / {rows}, CASE WHEN n %% 20 = 0 THEN 30 ELSE 20 END,
                       'bench.orders', 'user bob did ' || n || ' things to the order', %s, md5((n / 10)::text),
                       '/srv/bench/orders.py', 17, 'pay', 'MainThread', 'user %%s did %%d things to the order', 1, n
                  FROM generate_series(1, {rows}) AS n,
                       (SELECT date_trunc('day', now(), 'UTC')) AS today (at)
                """,
                [FILLED],
            )
        self.conn.execute("CHECKPOINT")

    def backends(self):
        """Process ids of the sessions of others."""
        query = (
            "SELECT pid FROM pg_stat_activity WHERE backend_type = 'client backend' AND pid <> pg_backend_pid() "
            "AND datname = current_database()"
        )
        return [pid for (pid,) in self.conn.execute(query)]

    def check(self, name):
        """What was logged into this schema is there, all of it."""
        stored = self.one(f"SELECT count(*) FROM {name}.logs WHERE service <> %s", FILLED)
        assert stored == self.expected[name], (name, stored, self.expected[name])

    def wal(self, since):
        """Bytes of WAL since this place: all, of records, of page images."""
        until = self.one("SELECT pg_current_wal_flush_lsn()")
        records, images = self.conn.execute(
            "SELECT coalesce(sum(record_size), 0)::bigint, coalesce(sum(fpi_size), 0)::bigint "
            "FROM pg_get_wal_stats(%s, %s)",
            [since, until],
        ).fetchone()
        return records + images, records, images


@contextlib.contextmanager
def prepared(args):
    """The schemas, filled by a server in a hurry, then served by one as it comes."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o711)  # the server may run as another user
        for settings in (FILLING, MEASURING):
            with contextlib.ExitStack() as stack:
                server = stack.enter_context(EmbeddedPostgres(data=f"{folder}/kept", settings=settings))
                conn = stack.enter_context(psycopg.connect(server.dsn(), autocommit=True))
                bench = Bench(server, conn, args)
                if settings is FILLING:
                    make_all(bench)
                    continue
                conn.execute("CREATE EXTENSION pg_walinspect")  # PostgreSQL 15 or later, with its own extensions
                yield bench
                for name in bench.expected:
                    bench.check(name)


def make_all(bench):
    for size in sizes(bench.args) if "rows" in bench.args.parts else ():
        began = time.perf_counter()
        bench.make(f"rows_{size}")
        bench.fill(f"rows_{size}", size)
        print(f"{size:,} rows filled in {time.perf_counter() - began:.1f} s", flush=True)
    if "partitions" in bench.args.parts:
        for days in PARTITIONS:
            bench.make(f"partitions_{days}", days)
    for name in ("producers", "loggers", "messages"):
        bench.make(name)


def sizes(args):
    return [size for size in SIZES if size <= args.most]


# --- a block ------------------------------------------------------------------------------------------------------


def scheduled(pid):
    """Seconds that a process has been on a processor."""
    return int(Path(f"/proc/{pid}/schedstat").read_text().split()[0]) / 1e9


def memory(pid, what):
    """Bytes, by a line of its status: VmRSS, or RssAnon, which leaves out what is shared."""
    status = Path(f"/proc/{pid}/status").read_text()
    return 1024 * int(status.split(f"{what}:")[1].split()[0])


def block(bench, name, log, count):
    """Log so many records with `log(ours, count)` through a new handler; what one of them costs."""
    ours = Ours(bench.dsn, schema=name, slow_batch=LIMIT)
    try:
        began = time.perf_counter()
        ours.logger.info("the first record connects")
        ours.finish()
        first = time.perf_counter() - began
        (backend,) = bench.backends()
        first_server = scheduled(backend)
        log(ours, WARM)
        ours.finish()
        bench.conn.execute("CHECKPOINT")
        since = bench.one("SELECT pg_current_wal_flush_lsn()")
        server, batches = scheduled(backend), ours.handler.stats().batches
        cpu, own, started = time.process_time(), time.thread_time(), time.perf_counter()
        log(ours, count)
        own = time.thread_time() - own
        ours.finish()
        wall, cpu, server = time.perf_counter() - started, time.process_time() - cpu, scheduled(backend) - server
        wal, records, images = bench.wal(since)
        found = {
            "cpu_us": 1e6 * cpu / count,
            "call_cpu_us": 1e6 * own / count,
            "server_us": 1e6 * server / count,
            "wall_us": 1e6 * wall / count,
            "wal": wal / count,
            "wal_records": records / count,
            "wal_images": images / count,
            "batches": ours.handler.stats().batches - batches,
            "first_ms": 1e3 * first,
            "first_server_ms": 1e3 * first_server,
            "backend_bytes": memory(backend, "RssAnon"),
            "client_bytes": memory("self", "VmRSS"),
        }
    finally:
        ours.close()
    deadline = time.monotonic() + LIMIT
    while bench.backends():  # the next block's must be the only one
        assert time.monotonic() < deadline
    bench.expected[name] += 1 + WARM + count
    return found


def turns(bench, what, contestants, rounds=None):
    """{contestant: what each round saw}: all of them by turns, the order drawn for each round."""
    seen, rounds = defaultdict(list), rounds or bench.args.rounds
    for number in range(rounds):
        for key in bench.random.sample(list(contestants), len(contestants)):
            seen[key].append(contestants[key]())
        print(f"{what}: round {number + 1} of {rounds}", flush=True)
    return seen


# --- what is fitted, and shown ------------------------------------------------------------------------------------


def median(found, figure):
    return statistics.median(one[figure] for one in found)


def fit(curve, figure, seed=1):
    """Slope in % of the curve's middle for ten times as much, and the middle 95 % of its resamplings."""
    at = [math.log10(x) for x in curve]
    rounds = min(map(len, curve.values()))

    def slope(drawn):
        values = [statistics.median(found[n][figure] for n in drawn) for found in curve.values()]
        return 100 * statistics.linear_regression(at, values).slope / statistics.mean(values)

    dice = random.Random(seed)
    many = sorted(slope(dice.choices(range(rounds), k=rounds)) for _ in range(RESAMPLINGS))
    return slope(range(rounds)), many[RESAMPLINGS // 40], many[-RESAMPLINGS // 40]


def show(what, curve, figures=FIGURES):
    """Print a curve: its medians."""
    print(f"\n{what:<30}" + "".join(f"{name.removeprefix('of it '):>20}" for name in figures.values()))
    for x, found in curve.items():
        print(f"{x:>30,.0f}" + "".join(f"{median(found, figure):>20,.4g}" for figure in figures))


def compared(what, curve, figure):
    """A row: the last of a curve beside its first."""
    first, *_, last = curve
    ratio = median(curve[last], figure) / median(curve[first], figure)
    return row(f"{what}: {FIGURES[figure]}, {last:,} beside {first:,}", ratio, unit="times")


# --- the parts: each returns its rows and its curves --------------------------------------------------------------


def plain(ours, count):
    for n in range(count):
        ours.logger.info("user %s did %d things to the order", "bob", n)


def stored_rows(bench):
    def traced(ours, count):
        for n in range(count):
            if n % 10 == 0:
                extra = {"trace_id": f"{bench.random.getrandbits(128):032x}"}
            ours.logger.info("user %s did %d things to the order", "bob", n, extra=extra)

    def turn(size, log):
        name = f"rows_{size}"
        if size <= REFILLED:
            bench.check(name)
            bench.fill(name, size)
            bench.expected[name] = 0
        before = size + bench.expected[name]
        found = block(bench, name, log, bench.args.records)
        return {"rows": before + 1 + WARM + bench.args.records / 2, **found}  # in the middle of the block

    kinds = {"plain": plain, "trace_id": traced}
    contestants = {
        (kind, size): lambda size=size, log=log: turn(size, log)
        for kind, log in kinds.items()
        for size in sizes(bench.args)
    }
    seen = turns(bench, "rows", contestants)
    rows, curves = [], {}
    for kind in kinds:
        found = [seen[kind, size] for size in sizes(bench.args)]
        curve = curves[kind] = {round(statistics.mean(one["rows"] for one in ones)): ones for ones in found}
        show(f"rows stored, {kind}", curve, {**FIGURES, "wal_images": "page images"})
        for figure in ("cpu_us", "server_us", "wall_us"):
            slope, low, high = fit(curve, figure)
            gap = max(0.0, low, -high)
            rows += [
                row(f"rows, {kind}: {FIGURES[figure]}, its slope's distance from 0", gap, 0, unit="% a decade"),
                row(f"rows, {kind}: {FIGURES[figure]}, slope", slope, unit="% a decade"),
                row(f"rows, {kind}: {FIGURES[figure]}, slope at most", high, unit="% a decade"),
            ]
        for figure, goal in (("wal_records", 3), ("wal", 3)):
            medians = [median(ones, figure) for ones in curve.values()]
            name = "WAL without page images" if figure == "wal_records" else "WAL"
            rows.append(row(f"rows, {kind}: {name}, spread", 100 * (max(medians) / min(medians) - 1), goal, unit="%"))
    return rows, curves


def partitions_there(bench):
    contestants = {
        days: lambda days=days: block(bench, f"partitions_{days}", plain, bench.args.records) for days in PARTITIONS
    }
    seen = turns(bench, "partitions", contestants)
    curve = {days: seen[days] for days in PARTITIONS}
    once = {"first_ms": "first stored, ms", "first_server_ms": "server CPU, ms", "backend_bytes": "backend, bytes"}
    show("partitions", curve, {**FIGURES, **once})
    most, least = PARTITIONS[-1], PARTITIONS[1]
    rows = [compared("partitions", curve, figure) for figure in ("cpu_us", "server_us", "wall_us", "wal")]
    for days in (least, most):
        rows += [
            row(f"partitions, {days}: a new connection's first record", median(curve[days], "first_ms"), unit="ms"),
            row(f"partitions, {days}: a session's own memory", median(curve[days], "backend_bytes") / 1e6, unit="MB"),
        ]
    return rows, curve


def loggers_there(bench):
    def say(info, n):
        info("user %s did %d things to the order", "bob", n)

    def through_one_line(handler, count):
        return [lambda n, info=info: say(info, n) for info in infos(handler, count)]

    def on_own_lines(handler, count):
        call = 'info("user %s did %d things to the order", "bob", n)'
        source = "".join(f"def call_{n}(n, info=infos[{n}]): {call}\n" for n in range(count))
        names = {"infos": infos(handler, count)}
        exec(compile(source, "generated.py", "exec"), names)
        # As many calls as the other form has.
        return [lambda n, call=names[f"call_{number}"]: call(n) for number in range(count)]

    def infos(handler, count):
        loggers = [logging.Logger(f"bench.orders.part_{n}") for n in range(count)]
        for logger in loggers:
            logger.addHandler(handler)
        return [logger.info for logger in loggers]

    def each(calls, count):
        for n in range(count):
            calls[n % len(calls)](n)

    def turn(form, number):
        made = {}

        def log(ours, count):
            if not made:
                made["calls"] = form(ours.handler, number)
                each(made["calls"], number)  # the cache is filled
            each(made["calls"], count)

        found = block(bench, "loggers", log, bench.args.records)
        bench.expected["loggers"] += number
        calls = form(logging.NullHandler(), number)
        each(calls, number)
        null = time.thread_time()
        each(calls, bench.args.records)
        null = 1e6 * (time.thread_time() - null) / bench.args.records
        return {**found, "null_us": null, "added_us": found["call_cpu_us"] - null}

    forms = {"one line": through_one_line, "own lines": on_own_lines}
    contestants = {
        (kind, number): lambda form=form, number=number: turn(form, number)
        for kind, form in forms.items()
        for number in (*LOGGERS, BEYOND)
    }
    seen = turns(bench, "loggers", contestants)
    rows, curves = [], {}
    for kind in forms:
        curve = curves[kind] = {number: seen[kind, number] for number in (*LOGGERS, BEYOND)}
        show(f"loggers, {kind}", curve, {**FIGURES, "null_us": "NullHandler", "added_us": "added to it"})
        one, within = median(curve[1], "added_us"), median(curve[LOGGERS[-1]], "added_us")
        rows += [
            row(f"loggers, {kind}: added to a NullHandler call, {LOGGERS[-1]:,} beside 1", within / one, unit="times"),
            row(
                f"loggers, {kind}: {BEYOND:,}, more than the cache holds, beside 1",
                median(curve[BEYOND], "added_us") / one,
                unit="times",
            ),
        ]
    return rows, curves


def messages_there(bench):
    def texts(size, count):
        """Texts of words, each another, so that they compress as texts do."""
        made = []
        for _ in range(min(count, 50)):
            text = " ".join(bench.random.choices(WORDS, k=size // 3))
            made.append(text[:size])
        return made

    def turn(size):
        count = max(50, min(bench.args.records, BLOCK_BYTES // size))
        made = texts(size, count)

        def log(ours, number):
            for n in range(number):
                ours.logger.info(made[n % len(made)])

        found = block(bench, "messages", log, count)
        # Records repeat a text; PostgreSQL compresses each alone.
        return {"records": count, **found, **{f"{key}_a_byte": found[key] / size for key in FIGURES}}

    seen = turns(bench, "messages", {size: lambda size=size: turn(size) for size in MESSAGES})
    curve = {size: seen[size] for size in MESSAGES}
    show("bytes of a message", curve)
    show("the same for a byte", curve, {f"{key}_a_byte": name for key, name in FIGURES.items()})
    rows = []
    for size in MESSAGES:
        found = curve[size]
        rows += [
            row(f"messages, {size:,} bytes: client CPU a record", median(found, "cpu_us"), unit="µs"),
            row(f"messages, {size:,} bytes: client CPU a KiB", 1024 * median(found, "cpu_us_a_byte"), unit="µs"),
            row(f"messages, {size:,} bytes: server CPU a KiB", 1024 * median(found, "server_us_a_byte"), unit="µs"),
        ]
    return rows, curve


# --- producers: processes of their own ----------------------------------------------------------------------------


def producer():
    """A worker's life: configure, log one record, wait for the word, log the rest; then wait to be looked at."""
    told = json.loads(os.environ["GROWTH"])
    bare = memory("self", "VmRSS")
    handler = {"class": "logsluice.PostgresHandler", "dsn": told["dsn"], "schema": "producers", "service": "bench",
               "shutdown_timeout": LIMIT, "slow_batch": LIMIT}  # fmt: skip
    logging.config.dictConfig(
        {"version": 1, "handlers": {"db": handler}, "root": {"level": "INFO", "handlers": ["db"]}}
    )
    (handler,) = logging.getLogger().handlers
    info = logging.getLogger("bench.orders").info
    info("the first record connects")
    assert handler.flush(LIMIT)
    before = handler.stats().batches
    print("ready", flush=True)
    sys.stdin.readline()
    cpu = time.process_time()
    for n in range(told["records"]):
        info("user %s did %d things to the order", "bob", n)
    assert handler.flush(LIMIT)
    cpu, ended, stats = time.process_time() - cpu, time.monotonic(), handler.stats()
    assert stats.stored == stats.offered == told["records"] + 1, stats
    resident = memory("self", "VmRSS")
    found = {"cpu": cpu, "ended": ended, "batches": stats.batches - before, "bare": bare, "resident": resident}
    print(json.dumps(found), flush=True)
    sys.stdin.readline()


def workforce(bench, number):
    """So many producers at once; what their records cost."""
    count = bench.args.records * 4 // number
    told = {"dsn": bench.dsn, "records": count}
    with contextlib.ExitStack() as stack:
        workers = []
        for _ in range(number):
            process = subprocess.Popen(
                [sys.executable, __file__, "--producer"], env={**os.environ, "GROWTH": json.dumps(told)},
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            )  # fmt: skip
            stack.callback(process.wait, LIMIT)
            stack.callback(process.stdout.close)
            stack.callback(process.stdin.close)  # first of the three: at the end of its input a worker ends
            workers.append(process)
        for worker in workers:
            assert worker.stdout.readline() == "ready\n"
        backends = bench.backends()
        bench.conn.execute("CHECKPOINT")
        since = bench.one("SELECT pg_current_wal_flush_lsn()")
        server = sum(map(scheduled, backends))
        began = time.monotonic()
        for worker in workers:
            worker.stdin.write("go\n")
            worker.stdin.flush()
        found = [json.loads(worker.stdout.readline()) for worker in workers]
        server = sum(map(scheduled, backends)) - server
        wal, records, images = bench.wal(since)
        private = [memory(pid, "RssAnon") for pid in backends]
    total = number * count
    wall = max(one["ended"] for one in found) - began
    bench.expected["producers"] += total + number
    return {
        "cpu_us": 1e6 * sum(one["cpu"] for one in found) / total,
        "server_us": 1e6 * server / total,
        "wall_us": 1e6 * wall / total,
        "wal": wal / total,
        "wal_records": records / total,
        "wal_images": images / total,
        "a_second": total / wall,
        "batches": sum(one["batches"] for one in found),
        "connections": len(backends),
        "transactions_for_50": 50 * sum(one["batches"] for one in found) / total,
        "resident_bytes": statistics.mean(one["resident"] for one in found),
        "grown_bytes": statistics.mean(one["resident"] - one["bare"] for one in found),
        "backend_bytes": statistics.mean(private),
    }


def producers_there(bench):
    numbers = [number for number in PRODUCERS if not bench.args.quick or number <= QUICK_PRODUCERS]
    contestants = {number: lambda number=number: workforce(bench, number) for number in numbers}
    seen = turns(bench, "producers", contestants, min(bench.args.rounds, PRODUCER_ROUNDS))
    curve = {number: seen[number] for number in numbers}
    figures = {key: name for key, name in FIGURES.items() if key != "call_cpu_us"}
    more = {"a_second": "committed a second", "connections": "connections", "batches": "transactions"}
    show("producers", curve, {**figures, **more, "resident_bytes": "resident, bytes"})
    rows = [compared("producers", curve, figure) for figure in ("cpu_us", "server_us", "wall_us", "wal")]
    for number in (1, numbers[-1]):
        found = curve[number]
        rows += [
            row(f"producers, {number}: committed", median(found, "a_second"), 5000, least=True, unit="records/s"),
            row(f"producers, {number}: transactions for 50 records", median(found, "transactions_for_50"), 1),
            row(f"producers, {number}: connections for each", median(found, "connections") / number),
            row(f"producers, {number}: resident memory of each", median(found, "resident_bytes") / 1e6, unit="MB"),
        ]
    return rows, curve


def listed(curve):
    """A curve as JSON has it: a list of points, or of curves by name."""
    if all(isinstance(key, str) for key in curve):
        return {key: listed(inner) for key, inner in curve.items()}
    return [{"at": x, "rounds": found} for x, found in curve.items()]


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0].strip())
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--records", type=int, help="of a block; the producers log four times as many")
    parser.add_argument("--most", type=int, help="rows of the largest table")
    parser.add_argument("--parts", type=lambda text: text.split(","), default=PARTS, help=",".join(PARTS))
    parser.add_argument("--quick", action="store_true", help="2 rounds of 3,000 records, at most 100,000 rows")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--producer", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.producer:
        producer()
        return
    for name, usual, quick in (("rounds", 5, 2), ("records", 20_000, 3000), ("most", 10_000_000, 100_000)):
        if getattr(args, name) is None:
            setattr(args, name, quick if args.quick else usual)
    run = dict(zip(PARTS, (stored_rows, partitions_there, producers_there, loggers_there, messages_there), strict=True))
    if unknown := set(args.parts) - set(PARTS):
        parser.error(f"no such part: {', '.join(unknown)}")
    rows, details = [], {}
    with prepared(args) as bench:
        for part in args.parts:
            began = time.perf_counter()
            found, curve = run[part](bench)
            rows += found
            details[part] = listed(curve)
            print(f"{part}: {time.perf_counter() - began:.0f} s", flush=True)
        machine = common.facts(bench.server)
    result = {"facts": machine, "rounds": args.rounds, "records": args.records, "rows": rows, "details": details}
    common.report("growth", result, args.json)


if __name__ == "__main__":
    sys.exit(main())
