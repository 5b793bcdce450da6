"""
Others, in the same run: records a second until all are committed, calls, CPU, memory, and what a kill loses.

    python benchmarks/peers.py [--rounds 5] [--records 20000] [--only NAME ...] [--quick] [--json FILE]

Each turn is a process of its own (peers_programs.py) with emptied tables; in each round all have one turn, in an order
that is drawn. The ids of the table, or of the TCP sink, tell what was lost or stored twice. The slow ones log a tenth
of the records. Medians of rounds.

The fault: a program that logs a record a millisecond kills itself (SIGKILL) when half of its calls have returned; the
same program, started again, logs the other half and ends as it should.

Optional: structlog, loguru (both in [dev]), picologging, python-logstash-async; Debian's rsyslog and rsyslog-pgsql.
What is not there is listed as not run.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import json
import os
import random
import re
import shutil
import signal
import socketserver
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from importlib import metadata
from pathlib import Path

import common
import psycopg
from common import row
from peers_programs import CONTESTANTS, PACE, WARM, memory

PROGRAMS = Path(__file__).with_name("peers_programs.py")
TIMEOUT = 120  # seconds for one turn: more is a hang
SEED = 20261125  # of the order of turns
OURS, RECIPE, INSERT = "logsluice", "QueueListener, executemany of 100", "one INSERT a record"
GOALS = {RECIPE: 4, INSERT: 30}  # DESIGN 5
PAIRS = [
    ("structlog, logsluice", "structlog, QueueListener, executemany of 100"),
    ("loguru, logsluice", "loguru enqueue, executemany of 100"),
]
KILLED = [OURS, "logsluice, journal", RECIPE, "QueueListener, COPY", INSERT, PAIRS[1][1], "rsyslog, ompgsql"]
PACKAGES = {"logstash_async": "python-logstash-async"}  # where the package is not called as the module
RSYSLOGD_MODULES = ("/usr/lib/x86_64-linux-gnu/rsyslog", "/usr/lib/rsyslog", "/usr/lib64/rsyslog")
NOT_COMPARED = {
    "python-logstash-async in the table of rates": "it sends JSON to Logstash, not rows to PostgreSQL: its calls and "
    "the lines that a TCP sink got are shown, no ratio is made",
    "rsyslog's columns": "syslog carries severity, name and text: the columns that it cannot fill are cheaper to store",
    "rsyslogd killed": "its queues are in memory here: killing it, and not the program, would lose what they hold",
    "picologging in front of logsluice": "its records are not logging.LogRecord and carry no extra=; logsluice does "
    "not promise to take them",
    "structlog and loguru alone": "neither has a sink for PostgreSQL: they are measured in front of one",
    "PostgreSQL's own CPU and memory": "it works for all alike; the server's side is another benchmark's subject",
}


# --- what some need ----------------------------------------------------------------------------------------------


def rsyslogd():
    return shutil.which("rsyslogd", path=os.environ.get("PATH", "") + ":/usr/sbin:/sbin")


CONF = """\
global(workDirectory="{folder}" net.enableDNS="off")
main_queue(queue.type="LinkedList" queue.size="500000" queue.dequeueBatchSize="1024")
module(load="imuxsock" SysSock.Use="off")
module(load="ompgsql")
template(name="row" type="string" option.stdsql="on" string="INSERT INTO recipe.logs (seq, ts, stream, level, logger, \
service, message) VALUES (0, '%timereported:::date-rfc3339%', 1, ('{{50,50,50,40,30,20,20,10}}'::smallint[])\
[%syslogseverity% + 1], '%programname%', 'bench', '%msg:2:$%')")
input(type="imuxsock" Socket="{folder}/log" UseSysTimeStamp="on" RateLimit.Interval="0")
if $programname == "bench.orders" then {{
    action(type="ompgsql" conninfo="{dsn}" template="row" queue.type="LinkedList" queue.size="500000"
        queue.dequeueBatchSize="1024" queue.workerThreads="2" queue.workerThreadMinimumMessages="1024"
        action.resumeRetryCount="-1")
}}
"""


@contextlib.contextmanager
def rsyslog_running(dsn, folder):
    """rsyslogd in the foreground, in the turn's folder; yields a function that gives its (CPU seconds, peak bytes)."""
    conf, socket = folder / "rsyslog.conf", folder / "log"
    conf.touch(mode=0o600)  # it will hold the password
    conf.write_text(CONF.format(folder=folder, dsn=dsn))
    command = [rsyslogd(), "-n", "-f", conf, "-i", folder / "rsyslogd.pid"]
    daemon = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=(folder / "said").open("wb"))
    try:
        deadline = time.monotonic() + 10
        while not socket.exists():
            if daemon.poll() is not None or time.monotonic() > deadline:
                raise SystemExit(f"rsyslogd does not listen:\n{(folder / 'said').read_text()}")
            threading.Event().wait(0.01)

        def used():
            fields = Path(f"/proc/{daemon.pid}/stat").read_text().rpartition(")")[2].split()
            return sum(map(int, fields[11:13])) / os.sysconf("SC_CLK_TCK"), memory("VmHWM", daemon.pid)

        yield used
    finally:
        daemon.terminate()
        try:
            daemon.wait(20)
        except subprocess.TimeoutExpired:
            daemon.kill()
            daemon.wait()


