"""
When the data is to blame: which rows a rejection names, what to send without them, and whether it is the table.

The server names the row (its CONTEXT counts lines) or, for keys, column and value (its DETAIL). Where it names neither,
for example to a role without SELECT, the batch is halved until it does. No attempt of ours commits here: rows set aside
become dead letters in the transaction that stores their neighbours.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from logsluice.delivery import ATTEMPTS, STORM
from logsluice.encoding import copy_text
from logsluice.sinks import SinkError

if TYPE_CHECKING:
    from logsluice.buffer import Batch
    from logsluice.delivery import Failure
    from logsluice.routes import Route

SAMPLE = 20  # rows tried when everything seems to be rejected
# From the second rejection of a batch on, half of it is sent: an attempt with few rows names a bad key or row as well,
# and costs less (benchmarks: tests/acceptance/test_storms.py). One bad row still costs one attempt.
HALVE_AFTER = 2
# Not less than so many rows: then an attempt costs its round trips, not its rows. Far more than STORM: a table that
# takes nothing is to be found out without a dead letter.
LEAST_ROWS = 200


def is_storm(route: Route, batch: Batch) -> bool:
    """After many rejections without a stored row: whether the table accepts none of a sample."""
    if len(batch.aside) >= batch.rows:
        return True  # none of its rows was sent: something else refuses
    route.streak += 1
    if route.streak < STORM:
        return False
    try:
        # Of all that waits, not of this batch: it may have been cut down to the bad rows by now.
        accepted = route.sink.accepts_any(route.buffer.sample(SAMPLE))
    except SinkError:
        return False  # the connection went: the next attempt will tell
    if accepted:
        route.streak = 0
    return not accepted


def set_aside(route: Route, batch: Batch, failure: Failure) -> None:
    """Take out the rows that the server named, or send less until it has named one."""
    # Of what was sent: the server counts from there, and what an earlier COMMIT stored is not to be blamed.
    rows = [(at, line) for at, line in batch.lines() if at >= failure.sent_from and at not in batch.aside]
    named = named_rows(rows, failure, route.target.columns)
    if not named and len(rows) == 1:
        named = [rows[0][0]]
    if not named:
        half = rows[len(rows) // 2][0]  # bisection: the first half of what is left, the rest later
        route.batch = batch.head(half - batch.start)
        route.attempts = 0
        return
    for at in named:
        batch.aside[at] = route.aside[at] = failure
    by_key = failure.line is None or failure.sqlstate == "23505"
    if by_key and route.whole is not None and named == _rows_with_key(rows, failure, route.target.columns):
        # A key is refused: its rows go in all that was taken, however little of it is sent by now.
        later = [(at, line) for at, line in route.whole.lines() if at >= batch.end]
        route.aside.update(dict.fromkeys(_rows_with_key(later, failure, route.target.columns), failure))
    if route.attempts >= ATTEMPTS - 1:
        # The server checks rows in order: all up to the one it stopped at are good, or set aside by now.
        stop = named[0]
        length = next(at + len(line) for at, line in rows if at == stop) - batch.start
        route.batch = batch.head(length)
        route.attempts = 0
    elif route.attempts >= HALVE_AFTER and len(rows) > LEAST_ROWS:
        route.batch = batch.head(rows[len(rows) // 2][0] - batch.start)
        route.part = len(route.batch.data)  # what comes next is as likely to be bad


def named_rows(rows: list[tuple[int, bytes]], failure: Failure, columns: tuple[str, ...]) -> list[int]:
    """Return the positions of the rows that the server's error names, the one it stopped at first; [] if none."""
    line = failure.line
    by_line = rows[line - 1][0] if line is not None and 1 <= line <= len(rows) else None
    by_key = _rows_with_key(rows, failure, columns)
    if failure.sqlstate == "23505" and by_line is not None:
        # A key that stands twice in the slice: its first row is good. If it stopped there, the key was in the table.
        return by_key if by_key[:1] == [by_line] else [by_line]
    if by_line is not None:
        return [by_line]
    return by_key


def _rows_with_key(rows: list[tuple[int, bytes]], failure: Failure, columns: tuple[str, ...]) -> list[int]:
    if not failure.key or not set(failure.key) <= set(columns):
        return []
    wanted = [(columns.index(name), value) for name, value in zip(failure.key, failure.value, strict=True)]
    found = []
    hint = max(map(_in_any_spelling, failure.value), key=len)
    for at, line in rows:
        if hint not in line:
            continue  # ten times quicker than looking at the columns of every row
        texts = line[:-1].split(b"\t")
        if all(_same(texts[i], value) for i, value in wanted):
            found.append(at)
    return found


def _in_any_spelling(named: str) -> bytes:
    """Return what is in a sent column that `_same` takes for this value."""
    try:
        return str(abs(int(named))).encode()
    except ValueError:
        return copy_text(named).encode()


def _same(sent: bytes, named: str) -> bool:
    """Whether a sent column is the value that the server names; it writes numbers in its own way."""
    if sent == copy_text(named).encode():
        return True
    try:
        return int(sent) == int(named)
    except ValueError:
        return False
