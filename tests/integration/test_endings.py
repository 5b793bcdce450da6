"""
Every way to end a process, a handler or its thread: what is in the table afterwards.

Programs run apart. Each writes an id down once the logging call has returned, and tells what it saw of its own
situation; a linger of 30 s shows that nothing but the end sends. What is judged goes into the published table.
"""

from __future__ import annotations

import json
import os
import re
import signal
import time
from pathlib import Path
from typing import NamedTuple

import psycopg
import pytest

from support.processes import Program, run_program, until
from support.proxy import Proxy
from support.situations import judge, stored_ids

BEGIN = """
import json, logging, logging.config, os, resource, signal, sys, threading, time
import logsluice.buffer

# A segment that gets full is sent at once. These hold all that a program logs, 0.4 MB at most: nothing but its end sends.
logsluice.buffer.FIRST_SEGMENT = logsluice.buffer.LARGEST_SEGMENT
DSN = os.environ["DSN"]
IDS = os.open(os.environ["IDS"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
GIVEN = json.loads(os.environ.get("LOGSLUICE_TEST_OPTIONS", "{}"))  # of a handler: tests/acceptance/test_lifecycle_journal.py
log = logging.getLogger("shop.orders")
resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # a test of abort() leaves no memory dump

def config(**options):
    return {
        "version": 1, "disable_existing_loggers": False,
        "handlers": {"postgres": {"class": "logsluice.PostgresHandler", "dsn": DSN, "linger": 30,
                                  "shutdown_timeout": float(os.environ.get("SHUTDOWN", "20")), **GIVEN, **options}},
        "root": {"level": "INFO", "handlers": ["postgres"]},
    }

def configure(**options):
    logging.config.dictConfig(config(**options))

def handler():
    return logging.getLogger().handlers[0]

def order(name):
    log.info("order %s paid", name, extra={"id": str(name)})
    os.write(IDS, f"{name}\\n".encode())

def orders(first, end):
    for n in range(first, end):
        order(n)

def tell(**figures):
    os.write(1, (json.dumps(figures) + "\\n").encode())   # not print: a signal handler may tell as well

def ending():
    tell(ending=time.monotonic(), waiting=handler().stats().waiting)

def threads():
    return sum(not one.name.endswith("-journal") for one in threading.enumerate())   # a journal has one of its own

def until(condition, seconds=20):
    end = time.monotonic() + seconds
    while not (value := condition()) and time.monotonic() < end:
        threading.Event().wait(0.005)
    assert value
    return value

def own_sessions(conn, waits):
    return [row[0] for row in conn.execute(
        "SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND application_name LIKE 'logsluice%%'"
        " AND (wait_event_type IS NOT DISTINCT FROM 'Lock') = %s", (waits,)).fetchall()]

class Locked:
    '''The server takes nothing in until `release`: another session holds the table's lock.'''
    def __init__(self):
        import psycopg
        self.conn = psycopg.connect(DSN)
        self.look = psycopg.connect(DSN, autocommit=True)
        self.conn.execute("LOCK TABLE logsluice.logs IN ACCESS EXCLUSIVE MODE")

    def release_after(self, condition, seconds=0.3, then=lambda: None):
        '''Release, from a thread, some time after our sender waits for the lock and the condition has come true.'''
        def work():
            until(condition)
            until(lambda: own_sessions(self.look, waits=True))
            then()
            threading.Event().wait(seconds)
            tell(held=True)
            self.conn.rollback()
        threading.Thread(target=work, daemon=True).start()
"""
SAID_LOST = r"(\d+) records (?:were not stored|are left in the journal)"
HANDLERS = 210  # one after the other; the first ten show what is normal
LIMIT = 60  # seconds: a program takes one to four; one that hangs ends with the tracebacks of all threads
ROOM = 10  # times what an ending may take: another job on the machine is no failure


class Ran(NamedTuple):
    """A program that has ended: how, the ids whose calls returned, what it told, seconds from `ending()` on."""

    program: Program
    ids: list[str]
    told: dict
    seconds: float

    @property
    def said_lost(self):
        """The numbers of lost records that it printed."""
        return [int(n) for n in re.findall(SAID_LOST, self.program.stderr)]


