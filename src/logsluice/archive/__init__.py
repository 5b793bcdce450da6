"""
Rows into files before they are dropped: what is written, how it is verified, and when the caller may go on.

    TARGET/logsluice/logs/date=2026-11-01/logs_20261101-9f86d081884c7d65.parquet
    TARGET/logsluice/logs/date=2026-11-01/logs_20261101-9f86d081884c7d65.manifest.json

Rules, each against an accident:

1. A file is written under another name, flushed to the device, read back from there, and compared with what PostgreSQL
   sent: the number of rows, which the server counts, and a checksum of every row. Then it gets its name, then it gets
   its manifest. A file without one is no archive.
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
from datetime import timedelta, timezone
from typing import IO, TYPE_CHECKING, Any

import psycopg

from logsluice import crashpoints, decoding
from logsluice.archive import manifest, places, rows
from logsluice.archive.manifest import Manifest
from logsluice.archive.places import ArchiveError, encoded, told
from logsluice.columns import quote
from logsluice.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from datetime import datetime

    from logsluice.partitions import Partition

__all__ = ["Archive", "ArchiveError", "Manifest", "Settings", "Source"]

FORMATS = ("parquet", "jsonl")
BATCH_ROWS = 20_000  # a row group: large enough to compress well, some 40 MB as Python's texts
BATCH_BYTES = 16 << 20  # of one: records may have 4 MiB each
# Rows that one DELETE sends: a file and a transaction of some seconds. Each begins its search at the beginning again.
CHUNK = 100_000
KEYS = {"dead_letter": ("at", "stream", "position")}
_KEY = ("ts", "stream", "seq")
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


@dataclass(frozen=True)
class Source:
    """Rows of one table that belong together: those of a partition, or of a day."""

    schema: str
    table: str
    name: str  # quoted, with its schema: what is read
    label: str  # what the file's name begins with
    starts: datetime | None  # its rows have starts <= time < ends
    ends: datetime | None
    where: str = "true"  # SQL
    whole: bool = True  # all rows of its time, as far as the database has them

    @property
    def key(self) -> tuple[str, str, str]:
        """The columns that tell a row from all others; the first is its time."""
        return KEYS.get(self.table, _KEY)

    @property
    def folder(self) -> str:
        """The path of the folder: DuckDB and others read `date` from it."""
        day = "beginning" if self.starts is None else f"{self.starts:%Y-%m-%d}"
        return f"{encoded(self.schema)}/{encoded(self.table)}/date={day}"


def of_partition(schema: str, table: str, part: Partition) -> Source:
    """Return the rows of a partition, attached or not."""
    return Source(schema, table, part.full_name, part.name, part.lower, part.upper)


def format_module(name: str) -> Any:
    """Return the module that writes and reads a format. Raises `ConfigError` where its package is missing."""
    return importlib.import_module("logsluice.archive." + {"parquet": "parquet", "jsonl": "jsonlines"}[name])


def days(
    conn: psycopg.Connection[Any], name: str, clock: str, starts: datetime | None, ends: datetime
) -> Iterator[tuple[datetime, datetime]]:
    """Yield the days (UTC) of a table that have rows with starts <= time < ends; `clock`: its quoted column of time."""
    while True:
        query = f"SELECT min({clock}) FROM ONLY {name} WHERE %s::timestamptz IS NULL OR {clock} >= %s::timestamptz"
        row = conn.execute(query, [starts, starts], prepare=False).fetchone()  # by the index on it
        if row is None or row[0] is None or row[0] >= ends:
            return
        first = row[0].astimezone(timezone.utc).replace(hour=0, minute=0, second=0, microsecond=0)
        starts = first + timedelta(days=1)
        yield first, starts


def columns_of(conn: psycopg.Connection[Any], name: str) -> tuple[rows.Column, ...]:
    """Return the columns of a table, of its quoted name."""
    found = conn.execute(
        "SELECT attname::text, format_type(atttypid, NULL) FROM pg_attribute "
        "WHERE attrelid = %s::regclass AND attnum > 0 AND NOT attisdropped ORDER BY attnum",
        [name],
        prepare=False,
    ).fetchall()
    return tuple(rows.Column(*row) for row in found)


def words(conn: psycopg.Connection[Any]) -> None:
    """Have the server's texts be the same everywhere, in this transaction; and a scan begin where the table does."""
    conn.execute(
        "SET LOCAL search_path = pg_catalog, pg_temp; SET LOCAL timezone = 'UTC'; SET LOCAL datestyle = 'ISO'; "
        "SET LOCAL intervalstyle = 'postgres'; SET LOCAL extra_float_digits = 1; SET LOCAL bytea_output = 'hex'; "
        "SET LOCAL synchronize_seqscans = off",
        prepare=False,
    )


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
        self._conn = conn
        self._stop = stop
        self._progress = progress
        self._place = places.place_of(settings.target)
        self._format = format_module(settings.format)
        self._sound: set[str] = set()  # paths of files that this run wrote, or has read again

    def line(self) -> str:
        """Return what was written in one line."""
        count, size = sum(one.rows for one in self.written), sum(one.bytes for one in self.written) / (1 << 20)
        return f"{len(self.written)} files, {count:,} rows, {size:.1f} MiB in {places.shown(self.settings.target)}"

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
                if any(self._is_sound(one) for one in same):
                    return
                where = self._without(source, columns, known)
            self._write(source, columns, f"SELECT {_names(columns)} FROM ONLY {source.name} WHERE {where}")

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
        query = cursor.mogrify(f"{delete} RETURNING {rule}, {_names(columns).replace('%', '%%')}", [*values, *its])
        return self._write(source, columns, query, ruled=True)

    # --- what is there ---

    def _known(self, source: Source) -> list[Manifest]:
        """Return the files of this source's folder that hold all rows of a time; those of other rules never do."""
        with told("the archive cannot be listed"):
            names = self._place.names(source.folder)
        paths = [f"{source.folder}/{name}" for name in names if name.endswith(manifest.ENDING)]
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
        for line in self._sent(f"SELECT {_names(columns)} FROM ONLY {source.name} WHERE {source.where}"):
            found.add(line)
        return found

    def _without(self, source: Source, columns: Sequence[rows.Column], known: Sequence[Manifest]) -> str:
        """Return SQL of the rows that these files lack: they are loaded into a table of this session, and compared."""
        names, conn = _names(columns), self._conn
        like = f"SELECT {names} FROM ONLY {source.name} LIMIT 0"
        conn.execute(f"CREATE TEMP TABLE {_STAGE} ON COMMIT DROP AS {like}", prepare=False)
        for one in known:
            if self._is_sound(one):
                with (
                    conn.cursor() as cursor,
                    cursor.copy(f"COPY {_STAGE} ({names}) FROM STDIN (ENCODING 'UTF8')") as copy,
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
        writer = self._format.Writer(file, draft.columns)
        batch: list[list[str | None]] = []
        size = 0
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
        writer.close()

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


def _names(columns: Sequence[rows.Column]) -> str:
    return ", ".join(quote(column.name) for column in columns)


def absent(source: str, other: str, columns: Sequence[rows.Column], key: Sequence[str]) -> str:
    """Return SQL that is true for rows of `source` that `other` has not: by their key, and then by all they say."""
    own, its = (", ".join(f"{name}.{quote(column.name)}" for column in columns) for name in (source, "found"))
    keys = " AND ".join(f"found.{quote(name)} = {source}.{quote(name)}" for name in key)
    return f"NOT EXISTS (SELECT FROM {other} AS found WHERE {keys} AND ROW({its})::text = ROW({own})::text)"


def read(place: places.Place, one: Manifest) -> Iterator[bytes]:
    """Yield the rows of a file as lines of COPY text. Raises `ArchiveError` at its end if they are not as they were."""
    module, found = format_module(one.format), rows.Sum()
    with told(f"{one.path} cannot be read"), place.open(one.path) as file:
        for texts in module.read(file, one.columns):
            line = rows.line(texts)
            found.add(line)
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
