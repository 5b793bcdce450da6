r"""
Fields -> frame. Pure.

A frame is one row of PostgreSQL's COPY text format (https://www.postgresql.org/docs/current/sql-copy.html, "Text
Format"): columns between tabs, NULL as \N, backslash, newline, carriage return and tab escaped, a newline at the end.
It holds no NUL byte: the first NUL of a segment is where its data ends.

`clean` and `JsonWriter` repair what PostgreSQL refuses, and say so in `Marks`:
NUL becomes U+FFFD, a lone surrogate becomes \udXXX as text, NaN and infinities become strings, what JSON cannot hold
becomes its `repr`, and what is over a limit is cut with its head and tail kept.
"""

from __future__ import annotations

import datetime as dt
import decimal
import enum
import itertools
import math
import os
import uuid
from dataclasses import dataclass, field
from json.encoder import encode_basestring
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable

    from logsluice.config import Limits
    from logsluice.redaction import Redactor

NULL = r"\N"
_MARKS_LISTED = 20  # names in one mark: enough to find the culprit, never a second record
_PATH = 200  # characters of a name in a mark: the end says more than the beginning
_CUT_NOTE = 40  # bytes for the words that stand where a text was cut
_CONTAINERS = (dict, list, tuple, set, frozenset)
_SHORT_INT = 12  # digits: a payment card has more
_INT_BITS = 110_000  # of an int: about 33,000 digits. jsonb's numbers end at 131,072, Python's own limit can be lifted


@dataclass
class Marks:
    """What was changed in one record; stored as `attributes.logsluice` and counted."""

    cut: dict[str, int] = field(default_factory=dict)  # where -> bytes or values left out
    redacted: list[str] = field(default_factory=list)  # which keys or fields
    sanitized: list[str] = field(default_factory=list)  # which keys or fields
    other: dict[str, Any] = field(default_factory=dict)  # ts_original, format_error, args

    def __bool__(self) -> bool:
        return bool(self.cut or self.redacted or self.sanitized or self.other)

    def as_dict(self) -> dict[str, Any]:
        """Return it as it is stored, without what is empty."""
        listed: dict[str, Any] = dict(self.other)
        if self.cut:
            listed["cut"] = dict(list(self.cut.items())[:_MARKS_LISTED])
        if self.redacted:
            listed["redacted"] = sorted(set(self.redacted))[:_MARKS_LISTED]
        if self.sanitized:
            listed["sanitized"] = sorted(set(self.sanitized))[:_MARKS_LISTED]
        return listed


def copy_text(text: str) -> str:
    """Escape a clean text for one column of a COPY row."""
    if "\\" in text:
        text = text.replace("\\", "\\\\")
    if "\n" in text or "\t" in text or "\r" in text:  # three searches in C cost less than one look at each character
        text = text.replace("\n", "\\n").replace("\r", "\\r").replace("\t", "\\t")
    return text


def copy_row(columns: Iterable[str | None]) -> bytes:
    """Return the frame of clean column texts; None is NULL."""
    return ("\t".join([NULL if text is None else copy_text(text) for text in columns]) + "\n").encode()


def clean(text: str, where: str, marks: Marks) -> str:
    """Replace what PostgreSQL's text cannot hold: NUL and lone surrogates. Return an exact `str`."""
    if type(text) is not str:
        text = str.__str__(text)  # a subclass may say anything in its own methods
    if text.isascii() and "\0" not in text:  # a flag and one search; `isprintable` looks at each character
        return text
    cleaned = text.replace("\0", "\ufffd")
    try:
        cleaned.encode()
    except UnicodeEncodeError:
        cleaned = cleaned.encode("utf-8", "backslashreplace").decode()
    if cleaned is not text and cleaned != text:
        marks.sanitized.append(where)
    return cleaned


def cut(text: str, limit: int, where: str, marks: Marks) -> str:
    """Keep head and tail of a clean text that is over `limit` bytes of UTF-8."""
    if len(text) * 4 <= limit:  # a character takes at most four bytes
        return text
    data = text.encode()
    if len(data) <= limit:
        return text
    half = max(0, limit - _CUT_NOTE) // 2
    left_out = len(data) - 2 * half
    marks.cut[where] = marks.cut.get(where, 0) + left_out
    head, tail = data[:half].decode(errors="ignore"), data[len(data) - half :].decode(errors="ignore")
    return f"{head} …[{left_out} bytes cut]… {tail}"


