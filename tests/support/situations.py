"""
What became of records in each situation of the life cycle: judged from the test's own ids, kept for the table.

With LOGSLUICE_SITUATIONS=file each judgement is appended there as a line of JSON; benchmarks/tables.py makes the table
of docs/explanation/life-cycle.md from the files of several Pythons.
"""

from __future__ import annotations

import collections
import json
import os
import platform
from dataclasses import asdict, dataclass
from pathlib import Path

import psycopg


@dataclass(frozen=True)
class Outcome:
    """One situation: how many records were logged (the call had returned), lost, stored twice; seconds it took."""

    situation: str
    logged: int
    lost: int
    twice: int
    seconds: float | None
    note: str = ""


def stored_ids(dsn, key="id"):
    """Return how often each id is in the table. Programs under test log `extra={"id": ...}`."""
    with psycopg.connect(dsn) as conn:
        found = conn.execute(
            "SELECT attributes->>%s FROM logsluice.logs WHERE attributes ? %s", (key, key)
        ).fetchall()  # fmt: skip
    return collections.Counter(row[0] for row in found)


def judge(situation, dsn, ids, *, seconds=None, note="", key="id"):
    """Compare the ids whose calls returned with the table, write it down, return the outcome. Ids are texts."""
    wanted, found = collections.Counter(map(str, ids)), stored_ids(dsn, key)
    assert not found.keys() - wanted.keys(), f"never logged: {sorted(found.keys() - wanted.keys())[:5]}"
    outcome = Outcome(
        situation,
        wanted.total(),
        lost=(wanted - found).total(),
        twice=(found - wanted).total(),
        seconds=None if seconds is None else round(seconds, 2),
        note=note,
    )
    print(outcome)
    if path := os.environ.get("LOGSLUICE_SITUATIONS"):
        line = json.dumps({"python": platform.python_version(), **asdict(outcome)}) + "\n"
        with Path(path).open("a", encoding="utf-8") as file:
            file.write(line)  # one write of one line: tests of several processes may share the file
    return outcome
