"""
The fault matrix, D, F and G with a journal: the situations of memory mode once more, and then a next process.

What each situation is, and the proof that it happened, stands in the tests of memory mode: they run here as they are,
but that their handlers have `journal=` (LOGSLUICE_TEST_OPTIONS). Their own judgement comes first: what a killed process
had not sent is not in the table then either, which shows that there was something to lose. Then a next process comes to
the folder, logs one record and drains; after it each id whose call had returned is stored once, whatever the end was.

The out-of-memory killer is stood for by SIGKILL, which is what it sends: to provoke a real one takes a memory limit of a
control group, and those belong to whoever runs the tests.
"""

from __future__ import annotations

import collections
import functools
import inspect
import json
import os
import signal
import time

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict

from acceptance import test_gevent, test_howto_other, test_howto_web, test_programs
from integration import test_dictconfig, test_endings, test_forks, test_reentrancy
from logsluice.journal import UnfinishedError
from support import matrix, shop, situations
from support.journals import heir, ids_of, image_of, inherit, segments, streams
from support.processes import ended, until
from support.proxy import Proxy
from support.situations import stored_ids
from support.written import STORM, run

LIMIT = 30  # seconds: a net below waits that end in milliseconds
FORKS = 100  # 60 of them in memory mode, 500 in its long form
HANDLERS = 60  # made and closed one after the other; the first ten show what is normal
MOMENTS = 6  # programs, each killed at a random one
SMALL = "import logsluice.buffer\nlogsluice.buffer.FIRST_SEGMENT = logsluice.buffer.LARGEST_SEGMENT = SIZE\n"

uwsgi_folder = test_howto_web.uwsgi_folder  # a fixture of tests that run here again


class Journal:
    """The folder of a situation, what its own test judged, and the judgement after a next process."""

    def __init__(self, folder):
        self.folder = folder
        self.path = folder / "journal"
        self.ids = collections.Counter()  # that the test's own judgement knows of: their calls have returned
        self.shops = []  # handlers in this process

    def judging(self, real):
        """`judge` of support/situations.py, with an eye on what it is given."""

        @functools.wraps(real)
        def judge(situation, dsn, ids, **more):
            ids = [str(one) for one in ids]
            self.ids |= collections.Counter(ids)
            extra = stored_ids(dsn, more.get("key", "id")).keys() - set(ids)
            assert len(extra) <= 1  # one process is killed at most, perhaps between an append and the call's return
            return real(situation, dsn, [*ids, *extra], **more)

        return judge

    def returned(self):
        """The ids that the programs wrote down, and those that their test knows of."""
        found = set(self.ids)
        for file in self.folder.rglob("ids"):
            found.update(file.read_text(encoding="utf-8").rpartition("\n")[0].splitlines())
        return found

    def targets(self):
        """The ports that the streams in the folder are for."""
        found = set()
        for file in segments(self.path):
            try:
                found.add(int(image_of(file).header.target["port"]))
            except UnfinishedError:
                pass
        return found

    def in_files(self):
        """How many records wait in the folder."""
        return sum(len(ids_of(file)) for file in segments(self.path))

    def finish(self, row, dsn, *, note="", dropped=0):
        """Be the next process, then judge: lost 0, twice 0. `dropped`: so many records were, and are counted."""
        ids = self.returned()
        in_process = [one.lost_and_twice() for one in self.shops]
        count = len(ids) + sum(len(one.given) for one in self.shops)
        assert count
        left = self.in_files()
        others = self.targets() - {int(conninfo_to_dict(dsn)["port"])}
        if others:  # the situation's proxy: its port is part of the target
            with Proxy(dsn, port=others.pop()) as proxy:
                after = inherit(proxy.dsn, self.path, read=dsn)
        else:
            after = inherit(dsn, self.path)
        assert not streams(self.path)
        assert not (self.path / "quarantine").exists()
        found = stored_ids(dsn)
        lost = sorted(ids - found.keys())
        if dropped:
            assert len(lost) == dropped
            lost, note = [], f"{note}, {dropped} dropped and counted"
        twice = [one for one, times in found.items() if times > 1]
        with psycopg.connect(dsn) as conn:  # of records without an id, too
            text = "SELECT stream, seq FROM logsluice.logs WHERE seq > 0 GROUP BY 1, 2 HAVING count(*) > 1"
            twice += conn.execute(text).fetchall()
        for more_lost, more_twice in in_process:
            lost += more_lost
            twice += more_twice
        stored = sum(one["stored"] for one in after.adopted)
        told = f"{count} records, {left} in files when all had ended, {stored} adopted"
        print(f"{row}: {told}, {note}: lost {len(lost)}, twice {len(twice)}")
        recovery = after.seconds if after.adopted else None
        matrix.row(
            row, "journal", lost=lost, twice=twice, recovery=recovery, note=", ".join(filter(None, (note, told)))
        )
        return left


