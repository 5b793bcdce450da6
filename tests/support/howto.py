"""
The pages of docs/howto as programs: what a page says is what runs.

A fenced block whose info string holds `title="app.py"` is that file. A `console` block holds the commands, each on a
line that starts with "$ ". A test lays the files out in a folder, and starts the page's own command line there. What a
`logsluice preset NAME > FILE` of the page prints is a file of it, too.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import psycopg

from logsluice.cli import main

PAGES = Path(__file__).parents[2] / "docs" / "howto"
BLOCK = re.compile(r"^```(\w+)([^\n]*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
TITLE = re.compile(r'title="([^"]+)"')
PRINTED = re.compile(r"logsluice (preset .+) > (\S+)")
PRESET = re.compile(r'presets\.(\w+)\("shop"')  # a call that makes the page's dict
STOP_SECONDS = 30  # more than any server's own grace period in these pages


class Page:
    """One page: its files by name, its commands in order."""

    def __init__(self, name):
        self.files: dict[str, str] = {}
        self.commands: list[str] = []
        for language, rest, text in BLOCK.findall((PAGES / f"{name}.md").read_text(encoding="utf-8")):
            if title := TITLE.search(rest):
                assert title[1] not in self.files, f"{name}.md shows {title[1]} twice"
                self.files[title[1]] = text
            elif language == "console":
                self.commands += [line[2:] for line in text.splitlines() if line.startswith("$ ")]
        for command in self.commands:
            if printed := PRINTED.fullmatch(command):
                self.files[printed[2]] = _printed(*shlex.split(printed[1]))

    def change(self, *changes, options=None):
        """Replace texts of its files, each of which must be there; give its handler options, as JSON has them."""
        for old, new in changes:
            assert any(old in text for text in self.files.values()), old
            self.files = {file: text.replace(old, new) for file, text in self.files.items()}
        if options:
            given = {file: _given(text, json.dumps(options)[1:-1]) for file, text in self.files.items()}
            assert given != self.files, "no handler to give options to"
            self.files = given

    def print_presets(self):
        """Have its programs read what `logsluice preset NAME` prints, in the place of calling the function."""
        for name in {name for text in self.files.values() for name in PRESET.findall(text)}:
            call, file = f'presets.{name}("shop")', f"{name}.json"
            self.change((call, f'__import__("json").load(open("{file}"))'))
            self.files[file] = _printed("preset", name, "--service", "shop")

    def lay_out(self, folder):
        """Write the page's files into a folder."""
        for name, text in self.files.items():
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            # Set by tests/acceptance/test_lifecycle_journal.py.
            options = os.environ.get("LOGSLUICE_TEST_OPTIONS", "{}")[1:-1]
            path.write_text(_given(text, options) if options else text, encoding="utf-8")

    def command(self, start):
        """Return the one command that starts so."""
        found = [command for command in self.commands if command.startswith(start)]
        assert len(found) == 1, (start, self.commands)
        return found[0]


def _given(text, options):
    """Add options (the inside of a JSON object, which is Python, too) to the handler: in a dict, a preset, a call."""
    text = text.replace('"service": "shop"', f'"service": "shop", {options}')
    text = PRESET.sub(lambda call: f"{call[0]}, **{{{options}}}", text)
    return text.replace('service="shop"', f'service="shop", **{{{options}}}')


def _printed(*argv):
    """Return what a command of ours prints."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        assert main(list(argv)) == 0
    return out.getvalue()


def environment(**env):
    """Return our environment with the interpreter's own programs (gunicorn, celery, ...) first in PATH."""
    bin_folder = str(Path(sys.executable).parent)
    return {**os.environ, "PATH": f"{bin_folder}{os.pathsep}{os.environ['PATH']}", "PYTHONFAULTHANDLER": "1", **env}


def interruptible():
    """Ctrl-C must reach it: a shell starts its background jobs, us perhaps, with SIGINT ignored."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


class Service:
    """A command that runs until it is told to stop; a context manager that leaves nothing of it behind."""

    def __init__(self, command, folder, **env):
        self.command = command
        self.output_path = Path(folder) / f"output-{os.urandom(4).hex()}"
        with self.output_path.open("wb") as output:
            self.process = subprocess.Popen(
                shlex.split(command), cwd=folder, env=environment(**env), stdin=subprocess.DEVNULL,
                stdout=output, stderr=subprocess.STDOUT, start_new_session=True, preexec_fn=interruptible,
            )  # fmt: skip

    @property
    def output(self):
        """All that it has printed so far."""
        return self.output_path.read_text(encoding="utf-8", errors="replace")

    def stop(self, how=signal.SIGTERM):
        """Send a signal to the main process and return its exit status."""
        self.process.send_signal(how)
        try:
            return self.process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGABRT)  # faulthandler says where it hangs
            self.process.wait(STOP_SECONDS)
            raise AssertionError(f"{self.command} did not stop:\n{self.output}") from None

    def __enter__(self):
        return self

    def __exit__(self, *_exception):
        try:
            os.killpg(self.process.pid, signal.SIGKILL)  # our own session: its workers too
        except ProcessLookupError:
            pass
        self.process.wait()


def rows(dsn, where="true"):
    """Return the stored rows that fit, as dicts, in the order of their time."""
    with psycopg.connect(dsn, row_factory=psycopg.rows.dict_row) as conn:
        return conn.execute(f"SELECT * FROM logsluice.logs WHERE {where} ORDER BY ts, seq").fetchall()