class Lines(socketserver.StreamRequestHandler):
    def handle(self):
        self.server.lines.extend(self.rfile)


@contextlib.contextmanager
def tcp_sink():
    """Stands where Logstash would be; yields the server, whose `lines` are what arrived."""
    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Lines) as server:
        server.daemon_threads, server.lines = False, []  # closing waits for what is being read
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


# --- turns -------------------------------------------------------------------------------------------------------


def missing(server):
    """What cannot run here, and what to install for it."""
    reasons = {}
    for name, contestant in CONTESTANTS.items():
        absent = [module for module in contestant.needs if importlib.util.find_spec(module) is None]
        if absent:
            reasons[name] = "pip install " + " ".join(PACKAGES.get(module, module) for module in absent)
        if contestant.helper == "rsyslogd" and not (
            rsyslogd() and any(Path(folder, "ompgsql.so").exists() for folder in RSYSLOGD_MODULES)
        ):
            reasons[name] = "apt-get install rsyslog rsyslog-pgsql"
        if name.endswith("psql") and not (server.bin / "psql").exists():
            reasons[name] = "apt-get install postgresql-client"
    return reasons


def in_table(dsn, table, ids):
    """How often each of the ids is in the table: it ends the message, or is an attribute (structlog)."""
    number = "coalesce(attributes->>'order', substring(message from '\\d+$'))::bigint"
    query = f"SELECT id, count(*) FROM (SELECT {number} AS id FROM {table}) AS stored WHERE id < %s GROUP BY id"
    with psycopg.connect(dsn) as conn:
        return dict(conn.execute(query, (ids,)).fetchall())