@pytest.fixture
def journal(tmp_path, monkeypatch):
    """All handlers of the programs that this test starts have a journal in one folder."""
    made = Journal(tmp_path)
    monkeypatch.setenv("LOGSLUICE_TEST_OPTIONS", json.dumps({"journal": str(made.path)}))
    monkeypatch.setitem(shop.QUICK, "journal", str(made.path))
    leave = shop.Shop.__exit__

    def leaving(one, *error):
        made.shops.append(one)
        leave(one, *error)

    monkeypatch.setattr(shop.Shop, "__exit__", leaving)
    for module in (test_endings, test_forks, test_reentrancy, test_programs, test_gevent, test_howto_web,
                   test_howto_other, test_dictconfig):  # fmt: skip
        if hasattr(module, "judge"):
            monkeypatch.setattr(module, "judge", made.judging(situations.judge))
    monkeypatch.setattr(test_endings, "HANDLERS", HANDLERS)
    return made


def again(row, test, *, only=None, leaves=None):
    """
    Have pytest find this test here under the row's name: it runs as it is, with a journal, and is judged after it.

    `only`: these of its parameters' ids. `leaves`: whether its end leaves records in files; None: it may.
    """
    own = inspect.signature(test)

    @functools.wraps(test)
    def with_journal(journal, dsn, tmp_path, request, **parameters):
        known = {"dsn": dsn, "tmp_path": tmp_path, "request": request, **parameters}
        test(**{name: known[name] for name in own.parameters})
        if "own_server" in parameters:
            server = parameters["own_server"]
            server.start()
            dsn = server.dsn()
        situation = request.node.callspec.id if hasattr(request.node, "callspec") else ""
        name = " ".join(filter(None, (test.__name__.removeprefix("test_").replace("_", " "), situation)))
        left = journal.finish(row, dsn, note=name)
        assert leaves is None or bool(left) is leaves, left

    asked = [*own.parameters, *({"journal", "dsn", "tmp_path", "request"} - own.parameters.keys())]
    kind = inspect.Parameter.KEYWORD_ONLY
    with_journal.__signature__ = inspect.Signature([inspect.Parameter(name, kind) for name in asked])
    if only is not None:
        with_journal.pytestmark = [_chosen(mark, only) for mark in test.pytestmark]
    globals()[f"test_{row[0].lower()}_{row[2:]}_{test.__name__.removeprefix('test_')}"] = with_journal


def _chosen(mark, only):
    """The parametrize mark with these of its sets alone: by their ids, or by a part of what they hold."""
    names, values = mark.args
    ids = mark.kwargs.get("ids")
    ids = ids if isinstance(ids, list) else [one if isinstance(one, str) else None for one in values]
    chosen = [
        (one, value)
        for one, value in zip(ids, values, strict=True)
        if one in only or (one is None and any(part in repr(value) for part in only))
    ]
    if not chosen:  # the mark of another parameter
        return mark
    return pytest.mark.parametrize(names, [value for _, value in chosen], ids=[one for one, _ in chosen]).mark


# --- D: the ends of a process ---------------------------------------------------------------------------------------

