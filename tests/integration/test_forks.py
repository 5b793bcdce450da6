"""
Fork: what the child does with what it inherited, and what becomes of the parent's records.

Programs run apart, written down and judged as in test_endings.py. A child logs, and ends as its program ends; one that
hangs is ended after a limit, and its tracebacks are shown.
"""

from __future__ import annotations

import psycopg
import pytest

from support.howto import Page, Service
from support.situations import judge, stored_ids
from support.written import STORM, run

FORKS = 60  # 500 of them are in tests/acceptance/test_forks.py
HOOK_MICROSECONDS = 100  # what the fork's hook may cost; asserted with ten times the room


def judged(situation, dsn, ran, logged, note=""):
    """Every record that was logged is in the table once."""
    outcome = judge(situation, dsn, ran.ids, seconds=ran.seconds, note=note)
    assert (outcome.logged, outcome.lost, outcome.twice) == (logged, 0, 0)


# --- locks ----------------------------------------------------------------------------------------------------------

# A library of the program, its stderr and the driver: whatever has a lock that a child could need.
LOCKS = """
import contextlib, _imp, multiprocessing.util

class Other(logging.Handler):
    def emit(self, record):
        if inside is not None and record.levelno == logging.CRITICAL:
            inside.set()
            let_go.wait(20)

configure(linger=0.05)
inside = None
logging.getLogger().addHandler(Other())
orders("before", 3)
assert handler().flush(20)                       # from here on there is a connection, asleep in its lock's reach
pair = handler()._pair
conn = pair[1].routes[0].sink.link.conn
held, let_go, threads = threading.Event(), threading.Event(), []
stderr = os.dup(2)

def hold(take, give):
    def work():
        take()
        held.set()
        let_go.wait(20)
        give()
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    assert held.wait(20)

def lock(one):
    hold(one.acquire, one.release)
    assert not one.acquire(False)                # held, by another thread

def until_fork(one_acquire, one_release):
    '''Python itself takes this lock before it forks: held, the fork waits.'''
    hold(one_acquire, one_release)
    threading.Timer(0.3, let_go.set).start()

def emitting():
    global inside
    inside = threading.Event()
    threading.Thread(target=log.critical, args=("inside",), kwargs={"extra": {"id": "inside"}}, daemon=True).start()
    wrote("inside")
    assert inside.wait(20)
    assert not handler_lock(1).acquire(False)

def full_stderr():
    '''A thread is within a write to stderr, and has its buffer's lock: nobody reads the pipe.'''
    def work():
        held.set()
        try:
            sys.stderr.buffer.write(b"x" * 300_000)  # bytes: more than a pipe holds
        except BrokenPipeError:
            pass
    def end():
        let_go.wait(20)
        os.close(read)                           # else the interpreter could not end: it flushes stderr
    read, write = os.pipe()
    os.dup2(write, 2)
    threads.append(threading.Thread(target=work, daemon=True))
    threads[0].start()
    threading.Thread(target=end, daemon=True).start()
    assert held.wait(20)
    assert until(lambda: select.select([read], [], [], 0)[0]) and not select.select([], [write], [], 0.2)[1]

def handler_lock(n):
    return logging.getLogger().handlers[n].lock

def in_flight():
    '''The listener has the connection's lock: it waits for a table that another session has locked.'''
    import psycopg
    other = psycopg.connect(DSN)
    other.execute("LOCK TABLE logsluice.logs IN ACCESS EXCLUSIVE MODE")
    order("in-flight")
    assert until(conn.lock.locked)
    def work():
        let_go.wait(20)
        other.close()
    threading.Thread(target=work, daemon=True).start()

def asleep():
    '''The listener has no record and waits in its queue, whose lock is held then.'''
    assert pair[1].routes[0].intake.wake_level < logging.DEBUG or until(
        lambda: pair[1].routes[0].intake.wake_level < logging.DEBUG)

before = time.monotonic()
"""
CHILD_LOGS = """
def child():
    os.dup2(stderr, 2)                           # a full pipe would hold up any program
    orders("child")

pid = fork(child)
tell(forked=time.monotonic() - before)
if not SHARED:
    let_go.set()
tell(ended=ended(pid, 10))
let_go.set()
for thread in threads:
    thread.join(20)
os.dup2(stderr, 2)
orders("after")
assert handler().flush(20)
"""