def run(dsn, tmp_path, text, *, before="", shutdown=20, options="", **env):
    """Run BEGIN, configured, and the text; `before` stands in front of the import of logging."""
    ids = tmp_path / "ids"
    program = run_program(
        f"{before}\n{BEGIN}\nconfigure({options})\n{text}",
        env={"DSN": dsn, "IDS": str(ids), "SHUTDOWN": str(shutdown), **env},
        timeout=LIMIT,
    )
    ended = time.monotonic()
    told = {}
    for line in program.stdout.splitlines():
        told.update(json.loads(line))
    assert "ending" in told, program.stderr
    return Ran(program, ids.read_text().splitlines(), told, ended - told["ending"])


def judged(situation, dsn, ran, ids=None, **more):
    return judge(situation, dsn, ran.ids if ids is None else ids, seconds=ran.seconds, **more)


def assert_all_stored(situation, dsn, ran, status, *, logged=2000):
    outcome = judged(situation, dsn, ran)
    assert ran.program.returncode == status, ran.program.stderr
    assert (outcome.logged, outcome.lost, outcome.twice) == (logged, 0, 0)
    assert ran.said_lost == []


INT = "os.kill(os.getpid(), signal.SIGINT)"
TERM = "os.kill(os.getpid(), signal.SIGTERM)"


# --- ends that run Python's exit handlers ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("situation", "text", "status"),
    [
        ("normal exit", "", 0),
        ("sys.exit", "sys.exit(3)", 3),
        ("unhandled exception", "raise ValueError('on purpose')", 1),
        (
            "Ctrl-C (SIGINT)",
            # A shell starts its background jobs with SIGINT ignored, and so may our parent have been.
            f"signal.signal(signal.SIGINT, signal.default_int_handler)\n{INT}\nthreading.Event().wait(20)",
            -signal.SIGINT,
        ),
    ],
    ids=["normal", "sys.exit", "exception", "ctrl-c"],
)
def test_every_way_to_exit_stores_everything_and_keeps_the_status(dsn, tmp_path, situation, text, status):
    ran = run(dsn, tmp_path, f"orders(0, 2000)\nending()\n{text}")
    assert ran.told["waiting"] > 0  # there was something to send at exit
    assert_all_stored(situation, dsn, ran, status)


def test_an_exit_waits_for_a_slow_server(dsn, tmp_path):
    ran = run(
        dsn,
        tmp_path,
        """
from logsluice import lifecycle
logsluice.buffer.FIRST_SEGMENT = 65536      # several wait, the first of them for the lock
locked = Locked()
orders(0, 2000)
locked.release_after(lifecycle.exiting, 0.5)
ending()
""",
    )
    assert ran.told["held"]  # nothing could be stored for half a second of the exit
    assert 0.5 < ran.seconds < ROOM * 2
    assert_all_stored("exit, slow server", dsn, ran, 0)


def test_records_of_exit_handlers_are_stored_up_to_the_very_last(dsn, tmp_path):
    """They run last in, first out; one registered before `import logging` runs after logging.shutdown."""
    before = """
import atexit
def very_last():
    log.warning("too late")
    tell(late=one.stats().dropped_by.get(("closed", 30)), threads=threading.active_count())
atexit.register(very_last)
import logging
atexit.register(lambda: order("after logging, before ours"))
"""
    text = """
one = handler()
atexit.register(order, "after ours")
orders(0, 1998)
atexit.register(order, "after the first record")
ending()
order(1998)
"""
    ran = run(dsn, tmp_path, text, before=before)
    assert (ran.told["late"], ran.told["threads"]) == (1, 1)  # counted; the listener had ended, and none was started
    assert_all_stored("records of atexit functions", dsn, ran, 0, logged=2002)


def test_a_thread_that_logs_all_through_the_exit(dsn, tmp_path):
    """What is accepted is stored. For each of its records the program asks whether it was dropped, and counted."""
    before = """
import atexit
def very_last():
    stop.set()
    thread.join()
    tell(refused=refused())
atexit.register(very_last)
"""
    text = """
one, stop, exiting = handler(), threading.Event(), threading.Event()

def refused():
    return one.stats().dropped_by.get(("closed", logging.INFO), 0)

def work():     # started before the end, when some Pythons start none
    n = accepted = count = 0
    exiting.wait()
    while not (stop.is_set() and count):
        log.info("from a thread", extra={"id": f"thread-{n}"})
        if count == (count := refused()):
            os.write(IDS, f"thread-{n}\\n".encode())
            accepted += 1
        n += 1
        threading.Event().wait(0.0001)
    tell(accepted_at_exit=accepted)

thread = threading.Thread(target=work, daemon=True)
thread.start()

def begin():
    exiting.set()
    until(lambda: one.stats().offered > 2100)
atexit.register(begin)
orders(0, 2000)
ending()
"""
    ran = run(dsn, tmp_path, text, before=before)
    assert ran.told["accepted_at_exit"] > 0
    assert ran.told["refused"] > 0
    assert_all_stored("a thread that logs during exit", dsn, ran, 0, logged=2000 + ran.told["accepted_at_exit"])