again("D-01", test_endings.test_every_way_to_exit_stores_everything_and_keeps_the_status, leaves=False)
again("D-02", test_endings.test_exit_with_a_dead_server_is_bounded_and_says_how_many_are_lost, leaves=True)
again("D-02", test_endings.test_exit_with_a_server_that_never_answers, leaves=True)
again("D-02", test_endings.test_exit_after_a_reload_says_what_both_handlers_lost, leaves=True)
again("D-02", test_endings.test_exit_with_a_server_that_freezes, leaves=True)
again("D-03", test_endings.test_sigterm_unasked_loses_at_most_what_waited, leaves=True)
again("D-03", test_endings.test_sigterm_drains_and_hands_on_to_what_was_there, leaves=False)
again("D-03", test_endings.test_sigterm_wherever_the_main_thread_is, only={"in dictConfig", "in a logging call"})
again("D-03", test_endings.test_sigterm_with_a_dead_server_is_bounded, leaves=True)
again("D-04", test_endings.test_ends_without_any_code_of_ours_lose_what_waited_and_no_more, leaves=True)
again("D-05", test_endings.test_records_of_exit_handlers_are_stored_up_to_the_very_last, leaves=False)
again("D-05", test_endings.test_a_thread_that_logs_all_through_the_exit, leaves=False)
again("D-06", test_endings.test_a_record_after_close_raises_nothing_starts_nothing_and_is_counted, leaves=False)
again("D-07", test_endings.test_a_thread_that_cannot_be_started, leaves=False)
again("D-07", test_endings.test_the_first_record_of_a_process_at_its_exit, leaves=False)
again("D-08", test_endings.test_exceptions_thrown_into_the_listener_do_not_end_the_delivery, leaves=False)
again("D-08", test_endings.test_an_exception_that_nobody_foresaw_in_the_sink, only={"in-transaction", "after-commit"})
again("D-09", test_endings.test_exceptions_out_of_signal_handlers_inside_logging_calls, leaves=False)
again("D-12", test_endings.test_starting_and_stopping_leaves_nothing_behind, leaves=False)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL], ids=["SIGTERM", "SIGKILL"])
def test_d_04_killed_at_any_moment_of_a_busy_program(dsn, tmp_path, journal, monkeypatch, number):
    """One after the other: each adopts what the one before left, and is killed itself; segments are small."""
    text = test_programs.ANY_MOMENT.replace("logsluice.drain_on_sigterm()\n", "").replace("signal.SIGTERM", number.name)
    text = text.replace("os.kill(os.getpid(), S", "os.kill(os.getpid(), signal.S")
    assert "drain" not in text
    monkeypatch.setattr(test_programs, "PROGRAM", SMALL.replace("SIZE", "32768") + test_programs.PROGRAM)
    for n in range(MOMENTS):
        folder = tmp_path / str(n)
        folder.mkdir()
        program, ids = test_programs.run(dsn, folder, text)
        assert program.returncode == -number, program.stderr
        assert len(ids) > 2000  # it was busy
    extra = len(stored_ids(dsn).keys() - journal.returned())
    assert extra <= MOMENTS  # taken in by a call that had not returned
    journal.finish("D-04", dsn, note=f"{number.name} at a random moment, {MOMENTS} programs")


def test_d_09_exceptions_inside_logging_calls_that_make_a_segment_each_time(dsn, tmp_path, journal, monkeypatch):
    """Every few calls one makes a file, maps it, takes the folder: an exception in the middle leaves no lock behind."""
    monkeypatch.setattr(test_endings, "BEGIN", test_endings.BEGIN + SMALL.replace("SIZE", "4096"))
    test_endings.test_exceptions_out_of_signal_handlers_inside_logging_calls(dsn, tmp_path)
    journal.finish("D-09", dsn, note="exceptions out of signal handlers inside logging calls, segments of 4 KiB")


def test_d_10_fifty_reloads_under_load(dsn, tmp_path, journal, monkeypatch):
    """Each handler has a stream of its own, and a thread more than in memory mode."""
    begin, text = test_dictconfig.BEGIN, test_dictconfig.RELOADS
    assert '"backoff_max": 0.1, **options' in begin
    assert "before + 4 + 1" in text
    options = os.environ["LOGSLUICE_TEST_OPTIONS"]
    monkeypatch.setattr(
        test_dictconfig,
        "BEGIN",
        begin.replace('"backoff_max": 0.1, **options', f'"backoff_max": 0.1, **{{**{options}, **options}}'),
    )
    text = text.replace("before + 4 + 1", "before + 4 + 2").replace(
        "linger=0.01, shut", f"**{options}, linger=0.01, shut"
    )
    monkeypatch.setattr(test_dictconfig, "RELOADS", text)
    test_dictconfig.test_fifty_reloads_under_load_lose_nothing_and_leave_nothing(dsn)
    journal.finish("D-10", dsn, note="50 reloads while 4 threads log")