@pytest.mark.parametrize(
    ("name", "hold", "more"),
    [
        ("the handler's lock", "lock(handler_lock(0))", 0),
        ("logging's lock", "until_fork(logging._lock.acquire, logging._lock.release)", 0),
        ("the import lock", "until_fork(_imp.acquire_lock, _imp.release_lock)", 0),
        ("the lock of a handler within emit", "emitting()", 1),
        ("threading's lock", "lock(threading._active_limbo_lock)", 0),
        ("the lock of stderr's buffer", "full_stderr()", 0),
        ("the connection's lock", "lock(conn.lock)", 0),
        ("the connection's lock, a batch in flight", "in_flight()", 1),
        ("the listener's queue", "asleep()", 0),
    ],
    ids=lambda value: value.replace(" ", "-").replace(",", "") if isinstance(value, str) and "(" not in value else "",
)  # fmt: skip
def test_a_lock_held_at_the_fork_does_not_hold_up_the_child(dsn, tmp_path, name, hold, more):
    # threading's and the connection's lock stop the parent as well: they are let go once the child runs alone.
    shared = name in {"the handler's lock", "the lock of stderr's buffer", "the lock of a handler within emit"}
    ran = run(
        dsn, tmp_path, f"{LOCKS}\nSHARED = {shared}\n{hold}\n{CHILD_LOGS}", LOGSLUICE_DEBUG="1", PYTHONWARNINGS="ignore"
    )
    assert ran.told["ended"], ran.program.stderr
    if "until_fork" in hold:
        assert ran.told["forked"] > 0.2  # it waited: the lock was held
    judged(f"fork while another thread has {name}", dsn, ran, 23 + more)


# Notes where each lock was made and taken; `reinit` is what Python does with its own in a child.
WATCHED_LOCKS = """
import _thread, os, sys
OLD = []

def lines():
    frame, found = sys._getframe(2), []
    while frame is not None and len(found) < 5:
        found.append(f"{frame.f_code.co_filename}:{frame.f_lineno}")
        frame = frame.f_back
    return found

class Watched:
    def __init__(self):
        self.real, self.pid, self.made = self.make(), os.getpid(), lines()
    def acquire(self, *args, **options):
        if self.pid != os.getpid():
            OLD.append({"made": self.made, "taken": lines()})
        return self.real.acquire(*args, **options)
    __enter__ = acquire
    def __exit__(self, *exception):
        self.real.release()
    def _at_fork_reinit(self):
        self.pid = os.getpid()
        self.real._at_fork_reinit()
    def __getattr__(self, name):
        return getattr(self.real, name)

class Lock(Watched):
    make = staticmethod(_thread.allocate_lock)
class RLock(Watched):
    make = staticmethod(_thread.RLock)

_thread.allocate_lock = _thread.allocate = Lock
_thread.RLock = RLock
import threading
threading._allocate_lock = threading.Lock = Lock
threading._CRLock = RLock
threading.RLock = lambda: RLock()
import multiprocessing.util
"""
CHILD_OF_WATCHED = """
configure(linger=0.05)
order("parent")
assert handler().flush(20)
pid = os.fork()
if pid == 0:
    orders("child")
    log.error("all of it", exc_info=ValueError("x"), extra={"nested": {"a": [1]}, "object": object(), "id": "odd"})
    wrote("odd")
    assert handler().flush(20)
    logging.shutdown()
    inherited = Lock()
    inherited.pid = 0
    with inherited:                  # it is seen when it happens
        pass
    tell(old=OLD)
    os._exit(0)
assert ended(pid)
"""


def test_a_child_takes_no_lock_that_is_older_than_itself(dsn, tmp_path):
    """But for those that Python makes anew in each child: then it is no matter who held them."""
    ran = run(dsn, tmp_path, CHILD_OF_WATCHED, before=WATCHED_LOCKS, PYTHONWARNINGS="ignore")
    *old, control = ran.told["old"]
    assert "program.py" in control["taken"][0]
    assert old == []
    judged("fork: first record, exception, flush and close in the child", dsn, ran, 12)


