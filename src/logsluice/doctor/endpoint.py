"""
The endpoint of an `HttpHandler`, for `logsluice doctor`: token, name, TLS, an answer to a request without records.

No record is sent. OpenTelemetry's, Loki's and Elasticsearch's requests may be empty, and their answers are known. Of
`ndjson`, `json` and a callable's nobody knows what an endpoint makes of an empty one: those are asked by HEAD, which by
HTTP's own rules changes nothing, and says whether the token and the path are right, if it says anything.
"""

from __future__ import annotations

import random
import socket
import stat
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from logsluice.delivery import Verdict
from logsluice.diagnostics import Diagnostics
from logsluice.doctor import FAIL, OK, WARN, Finding
from logsluice.doctor.connect import LIMIT
from logsluice.doctor.file import refused
from logsluice.errors import ConfigError
from logsluice.sinks import SinkError
from logsluice.sinks.replies import Reply, failure_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from logsluice.handlers import HttpHandler
    from logsluice.httpconfig import HttpSettings
    from logsluice.sinks.http import HttpLink

# format: the body of a request that holds no record, and what besides 2xx says that it arrived: Elasticsearch wants a
# body, and a later Loki a stream; both look at the token before.
EMPTY = {
    "otlp": (b'{"resourceLogs":[]}', frozenset[int]()),
    "loki": (b'{"streams":[]}', frozenset({400, 422})),
    "elasticsearch": (b"", frozenset({400})),
}
# What an error says: what to do about it.
_STEPS = (
    ("certificate is refused", "let ca_file= name the authority that signed it, and url= the host that is in it"),
    ("NO_CERTIFICATE", "let ca_file= name a PEM file with the certificate of your authority"),
    ("TLS failed", "correct the port in url= (does TLS answer there?), or say http://"),
    ("Connection refused", "start the endpoint, or correct host and port in url="),
    ("proxy", "correct proxy=, with name and password where it asks for them"),
    ("no answer", "correct host and port in url=, or let the firewall between pass them"),
    ("no HTTP", "correct the port in url=, or say https:// if TLS is spoken there"),
)
_BY_STATUS = {
    401: "correct token=, token_env= or token_file=, or how it is sent: token_header=, token_scheme=",
    403: "let whoever gave the token allow it to write here, or use another",
    404: "correct the path of url=",
    405: "correct the path of url=: records are sent by POST",
    407: "put name and password into proxy=: http://user:password@host:port",
}


class _Heard(Diagnostics):
    """What the connection has to say of itself, kept for findings."""

    def __init__(self) -> None:
        super().__init__("doctor")
        self.lines: list[str] = []

    def _write(self, text: str) -> None:
        self.lines.append(self.scrub(text))


def check_endpoint(handler: HttpHandler) -> Iterator[Finding]:
    """Check what this handler's requests meet; yields findings as they come. Blocks for at most some `LIMIT`s."""
    from logsluice.sinks.http import HttpLink  # noqa: PLC0415 - an extra, loaded when the handler was made

    settings = handler._settings  # noqa: SLF001 - what the handler was told, checked
    heard = _Heard()
    limited = replace(settings, io_timeout=min(settings.io_timeout, LIMIT), max_requests_per_second=None)
    link = HttpLink(limited, handler._format, heard, lambda: None)  # noqa: SLF001 - as above
    try:
        for check in (_token, _name, _connection):
            found = list(check(link))
            yield from found
            if any(one.status == FAIL for one in found):
                return
        for line in heard.lines:
            what, _, step = line.rpartition("; " if "; " in line else ": ")
            yield Finding(WARN, "connect", what, step)
        yield _request(link)
    finally:
        link.close()
        yield from _dead_letters(settings)


def _token(link: HttpLink) -> Iterator[Finding]:
    settings = link.settings
    sources = {
        "the options": isinstance(settings.token, str),
        "a callable": callable(settings.token),
        f"the variable {settings.token_env}": settings.token_env is not None,
        f"{settings.token_file}": settings.token_file is not None,
        "url": link.address.basic is not None,
    }
    source = ", ".join(name for name, is_so in sources.items() if is_so)
    try:
        link.credentials.headers()
    except SinkError as error:
        step = f"let it be read from {source} by this user, one line of printable ASCII, or name another place"
        yield Finding(FAIL, "token", error.failure.message, step)
        return
    yield Finding(OK, "token", f"a token comes from {source} (never shown)" if source else "no token is sent")
    if settings.token_file is not None and Path(settings.token_file).stat().st_mode & stat.S_IROTH:
        what = f"every user of this machine may read {settings.token_file}"
        yield Finding(WARN, "token", what, f"chmod o-rwx {settings.token_file}")


