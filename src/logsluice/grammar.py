r"""
The filter grammar: a text becomes terms, all of which must hold. Pure; query.py makes SQL of them.

    level>=warning service=shop order.amount>100 since=2h "card refused"

    filter    one or more terms with blanks between them; an empty filter finds every record
    term      KEY OPERATOR VALUE, without blanks, or free text: a word or "quoted words" that the message contains
    KEY       a column of the table, or an attribute by its dotted name: order.amount, attributes.order."unit price"
    OPERATOR  = != ~= !~= ~~= !~~= > >= < <=
    VALUE     up to the next blank, or in double quotes, with \" and \\ inside; "" is no value at all

docs/howto/query.md has the table of what each operator does. Any text gives terms or a `FilterError` that points at a
character: nothing else is ever raised.
"""

from __future__ import annotations

import difflib
import re
import unicodedata
from dataclasses import dataclass
from datetime import date, datetime, timedelta, timezone
from decimal import Decimal
from typing import TYPE_CHECKING
from uuid import UUID

from logsluice.errors import LogsluiceError
from logsluice.types import RANGES, UNITS, level_number

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import tzinfo

    Value = str | int | Decimal | bool | datetime | UUID | None  # None: no value

LENGTH = 8_000  # characters of a filter: what fits into a URL. It also bounds the conditions of a statement
EQUAL, REGEX, ORDER = ("=", "!="), ("~=", "!~=", "~~=", "!~~="), (">", ">=", "<", "<=")
OPERATORS = (*EQUAL, *REGEX, *ORDER)
TEXT = ""  # the operator of free text
# What a column's type takes. What is not here is compared as the text that PostgreSQL shows.
KINDS = {
    "text": "text", "character varying": "text", "character": "text", "smallint": "integer", "integer": "integer",
    "bigint": "integer", "numeric": "number", "real": "number", "double precision": "number", "boolean": "boolean",
    "timestamp with time zone": "time", "uuid": "uuid", "jsonb": "json", "json": "json",
}  # fmt: skip
_TAKES = {
    "json": REGEX, "uuid": EQUAL, "boolean": EQUAL, "text": EQUAL + REGEX, "other": EQUAL + REGEX,
    **dict.fromkeys(("level", "integer", "number", "time"), EQUAL + ORDER), "attribute": OPERATORS,
}  # fmt: skip

_QUOTED = r'"(?:[^"\\]|\\.)*"'
_KEY = re.compile(rf"[^\W\d][\w-]*(?:\.(?:[\w-]+|{_QUOTED}))*", re.DOTALL)
_PART = re.compile(rf"[\w-]+|{_QUOTED}", re.DOTALL)
_OPERATOR = re.compile("|".join(re.escape(one) for one in sorted(OPERATORS, key=len, reverse=True)))
_WORD = re.compile(r"\S+")
_INTEGER = re.compile(r"[+-]?[0-9]{1,30}")  # Python's int() takes other digits, too, and refuses thousands of them
_NUMBER = re.compile(r"[+-]?(?:[0-9]{1,30}(?:\.[0-9]{0,30})?|\.[0-9]{1,30})(?:[eE][+-]?[0-9]{1,2})?")
_SPAN = re.compile(r"-?([0-9]{1,6})([smhdw])")
_EPOCH = re.compile(r"[0-9]{9,11}(?:\.[0-9]{1,9})?")  # seconds since 1970: from the year 1973 on
_MOMENT = re.compile(
    r"([0-9]{4})-([0-9]{2})-([0-9]{2})"
    r"(?:[Tt ]([0-9]{2}):([0-9]{2})(?::([0-9]{2})(?:\.([0-9]{1,9}))?)?(?:([Zz])|([+-])([0-9]{2}):([0-9]{2}))?)?"
)
_MOMENTS = "15m, 2h, 3d, yesterday, today, now, 2026-11-22, 2026-11-22T09:00:00Z, or seconds since 1970"
_SHOWN = 70  # characters of a long filter that an error shows before the place: a line of a terminal


class FilterError(LogsluiceError, ValueError):
    """A filter cannot be read. `problem` says what to write, `at` is the character of `text` it is about, from 0."""

    def __init__(self, text: str, at: int, problem: str) -> None:
        self.text, self.at, self.problem = text, at, problem
        start = max(0, at - _SHOWN)
        shown = "".join(char if char.isprintable() else "?" for char in text[start : at + _SHOWN])
        width = sum(_width(char) for char in shown[: at - start])
        super().__init__(f"{problem}\n    {shown}\n    {' ' * width}^")


def _width(char: str) -> int:
    """Return how many places of a terminal's line a character takes."""
    return 0 if unicodedata.combining(char) else 2 if unicodedata.east_asian_width(char) in "WF" else 1


@dataclass(frozen=True)
class Term:
    """One condition. `path` leads into a column of JSON; `at`: where its value begins in the filter."""

    column: str
    path: tuple[str, ...]
    operator: str
    kind: str
    value: Value
    at: int


