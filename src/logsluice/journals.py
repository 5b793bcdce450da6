"""
A journal's folder for people: whose streams wait in it, how much, and a dead process's stream loaded or copied by hand.

One segment is in memory at a time, so that a gigabyte takes the memory of 4 MiB. A stream whose process lives is looked
at and never taken: its `owner` is tried inside `exclusive`, and let go of at once.
"""

from __future__ import annotations

import errno
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from logsluice.accounting import Ledger
from logsluice.adoption import HOLD, OrphanBuffer, differs, first_header
from logsluice.columns import Table, quote
from logsluice.config import PostgresSettings, settings_from
from logsluice.delivery import Verdict
from logsluice.diagnostics import Diagnostics
from logsluice.errors import LogsluiceError
from logsluice.folder import LOCK, OWNER, QUARANTINE, BusyError, Folder, boot_id
from logsluice.journal import (
    SEGMENT_NAME,
    STREAM_NAME,
    Header,
    Image,
    UnfinishedError,
    UnreadableError,
    read_image,
)
from logsluice.journal_buffer import TRIES, read_segment
from logsluice.listener import Listener
from logsluice.primitives import SimpleQueue
from logsluice.routes import Route
from logsluice.sinks.link import Link, check_dsn, described
from logsluice.sinks.postgres import PostgresSink

if TYPE_CHECKING:
    from collections.abc import Iterator


BATCH = 2 * 1024 * 1024  # bytes of rows in hand while a stream is copied: as in one transaction


@dataclass
class Stream:
    """What waits of one stream."""

    name: str  # of its folder: its id, hexadecimal
    alive: bool  # somebody holds its flock: its own process, or one that is sending it
    started: float | None = None  # seconds since the epoch: when its folder was made
    header: Header | None = None  # of its first readable segment
    segments: int = 0  # files
    bytes: int = 0  # of these files
    records: int = 0  # whole rows; those below the watermark, which only PostgreSQL knows, included
    first: str | None = None  # time of the first and the last row, as it is stored; None for a table of the user's own
    last: str | None = None
    damaged: int = 0  # rows in damaged blocks: they become dead letters
    holes: int = 0  # runs of NULs after a crash of the machine: what stood there is lost
    torn: int = 0  # bytes of rows that were cut off: their calls had not returned
    truncated: int = 0  # files that somebody made shorter
    unreadable: dict[str, str] = field(default_factory=dict)  # file -> why; whoever sends the stream quarantines it


@dataclass(frozen=True)
class Quarantined:
    """A file that could not be read, kept for a person."""

    name: str
    bytes: int
    why: str


@dataclass
class Place:
    """All that is in the folder."""

    bytes: int
    streams: list[Stream]
    quarantine: list[Quarantined]
    strangers: list[str]  # names that are none of ours

    @property
    def orphans(self) -> list[Stream]:
        """Those that a dead process left, and that hold anything."""
        return [one for one in self.streams if not one.alive and one.segments]


@dataclass(frozen=True)
class Loaded:
    """What became of a stream that was loaded."""

    stored: int  # records; those that were stored before included
    dead: int
    given_up: dict[str, int]  # reason -> records
    holes: int
    torn: int  # bytes
    removed: bool  # its folder is gone
    said: tuple[str, ...]  # what the sink wants a person to know


class NotLoadedError(LogsluiceError):
    """A stream could not be loaded, or not wholly; what is committed stays, and is known the next time."""

    def __init__(self, text: str, *, connecting: bool = False) -> None:
        super().__init__(text)
        self.connecting = connecting  # the next stream would meet the same


# --- looking --------------------------------------------------------------------------------------------------------


def opened(path: str) -> Folder:
    """Return the folder; it must be there, and is never made. Raises LogsluiceError."""
    folder = Folder(path)
    try:
        Path(path).stat()
        folder.root()
    except (FileNotFoundError, NotADirectoryError, ValueError):  # ValueError: NUL is in no path
        raise LogsluiceError(
            f"there is no folder {path!r}: name the one that journal= says in the handler's options"
        ) from None
    except OSError as error:
        raise refused(path, error) from None
    return folder