# --- ends with a server that is away --------------------------------------------------------------------------------


def assert_said_what_is_lost(situation, dsn, ran, *, lost, status=0, shutdown=1):
    outcome = judged(situation, dsn, ran, note=f"shutdown_timeout={shutdown}; it printed {sum(ran.said_lost)}")
    print(f"{situation}: {ran.seconds:.2f} s of shutdown_timeout {shutdown}")
    assert ran.program.returncode == status, ran.program.stderr
    assert (outcome.lost, outcome.twice) == (lost, 0)
    assert sum(ran.said_lost) == lost, ran.program.stderr
    assert ran.seconds < ROOM * (shutdown + 0.5)  # half a second: for the listener to say it


def test_exit_with_a_dead_server_is_bounded_and_says_how_many_are_lost(dsn, tmp_path, own_server):
    dead = own_server.dsn()
    own_server.kill()
    ran = run(dead, tmp_path, "orders(0, 2000)\nending()\nsys.exit(3)", shutdown=1)
    assert_said_what_is_lost("exit, server dead", dsn, ran, lost=2000, status=3)


def test_two_handlers_at_exit_share_one_deadline(dsn, tmp_path, own_server):
    dead = own_server.dsn()
    own_server.kill()
    text = """
import logsluice
logging.getLogger().addHandler(logsluice.PostgresHandler(dsn=DSN, shutdown_timeout=1, **GIVEN))
orders(0, 2000)
ending()
"""
    ran = run(dead, tmp_path, text, shutdown=1)
    assert ran.said_lost == [2000, 2000]
    outcome = judged("exit, server dead, two handlers", dsn, ran, note="one deadline; each prints its number")
    assert (outcome.lost, outcome.twice) == (2000, 0)
    print(f"two handlers, dead server: {ran.seconds:.2f} s")
    assert ran.seconds < ROOM * (1 + 2 * 0.5)


def test_exit_with_a_server_that_never_answers(dsn, tmp_path):
    with Proxy(dsn) as proxy:
        proxy.swallow()
        ran = run(proxy.dsn, tmp_path, "orders(0, 2000)\nhandler().flush(0.2)\nending()", shutdown=1)
        assert proxy.swallowed > 0  # it was asked, and its answer kept from us
    assert_said_what_is_lost("exit, server deaf", dsn, ran, lost=2000)


def test_exit_after_a_reload_says_what_both_handlers_lost(dsn, tmp_path):
    """The old one was closed under logging's lock; what it still has counts at exit like the new one's."""
    with Proxy(dsn) as proxy:
        proxy.swallow()
        ran = run(proxy.dsn, tmp_path, "orders(0, 1000)\nconfigure()\norders(1000, 2000)\nending()", shutdown=1)
        assert proxy.swallowed > 0
    assert_said_what_is_lost("reload and exit, server deaf", dsn, ran, lost=2000)


def test_exit_with_a_server_that_freezes(dsn, tmp_path):
    text = """
import psycopg
orders(0, 1000)
assert handler().flush(20)
with psycopg.connect(DSN) as conn:
    (session,) = own_sessions(conn, waits=False)
os.kill(session, signal.SIGSTOP)
tell(session=session)
orders(1000, 2000)
ending()
"""
    ran = run(dsn, tmp_path, text, shutdown=1)
    session = ran.told["session"]
    try:
        assert ") T " in Path(f"/proc/{session}/stat").read_text()  # still stopped
    finally:
        os.kill(session, signal.SIGCONT)
    assert until(lambda: not Path(f"/proc/{session}").exists())  # whatever it still had to do is done
    assert_said_what_is_lost("exit, server frozen", dsn, ran, lost=1000)


# --- SIGTERM --------------------------------------------------------------------------------------------------------

DRAIN = "import logsluice\nlogsluice.drain_on_sigterm()\n"


