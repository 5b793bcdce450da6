"""
Records over HTTP: one batch, one POST, over one connection that is kept. The only module that knows urllib3.

At least once: an endpoint keeps no watermark, so what was sent and not answered is sent again. Each request says with
`Idempotency-Key` which records it holds, each record its `stream` and `seq`, Elasticsearch's its `_id`; a receiver that
looks at them stores each once.

No redirect is followed and no proxy is asked unless told: a token goes where `url=` says, and nowhere else.
"""

from __future__ import annotations

import gzip
import http.client
import logging
import ssl
import time
import urllib.request
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.exceptions import HTTPError

from logsluice.delivery import Failure, Verdict
from logsluice.httpconfig import ENVIRONMENT, PORTS, SHORT_SECRET, Address, address_of
from logsluice.lifecycle import OWN_THREADS
from logsluice.primitives import Done, get_ident
from logsluice.sinks import SinkError
from logsluice.sinks.replies import Reply, failure_of
from logsluice.sinks.tokens import Credentials
from logsluice.sinks.wire import POLL, Patience, dial, patient_response, send_all

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable

    from logsluice.diagnostics import Diagnostics
    from logsluice.httpconfig import HttpSettings
    from logsluice.httpformats import Format

LEAST_GZIP = 1024  # bytes: a smaller body is one packet anyway
GZIP_LEVEL = 5  # of zlib: JSON to about a tenth, for half of the time that the default 6 takes
MOST_REPLY = 32 * 1024 * 1024  # bytes: 100,000 items of a _bulk, each with an error
AGENT = f"logsluice/{version('logsluice')}"

# It would write a url of ours, with what is in its query, to whatever handlers the program has.
logging.getLogger("urllib3.connection").addFilter(lambda _record: get_ident() not in OWN_THREADS)


class _Patient(HTTPConnection):
    """urllib3's connection, whose every wait is within a patience."""

    patience: Patience
    fresh = False  # nothing was answered over it yet

    def _new_conn(self) -> socket.socket:
        self.fresh = True
        return dial(self._dns_host, self.port, self.patience)

    def send(self, data: Any) -> None:
        if self.sock is None:
            self.connect()
        send_all(self.sock, data, self.patience)


class _PatientTls(_Patient, HTTPSConnection):
    """The same with TLS."""


