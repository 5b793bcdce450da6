"""
ASGI: `app = LogMiddleware(app, skip=["/health"])`, or `app.add_middleware(LogMiddleware, skip=["/health"])`.

The application runs in the task that called: what it binds is seen by the row. Lifespan passes through untouched.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from logsluice.middleware import frameworks
from logsluice.middleware.requests import Exchange, Middleware

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, MutableMapping

    Message = MutableMapping[str, Any]
    Scope = MutableMapping[str, Any]
    Receive = Callable[[], Awaitable[Message]]
    Send = Callable[[Message], Awaitable[None]]

_READ = frozenset({b"traceparent", b"tracestate", b"user-agent", b"content-length", b"content-type"})


class LogMiddleware(Middleware):
    """The middleware for ASGI 3 applications; its options are those of `Middleware`."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection."""
        kind = scope["type"]
        if kind not in {"http", "websocket"} or self.skips(scope["path"]) or (kind != "http" and not self.websockets):
            await self.app(scope, receive, send)
            return
        exchange = self._begun(scope, receive, send)
        if exchange is None:
            await self.app(scope, receive, send)
            return
        error: BaseException | None = None
        try:
            await self.app(scope, exchange.receive, exchange.send)
        except BaseException as caught:
            error = caught
            raise
        finally:
            self._over(exchange, error)

    def _begun(self, scope: Scope, receive: Receive, send: Send) -> _Connection | None:
        try:
            made = (_Http if scope["type"] == "http" else _WebSocket)(self, scope, receive, send)
            wanted = _READ | {self.id_header.lower().encode(), self.forwarded_header.encode()}
            headers: dict[str, str] = {}
            for name, value in scope["headers"]:
                if name in wanted:
                    key, text = name.decode(), value.decode("latin-1")
                    headers[key] = f"{headers[key]}, {text}" if key in headers else text
            client = scope.get("client")
            self.begin(made, headers, str(client[0]) if client else "")
            made.enter()
            return made
        except Exception as error:
            self.failed("the beginning of a request", error)
            return None

    def _over(self, exchange: _Connection, error: BaseException | None) -> None:
        exchange.over()
        if exchange.written and isinstance(error, Exception):
            exchange.late(error)
        exchange.write(error)
        try:
            exchange.leave()
        except Exception as failure:
            self.failed("the end of a request", failure)


class _Connection(Exchange):
    def __init__(self, log: Middleware, scope: Scope, receive: Receive, send: Send) -> None:
        super().__init__(log, str(scope.get("method", "WEBSOCKET")), str(scope["path"]))
        self._scope = scope
        self._root = str(scope.get("root_path", ""))  # a router changes it
        self._receive, self._send = receive, send

    def route(self) -> str | None:
        return frameworks.asgi_route(self._scope, self._root)

    async def receive(self) -> Message:
        """Be the server's `receive`."""
        message = await self._receive()
        try:
            self.received(message)
        except Exception as error:
            self.log.failed("reading a request", error)
        return message

    async def send(self, message: Message) -> None:
        """Be the server's `send`."""
        try:
            message, last = self.sending(message)
        except Exception as error:
            self.log.failed("an answer", error)
            last = False
        try:
            await self._send(message)
        except OSError:
            self.disconnected()  # as the specification has servers say it
            raise
        if last:
            self.ended = time.perf_counter()
            if (self.status or 0) < 500:
                self.write(None)

    def received(self, message: Message) -> None:
        raise NotImplementedError

    def sending(self, message: Message) -> tuple[Message, bool]:
        """Note what is sent; return it, with our headers, and whether it is the last."""
        raise NotImplementedError

    def over(self) -> None:
        """Note what is missing, now that the application is done."""

    def late(self, error: BaseException) -> None:
        """Tell of what failed when the row was already written: a background task."""
        try:
            self.log.late(self, error)
        except Exception as failure:
            self.log.failed("the error of a background task", failure)

    def _started(self, message: Message) -> Message:
        present = [(bytes(name), bytes(value)) for name, value in message.get("headers", ())]
        names = {name.lower() for name, _ in present}
        for name, value in self.headers_out().items():
            if name.lower().encode() not in names:  # the application's own word counts
                present.append((name.lower().encode(), value.encode()))
        return {**message, "headers": present}


class _Http(_Connection):
    _trailers = False  # come behind the body
    _last = False  # the last message is on its way

    def received(self, message: Message) -> None:
        if message["type"] == "http.request":
            self.body.add(message.get("body", b""))
        elif message["type"] == "http.disconnect" and not self._last:
            self.disconnected()

    def sending(self, message: Message) -> tuple[Message, bool]:
        kind = message["type"]
        if kind == "http.response.start":
            self.status = int(message["status"])
            self._trailers = bool(message.get("trailers"))
            message = self._started(message)
            headers = dict(message["headers"])
            self._length = headers.get(b"content-length", b"")
            return message, False
        if kind == "http.response.body":
            if self.method != "HEAD":
                self.sent += len(message.get("body", b""))
            self._last = not message.get("more_body", False) and not self._trailers
        elif kind == "http.response.trailers":
            self._last = not message.get("more_trailers", False)
        elif kind in {"http.response.pathsend", "http.response.zerocopysend"}:
            # The server sends a file by itself: only the header knows its size.
            if self._length.isdigit():
                self.sent = int(self._length)
            self._last = not message.get("more_body", False)
        return message, self._last

    def over(self) -> None:
        if self.ended is None and self.broken is None and not self._last:
            self.broken = "no answer" if self.status is None else f"answer broken off after {self.sent} bytes"


class _WebSocket(_Connection):
    _refused = False  # by an answer of its own

    def received(self, message: Message) -> None:
        if message["type"] == "websocket.receive":
            self.body.add(message.get("bytes") or (message.get("text") or "").encode())
        elif message["type"] == "websocket.disconnect" and self.status is None:
            self.disconnected()

    def sending(self, message: Message) -> tuple[Message, bool]:
        kind = message["type"]
        if kind == "websocket.accept":
            self.status = 101
            message = self._started(message)
        elif kind == "websocket.send":
            self.sent += len(message.get("bytes") or (message.get("text") or "").encode())
        elif kind == "websocket.close" and self.status is None:
            self.status = 403  # what servers answer then
        elif kind == "websocket.http.response.start":
            self.status = int(message["status"])
            message = self._started(message)
        return message, False  # its row comes when the application is done