def _name(link: HttpLink) -> Iterator[Finding]:
    try:
        first = link._proxy() or link.address  # noqa: SLF001 - who is asked for the connection
    except ConfigError as error:
        yield Finding(FAIL, "connect", str(error), "correct the proxy's variable in the environment, or proxy=")
        return
    try:
        socket.getaddrinfo(first.host, first.port, type=socket.SOCK_STREAM)
    except OSError:
        what = f"host {first.host} is not known here"
        yield Finding(FAIL, "connect", what, f"correct the host in url=; `getent hosts {first.host}` asks this machine")


def _connection(link: HttpLink) -> Iterator[Finding]:
    try:
        link.open()
    except SinkError as error:
        yield _failed(error, "connect")
        return
    tls = "with TLS" if link.address.scheme == "https" else "without TLS"
    trusted = ", its certificate is trusted" if link.address.scheme == "https" and link.settings.verify else ""
    yield Finding(OK, "connect", f"{link.address.shown} can be reached, {tls}{trusted}")


def _failed(error: SinkError, about: str) -> Finding:
    text = error.failure.message
    step = next((step for words, step in _STEPS if words in text), "look into the endpoint's log of this minute")
    return Finding(FAIL, about, text, step)


def _request(link: HttpLink) -> Finding:
    kind = link.settings.format if isinstance(link.settings.format, str) else "callable"
    # A name of its own: who remembers names must not answer what it answered the last time.
    key = f"doctor:{random.getrandbits(63)}"
    try:
        if kind in EMPTY:
            body, fine = EMPTY[kind]
            return _of_empty(link, link.ask("POST", body, key), kind, fine)
        return _of_head(link, link.ask("HEAD", None, key))
    except SinkError as error:
        return _failed(error, "request")


def _of_empty(link: HttpLink, reply: Reply, kind: str, fine: frozenset[int]) -> Finding:
    shown = link.address.shown
    # A single record: 413 of an empty request is a wrong address, too.
    failure = failure_of(reply, shown, 1, now=0, most_wait=0, loki=kind == "loki")
    if failure is None:
        wrong = link.format.read(reply.body, 0).wrong
        if wrong:
            return Finding(FAIL, "request", f"{shown}: {wrong}", "correct the path of url=, or format=")
    elif reply.status not in fine:
        step = (
            _BY_STATUS.get(reply.status) or failure.hint or "correct url= or format=, or look into the endpoint's log"
        )
        if failure.verdict is Verdict.RETRY:
            return Finding(WARN, "request", failure.message, "look into its log; meanwhile records wait")
        return Finding(FAIL, "request", failure.message, step)
    what = f"{shown} answers a {kind} request without records as it should ({reply.status})"
    return Finding(OK, "request", f"{what}; no record was sent, so whether it takes yours is not checked")


def _of_head(link: HttpLink, reply: Reply) -> Finding:
    shown, status = link.address.shown, reply.status
    failure = failure_of(reply, shown, 1, now=0, most_wait=0, loki=False)
    if failure is not None and (status in {401, 403, 407} or 300 <= status < 400):
        return Finding(FAIL, "request", failure.message, _BY_STATUS.get(status) or failure.hint)
    if failure is not None and status in {404, 410}:
        what = f"{failure.message} to HEAD: its path is wrong, or it knows POST alone"
        return Finding(WARN, "request", what, "compare the path of url= with the endpoint's own documentation")
    if failure is not None and failure.verdict is Verdict.RETRY and status != 501:  # Not Implemented: HEAD
        return Finding(WARN, "request", failure.message, "look into its log; meanwhile records wait")
    what = f"{shown} answers HEAD with {status}; no record was sent"
    return Finding(OK, "request", f"{what}, so whether it takes yours, and asks for a token, is not checked")


def _dead_letters(settings: HttpSettings) -> Iterator[Finding]:
    path = settings.dead_letters
    if path is not None:
        problem = refused(Path(path))
        yield problem or Finding(OK, "dead", f"records that it refuses are kept in {path}")
    elif settings.fallback is not None:
        yield Finding(OK, "dead", f"records that it refuses go to {settings.fallback!r} (fallback=)")
    else:
        yield Finding(OK, "dead", "records that it refuses are counted and lost: dead_letters= or fallback= keeps them")
