"""
A TCP proxy between a client and PostgreSQL that breaks the connection at a chosen place.

It reads the client's side of the protocol, so that a fault stands at a message, not at a lucky chunk. Each fault is
counted before the client can see it: a test asserts the counter, else it may have passed because nothing happened.

    with Proxy(dsn) as proxy:
        proxy.cut_after(query(b"COMMIT"))     # stored, and the client does not know
        ... work through proxy.dsn ...
        assert proxy.cuts == 1
"""

from __future__ import annotations

import socket
import struct
import threading

from psycopg.conninfo import conninfo_to_dict, make_conninfo

from logsluice.devserver import free_port

CHUNK = 65_536  # bytes: what one recv takes
CLOSE_SECONDS = 5  # for the threads to end; they do at once, their sockets being shut down
SSL_REQUEST, GSS_REQUEST = 80877103, 80877104  # the first message may ask for encryption; another first one follows
READY = b"Z\0\0\0\x05"  # and one byte: the server has answered and waits for the next command


def query(text):
    """Matches a query message (simple, or the Parse of an extended one) that is `text`, such as b"COMMIT"."""

    def match(message):
        if message[:1] == b"Q":
            return message[5:].strip(b"\0; \n") == text
        return message[:1] == b"P" and message[5:].split(b"\0", 2)[1] == text

    return match


def kind(letter):
    """Matches a message by its type: b"d" is COPY data, b"c" the end of a COPY, b"X" a polite goodbye."""
    return lambda message: message[:1] == letter


class Messages:
    """The client's bytes, cut into messages."""

    def __init__(self):
        self._held = bytearray()
        self._started = False

    def feed(self, data):
        """Yield (where in `data` the message begins, the message); a negative place: in an earlier chunk."""
        place = -len(self._held)
        self._held += data
        while (message := self._next()) is not None:
            yield place, message
            place += len(message)

    def _next(self):
        start = 1 if self._started else 0  # the first message has no type
        if len(self._held) < start + 8 - 4 * self._started:
            return None
        (length,) = struct.unpack_from("!i", self._held, start)
        if len(self._held) < start + length:
            return None
        message = bytes(self._held[: start + length])
        del self._held[: start + length]
        if not self._started:
            self._started = struct.unpack_from("!i", message, 4)[0] not in (SSL_REQUEST, GSS_REQUEST)
        return message


class Connection:
    """One client and its way to the server: a thread for each direction."""

    def __init__(self, proxy, client, server):
        self.proxy, self.client, self.server = proxy, client, server
        self.messages = Messages()
        self.deaf = False  # the server's bytes are thrown away
        self.cut_when_answered = False
        self._tail = b""
        self._lock = threading.Lock()
        for side in (client, server):
            if side.family != socket.AF_UNIX:  # else small messages wait 40 ms for an acknowledgement
                side.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._threads = [threading.Thread(target=run, daemon=True) for run in (self._up, self._down)]
        for thread in self._threads:
            thread.start()

    def _up(self):
        try:
            while data := self.client.recv(CHUNK):
                allowed, cut = self.proxy.judge(self, data)
                self.server.sendall(data[:allowed])
                if cut:
                    self.cut()
                    return  # what the client had sent already could still be read, and would be counted
        except OSError:
            pass  # one side is gone: so is the other
        finally:
            self.hang_up()

    def _down(self):
        try:
            while data := self.server.recv(CHUNK):
                if not (self.deaf or self.proxy.swallowing):
                    self.client.sendall(data)
                    continue
                self.proxy.count("swallowed", len(data))
                self._tail = (self._tail + data)[-len(READY) - 1 :]
                if self.cut_when_answered and self._tail.startswith(READY):
                    self.cut()
        except OSError:
            pass
        finally:
            self.hang_up()

    def cut(self):
        self.proxy.count("cuts")
        self.hang_up()

    def hang_up(self):
        # close() alone leaves a thread that waits in recv() where it is, and the connection open.
        for side in (self.client, self.server):
            try:
                side.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass

    def close(self):
        self.hang_up()
        for thread in self._threads:
            thread.join(CLOSE_SECONDS)
        self.client.close()
        self.server.close()


