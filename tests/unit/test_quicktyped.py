"""The quick way of typed logs gives what the whole way gives, byte for byte, or gives up."""

from __future__ import annotations

import logging
import queue
import uuid
from datetime import datetime, timedelta, timezone
from decimal import Decimal
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from logsluice import capture, context, quicktyped, types
from logsluice.buffer import Buffer
from logsluice.capture import Rules
from logsluice.columns import typed_target
from logsluice.config import PostgresSettings, settings_from
from logsluice.intake import Intake
from logsluice.redaction import Redactor


@pytest.fixture(autouse=True)
def _nothing_bound():
    yield
    context.clear()


def declared(**fields):
    """A type with these annotations, which no other test sees."""
    before = dict(types.known)
    kind = type("Kind", (), {"__annotations__": fields, **dict.fromkeys(fields)})
    try:
        return types.logtype(table="kind_of_a_test")(kind)
    finally:
        types.known.clear()
        types.known.update(before)


FIELDS = {
    "text": str | None, "number": int | None, "share": float | None, "flag": bool | None, "key": uuid.UUID | None,
    "price": Decimal | None, "at": datetime | None, "pairs": dict[str, Any] | None, "items": list[Any] | None,
    "anything": Any, "choice": Literal["a", "b"] | None, "user_id": str | None, "level": int | str | None,
    "took": timedelta | None, "raw": bytes | None,
}  # fmt: skip
KIND = declared(**FIELDS)
TEXT = st.text(max_size=30) | st.sampled_from(
    ["a\tb\n", "\\", "x\0y", "http://u:p@h/", "postgres://u:p@h", "\ud800", "é"]
)
PLAIN = TEXT | st.integers(-(2**70), 2**70) | st.floats() | st.booleans() | st.none()
VALUES = {
    "text": TEXT, "number": st.integers(-(2**63), 2**63 - 1), "share": st.floats() | st.integers(0, 9),
    "flag": st.booleans(), "key": st.uuids() | st.uuids().map(str), "price": st.decimals(allow_nan=False),
    "at": st.datetimes() | st.datetimes(timezones=st.just(timezone.utc)),
    "pairs": st.dictionaries(TEXT | st.just("password"), PLAIN, max_size=3), "items": st.lists(PLAIN, max_size=3),
    "anything": PLAIN | st.lists(PLAIN, max_size=2), "choice": st.sampled_from("ab"), "user_id": TEXT,
    "level": st.sampled_from(["warn", 40, "ERROR", 7]), "took": st.timedeltas(), "raw": st.binary(max_size=9),
}  # fmt: skip
INSTANCES = st.fixed_dictionaries({}, optional=VALUES).map(lambda values: KIND(**values))
BOUND = st.dictionaries(
    st.sampled_from(["user_id", "trace_id", "correlation_id", "tenant", "number", "token", "odd key"]),
    PLAIN,
    max_size=3,
)


def intake_of(kind=KIND, **options):
    settings = settings_from(options, PostgresSettings)
    rules = Rules(
        settings.limits, settings.max_message_bytes, Redactor(settings.redact), settings.service, lambda: None
    )
    buffer = Buffer(stream=77, capacity_bytes=2**22)
    intake = Intake(queue.SimpleQueue(), buffer, typed_target("logsluice", kind.__logtype__), settings, rules)
    return intake, quicktyped.made(intake.quick, kind.__logtype__, rules)


INTAKES = [intake_of(), intake_of(service="shop\t1"), intake_of(redact=None), intake_of(max_message_bytes=1024)]


def record_of(message, *, name="shop", created=None, **more):
    record = logging.LogRecord(name, logging.INFO, "shop.py", 7, message, None, None)
    record.__dict__.update(more)
    if created is not None:
        record.created = created
    return record


@given(instance=INSTANCES, bound=BOUND, which=st.sampled_from(range(len(INTAKES))), name=TEXT)
def test_both_ways_give_the_same_bytes(instance, bound, which, name):
    intake, short = INTAKES[which]
    record = record_of(instance, name=f"shop.{name}")
    context.clear()
    context.bind(**bound)
    assert not KIND.__logtype__.problems(instance)  # else it is not given to this way
    quick = short(record, 5)
    if quick is not None:
        assert quick == intake.whole(record, 5)


def test_ordinary_instances_do_go_the_quick_way():
    intake, short = intake_of()
    key = uuid.uuid4()
    context.bind(trace_id="0af7651916cd43dd8448eb211c80319c", tenant="t 1")
    for values in ({}, {"text": "a\tb", "number": 7, "share": 0.5, "flag": True, "key": key, "pairs": {"a": [1]}}):
        record = record_of(KIND(**values))
        assert short(record, 9) == intake.whole(record, 9) is not None


def test_ids_of_other_libraries_fill_what_nothing_was_bound_for(monkeypatch):
    """Programs with OpenTelemetry or Celery have them all the time."""
    found = {"trace_id": "f" * 32, "span_id": "e" * 16}
    for module in (capture, quicktyped):
        monkeypatch.setattr(module, "ambient_ids", found.copy)
    intake, short = intake_of()
    monkeypatch.setattr(intake.quick, "look_around", lambda: None)
    intake.quick.ambient = True
    context.bind(trace_id="a" * 32)
    record = record_of(KIND(text="a"))
    assert short(record, 9) == intake.whole(record, 9) is not None
    assert b"\t" + b"a" * 32 + b"\t" + b"e" * 16 + b"\t" in short(record, 9)


@pytest.mark.parametrize(
    "more",
    [
        {"extra_of_a_filter": 1},
        {"processName": "Process-2"},
        {"exc_text": "Traceback"},
        {"created": 0.0},
        {"levelno": 2.5},
    ],
)
def test_it_gives_up_what_only_the_whole_way_knows(more):
    intake, short = intake_of()
    record = record_of(KIND(text="a"), **more)
    assert short(record, 1) is None
    assert intake.whole(record, 1)


def test_a_secret_field_or_a_limit_closes_it():
    assert intake_of(declared(password=str | None))[1] is None
    assert intake_of(limits={"message": 10})[1] is None
    assert intake_of(redact="patterns")[1] is None
