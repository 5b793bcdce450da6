"""
The soak's producers: the program that logs, a life of it, and the four that live at a time.

A life is one process. It writes an id down before and after each logging call (tests/support/journals.py), measures
the call, and four times a second writes a line of figures. It is told what to do by words on its standard input: so
four lines of a schedule become forks, bursts and ends of processes, and when the soak itself dies they end as well.
"""

from __future__ import annotations

import contextlib
import inspect
import json
import os
import signal
import subprocess
import sys
import time
import zlib
from array import array
from pathlib import Path

from support.journals import KEEPS, given, lines
from support.processes import until
from support.written import BEGIN

PRODUCERS = 4  # the issue's
LIMIT = 60  # seconds: a net below waits that end in a few
# Quick, so that minutes hold many outages and retries. Most blackholes last longer than io_timeout.
OPTIONS = {
    "linger": 0.05,
    "io_timeout": 2,
    "shutdown_timeout": 2,
    "backoff_initial": 0.05,
    "backoff_max": 1.0,
    "capacity_bytes": 16 * 1024 * 1024,  # the least that max_frame_bytes allows; an outage here needs a tenth
    "slow_batch": 60,
}
JOURNAL_BYTES = 192 * 1024 * 1024  # all of the folder; below the file system's own size
A_BURST = 4000  # records at once: ten times what a process logs in a second


def text_of(name):
    """What the record of this id says: derived from it, so that a damaged or mixed row shows."""
    return f"{zlib.crc32(name.encode()):08x}" * (int(name.split("-")[1]) % 40)


# Ids are life, source, number: 12m-7 is the eighth of the main thread of life 12; t is its other thread, c3 its third
# child, p a probe. The order holds within a source.
PRODUCER = (
    BEGIN
    + KEEPS
    + "import array, itertools, zlib\n\n\n"
    + inspect.getsource(text_of)
    + """
FIGURES = os.open(os.environ["FIGURES"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
CALLS = os.open(os.environ["CALLS"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
BURST = int(os.environ["BURST"])
quiet, ending = threading.Event(), False
calls, children, bursts = [], 0, 0
numbers = {source: itertools.count() for source in "mtp"}

class Timed:
    def log(self, *args, **options):
        began = time.perf_counter()
        log.log(*args, **options)
        calls.append(time.perf_counter() - began)

def record(source, count, timed=Timed()):
    for _ in range(count):
        n = next(numbers[source])
        name = f"{RUN}{source}-{n}"
        order(name, text_of(name), timed, logging.ERROR if n % 97 == 96 else logging.INFO)

def figures():
    count = len(calls)          # the other thread appends meanwhile
    os.write(CALLS, array.array("d", calls[:count]).tobytes())
    del calls[:count]
    stats = handler().stats()
    journal = stats.journal or {"in_memory_bytes": 0, "trouble": None}
    with open("/proc/self/statm") as file:
        resident = int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    line = {
        "at": time.monotonic(), "resident": resident, "waiting": stats.waiting, "dropped": stats.dropped,
        "dead": stats.dead, "retries": stats.retries, "in_memory_bytes": journal["in_memory_bytes"],
        "trouble": journal["trouble"], "children": children, "bursts": bursts,
        "stream": f"{handler()._pair[1].routes[0].buffer.stream:016x}",
    }
    os.write(FIGURES, (json.dumps(line) + "\\n").encode())

def child(source):
    record(source, 30)
    if not JOURNAL:
        handler().flush(2)      # else all would be lost, whatever else happens
    os._exit(0)

def have_children():
    global children
    started = []
    for number in range(children, children + 3):
        numbers[f"c{number}"] = itertools.count()
        started.append(fork(child, f"c{number}"))
    children += sum(map(ended, started))

def burst():
    global bursts
    record("m", BURST)
    bursts += 1

def be_quiet():
    quiet.set()
    other.join()

def end(*_):
    global ending
    ending = True

def log_on():
    while not quiet.wait(0.05):
        record("t", 10)         # 200 a second, and as many by the main thread

if JOURNAL:
    journaled()                 # SIGTERM's default action ends the process: the journal has what it logged
else:
    configure(**OPTIONS)
    signal.signal(signal.SIGTERM, end)
words = {
    "fork": have_children, "burst": burst, "quiet": be_quiet, "exit": end,
    "probe": lambda: record("p", 1), "_exit": lambda: os._exit(9),
}
other = threading.Thread(target=log_on)
record("m", 1)
other.start()
due = 0.0
while not ending:
    if select.select([0], [], [], 0.05)[0]:
        for word in os.read(0, 1000).decode().split() or ["exit"]:     # end of file: the soak is gone
            words[word]()
        due = 0.0
    if not quiet.is_set():
        record("m", 10)
    if time.monotonic() >= due:
        figures()
        due = time.monotonic() + 0.25
be_quiet()
figures()
"""
)


