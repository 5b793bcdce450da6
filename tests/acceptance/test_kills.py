"""
The fault matrix, C-01: a program of four processes, killed at random again and again while PostgreSQL restarts.

LOGSLUICE_KILLS says how often (20), LOGSLUICE_SEED with which random numbers. In memory mode records are lost, which
shows that the kills hit; how many is counted.
"""

from __future__ import annotations

import os

import psycopg

from logsluice import schema
from support import matrix
from support.journals import killing

KILLS = int(os.environ.get("LOGSLUICE_KILLS", "20"))
SEED = int(os.environ.get("LOGSLUICE_SEED", "1"))


def test_c_01_random_kills(mode, own_server, tmp_path):
    """SIGKILL at random instants."""
    dsn = own_server.dsn()
    with psycopg.connect(dsn, autocommit=True) as conn:
        schema.migrate(conn)
    storm = killing(own_server, dsn, tmp_path, kills=KILLS, seed=SEED, journal=mode == "journal")
    print(storm._replace(lost=len(storm.lost), twice=len(storm.twice)))
    note = (
        f"{storm.kills} kills of 4 processes, {storm.restarts} restarts of the server, {storm.logged} records of {storm.lives} lives in "
        f"{storm.seconds:.0f} s, {storm.adopted} streams adopted, seed {SEED}"
    )
    recovery = storm.recovery if mode == "journal" else None
    matrix.row("C-01", mode, lost=storm.lost, twice=storm.twice, recovery=recovery, note=note, losing=mode == "memory")
    assert storm.kills == KILLS
    assert storm.lives > KILLS / 2
    assert storm.restarts >= 2
    assert not storm.damaged
    assert not storm.lost_of_survivors
    if mode == "memory":
        assert storm.lost  # else the kills hit nothing, and the journal's zero says nothing