@pytest.mark.parametrize("given", ["dsn=DSN", "dsn=lambda: DSN"], ids=["text", "callable"])
def test_the_first_record_of_a_process_imports_nothing(dsn, tmp_path, given):
    """A module that another thread imports at the fork stays half imported in the child, and its lock stays held."""
    text = f"""
import logsluice
logging.getLogger().setLevel(logging.INFO)
logging.getLogger().addHandler(logsluice.PostgresHandler({given}, linger=0.05, **GIVEN))
before = set(sys.modules)
order("first")
log.error("first", exc_info=ValueError("x"), extra={{"nested": {{"a": [1]}}, "object": object()}})
assert handler().flush(20)
tell(imported=sorted(set(sys.modules) - before))
"""
    ran = run(dsn, tmp_path, text)
    assert ran.told["imported"] == []


# OpenSSL's locks are none that Python knows: the test stands where they are taken, in the steps of psycopg's generators.
INSIDE_LIBPQ = """
from psycopg import generators
inside, steps = threading.Event(), []
connect = generators.connect
def slow_connect(*args, **options):
    steps.append("in")
    inside.set()
    threading.Event().wait(0.3)      # the fault: a lookup, a handshake
    steps.append("out")
    return (yield from connect(*args, **options))
generators.connect = slow_connect
configure(linger=0.05)
order("first")
assert inside.wait(20)
began = time.monotonic()
pid = os.fork()
if pid == 0:
    tell(steps=steps)
    order("child")
    assert handler().flush(20)
    os._exit(0)
tell(waited=time.monotonic() - began)
assert ended(pid)
order("after")
assert handler().flush(20)
"""


def test_a_fork_waits_until_the_listener_is_out_of_libpq(dsn, tmp_path):
    """A lock that OpenSSL had there would be held for ever in the child, which could never connect."""
    ran = run(dsn, tmp_path, INSIDE_LIBPQ, PYTHONWARNINGS="ignore")
    assert ran.told["steps"] == ["in", "out"]
    assert 0 < ran.told["waited"] < 10
    judged("fork while the listener connects", dsn, ran, 3)


# --- many forks -----------------------------------------------------------------------------------------------------


def test_many_forks_while_threads_log(dsn, tmp_path):
    ran = run(dsn, tmp_path, STORM, args=[str(FORKS)], PYTHONWARNINGS="ignore")
    assert ran.told["late"] == 0, ran.program.stderr
    assert min(ran.told["sent"]) > 10  # all eight threads logged meanwhile
    judged(f"fork, {FORKS} children while 8 threads log", dsn, ran, FORKS * 10 + sum(ran.told["sent"]))
    assert (ran.told["retries"], ran.told["failed"]) == (0, [])


# --- what a child inherits ------------------------------------------------------------------------------------------


def test_records_buffered_before_the_fork_are_the_parents(dsn, tmp_path):
    ran = run(
        dsn,
        tmp_path,
        """
import psycopg
configure()
orders("before", 9)
tell(waiting=handler().stats().waiting)
assert ended(fork(orders, "child", 100))
with psycopg.connect(DSN) as conn:
    tell(of_child=conn.execute("SELECT count(*) FROM logsluice.logs WHERE attributes->>'id' LIKE 'child-%'").fetchone(),
         all=conn.execute("SELECT count(*) FROM logsluice.logs").fetchone(), still=handler().stats().waiting)
""",
    )
    assert (ran.told["waiting"], ran.told["still"]) == (9, 9)
    assert (ran.told["of_child"], ran.told["all"]) == ([100], [100])
    judged("fork with 9 records buffered", dsn, ran, 109)


