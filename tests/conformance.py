"""
The rules of the Sink protocol, one test a rule, over every sink of ours, a stranger's and a fake.

The rules themselves are src/logsluice/conformance.py, for anybody's sink; here is what each sink stands on.
"""

import contextlib
import fcntl
import json
import logging
import mmap
import os
import sqlite3
import threading

import psycopg
import pytest

from logsluice import conformance, sinks
from logsluice.columns import LOG_COLUMNS, target_from
from logsluice.config import FileSettings, PostgresSettings, settings_from
from logsluice.conformance import RULES, Bench
from logsluice.delivery import Failure
from logsluice.diagnostics import Diagnostics
from logsluice.encoding import copy_row
from logsluice.formatters import SluiceJsonFormatter
from logsluice.httpconfig import HttpSettings
from logsluice.httpformats import FORMATS
from logsluice.httptarget import HttpTarget
from logsluice.sinks import Outcome, Sink, SinkError, rows
from logsluice.sinks.endpoint import HttpSink
from logsluice.sinks.file import FileSink, LogFile
from logsluice.sinks.guard import Guard
from logsluice.sinks.http import HttpLink
from logsluice.sinks.link import Link
from logsluice.sinks.postgres import PostgresSink
from support.endpoint import Answer, Stub
from support.proxy import Proxy
from support.tables import numbered, rule_number, rule_text, shown, table

LIMIT = 0.5  # seconds of io_timeout
HASTE = 0.01  # seconds: the limit of a sink that waits for longer than it may, so that the test does not


def json_frame(stream=None):
    def frame(seq, text):
        line = json.dumps({"message": text, "stream": str(stream() if stream else 1), "seq": seq})
        return f"{seq}\t{logging.INFO}\tshop\t{line}\n".encode()

    return frame


class FakeSink(Sink):
    """A list."""

    def __init__(self, stream, stored, state):
        self.stream, self.stored, self.state = stream, stored, state

    def write(self, batch, counts):
        if self.state["broken"] or self.state["silent"]:
            raise SinkError(Failure("it is broken, or the limit is over"))
        for seq, line in rows(batch):
            self.stored[self.stream, seq] = line
        return Outcome(batch.rows - len(batch.aside), len(batch.aside))


def bench_of(kind, *args, limit=LIMIT):
    """A bench of a fake of this class."""
    stored, state = {}, {"broken": False, "silent": False}
    return Bench(
        lambda stream: kind(stream, stored, state, *args), lambda: list(stored.values()), json_frame(),
        broken=lambda on: state.update(broken=on), silent=lambda on: state.update(silent=on), limit=limit,
    )  # fmt: skip


@contextlib.contextmanager
def fake(request):
    yield bench_of(FakeSink)


class SqliteSink(Sink):
    """A stranger's: it raises what sqlite3 raises, and returns nothing."""

    def __init__(self, stream, path):
        self.stream, self.path, self.db = stream, path, None

    def open(self):
        if self.db is None:
            self.db = sqlite3.connect(self.path, check_same_thread=False, timeout=LIMIT)
            self.db.execute("CREATE TABLE IF NOT EXISTS logs (stream, seq, line, PRIMARY KEY (stream, seq))")

    def write(self, batch, counts):
        with self.db:
            lines = [(self.stream, seq, line) for seq, line in rows(batch)]
            self.db.executemany("INSERT OR IGNORE INTO logs VALUES (?, ?, ?)", lines)

    def idle(self, seconds):
        self.close()

    def close(self):
        db, self.db = self.db, None
        if db is not None:
            db.close()


@contextlib.contextmanager
def sqlite(request):
    path = request.getfixturevalue("tmp_path") / "logs.db"
    held = []

    def read():
        with contextlib.closing(sqlite3.connect(path)) as db:
            return [line for (line,) in db.execute("SELECT line FROM logs")]

    def silent(on):
        if on:
            held.append(sqlite3.connect(path, isolation_level=None))
            held[-1].execute("BEGIN EXCLUSIVE")
        else:
            held.pop().close()

    yield Bench(
        lambda stream: Guard(SqliteSink(stream, path)), read, json_frame(), broken=silent, silent=silent, limit=LIMIT
    )  # fmt: skip


@contextlib.contextmanager
def file(request):
    path = request.getfixturevalue("tmp_path") / "app.log"
    settings = settings_from({"filename": str(path), "io_timeout": LIMIT}, FileSettings)
    bench = None

    def sink(stream):
        log = LogFile(settings, Diagnostics("test"), lambda: None)
        return FileSink(log, stream, fresh=False)

    def read():
        return path.read_text().splitlines() if path.is_file() else []

    def broken(on):
        if on:
            path.rename(path.with_suffix(".away"))
            path.mkdir()
        else:
            path.rmdir()
            path.with_suffix(".away").rename(path)

    held = []

    def silent(on):
        if on:
            held.append(os.open(path, os.O_RDWR))
            fcntl.flock(held[-1], fcntl.LOCK_EX)
        else:
            os.close(held.pop())

    bench = Bench(sink, read, json_frame(lambda: bench.streams[-1]), broken=broken, silent=silent, limit=LIMIT)
    yield bench