def refused(path: str, error: OSError) -> LogsluiceError:
    """Return what the disk refused, with what to do."""
    if isinstance(error, BusyError):
        return LogsluiceError(f"{path}: {error.strerror}; run the same again")
    if error.errno == errno.EROFS:
        return LogsluiceError(
            f"{path} is on a disk that is read-only: copy the folder with cp -a to another disk, and name the copy"
        )
    if error.errno == errno.EPERM and "others may write" in str(error):
        return LogsluiceError(f"{path}: {error.strerror}")
    if error.errno in {errno.EPERM, errno.EACCES}:
        return LogsluiceError(
            f"{path}: {error.strerror}; run this as the user whose programs write there (sudo -u USER logsluice ...)"
        )
    return LogsluiceError(f"{path}: {error.strerror or error}; see to the disk, then run the same again")


def look(folder: Folder, *, count: bool = True) -> Place:
    """Return what is there. Without `count` no segment is read, but for a header a stream. Raises OSError."""
    names = folder.names()
    subfolders = folder.streams()
    streams = [_stream(folder, name, count=count) for name in subfolders if STREAM_NAME.fullmatch(name)]
    streams.sort(key=lambda one: one.started or 0.0)
    known = {QUARANTINE, LOCK, *(one.name for one in streams)}
    return Place(
        folder.used(),
        streams,
        list(_quarantine(folder)) if QUARANTINE in names else [],
        sorted(name for name in names if name not in known and not STREAM_NAME.fullmatch(name)),
    )


def _stream(folder: Folder, name: str, *, count: bool) -> Stream:
    found = Stream(name, is_alive(folder, name))
    try:
        found.started = (Path(folder.path) / name / OWNER).stat().st_mtime
        files = [(file, size) for file, size in folder.files(name) if SEGMENT_NAME.fullmatch(file)]
    except FileNotFoundError:
        return found  # all was sent meanwhile
    try:
        found.header = first_header(folder, name)
    except OSError:
        pass  # sent meanwhile, or `_count` says of which file the disk refuses what
    for file, size in files:
        found.segments += 1
        found.bytes += size
        if count:
            _count(folder, found, file)
    return found


def is_alive(folder: Folder, name: str) -> bool:
    """Whether a process holds the stream. Raises OSError."""
    with folder.exclusive(HOLD):
        owner = folder.take_over(name)
    if owner is None:
        return (Path(folder.path) / name).is_dir()  # else it was removed meanwhile
    folder.give_back(owner)
    return False


def _count(folder: Folder, found: Stream, file: str) -> None:
    """Add up what one segment holds."""
    try:
        image = read_segment(folder, f"{found.name}/{file}", int(file[:8], 16), boot_id())
    except (FileNotFoundError, UnfinishedError):
        return  # sent meanwhile; its maker died before it held a row
    except (OSError, UnreadableError) as error:
        found.unreadable[file] = getattr(error, "strerror", None) or str(error)
        return
    found.holes += image.holes
    found.torn += image.torn
    found.truncated += image.short
    for span in image.spans:
        rows = image.data.count(b"\n", span.begin, span.end)
        if span.damaged:
            found.damaged += max(rows, 1)
            continue
        markers = 0 if image.header.mapped else _markers(image.data, span.begin, span.end)
        found.records += rows - markers
        if "ts" in image.header.columns and not image.header.mapped:
            found.first = found.first or _time(image, image.data[span.begin : image.data.find(b"\n", span.begin)])
            found.last = _time(image, image.data[image.data.rfind(b"\n", span.begin, span.end - 1) + 1 : span.end])