class Turns:
    def __init__(self, server):
        self.server, self.dsn = server, server.dsn()

    def run(self, name, folder, *options, port=0):
        """One process; its status and the line that it printed."""
        place = {
            "PEERS_DSN": self.dsn,
            "PEERS_FOLDER": str(folder),
            "PEERS_PORT": str(port),
            "PEERS_PSQL": str(self.server.bin / "psql"),
        }
        command = [sys.executable, PROGRAMS, name, *map(str, options)]
        env = {**os.environ, **place}
        done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=TIMEOUT, check=False)
        if done.returncode not in {0, -signal.SIGKILL}:
            raise SystemExit(f"{name} failed:\n{done.stderr}")
        return done.returncode, json.loads(done.stdout) if done.stdout else {}

    @contextlib.contextmanager
    def place(self, contestant):
        """Empty tables, a folder, and what the contestant needs; yields folder, TCP port, found(ids), used()."""
        common.emptied(self.dsn)
        with contextlib.ExitStack() as stack:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="peers-")))
            if contestant.helper:
                used = stack.enter_context(rsyslog_running(self.dsn, folder))
            else:

                def used():
                    return 0.0, 0

            if contestant.needs == ("logstash_async",):
                sink = stack.enter_context(tcp_sink())

                def found(ids):
                    numbers = (int(re.search(r"(\d+)$", json.loads(line)["message"])[1]) for line in sink.lines)
                    return Counter(number for number in numbers if number < ids)

                yield folder, sink.server_address[1], found, used
            else:
                yield folder, 0, lambda ids: in_table(self.dsn, contestant.table, ids), used

    def measure(self, name, records):
        """One turn: rates, calls, CPU, memory, and what is missing or there twice at the end."""
        contestant = CONTESTANTS[name]
        records = max(100, records // contestant.part)
        with self.place(contestant) as (folder, port, found, used):
            cpu = used()[0]
            _, seen = self.run(name, folder, "--records", records, port=port)
            cpu, peak = used()[0] - cpu, used()[1]
            stored = found(records) if contestant.table or port else None
        cpu /= records + WARM  # which are in it
        seen |= {"records": records, "helper_cpu_us": 1e6 * cpu, "helper_peak_bytes": peak}
        if stored is not None:
            seen |= {"lost": records - len(stored), "twice": sum(times > 1 for times in stored.values())}
            if not stored:
                raise SystemExit(f"{name}: nothing arrived")
            seen["a_second"] = len(stored) / seen["seconds"]
        if contestant.table == "logsluice.logs" and (seen["lost"] or seen["twice"]):
            raise SystemExit(f"{name}: {seen['lost']} records lost, {seen['twice']} stored twice")
        return seen

    def fault(self, name, records):
        """Kill the program half-way, start it again, count."""
        # Half a batch past the half: at its end a recipe of BATCH would have just sent, or be just sending.
        contestant, half = CONTESTANTS[name], records // 2 + common.BATCH // 2
        with self.place(contestant) as (folder, port, found, _used):
            status, _ = self.run(name, folder, "--first", 0, "--records", records, "--kill-at", half - 1, port=port)
            assert status == -signal.SIGKILL, status  # so the calls 0 ... half - 1 have returned
            self.run(name, folder, "--first", half, "--records", records - half, port=port)
            stored = found(records)
        return {
            "records": records,
            "returned_before_the_kill": half,
            "lost": records - len(stored),
            "twice": sum(times > 1 for times in stored.values()),
        }


# --- results -----------------------------------------------------------------------------------------------------


def tell(where, name, seen):
    """One turn in one line."""
    words = [f"{seen['a_second']:9,.0f}/s" if "a_second" in seen else f"{'':11}"]
    if "call_us" in seen:
        words.append(f"call {seen['call_us']:7.1f} µs, p99.9 {seen['call_p999_us']:8.0f}")
        words.append(
            f"CPU {seen['cpu_us']:6.1f} µs" + (f" + {seen['helper_cpu_us']:.1f}" if seen["helper_cpu_us"] else "")
        )
        helper = f" + {seen['helper_peak_bytes'] / 1e6:.0f}" if seen["helper_cpu_us"] else ""
        words.append(f"peak {seen['peak_bytes'] / 1e6:.0f} MB (+{seen['grown_bytes'] / 1e6:.1f}){helper}")
    words += [f"{seen[what]} {what}" for what in ("lost", "twice", "failed_calls") if seen.get(what)]
    print(f"{where}  {name:<46} {'  '.join(words)}", flush=True)


def ratio(seen, one, other, what):
    """The median, over rounds, of what one had beside the other in the same round."""
    pairs = zip(seen[one], seen[other], strict=True)
    return statistics.median(mine[what] / theirs[what] for mine, theirs in pairs)


def rows_of(seen, faults):
    rows = []
    same_table = [name for name in seen if CONTESTANTS[name].table and name != OURS]
    if OURS in seen:
        for name in same_table:
            goal = GOALS.get(name)
            rows.append(
                row(f"committed, beside {name}", ratio(seen, OURS, name, "a_second"), goal, least=True, unit="times")
            )
        called = [name for name in seen if name != OURS and not CONTESTANTS[name].ceiling]
        rows += [
            row(f"a call, of that with {name}", ratio(seen, OURS, name, "call_us"), unit="times") for name in called
        ]
    for one, other in PAIRS:
        if one in seen and other in seen:
            times = ratio(seen, one, other, "a_second")
            rows.append(row(f"committed, {one} beside {other}", times, least=True, unit="times"))
    for name, turns in seen.items():
        for what in ("lost", "twice"):
            if worst := max(turn.get(what, 0) for turn in turns):
                rows.append(row(f"without a fault, {what} at worst: {name}", worst, unit="records"))
    for name, turns in faults.items():
        goal = 0 if name == "logsluice, journal" else None
        for what in ("lost", "twice"):
            half = turns[0]["returned_before_the_kill"]
            worst = max(turn[what] for turn in turns)
            rows.append(row(f"killed after {half:,} calls, {what} at worst: {name}", worst, goal, unit="records"))
    return rows


def versions(names):
    """Of what took part."""
    modules = {module for name in names for module in CONTESTANTS[name].needs}
    found = {PACKAGES.get(module, module): metadata.version(PACKAGES.get(module, module)) for module in sorted(modules)}
    if any(CONTESTANTS[name].helper for name in names):
        said = subprocess.run([rsyslogd(), "-v"], capture_output=True, text=True, check=True).stdout
        found["rsyslog"] = said.split()[1]
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--records", type=int, default=20_000, help="in a turn; the slow ones log a tenth")
    parser.add_argument("--fault-records", type=int, default=2000)
    parser.add_argument("--fault-rounds", type=int, default=3)
    parser.add_argument("--only", nargs="+", choices=CONTESTANTS, metavar="NAME", help=", ".join(CONTESTANTS))
    parser.add_argument("--quick", action="store_true", help="one round of a tenth: does it run?")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    if args.quick:
        args.rounds, args.records, args.fault_records, args.fault_rounds = 1, 2000, 400, 1
    draw = random.Random(SEED)
    with common.prepared_server() as server:
        turns, not_run = Turns(server), missing(server)
        names = [name for name in args.only or CONTESTANTS if name not in not_run]
        for name, install in not_run.items():
            print(f"not run: {name}: {install}")
        seen = {name: [] for name in names}
        for number in range(args.rounds):
            for name in draw.sample(names, len(names)):
                seen[name].append(turns.measure(name, args.records))
                tell(f"round {number + 1}", name, seen[name][-1])
        faults = {name: [] for name in KILLED if name in names}
        for _ in range(args.fault_rounds):
            for name in draw.sample(list(faults), len(faults)):
                faults[name].append(turns.fault(name, args.fault_records))
                tell("killed ", name, faults[name][-1])
        machine = common.facts(server)
    details = {
        "seen": seen,
        "faults": faults,
        "fault_pace_seconds": PACE,
        "differs": {name: CONTESTANTS[name].differs for name in names if CONTESTANTS[name].differs},
        "not_run": not_run,
        "versions": versions(names),
    }
    result = {
        "facts": machine,
        "rounds": args.rounds,
        "records": args.records,
        "rows": rows_of(seen, faults),
        "details": details,
        "not_compared": NOT_COMPARED,
    }
    common.report("peers", result, args.json)


if __name__ == "__main__":
    sys.exit(main())
