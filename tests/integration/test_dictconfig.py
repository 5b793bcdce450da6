"""
Configuring: `dictConfig` holds logging's lock while it closes old handlers, and our driver logs under that lock. Waiting
for the listener there would last for ever (DESIGN D2): the first test of this project. Programs run apart, under a limit.
"""

from __future__ import annotations

import json
import logging.config
import threading

import psycopg
import pytest

from support.processes import run_program
from support.situations import judge

# What every program below begins with. Its driver logs at DEBUG (psycopg's own logger), as under a root at DEBUG.
BEGIN = """
import json, logging, logging.config, os, sys, threading, time
DSN = os.environ["DSN"]

def config(name="db", root="DEBUG", **options):
    return {
        "version": 1, "disable_existing_loggers": False,
        "handlers": {name: {"class": "logsluice.PostgresHandler", "dsn": DSN, "linger": 0.01, "shutdown_timeout": 20,
                            "backoff_initial": 0.01, "backoff_max": 0.1, **options}},
        "root": {"level": root, "handlers": [name]},
    }

def handler():
    return logging.getLogger().handlers[0]

def say(**figures):
    print(json.dumps(figures))

logging.getLogger("psycopg").setLevel(logging.DEBUG)
log = logging.getLogger("shop")
"""
LIMIT = 60  # seconds: a program takes 1 to 3; after a deadlock it ends with the tracebacks of all threads


def run(dsn, text, **env):
    program = run_program(BEGIN + text, env={"DSN": dsn, **env}, timeout=LIMIT)
    assert program.returncode == 0, program.stderr
    assert "Traceback" not in program.stderr, program.stderr
    return program


def stored(dsn):
    """(logger, message) of everything stored, but the numbers at the end of the program's own messages sorted."""
    with psycopg.connect(dsn) as conn:
        return conn.execute("SELECT logger, message FROM logsluice.logs").fetchall()


def numbers(dsn):
    rows = stored(dsn)
    assert {logger for logger, _ in rows} == {"shop"}
    return sorted(int(message.split(" ")[1]) for _, message in rows)


BUSY = """
old, sent, lock, stop = [], [0], threading.Lock(), threading.Event()
driver = logging.getLogger("psycopg")

# The driver logs a line in every statement, as psycopg does in a few: each takes logging's lock in `isEnabledFor`
# whenever dictConfig has just cleared the cache of levels.
import logsluice.sinks.link as sink
real = sink.LimitedConnection.execute
def execute(self, *args, **options):
    logging.getLogger("psycopg.%d" % time.monotonic_ns())   # a new logger takes the lock
    driver.debug("statement")
    return real(self, *args, **options)
sink.LimitedConnection.execute = execute

logging.config.dictConfig(config())

def work():
    while not stop.is_set():
        with lock:
            log.info("r %d %s", sent[0], "x" * 100)
            sent[0] += 1

threads = [threading.Thread(target=work) for _ in range(2)]
for thread in threads:
    thread.start()
longest = 0
for _ in range(ROUNDS):
    old.append(handler())
    with lock:      # between two records: one that is in `callHandlers` meanwhile would find a closed handler
        before = sent[0]
    deadline = time.monotonic() + 10
    while sent[0] < before + 50 and time.monotonic() < deadline:
        threading.Event().wait(0.001)
    lock.acquire()
    began = time.monotonic()
    logging.config.dictConfig(config())
    longest = max(longest, time.monotonic() - began)
    lock.release()
stop.set()
for thread in threads:
    thread.join()
assert handler().flush(20)
for one in old:
    assert one._pair[1].done.wait(20)
stats = [one.stats() for one in [*old, handler()]]
say(sent=sent[0], longest=longest, stored=sum(s.stored for s in stats), noise=sum(s.own_noise for s in stats),
    dropped=sum(s.dropped for s in stats), waiting=sum(s.waiting for s in stats), busy=sum(s.offered > 0 for s in stats))
"""