class Life:
    """One process. `how`: how it was ended, None while it lives."""

    def __init__(self, number, dsn, folder, journal):
        self.number, self.folder, self.how = number, Path(folder), None
        options = {**OPTIONS, "journal_bytes": JOURNAL_BYTES} if journal else OPTIONS
        env = {
            **os.environ,
            **given(journal or "", str(number), **options),
            "DSN": dsn,
            "IDS": str(self.file("ids")),
            "FIGURES": str(self.file("figures")),
            "CALLS": str(self.file("calls")),
            "BURST": str(A_BURST),
            "PYTHONFAULTHANDLER": "1",  # one that hangs is asked by SIGABRT where
            "PYTHONWARNINGS": "ignore",  # from 3.12 a fork beside a thread warns
        }
        with self.file("stderr").open("wb") as said:
            self.process = subprocess.Popen(
                [sys.executable, self.folder / "producer.py"], env=env, stdin=subprocess.PIPE, stdout=said, stderr=said
            )
        self.began, self.ended, self.seconds = time.monotonic(), None, None

    def file(self, kind):
        return self.folder / f"{kind}-{self.number}"

    def tell(self, word):
        """Have it do something."""
        self.process.stdin.write(f"{word}\n".encode())
        self.process.stdin.flush()

    def end(self, how, status, act):
        """End it by `act`; it must end with this status. Its seconds are those from the act to the end."""
        self.how = how
        asked = time.monotonic()
        act()
        try:
            got = self.process.wait(LIMIT)
        except subprocess.TimeoutExpired:
            self.process.send_signal(signal.SIGABRT)
            got = self.process.wait(LIMIT)
        self.ended = time.monotonic()
        self.seconds = self.ended - asked
        self.process.stdin.close()
        assert got == status, f"producer {self.number} ended with {got}, not {status}:\n{self.said()[-4000:]}"

    def figures(self):
        """Its last line of figures; {} before the first."""
        try:
            with self.file("figures").open("rb") as file:
                file.seek(max(0, file.seek(0, os.SEEK_END) - 2000))  # bytes: a line has 300
                whole = file.read().splitlines(keepends=True)[-2:]
        except FileNotFoundError:
            return {}
        whole = [line for line in whole if line.endswith(b"\n") and line.startswith(b"{")]
        return json.loads(whole[-1]) if whole else {}

    def all_figures(self):
        if not self.file("figures").exists():
            return []
        text = self.file("figures").read_text(encoding="utf-8").rpartition("\n")[0]
        return [json.loads(line) for line in text.splitlines()]

    def calls(self):
        """Seconds of its logging calls, but for those of its last quarter of a second if it was killed."""
        measured = array("d")
        if self.file("calls").exists():
            data = self.file("calls").read_bytes()
            measured.frombytes(data[: len(data) // 8 * 8])
        return measured

    def ids(self):
        return lines(self.file("ids")) if self.file("ids").exists() else []

    def said(self):
        return self.file("stderr").read_text(encoding="utf-8", errors="replace")


class Family:
    """The producers: those that live, and all that lived."""

    def __init__(self, dsn, folder, journal):
        self.dsn, self.folder, self.journal = dsn, Path(folder), journal
        (self.folder / "producer.py").write_text(PRODUCER, encoding="utf-8")
        self.lives, self.living = [], []

    def begin(self):
        """Begin a life; return when it logs."""
        life = Life(len(self.lives), self.dsn, self.folder, self.journal)
        self.lives.append(life)
        self.living.append(life)
        assert until(lambda: life.figures() or life.process.poll() is not None, LIMIT)
        assert life.process.poll() is None, life.said()

    def end(self, life, how, status, act):
        """End a life."""
        self.living.remove(life)
        life.end(how, status, act)

    def tell(self, word):
        for life in self.living:
            life.tell(word)

    def says(self, life, condition, seconds=LIMIT):
        """Whether a line of its figures from now on meets the condition within these seconds."""
        asked = time.monotonic()
        return until(lambda: (found := life.figures()) and found["at"] > asked and condition(found), seconds)

    def close(self):
        for life in self.living:
            if life.process.poll() is None:
                life.process.kill()
                life.process.wait(LIMIT)
            with contextlib.suppress(OSError):
                life.process.stdin.close()
