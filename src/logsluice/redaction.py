"""
What must not be stored as it is: values under secret keys, passwords in URLs, and, when asked, patterns in any text;
values that become pseudonyms, and values that are encrypted.

Applied on the caller's thread before the frame exists, so that no buffer and no sink ever holds the secret.
A redactor that fails drops the text instead of leaking it. The order, where more than one applies: keys and patterns,
pseudonyms, encryption; so what is encrypted holds nothing that was to be left out.
"""

from __future__ import annotations

import difflib
import hmac
import os
import re
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from json.encoder import encode_basestring
from typing import Any

from logsluice.errors import ConfigError
from logsluice.patterns import BY_NAME, DETECTORS, REDACTED, URL_PASSWORD, Detector, own_detector

# Matched whole, after lower-casing and "-" to "_": `token` is here, so `token_count` is not a secret.
SECRET_KEYS = frozenset({
    "password", "passwd", "pwd", "passphrase", "secret", "token", "access_token", "refresh_token", "id_token",
    "auth_token", "api_token", "bearer_token", "csrf_token", "session_token", "api_key", "apikey", "x_api_key",
    "secret_key", "private_key", "client_secret", "authorization", "proxy_authorization", "cookie", "set_cookie",
    "x_auth_token", "aws_secret_access_key", "credit_card", "card_number", "cvv", "cvc", "ssn",
})  # fmt: skip
# Values that are columns besides: with one of these named, the quick way is closed, which knows no keys of columns.
COLUMN_KEYS = frozenset({"trace_id", "span_id", "correlation_id", "user_id", "organization_id"})

PSEUDONYM = "pseudonym:"
SALT_CHARACTERS = 16  # at least: a shorter one is found by trying, and with it the value behind each pseudonym
_PSEUDONYM_DIGITS = 32  # hexadecimal, of HMAC-SHA-256's 64: 128 bits, as a UUID; it stands in every row, and in indexes

# Keys and lines without a secret are few and repeat; an attacker's are many: at so many entries the memory of past
# answers is cleared. A text in which something was found is not remembered, nor a long one: they do not repeat.
_REMEMBERED_KEYS = 4096
_REMEMBERED_TEXTS = 1024
_REMEMBERED_LENGTH = 200  # characters: names, paths, templates

_Instead = Callable[[Any, Callable[[], str]], str]  # a value, and what gives its JSON -> what is stored


class Redactor:
    """
    It decides which keys are secret and cleans texts.

    `option` is the handler's `redact`: None (nothing), "keys", "patterns" (all that are known by name), a list of
    further keys, or a mapping of

    - `keys`: a list of further keys;
    - `patterns`: a list of names (`patterns.BY_NAME`, "all") and regular expressions of one's own;
    - `pseudonyms`: {"keys": [...], "salt_env": "NAME"};
    - `encrypt`: {"keys": [...], "public_key": "FILE"} or {"keys": [...], "fernet_env": "NAME"} (extra `[crypto]`).

    Reads the named variables and the file here. Raises `ConfigError` for anything else. Pickled, it is its option.
    """

    def __init__(self, option: Any = "keys") -> None:
        self._option = option
        keys, self._detectors, self._instead = _parse(option)
        self.active = option is not None
        self._keys = frozenset(keys).union(self._instead)
        self._by_column = not COLUMN_KEYS.isdisjoint(self._keys)
        self._answers: dict[str, bool] = {}
        self._clean: dict[str, None] = {}

    def __reduce__(self) -> tuple[Any, ...]:
        return Redactor, (self._option,)

    @property
    def searches_text(self) -> bool:
        """Whether every text must be searched, not only those that hold a URL; or every id, for its column is named."""
        return bool(self._detectors) or self._by_column

    def is_secret(self, key: str) -> bool:
        """Whether the value under this key must not be stored as it is; `instead` says what is."""
        answer = self._answers.get(key)
        if answer is None:
            if len(self._answers) >= _REMEMBERED_KEYS:
                self._answers.clear()
            try:
                answer = self._answers[key] = _normal(key) in self._keys
            except Exception:
                return True  # fail closed: what cannot be judged is not stored
        return answer

    def instead(self, key: str, value: Any, json: Callable[[], str]) -> str:
        """
        Return what is stored in the place of a value whose key is secret: "[redacted]", a pseudonym, or it encrypted.

        `json` gives the value as JSON, cleaned; it is called only where it is needed. The text must not be cut.
        """
        try:
            instead = self._instead.get(_normal(key))
            # None has no pseudonym: all that is missing would be one person.
            return REDACTED if instead is None or value is None else instead(value, json)
        except Exception:
            return REDACTED  # fail closed

    def clean(self, text: str) -> str:
        """Return the text without URL passwords and, if patterns are on, without what they match."""
        if not self.active or text in self._clean:
            return text
        try:
            cleaned = text
            if "://" in cleaned:
                cleaned = URL_PASSWORD.sub(r"\1***@", cleaned)
            for _, hints, replaced in self._detectors:
                if not hints:
                    cleaned = replaced(cleaned)
                    continue
                for hint in hints:
                    if hint in cleaned:
                        cleaned = replaced(cleaned)
                        break
            if len(text) <= _REMEMBERED_LENGTH and cleaned == text:
                if len(self._clean) >= _REMEMBERED_TEXTS:
                    self._clean.clear()
                self._clean[text] = None
        except Exception:
            return REDACTED  # fail closed: a text that cannot be searched is not stored
        return cleaned


