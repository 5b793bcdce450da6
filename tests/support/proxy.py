"""
A TCP proxy between a client and PostgreSQL that breaks the connection at a chosen place.

It reads the protocol on both sides, so that a fault stands at a message, not at a lucky chunk: it can hold, drop or cut
at one. Each fault is counted before the client can see it: a test asserts the counter, else it may have passed because
nothing happened.

    with Proxy(dsn) as proxy:
        proxy.cut_after(ending(b"COMMIT"))    # stored, and the client does not know
        ... work through proxy.dsn ...
        assert proxy.cuts == 1

        held = proxy.hold_at(reply(b"COMMIT"))     # stored, and the client does not know yet
        ... work ...
        assert held.wait(10)
        held.release()
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


class FromServer:
    """A match on the server's messages; a plain function is one on the client's."""

    def __init__(self, match):
        self.match = match

    def __call__(self, message):
        return self.match(message)


def query(text):
    """Matches a query message (simple, or the Parse of an extended one) that is `text`, such as b"COMMIT"."""

    def match(message):
        if message[:1] == b"Q":
            return message[5:].strip(b"\0; \n") == text
        return message[:1] == b"P" and message[5:].split(b"\0", 2)[1] == text

    return match


def ending(text):
    """Matches a query message whose last statement is `text`: the simple protocol takes several at once."""
    return lambda message: message[:1] == b"Q" and message[5:].strip(b"\0; \n").rpartition(b";")[2].strip() == text


def kind(letter):
    """Matches a client's message by its type: b"d" is COPY data, b"c" the end of a COPY, b"X" a polite goodbye."""
    return lambda message: message[:1] == letter


COPY_DONE = kind(b"c")


def startup(message):
    """Matches the first message of a client that comes anew: it names its database."""
    return message[:1] == b"\0" and message[4:6] == b"\0\3"  # no type; protocol 3


def copy_data(number):
    """Matches the CopyData of this number in its COPY, from 1. psycopg cuts what is copied into 128 KiB each."""
    return lambda message: message[:1] == b"d" and message.number == number


def reply(tag):
    """Matches the server's CommandComplete with this tag, such as b"COMMIT"; b"COPY" and b"UPDATE" count rows behind it."""
    return FromServer(lambda message: message[:1] == b"C" and message[5:-1].split(b" ")[0] == tag)


def error(sqlstate=None):
    """Matches the server's ErrorResponse, of this code (bytes) if one is given."""
    return FromServer(
        lambda message: message[:1] == b"E" and (sqlstate is None or b"\0C" + sqlstate + b"\0" in message[4:])
    )


READY = FromServer(lambda message: message[:1] == b"Z")  # the server has answered and waits for the next command


class Message(bytes):
    """One message with its type and length."""

    number = 0  # of a CopyData in its COPY, from 1


class Messages:
    """The bytes of one side, cut into messages."""

    def __init__(self, *, started=False):
        self._held = bytearray()
        self._started = started  # the client's first message has no type; the server's all have one
        self.plain_bytes = 0  # answers to SSL_REQUEST: one byte each, no message
        self.opaque = False  # encrypted from here on
        self._copied = 0

    def feed(self, data):
        """Yield the messages that are complete with these bytes."""
        self._held += data
        while (message := self._next()) is not None:
            yield message

    def asks_for_encryption(self, message):
        """Whether it is the client's question before the first message."""
        return len(message) == 8 and struct.unpack_from("!i", message, 4)[0] in {SSL_REQUEST, GSS_REQUEST}

    def _next(self):
        if self.opaque:
            return self._take(len(self._held)) if self._held else None
        if self.plain_bytes and self._held:
            self.plain_bytes -= 1
            return self._take(1)
        start = 1 if self._started else 0
        if len(self._held) < start + 4:
            return None
        (length,) = struct.unpack_from("!i", self._held, start)
        if len(self._held) < start + length:
            return None
        message = self._take(start + length)
        if not self._started:
            self._started = not self.asks_for_encryption(message)
        self._copied = self._copied + 1 if message[:1] == b"d" else 0
        message.number = self._copied
        return message

    def _take(self, length):
        message = Message(self._held[:length])
        del self._held[:length]
        return message


class CutError(Exception):
    """The connection is cut here."""


class Held:
    """A message that the proxy keeps, with all that comes behind it on its connection and side, until `release()`."""

    def __init__(self):
        self._came = threading.Event()
        self._released = threading.Event()

    def wait(self, seconds):
        """Whether the message has come, within these seconds."""
        return self._came.wait(seconds)

    def release(self):
        """Let it through; before it has come: keep nothing."""
        self._released.set()

    def keep(self):
        """Of the proxy: blocks until the release."""
        self._came.set()
        self._released.wait()