SEAM = 8192  # characters: longer than any pattern of ours; what stands beside a cut may be half a secret
FAR = 4  # times its limit: from here on a text is not looked at as a whole, each look would cost a copy of it
_PIECE = 65_536  # characters measured at a time


def fit(text: str, where: str, marks: Marks, redactor: Redactor, limit: int) -> str:
    """Return the text cleaned, without secrets, and within `limit` bytes. Needs about `FAR * limit` bytes at most."""
    if type(text) is not str:
        text = str.__str__(text)
    if len(text) <= FAR * limit + 2 * SEAM:
        return cut(_redacted(clean(text, where, marks), where, marks, redactor), limit, where, marks)
    half = max(0, limit - _CUT_NOTE) // 2
    ends = [text[: half + SEAM], text[len(text) - half - SEAM :]]
    # Redacted first, then the seam left out: half a secret is not recognised.
    head, tail = [_redacted(clean(end, where, marks), where, marks, redactor) for end in ends]
    first = head[:-SEAM].encode()[:half].decode(errors="ignore")
    last = tail[SEAM:].encode()
    last_text = last[max(0, len(last) - half) :].decode(errors="ignore")
    size = sum(len(text[at : at + _PIECE].encode(errors="surrogatepass")) for at in range(0, len(text), _PIECE))
    left_out = size - len(first.encode()) - len(last_text.encode())
    marks.cut[where] = marks.cut.get(where, 0) + left_out
    return f"{first} …[{left_out} bytes cut]… {last_text}"


def _redacted(text: str, where: str, marks: Marks, redactor: Redactor) -> str:
    if redactor.active and ("://" in text or redactor.searches_text):
        redacted = redactor.clean(text)
        if redacted != text:
            marks.redacted.append(where)
            return redacted
    return text