def _markers(data: bytes, begin: int, end: int) -> int:
    """Count the rows about drops, which are nobody's records: their seq is negative, and it stands first."""
    return data.count(b"\n-", begin, end) + data.startswith(b"-", begin)


def _time(image: Image, row: bytes) -> str | None:
    values = row.split(b"\t")
    at = image.header.columns.index("ts")
    return values[at].decode(errors="replace") if at < len(values) else None


def _quarantine(folder: Folder) -> Iterator[Quarantined]:
    for file, size in folder.files(QUARANTINE):
        try:
            descriptor = folder.open(f"{QUARANTINE}/{file}")
            try:
                image = read_image(folder.read(descriptor, size), boot_id())
            finally:
                folder.close_file(descriptor)
            why = (
                f"it can be read: segment {image.header.segment} of stream {image.header.stream:016x} stood twice, or "
            )
            why += "the disk did not give it then"
        except FileNotFoundError:
            continue
        except OSError as error:
            why = error.strerror or str(error)
        except LogsluiceError as error:
            why = str(error)
        yield Quarantined(file, size, why)


# --- taking one -----------------------------------------------------------------------------------------------------


@contextmanager
def taken(folder: Folder, name: str) -> Iterator[OrphanBuffer]:
    """Hold a dead process's stream. Raises LogsluiceError for one that lives, OSError."""
    with folder.exclusive(HOLD):
        owner = folder.take_over(name)
        if owner is None:
            raise NotLoadedError(f"stream {name} is held by a living process, which sends it itself: leave it alone")
        orphan = OrphanBuffer(folder, name, owner, first_header(folder, name), boot_id())
    try:
        yield orphan
    finally:
        orphan.give_back()


def elsewhere(header: Header, dsn: str) -> str | None:
    """Return in what the database of a stream is not that of a dsn, None if it is the same."""
    if header.sink != "postgres":
        return f"sink {header.sink}, not postgres"
    there = described(_settings(header, dsn))
    return differs(header, replace(header, target={**header.target, **there}))


def place_of(header: Header) -> str:
    """Return where a stream's records go, if not into PostgreSQL, as people write it."""
    return f"the {header.sink} {', '.join(header.target.values())}"


def _settings(header: Header, dsn: str) -> PostgresSettings:
    options: dict[str, Any] = {"dsn": dsn, "schema": header.home, "create": False}
    if header.mapped:
        # The rows are made already: only the columns' names matter, not what once filled them.
        options["table"] = f"{quote(header.target['schema'])}.{quote(header.target['table'])}"
        options["columns"] = {column: f"extra.{column}" for column in header.columns}
    return settings_from(options, PostgresSettings)


class _Heard(Diagnostics):
    """What is said while a stream is loaded, kept: the person at the terminal gets a result, not a running process."""

    def __init__(self) -> None:
        super().__init__("journal")
        self.heard: dict[str, str] = {}

    def say(self, kind: str, text: str, *, every: float = 0) -> bool:  # noqa: ARG002 - all is kept
        self.heard[kind] = self.scrub(text)
        return True


def load(folder: Folder, name: str, dsn: str) -> Loaded:
    """
    Send a dead process's stream under its own id, as the next process would, and remove its folder.

    Waits for the server, `io_timeout` (30 s) for each answer. Raises NotLoadedError, OSError.
    """
    with taken(folder, name) as orphan:
        header = orphan.header
        if header is None:  # no readable segment: what is there goes to quarantine, what never held a row goes
            _no_header(orphan)
            return Loaded(0, 0, dict(orphan.given_up), 0, 0, orphan.remove(), ())
        if header.sink != "postgres":
            raise NotLoadedError(
                f"it is for {place_of(header)}, not for PostgreSQL: a program with the same handler and this journal "
                f"sends it; --export writes its lines"
            )
        settings = _settings(header, dsn)
        wrong = check_dsn(settings)
        if wrong:
            raise NotLoadedError(wrong, connecting=True)
        diagnostics = _Heard()
        listener = Listener(SimpleQueue(), settings, diagnostics)
        route = _route(listener, settings, orphan, header)
        listener.adopted.append(route)
        try:
            _drive(listener, route, diagnostics)
        finally:
            route.sink.close()
        totals = route.ledger.totals
        said = tuple(text for kind, text in diagnostics.heard.items() if kind in {"watermark", "partitions"})
        gone = not (Path(folder.path) / name).exists()
        return Loaded(totals.stored, totals.dead, dict(totals.abandoned), orphan.holes, orphan.torn, gone, said)


