"""SinkHandler: a stranger's sink on the handlers' path, and docs/howto/own-sink.md as it is written."""

import collections
import contextlib
import json
import logging
import sqlite3
import subprocess
import sys
import threading

import pytest

from logsluice import ConfigError, SinkHandler
from logsluice.config import SinkSettings
from logsluice.delivery import Failure
from logsluice.sinks import Outcome, Sink, SinkError, rows
from logsluice.sinks.guard import Guard
from support.howto import PAGES, Page, environment
from support.shop import LIMIT
from support.tables import options_shown, own_options


def lines_of(path):
    with contextlib.closing(sqlite3.connect(path)) as db:
        return [json.loads(line) for (line,) in db.execute("SELECT line FROM logs ORDER BY stream, seq")]


@pytest.fixture
def page(tmp_path):
    page = Page("own-sink")
    page.lay_out(tmp_path)
    return page


def run(folder, *command, **env):
    return subprocess.run(
        [sys.executable, *command], cwd=folder, capture_output=True, text=True, timeout=LIMIT, check=False,
        env=environment(PYTHONPATH=str(folder), **env),
    )  # fmt: skip


def test_the_pages_program_and_test(page, tmp_path):
    ran = run(tmp_path, "program.py")
    assert (ran.returncode, ran.stderr) == (0, "")
    (line,) = lines_of(tmp_path / "logs.db")
    assert line["message"] == "order 17 paid"
    assert line["amount"] == 12.5
    ran = run(tmp_path, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", "test_sqlite_sink.py")
    assert ran.returncode == 0, ran.stdout
    assert len(page.files["sqlite_sink.py"].strip().splitlines()) <= 30


KILLED = """
import logging, os, signal, sys
from logsluice import SinkHandler
from sqlite_sink import SqliteSink
handler = SinkHandler(sink=SqliteSink, options={"path": "logs.db"}, journal="journal", linger=0.001)
log = logging.getLogger("shop")
log.setLevel("INFO")
log.addHandler(handler)
first, count = int(sys.argv[1]), int(sys.argv[2])
for n in range(first, first + count):
    log.info("order %s", n)
    print(n, flush=True)
if len(sys.argv) > 3:
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.usefixtures("page")
def test_a_killed_program_loses_nothing_with_a_journal(tmp_path):
    (tmp_path / "killed.py").write_text(KILLED)
    dead = run(tmp_path, "killed.py", "0", "3000", "kill")
    assert dead.returncode == -9
    assert dead.stdout.split() == [str(n) for n in range(3000)]
    ran = run(tmp_path, "killed.py", "3000", "1000")
    assert ran.returncode == 0, ran.stderr
    numbers = sorted(int(line["message"].split()[1]) for line in lines_of(tmp_path / "logs.db"))
    assert numbers == list(range(4000))


class Rows(collections.UserList):
    """A list of the test's: a plain one in an option would be copied, as all that comes from JSON and YAML."""


class Listed(Sink):
    """It keeps what it is given in a list of the test's; `trouble` is raised instead, once each."""

    def __init__(self, stream, there, trouble):
        self.there, self.trouble = there, trouble

    def write(self, batch, counts):
        if self.trouble:
            raise self.trouble.pop(0)
        self.there += rows(batch)


def logger_of(handler):
    logger = logging.Logger("shop")
    logger.addHandler(handler)
    return logger


def handler_of(there, trouble=(), **options):
    given = {"there": there, "trouble": Rows(trouble)}
    return SinkHandler(sink=Listed, options=given, linger=0.001, backoff_initial=0.001, backoff_max=0.01, **options)


def test_whatever_a_sink_raises_is_an_outage_that_loses_nothing(capfd):
    there = Rows()
    trouble = [OSError("row content"), SinkError(Failure("not now")), SystemError("row content"), KeyError("x")]
    handler = handler_of(there, trouble)
    try:
        log = logger_of(handler)
        for n in range(10):
            log.info("order %s", n)
        assert handler.flush(LIMIT)
        assert [json.loads(line)["message"] for _, line in there] == [f"order {n}" for n in range(10)]
        stats = handler.stats()
        assert (stats.offered, stats.stored, stats.waiting, stats.retries) == (10, 10, 0, 4)
    finally:
        handler.close()
    assert "row content" not in capfd.readouterr().err


def test_a_formatter_of_ones_own_makes_the_line():
    there = Rows()
    handler = handler_of(there)
    handler.setFormatter(logging.Formatter("%(levelname)s %(name)s: %(message)s"))
    try:
        try:
            1 / 0
        except ZeroDivisionError:
            logger_of(handler).exception("bad\tday")
        assert handler.flush(LIMIT)
    finally:
        handler.close()
    ((seq, line),) = there
    assert seq == 1
    assert line.startswith("ERROR shop: bad\tday\nTraceback (most recent call last):\n")
    assert line.endswith("ZeroDivisionError: division by zero")


class Copied(Sink):
    def __init__(self, stream, there):
        self.there = there

    def write(self, batch, counts):
        self.there.append(batch.data)
        return Outcome(batch.rows, 0)


def test_rows_of_copy_come_as_they_are_and_by_the_quick_way():
    from logsluice.columns import LOG_COLUMNS
    from logsluice.decoding import row

    there = Rows()
    handler = SinkHandler(sink=Copied, options={"there": there}, format="copy", linger=0.001)
    try:
        logger_of(handler).info("order %s", 17, extra={"amount": 1.5})
        assert handler.flush(LIMIT)
        assert handler._pair[0].quick.open
    finally:
        handler.close()
    found = row(b"".join(there), LOG_COLUMNS, typed=True)
    assert (found["message"], found["attributes"]) == ("order 17", {"amount": 1.5})


def test_a_sink_that_hangs_delays_no_other_handler():
    """Fan-out is isolated: each handler has a buffer and a thread of its own."""
    go, there, slow = threading.Event(), Rows(), Rows()

    class Hanging(Listed):
        def write(self, batch, counts):
            assert go.wait(LIMIT)
            return super().write(batch, counts)

    stuck = SinkHandler(sink=Hanging, options={"there": slow, "trouble": Rows()}, linger=0.001)
    other = handler_of(there)
    try:
        log = logger_of(stuck)
        log.addHandler(other)
        for n in range(100):
            log.info("order %s", n)
        assert other.flush(LIMIT)
        assert (len(there), len(slow), stuck.stats().waiting) == (100, 0, 100)
        go.set()
        assert stuck.flush(LIMIT)
        assert len(slow) == 100
    finally:
        go.set()
        stuck.close()
        other.close()


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({}, "sink is missing: name a class"),
        ({"sink": "nowhere.Class"}, "cannot be imported"),
        ({"sink": "SqliteSink"}, "sink must be a class or 'package.module.Class'"),
        ({"sink": "pathlib.Nothing"}, "cannot be imported"),
        ({"sink": 7}, "sink must be a class"),
        ({"sink": "pathlib.Path", "format": "xml"}, "format must be one of 'json', 'copy'"),
        ({"sink": "pathlib.Path", "options": {"stream": 1}}, "'stream' is what the handler itself gives"),
        ({"sink": "pathlib.Path", "options": ["a"]}, "options must be a mapping"),
        ({"sink": "pathlib.Path", "dsn": ""}, "unknown option 'dsn'"),
        ({"sink": "pathlib.Path", "names": "exs"}, "did you mean 'ecs'"),
    ],
)
def test_a_wrong_option_says_what_to_write(options, text):
    with pytest.raises(ConfigError) as raised:
        SinkHandler(**options)
    assert text in str(raised.value)


def test_a_sink_that_raises_in_a_child_ends_nothing():
    class Raises(Sink):
        def forked(self):
            raise OSError

    Guard(Raises()).forked()


def test_the_pages_table_of_options_is_the_settings():
    """Every option of a SinkHandler's own, with its default, in the order of the code."""
    assert options_shown((PAGES / "own-sink.md").read_text(encoding="utf-8")) == own_options(SinkSettings)


def test_the_page_is_in_the_list():
    assert "own-sink.md" in (PAGES / "README.md").read_text(encoding="utf-8")
