"""
Traces: what belongs together, in one process and across many, and how long each part of it took.

    with trace("checkout", customer=7) as t:       begins a trace, or goes on with the one that is current
        with span("charge"):                       a part of it: a row in logsluice.spans when it ends
            log.info("card accepted")              its trace_id and span_id are columns of this record

Both work with `async with` and as decorators of functions, coroutines and generators. For call-backs and queues a span
is begun by hand, `s = start_span(name, parent=...)`, made current by `use(s)` where one likes, ended once by `s.end()`.
`extract` and `inject` read and write the headers of W3C Trace Context.

The parent of a span, the first that there is: `parent=`; OpenTelemetry's current span, where one was begun inside ours;
the span that is current here; ids that were bound with `logsluice.context`; none, and a new trace begins.

What is current is a context variable: threads begin with none, tasks with that of their maker, `context.carry` takes
it into pools. No lock is taken, and a span's end raises no more than a logging call does. Open spans are held weakly:
one that nobody ends is forgotten with its last reference.
"""

from __future__ import annotations

import logging
import os
import random
import sys
import time
import weakref
from dataclasses import field
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeVar

from logsluice import context, traceparent
from logsluice.capture import safe_str, type_name
from logsluice.traceparent import SPAN_ID, TRACE_ID, SpanContext
from logsluice.types import deliver, known, logtype

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, MutableMapping
    from contextvars import ContextVar
    from types import TracebackType

__all__ = [
    "ActiveTrace", "Span", "SpanContext", "active_traces", "current", "extract", "inject", "span", "start_span",
    "trace", "use",
]  # fmt: skip

Function = TypeVar("Function", bound="Callable[..., Any]")


class Span:
    """One part of a trace, from `start_span` to `end`. `attributes` may be changed until then."""

    __slots__ = ("__weakref__", "_clock", "_ending", "_pid", "attributes", "flags", "name", "parent_id", "span_id",
                 "started", "state", "trace_id")  # fmt: skip

    def __init__(self, name: str, parent: SpanContext | Span | None, attributes: dict[str, Any], pid: int) -> None:
        if not isinstance(name, str):
            raise TypeError(f"a span needs a name, got {type(name).__name__}: write span('charge'), @span('charge')")
        self.name = name
        self.attributes = attributes
        self.span_id = f"{_random.getrandbits(64) or 1:016x}"  # all zeros is no id
        if parent is None:
            self.trace_id = f"{_random.getrandbits(128) or 1:032x}"
            self.parent_id, self.flags, self.state = None, traceparent.SAMPLED, ""
        else:
            # A caller that has no span of its own has bound a trace's id alone.
            self.trace_id, self.parent_id = parent.trace_id, parent.span_id or None
            self.flags, self.state = parent.flags, parent.state
        self._pid = pid
        self._ending = iter((True,))  # `next` on it is one C call: of two threads that end the span, one does
        self.started = time.time()  # seconds since the epoch
        self._clock = time.monotonic()  # for its length: nobody sets this clock back

    @property
    def context(self) -> SpanContext:
        """What others must know to be its children; may be kept, pickled, sent."""
        return SpanContext(self.trace_id, self.span_id, self.flags, self.state)

    @property
    def age(self) -> float:
        """Seconds since it began."""
        return time.monotonic() - self._clock

    def end(self, error: BaseException | str | None = None) -> bool:
        """
        End the span: one row in `logsluice.spans`, by the process's PostgresHandlers. Any thread; as a logging call.

        `error` makes its status `error`: an exception, whose type and message are kept, or a message. Returns False,
        and does nothing, when it was ended before, and in a forked child when its parent began it: that one ends it.
        """
        if self._pid != os.getpid() or not next(self._ending, False):
            return False
        _open.discard(self)
        if error is not None:
            if isinstance(error, BaseException):
                self.attributes["exception.type"] = type_name(error)
                error = safe_str(error)
            self.attributes["exception.message"] = error
        _store(self, self.started + self.age, "ok" if error is None else "error")
        return True

    def __repr__(self) -> str:
        return f"<Span {self.name!r} {self.trace_id}-{self.span_id}>"


class ActiveTrace(NamedTuple):
    """A trace that has spans begun and not ended in this process."""

    trace_id: str
    name: str  # of the oldest of these spans
    age: float  # seconds since that one began
    spans: tuple[Span, ...]  # oldest first


# Our own generator: a program that calls random.seed(0) must not get another's ids.
_random = random.Random()
_seeded = os.getpid()  # the process that it was seeded in: after a fork both would go on with the same numbers
# Weak: a span that nobody holds any more is forgotten, ended or not.
_open: weakref.WeakSet[Span] = weakref.WeakSet()


