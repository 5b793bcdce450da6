"""What `logsluice demo` sees from outside: the shop as a process and a list of ids, the table by SQL."""

from __future__ import annotations

import json
import os
import queue
import subprocess
import sys
import threading
import time
from typing import TYPE_CHECKING, Any, NamedTuple

import psycopg

from logsluice.cli import shop

if TYPE_CHECKING:
    from datetime import datetime
    from pathlib import Path

    from logsluice.devserver import EmbeddedPostgres

TICK = 0.1  # seconds between two looks: quick enough for an eye
SHARE = 10  # a look may take a tenth of the time: counting millions of rows must not slow down what it watches


class Sight(NamedTuple):
    """What was seen in one look."""

    accepted: int  # calls that returned, by the shop's list
    rows: int  # in the table, by SQL; the last known while the database is away

    @property
    def in_flight(self) -> int:
        """Accepted and not stored. A row can be seen before its id is on the list."""
        return max(0, self.accepted - self.rows)

    def __str__(self) -> str:
        return f"accepted {self.accepted:,}   stored {self.rows:,}   in flight {self.in_flight:,}"


class Table:
    """The database, and the rows of this run in it. One thread."""

    def __init__(self, server: EmbeddedPostgres) -> None:
        self._server = server
        self.conn = self._connect()
        self.since: datetime = self._one("SELECT now()")
        self.rows = 0
        self.cost = 0.0  # seconds that the last count took
        self.history: list[tuple[float, int]] = []  # (monotonic time, rows)

    def _connect(self) -> psycopg.Connection[Any]:
        return psycopg.connect(self._server.dsn(), autocommit=True)

    def reconnect(self) -> None:
        """Connect again, after the server was away."""
        self.conn.close()
        self.conn = self._connect()

    def count(self) -> int:
        """Count the rows of this run; 0 while there is no table, which comes with the first record."""
        started = time.monotonic()
        try:
            self.rows = self._one("SELECT count(*) FROM logsluice.logs WHERE ts >= %s", self.since)
        except psycopg.errors.UndefinedTable:
            self.rows = 0
        now = time.monotonic()
        self.cost = now - started
        self.history.append((now, self.rows))
        return self.rows

    def copying(self) -> datetime | None:
        """Return when the transaction began that is in the middle of a COPY, if there is one."""
        moment: datetime | None = self._one(
            "SELECT min(xact_start) FROM pg_stat_progress_copy JOIN pg_stat_activity USING (pid)"
        )
        return moment

    def best_second(self) -> float:
        """Return the most rows that came in a second (or a little more: looks are some time apart)."""
        best, first = 0.0, 0
        for now, rows in self.history:
            while first + 1 < len(self.history) and now - self.history[first + 1][0] >= 1.0:
                first += 1
            then, before = self.history[first]
            if now - then >= 1.0:
                best = max(best, (rows - before) / (now - then))
        return best

    def _one(self, query: str, *values: Any) -> Any:
        row = self.conn.execute(query.encode(), values).fetchone()
        return None if row is None else row[0]


class Shop:
    """The program: its process, what it wrote, what it says on stderr."""

    def __init__(self, folder: Path, dsn: str, seconds: float, records: int) -> None:
        self._folder = folder
        self._read = self._accepted = 0  # bytes of the list, and the ids in them
        self._said: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._process = subprocess.Popen(
            [sys.executable, shop.__file__, str(folder), str(seconds), str(records)],
            # Its folder holds our modules: they are not to be imported by their bare names.
            env={**os.environ, "SHOP_DSN": dsn, "PYTHONSAFEPATH": "1"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            encoding="utf-8",
            errors="backslashreplace",
            start_new_session=True,  # Ctrl-C is meant for us: we end it
        )
        self._ear = threading.Thread(target=self._hear, daemon=True)
        self._ear.start()

    def _hear(self) -> None:
        for line in self._process.stderr or ():
            self._said.put(line.rstrip("\n"))

    @property
    def status(self) -> int | None:
        """Its exit status; None while it runs."""
        return self._process.poll()

    def said(self) -> list[str]:
        """Return what is new on its stderr; all of it once it has ended."""
        if self.status is not None:
            self._ear.join(TICK)
        return [self._said.get() for _ in range(self._said.qsize())]

    def speed(self) -> dict[str, float] | None:
        """Return what it measured of a logging call, in µs; None while it has not."""
        path = self._folder / "speed.json"
        return dict(json.loads(path.read_text(encoding="ascii"))) if path.exists() else None

    def accepted(self) -> int:
        """Return how many ids are on the list by now."""
        try:
            with (self._folder / "ids").open("rb") as file:
                file.seek(self._read)
                new = file.read()
        except FileNotFoundError:
            return 0
        self._read += len(new)
        self._accepted += new.count(b"\n")
        return self._accepted

    def ids(self) -> list[str]:
        """Return the whole list."""
        return (self._folder / "ids").read_text(encoding="utf-8").splitlines()

    def end(self) -> None:
        """Kill it, if it still runs."""
        self._process.kill()
        self._process.wait()
        self._ear.join(TICK)
        if self._process.stderr:
            self._process.stderr.close()
