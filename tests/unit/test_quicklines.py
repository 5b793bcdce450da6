"""quicklines.py: a line of JSON is what the whole way makes, byte for byte; who goes this way, and who does not."""

from __future__ import annotations

import logging

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from logsluice import context
from logsluice.formatters import PRESETS, SluiceJsonFormatter
from logsluice.handlers import HttpHandler
from logsluice.quicklines import ENDS
from support.records import make_line_intake, make_record
from support.ways import BOUND, records

STATIC = {"version": "1.2 100%", "thread_name": "none"}
INTAKES = {
    **{names: make_line_intake(names=names) for names in PRESETS},
    "otel of a service": make_line_intake(names="otel", service="shop, 100%"),
    "no redaction": make_line_intake(redact=None, service="shop"),
    "small": make_line_intake(
        max_message_bytes=1024, limits={"items": 2, "key_bytes": 8, "name_bytes": 16, "depth": 1}
    ),
    "static": make_line_intake(SluiceJsonFormatter(static_fields=STATIC, rename_fields={"message": "msg", "a": "z"})),
    "defaults": make_line_intake(SluiceJsonFormatter(defaults={"order_id": 7, "func": "main"}, prefix="@cee: ")),
    "time last": make_line_intake(SluiceJsonFormatter(names="ecs", defaults={"message": "none", "labels": 1})),
    "ASCII": make_line_intake(SluiceJsonFormatter(json_ensure_ascii=True)),
}


@pytest.fixture(autouse=True)
def _nothing_bound():
    yield
    context.clear()


def seq_of(frame):
    return int(frame.split(b"\t", 1)[0])


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(records(), BOUND, st.sampled_from(sorted(INTAKES)))
@example(make_record("nul \0 and \\u0000"), None, "sluice")
@example(make_record("%(a\0)s", ({"a\0": 1},)), None, "sluice")
@example(make_record("%(\ud800)s", ({"\ud800": 1},)), None, "sluice")
@example(make_record("%(" + "a" * 2000 + ")s", ({"a" * 2000: 1},)), None, "small")
@example(make_record("%(redis://:hunter2@cache/0)s", ({"redis://:hunter2@cache/0": 1},)), None, "sluice")
@example(make_record("\x7f\x85\u2028 \x1b[31m"), {"tenant": "\x7f\u2029"}, "plain")
@example(make_record("\ue000message", threadName="\ue000thread", name="\ue000"), {"user_id": "\ue000"}, "sluice")
@example(make_record("100%", name="100%", threadName="%(thread)s", a="%s"), {"100%": "%(extras)s"}, "sluice")
@example(make_record(level="INFO", message="hello"), None, "sluice")
@example(make_record(level="WARN", seq=1, service="x"), {"func": "pay"}, "sluice")
@example(make_record(stream="4711", exc_type="x", ts=5), {"logger": 1}, "no redaction")
@example(make_record(user_id=17, a=1, correlation_id="c"), {"tenant": "x"}, "sluice")
@example(make_record(user_id=17, a=1, correlation_id=1.5), {"trace_id": "x"}, "otel")
@example(make_record(a=1, user_id=True, b=2), {"correlation_id": 5}, "ecs")
@example(make_record(user_id=None, a=1), {"user_id": 5}, "sluice")
@example(make_record(a=1, z=2), None, "static")
@example(make_record(version=1), {"thread_name": 2}, "static")
@example(make_record(order_id=1), {"a": 2}, "defaults")
@example(make_record(labels=1, a=1), None, "time last")
@example(make_record(processName="SpawnProcess-1", a=1), {"user_id": "u", "b": 1}, "ecs")
@example(make_record(taskName="Task-7", a=1), {"user_id": "u", "b": 1}, "otel")
@example(make_record(name="a\tb"), None, "sluice")
@example(make_record(pathname="", funcName=None), {"a": 1}, "sluice")
def test_a_line_is_what_the_whole_way_makes_of_the_record(record, bound, which):
    """With cold caches and with warm ones, alone and with an extra more in between."""
    intake = INTAKES[which]
    if bound:
        context.bind(**bound)
    try:
        for _ in range(3):
            frame = intake.prepare(record)
            if record.name.partition(".")[0] == "logsluice":
                assert frame is None
                return
            assert intake.whole(record, seq_of(frame)) == frame
    finally:
        context.clear()


