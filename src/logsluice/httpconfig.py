"""The options of `HttpHandler`, checked when `dictConfig` runs, and its url taken apart. Pure: nothing is opened."""

from __future__ import annotations

import base64
import dataclasses
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar
from urllib.parse import quote, unquote, urlsplit

from logsluice.checks import flag, number, one_of, path, variable
from logsluice.config import MIB, Settings
from logsluice.errors import ConfigError

FORMATS = ("ndjson", "json", "otlp", "loki", "elasticsearch")
ENVIRONMENT = "environment"  # proxy=: as HTTPS_PROXY, HTTP_PROXY and NO_PROXY say
LONG_SEGMENT = 32  # characters of one part of a path: longer ones are tokens (collectors that have them there)
SHORT_SECRET = 4  # characters: a shorter one is not looked for, it would be found in every other word

_NAME = r"[!#$%&'*+.^_`|~0-9A-Za-z-]+"  # RFC 9110, 5.6.2
_VALUE = re.compile(r"[\x20-\x7e]+")
# What the handler itself says of each request.
_OURS = {"content-length", "content-encoding", "content-type", "transfer-encoding", "host", "idempotency-key"}
PORTS = {"http": 80, "https": 443}


@dataclass(frozen=True)
class Address:
    """A url in its parts. `shown` is it without secrets; `secrets` are those, as they may turn up in a text."""

    scheme: str
    host: str
    port: int
    target: str = dataclasses.field(repr=False)  # path and query, as in the first line of a request
    shown: str
    basic: str | None = dataclasses.field(repr=False)  # of the userinfo: what follows "Basic "
    secrets: tuple[str, ...] = dataclasses.field(repr=False)


def address_of(url: str, name: str = "url") -> Address:
    """Take a url apart. Raises ConfigError, which never shows it."""
    wrong = ConfigError(
        f"{name} must be http:// or https:// with a host, odd characters percent-encoded, for example "
        "'https://logs.example.com/ingest' (it is not shown, it may hold a secret)"
    )
    if not isinstance(url, str) or re.search(r"[\x00-\x20\x7f\\]", url):
        raise wrong
    try:
        parts = urlsplit(url)
        port = parts.port
        host = parts.hostname or ""
        host = host if ":" in host else host.encode("idna").decode()
    except (ValueError, UnicodeError):
        raise wrong from None
    if parts.scheme not in PORTS or not host or port == 0 or parts.fragment or parts.netloc.count("@") > 1:
        raise wrong
    user, password = (unquote(one or "") for one in (parts.username, parts.password))
    pairs = [pair.partition("=") for pair in parts.query.split("&") if pair]
    target = quote(parts.path or "/", safe="/%:@!$&'()*+,;=~-._") + (
        "?" + quote(parts.query, safe="/?%:@!$&'()*+,;=~-._") if parts.query else ""
    )
    basic = None
    if user or password:
        basic = base64.b64encode(f"{user}:{password}".encode()).decode()
    # A user without a password is a token.
    found = [password, parts.password or "", basic or "", "" if password else user]
    found += [spelling for _, _, value in pairs for spelling in (value, unquote(value))]
    found += re.findall(rf"[^/]{{{LONG_SEGMENT},}}", parts.path)
    shown_host = f"[{host}]" if ":" in host else host
    path = re.sub(rf"[^/]{{{LONG_SEGMENT},}}", "***", parts.path)
    shown = f"{parts.scheme}://{shown_host}{'' if port is None else f':{port}'}{path}"
    if pairs:
        shown += "?" + "&".join(f"{key}=***" if has else "***" for key, has, _ in pairs)
        found += [key for key, has, _ in pairs if not has]
    secrets = sorted({one for one in found if len(one) >= SHORT_SECRET}, key=len, reverse=True)
    return Address(parts.scheme, host, port or PORTS[parts.scheme], target, shown, basic, tuple(secrets))


def _url(_name: str, value: Any) -> str:
    address_of(value)
    return str(value)


def _format(name: str, value: Any) -> Any:
    if callable(value):
        return value
    return one_of(*FORMATS)(name, value)


def header_value(value: str) -> bool:
    """Whether a text can be the value of a header: else it would end it, and begin another."""
    return _VALUE.fullmatch(value) is not None


def _headers(name: str, value: Any) -> Any:
    if value is None:
        return None
    if not isinstance(value, Mapping):
        raise ConfigError(f"{name} must be a mapping of header to value, got {type(value).__name__}")
    for key, one in value.items():
        if not isinstance(key, str) or re.fullmatch(_NAME, key) is None:
            raise ConfigError(f"{name}: {key!r} is no name of a header")
        if key.lower() in _OURS:
            raise ConfigError(f"{name}: {key!r} is set by the handler itself (content_type= says another type)")
        if not isinstance(one, str) or not header_value(one):
            raise ConfigError(f"{name}: the value of {key!r} must be printable ASCII (it is not shown)")
    return value


def _header_name(name: str, value: Any) -> str:
    if not isinstance(value, str) or re.fullmatch(_NAME, value) is None or value.lower() in _OURS:
        raise ConfigError(f"{name} must be the name of a header, for example 'X-API-Key', got {value!r}")
    return value


def _header_text(name: str, value: Any) -> Any:
    if value is not None and (not isinstance(value, str) or (value and not header_value(value))):
        raise ConfigError(f"{name} must be printable ASCII or None, got {value!r}")
    return value


