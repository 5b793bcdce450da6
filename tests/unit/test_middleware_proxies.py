"""Whose address the client has: only what a trusted proxy wrote is believed."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from logsluice.middleware.forwarded import Proxies

TRUSTED = ["10.0.0.0/8", "2001:db8::/32", "unix"]


@pytest.mark.parametrize(
    ("peer", "header", "client"),
    [
        ("203.0.113.9", "198.51.100.1", "203.0.113.9"),  # a stranger says it
        ("10.0.0.1", "", "10.0.0.1"),
        ("10.0.0.1", "198.51.100.1", "198.51.100.1"),
        ("10.0.0.1", "6.6.6.6, 198.51.100.1", "198.51.100.1"),  # what the client wrote itself stands left
        ("10.0.0.1", "6.6.6.6, 198.51.100.1, 10.0.0.2", "198.51.100.1"),
        ("10.0.0.1", "10.0.0.3, 10.0.0.2", "10.0.0.3"),  # a client inside
        ("10.0.0.1", "nonsense, 10.0.0.2", "10.0.0.2"),
        ("10.0.0.1", "unknown", "10.0.0.1"),
        ("10.0.0.1", "198.51.100.1:4711", "198.51.100.1"),
        ("10.0.0.1", "[2001:db9::1]:4711", "2001:db9::1"),
        ("10.0.0.1", "::ffff:198.51.100.1", "198.51.100.1"),
        ("::ffff:10.0.0.1", "198.51.100.1", "198.51.100.1"),
        ("2001:db8::1", "2001:db9::1", "2001:db9::1"),
        ("", "198.51.100.1", "198.51.100.1"),  # a unix socket
        ("/run/app.sock", "198.51.100.1", "198.51.100.1"),
        ("", "", None),
        ("10.0.0.1", ", ,", "10.0.0.1"),
    ],
)
def test_x_forwarded_for(peer, header, client):
    assert Proxies(TRUSTED, "x-forwarded-for").client(peer, header) == client


@pytest.mark.parametrize(
    ("header", "client"),
    [
        ("for=198.51.100.1", "198.51.100.1"),
        ('For="[2001:db9::1]:4711"; proto=https', "2001:db9::1"),
        ("for=6.6.6.6, for=198.51.100.1;by=10.0.0.2, proto=http; for=10.0.0.2", "198.51.100.1"),
        ('by="a,b;c";for=198.51.100.1', "198.51.100.1"),
        ("for=_hidden", "10.0.0.1"),
        ("for=unknown, for=10.0.0.2", "10.0.0.2"),
        ("by=10.0.0.2", "10.0.0.1"),
        ('for="198.51.100.1', "10.0.0.1"),  # a quote that does not end
        ("for=198.51.100.1 x", "10.0.0.1"),
    ],
)
def test_forwarded(header, client):
    assert Proxies(TRUSTED, "forwarded").client("10.0.0.1", header) == client


def test_without_trusted_proxies_nothing_is_believed():
    assert Proxies((), "x-forwarded-for").client("10.0.0.1", "198.51.100.1") == "10.0.0.1"


@given(st.text(max_size=300), st.sampled_from(["x-forwarded-for", "forwarded"]))
def test_no_header_raises_and_none_is_repeated_into_the_row(text, header):
    client = Proxies(TRUSTED, header).client("10.0.0.1", text)
    assert client
    assert all(one in "0123456789abcdef.:%" or client == "10.0.0.1" for one in client.partition("%")[0])
