"""
What both kinds of middleware share: the options, and one request from its first line to its row.

R1  The row is written when the last byte has been handed to the server; of an answer of 500 and above when the
    application is done, because frameworks answer first and raise then. It is logged inside the request's context: with
    its trace, its correlation id, and what the application bound.
R2  An exception of the application is noted and goes on. One of ours is said once on stderr, and goes nowhere.
R3  What is not written is counted: `stats()`.
"""

from __future__ import annotations

import logging
import math
import re
import time
import uuid
from contextvars import ContextVar
from pathlib import Path
from typing import TYPE_CHECKING, Any

from logsluice import context, traceparent, tracing
from logsluice.buffer import Tally
from logsluice.capture import safe_str
from logsluice.checks import refuse_all
from logsluice.contrib import ApiRequest
from logsluice.diagnostics import Diagnostics
from logsluice.errors import ConfigError
from logsluice.middleware import frameworks
from logsluice.middleware.bodies import TYPES, Bodies, Body
from logsluice.middleware.forwarded import HEADERS, Proxies

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

LOGGER = "http.access"
DISCONNECTED = 499  # nginx's number for a client that left before it was answered
_ID = re.compile(r"[A-Za-z0-9._:/+=@~-]{1,128}", re.ASCII)  # of a request id: what cannot break a header or a line
_TEXT = 1000  # characters of an error, a path, a user agent: the traceback is in the server's own record
_RANDOM = 2**56  # the last 14 digits of a trace id are random (W3C Trace Context, level 2)

_diagnostics = Diagnostics("middleware")
_current: ContextVar[Exchange | None] = ContextVar("logsluice_request", default=None)


def note_error(error: BaseException | None) -> None:
    """Put an exception into the row of the request that is being served: for a handler that makes an answer of it."""
    exchange = _current.get()
    if exchange is not None and exchange.error is None:
        exchange.error = error


def say(what: str, error: Exception) -> None:
    """Tell of a failure of ours, once: its type and place, because its text may hold what was logged."""
    at = error.__traceback__
    while at is not None and at.tb_next is not None:
        at = at.tb_next
    place = "" if at is None else f" ({Path(at.tb_frame.f_code.co_filename).name}:{at.tb_lineno})"
    _diagnostics.say(what, f"{what} failed, the program goes on: {type(error).__name__}{place}", every=math.inf)


class Middleware:
    """
    The options of both kinds.

    `logger`: name of the logger that the rows go to. `skip`: paths that nothing is done for, exact (`/health`) or with
    a star at the end (`/static/*`). `sample`: share of the rows kept, 0 to 1, the same traces in all programs; errors
    and requests of `slow_ms` milliseconds and more are always kept. `trusted_proxies`: networks whose
    `forwarded_header` is believed (forwarded.py). `request_body`: keep bodies of `body_types` up to `body_bytes`,
    masked as the handler's option `redact` says. `spans`: store each request as a span, too. `websockets`: a row when
    one ends.

    Raises `ConfigError` for an option that is wrong.
    """

    def __init__(
        self,
        app: Any,
        *,
        logger: str = LOGGER,
        skip: Iterable[str] = (),
        sample: float = 1.0,
        slow_ms: float | None = None,
        trusted_proxies: Iterable[str] = (),
        forwarded_header: str = HEADERS[0],
        request_body: bool = False,
        body_bytes: int = 4096,
        body_types: Iterable[str] = TYPES,
        redact: Any = "keys",
        request_id_header: str = "X-Request-ID",
        spans: bool = True,
        websockets: bool = True,
        **unknown: Any,
    ) -> None:
        refuse_all(unknown, Middleware)
        self.app = app
        self._logger = logging.getLogger(logger)
        self._exact, self._prefixes = _paths(skip)
        self._sample = _number("sample", sample, 1)
        self._slow = math.inf if slow_ms is None else _number("slow_ms", slow_ms, math.inf)
        self.proxies = Proxies(trusted_proxies, forwarded_header.lower())
        self.bodies = Bodies(body_types, body_bytes, redact)
        self._keeps_bodies = request_body
        if not re.fullmatch(r"[A-Za-z0-9-]+", request_id_header):
            raise ConfigError(f"request_id_header must be the name of a header, got {request_id_header!r}")
        self.id_header = request_id_header
        self.forwarded_header = forwarded_header.lower()
        self.websockets = websockets
        self._spans = spans
        self._rows, self._sampled, self._failures = Tally(), Tally(), Tally()
        self._watching = False

    def stats(self) -> dict[str, int]:
        """Return how many rows were logged, left out by `sample`, and failed in here."""
        return {"rows": self._rows.value, "sampled": self._sampled.value, "failures": self._failures.value}

    def skips(self, path: str) -> bool:
        """Whether nothing is done for this path."""
        return path in self._exact or (self._prefixes != () and path.startswith(self._prefixes))

    def failed(self, what: str, error: Exception) -> None:
        """Count and tell of a failure of ours."""
        self._failures.add()
        say(what, error)

    def begin(self, exchange: Exchange, headers: Mapping[str, str], peer: str) -> None:
        """Read the headers (small letters) and begin the span. May raise."""
        if not self._watching:
            self._watching = True  # by the first request the framework is loaded
            frameworks.watch_errors(note_error)
        exchange.client = self.proxies.client(peer, headers.get(self.forwarded_header, ""))
        exchange.agent = headers.get("user-agent")
        exchange.content_type = headers.get("content-type", "")
        length = headers.get("content-length", "")
        exchange.length = int(length) if length.isascii() and length.isdigit() and len(length) < 19 else None
        keep = self._keeps_bodies and self.bodies.wants(exchange.content_type)
        exchange.body = Body(self.bodies.limit if keep else 0)
        given = headers.get(self.id_header.lower(), "")
        exchange.id = given if _ID.fullmatch(given) else uuid.uuid4().hex
        exchange.span = tracing.start_span(exchange.method, tracing.extract(headers))

    def write(self, exchange: Exchange, error: BaseException | None) -> None:
        """Write the row and end the span, unless that was done. May raise."""
        if exchange.written:
            return
        exchange.written = True
        error = error if error is not None else exchange.error
        text = exchange.broken if error is None or exchange.gone else _told(error)
        status = exchange.status if exchange.status is not None else DISCONNECTED if exchange.gone else 500
        milliseconds = ((exchange.ended or time.perf_counter()) - exchange.started) * 1000
        if not (text or status >= 500 or milliseconds >= self._slow) and not self._in_sample(exchange.span.trace_id):
            self._sampled.add()
            return
        failed = status >= 500 or (error is not None and not exchange.gone and isinstance(error, Exception))
        slow = milliseconds >= self._slow
        level = logging.ERROR if failed else logging.WARNING if text or slow else logging.INFO
        route = exchange.route()
        if self._logger.isEnabledFor(level):
            self._logger.log(level, self._row(exchange, route, status, milliseconds, text))
            self._rows.add()
        if self._spans:
            span = exchange.span
            span.name = f"{exchange.method} {route}" if route else exchange.method
            span.attributes.update({"http.request.method": exchange.method, "url.path": exchange.path[:_TEXT]})
            span.attributes["http.response.status_code"] = status
            span.end((error or text or f"status {status}") if failed else None)

    def late(self, exchange: Exchange, error: BaseException) -> None:
        """Log what failed behind the answer, whose row is written: a record, with the request's ids. May raise."""
        text = "%s %s: failed after its answer: %s"
        self._logger.error(text, exchange.method, exchange.path[:_TEXT], _told(error), exc_info=error)

    def _row(
        self, exchange: Exchange, route: str | None, status: int, milliseconds: float, text: str | None
    ) -> ApiRequest:
        body = exchange.body
        kept = None
        if body.limit and body.size:
            kept = self.bodies.text(exchange.content_type, body.kept, body.size)
        return ApiRequest(
            method=exchange.method,
            path=exchange.path[:_TEXT],
            route=route,
            status=status,
            duration_ms=round(milliseconds, 3),  # microseconds
            client_ip=exchange.client,
            request_bytes=body.size if exchange.length is None else exchange.length,
            response_bytes=exchange.sent,
            user_agent=exchange.agent[:_TEXT] if exchange.agent else None,
            request_body=kept,
            error=text,
        )

    def _in_sample(self, trace_id: str) -> bool:
        return self._sample >= 1 or int(trace_id[-14:], 16) < self._sample * _RANDOM


