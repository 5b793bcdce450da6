"""
What the value of an option may be. Each check takes the option's name and what the user wrote, and returns the value
or raises `ConfigError` with what to write instead. Values that may hold a secret are not shown.
"""

from __future__ import annotations

import difflib
import importlib
import inspect
import logging
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from logsluice.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence


def refuse_unknown(name: str, known: Sequence[str], what: str = "option") -> NoReturn:
    """Raise `ConfigError` for an option that there is not; it says which one may be meant."""
    near = difflib.get_close_matches(name, known, n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"known {what}s: {', '.join(known)}"
    raise ConfigError(f"unknown {what} {name!r}; {hint}")


def refuse_all(unknown: Mapping[str, Any], kind: type) -> None:
    """Raise `ConfigError` if a class was given options that are none of its keywords."""
    for name in unknown:
        known = inspect.signature(kind).parameters.values()
        refuse_unknown(name, [one.name for one in known if one.kind is one.KEYWORD_ONLY])


def plain(value: Any) -> Any:
    """Copy a container of `dictConfig` into plain dicts, lists and tuples, resolving `ext://` and `cfg://`."""
    if isinstance(value, Mapping):
        return {key: plain(value[key]) for key in value}
    if isinstance(value, list):
        return [plain(value[i]) for i in range(len(value))]
    if isinstance(value, tuple):
        return tuple(plain(value[i]) for i in range(len(value)))
    return value


def level_from(name: str, value: Any) -> int:
    """Return a level by its name or number. Raises `ConfigError`, in the option's name, for what is neither."""
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    number = logging.getLevelName(value) if isinstance(value, str) else None
    if not isinstance(number, int):
        raise ConfigError(f"{name} must be a level name or number, for example 'WARNING', got {value!r}")
    return number


def number(least: float, kind: str, *, none: bool = False, whole: bool = False) -> Callable[[str, Any], Any]:
    """Return the check of a number of at least so much: a whole one, or None as well, where it may be."""

    def check(name: str, value: Any) -> Any:
        if value is None and none:
            return None
        right_type = isinstance(value, int) if whole else isinstance(value, (int, float))
        if not right_type or isinstance(value, bool) or not value >= least:  # `not >=` refuses NaN too
            optional = " or None" if none else ""
            raise ConfigError(f"{name} must be {kind} of at least {least}{optional}, got {value!r}")
        return value

    return check


def maintenance(name: str, value: Any) -> Any:
    """Check `maintenance`: on or off, rules, or where they stand."""
    if not isinstance(value, (bool, str, Mapping)) or value == "":
        raise ConfigError(f"{name} must be true, false, retention rules as {{'*': '30d'}}, or a JSON file's path")
    return dict(value) if isinstance(value, Mapping) else value


def connections(name: str, value: Any) -> int:
    """Check how many connections a handler may have."""
    # 16: more do not help a program whose threads share one GIL, and a server has a hundred for all.
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= 16:
        raise ConfigError(f"{name} must be a whole number from 1 to 16, got {value!r}")
    return value


def one_of(*choices: str | None) -> Callable[[str, Any], Any]:
    """Return the check of a choice."""

    def check(name: str, value: Any) -> Any:
        if value not in choices:
            raise ConfigError(f"{name} must be one of {', '.join(map(repr, choices))}, got {value!r}")
        return value

    return check


def text(name: str, value: Any) -> Any:
    """Check a text that goes into every row, or None."""
    if value is not None and not isinstance(value, str):
        raise ConfigError(f"{name} must be a string or None, got {type(value).__name__}")
    # It goes into every row: a NUL would end a segment's data, a lone surrogate cannot be encoded.
    if value is not None and ("\0" in value or len(value.encode("utf-8", "replace")) > 1024 or not _encodes(value)):
        raise ConfigError(f"{name} must be at most 1 KiB of text without NUL and lone surrogates, got {value[:100]!r}")
    return value


def _encodes(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def variable(name: str, value: Any) -> Any:
    """Check the name of an environment variable, or None."""
    if value is not None and (not isinstance(value, str) or re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", value) is None):
        # Not shown: whoever puts the dsn itself here has put the password here.
        raise ConfigError(f"{name} is the name of an environment variable, for example 'LOGS_DSN'; a dsn goes to dsn=")
    return value


def path(what: str) -> Callable[[str, Any], Any]:
    """Return the check of the path of a file or folder, or None."""

    def check(name: str, value: Any) -> Any:
        if value is None:
            return None
        if not isinstance(value, (str, os.PathLike)) or not os.fspath(value) or "\0" in str(os.fspath(value)):
            raise ConfigError(f"{name} must be the path of a {what} or None, got {value!r}")
        return os.path.abspath(os.fspath(value))  # noqa: PTH100 - a program may change its folder later

    return check


folder = path("folder")


def filename(name: str, value: Any) -> str:
    """Check the path of a log file; nothing is made yet."""
    file = folder(name, value)
    try:
        no_file = file is None or Path(file).is_dir() or str(value).endswith("/")
    except OSError as error:
        raise ConfigError(f"{name}: {str(value)[:100]!r} can be no file: {error.strerror}") from None
    if no_file:
        raise ConfigError(f"{name} must be the path of a file, for example 'logs/app.log', got {value!r}")
    if Path(file).exists() and not Path(file).is_file():
        raise ConfigError(
            f"{name}: {file} is no regular file; for a terminal or a pipe use logging.StreamHandler with "
            "logsluice.formatters.SluiceJsonFormatter"
        )
    return str(file)


def mode(name: str, value: Any) -> int:
    """Check the mode of a file, a number or octal digits."""
    try:
        bits = int(value, 8) if isinstance(value, str) else value
    except ValueError:
        bits = None
    if isinstance(bits, bool) or not isinstance(bits, int) or not 0 < bits <= 0o777 or not bits & 0o200:
        raise ConfigError(
            f"{name} must be a file mode that its owner can write with, for example '0640', got {value!r}"
        )
    return bits


def owner(name: str, value: Any) -> Any:
    """Check who a file is to belong to, or None."""
    if value is None:
        return None
    try:
        if not isinstance(value, str) or not value.strip(":"):
            raise LookupError("it is empty")
        owner_ids(value)
    except (LookupError, ValueError) as error:  # ValueError: of a NUL, or half of a character
        raise ConfigError(f"{name} must be 'user:group', 'user' or ':group' that there are, got {value!r}") from error
    return value


def imported(name: str, value: Any) -> Any:
    """Return a class or other callable, imported where its name is given."""
    if isinstance(value, str):
        module, dot, attribute = value.rpartition(".")
        try:
            value = getattr(importlib.import_module(module), attribute) if dot else None
        except (ImportError, AttributeError) as error:
            raise ConfigError(
                f"{name}: {value!r} cannot be imported ({error}); write 'package.module.Class'"
            ) from error
    if not callable(value):
        raise ConfigError(f"{name} must be a class or 'package.module.Class', got {value!r}")
    return value


def mapping(name: str, value: Any) -> dict[str, Any]:
    """Check a mapping of names to values."""
    if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
        raise ConfigError(f"{name} must be a mapping of names to values, got {type(value).__name__}")
    return dict(value)


def when(name: str, value: Any) -> Any:
    """Check how often a file is rotated."""
    names = {"H": "hour", "D": "midnight", "day": "midnight"}  # as logging's own handler has them
    value = names.get(value, value) if isinstance(value, str) else value
    return one_of(None, "hour", "midnight", "week", "month")(name, value)


def fsync(name: str, value: Any) -> Any:
    """Check when a journal is flushed to the device."""
    if isinstance(value, str) and value in {"never", "always"}:
        return value
    # 10 ms: about what one fdatasync takes on a disk that spins.
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0.01 <= value < float("inf"):
        raise ConfigError(f"{name} must be 'never', 'always', or seconds of at least 0.01, got {value!r}")
    return value


def flag(name: str, value: Any) -> bool:
    """Check a boolean."""
    if not isinstance(value, bool):
        raise ConfigError(f"{name} must be true or false, got {value!r}")
    return value


def dsn(_name: str, value: Any) -> Any:
    """Check where the database is; nobody is asked yet."""
    if not isinstance(value, str) and not callable(value):
        # The value is not shown: it may hold a password in a form that we did not foresee.
        raise ConfigError(
            f"dsn must be a libpq string, a URI or a callable that returns one, got {type(value).__name__}"
        )
    return value


def owner_ids(owner: str) -> tuple[int, int]:
    """Return (uid, gid) of "user:group", names or numbers; -1 for one that is not said. Raises LookupError."""
    import grp  # noqa: PLC0415 - not on Windows
    import pwd  # noqa: PLC0415 - as above

    user, _, group = owner.partition(":")
    uid = -1 if not user else int(user) if user.isdecimal() else pwd.getpwnam(user).pw_uid
    gid = -1 if not group else int(group) if group.isdecimal() else grp.getgrnam(group).gr_gid
    return uid, gid
