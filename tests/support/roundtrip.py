"""Records of every kind through a real handler into the real table, and what must come back."""

from __future__ import annotations

import math
import random
import time

import psycopg
import psycopg.rows
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from logsluice import PostgresHandler
from support.records import make_record, repaired
from support.strategies import ANY_VALUE, CALLS, JSON_LIKE, SCALARS, TEXT

NOW = time.time()


def parts(count):
    """So many values of each kind that a record is made of. Hypothesis' own examples, all kept."""
    kept = []

    @settings(
        max_examples=count, database=None, deadline=None, phases=[Phase.generate], suppress_health_check=list(HealthCheck)
    )  # fmt: skip
    @given(
        st.tuples(
            CALLS, TEXT, JSON_LIKE, ANY_VALUE, SCALARS, st.floats(NOW - 86400, NOW + 3600), st.integers(0, 2**31 - 1)
        )
    )
    def collect(example):
        kept.append(example)

    collect()
    return list(zip(*kept, strict=True))


def generated(count):
    """So many records, each of parts drawn at random from a pool of examples: far quicker than an example each."""
    pick = random.Random(17)
    calls, texts, values, odd, scalars, moments, lines = parts(120)
    some = []
    for _ in range(count):
        msg, args = pick.choice(calls)
        record = make_record(msg, args, level=pick.choice([10, 20, 30, 40, 50]), name="n" + pick.choice(texts))
        record.threadName = pick.choice(texts)
        record.created = pick.choice(moments)
        record.lineno = pick.choice(lines)
        record.value = pick.choice(values)
        record.odd = pick.choice(odd)
        record.user_id = pick.choice(scalars)
        record.__dict__["key" + pick.choice(texts)] = pick.choice(scalars)
        if pick.random() < 0.1:
            try:
                raise ValueError(pick.choice(texts))
            except ValueError as error:
                record.exc_info = (ValueError, error, error.__traceback__)
        some.append(record)
    return some


def as_stored(value):
    """What a JSON-like value reads back as; of keys that become equal the first keeps its name."""
    if isinstance(value, str):
        return repaired(value)
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    if isinstance(value, list):
        return [as_stored(item) for item in value]
    if isinstance(value, dict):
        return {repaired(key): as_stored(item) for key, item in reversed(value.items())}
    return value


def same(expected, got):
    """Equal as JSON values are: jsonb writes 1e+16 as an integer and knows no -0.0."""
    if isinstance(expected, bool) or expected is None or isinstance(expected, str):
        return type(expected) is type(got) and expected == got
    if isinstance(expected, float):
        return not isinstance(got, bool) and float(got) == expected
    if isinstance(expected, list):
        return len(expected) == len(got) and all(map(same, expected, got))
    if isinstance(expected, dict):
        return set(expected) <= set(got) and all(same(expected[key], got[key]) for key in expected)
    return expected == got


def message_of(record):
    """What logging itself makes of it; the raw text for a wrong format string."""
    try:
        return record.getMessage()
    except Exception:
        return str(record.msg)


def send(dsn, handler_options, some):
    """Log these records through one handler and return (its last stats, the rows by own id)."""
    handler = PostgresHandler(dsn=dsn, linger=0.01, **handler_options)
    try:
        for number, record in enumerate(some):
            record.own = number
            handler.handle(record)
        assert handler.flush(30)
        stats = handler.stats()
    finally:
        handler.close()
    with psycopg.connect(dsn) as conn:
        cursor = conn.cursor(row_factory=psycopg.rows.dict_row)
        rows = cursor.execute("SELECT * FROM logsluice.logs").fetchall()
        dead = conn.execute("SELECT error FROM logsluice.dead_letter").fetchall()
    assert dead == []
    assert len(some) == len(rows) == stats.stored == stats.offered
    assert (stats.dead, stats.dropped, stats.waiting) == (0, 0, 0)
    by_own = {row["attributes"]["own"]: row for row in rows}
    assert set(range(len(some))) == set(by_own)
    return stats, by_own


def unicode_texts():
    """All 1,114,112 code points, in texts of 4,096."""
    return ["".join(map(chr, range(start, start + 0x1000))) for start in range(0, 0x110000, 0x1000)]


class Evil(str):
    """A str that lies: taken at its word it would end the row and begin another."""

    __slots__ = ()

    def __str__(self):
        return self

    def isprintable(self):
        return True

    def __format__(self, spec):
        return "forged\n\0"


class Raises:
    """It cannot be shown in any way."""

    def __str__(self):
        raise RuntimeError

    __repr__ = __str__
