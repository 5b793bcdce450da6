"""
The options of the handlers, checked when `dictConfig` runs: nothing is opened and nothing is started here.

Frozen dataclasses, one for what all sinks share and one for each kind; each field says meaning, unit, special values,
and `checks` what its value may be (checks.py). Durations are seconds, sizes bytes. `settings_from` builds one from what
the user wrote and raises `ConfigError` with what to write instead.
"""

from __future__ import annotations

import dataclasses
import logging
import os
import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar

from logsluice import checks
from logsluice.checks import plain, refuse_unknown
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


def _limits(_name: str, value: Any) -> Limits:
    names = [field.name for field in dataclasses.fields(Limits)]
    if isinstance(value, Limits):
        return value
    if not isinstance(value, Mapping):
        raise ConfigError(f"limits must be a mapping of {', '.join(names)}, got {type(value).__name__}")
    for name, number in value.items():
        if name not in names:
            refuse_unknown(str(name), names, "limit")
        optional = name in {"service", "module", "operation", "message"}
        checks.number(1, "a whole number", whole=True, none=optional)(f"limits.{name}", number)
    if value.get("depth", 1) > 200:  # the encoder recurses: Python ends at about 1,000 frames, the program has some too
        raise ConfigError(f"limits.depth must be at most 200, got {value['depth']!r}")
    return Limits(**value)


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What every handler can be told, whatever its sink."""

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

    checks: ClassVar[Mapping[str, Callable[[str, Any], Any]]] = {
        "service": checks.text,
        "environment": checks.text,
        "service_version": checks.text,
        "capacity_bytes": checks.number(1 * MIB, "a number of bytes", whole=True),
        "capacity": checks.number(1, "a number of records", none=True, whole=True),
        "when_full": checks.one_of("drop", "block"),
        "block_timeout": checks.number(0, "seconds"),
        "keep_level": checks.level_from,
        "journal": checks.folder,
        "journal_bytes": checks.number(1 * MIB, "a number of bytes", whole=True),
        "fsync": checks.fsync,
        "journal_unsafe_fs": checks.flag,
        "fallback": checks.text,
        "batch_size": checks.number(1, "a number of records", none=True, whole=True),
        "batch_bytes": checks.number(1 * KIB, "a number of bytes", whole=True),
        "linger": checks.number(0.001, "seconds"),  # below a millisecond the listener would only spin
        "slow_batch": checks.number(0, "seconds"),
        "flush_level": checks.level_from,
        "connections": checks.connections,
        "shard_by": checks.text,
        "io_timeout": checks.number(0.1, "seconds"),
        "shutdown_timeout": checks.number(0, "seconds"),
        "backoff_initial": checks.number(0.001, "seconds"),
        "backoff_max": checks.number(0.001, "seconds"),
        "retry_limit": checks.number(1, "a number of retries", none=True, whole=True),
        "idle_close": checks.number(0.1, "seconds"),
        "max_message_bytes": checks.number(1 * KIB, "a number of bytes", whole=True),
        "max_frame_bytes": checks.number(64 * KIB, "a number of bytes", whole=True),
        "limits": _limits,
    }

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

    checks: ClassVar[Mapping[str, Callable[[str, Any], Any]]] = {
        "dsn": checks.dsn,
        "dsn_env": checks.variable,
        "create": checks.flag,
        "partition": checks.one_of(*PARTITION_WIDTHS),
        "maintenance": checks.maintenance,
        "synchronous_commit": checks.one_of(None, "on", "off", "local", "remote_write", "remote_apply"),
    }

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

    checks: ClassVar[Mapping[str, Callable[[str, Any], Any]]] = {
        "filename": checks.filename,
        "mode": checks.mode,
        "owner": checks.owner,
        "max_bytes": checks.number(1 * KIB, "a number of bytes", none=True, whole=True),
        "when": checks.when,
        "utc": checks.flag,
        "backup_count": checks.number(0, "a number of files", whole=True),
        "total_bytes": checks.number(1 * KIB, "a number of bytes", none=True, whole=True),
        "compress": checks.flag,
        "delay_compress": checks.flag,
        "rotate_empty": checks.flag,
    }

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
        return None if self.owner is None else checks.owner_ids(self.owner)


@dataclass(frozen=True, kw_only=True)
class SinkSettings(Settings):
    """What a `SinkHandler` can be told besides."""

    sink: Any = None  # a class, or "package.module.Class": called with `stream=` and the options, once a stream
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict, repr=False)  # for that class; may hold secrets
    format: str = "json"  # of frames: "json", one object a line, or "copy", rows of PostgreSQL's COPY text
    names: str = "sluice"  # of the keys, for "json": "sluice", "otel", "ecs", "plain"

    checks: ClassVar[Mapping[str, Callable[[str, Any], Any]]] = {
        "sink": checks.imported,
        "options": checks.mapping,
        "format": checks.one_of("json", "copy"),
    }

    def check(self, given: frozenset[str]) -> None:
        """As for all; there must be a sink."""
        super().check(given)
        if "sink" not in given:
            raise ConfigError("sink is missing: name a class, for example sink='myprogram.sinks.SqliteSink'")
        if "stream" in self.options:
            raise ConfigError("options: 'stream' is what the handler itself gives the sink; take another name")


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
        check = kind.checks.get(name) or Settings.checks.get(name)
        chosen[name] = check(name, plain(value)) if check else plain(value)
    settings = kind(**chosen)
    settings.check(frozenset(chosen))
    return settings
