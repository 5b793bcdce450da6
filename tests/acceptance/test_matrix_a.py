"""
The fault matrix, part A: PostgreSQL and the network. One test a row, in both modes; see support/matrix.py.

Each fault is proved to have happened, by a counter of the proxy, a process that is gone or the server's own code. What
became of the records is told by ids of the test's own. Every `recovery` is measured without `flush`, which would hurry.
"""

from __future__ import annotations

import contextlib
import os
import random
import secrets
import shutil
import signal
import socket
import subprocess
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import psycopg
import psycopg_pool
import pytest
from psycopg.conninfo import make_conninfo

from logsluice import partitions, schema
from logsluice.devserver import EmbeddedPostgres
from logsluice.devserver import cluster as files
from support import matrix
from support.commits import COMMIT, late_commit_without_lock, late_commits, lose_commits, without_watermark
from support.faults import (
    PASSWORDS,
    STORM_TABLE,
    broken,
    dated,
    deadlock,
    demoted,
    drifted,
    loading,
    one_bad_row_in_5000,
    password_rotated,
    slow_rows,
    storm,
    storm_tables,
    stuck_for,
    table_locked,
    terminate,
    too_slow_for_its_limit,
)
from support.pgbouncer import PgBouncer
from support.processes import ended, until
from support.proxy import COPY_DONE, Proxy, kind, startup
from support.servers import SETTINGS, create_database, drop_database
from support.shop import LIMIT, Shop, writer
from support.situations import stored_ids
from support.tls import certificate, tls_server
from support.written import run

ROOM = 10  # times the matrix's own limit: the machine of a test is shared
SQLSTATE_DISK_FULL = "53100"


def lock_query(message):
    """Matches the first message of each attempt: it asks for the watermark."""
    return message[:1] == b"Q" and b"FOR UPDATE" in message


def copy_query(message):
    """Matches the COPY itself: the attempt holds the watermark, and has sent no row."""
    return message[:1] == b"Q" and message[5:].startswith(b"COPY ")


@pytest.fixture(scope="module")
def server(cluster):
    """A server for these tests alone: killed, frozen, put back in time."""
    with EmbeddedPostgres(template=cluster, settings=SETTINGS) as server:
        yield server


@pytest.fixture
def breakable(server):
    """A fresh database on it. The handler makes the schema."""
    server.start()  # if a test before left it down
    with psycopg.connect(server.dsn(), autocommit=True) as conn:
        name = create_database(conn)
    yield server.dsn(name)
    server.start()
    with psycopg.connect(server.dsn(), autocommit=True) as conn:
        drop_database(conn, name)


@pytest.fixture
def proxy(dsn):
    with Proxy(dsn) as proxy:
        yield proxy


@contextmanager
def opened(dsn, options, *, read=None, **more):
    """A shop that has stored its first record, so that the fault meets a handler at work."""
    with Shop(dsn, read=read, **{**options, **more}) as shop:
        shop.watch()
        shop.log()
        assert shop.flush()
        yield shop


@pytest.fixture
def shop(proxy, dsn, options):
    """A program that logs through the proxy."""
    with opened(proxy.dsn, options, read=dsn) as shop:
        yield shop


def judge(row, mode, shop, *, recovery, note, dead=0, **where):
    """Every record stored once or dead once, so many dead; the law holds and the counters agree with the tables."""
    lost, twice = shop.lost_and_twice(**where)
    matrix.row(row, mode, lost=lost, twice=twice, recovery=recovery, note=note)
    _, letters = shop.check(**where)
    assert len(letters) == dead


def copying(shop):
    """The server's process that takes the handler's rows now."""
    active = "SELECT pid FROM pg_stat_activity WHERE query LIKE 'COPY %' AND state = 'active'"
    rows = shop.query(f"{active} AND datname = current_database()")
    return rows[0][0] if rows else None


def restart(server, signum):
    """End the postmaster with this signal, start it again."""
    pid = server.pid
    os.kill(pid, signum)
    assert ended(pid, LIMIT)
    server.start()
    assert server.pid != pid


# --- the server goes away -------------------------------------------------------------------------------------------


def test_a_01_refused_at_the_start(server, breakable, mode, options):
    """PostgreSQL is down when the program starts."""
    os.kill(server.pid, signal.SIGINT)
    assert until(lambda: server.pid is None, LIMIT)
    began = time.monotonic()
    shop = Shop(breakable, **options)
    made = time.monotonic() - began
    with shop:
        shop.log(10_000)
        failures = shop.await_failure(count=3)
        assert all("refused" in f["error"] for f in failures)
        assert shop.stats.breaker in {"open", "half_open"}
        assert shop.stats.waiting == 10_000
        server.start()
        began = time.monotonic()
        assert until(lambda: shop.stats.stored, LIMIT)
        first = time.monotonic() - began
        recovery = shop.recover(began)
        note = f"10000 records; made in {made * 1000:.1f} ms, first row {first:.2f} s after the server, {len(failures)} refused"
        judge("A-01", mode, shop, recovery=recovery, note=note)
        assert made < 0.05 * ROOM
        assert first < 5 * ROOM