def test_dictconfig_again_while_the_handler_is_busy_and_the_driver_logs(dsn):
    """Twenty times, with two threads logging on: ends at once, nothing is lost, the old handlers are drained."""
    program = run(dsn, f"ROUNDS = 20\n{BUSY}")
    figures = json.loads(program.stdout)
    print(figures, f"{program.seconds:.1f} s")
    assert figures["longest"] < 5  # of shutdown_timeout 20: it did not wait; 0.001 as a rule
    assert figures["busy"] >= 20  # the handlers were in use when they were closed
    assert figures["noise"] > 0  # the driver did log
    assert numbers(dsn) == list(range(figures["sent"]))
    assert (figures["stored"], figures["dropped"], figures["waiting"]) == (figures["sent"], 0, 0)


def test_without_the_look_at_loggings_lock_the_same_program_stands_still(dsn):
    """The control: the listener waits for the lock that dictConfig holds while it waits for the listener."""
    control = """
import logsluice.lifecycle
logsluice.lifecycle.holds_logging_lock = lambda: False
plain, ROUNDS = config, 1
def config():
    return plain(shutdown_timeout=0.7)
"""
    program = run(dsn, control + BUSY)
    assert json.loads(program.stdout)["longest"] >= 0.7


RELOADS = """
import logsluice, psycopg

class Watched(logsluice.PostgresHandler):
    # Tells which records were taken in: each thread logs at a level of its own, and drops are counted by level.
    def refused(self, level):
        return self.stats().dropped_by.get(("closed", level), 0)
    def handle(self, record):
        before = self.refused(record.levelno)
        super().handle(record)
        if record.name == "shop":     # not of the driver: it logs at DEBUG, in our thread and in this program's
            handed.append(record.id)
            if self.refused(record.levelno) == before:
                accepted.append(record.id)

def sessions():
    with psycopg.connect(DSN) as conn:
        return conn.execute("SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() "
                            "AND application_name LIKE 'logsluice%'").fetchone()[0]

def until(condition):
    end = time.monotonic() + 20
    while not condition() and time.monotonic() < end:
        threading.Event().wait(0.005)
    return condition()

def more(count=100):
    goal = len(accepted) + count
    assert until(lambda: len(accepted) >= goal)

def watched():
    new = config()
    new["handlers"]["db"]["class"] = "__main__.Watched"
    return new

def work(level):
    n = 0
    while not stop.is_set():
        sent[level] = n = n + 1
        log.log(level, "r", extra={"id": f"{level}-{n}"})
        if n % 10 == 0:
            threading.Event().wait(0.001)

handed, accepted, sent, stop = [], [], {}, threading.Event()
logging.config.dictConfig(watched())
before = threading.active_count()
threads = [threading.Thread(target=work, args=[level]) for level in (20, 25, 30, 40)]
for thread in threads:
    thread.start()
more()
longest, began, drained = 0, time.monotonic(), []
for _ in range(50):
    drained.append(handler())
    start = time.monotonic()
    logging.config.dictConfig(watched())
    longest = max(longest, time.monotonic() - start)
    more()
drained.append(handler())
logging.basicConfig(force=True, handlers=[Watched(dsn=DSN, linger=0.01, shutdown_timeout=20)])
more()
took = time.monotonic() - began
assert handler().flush(20)
live = until(lambda: sessions() == 1)               # of the live handler: the others have said goodbye
alive = until(lambda: threading.active_count() == before + 4 + 1)
last = handler()
drained.append(last)
logging.getLogger().removeHandler(last)
last.close()
stop.set()
for thread in threads:
    thread.join()
closed = sum(count for one in drained for (why, level), count in one.stats().dropped_by.items() if level > 10)
say(ids=accepted, closed=closed, handed=len(handed), sent=sum(sent.values()), longest=longest, took=took, live=live,
    alive=alive, gone=until(lambda: sessions() == 0), threads=threading.active_count() - before,
    waiting=sum(one.stats().waiting for one in drained),
    busy=sum(one.stats().stored > 0 for one in drained))
"""