@contextlib.contextmanager
def postgres(request):
    dsn = request.getfixturevalue("dsn")
    table = target_from("logsluice", "logs", None)
    bench = None

    def frame(seq, text):
        values = dict.fromkeys(LOG_COLUMNS)
        values.update(seq=str(seq), stream=str(bench.streams[-1]), ts=ts, level="20", logger="shop", message=text)
        return copy_row([values[name] for name in LOG_COLUMNS])

    with psycopg.connect(dsn, autocommit=True) as conn, Proxy(dsn) as proxy:
        ts = conn.execute("SELECT now()::text").fetchone()[0]
        settings = settings_from({"dsn": proxy.dsn, "io_timeout": LIMIT}, PostgresSettings)

        def sink(stream):
            return PostgresSink(Link(settings, Diagnostics("test"), lambda: None), table, stream)

        def read():
            return [text for (text,) in conn.execute("SELECT message FROM logsluice.logs")]

        def broken(on):
            if on:
                proxy.refuse()
                proxy.cut()
            else:
                proxy.heal()

        holds = []

        def silent(on):
            if on:
                holds.append(proxy.hold_at(lambda message: True))
            else:
                holds.pop().release()

        bench = Bench(sink, read, frame, broken=broken, silent=silent, limit=LIMIT)
        yield bench


@contextlib.contextmanager
def http(request):
    options = {"io_timeout": LIMIT, "dead_letters": str(request.getfixturevalue("tmp_path") / "dead.jsonl")}
    with Stub() as stub:
        settings = settings_from({"url": stub.url(), **options}, HttpSettings)
        target = HttpTarget(name=stub.url(), formatter=SluiceJsonFormatter, refused="", format=FORMATS["ndjson"])

        def sink(stream):
            link = HttpLink(settings, target.format, Diagnostics("test"), lambda: None)
            return HttpSink(link, target, stream, {}, lambda: None)

        def answer(**options):
            return lambda on: setattr(stub, "decide", lambda request: Answer(**options if on else {}))

        yield Bench(
            sink, lambda: stub.stored(lambda request: request.body.decode().splitlines()), json_frame(), once=False,
            broken=answer(status=503), silent=answer(hang=True, stores=False), limit=LIMIT, trial_stores=True,
        )  # fmt: skip


SINKS = {"fake": fake, "sqlite": sqlite, "file": file, "http": http, "postgres": postgres}


CASES = {f"{rule.__name__}-{sink}": (rule, sink) for rule in RULES for sink in SINKS}


@pytest.mark.parametrize(("rule", "sink"), CASES.values(), ids=CASES)
def test_sink(rule, sink, request):
    with SINKS[sink](request) as bench:
        assert bench.broken  # or some rules would try nothing
        assert bench.silent
        rule(bench)


class Wrong(FakeSink):
    """A sink that breaks one rule, by its number."""

    def __init__(self, stream, stored, state, rule):
        super().__init__(stream, stored, state)
        self.rule, self.kept = rule, []
        self.gone = mmap.mmap(-1, 1)  # shared with a child: what would be the other end of a connection

    def write(self, batch, counts):
        if self.rule == 2:  # the last row only with the next batch
            lines, self.kept = [*self.kept, *rows(batch)][:-1], list(rows(batch))[-1:]
            self.stored.update({(self.stream, seq): line for seq, line in lines})
            return Outcome(batch.rows, 0)
        if self.rule == 3 and self.state["broken"]:
            raise OSError("not a SinkError")
        if self.rule == 5 and self.state["silent"]:
            threading.Event().wait(20 * HASTE)
        if self.gone[0]:
            raise SinkError(Failure("the other end was told goodbye"))
        if self.rule == 7 and self.state["broken"]:
            raise SinkError(Failure(f"refused: {batch.data.decode()}"))
        if self.rule == 4:
            self.stored.update({(self.stream, seq, len(self.stored)): line for seq, line in rows(batch)})
            return Outcome(batch.rows - len(batch.aside), len(batch.aside))
        if self.rule == 6:
            batch.aside.clear()
        return super().write(batch, counts)

    def accepts_any(self, frames):
        if self.rule == 8:
            self.stored.update({(self.stream, n, "trial"): frame.decode() for n, frame in enumerate(frames)})
        return True

    def forked(self):
        if self.rule == 9:
            self.gone[0] = 1

    def close(self):
        if self.rule == 1:
            self.stored.clear()


# What it does, by the rule that this breaks.
BREAKS = {
    1: "`close` takes away what is stored",
    2: "the last row of a batch is stored with the next one",
    3: "raises OSError",
    4: "stores again what is there",
    5: "waits for longer than it may",
    6: "stores rows that were set aside",
    7: "quotes rows in what it raises",
    8: "stores what is only tried",
    9: "`forked` says goodbye on the parent's connection",
}


@pytest.mark.parametrize("rule", BREAKS)
def test_a_sink_that_breaks_a_rule_is_found(rule):
    bench = bench_of(Wrong, rule, limit=HASTE if rule == 5 else LIMIT)
    with pytest.raises(AssertionError, match=f"rule {rule}: "):
        getattr(conformance, f"rule_{rule}")(bench)


def test_the_page_shows_each_rule_and_each_sink():
    """docs/explanation/conformance.md."""
    lines = [
        [rule_text(rule), *(f"`test_sink[{case}]`" for case, one in CASES.items() if one[0] is rule),
         BREAKS[rule_number(rule)]]
        for rule in RULES
    ]  # fmt: skip
    assert shown("explanation/conformance.md", "sinks") == table(["rule", *SINKS, "a sink that is found"], lines)
    assert [rule_number(rule) for rule in RULES] == list(BREAKS) == numbered(sinks.__doc__)