def test_a_02_clean_restarts_under_load(server, breakable, mode, options, capfd):
    """PostgreSQL is restarted (fast shutdown), again and again, while the program logs 2,000 records a second."""
    recoveries = []
    with opened(breakable, options) as shop:
        for _ in range(3):
            with loading(shop):
                before = len(shop.given)
                assert until(lambda before=before: len(shop.given) > before + 200, LIMIT)
                restart(server, signal.SIGINT)
                up = time.monotonic()
            recoveries.append(shop.recover(up))
        assert shop.stats.retries >= 3
        judge("A-02", mode, shop, recovery=max(recoveries), note=f"3 restarts, {len(shop.given)} records")
    said = capfd.readouterr().err
    assert said.count("not stored yet") == 1  # the next would come after a minute
    assert said.count("are stored again") == 1


def test_a_03_crashes_under_load(server, breakable, mode, options):
    """PostgreSQL crashes: SIGKILL of the postmaster, and an immediate shutdown; it recovers before it lets anybody in."""
    recoveries = []
    with opened(breakable, options) as shop:
        for crash in (server.kill, lambda: restart(server, signal.SIGQUIT), server.kill):
            pid = server.pid
            with loading(shop):
                before = len(shop.given)
                assert until(lambda before=before: len(shop.given) > before + 200, LIMIT)
                crash()
                server.start()
                up = time.monotonic()
            assert server.pid != pid
            recoveries.append(shop.recover(up))
        assert shop.stats.retries >= 3
        note = f"2 SIGKILLs and 1 immediate shutdown, {len(shop.given)} records"
        judge("A-03", mode, shop, recovery=max(recoveries), note=note)


def test_a_04_session_terminated_in_the_middle_of_a_copy(dsn, proxy, mode, options):
    """An administrator ends the handler's session at row 200 of 400."""
    rounds, recoveries = 20, []
    with opened(proxy.dsn, options, read=dsn, linger=0.03) as shop:  # the 400 go together
        shop.do(
            "CREATE SEQUENCE public.rows",  # it counts on when the transaction is undone: the retry passes
            "CREATE FUNCTION public.end_it() RETURNS trigger LANGUAGE plpgsql AS $$BEGIN "
            "IF nextval('public.rows') = 200 THEN PERFORM pg_terminate_backend(pg_backend_pid()); END IF; "
            "RETURN NEW; END$$",
            "CREATE TRIGGER end_it BEFORE INSERT ON logsluice.logs FOR EACH ROW EXECUTE FUNCTION public.end_it()",
        )
        for _ in range(rounds):
            shop.do("SELECT setval('public.rows', 1, false)")
            retry = proxy.hold_at(startup)
            shop.log(400)
            assert retry.wait(LIMIT)
            # Of the batch that was cut: none. The 400 are two batches where a segment ends among them.
            stored = shop.query("SELECT count(*) FROM logsluice.logs")[0][0]
            assert stored == sum(rows for rows, _, error in shop.writes if error is None)
            assert stored < len(shop.given)
            retry.release()
            recoveries.append(shop.recover())
        assert len(shop.failed("57P01")) == rounds
        judge("A-04", mode, shop, recovery=max(recoveries), note=f"{rounds} sessions terminated at row 200 of 400")


def test_a_05_backend_killed_in_the_middle_of_a_copy(breakable, mode, options):
    """SIGKILL for the handler's own server process: the whole server restarts."""
    rounds, recoveries = 3, []
    with Proxy(breakable) as proxy, opened(proxy.dsn, options, read=breakable) as shop:
        for _ in range(rounds):
            held = proxy.hold_at(COPY_DONE)
            shop.log(200)
            assert held.wait(LIMIT)
            pid = copying(shop)
            os.kill(pid, signal.SIGKILL)
            assert ended(pid, LIMIT)
            held.release()
            recoveries.append(shop.recover())
        assert len(shop.failed()) >= rounds
        assert shop.failed()[0]["sqlstate"] is None
        judge("A-05", mode, shop, recovery=max(recoveries), note=f"{rounds} backends killed in COPY")


# --- the answer to COMMIT -------------------------------------------------------------------------------------------


