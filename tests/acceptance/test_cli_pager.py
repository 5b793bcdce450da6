"""What is longer than the screen goes through a pager, on a real terminal; and nothing else does."""

from __future__ import annotations

import os
import pty
import re
import select
import subprocess
import sys
import time

import psycopg
import pytest

from support.howto import environment

LIMIT = 60  # seconds: a moment as a rule


@pytest.fixture
def stored(dsn):
    with psycopg.connect(dsn, autocommit=True) as conn:
        conn.execute("SELECT logsluice.make_partitions(now() - interval '1 day', now())")
        conn.execute(
            "INSERT INTO logsluice.logs (ts, level, message, stream, seq, trace_id) "
            "SELECT now() - n * interval '1 ms', 20, 'row ' || n, 1, n, 'ab' FROM generate_series(1, 60) n"
        )
    return dsn


def on_a_terminal(dsn, *args, typed=b"", expect=None, **env):
    """(exit status, what the terminal shows) of a command on one of 24 lines."""
    control, terminal = pty.openpty()
    os.set_blocking(control, False)
    process = subprocess.Popen(
        [sys.executable, "-m", "logsluice", *args],
        stdin=terminal, stdout=terminal, stderr=terminal, start_new_session=True,
        env={**environment(LOGSLUICE_DSN=dsn), "TERM": "xterm", "LINES": "24", "COLUMNS": "200", **env},
    )  # fmt: skip
    os.close(terminal)
    shown, deadline = b"", time.monotonic() + LIMIT
    try:
        while time.monotonic() < deadline:
            if not select.select([control], [], [], 1)[0]:
                continue
            try:
                more = os.read(control, 65536)
            except OSError:  # nobody has the terminal any more
                break
            if not more:
                break
            shown += more
            if expect and expect in shown:
                os.write(control, typed)
                expect = None
        return process.wait(LIMIT), shown.decode()
    finally:
        if process.poll() is None:
            process.kill()
        os.close(control)


def test_long_output_is_paged_in_colour_until_the_reader_leaves(stored):
    # less shows the first screen, waits, and ends with q.
    status, shown = on_a_terminal(stored, "query", expect=b"row 50", typed=b"q", PAGER="less")
    assert status == 0
    assert "row 60" in shown
    assert "row 5 " not in shown
    assert "row 1\r" not in shown
    assert "\x1b[32mINFO" in shown
    # What fits is printed, and less ends by itself.
    status, shown = on_a_terminal(stored, "query", "-n", "3", PAGER="less")
    assert (status, len(re.findall("row ", shown))) == (0, 3)


def test_which_pager(stored):
    teller = "sed s/^/paged:/"
    for args in (["query"], ["stats"], ["trace", "ab"], ["show", "1~1"]):
        status, shown = on_a_terminal(stored, *args, PAGER="false", LOGSLUICE_PAGER=teller)
        assert (status, shown != "") == (0, True), args
        assert all(line.startswith("paged:") for line in shown.splitlines()), (args, shown)
    for args, env in ((["query", "--no-pager"], {"PAGER": teller}), (["query"], {"PAGER": ""}), (["query"], {"PAGER": "cat"}),
                      (["tail"], {"PAGER": teller}), (["query"], {"PAGER": teller, "TERM": "dumb"}),
                      (["top", "--once"], {"PAGER": teller})):  # fmt: skip
        status, shown = on_a_terminal(stored, *args, **env)
        assert status == 0
        assert "row" in shown or args[0] == "top"
        assert "paged:" not in shown
    piped = subprocess.run(
        [sys.executable, "-m", "logsluice", "query"], env=environment(LOGSLUICE_DSN=stored, PAGER=teller),
        capture_output=True, text=True, timeout=LIMIT,
    )  # fmt: skip
    assert "paged:" not in piped.stdout


def test_an_error_needs_no_pager_and_keeps_its_status(stored):
    assert on_a_terminal(stored, "query", "level>=loud", PAGER="sed s/^/paged:/")[0] == 2
    status, shown = on_a_terminal(stored, "query", "nothing", PAGER="sed s/^/paged:/")
    assert (status, "paged:" in shown, "no records that fit" in shown) == (1, False, True)


def test_a_pager_that_is_not_there_is_said(stored):
    # The shell said so, what was found was gone, and the status was 0.
    status, shown = on_a_terminal(stored, "query", PAGER="no-such-pager --colour")
    assert status == 2
    assert "the pager 'no-such-pager --colour' cannot be run: name another in LOGSLUICE_PAGER or PAGER" in shown
