"""encoding.py: fields -> one row of COPY text, values -> JSON that jsonb accepts."""

from __future__ import annotations

import dataclasses
import datetime as dt
import decimal
import enum
import itertools
import json
import pathlib
import sys
import uuid
from collections import OrderedDict, namedtuple

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from logsluice.config import Limits
from logsluice.encoding import JsonWriter, Marks, clean, copy_row, cut
from logsluice.redaction import Redactor
from support.records import copy_columns, needs_repair, repaired
from support.strategies import ANY_TEXT, ANY_VALUE


def written(value, *, limits=None, text_limit=1 << 20, redact="keys", marks=None):
    """What one value reads back as, and the marks."""
    marks = Marks() if marks is None else marks
    text = JsonWriter(limits or Limits(), text_limit, Redactor(redact), marks).value(value, "field")
    return json.loads(text, parse_constant=pytest.fail), marks


# --- clean, copy_row -------------------------------------------------------------------------------------------------


@settings(max_examples=120, deadline=None)
@given(st.lists(st.one_of(st.none(), ANY_TEXT), min_size=1, max_size=5))
@example(["\\.", "\\N", "", "\\", "\t", "\r\n", "\u2028", "a\\"])
def test_any_texts_come_back_from_a_copy_row(texts):
    """What the server reads is what was written, repaired as documented; NULL and r'\\N' stay two things."""
    marks = Marks()
    frame = copy_row([None if text is None else clean(text, "column", marks) for text in texts])
    assert [None if text is None else repaired(text) for text in texts] == copy_columns(frame)
    assert any(text is not None and needs_repair(text) for text in texts) == bool(marks.sanitized)


def test_every_single_code_point_comes_back_from_a_copy_row():
    """All 1,114,112 of them, the surrogates and NUL repaired."""
    for start in range(0, 0x110000, 0x1000):
        text = "".join(map(chr, range(start, start + 0x1000)))
        assert [repaired(text)] == copy_columns(copy_row([clean(text, "x", Marks())]))


class LyingText(str):
    """A str whose methods say nothing true."""

    __slots__ = ()

    def __str__(self):
        return self

    def isprintable(self):
        return True

    def replace(self, *args):
        return self

    def encode(self, *args):
        return b"lies"

    def __format__(self, spec):
        return "lies\n\0"

    def __contains__(self, item):
        return False

    def __len__(self):
        return 0

    def __eq__(self, other):
        return True

    __hash__ = str.__hash__


def test_a_subclass_of_str_with_lying_methods_is_cleaned_by_its_characters():
    """`clean` gives an exact str."""
    text = clean(LyingText("a\0\nb"), "x", Marks())
    assert type(text) is str
    assert text == "a\ufffd\nb"


# --- cut -------------------------------------------------------------------------------------------------------------


@settings(max_examples=120, deadline=None)
@given(st.text(max_size=400), st.integers(40, 500))
def test_a_text_over_its_limit_keeps_head_and_tail_and_stays_within(text, limit):
    """The whole, the words about the cut included, is within the limit; the count is right to a character."""
    marks = Marks()
    short = cut(text, limit, "message", marks)
    assert len(short.encode()) <= limit
    if len(text.encode()) <= limit:
        assert (text, {}) == (short, marks.cut)
        return
    head, _, rest = short.partition(" …[")
    count, _, tail = rest.partition(" bytes cut]… ")
    assert text.startswith(head)
    assert text.endswith(tail)
    assert {"message": int(count)} == marks.cut
    kept = len(head.encode()) + len(tail.encode())
    assert 0 <= len(text.encode()) - kept - int(count) <= 6  # half characters at the two edges


@pytest.mark.parametrize("limit", [1, 2, 39, 40])
def test_a_tiny_limit_keeps_next_to_nothing(limit):
    """`data[-0:]` would be everything."""
    assert len(cut("x" * 10_000, limit, "key", Marks()).encode()) <= 40


# --- JSON: values ----------------------------------------------------------------------------------------------------


