"""More records than can be stored: a stopped table, a flood of records, and what the log itself says of the drops."""

from __future__ import annotations

import logging
from contextlib import contextmanager

import psycopg

SMALL = {"capacity_bytes": 2**20, "max_frame_bytes": 2**16, "linger": 0.01}
PAYLOAD = "x" * 900


@contextmanager
def stopped(shop):
    """Nothing can be stored: the table is locked. In the end it is free again."""
    shop.log()
    assert shop.flush()
    with psycopg.connect(shop.read) as other:
        other.execute("LOCK TABLE logsluice.logs IN ACCESS EXCLUSIVE MODE")
        yield


def flood(shop, count, level=logging.INFO):
    """Log so many; the ids that were dropped, found one by one."""
    lost = []
    for _ in range(count):
        before = sum(shop.route.buffer.dropped().values())
        (tid,) = shop.log(1, level, payload=PAYLOAD)
        if sum(shop.route.buffer.dropped().values()) > before:
            lost.append(tid)
    return lost


def markers(shop):
    query = "SELECT attributes FROM logsluice.logs WHERE logger = 'logsluice' AND seq < 0 ORDER BY seq DESC"
    return [row[0] for row in shop.query(query)]
