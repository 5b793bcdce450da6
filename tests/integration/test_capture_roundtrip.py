"""Records through a real handler into the real table and back: equal, or repaired as documented; nothing dead, nothing twice."""

from __future__ import annotations

import datetime as dt
import decimal
import logging
import math
import random
import time

import psycopg
import psycopg.rows
import pytest
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


def test_thousands_of_generated_records_come_back(dsn):
    """Message, template, logger, level, thread, line, time, exception, extras: equal or repaired, each exactly once."""
    some = generated(3000)
    _, rows = send(dsn, {"redact": None, "capacity_bytes": 256 << 20}, some)
    wrong = []
    for number, record in enumerate(some):
        row = rows[number]
        error = record.exc_info[1] if record.exc_info else None
        checks = {
            "message": repaired(message_of(record)) == row["message"],
            "logger": repaired(record.name) == row["logger"],
            "thread": repaired(record.threadName) == row["thread"],
            "level": record.levelno == row["level"],
            "line": record.lineno == row["line"],
            "ts": abs(dt.datetime.fromtimestamp(record.created, dt.timezone.utc) - row["ts"])
            <= dt.timedelta(microseconds=1),
            "exc_message": (None if error is None else repaired(str(error))) == row["exc_message"],
            "exc_type": (None if error is None else "ValueError") == row["exc_type"],
            "value": same(as_stored(record.value), row["attributes"]["value"]),
            "odd": "odd" in row["attributes"],
            "user_id": (None if record.user_id is None else repaired(str(record.user_id))) == row["user_id"],
            "key": len([key for key in row["attributes"] if key.startswith("key")]) == 1,
        }
        wrong += [(number, name, record.__dict__) for name, right in checks.items() if not right]
    assert wrong[:3] == []


def test_every_character_of_unicode_comes_back(dsn):
    """All 1,114,112 code points, in messages and in attributes, NUL and surrogates repaired and marked."""
    texts = ["".join(map(chr, range(start, start + 0x1000))) for start in range(0, 0x110000, 0x1000)]
    stats, rows = send(dsn, {"redact": None}, [make_record(text, text=text) for text in texts])
    wrong = [
        number
        for number, text in enumerate(texts)
        if (repaired(text), repaired(text)) != (rows[number]["message"], rows[number]["attributes"]["text"])
    ]
    assert wrong == []
    changed = [number for number in rows if "logsluice" in rows[number]["attributes"]]
    assert sorted(changed) == [0x0, 0xD]  # the four thousand around NUL, and those that hold all surrogates
    assert stats.sanitized == 2


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
    def __str__(self):
        raise RuntimeError

    __repr__ = __str__


def odd_records():
    """What makeLogRecord, factories and hostile programs hand over."""
    yield from (
        make_record(levelno=level, levelname="ODD")
        for level in (20.0, "high", None, 10**9, -(10**9), float("nan"), True)
    )
    yield from (make_record(lineno=line) for line in (None, "x", -1, 2**40, 7.5, float("inf"), True))
    for created in (
        float("nan"),
        float("inf"),
        1e18,
        -1,
        0,
        1e-7,
        None,
        "soon",
        10**400,
        NOW - 500 * 86400,
        NOW + 100 * 86400,
    ):
        yield make_record(created=created)
    yield make_record(lineno=42.0)
    yield make_record()
    yield make_record(levelno=20.0)
    yield make_record("%s", (Evil("a\n\0b"),))
    for name in (
        "name",
        "pathname",
        "funcName",
        "threadName",
        "processName",
        "levelname",
        "exc_text",
        "stack_info",
        "user_id",
        "x",
    ):
        for value in (Evil("a\n\0b"), Raises(), 5, None, "x" * 3000, "\0\ud800\\\t"):
            record = make_record()
            record.__dict__[name] = value
            yield record
    for value in (
        10**5000,
        2**64,
        1e308,
        5e-324,
        decimal.Decimal("1e999"),
        {"a" * 5000: 1},
        {1: 1, "1": 2},
        "x" * (2 << 20),
    ):
        yield make_record("big", v=value)
    yield make_record("\\." + "x" * (16 << 20))
    yield make_record(own=None, **{f"k{i}": i for i in range(11_000)})


def test_odd_records_are_stored_and_none_is_dead(dsn):
    """Nothing that a record may hold is refused by the server, and nothing is lost."""
    send(dsn, {}, list(odd_records()))


def test_values_reach_columns_of_their_types(dsn):
    """Text COPY lets the server convert: into a table of the user's own, of every common type."""
    values = {
        "b": (True, "boolean"), "i": (2**40, "bigint"), "f": (float("nan"), "float8"), "n": (decimal.Decimal("1.10"), "numeric"),
        "t": ("a\tb\\N\n", "text"), "j": ({"a": [1, None]}, "jsonb"), "y": (b"\x00\xff\\", "bytea"),
        "d": (dt.date(2024, 2, 29), "date"), "m": (dt.datetime(2024, 2, 29, 1, 2, 3, 4, tzinfo=dt.timezone.utc), "timestamptz"),
        "z": (None, "text"),
    }  # fmt: skip
    with psycopg.connect(dsn, autocommit=True) as conn:
        conn.execute(
            "CREATE TABLE public.orders (" + ", ".join(f"{name} {kind}" for name, (_, kind) in values.items()) + ")"
        )
        handler = PostgresHandler(
            dsn=dsn, linger=0.01, table="public.orders", columns={name: f"extra.{name}" for name in values}
        )  # fmt: skip
        handler.handle(make_record(**{name: value for name, (value, _) in values.items()}))
        assert handler.flush(30)
        handler.close()
        assert handler.stats().dead == 0
        (row,) = conn.execute("SELECT * FROM public.orders").fetchall()
    got = dict(zip(values, row, strict=True))
    assert math.isnan(got.pop("f"))
    assert {name: value for name, (value, _) in values.items() if name != "f"} == got


@pytest.mark.parametrize("record", [logging.makeLogRecord({}), logging.makeLogRecord({"msg": "x", "levelno": 20})])
def test_a_record_without_a_name_is_stored(dsn, record):
    """`makeLogRecord` with next to nothing; the handler neither raises nor drops it."""
    send(dsn, {}, [record])
