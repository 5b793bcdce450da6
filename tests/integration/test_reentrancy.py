"""
Logging from where no lock may be waited for, and logging that could feed back into itself.

A signal handler, `__del__`, a weak reference's callback, `__repr__` of what is being logged, another handler's emit, a
subinterpreter; the driver at DEBUG, warnings, a stderr that is a logger or gone. Programs run apart, judged as in
test_endings.py.
"""

from __future__ import annotations

import logging
import os
import shlex
import signal
import subprocess
import sys

import psycopg
import pytest

from support.proxy import Proxy
from support.shop import LIMIT, Shop
from support.situations import judge
from support.written import BEGIN, run


def judged(situation, dsn, ran, logged=None, note=""):
    """Every record that was logged is in the table once."""
    outcome = judge(situation, dsn, ran.ids, seconds=ran.seconds, note=note)
    assert (outcome.lost, outcome.twice) == (0, 0)
    assert outcome.logged == logged or logged is None
    return outcome


# --- signals --------------------------------------------------------------------------------------------------------

SIGNALS = """
import itertools
configure(OPTIONS)
numbers, depth, deepest = itertools.count(), 0, 0

def on_signal(*_):
    global depth, deepest
    if depth >= 20:                      # on a slow machine the next signal comes before this one is done with
        return
    depth += 1
    deepest = max(deepest, depth)
    order(f"signal-{next(numbers)}")
    depth -= 1

signal.signal(signal.SIGALRM, on_signal)
order("main-0")
assert handler().flush(20)               # connecting takes time, and is not what is measured
end, n = time.monotonic() + 2.5, 1
signal.setitimer(signal.ITIMER_REAL, 1 / 3000, 1 / 3000)
while time.monotonic() < end:
    order(f"main-{n}")
    n += 1
    if n % 500 == 0:
        assert handler().flush(20)       # it waits, and is interrupted by records
signal.setitimer(signal.ITIMER_REAL, 0)
tell(signals=next(numbers), main=n, deepest=deepest, dropped=handler().stats().dropped)
"""


@pytest.mark.parametrize(
    ("name", "options"),
    [("buffer with room", "linger=0.05"), ("buffer full, when_full=block", "capacity=200, when_full='block', block_timeout=20")],
    ids=["room", "full"],
)  # fmt: skip
def test_logging_from_a_signal_handler(dsn, tmp_path, name, options):
    """3,000 a second, into a main thread that does nothing but log: a queue with a lock stands still at once."""
    ran = run(dsn, tmp_path, SIGNALS.replace("OPTIONS", options))
    print(ran.told)
    assert ran.told["signals"] > 500  # enough of them came while a record was under way
    assert ran.told["dropped"] == 0
    judged(f"logging in a signal handler, 3 kHz, {name}", dsn, ran, ran.told["signals"] + ran.told["main"])


@pytest.mark.parametrize(
    "place", ["logsluice.listener.Listener.finish", "logsluice.buffer.Buffer.close", "logging.Handler.close"]
)
def test_sigterm_inside_close_drains(dsn, tmp_path, place):
    """A worker of a Pool is told to end, and ends, when the pool's SIGTERM comes: each line of close may be the one."""
    owner, _, name = place.rpartition(".")
    module, _, owner = owner.rpartition(".")
    ran = run(
        dsn,
        tmp_path,
        f"""
import logsluice, {module}
configure()
logsluice.drain_on_sigterm()
orders("r", 100)
owner = {module}.{owner}
real, sent = owner.{name}, []
def interrupted(self, *args):
    if not sent and threading.current_thread() is threading.main_thread():
        sent.append(1)
        tell(waiting=handler().stats().waiting)
        os.kill(os.getpid(), signal.SIGTERM)      # its handler runs here
    return real(self, *args)
owner.{name} = interrupted
handler().close()
""",
        status=-signal.SIGTERM,
    )
    assert ran.told["waiting"] == 100
    judged(f"SIGTERM inside close, at {place.removeprefix('logsluice.')}, drain_on_sigterm", dsn, ran, 100)