def test_sigterm_unasked_loses_at_most_what_waited(dsn, tmp_path):
    text = (
        f"orders(0, 1000)\nassert handler().flush(20)\norders(1000, 2000)\nending()\n{TERM}\nthreading.Event().wait(20)"
    )
    ran = run(dsn, tmp_path, text)
    outcome = judged("SIGTERM, default action", dsn, ran, note="1,000 of 2,000 had not been flushed")
    assert ran.program.returncode == -signal.SIGTERM
    print(f"SIGTERM, default action: {outcome.lost} lost, {ran.told['waiting']} waited")
    assert 0 < outcome.lost <= ran.told["waiting"] <= 1000
    assert outcome.twice == 0


MINE = """
over = threading.Event()
def mine(number, frame):
    tell(called=[number, type(frame).__name__])
    over.set()
    {}
signal.signal(signal.SIGTERM, mine)
"""


@pytest.mark.parametrize(
    ("situation", "mine", "afterwards", "status"),
    [
        ("drain_on_sigterm()", "", "threading.Event().wait(20)", -signal.SIGTERM),
        ("own handler exits, drain_on_sigterm()", MINE.format("sys.exit(7)"), "threading.Event().wait(20)", 7),
        ("own handler sets a flag, drain_on_sigterm()", MINE.format(""), "assert over.wait(20)\norders(1900, 2000)", 0),
        ("ignored, drain_on_sigterm()", "signal.signal(signal.SIGTERM, signal.SIG_IGN)", "orders(1900, 2000)", 0),
    ],
    ids=["default", "exits", "flag", "ignored"],
)
def test_sigterm_drains_and_hands_on_to_what_was_there(dsn, tmp_path, situation, mine, afterwards, status):
    ran = run(dsn, tmp_path, f"{mine}\n{DRAIN}orders(0, 1900)\nending()\n{TERM}\n{afterwards}")
    assert ran.told["waiting"] > 0
    if mine.startswith(MINE[:20]):
        assert ran.told["called"] == [signal.SIGTERM, "frame"]
    logged = 1900 if afterwards.startswith("threading") else 2000
    assert_all_stored(f"SIGTERM, {situation}", dsn, ran, status, logged=logged)


def test_drain_on_sigterm_called_twice_drains_once_and_hands_on_once(dsn, tmp_path):
    mine = "calls = []\nsignal.signal(signal.SIGTERM, lambda *_: calls.append(1))\n"
    ran = run(dsn, tmp_path, f"{mine}{DRAIN}{DRAIN}orders(0, 2000)\nending()\n{TERM}\ntell(calls=len(calls))")
    assert ran.told["calls"] == 1
    assert_all_stored("SIGTERM, drain_on_sigterm() twice", dsn, ran, 0)


def test_drain_on_sigterm_from_a_thread_says_where_to_call_it(dsn, tmp_path):
    text = """
import logsluice
def work():
    try:
        logsluice.drain_on_sigterm()
    except Exception as error:
        tell(error=str(error))
thread = threading.Thread(target=work)
thread.start()
thread.join()
tell(untouched=signal.getsignal(signal.SIGTERM) is signal.SIG_DFL)
ending()
"""
    ran = run(dsn, tmp_path, text)
    assert "main thread" in ran.told["error"]
    assert ran.told["untouched"]


SIGTERM_WHILE = {
    "in a long C call": """
import hashlib
def work():
    threading.Event().wait(0.05)
    assert busy
    os.kill(os.getpid(), signal.SIGTERM)
    tell(sent_while_busy=busy)
ending()
threading.Thread(target=work, daemon=True).start()
busy = True
hashlib.pbkdf2_hmac("sha256", b"", b"", 1_500_000)    # half a second without a look at signals
busy = False
threading.Event().wait(20)
""",
    "in dictConfig": f"""
class Late(logging.NullHandler):
    def __init__(self):
        super().__init__()
        tell(locked=logging._lock._is_owned())
        {TERM}
        threading.Event().wait(20)
ending()
both = config()
both["handlers"]["late"] = {{"()": Late}}
logging.config.dictConfig(both)
""",
    "in a logging call": f"""
class Odd:
    def __str__(self):
        tell(in_call=True)
        {TERM}
        threading.Event().wait(20)
ending()
log.info("%s", Odd())
""",
    "in flush()": f"""
locked, flushing = Locked(), threading.Event()
locked.release_after(flushing.is_set, then=lambda: {TERM})
ending()
flushing.set()
handler().flush(20)
threading.Event().wait(20)
""",
    "in close() at exit": f"""
import atexit
from logsluice import lifecycle
locked, one = Locked(), handler()
locked.release_after(lambda: lifecycle.exiting() and one._ended, then=lambda: {TERM})
atexit.register(one.close)
ending()
""",
    "in logging.shutdown": f"""
from logsluice import lifecycle
locked = Locked()
locked.release_after(lifecycle.exiting, then=lambda: {TERM})
ending()
""",
}
PROOFS = {"in a long C call": "sent_while_busy", "in dictConfig": "locked", "in a logging call": "in_call"}


