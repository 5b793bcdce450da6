"""
Rows into files before they are dropped: what is written, how it is verified, and when the caller may go on.

    TARGET/logsluice/logs/date=2026-11-01/logs_20261101-9f86d081884c7d65.parquet
    TARGET/logsluice/logs/date=2026-11-01/logs_20261101-9f86d081884c7d65.manifest.json

Rules, each against an accident:

1. A file is written under another name, flushed to the device, read back from there, and compared with what PostgreSQL
   sent: the number of rows, which the server counts, and a checksum of every row. Then it gets its name, then it gets
   its manifest. A file that no manifest names is no archive.
2. The name ends in the checksum. The same rows again are the same file, whenever a run was killed.
3. A partition is read in one snapshot while writers go on. It is read again when it is detached, under a lock that lets
   nobody in, and dropped in that transaction: what came in between is in no file yet, and gets one of its own.
4. Rows that are deleted one by one are sent by the DELETE itself, and it commits after their file has its manifest.
5. Nothing here drops anything. Who wants to waits until a call has returned; `ArchiveError` says that he may not.

Memory is flat: `BATCH_ROWS` or `BATCH_BYTES` of rows at once, whichever is less.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import importlib.util
import secrets
from collections import Counter
from dataclasses import dataclass, field
from typing import IO, TYPE_CHECKING, Any

import psycopg

from logsluice import crashpoints, decoding
from logsluice.archive import manifest, places, rows
from logsluice.archive.manifest import Manifest
from logsluice.archive.places import ArchiveError, encoded, told
from logsluice.archive.source import absent, columns_of, names, words
from logsluice.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from logsluice.archive.source import Source

__all__ = ["Archive", "ArchiveError", "Manifest", "Settings"]

FORMATS = ("parquet", "jsonl")
BATCH_ROWS = 20_000  # a row group: large enough to compress well, some 40 MB as Python's texts
BATCH_BYTES = 16 << 20  # of one: records may have 4 MiB each
# Rows that one DELETE sends: a file and a transaction of some seconds. Each begins its search at the beginning again.
CHUNK = 100_000
_TELL = 1000  # rows; drawing a bar costs as much as some of them
_STAGE = "logsluice_archived"  # a table of the transaction


class StoppedError(ArchiveError):
    """It was asked to stop."""


@dataclass(frozen=True)
class Settings:
    """Where archives go and what they are."""

    target: str
    format: str = FORMATS[0]

    @classmethod
    def of(cls, given: Any) -> Settings | None:
        """Return those of None, of a target, or of {"target": ..., "format": ...}. Raises `ConfigError`."""
        if given is None:
            return None
        values = {"target": given} if isinstance(given, str) else given
        if not isinstance(values, dict) or not {"target"} <= set(values) <= {"target", "format"}:
            raise ConfigError(f'archive is a directory or URL, or {{"target": ..., "format": "jsonl"}}, got {given!r}')
        settings = cls(**values)
        if settings.format not in FORMATS:
            raise ConfigError(f"archive: the format is one of {', '.join(FORMATS)}, got {settings.format!r}")
        if settings.format == "parquet" and importlib.util.find_spec("pyarrow") is None:
            raise ConfigError("archive: Parquet needs pyarrow: pip install 'logsluice[archive]', or take jsonl")
        if not isinstance(settings.target, str) or not settings.target or "\0" in settings.target:
            raise ConfigError(f"archive: {settings.target!r} is no directory and no URL")
        return settings


def format_module(name: str) -> Any:
    """Return the module that writes and reads a format. Raises `ConfigError` where its package is missing."""
    return importlib.import_module("logsluice.archive." + {"parquet": "parquet", "jsonl": "jsonlines"}[name])


@dataclass
class _Draft:
    """A file that is being written: what PostgreSQL sent, and between which keys."""

    columns: Sequence[rows.Column]
    key: Sequence[str]
    sum: rows.Sum = field(default_factory=rows.Sum)
    first: tuple[int, list[str]] | None = None
    last: tuple[int, list[str]] | None = None
    bounded: bool = True
    rules: Counter[int] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        names = [column.name for column in self.columns]
        self._places = [names.index(name) for name in self.key]

    def saw(self, line: bytes) -> list[str | None]:
        """Count a row, and return the texts of its columns."""
        self.sum.add(line)
        texts = decoding.texts(line)
        when = rows.micros(texts[self._places[0]] or "")
        if when is None:
            self.bounded = False
        elif self.first is None or self.last is None or not self.first[0] <= when <= self.last[0]:
            edge = (when, [texts[place] or "" for place in self._places])
            if self.first is None or when < self.first[0]:
                self.first = edge
            if self.last is None or when > self.last[0]:
                self.last = edge
        return texts

    def edge(self, which: tuple[int, list[str]] | None) -> Mapping[str, str] | None:
        return dict(zip(self.key, which[1], strict=True)) if which is not None and self.bounded else None


class Archive:
    """Archives of one database at one place. `progress` is told of rows that were written."""

    def __init__(
        self,
        conn: psycopg.Connection[Any],
        settings: Settings,
        *,
        stop: Callable[[], bool] = lambda: False,
        progress: Callable[[int], None] = lambda _rows: None,
    ) -> None:
        self.settings = settings
        self.written: list[Manifest] = []
        self.there: set[str] = set()  # paths of files of earlier runs that hold all of a source
        self._conn = conn
        self._stop = stop
        self._progress = progress
        self._place = places.place_of(settings.target)
        self._format = format_module(settings.format)
        self._sound: set[str] = set()  # paths of files that this run wrote, or has read again

    def line(self) -> str:
        """Return what was written in one line."""
        count, size = sum(one.rows for one in self.written), sum(one.bytes for one in self.written) / (1 << 20)
        text = f"{len(self.written)} files, {count:,} rows, {size:.1f} MiB in {places.shown(self.settings.target)}"
        return f"{text}; {len(self.there)} were there, and are sound" if self.there else text

    def whole(self, source: Source, *, locked: bool = False) -> None:
        """
        Return when each row of this source is in a file that was verified; it may be one of an earlier run.

        `locked`: the caller's transaction keeps others from changing it. Else it is read in one snapshot, and what is
        committed later is not looked at. Blocks for as long as reading, writing and reading back take. Raises
        `ArchiveError`, or psycopg's error.
        """
        with self._conn.transaction():
            if not locked:
                self._conn.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ", prepare=False)
            words(self._conn)
            columns = columns_of(self._conn, source.name)
            where = source.where
            any_row = f"SELECT true FROM ONLY {source.name} WHERE {where} LIMIT 1"
            if self._conn.execute(any_row, prepare=False).fetchone() is None:
                return  # and no folder for nothing
            known = [one for one in self._known(source) if one.columns == columns]
            if known:
                found = self._scan(source, columns)
                same = [one for one in known if (one.rows, one.checksum) == (found.rows, found.checksum)]
                sound = next((one.path for one in same if self._is_sound(one)), None)
                if sound is not None:
                    self.there |= {sound} - {one.path for one in self.written}
                    return
                where = self._without(source, columns, known)
            self._write(source, columns, f"SELECT {names(columns)} FROM ONLY {source.name} WHERE {where}")

    def deleted(
        self, source: Source, delete: str, values: Sequence[Any], rule: str, its: Sequence[Any]
    ) -> Counter[int]:
        """
        Delete rows and return how many of which rule, when they are in a file: inside the caller's transaction.

        `delete`: a DELETE without RETURNING, `rule` SQL of a number; both with their parameters.
        """
        words(self._conn)
        columns = columns_of(self._conn, source.name)
        cursor = psycopg.ClientCursor(self._conn)  # COPY takes no parameters
        query = cursor.mogrify(f"{delete} RETURNING {rule}, {names(columns).replace('%', '%%')}", [*values, *its])
        return self._write(source, columns, query, ruled=True)

    # --- what is there ---

    def _known(self, source: Source) -> list[Manifest]:
        """Return the files of this source's folder that hold all rows of a time; those of other rules never do."""
        with told("the archive cannot be listed"):
            there = self._place.names(source.folder)
        paths = [f"{source.folder}/{name}" for name in there if name.endswith(manifest.ENDING)]
        found = [manifest.load(self._place, path) for path in paths]
        return [one for one in found if one.partition is not None and one.overlaps(source.starts, source.ends)]

    def _is_sound(self, one: Manifest) -> bool:
        """Whether the file is still what it was; one that is not counts for nothing, so that its rows get another."""
        if one.path not in self._sound:
            try:
                manifest.check(self._place, one)
            except ArchiveError:
                return False
            self._sound.add(one.path)
        return True

    def _scan(self, source: Source, columns: Sequence[rows.Column]) -> rows.Sum:
        """Return number and checksum of the rows as they are in the database."""
        found = rows.Sum()
        for line in self._sent(f"SELECT {names(columns)} FROM ONLY {source.name} WHERE {source.where}"):
            found.add(line)
        return found

    def _without(self, source: Source, columns: Sequence[rows.Column], known: Sequence[Manifest]) -> str:
        """Return SQL of the rows that these files lack: they are loaded into a table of this session, and compared."""
        every, conn = names(columns), self._conn
        like = f"SELECT {every} FROM ONLY {source.name} LIMIT 0"
        conn.execute(f"CREATE TEMP TABLE {_STAGE} ON COMMIT DROP AS {like}", prepare=False)
        for one in known:
            if self._is_sound(one):
                with (
                    conn.cursor() as cursor,
                    cursor.copy(f"COPY {_STAGE} ({every}) FROM STDIN (ENCODING 'UTF8')") as copy,
                ):
                    for line in read(self._place, one):
                        copy.write(line)
        conn.execute(f"ANALYZE {_STAGE}", prepare=False)
        return f"({source.where}) AND {absent(source.name, _STAGE, columns, source.key)}"

    # --- writing ---

    def _sent(self, query: str) -> Iterator[bytes]:
        """Yield what the server sends, a row at a time. Raises unless it counts as many."""
        number = 0
        with self._conn.cursor() as cursor:
            with cursor.copy(f"COPY ({query}) TO STDOUT (ENCODING 'UTF8')") as copy:
                for data in copy:
                    if number % BATCH_ROWS == 0 and self._stop():
                        raise StoppedError("stopped before it was archived")
                    number += 1
                    yield bytes(data)
            if cursor.rowcount != number:
                raise ArchiveError(f"PostgreSQL counts {cursor.rowcount} rows, {number} came")

    def _write(
        self, source: Source, columns: tuple[rows.Column, ...], query: str, *, ruled: bool = False
    ) -> Counter[int]:
        """Write the rows of a query into a file of their own and return how many are of which rule."""
        draft = _Draft(columns, source.key)
        label = encoded(source.label)
        working = f"{source.folder}/{label}-{secrets.token_hex(4)}.tmp"
        try:
            with told("the archive cannot be written"):
                for name in self._place.names(source.folder):
                    if name.startswith(f"{label}-") and name.endswith(".tmp"):  # of a run that was killed
                        self._place.remove(f"{source.folder}/{name}")
            with told("the archive cannot be written"), self._place.create(working) as file:
                self._fill(file, draft, query, ruled=ruled)
            if draft.sum.rows:
                crashpoints.reach("archive-written")
                self._finish(source, draft, working)
        finally:
            with contextlib.suppress(Exception):  # the first error is the one to tell
                self._place.remove(working)
        return draft.rules

    def _fill(self, file: IO[bytes], draft: _Draft, query: str, *, ruled: bool) -> None:
        batch: list[list[str | None]] = []
        size = 0
        # Closed also when it fails: a gzip file that nobody closed writes its end when it is collected.
        with contextlib.closing(self._format.Writer(file, draft.columns)) as writer:
            for sent in self._sent(query):
                line = sent
                if ruled:
                    rule, _, line = sent.partition(b"\t")
                    draft.rules[int(rule)] += 1
                batch.append(draft.saw(line))
                size += len(line)
                if len(batch) == BATCH_ROWS or size >= BATCH_BYTES:
                    writer.write(batch)
                    self._progress(len(batch))
                    batch, size = [], 0
            if batch:
                writer.write(batch)
                self._progress(len(batch))

    def _finish(self, source: Source, draft: _Draft, working: str) -> None:
        """Read the file back, give it its name and its manifest: rule 1."""
        checksum = draft.sum.checksum
        # 16 of its 32 digits: a name is for people, the manifest has them all.
        stem = f"{encoded(source.label)}-{checksum[:16]}"
        with told("the archive cannot be read back"):
            size, sha256 = manifest.digest(self._place, working)
        made = Manifest(
            folder=source.folder, schema=source.schema, table=source.table,
            partition=source.label if source.whole else None,
            starts=source.starts.isoformat() if source.starts is not None else None,
            ends=source.ends.isoformat() if source.ends is not None else None,
            clock=source.key[0], rows=draft.sum.rows, checksum=checksum, first=draft.edge(draft.first),
            last=draft.edge(draft.last), columns=tuple(draft.columns), format=self.settings.format,
            file=f"{stem}.{self._format.ENDING}", bytes=size, sha256=sha256,
        )  # fmt: skip
        verify(self._place, dataclasses.replace(made, file=working.rpartition("/")[2]))
        crashpoints.reach("archive-verified")
        with told("the archive cannot be written"):
            self._place.rename(working, made.path)
            crashpoints.reach("archive-renamed")
            with self._place.create(working) as file:
                file.write(made.text().encode())
            self._place.rename(working, f"{source.folder}/{stem}{manifest.ENDING}")
        crashpoints.reach("archive-manifest")
        self._sound.add(made.path)
        self.written.append(made)


def read(place: places.Place, one: Manifest, progress: Callable[[int], None] = lambda _rows: None) -> Iterator[bytes]:
    """
    Yield the rows of a file as lines of COPY text. Raises `ArchiveError` at its end if they are not as they were.

    `progress` is told of rows that were read, by the thousand.
    """
    found = rows.Sum()
    with told(f"{one.path} cannot be read"), place.open(one.path) as file:
        for texts in format_module(one.format).read(file, one.columns):
            line = rows.line(texts)
            found.add(line)
            if found.rows % _TELL == 0:
                progress(_TELL)
            yield line
    if (found.rows, found.checksum) != (one.rows, one.checksum):
        raise ArchiveError(
            f"{one.path} holds {found.rows:,} rows with checksum {found.checksum}, not the {one.rows:,} with "
            f"{one.checksum} that PostgreSQL sent"
        )


def verify(place: places.Place, one: Manifest) -> None:
    """Read a file to its end. Raises `ArchiveError` unless it holds every row as PostgreSQL sent it."""
    for _ in read(place, one):
        pass