def test_a_06_the_reply_to_commit_is_lost(shop, proxy, mode):
    """The COMMIT arrives, the connection is cut before its reply: stored, and the client does not know."""
    rounds, recoveries = 20, []
    for _ in range(rounds):
        began = time.monotonic()
        assert lose_commits(shop, proxy, 1) == 1
        recoveries.append(time.monotonic() - began)
    note = f"{rounds} replies lost, {shop.known} found by the watermark"
    judge("A-06", mode, shop, recovery=max(recoveries), note=note)
    # Flushed while rows still came, a round may be two batches, and a cut may meet the COMMIT of new partitions.
    assert shop.known >= rounds * 0.75


def test_a_06_control(shop, proxy, mode):
    """The same without the watermark."""
    with without_watermark():
        cuts = lose_commits(shop, proxy, 5)
    _, twice = shop.lost_and_twice()
    matrix.control("A-06", mode, twice=twice, note=f"the watermark off, {cuts} replies lost")


def test_a_07_commit_arrives_late(breakable, mode, options):
    """The client gives up on COMMIT and tries again; then the first COMMIT is carried out after all."""
    rounds = 5
    with Shop(breakable, io_timeout=10, **options) as shop:
        recovery = late_commits(shop, rounds)
        note = f"{rounds} late COMMITs, {shop.known} found by the watermark"
        judge("A-07", mode, shop, recovery=recovery, note=note)
        assert shop.known >= rounds


def test_a_07_control(breakable, mode, options):
    """The same with a look that takes no lock."""
    with Shop(breakable, io_timeout=10, **options) as shop:
        late_commit_without_lock(shop)
        _, twice = shop.lost_and_twice()
        matrix.control("A-07", mode, twice=twice, note="the watermark read without its lock, 1 late COMMIT")


def test_a_08_cut_at_random_bytes(shop, proxy, mode):
    """The connection breaks at any byte of what the client sends."""
    rng, recoveries = random.Random(17), []
    while proxy.cuts < 60:
        proxy.cut_at(rng.randrange(30_000))  # bytes: what 150 records take with everything around them
        shop.log(150)
        recoveries.append(shop.recover())
    note = f"{proxy.cuts} cuts, {len(shop.given)} records, {shop.stats.retries} retries"
    judge("A-08", mode, shop, recovery=max(recoveries), note=note)


# --- the server does not answer -------------------------------------------------------------------------------------

IO_TIMEOUT = 0.5  # seconds


def threads_of_ours():
    return {thread.ident for thread in threading.enumerate() if thread.name.startswith("logsluice-")}


def test_a_09_the_answer_never_comes(dsn, proxy, mode, options):
    """The connection stays open and nothing of the server comes through: in BEGIN, COPY and COMMIT."""
    with opened(proxy.dsn, options, read=dsn, io_timeout=IO_TIMEOUT) as shop:
        before = threads_of_ours()
        times, recoveries = {}, []
        for where, match in {"begin": lock_query, "copy": kind(b"c"), "commit": COMMIT}.items():
            took, failure, recovery = stuck_for(shop, lambda match=match: proxy.swallow_after(match), proxy)
            assert failure["verdict"] in {"shrink", "retry"}
            assert took > IO_TIMEOUT * 0.9
            times[where] = took
            recoveries.append(recovery)
        assert threads_of_ours() == before  # none is stuck
        assert shop.known  # the COMMIT had been carried out
        said = ", ".join(f"{where} {took:.2f} s" for where, took in times.items())
        judge("A-09", mode, shop, recovery=max(recoveries), note=f"given up after {said}, of {IO_TIMEOUT} + 1 s")
        assert max(times.values()) < (IO_TIMEOUT + 1) * ROOM