@pytest.mark.parametrize("place", SIGTERM_WHILE)
def test_sigterm_wherever_the_main_thread_is(dsn, tmp_path, place):
    ran = run(dsn, tmp_path, f"{DRAIN}orders(0, 2000)\n{SIGTERM_WHILE[place]}")
    assert ran.told[PROOFS.get(place, "held")] is True, ran.program.stderr
    assert ran.told["waiting"] > 0
    assert_all_stored(f"SIGTERM, {place}, drain_on_sigterm()", dsn, ran, -signal.SIGTERM)


def test_sigterm_with_a_dead_server_is_bounded(dsn, tmp_path, own_server):
    dead = own_server.dsn()
    own_server.kill()
    text = f"{DRAIN}orders(0, 2000)\nending()\n{TERM}\nthreading.Event().wait(20)"
    ran = run(dead, tmp_path, text, shutdown=1)
    situation = "SIGTERM, drain_on_sigterm(), server dead"
    assert_said_what_is_lost(situation, dsn, ran, lost=2000, status=-signal.SIGTERM)


@pytest.mark.parametrize(
    "mine", ["", MINE.format("tell(handed_on=time.monotonic())\n    os._exit(7)")], ids=["default", "own"]
)
def test_sigterm_with_two_handlers_and_a_dead_server_has_one_deadline(dsn, tmp_path, own_server, mine):
    dead = own_server.dsn()
    own_server.kill()
    text = f"""
import logsluice
for _ in range(4):
    logging.getLogger().addHandler(logsluice.PostgresHandler(dsn=DSN, shutdown_timeout=2))
{mine}
{DRAIN}orders(0, 2000)
ending()
{TERM}
threading.Event().wait(20)
"""
    ran = run(dead, tmp_path, text, shutdown=2)
    print(f"five handlers: {ran.seconds:.2f} s, five of them one by one would take 10")
    assert ran.program.returncode == (7 if mine else -signal.SIGTERM)
    assert 1.5 < ran.seconds < 5 * 2


def test_sigterm_again_while_it_drains(dsn, tmp_path):
    """An impatient supervisor: the second signal finds the handler closed and its listener at work."""
    text = f"""
locked = Locked()
locked.release_after(lambda: handler()._ended, then=lambda: {TERM})
ending()
{TERM}
threading.Event().wait(20)
"""
    ran = run(dsn, tmp_path, f"{DRAIN}orders(0, 2000)\n{text}")
    assert ran.told["held"]
    assert_all_stored("SIGTERM, again while it drains, drain_on_sigterm()", dsn, ran, -signal.SIGTERM)


def test_sigterm_after_a_reload_sends_what_the_old_handler_left(dsn, tmp_path):
    """Closed under logging's lock, it is still sending; and the program's own handler leaves without any exit code."""
    text = f"""
{MINE.format("os._exit(7)")}
{DRAIN}orders(0, 2000)
locked = Locked()
tell(old_waits=handler().stats().waiting)
configure()    # the old handler is nobody's by now, its listener is still sending
locked.release_after(lambda: True)
tell(ending=time.monotonic())
{TERM}
threading.Event().wait(20)
"""
    ran = run(dsn, tmp_path, text)
    assert ran.told["old_waits"] > 0
    assert ran.told.get("held"), "it did not wait for the server"
    assert_all_stored("SIGTERM after a reload, own handler leaves by os._exit", dsn, ran, 7)


def test_sigterm_in_dictconfig_with_a_driver_that_logs_loses_nothing(dsn, tmp_path):
    """It needs the lock that the interrupted main thread holds, for good: it is let go, for nothing goes on after us."""
    logs = """
import logsluice.sinks.link as link
execute = link.LimitedConnection.execute
def logging_execute(conn, *args, **options):
    logging.getLogger("psycopg.%d" % time.monotonic_ns()).debug("statement")    # a new logger takes the lock
    return execute(conn, *args, **options)
link.LimitedConnection.execute = logging_execute
"""
    ran = run(dsn, tmp_path, f"{logs}{DRAIN}orders(0, 2000)\n{SIGTERM_WHILE['in dictConfig']}")
    assert ran.told["locked"] is True
    assert_all_stored("SIGTERM, in dictConfig, driver logs, drain_on_sigterm()", dsn, ran, -signal.SIGTERM)


