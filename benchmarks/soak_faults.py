"""
The soak's faults, and when they happen.

Each method of `Faults` is one fault: it does it, proves that it happened, ends it. Two threads work through a schedule
each, so that faults of the server and of the processes overlap; within a schedule they come one after the other. A disk
that is full stands among the faults of processes: what was accepted meanwhile waits in memory and is lost with its
process, rightly, so until it is written down none may be killed.
"""

from __future__ import annotations

import contextlib
import errno
import os
import random
import signal
import socket
import threading
import time
from pathlib import Path
from typing import NamedTuple

import psycopg
from soak_producers import LIMIT, OPTIONS

from support.commits import COMMIT
from support.journals import restart
from support.processes import ended, until
from support.proxy import COPY_DONE

IO_TIMEOUT = OPTIONS["io_timeout"]
OF_THE_SERVER = (
    "server restarted, fast",
    "server restarted, immediate",
    "backend terminated in COPY",
    "COMMIT reply lost",
    "COMMIT late",
    "cut at a random byte",
    "blackhole",
    "backends stopped",
    "table locked",
    "connections refused",
)
OF_PROCESSES = ("SIGKILL", "os._exit", "SIGTERM", "normal exit", "fork", "burst", "disk full")
OURS = "FROM pg_stat_activity WHERE application_name LIKE 'logsluice%%'"
SIZES = 1 << 20, 1 << 16, 1 << 12  # bytes: what a filler asks for; a page is the least that a file system gives


class Planned(NamedTuple):
    """A fault that is to come: seconds from the start, its name, the seed of what is random in it."""

    at: float
    name: str
    seed: int


def plan(seed, seconds, *, journal):
    """Two schedules. All kinds of one come before any comes again: a short run meets most of them."""
    chance, made = random.Random(seed), []
    # Seconds between faults: a fault of the server takes two on average, and something must be stored in between.
    for kinds, pause in ((OF_THE_SERVER, (0.5, 4.0)), (OF_PROCESSES, (0.3, 2.5))):
        deck, planned, at = [], [], chance.uniform(*pause)
        while at < seconds:
            deck = deck or chance.sample(kinds, len(kinds))
            name = deck.pop()
            if journal or name != "disk full":
                planned.append(Planned(at, name, chance.getrandbits(32)))
                at += chance.uniform(*pause)
        made.append(planned)
    return made


def stopped(pid):
    """Whether SIGSTOP has reached it."""
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()[0] == "T"
    except FileNotFoundError:
        return False