# --- the garbage collector ------------------------------------------------------------------------------------------

GARBAGE = """
import weakref
gc.set_threshold(50)
configure(linger=0.01)
log.info("first")
own, where = [], {"del": 0, "callback": 0, "finalize": 0}
from logsluice.lifecycle import OWN_THREADS       # the listener's, and with a journal the keeper's
assert until(lambda: handler()._pair[1].thread_id)

def logged(kind, n):
    where[kind] += 1
    if threading.get_ident() in OWN_THREADS:      # the collector runs on whatever thread makes objects
        own.append(n)
        log.info("from the collector, on a thread of ours")
    else:
        order(f"{kind}-{n}")

class Cycle:
    def __init__(self, n):
        self.me, self.n = self, n
    def __del__(self):
        logged("del", self.n)

class Watched:
    pass

watchers = []
for n in range(3000):
    Cycle(n)
    watched = Watched()
    watched.me = watched
    watchers.append(weakref.ref(watched, lambda _, n=n: logged("callback", n)))
    weakref.finalize(watched, logged, "finalize", n)
    order(f"main-{n}")
    if n % 300 == 0:
        assert handler().flush(20)
gc.collect()
assert handler().flush(20)
tell(own=len(own), where=where, noise=handler().stats().own_noise)
last = Watched()
weakref.finalize(last, order, "at-exit")          # runs at exit, as does that of the last `watched`
"""


def test_logging_from_the_garbage_collector(dsn, tmp_path):
    """What it logs on the listener's own thread is counted as our noise, as everything on that thread is."""
    ran = run(dsn, tmp_path, GARBAGE)
    print(ran.told)
    assert min(ran.told["where"].values()) > 2900
    assert ran.told["noise"] >= ran.told["own"]
    judged(
        "logging in __del__, weak references' callbacks and finalizers, while garbage is collected", dsn, ran,
        3000 + sum(ran.told["where"].values()) - ran.told["own"] + 2,
        note="on the listener's own thread they are counted as own_noise",
    )  # fmt: skip


# --- the program's own code within a logging call -------------------------------------------------------------------

CHATTY = """
import itertools
numbers = itertools.count()

class Chatty:
    def __init__(self, how):
        self.how = how
    def say(self):
        order(f"{self.how}-{next(numbers)}")
        return self.how
    __repr__ = __str__ = say

class Format(logging.Formatter):
    def format(self, record):
        if record.name == "formatted":
            order(f"format-{next(numbers)}")
        return super().format(record)

class Filter(logging.Filter):
    def filter(self, record):
        if record.name == "filtered":
            order(f"filter-{next(numbers)}")
        return True

def outer(name, logger=log, text="outer", *args, **extra):
    logger.info(text, *args, extra={"id": name, **extra})
    wrote(name)

configure()
for n in range(20):
    outer(f"argument-{n}-of", log, "%s and %r", Chatty("str"), Chatty("repr"))
    outer(f"extra-{n}-of", chatty=Chatty("extra"))
    outer(f"nested-{n}-of", chatty={"a": [Chatty("deep")]})
    outer(f"message-{n}-of", log, Chatty("message"))
    try:
        raise ValueError(Chatty("exception"))
    except ValueError:
        log.exception("failed", extra={"id": f"exception-{n}-of"})
        wrote(f"exception-{n}-of")
handler().addFilter(Filter())
handler().setFormatter(Format())
for n in range(20):
    outer(f"formatted-{n}", logging.getLogger("formatted"))
    outer(f"filtered-{n}", logging.getLogger("filtered"))
tell(inner=next(numbers))
"""


