"""Whole programs: what is in the table after each way to end. The oracle is the program's own id file."""

from __future__ import annotations

import collections
import re
import textwrap

import psycopg
import pytest

from support.processes import run_program

PROGRAM = """
import logging, logging.config, os, sys
from pathlib import Path

logging.config.dictConfig({
    "version": 1,
    "handlers": {"postgres": {"class": "logsluice.PostgresHandler", "dsn_env": "LOGS", "service": "shop",
                              "shutdown_timeout": float(os.environ.get("SHUTDOWN", "20"))}},
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


def stored(dsn):
    with psycopg.connect(dsn) as conn:
        rows = conn.execute("SELECT attributes->>'id' FROM logsluice.logs WHERE attributes ? 'id'").fetchall()
    return collections.Counter(row[0] for row in rows)


@pytest.mark.parametrize(
    ("ending", "status"),
    [
        ("", 0),
        ("sys.exit(3)", 3),
        ("raise ValueError('on purpose')", 1),
        ("import _thread; _thread.interrupt_main()\nfor n in range(10**6): pass", 130),
        ("import atexit; atexit.register(order, 'at-exit')", 0),
        ("for child in range(3):\n    if os.fork() == 0:\n        order('child'); sys.exit()\n    os.wait()", 0),
    ],
    ids=["end", "sys.exit", "exception", "ctrl-c", "logs-at-exit", "forked-children"],
)
def test_every_way_of_ending_stores_everything_once(dsn, tmp_path, ending, status):
    program, ids = run(dsn, tmp_path, ending)
    assert (status if status != 130 else -2) == program.returncode, program.stderr
    assert len(ids) >= 2000
    assert collections.Counter(ids) == stored(dsn)
    assert "lost" not in program.stderr


def test_first_use_makes_the_schema_and_says_so(empty_dsn, tmp_path):
    program, ids = run(empty_dsn, tmp_path, "")
    assert collections.Counter(ids) == stored(empty_dsn)
    made = [line for line in program.stderr.splitlines() if "made schema" in line]
    assert len(made) == 1
    assert "create=False" in made[0]


def test_exit_with_a_dead_server_is_bounded_and_says_how_many_are_lost(own_server, tmp_path):
    """The printed number is what is missing, and the exit status stays the program's own."""
    dsn = own_server.dsn()
    own_server.kill()
    program, ids = run(dsn, tmp_path, "sys.exit(3)", SHUTDOWN="1")
    assert program.returncode == 3
    lost = re.findall(r"(\d+) records were not stored", program.stderr)
    assert [str(len(ids))] == lost
    print(f"exit with a dead server: {program.seconds:.1f} s")
    assert program.seconds < 10 * (1 + 1)  # shutdown_timeout and a second, with ten times the room


def test_two_handlers_at_exit_share_one_deadline(own_server, tmp_path):
    dsn = own_server.dsn()
    own_server.kill()
    second = """
    import logsluice
    logging.getLogger().addHandler(logsluice.PostgresHandler(dsn_env="LOGS", shutdown_timeout=1))
    order("both")
    """
    program, _ids = run(dsn, tmp_path, second, SHUTDOWN="1")
    assert len(re.findall(r"\d+ records were not stored", program.stderr)) == 2
    print(f"two handlers, dead server: {program.seconds:.1f} s")
    assert program.seconds < 10 * (1 + 1)


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
    assert collections.Counter(ids) == stored(dsn)
    with psycopg.connect(dsn) as conn:
        assert conn.execute("SELECT count(*) FROM logsluice.logs").fetchone() == (len(ids),)
