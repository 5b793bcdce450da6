"""traceparent.py: W3C Trace Context, valid and not."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from logsluice import extract, inject
from logsluice.traceparent import SpanContext, parse, write

TRACE, SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
GOOD = f"00-{TRACE}-{SPAN}-01"

ids = st.tuples(st.integers(1, 2**128 - 1), st.integers(1, 2**64 - 1), st.integers(0, 3))
key = st.from_regex(r"\A[a-z][a-z0-9_*/-]{0,20}\Z")
value = st.text(st.characters(min_codepoint=0x21, max_codepoint=0x7E, exclude_characters=",="), min_size=1, max_size=20)
states = st.dictionaries(key, value, max_size=32)


@given(ids, states, st.sampled_from(["traceparent", "Traceparent", "TRACEPARENT"]))
def test_what_is_injected_is_what_is_extracted(given_ids, state, name):
    trace, span, flags = given_ids
    context = SpanContext(f"{trace:032x}", f"{span:016x}", flags, ",".join(f"{k}={v}" for k, v in state.items()))
    headers = {name: "old", "TraceState": "old=1", "Accept": "*/*"}
    inject(headers, context)
    assert extract(headers) == context
    assert len(headers) == (3 if state else 2)


@given(st.text(), st.text())
def test_no_header_raises(parent, state):
    found = parse(parent, state)
    assert found is None or write(found)[:52] == parent.strip(" \t")[:52].replace(parent.strip(" \t")[:2], "00", 1)


@pytest.mark.parametrize(
    "header",
    [
        "", "00", GOOD.upper(), GOOD[:-1], GOOD + "0", GOOD + "-", GOOD + "-what", f"ff-{TRACE}-{SPAN}-01",
        f"00-{'0' * 32}-{SPAN}-01", f"00-{TRACE}-{'0' * 16}-01", f"0-{TRACE}-{SPAN}-01", f"00-{TRACE}-{SPAN}-0x",
        f"00_{TRACE}_{SPAN}_01", f"{GOOD},{GOOD}", f"00-{TRACE[:-1]}g-{SPAN}-01", f"00-{TRACE}-{SPAN}-1", GOOD + "\n",
        f"01-{TRACE}-{SPAN}-01.what", "٠٠" + GOOD[2:],
    ],
)  # fmt: skip
def test_an_invalid_traceparent_counts_as_not_sent(header):
    """And its tracestate with it."""
    assert extract({"traceparent": header, "tracestate": "a=1"}) is None


def test_a_later_version_is_read_by_the_parts_that_are_known():
    assert parse(f"cc-{TRACE}-{SPAN}-01") == parse(f"cc-{TRACE}-{SPAN}-01-what-comes") == SpanContext(TRACE, SPAN)


def test_blanks_around_and_flags_that_nobody_knows():
    """Unknown flags are not handed on."""
    found = extract({"traceparent": f" 00-{TRACE}-{SPAN}-fe\t"})
    assert (found.flags, found.sampled, write(found)) == (2, False, f"00-{TRACE}-{SPAN}-02")


@pytest.mark.parametrize("state", ["a=1,a=2", "A=1", "a", "a=1=2", "a=\x01", ",".join(f"k{n}=1" for n in range(33))])
def test_an_invalid_tracestate_is_left_out_alone(state):
    assert extract({"traceparent": GOOD, "tracestate": state}) == SpanContext(TRACE, SPAN, 1, "")


def test_a_tracestate_is_handed_on_as_it_came():
    found = extract({"traceparent": GOOD, "tracestate": "congo=t61 rc, ,\trojo@x=00f"})
    assert found.state == "congo=t61 rc,rojo@x=00f"


@pytest.mark.parametrize("headers", [{}, {"traceparent": None}, {"traceparent": 5}, {"traceparent": [GOOD]}, {5: GOOD}])
def test_a_mapping_of_odd_things_is_no_error(headers):
    assert extract(headers) is None


def test_without_a_span_no_header_is_set():
    headers = {}
    inject(headers)
    assert headers == {}