def test_logging_inside_what_a_logging_call_calls(dsn, tmp_path):
    ran = run(dsn, tmp_path, CHATTY)
    kinds = {name.split("-")[0] for name in ran.ids if not name.endswith("-of")}
    assert {"str", "repr", "extra", "deep", "message", "exception", "format", "filter"} <= kinds
    judged("logging in __str__ and __repr__ of what is logged, in a filter and a formatter", dsn, ran,
           140 + ran.told["inner"])  # fmt: skip


def test_an_object_whose_repr_logs_itself(dsn, tmp_path):
    """It never comes to an end but by RecursionError, which logging calls swallow; the program goes on, the law holds."""
    ran = run(
        dsn,
        tmp_path,
        """
sys.setrecursionlimit(400)
configure()
class Endless:
    def __repr__(self):
        log.info("and again", extra={"again": self})
        return "endless"
log.info("once", extra={"again": Endless()})
sys.setrecursionlimit(1000)
orders("after")
assert handler().flush(20)
stats = handler().stats()
tell(offered=stats.offered, accounted=stats.stored + stats.dropped + stats.dead + stats.waiting, stored=stats.stored)
""",
    )
    assert ran.told["offered"] == ran.told["accounted"] > 20
    judged("an object whose __repr__ logs itself, and 10 records after it", dsn, ran, 10)


@pytest.mark.parametrize("place", ["before", "after"])
def test_logging_inside_another_handlers_emit(dsn, tmp_path, place):
    ran = run(
        dsn,
        tmp_path,
        f"""
class Audit(logging.Handler):
    def emit(self, record):
        if record.name == "shop.orders":
            logging.getLogger("audit").info("seen", extra={{"id": f"audit-of-{{record.id}}"}})
            wrote(f"audit-of-{{record.id}}")
configure()
logging.getLogger().handlers.insert({0 if place == "before" else 1}, Audit())
handler = lambda: [one for one in logging.getLogger().handlers if not isinstance(one, Audit)][0]
orders("r", 100)
""",
    )
    judged(f"logging in the emit of another handler, {place} ours", dsn, ran, 200)


# --- our own noise --------------------------------------------------------------------------------------------------


def test_the_programs_own_use_of_the_driver_is_stored(dsn, tmp_path):
    """Only records of the listener's thread and of our own namespace are left out, not those of a library we use."""
    ran = run(
        dsn,
        tmp_path,
        """
import psycopg_pool
configure(linger=0.01)
seen = []
class Count(logging.Handler):
    def handle(self, record):
        if record.name.startswith("psycopg") and not record.threadName.startswith("logsluice"):
            seen.append(record.name)
logging.getLogger().addHandler(Count())
logging.getLogger().setLevel(logging.DEBUG)
logging.getLogger("psycopg").setLevel(logging.DEBUG)     # which sets itself to WARNING
orders("before")
with psycopg_pool.ConnectionPool(DSN, min_size=2, open=True) as pool:
    pool.wait()
    with pool.connection() as conn:
        conn.execute("SELECT 1")
orders("after")
assert handler().flush(20)
stats = handler().stats()
tell(seen=len(seen), offered=stats.offered, batches=stats.batches)
threading.Event().wait(0.3)              # 30 times linger: feedback would have come round by now
tell(later=handler().stats().batches)
""",
    )
    assert ran.told["seen"] > 3
    assert ran.told["offered"] == 20 + ran.told["seen"]
    assert ran.told["later"] == ran.told["batches"]
    with psycopg.connect(dsn) as conn:
        stored = conn.execute("SELECT count(*) FROM logsluice.logs WHERE logger LIKE 'psycopg%'").fetchone()
    assert stored == (ran.told["seen"],)
    judged("root at DEBUG, the program uses psycopg and a pool itself", dsn, ran, 20)


