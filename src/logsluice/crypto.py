r"""
Values encrypted for whoever holds a key, and back. `cryptography` is an extra, `[crypto]`, imported where it is used.

A value is a text `encrypted:KIND:KEY_ID:BASE64URL`, where KEY_ID is the first 8 bytes of a SHA-256 that tells keys
apart and says nothing of them:

- `x25519`: the program holds a public key alone and cannot read what it wrote. Hybrid: a fresh X25519 key agrees with
  the public one on an AES-256-GCM key (HKDF-SHA-256), which serves many values, so that a logging call pays for AES and
  not for a curve. The bytes are the fresh public key (32), a nonce (12), the ciphertext with its tag (16).
- `fernet`: a Fernet token (https://github.com/fernet/spec); the program holds the key that opens it.

KIND and KEY_ID are authenticated with the value. What is inside is JSON.
"""

from __future__ import annotations

import base64
import hashlib
import itertools
import json
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from logsluice.errors import ConfigError, LogsluiceError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PublicKey

SEALED = re.compile(r"encrypted:(x25519|fernet):([0-9a-f]{16}):([A-Za-z0-9_-]+={0,2})")
# Values for which one agreed key serves: their nonces are numbers, which do not repeat below 2^96; it bounds what a key
# found in a memory dump opens.
_VALUES_A_KEY = 1_000_000
_HOW = "make a pair: `openssl genpkey -algorithm X25519 -out private.pem`, `openssl pkey -in private.pem -pubout`"


def sealer(public_key: Any, fernet_env: Any) -> Callable[[bytes], str]:
    """Return what encrypts: for a public key (PEM, or a file that holds it), or with a variable's Fernet key."""
    if (public_key is None) == (fernet_env is None):
        raise ConfigError(
            "redact['encrypt']: give public_key, a file, or fernet_env, a variable's name; and one of them"
        )
    try:
        import cryptography  # noqa: F401, PLC0415 - an extra
    except ImportError:
        raise ConfigError("redact['encrypt'] needs cryptography: pip install 'logsluice[crypto]'") from None
    if fernet_env is not None:
        return _fernet_sealer(fernet_env)
    return _Hybrid(_public(public_key)).seal


def _public(given: Any) -> X25519PublicKey:
    from cryptography.hazmat.primitives.asymmetric import x25519  # noqa: PLC0415 - an extra
    from cryptography.hazmat.primitives.serialization import load_pem_public_key  # noqa: PLC0415 - as above

    if not isinstance(given, str):
        raise ConfigError("redact['encrypt']: public_key is the name of a PEM file, or its text")
    text = given.encode()
    if "-----BEGIN" not in given:
        try:
            text = Path(given).read_bytes()
        except OSError as error:
            raise ConfigError(f"redact['encrypt']: cannot read public_key {given!r}: {error.strerror}") from None
    if b"PRIVATE KEY" in text:
        raise ConfigError("redact['encrypt']: public_key holds a private key; a program that logs needs the public one")
    try:
        key = load_pem_public_key(text)
    except Exception:  # its message says nothing to a user
        raise ConfigError(f"redact['encrypt']: public_key is no public key in PEM; {_HOW}") from None
    if not isinstance(key, x25519.X25519PublicKey):
        raise ConfigError(f"redact['encrypt']: public_key is no X25519 key but {type(key).__name__}; {_HOW}")
    return key


def _key_id(material: bytes) -> str:
    return hashlib.sha256(b"logsluice key id" + material).hexdigest()[:16]


class _Hybrid:
    """It encrypts for a public key. Any thread; takes no lock, makes no system call that waits."""

    def __init__(self, public: X25519PublicKey) -> None:
        self._public = public
        self._prefix = f"encrypted:x25519:{_key_id(public.public_bytes_raw())}:"
        self._agreed = self._agree()

    def _agree(self) -> tuple[int, Any, bytes, Any]:
        """Return our process, the numbers of values, our half of the agreement and the cipher."""
        from cryptography.hazmat.primitives.asymmetric import x25519  # noqa: PLC0415 - an extra

        fresh = x25519.X25519PrivateKey.generate()
        half = fresh.public_key().public_bytes_raw()
        return os.getpid(), itertools.count(1), half, _cipher(fresh.exchange(self._public), half, self._public)

    def seal(self, plain: bytes) -> str:
        """Return the text that is stored."""
        pid, numbers, half, cipher = self._agreed
        number = next(numbers)
        if number > _VALUES_A_KEY or pid != os.getpid():  # a forked child counts on from where its parent was
            self._agreed = pid, numbers, half, cipher = self._agree()
            number = next(numbers)
        nonce = number.to_bytes(12, "big")
        sealed = half + nonce + cipher.encrypt(nonce, plain, self._prefix.encode())
        return self._prefix + base64.urlsafe_b64encode(sealed).decode().rstrip("=")


