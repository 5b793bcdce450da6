"""`limits` in characters: what is longer is cut and marked, what is empty is "-", by either way to a frame."""

from __future__ import annotations

import pytest

from logsluice import PostgresHandler, context
from logsluice.errors import ConfigError
from support.records import copy_columns, make_intake, make_record, marks_of, read_frame

LIMITS = {"service": 5, "module": 11, "operation": 11, "message": 20}
ASKED = {"service": 100, "module": 100, "operation": 100, "message": 10_000}  # as the systems before had them


@pytest.fixture(autouse=True)
def _nothing_bound():
    yield
    context.clear()


def stored(record, *, limits=LIMITS, service="shop"):
    """Return the row of a record; both ways give the same."""
    intake = make_intake(service=service, limits=limits)
    frame = intake.prepare(record)
    assert intake.whole(record, int(copy_columns(frame)[0])) == frame
    return read_frame(frame)


def test_what_fits_is_stored_as_it_is_and_quickly():
    intake = make_intake(service="shop", limits=LIMITS)
    row = read_frame(intake.prepare(make_record("m" * 20, name="n" * 11)))
    assert (row["message"], row["logger"], row["service"], row["attributes"]) == ("m" * 20, "n" * 11, "shop", {})
    assert intake.whole_ways == 0


def test_what_is_longer_keeps_head_and_tail_and_is_marked():
    row = stored(make_record("a" * 15 + "z" * 15, name="shop.orders.paid"), service="warehouse")
    assert row["message"] == "a" * 10 + "…" + "z" * 9
    assert row["logger"] == "shop.….paid"
    assert row["service"] == "wa…se"
    assert marks_of(row)["cut"] == {"service": 5, "logger": 6, "message": 11}


def test_characters_are_counted_and_bytes_are_marked():
    row = stored(make_record("é" * 21))
    assert row["message"] == "é" * 10 + "…" + "é" * 9
    assert marks_of(row)["cut"] == {"message": 4}
    assert marks_of(stored(make_record("é" * 20))) == {}


@pytest.mark.parametrize("name", ["operation", "component", "module"])
def test_names_come_from_bind_and_from_extra(name):
    context.bind(**{name: "c" * 30})
    row = stored(make_record())
    assert row["attributes"][name] == "ccccc…ccccc"
    assert marks_of(row)["cut"] == {name: 20}
    context.clear()
    if name != "module":  # stdlib forbids it
        assert stored(make_record(**{name: "short"}))["attributes"] == {name: "short"}
        assert stored(make_record(**{name: "e" * 12}))["attributes"][name] == "eeeee…eeeee"
        assert stored(make_record(**{name: 17}))["attributes"] == {name: 17}


def test_empty_becomes_a_dash_and_is_marked():
    context.bind(operation="")
    row = stored(make_record("", name=""), service=None)
    assert [row[name] for name in ("service", "logger", "message")] == ["-", "-", "-"]
    assert row["attributes"]["operation"] == "-"
    assert marks_of(row)["sanitized"] == ["logger", "message", "operation", "service"]
    assert stored(make_record("%s", ("",)))["message"] == "-"


def test_a_secret_is_redacted_before_it_is_cut():
    row = stored(make_record("to postgres://shop:hunter2hunter2hunter2@db/x"))
    assert "hunter" not in row["message"]
    assert "hunter" not in str(stored(make_record(operation="https://u:hunter2@h/x"))["attributes"])


def test_without_limits_nothing_is_asked():
    row = stored(make_record("", name="n" * 200, operation=""), limits={}, service=None)
    assert (row["message"], row["service"], row["attributes"]) == ("", None, {"operation": ""})
    assert stored(make_record("m" * 10_001), limits=ASKED)["message"].count("m") == 9_999


def test_they_are_given_as_the_other_limits_are():
    handler = PostgresHandler(dsn="", limits={**ASKED, "operation": None})
    handler.close()
    with pytest.raises(ConfigError, match=r"limits\.message must be a whole number of at least 1 or None, got 0"):
        PostgresHandler(dsn="", limits={"message": 0})
    with pytest.raises(ConfigError, match=r"unknown limit 'mesage'; did you mean 'message'"):
        PostgresHandler(dsn="", limits={"mesage": 1})