def test_a_child_leaves_the_parents_connection_alone(dsn, tmp_path):
    """Closing it would say goodbye on the parent's socket; so would its collection as garbage."""
    ran = run(
        dsn,
        tmp_path,
        """
configure(linger=0.05)
orders("before")
assert handler().flush(20)
link = handler()._pair[1].routes[0].sink.link
conn, backend = link.conn, link.conn.info.backend_pid

def plain():
    orders("plain")
def closes():
    orders("closes")
    handler().close()
def flushes():
    orders("flushes")
    assert handler().flush(20)
    gc.collect()
def says_nothing():
    gc.collect()
def shuts_down():
    orders("shuts-down")
    logging.shutdown()
    os._exit(0)
def becomes_another():
    orders("another")
    assert handler().flush(20)
    os.execv(sys.executable, [sys.executable, "-c", ""])
def configures():
    orders("configures")
    configure(linger=0.05)
    orders("configured")

for child in plain, closes, flushes, says_nothing, shuts_down, becomes_another, configures:
    assert ended(fork(child)), child
    orders(f"after-{child.__name__}")
    assert handler().flush(20)
    assert link.conn is conn and conn.info.backend_pid == backend and not conn.broken
stats = handler().stats()
tell(retries=stats.retries, failed=stats.recent["failed"], batches=stats.batches, stored=stats.stored)
""",
        PYTHONWARNINGS="ignore",
    )
    assert (ran.told["retries"], ran.told["failed"], ran.told["stored"]) == (0, [], 80)
    assert ran.told["batches"] >= 8  # the connection was used after each child
    judged("fork with an open connection, seven kinds of children", dsn, ran, 150)


def test_child_and_grandchild_have_streams_of_their_own(dsn, tmp_path):
    """An inherited stream's watermark would make the server throw away the child's first rows as known."""
    ran = run(
        dsn,
        tmp_path,
        """
configure(linger=0.05)
orders("parent", 1000)
assert handler().flush(20)

def child():
    orders("child", 1000)
    assert handler().flush(20)
    assert ended(fork(orders, "grandchild", 1000))
    orders("child-again", 1000)

assert ended(fork(child))
orders("parent-again", 1000)
""",
        PYTHONWARNINGS="ignore",
    )
    judged("fork, a child and a grandchild", dsn, ran, 5000)
    with psycopg.connect(dsn) as conn:
        streams = conn.execute("SELECT count(*), min(seq), max(seq) FROM logsluice.logs GROUP BY stream").fetchall()
    assert sorted(streams) == [(1000, 1, 1000), (2000, 1, 2000), (2000, 1, 2000)]


def test_a_fork_that_runs_none_of_pythons_hooks(dsn, tmp_path):
    """As uWSGI's: the child finds out by its process id, at its first record."""
    ran = run(
        dsn,
        tmp_path,
        """
import ctypes
configure()
tell(hooks=0)
os.register_at_fork(after_in_child=lambda: tell(hooks=1))
orders("before", 9)
assert until(lambda: handler()._pair[1].thread_id is not None)
# Asleep: a fork without hooks while a thread waits for the interpreter's lock breaks any Python, with us or without.
threading.Event().wait(0.2)
pid = ctypes.PyDLL(None).fork()      # the lock of the interpreter stays with the caller, as in uWSGI's master
if pid == 0:
    work = [threading.Thread(target=orders, args=(f"child-thread{n}", 100)) for n in range(4)]
    for thread in work:              # their first records come together
        thread.start()
    for thread in work:
        thread.join()
    orders("child")
    sys.exit()
tell(ended=ended(pid))
orders("after")
""",
        PYTHONWARNINGS="ignore",
    )
    assert ran.told == {"hooks": 0, "ended": True}, ran.program.stderr
    judged("fork without Python's hooks", dsn, ran, 9 + 400 + 10 + 10)