class Colour(enum.Enum):
    RED = "red"
    PAIR = (1, 2)


class Number(enum.IntEnum):
    ONE = 1


class Float64(float):
    """As numpy.float64: a subclass of float with a repr of its own."""

    def __repr__(self):
        return f"np.float64({float(self)!r})"


class EvilInt(int):
    def __int__(self):
        raise ValueError

    def __repr__(self):
        return "not a number"

    __index__ = __int__


@dataclasses.dataclass
class Order:
    number: int


Point = namedtuple("Point", "x y")


class EvilDict(dict):
    def items(self):
        raise RuntimeError

    def __iter__(self):
        return itertools.count()

    def __len__(self):
        return 10**9

    def keys(self):
        return 5


class EndlessList(list):
    def __iter__(self):
        return itertools.count()


class LyingClass:
    """It says it is a dict; so does Mock(spec=dict)."""

    @property
    def __class__(self):
        return dict

    def __repr__(self):
        return "<LyingClass>"


class RaisingClass:
    @property
    def __class__(self):
        raise RuntimeError

    def __repr__(self):
        return "<RaisingClass>"


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        pytest.param("text", "text", id="str"),
        pytest.param(LyingText("a\0\nb"), "a\ufffd\nb", id="lying str"),
        pytest.param(True, True, id="bool"),
        pytest.param(None, None, id="None"),
        pytest.param(2**100, 2**100, id="int over 64 bits"),
        pytest.param(EvilInt(7), 7, id="int with lying methods"),
        pytest.param(-0.0, -0.0, id="-0.0"),
        pytest.param(5e-324, 5e-324, id="least float"),
        pytest.param(Float64(1.5), 1.5, id="numpy-like float"),
        pytest.param(float("nan"), "NaN", id="NaN"),
        pytest.param(float("inf"), "Infinity", id="Infinity"),
        pytest.param(Float64("-inf"), "-Infinity", id="numpy-like -Infinity"),
        pytest.param((1, "a"), [1, "a"], id="tuple"),
        pytest.param(Point(1, 2), [1, 2], id="named tuple"),
        pytest.param({3}, [3], id="set"),
        pytest.param(frozenset({3}), [3], id="frozenset"),
        pytest.param(OrderedDict(b=1, a=2), {"b": 1, "a": 2}, id="dict subclass"),
        pytest.param(EvilDict(a=1), {"a": 1}, id="dict with lying methods"),
        pytest.param(EndlessList([1, 2]), [1, 2], id="list with an endless iterator"),
        pytest.param(Colour.RED, "red", id="enum"),
        pytest.param(Colour.PAIR, [1, 2], id="enum with a tuple"),
        pytest.param(Number.ONE, 1, id="IntEnum"),
        pytest.param(decimal.Decimal("1.10"), "1.10", id="Decimal"),
        pytest.param(decimal.Decimal("NaN"), "NaN", id="Decimal NaN"),
        pytest.param(dt.datetime(2024, 2, 29, 1, 2, 3, tzinfo=dt.timezone.utc), "2024-02-29T01:02:03+00:00", id="datetime"),
        pytest.param(dt.date(2024, 2, 29), "2024-02-29", id="date"),
        pytest.param(dt.time(1, 2), "01:02:00", id="time"),
        pytest.param(dt.timedelta(seconds=5), "datetime.timedelta(seconds=5)", id="timedelta"),
        pytest.param(uuid.UUID(int=5), "00000000-0000-0000-0000-000000000005", id="UUID"),
        pytest.param(pathlib.PurePosixPath("/a/b"), "/a/b", id="path"),
        pytest.param(b"\x00\xff", r"b'\x00\xff'", id="bytes"),
        pytest.param(Order(5), "Order(number=5)", id="dataclass"),
        pytest.param(1 + 2j, "(1+2j)", id="complex"),
        pytest.param(LyingClass(), "<LyingClass>", id="object that lies about its class"),
        pytest.param(RaisingClass(), "<RaisingClass>", id="object whose class raises"),
        pytest.param(Order, "<class 'test_encoding.Order'>", id="class"),
        pytest.param({}, {}, id="empty dict"),
        pytest.param([], [], id="empty list"),
    ],
)  # fmt: skip
def test_a_value_is_written_as_documented(value, expected):
    """Each kind has one form; what JSON cannot hold is its repr."""
    got, _ = written(value)
    if isinstance(expected, str) and expected.startswith("<class"):
        assert got.startswith("<class ")
        assert got.endswith("Order'>")
        return
    assert repr(expected) == repr(got)  # repr: -0.0 and True are told apart from 0.0 and 1


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_a_float_that_json_lacks_is_marked(value):
    """Bare NaN is refused by jsonb: it is a string, and the row says so."""
    _, marks = written({"ratio": value})
    assert marks.sanitized == ["field.ratio"]


