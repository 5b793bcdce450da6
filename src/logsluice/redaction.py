"""
What must not be stored: values under secret keys, passwords in URLs, and, when asked, patterns in any text.

Applied on the caller's thread before the frame exists, so that no buffer and no sink ever holds the secret.
A redactor that fails drops the text instead of leaking it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from logsluice.errors import ConfigError

REDACTED = "[redacted]"

# Matched whole, after lower-casing and "-" to "_": `token` is here, so `token_count` is not a secret.
SECRET_KEYS = frozenset({
    "password", "passwd", "pwd", "passphrase", "secret", "token", "access_token", "refresh_token", "id_token",
    "auth_token", "api_token", "bearer_token", "csrf_token", "session_token", "api_key", "apikey", "x_api_key",
    "secret_key", "private_key", "client_secret", "authorization", "proxy_authorization", "cookie", "set_cookie",
    "x_auth_token", "aws_secret_access_key", "credit_card", "card_number", "cvv", "cvc", "ssn",
})  # fmt: skip

# Opt-in: each costs a search of every text.
PATTERNS = (
    r"\b(?:Bearer|Basic)\s+[A-Za-z0-9+/=._~-]{8,512}",  # HTTP Authorization values (RFC 9110, 11.6.2)
    r"\beyJ[A-Za-z0-9_-]{5,512}\.[A-Za-z0-9_-]{5,2048}\.[A-Za-z0-9_-]{5,512}",  # JSON web token (RFC 7519)
    r"\bAKIA[0-9A-Z]{16}\b",  # AWS access key id
    r"\b\d(?:[ -]?\d){12,18}\b",  # payment card number (ISO/IEC 7812: 13 to 19 digits)
)

# scheme://user:password@host. The look-ahead keeps "host:8080/@name" whole. The lengths bound the search: a hostile
# text costs linear time.
_URL_PASSWORD = re.compile(r"""(://[^\s/:@"'<>]{0,128}:)(?!\d+(?:[/?#\s]|$))[^\s"'<>]{1,256}@""")

# Keys are few and repeat; an attacker's are many: at this many entries the memory of past answers is cleared.
_REMEMBERED_KEYS = 4096


class Redactor:
    """
    It decides which keys are secret and cleans texts.

    `option` is the handler's `redact`: None (nothing), "keys", "patterns", a list of further keys, or
    {"keys": [...], "patterns": [regular expressions]}. Raises `ConfigError` for anything else.
    """

    def __init__(self, option: Any = "keys") -> None:
        keys, patterns = _parse(option)
        self.active = option is not None
        self._keys = frozenset(_normal(key) for key in keys)
        self._pattern = re.compile("|".join(f"(?:{p})" for p in patterns)) if patterns else None
        self._answers: dict[str, bool] = {}

    @property
    def searches_text(self) -> bool:
        """Whether every text must be searched, not only those that hold a URL."""
        return self._pattern is not None

    def is_secret(self, key: str) -> bool:
        """Whether the value under this key must not be stored."""
        answer = self._answers.get(key)
        if answer is None:
            if len(self._answers) >= _REMEMBERED_KEYS:
                self._answers.clear()
            try:
                answer = self._answers[key] = _normal(key) in self._keys
            except Exception:
                return True  # fail closed: what cannot be judged is not stored
        return answer

    def clean(self, text: str) -> str:
        """Return the text without URL passwords and, if patterns are on, without what they match."""
        if not self.active:
            return text
        try:
            if "://" in text:
                text = _URL_PASSWORD.sub(r"\1***@", text)
            if self._pattern is not None:
                text = self._pattern.sub(REDACTED, text)
        except Exception:
            return REDACTED  # fail closed: a text that cannot be searched is not stored
        return text


def _normal(key: str) -> str:
    return key.lower().replace("-", "_")


def _parse(option: Any) -> tuple[Iterable[str], Iterable[str]]:
    if option is None:
        return (), ()
    if option == "keys":
        return SECRET_KEYS, ()
    if option == "patterns":
        return SECRET_KEYS, PATTERNS
    if isinstance(option, Mapping):
        unknown = set(option) - {"keys", "patterns"}
        if unknown:
            raise ConfigError(f"redact knows 'keys' and 'patterns', not {sorted(map(str, unknown))}")
        return SECRET_KEYS.union(_strings(option.get("keys", ()))), _compiled(_strings(option.get("patterns", ())))
    if isinstance(option, (list, tuple, set, frozenset)):
        return SECRET_KEYS.union(_strings(option)), ()
    raise ConfigError(f"redact must be None, 'keys', 'patterns', a list of keys or a mapping, got {option!r}")


def _strings(values: Any) -> tuple[str, ...]:
    if isinstance(values, str) or not all(isinstance(value, str) for value in values):
        raise ConfigError("redact: keys and patterns are lists of strings")
    return tuple(values)


def _compiled(patterns: tuple[str, ...]) -> tuple[str, ...]:
    for pattern in patterns:
        try:
            re.compile(pattern)
        except re.error as error:
            raise ConfigError(f"redact: {pattern!r} is not a regular expression: {error}") from None
    return patterns
