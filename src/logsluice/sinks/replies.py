"""
What an HTTP answer means: a verdict for the whole request. Pure.

| status                                                          | verdict                                           |
|-----------------------------------------------------------------|---------------------------------------------------|
| 2xx                                                             | stored; the body may say otherwise of some        |
| 260 of Loki (a blocked tenant)                                  | BLOCKED                                           |
| 3xx                                                             | BLOCKED, the other host named: none is followed   |
| 401, 403, 407                                                   | BLOCKED; a token is read anew                     |
| 404, 405, 406, 410, 411, 415, 421, 426, 431                     | BLOCKED: the address or the options, not the data |
| 408, 425, 429                                                   | RETRY, after Retry-After                          |
| 413                                                             | SHRINK; of one record REJECT                      |
| any other 4xx                                                   | REJECT                                            |
| 5xx                                                             | RETRY, after Retry-After                          |
| anything else                                                   | RETRY                                             |

A wrong RETRY costs time, a wrong REJECT records: a misspelt path (404) must not turn a log into dead letters.
https://github.com/open-telemetry/opentelemetry-proto/blob/main/docs/specification.md#failures-1 (which statuses to
retry, of all formats); https://www.rfc-editor.org/rfc/rfc9110#name-retry-after.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from http import HTTPStatus
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from logsluice.delivery import Failure, Verdict
from logsluice.httpreplies import DETAIL

if TYPE_CHECKING:
    from collections.abc import Mapping

BLOCKED_TENANT = 260  # Loki: limits_config.block_ingestion_status_code

_AGAIN = frozenset({408, 425, 429})
_HINTS = {
    401: "see token=, token_env= or token_file=",
    403: "see what the token may do",
    404: "see the path of url=",
    405: "see the path of url=; records are sent by POST",
    407: "see the name and password in proxy=",
    410: "see url=",
    415: "see format= and content_type=; gzip=False sends bodies as they are",
}
_NOT_THE_DATA = frozenset({401, 403, 404, 405, 406, 407, 410, 411, 415, 421, 426, 431})


@dataclass(frozen=True)
class Reply:
    """What came back. Names of headers in lower case."""

    status: int
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = field(default=b"", repr=False)

    @property
    def detail(self) -> str:
        """What it says, for a dead letter: it may quote the record."""
        return " ".join(self.body[: 4 * DETAIL].decode(errors="replace").split())[:DETAIL]


def failure_of(reply: Reply, where: str, records: int, *, now: float, most_wait: float, loki: bool) -> Failure | None:
    """Return what went wrong with a request of so many records, None if it was taken; `where`: the url, shown."""
    status = reply.status
    if 200 <= status < 300 and not (loki and status == BLOCKED_TENANT):
        return None
    message, hint, wait, verdict = f"{where} answered {phrase(status)}", _HINTS.get(status, ""), None, Verdict.RETRY
    if 200 <= status < 300:
        message, verdict, hint = f"{where} answered 260: the tenant is blocked", Verdict.BLOCKED, "ask who runs Loki"
    elif 300 <= status < 400:
        message, verdict = f"{message}, which leads to {_host(reply)}; redirects are not followed", Verdict.BLOCKED
        hint = "give the endpoint's own address in url="
    elif status in _NOT_THE_DATA:
        verdict = Verdict.BLOCKED
    elif status == 413:
        verdict = Verdict.SHRINK if records > 1 else Verdict.REJECT
        wait = 0.0 if records > 1 else None
    elif 400 <= status < 500 and status not in _AGAIN:
        verdict = Verdict.REJECT
    else:
        wait = retry_after(reply.headers.get("retry-after"), now, most_wait)
    return Failure(message, verdict=verdict, status=status, hint=hint, wait=wait, detail=reply.detail)


def phrase(status: int) -> str:
    """Return a status as people know it. The server's own words are not shown: they may quote a record."""
    try:
        return f"{status} {HTTPStatus(status).phrase}"
    except ValueError:
        return str(status)


def retry_after(text: str | None, now: float, most: float) -> float | None:
    """Return the seconds that Retry-After asks for, a number or a date; None if it asks for nothing that is sane."""
    if text is None:
        return None
    text = text.strip()
    if text.isascii() and text.isdecimal():
        seconds = float(text[:9])  # longer ones are over any limit
    else:
        try:
            seconds = parsedate_to_datetime(text).timestamp() - now
        except (ValueError, TypeError, OverflowError):
            return None
    return min(seconds, most) if seconds > 0 and math.isfinite(seconds) and most > 0 else None


def _host(reply: Reply) -> str:
    """Return the host that a redirect leads to: the rest of its url may hold a secret."""
    try:
        parts = urlsplit(reply.headers.get("location", ""))
        host, port = parts.hostname, parts.port
    except ValueError:
        return "an unreadable address"
    if not host:
        return "another path of the same host" if parts.path else "nowhere"
    shown = "".join(char for char in host if char.isalnum() or char in ".-:")[:253]  # the longest name there can be
    return f"{parts.scheme[:8]}://{shown}" + (f":{port}" if port else "")
