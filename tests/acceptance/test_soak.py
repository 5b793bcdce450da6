"""A short soak, benchmarks/soak.py: it holds, and its oracle sees what somebody did to the table."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from support.processes import run_program

SOAK = Path(__file__).parents[2] / "benchmarks" / "soak.py"
LIMIT = 300  # seconds: 20 of faults take 40 with everything around them; a machine that does other things too, longer
SEED = "22"  # with it each kind of fault is to begin within 20 s

# Between the last row and the judgement.
DOCTORED = f"""
import sys

sys.path.insert(0, {str(SOAK.parent)!r})
import psycopg
import soak

honest = soak.Judgement

def doctored(dsn, family):
    def named(name):
        return f"WHERE attributes->>'id' = '{{name}}'"

    with psycopg.connect(dsn, autocommit=True) as conn:
        conn.execute("DELETE FROM logsluice.logs " + named("0m-0"))
        conn.execute("INSERT INTO logsluice.logs SELECT * FROM logsluice.logs " + named("0m-1"))
        conn.execute("UPDATE logsluice.logs SET message = message || '!' " + named("0m-2"))
        conn.execute(
            'UPDATE logsluice.logs SET attributes = \\'{{"id": "1x-0"}}\\', message = \\'\\' ' + named("1m-0")
        )
        conn.execute("UPDATE logsluice.logs SET inserted = -1 " + named("2m-1"))
    return honest(dsn, family)

soak.Judgement = doctored
sys.exit(soak.main())
"""


def soak(tmp_path, program, *args):
    env = {"TMPDIR": str(tmp_path)}  # a soak that is broken leaves its folder
    ran = run_program(program, args=[*args, "--json", str(tmp_path / "soak.json")], timeout=LIMIT, env=env)
    print(ran.stdout, ran.stderr)
    result = json.loads((tmp_path / "soak.json").read_text(encoding="utf-8"))[0]
    return ran, result


# Kinds of faults: each that is counted has proved that it happened; a slow machine leaves out the last.
@pytest.mark.parametrize(("args", "kinds"), [(["--seconds", "20"], 9), (["--seconds", "8", "--memory"], 4)])
def test_seconds_of_faults(tmp_path, args, kinds):
    ran, result = soak(tmp_path, SOAK, "--seed", SEED, *args)
    assert ran.returncode == 0, ran.stdout
    assert not result["trouble"]
    happened = [name for name, (count, _) in result["faults"].items() if count]
    assert len(happened) >= kinds, result["faults"]
    assert {row["id"] for row in result["rows"]} == {f"I{number}" for number in range(1, 11)} | {"-"}
    table = [line for line in ran.stdout.splitlines() if line.startswith("  I")]
    assert [line.split()[0] for line in table] == [row["id"] for row in result["rows"] if row["id"] != "-"]
    for text, row in zip(table, result["rows"], strict=False):
        assert row["what"] in text
        assert text.endswith(("holds", "within 10 times"))
        assert not row["exact"] or row["measured"] == 0


def test_control(tmp_path):
    """One row deleted, one doubled, one changed, one renamed, one put before its predecessor: each is found."""
    ran, result = soak(tmp_path, DOCTORED, "--seconds", "3")
    assert ran.returncode == 1
    details = result["details"]
    assert details["lost"] == ["0m-0", "1m-0"]
    assert details["twice"] == ["0m-1"]
    assert details["spurious"] == ["1x-0"]
    assert sorted(details["damaged"]) == ["0m-2", "1x-0"]
    assert details["disordered"] == ["0m-1", "2m-0"]
    assert [row["id"] for row in result["rows"] if row["broken"]] == ["I1", "I2", "I3", "I4", "I5"]
    for line in ("lost, of", "stored twice", "never logged", "another text", "out of order"):
        assert any(line in text and text.endswith("BROKEN") for text in ran.stdout.splitlines())
