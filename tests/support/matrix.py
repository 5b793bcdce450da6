"""
What became of each row of the fault matrix: judged by ids, printed at the end of the session, kept as lines of JSON.

    def test_a_06_the_reply_to_commit_is_lost(dsn, mode, options):
        \"\"\"The reply to COMMIT is lost.\"\"\"
        with Proxy(dsn) as proxy, Shop(proxy.dsn, read=dsn, **options) as shop:
            ... the fault, and an assert that it happened ...
            recovery = shop.recover()                         # seconds from the fault's end until all is stored
            lost, twice = shop.lost_and_twice()               # ids
            matrix.row("A-06", mode, lost=lost, twice=twice, recovery=recovery, note="20 replies lost")

tests/acceptance/conftest.py does the rest: the fixtures `mode` ("memory", "journal") and `options` (the handler's),
the table, and the file that LOGSLUICE_MATRIX names: one line a test,

    {"row": "A-06", "mode": "memory", "test": nodeid, "result": "passed", "lost": 0, "twice": 0,
     "recovery_seconds": 0.21, "note": "20 replies lost", "control": false}

A test belongs to a row by its name, `test_a_06_…`, or by a parameter, `test_poison[B-07-memory]`. So one that fails
before it judged is a row as well, "failed", and one that passes without a judgement is failed for that.
"""

from __future__ import annotations

import json
import os
import re
from dataclasses import asdict, dataclass
from pathlib import Path

IN_PARAMETERS = re.compile(r"(?<![A-Za-z0-9])([A-Z]-\d\d)(?!\d)")
IN_NAME = re.compile(r"^test_([a-z])_(\d\d)(?=_|$)")


@dataclass
class Row:
    """One judgement of one test."""

    row: str
    mode: str
    test: str = ""
    result: str = ""  # "passed" or "failed": known when the test has ended
    lost: int | None = None
    twice: int | None = None
    recovery_seconds: float | None = None
    note: str = ""
    control: bool = False

    def line(self):
        """The row as people read it."""
        if self.lost is None:
            figures = "not judged"
        else:
            figures = f"lost {self.lost:<4} twice {self.twice:<4} recovery "
            figures += "-" if self.recovery_seconds is None else f"{self.recovery_seconds:.2f} s"
        control = "control: " if self.control else ""
        return f"{self.row}  {self.mode:<8}{self.result:<8}{figures:<39}{control}{self.note}".rstrip()


judged = []  # by the test that runs
finished = []  # of the session


def row(name, mode, *, lost, twice, recovery=None, note="", losing=False):
    """
    Write down what a fault did, then assert that nothing was lost and nothing stored twice.

    `name`: the row, "A-06". `mode`: "memory" or "journal". `lost`, `twice`: the ids that are nowhere, and those that
    are there more than once (any collection; a number, where only counting is possible). `recovery`: seconds from the
    end of the fault until all is stored; None where nothing had to recover. `note`: figures for people, one line: how
    often the fault happened belongs here. `losing=True`: in this row a loss is right (a kill in memory mode); then the
    test itself asserts how much. Call it once, last, or several times: each call is a line.
    """
    made = _judge(name, mode, lost, twice, recovery, note)
    assert not made.twice, f"{name}: stored twice: {_some(twice)}"
    assert losing or not made.lost, f"{name}: lost: {_some(lost)}"
    return made


def control(name, mode, *, lost=0, twice=0, note=""):
    """
    Write down that the same fault does harm when the guarded code is taken away, and assert it.

    A control shows that the row's own test can fail. `note` says what was taken away.
    """
    made = _judge(name, mode, lost, twice, None, note, control=True)
    assert made.lost or made.twice, f"{name}: the control neither lost nor doubled anything: the test cannot fail"
    return made


def _judge(name, mode, lost, twice, recovery, note, *, control=False):
    made = Row(
        name,
        mode,
        lost=_count(lost),
        twice=_count(twice),
        recovery_seconds=None if recovery is None else round(recovery, 3),
        note=note,
        control=control,
    )
    judged.append(made)
    return made


def _count(ids):
    return ids if isinstance(ids, int) else len(ids)


def _some(ids):
    return ids if isinstance(ids, int) else sorted(ids)[:10]


def belongs(name):
    """The matrix row of a test's name, `test_a_06_words[memory]` or `test_words[A-06-memory]`; None if it has none."""
    function, _, parameters = name.partition("[")
    if found := IN_PARAMETERS.search(parameters):
        return found[1]
    if found := IN_NAME.match(function):
        return f"{found[1].upper()}-{found[2]}"
    return None


def unjudged(name):
    """Whether the running test has a row in its name and has not judged it."""
    return belongs(name) is not None and not judged


def finish(nodeid, name, mode, result):
    """The test has ended: give its judgements the result, or make one that says that there is none; write the file."""
    rows = judged.copy()
    judged.clear()
    if not rows and belongs(name) is not None:
        rows = [Row(belongs(name), mode)]
    for made in rows:
        made.test, made.result = nodeid, result
    if rows and (path := os.environ.get("LOGSLUICE_MATRIX")):
        text = "".join(json.dumps(asdict(made)) + "\n" for made in rows)
        with Path(path).open("a", encoding="utf-8") as file:
            file.write(text)  # one write: several processes may share the file
    return [asdict(made) for made in rows]


def table():
    """The lines of the session, row by row."""
    return [made.line() for made in sorted(finished, key=lambda made: (made.row, made.control, made.mode))]
