"""
How long can one logging call take, while the server is well, slow, frozen and away, and the program is busy?

    python benchmarks/stall.py [--quick] [--rounds 2] [--seconds 0.8] [--only TEXT] [--json FILE]

Contestants: NullHandler; FileHandler, which writes each record; the standard library's recipe (QueueHandler,
QueueListener, executemany of 100; its queue has no bound) where the server answers; ours in memory and with `journal=`.
Producers: 1, 4 or 16 threads, or 16 tasks on one asyncio loop that let the others run after each call; there the
lateness of the loop's timers is measured as well. `saturated`: each logs without a pause. `paced`: each logs 500
records a second and sleeps between. `busy`: three threads of the program's own count in Python all the while.
`switch 1 ms`: Python takes the GIL from who holds it after 1 ms instead of 5; no default, it tells what waits are.
The server: `fast` (a real one, reached directly), or behind a relay in a process of its own (stall_relay.py): `slow`
(4 MB a second there, each answer 50 ms late), `frozen` (SIGSTOP: open and silent), `away` (refuses). The buffer has
room for all of it, but in `full`: the server is away, 1 MiB is full before, and each call drops its record.

Each contestant in each case is a fresh process (stall_child.py), their order drawn; nobody else runs but the server.
Percentiles are of one process's calls, the median of the rounds is shown. The longest call is that of `--seconds`: more
would find a longer one. Afterwards the server gets well, all is stored, and the table's rows are counted.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import random
import signal
import statistics
import subprocess
import sys
from collections import Counter, defaultdict
from pathlib import Path

import common
import psycopg
from common import row
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from logsluice.devserver import free_port

HERE = Path(__file__).parent
OURS = ("memory", "journal")
OTHERS = ("NullHandler", "FileHandler")
ALL = (*OTHERS, "recipe", *OURS)
SWITCH = 0.001  # seconds, instead of 5 ms: the time after which Python takes the GIL from who holds it
QUICK = {"1 saturated fast", "1 saturated fast busy", "asyncio paced fast", "1 saturated full", "4 paced frozen"}


def case(producers, mode, server, who, *, busy=0, switch=None):
    words = [str(producers), mode, server] + ["busy"] * bool(busy) + ["switch 1 ms"] * bool(switch)
    return " ".join(words), {
        "producers": producers, "mode": mode, "server": server, "busy": busy, "switch": switch, "contestants": who
    }  # fmt: skip


CASES = dict(
    [
        *(case(n, mode, "fast", ALL) for mode in ("saturated", "paced") for n in (1, 4, 16, "asyncio")),
        *(case(n, "saturated", "fast", ALL, busy=3) for n in (1, "asyncio")),
        *(case(n, "paced", "fast", ALL, busy=3) for n in (4, "asyncio")),
        case(4, "paced", "slow", ("recipe", *OURS)),
        *(case(1, "saturated", server, OURS) for server in ("slow", "frozen", "away", "full")),
        *(case(4, "paced", server, OURS) for server in ("frozen", "away")),
        *(case("asyncio", "paced", server, OURS) for server in ("frozen", "away")),
        *(case(4, "paced", server, OURS, busy=3) for server in ("slow", "frozen", "away")),
        *(case(1, "saturated", "fast", OURS, busy=busy, switch=SWITCH) for busy in (0, 3)),
    ]
)


# --- a process in a case ----------------------------------------------------------------------------------------------


class Relay:
    """The relay's process. `become` returns when it has become so."""

    def __init__(self, dsn):
        port = free_port()
        self.dsn = make_conninfo(dsn, host="127.0.0.1", port=port, sslmode="disable", gssencmode="disable")
        command = [sys.executable, HERE / "stall_relay.py", str(port), str(conninfo_to_dict(dsn)["port"])]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.become("fast")

    def become(self, what):
        if what == "frozen":
            self.process.send_signal(signal.SIGSTOP)
            return
        self.process.send_signal(signal.SIGCONT)
        word = "away" if what == "full" else what
        self.process.stdin.write(word + "\n")
        self.process.stdin.flush()
        if self.process.stdout.readline().strip() != word:
            raise RuntimeError("the relay has ended")

    def close(self):
        self.process.kill()
        self.process.wait()


def measure(given, who, seconds, dsn, relay):
    """What a fresh process finds."""
    common.emptied(dsn)
    through = given["server"] != "fast"
    argument = json.dumps({**given, "who": who, "seconds": seconds, "dsn": relay.dsn if through else dsn})
    command = [sys.executable, HERE / "stall_child.py", argument]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as child:
        try:
            for word, server in (("ready", given["server"]), ("measured", "fast")):
                if child.stdout.readline().strip() != word:
                    raise RuntimeError(f"{who} has ended before it was {word}")
                if through:
                    relay.become(server)
                child.stdin.write("\n")
                child.stdin.flush()
            found = json.loads(child.stdout.readline())
        finally:
            if through:
                relay.become("fast")
            child.stdin.close()
        if child.wait(common.LIMIT) != 0:
            raise RuntimeError(f"{who} ended with {child.returncode}")
    check(dsn, who, found)
    return found