# --- ends that run nothing ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("situation", "text", "status"),
    [
        ("os._exit", "os._exit(0)", 0),
        ("os.execv", "os.execv(sys.executable, [sys.executable, '-c', 'print(\\'{\"another\": true}\\')'])", 0),
        ("SIGKILL", "os.kill(os.getpid(), signal.SIGKILL)", -signal.SIGKILL),
        ("os.abort", "os.abort()", -signal.SIGABRT),
    ],
    ids=["os._exit", "os.execv", "SIGKILL", "os.abort"],
)
def test_ends_without_any_code_of_ours_lose_what_waited_and_no_more(dsn, tmp_path, situation, text, status):
    ran = run(dsn, tmp_path, f"orders(0, 1000)\nassert handler().flush(20)\norders(1000, 2000)\nending()\n{text}")
    outcome = judged(situation, dsn, ran, note="1,000 of 2,000 had not been flushed")
    assert ran.program.returncode == status, ran.program.stderr
    assert ran.told.get("another", False) is (situation == "os.execv")
    print(f"{situation}: {outcome.lost} lost, {ran.told['waiting']} waited")
    assert 0 < outcome.lost <= ran.told["waiting"] <= 1000
    assert outcome.twice == 0
    found = stored_ids(dsn)
    assert all(found[str(n)] == 1 for n in range(1000))  # what had been flushed


# --- after the end of the handler -----------------------------------------------------------------------------------


def test_a_record_after_close_raises_nothing_starts_nothing_and_is_counted(dsn, tmp_path):
    text = """
orders(0, 2000)
one = handler()
ending()
one.close()
for n in range(2000):
    log.log(logging.ERROR if n % 2 else logging.INFO, "late")
one.emit(log.makeRecord("shop", logging.INFO, "", 1, "late", None, None))
assert one.flush(1)
one.close()
stats = one.stats()
tell(dropped=sorted(stats.dropped_by.items()), accepted=stats.accepted, stored=stats.stored,
     threads=threading.active_count())
"""
    ran = run(dsn, tmp_path, text)
    assert ran.told["dropped"] == [[["closed", 20], 1001], [["closed", 40], 1000]]
    assert (ran.told["accepted"], ran.told["stored"], ran.told["threads"]) == (2000, 2000, 1)
    assert "Traceback" not in ran.program.stderr
    assert_all_stored("records after close()", dsn, ran, 0)
    with psycopg.connect(dsn) as conn:
        assert conn.execute("SELECT count(*) FROM logsluice.logs WHERE message = 'late'").fetchone() == (0,)


def test_starting_and_stopping_leaves_nothing_behind(dsn, tmp_path):
    """One after the other: no thread, descriptor, memory map, exit handler or fork handler more than after ten."""
    before = """
import os
hooks, real = [], os.register_at_fork
def register_at_fork(**calls):
    hooks.extend(call.__module__ for call in calls.values())
    real(**calls)
os.register_at_fork = register_at_fork
"""
    text = """
import atexit, gc, logsluice
from logsluice import lifecycle

def once(n):
    one = logsluice.PostgresHandler(dsn=DSN, shutdown_timeout=20, **GIVEN)
    logging.getLogger().addHandler(one)
    order(n)
    logging.getLogger().removeHandler(one)
    one.close()

def left():
    gc.collect()
    with open("/proc/self/maps") as maps:
        lines = sum(1 for _ in maps)
    return [threading.active_count(), len(os.listdir("/proc/self/fd")), atexit._ncallbacks(), hooks.count("logsluice.lifecycle"),
            len(lifecycle._handlers), len(lifecycle.OWN_THREADS), len(lifecycle._draining)], lines

logging.getLogger().handlers.clear()
for n in range(10):
    once(n)
first, first_maps = left()
began = time.monotonic()
for n in range(10, int(os.environ["HANDLERS"])):
    once(n)
tell(took=time.monotonic() - began)
last, last_maps = left()
tell(ending=time.monotonic(), first=first, last=last, maps=[first_maps, last_maps])
"""
    ran = run(dsn, tmp_path, text, before=before, HANDLERS=str(HANDLERS))
    print(ran.told)
    assert ran.told["first"] == ran.told["last"]
    assert ran.told["last"][3] == 3  # before, in the parent, in the child: one registration a process
    assert ran.told["maps"][1] - ran.told["maps"][0] < 20  # of 200 that a leak would leave; malloc takes some
    assert_all_stored(f"{HANDLERS - 10} handlers made and closed", dsn, ran, 0, logged=HANDLERS)


