"""Whole programs that take long, or a look at more than their end. The oracle is the program's own id file."""

from __future__ import annotations

import collections
import signal
import textwrap

import psycopg

from support.processes import run_program
from support.situations import judge, stored_ids

PROGRAM = """
import json, logging, logging.config, os, sys
from pathlib import Path

logging.config.dictConfig({
    "version": 1,
    "handlers": {"postgres": {"class": "logsluice.PostgresHandler", "dsn_env": "LOGS", "service": "shop",
                              "shutdown_timeout": float(os.environ.get("SHUTDOWN", "20")),
                              **json.loads(os.environ.get("LOGSLUICE_TEST_OPTIONS", "{}"))}},
    "root": {"level": "INFO", "handlers": ["postgres"]},
})
log = logging.getLogger("shop.orders")
ids = os.open(os.environ["IDS"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)

def order(n):
    name = f"{os.getpid()}-{n}"
    log.info("order %s paid", n, extra={"id": name})
    os.write(ids, f"{name}\\n".encode())

for n in range(2000):
    order(n)
"""


def run(dsn, tmp_path, ending, *, timeout=60, **env):
    """Run the program with an ending; return how it ended and the ids whose logging call returned."""
    ids = tmp_path / "ids"
    program = run_program(PROGRAM + textwrap.dedent(ending), env={"LOGS": dsn, "IDS": str(ids), **env}, timeout=timeout)
    return program, ids.read_text().split()


def test_forked_children_that_leave_by_sys_exit_store_everything_once(dsn, tmp_path):
    ending = """
    for child in range(3):
        if os.fork() == 0:
            order('child')
            sys.exit()
        os.wait()
    """
    program, ids = run(dsn, tmp_path, ending)
    assert program.returncode == 0, program.stderr
    assert len(ids) == 2003
    outcome = judge("fork, children leave by sys.exit", dsn, ids)
    assert (outcome.lost, outcome.twice) == (0, 0)
    assert "lost" not in program.stderr


def test_first_use_makes_the_schema_and_says_so(empty_dsn, tmp_path):
    program, ids = run(empty_dsn, tmp_path, "")
    assert collections.Counter(ids) == stored_ids(empty_dsn)
    made = [line for line in program.stderr.splitlines() if "made schema" in line]
    assert len(made) == 1
    assert "create=False" in made[0]


def test_root_at_debug_stores_only_the_programs_records(dsn, tmp_path):
    """The driver logs at DEBUG from the listener's thread; stored, each batch would make the next."""
    ending = """
    logging.getLogger().setLevel(logging.DEBUG)
    order("debug")
    handler = logging.getLogger().handlers[0]
    assert handler.flush(30)
    assert handler.stats().waiting == 0
    """
    program, ids = run(dsn, tmp_path, ending)
    assert program.returncode == 0, program.stderr
    assert collections.Counter(ids) == stored_ids(dsn)
    with psycopg.connect(dsn) as conn:
        assert conn.execute("SELECT count(*) FROM logsluice.logs").fetchone() == (len(ids),)


ANY_MOMENT = """
import random, signal, threading, logsluice
logsluice.drain_on_sigterm()
busy = threading.Event()
def term():
    busy.wait(20)
    threading.Event().wait(random.random() * 0.1)
    os.kill(os.getpid(), signal.SIGTERM)
threading.Thread(target=term, daemon=True).start()
order(2000)
busy.set()
n = 2001
while True:
    order(n)
    n += 1
"""


def test_sigterm_at_any_moment_of_a_busy_program(dsn, tmp_path):
    """Thirty programs, each in the middle of what a logging call does: made a frame, rolled a segment, woke the thread."""
    programs, ids, extra = 30, [], 0
    for n in range(programs):
        folder = tmp_path / str(n)
        folder.mkdir()
        program, more = run(dsn, folder, ANY_MOMENT)
        assert program.returncode == -signal.SIGTERM, program.stderr
        assert len(more) > 2000  # it was busy when it ended
        ids += more
    for name in stored_ids(dsn).keys() - set(ids):  # taken in by a call that had not returned
        ids.append(name)
        extra += 1
    outcome = judge("SIGTERM at any moment, drain_on_sigterm()", dsn, ids, note=f"{programs} programs")
    print(f"{extra} of {programs} ended between the append and the return of a call")
    assert extra <= programs
    assert (outcome.lost, outcome.twice) == (0, 0)


EACH_LINE = """
import itertools, signal, threading, logsluice
logsluice.drain_on_sigterm()
handler = logging.getLogger().handlers[0]
left, lines = int(os.environ["LINE"]), itertools.count()

def at_line(frame, event, arg):
    if event == "line" and next(lines) == left:
        sys.settrace(None)
        os.write(1, f"{frame.f_code.co_name}:{frame.f_lineno}".encode())
        os.kill(os.getpid(), signal.SIGTERM)
    return at_line

sys.settrace(lambda frame, event, arg: at_line if "/logsluice/" in frame.f_code.co_filename else None)
handler.close()
sys.settrace(None)
os.write(1, b"over")
"""


def test_sigterm_at_each_line_of_close(dsn, tmp_path):
    """The signal finds a handler that says it is closed, and perhaps has not told its listener so."""
    ids, places, lost = [], [], {}
    while not places or places[-1] != "over":
        folder = tmp_path / str(len(places))
        folder.mkdir()
        program, more = run(dsn, folder, EACH_LINE, LINE=str(len(places)))
        places.append(program.stdout)
        assert program.returncode == (0 if program.stdout == "over" else -signal.SIGTERM), program.stderr
        ids += more
        if missing := set(more) - stored_ids(dsn).keys():
            lost[program.stdout] = len(missing)
    print(f"{len(places) - 1} lines: {' '.join(places)}")
    assert len(places) > 10
    outcome = judge("SIGTERM at each line of close(), drain_on_sigterm()", dsn, ids)
    assert not lost
    assert outcome.twice == 0
