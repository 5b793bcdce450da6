"""Waiting for a socket with limits that hold: no wait is longer than asked, nor goes on when the program ends."""

from __future__ import annotations

import errno
import io
import os
import selectors
import socket
import time
from dataclasses import dataclass
from http.client import HTTPResponse
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

    from typing_extensions import Buffer

POLL = 0.1  # seconds between looks at the clock while waiting; also how late a limit may be
PIECE = 64 * 1024  # bytes handed to the socket at once, so that a slow reader is noticed


@dataclass
class Patience:
    """
    How long what is under way may take: `limit` seconds in all, and not past the handler's deadline.

    http.client and urllib3 limit each single wait: a server that sends a byte now and then would hold us for ever.
    """

    limit: float
    deadline: Callable[[], float | None]
    _end: float = 0.0

    def begin(self) -> None:
        """Start the clock of a connection or a request."""
        self._end = time.monotonic() + self.limit

    def left(self) -> float:
        """Return the seconds that are left. Raises TimeoutError if there are none."""
        stop = self.deadline()
        left = (self._end if stop is None else min(self._end, stop)) - time.monotonic()
        if left <= 0:
            raise TimeoutError(errno.ETIMEDOUT, f"no answer within {self.limit:g} s")
        return left

    def tick(self) -> float:
        """Return the seconds until the clock is to be looked at again. Raises as `left`."""
        return min(self.left(), POLL)


def dial(host: str, port: int, patience: Patience) -> socket.socket:
    """Connect to one of a host's addresses; each has its share of the time, or one that is silent would have all."""
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    last: OSError = OSError(errno.EADDRNOTAVAIL, "the name has no address")
    for number, (family, kind, protocol, _, address) in enumerate(found):
        end = time.monotonic() + patience.left() / (len(found) - number)
        sock = socket.socket(family, kind, protocol)
        try:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            _connect(sock, address, end, patience)
            sock.settimeout(patience.left())  # for a TLS handshake
            return sock
        except BaseException as error:
            sock.close()
            if not isinstance(error, OSError):
                raise
            last = error
    raise last


def _connect(sock: socket.socket, address: Any, end: float, patience: Patience) -> None:
    sock.setblocking(False)
    code = sock.connect_ex(address)
    if code in {errno.EINPROGRESS, errno.EWOULDBLOCK}:
        with selectors.DefaultSelector() as selector:
            selector.register(sock, selectors.EVENT_WRITE)
            while not selector.select(patience.tick()):
                if time.monotonic() >= end:
                    raise TimeoutError(errno.ETIMEDOUT, "no answer to a new connection")
        code = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
    if code:
        raise OSError(code, os.strerror(code))


def send_all(sock: socket.socket, data: Any, patience: Patience) -> None:
    """Send all bytes."""
    view = memoryview(data)
    while view:
        sock.settimeout(patience.tick())
        try:
            view = view[sock.send(view[:PIECE]) :]
        except TimeoutError:
            continue  # `tick` raises when it was the last


class _Raw(io.RawIOBase):
    """A socket's bytes, as `socket.SocketIO` gives them, but each wait within the patience."""

    def __init__(self, sock: socket.socket, raw: Any, patience: Patience) -> None:
        self._sock, self._raw, self._patience = sock, raw, patience

    def readable(self) -> bool:
        """It is."""
        return True

    def readinto(self, buffer: Buffer) -> int:
        """Return how many bytes came; 0 at the end."""
        while True:
            self._sock.settimeout(self._patience.tick())
            try:
                return self._sock.recv_into(buffer)
            except TimeoutError:
                continue  # as above

    def close(self) -> None:
        """Let go of the socket."""
        if not self.closed:
            self._raw.close()
        super().close()


def patient_response(patience: Patience) -> type[HTTPResponse]:
    """Return http.client's response, reading with patience."""

    class Response(HTTPResponse):
        def __init__(self, sock: socket.socket, *args: Any, **options: Any) -> None:
            super().__init__(sock, *args, **options)
            raw = self.fp.detach()
            self.fp = io.BufferedReader(_Raw(sock, raw, patience))

    return Response