def _cipher(shared: bytes, half: bytes, public: X25519PublicKey) -> Any:
    from cryptography.hazmat.primitives import hashes  # noqa: PLC0415 - an extra
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM  # noqa: PLC0415 - as above
    from cryptography.hazmat.primitives.kdf.hkdf import HKDF  # noqa: PLC0415 - as above

    info = b"logsluice x25519 aes-256-gcm" + half + public.public_bytes_raw()
    return AESGCM(HKDF(hashes.SHA256(), 32, None, info).derive(shared))


def _fernet_sealer(variable: Any) -> Callable[[bytes], str]:
    from cryptography.fernet import Fernet  # noqa: PLC0415 - an extra

    if not isinstance(variable, str) or not os.environ.get(variable):
        raise ConfigError(f"redact['encrypt']: fernet_env names the variable {variable!r}, which is not set")
    key = os.environ[variable].strip().encode()
    try:
        fernet = Fernet(key)
    except ValueError:  # not shown: it may be a key with a slip in it
        raise ConfigError(
            f"redact['encrypt']: the variable {variable!r} holds no Fernet key; make one: "
            'python -c "from cryptography.fernet import Fernet; print(Fernet.generate_key().decode())"'
        ) from None
    prefix = f"encrypted:fernet:{_key_id(key)}:"
    encrypt = fernet.encrypt

    def seal(plain: bytes) -> str:
        # The prefix goes inside, for Fernet authenticates nothing besides.
        return prefix + encrypt(prefix.encode() + plain).decode()

    return seal


# --- back -------------------------------------------------------------------------------------------------------------


class UnknownKeyError(LogsluiceError):
    """A value was encrypted for a key that was not given."""


class DamagedError(LogsluiceError):
    """A value was cut or changed since it was encrypted."""


class Keys:
    """Keys that open values. Raises `LogsluiceError` for a file that cannot be read or holds no key."""

    def __init__(self, files: Sequence[str]) -> None:
        self._open: dict[str, Callable[[bytes, bytes], bytes]] = {}
        for file in files:
            key_id, opener = _opener(file)
            self._open[key_id] = opener

    def value(self, sealed: re.Match[str]) -> Any:
        """Return the value of one find of `SEALED`. Raises `UnknownKeyError` and `DamagedError`."""
        opener = self._open.get(sealed[2])
        if opener is None:
            given = ", ".join(self._open)
            raise UnknownKeyError(f"encrypted for key {sealed[2]}, and given is {given}; add the right one with --key")
        prefix = sealed[0][: -len(sealed[3])].encode()
        try:
            return json.loads(opener(prefix, sealed[3].encode()))
        except Exception:  # InvalidTag, InvalidToken, a length that is none
            raise DamagedError(f"a value of key {sealed[2]} is damaged: it was cut or changed") from None


def _opener(file: str) -> tuple[str, Callable[[bytes, bytes], bytes]]:
    try:
        from cryptography.fernet import Fernet  # noqa: PLC0415 - an extra
        from cryptography.hazmat.primitives.asymmetric import x25519  # noqa: PLC0415 - an extra
        from cryptography.hazmat.primitives.serialization import load_pem_private_key  # noqa: PLC0415 - an extra
    except ImportError:
        raise LogsluiceError("decrypting needs cryptography: pip install 'logsluice[crypto]'") from None
    try:
        text = Path(file).read_bytes().strip()
    except OSError as error:
        raise LogsluiceError(f"cannot read the key {file}: {error.strerror}") from None
    if b"-----BEGIN" not in text:
        try:
            fernet = Fernet(text)
        except ValueError:
            raise LogsluiceError(f"{file} holds neither a private key in PEM nor a Fernet key") from None
        return _key_id(text), lambda prefix, body: fernet.decrypt(body).split(prefix, 1)[1]
    if b"PUBLIC KEY" in text:
        raise LogsluiceError(f"{file} holds a public key, which encrypts; give the private one")
    try:
        private = load_pem_private_key(text, None)
    except TypeError:
        raise LogsluiceError(f"{file} has a password; take it off first: openssl pkey -in {file} -out FILE") from None
    except Exception:
        raise LogsluiceError(f"{file} is no private key that can be read") from None
    if not isinstance(private, x25519.X25519PrivateKey):
        raise LogsluiceError(f"{file} is no X25519 key but {type(private).__name__}")
    public = private.public_key()

    def opened(prefix: bytes, body: bytes) -> bytes:
        sealed = base64.urlsafe_b64decode(body + b"=" * (-len(body) % 4))
        half = sealed[:32]
        shared = private.exchange(x25519.X25519PublicKey.from_public_bytes(half))
        return bytes(_cipher(shared, half, public).decrypt(sealed[32:44], sealed[44:], prefix))

    return _key_id(public.public_bytes_raw()), opened