def stopped(pid):
    """Whether SIGSTOP has reached it."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"


@contextmanager
def frozen_server(server):
    """SIGSTOP for the postmaster and all that it has started."""
    pids = [server.pid, *map(int, Path(f"/proc/{server.pid}/task/{server.pid}/children").read_text().split())]
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        assert until(lambda: all(stopped(pid) for pid in pids), LIMIT)
        yield
    finally:
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)


def open_sockets():
    """How many this process has."""
    links = []
    for entry in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):  # the folder's own
            links.append(str(entry.readlink()))
    return sum(link.startswith("socket:") for link in links)


def test_a_10_frozen_server(server, breakable, mode, options):
    """All processes of the server are stopped for three seconds; new connections hang as well."""
    with opened(breakable, options, io_timeout=IO_TIMEOUT) as shop:
        sockets = open_sockets()
        with frozen_server(server):
            calls = []
            shop.log(100)
            shop.await_failure()
            for _ in range(2000):
                began = time.perf_counter()
                shop.log()
                calls.append(time.perf_counter() - began)
            shop.await_failure(count=2)  # one in the middle of its work, one in connecting
        recovery = shop.recover()
        # One that was given up while connecting holds a place in the server until it is closed.
        assert open_sockets() <= sockets
        p99 = sorted(calls)[len(calls) * 99 // 100]
        took = [round(f["seconds"], 2) for f in shop.failed()[:2]]
        note = f"calls meanwhile: p99 {p99 * 1e6:.0f} us, longest {max(calls) * 1e3:.1f} ms; attempts given up after {took} s"
        judge("A-10", mode, shop, recovery=recovery, note=note)
        assert p99 < 0.001 * ROOM


# --- locks and limits -----------------------------------------------------------------------------------------------


def test_a_11_a_zombie_holds_the_watermark(dsn, proxy, mode, options):
    """The network keeps a transaction of a client that has gone: it holds the watermark until its own limit ends it."""
    io_timeout = 4 * IO_TIMEOUT  # between its end and the server's limit, twice as long, is the wait for the lock
    with opened(proxy.dsn, options, read=dsn, io_timeout=io_timeout) as shop:
        limit = 2 * io_timeout  # of the server, for a transaction whose client says nothing
        held = proxy.hold_at(copy_query)
        shop.log(10)
        assert held.wait(LIMIT)
        began = time.monotonic()
        idle = "SELECT pid FROM pg_stat_activity WHERE state = 'idle in transaction' AND datname = current_database()"
        zombie = shop.query(idle)[0][0]
        recovery = shop.recover(began)
        assert not shop.query(f"SELECT 1 FROM pg_stat_activity WHERE pid = {zombie}")
        waits = len(shop.failed("55P03"))
        assert waits
        note = f"stored {recovery:.2f} s after the zombie's last word, of {limit} + 1 s; {waits} waits for its lock"
        judge("A-11", mode, shop, recovery=max(0, recovery - limit), note=note)
        assert recovery < (limit + 1) * ROOM


def test_a_12_the_table_is_locked(shop, mode):
    """A migration holds an ACCESS EXCLUSIVE lock."""
    with table_locked(shop) as failures:
        waited = [round(f["seconds"], 2) for f in failures]
    judge("A-12", mode, shop, recovery=shop.recover(), note=f"attempts waited {waited} s, of 0.25 + 0.5")


def test_a_13_the_limit_is_too_small_for_the_batch(dsn, mode, options):
    """Rows take longer than the time limit allows a batch: it shrinks."""
    with opened(dsn, options, io_timeout=0.3, linger=0.2) as shop:
        with slow_rows(shop, 2):
            shrunk, first = too_slow_for_its_limit(shop)
        note = f"400 rows of 2 ms in 0.3 s: {shrunk} attempts shrank of 10.6 allowed, stored from attempt {first} on"
        judge("A-13", mode, shop, recovery=None, note=note)


def test_a_14_deadlock(shop, mode):
    """Another session locks in the opposite order, and the server chooses us."""
    deadlock(shop)
    judge("A-14", mode, shop, recovery=shop.recover(), note=f"{len(shop.failed('40P01'))} deadlocks")


@contextmanager
def small_disk(server, shop):
    """
    The table's partitions on a file system of 4 MiB; the body gets what gives it room, and how it was made.

    Where nothing may be mounted, a trigger says what PostgreSQL says then.
    """
    folder = server.folder / "small"
    folder.mkdir(exist_ok=True)
    owner = server.data.stat()
    size = f"size=4m,mode=0700,uid={owner.st_uid},gid={owner.st_gid}"
    mount = ["mount", "-t", "tmpfs", "-o", size, "logsluice-test", folder]
    if subprocess.run(mount, capture_output=True, check=False, timeout=LIMIT).returncode:
        shop.do(
            "CREATE FUNCTION public.full() RETURNS trigger LANGUAGE plpgsql AS "
            f"$$BEGIN RAISE EXCEPTION 'No space left on device' USING ERRCODE = '{SQLSTATE_DISK_FULL}'; END$$",
            "CREATE TRIGGER full_disk BEFORE INSERT ON logsluice.logs FOR EACH ROW EXECUTE FUNCTION public.full()",
        )
        yield (
            lambda: shop.do("DROP TRIGGER full_disk ON logsluice.logs"),
            "said by a trigger: nothing may be mounted here",
        )
        return
    try:
        shop.do(f"CREATE TABLESPACE small LOCATION '{folder}'")
        with psycopg.connect(shop.read, autocommit=True) as conn:
            for part in partitions.listed(conn, "logsluice"):
                conn.execute(f"ALTER TABLE {part.full_name} SET TABLESPACE small")
        room = ["mount", "-o", "remount,size=64m", folder]
        yield lambda: subprocess.run(room, check=True, timeout=LIMIT), "a file system of 4 MiB"
        shop.do("DROP SCHEMA logsluice CASCADE", "DROP TABLESPACE small")
    finally:
        subprocess.run(["umount", "-l", folder], check=True, timeout=LIMIT)


def test_a_15_disk_full(server, breakable, mode, options):
    """The server's disk is full."""
    with opened(breakable, options) as shop, small_disk(server, shop) as (give_room, how):
        for _ in range(300):
            shop.log(1, blob=secrets.token_hex(10_000))  # 6 MB in all, that cannot be compressed to less than 3
        failures = shop.await_failure(SQLSTATE_DISK_FULL, count=3)
        assert {f["verdict"] for f in failures} == {"retry"}
        assert not shop.dead()
        give_room()
        recovery = shop.recover()
        judge("A-15", mode, shop, recovery=recovery, note=f"{how}; {len(failures)} attempts or more refused")
        assert recovery < 60