def _normal(key: str) -> str:
    return key.lower().replace("-", "_")


# --- the option -------------------------------------------------------------------------------------------------------

_KNOWN = {
    "redact": ("keys", "patterns", "pseudonyms", "encrypt"),
    "redact['pseudonyms']": ("keys", "salt_env"),
    "redact['encrypt']": ("keys", "public_key", "fernet_env"),
}


def _parse(option: Any) -> tuple[Iterable[str], tuple[Detector, ...], dict[str, _Instead]]:
    """Return the secret keys, the detectors, and what is done with the values of other keys."""
    if option is None:
        return (), (), {}
    if option == "keys":
        return SECRET_KEYS, (), {}
    if option == "patterns":
        return SECRET_KEYS, DETECTORS, {}
    if isinstance(option, Mapping):
        given = _mapping("redact", option)
        keys = SECRET_KEYS.union(_keys(given.get("keys", ())))
        return keys, _detectors(_strings(given.get("patterns", ()))), _treatments(given)
    if isinstance(option, (list, tuple, set, frozenset)):
        return SECRET_KEYS.union(_keys(option)), (), {}
    raise ConfigError(f"redact must be None, 'keys', 'patterns', a list of keys or a mapping, got {option!r}")


def _mapping(name: str, given: Any) -> Mapping[str, Any]:
    known = _KNOWN[name]
    if not isinstance(given, Mapping):  # its value is not shown: it may be what should have been in a variable
        raise ConfigError(f"{name} must be a mapping with {', '.join(map(repr, known))}")
    unknown = [str(key) for key in given if key not in known]
    if unknown:
        raise ConfigError(f"{name} knows {', '.join(map(repr, known))}, not {sorted(unknown)}")
    return given


def _strings(values: Any) -> tuple[str, ...]:
    if isinstance(values, (str, Mapping)) or not all(isinstance(value, str) for value in values):
        raise ConfigError("redact: keys and patterns are lists of strings")
    return tuple(values)


def _keys(values: Any) -> list[str]:
    return [_normal(key) for key in _strings(values)]


def _named(option: Mapping[str, Any], treatment: str) -> list[str]:
    """Return the keys that get this treatment; there must be one."""
    if option.get(treatment) is None:
        return []
    keys = _keys(_mapping(f"redact[{treatment!r}]", option[treatment]).get("keys", ()))
    if not keys:
        raise ConfigError(f"redact[{treatment!r}]: keys is missing; name the keys whose values are meant")
    return keys


