"""
A program that logs under a fault, and the oracle: ids of its own in each record, looked for in the tables.

    with Shop(proxy.dsn, read=dsn) as shop:
        shop.log(100)
        ... the fault ...
        assert shop.flush()
        shop.check()          # every id once, the conservation law, the counters agree with the tables
"""

from __future__ import annotations

import itertools
import logging
import re
import time
import zlib
from collections import Counter
from contextlib import contextmanager

import psycopg
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from logsluice import schema
from logsluice.handlers import PostgresHandler
from support.processes import until

LIMIT = 30  # seconds: a net below waits that end in milliseconds
# Everything quick: a test waits for the tenth retry, not for the tenth of an hour.
QUICK = {"linger": 0.01, "backoff_initial": 0.01, "backoff_max": 0.1, "shutdown_timeout": LIMIT, "slow_batch": 60}

_names = itertools.count()


def message(tid):
    """A text that only this id has, so that a damaged or mixed row shows."""
    return f"tid={tid} {zlib.crc32(b'%d' % tid):08x} {'x' * (tid % 50)}."


class Shop:
    """A handler, a logger that nothing else sees, and the ids it was given. `read`: the dsn to look with."""

    def __init__(self, dsn, *, read=None, made=PostgresHandler, **options):
        self.read = read or dsn
        self.handler = made(dsn=dsn, **{**QUICK, **options})
        self.logger = logging.Logger(f"shop.{next(_names)}", logging.DEBUG)
        self.logger.addHandler(self.handler)
        self.given = []  # ids, in their order
        self.writes = []  # (rows, known, error) of every attempt to write, once `watch` was called
        self.connection_attempts = 0

    def __enter__(self):
        return self

    def __exit__(self, *exc_info):
        self.handler._settings.__dict__["shutdown_timeout"] = 0.1 if exc_info[0] else LIMIT  # a failed test ends soon
        self.handler.close()

    def log(self, count=1, level=logging.INFO, **extra):
        """Log so many records; their ids."""
        ids = []
        for _ in range(count):
            tid = len(self.given)
            self.given.append(tid)
            ids.append(tid)
            self.logger.log(level, message(tid), extra=extra or None)
        return ids

    def flush(self, seconds=LIMIT):
        return self.handler.flush(seconds)

    def recover(self, since=None):
        """Wait until nothing waits, without the hurry that `flush` makes; the seconds from now, or `since`, until then."""
        since = time.monotonic() if since is None else since
        assert until(lambda: not self.stats.waiting, LIMIT), self.stats
        return time.monotonic() - since

    @property
    def listener(self):
        return self.handler._pair[1]

    @property
    def route(self):
        return self.listener.routes[0]

    @property
    def stats(self):
        return self.handler.stats()

    def watch(self):
        """Open the pair, without a record, and write down every attempt to write from now on."""
        if self.handler._pair is None:
            self.handler._open()
        sink = self.route.sink
        write, opened = sink.write, sink.open

        def watched_open():
            if not sink.connected:
                self.connection_attempts += 1
            opened()

        def watched(batch, counts):
            try:
                outcome = write(batch, counts)
            except Exception as error:
                self.writes.append((batch.rows, False, error))
                raise
            self.writes.append((batch.rows, outcome.known, None))
            return outcome

        sink.write, sink.open = watched, watched_open
        return self

    @property
    def known(self):
        """How often a retry found that an earlier COMMIT had arrived."""
        return sum(1 for _, known, _ in self.writes if known)

    def attempts_a_batch(self):
        """How many writes each committed batch took."""
        counts, count = [], 0
        for _, _, error in self.writes:
            count += 1
            if error is None:
                counts.append(count)
                count = 0
        return counts

    def failed(self, sqlstate=None):
        """The last failures, of this code if one is given."""
        return [f for f in self.stats.recent["failed"] if sqlstate is None or f.get("sqlstate") == sqlstate]

    def await_failure(self, sqlstate=None, count=1):
        assert until(lambda: len(self.failed(sqlstate)) >= count, LIMIT), self.stats.recent
        return self.failed(sqlstate)

    def query(self, text, *values):
        with psycopg.connect(self.read, autocommit=True) as conn:
            return conn.execute(text, values or None).fetchall()

    def do(self, *statements):
        with psycopg.connect(self.read, autocommit=True) as conn:
            for statement in statements:
                conn.execute(statement)

    def stored(self, table="logsluice.logs", column="message"):
        """The ids in the table, once for each row; a row that is not what was logged fails."""
        texts = [row[0] for row in self.query(f"SELECT {column} FROM {table} WHERE {column} LIKE 'tid=%%'")]
        ids = [int(text[4:].split(" ")[0]) for text in texts]
        assert texts == [message(tid) for tid in ids]
        return ids

    def dead(self):
        """The ids in dead_letter."""
        rows = [bytes(row[0]) for row in self.query("SELECT row FROM logsluice.dead_letter")]
        return [int(re.search(rb"tid=(\d+)", row)[1]) for row in rows]

    def lost_and_twice(self, table="logsluice.logs", column="message"):
        """The given ids that are neither stored nor dead, and those that are so more than once; no other id may be there."""
        found = Counter(self.stored(table, column) + self.dead())
        assert found.keys() <= set(self.given), sorted(found.keys() - set(self.given))[:10]
        return sorted(set(self.given) - found.keys()), sorted(tid for tid, times in found.items() if times > 1)

    def check(self, *, lost=0, table="logsluice.logs", column="message"):
        """
        Every id is stored once or dead once, but for `lost`; the law holds; the counters agree with the tables.

        Returns (stored ids, dead ids).
        """
        stored, dead = self.stored(table, column), self.dead()
        twice = [tid for tid, times in Counter(stored + dead).items() if times > 1]
        assert not twice, twice[:10]
        missing = set(self.given) - set(stored) - set(dead)
        assert len(missing) == lost, sorted(missing)[:10]
        assert set(stored) | set(dead) <= set(self.given)
        self.law()
        stats = self.stats
        assert (stats.stored, stats.dead) == (len(stored), len(dead))
        assert until(self._agrees_with_the_stream), self.stats  # a marker may be on its way
        return stored, dead

    def _agrees_with_the_stream(self):
        streams = [route.buffer.stream for route in self.handler._routes()]  # several with `connections`
        text = "SELECT coalesce(sum(stored), 0), coalesce(sum(dead), 0) FROM logsluice.stream WHERE stream = ANY(%s)"
        return self.query(text, streams) == [(self.stats.stored, self.stats.dead)]  # markers are nobody's records

    def law(self):
        stats = self.stats
        assert stats.offered == len(self.given)
        assert stats.offered == stats.accepted + stats.dropped
        assert stats.accepted == stats.stored + stats.dead + stats.abandoned + stats.waiting
        assert until(self._agrees_with_the_buffers, LIMIT), self.stats  # told a moment after it is counted
        return stats

    def _agrees_with_the_buffers(self):
        return self.stats.waiting == sum(route.buffer.rows_waiting() for route in self.handler._routes())


@contextmanager
def writer(shop_dsn, admin, options="", *, grants=True):
    """A role that may do what a writer needs, and no more; its dsn."""
    name = "writer_" + conninfo_to_dict(shop_dsn)["dbname"]
    admin.execute(f"CREATE ROLE {name} LOGIN PASSWORD 'of-the-writer' {options}")
    with psycopg.connect(shop_dsn, autocommit=True) as conn:
        for grant in schema.grants("logsluice", name) if grants else ():
            conn.execute(grant)
        try:
            yield make_conninfo(shop_dsn, user=name, password="of-the-writer"), name
        finally:
            conn.execute(f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = '{name}'")
            conn.execute(f"DROP OWNED BY {name}")
            admin.execute(f"DROP ROLE {name}")