def test_subprocesses_with_preexec_fn_do_not_disturb_their_parent(dsn, tmp_path):
    """Each is a fork that runs Python's hooks, and then another program."""
    ran = run(
        dsn,
        tmp_path,
        """
import subprocess
hooks = os.pipe()
configure(linger=0.05)
order("before")
assert handler().flush(20)
backend = handler()._pair[1].routes[0].sink.link.conn.info.backend_pid
started = time.perf_counter()
from logsluice import lifecycle
def hook():
    os.write(hooks[1], b"x")
    began = time.perf_counter()
    lifecycle._in_child()            # once more than the fork did, to take its time
    os.write(took[1], b"%d\\n" % ((time.perf_counter() - began) * 1e6))
took = os.pipe()
for n in range(200):
    order(f"r{n}")
    process = subprocess.Popen(["true"], preexec_fn=hook)
    assert process.wait() == 0
os.close(took[1])
times = sorted(map(int, os.fdopen(took[0]).read().split()))
os.close(hooks[1])
tell(hooks=len(os.fdopen(hooks[0]).read()), microseconds=times[len(times) // 2])
assert handler().flush(20)
stats = handler().stats()
tell(retries=stats.retries, same=handler()._pair[1].routes[0].sink.link.conn.info.backend_pid == backend)
""",
        PYTHONWARNINGS="ignore",
    )
    assert (ran.told["hooks"], ran.told["retries"], ran.told["same"]) == (200, 0, True)
    print(f"the hook: {ran.told['microseconds']} us")
    assert ran.told["microseconds"] < 10 * HOOK_MICROSECONDS
    judged("200 subprocesses with preexec_fn", dsn, ran, 201)


# --- multiprocessing ------------------------------------------------------------------------------------------------

# Each worker logs, and then waits until all of them have: else one could do all the work.
WORKERS = """
import multiprocessing as mp
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
import logsluice

COUNT = 2

def work(name):
    orders(f"{name}-{os.getpid()}")
    with open(os.environ["IDS"]) as ids:
        assert until(lambda: ids.seek(0) + 1 and len({line.split("-")[1] for line in ids if line.startswith(name)}) == COUNT)
    return os.getpid()

def start_and_work(config, name):
    logsluice.child_init(config)
    work(name)

def start(config):
    logsluice.child_init(config)
    logsluice.drain_on_sigterm()

def processes(context, target, *args):
    found = [context.Process(target=target, args=args) for _ in range(COUNT)]
    for one in found:
        one.start()
    for one in found:
        one.join(30)
    tell(codes=[one.exitcode for one in found])

def pool_closed(context, **options):
    pool = context.Pool(COUNT, **options)
    workers = list(pool._pool)
    tell(pids=len(set(pool.map(work, ["w"] * COUNT, 1))))
    pool.close()
    pool.join()
    tell(codes=[one.exitcode for one in workers])

def tell_again(pid):
    try:
        os.kill(pid, signal.SIGTERM)
    except ProcessLookupError:
        pass

def pool_left(context, **options):
    with context.Pool(COUNT, **options) as pool:
        workers = list(pool._pool)
        tell(pids=len(set(pool.map(work, ["w"] * COUNT, 1))))
        # terminate() holds the lock that idle workers wait for, for ever. A worker that is about to wait in C when its
        # SIGTERM comes does not hear of it, with any handler in Python (docs/howto/multiprocessing.md): told again.
        again = threading.Timer(3, lambda: [tell_again(one.pid) for one in workers])
        again.start()
    again.cancel()
    pool.join()
    tell(codes=[one.exitcode for one in workers])

def executor(context, **options):
    with ProcessPoolExecutor(COUNT, mp_context=context, **options) as pool:
        workers = pool._processes
        tell(pids=len(set(pool.map(work, ["w"] * COUNT))))
        workers = list(workers.values())
    tell(codes=[one.exitcode for one in workers])
"""


def multiprocess(dsn, tmp_path, method, call):
    text = f"""
if __name__ == "__main__":
    configure()
    orders("parent")
    context = mp.get_context("{method}")
    {call}
"""
    ran = run(dsn, tmp_path, WORKERS + text, PYTHONWARNINGS="ignore")
    assert len({name.split("-")[1] for name in ran.ids if name.startswith("w")}) == 2, ran.program.stderr  # workers
    return ran


@pytest.mark.parametrize(
    ("name", "call"),
    [
        ("Process", 'processes(context, work, "w")'),
        ("Pool, close and join", "pool_closed(context)"),
        ("ProcessPoolExecutor", "executor(context)"),
    ],
    ids=["process", "pool", "executor"],
)
def test_forked_workers_need_nothing(dsn, tmp_path, name, call):
    """They leave by os._exit after multiprocessing's own finalizers."""
    ran = multiprocess(dsn, tmp_path, "fork", call)
    assert ran.told["codes"] == [0, 0], ran.program.stderr
    judged(f"multiprocessing, fork: {name}", dsn, ran, 30)