# --- F: forks, signals, the collector -------------------------------------------------------------------------------

again("F-01", test_forks.test_a_lock_held_at_the_fork_does_not_hold_up_the_child)
again("F-01", test_forks.test_a_child_takes_no_lock_that_is_older_than_itself)
again("F-01", test_forks.test_the_first_record_of_a_process_imports_nothing, only={"text"})
again("F-03", test_forks.test_records_buffered_before_the_fork_are_the_parents)
again("F-04", test_forks.test_a_child_leaves_the_parents_connection_alone)
again("F-05", test_forks.test_child_and_grandchild_have_streams_of_their_own)
again("F-06", test_forks.test_forked_workers_need_nothing, leaves=False)
again("F-06", test_forks.test_a_pool_left_by_with_drains_on_sigterm, only={"fork"}, leaves=False)
again(
    "F-07",
    test_forks.test_workers_that_inherit_nothing_are_configured_by_child_init,
    only={"forkserver", "executor"},
)
again("F-10", test_forks.test_a_fork_that_runs_none_of_pythons_hooks, leaves=False)
again("F-11", test_gevent.test_a_hundred_greenlets_store_everything, only={"first", "running"}, leaves=False)
again("F-11", test_gevent.test_what_waits_at_exit_is_sent, only={"first"}, leaves=False)
again("F-12", test_reentrancy.test_logging_from_a_signal_handler, leaves=False)
again("F-12", test_reentrancy.test_sigterm_inside_close_drains, only={"logsluice.buffer.Buffer.close"}, leaves=False)
again("F-13", test_reentrancy.test_logging_from_the_garbage_collector, leaves=False)
again("F-13", test_reentrancy.test_logging_inside_what_a_logging_call_calls, leaves=False)
again("F-15", test_forks.test_subprocesses_with_preexec_fn_do_not_disturb_their_parent, leaves=False)

OURS = {
    "the lock of a journal's files": "lock(pair[1].routes[0].buffer._files)",
    "the lock of a journal's chores": "lock(pair[1].routes[0].buffer._tending)",
    "the lock of a journal's fdatasync": "lock(pair[1].routes[0].buffer._syncing)",
    "the journal's folder": "inside = pair[1].adopter.folder.exclusive(20)\nhold(inside.__enter__, lambda: inside.__exit__(None, None, None))",
}


@pytest.mark.parametrize("name", OURS)
def test_f_01_a_lock_of_the_journal_held_at_the_fork(dsn, tmp_path, journal, name):
    hold = OURS[name].replace("inside", "held_folder")
    test_forks.test_a_lock_held_at_the_fork_does_not_hold_up_the_child(dsn, tmp_path, name, hold, 0)
    journal.finish("F-01", dsn, note=f"fork while another thread has {name}")


def test_f_02_forks_while_threads_log(dsn, tmp_path, journal):
    ran = run(dsn, tmp_path, STORM, args=[str(FORKS)], timeout=300, PYTHONWARNINGS="ignore")
    assert ran.told["late"] == 0, ran.program.stderr
    assert min(ran.told["sent"]) > 10  # all eight threads logged meanwhile
    assert len(ran.ids) == FORKS * 10 + sum(ran.told["sent"])
    assert (ran.told["retries"], ran.told["failed"]) == (0, [])
    journal.finish("F-02", dsn, note=f"{FORKS} forks while 8 threads log, {ran.seconds:.0f} s")


