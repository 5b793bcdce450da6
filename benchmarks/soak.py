"""
Nothing lost, nothing twice, for as long as you like: random faults over four producers, and the invariants at the end.

    python benchmarks/soak.py [--minutes 10 | --seconds 20] [--seed 1] [--memory] [--json FILE]

Four processes log through a proxy into a PostgreSQL of the soak's own; they share one journal folder, or with
`--memory` have none. What happens to them is drawn from the seed and printed first: soak_faults.py. When the time is
over everything heals, what waits is stored, and the table says whether I1 to I10 held. The exit status is 1 if one is
broken. I1 to I5 are exact. I6 to I10 are figures, printed beside the limit that the program should keep on a machine of
its own, and judged at ten times that: here producers, server and proxy share the processors.

Every id is written down before its logging call and again when the call has returned, and looked for in the table. In
memory mode a killed process loses what it had not sent: that is counted, not judged; all else holds there, too.

It needs `pip install -e '.[dev]'` (parts of tests/support), and for the full disk a root that may mount.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import re
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import common
import psycopg

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from soak_faults import OF_PROCESSES, OF_THE_SERVER, Faults, plan
from soak_producers import LIMIT, OPTIONS, PRODUCERS, Family, text_of

from logsluice import schema
from logsluice.devserver import EmbeddedPostgres
from support.journals import dead_ids, lines, mounted, streams
from support.processes import until
from support.proxy import Proxy
from support.servers import SETTINGS, memory

ROOM = 10  # times the limit: the machine is shared
MIB = 1024 * 1024
DISK = "size=256m"  # of the journal's file system: a backlog of minutes
AT_ONCE = 10  # minutes of a round: its ids are compared in memory, 200 bytes each
LOST = re.compile(r"(\d+) records were not stored [^\n]* lost")  # what a process in memory mode says when it ends


# --- the oracle -------------------------------------------------------------------------------------------------------


class Judgement:
    """What became of the ids."""

    def __init__(self, dsn, family):
        self.returned = Counter(one for life in family.lives for one in life.ids())
        begun = {one for life in family.lives for one in lines(f"{life.file('ids')}.begun")}
        found, self.damaged, self.disordered, self.strangers = self._read(dsn)
        self.stored = found.total()
        self.dead = dead_ids(dsn)
        found += self.dead
        self.twice = sorted(one for one, times in found.items() if times > 1)
        self.spurious = sorted(found.keys() - begun)
        missing = sorted(self.returned.keys() - found.keys())
        self.explained, self.unexplained = self._explain(missing, family)

    def _read(self, dsn):
        """One pass through the table, in the order in which the rows came in."""
        found, last, damaged, disordered = Counter(), {}, [], []
        with psycopg.connect(dsn) as conn, conn.cursor("rows") as rows:
            rows.itersize = 10_000
            rows.execute(
                "SELECT attributes->>'id', message, stream FROM logsluice.logs "
                "WHERE attributes ? 'id' ORDER BY inserted"
            )
            for name, message, stream in rows:
                source, number = name.split("-")
                found[name] += 1
                if message != f"order {name} {text_of(name)} paid":
                    damaged.append(name)
                if last.get((stream, source), -1) >= int(number):
                    disordered.append(name)
                last[stream, source] = int(number)
        with psycopg.connect(dsn) as conn:
            # Rows about drops are our own.
            strangers = conn.execute(
                "SELECT message FROM logsluice.logs WHERE NOT coalesce(attributes ? 'id', false) "
                "AND logger NOT LIKE 'logsluice%'"
            ).fetchall()
        return found, damaged, disordered, [row[0] for row in strangers]

    def _explain(self, missing, family):
        """Ids that were said to be lost or dropped, or went in memory with a killed process; and those of which nothing
        tells."""
        by_life, explained, unexplained = {}, Counter(), []
        for name in missing:
            number, source = re.match(r"(\d+)([a-z]+)", name).groups()
            if not family.journal and (source == "c" or family.lives[int(number)].how in {"SIGKILL", "os._exit"}):
                explained["killed"] += 1
            else:
                by_life.setdefault(int(number), []).append(name)
        for number, names in by_life.items():
            life = family.lives[number]
            dropped = life.figures().get("dropped", 0)
            said = sum(map(int, LOST.findall(life.said())))
            # It may say more than was lost: of a batch in flight at its end nobody knows.
            explained["dropped"] += min(dropped, len(names))
            explained["said"] += min(said, len(names) - min(dropped, len(names)))
            unexplained += names[dropped + said :]
        return explained, unexplained


def percentile(values, part):
    return values[min(len(values) - 1, int(len(values) * part))] if values else 0.0


# --- a round ----------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def prepared():
    """A server with the schema; its rows get a number in the order in which they come in."""
    with EmbeddedPostgres(settings=SETTINGS, within=memory()) as server:
        with psycopg.connect(server.dsn(), autocommit=True) as conn:
            schema.migrate(conn)
            conn.execute("CREATE SEQUENCE public.inserted")
            conn.execute("ALTER TABLE logsluice.logs ADD COLUMN inserted bigint DEFAULT nextval('public.inserted')")
        yield server


def quiesce(server, family, proxy, trouble):
    """
    Everything heals. Return the seconds until a probe of each producer is in the table, and until all is stored.

    None: not within LIMIT. What goes wrong with a process joins the trouble.
    """
    for life in list(family.living):
        if (status := life.process.poll()) is not None:
            family.living.remove(life)
            trouble.append(f"producer {life.number} ended by itself with {status}: {life.said()[-2000:]}")
    server.start()  # if a fault went wrong
    proxy.heal()
    began = time.monotonic()
    family.tell("probe")
    probes = [f"{life.number}p-0" for life in family.living]
    with psycopg.connect(server.dsn(), autocommit=True) as conn:
        there = "SELECT count(*) FROM logsluice.logs WHERE attributes->>'id' = ANY(%s)"
        probed = until(lambda: conn.execute(there, [probes]).fetchone()[0] == len(probes), LIMIT)
        seen = time.monotonic() - began if probed else None
    family.tell("quiet")

    def adopted():
        own = {life.figures()["stream"] for life in family.living}
        return not family.journal or streams(family.journal) <= own

    stored = all(family.says(life, lambda found: not found["waiting"]) for life in family.living)
    stored = until(adopted, LIMIT) and stored
    recovery = time.monotonic() - began if stored else None
    for life in list(family.living):
        try:
            family.end(life, "end", 0, lambda life=life: life.tell("exit"))
        except (AssertionError, OSError) as error:
            trouble.append(str(error))
    return seen, recovery


def keep(server, family, folder):
    """Put what may tell why beside what the producers wrote down."""
    shutil.copy(server.log_path, folder)
    if family.journal:
        shutil.copytree(family.journal, folder / "journal")
    rows = "SELECT stream, seq, inserted, ts, attributes->>'id' FROM logsluice.logs ORDER BY inserted"
    with psycopg.connect(server.dsn()) as conn:
        for name, query in {
            "rows": rows,
            "streams": "TABLE logsluice.stream",
            "dead": "TABLE logsluice.dead_letter",
        }.items():
            with (folder / name).open("wb") as file, conn.cursor().copy(f"COPY ({query}) TO STDOUT") as copy:
                file.writelines(copy)


def soak(seconds, seed, *, journal, folder):
    """One round; its result. Everything that was written down is in the folder."""
    schedules = plan(seed, seconds, journal=journal)
    announce(schedules)
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(prepared())
        mount = stack.enter_context(mounted(folder / "disk", "-t", "tmpfs", "-o", DISK, "tmpfs")) if journal else None
        proxy = stack.enter_context(Proxy(server.dsn()))
        family = Family(proxy.dsn, folder, mount / "journal" if mount else None)
        stack.callback(family.close)
        for _ in range(PRODUCERS):
            family.begin()
        began = time.monotonic()
        faults = Faults(server, server.dsn(), proxy, family, mount)
        faults.run(schedules, seconds)
        minutes = (time.monotonic() - began) / 60
        probe, recovery = quiesce(server, family, proxy, faults.trouble)
        left = sorted(path.name for path in family.journal.iterdir() if path.name != "lock") if mount else []
        judgement = Judgement(server.dsn(), family)
        rows = judged(judgement, family, probe, left, minutes)
        broken = [row["id"] for row in rows if row["broken"]] + (["trouble"] if faults.trouble else [])
        if broken:
            keep(server, family, folder)
        facts = common.facts(server)
    planned = Counter(fault.name for schedule in schedules for fault in schedule)
    return {
        "facts": facts,
        "seed": seed,
        "mode": "journal" if journal else "memory",
        "minutes": round(minutes, 2),
        "faults": {name: [count, planned[name]] for name, count in faults.happened.items() if planned[name]},
        "trouble": faults.trouble,
        "lives": len(family.lives),
        "recovery_seconds": recovery,
        "rows": rows,
        "broken": broken,
        "details": {
            "lost": judgement.unexplained[:100],
            "twice": judgement.twice[:100],
            "spurious": judgement.spurious[:100] + judgement.strangers[:100],
            "damaged": judgement.damaged[:100],
            "disordered": judgement.disordered[:100],
            "left": left,
            # Producer and seconds: which stderr and figures to read.
            "slowest_exits": sorted(
                ((life.number, life.seconds) for life in family.lives if life.seconds), key=lambda one: one[1]
            )[-5:],
        },
    }


# --- the table --------------------------------------------------------------------------------------------------------


def count(name, what, measured, *, judged=True):
    """A row that must be 0, or is only told."""
    return row(name, what, measured, 0 if judged else None, exact=True)


def row(name, what, measured, limit, unit="", *, exact=False):
    """A row: broken above ROOM times its limit, `exact`: above it. None measured: it never came."""
    return {
        "id": name,
        "what": what,
        "measured": measured if measured is None or exact else float(f"{measured:.3g}"),
        "limit": limit,
        "unit": unit,
        "exact": exact,
        "broken": limit is not None and (measured is None or measured > limit * (1 if exact else ROOM)),
    }


def judged(seen, family, probe, left, minutes):
    """The invariants, in the order of their numbers."""
    calls = sorted(value for life in family.lives for value in life.calls())
    grown = [
        max(found["resident"] for found in all_of) - all_of[0]["resident"]
        for life in family.lives
        if (all_of := life.all_figures())
    ]
    normal = {"exit", "end"} if family.journal else {"exit", "end", "SIGTERM"}
    exits = [life.seconds for life in family.lives if life.how in normal]
    texts = [life.said() for life in family.lives]
    ours = sum(len(one) + 1 for text in texts for one in text.splitlines() if one.startswith("logsluice["))
    wrong = sum(text.count("Traceback") + text.count("internal error") + text.count("Fatal Python") for text in texts)
    capacity = OPTIONS["capacity_bytes"]
    rows = [
        count("I1", f"lost, of {seen.returned.total():,} accepted records", len(seen.unexplained)),
        count("I1", "left in the journal's folder", len(left)),
        count("I2", "stored twice", len(seen.twice)),
        count("I3", "stored, and never logged", len(seen.spurious) + len(seen.strangers)),
        count("I4", "stored with another text", len(seen.damaged)),
        count("I5", "out of order within a stream and thread", len(seen.disordered)),
        row("I6", "a probe in the table after the last fault", probe, 5 + OPTIONS["backoff_max"], "s"),
        row("I7", f"p99 of {len(calls):,} calls, all under faults", 1000 * percentile(calls, 0.99), 1, "ms"),
        row("I7", "the longest call", 1000 * percentile(calls, 1.0), 50, "ms"),
        row("I8", "growth of a process", max(grown, default=0) / MIB, 2 * capacity / MIB + 32, "MiB"),
        row("I9", "the longest normal exit", max(exits, default=0.0), OPTIONS["shutdown_timeout"] + 1, "s"),
        row("I10", "on stderr, for a producer and minute", ours / max(minutes, 1 / 60) / PRODUCERS, 2048, "bytes"),
        count("I10", "tracebacks and internal errors", wrong),
        count("-", "dead letters", seen.dead.total()),
        count("-", "dropped, and counted", seen.explained["dropped"], judged=False),
    ]
    if not family.journal:
        rows.append(count("-", "lost at exit, and said", seen.explained["said"], judged=False))
        rows.append(count("-", "lost in the memory of a killed process", seen.explained["killed"], judged=False))
    return rows


def announce(schedules):
    """Print what is to happen."""
    for name, schedule in zip(("server", "processes"), schedules, strict=True):
        print(f"{name}: " + "; ".join(f"{fault.at:.1f} s {fault.name}" for fault in schedule), flush=True)


def table(result):
    """The text of a result."""
    texts = [
        f"soak: {result['mode']} mode, seed {result['seed']}, {result['minutes']} min of faults, "
        f"{result['lives']} processes, " + ", ".join(f"{key} {value}" for key, value in result["facts"].items())
    ]
    for names in (OF_THE_SERVER, OF_PROCESSES):
        counts = {name: result["faults"][name] for name in names if name in result["faults"]}
        texts.append("  " + ", ".join(f"{name} {done}" for name, (done, _) in counts.items()))
    recovery = result["recovery_seconds"]
    texts.append(f"  all stored {'-' if recovery is None else f'{recovery:.1f} s'} after everything healed")
    width = max(len(found["what"]) for found in result["rows"])
    for found in result["rows"]:
        unit = f" {found['unit']}" if found["unit"] else ""
        measured = "never" if found["measured"] is None else f"{found['measured']:,.10g}{unit}"
        limit = verdict = ""
        if found["limit"] is not None:
            limit = f"{'=' if found['exact'] else '≤'} {found['limit']:,g}{unit}"
            verdict = "BROKEN" if found["broken"] else "holds"
            if verdict == "holds" and found["measured"] > found["limit"]:
                verdict = f"within {ROOM} times"
        texts.append(f"  {found['id']:<4}{found['what']:<{width}}{measured:>13}  {limit:<15}{verdict}".rstrip())
    texts.extend(f"  trouble: {one}" for one in result["trouble"])
    return "\n".join(texts)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    length = parser.add_mutually_exclusive_group()
    length.add_argument("--minutes", type=float, default=10)
    length.add_argument("--seconds", type=float, help="instead of minutes")
    parser.add_argument(
        "--seed", type=int, default=1, help=f"of the first {AT_ONCE} minutes; the next get the next numbers"
    )
    parser.add_argument("--memory", action="store_true", help="without a journal")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that mounts and processes are cleaned up
    seconds, seed, results = args.seconds or 60 * args.minutes, args.seed, []
    while seconds > 0 and not (results and results[-1]["broken"]):
        folder = Path(tempfile.mkdtemp(prefix="soak-"))
        result = soak(min(seconds, 60 * AT_ONCE), seed, journal=not args.memory, folder=folder)
        results.append(result)
        print(table(result), flush=True)
        if result["broken"]:
            (folder / "result.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
            print(f"BROKEN: {', '.join(result['broken'])}. What was written down is in {folder}", flush=True)
        else:
            shutil.rmtree(folder)
        seconds, seed = seconds - 60 * AT_ONCE, seed + 1
    if args.json:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    return int(any(result["broken"] for result in results))


if __name__ == "__main__":
    sys.exit(main())
