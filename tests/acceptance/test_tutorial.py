"""
docs/tutorial.md as a newcomer does it: every block in its order, on the PostgreSQL that the page starts.

A console block shows commands, "$ " before each, and what they print; a line of "…" stands for any lines, and one inside
of a line for any text. Times, ids, ports and folders are others each time. Of `sh`, the installation, only the names are
looked at: the packages are there, and CI installs the wheel.
"""

from __future__ import annotations

import re
import signal
import subprocess

import psycopg
import pytest

from support.howto import BLOCK, PAGES, TITLE, environment

TEXT = (PAGES.parent / "tutorial.md").read_text(encoding="utf-8")
SECONDS = 60  # a second as a rule; a busy machine may take its time
VARIES = (
    (r"logsluice\[\w+\]: slow batch: .*\n", ""),  # where the machine is slow
    (r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d(\.\d{3}Z)?", "TIME"),
    (r"\b(\d\d-\d\d \d\d:\d\d|\d\d:\d\d:\d\d)\b", "TIME"),  # the first: of another day
    (r"\+?\d+\.\d{3} s", "SECONDS"),
    (r"\b(trace|stream) [0-9a-f]{16,32}", "ID"),
    (r"postgres:[\w-]+@127\.0\.0\.1:\d+", "SERVER"),
    (r"127\.0\.0\.1:\d+", "SERVER"),
    (r'File ".*/(\w+\.py)"', r"File \1"),
    (r"(?<=\S)  +", " "),  # columns are as wide as what stands in them
)


def told(text):
    """What is the same each time."""
    for varies, word in VARIES:
        text = re.sub(varies, word, text)
    return text.strip("\n")


def like(shown):
    """The pattern of what a page shows."""
    lines = [
        r"(?:.*\n)*?" if line == "…" else re.escape(line).replace("…", ".*") + "\n" for line in told(shown).split("\n")
    ]
    return re.compile("".join(lines))


def steps(block):
    """(command, what it prints) of a console block."""
    return re.findall(r"^\$ (.*)\n((?:(?!\$ ).*\n)*)", block, re.MULTILINE)


@pytest.fixture
def server(tmp_path):
    """The page's first terminal: `start(command)` gives what it prints; Enter at the end."""
    started = []

    def start(command):
        process = subprocess.Popen(
            command.split(), cwd=tmp_path, env=environment(), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        started.append(process)
        return "".join(process.stdout.readline() for _ in range(2))

    yield start
    for process in started:
        process.communicate("\n", timeout=SECONDS)
        assert process.returncode == 0


def in_a_shell(command, folder, dsn):
    """What a person sees: a shell says of a program that was killed that it was."""
    done = subprocess.run(
        ["bash", "-c", command], cwd=folder, env=environment(LOGSLUICE_DSN=dsn), timeout=SECONDS,
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    return done.stdout + "Killed\n" * (done.returncode in {-signal.SIGKILL, 128 + signal.SIGKILL})


def answer(statement, dsn):
    """As psql shows it, columns as wide as what stands in them."""
    with psycopg.connect(dsn) as conn:
        cursor = conn.execute(statement)
        return [[one.name for one in cursor.description], *([str(value) for value in row] for row in cursor.fetchall())]


def test_the_tutorial(tmp_path, server):
    dsn, asked, done = None, None, []
    for language, rest, text in BLOCK.findall(TEXT):
        title = TITLE.search(rest)
        if title:
            (tmp_path / title[1]).write_text(text, encoding="utf-8")
        elif language == "sql":
            asked = answer(text, dsn)
        elif language == "text":
            rows = [line for line in text.splitlines() if not line.startswith("-")]
            assert [[cell.strip() for cell in row.split("|")] for row in rows] == asked
        elif language == "console":
            for command, shown in steps(text):
                first = command == "python server.py"
                printed = server(command) if first else in_a_shell(command, tmp_path, dsn)
                assert like(shown).fullmatch(told(printed) + "\n"), f"$ {command}\n{printed}"
                dsn = re.search(r"LOGSLUICE_DSN='(.*)'", printed)[1] if first else dsn
                done.append(command)
        else:
            assert language == "sh", f"nothing runs a block of {language}"
    assert len(done) > 10


def test_the_extra_of_the_installation_is_there():
    [extra] = re.findall(r"pip install '\.\[(\w+)\]'", TEXT)
    project = (PAGES.parents[1] / "pyproject.toml").read_text(encoding="utf-8")
    assert re.search(rf'^{extra} = \[".*pgserver.*rich', project, re.MULTILINE)
