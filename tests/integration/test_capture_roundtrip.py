"""Records through a real handler into the real table and back: equal, or repaired as documented; nothing dead, nothing twice."""

from __future__ import annotations

import datetime as dt
import decimal
import logging
import math

import psycopg
import pytest

from logsluice import PostgresHandler
from support.records import make_record, repaired
from support.roundtrip import NOW, Evil, Raises, as_stored, generated, message_of, same, send, unicode_texts


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
    texts = unicode_texts()
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