@settings(max_examples=120, deadline=None)
@given(ANY_VALUE)
def test_any_value_is_valid_json(value):
    """Whatever it is, jsonb can read it: no bare NaN, no \\u0000, no lone surrogate."""
    text = JsonWriter(Limits(), 1 << 20, Redactor("keys"), Marks()).value(value, "field")
    json.loads(text, parse_constant=pytest.fail)
    text.encode()
    assert "\\u0000" not in text.replace("\\\\", "")


@settings(max_examples=120, deadline=None)
@given(ANY_TEXT)
def test_any_text_comes_back_from_json(text):
    """Equal, or repaired and marked."""
    got, marks = written(text)
    assert repaired(text) == got
    assert needs_repair(text) == bool(marks.sanitized)


# --- JSON: keys ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "expected"),
    [
        ("", ""),
        (None, "null"),
        (True, "true"),
        (False, "false"),
        (17, "17"),
        (1.5, "1.5"),
        ((1, "a"), "(1, 'a')"),
        (b"\xff", r"b'\xff'"),
        (LyingText("a\0"), "a\ufffd"),
        ("\ud800", r"\ud800"),
        (Colour.RED, "<Colour.RED: 'red'>"),
        ("a.b", "a.b"),
    ],
)
def test_a_key_of_any_kind_becomes_text(key, expected):
    """No value is skipped for its key."""
    assert {expected: 1} == written({key: 1})[0]


def test_keys_that_become_equal_are_kept_apart():
    """1 and "1" are two keys in Python: both values are stored, and the row says so."""
    got, marks = written({1: "int", "1": "str"})
    assert sorted(got.values()) == ["int", "str"]
    got, marks = written({"1": "str", 1: "int"})
    assert sorted(got.values()) == ["int", "str"]
    assert marks.sanitized == ["1"]


def test_thousands_of_keys_that_become_equal_cost_linear_work():
    """Keys cut to the same text: 10,000 of them were 50 million steps."""
    values = {f"{'k' * 1500}{i:06d}{'z' * 1500}": i for i in range(5000)}
    marks = Marks()
    got, _ = written(values, marks=marks, text_limit=1 << 26)
    assert list(range(5000)) == list(got.values())
    assert len(marks.sanitized) < 5000


def test_a_key_over_a_kilobyte_is_cut_and_marked():
    """Its head and tail are kept."""
    got, marks = written({"k" * 5000: 1})
    assert max(len(key.encode()) for key in got) <= 1024
    assert marks.cut


class ReprRaises:
    def __repr__(self):
        raise RuntimeError("no")


def test_a_key_whose_repr_raises_becomes_a_placeholder():
    """The value is stored all the same."""
    assert written({ReprRaises(): 5})[0] == {"<unprintable ReprRaises: RuntimeError>": 5}


# --- JSON: hostile and huge ------------------------------------------------------------------------------------------


def nested(depth):
    value: object = "bottom"
    for _ in range(depth):
        value = [value]
    return value


def test_a_hundred_thousand_levels_end_at_the_limit():
    """No RecursionError; the row says that something is missing."""
    got, marks = written(nested(100_000))
    text = json.dumps(got)
    assert text.count("[") == 32
    assert "<too deep>" in text
    assert marks.cut