def test_a_16_read_only_after_a_failover(shop, admin, proxy, mode):
    """The primary takes reads only: every attempt leaves its connection and looks for the new one."""
    before = proxy.connections
    with demoted(shop, admin, proxy):
        pass
    recovery = shop.recover()
    note = f"{len(shop.failed('25006'))} attempts refused, {proxy.connections - before} connections"
    judge("A-16", mode, shop, recovery=recovery, note=note)


# The connections are taken after the forks: a child that ends would say goodbye on those that it inherited.
FLEET = """
import psycopg
import logsluice.handlers, logsluice.sinks.postgres     # here: not twenty times

def pause():
    threading.Event().wait(0.05)     # not `until`: twenty that look every 2 ms leave nobody else a processor

def main():
    to_go, go = os.pipe()
    to_tell, tell_parent = os.pipe()

    def child(n):
        os.close(go)
        options = eval(os.environ["OPTIONS"])
        configure(linger=0.05, idle_close=0.2, shutdown_timeout=40, backoff_initial=0.2, backoff_max=2, create=False, **options)
        os.read(to_go, 1)                     # its end: the connections are taken
        orders(f"child{n}", 50)
        while not handler().stats().retries:
            pause()
        os.write(tell_parent, b"r")
        while handler().stats().waiting:
            pause()
        failed = handler().stats().recent["failed"]
        errors = all("too many clients" in f["error"] or "remaining connection slots" in f["error"] for f in failed)
        os.write(tell_parent, json.dumps([handler().stats().retries, errors]).encode().ljust(30))

    children = [fork(child, n) for n in range(20)]
    taken = []
    while True:
        try:
            taken.append(psycopg.connect(DSN))
        except psycopg.OperationalError:
            break
    os.close(go)
    began = time.monotonic()
    for _ in children:
        assert os.read(to_tell, 1) == b"r"
    seconds = time.monotonic() - began
    for conn in taken:
        conn.close()
    began = time.monotonic()
    told = [json.loads(os.read(to_tell, 30)) for _ in children]
    recovery = time.monotonic() - began
    assert all(ended(pid, 30) for pid in children)
    tell(attempts=[t[0] for t in told], errors=[t[1] for t in told], seconds=seconds, recovery=recovery, taken=len(taken))

main()
"""


@pytest.fixture(scope="module")
def small(cluster):
    """A server with fewer connections than the fleet has processes."""
    settings = {**SETTINGS, "max_connections": 10, "superuser_reserved_connections": 3}
    with EmbeddedPostgres(template=cluster, settings=settings) as server:
        yield server


def test_a_17_too_many_connections(small, mode, options, tmp_path):
    """The server has no connection left for a fleet of 20 processes; then it has a few."""
    with psycopg.connect(small.dsn(), autocommit=True) as conn:
        name = create_database(conn)
        theirs = small.dsn(name)
        with psycopg.connect(theirs, autocommit=True) as other:
            schema.migrate(other)
        with writer(theirs, conn) as (role, _):
            ran = run(role, tmp_path, FLEET, timeout=3 * LIMIT, OPTIONS=repr(options))
        found = stored_ids(theirs)
        drop_database(conn, name)
    told = ran.told
    attempts, seconds = told["attempts"], told["seconds"]
    wanted = set(ran.ids)
    assert len(wanted) == 20 * 50
    assert len(attempts) == 20
    assert all(attempts)  # each was refused at least once
    assert set(told["errors"]) == {True}
    worst = max(count / (seconds + told["recovery"]) for count in attempts)
    matrix.row(
        "A-17",
        mode,
        lost=wanted - found.keys(),
        twice=[name for name, times in found.items() if times > 1],
        recovery=told["recovery"],
        note=f"20 processes, {told['taken']} connections: {sum(attempts)} attempts refused, at most {worst:.1f} a second and process",
    )
    assert worst < 2 * ROOM