def start_span(name: str, /, parent: SpanContext | Span | None = None, **attributes: Any) -> Span:
    """
    Begin a span by hand; it is not made current. Blocks for nothing.

    `parent` is another span, of this process or as `extract` gave it; None: what is current here. One that is never
    ended makes no row, and is forgotten with its last reference. Raises TypeError for a name that is no str.
    """
    global _seeded
    pid = os.getpid()
    if pid != _seeded:  # not by os.register_at_fork: uWSGI's forks run no hooks
        _random.seed()
        _seeded = pid
    made = Span(name, current() if parent is None else parent, attributes, pid)
    _open.add(made)
    return made


def trace(name: str, /, parent: SpanContext | Span | None = None, **attributes: Any) -> Scope:
    """
    Begin a trace for the length of a `with` block or, as a decorator, of each call.

    Inside of another, and with a `parent` (what `extract` gave), it is a part of that one: `use(None)` around it makes
    it the first of its own. An exception that leaves the block ends it with status `error`. Blocks for nothing.
    """
    return Scope(name, parent, attributes)


def span(name: str, /, **attributes: Any) -> Scope:
    """Begin a part of the trace that is current, of a new one if none is; as `trace` does."""
    return Scope(name, None, attributes)


def active_traces() -> list[ActiveTrace]:
    """Return this process's traces that have open spans, oldest first. A span that nobody holds is not open."""
    pid, found = os.getpid(), dict[str, list[Span]]()
    for one in sorted(_held(), key=lambda one: one._clock):  # noqa: SLF001 - ours
        if one._pid == pid:  # noqa: SLF001 - ours
            found.setdefault(one.trace_id, []).append(one)
    return [ActiveTrace(trace_id, spans[0].name, spans[0].age, tuple(spans)) for trace_id, spans in found.items()]


def _held() -> list[Span]:
    while True:
        try:
            return list(_open)
        except RuntimeError:
            pass  # another thread began or ended one meanwhile


# --- what is current ---------------------------------------------------------------------------------------------


class _Place:
    """Where a span became current: what was there before, to be put back."""

    __slots__ = ("before", "mine", "other", "outer", "passed", "target")

    def __init__(self, target: SpanContext | Span | None) -> None:
        self.target = target
        self.outer = _place.get()
        self.other = _opentelemetry()
        self.passed = False  # left while another was current
        self.before = context.get()
        self.mine = dict(self.before or ())
        if target is None:
            self.mine.pop("trace_id", None)
            self.mine.pop("span_id", None)
        else:
            self.mine["trace_id"], self.mine["span_id"] = target.trace_id, target.span_id
        _place.set(self)
        context.put(self.mine)

    def leave(self) -> None:
        """Put back what was there; what was bound meanwhile stays."""
        if _place.get() is not self:
            # A generator left in another order than its user's own blocks, or in another context: who is current stays.
            self.passed = True
            return
        outer, before = self.outer, self.before
        while outer is not None and outer.passed:
            before, outer = outer.before, outer.outer
        bound = context.get()
        if bound is not self.mine or before is not self.before:
            ids = {key: before[key] for key in _IDS if before and key in before}
            before = {**{key: value for key, value in (bound or {}).items() if key not in _IDS}, **ids}
        self.outer = None  # the next in a chain of tasks that each begin another must not keep all before it
        _place.set(outer)
        context.put(before or None)


_IDS = ("trace_id", "span_id")
_place: ContextVar[_Place | None] = context.place


def current() -> SpanContext | Span | None:
    """Return the span that one begun here would be a child of; None for none."""
    place, other = _place.get(), _opentelemetry()
    if other is not None and (place is None or place.other != other):
        return other  # begun inside ours
    if place is not None and place.target is not None:
        return place.target
    bound = context.get()
    if not bound:
        return None
    trace_id, span_id = bound.get("trace_id"), bound.get("span_id")
    if not (isinstance(trace_id, str) and TRACE_ID.fullmatch(trace_id)):
        return None
    return SpanContext(trace_id, span_id if isinstance(span_id, str) and SPAN_ID.fullmatch(span_id) else "")


def _opentelemetry() -> SpanContext | None:
    """Return OpenTelemetry's current span, if the program has imported it and one is valid."""
    module: Any = sys.modules.get("opentelemetry.trace")
    if module is None:
        return None
    try:
        found = module.get_current_span().get_span_context()
        if not found.is_valid:
            return None
        state = found.trace_state.to_header()
        return SpanContext(f"{found.trace_id:032x}", f"{found.span_id:016x}", int(found.trace_flags), state)
    except Exception:
        return None  # half imported, or another version: a parent less, never a span less