def _no_header(orphan: OrphanBuffer) -> None:
    wrong: UnreadableError | None = None
    for _ in range(TRIES + 1):
        try:
            orphan.take(BATCH)
            return
        except UnreadableError as error:
            wrong = error
    raise NotLoadedError(f"{wrong}; see to the disk, then run the same again")


def _route(listener: Listener, settings: PostgresSettings, orphan: OrphanBuffer, header: Header) -> Route:
    link = Link(settings, listener.diagnostics, listener.deadline)
    target = Table(
        header.home, header.target["schema"], header.target["table"], header.columns, () if header.mapped else None
    )
    sink = PostgresSink(link, target, orphan.stream, known_base=orphan.known, who=header.who)
    return Route(
        orphan.name, orphan, None, target, sink, listener.new_breaker(), listener.settings.batch_bytes, Ledger()
    )


def _drive(listener: Listener, route: Route, diagnostics: _Heard) -> None:
    """Have the listener serve the route until it is done. A failure that a running process would sit out is raised."""
    misread = 0
    while route in listener.adopted:
        route.ledger.recent_failed.clear()
        listener._serve_orphan(route)  # noqa: SLF001 - the one code that sends an orphan
        connecting = listener.breaker.failing_since is not None
        if not connecting and route.breaker.failing_since is None:
            continue
        listener.breaker.succeeded()  # nobody waits for a back-off here
        route.breaker.succeeded()
        if not route.ledger.recent_failed:  # a segment that cannot be read: after some tries it goes to quarantine
            misread += 1
            if misread > TRIES:
                raise NotLoadedError(_text(diagnostics, route, "a segment cannot be read"))
            continue
        failure = route.ledger.recent_failed[-1]
        if failure["verdict"] != Verdict.SHRINK.value or failure["records"] == 1:
            raise NotLoadedError(_text(diagnostics, route, diagnostics.scrub(failure["error"])), connecting=connecting)


def _text(diagnostics: _Heard, route: Route, otherwise: str) -> str:
    """Return why it stopped, in the words of the listener where they say what to do."""
    for kind, text in reversed(diagnostics.heard.items()):
        if kind.startswith("blocked-"):
            return text.removeprefix("blocked, records are kept: ")
        if kind == f"unreadable-{route.name}":
            return f"{text.removesuffix('; it is tried again')}; see to the disk, then run the same again"
    return otherwise


def rows(orphan: OrphanBuffer) -> Iterator[bytes]:
    """Yield the rows of a stream as they would be sent, whole, and change nothing. Damaged blocks are left out."""
    for file, _ in orphan.folder.files(orphan.name):
        if SEGMENT_NAME.fullmatch(file) is None:
            continue
        try:
            image = read_segment(orphan.folder, f"{orphan.name}/{file}", int(file[:8], 16), boot_id())
        except UnfinishedError:
            continue
        for span in image.spans:
            if not span.damaged:
                for at in range(span.begin, span.end, BATCH):
                    yield image.data[at : min(at + BATCH, span.end)]


def sized(size: float) -> str:
    """Return bytes as people read them, in binary units."""
    for unit in ("bytes", "KiB", "MiB", "GiB"):
        if size < 1024:
            return f"{size:.0f} {unit}" if unit == "bytes" or size >= 100 else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} TiB"