def test_a_18_password_rotated(dsn, admin, mode, options, capfd):
    """The role's password changes: the open connection goes on, a new one is refused until the program knows it."""
    with password_rotated(dsn, admin, **options) as (shop, mend):
        refused = len(shop.failed("28000"))
        mend()
        recovery = shop.recover()
        judge("A-18", mode, shop, recovery=recovery, note=f"{refused} logins refused or more; neither password said")
        everything = repr((capfd.readouterr(), shop.stats))
    assert "password authentication failed" in everything
    assert not any(password in everything for password in PASSWORDS)


class Resolver:
    """What the name of the database means now, for this process; None: the name server is away."""

    NAME = "database.test"

    def __init__(self, monkeypatch):
        self.address, self.asked = None, 0
        self._real = socket.getaddrinfo
        monkeypatch.setattr(socket, "getaddrinfo", self._resolve)

    def _resolve(self, host, *args, **options):
        if host != self.NAME:
            return self._real(host, *args, **options)
        self.asked += 1
        if self.address is None:
            raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")
        return self._real(self.address, *args, **options)


def test_a_19_dns(dsn, proxy, mode, options, monkeypatch):
    """The name of the server cannot be resolved; then it means one address, and then another."""
    resolver = Resolver(monkeypatch)
    with (
        Proxy(dsn, address="127.0.0.2", port=proxy.port) as other,
        Shop(make_conninfo(proxy.dsn, host=Resolver.NAME), read=dsn, **options) as shop,
    ):
        shop.log(100)
        failures = shop.await_failure(count=2)
        assert all("name resolution" in f["error"] and f["verdict"] == "retry" for f in failures)
        resolver.address = proxy.address
        recoveries = [shop.recover()]
        assert (proxy.connections, other.connections) == (1, 0)
        asked, resolver.address = resolver.asked, other.address
        proxy.refuse()
        proxy.cut()
        shop.log(100)
        recoveries.append(shop.recover())
        attempts = resolver.asked - asked
        assert (proxy.connections, other.connections) == (1, 1)
        note = f"{len(failures)} failures of the name server; the new address at attempt {attempts}"
        judge("A-19", mode, shop, recovery=max(recoveries), note=note)
        assert attempts <= 2


def test_a_20_failover_that_lost_commits(server, breakable, mode, options):
    """The new primary lacks the last commits (outside our guarantee): lost is that tail, and not a record more."""
    copy = server.folder / "before"
    with opened(breakable, options) as shop:
        os.kill(server.pid, signal.SIGINT)
        assert until(lambda: server.pid is None, LIMIT)
        shutil.copytree(server.data, copy, copy_function=shutil.copyfile)
        server.start()
        tail = shop.log(100)
        shop.recover()
        assert set(tail) <= set(shop.stored())
        os.kill(server.pid, signal.SIGINT)
        assert until(lambda: server.pid is None, LIMIT)
        shutil.rmtree(server.data)
        files.copy_cluster(copy, server.data, server._account)
        shutil.rmtree(copy)
        server.start()
        assert shop.stored() == [0]  # the fault: what had been confirmed is gone
        shop.log(100)
        recovery = shop.recover()
        lost, twice = shop.lost_and_twice()
        matrix.row(
            "A-20", mode, lost=lost, twice=twice, recovery=recovery, losing=True,
            note="without retention: exactly the tail that the old primary took along",
        )  # fmt: skip
        assert lost == tail


# --- what stands in between -----------------------------------------------------------------------------------------


