"""Hypothesis strategies for records that the quick way and the whole way must say the same of."""

from __future__ import annotations

import logging

from hypothesis import strategies as st

from support.records import make_record
from support.strategies import CALLS, EXTRAS, IDS, LEVELS, PLAIN_TEXT, SCALARS, TEXT

BASE = frozenset(logging.LogRecord("", 0, "", 0, "", (), None).__dict__)


class IntSubclass(int):
    def __repr__(self):
        return "lies"


ODD_NUMBERS = st.sampled_from([0, -1, 1, True, 20.0, 42.0, 1.5, None, "7", 2**40, float("nan"), IntSubclass(42)])
NAMES = st.one_of(PLAIN_TEXT, TEXT, st.none(), st.sampled_from(["postgres://u:hunter2@h/db", "x" * 2000, "é" * 300]))


@st.composite
def records(draw):
    """A record as programs, filters and factories make them; mostly ordinary, oddities in any place."""
    msg, args = draw(CALLS)
    level = draw(LEVELS)
    record = make_record(msg, args, level=level, name=draw(st.one_of(PLAIN_TEXT, TEXT)))
    record.__dict__.update(draw(EXTRAS))
    odd = draw(st.dictionaries(
        st.sampled_from(["pathname", "funcName", "threadName", "taskName", "processName", "levelname", "lineno", "levelno"]),
        st.none(), max_size=2,
    ))  # fmt: skip
    for name in odd:
        if name == "taskName" and name not in BASE:
            continue
        strategy = ODD_NUMBERS if name in {"lineno", "levelno"} else NAMES
        record.__dict__[name] = draw(strategy)
    return record


BOUND = st.one_of(
    st.none(),
    st.dictionaries(
        st.one_of(
            st.sampled_from([*IDS, "tenant", "operation", "module", "password", "message", "name", "_name"]), TEXT
        ),
        SCALARS,
        max_size=3,
    ),
)
