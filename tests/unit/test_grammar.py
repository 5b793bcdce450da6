"""The filter grammar: any text gives terms or an error that points at a character, and no text of it comes into SQL."""

from __future__ import annotations

import json
from datetime import datetime, timedelta, timezone
from decimal import Decimal
from uuid import UUID
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st
from psycopg import sql

from logsluice import conditions, grammar
from logsluice.grammar import FilterError, moment, parse

NOW = datetime(2026, 11, 22, 9, 30, tzinfo=timezone.utc)
COLUMNS = {
    "ts": "time", "level": "level", "logger": "text", "message": "text", "line": "integer", "user_id": "text",
    "duration_ms": "number", "skipped": "boolean", "job_id": "uuid", "tags": "other", "metadata": "json",
    "attributes": "json",
}  # fmt: skip


def terms(text, columns=COLUMNS, **more):
    return [(one.column, one.path, one.operator, one.value) for one in parse(text, columns, now=NOW, **more)]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", []),
        (" \n\t", []),
        ("card", [("message", (), "", "card")]),
        ("card refused", [("message", (), "", "card"), ("message", (), "", "refused")]),
        ('"card refused" twice', [("message", (), "", "card refused"), ("message", (), "", "twice")]),
        ('"say \\"no\\" \\\\"', [("message", (), "", 'say "no" \\')]),
        ('"OR"', [("message", (), "", "OR")]),
        ("https://shop/?a=b it's -x", [("message", (), "", one) for one in ("https://shop/?a=b", "it's", "-x")]),
        ("level>=warning", [("level", (), ">=", 30)]),
        ("level=WARN", [("level", (), "=", 30)]),
        ("level<trace", [("level", (), "<", 5)]),
        ("level!=35", [("level", (), "!=", 35)]),
        ("logger~=^shop", [("logger", (), "~=", "^shop")]),
        ("logger~~=shop", [("logger", (), "~~=", "shop")]),
        ("logger!~=shop", [("logger", (), "!~=", "shop")]),
        ("logger!~~=shop", [("logger", (), "!~~=", "shop")]),
        ('user_id=""', [("user_id", (), "=", None)]),
        ('user_id="a b"', [("user_id", (), "=", "a b")]),
        ('user_id="="', [("user_id", (), "=", "=")]),
        ("line>10", [("line", (), ">", 10)]),
        ("duration_ms<=1.5e3", [("duration_ms", (), "<=", Decimal(1500))]),
        ("skipped=True", [("skipped", (), "=", True)]),
        ("job_id=" + "0" * 31 + "1", [("job_id", (), "=", UUID(int=1))]),
        ("tags=x", [("tags", (), "=", "x")]),
        ("amount>100", [("attributes", ("amount",), ">", Decimal(100))]),
        ("amount=100", [("attributes", ("amount",), "=", "100")]),
        ("order.id=7", [("attributes", ("order", "id"), "=", "7")]),
        ("metadata.a.b=7", [("metadata", ("a", "b"), "=", "7")]),
        ("attributes.level=7", [("attributes", ("level",), "=", "7")]),
        ('attributes."unit price"."a\\"b"=7', [("attributes", ("unit price", 'a"b'), "=", "7")]),
        ("attributes~=x", [("attributes", (), "~=", "x")]),
        ("größe=7", [("attributes", ("größe",), "=", "7")]),
        ("ts>=2026-11-22", [("ts", (), ">=", NOW.replace(hour=0, minute=0))]),
        ("since=15m", [("ts", (), ">=", NOW - timedelta(minutes=15))]),
        ("until=yesterday", [("ts", (), "<", NOW.replace(day=21, hour=0, minute=0))]),
    ],
)  # fmt: skip
def test_what_a_filter_means(text, expected):
    assert terms(text) == expected


@pytest.mark.parametrize(
    ("text", "at", "words"),
    [
        ("shop level>=loud", 12, "'loud' is no level: write trace, debug"),
        ("level >= warning", 6, "no blanks around an operator"),
        ("level>= warning", 7, 'a value must follow >= without a blank; for no value write ""'),
        ("level=", 6, "a value must follow ="),
        ("level==10", 6, "two operators"),
        ("level~=w", 5, "level is no text: write one of = != > >= < <="),
        ("level=99999", 6, "is no level"),
        ("logger>a", 6, "logger has no order: write one of = != ~="),
        ("line=1.5", 5, "is no whole number"),
        ("line=" + "9" * 5000, 5, "is no whole number"),
        ("duration_ms>fast", 12, "is no number"),
        ("amount>much", 7, "is no number"),
        ("skipped=1", 8, "write true or false"),
        ("job_id=7", 7, "is no uuid"),
        ("metadata=7", 8, "metadata is JSON: write metadata.KEY=VALUE"),
        ("mesage=x", 0, "did you mean message? For an attribute write attributes.mesage"),
        ('logger~=""', 8, "is no value: write ="),
        ("a OR b", 2, "all terms must hold, there is no OR"),
        ('message="card', 8, "a quote is not closed"),
        ('message="card"x', 14, "a blank must follow the closing quote"),
        ('""', 0, "no text between the quotes"),
        ("since=soon", 6, "'soon' is no time: write 15m, 2h"),
        ("since>15m", 5, "write since=15m"),
        ("ts>2026-13-01", 3, "there is no such time"),
        ("ts>999999w", 3, "there is no such time"),
        ("a\0b", 1, "NUL is in no stored text"),
        ("a\udc80b", 1, "lone surrogate"),
        ("x " * 5000, 8000, "write 8,000 at most"),
    ],
)
def test_an_error_points_at_the_character_and_says_what_to_write(text, at, words):
    with pytest.raises(FilterError) as raised:
        terms(text)
    assert raised.value.at == at
    assert words in raised.value.problem
    _problem, shown, caret = str(raised.value).split("\n")
    place = caret.index("^") - 4
    assert (shown[4:] + " ")[place] == ((text[max(0, at - 70) :] + " ")[min(at, 70)] if at else text[0]).replace(
        "\0", "?"
    ).replace("\udc80", "?")