def test_a_21_pgbouncer(server, breakable, mode, options):
    """A real PgBouncer in transaction mode: no session state of ours, and the faults A-02 to A-08 through it."""
    pool = 3
    with (
        PgBouncer(breakable, pool=pool) as bouncer,
        Proxy(bouncer.dsn) as proxy,
        opened(proxy.dsn, options, read=breakable, io_timeout=1) as shop,
    ):
        for number in range(30):  # what is repeated is what a client would prepare; psycopg does at the fifth
            shop.log(number)
            shop.recover()
        assert named_statements(bouncer.dsn, pool) == [0] * pool
        done = {}
        done["lost replies"] = lose_commits(shop, proxy, 5)
        before = proxy.cuts
        while proxy.cuts < before + 10:
            proxy.cut_at(random.Random(proxy.cuts).randrange(30_000))
            shop.log(150)
            shop.recover()
        done["cuts"] = proxy.cuts - before
        for end in ("SELECT pg_terminate_backend(%s)", None):
            held = proxy.hold_at(COPY_DONE)
            shop.log(200)
            assert held.wait(LIMIT)
            pid = copying(shop)
            shop.query(end, pid) if end else os.kill(pid, signal.SIGKILL)
            assert ended(pid, LIMIT)
            held.release()
            shop.recover()
        done["backends ended in COPY"] = 2
        for crash in (lambda: restart(server, signal.SIGINT), server.kill):
            with loading(shop):
                before = len(shop.given)
                assert until(lambda before=before: len(shop.given) > before + 200, LIMIT)
                crash()
                server.start()
                up = time.monotonic()
            recovery = shop.recover(up)
        done["restarts"] = 2
        known, late = shop.known, proxy.hold_at(COMMIT)
        shop.log(20)
        assert late.wait(LIMIT)
        proxy.drop(kind(b"X"))  # the goodbye of who gives up: behind the COMMIT, PgBouncer would heed it alone
        assert until(lambda: shop.writes[-1][2], LIMIT)
        late.release()
        shop.recover()
        assert proxy.dropped == 1
        done["late COMMITs"] = shop.known - known
        note = ", ".join(f"{count} {what}" for what, count in done.items())
        judge("A-21", mode, shop, recovery=recovery, note=f"named prepared statements 0; {note}")
        assert done["late COMMITs"]  # one; two if the batch had been halved meanwhile
        assert done["lost replies"] == 5


def named_statements(dsn, pool):
    """How many each of the pool's sessions knows: all of them are in a transaction at once."""
    counts = {}
    with contextlib.ExitStack() as stack:
        for _ in range(pool):
            conn = stack.enter_context(psycopg.connect(dsn, prepare_threshold=None))
            pid, count = conn.execute(
                "SELECT pg_backend_pid(), (SELECT count(*) FROM pg_prepared_statements)"
            ).fetchone()
            counts[pid] = count
    return list(counts.values())