@dataclass
class HttpLink:
    """The one connection of a handler, opened when it is needed. Listener thread only."""

    settings: HttpSettings
    format: Format
    diagnostics: Diagnostics
    deadline: Callable[[], float | None]
    now: Callable[[], float] = time.time
    most: int | None = None  # bytes of a body that the endpoint takes, once it has called another too large (413)
    address: Address = field(init=False)
    credentials: Credentials = field(init=False)
    patience: Patience = field(init=False)
    _conn: _Patient | None = None
    _absolute: bool = False  # a proxy wants to be told the whole url
    _proxy_header: dict[str, str] = field(default_factory=dict, repr=False)
    _last: float = float("-inf")  # monotonic: of the last request

    def __post_init__(self) -> None:
        self.address = address_of(self.settings.url)
        self.credentials = Credentials(self.settings, self.address)
        self.patience = Patience(self.settings.io_timeout, self.deadline)
        self._know_secrets()

    @property
    def connected(self) -> bool:
        """Whether there is a connection."""
        return self._conn is not None

    def open(self) -> None:
        """Connect, unless there is a connection that the server has not closed meanwhile. Raises SinkError."""
        if self._conn is not None and self._conn.is_connected:
            return
        self.close()
        self.patience.begin()
        try:
            self.credentials.headers()  # without a token there is no use in connecting
            self._know_secrets()
            self._conn = self._made()
            self._conn.connect()
        except SinkError:
            raise
        except Exception as error:
            self.close()  # a handshake that failed leaves its socket open
            raise SinkError(self._not_connected(error)) from None
        self._warn()

    def _made(self) -> _Patient:
        """Return a connection, not yet connected: to the endpoint, or to a proxy that leads there."""
        where, tls = self.address, self.address.scheme == "https"
        proxy = self._proxy()
        first = where if proxy is None else proxy
        kind = _PatientTls if tls else _Patient
        options: dict[str, Any] = {"ssl_context": self._context()} if tls else {}
        conn = kind(first.host, first.port, timeout=self.settings.io_timeout, **options)
        conn.patience, conn.response_class = self.patience, patient_response(self.patience)
        self._absolute, self._proxy_header = False, {}
        if proxy is not None:
            named = {} if proxy.basic is None else {"Proxy-Authorization": f"Basic {proxy.basic}"}
            if tls:
                conn.set_tunnel(where.host, where.port, headers=named)
            else:
                self._absolute, self._proxy_header = True, named
        return conn

    def _proxy(self) -> Address | None:
        given = self.settings.proxy
        if given == ENVIRONMENT:
            if urllib.request.proxy_bypass_environment(self.address.host):  # type: ignore[attr-defined]  # NO_PROXY
                return None
            given = urllib.request.getproxies_environment().get(self.address.scheme)
            if given is not None and "://" not in given:
                given = f"http://{given}"
        return None if given is None else address_of(given, "proxy")

    def _context(self) -> ssl.SSLContext:
        # Made for each connection: authorities are renewed while programs run.
        context = ssl.create_default_context(cafile=self.settings.ca_file)
        if not self.settings.verify:
            context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        return context

    def _warn(self) -> None:
        where = self.address
        if where.scheme == "https" and not self.settings.verify:
            self.diagnostics.say(
                "unverified",
                f"verify=False: whoever answers in the place of {where.host} is believed, and reads what is sent; "
                "ca_file= names your own authority",
                every=float("inf"),
            )
        named = self.credentials.secret is not None or where.basic is not None
        if where.scheme == "http" and named and where.host not in {"localhost", "127.0.0.1", "::1"}:
            self.diagnostics.say(
                "plain", f"the token goes to {where.host} unencrypted: https:// would hide it", every=float("inf")
            )

    def _not_connected(self, error: Exception) -> Failure:
        verdict, hint, text = Verdict.RETRY, "", said(error)
        if isinstance(error, ssl.SSLCertVerificationError):
            text = f"its certificate is refused: {error.verify_message}"
            verdict, hint = Verdict.BLOCKED, "see the certificate; ca_file= names your own authority"
        elif isinstance(error, OSError) and str(error).startswith("Tunnel connection failed: "):  # http.client's text
            status = str(error).split(": ", 1)[1][:3]
            text, hint = f"the proxy answered {status}", "see proxy="
            verdict = Verdict.BLOCKED if status.startswith("4") else Verdict.RETRY
        elif isinstance(error, (ValueError, FileNotFoundError)) and not isinstance(error, ssl.SSLError):
            verdict, hint = Verdict.BLOCKED, "see ca_file= and proxy="  # a file that is gone, a proxy that is no url
        message = f"cannot connect to {self.address.shown}: {self.diagnostics.scrub(text)}"
        return Failure(message, verdict=verdict, connecting=True, hint=hint)

    def close(self) -> None:
        """Close the connection, if there is one. Never raises."""
        conn, self._conn = self._conn, None
        if conn is not None:
            try:
                conn.close()
            except Exception:
                pass  # of a connection that is broken anyway

    # --- a request ----------------------------------------------------------------------------------------------

    def post(self, body: bytes, key: str, records: int) -> bytes:
        """
        Send a body of so many records; return what a 2xx was answered with. Raises SinkError for everything else.

        Blocks for at most `io_timeout`, before that for the pause that `max_requests_per_second` asks for.
        """
        self._pause()
        reply, size = self.ask("POST", body, key), len(body)
        loki = self.settings.format == "loki"
        failure = failure_of(
            reply, self.address.shown, records, now=self.now(), most_wait=self.settings.retry_after_max, loki=loki
        )
        if failure is None:
            self.credentials.taken()
            return reply.body
        if reply.status == 413 and records > 1:
            self.most = max(1, min(size, self.most or size) // 2)
            self.diagnostics.say(
                "smaller", f"{self.address.shown} takes no body of {size} bytes; max_request_bytes sets less"
            )
        if reply.status == 401 and self.credentials.renew():
            failure = Failure(failure.message, verdict=Verdict.RETRY, status=401, wait=0.0)
        raise SinkError(failure)

    def ask(self, method: str, body: bytes | None, key: str) -> Reply:
        """Send one request; return the answer, whatever it says. Raises SinkError without one. Blocks as `post`."""
        self.open()
        conn = self._conn
        assert conn is not None
        self.patience.begin()
        reused = not conn.fresh
        try:
            headers = self._headers(key)
            if body is not None and self.settings.gzip and len(body) >= LEAST_GZIP:
                body, headers["Content-Encoding"] = gzip.compress(body, GZIP_LEVEL, mtime=0), "gzip"
            reply = self._exchange(conn, method, body, headers, reused=reused)
        except SinkError:
            raise
        except Exception as error:
            self.close()
            raise SinkError(self._broken(error, reused=reused)) from None
        conn.fresh = False
        return reply

    def _headers(self, key: str) -> dict[str, str]:
        settings = self.settings
        found = {"User-Agent": AGENT, "Accept": "application/json", **(settings.headers or {}), **self._proxy_header}
        if settings.tenant is not None:
            found["X-Scope-OrgID"] = settings.tenant
        found |= self.credentials.headers()
        self._know_secrets()  # it may be another one
        return found | {
            "Content-Type": settings.content_type or self.format.content_type,
            "Idempotency-Key": key,
        }

    def _exchange(
        self, conn: _Patient, method: str, body: bytes | None, headers: dict[str, str], *, reused: bool
    ) -> Reply:
        where = self.address
        target = f"{where.scheme}://{_authority(where)}{where.target}" if self._absolute else where.target
        broken: OSError | None = None
        try:
            conn.request(method, target, body=body, headers=headers, preload_content=False, decode_content=False)
        except (BrokenPipeError, ConnectionResetError) as error:
            broken = error  # it may have answered before it had read all: too large, no right
        try:
            answer = conn.getresponse()
        except Exception:
            if broken is None or reused:  # one that was idle: it had closed that before
                raise
            self.close()
            text = f"{where.shown}: it closed the connection before it had read the request"
            raise SinkError(Failure(text, verdict=Verdict.SHRINK)) from None  # how some say that it is too large
        found = answer.read(MOST_REPLY)
        kept = {name.lower(): value for name, value in answer.headers.items()}
        if broken is not None or answer.read(1) or kept.get("connection", "").lower() == "close":
            self.close()  # half of the request is still on its way, or the rest of a reply that has no end
        return Reply(answer.status, kept, found)

    def _broken(self, error: Exception, *, reused: bool) -> Failure:
        text = f"{self.address.shown}: {self.diagnostics.scrub(said(error))}"
        if isinstance(_root(error), TimeoutError):
            return Failure(text, timed_out=True)
        # A server closes what was idle for long, perhaps as we send: that is no outage.
        return Failure(text, verdict=Verdict.RETRY, wait=0.0 if reused else None)

    def _pause(self) -> None:
        """Wait until `max_requests_per_second` allows another request; when the program ends it waits no more."""
        rate = self.settings.max_requests_per_second
        if rate is None:
            return
        due = self._last + self.settings.connections / rate
        while self.deadline() is None and (left := due - time.monotonic()) > 0:
            Done().wait(min(left, POLL))
        self._last = time.monotonic()

    def _know_secrets(self) -> None:
        """Tell the diagnostics what no line may hold."""
        found = [*self.address.secrets, *(self.settings.headers or {}).values()]
        if self.settings.proxy not in {None, ENVIRONMENT}:
            found += address_of(str(self.settings.proxy), "proxy").secrets
        if self.credentials.secret is not None:
            found.append(self.credentials.secret)
        found = [one for one in found if len(one) >= SHORT_SECRET]
        self.diagnostics.secrets = tuple(sorted(set(found), key=len, reverse=True))


def _authority(where: Address) -> str:
    host = f"[{where.host}]" if ":" in where.host else where.host
    return host if where.port == PORTS[where.scheme] else f"{host}:{where.port}"


def _root(error: Exception) -> Exception:
    """Return what urllib3 wrapped, if it wrapped anything."""
    inner = error.__cause__ or error.__context__
    return _root(inner) if isinstance(error, HTTPError) and isinstance(inner, Exception) else error


def said(error: Exception) -> str:
    """Return what an exception says of the network, and nothing that the server said."""
    error = _root(error)
    if isinstance(error, http.client.RemoteDisconnected):
        return "the server closed the connection without an answer"
    if isinstance(error, ssl.SSLError):
        reason = getattr(error, "reason", None)  # not of every one; OpenSSL's name of it
        return f"TLS failed ({reason or type(error).__name__})"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    if isinstance(error, (http.client.HTTPException, HTTPError)):
        return f"the answer is no HTTP, or was cut off ({type(error).__name__})"
    return type(error).__name__