@pytest.mark.parametrize("names", PRESETS)
@pytest.mark.parametrize(
    ("changes", "bound"),
    [
        ({}, {}),
        ({"order_id": 17, "shop": "north", "ratio": 0.5, "ok": True, "none": None}, {}),
        ({"message": "hello", "asctime": "2024-01-01"}, {}),
        ({"trace_id": "abc", "order_id": 5}, {}),
        ({}, {"user_id": "bob", "tenant": "north", "correlation_id": "5f"}),
        ({"order_id": 5}, {"trace_id": "abc"}),
        ({"processName": "SpawnProcess-1", "threadName": "ThreadPoolExecutor-0_0"}, {}),
    ],
    ids=["plain", "extras", "after a Formatter", "an id", "bound", "bound and extras", "in a child"],
)
def test_ordinary_records_go_the_quick_way(names, changes, bound):
    """Else the promise about its cost holds for nobody: only a first record may ask the whole way how lines look."""
    intake = make_line_intake(names=names, service="shop")
    with context.bound(**bound):
        for n in range(3):
            assert b"order %d paid \xc3\xa9 \\u2028 \\n" % n in intake.prepare(
                make_record(f"order {n} paid é \u2028 \n", **changes)
            )
    assert intake.whole_ways == 0


@pytest.mark.parametrize("kind", ["ndjson", "json"])
def test_http_goes_it_where_a_line_is_the_formatter_s(kind):
    intake, _ = HttpHandler(url="http://127.0.0.1:9/", format=kind).entry()
    assert intake.quick.open


@pytest.mark.parametrize("kind", ["otlp", "loki", "elasticsearch"])
def test_http_does_not_where_it_is_another(kind):
    intake, _ = HttpHandler(url="http://127.0.0.1:9/", format=kind).entry()
    assert not intake.quick.open
    assert b"hello" in intake.prepare(make_record())


class Shouting(SluiceJsonFormatter):
    def process_log_record(self, log_data):
        return {key: str(value).upper() for key, value in log_data.items()}


def own_method():
    formatter = SluiceJsonFormatter()
    formatter.process_log_record = lambda data: {**data, "more": 1}
    return formatter


@pytest.mark.parametrize(
    "formatter",
    [
        Shouting(),
        own_method(),
        logging.Formatter("%(message)s"),
        SluiceJsonFormatter(json_serializer=lambda data, **_: str(data)),
        SluiceJsonFormatter(static_fields={"thread": "one"}),
        SluiceJsonFormatter(json_ensure_ascii=True),
    ],
    ids=["a subclass", "a method of its own", "logging's", "a serializer", "a value replaced", "ASCII"],
)
def test_a_formatter_that_is_not_ours_alone_is_asked_each_time(formatter):
    intake = make_line_intake(formatter)
    assert not intake.quick.open
    intake.prepare(make_record())
    assert intake.whole_ways == 1


def test_a_formatter_that_is_changed_is_seen_when_the_way_is_chosen_again():
    """Once a second, and when a formatter is set."""
    formatter = SluiceJsonFormatter(static_fields={"version": 1})
    intake = make_line_intake(formatter)
    assert b'"version": 1' in intake.prepare(make_record())
    formatter.static_fields["version"] = 2
    intake.quick.choose()
    assert b'"version": 2' in intake.prepare(make_record())


def test_a_level_that_got_another_name_is_seen_when_the_way_is_chosen_again(monkeypatch):
    intake = make_line_intake()
    record = make_record()  # made before: one made after has the new name itself, and goes the whole way for that
    assert b'"level": "INFO"' in intake.prepare(record)
    monkeypatch.setitem(logging._levelToName, logging.INFO, "Info")
    intake.quick.choose()
    assert b'"level": "Info"' in intake.prepare(record)


def test_caches_are_bounded():
    intake = make_line_intake()
    for n in range(4200):
        with context.bound(request=n):
            intake.prepare(make_record(lineno=n % 100, **{f"k{n}": 1}))
    quick = intake.quick
    assert max(len(cache) for cache in (quick.sites, quick.lines, quick.plans, quick.bounds)) <= 4096


def test_what_a_call_site_remembers_is_bounded():
    """Far from the number of learnt lines at which all sites are forgotten."""
    intake = make_line_intake()
    for n in range(200):
        intake.prepare(make_record(**{f"k{n}": 1}))
    (site,) = intake.quick.sites.values()
    assert len(site[5]) <= ENDS + 2  # a set of extras alone has two entries