class Faults:
    """What can happen. `mount`: the file system of the journal, None in memory mode."""

    def __init__(self, server, dsn, proxy, family, mount):
        self.server, self.dsn, self.proxy, self.family, self.mount = server, dsn, proxy, family, mount
        self.happened = dict.fromkeys(OF_THE_SERVER + OF_PROCESSES, 0)
        self.trouble = []  # what went wrong with a fault itself
        self.over = threading.Event()
        self._pruning = threading.Lock()
        self._methods = {
            "server restarted, fast": lambda _: restart(server, signal.SIGINT),
            "server restarted, immediate": lambda _: restart(server, signal.SIGQUIT),
            "backend terminated in COPY": self.terminate,
            "COMMIT reply lost": self.lose_reply,
            "COMMIT late": self.delay_commit,
            "cut at a random byte": self.cut,
            "blackhole": self.swallow,
            "backends stopped": self.stop,
            "table locked": self.lock,
            "connections refused": self.refuse,
            "SIGKILL": lambda chance: self.replace(chance, "SIGKILL", -signal.SIGKILL, lambda life: life.process.kill),
            "os._exit": lambda chance: self.replace(chance, "os._exit", 9, lambda life: lambda: life.tell("_exit")),
            # In memory mode the program answers to it and ends normally; with a journal it need not.
            "SIGTERM": lambda chance: self.replace(
                chance,
                "SIGTERM",
                -signal.SIGTERM if mount else 0,
                lambda life: life.process.terminate,
            ),
            "normal exit": lambda chance: self.replace(chance, "exit", 0, lambda life: lambda: life.tell("exit")),
            "fork": lambda chance: self.count_up(chance.choice(family.living), "fork", "children", 3),
            "burst": lambda chance: self.count_up(chance.choice(family.living), "burst", "bursts", 1),
            "disk full": self.fill_disk,
        }

    def run(self, schedules, seconds):
        """Let it all happen; what has not begun by then is left out."""
        start = time.monotonic()

        def work(planned):
            try:
                for fault in planned:
                    if self.over.wait(max(0.0, start + fault.at - time.monotonic())):
                        return
                    if time.monotonic() > start + seconds:
                        return
                    self._methods[fault.name](random.Random(fault.seed))
                    self.happened[fault.name] += 1
                    self.open_connections()
            except BaseException as error:
                self.trouble.append(f"{fault.name}: {type(error).__name__}: {error}")
                self.over.set()

        threads = [threading.Thread(target=work, args=(planned,)) for planned in schedules]
        for thread in threads:
            thread.start()
        try:
            for thread in threads:
                thread.join()
        finally:
            self.over.set()  # somebody ends us: no further faults

    # --- the server and the way to it -------------------------------------------------------------------------------

    def query(self, text, *values):
        with psycopg.connect(self.dsn, autocommit=True) as conn:
            return conn.execute(text, values).fetchall()

    def last(self, chance, least, most):
        """Let it last for so many seconds."""
        threading.Event().wait(chance.uniform(least, most))

    def terminate(self, _chance):
        held = self.proxy.hold_at(COPY_DONE)
        assert held.wait(LIMIT)
        # No other COPY takes 0.2 s here: it is the one whose end is held.
        stuck = f"SELECT pid, pg_terminate_backend(pid) {OURS} AND state = 'active' AND query LIKE 'COPY %%'"
        found = until(lambda: self.query(f"{stuck} AND query_start < now() - interval '0.2 s'"), LIMIT)
        assert found
        assert all(done and ended(pid, LIMIT) for pid, done in found)
        held.release()

    def lose_reply(self, _chance):
        before = self.proxy.cuts
        self.proxy.cut_after(COMMIT)
        assert until(lambda: self.proxy.cuts > before, LIMIT)

    def delay_commit(self, _chance):
        """The client gives up on it and tries again; then it arrives after all."""
        held = self.proxy.hold_at(COMMIT)
        assert held.wait(LIMIT)
        threading.Event().wait(1.25 * IO_TIMEOUT)
        held.release()

    def cut(self, chance):
        before = self.proxy.cuts
        self.proxy.cut_at(chance.randrange(300_000))  # bytes: half a second of all producers
        assert until(lambda: self.proxy.cuts > before, LIMIT)

    def swallow(self, chance):
        before = self.proxy.swallowed
        self.proxy.swallow()
        self.last(chance, 0.5, 4.5)
        assert until(lambda: self.proxy.swallowed > before, LIMIT)
        self._cut_off()  # no network leaves out a part and goes on behind it
        self.proxy.heal()

    def refuse(self, chance):
        self._cut_off()
        try:
            socket.create_connection((self.proxy.address, self.proxy.port), 1).close()
        except ConnectionRefusedError:
            pass
        else:
            raise AssertionError("a connection was accepted")
        self.last(chance, 0.5, 4.0)
        self.proxy.heal()

    def _cut_off(self):
        assert until(self.open_connections, LIMIT)
        before = self.proxy.cuts
        self.proxy.refuse()
        self.proxy.cut()
        assert self.proxy.cuts > before

    def open_connections(self):
        """How many go through the proxy. It keeps those that have ended, two descriptors each: they are closed here."""
        with self._pruning:
            known = list(self.proxy._open)
            ended_ones = [one for one in known if not any(thread.is_alive() for thread in one._threads)]
            for one in ended_ones:
                self.proxy._open.remove(one)
                one.close()
            return len(known) - len(ended_ones)

    def stop(self, chance):
        pids = []
        try:
            assert until(lambda: self.query(f"SELECT pid {OURS}"), LIMIT)
            for (pid,) in self.query(f"SELECT pid {OURS}"):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGSTOP)
                    pids.append(pid)
            assert until(lambda: any(map(stopped, pids)), LIMIT)
            self.last(chance, 0.5, 4.0)
        finally:
            for pid in pids:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGCONT)

    def lock(self, chance):
        waits = "SELECT 1 FROM pg_locks WHERE NOT granted AND relation = 'logsluice.logs'::regclass"
        with psycopg.connect(self.dsn) as conn:
            conn.execute("LOCK TABLE logsluice.logs IN ACCESS EXCLUSIVE MODE")
            assert until(lambda: self.query(waits), LIMIT)
            self.last(chance, 0.3, 3.0)

    # --- processes --------------------------------------------------------------------------------------------------

    def replace(self, chance, how, status, act):
        """End one of the producers and begin another."""
        life = chance.choice(self.family.living)
        self.family.end(life, how, status, act(life))
        self.family.begin()

    def count_up(self, life, word, figure, by):
        """Have a producer do something that it counts."""
        done = self.ask(life, word, figure, by)
        assert until(done, LIMIT), life.said()

    def ask(self, life, word, figure, by):
        """Tell it; return what says whether it is done."""
        wanted = life.figures()[figure] + by
        life.tell(word)
        return lambda: life.figures()[figure] >= wanted

    # --- the disk ---------------------------------------------------------------------------------------------------

    def fill_disk(self, chance):
        """Leave no room in the journal's file system, until a producer meets that; then free it."""
        living, refused = self.family.living, 0
        victim, done = chance.choice(living), lambda: True
        with (self.mount / "filler").open("wb") as file:
            began, lasts = time.monotonic(), chance.uniform(0.5, 3.0)
            while True:
                refused += self._fill(file)  # again and again: stored segments give back their room
                lasted = time.monotonic() - began
                met = any(life.figures()["in_memory_bytes"] for life in living)
                if met and lasted > lasts:
                    break
                assert lasted < LIMIT, "no producer met the full disk"
                if not met and done():  # its segment fills, and it asks for a new one
                    done = self.ask(victim, "burst", "bursts", 1)
                threading.Event().wait(0.01)
            file.truncate(0)
        assert refused
        # What came meanwhile is written down: until then nobody may be killed.
        for life in living:
            assert self.family.says(life, lambda found: not found["in_memory_bytes"]), life.figures()

    def _fill(self, file):
        """Take what room there is; how often there was none."""
        refused = 0
        for size in SIZES:
            while True:
                try:
                    os.posix_fallocate(file.fileno(), os.fstat(file.fileno()).st_size, size)
                except OSError as error:
                    if error.errno != errno.ENOSPC:
                        raise
                    refused += 1
                    break
        return refused
