"""
An HTTP endpoint in threads of its own, which answers as a test says; and a handler that sends to it.

`Stub` keeps what it was sent and how it answered. An `Answer` may be late, hang, come before the request was read, be
cut off in the middle, or close a connection that was to be kept.
"""

from __future__ import annotations

import collections
import contextlib
import gzip
import itertools
import json
import logging
import socket
import ssl
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from logsluice.handlers import HttpHandler
from support.processes import until

LIMIT = 30  # seconds: a net below what takes milliseconds
_numbers = itertools.count()


@dataclass
class Answer:
    """What a request is answered with."""

    status: int = 200
    body: bytes | str | dict = b""
    headers: dict = field(default_factory=dict)
    hang: bool = False  # never, until the stub is closed
    drip: bool = False  # a byte of the headers now and then, for ever
    early: bool = False  # before the body was read, and then closed
    drop: bool = False  # closed without a word
    cut: bool = False  # in the middle of its body
    close: bool = False  # closed behind its back: the headers said nothing of it
    stores: bool | None = None  # whether the records count as received; None: as the status says

    @property
    def bytes(self):
        body = json.dumps(self.body) if isinstance(self.body, dict) else self.body
        return body.encode() if isinstance(body, str) else body


@dataclass
class Request:
    """What came."""

    path: str
    headers: dict  # names in lower case
    body: bytes  # unpacked
    size: int  # packed
    answer: Answer = field(default_factory=Answer)
    connection: int = 0

    @property
    def lines(self):
        """The objects of an NDJSON body."""
        return [json.loads(line) for line in self.body.splitlines()]


class Stub:
    """`script`: answers for the next requests, then `decide(request)`, then 200. A context manager."""

    def __init__(self, *answers, context=None, host="127.0.0.1"):
        self.script = collections.deque(answers)
        self.requests: list[Request] = []
        self.decide = lambda request: Answer()
        self.connections = 0
        self.stopping = threading.Event()
        self.arrived = threading.Condition()
        self._open: set[socket.socket] = set()
        stub = self

        class Server(ThreadingHTTPServer):
            daemon_threads = True

            def get_request(self):
                sock, address = super().get_request()
                stub.connections += 1
                stub._open.add(sock)
                return sock, address

            def finish_request(self, request, client_address):
                if context is None:
                    super().finish_request(request, client_address)
                    return
                try:
                    secure = context.wrap_socket(request, server_side=True)
                except (OSError, ssl.SSLError):
                    return
                with secure:  # the server closes the plain one, which is none any more
                    super().finish_request(secure, client_address)

            def handle_error(self, request, client_address):
                pass  # clients go when they like

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            number = 0

            def setup(self):
                super().setup()
                self.number = stub.connections

            def do_POST(self):
                stub._answer(self)

            def do_CONNECT(self):
                stub._tunnel(self)

            def log_message(self, *args):
                pass

        self.tunnels: list[tuple[str, dict]] = []
        self.refuses_tunnels = 0
        self.server = Server((host, 0), Handler)
        self.port = self.server.server_address[1]
        self.thread = threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        self.thread.start()

    def url(self, path="/in", scheme="http", host="127.0.0.1", userinfo=""):
        return f"{scheme}://{userinfo}{host}:{self.port}{path}"

    def _answer(self, handler):
        length = int(handler.headers.get("Content-Length") or 0)
        answer = self.script[0] if self.script else None
        if answer is not None and answer.early:
            self.script.popleft()
            handler.rfile.read(1)
            body = b""
        else:
            body = handler.rfile.read(length)
            if len(body) < length:
                handler.close_connection = True
                return  # who sent it died in the middle
            answer = None
        headers = {name.lower(): value for name, value in handler.headers.items()}
        packed = headers.get("content-encoding") == "gzip"
        request = Request(handler.path, headers, gzip.decompress(body) if packed and body else body, len(body))
        request.connection = handler.number
        with self.arrived:
            if answer is None:
                answer = self.script.popleft() if self.script else self.decide(request)
            request.answer = answer
            self.requests.append(request)
            self.arrived.notify_all()
        self._say(handler, answer)

    def _say(self, handler, answer):
        if answer.hang:
            self.stopping.wait()
        if answer.drop or answer.hang:
            handler.close_connection = True
            return
        if answer.drip:
            handler.close_connection = True
            for byte in itertools.chain(b"HTTP/1.1 200 OK\r\nX-Slow: ", itertools.repeat(0x61)):
                handler.wfile.write(bytes([byte]))
                if self.stopping.wait(0.05):
                    return
        data = answer.bytes
        handler.send_response(answer.status)
        for name, value in answer.headers.items():
            handler.send_header(name, value)
        handler.send_header("Content-Length", str(len(data) + 100 * answer.cut))
        handler.end_headers()
        handler.wfile.write(data)
        handler.wfile.flush()
        if answer.cut or answer.close or answer.early:
            handler.close_connection = True

    def _tunnel(self, handler):
        """Be a proxy: connect, and hand bytes on both ways."""
        self.tunnels.append((handler.path, {name.lower(): value for name, value in handler.headers.items()}))
        handler.close_connection = True
        if self.refuses_tunnels:
            handler.send_response(self.refuses_tunnels)
            handler.send_header("Content-Length", "0")
            handler.end_headers()
            return
        host, _, port = handler.path.rpartition(":")
        with socket.create_connection((host, int(port)), timeout=LIMIT) as other:
            handler.send_response(200)
            handler.end_headers()

            def back():
                try:
                    while data := other.recv(65536):
                        handler.connection.sendall(data)
                except OSError:
                    pass

            thread = threading.Thread(target=back, daemon=True)
            thread.start()
            try:
                while data := handler.rfile.read1(65536):
                    other.sendall(data)
            except OSError:
                pass

    def await_requests(self, count):
        with self.arrived:
            assert self.arrived.wait_for(lambda: len(self.requests) >= count, LIMIT), len(self.requests)
        return self.requests

    def stored(self, read=lambda request: [one["id"] for one in request.lines if "id" in one]):
        """The ids of the records in all requests that were taken, by a reader of one request."""
        found = []
        for request in list(self.requests):
            taken = 200 <= request.answer.status < 300 and request.answer.status != 260
            if taken if request.answer.stores is None else request.answer.stores:
                found += read(request)
        return found

    def hang_up(self):
        """Close the connections that are kept, and nothing else."""
        for sock in list(self._open):
            self._open.discard(sock)
            try:
                sock.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass

    def close(self):
        self.stopping.set()
        self.server.shutdown()
        self.hang_up()
        self.server.server_close()
        self.thread.join(LIMIT)

    def __enter__(self):
        return self

    def __exit__(self, *exc_info):
        self.close()