def check(dsn, who, found):
    """Whether all that the process kept is there, and once."""
    if who == "NullHandler":
        return
    there = found.get("lines")
    if there is None:
        table = common.Recipe.table if who == "recipe" else common.Ours.table
        with psycopg.connect(dsn) as conn:
            there = conn.execute(f"SELECT count(*), count(DISTINCT seq) FROM {table} WHERE seq > 0").fetchone()
        assert there[0] == there[1], f"{who}: {there[0] - there[1]} records are stored twice"
        there = there[0]
    assert there == found["kept"], f"{who}: {found['kept']} records were kept, {there} are there"


# --- what it comes to -------------------------------------------------------------------------------------------------


def show(name, found):
    print(f"{name}: µs a call")
    for who, one in found.items():
        figures = "".join(f"{what:>9} {one[what] / 1000:<9,.1f}" for what in ("p50", "p99", "p99.9", "longest"))
        late = f"  loop late by {one['late']['longest'] / 1000:,.0f}" if "late" in one else ""
        print(f"  {who:12}{figures} {one['calls']:>8} calls{late}", flush=True)


def rows(rounds):
    """The lines of the table: medians of the rounds, ratios inside a round. `rounds`: {case: [{contestant: found}]}."""
    lines = []

    def figure(one, who, what):
        return one[who]["late"]["longest"] if what == "late" else one[who][what]

    def part(name, who, what, of, goal=None):
        """What one has of what another has in the same round."""
        if name in rounds:
            ratios = [figure(one, who, what) / figure(one, of, what) for one in rounds[name]]
            said = {"longest": "longest call", "late": "the loop's latest timer"}.get(what, what)
            lines.append(row(f"{name}: {said}, {who}, of {of}'s", statistics.median(ratios), goal))

    def absolute(name, who, what, goal=None):
        if name in rounds:
            value = statistics.median(figure(one, who, what) for one in rounds[name]) / 1e6
            said = {"longest": "longest call", "late": "the loop's latest timer"}.get(what, what)
            lines.append(row(f"{name}: {said}, {who}", value, goal, unit="ms"))

    for who in OURS:
        part("1 saturated fast", who, "p99.9", "recipe", 0.3)
        absolute("1 saturated fast", who, "longest", 10)
        part("1 saturated fast busy", who, "longest", "NullHandler", 1.2)
    for name, given in CASES.items():
        for who in OURS:
            if "FileHandler" in given["contestants"]:
                part(name, who, "p99.9", "FileHandler")
                if given["producers"] == "asyncio":
                    part(name, who, "late", "FileHandler")
            elif "recipe" in given["contestants"]:
                part(name, who, "p99.9", "recipe")
            else:
                absolute(name, who, "p99.9")
            if name != "1 saturated fast":  # has its goal above
                absolute(name, who, "longest")
    return lines


def pooled(rounds):
    """{case: {contestant: {bucket: calls}}} of all rounds, for plots; a round's percentiles stay beside it."""
    found = {}
    for name, several in rounds.items():
        total = defaultdict(Counter)
        for one in several:
            for who, figures in one.items():
                total[who].update({int(bucket): count for bucket, count in figures.pop("buckets").items()})
                if "late" in figures:
                    total[f"{who}, the loop's timer"].update(
                        {int(bucket): count for bucket, count in figures["late"].pop("buckets").items()}
                    )
        found[name] = {who: dict(sorted(counts.items())) for who, counts in total.items()}
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=0.8, help="of logging, of each contestant in a round")
    parser.add_argument("--only", default="", help="cases whose name holds this text")
    parser.add_argument("--quick", action="store_true", help="five cases, one round, 0.4 s each")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    if args.quick:
        args.rounds, args.seconds = 1, 0.4
    cases = {name: one for name, one in CASES.items() if args.only in name and (not args.quick or name in QUICK)}
    draw = random.Random(17)  # the same order in every run
    rounds = {name: [] for name in cases}
    with common.prepared_server() as server, contextlib.closing(Relay(server.dsn())) as relay:
        for _ in range(args.rounds):
            for name in draw.sample(list(cases), len(cases)):
                who = cases[name]["contestants"]
                found = {
                    one: measure(cases[name], one, args.seconds, server.dsn(), relay)
                    for one in draw.sample(who, len(who))
                }
                rounds[name].append({one: found[one] for one in who})
                show(f"round {len(rounds[name])}, {name}", rounds[name][-1])
        machine = common.facts(server)
    result = {
        "facts": machine, "rounds": args.rounds, "seconds": args.seconds, "rows": rows(rounds),
        "details": {"histograms": pooled(rounds), "ns_a_call": rounds, "buckets_a_decade": 20},
    }  # fmt: skip
    common.report("stall", result, args.json)


if __name__ == "__main__":
    sys.exit(main())