# Children that leave at once, forked by a parent whose threads log on; the parent is killed in the end.
LEAVE = """
configure(linger=0.05)
stop = threading.Event()

def work(name):
    n = 0
    while not stop.wait(0.002):
        order(f"thread{name}-{n}")
        n += 1

for n in range(4):
    threading.Thread(target=work, args=(n,), daemon=True).start()
for n in range(30):
    pid = os.fork()
    if pid == 0:
        orders(f"child{n}")
        os._exit(7)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 7
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_f_02_forked_children_leave_by_os_exit(dsn, tmp_path, journal):
    ran = run(dsn, tmp_path, LEAVE, status=-signal.SIGKILL, PYTHONWARNINGS="ignore")
    assert sum(name.startswith("child") for name in ran.ids) == 300
    assert any(name.startswith("thread") for name in ran.ids)
    assert journal.finish("F-02", dsn, note="30 children leave by os._exit, their parent is killed") > 0


# A child that lives on when its parent is killed.
SURVIVES = """
import ctypes, psycopg
from logsluice import partitions
other = psycopg.connect(DSN)
AT_ONCE
configure(io_timeout=1)              # the server lets go of what a killed process held after twice that
orders("old", 100)
BEFORE
orders("new", 100)
read, write = os.pipe()
pid = FORK
if pid == 0:
    os.close(other.fileno())
    os.dup2(os.open(os.devnull, os.O_RDWR), 1)
    os.dup2(1, 2)                    # else whoever reads them waits for us
    FIRST
    os.write(write, b"x")
    while True:
        threading.Event().wait(60)
assert os.read(read, 1) == b"x"
tell(child=pid)
os.kill(os.getpid(), signal.SIGKILL)
"""
# With the hooks the parent has a second handler, which was replaced and drains still, into a table that is locked.
# Without them its threads are asleep: such a fork while one waits for the interpreter's lock breaks any Python.
# The third is killed while it makes partitions: its backend gets the lock after its death, and is at their COMMIT.
MAKES = """
partitions.MAKE_LOCK_TIMEOUT, partitions.IDLE_LIMIT = "30s", "5s"
other.execute("LOCK TABLE logsluice.logs IN SHARE UPDATE EXCLUSIVE MODE")
"""
WAITS = f"""
WAITS = "SELECT 1 FROM pg_locks WHERE relation = 'logsluice.logs'::regclass AND NOT granted"
end = time.monotonic() + {LIMIT}
while not other.execute(WAITS).fetchone():
    assert time.monotonic() < end
"""
HOW = {
    "a fork with Python's hooks": (
        "", 'other.execute("LOCK TABLE logsluice.logs IN ACCESS EXCLUSIVE MODE")\nconfigure(io_timeout=1)', "os.fork()", "pass",
    ),
    "a fork without them, and a record": (
        "", "threading.Event().wait(0.2)", "ctypes.PyDLL(None).fork()", 'order("child")',
    ),
    "a fork while partitions are made": (MAKES, WAITS, "os.fork()", "pass"),
}  # fmt: skip


@pytest.mark.parametrize("how", HOW)
def test_f_05_a_child_outlives_its_killed_parent(dsn, tmp_path, journal, how):
    """What it inherited must not make the parent's streams look owned."""
    text = SURVIVES
    for place, with_what in zip(("AT_ONCE", "BEFORE", "FORK", "FIRST"), HOW[how], strict=True):
        text = text.replace(place, with_what)
    ran = run(dsn, tmp_path, text, status=-signal.SIGKILL, PYTHONWARNINGS="ignore")
    child = ran.told["child"]
    try:
        if how == "a fork while partitions are made":  # so it did happen
            held = "SELECT 1 FROM pg_stat_activity WHERE state = 'idle in transaction' AND query ~ 'make_partitions'"
            with psycopg.connect(dsn, autocommit=True) as conn:
                assert until(lambda: conn.execute(f"{held} AND datname = current_database()").fetchone(), LIMIT)
        assert not ended(child, 0)
        assert journal.in_files() == len(ran.ids)
        logs = sum(name == "child" for name in ran.ids)  # then it has a stream of its own, and keeps it
        with heir(dsn, journal.path) as one:
            mine = {f"{one.route.buffer.stream:016x}"}
            assert until(lambda: len(streams(journal.path) - mine) <= logs and not one.listener.adopted, LIMIT)
        journal.shops.remove(one)
        assert not ended(child, 0)
    finally:
        os.kill(child, signal.SIGKILL)
        assert ended(child, LIMIT)
    journal.finish("F-05", dsn, note=f"killed, its child lives on: {how}")


