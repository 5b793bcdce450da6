"""
What to do when a sink fails: verdicts, back-off, breaker. Pure: no clock of its own, no I/O.

Four verdicts, one table (tests/unit/test_delivery.py holds it row for row, in both directions). It is of SQLSTATEs; a
sink without them says its verdict itself (`Failure.verdict`; for HTTP the table is in sinks/replies.py):

| what failed                                                   | SQLSTATE                       | verdict |
|---------------------------------------------------------------|--------------------------------|---------|
| connecting, for whatever reason but a refused login           | any                            | RETRY   |
| the connection, the server, its resources                     | none, 08, 53, 57P, 58, XX      | RETRY   |
| a conflict, a lock, a demoted primary                         | 40, 55P03, 25P03, 25006        | RETRY   |
| login, database, privilege, schema, table, column             | 28, 3D, 3F, 42                 | BLOCKED |
| a pooler in the way, a wrong state, not supported             | 26, 55, 25, 0A                 | BLOCKED |
| no partition for the row (23514 that names no constraint)     | 23514                          | BLOCKED |
| a time limit: of the server or ours                           | 57014, none                    | SHRINK  |
| the data: conversion, constraint, size, a trigger's refusal   | 22, 23, 44, 54, P0001          | REJECT  |
| the data, when the table accepts none of a sample (`storm`)   | as above                       | BLOCKED |
| anything else                                                 | any                            | RETRY   |

Codes: https://www.postgresql.org/docs/current/errcodes-appendix.html. psycopg reports what fails while connecting
without a code, whatever the server said, so a login is recognised by its text, as a hint that only slows the retries.
A wrong RETRY costs time; a wrong REJECT costs records: what is not known to be the data's fault is never rejected.
"""

from __future__ import annotations

import enum
import random
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from datetime import datetime


class Verdict(enum.Enum):
    """What the listener does with a batch that failed."""

    RETRY = "retry"  # away: back off, for ever
    BLOCKED = "blocked"  # somebody must act: say so, keep everything, try slowly
    SHRINK = "shrink"  # too slow: halve the batch
    REJECT = "reject"  # the data: set rows aside, send the rest


@dataclass(frozen=True)
class Failure:
    """What a sink knows about a failed attempt. No row content in `message`, `hint` or `repr`."""

    message: str  # for people; scrubbed
    sqlstate: str | None = None
    connecting: bool = False
    timed_out: bool = False
    constraint: str | None = None
    line: int | None = None  # the row of the COPY that the server named, from 1
    sent_from: int = 0  # position of the first row that was sent: an earlier COMMIT may have stored those before it
    key: tuple[str, ...] = field(default=(), repr=False)  # columns that the server's DETAIL named
    value: tuple[str, ...] = field(default=(), repr=False)  # and the values in them
    hint: str = ""  # what to do, for example the exact GRANT
    moment: datetime | None = None  # of the row for which there is no partition
    verdict: Verdict | None = None  # of a sink that has no SQLSTATE to say it by; None: `decide` finds it
    status: int | None = None  # HTTP's
    # Seconds that the server asked to be left alone; 0.0: the sink has mended what was wrong, try again at once.
    wait: float | None = None
    detail: str = field(default="", repr=False)  # what was answered; may hold row content: for dead letters alone


# So many rejections without a stored row between raise the question whether the table has changed: then a sample of
# the waiting rows is tried, and if it accepts none of them the rows are not to blame. Bad rows that come in a run pass.
STORM = 20
ATTEMPTS = 32  # of one batch; then the part known to be good is sent as a batch of its own

_RETRY = ("08", "53", "57P", "40", "55P03", "25P03", "25006", "58", "XX")
_BLOCKED = ("28", "3D", "3F", "42", "0A", "26", "55", "25")
_REJECT = ("22", "23", "44", "54", "P0001")


def decide(failure: Failure, *, storm: bool = False) -> Verdict:
    """Return the verdict on a failed attempt. `storm`: the table accepted none of a sample of the waiting rows."""
    code = failure.sqlstate or ""
    if failure.verdict is not None:
        return Verdict.BLOCKED if storm and failure.verdict is Verdict.REJECT else failure.verdict
    if code.startswith("28"):
        return Verdict.BLOCKED
    if failure.connecting:
        return Verdict.RETRY
    if failure.timed_out or code == "57014":
        return Verdict.SHRINK
    if code == "23514" and failure.constraint is None:
        return Verdict.BLOCKED
    if not code or code.startswith(_RETRY):
        return Verdict.RETRY
    if code.startswith(_BLOCKED):
        return Verdict.BLOCKED
    if code.startswith(_REJECT):
        return Verdict.BLOCKED if storm else Verdict.REJECT
    return Verdict.RETRY


@dataclass
class Backoff:
    """Waits between attempts: doubled each time up to `most`, with full jitter (0 to the whole), in seconds."""

    initial: float
    most: float
    attempt: int = 0
    random: random.Random = field(default_factory=random.Random, repr=False)

    def next(self) -> float:
        """Return the seconds to wait before the next attempt."""
        # 2^60 is over any limit; a larger power would overflow the float after weeks of outage.
        ceiling = min(self.most, self.initial * 2 ** min(self.attempt, 60))
        self.attempt += 1
        return self.random.uniform(0, ceiling)

    def reset(self) -> None:
        """Begin anew after a success."""
        self.attempt = 0


@dataclass
class Breaker:
    """
    The circuit breaker around connecting and writing: closed, open until a moment, then one probe.

    `now` is any monotonic clock in seconds. Listener only.
    """

    backoff: Backoff
    open_until: float = 0.0
    failing_since: float | None = None

    def allows(self, now: float) -> bool:
        """Whether an attempt may be made; while one probe is out its result decides."""
        if self.failing_since is None:
            return True
        return now >= self.open_until

    def failed(self, now: float, *, slowly: bool = False, wait: float | None = None) -> float:
        """
        Open for the back-off, or for the longest one if `slowly`; return the seconds.

        `wait`: what the server asked for. It comes before the back-off, so that a fleet does not return all at once.
        """
        if wait is None:
            seconds = self.backoff.most if slowly else self.backoff.next()
        else:
            seconds = wait + self.backoff.next() if wait else 0.0
        if self.failing_since is None:
            self.failing_since = now
        self.open_until = now + seconds
        return seconds

    def succeeded(self) -> None:
        """Close."""
        self.backoff.reset()
        self.failing_since = None
        self.open_until = 0.0

    def state(self, now: float) -> str:
        """Return "closed", "open" or "half_open"."""
        if self.failing_since is None:
            return "closed"
        return "half_open" if now >= self.open_until else "open"