# --- threads that fail ----------------------------------------------------------------------------------------------

NO_THREADS = """
import logsluice.sinks.postgres      # the driver's libraries are mapped before the limit
size = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
threading.stack_size(512 << 20)
resource.setrlimit(resource.RLIMIT_AS, (size + (256 << 20), resource.RLIM_INFINITY))
try:
    threading.Thread(target=print).start()
except RuntimeError as error:
    tell(refused=str(error))
orders(0, 2000)
tell(threads=threads())
"""


@pytest.mark.parametrize("later", [False, True], ids=["never", "later"])
def test_a_thread_that_cannot_be_started(dsn, tmp_path, later):
    """Never: the caller of `close` sends. Later: each full segment and each flush tries to start it again."""
    text = (
        "resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY,) * 2)\nending()\nassert handler().flush(20)\n"
    )
    ran = run(dsn, tmp_path, NO_THREADS + (text if later else "ending()\n") + "tell(then=threads())")
    assert ran.told["refused"] == "can't start new thread"
    assert (ran.told["threads"], ran.told["then"]) == (1, 2 if later else 1)
    assert "thread cannot be started (can't start new thread)" in ran.program.stderr
    assert_all_stored("a thread that starts later" if later else "a thread that cannot start", dsn, ran, 0)


def test_the_first_record_of_a_process_at_its_exit(dsn, tmp_path):
    """Some Pythons (3.12.0 to 3.12.2) start no thread by then."""
    text = """
import atexit
def last():
    orders(0, 2000)
    ending()
    tell(threads=threading.active_count())
atexit.register(last)
"""
    ran = run(dsn, tmp_path, text)
    print(f"threads: {ran.told['threads']}")
    assert ("thread cannot be started" in ran.program.stderr) == (ran.told["threads"] == 1)
    assert_all_stored("the first record in an atexit function", dsn, ran, 0)


INJECT = """
import ctypes

class Unexpected(BaseException):
    pass

def listener():
    return next((t for t in threading.enumerate() if t.name.startswith("logsluice-")), None)

def throw():
    thread = listener()
    return thread is not None and ctypes.pythonapi.PyThreadState_SetAsyncExc(
        ctypes.c_ulong(thread.ident), ctypes.py_object(Unexpected))

import random
hits = 0
for n in range(2000):
    if n % 20 == 0:
        assert handler().flush(20)
    order(n)
    if n % 20 == 10:
        log.error("sends at once")
        threading.Event().wait(random.random() * 0.005)       # a batch takes 2 to 5 ms: somewhere in it
        hits += throw()
        if n % 40 == 30:                                          # not the first, which is said in peace
            threading.Event().wait(random.random() * 0.0002)  # while it deals with the first
            hits += throw()
stats = handler().stats()
tell(hits=hits, batches=stats.batches, failed=len(stats.recent["failed"]))
ending()
tell(flushed=handler().flush(20), alive=listener() is not None)
"""


def test_exceptions_thrown_into_the_listener_do_not_end_the_delivery(dsn, tmp_path):
    """As ctypes users and some servers' request timeouts do, at any line of ours and of the driver."""
    ran = run(dsn, tmp_path, INJECT, options="linger=0.005, backoff_initial=0.001, backoff_max=0.01")
    print(ran.told)
    assert ran.told["hits"] >= 100
    assert ran.told["batches"] >= 50  # it was at work in between
    assert ran.told["flushed"]
    assert ran.told["alive"]
    said = [line for line in ran.program.stderr.splitlines() if "Unexpected" in line]
    print(said)
    assert_all_stored("exceptions thrown into the listener", dsn, ran, 0)
    assert len(said) == 1, ran.program.stderr


UNHEARD_OF = """
from logsluice.listener import Listener
from logsluice.sinks.link import LimitedConnection
from logsluice.sinks.postgres import PostgresSink
write, execute, fail_all, thrown = PostgresSink.write, LimitedConnection.execute, Listener._fail_all, []
class Unheard(GeneratorExit):
    pass
def throw(place):
    if place == PLACE and not thrown:
        thrown.append(place)
        raise Unheard
def writing(sink, *args):
    throw("before BEGIN")
    outcome = write(sink, *args)
    throw("after COMMIT")
    return outcome
def executing(conn, text, *args, **options):
    if b"SET position" in (text if isinstance(text, bytes) else text.encode()):
        throw("before COMMIT")
    return execute(conn, text, *args, **options)
def dealing(listener, failure):
    if AGAIN and len(thrown) == 1:
        thrown.append("again")
        raise SystemExit
    fail_all(listener, failure)
PostgresSink.write, LimitedConnection.execute, Listener._fail_all = writing, executing, dealing
orders(0, 2000)
tell(flushed=handler().flush(20), thrown=len(thrown))
ending()
"""


