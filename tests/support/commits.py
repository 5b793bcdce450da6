"""COMMITs whose answer never comes: lost on the way back, or given up by the client and carried out later."""

from __future__ import annotations

import os
import signal
from contextlib import contextmanager

import pytest

from logsluice.sinks import link
from logsluice.sinks.link import LimitedConnection
from logsluice.sinks.postgres import PostgresSink
from support.processes import until
from support.proxy import ending
from support.shop import LIMIT

COMMIT = ending(b"COMMIT")  # a batch's comes in one message with its watermark, a known batch's alone


def lose_commits(shop, proxy, rounds):
    cuts = proxy.cuts
    for n in range(rounds):
        proxy.cut_after(COMMIT)
        shop.log(20 + n)
        assert shop.flush()
    return proxy.cuts - cuts


@contextmanager
def without_watermark():
    """The control: what an earlier COMMIT has stored is not looked at."""
    real = PostgresSink._lock_watermark
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(PostgresSink, "_lock_watermark", lambda sink, conn, base: (real(sink, conn, base), base)[1])
        yield


class Frozen:
    """Stops the session's process just before it gets the message with COMMIT; it goes on when told to."""

    def __init__(self, monkeypatch):
        self.pid = None
        self.armed = False
        self.times = 0
        real = LimitedConnection.execute

        def execute(conn, text, *args, **options):
            if self.armed and isinstance(text, bytes) and text.endswith(b"; COMMIT"):
                self.armed = False
                self.pid = conn.info.backend_pid
                os.kill(self.pid, signal.SIGSTOP)
                self.times += 1
            return real(conn, text, *args, **options)

        monkeypatch.setattr(LimitedConnection, "execute", execute)

    def go_on(self):
        pid, self.pid = self.pid, None
        if pid is not None:
            os.kill(pid, signal.SIGCONT)


@contextmanager
def freezing():
    """Our limit is shorter than the server's: else the server would end the session instead of reading COMMIT."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        frozen = Frozen(monkeypatch)
        real = link.Link._connect

        def connect(link):
            conn = real(link)
            conn.limit = 0.4  # seconds
            return conn

        monkeypatch.setattr(link.Link, "_connect", connect)
        try:
            yield frozen
        finally:
            frozen.go_on()


def late_commits(shop, rounds):
    """The client gives up on COMMIT, tries again, and then the COMMIT arrives after all. The longest recovery, seconds."""
    recoveries = []
    with freezing() as frozen:
        shop.watch()
        shop.log()
        assert shop.flush()
        for _ in range(rounds):
            failures = len(shop.writes)
            frozen.armed = True
            shop.log(20)
            # Our limit, and then a retry that waits for the lock of the zombie or has sent its rows by now.
            assert until(lambda: len([e for _, _, e in shop.writes[failures:] if e]) >= 2, LIMIT)
            frozen.go_on()
            recoveries.append(shop.recover())
        assert frozen.times == rounds
    return max(recoveries)


def late_commit_without_lock(shop):
    """The control: looking without a lock finds nothing, sends again, and then both arrive."""

    def look(sink, conn, _base):
        sql = f"BEGIN; {sink._limits()}; SELECT position FROM logsluice.stream WHERE stream = {sink.stream}"
        cursor = conn.execute(sql)
        while cursor.nextset():
            pass
        return cursor.fetchone()[0]

    with freezing() as frozen, pytest.MonkeyPatch.context() as monkeypatch:
        shop.watch()
        shop.log()
        assert shop.flush()
        monkeypatch.setattr(PostgresSink, "_lock_watermark", look)
        frozen.armed = True
        shop.log(20)
        assert shop.flush()  # sent again: nothing was in its way
        assert frozen.times == 1
        pid = frozen.pid
        frozen.go_on()
        assert until(lambda: not shop.query("SELECT FROM pg_stat_activity WHERE pid = %s", pid), LIMIT)
