"""Hypothesis strategies for what programs log."""

from __future__ import annotations

import logging
import string

from hypothesis import strategies as st

# Everything that a format of lines, of COPY or of JSON may trip over.
NASTY = ["\0", "\ud800", "\udfff", "\udcff", "\r", "\n", "\t", "\\", "\\.", "\\N", "\u2028", "\x85", "\x1b", '"', "'",
         "{", "}", "%", "%s", "://", "\x7f", "\ufeff", "\U0010ffff", "\b", "\f", "\v", ",", "\\u0000", "\\x00"]  # fmt: skip

# All of Unicode, lone surrogates and NUL included.
ANY_TEXT = st.lists(
    st.one_of(st.sampled_from(NASTY), st.characters(categories=None, min_codepoint=0, max_codepoint=0x10FFFF), st.text(max_size=4)),
    max_size=6,
).map("".join)  # fmt: skip

PLAIN_TEXT = st.text(alphabet=string.ascii_letters + string.digits + " .-_/é€", max_size=12)
TEXT = st.one_of(PLAIN_TEXT, ANY_TEXT)

SCALARS = st.one_of(
    TEXT, st.none(), st.booleans(), st.integers(), st.integers(-(2**70), 2**70), st.floats(), st.floats(-1e6, 1e6)
)
JSON_LIKE = st.recursive(
    SCALARS,
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(TEXT, inner, max_size=3)),
    max_leaves=5,
)
ANY_VALUE = st.one_of(
    JSON_LIKE, st.binary(max_size=5), st.decimals(), st.datetimes(), st.dates(), st.timedeltas(), st.uuids(),
    st.complex_numbers(), st.fractions(), st.sets(st.integers(), max_size=3), st.tuples(SCALARS, SCALARS),
    st.dictionaries(st.one_of(st.integers(), st.booleans(), st.none(), st.binary(max_size=3), st.tuples(st.integers())), SCALARS, max_size=3),
)  # fmt: skip

LEVELS = st.sampled_from([10, 20, 30, 40, 50])
IDS = ("trace_id", "span_id", "correlation_id", "user_id", "organization_id")
_TAKEN = frozenset(logging.LogRecord("", 0, "", 0, "", (), None).__dict__) | {"message", "asctime", "taskName"}
EXTRA_KEYS = st.one_of(
    st.sampled_from(["order_id", "user", "shop", *IDS, "message", "asctime", "password", "extra", "logsluice", "a b", "é"]),
    TEXT.filter(lambda key: key not in _TAKEN),
)  # fmt: skip
EXTRAS = st.dictionaries(EXTRA_KEYS, st.one_of(SCALARS, SCALARS, ANY_VALUE), max_size=4)
CALLS = st.one_of(
    st.tuples(TEXT, st.just(())),
    st.tuples(PLAIN_TEXT.map(lambda t: t + " %s"), st.tuples(st.one_of(SCALARS, ANY_VALUE))),
    st.tuples(TEXT.map(lambda t: t.replace("%", "%%") + " %r"), st.tuples(TEXT)),
    st.tuples(st.just("%(a)s and %(b)r"), st.fixed_dictionaries({"a": TEXT, "b": SCALARS}).map(lambda d: (d,))),
    st.tuples(TEXT, st.tuples(SCALARS)),  # mostly a wrong format string
)