def _treatments(option: Mapping[str, Any]) -> dict[str, _Instead]:
    """Return what is done with the values of keys that are not left out."""
    hidden, sealed = _named(option, "pseudonyms"), _named(option, "encrypt")
    every = [*dict.fromkeys(_keys(option.get("keys", ()))), *dict.fromkeys(hidden), *dict.fromkeys(sealed)]
    for key in every:
        if every.count(key) > 1:  # which of them would win is not to be guessed
            raise ConfigError(f"redact: {key!r} is in two lists; a value has one treatment: leave it in one of them")
    found: dict[str, _Instead] = {}
    if hidden:
        found.update(dict.fromkeys(hidden, partial(_pseudonym, _salt(option["pseudonyms"].get("salt_env")))))
    if sealed:
        from logsluice import crypto  # noqa: PLC0415 - an extra, loaded only where it is asked for

        given = option["encrypt"]
        seal = crypto.sealer(given.get("public_key"), given.get("fernet_env"))
        found.update(dict.fromkeys(sealed, partial(_encrypted, seal)))
    return found


def _salt(name: Any) -> bytes:
    if not isinstance(name, str) or not name:
        raise ConfigError(
            "redact['pseudonyms']: salt_env is missing; name the environment variable that holds the salt"
        )
    salt = os.environ.get(name, "")
    if len(salt) < SALT_CHARACTERS:
        said = "is not set" if not salt else f"holds {len(salt)} characters"
        raise ConfigError(
            f"redact['pseudonyms']: the environment variable {name!r} {said}; give it at least {SALT_CHARACTERS}, "
            "for example from `openssl rand -hex 32`, the same wherever values are to be joined"
        )
    return salt.encode("utf-8", "surrogateescape")


def _pseudonym(salt: bytes, value: Any, json: Callable[[], str]) -> str:
    kind = type(value)
    if issubclass(kind, str):
        text = str.__str__(value)
    elif kind is bytes:  # a header of ASGI
        text = value.decode("latin-1")
    else:  # 7 is "7" in another table
        text = str(value) if kind in {int, bool, float} else json()
    digest = hmac.digest(salt, text.encode("utf-8", "surrogatepass"), "sha256")
    return PSEUDONYM + digest.hex()[:_PSEUDONYM_DIGITS]


def _encrypted(seal: Callable[[bytes], str], value: Any, json: Callable[[], str]) -> str:
    plain = json()
    if plain == _REDACTED_JSON and issubclass(type(value), str):
        # The text is a secret from end to end, which its key has told already: it is to be had back.
        plain = encode_basestring(str.__str__(value)[:_SEALED_WHOLE])
    return seal(plain.encode("utf-8", "backslashreplace"))


_REDACTED_JSON = encode_basestring(REDACTED)
_SEALED_WHOLE = 16_384  # characters: above every token, key and address


def _detectors(patterns: tuple[str, ...]) -> tuple[Detector, ...]:
    """Return the user's own expressions, before the ones known by name: they are for texts as they are logged."""
    names = set(BY_NAME) if "all" in patterns else {name for name in patterns if name in BY_NAME}
    own = [pattern for pattern in dict.fromkeys(patterns) if pattern not in BY_NAME and pattern != "all"]
    for pattern in own:
        near = difflib.get_close_matches(pattern, BY_NAME, n=1, cutoff=0.7) if re.fullmatch("[a-z_-]+", pattern) else []
        if near:  # else it would look for its own name, and find nothing
            raise ConfigError(
                f"redact: there is no pattern {pattern!r}; did you mean {near[0]!r}? To look for the word itself write "
                f"'(?:{pattern})'; known by name: {', '.join(BY_NAME)}, all"
            )
        try:
            re.compile(pattern)
        except re.error as error:
            raise ConfigError(f"redact: {pattern!r} is not a regular expression: {error}") from None
    return (*map(own_detector, own), *(detector for detector in DETECTORS if detector.name in names))