def _token(name: str, value: Any) -> Any:
    if value is None or callable(value):
        return value
    if not isinstance(value, str) or not header_value(value):
        raise ConfigError(f"{name} must be printable ASCII, or a callable that returns it (it is not shown)")
    return value


def _proxy(name: str, value: Any) -> Any:
    if value is None or value == ENVIRONMENT:
        return value
    if address_of(value, name).scheme != "http":
        raise ConfigError(f"{name} must be an http:// url, {ENVIRONMENT!r} or None; to the target it is a tunnel")
    return value


@dataclass(frozen=True, kw_only=True)
class HttpSettings(Settings):
    """What an `HttpHandler` can be told besides."""

    buries: ClassVar[bool] = True
    hints: ClassVar[bool] = True
    checks: ClassVar[Mapping[str, Callable[[str, Any], Any]]] = {
        "url": _url,
        "format": _format,
        "content_type": _header_text,
        "headers": _headers,
        "tenant": _header_text,
        "token": _token,
        "token_env": variable,
        "token_file": path("file"),
        "token_header": _header_name,
        "token_scheme": _header_text,
        "gzip": flag,
        "max_request_bytes": number(1024, "a number of bytes", whole=True),
        "max_request_records": number(1, "a number of records", none=True, whole=True),
        "max_requests_per_second": number(0.001, "requests", none=True),
        "retry_after_max": number(0, "seconds"),
        "verify": flag,
        "ca_file": path("file"),
        "proxy": _proxy,
        "dead_letters": path("file"),
    }

    # Where to, and how. Never in a repr: a url and headers may hold secrets.
    url: str = dataclasses.field(default="", repr=False)  # of the endpoint, with its path; user:password@ is Basic
    # "json", "otlp", "loki", "elasticsearch", or a callable of yours: the records of a request, as dicts, to its body
    format: str | Callable[[list[dict[str, Any]]], bytes] = "ndjson"
    names: str = "sluice"  # of the keys of "ndjson", "json" and yours: "sluice", "otel", "ecs", "plain"
    content_type: str | None = None  # None: the format's own
    headers: Mapping[str, str] | None = dataclasses.field(default=None, repr=False)  # of each request, beside our own
    tenant: str | None = None  # Loki's X-Scope-OrgID

    # Who asks. A token is read anew when the endpoint refuses it.
    # the token, or a callable that returns it
    token: str | Callable[[], str] | None = dataclasses.field(default=None, repr=False)
    token_env: str | None = None  # name of an environment variable that holds it
    token_file: str | None = None  # a file that holds it
    token_header: str = "Authorization"  # noqa: S105 - the header that carries it: "X-API-Key", "DD-API-KEY"
    token_scheme: str | None = None  # the word before it: "ApiKey"; None: "Bearer" in Authorization, else none

    # Requests.
    gzip: bool = True  # bodies of 1 KiB and more
    max_request_bytes: int = 1 * MIB  # of a body before gzip; a larger record goes alone
    max_request_records: int | None = None  # in one request; None: only bytes count
    max_requests_per_second: float | None = None  # of this process; not kept to at exit; None: no limit
    retry_after_max: float = 300.0  # seconds that a Retry-After may ask for

    # The way there.
    verify: bool = True  # False: anybody may answer in the endpoint's place, and read what is sent
    ca_file: str | None = None  # PEM file of your own authority; None: the system's
    proxy: str | None = dataclasses.field(default=None, repr=False)  # http:// url; "environment": as HTTPS_PROXY says

    # Records that the endpoint refuses.
    dead_letters: str | None = (
        None  # a file that keeps them with the reason; None: they go to `fallback`, or are counted
    )

    def check(self, given: frozenset[str]) -> None:
        """As for all; there must be a url, and one way to the token."""
        super().check(given)
        if "url" not in given:
            raise ConfigError("url is missing: say where the records go, for example url='https://logs.example.com/in'")
        ways = [name for name in ("token", "token_env", "token_file") if getattr(self, name) is not None]
        if address_of(self.url).basic is not None:
            ways.append("user:password@ in url")
        if len(ways) > 1 and (self.token_header.lower() == "authorization" or "user:password@ in url" not in ways):
            raise ConfigError(f"give one of {', '.join(ways)}, not {len(ways)}")
        if self.token_env is not None and self.token_env not in os.environ:
            raise ConfigError(
                f"token_env names the environment variable {self.token_env!r}, which is not set; "
                "set it before logging is configured, or use token_file"
            )
        alone = [name for name in ("token_header", "token_scheme") if name in given]
        if alone and not any(way.startswith("token") for way in ways):
            raise ConfigError(f"{', '.join(alone)} says nothing without token=, token_env= or token_file=")
        if self.tenant is not None and self.format != "loki":
            raise ConfigError("tenant is Loki's; for another endpoint use headers={'X-Scope-OrgID': …}")
        if "names" in given and self.format not in {"ndjson", "json"} and not callable(self.format):
            raise ConfigError(f"names says nothing for format={self.format!r}, which has its own")
        if self.ca_file is not None and not self.verify:
            raise ConfigError("ca_file says nothing with verify=False")
        if self.ca_file is not None and not os.path.isfile(self.ca_file):  # noqa: PTH113 - a text, not a Path
            raise ConfigError(f"ca_file must be a PEM file that is there, got {self.ca_file!r}")