def test_fifty_reloads_under_load_lose_nothing_and_leave_nothing(dsn):
    """
    Four threads log on; then `basicConfig(force=True)`, and at last the handler is taken off.

    What logging hands to a handler that is closed already is counted; what it hands to none, in the moment between
    two configurations, no handler can know of.
    """
    program = run(dsn, RELOADS)
    figures = json.loads(program.stdout)
    ids = figures.pop("ids")
    print(figures)
    assert figures["busy"] == 52  # each handler was in use when it was closed
    assert figures["longest"] < 5  # seconds, of shutdown_timeout 20; a few milliseconds as a rule
    assert figures["live"]
    assert figures["alive"]
    assert figures["gone"]
    assert figures["threads"] == 0
    assert figures["handed"] - figures["closed"] == len(ids)
    outcome = judge("50 reloads by dictConfig under load", dsn, ids, seconds=figures["took"])
    assert (outcome.lost, outcome.twice, figures["waiting"]) == (0, 0, 0)


def test_attached_to_parent_and_child_it_stores_a_record_twice_as_logging_hands_it_on_twice(dsn):
    """Logging's own rule, for any handler: `propagate: False` at the child, or the handler at the parent alone."""
    run(
        dsn,
        """
logging.config.dictConfig(config())
log.addHandler(handler())
log.info("r 0")
log.propagate = False
log.info("r 1")
""",
    )
    assert numbers(dsn) == [0, 0, 1]


@pytest.mark.parametrize("call", ["flush", "close"])
def test_flush_and_close_under_loggings_lock_return_at_once_and_exit_waits(dsn, call):
    """The server does not answer meanwhile (its table is locked): waiting would take until the end of the limit."""
    program = run(
        dsn,
        f"""
import psycopg
logging.config.dictConfig(config(level="INFO"))  # psycopg in the main thread logs as well
for n in range(100):
    log.info("r %d", n)
assert handler().flush(20)
with psycopg.connect(DSN) as other:
    other.execute("LOCK TABLE logsluice.logs IN ACCESS EXCLUSIVE MODE")
    for n in range(100, 200):
        log.info("r %d", n)
    one = handler()
    with logging._lock:
        began = time.monotonic()
        result = one.{call}()
        took = time.monotonic() - began
    waiting = one.stats().waiting  # before the server goes on
say(took=took, result=str(result), waiting=waiting)
""",
    )
    figures = json.loads(program.stdout)
    assert figures["took"] < 5  # seconds, of shutdown_timeout 20
    assert figures["result"] == {"flush": "False", "close": "None"}[call]
    assert figures["waiting"] == 100  # the fault was there
    assert numbers(dsn) == list(range(200))  # at exit everything arrived


def test_the_same_dictionary_twice(dsn):
    run(
        dsn,
        """
same = config()
for n in range(4):
    logging.config.dictConfig(same)
    for i in range(100):
        log.info("r %d", n * 100 + i)
assert same == config()
""",
    )
    assert numbers(dsn) == list(range(400))


def test_two_handlers_store_both(dsn):
    run(
        dsn,
        """
both = config("one")
both["handlers"]["two"] = {**both["handlers"]["one"], "level": "WARNING"}
both["root"]["handlers"] = ["one", "two"]
logging.config.dictConfig(both)
for n in range(100):
    log.log(logging.INFO if n % 2 else logging.WARNING, "r %d", n)
names = sorted(t.name for t in threading.enumerate())
assert names == ["MainThread", "logsluice-one", "logsluice-two"], names
""",
    )
    assert numbers(dsn) == sorted([*range(100), *range(0, 100, 2)])
    with psycopg.connect(dsn) as conn:
        assert conn.execute("SELECT stored FROM logsluice.stream ORDER BY 1").fetchall() == [(50,), (100,)]


def test_a_handler_closed_before_its_first_record_starts_nothing(dsn):
    program = run(
        dsn,
        """
logging.config.dictConfig(config())
one = handler()
one.close()
log.info("r 0")
assert one.flush(1)
say(dropped=one.stats().dropped, threads=threading.active_count())
""",
    )
    assert json.loads(program.stdout) == {"dropped": 1, "threads": 1}
    assert stored(dsn) == []


def test_configuring_opens_and_starts_nothing(dsn):
    program = run(
        dsn.replace("127.0.0.1", "192.0.2.1"),  # RFC 5737: nobody answers there
        """
began = time.monotonic()
logging.config.dictConfig(config(shutdown_timeout=0.1))
say(took=time.monotonic() - began, threads=threading.active_count(), pair=handler()._pair is None)
""",
    )
    figures = json.loads(program.stdout)
    assert figures["took"] < 5
    assert (figures["threads"], figures["pair"]) == (1, True)


