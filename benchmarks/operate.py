"""
Reading and retention where much is stored: 60 days of logs in daily partitions, on a server as PostgreSQL comes.

    python benchmarks/operate.py [--rows 10000000] [--parts queries,retention] [--more OPTIONS] [--data DIR] [--quick]
                                 [--json FILE]

    queries      what people and pages ask for, through `logsluice.query`, `logsluice.reports` and `logsluice.traces`:
                 median and p95 of 20 calls (of what takes seconds, 3) after one that warms the caches, each with its
                 result in Python; the plan by EXPLAIN (ANALYZE, BUFFERS), condensed to scans, partitions and blocks
    retention    `logsluice maintain --once` in a process of its own, beside a program that logs 2,000 records a second;
                 each call is timed. In three rounds the rules get stricter, so that each has partitions to drop and
                 rows to delete; before and after each one the program runs alone. At the end the program's records are
                 counted in the table, by their own numbers: none lost, none twice

Rows are made by SQL, with sizes as programs have them: 20 loggers, 5 services, texts with numbers, 8 records a trace,
attributes, 2 % errors with tracebacks, a tenth with a log type. `--more "--archive {folder}"` gives maintain more
options; {folder} is an empty one. `--data` keeps nothing: it says on which disk the server's folder is made.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime as dt
import json
import logging
import math
import shlex
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from array import array
from pathlib import Path

import common
import psycopg
from common import LIMIT, row
from growth import FILLING

from logsluice import PostgresHandler, partitions, reports, schema, traces
from logsluice.devserver import EmbeddedPostgres
from logsluice.query import Query

DAYS = 60
CALLS, WARM = 20, 1
LEAST, LONG = 3, 20.0  # calls of a query that takes seconds: no more than these once so many seconds have gone
RATE = 2000  # records a second of the program beside: a busy service
ALONE = 20.0  # seconds before and after each run of maintenance: 40,000 calls, of which p99 is the 400th
SAMPLE = 0.01  # seconds between two looks at who waits for a lock
SERVICE = "beside"  # of the program
ROUNDS = (  # each drops what is older, and deletes what no round before it did
    ("*=50d", "DEBUG=3d"),
    ("*=40d", "DEBUG=3d", "jetstream=7d"),
    ("*=30d", "DEBUG=3d", "jetstream=7d", "sync_job=7d"),
)
MEASURING = {"max_wal_size": "4GB"}  # else PostgreSQL as it comes, autovacuum and checkpoints with it
TEMPLATES = (
    ("order %s of customer %s paid", "'order ' || n / 5 || ' of customer ' || n % 9973 || ' paid'"),
    ("GET /api/orders/%s %s in %s ms", "'GET /api/orders/' || n / 5 || ' 200 in ' || n % 811 || ' ms'"),
    ("cache miss for key %s", "'cache miss for key user:' || n % 50021 || ':cart'"),
    ("sent %s bytes to %s", "'sent ' || n % 65521 || ' bytes to 10.0.' || n % 200 || '.' || n % 251"),
    ("job %s took %s s", "'job ' || md5((n / 100)::text) || ' took ' || n % 97 || '.5 s'"),
)
FAILED = "'card of customer ' || n % 9973 || ' refused: code ' || n % 23"
TRACEBACK = "Traceback (most recent call last):\n" + "".join(
    f'  File "/srv/shop/{name}.py", line {17 * n}, in {name}\n    return {name}_of(order, customer, retries={n})\n'
    for n, name in enumerate(("handle", "route", "checkout", "charge", "request", "send", "read"), 1)
)


# --- the rows ---------------------------------------------------------------------------------------------------------


def fill(conn, rows):
    """60 partitions, and rows spread evenly over them up to now."""
    schema.migrate(conn)
    now = dt.datetime.now(dt.timezone.utc)
    first = (now - dt.timedelta(days=DAYS - 1)).replace(hour=0, minute=0, second=0, microsecond=0)
    partitions.ensure(conn, "logsluice", "day", now)
    for day in range(DAYS):
        partitions.ensure_at(conn, "logsluice", "day", first + dt.timedelta(days=day))
    kinds = len(TEMPLATES)
    message = " ".join(f"WHEN {at} THEN {text}" for at, (_, text) in enumerate(TEMPLATES))
    template = " ".join(f"WHEN {at} THEN '{text.replace('%', '%%')}'" for at, (text, _) in enumerate(TEMPLATES))
    # h: a hash of n, so that what a record is does not go with its place.
    query = f"""
        INSERT INTO logsluice.logs (ts, level, logger, message, service, trace_id, span_id, user_id, file, line, func,
            thread, exc_type, exc_message, exc_text, template, attributes, stream, seq)
        SELECT %(first)s::timestamptz + n * (%(now)s::timestamptz - %(first)s::timestamptz) / {rows}, level,
            'shop.part' || h %% 20, CASE WHEN level >= 40 THEN {FAILED.replace("%", "%%")}
                ELSE CASE h / 1000 %% {kinds} {message.replace("%", "%%")} END END,
            'service' || h / 7 %% 5, md5('t' || n / 8), left(md5('s' || n / 2), 16), 'u' || n %% 9973,
            '/srv/shop/part' || h %% 20 || '.py', h %% 400, 'handle', 'MainThread',
            CASE WHEN level >= 40 THEN 'shop.errors.CardError' END,
            CASE WHEN level >= 40 THEN {FAILED.replace("%", "%%")} END,
            CASE WHEN level >= 40 THEN %(traceback)s END,
            CASE WHEN level >= 40 THEN 'card of customer %%s refused: code %%s'
                ELSE CASE h / 1000 %% {kinds} {template} END END,
            jsonb_build_object('order_id', n / 5, 'amount', (h %% 20000) / 100.0, 'region', 'eu-west-' || h %% 3,
                'duration_ms', h %% 811) || CASE WHEN h / 11 %% 20 = 0 THEN '{{"log_type": "jetstream"}}'
                WHEN h / 11 %% 20 = 1 THEN '{{"log_type": "sync_job"}}' ELSE '{{}}' END::jsonb,
            1, n
        FROM (SELECT n, h, (CASE WHEN h %% 1000 < 100 THEN 10 WHEN h %% 1000 < 900 THEN 20 WHEN h %% 1000 < 980 THEN 30
                WHEN h %% 1000 < 999 THEN 40 ELSE 50 END)::smallint AS level
              FROM (SELECT n, abs(hashint8(n)::bigint) AS h
                    FROM generate_series(%(at)s::bigint, %(to)s::bigint) n) AS numbered) AS made
    """
    step = max(1, rows // DAYS)
    for at in range(1, rows + 1, step):
        values = {"at": at, "to": min(rows, at + step - 1), "first": first, "now": now, "traceback": TRACEBACK}
        conn.execute(query, values)
    conn.execute("VACUUM ANALYZE")  # as autovacuum leaves partitions that nobody writes into any more
    conn.execute("CHECKPOINT")


@contextlib.contextmanager
def prepared(args):
    """The server, filled in a hurry and then started as it comes."""
    with tempfile.TemporaryDirectory(dir=args.data) as folder:
        Path(folder).chmod(0o711)  # the server may run as another user
        for settings in (FILLING, MEASURING):
            with contextlib.ExitStack() as stack:
                server = stack.enter_context(EmbeddedPostgres(data=f"{folder}/kept", settings=settings))
                conn = stack.enter_context(psycopg.connect(server.dsn(), autocommit=True))
                if settings is FILLING:
                    began = time.perf_counter()
                    fill(conn, args.rows)
                    print(f"{args.rows:,} rows in {time.perf_counter() - began:.0f} s", flush=True)
                    continue
                yield server, conn


def one(conn, query, *values):
    return conn.execute(query, values).fetchone()[0]


# --- queries ----------------------------------------------------------------------------------------------------------


class Seen(psycopg.Cursor):
    """It keeps the last statement that reads a table of ours, for EXPLAIN."""

    last = None

    def execute(self, query, params=None, **more):
        text = query if isinstance(query, str) else query.as_string(self)
        if "logsluice" in text and "FROM" in text:
            Seen.last = (query if isinstance(query, str) else text, params)
        return super().execute(query, params, **more)


def questions(conn):
    """{what is asked: how}."""
    query = Query(conn, statement_timeout=LIMIT)
    now = dt.datetime.now(dt.timezone.utc)
    hour, day, all_days = (dt.timedelta(hours=1), dt.timedelta(days=1), dt.timedelta(days=DAYS))
    (middle,) = query.logs(limit=1, until=now - dt.timedelta(days=30))
    trace, order = middle.trace_id, middle.attributes["order_id"]
    recent = query.logs(limit=1, until=now - hour)[0].attributes["order_id"]
    found = {
        "first page, newest": query.logs,
        "next page, 30 days back": lambda: query.logs(before=middle),
        "page before it": lambda: query.logs(after=middle),
        "first page of a service": lambda: query.logs("service=service3"),
        "level>=error, newest": lambda: query.logs("level>=error"),
        "level>=critical, newest": lambda: query.logs("level>=critical"),
        "text, a word of every record, last hour": lambda: query.logs("customer", since=hour),
        "text that no record has, last hour": lambda: query.logs("chargeback", since=hour),
        "text that no record has, last day": lambda: query.logs("chargeback", since=day),
        "text by expression (~~=), last day": lambda: query.logs("message~~='REFUSED: code 99'", since=day),
        "text of errors, 60 days": lambda: query.logs('level>=error "refused: code 99"'),
        "attribute, last hour": lambda: query.logs(f"order_id={recent}", since=hour),
        "attribute, last day": lambda: query.logs(f"order_id={recent}", since=day),
        "attribute, 60 days": lambda: query.logs(f"order_id={order}"),
        "records of a trace, 60 days": lambda: query.logs(f"trace_id={trace}"),
        "trace as a tree": lambda: traces.read(conn, trace),
        "count, capped at 10,000": query.count,
        "count of errors, capped at 10,000": lambda: query.count("level>=error"),
        "count, last day, all": lambda: query.count(since=day, capped=10_000_000),
    }
    for name, span in (("a day", day), ("60 days", all_days)):
        scope = reports.Scope(now - span, now)
        every = span / 12
        found |= {
            f"stats levels, {name}": snapped(reports.levels, conn, scope, every),
            f"stats services, {name}": snapped(reports.services, conn, scope),
            f"stats loggers, {name}": snapped(reports.loggers, conn, scope),
            f"stats messages, {name}": snapped(reports.messages, conn, scope),
            f"stats errors, {name}": snapped(reports.errors, conn, scope),
            f"last errors, {name}": snapped(reports.last_errors, conn, scope),
        }
    return found


def snapped(report, conn, *given):
    """A report as the command runs it."""

    def ask():
        with reports.snapshot(conn) as seen:
            return report(seen, *given)

    return ask


def nodes(plan):
    yield plan
    for inner in plan.get("Plans", ()):
        yield from nodes(inner)


def condensed(conn):
    """The plan of the statement that was seen last: {scan: partitions}, what else it does, blocks, milliseconds."""
    text, params = Seen.last
    with psycopg.Cursor(conn) as cursor:
        cursor.execute("SET jit = off")  # as both readers have it
        (found,) = cursor.execute(f"EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) {text}", params).fetchone()[0]
    scans, removed, others = {}, 0, []
    for node in nodes(found["Plan"]):
        kind = node["Node Type"]
        if "Index Name" in node:
            name = node["Index Name"].rstrip("0123456789").rstrip("_")
            kind += " " + "_".join(part for part in name.split("_") if not part.isdigit())
        if "Scan" in kind and node.get("Actual Loops"):
            scans[kind] = scans.get(kind, 0) + 1
            removed += node.get("Rows Removed by Filter", 0) * node["Actual Loops"]
        elif "Scan" not in kind and kind not in others:
            others.append(kind)
    plan = found["Plan"]
    return {
        "scans": scans, "nodes": others, "rows_removed": removed, "planning_ms": found["Planning Time"],
        "execution_ms": found["Execution Time"], "jit_ms": found.get("JIT", {}).get("Timing", {}).get("Total", 0),
        "blocks_hit": plan["Shared Hit Blocks"], "blocks_read": plan["Shared Read Blocks"],
    }  # fmt: skip


def queries(server, _conn, args):
    details = []
    with psycopg.connect(server.dsn(), autocommit=True, cursor_factory=Seen) as conn:
        for what, ask in questions(conn).items():
            if args.only and args.only not in what:
                continue
            times, started = [], time.perf_counter()
            while len(times) < WARM + args.calls:
                began = time.perf_counter()
                answer = ask()
                times.append(1e3 * (time.perf_counter() - began))
                if len(times) >= WARM + LEAST and began - started > LONG:
                    break
            del times[:WARM]
            length = len(answer) if isinstance(answer, list) else 1
            found = {"what": what, "median_ms": statistics.median(times), "p95_ms": percentile(times, 95)}
            details.append({**found, "calls": len(times), "answers": length, "plan": condensed(conn)})
            plan = details[-1]["plan"]
            print(f"{what:<42} {found['median_ms']:9.1f} ms  p95 {found['p95_ms']:9.1f}  {length} {plan}", flush=True)
    rows = [row(f"{one['what']}: median", one["median_ms"], unit="ms") for one in details]
    return rows, details


def percentile(values, part):
    return sorted(values)[min(len(values) - 1, math.ceil(len(values) * part / 100) - 1)]


# --- retention beside a program ---------------------------------------------------------------------------------------


def program(dsn, rate, path):
    """The program beside: log until stdin ends, then write when each call was and how long it took."""
    handler = PostgresHandler(dsn=dsn, service=SERVICE, shutdown_timeout=LIMIT)
    logger = common.logger_of(handler)
    ended = threading.Event()
    threading.Thread(target=lambda: (sys.stdin.read(), ended.set()), daemon=True).start()
    at, took = array("d"), array("d")
    clock, start = time.perf_counter, time.perf_counter()
    number = 0
    while not ended.is_set():
        while number < (clock() - start) * rate:
            number += 1
            began = clock()
            logger.info("order %s of customer %s paid", number, number % 9973, extra={"number": number})
            took.append(clock() - began)
            at.append(began)
        ended.wait(1 / rate)
    assert handler.flush(LIMIT)
    stats = handler.stats()
    handler.close()
    with path.open("wb") as file:
        at.tofile(file)
        took.tofile(file)
    print(json.dumps({"logged": number, "stored": stats.stored, "dropped": stats.dropped}))


class Waits(threading.Thread):
    """It looks how long the program's sessions wait for locks: the longest wait that it saw, in seconds."""

    def __init__(self, dsn):
        super().__init__(daemon=True)
        self.dsn, self.longest, self.ended = dsn, 0.0, threading.Event()
        self.start()

    def run(self):
        query = """
            SELECT coalesce(extract(epoch FROM max(clock_timestamp() - l.waitstart)), 0)::float8
              FROM pg_locks l JOIN pg_stat_activity a USING (pid)
             WHERE NOT l.granted AND a.application_name = %s
        """
        with psycopg.connect(self.dsn, autocommit=True) as conn:
            while not self.ended.wait(SAMPLE):
                self.longest = max(self.longest, one(conn, query, f"logsluice/{SERVICE}"))