def kind_of(column: str, sql_type: str) -> str:
    """Return what a column takes: a kind of `_TAKES`."""
    kind = KINDS.get(sql_type, "other")
    return "level" if column == "level" and kind == "integer" else kind


def parse(text: str, columns: Mapping[str, str], *, now: datetime, zone: tzinfo = timezone.utc) -> list[Term]:
    """Return the terms of a filter. `columns`: of the table, each with its kind. Raises `FilterError` alone."""
    _refuse_odd(text)
    return list(_Reader(text, columns, now, zone).terms())


def moment(text: str, now: datetime, zone: tzinfo = timezone.utc) -> datetime:
    """
    Return the time that a text says: see `_MOMENTS`. Without an offset it is of `zone`, a date is its midnight.

    Raises `FilterError` for what is no time.
    """
    _refuse_odd(text)
    return _moment(text, text, 0, now, zone)


def _refuse_odd(text: str) -> None:
    if len(text) > LENGTH:
        raise FilterError(text, LENGTH, f"the filter has {len(text):,} characters; write {LENGTH:,} at most")
    for at, char in enumerate(text):
        if char == "\0" or "\ud800" <= char <= "\udfff":
            what = "NUL" if char == "\0" else "half of a character (a lone surrogate)"
            raise FilterError(text, at, f"{what} is in no stored text: leave it out")


def _moment(given: str, text: str, at: int, now: datetime, zone: tzinfo) -> datetime:
    name = given.lower()
    try:
        if name == "now":
            return now
        if name in {"today", "yesterday"}:
            day = now.astimezone(zone).date() - timedelta(days=name == "yesterday")
            return datetime(day.year, day.month, day.day, tzinfo=zone).astimezone(timezone.utc)
        if found := _SPAN.fullmatch(name):
            return now - timedelta(seconds=int(found[1]) * UNITS[found[2]])
        if _EPOCH.fullmatch(given):
            return datetime.fromtimestamp(float(given), timezone.utc)
        if found := _MOMENT.fullmatch(given):
            return _read(found, zone).astimezone(timezone.utc)
    except (ValueError, OverflowError) as error:
        raise FilterError(text, at, f"there is no such time ({error}): write {_MOMENTS}") from None
    raise FilterError(text, at, f"{_named(given)} is no time: write {_MOMENTS}")


def _read(found: re.Match[str], zone: tzinfo) -> datetime:
    """Return what RFC 3339 says; Python 3.10 reads a part of it alone."""
    year, month, day, hour, minute, second, fraction, utc, sign, hours, minutes = found.groups()
    day_alone = date(int(year), int(month), int(day))
    if utc:
        zone = timezone.utc
    elif sign:
        offset = timedelta(hours=int(hours), minutes=int(minutes))
        zone = timezone(-offset if sign == "-" else offset)
    micro = int((fraction or "0")[:6].ljust(6, "0"))
    leap = second == "60"  # RFC 3339 has leap seconds; PostgreSQL, too, takes one for the second after it
    whole = int(second or 0) - leap
    at = datetime(day_alone.year, day_alone.month, day_alone.day, int(hour or 0), int(minute or 0), whole, micro, zone)
    return at + timedelta(seconds=leap)


def _named(given: str) -> str:
    """Return a part of the filter for a message: short, without anything that drives a terminal."""
    return ascii(given if len(given) <= 40 else given[:40] + "...")  # 40: what a reader needs to know it again