def test_the_caret_stands_below_wide_characters_and_control_characters_do_not_get_out():
    with pytest.raises(FilterError) as raised:
        terms("日本\x1b[31m level>=loud")
    _, shown, caret = str(raised.value).split("\n")
    assert shown == "    日本?[31m level>=loud"
    assert caret == " " * (4 + 4 + 5 + 1 + 7) + "^"


def test_a_table_without_message_and_attributes():
    columns = {"ts": "time", "status": "text"}
    with pytest.raises(FilterError, match="has no message to look for 'card' in"):
        terms("card", columns)
    with pytest.raises(FilterError, match="there is no column 'amount': write one of ts, status"):
        terms("amount>1", columns)


PARIS = ZoneInfo("Europe/Paris")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("now", NOW),
        ("15m", NOW - timedelta(minutes=15)),
        ("-3h", NOW - timedelta(hours=3)),
        ("90s", NOW - timedelta(seconds=90)),
        ("2w", NOW - timedelta(weeks=2)),
        ("today", datetime(2026, 11, 21, 23, tzinfo=timezone.utc)),
        ("Yesterday", datetime(2026, 11, 20, 23, tzinfo=timezone.utc)),
        ("2026-07-01", datetime(2026, 6, 30, 22, tzinfo=timezone.utc)),
        ("2026-11-22T09:00", datetime(2026, 11, 22, 8, tzinfo=timezone.utc)),
        ("2026-11-22 09:00:01", datetime(2026, 11, 22, 8, 0, 1, tzinfo=timezone.utc)),
        ("2026-11-22T09:00:01.5Z", datetime(2026, 11, 22, 9, 0, 1, 500_000, tzinfo=timezone.utc)),
        ("2026-11-22t09:00:01.123456789-02:30", datetime(2026, 11, 22, 11, 30, 1, 123_456, tzinfo=timezone.utc)),
        ("2016-12-31T23:59:60.5Z", datetime(2017, 1, 1, 0, 0, 0, 500_000, tzinfo=timezone.utc)),
        ("1764000000", datetime(2025, 11, 24, 16, tzinfo=timezone.utc)),
    ],
)
def test_times(text, expected):
    assert moment(text, NOW, PARIS) == expected


ODD = st.text(st.sampled_from('abc.=~!<>"\\ \n\t-_0159:levtsndiçü\0\x1b\u202e日') | st.characters(), max_size=60)
PIECES = st.lists(
    st.sampled_from([*COLUMNS, *grammar.OPERATORS, '"', "\\", " ", ".", "x", "15m", "since", "1e5", "warning"]) | ODD,
    max_size=8,
).map("".join)  # fmt: skip


def attempt(function, *args, **more):
    """What it returns, or the one error that it may raise."""
    try:
        return function(*args, **more)
    except FilterError as error:
        return error


@given(PIECES)
def test_any_text_gives_terms_or_a_pointed_error(text):
    found = attempt(parse, text, COLUMNS, now=NOW, zone=PARIS)
    if isinstance(found, FilterError):
        assert 0 <= found.at <= len(text)
        *_, shown, caret = str(found).split("\n")
        assert (shown.isprintable(), caret.strip()) == (True, "^")
        return
    for term in found:
        composed = conditions.of_term(term)
        assert composed.sql.as_string(None).count("%s") == len(composed.values)


@given(PIECES)
def test_any_text_is_a_time_or_a_pointed_error(text):
    found = attempt(moment, text, NOW, PARIS)
    assert 0 <= found.at <= len(text) if isinstance(found, FilterError) else found.tzinfo is timezone.utc


KEYS = st.sampled_from([
    "message", "logger", "tags", "attributes.zzkeyzz", 'attributes.zzkeyzz."zz key zz"', "metadata.zzkeyzz", "zzkeyzz",
])  # fmt: skip


@given(KEYS, st.sampled_from(grammar.EQUAL + grammar.REGEX), st.text(min_size=1))
def test_no_value_and_no_name_of_an_attribute_comes_into_the_sql(key, operator, value):
    mark = f"zz{value}zz"
    quoted = mark.replace("\\", "\\\\").replace('"', '\\"')
    found = attempt(parse, f'{key}{operator}"{quoted}" "{quoted}"', COLUMNS, now=NOW)
    if isinstance(found, FilterError):
        assert found.problem.startswith(("NUL", "half"))
        return
    where = conditions.all_of([conditions.of_term(one) for one in found])
    assert "zz" not in where.sql.as_string(None)
    written = {mark, json.dumps(mark)[1:-1]}  # an attribute's is in JSON
    assert any(one in str(value) for value in conditions.of_term(found[0]).values for one in written)
    assert isinstance(where.sql, sql.Composed)


def test_a_like_pattern_holds_no_wildcard_of_the_user():
    (term,) = parse("50%_\\x", COLUMNS, now=NOW)
    assert conditions.of_term(term).values == ("%50\\%\\_\\\\x%",)
