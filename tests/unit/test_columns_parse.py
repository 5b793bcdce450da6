"""columns.py: which column gets what, as the user writes it (D12), and the texts that the server converts."""

from __future__ import annotations

import datetime as dt
import decimal
import json
import os
import socket
import uuid

import pytest

from logsluice import context
from logsluice.columns import LOG_COLUMNS, Source, quote, target_from
from logsluice.errors import ConfigError
from support.records import copy_columns, make_intake, make_record, repaired


@pytest.fixture(autouse=True)
def _nothing_bound():
    yield
    context.clear()


def columns_of(record, columns, **options):
    """{column: text or None} of one record in a table of the user's own."""
    intake = make_intake(table="public.orders", columns=columns, **options)
    return dict(zip(columns, copy_columns(intake.prepare(record)), strict=True))


# --- names -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("table", "expected"),
    [
        ("orders", ("logsluice", "orders")), ("public.orders", ("public", "orders")), ('"My.Table"', ("logsluice", "My.Table")),
        ('"a""b"."c d"', ('a"b', "c d")), ("Orders", ("logsluice", "Orders")), ("x" * 63, ("logsluice", "x" * 63)),
    ],
)  # fmt: skip
def test_a_table_is_named_as_sql_writes_it(table, expected):
    """A name in `schema`, or schema.name; odd characters in double quotes."""
    target = target_from("logsluice", table, {"m": "message"})
    assert expected == (target.schema, target.table)
    assert f"{quote(expected[0])}.{quote(expected[1])}" == target.name


@pytest.mark.parametrize(
    "table", ["", ".", "a.b.c", "a.", ".a", 'a"b', "x" * 64, "é" * 32, "a\0", None, 5, "\ud800", '""', '"a']
)
def test_a_table_that_cannot_be_one_is_an_error(table):
    """PostgreSQL would cut a long name silently; the error comes when logging is configured."""
    with pytest.raises(ConfigError):
        target_from("logsluice", table, {"m": "message"})


@pytest.mark.parametrize("schema", ["", "x" * 64, "a\0", None, "a%b"])
def test_a_schema_that_cannot_be_one_is_an_error(schema):
    """As for tables."""
    with pytest.raises(ConfigError, match="schema"):
        target_from(schema, "logs", None)


def test_the_usual_table_needs_no_mapping():
    """Its columns are known, the COPY statement names them."""
    target = target_from("logsluice", "logs", None)
    assert (target.columns, target.sources) == (LOG_COLUMNS, None)
    assert target.copy.startswith('COPY "logsluice"."logs" ("seq", "ts", ')


def test_a_table_of_the_users_own_needs_a_mapping():
    """The error shows one."""
    with pytest.raises(ConfigError, match=r"columns=\{'message'"):
        target_from("logsluice", "orders", None)


# --- sources ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("message", Source("field", ("message",))),
        ("extra.order_id", Source("extra", ("order_id",))),
        ("extra.order.id", Source("extra", ("order", "id"))),
        ("context.tenant", Source("context", ("tenant",))),
        (("extra.flag", False), Source("extra", ("flag",), False)),
        (["extra.n", 0], Source("extra", ("n",), 0)),
        ("levelname", Source("field", ("levelname",))),
    ],
)
def test_a_source_is_read(given, expected):
    """A field, a path into extras or bound values, or a pair with a default."""
    assert (expected,) == target_from("s", "t", {"c": given}).sources


@pytest.mark.parametrize(
    ("given", "hint"),
    [
        ("mesage", "did you mean 'message'"),
        ("quantity", "write 'extra.quantity'"),
        ("extra.", "unknown source"),
        ("extra", "unknown source"),
        ("", "unknown source"),
        (5, "a source is a string"),
        (None, "a source is a string"),
        (("message",), "pair"),
        (("message", 1, 2), "pair"),
        ((1, "message"), "a source is a string"),
    ],
)
def test_a_wrong_source_says_what_to_write(given, hint):
    """With the nearest known name where there is one."""
    with pytest.raises(ConfigError, match=hint):
        target_from("s", "t", {"c": given})


@pytest.mark.parametrize(
    "columns", [{}, [], "message", {"": "message"}, {5: "message"}, {"x" * 64: "message"}, {"a\0": "message"}]
)
def test_a_wrong_mapping_is_an_error(columns):
    """Empty, of another type, or with names that PostgreSQL cannot hold."""
    with pytest.raises(ConfigError):
        target_from("s", "t", columns)


# --- values ----------------------------------------------------------------------------------------------------------

