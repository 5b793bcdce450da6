"""
Programs that write each id down once its logging call has returned, and tell what they saw of their own situation.

    ran = run(dsn, tmp_path, "order('a'); tell(threads=threading.active_count())")
    judge("one record", dsn, ran.ids, seconds=ran.seconds)
"""

from __future__ import annotations

import json
from typing import NamedTuple

from support.processes import Program, run_program

# A linger of 30 s shows that nothing but an end, a flush or a full segment sends.
BEGIN = """
import gc, json, logging, logging.config, os, select, signal, sys, threading, time

DSN = os.environ["DSN"]
IDS = os.open(os.environ["IDS"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
GIVEN = json.loads(os.environ.get("LOGSLUICE_TEST_OPTIONS", "{}"))  # of a handler: tests/acceptance/test_lifecycle_journal.py
log = logging.getLogger("shop.orders")

def config(**options):
    return {
        "version": 1, "disable_existing_loggers": False,
        "handlers": {"postgres": {"class": "logsluice.PostgresHandler", "dsn": DSN, "linger": 30,
                                  "shutdown_timeout": 20, "backoff_initial": 0.01, "backoff_max": 0.1, "slow_batch": 60,
                                  **GIVEN, **options}},
        "root": {"level": "INFO", "handlers": ["postgres"]},
    }

def configure(**options):
    logging.config.dictConfig(config(**options))

def handler():
    return logging.getLogger().handlers[0]

def wrote(name):
    os.write(IDS, f"{name}\\n".encode())     # one write: threads and children share the file

def order(name):
    log.info("order %s paid", name, extra={"id": str(name)})
    wrote(name)

def orders(name, count=10):
    for n in range(count):
        order(f"{name}-{n}")

def tell(**figures):
    os.write(1, (json.dumps(figures) + "\\n").encode())     # not print: a signal handler may tell as well

def until(condition, seconds=20):
    end = time.monotonic() + seconds
    while not (value := condition()) and time.monotonic() < end:
        threading.Event().wait(0.002)
    return value

def ended(pid, seconds=20):
    '''Whether a child ends by itself, well; one that does not says where it hangs (PYTHONFAULTHANDLER).'''
    pidfd = os.pidfd_open(pid)
    late = not select.select([pidfd], [], [], seconds)[0]
    os.close(pidfd)
    if late:
        os.kill(pid, signal.SIGABRT)
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    return not late and status == 0

def fork(work, *args):
    '''A child that does this and ends as a program ends, within the call of this function.'''
    pid = os.fork()
    if pid == 0:
        work(*args)
        sys.exit()
    return pid
"""
# Forks while eight threads log; how many is its argument. For a test of each length.
STORM = """
configure(linger=0.05)
stop, late, sent = threading.Event(), [], [0] * 8

def work(name):
    n = 0
    while not stop.is_set():
        order(f"thread{name}-{n}")
        n += 1
        sent[name] = n
        stop.wait(0.002)

threads = [threading.Thread(target=work, args=(n,)) for n in range(8)]
for thread in threads:
    thread.start()

def child(n):
    orders(f"child{n}")
    if n % 2:
        raise SystemExit

running = []
for n in range(int(sys.argv[1])):
    running.append(fork(child, n))
    if len(running) == 4:            # at a time: each opens a connection of its own
        late += [pid for pid in running if not ended(pid)]
        running.clear()
late += [pid for pid in running if not ended(pid)]
stop.set()
for thread in threads:
    thread.join()
stats = handler().stats()
tell(late=len(late), retries=stats.retries, failed=stats.recent["failed"], sent=sent)
"""
LIMIT = 60  # seconds: a program takes one to six; one that hangs ends with the tracebacks of all threads


class Ran(NamedTuple):
    """A program that has ended well: the ids whose calls returned, what it told."""

    program: Program
    ids: list[str]
    told: dict

    @property
    def seconds(self):
        return self.program.seconds


def run(dsn, tmp_path, text, *, status=0, timeout=LIMIT, before="", args=(), **env):
    """
    Run BEGIN and the text, `before` in front of all imports.

    What it told is in one dictionary, the last value of each name.
    """
    ids = tmp_path / "ids"
    program = run_program(before + BEGIN + text, env={"DSN": dsn, "IDS": str(ids), **env}, timeout=timeout, args=args)
    assert program.returncode == status, program.stderr
    told = {}
    for line in program.stdout.splitlines():
        told.update(json.loads(line))
    return Ran(program, ids.read_text(encoding="utf-8").split() if ids.exists() else [], told)
