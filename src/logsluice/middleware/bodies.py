"""
What is kept of a request's body: of listed content types, up to a size, its secrets masked. Pure.

Nothing is read ahead: only what the application reads passes by here. What cannot be masked is not kept: of JSON that
was cut or is not JSON, nobody can say which value belongs to a secret key.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote_plus

from logsluice.errors import ConfigError
from logsluice.patterns import REDACTED
from logsluice.redaction import Redactor

if TYPE_CHECKING:
    from collections.abc import Iterable

TYPES = ("application/json", "application/*+json", "application/x-www-form-urlencoded")
_FORM = "application/x-www-form-urlencoded"


class Bodies:
    """The rules: content types (`application/*+json` has a star), bytes, what is secret. Raises `ConfigError`."""

    def __init__(self, types: Iterable[str], limit: int, redact: Any) -> None:
        types = types if isinstance(types, str) else tuple(types)  # an iterator is read once
        if isinstance(types, str) or not all(isinstance(one, str) and "/" in one for one in types):
            raise ConfigError(f"body_types is a list of content types, for example ['application/json'], got {types!r}")
        if not isinstance(limit, int) or isinstance(limit, bool) or limit < 1:
            raise ConfigError(f"body_bytes must be a number of bytes from 1, got {limit!r}")
        self._types = tuple(one.lower().partition("*") for one in types)
        self.limit = limit
        self._redactor = Redactor(redact)

    def wants(self, content_type: str) -> bool:
        """Whether bodies of this type are kept."""
        kind = _kind(content_type)
        return any(
            kind.startswith(head) and kind.endswith(tail) if star else kind == head for head, star, tail in self._types
        )

    def text(self, content_type: str, body: bytes, size: int) -> str:
        """Return what is stored of a body of which `body` was read, `size` bytes in all."""
        kind = _kind(content_type)
        cut = size > len(body)
        if kind.endswith(("/json", "+json")):
            if cut:
                return f"[JSON of {size} bytes, over body_bytes={self.limit}: cut it could not be masked]"
            try:
                return json.dumps(self._masked(json.loads(body)), ensure_ascii=False)
            except (ValueError, RecursionError):
                return f"[{size} bytes that are no JSON: could not be masked]"
        text = body.decode("utf-8", "replace")
        text = self._form(text) if kind == _FORM else self._redactor.clean(text)
        return f"{text}… [{size} bytes]" if cut else text

    def _masked(self, value: Any) -> Any:
        if isinstance(value, dict):
            return {key: REDACTED if self._redactor.is_secret(key) else self._masked(one) for key, one in value.items()}
        if isinstance(value, list):
            return [self._masked(one) for one in value]
        return self._redactor.clean(value) if isinstance(value, str) else value

    def _form(self, text: str) -> str:
        """Mask a form; its keys stand before their values, so a cut one may be masked, too."""
        found = []
        for pair in text.split("&"):
            key, equals, value = pair.partition("=")
            secret = self._redactor.is_secret(unquote_plus(key))
            found.append(key + equals + (REDACTED if secret and value else self._redactor.clean(value)))
        return "&".join(found)


class Body:
    """What has passed by of one body."""

    __slots__ = ("_kept", "limit", "size")

    def __init__(self, limit: int) -> None:
        self.limit = limit  # bytes; 0 only counts
        self._kept = bytearray()
        self.size = 0  # bytes

    def add(self, data: bytes) -> None:
        """Take note of a piece."""
        self.size += len(data)
        room = self.limit - len(self._kept)
        if room > 0:
            self._kept += data[:room]

    @property
    def kept(self) -> bytes:
        """What was kept of it."""
        return bytes(self._kept)


def _kind(content_type: str) -> str:
    return content_type.partition(";")[0].strip().lower()