def wait(seconds):
    """The program runs alone meanwhile."""
    threading.Event().wait(seconds)


def maintained(server, rules, args):
    """Run it; seconds, and what it said."""
    command = [sys.executable, "-m", "logsluice", "maintain", "--once", "--dsn", server.dsn()]
    for rule in rules:
        command += ["--keep", rule]
    with tempfile.TemporaryDirectory(dir=args.data) as folder:
        command += [word.format(folder=folder) for word in shlex.split(args.more)]
        began = time.perf_counter()
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=3600)
    assert done.returncode == 0, done
    return time.perf_counter() - began, [
        line.strip().replace(folder, "{folder}") for line in done.stdout.splitlines()[1:]
    ]


def size(conn):
    """Rows that the program did not write, and bytes of the database."""
    query = "SELECT count(*), pg_database_size(current_database()) FROM logsluice.logs WHERE service <> %s"
    return conn.execute(query, [SERVICE]).fetchone()


def retention(server, conn, args):
    rounds = []
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "calls"
        command = [sys.executable, __file__, "--program", str(path), "--dsn", server.dsn()]
        child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        try:
            wait(args.alone / 2)  # connections, caches, the first partition
            for rules in ROUNDS:
                rows, size_before = size(conn)
                before = time.perf_counter()
                wait(args.alone)
                waits, begin = Waits(server.dsn()), time.perf_counter()
                seconds, said = maintained(server, rules, args)
                end = time.perf_counter()
                wait(args.alone)
                after = time.perf_counter()
                waits.ended.set()
                waits.join()
                rows_after, size_after = size(conn)
                rounds.append({
                    "rules": list(rules), "seconds": seconds, "rows": rows - rows_after,
                    "bytes": size_before - size_after, "longest_wait_ms": 1e3 * waits.longest, "said": said,
                    "edges": (before, begin, end, after),
                })  # fmt: skip
                print(rounds[-1], flush=True)
            answer, _ = child.communicate(timeout=LIMIT)
        finally:
            child.kill()
        told = json.loads(answer)
        at, took = array("d"), array("d")
        with path.open("rb") as file:
            at.fromfile(file, told["logged"])
            took.fromfile(file, told["logged"])
    for found in rounds:
        edges = found.pop("edges")
        for name, low, high in zip(("before", "during", "after"), edges, edges[1:], strict=False):
            calls = [1e6 * cost for when, cost in zip(at, took, strict=True) if low <= when < high]
            cost = {"p50_us": percentile(calls, 50), "p99_us": percentile(calls, 99), "max_us": max(calls)}
            found[name] = {"calls": len(calls), **cost}
    query = "SELECT count(*), count(DISTINCT (attributes->>'number')::bigint) FROM logsluice.logs WHERE service = %s"
    stored, different = conn.execute(query, [SERVICE]).fetchone()
    lost, twice = told["logged"] - different, stored - different
    return retention_rows(rounds, told, lost, twice), {
        "rounds": rounds,
        "program": {**told, "lost": lost, "twice": twice},
    }


