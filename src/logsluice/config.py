"""
The options of the handlers, checked when `dictConfig` runs: nothing is opened and nothing is started here.

Frozen dataclasses, one for what all sinks share and one for each kind; each field says meaning, unit, special values.
Durations are seconds, sizes bytes. `settings_from` builds one from what the user wrote and raises `ConfigError` with
what to write instead.
"""

from __future__ import annotations

import dataclasses
import difflib
import importlib
import inspect
import logging
import os
import re
import socket
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, NoReturn, TypeVar

from logsluice.errors import ConfigError

KIB = 1024
MIB = 1024 * KIB
GIB = 1024 * MIB

PARTITION_WIDTHS = ("day", "hour", "week", "month", "none")

# With several connections, bytes of a journal for each: two files of 4 MiB are made ahead of need, beside what waits.
SHARD_JOURNAL = 16 * MIB


def switched_off() -> bool:
    """Whether LOGSLUICE_OFF makes every handler a counter."""
    return os.environ.get("LOGSLUICE_OFF", "").lower() not in {"", "0", "false", "no"}


@dataclass(frozen=True)
class Limits:
    """Caps on what one record may carry; what is over is cut and marked in `attributes.logsluice`."""

    depth: int = 32  # nested containers; Python's own recursion limit (1,000) must stay far away
    items: int = 10_000  # values in one record's attributes; a record with more is a data set, not a log line
    repr_bytes: int = 8 * KIB  # of a value that JSON cannot hold
    key_bytes: int = 1 * KIB  # of one attribute's name
    name_bytes: int = 1 * KIB  # of logger, file, func, thread, task, ids: they are indexed, a btree entry ends at 8,191
    # Characters, for readers that ask for 1 to so many; None: no such limit. Where one is set, empty becomes "-".
    service: int | None = None  # of the column
    module: int | None = None  # of the logger's name, and of the attributes "module" and "component"
    operation: int | None = None  # of the attribute
    message: int | None = None  # of the column


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What every handler can be told, whatever its sink."""

    checks: ClassVar[Mapping[str, Callable[[str, Any], Any]]] = {}  # of options that one kind alone has
    # What the sink does, no option.
    buries: ClassVar[bool] = False  # it keeps dead letters by itself, also while the server is away
    hints: ClassVar[bool] = False  # it has no books: the journal itself remembers how far a stream was acknowledged

    # Who writes.
    service: str | None = None  # stored with each row
    environment: str | None = None  # stored with each stream
    service_version: str | None = None  # stored with each stream

    # The buffer.
    capacity_bytes: int = 64 * MIB  # of waiting frames; an outage never takes more
    capacity: int | None = None  # records that may wait; None: only bytes count
    when_full: str = "drop"  # or "block", for `block_timeout` seconds
    block_timeout: float = 1.0  # seconds a logging call waits for room under "block"
    keep_level: int = logging.WARNING  # from here on a record may use the last fifth of the capacity

    # The journal: the buffer in files, which survives the process.
    journal: str | None = None  # a folder; processes and handlers may share it; None: memory only
    journal_bytes: int = 1 * GIB  # of all files in the folder; never exceeded
    fsync: str | float = "never"  # when files reach the device: "never", every so many seconds, "always": in the call
    journal_unsafe_fs: bool = False  # take a file system on which a full disk can kill the process
    fallback: str | None = None  # name of another handler: it gets what is dropped, given up, or left at exit

    # Batches.
    batch_size: int | None = None  # records in one transaction, sent when there are so many; None: only bytes count
    batch_bytes: int = 2 * MIB  # bytes in one transaction
    linger: float = 0.5  # seconds a record may wait for company
    slow_batch: float = 0.1  # seconds; a slower batch is reported, at most once a minute
    flush_level: int = logging.ERROR  # from here on a record is sent at once

    # Delivery.
    connections: int = 1  # for servers far away: so many streams, each with its thread and connection; 1 to 16
    shard_by: str | None = None  # source of a key, as in `columns`: equal keys keep their order; None: no order
    io_timeout: float = 30.0  # seconds for any one answer of the server
    shutdown_timeout: float = 5.0  # seconds that exit may take
    backoff_initial: float = 0.2  # seconds before the first retry, doubled each time, full jitter
    backoff_max: float = 30.0  # seconds between retries at most
    retry_limit: int | None = None  # retries of one batch before it is abandoned; None: for ever
    idle_close: float = 60.0  # seconds without a batch until the connection is closed

    # One record.
    max_message_bytes: int = 1 * MIB  # of any one text; head and tail are kept
    max_frame_bytes: int = 4 * MIB  # of the whole encoded record
    redact: Any = (
        "keys"  # None, "keys", "patterns", a list of keys, or keys, patterns, pseudonyms, encrypt in a mapping
    )
    limits: Limits = dataclasses.field(default_factory=Limits)  # caps on what one record may carry: a mapping

    def check(self, given: frozenset[str]) -> None:
        """Check options that only together can be wrong; `given` are those that the user wrote. Raises ConfigError."""
        # A frame must fit beside others, or one large record would drop everything that waits.
        for name in ("capacity_bytes",) if self.journal is None else ("capacity_bytes", "journal_bytes"):
            room, count = getattr(self, name), self.connections
            if self.max_frame_bytes * 4 * count > room:
                raise ConfigError(
                    f"max_frame_bytes ({self.max_frame_bytes}) must be at most a quarter of {name} ({room})"
                    + (f" / connections ({count}): make it at least {self.max_frame_bytes * 4 * count}" * (count > 1))
                )
        if self.journal is not None and self.connections > 1:
            least = self.connections * SHARD_JOURNAL
            if self.journal_bytes < least:
                raise ConfigError(
                    f"journal_bytes ({self.journal_bytes}) must be at least {least} with "
                    f"connections={self.connections}: 16 MiB for each"
                )
        if self.capacity is not None and self.capacity < self.connections:
            raise ConfigError(
                f"capacity ({self.capacity}) must be at least connections ({self.connections}), "
                "which share it out among themselves"
            )
        if self.journal is None and (alone := given & {"journal_bytes", "fsync", "journal_unsafe_fs"}):
            raise ConfigError(
                f"{', '.join(sorted(alone))} says nothing without journal=; name a folder, or leave it out"
            )
        if self.backoff_initial > self.backoff_max:
            raise ConfigError(
                f"backoff_initial ({self.backoff_initial}) must not be above backoff_max ({self.backoff_max})"
            )


@dataclass(frozen=True, kw_only=True)
class PostgresSettings(Settings):
    """What a `PostgresHandler` can be told besides."""

    # Where the rows go.
    # libpq string or URI; "" reads libpq's environment; a callable is asked at each connect. Never in a repr: error
    # trackers take the repr of everything that they see in a traceback
    dsn: str | Callable[[], str] = dataclasses.field(default="", repr=False)
    dsn_env: str | None = None  # name of an environment variable that holds the dsn; read at each connect
    schema: str = "logsluice"  # holds `logs`, `stream`, `dead_letter`, `hold`, `version`, typed logs and spans
    table: str = "logs"  # in `schema`; "public.orders" is where it says
    columns: Mapping[str, Any] | None = None  # {column: source}: write into a table of your own
    create: bool = True  # apply sql/ on first use; False: `logsluice migrate --sql` prints it for a DBA
    partition: str = "day"  # width of a partition of `logs`: day, hour, week, month, none
    # drop old partitions and rows, from a thread of its own, with the rights of `logsluice maintain`: True (what typed
    # logs declare), a mapping of retention rules, or the path of a JSON file that holds one
    maintenance: Any = False
    synchronous_commit: str | None = None  # PostgreSQL's setting for our transactions; None: the server's own

    def check(self, given: frozenset[str]) -> None:
        """As for all; and one way to the dsn, not two."""
        super().check(given)
        if self.dsn_env is not None:
            if "dsn" in given:
                raise ConfigError("give dsn or dsn_env, not both")
            if self.dsn_env not in os.environ:
                raise ConfigError(
                    f"dsn_env names the environment variable {self.dsn_env!r}, which is not set; "
                    f"set it before logging is configured, or use dsn"
                )


@dataclass(frozen=True, kw_only=True)
class FileSettings(Settings):
    """What a `JsonFileHandler` can be told besides."""

    filename: str = ""  # of the log file; its folder is made if it is not there
    names: str = "sluice"  # of the keys: "sluice", "otel", "ecs", "plain"; a formatter of one's own wins
    mode: int = 0o640  # of files that are made, whatever the umask says; in JSON and YAML a text, "0640"
    owner: str | None = None  # "user:group" of files that are made, either may be left out; needs the right to
    max_bytes: int | None = None  # rotated before it is larger (a longer line has a file alone); None: at no size
    when: str | None = None  # rotated by the first line of another "hour", "midnight" (a day), "week", "month"
    utc: bool = False  # whether a day ends, and a file is named, by UTC; else by local time
    backup_count: int = 30  # rotated files that are kept
    total_bytes: int | None = None  # of the file and all rotated ones, the oldest are deleted; None: no limit
    compress: bool = False  # gzip what was rotated
    delay_compress: bool = False  # but for the newest: somebody may still be reading it
    rotate_empty: bool = False  # rotate a file without a line

    def check(self, given: frozenset[str]) -> None:
        """As for all; there must be a file, and one listener writes it."""
        super().check(given)
        if "filename" not in given:
            raise ConfigError("filename is missing: say where the lines go, for example filename='logs/app.log'")
        if self.connections > 1:
            raise ConfigError("connections says nothing for a file: one thread writes it; leave it out")
        if self.total_bytes is not None and self.max_bytes is None and self.when is None:
            raise ConfigError("total_bytes needs rotation: say max_bytes= or when= as well")
        if self.delay_compress and not self.compress:
            raise ConfigError("delay_compress says nothing without compress=True")

    def ids(self) -> tuple[int, int] | None:
        """Return (uid, gid) of `owner`, -1 for what it leaves as it is; None without an owner."""
        return None if self.owner is None else owner_ids(self.owner)


@dataclass(frozen=True, kw_only=True)
class SinkSettings(Settings):
    """What a `SinkHandler` can be told besides."""

    sink: Any = None  # a class, or "package.module.Class": called with `stream=` and the options, once a stream
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict, repr=False)  # for that class; may hold secrets
    format: str = "json"  # of frames: "json", one object a line, or "copy", rows of PostgreSQL's COPY text
    names: str = "sluice"  # of the keys, for "json": "sluice", "otel", "ecs", "plain"

    def check(self, given: frozenset[str]) -> None:
        """As for all; there must be a sink."""
        super().check(given)
        if "sink" not in given:
            raise ConfigError("sink is missing: name a class, for example sink='myprogram.sinks.SqliteSink'")
        if "stream" in self.options:
            raise ConfigError("options: 'stream' is what the handler itself gives the sink; take another name")


def owner_ids(owner: str) -> tuple[int, int]:
    """Return (uid, gid) of "user:group", names or numbers; -1 for one that is not said. Raises LookupError."""
    import grp  # noqa: PLC0415 - not on Windows
    import pwd  # noqa: PLC0415 - as above

    user, _, group = owner.partition(":")
    uid = -1 if not user else int(user) if user.isdecimal() else pwd.getpwnam(user).pw_uid
    gid = -1 if not group else int(group) if group.isdecimal() else grp.getgrnam(group).gr_gid
    return uid, gid


Chosen = TypeVar("Chosen", bound=Settings)


def identity(settings: Settings) -> dict[str, Any]:
    """Return who writes: what the stream's row, and a journal's header, say of this process."""
    return {
        "service": settings.service,
        "environment": settings.environment,
        "version": settings.service_version,
        "host": socket.gethostname(),
        "pid": os.getpid(),
    }


def settings_from(options: Mapping[str, Any], kind: type[Chosen]) -> Chosen:
    """
    Check what the user wrote and return the settings, of this kind.

    Raises `ConfigError` for an unknown or wrong option. Values of dict and list options are copied:
    `dictConfig` hands over containers that resolve `ext://` and `cfg://` only when they are read.
    """
    known = {field.name: field for field in dataclasses.fields(kind)}
    chosen: dict[str, Any] = {}
    for name, value in options.items():
        if name not in known:
            refuse_unknown(name, sorted(known))
        check = kind.checks.get(name) or _CHECKS.get(name)
        chosen[name] = check(name, plain(value)) if check else plain(value)
    settings = kind(**chosen)
    settings.check(frozenset(chosen))
    return settings


def refuse_unknown(name: str, known: Sequence[str]) -> NoReturn:
    """Raise `ConfigError` for an option that there is not; it says which one may be meant."""
    near = difflib.get_close_matches(name, known, n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"known options: {', '.join(known)}"
    raise ConfigError(f"unknown option {name!r}; {hint}")


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


def _number(least: float, kind: str, *, none: bool = False, whole: bool = False) -> Callable[[str, Any], Any]:
    def check(name: str, value: Any) -> Any:
        if value is None and none:
            return None
        right_type = isinstance(value, int) if whole else isinstance(value, (int, float))
        if not right_type or isinstance(value, bool) or not value >= least:  # `not >=` refuses NaN too
            optional = " or None" if none else ""
            raise ConfigError(f"{name} must be {kind} of at least {least}{optional}, got {value!r}")
        return value

    return check


def _maintenance(name: str, value: Any) -> Any:
    if not isinstance(value, (bool, str, Mapping)) or value == "":
        raise ConfigError(f"{name} must be true, false, retention rules as {{'*': '30d'}}, or a JSON file's path")
    return dict(value) if isinstance(value, Mapping) else value


def _connections(name: str, value: Any) -> int:
    # 16: more do not help a program whose threads share one GIL, and a server has a hundred for all.
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= 16:
        raise ConfigError(f"{name} must be a whole number from 1 to 16, got {value!r}")
    return value


def _one_of(*choices: str | None) -> Callable[[str, Any], Any]:
    def check(name: str, value: Any) -> Any:
        if value not in choices:
            raise ConfigError(f"{name} must be one of {', '.join(map(repr, choices))}, got {value!r}")
        return value

    return check


def _text(name: str, value: Any) -> Any:
    if value is not None and not isinstance(value, str):
        raise ConfigError(f"{name} must be a string or None, got {type(value).__name__}")
    # It goes into every row: a NUL would end a segment's data, a lone surrogate cannot be encoded.
    if value is not None and ("\0" in value or len(value.encode("utf-8", "replace")) > KIB or not _encodes(value)):
        raise ConfigError(f"{name} must be at most 1 KiB of text without NUL and lone surrogates, got {value[:100]!r}")
    return value


def _encodes(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _variable(name: str, value: Any) -> Any:
    if value is not None and (not isinstance(value, str) or re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", value) is None):
        # Not shown: whoever puts the dsn itself here has put the password here.
        raise ConfigError(f"{name} is the name of an environment variable, for example 'LOGS_DSN'; a dsn goes to dsn=")
    return value


def _folder(name: str, value: Any) -> Any:
    if value is None:
        return None
    if not isinstance(value, (str, os.PathLike)) or not os.fspath(value) or "\0" in str(os.fspath(value)):
        raise ConfigError(f"{name} must be the path of a folder or None, got {value!r}")
    return os.path.abspath(os.fspath(value))  # noqa: PTH100 - a program may change its folder later


def _filename(name: str, value: Any) -> str:
    path = _folder(name, value)
    if path is None or Path(path).is_dir() or str(value).endswith("/"):
        raise ConfigError(f"{name} must be the path of a file, for example 'logs/app.log', got {value!r}")
    if Path(path).exists() and not Path(path).is_file():
        raise ConfigError(
            f"{name}: {path} is no regular file; for a terminal or a pipe use logging.StreamHandler with "
            "logsluice.formatters.SluiceJsonFormatter"
        )
    return str(path)


def _mode(name: str, value: Any) -> int:
    try:
        number = int(value, 8) if isinstance(value, str) else value
    except ValueError:
        number = None
    if isinstance(number, bool) or not isinstance(number, int) or not 0 < number <= 0o777 or not number & 0o200:
        raise ConfigError(
            f"{name} must be a file mode that its owner can write with, for example '0640', got {value!r}"
        )
    return number


def _owner(name: str, value: Any) -> Any:
    if value is None:
        return None
    try:
        if not isinstance(value, str) or not value.strip(":"):
            raise LookupError("it is empty")
        owner_ids(value)
    except LookupError as error:
        raise ConfigError(f"{name} must be 'user:group', 'user' or ':group' that there are, got {value!r}") from error
    return value


def _imported(name: str, value: Any) -> Any:
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


def _mapping(name: str, value: Any) -> dict[str, Any]:
    if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
        raise ConfigError(f"{name} must be a mapping of names to values, got {type(value).__name__}")
    return dict(value)


def _when(name: str, value: Any) -> Any:
    names = {"H": "hour", "D": "midnight", "day": "midnight"}  # as logging's own handler has them
    value = names.get(value, value) if isinstance(value, str) else value
    return _one_of(None, "hour", "midnight", "week", "month")(name, value)


def _fsync(name: str, value: Any) -> Any:
    if isinstance(value, str) and value in {"never", "always"}:
        return value
    # 10 ms: about what one fdatasync takes on a disk that spins.
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0.01 <= value < float("inf"):
        raise ConfigError(f"{name} must be 'never', 'always', or seconds of at least 0.01, got {value!r}")
    return value


def _flag(name: str, value: Any) -> bool:
    if not isinstance(value, bool):
        raise ConfigError(f"{name} must be true or false, got {value!r}")
    return value


def _dsn(_name: str, value: Any) -> Any:
    if not isinstance(value, str) and not callable(value):
        # The value is not shown: it may hold a password in a form that we did not foresee.
        raise ConfigError(
            f"dsn must be a libpq string, a URI or a callable that returns one, got {type(value).__name__}"
        )
    return value


def _limits(_name: str, value: Any) -> Limits:
    names = [field.name for field in dataclasses.fields(Limits)]
    if isinstance(value, Limits):
        return value
    if not isinstance(value, Mapping):
        raise ConfigError(f"limits must be a mapping of {', '.join(names)}, got {type(value).__name__}")
    for name, number in value.items():
        if name not in names:
            near = difflib.get_close_matches(str(name), names, n=1)
            raise ConfigError(
                f"unknown limit {name!r}; " + (f"did you mean {near[0]!r}?" if near else f"known: {names}")
            )
        optional = name in {"service", "module", "operation", "message"}
        _number(1, "a whole number", whole=True, none=optional)(f"limits.{name}", number)
    if value.get("depth", 1) > 200:  # the encoder recurses: Python ends at about 1,000 frames, the program has some too
        raise ConfigError(f"limits.depth must be at most 200, got {value['depth']!r}")
    return Limits(**value)


_CHECKS: dict[str, Callable[[str, Any], Any]] = {
    "dsn": _dsn,
    "dsn_env": _variable,
    "create": _flag,
    "maintenance": _maintenance,
    "partition": _one_of(*PARTITION_WIDTHS),
    "service": _text,
    "environment": _text,
    "service_version": _text,
    "capacity_bytes": _number(1 * MIB, "a number of bytes", whole=True),
    "capacity": _number(1, "a number of records", none=True, whole=True),
    "when_full": _one_of("drop", "block"),
    "block_timeout": _number(0, "seconds"),
    "keep_level": level_from,
    "journal": _folder,
    "journal_bytes": _number(1 * MIB, "a number of bytes", whole=True),
    "fsync": _fsync,
    "journal_unsafe_fs": _flag,
    "fallback": _text,
    "batch_size": _number(1, "a number of records", none=True, whole=True),
    "batch_bytes": _number(1 * KIB, "a number of bytes", whole=True),
    "linger": _number(0.001, "seconds"),  # below a millisecond the listener would only spin
    "slow_batch": _number(0, "seconds"),
    "flush_level": level_from,
    "connections": _connections,
    "shard_by": _text,
    "io_timeout": _number(0.1, "seconds"),
    "shutdown_timeout": _number(0, "seconds"),
    "backoff_initial": _number(0.001, "seconds"),
    "backoff_max": _number(0.001, "seconds"),
    "retry_limit": _number(1, "a number of retries", none=True, whole=True),
    "synchronous_commit": _one_of(None, "on", "off", "local", "remote_write", "remote_apply"),
    "idle_close": _number(0.1, "seconds"),
    "max_message_bytes": _number(1 * KIB, "a number of bytes", whole=True),
    "max_frame_bytes": _number(64 * KIB, "a number of bytes", whole=True),
    "limits": _limits,
    "filename": _filename,
    "mode": _mode,
    "owner": _owner,
    "max_bytes": _number(1 * KIB, "a number of bytes", none=True, whole=True),
    "when": _when,
    "utc": _flag,
    "backup_count": _number(0, "a number of files", whole=True),
    "total_bytes": _number(1 * KIB, "a number of bytes", none=True, whole=True),
    "compress": _flag,
    "delay_compress": _flag,
    "rotate_empty": _flag,
    "sink": _imported,
    "options": _mapping,
    "format": _one_of("json", "copy"),
}

# For options that stand in modules of their own.
flag, number, one_of, variable = _flag, _number, _one_of, _variable