@pytest.fixture(scope="module")
def certificates(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tls")
    return {
        "right": certificate(folder, "right"),
        "other": certificate(folder, "other"),
        "expired": certificate(folder, "expired", days=-1),
    }


@pytest.fixture(scope="module")
def tls(cluster, certificates):
    with tls_server(cluster, *certificates["right"]) as server:
        yield server


@pytest.fixture
def secured(tls):
    """A fresh database on it: its name, and a dsn through the socket, which needs no TLS."""
    with psycopg.connect(tls.local_dsn(), autocommit=True) as conn:
        name = create_database(conn)
        yield name, tls.local_dsn(name)
        drop_database(conn, name)


def test_a_22_tls(tls, secured, dsn, certificates, mode, options, tmp_path, capfd):
    """The certificate is another's, or has expired; TLS is not spoken by the server, or not by us. Nothing goes in clear."""
    name, local = secured
    root = tmp_path / "root.crt"
    right = tls.tls_dsn(root, name)
    plain_server = make_conninfo(dsn, host="localhost", hostaddr="127.0.0.1", sslmode="verify-full", sslrootcert=root)
    plain_client = make_conninfo(right, sslmode="disable")
    current = [right]

    def trust(which):
        root.write_bytes(certificates[which][1].read_bytes())

    def expire():
        tls.show(*certificates["expired"])
        trust("expired")  # its age alone is wrong
        assert until(lambda: not lets_in(right), LIMIT)  # the server takes it up when it gets its signal

    def mend():
        tls.show(*certificates["right"])
        trust("right")
        assert until(lambda: lets_in(right), LIMIT)
        current[0] = right

    faults = {
        "another certificate": (lambda: trust("other"), "certificate verify failed"),
        "an expired one": (expire, "certificate verify failed"),
        "a server without TLS": (lambda: current.__setitem__(0, plain_server), "does not support SSL"),
        "a client without TLS": (lambda: current.__setitem__(0, plain_client), "no encryption"),
    }
    mend()
    with Shop(lambda: current[0], read=local, **options) as shop:
        for what, (wrong, says) in faults.items():
            wrong()
            terminate(shop)
            known = shop.stats.retries if shop.given else 0
            shop.log(10)
            assert until(lambda known=known: shop.stats.retries >= known + 3, LIMIT)
            assert says in shop.failed()[-1]["error"], (what, shop.failed()[-1])
            assert shop.stats.stored == len(shop.given) - 10
            assert not sessions(shop)
            if len(shop.given) == 10:
                assert says in capfd.readouterr().err  # later ones are said once a minute
            mend()
            recovery = shop.recover()
            assert sessions(shop) == [(True,)]
        with psycopg.connect(dsn) as plain:
            assert plain.execute("SELECT count(*) FROM logsluice.logs").fetchone() == (0,)
        judge("A-22", mode, shop, recovery=recovery, note=f"sessions 0, rows 0 with {', '.join(faults)}")


def sessions(shop):
    """The handler's sessions: whether each is encrypted."""
    return shop.query(
        "SELECT ssl FROM pg_stat_ssl JOIN pg_stat_activity USING (pid) "
        "WHERE application_name LIKE 'logsluice%' AND datname = current_database()"
    )


def lets_in(dsn):
    try:
        psycopg.connect(dsn).close()
    except psycopg.OperationalError:
        return False
    return True


# --- somebody changed the tables ------------------------------------------------------------------------------------


@pytest.mark.parametrize("what", ["table missing", "column renamed", "privilege revoked"])
def test_a_23_tables_and_privileges(dsn, admin, mode, options, what, capfd):
    """The table or a column is gone, or the role may not write into it any more."""
    with writer(dsn, admin) as (theirs, role), Shop(theirs, read=dsn, create=False, **options) as shop:
        shop.watch()
        with broken(shop, what, role) as says:
            attempts = len(shop.failed())
        judge("A-23", mode, shop, recovery=shop.recover(), note=f"{what}: {attempts} attempts or more were blocked")
    said = capfd.readouterr().err
    assert "blocked, records are kept" in said
    assert says in said


def test_a_24_no_partition(dsn, admin, mode, options):
    """No partition for the timestamp: it is made; where the role may not, records are kept until somebody allows it."""
    function = "FUNCTION logsluice.make_partitions(timestamptz, timestamptz, text, text)"
    with writer(dsn, admin) as (theirs, role), opened(theirs, options, read=dsn, create=False) as shop:
        for tid, days in [(1, -300), (2, 1.9)]:
            shop.given.append(tid)
            shop.handler.handle(dated(tid, days))
        assert shop.flush()
        made = len(shop.stored())
        assert made == 3
        shop.do(f"REVOKE EXECUTE ON {function} FROM {role}")
        shop.given.append(3)
        shop.handler.handle(dated(3, -100))
        shop.log(10)
        failures = shop.await_failure("42501", count=2)
        assert {f["verdict"] for f in failures} == {"blocked"}
        assert len(shop.stored()) == made
        shop.do(f"GRANT EXECUTE ON {function} TO {role}")
        note = f"2 partitions made at once; {len(failures)} attempts blocked without the right to make one"
        judge("A-24", mode, shop, recovery=shop.recover(), note=note)


def test_a_25_schema_drift(shop, mode):
    """A new column is NOT NULL and nothing fills it: the table is to blame, not 1000 rows."""
    with drifted(shop) as attempts:
        pass
    recovery = shop.recover()
    dead = len(shop.dead())
    note = f"blocked after {attempts} attempts, {dead} dead letters of 1000"
    judge("A-25", mode, shop, recovery=recovery, note=note, dead=dead)
    assert dead <= 20


# --- the data -------------------------------------------------------------------------------------------------------


def test_a_26_one_poison_row(dsn, mode, options):
    """One row in 5000 breaks a constraint: a dead letter, in the transaction that stores the others."""
    with Shop(dsn, linger=0.3, **options) as shop:
        attempts = one_bad_row_in_5000(shop)
        judge(
            "A-26", mode, shop, recovery=None, note=f"1 dead letter of 5001, {attempts} attempts for its batch", dead=1
        )


def test_a_27_poison_storm(dsn, mode, options):
    """A tenth of 5,000 rows name one of 40 users that do not exist."""
    storm_tables(dsn)
    speed, shop = storm(dsn, 5_000, user=lambda n: 2000 + n // 10 % 40 if n % 10 == 0 else 1 + n % 1000, **options)
    worst = max(shop.attempts_a_batch())
    note = f"500 dead letters of 5001, at most {worst} attempts a batch, {speed:,.0f} records/s"
    judge("A-27", mode, shop, recovery=None, note=note, dead=500, table=STORM_TABLE)
    assert worst <= 32


def test_a_28_pool_exhausted(dsn, mode, options):
    """The program's own pool has no connection left: the handler has one of its own."""
    with psycopg_pool.ConnectionPool(dsn, min_size=2, max_size=2, timeout=0.2) as pool, opened(dsn, options) as shop:
        with pool.connection(), pool.connection():
            with pytest.raises(psycopg_pool.PoolTimeout):
                pool.getconn()
            terminate(shop)  # it has to connect anew, beside the pool
            shop.log(100)
            recovery = shop.recover()
            assert set(shop.given) == set(shop.stored())
        judge("A-28", mode, shop, recovery=recovery, note="stored while both connections of the pool were held")
        assert recovery < 5 * ROOM