class Proxy:
    """
    The proxy. Its faults, each for the next match unless `times` says more:

    `cut_after(match)`    forward the message, wait for the server's answer, throw that away, cut: done, unknown
    `cut_before(match)`   cut instead of forwarding: not done
    `cut_at(count)`       forward exactly so many more client bytes, then cut
    `swallow_after(match)`, `swallow()`   keep the connection open, let nothing of the server through any more
    `refuse()`            connection refused; open ones stay
    `cut()`               cut what is open
    `heal()`              forget all faults that have not happened yet, accept again

    Counters: `connections`, `cuts`, `swallowed` (bytes), `client_bytes` (forwarded).
    """

    def __init__(self, dsn):
        parameters = conninfo_to_dict(dsn)
        self._host = str(parameters.get("hostaddr") or parameters.get("host") or "127.0.0.1")
        self._server_port = int(parameters.get("port") or 5432)
        self.port = free_port()
        # Encryption would hide the messages.
        self.dsn = make_conninfo(
            dsn, host="127.0.0.1", hostaddr=None, port=self.port, sslmode="disable", gssencmode="disable"
        )
        self.connections = self.cuts = self.swallowed = self.client_bytes = 0
        self.swallowing = False
        self._faults = []  # [match, action, times]
        self._cut_at = None
        self._open = []
        self._lock = threading.Lock()
        self._listener = self._acceptor = None

    def __enter__(self):
        self.heal()
        return self

    def __exit__(self, *exc_info):
        self.close()

    def cut_after(self, match, times=1):
        self._faults.append([match, "after", times])

    def cut_before(self, match, times=1):
        self._faults.append([match, "before", times])

    def swallow_after(self, match, times=1):
        self._faults.append([match, "swallow", times])

    def cut_at(self, count):
        with self._lock:
            self._cut_at = self.client_bytes + count

    def swallow(self):
        self.swallowing = True

    def cut(self):
        with self._lock:
            connections = [connection for connection in self._open if connection.client.fileno() >= 0]
        for connection in connections:
            connection.cut()

    def refuse(self):
        listener, self._listener = self._listener, None
        if listener is not None:
            listener.shutdown(socket.SHUT_RDWR)  # wakes the thread in accept(), which close() would not
            self._acceptor.join(CLOSE_SECONDS)
            listener.close()

    def heal(self):
        self._faults.clear()
        self._cut_at = None
        self.swallowing = False
        if self._listener is None:
            self._listener = socket.create_server(("127.0.0.1", self.port))
            self._acceptor = threading.Thread(target=self._accept, args=(self._listener,), daemon=True)
            self._acceptor.start()

    def close(self):
        self.refuse()
        while self._open:
            self._open.pop().close()

    def count(self, name, by=1):
        with self._lock:
            setattr(self, name, getattr(self, name) + by)

    def judge(self, connection, data):
        """How many bytes of the chunk to forward, and whether to cut then."""
        with self._lock:
            allowed, cut = self._judge(connection, data)
            if self._cut_at is not None and self.client_bytes + allowed >= self._cut_at:
                allowed, cut, self._cut_at = self._cut_at - self.client_bytes, True, None
            self.client_bytes += allowed
            return allowed, cut

    def _judge(self, connection, data):
        for place, message in connection.messages.feed(data):
            for fault in self._faults:
                match, action, times = fault
                if not times or not match(message):
                    continue
                fault[2] -= 1
                if action == "before":
                    return max(place, 0), True
                # Said before the message is forwarded: the answer cannot be quicker.
                connection.deaf = True
                connection.cut_when_answered = action == "after"
        return len(data), False

    def _accept(self, listener):
        while True:
            try:
                client, _ = listener.accept()
            except OSError:
                return
            self.count("connections")
            try:
                server = self._connect()
            except OSError:
                client.close()
                continue
            with self._lock:
                self._open.append(Connection(self, client, server))

    def _connect(self):
        if self._host.startswith("/"):
            server = socket.socket(socket.AF_UNIX)
            try:
                server.connect(f"{self._host}/.s.PGSQL.{self._server_port}")
            except OSError:
                server.close()
                raise
            return server
        return socket.create_connection((self._host, self._server_port))