class use:  # noqa: N801 - read as a word: `with use(span):`
    """
    Make a span current for the length of a block, without ending it: `with use(s):`, `async with use(s):`.

    A SpanContext is another process's span; None makes nothing current, so that what begins inside is a trace of its
    own. One object is for one block at a time.
    """

    __slots__ = ("_entered", "_target")

    def __init__(self, span: SpanContext | Span | None) -> None:
        self._target = span

    def __enter__(self) -> SpanContext | Span | None:
        self._entered = _Place(self._target)
        return self._target

    def __exit__(self, *_exception: object) -> None:
        self._entered.leave()

    async def __aenter__(self) -> SpanContext | Span | None:
        return self.__enter__()

    async def __aexit__(self, *_exception: object) -> None:
        self._entered.leave()


class Scope:
    """What `trace` and `span` return: a context manager, plain or async, and a decorator. May be entered again."""

    __slots__ = ("_attributes", "_entered", "_name", "_parent")

    def __init__(self, name: str, parent: SpanContext | Span | None, attributes: dict[str, Any]) -> None:
        self._name, self._parent, self._attributes = name, parent, attributes
        self._entered: list[tuple[Span, _Place]] = []

    def __enter__(self) -> Span:
        begun = start_span(self._name, self._parent, **self._attributes)
        self._entered.append((begun, _Place(begun)))
        return begun

    def __exit__(
        self, _kind: type[BaseException] | None, error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        begun, place = self._entered.pop()
        try:
            begun.end(None if _orderly(error) else error)  # before it is left: its row has what is bound inside
        finally:
            place.leave()

    async def __aenter__(self) -> Span:
        return self.__enter__()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.__exit__(kind, error, trace)

    def __call__(self, function: Function) -> Function:
        """Return the function with a span around each call, around each whole run of a generator."""
        return context.around(lambda: Scope(self._name, self._parent, self._attributes), function)


def _orderly(error: BaseException | None) -> bool:
    """Whether this is how a block ends that has not failed: a closed generator, `sys.exit()`."""
    return isinstance(error, GeneratorExit) or (isinstance(error, SystemExit) and error.code in {None, 0})


# --- across processes --------------------------------------------------------------------------------------------


def extract(headers: Mapping[str, str]) -> SpanContext | None:
    """Return the caller's span from its `traceparent` and `tracestate` headers; None when missing or invalid."""
    return traceparent.read_headers(headers)


def inject(headers: MutableMapping[str, str], span: SpanContext | Span | None = None) -> None:
    """Set the headers that make a call's spans children of `span` (None: what is current here, and else set none)."""
    found = current() if span is None else span
    if found is not None and found.span_id:
        traceparent.write_headers(headers, found.context if isinstance(found, Span) else found)


# --- the row -----------------------------------------------------------------------------------------------------


@logtype(table="spans", indexes=["trace_id"])
class SpanRow:
    """One row for each span of a trace that ended."""

    trace_id: str = field(metadata={"doc": "W3C trace id, 32 hexadecimal digits."})
    span_id: str = field(metadata={"doc": "W3C span id, 16 hexadecimal digits."})
    parent_id: str | None = field(
        default=None, metadata={"doc": "Its parent's span id; NULL: the trace began with it."}
    )
    name: str = field(metadata={"doc": "What was done."})
    started: datetime = field(metadata={"doc": "When it began."})
    ended: datetime = field(metadata={"doc": "When it ended, by a clock that nobody sets back."})
    status: Literal["ok", "error"] = field(metadata={"doc": "error: an exception left it, or end() was given one."})


# Columns that an attribute of the same name must not go to, or be lost to; user_id and its like it may fill.
_TAKEN = frozenset(column.name for column in known["spans"].columns) - {
    "correlation_id", "user_id", "organization_id",
}  # fmt: skip


def _store(span: Span, ended: float, status: Literal["ok", "error"]) -> None:
    """Hand the row to the handlers. Its attributes are bound meanwhile: what has no column is stored with it."""
    bound = context.get()
    given = {f"{key}_" if key in _TAKEN else key: value for key, value in span.attributes.items()}
    context.put({**(bound or {}), **given})
    try:
        started = datetime.fromtimestamp(span.started, timezone.utc)
        row = SpanRow(
            trace_id=span.trace_id, span_id=span.span_id, parent_id=span.parent_id, name=span.name, started=started,
            ended=datetime.fromtimestamp(ended, timezone.utc), status=status,
        )  # fmt: skip
        deliver(row, logging.INFO if status == "ok" else logging.ERROR, created=span.started)
    except Exception:
        pass  # a clock beyond the year 9999: a row less, and the program goes on
    finally:
        context.put(bound)