class JsonWriter:
    """
    It writes one tree of any Python values as JSON text that jsonb accepts. Never raises for what a value is or does.

    dict, list, tuple, set, str, int, float, bool and None are themselves; datetimes are ISO 8601, Decimal, UUID and
    paths their text, enum members their value; anything else is its `repr`. One writer serves one record.
    """

    def __init__(self, limits: Limits, text_limit: int, redactor: Redactor, marks: Marks) -> None:
        self._limits = limits
        self._text_limit = text_limit
        self._redactor = redactor
        self._marks = marks
        self._items_left = limits.items
        self._open: set[int] = set()  # ids of the containers we are in: a second meeting is a cycle
        self.bytes_left = text_limit * 4  # of the whole tree

    def value(self, value: Any, where: str, depth: int = 0) -> str:
        """Return the JSON text of one value; `where` names it in marks."""
        try:
            return self._value(value, where, depth)
        except Exception as error:  # a hostile object: its class, length, iteration or repr raised
            self._marks.sanitized.append(where)
            return self._text(f"<unprintable {type(value).__name__}: {type(error).__name__}>", where)

    def mapping(self, values: dict[Any, Any], where: str = "", depth: int = 0) -> str:
        """Return the JSON text of an object, secrets left out by their keys."""
        parts: list[str] = []
        seen: set[str] = set()
        # A dict's own methods: a subclass may say anything in its. One more than there is room for shows the cut.
        pairs = list(itertools.islice(dict.items(values), max(0, self._items_left) + 1))
        for i, (key, value) in enumerate(pairs):
            if self._items_left <= 0 or self.bytes_left <= 0:
                self._marks.cut[where or "attributes"] = dict.__len__(values) - i
                break
            self._items_left -= 1
            name = self._key(key, where)
            if name in seen:  # 1 and "1" are two keys in Python and one in JSON
                self._marks.sanitized.append(name[-_PATH:])
                name = f"{name}_{i}"
                while name in seen:
                    name += "_"
            seen.add(name)
            path = f"{where}.{name}"[-_PATH:] if where else name[-_PATH:]
            plain = key.decode("latin-1") if type(key) is bytes else name  # the headers of ASGI have bytes for keys
            if self._redactor.active and self._redactor.is_secret(plain):
                self._marks.redacted.append(path)
                text = self._instead(plain, value, path, depth + 1)
            else:
                text = self.value(value, path, depth + 1)
            part = f"{encode_basestring(name)}: {text}"
            self.bytes_left -= len(part)
            parts.append(part)
        return "{" + ", ".join(parts) + "}"

    def _instead(self, key: str, value: Any, where: str, depth: int) -> str:
        """Return the JSON of what stands for a value under a secret key: whole, for the half of it is worth nothing."""
        return encode_basestring(self._redactor.instead(key, value, lambda: self.value(value, where, depth)))

    def _value(self, value: Any, where: str, depth: int) -> str:
        kind = type(value)
        if kind is str:
            return self._text(value, where)
        if value is None:
            return "null"
        if kind is bool:
            return "true" if value else "false"
        if kind is int:
            return self._int(value, where)
        if kind is float:
            return self._float(value, where)
        if issubclass(kind, _CONTAINERS):  # of its type, not isinstance: an object may lie about its __class__
            return self._container(value, where, depth)
        return self._other(value, where, depth)

    def _container(self, value: Any, where: str, depth: int) -> str:
        if id(value) in self._open:
            self._marks.sanitized.append(where)
            return '"<cycle>"'
        if depth >= self._limits.depth and len(value):
            self._marks.cut[where] = self._marks.cut.get(where, 0) + 1
            return '"<too deep>"'
        self._open.add(id(value))
        try:
            if isinstance(value, dict):
                return self.mapping(value, where, depth)
            return self._sequence(value, where, depth)
        finally:
            self._open.discard(id(value))

    def _sequence(self, value: Any, where: str, depth: int) -> str:
        parts: list[str] = []
        base: Any = next(base for base in _CONTAINERS if isinstance(value, base))
        items = list(itertools.islice(base.__iter__(value), max(0, self._items_left) + 1))
        for i, item in enumerate(items):
            if self._items_left <= 0 or self.bytes_left <= 0:
                self._marks.cut[where] = base.__len__(value) - i
                break
            self._items_left -= 1
            part = self.value(item, where, depth + 1)
            self.bytes_left -= len(part)
            parts.append(part)
        return "[" + ", ".join(parts) + "]"

    def _other(self, value: Any, where: str, depth: int) -> str:
        kind = type(value)
        if issubclass(kind, enum.Enum):
            return self._value(value.value, where, depth)
        if issubclass(kind, str):
            return self._text(value, where)
        if issubclass(kind, int):
            return self._int(int.__int__(value), where)
        if issubclass(kind, float):
            return self._float(float.__float__(value), where)
        if issubclass(kind, (dt.datetime, dt.date, dt.time)):
            return self._text(value.isoformat(), where)
        if issubclass(kind, (decimal.Decimal, uuid.UUID, os.PathLike)):
            return self._text(str(value), where)
        return self._text(repr(value), where, self._limits.repr_bytes)

    def _text(self, text: str, where: str, limit: int | None = None) -> str:
        most = min(self._text_limit, max(self.bytes_left, 1024))
        return encode_basestring(
            fit(text, where, self._marks, self._redactor, most if limit is None else min(limit, most))
        )

    def _int(self, value: int, where: str) -> str:
        if value.bit_length() <= _INT_BITS:
            try:
                digits = int.__repr__(value)
            except ValueError:  # over Python's limit on digits
                pass
            else:
                if len(digits) > _SHORT_INT and self._redactor.searches_text:
                    text = _redacted(digits, where, self._marks, self._redactor)
                    return digits if text is digits else encode_basestring(text)
                return digits
        self._marks.sanitized.append(where)
        return f'"<int of {value.bit_length()} bits>"'

    def _float(self, value: float, where: str) -> str:
        if math.isfinite(value):
            return float.__repr__(value)
        self._marks.sanitized.append(where)
        return '"NaN"' if value != value else '"Infinity"' if value > 0 else '"-Infinity"'  # noqa: PLR0124 - NaN is the one

    def _key(self, key: Any, where: str) -> str:
        kind = type(key)
        if kind is str:
            text = key
        elif key is None or kind is bool:
            text = {None: "null", True: "true", False: "false"}[key]
        else:
            try:
                text = str.__str__(key) if isinstance(key, str) else repr(key)
            except Exception as error:  # a key with a hostile repr, or an int over Python's limit on digits
                text = f"<unprintable {kind.__name__}: {type(error).__name__}>"
        return fit(text, where or "key", self._marks, self._redactor, self._limits.key_bytes)
