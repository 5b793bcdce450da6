"""500 forks while eight threads log: the long form of tests/integration/test_forks.py."""

from __future__ import annotations

from support.situations import judge
from support.written import STORM, run

FORKS = 500
LIMIT = 300  # seconds; it takes about one for ten forks: each child opens a connection of its own


def test_five_hundred_forks_while_threads_log(dsn, tmp_path):
    ran = run(dsn, tmp_path, STORM, args=[str(FORKS)], timeout=LIMIT, PYTHONWARNINGS="ignore")
    assert ran.told["late"] == 0, ran.program.stderr
    assert min(ran.told["sent"]) > 10  # all eight threads logged meanwhile
    outcome = judge(f"fork, {FORKS} children while 8 threads log", dsn, ran.ids, seconds=ran.seconds)
    assert (outcome.logged, outcome.lost, outcome.twice) == (FORKS * 10 + sum(ran.told["sent"]), 0, 0)
    assert (ran.told["retries"], ran.told["failed"]) == (0, [])