@pytest.mark.parametrize(
    ("name", "call"),
    [
        ("Process", 'processes(context, start_and_work, config(), "w")'),
        ("Pool, close and join", "pool_closed(context, initializer=logsluice.child_init, initargs=(config(),))"),
        ("ProcessPoolExecutor", "executor(context, initializer=logsluice.child_init, initargs=(config(),))"),
    ],
    ids=["process", "pool", "executor"],
)
@pytest.mark.parametrize("method", ["spawn", "forkserver", "fork"])
def test_workers_that_inherit_nothing_are_configured_by_child_init(dsn, tmp_path, method, name, call):
    """Under fork, where it is not needed, it does no harm: a program may be moved from one method to the other."""
    ran = multiprocess(dsn, tmp_path, method, call)
    assert ran.told["codes"] == [0, 0], ran.program.stderr
    judged(f"multiprocessing, {method} with child_init: {name}", dsn, ran, 30)


def test_child_init_takes_the_path_of_a_file(dsn, tmp_path):
    call = """path = os.environ["IDS"] + ".json"
    with open(path, "w") as file:
        json.dump(config(), file)
    executor(context, initializer=logsluice.child_init, initargs=(path,))"""
    ran = multiprocess(dsn, tmp_path, "spawn", call)
    judged("multiprocessing, spawn with child_init and a JSON file", dsn, ran, 30)


def test_without_child_init_a_spawned_worker_stores_nothing(dsn, tmp_path):
    ran = multiprocess(dsn, tmp_path, "spawn", "executor(context)")
    assert len(ran.ids) == 30
    assert stored_ids(dsn).keys() == {f"parent-{n}" for n in range(10)}


def test_a_wrong_configuration_is_said_by_the_worker(dsn, tmp_path):
    """The executor breaks, and the worker's own traceback names the option."""
    ran = run(
        dsn,
        tmp_path,
        WORKERS
        + """
if __name__ == "__main__":
    try:
        executor(mp.get_context("spawn"), initializer=logsluice.child_init, initargs=(config(batch_sise=1),))
    except BrokenProcessPool:
        tell(broken=True)
""",
    )
    assert ran.told == {"broken": True}
    assert "did you mean 'batch_size'" in ran.program.stderr


POOL_LEFT = "pool_left(context, initializer=logsluice.child_init, initargs=(config(),))"


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_a_pool_left_by_with_ends_its_workers_by_sigterm(dsn, tmp_path, method):
    """What waits in them is lost in memory mode; drain_on_sigterm in the initializer sends it."""
    ran = multiprocess(dsn, tmp_path, method, POOL_LEFT)
    assert ran.told["codes"] == [-15, -15]
    outcome = judge(
        f"multiprocessing, {method}: Pool left by `with` (SIGTERM)", dsn, ran.ids, seconds=ran.seconds,
        note="lost is what waited: up to linger (30 s here) and the batch in flight",
    )  # fmt: skip
    assert (outcome.logged, outcome.lost, outcome.twice) == (30, 20, 0)


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_a_pool_left_by_with_drains_on_sigterm(dsn, tmp_path, method):
    ran = multiprocess(dsn, tmp_path, method, "pool_left(context, initializer=start, initargs=(config(),))")
    assert ran.told["codes"] == [-15, -15], ran.program.stderr
    judged(f"multiprocessing, {method}: Pool left by `with`, drain_on_sigterm", dsn, ran, 30)


# --- the page -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("command", "ids"),
    [
        ("python workers.py", [f"order-{n}{done}" for n in range(100) for done in ("", "-done")]),
        ("python process.py", ["child-1"]),
        ("python pool.py", [f"order-{n}" for n in range(100)]),
    ],
)
def test_the_pages_programs_store_everything(dsn, tmp_path, command, ids):
    page = Page("multiprocessing")
    page.lay_out(tmp_path)
    with Service(command, tmp_path, LOGS_DSN=dsn) as service:
        assert service.process.wait(60) == 0, service.output
    outcome = judge(f"docs/howto/multiprocessing.md: {command}", dsn, ids)
    assert (outcome.lost, outcome.twice) == (0, 0)