def test_f_12_logging_from_a_signal_handler_into_tiny_segments(dsn, tmp_path, journal, monkeypatch):
    """The signal comes while a call makes a file, has the folder, seals, publishes: the handler's record does so too."""
    monkeypatch.setattr(test_reentrancy, "SIGNALS", SMALL.replace("SIZE", "4096") + test_reentrancy.SIGNALS + ROLLED)
    monkeypatch.setattr(test_reentrancy, "run", functools.partial(remembering, told := {}))
    test_reentrancy.test_logging_from_a_signal_handler(dsn, tmp_path, "tiny segments", "linger=0.05")
    assert told["segments"] > 100
    rate = told["signals"] / 2.5  # seconds
    note = f"{rate:.0f} signals a second, {told['deepest']} deep, {told['segments']} segments of 4 KiB"
    journal.finish("F-12", dsn, note=f"logging from a signal handler, {note}")


def test_f_11_a_server_that_freezes_under_gevent(dsn, tmp_path, journal, monkeypatch):
    """A buffer for 500 records, and 2,000 come: what was dropped was counted, what was accepted is in the files."""
    monkeypatch.setattr(test_gevent, "run", functools.partial(remembering, told := {}))
    test_gevent.test_a_frozen_server_does_not_stop_the_hub(dsn, tmp_path, "first", "drop")
    note = f"gevent, server deaf, the hub stood still for {told['longest'] * 1000:.0f} ms at most"
    assert journal.finish("F-11", dsn, note=note, dropped=told["dropped"]["full"]) == told["waiting"]


ROLLED = """
tell(segments=handler()._pair[1].routes[0].buffer.tail() >> 32)
"""


def remembering(told, *args, **options):
    ran = run(*args, **options)
    told.update(ran.told)
    return ran


TERMINATED = {
    "Pool left by `with`": f"    {test_forks.POOL_LEFT}\n",
    "Process.terminate": """
    def stays(name):
        work(name)
        threading.Event().wait(60)
    workers = [context.Process(target=stays, args=("w",)) for _ in range(COUNT)]
    for one in workers:
        one.start()
    with open(os.environ["IDS"]) as ids:
        assert until(lambda: ids.seek(0) + 1 and sum(line.startswith("w") for line in ids) == COUNT * 10)
    for one in workers:
        one.terminate()
        one.join()
    tell(codes=[one.exitcode for one in workers])
""",
    "ProcessPoolExecutor, its workers terminated": """
    pool = ProcessPoolExecutor(COUNT, mp_context=context)
    assert len(set(pool.map(work, ["w"] * COUNT))) == COUNT
    workers = list(pool._processes.values())
    for one in workers:
        one.terminate()
        one.join()
    pool.shutdown()
    tell(codes=[one.exitcode for one in workers])
""",
}


@pytest.mark.parametrize("name", TERMINATED)
def test_f_06_workers_are_terminated(dsn, tmp_path, journal, name):
    """SIGTERM's default action, in workers that have sent nothing yet: a linger of 30 s."""
    ran = test_forks.multiprocess(dsn, tmp_path, "fork", f"pass\n{TERMINATED[name]}")
    assert ran.told["codes"] == [-signal.SIGTERM] * 2, ran.program.stderr
    assert len(ran.ids) == 30
    journal.finish("F-06", dsn, note=f"multiprocessing, fork: {name}")


# --- F-08 to F-10: servers and workers, by the pages' own command lines ----------------------------------------------

again("F-08", test_howto_web.test_sigterm_loses_nothing, only={"--preload"}, leaves=False)
again("F-08", test_howto_web.test_a_gunicorn_worker_that_is_timed_out_stores_what_it_logged, leaves=False)
again("F-09", test_howto_other.test_celery_loses_only_the_last_moment_of_a_killed_child)

KILLED = [
    ("F-08", "gunicorn", test_howto_web.GUNICORN, "gunicorn, kill -9 of one of two workers"),
    ("F-08", "gunicorn", test_howto_web.PRELOAD, "gunicorn --preload, kill -9 of one of two workers"),
]


def killed(row, shop, journal, situation, dsn):
    test_howto_web.lose_a_worker(shop, situation, adopted=True)
    journal.finish(row, dsn, note=situation)