MOMENT = dt.datetime(2024, 2, 29, 1, 2, 3, 4, tzinfo=dt.timezone.utc)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("text", "text"), ("", ""), ("a\tb\\N", "a\tb\\N"), (17, "17"), (2**70, str(2**70)), (True, "true"), (False, "false"),
        (None, None), (1.5, "1.5"), (-0.0, "-0.0"), (float("nan"), "NaN"), (float("inf"), "Infinity"), (-float("inf"), "-Infinity"),
        (b"\x00\xff", "\\x00ff"), (bytearray(b"a"), "\\x61"), (MOMENT, MOMENT.isoformat()), (dt.date(2024, 2, 29), "2024-02-29"),
        (decimal.Decimal("1.10"), "1.10"), (uuid.UUID(int=5), str(uuid.UUID(int=5))), (r"\N", r"\N"), (r"\.", r"\."),
    ],
)  # fmt: skip
def test_a_value_is_the_text_that_the_server_converts(value, expected):
    """bool, numbers, bytea, timestamps in PostgreSQL's own input forms; None is NULL and r'\\N' is not."""
    assert {"c": expected} == columns_of(make_record(v=value), {"c": "extra.v"})


@pytest.mark.parametrize("value", [{"a": [1, None]}, [1, "x"], (1, 2), {}])
def test_a_container_is_json(value):
    """For a json, jsonb or text column."""
    assert json.loads(json.dumps(value)) == json.loads(columns_of(make_record(v=value), {"c": "extra.v"})["c"])


@pytest.mark.parametrize(
    ("record", "source", "expected"),
    [
        (make_record(), "extra.v", None),
        (make_record(), ("extra.v", False), "false"),
        (make_record(), ("extra.v", "none"), "none"),
        (make_record(), ("extra.v", [1]), "[1]"),
        (make_record(v=None), ("extra.v", 7), "7"),
        (make_record(v=0), ("extra.v", 7), "0"),
        (make_record(v={"a": {"b": 5}}), "extra.v.a.b", "5"),
        (make_record(v={"a": 5}), "extra.v.a.b", None),
        (make_record(v={"a": 5}), ("extra.v.x", 1), "1"),
    ],
)
def test_a_value_that_is_missing_is_null_or_the_default(record, source, expected):
    """0 is a value; None is none."""
    assert {"c": expected} == columns_of(record, {"c": source})


def test_every_field_can_be_a_source():
    """The columns of `logs`, and levelname, host, pid, environment."""
    columns = {name: name for name in [*LOG_COLUMNS, "levelname", "host", "pid", "environment"]}
    row = columns_of(make_record("order %s", (17,), user_id="bob"), columns, service="shop", environment="test")
    assert (
        row["message"],
        row["template"],
        row["level"],
        row["levelname"],
        row["user_id"],
    ) == ("order 17", "order %s", "20", "INFO", "bob")
    assert ("shop", "test", socket.gethostname(), str(os.getpid())) == (
        row["service"],
        row["environment"],
        row["host"],
        row["pid"],
    )


def test_a_bound_value_is_a_source_by_its_name():
    """Also one that is an id column of `logs`; an extra does not count as bound."""
    context.bind(tenant="north", user_id="bob")
    got = columns_of(
        make_record(other=1), {"t": "context.tenant", "u": "context.user_id", "o": ("context.other", "none")}
    )
    assert got == {"t": "north", "u": "bob", "o": "none"}


def test_what_is_not_mapped_goes_to_the_column_named_as_attributes():
    """What has a column of its own is not stored twice; the marks come with the rest."""
    got = columns_of(make_record(order=17, shop="north", bad=float("nan")), {"o": "extra.order", "rest": "attributes"})
    assert got["o"] == "17"
    assert json.loads(got["rest"]) == {"shop": "north", "bad": "NaN", "logsluice": {"sanitized": ["bad"]}}


def test_marks_of_columns_come_with_the_attributes_wherever_these_stand():
    """The first column is written last."""
    got = columns_of(make_record(v="a\0b"), {"rest": "attributes", "v": "extra.v"})
    assert repaired("a\0b") == got["v"]
    assert json.loads(got["rest"]) == {"logsluice": {"sanitized": ["v"]}}


def test_a_secret_in_a_column_of_its_own_is_redacted():
    """By the last name of its path, and URLs in any text."""
    got = columns_of(
        make_record(password="hunter2", dsn="x://u:hunter2@h", d={"token": "hunter2"}),
        {"p": "extra.password", "d": "extra.dsn", "n": "extra.d", "t": "extra.d.token"},
    )
    assert "hunter2" not in str(got)
    assert (got["p"], got["d"], got["t"]) == ("[redacted]", "x://u:***@h", "[redacted]")


class Raises:
    def __str__(self):
        raise RuntimeError

    __repr__ = __str__


def test_a_hostile_value_in_a_column_becomes_a_placeholder():
    """The record is stored all the same."""
    got = columns_of(make_record("hello", v=Raises()), {"m": "message", "v": "extra.v"})
    assert got == {"m": "hello", "v": "<unprintable Raises: RuntimeError>"}


def test_a_long_value_in_a_column_is_cut():
    """To max_message_bytes."""
    got = columns_of(make_record(v="x" * 100_000), {"v": "extra.v"}, max_message_bytes=4096)
    assert len(got["v"]) <= 4096