def test_an_outage_under_a_root_at_debug_makes_no_rows(dsn):
    """Every attempt to connect is a record of the driver; stored, they would fill the buffer while nothing drains."""
    root, driver = logging.getLogger(), logging.getLogger("psycopg")
    before = root.level, driver.level
    with Proxy(dsn) as proxy, Shop(proxy.dsn, read=dsn) as shop:
        root.addHandler(shop.handler)
        root.setLevel(logging.DEBUG)
        driver.setLevel(logging.DEBUG)
        try:
            shop.log(20)
            assert shop.flush()
            noise = shop.stats.own_noise
            proxy.refuse()
            proxy.cut()
            shop.log(20)
            shop.await_failure(count=10)
            assert shop.stats.own_noise > noise
            assert shop.stats.offered == 40
            proxy.heal()
            assert shop.flush()
        finally:
            root.removeHandler(shop.handler)
            root.setLevel(before[0])
            driver.setLevel(before[1])
        shop.check()
        assert shop.query("SELECT count(*) FROM logsluice.logs") == [(40,)]


def test_warnings_captured_into_logging_do_not_feed_back(dsn, tmp_path):
    """With -W always a warning inside our own thread is a record each time; one a batch would make the next batch."""
    ran = run(
        dsn,
        tmp_path,
        """
import socket, warnings
import logsluice.sinks.link as sink
real, warned = sink.LimitedConnection.execute, []
def execute(self, *args, **options):
    warned.append(1)
    socket.socket()                      # ResourceWarning: unclosed
    warnings.warn("inside our thread", DeprecationWarning)
    return real(self, *args, **options)
sink.LimitedConnection.execute = execute
logging.captureWarnings(True)
configure(linger=0.01)
for n in range(100):
    order(n)
    warnings.warn(f"w {n}", UserWarning)
assert handler().flush(20)
before = handler().stats()
threading.Event().wait(0.3)              # 30 times linger
after = handler().stats()
tell(warned=len(warned), noise=after.own_noise, batches=after.batches - before.batches, offered=after.offered)
""",
        PYTHONWARNINGS="always",
    )
    assert ran.told["warned"] > 0
    assert ran.told["noise"] >= 2 * ran.told["warned"]
    assert (ran.told["batches"], ran.told["offered"]) == (0, 200)
    judged("warnings captured into logging, -W always", dsn, ran, 100)


# --- stderr ---------------------------------------------------------------------------------------------------------

WRITER = """
class Writer:
    '''What programs put in the place of stderr.'''
    def __init__(self):
        self.depth = self.deepest = self.calls = 0
    def write(self, text):
        self.calls += 1
        self.depth += 1
        self.deepest = max(self.deepest, self.depth)
        if self.depth < 100:
            logging.getLogger("stderr").error(text)
        self.depth -= 1
    def flush(self):
        pass

configure(dsn="host=127.0.0.1 port=1 dbname=nobody", shutdown_timeout=0.2, linger=0.01)
writer = Writer()
REPLACE
orders("r")
odd = logging.LogRecord("shop", logging.INFO, "", 1, "x", None, None)
del odd.__dict__["levelno"], odd.__dict__["process"]
handler().handle(odd)                                    # said on the caller's thread
print("to stderr", file=sys.stderr)
assert until(lambda: handler().stats().retries >= 5)     # said on the listener's
stats = handler().stats()
tell(deepest=writer.deepest, calls=writer.calls, offered=stats.offered, noise=stats.own_noise)
logging.shutdown()
tell(deepest=writer.deepest)
os._exit(0)
"""


@pytest.mark.parametrize(
    ("replace", "ours"),
    [("sys.stderr = writer", 0), ("sys.stderr = sys.__stderr__ = writer", 1)],
    ids=["stderr", "the-original-too"],
)
def test_a_stderr_that_is_a_logger_does_not_feed_back(dsn, tmp_path, replace, ours):
    """What we say about a failing sink would be a record, which fails, which we say."""
    ran = run(dsn, tmp_path, WRITER.replace("REPLACE", replace))
    print(ran.told)
    assert ran.told["deepest"] <= 1
    assert ran.told["calls"] >= 2 + ours  # print writes twice; ours are limited in rate
    assert ran.told["calls"] < 10
    assert ran.told["offered"] <= 11 + ran.told["calls"]
    assert ours or "not stored yet" in ran.program.stderr