@pytest.mark.parametrize(("name", "start", "situation"), [one[1:] for one in KILLED], ids=["gunicorn", "preload"])
def test_f_08_a_killed_worker(dsn, tmp_path, journal, name, start, situation):
    """The arbiter starts another, which adopts what the killed one left; the next process finds nothing."""
    with test_howto_web.Shop(tmp_path, dsn, name, start) as shop:
        killed("F-08", shop, journal, situation, dsn)


def test_f_10_uwsgi_without_pythons_fork_hooks(dsn, uwsgi_folder, journal):
    """A worker finds out at its first record that it is another process; it has the journal of its own then."""
    situation = "uWSGI without Python's fork hooks, 2 processes, SIGTERM"
    test = test_howto_web.test_uwsgi_with_the_application_loaded_before_the_fork
    test(dsn, uwsgi_folder, situation, test_howto_web.HOOKLESS)
    journal.finish("F-10", dsn, note=situation)


def test_f_10_a_killed_uwsgi_worker(dsn, uwsgi_folder, journal):
    with test_howto_web.Shop(uwsgi_folder, dsn, "uwsgi", "uwsgi") as shop:
        killed("F-10", shop, journal, "uWSGI, kill -9 of one of two workers", dsn)


def test_f_08_a_worker_that_is_timed_out_and_killed(dsn, tmp_path, journal):
    """Stopped, it does not hear gunicorn's SIGABRT; the arbiter's next word is SIGKILL. Nothing was sent: a linger of 60 s."""
    with test_howto_web.Shop(
        tmp_path, dsn, "gunicorn", test_howto_web.GUNICORN, "--timeout 1", given=test_howto_web.LINGER
    ) as shop:
        with shop.steady():
            shop.serve()
            old = shop.workers
        victim = list(shop.answered.values())[-1]
        mine = {order for order, worker in shop.answered.items() if worker == victim}
        assert mine
        assert not mine & stored_ids(dsn).keys()
        os.kill(victim, signal.SIGSTOP)
        killed_at = time.monotonic()
        assert ended(victim, LIMIT), shop.output
        assert "WORKER TIMEOUT" in shop.output
        assert until(lambda: "SIGKILL" in shop.output, LIMIT), shop.output
        with shop.steady():
            assert until(lambda: shop.workers - old, LIMIT), shop.output
        seconds = time.monotonic() - killed_at
        assert until(
            lambda: mine <= stored_ids(dsn).keys(), LIMIT
        )  # adopted by a living one, long before its own linger
        assert shop.service.stop() == 0
        situation = f"gunicorn --timeout 1, SIGKILL after a timeout, replaced after {seconds:.1f} s"
        shop.judge(situation)
        journal.finish("F-08", dsn, note=f"{situation}, {len(mine)} records of the killed one adopted by a living one")


# --- G: feedback ----------------------------------------------------------------------------------------------------

again("G-01", test_programs.test_root_at_debug_stores_only_the_programs_records, leaves=False)
again("G-01", test_reentrancy.test_the_programs_own_use_of_the_driver_is_stored, leaves=False)
again("G-01", test_reentrancy.test_an_outage_under_a_root_at_debug_makes_no_rows)
again("G-02", test_reentrancy.test_warnings_captured_into_logging_do_not_feed_back, leaves=False)
again("G-04", test_reentrancy.test_a_program_started_without_a_stderr_stores_everything, leaves=False)

# A daemon closes what a shell gave it; whatever writes there still writes to whoever was given the number.
STRAY = """
configure(linger=0.05)
orders("before")
os.close(2)
for n in range(20):
    log.info("x" * 100_000, extra={"id": f"large-{n}"})
    wrote(f"large-{n}")
    try:
        os.write(2, b"Fatal Python error, says somebody who knows nothing of journals\\n" * 20)
    except OSError:
        pass
tell(segments=handler()._pair[1].routes[0].buffer.tail() >> 32)
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_g_04_what_is_written_to_a_closed_stderr_is_in_no_journal(dsn, tmp_path, journal):
    ran = run(dsn, tmp_path, STRAY, status=-signal.SIGKILL)
    assert ran.told["segments"] > 2
    journal.finish("G-04", dsn, note="stderr closed, and written to all the same; then SIGKILL")