class Connection:
    """One client and its way to the server: a thread for each direction."""

    def __init__(self, proxy, client, server):
        self.proxy, self.client, self.server = proxy, client, server
        self.deaf = False  # the server's messages are thrown away
        self.cut_when_answered = False
        self._answered = True  # the server has sent something since the client did
        self._from_client, self._from_server = Messages(), Messages(started=True)
        for side in (client, server):
            if side.family != socket.AF_UNIX:  # else small messages wait 40 ms for an acknowledgement
                side.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._threads = [threading.Thread(target=run, daemon=True) for run in (self._up, self._down)]
        for thread in self._threads:
            thread.start()

    def _up(self):
        self._pump(self.client, self.server, self._from_client, self._judge_client)

    def _down(self):
        self._pump(self.server, self.client, self._from_server, self._judge_server)

    def _pump(self, source, target, messages, judge):
        """Messages that are let through go out together; before a hold or a cut, those in front of it."""
        out = bytearray()

        def flush():
            if out:
                target.sendall(out)
                out.clear()

        try:
            while data := source.recv(CHUNK):
                for message in messages.feed(data):
                    out += judge(message, flush)
                flush()
        except CutError:
            self.cut()  # what its sender had sent already could still be read, and would be counted
        except OSError:
            pass  # one side is gone: so is the other
        finally:
            self.hang_up()

    def _judge_client(self, message, flush):
        if self._answered and message[:1] != b"X":  # nobody answers a goodbye
            self._answered = False
            self.proxy.count("turns")
        if self._from_client.asks_for_encryption(message):
            self._from_server.plain_bytes += 1
        fault = self.proxy.met(message, server=False)
        if fault in {"after", "swallow"}:
            # Said before the message is forwarded: the answer cannot be quicker.
            self.deaf = True
            self.cut_when_answered = fault == "after"
        through = self._treated(message, fault, flush)
        allowed = self.proxy.allow(len(through))
        if allowed is not None:
            flush()
            self.server.sendall(through[:allowed])
            raise CutError
        return through

    def _judge_server(self, message, flush):
        self._answered = True
        if message == b"S" and not self._from_server.opaque:
            self._from_client.opaque = self._from_server.opaque = True
        if self.deaf or self.proxy.swallowing:
            self.proxy.count("swallowed", len(message))
            if self.cut_when_answered and READY(message):
                raise CutError
            return b""
        fault = self.proxy.met(message, server=True)
        through = self._treated(message, fault, flush)
        if fault == "swallow":
            self.deaf = True
        if fault == "after":
            flush()
            self.client.sendall(through)
            raise CutError
        return through

    def _treated(self, message, fault, flush):
        if fault == "before":
            flush()
            raise CutError
        if fault == "drop":
            self.proxy.count("dropped")
            return b""
        if isinstance(fault, Held):
            flush()
            self.proxy.count("held")
            fault.keep()
        return message

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
    The proxy. Its faults, each for the next match unless `times` says more; the first that matches takes the message:

    `cut_after(match)`    the client's message: forward it, wait for the server's answer, throw that away, cut: done,
                          unknown. The server's: forward it, cut
    `cut_before(match)`   cut instead of forwarding: not done
    `cut_at(count)`       forward exactly so many more client bytes, then cut
    `drop(match)`         leave out this message alone
    `hold_at(match)`      keep it, and all behind it, until `release()` of the `Held` that this returns. A client that
                          goes away meanwhile is not noticed: on release the server gets the message all the same
    `swallow_after(match)`, `swallow()`   keep the connection open, let nothing of the server through any more
    `refuse()`            connection refused; open ones stay
    `cut()`               cut what is open
    `heal()`              forget all faults that have not happened yet, release what is held, accept again

    Matches: `query`, `ending`, `kind`, `copy_data`, `COPY_DONE`, `startup` and plain functions of a message are the client's; `reply`,
    `error` and `READY` the server's. Messages go on when they are whole.

    Counters: `connections`, `cuts`, `dropped`, `held` (messages), `swallowed` (bytes), `client_bytes` (forwarded),
    `turns` (round trips: how often the client spoke first, or again after an answer).
    """

    def __init__(self, dsn, *, address="127.0.0.1", port=None):
        parameters = conninfo_to_dict(dsn)
        self._host = str(parameters.get("hostaddr") or parameters.get("host") or "127.0.0.1")
        self._server_port = int(parameters.get("port") or 5432)
        self.address, self.port = address, port or free_port()
        # Encryption would hide the messages.
        self.dsn = make_conninfo(
            dsn, host=address, hostaddr=None, port=self.port, sslmode="disable", gssencmode="disable"
        )
        self.connections = self.cuts = self.dropped = self.held = self.swallowed = self.client_bytes = self.turns = 0
        self.swallowing = False
        self._faults = []  # [match, action, times]
        self._holds = []
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

    def drop(self, match, times=1):
        self._faults.append([match, "drop", times])

    def hold_at(self, match):
        held = Held()
        self._holds.append(held)
        self._faults.append([match, held, 1])
        return held

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
        self._release()
        self._cut_at = None
        self.swallowing = False
        if self._listener is None:
            self._listener = socket.create_server((self.address, self.port))
            self._acceptor = threading.Thread(target=self._accept, args=(self._listener,), daemon=True)
            self._acceptor.start()

    def close(self):
        self.refuse()
        self._release()
        while self._open:
            self._open.pop().close()

    def count(self, name, by=1):
        with self._lock:
            setattr(self, name, getattr(self, name) + by)

    def met(self, message, *, server):
        """The action of the first fault that this message meets; None if it meets none."""
        with self._lock:
            for fault in self._faults:
                match, action, times = fault
                if times and isinstance(match, FromServer) == server and match(message):
                    fault[2] -= 1
                    return action
        return None

    def allow(self, size):
        """Count client bytes; None: forward them all, else so many and then cut."""
        with self._lock:
            cut_at = self._cut_at
            if cut_at is None or self.client_bytes + size < cut_at:
                self.client_bytes += size
                return None
            allowed, self._cut_at = cut_at - self.client_bytes, None
            self.client_bytes = cut_at
            return allowed

    def _release(self):
        while self._holds:
            self._holds.pop().release()

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
