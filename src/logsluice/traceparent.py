"""
W3C Trace Context (https://www.w3.org/TR/trace-context/): the headers `traceparent` and `tracestate`. Pure.

    traceparent: 00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01
                 version-trace id-parent's span id-flags

Headers come from strangers: what the specification calls invalid counts as not sent, and nothing here raises for it.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Mapping, MutableMapping

TRACEPARENT, TRACESTATE = "traceparent", "tracestate"
SAMPLED = 1  # bit of the flags: the caller records this trace
_KNOWN_FLAGS = 3  # sampled, and level 2's random; others must not be handed on
_MEMBERS = 32  # of a tracestate, at most

TRACE_ID = re.compile("(?!0{32})[0-9a-f]{32}", re.ASCII)  # all zeros: invalid
SPAN_ID = re.compile("(?!0{16})[0-9a-f]{16}", re.ASCII)
# A version that is not known may have more parts, after a dash; ff is forbidden.
_PARENT = re.compile(f"(?!ff)([0-9a-f]{{2}})-({TRACE_ID.pattern})-({SPAN_ID.pattern})-([0-9a-f]{{2}})(-.*)?")
_KEY = r"(?:[a-z][a-z0-9_*/-]{0,255}|[a-z0-9][a-z0-9_*/-]{0,240}@[a-z][a-z0-9_*/-]{0,13})"
_MEMBER = re.compile(rf"({_KEY})=[ -+\--<>-~]{{0,255}}[!-+\--<>-~]")  # a value has no comma, no equals sign


class SpanContext(NamedTuple):
    """What others must know of a span to be its children: ids, flags, the vendors' `tracestate` as it came."""

    trace_id: str  # 32 lower-case hexadecimal digits, not all zeros
    span_id: str  # 16 lower-case hexadecimal digits, not all zeros; "" where only the trace's id was bound
    flags: int = SAMPLED
    state: str = ""

    @property
    def sampled(self) -> bool:
        """Whether the caller said that it records this trace. We store every span all the same."""
        return bool(self.flags & SAMPLED)


def parse(traceparent: str, tracestate: str | None = None) -> SpanContext | None:
    """Return what the headers' values say; None for an invalid traceparent. An invalid tracestate is left out alone."""
    found = _PARENT.fullmatch(traceparent.strip(" \t"))
    if found is None or (found[1] == "00" and found[5] is not None):
        return None
    return SpanContext(found[2], found[3], int(found[4], 16) & _KNOWN_FLAGS, _state(tracestate or ""))


def write(context: SpanContext) -> str:
    """Return the value of `traceparent` for calls made by this span."""
    return f"00-{context.trace_id}-{context.span_id}-{context.flags & _KNOWN_FLAGS:02x}"


def read_headers(headers: Mapping[str, str]) -> SpanContext | None:
    """Return what a mapping of headers says, their names in any case; None when there is no valid traceparent."""
    parent, state = _header(headers, TRACEPARENT), _header(headers, TRACESTATE)
    return parse(parent, state) if isinstance(parent, str) else None


def write_headers(headers: MutableMapping[str, str], context: SpanContext) -> None:
    """Set `traceparent`, and `tracestate` if there is one, in the place of what the mapping has in any case."""
    for name, value in ((TRACEPARENT, write(context)), (TRACESTATE, context.state)):
        for old in [key for key in headers if isinstance(key, str) and key.lower() == name]:
            del headers[old]  # two of them would be invalid; another caller's tracestate does not belong to ours
        if value:
            headers[name] = value


def _header(headers: Mapping[str, str], name: str) -> str | None:
    value = headers.get(name)
    if value is None:
        value = next((headers[key] for key in headers if isinstance(key, str) and key.lower() == name), None)
    return value


def _state(text: str) -> str:
    """Return a tracestate without blanks and empty members; "" for one that is not valid."""
    members = [member for part in text.split(",") if (member := part.strip(" \t"))] if isinstance(text, str) else []
    found = [_MEMBER.fullmatch(member) for member in members]
    keys = {one[1] for one in found if one is not None}
    return ",".join(members) if len(keys) == len(members) <= _MEMBERS else ""  # each valid, and no key twice