def test_a_driver_that_logs_under_a_root_at_debug_feeds_nothing_back(dsn):
    """psycopg logs every broken pipeline, pool and retry; stored, each would make a batch that makes a record."""
    program = run(
        dsn,
        """
import logsluice.sinks.link as sink
driver = logging.getLogger("psycopg")
real = sink.LimitedConnection.execute
def execute(self, *args, **options):
    driver.debug("statement %r", args[0])
    return real(self, *args, **options)
sink.LimitedConnection.execute = execute
logging.config.dictConfig(config())
for n in range(100):
    log.info("r %d", n)
logging.getLogger("logsluice").warning("r 777")          # our namespace is never stored
logging.getLogger("logsluice.anything").warning("r 778")
assert handler().flush(20)
before = handler().stats()
threading.Event().wait(0.3)                              # 30 times linger: feedback would have come round by now
after = handler().stats()
say(noise=before.own_noise, still=after.own_noise - before.own_noise, batches=after.batches - before.batches,
    offered=after.offered, stored=after.stored)
""",
    )
    figures = json.loads(program.stdout)
    assert figures["noise"] > 5
    assert (figures["still"], figures["batches"]) == (0, 0)  # idle
    assert (figures["offered"], figures["stored"]) == (100, 100)
    assert numbers(dsn) == list(range(100))


def test_records_logged_while_the_program_ends_are_stored(dsn):
    run(
        dsn,
        """
import atexit
logging.config.dictConfig(config())
atexit.register(lambda: log.info("r 2"))
log.info("r 0")
class Late:
    def __del__(self):
        log.info("r 1")
late = Late()
del late
""",
    )
    assert numbers(dsn) == [0, 1, 2]


def test_a_filter_that_chokes_on_the_drivers_records_does_not_break_the_connection(dsn):
    """It takes args[0] of every record; psycopg's own have none, and are logged by our thread as it connects."""
    run(
        dsn,
        """
class Odd(logging.Filter):
    def filter(self, record):
        return record.args[0] % 2 == 1
logging.config.dictConfig(config())
handler().addFilter(Odd())
for n in range(10):
    log.info("r %d", n)
assert handler().stats().offered == 5
""",
    )
    assert numbers(dsn) == [1, 3, 5, 7, 9]


@pytest.mark.parametrize(
    ("option", "value", "says"),
    [
        ("batch_sise", 1, "did you mean 'batch_size'"),
        ("nonsense", 1, "known options"),
        ("connections", 17, "a whole number from 1 to 16"),
        ("connections", 5, "connections (5): make it at least 83886080"),
        ("shard_by", "session_id", "for an extra write 'extra.session_id'"),
        ("shard_by", "ts", "is no key"),
        ("linger", -1, "linger must be seconds of at least 0.001"),
        ("when_full", "wait", "'drop', 'block'"),
        ("keep_level", "LOUD", "keep_level"),
        ("dsn_env", "NOT_SET_ANYWHERE", "give dsn or dsn_env"),
        ("table", "x" * 64, "64 bytes"),
        ("capacity_bytes", 2**20, "max_frame_bytes"),
    ],
)
def test_a_wrong_option_is_said_by_dictconfig_which_can_then_be_called_again(option, value, says):
    """logging closes what the failed call left half made: that must not fail in its turn."""
    handler = {"class": "logsluice.PostgresHandler", "dsn": ""}
    wrong = {"version": 1, "disable_existing_loggers": False, "handlers": {"db": {**handler, option: value}}}
    threads = threading.active_count()
    with pytest.raises(ValueError, match="db") as caught:
        logging.config.dictConfig(wrong)
    assert says in str(caught.value.__cause__)
    logging.config.dictConfig({"version": 1, "disable_existing_loggers": False, "handlers": {"db": handler}})
    logging.config.dictConfig({"version": 1, "disable_existing_loggers": False})
    assert threading.active_count() == threads