@contextlib.contextmanager
def nobody():
    """A url whose port is taken, and nobody listens there, nor can anybody begin to meanwhile."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{taken.getsockname()[1]}/in"


class Sender:
    """A handler that sends to a stub, on a logger of its own; `law()` after whatever happened."""

    def __init__(self, stub=None, *, url=None, name=None, **options):
        quick = {"linger": 0.005, "backoff_initial": 0.005, "backoff_max": 0.05, "io_timeout": 10, "slow_batch": 60}
        self.handler = HttpHandler(url=url or stub.url(), **{**quick, **options})
        if name:
            self.handler.set_name(name)
        self.logger = logging.getLogger(f"http.{next(_numbers)}")
        self.logger.propagate = False
        self.logger.setLevel(1)
        self.logger.addHandler(self.handler)
        self.ids: list[int] = []

    def log(self, count, level=logging.INFO, **extra):
        for _ in range(count):
            number = len(self.ids)
            self.ids.append(number)
            self.logger.log(level, "order %d", number, extra={"id": number, **extra})

    def flush(self):
        return self.handler.flush(LIMIT)

    @property
    def stats(self):
        return self.handler.stats()

    @property
    def failed(self):
        return self.stats.recent["failed"]

    def await_failure(self, count=1, **having):
        """Wait for so many failures with these values."""
        assert until(lambda: len([f for f in self.failed if having.items() <= f.items()]) >= count, LIMIT), self.failed
        return [f for f in self.failed if having.items() <= f.items()]

    def law(self):
        stats = self.stats
        assert stats.offered == stats.accepted + stats.dropped == len(self.ids)
        assert stats.accepted == stats.stored + stats.dead + stats.abandoned + stats.waiting
        assert min(stats.stored, stats.dead, stats.abandoned, stats.waiting) >= 0
        return stats

    def close(self):
        """As a program does; and wait for what `close` may have left to the listener when its time was over."""
        self.logger.removeHandler(self.handler)
        self.handler.close()
        assert all(listener.done.wait(LIMIT) for _, listener in self.handler._pairs)

    def __enter__(self):
        return self

    def __exit__(self, *exc_info):
        self.close()
