"""The one function that takes ordinary records in: where it stands, and what it remembers of a call site."""

from __future__ import annotations

import logging

import pytest

from logsluice import context
from logsluice.capture import STANDARD
from logsluice.handlers import PostgresHandler
from logsluice.listener import Listener
from support.records import make_intake, make_record, read_frame, stored


@pytest.fixture
def made(monkeypatch):
    """Makes handlers whose thread never starts, though it is asked to."""
    handlers = []
    monkeypatch.setattr(Listener, "start", lambda self: self._starter.setdefault("", object()))

    def make(kind=PostgresHandler, **options):
        handlers.append(kind(dsn="", **options))
        return handlers[-1]

    yield make
    for handler in handlers:
        for route in handler._routes():
            route.buffer.discard()
        handler._pair = None  # there is nobody to wait for


def rows(handler):
    """What waits."""
    (route,) = handler._routes()
    batch = route.buffer.take(1 << 20)
    return [] if batch is None else [read_frame(frame) for _, frame in batch.lines()]


def test_it_stands_in_the_place_of_handle_while_a_pair_lives(made):
    handler = made()
    assert "handle" not in vars(handler)
    handler.handle(make_record("first"))
    assert vars(handler)["handle"] is handler._way
    handler.handle(make_record("second"))
    assert [row["message"] for row in rows(handler)] == ["first", "second"]
    handler._pairs[0][1].keeper.stop(0)
    handler.renew()  # as in a forked child
    assert "handle" not in vars(handler)


def test_a_subclass_that_handles_is_asked_each_time(made):
    class Shouting(PostgresHandler):
        def handle(self, record):
            record.msg = record.msg.upper()
            return super().handle(record)

    handler = made(Shouting)
    for _ in range(3):
        handler.handle(make_record("hello"))
    assert [row["message"] for row in rows(handler)] == ["HELLO"] * 3


def test_filters_added_and_taken_away_count_from_the_next_record(made):
    handler = made()
    handler.handle(make_record("a"))

    def drop(record):
        return record.msg != "b"

    handler.addFilter(drop)
    assert not handler.handle(make_record("b"))
    assert handler.handle(make_record("c"))
    handler.removeFilter(drop)
    assert handler.handle(make_record("b"))
    assert [row["message"] for row in rows(handler)] == ["a", "c", "b"]


def test_a_filter_that_raises_is_asked_once(made):
    handler, asked = made(), []
    handler.handle(make_record("a"))

    def drop(record):
        asked.append(record)
        raise AttributeError

    handler.addFilter(drop)
    with pytest.raises(AttributeError):
        handler.handle(make_record("b"))
    assert len(asked) == 1


def test_a_formatter_set_later_makes_the_next_message(made):
    handler = made()
    handler.handle(make_record("a"))
    handler.setFormatter(logging.Formatter("<%(message)s>"))
    handler.handle(make_record("b"))
    handler.setFormatter(None)
    handler.handle(make_record("c"))
    assert [row["message"] for row in rows(handler)] == ["a", "<b>", "c"]


@pytest.mark.parametrize("name", [name for name in STANDARD if name not in {"msg", "levelno", "process"}])
@pytest.mark.parametrize("warm", [{}, {"a": 1}], ids=["no extras before", "an extra before"])
def test_an_extra_in_the_place_of_a_deleted_attribute_is_seen(name, warm):
    """The number of attributes is what it was: each of them must have been looked at."""
    intake = make_intake()
    stored(make_record(**warm), intake)
    record = make_record(**warm, late=17)
    del record.__dict__[name]
    assert stored(record, intake)["attributes"]["late"] == 17


def test_extras_of_one_call_site_that_change_from_record_to_record():
    intake = make_intake()
    for extras in (
        {}, {"a": 1}, {"a": 2}, {"b": "x"}, {"b": 1, "a": 2}, {"a": 1, "b": 2}, {"user_id": "u"}, {"a": [1]}, {"a": 1},
        {"{k}'\"\\": "{v0}"}, {}, {"a": True, "b": None, "c": 1.5}, {"class": 1, "def": 2}, {"a": float("nan")},
    ):  # fmt: skip
        row = stored(make_record(**extras), intake)
        expected = {key: value for key, value in extras.items() if value == value}
        got = dict(row["attributes"] or {})
        got.pop("logsluice", None)
        if len(expected) < len(extras):
            got.pop("a")
        assert got == expected
        assert row["user_id"] == extras.get("user_id")


def test_what_a_formatter_of_another_handler_left_is_no_extra():
    intake = make_intake()
    for _ in range(2):
        record = make_record("hello %s", ("you",))
        logging.Formatter("%(asctime)s %(message)s").format(record)
        assert stored(record, intake)["attributes"] == {}
    assert stored(make_record(a=1), intake)["attributes"] == {"a": 1}
    assert intake.whole_ways == 0


def test_bound_values_beside_extras_of_a_call_site_that_is_known():
    intake = make_intake()
    stored(make_record(a=1), intake)
    with context.bound(b=2, user_id="u"):
        row = stored(make_record(a=1), intake)
        assert (row["attributes"], row["user_id"]) == ({"b": 2, "a": 1}, "u")
    row = stored(make_record(a=1), intake)
    assert (row["attributes"], row["user_id"]) == ({"a": 1}, None)
    assert intake.whole_ways == 0


def test_an_exception_while_a_frame_is_appended_does_not_append_it_twice(made, monkeypatch):
    """Out of stack behind the append: to wake the listener is left out, the record is in."""
    handler = made()
    handler.handle(make_record("first"))
    intake = handler._pairs[0][0]

    def wake(_level):
        raise RecursionError

    monkeypatch.setattr(intake, "wake", wake)
    assert handler.handle(make_record("failed", level=logging.ERROR))
    assert [row["message"] for row in rows(handler)] == ["first", "failed"]
    assert handler.stats().offered == 2
