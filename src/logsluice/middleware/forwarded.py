"""
Whose address the client has, when proxies stand between: `X-Forwarded-For`, or `Forwarded` (RFC 7239). Pure.

Anybody can send these headers. Each proxy appends the address it was asked by, so they are read from the right, and
only as long as the one who wrote is a proxy that was named as trusted. One of the two headers is read, never both: a
proxy that writes one of them hands on whatever the client wrote into the other.
"""

from __future__ import annotations

import ipaddress
import re
from typing import TYPE_CHECKING, Any

from logsluice.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterable

HEADERS = ("x-forwarded-for", "forwarded")
UNIX = "unix"  # a proxy that asks by a unix socket, which has no address
_ENTRIES = 64  # read from the right: more proxies in a row there are not, and a stranger's list may be long
# One pair of RFC 7239: a token, and a token or a quoted string.
_PAIR = re.compile(r"""\s*([!#$%&'*+.^_`|~0-9A-Za-z-]+)=("(?:[^"\\]|\\.)*"|[^",;\s]*)\s*""")

Address = ipaddress.IPv4Address | ipaddress.IPv6Address


class Proxies:
    """The proxies that are believed. Raises `ConfigError` for what is no network."""

    def __init__(self, trusted: Iterable[str], header: str) -> None:
        trusted = trusted if isinstance(trusted, str) else tuple(trusted)  # an iterator is read once
        if isinstance(trusted, str) or not all(isinstance(one, str) for one in trusted):
            raise ConfigError(f"trusted_proxies is a list of networks, for example ['10.0.0.0/8'], got {trusted!r}")
        if header not in HEADERS:
            raise ConfigError(f"forwarded_header must be one of {', '.join(HEADERS)}, got {header!r}")
        self._forwarded = header == "forwarded"
        self._unix = UNIX in trusted
        self._networks = []
        for one in trusted:
            try:
                if one != UNIX:
                    self._networks.append(ipaddress.ip_network(one))
            except ValueError as error:
                raise ConfigError(f"trusted_proxies: {error}; write '10.0.0.0/8', one address, or 'unix'") from None
        self.any = bool(self._networks) or self._unix

    def client(self, peer: str, header: str) -> str | None:
        """Return the client's address: the peer's own, or what trusted proxies say. None: a socket without one."""
        if not self.any or not header:
            return peer or None
        found = _address(peer)
        if not self._trusted(found, peer):
            return peer or None
        for entry in self._entries(header):
            said = _address(entry)
            if said is None:
                break  # "unknown", a made-up name, or nonsense: what is left of it is no better
            found = said
            if not self._trusted(found, ""):
                break
        return str(found) if found is not None else peer or None

    def _trusted(self, address: Address | None, peer: str) -> bool:
        if address is None:  # "" or a path, as servers call a unix socket
            return self._unix and (not peer or peer == UNIX or peer.startswith("/"))
        return any(address in network for network in self._networks)

    def _entries(self, header: str) -> list[str]:
        """Return the nodes, the nearest first."""
        found = _forwarded(header) if self._forwarded else header.rsplit(",", _ENTRIES)
        return [one.strip() for one in reversed(found[-_ENTRIES:])]


def _forwarded(header: str) -> list[str]:
    """Return the `for` of each element; "" where there is none. From a broken one on everything is dropped."""
    found, node, at = [], "", 0
    while at < len(header):
        pair = _PAIR.match(header, at)
        if pair is None:
            return []  # it cannot be said where an element ends: the peer is all that is known
        if pair[1].lower() == "for":
            node = re.sub(r"\\(.)", r"\1", pair[2][1:-1]) if pair[2].startswith('"') else pair[2]
        at = pair.end()
        end = header[at : at + 1]
        if end not in {"", ",", ";"}:
            return []
        if end != ";":
            found.append(node)
            node = ""
        at += 1
    return found


def _address(node: Any) -> Address | None:
    """Return an address, without its port; IPv4 inside IPv6 as IPv4. None for what is none."""
    text = node if isinstance(node, str) else ""
    if text.startswith("["):
        text = text[1:].partition("]")[0]
    elif text.count(":") == 1:
        text = text.partition(":")[0]
    try:
        found = ipaddress.ip_address(text)
    except ValueError:
        return None
    mapped = found.ipv4_mapped if isinstance(found, ipaddress.IPv6Address) else None
    return found if mapped is None else mapped
