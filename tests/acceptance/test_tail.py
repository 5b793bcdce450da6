"""
`logsluice tail -f` beside writers of 5,000 records a second, a server that restarts, and a program that is cut off.

Every stored row is shown once or announced as late, and the command of the announcement finds exactly those.
"""

from __future__ import annotations

import json
import re
import shlex
import signal
import subprocess
import sys

import psycopg

from logsluice import schema
from support.howto import environment, interruptible
from support.processes import until

LIMIT = 90  # seconds: a net below waits that take 10 at most, twice the window
HELD, EACH = 412, 10_000  # records of the program that is cut off, and of each writer
LATE = re.compile(r"logsluice: ([\d,]+) older rows? came from stream \d+: (logsluice query .+)")

WRITER = """
import logging, sys, threading
from logsluice import PostgresHandler
from logsluice.contrib import ApiRequest
handler = PostgresHandler(dsn=sys.argv[1], service="writer", shutdown_timeout=60)
log = logging.getLogger(sys.argv[2])
log.addHandler(handler)
log.setLevel(1)
pause = threading.Event()
for n in range(int(sys.argv[3])):
    log.info("row %d", n)
    if n % 25 == 24:
        pause.wait(0.01)  # 2,500 a second
    if n % 100 == 0:
        log.info(ApiRequest(method="GET", path="/"))  # another stream, of another table
"""
CUT_OFF = """
import logging, sys
from logsluice import PostgresHandler
handler = PostgresHandler(dsn=sys.argv[1], linger=60, shutdown_timeout=60)  # nothing is sent before it is told to
log = logging.getLogger("held")
log.addHandler(handler)
log.setLevel(1)
for n in range(int(sys.argv[2])):
    log.info("row %d", n)
print("logged", flush=True)
sys.stdin.readline()
assert handler.flush(60)
"""


def query(dsn, text):
    try:
        with psycopg.connect(dsn) as conn:
            return conn.execute(text).fetchall()
    except psycopg.OperationalError:
        return []  # it restarts


def run(dsn, command):
    """What a printed command finds."""
    done = subprocess.run(
        [*shlex.split(command), "-o", "ndjson"], env=environment(LOGSLUICE_DSN=dsn), capture_output=True, text=True,
        timeout=LIMIT, check=True,
    )  # fmt: skip
    return [json.loads(line)["id"] for line in done.stdout.splitlines()]


def test_each_row_once_and_late_ones_announced(own_server, tmp_path):
    dsn = own_server.dsn()
    with psycopg.connect(dsn, autocommit=True) as conn:
        schema.migrate(conn)
    out, said = tmp_path / "out", tmp_path / "said"
    with out.open("wb") as to, said.open("wb") as errors:
        tail = subprocess.Popen(
            [sys.executable, "-m", "logsluice", "tail", "-f", "-n", "0", "--window", "5", "-o", "ndjson"],
            env=environment(LOGSLUICE_DSN=dsn), stdout=to, stderr=errors, start_new_session=True,
            preexec_fn=interruptible,
        )  # fmt: skip
    programs = [tail]

    def start(code, *args, **options):
        programs.append(subprocess.Popen([sys.executable, "-c", code, dsn, *args], env=environment(), **options))
        return programs[-1]

    def shown():
        return [json.loads(line)["id"] for line in out.read_bytes().split(b"\n")[:-1]]

    def announced():
        return LATE.findall(said.read_text())

    try:
        started = start(WRITER, "started", "1000000")  # until a row of it is shown
        assert until(shown, LIMIT)
        started.terminate()
        held = start(CUT_OFF, str(HELD), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert held.stdout.readline() == "logged\n"
        writers = [start(WRITER, f"writer.{n}", str(EACH)) for n in range(2)]
        half = "SELECT FROM logsluice.logs WHERE logger LIKE 'writer.%' OFFSET 5000 LIMIT 1"
        assert until(lambda: query(dsn, half), LIMIT)
        own_server.kill()
        own_server.start()
        assert [one.wait(LIMIT) for one in writers] == [0, 0]
        mine = "SELECT ts FROM logsluice.logs WHERE ts > now() - interval '10 s' AND logger LIKE 'writer.%' LIMIT 1"
        assert until(lambda: not query(dsn, mine), LIMIT)  # the held rows are older than that
        held.communicate("go\n", LIMIT)
        assert held.returncode == 0
        assert until(lambda: [one for one in announced() if one[0] == str(HELD)], LIMIT)

        stored = {row[0] for row in query(dsn, "SELECT logger || ' ' || message FROM logsluice.logs")}
        everything = run(dsn, "logsluice query -n all")
        assert len(stored) == len(everything) > HELD + 2 * EACH
        assert until(lambda: len(shown()) + sum(int(count.replace(",", "")) for count, _ in announced())
                     >= len(everything), LIMIT)  # fmt: skip
        late = [run(dsn, command) for _, command in announced()]
        (ours,) = [command for count, command in announced() if count == str(HELD)]
        assert run(dsn, ours + " logger=held") == run(dsn, ours) == run(dsn, "logsluice query -n all logger=held")
        assert [f"{len(ids):,}" for ids in late] == [count for count, _ in announced()]
        assert sorted([*shown(), *(one for ids in late for one in ids)]) == sorted(everything)
        tail.send_signal(signal.SIGINT)
        assert tail.wait(LIMIT) == 130
        text = said.read_text()
        assert "the connection is lost, trying again" in text
        assert "connected again: nothing was missed" in text
        assert "Traceback" not in text
    finally:
        print(said.read_text())
        for one in programs:
            if one.poll() is None:
                one.kill()
            one.wait(LIMIT)