def test_a_limit_of_depth_keeps_empty_containers():
    """Nothing is missing, nothing is marked."""
    got, marks = written({"a": {}, "b": []}, limits=Limits(depth=1))
    assert got == {"a": {}, "b": []}
    assert not marks


def test_a_cycle_is_named():
    """Through a list and a dict; meeting one twice beside each other is no cycle."""
    cycle: dict = {"name": "me"}
    cycle["self"] = [cycle]
    got, marks = written(cycle)
    assert got == {"name": "me", "self": ["<cycle>"]}
    assert marks.sanitized
    twice = [1]
    assert written([twice, twice])[0] == [[1], [1]]


def test_ten_thousand_keys_are_cut_at_the_limit_and_counted():
    """What is left out is counted; jsonb gets no data set."""
    got, marks = written({f"k{i}": i for i in range(12_000)})
    assert len(got) == 10_000
    assert marks.cut == {"field": 2000}
    got, marks = written(list(range(12_000)))
    assert len(got) == 10_000
    assert marks.cut == {"field": 2000}


class Huge:
    def __repr__(self):
        return "x" * 100_000_000


def test_a_repr_of_a_hundred_megabytes_is_cut():
    """To limits.repr_bytes."""
    got, marks = written({"huge": Huge()})
    assert len(got["huge"]) <= 8192
    assert marks.cut["field.huge"] > 99_000_000


def test_int_of_five_thousand_digits_becomes_a_placeholder():
    """Python refuses to print it; no exception, no dead letter."""
    value = 10**5000
    got, marks = written(value)
    assert f"<int of {value.bit_length()} bits>" == got
    assert marks.sanitized == ["field"]


def test_int_of_a_hundred_thousand_digits_without_pythons_limit():
    """jsonb's numbers end at 131,072 digits: a longer one would be a dead letter."""
    before = sys.get_int_max_str_digits()
    sys.set_int_max_str_digits(0)
    try:
        got, _ = written(10**140_000)
    finally:
        sys.set_int_max_str_digits(before)
    assert str(got).startswith("<int of ")


class ReprRecurses:
    def __repr__(self):
        return repr(self)


class ReprOfLies:
    def __repr__(self):
        return LyingText("a\0\ud800b")


class ReprNoText:
    def __repr__(self):
        return 5


@pytest.mark.parametrize("value", [ReprRaises(), ReprRecurses(), ReprNoText()])
def test_a_repr_that_fails_becomes_a_placeholder(value):
    """One placeholder each, marked, and the neighbours are stored."""
    got, marks = written({"before": 1, "bad": value, "after": 2})
    assert (got["before"], got["after"]) == (1, 2)
    assert got["bad"].startswith(f"<unprintable {type(value).__name__}: ")
    assert marks.sanitized == ["field.bad"]


def test_a_repr_that_lies_about_its_text_is_cleaned():
    """A NUL in it would be refused by jsonb."""
    assert written(ReprOfLies())[0] == "a\ufffd\\ud800b"


class LyingDate(dt.datetime):
    def isoformat(self, *args):
        return 5


def test_a_datetime_with_a_hostile_isoformat_becomes_a_placeholder():
    """It never raises."""
    got, _ = written(LyingDate(2024, 1, 1))
    assert got.startswith("<unprintable LyingDate: ")


def test_the_budget_of_a_tree_ends_a_data_set():
    """Four times the limit of one text, to within the last value."""
    got, marks = written([["x" * 1000] * 100], text_limit=4096)
    assert len(json.dumps(got)) < 4096 * 5 + 1024
    assert marks.cut


def test_names_in_marks_are_short_and_few():
    """A mark is never a second record, however long and deep the keys."""
    value: object = float("nan")
    for i in range(20):
        value = {f"{i}{'k' * 900}": value, "n": float("nan")}
    marks = Marks()
    written({str(i): value for i in range(100)}, marks=marks)
    assert len(json.dumps(marks.as_dict())) < 20_000
    assert marks.as_dict()["sanitized"]
