"""
The roll-up under kill -9: writers with a journal, the server, and those that count die at random; each row counts once.

What the dead left is adopted and comes late. Whoever counts is killed at a random moment of it, again and again.
"""

from __future__ import annotations

import dataclasses
import random
import subprocess
import sys
import threading
from datetime import datetime, timedelta, timezone

import psycopg

from logsluice import partitions, reports, rollup, schema
from support.journals import killing
from support.processes import until
from support.shop import LIMIT

KILLS = 10  # of writers: some 5 s
MOST = 0.8  # seconds that a maintainer lives at most; it needs half of them to start


def test_each_row_counts_once_whoever_is_killed(own_server, tmp_path):
    dsn = own_server.dsn()
    with psycopg.connect(dsn, autocommit=True) as conn:
        schema.migrate(conn)
        partitions.ensure(conn, "logsluice", "day", datetime.now(timezone.utc))
        schema.apply(conn, schema.rollup())
    ends, killed = threading.Event(), []
    maintainers = [threading.Thread(target=maintain, args=(dsn, ends, killed, seed)) for seed in (1, 2)]
    for one in maintainers:
        one.start()
    try:
        storm = killing(own_server, dsn, tmp_path, kills=KILLS, seed=1, journal=True)
    finally:
        ends.set()
        for one in maintainers:
            one.join()
    print(f"{storm.adopted} streams adopted, {storm.logged} records, {len(killed)} maintainers ended: {sorted(killed)}")
    assert not storm.lost
    assert not storm.twice
    assert -9 in killed
    with psycopg.connect(dsn, autocommit=True) as conn:
        # None as long as the server has not ended the session of a maintainer that was killed while it counted.
        assert until(lambda: rollup.refresh(conn, "logsluice") is not None, LIMIT)
        now = datetime.now(timezone.utc)
        scope = reports.Scope(now - timedelta(days=2), now + timedelta(days=1), rolled=True)
        raw = dataclasses.replace(scope, rolled=False)
        with reports.snapshot(conn):
            for one in (reports.services, reports.loggers, reports.volume):
                assert one(conn, scope) == one(conn, raw)
        found = conn.execute(
            "SELECT (SELECT sum(records) FROM logsluice.logs_hourly), (SELECT count(*) FROM logsluice.logs)"
        ).fetchone()
        assert found[0] == found[1] >= storm.logged


def maintain(dsn, ends, killed, seed):
    """Run maintainers that are killed at random, until it ends; they may fail, the server is killed, too."""
    random_ = random.Random(seed)
    while not ends.is_set():
        process = subprocess.Popen(
            [sys.executable, "-m", "logsluice", "maintain", "--once", "--dsn", dsn],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        try:
            process.wait(random_.uniform(0.2, MOST))
        except subprocess.TimeoutExpired:
            process.kill()
        killed.append(process.wait())