class _Reader:
    """It reads one filter, from its left to its right."""

    def __init__(self, text: str, columns: Mapping[str, str], now: datetime, zone: tzinfo) -> None:
        self.text, self.columns, self.now, self.zone = text, columns, now, zone
        self.at = 0

    def wrong(self, problem: str, at: int | None = None) -> FilterError:
        return FilterError(self.text, self.at if at is None else at, problem)

    def terms(self) -> list[Term]:
        found: list[Term] = []
        while True:
            while self.at < len(self.text) and self.text[self.at].isspace():
                self.at += 1
            if self.at == len(self.text):
                return found
            found.append(self._term())

    def _term(self) -> Term:
        start = self.at
        key = _KEY.match(self.text, start)
        operator = _OPERATOR.match(self.text, key.end()) if key else None
        if key and operator:
            self.at = operator.end()
            return self._comparison(key, operator[0], start)
        if _OPERATOR.match(self.text, start):
            raise self.wrong('no blanks around an operator: write level>=warning; a text that begins so in "quotes"')
        value = self._value()
        if self.text[start] != '"' and value in {"AND", "OR", "NOT"}:
            raise self.wrong(
                f'all terms must hold, there is no {value}: leave it out; to search for the word write "{value}"', start
            )
        if "message" not in self.columns:
            raise self.wrong(f"this table has no message to look for {_named(value)} in: write KEY=VALUE", start)
        if not value:
            raise self.wrong("there is no text between the quotes: write one, or leave them out", start)
        return Term("message", (), TEXT, "text", value, start)

    def _value(self) -> str:
        """Read a value, and go to its end."""
        start = self.at
        if self.text[start : start + 1] == '"':
            quoted = re.compile(_QUOTED, re.DOTALL).match(self.text, start)
            if quoted is None:
                raise self.wrong('a quote is not closed: write "..."; a quote inside as \\"', start)
            self.at = quoted.end()
            if self.at < len(self.text) and not self.text[self.at].isspace():
                raise self.wrong('a blank must follow the closing quote; write a quote inside as \\"')
            return _unquoted(quoted[0])
        word = _WORD.match(self.text, start)
        self.at = word.end() if word else start
        return word[0] if word else ""

    def _comparison(self, key: re.Match[str], operator: str, start: int) -> Term:
        at = self.at
        if self.text[at : at + 1] in {"=", "~", "<", ">"}:
            raise self.wrong(f'two operators, {operator} is one: write one; a value that begins so in "quotes"')
        quoted = self.text[at : at + 1] == '"'
        given = self._value()
        if not given and not quoted:
            raise self.wrong(f'a value must follow {operator} without a blank; for no value write ""', at)
        if key[0] in {"since", "until"} and key[0] not in self.columns:
            if operator != "=" or not given:
                raise self.wrong(f"write {key[0]}=15m, or {key[0]}=2026-11-22", key.end())
            when = _moment(given, self.text, at, self.now, self.zone)
            return Term("ts", (), ">=" if key[0] == "since" else "<", "time", when, at)
        column, path = self._place(key[0], start)
        kind = "attribute" if path else self.columns[column]
        if operator not in _TAKES[kind]:
            raise self.wrong(self._unfit(column, kind, operator), key.end())
        if not given:
            if operator not in EQUAL:
                raise self.wrong('"" is no value: write =, for records without one, or !=', at)
            return Term(column, path, operator, kind, None, at)
        value: Value = given if operator in REGEX else self._typed(given, kind, operator, at)
        return Term(column, path, operator, kind, value, at)

    def _place(self, key: str, start: int) -> tuple[str, tuple[str, ...]]:
        """Return the column of a key, and the path into it."""
        parts = [_unquoted(part) if part[0] == '"' else part for part in _PART.findall(key)]
        first, *rest = parts
        if first in self.columns and (not rest or self.columns[first] == "json"):
            return first, tuple(rest)
        near = [] if rest else difflib.get_close_matches(first, self.columns, n=1, cutoff=0.8)  # as columns.py has it
        if near:
            more = f" For an attribute write attributes.{first}" if "attributes" in self.columns else ""
            raise self.wrong(f"there is no column {_named(first)}: did you mean {near[0]}?{more}", start)
        if self.columns.get("attributes") != "json":
            raise self.wrong(f"there is no column {_named(first)}: write one of {', '.join(self.columns)}", start)
        return "attributes", tuple(parts)

    def _unfit(self, column: str, kind: str, operator: str) -> str:
        if kind == "json":
            return f"{column} is JSON: write {column}.KEY{operator}VALUE"
        if operator in ORDER:
            return f"{column} has no order: write one of {' '.join(_TAKES[kind])}"
        return f"{column} is no text: write one of {' '.join(_TAKES[kind])}"

    def _typed(self, given: str, kind: str, operator: str, at: int) -> Value:
        if kind == "level":
            level = int(given) if _INTEGER.fullmatch(given) else level_number(given)
            if level is None or abs(level) > RANGES["smallint"]:
                raise self.wrong(
                    f"{_named(given)} is no level: write trace, debug, info, warning, error, critical, or a number", at
                )
            return level
        if kind == "integer":
            if not _INTEGER.fullmatch(given):
                raise self.wrong(f"{_named(given)} is no whole number: write one, for example 17", at)
            return int(given)
        if kind == "number" or (kind == "attribute" and operator in ORDER):
            if not _NUMBER.fullmatch(given):
                raise self.wrong(f"{_named(given)} is no number: write one, for example 12.5", at)
            return Decimal(given)
        if kind == "boolean":
            if given.lower() not in {"true", "false"}:
                raise self.wrong(f"{_named(given)} is neither: write true or false", at)
            return given.lower() == "true"
        if kind == "time":
            return _moment(given, self.text, at, self.now, self.zone)
        if kind == "uuid":
            try:
                return UUID(given)
            except ValueError:
                raise self.wrong(f"{_named(given)} is no uuid: write 32 hexadecimal digits", at) from None
        return given


def _unquoted(quoted: str) -> str:
    return re.sub(r"\\(.)", r"\1", quoted[1:-1], flags=re.DOTALL)


def number(text: str) -> Decimal | None:
    """Return the number that a text is; None for what is none."""
    return Decimal(text) if _NUMBER.fullmatch(text) else None