@pytest.mark.parametrize(
    ("place", "again"),
    [
        ("before BEGIN", False),
        ("before COMMIT", False),
        ("after COMMIT", False),
        ("before BEGIN", True),
    ],
    ids=["before", "before-commit", "after-commit", "another-while-it-deals-with-the-first"],
)
def test_an_exception_that_nobody_foresaw_in_the_sink(dsn, tmp_path, place, again):
    """A transaction that was left open must not go on with the next attempt's rows on top of its own."""
    options = "linger=0.01, backoff_initial=0.001, backoff_max=0.01"
    ran = run(dsn, tmp_path, f"PLACE, AGAIN = {place!r}, {again}\n{UNHEARD_OF}", options=options)
    assert ran.told["flushed"], ran.program.stderr
    assert ran.told["thrown"] == 1 + again
    assert len(re.findall("delivery goes on: Unheard", ran.program.stderr)) == 1, ran.program.stderr
    situation = f"an unexpected exception {place}" + ", another while it is dealt with" * again
    assert_all_stored(situation, dsn, ran, 0)


def test_ctrl_c_in_the_first_logging_call_just_as_it_starts_the_thread(dsn, tmp_path):
    """The call is broken, and the thread is not there; the next record starts it."""
    text = """
start = threading.Thread.start
def interrupted(thread):
    threading.Thread.start = start
    raise KeyboardInterrupt
threading.Thread.start = interrupted
try:
    log.info("broken")
except KeyboardInterrupt:
    tell(broken=threading.active_count())
orders(0, 2000)
ending()
"""
    ran = run(dsn, tmp_path, text, shutdown=2)
    assert ran.told["broken"] == 1
    assert_all_stored("Ctrl-C while the thread is started", dsn, ran, 0)


INTERRUPTED = """
class Interrupt(KeyboardInterrupt):
    pass

def interrupt(number, frame):
    global interrupts, armed
    interrupts += 1
    if armed:
        armed = False       # one for each call: another must not break what follows it
        raise Interrupt
armed, interrupts, other = False, 0, [0]

def work():
    while not over:
        log.info("of another thread", extra={"id": f"thread-{other[0]}"})
        other[0] += 1
        threading.Event().wait(0.001)
over = False
thread = threading.Thread(target=work)
thread.start()

signal.signal(signal.SIGALRM, interrupt)
returned, broken = [], []
end = time.monotonic() + float(os.environ["SECONDS"])
signal.setitimer(signal.ITIMER_REAL, 0.001, 0.001)
n = 0
while time.monotonic() < end:
    done = False
    try:
        armed = True
        log.info("order %s paid", n, extra={"id": str(n)})
        done = True
        armed = False
    except Interrupt:
        pass
    (returned if done else broken).append(n)
    n += 1
signal.setitimer(signal.ITIMER_REAL, 0)
over = True
thread.join()
os.write(IDS, "".join(f"{n}\\n" for n in returned).encode())
os.write(IDS, "".join(f"thread-{n}\\n" for n in range(other[0])).encode())
tell(interrupts=interrupts, broken=broken, returned=len(returned))
ending()
"""


def test_exceptions_out_of_signal_handlers_inside_logging_calls(dsn, tmp_path):
    """A thousand a second for three seconds: no lock is left behind, every call that returned is stored once."""
    ran = run(dsn, tmp_path, INTERRUPTED, SECONDS="3")
    broken = ran.told["broken"]
    print(f"{ran.told['interrupts']} interrupts, {len(broken)} calls broken, {ran.told['returned']} returned")
    assert len(broken) > 100
    found = stored_ids(dsn)
    half = [str(n) for n in broken if str(n) in found]  # the row was taken in before the call was broken
    outcome = judged("KeyboardInterrupt inside logging calls", dsn, ran, ran.ids + half)
    assert ran.program.returncode == 0, ran.program.stderr
    assert (outcome.lost, outcome.twice) == (0, 0)