def retention_rows(rounds, told, lost, twice):
    def beside(figure):
        """During a run, of the mean of before and after: the median of the rounds."""
        alone = [(one["before"][figure] + one["after"][figure]) / 2 for one in rounds]
        return statistics.median(found["during"][figure] / quiet for found, quiet in zip(rounds, alone, strict=True))

    return [
        row("logged beside maintenance", told["logged"], unit="records"),
        row("lost", lost, 0), row("stored twice", twice, 0),
        row("call, p50: during maintenance, of before and after", beside("p50_us"), unit="times"),
        row("call, p99: during maintenance, of before and after", beside("p99_us"), unit="times"),
        row("longest wait for a lock", max(one["longest_wait_ms"] for one in rounds), unit="ms"),
        row("maintenance, all rounds", sum(one["seconds"] for one in rounds), unit="s"),
        row("rows gone", sum(one["rows"] for one in rounds), unit="rows"),
        row("bytes freed", sum(one["bytes"] for one in rounds) / (1 << 20), unit="MiB"),
    ]  # fmt: skip


PARTS = {"queries": queries, "retention": retention}  # in this order: retention takes rows away


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0].strip())
    parser.add_argument("--rows", type=int, default=10_000_000)
    parser.add_argument("--parts", type=lambda text: text.split(","), default=list(PARTS))
    parser.add_argument("--only", help="of the queries, those whose name holds this text")
    parser.add_argument("--calls", type=int, default=CALLS, help="of each query (default: %(default)s)")
    parser.add_argument("--alone", type=float, default=ALONE, help="seconds around maintenance (default: %(default)g)")
    parser.add_argument("--more", default="", help="more options for maintain, {folder} in them is an empty folder")
    parser.add_argument("--data", help="folder in which the server's data lie, for as long as it runs")
    parser.add_argument("--quick", action="store_true", help="100,000 rows, 5 calls, 2 s: does it run?")
    parser.add_argument("--program", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--dsn", help=argparse.SUPPRESS)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    if args.program:
        program(args.dsn, RATE, args.program)
        return
    if args.quick:
        args.rows, args.calls, args.alone = 100_000, 5, 2.0
    if unknown := set(args.parts) - set(PARTS):
        parser.error(f"no such part: {', '.join(unknown)}")
    logging.raiseExceptions = True
    rows, details = [], {}
    with prepared(args) as (server, conn):
        tables = reports.tables(conn, reports.Scope.last(dt.timedelta(days=1)))
        details["stored"] = {"rows": args.rows, "bytes": max(one.total_bytes for one in tables)}
        for part in args.parts:
            found, details[part] = PARTS[part](server, conn, args)
            rows += found
        machine = common.facts(server)
    result = {"facts": machine, "rounds": len(ROUNDS), "rows": rows, "details": details}
    common.report("operate", result, args.json)


if __name__ == "__main__":
    sys.exit(main())
