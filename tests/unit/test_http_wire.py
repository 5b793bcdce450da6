"""Waits for a socket: how long they last, and what is said when they fail."""

from __future__ import annotations

import http.client
import select
import socket
import ssl
import threading
import time

import pytest
from urllib3.exceptions import ProtocolError, ReadTimeoutError

from logsluice.config import settings_from
from logsluice.diagnostics import Diagnostics
from logsluice.httpconfig import HttpSettings
from logsluice.httpformats import format_of
from logsluice.sinks import SinkError, wire
from logsluice.sinks.http import HttpLink, said
from logsluice.sinks.wire import Patience, dial, send_all
from support.processes import until

LIMIT = 30  # seconds: a net below what takes milliseconds


def patience(limit=LIMIT, deadline=None):
    made = Patience(limit, lambda: deadline)
    made.begin()
    return made


@pytest.fixture
def server():
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(LIMIT)  # of accept: where nobody comes a test fails, and does not stand still
        yield server


def addresses(monkeypatch, *found):
    entries = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", one) for one in found]
    monkeypatch.setattr(wire.socket, "getaddrinfo", lambda *args, **options: entries)


def closed_port():
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return probe.getsockname()


def test_no_wait_is_past_the_limit_or_the_deadline():
    assert 0 < patience(5).left() <= 5
    assert 0 < patience(5, time.monotonic() + 1).left() <= 1
    assert patience(5).tick() <= wire.POLL
    for over in (patience(0), patience(5, time.monotonic() - 1)):
        for look in (over.left, over.tick):
            with pytest.raises(TimeoutError):
                look()


def test_the_next_address_is_tried(server, monkeypatch):
    addresses(monkeypatch, closed_port(), server.getsockname())
    with dial("host", 1, patience()) as sock:
        assert sock.getpeername() == server.getsockname()


def test_nobody_listens(monkeypatch):
    addresses(monkeypatch, closed_port(), closed_port())
    with pytest.raises(ConnectionRefusedError):
        dial("host", 1, patience())
    addresses(monkeypatch)
    with pytest.raises(OSError, match="no address"):
        dial("host", 1, patience())


def test_a_reader_that_does_not_read_ends_at_the_limit(server):
    with dial(*server.getsockname(), patience()) as sock, pytest.raises(TimeoutError):
        send_all(sock, bytes(64 * 1024 * 1024), patience(0.3))


def test_all_is_sent_to_a_slow_reader(server):
    data = bytes(range(256)) * 4096
    got = bytearray()

    def read():
        other, _ = server.accept()
        with other:
            while piece := other.recv(1000):
                got.extend(piece)

    thread = threading.Thread(target=read, daemon=True)
    thread.start()
    with dial(*server.getsockname(), patience()) as sock:
        send_all(sock, data, patience())
    thread.join(LIMIT)
    assert bytes(got) == data


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (http.client.RemoteDisconnected("canary"), "closed the connection"),
        (http.client.BadStatusLine("canary"), "no HTTP"),
        (http.client.IncompleteRead(b"canary"), "cut off"),
        (ConnectionResetError(104, "Connection reset by peer"), "Connection reset by peer"),
        (ssl.SSLError(1, "canary"), "TLS failed"),
        (ValueError("canary"), "ValueError"),
        (ReadTimeoutError(None, "canary", "canary"), "ReadTimeoutError"),
    ],
)
def test_what_is_said_holds_nothing_that_the_server_said(error, text):
    wrapped = ProtocolError("canary", error)
    wrapped.__cause__ = error
    for one in (error, wrapped):
        assert text in said(one)
        assert "canary" not in said(one)


@pytest.mark.parametrize("scheme", ["https", "proxy"])
def test_a_handshake_that_ends_in_the_middle_leaves_no_socket_open(server, scheme):
    """Over at once, whatever the garbage collector does later."""
    url = f"https://127.0.0.1:{server.getsockname()[1]}/"
    options = {"url": url} if scheme == "https" else {"url": "https://host/", "proxy": url.replace("https", "http")}
    settings = settings_from({**options, "io_timeout": 0.2}, HttpSettings)
    link = HttpLink(settings, format_of("ndjson"), Diagnostics("test"), lambda: None)

    def came():
        with pytest.raises(SinkError):
            link.open()  # nobody answers
        return select.select([server], [], [], 0)[0]

    assert until(came, LIMIT)  # on a busy machine the 0.2 s may be over before it has connected
    other, _ = server.accept()
    with other:
        other.settimeout(LIMIT)
        while other.recv(65536):
            pass  # until it is closed
    assert not link.connected