@pytest.mark.parametrize(
    "gone", ["sys.stderr = None", "sys.stderr = sys.__stderr__ = None", "sys.stderr.close()", "os.close(2)"]
)
def test_without_a_stderr_everything_is_stored(dsn, tmp_path, gone):
    """A daemon's. A closed descriptor's number goes to the next socket: ours, on which nothing else may be written."""
    ran = run(
        dsn,
        tmp_path,
        f"""
{gone}
configure(linger=0.01)
for n in range(20):
    orders(f"r{{n}}")
    assert handler().flush(20)
stats = handler().stats()
tell(retries=stats.retries, connection=handler()._pair[1].routes[0].sink.link.conn.fileno())
""",
        LOGSLUICE_DEBUG="1",
    )
    print(ran.told)
    if gone == "os.close(2)":
        assert ran.told["connection"] == 2
    assert ran.told["retries"] == 0
    judged(f"no stderr: {gone}", dsn, ran, 200)


def test_a_program_started_without_a_stderr_stores_everything(dsn, tmp_path):
    """Python has no sys.stderr then."""
    program, ids = tmp_path / "program.py", tmp_path / "ids"
    program.write_text(
        BEGIN
        + """
assert sys.stderr is None
configure(linger=0.01)
orders("r", 100)
assert handler().flush(20)
""",
        encoding="utf-8",
    )
    command = shlex.join([sys.executable, str(program)]) + " 2>&-"
    env = {**os.environ, "DSN": dsn, "IDS": str(ids), "LOGSLUICE_DEBUG": "1"}
    assert subprocess.run(command, shell=True, env=env, timeout=LIMIT, check=False).returncode == 0
    outcome = judge("a program started without a stderr", dsn, ids.read_text(encoding="utf-8").split())
    assert (outcome.logged, outcome.lost, outcome.twice) == (100, 0, 0)


# --- subinterpreters ------------------------------------------------------------------------------------------------

SUBINTERPRETER = """
try:
    import _interpreters as interpreters
except ImportError:
    import _xxsubinterpreters as interpreters
configure(linger=0.01)
orders("main")
inside = '''
import os, sys, traceback
sys.path[:] = %r
try:
    import logging, threading
    import logsluice
    handler = logsluice.PostgresHandler(dsn=os.environ["DSN"], linger=0.01, shutdown_timeout=20)
    logging.getLogger().addHandler(handler)
    for n in range(10):
        logging.warning("inside", extra={"id": "inside-%%d" %% n})
        os.write(%d, b"inside-%%d\\\\n" %% n)
    flushed = handler.flush(20)
    handler.close()
    text = "flushed %%s, %%s" %% (flushed, handler.stats().stored)
except BaseException as error:
    text = "%%s: %%s" %% (type(error).__name__, error)
os.write(%d, text.encode())
''' % (sys.path, IDS, (pipe := os.pipe())[1])
one = interpreters.create()
try:
    interpreters.run_string(one, inside)
    os.close(pipe[1])
    tell(inside=os.read(pipe[0], 10_000).decode())
    interpreters.destroy(one)
finally:
    orders("after")
"""


def test_a_subinterpreter_crashes_nothing(dsn, tmp_path):
    """psycopg refuses to be imported there from Python 3.12 on; threads that are daemons are refused before."""
    ran = run(dsn, tmp_path, SUBINTERPRETER, PYTHONWARNINGS="ignore")
    print(ran.told, ran.program.stderr)
    assert ran.told["inside"]
    judged("a handler in a subinterpreter", dsn, ran, note=ran.told["inside"][:200])
    assert {f"main-{n}" for n in range(10)} | {f"after-{n}" for n in range(10)} <= set(ran.ids)
