"""`logsluice demo` as a newcomer runs it: piped, on a terminal, without rich, and against a database that lies."""

from __future__ import annotations

import os
import pty
import re
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from logsluice.cli import demo_report as report
from support.processes import run_program

SECONDS = 180  # a demo of 4 s takes 8; a machine that runs other tests too may need five times that
SMALL = ("--seconds", "4", "--records", "8000")

# As `python -m logsluice`, with something done before.
SHIM = "import sys; {}; from logsluice.cli import main; sys.exit(main(sys.argv[1:]))"
NEVER_COPYING = "from logsluice.cli import demo_watch; demo_watch.Table.copying = lambda self: None"
WITHOUT_RICH = "sys.modules['rich'] = None"

# A table that lost one row and holds another twice: what the demo must not overlook.
DOCTORED = """
import sys
from logsluice.cli import demo_report, main

honest = demo_report.stored_ids

def doctored(conn, since):
    conn.execute("DELETE FROM logsluice.logs WHERE attributes ->> 'id' = 'till-1-17'")
    conn.execute("INSERT INTO logsluice.logs SELECT * FROM logsluice.logs WHERE attributes ->> 'id' = 'courier-5'")
    return honest(conn, since)

demo_report.stored_ids = doctored
sys.exit(main(["demo", "--seconds", "3", "--records", "4000"]))
"""


def in_flight(output):
    """How many rows were in flight when the database was killed."""
    return int(re.search(r"database killed \(SIGKILL\) with ([\d,]+) rows in flight", output)[1].replace(",", ""))


def row(output, name):
    """The figures of one row of the table."""
    line = re.search(rf"^\W*{name} (.*)$", output, re.MULTILINE)[1]
    return [figure.replace(",", "") for figure in re.findall(r"[\d,.]*\d", line)]


def on_a_terminal(code, *args, columns=100):
    """Run `python -c code args` on a terminal, press Enter when asked; the output and the status."""
    ours, theirs = pty.openpty()
    environment = {name: value for name, value in os.environ.items() if name != "NO_COLOR"}
    process = subprocess.Popen(
        [sys.executable, "-c", code, *args],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        env={**environment, "TERM": "xterm", "COLUMNS": str(columns), "LINES": "40"},
        start_new_session=True,
    )
    os.close(theirs)
    limit = threading.Timer(SECONDS, process.kill)
    limit.start()
    output = b""
    try:
        while data := os.read(ours, 65_536):
            if b"Press Enter" in output + data and b"Press Enter" not in output:
                os.write(ours, b"\n")
            output += data
    except OSError:  # EIO: the last process on the terminal is gone
        pass
    finally:
        limit.cancel()
        os.close(ours)
    return output.decode(), process.wait(SECONDS)


def test_the_demo_loses_nothing_and_says_so():
    done = run_program(Path("-m"), args=("logsluice", "demo", "--seconds", "4"), timeout=SECONDS)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stderr == ""
    assert in_flight(done.stdout) > 0
    assert re.search(
        r"^0 lost, 0 twice: killed at [\d.]+ s with [\d,]+ rows in flight, back", done.stdout, re.MULTILINE
    )
    assert row(done.stdout, "accepted") == row(done.stdout, "stored") == ["40000", "40000"]
    assert row(done.stdout, "lost") == row(done.stdout, "stored twice") == row(done.stdout, "dropped") == ["0"]
    assert row(done.stdout, "dead") == ["0", "0"]
    assert float(row(done.stdout, "rows/s")[0]) > 0
    samples = done.stdout.split("while the database was away:\n")[1].split("\n\n")[0].splitlines()
    assert len(samples) == report.SAMPLES
    assert all(re.match(r"  \d\d:\d\d:\d\d\.\d{3}Z [A-Z]+ +bakery", line) for line in samples)
    # Nobody is there to press Enter, and no terminal to draw on.
    assert "Press Enter" not in done.stdout
    assert "\x1b" not in done.stdout
    assert "\r" not in done.stdout


def test_the_shortest_demo_kills_before_all_is_stored_though_no_copy_is_seen():
    done = run_program(
        SHIM.format(NEVER_COPYING), args=("demo", "--seconds", "3", "--records", "1000"), timeout=SECONDS
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert in_flight(done.stdout) > 0
    assert "0 lost, 0 twice" in done.stdout


@pytest.mark.parametrize("rich", [True, False], ids=["rich", "without rich"])
def test_on_a_terminal_it_keeps_one_line_current_and_waits_for_enter(rich):
    output, status = on_a_terminal(SHIM.format("pass" if rich else WITHOUT_RICH), "demo", *SMALL, columns=80)
    assert status == 0, output
    plain = re.sub(r"\x1b\[[0-9;]*[A-Za-z]", "", output)
    assert in_flight(plain) > 0
    assert "0 lost, 0 twice" in plain
    assert output.count(report.CLEAR) > 20  # the line of progress, rewritten
    assert ("╭" in output) is rich
    assert "\x1b[1;31m" in output  # colour needs no rich
    assert "export LOGSLUICE_DSN='postgresql://" in plain
    assert 'psql "$LOGSLUICE_DSN"' in plain
    shown = [line.split("\r")[-1] for line in plain.replace("\r\n", "\n").split("\n")]
    assert [line for line in shown if len(line) > 80 and "LOGSLUICE_DSN" not in line] == []


def test_a_row_that_is_missing_or_doubled_is_found_and_named():
    done = run_program(DOCTORED, timeout=SECONDS)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "1 lost, 1 twice" in done.stdout
    assert re.search(r"^ +lost +1 +till-1-17$", done.stdout, re.MULTILINE)
    assert re.search(r"^ +stored twice +1 +courier-5$", done.stdout, re.MULTILINE)


def test_a_kept_database_keeps_the_rows_and_does_not_confuse_the_next_run(tmp_path_factory):
    data = Path(os.path.realpath("/tmp")) / f"logsluice-test-{os.getpid()}"  # root's server must be able to enter
    try:
        for _ in range(2):
            done = run_program(Path("-m"), args=("logsluice", "demo", *SMALL, "--data", str(data)), timeout=SECONDS)
            assert done.returncode == 0, done.stdout + done.stderr
            assert row(done.stdout, "stored") == ["8000", "8000"]
            assert f"logsluice demo --data {data} --look" in done.stdout
        assert (data / "cluster").is_dir()
    finally:
        subprocess.run(["rm", "-rf", str(data)], check=True)


def test_without_a_postgresql_it_says_what_to_install(tmp_path):
    done = run_program(Path("-m"), args=("logsluice", "demo"), env={"LOGSLUICE_PG_BIN": str(tmp_path)})
    assert done.returncode == 1
    assert done.stderr.startswith("logsluice: LOGSLUICE_PG_BIN=")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("accepted", "stored", "lost", "twice"),
    [
        ("abc", "cab", "", ""),
        ("abc", "ab", "c", ""),
        ("abc", "abcb", "", "b"),
        ("abc", "abbb", "c", "bb"),
        ("aab", "ab", "a", ""),
        ("aab", "aab", "", ""),
        ("ab", "abx", "", "x"),
        ("", "", "", ""),
    ],
)
def test_the_judgement(accepted, stored, lost, twice):
    verdict = report.judge(accepted, stored)
    assert (verdict.lost, verdict.twice) == (tuple(lost), tuple(twice))
    assert (verdict.accepted, verdict.stored) == (len(accepted), len(stored))
    assert verdict.good is (lost == twice == "")
