"""
WSGI (PEP 3333): `app.wsgi_app = LogMiddleware(app.wsgi_app)` with Flask, `application = LogMiddleware(application)`.

Each request has a context of its own (`contextvars.copy_context`): the application, each step of its answer and
`close` run in it, so that what is bound does not stay with the server's thread.
"""

from __future__ import annotations

import time
from contextvars import copy_context
from typing import TYPE_CHECKING, Any

from logsluice.middleware import frameworks
from logsluice.middleware.requests import Exchange, Middleware

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    Environ = dict[str, Any]
    StartResponse = Callable[..., Callable[[bytes], Any]]

_READ = {"traceparent": "HTTP_TRACEPARENT", "tracestate": "HTTP_TRACESTATE", "user-agent": "HTTP_USER_AGENT",
         "content-length": "CONTENT_LENGTH", "content-type": "CONTENT_TYPE"}  # fmt: skip


class LogMiddleware(Middleware):
    """The middleware for WSGI applications; its options are those of `Middleware`."""

    def __call__(self, environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        """Serve one request."""
        exchange = self._begun(environ, start_response)
        if exchange is None:
            return self.app(environ, start_response)  # type: ignore[no-any-return]
        try:
            answer = exchange.run(self.app, environ, exchange.start_response)
        except BaseException as error:
            exchange.over(error)
            raise
        return exchange.answered(answer)

    def _begun(self, environ: Environ, start_response: StartResponse) -> _Request | None:
        try:
            path = (
                (environ.get("SCRIPT_NAME", "") + environ.get("PATH_INFO", ""))
                .encode("latin-1")
                .decode(errors="replace")
            )
            if self.skips(path):
                return None
            made = _Request(self, environ, start_response, path)
            headers = {name: environ[key] for name, key in _READ.items() if key in environ}
            for name in (self.id_header.lower(), self.forwarded_header):
                if (value := environ.get("HTTP_" + name.upper().replace("-", "_"))) is not None:
                    headers[name] = value
            self.begin(made, headers, environ.get("REMOTE_ADDR", ""))
            made.watch_input()
            made.run(made.enter)
            return made
        except Exception as error:
            self.failed("the beginning of a request", error)
            return None


class _Request(Exchange):
    _route: str | None = None
    _length: int | None = None  # of the answer, as its header says
    _file: Any = None  # what the server's file_wrapper made, when it is no class

    def __init__(self, log: Middleware, environ: Environ, start_response: StartResponse, path: str) -> None:
        super().__init__(log, environ.get("REQUEST_METHOD", ""), path)
        self._environ = environ
        self._start = start_response
        self.run = copy_context().run
        wrapper = environ.get("wsgi.file_wrapper")
        if wrapper is not None and not isinstance(wrapper, type):  # uWSGI's is a function
            environ["wsgi.file_wrapper"] = self._wrapping(wrapper)

    def _wrapping(self, wrapper: Any) -> Any:
        def file_wrapper(*args: Any, **kwargs: Any) -> Any:
            self._file = wrapper(*args, **kwargs)
            return self._file

        return file_wrapper

    def watch_input(self) -> None:
        """Look at the body as the application reads it, if it is to be kept or nothing else says its size."""
        if self.body.limit or "HTTP_TRANSFER_ENCODING" in self._environ:
            self._environ["wsgi.input"] = _Input(self._environ["wsgi.input"], self.body.add)

    def route(self) -> str | None:
        return self._route or frameworks.wsgi_route(self._environ, self._environ.get("PATH_INFO", ""))

    def start_response(self, status: str, headers: list[tuple[str, str]], *exc_info: Any) -> Callable[[bytes], Any]:
        """Be the server's `start_response`."""
        try:
            if exc_info and exc_info[0]:
                self.error = exc_info[0][1]
            self.status = int(status[:3])
            names = {name.lower(): value for name, value in headers}
            length = names.get("content-length", "")
            self._length = int(length) if length.isascii() and length.isdigit() else None
            self._route = frameworks.werkzeug_route(self._environ)  # now: Flask takes it away when it returns
            more = [(name, value) for name, value in self.headers_out().items() if name.lower() not in names]
            headers = [*headers, *more]
        except Exception as error:
            self.log.failed("an answer", error)
        write = self._start(status, headers, *exc_info)

        def counted(data: bytes) -> Any:
            self.sent += len(data)
            return write(data)

        return counted

    def answered(self, answer: Iterable[bytes]) -> Iterable[bytes]:
        """Return what the server sends in the place of the application's answer."""
        try:
            wrapper = self._environ.get("wsgi.file_wrapper")
            if (isinstance(wrapper, type) and isinstance(answer, wrapper)) or (
                self._file is not None and answer is self._file
            ):
                return self._by_the_server(answer)
            return (_Sized if hasattr(answer, "__len__") else _Answer)(self, answer)
        except Exception as error:
            self.log.failed("an answer", error)
            return answer

    def _by_the_server(self, answer: Any) -> Iterable[bytes]:
        """A file that the server may send by sendfile: it must get the very object."""
        self.sent = self._length or 0
        close = getattr(answer, "close", None)

        def closing() -> None:
            try:
                if close is not None:
                    self.run(close)
            finally:
                self.ended = time.perf_counter()
                self.over(None)

        try:
            answer.close = closing
        except AttributeError:  # an object of C: the row says when it was handed over
            self.ended = time.perf_counter()
            self.over(None)
        return answer  # type: ignore[no-any-return]

    def over(self, error: BaseException | None) -> None:
        """Write the row; the request's context ends with the request."""
        # Some servers do not ask for more than they need.
        whole = self.method == "HEAD" or (self._length is not None and self.sent >= self._length)
        if error is None and self.error is None and self.ended is None and not whole:
            self.disconnected()
        self.run(self.write, error)


class _Answer:
    """The application's iterable, watched."""

    def __init__(self, request: _Request, answer: Iterable[bytes]) -> None:
        self._request = request
        self._answer = answer
        self._steps: Iterator[bytes] | None = None
        self._error: BaseException | None = None

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        request = self._request
        try:
            if self._steps is None:
                self._steps = request.run(iter, self._answer)
            piece = request.run(next, self._steps)
        except StopIteration:
            request.ended = time.perf_counter()
            raise
        except BaseException as error:
            self._error = error
            raise
        if request.method != "HEAD":
            request.sent += len(piece)
        return piece

    def close(self) -> None:
        """Close the application's iterable, and write the row."""
        error = self._error
        try:
            close = getattr(self._answer, "close", None)
            if close is not None:
                self._request.run(close)
        except BaseException as caught:
            error = error or caught
            raise
        finally:
            self._request.over(error)


class _Sized(_Answer):
    """One that knows how many pieces it has: of a single one a server makes the Content-Length."""

    def __len__(self) -> int:
        return len(self._answer)  # type: ignore[arg-type]


class _Input:
    """The request's body, watched as it is read."""

    def __init__(self, stream: Any, note: Callable[[bytes], None]) -> None:
        self._stream = stream
        self._note = note

    def _noted(self, data: bytes) -> bytes:
        self._note(data)
        return data

    def read(self, *size: int) -> bytes:
        return self._noted(self._stream.read(*size))

    def readline(self, *size: int) -> bytes:
        return self._noted(self._stream.readline(*size))

    def readlines(self, *hint: int) -> list[bytes]:
        return [self._noted(line) for line in self._stream.readlines(*hint)]

    def __iter__(self) -> Iterator[bytes]:
        return (self._noted(line) for line in self._stream)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)