class Exchange:
    """One request and its answer. The subclasses are what the application is given in the place of the server's."""

    agent: str | None = None
    body: Body
    broken: str | None = None  # how it ended, when not by its last byte
    client: str | None = None
    content_type = ""
    ended: float | None = None  # when the last byte was handed over, seconds of perf_counter
    error: BaseException | None = None  # noted while it was served
    gone = False  # the client left
    id = ""
    length: int | None = None  # of the request's body, as its header says
    sent = 0  # bytes of the answer's body
    span: tracing.Span
    status: int | None = None
    written = False

    def __init__(self, log: Middleware, method: str, path: str) -> None:
        self.started = time.perf_counter()
        self.log = log
        self.method = method
        self.path = path

    def route(self) -> str | None:
        """Return the route's template, once the application has found it."""
        raise NotImplementedError

    def enter(self) -> None:
        """Make the request's ids current."""
        self._bound = context.bound(correlation_id=self.id)
        self._used = tracing.use(self.span)
        self._bound.__enter__()
        self._used.__enter__()
        self._token = _current.set(self)

    def leave(self) -> None:
        """Put back what was current before."""
        self._used.__exit__(None, None, None)
        self._bound.__exit__(None, None, None)
        _current.reset(self._token)

    def disconnected(self) -> None:
        """Note that the client left before the last byte."""
        self.gone = True
        self.broken = f"client disconnected after {self.sent} bytes"

    def write(self, error: BaseException | None) -> None:
        """Write the row. Never raises."""
        try:
            self.log.write(self, error)
        except Exception as failure:
            self.log.failed("the row of a request", failure)

    def headers_out(self) -> dict[str, str]:
        """Return the headers that are added to the answer."""
        return {self.log.id_header: self.id, traceparent.TRACEPARENT: traceparent.write(self.span.context)}


def _told(error: BaseException) -> str:
    text = safe_str(error)
    return (f"{type(error).__name__}: {text}" if text else type(error).__name__)[:_TEXT]


def _number(name: str, value: Any, most: float) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= most:  # `not <=`: NaN, too
        raise ConfigError(f"{name} must be a number from 0{'' if most == math.inf else f' to {most:g}'}, got {value!r}")
    return float(value)


def _paths(skip: Iterable[str]) -> tuple[frozenset[str], tuple[str, ...]]:
    paths = () if isinstance(skip, str) else tuple(skip)
    if isinstance(skip, str) or not all(isinstance(one, str) and one.startswith("/") for one in paths):
        raise ConfigError(f"skip is a list of paths, for example ['/health', '/static/*'], got {skip!r}")
    return (
        frozenset(one for one in paths if not one.endswith("*")),
        tuple(one[:-1] for one in paths if one.endswith("*")),
    )
